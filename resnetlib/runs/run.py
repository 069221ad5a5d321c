"""Read a run folder. What `run.json` has a checksum of is checked where it is read."""

import csv
import io
import json
import os
import statistics
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..config import known_variants, load_experiment, read_variant
from ..errors import RunError, counted, shorten, shorten_line
from ..experiment import NOT_RECIPE, Experiment, Published
from ..paths import display_path, expand_home
from ..schema import NUM_CLASSES

if TYPE_CHECKING:  # the record and the metrics of a run are read without torch and pandas
    import numpy as np
    import pandas as pd
    from torch import Tensor, nn

    from ..evaluation import Evaluation

WEIGHTS = "model.safetensors"
ARTIFACTS = (
    "experiment.yaml",
    "summary.txt",
    "history.csv",
    "metrics.json",
    "confusion_matrix.csv",
    "per_class.csv",
    "predictions.npz",
    WEIGHTS,
    "figures/confusion_matrix.png",
    "figures/curves.png",
    "figures/mistakes.png",
    "figures/reliability.png",
)
STATUSES = ("running", "done", "failed", "interrupted", "diverged", "imported")
FINISHED = ("done", "imported")  # of these, those whose artifacts are complete
PAGES = ("report.html", "notebook.ipynb")  # made from a run; older records have no checksum of them
# Bytes that are read: ten times or more what a run of a thousand epochs leaves. Parsed, JSON of a
# stranger's takes some twenty times as much memory.
LARGEST_FILES = {
    "run.json": files.LARGEST_JSON,  # with a checksum of each checkpoint: 0.1 MB
    "metrics.json": files.LARGEST_JSON,
    "history.csv": 2**22,
    "confusion_matrix.csv": 2**16,
    "per_class.csv": 2**16,
    "predictions.npz": 2**23,  # also when unpacked
    WEIGHTS: 2**30,
}
LARGEST_OTHER_FILE = 2**24  # a notebook has 0.8 MB
MOST_COLUMNS = 100  # of a table; pandas takes minutes for a hundred thousand
CHECKPOINTS = "checkpoints/epoch-*.pt"
COMPARED = (  # label, name in `published` and in metrics.json, scale
    ("parameters", "parameters", 1),
    ("train accuracy, last epoch", "train_accuracy", 100),
    ("test accuracy, last epoch", "test_accuracy", 100),
    ("test accuracy, best test epoch", "best_test_accuracy", 100),
)

SELECTED = {  # which epoch's weights are kept, by the recipe's `select`
    "last": "last",
    "best_holdout": "best on the held-out images",
    "best_test": "best on the test set, which biases it optimistically",
}
RECIPE_CAVEAT = "The recipe was chosen knowing a test accuracy, which biases its results upwards."


