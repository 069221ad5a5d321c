"""Random augmentation of a whole batch on its device, each image with its own draw.

Every augmentation is a `draw`, which makes all random numbers on the CPU, so that a seed gives the
same pictures on every device, and an `apply`, which computes the pictures there. The draws follow
torchvision's per-image transforms.
"""

import difflib
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from . import image_ops, rng, schema

# The mean colour of CIFAR-10's training images: grey where DeVries & Taylor write zeros, since
# they cut out after the normalisation, whose zero it is.
MEAN_COLOR = (125, 123, 114)
BLACK = (0, 0, 0)
TRIES = 10  # of RandomErasing, to find a rectangle that fits; then the image stays as it is


class Shape(NamedTuple):
    """What a draw must know about the batch."""

    count: int
    height: int
    width: int
    turned: Tensor | None = None  # (N,) bool, on the CPU: whom an alternating flip turns


class Operations(NamedTuple):
    """Operations that each image undergoes one after another.

    `chosen` (passes, N) int64 holds places in `NAMES`, `values` (passes, N) float64 the parameters
    as the operations of `image_ops` take them.
    """

    chosen: Tensor
    values: Tensor


class Window(NamedTuple):
    """Corners in the padded image, int64 (N,) pixels."""

    top: Tensor
    left: Tensor
    padding: int
    mode: str


class Rectangle(NamedTuple):
    """One rectangle per image, int64 (N,) pixels; an empty one leaves the image as it is."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


# Matrices for `image_ops.affine` of one value per image: one gather serves all that move pixels.
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
RAND_AUGMENT = (
    "identity",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
    "brightness",
    "saturation",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "autocontrast",
    "equalize",
)

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


def draw_crop(settings: schema.Crop, shape: Shape, generator: torch.Generator) -> Window:
    """Both offsets uniform on 0 to twice the padding."""
    corners = torch.randint(2 * settings.padding + 1, (2, shape.count), generator=generator)
    return Window(*corners, settings.padding, settings.padding_mode)


def draw_flip(settings: schema.Flip, shape: Shape, generator: torch.Generator) -> Tensor:
    """(N,) bool."""
    if settings.alternate and shape.turned is not None:
        return shape.turned
    return torch.rand(shape.count, generator=generator) < settings.probability


def draw_color_jitter(
    settings: schema.ColorJitter, shape: Shape, generator: torch.Generator
) -> Operations:
    """The enabled operations in an order of each image's own."""
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


def draw_auto_augment(
    settings: schema.AutoAugment, shape: Shape, generator: torch.Generator
) -> Operations:
    """One pair of the policy; each of its operations with its probability and a random sign."""
    chosen, values, probability = _policy_tables(shape.height, shape.width)
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
    table = _magnitude_table("rand_augment", shape.height, shape.width)
    passes = (settings.num_ops, shape.count)
    place = torch.randint(len(RAND_AUGMENT), passes, generator=generator)
    sign = torch.randint(2, passes, generator=generator)
    return Operations(_rand_augment_places()[place], table[sign, place, settings.magnitude])


def draw_trivial_augment(
    settings: schema.TrivialAugment, shape: Shape, generator: torch.Generator
) -> Operations:
    table = _magnitude_table("trivial_augment", shape.height, shape.width)
    place = torch.randint(len(RAND_AUGMENT), (1, shape.count), generator=generator)
    sign = torch.randint(2, (1, shape.count), generator=generator)
    magnitude = torch.randint(table.shape[2], (1, shape.count), generator=generator)
    return Operations(_rand_augment_places()[place], table[sign, place, magnitude])


def draw_cutout(settings: schema.Cutout, shape: Shape, generator: torch.Generator) -> Rectangle:
    """A square about a pixel drawn from the whole image."""
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
    uniform = torch.rand(2, TRIES, count, generator=generator, dtype=torch.float64)
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


def draw_mixup(settings: schema.MixUp, shape: Shape, generator: torch.Generator) -> Tensor:
    """(N,) float64: how much each image keeps of itself."""
    return _draw_share(settings, shape, generator)


def draw_cutmix(settings: schema.CutMix, shape: Shape, generator: torch.Generator) -> Rectangle:
    """A rectangle that would take 1 - share of the image, less what lies outside."""
    count, image_height, image_width, _ = shape
    half = 0.5 * (1 - _draw_share(settings, shape, generator)).sqrt()
    bounds = []
    for size in (image_height, image_width):
        reach = (half * size).long()
        center = torch.randint(size, (count,), generator=generator)
        bounds.append(((center - reach).clamp_(min=0), (center + reach).clamp_(max=size)))
    (top, bottom), (left, right) = bounds
    return Rectangle(top, left, bottom - top, right - left)


def _draw_share(
    settings: schema.MixUp | schema.CutMix, shape: Shape, generator: torch.Generator
) -> Tensor:
    """(N,) float64 from Beta(alpha, alpha), or 1 where the image shall stay as it is."""
    acts = torch.rand(shape.count, generator=generator) < settings.probability
    share = torch.rand(shape.count, generator=generator, dtype=torch.float64)
    if settings.alpha != 1:
        from scipy.special import betaincinv  # takes long to import, and few recipes need it

        share = torch.from_numpy(betaincinv(settings.alpha, settings.alpha, share.numpy()))
    return torch.where(acts, share, 1.0)


