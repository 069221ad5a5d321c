"""The benchmark of single convolutions: both kinds run."""

import pytest
import torch
from conftest import benchmark

from resnetlib.device import DeviceSettings


@pytest.mark.slow
def test_steps_run_as_both_kinds():
    cpu = torch.device("cpu")
    settings = DeviceSettings(cpu, torch.float32, torch.channels_last, True, threads=1)
    with benchmark("convolutions") as convolutions:
        both = convolutions.steps((8, 16, 8, 3, 2), batch_size=4, settings=settings)
    assert all(step() > 0 for step in both)
