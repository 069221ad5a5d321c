"""The size of a network: parameters, multiply-accumulates, memory, budget check, summary table."""

import contextlib
import copy
import io
import re
from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from torchsummary import summary

from .errors import ConfigError
from .experiment import DEFAULT_BUDGET, Experiment
from .resnet import IMAGE_SHAPE, ResNet, build_model
from .schema import Architecture


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters; one that is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def macs(model: nn.Module) -> int:
    """Multiply-accumulates of one image's forward pass: convolutions and linear layers."""
    replica = copy.deepcopy(model).cpu().eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        replica(torch.zeros(1, *IMAGE_SHAPE))
    return counter.get_total_flops() // 2


def model_summary(model: nn.Module) -> str:
    """torchsummary's table for one 3×32×32 image, with the trained parameters counted.

    torchsummary goes by a layer's weight: where that is fixed, it calls the bias fixed too. Made
    on a copy, with the random state set aside: BatchNorm's statistics, the random state and the
    hooks of the model stay as they were.
    """
    replica = copy.deepcopy(model).cpu()
    printed = io.StringIO()
    with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(printed):
        summary(replica, IMAGE_SHAPE, device="cpu")
    table = printed.getvalue().strip("\n")
    fixed = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    for kind, count in {"Trainable": count_parameters(model), "Non-trainable": fixed}.items():
        table = re.sub(rf"(?m)^({kind} params: ).*", rf"\g<1>{count:,}", table)
    return table


def check_size(experiment: Experiment) -> int:
    """The parameter count, if it keeps the budget and equals the published one.

    The published count is held against the variant's own network only: an override of the
    architecture makes another network. Raises `ConfigError`.
    """
    with torch.device("meta"):
        count = count_parameters(ResNet(experiment.architecture))
    overridden = any(path.startswith("architecture") for path in experiment.overrides)
    published = experiment.published.parameters
    if published not in (None, count) and not overridden:
        raise ConfigError(
            f"{experiment.variant}: published.parameters is {published:,}, "
            f"and the architecture has {count:,}"
        )
    if experiment.budget != "none" and count > experiment.budget:
        raise ConfigError(
            f"{experiment.variant}: {count:,} parameters exceed the budget of "
            f"{experiment.budget:,}; say `budget: none` to run it all the same"
        )
    return count


def describe_size(experiment: Experiment) -> dict[str, str]:
    """Parameters, MACs and the share of the budget, for reading."""
    model = build_model(experiment.architecture)
    count, budget = count_parameters(model), experiment.budget
    used = "no budget" if budget == "none" else f"{count / budget:.1%} of {budget:,}"
    return {
        "parameters": f"{count:,}",
        "budget": used,
        "multiply-accumulates of one image": f"{macs(model) / 1e6:.1f} million",
        "weights": f"{4 * count / 2**20:.2f} MiB in float32",
    }


FLOAT_BYTES = 4  # of float32
MOST_CHANNELS, MOST_BLOCKS = 65_536, 10_000  # of a stage; beyond, 64 bits might not hold the sums


