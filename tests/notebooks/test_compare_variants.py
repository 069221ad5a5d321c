"""The notebook that compares two runs, as papermill executes it."""

import json

import papermill
import pytest
from conftest import NOTEBOOKS, outputs_of, run_papermill, text_of, with_figure, with_warning

pytestmark = pytest.mark.slow

NOTEBOOK = NOTEBOOKS / "compare_variants.ipynb"


def test_parameters_are_inspectable():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert list(found) == ["first", "second", "dataset", "output_root", "data_root"]
    assert all(p["inferred_type_name"] == "str" and p["help"] for p in found.values())


def test_notebook_compares_the_recorded_runs(cifar10_folder, tmp_path):
    words = ["-p", "first", "lite", "-p", "second", "lite", "-p", "output_root", "none"]
    done = run_papermill(NOTEBOOK, "out.ipynb", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = outputs_of(tmp_path / "out.ipynb")
    assert not with_warning(cells)
    assert all(len(outputs) <= 1 for outputs in cells.values())
    assert len(with_figure(cells)) == 5
    text = "".join(map(text_of, cells.values()))
    first, second = (f"lite seed {seed}" for seed in (0, 1))
    assert f"{first} and {second}" in text
    assert f"Distinguishable on these 10,000 images: {second} is better than {first}" in text
    assert "Both have the same recipe" in text
    metadata = json.loads((tmp_path / "out.ipynb").read_text())["metadata"]
    assert "widgets" not in metadata  # a report shows it without any network
    assert (tmp_path / "out.ipynb").stat().st_size < 2_000_000
