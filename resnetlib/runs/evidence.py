"""The evidence that a run folder gives: each file read once, of bounded size, whoever wrote it."""

import json
import re
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..config import load_experiment
from ..data import Dataset, load_dataset, normalization
from ..device import choose_device
from ..download import find_cifar10
from ..errors import UserError, is_out_of_memory, shorten_line
from ..evaluation import Evaluation, evaluate
from ..experiment import Experiment
from ..paths import real_path
from ..resnet import ResNet
from ..schema import NUM_CLASSES
from .record import RECORD_KEYS
from .run import (
    LARGEST_FILES,
    LARGEST_OTHER_FILE,
    WEIGHTS,
    parse_predictions,
    parse_table,
    parse_weights,
)

DETAIL_CHARACTERS = 300


class Unavailable(Exception):
    """What a claim rests on is not there; the claim is not checked."""


class LacksMemory(Unavailable):
    """This machine has too little memory, which says nothing of the run."""


class Damaged(Unavailable):
    """A file that is there and cannot be read."""


@dataclass
class Evidence:
    """The files of a run folder, each read once, and the data set that it was measured on."""

    folder: Path
    find_dataset: Callable[[str], Dataset | Unavailable]
    contents: dict[str, Any] = field(default_factory=dict)

    def read(self, name: str) -> Any:
        """The parsed content of a file. Raises `Unavailable` where it is missing or damaged."""
        if name not in self.contents:
            try:
                self.contents[name] = PARSERS[name](self.path(name))
            except Unavailable as error:
                self.contents[name] = error
            except Exception as error:  # of any parser, on a file that a stranger may have written
                self.contents[name] = self._unreadable(name, error)
        if isinstance(self.contents[name], Unavailable):
            raise self.contents[name]
        return self.contents[name]

    def _unreadable(self, name: str, error: Exception) -> Unavailable:
        # The messages of other errors may hold text of the file.
        is_python_or_torch = isinstance(error, MemoryError | RuntimeError)
        if name == WEIGHTS and is_python_or_torch and is_out_of_memory(error):
            return LacksMemory(f"{name} cannot be read: this machine lacks memory")
        reason = without_folder(describe_error(error), self.folder).removeprefix(f"{name}: ")
        return Damaged(f"{name} is damaged: {reason}")

    def path(self, name: str) -> Path:
        """The path of a regular file of bounded size; `Unavailable` where it is anything else."""
        path = self.folder / name
        try:
            info = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            kept = "no weights are kept" if name == WEIGHTS else f"{name} is missing"
            raise Unavailable(kept) from None
        except OSError as error:
            raise Damaged(f"{name} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(info.st_mode):
            raise Damaged(f"{name} is not a regular file")
        if info.st_size > LARGEST_FILES.get(name, LARGEST_OTHER_FILE):
            raise Damaged(f"{name} is too large: {info.st_size:,} bytes")
        return path

    def has(self, name: str) -> bool:
        try:
            self.path(name)
        except Damaged:
            return True
        except Unavailable:
            return False
        return True

    @property
    def record(self) -> dict[str, Any]:
        return self.read("run.json")

    @property
    def status(self) -> str:
        """The status in run.json; `unknown` where that cannot be read."""
        try:
            return self.record["status"]
        except Unavailable:
            return "unknown"

    @property
    def experiment(self) -> Experiment:
        return self.read("experiment.yaml")

    @property
    def metrics(self) -> dict[str, Any]:
        return self.read("metrics.json")

    @property
    def predictions(self) -> Evaluation:
        """The kept logits of the selected weights."""
        return self.read("predictions.npz")[0]

    @property
    def history(self) -> pd.DataFrame:
        """Raises `Unavailable` for an imported run, which was trained elsewhere."""
        if self.status == "imported":
            raise Unavailable("an imported run has no history of its own")
        return self.read("history.csv")

    @property
    def dataset(self) -> Dataset:
        dataset = self.find_dataset(self.experiment.dataset)
        if isinstance(dataset, Unavailable):
            raise dataset
        return dataset

    @cached_property
    def model(self) -> ResNet:
        """The network with the kept weights in float32. Raises `Unavailable` if they do not fit."""
        weights: Mapping[str, Tensor] = self.read(WEIGHTS)
        with torch.device("meta"):  # takes no memory, whatever experiment.yaml says
            model = ResNet(self.experiment.architecture)
        try:
            model.load_state_dict(weights, assign=True)
            fits = all(
                tensor.is_floating_point()
                for name, tensor in weights.items()
                if not name.endswith("num_batches_tracked")
            )
        except RuntimeError:
            fits = False
        if not fits:
            raise Unavailable(f"{WEIGHTS} does not fit experiment.yaml")
        return model.eval()

    @cached_property
    def recomputed(self) -> Evaluation:
        """The kept weights on the genuine test set, in float32."""
        model, dataset = self.model, self.dataset
        mean, std = normalization(self.experiment.recipe, dataset)
        evaluated = partial(evaluate, model, *dataset.test, mean=mean, std=std)
        device = choose_device("auto")
        try:
            try:
                return evaluated(device=device)
            except RuntimeError as error:
                if device.type == "cpu" or not is_out_of_memory(error):
                    raise
                return evaluated(device="cpu")  # which often has more memory than a card
        except (MemoryError, RuntimeError) as error:  # the weights fit: it is this machine
            kind = LacksMemory if is_out_of_memory(error) else Unavailable
            raise kind(f"the weights cannot be evaluated here: {error}") from None


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    def refuse(word: str) -> None:
        raise ValueError(f"it holds {word}")

    content = json.loads(path.read_bytes(), parse_constant=refuse)
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def _read_record(path: Path) -> dict[str, Any]:
    record = _read_json(path)
    for key, kind in (RECORD_KEYS | {"artifacts": dict}).items():
        if not isinstance(record.get(key), kind):
            raise ValueError(f"its {key!r} is missing or of the wrong kind")
    return record


def _read_experiment(path: Path) -> Experiment:
    return load_experiment(str(path))


HISTORY_COLUMNS = {"epoch", "lr", "seconds"} | {
    f"{split}_{measure}" for split in ("train", "test") for measure in ("loss", "accuracy")
}


def _read_history(path: Path) -> pd.DataFrame:
    history = parse_table(path.read_bytes()).astype(float)
    missing = HISTORY_COLUMNS.difference(history)
    if missing:
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return history


def _read_table(path: Path) -> pd.DataFrame:
    table = parse_table(path.read_bytes(), index_col=0, keep_default_na=False)
    table.index = table.index.map(str)
    return table.astype(float)


def _read_predictions(path: Path) -> tuple[Evaluation, np.ndarray]:
    """The kept logits with labels and classes, and the kept predictions."""
    kept = parse_predictions(path.read_bytes())
    logits, labels, predictions, classes = (
        kept[name] for name in ("logits", "labels", "predictions", "classes")
    )
    if predictions.shape != labels.shape:
        raise ValueError("its arrays do not belong together")
    if not np.isfinite(logits).all():
        raise ValueError("its logits are not finite")
    for numbers in (labels, predictions):
        if numbers.dtype.kind != "i" or numbers.min() < 0 or numbers.max() >= NUM_CLASSES:
            raise ValueError("it holds a label that is not a class")
    evaluation = Evaluation(
        torch.from_numpy(logits.astype(np.float32)),
        torch.from_numpy(labels.astype(np.int64)),
        tuple(map(str, classes)),
    )
    return evaluation, predictions


def _read_weights(path: Path) -> dict[str, Tensor]:
    return parse_weights(path.read_bytes())


def _read_notebook(path: Path) -> str:
    """All text that the cells of a notebook printed or displayed."""
    outputs = [out for cell in _read_json(path)["cells"] for out in cell.get("outputs", [])]
    texts = [
        text
        for out in outputs
        for text in (out.get("text", ""), *out.get("data", {}).values())
        if isinstance(text, str | list)
    ]
    return "\n".join(text if isinstance(text, str) else "".join(text) for text in texts)


PARSERS: dict[str, Callable[[Path], Any]] = {
    "run.json": _read_record,
    "experiment.yaml": _read_experiment,
    "summary.txt": _read_text,
    "history.csv": _read_history,
    "metrics.json": _read_json,
    "confusion_matrix.csv": _read_table,
    "per_class.csv": _read_table,
    "predictions.npz": _read_predictions,
    WEIGHTS: _read_weights,
    "notebook.ipynb": _read_notebook,
    "report.html": _read_text,
}


def describe_error(error: Exception) -> str:
    """The error in one printable line."""
    if isinstance(error, MemoryError | RecursionError):
        return "it needs too much memory or is nested too deeply"
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return str(error) or type(error).__name__


def without_folder(detail: str, folder: Path) -> str:
    """The text with the names of files in the folder instead of their paths."""
    paths = "|".join(re.escape(str(path)) for path in {real_path(folder), folder})
    return re.sub(rf"(?<![\w./-])(?:{paths})[\\/]", "", detail)


def clean_line(detail: str) -> str:
    """One line of bounded length without control characters: file contents may be hostile."""
    return shorten_line(detail, DETAIL_CHARACTERS)


def genuine_data(name: str, root: str | Path | None) -> Dataset | Unavailable:
    """The data set, which is never downloaded for this; the reason where it is not here."""
    if name == "cifar10" and find_cifar10(root) is None:
        return Unavailable("CIFAR-10 is not on this machine")
    try:
        return load_dataset(name, root)
    except (UserError, OSError) as error:
        return Unavailable(str(error))
