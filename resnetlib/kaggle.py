"""Kaggle submissions: read a competition's pickle safely, predict, write a checked CSV."""

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import files, pickles
from .data import Dataset, load_dataset
from .errors import ConfigError, DataError, closest_match, shorten, shorten_line
from .evaluation import Evaluation
from .paths import display_path, expand_home, output_folder, real_path
from .runs.find import find_run
from .runs.prediction import predict_logits
from .runs.run import Run
from .schema import NUM_CLASSES

HEADER = ["ID", "Labels"]
SHAPE = (32, 32, 3)  # height, width, channels: unlike the rows of CIFAR-10's own files
ID_CHARACTERS = 200
LISTED_KEYS = 10
FORMULA = re.compile(r"[=+@]|-(?!\d+$)")  # how one begins in a spreadsheet
EXPECTED = "expected a pickle of {'data': uint8 (N, 32, 32, 3), 'ids': N different ids}"
# Views of each image, whose logits are averaged; mirror and translations as in airbench.
TTA_MODES = {"none": 1, "flip": 2, "flip_and_shift": 6}


@dataclass(frozen=True)
class CompetitionTestSet:
    """Images uint8 (N, 3, 32, 32) and their ids, in the order of the file.

    Only a dry run has `labels`, int64 (N,).
    """

    path: Path
    images: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None

    def describe(self, dataset: Dataset) -> dict[str, str]:
        """File, number, ids and mean of the images, and the mean of the training images."""
        mean = self.images.double().mean((0, 2, 3)) / 255
        dry_run = f"dry run on the labelled test set of {dataset.name}"
        return {
            "file": display_path(self.path) if self.labels is None else dry_run,
            "images": f"{len(self.ids):,}",
            "ids": f"{', '.join(self.ids[:3])}, … {self.ids[-1]}",
            "mean of these images (R, G, B)": _per_channel(mean.tolist()),
            f"mean of the training images of {dataset.name}": _per_channel(dataset.mean),
        }


def _per_channel(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3f}" for value in values)


def read_competition(path: str | Path) -> CompetitionTestSet:
    """Read a competition's pickle without running code from it.

    It holds `data`, uint8 (N, 32, 32, 3), and `ids`, a list or array of N integers or strings;
    keys and strings may be bytes. Raises `DataError`, in one line, for anything else.
    """
    path = expand_home(path)
    content, file = _unpickle(path), display_path(path)
    if not isinstance(content, dict):
        raise DataError(f"{file}: its content is {_kind(content)}; {EXPECTED}")
    content = {_text(key): value for key, value in content.items()}
    for key in ("data", "ids"):
        if key not in content:
            names = [shorten(name, 40) for name in list(content)[:LISTED_KEYS]]
            found = ", ".join(names + ["…"] * (len(content) > LISTED_KEYS)) or "none"
            raise DataError(f"{file} has no key {key!r}; its keys: {found}; {EXPECTED}")
    images = _images(path, content["data"])
    return CompetitionTestSet(path, images, _ids(path, content["ids"], len(images)))


