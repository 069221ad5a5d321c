"""Damaged images: what they are, and what they do to a network's accuracy."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from resnetlib import schema, train
from resnetlib.analysis import corruptions
from resnetlib.analysis.corruptions import CORRUPTIONS, accuracy_drops, corrupt, robustness, verdict
from resnetlib.analysis.errors import evaluation_settings

NAMES = list(CORRUPTIONS)


@pytest.fixture(scope="module")
def photographs():
    """Sixteen smooth random images, which every damage changes; uint8 (16, 3, 32, 32)."""
    coarse = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    return (60 + 130 * smooth).clamp(0, 255).to(torch.uint8)


def distance(images, others):
    return (images.float() - others.float()).abs().mean().item()


def as_pillow(image):
    return Image.fromarray(np.moveaxis(image.numpy(), 0, -1))


@pytest.mark.parametrize("name", NAMES)
def test_damage_grows_with_strength_and_leaves_the_given_images_alone(name, photographs):
    before = photographs.clone()
    damaged = [corrupt(photographs, name, severity) for severity in range(6)]
    assert all((d.dtype, d.shape) == (torch.uint8, photographs.shape) for d in damaged)
    assert torch.equal(damaged[0], photographs)
    distances = [distance(d, photographs) for d in damaged]
    assert distances == sorted(distances)
    assert len(set(distances)) == 6
    assert torch.equal(photographs, before)


@pytest.mark.parametrize("name", NAMES)
def test_damage_is_a_function_of_the_seed_and_moves_no_global_state(name, photographs):
    state = torch.get_rng_state()
    first, again = (corrupt(photographs, name, 3, seed=1) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    other = corrupt(photographs, name, 3, seed=2)
    assert torch.equal(first, other) == (name != "noise")


def test_noise_has_the_deviation_that_it_says():
    grey = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, sigma in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        deviation = corrupt(grey, "noise", severity).float().std() / 255
        assert deviation == pytest.approx(sigma, rel=0.03)


def test_blur_spreads_a_point_as_a_gaussian_of_its_width():
    point = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    point[:, :, 16, 16] = 255
    row = corrupt(point, "blur", 5)[0, 0].sum(0).double()  # sigma 1 pixel
    places = torch.arange(33) - 16
    assert (row * places**2).sum() / row.sum() == pytest.approx(1, abs=0.1)


def test_brightness_and_contrast_are_the_factors_they_say():
    image = torch.tensor([100, 140], dtype=torch.uint8).repeat(1, 3, 4, 2)
    assert corrupt(image, "brightness", 5)[0, 0, 0].tolist() == [160, 224, 160, 224]
    halved = corrupt(image, "contrast", 2)[0, 0, 0]
    assert halved.tolist() == pytest.approx([110, 130, 110, 130], abs=1)


def test_jpeg_is_that_of_pillow(photographs):
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        buffer = io.BytesIO()
        as_pillow(photographs[0]).save(buffer, "JPEG", quality=quality)
        expected = np.moveaxis(np.asarray(Image.open(buffer)), -1, 0)
        assert (corrupt(photographs[:1], "jpeg", severity)[0].numpy() == expected).all()


def test_pixelation_is_that_of_cifar10_c(photographs):
    small = as_pillow(photographs[3]).resize((20, 20), Image.Resampling.BOX)  # 0.65 of 32
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    damaged = corrupt(photographs, "pixelation", 5)[3].numpy()
    assert (damaged == np.moveaxis(expected, -1, 0)).all()


def test_neighbours_are_turned_opposite_ways():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 14:18] = 255  # a level bar
    first, second = corrupt(image.repeat(2, 1, 1, 1), "rotation", 3)
    assert torch.equal(first.flip(-1), second)
    left = first[0, :, 6].float()  # column 6, 10 pixels left of the middle: lower by 10 tan 18°
    middle = (left * torch.arange(32)).sum() / left.sum()
    assert middle - 15.5 == pytest.approx(9.5 * np.tan(np.radians(18)), abs=0.5)


@pytest.mark.parametrize(
    ("name", "severity", "images", "told"),
    [
        ("nois", 1, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "did you mean 'noise'"),
        ("noise", 6, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "severity = 6: give 0"),
        ("noise", 1, torch.zeros(1, 3, 32, 32), "takes uint8"),
    ],
)
def test_a_mistake_is_told_in_one_line(name, severity, images, told):
    with pytest.raises(ValueError, match=told):
        corrupt(images, name, severity)


def test_a_trained_network_loses_accuracy_to_damage(tiny, few_digits):
    network = {"depths": [1, 1, 1], "widths": [4, 8, 16]}  # 96 % right after four epochs
    experiment = tiny(epochs=4, batch_size=32, **network)
    run, (images, labels) = train(experiment), few_digits.test
    settings = evaluation_settings(experiment, few_digits)
    accuracies = robustness(run.model(), images, labels, **settings)
    assert list(accuracies.index) == NAMES
    assert list(accuracies.columns) == [0, 1, 2, 3, 4, 5]
    assert len(set(accuracies[0])) == 1
    strongest = accuracies[0] - accuracies[5]
    assert strongest["noise"] > 0
    assert (strongest[["blur", "contrast", "rotation"]] > 0.3).all()


# What is said of it ------------------------------------------------------------------------------


@pytest.fixture
def accuracies():
    rows = {
        "blur": [0.9, 0.9, 0.9, 0.85, 0.8, 0.7],
        "noise": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        "rotation": [0.9, 0.88, 0.86, 0.84, 0.82, 0.8],
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=pd.RangeIndex(6))


def test_drops_are_in_points_costliest_first(accuracies):
    table = accuracy_drops(accuracies)
    assert list(table.index) == ["noise", "blur", "rotation"]
    assert table["mean drop"].tolist() == pytest.approx([30, 7, 6])
    assert table["strongest"].tolist() == pytest.approx([50, 20, 10])
    assert table["loses 13 from"].astype(object).tolist() == [2, 5, pd.NA]


def test_the_verdict_names_the_costliest_the_thirteen_points_and_what_to_try(accuracies):
    told = verdict(accuracies, 1000, ["mixup"])
    assert "**Noise costs most**: 30.0 points on average" in told
    assert "from 90.00% on the undamaged images (1,000 of them" in told
    assert "loses as much to noise from σ 0.06 and blur from σ 1 px" in told
    assert "It does not to rotation" in told
    assert "- noise: no augmentation here does such damage. `mixup` (in use)" in told
    assert "- blur: `auto_augment`" in told


def test_a_robust_network_is_told_so(accuracies):
    told = verdict(accuracies.loc[["rotation"]], 1000, ["rotation"])
    assert "No damage measured here costs this network as much" in told
    assert "- rotation: `rotation` (in use), `auto_augment`" in told


def test_every_augmentation_advised_is_one_of_ours():
    ours = schema.tagged_models(schema.Augment)
    advised = {name for kind in CORRUPTIONS.values() for name in kind.augmentations}
    assert advised <= set(ours)
    assert {"mixup", "cutout", "cutmix"} <= set(ours)  # named in the verdict
    assert corruptions.caption("jpeg", 5) == "quality 40"
