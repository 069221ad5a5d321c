"""The errors of one network: confused pairs, and the most confident ones."""

import pytest
import torch

from resnetlib.analysis.errors import confused_pairs, misclassified_as, most_confident_errors
from resnetlib.evaluation import Evaluation


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
