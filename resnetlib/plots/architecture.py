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

from ..schema import NUM_CLASSES, PREACTIVATED, SIDE, STEM_KERNELS, Architecture, BlockShape
from ..size import format_shape
from .style import figure_style

# Lengths are inches: one is 100 pixels.
WIDTH = 10.0  # of the picture; a network of very many stages is drawn wider
MIDDLE = 1.62  # height of the signal in the network's picture
MAX_BLOCKS = 21  # drawn one by one; in a deeper network the long stages are shortened
PADDING = 0.26  # of a stage, beside its blocks
MAX_PITCH = 0.9  # from one block to the next
MIN_STAGE = 0.95  # width
GAP = 0.2  # between the layers of a block
INK = "0.2"
CREST = sns.color_palette("crest", 71)  # a shade for each tenth of a doubling from 8 channels
COLORBLIND = sns.color_palette("colorblind")
ORANGE = COLORBLIND[1]  # squeeze-and-excitation
FILLS = {  # of a layer in the picture of a block
    "conv": CREST[14],
    "BN": "0.86",
    "ReLU": "0.97",
    "depthwise": CREST[28],
    "leaky": "0.97",
    "max-pool": COLORBLIND[4],
    "avg-pool": COLORBLIND[4],
    "every": COLORBLIND[4],
    "zero": COLORBLIND[9],
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


class BlockLayers(NamedTuple):
    """The layers of a block, in order, as they are drawn."""

    residual: Sequence[str]
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
    title, key = describe_drawing(architecture), _key(architecture, kinds)
    least = max(_block_width(kind.layers) for kind in kinds)
    least = max(
        least, 0.1 * len(title), sum(0.44 + 0.061 * len(entry.get_label()) for entry in key)
    )
    width, boxes = _layout(parts, least)
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
        _draw_key(grid[0, 0], key)
        for axes, kind in zip(grid[1:, 0], kinds, strict=True):
            _draw_block(axes, kind)
        figure.suptitle(title, fontweight="bold", y=1 - 0.1 / total, va="top")
    return list(grid.flat)


def describe_drawing(architecture: Architecture) -> str:
    """The network in a line, such as `3 basic blocks (1-1-1), 16-32-64 channels`."""
    blocks = sum(architecture.depths)
    squeeze = architecture.squeeze_excitation
    where = {"none": "", "stem": " after the stem", "block": "", "addition": " after the addition"}
    attention = ""
    if squeeze.placement != "none":
        attention = f", squeeze-and-excitation{where[squeeze.placement]}"
    if squeeze.placement in ("block", "addition"):
        attention += (
            f" in {_count(len(set(squeeze.blocks)), 'block') if squeeze.blocks else 'every block'}"
        )
    biases = ", biases" if architecture.conv_bias else ""
    return (
        f"{_count(blocks, f'{architecture.block} block')} "
        f"({'-'.join(map(str, architecture.depths))}), "
        f"{'-'.join(map(str, architecture.widths))} channels{biases}{attention}"
    )


def _parts(architecture: Architecture) -> list[_Part]:
    first, *stages = architecture.outputs
    parts = [
        _Part("image", format_shape(3, SIDE), "", 3, SIDE),
        _Part("stem", format_shape(*first), _stem_note(architecture), *first),
    ]
    for index, (depth, output) in enumerate(zip(architecture.depths, stages, strict=True)):
        name, note = f"stage {index + 1}", _count(depth, "block")
        parts.append(_Part(name, format_shape(*output), note, *output, depth))
    size = architecture.pool_size
    layers = [f"mean {size}×{size}" if size else "mean", "linear"]
    if architecture.head_dropout:
        place = 0 if architecture.head_dropout_place == "map" else 1
        layers.insert(place, f"dropout {architecture.head_dropout:g}")
    if architecture.block in PREACTIVATED and architecture.final_norm:
        layers = ["BN", ACTIVATION_NAMES[architecture.activations[-1]], *layers]
    head = ", ".join(layers)
    return [*parts, _Part("head", f"{NUM_CLASSES} logits", head, NUM_CLASSES, 1)]


def _stem_note(architecture: Architecture) -> str:
    """The layers of the stem, as `resnet._stem` makes them."""
    activation = ACTIVATION_NAMES[architecture.activations[0]]
    if architecture.stem == "whitening":
        layers = ["whitening 2×2", activation]
    else:
        layers = []
        for kernel in STEM_KERNELS[architecture.stem]:
            layers += [f"conv {kernel}×{kernel}", "BN", activation]
        absent = {"preact": 2, "pyramid": 1}.get(architecture.block, 0)  # of the last layers
        layers = layers[: len(layers) - absent]
        layers[0] += ", stride 2" * (architecture.stem_stride == 2)
    if pool := architecture.stem_pool:
        layers.append(f"max-pool {pool.kernel}×{pool.kernel}")
    return ", ".join(layers)


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def _basic_layers(architecture: Architecture, block: BlockShape) -> BlockLayers:
    activation = _activation(architecture, block)
    residual = [*_conv(architecture, block), "BN", activation]
    residual += [*_dropout(architecture, "residual"), *_conv(architecture, block.next), "BN"]
    return BlockLayers(residual, (), _shortcut(architecture, block), [activation])


def _bottleneck_layers(architecture: Architecture, block: BlockShape) -> BlockLayers:
    activation = _activation(architecture, block)
    residual = ["conv 1×1", "BN", activation, *_conv(architecture, block), "BN", activation]
    residual += [*_dropout(architecture, "residual"), "conv 1×1", "BN"]
    return BlockLayers(residual, (), _shortcut(architecture, block), [activation])


def _preact_layers(architecture: Architecture, block: BlockShape) -> BlockLayers:
    first = ["BN", _activation(architecture, block)]
    residual = [*_conv(architecture, block), *first, *_dropout(architecture, "residual")]
    residual += _conv(architecture, block.next)
    shortcut = _shortcut(architecture, block)
    if shortcut and architecture.shortcut.input == "activated":
        return BlockLayers(residual, first, shortcut)  # the first BN and ReLU serve both paths
    return BlockLayers(first + residual, (), shortcut)


def _pyramid_layers(architecture: Architecture, block: BlockShape) -> BlockLayers:
    residual = ["BN", *_conv(architecture, block), "BN", _activation(architecture, block)]
    residual += [*_dropout(architecture, "residual"), *_conv(architecture, block.next), "BN"]
    return BlockLayers(residual, (), _shortcut(architecture, block))


def _pooled_layers(architecture: Architecture, block: BlockShape) -> BlockLayers:
    activation, conv = _activation(architecture, block), _conv(architecture, block.next)
    pool = ["max-pool 2×2"] if block.stride == 2 else []
    residual = [*_dropout(architecture, "residual"), *conv, "BN"]
    return BlockLayers(residual, [*conv, *pool, "BN", activation], (), [activation])


def _activation(architecture: Architecture, block: BlockShape) -> str:
    return ACTIVATION_NAMES[architecture.activations[block.stage + 1]]


def _dropout(architecture: Architecture, place: str) -> list[str]:
    drawn = architecture.dropout or architecture.block == "dropout"
    here = drawn and architecture.dropout_place == place
    return [f"dropout {architecture.dropout:g}"] if here else []


def _conv(architecture: Architecture, block: BlockShape) -> list[str]:
    kind, kernel = architecture.conv_kinds[block.stage], architecture.conv_kernels[block.stage]
    layer = f"{'conv' if kind == 'full' else 'depthwise'} {kernel}×{kernel}{_stride(block)}"
    return [layer, *["conv 1×1"] * (kind == "separable")]


def _shortcut(architecture: Architecture, block: BlockShape) -> list[str]:
    """The layers of the shortcut; none: the identity."""
    if not block.changes_shape:
        return []
    shortcut, padded = architecture.shortcut, architecture.shortcut.kind == "zero_pad"
    layers = []
    if block.stride == 2 and (padded or shortcut.pool != "none"):
        layers.append(SHORTCUT_POOLS[shortcut.pool])
    if padded:
        return layers + ["zero channels"] * (block.in_channels != block.out_channels)
    kernel = architecture.shortcut_kernels[block.stage]
    layers.append(f"conv {kernel}×{kernel}{'' if layers else _stride(block)}")
    return layers + ["BN"] * architecture.shortcut_norm


def _stride(block: BlockShape) -> str:
    return ", stride 2" if block.stride == 2 else ""


ACTIVATION_NAMES = {"relu": "ReLU", "leaky_relu": "leaky ReLU"}
SHORTCUT_POOLS = {"none": "every 2nd pixel", "average": "avg-pool 2×2", "max": "max-pool 2×2"}
BLOCK_LAYERS: dict[str, Callable[[Architecture, BlockShape], BlockLayers]] = {
    "basic": _basic_layers,
    "bottleneck": _bottleneck_layers,
    "dropout": _basic_layers,
    "preact": _preact_layers,
    "pyramid": _pyramid_layers,
    "pooled": _pooled_layers,
}


def _layers(architecture: Architecture, block: BlockShape) -> BlockLayers:
    """The layers of a block with all that ends its residual path and follows the addition."""
    residual, before, shortcut, after = BLOCK_LAYERS[architecture.block](architecture, block)
    attention = ["SE"] * block.attention
    at_end = architecture.squeeze_excitation.placement == "block"
    drop_path = ["drop path"] * bool(architecture.stochastic_depth)
    residual += [*_dropout(architecture, "residual_end"), *attention * at_end, *drop_path]
    after = [*_dropout(architecture, "addition"), *after, *_dropout(architecture, "output")]
    after = [*attention * (not at_end), *after]
    return BlockLayers(tuple(residual), tuple(before), tuple(shortcut), tuple(after))


def _kinds(architecture: Architecture) -> list[_Kind]:
    """The kinds of block in the network; first those that change the shape and begin a stage."""
    blocks: dict[BlockLayers, list[tuple[int, BlockShape]]] = {}  # with their numbers
    numbers = itertools.count(1)
    for stage in architecture.blocks:
        for block in stage:
            blocks.setdefault(_layers(architecture, block), []).append((next(numbers), block))
    starts = {stage[0] for stage in architecture.blocks if stage and stage[0].changes_shape}
    kinds, others = [], []
    for layers, found in blocks.items():
        if all(block in starts for _, block in found):
            kinds.append(_Kind(_first_block_title([block for _, block in found]), layers))
        else:
            others.append((layers, [number for number, _ in found]))
    for layers, found in others:
        title = "Every other block" if kinds else "Every block"
        if len(others) > 1:
            title = f"Block{'s' * (len(found) > 1)} {_ranges(found)}"
        kinds.append(_Kind(title, layers))
    return kinds


def _first_block_title(blocks: list[BlockShape]) -> str:
    *others, last = [str(block.stage + 1) for block in blocks]
    where = f"stages {', '.join(others)} and {last}" if others else f"stage {last}"
    effect = "halves the resolution" if blocks[0].stride == 2 else "changes the channels"
    return f"First block of {where}: {effect}"


def _ranges(numbers: list[int]) -> str:
    """Such as `1 to 3, 5` for 1, 2, 3, 5."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    texts = [f"{run[0]} to {run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs]
    return ", ".join(texts)


def _layout(parts: Sequence[_Part], least: float) -> tuple[float, list[_Box]]:
    """The picture's width, at least this, and the parts' boxes, as wide as there is space."""
    longest = min(MAX_BLOCKS, max(part.blocks for part in parts))
    while longest > 3 and sum(min(part.blocks, longest) for part in parts) > MAX_BLOCKS:
        longest -= 1
    drawn = [min(part.blocks, longest) for part in parts]
    ends = {"image": 0.9} | {
        part.name: max(least, 0.25 + 0.056 * len(part.note))
        for part, least in ((parts[1], 1.25), (parts[-1], 1.0))
    }
    gap, margin = 0.25, 0.1
    for pitch in np.arange(MAX_PITCH, 0.2, -0.01):
        widths = [
            ends.get(part.name, max(MIN_STAGE, pitch * count + PADDING))
            for part, count in zip(parts, drawn, strict=True)
        ]
        used = sum(widths) + gap * (len(parts) - 1) + 2 * margin
        if used <= WIDTH:
            break
    width = max(WIDTH, used, least)
    lefts = np.cumsum([(width - used) / 2 + margin, *(w + gap for w in widths[:-1])]).tolist()
    return width, [_Box(*box) for box in zip(lefts, widths, drawn, strict=True)]


def _draw_network(
    axes: Axes, architecture: Architecture, parts: list[_Part], boxes: list[_Box]
) -> None:
    stages = iter(architecture.blocks)
    for part, box in zip(parts, boxes, strict=True):
        _label(axes, part, box)
        if part.is_stage:
            _draw_stage(axes, architecture, part, box, next(stages))
        else:
            _draw_bar(axes, box.center, _thickness(part), part)
        if part.name == "stem" and architecture.squeeze_excitation.placement == "stem":
            _draw_attention(axes, box.center + _thickness(part) / 2, part)
    ends = [_ends(part, box) for part, box in zip(parts, boxes, strict=True)]
    for (_, start), (end, _) in itertools.pairwise(ends):
        _draw_arrow(axes, start, end, MIDDLE)


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


def _draw_stage(
    axes: Axes,
    architecture: Architecture,
    part: _Part,
    box: _Box,
    blocks: Sequence[BlockShape],
) -> None:
    """The stage's blocks; those before the last that do not fit are three dots."""
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
    drawn = [*blocks[: box.drawn - 1], *blocks[-1:]] if box.drawn else []
    for number, block in enumerate(drawn):
        left = start + number * box.pitch
        if shortened and number == box.drawn - 2:  # for all that are not drawn
            dots = axes.text(left + box.pitch / 2, MIDDLE, "···", ha="center", va="center")
            dots.set_bbox({"fc": "0.965", "ec": "none", "pad": 1})
            continue
        center, width = left + box.pitch / 2, 0.44 * box.pitch
        _draw_bar(axes, center, width, part._replace(channels=block.out_channels))
        dashed = bool(_layers(architecture, block).shortcut)
        _draw_shortcut(axes, left, left + box.pitch, part, dashed)
        if block.attention:
            _draw_attention(axes, center + width / 2, part)


def _height(side: int) -> float:
    return 1.5 * (min(side, SIDE) / SIDE) ** 0.5  # padding of the stem may enlarge the image


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


def _draw_shortcut(axes: Axes, left: float, right: float, part: _Part, dashed: bool) -> None:
    """An arch over the bar to the addition, dashed where the shortcut is not the identity."""
    top = MIDDLE + (_height(part.side) / 2 + 0.08) / 0.62  # a cubic's flank clears the bar's corner
    points = [(left, MIDDLE), (left, top), (right, top), (right, MIDDLE)]
    arch = Path(points, [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4])
    axes.add_patch(PathPatch(arch, fc="none", ec=INK, lw=1, ls="--" if dashed else "-", zorder=2))
    axes.add_patch(Circle((right, MIDDLE), 0.035, fc="white", ec=INK, lw=1, zorder=4))


def _key(architecture: Architecture, kinds: Sequence[_Kind]) -> list[Line2D | Patch]:
    """The entries of the key, with their labels."""
    squeeze = architecture.squeeze_excitation
    shortcuts = [", ".join(part for part in k.layers.shortcut if part != "BN") for k in kinds]
    entries = []
    if not all(shortcuts):
        entries.append(Line2D([], [], color=INK, lw=1, label="identity shortcut"))
    # Of a convolution with and without a stride, the one with it.
    kept = [one for one in dict.fromkeys(shortcuts) if one and f"{one}, stride 2" not in shortcuts]
    if kept:
        label = f"shortcut by {' or '.join(kept)}"
        entries.append(Line2D([], [], color=INK, lw=1, ls="--", label=label))
    if squeeze.placement != "none":
        label = f"squeeze-and-excitation, channels / {squeeze.reduction}"
        entries.append(Patch(fc=ORANGE, label=label))
    label = "a block: height for resolution, shade for channels"
    return [*entries, Patch(fc=CREST[35], label=label)]


def _draw_key(axes: Axes, entries: list[Line2D | Patch]) -> None:
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
    gap, layers = GAP, [*before, *residual]
    x = (axes.get_xlim()[1] - _block_width(kind.layers)) / 2 + 0.3
    tip = _tip(after)
    start, fork = x - 0.3, x - 0.15
    for number, layer in enumerate(layers):
        if before and number == len(before):
            fork = x - gap / 2
        _draw_chip(axes, x, middle, layer)
        x += _chip_width(layer) + gap
    total = x
    _draw_arrow(axes, start, total + tip, middle)
    x = total + gap
    for layer in after:
        _draw_chip(axes, x, middle, layer)
        x += _chip_width(layer) + gap
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


def _block_width(layers: BlockLayers) -> float:
    """From the start of the arrow to its tip."""
    chips = [*layers.before, *layers.residual]
    return 0.3 + sum(map(_chip_width, chips)) + GAP * len(chips) + _tip(layers.after)


def _tip(after: Sequence[str]) -> float:
    """Length of the arrow from the sum: past the layers that follow it."""
    return 0.35 + sum(map(_chip_width, after)) + GAP * len(after) - 0.1 * bool(after)


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
    style = {"ha": "center", "va": "center", "fontsize": 9, "color": "0.1"}
    axes.text(left + width / 2, middle, layer, zorder=4, **style)
