"""Imported weights: the run folder that they leave, and that nothing takes it for a trained one."""

import re
import shutil

import pytest
import safetensors.torch
import torch
from click.testing import CliRunner
from conftest import PROJECT, TINY

from resnetlib import (
    analysis,
    build_model,
    evaluate,
    files,
    kaggle,
    load_experiment,
    load_run,
    train,
)
from resnetlib.analysis.calibration import held_out
from resnetlib.cli import main
from resnetlib.config import apply_overrides
from resnetlib.data import normalization
from resnetlib.errors import ConfigError, DataError, RunError
from resnetlib.reports.leaderboard import experiments, results_table
from resnetlib.reports.page import write_index
from resnetlib.reports.run_report import write_report
from resnetlib.runs.find import find_run, find_runs, finished_runs
from resnetlib.runs.imports import describe_source, import_weights
from resnetlib.runs.record import ARTIFACTS
from resnetlib.runs.verify import FAIL, PASS, verify_runs

pytestmark = pytest.mark.slow
RESNET20 = PROJECT.parent / "shared" / "weights" / "resnet20.th"  # of public code, not kept here

SETTINGS = TINY | {"widths": [16], "epochs": 1}


def invoke(*command):
    return CliRunner().invoke(main, [str(word) for word in command])


def fitted(experiment, data):
    """The network with random weights, but for the last layer, which solves the training images."""
    model = build_model(experiment.architecture).eval()
    mean, std = normalization(experiment.recipe, data)
    pooled = []
    hook = model.linear.register_forward_pre_hook(lambda _, given: pooled.append(given[0]))
    images, labels = data.train
    evaluate(model, images, labels, mean=mean, std=std, batch_size=128)
    hook.remove()
    features = torch.cat(pooled)
    features = torch.cat([features, torch.ones(len(features), 1)], 1).double()
    targets = 10 * torch.eye(10).double()[labels]
    solution = torch.linalg.lstsq(features, targets).solution.float()
    with torch.no_grad():
        model.linear.weight.copy_(solution[:-1].T)
        model.linear.bias.copy_(solution[-1])
    return model


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def experiment(root):
    return load_experiment("lite", **SETTINGS, output_root=root)


@pytest.fixture(scope="module")
def trained(experiment):
    """A run trained here, with the same experiment and in the same folder."""
    return train(experiment)


@pytest.fixture(scope="module")
def model(experiment, digits):
    return fitted(experiment, digits)


@pytest.fixture(scope="module")
def checkpoint(model, tmp_path_factory):
    """The weights as another script keeps them: half precision, under `net`, by other names."""
    names = {"stem.0": "conv1", "stem.1": "bn1", "stages.0": "layer1", "linear": "fc"}
    weights = {}
    for name, tensor in model.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        weights[f"module.{name}"] = tensor.half() if tensor.is_floating_point() else tensor
    path = tmp_path_factory.mktemp("elsewhere") / "ckpt.pth"
    torch.save({"net": weights, "acc": 12.3, "epoch": 4}, path)
    return path


@pytest.fixture(scope="module")
def imported(checkpoint, experiment):
    run = import_weights(checkpoint, experiment)
    write_report(run)
    return run


def test_changed_report_is_noticed(imported, tmp_path):
    shutil.copytree(imported.path, tmp_path / "run")
    page = tmp_path / "run" / "report.html"
    page.write_text(page.read_text().replace("Test accuracy", "Test  accuracy"))
    ((_, results),) = verify_runs([tmp_path / "run"])
    assert results["checksums"].status == FAIL and "report.html" in results["checksums"].detail


def test_report_shows_no_changed_figure(imported, tmp_path):
    shutil.copytree(imported.path, tmp_path / "run")
    figure = tmp_path / "run" / "figures" / "mistakes.png"
    figure.write_bytes((tmp_path / "run" / "figures" / "reliability.png").read_bytes())
    with pytest.raises(RunError, match=r"mistakes\.png is damaged: it is not what run\.json rec"):
        write_report(load_run(tmp_path / "run"))


