"""Random draws as functions of (seed, stream, epoch, step)."""

import itertools

import torch
from conftest import float64_by_default

from resnetlib.rng import derive_seed, generator, plain_defaults
from resnetlib.training import epoch_flip_mask, epoch_order


def test_derive_seed_never_changes():
    assert derive_seed(0, "init") == 2058064558712539152
    assert derive_seed(1, "augment", 2, 3) == 2193366286064284004


def test_derive_seed_differs_by_coordinate():
    coordinates = itertools.product(range(5), ("init", "order", "augment"), range(10), range(10))
    seeds = [derive_seed(*one) for one in coordinates]
    assert len(set(seeds)) == len(seeds)


def test_generator_repeats_and_is_independent():
    before = torch.get_rng_state()
    first, again = (torch.rand(8, generator=generator(0, "augment", 1, 2)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_of_a_run_never_change():
    """Else recorded runs could not be repeated."""
    assert epoch_order(8, 0, 1).tolist() == [1, 4, 5, 6, 7, 3, 2, 0]
    assert epoch_order(8, 0, 2).tolist() == [7, 6, 5, 2, 1, 4, 0, 3]
    assert epoch_flip_mask(8, 0, 1).int().tolist() == [0, 0, 0, 1, 1, 0, 1, 0]
    assert epoch_flip_mask(8, 0, 2).int().tolist() == [1, 1, 1, 0, 0, 1, 0, 1]


def test_plain_defaults_are_float32_on_the_cpu_for_a_while():
    with torch.device("meta"), float64_by_default():
        with plain_defaults():
            inside = torch.zeros(1)
        outside = torch.zeros(1)
    assert (inside.dtype, inside.device.type) == (torch.float32, "cpu")
    assert (outside.dtype, outside.device.type) == (torch.float64, "meta")
