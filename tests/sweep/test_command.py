"""`resnetlib sweep` as its users see it: mistakes, dry run, script, results."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from resnetlib import files
from resnetlib.cli import main
from resnetlib.errors import ConfigError
from resnetlib.experiment import Execution
from resnetlib.sweep import command
from resnetlib.sweep.pool import LocalPool, Needs, visible_gpus
from resnetlib.sweep.scheduler import carry_out
from resnetlib.sweep.slurm import slurm_script


def invoke(*words):
    return CliRunner().invoke(main, ["sweep", *map(str, words)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["liet"], "unknown variant 'liet'; did you mean 'lite'?"),
        (["lite", "-p", "sed", "0..4"], "unknown parameter 'sed'; did you mean 'seed'?"),
        (["lite", "-p", "depths", "2,2,2"], "a list is written in brackets"),
        (["lite", "--trials", "3"], "--trials and --save belong to a search"),
        (["lite", "--search", "lr=log(0.01,0.3)"], "a search needs --trials N"),
        (["lite", "--memory", "nan"], "--memory nan: give less than 10,000 GB"),
        (["lite", "--gpus", "nan"], "--gpus nan: give 0, or 0.01 to 1; a run uses one GPU"),
        (["lite", "--gpus", "2"], "--gpus 2: give 0, or 0.01 to 1; a run uses one GPU"),
        (["lite", "--search", "lr", "--trials", "3"], "write NAME=log(0.01,0.3)"),
        (["lite", "se", "--search", "lr=log(0.1,1)", "--trials", "3"], "varies one variant"),
        (
            ["lite", "-p", "seed", "0,1", "--search", "lr=log(0.1,1)", "--trials", "3"],
            "-p seed: give one value",
        ),
        (["lite", "--search", "lr=log(0.1,1)", "--trials", "3", "--dry-run"], "excludes"),
    ],
)
def test_mistake_exits_with_2_and_starts_nothing(tmp_path, words, message):
    done = invoke(*words, "-p", "output_root", tmp_path)
    assert done.exit_code == 2
    assert message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["--help"], ["liet"], ["lite", "-p", "seed", "0..9", "--dry-run"]]
)
def test_sweep_lists_runs_without_heavy_imports(words):
    program = (
        "import sys\n"
        "from resnetlib.cli import main\n"
        "try: main(['sweep', *sys.argv[1:]])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'ray', 'optuna', 'papermill'} & sys.modules.keys()\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_dry_run_lists_runs_and_writes_nothing(tmp_path):
    done = invoke("lite", "-p", "seed", "0..2", "-p", "output_root", tmp_path / "out", "--dry-run")
    assert done.exit_code == 0
    assert "new        lite, seed 2  (" in done.output
    assert done.output.endswith("3 runs\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_sweep_trains_every_combination_and_prints_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise ImportError")  # a module of the user's, not ours
    small = ["-p", "depths", "[1, 1]", "-p", "widths", "[8, 16]", "-p", "epochs", 1]
    words = ["lite", "-p", "dataset", "digits", *small, "-p", "output_root", tmp_path / "out"]
    done = invoke(*words, "-p", "seed", "0..1")
    assert done.exit_code == 0, done.output
    runs = sorted((tmp_path / "out").rglob("run.json"))
    assert [json.loads(path.read_text())["status"] for path in runs] == ["done", "done"]
    *_, heads, row = done.output.splitlines()
    assert heads.startswith("accuracy on test set, per cent") and row.startswith("lite, ")
    again = invoke(*words, "-p", "seed", "0..1").output.splitlines()
    assert (again[0][:21], again[-1]) == ("2 of 2 runs are done;", row)


def test_slurm_writes_the_script_and_trains_nothing(tmp_path):
    for other in (["--dry-run"], ["--address", "auto"]):
        refused = invoke("lite", "--slurm", tmp_path / "lite.sh", *other)
        assert (refused.exit_code, "excludes" in refused.stderr) == (2, True)
    done = invoke("lite", "-p", "seed", "0..2", "--gpus", 0, "--slurm", tmp_path / "lite.sh")
    assert done.exit_code == 0
    assert "3 tasks with 1 core, 2 GB and 0 GPUs each; submit them with: sbatch" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["lite.sh"]


@pytest.mark.parametrize(
    ("place", "settings", "has_gpus", "needs"),
    [
        ({}, {}, False, Needs(1, 0.0)),
        ({}, {"threads": 4}, False, Needs(4, 0.0)),
        ({}, {}, True, Needs(None, 1.0)),
        ({}, {"device": "cpu"}, True, Needs(1, 0.0)),
        ({"gpus": 0.25}, {}, True, Needs(None, 0.25, device="cuda")),
        ({"gpus": 0}, {}, True, Needs(1, 0.0, device="cpu")),
        ({"address": "auto", "memory": 4}, {}, False, Needs(1, 0.0, 4, "cpu")),
        ({"address": "auto"}, {}, True, Needs(None, 1.0, device="cuda")),
    ],
)
def test_place_says_what_a_run_needs(place, settings, has_gpus, needs, monkeypatch):
    """A device is named where a run might otherwise take a GPU that was not reserved."""
    monkeypatch.setattr(command.sys, "platform", "linux")
    assert command.Place(**place).needs(Execution(**settings), has_gpus) == needs


def test_runs_on_a_mac_do_not_share_its_gpu(monkeypatch):
    monkeypatch.setattr(command.sys, "platform", "darwin")
    assert command.Place().needs(Execution(), False) == Needs(1, device="cpu")
    assert command.Place().engine(Execution(device="mps")).slots == 1
    assert command.Place(at_once=2).engine(Execution(device="mps")).slots == 2


def test_given_device_and_threads_are_not_replaced(quick):
    assert Needs(2, 0.5, device="cuda").settings(quick(device="cuda:1", threads=2)) == {}
    assert Needs(1, device="cpu").settings(quick()) == {"threads": 1, "device": "cpu"}


def test_run_that_has_begun_keeps_its_threads_and_device(quick, tmp_path):
    """`resnetlib run` records all cores, on a Mac perhaps MPS; with others it would not resume."""
    task = quick()
    files.write_json(task.folder / "run.json", {"status": "interrupted"})
    assert Needs(1, device="cpu").settings(task) == {}
    record = {"status": "interrupted", "fingerprint": {"device": "mps"}}
    files.write_json(task.folder / "run.json", record)
    assert Needs(1, device="cpu").settings(task) == {"device": "mps"}
    assert Needs(1).settings(task) == {}
    assert "threads" not in slurm_script([task], Needs(), tmp_path / "sweep.sh")


def test_runs_share_the_gpus_that_torch_can_use(monkeypatch):
    """Whatever nvidia-smi says: it lists cards that this torch cannot use, and none of AMD."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert visible_gpus() == []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("resnetlib.device.has_kernels", lambda device: True)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,-1,7")  # CUDA sees no card from a -1 on
    pool = LocalPool(Needs(None, 0.5))
    assert (pool.slots, pool.gpus) == (4, ["2", "5"])


