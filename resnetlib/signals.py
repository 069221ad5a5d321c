"""The signals that end the work besides Ctrl-C, and what they stand for."""

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from .errors import Interrupted

# Windows has the first. Slurm sends the last two, as its users choose, before the time is over.
_NAMES = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STOP_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
# Set before the SIGTERM that stands for the end of a run's input: beside another signal, which a
# sweep's children may get at the same time, it is the same request to stop.
input_ended = threading.Event()


def stop_now(number: int, frame: FrameType | None) -> NoReturn:
    """A handler for a signal that ends a command at once."""
    raise Interrupted(f"interrupted by {signal.Signals(number).name}", number)


@contextmanager
def handled(
    numbers: Iterable[int], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    """Where these signals have this handler; afterwards each has the one from before."""
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