def _unpickle(path: Path) -> Any:
    try:
        content = files.read_bytes(path)
    except OSError as error:
        raise DataError(f"{display_path(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:  # a NUL in the path
        raise DataError(f"{shorten(str(path))} cannot be read: {error}") from None
    file = display_path(path)
    try:
        pickles.check_pickle(content)
        with pickles.bounded_memory(len(content)):
            return pickles.unpickle_arrays(content)
    except Exception as error:  # a damaged pickle may raise anything
        reason = shorten_line(str(error)) or type(error).__name__
        if isinstance(error, ValueError):  # of pickletools or numpy, in terms of the format
            reason = "it is not a pickle, or is damaged"
        raise DataError(f"{file}: {reason}; {EXPECTED}; unpack an archive first") from None


def _images(path: Path, data: Any) -> Tensor:
    file = display_path(path)
    if not isinstance(data, np.ndarray):
        raise DataError(f"{file}: data is {_kind(data)}; {EXPECTED}")
    if data.shape[1:] != SHAPE or not len(data):
        raise DataError(
            f"{file}: data has shape {data.shape}, expected (N, 32, 32, 3): height, width, channels"
        )
    if data.dtype != np.uint8:
        raise DataError(f"{file}: data is {data.dtype}, expected uint8 from 0 to 255")
    return torch.from_numpy(np.array(data.transpose(0, 3, 1, 2), order="C"))  # always a copy


def _ids(path: Path, ids: Any, images: int) -> tuple[str, ...]:
    file = display_path(path)
    if not isinstance(ids, list | tuple | np.ndarray):
        raise DataError(f"{file}: ids is {_kind(ids)}; {EXPECTED}")
    if isinstance(ids, np.ndarray) and ids.ndim != 1:
        raise DataError(f"{file}: ids has shape {ids.shape}, expected (N,)")
    if len(ids) != images:
        raise DataError(f"{file} has {images:,} images and {len(ids):,} ids")
    try:
        listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
    except (SystemError, ValueError):
        raise DataError(f"{file}: ids has text that is not Unicode") from None
    rows: dict[str, int] = {}
    for row, value in enumerate(listed):
        text = _text(value)
        if not text:
            raise DataError(
                f"{file}: ids[{row}] is {shorten_line(shorten(value))}, expected an integer or a "
                f"string of at most {ID_CHARACTERS} printable characters"
            )
        if FORMULA.match(text):
            raise DataError(
                f"{file}: ids[{row}] is {shorten(text)}, which a spreadsheet takes for a formula"
            )
        if text in rows:
            raise DataError(f"{file}: the id {text!r} appears twice, at {rows[text]} and {row}")
        rows[text] = row
    return tuple(rows)


def _text(value: Any) -> str:
    """An integer, a string, or bytes of UTF-8 as a string; anything else as an empty one."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            return ""
    if isinstance(value, bool) or not isinstance(value, int | str):
        return ""
    if isinstance(value, int):
        return str(value) if value.bit_length() <= 64 else ""
    return value if len(value) <= ID_CHARACTERS and value.isprintable() else ""


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def dry_run(dataset: Dataset) -> CompetitionTestSet:
    """The labelled test set, written as a competition's pickle and read back."""
    images, labels = dataset.test
    data = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"dry-run-{dataset.name}.pkl"
        path.write_bytes(pickles.pickle_arrays({b"data": data, b"ids": list(range(len(data)))}))
        return replace(read_competition(path), labels=labels)


def predict(run: Run, images: Tensor, dataset: Dataset, *, tta: str = "none") -> Tensor:
    """Logits (N, 10) float32, computed as in the run's own evaluation.

    Args:
        run: whose weights predict.
        images: uint8 (N, 3, H, W).
        dataset: the run's own; its training images determine the normalisation.
        tta: one of `TTA_MODES`. Others than "none" average the logits over several views of each
            image; accuracies with and without are not comparable.
    """
    check_tta(tta)
    return sum(weight * predict_logits(run, view, dataset) for weight, view in _views(images, tta))


def check_tta(tta: str) -> None:
    """Raises `ConfigError` for a name that is not in `TTA_MODES`."""
    if tta not in TTA_MODES:
        nearest = closest_match(str(tta), TTA_MODES) or "."
        raise ConfigError(f"unknown tta {tta!r}{nearest} One of: {', '.join(TTA_MODES)}")


def _views(images: Tensor, tta: str) -> Iterator[tuple[float, Tensor]]:
    """Views of the images with their weights, as in airbench (Jordan 2024).

    The unshifted images have half of the weight. The images shifted by one pixel up and left, and
    down and right, have a quarter each.
    """
    if tta == "none":
        yield 1.0, images
        return
    if tta == "flip":
        positions = [(1.0, images)]
    else:
        positions = [(0.5, images), (0.25, _shift(images, 1)), (0.25, _shift(images, -1))]
    for weight, view in positions:
        yield weight / 2, view
        yield weight / 2, view.flip(-1)


def _shift(images: Tensor, by: int) -> Tensor:
    """Images shifted diagonally by one pixel, with reflected edges."""
    size = images.shape[-1]
    source = (torch.arange(size) + by).abs()  # -1 -> 1
    source = torch.where(source == size, size - 2, source)
    return images[:, :, source][..., source]


def describe_prediction(
    run: Run, competition: CompetitionTestSet, logits: Tensor, tta: str
) -> dict[str, str]:
    """Mean confidence here and on the labelled test set; in a dry run also the accuracies.

    Args:
        run: whose weights predicted.
        competition: the images.
        logits: what `predict` returned.
        tta: the mode that it used.
    """
    own = run.evaluation
    confidence = logits.double().softmax(1).amax(1).mean()
    facts = {
        "views of each image": str(TTA_MODES[tta]),
        "mean confidence": f"{confidence:.1%}",
        "mean confidence on the labelled test set, 1 view": f"{own.confidences.mean():.1%}",
        "accuracy on the labelled test set, 1 view": f"{own.accuracy:.2%}",
    }
    if competition.labels is not None:
        accuracy = Evaluation(logits, competition.labels).accuracy
        difference = (logits - own.logits).abs().max()
        facts["accuracy of this dry run"] = f"{accuracy:.2%}"
        facts["largest difference from the run's own logits"] = f"{difference:.0e}"
    return facts


def least_certain(logits: Tensor, classes: Sequence[str], count: int = 24) -> pd.DataFrame:
    """The images whose two most likely classes have the closest probabilities, closest first.

    One row per image: its index, `first` and `second` class, and their probabilities.
    """
    probabilities, labels = logits.double().softmax(1).topk(2)
    margins = probabilities[:, 0] - probabilities[:, 1]
    images = margins.argsort(stable=True)[:count]
    names = np.array(classes)[labels[images].numpy()]
    shares = probabilities[images].numpy()
    return pd.DataFrame(
        {
            "first": names[:, 0],
            "first_probability": shares[:, 0],
            "second": names[:, 1],
            "second_probability": shares[:, 1],
        },
        index=pd.Index(images.numpy(), name="image"),
    )


def submission_path(
    run: Run,
    file: str | Path,
    *,
    tta: str = "none",
    output: str | Path | None = None,
    output_root: str | Path | None = None,
) -> Path:
    """Where to write the submission: `output`, or a name made of file, run and views.

    An earlier submission may be replaced. Raises `ConfigError` when it would replace anything else,
    or cannot be written.

    Args:
        run: whose weights predict.
        file: the competition's file.
        tta: one of `TTA_MODES`.
        output: the CSV file; by default one in `<output root>/submissions/`.
        output_root: `outputs/` by default.
    """
    check_tta(tta)
    parts = [Path(file).stem, run.record["variant"].replace("/", "-"), run.path.resolve().name]
    parts += [tta] if tta != "none" else []
    root = output_folder(output_root)
    path = expand_home(output) if output else root / "submissions" / f"{'-'.join(parts)}.csv"
    if path.is_dir():
        raise ConfigError(f"output = {display_path(path)} is a folder; name a file in it")
    header = ",".join(HEADER).encode()
    begin = files.read_head(path, len(header) + 1)
    if path.exists() and begin.rstrip(b"\r\n") != header:
        raise ConfigError(
            f"output = {display_path(path)} exists and is not a submission; name another file"
        )
    folder = next((parent for parent in path.absolute().parents if parent.exists()), None)
    if not folder or not folder.is_dir() or files.is_read_only(folder):
        raise ConfigError(f"output = {display_path(path)} cannot be written")
    return path


def write_submission(path: Path, ids: Sequence[str], labels: Tensor | None) -> None:
    """Write `ID,Labels` atomically, one row per id in the given order.

    Raises `ConfigError` where the notebook has not predicted yet, or not since its file was read.
    """
    if labels is None:
        raise ConfigError("nothing is predicted yet for this run and file: run the cells above")
    table = pd.DataFrame(dict(zip(HEADER, (ids, labels.tolist()), strict=True)))
    try:
        files.write_text(path, table.to_csv(index=False, lineterminator="\n"))
    except OSError as error:
        raise ConfigError(
            f"output = {display_path(path)} cannot be written: {error.strerror}"
        ) from None


def check_submission(path: str | Path, ids: Sequence[str]) -> pd.DataFrame:
    """Read a submission from the disk: ID (string) and Labels (0 to 9).

    Raises `DataError` that names what is wrong: header, first wrong row, or number of rows.
    """
    path = Path(path)
    file = display_path(path)
    try:
        table = pd.read_csv(
            path, header=None, dtype=str, keep_default_na=False, skip_blank_lines=False
        )
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}") from None
    except ValueError as error:  # includes pandas' own errors and those of UTF-8
        raise DataError(f"{file} is not a CSV file: {' '.join(str(error).split())}") from None
    header, *rows = table.to_numpy().tolist()
    if header != HEADER:
        raise DataError(
            f"{file}: the header is {','.join(header)!r}, expected {','.join(HEADER)!r}"
        )
    labels = [str(label) for label in range(NUM_CLASSES)]
    for number, ((found, label), expected) in enumerate(zip(rows, ids, strict=False), start=1):
        if found != expected:
            raise DataError(f"{file}, row {number}: the id is {found!r}, expected {expected!r}")
        if label not in labels:
            raise DataError(
                f"{file}, row {number}: the label is {label!r}, expected 0 to {NUM_CLASSES - 1}"
            )
    if len(rows) != len(ids):
        raise DataError(f"{file} has {len(rows):,} rows, expected {len(ids):,}")
    return pd.DataFrame(rows, columns=HEADER).astype({"Labels": int})


