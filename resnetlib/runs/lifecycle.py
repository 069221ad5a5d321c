"""`train`: start, resume or load the run of an experiment, and keep its record true."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..data import Dataset, load_dataset
from ..device import DeviceSettings, cpu_threads, resolve_device_settings
from ..errors import (
    ConfigError,
    Diverged,
    RunError,
    UserError,
    compiler_failure,
    explain_interrupt,
    is_out_of_memory,
    print_line,
    shorten,
    shorten_line,
)
from ..evaluation import Evaluation
from ..experiment import Experiment, parse_duration
from ..paths import display_path, expand_home, output_folder, real_path
from ..rng import plain_defaults
from ..size import check_size, model_summary
from ..training import Callback, Trainer, fit
from .artifacts import write_results
from .checkpoint import (
    Checkpointer,
    describe_position,
    describe_saved,
    last_position,
    load_checkpoint,
)
from .drive import (
    CopyToDrive,
    copy_run,
    fetch_run,
    local_folder,
    lost_files,
    read_record,
    saved_progress,
)
from .interrupts import StopOnSignal, TimeLimit
from .record import (
    RECORD_KEYS,
    artifact_checksums,
    check_fingerprint,
    make_folder,
    new_record,
    now,
    write_record,
)
from .run import ARTIFACTS, PAGES, Run, load_run
from .upkeep import checkpoint_files, drop_checkpoints, remove_leftovers

# What `run.json` has from the start of a run.
OF_A_RUN = RECORD_KEYS | {"fingerprint": dict, "started": str, "inexact_resumes": list}
_training = threading.RLock()  # held while a run trains, which may be a copy of one on Drive


def check_experiment(experiment: Experiment) -> DeviceSettings:
    """What the experiment would compute with here.

    Refuses, before anything is read, what could not be trained: size, device, held-out images.
    """
    check_size(experiment)
    settings = resolve_device_settings(experiment)
    if problem := experiment.holdout_problem():
        raise ConfigError(problem)
    return settings


def train(
    experiment: Experiment,
    *,
    output: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """Carry out the whole run of an experiment, or resume it; a finished one is loaded.

    On SIGINT, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2 the step is finished and the state saved; then
    `KeyboardInterrupt` (SIGINT) or `SystemExit` is raised. A second signal ends it at once. After
    `stop_after` the same happens with `OutOfTime`. In a thread, and where the program handles the
    signal itself, as `asyncio.run` does with SIGINT, it is left alone.

    A process trains one run at a time: the random generators are the process's own.

    Args:
        experiment: what to train, from `load_experiment` or `config.apply_overrides`, which record
            what they change; pydantic's `model_copy` does not, and `verify` would fail the run.
        output: the run folder; by default `experiment.folder`.
        callbacks: hooks of the user's own, see `training.Callback`.

    Raises:
        ConfigError: before any work, for what cannot be trained or would overwrite other files.
        DataError: the data are missing.
        RunError: the run cannot be resumed or continued; the message says what to do.
        Diverged: loss, gradients or weights are no longer finite.
    """
    if not isinstance(experiment, Experiment):
        raise ConfigError(
            f"experiment = {shorten(experiment)}: give one, such as load_experiment('lite')"
        )
    settings = check_experiment(experiment)
    if not isinstance(callbacks, Sequence) or not all(isinstance(c, Callback) for c in callbacks):
        raise ConfigError(f"callbacks = {shorten(callbacks)}: give a list of `Callback` objects")
    output = None if output is None else expand_home(output)
    folder = (output or experiment.folder).absolute()
    if local := local_folder(folder):
        return _train_beside_drive(experiment, folder, local, callbacks)
    check_folder(folder, None if output else output_folder(experiment.execution.output_root))
    if files.is_read_only(folder):
        finished = None if experiment.execution.fresh else _previous_record(folder, experiment)
        if finished and finished["status"] == "done":
            return load_run(folder)
        raise ConfigError(f"{display_path(folder)} cannot be written; name another output_root")
    make_folder(folder)
    with _alone(), _explained(experiment, folder), files.lock(folder / ".lock"):
        before = None if experiment.execution.fresh else _previous_record(folder, experiment)
        remove_leftovers(folder)
        if before and before["status"] == "done":
            if not before.get("keeps_checkpoints", True):  # it may have been killed just before
                drop_checkpoints(folder)
            return load_run(folder)
        state = load_checkpoint(folder, before.get("checkpoints")) if before else None
        if state is not None and experiment.execution.threads == "auto":
            settings = replace(settings, threads=before["fingerprint"]["threads"])
        dataset = load_dataset(experiment.dataset, experiment.execution.data_root)
        with (
            cpu_threads(settings.threads),
            plain_defaults(),
            torch.inference_mode(False),  # like the other two whatever the caller has set
            torch.autocast(settings.device.type, enabled=False),
        ):
            training = Trainer(experiment, dataset, settings)
            record = new_record(experiment, dataset, settings)
            if state is not None:
                _resume(training, experiment, state, before, record)
                record["checkpoints"] = _kept_checkpoints(folder, before)
                write_record(folder, record)
                del state  # the trainer has copied it
            else:
                start_over(folder, record)
            _run_to_end(training, experiment, dataset, folder, record, callbacks)
    return load_run(folder)


@contextmanager
def _alone() -> Iterator[None]:
    """Raise `RunError` while another thread of this process trains."""
    if not _training.acquire(blocking=False):
        raise RunError("another run trains in this process; start a process for each")
    try:
        yield
    finally:
        _training.release()


def _train_beside_drive(
    experiment: Experiment, drive: Path, local: Path, callbacks: Sequence[Callback]
) -> Run:
    """Train in the local folder, with a copy in the folder on Drive after each checkpoint.

    Args:
        experiment: what to train.
        drive: the run folder, on Google Drive.
        local: where the run is made.
        callbacks: the user's.
    """
    record: dict[str, Any] = {}
    with suppress(*[RunError] if experiment.execution.fresh else []):  # a damaged one is replaced
        record = read_record(drive)
    if not record:
        check_folder(drive, None)
    if not experiment.execution.fresh:
        if record:
            _check_same(record, experiment, drive)
        if record.get("status") == "done":
            lost = lost_files(drive, record["artifacts"])
            needed = [name for name in lost if not name.startswith(("figures/", "summary"))]
            is_kept, _ = saved_progress(local)
            if not lost or not (is_kept or needed):
                return load_run(drive)
            if not is_kept:
                raise RunError(
                    f"the run in {drive} is finished, but {', '.join(needed)} is lost, damaged or "
                    "not uploaded yet; `fresh: true` trains it again"
                )
        fetch_run(drive, local)
    print_line(f"the run is made in {display_path(local)} and copied to {drive}")
    try:
        train(experiment, output=local, callbacks=[*callbacks, CopyToDrive(local, drive)])
    except BaseException:
        with suppress(OSError):  # the first error is the one to read
            copy_run(local, drive)
        raise
    try:
        copy_run(local, drive)
    except OSError as error:
        raise RunError(
            f"the run is finished in {display_path(local)}, but {drive} cannot be written "
            f"({error.strerror}); the same call copies it again"
        ) from None
    return load_run(drive)


def check_folder(folder: Path, root: Path | None) -> None:
    """Raise `ConfigError` where a run folder holds other files, or leads out of `root`."""
    try:
        if root and real_path(root) not in real_path(folder).parents:
            raise ConfigError(f"{folder} leads out of the output folder, to {display_path(folder)}")
        for name in ("checkpoints", "figures"):
            if (folder / name).is_symlink():
                raise ConfigError(
                    f"{display_path(folder)}/{name} is a link; a run keeps its files in its own "
                    "folder: remove the link"
                )
        if folder.is_dir() and not (folder / "run.json").is_file():
            others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
            if others:
                names = ", ".join(others[:3]) + (", …" if len(others) > 3 else "")
                raise ConfigError(
                    f"{display_path(folder)} is not a run folder (no run.json) and holds other "
                    f"files: {names}. Nothing was changed; name another folder"
                )
    except OSError as error:  # such as a name that is too long
        raise ConfigError(f"{shorten(str(folder))}: {error.strerror}") from None


def _previous_record(folder: Path, experiment: Experiment) -> dict[str, Any] | None:
    """The record of an earlier run of this very experiment; None if there is none."""
    if not (folder / "run.json").is_file():
        return None
    record = load_run(folder).record
    _check_same(record, experiment, folder)
    return record


def _check_same(record: dict[str, Any], experiment: Experiment, folder: Path) -> None:
    """Raise `ConfigError` unless the record is one of this experiment, `RunError` if damaged."""
    if record["status"] == "imported":
        raise ConfigError(f"{display_path(folder)} holds imported weights; name another folder")
    kinds = OF_A_RUN.items()
    if missing := [name for name, kind in kinds if not isinstance(record.get(name), kind)]:
        raise RunError(
            f"{display_path(folder / 'run.json')} is damaged: it lacks {', '.join(missing)}; "
            "`fresh: true` starts over"
        )
    if record["experiment"] != experiment.digest:
        raise ConfigError(
            f"{display_path(folder)} holds another experiment ({record['variant']}, "
            f"{record['dataset']}, seed {record['seed']}); name another folder, or `fresh: true` "
            "to replace it"
        )


def start_over(folder: Path, record: dict[str, Any]) -> None:
    """Replace the record, and remove what an earlier run wrote, and nothing else.

    Report and notebook go first: they must not outlive the record that they were made from. The new
    record lists no artifact, should this be cut short.
    """
    for name in PAGES:
        (folder / name).unlink(missing_ok=True)
    write_record(folder, record)
    for name in ARTIFACTS:
        (folder / name).unlink(missing_ok=True)
    drop_checkpoints(folder)


def _resume(
    training: Trainer,
    experiment: Experiment,
    state: dict[str, Any],
    before: dict[str, Any],
    record: dict[str, Any],
) -> None:
    """Load the state of a checkpoint, and record in what the resumed run may differ.

    Args:
        training: takes the state.
        experiment: says whether another fingerprint is allowed.
        state: that of the checkpoint.
        before: the record of the run so far.
        record: that of the resumed run.
    """
    differences = check_fingerprint(experiment, before["fingerprint"], record["fingerprint"])
    if before.get("step_source") != record["step_source"]:
        known = "has changed" if "step_source" in before else "was not recorded"
        differences.append(f"the source of the training step {known}")
    try:
        training.load_state(state)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise RunError(
            f"the checkpoint is not of this run ({type(error).__name__}: "
            f"{shorten_line(str(error))}); "
            "`fresh: true` starts over"
        ) from error
    at = describe_position(training.epochs_done, training.progress.steps)
    record["started"] = before["started"]
    record["inexact_resumes"] = before["inexact_resumes"]
    if differences:
        record["inexact_resumes"].append({"after": at, "differences": differences})
    print_line(f"resuming after {at}")


def _kept_checkpoints(folder: Path, before: dict[str, Any]) -> dict[str, str]:
    """The SHA-256 of the run's checkpoints that exist; of all, for a record of an older version."""
    paths = {path.name: path for path in checkpoint_files(folder)}
    recorded = before.get("checkpoints")
    recorded = recorded or {name: files.sha256(path) for name, path in paths.items()}
    return {name: checksum for name, checksum in recorded.items() if name in paths}


