"""Which network is best for its size, and is its lead significant?"""

import math
from collections.abc import Sequence
from typing import Any

from ..analysis.significance import ALPHA, compare_seeds
from ..experiment import DEFAULT_BUDGET
from ..plots.leaderboard import pareto_front
from .leaderboard import own_recipes


def within_budget(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measured variants on CIFAR-10, by their own recipe, within the budget."""
    return [
        row
        for row in own_recipes(rows)
        if row["reproduced"] is not None and row["parameters"] <= DEFAULT_BUDGET
    ]


def best_for_size(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measured networks on the Pareto front within the budget, smallest first.

    `rival` is the best other network smaller than the next one on the front, `lead` how many
    points it is behind, `p` Welch's p value; None where there is no rival or no spread.
    """
    measured = sorted(within_budget(rows), key=lambda row: row["parameters"])
    on_front = pareto_front(
        [row["parameters"] for row in measured], [row["reproduced"] for row in measured]
    )
    front = [row for row, best in zip(measured, on_front, strict=True) if best]
    limits = [row["parameters"] for row in front[1:]] + [math.inf]
    ranked = []
    for row, limit in zip(front, limits, strict=False):
        rivals = [other for other in measured if other["parameters"] < limit and other is not row]
        rival = max(rivals, key=lambda other: other["reproduced"], default=None)
        ranked.append(
            row
            | {
                "rival": rival and rival["variant"],
                "lead": rival and row["reproduced"] - rival["reproduced"],
                "p": rival and compare_seeds(row["accuracies"], rival["accuracies"]).p_value,
            }
        )
    return ranked


def significantly_best(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """For each row, whether it beats every other variant on its data set, by their own recipes.

    By Welch's t-test at 5 % against each; False where one of them has a single seed.
    """
    return [_beats_all(row, rows) for row in rows]


def _beats_all(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    rivals = [
        other
        for other in rows
        if other["reproduced"] is not None
        and not other["changes"]
        and other["dataset"] == row["dataset"]
    ]
    if row not in rivals or row is not max(rivals, key=lambda other: other["reproduced"]):
        return False
    tests = [
        compare_seeds(row["accuracies"], other["accuracies"]).p_value
        for other in rivals
        if other is not row
    ]
    return bool(tests) and all(p is not None and p < ALPHA for p in tests)
