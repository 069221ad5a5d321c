"""Data sets: content, splits and caching."""

import os
import weakref

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from resnetlib import data, download, load_dataset, load_experiment
from resnetlib.data import split_holdout
from resnetlib.errors import ConfigError
from resnetlib.experiment import TRAINING_IMAGES


def test_digits_equal_scikit_learn_upscaled(digits):
    images = torch.cat([digits.train[0], digits.test[0]])
    assert images.shape == (1797, 3, 32, 32)
    assert images.dtype == torch.uint8
    original = load_digits().images
    small = images[:, 0, ::4, ::4].numpy()
    assert sorted(map(bytes, small)) == sorted(
        map(bytes, np.round(original / 16 * 255).astype(np.uint8))
    )
    assert torch.equal(images[:, 0], images[:, 2])


def test_digits_split_is_stratified_and_fixed(digits):
    again = data.DATASETS["digits"](None)  # read again, not the kept one
    assert torch.equal(digits.test[0], again.test[0])
    shares = torch.bincount(digits.test[1]) / 450 - torch.bincount(digits.train[1]) / 1347
    assert shares.abs().max() < 0.002


@pytest.mark.slow
def test_cifar10_equals_torchvision(cifar10, cifar10_folder):
    from torchvision.datasets import CIFAR10

    for train, (images, labels) in ((True, cifar10.train), (False, cifar10.test)):
        theirs = CIFAR10(cifar10_folder.parent, train=train, download=False)
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert labels.tolist() == theirs.targets
        assert list(cifar10.classes) == theirs.classes


@pytest.mark.slow
def test_cifar10_statistics(cifar10):
    assert cifar10.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=5e-5)
    assert cifar10.std == pytest.approx((0.2470, 0.2435, 0.2616), abs=5e-5)
    assert cifar10.per_image_std == pytest.approx((0.2023, 0.1994, 0.2010), abs=5e-5)
    pixels = cifar10.train[0].double() / 255
    assert cifar10.std == pytest.approx(pixels.std((0, 2, 3), correction=0).tolist())


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ({"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
        ("none", (0, 0, 0), (1, 1, 1)),
    ],
    ids=str,
)
def test_normalization_of_a_recipe(digits, normalize, mean, std):
    recipe = load_experiment("lite", normalize=normalize).recipe
    assert data.normalization(recipe, digits) == (mean, std)


def test_load_dataset_unknown_names_nearest():
    with pytest.raises(ConfigError, match=r"'cifar'; did you mean 'cifar10'"):
        load_dataset("cifar")
    with pytest.raises(ConfigError, match=r"unknown dataset \['cifar10'\]; did you mean 'cifar10'"):
        load_dataset(["cifar10"])


def test_load_dataset_reads_once(monkeypatch):
    first = load_dataset("digits")
    monkeypatch.setitem(data.DATASETS, "digits", lambda folder: pytest.fail("read again"))
    assert load_dataset("digits") is first


def test_load_dataset_rereads_after_a_change_in_place(monkeypatch):
    monkeypatch.setattr(data, "_last_dataset", {})  # not the object that other tests share
    first = load_dataset("digits")
    original = first.train[0].clone()
    first.train[0][:5].zero_()  # by a view
    again = load_dataset("digits")
    assert again is not first
    assert torch.equal(again.train[0], original)


def test_load_dataset_rereads_after_a_change_through_numpy(monkeypatch):
    """Which torch does not count."""
    monkeypatch.setattr(data, "_last_dataset", {})
    first = load_dataset("digits")
    original = first.test[0].clone()
    first.test[0][0].numpy()[:, 3:5] = 255
    assert torch.equal(load_dataset("digits").test[0], original)


def test_load_dataset_keeps_one_set(monkeypatch):
    for name in ("one", "two"):
        monkeypatch.setitem(data.DATASETS, name, data.DATASETS["digits"])
    first = weakref.ref(load_dataset("one"))
    load_dataset("two")
    assert first() is None


def test_load_dataset_rereads_changed_files(small_archive, monkeypatch):
    """Also where the new content has the same size."""
    monkeypatch.setattr(data, "CIFAR10_MD5", download.CIFAR10_MD5)
    monkeypatch.setitem(data.DATASETS, "cifar10", lambda folder: data.DATASETS["digits"](None))
    folder = small_archive.parent / download.CIFAR10_FOLDER
    first = load_dataset("cifar10", folder)
    assert load_dataset("cifar10", folder.parent) is first
    os.utime(folder / "test_batch", ns=(1, 1))
    assert load_dataset("cifar10", folder) is not first


def test_examples_are_of_the_first_classes(digits):
    images, names = digits.examples(4)
    assert names == ["0", "1", "2", "3"]
    for label, image in enumerate(images):
        place = next(i for i, other in enumerate(digits.train[0]) if torch.equal(other, image))
        assert digits.train[1][place] == label


def test_split_holdout_is_stratified_by_seed(digits):
    labels = digits.train[1]
    kept, held_out = split_holdout(labels, 300, seed=1)
    assert sorted([*kept.tolist(), *held_out.tolist()]) == list(range(len(labels)))
    assert len(held_out) == 300
    assert (torch.bincount(labels[held_out]) - 30).abs().max() <= 1
    assert torch.equal(split_holdout(labels, 300, seed=1)[1], held_out)
    assert not torch.equal(split_holdout(labels, 300, seed=2)[1], held_out)


def test_split_holdout_too_large_is_refused(digits):
    with pytest.raises(ConfigError, match=r"holdout = 5000 of 1347"):
        split_holdout(digits.train[1], 5000, seed=0)


@pytest.mark.parametrize("name", TRAINING_IMAGES)
def test_training_images_are_those_of_the_data_sets(name, request):
    dataset = request.getfixturevalue("cifar10") if name == "cifar10" else load_dataset(name)
    assert len(dataset.train[1]) == TRAINING_IMAGES[name]
