"""Train the recorded runs under `outputs/reference/`, watch them, and keep their results.

    python benchmarks/reproduce.py published              # every published variant, with its seeds
    python benchmarks/reproduce.py published lite champion
    python benchmarks/reproduce.py trials improved_adam   # what its source leaves open
    python benchmarks/reproduce.py status                 # epochs done and estimated time left
    python benchmarks/reproduce.py keep                   # trim finished runs, evaluate weights
    python benchmarks/reproduce.py published --rehearse   # on digits, a few epochs, elsewhere

Stop it at any time: the same command resumes, and finished runs are not repeated. Each run is a
process of its own (`resnetlib run`) at the lowest priority. On a CPU one run trains on each core,
with one thread. Trials are judged on 5,000 held-out training images.

`keep` leaves of every finished run its record, metrics, history, tables and predictions. The
lowest seed of each experiment also keeps notebook and figures, the lowest one that has weights its
weights, in half precision if they are large. They are evaluated again on the CPU. `run.json` lists
files that are not kept, with their SHA-256, under `not_kept`.
"""

import argparse
import itertools
import os
import shutil
import signal
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from resnetlib import files, list_variants, load_experiment, load_run, runs
from resnetlib.errors import ConfigError, UserError, closest_match
from resnetlib.paths import PROJECT
from resnetlib.progress import duration
from resnetlib.reports.leaderboard import format_accuracy
from resnetlib.runs.run import WEIGHTS, Run
from resnetlib.runs.upkeep import seconds_left
from resnetlib.sweep import LocalPool, Needs, Task, carry_out, exit_code, visible_gpus

# Which runs start first: complete and short recipes. Others follow, the shortest first.
ORDER = ("adamw", "improved_adam", "improved_sgd", "wide66", "dropout", "se", "resnet18")
# Variants with more than one seed. All first seeds are trained before any second one.
SEEDS = {"lite": 5, "improved_sgd": 3, "improved_adam": 3, "champion": 3, "se": 2}
# Settings to choose from, every combination, where a source leaves them open.
TRIALS: dict[str, dict[str, list[Any]]] = {
    "improved_adam": {"lr": [3e-4, 1e-3, 3e-3], "weight_decay": [0.0, 1e-4]},
    "wide66": {"lr": [3e-4, 1e-3, 3e-3], "weight_decay": [0.0, 1e-4]},
    "champion": {"epochs": [60], "stochastic_depth": [0.0, 0.05, 0.1], "lr": [0.1, 0.2]},
}
TRIAL = {"holdout": 5000, "seed": 100, "output_root": "outputs/trials"}
REHEARSAL = {"dataset": "digits", "output_root": "outputs/rehearsal"}
NICENESS = 19  # of training processes: the lowest priority
GPU_SHARE = 0.25  # of each run, where there are GPUs
EXACT_WEIGHTS_BYTES = 2**20  # larger weights are kept in half precision
MAX_WEIGHTS_BYTES = 10 * 2**20  # in half precision; larger weights are not kept


def published_variants() -> list[str]:
    """The variants whose files have a published test accuracy or parameter count."""
    published = {variant: load_experiment(variant).published for variant in list_variants()}
    return [
        variant
        for variant, known in published.items()
        if known.test_accuracy is not None or known.parameters is not None
    ]


def plan(part: str, only: Sequence[str] = (), *, rehearse: bool = False) -> list[Task]:
    """All runs of `published` or `trials`, in the order in which they start."""
    planned = []
    for variant, overrides in _settings(part, only):
        run = Task(variant, overrides)
        if rehearse:
            recipe = run.experiment.recipe
            parts = ("warmup_epochs", "hold_epochs")  # epochs of the schedule before its decay
            fewer = {"epochs": 2 + sum(getattr(recipe.schedule, part, 0) for part in parts)}
            fewer |= {"holdout": 100} if recipe.holdout else {}
            fewer |= {"milestones": [1]} if hasattr(recipe.schedule, "milestones") else {}
            run = Task(variant, overrides | REHEARSAL | fewer)
        planned.append(run)
    return sorted(planned, key=_start_order)


