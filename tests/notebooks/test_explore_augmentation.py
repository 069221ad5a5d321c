"""The notebook of augmentations, through papermill."""

import re

import papermill
import pytest
from conftest import NOTEBOOKS, outputs_of, run_papermill, text_of, with_figure, with_warning

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
    cells = outputs_of(tmp_path / "out.ipynb")
    assert not with_warning(cells)
    assert with_figure(cells) == {"data", "gallery", "draws", "strength"}
    names = re.findall(r"<th [^>]*row_heading[^>]*>\s*(\w+)\s*</th>", text_of(cells["table"]))
    assert names == list(schema.tagged_models(schema.Augment))
