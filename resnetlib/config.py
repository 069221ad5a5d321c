"""Load experiments: read variant files, apply overrides, report mistakes in one line.

Everything here works without torch, so that a mistake is reported at once.
"""

import math
import os
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from .errors import ConfigError, closest_match, print_line, shorten
from .experiment import (
    NOT_RECIPE,
    TRAINING_IMAGES,
    Execution,
    Experiment,
    Variant,
    dotted_paths,
    leaves,
    matching_paths,
)
from .paths import params_folder, real_path
from .schema import (
    DEFAULT_LR,
    NUM_CLASSES,
    Augment,
    Exponential,
    Model,
    StepDecay,
    models_in,
    tagged_models,
)
from .yaml_core import MAX_CHARACTERS, read_scalar, read_yaml


def list_variants() -> list[str]:
    """The names of all variants in `params/`, sorted."""
    return sorted(path.stem for path in params_folder().glob("[!.]*.yaml"))


def list_class_variants() -> list[str]:
    """The names of the variants in `params/class/`, such as `class/yifei`, sorted."""
    return sorted(f"class/{path.stem}" for path in params_folder().glob("class/[!.]*.yaml"))


def known_variants() -> list[str]:
    """Every name that `load_experiment` accepts: `list_variants()`, then the class."""
    return [*list_variants(), *list_class_variants()]


def read_variant(name: str) -> Experiment | None:
    """The variant as its file is today, for a table of many.

    None where it has no file, and, said on stderr once, where the file is not valid.
    """
    if name not in known_variants():
        return None
    try:
        return load_experiment(name)
    except ConfigError as error:
        _report_passed_over(str(error))
        return None


@cache
def _report_passed_over(why: str) -> None:
    print_line(f"passed over: {why}", to_stderr=True)


def load_experiment(variant: str | Path | None = None, /, **overrides: Any) -> Experiment:
    """Read a variant and apply overrides, by flat or dotted name; `None` keeps the variant's value.

    `variant` is a name from `list_variants()` or `list_class_variants()`, or the path of a variant
    file, of a run folder or of its `experiment.yaml`. Examples:
    `load_experiment("lite", epochs=10, lr=0.05)`,
    `load_experiment("lite", optimizer="adam", schedule="constant")`,
    `load_experiment("lite", **{"recipe.optimizer.momentum": 0.8})`. A new kind of optimizer or
    schedule prints a line on stderr: which settings take their defaults, and which do not apply.

    Raises `ConfigError` naming the key, its value, what is allowed and the nearest match.
    """
    if variant is None:
        variant = overrides.pop("variant", None)
    elif "variant" in overrides:
        raise ConfigError("the variant is the first argument; omit `variant`")
    path = _find_variant(variant)
    path = real_path(path.parent) / path.name  # in `params/`, also where it is given relatively
    content = _read_file(path)
    if path.is_relative_to(params_folder()):
        name = path.relative_to(params_folder()).with_suffix("").as_posix()
        if validate(content, path, Variant).variant != name:
            raise ConfigError(f"{path}: variant is {content['variant']!r}; it must be {name!r}")
    experiment = apply_overrides(validate(content, path), overrides)
    # Older versions recorded settings that cannot act.
    is_recorded = path.name == "experiment.yaml" and "overrides" in content
    if not is_recorded and (problem := experiment.contradiction()):
        raise ConfigError(f"{path}: {problem}")
    return experiment


