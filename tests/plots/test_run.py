"""Figures and tables: what a reader sees."""

import statistics
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb

from resnetlib import load_experiment, plots
from resnetlib.plots import architecture, style
from resnetlib.runs import reference_runs
from resnetlib.schedule import learning_rate
from resnetlib.training import Trainer, fit


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


def test_curves_draw_training_and_test(history):
    loss, accuracy, rate = plots.curves(history, load_experiment("resnet18", epochs=2))
    lines = {line.get_label(): line.get_ydata() for line in accuracy.lines}
    assert lines["training"] == pytest.approx([10, 40, 60])
    assert lines["test"] == pytest.approx([10, 50, 56.25])
    assert rate.get_position().y1 < loss.get_position().y0
    assert "56.25 %" in accuracy.get_title()
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in (loss, accuracy, rate))


def test_curves_say_after_which_epoch(history):
    """Which may be the last of an interrupted run; the titles fit their panels."""
    experiment = load_experiment("resnet18", epochs=2)
    loss, accuracy, _ = plots.curves(history.assign(epoch=[0, 1, 2000]), experiment)
    assert loss.get_title() == "Test loss after epoch 2,000: 1.200"
    assert accuracy.get_title() == "Test accuracy after epoch 2,000: 56.25 %"
    accuracy.figure.draw_without_rendering()
    for axes in (loss, accuracy):
        assert axes.title.get_window_extent().width < axes.get_window_extent().width


def labels_of(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_curves_draw_validation_where_there_is_any(history):
    history = history.assign(holdout_loss=1.0, holdout_accuracy=0.5)
    _, accuracy, _ = plots.curves(history, load_experiment("resnet18", epochs=2))
    assert labels_of(accuracy) == ["training", "validation", "test"]


def test_curves_say_what_the_training_loss_includes(history):
    changes = {"label_smoothing": 0.1, "augment": "flip"}
    loss, accuracy, _ = plots.curves(history, load_experiment("lite", epochs=2, **changes))
    assert labels_of(loss) == ["training (label smoothing 0.1,\naugmented)", "test"]
    assert labels_of(accuracy) == ["training (augmented)", "test"]
    changes = {"block": "dropout", "dropout": 0.2, "stochastic_depth": 0.1, "augment": []}
    loss, accuracy, _ = plots.curves(history, load_experiment("lite", epochs=2, **changes))
    assert labels_of(loss) == labels_of(accuracy)
    assert labels_of(loss) == ["training (dropout, stochastic depth)", "test"]


def test_curves_of_a_short_run_name_each_tick_once(history):
    for last in (0.12, 0.085):
        changed = history.assign(train_accuracy=0.081, test_accuracy=[0.08, 0.081, last])
        _, accuracy, _ = plots.curves(changed, load_experiment("lite", epochs=2))
        low, high = accuracy.get_ylim()
        shown = [
            text.get_text()
            for text, place in zip(accuracy.get_yticklabels(), accuracy.get_yticks(), strict=True)
            if low <= place <= high
        ]
        assert len(shown) > 3 and len(set(shown)) == len(shown)


@pytest.mark.parametrize(
    ("variant", "title"),
    [
        ("lite", "cosine, peak 0.01, set for every epoch"),
        ("laptop", "one-cycle, peak 0.4, set for every step"),
    ],
)
def test_curves_draw_the_rate_of_every_step(history, variant, title):
    experiment = load_experiment(variant, epochs=2, holdout=10_000, batch_size=500)
    *_, axes = plots.curves(history, experiment)
    (line,) = axes.lines
    epochs, rates = line.get_xdata(), line.get_ydata()
    assert len(rates) == 2 * 80 + 1  # 40,000 images; the last rate lasts to the end
    assert (epochs[0], epochs[80], epochs[-1]) == (0, 1, 2)
    for step in (0, 31, 80, 159):
        assert rates[step] == learning_rate(experiment.recipe, step, 80)
    assert line.get_drawstyle() == "steps-post"  # a step has one rate from its start on
    assert axes.get_title().endswith(title)


def test_curves_draw_the_rate_of_a_plateau(history):
    """It follows the recorded history: no drop after epoch 2, one after epoch 3."""
    schedule = {"name": "plateau", "metric": "train_loss", "patience": 0, "factor": 0.5}
    experiment = load_experiment("lite", epochs=4, schedule=schedule, batch_size=500, lr=0.1)
    more = history.iloc[[2, 2]].assign(epoch=[3, 4])
    *_, axes = plots.curves(pd.concat([history, more]), experiment)
    rates = axes.lines[0].get_ydata()
    assert rates[::100] == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05])


