"""Grading: what a submission gets, what is refused, which pairs are alike, and the autograder."""

import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
import tomllib
import zipfile
from unittest.mock import Mock

import pytest
import safetensors.torch
import torch
import yaml
from click.testing import CliRunner
from conftest import PROJECT, TINY, edit_weights, edit_yaml

from resnetlib import build_model, count_parameters, load_experiment, train
from resnetlib.cli import main
from resnetlib.config import known_variants
from resnetlib.data import normalization
from resnetlib.evaluation import evaluate
from resnetlib.experiment import DEFAULT_BUDGET
from resnetlib.reports import grade
from resnetlib.reports.grade import (
    BYTES_PER_PARAMETER,
    CHECKS,
    OTHER_BYTES,
    PACKAGES,
    SUBMITTED,
    Assignment,
    GradingData,
    find_submissions,
    grade_submission,
    near_identical,
)
from resnetlib.runs.find import reference_runs
from resnetlib.runs.run import WEIGHTS
from resnetlib.runs.verify import FAIL, NOT_CHECKED, PASS
from resnetlib.size import measure_size

pytestmark = pytest.mark.usefixtures("quick_figures")

DIGITS = Assignment("digits", budget=2_000)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two seeds of one recipe on the digits."""
    root = tmp_path_factory.mktemp("grade")
    runs = [load_experiment("lite", **TINY, epochs=4, seed=seed) for seed in (0, 1)]
    return [train(run, output=root / f"seed{run.seed}") for run in runs]


def submitted(run, folder):
    folder.mkdir(parents=True)
    for name in SUBMITTED:
        shutil.copy(run.path / name, folder / name)
    return folder


@pytest.fixture
def submission(trained, tmp_path):
    return submitted(trained[0], tmp_path / "submission")


@pytest.fixture(scope="session")
def data(digits):
    return GradingData.of(digits)


@pytest.mark.slow
def test_grade_is_the_accuracy_of_the_weights(trained, submission, data):
    result = grade_submission(submission, data, DIGITS)
    assert result.accuracy == trained[0].metrics["test_accuracy"]
    assert result.parameters == count_parameters(trained[0].model())
    assert result.score == pytest.approx(100 * result.accuracy, abs=1e-4)
    assert {name: r.status for name, r in result.checks.items()} == dict.fromkeys(CHECKS, PASS)
    assert result.reason == ""


def test_run_folder_is_a_submission(trained, data, submission):
    expected = grade_submission(submission, data, DIGITS)
    assert (
        grade_submission(trained[0].path, data, DIGITS).checks["accuracy"]
        == (expected.checks["accuracy"])
    )


@pytest.mark.parametrize("normalize", ["none", "per_image_std"])
def test_grade_follows_the_normalization_of_the_experiment(
    trained, submission, digits, data, normalize
):
    path = submission / "experiment.yaml"
    content = yaml.safe_load(path.read_text())
    content["recipe"]["normalize"] = normalize
    path.write_text(yaml.safe_dump(content))
    mean, std = normalization(load_experiment(path).recipe, digits)
    expected = evaluate(trained[0].model(), *digits.test, mean=mean, std=std).accuracy
    assert grade_submission(submission, data, DIGITS).accuracy == expected


# What is refused --------------------------------------------------------------------------------


class Code:
    """Unpickled, it creates a file."""

    def __reduce__(self):
        return os.mkdir, ("canary",)


def edit_experiment(**changes):
    """Values by dotted key with `__` for the dot."""
    return lambda folder: edit_yaml(folder / "experiment.yaml", **changes)


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def replace_by(make):
    """In place of the weights, what `make` makes."""

    def edit(folder):
        (folder / WEIGHTS).unlink()
        make(folder / WEIGHTS)

    return edit


def change_weights(change):
    return lambda folder: edit_weights(folder, change)


def link_weights(folder):
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def oversize(folder):
    os.truncate(folder / WEIGHTS, BYTES_PER_PARAMETER * DIGITS.budget + OTHER_BYTES + 1)


def hide_scales(folder):
    """Trained scales of BatchNorm in a network whose scales are said to be fixed."""
    edit_experiment(architecture__batch_norm_scale=False)(folder)
    edit_weights(folder, lambda w: {n: v + 0.1 if v.ndim == 1 else v for n, v in w.items()})


BOMB = b"a: &a [x, x]\n" + b"".join(
    b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in b"abcdefg"
)
# name -> (what is done, the check that fails, part of its reason)
BAD = {
    "no_weights": (remove(WEIGHTS), "files", f"{WEIGHTS} is missing"),
    "no_experiment": (remove("experiment.yaml"), "files", "experiment.yaml is missing"),
    "nothing": (remove(*SUBMITTED), "files", "is missing"),
    "weights_are_a_pipe": (replace_by(os.mkfifo), "files", "is not a regular file"),
    "weights_are_a_folder": (replace_by(os.mkdir), "files", "is not a regular file"),
    "weights_are_a_link": (link_weights, "files", "is a link"),
    "weights_are_oversized": (oversize, "files", "is too large"),
    "weights_are_pickled_code": (
        replace_by(lambda path: torch.save(Code(), path)),
        "weights",
        "is damaged",
    ),
    "weights_are_empty": (write(WEIGHTS, b""), "weights", "is damaged"),
    "weights_have_a_huge_header": (write(WEIGHTS, b"\xff" * 7 + b"\x7f{}"), "weights", "damaged"),
    "weights_lack_a_layer": (
        change_weights(lambda w: {n: v for n, v in w.items() if n != "linear.bias"}),
        "weights",
        "does not fit experiment.yaml",
    ),
    "weights_have_another_shape": (
        change_weights(lambda w: w | {"linear.weight": torch.zeros(3, 3)}),
        "weights",
        "does not fit experiment.yaml",
    ),
    "weights_have_more": (
        change_weights(lambda w: w | {"extra": torch.zeros(1)}),
        "weights",
        "does not fit experiment.yaml",
    ),
    "weights_are_integers": (
        change_weights(lambda w: {name: value.long() for name, value in w.items()}),
        "weights",
        "",
    ),
    "weights_are_not_finite": (
        change_weights(lambda w: w | {"linear.bias": torch.full((10,), torch.nan)}),
        "weights",
        "not finite",
    ),
    "outputs_are_not_finite": (
        change_weights(lambda w: w | {"linear.weight": torch.full((10, 4), 3e38)}),
        "accuracy",
        "not finite",
    ),
    "trained_scales_are_not_counted": (hide_scales, "weights", "trained BatchNorm scales"),
    "experiment_has_a_tag": (
        write("experiment.yaml", b"variant: !!python/object/apply:os.mkdir [canary]"),
        "experiment",
        "experiment.yaml is not valid YAML",
    ),
    "experiment_is_a_bomb": (write("experiment.yaml", BOMB), "experiment", "is damaged"),
    "experiment_is_nested": (write("experiment.yaml", b"[" * 200_000), "experiment", "is damaged"),
    "experiment_is_binary": (write("experiment.yaml", bytes(range(256))), "experiment", "damaged"),
    "experiment_is_a_list": (write("experiment.yaml", b"[1, 2]"), "experiment", "is damaged"),
    "experiment_has_an_unknown_key": (edit_experiment(colour="green"), "experiment", "colour"),
    "experiment_has_another_data_set": (
        edit_experiment(dataset="cifar10"),
        "experiment",
        "the experiment is on cifar10, not on digits",
    ),
    "over_the_budget": (
        edit_experiment(architecture__widths=[16], budget="none"),
        "parameters",
        "parameters exceed the budget of 2,000",
    ),
    "other_network": (edit_experiment(architecture__widths=[5]), "weights", "does not fit"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_submission_gets_zero_and_a_reason(submission, data, name, monkeypatch):
    monkeypatch.chdir(submission.parent)
    spoil, check, reason = BAD[name]
    spoil(submission)
    result = grade_submission(submission, data, DIGITS)
    statuses = {name: r.status for name, r in result.checks.items()}
    position = list(CHECKS).index(check)
    expected = [PASS] * position + [FAIL] + [NOT_CHECKED] * (len(CHECKS) - position - 1)
    assert list(statuses.values()) == expected, result.checks
    assert reason in result.checks[check].detail
    assert result.reason.startswith(f"{check}: ") and result.reason.isprintable()
    assert str(submission) not in result.reason
    assert (result.score, result.accuracy) == (0, None)
    assert not list(submission.parent.rglob("canary"))


@pytest.mark.parametrize(
    "architecture",
    [
        {"widths": [40_000, 4], "depths": [0, 1]},
        {
            "widths": [8],
            "depths": [1],
            "stem_width": 1_000,
            "stem_pool": {"kernel": 8, "stride": 8},
        },
        {"widths": [224], "depths": [4]},
        {
            "widths": [8],
            "depths": [1],
            "stem_width": 450,
            "stem_pool": {"kernel": 64, "stride": 1, "padding": 32},
        },
        {"widths": [1] * 16, "depths": [40] * 16, "strides": [1] * 16},  # 640 blocks
        {"widths": [16], "depths": [300]},  # 4.9 million values
    ],
)
def test_network_that_takes_too_long_gets_zero(submission, data, architecture):
    edit_experiment(architecture=architecture | {"block": "basic"})(submission)
    result = grade_submission(submission, data, Assignment("digits", 5_000_000))
    assert "are too many to evaluate" in result.reason


def test_limits_allow_every_variant_within_the_budget():
    for variant in known_variants():
        experiment = load_experiment(variant)
        submission = grade.Submission(PROJECT / "params", lambda name: None)
        submission.contents["experiment.yaml"] = experiment
        fits = measure_size(experiment.architecture).parameters <= DEFAULT_BUDGET
        assert CHECKS["parameters"](submission).status == (PASS if fits else FAIL)


# Pairs ------------------------------------------------------------------------------------------


def permuted(weights):
    """The same function with all channels in another order."""
    order = torch.tensor([2, 0, 3, 1])
    outputs = {n: v[order] if v.ndim and len(v) == 4 else v for n, v in weights.items()}
    return {
        n: v[:, order].contiguous() if v.ndim > 1 and v.shape[1] == 4 else v
        for n, v in outputs.items()
    }


ALIKE = {
    "a copy": lambda weights: weights,
    "half precision": lambda w: {n: v.half() if v.is_floating_point() else v for n, v in w.items()},
    "noise": lambda w: {
        n: v + 0.03 * v.std() * torch.randn_like(v) if v.ndim > 1 else v for n, v in w.items()
    },
    "other scales": lambda w: w | {n: 3 * w[n] for n in ("linear.weight", "linear.bias")},
}


@pytest.mark.parametrize("name", ALIKE)
def test_near_identical_submissions_are_found(trained, tmp_path, data, name):
    folders = [submitted(run, tmp_path / run.path.name) for run in trained]
    folders.append(submitted(trained[0], tmp_path / "other"))
    torch.manual_seed(0)
    edit_weights(folders[2], ALIKE[name])
    grades = [grade_submission(folder, data, DIGITS) for folder in folders]
    (pair,) = near_identical(grades)
    assert pair.names == (grades[0].name, grades[2].name)
    assert pair.weights > 0.95 and pair.agreement > 0.9


def test_copy_is_found_whose_experiment_says_other_things(trained, tmp_path, data):
    """What does not change the weights' shapes does not hide a copy that was trained further."""
    folders = [submitted(run, tmp_path / run.path.name) for run in trained]
    edit_weights(folders[1], lambda _: safetensors.torch.load_file(folders[0] / WEIGHTS))
    edit_weights(folders[1], ALIKE["noise"])
    edit_experiment(
        architecture__block="dropout",  # defines the same layers in another order
        architecture__init="kaiming_fan_out",
        architecture__head_dropout=0.01,
    )(folders[1])
    one, other = (grade_submission(folder, data, DIGITS) for folder in folders)
    assert grade.compare_grades(one, other).weights > 0.95