def test_import_weights_refuses_a_folder_of_other_files(checkpoint, experiment, trained, tmp_path):
    """Whatever is where the run folder would be stays as it is."""
    name = f"digits-imported-{files.sha256(checkpoint)[:8]}"
    folder = tmp_path / "lite" / name
    elsewhere = apply_overrides(experiment, {"output_root": str(tmp_path)})

    def refused(message):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(ConfigError, match=message):
            import_weights(checkpoint, elsewhere)
        assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("mine")
    refused("is not a run folder .* holds other files: history.csv")
    shutil.rmtree(folder)
    shutil.copytree(trained.path, folder)
    refused("holds another run")
    shutil.rmtree(folder)
    folder.symlink_to(trained.path)
    refused("leads out of the output folder")


def test_import_weights_leaves_a_run_folder(imported, experiment, checkpoint, model, digits):
    digest = files.sha256(checkpoint)
    assert imported.path == experiment.folder.parent / f"digits-imported-{digest[:8]}"
    assert imported.status == "imported"
    source = imported.record["source"]
    assert (source["file"], source["sha256"], source["matched"]) == ("ckpt.pth", digest, "by name")
    expected = {*ARTIFACTS} - {"history.csv", "figures/curves.png"}
    assert set(imported.record["artifacts"]) == expected
    by_hand = evaluate(model, *digits.test, mean=digits.mean, std=digits.std)
    assert imported.metrics["test_accuracy"] == pytest.approx(by_hand.accuracy, abs=0.02)
    assert imported.metrics["test_loss"] == pytest.approx(by_hand.loss, abs=0.05)
    torch.testing.assert_close(
        imported.model().state_dict(), model.state_dict(), rtol=1e-3, atol=1e-2, check_dtype=True
    )
    with pytest.raises(RunError, match="was trained elsewhere"):
        _ = imported.history


def test_import_weights_finds_the_normalisation(digits, tmp_path):
    settings = SETTINGS | {"output_root": tmp_path}
    weights = fitted(load_experiment("lite", **settings, normalize="none"), digits).state_dict()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors.torch.save(weights))
    experiment = load_experiment("lite", **settings)
    run = import_weights(path, experiment)
    assert run.experiment.recipe.normalize == "none"
    assert run.record["overrides"]["recipe.normalize"] == "none"
    losses = {trial["normalize"]: trial["loss"] for trial in run.record["source"]["trials"]}
    assert list(losses) == ["dataset", "per_image_std", "imagenet", "none"]
    assert min(losses, key=losses.get) == "none"
    assert describe_source(run)["normalize"].startswith("none: lowest loss on 1,347 training")

    given = import_weights(path, experiment, normalize="dataset")
    assert given.path == run.path, "an import of the same file replaces the earlier one"
    assert given.experiment.recipe.normalize == "dataset"
    facts = describe_source(given)
    assert facts["normalize"] == "dataset: as given"
    assert facts["training accuracy"].endswith("low, so check variant and normalisation")
    assert "low" not in describe_source(run)["training accuracy"]


def in_order(checkpoint, path, change=lambda tensor: tensor):
    """The file with names that say nothing."""
    weights = torch.load(checkpoint, weights_only=True)["net"]
    weights = [tensor for name, tensor in weights.items() if "num_batches" not in name]
    torch.save({f"x{index}": change(tensor) for index, tensor in enumerate(weights)}, path)
    return path


def test_import_weights_in_order_says_so(checkpoint, tmp_path):
    path = in_order(checkpoint, tmp_path / "other.pth")
    experiment = load_experiment(
        "lite", **SETTINGS, output_root=tmp_path, normalize="per_image_std"
    )
    run = import_weights(path, experiment)
    assert describe_source(run)["normalize"] == "per_image_std: as given"
    assert describe_source(run)["tensors matched"] == "in order"
    assert run.metrics["test_accuracy"] > 0.5


def test_import_weights_in_order_refuses_another_network(checkpoint, experiment, tmp_path):
    path = in_order(checkpoint, tmp_path / "other.pth", torch.rand_like)
    before = sorted(experiment.execution.output_root.rglob("*"))
    with pytest.raises(DataError, match=r"fit lite in order, but not by name, and only \d"):
        import_weights(path, experiment)
    assert sorted(experiment.execution.output_root.rglob("*")) == before


