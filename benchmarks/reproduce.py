"""The recorded runs under `outputs/reference/`: every variant by its own recipe, on CIFAR-10.

    python benchmarks/reproduce.py published              # all eight, with their seeds
    python benchmarks/reproduce.py published lite improved_sgd
    python benchmarks/reproduce.py champion
    python benchmarks/reproduce.py trials improved_sgd    # what its source leaves open
    python benchmarks/reproduce.py published --rehearse   # on digits, two epochs, elsewhere

Stop it whenever you like: the same command goes on, and what is finished is not done again. Each
run is a process of its own, the longest first; `--at-once` of them share a GPU. Trials are judged
on 5,000 held-out training images. At the end of the others, weights are kept in half precision for
the lowest seed of a variant, evaluated again on the CPU, and all is put side by side with what was
published.
"""

import argparse
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from resnetlib import (
    evaluate,
    files,
    load_dataset,
    load_experiment,
    load_run,
    runs,
    train,
)
from resnetlib.data import normalization
from resnetlib.errors import ConfigError
from resnetlib.experiment import Experiment
from resnetlib.paths import PROJECT
from resnetlib.runs.run import Run
from resnetlib.size import measure_size

SEEDS = {  # how many of each variant
    "published": {
        "se": 2,
        "resnet18": 1,
        "dropout": 1,
        "wide66": 1,
        "adamw": 1,
        "improved_sgd": 3,
        "improved_adam": 3,
        "lite": 5,
    },
    "champion": {"champion": 3},
}
# Settings to choose from, every combination, where a source leaves them open.
TRIALS: dict[str, dict[str, list[Any]]] = {
    "lite": {"lr": [0.05, 0.1, 0.2], "weight_decay": [1e-4, 5e-4]},
    "improved_sgd": {"lr": [0.03, 0.1, 0.3], "weight_decay": [1e-4, 5e-4]},
    "improved_adam": {"lr": [3e-4, 1e-3, 3e-3], "weight_decay": [0.0, 1e-4]},
    "wide66": {"lr": [3e-4, 1e-3, 3e-3], "weight_decay": [0.0, 1e-4]},
    "champion": {"epochs": [60], "stochastic_depth": [0.0, 0.05, 0.1], "lr": [0.1, 0.2]},
}
TRIAL = {"holdout": 5000, "seed": 100}
REHEARSAL = {"dataset": "digits", "epochs": 2, "output_root": "outputs/rehearsal"}
MOST_BYTES = 10 * 2**20  # of the weights that are kept


@dataclass
class Planned:
    """A run to be: `load_experiment`'s arguments, and what they come to."""

    variant: str
    overrides: dict[str, Any]
    experiment: Experiment = field(init=False)

    def __post_init__(self):
        self.experiment = load_experiment(self.variant, **self.overrides)

    @property
    def name(self) -> str:
        told = [
            f"{name} {value}" for name, value in self.overrides.items() if name != "output_root"
        ]
        return f"{self.variant}, {', '.join(told)}"

    @property
    def work(self) -> int:
        """Multiply-accumulates of the forward passes, but for the number of images."""
        return self.experiment.recipe.epochs * measure_size(self.experiment.architecture).macs

    @property
    def run(self) -> Run | None:
        """The finished run; None while there is none."""
        folder = self.experiment.folder
        done = (folder / "run.json").is_file() and load_run(folder).status == "done"
        return load_run(folder) if done else None


def plan(arguments: argparse.Namespace) -> list[Planned]:
    """All runs that the command stands for, the longest first."""
    common: dict[str, Any] = {"output_root": "outputs/reference"}
    if arguments.part == "trials":
        common = {"output_root": "outputs/trials"} | TRIAL
    planned = []
    for variant, settings in _settings(arguments.part, arguments.only):
        run = Planned(variant, settings | common)
        if arguments.rehearse:
            fewer = {"holdout": 100} if run.experiment.recipe.holdout else {}
            run = Planned(variant, run.overrides | REHEARSAL | fewer)
        planned.append(run)
    return sorted(planned, key=lambda run: -run.work)


