"""Figures of one run: curves, confusion matrix, calibration, confident errors.

Arrays and tables in, matplotlib Axes out; nothing is displayed or saved here.
"""

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..errors import counted
from ..evaluation import Evaluation, format_confidence
from ..experiment import Experiment
from ..schedule import learning_rate
from ..schema import Recipe
from .style import (
    PER_CENT,
    TRAIN_COLOR,
    class_matrix,
    color_limit,
    drawable,
    drawable_names,
    figure_style,
    label_per_cent,
    variant_color,
)

LEGEND_CHARACTERS = 36  # of a line: a longer one leaves the panel


def curves(history: pd.DataFrame, experiment: Experiment) -> list[Axes]:
    """Loss, accuracy and learning rate over epochs: training grey, test coloured.

    The rate is that of every step, from the recipe and the history, which has one per epoch.
    """
    variant, recipe = experiment.variant, experiment.recipe
    with figure_style():
        figure, grid = plt.subplot_mosaic(
            [["loss", "accuracy"], ["lr", "lr"]],
            figsize=(10, 6),
            height_ratios=[3, 1],
            layout="constrained",
        )
        loss, accuracy, rate = grid["loss"], grid["accuracy"], grid["lr"]
        draw_history(loss, accuracy, history, experiment)
        rate.plot(*_rates(experiment, history), color="0.25", drawstyle="steps-post")
        rate.set(xlabel="epoch", ylabel="learning rate")
        rate.set_title(f"Learning rate: {_schedule_name(recipe)}")
        rate.set_ylim(bottom=0)
        rate.set_xlim(loss.get_xlim())
        for axes in grid.values():
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        figure.suptitle(f"{variant}: training", fontweight="bold")
    return [loss, accuracy, rate]


def draw_history(loss: Axes, accuracy: Axes, history: pd.DataFrame, experiment: Experiment) -> None:
    """Draw the curves of a history, finished or growing, into two Axes with their titles.

    Args:
        loss: the Axes that gets the cross-entropy, in nats.
        accuracy: the Axes that gets the accuracy, in per cent.
        history: a row per epoch, as `Run.history`.
        experiment: gives the colour, and says how the training images were changed.
    """
    color = variant_color(experiment.variant)
    changes = _training_changes(experiment)
    # Smoothing changes the loss alone: predictions count as correct by their true class.
    changes = {"loss": changes, "accuracy": [c for c in changes if "smoothing" not in c]}
    for axes, name, scale in ((loss, "loss", 1), (accuracy, "accuracy", 100)):
        label = f"training ({', '.join(changes[name])})" if changes[name] else "training"
        styles = {"train": ("--", TRAIN_COLOR, textwrap.fill(label, LEGEND_CHARACTERS))}
        styles |= {"holdout": (":", color, "validation"), "test": ("-", color, "test")}
        for split, (line, shade, text) in styles.items():
            if f"{split}_{name}" in history:
                values = scale * history[f"{split}_{name}"]
                axes.plot(history["epoch"], values, line, color=shade, label=text)
        axes.set_xlabel("epoch")
        axes.legend(frameon=False)
    loss.set_ylabel("cross-entropy (nats)")
    loss.set_ylim(bottom=0)
    accuracy.set_ylabel("accuracy")
    label_per_cent(accuracy.yaxis)
    last = history.iloc[-1]
    when = f"after epoch {last['epoch']:,.0f}"
    loss.set_title(f"Test loss {when}: {last['test_loss']:.3f}")
    accuracy.set_title(f"Test accuracy {when}: {100 * last['test_accuracy']:.2f} %")


def _training_changes(experiment: Experiment) -> list[str]:
    """What the training loss is measured with, and the test loss is not."""
    recipe, network = experiment.recipe, experiment.architecture
    changes = {
        f"label smoothing {recipe.label_smoothing:g}": recipe.label_smoothing,
        "augmented": recipe.augment,
        "dropout": network.dropout or network.head_dropout,
        "stochastic depth": network.stochastic_depth,
        "weights before averaging": recipe.ema,
    }
    return [change for change, present in changes.items() if present]