def test_import_weights_refuses_the_wrong_variant(checkpoint, root):
    with pytest.raises(DataError, match=r"ckpt\.pth does not fit lite: fc\.weight \(10, 16\)"):
        import_weights(checkpoint, load_experiment("lite", dataset="digits", output_root=root))
    with pytest.raises(ConfigError, match=r"no such file"):
        import_weights("nowhere.pth", "lite")
    with pytest.raises(ConfigError, match=r"no such user"):
        import_weights("~nosuchuser/ckpt.pth", "lite")
    with pytest.raises(ConfigError, match=r"normalize"):
        import_weights(checkpoint, "lite", normalize="imagnet")


def test_import_weights_refuses_outputs_that_are_not_finite(model, experiment, tmp_path):
    weights = model.state_dict()
    weights["stem.1.running_var"] = -torch.ones(16)
    torch.save(weights, tmp_path / "ckpt.pth")
    with pytest.raises(DataError, match="the weights give lite outputs that are not finite"):
        import_weights(tmp_path / "ckpt.pth", experiment, normalize="none")


def test_verify_imported_run_with_its_report(imported, tmp_path):
    folder = shutil.copytree(imported.path, tmp_path / "copy")
    results = dict(verify_runs([folder]))[folder]
    others = {name for name, result in results.items() if result.status != PASS}
    assert others == {"learning rates", "history"}
    record = files.read_json(folder / "run.json")
    files.write_json(folder / "run.json", record | {"status": "done"})
    results = dict(verify_runs([folder]))[folder]
    assert results["checksums"].status == FAIL, "an imported run passes for a trained one"


def test_published_numbers_are_those_of_the_imported_network(imported):
    run = load_run(imported.path)
    vars(run)["experiment"] = load_experiment("lite", epochs=5)
    assert run.published.test_accuracy == 0.7987
    vars(run)["experiment"] = load_experiment("lite", depths=[2, 2, 2])
    assert run.published.test_accuracy is None and run.published.parameters is None


# A run of the variant never means an imported one -------------------------------------------------


def test_find_run_means_imported_weights_by_folder_only(imported, trained, root, tmp_path):
    assert find_run("lite", root, dataset="digits").path == trained.path
    assert find_run(None, root).path == trained.path
    assert find_run(imported.path).is_imported
    assert find_run(f"lite/{imported.path.name}", root).path == imported.path
    assert [run.path for run in finished_runs(root, dataset="digits")] == [trained.path]
    both = finished_runs(root, dataset="digits", imported=True)
    assert {run.path for run in both} == {trained.path, imported.path}
    only = shutil.copytree(imported.path, tmp_path / "lite" / imported.path.name)
    with pytest.raises(ConfigError, match="no finished run of 'lite'"):
        find_run("lite", tmp_path, dataset="digits")
    assert [run.path for run in find_runs(tmp_path)] == [only]


def test_train_does_not_replace_imported_weights(imported, experiment):
    with pytest.raises(ConfigError, match="holds imported weights"):
        train(experiment, output=imported.path)
    assert load_run(imported.path).status == "imported"


@pytest.mark.usefixtures("leaderboard_without_figures")
def test_leaderboard_shows_imported_weights_apart(imported, trained, root, tmp_path):
    lite = next(row for row in results_table([imported]) if row["variant"] == "lite")
    assert (lite["runs"], lite["reproduced"]) == (0, None)
    page = write_index(root).read_text()
    table, weights = page.split("<h2>Imported weights</h2>")
    assert f"{imported.path.name}/report.html" not in table
    assert f"{imported.path.name}/report.html" in weights
    assert "ckpt.pth" in weights
    assert f"1 finished run, the newest of {trained.record['finished'][:10]}<" in table
    shutil.copytree(imported.path, tmp_path / "lite" / imported.path.name)
    assert "0 finished runs<" in write_index(tmp_path).read_text()
    (row,) = (row for row in experiments([trained, imported]) if row["folders"])
    assert row["folders"] == (trained,)


def test_import_refuses_trained_scales_that_are_not_counted(tmp_path):
    experiment = load_experiment("lite", **SETTINGS, batch_norm_scale=False, output_root=tmp_path)
    weights = build_model(experiment.architecture).state_dict()
    doubled = {name: 2 * w if name.endswith("bn1.weight") else w for name, w in weights.items()}
    torch.save(doubled, tmp_path / "ckpt.pth")
    with pytest.raises(DataError, match="trained BatchNorm scales, which the variant fixes"):
        import_weights(tmp_path / "ckpt.pth", experiment)


