"""Reading a run folder: nothing that was changed after the run passes for its result."""

import io
import json
import os
import shutil

import nbformat
import numpy as np
import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from conftest import copy_recorded, recorded_lite, rewrite

from resnetlib import load_run
from resnetlib.analysis.comparison import compare_runs
from resnetlib.cli import main
from resnetlib.errors import RunError, UserError
from resnetlib.kaggle import submit
from resnetlib.reports.leaderboard import results_table
from resnetlib.reports.page import write_index
from resnetlib.reports.run_report import write_report
from resnetlib.runs.find import find_run, find_runs, split_unreadable
from resnetlib.runs.run import Run
from resnetlib.runs.upkeep import describe_runs

LITE = recorded_lite().path
ACCURACY = 100 * recorded_lite().metrics["test_accuracy"]
READERS = {  # what reads each file of a run
    "metrics.json": lambda run: run.metrics,
    "history.csv": lambda run: run.history,
    "experiment.yaml": lambda run: run.experiment,
    "summary.txt": lambda run: run.summary,
    "predictions.npz": lambda run: run.evaluation,
    "model.safetensors": lambda run: run.model(),
}


@pytest.fixture
def folder(tmp_path, leaderboard_without_figures):
    """A copy of a recorded run with an empty notebook; its leaderboard is without figures."""
    folder = copy_recorded(LITE, tmp_path / "outputs" / "lite" / LITE.name)
    nbformat.write(nbformat.v4.new_notebook(), folder / "notebook.ipynb")
    return folder


