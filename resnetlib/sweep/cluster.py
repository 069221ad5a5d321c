"""Runs on a Ray cluster: each task starts `resnetlib run` on some node."""

import contextlib
import io
import math
import os
import socket
import tarfile
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import files
from ..errors import STOPPED_IN_TIME, ConfigError, RunError
from ..experiment import parse_duration
from . import process
from .pool import POLL_SECONDS, Needs
from .process import GRACE_SECONDS, Exit, RunProcess, wait_for
from .task import Task

GB = 10**9


def connect(address: str) -> ModuleType:
    """Ray, connected to the cluster at this address, such as `head:6379`; `auto` finds one here.

    Raises `ConfigError`.
    """
    # Telemetry off; under `uv run` Ray would send the working directory to every node.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"  # a task without GPU may see them
    try:
        import ray
    except ImportError:
        raise ConfigError("--address needs Ray: in the project pip install -e '.[sweep]'") from None
    try:
        _check_listening(address)
        # `log_to_driver`: the output of runs goes to their own files.
        ray.init(address, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ConfigError(f"no Ray cluster at {address}: {reason}") from None
    return ray


def _check_listening(address: str) -> None:
    """Raise `OSError` where nothing answers, for which Ray would wait for a minute or more."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


class Cluster:
    """Runs tasks on the nodes of a Ray cluster, as many at a time as fit.

    Ray places the tasks. It retries none: the caller does, once the run's lock is free. Where a
    node shares no file system with this machine, the run folder is sent here at its end.

    Args:
        ray: of `connect`.
        needs: of each run.
        at_once: the most runs at a time; as many as fit unless given.
    """

    def __init__(self, ray: ModuleType, needs: Needs, at_once: int | None = None):
        self.ray = ray
        self.needs = needs
        self.at_once = at_once
        self.probe = f".sweep-{uuid.uuid4().hex}"  # a file that shows which nodes share ours
        self.probes: set[Path] = set()
        self.references: dict[Any, Task] = {}
        self.remote = ray.remote(run_on_node).options(
            num_cpus=needs.cpus,
            num_gpus=needs.gpus,
            memory=needs.memory * GB,
            max_retries=0,
        )
        self._warn_if_nothing_fits()

    def _warn_if_nothing_fits(self) -> None:
        if not self._fitting():
            needs = f"{self.needs.cpus} CPUs, {self.needs.memory:g} GB"
            needs += f", {self.needs.gpus:g} GPU" if self.needs.gpus else ""
            print(f"no node of the cluster has {needs}; waiting for one", flush=True)

    def _fitting(self) -> int:
        """How many runs the living nodes hold at once."""
        wanted = {"CPU": self.needs.cpus, "memory": self.needs.memory * GB, "GPU": self.needs.gpus}
        wanted = {name: amount for name, amount in wanted.items() if amount}
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return sum(
            int(min(node.get(name, 0) / amount + 1e-9 for name, amount in wanted.items()))
            for node in nodes
        )

    @property
    def slots(self) -> int:
        """The runs that fit now, and one more: so that a cluster that grows with its load does."""
        return self.at_once or self._fitting() + 1

    def start(self, task: Task, **settings: Any) -> None:
        root = task.folder.parents[1]
        if root not in self.probes:
            root.mkdir(parents=True, exist_ok=True)
            (root / self.probe).touch()
            self.probes.add(root)
        settings |= self.needs.settings(task)
        limit = settings.get("stop_after")
        environment = self.needs.environment() | {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
        reference = self.remote.remote(
            task,
            settings,
            environment,
            until=time.time() + parse_duration(limit) if limit else math.inf,
            program=process.PROGRAM,
            directory=os.getcwd(),
            probe=self.probe,
        )
        self.references[reference] = task

    def finished(self) -> list[tuple[Task, Exit]]:
        """The tasks that have ended, after a short wait."""
        references = list(self.references)
        if not references:
            time.sleep(POLL_SECONDS)
            return []
        ready, _ = self.ray.wait(references, num_returns=len(references), timeout=POLL_SECONDS)
        tasks = [(self.references.pop(reference), reference) for reference in ready]
        return [(task, self._result(task, reference)) for task, reference in tasks]

    def _result(self, task: Task, reference: Any) -> Exit:
        from ray.exceptions import RayError, RayTaskError, TaskCancelledError

        try:
            end, folder = self.ray.get(reference)
        except TaskCancelledError:
            return Exit(None, "cancelled")
        except RayTaskError as error:  # of `run_on_node` itself
            return Exit(1, f"{type(error.cause).__name__}: {error.cause}")
        except RayError as error:
            return Exit(None, f"its node or worker was lost ({type(error).__name__})")
        if folder is not None:
            unpack_folder(folder, task.folder)
        return end

    def stop(self, task: Task) -> None:
        """Ask the run to save its state and end."""
        for reference, running in self.references.items():
            if running is task:
                self.ray.cancel(reference)

    def close(self) -> None:
        """Stop all tasks, and leave the cluster."""
        try:
            for task in self.references.values():
                self.stop(task)
            references = list(self.references)
            if references:
                self.ray.wait(references, num_returns=len(references), timeout=GRACE_SECONDS)
        finally:
            for root in self.probes:
                (root / self.probe).unlink(missing_ok=True)
            self.ray.shutdown()


def run_on_node(
    task: Task,
    settings: Mapping[str, Any],
    environment: Mapping[str, str],
    *,
    until: float,
    program: Sequence[str],
    directory: str,
    probe: str,
) -> tuple[Exit, bytes | None]:
    """Carry out a run on the node that this is called on, as a child process.

    Returns how it ended, and the packed run folder where the caller does not see it.

    Args:
        task: the run.
        settings: parameters that replace its own.
        environment: variables of the process.
        until: when the time of the sweep is over, as of `time.time`; the task may wait for a node.
        program: what Python runs.
        directory: the caller's working directory, which is used where it exists.
        probe: the name of a file in the output folder, which exists where the caller sees it.
    """
    with contextlib.suppress(OSError):
        os.chdir(directory)
    task = Task(task.variant, task.overrides)  # its folder is that of this node
    if until < math.inf:
        if (left := until - time.time()) < 1:
            return Exit(STOPPED_IN_TIME), None
        settings = {**settings, "stop_after": f"{left:.0f}s"}
    words = task.words(**settings)
    end = wait_for(RunProcess(words, task.log, environment, program=program))
    is_shared = (task.folder.parents[1] / probe).is_file()
    has_run = (task.folder / "run.json").is_file()
    return end, pack_folder(task.folder) if has_run and not is_shared else None


def pack_folder(folder: Path) -> bytes:
    """The files of a run folder as an archive, without its lock."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.name != ".lock":
                archive.add(path, path.relative_to(folder).as_posix())
    return buffer.getvalue()


def unpack_folder(content: bytes, folder: Path) -> None:
    """Replace a run folder by a packed one, which appears whole, unless it is further or in use."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".receiving-", dir=folder.parent) as temporary:
        received = Path(temporary) / folder.name
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            files.unpack_tar(archive, received)
        if not folder.exists():
            os.replace(received, folder)
        elif not files.is_locked(folder / ".lock") and not _is_further(folder, received):
            before = Path(temporary) / "before"
            try:
                folder.rename(before)
                received.rename(folder)
            except BaseException:  # Ctrl-C too
                if before.exists() and not folder.exists():
                    before.rename(folder)
                raise


def _is_further(folder: Path, other: Path) -> bool:
    from ..runs.drive import saved_progress  # imports torch

    with contextlib.suppress(RunError):  # one whose record is damaged is not
        return saved_progress(folder) > saved_progress(other)
    return False
