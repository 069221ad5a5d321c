"""Random augmentation of a whole batch on its device, each image with its own draw.

An augmentation takes uint8 images (N, 3, H, W) and a generator on their device, and returns
images of the same shape and type. Draws follow torchvision's per-image transforms.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import ConfigError

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

CROP_PADDING = 4  # pixels on each side (He et al. 2015, section 4.2)


def crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random window of each image after padding with 4 black pixels.

    The distribution of `torchvision.transforms.RandomCrop(32, padding=4)`: both offsets uniform
    on 0..8.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (CROP_PADDING,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, 3, 9, 9, H, W), a view
    top, left = torch.randint(
        2 * CROP_PADDING + 1, (2, count), generator=generator, device=images.device
    )
    return windows[torch.arange(count, device=images.device), :, top, left]


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Left and right exchanged with probability 1/2 (`RandomHorizontalFlip`)."""
    draws = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
    return torch.where(draws < 0.5, images.flip(3), images)


AUGMENTATIONS: dict[str, Augmentation] = {"crop": crop, "flip": flip}


def compose(names: Sequence[str]) -> Augmentation:
    """The named augmentations one after another; none of them leaves images as they are."""
    check_available(names)
    steps = [AUGMENTATIONS[name] for name in names]

    def augment(images: Tensor, generator: torch.Generator) -> Tensor:
        for step in steps:
            images = step(images, generator)
        return images

    return augment


def check_available(names: Sequence[str]) -> None:
    """`ConfigError` naming the augmentations that this version does not have."""
    missing = [name for name in names if name not in AUGMENTATIONS]
    if missing:
        raise ConfigError(
            f"recipe.augment needs {', '.join(missing)}, which this version does not have yet; "
            f"it has {', '.join(AUGMENTATIONS)} (`augment` sets another list)"
        )