def changed(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def special(kind):
    def replace(path):
        path.unlink()
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif kind == "folder":
            path.mkdir()
        elif kind == "sparse":
            with path.open("wb") as file:
                file.truncate(2**40)

    return replace


DAMAGES = {kind: special(kind) for kind in ("missing", "pipe", "device", "folder", "sparse")} | {
    "changed": changed,
    "empty": lambda path: path.write_bytes(b""),
    "nested": lambda path: path.write_bytes(b"[" * 200_000),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_file_is_named_in_one_line(folder, damage):
    for name, read in {**READERS, "run.json": lambda run: run.record}.items():
        kept = (folder / name).read_bytes()
        DAMAGES[damage](folder / name)
        if (name, damage) in {("run.json", "missing"), ("run.json", "changed")}:
            pass  # without a record it is not a run, and nothing vouches for the record itself
        elif name == "model.safetensors" and damage in ("missing", "pipe", "device", "folder"):
            with pytest.raises(RunError, match=r"has no weights|regular"):
                read(load_run(folder))
        else:
            with pytest.raises(RunError, match=rf"{name} is (damaged|missing)") as caught:
                read(Run(folder))
            assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (
            (folder / name).unlink(missing_ok=True)
        )
        (folder / name).write_bytes(kept)


def test_predictions_that_expand_are_refused(folder):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, logits=np.zeros((20_000_000, 2), np.float32))
    rewrite(folder, "predictions.npz", buffer.getvalue())
    with pytest.raises(RunError, match=r"predictions\.npz is damaged: it is too large when"):
        _ = load_run(folder).evaluation


def no_checksum(folder):
    record = json.loads((folder / "run.json").read_text())
    del record["artifacts"]["metrics.json"]
    (folder / "run.json").write_text(json.dumps(record))


def metrics(folder, **values):
    content = json.loads((folder / "metrics.json").read_text()) | values
    rewrite(folder, "metrics.json", json.dumps(content))


def record(folder, **values):
    content = json.loads((folder / "run.json").read_text()) | values
    (folder / "run.json").write_text(json.dumps(content))


def weights(folder, change):
    content = safetensors.torch.load((folder / "model.safetensors").read_bytes())
    change(content)
    rewrite(folder, "model.safetensors", safetensors.torch.save(content))


def other_network(folder):
    text = (folder / "experiment.yaml").read_text().replace("64]", "65]")
    rewrite(folder, "experiment.yaml", text)


def pickled_predictions(folder):
    np.savez(folder / "predictions.npz", logits=np.array([None]), labels=1, classes=2)
    rewrite(folder, "predictions.npz", (folder / "predictions.npz").read_bytes())


FORGED = {  # each with a matching checksum where there is one
    "metrics": lambda folder: metrics(folder, test_accuracy=0.9999),
    "metrics of text": lambda folder: metrics(folder, test_accuracy="99.99"),
    "metrics without checksum": no_checksum,
    "selected accuracy": lambda folder: metrics(folder, selected_test_accuracy=0.9999),
    "experiment": other_network,
    "record of another variant": lambda folder: record(folder, variant="x/../.."),
    "record of another seed": lambda folder: record(folder, seed=7),
    "record with a formula as seed": lambda folder: record(folder, seed="=1+1"),
    "record with a status of another kind": lambda folder: record(folder, status=["done"]),
    "record with artifacts of another kind": lambda folder: record(folder, artifacts=[1]),
    "record with a fingerprint of another kind": lambda folder: record(folder, fingerprint="x"),
    "predictions": pickled_predictions,
    "history": lambda folder: rewrite(folder, "history.csv", "epoch,test_accuracy\nx,y\n"),
    "empty history": lambda folder: rewrite(folder, "history.csv", ""),
}


@pytest.mark.slow
@pytest.mark.parametrize("forgery", FORGED)
def test_forged_run_is_nowhere_a_result(folder, forgery):
    """Not found, reported, compared or on the page; the other commands go their way."""
    FORGED[forgery](folder)
    readable, damaged = split_unreadable(find_runs(folder.parents[1]))
    assert not readable and list(damaged) == [folder]
    assert "\n" not in damaged[folder] and str(folder) not in damaged[folder]
    with pytest.raises(UserError):
        find_run(folder)
    with pytest.raises(UserError):
        compare_runs(folder, LITE)
    try:
        page = write_report(load_run(folder)).read_text()
    except RunError as error:
        assert "\n" not in str(error)
    else:
        assert "The run cannot be read" in page and " %</b>" not in page
    assert folder.name in write_index(folder.parents[1]).read_text()
    row = next(r for r in results_table(find_runs(folder.parents[1])) if r["variant"] == "lite")
    assert row["runs"] == 0 or row["reproduced"] == ACCURACY or forgery == "metrics"


SOURCE = {
    **{"file": "ckpt.pth", "sha256": "0" * 64, "matched": "by name", "normalize_given": True},
    **{"training_images": 5000, "trials": [{"normalize": "none", "accuracy": 0.9, "loss": 0.1}]},
}
DIFFERENCES = [{"after": "epoch 1", "differences": ["threads was 1 and is now 2"]}]


def imported(folder, **source):
    """As if the weights had been trained elsewhere; None leaves a key out."""
    source = {key: value for key, value in (SOURCE | source).items() if value is not None}
    record(folder, status="imported", source=source)


def without(folder, key, **changes):
    content = json.loads((folder / "metrics.json").read_text()) | changes
    del content[key]
    rewrite(folder, "metrics.json", json.dumps(content))


def no_experiment(folder):
    content = json.loads((folder / "run.json").read_text())
    del content["experiment"]
    (folder / "run.json").write_text(json.dumps(content))


LACKING = {
    "source": lambda folder: record(folder, status="imported"),
    "trials": lambda folder: imported(folder, trials=None),
    "a trial": lambda folder: imported(folder, trials=[]),
    "loss": lambda folder: imported(folder, trials=[{"normalize": "none", "accuracy": 0.9}]),
    "file": lambda folder: imported(folder, file=None),
    "a printable checksum": lambda folder: imported(folder, sha256="\x1b[2J"),
    "parameters": lambda folder: (imported(folder), without(folder, "parameters")),
    "an interval": lambda folder: (
        imported(folder),
        without(folder, "test_accuracy_interval_95"),
    ),
    "two bounds": lambda folder: metrics(folder, test_accuracy_interval_95=[0.8]),
    "interval of a training": lambda folder: without(folder, "test_accuracy_interval_95"),
    "images per second": lambda folder: without(folder, "images_per_second"),
    "loss of a training": lambda folder: without(folder, "test_loss", selected_epoch=39),
    "a known selection": lambda folder: metrics(folder, select="luck", selected_epoch=39),
    "images": lambda folder: metrics(folder, test_images=0),
    "a number": lambda folder: metrics(folder, ece=True, selected_epoch=39),
    "experiment": no_experiment,
    "commit": lambda folder: record(folder, git={"modified": True}),
    "differences": lambda folder: record(folder, inexact_resumes=[{"after": "epoch 1"}]),
    "text": lambda folder: record(folder, inexact_resumes=[DIFFERENCES[0] | {"differences": [1]}]),
    "an accuracy": lambda folder: rewrite(
        folder,
        "history.csv",
        (folder / "history.csv").read_text().replace("\n3,", "\n3,,,,,,,,\n3,"),
    ),
}


@pytest.mark.parametrize("lacking", LACKING)
def test_folder_that_lacks_something_is_listed_as_unreadable(folder, lacking):
    """And keeps no command from the others."""
    LACKING[lacking](folder)
    root = folder.parents[1]
    assert f"lite/{folder.name}" in write_index(root).read_text().partition("could not be read")[2]
    readable, damaged = split_unreadable(find_runs(root))
    assert not readable and list(damaged) == [folder] and damaged[folder].isprintable()
    results_table(find_runs(root), ["lite"])  # of `resnetlib list`
    describe_runs(root)


@pytest.mark.parametrize("kind", ["trained", "imported"])
def test_folder_that_lacks_nothing_is_readable(folder, kind):
    (folder / "notebook.ipynb").unlink()  # it is not on record
    record(folder, inexact_resumes=DIFFERENCES)
    if kind == "imported":
        imported(folder)
    readable, damaged = split_unreadable(find_runs(folder.parents[1]))
    assert not damaged and len(readable) == 1
    assert "The run cannot be read" not in write_report(readable[0]).read_text()


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(extra=torch.ones(1)),
        lambda content: content.update({"linear.weight": torch.ones(3, 3)}),
        lambda content: content.pop("linear.weight"),
    ],
)
def test_weights_of_another_network_are_one_line(folder, change):
    weights(folder, change)
    with pytest.raises(RunError, match=r"model\.safetensors is damaged: ") as caught:
        load_run(folder).model()
    assert "\n" not in str(caught.value)


