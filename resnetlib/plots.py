"""Figures: arrays and tables in, matplotlib Axes out. No torch, nothing shown or saved here."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator, PercentFormatter

# One colour a variant, everywhere: told apart with red-green blindness too, dark enough for a line
# on white. Seaborn's colour-blind safe palette but for its pale pink, its yellow and its grey.
VARIANT_COLORS = {
    "lite": "#0173b2",  # blue
    "improved_sgd": "#de8f05",  # orange
    "improved_adam": "#029e73",  # green
    "dropout": "#d55e00",  # vermilion
    "se": "#cc78bc",  # purple
    "adamw": "#ca9161",  # tan
    "wide66": "#882255",  # wine
    "resnet18": "#000000",
    "laptop": "#332288",  # indigo
    "laptop94": "#006633",  # dark green
    "champion": "#56b4e9",  # sky blue
}
TRAIN_COLOR = "0.55"  # grey: training is the background that a test curve is read against
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "figure.dpi": 100,
    "grid.alpha": 0.3,
    "savefig.bbox": "tight",
}


@contextmanager
def _style(**changes: object) -> Iterator[None]:
    """Our style, for as long as a figure is made.

    Not `plt.rc_context`: that would also take back what the notebook's backend sets when the first
    figure loads it, and no later figure would be shown.
    """
    style = STYLE | changes
    before = {name: plt.rcParams[name] for name in style}
    plt.rcParams.update(style)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def variant_color(variant: str) -> tuple[float, float, float]:
    """The variant's colour; a variant without one gets one of these by its name."""
    palette = list(VARIANT_COLORS.values())
    color = VARIANT_COLORS.get(variant, palette[sum(variant.encode()) % len(palette)])
    return to_rgb(color)


def curves(history: pd.DataFrame, variant: str) -> list[Axes]:
    """Loss, accuracy and, beneath, the learning rate over epochs; train grey, test coloured."""
    color = variant_color(variant)
    epochs = history["epoch"]
    with _style():
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
    with _style(**{"axes.grid": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6.2), layout="constrained")
        panels = (
            (left, matrix, "d", "Images"),
            (right, 100 * shares, ".1f", "Per cent of the true class"),
        )
        for axes, values, fmt, name in panels:
            _class_matrix(
                axes,
                values,
                classes,
                annot=True,
                fmt=fmt,
                cmap="Blues",
                # Mistakes would vanish beside a full diagonal: the scale ends at twice the worst.
                vmax=_color_limit(values),
                cbar=False,
            )
            axes.set_title(name)
        share = np.trace(matrix) / matrix.sum()
        figure.suptitle(
            f"{variant}: {100 * share:.2f} % of {matrix.sum():,} test images right",
            fontweight="bold",
        )
    return [left, right]


