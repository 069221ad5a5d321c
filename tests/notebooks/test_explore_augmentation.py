"""The notebook of augmentations, through papermill."""

import json
import re

import papermill
import pytest
from conftest import NOTEBOOKS, run_papermill

from resnetlib import augment, schema
from resnetlib.errors import ConfigError

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


def test_describe_has_every_augmentation_with_its_defaults():
    described = augment.describe()
    assert list(described) == list(schema.tagged_models(schema.Augment))
    assert described["cutout"].endswith("Defaults: size 16, probability 1.0.")
    assert all(text[0].isupper() or text[0] == "`" for text in described.values())


@pytest.mark.parametrize("name", schema.tagged_models(schema.Augment))
def test_preview_takes_names_and_settings(name, digits):
    images = digits.train[0][:8]
    after = augment.preview(name, images, seed=1)
    assert after.shape == images.shape
    assert (after != images).any()
    assert (augment.preview([{"name": name}], images, seed=1) == after).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([{"name": "cutout", "sise": 8}], "augment.0: unknown key 'sise'; did you mean 'size'?"),
        ([{"name": "cutout", "size": 0}], "augment.0.size = 0: should be greater"),
        (["flip", "cutuot"], "augment.1.name = 'cutuot': should be one of 'crop', "),
        ([3], "augment.0 = 3: give its name, or a mapping of its settings with its name"),
    ],
)
def test_preview_refuses_a_mistake_in_one_line(wrong, message, digits):
    with pytest.raises(ConfigError) as caught:
        augment.preview(wrong, digits.train[0][:2])
    assert str(caught.value).startswith(f"preview: {message}")
    assert "\n" not in str(caught.value)
