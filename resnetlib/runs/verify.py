"""Verify run folders: recompute what each run claims; PASS, FAIL or NOT CHECKED with the reason.

What cannot be found out from a folder, if it was changed together with its checksum: the seed, a
number of the history but for the last test accuracy and loss, what a recipe has besides epochs,
rates, batch size and normalisation, a title, source, time, machine, commit or resume, a figure, and
other sentences of a report than its headline.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from functools import cache
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from re import findall, fullmatch
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from .. import files
from ..config import known_variants, load_experiment
from ..data import Dataset
from ..download import CIFAR10_MD5
from ..errors import counted
from ..experiment import DEFAULT_BUDGET, Experiment, leaves
from ..paths import display_path
from ..resnet import build_model, trained_fixed_weights
from ..schedule import learning_rate
from ..size import measure_size, model_summary
from .artifacts import imported_metrics, run_metrics, timing
from .evidence import (
    PARSERS,
    Damaged,
    Evidence,
    LacksMemory,
    Unavailable,
    clean_line,
    describe_error,
    genuine_data,
    without_folder,
)
from .record import identity
from .run import ARTIFACTS, FINISHED, STATUSES, WEIGHTS

PASS, FAIL, NOT_CHECKED = "PASS", "FAIL", "NOT CHECKED"
# Between processors float32 sums differ in their last bits, and some weights are kept in half
# precision. Recomputed, the recorded runs differ by at most 0.02 points and 0.018 in a logit
# (laptop94, half precision) and 0.00001 (lite, float32).
ACCURACY_TOLERANCE = 0.001
LOGIT_TOLERANCE = 0.05
# Of accuracy, and of loss by its size, between an evaluation in float32 and in lower precision.
PRECISION_TOLERANCE = 0.01
LARGEST_NETWORK = 250_000_000  # parameters; a gigabyte


class Result(NamedTuple):
    """What became of one claim: `PASS`, `FAIL` or `NOT CHECKED`, and why."""

    status: str
    detail: str


def _judge(problems: list[str], passed: str) -> Result:
    return Result(FAIL, "; ".join(problems)) if problems else Result(PASS, passed)


def _differences(expected: Mapping[str, Any], found: Mapping[str, Any], where: str) -> list[str]:
    """A sentence for each value that is missing, or is not the expected one to seven digits."""
    return [
        f"{where}: {name} is {_display(found.get(name))}, expected {_display(value)}"
        for name, value in expected.items()
        if not _equal(value, found.get(name))
    ]


def _display(value: Any) -> str:
    return f"{value:.7g}" if isinstance(value, float) else repr(value)


def _equal(expected: Any, found: Any) -> bool:
    if isinstance(expected, list | tuple):
        same_length = isinstance(found, list | tuple) and len(expected) == len(found)
        return same_length and all(map(_equal, expected, found))
    numbers = all(
        isinstance(value, int | float) and not isinstance(value, bool)
        for value in (expected, found)
    )
    return math.isclose(expected, found, rel_tol=1e-7) if numbers else expected == found


def _check_checksums(run: Evidence) -> Result:
    """Every file that a run leaves is there, can be read, and has the SHA-256 in run.json."""
    artifacts, finished = run.record["artifacts"], run.status in FINISHED
    required = {*ARTIFACTS, *artifacts} if finished else {*artifacts}
    required -= {"history.csv"} if run.status == "imported" else set()
    required -= {WEIGHTS, "notebook.ipynb", "report.html"}  # trimmed from recorded runs
    problems, matching, absent = [], 0, 0
    for name in sorted({*PARSERS, *artifacts} - {"run.json"}):
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            problems.append(f"run.json names a file outside the run folder: {name!r}")
        elif str(path) != name:  # one large file under many names would take hours
            problems.append(f"run.json names a file in an unusual way: {name!r}")
        elif not run.has(name):
            absent += name in artifacts
            if name in required and not name.startswith("figures/"):
                problems.append(f"{name} is missing")
        else:
            problem = _file_problem(run, name, artifacts, finished)
            matching += name in artifacts and not problem
            problems += [problem] if problem else []
    if not finished and not problems:
        return Result(NOT_CHECKED, f"the run is not finished: its status is {run.status!r}")
    not_kept = f"; {absent} not kept" if absent else ""
    return _judge(problems, counted(matching, "file") + not_kept)


def _file_problem(
    run: Evidence, name: str, artifacts: Mapping[str, str], finished: bool
) -> str | None:
    """What is wrong with a file that is there."""
    try:
        if name in PARSERS:
            run.read(name)
        if name in artifacts and files.sha256(run.path(name)) != artifacts[name]:
            return f"{name} does not match its checksum in run.json"
    except LacksMemory:  # the file may be sound
        raise
    except Unavailable as error:
        return str(error)
    if finished and name in ARTIFACTS and name not in artifacts:
        return f"run.json has no checksum of {name}"
    return None


def _check_record(run: Evidence) -> Result:
    """run.json agrees with itself and names the genuine data set."""
    try:
        record = run.record
    except Unavailable as error:
        return Result(FAIL, str(error))
    status, problems = record["status"], []
    if status not in STATUSES:
        problems.append(f"status {status!r} is not one of {', '.join(STATUSES)}")
    elif status not in FINISHED and (record["artifacts"] or "finished" in record):
        problems.append(f"status is {status!r}, but the run has finished")
    if status == "imported":
        if run.has("history.csv"):
            problems.append("status is 'imported', but the run has a history")
        if not fullmatch(r"[0-9a-f]{64}", record["source"]["sha256"]):
            problems.append("run.json: source.sha256 is not a SHA-256")
    fingerprint, checksums = record.get("fingerprint", {}), record.get("dataset_checksums")
    content = repr(sorted(checksums.items())).encode()
    expected = {"experiment": record["experiment"], "data": files.sha256_of(content)}
    problems += _differences(expected, fingerprint, "run.json: fingerprint")
    if not fingerprint["torch"].startswith(record["versions"]["torch"]):
        problems.append("run.json: fingerprint and versions name different versions of torch")
    if status in FINISHED:
        started, finished = (datetime.fromisoformat(record[key]) for key in ("started", "finished"))
        if finished < started:
            problems.append("run.json: finished before it started")
    genuine = run.find_dataset(record["dataset"])
    known = {"cifar10": CIFAR10_MD5}.get(record["dataset"])  # even where it is not at hand
    if isinstance(genuine, Dataset):
        known = genuine.checksums
    if known is not None and checksums != known:
        problems.append(f"run.json: dataset_checksums are not those of {record['dataset']}")
    return _judge(problems, f"status {status!r}")


def _check_experiment(run: Evidence) -> Result:
    """experiment.yaml is what run.json says, and is the variant with the recorded overrides."""
    experiment, record = run.experiment, run.record
    problems = _differences(identity(experiment), record, "run.json")
    if problems:
        return Result(FAIL, "; ".join(problems))
    name = experiment.variant
    if name not in known_variants():
        return Result(PASS, f"as in run.json; there is no variant file {name}.yaml to compare with")
    variant = load_experiment(name)
    on_cifar10 = experiment.model_copy(update={"dataset": "cifar10"})
    is_earlier = on_cifar10.digest_without_seed[:8] in variant.earlier_recipes
    compared = UNTRAINED if is_earlier else UNTRAINED | {"architecture", "recipe"}
    problems = _unrecorded_changes(experiment, variant, compared)
    overrides = ", ".join(experiment.overrides)
    detail = f"an earlier recipe of {name}" if is_earlier else name
    return _judge(problems, f"{detail}{f', overrides: {overrides}' if overrides else ''}")


UNTRAINED = {"budget", "published", "dataset", "seed"}


def _unrecorded_changes(
    experiment: Experiment, variant: Experiment, compared: set[str]
) -> list[str]:
    """What differs from the variant's file and from the overrides that are recorded."""
    content = experiment.model_dump(mode="json")
    overrides, everything = content["overrides"], leaves(content)
    problems = [
        f"override {key} is recorded as {value!r} and is {everything.get(key)!r}"
        for key, value in leaves(overrides).items()
        if everything.get(key, ...) != value
    ]
    own, variant = (
        leaves(source.model_dump(mode="json", include=compared)) for source in (experiment, variant)
    )
    # Another kind of optimizer or schedule brings keys of its own.
    recorded = [name.removesuffix(".name") for name in overrides]
    problems += [
        f"{key} differs from {experiment.variant}.yaml without an override"
        for key in sorted({*own, *variant})
        if own.get(key, ...) != variant.get(key, ...)
        and not any(f"{key}.".startswith(f"{name}.") for name in recorded)
    ]
    return problems


