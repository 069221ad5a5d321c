"""Find runs: the one rule for which run is meant, and which run folders can be read."""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..config import known_variants, validate
from ..errors import ConfigError, RunError, UserError, closest_match, shorten, shorten_line
from ..paths import PROJECT, display_path, expand_home, output_folder, real_path
from ..schema import UnitInterval
from .run import FINISHED, SELECTED, WEIGHTS, Run, folders_with, load_run

if TYPE_CHECKING:
    from torch import nn

NEEDS = {"weights": WEIGHTS, "predictions": "predictions.npz"}  # what may be needed: its file
MOST = 10**15  # of anything that is counted
Amount = Annotated[float, Field(ge=0, le=MOST)]


class Content(BaseModel):
    """What is read of a file that a stranger may have written; other keys are left alone."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Git(Content):
    commit: str
    modified: bool


class Resume(Content):
    after: str
    differences: list[str]


class Record(Content):
    """`run.json`."""

    variant: str
    dataset: str
    seed: int
    experiment: str
    overrides: dict[str, Any]
    dataset_checksums: dict[str, Any]
    started: str = ""
    finished: str = ""
    versions: dict[str, Any] = {}
    git: Git | None = None
    inexact_resumes: list[Resume] = []


class Trial(Content):
    normalize: str | dict[str, Any]
    accuracy: UnitInterval
    loss: Amount


class Source(Content):
    """Where imported weights are from."""

    file: str
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    matched: str
    normalize_given: bool
    training_images: int
    trials: Annotated[list[Trial], Field(min_length=1)]


class ImportedRecord(Record):
    source: Source


class Metrics(Content):
    """`metrics.json`, also of imported weights."""

    test_accuracy: UnitInterval
    test_accuracy_interval_95: Annotated[list[UnitInterval], Field(min_length=2, max_length=2)]
    test_images: Annotated[int, Field(ge=1, le=MOST)]
    test_loss: Amount
    selected_test_accuracy: UnitInterval
    ece: UnitInterval
    parameters: Amount
    macs: Amount
    selected_on_test: list[Any] = []


class TrainedMetrics(Metrics):
    """`metrics.json` of a training."""

    train_seconds: Amount
    images_per_second: Amount
    epochs: Amount
    select: Literal[tuple(SELECTED)]
    selected_epoch: Amount


LISTED_RUNS = 5  # in an error message


def find_run(
    wanted: str | Path | None = None,
    output_root: str | Path | None = None,
    *,
    dataset: str | None = None,
    needs: str = "weights",
    exclude: Sequence[Run] = (),
) -> Run:
    """The finished run that a folder, `variant/folder-name` or a variant means.

    Among the runs of a variant those of its file as it is today come first, then the user's runs
    before recorded ones, then the newest (of recorded ones the lowest seed). If nothing is wanted,
    it is the user's newest run, else the recorded `lite`. Damaged runs are passed over. Imported
    weights are meant by their folder only.

    Args:
        wanted: a run folder, from the working directory or the project; or `variant/folder-name`
            under the output root or among the recorded runs; or a variant.
        output_root: folder of the user's runs, at any depth; `outputs/` by default.
        dataset: choose only among runs on this data set. A folder on another one is refused.
        needs: "weights" or "predictions", which the run must have kept.
        exclude: runs not to choose. A folder is used as given.

    Raises `RunError` for a folder that cannot be used and `ConfigError` when no run fits.
    """
    if wanted is not None:
        folder = run_folder(wanted, output_root)
        if folder is not None:
            run = _require_usable(load_run(folder), output_root, needs)
            if dataset not in (None, run.record["dataset"]):
                place, other = display_path(run.path), run.record["dataset"]
                raise ConfigError(f"{place} was trained on {other}, not on {dataset}")
            return run
    excluded = {real_path(run.path) for run in exclude}
    runs = finished_runs(output_root, dataset=dataset, needs=needs)
    found = runs = [run for run in runs if real_path(run.path) not in excluded]
    if wanted is not None:
        found = [run for run in runs if run.record["variant"] == str(wanted)]
        found.sort(key=lambda run: not run.has_own_recipe)
    if found:
        return found[0]
    raise _nothing_found(wanted, output_root, runs, _conditions(dataset, needs, exclude))


def run_folder(wanted: str | Path, output_root: str | Path | None = None) -> Path | None:
    """The folder of the run, finished or not, that a folder or `variant/folder-name` means."""
    relative = expand_home(wanted)
    places = [Path(), PROJECT]
    if len(relative.parts) == 2 + (relative.parts[:1] == ("class",)):  # variant/folder-name
        places += [output_folder(output_root), _reference()]
    return next((p / relative for p in places if (p / relative / "run.json").is_file()), None)


def _require_usable(run: Run, output_root: str | Path | None, needs: str) -> Run:
    fault = _fault(run)
    if fault:
        reason = f"cannot be read: {fault}"
    elif run.status not in FINISHED:
        reason = f"is not finished: its status is {run.status!r}"
    elif not (run.path / NEEDS[needs]).is_file():
        reason = f"has no {needs}"
    elif not run.keeps(NEEDS[needs]):
        reason = f"cannot be used: {NEEDS[needs]} is damaged"
    else:
        return run
    others = finished_runs(output_root, needs=needs)
    others.sort(key=lambda other: other.path.parent.name != run.path.parent.name)
    listed = ", ".join(display_path(other.path) for other in others[:LISTED_RUNS]) or "none"
    raise RunError(
        f"{display_path(run.path)} {reason}. Finished runs{_conditions(None, needs)}: {listed}"
    )


def _nothing_found(
    wanted: str | Path | None, output_root: str | Path | None, runs: list[Run], conditions: str
) -> UserError:
    """The error that says what was looked for, the nearest match and what exists."""
    name = "" if wanted is None else str(wanted)
    variants = sorted({run.record["variant"] for run in runs})
    existing = f"Variants with one: {', '.join(variants) or 'none'}"
    if len(Path(name).parts) > 1 + name.startswith("class/"):
        known = [f"{run.record['variant']}/{run.path.name}" for run in runs]
        known += [display_path(run.path) for run in runs]
        nearest = closest_match(name, known) or "."
        return ConfigError(f"{name} is not a run folder: it has no run.json{nearest} {existing}")
    _, damaged = split_unreadable(_known_runs(output_root))
    faults = [
        f"{display_path(path)} ({why})"
        for path, why in damaged.items()
        if f"/{path.parent.as_posix()}".endswith(f"/{name}")
    ]
    return ConfigError(
        f"no finished run{f' of {name!r}' if name else ''}{conditions}"
        f"{(name not in known_variants() and closest_match(name, variants)) or '.'} {existing}"
        + (f". Damaged: {', '.join(faults)}" if faults else "")
    )


def _conditions(dataset: str | None, needs: str | None, exclude: Sequence[Run] = ()) -> str:
    """Such as ` with weights on cifar10`."""
    others = ", ".join(display_path(run.path) for run in exclude)
    return (
        (f" with {needs}" if needs else "")
        + (f" on {dataset}" if dataset else "")
        + (f" other than {others}" if others else "")
    )


def finished_runs(
    output_root: str | Path | None = None,
    *,
    dataset: str | None = None,
    needs: str | None = None,
    imported: bool = False,
) -> list[Run]:
    """All finished, undamaged runs: the user's, newest first, then the recorded ones.

    Of recorded runs those of `lite` come first, then own recipes before others, then low seeds.

    Args:
        output_root: as for `find_run`.
        dataset: as for `find_run`.
        needs: as for `find_run`.
        imported: whether imported weights are among them.
    """
    readable, _ = split_unreadable(_known_runs(output_root))
    statuses = FINISHED if imported else ("done",)
    runs = [
        run
        for run in readable
        if run.status in statuses
        and dataset in (None, run.record["dataset"])
        and (needs is None or run.keeps(NEEDS[needs]))
    ]
    own = [run for run in runs if not is_recorded(run)]
    recorded = [run for run in runs if is_recorded(run)]
    own.sort(key=lambda run: run.record.get("finished") or "", reverse=True)
    recorded.sort(key=lambda run: (run.record["variant"] != "lite", *_recorded_order(run)))
    return [*own, *recorded]


def _known_runs(output_root: str | Path | None) -> list[Run]:
    """The user's runs and the recorded ones; of copies the user's."""
    own = [run for run in find_runs(output_folder(output_root)) if not is_recorded(run)]
    return _without_copies([*own, *find_runs(_reference())])


def load_pretrained(variant: str) -> "nn.Module":
    """The recorded network of a variant: float32, on the CPU, in evaluation mode.

    Its weights are under `outputs/reference/<variant>/`; of several seeds the lowest is used.
    Raises `ConfigError` when the variant is unknown or has no recorded weights.
    """
    recorded = [run for run in reference_runs() if run.has_weights]
    for run in recorded:
        if run.record["variant"] == variant:
            return run.model()
    known = known_variants()
    reason = (
        "has no recorded weights"
        if variant in known
        else f"is unknown{closest_match(str(variant), known)}"
    )
    names = sorted({run.record["variant"] for run in recorded})
    raise ConfigError(
        f"variant {variant!r} {reason}; with recorded weights: {', '.join(names) or 'none'}"
    )


def reference_runs() -> list[Run]:
    """The finished, undamaged recorded runs under `outputs/reference/`.

    They are ordered by variant, its own recipe before others, data set and seed.
    """
    readable, _ = split_unreadable(find_runs(_reference()))
    trained = [run for run in readable if run.status == "done"]
    return sorted(trained, key=lambda run: (run.record["variant"], *_recorded_order(run)))


def _recorded_order(run: Run) -> tuple[bool, str, int]:
    return not run.has_own_recipe, run.record["dataset"], run.record["seed"]


def _reference() -> Path:
    return PROJECT / "outputs" / "reference"


def is_recorded(run: Run) -> bool:
    """Whether the run is under `outputs/reference/`, and so under version control."""
    return real_path(run.path).is_relative_to(real_path(_reference()))


def find_runs(root: Path) -> list[Run]:
    """Every run folder at any depth under `root`, by path; of copies of one run only one.

    Copies have the same experiment, start and history; one that can be read is preferred, then
    one that is not recorded, then one with a report.
    """
    runs = list(map(Run, folders_with("run.json", root)))
    runs.sort(key=lambda run: (is_recorded(run), not (run.path / "report.html").is_file()))
    return sorted(_without_copies(runs), key=lambda run: run.path)


def _without_copies(runs: Iterable[Run]) -> list[Run]:
    """The first of the copies of each run that can be read; where none can, the first."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(_identity(run), []).append(run)
    return [
        next((run for run in copies if len(copies) > 1 and _fault(run) is None), copies[0])
        for copies in found.values()
    ]