def _run_to_end(
    training: Trainer,
    experiment: Experiment,
    dataset: Dataset,
    folder: Path,
    record: dict[str, Any],
    callbacks: Sequence[Callback],
) -> None:
    """Train, write everything a run leaves, and keep `run.json` true throughout.

    Args:
        training: new, or with the state of a checkpoint.
        experiment: what is trained.
        dataset: the one that `training` has.
        folder: the run folder.
        record: the content of `run.json`.
        callbacks: the user's.
    """
    checkpointer = Checkpointer(folder, record)
    stop = StopOnSignal(checkpointer)
    limit = experiment.execution.stop_after
    limits = [TimeLimit(checkpointer, parse_duration(limit))] if limit else []
    with stop.installed():
        try:
            with _explained(experiment, folder):
                files.write_text(folder / "experiment.yaml", experiment.to_yaml())
                files.write_text(folder / "summary.txt", model_summary(training.model) + "\n")
                fit(training, experiment.recipe.epochs, [checkpointer, *callbacks, stop, *limits])
                _write_results(training, experiment, dataset, folder)
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
            diverged = isinstance(error, Diverged)
            status = "interrupted" if interrupted else "diverged" if diverged else "failed"
            reason = f"{type(error).__name__}: {error}".rstrip(": ")
            with suppress(OSError):  # the disk may be full
                write_record(folder, record | {"status": status, "error": reason})
            if isinstance(error, KeyboardInterrupt):
                fresh = experiment.execution.fresh
                explain_interrupt(error, describe_saved(folder, fresh=fresh))
            raise
        finished = {"status": "done", "finished": now(), "artifacts": artifact_checksums(folder)}
        if not record["keeps_checkpoints"]:
            record["checkpoints"] = {}
        write_record(folder, record | finished)
        if not record["keeps_checkpoints"]:
            drop_checkpoints(folder)


