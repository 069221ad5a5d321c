"""Write `docs/variant_file.md` and `params/schema.json`: `python docs/reference.py`.

The meaning of a key is the comment on its line, or above it, in `schema.py` and `experiment.py`.
"""

import ast
import inspect
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from resnetlib import schema
from resnetlib.experiment import Execution, Experiment, Published, Variant
from resnetlib.paths import PROJECT
from resnetlib.schema import Model

INTRODUCTION = """# A variant file

<!-- Written by `python docs/reference.py` from resnetlib/schema.py and resnetlib/experiment.py. -->

A variant is one file `params/<variant>.yaml`: a network and the recipe that trains it. A file in
another folder is run by its path: `resnetlib run mine.yaml`. Every key is listed here. An unknown
key, a value out of range and contradictory settings are errors.

```yaml
# yaml-language-server: $schema=schema.json
{example}```

The first line gives completion and checks in editors that know
[the YAML language server](https://github.com/redhat-developer/yaml-language-server).

The files of `params/class/`, named `class/<team>`, are networks that student teams published for
one university course project, the best CIFAR-10 classifier with at most five million parameters.
`resnetlib list --class` lists them with what they claim; the header of each says what the source
leaves open and what differs.

Values follow the core schema of YAML 1.2: `1e-3` is a number, `yes` and `no` are text, numbers have
no leading zeros. Aliases, merge keys, tags and duplicate keys are refused. `crop` is short for
`{{name: crop}}`, and one value for a list of one.

Any key of `architecture` and `recipe`, `budget`, and what a run adds (last section) can be
overridden by its name, or by as much of its dotted path as makes it unique. Augmentations are
given as a whole list:

```
resnetlib run lite -p epochs 10 -p optimizer.momentum 0.8 -p depths 2,2,2
resnetlib run lite -p optimizer adam -p schedule constant -p ema '{{decay: 0.99}}'
resnetlib run lite -p augment '[{{name: crop, padding: 2}}, flip]'
```

`optimizer` and `schedule` take the name of another kind. Of the old kind's keys those stay
that the new kind also has with the same default; the others take the new kind's defaults, and one
line says which. A new kind of optimizer starts from its own learning rate
({rates}) and from no weight decay, unless they are given as well.
`none` stands for the `null` of the tables below and for an empty list: it turns `lookahead`,
`clip`, `sam`, `ema` and `augment` off.

Any variant can be tried on the digits in a few minutes:

```
resnetlib run wide66 -p dataset digits -p epochs 2
```

On the digits, fewer epochs than the variant's scale what the schedule counts in epochs (milestones,
warm-up, hold, periods; not the patience of a plateau), the smaller data set scales `holdout`, and a
batch is at most the whole data set. Keys that are given keep their values, and rates stay. One line
on stderr lists what was scaled; the run records it with the overrides. On CIFAR-10 nothing is
scaled: with few epochs, a schedule that needs more is refused, until its milestones or its warm-up
are given too, or another schedule (`-p schedule cosine -p warmup_epochs 0`).
"""


def pages() -> dict[Path, str]:
    """Each file with its content."""
    return {
        PROJECT / "docs" / "variant_file.md": reference(),
        PROJECT / "params" / "schema.json": json.dumps(json_schema(Variant), indent=1) + "\n",
    }


def reference() -> str:
    rates = ", ".join(f"{name} {rate:g}" for name, rate in schema.DEFAULT_LR.items())
    example = (PROJECT / "params" / "lite.yaml").read_text(encoding="utf-8")
    example = "".join(line for line in example.splitlines(True) if not line.startswith("#"))
    page = INTRODUCTION.format(example=example, rates=rates)
    for heading, parts in sections().items():
        page += f"\n## {heading}\n"
        for name, model in parts.items():
            page += f"\n### {name}\n" * bool(name) + f"\n{inspect.getdoc(model)}\n{table(model)}"
    return page


def sections() -> dict[str, dict[str, type[Model]]]:
    """The models by the heading they are under and by their own."""

    def kinds(union: Any) -> dict[str, type[Model]]:
        names: dict[type[Model], list[str]] = {}
        for name, model in schema.tagged_models(union).items():
            names.setdefault(model, []).append(f"`{name}`")
        return {", ".join(found): model for model, found in names.items()}

    return {
        "The file": {"": Variant},
        "`architecture`": {
            "": schema.Architecture,
            "`shortcut`": schema.ShortcutConfig,
            "`stem_pool`": schema.StemPool,
            "`squeeze_excitation`": schema.SqueezeExcitationConfig,
        },
        "`recipe`": {"": schema.Recipe, "`normalize`": schema.Normalization},
        "`recipe.optimizer`": kinds(schema.Optimizer),
        "`recipe.schedule`": kinds(schema.Schedule),
        "Additions to the optimizer": {
            "`lookahead`": schema.Lookahead,
            "`clip`": schema.Clip,
            "`sam`": schema.Sam,
            "`ema`": schema.Ema,
        },
        "`recipe.augment`": kinds(schema.AugmentStep),
        "`published`": {"": Published},
        "What a run adds": {"": Experiment, "`execution`": Execution},
    }


