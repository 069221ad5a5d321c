"""Run folders: reading one, the recorded ones, and which run is meant."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import PROJECT, TINY, copy_recorded, history_with, recorded_lite, rewrite

from resnetlib import load_experiment, load_pretrained, load_run, train
from resnetlib.errors import ConfigError, RunError
from resnetlib.files import sha256
from resnetlib.reports.page import write_index
from resnetlib.runs import record as record_module
from resnetlib.runs.find import (
    find_run,
    find_runs,
    finished_runs,
    is_recorded,
    reference_runs,
    split_unreadable,
)
from resnetlib.runs.record import describe_environment
from resnetlib.runs.upkeep import describe_runs

pytestmark = pytest.mark.usefixtures("quick_figures")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    experiment = load_experiment("lite", **TINY, epochs=2)
    return train(experiment, output=tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.slow
def test_load_run_reads_a_folder(run):
    again = load_run(str(run.path))
    assert again.status == "done"
    assert again.experiment.digest == run.record["experiment"]
    assert again.metrics["epochs"] == 2
    model = again.model()
    assert not model.training
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


def test_record_describes_the_environment(run):
    record = run.record
    assert record["versions"]["torch"] in torch.__version__
    assert record["fingerprint"]["threads"] == torch.get_num_threads()
    assert set(record["dataset_checksums"]) == {"digits"}
    assert record["finished"] >= record["started"]
    assert record["git"] is None or len(record["git"]["commit"]) == 40


@pytest.mark.skipif(shutil.which("git") is None, reason="takes git")
def test_commit_of_another_repository_is_not_recorded(tmp_path, monkeypatch):
    """Such as that of the user's project, in whose `.venv` the package is installed."""
    monkeypatch.setattr(record_module, "PROJECT", tmp_path)
    monkeypatch.setattr(record_module, "__file__", str(tmp_path / "record.py"))
    (tmp_path / "record.py").touch()
    for name in ("GIT_DIR", "GIT_INDEX_FILE", "GIT_WORK_TREE"):  # of a hook that runs the tests
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "their own"]):
        subprocess.run([*git, *words], check=True)
    assert record_module._git_state() is None
    for words in (["add", "record.py"], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *words], check=True)
    assert record_module._git_state()["modified"] is False
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")  # such as a mounted checkout
    assert record_module._git_state()["modified"] is False


def test_load_run_refuses_another_folder(tmp_path):
    with pytest.raises(RunError, match=r"run\.json"):
        load_run(tmp_path)
    for name in ("a\0b", "x" * 5000, "/dev/null"):
        with pytest.raises(RunError) as caught:
            load_run(name)
        assert len(str(caught.value)) < 200


def test_headline_has_accuracy_interval_and_seed(run):
    low, high = run.metrics["test_accuracy_interval_95"]
    assert low < run.metrics["test_accuracy"] < high
    assert f"{run.metrics['test_accuracy']:.2%}" in run.headline
    assert "450 images; seed 0" in run.headline


def test_comparison_with_published_is_for_the_own_recipe_on_cifar10(run, tmp_path):
    assert run.comparison["published"].isna().all()
    recorded = recorded_lite()
    measured = 100 * recorded.metrics["test_accuracy"]
    row = recorded.comparison.loc["test accuracy, last epoch"]
    assert row.tolist() == pytest.approx([79.87, measured, measured - 79.87])
    text = (run.path / "experiment.yaml").read_text().replace("dataset: digits", "dataset: cifar10")
    for path in run.path.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    rewrite(tmp_path, "experiment.yaml", text)
    assert load_run(tmp_path).comparison["published"].isna().all()  # another network


def test_model_reads_half_precision_as_float32(run, tmp_path):
    weights = safetensors.torch.load_file(run.path / "model.safetensors")
    half = {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}
    before = run.model().linear.weight
    folder = shutil.copytree(run.path, tmp_path / "half")
    rewrite(folder, "model.safetensors", safetensors.torch.save(half))
    model = load_run(folder).model()
    assert model.linear.weight.dtype == torch.float32
    torch.testing.assert_close(model.linear.weight, before, rtol=1e-3, atol=1e-4)


def test_describe_environment_names_device_and_versions(run):
    facts = describe_environment(run.experiment)
    assert facts["device"] == "cpu"
    assert {"processor", "threads", "python", "torch", "commit"} <= set(facts)


# Recorded runs -----------------------------------------------------------------------------------


