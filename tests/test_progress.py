"""Progress of a training, in a terminal, in a notebook and elsewhere."""

import errno
import io
import os
import pty
import subprocess
import sys
import termios
from contextlib import nullcontext, suppress

import pytest

from resnetlib import progress
from resnetlib.progress import EpochProgress, duration, epoch_line

ROW = {
    "epoch": 3,
    "train_loss": 1.25,
    "train_accuracy": 0.5,
    "test_loss": 1.5,
    "test_accuracy": 0.456,
    "lr": 0.1,
    "seconds": 60.0,
}


def test_one_line_per_epoch_outside_a_terminal(capsys):
    with EpochProgress(first_epoch=3, epochs=10, steps_per_epoch=5) as progress:
        for _ in range(5):
            progress.step()
        progress.epoch(ROW)
    output = capsys.readouterr()
    assert output.err == ""
    (line,) = output.out.splitlines()
    assert "epoch  3/10" in line
    assert "45.60%" in line
    assert "(7 min left)" in line


@pytest.mark.parametrize("interactive", [False, True])
def test_quiet_suppresses_bar_and_lines(capsys, monkeypatch, interactive):
    monkeypatch.setattr(progress, "is_interactive", lambda: interactive)
    for silent in (True, False):
        with progress.quiet() if silent else nullcontext(), EpochProgress(3, 10, 1) as display:
            display.step()
            display.epoch(ROW)
        output = capsys.readouterr()
        assert bool(output.out + output.err) != silent


def test_full_output_does_not_end_a_training(monkeypatch):
    class FullDisk(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", FullDisk())
    with EpochProgress(3, 10, 1) as display:
        display.epoch(ROW)


def test_no_time_left_before_training():
    assert "left" not in epoch_line(ROW | {"epoch": 0}, 10, None)


def test_live_bar_in_a_terminal():
    program = (
        "from resnetlib.progress import EpochProgress\n"
        "with EpochProgress(1, 2, 3) as display:\n"
        "    for _ in range(3): display.step()\n"
        f"    display.epoch({ROW | {'epoch': 1}!r})\n"
    )
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    done = subprocess.run(
        [sys.executable, "-c", program],
        stderr=terminal,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    os.close(terminal)
    drawn = ""
    with suppress(OSError):  # Linux's end of a pseudo-terminal
        while piece := os.read(controller, 100_000):
            drawn += piece.decode()
    assert "epoch 2/2" in drawn
    assert "test 45.6%" in drawn
    assert done.stdout == b""


def test_notebook_opened_by_a_server_is_interactive(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not progress.is_interactive()
    monkeypatch.setenv("JPY_SESSION_NAME", "run_experiment.ipynb")
    assert progress.is_interactive()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.24, "8.2 s"),
        (59.9, "59.9 s"),
        (59.97, "1 min 0 s"),
        (554, "9 min 14 s"),
        (11100, "3 h 05 min"),
    ],
)
def test_duration_uses_readable_units(seconds, text):
    assert duration(seconds) == text
