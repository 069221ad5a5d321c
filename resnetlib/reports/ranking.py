"""Statistics of the leaderboard: spread over seeds, baselines, and which is best for its size."""

import math
from collections.abc import Sequence
from typing import Any

from ..analysis.comparison import seed_statistics
from ..analysis.significance import SeedComparison, compare_recipes, compare_seeds
from ..evaluation import wilson_interval
from ..experiment import DEFAULT_BUDGET
from ..plots.leaderboard import pareto_front
from .leaderboard import own_recipes


def with_statistics(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `experiments` with `statistics`, `interval` and `against`.

    `statistics` are `SeedStatistics`, and `interval` Student's 95 % interval of the mean or, of one
    seed or equal ones, Wilson's over the test images; None without a finished run. `against`
    compares recipes of one network, by Dunnett's test, with the one that changes the fewest
    settings of its variant's file: "baseline" for that one, a row of `compare_recipes` for the
    others, else None.
    """
    rows = [row | {"against": None} for row in rows]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        done = [run for run in row["folders"] if run.status == "done"]
        seeds = row["statistics"] = seed_statistics(done) if done else None
        row["interval"] = seeds and (
            seeds.interval or wilson_interval(seeds.mean, row["test_images"])
        )
        if row["seeds"] > 1:
            network = done[0].experiment.architecture.model_dump_json()
            groups.setdefault((row["variant"], row["dataset"], network), []).append(row)
    for group in groups.values():
        baseline, *others = sorted(group, key=lambda row: row["changed"])
        recipes = {number: row["accuracies"] for number, row in enumerate(others)}
        for result in compare_recipes(baseline["accuracies"], recipes).itertuples():
            baseline["against"], others[result.Index]["against"] = "baseline", result
    return rows


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
    points it is behind, `comparison` the `SeedComparison` with it; None where there is no rival.
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
                "comparison": rival and _compare(row, rival),
            }
        )
    return ranked


def significantly_best(rows: Sequence[dict[str, Any]]) -> list[bool]:
    """For each row, whether it beats every other variant on its data set, by their own recipes.

    By Welch's t-test at 5 % against each; False where one of them has a single seed.
    """
    return [_beats_all(row, rows) for row in rows]


def _beats_all(row: dict[str, Any], rows: Sequence[dict[str, Any]]) -> bool:
    if row["reproduced"] is None or row["changes"]:
        return False
    rivals = [
        other
        for other in rows
        if other is not row
        and other["reproduced"] is not None
        and not other["changes"]
        and other["dataset"] == row["dataset"]
    ]
    return bool(rivals) and all(
        other["reproduced"] < row["reproduced"] and _compare(row, other).distinguishable
        for other in rivals
    )


def _compare(row: dict[str, Any], other: dict[str, Any]) -> SeedComparison:
    names = (row["variant"], other["variant"])
    return compare_seeds(row["accuracies"], other["accuracies"], names)
