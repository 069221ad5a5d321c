"""Drawing of a network and of its blocks."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyBboxPatch, Patch, PathPatch, Rectangle
from matplotlib.path import Path

from ..schema import NUM_CLASSES, SIDE, Architecture
from ..size import first_blocks, format_shape
from .style import figure_style

# Lengths are inches: one is 100 pixels.
WIDTH = 10.0  # of the picture; a network of very many stages is drawn wider
MIDDLE = 1.62  # height of the signal in the network's picture
MAX_BLOCKS = 21  # drawn one by one; in a deeper network the long stages are shortened
PADDING = 0.26  # of a stage, beside its blocks
MAX_PITCH = 0.9  # from one block to the next
MIN_STAGE = 0.95  # width
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
    """Image, stem, stage or head: its texts and what it outputs."""

    name: str
    shape: str
    note: str
    channels: int
    side: int
    blocks: int = 0

    @property
    def is_stage(self) -> bool:
        return self.name.startswith("stage")


class _Change(NamedTuple):
    """What a block changes of its input's shape."""

    halves: bool = False  # the resolution
    shape: bool = False  # the resolution or the number of channels


class BlockLayers(NamedTuple):
    """The layers of a block, in order, as they are drawn."""

    residual: list[str]
    before: Sequence[str] = ()  # the shortcut leaves
    shortcut: Sequence[str] = ()  # none: the identity
    after: Sequence[str] = ()  # the sum


class _Kind(NamedTuple):
    """A kind of block that a network has."""

    title: str
    layers: BlockLayers


class _Box(NamedTuple):
    """The place of a part in the drawing, and how many of its blocks are drawn."""

    left: float
    width: float
    drawn: int

    @property
    def center(self) -> float:
        return self.left + self.width / 2

    @property
    def pitch(self) -> float:
        """From one block to the next."""
        return min(MAX_PITCH, (self.width - PADDING) / max(1, self.drawn))


def draw(architecture: Architecture) -> list[Axes]:
    """The network from image to logits and, below it, each kind of block that it has.

    A bar is a block: its height stands for the resolution, its shade for the channels. The first
    Axes is the network, the others are the kinds of block.
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
            _draw_block(axes, kind)
        figure.suptitle(
            describe_drawing(architecture), fontweight="bold", y=1 - 0.1 / total, va="top"
        )
    return list(grid.flat)


def describe_drawing(architecture: Architecture) -> str:
    """The network in a line, such as `3 basic blocks (1-1-1), 16-32-64 channels`."""
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
        _Part("image", format_shape(3, SIDE), "", 3, SIDE),
        _Part("stem", format_shape(*first), stem, *first),
    ]
    for index, (depth, output) in enumerate(zip(architecture.depths, stages, strict=True)):
        name, note = f"stage {index + 1}", _count(depth, "block")
        parts.append(_Part(name, format_shape(*output), note, *output, depth))
    head = "BN, ReLU, mean, linear" if preact else "mean, linear"
    return [*parts, _Part("head", f"{NUM_CLASSES} logits", head, NUM_CLASSES, 1)]


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _basic_layers(architecture: Architecture, change: _Change) -> BlockLayers:
    residual = [_conv3x3(change), "BN", "ReLU", "conv 3×3", "BN"]
    shortcut = [_projection(change), "BN"] if change.shape else []
    return BlockLayers(residual, shortcut=shortcut, after=["ReLU"])


def _dropout_layers(architecture: Architecture, change: _Change) -> BlockLayers:
    layers = _basic_layers(architecture, change)
    layers.residual.insert(3, f"dropout {architecture.dropout:g}")
    return layers


def _preact_layers(architecture: Architecture, change: _Change) -> BlockLayers:
    first, residual = ["BN", "ReLU"], [_conv3x3(change), "BN", "ReLU", "conv 3×3"]
    if change.shape:  # the first BN and ReLU serve both paths
        return BlockLayers(residual, before=first, shortcut=[_projection(change)])
    return BlockLayers(first + residual)


def _pooled_layers(architecture: Architecture, change: _Change) -> BlockLayers:
    pool = ["max-pool 2×2"] if change.halves else []
    before = ["conv 3×3", *pool, "BN", "ReLU"]
    return BlockLayers(["conv 3×3", "BN"], before=before, after=["ReLU"])


def _conv3x3(change: _Change) -> str:
    return "conv 3×3, stride 2" if change.halves else "conv 3×3"


def _projection(change: _Change) -> str:
    return "conv 1×1, stride 2" if change.halves else "conv 1×1"


BLOCK_LAYERS: dict[str, Callable[[Architecture, _Change], BlockLayers]] = {
    "basic": _basic_layers,
    "dropout": _dropout_layers,
    "preact": _preact_layers,
    "pooled": _pooled_layers,
}


def _layers(architecture: Architecture, change: _Change) -> BlockLayers:
    """The layers of the architecture's block with all that ends its residual path."""
    layers = BLOCK_LAYERS[architecture.block](architecture, change)
    if architecture.squeeze_excitation.placement == "block":
        layers.residual.append("SE")
    if architecture.stochastic_depth:
        layers.residual.append("drop path")
    return layers


def _changes(architecture: Architecture) -> list[_Change]:
    """What the first block of each stage changes."""
    return [_Change(b.stride == 2, b.changes_shape) for b in first_blocks(architecture)]