def apply_overrides(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """The experiment with these overrides, flat or dotted, checked again as a whole.

    A part (`optimizer="adam"`, `optimizer={"name": "adam", "lr": 0.001}`, `ema={"decay": 0.99}`) is
    replaced before single keys are set, in whatever order they are given. On the digits, what is
    counted in epochs or images (but for a plateau's patience and cooldown) is scaled in proportion
    unless it is given, and printed on stderr.
    """
    content = experiment.model_dump()
    values, notes = _merge(content, overrides)
    if not values:
        return experiment

    # What the source leaves open about a key that is gone does not matter any more.
    keys = dotted_paths({"recipe": content["recipe"]})
    content["assumed"] = [name for name in content["assumed"] if matching_paths(name, keys)]
    result = validate(_without_missing(content), "override")
    if scaled := _scaled_to_digits(experiment, result, values):
        for path, value in scaled.items():
            _set(content, path, value)
        values |= scaled
        result = validate(_without_missing(content), "override")
    before, after = experiment.model_dump(mode="json"), result.model_dump(mode="json")
    changed = [
        path
        for path in values
        if not path.startswith("execution.") and _value_at(after, path) != _value_at(before, path)
    ]
    if changed and (problem := result.contradiction()):
        raise ConfigError(f"override: {problem}")
    start = "recipe.schedule.warmup_start"
    is_given = "recipe.schedule.warmup_epochs" in values  # as 0, or scaled to the digits
    if start in changed and not is_given and not result.recipe.schedule.warmup_epochs:
        raise ConfigError(f"override: {start} has no effect without warmup_epochs above 0")
    for part, (defaults, dropped) in notes.items():
        defaults = [key for key in defaults if f"{part}.{key}" not in values]
        _report_kind(part, _value_at(after, part), defaults, dropped)
    if scaled:
        _report_scaled(experiment, result, scaled)
    # An earlier override's key is gone where its part has been replaced since.
    present = dotted_paths(after).keys()
    recorded = {
        path: _value_at(after, path)
        for path in (*experiment.overrides, *changed)
        if path in present
    }
    return result.model_copy(update={"overrides": recorded})


def override_paths(experiment: Experiment | Mapping[str, Any]) -> set[str]:
    """Every dotted path that may be overridden in this experiment, or in its content."""
    content = experiment.model_dump() if isinstance(experiment, Experiment) else experiment
    sections = {"architecture", "recipe", "execution"}
    overridable = sections | {"budget", "dataset", "seed"}
    return dotted_paths({key: content[key] for key in overridable}).keys() - sections


def override_names(experiment: Experiment) -> set[str]:
    """The short name of every override, those of another optimizer or schedule included."""
    own = {path.rpartition(".")[2] for path in override_paths(experiment)}
    return own.union(*(model.model_fields for models in _parts().values() for model in models))


FOLDERS = ("data_root", "output_root")


def parse_parameter(name: str, text: str) -> Any:
    """The value of a parameter on the command line: as `parse_value`, but a folder stays text."""
    text = text.strip()
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if is_quoted or name.rpartition(".")[2] not in FOLDERS:
        return parse_value(text)
    return None if text == "None" else text


def parse_value(text: str) -> Any:
    """The value of a parameter on the command line, by the core schema of YAML 1.2.

    `1e-3` and `nan` are numbers, `true` is True, `1,2,3` and `[1, 2, 3]` are lists, `{a: 1}` is a
    mapping, `None` is None; everything else is text. Raises `ConfigError`, also for `null`, which
    in a variant file switches a part off.
    """
    text = text.strip()
    if text in ("", "None"):
        return None if text else text
    if text in ("null", "Null", "NULL", "~"):
        raise ConfigError(f"{text}: write `none` to switch a part off, `None` to leave it as it is")
    try:
        if text.startswith(("[", "{", "'", '"')):
            return read_yaml(text)
        values = [read_scalar(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"{shorten(text)}: {error}") from None
    if "," not in text:
        return values[0]
    return values if values and all(isinstance(v, int | float) for v in values) else text


# Overrides -----------------------------------------------------------------------------------


def _merge(
    content: dict[str, Any], overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Set the overrides in an experiment's content, and return them by path.

    Also returned are, for each part that was replaced, its keys that take their defaults and those
    that are dropped.
    """
    for name in overrides:
        if not isinstance(name, str):
            raise ConfigError(f"overrides has the key {shorten(name)}; keys are names in quotes")
    given = {name: _parsed(name, value) for name, value in overrides.items()}
    given = {name: value for name, value in given.items() if value is not None}
    paths = {name: part for name, value in given.items() if (part := _part(name, value))}
    notes: dict[str, list[Any]] = {}
    for name, part in paths.items():
        new, *notes[part] = _new_part(part, _value_at(content, part), given[name])
        _set(content, part, new)
    known = override_paths(content)
    # An unknown name is a mistake even if its value is None.
    paths |= {name: _resolve(name, known) for name in overrides if name not in paths}
    values: dict[str, Any] = {}
    for name, value in given.items():
        if paths[name] in values:
            raise ConfigError(f"{paths[name]} is specified twice, also as {shorten(name)}")
        values[paths[name]] = value
    for path in sorted(values.keys() - notes.keys(), key=lambda path: path.count(".")):
        _set(content, path, values[path])
    return values, notes


def _parsed(name: str, value: Any) -> Any:
    """Text is read as on the command line, since papermill passes it unread; paths stay text."""
    is_text = isinstance(value, str) and name.rpartition(".")[2] not in Execution.model_fields
    return parse_value(value) if is_text else value


def _resolve(name: str, known: set[str]) -> str:
    """The dotted path that a flat or dotted name means; `ConfigError` where none or several."""
    found = matching_paths(name, known)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name!r} is ambiguous: write {' or '.join(map(repr, found))}")
    short = sorted({path.rpartition(".")[2] for path in known})
    hint = _owner(name) or closest_match(name, [*short, *known])
    raise ConfigError(f"unknown parameter {shorten(name)}{hint or '. One of: ' + ', '.join(short)}")


def _owner(name: str) -> str:
    """Which parts have a key that this experiment lacks, for a message."""
    parent, _, key = name.rpartition(".")
    augmentation = parent.rpartition(".")[2]
    kind = tagged_models(Augment).get(augmentation)
    if kind and key in kind.model_fields:
        return f"; give augment as a whole, such as '[{{name: {augmentation}, {key}: …}}]'."
    owners = []
    for part in matching_paths(parent, _parts()) if parent else _parts():
        kinds = [model for model in _parts()[part] if key in model.model_fields]
        if kinds:
            names = " or ".join(name for kind in kinds for name in _tags(kind))
            owners.append(f"{part.rpartition('.')[2]} {names}".strip())
    return f"; {key} is a key of {' or '.join(owners)}, which is not set." if owners else ""


@cache
def _parts() -> dict[str, tuple[type[Model], ...]]:
    """The parts that are replaced as a whole, such as `recipe.optimizer`: Sgd or Adam."""
    found = {}
    for section in ("architecture", "recipe"):
        (model,) = models_in(Experiment.model_fields[section].annotation)
        for key, field in model.model_fields.items():
            if get_origin(field.annotation) is not tuple:
                found[f"{section}.{key}"] = tuple(models_in(field.annotation))
    return {path: models for path, models in found.items() if models}


def _tags(model: type[Model]) -> tuple[str, ...]:
    """The names that choose this model of a part; none where the part has one kind only."""
    return get_args(model.model_fields["name"].annotation) if "name" in model.model_fields else ()


def _part(name: str, value: Any) -> str | None:
    """The part that an override replaces, by a mapping or by the name of its kind."""
    match matching_paths(name.removesuffix(".name"), _parts()):
        case [part] if isinstance(value, str) and _tags(_parts()[part][0]):
            return part
        case [part] if isinstance(value, Mapping) and not name.endswith(".name"):
            return part
    return None


def _scaled_to_digits(
    before: Experiment, after: Experiment, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that a trial on the digits changes, by path; those that are given stay.

    Fewer epochs scale what the schedule counts in epochs, fewer images the validation split. A
    batch that would be larger than the data set becomes the data set. Rates stay, and so do the
    patience and cooldown of a plateau.
    """
    if after.dataset != "digits":
        return {}
    recipe, schedule, scaled = after.recipe, after.recipe.schedule, {}

    def scale(path: str, value: Any) -> None:
        if path not in given:
            scaled[path] = value

    share = recipe.epochs / before.recipe.epochs
    if share < 1 and not isinstance(given.get("recipe.schedule"), Mapping):
        for key in ("warmup_epochs", "hold_epochs", "period_epochs"):
            if value := getattr(schedule, key, None):
                scaled_value = float(f"{value * share:.3g}")
                if schedule.interval == "epoch" and key != "period_epochs":
                    scaled_value = math.floor(scaled_value)  # a part of an epoch counts as whole
                scale(f"recipe.schedule.{key}", scaled_value)
        if isinstance(schedule, StepDecay):
            last = recipe.epochs - 1
            warmup = scaled.get("recipe.schedule.warmup_epochs", schedule.warmup_epochs)
            first = max(math.ceil(warmup), 1)
            drops = [min(max(round(drop * share), first), last) for drop in schedule.milestones]
            scale("recipe.schedule.milestones", drops if first <= last else [])
        if isinstance(schedule, Exponential) and schedule.every_epochs > 1:
            scale("recipe.schedule.every_epochs", max(round(schedule.every_epochs * share), 1))
    if before.dataset != "digits":
        images, before_images = (TRAINING_IMAGES[e.dataset] for e in (after, before))
        if recipe.holdout:
            held_out = max(round(recipe.holdout * images / before_images), NUM_CLASSES)
            scale("recipe.holdout", held_out)
        left = images - scaled.get("recipe.holdout", recipe.holdout)
        if recipe.batch_size > left > 0:
            scale("recipe.batch_size", left)
    return scaled


def _new_part(
    part: str, old: Mapping[str, Any] | None, value: Mapping[str, Any] | str
) -> tuple[dict[str, Any], list[str], list[str]]:
    """A part that is replaced: all its keys, those that take defaults, the keys it has lost.

    A mapping replaces the whole part. A name keeps what the new kind has too, with the same
    default, except learning rate and weight decay. A required key that is not given is
    `PydanticUndefined`.
    """
    is_name = isinstance(value, str)
    kind = value if is_name else value.get("name")
    models = [model for model in _parts()[part] if not _tags(model) or kind in _tags(model)]
    if not models or (is_name and kind == old["name"]):
        return (old | {"name": kind} if is_name else dict(value)), [], []
    fields = models[0].model_fields
    new = {key: field.default for key, field in fields.items()}
    if "lr" in new:
        new["lr"] = DEFAULT_LR.get(kind, PydanticUndefined)
    if not is_name:
        return new | dict(value), [key for key in new if key == "lr" and key not in value], []
    (old_fields,) = (m.model_fields for m in _parts()[part] if old["name"] in _tags(m))
    kept = {
        key: old[key]
        for key in old
        if key in fields
        and key not in ("name", "lr", "weight_decay")
        and fields[key].default == old_fields[key].default
    }
    defaults = [key for key in new if key in old and key not in kept and key != "name"]
    dropped = [key for key in old if key not in fields]
    return new | kept | {"name": kind}, defaults, dropped


def _report_kind(
    part: str, new: Mapping[str, Any], defaults: list[str], dropped: list[str]
) -> None:
    """Print what else has changed, on stderr: visible everywhere, and apart from results."""
    facts = []
    if defaults:
        facts.append(f"{', '.join(f'{key} = {new[key]:g}' for key in defaults)} by default")
    if dropped:
        facts.append(f"{', '.join(dropped)} dropped")
    if facts:
        name = part.rpartition(".")[2]
        print_line(f"{name} {new['name']}: {'; '.join(facts)}", to_stderr=True)


def _report_scaled(before: Experiment, after: Experiment, scaled: Mapping[str, Any]) -> None:
    """Print what `_scaled_to_digits` has changed, in one line on stderr."""
    content = after.model_dump(mode="json")
    settings = ", ".join(
        f"{path.rpartition('.')[2]} = {_value_at(content, path)}" for path in scaled
    )
    epochs = ""
    if after.recipe.epochs < before.recipe.epochs:
        epochs = f"{after.recipe.epochs} of {before.recipe.epochs} epochs on "
    print_line(f"scaled to {epochs}the digits: {settings}", to_stderr=True)


def _value_at(tree: Any, path: str) -> Any:
    """The value at a dotted path; None where there is none."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _set(content: dict[str, Any], path: str, value: Any) -> None:
    *parents, key = path.split(".")
    for parent in parents:
        content = content[parent]
        if not isinstance(content, dict):
            raise ConfigError(f"{parent} = {shorten(content)} has no {key}")
    content[key] = value


def _without_missing(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    given = {key: value for key, value in tree.items() if value is not PydanticUndefined}
    return {key: _without_missing(value) for key, value in given.items()}


# Files ---------------------------------------------------------------------------------------


def _find_variant(variant: Any) -> Path:
    names = list_variants()
    if not isinstance(variant, str | Path) or not str(variant):
        raise ConfigError(f"variant = {shorten(variant)}: give a name, one of {', '.join(names)}")
    if str(variant).endswith((".yaml", ".yml")):
        return Path(variant)
    name = variant.as_posix() if isinstance(variant, Path) else variant
    if name not in known_variants():
        recorded = os.path.join(variant, "experiment.yaml")
        if os.path.isfile(recorded):  # of a run folder; unlike Path, also for no possible name
            return Path(recorded)
        team = name.removeprefix("class/")
        teams = [name.removeprefix("class/") for name in list_class_variants()]
        close = closest_match(name, names)
        close = close or closest_match(team, teams).replace("mean '", "mean 'class/") or "."
        raise ConfigError(
            f"unknown variant {shorten(name)}{close} One of: {', '.join(names)}, or of "
            "`resnetlib list --class`"
        )
    return params_folder() / f"{name}.yaml"


def _read_file(path: Path) -> dict:
    label = str(path) if len(str(path)) <= 200 and str(path).isprintable() else shorten(str(path))
    try:
        if not path.is_file():  # a pipe or a device would not end
            raise ConfigError(f"no such file: {label}")
        with path.open(encoding="utf-8") as file:
            content = read_yaml(file.read(MAX_CHARACTERS + 1))
    except UnicodeDecodeError:
        raise ConfigError(f"{label} is not valid YAML: it is not UTF-8 text") from None
    except OSError as error:
        raise ConfigError(f"{label}: {error.strerror}") from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{label} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{label}: expected `variant: …`, `architecture: …`, `recipe: …`")
    return content


# Messages ------------------------------------------------------------------------------------


def validate(content: dict, where: Any, kind: type[BaseModel] = Experiment) -> Any:
    """The content as a model. Raises `ConfigError`, in a line that begins with `where`."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        messages: dict[str, str] = {}  # of each key, the first
        for problem in error.errors(include_url=False):
            messages.setdefault(_key(problem["loc"]), _explain(problem))
        first, *others = messages.values()
        more = f" (and {len(others)} more)" if others else ""
        raise ConfigError(f"{where}: {first}{more}") from None


def _key(location: tuple[str | int, ...]) -> str:
    """The dotted key of a problem, without the kinds and types that pydantic puts between."""
    others = {*tagged_models(), "bool", "int", "Normalization"}
    parts = [str(part) for part in location if part not in others]
    return ".".join(part for part in parts if part.isidentifier() or part.isdigit())


def _explain(problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems in one line."""
    key, kind, value = _key(problem["loc"]), problem["type"], problem["input"]
    context = problem.get("ctx", {})
    message = re.sub(r"^(Value error, |Input |String )", "", problem["msg"])
    if kind == "missing":
        return f"{key!r} is missing"
    if kind == "value_error" and isinstance(value, Mapping):
        return f"{key}: {message}" if key else message
    if kind == "model_type":
        message = "give a mapping of its settings"
    elif kind in ("model_attributes_type", "union_tag_not_found"):
        message = "give its name, or a mapping of its settings with its name"
    elif kind.startswith("int_"):
        message = "should be a whole number"
    elif kind.startswith("float_"):
        message = "should be a number"
    elif kind.startswith("bool_"):
        message = "give true or false"
    elif kind == "tuple_type":
        message = "give a list, such as []"
    allowed = context.get("expected", context.get("expected_tags"))
    if allowed:
        key, value = (f"{key}.name", context["tag"]) if "tag" in context else (key, value)
        close = closest_match(str(value), re.findall(r"'([^']+)'", allowed))
        message = f"should be one of {allowed.replace(' or ', ', ')}{close}"
    return f"{key} = {shorten(value)}: {message}"


# What an experiment changes ----------------------------------------------------------------------


def changed_settings(experiment: Experiment, own: Experiment | None) -> dict[str, str]:
    """The settings in which an experiment differs from its variant's file, by path, as text.

    `own` is that of the file; None where the variant has none: then the overrides count.
    """
    if own is None:
        changed = {
            path: value for path, value in experiment.overrides.items() if path not in NOT_RECIPE
        }
    else:
        before, after = _flat_settings(own), _flat_settings(experiment)
        # A part that is switched off has another path than its settings: None is a change.
        changed = {path: after[path] for path in after if after[path] != before.get(path, ...)}
    return {path: _value_text(value) for path, value in changed.items()}


def _flat_settings(experiment: Experiment) -> dict[str, Any]:
    """Network and recipe, flat, by dotted path."""
    tree = experiment.model_dump(mode="json", include={"architecture", "recipe"})
    tree["recipe"]["augment"] = [
        augment.model_dump(mode="json", exclude_defaults=True)
        for augment in experiment.recipe.augment
    ]
    return leaves(tree)


def _value_text(value: Any) -> str:
    match value:
        case None | [] | ():
            return "none"
        case list() | tuple():
            return "[" + ", ".join(map(_value_text, value)) + "]"
        case dict():
            return " ".join(
                str(part) if key == "name" else f"{key}={part}" for key, part in value.items()
            )
    return str(value)