def apply_operations(images: Tensor, draws: Operations) -> Tensor:
    """Pass by pass, every operation once on all images that drew it."""
    height, width = images.shape[2:]
    origin = torch.arange(len(images))  # of the image that now stands at each place
    for chosen, values in zip(draws.chosen, draws.values, strict=True):
        order = chosen[origin].argsort(stable=True)
        origin = origin[order]
        images = images.index_select(0, image_ops.moved(order, images.device))
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
    return images.index_select(0, image_ops.moved(origin.argsort(), images.device))


Draw = Callable[[Any, Shape, torch.Generator], Any]
Apply = Callable[[Tensor, Any], Tensor]
PICTURES: dict[type[schema.Model], tuple[Draw, Apply]] = {
    schema.Crop: (draw_crop, lambda images, window: image_ops.window(images, *window)),
    schema.Flip: (draw_flip, image_ops.flip),
    schema.ColorJitter: (draw_color_jitter, apply_operations),
    schema.Rotation: (draw_rotation, image_ops.rotate),
    schema.AutoAugment: (draw_auto_augment, apply_operations),
    schema.RandAugment: (draw_rand_augment, apply_operations),
    schema.TrivialAugment: (draw_trivial_augment, apply_operations),
    schema.Cutout: (draw_cutout, lambda images, box: image_ops.erase(images, *box, MEAN_COLOR)),
    schema.RandomErasing: (
        draw_random_erasing,
        lambda images, box: image_ops.erase(images, *box, BLACK),
    ),
}


def _mixup(images: Tensor, targets: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    return image_ops.blend(images, images.roll(1, 0), share), _mix_targets(targets, share)


def _cutmix(images: Tensor, targets: Tensor, box: Rectangle) -> tuple[Tensor, Tensor]:
    share = 1 - box.height * box.width / (images.shape[2] * images.shape[3])
    return image_ops.paste(images, images.roll(1, 0), *box), _mix_targets(targets, share)


def _mix_targets(targets: Tensor, share: Tensor) -> Tensor:
    """(N, classes): `share` (N,) of the own target, the rest of the one before in the batch."""
    share = image_ops.moved(share.to(torch.float32)[:, None], targets.device)
    return share * targets + (1 - share) * targets.roll(1, 0)


MIXES = {schema.MixUp: (draw_mixup, _mixup), schema.CutMix: (draw_cutmix, _cutmix)}


class Augmentation(Protocol):
    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        generator: torch.Generator,
        turned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]: ...


def compose(settings: Sequence[schema.AugmentStep], num_classes: int = 10) -> Augmentation:
    """The augmentations one after another, as a function of (images, labels, generator, turned).

    Images uint8 (N, 3, H, W) and labels int64 (N,) on one device, the generator on the CPU; both
    stay as they were. `turned` (N,) bool, on the CPU, says which images an alternating flip turns;
    without it one draws as any other flip. Returns new images, and the labels, or with mixup or
    cutmix in the list always float32 probabilities (N, num_classes).
    """
    steps = [_step(setting) for setting in settings]
    mixes = any(type(single) in MIXES for setting in settings for single in _choices(setting))

    def augment(
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        turned: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        targets = _one_hot(labels, num_classes) if mixes else labels
        for step in steps:
            images, targets = step(images, targets, generator, turned)
        return images, targets

    return augment


def preview(name: str, images: Tensor, seed: int = 0) -> Tensor:
    """The augmentation of this name, with its default settings, on uint8 images (N, 3, H, W)."""
    models = schema.tagged_models(schema.Augment)
    if name not in models:
        nearest = difflib.get_close_matches(name, models, n=1, cutoff=0)[0]
        raise ValueError(
            f"unknown augmentation {name!r}; did you mean {nearest!r}? one of {', '.join(models)}"
        )
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    augment = compose([models[name](name=name)])
    return augment(images, labels, rng.generator(seed, "augment"))[0]


def _choices(settings: schema.AugmentStep) -> Sequence[schema.Augment]:
    return settings.choices if isinstance(settings, schema.OneOf) else (settings,)


def _step(settings: schema.AugmentStep) -> Augmentation:
    if isinstance(settings, schema.OneOf):
        steps = [_step(choice) for choice in settings.choices]

        def step(
            images: Tensor,
            targets: Tensor,
            generator: torch.Generator,
            turned: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]:
            chosen = int(torch.randint(len(steps), (), generator=generator))
            return steps[chosen](images, targets, generator, turned)
    elif type(settings) in MIXES:
        draw, mix = MIXES[type(settings)]

        def step(
            images: Tensor,
            targets: Tensor,
            generator: torch.Generator,
            turned: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]:
            return mix(images, targets, draw(settings, _shape(images), generator))
    else:
        draw, apply = PICTURES[type(settings)]

        def step(
            images: Tensor,
            targets: Tensor,
            generator: torch.Generator,
            turned: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]:
            draws = draw(settings, _shape(images, turned), generator)
            return apply(images, draws), targets

    return step


def _shape(images: Tensor, turned: Tensor | None = None) -> Shape:
    return Shape(len(images), *images.shape[2:], turned)


def _one_hot(labels: Tensor, num_classes: int) -> Tensor:
    """float32; `torch.nn.functional.one_hot` would wait for the device."""
    return (labels[:, None] == torch.arange(num_classes, device=labels.device)).to(torch.float32)


@cache
def _rand_augment_places() -> Tensor:
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
def _magnitude_table(space: str, height: int, width: int) -> Tensor:
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
def _policy_tables(height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
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
        torch.tensor(shares).T,
    )
