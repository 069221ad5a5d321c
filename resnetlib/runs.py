"""The run folder: status, artifacts, checkpoints, and reading a finished run back."""

import io
import platform
import shutil
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors.torch
import torch
from torch import nn

from . import files
from .compute import Compute, choose_compute
from .config import (
    PROJECT,
    ConfigError,
    Experiment,
    Told,
    list_variants,
    load_experiment,
    nearest,
    output_folder,
    shown,
)
from .data import Dataset
from .evaluate import Evaluation
from .resnet import build_model

if TYPE_CHECKING:  # a start takes 0.2 s less without it
    import pandas as pd

CHECKPOINTS_KEPT = 2
DRAWING = ("numpy", "scipy", "scikit-learn")  # splits and shares are drawn with their help
WEIGHTS = "model.safetensors"
VERSIONS_OF = ("resnetlib", "torch", "torchvision", "numpy", "scikit-learn")

ARTIFACTS = (
    "experiment.yaml",
    "summary.txt",
    "history.csv",
    "metrics.json",
    "confusion_matrix.csv",
    "per_class.csv",
    "predictions.npz",
    WEIGHTS,
)
COMPARED = (  # label, name in `published` and in metrics.json, scale
    ("parameters", "parameters", 1),
    ("train accuracy, last epoch", "train_accuracy", 100),
    ("test accuracy, last epoch", "test_accuracy", 100),
    ("test accuracy, best test epoch", "best_test_accuracy", 100),
)


class RunError(Told, RuntimeError):
    """A run that cannot go on, for a reason that a person can mend; the message names it."""


@dataclass(frozen=True)
class Run:
    """One experiment carried out with one seed, as its folder tells it."""

    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`: status, fingerprint, versions, checksums."""
        try:
            return files.read_json(self.path / "run.json")
        except ValueError:
            raise RunError(f"{self.path / 'run.json'} is damaged: it is not JSON") from None

    @property
    def status(self) -> str:
        """`running`, `done`, `failed`, `interrupted` or `diverged`."""
        return self.record["status"]

    @property
    def machine(self) -> str:
        """What the run was computed on and how finely."""
        mark = self.record["fingerprint"]
        plural = "s" if mark["threads"] > 1 else ""
        cores = f"{mark['threads']} core{plural} of " if mark["device"] == "cpu" else ""
        return f"{cores}{mark['processor']}, {mark['precision']}"

    @cached_property
    def experiment(self) -> Experiment:
        return load_experiment(str(self.path / "experiment.yaml"))

    @cached_property
    def history(self) -> "pd.DataFrame":
        """One row an epoch; losses in nats, lr as used.

        Epoch 0 is the network before training, on the first 2,000 images of each split (in older
        runs on all held-back images).
        """
        import pandas as pd

        return pd.read_csv(self.path / "history.csv")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`; accuracies are fractions of 1."""
        return files.read_json(self.path / "metrics.json")

    @cached_property
    def evaluation(self) -> Evaluation:
        """The selected weights on the test set, from the kept logits."""
        with np.load(self.path / "predictions.npz") as kept:
            return Evaluation(
                torch.from_numpy(kept["logits"]),
                torch.from_numpy(kept["labels"]),
                tuple(kept["classes"].tolist()),
            )

    @property
    def summary(self) -> str:
        return (self.path / "summary.txt").read_text(encoding="utf-8")

    @property
    def headline(self) -> str:
        """The test accuracy with its 95 % interval, in a sentence."""
        metrics = self.metrics
        low, high = metrics["test_accuracy_interval_95"]
        return (
            f"Test accuracy {metrics['test_accuracy']:.2%} after epoch {metrics['epochs']} "
            f"(95 % interval {low:.2%} to {high:.2%} over {metrics['test_images']:,} images; "
            f"seed {self.record['seed']}), cross-entropy {metrics['test_loss']:.4f}."
            f"\n{self._selection}, calibration error {metrics['ece']:.2%}."
        )

    @property
    def _selection(self) -> str:
        """Which weights were kept, and so which the figures are of."""
        metrics = self.metrics
        how = {
            "last": "the last",
            "best_holdout": "the best on the held-out images",
            "best_test": "the best on the test set, and so selected on it",
        }[metrics["select"]]
        return (
            f"Kept weights and figures: epoch {metrics['selected_epoch']} ({how}), "
            f"test accuracy {metrics['selected_test_accuracy']:.2%}"
        )

    @property
    def comparison(self) -> "pd.DataFrame":
        """What was published beside what this run measured; accuracies in per cent.

        The published figures hold for the variant's own recipe on CIFAR-10; for another data
        set that column is empty.
        """
        import pandas as pd

        metrics, published = self.metrics, self.experiment.published_here
        rows = {}
        for label, name, scale in COMPARED:
            before, measured = getattr(published, name), scale * metrics[name]
            before = None if before is None else scale * before
            rows[label] = [before, measured, None if before is None else measured - before]
        columns = ["published", "reproduced", "difference"]
        # object: whole numbers beside fractions
        return pd.DataFrame(rows, index=columns, dtype=object).T

    @property
    def files(self) -> dict[str, str]:
        """Every file of the run folder, with its size; the folder first."""
        listed = {name: self.path / name for name in (*self.record["artifacts"], "run.json")}
        sizes = {
            name: f"{path.stat().st_size / 1024:,.1f} KiB"
            for name, path in listed.items()
            if path.is_file()  # weights are not kept for every recorded run
        }
        return {"run folder": shown(self.path)} | sizes

    def model(self) -> nn.Module:
        """The network with the selected weights: float32, on the CPU, in evaluation mode."""
        if not self.has_weights:
            raise RunError(
                f"{shown(self.path)} has no weights; they are kept for one seed of a variant"
            )
        return _with_weights(self.experiment, self.path / WEIGHTS)

    @property
    def has_weights(self) -> bool:
        return (self.path / WEIGHTS).is_file()


def make_folder(folder: Path) -> None:
    """Raises `RunError` where the folder of a run can be neither found nor made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{shown(Path(error.filename))}: {error.strerror}"
        raise RunError(f"the run folder cannot be made ({reason})") from None