@pytest.mark.parametrize(("placement", "dropout"), [("block", "residual_end"), ("addition",) * 2])
def test_place_of_a_layer_does_not_depend_on_dropout(placement, dropout):
    attention = {"placement": placement, "reduction": 2}
    own = {"depths": [1], "widths": [4], "squeeze_excitation": attention}
    changes = {"stochastic_depth": 0.1, "dropout": 0.1, "dropout_place": dropout}
    plain, other = (
        build_model(load_experiment("lite", **own, **more).architecture).state_dict()
        for more in ({}, changes)
    )
    assert plain.keys() != other.keys()
    assert {grade._place(name) for name in plain} == {grade._place(name) for name in other}


def test_near_identical_predictions_are_found_whatever_the_weights(trained, tmp_path, data):
    folders = [submitted(run, tmp_path / run.path.name) for run in trained]
    folders.append(submitted(trained[0], tmp_path / "other"))
    edit_weights(folders[2], permuted)
    grades = [grade_submission(folder, data, DIGITS) for folder in folders]
    (pair,) = near_identical(grades)
    assert pair.names == (grades[0].name, grades[2].name)
    assert pair.mistakes > 0.95 and pair.weights < 0.8


def test_independent_seeds_and_failed_submissions_are_not_alike(trained, tmp_path, data):
    folders = [submitted(run, tmp_path / run.path.name) for run in trained]
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty too").mkdir()
    folders += [tmp_path / "empty", tmp_path / "empty too"]
    grades = [grade_submission(folder, data, DIGITS) for folder in folders]
    assert near_identical(grades) == []


