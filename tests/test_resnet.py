"""Every network against its published table, row by row and size by size."""

import csv
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, float64_by_default, size_by_torch
from torch import nn

from resnetlib import build_model, count_parameters, list_variants, load_experiment, model_summary
from resnetlib.blocks import MaxPool2x2, StochasticDepth, Whitening
from resnetlib.errors import ConfigError
from resnetlib.resnet import BLOCKS, trained_fixed_weights
from resnetlib.schema import PREACTIVATED
from resnetlib.size import check_size, measure_size

TABLES = {
    "lite": "lite",
    "improved_sgd": "improved",
    "improved_adam": "improved",
    "dropout": "dropout",
    "adamw": "adamw",
    "wide66": "wide66",
}
# parameters; forward/backward, parameter and total MB as published (None: not published); MACs.
SIZES = {
    "lite": (78_042, ("1.53", "0.30", "1.84"), 12.5),
    "improved_sgd": (4_903_242, ("6.57", "18.70", "25.28"), 253.4),
    "improved_adam": (4_903_242, ("6.57", "18.70", "25.28"), 253.4),
    "dropout": (4_700_682, ("22.50", "17.93", "40.45"), 798.7),
    "se": (4_697_742, None, 798.7),
    "adamw": (4_918_602, ("17.50", "18.76", "36.27"), 798.7),
    "wide66": (4_916_284, ("16.63", "18.75", "35.40"), 769.0),
    "resnet18": (11_173_962, None, 555.4),
    "resnet20": (269_722, None, 40.6),
    "resnet32": (464_154, None, 68.9),
    "resnet44": (658_586, None, 97.2),
    "resnet56": (853_018, None, 125.5),
    "resnet110": (1_727_962, None, 252.9),
}
BLOCK_NAMES = {"RBL", "ResidualBlockWithDropout", "BasicResBlock", "BasicBlock", "DropoutBlock"}


def model_of(variant):
    return build_model(load_experiment(variant).architecture)


def rows_of(summary):
    """(layer type, number, output shape, parameters) of each row of torchsummary's table."""
    found = re.findall(r"^ *(\w+)-(\d+) +\[-1, ([\d, ]+)\] +([\d,]+)", summary, re.MULTILINE)
    return [(t, int(n), s.replace(", ", "x"), int(p.replace(",", ""))) for t, n, s, p in found]


@pytest.mark.parametrize("variant", TABLES)
def test_model_summary_equals_the_published_table(variant):
    with (GOLDEN / f"{TABLES[variant]}.tsv").open() as file:
        published = list(csv.DictReader(file, delimiter="\t"))
    rows = rows_of(model_summary(model_of(variant)))
    assert len(rows) == len(published)
    for (kind, number, shape, parameters), row in zip(rows, published, strict=True):
        published_kind, published_number = row["layer"].rsplit("-", 1)
        assert number == int(published_number)
        assert shape == row["output_shape"]
        assert parameters == int(row["parameters"])
        assert kind == published_kind or {kind, published_kind} <= BLOCK_NAMES


@pytest.mark.slow
@pytest.mark.parametrize("variant", SIZES)
def test_sizes_equal_the_published_ones(variant):
    parameters, megabytes, million_macs = SIZES[variant]
    model = model_of(variant)
    assert count_parameters(model) == parameters == check_size(load_experiment(variant))
    for measured in (
        measure_size(model.architecture),
        size_by_torch(model.architecture),
    ):
        assert (measured.parameters, round(measured.macs / 1e6, 1)) == (parameters, million_macs)
    summary = model_summary(model)
    assert f"Total params: {parameters:,}" in summary
    if megabytes:
        labels = ("Forward/backward pass size", "Params size", "Estimated Total Size")
        for label, size in zip(labels, megabytes, strict=True):
            assert f"{label} (MB): {size}" in summary


def test_model_summary_has_no_side_effects():
    model = model_of("dropout").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    model_summary(model)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks for module in model.modules())
    assert model.training


