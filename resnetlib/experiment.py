"""Variant, Experiment and Execution: the models of what is run, and the digest of an experiment.

A *variant* is a network with the recipe that trains it, one file `params/<variant>.yaml`.
An *experiment* is a variant with every override applied: complete and checked.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    field_validator,
    model_validator,
)

from .errors import shorten
from .paths import output_folder
from .schema import (
    NUM_CLASSES,
    Architecture,
    Count,
    Exponential,
    Model,
    OneCycle,
    Recipe,
    StepDecay,
    UnitInterval,
)
from .yaml_core import write_yaml

DEFAULT_BUDGET = 5_000_000  # trainable parameters; the rule every team works under
# Kinds of accuracy that a source claims for new images, the most telling first: which is published.
# `test` is of the last epoch, or of one that the source does not name.
CLAIM_KINDS = {
    "test": "test_accuracy",
    "best on test": "best_test_accuracy",
    "validation": "validation_accuracy",
    "competition": "competition_accuracy",
}
TRAINING_IMAGES = {"cifar10": 50_000, "digits": 1_347}
# Overrides that leave a variant's own recipe what it is.
NOT_RECIPE = {"seed", "dataset", "budget"}


SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
LONGEST = 10_000 * SECONDS["d"]


def parse_duration(text: str) -> float:
    """Seconds of a time such as `90m`, `11h` or `1h30m`. Raises `ValueError`."""
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])+", text):
        raise ValueError("give a time with its unit, such as 90m, 11h or 1h30m")
    total = sum(float(n) * SECONDS[unit] for n, unit in re.findall(r"([\d.]+)([dhms])", text))
    if total > LONGEST:
        raise ValueError("give a time of at most 10,000 days")
    return total


def _check_duration(value: Any) -> Any:
    if value is not None:
        parse_duration(str(value))
    return value


def _check_device(name: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,2}))?", name):
        raise ValueError("give auto, cpu, mps, cuda, or the number of a card, such as cuda:1")
    return name


class Published(Model):
    """What the authors reported."""

    parameters: Count | None = None  # trainable parameters; must equal the network's
    train_accuracy: UnitInterval | None = None  # after the last epoch, as a fraction of 1
    # After the last epoch, or an unstated one; as a fraction of 1
    test_accuracy: UnitInterval | None = None
    best_test_accuracy: UnitInterval | None = None  # of the epoch best on the test set
    validation_accuracy: UnitInterval | None = None  # of held-out training images
    competition_accuracy: UnitInterval | None = None  # of the hidden test set of the class
    train_loss: NonNegativeFloat | None = None  # cross-entropy in nats
    test_loss: NonNegativeFloat | None = None  # cross-entropy in nats

    @property
    def claim(self) -> tuple[float, str] | None:
        """The accuracy claimed for new images and its kind, a key of `CLAIM_KINDS`."""
        values = ((getattr(self, name), kind) for kind, name in CLAIM_KINDS.items())
        return next(((value, kind) for value, kind in values if value is not None), None)


class Execution(Model):
    """Where and how a run is carried out; not part of the experiment and its digest."""

    # Where to compute; auto: CUDA, else MPS if a step there agrees with the CPU's, else the CPU
    device: Annotated[str, AfterValidator(_check_device)] = "auto"
    # Of the arithmetic in the network; float16 with a scaled loss
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Layout of images and weights
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    compile: bool | Literal["auto"] = "auto"  # with torch.compile; auto: where it saves time
    threads: Annotated[int, Field(ge=1, le=1024)] | Literal["auto"] = "auto"  # threads on the CPU
    data_root: Path | None = None  # folder searched for data before the usual ones
    output_root: Path | None = None  # folder for run folders; outputs/ unless given
    fresh: bool = False  # start over and remove the earlier results of this run
    keep_checkpoints: bool = False  # keep the last checkpoints of a finished run
    allow_inexact_resume: bool = False  # resume although the machine or software differs
    # Time such as 90m, 11h or 1h30m after which the run is saved and stops, with exit code 4; more
    # than an evaluation takes, since one that is cut short begins again
    stop_after: Annotated[str | None, BeforeValidator(_check_duration)] = None

    @field_validator("data_root", "output_root", mode="before")
    @classmethod
    def _named_path(cls, path: Any) -> Any:
        if isinstance(path, str) and not path.strip():
            raise ValueError("give a folder, such as . for this one")
        is_number = isinstance(path, int) and not isinstance(path, bool)  # as papermill reads 2024
        return str(path) if is_number else path

    @field_validator("data_root", "output_root")
    @classmethod
    def _usable_path(cls, path: Path | None) -> Path | None:
        if path is None:
            return None
        if "\0" in str(path):
            raise ValueError("a path has no NUL characters")
        try:
            str(path.expanduser()).encode()  # notebooks and scripts name it
        except UnicodeEncodeError:
            raise ValueError("a path cannot have these characters") from None
        except RuntimeError:
            raise ValueError(f"there is no user {path.parts[0][1:]!r}") from None
        return path


class Variant(Model):
    """One file of `params/`."""

    # Name of the file without `.yaml`; `class/` before it for a file of `params/class/`
    variant: Annotated[str, Field(pattern=r"^(class/)?[A-Za-z0-9][A-Za-z0-9_-]{0,99}$")]
    title: str  # the network in a few words
    source: str  # where every published figure comes from
    budget: Count | Literal["none"] = DEFAULT_BUDGET  # most trainable parameters allowed
    architecture: Architecture  # the network
    recipe: Recipe  # everything about training
    assumed: tuple[str, ...] = ()  # keys of the recipe that the source leaves open
    published: Published = Published()  # what the source reports
    # Whether a choice in the recipe was made knowing a test accuracy; its results are then
    # optimistically biased, which is stated beside them
    recipe_selected_on_test: bool = False
    # Recipes that the file had before: in quotes the hash in the name of a CIFAR-10 run folder with
    # seed 0.
    # Their runs remain runs of the variant, and are listed with what differs from today's file
    earlier_recipes: tuple[Annotated[str, Field(pattern="^[0-9a-f]{8}$")], ...] = ()

    @model_validator(mode="after")
    def _assumed_exists(self) -> Self:
        paths = dotted_paths({"recipe": self.recipe.model_dump()})
        for name in self.assumed:
            if not matching_paths(name, paths):
                raise ValueError(f"assumed names {name!r}, which is not a key of the recipe")
        return self


class Experiment(Variant):
    """A variant with every override applied; the one argument of `train`."""

    dataset: Literal["cifar10", "digits"] = "cifar10"  # digits: scikit-learn's, for a quick trial
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0  # of weights, order of images, augmentation
    overrides: dict[str, Any] = Field(default={})  # keys that were given other values
    execution: Execution = Execution()  # where and how it is carried out

    @property
    def has_own_network(self) -> bool:
        """Whether no override changes the variant's network."""
        return not any(path.startswith("architecture.") for path in self.overrides)

    def __hash__(self) -> int:
        return hash(self.digest)

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the outcome: variant, network, recipe, data set, seed.

        Default values are left out, so that a key added in a later version does not change the
        digests of earlier experiments.
        """
        content = self.model_dump(
            mode="json",
            include={"variant", "architecture", "recipe", "dataset", "seed"},
            exclude_defaults=True,
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def digest_without_seed(self) -> str:
        """The digest that runs of one experiment with different seeds have in common."""
        return self.model_copy(update={"seed": 0}).digest

    @property
    def folder(self) -> Path:
        """The run folder, `<output root>/<variant>/<dataset>-seed<seed>-<hash8>`."""
        name = f"{self.dataset}-seed{self.seed}-{self.digest[:8]}"
        return output_folder(self.execution.output_root) / self.variant / name

    @property
    def published_for_dataset(self) -> Published:
        """What was published for this data set: every source reports on CIFAR-10 alone."""
        return self.published if self.dataset == "cifar10" else Published()

    @property
    def training_images(self) -> int:
        """The images of an epoch: those of the data set but for the held-out ones."""
        return TRAINING_IMAGES[self.dataset] - self.recipe.holdout

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.training_images / self.recipe.batch_size)

    def to_yaml(self) -> str:
        """The complete experiment; `load_experiment(path)` reads it back, but for `execution`."""
        return write_yaml(self.model_dump(mode="json", exclude={"execution"}))

    def holdout_problem(self) -> str | None:
        """Why no validation is possible with so many held-out images, in one line; or None."""
        holdout, images = self.recipe.holdout, TRAINING_IMAGES[self.dataset]
        if not holdout or NUM_CLASSES <= holdout <= images - NUM_CLASSES:
            return None
        return (
            f"recipe.holdout = {holdout}: both parts of the {images:,} training images need an "
            f"image of each class; give 0, or {NUM_CLASSES} to {images - NUM_CLASSES:,}"
        )

    def contradiction(self) -> str | None:
        """The setting that could not act in these epochs or on this data, in one line; or None.

        An experiment that was recorded may have one: older versions accepted it.
        """
        recipe, schedule = self.recipe, self.recipe.schedule
        epochs = recipe.epochs
        if problem := self.holdout_problem():
            return problem
        if recipe.batch_size > self.training_images:
            return (
                f"recipe.batch_size = {recipe.batch_size}: there are "
                f"{self.training_images:,} training images"
            )
        if self.architecture.strides == ():
            return "architecture.strides = []: give one value per stage, or none for the default"
        if self.architecture.squeeze_excitation.blocks == ():
            return "architecture.squeeze_excitation.blocks = []: give placement none"
        last_batch = self.training_images % recipe.batch_size or recipe.batch_size
        if last_batch == 1 and min(side for _, side in self.architecture.outputs) == 1:
            return (
                f"recipe.batch_size = {recipe.batch_size}: the last batch has one image, on which "
                "BatchNorm cannot be trained where the network has a single pixel; give another"
            )
        if isinstance(schedule, OneCycle):
            return None
        if (lowest := getattr(schedule, "min_lr", 0)) > recipe.optimizer.lr:
            return (
                f"recipe.schedule.min_lr = {lowest:g}: give at most the learning rate, "
                f"{recipe.optimizer.lr:g}"
            )
        if isinstance(schedule, StepDecay) and (problem := self._impossible_drops(schedule)):
            return problem
        warmup, hold = schedule.warmup_epochs, getattr(schedule, "hold_epochs", 0)
        # Where the rate changes between epochs, it is below its peak for the whole of the last one.
        whole = math.ceil(warmup) if schedule.interval == "epoch" else warmup
        if whole + hold >= epochs:
            names = " + ".join(["warmup_epochs"] * bool(warmup) + ["hold_epochs"] * bool(hold))
            counts = f", {whole + hold:g} in whole epochs" if whole != warmup else ""
            return (
                f"recipe.schedule.{names} = {warmup + hold:g}{counts}: give less than "
                f"recipe.epochs = {epochs}, such as 0"
            )
        if isinstance(schedule, Exponential) and schedule.interval == "epoch":
            period = schedule.every_epochs
            if period >= max(epochs - whole, 2):
                after = f" after the warm-up of {whole}" if whole else ""
                return (
                    f"recipe.schedule.every_epochs = {period}: the rate would never drop; give "
                    f"less than the {epochs - whole} epochs{after}"
                )
        return None

    def _impossible_drops(self, schedule: StepDecay) -> str | None:
        """Why the rate could not drop at the milestones; None where it can."""
        epochs, warmup, drops = self.recipe.epochs, schedule.warmup_epochs, schedule.milestones
        given = f"recipe.schedule.milestones = {shorten(list(drops))}: give"
        if epochs == 1:
            return f"{given} [], since one epoch has no place for a drop" if drops else None
        if max(drops, default=0) < epochs < warmup + 1:
            return (
                f"recipe.schedule.warmup_epochs = {warmup:g}: give at most {epochs - 1}, so that "
                f"the rate can drop after it (recipe.epochs = {epochs})"
            )
        if max(drops, default=epochs) >= epochs:
            return (
                f"{given} epochs from 1 to {epochs - 1}, in which the rate can drop "
                f"(recipe.epochs = {epochs})"
            )
        if min(drops) < warmup:
            return f"{given} epochs after the warm-up of {warmup:g}"
        return None


def dotted_paths(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by path, such as `recipe.optimizer.lr`, the mappings too."""
    found = {}
    for key, value in tree.items():
        found[f"{prefix}{key}"] = value
        if isinstance(value, Mapping):
            found |= dotted_paths(value, f"{prefix}{key}.")
    return found


def leaves(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The values of nested mappings by path, without the mappings that hold others."""
    paths = dotted_paths(tree).items()
    return {path: value for path, value in paths if not (isinstance(value, Mapping) and value)}


def matching_paths(name: str, paths: Iterable[str]) -> list[str]:
    """The paths that a flat or dotted name may mean."""
    return sorted(path for path in paths if path == name or path.endswith(f".{name}"))
