"""Search for network designs within a parameter budget."""

from collections.abc import Iterable
from itertools import product

import numpy as np
import pandas as pd
import yaml

from ..config import list_variants, load_experiment
from ..errors import ConfigError
from ..experiment import DEFAULT_BUDGET
from ..schema import Architecture
from ..size import Size, check_counts, measure_size, part_sizes

MOST_DESIGNS = 1_000_000  # that one search counts: about two seconds and 300 MB


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
            **measure_size(experiment.architecture)._asdict(),
            "published_accuracy": experiment.published.test_accuracy,
        }
        for experiment in experiments
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").astype({"published_accuracy": float})
    return frame.sort_values("parameters", kind="stable")


def rank_by_size(architecture: Architecture, name: str = "this design") -> pd.DataFrame:
    """The published variants and, in its place by parameters, this design."""
    row = _identity(architecture) | measure_size(architecture)._asdict()
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


def _check_search(budget: int, stages: list, base_widths: list, max_depth: int) -> None:
    check_counts(budget=[budget], stages=stages, base_widths=base_widths, max_depth=[max_depth])
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
    once = part_sizes(architecture, (1,) * len(widths), widths)
    twice = part_sizes(architecture, (2,) * len(widths), widths)
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
