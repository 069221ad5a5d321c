"""The benchmark of the training loop: all loops train."""

import pytest
from conftest import benchmark

from resnetlib import list_variants, load_experiment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def throughput():
    with benchmark("throughput") as module:
        yield module


@pytest.mark.parametrize("loop", ["baseline", "tuned", "ours"])
def test_loop_trains(throughput, loop, tiny, few_digits):
    runner = throughput.LOOPS[loop](tiny(batch_size=64, augment=["crop", "flip"]), few_digits)
    model = runner.training.model if loop == "ours" else runner.model
    before = model.linear.weight.clone()
    assert runner.run(2) > 0
    assert (model.linear.weight != before).any()


def test_comparable_variants_have_torchvision_augmentations(throughput):
    assert {"lite", "se", "wide66"} <= set(throughput.comparable()) < set(list_variants())


@pytest.mark.parametrize("key", [{"sam": {}}, {"ema": {}}, {"clip": {"by": "norm", "limit": 1}}])
def test_recipe_that_the_baselines_do_not_follow_is_not_comparable(throughput, key, monkeypatch):
    experiment = load_experiment("lite", **key)
    monkeypatch.setattr(throughput, "load_experiment", lambda name: experiment)
    assert throughput.comparable() == []