@dataclass(frozen=True)
class Run:
    """One experiment carried out with one seed, as its folder records it."""

    path: Path

    @cached_property
    def record(self) -> dict[str, Any]:
        """`run.json`: status, fingerprint, versions, checksums."""
        path = self.path / "run.json"
        with _named(path):
            try:
                record = files.read_json(path)
            except json.JSONDecodeError:
                raise ValueError("it is not JSON") from None
            if not isinstance(record, dict):
                raise ValueError("it is not a JSON object")
            if not isinstance(record.get("status"), str):
                raise ValueError("it lacks a 'status'")
            return record

    def read(self, name: str) -> bytes:
        """The content of a file of the run.

        Raises `RunError` where it cannot be read, and where the run is finished and the content is
        not what `run.json` recorded.
        """
        path = self.path / name
        with _named(path):
            content = files.read_bytes(path, LARGEST_FILES.get(name, LARGEST_OTHER_FILE))
            if self.record["status"] in FINISHED:
                self._check(name, content)
            return content

    def _check(self, name: str, content: bytes) -> None:
        artifacts = self.record.get("artifacts")
        if not isinstance(artifacts, dict) or name not in {*artifacts, *PAGES}:
            raise ValueError("run.json has no checksum of it")
        if name in artifacts and artifacts[name] != files.sha256_of(content):
            raise ValueError("it is not what run.json recorded")

    def keeps(self, name: str) -> bool:
        """Whether the run has the file, undamaged."""
        try:
            self.read(name)
        except RunError:
            return False
        return True

    @property
    def status(self) -> str:
        """`running`, `done`, `failed`, `interrupted`, `diverged` or `imported`.

        A run that no process works on any more is `interrupted`, whatever it last recorded.
        """
        status = self.record["status"]
        if status == "running" and not files.is_locked(self.path / ".lock"):
            return "interrupted"
        return status

    @property
    def is_imported(self) -> bool:
        """Whether the weights were trained elsewhere, so that only their evaluation is ours."""
        return self.record["status"] == "imported"

    @property
    def origin(self) -> str:
        """Such as `seed 0`, or `imported 12fca82f` by the SHA-256 of the file."""
        if self.is_imported:
            return f"imported {self.record['source']['sha256'][:8]}"
        return f"seed {self.record['seed']}"

    @property
    def machine(self) -> str:
        """What the run was computed on and how finely."""
        mark = self.record["fingerprint"]
        cores = f"{counted(mark['threads'], 'core')} of " if mark["device"] == "cpu" else ""
        return f"{cores}{mark['processor']}, {mark['precision']}"

    @cached_property
    def experiment(self) -> Experiment:
        self.read("experiment.yaml")
        return load_experiment(str(self.path / "experiment.yaml"))

    @cached_property
    def has_own_recipe(self) -> bool:
        """Whether network and recipe are those of the variant's file as it is today.

        Seed and data set may be others. Where the variant has no file, the run's overrides decide;
        of a file that is not valid nothing is known.
        """
        record = self.record
        own = read_variant(record["variant"])
        if own is None:
            has_file = record["variant"] in known_variants()
            return not has_file and not record["overrides"].keys() - NOT_RECIPE
        same = {"seed": record["seed"], "dataset": record["dataset"]}
        return record["experiment"] == own.model_copy(update=same).digest

    @cached_property
    def history(self) -> "pd.DataFrame":
        """One row an epoch; losses in nats, lr as used.

        Epoch 0 is the network before training, on the first 2,000 images of each split (in older
        runs on all of them). Raises `RunError` for weights that were trained elsewhere.
        """
        if self.is_imported:
            raise RunError(f"{display_path(self.path)} has no history: it was trained elsewhere")
        content = self.read("history.csv")
        with _named(self.path / "history.csv"):
            return parse_table(content)

    def history_rows(self) -> Iterator[dict[str, str]]:
        """The rows of `history.csv` as they are written, one at a time, without pandas."""
        content = self.read("history.csv")
        with _named(self.path / "history.csv"):
            check_columns(content)
            yield from csv.DictReader(io.StringIO(content.decode()))

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """`metrics.json`; accuracies are fractions of 1."""
        content = self.read("metrics.json")
        with _named(self.path / "metrics.json"):
            metrics = json.loads(content)
            if not isinstance(metrics, dict):
                raise ValueError("it is not a JSON object")
            return metrics

    @cached_property
    def evaluation(self) -> "Evaluation":
        """The selected weights on the test set, from the kept logits."""
        import torch

        from ..evaluation import Evaluation

        content = self.read("predictions.npz")
        with _named(self.path / "predictions.npz"):
            kept = parse_predictions(content)
            logits, labels = (torch.from_numpy(kept[name]) for name in ("logits", "labels"))
            return Evaluation(logits, labels, tuple(kept["classes"].tolist()))

    @property
    def summary(self) -> str:
        return self.read("summary.txt").decode(errors="replace")

    @property
    def headline(self) -> str:
        """The test accuracy with its 95 % interval, in a sentence, and how it came about."""
        metrics = self.metrics
        low, high = metrics["test_accuracy_interval_95"]
        epochs = "" if self.is_imported else f" after epoch {metrics['epochs']}"
        caveat = f"\n{RECIPE_CAVEAT}" if self.recipe_selected_on_test else ""
        return (
            f"Test accuracy {metrics['test_accuracy']:.2%}{epochs} "
            f"(95 % interval {low:.2%} to {high:.2%} over {metrics['test_images']:,} images; "
            f"{self.origin}), cross-entropy {metrics['test_loss']:.4f}.{caveat}"
            f"\n{self.selection}"
        )

    @property
    def recipe_selected_on_test(self) -> bool:
        """Whether a choice in the recipe was made knowing a test accuracy.

        The variant's file also answers for runs that were recorded before it said so. Imported
        weights have another recipe.
        """
        if self.is_imported:
            return False
        own = read_variant(self.experiment.variant) or self.experiment
        return own.recipe_selected_on_test or self.experiment.recipe_selected_on_test

    @property
    def selection(self) -> str:
        """Which weights were kept, and so which the figures are of, with their calibration."""
        metrics, chosen = self.metrics, "Trained elsewhere"
        if not self.is_imported:
            how = SELECTED[metrics["select"]]
            chosen = (
                f"Selected checkpoint: epoch {metrics['selected_epoch']} ({how}), "
                f"test accuracy {metrics['selected_test_accuracy']:.2%}"
            )
        return f"{chosen}, calibration error {metrics['ece']:.2%}."

    @property
    def published(self) -> Published:
        """What was published for the variant's own recipe, on CIFAR-10; nothing for another run.

        The recipe of imported weights is not known: their network decides.
        """
        experiment = self.experiment
        applies = experiment.has_own_network if self.is_imported else self.has_own_recipe
        return experiment.published_for_dataset if applies else Published()

    @property
    def comparison(self) -> "pd.DataFrame":
        """What was published beside what this run measured; accuracies in per cent.

        Where nothing was published for this run that column is empty. Of imported weights the
        epoch is not known.
        """
        import pandas as pd

        metrics, published = self.metrics, self.published
        rows = {}
        for label, name, scale in COMPARED:
            if name not in metrics:
                continue
            label = label.partition(",")[0] if self.is_imported else label
            before, measured = getattr(published, name), scale * metrics[name]
            before = None if before is None else scale * before
            rows[label] = [before, measured, None if before is None else measured - before]
        columns = ["published", "imported" if self.is_imported else "reproduced", "difference"]
        # object: whole numbers beside fractions
        return pd.DataFrame(rows, index=columns, dtype=object).T

    @property
    def files(self) -> dict[str, str]:
        """Every file of the run folder, with its size; the folder first."""
        listed = {name: self.path / name for name in (*self.record["artifacts"], "run.json")}
        sizes = {
            name: f"{path.stat().st_size / 1024:,.1f} KiB"
            for name, path in listed.items()
            if path.is_file()  # weights are not kept for every recorded run
        }
        return {"run folder": display_path(self.path)} | sizes

    def model(self) -> "nn.Module":
        """The network with the selected weights: float32, on the CPU, in evaluation mode."""
        from ..resnet import build_model

        if self.status not in FINISHED:
            raise RunError(
                f"{display_path(self.path)} is not finished: its status is {self.status!r}"
            )
        if not self.has_weights:
            raise RunError(
                f"{display_path(self.path)} has no weights; they are kept for one seed of a variant"
            )
        content = self.read(WEIGHTS)
        with _named(self.path / WEIGHTS):
            model = build_model(self.experiment.architecture)
            model.load_state_dict(parse_weights(content))
            return model.eval()

    @property
    def has_weights(self) -> bool:
        return (self.path / WEIGHTS).is_file()


