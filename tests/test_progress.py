"""What a waiting person sees."""

import contextlib
import os
import pty
import subprocess
import sys
import termios

from resnetlib import progress
from resnetlib.progress import EpochProgress, epoch_line

ROW = {
    "epoch": 3,
    "train_loss": 1.25,
    "train_accuracy": 0.5,
    "test_loss": 1.5,
    "test_accuracy": 0.456,
    "lr": 0.1,
    "seconds": 60.0,
}


def test_one_line_an_epoch_where_nobody_watches(capsys):
    with EpochProgress(first_epoch=3, epochs=10, steps_per_epoch=5) as shown:
        for _ in range(5):
            shown.step()
        shown.epoch(ROW)
    output = capsys.readouterr()
    assert output.err == ""
    (line,) = output.out.splitlines()
    assert "epoch  3/10" in line
    assert "45.60%" in line
    assert "(7 min left)" in line


def test_no_time_left_is_told_before_training():
    assert "left" not in epoch_line(ROW | {"epoch": 0}, 10, None)


def test_a_live_bar_in_a_terminal():
    program = (
        "from resnetlib.progress import EpochProgress\n"
        "with EpochProgress(1, 2, 3) as shown:\n"
        "    for _ in range(3): shown.step()\n"
        f"    shown.epoch({ROW | {'epoch': 1}!r})\n"
    )
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    done = subprocess.run(
        [sys.executable, "-c", program], stderr=terminal, stdout=subprocess.PIPE, check=True
    )
    os.close(terminal)
    drawn = ""
    with contextlib.suppress(OSError):  # Linux's end of a pseudo-terminal
        while piece := os.read(controller, 100_000):
            drawn += piece.decode()
    assert "epoch 2/2" in drawn
    assert "test 45.6%" in drawn
    assert done.stdout == b""


def test_a_notebook_is_watched_when_a_server_opened_it(monkeypatch):
    pass

    monkeypatch.setitem(sys.modules, "ipykernel", object())
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    assert not progress.is_interactive()
    monkeypatch.setenv("JPY_SESSION_NAME", "run_experiment.ipynb")
    assert progress.is_interactive()
