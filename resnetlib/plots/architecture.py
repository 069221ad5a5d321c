"""Drawing of a network and of its block."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Patch, PathPatch, Rectangle
from matplotlib.path import Path

from ..schema import SIDE, Architecture
from .style import figure_style

# Lengths are inches: one is 100 pixels.
WIDTH = 10.0  # of the picture; a network of very many stages is drawn wider
MIDDLE = 1.62  # of the network's picture, where the signal runs
MOST_BLOCKS = 21  # drawn one by one; beyond that the long stages are shortened
PADDING, WIDEST, LEAST = 0.26, 0.9, 0.95  # of a stage: beside its blocks, a block, the whole
INK = "0.2"
CREST = sns.color_palette("crest", 71)  # a shade for each tenth of a doubling from 8 channels
COLORBLIND = sns.color_palette("colorblind")
ORANGE = COLORBLIND[1]  # squeeze-and-excitation
FILLS = {  # of a layer in the picture of a block
    "conv": CREST[14],
    "BN": "0.86",
    "ReLU": "0.97",
    "max-pool": COLORBLIND[4],
    "dropout": COLORBLIND[8],
    "SE": ORANGE,
    "drop": COLORBLIND[6],
}


class _Part(NamedTuple):
    """Image, stem, stage or head: what it sends on, and what is said of it."""

    name: str
    shape: str
    note: str
    channels: int
    side: int
    blocks: int = 0

    @property
    def stage(self) -> bool:
        return self.name.startswith("stage")


class _Kind(NamedTuple):
    """A kind of block: whether it halves the resolution, whether its shortcut is a convolution."""

    title: str
    halves: bool = False
    projects: bool = False


class _Box(NamedTuple):
    """Where a part is drawn, and how many of its blocks."""

    left: float
    width: float
    drawn: int

    @property
    def center(self) -> float:
        return self.left + self.width / 2

    @property
    def pitch(self) -> float:
        """From one block to the next."""
        return min(WIDEST, (self.width - PADDING) / max(1, self.drawn))


def draw(architecture: Architecture) -> list[Axes]:
    """The network from image to logits and, beneath, each kind of block that it has.

    A bar is a block: its height tells the resolution, its darkness the channels. The first Axes
    holds the network, the others the blocks.
    """
    parts, kinds = _parts(architecture), _kinds(architecture)
    width, boxes = _layout(parts)
    heights = [3.3] + [1.3] * len(kinds)
    total = sum(heights) + 0.35  # the title
    with figure_style(**{"axes.grid": False}):
        figure, grid = plt.subplots(
            len(heights), 1, figsize=(width, total), height_ratios=heights, squeeze=False
        )
        figure.subplots_adjust(0, 0, 1, 1 - 0.35 / total, hspace=0)
        for axes, height in zip(grid.flat, heights, strict=True):
            axes.set(xlim=(0, width), ylim=(0, height))
            axes.axis("off")
        _draw_network(grid[0, 0], architecture, parts, boxes)
        for axes, kind in zip(grid[1:, 0], kinds, strict=True):
            _draw_block(axes, architecture, kind)
        figure.suptitle(
            describe_drawing(architecture), fontweight="bold", y=1 - 0.1 / total, va="top"
        )
    return list(grid.flat)


def describe_drawing(architecture: Architecture) -> str:
    """The network in one line, such as `3 basic blocks (1-1-1), 16-32-64 channels`."""
    blocks = sum(architecture.depths)
    attention = {
        "none": "",
        "stem": ", squeeze-and-excitation after the stem",
        "block": ", squeeze-and-excitation in every block",
    }[architecture.squeeze_excitation.placement]
    biases = ", biases" if architecture.conv_bias else ""
    return (
        f"{_count(blocks, f'{architecture.block} block')} "
        f"({'-'.join(map(str, architecture.depths))}), "
        f"{'-'.join(map(str, architecture.widths))} channels{biases}{attention}"
    )


def _parts(architecture: Architecture) -> list[_Part]:
    preact = architecture.block == "preact"
    stem = "conv 3×3" if preact else "conv 3×3, BN, ReLU"
    if architecture.stem == "whitening":
        stem = "whitening 2×2, ReLU"
    first, *stages = architecture.outputs
    parts = [
        _Part("image", _shape(3, SIDE), "", 3, SIDE),
        _Part("stem", _shape(*first), stem, *first),
    ]
    for index, (depth, output) in enumerate(zip(architecture.depths, stages, strict=True)):
        name, note = f"stage {index + 1}", _count(depth, "block")
        parts.append(_Part(name, _shape(*output), note, *output, depth))
    head = "BN, ReLU, mean, linear" if preact else "mean, linear"
    return [*parts, _Part("head", "10 logits", head, 10, 1)]


def _shape(channels: int, side: int) -> str:
    return f"{channels} × {side} × {side}"


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _first_blocks(architecture: Architecture) -> list[tuple[bool, bool]]:
    """Of each stage, whether its first block halves the resolution, and whether it projects."""
    found = []
    shapes = itertools.pairwise(architecture.outputs)
    for ((before, _), (after, _)), depth, stride in zip(
        shapes, architecture.depths, architecture.stage_strides, strict=True
    ):
        halves = depth > 0 and stride == 2
        projects = architecture.block != "pooled" and (halves or before != after)
        found.append((halves, projects))
    return found


def _kinds(architecture: Architecture) -> list[_Kind]:
    """The kinds of block that occur, those that change the shape first."""
    found: dict[tuple[bool, bool], list[str]] = {}
    for number, (halves, projects) in enumerate(_first_blocks(architecture), start=1):
        if halves or projects:
            found.setdefault((halves, projects), []).append(str(number))
    kinds = []
    for (halves, projects), (*most, last) in found.items():
        where = f"stages {', '.join(most)} and {last}" if most else f"stage {last}"
        does = "halves the resolution" if halves else "changes the channels"
        kinds.append(_Kind(f"First block of {where}: {does}", halves, projects))
    if sum(architecture.depths) > sum(map(len, found.values())):
        kinds.append(_Kind("Every other block" if kinds else "Every block"))
    return kinds


def _layers(architecture: Architecture, kind: _Kind) -> tuple[list[str], list[str]]:
    """The layers of a block before the shortcut leaves, and those of its residual path."""
    stride = ", stride 2" if kind.halves else ""
    dropout = [f"dropout {architecture.dropout:g}"] if architecture.block == "dropout" else []
    before: list[str] = []
    if architecture.block == "preact":
        layers = ["BN", "ReLU", f"conv 3×3{stride}", "BN", "ReLU", "conv 3×3"]
        if kind.projects:  # the first BN and ReLU serve both paths
            before, layers = layers[:2], layers[2:]
    elif architecture.block == "pooled":
        pool = ["max-pool 2×2"] if kind.halves else []
        before, layers = ["conv 3×3", *pool, "BN", "ReLU"], ["conv 3×3", "BN"]
    else:
        layers = [f"conv 3×3{stride}", "BN", "ReLU", *dropout, "conv 3×3", "BN"]
    if architecture.squeeze_excitation.placement == "block":
        layers.append("SE")
    if architecture.stochastic_depth:
        layers.append("drop path")
    return before, layers


def _projection(halves: bool) -> str:
    return "conv 1×1, stride 2" if halves else "conv 1×1"


def _layout(parts: Sequence[_Part]) -> tuple[float, list[_Box]]:
    """The picture's width and the parts' boxes: blocks as far apart as there is room for."""
    most = min(MOST_BLOCKS, max(part.blocks for part in parts))
    while most > 3 and sum(min(part.blocks, most) for part in parts) > MOST_BLOCKS:
        most -= 1
    drawn = [min(part.blocks, most) for part in parts]
    ends = {"image": 0.9, "stem": 1.25, "head": 1.45 if "ReLU" in parts[-1].note else 1.0}
    gap, margin = 0.25, 0.1
    for pitch in np.arange(WIDEST, 0.2, -0.01):
        widths = [
            ends.get(part.name, max(LEAST, pitch * count + PADDING))
            for part, count in zip(parts, drawn, strict=True)
        ]
        used = sum(widths) + gap * (len(parts) - 1) + 2 * margin
        if used <= WIDTH:
            break
    width = max(WIDTH, used)
    lefts = np.cumsum([(width - used) / 2 + margin, *(w + gap for w in widths[:-1])]).tolist()
    return width, [_Box(*box) for box in zip(lefts, widths, drawn, strict=True)]


def _draw_network(
    axes: Axes, architecture: Architecture, parts: list[_Part], boxes: list[_Box]
) -> None:
    attention = architecture.squeeze_excitation.placement
    projecting = iter(_first_blocks(architecture))
    for part, box in zip(parts, boxes, strict=True):
        _label(axes, part, box)
        if part.stage:
            _, projects = next(projecting)
            _draw_stage(axes, part, box, attention == "block", projects)
        else:
            _draw_bar(axes, box.center, _thickness(part), part)
        if part.name == "stem" and attention == "stem":
            _draw_attention(axes, box.center + _thickness(part) / 2, part)
    ends = [_ends(part, box) for part, box in zip(parts, boxes, strict=True)]
    for (_, start), (end, _) in itertools.pairwise(ends):
        _draw_arrow(axes, start, end, MIDDLE)
    _draw_key(axes, architecture)


def _thickness(part: _Part) -> float:
    return 0.5 if part.name == "image" else 0.2


def _ends(part: _Part, box: _Box) -> tuple[float, float]:
    """Where the signal enters the part and leaves it."""
    half = box.width / 2 - 0.03 if part.stage else _thickness(part) / 2
    return box.center - half, box.center + half


def _draw_arrow(axes: Axes, start: float, end: float, height: float) -> None:
    style = {"arrowstyle": "-|>", "color": INK, "lw": 1, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", (end, height), (start, height), arrowprops=style, zorder=1)


def _label(axes: Axes, part: _Part, box: _Box) -> None:
    style = {"ha": "center", "va": "baseline", "color": INK}
    axes.text(box.center, 3.03, part.name, fontsize=10, fontweight="bold", **style)
    axes.text(box.center, 0.56, part.shape, fontsize=9, **style)
    axes.text(box.center, 0.38, part.note, fontsize=8, **style)


def _draw_stage(axes: Axes, part: _Part, box: _Box, attention: bool, projects: bool) -> None:
    panel = FancyBboxPatch(
        (box.left + 0.03, 0.74),
        box.width - 0.06,
        2.2,
        boxstyle="round,pad=0,rounding_size=0.08",
        fc="0.965" if part.blocks else "white",
        ec="0.75",
        ls="-" if part.blocks else "--",
        zorder=0,
    )
    axes.add_patch(panel)
    _draw_wire(axes, *_ends(part, box))
    start = box.center - box.drawn * box.pitch / 2
    left_out = part.blocks > box.drawn
    for number in range(box.drawn):
        left = start + number * box.pitch
        if left_out and number == box.drawn - 2:  # stands for all that are not drawn
            dots = axes.text(left + box.pitch / 2, MIDDLE, "···", ha="center", va="center")
            dots.set_bbox({"fc": "0.965", "ec": "none", "pad": 1})
            continue
        center, width = left + box.pitch / 2, 0.44 * box.pitch
        _draw_bar(axes, center, width, part)
        _draw_shortcut(axes, left, left + box.pitch, part, projects and number == 0)
        if attention:
            _draw_attention(axes, center + width / 2, part)


def _height(side: int) -> float:
    return 1.5 * (side / SIDE) ** 0.5


def _draw_wire(axes: Axes, start: float, end: float) -> None:
    axes.plot([start, end], [MIDDLE, MIDDLE], color=INK, lw=1, zorder=1, solid_capstyle="butt")


def _draw_bar(axes: Axes, center: float, width: float, part: _Part) -> None:
    """Darker with every doubling of the channels, from 8 to 1024; image and logits grey."""
    height = 0.5 if part.name == "image" else _height(part.side)
    shade = CREST[min(70, max(0, round(10 * math.log2(part.channels / 8))))]
    fill = {"image": "0.75", "head": "0.4"}.get(part.name, shade)
    corner = (center - width / 2, MIDDLE - height / 2)
    axes.add_patch(Rectangle(corner, width, height, fc=fill, ec="white", lw=0.5, zorder=3))


def _draw_attention(axes: Axes, left: float, part: _Part) -> None:
    height = _height(part.side)
    axes.add_patch(
        Rectangle(
            (left, MIDDLE - height / 2), 0.06, height, fc=ORANGE, ec="white", lw=0.5, zorder=3
        )
    )


def _draw_shortcut(axes: Axes, left: float, right: float, part: _Part, projected: bool) -> None:
    """An arch over the bar, dashed where the shortcut is a convolution, to the addition."""
    top = MIDDLE + (_height(part.side) / 2 + 0.08) / 0.62  # a cubic's flank clears the bar's corner
    points = [(left, MIDDLE), (left, top), (right, top), (right, MIDDLE)]
    arch = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(
        PathPatch(arch, fc="none", ec=INK, lw=1, ls="--" if projected else "-", zorder=2)
    )
    axes.add_patch(Circle((right, MIDDLE), 0.035, fc="white", ec=INK, lw=1, zorder=4))


def _draw_key(axes: Axes, architecture: Architecture) -> None:
    squeeze = architecture.squeeze_excitation
    kinds = _kinds(architecture)
    entries = []
    if not all(kind.projects for kind in kinds):
        entries.append(Line2D([], [], color=INK, lw=1, label="identity shortcut"))
    projections = [_projection(kind.halves) for kind in kinds if kind.projects]
    if projections:
        projected = f"shortcut by {' or '.join(projections)}"
        entries.append(Line2D([], [], color=INK, lw=1, ls="--", label=projected))
    if squeeze.placement != "none":
        label = f"squeeze-and-excitation, channels / {squeeze.reduction}"
        entries.append(Patch(fc=ORANGE, label=label))
    entries.append(Patch(fc=CREST[35], label="a block: height for resolution, shade for channels"))
    axes.legend(
        handles=entries,
        loc="lower center",
        bbox_to_anchor=(0.5, -0.01),
        ncols=len(entries),
        frameon=False,
        fontsize=8.5,
        handlelength=1.6,
        columnspacing=1.6,
    )


def _draw_block(axes: Axes, architecture: Architecture, kind: _Kind) -> None:
    """The residual path as a row of layers, the shortcut above it, their sum at the end."""
    middle, above = 0.28, 0.76
    before, residual = _layers(architecture, kind)
    layers = before + residual
    preact = architecture.block == "preact"
    axes.text(0.2, 1.2, kind.title, fontsize=10, fontweight="bold", va="top", color=INK)
    gap, widths = 0.2, [_chip_width(layer) for layer in layers]
    after = 0.35 if preact else 0.95  # to the arrow's tip
    x = (axes.get_xlim()[1] - sum(widths) - gap * len(widths) - after) / 2
    start, fork = x - 0.3, x - 0.15
    for number, (layer, width) in enumerate(zip(layers, widths, strict=True)):
        if before and number == len(before):
            fork = x - gap / 2
        _draw_chip(axes, x, middle, width, layer)
        x += width + gap
    total = x
    _draw_arrow(axes, start, total + after, middle)
    if not preact:
        _draw_chip(axes, total + 0.2, middle, _chip_width("ReLU"), "ReLU")
    xs, ys = [fork, fork, total, total], [middle, above, above, middle]
    axes.plot(xs, ys, color=INK, lw=1, zorder=1, ls="--" if kind.projects else "-")
    axes.add_patch(Circle((total, middle), 0.09, fc="white", ec=INK, lw=1, zorder=3))
    axes.text(total, middle - 0.008, "+", ha="center", va="center", fontsize=11, zorder=4)
    center = (fork + total) / 2
    if not kind.projects:
        style = {"ha": "center", "va": "center", "fontsize": 9, "color": INK}
        box = {"fc": "white", "ec": "none", "pad": 2}
        axes.text(center, above, "identity", bbox=box, zorder=3, **style)
        return
    shortcut = [_projection(kind.halves)] if preact else [_projection(kind.halves), "BN"]
    x = center - sum(map(_chip_width, shortcut)) / 2
    for layer in shortcut:
        _draw_chip(axes, x, above, _chip_width(layer), layer)
        x += _chip_width(layer) + 0.15


def _chip_width(layer: str) -> float:
    return 0.22 + 0.073 * len(layer)


def _draw_chip(axes: Axes, left: float, middle: float, width: float, layer: str) -> None:
    fill = FILLS[layer.split()[0].rstrip(",")]
    axes.add_patch(
        FancyBboxPatch(
            (left, middle - 0.15),
            width,
            0.3,
            boxstyle="round,pad=0,rounding_size=0.06",
            fc=fill,
            ec="0.45",
            lw=0.8,
            zorder=3,
        )
    )
    color = "white" if layer.startswith(("conv", "SE")) else "0.1"
    axes.text(
        left + width / 2, middle, layer, ha="center", va="center", fontsize=9, color=color, zorder=4
    )
