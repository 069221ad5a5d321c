"""Figures of one run: curves, confusion matrix, calibration, confident errors.

Arrays and tables in, matplotlib Axes out; nothing is shown or saved here.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from .style import TRAIN_COLOR, class_matrix, color_limit, figure_style, variant_color


def curves(history: pd.DataFrame, variant: str) -> list[Axes]:
    """Loss, accuracy and, beneath, the learning rate over epochs; train grey, test coloured."""
    color = variant_color(variant)
    epochs = history["epoch"]
    with figure_style():
        figure, grid = plt.subplot_mosaic(
            [["loss", "accuracy"], ["lr", "lr"]],
            figsize=(10, 6),
            height_ratios=[3, 1],
            layout="constrained",
        )
        loss, accuracy, rate = grid["loss"], grid["accuracy"], grid["lr"]
        for axes, name, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
            axes.plot(
                epochs, scale * history[f"train_{name}"], "--", color=TRAIN_COLOR, label="train"
            )
            if f"holdout_{name}" in history:
                axes.plot(
                    epochs, scale * history[f"holdout_{name}"], ":", color=color, label="held out"
                )
            axes.plot(epochs, scale * history[f"test_{name}"], color=color, label="test")
            axes.set_xlabel("epoch")
            axes.legend(frameon=False)
        loss.set_ylabel("cross-entropy (nats)")
        loss.set_ylim(bottom=0)
        loss.set_title("Loss")
        accuracy.set_ylabel("accuracy")
        accuracy.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
        last = 100 * history["test_accuracy"].iloc[-1]
        accuracy.set_title(f"Accuracy: {last:.2f} % on the test set after epoch {epochs.iloc[-1]}")
        trained = history[history["epoch"] > 0]
        rate.plot(trained["epoch"], trained["lr"], color="0.25", drawstyle="steps-mid")
        rate.set(xlabel="epoch", ylabel="learning rate", title="Learning rate")
        rate.set_ylim(bottom=0)
        rate.set_xlim(loss.get_xlim())
        for axes in grid.values():
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(f"{variant}: training", fontweight="bold")
    return [loss, accuracy, rate]


def confusion(matrix: np.ndarray, classes: Sequence[str], variant: str) -> list[Axes]:
    """Counts, and per cent of each true class, side by side; row: true, column: predicted."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with figure_style(**{"axes.grid": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")
        panels = (
            (left, matrix, "d", "Images"),
            (right, 100 * shares, ".1f", "Per cent of the true class"),
        )
        for axes, values, fmt, name in panels:
            class_matrix(
                axes,
                values,
                classes,
                annot=True,
                fmt=fmt,
                cmap="Blues",
                # Mistakes would vanish beside a full diagonal: the scale ends at twice the worst.
                vmax=color_limit(values),
                cbar=False,
            )
            axes.set_title(name)
        share = np.trace(matrix) / matrix.sum()
        figure.suptitle(
            f"{variant}: {100 * share:.2f} % of {matrix.sum():,} test images right",
            fontweight="bold",
        )
    return [left, right]


def reliability(calibration: pd.DataFrame, ece: float, variant: str) -> list[Axes]:
    """Accuracy against confidence in bins, and beneath how many images each bin holds."""
    edges = np.linspace(0, 1, len(calibration) + 1)
    width = edges[1]
    centers = edges[:-1] + width / 2
    filled = calibration["images"] > 0
    with figure_style():
        _, (top, bottom) = plt.subplots(
            2, 1, figsize=(6, 6.5), sharex=True, height_ratios=[3, 1], layout="constrained"
        )
        top.bar(
            centers[filled],
            100 * calibration["accuracy"][filled],
            width * 0.92,
            color=variant_color(variant),
            label="accuracy",
        )
        top.plot([0, 1], [0, 100], "--", color="0.3", label="perfectly calibrated")
        top.set(ylabel="accuracy in the bin", xlim=(0, 1), ylim=(0, 100))
        top.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
        top.set_title(
            f"{variant}: calibration error {100 * ece:.1f} % (ECE, {len(edges) - 1} bins)"
        )
        top.legend(frameon=False, loc="upper left")
        bottom.bar(centers, calibration["images"], width * 0.92, color="0.55")
        bottom.set(xlabel="confidence (largest softmax probability)", ylabel="images")
        bottom.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    return [top, bottom]


def mistakes(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    confidences: np.ndarray,
    classes: Sequence[str],
    count: int = 24,
) -> list[Axes]:
    """The wrong images that the network was surest of, under what they are and were taken for.

    Images uint8 (N, 3, H, W); labels, predictions and confidences (N,), confidences from 0 to 1.
    """
    labels, predictions, confidences = map(np.asarray, (labels, predictions, confidences))
    wrong = np.flatnonzero(labels != predictions)
    shown = wrong[np.argsort(-confidences[wrong], kind="stable")][:count]
    captions = [
        f"{classes[labels[i]]}\n→ {classes[predictions[i]]} {100 * confidences[i]:.0f} %"
        for i in shown
    ]
    title = f"The {len(shown)} most confident of {len(wrong):,} mistakes (true → predicted)"
    return image_grid(np.asarray(images)[shown], captions, title)


def image_grid(
    images: np.ndarray, captions: Sequence[str], title: str, columns: int = 8
) -> list[Axes]:
    """Images in rows of eight, each under its caption.

    Images uint8 (N, 3, H, W).
    """
    images = np.asarray(images)
    rows = max(1, -(-len(images) // columns))
    with figure_style(**{"axes.grid": False}):
        figure, grid = plt.subplots(
            rows,
            columns,
            figsize=(1.3 * columns, 1.75 * rows + 0.4),
            layout="constrained",
            squeeze=False,
        )
        for axes in grid.flat:
            axes.axis("off")
        for axes, image, caption in zip(grid.flat, images, captions, strict=False):
            axes.imshow(np.moveaxis(image, 0, -1), interpolation="nearest")
            axes.set_title(caption, fontsize=8, fontweight="normal")
        figure.suptitle(title, fontweight="bold")
    return list(grid.flat)


def class_balance(counts: np.ndarray, classes: Sequence[str], variant: str) -> Axes:
    """How many images were predicted as each class, in per cent; counts (C,), classes C names."""
    counts = np.asarray(counts)
    expected = 100 / len(counts)
    shares = 100 * counts / counts.sum()
    with figure_style():
        _, axes = plt.subplots(figsize=(9, 3.8), layout="constrained")
        bars = axes.bar(classes, shares, color=variant_color(variant))
        axes.axhline(expected, color="0.3", linestyle="--", label=f"equal shares: {expected:.3g} %")
        over_the_line = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        labels = [f"{count:,}" for count in counts]
        axes.bar_label(bars, labels, padding=3, fontsize=9, bbox=over_the_line)
        axes.set(xlabel="predicted class", ylabel="share of the images")
        axes.set_ylim(0, max(1.25 * shares.max(), 1.5 * expected))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
        axes.grid(False, axis="x")
        most, least = shares.argmax(), shares.argmin()
        axes.set_title(
            f"{variant}: of {counts.sum():,} images most go to {classes[most]} "
            f"({shares[most]:.1f} %), least to {classes[least]} ({shares[least]:.1f} %)"
        )
        axes.legend(frameon=False, loc="upper right")
    return axes
