"""Corrupted images: their definition, and the accuracy that is measured on them."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from resnetlib import build_model, load_experiment, schema
from resnetlib.analysis import corruptions
from resnetlib.analysis.corruptions import (
    CORRUPTIONS,
    accuracy_drops,
    corrupt,
    corruption_sample_size,
    describe_robustness,
    robustness,
)
from resnetlib.errors import ConfigError

NAMES = list(CORRUPTIONS)


@pytest.fixture(scope="module")
def photographs():
    """Sixteen smooth random images, which every corruption changes; uint8 (16, 3, 32, 32)."""
    coarse = torch.rand(16, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(coarse, size=(32, 32), mode="bicubic")
    return (60 + 130 * smooth).clamp(0, 255).to(torch.uint8)


def distance(images, others):
    return (images.float() - others.float()).abs().mean().item()


def as_pillow(image):
    return Image.fromarray(np.moveaxis(image.numpy(), 0, -1))


@pytest.mark.parametrize("name", NAMES)
def test_corrupt_grows_with_severity_and_copies(name, photographs):
    before = photographs.clone()
    corrupted = [corrupt(photographs, name, severity) for severity in range(6)]
    assert all((d.dtype, d.shape) == (torch.uint8, photographs.shape) for d in corrupted)
    assert torch.equal(corrupted[0], photographs)
    distances = [distance(d, photographs) for d in corrupted]
    assert distances == sorted(distances)
    assert len(set(distances)) == 6
    assert torch.equal(photographs, before)


@pytest.mark.parametrize("name", NAMES)
def test_corrupt_depends_on_the_seed_alone(name, photographs):
    state = torch.get_rng_state()
    first, again = (corrupt(photographs, name, 3, seed=1) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    other = corrupt(photographs, name, 3, seed=2)
    assert torch.equal(first, other) == (name != "noise")


def test_noise_has_its_standard_deviation():
    grey = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, sigma in enumerate((0.04, 0.06, 0.08, 0.09, 0.10), start=1):
        deviation = corrupt(grey, "noise", severity).float().std() / 255
        assert deviation == pytest.approx(sigma, rel=0.03)


def test_blur_is_a_gaussian_of_its_width():
    point = torch.zeros(1, 3, 33, 33, dtype=torch.uint8)
    point[:, :, 16, 16] = 255
    row = corrupt(point, "blur", 5)[0, 0].sum(0).double()  # sigma 1 pixel
    offsets = torch.arange(33) - 16
    assert (row * offsets**2).sum() / row.sum() == pytest.approx(1, abs=0.1)


def test_brightness_and_contrast_apply_their_factors():
    image = torch.tensor([100, 140], dtype=torch.uint8).repeat(1, 3, 4, 2)
    assert corrupt(image, "brightness", 5)[0, 0, 0].tolist() == [160, 224, 160, 224]
    halved = corrupt(image, "contrast", 2)[0, 0, 0]
    assert halved.tolist() == pytest.approx([110, 130, 110, 130], abs=1)


def test_jpeg_equals_pillow(photographs):
    for severity, quality in enumerate((80, 65, 58, 50, 40), start=1):
        buffer = io.BytesIO()
        as_pillow(photographs[0]).save(buffer, "JPEG", quality=quality)
        expected = np.moveaxis(np.asarray(Image.open(buffer)), -1, 0)
        assert (corrupt(photographs[:1], "jpeg", severity)[0].numpy() == expected).all()


def test_pixelation_equals_cifar10_c(photographs):
    small = as_pillow(photographs[3]).resize((20, 20), Image.Resampling.BOX)  # 0.65 of 32
    expected = np.asarray(small.resize((32, 32), Image.Resampling.BOX))
    pixelated = corrupt(photographs, "pixelation", 5)[3].numpy()
    assert (pixelated == np.moveaxis(expected, -1, 0)).all()


def test_rotation_alternates_its_direction():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 14:18] = 255  # a level bar
    first, second = corrupt(image.repeat(2, 1, 1, 1), "rotation", 3)
    assert torch.equal(first.flip(-1), second)
    left = first[0, :, 6].float()  # column 6, 10 pixels left of the middle: lower by 10 tan 18°
    middle = (left * torch.arange(32)).sum() / left.sum()
    assert middle - 15.5 == pytest.approx(9.5 * np.tan(np.radians(18)), abs=0.5)


@pytest.mark.parametrize(
    ("name", "severity", "images", "message"),
    [
        ("nois", 1, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "did you mean 'noise'"),
        ("noise", 6, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "severity = 6: give 0"),
        ("noise", 1, torch.zeros(1, 3, 32, 32), "takes a uint8 tensor"),
    ],
)
def test_corrupt_refuses_bad_arguments(name, severity, images, message):
    with pytest.raises(ValueError, match=message):
        corrupt(images, name, severity)


class Contrast(nn.Module):
    """Predicts class 1 where the standard deviation of the pixels exceeds a threshold."""

    def __init__(self, threshold):
        super().__init__()
        self.threshold = nn.Parameter(torch.tensor(threshold))

    def forward(self, images):
        deviations = images.std((1, 2, 3))
        return torch.stack([self.threshold - deviations, deviations - self.threshold], dim=1)


RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "device": "cpu"}


def test_robustness_evaluates_the_corrupted_images(photographs):
    """The accuracies are those computed from the images that `corrupt` gives."""
    deviations = photographs.float().div(255).std((1, 2, 3))
    threshold = deviations.median().item()
    labels = (deviations > threshold).long()
    accuracies = robustness(Contrast(threshold), photographs, labels, **RAW, seed=5)
    assert list(accuracies.index) == NAMES
    assert list(accuracies.columns) == [0, 1, 2, 3, 4, 5]
    assert (accuracies[0] == 1).all()
    assert accuracies.loc["contrast", 5] == 0.5  # every image is now predicted as class 0
    for name in NAMES:
        for severity in range(1, 6):
            corrupted = corrupt(photographs, name, severity, seed=5).float() / 255
            expected = ((corrupted.std((1, 2, 3)) > threshold) == labels).double().mean()
            assert accuracies.loc[name, severity] == pytest.approx(expected.item(), abs=1 / 16)


def test_robustness_is_the_same_for_the_same_seed(photographs):
    model, labels = Contrast(0.1), torch.arange(16) % 2
    first, again = (robustness(model, photographs, labels, **RAW, seed=1) for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


# Tables of it ------------------------------------------------------------------------------------


@pytest.fixture
def accuracies():
    rows = {
        "blur": [0.9, 0.9, 0.9, 0.85, 0.8, 0.7],
        "noise": [0.9, 0.8, 0.7, 0.5, 0.4, 0.6],
        "rotation": [0.9, 0.88, 0.86, 0.84, 0.82, 0.8],
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=pd.RangeIndex(6))


def test_accuracy_drops_are_in_points_costliest_first(accuracies):
    table = accuracy_drops(accuracies)
    assert list(table.index) == ["noise", "blur", "rotation"]
    assert table["mean drop"].tolist() == pytest.approx([30, 7, 6])
    assert table["largest drop"].tolist() == pytest.approx([50, 20, 10])
    assert table["13 points from severity"].astype(object).tolist() == [2, 5, pd.NA]


def test_drop_of_exactly_13_points_counts():
    accuracies = pd.DataFrame([[0.815, 0.79, 0.685, 0.675, 0.535, 0.385]], index=["pixelation"])
    assert accuracy_drops(accuracies)["13 points from severity"].item() == 2


def test_accuracy_drops_name_augmentations_to_try(accuracies):
    table = accuracy_drops(accuracies, ["rotation", "auto_augment"])
    assert table["in use"].to_dict() == {
        "noise": "–",
        "blur": "auto_augment",
        "rotation": "rotation, auto_augment",
    }
    assert table.loc["blur", "to try"] == "gaussian_blur, rand_augment, trivial_augment"
    assert table.loc["noise", "to try"] == "–"


def test_describe_robustness_gives_clean_accuracy_and_mean_drop(accuracies):
    facts = describe_robustness(accuracies, 1000)
    assert facts["clean accuracy"].startswith("90.00% (95 % interval 87.9")
    assert facts["images"] == "1,000"
    assert facts["mean drop"] == "14.3 points over 3 corruptions"


def test_corruptions_name_existing_augmentations():
    augmentations = set(schema.tagged_models(schema.Augment))
    named = {name for kind in CORRUPTIONS.values() for name in kind.augmentations}
    assert named <= augmentations
    assert {"mixup", "cutout", "cutmix"} <= augmentations  # named in analyze_errors.ipynb
    assert corruptions.caption("jpeg", 5) == "quality 40"


@pytest.mark.parametrize("wanted", [0, 451, True, 2.5])
def test_corruption_sample_size_refuses_bad_numbers(wanted):
    with pytest.raises(ConfigError, match=r"images = .*: give a whole number from 1 to 450"):
        corruption_sample_size(wanted, nn.Identity(), 450)


def test_corruption_sample_size_falls_with_model_size():
    counts = [
        corruption_sample_size(None, build_model(load_experiment(name).architecture), 10_000)
        for name in ("lite", "improved_sgd", "resnet18")
    ]
    assert counts == [5_700, 1_000, 1_000]
    assert corruption_sample_size(7, nn.Identity(), 450) == 7
