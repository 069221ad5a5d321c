"""What a sweep prints: live bars in a terminal, one line per event elsewhere."""

import shutil
import time
from collections.abc import Iterable

from tqdm.auto import tqdm

from ..progress import duration, is_interactive
from .task import Task


class Display:
    """Bars of the runs that train, the number done, the best so far and the time left.

    Args:
        work: multiply-accumulates of all runs that are not done yet.
        runs: the number of all runs.
        done: the number of those that are done.
    """

    def __init__(self, work: int, runs: int, done: int):
        self.work, self.runs, self.done = work, runs, done
        self.worked = 0  # by the runs that ended
        self.best: tuple[float, str] | None = None
        self.live = is_interactive()
        self.began = time.monotonic()
        self.first_work: dict[Task, int] = {}  # of a resumed run, done before
        self.bars: dict[Task, tqdm] = {}
        self.total = tqdm(
            total=runs,
            initial=done,
            disable=not self.live,
            position=0,
            bar_format="{n_fmt} of {total_fmt} runs done |{bar:20}| {postfix}",
        )

    def line(self, text: str) -> None:
        """Print a line, above the bars where there are any."""
        if self.live:
            tqdm.write(text)
        else:
            print(text, flush=True)

    def update(self, running: Iterable[Task]) -> None:
        """Draw the state of the runs that train; nothing in a log."""
        if not self.live:
            return
        worked = self.worked
        rows = shutil.get_terminal_size().lines - 3
        for task in running:
            history, epochs = task.history(), task.experiment.recipe.epochs
            done = task.work * len(history) // epochs
            worked += done - self.first_work.setdefault(task, done)
            if task not in self.bars and len(self.bars) < rows:
                used = {-bar.pos for bar in self.bars.values()} | {0}
                self.bars[task] = tqdm(
                    total=epochs,
                    desc=task.name,
                    position=min(set(range(len(used) + 1)) - used),
                    leave=False,
                    bar_format="  {desc}: epoch {n_fmt}/{total_fmt} |{bar:20}| {postfix}",
                )
            if task in self.bars:
                bar = self.bars[task]
                bar.n = len(history)
                label = f"{float(history[-1][task.score]):.2%}" if history else "starting"
                bar.set_postfix_str(label)
        self.total.n = self.done
        self.total.set_postfix_str(self._summary(worked))

    def ended(self, task: Task, accuracy: float | None) -> None:
        """A run is done, with its accuracy, or has ended otherwise."""
        if bar := self.bars.pop(task, None):
            bar.close()
        if accuracy is None:
            return
        self.done += 1
        self.worked += task.work - self.first_work.pop(task, 0)
        if self.best is None or accuracy > self.best[0]:
            self.best = accuracy, f"best {task.score.replace('_', ' ')} {accuracy:.2%}: {task.name}"

    def _summary(self, worked: int) -> str:
        parts = [self.best[1]] if self.best else []
        if worked:
            left = (time.monotonic() - self.began) * (self.work - worked) / worked
            parts.append(f"about {duration(max(left, 0))} left")
        return "; ".join(parts)

    def close(self) -> None:
        for bar in (*self.bars.values(), self.total):
            bar.close()
