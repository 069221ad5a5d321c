"""Drawings of networks: their content, for every variant and for unusual ones."""

import pytest
from conftest import architecture_of
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from resnetlib import build_model, list_variants, plots, size
from resnetlib.plots.architecture import MAX_BLOCKS
from resnetlib.schema import Architecture


def texts_of(axes):
    return [text.get_text() for text in axes.findobj(Text) if text.get_text()]


def bars_of(axes):
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


@pytest.mark.slow
@pytest.mark.parametrize("variant", list_variants())
def test_draw_has_the_numbers_of_a_variant(variant):
    architecture = architecture_of(variant)
    network, *blocks = plots.draw(architecture)
    texts = texts_of(network)
    assert {"image", "stem", "head", "3 × 32 × 32", "10 logits"} <= set(texts)
    assert {size.format_shape(*output) for output in architecture.outputs} <= set(texts)
    for depth in architecture.depths:
        assert f"{depth or 'no'} block{'s' * (depth != 1)}" in texts
    shapes = [block for stage in architecture.blocks for block in stage]
    attention = architecture.squeeze_excitation
    count = sum(block.attention for block in shapes) + (attention.placement == "stem")
    label = f"squeeze-and-excitation, channels / {attention.reduction}"
    assert (label in texts) == (count > 0)
    if len(shapes) <= MAX_BLOCKS:  # a deeper network is shortened
        assert len(bars_of(network)) == 3 + len(shapes) + count
    in_blocks = {text for axes in blocks for text in texts_of(axes)}
    dropout = f"dropout {architecture.dropout:g}"
    assert (dropout in in_blocks) == (architecture.block == "dropout" or architecture.dropout > 0)
    assert ("identity" in in_blocks) == any(
        architecture.block == "pooled" or not block.changes_shape for block in shapes
    )
    assert LAYERS.get((architecture.block, architecture.shortcut.kind), set()) <= in_blocks


LAYERS = {  # of networks whose first blocks halve the resolution
    ("basic", "conv1x1"): {"conv 3×3", "conv 3×3, stride 2", "conv 1×1, stride 2"},
    ("dropout", "conv1x1"): {"conv 3×3", "conv 3×3, stride 2", "conv 1×1, stride 2"},
    ("basic", "zero_pad"): {"conv 3×3, stride 2", "every 2nd pixel", "zero channels"},
    ("pooled", "conv1x1"): {"conv 3×3", "max-pool 2×2"},
}


CROWDED = {  # with as much as there is room for
    "bottleneck": {
        "block": "bottleneck",
        "activation": ["relu", "relu", "leaky_relu", "leaky_relu"],
        "conv_kind": ["full", "separable", "separable"],
        "squeeze_excitation": {"placement": "addition", "blocks": [2, 4]},
        "stem": "double_conv3x3",
        "stem_pool": {"kernel": 2},
        "dropout": 0.1,
        "dropout_place": "output",
    },
    "preact": {
        "block": "preact",
        "activation": "leaky_relu",
        "shortcut": {"input": "raw", "pool": "average"},
        "squeeze_excitation": {"placement": "block"},
        "head_dropout": 0.2,
        "stochastic_depth": 0.1,
    },
    "pyramid": {
        "block": "pyramid",
        "stem_width": 16,
        "block_widths": [[16, 20], [24, 28], [32, 36]],
        "shortcut": {"kind": "zero_pad", "pool": "max"},
        "squeeze_excitation": {"placement": "stem"},
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [*list_variants(), *CROWDED])
def test_draw_keeps_texts_inside_and_apart(name):
    if name in CROWDED:
        network = {"depths": [2, 2, 2], "widths": [20, 28, 36]} | CROWDED[name]
        architecture = Architecture(**network)
    else:
        architecture = architecture_of(name)
    axes = plots.draw(architecture)
    figure = axes[0].figure
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [
        text.get_window_extent(renderer) for text in figure.findobj(Text) if text.get_text().strip()
    ]
    for number, box in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0, number
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[number + 1 :])
    assert figure.bbox.width == 1000 or (name in CROWDED and figure.bbox.width < 1400)