def _class_matrix(axes: Axes, values: np.ndarray, classes: Sequence[str], **settings: Any) -> None:
    """A square for each true class (row) and predicted one (column); `sns.heatmap`'s settings."""
    sns.heatmap(
        values,
        square=True,
        linewidths=0.5,
        xticklabels=classes,
        yticklabels=classes,
        annot_kws={"size": 9},
        ax=axes,
        **settings,
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(axis="x", rotation=45)
    axes.tick_params(axis="y", rotation=0)


def _color_limit(values: np.ndarray) -> float:
    off_diagonal = values[~np.eye(len(values), dtype=bool)]
    return max(float(2 * off_diagonal.max()), 1.0)


def reliability(calibration: pd.DataFrame, ece: float, variant: str) -> list[Axes]:
    """Accuracy against confidence in bins, and beneath how many images each bin holds."""
    edges = np.linspace(0, 1, len(calibration) + 1)
    width = edges[1]
    centers = edges[:-1] + width / 2
    filled = calibration["images"] > 0
    with _style():
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
    with _style(**{"axes.grid": False}):
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
    with _style():
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


def confusion_difference(
    first: np.ndarray, second: np.ndarray, classes: Sequence[str], names: tuple[str, str]
) -> Axes:
    """The first confusion matrix minus the second, in images; row: true, column: predicted.

    On the diagonal more is better, elsewhere it is worse. Both are of the same test images.
    """
    difference = np.asarray(first) - np.asarray(second)
    limit = max(int(abs(difference).max()), 1)
    with _style(**{"axes.grid": False}):
        _, axes = plt.subplots(figsize=(8.6, 7), layout="constrained")
        _class_matrix(
            axes,
            difference,
            classes,
            annot=[[_signed(value) for value in row] for row in difference],
            fmt="",
            cmap="PuOr_r",  # told apart with any colour vision
            center=0,
            vmin=-limit,
            vmax=limit,
            cbar_kws={"shrink": 0.8, "label": f"images: {names[0]} minus {names[1]}"},
        )
        axes.set_title(_largest(difference, classes, names))
    return axes


def _signed(value: float) -> str:
    return f"{value:+d}".replace("-", "−") if value else "0"


def _largest(difference: np.ndarray, classes: Sequence[str], names: tuple[str, str]) -> str:
    """The class and the confusion that separate two networks most, in words."""
    right = np.diagonal(difference)
    wrong = difference - np.diag(right)
    if not wrong.any():
        return "Both make the same mistakes"
    best = abs(right).argmax()
    true, taken = np.unravel_index(abs(wrong).argmax(), wrong.shape)
    who = [names[0] if count > 0 else names[1] for count in (right[best], wrong[true, taken])]
    return (
        f"{classes[best]}: {abs(right[best])} more right with {who[0]}\n"
        f"{classes[true]} taken for {classes[taken]}: {abs(wrong[true, taken])} more with {who[1]}"
    )


def difference_intervals(table: pd.DataFrame, reference: str) -> Axes:
    """Each network's accuracy minus the reference's, with its interval, about a line at 0.

    `table` is that of `significance.against`, fractions of 1, with the column `variant` for the
    colour; hollow where the difference is not significant.
    """
    with _style(**{"axes.grid.axis": "x"}):
        _, axes = plt.subplots(figsize=(8, 1.4 + 0.36 * max(len(table), 1)), layout="constrained")
        rows = table.itertuples()
        for place, row in enumerate(rows):
            color = variant_color(row.variant)
            axes.errorbar(
                100 * row.difference,
                place,
                xerr=[[100 * (row.difference - row.low)], [100 * (row.high - row.difference)]],
                fmt="o",
                color=color,
                markerfacecolor=color if row.p < 0.05 else "white",
                capsize=3,
            )
        axes.axvline(0, color="0.25", linewidth=1)
        axes.set_yticks(range(len(table)), table.index)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xlabel(
            f"accuracy minus that of {reference} (percentage points, each with its 95 % interval)"
        )
        told = int((table["p"] < 0.05).sum())
        axes.set_title(f"{told} of {len(table)} can be told from {reference} (filled)")
    return axes


def image_rows(
    images: Sequence[np.ndarray] | np.ndarray,
    row_labels: Sequence[str],
    title: str,
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> list[Axes]:
    """A labelled row for each sequence of images, uint8 (N, 3, H, W); rows may differ in length.

    `column_labels` stand above the first row, `captions` above each image of each row.
    """
    columns = max([1, *map(len, images)])
    with _style(**{"axes.grid": False}):
        figure, grid = plt.subplots(
            max(1, len(images)),
            columns,
            figsize=(1.15 * columns + 1.6, (1.35 if captions else 1.2) * len(images) + 0.7),
            layout="constrained",
            squeeze=False,
        )
        for axes in grid.flat:
            axes.set(xticks=[], yticks=[], frame_on=False)
        for number, (line, row, name) in enumerate(zip(grid, images, row_labels, strict=False)):
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
            for axes, image in zip(line, row, strict=False):
                axes.imshow(np.moveaxis(np.asarray(image), 0, -1), interpolation="nearest")
            for axes, caption in zip(line, captions[number] if captions else (), strict=False):
                axes.set_title(caption, fontsize=8, fontweight="normal")
        for axes, name in zip(grid[0], column_labels, strict=False):
            axes.set_title(name, fontsize=10, fontweight="normal")
        figure.suptitle(title, fontweight="bold")
    return list(grid.flat)


def heat_rows(
    images: np.ndarray,
    maps: Sequence[np.ndarray],
    row_labels: Sequence[str],
    captions: Sequence[str],
    title: str,
) -> list[Axes]:
    """Images uint8 (N, 3, H, W), and beneath them one row for each array of maps (N, h, w).

    Each map is scaled to its own largest value; the brighter the image, the more it counts.
    `row_labels` names the images and then the maps.
    """
    blank = [images] * (1 + len(maps))
    axes = image_rows(blank, row_labels, title, captions)
    height, width = images.shape[2:]
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    for row, kind in enumerate(maps, start=1):
        for column, heat in enumerate(np.asarray(kind)):
            axes[row * len(images) + column].imshow(
                heat / max(heat.max(), np.finfo(np.float32).tiny),
                cmap="inferno",
                vmin=0,
                vmax=1,
                alpha=0.6,
                extent=extent,
                interpolation="bilinear",
            )
    return axes


def embedding(
    points: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    classes: Sequence[str],
    title: str,
) -> Axes:
    """Images as points (N, 2), coloured by true class, named at the class's middle; mistakes ×."""
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    wrong = labels != predictions
    palette = np.array(sns.color_palette("colorblind", len(classes)))
    with _style(**{"axes.grid": False}):
        _, axes = plt.subplots(figsize=(9, 7.5), layout="constrained")
        axes.scatter(*points[~wrong].T, s=12, c=palette[labels[~wrong]], alpha=0.6, linewidths=0)
        axes.scatter(
            *points[wrong].T,
            s=22,
            c=palette[labels[wrong]],
            marker="X",
            edgecolors="black",
            linewidths=0.4,
            label=f"mistaken ({wrong.sum():,})",
        )
        for label, name in enumerate(classes):
            own = points[(labels == label) & ~wrong]
            own = own if len(own) else points[labels == label]
            if len(own):
                axes.annotate(
                    name,
                    np.median(own, axis=0),
                    ha="center",
                    va="center",
                    fontweight="bold",
                    color=0.6 * palette[label],
                    bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": "none", "alpha": 0.8},
                )
        axes.set(title=title, xlabel="t-SNE 1 (no unit)", ylabel="t-SNE 2 (no unit)")
        axes.set(xticks=[], yticks=[])
        axes.legend(frameon=False, loc="upper right")
    return axes


def robustness(
    accuracies: pd.DataFrame, images: int, variant: str, drop: float | None = None
) -> list[Axes]:
    """Accuracy under each damage: as numbers, the costliest first, and as curves over strength.

    `accuracies`, fractions of 1, has a row a damage and a column a strength, 0 for undamaged.
    A dashed line stands `drop`, a fraction of 1, below the undamaged images.
    """
    accuracies = 100 * accuracies.loc[accuracies.mean(axis=1).sort_values().index]
    palette = sns.color_palette("colorblind", len(accuracies))
    with _style():
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(12.5, 4.8), width_ratios=[1, 1.1], layout="constrained"
        )
        sns.heatmap(
            accuracies,
            annot=True,
            fmt=".1f",
            cmap="viridis",
            vmin=10 * np.floor(accuracies.min(axis=None) / 10),
            vmax=10 * np.ceil(accuracies.max(axis=None) / 10),
            cbar=False,
            linewidths=0.5,
            ax=left,
        )
        left.grid(False)
        left.set(title="Accuracy in per cent", xlabel="strength (0: undamaged)", ylabel="")
        left.tick_params(axis="y", rotation=0)
        markers = "osD^vPX"
        for number, (name, row) in enumerate(accuracies.iterrows()):
            right.plot(
                accuracies.columns,
                row,
                color=palette[number],
                marker=markers[number % len(markers)],
                label=name,
            )
        right.set(title="The same over strength", xlabel="strength (0: undamaged)")
        right.set_ylabel("accuracy")
        right.yaxis.set_major_formatter(PercentFormatter(decimals=0, symbol=" %"))
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        # Beside the curves, in the order in which they end.
        ends = accuracies.iloc[:, -1].sort_values(ascending=False).index
        by_name = dict(zip(accuracies.index, right.lines, strict=True))
        handles = {name: by_name[name] for name in ends}
        if drop is not None:
            line = right.axhline(accuracies[0].iloc[0] - 100 * drop, ls="--", color="0.3", zorder=1)
            handles[f"{100 * drop:g} points lost"] = line
        right.legend(
            handles.values(),
            handles.keys(),
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
        worst = accuracies.index[0]
        figure.suptitle(
            f"{variant}: {worst} costs most ({images:,} test images)", fontweight="bold"
        )
    return [left, right]