def _settings(part: str, only: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    known = list(TRIALS) if part == "trials" else list(SEEDS[part])
    for variant in only or known:
        if variant not in known:
            raise ConfigError(f"{variant!r}: {part} has {', '.join(known)}")
        if part == "trials":
            grid = TRIALS[variant]
            for values in itertools.product(*grid.values()):
                yield variant, dict(zip(grid, values, strict=True))
        else:
            for seed in range(SEEDS[part][variant]):
                yield variant, {"seed": seed}


# Running -----------------------------------------------------------------------------------------


def carry_out(planned: list[Planned], at_once: int, logs: Path) -> list[str]:
    """Run what is not done yet; the names of those that failed."""
    waiting = [run for run in planned if not run.run]
    print(f"{len(planned) - len(waiting)} of {len(planned)} runs are done; {at_once} at once")
    going: dict[subprocess.Popen, tuple[Planned, Path, float]] = {}
    failed = []
    logs.mkdir(parents=True, exist_ok=True)
    try:
        while waiting or going:
            while waiting and len(going) < at_once:
                run = waiting.pop(0)
                log = logs / f"{run.experiment.folder.parent.name}-{run.experiment.folder.name}.log"
                going[_start(run, log, at_once)] = run, log, time.monotonic()
                print(f"started   {run.name}", flush=True)
            time.sleep(0.2)
            for process in [process for process in going if process.poll() is not None]:
                run, log, began = going.pop(process)
                minutes = (time.monotonic() - began) / 60
                if process.returncode:
                    failed.append(run.name)
                    told = log.read_text(encoding="utf-8").strip().rpartition("\n")[2]
                    print(f"FAILED    {run.name}: {told} (all of it in {log})", flush=True)
                else:
                    accuracy = run.run.metrics["test_accuracy"]
                    print(f"finished  {run.name}: {accuracy:.2%}, {minutes:.1f} min", flush=True)
    finally:
        for process in going:
            process.terminate()
        for process in going:
            process.wait()
    return failed


def _start(run: Planned, log: Path, at_once: int) -> subprocess.Popen:
    settings = json.dumps([run.variant, run.overrides])
    command = [sys.executable, __file__, "one", settings]
    # Each would start a compiler for every core.
    compilers = {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, (os.cpu_count() or 1) // at_once))}
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env=os.environ | compilers,
        )


# Keeping -----------------------------------------------------------------------------------------


def keep_weights(run: Run, wanted: bool) -> None:
    """Weights in half precision, vectors and statistics in full; or none. `run.json` follows."""
    path = run.path / "model.safetensors"
    if not path.is_file():
        return
    if not wanted:
        path.unlink()  # its SHA-256 stays in `run.json`
        return
    weights = safetensors.torch.load(path.read_bytes())
    halved = {name: w.half() if w.dim() > 1 else w for name, w in weights.items()}
    if all(torch.equal(halved[name], weight) for name, weight in weights.items()):
        return
    content = safetensors.torch.save(halved)
    if len(content) > MOST_BYTES:
        print(f"{run.path}: {len(content) / 2**20:.1f} MiB of weights are not kept")
        path.unlink()
        return
    files.write_bytes(path, content)
    runs.write_record(run.path, run.record | {"artifacts": runs.artifact_checksums(run.path)})


def evaluated_again(run: Run) -> float | None:
    """The test accuracy of the kept weights, by this machine's CPU in float32."""
    if not (run.path / "model.safetensors").is_file():
        return None
    dataset = load_dataset(run.record["dataset"], run.experiment.execution.data_root)
    mean, std = normalization(run.experiment.recipe, dataset)
    again = evaluate(run.model(), *dataset.test, mean=mean, std=std, batch_size=250, device="cpu")
    return again.accuracy


def tell(planned: list[Planned]) -> bool:
    """The table of all finished runs; whether every kept network is what its run says."""
    faithful = True
    print(
        f"\n{'':16}{'n':>3}  {'last epoch':>15}  {'best on test':>15}  published  evaluated again"
    )
    for variant in sorted({run.variant for run in planned}):
        done = sorted(
            (run.run for run in planned if run.variant == variant and run.run),
            key=lambda run: run.record["seed"],
        )
        if not done:
            continue
        for number, run in enumerate(done):
            keep_weights(run, wanted=number == 0)
        last = _spread([run.metrics["test_accuracy"] for run in done])
        best = _spread([run.metrics["best_test_accuracy"] for run in done])
        published = done[0].experiment.published_for_dataset.test_accuracy
        told = "–" if published is None else f"{100 * published:.2f}"
        again, recorded = evaluated_again(done[0]), done[0].metrics["selected_test_accuracy"]
        same = "no weights kept"
        if again is not None:
            same = f"{100 * again:.2f}, recorded {100 * recorded:.2f}"
            if abs(again - recorded) > max(0.001, 1.5 / done[0].metrics["test_images"]):
                same += "  DIFFERS by more than 0.1 points and one image"
                faithful = False
        print(f"{variant:16}{len(done):>3}  {last:>15}  {best:>15}  {told:>9}  {same}")
    return faithful


def tell_trials(planned: list[Planned]) -> None:
    """Accuracy on the held-out images after the last epoch, the best first."""
    for variant in sorted({run.variant for run in planned}):
        print(f"\n{variant}: accuracy on held-out images, per cent; one seed each")
        done = [(run, run.run) for run in planned if run.variant == variant and run.run]
        scored = [(found.history["holdout_accuracy"].iloc[-1], run) for run, found in done]
        for accuracy, run in sorted(scored, key=lambda pair: -pair[0]):
            settings = {name: run.overrides[name] for name in TRIALS[variant]}
            print(f"  {100 * accuracy:6.2f}  {_listed(settings)}")


def _spread(shares: list[float]) -> str:
    mean = f"{100 * statistics.mean(shares):.2f}"
    return f"{mean} ± {100 * statistics.stdev(shares):.2f}" if len(shares) > 1 else mean


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=[*SEEDS, "trials", "one"])
    parser.add_argument("only", nargs="*", help="variants; all of the part unless given")
    parser.add_argument("--at-once", type=int, default=4 if torch.cuda.is_available() else 1)
    parser.add_argument("--rehearse", action="store_true", help="on digits, two epochs, elsewhere")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(PROJECT)
    if arguments.part == "one":
        variant, overrides = json.loads(arguments.only[0])
        train(load_experiment(variant, **overrides))
        return 0
    try:
        planned = plan(arguments)
        failed = carry_out(planned, arguments.at_once, PROJECT / "outputs" / "logs")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        return 130
    if arguments.part == "trials":
        tell_trials(planned)
        return bool(failed)
    return bool(failed) | (not tell(planned))


if __name__ == "__main__":
    sys.exit(main())