def test_reference_runs_are_complete_and_undamaged():
    recorded, damaged = split_unreadable(find_runs(PROJECT / "outputs" / "reference"))
    assert not damaged
    assert {run.path for run in recorded} == {run.path for run in reference_runs()}
    assert "lite" in {run.record["variant"] for run in recorded}
    for run in recorded:
        assert run.status == "done"
        for name, checksum in run.record["artifacts"].items():
            assert sha256(run.path / name) == checksum, run.path / name
        # One seed of an experiment keeps everything; `resnetlib report` writes the reports.
        for name in run.record.get("not_kept", {}).keys() - {"report.html"}:
            assert not (run.path / name).exists(), run.path / name
        notebook = run.path / "notebook.ipynb"
        assert not notebook.exists() or notebook.stat().st_size < 3_000_000


def test_reference_runs_are_finished(run, tmp_path, monkeypatch):
    """One that is being trained there has no results yet."""
    folder = shutil.copytree(run.path, tmp_path / "lite" / "run")
    monkeypatch.setattr("resnetlib.runs.find._reference", lambda: tmp_path)
    assert [found.path for found in reference_runs()] == [folder]
    (folder / "metrics.json").unlink()
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert reference_runs() == []


@pytest.mark.slow
def test_load_pretrained_gives_the_recorded_lite(cifar10):
    from resnetlib import evaluate

    run = recorded_lite()
    model = load_pretrained("lite")
    measured = evaluate(model, *cifar10.test, mean=cifar10.mean, std=cifar10.std)
    torch.testing.assert_close(measured.logits, run.evaluation.logits, rtol=0, atol=1e-3)
    assert measured.accuracy == pytest.approx(run.metrics["test_accuracy"], abs=5e-4)
    assert (run.evaluation.labels == cifar10.test[1]).all()


