"""Read weights from another program safely, and find the place of each in a network."""

import re
from collections import Counter
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from .. import pickles
from ..errors import DataError, shorten
from ..paths import display_path

WRAPPERS = ("state_dict", "net", "model", "model_state_dict")  # what scripts save weights under
PREFIXES = ("module", "_orig_mod")  # of DataParallel and of torch.compile
COUNTERS = ("num_batches_tracked", "n_averaged")  # these are not weights, and old files lack them
LARGEST_WEIGHTS = 2**31  # bytes
BY_NAME, IN_ORDER = "by name", "in order"  # ways to match
# Parts of a module's path that say what it is in its block.
SHORTCUT = re.compile(r"short_?cut|down_?sample|skip|proj|identity", re.IGNORECASE)
ATTENTION = re.compile(
    r"(^|[._])(se(_?(block|layer|module))?\d*|attention|attn|tail|squeeze|excite)([._]|$)",
    re.IGNORECASE,
)


class Place(NamedTuple):
    """Where a tensor belongs, however its network names its parts."""

    block: int  # from 1, in order; 0 is outside the blocks
    path: str  # "main", "shortcut" or "attention"
    kind: str  # "norm", "product", or outside the blocks "linear"
    number: int  # among those of its kind on this path
    tensor: str  # "weight", "bias", "running_mean", …


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file that `torch.save` or safetensors wrote, with tidied names.

    It may be under one of the keys in `WRAPPERS`. Prefixes of wrapped networks and counters are
    left out. Raises `DataError`, in one line, for anything else; code in the file never runs.
    """
    if path.stat().st_size > LARGEST_WEIGHTS:
        raise DataError(f"{display_path(path)} is too large: more than {LARGEST_WEIGHTS:,} bytes")
    content = path.read_bytes()
    is_safetensors = content[8:9] == b"{"  # a header in JSON, after its length
    read = safetensors.torch.load if is_safetensors else pickles.unpickle_tensors
    try:
        state = read(content)
    except Exception as error:  # of any parser, on a file that a stranger may have written
        raise DataError(f"{display_path(path)} {_reason(error)}") from None
    weights = _tidy_names(path, _state_dict(path, state))
    # Neither safetensors nor its reader keeps an order.
    return dict(sorted(weights.items(), key=_natural)) if is_safetensors else weights


def _reason(error: Exception) -> str:
    """Why a file is not read, in one line; torch's own messages advise to run its code."""
    refused = re.search(r"GLOBAL ([\w.]+)", str(error))
    if refused:
        return (
            f"is refused: it holds {refused[1][:80]}, and code in a file is never run; "
            "save `model.state_dict()` alone"
        )
    return "cannot be read: it is neither safetensors nor what `torch.save` writes, or is damaged"


def _state_dict(path: Path, content: Any) -> dict[str, Tensor]:
    """The mapping of names to tensors in what a file holds."""
    is_mapping = isinstance(content, Mapping)
    for candidate in [content, *(content.get(key) for key in WRAPPERS if is_mapping)]:
        if isinstance(candidate, Mapping) and candidate:
            names_fit = all(isinstance(name, str) for name in candidate)
            if names_fit and all(isinstance(value, Tensor) for value in candidate.values()):
                return dict(candidate)
    keys = ", ".join(shorten(key, 40) for key in list(content)[:8]) if is_mapping else "none"
    raise DataError(
        f"{display_path(path)} holds no weights: expected names with tensors, alone or under "
        f"{', '.join(WRAPPERS)}; its keys: {keys}"
    )


