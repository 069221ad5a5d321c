"""Errors whose message is written for the user, and the nearest match of a mistyped name."""

import difflib
import signal
from collections.abc import Iterable


class UserError(Exception):
    """An error whose message says all that its reader needs."""

    def _render_traceback_(self) -> list[str]:
        """Show a notebook's reader the message alone (IPython's protocol for exceptions)."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError, ValueError):
    """A person's mistake, told in one or two lines: what, where, what is allowed."""


def closest_match(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where something known is close to the name, else nothing."""
    known = list(known)
    folded = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), folded, n=1)
    if not close:  # a short name such as `se` has no close match by ratio
        close = [k for k in folded if name and k.startswith(name.lower())][:1]
    return f"; did you mean {folded[close[0]]!r}?" if close else ""


class DataError(UserError, RuntimeError):
    """Data that cannot be had or are not what they should be; the message says what to do."""


class RunError(UserError, RuntimeError):
    """A run that cannot go on, for a reason that a person can mend; the message names it."""


class Diverged(RunError):
    """The loss left the finite numbers."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or another signal stopped the work; the message says what is saved."""

    _render_traceback_ = UserError._render_traceback_

    def __init__(self, message: str, signal_number: int = signal.SIGINT):
        super().__init__(message)
        self.signal_number = signal_number
