"""A Slurm array script: one `resnetlib run` line per task, resumed after its time limit."""

import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .. import files
from ..errors import ConfigError
from ..experiment import parse_duration
from ..paths import display_path
from .pool import Needs
from .task import Task

HOURS = 12  # of a task unless `stop_after` is given
MARGIN_SECONDS = 600  # between `stop_after` and the limit, for start, compilation and report

SCRIPT = """\
#!/bin/bash
# Written by `resnetlib sweep --slurm`: one run per array task. Submit it with
#     sbatch {file}
# Edit the lines below for your cluster (partition, account, time). A task that reaches its limit,
# or whose node fails, is queued again and resumes; a finished run is loaded. `scancel` ends a task
# after its step, with its state saved. Fetch the data on a login node first: resnetlib data
#SBATCH --job-name=resnetlib
#SBATCH --array=0-{last}{at_once}
#SBATCH --cpus-per-task={cpus}
#SBATCH --mem={memory}M{gpus}
#SBATCH --time={time}
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="{log}"

cd {directory} || exit 1
PATH={programs}:"$PATH"{environment}

case "$SLURM_ARRAY_TASK_ID" in
{lines}
esac
run=$!
is_over=
trap 'is_over=1; kill -TERM "$run"' USR1  # sent 120 s before the limit: the run saves its state
trap : TERM  # of `scancel`, which the run gets as well: wait until it has saved its state

wait "$run"
while kill -0 "$run" 2>/dev/null; do  # `wait` returns early on a signal
    wait "$run"
done
wait "$run"  # the shell remembers how it ended
status=$?
if [ "$status" -eq 4 ] || [ "$status$is_over" = 1431 ]; then  # `stop_after`, or the limit
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$status"
"""


def slurm_script(
    tasks: Sequence[Task], needs: Needs, file: Path, at_once: int | None = None
) -> str:
    """The script that carries out these tasks, `at_once` at a time; `file` is where it will be."""
    stop_after = tasks[0].experiment.execution.stop_after
    seconds = parse_duration(stop_after) + MARGIN_SECONDS if stop_after else HOURS * 3600
    lines = []
    for number, task in enumerate(tasks):
        settings = needs.settings(task)
        lines.append(f"{number}) resnetlib run {shlex.join(task.words(**settings))} & ;;")
    return SCRIPT.format(
        file=shlex.quote(str(file)),
        last=len(tasks) - 1,
        at_once=f"%{at_once}" if at_once else "",
        cpus=needs.cpus,
        memory=math.ceil(needs.memory * 1000),
        # A share of a GPU is rounded up: how to share one differs between clusters.
        gpus=f"\n#SBATCH --gpus={math.ceil(needs.gpus)}" if needs.gpus else "",
        time=format_time(seconds),
        log=f"{file.stem.replace('%', '%%')}-%a.log",
        directory=shlex.quote(str(Path.cwd())),
        programs=shlex.quote(str(Path(sys.executable).parent)),
        environment="".join(
            f"\nexport {name}={value}" for name, value in needs.environment().items()
        ),
        lines="\n".join(lines),
    )


def format_time(seconds: float) -> str:
    """Such as `1-02:30:00`, as Slurm writes days, hours, minutes and seconds."""
    minutes = math.ceil(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}-{hours:02}:{minutes:02}:00" if days else f"{hours:02}:{minutes:02}:00"


def write_slurm_script(
    tasks: Sequence[Task], needs: Needs, file: Path, at_once: int | None = None
) -> None:
    """Write the script. Raises `ConfigError` rather than replace another file."""
    if file.exists() and b"`resnetlib sweep --slurm`" not in files.read_head(file, 1000):
        raise ConfigError(f"{display_path(file)} exists and is another file; name a new one")
    files.write_text(file, slurm_script(tasks, needs, file, at_once))
