"""The pages and the JSON schema that docs/reference.py writes."""

import json

import jsonschema
import pytest
from conftest import script

from resnetlib import list_variants
from resnetlib.paths import PROJECT, params_folder
from resnetlib.yaml_core import read_yaml


@pytest.fixture(scope="module")
def reference():
    with script("docs", "reference") as module:
        yield module


@pytest.mark.slow
def test_reference_pages_are_up_to_date(reference):
    for path, text in reference.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run: python docs/reference.py"


def test_readme_shows_lite_as_its_file_is():
    page = (PROJECT / "docs" / "variant_file.md").read_text(encoding="utf-8")
    _, _, example = page.partition("schema=schema.json\n")
    assert example.partition("```")[0] in (PROJECT / "README.md").read_text(encoding="utf-8")


def test_reference_describes_every_key(reference):
    page = (PROJECT / "docs" / "variant_file.md").read_text(encoding="utf-8")
    for model in reference.models():
        for key, description in reference.descriptions(model).items():
            assert description, f"{model.__name__}.{key} has no comment"
            assert key == "name" or f"| `{key}` |" in page


@pytest.mark.parametrize("variant", list_variants())
def test_json_schema_accepts_every_variant_file(variant):
    content = read_yaml((params_folder() / f"{variant}.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(content, json.loads((params_folder() / "schema.json").read_text()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipee": {}},
        {"architecture": {"block": "basci", "depths": [1], "widths": [8]}},
        {"budget": 0},
    ],
    ids=str,
)
def test_json_schema_refuses_mistakes(wrong):
    content = read_yaml((params_folder() / "lite.yaml").read_text(encoding="utf-8")) | wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, json.loads((params_folder() / "schema.json").read_text()))
