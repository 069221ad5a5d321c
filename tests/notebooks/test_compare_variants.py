"""The notebook that compares two runs, as papermill executes it."""

import json

import papermill
import pytest
from conftest import NOTEBOOKS, run_papermill

pytestmark = pytest.mark.slow

NOTEBOOK = NOTEBOOKS / "compare_variants.ipynb"


def text_of(outputs):
    """All text of a cell's outputs."""
    return "".join(
        part if isinstance(part, str) else "".join(part)
        for output in outputs
        for part in [output.get("text") or output.get("data", {}).get("text/plain", "")]
    )


def test_parameters_are_inspectable():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert list(found) == ["first", "second", "dataset", "output_root", "data_root"]
    assert all(p["inferred_type_name"] == "str" and p["help"] for p in found.values())


def test_notebook_compares_the_recorded_runs(cifar10_folder, tmp_path):
    words = ["-p", "first", "lite", "-p", "second", "lite", "-p", "output_root", "none"]
    done = run_papermill(NOTEBOOK, "out.ipynb", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    notebook = json.loads((tmp_path / "out.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    results = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in results if output.get("name") == "stderr"]
    assert all(len(cell["outputs"]) <= 1 for cell in code)
    assert sum("image/png" in output.get("data", {}) for output in results) == 5
    text = text_of(results)
    first, second = (f"lite seed {seed}" for seed in (0, 1))
    assert f"{first} and {second}" in text
    assert f"Distinguishable on these 10,000 images: {second} is better than {first}" in text
    assert "Both have the same recipe" in text
    assert "widgets" not in notebook["metadata"]  # a report shows it without any network
    assert (tmp_path / "out.ipynb").stat().st_size < 2_000_000
