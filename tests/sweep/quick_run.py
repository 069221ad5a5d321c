"""Stands for `resnetlib run`: a run folder like a real one within a second, without torch.

An epoch takes 0.1 s. `lr` decides what else happens: 0.9 fails, 0.8 diverges, 0.7 is killed once.
`starts.txt` has a line for every process that worked on the run.
"""

import math
import os
import signal
import sys
import time

from resnetlib import files
from resnetlib.config import load_experiment, parse_value
from resnetlib.experiment import parse_duration
from resnetlib.sweep.process import end_with_stdin

EPOCH_SECONDS = 0.1


def main(variant, *words):
    words = [word for word in words if word != "--attached"]
    experiment = load_experiment(
        variant,
        **{name: parse_value(value) for name, value in zip(words[1::3], words[2::3], strict=True)},
    )
    end_with_stdin()
    folder = experiment.folder
    rate = experiment.recipe.optimizer.lr
    record = {"variant": variant, "experiment": experiment.digest, "seed": experiment.seed}
    with files.lock(folder / ".lock"):
        with (folder / "starts.txt").open("a") as file:
            file.write(f"{os.getpid()}\n")
        first = len((folder / "starts.txt").read_text().splitlines()) == 1

        def leave(status, code):
            files.write_json(folder / "run.json", record | {"status": status})
            sys.exit(code)

        signal.signal(signal.SIGTERM, lambda *_: leave("interrupted", 143))
        files.write_json(folder / "run.json", record | {"status": "running"})
        if rate == 0.9:
            print("Error: it fails")
            leave("failed", 1)
        if rate == 0.8:
            leave("diverged", 1)
        history = folder / "history.csv"
        if not history.exists():
            files.write_text(history, "epoch,test_accuracy,holdout_accuracy\n")
        rows = history.read_text().splitlines()
        limit = experiment.execution.stop_after
        until = time.monotonic() + parse_duration(limit) if limit else math.inf
        for epoch in range(len(rows), experiment.recipe.epochs + 1):
            time.sleep(EPOCH_SECONDS)
            accuracy = 0.5 + 0.01 * epoch - abs(rate - 0.1)
            rows.append(f"{epoch},{accuracy:.4f},{accuracy - 0.05:.4f}")
            files.write_text(history, "\n".join(rows) + "\n")
            if time.monotonic() > until:
                leave("interrupted", 4)
            if rate == 0.7 and first:
                os.kill(os.getpid(), signal.SIGKILL)
        for name in ("notebook.ipynb", "report.html"):
            files.write_text(folder / name, "a page")
        leave("done", 0)


main(*sys.argv[1:])
