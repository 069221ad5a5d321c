"""Progress display: a live bar in a terminal or notebook, one line per epoch elsewhere."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

from tqdm.auto import tqdm

from .errors import print_line

_quiet = False


@contextmanager
def quiet() -> Iterator[None]:
    """Where neither bars nor lines appear."""
    global _quiet
    before, _quiet = _quiet, True
    try:
        yield
    finally:
        _quiet = before


def duration(seconds: float) -> str:
    """Such as `8.2 s`, `9 min 14 s`, `3 h 05 min`."""
    if seconds < 59.95:  # not `60.0 s`
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def is_interactive() -> bool:
    """Whether output goes to a terminal, or to a notebook that a person has open.

    Jupyter's server passes the notebook's name to its kernels, VS Code the file's name, and Colab
    loads its own module; papermill and nbconvert start kernels without any of these.
    """
    if "ipykernel" not in sys.modules:
        return sys.stderr is not None and not sys.stderr.closed and sys.stderr.isatty()
    from IPython import get_ipython

    shell = get_ipython()
    in_vscode = shell is not None and "__vsc_ipynb_file__" in shell.user_ns
    return "JPY_SESSION_NAME" in os.environ or in_vscode or "google.colab" in sys.modules


def bar(**settings: Any) -> tqdm:
    """A tqdm bar that is drawn only in a terminal or an open notebook."""
    return tqdm(disable=_quiet or not is_interactive(), **settings)


class EpochProgress:
    """Progress of a training run: call `step()` after each step, `epoch(row)` after each epoch.

    Args:
        first_epoch: the epoch to be trained first, from 1.
        epochs: the number of epochs of the whole run.
        steps_per_epoch: updates of the weights in an epoch.
        steps_done: steps of the first epoch that an earlier process did.
    """

    def __init__(self, first_epoch: int, epochs: int, steps_per_epoch: int, steps_done: int = 0):
        self.epochs = epochs
        self.first_epoch = first_epoch
        self.steps_per_epoch = steps_per_epoch
        self.steps_done = steps_done
        self.interactive = is_interactive()
        self.seconds = 0.0

    def __enter__(self) -> Self:
        self.bar = bar(
            total=self.epochs * self.steps_per_epoch,
            initial=(self.first_epoch - 1) * self.steps_per_epoch + self.steps_done,
            desc=f"epoch {min(self.first_epoch, self.epochs)}/{self.epochs}",
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5,
        )
        return self

    def step(self) -> None:
        self.bar.update()

    def epoch(self, row: Mapping[str, float]) -> None:
        """Display the history row of a finished epoch."""
        number = int(row["epoch"])
        if self.interactive:
            self.bar.set_description(f"epoch {min(number + 1, self.epochs)}/{self.epochs}")
            self.bar.set_postfix_str(
                f"loss {row['train_loss']:.3f}, train {row['train_accuracy']:.1%}, "
                f"test {row['test_accuracy']:.1%}"
            )
            return
        if _quiet:
            return
        self.seconds += row["seconds"] if number else 0.0
        done = number - self.first_epoch + 1
        left = self.seconds / done * (self.epochs - number) if done and number else None
        print_line(epoch_line(row, self.epochs, left))

    def __exit__(self, *error: Any) -> None:
        self.bar.close()


def epoch_line(row: Mapping[str, float], epochs: int, seconds_left: float | None) -> str:
    """An epoch in one line: losses in nats, accuracies in per cent, times with their units."""
    line = (
        f"epoch {int(row['epoch']):{len(str(epochs))}d}/{epochs}"
        f"  train loss {row['train_loss']:.4f} acc {row['train_accuracy']:7.2%}"
        f"  test loss {row['test_loss']:.4f} acc {row['test_accuracy']:7.2%}"
        f"  lr {row['lr']:.2e}  {row['seconds']:.1f} s"
    )
    if seconds_left and seconds_left >= 90:
        line += f"  ({seconds_left / 60:.0f} min left)"
    return line
