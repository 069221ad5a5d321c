"""Data sets as uint8 tensors in memory: read, check and split them.

scikit-learn is imported where it is used: most runs do not need it.
"""

import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import files, pickles
from .download import CIFAR10_MD5, find_cifar10, obtain_cifar10, read_checked
from .errors import ConfigError, closest_match, shorten
from .paths import display_path
from .rng import derive_seed
from .schema import Normalization, Recipe

# Of ImageNet's training images, as torchvision's pretrained networks expect them.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Split = tuple[Tensor, Tensor]  # images uint8 (N, 3, H, W), labels int64 (N,)


@dataclass(frozen=True, eq=False)
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

    def examples(self, count: int) -> tuple[Tensor, list[str]]:
        """The first training image of each of the first `count` classes, and their names.

        Images uint8 (count, 3, 32, 32).
        """
        images, labels = self.train
        firsts = [int((labels == label).nonzero()[0]) for label in range(count)]
        return images[firsts], list(self.classes[:count])

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

        For CIFAR-10 this is (0.2023, 0.1994, 0.2010), often used as `std` by mistake.
        """
        sums = torch.zeros(self.train[0].shape[1], dtype=torch.float64, device="cpu")
        for batch in self.train[0].split(5000):
            sums += (batch.float() / 255).flatten(2).std(2).double().sum(0)
        return tuple((sums / len(self.train[0])).tolist())

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        in_float64 = {"dtype": torch.float64, "device": "cpu"}
        values = torch.arange(256, **in_float64) / 255
        counts = torch.zeros(self.train[0].shape[1], 256, **in_float64)
        for batch in self.train[0].split(2000):  # three times as fast as all at once
            for channel, plane in enumerate(batch.unbind(1)):
                counts[channel] += torch.bincount(plane.reshape(-1), minlength=256)
        shares = counts / counts.sum(1, keepdim=True)  # (3, 256)
        mean = shares @ values
        return mean, ((shares @ values**2) - mean**2).sqrt()


def load_dataset(name: str, root: str | os.PathLike | None = None) -> Dataset:
    """Read `cifar10` or `digits`; never another data set than the one asked for.

    CIFAR-10 is looked for under `root`, `$RESNETLIB_DATA`, `data/` of the project, on Kaggle the
    notebook's data sets, and the user's cache folder, in that order, and downloaded if none of
    them has it; every file is checked against its published MD5. The digits come with scikit-learn.

    A second call for the same files gives the same object, without reading or checking them again.
    Treat its tensors as read-only; a set that was changed in place is read again.

    Raises `ConfigError` for an unknown name, `DataError` for data that are damaged or unavailable.
    """
    check_dataset_name(name)
    folder = (find_cifar10(root) or obtain_cifar10(root)) if name == "cifar10" else None
    key = (name, *_file_states(folder)) if folder else (name,)
    dataset, content = _last_dataset.get(key, (None, None))
    if dataset is None or _checksum(dataset) != content:
        _last_dataset.clear()  # before reading: one set is kept, and no second one beside it
        dataset = DATASETS[name](folder)
        _last_dataset[key] = dataset, _checksum(dataset)
    return dataset


def check_dataset_name(name: Any) -> None:
    """Raises `ConfigError` for what is not the name of a data set."""
    if not isinstance(name, str) or name not in DATASETS:
        hint = closest_match(str(name), DATASETS)
        raise ConfigError(f"unknown dataset {shorten(name)}{hint} One of: {', '.join(DATASETS)}")


_last_dataset: dict[tuple[Any, ...], tuple[Dataset, list[int]]] = {}  # the one that was read last


def _file_states(folder: Path) -> list[tuple[Path, int, int]]:
    """Path, size and time of change of each file of CIFAR-10."""
    paths = [(folder / name).resolve() for name in CIFAR10_MD5]
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def _checksum(dataset: Dataset) -> list[int]:
    """Of its images and labels, which may be changed in place, also through NumPy."""
    tensors = (*dataset.train, *dataset.test)
    return [zlib.adler32(tensor.contiguous().numpy()) for tensor in tensors]


def _load_digits(folder: None) -> Dataset:
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


def _load_cifar10(folder: Path) -> Dataset:
    *batches, meta = CIFAR10_MD5
    images = np.empty((6, 10_000, 3, 32, 32), np.uint8)  # five files to train with, one to test
    labels = np.empty((6, 10_000), np.int64)

    def read(part: int, name: str) -> None:
        batch = pickles.unpickle_arrays(read_checked(folder / name))
        images[part] = batch[b"data"].reshape(images[part].shape)
        labels[part] = batch[b"labels"]

    # As many at once as there are cores: reading and hashing use them all, and each file needs
    # twice its size.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(read, range(6), batches))
    classes = pickles.unpickle_arrays(read_checked(folder / meta))[b"label_names"]
    images, labels = torch.from_numpy(images), torch.from_numpy(labels)
    return Dataset(
        name="cifar10",
        train=(images[:5].flatten(0, 1), labels[:5].flatten()),
        test=(images[5], labels[5]),
        classes=tuple(label.decode() for label in classes),
        checksums=dict(CIFAR10_MD5),
        source=display_path(folder),
    )


DATASETS: dict[str, Callable[[Any], Dataset]] = {
    "cifar10": _load_cifar10,
    "digits": _load_digits,
}


def split_holdout(labels: Tensor, holdout: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices (training, validation) of a stratified split by the seed alone; both sorted.

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
    """Mean and standard deviation per channel for the recipe's `normalize`."""
    match recipe.normalize:
        case "dataset":
            return dataset.mean, dataset.std
        case "per_image_std":
            return dataset.mean, dataset.per_image_std
        case "imagenet":
            return IMAGENET_MEAN, IMAGENET_STD
        case "none":
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        case Normalization(mean=mean, std=std):
            return mean, std