def models() -> list[type[Model]]:
    return [model for parts in sections().values() for model in parts.values()]


def table(model: type[Model]) -> str:
    """The keys of a model: type, default, meaning. An experiment has those of a variant too."""
    content = json_schema(model)
    inherited = Variant.model_fields.keys() if model is Experiment else {"name"}
    rows = [
        (f"`{key}`", type_of(value), default_of(key, value, content), value["description"])
        for key, value in content["properties"].items()
        if key not in inherited
    ]
    if not rows:
        return ""
    header = [("key", "value", "default", "meaning"), ("---",) * 4]
    return "\n" + "".join(f"| {' | '.join(row)} |\n" for row in header + rows)


def default_of(key: str, value: dict[str, Any], content: dict[str, Any]) -> str:
    if key in content.get("required", ()):
        return "required"
    return "its defaults" if isinstance(value["default"], dict) else code(value["default"])


def type_of(value: dict[str, Any]) -> str:
    """A JSON Schema type in words."""
    match value:
        case {"anyOf": choices}:
            return " or ".join(dict.fromkeys(type_of(choice) for choice in choices))
        case {"$ref": _} | {"oneOf": _}:
            return "mapping"
        case {"enum": names}:
            return ", ".join(code(name) for name in names)
        case {"const": name}:
            return code(name)
        case {"prefixItems": items}:
            return f"list of {len(items)}: {type_of(items[0])}"
        case {"type": "array", "items": items}:
            kind = type_of(items)
            return "list" if "mapping" in kind else f"list of: {kind}"
        case {"type": "object"}:
            return "mapping"
        case {"type": "integer" | "number" as kind}:
            name = {"integer": "whole number"}.get(kind, kind)
            return f"{name} {', '.join(limits(value))}".strip()
        case {"type": "null"}:
            return "`null`"
        case {"type": "boolean"}:
            return "`true`, `false`"
        case {"format": "path"}:
            return "path"
    return "text"


def limits(value: dict[str, Any]) -> Iterator[str]:
    """The range of a number; the bound that only keeps integers exact is not worth a word."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    for key, sign in signs.items():
        if key in value and value[key] < 2**53:
            yield f"{sign} {value[key]:,}"


def code(value: Any) -> str:
    return f"`{json.dumps(value) if not isinstance(value, str) else value}`"


def json_schema(model: type[Model]) -> dict[str, Any]:
    """pydantic's JSON Schema, with the comments of keys, and the short forms of a kind's name."""
    content = model.model_json_schema()
    definitions = content.get("$defs", {})
    described = {known.__name__: known for known in [*models(), model]}
    for part in (content, *definitions.values()):
        for key, text in descriptions(described[part["title"]]).items():
            part["properties"][key] |= {"title": key, "description": text}
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return dialect | _with_names(content, definitions)


def _with_names(content: Any, definitions: dict[str, Any]) -> Any:
    """A union of kinds also takes the name of one that needs no other key."""
    if isinstance(content, list):
        return [_with_names(part, definitions) for part in content]
    if not isinstance(content, dict):
        return content
    result = {key: _with_names(part, definitions) for key, part in content.items()}
    if "discriminator" not in content:
        return result
    names = [
        name
        for name, reference in content["discriminator"]["mapping"].items()
        if definitions[reference.rpartition("/")[2]]["required"] == ["name"]
    ]
    kinds = {key: result.pop(key) for key in ("oneOf", "discriminator")}
    return result | {"anyOf": [{"enum": names}, kinds] if names else [kinds]}


@cache
def descriptions(model: type[Model]) -> dict[str, str]:
    """The comment of each key, on its line or above it; base classes included."""
    found = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, Model) or base is Model:
            continue
        source = inspect.getsource(base)
        lines = source.splitlines()
        for statement in ast.parse(source).body[0].body:
            if isinstance(statement, ast.AnnAssign):
                last = lines[statement.end_lineno - 1]
                above = []
                for line in reversed(lines[: statement.lineno - 1]):
                    if not line.lstrip().startswith("#"):
                        break
                    above.insert(0, line.strip("# "))
                _, _, beside = last[statement.end_col_offset :].partition("#")
                text = beside.strip() or " ".join(above)
                found[statement.target.id] = text[:1].upper() + text[1:]
    return found | {"name": "The kind"} if "name" in found else found


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(PROJECT))
