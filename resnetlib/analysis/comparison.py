"""Two runs compared: whether they differ, and on which images."""

import io
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from pandas.io.formats.style import Styler
from torch import Tensor

from ..data import Split, load_dataset
from ..errors import ConfigError, RunError, UserError, closest_match
from ..evaluation import Evaluation
from ..paths import display_path, output_folder
from ..plots.tables import format_table
from ..progress import is_interactive
from ..runs.find import find_runs, reference_runs, split_unreadable
from ..runs.run import Run, load_run
from . import significance
from .significance import format_p_value, format_points

SHOWN_IMAGES = 16  # of each kind: two rows
LABEL_LENGTH = 60  # characters; a longer one gives way to the folder's name
TEXT_WIDTH = 96  # characters, as in a notebook's output on a laptop


@dataclass(frozen=True)
class RunPair:
    """Two finished runs on one test set; `runs` are all that were found, by their labels."""

    names: tuple[str, str]
    runs: Mapping[str, Run]
    data_root: str | None = None

    @property
    def selected(self) -> tuple[Run, Run]:
        return self.runs[self.names[0]], self.runs[self.names[1]]

    @cached_property
    def comparison(self) -> significance.Comparison:
        """Raises `RunError` for one network twice and for different test sets."""
        first, second = self.selected
        if first is second:
            raise RunError(f"{self.names[0]} is chosen twice; choose another run beside it")
        try:
            return significance.compare_predictions(first.evaluation, second.evaluation, self.names)
        except ValueError as error:
            names = " and ".join(self.names)
            raise RunError(f"{names} cannot be compared: {error}") from None

    @property
    def verdict(self) -> str:
        """Whether the networks can be told apart, and what that does not say."""
        lines = [self.comparison.verdict]
        if self._one_recipe:
            lines.append(
                "Both come from one recipe: what separates them is the chance of training, such as "
                "the seed, and not a better design."
            )
        else:
            lines.append("This is about these two networks; for their recipes, see the seeds.")
        lines += [
            f"{name} was selected on this very test set: its accuracy flatters it."
            for name, run in zip(self.names, self.selected, strict=True)
            if run.experiment.recipe.select == "best_test"
        ]
        return "\n".join(lines)

    @property
    def counts(self) -> dict[str, str]:
        """Images by who gets them right, for reading."""
        told, (first, second) = self.comparison, self.names
        accuracies = zip(self.names, told.accuracies, strict=True)
        return {
            "test images": f"{told.images:,}",
            **{f"accuracy of {name}": f"{100 * value:.2f} %" for name, value in accuracies},
            "both right": f"{told.both:,}",
            f"only {first} right": f"{told.only_first:,}",
            f"only {second} right": f"{told.only_second:,}",
            "both wrong": f"{told.neither:,}",
        }

    @property
    def histories(self) -> dict[str, pd.DataFrame]:
        """By label, for curves.

        With no-break spaces: `overlaid_curves` draws alike what differs in ` seed 1` alone, and
        here the two are to be told apart.
        """
        labels = [
            name.replace(" seed ", "\N{NO-BREAK SPACE}seed\N{NO-BREAK SPACE}")
            for name in self.names
        ]
        return dict(zip(labels, (run.history for run in self.selected), strict=True))

    @property
    def confusions(self) -> tuple[np.ndarray, np.ndarray]:
        first, second = self.selected
        return first.evaluation.confusion, second.evaluation.confusion

    @property
    def classes(self) -> tuple[str, ...]:
        return self.selected[0].evaluation.classes

    def only_correct(self, name: str) -> tuple[Tensor, list[str], str]:
        """Images that this one gets right and the other wrong: the arguments of `image_grid`.

        First those that both are surest of; captions give the true class, then both predictions.
        Raises `RunError` when the test images at hand are others.
        """
        other = self.names[name == self.names[0]]
        right, wrong = self.runs[name].evaluation, self.runs[other].evaluation
        images, labels = _test_images(self.selected[0].record["dataset"], self.data_root)
        if not torch.equal(labels, right.labels):
            raise RunError(f"the test images at hand are not those that {name} was tested on")
        found = (right.correct & ~wrong.correct).nonzero().flatten()
        surest = torch.minimum(right.confidences, wrong.confidences)[found]
        chosen = found[surest.argsort(descending=True, stable=True)][:SHOWN_IMAGES]
        captions = [
            f"{self.classes[labels[i]]}\n✓ {_guess(right, i)}\n✗ {_guess(wrong, i)}" for i in chosen
        ]
        sides = f"✓ {name} right, ✗ {other} wrong"
        count = f"{len(chosen)} of {len(found):,} images, where both are surest"
        return images[chosen], captions, f"{sides}: {count if len(found) else 'no image'}"

    @property
    def recipes(self) -> str:
        """Whether one recipe is better than the other, over the seeds that were run."""
        names = [re.sub(r" seed \d+", "", name) for name in self.names]
        first, second = (self._seeds(run) for run in self.selected)
        if self._one_recipe:
            return (
                f"Both are of one recipe: {names[0]}, {significance.format_seeds(first)} over "
                "its seeds. Another training of it would give another figure of this spread."
            )
        return significance.compare_seeds(first, second, tuple(names)).verdict

    @cached_property
    def differences(self) -> pd.DataFrame:
        """Every other run on these test images minus the first, best first.

        The columns of `significance.compare_to_reference`, fractions of 1, and `variant`.
        """
        first = self.selected[0]
        others = {label: run for label, run in self._comparable.items() if run is not first}
        table = significance.compare_to_reference(
            first.evaluation, {label: run.evaluation for label, run in others.items()}
        )
        table["variant"] = [others[label].record["variant"] for label in table.index]
        return table.sort_values("difference", ascending=False)

    @property
    def table(self) -> Styler:
        """Every run on these test images: accuracy in per cent, size, difference from the first."""
        rows = pd.DataFrame.from_dict(
            {
                label: {
                    "accuracy (%)": 100 * run.evaluation.accuracy,
                    "parameters": run.metrics["parameters"],
                    "MACs": run.metrics["macs"],
                }
                for label, run in self._comparable.items()
            },
            orient="index",
        ).sort_values("accuracy (%)", ascending=False)
        rows = rows.astype({"parameters": int, "MACs": int})
        differences = self.differences
        told = [
            (
                format_points(row.difference),
                f"{format_points(row.low)} to {format_points(row.high)}",
                format_p_value(row.p),
            )
            for row in differences.itertuples()
        ]
        columns = ["minus the first (points)", "95 % interval", "p (Holm)"]
        rows = rows.join(pd.DataFrame(told, index=differences.index, columns=columns, dtype=object))
        return format_table(rows, precision=2)

    @property
    def _comparable(self) -> dict[str, Run]:
        """The runs on the test images of the first."""
        data = self.selected[0].record["dataset_checksums"]
        return {
            label: run
            for label, run in self.runs.items()
            if run.record["dataset_checksums"] == data
        }

    @property
    def _one_recipe(self) -> bool:
        first, second = self.selected
        return _recipe(first) == _recipe(second)

    def _seeds(self, of: Run) -> list[float]:
        """The test accuracy after the last epoch, of each seed of the recipe of a run."""
        seeds = {
            run.record["seed"]: run.metrics["test_accuracy"]
            for run in self.runs.values()
            if _recipe(run) == _recipe(of)
        }
        return [seeds[seed] for seed in sorted(seeds)]


