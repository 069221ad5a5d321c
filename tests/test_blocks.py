"""Each part of a network against the same computation written out with torch's functions."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from resnetlib import build_model, count_parameters, load_experiment
from resnetlib.blocks import Conv2d
from resnetlib.errors import ConfigError
from resnetlib.schema import Architecture
from resnetlib.size import measure_size

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def network(**settings):
    """A network with statistics and scales of BatchNorm that are not the first ones."""
    model = build_model(load_experiment("lite", **settings).architecture)
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight, module.bias):
                values.data.copy_(0.5 + torch.rand(values.shape, generator=generator))
    return model.eval()


class CountMatmuls(TorchDispatchMode):
    """The matrix products in its context."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def block_of(stage=0, number=0, **settings):
    return network(**{"depths": [2, 2], "widths": [8, 16]} | settings).stages[stage][number]


def batch_norm(layer, x):
    scale = layer.weight / (layer.running_var + 1e-5).sqrt()
    x = x - layer.running_mean[:, None, None]
    return x * scale[:, None, None] + layer.bias[:, None, None]


def attend(layer, x):
    """Squeeze-and-excitation with matrices."""
    hidden = F.linear(x.mean((2, 3)), layer.squeeze.weight[:, :, 0, 0], layer.squeeze.bias)
    scale = F.linear(hidden.relu(), layer.excite.weight[:, :, 0, 0], layer.excite.bias)
    return x * scale.sigmoid()[:, :, None, None]


@torch.no_grad()
def assert_computes(module, expected, channels=8, side=32):
    """The module gives what the function gives, for an input with negative values too."""
    x = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(module(x), expected(x), rtol=1e-4, atol=1e-4)


def test_bottleneck_block_equals_plain_torch():
    block = block_of(1, block="bottleneck")

    def expected(x):
        out = batch_norm(block.bn1, F.conv2d(x, block.conv1.weight)).relu()
        out = F.conv2d(out, block.conv2.weight, stride=2, padding=1)
        out = batch_norm(block.bn2, out).relu()
        out = batch_norm(block.bn3, F.conv2d(out, block.conv3.weight))
        shortcut = F.conv2d(x, block.shortcut[0].weight, stride=2)
        return (out + batch_norm(block.shortcut[1], shortcut)).relu()

    assert_computes(block, expected)
    assert block.conv2.weight.shape == (4, 4, 3, 3)  # 16 output channels / 4


@pytest.mark.parametrize("shortcut", ["activated", "raw"])
def test_preact_block_equals_plain_torch(shortcut):
    block = block_of(1, block="preact", shortcut={"input": shortcut})
    first = block.shared_activation if shortcut == "activated" else block.branch_activation

    def expected(x):
        activated = batch_norm(first[0], x).relu()
        out = F.conv2d(activated, block.conv1.weight, stride=2, padding=1)
        out = F.conv2d(batch_norm(block.bn2, out).relu(), block.conv2.weight, padding=1)
        source = activated if shortcut == "activated" else x
        return out + F.conv2d(source, block.shortcut.weight, stride=2)

    assert_computes(block, expected)


def test_preact_network_without_final_norm():
    model = network(block="preact", final_norm=False, depths=[1], widths=[8])
    with torch.no_grad():
        pooled = model.stages(F.conv2d(IMAGES, model.stem[0].weight, padding=1)).mean((2, 3))
        torch.testing.assert_close(model(IMAGES), model.linear(pooled))
    with_norm = network(block="preact", depths=[1], widths=[8])
    assert count_parameters(with_norm) - count_parameters(model) == 2 * 8


def test_pyramid_block_equals_plain_torch():
    widths = {"depths": [2], "widths": [13], "block_widths": [[10, 13]], "stem_width": 8}
    shortcut = {"kind": "zero_pad", "pool": "average"}
    block = block_of(block="pyramid", strides=[2], shortcut=shortcut, **widths)

    def expected(x):
        out = F.conv2d(batch_norm(block.bn1, x), block.conv1.weight, stride=2, padding=1)
        out = F.conv2d(batch_norm(block.bn2, out).relu(), block.conv2.weight, padding=1)
        out = batch_norm(block.bn3, out)
        zeros = torch.zeros(2, 1, 16, 16)
        return out + torch.cat([zeros, F.avg_pool2d(x, 2), zeros], dim=1)

    assert_computes(block, expected)


