"""What every notebook keeps to: short cells, a sentence above each, checked parameters."""

import itertools
import json
import re

import pytest
from conftest import NOTEBOOKS, run_papermill


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_cells_are_small_and_introduced(path):
    """At most 15 lines (the parameters apart), a sentence above each, no output, live links."""
    cells = json.loads(path.read_text())["cells"]
    assert cells[0]["cell_type"] == "markdown"
    for above, cell in itertools.pairwise(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] == "code":
            tagged = "parameters" in cell["metadata"].get("tags", [])
            assert len(cell["source"]) <= 15 or tagged, source
            assert above["cell_type"] == "markdown", source
            assert not cell["outputs"] and cell["execution_count"] is None, source
        for link in re.findall(r"\]\((\w+\.ipynb)\)", source):
            assert (NOTEBOOKS / link).is_file(), link


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_notebook_checks_its_parameters_first(path):
    cells = json.loads(path.read_text())["cells"]
    cells = [cell for cell in cells if cell["cell_type"] == "code"]
    tags = [cell["metadata"].get("tags", []) for cell in cells]
    following = "".join(cells[tags.index(["parameters"]) + 1]["source"])
    statements = [line for line in following.splitlines() if line and "import " not in line]
    checks = {"check_parameters()", "experiment = experiment_from_notebook()"}
    assert statements[0] in checks


@pytest.mark.exhaustive
def test_unknown_parameter_of_another_notebook(tmp_path):
    done = run_papermill(
        NOTEBOOKS / "analyze_errors.ipynb", "out.ipynb", "-p", "rnu", "x", cwd=tmp_path
    )
    assert done.returncode == 1
    assert "ConfigError: unknown parameter 'rnu'; did you mean 'run'?" in done.stderr
