"""Read and write YAML: the core schema of YAML 1.2, bounded in size and depth.

`1e-3` and `nan` are numbers, `yes` and `no` are strings. Leading zeros, duplicate keys, aliases,
merge keys and tags are refused.
"""

import copy
import re
from functools import lru_cache
from typing import Any

import yaml

MAX_CHARACTERS = 50_000  # a second to parse at most; the longest variant file has 5,000
MAX_DEPTH = 20  # lists and mappings inside each other
MAX_DIGITS = 30  # of an integer; Python refuses to print one of 4,300

_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **{dot + text: float("nan") for text in ("nan", "NaN", "NAN") for dot in (".", "")},
    **{
        sign + text: float(sign + "inf")
        for text in (".inf", ".Inf", ".INF")
        for sign in ("", "+", "-")
    },
}


def read_scalar(text: str) -> Any:
    """The value of an unquoted scalar. Raises `ValueError` for a number that is not accepted."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    is_integer = _INTEGER.fullmatch(text)
    if not is_integer and not _FLOAT.fullmatch(text):
        return text
    if re.match(r"[-+]?0[0-9]", text):
        raise ValueError("a number has no leading zeros; put text in quotes")
    if is_integer and len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} characters is too large")
    return int(text, 0) if is_integer else float(text)


def read_yaml(text: str) -> Any:
    """The content of one document. Raises `ValueError` with one line that names the mistake."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"more than {MAX_CHARACTERS:,} characters")
    return copy.deepcopy(_parse(text))


@lru_cache(maxsize=100)  # a page of all runs reads the file of their variant for each of them
def _parse(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  a SafeLoader with less
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def write_yaml(content: Any) -> str:
    """The document that `read_yaml` reads back."""
    return yaml.dump(
        content,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        width=100,
        default_flow_style=None,
    )


class _Loader(yaml.SafeLoader):
    """Plain scalars are values by `read_scalar`; nothing is shared and nothing is tagged."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's way to resolve nothing by itself)
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor:
            raise _problem("anchors and aliases are not supported; write the value out", event)
        if event.tag:
            raise _problem(f"tags such as {event.tag[:40]} are not supported", event)
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _problem(f"nested more than {MAX_DEPTH} levels deep", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_yaml_str(self, node: yaml.ScalarNode) -> Any:
        try:
            return node.value if node.style else read_scalar(node.value)
        except ValueError as error:
            raise _problem(str(error), node) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node) if key_node.id == "scalar" else None
            if not isinstance(key, str):
                raise _problem("a key must be a name", key_node)
            if key == "<<":
                raise _problem("merge keys are not supported; write the keys out", key_node)
            if key in seen:
                raise _problem(f"key {key[:40]!r} is specified twice", key_node)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_yaml_str)


def _problem(message: str, where: yaml.Event | yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=message, problem_mark=where.start_mark)


class _Dumper(yaml.SafeDumper):
    """Also quotes the strings that `read_scalar` takes for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    is_plain = not (_INTEGER.fullmatch(text) or _FLOAT.fullmatch(text) or text in _CONSTANTS)
    style = None if is_plain else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_str)