def _kinds(architecture: Architecture) -> list[_Kind]:
    """The kinds of block in the network; first those that change the shape."""
    identity = _layers(architecture, _Change())
    stages: dict[_Change, list[str]] = {}
    for number, change in enumerate(_changes(architecture), start=1):
        if _layers(architecture, change) != identity:
            stages.setdefault(change, []).append(str(number))
    kinds = []
    for change, (*others, last) in stages.items():
        where = f"stages {', '.join(others)} and {last}" if others else f"stage {last}"
        effect = "halves the resolution" if change.halves else "changes the channels"
        title = f"First block of {where}: {effect}"
        kinds.append(_Kind(title, _layers(architecture, change)))
    if sum(architecture.depths) > sum(map(len, stages.values())):
        kinds.append(_Kind("Every other block" if kinds else "Every block", identity))
    return kinds


def _layout(parts: Sequence[_Part]) -> tuple[float, list[_Box]]:
    """The picture's width and the parts' boxes, with as much space between blocks as there is."""
    longest = min(MAX_BLOCKS, max(part.blocks for part in parts))
    while longest > 3 and sum(min(part.blocks, longest) for part in parts) > MAX_BLOCKS:
        longest -= 1
    drawn = [min(part.blocks, longest) for part in parts]
    ends = {"image": 0.9, "stem": 1.25, "head": 1.45 if "ReLU" in parts[-1].note else 1.0}
    gap, margin = 0.25, 0.1
    for pitch in np.arange(MAX_PITCH, 0.2, -0.01):
        widths = [
            ends.get(part.name, max(MIN_STAGE, pitch * count + PADDING))
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
    changes = iter(_changes(architecture))
    for part, box in zip(parts, boxes, strict=True):
        _label(axes, part, box)
        if part.is_stage:
            projects = bool(_layers(architecture, next(changes)).shortcut)
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
    """Left and right end of the part, where the signal enters and leaves it."""
    half = box.width / 2 - 0.03 if part.is_stage else _thickness(part) / 2
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
    shortened = part.blocks > box.drawn
    for number in range(box.drawn):
        left = start + number * box.pitch
        if shortened and number == box.drawn - 2:  # for all that are not drawn
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
    """A bar, darker with every doubling of the channels from 8 to 1024; image and logits grey."""
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
    """An arch over the bar to the addition, dashed where the shortcut is a convolution."""
    top = MIDDLE + (_height(part.side) / 2 + 0.08) / 0.62  # a cubic's flank clears the bar's corner
    points = [(left, MIDDLE), (left, top), (right, top), (right, MIDDLE)]
    arch = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(
        PathPatch(arch, fc="none", ec=INK, lw=1, ls="--" if projected else "-", zorder=2)
    )
    axes.add_patch(Circle((right, MIDDLE), 0.035, fc="white", ec=INK, lw=1, zorder=4))


def _draw_key(axes: Axes, architecture: Architecture) -> None:
    squeeze = architecture.squeeze_excitation
    shortcuts = [kind.layers.shortcut for kind in _kinds(architecture)]
    entries = []
    if not all(shortcuts):
        entries.append(Line2D([], [], color=INK, lw=1, label="identity shortcut"))
    projections = [shortcut[0] for shortcut in shortcuts if shortcut]
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


def _draw_block(axes: Axes, kind: _Kind) -> None:
    """The residual path as a row of layers, the shortcut above it, their sum at the end."""
    middle, above = 0.28, 0.76
    residual, before, shortcut, after = kind.layers
    axes.text(0.2, 1.2, kind.title, fontsize=10, fontweight="bold", va="top", color=INK)
    gap, layers = 0.2, [*before, *residual]
    tip = 0.95 if after else 0.35  # of the arrow, from the sum
    x = (axes.get_xlim()[1] - sum(map(_chip_width, layers)) - gap * len(layers) - tip) / 2
    start, fork = x - 0.3, x - 0.15
    for number, layer in enumerate(layers):
        if before and number == len(before):
            fork = x - gap / 2
        _draw_chip(axes, x, middle, layer)
        x += _chip_width(layer) + gap
    total = x
    _draw_arrow(axes, start, total + tip, middle)
    for layer in after:
        _draw_chip(axes, total + 0.2, middle, layer)
    xs, ys = [fork, fork, total, total], [middle, above, above, middle]
    axes.plot(xs, ys, color=INK, lw=1, zorder=1, ls="--" if shortcut else "-")
    axes.add_patch(Circle((total, middle), 0.09, fc="white", ec=INK, lw=1, zorder=3))
    axes.text(total, middle - 0.008, "+", ha="center", va="center", fontsize=11, zorder=4)
    center = (fork + total) / 2
    if not shortcut:
        style = {"ha": "center", "va": "center", "fontsize": 9, "color": INK}
        box = {"fc": "white", "ec": "none", "pad": 2}
        axes.text(center, above, "identity", bbox=box, zorder=3, **style)
    x = center - sum(map(_chip_width, shortcut)) / 2
    for layer in shortcut:
        _draw_chip(axes, x, above, layer)
        x += _chip_width(layer) + 0.15


def _chip_width(layer: str) -> float:
    return 0.22 + 0.073 * len(layer)


def _draw_chip(axes: Axes, left: float, middle: float, layer: str) -> None:
    width = _chip_width(layer)
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
