"""Sizes by arithmetic against torch's own counters, memory against what autograd keeps."""

import random
import subprocess
import sys

import pytest
import torch
from conftest import architecture_of, float64_by_default, size_by_torch
from pydantic import ValidationError
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from resnetlib import build_model, list_variants, load_experiment, size
from resnetlib.errors import ConfigError
from resnetlib.resnet import BLOCKS
from resnetlib.schema import PREACTIVATED, STEM_KERNELS, Architecture, block_names
from resnetlib.size import Size, check_size, measure_memory, measure_size, model_summary


def kept_bytes(model, images):
    """What autograd really keeps of a batch, by the memory behind the tensors it saves."""
    fixed = [*model.parameters(), *model.buffers()]
    fixed = {tensor.untyped_storage().data_ptr() for tensor in fixed}
    kept = {}

    def save(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    labels = torch.zeros(images, dtype=torch.int64)
    with saved_tensors_hooks(save, lambda tensor: tensor):
        F.cross_entropy(model(torch.rand(images, 3, 32, 32)), labels)
    kept.pop(labels.untyped_storage().data_ptr())
    return sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in fixed)


ODD = [
    {"depths": [0, 2, 0, 1], "widths": [8, 12, 20, 16]},
    {"depths": [1] * 7, "widths": [4, 6, 8, 8, 8, 8, 8]},
    {"depths": [3], "widths": [5], "conv_bias": True},
    {"depths": [2], "widths": [6], "batch_norm_scale": False},
    {"depths": [1, 2], "widths": [4, 8], "placement": "stem", "reduction": 3},
    {"depths": [2, 1], "widths": [8, 8], "placement": "block", "reduction": 2},
    {"depths": [1, 1], "widths": [6, 8], "stochastic_depth": 0.2, "placement": "block"},
    {"depths": [2, 1], "widths": [6, 8], "strides": [2, 1], "stem_width": 5},
    {"depths": [2, 1], "widths": [6, 8], "stem": "whitening"},
    {"depths": [1, 1], "widths": [8, 12], "activation": ["relu", "leaky_relu", "relu"]},
    {"depths": [1, 2], "widths": [4, 8], "conv_kind": ["full", "separable"], "conv_bias": True},
    {"depths": [1, 2], "widths": [4, 8], "stem": "double_conv3x3", "stem_pool": {"kernel": 2}},
    {"depths": [2, 1], "widths": [8, 9], "block_widths": [[6, 8], [9]], "stem_width": 5},
    {
        "depths": [2, 1],
        "widths": [4, 8],
        "squeeze_excitation": {"placement": "addition", "bias": False, "blocks": [1, 3]},
        "architecture.dropout": 0.2,
        "dropout_unit": "values",
        "head_dropout": 0.2,
    },
    {
        "depths": [1, 2],
        "widths": [4, 8],
        "stem": "conv2x2",
        "conv_kernel": [5, 3],
        "shortcut": {"kernel": [1, 3]},
        "pool_size": 3,
        "head_dropout": 0.2,
        "head_dropout_place": "map",
    },
]


@pytest.mark.slow
@pytest.mark.parametrize("variant", list_variants())
def test_measure_size_equals_torch_for_variants(variant):
    architecture = architecture_of(variant)
    model = build_model(architecture)
    measured = measure_size(architecture)
    assert measured == size_by_torch(architecture)
    assert measured.weights_bytes == sum(w.nbytes for w in model.parameters() if w.requires_grad)
    memory = sum(measure_memory(architecture).values())
    assert memory == kept_bytes(model, 3) - kept_bytes(model, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("block", "settings"),
    [
        (block, settings)
        for block in BLOCKS
        for settings in ODD
        if not (block in PREACTIVATED and settings.get("stem") == "whitening")  # has a ReLU
        if not (block == "pooled" and len(settings["depths"]) > 6)  # nothing would be left
        if not (block == "pooled" and "shortcut" in settings)  # its shortcut is the identity
    ],
    ids=str,
)
def test_measure_size_and_memory_of_unusual_networks(block, settings):
    own = {"dropout": {"architecture.dropout": 0.3}, "bottleneck": {"expansion": 1}}
    architecture = architecture_of(block=block, **own.get(block, {}) | settings)
    model = build_model(architecture)
    assert measure_size(architecture) == size_by_torch(architecture)
    memory = sum(measure_memory(architecture).values())
    assert memory == kept_bytes(model, 3) - kept_bytes(model, 2)