def group_by_seed(runs: Iterable[Run]) -> list[list[Run]]:
    """The runs of each seed; the lowest seed first."""
    groups: dict[int, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.record["seed"]):
        groups.setdefault(run.record["seed"], []).append(run)
    return list(groups.values())


def seed_accuracies(runs: Iterable[Run]) -> tuple[float, ...]:
    """Test accuracy of finished runs, one for each seed: those that repeat a seed are averaged."""
    return tuple(
        statistics.fmean(run.metrics["test_accuracy"] for run in group)
        for group in group_by_seed(runs)
    )


def load_run(path: str | Path) -> Run:
    """Read a run folder. Raises `RunError` when the path is not one."""
    path = expand_home(path).absolute()
    try:
        is_run = (path / "run.json").is_file()
    except OSError as error:
        raise RunError(f"{shorten(str(path))} cannot be read: {error.strerror}") from None
    if not is_run:
        raise RunError(f"{display_path(path)} is not a run folder: it has no run.json")
    return Run(path)


def folders_with(name: str, root: Path) -> list[Path]:
    """The folders at any depth that have a file of this name, by path.

    Hidden ones are left out, such as `.receiving-*` of a sweep; a link is not followed. One that
    vanishes meanwhile is left out too, where `Path.rglob` raises an error.
    """
    found = []
    for folder, folders, _ in os.walk(root):
        folders[:] = [inner for inner in folders if not inner.startswith(".")]
        if os.path.exists(os.path.join(folder, name)):
            found.append(Path(folder, name))
    return [path.parent for path in sorted(found)]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn whatever reading or parsing a file raises into a `RunError` that names the file."""
    name = f"{display_path(path.parent)}/{path.name}"  # of a link, not of what it leads to
    try:
        yield
    except FileNotFoundError:
        raise RunError(f"{name} is missing") from None
    except Exception as error:  # a stranger may have written the file
        deep = isinstance(error, MemoryError | RecursionError)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = "it needs too much memory or is nested too deeply" if deep else reason
        raise RunError(f"{name} is damaged: {shorten_line(reason)}") from None


def parse_predictions(content: bytes) -> "dict[str, np.ndarray]":
    """The arrays of `predictions.npz`: logits (N, 10), labels (N,), classes (10,) and others."""
    import numpy as np

    files.check_unpacked_size(content, LARGEST_FILES["predictions.npz"])
    with np.load(io.BytesIO(content)) as kept:
        arrays = dict(kept)
    count, shapes = len(arrays["labels"]), (arrays["logits"].shape, arrays["classes"].shape)
    if not count or shapes != ((count, NUM_CLASSES), (NUM_CLASSES,)):
        raise ValueError(f"its arrays are not those of images of {NUM_CLASSES} classes")
    return arrays


def check_columns(table: bytes) -> None:
    """Raise `ValueError` for a CSV file with more columns than any of a run."""
    if any(line.count(b",") >= MOST_COLUMNS for line in table.splitlines()):
        raise ValueError(f"it has more than {MOST_COLUMNS} columns")


def parse_table(content: bytes, **settings: Any) -> "pd.DataFrame":
    """A CSV file of a run; `settings` are those of `pandas.read_csv`."""
    import pandas as pd

    check_columns(content)
    return pd.read_csv(io.BytesIO(content), **settings)


def parse_weights(content: bytes) -> "dict[str, Tensor]":
    """The state dict in a safetensors file; weights may be kept in half precision."""
    import safetensors.torch

    return {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in safetensors.torch.load(content).items()
    }
