"""The parameters of a notebook, checked, as an experiment."""

import ast
from typing import Any

from .config import apply_overrides, load_experiment
from .errors import ConfigError, closest_match
from .experiment import Experiment
from .runs.lifecycle import check_experiment

INJECTED = "# Parameters"  # how papermill begins the cell it adds


def check_parameters() -> None:
    """Refuse what papermill was given by a name that the notebook's parameters do not have.

    Papermill itself only warns of it. Raises `ConfigError`.
    """
    from IPython import get_ipython  # there already wherever this is called

    shell = get_ipython()
    check_injected(shell.user_ns["In"] if shell else [])


def check_injected(cells: list[str]) -> None:
    """The same from the source of the cells run so far, of which the last injected one counts."""
    injected = [cell for cell in cells if _is_injected(cell)]
    known = {name: None for cell in cells if not _is_injected(cell) for name in _assignments(cell)}
    for name in _assignments(injected[-1]) if injected and known else ():
        if name not in known:
            raise ConfigError(
                f"unknown parameter {name!r}{closest_match(name, known)} One of: {', '.join(known)}"
            )


def _is_injected(cell: str) -> bool:
    return cell.lstrip().startswith(INJECTED)


def experiment_from_notebook() -> Experiment:
    """The experiment that the notebook's `parameters` cell, and papermill's values, describe.

    Every name assigned in these cells must be a parameter: `variant`, `overrides`, or a name that
    `load_experiment` takes; `None` stands for the variant's own value. Raises `ConfigError` for
    an unknown name, a bad value, or an experiment that could not be trained.
    """
    from IPython import get_ipython  # there already wherever this is called

    shell = get_ipython()
    if shell is None:
        raise ConfigError("experiment_from_notebook() works in a notebook; use load_experiment")
    return experiment_from_cells(shell.user_ns["In"], shell.user_ns)


def experiment_from_cells(cells: list[str], namespace: dict[str, Any]) -> Experiment:
    """The same from the source of the cells run so far.

    A value that is no literal, such as papermill's `float('nan')`, is taken from the namespace.
    """
    values = _parameters(cells, namespace)
    if "variant" not in values:
        raise ConfigError(
            "no cell run so far sets `variant`: run the parameters cell; it holds assignments only"
        )
    experiment = load_experiment(values.pop("variant"))
    overrides = values.pop("overrides", None) or {}
    if not isinstance(overrides, dict):
        raise ConfigError(
            f"overrides = {overrides!r}: give a mapping, e.g. {{'optimizer.lr': 0.05}}"
        )
    set_by_name = {name: value for name, value in values.items() if value is not None}
    for name in set_by_name.keys() & overrides.keys():
        raise ConfigError(f"{name} is set by name and in overrides; say it once")
    experiment = apply_overrides(experiment, values | overrides)
    check_experiment(experiment)
    return experiment


def _parameters(cells: list[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """What the last run parameters cell and the cells injected after it assign."""
    found: dict[str, ast.expr] = {}
    for cell in cells:
        assigned = _assignments(cell)
        if _is_injected(cell) or list(assigned) == ["variant"]:
            found |= assigned
        elif "variant" in assigned:
            found = assigned
    return {name: _value(name, node, namespace) for name, node in found.items()}


def _value(name: str, node: ast.expr, namespace: dict[str, Any]) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return namespace[name]


def _assignments(cell: str) -> dict[str, ast.expr]:
    """The names a cell assigns, if assigning is all that it does; else none."""
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
