"""The command that makes the recorded runs: what it plans, stops, goes on with and keeps."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch
from conftest import PROJECT, TINY, benchmark

from resnetlib import load_run, train
from resnetlib.config import list_variants
from resnetlib.errors import ConfigError
from resnetlib.runs.lifecycle import check_experiment

SCRIPT = PROJECT / "benchmarks" / "reproduce.py"


@pytest.fixture(scope="module")
def reproduce():
    with benchmark("reproduce") as module:
        yield module


def planned(reproduce, part, *only, rehearse=False):
    return reproduce.plan(Namespace(part=part, only=list(only), rehearse=rehearse))


def test_every_published_variant_is_planned_with_its_own_recipe(reproduce):
    runs = planned(reproduce, "published")
    ours = {"champion", "laptop", "laptop94"}
    assert {run.variant for run in runs} == set(list_variants()) - ours
    counts = {v: sum(run.variant == v for run in runs) for v in ("lite", "se", "improved_sgd")}
    assert counts == {"lite": 5, "se": 2, "improved_sgd": 3}
    assert len({run.experiment.folder for run in runs}) == len(runs)
    for run in runs:
        assert set(run.experiment.overrides) <= {"seed"}
        assert run.experiment.folder.parts[-4:-2] == ("outputs", "reference")
    assert [run.work for run in runs] == sorted((run.work for run in runs), reverse=True)


def test_trials_hold_images_out_and_stay_apart(reproduce):
    runs = planned(reproduce, "trials")
    assert all(run.experiment.recipe.holdout == 5000 for run in runs)
    assert all("trials" in run.experiment.folder.parts for run in runs)
    assert len({run.experiment.digest for run in runs}) == len(runs)


@pytest.mark.parametrize("part", ["published", "champion", "trials"])
def test_every_run_of_a_rehearsal_can_be_trained(part, reproduce):
    for run in planned(reproduce, part, rehearse=True):
        check_experiment(run.experiment)
        assert run.experiment.dataset == "digits"
        assert "rehearsal" in run.experiment.folder.parts


def test_an_unknown_variant_is_refused(reproduce):
    with pytest.raises(ConfigError, match="'lits': champion has champion"):
        planned(reproduce, "champion", "lits")


def tiny_runs(reproduce, folder, seeds, **overrides):
    settings = TINY | {"output_root": str(folder), "data_root": None, "epochs": 2} | overrides
    return [reproduce.Planned("lite", settings | {"seed": seed}) for seed in seeds]


def test_a_failed_run_is_named_and_the_others_are_finished(reproduce, tmp_path, capsys):
    good = tiny_runs(reproduce, tmp_path / "runs", [0])
    bad = tiny_runs(reproduce, tmp_path / "runs", [1], lr=1e30)
    failed = reproduce.carry_out(bad + good, 2, tmp_path / "logs")
    assert failed == [bad[0].name]
    told = capsys.readouterr().out
    assert "FAILED" in told and "a lower `lr`" in told
    assert good[0].run.status == "done"
    assert reproduce.carry_out(good, 1, tmp_path / "logs") == []
    assert "1 of 1 runs are done" in capsys.readouterr().out


def test_weights_are_kept_in_half_precision_and_load(reproduce, tiny):
    experiment = tiny(widths=[16])
    run = train(experiment)
    before, size = run.model(), (run.path / "model.safetensors").stat().st_size
    reproduce.keep_weights(run, wanted=True)
    run = load_run(run.path)
    assert (run.path / "model.safetensors").stat().st_size < 0.7 * size
    for (name, old), new in zip(
        before.state_dict().items(), run.model().state_dict().values(), strict=True
    ):
        assert new.dtype == old.dtype
        expected = old.half().float() if old.dim() > 1 else old
        assert torch.equal(new, expected), name
    assert reproduce.runs.artifact_checksums(run.path) == run.record["artifacts"]
    accuracy = reproduce.evaluated_again(run)
    assert abs(accuracy - run.metrics["test_accuracy"]) < 0.005  # two images of 450
    record = (run.path / "run.json").read_text()
    reproduce.keep_weights(run, wanted=True)  # halved already
    assert (run.path / "run.json").read_text() == record
    reproduce.keep_weights(run, wanted=False)
    assert not (run.path / "model.safetensors").exists()


def test_a_network_that_is_not_what_its_run_says_is_told(reproduce, tmp_path, capsys):
    runs = tiny_runs(reproduce, tmp_path / "runs", [0])
    reproduce.carry_out(runs, 1, tmp_path / "logs")
    assert reproduce.tell(runs)
    metrics = runs[0].experiment.folder / "metrics.json"
    content = json.loads(metrics.read_text())
    content["selected_test_accuracy"] += 0.01
    metrics.write_text(json.dumps(content))
    assert not reproduce.tell(runs)
    assert "DIFFERS" in capsys.readouterr().out


def test_stopped_in_the_middle_it_leaves_nothing_running_and_goes_on(reproduce, tmp_path):
    """The script itself, terminated while a run trains; then the rest, to the same bits."""
    settings = {**TINY, "epochs": 30, "output_root": str(tmp_path / "runs")}
    parent = (
        "import importlib.util, pathlib, signal, sys\n"
        f"spec = importlib.util.spec_from_file_location('reproduce', {str(SCRIPT)!r})\n"
        "module = importlib.util.module_from_spec(spec); sys.modules['reproduce'] = module\n"
        "spec.loader.exec_module(module)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"run = module.Planned('lite', {settings!r})\n"
        f"module.carry_out([run], 1, pathlib.Path({str(tmp_path / 'logs')!r}))\n"
    )
    (run,) = [reproduce.Planned("lite", settings)]
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    history = run.experiment.folder / "history.csv"
    until = time.monotonic() + 90
    while not history.is_file() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert not _trained_by_anyone(str(tmp_path / "runs"))
    assert run.run is None
    assert reproduce.carry_out([run], 1, tmp_path / "logs") == []
    elsewhere = reproduce.Planned("lite", {**settings, "output_root": str(tmp_path / "at-once")})
    assert reproduce.carry_out([elsewhere], 1, tmp_path / "logs") == []
    files = [one.experiment.folder / "model.safetensors" for one in (run, elsewhere)]
    assert files[0].read_bytes() == files[1].read_bytes()
    log = next((tmp_path / "logs").glob("*.log")).read_text()
    assert "resuming after epoch" in log


def _trained_by_anyone(told):
    """Whether a process has this in its command line."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8") as file:
                if "reproduce.py\0one" in (line := file.read()) and told in line:
                    return True
        except OSError:
            continue
    return False
