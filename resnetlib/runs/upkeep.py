"""List all runs with their state and size, and remove what killed processes left of them.

Like reading a run, this needs no torch.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean

from .. import files
from ..errors import UserError, printable, shorten_line
from ..progress import duration
from .run import ARTIFACTS, CHECKPOINTS, FINISHED, PAGES, Run, folders_with

# Raised where a file is missing, vanishes, or is a stranger's.
UNREADABLE = (UserError, OSError, LookupError, TypeError, ValueError, OverflowError)
STATUS_CHARACTERS = 20  # displayed of a status, which a stranger may have written


def leftovers(folder: Path) -> list[Path]:
    """What killed processes left of the files that they were writing to a run folder."""
    names = ["run.json", *ARTIFACTS, *PAGES, CHECKPOINTS]
    places = [folder / name for name in names]
    # A link may lead to another run's files.
    places = [path for path in places if path.parent == folder or not path.parent.is_symlink()]
    found = [path for place in places for path in files.temporaries(place)]
    found += folder.glob(".notebook-[0-9]*.ipynb")  # hidden notebooks of older versions
    return [path for path in found if path.is_symlink() or not path.is_dir()]


def remove_leftovers(folder: Path) -> None:
    for path in leftovers(folder):
        path.unlink(missing_ok=True)


def checkpoint_files(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first."""
    if (folder / "checkpoints").is_symlink():
        return []
    return sorted(path for path in folder.glob(CHECKPOINTS) if path.is_file())


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run, and their folder unless it holds other files."""
    pattern = folder / CHECKPOINTS
    for path in (*folder.glob(CHECKPOINTS), *files.temporaries(pattern)):
        with suppress(OSError):  # a folder of that name
            path.unlink(missing_ok=True)
    with suppress(OSError):
        pattern.parent.rmdir()


def removable(root: Path, *, checkpoints: bool) -> Iterator[tuple[Path, list[Path]]]:
    """Each run folder under `root` that no process works on, with its leftovers or checkpoints."""
    for run in _every_run(root):
        folder = run.path
        found = checkpoint_files(folder) if checkpoints else leftovers(folder)
        if found and not files.is_locked(folder / ".lock"):
            yield folder, found


def describe_runs(root: Path) -> list[dict[str, str]]:
    """One row per run folder under `root`: run, status, epoch, time left, size on disk."""
    return [
        {"run": _relative(run.path, root)} | _state(run) | {"size": format_size(_size(run.path))}
        for run in _every_run(root)
    ]


def _every_run(root: Path) -> list[Run]:
    return [Run(folder) for folder in folders_with("run.json", root)]


def _relative(path: Path, root: Path) -> str:
    return printable(path.relative_to(root).as_posix() if path != root else path.name)


def _state(run: Run) -> dict[str, str]:
    """Status, epochs done of all, and time left at the pace of the last five epochs."""
    state = {"status": "damaged", "epoch": "–", "time left": "–"}
    try:
        state["status"] = shorten_line(run.status, STATUS_CHARACTERS)
        seconds = [float(row["seconds"]) for row in run.history_rows()][1:]
        epochs = run.experiment.recipe.epochs
        if run.status not in (*FINISHED, "running") and not checkpoint_files(run.path):
            seconds = []  # it would start over
        left = seconds_left(seconds, epochs) if seconds else 0
    except UNREADABLE:  # a run that has just started has no history
        return state
    state["epoch"] = f"{len(seconds)}/{epochs}"
    if run.status not in FINISHED and left > 0 and math.isfinite(left):
        state["time left"] = duration(left)
    return state


def seconds_left(seconds: Sequence[float], epochs: int) -> float:
    """The time that the remaining epochs take at the pace of the last five of those done."""
    return (epochs - len(seconds)) * fmean(seconds[-5:])


def _size(folder: Path) -> int:
    """Bytes of all files in a folder; one that vanishes meanwhile counts nothing."""
    size = 0
    for parent, folders, names in os.walk(folder):
        for name in (*folders, *names):
            with suppress(OSError):
                size += os.lstat(os.path.join(parent, name)).st_size
    return size


def format_size(size: int) -> str:
    """Such as `640 KB` or `12.3 MB`."""
    return f"{size / 1000:.0f} KB" if size < 1_000_000 else f"{size / 1_000_000:,.1f} MB"
