"""Read the parameters of a notebook, check them, and build the experiment they describe."""

import ast
import io
import re
import tokenize
from typing import Any

from .config import apply_overrides, load_experiment, override_names
from .errors import ConfigError, closest_match
from .experiment import Experiment
from .progress import is_interactive
from .runs.lifecycle import check_experiment

INJECTED = "# Parameters"  # first line of the cell that papermill injects
PATHS = {"PAPERMILL_INPUT_PATH", "PAPERMILL_OUTPUT_PATH"}  # injected by `--inject-paths`


def check_parameters() -> None:
    """Refuse injected parameters that the notebook does not have; papermill itself only warns.

    Raises `ConfigError`.
    """
    shell = _guarded_shell()
    check_injected(shell.user_ns["In"] if shell else [])


def check_injected(cells: list[str]) -> None:
    """The same for the source of the cells run so far; of the injected cells the last one counts.

    Values injected into a notebook without a cell of parameters are not checked.
    """
    known = {name for cell in cells if not _is_injected(cell) for name in _assignments(cell)}
    if known:
        _refuse_early_injection(cells, known)
        injected = [cell for cell in _with_last_injection(cells) if _is_injected(cell)]
        for name in [name for cell in injected for name in _injected_values(cell)]:
            if name not in known:
                raise _unknown_parameter(name, known)


def experiment_from_notebook() -> Experiment:
    """The experiment described by the notebook's `parameters` cell and the injected values.

    Every assigned name must be a parameter: `variant`, `overrides`, or a name that
    `load_experiment` takes; `None` keeps the variant's own value.

    The values are read from the text of the cells run so far, not from the variables. Only the
    text has every name that papermill injected, and papermill only warns of an unknown one; and a
    later cell may use the name of a parameter for something else, which must not count when this
    cell is run again.

    Raises `ConfigError` for an unknown name, an invalid value, an injected cell that holds more
    than values or is in the wrong place, and an experiment that cannot be trained.
    """
    shell = _guarded_shell()
    if shell is None:
        raise ConfigError("experiment_from_notebook() works in a notebook; use load_experiment")
    return experiment_from_cells(shell.user_ns["In"], shell.user_ns)


def experiment_from_cells(cells: list[str], namespace: dict[str, Any]) -> Experiment:
    """The same from the source of the cells run so far.

    A value in the notebook's own cells that is not a literal is taken from the namespace.
    """
    known, values = _collect(cells, namespace)
    experiment = load_experiment(values.pop("variant"))
    overrides = values.pop("overrides", None) or {}
    if not isinstance(overrides, dict):
        raise ConfigError(
            f"overrides = {overrides!r}: give a mapping, e.g. {{'optimizer.lr': 0.05}}"
        )
    possible = known | override_names(experiment)
    for name, value in values.items():
        if value is not None and name in overrides:
            raise ConfigError(f"{name} is specified twice: by name and in overrides")
        if name not in possible and (close := closest_match(name, sorted(possible))):
            raise ConfigError(f"unknown parameter {name!r}{close}")
    experiment = apply_overrides(experiment, values | overrides)
    check_experiment(experiment)
    return experiment


def _guarded_shell() -> Any:
    """The notebook's shell, or None outside a notebook.

    In a notebook that is executed unattended, a cell injected later than this call fails, since
    its values would have no effect: the `parameters` tag is on a cell too far down.
    """
    from IPython import get_ipython  # always installed where a notebook runs

    shell = get_ipython()
    if shell and not is_interactive():
        transformers = shell.input_transformers_cleanup  # called with the lines of each cell
        if _refuse_late_injection not in transformers:
            transformers.append(_refuse_late_injection)
    return shell


def _refuse_late_injection(lines: list[str]) -> list[str]:
    if lines and _is_injected(lines[0]):
        raise ConfigError(
            "papermill injected its values after the parameters were read; "
            "move the tag `parameters` to the cell of the defaults"
        )
    return lines


def _refuse_early_injection(cells: list[str], known: set[str]) -> None:
    """Refuse values that the notebook's own defaults, run after them, have replaced."""
    injected = [number for number, cell in enumerate(cells) if _is_injected(cell)]
    own = [cell for cell in cells[: injected[-1]] if not _is_injected(cell)] if injected else []
    if injected and not any(known & _assignments(cell).keys() for cell in own):
        raise ConfigError(
            "papermill injected its values above the cell of the defaults, which would replace "
            "them; give that cell the tag `parameters`"
        )


