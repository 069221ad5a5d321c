"""The training loop: one step, one epoch, all epochs.

There is one path through a step; every option is composed before the first one.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import compose
from .data import Dataset, normalization, split_holdout
from .device import (
    EVALUATION_BATCH,
    DeviceSettings,
    compile_step,
    deterministic_cudnn,
    no_tf32,
    resolve_device_settings,
    retain_freed_memory,
)
from .errors import Diverged
from .evaluation import Evaluation, evaluate, normalize
from .experiment import Experiment
from .optim import Average, build_optimizer, sharpness_aware
from .progress import EpochProgress
from .resnet import build_model
from .rng import derive_seed, generator, seeding
from .schedule import learning_rate
from .schema import Clip

if TYPE_CHECKING:
    import pandas as pd

WHITENING_IMAGES = 5000  # training images that the filters of a whitening stem are fitted to
UNTRAINED_IMAGES = 2000  # enough to see an accuracy of one in ten, to 0.7 points; 0.3 s of `lite`


def gradient_clipping(clip: Clip | None) -> Callable[[list[nn.Parameter]], Any]:
    """What is done to the gradients between backward pass and update."""
    if clip is None:
        return lambda parameters: None
    if clip.by == "value":
        return lambda parameters: nn.utils.clip_grad_value_(parameters, clip.limit)
    return lambda parameters: nn.utils.clip_grad_norm_(parameters, clip.limit)


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation (count,) in which an epoch, counted from 1, takes the training images."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def epoch_flip_mask(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) bool: which training images an alternating flip turns in an epoch from 1."""
    first = torch.rand(count, generator=generator(seed, "flip")) < 0.5
    return first if epoch % 2 else ~first


def preview_batch(experiment: Experiment, dataset: Dataset, count: int) -> tuple[Tensor, list[str]]:
    """The first images of the run's first batch, augmented, with the names of their classes.

    Images uint8 (count, 3, H, W): exactly those that the first step trains on. A blended image
    has the name of the class that it is most of.
    """
    recipe, seed = experiment.recipe, experiment.seed
    kept, _ = split_holdout(dataset.train[1], recipe.holdout, seed)
    order = epoch_order(len(kept), seed, 1)[: recipe.batch_size]
    images, labels = (part[kept[order]] for part in dataset.train)
    flip_mask = epoch_flip_mask(len(kept), seed, 1)[order]
    images, targets = compose(recipe.augment)(
        images, labels, generator(seed, "augment", 1, 0), flip_mask
    )
    return images[:count], [dataset.classes[label] for label in hard_labels(targets)[:count]]


def hard_labels(targets: Tensor) -> Tensor:
    """Labels (N,) of targets: they themselves, or the likeliest class of probabilities (N, C)."""
    return targets if targets.ndim == 1 else targets.argmax(1)


@dataclass
class BestWeights:
    """The weights of the epoch that the recipe selects, when that is not simply the last."""

    epoch: int = 0
    accuracy: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class EpochPosition:
    """How far the present epoch is: steps done, and the seconds that they took."""

    steps: int = 0
    seconds: float = 0.0