def _identity(run: Run) -> str:
    """What copies of a run have in common; the path itself where the record cannot be read."""
    try:
        record = run.record
        history = record["artifacts"].get("history.csv")  # other files may have been trimmed
        source = record.get("source")  # of imported weights
        return json.dumps([record["experiment"], record["started"], history, source])
    except (UserError, OSError, KeyError, TypeError, AttributeError):
        return str(run.path)


def split_unreadable(
    runs: Iterable[Run], *, metrics_only: bool = False
) -> tuple[list[Run], dict[Path, str]]:
    """The runs that can be read, and for each other folder what is wrong with it.

    With `metrics_only` no other file than run.json and metrics.json is read.
    """
    faults = [(run, _fault(run, metrics_only=metrics_only)) for run in runs]
    readable = [run for run, fault in faults if fault is None]
    return readable, {run.path: fault for run, fault in faults if fault is not None}


def _fault(run: Run, *, metrics_only: bool = False) -> str | None:
    """What is wrong with a run folder, in one line; None where it can be read."""
    try:
        _check_metrics(run)
        if not metrics_only:
            _check_results(run)
    except KeyError as error:
        return shorten_line(f"one of its files lacks {error}")
    except Exception as error:  # a stranger may have written any of the files
        # Without the absolute path of the folder: the leaderboard page may be shared.
        message = str(error).replace(f"{display_path(run.path)}/", "")
        return shorten_line(message.replace(f"{run.path}{os.sep}", ""), 300)
    return None


