"""A run killed at any point of any save, then resumed, ends in the bits of an uninterrupted one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from resnetlib.runs import checkpoint
from resnetlib.runs.checkpoint import Checkpointer, last_position, save_checkpoint
from resnetlib.training import EpochPosition

pytestmark = pytest.mark.slow

PARTS = 16  # of the exhaustive test, half a minute each


def killed_everywhere(part, parts):
    command = [sys.executable, str(Path(__file__).with_name("crash_points.py")), part, parts]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_checkpoints_take_one_per_cent_of_the_time(tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: clock.now))
    training = SimpleNamespace(epochs_done=3, progress=EpochPosition())
    saves, checkpointer = [], Checkpointer(tmp_path, {})
    monkeypatch.setattr(checkpointer, "save", lambda _: saves.append(clock.now))
    checkpointer.on_start(training)
    checkpointer.cost = 2.0  # seconds, of the save before
    for clock.now in (100.0, 199.0, 200.0):
        checkpointer.after_epoch(training)
        checkpointer.after_step(training)
    assert saves == [200.0, 200.0]
    checkpointer.cost, saves[:] = 0.1, []
    for clock.now in (9.0, 10.0, 179.0, 180.0):
        checkpointer.after_step(training)  # of a long epoch: every three minutes
    assert saves == [180.0]


def test_save_checkpoint_replaces_an_empty_folder(tmp_path):
    path = tmp_path / "checkpoints" / "epoch-00001-step-000000.pt"
    path.mkdir(parents=True)
    assert last_position(tmp_path) is None
    save_checkpoint(tmp_path, 1, 0, {}, {"checkpoints": {}})
    assert path.is_file() and last_position(tmp_path) == (1, 0)


def test_resume_is_bit_exact_after_a_kill():
    found = killed_everywhere(0, few := 48)
    assert found["points"] > 300  # every file operation of eight saves, and the results
    assert found["checked"] > found["points"] / few
    assert found["failures"] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(PARTS))
def test_resume_is_bit_exact_after_any_kill(part):
    assert killed_everywhere(part, PARTS)["failures"] == []