def test_recorded_seeds_are_not_near_identical():
    """The numbers that `format_grades` and docs/grading.md state."""
    runs = reference_runs()
    grades = [
        grade.Grade(
            str(run.path),
            {},
            accuracy=run.evaluation.accuracy,
            predictions=run.evaluation.predictions,
            correct=run.evaluation.correct,
            shapes={run.record["variant"]: ()},
            weights=torch.zeros(1),
        )
        for run in runs
    ]
    assert near_identical(grades) == []
    recipes = [run.experiment.digest_without_seed for run in runs]
    alike = [
        grade.compare_grades(grades[one], grades[other])
        for one, other in itertools.combinations(range(len(runs)), 2)
        if recipes[one] == recipes[other]
    ]
    assert {round(100 * pair.agreement) for pair in alike} <= set(range(82, 96))
    assert {round(100 * pair.mistakes) for pair in alike} <= set(range(27, 43))


def test_near_identical_needs_mistakes_and_a_share():
    def is_alike(share, images):
        return grade.Similarity(("a", "b"), 0.99, share, images, None).is_near_identical

    assert [is_alike(1, 19), is_alike(1, 20)] == [False, True]
    assert [is_alike(0.59, 500), is_alike(0.61, 500)] == [False, True]


def test_submission_that_is_a_link_gets_nothing(trained, data, tmp_path):
    submitted(trained[0], tmp_path / "other")
    (tmp_path / "mine").symlink_to("other")
    graded = grade.grade_submission(tmp_path / "mine", data, grade.Assignment("digits"))
    assert graded.score == 0 and graded.checks["files"].status == "FAIL"