def _guess(evaluation: Evaluation, image: Tensor) -> str:
    name = evaluation.classes[evaluation.predictions[image]]
    return f"{name} {100 * evaluation.confidences[image]:.0f} %"


class Selection:
    """A pair that can be changed; everything that `show` has displayed follows it.

    In a notebook before a person, the selection displays two lists to choose from.
    """

    def __init__(
        self, runs: Mapping[str, Run], first: str, second: str, data_root: str | None = None
    ):
        self.runs = dict(runs)
        self.data_root = data_root
        self.pair = RunPair((first, second), self.runs, data_root)
        self._shown: dict[Any, tuple[Any, Callable[[RunPair], Any]]] = {}
        self._state: Any = None  # a label beside the lists, once there are any

    def choose(self, first: str | None = None, second: str | None = None) -> None:
        """Another pair, by labels, run folders or variants; what is shown follows."""
        names = tuple(
            old if new is None else find_label(self.runs, new)
            for old, new in zip(self.pair.names, (first, second), strict=True)
        )
        self._change(names)

    def _change(self, names: tuple[str, str]) -> None:
        if names == self.pair.names:
            return
        self.pair = RunPair(names, self.runs, self.data_root)
        if self._state is not None:
            self._state.value = "drawing …"
            for box, name in zip(self.lists, names, strict=True):
                box.value = name if name in box.options else None
        for handle, draw in self._shown.values():
            handle.update(self._drawn(draw))
        if self._state is not None:
            self._state.value = ""

    def show(self, draw: Callable[[RunPair], Any]) -> None:
        """Display what `draw` makes of the pair: text, a table, or a figure's axes.

        A cell that is run again takes the place of its earlier display.
        """
        from IPython.display import display

        handle = display(_displayable(draw(self.pair)), display_id=True)
        self._shown[getattr(draw, "__code__", draw)] = handle, draw

    def _drawn(self, draw: Callable[[RunPair], Any]) -> Any:
        """With the reason in its place where two runs cannot be compared."""
        try:
            self.pair.comparison  # noqa: B018
            return _displayable(draw(self.pair))
        except UserError as told:
            return _displayable(str(told))

    @cached_property
    def lists(self) -> tuple[Any, Any]:
        """Two drop-down lists of all runs; changing one changes the pair."""
        import ipywidgets

        boxes = tuple(
            ipywidgets.Dropdown(
                options=list(self.runs),
                value=name,
                description=place,
                layout=ipywidgets.Layout(width="36em"),
            )
            for place, name in zip(("first", "second"), self.pair.names, strict=True)
        )
        for place, box in enumerate(boxes):
            box.observe(partial(self._follow, place), "value")
        self._state = ipywidgets.Label()
        return boxes

    def _follow(self, place: int, change: Mapping[str, Any]) -> None:
        """Another name was chosen in the list of this place."""
        if change["new"] is not None:  # None: the run is a folder that stands in no list
            names = list(self.pair.names)
            names[place] = change["new"]
            self._change(tuple(names))

    def _ipython_display_(self) -> None:
        from IPython.display import display

        if is_interactive():
            import ipywidgets

            display(ipywidgets.VBox([*self.lists, self._state]))
        else:
            print(f"{self.pair.names[0]} against {self.pair.names[1]}")


