"""AutoAugment, RandAugment and TrivialAugment: tables, magnitudes, application."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from . import image_ops


class Operations(NamedTuple):
    """Operations applied to each image one after another.

    `chosen` (passes, N) int64 holds places in `NAMES`, `values` (passes, N) float64 the parameters
    as the operations of `image_ops` take them.
    """

    chosen: Tensor
    values: Tensor


# Matrices for `image_ops.affine` from one value per image: one gather does all that move pixels.
MATRICES: dict[str, Callable[[Tensor, int, int], Tensor]] = {
    "shear_x": lambda slope, height, _: image_ops.shear_x_matrix(slope, height),
    "shear_y": lambda slope, _, width: image_ops.shear_y_matrix(slope, width),
    "translate_x": lambda pixels, *_: image_ops.translation_matrix(pixels, 0 * pixels),
    "translate_y": lambda pixels, *_: image_ops.translation_matrix(0 * pixels, pixels),
    "rotate": lambda degrees, *_: image_ops.rotation_matrix(degrees),
}
OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": image_ops.brightness,
    "saturation": image_ops.saturation,
    "contrast": image_ops.contrast,
    "hue": image_ops.hue,
    "sharpness": image_ops.sharpness,
    "posterize": image_ops.posterize,
    "solarize": image_ops.solarize,
    "autocontrast": lambda images, _: image_ops.autocontrast(images),
    "equalize": lambda images, _: image_ops.equalize(images),
    "invert": lambda images, _: image_ops.invert(images),
}
NAMES = ("identity", *MATRICES, *OPERATIONS)  # the order in which a batch is sorted
RAND_AUGMENT = tuple(name for name in NAMES if name not in ("hue", "invert"))
# The 25 pairs of (operation, probability, magnitude 0 to 9) found for CIFAR-10
# (Cubuk et al. 2018, table 7).
CIFAR10_POLICY = (
    (("invert", 0.1, None), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, None), ("equalize", 0.9, None)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("saturation", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, None), ("equalize", 0.5, None)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("saturation", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, None), ("autocontrast", 0.4, None)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("saturation", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, None)),
    (("equalize", 0.2, None), ("autocontrast", 0.6, None)),
    (("equalize", 0.2, None), ("equalize", 0.6, None)),
    (("saturation", 0.9, 9), ("equalize", 0.6, None)),
    (("autocontrast", 0.8, None), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("saturation", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, None)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, None), ("solarize", 0.8, 3)),
    (("equalize", 0.8, None), ("invert", 0.1, None)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, None)),
)


def apply_operations(images: Tensor, draws: Operations) -> Tensor:
    """Pass by pass, every operation once on all images that drew it."""
    height, width = images.shape[2:]
    origin = torch.arange(len(images))  # of the image that is now at each position
    for chosen, values in zip(draws.chosen, draws.values, strict=True):
        order = chosen[origin].argsort(stable=True)
        origin = origin[order]
        images = images.index_select(0, image_ops.to_device(order, images.device))
        ends = chosen.bincount(minlength=len(NAMES)).cumsum(0).tolist()
        group = {NAMES[i + 1]: slice(*ends[i : i + 2]) for i in range(len(NAMES) - 1)}
        values = values[origin]
        moved = slice(ends[0], group["rotate"].stop)
        if moved.start < moved.stop:
            parts = [make(values[group[name]], height, width) for name, make in MATRICES.items()]
            images[moved] = image_ops.affine(images[moved], torch.cat(parts))
        for name, operation in OPERATIONS.items():
            part = group[name]
            if part.start < part.stop:
                images[part] = operation(images[part], values[part])
    return images.index_select(0, image_ops.to_device(origin.argsort(), images.device))


@cache
def rand_augment_places() -> Tensor:
    """Places in `NAMES` of the operations of `RAND_AUGMENT`."""
    return torch.tensor([NAMES.index(name) for name in RAND_AUGMENT])


def _magnitudes(space: str, height: int, width: int) -> dict[str, list[float]]:
    """Each operation's magnitudes, 10 for auto_augment, else 31, rounded to float32.

    From `torchvision.transforms.AutoAugment`, `RandAugment` and `TrivialAugmentWide`.
    """
    bins = 10 if space == "auto_augment" else 31
    wide = space == "trivial_augment"

    def line(end: float) -> list[float]:
        return torch.linspace(0, end, bins).tolist()

    factor = line(0.99 if wide else 0.9)
    lost_bits = (torch.arange(bins) / ((bins - 1) / (6 if wide else 4))).round().tolist()
    return {
        "shear_x": line(0.99 if wide else 0.3),
        "shear_y": line(0.99 if wide else 0.3),
        "translate_x": line(32.0 if wide else 150 / 331 * width),
        "translate_y": line(32.0 if wide else 150 / 331 * height),
        "rotate": line(135.0 if wide else 30.0),
        "brightness": factor,
        "saturation": factor,
        "contrast": factor,
        "sharpness": factor,
        "posterize": [8 - lost for lost in lost_bits],
        # v2's 255 × linspace(1, 0) is rounded to thresholds a level higher in 3 of the 31 bins.
        "solarize": torch.linspace(255, 0, bins).tolist(),
    }


def _signed(name: str, magnitude: float, negative: bool) -> float:
    """The parameter that the operation takes for a magnitude and its sign."""
    signed = -magnitude if negative else magnitude
    if name in ("brightness", "saturation", "contrast", "sharpness"):
        return 1 + signed
    if name.startswith("translate"):
        return float(int(signed))
    return magnitude if name in ("posterize", "solarize") else signed


@cache
def magnitude_table(space: str, height: int, width: int) -> Tensor:
    """(sign, operation of RAND_AUGMENT, magnitude) float64."""
    magnitudes = _magnitudes(space, height, width)
    bins = len(magnitudes["rotate"])
    return torch.tensor(
        [
            [
                [_signed(name, value, negative) for value in magnitudes.get(name, [0.0] * bins)]
                for name in RAND_AUGMENT
            ]
            for negative in (False, True)
        ],
        dtype=torch.float64,
    )


@cache
def policy_tables(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """For the policy: places (2, 25), values (sign, 2, 25), and probabilities (2, 25)."""
    magnitudes = _magnitudes("auto_augment", height, width)
    places = [[NAMES.index(name) for name, _, _ in pair] for pair in CIFAR10_POLICY]
    values = [
        [
            [
                0.0 if bin is None else _signed(name, magnitudes[name][bin], negative)
                for name, _, bin in pair
            ]
            for pair in CIFAR10_POLICY
        ]
        for negative in (False, True)
    ]
    shares = [[probability for _, probability, _ in pair] for pair in CIFAR10_POLICY]
    return (
        torch.tensor(places).T,
        torch.tensor(values, dtype=torch.float64).transpose(1, 2),
        torch.tensor(shares, dtype=torch.float32).T,
    )
