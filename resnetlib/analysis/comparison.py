"""Compare finished runs: whether two differ, and on which images; recipes over their seeds."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..config import changed_settings, read_variant
from ..data import check_dataset_name, load_dataset
from ..errors import ConfigError, RunError, shorten_line
from ..evaluation import Evaluation, format_confidence
from ..paths import display_path, real_path
from ..runs.find import find_run, finished_runs
from ..runs.run import RECIPE_CAVEAT, Run, group_by_seed, seed_accuracies
from . import significance
from .significance import SeedStatistics, format_p_value, format_points

GRID_IMAGES = 16  # two rows of `image_grid`
SELECTED_ON_TEST = "selected on the test set; its accuracy is optimistically biased."
LABEL_LENGTH = 60  # characters; a longer one is replaced by the folder's name


@dataclass(frozen=True)
class RunPair:
    """Two finished runs on one test set, by their labels.

    `runs` are these two and all others on the same test images.
    """

    names: tuple[str, str]
    runs: Mapping[str, Run]
    data_root: str | Path | None = None

    @property
    def selected(self) -> tuple[Run, Run]:
        return self.runs[self.names[0]], self.runs[self.names[1]]

    @cached_property
    def comparison(self) -> significance.Comparison:
        """Raises `RunError` for two copies of one network and for different test sets."""
        first, second = self.selected
        try:
            return significance.compare_predictions(first.evaluation, second.evaluation, self.names)
        except ValueError as error:
            names = " and ".join(self.names)
            raise RunError(f"{names} cannot be compared: {error}") from None

    @property
    def verdict(self) -> str:
        """Whether the networks are distinguishable, and what limits that answer, a line each."""
        lines = [self.comparison.verdict]
        if self._one_recipe:
            lines.append(
                "Both have the same recipe: the difference is due to chance in training, such as "
                "the seed, not to a better design."
            )
        lines += [
            f"{name} was trained elsewhere: how its weights were selected is not known."
            for name, run in zip(self.names, self.selected, strict=True)
            if run.is_imported
        ]
        lines += [
            f"{name} was {SELECTED_ON_TEST}"
            for name, run in zip(self.names, self.selected, strict=True)
            if _is_selected_on_test(run)
        ]
        return "\n".join([*lines, *self._recipe_caveats])

    @property
    def counts(self) -> pd.DataFrame:
        """Test images by which run is correct; the table that McNemar's test is computed from."""
        comparison, (first, second) = self.comparison, self.names
        return pd.DataFrame(
            [
                [comparison.both, comparison.only_first],
                [comparison.only_second, comparison.neither],
            ],
            index=[f"{first} correct", f"{first} wrong"],
            columns=[f"{second} correct", f"{second} wrong"],
        )

    @property
    def histories(self) -> list[tuple[str, str, pd.DataFrame]]:
        """Variant, label and history of each: the argument of `plots.overlaid_curves`.

        Imported weights have none.
        """
        return [
            (run.record["variant"], name, run.history)
            for name, run in zip(self.names, self.selected, strict=True)
            if not run.is_imported
        ]

    @property
    def confusions(self) -> tuple[np.ndarray, np.ndarray]:
        first, second = self.selected
        return first.evaluation.confusion, second.evaluation.confusion

    @property
    def classes(self) -> tuple[str, ...]:
        return self.selected[0].evaluation.classes

    def only_correct(self, name: str) -> tuple[Tensor, list[str], str]:
        """Images that only this run classifies correctly: the arguments of `plots.image_grid`.

        The images on which both are most confident come first; captions give the true class, then
        both predictions. Raises `RunError` when the local test images are not those of the runs.
        """
        other = self.names[name == self.names[0]]
        right, wrong = self.runs[name].evaluation, self.runs[other].evaluation
        images, labels = load_dataset(self.selected[0].record["dataset"], self.data_root).test
        if not torch.equal(labels, right.labels):
            raise RunError(f"the local test images are not those that {name} was tested on")
        found = (right.correct & ~wrong.correct).nonzero().flatten()
        confidences = torch.minimum(right.confidences, wrong.confidences)[found]
        indices = found[confidences.argsort(descending=True, stable=True)][:GRID_IMAGES]
        captions = [
            f"{self.classes[labels[i]]}\n✓ {_prediction(right, i)}\n✗ {_prediction(wrong, i)}"
            for i in indices
        ]
        title = f"✓ {name} correct, ✗ {other} wrong: {len(indices)} of {len(found):,} images"
        return images[indices], captions, title

    @property
    def recipes(self) -> str:
        """Whether one recipe is better than the other, over the seeds that were run."""
        names = list(self._recipes)[: 1 if self._one_recipe else 2]
        seeds = [seed_statistics(self._recipes[name]) for name in names]
        if self._one_recipe:
            accuracies = significance.format_seeds(seeds[0].accuracies)
            verdict = f"Both have the same recipe. {names[0]}: {accuracies}"
        else:
            accuracies = (recipe.accuracies for recipe in seeds)
            verdict = significance.compare_seeds(*accuracies, tuple(names)).verdict
        spreads = [f"{name}: {s.spread}" for name, s in zip(names, seeds, strict=True) if s.spread]
        return "\n".join([verdict, *spreads, *self._recipe_caveats])

    @property
    def recipe_table(self) -> pd.DataFrame:
        """Every recipe over its seeds, and its difference from that of the first run.

        Recipes of the same network by Dunnett's test, other networks by Welch's with Holm's
        correction. `sampling sd` is the part of `sd` that chance in single predictions causes.
        """
        seeds = {name: seed_statistics(runs) for name, runs in self._recipes.items()}
        first, *others = self._recipes
        examples = {name: runs[0] for name, runs in self._recipes.items()}
        network = {name: run.experiment.architecture for name, run in examples.items()}
        baseline = seeds[first].accuracies
        accuracies = {name: seeds[name].accuracies for name in others}
        same = {name: a for name, a in accuracies.items() if network[name] == network[first]}
        different = {name: a for name, a in accuracies.items() if name not in same}
        tests = {
            "Dunnett": significance.compare_recipes(baseline, same),
            "Welch": significance.compare_networks(baseline, different),
        }
        rows = {name: _recipe_row(recipe) for name, recipe in seeds.items()}
        for test, table in tests.items():
            for row in table.itertuples():
                rows[row.Index] |= _difference_row(row, test)
        table = pd.DataFrame.from_dict(rows, orient="index")
        return _with_notes(table, examples, last_epoch=True)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Every other run on these test images minus the first, best first.

        The columns of `significance.compare_to_reference`, fractions of 1, and `variant`.
        """
        first = self.selected[0]
        others = {label: run for label, run in self.runs.items() if run is not first}
        table = significance.compare_to_reference(
            first.evaluation, {label: run.evaluation for label, run in others.items()}
        )
        table["variant"] = [others[label].record["variant"] for label in table.index]
        return table.sort_values("difference", ascending=False)

    @property
    def table(self) -> pd.DataFrame:
        """Every run on these test images: accuracy in per cent, size, difference from the first.

        By McNemar's exact test with Holm's correction.
        """
        rows = pd.DataFrame.from_dict(
            {
                label: {
                    "accuracy (%)": 100 * run.evaluation.accuracy,
                    "parameters": run.metrics["parameters"],
                    "MACs": run.metrics["macs"],
                }
                for label, run in self.runs.items()
            },
            orient="index",
        ).sort_values("accuracy (%)", ascending=False)
        rows = rows.astype({"parameters": int, "MACs": int})
        cells = {
            row.Index: _difference_row(row, "McNemar") for row in self.differences.itertuples()
        }
        rows = rows.join(pd.DataFrame.from_dict(cells, orient="index", dtype=object))
        return _with_notes(rows, self.runs)

    @property
    def _one_recipe(self) -> bool:
        first, second = self.selected
        return _recipe(first) == _recipe(second)

    @cached_property
    def _recipes(self) -> dict[str, list[Run]]:
        """The runs of each recipe by its label, those of the two selected runs first."""
        groups: dict[str, list[Run]] = {}
        for run in self.runs.values():
            groups.setdefault(_recipe(run), []).append(run)
        labels = _labelled([group[0] for group in groups.values()], seeds=False)
        return dict(zip(labels, groups.values(), strict=True))

    @property
    def _recipe_caveats(self) -> list[str]:
        return [
            f"{name}: {RECIPE_CAVEAT}"
            for name, run in zip(self.names, self.selected, strict=True)
            if run.recipe_selected_on_test
        ]


def seed_statistics(runs: Sequence[Run]) -> SeedStatistics:
    """The accuracies of finished runs of one recipe after the last epoch, by seed.

    Runs that repeat a seed are averaged. The sampling noise is that of the kept predictions,
    where they are of the last epoch too.
    """
    correct = [
        rows[0]
        for group in group_by_seed(runs)
        if (rows := [row for run in group if (row := _correct_last_epoch(run)) is not None])
    ]
    same_images = len({len(row) for row in correct}) == 1
    noise = significance.sampling_sd(np.stack(correct)) if same_images else None
    return SeedStatistics(seed_accuracies(runs), noise)


def _correct_last_epoch(run: Run) -> np.ndarray | None:
    """(N,) which test images the last epoch gets right; None where its predictions are not kept."""
    is_last = run.metrics.get("selected_epoch") == run.metrics.get("epochs")
    try:
        return run.evaluation.correct.numpy() if is_last and run.keeps("predictions.npz") else None
    except Exception:  # of any parser: one unreadable file does not disturb the other runs
        return None


def _recipe_row(seeds: SeedStatistics) -> dict[str, Any]:
    """n, mean, standard deviations and interval; accuracies in per cent."""
    interval = seeds.interval
    return {
        "n": len(seeds.accuracies),
        "mean (%)": 100 * seeds.mean,
        "sd": np.nan if seeds.sd is None else 100 * seeds.sd,
        "sampling sd": np.nan if seeds.sampling_sd is None else 100 * seeds.sampling_sd,
        "95 % interval": f"{100 * interval[0]:.2f} to {100 * interval[1]:.2f}" if interval else "–",
    }


def _difference_row(row: Any, test: str) -> dict[str, str]:
    """A row of `significance.COLUMNS` for a reader, in percentage points."""
    return {
        "minus the first (points)": format_points(row.difference),
        "its 95 % interval": f"{format_points(row.low)} to {format_points(row.high)}",
        "p": format_p_value(row.p),
        "test": test,
        "result": "distinguishable" if row.significant else "not distinguishable",
    }


def _with_notes(
    table: pd.DataFrame, runs: Mapping[str, Run], *, last_epoch: bool = False
) -> pd.DataFrame:
    """The table, – for no text, and a column of caveats where there is one.

    `last_epoch`: its accuracies are those of the last epoch, whatever the runs select.
    """
    notes = {}
    for name, run in runs.items():
        selected = _is_selected_on_test(run) and not last_epoch
        caveats = [SELECTED_ON_TEST.capitalize()] if selected else []
        caveats += [RECIPE_CAVEAT] if run.recipe_selected_on_test else []
        if changes := _changes(run):
            caveats.append(f"Not the variant's file: {shorten_line(', '.join(changes), 120)}.")
        if caveats:
            notes[name] = " ".join(caveats)
    if notes:
        table = table.assign(note=pd.Series(notes))
    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    return table.fillna(dict.fromkeys(texts, "–"))


def _is_selected_on_test(run: Run) -> bool:
    return run.experiment.recipe.select == "best_test" and not run.is_imported


def _prediction(evaluation: Evaluation, image: Tensor) -> str:
    name = evaluation.classes[evaluation.predictions[image]]
    return f"{name} {format_confidence(evaluation.confidences[image])}"


def compare_runs(
    first: str | Path | None = None,
    second: str | Path | None = None,
    *,
    dataset: str | None = None,
    output_root: str | Path | None = None,
    data_root: str | Path | None = None,
) -> RunPair:
    """Two finished runs, side by side, and all others on the same test images.

    Args:
        first: what `find_run` takes: a run folder, `variant/folder-name` or a variant. If neither
            this nor `second` is given, it is the run that `find_run` chooses.
        second: the same. Of the two, one that is not given is the newest other run on the same
            test images, if possible of another recipe. Two variants are compared on a data set that
            both have runs on, where the newest of each are on different ones.
        dataset: compare only runs on this data set; a folder on another one is refused.
        output_root: folder of the user's runs; `outputs/` by default.
        data_root: folder to look for the test images in before the usual ones.

    Raises `RunError` for runs that cannot be compared and `ConfigError` when no run fits.
    """
    if dataset is not None:
        check_dataset_name(dataset)
    places = {"output_root": output_root, "needs": "predictions"}
    known = finished_runs(dataset=dataset, imported=True, **places)
    one = None if first is None else find_run(first, dataset=dataset, **places)
    other = None
    if second is not None:
        same = dataset if one is None else one.record["dataset"]
        exclude = [one] if one else []
        try:
            other = find_run(second, dataset=same, exclude=exclude, **places)
        except ConfigError:
            if one is None or dataset is not None:
                raise
            other = find_run(second, exclude=exclude, **places)
        if one is not None and (other.record["dataset"] != same or _same_folder(one, other)):
            with suppress(ConfigError):  # where `first` is a variant with such a run
                one = find_run(first, dataset=other.record["dataset"], exclude=[other], **places)
    if one is None:
        one = _partner(other, known) if other else find_run(dataset=dataset, **places)
    other = other or _partner(one, known)
    if _same_folder(one, other):
        raise RunError(f"{display_path(one.path)} is chosen twice; choose another run beside it")
    others = [
        run
        for run in known
        if _same_test_set(run, one) and not _same_folder(run, one) and not _same_folder(run, other)
    ]
    runs = _labelled([one, other, *others])
    first_label, second_label, *_ = runs
    pair = RunPair((first_label, second_label), runs, data_root)
    pair.comparison  # noqa: B018  refuses here what cannot be compared
    return pair


def _partner(run: Run, known: Sequence[Run]) -> Run:
    """Another recipe's newest run on the same test images, else that of another seed."""
    others = [
        other
        for other in known
        if _same_test_set(other, run)
        and not other.is_imported
        and (run.is_imported or other.record["experiment"] != run.record["experiment"])
    ]
    others.sort(key=lambda other: _recipe(other) == _recipe(run))
    if others:
        return others[0]
    raise RunError(
        f"{display_path(run.path)} needs another finished run on {run.record['dataset']} beside "
        "it: train one with run_experiment.ipynb, for example with another seed"
    )


