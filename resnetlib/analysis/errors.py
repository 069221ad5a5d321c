"""Error analysis: pairs of classes that are confused, and the most confident errors."""

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from ..data import Dataset, normalization
from ..device import resolve_device_settings
from ..evaluation import Evaluation
from ..experiment import Experiment


def evaluation_settings(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    """The keyword arguments of `evaluate` that training used."""
    mean, std = normalization(experiment.recipe, data)
    return {"mean": mean, "std": std, "device": resolve_device_settings(experiment).device}


def confused_pairs(evaluation: Evaluation, count: int = 6) -> pd.DataFrame:
    """The most frequent errors: a row per (true, predicted) pair of class names.

    Columns: number of `images`, `share of class` (the true one) and `share of errors` in per cent,
    and the number of errors in `reverse`.
    """
    matrix, names = evaluation.confusion, evaluation.per_class.index
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[: min(count, np.count_nonzero(wrong))]
    true, predicted = np.unravel_index(order, wrong.shape)
    images = wrong[true, predicted]
    table = pd.DataFrame(
        {
            "true": names[true],
            "predicted": names[predicted],
            "images": images,
            "share of class": 100 * images / matrix[true].sum(1),
            "share of errors": 100 * images / wrong.sum(),
            "reverse": wrong[predicted, true],
        }
    )
    return table.set_index(["true", "predicted"])


def misclassified_as(evaluation: Evaluation, true: str, predicted: str) -> Tensor:
    """Indices (N,) of images of one class predicted as another, most confident first."""
    names = list(evaluation.per_class.index)
    for name in (true, predicted):
        if name not in names:
            raise ValueError(f"no class {name!r}; one of {', '.join(names)}")
    found = (evaluation.labels == names.index(true)) & (
        evaluation.predictions == names.index(predicted)
    )
    return evaluation.most_confident(found)


def most_confident_errors(evaluation: Evaluation, count: int) -> Tensor:
    """Indices (count,) of the misclassified images with the highest confidence."""
    return evaluation.most_confident(~evaluation.correct)[:count]
