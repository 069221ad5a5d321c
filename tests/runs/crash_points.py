"""Kill a run at every point where it could be killed, resume it, and compare the bits.

    python tests/runs/crash_points.py PART OF   # every OF-th point, from point PART on; 0 1 is all

There is a point before, in the middle of and after each file operation, and before each step and
evaluation. Each run is a fork of one process that has everything imported. Prints a JSON line with
the number of points and the failures; used by test_checkpoint.py.
"""

import hashlib
import importlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from pathlib import Path

import torch

from resnetlib import load_dataset, load_experiment, train, training
from resnetlib.runs import artifacts, checkpoint, lifecycle

EXPERIMENT = load_experiment(
    "lite",
    dataset="digits",
    device="cpu",
    depths=[1],
    widths=[4],
    epochs=2,
    batch_size=32,
    lookahead={"k": 2},
    ema={"decay": 0.9},
    augment="crop,mixup",
    select="best_test",
)


class Points:
    """Counts the points that the process passes, and kills it at one of them."""

    def __init__(self, fatal: int | None):
        self.fatal = fatal
        self.passed = 0

    def here(self) -> None:
        if self.passed == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        self.passed += 1

    def around(self, function):
        def watched(*args, **kwargs):
            self.here()
            result = function(*args, **kwargs)
            self.here()
            return result

        return watched

    def install(self) -> None:
        for name in ("fsync", "replace", "unlink", "rmdir", "chmod", "mkdir"):
            setattr(os, name, self.around(getattr(os, name)))
        tempfile.mkstemp = self.around(tempfile.mkstemp)
        os.fdopen = self.halting(os.fdopen)
        training.Trainer.train_step = self.around(training.Trainer.train_step)
        training.Trainer.evaluate = self.around(training.Trainer.evaluate)

    def halting(self, fdopen):
        """Files whose `write` has points before, in the middle and after."""
        points = self

        def opened(*args, **kwargs):
            file = fdopen(*args, **kwargs)
            write = file.write

            class Halting:
                def __enter__(self):
                    return self

                def __exit__(self, *error):
                    file.close()

                def __getattr__(self, name):
                    return getattr(file, name)

                def write(self, content):
                    points.here()
                    half = len(content) // 2
                    write(content[:half])
                    file.flush()
                    points.here()
                    write(content[half:])
                    points.here()

            return Halting()

        return opened


def few_digits():
    digits = load_dataset("digits")
    parts = {
        name: tuple(half[:count].clone() for half in getattr(digits, name))
        for name, count in (("train", 80), ("test", 40))
    }
    return type(digits)(**{**vars(digits), **parts})


def in_a_fork(action) -> int:
    """Wait status of a fork that does this; its output goes nowhere."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        action()
    except BaseException:
        traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    os._exit(0)


def run(folder: Path, fatal: int | None) -> int:
    """Wait status of a run, new or resumed, that is killed at the fatal point, if any."""

    def action():
        points = Points(fatal)
        points.install()
        train(EXPERIMENT, output=folder)
        (folder.parent / f"{folder.name}.points").write_text(str(points.passed))

    return in_a_fork(action)


def outcome(folder: Path) -> str:
    """A hash over the weights, the history but for its times, and the selection."""
    record = json.loads((folder / "run.json").read_text())
    history = [line.rpartition(",")[0] for line in (folder / "history.csv").read_text().split()]
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = [
        record["status"],
        record["artifacts"]["model.safetensors"],
        record["artifacts"]["predictions.npz"],
        history,
        metrics["selected_epoch"],
    ]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def check(folder: Path, expected: str, fatal: list[int]) -> str | None:
    """Kill a run at these points one after the other, then let it end; what went wrong, if any."""
    shutil.rmtree(folder, ignore_errors=True)
    for point in fatal:
        status = run(folder, point)
        if not (os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0):
            return f"killed at {fatal}: resuming failed"
    if run(folder, None) != 0:
        return f"killed at {fatal}: the last run failed"
    if outcome(folder) != expected:
        return f"killed at {fatal}: other bits"
    if list(folder.glob("checkpoints")):
        return f"killed at {fatal}: checkpoints are left"
    temporaries = [path.name for path in folder.rglob(".*") if path.name != ".lock"]
    if temporaries:
        return f"killed at {fatal}: {temporaries} are left"
    return None


def main() -> None:
    part, parts = map(int, sys.argv[1:])
    torch.set_num_threads(1)  # a process that has used more cannot be forked
    for name in ("scipy.stats", "sklearn.metrics", "torch._dynamo"):
        importlib.import_module(name)  # once here, not in every fork
    dataset = few_digits()
    lifecycle.load_dataset = lambda *_: dataset
    checkpoint.CHECKPOINT_SECONDS = 0  # save after every step
    checkpoint.CHECKPOINT_SHARE = math.inf
    artifacts.write_figures = lambda *_: None  # two seconds a run, and they hold no state
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        assert run(root / "whole", None) == 0
        expected = outcome(root / "whole")
        count = int((root / "whole.points").read_text())
        kills = [[point] for point in range(part, count, parts)]
        draw = random.Random(part)
        kills += [draw.choices(range(count), k=3) for _ in range(max(1, len(kills) // 10))]
        failures = in_two_forks(root, expected, kills)
        print(json.dumps({"points": count, "checked": len(kills), "failures": failures}))


def in_two_forks(root: Path, expected: str, kills: list[list[int]]) -> list[str]:
    def half(number: int) -> None:
        found = [check(root / f"run{number}", expected, fatal) for fatal in kills[number::2]]
        (root / f"found{number}").write_text(json.dumps([each for each in found if each]))

    children = []
    for number in range(2):
        child = os.fork()
        if not child:
            half(number)
            os._exit(0)
        children.append(child)
    assert all(os.waitpid(child, 0)[1] == 0 for child in children)
    return [each for n in range(2) for each in json.loads((root / f"found{n}").read_text())]


if __name__ == "__main__":
    main()
