"""Which run is looked at, and how its network is asked: what `analyze_errors` begins with."""

from pathlib import Path
from typing import Any

from torch import nn

from .compute import EVALUATION_BATCH, choose_compute
from .config import PROJECT, ConfigError, Experiment, default_output_root, shown
from .corruptions import CORRUPTIONS, STRENGTHS
from .data import Dataset, normalization, split_holdout
from .evaluate import Evaluation, evaluate
from .resnet import macs
from .runs import Run, RunError, load_run, reference_runs

WEIGHTS = "model.safetensors"
# Multiply-accumulates that the damaged images may take unless their number is given: a minute of
# one core, where `lite` computes 4e10 a second.
MACS = 2.5e12
FEWEST_IMAGES = 1000  # an accuracy of 80 % is then known to ±2.5 points


def choose_run(run: str | None = None, output_root: str | None = None) -> Run:
    """The run of this folder; without one the newest finished run with weights.

    That is looked for under `output_root` (`outputs` unless given); where there is none, it is
    the recorded `lite` of seed 0. A folder may be said from the working directory or from the
    project. Raises `RunError` where there is no run, or none with weights.
    """
    root = Path(output_root).expanduser() if output_root else default_output_root()
    under_root = [load_run(path.parent) for path in root.glob("*/*/run.json")]
    finished = [found for found in under_root if found.status == "done" and _weights(found)]
    recorded = [found for found in reference_runs() if _weights(found)]
    if run is None:
        lite = [found for found in recorded if found.record["variant"] == "lite"]
        newest = sorted(finished, key=lambda found: found.record["finished"])
        if not (lite or newest):
            raise RunError(f"no finished run with weights under {shown(root)}; train one first")
        return (lite[:1] + newest)[-1]
    folder = Path(run).expanduser()
    folder = folder if folder.exists() else PROJECT / folder
    known = ", ".join(shown(found.path) for found in finished + recorded) or "none"
    if not (folder / "run.json").is_file():
        raise RunError(f"run = {run!r}: no run folder, it has no run.json; with weights: {known}")
    chosen = load_run(folder)
    if not _weights(chosen):
        present = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise RunError(
            f"run = {run!r} ({chosen.status}) has no {WEIGHTS}, only {present}; "
            f"with weights: {known}"
        )
    return chosen


def _weights(run: Run) -> bool:
    return (run.path / WEIGHTS).is_file()


def evaluation_settings(experiment: Experiment, data: Dataset) -> dict[str, Any]:
    """The keywords of `evaluate` as the experiment's training had them."""
    device = choose_compute(experiment).device
    mean, std = normalization(experiment.recipe, data)
    return {
        "mean": mean,
        "std": std,
        "batch_size": EVALUATION_BATCH[device.type],
        "device": device,
    }


def held_out(run: Run, model: nn.Module, data: Dataset, **settings: Any) -> Evaluation | None:
    """The network on the training images that the run held out; None where it held out none."""
    experiment = run.experiment
    if not experiment.recipe.holdout:
        return None
    images, labels = data.train
    _, places = split_holdout(labels, experiment.recipe.holdout, experiment.seed)
    return evaluate(model, images[places], labels[places], **settings)


def images_to_damage(wanted: int | None, model: nn.Module, available: int) -> int:
    """How many test images `robustness` is to use: what is wanted, or else affordable.

    Affordable are all of a small network's, fewer of a large one's, never less than 1,000.
    Raises `ConfigError` for a number that cannot be.
    """
    if wanted is None:
        settings = len(CORRUPTIONS) * len(STRENGTHS)
        affordable = int(MACS / (settings * macs(model)) // 100) * 100
        return min(available, max(FEWEST_IMAGES, affordable))
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= available:
        raise ConfigError(f"images = {wanted!r}: give a whole number from 1 to {available:,}")
    return wanted
