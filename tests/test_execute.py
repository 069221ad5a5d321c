"""The command that trains a run, and the notebook that is executed over it."""

import json

import pytest
import yaml
from conftest import NOTEBOOKS, PROJECT, TINY

from resnetlib import execute, load_experiment
from resnetlib.execute import notebook_arguments, run_experiment
from resnetlib.runs.verify import verify_runs


def test_fresh_is_not_passed_to_the_notebook():
    given = {"fresh": True, "execution.fresh": True, "epochs": 2, "depths": [1]}
    arguments = notebook_arguments("lite", given)
    assert arguments == {"variant": "lite", "epochs": 2, "overrides": {"depths": [1]}}


def test_defaults_saved_in_the_notebook_do_not_count(tmp_path, monkeypatch):
    text = (NOTEBOOKS / "run_experiment.ipynb").read_text(encoding="utf-8")
    changes = {"seed": ("int", "7"), "fresh": ("bool", "True"), "overrides": ("dict", "{'eps': 1}")}
    for name, (kind, value) in changes.items():
        default = "{}" if name == "overrides" else "None"
        assert f"{name}: {kind} = {default}" in text
        text = text.replace(f"{name}: {kind} = {default}", f"{name}: {kind} = {value}")
    (tmp_path / "run_experiment.ipynb").write_text(text, encoding="utf-8")
    monkeypatch.setattr(execute, "notebooks_folder", lambda: tmp_path)
    arguments = {"variant": "lite", "seed": None, "fresh": None, "overrides": None}
    assert notebook_arguments("lite", {}) == arguments
    assert notebook_arguments("lite", {"seed": 2}) == arguments | {"seed": 2}


@pytest.mark.slow
def test_notebook_shows_the_run_although_its_variant_file_has_changed(tmp_path, monkeypatch):
    """The file is edited while the run trains."""
    path = tmp_path / "mine.yaml"
    content = yaml.safe_load((PROJECT / "params" / "lite.yaml").read_text())
    names = ("title", "source", "architecture", "recipe")
    kept = {name: content[name] for name in names} | {"variant": "mine"}
    execution = {"output_root": str(tmp_path / "out"), "device": "cpu"}
    kept["execution"] = execution  # not in `experiment.yaml`
    path.write_text(yaml.safe_dump(kept))
    settings = {name: value for name, value in TINY.items() if name != "device"} | {"epochs": 1}

    def train_and_edit(experiment):
        run = execute.load_run(train(experiment).path)
        kept["recipe"]["label_smoothing"] = 0.3
        path.write_text(yaml.safe_dump(kept))
        return run

    train = execute.train
    monkeypatch.setattr(execute, "train", train_and_edit)
    run = run_experiment(load_experiment(path, **settings), notebook_arguments(path, settings))
    assert [run.path] == list((tmp_path / "out" / "mine").iterdir())
    ((_, results),) = verify_runs([run.path])
    assert results["report"].status == "PASS"
    notebook = json.loads((run.path / "notebook.ipynb").read_text())
    (cell,) = [c for c in notebook["cells"] if "injected-parameters" in c["metadata"]["tags"]]
    assert f'variant = "{path}"\n' in cell["source"]
