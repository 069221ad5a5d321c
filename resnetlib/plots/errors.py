"""Figures of an error analysis: differences between runs, heat maps, embeddings, robustness.

Arrays and tables in, matplotlib Axes out; nothing is displayed or saved here.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..errors import counted
from .style import (
    RUN_CHARACTERS,
    class_matrix,
    drawable_names,
    figure_style,
    label_per_cent,
    variant_color,
)


def confusion_difference(
    first: np.ndarray, second: np.ndarray, classes: Sequence[str], names: tuple[str, str]
) -> Axes:
    """The first confusion matrix minus the second, in images; row: true, column: predicted.

    Positive numbers favour the first on the diagonal and the second elsewhere.

    Args:
        first: confusion matrix (C, C) in images.
        second: that of another network on the same test images.
        classes: names of the C classes.
        names: labels of the two networks.
    """
    difference = np.asarray(first) - np.asarray(second)
    names = drawable_names(names, RUN_CHARACTERS)
    limit = max(int(abs(difference).max()), 1)
    with figure_style(**{"axes.grid": False}):
        _, axes = plt.subplots(figsize=(8.6, 7), layout="constrained")
        class_matrix(
            axes,
            difference,
            classes,
            annot=[[_signed(value) for value in row] for row in difference],
            fmt="",
            cmap="PuOr_r",  # safe for any colour vision
            center=0,
            vmin=-limit,
            vmax=limit,
            cbar_kws={"shrink": 0.8, "label": f"images: {names[0]}\nminus {names[1]}"},
        )
        axes.set_title("Confusion matrices: the first minus the second")
    return axes


def _signed(value: float) -> str:
    return f"{value:+d}".replace("-", "−") if value else "0"


def difference_intervals(table: pd.DataFrame, reference: str) -> Axes:
    """Each network's accuracy minus the reference's, with its interval and a line at 0.

    `table` is that of `significance.compare_to_reference`, fractions of 1, with the column
    `variant` for the colour. Markers are filled where the difference is significant.
    """
    reference, *names = drawable_names([reference, *table.index], RUN_CHARACTERS)
    width = 6 + 0.08 * max(map(len, [reference, *names]))
    with figure_style(**{"axes.grid.axis": "x"}):
        _, axes = plt.subplots(
            figsize=(width, 1.6 + 0.36 * max(len(table), 1)), layout="constrained"
        )
        rows = table.itertuples()
        for y, row in enumerate(rows):
            color = variant_color(row.variant)
            axes.errorbar(
                100 * row.difference,
                y,
                xerr=[[100 * (row.difference - row.low)], [100 * (row.high - row.difference)]],
                fmt="o",
                color=color,
                markerfacecolor=color if row.significant else "white",
                capsize=3,
            )
        axes.axvline(0, color="0.25", linewidth=1)
        axes.set_yticks(range(len(table)), names)
        axes.set_ylim(len(table) - 0.5, -0.5)
        axes.set_xlabel(
            f"accuracy minus that of {reference}\n(percentage points, each with its 95 % interval)"
        )
        axes.set_title(
            f"Significantly different (filled): {table['significant'].sum()} of {len(table)}"
        )
    return axes


def image_rows(
    images: Sequence[np.ndarray] | np.ndarray,
    row_labels: Sequence[str],
    title: str,
    column_labels: Sequence[str] = (),
    captions: Sequence[Sequence[str]] = (),
) -> list[Axes]:
    """A labelled row for each sequence of images; rows may differ in length.

    Args:
        images: for each row uint8 (N, 3, H, W).
        row_labels: text to the left of each row.
        title: title of the figure.
        column_labels: text above the first row.
        captions: for each row the text above each image.
    """
    columns = max([1, *map(len, images)])
    with figure_style(**{"axes.grid": False}):
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
    """Images, and below them one row for each set of heat maps drawn over the images.

    Each map is scaled to its own largest value; bright parts count most.

    Args:
        images: uint8 (N, 3, H, W).
        maps: for each row an array (N, h, w).
        row_labels: text to the left of the images, then of each row of maps.
        captions: text above each image.
        title: title of the figure.
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
    """Images as points, coloured by true class and named at the class's median; errors are ×.

    Args:
        points: coordinates (N, 2).
        labels: true classes (N,).
        predictions: predicted classes (N,).
        classes: names of the classes.
        title: title of the figure.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    wrong = labels != predictions
    palette = np.array(sns.color_palette("colorblind", len(classes)))
    with figure_style(**{"axes.grid": False}):
        _, axes = plt.subplots(figsize=(9, 7.5), layout="constrained")
        axes.scatter(*points[~wrong].T, s=12, c=palette[labels[~wrong]], alpha=0.6, linewidths=0)
        axes.scatter(
            *points[wrong].T,
            s=22,
            c=palette[labels[wrong]],
            marker="X",
            edgecolors="black",
            linewidths=0.4,
            label=f"misclassified ({wrong.sum():,})",
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
    """Accuracy under each corruption: as numbers, costliest first, and as curves over severity.

    Args:
        accuracies: fractions of 1, a row per corruption and a column per severity, 0 for clean.
        images: how many images they were measured on.
        variant: name for the title.
        drop: draw a dashed line this far below the clean accuracy, a fraction of 1.
    """
    accuracies = 100 * accuracies.loc[accuracies.mean(axis=1).sort_values().index]
    palette = sns.color_palette("colorblind", len(accuracies))
    with figure_style():
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
            yticklabels=drawable_names(accuracies.index),
            ax=left,
        )
        left.grid(False)
        left.set(title="Accuracy in per cent", xlabel="severity (0: clean)", ylabel="")
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
        right.set(title="Accuracy over severity", xlabel="severity (0: clean)")
        right.set_ylabel("accuracy")
        label_per_cent(right.yaxis)
        right.xaxis.set_major_locator(MaxNLocator(integer=True))
        # The legend has the order in which the curves end.
        ends = accuracies.iloc[:, -1].sort_values(ascending=False).index
        by_name = dict(zip(accuracies.index, right.lines, strict=True))
        handles = {name: by_name[name] for name in ends}
        if drop is not None and accuracies[0].iloc[0] > 100 * drop:
            line = right.axhline(accuracies[0].iloc[0] - 100 * drop, ls="--", color="0.3", zorder=1)
            handles[f"{100 * drop:g} points lost"] = line
        right.legend(
            handles.values(),
            handles.keys(),
            frameon=False,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
        )
        costs = accuracies.iloc[0].mean() < accuracies[0].iloc[0]
        what = f"{accuracies.index[0]} costs most" if costs else "no corruption costs accuracy"
        figure.suptitle(f"{variant}: {what} ({counted(images, 'test image')})", fontweight="bold")
    return [left, right]
