"""The command that trains the recorded runs: plan, stop, resume, status, keep."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from conftest import TINY, benchmark, rewrite, wait_until

from resnetlib import files, list_variants, load_experiment, load_run, train
from resnetlib.errors import ConfigError
from resnetlib.runs.find import split_unreadable
from resnetlib.runs.lifecycle import check_experiment

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_figures")]


@pytest.fixture(scope="module")
def reproduce():
    with benchmark("reproduce") as module:
        yield module


def test_published_plans_own_recipes_first_seeds_first(reproduce):
    planned = reproduce.plan("published")
    for variant in list_variants():
        known = load_experiment(variant).published.parameters is not None
        assert known == any(run.variant == variant for run in planned), variant
    counts = {v: sum(run.variant == v for run in planned) for v in ("lite", "se", "improved_sgd")}
    assert counts == {"lite": 5, "se": 2, "improved_sgd": 3}
    assert len({run.folder for run in planned}) == len(planned)
    for run in planned:
        assert set(run.experiment.overrides) <= {"seed"}
        assert run.folder.parts[-4:-2] == ("outputs", "reference")
    seeds = [run.experiment.seed for run in planned]
    assert seeds == sorted(seeds)
    first_seeds = [run.variant for run in planned if run.experiment.seed == 0]
    assert first_seeds[: len(reproduce.ORDER)] == list(reproduce.ORDER)


def test_published_trains_a_named_variant(reproduce):
    planned = reproduce.plan("published", ["champion"])
    assert [(run.variant, run.experiment.seed) for run in planned] == [
        ("champion", 0),
        ("champion", 1),
        ("champion", 2),
    ]


def test_trials_hold_images_out_in_their_own_folder(reproduce):
    planned = reproduce.plan("trials")
    assert all(run.experiment.recipe.holdout == 5000 for run in planned)
    assert all("trials" in run.folder.parts for run in planned)
    assert len({run.experiment.digest for run in planned}) == len(planned)


@pytest.mark.parametrize(("part", "only"), [("published", []), ("trials", [])])
def test_rehearsed_runs_can_be_trained(part, only, reproduce):
    planned = reproduce.plan(part, only, rehearse=True)
    assert planned
    for run in planned:
        check_experiment(run.experiment)
        assert run.experiment.dataset == "digits"
        assert "rehearsal" in run.folder.parts


def test_unknown_variant_is_refused(reproduce):
    with pytest.raises(ConfigError, match="no variant 'lits'; did you mean 'lite'"):
        reproduce.plan("published", ["lits"])
    with pytest.raises(ConfigError, match="no trials for 'se'"):
        reproduce.plan("trials", ["se"])


def tiny_runs(reproduce, folder, seeds, **overrides):
    settings = TINY | {"output_root": str(folder), "data_root": None, "epochs": 2} | overrides
    return [reproduce.Task("lite", settings | {"seed": seed}) for seed in seeds]


def test_status_has_epochs_and_time_left(reproduce, tmp_path):
    done, started, waiting = tiny_runs(reproduce, tmp_path, [0, 1, 2], epochs=4)
    train(done.experiment)
    history = (done.folder / "history.csv").read_text().splitlines()
    header, *rows = [line.split(",") for line in history]
    for row in rows:
        row[header.index("seconds")] = "90"
        row[header.index("test_accuracy")] = "0.5"
    started.folder.mkdir(parents=True)
    text = "\n".join(",".join(row) for row in [header, *rows[:3]])  # untrained, two epochs
    (started.folder / "history.csv").write_text(text)
    record = load_run(done.folder).record
    files.write_json(started.folder / "run.json", record | {"status": "interrupted"})
    _, *lines = reproduce.status_table([done, started, waiting]).splitlines()
    assert lines[0].split()[-4:][:2] == ["done", "4/4"]
    assert lines[0].endswith("–")
    assert lines[1].endswith("interrupted        2/4  50.00  3 min 0 s")
    assert lines[2].split()[-4:] == ["waiting", "0/4", "–", "–"]


def test_keep_halves_large_weights(reproduce, tiny, monkeypatch):
    monkeypatch.setattr(reproduce, "EXACT_WEIGHTS_BYTES", 0)
    run = train(tiny(widths=[16]))
    before, size = run.model(), (run.path / "model.safetensors").stat().st_size
    ((kept,),) = reproduce.keep([run])
    assert (run.path / "model.safetensors").stat().st_size < 0.7 * size
    for (name, old), new in zip(
        before.state_dict().items(), kept.model().state_dict().values(), strict=True
    ):
        assert new.dtype == old.dtype
        expected = old.half().float() if old.dim() > 1 else old
        assert torch.equal(new, expected), name
    assert reproduce.runs.artifact_checksums(run.path) == kept.record["artifacts"]
    accuracy = reproduce.evaluate_again(kept)
    assert abs(accuracy - run.metrics["test_accuracy"]) < 0.005  # two images of 450
    record = (run.path / "run.json").read_text()
    reproduce.keep([kept])  # its weights are already in half precision
    assert (run.path / "run.json").read_text() == record


def test_keep_trims_all_but_the_lowest_seed(reproduce, tiny):
    finished = [train(tiny(seed=seed)) for seed in (1, 2)]
    weights = (finished[0].path / "model.safetensors").read_bytes()
    for run in finished:
        (run.path / "notebook.ipynb").write_text("{}")
    before = load_run(finished[1].path).record["artifacts"]
    ((first, other),) = reproduce.keep(finished[::-1])
    assert (first.record["seed"], other.record["seed"]) == (1, 2)
    assert (first.path / "notebook.ipynb").is_file() and (first.path / "figures").is_dir()
    assert "not_kept" not in first.record
    assert (first.path / "model.safetensors").read_bytes() == weights  # small ones stay exact
    removed = ("notebook.ipynb", "figures", "model.safetensors")
    assert not any((other.path / name).exists() for name in removed)
    assert other.record["artifacts"] | other.record["not_kept"] == before
    assert reproduce.runs.artifact_checksums(other.path) == other.record["artifacts"]
    assert split_unreadable([first, other])[1] == {}
    # Damage is still found: checksums of files that are kept are not renewed.
    (other.path / "history.csv").write_text("epoch,test_accuracy\n")
    reproduce.keep([load_run(first.path), load_run(other.path)])
    assert "history.csv is damaged" in split_unreadable([load_run(other.path)])[1][other.path]


def test_keep_leaves_the_only_weights(reproduce, tiny):
    finished = [train(tiny(seed=seed)) for seed in (1, 2)]
    (finished[0].path / "model.safetensors").unlink()
    ((first, other),) = reproduce.keep(finished)
    assert not first.has_weights and "model.safetensors" in first.record["not_kept"]
    assert other.has_weights and "model.safetensors" in other.record["artifacts"]


def test_recorded_runs_are_trimmed(reproduce):
    """One seed of an experiment has notebook, figures and weights; records match the files."""
    recorded = reproduce.runs.reference_runs()
    assert recorded
    for run in recorded:
        named = set(run.record["artifacts"]) - {"notebook.ipynb"}  # older records do not name it
        assert named == set(reproduce.runs.artifact_checksums(run.path)), run.path
    experiments = {run.experiment.digest_without_seed for run in recorded}
    for name in ("notebook.ipynb", "figures", "model.safetensors"):
        kept = [
            run.experiment.digest_without_seed for run in recorded if (run.path / name).exists()
        ]
        assert sorted(kept) == sorted(experiments), name


def test_weights_that_differ_from_the_record_are_reported(reproduce, tmp_path, capsys):
    (planned,) = tiny_runs(reproduce, tmp_path / "runs", [0])
    train(planned.experiment)
    assert reproduce.print_results([planned.run])
    content = json.loads((planned.folder / "metrics.json").read_text())
    content["selected_test_accuracy"] += 0.01
    rewrite(planned.folder, "metrics.json", json.dumps(content))
    assert not reproduce.print_results([planned.run])
    assert "DIFFERS" in capsys.readouterr().out


# The run without its notebook, which takes most of the time of a tiny one.
WITHOUT_NOTEBOOK = (
    "import sys\n"
    "from resnetlib import cli, execute\n"
    "execute.execute_notebook = lambda *_: None\n"
    "cli.main(['run', *sys.argv[1:]])\n"
)


@pytest.mark.exhaustive  # tests/sweep proves the same of the scheduler, with shorter runs
def test_stopped_queue_leaves_nothing_and_resumes(reproduce, tmp_path, monkeypatch):
    """Terminated while a run trains; then the rest, to the same bits."""
    settings = {**TINY, "epochs": 30, "output_root": str(tmp_path / "runs")}
    parent = (
        "import signal, sys\n"
        "from resnetlib.sweep import LocalPool, Needs, Task, carry_out, process\n"
        f"process.PROGRAM = ('-c', {WITHOUT_NOTEBOOK!r})\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        f"carry_out([Task('lite', {settings!r})], LocalPool(Needs(), 1))\n"
    )
    (run,) = [reproduce.Task("lite", settings)]
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE)
    wait_until(run.history, process=process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert not run.is_locked
    assert run.run is None
    monkeypatch.setattr("resnetlib.sweep.process.PROGRAM", ("-c", WITHOUT_NOTEBOOK))
    elsewhere = reproduce.Task("lite", {**settings, "output_root": str(tmp_path / "at-once")})
    outcomes = reproduce.carry_out([run, elsewhere], reproduce.LocalPool(reproduce.Needs(), 2))
    assert [outcome.status for outcome in outcomes.values()] == ["done", "done"]
    assert run.run.record["fingerprint"]["threads"] == 1
    weights = [one.folder / "model.safetensors" for one in (run, elsewhere)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert "resuming after " in run.log.read_text()
