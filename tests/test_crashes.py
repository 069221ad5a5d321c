"""A run killed at any point of any save goes on to the bits of one that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PARTS = 2  # a run of the tests takes one of so many points; about a minute


def killed_everywhere(part, parts):
    command = [sys.executable, str(Path(__file__).with_name("crash_points.py")), part, parts]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_a_share_of_all_points_a_run_ends_in_the_same_bits():
    found = killed_everywhere(0, PARTS)
    assert found["points"] > 300  # every file operation of eight saves, and the results
    assert found["checked"] > found["points"] / PARTS
    assert found["failures"] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("part", range(1, PARTS))
def test_killed_at_every_other_point_a_run_ends_in_the_same_bits(part):
    assert killed_everywhere(part, PARTS)["failures"] == []
