"""Verification: each way of doctoring a run fails the claims that it breaks, and no other."""

import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from conftest import PROJECT, TINY, copy_recorded, edit_weights, edit_yaml, recorded_lite

from resnetlib import build_model, files, load_experiment, load_run, train
from resnetlib.cli import main
from resnetlib.reports.run_report import write_report
from resnetlib.runs import evidence, verify
from resnetlib.runs.artifacts import run_metrics
from resnetlib.runs.evidence import DETAIL_CHARACTERS, LARGEST_FILES, PARSERS, Evidence, Unavailable
from resnetlib.runs.find import reference_runs
from resnetlib.runs.imports import import_weights
from resnetlib.runs.record import ARTIFACTS
from resnetlib.runs.run import WEIGHTS
from resnetlib.runs.verify import (
    CLAIMS,
    FAIL,
    NOT_CHECKED,
    PASS,
    Result,
    format_results,
    overall,
    verify_runs,
)
from resnetlib.training import Callback

TEXTS = ("summary.txt", "report.html")  # every text can be read


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run on the digits with a notebook and a report that state its accuracy."""
    experiment = load_experiment("lite", **TINY, epochs=6)
    run = train(experiment, output=tmp_path_factory.mktemp("verify") / "run")
    printed = nbformat.v4.new_output("stream", text=f"{run.headline}\n")
    cell = nbformat.v4.new_code_cell("print(run.headline)", outputs=[printed])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), run.path / "notebook.ipynb")
    accuracy = f"{100 * run.metrics['test_accuracy']:.2f} %"
    files.write_text(run.path / "report.html", f"<title>lite: {accuracy}</title>")
    return run


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained.path, tmp_path / "run")


def verified(folder, **settings):
    ((_, results),) = verify_runs([folder], **settings)
    return results


def failing(folder, **settings):
    return {name for name, result in verified(folder, **settings).items() if result.status == FAIL}


def edit_json(name, **changes):
    def edit(folder):
        content = files.read_json(folder / name)
        files.write_json(folder / name, content | changes)

    return edit


def edit_experiment(*, digest=False, **changes):
    """Values by dotted key with `__` for the dot; `digest` makes run.json agree with them."""

    def edit(folder):
        path = folder / "experiment.yaml"
        edit_yaml(path, **changes)
        if digest:
            experiment = load_experiment(str(path))
            record = files.read_json(folder / "run.json")
            record |= experiment.model_dump(mode="json", include={"variant", "overrides"})
            record["experiment"] = record["fingerprint"]["experiment"] = experiment.digest
            files.write_json(folder / "run.json", record)

    return edit


def edit_history(row, column, value):
    def edit(folder):
        history = pd.read_csv(folder / "history.csv")
        history.loc[row, column] = value
        history.to_csv(folder / "history.csv", index=False)

    return edit


def edit_predictions(**changes):
    """Each change is a function from the arrays of predictions.npz to a new array."""

    def edit(folder):
        with np.load(folder / "predictions.npz") as kept:
            arrays = dict(kept)
        arrays |= {name: change(arrays) for name, change in changes.items()}
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        (folder / "predictions.npz").write_bytes(buffer.getvalue())

    return edit


def change_weights(change):
    return lambda folder: edit_weights(folder, change)


def other_weights(weights):
    architecture = load_experiment("lite", **TINY).architecture
    return build_model(architecture, seed=9).state_dict()


def replace(name, old, new):
    def edit(folder):
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return edit


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def drop_last_epoch(folder):
    pd.read_csv(folder / "history.csv").iloc[:-1].to_csv(folder / "history.csv", index=False)


def perfect(arrays):
    return 20 * np.eye(10, dtype=np.float32)[arrays["labels"]]


def with_override(folder):
    """As if the run had been made with another normalisation."""
    overrides = load_experiment(str(folder / "experiment.yaml")).overrides
    overrides = overrides | {"recipe.normalize": "none"}
    edit_experiment(recipe__normalize="none", overrides=overrides, digest=True)(folder)


def with_override_value(folder):
    overrides = load_experiment(str(folder / "experiment.yaml")).overrides
    edit_experiment(overrides=overrides | {"recipe.epochs": 99}, digest=True)(folder)


def consistently_better(folder):
    """A better last epoch, in the history and in all that the metrics take from it."""
    run = load_run(folder)
    edit_history(6, "test_accuracy", 0.96)(folder)
    history = pd.read_csv(folder / "history.csv")
    edit_json("metrics.json", **run_metrics(run.experiment, history, run.evaluation))(folder)


MEASURED = {"accuracy", "predictions"}


def other_data(folder):
    """A record of other data that does not contradict itself."""
    record, checksums = files.read_json(folder / "run.json"), {"digits": "0" * 32}
    data = files.sha256_of(repr(sorted(checksums.items())).encode())
    mark = record["fingerprint"] | {"data": data}
    changed = {"dataset_checksums": checksums, "fingerprint": mark}
    files.write_json(folder / "run.json", record | changed)


TABLES = {"confusion matrix", "per class"}
# name -> (what is done, the claims that fail although the checksums were renewed)
DOCTORED = {
    "test_accuracy": (
        edit_json("metrics.json", test_accuracy=0.9999),
        {"metrics", "accuracy", "report"},
    ),
    "kept_accuracy": (
        edit_json("metrics.json", selected_test_accuracy=0.9999),
        {"metrics", "accuracy"},
    ),
    "calibration_error": (edit_json("metrics.json", ece=0.001), {"metrics"}),
    "train_seconds": (edit_json("metrics.json", train_seconds=1.0), {"metrics"}),
    "selected_epoch": (edit_json("metrics.json", selected_epoch=2), {"metrics"}),
    "override_that_covers_all": (
        edit_experiment(digest=True, overrides__recipe=None, recipe__label_smoothing=0.3),
        {"experiment"},
    ),
    "published_accuracy": (edit_json("metrics.json", published_test_accuracy=0.5), {"metrics"}),
    "metrics_lack_a_key": (
        lambda folder: files.write_json(folder / "metrics.json", {"test_accuracy": "high"}),
        {"parameters", "metrics", "accuracy", "report"},
    ),
    "parameters": (edit_json("metrics.json", parameters=12), {"parameters"}),
    "macs": (edit_json("metrics.json", macs=12), {"parameters"}),
    "weights_of_another_seed": (change_weights(other_weights), MEASURED),
    "weights_all_zero": (
        change_weights(lambda weights: {name: 0 * value for name, value in weights.items()}),
        MEASURED,
    ),
    "weights_not_finite": (
        change_weights(lambda weights: weights | {"linear.bias": torch.full((10,), torch.nan)}),
        MEASURED,
    ),
    "weights_that_cannot_be_evaluated": (
        change_weights(lambda w: w | {"stem.1.running_mean": w["stem.1.running_mean"].long()}),
        {"parameters"},
    ),
    "weights_with_another_key": (
        change_weights(lambda weights: weights | {"extra": torch.zeros(1)}),
        {"parameters"},
    ),
    "weights_of_another_shape": (
        change_weights(lambda weights: weights | {"linear.weight": torch.zeros(3, 3)}),
        {"parameters"},
    ),
    "learning_rate": (edit_history(2, "lr", 0.05), {"learning rates"}),
    "learning_rate_untrained": (edit_history(0, "lr", 0.1), {"learning rates"}),
    "last_accuracy": (edit_history(6, "test_accuracy", 0.96), {"metrics"}),
    "last_accuracy_and_metrics": (consistently_better, {"metrics", "accuracy", "report"}),
    "accuracy_of_no_count": (edit_history(2, "test_accuracy", 0.12345), {"history"}),
    "train_accuracy_of_no_count": (edit_history(2, "train_accuracy", 0.12345), {"history"}),
    "loss_not_finite": (edit_history(2, "test_loss", np.inf), {"history"}),
    "seconds": (edit_history(2, "seconds", 5000.0), {"metrics"}),
    "epoch_left_out": (drop_last_epoch, {"history", "metrics"}),
    "normalization": (
        edit_experiment(recipe__normalize="none"),
        {"experiment", *MEASURED},
    ),
    "normalization_with_digest": (
        edit_experiment(recipe__normalize="none", digest=True),
        {"experiment", *MEASURED},
    ),
    "normalization_with_override": (with_override, MEASURED),
    "override_value": (with_override_value, {"experiment"}),
    "variant": (edit_experiment(variant="laptop"), {"experiment"}),
    "variant_with_digest": (edit_experiment(variant="laptop", digest=True), {"experiment"}),
    "architecture": (
        edit_experiment(architecture__widths=[8]),
        {"experiment", "parameters", "summary"},
    ),
    "rate_of_experiment": (
        edit_experiment(recipe__optimizer__lr=0.2),
        {"experiment", "learning rates"},
    ),
    "epochs_of_experiment": (
        edit_experiment(recipe__epochs=40),
        {"experiment", "learning rates", "history"},
    ),
    "dataset_of_experiment": (
        edit_experiment(dataset="cifar10"),
        {"experiment", "history", "metrics"},
    ),
    "seed_of_experiment": (edit_experiment(seed=7), {"experiment"}),
    "budget": (edit_experiment(budget=100), {"experiment", "parameters"}),
    "budget_raised": (edit_experiment(budget=6_000_000), {"experiment"}),
    "published": (edit_experiment(published={"test_accuracy": 0.1}), {"experiment"}),
    "summary": (replace("summary.txt", "Total params: ", "Total params: 9"), {"summary"}),
    "summary_cut": (write("summary.txt", b""), {"summary"}),
    "confusion_matrix": (
        replace("confusion_matrix.csv", "\n0,", "\n0,1"),
        {"confusion matrix"},
    ),
    "class_names": (replace("confusion_matrix.csv", "\n0,", "\nzero,"), {"confusion matrix"}),
    "per_class": (replace("per_class.csv", "\n0,", "\n0,1"), {"per class"}),
    "per_class_column": (replace("per_class.csv", "recall", "precision"), {"per class"}),
    "predictions_perfect": (
        edit_predictions(logits=perfect, predictions=lambda arrays: arrays["labels"]),
        {"metrics", "predictions", *TABLES},
    ),
    "predictions_alone": (
        edit_predictions(predictions=lambda arrays: arrays["labels"]),
        {"predictions"},
    ),
    "logits_scaled": (
        edit_predictions(logits=lambda arrays: 2 * arrays["logits"]),
        {"metrics", "predictions"},
    ),
    "labels": (
        edit_predictions(labels=lambda arrays: arrays["predictions"]),
        {"metrics", "predictions", *TABLES},
    ),
    "notebook": (replace("notebook.ipynb", "Test accuracy ", "Test accuracy 1"), {"report"}),
    "report": (write("report.html", b"<title>lite: 99.99 %</title>"), {"report"}),
    "status": (edit_json("run.json", status="interrupted"), {"record"}),
    "status_unknown": (edit_json("run.json", status="great"), {"record"}),
    "status_imported": (edit_json("run.json", status="imported"), {"record", "metrics"}),
    "record_seed": (edit_json("run.json", seed=3), {"experiment"}),
    "record_variant": (edit_json("run.json", variant="laptop"), {"experiment"}),
    "record_overrides": (edit_json("run.json", overrides={}), {"experiment"}),
    "record_digest": (edit_json("run.json", experiment="0" * 64), {"record", "experiment"}),
    "record_data": (edit_json("run.json", dataset_checksums={"digits": "0"}), {"record"}),
    "record_of_other_data": (other_data, {"record"}),
    "accuracy_above_1": (edit_history(2, "test_accuracy", 1.5), {"history", "metrics"}),
    "loss_negative": (edit_history(2, "train_loss", -1.0), {"history"}),
    "classes_reversed": (
        edit_predictions(classes=lambda arrays: arrays["classes"][::-1]),
        {"predictions", *TABLES},
    ),
    "record_finished": (edit_json("run.json", finished="2001-01-01T00:00:00+00:00"), {"record"}),
    "record_torch": (edit_json("run.json", versions={"torch": "1.0"}), {"record"}),
    "record_fingerprint": (edit_json("run.json", fingerprint=[]), {"record"}),
}


def renew_checksums(folder):
    record = files.read_json(folder / "run.json")
    record["artifacts"] = {name: files.sha256(folder / name) for name in record["artifacts"]}
    files.write_json(folder / "run.json", record)


@pytest.fixture(autouse=True)
def digits_read_once(monkeypatch, digits):
    real = evidence.load_dataset
    monkeypatch.setattr(
        evidence,
        "load_dataset",
        lambda name, root: digits if name == "digits" else real(name, root),
    )


@pytest.mark.slow
def test_verify_reads_the_accuracy_on_top_of_a_report(folder):
    """Here `measured`: for a run on the digits nothing is published."""
    text = write_report(load_run(folder)).read_text()
    ((_, number),) = re.findall(r"<b>((\d+\.\d\d) %</b> measured)", text)
    (folder / "report.html").write_text(text.replace(f"<b>{number} %", "<b>99.99 %"))
    renew_checksums(folder)
    assert failing(folder) == {"report"}


@pytest.mark.slow
def test_verify_run_as_trained(trained):
    results = verified(trained.path)
    assert list(results) == list(CLAIMS)
    assert {name: result for name, result in results.items() if result.status != PASS} == {}
    assert overall(results) == PASS


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCTORED)
def test_verify_doctored_with_new_checksums(folder, name, monkeypatch):
    monkeypatch.setattr(evidence, "find_cifar10", lambda root: None)
    doctor, broken = DOCTORED[name]
    doctor(folder)
    renew_checksums(folder)
    assert failing(folder) == broken


class FirstEpochIsBest(Callback):
    def after_epoch(self, training):
        if training.epochs_done == 1:
            training.history[1]["holdout_accuracy"] = training.best.accuracy = 1.0


@pytest.mark.slow
def test_verify_epoch_evaluated_in_lower_precision(tiny):
    experiment = tiny(epochs=2, holdout=100, select="best_holdout", precision="bfloat16")
    run = train(experiment, callbacks=[FirstEpochIsBest()])
    assert run.metrics["selected_epoch"] == 1
    assert run.evaluation.loss != run.history["test_loss"][1]  # in float32
    assert failing(run.path) == set()
    edit_history(1, "test_loss", 1.02 * run.history["test_loss"][1])(run.path)
    renew_checksums(run.path)
    assert failing(run.path) == {"metrics"}


@pytest.mark.slow
def test_verify_run_selected_on_held_out_images(tiny, digits):
    run = train(tiny(epochs=3, holdout=100, select="best_holdout"))
    assert failing(run.path) == set()
    edit_history(run.metrics["selected_epoch"] % 3 + 1, "holdout_accuracy", 1.0)(run.path)
    renew_checksums(run.path)
    assert failing(run.path) == {"metrics"}


@pytest.mark.slow
def test_verify_does_not_vouch_for_the_last_epoch_where_another_is_kept(tiny):
    runs = (
        train(tiny(epochs=3, holdout=100, select="best_holdout", seed=seed)) for seed in range(30)
    )
    run = next(run for run in runs if run.metrics["selected_epoch"] < 3)
    result = verified(run.path)["accuracy"]
    assert result.status == NOT_CHECKED
    assert "the weights of the last epoch are not kept" in result.detail
    edit_history(run.metrics["selected_epoch"], "test_loss", 1.0)(run.path)
    renew_checksums(run.path)
    assert failing(run.path) == {"metrics"}


@pytest.mark.slow
def test_verify_counts_trained_scales(tiny):
    run = train(tiny(batch_norm_scale=False))
    assert failing(run.path) == set()
    change_weights(lambda w: {n: 2 * v if n.endswith("bn1.weight") else v for n, v in w.items()})(
        run.path
    )
    renew_checksums(run.path)
    result = verified(run.path)["parameters"]
    assert result.status == FAIL and "BatchNorm scales, which are not counted" in result.detail


def test_verify_rates_of_a_plateau_follow_the_history(tiny, tmp_path):
    """A recorded loss that does not lead to the recorded rates is found."""
    experiment = tiny(epochs=4, schedule={"name": "plateau", "factor": 0.5, "patience": 0})
    files.write_text(tmp_path / "experiment.yaml", experiment.to_yaml())
    columns = dict.fromkeys(evidence.HISTORY_COLUMNS, [0.5] * 5)
    columns |= {"epoch": range(5), "lr": [0, 0.1, 0.1, 0.05, 0.025]}
    pd.DataFrame(columns).to_csv(tmp_path / "history.csv", index=False)

    def check():
        return CLAIMS["learning rates"](Evidence(tmp_path, Unavailable))

    assert check() == Result(PASS, "4 epochs")
    edit_history(2, "train_loss", 0.1)(tmp_path)  # an improvement after all
    assert check() == Result(
        FAIL,
        "history.csv: lr of epoch 3 is 0.05, expected 0.1; "
        "history.csv: lr of epoch 4 is 0.025, expected 0.05",
    )


@pytest.mark.parametrize("name", [*ARTIFACTS, "figures/curves.png"])
def test_verify_file_with_one_more_byte(folder, name):
    with (folder / name).open("ab") as file:
        file.write(b"\n")
    results = verified(folder)
    assert failing(folder) == {"checksums"}
    assert name in results["checksums"].detail


DAMAGED = {
    "empty": b"",
    "binary": bytes(range(256)),
    "nested": b"[" * 200_000,
    "list": b"[1, 2]",
    "escapes": b'{"status": "\\u001b[2J\\ud800", "x": \x1b[2J}',
}


@pytest.mark.slow
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("name", [name for name in PARSERS if name not in TEXTS])
def test_verify_damaged_file(folder, name, content):
    (folder / name).write_bytes(content)
    results = verified(folder)
    claim = "record" if name == "run.json" else "checksums"
    assert results[claim].status == FAIL
    assert name in results[claim].detail
    assert {key for key, result in results.items() if result.status == FAIL} <= {claim, *TABLES}
    for result in results.values():
        assert result.detail.isprintable()
        assert len(result.detail) <= DETAIL_CHARACTERS


def test_verify_names_files_by_their_place_in_the_run(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder / "experiment.yaml").write_text("future_key: 1")
    detail = verified(Path("run"))["experiment"].detail
    assert detail.startswith("experiment.yaml is damaged: unknown key 'future_key'")


@pytest.mark.parametrize("name", [*PARSERS, "figures/curves.png"])
def test_verify_file_that_is_a_pipe(folder, name):
    (folder / name).unlink()
    os.mkfifo(folder / name)
    claim = "record" if name == "run.json" else "checksums"
    assert failing(folder) == {claim}
    assert f"{name} is not a regular file" in verified(folder)[claim].detail


@pytest.mark.parametrize(
    "name", [name for name in ARTIFACTS if name != WEIGHTS and "/" not in name]
)
def test_verify_missing_file(folder, name):
    (folder / name).unlink()
    results = verified(folder)
    assert failing(folder) == {"checksums"}
    assert results["checksums"].detail == f"{name} is missing"
    assert NOT_CHECKED in {result.status for result in results.values()}


def test_verify_missing_record(folder):
    (folder / "run.json").unlink()
    assert failing(folder) == {"record"}


def test_verify_fails_no_run_for_lack_of_memory(folder, monkeypatch):
    def lack(path):
        raise MemoryError

    monkeypatch.setitem(PARSERS, WEIGHTS, lack)
    results = verified(folder)
    assert {name for name, result in results.items() if result.status == FAIL} == set()
    assert "this machine lacks memory" in results["checksums"].detail
    assert results["accuracy"].status == NOT_CHECKED


def test_verify_names_outside_the_folder(folder, tmp_path):
    (tmp_path / "outside").write_text("secret")
    for name in ("../outside", str(tmp_path / "outside"), "a\0b"):
        record = files.read_json(folder / "run.json")
        record["artifacts"] = record["artifacts"] | {name: "0"}
        files.write_json(folder / "run.json", record)
        assert failing(folder) == {"checksums"}
        assert "outside the run folder" in verified(folder)["checksums"].detail


@pytest.mark.parametrize("name", ["./notes.txt", ".//notes.txt", "notes.txt/"])
def test_verify_reads_no_file_under_many_names(folder, name):
    (folder / "notes.txt").write_text("mine")
    artifacts = files.read_json(folder / "run.json")["artifacts"]
    edit_json("run.json", artifacts=artifacts | {name: files.sha256(folder / "notes.txt")})(folder)
    assert "in an unusual way" in verified(folder)["checksums"].detail


def test_verify_bomb_in_predictions(folder):
    with zipfile.ZipFile(folder / "predictions.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("logits.npy", bytes(LARGEST_FILES["predictions.npz"] + 1))
    renew_checksums(folder)
    assert "too large" in verified(folder)["checksums"].detail


# Not checked -------------------------------------------------------------------------------------


def not_checked(folder):
    return {name: r.detail for name, r in verified(folder).items() if r.status == NOT_CHECKED}


def test_verify_without_weights_and_report(folder):
    for name in (WEIGHTS, "notebook.ipynb", "report.html", "figures/curves.png"):
        (folder / name).unlink()
    assert failing(folder) == set()
    assert not_checked(folder) == {
        "accuracy": "no weights are kept",
        "predictions": "no weights are kept",
        "report": "notebook or report is not kept",
    }
    assert "2 not kept" in verified(folder)["checksums"].detail
    assert overall(verified(folder)) == NOT_CHECKED  # what all others serve


@pytest.mark.slow
def test_verify_recorded_runs_without_data(monkeypatch):
    monkeypatch.setattr(evidence, "find_cifar10", lambda root: None)
    for folder, results in verify_runs([run.path for run in reference_runs()]):
        statuses = {name: result.status for name, result in results.items()}
        assert statuses.pop("accuracy") == statuses.pop("predictions") == NOT_CHECKED
        if not (folder / "notebook.ipynb").is_file():
            statuses.pop("report")
        assert set(statuses.values()) == {PASS}, folder
    lite = not_checked(recorded_lite().path)
    assert lite["accuracy"] == "CIFAR-10 is not on this machine"


def test_verify_names_other_data_where_cifar10_is_not_at_hand(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "find_cifar10", lambda root: None)
    folder = copy_recorded(recorded_lite().path, tmp_path / "run")
    assert failing(folder) == set()
    other_data(folder)
    assert failing(folder) == {"record"}


def test_verify_unfinished_run(folder):
    for name in ("metrics.json", "predictions.npz", WEIGHTS, "per_class.csv"):
        (folder / name).unlink()
    drop_last_epoch(folder)
    record = files.read_json(folder / "run.json") | {"status": "interrupted", "artifacts": {}}
    del record["finished"]
    files.write_json(folder / "run.json", record)
    assert failing(folder) == set()
    reasons = not_checked(folder)
    assert {"checksums", "metrics", "accuracy", "predictions"} < set(reasons)
    assert "the run is not finished" in reasons["metrics"]
    edit_history(2, "lr", 0.5)(folder)
    assert failing(folder) == {"learning rates"}


@pytest.mark.slow
def test_verify_imported_run(trained, tmp_path):
    experiment = load_experiment("lite", **TINY, epochs=6, output_root=tmp_path)
    folder = import_weights(trained.path / WEIGHTS, experiment).path
    assert failing(folder) == set()
    reason = "an imported run has no history of its own"
    assert not_checked(folder)["history"] == not_checked(folder)["learning rates"] == reason
    source = files.read_json(folder / "run.json")["source"]
    metrics = files.read_json(folder / "metrics.json")
    edit_json("run.json", source=source | {"sha256": "unknown"})(folder)
    assert failing(folder) == {"record"}
    edit_json("run.json", source=source)(folder)
    edit_json("metrics.json", best_test_accuracy=0.99)(folder)
    renew_checksums(folder)
    assert "nothing gives best_test_accuracy" in verified(folder)["metrics"].detail
    files.write_json(folder / "metrics.json", metrics)
    change_weights(other_weights)(folder)
    renew_checksums(folder)
    assert failing(folder) == MEASURED


def test_verify_network_over_the_default_budget(folder, monkeypatch):
    monkeypatch.setattr(verify, "DEFAULT_BUDGET", 100)
    assert "the experiment's own budget is 5000000" in not_checked(folder)["parameters"]


def test_verify_variant_without_file(folder, monkeypatch):
    monkeypatch.setattr(verify, "known_variants", list)
    assert "no variant file lite.yaml" in verified(folder)["experiment"].detail
    assert failing(folder) == set()


def test_verify_weights_in_half_precision(folder):
    def halve(weights):
        return {n: v.half() if v.is_floating_point() else v for n, v in weights.items()}

    change_weights(halve)(folder)
    renew_checksums(folder)
    assert failing(folder) == set()


def test_verify_tolerates_near_ties_only(folder, monkeypatch):
    """A prediction may differ where the recomputed two highest logits lie within the tolerance."""

    def second_for_first(arrays):
        logits, image = arrays["logits"].copy(), 0
        second, first = np.argsort(logits[image])[-2:]
        logits[image, [first, second]] = logits[image, [second, first]]
        return logits

    edit_predictions(logits=second_for_first, predictions=lambda a: second_for_first(a).argmax(1))(
        folder
    )
    assert verified(folder)["predictions"].status == FAIL
    monkeypatch.setattr(verify, "LOGIT_TOLERANCE", 1000.0)
    assert verified(folder)["predictions"].status == PASS


# The command line --------------------------------------------------------------------------------


def call(*words):
    return CliRunner().invoke(main, ["verify", *map(str, words)])


def test_verify_command_on_one_run(folder):
    done = call(folder)
    assert done.exit_code == 0
    assert [line[:4] for line in done.stdout.splitlines()[1:]] == [PASS] * len(CLAIMS)
    (folder / WEIGHTS).unlink()
    assert call(folder).exit_code == 0
    edit_json("metrics.json", ece=0.5)(folder)
    failed = call(folder)
    assert failed.exit_code == 3
    assert "FAIL         metrics           metrics.json: ece is 0.5, expected" in failed.stdout
    assert "NOT CHECKED  accuracy          no weights are kept" in failed.stdout


def test_verify_command_prints_json(folder):
    (folder / "model.safetensors").unlink()
    edit_json("run.json", seed=3)(folder)
    done = call(folder, "--json")
    assert done.exit_code == 3
    (content,) = json.loads(done.stdout)
    assert content["run"].endswith("run")
    assert content["status"] == FAIL
    assert content["claims"]["experiment"] == {
        "status": FAIL,
        "detail": "run.json: seed is 3, expected 0",
    }
    assert content["claims"]["accuracy"]["status"] == NOT_CHECKED
    assert content["claims"]["metrics"]["status"] == PASS


@pytest.mark.slow
def test_verify_sixty_runs_in_one_table(folder, monkeypatch, digits):
    reads = []
    monkeypatch.setattr(evidence, "load_dataset", lambda *names: reads.append(names) or digits)
    monkeypatch.setattr(verify, "_check_summary", lambda run: Result(PASS, ""))  # for time
    folders = [folder.with_name(f"run{number:02}") for number in range(60)]
    for copy in folders:
        shutil.copytree(folder, copy)
    (folders[7] / WEIGHTS).unlink()
    edit_json("metrics.json", ece=0.5)(folders[9])
    text = format_results(dict(verify_runs(folders)))
    rows = {line.split()[0][-5:]: line.split()[1:] for line in text.splitlines() if "/run" in line}
    assert reads == [("digits", None)]
    assert [len(rows[copy.name]) for copy in folders] == [len(CLAIMS)] * 60
    assert set(rows["run00"]) == {PASS}
    assert rows["run07"].count("-") == 2
    assert rows["run09"].count(FAIL) == 2
    assert "metrics: metrics.json: ece is 0.5" in text
    assert text.endswith("60 runs, 1 with a FAIL; - in the table: NOT CHECKED")


@pytest.mark.parametrize("words", [["liet"], ["no/such/folder"], [], ["--jsn"]])
def test_verify_command_mistake(folder, words):
    done = call(*([folder] if words else []), *words)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert PASS not in done.output


def test_verify_command_on_a_run_by_its_name(folder, monkeypatch):
    """`variant/folder-name` means the run as its folder does, whatever it lacks."""
    (folder / WEIGHTS).unlink()
    monkeypatch.setattr("resnetlib.runs.find.output_folder", lambda _: folder.parent.parent)
    named = call(f"{folder.parent.name}/{folder.name}")
    assert (named.exit_code, named.stdout) == (0, call(folder).stdout)
    assert "NOT CHECKED  accuracy          no weights are kept" in named.stdout


def test_folder_of_the_runs_of_a_variant_is_no_run(tmp_path, monkeypatch):
    (tmp_path / "lite").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("resnetlib.runs.find.output_folder", lambda _: tmp_path)
    monkeypatch.setattr("resnetlib.runs.find._reference", lambda: tmp_path)
    done = call("lite")
    assert done.exit_code == 2 and "no finished run of 'lite'" in done.output


@pytest.mark.slow
def test_verify_recorded_lite(cifar10_folder):
    results = verified(recorded_lite().path, data_root=cifar10_folder)
    assert {result.status for result in results.values()} == {PASS}


def test_verify_run_of_an_earlier_recipe(tmp_path):
    """Its recipe may differ from the variant's file; nothing else may, and no other recipe."""
    recorded = PROJECT / "outputs/reference/lite/cifar10-seed1-652727f4"
    folder = copy_recorded(recorded, tmp_path / "earlier")
    assert verified(folder)["experiment"] == Result(
        PASS, "an earlier recipe of lite, overrides: seed"
    )
    edit_experiment(published={"test_accuracy": 0.1})(folder)
    assert verified(folder)["experiment"].status == FAIL
    overrides = {"seed": 1, "recipe.batch_size": 64, "recipe.optimizer.lr": 0.1}
    folder = copy_recorded(recorded, tmp_path / "by overrides")
    edit_experiment(overrides=overrides | {"recipe.augment": []}, digest=True)(folder)
    assert verified(folder)["experiment"].status == PASS
    edit_experiment(overrides=overrides | {"recipe.batch_size": 65}, digest=True)(folder)
    assert "batch_size is recorded as 65 and is 64" in verified(folder)["experiment"].detail
    folder = copy_recorded(recorded, tmp_path / "another")
    edit_experiment(recipe__batch_size=32, digest=True)(folder)
    assert "batch_size differs from lite.yaml" in verified(folder)["experiment"].detail


@pytest.mark.exhaustive
def test_verify_all_recorded_runs(cifar10_folder):
    for folder, results in verify_runs([run.path for run in reference_runs()], cifar10_folder):
        assert FAIL not in {result.status for result in results.values()}, folder