def _rates(experiment: Experiment, history: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Epochs done before each step, and that step's rate; the last rate twice, for its end."""
    recipe, steps_per_epoch = experiment.recipe, experiment.steps_per_epoch
    steps = np.arange(recipe.epochs * steps_per_epoch + 1)
    rows = history.to_dict("records")
    rates = [learning_rate(recipe, step, steps_per_epoch, rows) for step in steps[:-1].tolist()]
    return steps / steps_per_epoch, np.array([*rates, rates[-1]])


def _schedule_name(recipe: Recipe) -> str:
    interval = getattr(recipe.schedule, "interval", "step")  # one_cycle has none
    name = recipe.schedule.name.replace("_", "-")
    return f"{name}, peak {recipe.optimizer.lr:g}, set for every {interval}"


def confusion(matrix: np.ndarray, classes: Sequence[str], variant: str) -> list[Axes]:
    """Images, and per cent of each true class; rows are true classes, columns predictions."""
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    with figure_style(**{"axes.grid": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")
        panels = (
            (left, matrix, "d", "Images"),
            (right, 100 * shares, ".1f", "Per cent of each true class"),
        )
        for axes, values, fmt, name in panels:
            class_matrix(
                axes,
                values,
                classes,
                annot=True,
                fmt=fmt,
                cmap="Blues",
                # Errors would vanish beside a full diagonal: the scale ends at twice the largest.
                vmax=color_limit(values),
                cbar=False,
            )
            axes.set_title(name)
        share = np.trace(matrix) / matrix.sum()
        figure.suptitle(
            f"{variant}: {100 * share:.2f} % of {counted(matrix.sum(), 'test image')} correct",
            fontweight="bold",
        )
    return [left, right]


def reliability(calibration: pd.DataFrame, ece: float, variant: str) -> list[Axes]:
    """Accuracy against confidence in bins, and the number of images in each bin."""
    edges = np.linspace(0, 1, len(calibration) + 1)
    width = edges[1]
    centers = edges[:-1] + width / 2
    filled = calibration["images"] > 0
    with figure_style():
        figure, (top, bottom) = plt.subplots(
            2, 1, figsize=(6, 6.5), sharex=True, height_ratios=[3, 1], layout="constrained"
        )
        top.bar(
            centers[filled],
            100 * calibration["accuracy"][filled],
            width * 0.92,
            color=variant_color(variant),
            label="accuracy",
        )
        outline = [patheffects.withStroke(linewidth=4, foreground="white")]  # seen on any colour
        top.plot(
            [0, 1], [0, 100], "--", color="0.2", label="perfectly calibrated", path_effects=outline
        )
        top.set(ylabel="accuracy in the bin", xlim=(0, 1), ylim=(0, 100))
        top.yaxis.set_major_formatter(PER_CENT)
        top.set_title(
            f"{variant}: calibration error {100 * ece:.1f} % (ECE, {len(edges) - 1} bins)\n"
            "bars below the line: overconfident"
        )
        figure.legend(loc="outside lower center", ncols=2, frameon=False)  # a bar may be anywhere
        bottom.bar(centers, calibration["images"], width * 0.92, color="0.55")
        bottom.set(xlabel="confidence (largest softmax probability)", ylabel="images")
        bottom.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))
    return [top, bottom]


def mistakes(
    images: np.ndarray, evaluation: Evaluation, classes: Sequence[str], count: int = 24
) -> list[Axes]:
    """The most confident errors: true class, predicted class and confidence above each image.

    Args:
        images: uint8 (N, 3, H, W).
        evaluation: the network on these images.
        classes: names of the classes.
        count: how many errors to draw at most.
    """
    wrong = evaluation.most_confident(~evaluation.correct)
    indices = wrong[:count].tolist()
    captions = [
        f"{classes[evaluation.labels[i]]}\n→ {classes[evaluation.predictions[i]]} "
        f"{format_confidence(evaluation.confidences[i])}"
        for i in indices
    ]
    title = f"Most confident errors: {len(indices)} of {len(wrong):,} (true → predicted)"
    return image_grid(np.asarray(images)[indices], captions, title)


WIDEST_CAPTION = 20  # characters of a line that do not reach the captions beside it


def image_grid(
    images: np.ndarray, captions: Sequence[str], title: str, columns: int = 8
) -> list[Axes]:
    """Images in rows, each under its caption.

    Args:
        images: uint8 (N, 3, H, W).
        captions: one text per image.
        title: the text above all.
        columns: images in a row.
    """
    lines = max((drawable(caption).count("\n") + 1 for caption in captions), default=1)
    side, above = 1.2, 0.1 + 0.14 * lines  # in inches, like the coordinates of the axes
    width, height = side + 0.1, side + above
    rows = max(1, -(-len(images) // columns))
    with figure_style(**{"axes.grid": False}):
        # One Axes for all images: an Axes of its own for each takes several times as long.
        figure, axes = plt.subplots(
            figsize=(width * columns, height * rows + 0.4), layout="constrained"
        )
        for number, (image, caption) in enumerate(zip(images, captions, strict=False)):
            left, top = width * (number % columns), height * (number // columns) + above
            place = (left, left + side, top + side, top)
            axes.imshow(
                np.moveaxis(np.asarray(image), 0, -1), extent=place, interpolation="nearest"
            )
            middle = left + side / 2
            longest = max(map(len, caption.split("\n")))
            size = 8 if longest <= WIDEST_CAPTION else 7
            axes.text(middle, top - 0.04, caption, fontsize=size, ha="center", va="bottom")
        axes.set(xlim=(0, width * columns), ylim=(height * rows, 0), aspect="equal")
        axes.axis("off")
        figure.suptitle(title, fontweight="bold")
    return [axes]


def before_after(before: np.ndarray, after: Mapping[str, np.ndarray], title: str) -> list[Axes]:
    """A row per name: the original images on the left, the changed ones on the right.

    Images uint8 (N, 3, H, W), as many after as before. Axes row by row.
    """
    count = len(before)
    gap = 0.35  # of an image's width, between the two halves
    with figure_style(**{"axes.grid": False}):
        figure = plt.figure(
            figsize=(1.8 * count + 1.9, 0.9 * len(after) + 0.9), layout="constrained"
        )
        grid = figure.add_gridspec(
            len(after), 2 * count + 1, width_ratios=[1] * count + [gap] + [1] * count
        )
        drawn = []
        for row, (name, changed) in enumerate(after.items()):
            for column, image in enumerate([*before, *changed]):
                axes = figure.add_subplot(grid[row, column + (column >= count)])
                axes.set(xticks=[], yticks=[], frame_on=False)
                axes.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest")
                drawn.append(axes)
            drawn[-2 * count].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        for axes, text in ((drawn[0], "before"), (drawn[count], "after")):
            axes.set_title(text, loc="left", fontsize=10)
        figure.suptitle(title, fontweight="bold")
    return drawn


def class_balance(counts: np.ndarray, classes: Sequence[str], variant: str) -> Axes:
    """Share of the images predicted as each class, in per cent; counts (C,), classes C names."""
    counts, classes = np.asarray(counts), drawable_names(classes)
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
        label_per_cent(axes.yaxis)
        axes.grid(False, axis="x")
        most, least = shares.argmax(), shares.argmin()
        where = (
            f"most go to {classes[most]} ({shares[most]:.1f} %), "
            f"least to {classes[least]} ({shares[least]:.1f} %)"
        )
        if counts[most] == counts[least]:
            where = "equally many go to each class"
        axes.set_title(f"{variant}: of {counted(counts.sum(), 'image')} {where}")
        axes.legend(frameon=False, loc="upper right")
    return axes
