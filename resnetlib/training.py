"""The training loop: one step, one epoch, all epochs; it never touches the disk.

There is one path through a step; every option is composed before the first one.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .augment import compose
from .data import Dataset, Split, normalization, split_holdout
from .device import (
    EVALUATION_BATCH,
    DeviceSettings,
    compile_step,
    deterministic_cudnn,
    fork_rng,
    resolve_device_settings,
    retain_freed_memory,
)
from .errors import Diverged
from .evaluation import Evaluation, evaluate, normalize
from .experiment import Experiment
from .optim import (
    MAX_SKIPPED_STEPS,
    Average,
    GradientScaler,
    build_optimizer,
    sharpness_aware,
)
from .progress import EpochProgress
from .resnet import build_model
from .rng import derive_seed, generator, plain_defaults, seeding
from .schedule import learning_rate
from .schema import Clip

if TYPE_CHECKING:
    import pandas as pd

WHITENING_IMAGES = 5000  # training images that the filters of a whitening stem are fitted to
UNTRAINED_IMAGES = 2000  # enough to see an accuracy of one in ten, to 0.7 points; 0.3 s of `lite`
# Steps between two looks at whether loss and gradients are finite: a look waits for a GPU.
FINITE_CHECK_STEPS = {"cpu": 1, "cuda": 16, "mps": 16}


def gradient_clipping(clip: Clip | None) -> Callable[[list[nn.Parameter]], Tensor]:
    """The function that clips the gradients before the update and returns their norm.

    The norm is not finite where the update would not be: it is taken after a clipping by value,
    which makes an infinite gradient finite, and before one by norm, which makes it NaN.
    """

    def norm(parameters: list[nn.Parameter]) -> Tensor:
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def clip_value(parameters: list[nn.Parameter]) -> Tensor:
        nn.utils.clip_grad_value_(parameters, clip.limit)
        return norm(parameters)

    def clip_norm(parameters: list[nn.Parameter]) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, clip.limit)

    if clip is None:
        return norm
    return clip_value if clip.by == "value" else clip_norm


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """The permutation (count,) of the training images in an epoch, counted from 1."""
    return torch.randperm(count, generator=generator(seed, "order", epoch))


def epoch_flip_mask(count: int, seed: int, epoch: int) -> Tensor:
    """(count,) bool: which images an alternating flip mirrors in an epoch, counted from 1."""
    first = torch.rand(count, generator=generator(seed, "flip")) < 0.5
    return first if epoch % 2 else ~first


def preview_batch(experiment: Experiment, dataset: Dataset, count: int) -> tuple[Tensor, list[str]]:
    """The first images of the run's first batch, augmented, with the names of their classes.

    Images uint8 (count, 3, H, W): exactly those that the first step trains on. A blended image
    has the name of the class with the largest share.
    """
    recipe, seed = experiment.recipe, experiment.seed
    kept, _ = split_holdout(dataset.train[1], recipe.holdout, seed)
    order = epoch_order(len(kept), seed, 1)[: recipe.batch_size]
    images, labels = (part[kept[order]] for part in dataset.train)
    with plain_defaults():
        flip_mask = epoch_flip_mask(len(kept), seed, 1)[order]
        images, targets = compose(recipe.augment)(
            images, labels, generator(seed, "augment", 1, 0), flip_mask
        )
    return images[:count], [dataset.classes[label] for label in hard_labels(targets)[:count]]


def hard_labels(targets: Tensor) -> Tensor:
    """Labels (N,) of targets that are labels (N,) or class probabilities (N, C)."""
    return targets if targets.ndim == 1 else targets.argmax(1)


@dataclass
class BestWeights:
    """The weights of the best epoch so far, where the recipe does not select the last one."""

    epoch: int = 0
    accuracy: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class EpochPosition:
    """The position within the current epoch: steps done, and the seconds that they took."""

    steps: int = 0
    seconds: float = 0.0


class Trainer:
    """Everything that changes during a run, and the loop that changes it.

    `state()` and `load_state()` hold all of it: since every random draw is a function of (seed,
    stream, epoch, step), nothing else decides how a run continues.

    A step calls what the options of the recipe were composed into before it:

        train_step
            augment         crop, flip, mixup, …                   of augment/
            backward        `_backward`, inside `sharpness_aware` with `sam`
                compiled_loss   `_loss`, compiled where the device settings say so
            clip_gradients  of `gradient_clipping`
            scaler.step     `optimizer.step`, unless float16 gradients are not finite
                optimizer.step  of optim, inside `Lookahead` where asked for
            update_average  of `Average` with `ema`, else nothing
    """

    def __init__(
        self, experiment: Experiment, dataset: Dataset, settings: DeviceSettings | None = None
    ):
        self.recipe = recipe = experiment.recipe
        self.seed = experiment.seed
        self.device_settings = settings or resolve_device_settings(experiment)
        device = self.device_settings.device
        kept, held_out = split_holdout(dataset.train[1], recipe.holdout, experiment.seed)
        self.train_split = _to_device(device, dataset.train, kept)
        self.eval_splits: dict[str, Split] = {}
        if recipe.holdout:
            self.eval_splits["holdout"] = _to_device(device, dataset.train, held_out)
        self.eval_splits["test"] = _to_device(device, dataset.test)
        mean, std = normalization(recipe, dataset)
        # On the device once: made within a step, they would be copied to it each time.
        self.mean, self.std = (torch.tensor(values, device=device) for values in (mean, std))
        self.steps_per_epoch = math.ceil(len(self.train_split[1]) / recipe.batch_size)

        self.model = build_model(experiment.architecture, seed=experiment.seed)
        if experiment.architecture.stem == "whitening":
            images = self.train_split[0][:WHITENING_IMAGES].cpu()
            self.model.stem[0].fit(normalize(images, mean, std))
        self.device_settings.place(self.model)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(self.parameters, recipe)
        float16 = self.device_settings.precision == torch.float16
        self.scaler = GradientScaler(device, self.optimizer, enabled=float16)
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
        self.seed_dropout = seeding(device)
        self.after_batch: Callable[[], None] = lambda: None  # of an evaluation; see `fit`

        self.history: list[dict[str, float]] = []
        self.best = BestWeights()
        self.progress = EpochPosition()
        self.evaluation_seconds = 0.0  # within the epochs
        self.test_evaluation: Evaluation | None = None  # after the last epoch, in float32
        self.running_totals = torch.zeros(2, device=device)  # loss, correct of the current epoch
        self.gradient_norms = torch.zeros((), device=device)  # their sum: finite if each one is

    def table(self) -> "pd.DataFrame":
        """The history so far, one row per epoch."""
        import pandas as pd

        return pd.DataFrame(self.history)

    @property
    def epochs_done(self) -> int:
        return len(self.history) - 1  # the first row is the network before training

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is evaluated and saved: the average of the weights, if there is one."""
        return self.average.module if self.average else self.model

    def state(self) -> dict[str, Any]:
        """Complete and loadable with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else {},
            "scaler": self.scaler.state_dict(),
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
        self.scaler.load_state_dict(state.get("scaler", {}))  # older checkpoints have none
        self.history = [dict(row) for row in state["history"]]
        self.best = BestWeights(**state["best"])
        self.progress = EpochPosition(**state["progress"])
        if (
            len(self.history) > self.recipe.epochs + 1
            or not 0 <= self.progress.steps <= self.steps_per_epoch
        ):
            raise ValueError("it has other epochs or steps")
        self.evaluation_seconds = state["evaluation_seconds"]
        self.running_totals.copy_(state["sums"])

    def find_non_finite(self) -> str:
        """The name of the first tensor of the state that is not finite; empty if all are."""
        tensors = dict(_tensors(self.state()))
        finite = [
            tensor.isfinite().all().to(self.running_totals.device) for tensor in tensors.values()
        ]
        finite = torch.stack(finite).tolist()  # one wait for a GPU
        return next((name for name, good in zip(tensors, finite, strict=True) if not good), "")

    def _loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss, and the number correct, of uint8 images (B, 3, H, W) with their targets."""
        with self.device_settings.autocast():
            images = normalize(images, self.mean, self.std)
            images = images.contiguous(memory_format=self.device_settings.memory_format)
            logits = self.model(images).float()  # (B, 10)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        return loss, (logits.detach().argmax(1) == hard_labels(targets)).sum()

    def _backward(self, images: Tensor, targets: Tensor, dropout_seed: int) -> Tensor:
        """Compute the gradients; (2,) the summed loss and the number correct."""
        self.seed_dropout(dropout_seed)
        # The last batch of an epoch is smaller and takes the plain path: see `compile_step`.
        whole = len(images) == self.recipe.batch_size
        loss, correct = (self.compiled_loss if whole else self._loss)(images, targets)
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        return torch.stack((loss.detach() * len(images), correct))

    def train_step(
        self, images: Tensor, labels: Tensor, flip_mask: Tensor, epoch: int, step: int
    ) -> Tensor:
        """One update of the weights; (2,) the summed loss and the number correct.

        Args:
            images: uint8 (B, 3, H, W).
            labels: int64 (B,).
            flip_mask: bool (B,), which images an alternating flip mirrors in this epoch.
            epoch: counted from 1.
            step: counted from 0 within the epoch.
        """
        draws = generator(self.seed, "augment", epoch, step)
        images, targets = self.augment(images, labels, draws, flip_mask)
        totals = self.backward(images, targets, derive_seed(self.seed, "dropout", epoch, step))
        self.scaler.unscale_(self.optimizer)
        norm = self.clip_gradients(self.parameters)
        self.gradient_norms += self.scaler.step(self.optimizer, norm)
        self.scaler.update()
        self.update_average(self.model)
        return totals

    def train_epoch(self, after_step: Callable[[], None]) -> dict[str, float]:
        """Train on every image once, in a new order, then evaluate; a row of the history.

        An epoch that was begun is continued. Training loss and accuracy are those of the batches
        as they were trained on: augmented, with label smoothing, under changing weights. Raises
        `Diverged` where loss, gradients or a figure of the row are not finite.
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
        first_step = (epoch - 1) * self.steps_per_epoch
        for step in range(self.progress.steps, self.steps_per_epoch):
            rate = learning_rate(self.recipe, first_step + step, self.steps_per_epoch, self.history)
            self.set_lr(rate)
            batch = batches[step]
            self.running_totals += self.train_step(
                images[batch], labels[batch], flip_mask[step], epoch, step
            )
            self.progress.steps = step + 1
            self.progress.seconds = time.perf_counter() - began
            self.check_divergence()
            after_step()
        rate = self.optimizer.param_groups[0]["lr"]
        loss, accuracy = (self.running_totals / len(labels)).tolist()
        row = {"epoch": epoch, "train_loss": loss, "train_accuracy": accuracy}
        row |= self._evaluate(precise=epoch == self.recipe.epochs)
        for name, value in row.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} became {value}")
        row |= {"lr": rate, "seconds": time.perf_counter() - began}
        self.progress = EpochPosition()
        self.running_totals.zero_()
        return row

    def check_divergence(self) -> None:
        """Raise `Diverged` where a loss or a gradient was not finite; looks every few steps.

        In float16 single steps with such gradients are skipped; many in a row are divergence.
        """
        steps = self.progress.steps
        every = FINITE_CHECK_STEPS[self.device_settings.device.type]
        if steps % every and steps < self.steps_per_epoch:
            return
        watched = torch.stack((self.running_totals[0], self.gradient_norms, self.scaler.skipped))
        loss, gradient, skipped = watched.tolist()
        for name, value in (("loss", loss), ("gradient", gradient)):
            if not math.isfinite(value):
                raise self.diverged(f"the training {name} became {value}")
        if skipped >= MAX_SKIPPED_STEPS:
            raise self.diverged(
                f"{MAX_SKIPPED_STEPS} steps in a row had float16 gradients that are not finite"
            )

    def diverged(self, what: str) -> Diverged:
        """The error for a value that is not finite, with epoch, step and learning rate."""
        epoch, step = self.epochs_done + 1, self.progress.steps
        if not step:  # between two epochs
            epoch, step = self.epochs_done, self.steps_per_epoch
        rate = self.optimizer.param_groups[0]["lr"]
        wider = ", `precision: float32`" if self.scaler.is_enabled() else ""
        return Diverged(
            f"{what} in epoch {epoch}, step {step} of {self.steps_per_epoch}, "
            f"at a learning rate of {rate:.3g}; "
            f"a lower `lr`, a warm-up{wider} or `clip` may help"
        )

    def set_lr(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_factor", 1.0)  # older checkpoints have none

    def evaluate_untrained(self) -> dict[str, float]:
        """Row 0 of the history: the untrained network, on the first 2,000 images of each split.

        In float32: activations of a deep untrained network exceed the range of float16.
        """
        began = time.perf_counter()
        row = {"epoch": 0}
        for name, split in ({"train": self.train_split} | self.eval_splits).items():
            row |= _columns(name, self.evaluate(*(part[:UNTRAINED_IMAGES] for part in split)))
        return row | {"lr": 0.0, "seconds": time.perf_counter() - began}

    def evaluate(self, images: Tensor, labels: Tensor) -> Evaluation:
        """The evaluated network on uint8 images (N, 3, H, W); `after_batch` is called between."""
        size = EVALUATION_BATCH[self.device_settings.device.type]
        logits = []
        for batch in zip(images.split(size), labels.split(size), strict=True):
            part = evaluate(self.evaluated_model, *batch, mean=self.mean, std=self.std)
            logits.append(part.logits)
            self.after_batch()
        return Evaluation(torch.cat(logits), labels.cpu())

    def _evaluate(self, precise: bool) -> dict[str, float]:
        """The columns of the splits, in float32 if `precise`, else in the precision of the run."""
        began = time.perf_counter()
        columns = {}
        with nullcontext() if precise else self.device_settings.autocast():
            for name, (images, labels) in self.eval_splits.items():
                evaluation = self.evaluate(images, labels)
                columns |= _columns(name, evaluation)
                if precise and name == "test":
                    self.test_evaluation = evaluation
        self.evaluation_seconds += time.perf_counter() - began
        return columns

    def record_epoch(self, row: dict[str, float]) -> None:
        """Append a row of the history; keep the weights if this is the best epoch so far."""
        self.history.append(row)
        scores = {"best_holdout": "holdout_accuracy", "best_test": "test_accuracy"}
        score = row.get(scores.get(self.recipe.select, ""), -1.0)
        if row["epoch"] and score > self.best.accuracy:
            weights = self.evaluated_model.state_dict()
            weights = {name: value.clone() for name, value in weights.items()}
            self.best = BestWeights(int(row["epoch"]), score, weights)

    def select(self) -> tuple[int, Evaluation]:
        """Load the selected weights into the evaluated network; their epoch and evaluation."""
        epoch = self.epochs_done
        if self.best.weights:
            epoch = self.best.epoch
            self.evaluated_model.load_state_dict(self.best.weights)
            self.test_evaluation = None
        if self.test_evaluation is None:
            self.test_evaluation = self.evaluate(*self.eval_splits["test"])
        return epoch, self.test_evaluation


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists, by its dotted name."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, dict | list):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _columns(split: str, evaluation: Evaluation) -> dict[str, float]:
    """The columns of the history for an evaluated split."""
    return {f"{split}_loss": evaluation.loss, f"{split}_accuracy": evaluation.accuracy}


def _to_device(device: torch.device, split: Split, indices: Tensor | None = None) -> Split:
    """A split, or these indices of it, on the device; no copy where none is needed."""
    images, labels = split
    if indices is not None and len(indices) < len(labels):
        images, labels = images[indices], labels[indices]
    return images.to(device), labels.to(device)


class Callback:
    """The hooks that `fit` calls; a subclass overrides those it needs.

    A callback may read everything of the training and must not change it: a run computes the same
    with and without callbacks. One that raises ends the training.
    """

    def on_start(self, training: Trainer) -> None:
        """Before the first step, of a new or a resumed training."""

    def after_step(self, training: Trainer) -> None:
        """After each update of the weights."""

    def after_epoch(self, training: Trainer) -> None:
        """After each row of the history, row 0 (the untrained network) included."""

    def after_evaluation_batch(self, training: Trainer) -> None:
        """Between the batches of an evaluation, when the state is that after the last step."""

    def after_training(self, training: Trainer) -> None:
        """After the last epoch, before the results are computed."""


def fit(training: Trainer, epochs: int, callbacks: Sequence[Callback] = ()) -> "pd.DataFrame":
    """Train from the current state until `epochs` are done; the history."""
    done = max(training.epochs_done, 0)
    progress = EpochProgress(done + 1, epochs, training.steps_per_epoch, training.progress.steps)

    def notify(hook: str) -> None:
        for callback in callbacks:
            getattr(callback, hook)(training)

    def after_step() -> None:
        notify("after_step")
        with suppress(OSError, ValueError):  # a closed or full output does not end a run
            progress.step()

    def record_epoch(row: dict[str, float]) -> None:
        training.record_epoch(row)
        notify("after_epoch")
        with suppress(OSError, ValueError):
            progress.epoch(row)

    training.after_batch = lambda: notify("after_evaluation_batch")
    with (
        fork_rng(training.device_settings.device),
        deterministic_cudnn(),
        retain_freed_memory(),
        progress,
    ):
        notify("on_start")
        if not training.history:
            record_epoch(training.evaluate_untrained())
        while training.epochs_done < epochs:
            record_epoch(training.train_epoch(after_step))
    notify("after_training")
    return training.table()