@pytest.mark.parametrize("pool", ["none", "average", "max"])
@pytest.mark.parametrize("kind", ["conv1x1", "zero_pad"])
@pytest.mark.parametrize("block", ["basic", "preact"])
def test_measure_size_and_memory_of_shortcuts(block, kind, pool):
    shortcut = {"kind": kind, "pool": pool}
    if kind == "conv1x1":
        shortcut["batch_norm"] = block == "preact"
    if block == "preact":
        shortcut["input"] = "raw"
    architecture = architecture_of(block=block, depths=[1, 2], widths=[4, 9], shortcut=shortcut)
    assert measure_size(architecture) == size_by_torch(architecture)
    memory = sum(measure_memory(architecture).values())
    model = build_model(architecture)
    assert memory == kept_bytes(model, 3) - kept_bytes(model, 2)


def random_architecture(rng):
    """Any network that the schema allows, of at most five narrow stages."""
    count = rng.randint(1, 5)
    depths = [rng.randint(0, 3) for _ in range(count)]
    widths = [[rng.randint(1, 40) for _ in range(depth)] for depth in depths]
    placement = rng.choice(["none", "stem", "block", "addition"])
    attention = {"placement": placement}
    if placement != "none":
        attention |= {"reduction": rng.randint(1, 20), "bias": rng.random() < 0.5}
    if placement in ("block", "addition") and rng.random() < 0.3:
        attention["blocks"] = [rng.randint(1, max(1, sum(depths)))]
    shortcut = {"kind": rng.choice(["conv1x1", "conv1x1", "zero_pad"])}
    shortcut["pool"] = rng.choice(["none", "average", "max"])
    if shortcut["kind"] == "conv1x1":
        shortcut["batch_norm"] = rng.choice([None, True, False])
        shortcut["kernel"] = [rng.choice([1, 1, 3])]
    try:
        return Architecture(
            block=rng.choice(block_names()),
            depths=depths,
            widths=[stage[-1] if stage else 1 for stage in widths],
            block_widths=rng.choice([None, widths]),
            strides=rng.choice([None, [rng.randint(1, 2) for _ in range(count)]]),
            stem=rng.choice(list(STEM_KERNELS)),
            stem_width=rng.choice([None, rng.randint(1, 30)]),
            stem_stride=rng.choice([1, 1, 2]),
            stem_padding=rng.choice([None, rng.randint(0, 3)]),
            stem_pool=rng.choice([None, {}, {"kernel": 5, "stride": 1, "padding": 2}]),
            expansion=rng.choice([4, 4, 2, 1]),
            activation=["leaky_relu"],
            conv_kind=rng.choice([["full"], ["separable"], ["depthwise"]]),
            conv_kernel=[rng.choice([1, 3, 3, 5])],
            pool_size=rng.choice([None, None, rng.randint(1, 8)]),
            conv_bias=rng.random() < 0.5,
            batch_norm_scale=rng.random() < 0.5,
            zero_init_residual=rng.random() < 0.3,
            shortcut=rng.choice([{}, shortcut]),
            dropout=rng.choice([0, 0.3]),
            head_dropout=rng.choice([0, 0.3]),
            squeeze_excitation=attention,
            stochastic_depth=rng.choice([0, 0.2]),
            final_norm=rng.random() < 0.7,
            listed_layers=rng.choice([[], ["pool"], ["stem_relu", "pool"]]),
        )
    except ValidationError:  # settings that exclude each other
        return random_architecture(rng)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(60))
def test_measure_size_equals_torch_for_any_network(seed):
    architecture = random_architecture(random.Random(seed))
    assert measure_size(architecture) == size_by_torch(architecture)


