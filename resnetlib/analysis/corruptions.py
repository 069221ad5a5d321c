"""Accuracy on corrupted images.

Seven corruptions at five severities. Where CIFAR-10-C has the corruption, the severities are its
own for 32×32 images (Hendrycks & Dietterich 2019, `make_cifar_c.py`); the operations are
torchvision's, so accuracies lie near those on CIFAR-10-C but are not the same.
"""

import difflib
import io
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from .. import rng
from ..errors import ConfigError
from ..evaluation import evaluate, wilson_interval
from ..progress import bar
from ..resnet import ResNet
from ..size import measure_size

# Multiply-accumulates that the damaged images may take unless their number is given: a minute of
# one core, where `lite` computes 4e10 a second.
MACS = 2.5e12
FEWEST_IMAGES = 1000  # an accuracy of 80 % is then known to ±2.5 points


def corruption_sample_size(wanted: int | None, model: ResNet, available: int) -> int:
    """How many test images `robustness` is to use: what is wanted, or else affordable.

    Affordable are all of a small network's, fewer of a large one's, never less than 1,000.
    Raises `ConfigError` for a number that cannot be.
    """
    if wanted is None:
        settings = len(CORRUPTIONS) * len(SEVERITIES)
        affordable = int(MACS / (settings * measure_size(model.architecture).macs) // 100) * 100
        return min(available, max(FEWEST_IMAGES, affordable))
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= available:
        raise ConfigError(f"images = {wanted!r}: give a whole number from 1 to {available:,}")
    return wanted


SEVERITIES = range(1, 6)  # the columns of every table here; 0 is the undamaged image
BATCH = 500  # images blurred at once: what fits a processor's cache is seven times as fast
# What one team lost between the test set, 93.92 %, and the class competition's hidden set, 80.89 %
# (params/adamw.yaml).
HIDDEN_SET_DROP = 0.13


class Corruption(NamedTuple):
    """A way to damage images: `apply(images, level, seed)`, and its level at each severity.

    `augmentations` are those of ours that draw this very damage; none for some.
    """

    apply: Callable[[Tensor, float, int], Tensor]
    levels: tuple[float, ...]
    caption: str
    augmentations: tuple[str, ...]


def _noise(images: Tensor, sigma: float, seed: int) -> Tensor:
    """The same pattern at every severity; the global random state stays as it was."""
    # In float: torchvision rounds the noise on uint8 towards zero, and so makes less of it.
    exact = F.to_dtype(images, torch.float32, scale=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive_seed(seed, "noise"))
        return F.to_dtype(F.gaussian_noise(exact, sigma=sigma), torch.uint8, scale=True)


def _blur(images: Tensor, sigma: float, seed: int) -> Tensor:
    size = 2 * int(4 * sigma + 0.5) + 1  # cut off at 4 σ, as scikit-image does for CIFAR-10-C
    return torch.cat([F.gaussian_blur(part, [size] * 2, [sigma]) for part in images.split(BATCH)])


def _brightness(images: Tensor, factor: float, seed: int) -> Tensor:
    return F.adjust_brightness(images, factor)


def _contrast(images: Tensor, factor: float, seed: int) -> Tensor:
    return F.adjust_contrast(images, factor)


def _jpeg(images: Tensor, quality: float, seed: int) -> Tensor:
    """Through Pillow, as in CIFAR-10-C: torchvision will lose its own JPEG (deprecated in 0.29)."""

    def compressed(image: Tensor) -> Tensor:
        buffer = io.BytesIO()
        F.to_pil_image(image).save(buffer, "JPEG", quality=int(quality))
        return F.pil_to_tensor(Image.open(buffer))

    return torch.stack([compressed(image) for image in images])


def _pixelation(images: Tensor, scale: float, seed: int) -> Tensor:
    """Through Pillow, which alone has the box filter."""
    full = list(images.shape[2:])
    small = [int(scale * length) for length in full]
    box = InterpolationMode.BOX

    def pixelated(image: Tensor) -> Tensor:
        return F.pil_to_tensor(F.resize(F.resize(F.to_pil_image(image), small, box), full, box))

    return torch.stack([pixelated(image) for image in images])


def _rotation(images: Tensor, degrees: float, seed: int) -> Tensor:
    """Every second image the other way round; black outside, as our own `rotation`."""
    turned = torch.empty_like(images)
    turned[::2] = F.rotate(images[::2], degrees, InterpolationMode.BILINEAR)
    turned[1::2] = F.rotate(images[1::2], -degrees, InterpolationMode.BILINEAR)
    return turned


POLICIES = ("auto_augment", "rand_augment", "trivial_augment")
CORRUPTIONS = {
    "noise": Corruption(  # CIFAR-10-C `gaussian_noise`; standard deviation, white is 1
        _noise, (0.04, 0.06, 0.08, 0.09, 0.10), "σ {:.2f}", ()
    ),
    "blur": Corruption(  # CIFAR-10-C `gaussian_blur`; the policies' sharpness below 1 blurs
        _blur, (0.4, 0.6, 0.7, 0.8, 1.0), "σ {:g} px", POLICIES
    ),
    # CIFAR-10-C `brightness` adds 0.05, 0.1, 0.15, 0.2 or 0.3 to the value: at mid-grey, 0.5,
    # these factors.
    "brightness": Corruption(
        _brightness, (1.1, 1.2, 1.3, 1.4, 1.6), "× {:g}", ("color_jitter", *POLICIES)
    ),
    "contrast": Corruption(  # CIFAR-10-C `contrast`
        _contrast, (0.75, 0.5, 0.4, 0.3, 0.15), "× {:g}", ("color_jitter", *POLICIES)
    ),
    "jpeg": Corruption(  # CIFAR-10-C `jpeg_compression`
        _jpeg, (80, 65, 58, 50, 40), "quality {:g}", ()
    ),
    "pixelation": Corruption(  # CIFAR-10-C `pixelate`; share of the side's length
        _pixelation, (0.95, 0.9, 0.85, 0.75, 0.65), "size × {:g}", ()
    ),
    # Not in CIFAR-10-C. Five equal steps to 30°, the bound of Engstrom et al. 2019 for CIFAR-10.
    "rotation": Corruption(_rotation, (6, 12, 18, 24, 30), "±{:g}°", ("rotation", *POLICIES)),
}


def corrupt(images: Tensor, name: str, severity: int, *, seed: int = 0) -> Tensor:
    """Damaged images: uint8 (N, 3, H, W) on the CPU, as those given, which stay as they were.

    Strength 0 gives the images themselves, 1 to 5 damage them ever more. The seed decides the
    noise; all else is fixed. Raises `ValueError` for an unknown name, severity or type of image.
    """
    if name not in CORRUPTIONS:
        close = difflib.get_close_matches(name, CORRUPTIONS, n=1, cutoff=0)[0]
        raise ValueError(
            f"unknown corruption {name!r}; did you mean {close!r}? one of {', '.join(CORRUPTIONS)}"
        )
    if severity not in (0, *SEVERITIES):
        raise ValueError(f"severity = {severity!r}: give 0 (undamaged) or 1 to 5")
    if images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype}; corrupt takes uint8")
    if severity == 0:
        return images
    kind = CORRUPTIONS[name]
    return kind.apply(images, kind.levels[severity - 1], seed)


