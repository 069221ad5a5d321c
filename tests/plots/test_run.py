"""Figures of one run: what a reader sees."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from resnetlib import load_experiment, plots
from resnetlib.evaluation import Evaluation
from resnetlib.schedule import learning_rate


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
    assert [axes.collections[0].norm.vmax for axes in (left, right)] == [2, 50]  # twice the errors


def evaluation_of(labels, dog):
    """An evaluation with these labels, 0 for a cat, and these probabilities of a dog."""
    logits = torch.tensor(dog, dtype=torch.float64).logit()
    return Evaluation(torch.stack([torch.zeros_like(logits), logits], 1), torch.tensor(labels))


def test_mistakes_are_sorted_by_confidence():
    images = np.zeros((4, 3, 8, 8), dtype=np.uint8)
    evaluation = evaluation_of([0, 0, 1, 1], [0.6, 0.01, 0.3, 0.1])
    axes = plots.mistakes(images, evaluation, ["cat", "dog"], count=2)
    captions = [text.get_text() for text in axes[0].texts]
    assert captions == ["dog\n→ cat 90.00 %", "dog\n→ cat 70.00 %"]
    assert axes[0].figure.get_suptitle() == "Most confident errors: 2 of 3 (true → predicted)"


def test_mistakes_have_captions_that_differ():
    images = np.zeros((3, 3, 8, 8), dtype=np.uint8)
    evaluation = evaluation_of([0, 0, 0], [0.99996, 0.9998, 0.9991])
    axes = plots.mistakes(images, evaluation, ["cat", "dog"], count=3)
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
    axes = plots.mistakes(images, evaluation_of([0, 1], [0.1, 0.9]), ["cat", "dog"])
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
    axes = plots.class_balance(np.array([2, 2]), ["cat", "dog"], "lite")
    assert axes.get_title() == "lite: of 4 images equally many go to each class"
    left, _ = plots.confusion(np.diag([1, 0]), ["cat", "dog"], "lite")
    assert left.figure.get_suptitle() == "lite: 100.00 % of 1 test image correct"
    left, _ = plots.robustness(pd.DataFrame({0: [0.9], 1: [0.8]}, index=["noise"]), 1, "lite")
    assert "(1 test image)" in left.figure.get_suptitle()


def test_figures_leave_the_style_of_the_session(history):
    before = dict(plt.rcParams)
    plots.curves(history, load_experiment("resnet18", epochs=2))
    assert dict(plt.rcParams) == before


def test_class_balance_draws_shares_and_counts():
    axes = plots.class_balance(np.array([30, 0, 1170]), ["a", "b", "c"], "lite")
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([2.5, 0, 97.5])
    assert [text.get_text() for text in axes.texts] == ["30", "0", "1,170"]
    assert axes.lines[0].get_ydata()[0] == pytest.approx(100 / 3)
    assert "1,200 images most go to c (97.5 %), least to b (0.0 %)" in axes.get_title()
    assert axes.get_xlabel() and axes.get_ylabel()
    plt.close(axes.figure)
