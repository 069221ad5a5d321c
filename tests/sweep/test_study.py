"""Searches: ranges, trials, pruning, resuming, and the variant file of the best trial."""

from types import SimpleNamespace

import pytest

from resnetlib import load_experiment
from resnetlib.errors import ConfigError, RunError
from resnetlib.sweep import command, process
from resnetlib.sweep.display import Display
from resnetlib.sweep.pool import LocalPool, Needs
from resnetlib.sweep.study import Search, read_range
from resnetlib.sweep.task import Task

optuna = pytest.importorskip("optuna")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "write NAME=log"),
        ("lr=normal(0,1)", "write NAME=log"),
        ("lr=log(0,0.1)", "give a lower bound above 0"),
        ("lr=log(0.2,0.1)", "give a lower bound"),
        ("lr=log(0.1)", "give two numbers"),
        ("lr=log(a,b)", "give two numbers"),
        ("epochs=int(1.5,3)", "give two whole numbers"),
        ("optimizer=choice(sgd)", "two or more different choices"),
        ("seed=int(0,5)", "a search chooses network and recipe"),
        ("threads=int(1,2)", "a search chooses network and recipe"),
    ],
)
def test_mistake_in_a_range_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        read_range(text)


@pytest.mark.parametrize(
    ("text", "raw", "value"),
    [
        ("lr=log(0.01,0.3)", 0.12345, 0.123),
        ("dropout=linear(0,0.5)", 0.12345, 0.123),
        ("dropout=linear(0,0.5)", 0.0, 0.0),
        ("momentum=linear(0.9,0.99)", 0.951234, 0.951),
        ("momentum=linear(0.99,0.9999)", 0.9987654, 0.99877),
        ("momentum=linear(0.99,0.9999)", 0.99989999, 0.9999),
        ("lr=log(0.0123456,0.3)", 0.0123456, 0.0123456),  # not below its range
        ("epochs=int(2,5)", 4, 4),
        ("depths=choice([1,1],[2,2])", "[2,2]", [2, 2]),
    ],
)
def test_range_suggests_values(text, raw, value):
    one = read_range(text)
    assert one.suggest(optuna.trial.FixedTrial({one.name: raw})) == value
    assert str(one) == text


@pytest.mark.parametrize(
    ("overrides", "ranges", "message"),
    [
        ({"holdout": 0}, ["lr=log(0.01,0.3)"], "needs held-out training images"),
        ({"lr": 0.1}, ["lr=log(0.01,0.3)"], "lr is specified twice"),
        ({}, ["momentun=linear(0,0.9)"], "did you mean 'momentum'"),
        ({}, ["momentum=linear(0,2)"], "momentum = 2"),
        ({}, ["block=choice(basic,plain)"], "block = 'plain'"),
        ({}, ["batch_size=log(32,512)"], "batch_size = .* whole number"),
        ({}, ["batch_size=linear(90,900)"], "batch_size = .* whole number"),
        ({}, ["lr=log(0.01,0.3)", "epochs=linear(5,20)"], "epochs = .* whole number"),
        ({}, ["widths=choice([16,32,64],[512,1024,2048])"], "exceed the budget"),
    ],
)
def test_search_that_cannot_work_is_refused(overrides, ranges, message):
    with pytest.raises(ConfigError, match=message):
        Search("lite", overrides, [read_range(text) for text in ranges])


def test_range_whose_every_value_is_whole_is_accepted():
    """Three digits of a number above 100."""
    Search("lite", {}, [read_range("batch_size=log(100,900)")])


def test_search_holds_training_images_out():
    ranges = [read_range("lr=log(0.01,0.3)")]
    assert Search("lite", {}, ranges).base.recipe.holdout == 5000
    assert Search("lite", {"dataset": "digits"}, ranges).base.recipe.holdout == 135
    assert Search("lite", {"holdout": 1000}, ranges).base.recipe.holdout == 1000