# The command line --------------------------------------------------------------------------------


def call(*words):
    return CliRunner().invoke(main, ["grade", *map(str, words)])


def test_find_submissions(trained, tmp_path, capsys):
    one = submitted(trained[0], tmp_path / "all" / "submission_1")
    nested = submitted(trained[0], tmp_path / "all" / "submission_2" / "my run")
    empty = tmp_path / "all" / "submission_3"
    empty.mkdir()
    (tmp_path / "all" / "__MACOSX").mkdir()
    (tmp_path / "all" / "submission_metadata.yml").write_text("")
    assert find_submissions([tmp_path / "all"]) == [one, nested, empty]
    everything = sorted(path for path in (tmp_path / "all").iterdir() if path.is_dir())
    assert find_submissions(everything) == [one, nested, empty]  # `all/*`
    hidden = submitted(trained[0], tmp_path / ".alice")
    assert find_submissions([hidden, one]) == [hidden, one]  # they are named
    assert find_submissions([one]) == [one]
    capsys.readouterr()
    (tmp_path / "all" / "late.zip").touch()
    assert find_submissions([tmp_path / "all"]) == [one, nested, empty]
    assert "late.zip is not a folder: skipped\n" in capsys.readouterr().err
    (empty / "nested.zip").touch()
    assert find_submissions([empty]) == [empty]
    assert "nested.zip is not a folder: skipped\n" in capsys.readouterr().err
    assert find_submissions([nested.parent]) == [nested]
    assert find_submissions([empty]) == [empty]
    zipped = submitted(trained[0], tmp_path / "zipped" / "outputs" / "lite" / "digits-seed0")
    assert find_submissions([one, tmp_path / "zipped"]) == [one, zipped]
    two = tmp_path / "all" / "submission_4"  # two networks of one student
    for name in "ab":
        submitted(trained[0], two / name)
    assert find_submissions([one, two]) == [one, two]
    assert find_submissions([two]) == [two / "a", two / "b"]


