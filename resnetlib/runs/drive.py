"""Runs whose folder is on Google Drive: made on the local disk, and copied to Drive.

On Colab, Drive is a cache that is uploaded later: files that were written last can be lost, empty
or old when the machine ends. So a run is made on the machine's own disk, and copied after each
checkpoint. A new machine fetches it and resumes from the newest checkpoint that is complete.
"""

import filecmp
import shutil
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs

from .. import files
from ..errors import ConfigError
from ..paths import display_path, real_path
from ..training import Callback, Trainer
from .run import ARTIFACTS, CHECKPOINTS, PAGES, load_run

DRIVE = Path("/content/drive")  # where Colab's documentation mounts it
RECORD = ".run.json"  # behind the name of a checkpoint: the record at that time, only on Drive


def local_folder(folder: Path) -> Path | None:
    """Where a run with this folder on Drive is made; None for a folder that is elsewhere.

    Raises `ConfigError` where Drive is not mounted: the files would be lost.
    """
    folder = real_path(folder)
    if not folder.is_relative_to(DRIVE):
        return None
    if not (DRIVE / "MyDrive").is_dir():
        raise ConfigError(
            f"{folder} is on Google Drive, which is not mounted: "
            "`from google.colab import drive; drive.mount('/content/drive')`"
        )
    cache = Path(platformdirs.user_cache_dir("resnetlib", appauthor=False))
    return cache / "drive" / folder.relative_to(DRIVE)


def lost_files(drive: Path, artifacts: Mapping[str, str]) -> list[str]:
    """Those of the recorded files of a finished run that Drive does not have as they were written.

    Report and notebook are not among them: they may be edited, and are made from the run.
    """
    return [
        name
        for name, checksum in artifacts.items()
        if name not in PAGES
        and not ((drive / name).is_file() and files.sha256(drive / name) == checksum)
    ]


SAME_RUN = ("experiment", "started")  # of records: others are of a run that was started over


def _are_of_one_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one.get(key) == other.get(key) for key in SAME_RUN)


def read_record(folder: Path) -> dict[str, Any]:
    """The record of the run; empty without a run.

    Where it is damaged, or older than a checkpoint of the same run, it is the one kept with the
    newest checkpoint.
    """
    record: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        record = files.read_json(folder / "run.json")
    if record.get("status") == "done":
        return record
    newest = max(record.get("checkpoints", {}), default="")
    for path in sorted(folder.glob(f"checkpoints/*{RECORD}"), reverse=True):
        checkpoint = path.with_name(path.name.removesuffix(RECORD))
        if record and not (checkpoint.name > newest and checkpoint.is_file()):
            continue
        with suppress(OSError, ValueError):
            kept = files.read_json(path)
            if not record or _are_of_one_run(kept, record):
                return kept
    return record or (load_run(folder).record if (folder / "run.json").exists() else {})


def fetch_run(drive: Path, local: Path) -> None:
    """Copy an unfinished or finished run from Drive, unless the local one is as far."""
    if saved_progress(local) >= saved_progress(drive) or files.is_locked(local / ".lock"):
        return
    fetched = local.with_name(f"{local.name}.fetched")
    shutil.rmtree(fetched, ignore_errors=True)  # of a killed call
    shutil.copytree(drive, fetched, ignore=shutil.ignore_patterns(".*", f"*{RECORD}"))
    files.write_json(fetched / "run.json", read_record(drive))
    shutil.rmtree(local, ignore_errors=True)
    fetched.rename(local)


def copy_run(local: Path, drive: Path) -> None:
    """Make the run on Drive equal to the local one; its record, which names the rest, comes last.

    The record is also kept for each checkpoint, in case the last one is lost. Where there is no
    local run yet, Drive keeps the one that it has.
    """
    if not (local / "run.json").is_file():
        return
    is_same = False
    with suppress(OSError, ValueError):
        is_same = _are_of_one_run(*(files.read_json(at / "run.json") for at in (local, drive)))
    made_earlier = ARTIFACTS if is_same else (*ARTIFACTS, *PAGES)
    paths = [path for path in local.rglob("[!.]*") if path.is_file()]
    for path in sorted(paths, key=lambda path: path.name == "run.json"):
        target = drive / path.relative_to(local)
        if not target.is_file() or not filecmp.cmp(path, target, shallow=False):
            files.write_bytes(target, path.read_bytes())
    kept = {path.name for path in local.glob(CHECKPOINTS)}
    for name in kept:
        record = drive / "checkpoints" / f"{name}{RECORD}"
        if not record.is_file():
            files.write_bytes(record, (local / "run.json").read_bytes())
    for path in drive.glob(f"{CHECKPOINTS}*"):
        if path.name.removesuffix(RECORD) not in kept:
            path.unlink()
    for name in made_earlier:  # by an earlier run, if there is none now
        if not (local / name).is_file():
            (drive / name).unlink(missing_ok=True)


class CopyToDrive(Callback):
    """Copies the run to Drive after each checkpoint; where that fails, it warns."""

    def __init__(self, local: Path, drive: Path):
        self.local = local
        self.drive = drive
        self.copied = 0  # when the record was changed that was copied last

    def after_step(self, training: Trainer) -> None:
        changed = (self.local / "run.json").stat().st_mtime_ns
        if changed == self.copied:
            return
        self.copied = changed
        try:
            copy_run(self.local, self.drive)
        except OSError as error:
            reason = f"{display_path(self.drive)} cannot be written ({error.strerror})"
            warnings.warn(f"{reason}; the run is in {display_path(self.local)}", stacklevel=2)

    after_epoch = after_training = after_step


def saved_progress(folder: Path) -> tuple[bool, str]:
    """Comparable: whether the run is done, and the name of its newest checkpoint."""
    record = read_record(folder)
    return record.get("status") == "done", max(record.get("checkpoints", {}), default="")