def test_share_of_a_gpu_is_refused_where_there_is_none(quick, monkeypatch):
    monkeypatch.setattr("resnetlib.sweep.pool.visible_gpus", list)
    engine = command.Place(gpus=0.5).engine(Execution())
    assert carry_out([], engine) == {}  # as where all are done
    with pytest.raises(ConfigError, match=r"--gpus 0\.5: no GPU is visible on this machine"):
        carry_out([quick()], engine)


def test_sweep_refuses_one_card_for_all_runs():
    with pytest.raises(ConfigError, match="name those that it may use by CUDA_VISIBLE_DEVICES"):
        command.Place().needs(Execution(device="cuda:1"), has_gpus=True)


@pytest.mark.parametrize(("gpus", "device"), [(0, "cuda"), (0.5, "cpu"), (0, "mps")])
def test_sweep_refuses_gpus_that_contradict_the_device(gpus, device):
    with pytest.raises(ConfigError, match=f"--gpus {gpus} contradicts device = '{device}'"):
        command.Place(gpus=gpus).needs(Execution(device=device), has_gpus=True)


@pytest.mark.slow
def test_results_are_means_over_seeds_and_compared(quick):
    tasks = [quick(seed=seed, lr=lr, epochs=1 + seed) for seed in (0, 1) for lr in (0.1, 0.2, 0.3)]
    carry_out(tasks, LocalPool(Needs(), 2))
    for task in tasks:  # one setting, but for its seed
        task.overrides["epochs"] = 1
    header, *rows = command.results_summary(tasks).splitlines()
    assert header.index("  n ") == rows[0].index("  2 ")
    assert header.split() == ["accuracy", "on", "test", "set,", "per", "cent", "n", "mean", "s.d."]
    assert rows[0] == "lite, dataset digits, epochs 1, lr 0.1   2   51.50  0.71"
    assert rows[1].endswith("lr 0.2   2   41.50  0.71")
    assert rows[3] == "compared with lite, dataset digits, epochs 1, lr 0.1 (Dunnett's test):"
    assert rows[4].startswith("  lite, dataset digits, epochs 1, lr 0.2: −10.00 points (95 %")
    assert rows[4].endswith("different")
    assert command.plan_table(tasks).startswith("done       lite")
    assert "compared" not in command.results_summary(tasks[:3])


@pytest.mark.slow
def test_results_are_of_the_last_epoch(quick):
    task = quick()
    carry_out([task], LocalPool(Needs(), 1))
    files.write_text(task.folder / "history.csv", "epoch,test_accuracy\n1,0.9\n2,0.5\n")
    assert command.results_summary([task]).splitlines()[1].split()[-2] == "50.00"


@pytest.mark.slow
def test_results_are_measured_on_the_same_images(quick):
    """On held-out images only where every run has some."""
    tasks = [quick(epochs=1), quick(epochs=1, holdout=100, seed=1)]
    carry_out(tasks, LocalPool(Needs(), 2))
    header, *rows = command.results_summary(tasks).splitlines()
    assert "accuracy on test set" in header
    assert [row.split()[-2] for row in rows] == ["42.00", "42.00"]
    task = tasks[1]
    task.overrides = {"seed": 1}  # a name shorter than the header
    header, row = command.results_summary([task]).splitlines()
    assert header.index("  n ") == row.index("  1 ")
    assert "accuracy on held-out images" in header and row.split()[-2] == "37.00"


@pytest.mark.slow
def test_results_on_several_data_sets_are_not_compared(quick):
    datasets = ("digits", "cifar10")
    tasks = [quick(epochs=1, dataset=dataset, seed=seed) for seed in (0, 1) for dataset in datasets]
    carry_out(tasks, LocalPool(Needs(), 2))
    _, *rows = command.results_summary(tasks).splitlines()
    assert len(rows) == 2
    assert all(name in row for name, row in zip(datasets, rows, strict=True))
