"""Residual blocks, squeeze-and-excitation and the whitening stem.

Images and activations are (N, C, H, W). A block maps (N, in_channels, H, W) to
(N, out_channels, H/stride, W/stride). Its `tail` ends the residual path, before the addition:
squeeze-and-excitation, stochastic depth, both or neither. An absent part is an empty
`nn.Sequential()`: an identity without a row in torchsummary's table, as in the published tables.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(in_channels: int, out_channels: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """3×3 convolution with padding 1."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=bias)


def projection(in_channels: int, out_channels: int, stride: int, bias: bool) -> nn.Sequential:
    """conv1x1 - BN where the shape changes, else the identity (He et al. 2015, option B)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Sequential()
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias),
        nn.BatchNorm2d(out_channels),
    )


class Whitening(nn.Conv2d):
    """Frozen 2×2 convolution that decorrelates the pixels of a patch; each filter and its negative.

    The filters are the principal directions of the training images' patches, each divided by its
    standard deviation (Page 2019, "How to train your ResNet" 8; Jordan 2024). They are not
    trainable: `fit` sets them before training, and they are kept with the weights.
    (N, 3, H, W) -> (N, 24, H - 1, W - 1).
    """

    def __init__(self):
        super().__init__(3, 24, 2, bias=False)
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

    def __init__(self, channels: int, reduction: int):
        super().__init__()
        squeezed = max(1, channels // reduction)
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = x.mean((2, 3), keepdim=True)  # (N, C, 1, 1)
        scale = F.relu(self.squeeze(scale))
        scale = torch.sigmoid(self.excite(scale))
        return x * scale


class BasicBlock(nn.Module):
    """conv3x3 - BN - ReLU - conv3x3 - BN, plus the shortcut, then ReLU (He et al. 2015, fig. 2)."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, bias: bool, tail: nn.Module
    ):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride, bias)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.tail = tail
        self.shortcut = projection(in_channels, out_channels, stride, bias)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out = self.tail(out)
        out = out + self.shortcut(x)
        return F.relu(out)


class DropoutBlock(nn.Module):
    """conv3x3 - BN - ReLU - Dropout2d - conv3x3 - BN, plus the shortcut, then ReLU.

    Dropout between the convolutions as in Zagoruyko & Komodakis 2016 (fig. 1d), here of whole
    channels, as the `dropout` team drew it; as in their table, the shortcut is computed first.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        bias: bool,
        tail: nn.Module,
        dropout: float,
    ):
        super().__init__()
        self.shortcut = projection(in_channels, out_channels, stride, bias)
        self.conv1 = conv3x3(in_channels, out_channels, stride, bias)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.dropout = nn.Dropout2d(dropout)
        self.conv2 = conv3x3(out_channels, out_channels, bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.tail = tail

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.dropout(out)
        out = self.bn2(self.conv2(out))
        out = self.tail(out)
        out = out + shortcut
        return F.relu(out)


class PreActBlock(nn.Module):
    """BN - ReLU - conv3x3 - BN - ReLU - conv3x3, plus the shortcut (He et al. 2016, fig. 1b).

    Where the shape changes, the first BN - ReLU serves both paths and the shortcut is a 1×1
    convolution of its output, as in the authors' code.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, bias: bool, tail: nn.Module
    ):
        super().__init__()
        changes = stride != 1 or in_channels != out_channels
        activation = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=bias)
        self.shared_activation = activation if changes else nn.Sequential()
        self.branch_activation = nn.Sequential() if changes else activation
        self.shortcut = shortcut if changes else nn.Sequential()
        self.conv1 = conv3x3(in_channels, out_channels, stride, bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, bias=bias)
        self.tail = tail

    def zero_init_last(self) -> None:
        # Not the last BN: a ReLU of zeros would pass no gradient back to it.
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared_activation(x)
        out = self.branch_activation(x)
        out = self.conv1(out)
        out = self.conv2(F.relu(self.bn2(out)))
        out = self.tail(out)
        return out + self.shortcut(x)


class PooledBlock(nn.Module):
    """conv3x3 - max-pool - BN - ReLU, then conv3x3 - BN plus the identity, then ReLU.

    As in the ResNet-9 of fast training (Page 2018, "How to train your ResNet" 4), with one
    convolution in the residual. Pooling, where the stride is 2, comes before BN and ReLU, which
    then have a quarter of the work. The shortcut never needs a projection.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, bias: bool, tail: nn.Module
    ):
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, bias=bias)
        self.pool = MaxPool2x2() if stride == 2 else nn.Sequential()
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv3x3(out_channels, out_channels, bias=bias)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.tail = tail

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.pool(self.conv1(x))))
        out = self.bn2(self.conv2(x))
        out = self.tail(out)
        return F.relu(out + x)
