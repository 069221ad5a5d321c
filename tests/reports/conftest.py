"""Runs with chosen accuracies, made of a recorded one."""

import pytest
from conftest import recorded_lite
from reports.recorded import copied


@pytest.fixture
def lite():
    return recorded_lite()


@pytest.fixture
def runs_of(lite, tmp_path):
    """Makes runs of a variant with these accuracies, seeds 0, 1, …"""

    def make(variant, *accuracies, **overrides):
        number = len(list(tmp_path.iterdir()))
        return [
            copied(
                lite,
                tmp_path / f"{number}-{variant}-{seed}",
                variant,
                accuracy=accuracy,
                **{"seed": seed} | overrides,
            )
            for seed, accuracy in enumerate(accuracies)
        ]

    return make