def select(
    first: str | None = None,
    second: str | None = None,
    *,
    dataset: str | None = None,
    output_root: str | None = None,
    data_root: str | None = None,
) -> Selection:
    """Two finished runs, each given as a run folder, a label, or a variant (its lowest seed).

    One that is not given is the run finished last, of another recipe than the other where there
    is one. Raises `RunError` where fewer than two can be compared, `ConfigError` for an unknown.
    """
    runs = finished_runs(output_root, dataset)
    one = first and find_label(runs, first)
    other = second and find_label(runs, second, exclude=one)
    one = one or (_partner(runs, other) if other else _newest(runs))
    other = other or (one and _partner(runs, one))
    if not (one and other):
        alone = one or other
        lacks = (
            f"other finished run to compare {alone} with"
            if alone
            else f"two finished runs of {dataset or 'one data set'}"
        )
        raise RunError(
            f"{display_path(output_folder(output_root))} holds no {lacks}: train another with "
            "run_experiment.ipynb, for instance with another seed"
        )
    selection = Selection(runs, one, other, data_root)
    selection.pair.comparison  # noqa: B018  refuses here what cannot be compared
    return selection


def finished_runs(
    output_root: str | Path | None = None, dataset: str | None = None
) -> dict[str, Run]:
    """Those with kept predictions under the output root, by labels such as `lite seed 0`."""
    readable, _ = split_unreadable(find_runs(output_folder(output_root)))
    return _labelled(
        [
            run
            for run in readable
            if run.status == "done"
            and dataset in (None, run.record["dataset"])
            and (run.path / "predictions.npz").is_file()
        ]
    )


def find_label(runs: dict[str, Run], wanted: str, exclude: str | None = None) -> str:
    """The label of the run meant by a label, a run folder (which joins `runs`) or a variant.

    Of a variant's runs, its own recipe and the lowest seed come first; `but` is not chosen. A
    variant that has none there is looked for among the recorded runs. Raises `ConfigError`.
    """
    wanted = str(wanted)
    if wanted in runs:
        return wanted
    folder = Path(wanted).expanduser()
    if (folder / "run.json").is_file():
        return _add_run(runs, load_run(folder))
    own = [label for label, run in runs.items() if run.record["variant"] == wanted]
    own = [label for label in own if label != exclude]
    if own:
        return min(own, key=lambda label: _preference(runs[label]))
    recorded = [run for run in reference_runs() if run.record["variant"] == wanted]
    if recorded and exclude is None:
        return _add_run(runs, recorded[0])
    variants = sorted({run.record["variant"] for run in runs.values()})
    raise ConfigError(
        f"{wanted!r} is no run folder, label or variant with a finished run"
        f"{closest_match(wanted, variants)}\n"
        f"There are finished runs of: {', '.join(variants) or 'none'}"
    )