def _same_test_set(run: Run, other: Run) -> bool:
    return run.record["dataset_checksums"] == other.record["dataset_checksums"]


def _same_folder(run: Run, other: Run) -> bool:
    return real_path(run.path) == real_path(other.path)


def _recipe(run: Run) -> str:
    """What runs that differ only in their seed have in common; imported weights have their own."""
    if run.is_imported:
        return run.origin
    return run.experiment.digest_without_seed


def _labelled(runs: list[Run], *, seeds: bool = True) -> dict[str, Run]:
    """Each run under the shortest of its candidate labels that no other shares.

    Changes that all runs of a variant have in common are left out; the tables note them.
    """
    changes = [_changes(run) for run in runs]
    common: dict[str, set[str]] = {}
    for run, changed in zip(runs, changes, strict=True):
        variant = run.record["variant"]
        common[variant] = common.get(variant, set(changed)) & set(changed)
    candidates = [
        _label_candidates(
            run, [c for c in changed if c not in common[run.record["variant"]]], seeds
        )
        for run, changed in zip(runs, changes, strict=True)
    ]
    shares = [Counter(column) for column in zip(*candidates, strict=True)]
    return {
        next(name for name, share in zip(names, shares, strict=True) if share[name] == 1): run
        for names, run in zip(candidates, runs, strict=True)
    }


def _label_candidates(run: Run, own: list[str], seeds: bool) -> list[str]:
    """Labels of a run, shortest first: variant and seed, with its own changes, folder, path."""
    variant = run.record["variant"]
    short = f"{variant} {run.origin}" if seeds or run.is_imported else variant
    long, folder = ", ".join([short, *own]), f"{variant} {run.path.name}"
    return [short, long if len(long) <= LABEL_LENGTH else folder, folder, display_path(run.path)]


def _changes(run: Run) -> list[str]:
    """What a run changes of its variant's file, such as `lr 0.05`; an import the network."""
    changed = changed_settings(run.experiment, read_variant(run.record["variant"]))
    return [
        f"{path.rpartition('.')[2]} {value}"
        for path, value in changed.items()
        if path.startswith("architecture.") or not run.is_imported
    ]
