"""Temperature scaling, fitted on other images than those it is measured on."""

import shutil

import pytest
import torch
from conftest import TINY

from resnetlib import load_experiment, load_run, train
from resnetlib.analysis.calibration import calibrated, fit_temperature, held_out
from resnetlib.data import split_holdout
from resnetlib.evaluation import Evaluation


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
