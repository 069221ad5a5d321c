"""Figures: what a reader sees on their axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from resnetlib import list_variants, plots


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


@pytest.fixture
def history():
    return pd.DataFrame(
        {
            "epoch": [0, 1, 2],
            "train_loss": [2.3, 1.5, 1.1],
            "train_accuracy": [0.1, 0.4, 0.6],
            "test_loss": [2.3, 1.4, 1.2],
            "test_accuracy": [0.1, 0.5, 0.5625],
            "lr": [0.0, 0.1, 0.05],
            "seconds": [1.0, 2.0, 2.0],
        }
    )


def test_curves_show_train_and_test_in_per_cent_with_the_rate_beneath(history):
    loss, accuracy, rate = plots.curves(history, "lite")
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    assert lines["train"] == pytest.approx([10, 40, 60])
    assert lines["test"] == pytest.approx([10, 50, 56.25])
    assert rate.lines[0].get_ydata() == pytest.approx([0.1, 0.05])
    assert rate.get_position().y1 < loss.get_position().y0
    assert "56.25 %" in accuracy.get_title()
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (loss, accuracy, rate))


def test_curves_show_held_out_images_where_there_are_any(history):
    history = history.assign(holdout_loss=1.0, holdout_accuracy=0.5)
    _, accuracy, _ = plots.curves(history, "lite")
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "train",
        "held out",
        "test",
    ]


def test_confusion_shows_counts_and_row_shares_under_the_class_names():
    left, right = plots.confusion(np.array([[3, 1], [0, 4]]), ["cat", "dog"], "lite")
    assert [text.get_text() for text in left.texts] == ["3", "1", "0", "4"]
    assert [text.get_text() for text in right.texts] == ["75.0", "25.0", "0.0", "100.0"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["cat", "dog"]
    assert (left.get_ylabel(), left.get_xlabel()) == ("true", "predicted")
    assert "87.50 % of 8" in left.figure.get_suptitle()


def test_mistakes_are_the_wrong_images_surest_first():
    images = np.zeros((4, 3, 8, 8), dtype=np.uint8)
    axes = plots.mistakes(
        images, [0, 0, 1, 1], [1, 0, 0, 0], [0.6, 0.99, 0.7, 0.9], ["cat", "dog"], count=2
    )
    assert [a.get_title() for a in axes][:3] == ["dog\n→ cat 90 %", "dog\n→ cat 70 %", ""]
    assert "2 most confident of 3 mistakes" in axes[0].figure.get_suptitle()


def test_a_perfect_network_has_a_figure_too():
    images = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    axes = plots.mistakes(images, [0, 1], [0, 1], [0.9, 0.9], ["cat", "dog"])
    assert "0 mistakes" in axes[0].figure.get_suptitle()
    plots.confusion(np.diag([3, 4]), ["cat", "dog"], "lite")


def test_reliability_has_a_bar_for_each_bin_that_holds_images():
    calibration = pd.DataFrame(
        {"images": [0, 4, 6], "confidence": [0, 0.5, 0.9], "accuracy": [0, 0.25, 1.0]}
    )
    top, bottom = plots.reliability(calibration, 0.16, "lite")
    assert [bar.get_height() for bar in top.patches] == [25, 100]
    assert [bar.get_height() for bar in bottom.patches] == [0, 4, 6]
    assert "16.0 %" in top.get_title()


def test_each_variant_has_a_colour_of_its_own():
    colors = [plots.variant_color(variant) for variant in list_variants()]
    assert len(set(colors)) == len(colors)
    assert plots.variant_color("mine") == plots.variant_color("mine")


def test_a_figure_leaves_the_style_of_the_session_as_it_was(history):
    before = dict(plt.rcParams)
    plots.curves(history, "lite")
    assert dict(plt.rcParams) == before
