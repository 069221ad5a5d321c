"""Accuracy, confusion, per-class figures and calibration, all from logits computed once."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .device import EVALUATION_BATCH, no_tf32

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_BINS = 15  # Guo et al. 2017


def normalize(
    images: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor
) -> Tensor:
    """uint8 (N, C, H, W) -> float32 of the same shape: (pixel / 255 - mean) / std.

    Where it is called often, mean and std are tensors on the device of the images: numbers are
    copied there at each call.
    """
    like = {"dtype": torch.float32, "device": images.device}
    mean, std = (torch.as_tensor(values, **like).view(1, -1, 1, 1) for values in (mean, std))
    return images * (1 / (255 * std)) - mean / std


def require_uint8(images: Tensor, wanted: str) -> None:
    """Raise `ValueError`, which says what is wanted, for all but a uint8 tensor."""
    if not isinstance(images, Tensor) or images.dtype != torch.uint8:
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"images are {kind}; {wanted}")


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """Wilson's 95 % interval of an accuracy measured on so many images; not over seeds."""
    from scipy.stats import binomtest  # slow to import, and needed once a run

    bounds = binomtest(round(accuracy * images), images).proportion_ci(method="wilson")
    return bounds.low, bounds.high


def format_confidence(value: float) -> str:
    """Two decimals, by which confident errors still differ; never rounded up to certainty."""
    return ">99.99 %" if value >= 0.99995 else f"{100 * value:.2f} %"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Logits (N, C) float32 and labels (N,) int64 on the CPU, and what follows from them."""

    logits: Tensor
    labels: Tensor
    classes: tuple[str, ...] | None = None

    @cached_property
    def predictions(self) -> Tensor:
        """(N,) int64."""
        return self.logits.argmax(1)

    @cached_property
    def correct(self) -> Tensor:
        """(N,) bool."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Fraction of 1."""
        return int(self.correct.sum()) / len(self.labels)

    @cached_property
    def loss(self) -> float:
        """Mean cross-entropy in nats, without label smoothing."""
        return F.cross_entropy(self.logits.double(), self.labels).item()

    @cached_property
    def confidences(self) -> Tensor:
        """(N,) the largest softmax probability."""
        return self.logits.double().softmax(1).amax(1)

    def most_confident(self, mask: Tensor) -> Tensor:
        """Indices of the images in a mask (N,) bool, most confident first."""
        indices = mask.nonzero()[:, 0]
        return indices[self.confidences[indices].argsort(descending=True, stable=True)]

    @cached_property
    def confusion(self) -> np.ndarray:
        """(C, C) counts; row: true class, column: predicted (scikit-learn)."""
        from sklearn.metrics import confusion_matrix

        labels = list(range(self.logits.shape[1]))
        return confusion_matrix(self.labels, self.predictions, labels=labels)

    @cached_property
    def per_class(self) -> "pd.DataFrame":
        """Precision, recall, F1 and number of images of each class (scikit-learn)."""
        import pandas as pd
        from sklearn.metrics import precision_recall_fscore_support

        labels = list(range(self.logits.shape[1]))
        columns = precision_recall_fscore_support(
            self.labels, self.predictions, labels=labels, zero_division=0.0
        )
        names = pd.Index(self.classes or [str(label) for label in labels], name="class")
        return pd.DataFrame(
            dict(zip(("precision", "recall", "f1", "images"), columns, strict=True)), index=names
        )

    @cached_property
    def calibration(self) -> "pd.DataFrame":
        """A row for each of 15 equal bins of confidence: images, mean confidence, accuracy.

        Empty bins have 0 images and 0 in both other columns.
        """
        import pandas as pd

        bins = (self.confidences * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
        images = torch.bincount(bins, minlength=CALIBRATION_BINS)
        sums = [
            torch.bincount(bins, weights=weights.double(), minlength=CALIBRATION_BINS)
            for weights in (self.confidences, self.correct)
        ]
        confidence, accuracy = (total / images.clamp_min(1) for total in sums)
        return pd.DataFrame(
            {
                "images": images.numpy(),
                "confidence": confidence.numpy(),
                "accuracy": accuracy.numpy(),
            }
        )

    @property
    def ece(self) -> float:
        """Expected calibration error (Naeini et al. 2015), 15 bins, fraction of 1."""
        bins = self.calibration
        gaps = (bins["confidence"] - bins["accuracy"]).abs()
        return float((gaps * bins["images"]).sum() / bins["images"].sum())


@torch.no_grad()
def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: Sequence[float] | Tensor,
    std: Sequence[float] | Tensor,
    batch_size: int | None = None,
    device: str | torch.device = "auto",
) -> Evaluation:
    """Run the model in evaluation mode over all images, without tf32.

    The model comes back as it was: mode, place, gradients.

    Args:
        model: takes normalised float32 images and returns logits (N, classes).
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
        mean: of each channel, from 0 to 1, by which images are normalised.
        std: the same of the standard deviation.
        batch_size: images at once; what the device is fast with unless given.
        device: where to compute; "auto" is where the model is.

    Raises `ValueError` for images that are not uint8 (they would be normalised twice), and for
    labels of another type or shape.
    """
    require_uint8(images, "evaluate takes a uint8 tensor and normalises itself")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels are {kind}; evaluate takes an int64 tensor")
    if labels.shape != (len(images),):
        shape = tuple(labels.shape)
        raise ValueError(f"labels are {shape}; evaluate takes one for each of {len(images)} images")
    home = next(model.parameters()).device
    place = home if device == "auto" else torch.device(device)
    if batch_size is None:
        batch_size = EVALUATION_BATCH.get(place.type, 1000)
    training = {module: module.training for module in model.modules()}
    mean, std = (torch.as_tensor(values, device=place) for values in (mean, std))
    try:
        model.eval().to(place)
        with no_tf32() if place.type == "cuda" else nullcontext():
            logits = [
                model(normalize(batch.to(place), mean, std)).float().cpu()
                for batch in images.split(batch_size)
            ]
    finally:
        model.to(home)
        for module, mode in training.items():
            module.training = mode
    return Evaluation(torch.cat(logits), labels.cpu())