def test_load_pretrained_names_what_is_recorded(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("resnetlib.runs.find.reference_runs", list)
        with pytest.raises(ConfigError, match=r"'lite' has no recorded weights; .*: none"):
            load_pretrained("lite")
    with pytest.raises(ConfigError, match=r"'liet' is unknown; did you mean 'lite'"):
        load_pretrained("liet")
    with pytest.raises(ConfigError, match="None is unknown"):
        load_pretrained(None)


def test_recorded_runs_are_known_behind_a_link(tmp_path, monkeypatch):
    """As on a cluster, where `outputs` lies on another disk."""
    run = copy_recorded(recorded_lite().path, tmp_path / "disk" / "reference" / "lite")
    (tmp_path / "outputs").symlink_to(tmp_path / "disk")
    monkeypatch.setattr("resnetlib.runs.find.PROJECT", tmp_path)
    assert is_recorded(load_run(tmp_path / "outputs" / "reference" / "lite"))
    assert not is_recorded(load_run(shutil.copytree(run, tmp_path / "disk" / "own")))


def test_reference_runs_hold_no_absolute_path():
    """Of the machine and checkout in which they were trained."""
    paths = list((PROJECT / "outputs" / "reference").rglob("*"))
    assert paths
    for path in paths:
        if path.suffix in {".json", ".yaml", ".csv", ".txt", ".ipynb"}:
            text = re.sub(r'"image/[^"]*": "[^"]*"', "", path.read_text())
            place = r"(?<![\w.:/])/[\w./-]*/(?:outputs|resnetlib|notebooks|params|data)/|/tmp/"
            assert not re.search(place, text), path


# Which run is meant ------------------------------------------------------------------------------


@pytest.fixture
def outputs(run, tmp_path):
    """Adds copies of the run to the output root `outputs.root`.

    They count as runs of the variant's own recipe with these `settings`, each started at another
    time, unless `changes` of the record say otherwise.
    """

    def add(name, *, weights=True, settings=None, **changes):
        folder = shutil.copytree(run.path, tmp_path / "outputs" / "lite" / name)
        experiment = load_experiment("lite", dataset="digits", **(settings or {}))
        rewrite(folder, "experiment.yaml", experiment.to_yaml())
        changes = {"experiment": experiment.digest, "started": name} | changes
        record = json.loads((folder / "run.json").read_text()) | {"seed": experiment.seed}
        (folder / "run.json").write_text(json.dumps(record | changes))
        if not weights:
            (folder / "model.safetensors").unlink()
        return folder

    add.root = tmp_path / "outputs"
    return add


def test_find_run_accepts_a_folder(run, tmp_path, monkeypatch):
    assert find_run(run.path).path == run.path
    monkeypatch.chdir(run.path.parent)
    assert find_run(run.path.name).path.resolve() == run.path.resolve()
    monkeypatch.chdir(tmp_path)
    recorded = recorded_lite().path.relative_to(PROJECT)
    assert find_run(str(recorded)).path == PROJECT / recorded


def test_find_run_accepts_variant_and_folder_name(outputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = outputs("mine")
    assert find_run("lite/mine", outputs.root).path == own
    recorded = recorded_lite().path
    assert find_run(f"lite/{recorded.name}", outputs.root).path == recorded


def test_find_run_prefers_the_variants_own_recipe(outputs):
    own = outputs("own recipe", finished="2100-01-01", settings={"seed": 3})
    outputs("override", finished="2100-01-02", settings={"lr": 1.0})
    assert find_run("lite", outputs.root).path == own
    own.joinpath("run.json").unlink()
    assert find_run("lite", outputs.root).path == recorded_lite().path


def test_run_of_an_earlier_variant_file_has_another_recipe():
    """The first runs of `lite` had no augmentation; its file has one since."""
    earlier = load_run(PROJECT / "outputs/reference/lite/cifar10-seed0-9fbf37a8")
    assert earlier.experiment.recipe.augment == () and not earlier.record["overrides"]
    assert not earlier.has_own_recipe
    assert recorded_lite().has_own_recipe


@pytest.mark.slow
def test_find_run_prefers_the_users_runs_and_the_newest(outputs):
    outputs("older", finished="2100-01-01T00:00:00+00:00")
    newer = outputs("newer", finished="2100-01-02T00:00:00+00:00")
    outputs("stopped", finished="2100-01-03T00:00:00+00:00", status="interrupted")
    outputs("without", finished="2100-01-04T00:00:00+00:00", weights=False)
    assert find_run(output_root=outputs.root).path == newer
    assert find_run("lite", outputs.root).path == newer
    assert find_run(Path("lite"), outputs.root).path == newer
    without = find_run("lite", outputs.root, needs="predictions")
    assert without.path.name == "without"
    older = find_run("lite", outputs.root, exclude=[load_run(newer)])
    assert older.path.name == "older"
    assert find_run("laptop", outputs.root).path.parent == PROJECT / "outputs/reference/laptop"


@pytest.mark.slow
def test_find_run_uses_the_lowest_recorded_seed(tmp_path):
    assert find_run(output_root=tmp_path).path == recorded_lite().path
    assert find_run("lite", tmp_path).path == recorded_lite().path
    second = find_run("lite", tmp_path, needs="predictions", exclude=[recorded_lite()])
    assert second.path == recorded_lite(1).path


def test_find_run_restricts_the_dataset(outputs):
    digits = outputs("digits")
    assert find_run("lite", outputs.root).path == digits
    assert find_run("lite", outputs.root, dataset="cifar10").path == recorded_lite().path
    with pytest.raises(ConfigError, match="was trained on digits, not on cifar10"):
        find_run(digits, outputs.root, dataset="cifar10")


def test_find_run_ignores_accuracy(outputs):
    """Selecting the best run would select on the test set."""
    for name, date, accuracy in (("best", "2100-01-01", 0.999), ("newest", "2100-01-02", 0.1)):
        folder = outputs(name, finished=date)
        run = load_run(folder)
        rewrite(folder, "metrics.json", json.dumps(run.metrics | {"test_accuracy": accuracy}))
        rewrite(folder, "history.csv", history_with(run, accuracy))
    assert find_run("lite", outputs.root).path.name == "newest"
    assert find_run(None, outputs.root).path.name == "newest"


def test_find_run_is_not_disturbed_by_damaged_runs(run, outputs):
    (outputs("damaged", finished="2100") / "run.json").write_text("{")
    (outputs("empty", finished="2100") / "run.json").write_text("[]")
    (outputs("changed", finished="2100") / "metrics.json").write_text("{}")
    (outputs("overrides", finished="2100", overrides=None))
    (outputs("weights", finished="2100") / "model.safetensors").write_bytes(b"damaged")
    undamaged = outputs("undamaged", finished="2000")
    assert find_run("lite", outputs.root).path == undamaged
    assert find_run(run.path, outputs.root).path == run.path
    with pytest.raises(RunError, match=r"has no weights.*undamaged"):
        find_run(outputs("bare", weights=False), outputs.root)


@pytest.mark.slow
def test_finished_runs_counts_copies_once(outputs, tmp_path):
    shutil.copytree(outputs("mine"), tmp_path / "outputs" / "copy")
    copy_recorded(recorded_lite().path, tmp_path / "outputs" / "from a friend")
    paths = [run.path for run in finished_runs(outputs.root)]
    assert len(paths) == 1 + len(reference_runs())
    assert tmp_path / "outputs" / "from a friend" in paths
    assert recorded_lite().path not in paths


def test_of_copies_the_users_comes_before_a_recorded_one(outputs, monkeypatch):
    """Also where the recorded one is first by path; it may have been trimmed of its weights."""
    run, reference = outputs("whole"), outputs.root / "earlier"
    recorded = shutil.copytree(run, reference / "lite" / run.name)
    (recorded / "model.safetensors").unlink()
    monkeypatch.setattr("resnetlib.runs.find._reference", lambda: reference)
    assert recorded < run
    assert [found.path for found in find_runs(outputs.root)] == [run]
    assert find_run("lite", outputs.root).path == run


def test_damaged_copy_does_not_hide_the_run(outputs):
    run = outputs("mine")
    damaged = shutil.copytree(run, outputs.root / "a damaged copy")
    (damaged / "metrics.json").write_text("{}")
    (damaged / "report.html").write_text("preferred, if it could be read")
    assert [found.path for found in find_runs(outputs.root)] == [run]
    assert find_run("lite", outputs.root).path == run


LISTINGS = [find_runs, describe_runs, write_index]


@pytest.mark.usefixtures("leaderboard_without_figures")
@pytest.mark.parametrize("listing", LISTINGS)
def test_folder_may_vanish_while_runs_are_listed(listing, outputs, monkeypatch):
    """As the temporary folders of a sweep do, and runs that it replaces."""
    whole, vanishing = outputs("whole"), outputs("vanishing")
    scan = os.scandir

    def scan_late(path):
        if Path(path) == vanishing:
            vanishing.rename(outputs.root.parent / "elsewhere")
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_late)
    listed = listing(outputs.root)
    assert not vanishing.exists()
    if listing is find_runs:
        assert [run.path for run in listed] == [whole]


def test_hidden_folders_are_no_runs(outputs):
    """Such as `.receiving-*`, in which a sweep unpacks what another machine sends."""
    shown, nested = outputs("shown"), outputs("shown/nested")
    outputs(".receiving-x/hidden")
    (outputs.root / "link").symlink_to(shown)
    assert [run.path for run in find_runs(outputs.root)] == [shown, nested]
    assert [run.path for run in find_runs(outputs.root / "lite/.receiving-x")] != []
    assert [row["run"] for row in describe_runs(outputs.root)] == [
        "lite/shown/nested",
        "lite/shown",
    ]
    page = write_index(outputs.root).read_text()
    assert "shown" in page and "hidden/" not in page


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            "liet",
            r"no finished run of 'liet' with weights; did you mean 'lite'\? Variants with one",
        ),
        ("se", r"no finished run of 'se' with weights\. Variants with one: .*lite"),
        ("outputs/absent", r"outputs/absent is not a run folder: it has no run\.json"),
        ("lite/stoped", r"lite/stoped is not a run folder.*; did you mean '.*lite/whole'"),
        ("without", r"lite/without has no weights\. Finished runs with weights: .*lite/whole"),
        ("stopped", r"lite/stopped is not finished: its status is 'interrupted'\. Finished runs"),
        ("damaged", r"lite/damaged cannot be read: run\.json is damaged: it is not JSON"),
        ("changed", r"lite/changed cannot be used: model.safetensors is damaged"),
    ],
)
def test_find_run_names_what_exists_in_one_line(outputs, wanted, message, monkeypatch):
    monkeypatch.setattr("resnetlib.runs.find._reference", lambda: outputs.root / "none")
    outputs("whole")
    outputs("without", weights=False)
    outputs("stopped", status="interrupted")
    (outputs("damaged") / "run.json").write_text("{")
    (outputs("changed") / "model.safetensors").write_bytes(b"")
    folder = outputs.root / "lite" / wanted
    with pytest.raises((ConfigError, RunError), match=message) as raised:
        find_run(folder if folder.is_dir() else wanted, outputs.root)
    assert "\n" not in str(raised.value)


def test_find_run_names_damaged_runs_of_the_variant(outputs, monkeypatch):
    monkeypatch.setattr("resnetlib.runs.find._reference", lambda: outputs.root / "none")
    (outputs("damaged") / "run.json").write_text("{")
    (outputs.root / "lite").rename(outputs.root / "se")
    with pytest.raises(ConfigError, match=r"Damaged: .*se/damaged \(run\.json is damaged"):
        find_run("se", outputs.root)