def test_confusion_has_counts_and_row_shares():
    left, right = plots.confusion(np.array([[3, 1], [0, 4]]), ["cat", "dog"], "lite")
    assert [text.get_text() for text in left.texts] == ["3", "1", "0", "4"]
    assert [text.get_text() for text in right.texts] == ["75.0", "25.0", "0.0", "100.0"]
    assert [label.get_text() for label in left.get_xticklabels()] == ["cat", "dog"]
    assert (left.get_ylabel(), left.get_xlabel()) == ("true", "predicted")
    assert "87.50 % of 8" in left.figure.get_suptitle()


def test_mistakes_are_sorted_by_confidence():
    images = np.zeros((4, 3, 8, 8), dtype=np.uint8)
    axes = plots.mistakes(
        images, [0, 0, 1, 1], [1, 0, 0, 0], [0.6, 0.99, 0.7, 0.9], ["cat", "dog"], count=2
    )
    captions = [text.get_text() for text in axes[0].texts]
    assert captions == ["dog\n→ cat 90.00 %", "dog\n→ cat 70.00 %"]
    assert axes[0].figure.get_suptitle() == "Most confident errors: 2 of 3 (true → predicted)"


def test_mistakes_have_captions_that_differ():
    images = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    axes = plots.mistakes(
        images, [0, 0, 0], [1, 1, 1], [0.99996, 0.9998, 0.9991], ["cat", "dog"], count=3
    )
    captions = [text.get_text().split("dog ")[1] for text in axes[0].texts]
    assert captions == [">99.99 %", "99.98 %", "99.91 %"]


def test_image_grid_places_captions_above_their_images():
    images = np.stack([np.full((3, 4, 4), level, np.uint8) for level in (10, 20, 30)])
    (axes,) = plots.image_grid(images, ["a", "b\nb", "c"], "Three", columns=2)
    assert [image.get_array()[0, 0, 0] for image in axes.images] == [10, 20, 30]
    places = []
    for image, text in zip(axes.images, axes.texts, strict=True):
        left, right, bottom, top = image.get_extent()
        assert left < text.get_position()[0] < right
        assert text.get_position()[1] < top < bottom  # y grows downwards
        places.append((left, top))
    assert places[0][1] == places[1][1] and places[0][0] == places[2][0]
    assert axes.texts[2].get_position()[1] > axes.images[0].get_extent()[2]


def test_mistakes_of_a_perfect_network():
    images = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    axes = plots.mistakes(images, [0, 1], [0, 1], [0.9, 0.9], ["cat", "dog"])
    assert "0 of 0" in axes[0].figure.get_suptitle()
    plots.confusion(np.diag([3, 4]), ["cat", "dog"], "lite")


def test_before_after_pairs_the_same_images():
    before = np.stack([np.full((3, 4, 4), level, np.uint8) for level in (0, 100)])
    axes = plots.before_after(before, {"invert": 255 - before, "none": before}, "Two")
    assert [a.images[0].get_array()[0, 0, 0] for a in axes] == [0, 100, 255, 155, 0, 100, 0, 100]
    assert [a.get_ylabel() for a in axes] == ["invert", "", "", "", "none", "", "", ""]
    assert [a.get_title("left") for a in axes[:4]] == ["before", "", "after", ""]
    assert axes[1].get_position().x1 < axes[2].get_position().x0


