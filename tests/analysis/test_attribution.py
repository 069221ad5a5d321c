"""Error analysis of one network: attribution, confused pairs and temperature."""

import shutil

import pytest
import torch
from conftest import TINY
from torch import nn

from resnetlib import build_model, load_experiment, load_run, train
from resnetlib.analysis.attribution import embeddings, grad_cam, tsne
from resnetlib.analysis.calibration import calibrated, fit_temperature, held_out
from resnetlib.analysis.corruptions import corruption_sample_size
from resnetlib.analysis.errors import confused_pairs, misclassified_as, most_confident_errors
from resnetlib.data import split_holdout
from resnetlib.errors import ConfigError
from resnetlib.evaluation import Evaluation, evaluate, normalize

RAW = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture(params=["lite", "preact"])
def model(request):
    overrides = {"block": "preact"} if request.param == "preact" else {}
    experiment = load_experiment("lite", depths=[1, 1], widths=[8, 16], **overrides)
    return build_model(experiment.architecture, seed=3)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (5, 3, 32, 32), generator=generator, dtype=torch.uint8)


def state_of(model):
    tensors = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    grads = [p.grad for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    return tensors, [m.training for m in model.modules()], hooks, grads, flags


def assert_unchanged(model, before):
    tensors, *rest = before
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())
    assert state_of(model)[1:] == tuple(rest)


# Grad-CAM and embeddings -------------------------------------------------------------------------


def test_grad_cam_at_the_last_feature_map_is_cam(model, images):
    """Before a global mean and a linear layer the gradient is that layer's weights over h w."""
    classes = torch.tensor([0, 3, 3, 9, 1])
    maps = grad_cam(model, images, classes, **RAW)
    model.eval()
    with torch.no_grad():
        x = normalize(images, **RAW)
        features = model.final_activation(model.stages(model.stem_activation(model.stem(x))))
        cam = torch.einsum("nc,nchw->nhw", model.linear.weight[classes], features)
    assert maps.shape == (5, 16, 16)
    assert (cam < 0).any() and (cam > 0).any()
    torch.testing.assert_close(maps, cam.clamp_min(0) / 16**2)


def test_grad_cam_of_no_image_is_empty(model, images):
    assert len(grad_cam(model, images[:0], torch.zeros(0, dtype=torch.int64), **RAW)) == 0


def test_grad_cam_matches_a_calculation_by_hand():
    """The mean gradients of two channels are 1 and -1: the first minus the second."""
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(3 * 4, 2))
    network[2].weight.data[1] = torch.tensor([4, 0, 0, 0, 0, -2, -2, 0, 0, 0, 0, 0]).float()
    image = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    image[0, 0] = torch.tensor([[255, 102], [0, 0]])
    image[0, 1] = torch.tensor([[0, 51], [255, 0]])
    maps = grad_cam(network, image, torch.tensor([1]), **RAW, layer="0")
    torch.testing.assert_close(maps, torch.tensor([[[1.0, 0.2], [0.0, 0.0]]]))


def test_grad_cam_accepts_any_layer(model, images):
    maps = grad_cam(model, images, torch.zeros(5, dtype=torch.int64), **RAW, layer="stages.0")
    assert maps.shape == (5, 32, 32)


def test_embeddings_are_inputs_of_the_linear_layer(model, images):
    features = embeddings(model, images, **RAW, batch_size=2)
    logits = evaluate(model, images, torch.zeros(5, dtype=torch.int64), **RAW).logits
    torch.testing.assert_close(model.linear(features), logits)


@pytest.mark.parametrize("training", [True, False])
def test_attribution_does_not_change_the_model(model, images, training):
    model.train(training)
    model.stem[0].weight.requires_grad_(False)
    before = state_of(model)
    grad_cam(model, images, torch.zeros(5, dtype=torch.int64), **RAW)
    embeddings(model, images, **RAW)
    assert_unchanged(model, before)


@pytest.mark.slow
def test_tsne_is_deterministic_and_separates_groups():
    groups = torch.randn(3, 20, 8, generator=torch.Generator().manual_seed(0))
    features = (groups + 20 * torch.eye(8)[:3, None]).flatten(0, 1)
    points = tsne(features, seed=1)
    assert points.shape == (60, 2)
    assert (points == tsne(features, seed=1)).all()
    middles = torch.from_numpy(points).view(3, 20, 2).mean(1)
    spread = (torch.from_numpy(points).view(3, 20, 2) - middles[:, None]).norm(dim=-1).max()
    assert torch.pdist(middles).min() > spread


# Errors ------------------------------------------------------------------------------------------


