"""The run folder read back, and the kept networks."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import PROJECT, recorded_lite

from resnetlib import load_pretrained, load_run, train
from resnetlib.errors import ConfigError, RunError
from resnetlib.files import sha256
from resnetlib.progress import duration
from resnetlib.runs.find import find_run, reference_runs
from resnetlib.runs.record import describe_environment


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from conftest import TINY

    from resnetlib import load_experiment

    experiment = load_experiment("lite", **TINY, epochs=2)
    return train(experiment, output=tmp_path_factory.mktemp("runs") / "run")


def test_a_run_is_read_back_from_its_folder(run):
    again = load_run(str(run.path))
    assert again.status == "done"
    assert again.experiment.digest == run.record["experiment"]
    assert again.metrics["epochs"] == 2
    model = again.model()
    assert not model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_the_record_says_what_the_run_was_carried_out_with(run):
    record = run.record
    assert record["versions"]["torch"] in torch.__version__
    assert record["fingerprint"]["threads"] == torch.get_num_threads()
    assert set(record["dataset_checksums"]) == {"digits"}
    assert record["finished"] >= record["started"]
    assert record["git"] is None or len(record["git"]["commit"]) == 40


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"no run\.json"):
        load_run(tmp_path)


def test_the_headline_tells_the_accuracy_its_interval_and_the_seed(run):
    low, high = run.metrics["test_accuracy_interval_95"]
    assert low < run.metrics["test_accuracy"] < high
    assert f"{run.metrics['test_accuracy']:.2%}" in run.headline
    assert "450 images; seed 0" in run.headline


def test_published_figures_stand_beside_cifar10_only(run, tmp_path):
    assert run.comparison["published"].isna().all()
    text = (run.path / "experiment.yaml").read_text().replace("dataset: digits", "dataset: cifar10")
    for path in run.path.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "experiment.yaml").write_text(text)
    table = load_run(tmp_path).comparison
    measured = 100 * run.metrics["test_accuracy"]
    row = table.loc["test accuracy, last epoch"]
    assert row.tolist() == pytest.approx([79.87, measured, measured - 79.87])


def test_weights_in_half_precision_are_read_as_float32(run):
    weights = safetensors.torch.load_file(run.path / "model.safetensors")
    half = {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}
    before = run.model().linear.weight.clone()
    path = run.path / "model.safetensors"
    kept = path.read_bytes()
    try:
        path.write_bytes(safetensors.torch.save(half))
        model = load_run(run.path).model()
    finally:
        path.write_bytes(kept)
    assert model.linear.weight.dtype == torch.float32
    torch.testing.assert_close(model.linear.weight, before, rtol=1e-3, atol=1e-4)


def test_the_environment_is_described(run):
    told = describe_environment(run.experiment)
    assert told["device"] == "cpu"
    assert {"processor", "threads", "python", "torch", "commit"} <= set(told)


# The runs that are kept --------------------------------------------------------------------------


def test_recorded_runs_match_their_checksums():
    recorded = reference_runs()
    assert "lite" in {run.record["variant"] for run in recorded}
    for run in recorded:
        assert run.status == "done"
        for name, checksum in run.record["artifacts"].items():
            assert sha256(run.path / name) == checksum, run.path / name
        for name in run.record.get("not_kept", {}):  # one seed of a variant keeps everything
            assert not (run.path / name).exists(), run.path / name
        notebook = run.path / "notebook.ipynb"
        assert not notebook.exists() or notebook.stat().st_size < 3_000_000


def test_the_kept_network_of_lite_measures_what_its_record_says(cifar10):
    from resnetlib import evaluate

    run = recorded_lite()
    model = load_pretrained("lite")
    measured = evaluate(model, *cifar10.test, mean=cifar10.mean, std=cifar10.std)
    assert measured.accuracy == pytest.approx(run.metrics["test_accuracy"], abs=5e-4)
    assert measured.accuracy >= 0.79
    assert (run.evaluation.labels == cifar10.test[1]).all()


def test_a_network_that_is_not_kept_is_told(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("resnetlib.runs.find.reference_runs", list)
        with pytest.raises(ConfigError, match="'lite' has no kept weights; kept: none"):
            load_pretrained("lite")
    with pytest.raises(ConfigError, match=r"'liet' is unknown; did you mean 'lite'"):
        load_pretrained("liet")


def test_no_kept_file_names_a_place_of_the_machine_it_came_from():
    kept = list((PROJECT / "outputs" / "reference").rglob("*"))
    assert kept
    for path in kept:
        if path.suffix in {".json", ".yaml", ".csv", ".txt", ".ipynb"}:
            text = json.dumps(path.read_text())
            assert str(PROJECT) not in text, path
            assert "/tmp/" not in text, path


# Which run is meant ------------------------------------------------------------------------------


@pytest.fixture
def outputs(run, tmp_path):
    """Adds copies of the run, one of digits, to the output root `outputs.root`.

    Their accuracy is above all others and their record as trained unless it is given.
    """

    def add(name, *, weights=True, accuracy=0.999, **changes):
        folder = shutil.copytree(run.path, tmp_path / "outputs" / "lite" / name)
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | changes))
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | {"test_accuracy": accuracy}))
        if not weights:
            (folder / "model.safetensors").unlink()
        return folder

    add.root = tmp_path / "outputs"
    return add


def test_a_run_is_found_by_its_folder(run, tmp_path, monkeypatch):
    assert find_run(run.path).path == run.path
    monkeypatch.chdir(run.path.parent)
    assert find_run(run.path.name).path.resolve() == run.path.resolve()
    monkeypatch.chdir(tmp_path)
    recorded = recorded_lite().path.relative_to(PROJECT)
    assert find_run(str(recorded)).path == PROJECT / recorded


def test_a_run_named_by_its_folder_is_found_beside_a_damaged_one(run, outputs):
    damaged = outputs("damaged")
    (damaged / "run.json").write_text("{")
    assert find_run(run.path, outputs.root).path == run.path


def test_damaged_runs_hide_no_other(outputs):
    (outputs("damaged") / "run.json").write_text("{")
    (outputs("empty") / "run.json").write_text("[]")
    better = outputs("better")
    assert find_run("lite", outputs.root).path == better
    with pytest.raises(RunError, match=r"has no weights; .*better"):
        find_run(outputs("bare", weights=False), outputs.root)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(8.24, "8.2 s"), (59.9, "59.9 s"), (554, "9 min 14 s"), (11100, "3 h 05 min")],
)
def test_times_are_told_as_people_say_them(seconds, told):
    assert duration(seconds) == told


def test_the_newest_finished_run_with_weights_is_meant_by_its_variant_and_by_nothing(outputs):
    outputs("older", finished="2100-01-01T00:00:00+00:00")
    newer = outputs("newer", finished="2100-01-02T00:00:00+00:00")
    outputs("stopped", finished="2100-01-03T00:00:00+00:00", status="interrupted")
    outputs("without", finished="2100-01-04T00:00:00+00:00", weights=False)
    assert find_run(output_root=outputs.root).path == newer
    assert find_run("lite", outputs.root).path == newer
    assert find_run(Path("lite"), outputs.root).path == newer
    assert find_run("laptop", outputs.root).path.is_relative_to(
        PROJECT / "outputs/reference/laptop"
    )


def test_recorded_runs_stand_in_where_there_is_none(tmp_path):
    assert find_run(output_root=tmp_path).path == recorded_lite().path
    assert find_run("lite", tmp_path).path == recorded_lite().path


def test_the_best_run_is_that_of_the_highest_accuracy_recorded_or_not(outputs):
    kept = [run for run in reference_runs() if run.has_weights]
    highest = max(run.metrics["test_accuracy"] for run in kept)
    outputs("worse", accuracy=0.1)
    assert find_run(output_root=outputs.root, best=True).metrics["test_accuracy"] == highest
    better = outputs("better", accuracy=0.999)
    outputs("worse and newer", accuracy=0.2, finished="2100-01-01T00:00:00+00:00")
    assert find_run(output_root=outputs.root, best=True).path == better
    on_cifar10 = find_run("lite", outputs.root, dataset="cifar10", best=True)
    assert on_cifar10.path == recorded_lite().path
    of_all = find_run(output_root=outputs.root, dataset="cifar10", best=True)
    assert of_all.metrics["test_accuracy"] == highest
    assert find_run(better, outputs.root, dataset="cifar10").path == better  # taken at its word


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        (
            "liet",
            r"no finished run of 'liet' with weights; did you mean 'lite'\? There are",
        ),
        ("se", r"no finished run of 'se' with weights; There are runs of: .*lite"),
        ("outputs/absent", "outputs/absent is no run folder"),
        (
            "without",
            r"lite/without has no weights; finished and with weights: .*cifar10-",
        ),
        ("stopped", r"lite/stopped is not finished: its status is 'interrupted'; finished and "),
    ],
)
def test_a_run_that_is_not_there_or_cannot_be_used_is_told_in_one_line(outputs, wanted, told):
    outputs("without", weights=False)
    outputs("stopped", status="interrupted")
    folder = outputs.root / "lite" / wanted
    with pytest.raises((ConfigError, RunError), match=told) as raised:
        find_run(folder if folder.is_dir() else wanted, outputs.root)
    assert "\n" not in str(raised.value)
