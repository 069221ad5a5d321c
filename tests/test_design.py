"""Sizes against real networks, and searches against counting each network by itself."""

import pytest
import torch
import yaml
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from resnetlib import build_model, count_parameters, explore, list_variants, load_experiment, size
from resnetlib.errors import ConfigError
from resnetlib.resnet import BLOCKS
from resnetlib.schema import Architecture
from resnetlib.size import macs


def architecture_of(variant="lite", **overrides):
    return load_experiment(variant, **overrides).architecture


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
]


@pytest.mark.parametrize("variant", list_variants())
def test_a_variants_size_is_that_of_its_network(variant):
    architecture = architecture_of(variant)
    model = build_model(architecture)
    measured = size.measure_size(architecture)
    assert measured.parameters == count_parameters(model)
    assert measured.macs == macs(model)
    assert measured.activation_bytes == kept_bytes(model, 3) - kept_bytes(model, 2)
    assert measured.weights_bytes == sum(w.nbytes for w in model.parameters() if w.requires_grad)


@pytest.mark.parametrize(
    ("block", "settings"),
    [
        (block, settings)
        for block in BLOCKS
        for settings in ODD
        if not (block == "preact" and "stem" in settings)  # which has a stem of its own
        if not (block == "pooled" and len(settings["depths"]) > 6)  # nothing would be left
    ],
    ids=str,
)
def test_unusual_networks_are_sized_as_exactly(block, settings):
    dropout = {"architecture.dropout": 0.3} if block == "dropout" else {}
    architecture = architecture_of(block=block, **settings, **dropout)
    model = build_model(architecture)
    assert size.measure_size(architecture) == (
        count_parameters(model),
        macs(model),
        kept_bytes(model, 3) - kept_bytes(model, 2),
    )


def test_the_stages_add_up_and_name_their_outputs():
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
    sums = table[list(size.Size._fields)].sum()
    assert tuple(sums) == size.measure_size(architecture)
    assert (table.loc["stage 4", list(size.Size._fields)] == 0).all()


def test_the_budget_is_told_in_words():
    within = size.describe_architecture(architecture_of("lite"))["budget"]
    assert within == "within the budget, 4,921,958 left: 78,042 of 5,000,000 parameters (1.6%)"
    over = size.describe_architecture(architecture_of("resnet18"))["budget"]
    assert over.startswith("OVER THE BUDGET by 6,173,962: 11,173,962 of 5,000,000")
    assert "within" in size.describe_budget(100, 100)


def test_the_yaml_is_the_architecture():
    for variant in list_variants():
        architecture = architecture_of(variant)
        content = yaml.safe_load(explore.to_yaml(architecture))
        assert Architecture.model_validate(content["architecture"]) == architecture


def test_comparing_puts_the_design_among_all_variants():
    table = explore.rank_by_size(architecture_of("lite", widths=[24, 48, 96]), "mine")
    assert set(table.index) == {*list_variants(), "mine"}
    assert table["parameters"].is_monotonic_increasing
    assert list(table.index[:2]) == ["lite", "mine"]
    assert table.loc["lite", "published_accuracy"] == 0.7987


def test_a_search_finds_the_published_designs_of_its_family():
    found = explore.search(architecture_of("lite"), base_widths=[16, 64, 66])
    sizes = {(row.depths, row.widths): row.parameters for row in found.itertuples()}
    for variant in ("lite", "improved_sgd", "wide66"):
        architecture = architecture_of(variant)
        published = load_experiment(variant).published.parameters
        assert sizes[architecture.depths, architecture.widths] == published
    assert sizes[(3, 5, 3), (64, 128, 256)] == 4_918_602  # adamw, whose fourth stage is empty
    assert found["parameters"].max() <= 5_000_000
    assert found["parameters"].is_monotonic_decreasing


@pytest.mark.parametrize("variant", ["dropout", "se"])
def test_every_design_of_a_search_has_its_own_networks_size(variant):
    architecture = architecture_of(variant, depths=[1], widths=[8])
    budget = 60_000
    found = explore.search(
        architecture, budget=budget, stages=[1, 3], base_widths=[6, 12], max_depth=3
    )
    counted = {(row.depths, row.widths): row.parameters for row in found.itertuples()}
    for stages in (1, 3):
        for base in (6, 12):
            widths = [base, 2 * base, 4 * base][:stages]
            for number in range(3**stages):
                depths = [1 + number // 3**place % 3 for place in range(stages)]
                made = architecture_of(variant, depths=depths, widths=widths)
                parameters = count_parameters(build_model(made))
                assert counted.get((tuple(depths), tuple(widths)), budget + 1) == (
                    parameters if parameters <= budget else budget + 1
                )
    row = found.iloc[0]
    made = architecture_of(variant, depths=list(row["depths"]), widths=list(row["widths"]))
    assert size.measure_size(made) == tuple(row[list(size.Size._fields)])


def test_a_search_takes_in_the_architectures_own_width():
    own = architecture_of("lite", depths=[1], widths=[10])
    found = explore.search(own, budget=6_000, stages=[1], max_depth=1)
    assert [widths[0] for widths in found["widths"]] == [16, 10, 8]


def test_a_search_without_a_result_is_empty():
    assert len(explore.search(architecture_of(), budget=10, base_widths=[8])) == 0


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"budget": 0}, "budget = 0: give whole numbers from 1 up"),
        ({"budget": 5e6}, "budget = 5000000.0"),
        ({"stages": [0, 3]}, "stages = 0, 3"),
        ({"base_widths": []}, "base_widths = nothing"),
        ({"max_depth": True}, "max_depth = True"),
        ({"max_depth": 60}, "210,816,000 designs are more than the 1,000,000"),
    ],
)
def test_a_search_that_makes_no_sense_is_refused_in_one_line(settings, told):
    with pytest.raises(ConfigError) as refused:
        explore.search(architecture_of(), **settings)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_absurdly_large_is_refused():
    with pytest.raises(ConfigError, match="65,536 channels"):
        size.measure_size(architecture_of("lite", widths=[10**9, 1, 1]))