@pytest.mark.slow
def test_size_search_and_refusal_need_no_torch():
    program = (
        "import sys\n"
        "from resnetlib import load_experiment\n"
        "from resnetlib.size import check_size, describe_size\n"
        "experiment = load_experiment('lite', widths=[512, 1024, 2048])\n"
        "describe_size(experiment.architecture, 5_000_000)\n"
        "try:\n"
        "    check_size(experiment)\n"
        "except ValueError:\n"
        "    assert not {'torch', 'numpy', 'pandas'} & set(sys.modules)\n"
        "    from resnetlib import explore\n"
        "    explore.search(experiment.architecture)\n"
        "    explore.rank_by_size(experiment.architecture)\n"
        "    assert 'torch' not in sys.modules\n"
        "    print('refused')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "refused\n", "")


def test_stages_add_up_and_name_their_outputs():
    architecture = architecture_of("adamw")
    table = size.stages(architecture)
    assert table["output"].to_dict() == {
        "stem": "64 × 32 × 32",
        "stage 1": "64 × 32 × 32",
        "stage 2": "128 × 16 × 16",
        "stage 3": "256 × 8 × 8",
        "stage 4": "256 × 8 × 8",
        "head": "10",
    }
    figures = table.drop(columns="output")
    measured = measure_size(architecture)
    memory = sum(measure_memory(architecture).values())
    assert figures.sum().to_dict() == {
        "parameters": measured.parameters,
        "macs": measured.macs,
        "activation_bytes": memory,
    }
    assert (figures.loc["stage 4"] == 0).all()


def test_describe_size_has_what_was_asked_for():
    lite = architecture_of("lite")
    facts = size.describe_size(lite)
    assert facts == {
        "parameters": "78,042",
        "multiply-accumulates of one image": "12.5 million",
        "weights": "0.30 MiB in float32",
    }
    assert size.describe_size(lite, "none") == facts | {"budget": "no budget"}
    kept = "0.62 MiB an image in float32; 80 MiB for a batch of 128"
    more = {"activations kept for the backward pass": kept}
    assert size.describe_size(lite, memory=True) == facts | more


def test_describe_size_names_the_budget():
    within = size.describe_size(architecture_of("lite"), 5_000_000)["budget"]
    assert within == "within the budget, 4,921,958 left: 78,042 of 5,000,000 parameters (1.6%)"
    over = size.describe_size(architecture_of("resnet18"), 5_000_000)["budget"]
    assert over.startswith("OVER THE BUDGET by 6,173,962: 11,173,962 of 5,000,000")
    assert "within" in size.describe_budget(100, 100)


@pytest.mark.parametrize(
    "settings", [{"widths": [10**9, 1, 1]}, {"stem_width": 10**9}, {"depths": [10**9, 1, 1]}]
)
def test_absurdly_large_networks_are_refused(settings):
    with pytest.raises(ConfigError, match="more than 65,536 channels or 1,000 blocks"):
        architecture_of("lite", **settings)


def test_sizes_at_the_limit_are_exact():
    architecture = architecture_of(depths=[1_000] * 3, widths=[65_536] * 3)
    kept = 9 * 65_536**2 * 2 + 4 * 65_536  # of a block that changes nothing
    assert size.part_sizes(architecture)["stage 1"] == Size(
        1_000 * kept, 1_000 * 2 * 9 * 65_536**2 * 32**2
    )


def test_check_size_refuses_more_than_the_budget():
    with pytest.raises(ConfigError, match=r"11,173,962 parameters exceed the budget of 5,000,000"):
        check_size(load_experiment("resnet18", budget=5_000_000))
    assert check_size(load_experiment("resnet18")) == 11_173_962


def test_check_size_refuses_a_wrong_published_count(tmp_path):
    text = load_experiment("lite").to_yaml().replace("parameters: 78042", "parameters: 78043")
    path = tmp_path / "off.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"78,043.*78,042"):
        check_size(load_experiment(str(path)))


def test_summary_keeps_no_activations_for_a_backward_pass():
    modes = []

    class Probe(nn.Module):
        def forward(self, x):
            modes.append(torch.is_grad_enabled())
            return x

    model_summary(nn.Sequential(nn.Conv2d(3, 4, 3), Probe()))
    assert modes == [False]


def test_memory_is_the_same_whatever_the_callers_settings():
    architecture = load_experiment("lite").architecture

    def measured():
        for part in (size._stem_memory, size._block_memory, size._head_memory):
            part.cache_clear()
        return size.measure_memory(architecture)

    with float64_by_default(), torch.inference_mode():
        other = measured()
    assert other == measured()
