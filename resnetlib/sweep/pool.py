"""Runs on this machine: one process per core, or per share of a GPU."""

import math
import os
import time
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .process import Exit, RunProcess
from .task import Task

POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Needs:
    """What one run needs."""

    threads: int | None = 1  # of the CPU; None: torch's own number, on a GPU
    gpus: float = 0.0  # share of a GPU; no memory is set apart
    memory: float = 2.0  # GB; reserved on a cluster, not enforced
    device: str | None = None  # None leaves it to the run

    @property
    def cpus(self) -> int:
        return self.threads or 1

    def settings(self, task: Task) -> dict[str, Any]:
        """Parameters of the run that agree with this, unless they are given.

        A run that has begun, perhaps without the sweep, keeps the threads and the device that it
        has recorded.
        """
        execution = task.experiment.execution.model_dump()
        wanted = {"threads": self.threads, "device": self.device}
        if task.has_begun:
            wanted = {"device": self.device and task.recorded_device}
        return {
            name: value
            for name, value in wanted.items()
            if value is not None and execution[name] == "auto"
        }

    def environment(self) -> dict[str, str]:
        return {"OMP_NUM_THREADS": str(self.threads)} if self.threads else {}


class LocalPool:
    """Runs tasks as child processes, `slots` at a time.

    Args:
        needs: of each run.
        at_once: runs at a time; as many as cores or GPUs allow unless given.
        niceness: of the processes, from 0 to 19.
    """

    def __init__(self, needs: Needs, at_once: int | None = None, niceness: int = 0):
        self.needs = needs
        self.gpus = visible_gpus() if needs.gpus else []
        fitting = max(1, count_cores() // needs.cpus)
        if needs.gpus:
            fitting = max(1, len(self.gpus)) * max(1, math.floor(1 / needs.gpus + 1e-9))
        self.slots = at_once or fitting
        self.niceness = niceness
        self.processes: dict[Task, RunProcess] = {}
        self.places: dict[Task, int] = {}

    def start(self, task: Task, **settings: Any) -> None:
        if self.needs.gpus and not self.gpus:
            raise ConfigError(f"--gpus {self.needs.gpus:g}: no GPU is visible on this machine")
        place = min(set(range(len(self.places) + 1)) - set(self.places.values()))
        environment = self.needs.environment()
        # Each run would start a compiler process for every core.
        compilers = max(1, count_cores() // self.slots)
        environment["TORCHINDUCTOR_COMPILE_THREADS"] = str(compilers)
        if self.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        settings |= self.needs.settings(task)
        words = task.words(**settings)
        self.processes[task] = RunProcess(words, task.log, environment, self.niceness)
        self.places[task] = place

    def finished(self) -> list[tuple[Task, Exit]]:
        """The tasks whose processes have ended, after a short wait."""
        time.sleep(POLL_SECONDS)
        ended = [(task, end) for task, p in self.processes.items() if (end := p.poll())]
        for task, _ in ended:
            del self.processes[task], self.places[task]
        return ended

    def stop(self, task: Task) -> None:
        """Ask the run to save its state and end."""
        self.processes[task].ask_to_stop()

    def close(self) -> None:
        """Stop all processes."""
        for process in self.processes.values():
            process.ask_to_stop()
        try:
            for process in self.processes.values():
                process.close()
        finally:  # interrupted again
            for process in self.processes.values():
                process.close(grace=0)
            self.processes.clear()


def count_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs that runs here would train on, as `CUDA_VISIBLE_DEVICES` names them."""
    import torch  # slow to import

    from ..device import choose_device

    if choose_device("auto").type != "cuda":  # a card may be there that torch cannot use
        return []
    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]
