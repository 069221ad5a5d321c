"""Operations on batches equal torchvision's on each image, bit for bit."""

import math

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from resnetlib.augment import image_ops, policies
from resnetlib.data import load_dataset
from resnetlib.download import find_cifar10


def uniform(low, high):
    return lambda draws, count: low + (high - low) * torch.rand(count, generator=draws)


def whole(low, high):
    return lambda draws, count: torch.randint(low, high + 1, (count,), generator=draws)


def magnitudes(table, offset=0.0):
    """Both signs of a table's values, in float64 as the augmentations pass them."""
    values = offset + torch.cat([table, -table]).double()
    return lambda draws, count: values[torch.randint(len(values), (count,), generator=draws)]


def sheared(image, x=0.0, y=0.0):
    """As torchvision's AutoAugment does it: about the corner, by a slope."""
    shear = [math.degrees(math.atan(slope)) for slope in (x, y)]
    return tv.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])


def translated(image, x=0, y=0):
    return tv.affine(image, angle=0.0, translate=[int(x), int(y)], scale=1.0, shear=[0.0, 0.0])


def affine(name):
    """The operation as the policies compute it: one matrix per image."""
    matrix = policies.MATRICES[name]
    return lambda images, values: image_ops.affine(images, matrix(values, *images.shape[2:]))


# Name of the case: ours, torchvision's, the parameters of the images.
CASES = {
    "brightness": (image_ops.brightness, tv.adjust_brightness, uniform(0, 2)),
    "contrast": (image_ops.contrast, tv.adjust_contrast, uniform(0, 2)),
    "contrast in bins": (
        image_ops.contrast,
        tv.adjust_contrast,
        magnitudes(torch.linspace(0, 0.9, 31), 1.0),
    ),
    "saturation": (image_ops.saturation, tv.adjust_saturation, uniform(0, 2)),
    "saturation in bins": (
        image_ops.saturation,
        tv.adjust_saturation,
        magnitudes(torch.linspace(0, 0.99, 31), 1.0),
    ),
    "hue": (image_ops.hue, tv.adjust_hue, uniform(-0.5, 0.5)),
    "hue at its ends": (image_ops.hue, tv.adjust_hue, magnitudes(torch.tensor([0.0, 0.5]))),
    "sharpness": (image_ops.sharpness, tv.adjust_sharpness, uniform(0, 2)),
    "posterize": (image_ops.posterize, lambda i, v: tv.posterize(i, int(v)), whole(0, 8)),
    "solarize": (image_ops.solarize, tv.solarize, uniform(0, 255)),
    "solarize at levels": (image_ops.solarize, tv.solarize, whole(0, 255)),
    "autocontrast": (
        lambda images, _: image_ops.autocontrast(images),
        lambda image, _: tv.autocontrast(image),
        uniform(0, 1),
    ),
    "equalize": (
        lambda images, _: image_ops.equalize(images),
        lambda image, _: tv.equalize(image),
        uniform(0, 1),
    ),
    "invert": (
        lambda images, _: image_ops.invert(images),
        lambda image, _: tv.invert(image),
        uniform(0, 1),
    ),
    "rotate": (image_ops.rotate, tv.rotate, uniform(-180, 180)),
    "rotate by fifteenths": (
        image_ops.rotate,
        tv.rotate,
        lambda draws, count: 15.0 * whole(-12, 12)(draws, count),
    ),
    "shear_x": (affine("shear_x"), lambda i, v: sheared(i, x=v), uniform(-1, 1)),
    "shear_x in bins": (
        affine("shear_x"),
        lambda i, v: sheared(i, x=v),
        magnitudes(torch.linspace(0, 0.3, 31)),
    ),
    "shear_y": (affine("shear_y"), lambda i, v: sheared(i, y=v), uniform(-1, 1)),
    "shear_y in bins": (
        affine("shear_y"),
        lambda i, v: sheared(i, y=v),
        magnitudes(torch.linspace(0, 0.99, 31)),
    ),
    "translate_x": (affine("translate_x"), lambda i, v: translated(i, x=v), whole(-33, 33)),
    "translate_y": (affine("translate_y"), lambda i, v: translated(i, y=v), whole(-33, 33)),
    "flip": (
        lambda images, v: image_ops.flip(images, v > 0),
        lambda image, v: tv.horizontal_flip(image) if v > 0 else image,
        whole(0, 1),
    ),
}