def test_draw_scales_bars_by_resolution_and_channels():
    network = plots.draw(architecture_of("lite"))[0]
    _, _, *stages, _ = sorted(bars_of(network), key=lambda bar: bar.get_x())
    heights = [bar.get_height() for bar in stages]
    brightness = [sum(bar.get_facecolor()[:3]) for bar in stages]
    assert heights == sorted(set(heights), reverse=True)
    assert brightness == sorted(set(brightness), reverse=True)


def test_draw_shades_each_block_by_its_own_channels():
    network = plots.draw(architecture_of(depths=[3], widths=[256], block_widths=[[32, 96, 256]]))[0]
    _, _, *blocks, _ = sorted(bars_of(network), key=lambda bar: bar.get_x())
    brightness = [sum(bar.get_facecolor()[:3]) for bar in blocks]
    assert len(blocks) == 3 and brightness == sorted(set(brightness), reverse=True)


def test_draw_preact_blocks_begin_with_bn():
    network, changing, keeping = plots.draw(architecture_of(block="preact", depths=[2, 1, 1]))
    assert "BN, ReLU, mean, linear" in texts_of(network)
    assert texts_of(changing)[:2] == ["First block of stages 2 and 3: halves the resolution", "BN"]
    assert texts_of(keeping)[:2] == ["Every other block", "BN"]


def test_draw_ends_blocks_with_se_and_drop_path():
    architecture = architecture_of(placement="block", reduction=4, stochastic_depth=0.1)
    network, *blocks = plots.draw(architecture)
    assert len(bars_of(network)) == 3 + 2 * 3
    assert "squeeze-and-excitation, channels / 4" in texts_of(network)
    for axes in blocks:
        texts = texts_of(axes)
        assert texts.index("SE") < texts.index("drop path")


@pytest.mark.parametrize("stem", ["conv5x5", "double_conv3x3"])
@pytest.mark.parametrize("block", ["basic", "preact", "pyramid"])
def test_draw_lists_the_layers_of_the_stem(block, stem):
    architecture = architecture_of(block=block, stem=stem, stem_stride=2, depths=[1, 0, 0])
    names = {"Conv2d": f"conv {stem[-1]}×{stem[-1]}", "BatchNorm2d": "BN"}
    made = [type(layer).__name__ for layer in build_model(architecture).stem]
    layers = [names.get(name, name) for name in made] + ["ReLU"] * (block == "basic")
    layers[0] += ", stride 2"
    assert ", ".join(layers) in texts_of(plots.draw(architecture)[0])


def test_draw_bottleneck_with_choices_per_stage():
    network, *blocks = plots.draw(Architecture(depths=[2, 3], widths=[16, 32], **PER_STAGE))
    stem = "conv 3×3, BN, ReLU, conv 3×3, BN, ReLU, max-pool 3×3"
    assert stem in texts_of(network)
    titles = [texts_of(axes)[0] for axes in blocks]
    assert titles == ["First block of stage 2: halves the resolution", "Blocks 1, 2", "Blocks 4, 5"]
    changing, first, second = (texts_of(axes)[1:] for axes in blocks)
    assert changing[:5] == ["conv 1×1", "BN", "leaky ReLU", "depthwise 3×3, stride 2", "conv 1×1"]
    assert changing[-3:] == ["max-pool 2×2", "conv 1×1", "BN"]
    assert first[:6] == ["conv 1×1", "BN", "ReLU", "conv 3×3", "BN", "ReLU"]
    assert first[6:] == ["conv 1×1", "BN", "ReLU", "+", "identity"]
    assert second.index("BN") < second.index("SE") < second.index("+")
    assert len(bars_of(network)) == 3 + 5 + 3


PER_STAGE = {
    "block": "bottleneck",
    "stem": "double_conv3x3",
    "stem_pool": {"stride": 1, "padding": 1},
    "activation": ["relu", "relu", "leaky_relu"],
    "conv_kind": ["full", "separable"],
    "shortcut": {"pool": "max"},
    "squeeze_excitation": {"placement": "addition", "blocks": [3, 4, 5]},
}