def test_study_is_that_of_the_same_settings():
    ranges = [read_range("lr=log(0.01,0.3)"), read_range("weight_decay=log(1e-5,1e-2)")]
    first = Search("lite", {}, ranges).folder
    assert Search("lite", {}, ranges[::-1], save="tuned").folder == first
    assert Search("lite", {"epochs": 20}, ranges).folder != first
    assert Search("lite", {}, ranges[:1]).folder != first


@pytest.fixture
def search(quick, tmp_path, monkeypatch):
    """Makes a search of quick trials; `params/` for its result is an empty folder."""
    monkeypatch.setattr("resnetlib.sweep.study.params_folder", lambda: tmp_path / "params")

    def make(*ranges, save=None, **overrides):
        return Search("lite", quick(**overrides).overrides, [*map(read_range, ranges)], save)

    return make


def carry_out(search, trials, seconds=float("inf")):
    """The study after these trials and what became of them."""
    with search.opened() as study:
        outcomes = search.carry_out(study, LocalPool(Needs(), 2), trials, seconds)
        return study, [outcome.status for outcome in outcomes]


@pytest.fixture
def displays(monkeypatch):
    """What each search displays on."""
    made = []
    monkeypatch.setattr(
        "resnetlib.sweep.study.Display", lambda *a: made.append(Display(*a)) or made[-1]
    )
    return made


def states(study):
    return [trial.state.name for trial in study.get_trials()]


@pytest.mark.slow
def test_search_finds_the_best_and_saves_it(search, tmp_path, capsys):
    made = search("lr=choice(0.05,0.1,0.3)", save="tuned", epochs=1)
    study, outcomes = carry_out(made, 6)
    assert outcomes.count("done") == len(outcomes)
    assert states(study) == ["COMPLETE"] * 6
    for trial in study.get_trials():  # on held-out images, where quick_run is worse by 0.05
        assert trial.value == pytest.approx(0.46 - abs(float(trial.params["lr"]) - 0.1))
    assert study.best_value == pytest.approx(0.46)
    path = made.write_variant(study)
    assert path == tmp_path / "params" / "tuned.yaml"
    saved, base = load_experiment(path), load_experiment("lite")
    best = float(study.best_params["lr"])
    assert saved.recipe.optimizer.lr == best and saved.recipe.holdout == 0
    assert saved.architecture == base.architecture and saved.recipe.epochs == 1
    assert saved.published.test_accuracy is None
    assert "from variant lite: best of 6 trials over lr=choice(0.05,0.1,0.3)" in saved.source
    assert "135 held-out training images of digits" in saved.source
    assert "optimizer.lr" not in saved.assumed and "batch_size" in saved.assumed
    assert f"lr {best}" in made.describe(study).splitlines()[1]
    # The same command again: nothing is left to do, and the file is its own.
    assert carry_out(made, 6)[1] == []
    # So it is after a search for more trials that ended before it wrote the file again.
    carry_out(made, 7)
    assert carry_out(made, 7)[1] == []
    with pytest.raises(ConfigError, match="exists and is not replaced"):
        carry_out(search("lr=choice(0.05,0.1)", save="tuned", epochs=1), 1)
    path.write_text("changed by hand")
    with pytest.raises(ConfigError, match="exists and is not replaced"):
        carry_out(made, 7)


@pytest.mark.slow
def test_search_stops_bad_trials_early(search, capsys, displays):
    """Nine epochs: after 1 and 3 only the best third of the trials continues."""
    made = search("lr=choice(0.1,0.4,0.45,0.6)", epochs=9)
    with made.opened() as study:
        for lr in ("0.1", "0.4", "0.45", "0.6"):
            study.enqueue_trial({"lr": lr})
    study, _ = carry_out(made, 4)
    by_rate = {trial.params["lr"]: trial for trial in study.get_trials()}
    assert by_rate["0.1"].state.name == "COMPLETE"
    pruned = [trial for trial in by_rate.values() if trial.state.name == "PRUNED"]
    runs = [Task("lite", made.overrides | {"lr": float(t.params["lr"])}) for t in pruned]
    assert pruned and all(len(run.history()) < 9 for run in runs)
    assert "pruned " in capsys.readouterr().out
    carry_out(made, 4)
    for display in displays:  # of this call and of one that finds nothing to do
        assert display.state() == "4 of 4 runs are done"
        assert display.best[1].endswith("lr 0.1")


