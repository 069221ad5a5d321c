"""The benchmark of single convolutions: both kinds run."""

import pytest
import torch
from conftest import benchmark


@pytest.mark.slow
def test_steps_run_as_both_kinds():
    with benchmark("convolutions") as convolutions:
        both = convolutions.steps((8, 16, 8, 3, 2), batch_size=4, dtype=torch.float32)
    assert all(step() > 0 for step in both)
