"""Write, read and remove checkpoints."""

import io
import re
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from .. import files, pickles
from ..errors import RunError, is_out_of_memory
from ..paths import display_path
from ..training import Callback, Trainer
from .artifacts import write_history
from .record import write_record
from .run import CHECKPOINTS
from .upkeep import checkpoint_files

CHECKPOINTS_KEPT = 2


def to_bytes(state: Any) -> bytes:
    """What `pickles.unpickle_tensors` reads back."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def save_checkpoint(
    folder: Path, epoch: int, step: int, state: Mapping[str, Any], record: dict[str, Any]
) -> None:
    """Write a checkpoint, then remove all but the last two.

    Its SHA-256 is written to `run.json` first. A run that is killed in between has a record that
    names a missing file, which loading passes over; in the other order it would have a file
    without a recorded checksum.

    Args:
        folder: the run folder.
        epoch: whole epochs done.
        step: steps done beyond them.
        state: that of the `Trainer`.
        record: the content of `run.json`, which is updated.
    """
    name = f"epoch-{epoch:05d}-step-{step:06d}.pt"
    content = files.with_checksum(to_bytes(state))
    recorded = record["checkpoints"]
    recorded.pop(name, None)  # a damaged one, if any: the new one comes last
    recorded[name] = files.sha256_of(content)
    write_record(folder, record)
    path = folder / "checkpoints" / name
    with suppress(OSError):  # a folder of that name is removed if it is empty
        path.rmdir()
    files.write_bytes(path, content)
    for old in list(recorded)[:-CHECKPOINTS_KEPT]:
        (folder / "checkpoints" / old).unlink(missing_ok=True)
        del recorded[old]


def describe_saved(folder: Path, *, fresh: bool) -> str:
    """What of an interrupted run is saved, and how it is resumed, in one line."""
    position = last_position(folder)
    if not position:
        return f"interrupted; nothing is saved yet in {display_path(folder)}: run it again to start"
    saved = f"interrupted; saved after {describe_position(*position)} in {display_path(folder)}"
    return f"{saved}: run it again{' without `fresh`' if fresh else ''} to resume"


def last_position(folder: Path) -> tuple[int, int] | None:
    """Whole epochs and further steps of the newest checkpoint; None without any."""
    paths = checkpoint_files(folder)
    if not paths:
        return None
    epochs, steps = map(int, re.findall(r"\d+", paths[-1].name)[:2])
    return epochs, steps


def describe_position(epochs: int, steps: int) -> str:
    """A position such as `step 20 of epoch 3`, from the epochs done and the steps of the next."""
    return f"step {steps} of epoch {epochs + 1}" if steps else f"epoch {epochs}"


def load_checkpoint(folder: Path, recorded: Mapping[str, str] | None) -> dict[str, Any] | None:
    """The newest good checkpoint of a run; None where there is none at all.

    `recorded` has the SHA-256 of each checkpoint in the order of writing; a file with another
    content does not belong to the run. It is None for a record of an older version, where every
    undamaged file does. Bad files are passed over with a warning that names them and the one used
    instead; when all are bad, `RunError`: a run never starts over in silence. Raises `OSError` when
    none is good and one cannot be read, and what torch or Python raise for want of memory.
    """
    present = sorted(path.name for path in folder.glob(CHECKPOINTS))
    expected = dict.fromkeys(present) if recorded is None else recorded
    bad = [name for name in present if name not in expected]
    unreadable = None
    for name in reversed(expected):
        if name not in present:
            continue
        try:
            content = files.read_checksummed(folder / "checkpoints" / name, expected[name])
            state = pickles.unpickle_tensors(content)
        except OSError as error:  # the file may be sound
            unreadable = error
            bad.append(f"{name} ({error.strerror or error})")
            continue
        except Exception as error:  # whatever a parser raises on a damaged file
            if is_out_of_memory(error):
                raise
            bad.append(name)
            continue
        if bad:
            what = f"{'unreadable, ' if unreadable else ''}damaged or not of this run"
            warnings.warn(f"{', '.join(bad)} {what}; resuming from {name}", stacklevel=2)
        return state
    if unreadable:
        raise unreadable
    if bad and expected:
        raise RunError(
            f"all checkpoints under {display_path(folder)} are damaged or not of this run "
            f"({', '.join(bad)}); `fresh: true` starts the run over"
        )
    if bad:
        warnings.warn(
            f"{', '.join(bad)} not of this run; it starts from the beginning", stacklevel=2
        )
    return None


CHECKPOINT_SECONDS = 180  # at most this much work is lost in a long epoch
CHECKPOINT_SHARE = 0.01  # of a run's time, at most, is spent on checkpoints


class Checkpointer(Callback):
    """Saves checkpoint and history: after epochs, and every few minutes in long ones.

    The cost of saving is measured, and the next save waits until the cost is at most one per cent
    of the time between. When something is saved has no influence on the results.
    """

    def __init__(self, folder: Path, record: dict[str, Any]):
        self.folder = folder
        self.record = record
        self.cost = 0.0

    def on_start(self, training: Trainer) -> None:
        self.saved = _position(training)
        self.saved_at = time.monotonic()

    def after_epoch(self, training: Trainer) -> None:
        waited = time.monotonic() - self.saved_at
        if training.epochs_done and waited >= self.cost / CHECKPOINT_SHARE:
            self.save(training)

    def after_step(self, training: Trainer) -> None:
        waited = time.monotonic() - self.saved_at
        if waited >= max(CHECKPOINT_SECONDS, self.cost / CHECKPOINT_SHARE):
            self.save(training)

    def after_training(self, training: Trainer) -> None:
        """Everything that was trained is on disk before the results are computed."""
        self.save_progress(training)

    def save_progress(self, training: Trainer) -> None:
        """Save unless nothing was trained since the last save."""
        if self.saved != _position(training):
            self.save(training)

    def save(self, training: Trainer) -> None:
        """Save the state and the history. Raises `Diverged` where the state is not finite."""
        began = time.monotonic()
        if name := training.find_non_finite():
            raise training.diverged(f"{name} is not finite")
        save_checkpoint(self.folder, *_position(training), training.state(), self.record)
        write_history(self.folder, training.table())
        self.saved = _position(training)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began


def _position(training: Trainer) -> tuple[int, int]:
    """Whole epochs done, and steps of the next one."""
    return max(training.epochs_done, 0), training.progress.steps
