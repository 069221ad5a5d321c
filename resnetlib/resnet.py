"""The network of an architecture: stem, stages of residual blocks, head."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    BasicBlock,
    BlockParts,
    BottleneckBlock,
    DropoutBlock,
    PooledBlock,
    PreActBlock,
    PyramidBlock,
    ResidualBlock,
    SqueezeExcitation,
    StochasticDepth,
    Whitening,
    depthwise_conv,
    full_conv,
    padded_shortcut,
    projection,
    separable_conv,
)
from .rng import derive_seed, plain_defaults
from .schema import (
    IMAGE_SHAPE,
    NUM_CLASSES,
    PREACTIVATED,
    STEM_KERNELS,
    Architecture,
    BlockShape,
)


class ResNet(nn.Module):
    """conv3x3 - BN - ReLU - stages of residual blocks - global mean - linear.

    The first block of every stage but the first has stride 2, unless `strides` are given; a stage
    of depth 0 is the identity. Where they are asked for: squeeze-and-excitation and max-pooling
    after the stem, dropout before the linear layer or before pooling. Pre-activation networks have
    BN - ReLU after the last stage in place of the stem's (block `pyramid` keeps the stem's BN); the
    whitening stem has no BN. Input (N, 3, 32, 32), output logits (N, 10). After He et al. 2015,
    section 4.2.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        channels = architecture.outputs[0][0]
        self.stem = _stem(architecture)
        self.stem_activation = _stem_activation(architecture)
        self.stem_pool = _stem_pool(architecture)
        self.stem_attention = _attention(architecture, "stem", channels)
        self.stages = nn.Sequential()
        for index in range(len(architecture.depths)):
            self.stages.append(_stage(architecture, index))
        self.final_activation = _final_activation(architecture)
        self.map_dropout = _head_dropout(architecture, "map")
        self.pool = _pool(architecture)
        self.dropout = _head_dropout(architecture, "features")
        self.linear = nn.Linear(architecture.features, NUM_CLASSES)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        out = self.stem(x)  # (N, stem width, H, W)
        out = self.stem_activation(out)
        out = self.stem_pool(out)
        out = self.stem_attention(out)
        out = self.stages(out)  # (N, C, H, W) of the last stage that has blocks
        out = self.final_activation(out)
        out = self.map_dropout(out)
        out = self.pool(out)  # (N, C, 1, 1), or more positions where `pool_size` is given
        out = self.dropout(out.flatten(1))  # (N, features)
        return self.linear(out)  # (N, 10)


ACTIVATIONS = {  # the function, and the same as a module
    "relu": (F.relu, nn.ReLU),
    "leaky_relu": (F.leaky_relu, nn.LeakyReLU),
}
CONVOLUTIONS = {"full": full_conv, "depthwise": depthwise_conv, "separable": separable_conv}
BLOCKS = {
    "basic": BasicBlock,
    "bottleneck": BottleneckBlock,
    "dropout": DropoutBlock,
    "preact": PreActBlock,
    "pyramid": PyramidBlock,
    "pooled": PooledBlock,
}


def _stem(architecture: Architecture) -> nn.Sequential:
    """Each convolution with its BN; an activation between two; no last BN in block `preact`."""
    if architecture.stem == "whitening":
        return nn.Sequential(Whitening())
    stem, channels = nn.Sequential(), architecture.outputs[0][0]
    in_channels, stride = IMAGE_SHAPE[0], architecture.stem_stride
    _, activation_layer = ACTIVATIONS[architecture.activations[0]]
    for kernel, padding in zip(
        STEM_KERNELS[architecture.stem], architecture.stem_paddings, strict=True
    ):
        if len(stem):
            stem.extend([nn.BatchNorm2d(channels), activation_layer()])
        bias = architecture.conv_bias
        stem.append(nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=bias))
        in_channels, stride = channels, 1
    if architecture.block != "preact":
        stem.append(nn.BatchNorm2d(channels))
    return stem


# torchsummary gives a row to every module and none to a function, and the published tables differ
# in whether they list the stem's ReLU and the pooling. So that each table comes out row by row,
# these two are modules where the variant's `listed_layers` names them, and functions elsewhere.


def _stem_activation(architecture: Architecture) -> Callable[[Tensor], Tensor]:
    """The activation; none in a pre-activation network."""
    if architecture.block in PREACTIVATED:
        return nn.Sequential()
    function, layer = ACTIVATIONS[architecture.activations[0]]
    return layer() if "stem_relu" in architecture.listed_layers else function


def _stem_pool(architecture: Architecture) -> nn.Module:
    pool = architecture.stem_pool
    return nn.MaxPool2d(pool.kernel, pool.stride, pool.padding) if pool else nn.Sequential()


def _final_activation(architecture: Architecture) -> nn.Sequential:
    """BN and activation at the end of a pre-activation network."""
    if architecture.block not in PREACTIVATED or not architecture.final_norm:
        return nn.Sequential()
    _, activation_layer = ACTIVATIONS[architecture.activations[-1]]
    return nn.Sequential(nn.BatchNorm2d(architecture.outputs[-1][0]), activation_layer())


def _pool(architecture: Architecture) -> Callable[[Tensor], Tensor]:
    """Global mean, (N, C, H, W) -> (N, C, 1, 1), or the means of windows."""
    if size := architecture.pool_size:
        is_listed = "pool" in architecture.listed_layers
        return nn.AvgPool2d(size) if is_listed else partial(F.avg_pool2d, kernel_size=size)
    return nn.AdaptiveAvgPool2d(1) if "pool" in architecture.listed_layers else _mean


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _attention(architecture: Architecture, placement: str, channels: int) -> nn.Module:
    attention = architecture.squeeze_excitation
    if attention.placement != placement:
        return nn.Sequential()
    return SqueezeExcitation(channels, attention.reduction, attention.bias)