def upload_command(path: Path, run: Run, tta: str) -> str:
    """The command that uploads a submission, for the working directory.

    COMPETITION is to be filled in.
    """
    views = "" if tta == "none" else f", tta {tta}"
    message = f"{run.record['variant']}, {run.origin}{views}"
    try:
        path = Path(os.path.relpath(path))
    except ValueError:  # on another drive than the working directory
        path = real_path(path)
    return f'kaggle competitions submit -c COMPETITION -f "{path}" -m "{message}"'


def submit(
    run: Run | str | Path,
    file: str | Path,
    output: str | Path | None = None,
    *,
    tta: str = "none",
    data_root: str | Path | None = None,
    output_root: str | Path | None = None,
) -> Path:
    """Predict a competition's file with a run, write and check the CSV, and return its path.

    Args:
        run: a run, or what `find_run` takes; a variant means one of its runs on CIFAR-10.
        file: the competition's pickle.
        output: the CSV file; by default one in `<output root>/submissions/`.
        tta: one of `TTA_MODES`.
        data_root: folder to look for the training data in before the usual ones.
        output_root: folder of the user's runs; `outputs/` by default.

    Raises `ConfigError` before any work for a bad argument and `DataError` for bad data.
    """
    run = run if isinstance(run, Run) else find_run(run, output_root, dataset="cifar10")
    path = submission_path(run, file, tta=tta, output=output, output_root=output_root)
    competition = read_competition(file)
    dataset = load_dataset(run.experiment.dataset, data_root)
    logits = predict(run, competition.images, dataset, tta=tta)
    write_submission(path, competition.ids, logits.argmax(1))
    check_submission(path, competition.ids)
    return path
