"""Search for network designs within a parameter budget."""

from collections.abc import Iterable
from dataclasses import asdict, astuple

import numpy as np
import pandas as pd

from ..config import known_variants, list_variants, read_variant
from ..errors import ConfigError
from ..experiment import DEFAULT_BUDGET
from ..schema import MAX_CHANNELS, SIDE, Architecture
from ..size import block_size, check_counts, measure_size
from ..yaml_core import write_yaml

MAX_DESIGNS = 1_000_000  # of one search: about two seconds and 300 MB


def to_yaml(architecture: Architecture) -> str:
    """The `architecture:` block of a variant file, without what is default."""
    content = {"architecture": architecture.model_dump(mode="json", exclude_defaults=True)}
    return write_yaml(content)


def published() -> pd.DataFrame:
    """Every variant of `params/`: its network, size and published test accuracy, by parameters."""
    experiments = filter(None, map(read_variant, list_variants()))
    rows = {
        experiment.variant: {
            **_identity(experiment.architecture),
            **asdict(measure_size(experiment.architecture)),
            "published_accuracy": experiment.published.test_accuracy,
        }
        for experiment in experiments
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").astype({"published_accuracy": float})
    return frame.sort_values("parameters", kind="stable")


def claims() -> pd.DataFrame:
    """Every variant and every team of the class with a claimed accuracy, by parameters.

    `claimed` is a fraction of 1 and `kind` says of what: the last epoch, the epoch best on the test
    set, held-out training images or the competition's test set. `group` is `variants` or `class`.
    """
    rows = {}
    for experiment in filter(None, map(read_variant, known_variants())):
        if claim := experiment.published.claim:
            accuracy, kind = claim
            group = "class" if experiment.variant.startswith("class/") else "variants"
            rows[experiment.variant] = {
                **asdict(measure_size(experiment.architecture)),
                "claimed": accuracy,
                "kind": kind,
                "group": group,
            }
    return pd.DataFrame.from_dict(rows, orient="index").sort_values("parameters", kind="stable")


def rank_by_size(architecture: Architecture, name: str = "this design") -> pd.DataFrame:
    """The variants of `params/` and this design, sorted by parameters."""
    row = _identity(architecture) | asdict(measure_size(architecture))
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

    A family shares everything but depths and widths: stem, block, strides (stages beyond them
    halve the resolution), shortcuts, attention, dropout, biases. Each stage is twice as wide as
    the one before and has 1 to `max_depth` blocks. The columns are `depths` and `widths` (tuples),
    `parameters` and `macs`. The search is exhaustive: too many designs are a `ConfigError`, and so
    is a setting of single stages or blocks.

    Args:
        architecture: any network of the family.
        budget: the most trainable parameters that a design may have.
        stages: numbers of stages.
        base_widths: widths of the first stage; by default 8, 16, … 128 and the architecture's own.
        max_depth: the most blocks in a stage.
    """
    if base_widths is None:
        base_widths = [*range(8, 129, 8), architecture.widths[0]]
    stages, base_widths = sorted(set(stages)), sorted(set(base_widths))
    _check_family(architecture)
    _check_search(budget, stages, base_widths, max_depth)
    depths: list[tuple[int, ...]] = []
    widths: list[tuple[int, ...]] = []
    sizes = [np.empty((0, 2), dtype=np.int64)]
    for count in stages:
        grid = np.indices((max_depth,) * count).reshape(count, -1).T  # blocks beyond the first
        tuples = list(map(tuple, (grid + 1).tolist()))
        for base in base_widths:
            design = _design(architecture, tuple(base << stage for stage in range(count)))
            if design.widths[-1] > MAX_CHANNELS or not _is_possible(design):
                continue
            smallest = measure_size(design)
            if smallest.parameters > budget:  # and so is every deeper one
                continue
            further = [astuple(block_size(design, block.next)) for (block,) in design.blocks]
            found = np.array(astuple(smallest)) + grid @ np.array(further)  # (designs, 2)
            kept = np.flatnonzero(found[:, 0] <= budget)
            depths += [tuples[row] for row in kept.tolist()]
            widths += [design.widths] * len(kept)
            sizes.append(found[kept])
    parameters, macs = np.concatenate(sizes).T
    order = np.argsort(-parameters, kind="stable")
    return pd.DataFrame(
        {
            "depths": [depths[row] for row in order.tolist()],
            "widths": [widths[row] for row in order.tolist()],
            "parameters": parameters[order],
            "macs": macs[order],
        }
    )


def _check_family(architecture: Architecture) -> None:
    """Refuse what is set for single stages or blocks, of which the search changes the number."""
    single = {
        "block_widths": architecture.block_widths,
        "squeeze_excitation.blocks": architecture.squeeze_excitation.blocks,
        "activation": len(architecture.activation) > 1,
        "conv_kind": len(architecture.conv_kind) > 1,
        "conv_kernel": len(architecture.conv_kernel) > 1,
        "shortcut.kernel": len(architecture.shortcut.kernel) > 1,
    }
    if names := [name for name, value in single.items() if value]:
        raise ConfigError(
            f"{names[0]} is set for single stages or blocks, and the search changes their number: "
            "give one value for the network"
        )


def _check_search(budget: int, stages: list, base_widths: list, max_depth: int) -> None:
    check_counts(budget=[budget], stages=stages, base_widths=base_widths, max_depth=[max_depth])
    designs = len(base_widths) * sum(max_depth**count for count in stages)
    if designs > MAX_DESIGNS:
        raise ConfigError(
            f"{designs:,} designs are more than the {MAX_DESIGNS:,} of one search: "
            "give fewer base_widths, fewer stages or a smaller max_depth"
        )


def _is_possible(design: Architecture) -> bool:
    """Whether the family's block can have these widths; a bottleneck needs multiples."""
    try:
        design.check_blocks()
    except ValueError:
        return False
    return True


def _design(architecture: Architecture, widths: tuple[int, ...]) -> Architecture:
    """The family's network of these widths with one block a stage."""
    changes = {"depths": (1,) * len(widths), "widths": widths}
    design = architecture.model_copy(update=changes)  # which is not checked
    if not design.outputs[-1][1]:
        raise ConfigError(
            f"stages = {len(widths)}: too many stride-2 stages for a {SIDE}×{SIDE} image"
        )
    return design
