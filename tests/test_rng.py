"""Every draw a function of its coordinates."""

import itertools

import torch

from resnetlib.rng import derive_seed, generator


def test_seeds_are_fixed_for_all_time():
    assert derive_seed(0, "init") == 2058064558712539152
    assert derive_seed(1, "augment", 2, 3) == 2193366286064284004


def test_different_coordinates_give_different_seeds():
    coordinates = itertools.product(range(5), ("init", "order", "augment"), range(10), range(10))
    seeds = [derive_seed(*one) for one in coordinates]
    assert len(set(seeds)) == len(seeds)


def test_a_generator_repeats_its_draw_and_leaves_the_global_state_alone():
    before = torch.get_rng_state()
    first, again = (torch.rand(8, generator=generator(0, "augment", 1, 2)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