def is_pruned(search, trial, *accuracies, **values):
    """Whether a trial is stopped that has these accuracies, one after each epoch."""
    rows = [{"epoch": i, "holdout_accuracy": x} for i, x in enumerate(accuracies, start=1)]
    task = SimpleNamespace(history=lambda: rows, experiment=search._experiment(values))
    return search._is_pruned(task, [trial])


def test_trial_of_more_epochs_is_not_stopped_where_a_shorter_one_is_ahead(tmp_path):
    """At the same epoch the rate of the shorter one has come down further."""
    settings = {"dataset": "digits", "output_root": str(tmp_path)}
    made = Search("lite", settings, [read_range("epochs=int(5,40)")])
    with made.opened() as study:
        assert not is_pruned(made, study.ask(), *[0.6] * 4, epochs=5)
        assert not is_pruned(made, study.ask(), *[0.4] * 4, epochs=40)


def test_resumed_trial_is_compared_epoch_by_epoch(search):
    """A trial whose epochs arrive at once is no better at a rung than it was in that epoch."""
    made = search("lr=linear(0.1,0.2)", epochs=9)
    with made.opened() as study:
        assert not is_pruned(made, study.ask(), 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
        better, worse = study.ask(), study.ask()
        assert not is_pruned(made, better, 0.2)
        assert not is_pruned(made, better, 0.2, 0.3, 0.4)
        assert is_pruned(made, worse, 0.1)


def test_trials_are_compared_twice(search):
    """Not once more just before the end, where three times three is less than the epochs."""
    made = search("lr=linear(0.1,0.2)", epochs=10)
    with made.opened() as study:
        assert not is_pruned(made, study.ask(), *[0.5] * 9)
        assert not is_pruned(made, study.ask(), 0.5, 0.4, 0.5, *[0.4] * 6)
        assert is_pruned(made, study.ask(), 0.4)
        assert is_pruned(made, study.ask(), 0.5, 0.5, 0.4)


def test_trial_that_is_carried_out_again_counts_once(search):
    """The best third of five trials is one, that of six would be two."""
    made = search("lr=linear(0.1,0.2)", epochs=9)
    with made.opened() as study:
        is_pruned(made, study.ask(), 0.1)
    with made.opened() as study:
        again = study.ask()
        assert again.user_attrs == {"again": 0}
        for trial, accuracy in ((again, 0.1), (study.ask(), 0.5), (study.ask(), 0.2)):
            is_pruned(made, trial, accuracy)
        is_pruned(made, study.ask(), 0.1)
        assert is_pruned(made, study.ask(), 0.3)


def test_study_goes_on_after_an_unfinished_line(search):
    """As a full disk leaves it."""
    made = search("lr=linear(0.1,0.2)")
    journal = made.folder / "journal.log"
    for begun in (0, 1, 2):
        with made.opened() as study:
            assert len(study.trials) == begun
            study.tell(study.ask(), 0.5)
        with journal.open("a") as file:
            file.write('{"op_code":4,"wor')


def test_saved_variant_is_what_the_best_trial_trained(search):
    """Also where the search replaces the optimizer whose settings are given."""
    given = {"lr": 0.02, "weight_decay": 0.001, "holdout": 100, "select": "best_holdout"}
    made = search("optimizer=choice(sgd,adam)", save="tuned", **given)
    with made.opened() as study:
        choices = {"optimizer": optuna.distributions.CategoricalDistribution(["sgd", "adam"])}
        study.add_trial(
            optuna.create_trial(params={"optimizer": "adam"}, distributions=choices, value=0.5)
        )
        made.write_variant(study)
    trained = Task("lite", made.overrides | {"optimizer": "adam"}).experiment.recipe
    assert load_experiment(made._save_path).recipe == trained
    assert trained.optimizer.lr == 0.02 and trained.holdout == 100


def test_saved_variant_counts_ended_trials_and_assumes_nothing_that_was_searched(search):
    made = search("recipe.optimizer.lr=linear(0.1,0.2)", save="tuned")
    with made.opened() as study:
        study.tell(study.ask(), state=optuna.trial.TrialState.FAIL)
        trial = study.ask()
        trial.suggest_float("recipe.optimizer.lr", 0.1, 0.2)
        study.tell(trial, 0.5)
        study.ask()  # and was cut off
        study.enqueue_trial({"recipe.optimizer.lr": 0.1})
        made.write_variant(study)
    saved = load_experiment(made._save_path)
    assert "best of 2 trials" in saved.source
    assert "optimizer.lr" not in saved.assumed and "batch_size" in saved.assumed


def test_saved_variant_replaces_no_other_file(search):
    """Also one that was made while the search went on; its own file it does replace."""
    made = search("lr=linear(0.1,0.2)", save="tuned")
    distributions = {"lr": optuna.distributions.FloatDistribution(0.1, 0.2)}

    def add_trial(study, lr):
        study.add_trial(
            optuna.create_trial(params={"lr": lr}, distributions=distributions, value=lr)
        )

    with made.opened() as study:
        add_trial(study, 0.1)
        made._save_path.parent.mkdir()
        made._save_path.write_text(made.variant_yaml(study))  # and was killed
    with made.opened() as study:
        add_trial(study, 0.2)
        made.write_variant(study)
        assert load_experiment(made._save_path).recipe.optimizer.lr == 0.2
        made._save_path.write_text("made by hand")
        with pytest.raises(ConfigError, match="exists and is not replaced"):
            made.write_variant(study)
    assert made._save_path.read_text() == "made by hand"


@pytest.mark.slow
def test_failed_and_diverged_trials_are_told_apart(search):
    made = search("lr=choice(0.8,0.9)")
    with made.opened() as study:
        for lr in ("0.8", "0.9"):
            study.enqueue_trial({"lr": lr})
    study, outcomes = carry_out(made, 2)
    assert sorted(outcomes) == ["cancelled", "failed"]  # the exit code is that of the second
    assert {t.params["lr"]: t.state.name for t in study.get_trials()} == {
        "0.8": "PRUNED",
        "0.9": "FAIL",
    }


def test_refused_trial_counts_as_failed(search, capsys):
    """A combination over the budget: each choice alone is below it."""
    depths, widths = "[30,30,30]", "[128,128,128]"
    made = search(
        f"depths=choice([1,1,1],{depths},[1,1,2])", f"widths=choice([4,4,4],{widths},[4,4,5])"
    )
    with made.opened() as study:
        study.enqueue_trial({"depths": depths, "widths": widths})
    study, outcomes = carry_out(made, 1)
    assert outcomes == ["failed"] and states(study) == ["FAIL"]
    assert "exceed the budget" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "code"), [(0.8, 1), (0.1, 0)])