def _check_parameters(run: Evidence) -> Result:
    """The network's count is the one in metrics.json, the published one, and within the budget."""
    experiment, problems = run.experiment, []
    size = measure_size(experiment.architecture)
    count, published = size.parameters, experiment.published.parameters
    if run.status in FINISHED:
        expected = {"parameters": count, "macs": size.macs}
        problems += _differences(expected, run.metrics, "metrics.json")
    if experiment.has_own_network and published not in (None, count):
        problems.append(f"{count:,} parameters; published: {published:,}")
    try:
        if trained := trained_fixed_weights(run.model):
            problems.append(f"{WEIGHTS} holds trained {trained}, which are not counted")
    except (Damaged, LacksMemory):
        pass  # `checksums` names the file or the reason
    except Unavailable as error:
        problems += [str(error)] if run.has(WEIGHTS) else []
    if experiment.budget != "none" and count > experiment.budget:
        problems.append(f"{count:,} parameters exceed the budget of {experiment.budget:,}")
    if count > DEFAULT_BUDGET and not problems:
        reason = f"{count:,} parameters; the experiment's own budget is {experiment.budget}"
        return Result(NOT_CHECKED, f"{reason}, not {DEFAULT_BUDGET:,}")
    return _judge(problems, f"{count:,} of {DEFAULT_BUDGET:,}")


