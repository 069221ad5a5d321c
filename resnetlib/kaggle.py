"""A competition's pickle in, a checked CSV out."""

import csv
import io
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from . import files
from .data import Dataset, load_dataset, normalization
from .device import EVALUATION_BATCH, no_tf32, resolve_device_settings
from .errors import ConfigError, DataError, closest_match
from .evaluation import Evaluation, evaluate
from .paths import display_path, output_folder
from .resnet import NUM_CLASSES
from .runs.find import find_run
from .runs.run import Run

HEADER = ["ID", "Labels"]
SHAPE = (32, 32, 3)  # height, width, channels: unlike the rows of CIFAR-10's own files
CLASS_COMPETITION = 10_000  # images
EXPECTED = "expected a pickle of {'data': uint8 (N, 32, 32, 3), 'ids': N different ids}"
PACKED = {b"PK\x03\x04": "ZIP", b"\x1f\x8b": "gzip"}  # how downloads of a competition begin
TTA_MODES = {  # of each image, whose logits are averaged; mirror and translations as in airbench
    "none": "1 (the image itself)",
    "flip": "2 (itself and mirrored), logits averaged",
    "flip_and_shift": "6 (three positions, each also mirrored), logits averaged",
}


@dataclass(frozen=True)
class CompetitionTestSet:
    """Images uint8 (N, 3, 32, 32) and their ids, in the order of the file.

    `labels`, int64 (N,), are there only in a rehearsal.
    """

    path: Path
    images: Tensor
    ids: tuple[str, ...]
    labels: Tensor | None = None

    def describe(self, dataset: Dataset) -> dict[str, str]:
        """What was read, beside the data that the network was trained on, for reading."""
        count = f"{len(self.ids):,}"
        if self.labels is None and len(self.ids) != CLASS_COMPETITION:
            count += f" (the class competition has {CLASS_COMPETITION:,})"
        rehearsal = f"none given: a rehearsal on the labelled test set of {dataset.name}"
        per_channel = "{:.3f}, {:.3f}, {:.3f}".format
        own_mean = (self.images.double().mean((0, 2, 3)) / 255).tolist()
        return {
            "file": display_path(self.path) if self.labels is None else rehearsal,
            "images": count,
            "ids": ", ".join(self.ids[:3]) + f", … {self.ids[-1]}",
            "mean (R, G, B) of these images": per_channel(*own_mean),
            "mean of the training images": per_channel(*dataset.mean),
        }


