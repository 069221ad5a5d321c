"""Estimate how long a run takes on this machine, from a few timed training steps."""

import dataclasses
import time
from collections.abc import Callable
from statistics import median

import torch

from ..data import Dataset
from ..device import (
    EVALUATION_BATCH,
    DeviceSettings,
    deterministic_cudnn,
    fork_rng,
    retain_freed_memory,
)
from ..experiment import Experiment
from ..schema import NUM_CLASSES
from ..training import Trainer

TEST_IMAGES = {"cifar10": 10_000, "digits": 450}
SECONDS = 1.0  # of timing, training and evaluation each; a first call comes before


def estimate_epoch_seconds(experiment: Experiment, settings: DeviceSettings) -> float:
    """Seconds per epoch, with its evaluation, from steps on random images; nothing is read.

    The steps run without compilation, whose gain (15 to 30 % for large networks) is left out.
    """
    recipe = experiment.recipe
    images = experiment.training_images
    evaluated = TEST_IMAGES[experiment.dataset] + recipe.holdout
    # The time of a larger batch is in proportion.
    batch_size = min(recipe.batch_size, images, EVALUATION_BATCH[settings.device.type])
    with fork_rng(settings.device), deterministic_cudnn(), retain_freed_memory():
        dataset = _random_dataset(batch_size, settings)
        plain = experiment.model_copy(update={"recipe": recipe.model_copy(update={"holdout": 0})})
        trainer = Trainer(plain, dataset, dataclasses.replace(settings, compiled=False))
        trainer.model.train()
        batch, labels = trainer.train_split
        flip_mask = torch.zeros(len(labels), dtype=torch.bool)
        step = _seconds(lambda: trainer.train_step(batch, labels, flip_mask, 1, 0).tolist())
        with settings.autocast():
            test = _seconds(lambda: trainer.evaluate(*trainer.eval_splits["test"]).accuracy)
    evaluation = test * evaluated / len(dataset.test[1])
    steps = experiment.steps_per_epoch * min(recipe.batch_size, images) / batch_size
    return steps * step + evaluation


def _random_dataset(batch_size: int, settings: DeviceSettings) -> Dataset:
    """One batch to train on and one to evaluate."""
    halves = []
    for count in (batch_size, EVALUATION_BATCH[settings.device.type]):
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8)
        halves.append((images, torch.arange(count) % NUM_CLASSES))
    classes = tuple(map(str, range(NUM_CLASSES)))
    return Dataset("random", *halves, classes=classes, checksums={}, source="memory")


def _seconds(call: Callable[[], object]) -> float:
    """Median time of a call, after a first one that is not counted."""
    call()
    times: list[float] = []
    while not times or sum(times) < SECONDS:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return median(times)