def _check_summary(run: Evidence) -> Result:
    """summary.txt is the table of the network that experiment.yaml describes."""
    found = run.read("summary.txt").rstrip("\n").splitlines()
    if measure_size(run.experiment.architecture).parameters > LARGEST_NETWORK:
        raise Unavailable("the network is too large to be built here")
    expected = model_summary(build_model(run.experiment.architecture)).splitlines()
    lines = enumerate(zip_longest(found, expected), 1)
    wrong = [number for number, (line, other) in lines if line != other]
    problems = [f"summary.txt, line {number}: not what the network gives" for number in wrong[:1]]
    return _judge(problems, f"{len(found)} lines")


def _check_learning_rates(run: Evidence) -> Result:
    """The history's rates are those of the last step of each epoch under the schedule."""
    history, recipe = run.history, run.experiment.recipe
    steps = run.experiment.steps_per_epoch
    rows, problems = history.to_dict("records"), []
    for epoch, rate in zip(history["epoch"], history["lr"], strict=True):
        expected = learning_rate(recipe, int(epoch) * steps - 1, steps, rows) if epoch else 0.0
        if not math.isclose(rate, expected, rel_tol=1e-6, abs_tol=1e-12):
            problems.append(f"history.csv: lr of epoch {epoch:g} is {rate}, expected {expected}")
    return _judge(problems, counted(int((history["epoch"] > 0).sum()), "epoch"))


def _check_history(run: Evidence) -> Result:
    """One row for each epoch; finite numbers; accuracies that so many images can have."""
    history, recipe = run.history, run.experiment.recipe
    problems, epochs = [], history["epoch"].tolist()
    if epochs != list(range(len(epochs))) or len(epochs) > recipe.epochs + 1:
        problems.append(f"history.csv: epochs are not 0 to {recipe.epochs}")
    elif run.status == "done" and len(epochs) != recipe.epochs + 1:
        problems.append(f"history.csv: ends at epoch {len(epochs) - 1} of {recipe.epochs}")
    if not np.isfinite(history.to_numpy()).all() or (history < 0).any(axis=None):
        problems.append("history.csv: a number is negative or not finite")
    counts = {"train": run.experiment.training_images}
    counts |= {"holdout": recipe.holdout} if recipe.holdout else {}
    if not problems:
        counts["test"] = len(run.predictions.labels)
    for split, count in counts.items():
        correct = history[f"{split}_accuracy"].iloc[1:] * count  # row 0 is of fewer images
        wrong = correct.index[((correct - correct.round()).abs() > 0.01) | (correct > count + 0.5)]
        if len(wrong):
            problems.append(
                f"history.csv: {split}_accuracy of epoch {wrong[0]} is no fraction of {count:,}"
            )
    return _judge(problems, f"{len(history)} rows")


