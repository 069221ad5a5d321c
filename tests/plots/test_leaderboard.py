"""Figures of several variants: what a reader sees on their axes."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import same_color
from matplotlib.path import Path
from matplotlib.text import Text

from resnetlib import explore, list_variants, load_experiment, plots
from resnetlib.plots import leaderboard
from resnetlib.plots.leaderboard import (
    accuracy_against,
    overlaid_curves,
    pareto_front,
    published_against_reproduced,
)
from resnetlib.plots.style import variant_color


@pytest.fixture
def table():
    return pd.DataFrame(
        {
            "variant": ["lite", "se", "wide66", "resnet18", "dropout"],
            "parameters": [78_042, 4_697_742, 4_916_284, 11_173_962, 4_700_682],
            "macs": [12.5e6, 798.7e6, 769.0e6, 555.4e6, 798.7e6],
            "published": [79.87, 85.39, 94.16, 88.56, None],
            "reproduced": [82.64, None, 94.5, None, None],
            "spread": [0.7, None, None, None, None],
            "recipe_selected_on_test": False,
        }
    )


def names_on(axes, weight=None):
    shown = [text for text in axes.texts if weight in (None, text.get_fontweight())]
    return {text.get_text() for text in shown if "budget" not in text.get_text()}


def filled(axes):
    """Positions of the points that stand for reproduced figures."""
    return _drawn(bars.lines[0] for bars in axes.containers)


def hollow(axes):
    return _drawn(line for line in axes.lines if line.get_markerfacecolor() == "white")


def _drawn(lines):
    points = {tuple(line.get_xydata()[0].tolist()) for line in lines}
    return {point for point in points if not np.isnan(point).any()}


def test_the_front_holds_what_nothing_as_small_beats():
    sizes, accuracies = [1, 2, 3, 3, 4, 5], [70, 80, 75, 85, 85, np.nan]
    assert pareto_front(sizes, accuracies).tolist() == [True, True, False, True, False, False]


def test_equals_are_on_the_front_together_and_an_empty_table_has_none():
    assert pareto_front([1, 1], [80, 80]).tolist() == [True, True]
    assert pareto_front([], []).tolist() == []


def test_accuracy_stands_against_size_published_hollow_and_reproduced_filled(table):
    axes = accuracy_against(table, "parameters")
    assert axes.get_xscale() == "log"
    assert filled(axes) == {(78_042, 82.64), (4_916_284, 94.5)}
    assert (4_697_742, 85.39) in hollow(axes)
    assert len(hollow(axes)) == 4
    assert names_on(axes) == {"lite", "se", "wide66", "resnet18"}  # nothing is known of dropout
    assert names_on(axes, "bold") == {"lite", "wide66"}
    assert "reproduced" in axes.get_title()
    assert "5,000,000" in " ".join(text.get_text() for text in axes.texts)
    assert axes.get_xlabel() and axes.get_ylabel()


def test_the_fronts_are_drawn_in_steps_published_dashed(table):
    axes = accuracy_against(table, "macs")
    fronts = {line.get_linestyle(): line for line in axes.lines if "steps" in line.get_drawstyle()}
    assert fronts["-"].get_xydata().tolist() == [[12.5e6, 82.64], [769.0e6, 94.5]]
    assert fronts["--"].get_ydata().tolist() == [79.87, 88.56, 94.16]


def test_with_one_network_reproduced_the_published_front_is_what_is_bold(table):
    table.loc[table["variant"] == "wide66", "reproduced"] = None
    axes = accuracy_against(table, "parameters")
    assert names_on(axes, "bold") == {"lite", "se", "wide66"}
    assert "published" in axes.get_title()


@pytest.mark.parametrize(("count", "named"), [(6, 6), pytest.param(40, 10, marks=pytest.mark.slow)])
def test_names_cover_neither_names_nor_lines_nor_points_and_stay_inside(table, count, named):
    """Of many networks of one size, at least these are named."""
    crowd = pd.DataFrame(
        {
            "variant": [f"network{i}" for i in range(count)],
            "parameters": [4_700_000 + 40_000 * (i % 6) for i in range(count)],
            "macs": 8e8,
            "published": np.nan,
            "reproduced": [94.0, 94.1, 94.2, 93.9, 92, 90, *np.linspace(91, 80, count - 6)],
            "spread": np.nan,
            "recipe_selected_on_test": False,
        }
    )
    axes = accuracy_against(pd.concat([table, crowd]), "parameters")
    axes.figure.canvas.draw()
    frame = axes.get_window_extent()
    names = list(axes.texts)  # the budget's too
    assert len(names) > named + 4 and {"lite", "wide66"} <= names_on(axes, "bold")
    boxes = [plt.Text.get_window_extent(text) for text in names]
    for i, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and box.y1 <= frame.y1
        assert not any(box.overlaps(other) for other in boxes[:i])
        for point in filled(axes):
            assert not box.contains(*axes.transData.transform(point))
        budget, _ = axes.transData.transform((5_000_000, 90))
        assert not box.x0 < budget < box.x1
    lines = {
        text: text.arrow_patch.get_path() for text in names if getattr(text, "arrow_patch", None)
    }
    for text, line in lines.items():
        others = [box for name, box in zip(names, boxes, strict=True) if name is not text]
        ends = Path(text.arrow_patch.get_transform().transform(line.vertices)[[0, -1]])
        assert not any(ends.intersects_bbox(box, filled=False) for box in others)
    assert len(lines) > 3


def test_recipe_chosen_on_the_test_set_has_a_mark(table):
    table["recipe_selected_on_test"] = table["variant"] == "wide66"
    assert {"wide66 †", "lite"} < names_on(accuracy_against(table, "macs"))
    rows = published_against_reproduced(table).get_yticklabels()
    assert [label.get_text() for label in rows] == ["se", "resnet18", "lite", "wide66 †"]


def test_long_name_is_shortened_keeps_its_mark_and_leaves_the_axes_their_room(table):
    table.loc[2, "variant"], table.loc[2, "recipe_selected_on_test"] = "x" * 100, True
    axes = accuracy_against(table, "parameters")
    shortened = f"{'x' * 15}…{'x' * 12} †"
    assert shortened in names_on(axes)
    axes.figure.draw_without_rendering()
    assert axes.get_position().width > 0.7
    rows = published_against_reproduced(table).get_yticklabels()
    assert rows[-1].get_text() == shortened


def history(*accuracies):
    return pd.DataFrame({"epoch": range(len(accuracies)), "test_accuracy": accuracies})


def test_curves_of_variants_that_share_a_colour_differ_in_dashes():
    history = pd.DataFrame({"epoch": [0, 1], "test_accuracy": [0.1, 0.5]})
    assert variant_color("resnet20") == variant_color("class/yifei")
    axes = overlaid_curves([(name, name, history) for name in ("resnet20", "class/yifei")])
    assert len({line.get_linestyle() for line in axes.lines}) == 2
    many = overlaid_curves([("lite", f"lite seed {i}", history) for i in range(15)])
    assert len({str(line._unscaled_dash_pattern) for line in many.lines}) == 15


@pytest.mark.parametrize("count", [2, 16, 52])
def test_legend_of_curves_is_beside_them(count):
    name = "a variant with a name of 33 letters"
    axes = overlaid_curves([(name, f"{name} {i}", history(0.1, 0.9)) for i in range(count)])
    axes.figure.draw_without_rendering()
    frame, legend = axes.get_window_extent(), axes.get_legend().get_window_extent()
    assert frame.x1 <= legend.x0 and legend.x1 <= axes.figure.bbox.x1
    assert frame.y0 <= legend.y0 and legend.y1 <= frame.y1 + 1
    assert frame.width > 400 and frame.height > 300  # in pixels, of which an inch has 100


def test_curves_of_one_variant_share_a_colour_and_seeds_an_entry():
    axes = overlaid_curves(
        [
            ("lite", "lite", history(0.1, 0.5, 0.8)),
            ("lite", "lite", history(0.1, 0.6, 0.7)),
            ("lite", "lite", history(0.1, 0.6, 0.7)),
            ("lite", "lite epochs 4", history(0.1, 0.6, 0.9)),
            ("wide66", "wide66", history(0.1, 0.6, 0.9)),
        ]
    )
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "lite (3 runs)",
        "lite epochs 4",
        "wide66",
    ]
    assert [line.get_ydata()[-1] for line in axes.lines] == pytest.approx([80, 70, 70, 90, 90])
    assert [same_color(line.get_color(), variant_color("lite")) for line in axes.lines] == [
        *[True] * 4,
        False,
    ]
    assert axes.lines[0].get_linestyle() != axes.lines[3].get_linestyle()
    assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title()
    assert axes.get_ylim()[0] == pytest.approx(40)  # 30 points below the lowest end
    assert overlaid_curves([]).get_legend() is None


def test_published_and_reproduced_stand_on_one_line_with_their_difference(table):
    axes = published_against_reproduced(table)
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["se", "resnet18", "lite", "wide66"]  # upwards: what was reproduced on top
    assert filled(axes) == {(82.64, 2), (94.5, 3)}
    assert [text.get_text() for text in axes.texts] == ["–", "–", "+2.77", "+0.34", "points"]
    published_against_reproduced(table[table["variant"] == "dropout"])  # nothing known at all


@pytest.mark.parametrize("count", [1, 60])
def test_rows_of_published_and_reproduced_are_apart(table, count):
    axes = published_against_reproduced(pd.concat([table.iloc[:1]] * count))
    axes.figure.draw_without_rendering()
    lowest, *others = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(above.y0 > below.y1 for below, above in zip([lowest, *others], others, strict=False))
    assert axes.figure.get_figheight() < 20 and (count > 1 or axes.figure.get_figheight() < 3)


def test_sizes_shows_all_that_is_close_to_the_budget():
    """No published network is close to this budget, and they differ a hundredfold in MACs."""
    design = load_experiment("lite").architecture
    table, found = explore.rank_by_size(design), explore.search(design, budget=100_000)
    _, right = plots.sizes(explore.published(), 100_000, table.loc["this design"], found)
    highest = found["macs"][found["parameters"] >= 90_000].max()
    assert right.get_ylim() == (0, 1.2 * highest)
    _, right = plots.sizes(explore.published(), 78_042, table.loc["this design"])
    assert right.get_ylim() == (0, 1.2 * table.loc["this design", "macs"])


def test_sizes_names_variants_design_and_budget():
    table = explore.rank_by_size(load_experiment("lite", widths=[24, 48, 96]).architecture, "mine")
    both = plots.sizes(explore.published(), 5_000_000, table.loc["mine"], table)
    named = "\n".join(text.get_text() for axes in both for text in axes.findobj(Text)).split("\n")
    assert {*list_variants(), "mine", "budget of 5,000,000"} <= set(named)
    for axes in both:
        assert axes.get_xlabel() == "parameters"
        assert axes.get_ylabel() == "multiply-accumulates of one image"
    (star,) = [line for line in both[0].lines if line.get_label() == "mine"]
    assert star.get_xdata() == [table.loc["mine", "parameters"]]


@pytest.mark.slow
def test_claimed_accuracy_draws_every_claim_and_names_the_front():
    claims = explore.claims()
    for axes, size in zip(plots.claimed_accuracy(claims), ("parameters", "macs"), strict=True):
        drawn = sorted(
            (x, round(y, 2))
            for line in axes.lines
            if line.get_linestyle() == "None"
            for x, y in line.get_xydata()
        )
        expected = zip(claims[size], (100 * claims["claimed"]).round(2), strict=True)
        assert drawn == sorted(expected)
        front = claims[plots.pareto_front(claims[size], claims["claimed"])]
        bold = {text.get_text() for text in axes.texts if text.get_fontweight() == "bold"}
        assert bold == set(front.index.str.removeprefix("class/"))
        labelled = any("budget" in text.get_text() for text in axes.texts)
        assert labelled is (size == "parameters")


def test_name_without_a_line_stands_beside_its_own_point():
    """Of two points that touch, the right one is named first, and not on the left."""
    table = pd.DataFrame(
        {
            "variant": ["left", "right", "small", "smallest"],
            "parameters": [4_916_284, 4_918_602, 1_971_338, 78_042],
            "macs": [769e6, 799e6, 118e6, 12.5e6],
            "published": [94.16, 93.92, np.nan, 79.87],
            "reproduced": [93.94, 94.09, 94.06, 81.01],
            "spread": np.nan,
            "recipe_selected_on_test": False,
        }
    )
    axes = accuracy_against(table, "macs")
    axes.figure.canvas.draw()
    names = {text.get_text(): plt.Text.get_window_extent(text) for text in axes.texts}
    assert names["left"].x1 < names["right"].x0


def test_line_of_a_name_does_not_run_through_another_point():
    """Data are pixels here; others lie beside the point, one on the way to the next place."""
    _, axes = plt.subplots(figsize=(5, 5), dpi=100)
    axes.set(position=[0, 0, 1, 1], xlim=(0, 500), ylim=(0, 500))
    own, on_the_way, beside = (250, 250), (236, 255), (270, 250)
    points = pd.DataFrame({"name": ["lite"], "x": own[:1], "y": own[1:], "bold": False})
    leaderboard._label_points(axes, points, marks=np.array([own, on_the_way, beside], dtype=float))
    (name,) = axes.texts
    assert name.arrow_patch and name.xyann != (-18, 11)


def test_name_keeps_off_the_legend():
    """Data are pixels here; the legend lies on the left of the point, where a name goes first."""
    _, axes = plt.subplots(figsize=(5, 5), dpi=100)
    axes.set(position=[0, 0, 1, 1], xlim=(0, 500), ylim=(0, 500))
    axes.plot([], label="all")
    legend = axes.legend(loc="center right", bbox_to_anchor=(0.49, 0.5))
    points = pd.DataFrame({"name": ["lite"], "x": [250], "y": [250], "bold": False})
    leaderboard._label_points(axes, points, marks=np.array([(250, 250)], dtype=float))
    (name,) = axes.texts
    assert not legend.get_window_extent().overlaps(plt.Text.get_window_extent(name))