def load_run(path: str | Path) -> Run:
    """Read a run folder. Raises `RunError` when it is none."""
    path = Path(path)
    if not (path / "run.json").is_file():
        raise RunError(f"{path} is no run folder: it has no run.json")
    return Run(path)


def duration(seconds: float) -> str:
    """Such as `8.2 s`, `9 min 14 s`, `3 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def find_run(
    wanted: str | Path | None = None,
    output_root: str | Path | None = None,
    *,
    dataset: str | None = None,
    best: bool = False,
) -> Run:
    """The finished run with weights that a run folder, or the name of a variant, stands for.

    A folder may be said from the working directory or from the project. Of the runs of a variant,
    or of all (None), on `dataset` if it is given: the newest under the output root, else the
    recorded one of the lowest seed, of `lite` where nothing is named; with `best`, of all these
    the one with the highest test accuracy after its last epoch. Raises `RunError` or `ConfigError`
    when there is none.
    """
    if wanted is not None:
        folder = Path(wanted).expanduser()
        folder = folder if folder.exists() else PROJECT / folder  # as `shown` says it
        if len(Path(wanted).parts) > 1 or (folder / "run.json").is_file():
            return _usable(load_run(folder), output_root)
    usable = _usable_runs(output_root, dataset)
    fitting = [run for run in usable if wanted is None or run.record["variant"] == str(wanted)]
    if not fitting:
        variants = sorted({run.record["variant"] for run in usable})
        raise ConfigError(
            f"no finished run {f'of {str(wanted)!r} ' if wanted else ''}with weights"
            f"{f' on {dataset}' if dataset else ''}{nearest(str(wanted or ''), variants) or ';'} "
            f"There are runs of: {', '.join(variants) or 'no variant'}. Or name a run folder"
        )
    return max(fitting, key=lambda run: run.metrics["test_accuracy"]) if best else fitting[-1]


def _usable(run: Run, output_root: str | Path | None) -> Run:
    """The run, unless it is unfinished or without weights; then `RunError` names the others."""
    finished = run.status == "done"
    if finished and run.has_weights:
        return run
    why = "has no weights" if finished else f"is not finished: its status is {run.status!r}"
    known = ", ".join(shown(other.path) for other in _usable_runs(output_root)) or "no run"
    raise RunError(f"{shown(run.path)} {why}; finished and with weights: {known}")


def _usable_runs(output_root: str | Path | None, dataset: str | None = None) -> list[Run]:
    """Finished and with weights: the recorded runs, then those under the output root, by age.

    What cannot be read is passed over: it was not asked for.
    """
    own = [Run(path.parent) for path in output_folder(output_root).glob("*/*/run.json")]
    own = [run for run in own if _is_usable(run)]
    own.sort(key=lambda run: run.record.get("finished") or "")
    recorded = [run for run in reference_runs() if _is_usable(run)]
    recorded.sort(key=lambda run: (run.record["variant"] == "lite", -run.record["seed"]))
    return [run for run in [*recorded, *own] if dataset in (None, run.record["dataset"])]


def _is_usable(run: Run) -> bool:
    """Finished, with weights; not where it cannot be told."""
    try:
        return run.status == "done" and run.has_weights
    except (RunError, KeyError, TypeError):
        return False


def load_pretrained(variant: str) -> nn.Module:
    """The kept network of a variant: float32, on the CPU, in evaluation mode.

    Weights stand under `outputs/reference/<variant>/`; of several seeds, the lowest that has any.
    Raises `ConfigError` when the variant is unknown or none are kept.
    """
    kept = [run for run in reference_runs() if run.has_weights]
    for run in kept:
        if run.record["variant"] == variant:
            return run.model()
    known = list_variants()
    told = "has no kept weights" if variant in known else f"is unknown{nearest(variant, known)}"
    names = sorted({run.record["variant"] for run in kept})
    raise ConfigError(f"variant {variant!r} {told}; kept: {', '.join(names) or 'none'}")


def reference_runs() -> list[Run]:
    """The recorded runs under `outputs/reference/`, by variant, data set and seed."""
    runs = [load_run(path.parent) for path in _reference().glob("*/*/run.json")]
    return sorted(
        runs, key=lambda run: (run.record["variant"], run.record["dataset"], run.record["seed"])
    )


def _reference() -> Path:
    return PROJECT / "outputs" / "reference"


def _with_weights(experiment: Experiment, path: Path) -> nn.Module:
    model = build_model(experiment.architecture)
    weights = safetensors.torch.load(path.read_bytes())
    model.load_state_dict(
        {
            name: tensor.float() if tensor.is_floating_point() else tensor
            for name, tensor in weights.items()
        }
    )
    return model.eval()


# Writing ----------------------------------------------------------------------------------------


def fingerprint(experiment: Experiment, dataset: Dataset, compute: Compute) -> dict[str, Any]:
    """What must be equal for a resumed run to equal the uninterrupted one bit for bit."""
    return {
        "experiment": experiment.digest,
        "data": files.sha256_of(repr(sorted(dataset.checksums.items())).encode()),
        "torch": torch.__version__,
        "libraries": ", ".join(f"{name} {version(name)}" for name in DRAWING),
        **compute.describe(),
    }


def describe_environment(experiment: Experiment) -> dict[str, str]:
    """Device, processor, how they are used, versions and commit, for reading."""
    git = _git_state()
    changed = " with changes" if git and git["modified"] else ""
    used = choose_compute(experiment).describe()
    return {
        **{name.replace("_", " "): _said(value) for name, value in used.items()},
        "operating system": platform.platform(),
        **_versions(),
        "commit": f"{git['commit'][:12]}{changed}" if git else "not in a git checkout",
        "run folder": shown(experiment.folder),
    }


def _said(value: str | int | bool) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}}


def new_record(experiment: Experiment, dataset: Dataset, compute: Compute) -> dict[str, Any]:
    """The content of a `run.json` whose run begins now."""
    return {
        "status": "running",
        "variant": experiment.variant,
        "dataset": experiment.dataset,
        "seed": experiment.seed,
        "experiment": experiment.digest,
        "overrides": experiment.model_dump(mode="json")["overrides"],
        "started": now(),
        "fingerprint": fingerprint(experiment, dataset, compute),
        "versions": _versions(),
        "platform": platform.platform(),
        "git": _git_state(),
        "dataset_checksums": dataset.checksums,
        "inexact_resumes": [],
        "keeps_checkpoints": experiment.execution.keep_checkpoints,
        "artifacts": {},
    }


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """The commit of the checkout and whether anything tracked differs from it; None outside git."""

    def ask(*words: str) -> str:
        command = ["git", "-C", str(PROJECT), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "modified": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    files.write_json(folder / "run.json", record)


def artifacts(folder: Path) -> list[Path]:
    """The files that a run itself leaves, `run.json` apart (a notebook may stand beside them)."""
    found = [folder / name for name in ARTIFACTS]
    return [path for path in found if path.is_file()] + sorted(folder.glob("figures/*.png"))


def artifact_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every artifact, by path relative to the run folder."""
    return {path.relative_to(folder).as_posix(): files.sha256(path) for path in artifacts(folder)}


