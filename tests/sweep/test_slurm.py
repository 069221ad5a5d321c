"""The array script, carried out by bash with a Slurm that only writes down what it is asked."""

import os
import signal
import subprocess
import time

import pytest

from resnetlib.errors import ConfigError
from resnetlib.sweep.grid import expand_grid
from resnetlib.sweep.pool import Needs
from resnetlib.sweep.slurm import format_time, slurm_script, write_slurm_script

PROGRAM = """#!/bin/bash
echo "$0 $*" >> {log}
[ "${{0##*/}}" = resnetlib ] || exit 0
trap 'echo term >> {log}; sleep 0.3; exit 143' TERM
touch {started}
for _ in $(seq {steps}); do sleep 0.1; done
exit {code}
"""


def carry_out(tmp_path, script, number, *, steps=0, code=0, end=None):
    """The exit code of one task of the array, and the programs that it called.

    `end` is a signal, which Slurm sends to the script before the limit, and otherwise to all of it.
    """
    log, started, programs = (tmp_path / name for name in ("log", "started", "programs"))
    programs.mkdir()
    for name in ("resnetlib", "scontrol"):
        text = PROGRAM.format(log=log, started=started, steps=steps, code=code)
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    lines = script.splitlines()
    (path,) = [number for number, line in enumerate(lines) if line.startswith("PATH=")]
    lines[path] = f'PATH={programs}:"$PATH"'
    job = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "77"}
    process = subprocess.Popen(
        ["bash", "-c", "\n".join(lines)], env=os.environ | job, process_group=0
    )
    while end and not started.exists():
        assert process.poll() is None or started.exists()
        time.sleep(0.01)
    if end == signal.SIGUSR1:
        process.send_signal(end)
    elif end:
        os.killpg(process.pid, end)
    process.wait(60)
    return process.returncode, log.read_text().replace(f"{programs}/", "").splitlines()


@pytest.fixture
def script(tmp_path):
    tasks = expand_grid(["lite"], [("seed", "0..1"), ("depths", "[1,2,2],[2,2,2]")])
    return slurm_script(tasks, Needs(threads=2), tmp_path / "sweep.sh")


def test_script_has_one_run_per_task(script):
    assert "#SBATCH --array=0-3\n#SBATCH --cpus-per-task=2\n#SBATCH --mem=2000M\n" in script
    assert "#SBATCH --time=12:00:00\n#SBATCH --signal=B:USR1@120\n#SBATCH --requeue" in script
    assert "\n2) resnetlib run lite -p seed 1 -p depths '[1, 2, 2]' -p threads 2 & ;;\n" in script
    assert script.count("resnetlib run lite") == 4


def test_script_limits_the_tasks_at_once(tmp_path):
    tasks = expand_grid(["lite"], [("seed", "0..3")])
    assert "#SBATCH --array=0-3%2\n" in slurm_script(tasks, Needs(), tmp_path / "sweep.sh", 2)


def test_task_of_the_array_runs_its_line(script, tmp_path):
    code, calls = carry_out(tmp_path, script, 3)
    assert code == 0
    assert calls == ["resnetlib run lite -p seed 1 -p depths [2, 2, 2] -p threads 2"]


def test_task_that_reaches_its_limit_is_queued_again(script, tmp_path):
    code, calls = carry_out(tmp_path, script, 0, steps=300, end=signal.SIGUSR1)
    assert code == 143
    assert calls[1:] == ["term", "scontrol requeue 77_0"]


def test_task_that_is_cancelled_saves_its_state_and_ends(script, tmp_path):
    """The run gets one signal: a second would end it at once."""
    code, calls = carry_out(tmp_path, script, 0, steps=300, end=signal.SIGTERM)
    assert code == 143
    assert calls[1:] == ["term"]


@pytest.mark.parametrize(("code", "queued"), [(4, True), (1, False)])
def test_task_is_queued_again_after_its_time_not_after_a_failure(script, tmp_path, code, queued):
    ended, calls = carry_out(tmp_path, script, 1, code=code)
    assert ended == code
    assert ("scontrol requeue 77_1" in calls) == queued


def test_limit_follows_stop_after(tmp_path):
    tasks = expand_grid(["lite"], [("stop_after", "30h")])
    script = slurm_script(tasks, Needs(gpus=0.5), tmp_path / "sweep.sh")
    assert "#SBATCH --time=1-06:10:00\n" in script
    assert "#SBATCH --gpus=1\n" in script and "-p stop_after 30h" in script
    assert format_time(3600) == "01:00:00"


def test_script_replaces_only_a_script(tmp_path):
    tasks = expand_grid(["lite"], [])
    path = tmp_path / "sweep.sh"
    path.write_text("something else")
    with pytest.raises(ConfigError, match="exists and is another file"):
        write_slurm_script(tasks, Needs(), path)
    path.unlink()
    for _ in range(2):
        write_slurm_script(tasks, Needs(), path)
    assert "#SBATCH" in path.read_text()