def test_draw_names_every_kind_of_shortcut():
    settings = {"widths": [24, 32, 64], "strides": [1, 1, 2], "stem_width": 16}
    network = plots.draw(architecture_of(**settings))[0]
    assert "shortcut by conv 1×1, stride 2" in texts_of(network)
    network = plots.draw(architecture_of(**settings, shortcut={"pool": "average"}))[0]
    assert "shortcut by conv 1×1 or avg-pool 2×2, conv 1×1" in texts_of(network)


def test_draw_keeps_bars_of_padded_images_inside():
    network = plots.draw(architecture_of(stem_padding=17))[0]
    assert "16 × 64 × 64" in texts_of(network)
    assert max(bar.get_height() for bar in bars_of(network)) == 1.5


def test_draw_zero_pad_and_raw_shortcuts():
    network, changing, keeping = plots.draw(architecture_of("resnet20"))
    assert "shortcut by every 2nd pixel, zero channels" in texts_of(network)
    assert texts_of(changing)[-2:] == ["every 2nd pixel", "zero channels"]
    assert "identity" in texts_of(keeping)
    settings = {"block": "preact", "shortcut": {"input": "raw"}, "final_norm": False}
    network, changing = plots.draw(architecture_of(**settings, depths=[0, 1, 0]))
    assert "mean, linear" in texts_of(network)
    assert texts_of(changing)[1:3] == ["BN", "ReLU"]


@pytest.mark.slow
def test_draw_strides_and_stem_width():
    settings = {"widths": [24, 32, 64], "depths": [2, 1, 1], "strides": [1, 1, 2], "stem_width": 16}
    network, *blocks = plots.draw(architecture_of(**settings))
    assert {"16 × 32 × 32", "24 × 32 × 32", "32 × 32 × 32", "64 × 16 × 16"} <= set(
        texts_of(network)
    )
    assert [texts_of(axes)[0] for axes in blocks] == [
        "First block of stages 1 and 2: changes the channels",
        "First block of stage 3: halves the resolution",
        "Every other block",
    ]
    assert "conv 1×1" in texts_of(blocks[0]) and "conv 1×1, stride 2" in texts_of(blocks[1])


def test_draw_pooled_shortcut_is_the_identity():
    settings = {"block": "pooled", "stem": "whitening", "strides": [2, 2, 1]}
    network, *blocks = plots.draw(architecture_of(**settings))
    assert {"whitening 2×2, ReLU", "24 × 31 × 31", "16 × 15 × 15"} <= set(texts_of(network))
    assert "identity" in texts_of(blocks[0]) and "max-pool 2×2" in texts_of(blocks[0])
    assert "max-pool 2×2" not in texts_of(blocks[1])
    assert not any("shortcut by" in text for text in texts_of(network))


def test_draw_one_stage_has_one_kind_of_block():
    network, *blocks = plots.draw(architecture_of(depths=[2], widths=[16]))
    assert [texts_of(axes)[0] for axes in blocks] == ["Every block"]
    assert "shortcut by conv 1×1, stride 2" not in texts_of(network)


def test_draw_stage_without_blocks():
    texts = texts_of(plots.draw(architecture_of(depths=[0, 3, 0, 1], widths=[16, 32, 64, 128]))[0])
    assert texts.count("no blocks") == 2
    assert texts.count("32 × 16 × 16") == 2  # of the second stage, and through the third


@pytest.mark.parametrize("depths", [[18, 18, 18], [900, 1, 1]])
def test_draw_shortens_very_deep_networks(depths):
    network = plots.draw(architecture_of(depths=depths))[0]
    assert len(bars_of(network)) < 30
    assert "···" in texts_of(network)
    assert f"{depths[0]} blocks" in texts_of(network)
    assert network.figure.bbox.width <= 1100


def test_describe_drawing_is_one_line():
    assert plots.describe_drawing(architecture_of()) == "3 basic blocks (1-1-1), 16-32-64 channels"
    text = plots.describe_drawing(architecture_of("dropout"))
    assert text == "11 dropout blocks (4-4-3), 64-128-256 channels, biases"
    assert "squeeze-and-excitation after the stem" in plots.describe_drawing(architecture_of("se"))
    squeeze = {"placement": "block", "blocks": [2, 2]}
    text = plots.describe_drawing(architecture_of(squeeze_excitation=squeeze))
    assert text.endswith("squeeze-and-excitation in 1 block")
