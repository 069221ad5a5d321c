"""Augmentation of batches: equal to torchvision's for the same draws, each image its own draw."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from resnetlib.augment import compose, crop, flip
from resnetlib.config import ConfigError
from resnetlib.rng import generator


def positions(count=1):
    """Images whose every pixel is another: the value tells where it came from."""
    rows = torch.arange(32)[:, None].expand(32, 32)
    columns = torch.arange(32)[None].expand(32, 32)
    image = torch.stack([rows + 1, columns + 1, torch.full((32, 32), 7)]).to(torch.uint8)
    return image.expand(count, 3, 32, 32).clone()


def crops_of(images, cropped):
    """For each image the offsets (top, left) at which torchvision's crop gives the same."""
    padded = tv.pad(images[0], [4, 4, 4, 4])
    offsets = {}
    for top in range(9):
        for left in range(9):
            offsets[tv.crop(padded, top, left, 32, 32).numpy().tobytes()] = (top, left)
    return [offsets[image.numpy().tobytes()] for image in cropped]


def test_crop_is_a_window_of_the_padded_image_uniform_over_all_81_offsets():
    images = positions(16_200)
    found = crops_of(images, crop(images, generator(0, "augment")))
    counts = torch.zeros(9, 9)
    for top, left in found:
        counts[top, left] += 1
    expected = 16_200 / 81
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 124.8  # the 99.9 % point of chi square with 80 degrees of freedom


def test_flip_turns_each_image_or_leaves_it_with_probability_one_half():
    images = positions(10_000)
    flipped = flip(images, generator(0, "augment"))
    turned = (flipped == images.flip(3)).all((1, 2, 3))
    kept = (flipped == images).all((1, 2, 3))
    assert (turned ^ kept).all()
    assert torch.equal(images[0].flip(2), tv.horizontal_flip(images[0]))
    assert abs(turned.float().mean() - 0.5) < 0.02  # four standard deviations


def test_draws_repeat_with_the_generator_and_the_input_stays_as_it_was():
    images = positions(64)
    before = images.clone()
    augment = compose(["crop", "flip"])
    first, again, other = (augment(images, generator(0, "augment", 1, s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)
    assert first.dtype == torch.uint8


def test_augmentations_act_in_the_order_given():
    images = positions(64)
    draws = generator(0, "augment")
    expected = crop(flip(images, draws), draws)
    assert torch.equal(compose(["flip", "crop"])(images, generator(0, "augment")), expected)


def test_what_is_not_there_yet_is_named_and_not_left_out():
    with pytest.raises(ConfigError, match="color_jitter, auto_augment, rotation"):
        compose(["flip", "crop", "color_jitter", "auto_augment", "rotation"])
