"""The rules of the repository: floors, public names, imports without effects, dependencies."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import NOTEBOOKS, PROJECT

import resnetlib

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
MODULES = {
    ".".join(path.relative_to(PROJECT).with_suffix("").parts)
    for path in (PROJECT / "resnetlib").rglob("[!_]*.py")
}
ALL_NOTEBOOKS = sorted(NOTEBOOKS.glob("*.ipynb"))


def test_imports_keep_the_layers():
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_every_module_stands_in_a_layer():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())
    (contract,) = project["tool"]["importlinter"]["contracts"]
    layered = {name.strip() for layer in contract["layers"] for name in layer.split("|")}
    covered = {name for name in MODULES if any(f"{name}.".startswith(f"{one}.") for one in layered)}
    assert covered == MODULES
    assert layered <= MODULES | {"resnetlib.__main__", "resnetlib.augment"}


def test_no_function_shares_the_name_of_a_module():
    stems = {name.rpartition(".")[2] for name in MODULES}
    for name in MODULES:
        tree = ast.parse((PROJECT / f"{name.replace('.', '/')}.py").read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not functions & stems, f"{name}: {functions & stems}"


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