def test_submission_keeps_the_name_of_its_folder(trained, tmp_path, monkeypatch):
    """Also where it holds a link to another one, and beside files that are no submission."""
    submitted(trained[0], tmp_path / "submission_1")
    (tmp_path / "submission_2").mkdir()
    (tmp_path / "submission_2" / "mine").symlink_to("../submission_1")
    (tmp_path / "names.csv").touch()
    monkeypatch.chdir(tmp_path)
    done = call(*(sorted(path.name for path in tmp_path.iterdir())), "--dataset", "digits")
    assert done.exit_code == 3
    assert "submission_2/mine    0.00 %" in done.stdout
    (tmp_path / "submission_1" / "work").mkdir()
    for name in SUBMITTED:
        (tmp_path / "submission_1" / name).rename(tmp_path / "submission_1" / "work" / name)
    folder = tmp_path / "submission_2"
    assert find_submissions([folder]) == [folder / "mine"]
    assert "is a link" in done.stdout.partition("submission_2")[2]
    assert "names.csv is not a folder: skipped" in done.stderr


def test_lack_of_memory_is_no_zero(trained, tmp_path, monkeypatch):
    folder = submitted(trained[0], tmp_path / "submission_1")
    error = RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")
    monkeypatch.setattr("resnetlib.runs.evidence.evaluate", Mock(side_effect=error))
    done = call(folder, "--dataset", "digits")
    assert done.exit_code == 1 and "not the submission's fault" in done.stderr
    assert "0.00" not in done.stdout


def test_grade_command_lists_grades_and_pairs(trained, tmp_path):
    for number, run in enumerate((trained[0], trained[1], trained[0])):
        submitted(run, tmp_path / "all" / f"student{number}")
    done = call(tmp_path / "all", "--dataset", "digits")
    assert done.exit_code == 0, done.output
    accuracy = f"{100 * trained[1].metrics['test_accuracy']:.2f} %"
    (line,) = [line for line in done.stdout.splitlines() if "student1 " in line]
    assert accuracy in line
    pairs = done.stdout.partition("Near-identical")[2]
    assert "student0 and " in pairs and "student2: 100.0% equal predictions" in pairs
    assert "student1" not in pairs

    (tmp_path / "all" / "student1" / WEIGHTS).unlink()
    done = call(tmp_path / "all", "--dataset", "digits", "--json")
    assert done.exit_code == 3
    content = json.loads(done.stdout)
    scores = {entry["submission"][-8:]: entry["score"] for entry in content["submissions"]}
    assert scores["student1"] == 0 < scores["student0"]
    listed = call(tmp_path / "all", "--dataset", "digits").stdout.splitlines()
    assert "student1" in listed[3], "the best comes first"
    assert content["submissions"][1]["reason"] == f"files: {WEIGHTS} is missing"
    assert len(content["near_identical"]) == 1


