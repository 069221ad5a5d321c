"""How a run's network is asked: what `analyze_errors` begins with."""

from typing import Any

from torch import nn

from .compute import EVALUATION_BATCH, choose_compute
from .config import ConfigError, Experiment
from .corruptions import CORRUPTIONS, STRENGTHS
from .data import Dataset, normalization, split_holdout
from .evaluate import Evaluation, evaluate
from .resnet import macs
from .runs import Run

# Multiply-accumulates that the damaged images may take unless their number is given: a minute of
# one core, where `lite` computes 4e10 a second.
MACS = 2.5e12
FEWEST_IMAGES = 1000  # an accuracy of 80 % is then known to ±2.5 points


def evaluation_settings(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    """The keywords of `evaluate` as the experiment's training had them."""
    device = choose_compute(experiment).device
    mean, std = normalization(experiment.recipe, data)
    return {
        "mean": mean,
        "std": std,
        "batch_size": EVALUATION_BATCH[device.type],
        "device": device,
    }


def held_out(run: Run, model: nn.Module, data: Dataset, **settings: Any) -> Evaluation | None:
    """The network on the training images that the run held out; None where it held out none."""
    experiment = run.experiment
    if not experiment.recipe.holdout:
        return None
    images, labels = data.train
    _, places = split_holdout(labels, experiment.recipe.holdout, experiment.seed)
    return evaluate(model, images[places], labels[places], **settings)


def images_to_damage(wanted: int | None, model: nn.Module, available: int) -> int:
    """How many test images `robustness` is to use: what is wanted, or else affordable.

    Affordable are all of a small network's, fewer of a large one's, never less than 1,000.
    Raises `ConfigError` for a number that cannot be.
    """
    if wanted is None:
        settings = len(CORRUPTIONS) * len(STRENGTHS)
        affordable = int(MACS / (settings * macs(model)) // 100) * 100
        return min(available, max(FEWEST_IMAGES, affordable))
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= available:
        raise ConfigError(f"images = {wanted!r}: give a whole number from 1 to {available:,}")
    return wanted
