"""Find runs: the one rule for which run is meant."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files
from ..config import list_variants
from ..errors import ConfigError, RunError, UserError, closest_match
from ..paths import PROJECT, display_path, output_folder
from .run import Run, load_run

if TYPE_CHECKING:
    from torch import nn


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
            f"{f' on {dataset}' if dataset else ''}"
            f"{closest_match(str(wanted or ''), variants) or ';'} "
            f"There are runs of: {', '.join(variants) or 'no variant'}. Or name a run folder"
        )
    return max(fitting, key=lambda run: run.metrics["test_accuracy"]) if best else fitting[-1]


def _usable(run: Run, output_root: str | Path | None) -> Run:
    """The run, unless it is unfinished or without weights; then `RunError` names the others."""
    finished = run.status == "done"
    if finished and run.has_weights:
        return run
    why = "has no weights" if finished else f"is not finished: its status is {run.status!r}"
    known = ", ".join(display_path(other.path) for other in _usable_runs(output_root)) or "no run"
    raise RunError(f"{display_path(run.path)} {why}; finished and with weights: {known}")


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


def load_pretrained(variant: str) -> "nn.Module":
    """The kept network of a variant: float32, on the CPU, in evaluation mode.

    Weights stand under `outputs/reference/<variant>/`; of several seeds, the lowest that has any.
    Raises `ConfigError` when the variant is unknown or none are kept.
    """
    kept = [run for run in reference_runs() if run.has_weights]
    for run in kept:
        if run.record["variant"] == variant:
            return run.model()
    known = list_variants()
    told = (
        "has no kept weights" if variant in known else f"is unknown{closest_match(variant, known)}"
    )
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


NUMBERS = ("test_accuracy", "test_images", "ece", "train_seconds")


def find_runs(root: Path) -> list[Run]:
    """Every run folder at any depth under `root`, by path; of copies of one run, one.

    Copies have the same experiment, start and history; the one with a report is preferred.
    """
    found: dict[str, Run] = {}
    for path in sorted(root.rglob("run.json"), key=lambda path: (not _has_report(path), path)):
        run = Run(path.parent)
        found.setdefault(_identity(run), run)
    return sorted(found.values(), key=lambda run: run.path)


def _has_report(path: Path) -> bool:
    return (path.parent / "report.html").is_file()


def _identity(run: Run) -> str:
    """What copies of a run have in common; the path itself where the record cannot be read."""
    try:
        record = run.record
        history = record["artifacts"].get("history.csv")  # other files may have been trimmed
        return json.dumps([record["experiment"], record["started"], history])
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return str(run.path)


def split_unreadable(
    runs: list[Run], *, metrics_only: bool = False
) -> tuple[list[Run], dict[Path, str]]:
    """The runs that can be read, and for each other folder what is wrong with it.

    With `metrics_only` no other file than run.json and metrics.json is read.
    """
    readable, damaged = [], {}
    for run in runs:
        try:
            _check_metrics(run)
            if not metrics_only:
                _check_results(run)
            readable.append(run)
        except KeyError as error:
            damaged[run.path] = f"one of its files lacks {error}"
        except (UserError, OSError, ValueError, TypeError, AttributeError) as error:
            # Without the way to the folder, which is nobody's business where the page is shared.
            told = str(error).replace(f"{run.path}{os.sep}", "")
            damaged[run.path] = " ".join(told.split())
    return readable, damaged


def _check_metrics(run: Run) -> None:
    """Read the record and the metrics of a run, so that what is missing is found here."""
    machine_of(run)
    if run.status == "done":
        _check_file(run, "metrics.json")
        if not all(math.isfinite(run.metrics[name]) for name in NUMBERS):
            raise RunError("metrics.json holds a number that is not finite")


def _check_results(run: Run) -> None:
    """Read the experiment and the history of a run."""
    if run.status == "done":
        _check_file(run, "experiment.yaml")
        _check_file(run, "history.csv")
        _ = run.history[["epoch", "test_accuracy"]]
    _ = run.experiment


def _check_file(run: Run, name: str) -> None:
    path = run.path / name
    if not path.is_file():
        raise RunError(f"{name} is missing")
    if files.sha256(path) != run.record["artifacts"][name]:
        raise RunError(f"{name} is damaged: it is not what run.json recorded")


def machine_of(run: Run) -> str:
    return f"{run.machine}, torch {run.record['fingerprint']['torch']}"