def caption(name: str, severity: int) -> str:
    """What a severity stands for, such as `σ 0.04`."""
    kind = CORRUPTIONS[name]
    return kind.caption.format(kind.levels[severity - 1]) if severity else "undamaged"


def robustness(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 1000,
    device: str | torch.device = "auto",
    seed: int = 0,
) -> pd.DataFrame:
    """Accuracy, a fraction of 1: a row for each corruption, a column for each severity 0 to 5.

    Images uint8 (N, 3, H, W) on the CPU, labels int64 (N,); the rest as for `evaluate`.
    """

    def accuracy(damaged: Tensor) -> float:
        return evaluate(
            model, damaged, labels, mean=mean, std=std, batch_size=batch_size, device=device
        ).accuracy

    undamaged = accuracy(images)
    rows = {name: [undamaged] for name in CORRUPTIONS}
    with bar(total=len(CORRUPTIONS) * len(SEVERITIES), unit="setting") as shown:
        for name, row in rows.items():
            shown.set_description(name)
            for severity in SEVERITIES:
                row.append(accuracy(corrupt(images, name, severity, seed=seed)))
                shown.update()
    columns = pd.RangeIndex(len(SEVERITIES) + 1, name="severity")
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("corruption")


def accuracy_drops(accuracies: pd.DataFrame) -> pd.DataFrame:
    """What `robustness` measured, in points, costliest corruption first.

    `mean drop` over the five severities, `strongest` the drop at severity 5, `loses 13 from` the
    first severity that costs as much as the hidden set cost one team; missing where none does.
    """
    lost = accuracies[[0]].to_numpy() - accuracies[list(SEVERITIES)]
    beyond = lost >= HIDDEN_SET_DROP
    table = pd.DataFrame(
        {
            "mean accuracy": 100 * accuracies[list(SEVERITIES)].mean(axis=1),
            "mean drop": 100 * lost.mean(axis=1),
            "strongest": 100 * lost[SEVERITIES[-1]],
            "loses 13 from": beyond.idxmax(axis=1).where(beyond.any(axis=1)).astype("Int64"),
        }
    )
    return table.sort_values("mean drop", ascending=False, kind="stable")


