"""Random draws of each augmentation: settings, shape and generator in, parameters per image out."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import schema
from .policies import (
    CIFAR10_POLICY,
    NAMES,
    RAND_AUGMENT,
    Operations,
    magnitude_table,
    policy_tables,
    rand_augment_places,
)

# The mean colour of CIFAR-10's training images: grey where DeVries & Taylor write zeros, since
# they cut out after the normalisation, whose zero it is.
MEAN_COLOR = (125, 123, 114)
BLACK = (0, 0, 0)
MAX_ATTEMPTS = 10  # of RandomErasing to find a rectangle that fits; else it erases nothing


class Shape(NamedTuple):
    """What a draw needs to know about the batch."""

    count: int
    height: int
    width: int
    flip_mask: Tensor | None = None  # (N,) bool, on the CPU: what an alternating flip mirrors


class Window(NamedTuple):
    """Corners in the padded image, int64 (N,) pixels."""

    top: Tensor
    left: Tensor
    padding: int
    mode: str


class Rectangle(NamedTuple):
    """One rectangle per image, int64 (N,) pixels; an empty one changes nothing."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


class AffineDraw(NamedTuple):
    """What `image_ops.affine_matrix` takes, each (N,)."""

    degrees: Tensor
    right: Tensor
    down: Tensor
    scale: Tensor
    shear_x: Tensor
    shear_y: Tensor


def draw_crop(settings: schema.Crop, shape: Shape, generator: torch.Generator) -> Window:
    """Both offsets uniform on 0 to twice the padding."""
    corners = torch.randint(2 * settings.padding + 1, (2, shape.count), generator=generator)
    return Window(*corners, settings.padding, settings.padding_mode)


def draw_flip(settings: schema.Flip, shape: Shape, generator: torch.Generator) -> Tensor:
    """(N,) bool."""
    if settings.alternate and shape.flip_mask is not None:
        return shape.flip_mask
    return torch.rand(shape.count, generator=generator) < settings.probability


def draw_color_jitter(
    settings: schema.ColorJitter, shape: Shape, generator: torch.Generator
) -> Operations:
    """The enabled operations, for each image in its own random order."""
    ranges = {
        name: (max(0.0, 1 - width), 1 + width)
        for name in ("brightness", "contrast", "saturation")
        if (width := getattr(settings, name))
    }
    if settings.hue:
        ranges["hue"] = (-settings.hue, settings.hue)
    passes = len(ranges)
    order = torch.rand(passes, shape.count, generator=generator).argsort(0)
    low, high = (
        torch.tensor(list(ranges.values()), dtype=torch.float32).view(passes, 2, 1).unbind(1)
    )
    factors = low + (high - low) * torch.rand(passes, shape.count, generator=generator)
    chosen = torch.tensor([NAMES.index(name) for name in ranges], dtype=torch.int64)[order]
    return Operations(chosen, factors.gather(0, order).double())


def draw_rotation(settings: schema.Rotation, shape: Shape, generator: torch.Generator) -> Tensor:
    """(N,) degrees."""
    return torch.empty(shape.count).uniform_(
        -settings.degrees, settings.degrees, generator=generator
    )


def draw_affine(settings: schema.Affine, shape: Shape, generator: torch.Generator) -> AffineDraw:
    """Everything uniform, translations in whole pixels."""
    limits = (
        settings.degrees,
        settings.translate[0] * shape.width,
        settings.translate[1] * shape.height,
        *settings.shear,
    )
    limits = torch.tensor(limits, dtype=torch.float32)[:, None]
    uniform = torch.rand(6, shape.count, generator=generator)
    degrees, right, down, shear_x, shear_y = limits * (2 * uniform[:5] - 1)
    low, high = settings.scale
    scale = low + (high - low) * uniform[5]
    return AffineDraw(degrees, right.round(), down.round(), scale, shear_x, shear_y)


