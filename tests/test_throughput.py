"""The benchmark of the training loop: both loops take the steps that are timed."""

import pytest
from conftest import benchmark

from resnetlib import list_variants


@pytest.fixture(scope="module")
def throughput():
    with benchmark("throughput") as module:
        yield module


@pytest.mark.parametrize("loop", ["ordinary", "ours"])
def test_a_loop_takes_steps_and_trains(throughput, loop, tiny, few_digits):
    runner = throughput.LOOPS[loop](tiny(batch_size=64, augment=["crop", "flip"]), few_digits)
    model = runner.model if loop == "ordinary" else runner.training.model
    before = model.linear.weight.clone()
    assert runner.run(2) > 0
    assert (model.linear.weight != before).any()


def test_only_variants_that_torchvision_can_augment_for_are_compared(throughput):
    assert {"lite", "se", "wide66"} <= set(throughput.comparable()) < set(list_variants())