def read_competition(path: str | Path) -> CompetitionTestSet:
    """Read the pickle that a competition gives, never running code from it.

    It holds `data`, uint8 (N, 32, 32, 3), and `ids`, a list or array of N whole numbers or texts;
    keys and texts may be bytes. Raises `DataError`, in one line, for whatever is otherwise: another
    order of the axes is told, not guessed.
    """
    path = Path(path).expanduser()
    content = _unpickle(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: its content is {_kind(content)}; {EXPECTED}")
    content = {_text(key, str(key)): value for key, value in content.items()}
    for key in ("data", "ids"):
        if key not in content:
            found = ", ".join(map(repr, content)) or "none"
            raise DataError(f"{path} has no key {key!r}; its keys: {found}; {EXPECTED}")
    images = _images(path, content["data"])
    return CompetitionTestSet(path, images, _ids(path, content["ids"], len(images)))


def _unpickle(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    for beginning, name in PACKED.items():
        if content.startswith(beginning):
            raise DataError(f"{path} is a {name} archive; unpack it and name the file inside")
    try:
        return files.unpickle_arrays(content)
    except pickle.UnpicklingError as error:
        raise DataError(f"{path}: {error}; {EXPECTED}") from None
    except Exception as error:  # a damaged pickle raises whatever it happens upon
        raise DataError(
            f"{path} is no readable pickle ({type(error).__name__}); {EXPECTED}"
        ) from None


def _images(path: Path, data: Any) -> Tensor:
    if not isinstance(data, np.ndarray):
        raise DataError(f"{path}: data is {_kind(data)}; {EXPECTED}")
    remedy = {
        (3, 32, 32): "; its channels come first: data.transpose(0, 2, 3, 1) puts them last",
        (3072,): "; for rows as in CIFAR-10's own files, "
        "data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1) does it",
    }
    if data.shape[1:] != SHAPE or not len(data):
        raise DataError(
            f"{path}: data has the shape {data.shape}, expected (N, 32, 32, 3)"
            f"{remedy.get(data.shape[1:], '')}"
        )
    if data.dtype != np.uint8:
        raise DataError(f"{path}: data is {data.dtype}, expected uint8 from 0 to 255")
    return torch.from_numpy(np.array(data.transpose(0, 3, 1, 2), order="C"))  # always a copy


def _ids(path: Path, ids: Any, images: int) -> tuple[str, ...]:
    listed = ids.tolist() if isinstance(ids, np.ndarray) else ids
    if not isinstance(listed, list | tuple):
        raise DataError(f"{path}: ids is {_kind(ids)}; {EXPECTED}")
    if len(listed) != images:
        raise DataError(f"{path} has {images:,} images and {len(listed):,} ids")
    rows: dict[str, int] = {}
    for row, value in enumerate(listed):
        text = _text(value)
        if not text:
            raise DataError(f"{path}: ids[{row}] is {value!r}, expected a whole number or text")
        if text in rows:
            raise DataError(f"{path}: the id {text!r} stands twice, at {rows[text]} and {row}")
        rows[text] = row
    return tuple(rows)


def _text(value: Any, otherwise: str = "") -> str:
    """A whole number, text, or bytes of UTF-8 as text."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return otherwise
    allowed = isinstance(value, int | str) and not isinstance(value, bool)
    return str(value) if allowed else otherwise


def _kind(value: Any) -> str:
    return f"of type {type(value).__name__}"


def dry_run(dataset: Dataset) -> CompetitionTestSet:
    """The labelled test set, written as a competition's pickle and read back from it."""
    images, labels = dataset.test
    data = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"rehearsal-{dataset.name}.pkl"
        path.write_bytes(pickle.dumps({b"data": data, b"ids": list(range(len(data)))}))
        return replace(read_competition(path), labels=labels)


def predict(run: Run, images: Tensor, dataset: Dataset, *, tta: str = "none") -> Tensor:
    """Logits (N, 10) float32 of uint8 images (N, 3, H, W), computed as in the run's own evaluation.

    `dataset` is the run's own: the normalisation comes from its training images. `tta` other than
    "none" averages logits over views of each image (`TTA_MODES`); accuracies with and without it
    are not comparable.
    """
    check_tta(tta)
    compute = resolve_device_settings(run.experiment)
    model = run.model().to(compute.device, memory_format=compute.memory_format)
    mean, std = normalization(run.experiment.recipe, dataset)
    unlabelled = torch.full((len(images),), -1)
    with no_tf32():
        return sum(
            weight
            * evaluate(
                model,
                view,
                unlabelled,
                mean=mean,
                std=std,
                batch_size=EVALUATION_BATCH[compute.device.type],
            ).logits
            for weight, view in _views(images, tta)
        )


def check_tta(tta: str) -> None:
    """Raises `ConfigError` for a name that is not in `TTA_MODES`."""
    if tta not in TTA_MODES:
        close = closest_match(str(tta), TTA_MODES)
        raise ConfigError(f"unknown tta {tta!r}{close} One of: {', '.join(TTA_MODES)}")


def _views(images: Tensor, tta: str) -> Iterator[tuple[float, Tensor]]:
    """Views of the images with their weights, as in airbench (Jordan 2024).

    Half of the weight is on the images in place, a quarter each on them moved by a pixel up and
    left, and down and right.
    """
    if tta == "none":
        yield 1.0, images
        return
    if tta == "flip":
        places = [(1.0, images)]
    else:
        places = [(0.5, images), (0.25, _shift(images, 1)), (0.25, _shift(images, -1))]
    for weight, placed in places:
        yield weight / 2, placed
        yield weight / 2, placed.flip(-1)


def _shift(images: Tensor, by: int) -> Tensor:
    """Images moved diagonally by a pixel; what comes in at the edges is reflected."""
    size = images.shape[-1]
    source = (torch.arange(size) + by).abs()  # -1 -> 1
    source = torch.where(source == size, size - 2, source)
    return images[:, :, source][..., source]


def describe_prediction(
    run: Run, competition: CompetitionTestSet, logits: Tensor, tta: str
) -> dict[str, str]:
    """How sure the network is beside how sure it is of its test set; accuracy in a rehearsal."""
    own = run.evaluation
    confidence = logits.double().softmax(1).amax(1).mean()
    told = {
        "images": f"{len(logits):,}",
        "views of each": TTA_MODES[tta],
        "mean confidence": f"{confidence:.1%}",
        "mean confidence on the labelled test set, one view": f"{own.confidences.mean():.1%}",
    }
    known = f"{own.accuracy:.2%}"
    if competition.labels is None:
        return told | {"accuracy": f"not known here; {known} on the labelled test set, one view"}
    here = Evaluation(logits, competition.labels, own.classes)
    right = int(here.correct.sum())
    measured = f"{here.accuracy:.2%} ({right:,} of {len(logits):,} right)"
    name = "accuracy" if tta == "none" else f"accuracy with tta {tta}"
    told |= {name: measured, "accuracy in the run's own evaluation, one view": known}
    if tta == "none":
        gap = (logits - own.logits).abs().max()
        told["logits"] = (
            f"within {gap:.0e} of the run's own" if gap else "the run's own, bit for bit"
        )
    return told


def least_certain(logits: Tensor, classes: Sequence[str], count: int = 24) -> pd.DataFrame:
    """The images whose two likeliest classes are closest, closest first.

    A row each: index of the image, `first` and `second` class, and their probabilities.
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
    """Where the submission goes: `output`, else a name that tells file, run and views.

    That stands under `<output root>/submissions/`, never in the run folder, whose content is
    recorded. An earlier submission is replaced; `ConfigError` where anything else is in the way.
    """
    check_tta(tta)
    parts = [Path(file).stem, run.record["variant"], run.path.resolve().name]
    parts += [tta] if tta != "none" else []
    root = output_folder(output_root)
    path = Path(output).expanduser() if output else root / "submissions" / f"{'-'.join(parts)}.csv"
    if path.is_dir():
        raise ConfigError(f"output = {display_path(path)} is a folder; name a file in it")
    if path.exists():
        with path.open("rb") as there:
            if there.readline().strip() != ",".join(HEADER).encode():
                raise ConfigError(
                    f"output = {display_path(path)} exists and is not a submission; "
                    "name another file"
                )
    return path


def write_submission(path: Path, ids: Sequence[str], labels: Tensor) -> None:
    """Write `ID,Labels`, a row for each id in the given order; whole or not at all."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(zip(ids, labels.tolist(), strict=True))
    try:
        files.write_text(path, buffer.getvalue())
    except OSError as error:
        raise ConfigError(
            f"output = {display_path(path)} cannot be written: {error.strerror}"
        ) from None


def check_submission(path: str | Path, ids: Sequence[str]) -> pd.DataFrame:
    """The rows of a submission as it stands on disk: ID (text) and Labels (0 to 9).

    Raises `DataError` that names the first wrong line: header, number of rows, ids and their
    order, labels.
    """
    path = Path(path)
    lines = _lines(path)
    header = lines[0][1] if lines else []
    if header != HEADER:
        raise DataError(f"{path}, line 1: {','.join(header)!r}, expected {','.join(HEADER)!r}")
    allowed = [str(label) for label in range(NUM_CLASSES)]
    for (line, row), expected in zip(lines[1:], ids, strict=False):
        where = f"{path}, line {line}"
        if len(row) != len(HEADER):
            raise DataError(f"{where}: {','.join(row)!r}, expected an id and a label")
        if row[0] != expected:
            raise DataError(f"{where}: the id is {row[0]!r}, expected {expected!r}")
        if row[1] not in allowed:
            raise DataError(f"{where}: the label is {row[1]!r}, expected 0 to {NUM_CLASSES - 1}")
    count = len(lines) - 1
    if count != len(ids):
        raise DataError(f"{path} has {count:,} rows below its header, expected {len(ids):,}")
    return pd.DataFrame([row for _, row in lines[1:]], columns=HEADER).astype({"Labels": int})


def _lines(path: Path) -> list[tuple[int, list[str]]]:
    """The rows of a CSV, each with the number of the line that it ends on."""
    try:
        reader = csv.reader(io.StringIO(path.read_bytes().decode(), newline=""))
        return [(reader.line_num, row) for row in reader]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV: {error}") from None


def describe_submission(
    path: Path, run: Run, competition: CompetitionTestSet, tta: str
) -> dict[str, str]:
    """Where a checked submission stands and how it is uploaded."""
    views = "" if tta == "none" else f", tta {tta}"
    message = f"{run.record['variant']}, seed {run.record['seed']}{views}"
    command = f'kaggle competitions submit -c COMPETITION -f "{display_path(path)}" -m "{message}"'
    rehearsal = "not this one: a rehearsal has the ids and images of the labelled test set"
    return {
        "submission": display_path(path),
        "rows": f"{len(competition.ids):,}, all checked",
        "upload": command if competition.labels is None else rehearsal,
    }


def submit(
    run: Run | str | Path,
    file: str | Path,
    output: str | Path | None = None,
    *,
    tta: str = "none",
    data_root: str | Path | None = None,
    output_root: str | Path | None = None,
) -> Path:
    """Read the competition's file, predict with the run, write and check the CSV; its path.

    `run` is one, or what `find_run` takes: a run folder or a variant, whose best run is used.
    Raises `ConfigError` before any work for what cannot be done, `DataError` for bad data.
    """
    run = run if isinstance(run, Run) else find_run(run, output_root, dataset="cifar10", best=True)
    path = submission_path(run, file, tta=tta, output=output, output_root=output_root)
    competition = read_competition(file)
    dataset = load_dataset(run.experiment.dataset, data_root)
    logits = predict(run, competition.images, dataset, tta=tta)
    write_submission(path, competition.ids, logits.argmax(1))
    check_submission(path, competition.ids)
    return path
