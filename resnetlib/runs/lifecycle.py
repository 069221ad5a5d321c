"""`train`: start, resume or load the run of an experiment, and keep its record true."""

import importlib
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from .. import files
from ..data import TRAINING_IMAGES, Dataset, load_dataset
from ..device import DeviceSettings, resolve_device_settings
from ..errors import ConfigError, Diverged, Interrupted
from ..evaluation import Evaluation
from ..experiment import Experiment
from ..resnet import NUM_CLASSES
from ..size import check_size, model_summary
from ..training import Callback, Trainer, fit
from .artifacts import write_results
from .checkpoint import Checkpointer, describe_saved, drop_checkpoints, load_checkpoint
from .record import (
    ARTIFACTS,
    artifact_checksums,
    artifact_paths,
    check_fingerprint,
    make_folder,
    new_record,
    now,
    write_record,
)
from .run import Run, load_run


def clear(folder: Path) -> None:
    """Remove what a run writes, and nothing else, so that it can start over.

    The record goes first: without it nothing that is left counts, should this be cut short.
    """
    unfinished = [path for name in ("run.json", *ARTIFACTS) for path in folder.glob(f".{name}.*")]
    pages = [folder / name for name in ("notebook.ipynb", "report.html")]
    for path in [folder / "run.json", *pages, *artifact_paths(folder), *unfinished]:
        path.unlink(missing_ok=True)
    drop_checkpoints(folder)


def check_experiment(experiment: Experiment) -> DeviceSettings:
    """What the experiment would compute with here.

    Refuses, before anything is read, what could not be trained: size, device, held-out images.
    """
    check_size(experiment)
    compute = resolve_device_settings(experiment)
    holdout, images = experiment.recipe.holdout, TRAINING_IMAGES[experiment.dataset]
    if holdout and not NUM_CLASSES <= holdout <= images - NUM_CLASSES:
        raise ConfigError(
            f"recipe.holdout = {holdout}: both parts of the {images:,} training images need an "
            f"image of each class; give 0, or {NUM_CLASSES} to {images - NUM_CLASSES:,}"
        )
    return compute


def train(
    experiment: Experiment,
    *,
    output: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Carry out the whole run, or go on with it; a finished one is given back as it is.

    `output` is the run folder; by default `experiment.folder`. Raises `ConfigError` before any
    work for what cannot be trained, `DataError` for missing data, `RunError` for a run that
    cannot go on, `Diverged` when the loss is no longer finite.
    """
    compute = check_experiment(experiment)
    folder = Path(output) if output is not None else experiment.folder
    make_folder(folder)
    with files.lock(folder / ".lock"):
        before = None if experiment.execution.fresh else _unfinished(folder, experiment)
        if before and before["status"] == "done":
            if not before.get("keeps_checkpoints", True):  # it may have been killed just before
                drop_checkpoints(folder)
            return load_run(folder)
        dataset = _load_data(experiment)
        record = new_record(experiment, dataset, compute)
        training = Trainer(experiment, dataset, compute)
        if not before:
            clear(folder)  # also checkpoints whose record is gone: nothing vouches for them
        state = load_checkpoint(folder)
        if state:
            differences = check_fingerprint(
                experiment, before["fingerprint"], record["fingerprint"]
            )
            training.load_state(state)
            at = f"epoch {training.epochs_done} of {experiment.recipe.epochs}"
            if training.progress.steps:
                at += f" and {training.progress.steps} steps of the next"
            record["started"] = before["started"]
            record["inexact_resumes"] = before["inexact_resumes"]
            if differences:
                record["inexact_resumes"].append({"after": at, "differences": differences})
            print(f"going on after {at}")
        _run_to_end(training, experiment, dataset, folder, record, callbacks)
    return load_run(folder)


def _load_data(experiment: Experiment) -> Dataset:
    """The data set; while the other cores read it, what the optimizers of torch will import.

    Nothing else goes on beside that import, which holds Python's lock for most of a second.
    """
    with ThreadPoolExecutor(1) as beside:
        imported = beside.submit(importlib.import_module, "torch._dynamo")
        dataset = load_dataset(experiment.dataset, experiment.execution.data_root)
        imported.result()
    return dataset


def _unfinished(folder: Path, experiment: Experiment) -> dict[str, Any] | None:
    """What `run.json` says of an earlier run of this very experiment; None if there is none."""
    if not (folder / "run.json").is_file():
        return None
    record = load_run(folder).record
    if record["experiment"] != experiment.digest:
        raise ConfigError(
            f"{folder} holds another experiment ({record['variant']}, {record['dataset']}, seed "
            f"{record['seed']}); name another folder, or `fresh: true` to replace it"
        )
    return record


def _run_to_end(
    training: Trainer,
    experiment: Experiment,
    dataset: Dataset,
    folder: Path,
    record: dict[str, Any],
    callbacks: Sequence[Callback],
) -> None:
    """Train, write everything a run leaves, and keep `run.json` true throughout."""
    files.write_text(folder / "experiment.yaml", experiment.to_yaml())
    files.write_text(folder / "summary.txt", model_summary(training.model) + "\n")
    write_record(folder, record)

    try:
        fit(training, experiment.recipe.epochs, [Checkpointer(folder), *callbacks])
        _write_results(training, experiment, dataset, folder)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        diverged = isinstance(error, Diverged)
        status = "interrupted" if interrupted else "diverged" if diverged else "failed"
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        write_record(folder, record | {"status": status, "error": reason})
        if isinstance(error, KeyboardInterrupt):
            number = getattr(error, "signal_number", signal.SIGINT)
            raise Interrupted(describe_saved(folder), number) from None
        raise
    finished = {"status": "done", "finished": now()}
    write_record(folder, record | finished | {"artifacts": artifact_checksums(folder)})
    if not record["keeps_checkpoints"]:
        drop_checkpoints(folder)


def _write_results(
    training: Trainer, experiment: Experiment, dataset: Dataset, folder: Path
) -> None:
    """Everything of the run folder that the finished training decides; figures in float32."""
    selected_epoch, measured = training.select()
    write_results(
        folder,
        experiment,
        dataset,
        training.table(),
        training.evaluated_model,
        Evaluation(measured.logits, measured.labels, dataset.classes),
        selected_epoch=selected_epoch,
        evaluation_seconds=training.evaluation_seconds,
    )