def _write_results(
    training: Trainer, experiment: Experiment, dataset: Dataset, folder: Path
) -> None:
    """Compute and write the results of a finished training, in float32."""
    selected_epoch, evaluation = training.select()
    write_results(
        folder,
        experiment,
        dataset,
        training.table(),
        training.evaluated_model,
        Evaluation(evaluation.logits, evaluation.labels, dataset.classes),
        selected_epoch=selected_epoch,
        evaluation_seconds=training.evaluation_seconds,
    )


@contextmanager
def _explained(experiment: Experiment, folder: Path) -> Iterator[None]:
    """Turn what a machine lacks, such as memory or disk, into a `RunError` of one line."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        path = Path(error.filename) if isinstance(error.filename, str | Path) else folder
        reason = error.strerror or error
        raise RunError(f"{display_path(path)}: {reason}. {_saved(experiment, folder)}") from error
    except (MemoryError, RuntimeError) as error:
        if is_out_of_memory(error):
            size = experiment.recipe.batch_size
            raise RunError(
                f"out of memory with batch_size = {size}; a smaller one, such as {size // 2 or 1}, "
                f"may fit. {_saved(experiment, folder)}"
            ) from error
        if reason := compiler_failure(error):
            raise RunError(
                f"torch cannot compile here ({reason}); `compile: false` trains without it"
            ) from error
        raise


def _saved(experiment: Experiment, folder: Path) -> str:
    """What is safe after a failure, and what to do."""
    with suppress(RunError):
        if load_run(folder).status == "done":
            return "The finished run is still there; the same call tries again"
    if position := last_position(folder):
        again = "the same call without `fresh`" if experiment.execution.fresh else "the same call"
        return f"The run is saved up to {describe_position(*position)}; {again} resumes it"
    return "Nothing of the run was saved yet; the same call starts it again"
