"""One run of a sweep: its experiment, its command line, and its progress."""

import csv
import io
import json
from collections.abc import Mapping
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .. import files
from ..config import FOLDERS, load_experiment, parse_value
from ..errors import ConfigError, RunError
from ..experiment import Execution, Experiment
from ..paths import output_folder
from ..runs.run import LARGEST_FILES, PAGES, Run, load_run
from ..size import measure_size


@dataclass(eq=False)
class Task:
    """A run to train: the arguments of `load_experiment` and the experiment they give."""

    variant: str
    overrides: dict[str, Any]
    experiment: Experiment = field(init=False)

    def __post_init__(self):
        self.experiment = load_experiment(self.variant, **self.overrides)

    @property
    def name(self) -> str:
        return describe(self.variant, self.overrides)

    @cached_property
    def folder(self) -> Path:
        return self.experiment.folder.absolute()

    @property
    def log(self) -> Path:
        """The output of the run's process."""
        root = output_folder(self.experiment.execution.output_root).absolute()
        variant = self.experiment.variant.replace("/", "-")
        return root / "logs" / f"{variant}-{self.folder.name}.log"

    @property
    def run(self) -> Run | None:
        """The finished run; None while there is none, or where its folder is damaged."""
        try:
            run = load_run(self.folder)
            is_same = run.record.get("experiment") == self.experiment.digest
        except RunError:
            return None
        return run if is_same and run.record["status"] == "done" and self.history() else None

    @property
    def is_complete(self) -> bool:
        """Whether the run is finished and has its notebook and report, where it can have them."""
        run = self.run
        has_pages = all((self.folder / name).is_file() for name in PAGES)
        cannot = run and ("not_kept" in run.record or files.is_read_only(self.folder))
        return run is not None and (has_pages or bool(cannot))

    @property
    def has_begun(self) -> bool:
        """Whether the folder has a record of the run."""
        return (self.folder / "run.json").is_file()

    @property
    def recorded_device(self) -> str | None:
        """The kind of device on which the run began; None where its record cannot be read."""
        with suppress(RunError, LookupError, TypeError):
            return load_run(self.folder).record["fingerprint"]["device"]
        return None

    @property
    def is_locked(self) -> bool:
        """Whether a process works on the run, so far as it can be told in a folder of one's own."""
        return not files.is_read_only(self.folder) and files.is_locked(self.folder / ".lock")

    @property
    def is_outdated(self) -> bool:
        """Whether the variant's file has changed, so that its process trains something else."""
        try:
            with redirect_stderr(io.StringIO()):  # notes of settings, printed before
                experiment = load_experiment(self.variant, **self.overrides)
        except ConfigError:
            return True
        return experiment.digest != self.experiment.digest

    @property
    def has_diverged(self) -> bool:
        with suppress(RunError):  # its record is damaged
            return load_run(self.folder).status == "diverged"
        return False

    @property
    def score(self) -> str:
        """The column of the history that runs are compared by: validation where there is one."""
        return "holdout_accuracy" if self.experiment.recipe.holdout else "test_accuracy"

    @cached_property
    def work(self) -> int:
        """Multiply-accumulates of the training, up to a constant factor."""
        return self.experiment.recipe.epochs * measure_size(self.experiment.architecture).macs

    def history(self) -> list[dict[str, str]]:
        """The rows saved so far, without row 0 (the untrained network); none of a damaged file."""
        try:
            path, largest = self.folder / "history.csv", LARGEST_FILES["history.csv"]
            table = io.StringIO(files.read_bytes(path, largest).decode())
            rows = [row for row in csv.DictReader(table) if row["epoch"] != "0"]
            for row in rows:
                float(row[self.score])
        except (OSError, LookupError, TypeError, ValueError, csv.Error):
            return []
        return rows

    def words(self, **settings: Any) -> list[str]:
        """The arguments of `resnetlib run`; `settings` replace overrides of the same name."""
        kept = {
            name: value
            for name, value in self.overrides.items()
            if name.rpartition(".")[2] not in settings
        }
        words = [self.variant]
        for name, value in (kept | settings).items():
            is_folder = name.rpartition(".")[2] in FOLDERS
            words += ["-p", name, str(value) if is_folder else format_value(value)]
        return words


def describe(variant: str, overrides: Mapping[str, Any]) -> str:
    """The variant with its overrides, apart from those that say where and how it runs."""
    settings = [
        f"{name} {format_value(value)}"
        for name, value in overrides.items()
        if name.rpartition(".")[2] not in Execution.model_fields
    ]
    return ", ".join([variant, *settings])


def format_value(value: Any) -> str:
    """The text that `parse_value` reads back as this value."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return value if parse_value(value) == value else json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False)