def _head_dropout(architecture: Architecture, place: str) -> nn.Module:
    here = architecture.head_dropout_place == place
    return _dropout(nn.Dropout, architecture.head_dropout if here else 0)


def _dropout(kind: type[nn.Module], probability: float) -> nn.Module:
    return kind(probability) if probability else nn.Sequential()


def _stage(architecture: Architecture, index: int) -> nn.Module:
    """`depths[index]` blocks; none is the identity."""
    first = sum(architecture.depths[:index])  # blocks before this stage
    shapes = architecture.blocks[index]
    if not shapes:
        return nn.Identity()
    blocks = [build_block(architecture, shape, first + n) for n, shape in enumerate(shapes)]
    return nn.Sequential(*blocks)


def build_block(architecture: Architecture, shape: BlockShape, number: int = 0) -> ResidualBlock:
    """The architecture's block of this shape; `number` counts from 0 through all stages."""
    block = BLOCKS[architecture.block]
    if architecture.block == "preact":
        block = partial(block, raw_shortcut=architecture.shortcut.input == "raw")
    parts = _parts(architecture, shape, number)
    return block(shape.in_channels, shape.out_channels, shape.stride, parts)


def _parts(architecture: Architecture, shape: BlockShape, number: int) -> BlockParts:
    activation, activation_layer = ACTIVATIONS[architecture.activations[shape.stage + 1]]
    bias, conv = architecture.conv_bias, CONVOLUTIONS[architecture.conv_kinds[shape.stage]]
    return BlockParts(
        conv=partial(conv, kernel=architecture.conv_kernels[shape.stage], bias=bias),
        conv1x1=partial(nn.Conv2d, kernel_size=1, bias=bias),
        shortcut=_shortcut(architecture, shape.stage),
        activation=activation,
        activation_layer=activation_layer,
        expansion=architecture.expansion,
        dropout=_block_dropout(architecture, "residual"),
        tail=_tail(architecture, shape, number),
        attention=_after_addition(architecture, shape),
        output_dropout=_block_dropout(architecture, "output"),
    )


def _block_dropout(architecture: Architecture, place: str) -> nn.Module:
    if architecture.dropout_place != place:
        return nn.Sequential()
    dropout = nn.Dropout2d if architecture.dropout_unit == "channels" else nn.Dropout
    if architecture.block == "dropout" and place == "residual":  # a row of its table, also at 0
        return dropout(architecture.dropout)
    return _dropout(dropout, architecture.dropout)


def _shortcut(architecture: Architecture, stage: int) -> Callable[[int, int, int], nn.Module]:
    """Makes the shortcut from input channels, output channels and stride."""
    shortcut = architecture.shortcut
    if shortcut.kind == "zero_pad":
        return partial(padded_shortcut, pool=shortcut.pool)
    return partial(
        projection,
        kernel=architecture.shortcut_kernels[stage],
        pool=shortcut.pool,
        bias=architecture.conv_bias,
        batch_norm=architecture.shortcut_norm,
    )


def _block_attention(architecture: Architecture, placement: str, shape: BlockShape) -> nn.Module:
    if not shape.attention:
        return nn.Sequential()
    return _attention(architecture, placement, shape.out_channels)


def _tail(architecture: Architecture, shape: BlockShape, number: int) -> nn.Module:
    """The end of the residual path: dropout, attention, stochastic depth."""
    tail = _block_attention(architecture, "block", shape)
    if architecture.dropout_place == "residual_end":
        tail = nn.Sequential(_block_dropout(architecture, "residual_end"), tail)
    if architecture.stochastic_depth:
        depth = (number + 1) / sum(architecture.depths)  # linear decay (Huang et al. 2016, fig. 2)
        tail = nn.Sequential(tail, StochasticDepth(depth * architecture.stochastic_depth))
    return tail


def _after_addition(architecture: Architecture, shape: BlockShape) -> nn.Module:
    """What follows the addition before the activation: attention, dropout."""
    attention = _block_attention(architecture, "addition", shape)
    if architecture.dropout_place == "addition":
        attention = nn.Sequential(attention, _block_dropout(architecture, "addition"))
    return attention


def _initialise(model: ResNet) -> None:
    """First weights that differ from torch's own."""
    architecture = model.architecture
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.requires_grad_(architecture.batch_norm_scale)
    if architecture.init == "kaiming_fan_out":
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and not isinstance(module, Whitening):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if architecture.zero_init_residual:
        for module in model.modules():
            if isinstance(module, ResidualBlock):
                module.zero_init_last()


def trained_fixed_weights(model: nn.Module) -> str:
    """Which weights that the architecture fixes, and does not count, were trained; "" if none.

    BatchNorm scales that are fixed at 1 and are not 1, and whitening filters that `fit` cannot
    have set.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            weight = module.weight
            if not weight.requires_grad and bool((weight != 1).any()):
                return "BatchNorm scales"
        elif isinstance(module, Whitening) and not module.may_be_fitted():
            return "whitening filters"
    return ""


def build_model(architecture: Architecture, *, seed: int = 0) -> ResNet:
    """The network in float32 on the CPU, its weights a function of the seed alone.

    torch's default initialisation (Kaiming-uniform), as every published variant of the first teams
    used it, unless `init` says otherwise. The global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]), plain_defaults():
        torch.default_generator.manual_seed(derive_seed(seed, "init"))  # not those of cards
        return ResNet(architecture)
