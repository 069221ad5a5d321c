"""The lists of hosted package versions agree with the notebooks and with pyproject."""

import re
import tomllib

import papermill
import pytest
from conftest import NOTEBOOKS, PROJECT, benchmark
from packaging.requirements import Requirement
from packaging.version import Version

LISTS = sorted((PROJECT / "benchmarks" / "hosts").glob("*.txt"))


def versions(path):
    """The exact versions of a list, by package."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and line[0] != "#")


@pytest.fixture(scope="module")
def dependencies():
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return {one.name: one.specifier for one in map(Requirement, project["dependencies"])}


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.stem)
def test_hosted_versions_satisfy_pyproject(path, dependencies):
    assert re.match(r"# python 3\.\d+: ", path.read_text(encoding="utf-8"))
    listed = versions(path)
    assert {"torch", "numpy", "pandas", "nbconvert", "ipython", "jupyter_client"} <= set(listed)
    for name, version in listed.items():
        assert dependencies.get(name, Requirement(name).specifier).contains(version), name


@pytest.mark.parametrize("name", ["torch", "torchvision", "matplotlib", "nbconvert", "scipy"])
def test_lower_bounds_are_what_was_run(name, dependencies):
    (bound,) = dependencies[name]
    oldest = min(Version(listed[name]) for listed in map(versions, LISTS) if name in listed)
    assert oldest.release[:2] == Version(bound.version).release[:2]


def test_hosted_parameters_are_those_of_the_notebooks():
    with benchmark("hosted") as hosted:
        assert sorted(hosted.PARAMETERS) == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
        for name, values in hosted.PARAMETERS.items():
            found = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
            assert set(values) <= set(found), name