def test_changed_weights_predict_nothing(folder, tmp_path):
    changed(folder / "model.safetensors")
    for read in (find_run, lambda path: submit(path, tmp_path / "none.pkl")):
        with pytest.raises(RunError, match=r"model\.safetensors is damaged"):
            read(folder)


def test_changed_notebook_is_not_reported(folder):
    rewrite(folder, "notebook.ipynb", (folder / "notebook.ipynb").read_bytes())
    report = write_report(load_run(folder))
    assert load_run(folder).keeps("report.html")  # the record has the checksum of the page
    changed(folder / "notebook.ipynb")
    with pytest.raises(RunError, match=r"notebook\.ipynb is damaged"):
        write_report(load_run(folder))
    assert f"{folder.name}/report.html" in write_index(folder.parents[1]).read_text()
    changed(report)
    page = write_index(folder.parents[1]).read_text()
    assert f"{folder.name}/report.html" not in page and f"{folder.name}/notebook" not in page


def test_report_command_names_a_changed_notebook(folder):
    rewrite(folder, "notebook.ipynb", (folder / "notebook.ipynb").read_bytes())
    changed(folder / "notebook.ipynb")
    done = CliRunner().invoke(main, ["report", str(folder.parents[1])])
    assert done.exit_code == 0
    assert "notebook.ipynb is damaged" in done.stderr and "index.html" in done.stdout
