"""Size of a network: parameters, multiply-accumulates, memory, budget, summary table.

Parameters and multiply-accumulates are arithmetic on the architecture: exact integers, computed
without torch. Memory and the summary table are torch's, which is imported where they are asked for.
"""

import contextlib
import copy
import io
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

from .errors import ConfigError
from .experiment import Experiment
from .schema import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    PREACTIVATED,
    STEM_KERNELS,
    Architecture,
    BlockShape,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor, nn

FLOAT_BYTES = 4  # of float32


@dataclass(frozen=True)
class Size:
    """Trainable parameters, and multiply-accumulates of one image's forward pass."""

    parameters: int = 0
    macs: int = 0  # of convolutions and linear layers

    def __add__(self, other: "Size") -> "Size":
        return Size(self.parameters + other.parameters, self.macs + other.macs)

    def __rmul__(self, count: int) -> "Size":
        return Size(count * self.parameters, count * self.macs)

    @property
    def weights_bytes(self) -> int:
        """Memory of the parameters in float32."""
        return FLOAT_BYTES * self.parameters


@dataclass(frozen=True)
class LayerSizes:
    """Sizes of the layers of a network; `block_conv` and `shortcut` measure those of a stage."""

    architecture: Architecture
    stage: int = 0

    @property
    def expansion(self) -> int:
        """Of a bottleneck."""
        return self.architecture.expansion

    def conv(self, kernel: int, in_channels: int, out_channels: int, out_side: int) -> Size:
        """A convolution whose output has `out_side` × `out_side` pixels."""
        weights = kernel**2 * in_channels * out_channels
        bias = self.architecture.conv_bias * out_channels
        return Size(weights + bias, weights * out_side**2)

    def block_conv(self, in_channels: int, out_channels: int, out_side: int) -> Size:
        """A 3×3 convolution of the block's kind, or one of another kernel."""
        kind = self.architecture.conv_kinds[self.stage]
        kernel = self.architecture.conv_kernels[self.stage]
        if kind == "full":
            return self.conv(kernel, in_channels, out_channels, out_side)
        depthwise = in_channels * self.conv(kernel, 1, 1, out_side)
        if kind == "depthwise":
            return depthwise
        return depthwise + self.conv(1, in_channels, out_channels, out_side)

    def norm(self, channels: int) -> Size:
        """BatchNorm: a bias and, unless that is fixed, a weight of each channel."""
        return Size((1 + self.architecture.batch_norm_scale) * channels)

    def shortcut(self, block: BlockShape) -> Size:
        """Where the shape changes, its convolution and, unless it has none, BN."""
        if not block.changes_shape or self.architecture.shortcut.kind != "conv1x1":
            return Size()
        kernel = self.architecture.shortcut_kernels[self.stage]
        size = self.conv(kernel, block.in_channels, block.out_channels, block.out_side)
        return size + self.architecture.shortcut_norm * self.norm(block.out_channels)


def linear(in_features: int, out_features: int) -> Size:
    weights = in_features * out_features
    return Size(weights + out_features, weights)


