"""Random draws as functions of (seed, stream, epoch, step)."""

import itertools

import torch

from resnetlib.rng import derive_seed, generator


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