class Trainer:
    """Everything that changes during a run, and the loop that changes it.

    `state()` and `load_state()` hold all of it: since every random draw is a function of (seed,
    stream, epoch, step), nothing else decides how a run goes on.
    """

    def __init__(
        self, experiment: Experiment, dataset: Dataset, compute: DeviceSettings | None = None
    ):
        self.recipe = recipe = experiment.recipe
        self.seed = experiment.seed
        self.device_settings = compute or resolve_device_settings(experiment)
        device = self.device_settings.device
        kept, held_out = split_holdout(dataset.train[1], recipe.holdout, experiment.seed)
        self.train_split = _to_device(device, dataset.train, kept)
        self.eval_splits = {"test": _to_device(device, dataset.test)}
        if recipe.holdout:
            self.eval_splits = {
                "holdout": _to_device(device, dataset.train, held_out)
            } | self.eval_splits
        self.mean, self.std = normalization(recipe, dataset)
        self.steps_per_epoch = math.ceil(len(self.train_split[1]) / recipe.batch_size)

        self.model = build_model(experiment.architecture, seed=experiment.seed)
        if experiment.architecture.stem == "whitening":
            images = self.train_split[0][:WHITENING_IMAGES].cpu()
            self.model.stem[0].fit(normalize(images, self.mean, self.std))
        self.model.to(device, memory_format=self.device_settings.memory_format)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.parameters, recipe)
        self.average = Average(self.model, recipe.ema.decay) if recipe.ema else None
        self.augment = compose(recipe.augment)
        self.clip_gradients = gradient_clipping(recipe.clip)
        self.update_average = self.average.update_parameters if recipe.ema else lambda model: None
        self.backward = self._backward
        if recipe.sam:
            self.backward = sharpness_aware(self._backward, self.model, recipe.sam.rho)
        self.compiled_loss = self._loss
        if self.device_settings.compiled:
            self.compiled_loss = compile_step(self._loss, device)
        self.seed_draws = seeding(device)
        self.dropout_seed = 0

        self.history: list[dict[str, float]] = []
        self.best = BestWeights()
        self.progress = EpochPosition()
        self.evaluation_seconds = 0.0  # within the epochs
        self.final_evaluations: dict[str, Evaluation] = {}  # after the last epoch, in float32
        self.running_totals = torch.zeros(2, device=device)  # loss, correct of the present epoch

    def table(self) -> "pd.DataFrame":
        """The history so far, a row an epoch."""
        import pandas as pd

        return pd.DataFrame(self.history)

    @property
    def epochs_done(self) -> int:
        return len(self.history) - 1  # the first row is the network before training

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is evaluated and kept: the average of the weights, if there is one."""
        return self.average.module if self.average else self.model

    def state(self) -> dict[str, Any]:
        """Complete and loadable with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "history": self.history,
            "best": vars(self.best),
            "progress": vars(self.progress),
            "sums": self.running_totals,
            "evaluation_seconds": self.evaluation_seconds,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.history = state["history"]
        self.best = BestWeights(**state["best"])
        self.progress = EpochPosition(**state["progress"])
        self.evaluation_seconds = state["evaluation_seconds"]
        self.running_totals.copy_(state["sums"])

    def _loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss, and the number correct, of uint8 images (B, 3, H, W) with their targets."""
        with self.device_settings.autocast():
            images = normalize(images, self.mean, self.std)
            images = images.contiguous(memory_format=self.device_settings.memory_format)
            logits = self.model(images).float()  # (B, 10)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        return loss, (logits.detach().argmax(1) == hard_labels(targets)).sum()

    def _backward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Put the gradients into the parameters; (2,) the summed loss and the number correct."""
        self.seed_draws(self.dropout_seed)
        # The last batch of an epoch is smaller and takes the plain path: see `compile_step`.
        whole = len(images) == self.recipe.batch_size
        loss, correct = (self.compiled_loss if whole else self._loss)(images, targets)
        self.optimizer.zero_grad()
        loss.backward()
        return torch.stack((loss.detach() * len(images), correct))

    def train_step(
        self, images: Tensor, labels: Tensor, flip_mask: Tensor, epoch: int, step: int
    ) -> Tensor:
        """One update from uint8 images (B, 3, H, W); (2,) the summed loss and number correct."""
        draws = generator(self.seed, "augment", epoch, step)
        images, targets = self.augment(images, labels, draws, flip_mask)
        self.dropout_seed = derive_seed(self.seed, "dropout", epoch, step)
        reported = self.backward(images, targets)
        self.clip_gradients(self.parameters)
        self.optimizer.step()
        self.update_average(self.model)
        return reported

    def train_epoch(self, after_step: Callable[[], None]) -> dict[str, float]:
        """Every training image once, in a new order; then the held-back images. A history row.

        Goes on within an epoch that was begun. Training loss and accuracy are those of the
        batches as they were trained on: augmented, with label smoothing, under weights that still
        move.
        """
        began = time.perf_counter() - self.progress.seconds
        epoch = self.epochs_done + 1
        images, labels = self.train_split
        order = epoch_order(len(labels), self.seed, epoch)
        flip_mask = epoch_flip_mask(len(labels), self.seed, epoch)[order].split(
            self.recipe.batch_size
        )
        batches = order.to(self.device_settings.device).split(self.recipe.batch_size)
        self.model.train()
        for step in range(self.progress.steps, self.steps_per_epoch):
            steps_before = (epoch - 1) * self.steps_per_epoch
            self.set_lr(learning_rate(self.recipe, steps_before + step, self.steps_per_epoch))
            batch = batches[step]
            self.running_totals += self.train_step(
                images[batch], labels[batch], flip_mask[step], epoch, step
            )
            self.progress.steps = step + 1
            self.progress.seconds = time.perf_counter() - began
            after_step()
        rate = self.optimizer.param_groups[0]["lr"]
        loss, accuracy = (self.running_totals / len(labels)).tolist()
        row = {"epoch": epoch, "train_loss": loss, "train_accuracy": accuracy}
        row |= self._evaluate(precise=epoch == self.recipe.epochs)
        for name, value in row.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"{name} became {value} in epoch {epoch} at a learning rate of {rate:.3g}; "
                    "a lower `lr`, a warm-up or `clip` may help"
                )
        row |= {"lr": rate, "seconds": time.perf_counter() - began}
        self.progress = EpochPosition()
        self.running_totals.zero_()
        return row

    def set_lr(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)  # older checkpoints have none

    def evaluate_untrained(self) -> dict[str, float]:
        """Row 0 of the history: the untrained network, on the first 2,000 images of each split."""
        began = time.perf_counter()
        row = {"epoch": 0}
        with self.device_settings.autocast():
            for name, split in ({"train": self.train_split} | self.eval_splits).items():
                row |= _columns(name, self.evaluate(*(part[:UNTRAINED_IMAGES] for part in split)))
        return row | {"lr": 0.0, "seconds": time.perf_counter() - began}

    def evaluate(self, images: Tensor, labels: Tensor) -> Evaluation:
        return evaluate(
            self.evaluated_model,
            images,
            labels,
            mean=self.mean,
            std=self.std,
            batch_size=EVALUATION_BATCH[self.device_settings.device.type],
        )

    def _evaluate(self, precise: bool) -> dict[str, float]:
        """The columns of held-back images: in float32 (`precise`) or the precision of the run."""
        began = time.perf_counter()
        columns = {}
        with no_tf32() if precise else self.device_settings.autocast():
            for name, (images, labels) in self.eval_splits.items():
                evaluation = self.evaluate(images, labels)
                columns |= _columns(name, evaluation)
                if precise:
                    self.final_evaluations[name] = evaluation
        self.evaluation_seconds += time.perf_counter() - began
        return columns

    def record_epoch(self, row: dict[str, float]) -> None:
        """Append a row of the history, and keep the weights if the recipe selects this epoch."""
        self.history.append(row)
        scores = {"best_holdout": "holdout_accuracy", "best_test": "test_accuracy"}
        score = row.get(scores.get(self.recipe.select, ""), -1.0)
        if row["epoch"] and score > self.best.accuracy:
            weights = self.evaluated_model.state_dict()
            weights = {name: value.clone() for name, value in weights.items()}
            self.best = BestWeights(int(row["epoch"]), score, weights)

    def select(self) -> tuple[int, Evaluation]:
        """Put the selected weights into the evaluated network; their epoch and test evaluation."""
        epoch = self.epochs_done
        if self.best.weights:
            epoch = self.best.epoch
            self.evaluated_model.load_state_dict(self.best.weights)
            self.final_evaluations.clear()
        if "test" not in self.final_evaluations:
            with no_tf32():
                self.final_evaluations["test"] = self.evaluate(*self.eval_splits["test"])
        return epoch, self.final_evaluations["test"]


