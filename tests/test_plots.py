"""Figures: what a reader sees on their axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from resnetlib import list_variants, plots
from resnetlib.plots import style


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
    assert set(list_variants()) <= set(style.VARIANT_COLORS)
    assert plots.variant_color("mine") == plots.variant_color("mine")


@pytest.mark.parametrize("variant", style.VARIANT_COLORS)
def test_a_variants_line_can_be_seen_on_white(variant):
    # Contrast as the Web Content Accessibility Guidelines compute it; yellow has 1.1.
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in plots.variant_color(variant)
    ]
    luminance = np.dot([0.2126, 0.7152, 0.0722], linear)
    assert 1.05 / (luminance + 0.05) > 2.3


def test_a_figure_leaves_the_style_of_the_session_as_it_was(history):
    before = dict(plt.rcParams)
    plots.curves(history, "lite")
    assert dict(plt.rcParams) == before


def test_the_difference_of_two_confusions_is_signed_and_says_what_stands_out():
    first, second = np.array([[5, 3], [0, 8]]), np.array([[7, 1], [1, 7]])
    axes = plots.confusion_difference(first, second, ["cat", "dog"], ("A", "B"))
    assert [text.get_text() for text in axes.texts] == ["−2", "+2", "−1", "+1"]
    assert axes.get_title() == "cat: 2 more right with B\ncat taken for dog: 2 more with A"
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")
    low, high = axes.collections[0].get_clim()
    assert low == -high  # no difference is the middle of the colours
    same = plots.confusion_difference(first, first, ["cat", "dog"], ("A", "B"))
    assert same.get_title() == "Both make the same mistakes"


def test_difference_intervals_are_in_points_and_filled_where_significant():
    table = pd.DataFrame(
        {
            "difference": [0.02, -0.01],
            "low": [0.01, -0.03],
            "high": [0.03, 0.01],
            "p": [0.001, 0.4],
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


def test_image_rows_name_their_rows_and_may_differ_in_length():
    rows = [np.zeros((3, 3, 4, 4), dtype=np.uint8), np.zeros((1, 3, 4, 4), dtype=np.uint8)]
    axes = plots.image_rows(rows, ["cat", "dog"], "Pets", captions=[["a", "b", "c"], ["d"]])
    assert [a.get_ylabel() for a in axes] == ["cat", "", "", "dog", "", ""]
    assert [a.get_title() for a in axes] == ["a", "b", "c", "d", "", ""]
    assert [len(a.images) for a in axes] == [1, 1, 1, 1, 0, 0]
    assert axes[0].figure.get_suptitle() == "Pets"
    plots.image_rows([], [], "No pets")


def test_heat_rows_lay_each_map_over_its_image_scaled_to_its_own_largest_value():
    images = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    maps = np.array([[[1.0, 4.0]], [[0.0, 0.0]]])  # the second speaks for nothing
    axes = plots.heat_rows(images, [maps], ["image", "map"], ["one", "two"], "Maps")
    heats = [a.images[1].get_array().tolist() for a in axes[2:]]
    assert heats == [[[0.25, 1.0]], [[0.0, 0.0]]]
    assert axes[2].images[1].get_extent() == axes[2].images[0].get_extent()
    assert [len(a.images) for a in axes] == [1, 1, 2, 2]


def test_embedding_names_each_class_at_its_points_and_counts_the_mistakes():
    points = np.array([[0.0, 0.0], [2.0, 0.0], [10.0, 1.0], [9.0, 9.0]])
    axes = plots.embedding(points, [0, 0, 1, 1], [0, 0, 1, 0], ["cat", "dog"], "Pets")
    named = {text.get_text(): text.xy for text in axes.texts}
    assert named["cat"] == pytest.approx([1, 0])
    assert named["dog"] == pytest.approx([10, 1])
    right, wrong = axes.collections
    assert right.get_offsets().tolist() == [[0, 0], [2, 0], [10, 1]]
    assert wrong.get_offsets().tolist() == [[9, 9]]
    assert axes.get_legend().get_texts()[0].get_text() == "mistaken (1)"


def test_robustness_shows_the_costliest_damage_first_in_per_cent():
    table = pd.DataFrame({0: [0.9, 0.9], 1: [0.8, 0.5]}, index=["blur", "noise"])
    left, right = plots.robustness(table, 500, "lite", drop=0.13)
    assert [label.get_text() for label in left.get_yticklabels()] == ["noise", "blur"]
    assert [text.get_text() for text in left.texts] == ["90.0", "50.0", "90.0", "80.0"]
    assert right.lines[1].get_ydata() == pytest.approx([90, 80])
    assert right.lines[2].get_ydata() == pytest.approx([77, 77])
    shown = [text.get_text() for text in right.get_legend().get_texts()]
    assert shown == ["blur", "noise", "13 points lost"]
    assert left.figure.get_suptitle() == "lite: noise costs most (500 test images)"