def squeeze_excitation(channels: int, reduction: int, bias: bool = True) -> Size:
    """Two convolutions of a single pixel: linear layers."""
    squeezed = max(1, channels // reduction)
    weights = 2 * channels * squeezed
    return Size(weights + bias * (channels + squeezed), weights)


def basic_block(block: BlockShape, layers: LayerSizes) -> Size:
    """conv3x3, BN, conv3x3, BN; the shortcut."""
    channels, side = block.out_channels, block.out_side
    size = layers.block_conv(block.in_channels, channels, side) + layers.norm(channels)
    size += layers.block_conv(channels, channels, side) + layers.norm(channels)
    return size + layers.shortcut(block)


def bottleneck_block(block: BlockShape, layers: LayerSizes) -> Size:
    """conv1x1, BN, conv3x3, BN, conv1x1, BN; the shortcut."""
    channels, side = block.out_channels, block.out_side
    inner = channels // layers.expansion
    size = layers.conv(1, block.in_channels, inner, block.in_side) + layers.norm(inner)
    size += layers.block_conv(inner, inner, side) + layers.norm(inner)
    size += layers.conv(1, inner, channels, side) + layers.norm(channels)
    return size + layers.shortcut(block)


def preact_block(block: BlockShape, layers: LayerSizes) -> Size:
    """BN, conv3x3, BN, conv3x3; the shortcut."""
    channels, side = block.out_channels, block.out_side
    size = layers.norm(block.in_channels) + layers.block_conv(block.in_channels, channels, side)
    size += layers.norm(channels) + layers.block_conv(channels, channels, side)
    return size + layers.shortcut(block)


def pyramid_block(block: BlockShape, layers: LayerSizes) -> Size:
    """BN, conv3x3, BN, conv3x3, BN; the shortcut."""
    return preact_block(block, layers) + layers.norm(block.out_channels)


def pooled_block(block: BlockShape, layers: LayerSizes) -> Size:
    """conv3x3 before the image is pooled, BN, conv3x3, BN."""
    channels = block.out_channels
    size = layers.block_conv(block.in_channels, channels, block.in_side) + layers.norm(channels)
    return size + layers.block_conv(channels, channels, block.out_side) + layers.norm(channels)


BLOCK_SIZES: dict[str, Callable[[BlockShape, LayerSizes], Size]] = {
    "basic": basic_block,
    "bottleneck": bottleneck_block,
    "dropout": basic_block,
    "preact": preact_block,
    "pyramid": pyramid_block,
    "pooled": pooled_block,
}


def block_size(architecture: Architecture, block: BlockShape) -> Size:
    """A block with its squeeze-and-excitation, where there is one."""
    size = BLOCK_SIZES[architecture.block](block, LayerSizes(architecture, block.stage))
    if block.attention:
        size += _attention_size(architecture, block.out_channels)
    return size


def stem_size(architecture: Architecture) -> Size:
    """The stem with its squeeze-and-excitation; the filters of a whitening are not trained."""
    layers, size = LayerSizes(architecture), Size()
    in_channels, channels = IMAGE_SHAPE[0], architecture.outputs[0][0]
    kernels = STEM_KERNELS[architecture.stem]
    for kernel, side in zip(kernels, architecture.stem_sides, strict=True):
        size += layers.conv(kernel, in_channels, channels, side) + layers.norm(channels)
        in_channels = channels
    if architecture.stem == "whitening":
        size = Size(0, size.macs)
    elif architecture.block == "preact":  # no last BatchNorm
        size = Size(size.parameters - layers.norm(channels).parameters, size.macs)
    if architecture.squeeze_excitation.placement == "stem":
        size += _attention_size(architecture, channels)
    return size


def head_size(architecture: Architecture) -> Size:
    """The linear layer, before it the BatchNorm that ends a pre-activation network."""
    size = linear(architecture.features, NUM_CLASSES)
    if architecture.block in PREACTIVATED and architecture.final_norm:
        size += LayerSizes(architecture).norm(architecture.outputs[-1][0])
    return size


def _attention_size(architecture: Architecture, channels: int) -> Size:
    attention = architecture.squeeze_excitation
    return squeeze_excitation(channels, attention.reduction, attention.bias)


def measure_size(architecture: Architecture) -> Size:
    """Parameters and multiply-accumulates of the network."""
    return sum(part_sizes(architecture).values(), Size())


def part_sizes(architecture: Architecture) -> dict[str, Size]:
    """Sizes of the stem, each stage and the head."""
    return _by_part(
        architecture,
        stem_size(architecture),
        lambda block: block_size(architecture, block),
        head_size(architecture),
    )


def _by_part(
    architecture: Architecture,
    stem: Any,
    block: Callable[[BlockShape], Any],
    head: Any,
) -> dict[str, Any]:
    """A figure of the stem, each stage (the sum over its blocks) and the head.

    Args:
        architecture: the network.
        stem: the figure of its stem.
        block: gives the figure of a block.
        head: the figure of its head.
    """
    parts = {"stem": stem}
    for number, shapes in enumerate(architecture.blocks, start=1):
        figures = [count * block(shape) for shape, count in Counter(shapes).items()]
        parts[f"stage {number}"] = sum(figures, 0 * stem)
    return parts | {"head": head}


def check_size(experiment: Experiment) -> int:
    """The parameter count, if it is within the budget and equals the published one.

    The published count applies to the variant's own network only: an override of the architecture
    makes another network. Raises `ConfigError`.
    """
    count = measure_size(experiment.architecture).parameters
    published = experiment.published.parameters
    if published not in (None, count) and experiment.has_own_network:
        raise ConfigError(
            f"{experiment.variant}: published.parameters is {published:,}, "
            f"and the architecture has {count:,}; a network of your own has no `published`"
        )
    if experiment.budget != "none" and count > experiment.budget:
        raise ConfigError(
            f"{experiment.variant}: {count:,} parameters exceed the budget of "
            f"{experiment.budget:,}; set `budget: none` to run it anyway"
        )
    return count


def describe_size(
    architecture: Architecture,
    budget: int | Literal["none"] | None = None,
    *,
    memory: bool = False,
) -> dict[str, str]:
    """Parameters, multiply-accumulates and weights as text.

    With a budget, also what is used of it; with `memory`, also what training keeps of an image.
    """
    size = measure_size(architecture)
    facts = {"parameters": f"{size.parameters:,}"}
    if budget is not None:
        facts["budget"] = describe_budget(size.parameters, budget)
    facts["multiply-accumulates of one image"] = f"{size.macs / 1e6:.1f} million"
    facts["weights"] = f"{size.weights_bytes / 2**20:.2f} MiB in float32"
    if memory:
        kept = sum(measure_memory(architecture).values()) / 2**20
        facts["activations kept for the backward pass"] = (
            f"{kept:.2f} MiB an image in float32; {128 * kept:,.0f} MiB for a batch of 128"
        )
    return facts


def describe_budget(parameters: int, budget: int | Literal["none"]) -> str:
    """`within the budget, …` or `OVER THE BUDGET by …`, with both figures."""
    if budget == "none":
        return "no budget"
    check_counts(budget=[budget])
    share = f"{parameters:,} of {budget:,} parameters ({parameters / budget:.1%})"
    if parameters > budget:
        return f"OVER THE BUDGET by {parameters - budget:,}: {share}"
    return f"within the budget, {budget - parameters:,} left: {share}"


def check_counts(**counts: list) -> None:
    """Refuse an empty list and all but positive integers. Raises `ConfigError`."""
    for name, values in counts.items():
        if not values or any(type(value) is not int or value < 1 for value in values):
            listed = ", ".join(map(repr, values)) or "nothing"
            raise ConfigError(f"{name} = {listed}: give whole numbers from 1 up")


def stages(architecture: Architecture) -> "pd.DataFrame":
    """Stem, stages and head: output shape, parameters, MACs, activation bytes of one image."""
    import pandas as pd

    sizes, memory = part_sizes(architecture), measure_memory(architecture)
    outputs = [*(format_shape(*output) for output in architecture.outputs), str(NUM_CLASSES)]
    columns = {
        "output": outputs,
        "parameters": [size.parameters for size in sizes.values()],
        "macs": [size.macs for size in sizes.values()],
        "activation_bytes": list(memory.values()),
    }
    return pd.DataFrame(columns, index=list(sizes))


def format_shape(channels: int, side: int) -> str:
    """Channels, height, width, such as `16 × 32 × 32`."""
    return f"{channels} × {side} × {side}"


def count_parameters(model: "nn.Module") -> int:
    """Trainable parameters of a model; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def model_summary(model: "nn.Module") -> str:
    """torchsummary's table for one 3×32×32 image, with the trained parameters counted.

    torchsummary goes by a layer's weight: where that is fixed, it calls the bias fixed too. Made
    on a copy, with the random state set aside: BatchNorm's statistics, the random state and the
    hooks of the model stay as they were.
    """
    import torch
    from torchsummary import summary

    from .rng import plain_defaults

    replica = copy.deepcopy(model).cpu()
    printed = io.StringIO()
    random_state = torch.random.fork_rng(devices=[])
    with random_state, plain_defaults(), torch.no_grad(), contextlib.redirect_stdout(printed):
        summary(replica, IMAGE_SHAPE, device="cpu")
    table = printed.getvalue().strip("\n")
    fixed = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    for kind, count in {"Trainable": count_parameters(model), "Non-trainable": fixed}.items():
        table = re.sub(rf"(?m)^({kind} params: ).*", rf"\g<1>{count:,}", table)
    return table


# Memory: what torch saves on its meta device, without any data ------------------------------------


def measure_memory(architecture: Architecture) -> dict[str, int]:
    """Bytes that training keeps of one image from the forward pass to the backward, by part.

    These are the image if the stem is trained, every activation that autograd saves, the output of
    each block and the logits, in float32. Each kind of block is measured once.
    """
    import torch  # slow to import

    from .rng import plain_defaults

    with plain_defaults(), torch.inference_mode(False), torch.enable_grad():
        return _by_part(
            architecture,
            _stem_memory(_one_stage(architecture, architecture.outputs[0][0], 0)),
            lambda block: _block_memory(
                _one_stage(architecture, block.out_channels, block.stage + 1),
                block._replace(stage=0),
            ),
            _head_memory(
                _one_stage(architecture, architecture.outputs[-1][0], -1, stem="conv3x3"),
                architecture.outputs[-1][1],
            ),
        )


def _one_stage(
    architecture: Architecture, channels: int, activation: int, **changes: Any
) -> Architecture:
    """What decides the memory of a part, and nothing else: the key under which it is cached.

    Args:
        architecture: the network that has the part.
        channels: the width of its stem and only stage.
        activation: where the part's activation is in `activations`.
        changes: further keys of the network.
    """
    attention = architecture.squeeze_excitation.model_copy(update={"blocks": None})
    stage = max(activation - 1, 0)
    changes |= {"depths": (1,), "widths": (channels,), "stem_width": channels}
    changes |= {"block_widths": None, "strides": None, "squeeze_excitation": attention}
    changes |= {"activation": (architecture.activations[activation],)}
    changes |= {"conv_kind": (architecture.conv_kinds[stage],)}
    changes |= {"conv_kernel": (architecture.conv_kernels[stage],)}
    kernel = (architecture.shortcut_kernels[stage],)
    changes |= {"shortcut": architecture.shortcut.model_copy(update={"kernel": kernel})}
    return architecture.model_copy(update=changes)


@cache
def _stem_memory(family: Architecture) -> int:
    model = _without_blocks(family)
    trained = any(weight.requires_grad for weight in model.stem.parameters())
    image = FLOAT_BYTES * IMAGE_SHAPE[0] * IMAGE_SHAPE[1] * IMAGE_SHAPE[2]
    parts = (model.stem, model.stem_activation, model.stem_pool, model.stem_attention)
    return trained * image + _saved_bytes(parts, IMAGE_SHAPE, has_gradient=False)


@cache
def _block_memory(family: Architecture, block: BlockShape) -> int:
    import torch

    from .resnet import build_block

    with torch.device("meta"):
        module = build_block(family, block)
    return _saved_bytes([module], (block.in_channels, block.in_side, block.in_side))


@cache
def _head_memory(family: Architecture, side: int) -> int:
    import torch
    from torch import nn

    model = _without_blocks(family)
    with torch.device("meta"):  # the map of a network without blocks has another size
        linear = nn.Linear(family.widths[0] * family.positions(side), NUM_CLASSES)
    parts = (model.final_activation, model.map_dropout, model.pool, nn.Flatten(), model.dropout)
    return _saved_bytes([*parts, linear], (family.widths[0], side, side))


def _without_blocks(family: Architecture) -> "nn.Module":
    """A network of the family without blocks and weights."""
    import torch

    from .resnet import ResNet

    # Its map may be smaller than what is pooled: the linear layer is then empty, torch warns.
    with torch.device("meta"), warnings.catch_warnings(action="ignore"):
        return ResNet(family.model_copy(update={"depths": (0,)}))


def _saved_bytes(
    parts: Iterable[Callable[["Tensor"], "Tensor"]],
    input_shape: tuple[int, ...],
    *,
    has_gradient: bool = True,
) -> int:
    """What autograd saves as one input of this shape (C, H, W) passes the parts in order."""
    import torch
    from torch import nn
    from torch.autograd.graph import saved_tensors_hooks

    modules = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])
    for module in modules.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # keeps as much, and its shapes are computed in half the time
    weights = {_storage(weight) for weight in modules.parameters()}
    saved: dict[int, Tensor] = {}

    def save(tensor: "Tensor") -> "Tensor":
        # A batch keeps BatchNorm's vectors only once, however many images it has.
        if tensor.dim() > 1 and _storage(tensor) not in weights:
            saved[_storage(tensor)] = tensor
        return tensor

    image = out = torch.zeros(1, *input_shape, device="meta", requires_grad=has_gradient)
    with saved_tensors_hooks(save, lambda tensor: tensor):
        for part in parts:
            out = part(out)
    saved[_storage(out)] = out  # kept by what comes next, if not by these
    saved.pop(_storage(image), None)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def _storage(tensor: "Tensor") -> int:
    """Identifies the memory of a tensor and of its views."""
    return tensor.untyped_storage()._cdata