def test_reliability_has_a_bar_per_filled_bin():
    calibration = pd.DataFrame(
        {"images": [0, 4, 6], "confidence": [0, 0.5, 0.9], "accuracy": [0, 0.25, 1.0]}
    )
    top, bottom = plots.reliability(calibration, 0.16, "lite")
    assert [bar.get_height() for bar in top.patches] == [25, 100]
    assert [bar.get_height() for bar in bottom.patches] == [0, 4, 6]
    assert "16.0 %" in top.get_title()


def test_reliability_legend_covers_no_bar():
    calibration = pd.DataFrame({"images": [4, 6], "confidence": [0.4, 0.9], "accuracy": 1.0})
    top, bottom = plots.reliability(calibration, 0.16, "resnet18")
    top.figure.draw_without_rendering()
    (legend,) = top.figure.legends
    assert top.get_legend() is None
    assert legend.get_window_extent().y1 < bottom.xaxis.label.get_window_extent().y0


def test_one_image_is_not_called_images():
    axes = plots.class_balance(np.array([1, 0]), ["cat", "dog"], "lite")
    assert "of 1 image most" in axes.get_title()
    left, _ = plots.confusion(np.diag([1, 0]), ["cat", "dog"], "lite")
    assert left.figure.get_suptitle() == "lite: 100.00 % of 1 test image correct"
    left, _ = plots.robustness(pd.DataFrame({0: [0.9], 1: [0.8]}, index=["noise"]), 1, "lite")
    assert "(1 test image)" in left.figure.get_suptitle()


def test_variant_color_is_distinct_for_recorded_variants():
    colors = [plots.variant_color(variant) for variant in style.VARIANT_COLORS]
    assert len(set(colors)) == len(colors)


def test_variant_color_of_a_new_name():
    """From the name alone, in every process, and of no other variant that has a fixed colour."""
    colors = [to_hex(plots.variant_color(name)) for name in ("mine", "yours", "ninth", "tenth")]
    assert set(colors) <= set(style.OTHER_COLORS)
    assert len(set(colors)) > 1
    assert colors[0] == "#aa4499"
    assert not set(style.OTHER_COLORS) & set(style.VARIANT_COLORS.values())


