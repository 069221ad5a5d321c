"""The notebook submit_kaggle under papermill, from any working directory."""

import pickle

import numpy as np
import papermill
import pytest
from conftest import NOTEBOOKS, outputs_of, run_papermill, text_of, with_figure, with_warning

from resnetlib import load_experiment, train
from resnetlib.kaggle import check_submission
from resnetlib.runs.find import reference_runs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]

NOTEBOOK = NOTEBOOKS / "submit_kaggle.ipynb"
REFERENCE = "outputs/reference/lite/cifar10-seed0-9fbf37a8"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    settings = {"dataset": "digits", "epochs": 2, "depths": [1], "widths": [4], "device": "cpu"}
    root = tmp_path_factory.mktemp("outputs")
    return train(load_experiment("lite", batch_size=64, output_root=root, **settings))


def execute(cwd, **parameters):
    words = [word for item in parameters.items() for word in ("-p", *item)]
    return run_papermill(NOTEBOOK, "out.ipynb", *words, cwd=cwd)


def test_parameters_are_inspectable():
    found = papermill.inspect_notebook(str(NOTEBOOK))
    assert list(found) == ["run", "file", "output", "tta", "data_root", "output_root"]
    assert all(parameter["help"] for parameter in found.values())
    assert {parameter["inferred_type_name"] for parameter in found.values()} == {"str"}


@pytest.fixture(scope="module")
def dry_run(run, tmp_path_factory):
    """The folder of an executed notebook that was given no file."""
    folder = tmp_path_factory.mktemp("dry_run")
    done = execute(folder, run=run.path, output_root=folder / "outputs")
    assert done.returncode == 0, done.stderr
    return folder


def test_dry_run_gives_the_accuracy_of_the_run(dry_run, run):
    cells = outputs_of(dry_run / "out.ipynb")
    facts = text_of(cells["prediction"])
    assert facts.count(f"{run.metrics['test_accuracy']:.2%}") == 2
    assert "0e+00" in facts  # the logits are equal to the last bit
    (path,) = (dry_run / "outputs" / "submissions").iterdir()
    written = check_submission(path, [str(n) for n in range(450)])
    assert written["Labels"].tolist() == run.evaluation.predictions.tolist()
    assert "dry run: nothing to upload" in text_of(cells["upload"])


def test_notebook_has_all_figures_and_no_warning(dry_run):
    cells = outputs_of(dry_run / "out.ipynb")
    assert not with_warning(cells)
    assert with_figure(cells) == {"images", "balance", "uncertain"}
    assert (dry_run / "out.ipynb").stat().st_size < 3_000_000


def test_notebook_submits_the_recorded_lite(cifar10, tmp_path):
    (run,) = [run for run in reference_runs() if run.path.as_posix().endswith(REFERENCE)]
    data = np.ascontiguousarray(cifar10.test[0][:1000].permute(0, 2, 3, 1).numpy())
    ids = [f"image-{n}" for n in range(1000)]
    (tmp_path / "test.pkl").write_bytes(pickle.dumps({b"data": data, b"ids": ids}))
    done = execute(tmp_path, run=REFERENCE, file="test.pkl", output="mine.csv")
    assert done.returncode == 0, done.stderr
    written = check_submission(tmp_path / "mine.csv", ids)
    evaluation = run.evaluation
    margins = evaluation.logits[:1000].topk(2).values.diff().abs()[:, 0]
    same = written["Labels"].to_numpy() == evaluation.predictions[:1000].numpy()
    assert same[margins.numpy() > 2e-3].all()  # closer ones may differ on another processor
    cells = outputs_of(tmp_path / "out.ipynb")
    assert not with_warning(cells)
    assert ">1,000<" in text_of(cells["file"])
    assert "dry run" not in text_of(cells["prediction"])
    assert "kaggle competitions submit" in text_of(cells["upload"])


def test_notebook_names_a_missing_file_in_one_line(tmp_path):
    done = execute(tmp_path, run=REFERENCE, output_root=tmp_path / "outputs", file="absent.pkl")
    assert done.returncode == 1
    assert "DataError: absent.pkl cannot be read: No such file" in done.stderr
    assert "resnetlib/" not in done.stderr  # no traceback from deep inside
    assert not (tmp_path / "outputs").exists()
    assert not outputs_of(tmp_path / "out.ipynb")["prediction"]


def test_notebook_refuses_a_network_of_other_images(run, tmp_path):
    done = execute(tmp_path, run=run.path, output_root=tmp_path / "outputs", file="test.pkl")
    assert done.returncode == 1
    assert "was trained on digits, not on cifar10" in done.stderr
