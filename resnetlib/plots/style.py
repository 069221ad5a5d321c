"""Colours and style shared by all figures."""

import io
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

# One colour per variant of the first teams and of this project, everywhere: distinct with red-green
# blindness too, dark enough for a line on white. Seaborn's colour-blind safe palette without its
# pale pink, its yellow and its grey.
# A new variant needs no entry: see `variant_color`.
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
    "resnet110": "#661100",  # brown; of those shared below it would have that of `resnet20`
}
# All other variants share what is not used above of Paul Tol's colour-blind safe palette "muted".
OTHER_COLORS = ("#44aa99", "#999933", "#cc6677", "#aa4499")  # teal, olive, rose, purple
TRAIN_COLOR = "0.55"  # grey: training is the background that a test curve is read against
PER_CENT, STEPS = StrMethodFormatter("{x:g} %"), (1, 2, 2.5, 5, 10)
STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titleweight": "bold",
    "axes.titlesize": 11,
    "figure.dpi": 100,
    "grid.alpha": 0.3,
    "savefig.bbox": "tight",
    "text.usetex": False,  # texts have per cent signs and underscores
}
TEXT_LINES, LINE_CHARACTERS = 4, 150
NAME_CHARACTERS = 30  # of a class or a variant
RUN_CHARACTERS = 60  # of the label of a run: most are the variant, the seed and what was changed


@contextmanager
def figure_style(**changes: object) -> Iterator[None]:
    """Use the project's style within a `with` block, with changes such as `**{"axes.grid": False}`.

    Texts of the figures made in it become `drawable`, since a stranger may have named the classes.
    Not `plt.rc_context`: that would also undo what a notebook's backend sets when the first figure
    loads it, and no later figure would be displayed.
    """
    style = STYLE | changes
    before = {name: plt.rcParams[name] for name in style}
    others = set(plt.get_fignums())
    plt.rcParams.update(style)
    try:
        yield
        for number in set(plt.get_fignums()) - others:
            for text in plt.figure(number).findobj(Text):
                text.set_text(drawable(text.get_text()))
    finally:
        plt.rcParams.update(before)


def drawable(text: str, length: int = LINE_CHARACTERS) -> str:
    """A name or caption as it can be drawn: no formula, only printable characters, no long line.

    Of a longer one the middle is left out: the names of runs often differ in their ends.
    """
    lines = str(text)[:10_000].split("\n")[:TEXT_LINES]
    return "\n".join(_drawable_line(line, length) for line in lines)


def drawable_names(names: Iterable[str], length: int = NAME_CHARACTERS) -> list[str]:
    """The same for the names beside an axis."""
    return [drawable(name, length) for name in names]


def _drawable_line(line: str, length: int) -> str:
    line = "".join(character if character.isprintable() else "�" for character in line)
    if len(line) > length:
        line = f"{line[: length // 2]}…{line[-((length - 1) // 2) :]}"
    return re.sub(r"(?<!\\)\$", r"\\$", line)  # matplotlib takes $…$ for a formula


def variant_color(variant: str) -> tuple[float, float, float]:
    """The variant's colour; for a name that has none one of `OTHER_COLORS`, always the same."""
    number = zlib.crc32(variant.encode(errors="replace"))
    other = OTHER_COLORS[number % len(OTHER_COLORS)]
    return to_rgb(VARIANT_COLORS.get(variant, other))


def label_per_cent(axis: Axis) -> None:
    """Label an axis in per cent: at whole numbers, or at parts of them where it is short."""
    axis.set(major_formatter=PER_CENT, major_locator=MaxNLocator(integer=True, steps=STEPS))


def figure_svg(axes: Axes) -> bytes:
    """The figure as SVG, the same bytes each time; closes it."""
    with plt.rc_context({"svg.hashsalt": "resnetlib", "svg.fonttype": "path"}):
        return _figure_bytes(axes, format="svg", metadata={"Date": None})


def figure_png(axes: Axes, dpi: float | None = None) -> bytes:
    """The figure as PNG; closes it."""
    return _figure_bytes(axes, format="png", dpi=dpi or "figure")


def _figure_bytes(axes: Axes, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    axes.figure.savefig(buffer, bbox_inches="tight", **settings)
    plt.close(axes.figure)
    return buffer.getvalue()


def class_matrix(axes: Axes, values: np.ndarray, classes: Sequence[str], **settings: Any) -> None:
    """Draw a square per true class (row) and predicted class (column); `sns.heatmap`'s settings."""
    names = drawable_names(classes)
    sns.heatmap(
        values,
        square=True,
        linewidths=0.5,
        xticklabels=names,
        yticklabels=names,
        annot_kws={"size": 9, "in_layout": False},  # they are inside: no need to measure them
        ax=axes,
        **settings,
    )
    axes.set(xlabel="predicted", ylabel="true")
    axes.tick_params(axis="x", rotation=45)
    axes.tick_params(axis="y", rotation=0)


def color_limit(values: np.ndarray) -> float:
    """Where the colour scale of a confusion matrix ends: at twice its largest error."""
    off_diagonal = values[~np.eye(len(values), dtype=bool)]
    return max(float(2 * off_diagonal.max()), 1.0)
