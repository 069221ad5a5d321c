"""Write what a finished training leaves: metrics, tables, predictions, weights and figures."""

import io
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
from torch import Tensor, nn

from .. import files
from ..data import Dataset
from ..evaluation import Evaluation, wilson_interval
from ..experiment import Experiment
from ..size import measure_size
from .record import record_checksums
from .run import ARTIFACTS, WEIGHTS, Run


def write_history(folder: Path, history: "pd.DataFrame") -> None:
    files.write_text(folder / "history.csv", history.to_csv(index=False))


def write_predictions(folder: Path, evaluation: Evaluation) -> None:
    """`predictions.npz`: logits (N, C) float32, labels and predictions (N,) int64, class names."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        logits=evaluation.logits.numpy(),
        labels=evaluation.labels.numpy(),
        predictions=evaluation.predictions.numpy(),
        classes=np.array(evaluation.classes),
    )
    files.write_bytes(folder / "predictions.npz", buffer.getvalue())


FIGURE_DPI = 150  # 1500 pixels across: sharp in print at the width of a page


def write_results(
    folder: Path,
    experiment: Experiment,
    dataset: Dataset,
    history: pd.DataFrame,
    model: nn.Module,
    evaluation: Evaluation,
    *,
    selected_epoch: int,
    evaluation_seconds: float,
) -> None:
    """Everything but `run.json`; `model` and `evaluation` are of the selected weights."""
    write_history(folder, history)
    metrics = run_metrics(experiment, history, evaluation)
    metrics |= {
        "selected_epoch": selected_epoch,
        **asdict(measure_size(experiment.architecture)),
        **timing(experiment, history, evaluation_seconds),
    }
    write_evaluation(folder, model, evaluation, metrics)
    write_figures(folder / "figures", history, evaluation, dataset.test[0], experiment)


def write_evaluation(
    folder: Path, model: nn.Module, evaluation: Evaluation, metrics: dict[str, Any]
) -> None:
    """Metrics, tables and predictions of an evaluation with class names, and its weights.

    Args:
        folder: the run folder.
        model: the network that was evaluated.
        evaluation: on the test set.
        metrics: the content of `metrics.json`.
    """
    files.write_json(folder / "metrics.json", metrics)
    classes = evaluation.classes
    labelled = pd.DataFrame(evaluation.confusion, index=classes, columns=classes)
    files.write_text(
        folder / "confusion_matrix.csv", labelled.to_csv(index_label="true \\ predicted")
    )
    files.write_text(folder / "per_class.csv", evaluation.per_class.to_csv())
    write_predictions(folder, evaluation)
    weights = {name: value.cpu().contiguous() for name, value in model.state_dict().items()}
    files.write_bytes(folder / WEIGHTS, safetensors.torch.save(weights))


def run_metrics(
    experiment: Experiment, history: pd.DataFrame, evaluation: Evaluation
) -> dict[str, Any]:
    """What was measured; `evaluation` is of the selected weights on the test set."""
    on_test = ["best_test_accuracy", "best_test_epoch"]
    if experiment.recipe.select == "best_test":
        on_test += ["selected_epoch", "selected_test_accuracy", "ece"]
    trained = history.iloc[1:]
    last, best = trained.iloc[-1], trained.loc[trained["test_accuracy"].idxmax()]
    return {
        "test_accuracy": last["test_accuracy"],
        "test_accuracy_interval_95": list(
            wilson_interval(last["test_accuracy"], len(evaluation.labels))
        ),
        "test_images": len(evaluation.labels),
        "test_loss": last["test_loss"],
        "train_accuracy": last["train_accuracy"],
        "train_loss": last["train_loss"],
        "best_test_accuracy": best["test_accuracy"],
        "best_test_epoch": int(best["epoch"]),
        "selected_on_test": on_test,
        "select": experiment.recipe.select,
        "selected_test_accuracy": evaluation.accuracy,
        "ece": evaluation.ece,
        "epochs": len(trained),
        "published_test_accuracy": experiment.published_for_dataset.test_accuracy,
    }


def imported_metrics(experiment: Experiment, evaluation: Evaluation) -> dict[str, Any]:
    """What was measured of weights that were trained elsewhere; their epochs are not known."""
    accuracy = evaluation.accuracy
    return {
        "test_accuracy": accuracy,
        "test_accuracy_interval_95": list(wilson_interval(accuracy, len(evaluation.labels))),
        "test_images": len(evaluation.labels),
        "test_loss": evaluation.loss,
        "selected_test_accuracy": accuracy,
        "ece": evaluation.ece,
        "published_test_accuracy": experiment.published_for_dataset.test_accuracy,
    }


def timing(
    experiment: Experiment, history: pd.DataFrame, evaluation_seconds: float
) -> dict[str, float]:
    """`train_seconds` is the wall time of all epochs but for evaluation, compilation included.

    `images_per_second` counts training images over that time.
    """
    trained = history.iloc[1:]
    seconds = trained["seconds"].sum() - evaluation_seconds
    images = len(trained) * experiment.training_images
    return {
        "train_seconds": seconds,
        "evaluation_seconds": evaluation_seconds,
        "images_per_second": images / seconds,
    }


def write_figures(
    folder: Path,
    history: pd.DataFrame | None,
    evaluation: Evaluation,
    images: Tensor,
    experiment: Experiment,
) -> None:
    """Draw the figures of a run; without a history there are no curves.

    Args:
        folder: `figures/` of the run folder.
        history: a row per epoch.
        evaluation: the selected weights on the test set.
        images: of the test set, uint8 (N, 3, H, W).
        experiment: what was run.
    """
    # Slow to import, and needed only when training is over.
    from ..plots.run import confusion, curves, mistakes, reliability
    from ..plots.style import figure_png

    classes, variant = evaluation.classes, experiment.variant
    figures = {
        "confusion_matrix": confusion(evaluation.confusion, classes, variant),
        "reliability": reliability(evaluation.calibration, evaluation.ece, variant),
        "mistakes": mistakes(images, evaluation, classes),
    }
    if history is not None:
        figures["curves"] = curves(history, experiment)
    for name, axes in figures.items():
        files.write_bytes(folder / f"{name}.png", figure_png(axes[0], dpi=FIGURE_DPI))


def redraw_figures(run: Run, images: Tensor) -> list[str]:
    """Draw the figures of a finished run anew, those that its folder has; their names.

    Nothing is computed again and no other file changes, except `run.json`, which gets the new
    checksums. `images` are those of the test set, uint8 (N, 3, H, W).
    """
    figures = [name for name in ARTIFACTS if name.startswith("figures/")]
    kept = [Path(name).name for name in figures if (run.path / name).is_file()]
    if not kept:
        return []
    with tempfile.TemporaryDirectory() as temporary:
        drawn = Path(temporary)
        history = None if run.is_imported else run.history
        write_figures(drawn, history, run.evaluation, images, run.experiment)
        for name in kept:
            files.write_bytes(run.path / "figures" / name, (drawn / name).read_bytes())
    record_checksums(run.path, [f"figures/{name}" for name in kept])
    return kept