def draw_perspective(
    settings: schema.Perspective, shape: Shape, generator: torch.Generator
) -> Tensor:
    """(N, 4, 2) int64: where the corners go, each a whole number of pixels towards the centre."""
    right, bottom = shape.width - 1, shape.height - 1
    x, y = (
        torch.randint(
            int(settings.distortion_scale * (size // 2)) + 1, (shape.count, 4), generator=generator
        )
        for size in (shape.width, shape.height)
    )
    # Top left, top right, bottom right, bottom left.
    x = torch.where(torch.tensor([False, True, True, False]), right - x, x)
    y = torch.where(torch.tensor([False, False, True, True]), bottom - y, y)
    return torch.stack((x, y), -1)


def draw_gaussian_blur(
    settings: schema.GaussianBlur, shape: Shape, generator: torch.Generator
) -> tuple[Tensor, int]:
    """(N,) sigma in pixels, and the size of the filter."""
    sigma = torch.empty(shape.count).uniform_(*settings.sigma, generator=generator)
    return sigma, settings.kernel_size


def draw_auto_augment(
    settings: schema.AutoAugment, shape: Shape, generator: torch.Generator
) -> Operations:
    """A pair of the policy per image; each operation with its probability and a random sign."""
    chosen, values, probability = policy_tables(shape.height, shape.width)
    pair = torch.randint(len(CIFAR10_POLICY), (shape.count,), generator=generator)
    acts = torch.rand(2, shape.count, generator=generator) <= probability[:, pair]
    sign = torch.randint(2, (2, shape.count), generator=generator)
    return Operations(
        chosen[:, pair] * acts,  # place 0 is the identity
        values[sign, torch.arange(2)[:, None], pair],
    )


def draw_rand_augment(
    settings: schema.RandAugment, shape: Shape, generator: torch.Generator
) -> Operations:
    """`num_ops` operations per image, each with a random sign."""
    table = magnitude_table("rand_augment", shape.height, shape.width)
    passes = (settings.num_ops, shape.count)
    place = torch.randint(len(RAND_AUGMENT), passes, generator=generator)
    sign = torch.randint(2, passes, generator=generator)
    return Operations(rand_augment_places()[place], table[sign, place, settings.magnitude])


def draw_trivial_augment(
    settings: schema.TrivialAugment, shape: Shape, generator: torch.Generator
) -> Operations:
    """One operation per image, of random magnitude and sign."""
    table = magnitude_table("trivial_augment", shape.height, shape.width)
    place = torch.randint(len(RAND_AUGMENT), (1, shape.count), generator=generator)
    sign = torch.randint(2, (1, shape.count), generator=generator)
    magnitude = torch.randint(table.shape[2], (1, shape.count), generator=generator)
    return Operations(rand_augment_places()[place], table[sign, place, magnitude])


def draw_cutout(settings: schema.Cutout, shape: Shape, generator: torch.Generator) -> Rectangle:
    """A square centred on a pixel drawn from the whole image."""
    size = torch.where(
        torch.rand(shape.count, generator=generator) < settings.probability, settings.size, 0
    )
    row = torch.randint(shape.height, (shape.count,), generator=generator)
    column = torch.randint(shape.width, (shape.count,), generator=generator)
    return Rectangle(row - settings.size // 2, column - settings.size // 2, size, size)


def draw_random_erasing(
    settings: schema.RandomErasing, shape: Shape, generator: torch.Generator
) -> Rectangle:
    """The first of ten rectangles of random area and shape that fits, anywhere in the image."""
    count, image_height, image_width, _ = shape
    uniform = torch.rand(2, MAX_ATTEMPTS, count, generator=generator, dtype=torch.float64)
    low, high = settings.scale
    area = (low + (high - low) * uniform[0]) * (image_height * image_width)
    low, high = (math.log(ratio) for ratio in settings.ratio)
    aspect = (low + (high - low) * uniform[1]).exp()
    heights = (area * aspect).sqrt().round().long()
    widths = (area / aspect).sqrt().round().long()
    fits = (heights < image_height) & (widths < image_width)
    first = fits.byte().argmax(0, keepdim=True)
    acts = torch.rand(count, generator=generator) < settings.probability
    acts &= fits.any(0)
    height, width = heights.gather(0, first)[0], widths.gather(0, first)[0]
    place = torch.rand(2, count, generator=generator, dtype=torch.float64)
    top = (place[0] * (image_height - height + 1)).long()
    left = (place[1] * (image_width - width + 1)).long()
    return Rectangle(top, left, height * acts, width * acts)


def draw_mixup(
    settings: schema.MixUp | schema.CutMix, shape: Shape, generator: torch.Generator
) -> Tensor:
    """(N,) float64: the share of each image in its mix, from Beta(alpha, alpha); 1 for no mix."""
    acts = torch.rand(shape.count, generator=generator) < settings.probability
    share = torch.rand(shape.count, generator=generator, dtype=torch.float64)
    if settings.alpha != 1:
        from scipy.special import betaincinv  # slow to import, and few recipes need it

        share = torch.from_numpy(betaincinv(settings.alpha, settings.alpha, share.numpy()))
    return torch.where(acts, share, 1.0)


def draw_cutmix(settings: schema.CutMix, shape: Shape, generator: torch.Generator) -> Rectangle:
    """A rectangle with 1 - share of the image's area, minus what lies outside."""
    count, image_height, image_width, _ = shape
    half = 0.5 * (1 - draw_mixup(settings, shape, generator)).sqrt()
    bounds = []
    for size in (image_height, image_width):
        reach = (half * size).long()
        center = torch.randint(size, (count,), generator=generator)
        bounds.append(((center - reach).clamp_(min=0), (center + reach).clamp_(max=size)))
    (top, bottom), (left, right) = bounds
    return Rectangle(top, left, bottom - top, right - left)