@pytest.fixture
def evaluation():
    """Cats: 2 correct, 2 predicted dog; dogs: 1 correct, 1 predicted cat; a frog predicted dog."""
    rows = [(0, 0, 1), (0, 0, 2), (0, 1, 1), (0, 1, 3), (1, 1, 2), (1, 0, 5), (2, 1, 4)]
    logits = torch.zeros(len(rows), 3)
    for row, (_, predicted, size) in zip(logits, rows, strict=True):
        row[predicted] = size
    return Evaluation(logits, torch.tensor([row[0] for row in rows]), ("cat", "dog", "frog"))


def test_confused_pairs_are_sorted_by_frequency(evaluation):
    pairs = confused_pairs(evaluation)
    assert list(pairs.index) == [("cat", "dog"), ("dog", "cat"), ("frog", "dog")]
    assert pairs.loc[("cat", "dog")].tolist() == [2, 50, 50, 1]
    assert pairs.loc[("frog", "dog")].tolist() == [1, 100, 25, 0]
    assert len(confused_pairs(evaluation, count=1)) == 1


def test_errors_are_sorted_by_confidence(evaluation):
    assert misclassified_as(evaluation, "cat", "dog").tolist() == [3, 2]
    assert misclassified_as(evaluation, "frog", "cat").tolist() == []
    assert most_confident_errors(evaluation, 3).tolist() == [5, 6, 3]
    with pytest.raises(ValueError, match="no class 'horse'; one of cat, dog, frog"):
        misclassified_as(evaluation, "cat", "horse")


def test_errors_of_a_perfect_network_are_empty():
    perfect = Evaluation(5 * torch.eye(3), torch.arange(3), ("cat", "dog", "frog"))
    assert confused_pairs(perfect).empty
    assert most_confident_errors(perfect, 8).tolist() == []


# Temperature -------------------------------------------------------------------------------------


def drawn(temperature, count=20_000):
    """Logits and labels drawn from their softmax, then multiplied by the temperature."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(count, 10, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator)[:, 0]
    return Evaluation(temperature * logits, labels)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_fit_temperature_finds_the_factor(temperature):
    assert fit_temperature(drawn(temperature)) == pytest.approx(temperature, rel=0.03)


def test_calibrated_lowers_ece_and_keeps_predictions():
    scaled = calibrated(drawn(2.5))
    assert scaled.before.ece > 0.1
    assert scaled.after.ece < 0.02
    assert scaled.after.loss < scaled.before.loss
    assert torch.equal(scaled.after.predictions, scaled.before.predictions)
    assert len(scaled.temperatures) == 2
    assert "each half of the test images for the other" in scaled.fitted_on
    assert scaled.table.loc["accuracy (%)"].nunique() == 1
    assert scaled.table.loc["cross-entropy (nats)", "with temperature"] == scaled.after.loss


def test_calibrated_fits_on_other_images():
    """A changed label of one image changes the temperature of the other half only."""
    measured = drawn(1.0, count=40)
    labels = measured.labels.clone()
    labels[7] = (labels[7] + 1) % 10
    changed = Evaluation(measured.logits, labels)
    before, after = calibrated(measured), calibrated(changed)
    moved = (before.after.logits != after.after.logits).any(1)
    assert moved.sum() == 20
    assert not moved[7]


def test_calibrated_uses_held_out_images():
    scaled = calibrated(drawn(2.5), held_out=drawn(2.0, count=5_000))
    assert scaled.temperatures == pytest.approx((2.0,), rel=0.05)
    assert scaled.fitted_on == "5,000 training images held out of this run"
    assert torch.equal(scaled.after.logits, scaled.before.logits / scaled.temperatures[0])


# The run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("trained") / "outputs"
    return train(load_experiment("lite", **TINY, epochs=1, holdout=100, seed=3, output_root=root))


@pytest.fixture
def run(trained, tmp_path):
    """A run in `outputs` of the test's own folder."""
    folder = tmp_path / "outputs" / trained.path.relative_to(trained.path.parents[1])
    return load_run(shutil.copytree(trained.path, folder))


@pytest.mark.slow
def test_held_out_gives_the_images_of_training(run, digits):
    settings = {"mean": digits.mean, "std": digits.std}
    measured = held_out(run, run.model(), digits, **settings)
    held = split_holdout(digits.train[1], 100, 3)[1]
    assert torch.equal(measured.labels, digits.train[1][held])
    assert measured.accuracy == pytest.approx(run.history["holdout_accuracy"].iloc[-1])


@pytest.mark.parametrize("wanted", [0, 451, True, 2.5])
def test_corruption_sample_size_refuses_bad_numbers(wanted, model):
    with pytest.raises(ConfigError, match=r"images = .*: give a whole number from 1 to 450"):
        corruption_sample_size(wanted, model, 450)


def test_corruption_sample_size_falls_with_model_size():
    counts = [
        corruption_sample_size(None, build_model(load_experiment(name).architecture), 10_000)
        for name in ("lite", "improved_sgd", "resnet18")
    ]
    assert counts == [5_700, 1_000, 1_000]
    assert corruption_sample_size(7, nn.Identity(), 450) == 7