@pytest.mark.parametrize(
    "words",
    [[], ["no such folder"], ["--zip", "x.zip", "--json"], [".", "--zip", "x.zip"]],
)
def test_grade_command_mistake(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = call(*words)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


# The autograder ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def autograder(tmp_path_factory, trained):
    """The unpacked zip in a folder as Gradescope has it, without a submission."""
    root = tmp_path_factory.mktemp("autograder")
    done = call("--zip", root / "autograder.zip", "--dataset", "digits", "--budget", 2000)
    assert done.exit_code == 0, done.output
    again = call("--zip", root / "autograder.zip", "--dataset", "digits")
    assert again.exit_code == 2 and "exists; give a new name" in again.stderr
    with zipfile.ZipFile(root / "autograder.zip") as archive:
        archive.extractall(root / "source")
        for entry in archive.infolist():
            (root / "source" / entry.filename).chmod(entry.external_attr >> 16)
    shutil.copy(root / "source" / "run_autograder", root / "run_autograder")
    (root / "submission").mkdir()
    return root


@pytest.fixture
def graded(autograder, tmp_path):
    """Runs the autograder on what the argument puts into a submission; its results."""

    def run(fill, python=sys.executable):
        shutil.rmtree(autograder / "submission")
        (autograder / "submission").mkdir()
        shutil.rmtree(autograder / "results", ignore_errors=True)
        fill(autograder / "submission")
        # The packages that are not installed on Gradescope cannot be imported here either.
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
        names = [requirement.split(">")[0].split("=")[0] for requirement in project["dependencies"]]
        absent = [name.replace("scikit-learn", "sklearn") for name in names if name not in PACKAGES]
        assert "matplotlib" in absent and "scipy" in absent
        code = f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"
        (tmp_path / "sitecustomize.py").write_text(code)
        variables = {
            "AUTOGRADER_ROOT": str(autograder),
            "AUTOGRADER_PYTHON": python,
            "PYTHONPATH": str(tmp_path),
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            [autograder / "run_autograder"],
            env=variables,
            cwd=autograder / "submission",
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == done.stdout == ""
        return json.loads((autograder / "results" / "results.json").read_text())

    return run


@pytest.mark.slow
def test_autograder_grades_a_submission(graded, trained):
    results = graded(lambda folder: submitted(trained[0], folder / "my run"))
    accuracy = trained[0].metrics["test_accuracy"]
    assert results["score"] == pytest.approx(100 * accuracy, abs=1e-4)
    assert [test["status"] for test in results["tests"]] == ["passed"] * len(CHECKS)
    assert results["leaderboard"] == [
        {"name": "test accuracy (%)", "value": results["score"], "order": "desc"},
        {"name": "parameters", "value": count_parameters(trained[0].model()), "order": "asc"},
    ]


@pytest.mark.slow
def test_autograder_runs_no_code_of_a_submission(graded, trained, autograder):
    def fill(folder):
        for name in SUBMITTED:
            shutil.copy(trained[0].path / name, folder / name)
        torch.save(Code(), folder / WEIGHTS)
        code = "import os; os.mkdir('canary')"
        for name in ("torch.py", "json.py", "sitecustomize.py", "resnetlib.py", "setup.py"):
            (folder / name).write_text(code)
        for name in ("run_autograder", "setup.sh"):
            (folder / name).write_text("mkdir canary")

    results = graded(fill)
    assert results["score"] == 0
    assert f"{WEIGHTS} is damaged" in results["output"]
    assert [test["status"] for test in results["tests"]] == [*["passed"] * 3, "failed"]
    assert "leaderboard" not in results
    assert not list(autograder.rglob("canary"))


def test_autograder_that_is_stopped_leaves_a_result(graded):
    results = graded(lambda folder: None, python="/bin/false")
    assert results["score"] == 0
    assert "could not be evaluated in the time and memory" in results["output"]


def test_autograder_has_what_gradescope_needs(autograder, data):
    source = autograder / "source"
    for name in ("setup.sh", "run_autograder"):
        assert (source / name).stat().st_mode & stat.S_IXUSR
        subprocess.run(["bash", "-n", source / name], check=True)
    requirements = (source / "requirements.txt").read_text().splitlines()
    assert {line.split("==")[0] for line in requirements} == set(PACKAGES)
    assert "+" not in "".join(requirements)
    kept = GradingData.read(source / "test.npz")
    assert torch.equal(kept.test[0], data.test[0]) and torch.equal(kept.test[1], data.test[1])
    assert (kept.classes, kept.mean, kept.std, kept.per_image_std) == (
        *(data.classes, data.mean, data.std, data.per_image_std),
    )


@pytest.mark.slow
def test_grade_of_recorded_lite(cifar10):
    run = PROJECT / "outputs" / "reference" / "lite" / "cifar10-seed0-9fbf37a8"
    result = grade_submission(run, cifar10, Assignment())
    assert result.accuracy == pytest.approx(0.8195, abs=0.001)
    assert result.parameters == 78_042