def _check_metrics(run: Evidence) -> Result:
    """metrics.json follows from the history and from the kept predictions."""
    metrics, evaluation, experiment = run.metrics, run.predictions, run.experiment
    if run.status == "imported":
        expected = imported_metrics(experiment, evaluation)
        problems = _differences(expected, metrics, "metrics.json")
        if unknown := metrics.keys() - expected.keys() - {"parameters", "macs"}:
            problems.append(f"metrics.json: nothing gives {', '.join(sorted(unknown))}")
        return _judge(problems, f"{len(expected)} values")
    history, select = run.history, experiment.recipe.select
    expected = run_metrics(experiment, history, evaluation)
    trained = history.iloc[1:]
    score = {"best_holdout": "holdout_accuracy", "best_test": "test_accuracy"}.get(select)
    selected = trained["epoch"][trained[score].idxmax()] if score else trained["epoch"].iloc[-1]
    expected |= timing(experiment, history, metrics["evaluation_seconds"])
    expected["selected_epoch"] = int(selected)
    problems = _differences(expected, metrics, "metrics.json")
    kept = {"test_accuracy": evaluation.accuracy, "test_loss": evaluation.loss}
    row = trained[trained["epoch"] == selected].iloc[0]
    # Of the trained rows only the last is evaluated in float32, as the predictions are.
    is_last = selected == trained["epoch"].iloc[-1]
    rounded = not is_last and run.record["fingerprint"].get("precision") != "float32"
    kept = {
        name: value
        for name, value in kept.items()
        if not (rounded and abs(row[name] - value) <= PRECISION_TOLERANCE * max(1.0, value))
    }
    problems += _differences(kept, row, f"history.csv, epoch {selected:g}")
    return _judge(problems, f"{len(expected)} values")


def _check_accuracy(run: Evidence) -> Result:
    """The accuracies in metrics.json are those of the kept weights on the genuine test set."""
    metrics, measured = run.metrics, run.recomputed
    names = ["selected_test_accuracy"]
    is_last = metrics.get("selected_epoch") == metrics.get("epochs") or run.status == "imported"
    names += ["test_accuracy"] if is_last else []
    tolerance = max(ACCURACY_TOLERANCE, 1 / len(measured.labels)) + 1e-9
    problems = [
        f"metrics.json: {name} is {metrics.get(name)}, the weights give {measured.accuracy}"
        for name in names
        if not abs(metrics.get(name, math.inf) - measured.accuracy) <= tolerance
    ]
    recomputed = f"{measured.accuracy:.2%} recomputed"
    if not problems and not is_last:
        epoch = f"after epoch {metrics.get('selected_epoch')}, which was selected"
        reason = f"{recomputed} {epoch}; the weights of the last epoch are not kept"
        return Result(NOT_CHECKED, reason)
    return _judge(problems, recomputed)


def _check_predictions(run: Evidence) -> Result:
    """The kept predictions are those of the weights, on the labels of the genuine test set."""
    kept, predictions = run.read("predictions.npz")
    rows = np.arange(len(predictions))
    if (kept.logits.numpy()[rows, predictions] < kept.logits.amax(1).numpy()).any():
        return Result(FAIL, "predictions.npz: predictions are not those of its logits")
    if kept.classes != run.dataset.classes or not torch.equal(kept.labels, run.dataset.test[1]):
        return Result(FAIL, "predictions.npz: labels or classes are not those of the test set")
    measured = run.recomputed
    highest, _ = measured.logits.topk(2)
    close = highest[:, 0] - highest[:, 1] <= LOGIT_TOLERANCE
    differing = kept.predictions != measured.predictions
    wrong = int((differing & ~close).sum())
    furthest = (kept.logits - measured.logits).abs().max().item()
    scale = max(LOGIT_TOLERANCE, 0.01 * measured.logits.abs().max().item())
    problems = []
    if wrong:
        problems.append(f"predictions.npz: {wrong:,} predictions are not those of the weights")
    elif not furthest <= scale:
        problems.append(f"predictions.npz: logits differ from the weights' by up to {furthest:.2g}")
    detail = f"{int(differing.sum())} of {len(rows):,} differ, logits by at most {furthest:.2g}"
    return _judge(problems, detail)


def _check_confusion_matrix(run: Evidence) -> Result:
    """confusion_matrix.csv is the count of the kept predictions."""
    classes, counts = run.predictions.classes, run.predictions.confusion
    expected = pd.DataFrame(counts, index=classes, columns=classes)
    return _compare_table(run, "confusion_matrix.csv", expected)


def _check_per_class(run: Evidence) -> Result:
    """per_class.csv follows from the kept predictions."""
    return _compare_table(run, "per_class.csv", run.predictions.per_class)


def _compare_table(run: Evidence, name: str, expected: pd.DataFrame) -> Result:
    found = run.read(name)
    if [*found.index] != [*expected.index] or [*found.columns] != [*expected.columns]:
        return Result(FAIL, f"{name}: its classes or columns are not those of predictions.npz")
    cells = np.argwhere(~np.isclose(found, expected, rtol=1e-7, atol=1e-12))
    problems = [
        f"{name}: {found.index[row]}, {found.columns[column]} is "
        f"{found.iloc[row, column]:g}, predictions.npz gives {expected.iloc[row, column]:g}"
        for row, column in cells[:3]
    ]
    return _judge(problems, "as predictions.npz gives")


