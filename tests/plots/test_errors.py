"""Figures of the errors of one network, and of two compared: what a reader sees."""

import numpy as np
import pandas as pd
import pytest

from resnetlib import plots


def test_confusion_difference_is_signed():
    first, second = np.array([[5, 3], [0, 8]]), np.array([[7, 1], [1, 7]])
    axes = plots.confusion_difference(first, second, ["cat", "dog"], ("A", "B"))
    assert [text.get_text() for text in axes.texts] == ["−2", "+2", "−1", "+1"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    low, high = axes.collections[0].get_clim()
    assert low == -high  # no difference is the middle of the colours


def test_names_of_compared_runs_are_drawn_whole():
    """Runs of one variant and seed differ in what comes last."""
    names = [f"improved_sgd seed 0, weight_decay {value}" for value in (0.01, 0.001, 0.0001)]
    matrix = np.zeros((2, 2), dtype=int)
    axes = plots.confusion_difference(matrix, matrix, ["cat", "dog"], names[:2])
    label = axes.collections[0].colorbar.ax.get_ylabel()
    assert label == f"images: {names[0]}\nminus {names[1]}"
    numbers = {"difference": 0.0, "low": -0.1, "high": 0.1, "significant": False}
    table = pd.DataFrame([numbers | {"variant": "improved_sgd"}] * 2, index=names[1:])
    axes = plots.difference_intervals(table, names[0])
    assert [label.get_text() for label in axes.get_yticklabels()] == names[1:]
    assert names[0] in axes.get_xlabel()


@pytest.mark.slow
def test_difference_intervals_filled_if_significant():
    table = pd.DataFrame(
        {
            "difference": [0.02, -0.01],
            "low": [0.01, -0.03],
            "high": [0.03, 0.01],
            "p": [0.001, 0.4],
            "significant": [True, False],
            "variant": ["se", "lite"],
        },
        index=["se seed 0", "lite seed 1"],
    )
    axes = plots.difference_intervals(table, "lite seed 0")
    points = [container.lines[0] for container in axes.containers]
    assert [float(point.get_xdata()[0]) for point in points] == pytest.approx([2, -1])
    filled = [point.get_markerfacecolor() != "white" for point in points]
    assert filled == [True, False]
    (whisker,) = axes.containers[0].lines[2]
    assert whisker.get_segments()[0][:, 0] == pytest.approx([1, 3])
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table.index)
    assert "1 of 2" in axes.get_title() and "percentage points" in axes.get_xlabel()


def test_image_rows_may_differ_in_length():
    rows = [np.zeros((3, 3, 4, 4), dtype=np.uint8), np.zeros((1, 3, 4, 4), dtype=np.uint8)]
    axes = plots.image_rows(rows, ["cat", "dog"], "Pets", captions=[["a", "b", "c"], ["d"]])
    assert [a.get_ylabel() for a in axes] == ["cat", "", "", "dog", "", ""]
    assert [a.get_title() for a in axes] == ["a", "b", "c", "d", "", ""]
    assert [len(a.images) for a in axes] == [1, 1, 1, 1, 0, 0]
    assert axes[0].figure.get_suptitle() == "Pets"
    plots.image_rows([], [], "No pets")


def test_heat_rows_scale_each_map():
    images = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    maps = np.array([[[1.0, 4.0]], [[0.0, 0.0]]])  # the second speaks for nothing
    axes = plots.heat_rows(images, [maps], ["image", "map"], ["one", "two"], "Maps")
    heats = [a.images[1].get_array().tolist() for a in axes[2:]]
    assert heats == [[[0.25, 1.0]], [[0.0, 0.0]]]
    assert axes[2].images[1].get_extent() == axes[2].images[0].get_extent()
    assert [len(a.images) for a in axes] == [1, 1, 2, 2]


def test_embedding_names_classes_and_counts_errors():
    points = np.array([[0.0, 0.0], [2.0, 0.0], [10.0, 1.0], [9.0, 9.0]])
    axes = plots.embedding(points, [0, 0, 1, 1], [0, 0, 1, 0], ["cat", "dog"], "Pets")
    named = {text.get_text(): text.xy for text in axes.texts}
    assert named["cat"] == pytest.approx([1, 0])
    assert named["dog"] == pytest.approx([10, 1])
    right, wrong = axes.collections
    assert right.get_offsets().tolist() == [[0, 0], [2, 0], [10, 1]]
    assert wrong.get_offsets().tolist() == [[9, 9]]
    assert axes.get_legend().get_texts()[0].get_text() == "misclassified (1)"


def test_robustness_puts_the_costliest_first():
    table = pd.DataFrame({0: [0.9, 0.9], 1: [0.8, 0.5]}, index=["blur", "noise"])
    left, right = plots.robustness(table, 500, "lite", drop=0.13)
    assert [label.get_text() for label in left.get_yticklabels()] == ["noise", "blur"]
    assert [text.get_text() for text in left.texts] == ["90.0", "50.0", "90.0", "80.0"]
    assert right.lines[1].get_ydata() == pytest.approx([90, 80])
    assert right.lines[2].get_ydata() == pytest.approx([77, 77])
    shown = [text.get_text() for text in right.get_legend().get_texts()]
    assert shown == ["blur", "noise", "13 points lost"]
    assert left.figure.get_suptitle() == "lite: noise costs most (500 test images)"


def test_robustness_of_a_network_that_knows_nothing():
    table = pd.DataFrame({0: [0.1, 0.1], 1: [0.1, 0.1]}, index=["blur", "noise"])
    left, right = plots.robustness(table, 500, "lite", drop=0.13)
    assert left.figure.get_suptitle() == "lite: no corruption costs accuracy (500 test images)"
    shown = {text.get_text() for text in right.get_legend().get_texts()}
    assert shown == {"blur", "noise"}  # 13 points cannot be lost
