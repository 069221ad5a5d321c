"""The process of one run: `resnetlib run`, which ends when the process that started it does."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..signals import input_ended

GRACE_SECONDS = 60  # for the last step and a checkpoint, before a process is killed
PROGRAM = ("-P", "-m", "resnetlib", "run")  # no module of the working directory is imported


@dataclass(frozen=True)
class Exit:
    """How a run's process ended. The code is None where the process or its node was lost."""

    code: int | None
    message: str = ""


class RunProcess:
    """`resnetlib run` as a child process in a group of its own.

    Its standard input is a pipe. When that closes, on `ask_to_stop` or with the parent's end, the
    run saves its state and exits: this works after SIGKILL and on Windows too.

    Args:
        words: the arguments of `resnetlib run`.
        log: a file that the output is appended to.
        environment: variables to set.
        niceness: how much the process gives way to others, from 0 to 19.
        program: what Python runs.
    """

    def __init__(
        self,
        words: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        niceness: int = 0,
        program: Sequence[str] | None = None,
    ):
        log.parent.mkdir(parents=True, exist_ok=True)
        self.log = log
        self.log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as file:
            self.process = subprocess.Popen(  # noqa: S603  resnetlib itself
                [sys.executable, *(program or PROGRAM), *words, "--attached"],
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | environment,
                # Ctrl-C reaches the parent alone, which stops the run.
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows
                process_group=None if niceness else 0,
                start_new_session=niceness > 0,  # whose priority is lowered as a whole
            )
        if niceness:
            lower_priority(self.process.pid, niceness)

    def poll(self) -> Exit | None:
        """How it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        self.process.stdin.close()
        if code < 0:  # what it printed last is no error
            return Exit(code, f"killed by signal {-code} ({signal.strsignal(-code)})")
        return Exit(code, self._message() if code else "")

    def ask_to_stop(self) -> None:
        self.process.stdin.close()

    def close(self, grace: float = GRACE_SECONDS) -> None:
        """Stop the process, and whatever it has started; wait until it is gone."""
        self.ask_to_stop()
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace)
        finally:
            if self.process.poll() is None:
                self._kill()

    def _kill(self) -> None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.wait()

    def _message(self) -> str:
        """The error in the output, in one line."""
        lines = []
        with contextlib.suppress(OSError), self.log.open("rb") as file:  # it may be removed
            file.seek(self.log_start)
            lines = file.read().decode("utf-8", "replace").splitlines()
        errors = [line for line in lines if line.startswith("Error: ")]
        return (errors or [line for line in lines if line.strip()] or [""])[-1].removeprefix(
            "Error: "
        )


def lower_priority(pid: int, niceness: int) -> None:
    """Let other processes go first, also those of other sessions."""
    with contextlib.suppress(OSError, AttributeError):  # it has ended; Windows
        os.setpriority(os.PRIO_PROCESS, pid, niceness)
    # Linux gives every session a share of its own, whatever its processes' niceness (sched(7)).
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/autogroup").write_text(str(niceness), encoding="utf-8")


def end_with_stdin() -> None:
    """From here on the end of standard input ends this process as SIGTERM does."""
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 1024):
        pass
    input_ended.set()
    if os.name == "nt":  # where os.kill would end the process at once
        import _thread

        _thread.interrupt_main(signal.SIGTERM)
    else:
        os.kill(os.getpid(), signal.SIGTERM)


def wait_for(process: RunProcess) -> Exit:
    """How the process ended; it ends early if this one is interrupted."""
    try:
        while (end := process.poll()) is None:
            time.sleep(0.1)
        return end
    finally:
        process.close()
