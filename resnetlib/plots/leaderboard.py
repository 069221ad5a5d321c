"""Figures of several variants or runs.

A table has one row per variant, such as `pd.DataFrame(reports.leaderboard.results_table(runs))`:
`variant`, `parameters`, `macs`, `recipe_selected_on_test`, and in per cent `published`,
`reproduced` (mean over seeds) and `spread` (standard deviation over seeds); a missing number is NaN
or None. Published accuracies are drawn hollow, reproduced ones filled. The name of a variant whose
recipe was chosen knowing a test accuracy has a †.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.path import Path
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import EngFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from ..analysis.significance import format_points
from ..experiment import DEFAULT_BUDGET
from .architecture import COLORBLIND, INK
from .style import (
    NAME_CHARACTERS,
    RUN_CHARACTERS,
    drawable,
    drawable_names,
    figure_style,
    label_per_cent,
    variant_color,
)


def sizes(
    published: pd.DataFrame,
    budget: int,
    this: pd.Series | None = None,
    designs: pd.DataFrame | None = None,
) -> list[Axes]:
    """Parameters against MACs: all in the first Axes, those close to the budget in the second.

    Args:
        published: one row per variant, named by the index, with `parameters` and `macs`.
        budget: trainable parameters, drawn as a line.
        this: such a row, marked with a star and labelled by its name.
        designs: other networks, drawn as small dots.
    """
    close = (0.9 * budget, 1.02 * budget)
    near = published["parameters"].between(*close)
    frames = [published, designs, None if this is None else this.to_frame().T]
    drawn = pd.concat([rows[["parameters", "macs"]] for rows in frames if rows is not None])
    with figure_style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
        left.set(xscale="log", yscale="log", title="All")
        right.set_title("Close to the budget")
        for axes in (left, right):
            if designs is not None:
                cloud = {"ms": 2, "color": "0.7", "zorder": 0, "label": "designs of the family"}
                axes.plot(designs["parameters"], designs["macs"], ".", **cloud)
            for name, row in published.iterrows():
                axes.plot(row["parameters"], row["macs"], "o", ms=8, color=variant_color(name))
            if this is not None:
                star = {"mec": "black", "mfc": "none", "ms": 19, "mew": 1.5, "label": this.name}
                axes.plot(this["parameters"], this["macs"], "*", **star)
            axes.axvline(budget, color=INK, ls="--", label=f"budget of {budget:,}")
            axes.xaxis.set_major_formatter(EngFormatter())
            axes.yaxis.set_major_formatter(EngFormatter())
            axes.set(xlabel="parameters", ylabel="multiply-accumulates of one image")
        left.margins(x=0.3, y=0.15)  # room for names
        left.legend(frameon=False, loc="upper left")
        macs = drawn["macs"][drawn["parameters"].between(*close)]
        highest = macs.max() if len(macs) else drawn["macs"].max()
        right.set(xlim=close, ylim=(0, 1.2 * highest))
        figure.suptitle("Networks of like size differ in what they compute", fontweight="bold")
        figure.draw_without_rendering()  # places the Axes, which the labels go by
        columns = {"parameters": "x", "macs": "y"}
        points = published.rename(columns=columns).assign(name=published.index, bold=False)
        marks = points[["x", "y"]].to_numpy(dtype=float)
        if this is not None:
            marks = np.vstack([marks, this[["parameters", "macs"]].to_numpy(dtype=float)])
        for axes, labelled in ((left, ~near), (right, near)):
            _label_points(axes, points[labelled], marks=marks, budget=budget)
    return [left, right]


SIZES = {"parameters": "trainable parameters", "macs": "multiply-accumulates of one image (MACs)"}
TITLES = {
    "parameters": "Best for their size in bold",
    "macs": "Best for their work in bold",
}
FIGSIZE = (6.2, 5.4)  # inches: two side by side on a wide page, one on a phone
LEGEND_ROWS = 22  # of a column: as many as stand beside the Axes
# Of experiments that share a colour: solid, dashed, dotted, then dashes and dots by turns.
DASHES = (
    *("-", "--", ":"),
    *(
        (0, (4, 2) * dashes + (1, 2) * dots)
        for dashes, dots in itertools.product(range(1, 4), range(1, 5))
    ),
)


def pareto_front(sizes: Sequence[float], accuracies: Sequence[float]) -> np.ndarray:
    """(N,) bool: which networks are best for their size.

    No other network is as small and as accurate and better in one of the two. A missing accuracy
    is never on the front; equal networks are on it together.
    """
    sizes, accuracies = np.asarray(sizes, dtype=float), np.asarray(accuracies, dtype=float)
    no_larger = sizes[:, None] <= sizes
    no_worse = accuracies[:, None] >= accuracies
    better = (sizes[:, None] < sizes) | (accuracies[:, None] > accuracies)
    return ~(no_larger & no_worse & better).any(0) & ~np.isnan(accuracies)


def accuracy_against(table: pd.DataFrame, size: Literal["parameters", "macs"]) -> Axes:
    """Test accuracy against a size on a log axis, with the Pareto fronts.

    Variants on the front are named, others where there is room.
    A pale line of the variant's colour joins what was published with what was reproduced. The front
    of the reproduced accuracies is solid, that of the published ones dashed.
    """
    table = _numbers(table, size).dropna(subset=["published", "reproduced"], how="all")
    kind_in_bold = "reproduced" if table["reproduced"].count() > 1 else "published"
    best = pareto_front(table[size], table[kind_in_bold])
    with figure_style():
        figure, axes = plt.subplots(figsize=FIGSIZE, layout="constrained")
        axes.set_xscale("log")
        for kind, line in (("published", "--"), ("reproduced", "-")):
            front = table[pareto_front(table[size], table[kind])].sort_values(size)
            if len(front) > 1:  # in steps: this accuracy is available from this size on
                axes.step(
                    front[size], front[kind], line, where="post", color="0.6", lw=1.2, zorder=1
                )
        for row in table.itertuples():
            at, color = getattr(row, size), variant_color(row.variant)
            axes.plot([at, at], [row.published, row.reproduced], color=color, alpha=0.45, lw=1)
            _published(axes, at, row.published, color)
            _reproduced(axes, at, row.reproduced, color, yerr=row.spread)
        axes.margins(x=0.22, y=0.12)  # room for names
        if size == "parameters":
            _draw_budget(axes)
        axes.set(xlabel=f"{SIZES[size]}, log scale", ylabel="test accuracy (CIFAR-10)")
        axes.set_title(f"{TITLES[size]} ({kind_in_bold})")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        label_per_cent(axes.yaxis)
        _legend(figure, table)
        figure.canvas.draw()  # fixes the positions that labels are placed by
        values = table["reproduced"].fillna(table["published"])
        points = table.assign(x=table[size], y=values, bold=best)
        kinds = [table[[size, kind]].to_numpy() for kind in ("published", "reproduced")]
        budget = DEFAULT_BUDGET if size == "parameters" else None
        _label_points(axes, points, marks=np.concatenate(kinds), budget=budget)
    return axes


def _draw_budget(axes: Axes) -> None:
    """A line at the default budget, labelled, where parameters are on the x axis."""
    axes.axvline(DEFAULT_BUDGET, color="0.35", lw=1, ls=":", zorder=0)
    axes.text(
        DEFAULT_BUDGET,
        0.02,
        f" budget\n {DEFAULT_BUDGET:,}",
        transform=axes.get_xaxis_transform(),
        fontsize=8.5,
        color="0.35",
    )


CLAIMS_TITLE = "Claimed accuracy for its size and for its work"
CLAIM_MARKERS = {"test": "o", "best on test": "^", "validation": "s", "competition": "D"}
CLAIM_GROUPS = {"class": ("the class", COLORBLIND[0]), "variants": ("variants here", COLORBLIND[1])}
NAMED_CLAIMS = 8  # the most accurate claims, which are named besides the front


def claimed_accuracy(claims: pd.DataFrame) -> list[Axes]:
    """Claimed accuracies against parameters and against MACs, the marker by what is claimed.

    Named are the Pareto front (bold) and the most accurate. `claims` is as from `explore.claims`.
    """
    claims = claims.assign(y=100 * claims["claimed"], name=claims.index.str.removeprefix("class/"))
    with figure_style():
        figure, both = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained", sharey=True)
        for axes, size in zip(both, SIZES, strict=True):
            axes.set_xscale("log")
            for (kind, group), rows in claims.groupby(["kind", "group"]):
                style = {"ls": "", "ms": 7, "mec": "white", "mew": 0.6, "alpha": 0.85}
                color = CLAIM_GROUPS[group][1]
                axes.plot(rows[size], rows["y"], CLAIM_MARKERS[kind], color=color, **style)
            best = pareto_front(claims[size], claims["y"])
            front = claims[best].sort_values(size)
            axes.step(front[size], front["y"], "--", where="post", color="0.6", lw=1.2, zorder=1)
            axes.margins(x=0.18, y=0.08)  # room for names
            axes.set_xlabel(f"{SIZES[size]}, log scale")
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        _draw_budget(both[0])
        both[0].set(ylabel="claimed accuracy (CIFAR-10)")
        label_per_cent(both[0].yaxis)
        figure.suptitle(CLAIMS_TITLE, fontweight="bold")
        _claims_legend(figure, claims)
        figure.canvas.draw()  # fixes the positions that labels are placed by
        for axes, size in zip(both, SIZES, strict=True):
            best = pareto_front(claims[size], claims["y"])
            named = best | (claims["y"].rank(ascending=False) <= NAMED_CLAIMS).to_numpy()
            points = claims.assign(x=claims[size], bold=best)[named]
            budget = DEFAULT_BUDGET if size == "parameters" else None
            _label_points(axes, points, marks=claims[[size, "y"]].to_numpy(), budget=budget)
    return list(both)


def _claims_legend(figure: plt.Figure, claims: pd.DataFrame) -> None:
    """What is claimed by marker, whose it is by colour, and the front."""
    entries = [
        Line2D([], [], marker=marker, ls="", color="0.35", ms=7, label=kind)
        for kind, marker in CLAIM_MARKERS.items()
        if kind in set(claims["kind"])
    ]
    entries += [Patch(fc=color, label=label) for label, color in CLAIM_GROUPS.values()]
    entries.append(Line2D([], [], ls="--", color="0.6", lw=1.2, label="Pareto front, in bold"))
    figure.legend(
        handles=entries,
        loc="outside lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=8.5,
    )


def overlaid_curves(histories: Sequence[tuple[str, str, pd.DataFrame]]) -> Axes:
    """Test accuracy over epochs, one curve per history.

    Each history comes with its variant, which gives the colour, and a label. Histories with the
    same variant and label share one entry of the legend; other curves of one colour differ in
    dashes. The picture grows with its legend, which is on the right.
    """
    groups: dict[tuple[str, str], list[pd.DataFrame]] = {}
    for variant, label, history in histories:
        groups.setdefault((variant, label), []).append(history)
    dashes: dict[tuple[float, float, float], itertools.cycle] = {}  # variants may share a colour
    with figure_style():
        figure, axes = plt.subplots(figsize=FIGSIZE, layout="constrained")
        lows = []
        for (variant, name), runs in groups.items():
            line = next(dashes.setdefault(variant_color(variant), itertools.cycle(DASHES)))
            several = f" ({len(runs)} runs)" if len(runs) > 1 else ""
            for i, history in enumerate(runs):
                axes.plot(
                    history["epoch"],
                    100 * history["test_accuracy"],
                    ls=line,
                    color=variant_color(variant),
                    lw=1.3,
                    alpha=0.8 if several else 1,
                    label=None if i else drawable(name, RUN_CHARACTERS) + several,
                )
                lows.append(100 * history["test_accuracy"].iloc[-1])
        if lows:
            # The first epochs would otherwise press all that differs into the top of the figure.
            axes.set_ylim(bottom=max(0, min(lows) - 30))
            legend = axes.legend(
                loc="upper left",
                bbox_to_anchor=(1, 1),
                ncols=math.ceil(len(groups) / LEGEND_ROWS),
                handlelength=5,  # shows the whole pattern of dashes
                frameon=False,
                fontsize=8.5,
            )
            legend_width = legend.get_window_extent().width / figure.dpi
            figure.set_figwidth(FIGSIZE[0] - 1 + legend_width)
        axes.set(xlabel="epoch", ylabel="test accuracy")
        axes.set_title("Test accuracy while training")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        label_per_cent(axes.yaxis)
    return axes


def published_against_reproduced(table: pd.DataFrame) -> Axes:
    """Published and reproduced accuracy and their difference in points, one line per variant."""
    table = _numbers(table).dropna(subset=["published", "reproduced"], how="all")
    # The best on top; variants that were not reproduced at the bottom.
    table = table.sort_values(["reproduced", "published"], na_position="first")
    names = drawable_names(table["name"])
    figsize = (5 + 0.08 * max(map(len, names), default=0), 2 + 0.24 * max(len(table), 1))
    with figure_style():
        figure, axes = plt.subplots(figsize=figsize, layout="constrained")
        for y, row in enumerate(table.itertuples()):
            color = variant_color(row.variant)
            axes.plot([row.published, row.reproduced], [y, y], color="0.75", lw=2, zorder=1)
            _published(axes, row.published, y, color)
            _reproduced(axes, row.reproduced, y, color, xerr=row.spread)
            difference = row.reproduced - row.published
            text = "–" if np.isnan(difference) else format_points(difference / 100)
            axes.text(
                1.02, y, text, transform=axes.get_yaxis_transform(), va="center", fontsize=9.5
            )
        axes.text(
            1.02, 1.01, "points", transform=axes.transAxes, va="bottom", fontsize=9, color="0.35"
        )
        axes.set_yticks(range(len(table)), names)
        axes.set(xlabel="test accuracy (CIFAR-10)", ylim=(-0.6, max(len(table), 1) - 0.4))
        axes.margins(x=0.08)
        axes.grid(axis="y", alpha=0)
        label_per_cent(axes.xaxis)
        axes.locator_params(axis="x", nbins=6)
        axes.set_title("Published and reproduced, and the difference")
        _legend(figure, table, fronts=False)
    return axes


def _numbers(table: pd.DataFrame, *sizes: str) -> pd.DataFrame:
    columns = ["published", "reproduced", "spread", *sizes]
    marked = np.where(table["recipe_selected_on_test"], " †", "")
    numbers = table[["variant", *columns]].astype(dict.fromkeys(columns, float))
    return numbers.assign(name=table["variant"] + marked)


def _published(axes: Axes, x: float, y: float, color: tuple[float, ...]) -> None:
    axes.plot(x, y, "o", ms=7, mfc="white", mec=color, mew=1.6, zorder=2)


def _reproduced(axes: Axes, x: float, y: float, color: tuple[float, ...], **spread: float) -> None:
    spread = {name: value for name, value in spread.items() if not np.isnan(value)}
    axes.errorbar(x, y, fmt="o", ms=7.5, color=color, capsize=3, elinewidth=1.6, zorder=3, **spread)


def _legend(figure: plt.Figure, table: pd.DataFrame, *, fronts: bool = True) -> None:
    published, reproduced = table["published"].count(), table["reproduced"].count()
    grey = {"color": "0.35", "marker": "o", "ls": ""}
    front = {"color": "0.6", "lw": 1.2}
    entries = []
    if published:
        entries.append(Line2D([], [], mfc="white", ms=7, mew=1.6, label="published", **grey))
    if reproduced:
        label = "reproduced, mean ± standard deviation over seeds"
        entries.append(Line2D([], [], ms=7.5, label=label, **grey))
    if fronts and published > 1:
        entries.append(Line2D([], [], ls="--", label="Pareto front, published", **front))
    if fronts and reproduced > 1:
        entries.append(Line2D([], [], label="Pareto front, reproduced", **front))
    if entries:
        figure.legend(
            handles=entries, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5
        )


def _label_points(
    axes: Axes,
    points: pd.DataFrame,
    *,
    marks: np.ndarray,
    budget: float | None = None,
) -> None:
    """Write names beside their points, away from other texts, from marks and from the budget.

    A name further up or down has a line to its point, which runs through no other name. Bold
    names come first and are always written, another one only where there is room, with a line
    that runs through no other mark either.

    Args:
        axes: placed on its figure, with its final limits.
        points: `name`, `x`, `y` and `bold` of each name, in data coordinates.
        marks: (N, 2) data coordinates of what no name may cover.
        budget: x of a vertical line that no name may cover.
    """
    pixels = axes.transData.transform(marks)
    drawn = pixels[np.isfinite(pixels).all(1)]
    marked = [Bbox.from_bounds(x - 5, y - 5, 10, 10) for x, y in drawn]
    legend = [axes.get_legend()] if axes.get_legend() else []
    taken = marked + [text.get_window_extent() for text in [*axes.texts, *legend]]
    frame = axes.get_window_extent()
    if budget is not None:
        line = axes.transData.transform((budget, axes.get_ylim()[0]))[0]
        taken.append(Bbox.from_bounds(line - 1, frame.y0, 2, frame.height))
    names, lines = [], []
    places = [(-9, 0), (9, 0)]  # points to the right, points up; the nearest first
    places += [(right, up) for up in (11, -11, 22, -22) for right in (-18, 18)]
    places += [(right, up) for up in (33, -33, 44, -44) for right in (-18, 18, -45, 45)]
    for point in points.sort_values(["bold", "x"], ascending=[False, True]).itertuples():
        own = axes.transData.transform((point.x, point.y))
        others = [mark for mark in marked if not point.bold and not mark.contains(*own)]
        for right, up in places:
            text = axes.annotate(
                drawable(point.name, NAME_CHARACTERS),
                (point.x, point.y),
                xytext=(right, up),
                textcoords="offset points",
                ha="right" if right < 0 else "left",
                va="center",
                fontsize=9.5,
                fontweight="bold" if point.bold else "normal",
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
                arrowprops={"arrowstyle": "-", "color": "0.5", "lw": 0.7} if up else None,
            )
            text.get_window_extent()  # moves the name to its place
            # Of the name alone, without the line to its point, and with some air beside it.
            name = Text.get_window_extent(text)
            box = Bbox.from_extents(name.x0 - 3, name.y0, name.x1 + 3, name.y1)
            line = Path([own, ((name.x0 + name.x1) / 2, (name.y0 + name.y1) / 2)])
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside &= frame.y0 <= box.y0 and box.y1 <= frame.y1
            is_free = inside and not any(box.overlaps(place) for place in taken + names)
            is_free &= not any(other.intersects_bbox(box, filled=False) for other in lines)
            if up == 0:  # without a line it would be read as the name of the nearest point
                end = (name.x1 if right < 0 else name.x0, (name.y0 + name.y1) / 2)
                is_free &= np.nanmin(np.hypot(*(pixels - end).T)) > np.hypot(*(own - end)) - 1
            else:
                crossed = (line.intersects_bbox(other, filled=False) for other in names + others)
                is_free &= not any(crossed)
            if is_free or (point.bold and (right, up) == places[-1]):
                names.append(box)
                if up:
                    lines.append(line)
                break
            text.remove()
