"""Every number of a network and a recipe has limits within which training stays finite."""

import math
import typing

import pytest
from conftest import first_images

from resnetlib import schema
from resnetlib.errors import ConfigError
from resnetlib.size import check_size
from resnetlib.training import Trainer

EXTREMES = (-1, 1e-300, 1e30, 1e300, 2**53 - 1, math.nan)
# What a part needs before its other keys can be tried.
NEEDED = {
    "affine": {"degrees": 5},
    "clip": {"by": "value", "limit": 1.0},
    "exponential": {"gamma": 0.5},
    "multistep": {"milestones": [1]},
    "normalize": {"mean": [0.5] * 3, "std": [0.5] * 3},
    "one_of": {"choices": ["crop", "flip"]},
    "squeeze_excitation": {"placement": "block"},
    "step": {"milestones": [1]},
}


def length(annotation):
    """Of the tuple that a value of this annotation is; 0 for a single number."""
    if typing.get_origin(annotation) is tuple:
        parts = typing.get_args(annotation)
        return 1 if Ellipsis in parts else len(parts)
    return max(map(length, typing.get_args(annotation)), default=0)


def numbers(model, path=()):
    """Each numeric key of a model and of the parts in it: path, names of chosen kinds included."""
    for key, field in model.model_fields.items():
        for part in schema.models_in(field.annotation):
            names = (
                typing.get_args(part.model_fields["name"].annotation)
                if ("name" in part.model_fields)
                else [""]
            )
            for name in names:
                yield from numbers(part, (*path, (key, name)))
        if schema._types(field.annotation) & {int, float} and not schema.models_in(
            field.annotation
        ):
            yield path, key, length(field.annotation)


def overrides(path, key, value):
    """The overrides that set one key of a part, and what the part needs."""
    if not path:
        return {key: value}
    part, name = path[0]
    content = NEEDED.get(name or part, {}) | ({"name": name} if name else {})
    if part == "optimizer":
        content |= {"lr": 0.01}
    content |= {key: value}
    return {part: [content] if part == "augment" else content, "epochs": 2}


CASES = [
    case
    for model in (schema.Architecture, schema.Recipe)
    for case in numbers(model)
    if len(case[0]) < 2  # choices of `one_of` are the augmentations themselves
    and case[1] != "block_widths"  # a list for each stage, of the network's own widths
]


def test_numbers_finds_the_keys():
    found = {(path[0] if path else "", key) for path, key, _ in CASES}
    assert {("", "epochs"), (("augment", "color_jitter"), "hue"), (("clip", ""), "limit")} <= found
    assert len(CASES) > 100


@pytest.mark.slow
@pytest.mark.parametrize(("path", "key", "count"), CASES, ids=lambda part: str(part)[:40])
def test_extreme_number_is_refused_or_trains(path, key, count, tiny, few_digits):
    data = first_images(few_digits, 48)
    for number in EXTREMES:
        value = [number] * count if count else number
        try:
            experiment = tiny(
                **{"batch_size": 16, "precision": "float32"} | overrides(path, key, value)
            )
            check_size(experiment)
        except ConfigError as error:
            assert len(str(error)) < 500 and "\n" not in str(error)
            continue
        trainer = Trainer(experiment, data)
        images, labels = (part[:16] for part in trainer.train_split)
        trainer.history.append({"epoch": 0, "train_loss": 1.0})
        trainer.train_step(images, labels, labels > 4, 1, 0)
        if key not in ("lr", "weight_decay"):  # with which a training may diverge
            assert all(part.isfinite().all() for part in trainer.model.parameters()), number
