"""Temperature scaling of confidences (Guo et al. 2017)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn

from .. import rng
from ..data import Dataset, split_holdout
from ..evaluation import Evaluation, evaluate
from ..runs.run import Run


def held_out(run: Run, model: nn.Module, data: Dataset, **settings: Any) -> Evaluation | None:
    """Evaluate the network on the images that the run held out of training; None without any.

    Of imported weights it is not known which images they were trained on.
    """
    experiment = run.experiment
    if not experiment.recipe.holdout or run.is_imported:
        return None
    images, labels = data.train
    _, indices = split_holdout(labels, experiment.recipe.holdout, experiment.seed)
    return evaluate(model, images[indices], labels[indices], **settings)


# Far beyond what networks need: Guo et al. find 1 to 3. If every prediction is correct there is no
# optimum, and the lower bound is the result.
BOUNDS = (0.05, 20.0)


def fit_temperature(evaluation: Evaluation) -> float:
    """The temperature by which to divide the logits: the one with the lowest cross-entropy."""
    from scipy.optimize import minimize_scalar  # slow to import

    logits, labels = evaluation.logits.double(), evaluation.labels

    def loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    low, high = map(math.log, BOUNDS)
    return math.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x)


@dataclass(frozen=True)
class Calibrated:
    """An evaluation before and after temperature scaling.

    No temperature is applied to images that it was fitted on; `fitted_on` describes those.
    """

    before: Evaluation
    after: Evaluation
    temperatures: tuple[float, ...]
    fitted_on: str

    @property
    def table(self) -> pd.DataFrame:
        """Accuracy and calibration error in per cent, cross-entropy in nats, before and after."""
        return pd.DataFrame(
            {
                name: {
                    "accuracy (%)": 100 * e.accuracy,
                    "mean confidence (%)": 100 * e.confidences.mean().item(),
                    "calibration error (%)": 100 * e.ece,
                    "cross-entropy (nats)": e.loss,
                }
                for name, e in (("as trained", self.before), ("with temperature", self.after))
            }
        )


def calibrated(evaluation: Evaluation, held_out: Evaluation | None = None) -> Calibrated:
    """Scale an evaluation by a temperature fitted on other images.

    These are the held-out images if there are any. Otherwise the images are split at random into
    two halves, and each is scaled by the temperature fitted on the other.
    """
    if held_out is not None:
        temperature = fit_temperature(held_out)
        after = replace(evaluation, logits=evaluation.logits / temperature)
        fitted_on = f"{len(held_out.labels):,} training images held out of this run"
        return Calibrated(evaluation, after, (temperature,), fitted_on)
    order = torch.randperm(len(evaluation.labels), generator=rng.generator(0, "calibration"))
    logits = evaluation.logits.clone()
    temperatures = []
    halves = order.tensor_split(2)
    for fitted, scaled in (halves, halves[::-1]):
        half = Evaluation(evaluation.logits[fitted], evaluation.labels[fitted])
        temperatures.append(fit_temperature(half))
        logits[scaled] /= temperatures[-1]
    after = replace(evaluation, logits=logits)
    fitted_on = "each half of the test images for the other"
    return Calibrated(evaluation, after, tuple(temperatures), fitted_on)
