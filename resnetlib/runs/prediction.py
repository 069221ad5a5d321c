"""What the network of a run makes of images: logits, and the most likely classes of pictures."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .. import files
from ..data import Dataset, load_dataset, normalization
from ..device import resolve_device_settings
from ..errors import DataError
from ..evaluation import evaluate
from ..paths import display_path, expand_home
from ..schema import SIDE
from .run import Run

TOP = 3  # classes of a picture
LARGEST_PICTURE = 2**28  # bytes
# Pillow goes by the content, whatever the file's name, and starts Ghostscript for EPS.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")


def predict_logits(run: Run, images: Tensor, dataset: Dataset) -> Tensor:
    """Logits (N, 10) float32 of images uint8 (N, 3, H, W), as in the run's own evaluation.

    `dataset` is the run's own; its training images determine the normalisation.
    """
    settings = resolve_device_settings(run.experiment)
    model = settings.place(run.model())
    mean, std = normalization(run.experiment.recipe, dataset)
    unlabelled = torch.full((len(images),), -1)
    return evaluate(model, images, unlabelled, mean=mean, std=std).logits


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


def _to_rgb(picture: Image.Image) -> Image.Image:
    """The picture in RGB; of 16 bits the upper eight, which Pillow would cut off at 255."""
    if picture.mode.startswith("I"):
        levels = np.asarray(picture)
        if levels.min() < 0 or levels.max() >= 2**16:
            raise ValueError("pixels of more than 16 bits are not supported")
        picture = Image.fromarray((levels // 256).astype(np.uint8))
    elif picture.mode == "F":
        raise ValueError("floating-point pixels are not supported")
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")  # shown on white, as most viewers do
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def read_picture(path: str | Path) -> Tensor:
    """A picture of any size as uint8 (3, 32, 32), the whole of it; upright, in RGB."""
    path = expand_home(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            content = io.BytesIO(files.read_bytes(path, LARGEST_PICTURE))
            with Image.open(content, formats=FORMATS) as picture:
                upright = _to_rgb(ImageOps.exif_transpose(picture))
    except Exception as error:  # a damaged picture may raise anything
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        if isinstance(error, UnidentifiedImageError):
            reason = f"its format is none of {', '.join(FORMATS)}"
        raise DataError(f"{display_path(path)} is not a readable picture: {reason}") from None
    resized = upright.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)
