"""run.json: status, fingerprint, versions and checksums of a run."""

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .. import files
from ..data import Dataset
from ..device import DeviceSettings, resolve_device_settings
from ..errors import RunError
from ..experiment import Experiment
from ..paths import PROJECT, display_path
from .run import ARTIFACTS, FINISHED, load_run

RNG_LIBRARIES = ("numpy", "scipy", "scikit-learn")  # used to draw splits and mixing weights
STEP_MODULES = (  # whose source decides what a training step computes
    "augment/*",
    "blocks",
    "data",
    "device",
    "evaluation",
    "optim",
    "resnet",
    "rng",
    "schedule",
    "schema",
    "training",
)
VERSIONS_OF = ("resnetlib", "torch", "torchvision", "numpy", "scikit-learn")
# What every `run.json` has, that of imported weights too.
RECORD_KEYS = {"status": str, "variant": str, "dataset": str, "seed": int, "experiment": str}


def make_folder(folder: Path) -> None:
    """Create the folder of a run. Raises `RunError` where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"{display_path(Path(error.filename))}: {error.strerror}"
        raise RunError(f"the run folder cannot be created ({reason})") from None
    except ValueError:
        raise RunError(f"the run folder cannot be created ({str(folder)!r}: NUL in it)") from None


def fingerprint(
    experiment: Experiment, dataset: Dataset, settings: DeviceSettings
) -> dict[str, Any]:
    """What must be equal for a resumed run to equal the uninterrupted one bit for bit."""
    return {
        "experiment": experiment.digest,
        "data": files.sha256_of(repr(sorted(dataset.checksums.items())).encode()),
        "torch": torch.__version__,
        "libraries": ", ".join(f"{name} {version(name)}" for name in RNG_LIBRARIES),
        **settings.describe(),
    }


def step_source() -> str:
    """SHA-256 over the source of the modules that a training step uses."""
    package = Path(__file__).parents[1]
    paths = sorted(path for name in STEP_MODULES for path in package.glob(f"{name}.py"))
    sources = {path.relative_to(package).as_posix(): path.read_text("utf-8") for path in paths}
    return files.sha256_of(json.dumps(sources).encode())


def describe_environment(experiment: Experiment) -> dict[str, str]:
    """Device, processor, how they are used, versions and commit, for reading."""
    git = _git_state()
    changed = " with changes" if git and git["modified"] else ""
    return {
        **resolve_device_settings(experiment).in_words(),
        "operating system": platform.platform(),
        **_versions(),
        "commit": f"{git['commit'][:12]}{changed}" if git else "not known",
        "run folder": display_path(experiment.folder),
    }


def _versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONS_OF}}


def identity(experiment: Experiment) -> dict[str, Any]:
    """The entries of `run.json` that say which experiment was run."""
    return {
        "variant": experiment.variant,
        "dataset": experiment.dataset,
        "seed": experiment.seed,
        "experiment": experiment.digest,
        "overrides": experiment.model_dump(mode="json")["overrides"],
    }


def new_record(
    experiment: Experiment, dataset: Dataset, settings: DeviceSettings
) -> dict[str, Any]:
    """The content of `run.json` for a run that starts now."""
    return {
        "status": "running",
        **identity(experiment),
        "started": now(),
        "fingerprint": fingerprint(experiment, dataset, settings),
        "step_source": step_source(),
        "versions": _versions(),
        "platform": platform.platform(),
        "git": _git_state(),
        "dataset_checksums": dataset.checksums,
        "inexact_resumes": [],
        "keeps_checkpoints": experiment.execution.keep_checkpoints,
        "checkpoints": {},  # SHA-256 by file name, in the order of writing
        "artifacts": {},
    }


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git_state() -> dict[str, Any] | None:
    """The commit of the checkout and whether anything tracked differs from it.

    None where this file is not tracked: outside git, and where the package is installed into an
    environment that lies in a repository of the user's own.
    """

    def ask(*words: str) -> str:
        # git knows no checkout of another user, such as one that a container has mounted.
        command = ["git", "-c", "safe.directory=*", "-C", str(PROJECT), *words]
        done = subprocess.run(  # noqa: S603  the words below
            command, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", __file__)
        changed = ask("status", "--porcelain", "--untracked-files=no")
        return {"commit": ask("rev-parse", "HEAD"), "modified": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    files.write_json(folder / "run.json", record)


def artifact_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a run itself leaves, by path relative to the run folder."""
    return {name: files.sha256(folder / name) for name in ARTIFACTS if (folder / name).is_file()}


def record_checksums(folder: Path, names: Sequence[str]) -> None:
    """Renew the SHA-256 of these files in the record of a finished run, after they were written."""
    if load_run(folder).record["status"] not in FINISHED:
        return
    with files.lock(folder / ".lock"):
        record = load_run(folder).record
        if record["status"] in FINISHED:
            checksums = {name: files.sha256(folder / name) for name in names}
            write_record(folder, record | {"artifacts": record["artifacts"] | checksums})


def check_fingerprint(
    experiment: Experiment, before: Mapping[str, Any], current: Mapping[str, Any]
) -> list[str]:
    """The differences between two fingerprints; a `RunError` names them unless they are allowed."""
    differences = [
        f"{name} was {before.get(name)!r} and is now {current.get(name)!r}"
        for name in sorted({*before, *current})
        if before.get(name) != current.get(name)
    ]
    if differences and not experiment.execution.allow_inexact_resume:
        raise RunError(
            f"this run cannot be resumed exactly: {'; '.join(differences)}. "
            "`allow_inexact_resume: true` resumes anyway and records the difference; "
            "`fresh: true` starts over"
        )
    return differences
