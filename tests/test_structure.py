"""The rules of the repository: floors, public names, imports without effects, dependencies."""

import ast
import json
import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from conftest import NOTEBOOKS, PROJECT

import resnetlib

FLOORS = {
    "schema": 0,
    "blocks": 0,
    "rng": 0,
    "files": 0,
    "evaluate": 0,
    "image_ops": 0,
    "plots": 0,
    "progress": 0,
    "tables": 0,
    "config": 1,
    "augment": 1,
    "schedule": 1,
    "calibrate": 1,
    "comparison_plots": 1,
    "corruptions": 1,
    "explain": 1,
    "significance": 1,
    "resnet": 2,
    "data": 2,
    "diagram": 2,
    "compute": 3,
    "design": 3,
    "runs": 4,
    "bench": 4,
    "results": 5,
    "report": 5,
    "train": 6,
    "index": 6,
    "notebook": 7,
    "analysis": 5,
    "comparing": 7,
    "execute": 7,
    "submission": 5,
    "cli": 8,
}
PUBLIC = {
    "build_model",
    "count_parameters",
    "evaluate",
    "experiment_from_notebook",
    "list_variants",
    "load_dataset",
    "load_experiment",
    "load_pretrained",
    "load_run",
    "model_summary",
    "train",
}
MODULES = sorted((PROJECT / "resnetlib").glob("[!_]*.py"))
ALL_NOTEBOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))


def imported_modules(path):
    """The modules of the package that a file imports, at any depth of it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 1:
            yield from [node.module] if node.module else [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resnetlib"):
            yield node.module.removeprefix("resnetlib").lstrip(".") or "__init__"
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.removeprefix("resnetlib").lstrip(".")
                for alias in node.names
                if alias.name.startswith("resnetlib")
            )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_modules_import_only_from_lower_floors(path):
    for module in imported_modules(path):
        assert FLOORS[module] < FLOORS[path.stem], f"{path.stem} imports {module}"


def test_every_module_has_a_floor():
    assert {path.stem for path in MODULES} == set(FLOORS)


def test_public_names_are_exactly_those_of_the_design():
    assert set(resnetlib.__all__) == PUBLIC
    assert all(callable(getattr(resnetlib, name)) for name in PUBLIC)


def test_importing_prints_nothing_seeds_nothing_and_writes_nothing(tmp_path):
    program = (
        "import random, numpy, torch\n"
        "before = torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1].copy()\n"
        "import resnetlib\n"
        "assert torch.equal(before[0], torch.get_rng_state())\n"
        "assert before[1] == random.getstate()\n"
        "assert (before[2] == numpy.random.get_state()[1]).all()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ALL_NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_in_short_cells(path):
    cells = json.loads(path.read_text())["cells"]
    for before, cell in zip([None, *cells], cells, strict=False):
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        assert not cell["outputs"], f"stored with outputs: {source}"
        assert cell["execution_count"] is None
        assert len(source.splitlines()) <= 15, source
        assert before["cell_type"] == "markdown", f"no sentence above: {source}"


def names_of(requirements):
    return {re.split(r"[<>=!~\[; ]", line, maxsplit=1)[0].lower() for line in requirements}


def test_pyproject_lock_and_environment_name_the_same_packages():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    lock = (PROJECT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    assert names_of(wanted) <= set(locked)

    environment = yaml.safe_load((PROJECT / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    *conda, pip = environment["dependencies"]
    spelled = {"pytorch": "torch", "matplotlib-base": "matplotlib"}
    given = {re.sub(r"^[a-z-]+", lambda m: spelled.get(m[0], m[0]), line) for line in conda}
    assert "--editable ." in pip["pip"]
    given |= set(pip["pip"]) - {"--editable ."}
    assert given - {"pip", f"python{project['requires-python']}"} == set(wanted)
    assert f"python{project['requires-python']}" in given


def test_lock_has_a_hash_for_every_package_and_names_no_host():
    lock = (PROJECT / "requirements.lock").read_text()
    packages = re.split(r"^(?=[a-z0-9._-]+==)", lock, flags=re.MULTILINE)[1:]
    assert packages
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in lock
