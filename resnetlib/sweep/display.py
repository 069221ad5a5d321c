"""What a sweep prints: live bars in a terminal, one line per event elsewhere."""

import shutil
import time
from collections.abc import Iterable

from tqdm.auto import tqdm

from ..errors import print_line
from ..progress import duration, is_interactive
from .task import Task

BAR = "|{bar:20}| {desc}"
SECONDS = 0.5  # between two looks at the histories


class Display:
    """Bars of the runs that train, the number done, the best so far and the time left.

    Args:
        work: multiply-accumulates of all runs that are not done yet.
        runs: the number of all runs.
        done: the number of those that are done.
        comparable: their accuracies are of one kind on one data set.
    """

    def __init__(self, work: int, runs: int, done: int, *, comparable: bool = True):
        self.work, self.runs, self.done = work, runs, done
        self.comparable = comparable
        self.worked = 0  # by the runs that ended
        self.best: tuple[float, str] | None = None
        self.live = is_interactive()
        self.began = self.next_look = time.monotonic()
        self.first_work: dict[Task, int] = {}  # of a resumed run, done before
        self.bars: dict[Task, tqdm] = {}
        self.total = tqdm(
            total=runs,
            initial=done,
            disable=not self.live,
            position=0,
            bar_format=BAR,
        )

    def line(self, text: str) -> None:
        """Print a line, above the bars where there are any."""
        if self.live:
            tqdm.write(text)
        else:
            print_line(text)

    def update(self, running: Iterable[Task]) -> None:
        """Draw the state of the runs that train; nothing in a log."""
        if not self.live or time.monotonic() < self.next_look:
            return
        self.next_look = time.monotonic() + SECONDS
        worked = self.worked
        rows = shutil.get_terminal_size().lines - 3
        for task in running:
            history, epochs = task.history(), task.experiment.recipe.epochs
            done = task.work * len(history) // epochs
            if task not in self.first_work:
                self.first_work[task] = done
                self.work -= done
            worked += done - self.first_work[task]
            if task not in self.bars and len(self.bars) < rows:
                used = {-bar.pos for bar in self.bars.values()} | {0}
                self.bars[task] = tqdm(
                    total=epochs,
                    position=min(set(range(len(used) + 1)) - used),
                    leave=False,
                    bar_format=BAR,
                )
            if task in self.bars:
                accuracy = f", {float(history[-1][task.score]):.2%}" if history else ""
                self.bars[task].n = len(history)
                self.bars[task].set_description_str(
                    f"{task.name}: epoch {len(history)}/{epochs}{accuracy}"
                )
        self.total.n = self.done
        self.total.set_description_str(self._summary(worked))

    def ended(self, task: Task, accuracy: float | None) -> None:
        """A run is done, with its accuracy, or has ended otherwise."""
        if bar := self.bars.pop(task, None):
            bar.close()
        done = task.work * len(task.history()) // task.experiment.recipe.epochs
        first = self.first_work.pop(task, None)
        if first is None:  # no look has seen it train
            self.work -= task.work
        else:
            self.worked += done - first
            self.work -= task.work - done  # what one that failed has left is not waited for
        if accuracy is not None:
            self.done += 1
            self.compare(accuracy, task.score, task.name)

    def compare(self, accuracy: float, score: str, name: str) -> None:
        """Take note of the accuracy of a run that is done."""
        if self.comparable and (self.best is None or accuracy > self.best[0]):
            self.best = accuracy, f"best {score.replace('_', ' ')} {accuracy:.2%}: {name}"

    def state(self) -> str:
        return f"{self.done} of {self.runs} runs are done"

    def _summary(self, worked: int) -> str:
        parts = [self.state()]
        if self.best:
            parts.append(self.best[1])
        if worked > 0:
            left = (time.monotonic() - self.began) * (self.work - worked) / worked
            parts.append(f"about {duration(max(left, 0))} left")
        return "; ".join(parts)

    def close(self) -> None:
        self.total.n = self.done
        self.total.set_description_str(self._summary(worked=0))
        for bar in (*self.bars.values(), self.total):
            bar.close()