def test_report_of_imported_weights(imported):
    page = (imported.path / "report.html").read_text()
    assert "imported" in page
    assert "ckpt.pth (SHA-256" in page
    assert page.count("<img") == 3
    for word in ("reproduced", "Training time", "after epoch", "Epochs", "Seed", "seed 0"):
        assert word not in page, word
    assert "after epoch" not in imported.headline
    assert imported.comparison.columns[1] == "imported"


def test_compare_runs_with_imported_weights(imported, trained, root):
    pair = analysis.compare_runs(imported.path, trained.path, output_root=root)
    label = f"lite {imported.origin}"
    assert pair.names == (label, "lite seed 0")
    assert f"{label} was trained elsewhere" in pair.verdict
    assert "Both have the same recipe" not in pair.verdict + pair.recipes
    assert [name for _, name, _ in pair.histories] == ["lite seed 0"]
    assert analysis.compare_runs(imported.path, output_root=root).names[1] == "lite seed 0"


def test_analysis_of_imported_weights_has_no_held_out_images(imported, digits):
    changed = imported.experiment.recipe.model_copy(update={"holdout": 100})
    imported.__dict__["experiment"] = imported.experiment.model_copy(update={"recipe": changed})
    try:
        assert held_out(imported, imported.model(), digits) is None
    finally:
        del imported.__dict__["experiment"]


def test_submission_from_imported_weights(imported, digits):
    logits = kaggle.predict(imported, digits.test[0], digits)
    torch.testing.assert_close(logits, imported.evaluation.logits)
    assert "lite, imported" in kaggle.upload_command(imported.path, imported, "none")


def test_reference_runs_know_no_imported_weights(imported, trained, monkeypatch):
    from resnetlib.runs import find

    monkeypatch.setattr(find, "_reference", lambda: imported.path.parent.parent)
    assert [run.path for run in find.reference_runs()] == [trained.path]


# The command line ---------------------------------------------------------------------------------


def test_import_command(checkpoint, tmp_path):
    settings = SETTINGS | {"widths": 16, "depths": 1, "output_root": tmp_path}
    options = [word for pair in settings.items() for word in ("-p", *pair)]
    named = shutil.copy(checkpoint, tmp_path / "a\x1b[2J.pth")
    done = invoke("import", named, "--variant", "lite", *options)
    assert done.exit_code == 0, done.output
    assert "a?[2J.pth (SHA-256" in done.output and "\x1b" not in done.output
    assert re.search(r"tensors matched: +by name\n", done.output)
    assert re.search(r"normalize: +dataset: lowest loss on 1,347 training images", done.output)
    assert re.search(r"Test accuracy \d+\.\d\d% \(95 % interval .* imported \w{8}\)", done.output)
    (run,) = find_runs(tmp_path)
    assert run.record["source"]["file"] == "a?[2J.pth"
    assert (run.path / "report.html").is_file()
    run.record["source"]["file"] = "\x1b[2J"  # as a stranger may write it
    assert describe_source(run)["imported from"].startswith("?[2J (")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--variant", "lit"], 2, "did you mean 'lite'"),
        (["--variant", "lite", "--normalize", "imagnet"], 2, "normalize"),
        (["--variant", "lite"], 1, "does not fit lite: "),
        (["--variant", "lite", "-p", "normalize", "none"], 2, "as --normalize"),
        ([], 2, "--variant"),
    ],
)
def test_import_command_refuses_in_one_line(words, status, message, checkpoint):
    done = invoke("import", checkpoint, *words)
    assert done.exit_code == status
    assert message in done.output.splitlines()[-1]


if RESNET20.is_file():  # a test that cannot run does not exist, since none may be skipped

    @pytest.mark.exhaustive
    def test_import_of_a_public_network(cifar10, tmp_path):
        experiment = load_experiment("resnet20", output_root=tmp_path)
        run = import_weights(RESNET20, experiment)
        assert run.path.parts[-2:] == ("resnet20", "cifar10-imported-12fca82f")
        assert describe_source(run)["tensors matched"] == "by name"
        assert run.experiment.recipe.normalize == "imagenet"
        assert abs(int(run.evaluation.correct.sum()) - 9_173) <= 2