def _collect(cells: list[str], namespace: dict[str, Any]) -> tuple[set[str], dict[str, Any]]:
    """Names in the parameters cell run last, and all values set by it and by the cells after it.

    Of these, a cell counts when papermill injected it last, or when it only assigns literals,
    among them one of a parameter.
    """
    parameters: dict[str, ast.expr] = {}  # of the parameters cell
    later: dict[str, Any] = {}
    readable = False
    for cell in _with_last_injection(cells):
        assigned = _assignments(cell)
        if _is_injected(cell):
            later |= _injected_values(cell)
        elif _is_parameters_cell(cell, set(parameters)):
            parameters, readable, later = assigned or parameters, bool(assigned), {}
        elif parameters.keys() & assigned.keys() and all(map(_is_literal, assigned.values())):
            later |= {name: _literal(node) for name, node in assigned.items()}
    if not readable:
        raise ConfigError(
            "the parameters cell holds assignments only: move the other code to another cell"
            if parameters
            else "no cell run so far sets `variant`: run the parameters cell; it holds "
            "assignments only"
        )
    known = set(parameters)
    _refuse_early_injection(cells, known)
    values = {name: _value(name, node, namespace) for name, node in parameters.items()}
    return known, values | later


def _is_parameters_cell(cell: str, known: set[str]) -> bool:
    """Whether it sets `variant` and most of the names known from the last parameters cell.

    Not all: a line may have been deleted. The text is searched, since the cell may hold other
    code, which is then refused and not ignored, unless `variant` is all that it sets.
    """
    names = set(re.findall(r"^(\w+)\s*(?::[^=\n]+)?=(?!=)", cell, re.MULTILINE))
    if "variant" not in names or not known:
        return "variant" in names
    most = 2 * len(known & names) > len(known)
    return most and (len(known & names) > 1 or bool(_assignments(cell)))


def _with_last_injection(cells: list[str]) -> list[str]:
    """The cells without those injected, and run, before the last injected one: it replaces them."""
    injected = [number for number, cell in enumerate(cells) if _is_injected(cell)]
    return [cell for number, cell in enumerate(cells) if number not in injected[:-1]]


def _is_injected(cell: str) -> bool:
    return cell.lstrip().partition("\n")[0].rstrip() == INJECTED


def _injected_values(cell: str) -> dict[str, Any]:
    """What an injected cell assigns. Raises `ConfigError` where it holds anything else.

    Papermill writes `name = value` lines without checking the name, which may thus be any code.
    """
    values: dict[str, Any] = {}
    try:
        statements = ast.parse(cell).body
        comments = [
            token
            for token in tokenize.generate_tokens(io.StringIO(cell).readline)
            if token.type == tokenize.COMMENT
        ]
    except (SyntaxError, tokenize.TokenError):
        raise _not_a_name(cell.strip().removeprefix(INJECTED)) from None
    if len(comments) > 1:  # a name with `#` hides its value
        raise _not_a_name(comments[1].line)
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if (
                statement.col_offset == 0 and name not in values and _is_literal(value)
            ):
                values[name] = _literal(value)
            case _:
                raise _not_a_name(ast.get_source_segment(cell, statement) or cell)
    return {name: value for name, value in values.items() if name not in PATHS}


def _not_a_name(text: str) -> ConfigError:
    text = " ".join(text.split())
    text = text if len(text) <= 60 else f"{text[:60]}…"
    return ConfigError(
        f"papermill injected {text!r}; each parameter must be one plain name with one value"
    )


def _unknown_parameter(name: str, known: set[str]) -> ConfigError:
    return ConfigError(
        f"unknown parameter {name!r}{closest_match(name, sorted(known)) or '.'} "
        f"One of: {', '.join(sorted(known))}"
    )


class _Floats(ast.NodeTransformer):
    """`float('nan')`, as papermill writes what has no literal, becomes a constant."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        match node:
            case ast.Call(
                func=ast.Name(id="float"),
                args=[ast.Constant(value="nan" | "inf" | "-inf" as text)],
                keywords=[],
            ):
                return ast.Constant(float(text))
        return node


def _literal(node: ast.expr) -> Any:
    return ast.literal_eval(_Floats().visit(node))


def _is_literal(node: ast.expr) -> bool:
    try:
        _literal(node)
    except (ValueError, TypeError):  # the latter for {[]: 1}
        return False
    return True


def _value(name: str, node: ast.expr, namespace: dict[str, Any]) -> Any:
    if _is_literal(node):
        return _literal(node)
    if name not in namespace:  # its cell failed
        raise ConfigError(f"{name} = {ast.unparse(node)}: it has no value; are quotes missing?")
    return namespace[name]


def _assignments(cell: str) -> dict[str, ast.expr]:
    """The names a cell assigns, if it does nothing else; otherwise none."""
    try:
        statements = ast.parse(cell).body
    except SyntaxError:  # a cell with a magic
        return {}
    found = {}
    for statement in statements:
        match statement:
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                found[name] = value
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                found[name] = value
            case _:
                return {}
    return found
