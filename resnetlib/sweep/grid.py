"""The runs of a grid: variants and alternatives of parameters, every combination."""

import contextlib
import io
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..config import parse_parameter, parse_value
from ..errors import ConfigError, print_line, shorten
from ..experiment import Execution
from ..size import check_size
from .task import Task

MAX_RUNS = 10_000
RANGE = re.compile(r"(-?\d{1,19})\.\.(-?\d{1,19})")


def expand_grid(variants: Sequence[str], parameters: Iterable[tuple[str, str]]) -> list[Task]:
    """One task for each variant and each combination of the parameters' alternatives.

    Every experiment is checked. The first parameters vary slowest. Raises `ConfigError`.
    """
    grid = dict(read_alternatives(parameters))
    count = len(variants) * math.prod(map(len, grid.values()))
    if count > MAX_RUNS:
        raise ConfigError(f"{count:,} runs are more than {MAX_RUNS:,}; give fewer alternatives")
    combinations = [
        (variant, dict(zip(grid, values, strict=True)))
        for values in itertools.product(*grid.values())
        for variant in variants
    ]
    with each_note_once():
        tasks = [Task(variant, overrides) for variant, overrides in combinations]
    by_folder: dict[Any, Task] = {}
    for task in tasks:
        check_size(task.experiment)
        if (other := by_folder.setdefault(task.folder, task)) is not task:
            raise ConfigError(f"{other.name} and {task.name} are the same run")
    return tasks


def read_alternatives(parameters: Iterable[tuple[str, str]]) -> Iterator[tuple[str, list[Any]]]:
    """The alternatives of each parameter. Raises `ConfigError`."""
    seen = set()
    for name, text in parameters:
        key = name.rpartition(".")[2]
        if name in seen:
            raise ConfigError(f"-p {name} is specified twice; separate alternatives by commas")
        if key == "fresh":
            raise ConfigError("-p fresh: a sweep resumes its runs; use another `-p output_root`")
        if name == "variant":
            raise ConfigError("variants are the first arguments; omit `-p variant`")
        seen.add(name)
        if key in Execution.model_fields:  # where and how: the same for all runs
            yield name, [parse_parameter(name, text)]
            continue
        values = alternatives(text)
        for number, value in enumerate(values):
            if value in values[:number]:
                raise ConfigError(
                    f"-p {name} {text}: {shorten(value)} appears twice; commas separate "
                    "alternatives, a list is written in brackets: '[2,2,2]'"
                )
        yield name, values


def alternatives(text: str) -> list[Any]:
    """`0.05,0.1`, `0..4` or `[2,2],[3,3]` as a list of values."""
    values: list[Any] = []
    for part in split_outside_brackets(text):
        if not part.strip():
            raise ConfigError(f"{shorten(text)}: an alternative is empty")
        bounds = RANGE.fullmatch(part.strip())
        if not bounds:
            values.append(parse_value(part))
            continue
        first, last = map(int, bounds.groups())
        if not 0 <= last - first < MAX_RUNS:
            raise ConfigError(f"{part.strip()}: give a range of 1 to {MAX_RUNS:,} values, as 0..4")
        values += range(first, last + 1)
    return values


def split_outside_brackets(text: str) -> list[str]:
    """The parts between the commas that are in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "'\"":
            quote = sign
        elif sign in "[{(":
            depth += 1
        elif sign in "]})":
            depth -= 1
        if sign == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += sign
    return parts


@contextlib.contextmanager
def each_note_once() -> Iterator[None]:
    """Where a line on stderr that many experiments cause is printed once."""
    notes = io.StringIO()
    try:
        with contextlib.redirect_stderr(notes):
            yield
    finally:
        for note in dict.fromkeys(notes.getvalue().splitlines()):
            print_line(note, to_stderr=True)
