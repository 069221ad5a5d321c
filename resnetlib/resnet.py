"""The network of an architecture: stem, stages of residual blocks, head."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import (
    BasicBlock,
    DropoutBlock,
    PooledBlock,
    PreActBlock,
    SqueezeExcitation,
    StochasticDepth,
    Whitening,
    conv3x3,
)
from .rng import derive_seed
from .schema import IMAGE_SHAPE, NUM_CLASSES, Architecture


class ResNet(nn.Module):
    """conv3x3 - BN - ReLU - stages of residual blocks - global mean - linear.

    Squeeze-and-excitation follows the stem, ends each block, or is absent. The first block of
    every stage but the first has stride 2, unless `strides` are given; a stage of depth 0 is the
    identity. Pre-activation networks have the stem's BN - ReLU after the last stage instead; the
    whitening stem has no BN. Input (N, 3, 32, 32), output logits (N, 10). After He et al. 2015,
    section 4.2.
    """

    def __init__(self, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        channels = architecture.outputs[0][0]
        preact = architecture.block == "preact"
        if architecture.stem == "whitening":
            self.stem = nn.Sequential(Whitening())
        else:
            first = conv3x3(IMAGE_SHAPE[0], channels, bias=architecture.conv_bias)
            self.stem = nn.Sequential(first)
            if not preact:
                self.stem.append(nn.BatchNorm2d(channels))
        self.stem_activation = _stem_activation(architecture)
        self.stem_attention = _attention(architecture, "stem", channels)

        self.stages = nn.Sequential()
        for index, (out_channels, _) in enumerate(architecture.outputs[1:]):
            self.stages.append(_stage(architecture, index, channels))
            channels = out_channels

        self.final_activation = nn.Sequential()
        if preact:
            self.final_activation.extend([nn.BatchNorm2d(channels), nn.ReLU()])
        self.pool = _pool(architecture)
        self.linear = nn.Linear(channels, NUM_CLASSES)
        if not architecture.batch_norm_scale:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.requires_grad_(False)
        if architecture.zero_init_residual:
            for block in self.stages.modules():
                if isinstance(block, tuple(BLOCKS.values())):
                    block.zero_init_last()

    def forward(self, x: Tensor) -> Tensor:
        out = self.stem(x)  # (N, stem width, 32, 32)
        out = self.stem_activation(out)
        out = self.stem_attention(out)
        out = self.stages(out)  # (N, C, H, W) of the last stage that has blocks
        out = self.final_activation(out)
        out = self.pool(out)  # (N, C, 1, 1)
        return self.linear(out.flatten(1))  # (N, 10)


# torchsummary gives a row to every module and none to a function, and the published tables differ
# in whether they list the stem's ReLU and the pooling. So that each table comes out row by row,
# these two are modules where the variant's `listed_layers` names them, and functions elsewhere.


def _stem_activation(architecture: Architecture) -> Callable[[Tensor], Tensor]:
    """ReLU; none in a pre-activation network."""
    if architecture.block == "preact":
        return nn.Sequential()
    return nn.ReLU() if "stem_relu" in architecture.listed_layers else F.relu


def _pool(architecture: Architecture) -> Callable[[Tensor], Tensor]:
    """Global mean, (N, C, H, W) -> (N, C, 1, 1)."""
    return nn.AdaptiveAvgPool2d(1) if "pool" in architecture.listed_layers else _mean


def _mean(x: Tensor) -> Tensor:
    return x.mean((2, 3), keepdim=True)


def _attention(architecture: Architecture, placement: str, channels: int) -> nn.Module:
    attention = architecture.squeeze_excitation
    if attention.placement != placement:
        return nn.Sequential()
    return SqueezeExcitation(channels, attention.reduction)


BLOCKS = {
    "basic": BasicBlock,
    "dropout": DropoutBlock,
    "preact": PreActBlock,
    "pooled": PooledBlock,
}


def _stage(architecture: Architecture, index: int, in_channels: int) -> nn.Module:
    """`depths[index]` blocks, the first with the stage's stride; none is the identity."""
    depth, out_channels = architecture.depths[index], architecture.widths[index]
    stride = architecture.stage_strides[index]
    if not depth:
        return nn.Identity()
    block = BLOCKS[architecture.block]
    if architecture.block == "dropout":
        block = partial(block, dropout=architecture.dropout)
    first = sum(architecture.depths[:index])  # blocks before this stage
    stage = nn.Sequential()
    for number in range(depth):
        stage.append(
            block(
                in_channels if number == 0 else out_channels,
                out_channels,
                stride if number == 0 else 1,
                architecture.conv_bias,
                _tail(architecture, first + number, out_channels),
            )
        )
    return stage


def _tail(architecture: Architecture, block: int, channels: int) -> nn.Module:
    """The end of this block's residual (counted from 0): attention, stochastic depth."""
    tail = _attention(architecture, "block", channels)
    if architecture.stochastic_depth:
        depth = (block + 1) / sum(architecture.depths)  # linear decay (Huang et al. 2016, fig. 2)
        tail = nn.Sequential(tail, StochasticDepth(depth * architecture.stochastic_depth))
    return tail


def build_model(architecture: Architecture, *, seed: int = 0) -> ResNet:
    """The network in float32 on the CPU, its weights a function of the seed alone.

    torch's default initialisation (Kaiming-uniform), as every published variant used it. The
    global random state stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "init"))
        return ResNet(architecture)