def test_search_in_which_every_trial_diverges_has_failed(
    quick, tmp_path, monkeypatch, capsys, rate, code
):
    monkeypatch.setattr("resnetlib.sweep.study.params_folder", lambda: tmp_path / "params")
    given = {name: str(value) for name, value in quick(lr=rate).overrides.items()}
    settings = {"ranges": ["batch_size=choice(32,64)"], "trials": 1, "save": "tuned"}
    assert command.sweep_search(["lite"], given.items(), command.Place(), **settings) == code
    written = (tmp_path / "params" / "tuned.yaml").exists()
    assert written is (code == 0)
    assert ("no trial is complete: tuned is not written" in capsys.readouterr().out) is not written


@pytest.mark.slow
def test_note_on_the_settings_is_printed_once(search, capsys):
    """Not again for each trial, where it would break the display."""
    made = search("optimizer=choice(sgd,adam)")
    with made.opened() as study:
        study.enqueue_trial({"optimizer": "adam"})
    assert set(carry_out(made, 2)[1]) == {"done"}
    assert capsys.readouterr().err.count("optimizer adam: ") == 1


@pytest.mark.slow
def test_search_resumes_the_trials_that_were_cut_off(search, monkeypatch, displays):
    monkeypatch.setattr(Search, "_is_pruned", lambda *_: False)
    made = search("lr=linear(0.1,0.2)", epochs=15)
    study, outcomes = carry_out(made, 2, seconds=1)
    assert outcomes == ["stopped", "stopped"]
    assert states(study) == ["RUNNING", "RUNNING"]
    assert displays[0].state() == "0 of 2 runs are done"
    cut_off = [trial.params for trial in study.get_trials()]
    study, outcomes = carry_out(made, 2)
    assert states(study) == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert displays[1].state() == "2 of 2 runs are done"
    assert [trial.params for trial in study.get_trials()[2:]] == cut_off
    assert made.describe(study).startswith("2 trials complete, 0 stopped early, 0 failed")
    (log, _) = sorted((made.folder.parents[1] / "lite").glob("*/starts.txt"))
    assert len(log.read_text().splitlines()) == 2


