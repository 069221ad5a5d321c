"""The notebook of augmentations, through papermill."""

import json
import re

import papermill
import pytest
from conftest import NOTEBOOKS, run_papermill

from resnetlib import schema

pytestmark = pytest.mark.slow

NOTEBOOK = NOTEBOOKS / "explore_augmentation.ipynb"


def test_explore_augmentation_parameters():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert list(found) == ["augment", "dataset", "data_root", "seed"]
    assert all(parameter["help"] for parameter in found.values())


def test_explore_augmentation_in_batch(tmp_path):
    """From a working directory that is not its own."""
    words = ["-p", "dataset", "digits", "-p", "augment", "crop,cutout"]
    done = run_papermill(NOTEBOOK, "out.ipynb", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    cells = json.loads((tmp_path / "out.ipynb").read_text())["cells"]
    outputs = {cell["id"]: cell["outputs"] for cell in cells if cell["cell_type"] == "code"}
    assert not [o for all_of in outputs.values() for o in all_of if o.get("name") == "stderr"]
    pictures = {
        name
        for name, all_of in outputs.items()
        if any("image/png" in output.get("data", {}) for output in all_of)
    }
    assert pictures == {"data", "gallery", "draws", "strength"}
    table = "".join(outputs["table"][0]["data"]["text/html"])
    names = re.findall(r"<th [^>]*row_heading[^>]*>\s*(\w+)\s*</th>", table)
    assert names == list(schema.tagged_models(schema.Augment))
