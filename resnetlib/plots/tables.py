"""Tables and texts of notebooks: a pandas Styler or Markdown from plain data."""

import math
import statistics
from collections.abc import Mapping

import pandas as pd
from pandas.io.formats.style import Styler

from ..errors import counted
from ..experiment import NOT_RECIPE, Experiment
from ..runs.find import reference_runs
from ..runs.run import RECIPE_CAVEAT, seed_accuracies
from ..schema import NUM_CLASSES

_LEFT = [{"selector": "th, td", "props": "text-align: left"}]
_RIGHT = [{"selector": "th.col_heading, td", "props": "text-align: right"}]


def format_facts(content: Mapping[str, str]) -> Styler:
    """Names and values in two columns; no text is shortened."""
    frame = pd.DataFrame({"": content.values()}, index=list(content))
    return frame.style.format(escape="html").hide(axis="columns").set_table_styles(_LEFT)


def format_table(frame: pd.DataFrame, precision: int = 3) -> Styler:
    """A table of numbers: right-aligned, thousands separated, one precision; – for no value."""
    return (
        frame.style.format(precision=precision, thousands=",", na_rep="–", escape="html")
        .format_index(escape="html")
        .set_table_styles(_RIGHT)
    )


def expectations(experiment: Experiment) -> dict[str, str]:
    """What the curves should start at, and where this variant ended for its authors and here."""
    published = experiment.published_for_dataset.claim
    facts = {
        "loss before training": f"about ln {NUM_CLASSES} = {math.log(NUM_CLASSES):.3f} nats: all "
        f"{NUM_CLASSES} classes are about equally likely",
        "accuracy before training": f"about {1 / NUM_CLASSES:.0%}: random guesses",
        "published test accuracy": "none" if published is None else _claim(*published),
        "recorded test accuracy": _recorded(experiment),
    }
    if changed := experiment.overrides.keys() - NOT_RECIPE:
        names = ", ".join(sorted(changed))
        facts["changed here"] = f"{names}: the accuracy may end elsewhere"
    return facts


def _claim(accuracy: float, kind: str) -> str:
    return f"{accuracy:.2%}" if kind == "test" else f"{accuracy:.2%} ({kind})"


def _recorded(experiment: Experiment) -> str:
    """The mean of the recorded runs of the variant's own recipe, with its spread over seeds."""
    runs = [
        run
        for run in reference_runs()
        if run.record["variant"] == experiment.variant
        and run.record["dataset"] == experiment.dataset
        and run.has_own_recipe
    ]
    if not runs:
        return "none"
    accuracies = seed_accuracies(runs)
    count = counted(len(accuracies), "seed")
    spread = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    caveat = f". {RECIPE_CAVEAT}" if runs[0].recipe_selected_on_test else ""
    return f"{100 * statistics.fmean(accuracies):.2f}{spread} % ({count}){caveat}"


def explain_losses(experiment: Experiment) -> str:
    """How the training loss of this experiment differs from its test loss, as Markdown."""
    recipe, network = experiment.recipe, experiment.architecture
    reasons = ["it is the mean over an epoch in which the weights still change"]
    if recipe.augment:
        names = ", ".join(recipe.augmentations)
        reasons.append(f"its images are augmented ({names}), which makes them harder")
    if {"mixup", "cutmix"} & set(recipe.augmentations):
        reasons.append(
            "the targets of mixed images are shared between two classes, so that even perfect "
            "predictions have a cost"
        )
    if recipe.label_smoothing:
        smoothing = recipe.label_smoothing
        reasons.append(
            f"its targets are smoothed: the true class gets {_true_share(smoothing):.3g} instead "
            f"of 1, each other class {smoothing / NUM_CLASSES:.3g}. Even perfect predictions "
            f"cost {_smallest_loss(smoothing):.3f} nats"
        )
    if network.dropout or network.head_dropout or network.stochastic_depth:
        reasons.append("parts of the network are left out at random (dropout, stochastic depth)")
    if recipe.ema:
        reasons.append("it is that of the weights in training, the test loss that of their average")
    listed = "\n".join(f"- {reason}." for reason in reasons)
    return f"The training loss is not measured as the test loss is:\n\n{listed}"


def _true_share(smoothing: float) -> float:
    return 1 - smoothing + smoothing / NUM_CLASSES


def _smallest_loss(smoothing: float) -> float:
    """The entropy of a smoothed target, in nats: the least that a smoothed loss can be."""
    shares = [_true_share(smoothing)] + [smoothing / NUM_CLASSES] * (NUM_CLASSES - 1)
    return -sum(share * math.log(share) for share in shares)