def test_zero_pad_shortcut_is_option_a():
    block = block_of(1, shortcut={"kind": "zero_pad"})

    def expected(x):
        out = batch_norm(block.bn1, F.conv2d(x, block.conv1.weight, stride=2, padding=1)).relu()
        out = batch_norm(block.bn2, F.conv2d(out, block.conv2.weight, padding=1))
        out[:, 4:12] += x[:, :, ::2, ::2]
        return out.relu()

    assert_computes(block, expected)
    assert_computes(block, expected, side=7)


@pytest.mark.parametrize(("pool", "function"), [("average", F.avg_pool2d), ("max", F.max_pool2d)])
@pytest.mark.parametrize("batch_norm_after", [True, False])
def test_pooled_shortcut_equals_plain_torch(pool, function, batch_norm_after):
    shortcut = block_of(1, shortcut={"pool": pool, "batch_norm": batch_norm_after}).shortcut

    def expected(x):
        out = F.conv2d(function(x, 2), shortcut[1].weight)
        return batch_norm(shortcut[2], out) if batch_norm_after else out

    assert_computes(shortcut, expected)
    assert shortcut(torch.zeros(1, 8, 7, 7)).shape == (1, 16, 4, 4)  # as a convolution's stride


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(4, 3, 1), (7, 3, 2), (8, 3, 2), (8, 1, 2), (1, 3, 1), (3, 5, 1)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_as_product_computes_the_same(side, kernel, stride, bias):
    torch.manual_seed(0)
    conv = Conv2d(6, 5, kernel, stride, padding=kernel // 2, bias=bias).double()
    images = torch.randn(2, 6, side, side, dtype=torch.float64, requires_grad=True)

    def outcome(as_product):
        conv.as_product = as_product
        with CountMatmuls() as counter:
            out = conv(images)
        weights = torch.arange(out.numel(), dtype=out.dtype).view(out.shape)
        gradients = torch.autograd.grad((out * weights).sum(), [images, *conv.parameters()])
        return counter.products, [out, *gradients]

    (none, expected), (one, found) = outcome(False), outcome(True)
    assert (none, one) == (0, 1)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    conv.eval()
    assert outcome(True)[0] == 0


@pytest.mark.parametrize("kind", ["depthwise", "separable"])
def test_depthwise_convolution_equals_plain_torch(kind):
    conv = block_of(1, block="bottleneck", conv_kind=["full", kind], conv_bias=True).conv2

    def expected(x):
        depthwise = conv if kind == "depthwise" else conv[0]
        planes = [F.conv2d(x[:, [c]], depthwise.weight[[c]], stride=2, padding=1) for c in range(4)]
        out = torch.cat(planes, dim=1) + depthwise.bias[:, None, None]
        return out if kind == "depthwise" else F.conv2d(out, conv[1].weight, conv[1].bias)

    assert_computes(conv, expected, channels=4)
    assert type(block_of(block="bottleneck", conv_kind=["full", kind]).conv2) is Conv2d


@pytest.mark.parametrize("bias", [True, False])
def test_attention_after_the_addition_in_chosen_blocks(bias):
    attention = {"placement": "addition", "reduction": 4, "bias": bias, "blocks": [2, 3]}
    model = network(depths=[2, 2], widths=[8, 16], squeeze_excitation=attention)
    blocks = [block for stage in model.stages for block in stage]
    assert [len(list(block.attention.parameters())) > 0 for block in blocks] == [0, 1, 1, 0]
    block = blocks[1]

    def expected(x):
        out = batch_norm(block.bn1, F.conv2d(x, block.conv1.weight, padding=1)).relu()
        out = batch_norm(block.bn2, F.conv2d(out, block.conv2.weight, padding=1))
        return attend(block.attention, out + x).relu()

    assert_computes(block, expected)
    without = count_parameters(network(depths=[2, 2], widths=[8, 16]))
    hidden = 2 * 8 * 2 + 2 * 16 * 4 + bias * (8 + 2 + 16 + 4)
    assert count_parameters(model) - without == hidden


@pytest.mark.parametrize("block", ["basic", "bottleneck", "dropout", "preact", "pyramid"])
def test_attention_after_the_addition_sees_the_sum(block):
    block = block_of(1, block=block, squeeze_excitation={"placement": "addition"})
    seen = {}
    for name in ("tail", "shortcut", "attention"):

        def keep(_, inputs, output, name=name):
            seen[name] = inputs[0], output

        getattr(block, name).register_forward_hook(keep)
    out = block(torch.randn(2, 8, 8, 8))
    added, attended = seen["attention"]
    assert torch.equal(added, seen["tail"][1] + seen["shortcut"][1])
    assert torch.equal(out, attended) or torch.equal(out, attended.relu())


@pytest.mark.parametrize(("stem", "kernel"), [("conv1x1", 1), ("conv5x5", 5), ("conv7x7", 7)])
def test_stem_kernel_padding_and_pool_equal_plain_torch(stem, kernel):
    pool = {"kernel": 3, "stride": 2, "padding": 1}
    settings = {"stem_padding": 3, "stem_pool": pool, "stem_width": 6, "stem_stride": 2}
    model = network(stem=stem, **settings)
    out = F.conv2d(IMAGES, model.stem[0].weight, stride=2, padding=3)
    assert model.stem[0].weight.shape == (6, 3, kernel, kernel)
    out = F.max_pool2d(batch_norm(model.stem[1], out).relu(), 3, 2, 1)
    seen = []
    model.stages.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(IMAGES)
    torch.testing.assert_close(seen[0], out)
    assert model.architecture.outputs[0] == (6, out.shape[2])


def test_stem_of_two_convolutions_equals_plain_torch():
    model = network(stem="double_conv3x3", activation=["leaky_relu", "relu", "relu", "relu"])
    out = batch_norm(model.stem[1], F.conv2d(IMAGES, model.stem[0].weight, padding=1))
    out = F.conv2d(torch.where(out > 0, out, 0.01 * out), model.stem[3].weight, padding=1)
    torch.testing.assert_close(model.stem(IMAGES), batch_norm(model.stem[4], out))
    preact = network(stem="double_conv3x3", block="preact")
    assert [type(layer).__name__ for layer in preact.stem] == [
        "Conv2d",
        "BatchNorm2d",
        "ReLU",
        "Conv2d",
    ]


def test_stem_that_leaves_nothing_is_refused():
    for settings in ({"stem_pool": {"kernel": 40}}, {"stem": "conv7x7", "stem_padding": 100}):
        with pytest.raises(ConfigError, match=r"the stem leaves nothing|more than twice"):
            load_experiment("lite", **settings)


def test_activation_of_a_stage_equals_plain_torch():
    settings = {"activation": ["relu", "relu", "leaky_relu"], "depths": [1, 1], "widths": [8, 8]}
    model = network(strides=[1, 1], **settings)
    (first,), (second,) = model.stages

    def expected(block, activation):
        def compute(x):
            out = activation(batch_norm(block.bn1, F.conv2d(x, block.conv1.weight, padding=1)))
            out = batch_norm(block.bn2, F.conv2d(out, block.conv2.weight, padding=1))
            return activation(out + x)

        return compute

    assert_computes(first, expected(first, torch.relu))
    assert_computes(second, expected(second, lambda x: torch.where(x > 0, x, 0.01 * x)))


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact", "pyramid", "pooled"])
def test_dropout_is_in_every_block(block):
    settings = {"architecture.dropout": 0.5, "dropout_unit": "values"}
    model = network(block=block, depths=[1, 2], widths=[8, 16], **settings)
    assert sum(isinstance(module, nn.Dropout) for module in model.modules()) == 3
    torch.manual_seed(0)
    first, second = (model.train()(IMAGES) for _ in range(2))
    assert not torch.equal(first, second)


def test_dropout_of_values_ends_the_block():
    settings = {"dropout_unit": "values", "dropout_place": "output", "zero_init_residual": True}
    block = block_of(depths=[1], widths=[8], **settings, **{"architecture.dropout": 0.5}).train()
    block.bn2.bias.data.zero_()
    block.zero_init_last()
    ones = torch.ones(20, 8, 8, 8)
    torch.manual_seed(0)
    out = block(ones)
    assert ((out == 0) | (out == 2)).all()
    kept = (out != 0).float()
    assert abs(kept.mean() - 0.5) < 0.02  # four standard deviations of 10,240 draws
    assert ((kept.mean((2, 3)) > 0) & (kept.mean((2, 3)) < 1)).all()  # no channel as a whole


@pytest.mark.slow
def test_head_dropout_zeroes_features():
    model = network(head_dropout=0.4, depths=[1], widths=[64]).train()
    seen = []
    model.linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    model(IMAGES.repeat(100, 1, 1, 1))
    (features,) = seen
    assert features.shape == (200, 64)
    assert abs((features == 0).float().mean() - 0.4) < 0.02


def test_head_dropout_of_the_map_zeroes_its_values():
    settings = {"head_dropout": 0.4, "head_dropout_place": "map", "listed_layers": ["pool"]}
    model = network(depths=[1], widths=[16], **settings)
    seen = []
    model.pool.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    torch.manual_seed(0)
    model(IMAGES)
    model.train()(IMAGES)
    kept, zeroed = ((out != 0).float().mean((2, 3)) for out in seen)
    whole = kept > 0.9  # channels whose values are nearly all above zero without dropout
    assert whole.any()
    assert ((zeroed[whole] > 0.5) & (zeroed[whole] < 0.7)).all()


def test_kernels_of_convolutions_and_shortcuts_equal_plain_torch():
    settings = {"conv_kernel": [5, 3], "shortcut": {"kernel": [1, 5]}}
    first, second = (block_of(stage, **settings) for stage in (0, 1))

    def residual(block, x, padding, stride):
        out = F.conv2d(x, block.conv1.weight, padding=padding, stride=stride)
        out = F.conv2d(batch_norm(block.bn1, out).relu(), block.conv2.weight, padding=padding)
        return batch_norm(block.bn2, out)

    def expected(x):
        shortcut = F.conv2d(x, second.shortcut[0].weight, padding=2, stride=2)
        return (residual(second, x, 1, 2) + batch_norm(second.shortcut[1], shortcut)).relu()

    assert_computes(first, lambda x: (residual(first, x, 2, 1) + x).relu())
    assert_computes(second, expected)
    assert_computes(second, expected, side=33)


@torch.no_grad()
@pytest.mark.parametrize("listed", [[], ["pool"]])
def test_pool_size_is_that_of_windows(listed):
    model = network(pool_size=3, listed_layers=listed)  # the last map has 8×8 pixels
    out = model.stages(model.stem(IMAGES).relu())[:, :, :6, :6]
    means = out.unflatten(3, (2, 3)).unflatten(2, (2, 3)).mean((3, 5))  # (N, C, 2, 2)
    torch.testing.assert_close(model(IMAGES), model.linear(means.flatten(1)))


@pytest.mark.parametrize(
    ("place", "levels"), [("residual_end", {1.0, 3.0}), ("addition", {0.0, 4.0})]
)
def test_dropout_place_in_the_block(place, levels):
    """The residual path gives 1 and the shortcut 1: dropout acts on the first, or on their sum."""
    settings = {"dropout_place": place, "dropout_unit": "values", "architecture.dropout": 0.5}
    block = block_of(depths=[1], widths=[8], **settings).train()
    block.zero_init_last()
    block.bn2.bias.data.fill_(1.0)
    torch.manual_seed(0)
    out = block(torch.ones(20, 8, 8, 8))
    assert set(out.unique().tolist()) == levels
    assert abs((out == max(levels)).float().mean() - 0.5) < 0.02


def test_kaiming_fan_out_has_its_variance():
    model = build_model(
        load_experiment("lite", init="kaiming_fan_out", widths=[64] * 3).architecture
    )
    for name, weight in model.named_parameters():
        if weight.dim() == 4:
            expected = 2 / (weight.shape[0] * weight.shape[2] ** 2)  # He et al. 2015a, eq. 14
            tolerance = 5 * (2 / weight.numel()) ** 0.5
            assert weight.var().item() == pytest.approx(expected, rel=tolerance), name
    default = build_model(load_experiment("lite", widths=[64] * 3).architecture)
    assert not torch.equal(default.stem[0].weight, model.stem[0].weight)


def test_block_widths_are_those_of_the_blocks():
    widths = [[10, 12], [20, 24, 28]]
    model = network(depths=[2, 3], widths=[12, 28], block_widths=widths, stem_width=8)
    found = [[block.conv2.out_channels for block in stage] for stage in model.stages]
    assert found == widths
    assert model(IMAGES).shape == (2, 10)


REFUSED = [
    ({"block_widths": [[8, 16], [32], [64]]}, "block_widths has \\[8, 16\\] for a stage of 1"),
    ({"block_widths": [[8], [32], [64]]}, "the last of them the stage's width"),
    ({"activation": ["relu", "leaky_relu"]}, "activation has 2 values; give one, or one for the"),
    ({"conv_kind": ["full", "separable"]}, "conv_kind has 2 values; give one, or one per stage"),
    ({"conv_kind": "depthwise"}, "conv_kind 'depthwise' keeps the channels"),
    ({"block": "bottleneck", "expansion": 3}, "divides its width 16 by expansion 3"),
    ({"shortcut": {"kind": "zero_pad"}, "widths": [32, 16, 8]}, "adds channels, and a block here"),
    ({"shortcut": {"kind": "zero_pad", "batch_norm": True}}, "batch_norm has no effect"),
    ({"shortcut": {"input": "raw"}}, "shortcut.input acts in block 'preact'"),
    ({"shortcut": {"pool": "max"}, "block": "pooled"}, "that of block 'pooled' is the identity"),
    ({"final_norm": False}, "final_norm acts in blocks 'preact' and 'pyramid'"),
    ({"dropout_unit": "values"}, "have no effect while dropout is 0"),
    ({"squeeze_excitation": {"placement": "block", "blocks": [4]}}, "names block 4 of 3"),
    ({"squeeze_excitation": {"placement": "stem", "blocks": [1]}}, "placement is 'stem'"),
    ({"squeeze_excitation": {"bias": False}}, "bias has no effect while placement is 'none'"),
    ({"stem_pool": {"kernel": 3, "padding": 2}}, "padding = 2: give at most half the kernel"),
    ({"stem": "whitening", "stem_stride": 2}, "stem_stride has no effect"),
    ({"conv_kernel": [3, 5]}, "conv_kernel has 2 values; give one, or one per stage"),
    ({"conv_kernel": 4}, "conv_kernel.0 = 4: give an odd number"),
    ({"shortcut": {"kernel": [1, 3]}}, "shortcut.kernel has 2 values; give one, or one per"),
    ({"shortcut": {"kind": "zero_pad", "kernel": 3}}, "kernel has no effect: kind 'zero_pad'"),
    ({"pool_size": 9}, "pool_size = 9: the last map has 8×8 pixels"),
    ({"head_dropout_place": "map"}, "head_dropout_place has no effect while head_dropout is 0"),
    (
        {"block": "preact", "architecture.dropout": 0.1, "dropout_place": "addition"},
        "'addition' is 'output' in block 'preact'",
    ),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED)
def test_settings_without_effect_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message) as refused:
        load_experiment("lite", **settings)
    assert "\n" not in str(refused.value)