def contrast(one, other):
    """As the Web Content Accessibility Guidelines compute it; yellow on white has 1.1."""
    values = np.array([to_rgb(one), to_rgb(other)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    dark, light = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("color", [*style.VARIANT_COLORS.values(), *style.OTHER_COLORS])
def test_colors_are_visible_on_white(color):
    assert contrast(color, "white") > 2.3


@pytest.mark.parametrize("name", architecture.FILLS)
def test_layers_of_a_block_are_readable(name):
    _, axes = plt.subplots()
    architecture._draw_chip(axes, 0, 0, name)
    assert contrast(axes.texts[0].get_color(), axes.patches[0].get_facecolor()[:3]) >= 4.5


def test_figures_leave_the_style_of_the_session(history):
    before = dict(plt.rcParams)
    plots.curves(history, load_experiment("resnet18", epochs=2))
    assert dict(plt.rcParams) == before


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


# Live curves -------------------------------------------------------------------------------------


class Recorder:
    """Stands in for IPython's display: what it displays, and then updates."""

    def __init__(self):
        self.images = []

    def display(self, image, display_id):
        self.images.append(image)
        return self

    def update(self, image):
        self.images.append(image)


class OldImage:
    """The image of Colab's IPython, which has no `alt`."""

    def __init__(self, data, *, width, metadata):
        self.data, self.metadata = data, metadata


@pytest.fixture
def displayed(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr("IPython.display.Image", OldImage)
    monkeypatch.setattr("IPython.display.display", recorder.display)
    return recorder.images


@pytest.mark.slow
def test_live_curves_draw_every_epoch_before_a_person(tiny, few_digits, displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("resnetlib.plots.live.is_interactive", lambda: True)
    monkeypatch.setattr("resnetlib.plots.live.TIME_SHARE", 1e9)
    experiment = tiny(epochs=2)
    training = Trainer(experiment, few_digits)
    fit(training, 2, [plots.LiveCurves(experiment)])
    assert len(displayed) == 4  # untrained, two epochs, and the end
    assert all(image.data.startswith(b"\x89PNG") for image in displayed)
    assert displayed[0].data != displayed[1].data
    assert "accuracy" in displayed[0].metadata["alt"]
    assert not plt.get_fignums()  # nothing that the notebook would display again


@pytest.mark.slow
def test_live_curves_leave_quick_epochs_out(tiny, few_digits, displayed, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setattr("resnetlib.plots.live.is_interactive", lambda: True)
    monkeypatch.setattr("resnetlib.plots.live.TIME_SHARE", 1e-9)
    fit(Trainer(tiny(epochs=3), few_digits), 3, [plots.LiveCurves(tiny(epochs=3))])
    assert len(displayed) == 2  # the first and the last


@pytest.mark.parametrize(("in_notebook", "watched"), [(True, False), (False, True)])
def test_live_curves_draw_nothing_in_batch(
    tiny, few_digits, displayed, monkeypatch, in_notebook, watched
):
    """Neither under papermill nor in a terminal."""
    if in_notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    else:
        monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    monkeypatch.setattr("resnetlib.plots.live.is_interactive", lambda: watched)
    fit(Trainer(tiny(), few_digits), 1, [plots.LiveCurves(tiny())])
    assert displayed == []


# Tables and texts of notebooks -------------------------------------------------------------------


def test_expectations_name_published_and_recorded_accuracy():
    facts = plots.expectations(load_experiment("lite", seed=3))
    assert "2.303" in facts["loss before training"]
    assert facts["published test accuracy"] == "79.87%"
    runs = [run for run in reference_runs() if run.record["variant"] == "lite"]
    found = [100 * run.metrics["test_accuracy"] for run in runs if run.has_own_recipe]
    result = f"{statistics.mean(found):.2f} ± {statistics.stdev(found):.2f} % ({len(found)} seeds)"
    assert facts["recorded test accuracy"] == result
    assert "changed here" not in facts


def test_expectations_of_a_changed_experiment():
    facts = plots.expectations(load_experiment("lite", epochs=3, dataset="digits"))
    assert facts["published test accuracy"] == facts["recorded test accuracy"] == "none"
    assert "epochs" in facts["changed here"]
    assert "changed here" not in plots.expectations(load_experiment("lite", budget=80_000, seed=1))


def test_expectations_name_what_kind_of_accuracy_is_published():
    facts = plots.expectations(load_experiment("class/yifei"))
    assert facts["published test accuracy"] == "97.80% (best on test)"


def test_explain_losses_names_what_differs():
    assert "dropout" in plots.explain_losses(load_experiment("dropout"))
    plain = plots.explain_losses(load_experiment("resnet18"))
    assert not any(w in plain for w in ("smooth", "augmented", "dropout", "shared", "average"))
    changed = load_experiment("lite", augment="crop,flip", label_smoothing=0.1)
    assert "augmented (crop, flip)" in plots.explain_losses(changed)
    champion = plots.explain_losses(load_experiment("champion"))
    assert "cutmix, cutout" in champion and "one_of" not in champion
    assert (
        "shared between two classes" in champion and "test loss that of their average" in champion
    )
    # The least cross-entropy of a target with 0.91 on one class and 0.01 on nine others.
    least = torch.tensor([0.91] + [0.01] * 9).double()
    assert f"{-(least * least.log()).sum():.3f} nats" in plots.explain_losses(changed)
