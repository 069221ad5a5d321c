"""Sizes of networks before any is built: one design, all of a family, the published ones."""

from collections.abc import Callable, Iterable
from functools import cache
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import yaml
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from .config import DEFAULT_BUDGET, ConfigError, list_variants, load_experiment
from .resnet import IMAGE_SHAPE, ResNet
from .schema import Architecture

FLOAT_BYTES = 4  # of float32
MOST_CHANNELS, MOST_BLOCKS = 65_536, 10_000  # of a stage; beyond, 64 bits might not hold the sums
MOST_DESIGNS = 1_000_000  # that one search counts: about two seconds and 300 MB


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


def size(architecture: Architecture) -> Size:
    """Its size, summed over its parts; each part is measured once, without memory or weights."""
    return Size(*(int(total) for total in sum(_parts(architecture).values())))


def stages(architecture: Architecture) -> pd.DataFrame:
    """Stem, stages and head: output shape, parameters, MACs, activation bytes of one image."""
    shapes = output_shapes(architecture)
    rows = {name: (shapes[name], *map(int, part)) for name, part in _parts(architecture).items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=["output", *Size._fields])


def output_shapes(architecture: Architecture) -> dict[str, str]:
    """What leaves each part, such as `16 × 32 × 32`: channels, height, width."""
    names = ["stem", *(f"stage {index + 1}" for index in range(len(architecture.depths)))]
    shapes = [f"{channels} × {side} × {side}" for channels, side in architecture.outputs]
    return dict(zip(names, shapes, strict=True)) | {"head": "10"}


def describe(architecture: Architecture, budget: int = DEFAULT_BUDGET) -> dict[str, str]:
    """The size and what it leaves of the budget, for reading."""
    measured = size(architecture)
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


def describe_budget(parameters: int, budget: int) -> str:
    """`within the budget: …` or `OVER THE BUDGET by …`, with both figures."""
    _check_counts(budget=[budget])
    share = f"{parameters:,} of {budget:,} parameters ({parameters / budget:.1%})"
    if parameters > budget:
        return f"OVER THE BUDGET by {parameters - budget:,}: {share}"
    return f"within the budget, {budget - parameters:,} left: {share}"


def to_yaml(architecture: Architecture) -> str:
    """The `architecture:` block of a variant file, without what is default."""
    content = {"architecture": architecture.model_dump(mode="json", exclude_defaults=True)}
    return yaml.safe_dump(content, sort_keys=False, default_flow_style=None)


def published() -> pd.DataFrame:
    """Every variant of `params/`: its network, size and published test accuracy, by parameters."""
    experiments = [load_experiment(name) for name in list_variants()]
    rows = {
        experiment.variant: {
            **_identity(experiment.architecture),
            **size(experiment.architecture)._asdict(),
            "published_accuracy": experiment.published.test_accuracy,
        }
        for experiment in experiments
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").astype({"published_accuracy": float})
    return frame.sort_values("parameters", kind="stable")


def compare(architecture: Architecture, name: str = "this design") -> pd.DataFrame:
    """The published variants and, in its place by parameters, this design."""
    row = _identity(architecture) | size(architecture)._asdict()
    frame = pd.concat([published(), pd.DataFrame([row], index=[name])])
    return frame.sort_values("parameters", kind="stable")


def _identity(architecture: Architecture) -> dict[str, str]:
    return {
        "block": architecture.block,
        "depths": "-".join(map(str, architecture.depths)),
        "widths": "-".join(map(str, architecture.widths)),
        "attention": architecture.squeeze_excitation.placement,
    }


def search(
    architecture: Architecture,
    *,
    budget: int = DEFAULT_BUDGET,
    stages: Iterable[int] = (3, 4),
    base_widths: Iterable[int] | None = None,
    max_depth: int = 5,
) -> pd.DataFrame:
    """Every design of the architecture's family within the budget, the largest first.

    The family has the architecture's stem, block, strides, attention, dropout and biases (stages
    beyond its strides halve the resolution); any of these numbers of
    stages; the first stage as wide as any of the base widths (unless given: 8, 16, … 128 and the
    architecture's own), each later one twice the one before; 1 to `max_depth` blocks in a stage.
    Columns `depths` and `widths` (tuples), then `Size`'s. Nothing is left out: raises `ConfigError`
    where there would be too many to count.
    """
    if base_widths is None:
        base_widths = [*range(8, 129, 8), architecture.widths[0]]
    stages, base_widths = sorted(set(stages)), sorted(set(base_widths))
    _check_search(budget, stages, base_widths, max_depth)
    found = [
        _within(architecture, budget, tuple(base << i for i in range(count)), max_depth)
        for count in stages
        for base in base_widths
    ]
    frame = pd.concat(found, ignore_index=True)
    return frame.sort_values("parameters", ascending=False, kind="stable", ignore_index=True)


def _check_counts(**counts: list) -> None:
    for name, values in counts.items():
        if not values or any(type(value) is not int or value < 1 for value in values):
            shown = ", ".join(map(repr, values)) or "nothing"
            raise ConfigError(f"{name} = {shown}: give whole numbers from 1 up")


def _check_search(budget: int, stages: list, base_widths: list, max_depth: int) -> None:
    _check_counts(budget=[budget], stages=stages, base_widths=base_widths, max_depth=[max_depth])
    designs = len(base_widths) * sum(max_depth**count for count in stages)
    if designs > MOST_DESIGNS:
        raise ConfigError(
            f"{designs:,} designs are more than the {MOST_DESIGNS:,} that are counted at once: "
            "take fewer base_widths, fewer stages or a smaller max_depth"
        )


def _within(
    architecture: Architecture, budget: int, widths: tuple[int, ...], max_depth: int
) -> pd.DataFrame:
    """All depths for these widths that keep the budget."""
    once = _parts(architecture, (1,) * len(widths), widths)
    twice = _parts(architecture, (2,) * len(widths), widths)
    further = np.stack(
        [twice[f"stage {i + 1}"] - once[f"stage {i + 1}"] for i in range(len(widths))]
    )
    depths = np.array(list(product(range(1, max_depth + 1), repeat=len(widths))))
    sizes = sum(once.values()) + (depths - 1) @ further  # (designs, 3)
    kept = sizes[:, 0] <= budget
    frame = pd.DataFrame(sizes[kept], columns=Size._fields)
    frame.insert(0, "depths", list(map(tuple, depths[kept].tolist())))
    frame.insert(1, "widths", [widths] * len(frame))
    return frame


# Parts -------------------------------------------------------------------------------------------
#
# A part's figures are those of `Size`, an int64 array of three. A part keeps its output but not its
# input, which is the output of the part before; so the parts add up.


def _parts(
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