def _settings(part: str, only: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    known = list(TRIALS) if part == "trials" else list_variants()
    for variant in only:
        if variant not in known:
            what = "trials for" if part == "trials" else "variant"
            hint = closest_match(variant, known) or ";"
            raise ConfigError(f"no {what} {variant!r}{hint} known: {', '.join(known)}")
    if part == "trials":
        for variant in only or known:
            grid = TRIALS[variant]
            for values in itertools.product(*grid.values()):
                yield variant, dict(zip(grid, values, strict=True)) | TRIAL
    else:
        for variant in only or published_variants():
            for seed in range(SEEDS.get(variant, 1)):
                yield variant, {"seed": seed, "output_root": "outputs/reference"}


def _start_order(run: Task) -> tuple[int, int, int]:
    """By seed, then by `ORDER`, then by multiply-accumulates of a whole training."""
    if run.variant in ORDER:
        return run.experiment.seed, ORDER.index(run.variant), 0
    return run.experiment.seed, len(ORDER), run.work


# Status ------------------------------------------------------------------------------------------


def status_table(planned: Iterable[Task]) -> str:
    """One row per run: status, epochs done, last test accuracy in per cent, time left.

    The time left assumes that an epoch takes the mean time of the last five.
    """
    lines = [f"{'run':44} {'status':12} {'epoch':>9} {'test':>6}  time left"]
    for run in planned:
        epochs = run.experiment.recipe.epochs
        history = run.history()
        status = load_run(run.folder).status if run.has_begun else "waiting"
        accuracy = 100 * float(history[-1]["test_accuracy"]) if history else None
        left = "–"
        if history and status != "done":
            left = duration(seconds_left([float(row["seconds"]) for row in history], epochs))
        lines.append(
            f"{run.name:44} {status:12} {f'{len(history)}/{epochs}':>9} "
            f"{format_accuracy(accuracy):>6}  {left}"
        )
    return "\n".join(lines)


# Keeping -----------------------------------------------------------------------------------------


def keep(finished: Iterable[Run]) -> list[list[Run]]:
    """Trim these runs and return them, the seeds of each experiment together."""
    groups: dict[str, list[Run]] = {}
    for run in sorted(finished, key=lambda run: run.record["seed"]):
        groups.setdefault(run.experiment.digest_without_seed, []).append(run)
    for group in groups.values():
        with_weights = [run for run in group if run.has_weights]
        for run in with_weights[:1]:
            _halve_weights(run)
        for run in with_weights[1:]:
            (run.path / WEIGHTS).unlink()
        for run in group[1:]:
            shutil.rmtree(run.path / "figures", ignore_errors=True)
            (run.path / "notebook.ipynb").unlink(missing_ok=True)
        for run in group:
            (run.path / "report.html").unlink(missing_ok=True)  # `resnetlib report` writes it
            _list_kept_files(run)
    return [[load_run(run.path) for run in group] for group in groups.values()]


def _halve_weights(run: Run) -> None:
    """Convert large weights to half precision, vectors and statistics apart, or remove them."""
    import safetensors.torch
    import torch

    path = run.path / WEIGHTS
    if path.stat().st_size <= EXACT_WEIGHTS_BYTES:
        return
    weights = safetensors.torch.load(path.read_bytes())
    halved = {name: w.half() if w.dim() > 1 else w for name, w in weights.items()}
    if all(torch.equal(halved[name], weight) for name, weight in weights.items()):
        return
    content = safetensors.torch.save(halved)
    if len(content) > MAX_WEIGHTS_BYTES:
        print(f"{run.path}: {len(content) / 2**20:.1f} MiB of weights are not kept")
        path.unlink()
        return
    checksums = run.record["artifacts"] | {WEIGHTS: files.sha256_of(content)}
    # The record first: should this be cut short, the exact weights are there to be halved again.
    runs.write_record(run.path, run.record | {"artifacts": checksums})
    files.write_bytes(path, content)


def _list_kept_files(run: Run) -> None:
    """Move the checksums of files that no longer exist from `artifacts` to `not_kept`."""
    record = load_run(run.path).record
    missing = {
        name: checksum
        for name, checksum in record["artifacts"].items()
        if not (run.path / name).is_file()
    }
    if missing:
        kept = {name: c for name, c in record["artifacts"].items() if name not in missing}
        not_kept = record.get("not_kept", {}) | missing
        runs.write_record(run.path, record | {"artifacts": kept, "not_kept": not_kept})


def evaluate_again(run: Run) -> float | None:
    """The test accuracy of the kept weights, on this machine's CPU in float32."""
    from resnetlib import evaluate, load_dataset
    from resnetlib.data import normalization

    if not run.has_weights:
        return None
    dataset = load_dataset(run.record["dataset"], run.experiment.execution.data_root)
    mean, std = normalization(run.experiment.recipe, dataset)
    again = evaluate(run.model(), *dataset.test, mean=mean, std=std, batch_size=250, device="cpu")
    return again.accuracy


def print_results(finished: Sequence[Run]) -> bool:
    """Trim the runs and print their table; return whether all kept weights are as recorded.

    The weights must give the recorded accuracy within 0.1 points and one image.
    """
    heads = f"{'n':>3}  {'last epoch':>15}  {'best on test':>15}  published  evaluated again"
    print(f"\n{'':16}{heads}")
    all_equal = True
    for group in keep(finished):
        first = next((run for run in group if run.has_weights), group[0])
        last, best = (
            _mean_and_spread([run.metrics[name] for run in group])
            for name in ("test_accuracy", "best_test_accuracy")
        )
        published = first.experiment.published_for_dataset.test_accuracy
        published = format_accuracy(None if published is None else 100 * published)
        again, recorded = evaluate_again(first), first.metrics["selected_test_accuracy"]
        outcome = "no weights kept"
        if again is not None:
            outcome = f"{100 * again:.2f}, recorded {100 * recorded:.2f}"
            if abs(again - recorded) > max(0.001, 1.5 / first.metrics["test_images"]):
                outcome += "  DIFFERS by more than 0.1 points and one image"
                all_equal = False
        name = first.record["variant"]
        print(f"{name:16}{len(group):>3}  {last:>15}  {best:>15}  {published:>9}  {outcome}")
    return all_equal


def print_trials(planned: Iterable[Task]) -> None:
    """Accuracy on the held-out images after the last epoch, the best first."""
    planned = list(planned)
    for variant in sorted({run.variant for run in planned}):
        print(f"\n{variant}: accuracy on held-out images, per cent; one seed each")
        done = [(run, run.run) for run in planned if run.variant == variant and run.run]
        scored = [(found.history["holdout_accuracy"].iloc[-1], run) for run, found in done]
        for accuracy, run in sorted(scored, key=lambda pair: -pair[0]):
            settings = [f"{name} {run.overrides[name]}" for name in TRIALS[variant]]
            print(f"  {100 * accuracy:6.2f}  {', '.join(settings)}")


def _mean_and_spread(accuracies: Sequence[float]) -> str:
    spread = 100 * statistics.stdev(accuracies) if len(accuracies) > 1 else None
    return format_accuracy(100 * statistics.fmean(accuracies), spread)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=["published", "trials", "status", "keep"])
    parser.add_argument("only", nargs="*", help="variants; all of the part by default")
    parser.add_argument("--at-once", type=int, help="runs at a time; one per core, 4 per GPU")
    parser.add_argument("--threads", type=int, help="of each run; 1, on a GPU torch's own number")
    parser.add_argument("--rehearse", action="store_true", help="on digits, a few epochs")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.chdir(PROJECT)
    try:
        return _carry_out(arguments)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    except KeyboardInterrupt:
        print("stopped; the same command resumes")
        return 130


def _carry_out(arguments: argparse.Namespace) -> int:
    part, only, rehearse = arguments.part, arguments.only, arguments.rehearse
    if part == "status":
        trials = plan("trials", rehearse=rehearse)
        started = [run for run in trials if run.variant in (only or TRIALS) and run.folder.is_dir()]
        print(status_table([*plan("published", only, rehearse=rehearse), *started]))
        return 0
    if part == "keep":
        if rehearse:
            raise ConfigError("keep trims the recorded runs; it has no rehearsal")
        finished = runs.reference_runs()
        chosen = [run for run in finished if not only or run.record["variant"] in only]
        return int(not print_results(chosen))
    planned = plan(part, only, rehearse=rehearse)
    gpus = GPU_SHARE if visible_gpus() else 0.0
    threads = arguments.threads or (None if gpus else 1)
    pool = LocalPool(Needs(threads, gpus), arguments.at_once, NICENESS)
    failed = exit_code(carry_out(planned, pool).values())
    if part == "trials":
        print_trials(planned)
        return failed
    all_equal = print_results([run.run for run in planned if run.run])
    return int(failed or not all_equal)


if __name__ == "__main__":
    sys.exit(main())