def _columns(split: str, evaluation: Evaluation) -> dict[str, float]:
    """What the history has of an evaluated split."""
    return {f"{split}_loss": evaluation.loss, f"{split}_accuracy": evaluation.accuracy}


def _to_device(device: torch.device, split: tuple[Tensor, Tensor], indices: Tensor | None = None):
    """A split, or these indices of it, on the device; no copy where none is needed."""
    images, labels = split
    if indices is not None and len(indices) < len(labels):
        images, labels = images[indices], labels[indices]
    return images.to(device), labels.to(device)


class Callback:
    """What is called during `fit`; a subclass overrides what it needs.

    A callback may read everything of the training and must change nothing of it: with and without
    callbacks a run computes the same.
    """

    def on_start(self, training: Trainer) -> None:
        """Before the first step, of a new or a resumed training."""

    def after_step(self, training: Trainer) -> None:
        """After each update of the weights."""

    def after_epoch(self, training: Trainer) -> None:
        """After each row of the history, row 0 (the untrained network) included."""

    def after_training(self, training: Trainer) -> None:
        """After the last epoch, before the results are computed."""


def fit(training: Trainer, epochs: int, callbacks: Sequence[Callback] = ()) -> "pd.DataFrame":
    """Train until `epochs` are done, from wherever the training stands; the history."""
    devices = (
        [training.device_settings.device] if training.device_settings.device.type == "cuda" else []
    )
    done = max(training.epochs_done, 0)
    progress = EpochProgress(done + 1, epochs, training.steps_per_epoch, training.progress.steps)
    with (
        torch.random.fork_rng(devices=devices),
        deterministic_cudnn(),
        retain_freed_memory(),
        progress as shown,
    ):

        def notify_step() -> None:
            shown.step()
            for callback in callbacks:
                callback.after_step(training)

        def notify_epoch() -> None:
            for callback in callbacks:
                callback.after_epoch(training)
            shown.epoch(training.history[-1])

        for callback in callbacks:
            callback.on_start(training)
        if not training.history:
            training.record_epoch(training.evaluate_untrained())
            notify_epoch()
        while training.epochs_done < epochs:
            training.record_epoch(training.train_epoch(notify_step))
            notify_epoch()
    for callback in callbacks:
        callback.after_training(training)
    return training.table()
