"""The search for designs against counting each network by itself."""

import pytest
import yaml
from conftest import architecture_of

from resnetlib import build_model, count_parameters, explore, list_variants, load_experiment, size
from resnetlib.errors import ConfigError
from resnetlib.schema import Architecture
from resnetlib.size import Size


def test_to_yaml_is_read_back_equal():
    for variant in list_variants():
        architecture = architecture_of(variant)
        content = yaml.safe_load(explore.to_yaml(architecture))
        assert Architecture.model_validate(content["architecture"]) == architecture


def test_rank_by_size_includes_the_design():
    table = explore.rank_by_size(architecture_of("lite", widths=[24, 48, 96]), "mine")
    assert set(table.index) == {*list_variants(), "mine"}
    assert table["parameters"].is_monotonic_increasing
    assert list(table.index[:2]) == ["lite", "mine"]
    assert table.loc["lite", "published_accuracy"] == 0.7987


def test_search_finds_the_published_designs():
    found = explore.search(architecture_of("lite"), base_widths=[16, 64, 66])
    sizes = {(row.depths, row.widths): row.parameters for row in found.itertuples()}
    for variant in ("lite", "improved_sgd", "wide66"):
        architecture = architecture_of(variant)
        published = load_experiment(variant).published.parameters
        assert sizes[architecture.depths, architecture.widths] == published
    assert sizes[(3, 5, 3), (64, 128, 256)] == 4_918_602  # adamw, whose fourth stage is empty
    assert found["parameters"].max() <= 5_000_000
    assert found["parameters"].is_monotonic_decreasing


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["dropout", "se"])
def test_search_gives_the_size_of_each_network(variant):
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
    assert size.measure_size(made) == Size(row["parameters"], row["macs"])


@pytest.mark.parametrize(
    "settings",
    [
        {"block": "bottleneck", "expansion": 3, "squeeze_excitation": {"placement": "block"}},
        {"block": "pyramid", "shortcut": {"kind": "zero_pad"}, "stem_width": 12},
        {"conv_kind": "separable", "activation": "leaky_relu", "stem": "double_conv3x3"},
        {"conv_kernel": [5], "shortcut": {"kernel": [3]}, "pool_size": 4},
    ],
)
def test_search_keeps_the_parts_of_the_family(settings):
    family = Architecture(**{"block": "basic", "depths": [1], "widths": [12]} | settings)
    found = explore.search(family, budget=30_000, stages=[2], base_widths=[8, 12], max_depth=2)
    assert len(found)
    for row in found.itertuples():
        content = family.model_dump() | {"depths": row.depths, "widths": row.widths}
        made = Architecture.model_validate(content)
        assert size.measure_size(made) == Size(row.parameters, row.macs)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"block_widths": [[8], [16], [32]], "widths": [8, 16, 32]}, "block_widths"),
        ({"placement": "block", "squeeze_excitation.blocks": [1]}, "squeeze_excitation.blocks"),
        ({"activation": ["relu", "relu", "relu", "leaky_relu"]}, "activation"),
        ({"conv_kind": ["full", "full", "separable"]}, "conv_kind"),
        ({"conv_kernel": [5, 3, 3]}, "conv_kernel"),
        ({"shortcut": {"kernel": [1, 1, 3]}}, "shortcut.kernel"),
    ],
)
def test_search_refuses_settings_of_single_stages(settings, name):
    with pytest.raises(ConfigError, match=f"{name} is set for single stages or blocks"):
        explore.search(architecture_of(**settings))


def test_search_includes_the_own_width():
    own = architecture_of("lite", depths=[1], widths=[10])
    found = explore.search(own, budget=6_000, stages=[1], max_depth=1)
    assert [widths[0] for widths in found["widths"]] == [16, 10, 8]


def test_search_finds_wider_designs_that_are_smaller():
    """A bottleneck of the stem's width needs no projection; one of 56 or 60 channels does."""
    family = Architecture(block="bottleneck", depths=[1], widths=[64], stem_width=64)
    found = explore.search(family, budget=8_000, stages=[1], base_widths=[56, 60, 64], max_depth=1)
    assert list(found["widths"]) == [(64,)]


def test_search_without_a_result_is_empty():
    assert len(explore.search(architecture_of(), budget=10, base_widths=[8])) == 0
    assert len(explore.search(architecture_of(), budget=10**12, base_widths=[2**15])) == 0


def test_search_refuses_stages_that_leave_no_pixel():
    pooled = architecture_of(block="pooled")
    with pytest.raises(
        ConfigError, match=r"stages = 7: too many stride-2 stages for a 32×32 image"
    ):
        explore.search(pooled, stages=[7], base_widths=[1], max_depth=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": 0}, "budget = 0: give whole numbers from 1 up"),
        ({"budget": 5e6}, "budget = 5000000.0"),
        ({"stages": [0, 3]}, "stages = 0, 3"),
        ({"base_widths": []}, "base_widths = nothing"),
        ({"max_depth": True}, "max_depth = True"),
        ({"max_depth": 60}, "210,816,000 designs are more than the 1,000,000"),
    ],
)
def test_search_refuses_senseless_settings(settings, message):
    with pytest.raises(ConfigError) as refused:
        explore.search(architecture_of(), **settings)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
