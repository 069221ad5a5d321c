"""The loop: step, epoch, run. One path; every option is composed before the first step."""

import io
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import augment, files, plots, runs
from .config import Clip, ConfigError, Experiment, Recipe
from .data import Dataset, load_dataset, split_holdout
from .evaluate import Evaluation, evaluate, interval, normalize
from .progress import EpochProgress
from .resnet import build_model, check_size, count_parameters, macs, model_summary
from .rng import derive_seed, generator
from .runs import Run, RunError
from .schedule import build_optimizer, learning_rate

# Images at once. On a CPU a batch that stays in cache: `lite` on two AVX2 cores evaluates about
# 4,300 images/s by 250 and 2,000 by 1,000.
EVALUATION_BATCH = {"cpu": 250, "cuda": 2000, "mps": 1000}
FIGURE_DPI = 150  # 1500 pixels across: sharp in print at the width of a page


class Diverged(RunError):
    """The loss left the finite numbers."""


def check_experiment(experiment: Experiment) -> None:
    """Refuse, before anything is read, what could not be trained: size, augmentation, device."""
    check_size(experiment)
    augment.check_available(experiment.recipe.augment)
    runs.choose_device(experiment.execution.device)


def normalization(recipe: Recipe, dataset: Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel that the recipe's `normalize` stands for."""
    return {
        "dataset": lambda: (dataset.mean, dataset.std),
        "per_image_std": lambda: (dataset.mean, dataset.per_image_std),
        "none": lambda: ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    }[recipe.normalize]()


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


def preview_batch(experiment: Experiment, dataset: Dataset, count: int) -> tuple[Tensor, list[str]]:
    """The first images of the run's first batch, augmented, with the names of their classes.

    Images uint8 (count, 3, H, W): on the CPU exactly those that the first step trains on.
    """
    recipe, seed = experiment.recipe, experiment.seed
    kept, _ = split_holdout(dataset.train[1], recipe.holdout, seed)
    batch = kept[epoch_order(len(kept), seed, 1)[: recipe.batch_size]]
    images, labels = (part[batch] for part in dataset.train)
    images = augment.compose(recipe.augment)(images, generator(seed, "augment", 1, 0))
    return images[:count], [dataset.classes[label] for label in labels[:count]]


@dataclass
class Best:
    """The weights of the epoch that the recipe selects, when that is not simply the last."""

    epoch: int = 0
    accuracy: float = -1.0
    weights: dict[str, Tensor] = field(default_factory=dict)


class Training:
    """Everything that changes during a run, and the loop that changes it.

    `state()` and `load_state()` hold all of it: since every random draw is a function of (seed,
    stream, epoch, step), nothing else decides how a run goes on.
    """

    def __init__(self, experiment: Experiment, dataset: Dataset, device: torch.device):
        self.recipe = recipe = experiment.recipe
        self.seed = experiment.seed
        self.device = device
        kept, held_out = split_holdout(dataset.train[1], recipe.holdout, experiment.seed)
        self.train_split = _on(device, dataset.train, kept)
        self.evaluated = {"test": _on(device, dataset.test)}
        if recipe.holdout:
            self.evaluated = {"holdout": _on(device, dataset.train, held_out)} | self.evaluated
        self.mean, self.std = normalization(recipe, dataset)
        self.steps_per_epoch = math.ceil(len(self.train_split[1]) / recipe.batch_size)

        self.model = build_model(experiment.architecture, seed=experiment.seed)
        self.model.to(device, memory_format=runs.memory_format(experiment, device))
        self.parameters = list(self.model.parameters())
        self.optimizer = build_optimizer(self.parameters, recipe)
        self.augment = augment.compose(recipe.augment)
        self.clip_gradients = gradient_clipping(recipe.clip)
        self.history: list[dict[str, float]] = []
        self.best = Best()

    @property
    def epochs_done(self) -> int:
        return len(self.history) - 1  # the first row is the network before training

    def state(self) -> dict[str, Any]:
        """Complete and loadable with `weights_only=True`."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "history": self.history,
            "best": vars(self.best),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]
        self.best = Best(**state["best"])

    def step(self, images: Tensor, labels: Tensor, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """One update from uint8 images (B, 3, H, W); the summed loss and the number correct."""
        torch.manual_seed(derive_seed(self.seed, "dropout", epoch, step))
        images = self.augment(images, generator(self.seed, "augment", epoch, step, self.device))
        images = normalize(images, self.mean, self.std)
        logits = self.model(images)  # (B, 10)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad()
        loss.backward()
        self.clip_gradients(self.parameters)
        self.optimizer.step()
        return loss.detach() * len(labels), (logits.detach().argmax(1) == labels).sum()

    def epoch(self, on_step: Callable[[], None]) -> dict[str, float]:
        """Every training image once, in a new order; then the held-back images. A history row.

        Training loss and accuracy are those of the batches as they were trained on: augmented,
        with label smoothing, under weights that still move.
        """
        started = time.perf_counter()
        epoch = self.epochs_done + 1
        images, labels = self.train_split
        order = epoch_order(len(labels), self.seed, epoch)
        totals = torch.zeros(2, device=self.device)  # loss, correct
        self.model.train()
        for step, indices in enumerate(order.to(self.device).split(self.recipe.batch_size)):
            rate = learning_rate(
                self.recipe, (epoch - 1) * self.steps_per_epoch + step, self.steps_per_epoch
            )
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            totals += torch.stack(self.step(images[indices], labels[indices], epoch, step))
            on_step()
        loss, accuracy = (totals / len(labels)).tolist()
        row = {"epoch": epoch, "train_loss": loss, "train_accuracy": accuracy} | self._evaluate()
        for name, value in row.items():
            if not math.isfinite(value):
                raise Diverged(
                    f"{name} became {value} in epoch {epoch} at a learning rate of {rate:.3g}; "
                    "a lower `lr`, a warm-up or `clip` may help"
                )
        return row | {"lr": rate, "seconds": time.perf_counter() - started}

    def before_training(self) -> dict[str, float]:
        """Row 0 of the history: the untrained network, on as many training images as test ones."""
        started = time.perf_counter()
        count = len(self.evaluated["test"][1])
        images, labels = self.train_split
        untrained = self.evaluate(images[:count], labels[:count])
        row = {"epoch": 0, "train_loss": untrained.loss, "train_accuracy": untrained.accuracy}
        return row | self._evaluate() | {"lr": 0.0, "seconds": time.perf_counter() - started}

    def evaluate(self, images: Tensor, labels: Tensor) -> Evaluation:
        return evaluate(
            self.model,
            images,
            labels,
            mean=self.mean,
            std=self.std,
            batch_size=EVALUATION_BATCH[self.device.type],
        )

    def _evaluate(self) -> dict[str, float]:
        columns = {}
        for name, (images, labels) in self.evaluated.items():
            evaluation = self.evaluate(images, labels)
            columns[f"{name}_loss"] = evaluation.loss
            columns[f"{name}_accuracy"] = evaluation.accuracy
        return columns

    def remember(self, row: dict[str, float]) -> None:
        """Append a row of the history, and keep the weights if the recipe selects this epoch."""
        self.history.append(row)
        scores = {"best_holdout": "holdout_accuracy", "best_test": "test_accuracy"}
        score = row.get(scores.get(self.recipe.select, ""), -1.0)
        if row["epoch"] and score > self.best.accuracy:
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self.best = Best(int(row["epoch"]), score, weights)

    def select(self) -> int:
        """Put the selected weights into the model; the epoch they are of."""
        if not self.best.weights:
            return self.epochs_done
        self.model.load_state_dict(self.best.weights)
        return self.best.epoch


def _on(device: torch.device, split: tuple[Tensor, Tensor], indices: Tensor | None = None):
    """A split, or these indices of it, on the device; no copy where none is needed."""
    images, labels = split
    if indices is not None and len(indices) < len(labels):
        images, labels = images[indices], labels[indices]
    return images.to(device), labels.to(device)


def fit(training: Training, epochs: int, after_epoch: Callable[[], None]) -> pd.DataFrame:
    """Train until `epochs` are done, from wherever the training stands; the history."""
    with (
        torch.random.fork_rng(devices=_rng_devices(training.device)),
        EpochProgress(max(training.epochs_done, 0) + 1, epochs, training.steps_per_epoch) as shown,
    ):
        if not training.history:
            training.remember(training.before_training())
            shown.epoch(training.history[-1])
        while training.epochs_done < epochs:
            training.remember(training.epoch(shown.step))
            after_epoch()
            shown.epoch(training.history[-1])
    return pd.DataFrame(training.history)


def _rng_devices(device: torch.device) -> list[torch.device]:
    return [device] if device.type == "cuda" else []


def train(experiment: Experiment, *, output: str | Path | None = None) -> Run:
    """Carry out the whole run, or go on with it; a finished one is given back as it is.

    `output` is the run folder; by default `experiment.folder`. Raises `ConfigError` before any
    work for what cannot be trained, `DataError` for missing data, `RunError` for a run that
    cannot go on, `Diverged` when the loss is no longer finite.
    """
    check_experiment(experiment)
    folder = Path(output) if output is not None else experiment.folder
    with files.lock(folder / ".lock"):
        before = None if experiment.execution.fresh else _unfinished(folder, experiment)
        if before and before["status"] == "done":
            return runs.load_run(folder)
        dataset = load_dataset(experiment.dataset, experiment.execution.data_root)
        device = runs.choose_device(experiment.execution.device)
        record = runs.new_record(experiment, dataset, device)
        training = Training(experiment, dataset, device)
        if not before:
            runs.clear(folder)  # also checkpoints whose record is gone: nothing vouches for them
        state = runs.load_checkpoint(folder)
        if state:
            differences = runs.check_fingerprint(
                experiment, before["fingerprint"], record["fingerprint"]
            )
            record["started"] = before["started"]
            record["inexact_resumes"] = before["inexact_resumes"]
            if differences:
                record["inexact_resumes"].append(
                    {"after_epoch": state["history"][-1]["epoch"], "differences": differences}
                )
            training.load_state(state)
            print(f"going on after epoch {training.epochs_done} of {experiment.recipe.epochs}")
        _carry_out(training, experiment, dataset, folder, record)
    return runs.load_run(folder)


def _unfinished(folder: Path, experiment: Experiment) -> dict[str, Any] | None:
    """What `run.json` says of an earlier run of this very experiment; None if there is none."""
    if not (folder / "run.json").is_file():
        return None
    record = runs.load_run(folder).record
    if record["experiment"] != experiment.digest:
        raise ConfigError(
            f"{folder} holds another experiment ({record['variant']}, {record['dataset']}, seed "
            f"{record['seed']}); name another folder, or `fresh: true` to replace it"
        )
    return record


def _carry_out(
    training: Training,
    experiment: Experiment,
    dataset: Dataset,
    folder: Path,
    record: dict[str, Any],
) -> None:
    """Train, write everything a run leaves, and keep `run.json` true throughout."""
    files.write_text(folder / "experiment.yaml", experiment.to_yaml())
    files.write_text(folder / "summary.txt", model_summary(training.model) + "\n")
    runs.write_record(folder, record)

    def after_epoch() -> None:
        runs.save_checkpoint(folder, training.epochs_done, training.state())
        _write_history(folder, training.history)

    try:
        fit(training, experiment.recipe.epochs, after_epoch)
        _write_results(training, experiment, dataset, folder)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        diverged = isinstance(error, Diverged)
        status = "interrupted" if interrupted else "diverged" if diverged else "failed"
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        runs.write_record(folder, record | {"status": status, "error": reason})
        raise
    finished = {"status": "done", "finished": runs.now()}
    runs.write_record(folder, record | finished | {"artifacts": runs.artifact_checksums(folder)})
    if not experiment.execution.keep_checkpoints:
        runs.drop_checkpoints(folder)


def _write_history(folder: Path, history: list[dict[str, float]]) -> None:
    files.write_text(folder / "history.csv", pd.DataFrame(history).to_csv(index=False))


def _write_results(
    training: Training, experiment: Experiment, dataset: Dataset, folder: Path
) -> None:
    """Everything of the run folder that the finished training decides."""
    selected_epoch = training.select()
    measured = training.evaluate(*training.evaluated["test"])
    evaluation = Evaluation(measured.logits, measured.labels, dataset.classes)
    _write_history(folder, training.history)
    files.write_json(
        folder / "metrics.json", run_metrics(training, experiment, evaluation, selected_epoch)
    )
    labelled = pd.DataFrame(evaluation.confusion, index=dataset.classes, columns=dataset.classes)
    files.write_text(
        folder / "confusion_matrix.csv", labelled.to_csv(index_label="true \\ predicted")
    )
    files.write_text(folder / "per_class.csv", evaluation.per_class.to_csv())
    runs.write_predictions(folder, evaluation)
    weights = {
        name: value.cpu().contiguous() for name, value in training.model.state_dict().items()
    }
    files.write_bytes(folder / "model.safetensors", safetensors.torch.save(weights))
    history = pd.DataFrame(training.history)
    _write_figures(folder / "figures", history, evaluation, dataset.test[0], experiment)


def run_metrics(
    training: Training, experiment: Experiment, evaluation: Evaluation, selected_epoch: int
) -> dict[str, Any]:
    """The content of `metrics.json`; `evaluation` is of the selected weights on the test set.

    `train_seconds` is the wall time of all epochs, their evaluation included; `images_per_second`
    counts training images over that time.
    """
    on_test = ["best_test_accuracy", "best_test_epoch"]
    if experiment.recipe.select == "best_test":
        on_test += ["selected_epoch", "selected_test_accuracy", "ece"]
    trained = training.history[1:]
    last = trained[-1]
    best = max(trained, key=lambda row: row["test_accuracy"])
    seconds = sum(row["seconds"] for row in trained)
    return {
        "test_accuracy": last["test_accuracy"],
        "test_accuracy_interval_95": list(interval(last["test_accuracy"], len(evaluation.labels))),
        "test_images": len(evaluation.labels),
        "test_loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "train_loss": last["train_loss"],
        "best_test_accuracy": best["test_accuracy"],
        "best_test_epoch": best["epoch"],
        "selected_on_test": on_test,
        "select": experiment.recipe.select,
        "selected_epoch": selected_epoch,
        "selected_test_accuracy": evaluation.accuracy,
        "ece": evaluation.ece,
        "parameters": count_parameters(training.model),
        "macs": macs(training.model),
        "epochs": len(trained),
        "train_seconds": seconds,
        "images_per_second": len(trained) * len(training.train_split[1]) / seconds,
        "published_test_accuracy": experiment.published_here.test_accuracy,
    }


def _write_figures(
    folder: Path,
    history: pd.DataFrame,
    evaluation: Evaluation,
    images: Tensor,
    experiment: Experiment,
) -> None:
    classes, variant = evaluation.classes, experiment.variant
    figures = {
        "curves": plots.curves(history, variant),
        "confusion_matrix": plots.confusion(evaluation.confusion, classes, variant),
        "reliability": plots.reliability(evaluation.calibration, evaluation.ece, variant),
        "mistakes": plots.mistakes(
            images, evaluation.labels, evaluation.predictions, evaluation.confidences, classes
        ),
    }
    for name, axes in figures.items():
        figure = axes[0].figure
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", bbox_inches="tight", dpi=FIGURE_DPI)
        plt.close(figure)
        files.write_bytes(folder / f"{name}.png", buffer.getvalue())