def verdict(accuracies: pd.DataFrame, images: int, used: Collection[str] = ()) -> str:
    """In a paragraph: the costliest damage, the drops against thirteen points, what to try.

    `images` is how many `robustness` was measured on, `used` the augmentations of the run.
    """
    table = accuracy_drops(accuracies)
    undamaged = accuracies[0].iloc[0]
    worst, row = table.index[0], table.iloc[0]
    low, high = wilson_interval(undamaged, images)
    past = table["loses 13 from"].dropna()
    spared = [name for name in table.index if name not in past]
    points = f"{100 * HIDDEN_SET_DROP:.0f} points"
    told = [
        f"**{worst.capitalize()} costs most**: {row['mean drop']:.1f} points on average over its "
        f"five severities, {row['strongest']:.1f} at the strongest, from {undamaged:.2%} on the "
        f"undamaged images ({images:,} of them, 95 % interval {low:.2%} to {high:.2%}). "
        f"Over all {len(table)} damages the mean drop is {table['mean drop'].mean():.1f} points.",
        f"One team lost {points} between the test set and the competition's hidden set.",
    ]
    if len(past):
        reached = [f"{name} from {caption(name, level)}" for name, level in past.items()]
        told.append(f"This network loses as much to {_listed(reached)}.")
        if spared:
            told.append(f"It does not to {_listed(spared)}, at any severity measured.")
    else:
        told.append("No damage measured here costs this network as much, at any severity.")
    return " ".join(told) + "\n\n" + _what_to_try(list(past.index) or [worst], used)


def _what_to_try(costly: list[str], used: Collection[str]) -> str:
    """Augmentations for the costly damages: those that draw them, or else what is nearest."""
    drawn = {name: CORRUPTIONS[name].augmentations for name in costly}
    lines = [
        f"- {name}: {_listed([f'`{a}`' + ' (in use)' * (a in used) for a in augmentations])}"
        for name, augmentations in drawn.items()
        if augmentations
    ]
    missing = [name for name, augmentations in drawn.items() if not augmentations]
    if missing:
        lines.append(
            f"- {_listed(missing)}: no augmentation here does such damage. `mixup`"
            f"{' (in use)' * ('mixup' in used)} lowered the mean error on CIFAR-10-C, `cutout` and "
            "`cutmix` did not (Hendrycks et al. 2020, table 1)"
        )
    return "What to try, as values of `augment`:\n\n" + "\n".join(lines)


def _listed(words: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def examples(image: Tensor, seed: int = 0) -> np.ndarray:
    """One image uint8 (3, H, W) under every corruption: uint8 (corruptions, 6, 3, H, W).

    The second axis is the severity, 0 to 5; the order of corruptions is that of `CORRUPTIONS`.
    """
    rows = [
        torch.cat([corrupt(image[None], name, level, seed=seed) for level in (0, *SEVERITIES)])
        for name in CORRUPTIONS
    ]
    return torch.stack(rows).numpy()
