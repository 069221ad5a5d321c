"""Errors whose message is written for the user, and the parts that messages share."""

import difflib
import re
import signal
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any


class UserError(Exception):
    """An error whose message is all that the user needs; notebooks print no traceback."""

    def _render_traceback_(self) -> list[str]:
        """IPython's protocol for exceptions."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError, ValueError):
    """A mistake in the parameters: the message says what, where and what is allowed."""


class DataError(UserError, RuntimeError):
    """Data are missing, or are not what they should be; the message says what to do."""


class RunError(UserError, RuntimeError):
    """A run cannot start or resume; the message says why and what to do."""


class Diverged(RunError):
    """The loss is no longer finite."""


STOPPED_IN_TIME = 4  # exit code of a command whose `stop_after` is over


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or another signal stopped the work; the message says what is saved."""

    _render_traceback_ = UserError._render_traceback_

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.exit_code = 128 + signal_number


class OutOfTime(Interrupted):
    """The time that a run may take (`stop_after`) is over; its state is saved."""

    def __init__(self, message: str):
        super().__init__(message)
        self.exit_code = STOPPED_IN_TIME


def closest_match(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` if a known name is close to this one, otherwise an empty string."""
    folded = {k.lower(): k for k in known}
    # Letters in another order come first: `adma` is `adam` and not `adamax`.
    close = [k for k in folded if sorted(k) == sorted(name.lower())]
    close = close or difflib.get_close_matches(name.lower(), folded, n=1)
    if not close:  # a short name such as `se` has no close match by ratio
        close = [k for k in folded if name and k.startswith(name.lower())][:1]
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


def shorten(value: Any, length: int = 80) -> str:
    """`repr(value)` for a message, its middle left out where it is longer than `length`."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print a number of more than 4,300 digits
        return "a number of thousands of digits"
    except RecursionError:
        return "deeply nested lists or mappings"
    except Exception:  # of a class of the user's own
        return f"a {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 20]}…{text[-19:]}"


def printable(text: str) -> str:
    """The text with a question mark for each character that a terminal cannot print."""
    return "".join(character if character.isprintable() else "?" for character in text)


def shorten_line(text: str, length: int = 200) -> str:
    """Text from a file or a parser as one printable line, its end left out where it is longer."""
    line = printable(" ".join(text[: 4 * length].split()))
    return line if len(line) <= length else f"{line[: length - 1]}…"


def counted(number: int, what: str) -> str:
    """Such as `1 epoch`, `2,000 epochs`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """Print a line at once, unless the output is closed or full: that does not end any work."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)


def is_out_of_memory(error: Exception) -> bool:
    """Whether Python or torch, which has no error of its own for a CPU, lacked memory."""
    messages = r"out of memory|not enough memory|allocate memory|memory object|ALLOC_FAILED"
    return isinstance(error, MemoryError) or bool(re.search(messages, str(error)))


def compiler_failure(error: Exception) -> str:
    """Why torch could not compile, in a line; empty for any other error."""
    dynamo = sys.modules.get("torch._dynamo.exc")  # slow to import, and there if it failed
    is_one = dynamo is not None and isinstance(error, dynamo.BackendCompilerFailed)
    return shorten_line(str(error.inner_exception)) if is_one else ""


def explain_interrupt(error: KeyboardInterrupt, message: str) -> None:
    """Give the exception of Ctrl-C a message, which a notebook shows alone.

    Its class stays: Python ends by SIGINT, as a shell expects, only for KeyboardInterrupt itself.
    """
    error.args = (message,)
    error._render_traceback_ = lambda: [f"KeyboardInterrupt: {message}"]
