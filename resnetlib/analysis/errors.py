"""Confused classes and confident errors."""

from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from ..data import Dataset, normalization
from ..device import EVALUATION_BATCH, resolve_device_settings
from ..evaluation import Evaluation
from ..experiment import Experiment


def evaluation_settings(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    """The keywords of `evaluate` as the experiment's training had them."""
    device = resolve_device_settings(experiment).device
    mean, std = normalization(experiment.recipe, data)
    return {
        "mean": mean,
        "std": std,
        "batch_size": EVALUATION_BATCH[device.type],
        "device": device,
    }


def confused_pairs(evaluation: Evaluation, count: int = 6) -> pd.DataFrame:
    """The most frequent mistakes: a row for each (true, predicted), named by class.

    `images` taken so, their `share of class` (of the true class) and `share of mistakes` in per
    cent, and how many are taken `the other way`.
    """
    matrix = evaluation.confusion
    wrong = matrix * ~np.eye(len(matrix), dtype=bool)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [np.unravel_index(place, wrong.shape) for place in order]
    pairs = [(true, predicted) for true, predicted in pairs if wrong[true, predicted]]
    names = evaluation.per_class.index
    rows = [
        {
            "true": names[true],
            "predicted": names[predicted],
            "images": wrong[true, predicted],
            "share of class": 100 * wrong[true, predicted] / matrix[true].sum(),
            "share of mistakes": 100 * wrong[true, predicted] / wrong.sum(),
            "the other way": wrong[predicted, true],
        }
        for true, predicted in pairs
    ]
    columns = ["images", "share of class", "share of mistakes", "the other way"]
    return pd.DataFrame(rows, columns=["true", "predicted", *columns]).set_index(
        ["true", "predicted"]
    )


def misclassified_as(evaluation: Evaluation, true: str, predicted: str) -> Tensor:
    """Places (N,) of the images of one class that were taken for another, the surest first."""
    names = list(evaluation.per_class.index)
    for name in (true, predicted):
        if name not in names:
            raise ValueError(f"no class {name!r}; one of {', '.join(names)}")
    found = (evaluation.labels == names.index(true)) & (
        evaluation.predictions == names.index(predicted)
    )
    places = found.nonzero()[:, 0]
    return places[evaluation.confidences[places].argsort(descending=True, stable=True)]


def most_confident_errors(evaluation: Evaluation, count: int) -> Tensor:
    """Places (count,) of the wrong images that the network was surest of."""
    places = (~evaluation.correct).nonzero()[:, 0]
    return places[evaluation.confidences[places].argsort(descending=True, stable=True)][:count]
