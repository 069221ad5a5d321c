"""Random augmentation of a whole batch on its device, each image with its own draw.

Every augmentation is a `draw`, which makes all random numbers on the CPU, so that a seed gives the
same images on every device, and an `apply`, which computes the images there. The draws follow
torchvision's per-image transforms.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import rng, schema
from ..config import parse_value, validate
from . import image_ops
from .draws import (
    BLACK,
    MEAN_COLOR,
    Rectangle,
    Shape,
    draw_affine,
    draw_auto_augment,
    draw_color_jitter,
    draw_crop,
    draw_cutmix,
    draw_cutout,
    draw_flip,
    draw_gaussian_blur,
    draw_mixup,
    draw_perspective,
    draw_rand_augment,
    draw_random_erasing,
    draw_rotation,
    draw_trivial_augment,
)
from .policies import apply_operations

Draw = Callable[[Any, Shape, torch.Generator], Any]
Apply = Callable[[Tensor, Any], Tensor]
Augmentation = Callable[..., tuple[Tensor, Tensor]]  # of images, targets, generator, flip mask
IMAGE_AUGMENTATIONS: dict[type[schema.Model], tuple[Draw, Apply]] = {
    schema.Crop: (draw_crop, lambda images, window: image_ops.window(images, *window)),
    schema.Flip: (draw_flip, image_ops.flip),
    schema.ColorJitter: (draw_color_jitter, apply_operations),
    schema.Rotation: (draw_rotation, image_ops.rotate),
    schema.Affine: (
        draw_affine,
        lambda images, draw: image_ops.affine(images, image_ops.affine_matrix(*draw)),
    ),
    schema.Perspective: (draw_perspective, image_ops.perspective),
    schema.GaussianBlur: (
        draw_gaussian_blur,
        lambda images, draw: image_ops.gaussian_blur(images, *draw),
    ),
    schema.Grayscale: (lambda *_: None, lambda images, _: image_ops.grayscale(images)),
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
    """(N, classes): `share` (N,) of an image's own target, the rest of the target before it."""
    share = image_ops.to_device(share.to(torch.float32)[:, None], targets.device)
    return share * targets + (1 - share) * targets.roll(1, 0)


BATCH_MIXES = {schema.MixUp: (draw_mixup, _mixup), schema.CutMix: (draw_cutmix, _cutmix)}


def compose(settings: Sequence[schema.AugmentStep]) -> Augmentation:
    """The augmentations one after another, as a function of (images, labels, generator, flip_mask).

    Images uint8 (N, 3, H, W) and labels int64 (N,) are on one device, the generator on the CPU.
    `flip_mask` (N,) bool, on the CPU, says which images an alternating flip mirrors; without it
    the flip draws as any other does. The function returns new images (without any augmentation
    the same ones) and the labels, or, if mixup or cutmix is in the list, float32 probabilities
    (N, classes). It does not change its inputs. Raises `ValueError` for images of another type.
    """
    steps = [_step(setting) for setting in settings]
    mixes = any(type(single) in BATCH_MIXES for single in schema.single_augmentations(settings))

    def augment(
        images: Tensor,
        labels: Tensor,
        generator: torch.Generator,
        flip_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; augmentations take uint8")
        targets = _one_hot(labels) if mixes else labels
        for step in steps:
            images, targets = step(images, targets, generator, flip_mask)
        return images, targets

    return augment


def preview(augment: str | Sequence[Any], images: Tensor, seed: int = 0) -> Tensor:
    """Augmented copies of uint8 images (N, 3, H, W), each with its own draw.

    `augment` is written as in a variant file or after `-p augment`: names separated by commas, or
    a list such as `[{"name": "crop", "padding": 8}, "flip"]`, also as text; empty for none. Raises
    `ConfigError` for what is unknown.
    """
    steps = parse_value(augment) if isinstance(augment, str) else augment
    steps = validate({"augment": steps or []}, "preview", schema.Augmentations).augment
    labels = torch.zeros(len(images), dtype=torch.int64, device=images.device)
    with rng.plain_defaults():
        return compose(steps)(images, labels, rng.generator(seed, "augment"))[0]


def describe() -> dict[str, str]:
    """What each augmentation does, with its default settings."""
    return {
        name: f"{' '.join(model.__doc__.split())} {_defaults(model(name=name))}".strip()
        for name, model in schema.tagged_models(schema.Augment).items()
    }


def _defaults(step: schema.Augment) -> str:
    values = step.model_dump(exclude={"name"}, mode="json")
    listed = ", ".join(f"{key} {value}" for key, value in values.items())
    return f"Defaults: {listed}." if listed else ""


def _step(settings: schema.AugmentStep) -> Augmentation:
    if isinstance(settings, schema.OneOf):
        steps = [_step(choice) for choice in settings.choices]

        def step(images, targets, generator, flip_mask):
            chosen = int(torch.randint(len(steps), (), generator=generator))
            return steps[chosen](images, targets, generator, flip_mask)
    elif type(settings) in BATCH_MIXES:
        draw, mix = BATCH_MIXES[type(settings)]

        def step(images, targets, generator, flip_mask):
            return mix(images, targets, draw(settings, _shape(images), generator))
    else:
        draw, apply = IMAGE_AUGMENTATIONS[type(settings)]

        def step(images, targets, generator, flip_mask):
            draws = draw(settings, _shape(images, flip_mask), generator)
            augmented = apply(images, draws)
            # At 1 nothing is drawn, so that images are the same as before there was this key.
            if isinstance(settings, schema.Sometimes) and settings.probability < 1:
                acts = torch.rand(len(images), generator=generator) < settings.probability
                augmented = image_ops.replace(images, augmented, acts)
            return augmented, targets

    return step


def _shape(images: Tensor, flip_mask: Tensor | None = None) -> Shape:
    return Shape(len(images), *images.shape[2:], flip_mask)


def _one_hot(labels: Tensor) -> Tensor:
    """In float32; `torch.nn.functional.one_hot` would wait for the device."""
    classes = torch.arange(schema.NUM_CLASSES, device=labels.device)
    return (labels[:, None] == classes).to(torch.float32)
