"""Residual blocks, their shortcuts, squeeze-and-excitation and the whitening stem.

Images and activations are (N, C, H, W). A block maps (N, in_channels, H, W) to
(N, out_channels, H/stride, W/stride). What it is made of besides its shape is in `BlockParts`. An
absent part is an empty `nn.Sequential()`: an identity without a row in torchsummary's table, as in
the published tables.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .schema import WHITENING_CHANNELS

FEW_PIXELS = 16  # of an output: 4×4


class Conv2d(nn.Conv2d):
    """torch's convolution; in training, onto few pixels, one matrix product where that is faster.

    So it is with AMX, where oneDNN's gradient of the weights takes most of a wide layer's time:
    with a ReLU on both sides, forward and backward, 512 to 512 channels at 4×4 take 1.5 to 1.9
    times as long as the product, 256 to 512 with stride 2 1.3 to 1.6 times, 128 to 128 0.8 to 0.95;
    onto 8×8, 0.6 (batch 128, bfloat16, one thread, two runs of `benchmarks/convolutions.py`).
    """

    as_product = False  # set by `DeviceSettings.place`

    def forward(self, input: Tensor) -> Tensor:
        stride, kernel, padding = self.stride[0], self.kernel_size[0], self.padding[0]
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in input.shape[2:])
        if not (self.as_product and self.training and height * width <= FEW_PIXELS):
            return super().forward(input)
        padded = F.pad(input.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
        # The pixels that meet one weight of the kernel, for all of its weights.
        rows, columns = stride * height, stride * width
        patches = torch.cat(
            [
                padded[:, i : i + rows : stride, j : j + columns : stride]
                for i in range(kernel)
                for j in range(kernel)
            ],
            dim=-1,
        )  # (N, height, width, kernel² · C)
        weights = self.weight.permute(0, 2, 3, 1).flatten(1)
        return F.linear(patches, weights, self.bias).permute(0, 3, 1, 2)


def full_conv(
    in_channels: int, out_channels: int, stride: int = 1, *, kernel: int = 3, bias: bool = False
) -> Conv2d:
    """Convolution over all channels whose padding keeps the resolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the convolution.
        kernel: pixels of its side, an odd number.
        bias: it has a bias.
    """
    return Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=bias)


def depthwise_conv(
    channels: int, out_channels: int, stride: int = 1, *, kernel: int = 3, bias: bool = False
) -> nn.Conv2d:
    """Convolution of each channel by itself whose padding keeps the resolution.

    Args:
        channels: channels of the input.
        out_channels: channels of the output, a multiple of them.
        stride: of the convolution.
        kernel: pixels of its side, an odd number.
        bias: it has a bias.
    """
    options = {"padding": kernel // 2, "groups": channels, "bias": bias}
    return nn.Conv2d(channels, out_channels, kernel, stride, **options)


def separable_conv(
    in_channels: int, out_channels: int, stride: int = 1, *, kernel: int = 3, bias: bool = False
) -> nn.Sequential:
    """depthwise convolution - conv1x1, with nothing between them (Chollet 2016, section 2).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the depthwise convolution.
        kernel: pixels of its side, an odd number.
        bias: both convolutions have a bias.
    """
    return nn.Sequential(
        depthwise_conv(in_channels, in_channels, stride, kernel=kernel, bias=bias),
        nn.Conv2d(in_channels, out_channels, 1, bias=bias),
    )


@dataclass(frozen=True)
class BlockParts:
    """What a block is made of besides its shape.

    A convolution or shortcut is made from (in_channels, out_channels, stride).
    """

    conv: Callable[..., nn.Module]  # 3×3 unless the network has another kernel
    conv1x1: Callable[..., nn.Module]
    shortcut: Callable[[int, int, int], nn.Module]
    activation: Callable[[Tensor], Tensor]
    activation_layer: Callable[[], nn.Module]  # the same as a module
    expansion: int  # of a bottleneck
    dropout: nn.Module  # before the last convolution of the residual path
    tail: nn.Module  # ends the residual path: dropout, attention, stochastic depth, or none
    attention: nn.Module  # follows the addition: attention, dropout, both or neither
    output_dropout: nn.Module  # ends the block


class EverySecondPixel(nn.Module):
    """Rows and columns 0, 2, 4, …"""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2]


class PadChannels(nn.Module):
    """Channels of zeros on both sides; of an odd number, one more behind."""

    def __init__(self, missing: int):
        super().__init__()
        self.before = missing // 2
        self.behind = missing - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind))

    def extra_repr(self) -> str:
        return f"{self.before}, {self.behind}"


# An odd last row is pooled by itself, since a convolution of stride 2 keeps it too.
SHORTCUT_POOLS = {
    "average": lambda: nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False),
    "max": lambda: nn.MaxPool2d(2, ceil_mode=True),
}


def padded_shortcut(in_channels: int, out_channels: int, stride: int, pool: str) -> nn.Module:
    """every second pixel (or pooling) - channels of zeros (He et al. 2015, option A)."""
    layers = []
    if stride == 2:
        layers.append(SHORTCUT_POOLS.get(pool, EverySecondPixel)())
    if out_channels != in_channels:
        layers.append(PadChannels(out_channels - in_channels))
    return nn.Sequential(*layers)


def projection(
    in_channels: int,
    out_channels: int,
    stride: int,
    *,
    kernel: int,
    pool: str,
    bias: bool,
    batch_norm: bool,
) -> nn.Module:
    """conv1x1 - BN where the shape changes, else the identity (He et al. 2015, option B).

    Pooling may halve the image before the convolution (He et al. 2018, "Bag of tricks", fig. 2c).

    Args:
        in_channels: channels of the block's input.
        out_channels: channels of the block's output.
        stride: of the block.
        kernel: pixels of the convolution's side, an odd number; 1 in the paper.
        pool: `average`, `max`, or `none`: the stride is the convolution's.
        bias: the convolution has a bias.
        batch_norm: BatchNorm follows it.
    """
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    layers = []
    if stride == 2 and pool != "none":
        layers.append(SHORTCUT_POOLS[pool]())
        stride = 1
    layers.append(full_conv(in_channels, out_channels, stride, kernel=kernel, bias=bias))
    if batch_norm:
        layers.append(nn.BatchNorm2d(out_channels))
    return nn.Sequential(*layers) if len(layers) > 1 else layers[0]


class Whitening(nn.Conv2d):
    """Frozen 2×2 convolution that decorrelates the pixels of a patch; each filter and its negative.

    The filters are the principal directions of the training images' patches, each divided by its
    standard deviation (Page 2019, "How to train your ResNet" 8; Jordan 2024), both about zero: the
    images should be normalised. They are not trainable: `fit` sets them before training, and they
    are kept with the weights.
    (N, 3, H, W) -> (N, 24, H - 1, W - 1).
    """

    def __init__(self):
        super().__init__(3, WHITENING_CHANNELS, 2, bias=False)
        self.weight.requires_grad_(False)

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Set the filters from the network's input: normalised float images (N, 3, H, W)."""
        patches = images.unfold(2, 2, 1).unfold(3, 2, 1)  # (N, 3, H - 1, W - 1, 2, 2)
        patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 12)
        second_moments = (patches.T @ patches / len(patches)).double().cpu()
        variances, directions = torch.linalg.eigh(second_moments)
        # The sign of an eigenvector depends on the library: the largest entry is made positive.
        largest = directions.abs().argmax(0, keepdim=True)
        directions = directions * directions.gather(0, largest).sign()
        filters = (directions / (variances + 5e-4).sqrt()).T.flip(0).reshape(12, 3, 2, 2)
        self.weight.copy_(torch.cat([filters, -filters]))

    @torch.no_grad()
    def may_be_fitted(self) -> bool:
        """Whether the filters are orthogonal, in pairs of opposite sign, as `fit` leaves them."""
        filters, negatives = nn.functional.normalize(self.weight.flatten(1)).chunk(2)
        cosines = filters @ filters.T
        # 1 %: kept weights may be in half precision.
        return bool(
            torch.allclose(filters, -negatives, atol=0.01)
            and torch.allclose(cosines, torch.eye(12).to(cosines), atol=0.01)
        )