def _add_run(runs: dict[str, Run], run: Run) -> str:
    if run.status != "done":
        raise RunError(f"{run.path} is {run.status}; only finished runs are compared")
    if not (run.path / "predictions.npz").is_file():
        raise RunError(f"{run.path} has no predictions.npz to compare")
    for label, known in runs.items():
        if known.path.resolve() == run.path.resolve():
            return label
    forms = _label_candidates(run, [*runs.values(), run])
    label = next(form for form in forms if form not in runs)
    runs[label] = run
    return label


def _preference(run: Run) -> tuple[bool, int]:
    changed = set(run.record["overrides"]) - {"seed", "dataset"}
    return bool(changed), run.record["seed"]


def _recipe(run: Run) -> str:
    """What two runs share that differ in nothing but their seed."""
    return run.experiment.model_copy(update={"seed": 0}).digest


def _newest_first(runs: Mapping[str, Run]) -> list[str]:
    return sorted(runs, key=lambda label: runs[label].record.get("finished", ""), reverse=True)


def _newest(runs: Mapping[str, Run]) -> str | None:
    """The run finished last of those that have another to be compared with."""
    return next((label for label in _newest_first(runs) if _partner(runs, label)), None)


def _partner(runs: Mapping[str, Run], label: str) -> str | None:
    """Another recipe's newest run on the same data, else another seed's."""
    run = runs[label]
    others = [
        other
        for other in _newest_first(runs)
        if runs[other].record["dataset"] == run.record["dataset"]
        and runs[other].record["experiment"] != run.record["experiment"]
    ]
    other_recipes = [other for other in others if _recipe(runs[other]) != _recipe(run)]
    return next(iter(other_recipes + others), None)


def _labelled(runs: list[Run]) -> dict[str, Run]:
    """Each under the shortest of its names that no other shares."""
    forms = [_label_candidates(run, runs) for run in runs]
    shares = [Counter(column) for column in zip(*forms, strict=True)]
    return {
        next(name for name, share in zip(names, shares, strict=True) if share[name] == 1): run
        for names, run in zip(forms, runs, strict=True)
    }


def _label_candidates(run: Run, runs: list[Run]) -> list[str]:
    """Names of a run, the shortest first: variant and seed, with its changes, folder, whole path.

    Changes that all runs of its variant have are not said.
    """
    variant = run.record["variant"]
    alike = [_changes(other) for other in runs if other.record["variant"] == variant]
    own = [change for change in _changes(run) if not all(change in other for other in alike)]
    short = f"{variant} seed {run.record['seed']}"
    told, folder = ", ".join([short, *own]), f"{variant} {run.path.name}"
    return [short, told if len(told) <= LABEL_LENGTH else folder, folder, display_path(run.path)]


def _changes(run: Run) -> list[str]:
    """`lr 0.05`: what a run changes of its variant's file, its seed apart."""
    return [
        f"{key.rsplit('.', 1)[-1]} {value}"
        for key, value in run.record["overrides"].items()
        if key != "seed"
    ]


@cache
def _test_images(dataset: str, data_root: str | None) -> Split:
    return load_dataset(dataset, data_root).test


class _Text(str):
    """Text as it is, without the quotation marks of a string's display."""

    def __repr__(self) -> str:
        return str(self)


def _displayable(drawn: Any) -> Any:
    """Text without quotes, a figure as its image and closed; anything else as it is."""
    if isinstance(drawn, str):
        return _Text("\n".join(textwrap.fill(line, TEXT_WIDTH) for line in drawn.splitlines()))
    axes = drawn[0] if isinstance(drawn, list) else drawn
    if not isinstance(axes, Axes):
        return drawn
    from IPython.display import Image

    buffer = io.BytesIO()
    axes.figure.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(axes.figure)
    title = axes.figure.get_suptitle() or axes.get_title()
    return Image(buffer.getvalue(), alt=title)