@pytest.mark.slow
def test_failed_trials_are_carried_out_again(search, monkeypatch):
    """The reason may have been outside, such as a GPU that is not there."""
    made = search("lr=linear(0.1,0.2)", epochs=1)
    with monkeypatch.context() as broken:
        broken.setattr(process, "PROGRAM", ("-c", "raise SystemExit(1)"))
        study, outcomes = carry_out(made, 2)
    assert (states(study), outcomes) == (["FAIL", "FAIL"], ["failed", "failed"])
    failed = [trial.params for trial in study.get_trials()]
    study, outcomes = carry_out(made, 2)
    assert outcomes == ["done", "done"]
    assert [trial.params for trial in study.get_trials()[2:]] == failed
    assert made.describe(study).startswith("2 trials complete, 0 stopped early, 0 failed")


@pytest.mark.slow
def test_search_out_of_time_between_trials_is_stopped(search):
    """The exit code is 4, as where a trial was stopped."""
    study, outcomes = carry_out(search("lr=linear(0.1,0.2)"), 2, seconds=0)
    assert (states(study), outcomes) == ([], ["stopped"])


@pytest.mark.parametrize("content", [b"garbage\n", b"[]\n", b'{"op_code": 99}\n', b"\xff\n"])
def test_damaged_journal_is_named(search, content):
    made = search("lr=linear(0.1,0.2)")
    made.folder.mkdir(parents=True)
    (made.folder / "journal.log").write_bytes(content)
    with pytest.raises(RunError, match=r"journal\.log is damaged; rename it"), made.opened():
        pass


def test_same_search_proposes_the_same_values_and_goes_on_with_others(search, tmp_path):
    def proposed(root):
        made = search("lr=log(0.01,0.3)", output_root=root)
        values = []
        for _ in range(2):  # the second time it is continued
            with made.opened() as study:
                trials = [study.ask() for _ in range(3)]
                values += [made.ranges[0].suggest(trial) for trial in trials]
                for trial in trials:
                    study.tell(trial, 0.5)
        return values

    values = proposed(tmp_path / "one")
    assert values == proposed(tmp_path / "two")
    assert len(set(values)) == 6


def test_search_of_another_process_is_refused(search):
    made = search("lr=linear(0.1,0.2)")
    with made.opened(), pytest.raises(BlockingIOError, match="in use"), made.opened():
        pass


def test_variant_that_cannot_be_saved_is_refused_before_any_trial(search, tmp_path, monkeypatch):
    monkeypatch.setattr("resnetlib.files.is_read_only", lambda folder: True)
    with pytest.raises(ConfigError, match=r"--save: .* cannot be written"):
        search("lr=linear(0.1,0.2)", save="tuned")