def _tidy_names(path: Path, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tidied: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        parts = [part for part in name.split(".") if part not in PREFIXES]
        if parts and parts[-1] in COUNTERS:
            continue
        tidy = ".".join(parts)
        if tidy in tidied:
            raise DataError(f"{display_path(path)} has two tensors for {shorten(tidy)}")
        tidied[tidy] = tensor
    while len({name.partition(".")[0] for name in tidied}) == 1 and all("." in n for n in tidied):
        tidied = {name.partition(".")[2]: tensor for name, tensor in tidied.items()}
    return tidied


def _natural(item: tuple[str, Any]) -> list[list[tuple[bool, int, str]]]:
    """A sort key by which `layer2` comes before `layer10`, and `bn` before `bn2`."""
    words = [re.split(r"(\d+)", word) for word in item[0].split(".")]
    return [[(p.isdigit(), len(p) if p.isdigit() else 0, p) for p in word] for word in words]


def match_weights(
    weights: Mapping[str, Tensor], network: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], str]:
    """The weights under the names of a network, in float32, and how they were matched.

    `network` is its state dict without counters. Names are compared by the place that they describe
    (block, path, kind). Where they describe others than the network has, tensors are matched in
    order, if every shape agrees. Nothing is matched in part: raises `DataError` that names the
    first tensor without counterpart, or with one of another shape.
    """
    places, own = _places(weights), _places(network)
    shapes_agree = [*map(_shape, weights.values())] == [*map(_shape, network.values())]
    has_blocks = any(place.block for place in places)
    pairs, method = list(zip_longest(weights, network)), IN_ORDER
    if weights.keys() == network.keys():
        pairs, method = [(name, name) for name in network], BY_NAME
    elif places.keys() == own.keys() or (has_blocks and not shapes_agree):
        both = dict.fromkeys([*places, *own])
        pairs, method = [(places.get(place), own.get(place)) for place in both], BY_NAME
    return {
        own_name: _fitted(name, weights.get(name), own_name, network.get(own_name))
        for name, own_name in pairs
    }, method


def _fitted(
    name: str | None, tensor: Tensor | None, own_name: str | None, own: Tensor | None
) -> Tensor:
    """The tensor in the form of the network's own; `DataError` where it does not fit."""
    if own is None:
        raise DataError(f"the network has no counterpart of {_describe(name, tensor)}")
    if tensor is None:
        raise DataError(f"the file has no counterpart of the network's {_describe(own_name, own)}")
    described = _describe(name, tensor)
    if _shape(tensor) != _shape(own):
        raise DataError(f"{described} does not fit the network's {_describe(own_name, own)}")
    if tensor.layout != torch.strided or tensor.is_meta or not tensor.is_floating_point():
        raise DataError(f"{described} does not hold ordinary floating-point numbers")
    fitted = tensor.detach().float().reshape(own.shape)
    if not fitted.isfinite().all():
        raise DataError(f"{described} holds a number that is not finite")
    return fitted


def _describe(name: str, tensor: Tensor) -> str:
    """Name and shape, such as `layer1.0.conv1.weight (16, 16, 3, 3)`."""
    return f"{shorten(name)[1:-1]} {tuple(tensor.shape)}"


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape without ones at its end: a 1×1 convolution of pooled channels is a linear layer."""
    shape = list(tensor.shape)
    while shape and shape[-1] == 1:
        shape.pop()
    return tuple(shape)


def _places(weights: Mapping[str, Tensor]) -> dict[Place, str]:
    """The place of each tensor, by its name and the tensors beside it; in order."""
    modules: dict[str, list[str]] = {}
    for name in weights:
        modules.setdefault(name.rpartition(".")[0], []).append(name)
    blocks, counts, places = {"": 0}, Counter(), {}
    for module, names in modules.items():
        block, inside = _split_block(module)
        number = blocks.setdefault(block, len(blocks))
        tensors = {name.rpartition(".")[2]: name for name in names}
        path = _path(inside, in_block=bool(block))
        is_flat = all(len(_shape(weights[name])) <= 2 for name in names)
        kind = "linear" if is_flat and not block else "product"
        kind = "norm" if "running_mean" in tensors else kind
        for tensor, name in tensors.items():
            places[Place(number, path, kind, counts[number, path, kind], tensor)] = name
        counts[number, path, kind] += 1
    return places


def _path(module: str, *, in_block: bool) -> str:
    """The path that a module is on, by its name in the block or outside all blocks."""
    if in_block and SHORTCUT.search(module):
        return "shortcut"
    if ATTENTION.search(module) or (in_block and re.fullmatch(r"fc\d?", module)):
        return "attention"
    return "main"


def _split_block(module: str) -> tuple[str, str]:
    """The block of a module and its path there: `layer1.0`, `conv1`. Outside the blocks: `""`.

    A block is named by a stage and a number, such as `layer1.0`, `stages.0.0`, `conv2_x.0`,
    `block1.layer.0`, `stage1.unit1`.
    """
    parts = module.split(".")
    numbered = [index for index, part in enumerate(parts) if re.search(r"\d", part)]
    if len(numbered) < 2 or numbered[1] == len(parts) - 1:
        return "", module
    end = numbered[1] + 1
    return ".".join(parts[:end]), ".".join(parts[end:])