# Published networks: their counts are the sources' own -------------------------------------------

WIDTHS = {3: [64, 128, 256], 4: [32, 64, 128, 256]}
LAST_TWO = [7, 8, 9, 10, 11, 12, 13]  # blocks of the last two stages
PUBLISHED = {
    "bottleneck 7-6-6-2": (
        4_995_338,
        {"block": "bottleneck", "depths": [7, 6, 6, 2], "widths": [128, 256, 512, 1024]},
    ),
    "2-2-2-2": (2_797_610, {"depths": [2, 2, 2, 2], "widths": WIDTHS[4]}),
    "stem 32, dropout of values": (
        2_760_490,
        {
            "depths": [2, 2, 2],
            "widths": WIDTHS[3],
            "stem_width": 32,
            "dropout": 0.3,
            "dropout_unit": "values",
            "dropout_place": "output",
        },
    ),
    "bottleneck, leaky, SE after the addition": (
        4_924_170,
        {
            "block": "bottleneck",
            "depths": [2, 4, 5, 2],
            "widths": [128, 256, 512, 1024],
            "stem": "double_conv3x3",
            "stem_width": 32,
            "activation": ["relu", "relu", "relu", "leaky_relu", "leaky_relu"],
            "squeeze_excitation": {"placement": "addition", "blocks": LAST_TWO},
        },
    ),
    "4-4-3, dropout of features": (
        4_697_162,
        {"depths": [4, 4, 3], "widths": WIDTHS[3], "head_dropout": 0.4},
    ),
    "4-4-3": (4_697_162, {"depths": [4, 4, 3], "widths": WIDTHS[3]}),
    "4-4-4-2, biases": (
        3_576_842,
        {"depths": [4, 4, 4, 2], "widths": WIDTHS[4], "conv_bias": True},
    ),
    "stem 5×5, max-pool": (
        3_477_770,
        {
            "depths": [2, 3, 4, 2],
            "widths": WIDTHS[4],
            "strides": [1, 1, 2, 2],
            "stem": "conv5x5",
            "stem_width": 64,
            "stem_padding": 3,
            "stem_pool": {"kernel": 5, "stride": 1},
            "init": "kaiming_fan_out",
        },
    ),
    "2-1-1-1, biases": (
        4_980_234,
        {
            "depths": [2, 1, 1, 1],
            "widths": [64, 128, 256, 512],
            "conv_bias": True,
            "init": "kaiming_fan_out",
        },
    ),
    "SE in every block": (
        4_768_522,
        {
            "depths": [4, 4, 3],
            "widths": WIDTHS[3],
            "squeeze_excitation": {"placement": "block", "reduction": 8},
        },
    ),
    "wide preact 40-1": (
        563_930,
        {"block": "preact", "depths": [6, 6, 6], "widths": [16, 32, 64]},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_have_their_count(name):
    parameters, settings = PUBLISHED[name]
    architecture = Architecture(**{"block": "basic"} | settings)
    assert measure_size(architecture).parameters == parameters
    assert count_parameters(build_model(architecture)) == parameters