@pytest.fixture(scope="module")
def pictures():
    """Genuine images, noise, images of one level, of two, and a slope: (N, 3, 32, 32)."""
    genuine = load_dataset("cifar10" if find_cifar10() else "digits").train[0][:150]
    draws = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (20, 3, 32, 32), dtype=torch.uint8, generator=draws)
    levels = torch.tensor([0, 1, 7, 100, 127, 128, 254, 255], dtype=torch.uint8)
    flat = levels[:, None, None, None].expand(8, 3, 32, 32)
    two = torch.where(noise[:8] < 250, flat, flat.flip(0))
    slope = torch.arange(1024).view(1, 1, 32, 32).div(4).to(torch.uint8).expand(1, 3, 32, 32)
    return torch.cat([genuine, noise, flat, two, slope])


@pytest.mark.parametrize("size", [32, 28, 2])
@pytest.mark.parametrize("name", CASES)
def test_operations_equal_torchvision(name, size, pictures):
    operation, reference, draw = CASES[name]
    pictures = pictures[:, :, :size, :size].contiguous()
    values = draw(torch.Generator().manual_seed(1), len(pictures))
    before = pictures.clone()
    result = operation(pictures, values)
    expected = [
        reference(image, value) for image, value in zip(pictures, values.tolist(), strict=True)
    ]
    assert torch.equal(result, torch.stack(expected))
    assert torch.equal(pictures, before)
    assert result.is_contiguous()


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_operations_accept_batches_of_none_and_one(name, count, pictures):
    operation, _, draw = CASES[name]
    result = operation(pictures[:count], draw(torch.Generator().manual_seed(3), count))
    assert result.shape == (count, 3, 32, 32)
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("name", CASES)
def test_operations_never_wait_for_the_device(name):
    """A tensor on `meta` has no values: whatever would read one on the host fails there."""
    operation, _, draw = CASES[name]
    images = torch.empty(6, 3, 32, 32, dtype=torch.uint8, device="meta")
    result = operation(images, draw(torch.Generator().manual_seed(4), 6))
    assert result.shape == images.shape
    assert result.device.type == "meta"


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("padding", [1, 4, 31])
def test_window_equals_torchvision_crop(mode, padding, pictures):
    draws = torch.Generator().manual_seed(5)
    top, left = torch.randint(2 * padding + 1, (2, len(pictures)), generator=draws)
    top[:2], left[:2] = torch.tensor([0, 2 * padding]), torch.tensor([2 * padding, 0])
    result = image_ops.window(pictures, top, left, padding, mode)
    padded = tv.pad(pictures, [padding] * 4, padding_mode=mode)
    for image, row, column, expected in zip(
        result, top.tolist(), left.tolist(), padded, strict=True
    ):
        assert torch.equal(image, tv.crop(expected, row, column, 32, 32))


def test_erase_and_paste_equal_torchvision(pictures):
    draws = torch.Generator().manual_seed(6)
    height, width = torch.randint(0, 20, (2, len(pictures)), generator=draws)
    top = (torch.rand(len(pictures), generator=draws) * (32 - height)).long()
    left = (torch.rand(len(pictures), generator=draws) * (32 - width)).long()
    boxes = (top, left, height, width)
    color = torch.tensor([1, 2, 3], dtype=torch.uint8)[:, None, None]
    erased = image_ops.erase(pictures, *boxes, (1, 2, 3))
    others = pictures.flip(0)
    pasted = image_ops.paste(pictures, others, *boxes)
    for i, (y, x, h, w) in enumerate(zip(*(box.tolist() for box in boxes), strict=True)):
        assert torch.equal(erased[i], tv.erase(pictures[i], y, x, h, w, color))
        patch = others[i, :, y : y + h, x : x + w]
        assert torch.equal(pasted[i], tv.erase(pictures[i], y, x, h, w, patch))


def test_erase_cuts_off_at_the_border(pictures):
    box = [torch.full((len(pictures),), value) for value in (-5, 28, 10, 10)]
    erased = image_ops.erase(pictures, *box, (9, 9, 9))
    expected = pictures.clone()
    expected[:, :, :5, 28:] = 9
    assert torch.equal(erased, expected)


def test_blend_is_the_rounded_mean(pictures):
    share = torch.rand(len(pictures), generator=torch.Generator().manual_seed(7)).double()
    share[:3] = torch.tensor([0.0, 1.0, 0.5])
    others = pictures.roll(1, 0)
    weight = share[:, None, None, None]
    expected = (weight * pictures + (1 - weight) * others).round()
    difference = (image_ops.blend(pictures, others, share) - expected).abs()
    assert difference.max() <= 1  # float32 against float64 beside a half
    assert (difference > 0).float().mean() < 1e-3
    assert torch.equal(
        image_ops.blend(pictures, others, share)[:2], torch.stack([others[0], pictures[1]])
    )
