"""Import weights that were trained elsewhere: match them to a variant, evaluate and keep them.

The result is a run folder with status `imported`. It has no history, and the recipe in its
`experiment.yaml` is the variant's, except `normalize`: how the weights were trained is not known.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import files
from ..config import apply_overrides, load_experiment
from ..data import Dataset, Split, load_dataset, normalization
from ..device import cpu_threads, resolve_device_settings
from ..errors import ConfigError, DataError, printable
from ..evaluation import Evaluation, evaluate
from ..experiment import Experiment
from ..paths import display_path, expand_home, output_folder
from ..resnet import build_model, trained_fixed_weights
from ..size import check_size, measure_size, model_summary
from .artifacts import imported_metrics, write_evaluation, write_figures
from .lifecycle import check_folder, start_over
from .matching import COUNTERS, IN_ORDER, match_weights, read_weights
from .record import artifact_checksums, make_folder, new_record, now, write_record
from .run import Run, load_run

NORMALIZATIONS = ("dataset", "per_image_std", "imagenet", "none")  # tried if none is given
# Training images on which they are tried: the lowest loss wins. Even on 2,000 it is clear: 0.0075
# for `resnet20.th` with its own and 0.0101 with the next, 0.093 and 0.106 for the recorded `lite`.
TRIAL_IMAGES = 5_000
LEAST_ACCURACY = 0.5  # on training images, of weights that were matched in order


def import_weights(
    file: str | Path,
    variant: str | Experiment,
    *,
    normalize: str | Mapping[str, Any] | None = None,
) -> Run:
    """Evaluate weights that were trained elsewhere; keep them as a run with status `imported`.

    The folder is `<output root>/<variant>/<data set>-imported-<hash8>`, where `hash8` begins the
    file's SHA-256. An earlier import of the same file is replaced.

    Args:
        file: safetensors, or what `torch.save` wrote, see `read_weights`. Its code never runs.
        variant: a variant, or an experiment for other settings. Its network must fit as a whole.
        normalize: a value of `recipe.normalize`, by which images are normalised. If it is not
            given, nor the experiment's another than the variant's own, each of `NORMALIZATIONS` is
            tried on training images.

    Raises `ConfigError` for a bad argument, and `DataError` for a file that cannot be read or does
    not fit.
    """
    path = expand_home(file)
    if not path.is_file():
        raise ConfigError(f"no such file: {display_path(path)}")
    experiment = variant if isinstance(variant, Experiment) else load_experiment(variant)
    if normalize is not None:
        experiment = apply_overrides(experiment, {"recipe.normalize": normalize})
    is_given = normalize is not None or "recipe.normalize" in experiment.overrides
    candidates = (
        [experiment]
        if is_given
        else [apply_overrides(experiment, {"recipe.normalize": name}) for name in NORMALIZATIONS]
    )
    check_size(experiment)
    settings = resolve_device_settings(experiment)
    settings = replace(settings, precision=torch.float32, compiled=False)
    model = build_model(experiment.architecture)
    method = _load(model, path, experiment.variant)
    checksum = files.sha256(path)
    root = output_folder(experiment.execution.output_root)
    folder = root / experiment.variant / f"{experiment.dataset}-imported-{checksum[:8]}"
    _check_folder(folder, root)
    dataset = load_dataset(experiment.dataset, experiment.execution.data_root)
    settings.place(model)
    with cpu_threads(settings.threads):
        images, labels = (part[:TRIAL_IMAGES] for part in dataset.train)
        trials = [_evaluate(model, one, dataset, (images, labels)) for one in candidates]
        trial, experiment = min(zip(trials, candidates, strict=True), key=lambda pair: pair[0].loss)
        if method == IN_ORDER and trial.accuracy < LEAST_ACCURACY:
            raise DataError(
                f"{display_path(path)} is refused: its tensors fit {experiment.variant} in order, "
                f"but not by name, and only {trial.accuracy:.1%} of {len(labels):,} training "
                "images are correct, so it is another network"
            )
        evaluation = _evaluate(model, experiment, dataset, dataset.test)
    source = {
        "file": printable(path.name),
        "sha256": checksum,
        "matched": method,
        "normalize_given": is_given,
        "training_images": len(labels),
        "trials": [
            {
                "normalize": one.model_dump(mode="json")["recipe"]["normalize"],
                "accuracy": tried.accuracy,
                "loss": tried.loss,
            }
            for one, tried in zip(candidates, trials, strict=True)
        ],
    }
    record = new_record(experiment, dataset, settings) | {"source": source}
    _write(folder, record, experiment, dataset, model, evaluation)
    return load_run(folder)


def _check_folder(folder: Path, root: Path) -> None:
    """Raise `ConfigError` where the folder holds other files than those of an import."""
    check_folder(folder, root)
    if (folder / "run.json").is_file() and "source" not in load_run(folder).record:
        raise ConfigError(f"{display_path(folder)} holds another run; name another output_root")


def _load(model: nn.Module, path: Path, variant: str) -> str:
    """Load the weights of a file into the network; how they were matched."""
    state = model.state_dict()
    counters = {name: value for name, value in state.items() if name.endswith(COUNTERS)}
    network = {name: value for name, value in state.items() if name not in counters}
    weights = read_weights(path)
    try:
        matched, method = match_weights(weights, network)
    except DataError as error:
        raise DataError(f"{display_path(path)} does not fit {variant}: {error}") from None
    model.load_state_dict(matched | counters)
    if trained := trained_fixed_weights(model):
        reason = f"it has trained {trained}, which the variant fixes and does not count"
        raise DataError(f"{display_path(path)} does not fit {variant}: {reason}")
    return method


def _evaluate(
    model: nn.Module, experiment: Experiment, dataset: Dataset, split: Split
) -> Evaluation:
    mean, std = normalization(experiment.recipe, dataset)
    evaluation = evaluate(model, *split, mean=mean, std=std)
    if not evaluation.logits.isfinite().all():
        raise DataError(f"the weights give {experiment.variant} outputs that are not finite")
    return replace(evaluation, classes=dataset.classes)


def _write(
    folder: Path,
    record: dict[str, Any],
    experiment: Experiment,
    dataset: Dataset,
    model: nn.Module,
    evaluation: Evaluation,
) -> None:
    """Write the run folder; `run.json` says `imported` only once everything is there.

    Args:
        folder: the run folder; what an earlier import left is replaced.
        record: the content of `run.json`.
        experiment: the variant with the normalisation of the weights.
        dataset: that they were evaluated on.
        model: with the weights.
        evaluation: on the test set.
    """
    metrics = imported_metrics(experiment, evaluation)
    metrics |= asdict(measure_size(experiment.architecture))
    make_folder(folder)
    with files.lock(folder / ".lock"):
        start_over(folder, record)
        files.write_text(folder / "experiment.yaml", experiment.to_yaml())
        files.write_text(folder / "summary.txt", model_summary(model) + "\n")
        write_evaluation(folder, model, evaluation, metrics)
        write_figures(folder / "figures", None, evaluation, dataset.test[0], experiment)
        artifacts = artifact_checksums(folder)
        write_record(
            folder, record | {"status": "imported", "finished": now(), "artifacts": artifacts}
        )


def describe_source(run: Run) -> dict[str, str]:
    """Where imported weights are from, how they were matched and normalised, for reading."""
    source = run.record["source"]
    trials = sorted(source["trials"], key=lambda trial: trial["loss"])
    images, best = f"{source['training_images']:,} training images", trials[0]
    losses = ", ".join(f"{trial['normalize']} {trial['loss']:.4f}" for trial in trials)
    reason = "as given" if source["normalize_given"] else f"lowest loss on {images} ({losses})"
    low = ": low, so check variant and normalisation" if best["accuracy"] < LEAST_ACCURACY else ""
    return {
        "imported from": f"{printable(source['file'])} (SHA-256 {source['sha256'][:16]}…)",
        "tensors matched": source["matched"],
        "normalize": f"{best['normalize']}: {reason}",
        "training accuracy": f"{best['accuracy']:.2%} of the first {images}{low}",
    }