class Size(NamedTuple):
    """Trainable parameters, multiply-accumulates of one image's forward pass, and memory.

    `activation_bytes` is what training keeps of one image from the forward pass to the backward:
    the image if the stem is trained, every activation that autograd saves, and the logits, in
    float32.
    """

    parameters: int
    macs: int
    activation_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Of the parameters in float32."""
        return FLOAT_BYTES * self.parameters


def measure_size(architecture: Architecture) -> Size:
    """Its size, summed over its parts; each part is measured once, without memory or weights."""
    return Size(*(int(total) for total in sum(part_sizes(architecture).values())))


def stages(architecture: Architecture) -> pd.DataFrame:
    """Stem, stages and head: output shape, parameters, MACs, activation bytes of one image."""
    shapes = output_shapes(architecture)
    rows = {
        name: (shapes[name], *map(int, part)) for name, part in part_sizes(architecture).items()
    }
    return pd.DataFrame.from_dict(rows, orient="index", columns=["output", *Size._fields])


def output_shapes(architecture: Architecture) -> dict[str, str]:
    """What leaves each part, such as `16 × 32 × 32`: channels, height, width."""
    names = ["stem", *(f"stage {index + 1}" for index in range(len(architecture.depths)))]
    shapes = [f"{channels} × {side} × {side}" for channels, side in architecture.outputs]
    return dict(zip(names, shapes, strict=True)) | {"head": "10"}


def describe_architecture(
    architecture: Architecture, budget: int = DEFAULT_BUDGET
) -> dict[str, str]:
    """The size and what it leaves of the budget, for reading."""
    measured = measure_size(architecture)
    return {
        "parameters": f"{measured.parameters:,}",
        "budget": describe_budget(measured.parameters, budget),
        "multiply-accumulates of one image": f"{measured.macs / 1e6:.1f} million",
        "weights": f"{measured.weights_bytes / 2**20:.2f} MiB in float32",
        "kept of an image for the backward pass": (
            f"{measured.activation_bytes / 2**20:.2f} MiB in float32; "
            f"{128 * measured.activation_bytes / 2**20:,.0f} MiB for a batch of 128"
        ),
    }


def check_counts(**counts: list) -> None:
    for name, values in counts.items():
        if not values or any(type(value) is not int or value < 1 for value in values):
            shown = ", ".join(map(repr, values)) or "nothing"
            raise ConfigError(f"{name} = {shown}: give whole numbers from 1 up")


def describe_budget(parameters: int, budget: int) -> str:
    """`within the budget: …` or `OVER THE BUDGET by …`, with both figures."""
    check_counts(budget=[budget])
    share = f"{parameters:,} of {budget:,} parameters ({parameters / budget:.1%})"
    if parameters > budget:
        return f"OVER THE BUDGET by {parameters - budget:,}: {share}"
    return f"within the budget, {budget - parameters:,} left: {share}"


def part_sizes(
    architecture: Architecture,
    depths: tuple[int, ...] | None = None,
    widths: tuple[int, ...] | None = None,
) -> dict[str, np.ndarray]:
    """Figures of the stem, each stage and the head; of other depths and widths where given."""
    depths, widths = depths or architecture.depths, widths or architecture.widths
    if max(widths) > MOST_CHANNELS or max(depths) > MOST_BLOCKS:
        raise ConfigError(
            f"no network is measured of more than {MOST_CHANNELS:,} channels or "
            f"{MOST_BLOCKS:,} blocks a stage"
        )
    family = architecture.model_copy(
        update={"depths": (), "widths": (), "strides": None, "stem_width": None}
    )
    design = architecture.model_copy(update={"depths": depths, "widths": widths})
    parts = {"stem": _stem(family, design.outputs[0][0])}
    for index, (before, after) in enumerate(pairwise(design.outputs)):
        part = np.zeros(3, dtype=np.int64)
        if depths[index]:
            width, side = after
            first = _block(family, *before, width, design.stage_strides[index])
            part = first + (depths[index] - 1) * _block(family, width, side, width, 1)
        parts[f"stage {index + 1}"] = part
    return parts | {"head": _head(family, *design.outputs[-1])}


@cache
def _stem(family: Architecture, channels: int) -> np.ndarray:
    model = _model(family, channels)
    image = np.zeros(3, dtype=np.int64)
    if any(weight.requires_grad for weight in model.stem.parameters()):
        image[2] = FLOAT_BYTES * np.prod(IMAGE_SHAPE)
    parts = (model.stem, model.stem_activation, model.stem_attention)
    return image + _measure(parts, IMAGE_SHAPE)


@cache
def _block(
    family: Architecture, in_channels: int, side: int, out_channels: int, stride: int
) -> np.ndarray:
    widths = in_channels, out_channels
    block = _model(family, *widths, strides=(1, stride)).stages[-1][0]
    return _measure([block], (in_channels, side, side))


@cache
def _head(family: Architecture, channels: int, side: int) -> np.ndarray:
    model = _model(family, channels)
    parts = (model.final_activation, model.pool, nn.Flatten(), model.linear)
    return _measure(parts, (channels, side, side))


def _model(family: Architecture, *widths: int, strides: tuple[int, ...] | None = None) -> ResNet:
    """Without weights, a block a stage."""
    given = {"depths": (1,) * len(widths), "widths": widths, "strides": strides}
    with torch.device("meta"):
        return ResNet(family.model_copy(update=given))


def _measure(parts: Iterable[Callable[[Tensor], Tensor]], shape: tuple[int, ...]) -> np.ndarray:
    """Figures of the parts one after another, on one input of this shape (C, H, W)."""
    modules = nn.ModuleList([part for part in parts if isinstance(part, nn.Module)])
    for module in modules.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # keeps as much, and its shapes are computed in half the time
    weights = {
        _storage(weight): weight.numel() if weight.requires_grad else 0
        for weight in modules.parameters()
    }
    saved: dict[int, Tensor] = {}

    def save(tensor: Tensor) -> Tensor:
        # A batch keeps BatchNorm's vectors only once, however many images it has.
        if tensor.dim() > 1 and _storage(tensor) not in weights:
            saved[_storage(tensor)] = tensor
        return tensor

    image = out = torch.zeros(1, *shape, device="meta")
    with FlopCounterMode(display=False) as counter, saved_tensors_hooks(save, lambda kept: kept):
        for part in parts:
            out = part(out)
    saved[_storage(out)] = out  # kept by what comes next, if not by these
    saved.pop(_storage(image), None)
    kept = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    macs = counter.get_total_flops() // 2  # two operations each
    return np.array([sum(weights.values()), macs, kept])


def _storage(tensor: Tensor) -> int:
    """What tells the memory of a tensor, and of its views, from any other's."""
    return tensor.untyped_storage()._cdata
