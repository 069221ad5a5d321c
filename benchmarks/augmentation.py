"""Images per second: whole batches augmented here and by kornia, single images by torchvision.

    python benchmarks/augmentation.py [--dataset digits] [--device cuda]

For each augmentation the same batch goes through `resnetlib.augment`, through torchvision's
transforms of PIL images as a loader calls them (from an array, to a tensor, stacked), through
its v2 transforms of tensors, image by image, and through kornia's transforms of whole batches
(`pip install kornia`; without it the column is missing). They take turns in one process; a rate is
the median, a ratio the median of the turns' ratios with the least and the greatest behind it. A
loader with two workers would at best double torchvision's rates.
torchvision mixes whole batches only, with one share for all: there its batch stands in for both.
kornia draws for each image too, but its automatic policies choose one operation for all images of
a batch. It computes on float32 from 0 to 1; the conversion from bytes is included.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from resnetlib import augment, load_dataset, rng, schema

try:
    from kornia import augmentation as kornia
except ImportError:
    kornia = None

CIFAR10 = v1.AutoAugmentPolicy.CIFAR10
JITTER = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
SQUARE = {"p": 1.0, "scale": (0.25, 0.25), "ratio": (1.0, 1.0)}  # the nearest thing to cutout

# Ours; torchvision's for PIL images, and for the tensors made of them; torchvision's for tensors.
PAIRS = {
    "crop": ([v1.RandomCrop(32, padding=4)], [], v2.RandomCrop(32, padding=4)),
    "flip": ([v1.RandomHorizontalFlip()], [], v2.RandomHorizontalFlip()),
    "crop,flip": (
        [v1.RandomCrop(32, padding=4), v1.RandomHorizontalFlip()],
        [],
        v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]),
    ),
    "color_jitter": ([v1.ColorJitter(**JITTER)], [], v2.ColorJitter(**JITTER)),
    "rotation": ([v1.RandomRotation(15)], [], v2.RandomRotation(15)),
    "auto_augment": ([v1.AutoAugment(CIFAR10)], [], v2.AutoAugment(CIFAR10)),
    "rand_augment": ([v1.RandAugment()], [], v2.RandAugment()),
    "trivial_augment": ([v1.TrivialAugmentWide()], [], v2.TrivialAugmentWide()),
    "cutout": ([], [v1.RandomErasing(**SQUARE)], v2.RandomErasing(**SQUARE)),
    "random_erasing": ([], [v1.RandomErasing()], v2.RandomErasing()),
}
BATCH_MIXES = {"mixup": v2.MixUp(num_classes=10), "cutmix": v2.CutMix(num_classes=10)}
COLUMNS = ["ours", "PIL", "v2 tensor", *(["kornia"] if kornia else [])]


def _kornia_transforms() -> dict[str, Callable]:
    """kornia's of the same names; those that mix images take the labels too."""
    crop, flip = kornia.RandomCrop((32, 32), padding=4), kornia.RandomHorizontalFlip()
    mixed = {"data_keys": ["input", "class"]}
    return {
        "crop": crop,
        "flip": flip,
        "crop,flip": torch.nn.Sequential(crop, flip),
        "color_jitter": kornia.ColorJitter(**JITTER),
        "rotation": kornia.RandomRotation(15.0, p=1.0),
        "auto_augment": kornia.auto.AutoAugment("cifar10"),
        "rand_augment": kornia.auto.RandAugment(2, 9),
        "trivial_augment": kornia.auto.TrivialAugment(),
        "cutout": kornia.RandomErasing(**SQUARE),
        "random_erasing": kornia.RandomErasing(),
        "mixup": kornia.RandomMixUpV2(**mixed),
        "cutmix": kornia.RandomCutMixV2(use_correct_lambda=True, **mixed),
    }


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    images, labels = load_dataset(options.dataset, options.data_root).train
    images = images[: options.batch_size].to(options.device)
    labels = labels[: options.batch_size].to(options.device)
    print(
        f"{len(images)} images of {options.dataset} a batch, {options.threads} threads, "
        f"{options.device}, torch {torch.__version__}; images/s, median of {options.turns} turns"
    )
    print(f"{'':16}{'ours':>11}" + "".join(f"{name:>11}{'ratio':>22}" for name in COLUMNS[1:]))
    for name in (*PAIRS, *BATCH_MIXES):
        ways = _ways(name, images, labels)
        times = [[_seconds(way, options.device) for way in ways] for _ in range(options.turns + 1)]
        print(_row(name, len(images), times[1:]))  # the first turn warms up


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-root")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=15)
    return parser.parse_args()


def _ways(name: str, images: Tensor, labels: Tensor) -> list[Callable[[int], object]]:
    """Functions that augment one batch, one for each of `COLUMNS`."""
    models = schema.tagged_models()
    ours = augment.compose([models[part](name=part) for part in name.split(",")])

    def whole_batch(turn: int) -> object:
        return ours(images, labels, rng.generator(0, "augment", 0, turn))

    def by_kornia(turn: int) -> object:
        floats = images.float() / 255
        return by_name(floats, labels) if name in BATCH_MIXES else by_name(floats)

    by_name = _kornia_transforms()[name] if kornia else None
    last = [by_kornia] if kornia else []
    if name in BATCH_MIXES:
        floats = images.float()
        return [whole_batch, *2 * [lambda turn: BATCH_MIXES[name](floats, labels)], *last]
    on_pictures, on_tensors, v2_transform = PAIRS[name]
    v1_transform = v1.Compose([*on_pictures, v1.PILToTensor(), *on_tensors])
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()
    return [
        whole_batch,
        lambda turn: torch.stack([v1_transform(Image.fromarray(array)) for array in arrays]),
        lambda turn: torch.stack([v2_transform(image) for image in images]),
        *last,
    ]


def _seconds(way: Callable[[int], object], device: str) -> float:
    """Of one call: the median of as many as fit in a few hundredths of a second."""
    times: list[float] = []
    while len(times) < 20 and sum(times) < 0.03:
        start = time.perf_counter()
        way(len(times))
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _row(name: str, count: int, times: list[list[float]]) -> str:
    ours, *others = (statistics.median(way) for way in zip(*times, strict=True))
    cells = [f"{name:16}{count / ours:>11,.0f}"]
    for place, median in enumerate(others, start=1):
        ratios = [turn[place] / turn[0] for turn in times]
        spread = f"{statistics.median(ratios):.1f} ({min(ratios):.1f}..{max(ratios):.1f})"
        cells.append(f"{count / median:>11,.0f}{spread:>22}")
    return "".join(cells)


if __name__ == "__main__":
    main()