class MaxPool2x2(nn.Module):
    """`nn.MaxPool2d(2)` with a gradient that is computed faster when compiled for a CPU.

    torch's own gradient scatters: it took 52 of the 180 ms of a step of `laptop` (two cores with
    AMX), this one 19 of 148. Equal values share the gradient.
    """

    def forward(self, x: Tensor) -> Tensor:
        height, width = (side // 2 * 2 for side in x.shape[2:])  # an odd last row is left out
        x = x[:, :, :height, :width]
        top = torch.maximum(x[:, :, ::2, ::2], x[:, :, ::2, 1::2])
        bottom = torch.maximum(x[:, :, 1::2, ::2], x[:, :, 1::2, 1::2])
        return torch.maximum(top, bottom)


class StochasticDepth(nn.Module):
    """In training, each image's residual is dropped with probability p, else divided by 1 - p.

    Huang et al. 2016, per image as in `torchvision.ops.StochasticDepth(p, "row")`.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.rand(len(x), 1, 1, 1, device=x.device) >= self.p
        return x * (kept / (1 - self.p)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p:g}"


class SqueezeExcitation(nn.Module):
    """mean - conv1x1 - ReLU - conv1x1 - sigmoid, times the input (Hu et al. 2017, fig. 2)."""

    def __init__(self, channels: int, reduction: int, bias: bool = True):
        super().__init__()
        squeezed = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, squeezed, 1, bias=bias)
        self.excite = nn.Conv2d(squeezed, channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        scale = F.relu(self.squeeze(scale))
        scale = torch.sigmoid(self.excite(scale))
        return x * scale


class ResidualBlock(nn.Module):
    """What every block has: the parts that do not depend on its layers."""

    def __init__(self, parts: BlockParts):
        super().__init__()
        self.activation = parts.activation
        self.dropout = parts.dropout
        self.attention = parts.attention
        self.output_dropout = parts.output_dropout

    def zero_init_last(self) -> None:
        """Set the weights to zero that make the block begin as its shortcut."""
        raise NotImplementedError


class BasicBlock(ResidualBlock):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus the shortcut, then ReLU (He et al. 2015, fig. 2)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, parts: BlockParts):
        super().__init__(parts)
        self.conv1 = parts.conv(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.tail = parts.tail
        self.shortcut = parts.shortcut(in_channels, out_channels, stride)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.dropout(out)
        out = self.bn2(self.conv2(out))
        out = self.tail(out)
        out = out + self.shortcut(x)
        out = self.activation(self.attention(out))
        return self.output_dropout(out)


class BottleneckBlock(ResidualBlock):
    """conv1x1 - BN - ReLU - conv3x3 - BN - ReLU - conv1x1 - BN, plus the shortcut, then ReLU.

    He et al. 2015, fig. 5, with the stride in the 3×3 convolution as in torchvision. The inner
    convolutions have `expansion` times fewer channels than the output.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, parts: BlockParts):
        super().__init__(parts)
        channels = out_channels // parts.expansion
        self.conv1 = parts.conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = parts.conv(channels, channels, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = parts.conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.tail = parts.tail
        self.shortcut = parts.shortcut(in_channels, out_channels, stride)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.activation(self.bn2(self.conv2(out)))
        out = self.dropout(out)
        out = self.bn3(self.conv3(out))
        out = self.tail(out)
        out = out + self.shortcut(x)
        out = self.activation(self.attention(out))
        return self.output_dropout(out)


class DropoutBlock(ResidualBlock):
    """conv3x3 - BN - ReLU - Dropout2d - conv3x3 - BN, plus the shortcut, then ReLU.

    Dropout between the convolutions as in Zagoruyko & Komodakis 2016 (fig. 1d), here of whole
    channels, as the `dropout` team drew it; as in their table, the shortcut is computed first.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, parts: BlockParts):
        super().__init__(parts)
        self.shortcut = parts.shortcut(in_channels, out_channels, stride)
        self.conv1 = parts.conv(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.tail = parts.tail

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        out = self.activation(self.bn1(self.conv1(x)))
        out = self.dropout(out)
        out = self.bn2(self.conv2(out))
        out = self.tail(out)
        out = out + shortcut
        out = self.activation(self.attention(out))
        return self.output_dropout(out)


class PreActBlock(ResidualBlock):
    """BN - ReLU - conv3x3 - BN - ReLU - conv3x3, plus the shortcut (He et al. 2016, fig. 1b).

    Where the shape changes, the first BN - ReLU serves both paths and the shortcut is a 1×1
    convolution of its output, as in the authors' code; or, with `raw_shortcut`, of the block's
    input, as in several reimplementations of wide networks.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        parts: BlockParts,
        raw_shortcut: bool = False,
    ):
        super().__init__(parts)
        changes = stride != 1 or in_channels != out_channels
        shared = changes and not raw_shortcut
        activation = nn.Sequential(nn.BatchNorm2d(in_channels), parts.activation_layer())
        self.shared_activation = activation if shared else nn.Sequential()
        self.branch_activation = nn.Sequential() if shared else activation
        if not changes:
            parts.conv1x1(in_channels, out_channels)  # unused: keeps the weights that a seed gives
        self.shortcut = parts.shortcut(in_channels, out_channels, stride)
        self.conv1 = parts.conv(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.tail = parts.tail

    def zero_init_last(self) -> None:
        # Not the last BN: a ReLU of zeros would pass no gradient back to it.
        last = self.conv2[-1] if isinstance(self.conv2, nn.Sequential) else self.conv2
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared_activation(x)
        out = self.branch_activation(x)
        out = self.conv1(out)
        out = self.activation(self.bn2(out))
        out = self.dropout(out)
        out = self.conv2(out)
        out = self.tail(out)
        out = self.attention(out + self.shortcut(x))
        return self.output_dropout(out)


class PyramidBlock(ResidualBlock):
    """BN - conv3x3 - BN - ReLU - conv3x3 - BN, plus the shortcut (Han et al. 2017, fig. 6d)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, parts: BlockParts):
        super().__init__(parts)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = parts.conv(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.tail = parts.tail
        self.shortcut = parts.shortcut(in_channels, out_channels, stride)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(self.bn1(x))
        out = self.activation(self.bn2(out))
        out = self.dropout(out)
        out = self.bn3(self.conv2(out))
        out = self.tail(out)
        out = self.attention(out + self.shortcut(x))
        return self.output_dropout(out)


class PooledBlock(ResidualBlock):
    """conv3x3 - max-pool - BN - ReLU, then conv3x3 - BN plus the identity, then ReLU.

    As in the ResNet-9 of fast training (Page 2018, "How to train your ResNet" 4), with one
    convolution in the residual. Pooling, where the stride is 2, comes before BN and ReLU, which
    then have a quarter of the work. The shortcut never needs a projection.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, parts: BlockParts):
        super().__init__(parts)
        self.conv1 = parts.conv(in_channels, out_channels)
        self.pool = MaxPool2x2() if stride == 2 else nn.Sequential()
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = parts.conv(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.tail = parts.tail

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.bn1(self.pool(self.conv1(x))))
        out = self.dropout(x)
        out = self.bn2(self.conv2(out))
        out = self.tail(out)
        out = self.activation(self.attention(out + x))
        return self.output_dropout(out)