def write_history(folder: Path, history: "pd.DataFrame") -> None:
    files.write_text(folder / "history.csv", history.to_csv(index=False))


def write_predictions(folder: Path, evaluation: Evaluation) -> None:
    """`predictions.npz`: logits (N, C) float32, labels and predictions (N,) int64, class names."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        logits=evaluation.logits.numpy(),
        labels=evaluation.labels.numpy(),
        predictions=evaluation.predictions.numpy(),
        classes=np.array(evaluation.classes),
    )
    files.write_bytes(folder / "predictions.npz", buffer.getvalue())


def to_bytes(state: Any) -> bytes:
    """What `torch.load(weights_only=True)` reads back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def save_checkpoint(folder: Path, epoch: int, step: int, state: Mapping[str, Any]) -> None:
    """Write the state after `step` steps beyond `epoch` whole epochs behind its checksum.

    Then drop all checkpoints but the last two.
    """
    checkpoints = folder / "checkpoints"
    files.write_sealed(checkpoints / f"epoch-{epoch:05d}-step-{step:06d}.pt", to_bytes(state))
    for old in _checkpoints(folder)[:-CHECKPOINTS_KEPT]:
        old.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((folder / "checkpoints").glob("epoch-*.pt"))


def drop_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest good checkpoint; None where there is none at all.

    A damaged one is passed over with a warning that names it and the one used instead; when all
    are damaged, `RunError`: a run never starts over in silence.
    """
    damaged = []
    for path in reversed(_checkpoints(folder)):
        try:
            content = files.read_sealed(path)
        except files.FileDamaged:
            damaged.append(path.name)
            continue
        if damaged:
            warnings.warn(f"{', '.join(damaged)} damaged; going on from {path.name}", stacklevel=2)
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    if damaged:
        raise RunError(
            f"all checkpoints under {folder} are damaged ({', '.join(damaged)}); "
            "`fresh: true` starts the run over"
        )
    return None


def check_fingerprint(
    experiment: Experiment, before: Mapping[str, Any], current: Mapping[str, Any]
) -> list[str]:
    """The differences between two fingerprints, allowed or else a `RunError` that names them."""
    differences = [
        f"{name} was {before.get(name)!r} and is now {current.get(name)!r}"
        for name in sorted({*before, *current})
        if before.get(name) != current.get(name)
    ]
    if differences and not experiment.execution.allow_inexact_resume:
        raise RunError(
            f"this run cannot be resumed exactly: {'; '.join(differences)}. "
            "`allow_inexact_resume: true` goes on and records it; `fresh: true` starts over"
        )
    return differences


def clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else, so that it can start over.

    The record goes first: without it nothing that is left counts, should this be cut short.
    """
    unfinished = [path for name in ("run.json", *ARTIFACTS) for path in folder.glob(f".{name}.*")]
    for path in [folder / "run.json", *artifacts(folder), *unfinished]:
        path.unlink(missing_ok=True)
    drop_checkpoints(folder)
