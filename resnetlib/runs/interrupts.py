"""Signals and time limits that end a training: the step is finished and the state saved before."""

import signal
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from types import FrameType
from typing import NoReturn

from ..errors import OutOfTime
from ..signals import STOP_SIGNALS, handled, input_ended, stop_now
from ..training import Callback, Trainer
from .checkpoint import Checkpointer

SIGNALS = [signal.SIGINT, *STOP_SIGNALS]


def leave(number: int) -> NoReturn:
    """Raise what the signal stands for, so that the process exits with 128 plus its number."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)


class StopOnSignal(Callback):
    """Ends a training on a signal, once the step is finished and the state is saved.

    A second signal ends it at once; that of the end of the input is not counted beside another. A
    signal that is ignored (`nohup`) or has a handler of the user's own is left alone.
    """

    def __init__(self, checkpointer: Checkpointer):
        self.checkpointer = checkpointer
        self.received: list[int] = []
        self.deferred = True

    def installed(self) -> AbstractContextManager[None]:
        """Where the signals are handled; only the main thread of a process can do so."""
        if threading.current_thread() is not threading.main_thread():
            return nullcontext()
        defaults = (signal.SIG_DFL, signal.default_int_handler, stop_now)
        numbers = [number for number in SIGNALS if signal.getsignal(number) in defaults]
        return handled(numbers, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        awaited = 2 if input_ended.is_set() else 1
        if len(self.received) > awaited or not self.deferred:
            leave(number)

    def _stop_if_asked(self, training: Trainer) -> None:
        if self.received:
            self.checkpointer.save_progress(training)
            leave(self.received[0])

    after_step = after_epoch = after_evaluation_batch = _stop_if_asked

    def after_training(self, training: Trainer) -> None:
        """Everything is saved: from here on a signal need not wait."""
        self.deferred = False
        self._stop_if_asked(training)


class TimeLimit(Callback):
    """Ends a training after a time, once the step is finished and the state is saved."""

    def __init__(self, checkpointer: Checkpointer, seconds: float):
        self.checkpointer = checkpointer
        self.until = time.monotonic() + seconds

    def _stop_if_over(self, training: Trainer) -> None:
        if time.monotonic() >= self.until:
            self.checkpointer.save_progress(training)
            raise OutOfTime("its time is over")

    after_step = after_epoch = after_evaluation_batch = _stop_if_over
