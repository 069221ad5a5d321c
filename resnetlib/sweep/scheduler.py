"""Carry out tasks on an engine: wait for locks, start, retry what was lost, report."""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

from ..errors import STOPPED_IN_TIME, explain_interrupt, print_line
from ..progress import duration
from .display import Display
from .process import Exit
from .task import Task

ATTEMPTS = 3  # of a run whose process or node was lost
LOCK_SECONDS = 2  # between two looks at a run that another process works on
OVERTIME_SECONDS = 600  # for runs to evaluate and write what they have, after the time limit


class Engine(Protocol):
    """Where runs are carried out: `LocalPool` or `Cluster`."""

    slots: int  # runs at a time

    def start(self, task: Task, **settings: Any) -> None:
        """Start a run; `settings` replace its overrides."""

    def finished(self) -> list[tuple[Task, Exit]]:
        """The runs that have ended, after a short wait."""

    def stop(self, task: Task) -> None:
        """Ask the run to save its state and end."""

    def close(self) -> None:
        """Stop all runs."""


@dataclass(frozen=True)
class Outcome:
    """What became of a task."""

    status: Literal["done", "failed", "stopped", "cancelled"]
    message: str = ""


class Scheduler:
    """The tasks that wait and those that run.

    The truth about a run is in its folder: a finished one is not started, and one that another
    process works on is left to it. The end of a process says only whether to look there.

    Args:
        engine: where the tasks run.
        display: what reports on them.
        seconds: after this time no task is started and those that run stop, with their state saved.
    """

    def __init__(self, engine: Engine, display: Display, seconds: float = math.inf):
        self.engine = engine
        self.display = display
        self.until = time.monotonic() + seconds
        self.waiting: deque[Task] = deque()
        self.running: dict[Task, float] = {}
        self.attempts: dict[Task, int] = {}
        self.not_before: dict[Task, float] = {}
        self.cancelled: set[Task] = set()
        self.overtime_is_over = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Stop what runs. Ctrl-C gets a message that says what is done."""
        self.engine.close()
        self.display.close()
        if isinstance(error, KeyboardInterrupt):
            explain_interrupt(
                error, f"interrupted; {self.display.state()}: the same command resumes"
            )

    def add(self, task: Task) -> None:
        self.waiting.append(task)

    def cancel(self, task: Task) -> None:
        """Stop a task that runs; its state is saved."""
        self.cancelled.add(task)
        self.engine.stop(task)

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self.until

    @property
    def is_idle(self) -> bool:
        return not self.waiting and not self.running

    def poll(self) -> list[tuple[Task, Outcome]]:
        """Start what can be started; the tasks that have ended since the last call."""
        ended = self._start()
        if not self.overtime_is_over and time.monotonic() > self.until + OVERTIME_SECONDS:
            self.overtime_is_over = True  # a second request would end a run at once
            for task in self.running:  # no node of the cluster may ever have taken it
                self.engine.stop(task)
        for task, end in self.engine.finished():
            seconds = time.monotonic() - self.running.pop(task)
            outcome = self._outcome(task, end)
            if outcome is not None:
                self._report(task, outcome, seconds)
                ended.append((task, outcome))
        self.display.update(self.running)
        return ended

    def _start(self) -> list[tuple[Task, Outcome]]:
        """Start tasks while there is room; those that need no start."""
        ended = []
        slots = self.engine.slots
        for _ in range(len(self.waiting)):
            if not self.has_time:
                ended.append((self.waiting.popleft(), Outcome("stopped")))
                continue
            if len(self.running) >= slots:
                break
            task = self.waiting.popleft()
            if time.monotonic() < self.not_before.get(task, 0):
                self.waiting.append(task)
            elif task.is_locked:
                self._wait_for_lock(task)
            elif (done := task.is_complete) or task.is_outdated:
                outcome = Outcome("done") if done else _outdated(task)
                self._report(task, outcome, None)
                ended.append((task, outcome))
            else:
                self._start_task(task)
        return ended

    def _wait_for_lock(self, task: Task) -> None:
        if task not in self.not_before:
            self.display.line(f"waiting   {task.name}: in use by another process")
        self.not_before[task] = time.monotonic() + LOCK_SECONDS
        self.waiting.append(task)

    def _start_task(self, task: Task) -> None:
        left = max(self.until - time.monotonic(), 0)
        settings = {} if left == math.inf else {"stop_after": f"{left:.0f}s"}
        self.engine.start(task, **settings)
        self.running[task] = time.monotonic()
        self.attempts[task] = self.attempts.get(task, 0) + 1
        self.display.line(f"started   {task.name}")

    def _outcome(self, task: Task, end: Exit) -> Outcome | None:
        """What became of a task whose process ended; None where it is started again."""
        if end.code == 0 and task.run:
            return Outcome("done")
        if task in self.cancelled:
            return Outcome("cancelled")
        if end.code == STOPPED_IN_TIME:
            return Outcome("stopped", end.message)
        if end.code == 0 and task.is_outdated:
            return _outdated(task)
        was_killed = end.code is None or not 0 < end.code <= 128
        if was_killed and not self.has_time:
            return Outcome("stopped", end.message)
        if was_killed and self.attempts[task] < ATTEMPTS:
            self.display.line(f"lost      {task.name}: {end.message or 'killed'}; started again")
            self.waiting.append(task)
            return None
        if task.is_locked:
            self._wait_for_lock(task)
            return None
        fault = f"exit code {end.code}" if end.code else "its run folder is damaged"
        return Outcome("failed", end.message or fault)

    def _report(self, task: Task, outcome: Outcome, seconds: float | None) -> None:
        accuracy = None
        if outcome.status == "done":
            accuracy = float(task.history()[-1][task.score])
            taken = "by another process or trial" if seconds is None else duration(seconds)
            what = task.score.replace("_accuracy", "")
            self.display.line(f"finished  {task.name}: {what} {accuracy:.2%}, {taken}")
        elif outcome.status == "failed":
            output = f" (full output in {task.log})" if task.log.exists() else ""  # or on its node
            self.display.line(f"FAILED    {task.name}: {outcome.message}{output}")
        elif outcome.status == "stopped":
            self.display.line(f"stopped   {task.name}: its time is over")
        self.display.ended(task, accuracy)


def _outdated(task: Task) -> Outcome:
    return Outcome("failed", f"{task.variant} was changed since the sweep began")


def carry_out(
    tasks: Sequence[Task], engine: Engine, seconds: float = math.inf
) -> dict[Task, Outcome]:
    """Carry out the tasks, in this order, and return what became of each."""
    outcomes = {task: Outcome("done") for task in tasks if task.is_complete}
    waiting = [task for task in tasks if task not in outcomes]
    print_line(f"{len(outcomes)} of {len(tasks)} runs are done; up to {engine.slots} at once")
    comparable = len({(task.score, task.experiment.dataset) for task in tasks}) == 1
    work = sum(task.work for task in waiting)
    display = Display(work, len(tasks), len(outcomes), comparable=comparable)
    for task in outcomes:
        display.compare(float(task.history()[-1][task.score]), task.score, task.name)
    with Scheduler(engine, display, seconds) as scheduler:
        for task in waiting:
            scheduler.add(task)
        while not scheduler.is_idle:
            outcomes |= scheduler.poll()
    return {task: outcomes[task] for task in tasks}


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 if all are done, 1 if one failed, 4 if one was stopped at the time limit."""
    statuses = {outcome.status for outcome in outcomes}
    return 1 if "failed" in statuses else STOPPED_IN_TIME if "stopped" in statuses else 0
