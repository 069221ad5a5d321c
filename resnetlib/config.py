"""Load experiments: read variant files, apply overrides, report mistakes in one line."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from . import schema
from .errors import ConfigError, closest_match
from .experiment import Experiment, Variant, dotted_paths, matching_paths
from .paths import params_folder
from .schema import Model


def list_variants() -> list[str]:
    """The names of all variants in `params/`, sorted."""
    return sorted(path.stem for path in params_folder().glob("*.yaml"))


def load_experiment(variant: str, **overrides: Any) -> Experiment:
    """Read a variant and apply overrides, by flat or dotted name; `None` keeps the variant's value.

    `variant` is a name from `list_variants()`, or the path of a variant file or of a run's
    `experiment.yaml`. Examples: `load_experiment("lite", epochs=10, lr=0.05)`,
    `load_experiment("lite", **{"recipe.optimizer.momentum": 0.8})`.

    Raises `ConfigError` naming the key, its value, what is allowed and the nearest match.
    """
    path = _find_variant(variant)
    content = _read_yaml(path)
    if path.parent == params_folder() and _validate(content, path, Variant).variant != path.stem:
        raise ConfigError(f"{path}: variant is {content['variant']!r}; it must be {path.stem!r}")
    experiment = _validate(content, path)
    return apply_overrides(experiment, overrides)


def apply_overrides(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """The experiment with these overrides, flat or dotted, checked again as a whole.

    Whole branches (`optimizer={"name": "adam", "lr": 0.001}`) are put in place before single keys.
    """
    for name in overrides:
        if not isinstance(name, str):
            raise ConfigError(f"overrides has the key {name!r}; keys are names in quotes")
    given = {name: value for name, value in overrides.items() if value is not None}
    branches = {name: value for name, value in given.items() if isinstance(value, Mapping)}
    leaves = {name: value for name, value in given.items() if name not in branches}
    for part in (branches, leaves):
        experiment = _with_values(experiment, part) if part else experiment
    for name in overrides.keys() - given.keys():
        resolve_override(experiment, name)  # an unknown name is a mistake even when it is None
    return experiment


def _with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    content = experiment.model_dump()
    changed = {}
    for name, value in values.items():
        path = resolve_override(experiment, name)
        if path in changed:
            raise ConfigError(f"{path} is set twice, the second time as {name!r}; say it once")
        *parents, key = path.split(".")
        branch = content
        for parent in parents:
            branch = branch[parent]
            if not isinstance(branch, dict):
                raise ConfigError(f"{parent} = {branch!r}: give a mapping to set its {key}")
        changed[path] = branch[key] != value
        branch[key] = value
    # What the source left open about a part that is replaced is no longer of interest.
    keys = dotted_paths({"recipe": content["recipe"]})
    content["assumed"] = [name for name in content["assumed"] if matching_paths(name, keys)]
    result = _validate(content, "override")
    dump = result.model_dump(mode="json")
    recorded = [*experiment.overrides, *(path for path, differs in changed.items() if differs)]
    kept = {p: _value_at(dump, p) for p in recorded if not p.startswith("execution.")}
    return result.model_copy(update={"overrides": kept})


def resolve_override(experiment: Experiment, name: str) -> str:
    """The dotted path that a flat or dotted name means; `ConfigError` where none or several."""
    paths = override_paths(experiment)
    found = matching_paths(name, paths)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{name!r} is ambiguous: say {' or '.join(map(repr, found))}")
    flat = sorted({path.rsplit(".", 1)[-1] for path in paths} | paths)
    short = sorted(path.rsplit(".", 1)[-1] for path in paths if not path.startswith("execution."))
    raise ConfigError(
        f"unknown parameter {name!r}{closest_match(name, flat)} "
        f"One of: {', '.join(dict.fromkeys(short))}"
    )


def override_paths(experiment: Experiment) -> set[str]:
    """Every dotted path that may be overridden in this experiment."""
    return dotted_paths(
        experiment.model_dump(
            include={"budget", "architecture", "recipe", "dataset", "seed", "execution"}
        )
    ) - {"architecture", "recipe", "execution"}


def _value_at(tree: Any, path: str) -> Any:
    """What stands at a dotted path; None where a later override removed it."""
    for key in path.split("."):
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def _find_variant(variant: str) -> Path:
    if not isinstance(variant, str | Path) or not str(variant):
        raise ConfigError(
            f"variant = {variant!r}: give a name, one of {', '.join(list_variants())}"
        )
    if str(variant).endswith((".yaml", ".yml")):
        path = Path(variant)
        if not path.is_file():
            raise ConfigError(f"no such file: {path}")
        return path
    names = list_variants()
    if variant not in names:
        raise ConfigError(
            f"unknown variant {variant!r}{closest_match(variant, names)} One of: {', '.join(names)}"
        )
    return params_folder() / f"{variant}.yaml"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, but a key given twice is an error, not the last one's win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def _read_yaml(path: Path) -> dict:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeyLoader)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `variant: …`, `architecture: …`, `recipe: …`")
    return content


def _validate(content: dict, where: Any, kind: type[Variant] = Experiment) -> Any:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        messages = [_explain(problem) for problem in error.errors()]
        more = f" (and {len(messages) - 1} more)" if len(messages) > 1 else ""
        raise ConfigError(f"{where}: {messages[0]}{more}") from None


def _explain(problem: Mapping[str, Any]) -> str:
    """One of pydantic's problems as a person would put it."""
    model, location = _model_at(problem["loc"])
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        fields = list(model.model_fields) if model else []
        return (
            f"unknown key {key!r}{closest_match(location[-1], fields)} One of: {', '.join(fields)}"
        )
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    message = re.sub(r"^(Value error, |Input )", "", problem["msg"])
    if problem["type"] in ("model_type", "model_attributes_type", "union_tag_not_found"):
        message = "give a mapping of its settings, its name among them"
    if problem["type"] == "union_tag_invalid":
        allowed = problem["ctx"]["expected_tags"]
        close = closest_match(str(problem["ctx"]["tag"]), re.findall(r"'([^']+)'", allowed))
        return f"{key}.name = {problem['ctx']['tag']!r}: should be one of {allowed}{close}"
    if problem["type"] == "literal_error":
        message += closest_match(str(problem["input"]), re.findall(r"'([^']+)'", message))
    if problem["type"] == "value_error" and isinstance(problem["input"], Mapping):
        return f"{key}: {message}" if key else message
    return f"{key} = {problem['input']!r}: {message}"


def _model_at(loc: tuple) -> tuple[type[Model] | None, list[str]]:
    """The model that holds a pydantic location, and the location without discriminator tags."""
    tags = schema.tagged_models()
    model: type[Model] | None = Experiment
    location: list[str] = []
    for i, part in enumerate(loc):
        parents = {loc[max(i - 1, 0)]} & {"optimizer", "schedule"}
        parents |= {loc[max(i - 2, 0)]} & {"augment", "choices"}
        if part in tags and parents:
            model = tags[part]
            continue
        if "[" in str(part):  # pydantic's name for one side of a union
            continue
        location.append(str(part))
        if i < len(loc) - 1 and model and part in model.model_fields:
            inner = model.model_fields[part].annotation
            kinds = [k for k in (inner, *getattr(inner, "__args__", ())) if isinstance(k, type)]
            model = next((k for k in kinds if issubclass(k, Model)), None)
    return model, location
