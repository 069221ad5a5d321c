"""Write, read and drop checkpoints."""

import io
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..errors import RunError
from ..paths import display_path
from ..training import Callback, Trainer
from .artifacts import write_history

CHECKPOINTS_KEPT = 2


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
    files.write_checksummed(checkpoints / f"epoch-{epoch:05d}-step-{step:06d}.pt", to_bytes(state))
    for old in _checkpoints(folder)[:-CHECKPOINTS_KEPT]:
        old.unlink()


def _checkpoints(folder: Path) -> list[Path]:
    """Oldest first."""
    return sorted((folder / "checkpoints").glob("epoch-*.pt"))


def drop_checkpoints(folder: Path) -> None:
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def describe_saved(folder: Path) -> str:
    """What of an interrupted run is saved, and how it is resumed, in one line."""
    saved = _checkpoints(folder)
    if not saved:
        return f"interrupted; nothing is saved yet in {display_path(folder)}: run it again to start"
    epoch, step = (int(number) for number in re.findall(r"\d+", saved[-1].stem))
    where = f"epoch {epoch}" + (f" and {step} steps of the next" if step else "")
    return f"interrupted; saved after {where} in {display_path(folder)}: run it again to resume"


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest good checkpoint; None where there is none at all.

    A damaged one is passed over with a warning that names it and the one used instead; when all
    are damaged, `RunError`: a run never starts over in silence.
    """
    damaged = []
    for path in reversed(_checkpoints(folder)):
        try:
            content = files.read_checksummed(path)
        except files.CorruptFile:
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


CHECKPOINT_SECONDS = 180  # at most so much work is lost in a long epoch
CHECKPOINT_SHARE = 0.01  # of a run's time, at most, goes into checkpoints


class Checkpointer(Callback):
    """Keeps checkpoint and history on disk: after epochs, and every few minutes in long ones.

    What saving costs is measured, and the next one waits until it is at most one per cent of the
    time between. When something is saved has no influence on the results.
    """

    def __init__(self, folder: Path):
        self.folder = folder
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
        """Whatever has been trained is on disk before the results are computed."""
        if self.saved != _position(training):
            self.save(training)

    def save(self, training: Trainer) -> None:
        began = time.monotonic()
        save_checkpoint(self.folder, *_position(training), training.state())
        write_history(self.folder, training.table())
        self.saved = _position(training)
        self.saved_at = time.monotonic()
        self.cost = self.saved_at - began


def _position(training: Trainer) -> tuple[int, int]:
    """Whole epochs done, and steps of the next one."""
    return training.epochs_done, training.progress.steps
