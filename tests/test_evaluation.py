"""Figures from logits against scikit-learn and against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, log_loss
from torch import nn

from resnetlib import build_model, evaluate, load_experiment
from resnetlib.evaluation import Evaluation, normalize, wilson_interval


@pytest.fixture
def evaluation():
    logits = torch.randn(500, 10, generator=torch.Generator().manual_seed(0)) * 3
    labels = torch.randint(10, (500,), generator=torch.Generator().manual_seed(1))
    return Evaluation(logits, labels, tuple("abcdefghij"))


def test_accuracy_and_loss_equal_scikit_learns(evaluation):
    probabilities = evaluation.logits.double().softmax(1)
    assert evaluation.accuracy == accuracy_score(evaluation.labels, evaluation.predictions)
    assert evaluation.loss == pytest.approx(log_loss(evaluation.labels, probabilities))


def test_confusion_has_true_rows_and_predicted_columns():
    logits = torch.eye(3)[[0, 1, 1, 2]]
    matrix = Evaluation(logits, torch.tensor([0, 0, 1, 1])).confusion
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 0]]


def test_per_class_names_classes_and_counts_images(evaluation):
    table = evaluation.per_class
    assert list(table.index) == list("abcdefghij")
    assert table["images"].sum() == 500
    recall = np.diag(evaluation.confusion) / evaluation.confusion.sum(1)
    assert table["recall"].to_numpy() == pytest.approx(recall)


def test_evaluate_refuses_what_would_give_another_number():
    images, labels = torch.zeros(4, 3, 4, 4, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64)
    given = {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    for wrong in (labels[:, None], labels[:1]):
        with pytest.raises(ValueError, match="one for each of 4 images"):
            evaluate(nn.Flatten(), images, wrong, **given)
    for wrong in (labels.numpy(), labels.int()):
        with pytest.raises(ValueError, match="evaluate takes an int64 tensor"):
            evaluate(nn.Flatten(), images, wrong, **given)
    with pytest.raises(ValueError, match="images are ndarray"):
        evaluate(nn.Flatten(), images.numpy(), labels, **given)


def test_ece_equals_a_value_by_hand():
    # Two images at confidence 0.9 (one right), two at 0.6 (both right).
    confidences = torch.tensor([0.9, 0.9, 0.6, 0.6], dtype=torch.float64)
    logits = torch.stack([confidences.log(), (1 - confidences).log()], dim=1)
    evaluation = Evaluation(logits, torch.tensor([0, 1, 0, 0]))
    assert evaluation.ece == pytest.approx(0.5 * abs(0.9 - 0.5) + 0.5 * abs(0.6 - 1.0))
    assert evaluation.calibration["images"].sum() == 4


def test_confidence_of_one_is_in_the_last_bin():
    evaluation = Evaluation(torch.tensor([[1000.0, 0.0], [0.0, 1000.0]]), torch.tensor([0, 0]))
    assert evaluation.calibration["images"].tolist() == [0] * 14 + [2]
    assert evaluation.ece == pytest.approx(0.5)


def test_wilson_interval_at_a_known_point():
    # 80 of 100: Wilson's score interval, 95 %
    z = 1.959964
    center = (0.8 + z**2 / 200) / (1 + z**2 / 100)
    half = z * math.sqrt(0.8 * 0.2 / 100 + z**2 / 40000) / (1 + z**2 / 100)
    assert wilson_interval(0.8, 100) == pytest.approx((center - half, center + half), abs=1e-6)


def test_normalize_is_torchvisions():
    from torchvision.transforms.v2 import functional as tv

    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    assert normalize(images, np.full(3, 0.5), np.full(3, 0.2)).dtype == torch.float32
    mean, std = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
    expected = tv.normalize(tv.to_dtype(images, torch.float32, scale=True), mean, std)
    torch.testing.assert_close(normalize(images, mean, std), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_evaluate_restores_the_model_at_any_batch_size(digits):
    model = build_model(load_experiment("lite").architecture).train()
    model.stages[0].eval()  # a frozen part stays frozen
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images, labels = digits.test
    settings = {"mean": digits.mean, "std": digits.std}
    whole = evaluate(model, images, labels, **settings)
    parts = evaluate(model, images, labels, **settings, batch_size=64)
    torch.testing.assert_close(whole.logits, parts.logits)
    assert whole.logits.shape == (450, 10)
    assert model.training
    assert not model.stages[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_evaluate_refuses_normalised_images():
    with pytest.raises(ValueError, match="uint8"):
        evaluate(nn.Flatten(), torch.rand(2, 3, 4, 4), torch.zeros(2), mean=(0,), std=(1,))