def _check_metrics(run: Run) -> None:
    """Read the record and the metrics of a run, so that what is missing is found here."""
    machine_of(run)
    kind = ImportedRecord if run.is_imported else Record
    validate(run.record, "run.json is damaged", kind)
    if run.status in FINISHED:
        kind = Metrics if run.is_imported else TrainedMetrics
        validate(run.metrics, "metrics.json is damaged", kind)


def _check_number(key: str, value: float, largest: int) -> None:
    if not 0 <= value <= largest:
        raise RunError(f"history.csv is damaged: its {key!r} is not a number from 0 to {largest}")


def _check_results(run: Run) -> None:
    """Read the experiment, the history and the predictions, and compare them with the metrics."""
    experiment, record = run.experiment, run.record
    if experiment.digest != record["experiment"]:
        raise RunError("experiment.yaml is not the experiment that run.json names")
    for key in ("variant", "dataset", "seed"):
        if getattr(experiment, key) != record[key]:
            raise RunError(f"run.json and experiment.yaml differ in the {key}")
    if run.status == "done":
        accuracy = math.nan
        for row in run.history_rows():
            epoch, accuracy = float(row["epoch"]), float(row["test_accuracy"])
            _check_number("epoch", epoch, MOST)
            _check_number("test_accuracy", accuracy, 1)
        _compare(run, "test_accuracy", accuracy, "history.csv")
        if (run.path / "predictions.npz").is_file():
            _compare(run, "selected_test_accuracy", run.evaluation.accuracy, "predictions.npz")


def _compare(run: Run, metric: str, value: float, name: str) -> None:
    if not math.isclose(run.metrics[metric], value, rel_tol=1e-6):
        raise RunError(
            f"metrics.json has a {metric} of {shorten(run.metrics[metric])}, "
            f"which is not that of {name}, {value:.6g}"
        )


def machine_of(run: Run) -> str:
    """Cores, processor, precision and torch version of a run."""
    return f"{run.machine}, torch {run.record['fingerprint']['torch']}"
