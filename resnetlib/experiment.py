"""Variant, Experiment and Execution: the models of what is run, and the digest of an experiment.

A *variant* is a network with the recipe that trains it, one file `params/<variant>.yaml`.
An *experiment* is a variant with every override applied: complete and checked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from .paths import output_folder
from .schema import Architecture, Count, Model, NotBool, NotNegative, Recipe, UnitInterval

DEFAULT_BUDGET = 5_000_000  # trainable parameters; the rule every team works under


class Published(Model):
    """What the authors reported; accuracies are fractions of 1, null where nothing was."""

    parameters: Count | None = None
    train_accuracy: UnitInterval | None = None
    test_accuracy: UnitInterval | None = None
    best_test_accuracy: UnitInterval | None = None  # selected on the test set
    train_loss: NotNegative | None = None
    test_loss: NotNegative | None = None


class Execution(Model):
    """Where and how a run is carried out; no part of what the experiment is, or of its hash."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    compile: bool | Literal["auto"] = "auto"
    threads: PositiveInt | Literal["auto"] = "auto"
    data_root: Path | None = None
    output_root: Path | None = None
    fresh: bool = False
    keep_checkpoints: bool = False
    allow_inexact_resume: bool = False


class Variant(Model):
    """One file of `params/`."""

    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    title: str
    source: str
    budget: Annotated[PositiveInt, NotBool] | Literal["none"] = DEFAULT_BUDGET
    architecture: Architecture
    recipe: Recipe
    assumed: tuple[str, ...] = ()
    published: Published = Published()

    @model_validator(mode="after")
    def _assumed_exists(self) -> Self:
        paths = dotted_paths({"recipe": self.recipe.model_dump()})
        for name in self.assumed:
            if not matching_paths(name, paths):
                raise ValueError(f"assumed names {name!r}, which is no key of the recipe")
        return self


class Experiment(Variant):
    """A variant with every override applied; the one argument of `train`."""

    dataset: Literal["cifar10", "digits"] = "cifar10"
    seed: Annotated[NonNegativeInt, NotBool] = 0
    overrides: dict[str, Any] = Field(default={})
    execution: Execution = Execution()

    @property
    def digest(self) -> str:
        """SHA-256 of what decides the outcome: variant, network, recipe, data set, seed.

        What has its default value does not enter, so that a setting that is new in a later
        version leaves the experiments of an earlier one what they were.
        """
        content = self.model_dump(
            mode="json",
            include={"variant", "architecture", "recipe", "dataset", "seed"},
            exclude_defaults=True,
        )
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @property
    def folder(self) -> Path:
        """The run folder, `<output root>/<variant>/<dataset>-seed<seed>-<hash8>`."""
        name = f"{self.dataset}-seed{self.seed}-{self.digest[:8]}"
        return output_folder(self.execution.output_root) / self.variant / name

    @property
    def published_for_dataset(self) -> Published:
        """What was published for this data set: every source reports on CIFAR-10 alone."""
        return self.published if self.dataset == "cifar10" else Published()

    def to_yaml(self) -> str:
        """The complete experiment; `load_experiment(path)` reads it back, equal."""
        content = self.model_dump(mode="json", exclude={"execution"})
        return yaml.safe_dump(
            content, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
        )


def dotted_paths(tree: Mapping[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in tree.items():
        found.add(prefix + key)
        if isinstance(value, Mapping):
            found |= dotted_paths(value, f"{prefix}{key}.")
    return found


def matching_paths(name: str, paths: set[str]) -> list[str]:
    return sorted(path for path in paths if path == name or path.endswith(f".{name}"))
