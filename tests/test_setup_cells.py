"""The set-up cells and badges that docs/setup_cells.py writes."""

import importlib.util
import json
import shutil
import sys
import types
from importlib.machinery import PathFinder

import pytest
from conftest import NOTEBOOKS, script
from IPython.core.inputtransformer2 import TransformerManager


@pytest.fixture
def setup_cells():
    """The script that writes the set-up cells and badges, as a module."""
    with script("docs", "setup_cells") as module:
        yield module


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_setup_cell_is_first_and_as_written(path, setup_cells):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    written = setup_cells.setup_cells(setup_cells.repository(), path.name)
    assert [cell["id"] for cell in cells[1:3]] == list(written)
    assert ["".join(cell["source"]) for cell in cells[1:3]] == list(written.values())
    assert "parameters" in cells[4]["metadata"]["tags"]


@pytest.mark.parametrize("address", ["", "https://github.com/someone/something"])
def test_setup_cell_installs_on_kaggle_only(address, setup_cells, tmp_path, monkeypatch):
    """In IPython, without a project, with one, and where it is installed already.

    A folder that is called `resnetlib` and holds the project is not the package.
    """
    source = setup_cells.setup_cells(address, "x.ipynb")["setup"]
    assert len(source.splitlines()) <= 15
    commands = []
    shell = types.SimpleNamespace(
        system=commands.append, run_line_magic=lambda name, line: commands.append([name, line])
    )
    source = TransformerManager().transform_cell(source)  # `!` and `%` as IPython calls them
    monkeypatch.chdir(tmp_path)

    def run():
        commands.clear()
        exec(source, {"get_ipython": lambda: shell})

    def find_spec(name):  # without the project that is tested here
        importlib.invalidate_caches()
        return PathFinder.find_spec(name, ["", sys.path[0]])

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    run()
    assert commands == []  # it is not on Kaggle
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    with pytest.raises(FileNotFoundError, match="internet" if address else "upload its ZIP file"):
        run()
    package = tmp_path / "resnetlib" / "resnetlib"
    (package / "runs").mkdir(parents=True)
    (package / "__init__.py").touch()
    run()
    assert commands[:-1] == (
        [f"git clone --quiet --depth 1 {address} resnetlib-project"] * bool(address)
    )
    name, line = commands[-1]
    assert name == "pip" and "{" in line
    assert sys.path[0] == str(package.parent)
    run()
    assert commands == []  # it is found
    monkeypatch.undo()
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    run()
    assert commands == []  # it is installed


def test_badges_open_the_notebook_of_the_repository(setup_cells, tmp_path):
    """They are in every notebook and in the README as soon as there is an address."""
    address = "https://github.com/someone/something"
    shutil.copytree(NOTEBOOKS, tmp_path / "notebooks")
    marks = f"# Title\n\n{setup_cells.BADGES}\n{setup_cells.END}\n\nText\n"
    (tmp_path / "README.md").write_text(marks, encoding="utf-8")
    setup_cells.write_all(tmp_path, address)
    colab = "(https://colab.research.google.com/github/someone/something/blob/main/notebooks/"
    kaggle = f"(https://kaggle.com/kernels/welcome?src={address}/blob/main/notebooks/"
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        assert f"{colab}{path.name})" in text and f"{kaggle}{path.name})" in text
        assert f"!git clone --quiet --depth 1 {address} " in text
    assert f"{colab}run_experiment.ipynb)" in (tmp_path / "README.md").read_text(encoding="utf-8")
    setup_cells.write_all(tmp_path, "")
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == marks
    for path in NOTEBOOKS.glob("*.ipynb"):
        assert (tmp_path / "notebooks" / path.name).read_bytes() == path.read_bytes()
