"""What the network of a run makes of images: logits, and the most likely classes of pictures."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..data import Dataset, load_dataset, normalization
from ..device import EVALUATION_BATCH, no_tf32, resolve_device_settings
from ..errors import DataError
from ..evaluation import evaluate
from ..paths import display_path
from ..schema import SIDE
from .run import Run

TOP = 3  # classes of a picture


def predict_logits(run: Run, images: Tensor, dataset: Dataset) -> Tensor:
    """Logits (N, 10) float32 of images uint8 (N, 3, H, W), as in the run's own evaluation.

    `dataset` is the run's own; its training images determine the normalisation.
    """
    settings = resolve_device_settings(run.experiment)
    model = run.model().to(settings.device, memory_format=settings.memory_format)
    mean, std = normalization(run.experiment.recipe, dataset)
    unlabelled = torch.full((len(images),), -1)
    batch_size = EVALUATION_BATCH[settings.device.type]
    with no_tf32():
        return evaluate(model, images, unlabelled, mean=mean, std=std, batch_size=batch_size).logits


def predict_pictures(
    run: Run, paths: Sequence[str | Path], data_root: str | Path | None = None
) -> list[list[tuple[str, float]]]:
    """The three most likely classes of each picture, with their probabilities.

    `data_root` is searched for the run's data set before the usual folders. Raises `DataError`
    for a file that is not a picture.
    """
    pictures = torch.stack([read_picture(path) for path in paths])
    dataset = load_dataset(run.experiment.dataset, data_root)
    logits = predict_logits(run, pictures, dataset)
    probabilities, labels = logits.double().softmax(1).topk(TOP)  # (N, 3)
    return [
        [(dataset.classes[label], share) for label, share in zip(*row, strict=True)]
        for row in zip(labels.tolist(), probabilities.tolist(), strict=True)
    ]


def read_picture(path: str | Path) -> Tensor:
    """A picture of any size as uint8 (3, 32, 32), the whole of it; upright, in RGB."""
    path = Path(path).expanduser()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                upright = ImageOps.exif_transpose(picture).convert("RGB")
    except Exception as error:  # a damaged picture may raise anything
        is_format = isinstance(error, UnidentifiedImageError)
        reason = "unknown format" if is_format else " ".join(str(error).split())
        raise DataError(f"{display_path(path)} is not a readable picture: {reason}") from None
    resized = upright.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