def test_build_model_depends_on_the_seed_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", pytest.fail)  # the cards' random states
    architecture = load_experiment("lite").architecture
    random_state = torch.get_rng_state()
    first, same, other = (build_model(architecture, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.equal(first.linear.weight, same.linear.weight)
    assert not torch.equal(first.linear.weight, other.linear.weight)


def test_build_model_is_in_float32_on_the_cpu_whatever_the_defaults():
    architecture = load_experiment("lite").architecture
    plain = build_model(architecture).linear.weight
    with float64_by_default(), torch.device("meta"):
        weight = build_model(architecture).linear.weight
        assert torch.get_default_dtype() == torch.float64
    assert weight.dtype == torch.float32 and torch.equal(weight, plain)


@pytest.mark.parametrize("variant", list_variants())
def test_every_parameter_gets_a_gradient(variant):
    # But for what is meant to have none at first.
    throughout = {"zero_init_residual": False, "stochastic_depth": 0.0}
    model = build_model(load_experiment(variant).architecture.model_copy(update=throughout))
    logits = model(torch.randn(2, 3, 32, 32))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:  # the whitening of a stem
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("placement", ["none", "stem", "block", "addition"])
@pytest.mark.parametrize("block", BLOCKS)
def test_attention_is_where_it_is_placed(block, placement):
    architecture = load_experiment(
        "lite", block=block, placement=placement, depths=[2, 2, 1], widths=[8, 8, 16]
    ).architecture
    model = build_model(architecture)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    attentions = {"none": 0, "stem": 1}.get(placement, 5)
    named = [type(module).__name__ for module in model.modules()]
    assert named.count("SqueezeExcitation") == attentions


def test_preact_with_attention_has_its_stated_size():
    architecture = load_experiment(
        "se", block="preact", placement="block", listed_layers=["pool"]
    ).architecture
    assert round(count_parameters(build_model(architecture)) / 1e6, 2) == 4.73


@pytest.mark.parametrize("stem", ["conv3x3", "whitening"])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("strides", [None, [2, 2, 1], [1, 1, 2]])
def test_outputs_are_those_of_the_network(block, strides, stem):
    if block in PREACTIVATED and stem == "whitening":
        with pytest.raises(ConfigError, match=f"has a ReLU, and block '{block}' a stem without"):
            load_experiment("lite", block=block, stem=stem)
        return
    settings = {"depths": [2, 0, 1], "widths": [8, 8, 12], "strides": strides}
    architecture = load_experiment("lite", block=block, stem=stem, **settings).architecture
    network = build_model(architecture)
    out = network.stem(torch.zeros(1, 3, 32, 32))
    shapes = [out.shape[1:3]]
    for stage in network.stages:
        out = stage(out)
        shapes.append(out.shape[1:3])
    assert [tuple(shape) for shape in shapes] == list(architecture.outputs)


def test_too_many_halvings_are_refused():
    with pytest.raises(ConfigError, match="too many stride-2 stages"):
        load_experiment("lite", block="pooled", depths=[1] * 7, widths=[8] * 7)
    assert load_experiment("lite", depths=[1] * 7, widths=[8] * 7).architecture.outputs[-1] == (
        8,
        1,
    )


def test_whitening_decorrelates_patches():
    torch.manual_seed(0)
    images = torch.randn(500, 3, 16, 16)
    images = images + 2 * images.mean(1, keepdim=True)  # channels that go together, as in nature
    images = F.avg_pool2d(images, 3, 1)  # and neighbours
    whitening = Whitening()
    whitening.fit(images)
    out = whitening(images)
    assert out.shape == (500, 24, 13, 13)
    assert torch.equal(out[:, :12], -out[:, 12:])
    flat = out[:, :12].transpose(0, 1).flatten(1)
    moments = flat @ flat.T / flat.shape[1]
    variances = moments.diagonal()
    assert (variances > 0.95).all() and (variances < 1.001).all()  # 1 but for what damps noise
    assert (moments - variances.diag()).abs().max() < 1e-3
    assert not whitening.weight.requires_grad
    assert whitening.half().may_be_fitted()  # as some weights are kept


def test_trained_weights_that_are_not_counted_are_named():
    model = build_model(load_experiment("laptop", batch_norm_scale=False).architecture)
    whitening = model.stem[0]
    whitening.fit(torch.randn(100, 3, 8, 8))
    assert trained_fixed_weights(model) == ""
    fitted = whitening.weight.clone()
    for other in (torch.randn_like(fitted), fitted.abs(), fitted + 0.1 * fitted.std()):
        whitening.weight.copy_(other)
        assert trained_fixed_weights(model) == "whitening filters"
    whitening.weight.copy_(fitted)
    model.stages[0][0].bn1.weight[0] = 2
    assert trained_fixed_weights(model) == "BatchNorm scales"


@pytest.mark.parametrize("sides", [(8, 8), (7, 6), (31, 31)])
def test_max_pool_and_its_gradient_equal_torch(sides):
    torch.manual_seed(0)
    ours = torch.randn(3, 5, *sides, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_(True)
    pooled, expected = MaxPool2x2()(ours), F.max_pool2d(theirs, 2)
    assert torch.equal(pooled, expected)
    slopes = torch.randn_like(expected)
    pooled.backward(slopes)
    expected.backward(slopes)
    assert torch.equal(ours.grad, theirs.grad)


def test_pooled_block_computes_its_docstring():
    settings = {"depths": [1], "widths": [8], "strides": [2], "block": "pooled"}
    block = build_model(load_experiment("lite", **settings).architecture).stages[0][0].eval()
    x = torch.randn(2, 8, 16, 16)
    first = block.bn1(F.max_pool2d(block.conv1(x), 2)).relu()
    assert torch.equal(block(x), (block.bn2(block.conv2(first)) + first).relu())


def test_basic_block_computes_its_docstring():
    """The basic block, written out with the functions of its parts."""
    model = model_of("lite").eval()
    block = model.stages[1][0]
    x = torch.randn(2, 16, 32, 32)
    out = block.bn2(block.conv2(block.bn1(block.conv1(x)).relu()))
    shortcut = block.shortcut[1](block.shortcut[0](x))
    assert torch.equal(block(x), (out + shortcut).relu())


def test_stochastic_depth_rises_and_drops_images():
    network = build_model(load_experiment("lite", depths=[2, 2], widths=[16, 32]).architecture)
    assert not [module for module in network.modules() if isinstance(module, StochasticDepth)]
    settings = {"depths": [2, 2], "widths": [16, 32], "stochastic_depth": 0.4}
    network = build_model(load_experiment("lite", **settings).architecture)
    layers = [module for module in network.modules() if isinstance(module, StochasticDepth)]
    assert [layer.p for layer in layers] == pytest.approx([0.1, 0.2, 0.3, 0.4])

    torch.manual_seed(0)
    ones = torch.ones(20_000, 2, 2, 2)
    out = layers[-1].train()(ones)
    assert ((out == 0) | (out == 1 / 0.6)).all()
    dropped = (out == 0).flatten(1)
    assert (dropped.all(1) == dropped.any(1)).all()
    assert abs(dropped[:, 0].float().mean() - 0.4) < 0.015  # four standard deviations
    assert torch.equal(layers[-1].eval()(ones), ones)


def test_strides_and_stem_width_are_those_given():
    settings = {"widths": [8, 16], "depths": [1, 1], "strides": [2, 1], "stem_width": 24}
    network = build_model(load_experiment("lite", **settings).architecture)
    stem = network.stem(torch.zeros(2, 3, 32, 32))
    first = network.stages[0](stem)
    assert [tuple(out.shape) for out in (stem, first, network.stages[1](first))] == [
        (2, 24, 32, 32),
        (2, 8, 16, 16),
        (2, 16, 16, 16),
    ]
    with pytest.raises(ConfigError, match="depths has 2 stages and strides 1"):
        load_experiment("lite", **settings | {"strides": [2]})


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("block", BLOCKS)
def test_zero_init_residual_starts_as_shortcut(block, bias):
    settings = {"depths": [2], "widths": [8], "block": block, "zero_init_residual": True}
    settings |= {"conv_bias": bias}
    network = build_model(load_experiment("lite", **settings).architecture)
    second = network.stages[0][1]  # without a projection: its shortcut is the identity
    x = torch.rand(4, 8, 8, 8)  # not negative, so that a last ReLU keeps it
    # What the shortcut of a pooled block passes on is its own first half.
    passed_on = second.bn1(second.conv1(x)).relu() if block == "pooled" else x
    assert torch.equal(second(x), passed_on)
    (second(x) * torch.randn(4, 8, 8, 8)).sum().backward()
    last = {"preact": "conv2", "bottleneck": "bn3", "pyramid": "bn3"}.get(block, "bn2")
    last = getattr(second, last)
    assert last.weight.grad.abs().amax() > 0


@pytest.mark.parametrize("block", BLOCKS)
def test_batch_norm_scale_off_is_one_and_fixed(block):
    settings = {"depths": [1, 2], "widths": [8, 16], "block": block}
    scaled = build_model(load_experiment("lite", **settings).architecture)
    settings["batch_norm_scale"] = False
    network = build_model(load_experiment("lite", **settings).architecture)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.weight.eq(1).all() and not norm.weight.requires_grad for norm in norms)
    assert all(norm.bias.requires_grad for norm in norms)
    fixed = sum(norm.num_features for norm in norms)
    assert count_parameters(scaled) - count_parameters(network) == fixed
    summary = model_summary(network)
    assert f"\nTrainable params: {count_parameters(network):,}\n" in summary
    assert f"\nNon-trainable params: {fixed:,}\n" in summary


def test_zero_init_without_batch_norm_scale_is_refused():
    settings = {"zero_init_residual": True, "batch_norm_scale": False}
    with pytest.raises(ConfigError, match="a BatchNorm weight of 0, which would stay 0"):
        load_experiment("lite", **settings)
    load_experiment("lite", block="preact", **settings)  # there a convolution begins with zeros