def _check_report(run: Evidence) -> Result:
    """The test accuracy in the headline of notebook and report is that of metrics.json."""
    stated = {}
    for name in ("notebook.ipynb", "report.html"):
        if run.has(name):
            text = run.read(name)
            stated[name] = findall(r"Test accuracy (\d+\.\d\d) ?% (?:after epoch|\(95)", text)
            if name == "report.html":
                stated[name] += findall(
                    r"(\d+\.\d\d) %(?:</title>|</b> (?:reproduced|imported|measured))", text
                )
    found = {name: values for name, values in stated.items() if values}
    if not found:
        why = "states no test accuracy" if stated else "is not kept"
        raise Unavailable(f"{' and '.join(stated) or 'notebook or report'} {why}")
    expected = f"{100 * run.metrics['test_accuracy']:.2f}"
    problems = [
        f"{name} states {value} %, metrics.json {expected} %"
        for name, values in found.items()
        for value in dict.fromkeys(values)
        if value != expected
    ]
    return _judge(problems, f"{expected} % in {' and '.join(found)}")


CLAIMS: dict[str, Callable[[Evidence], Result]] = {
    "checksums": _check_checksums,
    "record": _check_record,
    "experiment": _check_experiment,
    "parameters": _check_parameters,
    "summary": _check_summary,
    "learning rates": _check_learning_rates,
    "history": _check_history,
    "metrics": _check_metrics,
    "accuracy": _check_accuracy,
    "predictions": _check_predictions,
    "confusion matrix": _check_confusion_matrix,
    "per class": _check_per_class,
    "report": _check_report,
}


def verify_runs(
    folders: Iterable[Path], data_root: str | Path | None = None
) -> Iterator[tuple[Path, dict[str, Result]]]:
    """The result of every claim for each run folder, in turn; data sets are read once."""
    find_dataset = cache(lambda name: genuine_data(name, data_root))
    for folder in folders:
        run = Evidence(folder, find_dataset)
        yield folder, {name: _result(claim, run) for name, claim in CLAIMS.items()}


def _result(claim: Callable[[Evidence], Result], run: Evidence) -> Result:
    try:
        result = claim(run)
    except Unavailable as error:
        unfinished = run.status in STATUSES and run.status not in FINISHED
        reason = f" (the run is not finished: {run.status})" if unfinished else ""
        result = Result(NOT_CHECKED, f"{error}{reason}")
    except Exception as error:  # a value in a file that no one foresaw; never a traceback
        result = Result(FAIL, f"the files cannot be compared: {describe_error(error)}")
    return Result(result.status, clean_line(without_folder(result.detail, run.folder)))


def overall(results: Mapping[str, Result]) -> str:
    """FAIL if any claim fails; else what became of the accuracy, which all others serve."""
    failed = any(result.status == FAIL for result in results.values())
    return FAIL if failed else results["accuracy"].status


def format_results(verified: Mapping[Path, Mapping[str, Result]]) -> str:
    """A line for each claim of a single run; of several a table, and the reasons below it."""
    if len(verified) == 1:
        ((folder, results),) = verified.items()
        lines = [f"{r.status:11}  {name:16}  {r.detail}" for name, r in results.items()]
        return "\n".join([clean_line(display_path(folder)), *lines])
    table = pd.DataFrame(
        {
            clean_line(display_path(folder)): {name: r.status for name, r in results.items()}
            for folder, results in verified.items()
        }
    ).T.replace(NOT_CHECKED, "-")
    table = table.rename(columns=lambda name: name.replace(" ", "_"))  # columns are told apart
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for folder, results in verified.items():
        for name, (status, detail) in results.items():
            if status != PASS:
                reasons.setdefault((status, name, detail), []).append(
                    clean_line(display_path(folder))
                )
    lines = [
        f"{status:11}  {name}: {detail} "
        f"({', '.join(runs) if status == FAIL or len(runs) == 1 else f'{len(runs)} runs'})"
        for (status, name, detail), runs in sorted(reasons.items())
    ]
    failed = sum(overall(results) == FAIL for results in verified.values())
    last = f"{counted(len(verified), 'run')}, {failed} with a FAIL; - in the table: {NOT_CHECKED}"
    return "\n".join([table.to_string(), "", *lines, last])


def results_json(verified: Mapping[Path, Mapping[str, Result]]) -> str:
    """A list with an object for each run: its folder, its status and those of its claims."""
    content = [
        {
            "run": display_path(folder),
            "status": overall(results),
            "claims": {name: result._asdict() for name, result in results.items()},
        }
        for folder, results in verified.items()
    ]
    return json.dumps(content, indent=2)
