"""Text in figures: any name can be drawn, and is shortened."""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_hex, to_rgb
from matplotlib.text import Text

from resnetlib import plots
from resnetlib.evaluation import Evaluation
from resnetlib.plots import architecture, style
from resnetlib.plots.style import LINE_CHARACTERS, TEXT_LINES, drawable, figure_style, variant_color

NAMES = (
    "a\ud800b",  # half a surrogate pair
    r"$\frac{$",  # not a formula
    "$x$",
    "m" * 1_000_000,
    "line\n" * 10_000,
    "a\0b\x1b[31m\t",
    *"ghij",
)


def figures(names):
    """Every figure that draws names of classes, variants or labels."""
    random = np.random.default_rng(0)
    matrix = random.integers(0, 9, (10, 10))
    images = random.integers(0, 255, (12, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(12) % 10
    wrong, variant = (labels + 1) % 10, names[1]
    history = pd.DataFrame({"epoch": [0, 1], "test_accuracy": [0.1, 0.2]})
    calibration = pd.DataFrame({"images": [0, 12], "accuracy": [0, 0.5], "confidence": [0, 0.9]})
    differences = {"difference": 0.1, "low": 0.0, "high": 0.2, "significant": True}
    table = pd.DataFrame([differences | {"variant": name} for name in names], index=names)
    accuracies = pd.DataFrame(random.random((10, 3)), index=names)
    yield plots.confusion(matrix, names, variant)
    logits = torch.tensor(random.random((12, 10)))
    yield plots.mistakes(images, Evaluation(logits, torch.from_numpy(labels)), names)
    yield plots.image_grid(images, [*names, "k", "l"], names[3])
    yield plots.image_rows([images[:2]] * 10, names, names[4], names[:2], [names[:2]] * 10)
    yield plots.before_after(images[:2], dict.fromkeys(names, images[:2]), names[0])
    yield [plots.class_balance(labels + 1, [*names, "k", "l"], variant)]
    yield [plots.confusion_difference(matrix, matrix.T, names, (names[0], names[3]))]
    yield [plots.difference_intervals(table, names[3])]
    yield [plots.embedding(random.random((12, 2)), labels, wrong, names, names[0])]
    yield plots.robustness(accuracies, 12, names[3])
    yield [plots.overlaid_curves([(name, name, history) for name in names])]
    yield plots.reliability(calibration, 0.1, names[4])


@pytest.mark.slow
def test_every_figure_draws_any_name():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of long names there is no room for the axes
        for axes in figures(NAMES):
            figure = axes[0].figure
            figure.draw_without_rendering()
            for text in figure.findobj(Text):
                lines = text.get_text().split("\n")
                assert len(lines) <= TEXT_LINES
                assert max(map(len, lines)) <= LINE_CHARACTERS + 2
                assert all(line.isprintable() for line in lines)
            plt.close(figure)


def test_drawable_keeps_ordinary_text():
    for text in ("airplane", "✓ cat 93 %\n✗ dog", "79.87 ± 0.20 %", ""):
        assert drawable(text) == drawable(drawable(text)) == text
    assert drawable("5 $ or $x$") == drawable(r"5 \$ or \$x\$") == r"5 \$ or \$x\$"
    assert drawable("a\ud800b\0") == "a�b�"
    assert len(drawable("m" * 1000)) == LINE_CHARACTERS


def test_of_a_long_name_both_ends_are_drawn():
    assert plots.drawable_names(["a" * 20 + "m" * 40 + "z" * 20]) == ["a" * 15 + "…" + "z" * 14]
    assert plots.drawable_names(["m" * 30]) == ["m" * 30]


def test_variant_color_of_half_a_surrogate_pair():
    assert len(variant_color("a\ud800")) == 3


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


def test_figures_are_not_set_by_latex():
    with plt.rc_context({"text.usetex": True}), figure_style():
        assert not plt.rcParams["text.usetex"]
