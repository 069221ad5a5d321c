"""Augmentation of batches: torchvision's results for the same draws, drawn as often as there."""

import ast
import itertools
import math
from pathlib import Path
from typing import get_args

import pytest
import torch
from conftest import float64_by_default
from scipy import stats
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from resnetlib import augment, schema
from resnetlib.augment import compose, draws, image_ops, policies, preview
from resnetlib.augment.draws import Shape
from resnetlib.augment.policies import NAMES
from resnetlib.data import load_dataset
from resnetlib.download import find_cifar10
from resnetlib.errors import ConfigError
from resnetlib.rng import generator

MODELS = {
    get_args(kind.model_fields["name"].annotation)[0]: kind
    for kind in get_args(get_args(schema.Augment)[0])
}
# Those that act as they are with a probability; the others draw it with the rest.
SOMETIMES = [name for name, kind in MODELS.items() if issubclass(kind, schema.Sometimes)]
CHAINS = ("color_jitter", "auto_augment", "rand_augment", "trivial_augment")
# torchvision's names of the operations, for its tables of magnitudes.
PUBLISHED = {
    "identity": "Identity",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
    "rotate": "Rotate",
    "brightness": "Brightness",
    "saturation": "Color",
    "contrast": "Contrast",
    "sharpness": "Sharpness",
    "posterize": "Posterize",
    "solarize": "Solarize",
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
}


def model(name, **options):
    return MODELS[name](name=name, **options)


def shear(image, *slopes):
    degrees = [math.degrees(math.atan(slope)) for slope in slopes]
    return tv.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])


def translate(image, *pixels):
    return tv.affine(image, angle=0.0, translate=list(pixels), scale=1.0, shear=[0.0, 0.0])


# What torchvision's automatic augmentations and ColorJitter call for an operation.
REFERENCES = {
    "identity": lambda image, value: image,
    "shear_x": lambda image, value: shear(image, value, 0.0),
    "shear_y": lambda image, value: shear(image, 0.0, value),
    "translate_x": lambda image, value: translate(image, value, 0),
    "translate_y": lambda image, value: translate(image, 0, value),
    "rotate": tv.rotate,
    "brightness": tv.adjust_brightness,
    "saturation": tv.adjust_saturation,
    "contrast": tv.adjust_contrast,
    "hue": tv.adjust_hue,
    "sharpness": tv.adjust_sharpness,
    "posterize": lambda image, value: tv.posterize(image, int(value)),
    "solarize": tv.solarize,
    "autocontrast": lambda image, value: tv.autocontrast(image),
    "equalize": lambda image, value: tv.equalize(image),
    "invert": lambda image, value: tv.invert(image),
}


def positions(count=1):
    """Images whose every pixel is another: the value tells where it came from."""
    rows = torch.arange(32)[:, None].expand(32, 32)
    columns = torch.arange(32)[None].expand(32, 32)
    image = torch.stack([rows + 1, columns + 1, torch.full((32, 32), 7)]).to(torch.uint8)
    return image.expand(count, 3, 32, 32).clone()


def only(settings, images, draws):
    """The images of one augmentation, without labels."""
    labels = torch.zeros(len(images), dtype=torch.int64)
    return compose([settings])(images, labels, draws)[0]


def assert_frequencies(counts, expected=None):
    """Chi square below its 99.9 % point; all equally often unless expected shares are given."""
    counts = torch.as_tensor(counts, dtype=torch.float64).flatten()
    shares = torch.ones_like(counts) if expected is None else torch.as_tensor(expected).double()
    assert not counts[shares == 0].any()
    counts, shares = counts[shares > 0], shares[shares > 0]
    assert stats.chisquare(counts, shares / shares.sum() * counts.sum()).pvalue > 0.001


def assert_same_distribution(ours, theirs, bins=8):
    """Two samples, in bins of equal share, below the 99.9 % point of chi square."""
    both = torch.cat([ours, theirs]).double()
    edges = both.quantile(torch.linspace(0, 1, bins + 1, dtype=torch.float64)).unique()[1:-1]
    table = [
        torch.bucketize(part.double(), edges).bincount(minlength=len(edges) + 1)
        for part in (ours, theirs)
    ]
    assert stats.chi2_contingency(torch.stack(table).numpy()).pvalue > 0.001


@pytest.fixture(scope="module")
def batch():
    """(images, labels) of 128 genuine images where there are some, else of coloured digits."""
    images, labels = load_dataset("cifar10" if find_cifar10() else "digits").train
    images = images[:128]
    if not find_cifar10():
        images = images // torch.tensor([1, 2, 3]).view(3, 1, 1)
    return images.to(torch.uint8), labels[:128]


# ---- Every augmentation --------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_draws_repeat_and_leave_the_input(name, batch):
    images, labels = (part.clone() for part in batch)
    augmentation = compose([model(name)])
    state = torch.get_rng_state()
    first, again, other = (
        augmentation(images, labels, generator(0, "augment", 1, step)) for step in (0, 0, 1)
    )
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(images, batch[0]) and torch.equal(labels, batch[1])
    assert first[0].dtype == torch.uint8 and first[0].shape == images.shape
    assert torch.equal(torch.get_rng_state(), state)  # nothing is drawn from elsewhere


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("name", MODELS)
def test_augmentations_accept_batches_of_none_and_one(name, count, batch):
    images, targets = compose([model(name)])(
        batch[0][:count], batch[1][:count], generator(0, "augment")
    )
    assert images.shape == (count, 3, 32, 32)
    assert len(targets) == count


OPTIONS = [
    *((name, {"probability": 0.3}) for name in SOMETIMES),
    ("affine", {"degrees": 30}),
    ("affine", {"translate": (0.2, 0.1)}),
    ("affine", {"scale": (0.7, 1.4)}),
    ("affine", {"shear": (20, 10)}),
    ("perspective", {"distortion_scale": 0.8}),
    ("gaussian_blur", {"kernel_size": 5}),
    ("gaussian_blur", {"sigma": (1.0, 1.5)}),
    ("crop", {"padding": 2}),
    ("crop", {"padding_mode": "reflect"}),
    ("flip", {"probability": 0.2}),
    ("color_jitter", {"brightness": 0.5}),
    ("color_jitter", {"contrast": 0.5}),
    ("color_jitter", {"saturation": 0.5}),
    ("color_jitter", {"hue": 0.1}),
    ("rotation", {"degrees": 30}),
    ("rand_augment", {"num_ops": 1}),
    ("rand_augment", {"magnitude": 20}),
    ("cutout", {"size": 8}),
    ("cutout", {"probability": 0.5}),
    ("random_erasing", {"probability": 0.9}),
    ("random_erasing", {"scale": (0.3, 0.4)}),
    ("random_erasing", {"ratio": (0.9, 1.1)}),
    ("mixup", {"alpha": 0.2}),
    ("mixup", {"probability": 0.5}),
    ("cutmix", {"alpha": 0.2}),
    ("cutmix", {"probability": 0.5}),
]


@pytest.mark.parametrize(("name", "option"), OPTIONS, ids=str)
def test_every_option_acts(name, option, batch):
    usual = only(model(name), batch[0], generator(0, "augment"))
    changed = only(model(name, **option), batch[0], generator(0, "augment"))
    assert not torch.equal(usual, changed)


def test_options_are_complete():
    listed = {(name, key) for name, option in OPTIONS for key in option}
    listed.add(("flip", "alternate"))  # acts from epoch to epoch: its own test
    there = {(name, key) for name, kind in MODELS.items() for key in kind.model_fields}
    assert listed == {(name, key) for name, key in there if key != "name"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"probability": 0}) for name in SOMETIMES),
        ("flip", {"probability": 0}),
        ("cutout", {"probability": 0}),
        ("random_erasing", {"probability": 0}),
        ("random_erasing", {"probability": 1, "scale": (1, 1)}),  # never fits
        ("mixup", {"probability": 0}),
        ("cutmix", {"probability": 0}),
    ],
    ids=str,
)
def test_disabled_options_change_nothing(name, options, batch):
    images, targets = compose([model(name, **options)])(*batch, generator(0, "augment"))
    assert torch.equal(images, batch[0])
    if name in ("mixup", "cutmix"):
        assert torch.equal(targets.argmax(1), batch[1])
        assert (targets.amax(1) == 1).all()


@pytest.mark.parametrize("name", MODELS)
def test_augmentations_never_wait_for_the_device(name):
    """A tensor on `meta` has no values: whatever would read one on the host fails there."""
    images = torch.empty(64, 3, 32, 32, dtype=torch.uint8, device="meta")
    labels = torch.empty(64, dtype=torch.int64, device="meta")
    result, targets = compose([model(name)])(images, labels, generator(0, "augment"))
    assert result.device.type == targets.device.type == "meta"
    assert result.shape == images.shape


def test_compose_of_nothing_returns_its_input(batch):
    images, labels = compose([])(*batch, generator(0, "augment"))
    assert images is batch[0] and labels is batch[1]


def test_compose_keeps_the_order(batch):
    draws = generator(0, "augment")
    expected = only(model("crop"), only(model("rotation"), batch[0], draws), draws)
    images, labels = compose([model("rotation"), model("crop")])(*batch, generator(0, "augment"))
    assert torch.equal(images, expected)
    assert labels is batch[1]
    flip_mask, _ = compose([model("crop"), model("rotation")])(*batch, generator(0, "augment"))
    assert not torch.equal(images, flip_mask)


@pytest.mark.parametrize("name", MODELS)
def test_preview_uses_the_default_settings(name, batch):
    images = preview(name, batch[0], seed=3)
    assert torch.equal(images, only(model(name), batch[0], generator(3, "augment")))
    assert not torch.equal(images, preview(name, batch[0], seed=4))


def test_preview_of_unknown_name_names_nearest(batch):
    mistake = r"^preview: augment\.1\.name = 'mixupp': should be one of .*; did you mean 'mixup'\?$"
    with pytest.raises(ConfigError, match=mistake):
        preview("crop, mixupp", batch[0])


@pytest.mark.parametrize("module", [augment, draws, image_ops, policies])
def test_import_needs_nothing_slower_than_torch(module):
    body = ast.parse(Path(module.__file__).read_text()).body
    imported = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    imported |= {n.module for n in body if isinstance(n, ast.ImportFrom) and not n.level}
    ours = {"collections.abc", "functools", "math", "typing"}
    assert {name for name in imported if name.partition(".")[0] != "torch"} <= ours


# ---- Moving and covering pixels ------------------------------------------------------------


def test_crop_offsets_are_uniform():
    images = positions(16_200)
    padded = tv.pad(images[0], [4, 4, 4, 4])
    places = list(itertools.product(range(9), range(9)))
    found = {tv.crop(padded, *place, 32, 32).numpy().tobytes(): place for place in places}
    counts = torch.zeros(9, 9)
    for image in only(model("crop"), images, generator(0, "augment")):
        counts[found[image.numpy().tobytes()]] += 1
    assert_frequencies(counts)


def test_flip_mirrors_with_its_probability():
    images = positions(10_000)
    for probability in (0.5, 0.2):
        settings = model("flip", probability=probability)
        flipped = only(settings, images, generator(0, "augment"))
        flip_mask = (flipped == images.flip(3)).all((1, 2, 3))
        kept = (flipped == images).all((1, 2, 3))
        assert (flip_mask ^ kept).all()
        assert_frequencies([flip_mask.sum(), kept.sum()], [probability, 1 - probability])


def test_alternating_flip_follows_its_mask(batch):
    flip_mask = torch.arange(len(batch[0])) % 3 == 0
    alternating = model("flip", alternate=True)
    for settings in (alternating, schema.OneOf(name="one_of", choices=[alternating, alternating])):
        images, _ = compose([settings])(*batch, generator(0, "augment"), flip_mask)
        assert torch.equal(images[flip_mask], batch[0][flip_mask].flip(3))
        assert torch.equal(images[~flip_mask], batch[0][~flip_mask])
    usual = compose([model("flip")])(*batch, generator(0, "augment"), flip_mask)[0]
    assert torch.equal(usual, only(model("flip"), batch[0], generator(0, "augment")))
    assert torch.equal(usual, only(alternating, batch[0], generator(0, "augment")))
    with pytest.raises(ValueError, match="omit probability"):
        model("flip", alternate=True, probability=0.2)


def test_rotation_angles_are_uniform(batch):
    settings = model("rotation", degrees=40)
    stream = generator(0, "augment")
    angles = draws.draw_rotation(settings, Shape(128, 32, 32), stream)
    expected = [
        tv.rotate(image, angle) for image, angle in zip(batch[0], angles.tolist(), strict=True)
    ]
    assert torch.equal(only(settings, batch[0], generator(0, "augment")), torch.stack(expected))
    many = draws.draw_rotation(settings, Shape(20_000, 32, 32), stream)
    assert_frequencies(torch.histc(many, 40, -40, 40))


@pytest.mark.parametrize("name", SOMETIMES)
def test_probability_of_an_augmentation(name, batch):
    images = batch[0].repeat(16, 1, 1, 1)
    always = only(model(name, probability=1), images, generator(0, "augment"))
    result = only(model(name, probability=0.3), images, generator(0, "augment"))
    acted = (result == always).flatten(1).all(1)
    assert torch.equal(result[~acted], images[~acted])
    acted = acted[(always != images).flatten(1).any(1)]
    assert_frequencies([acted.sum(), (~acted).sum()], [0.3, 0.7])


AFFINE = {"degrees": 40, "translate": (0.2, 0.1), "scale": (0.7, 1.4), "shear": (20, 10)}


@pytest.mark.parametrize(
    "options",
    [AFFINE, {"degrees": 0, "translate": (0.1, 0)}, {"degrees": 0, "shear": (0, 30)}, {}],
    ids=str,
)
def test_affine_equals_torchvision(options, batch):
    settings = model("affine", **options)
    drawn = draws.draw_affine(settings, Shape(128, 32, 32), generator(0, "augment"))
    result = only(settings, batch[0], generator(0, "augment"))
    for i, image in enumerate(batch[0]):
        angle, right, down, scale, *shears = (part[i].item() for part in drawn)
        expected = tv.affine(image, angle, [right, down], scale, shears)
        assert torch.equal(result[i], expected), drawn


@pytest.mark.slow
def test_affine_draws_as_torchvision():
    count = 6_000
    drawn = draws.draw_affine(
        model("affine", **AFFINE), Shape(count, 32, 32), generator(0, "augment")
    )
    settings = AFFINE | {"shear": (-20, 20, -10, 10)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = v2.RandomAffine(**settings)
        image = torch.zeros(3, 32, 32)
        params = [theirs.make_params([image]) for _ in range(count)]
    for key, parts in (
        ("angle", [drawn.degrees]),
        ("translate", [drawn.right, drawn.down]),
        ("scale", [drawn.scale]),
        ("shear", [drawn.shear_x, drawn.shear_y]),
    ):
        expected = torch.tensor([found[key] for found in params]).view(count, -1)
        for part, column in zip(parts, expected.unbind(1), strict=True):
            assert_same_distribution(part, column)
            assert (part.abs().max() - column.abs().max()).abs() < 0.1


CORNERS = [[0, 0], [31, 0], [31, 31], [0, 31]]


@pytest.mark.parametrize("distortion_scale", [0.3, 0.5, 1.0])
def test_perspective_equals_torchvision(distortion_scale, batch):
    settings = model("perspective", probability=1, distortion_scale=distortion_scale)
    corners = draws.draw_perspective(settings, Shape(128, 32, 32), generator(0, "augment"))
    result = only(settings, batch[0], generator(0, "augment"))
    for i, image in enumerate(batch[0]):
        assert torch.equal(result[i], tv.perspective(image, CORNERS, corners[i].tolist())), i


def test_perspective_draws_as_torchvision(monkeypatch):
    count = 6_000
    drawn = draws.draw_perspective(
        model("perspective"), Shape(count, 32, 32), generator(0, "augment")
    )
    # torchvision turns the corners into coefficients at once.
    monkeypatch.setattr(v2._geometry, "_get_perspective_coeffs", lambda start, end: end)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = v2.RandomPerspective(p=1)
        image = torch.zeros(3, 32, 32)
        params = [theirs.make_params([image])["coefficients"] for _ in range(count)]
    for part, expected in zip(
        drawn.flatten(1).unbind(1), torch.tensor(params).flatten(1).unbind(1), strict=True
    ):
        assert_same_distribution(part, expected)
        assert (part.min(), part.max()) == (expected.min(), expected.max())


@pytest.mark.parametrize("kernel_size", [3, 5, 9])
def test_gaussian_blur_equals_torchvision(kernel_size, batch):
    settings = model("gaussian_blur", kernel_size=kernel_size, sigma=(0.2, 3.0))
    draw = draws.draw_gaussian_blur
    sigma, size = draw(settings, Shape(128, 32, 32), generator(0, "augment"))
    result = only(settings, batch[0], generator(0, "augment"))
    for i, image in enumerate(batch[0]):
        expected = tv.gaussian_blur(image, [size, size], [sigma[i].item()] * 2)
        # The sums of a convolution depend on the processor in their last bit.
        assert (result[i].int() - expected.int()).abs().max() <= 1
        assert (result[i] != expected).float().mean() < 1e-3
    many, _ = draw(settings, Shape(20_000, 32, 32), generator(1, "augment"))
    assert_frequencies(torch.histc(many, 40, 0.2, 3.0))


def test_grayscale_equals_torchvision(batch):
    result = only(model("grayscale", probability=1), batch[0], generator(0, "augment"))
    assert torch.equal(result, tv.rgb_to_grayscale(batch[0], 3))


@pytest.mark.slow
def test_cutout_square_is_cut_off_at_the_border():
    images = torch.zeros(20_000, 3, 32, 32, dtype=torch.uint8)
    result = only(model("cutout", size=8, probability=0.75), images, generator(0, "augment"))
    covered = result[:, 0] == draws.MEAN_COLOR[0]
    assert torch.equal(covered, result[:, 2] == draws.MEAN_COLOR[2])
    assert torch.equal(covered, result.any(1))
    counts = covered.sum((1, 2))
    assert_frequencies([(counts > 0).sum(), (counts == 0).sum()], [0.75, 0.25])
    rows, columns = covered.any(2).sum(1), covered.any(1).sum(1)
    assert torch.equal(rows * columns, counts)  # rectangles
    # 4 to 8 pixels high: the centre's distance from the border decides.
    high = rows[counts > 0].bincount(minlength=9)[4:]
    assert_frequencies(high, [1, 2, 2, 2, 25])
    tops = covered.int().argmax(1).amax(1)[rows == 8]
    assert_frequencies(tops.bincount(minlength=25))


def test_cutout_has_the_mean_colour_of_cifar10(cifar10):
    assert tuple(round(255 * level) for level in cifar10.mean) == draws.MEAN_COLOR


@pytest.mark.parametrize(
    "options", [{}, {"scale": (0.2, 0.9), "ratio": (0.5, 1.0)}], ids=["usual", "often too large"]
)
def test_random_erasing_draws_as_torchvision(options):
    count = 6_000
    shape = Shape(count, 32, 32)
    settings = model("random_erasing", probability=1.0, **options)
    box = draws.draw_random_erasing(settings, shape, generator(0, "augment"))
    assert ((box.top >= 0) & (box.top + box.height <= 32)).all()
    assert ((box.left >= 0) & (box.left + box.width <= 32)).all()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = v2.RandomErasing(p=1.0, **options)
        image = torch.zeros(3, 32, 32, dtype=torch.uint8)
        params = [theirs.make_params([image]) for _ in range(count)]
    fits = [found["v"] is not None for found in params]
    for key, values in (("h", box.height), ("w", box.width), ("i", box.top), ("j", box.left)):
        drawn = [found[key] * fit for found, fit in zip(params, fits, strict=True)]
        assert_same_distribution(values * (box.height > 0), torch.tensor(drawn))


def test_random_erasing_has_its_probability():
    images = torch.full((8_000, 3, 32, 32), 9, dtype=torch.uint8)
    result = only(model("random_erasing", probability=0.3), images, generator(0, "augment"))
    touched = (result != 9).flatten(1).any(1)
    assert ((result == 0) | (result == 9)).all()
    assert_frequencies([touched.sum(), (~touched).sum()], [0.3, 0.7])


# ---- Chains of operations ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("auto_augment", {}),
        ("rand_augment", {}),
        ("rand_augment", {"num_ops": 3, "magnitude": 30}),
        ("trivial_augment", {}),
        ("color_jitter", {}),
        ("color_jitter", {"brightness": 1.5, "contrast": 0, "saturation": 1.0, "hue": 0.5}),
    ],
    ids=str,
)
def test_batch_equals_torchvision_image_by_image(name, options, batch):
    settings = model(name, **options)
    draw = augment.IMAGE_AUGMENTATIONS[type(settings)][0]
    for step in range(3):
        draws = draw(settings, Shape(128, 32, 32), generator(0, "augment", 0, step))
        result = only(settings, batch[0], generator(0, "augment", 0, step))
        for i, image in enumerate(batch[0]):
            chosen, values = draws.chosen[:, i].tolist(), draws.values[:, i].tolist()
            for place, value in zip(chosen, values, strict=True):
                image = REFERENCES[NAMES[place]](image, value)
            assert torch.equal(result[i], image), [NAMES[place] for place in chosen]


def parameters(name, magnitude):
    """Of torchvision's magnitude, for each sign, as its own code passes them to an operation."""
    if name in ("brightness", "saturation", "contrast", "sharpness"):
        return {1.0 + magnitude, 1.0 - magnitude}
    if name.startswith("translate"):
        return {float(int(magnitude)), -float(int(magnitude))}
    if name in ("posterize", "solarize"):
        return {magnitude}
    return {magnitude, -magnitude}


def space_of(theirs, *arguments):
    """torchvision's magnitudes by our names: operation -> list, or one number if it has none."""
    tables = theirs._augmentation_space(*arguments)
    return {name: tables[key][0].tolist() for name, key in PUBLISHED.items() if key in tables}


def pairs_drawn(draws):
    chosen, values = draws.chosen.flatten().tolist(), draws.values.flatten().tolist()
    return {(NAMES[place], value) for place, value in zip(chosen, values, strict=True)}


def test_auto_augment_has_the_published_policy():
    theirs = v1.AutoAugment(v1.AutoAugmentPolicy.CIFAR10)
    policy = [
        tuple((PUBLISHED[name], probability, bin) for name, probability, bin in pair)
        for pair in policies.CIFAR10_POLICY
    ]
    assert policy == theirs.policies
    space = space_of(theirs, 10, (32, 32))
    expected = {("identity", 0.0)}
    for name, probability, bin in itertools.chain(*policies.CIFAR10_POLICY):
        magnitude = 0.0 if bin is None else space[name][bin]
        if probability:
            expected |= {(name, value) for value in parameters(name, magnitude)}
    drawn = draws.draw_auto_augment(
        model("auto_augment"), Shape(50_000, 32, 32), generator(0, "augment")
    )
    drawn = {(n, 0.0 if n == "identity" else v) for n, v in pairs_drawn(drawn)}
    assert drawn == {(n, v + 0.0) for n, v in expected}


@pytest.mark.parametrize("position", [0, 1])
def test_auto_augment_frequencies(position):
    drawn = draws.draw_auto_augment(
        model("auto_augment"), Shape(50_000, 32, 32), generator(0, "augment")
    )
    shares = torch.zeros(len(NAMES), dtype=torch.float64)
    for pair in policies.CIFAR10_POLICY:
        name, probability, _ = pair[position]
        shares[NAMES.index(name)] += probability / 25
        shares[0] += (1 - probability) / 25
    assert_frequencies(drawn.chosen[position].bincount(minlength=len(NAMES)), shares)


def test_auto_augment_draws_signs_independently():
    drawn = draws.draw_auto_augment(
        model("auto_augment"), Shape(100_000, 32, 32), generator(0, "augment")
    )
    down = NAMES.index("translate_y")
    both = (drawn.chosen == down).all(0)  # only the 22nd pair has it twice
    signs = (drawn.values[:, both] > 0).long()
    assert_frequencies((2 * signs[0] + signs[1]).bincount(minlength=4))


def test_auto_augment_pair_acts_independently():
    drawn = draws.draw_auto_augment(
        model("auto_augment"), Shape(100_000, 32, 32), generator(0, "augment")
    )
    sharp, bright = NAMES.index("sharpness"), NAMES.index("brightness")
    first, second = drawn.chosen
    # RunPair 8, sharpness 0.3 then brightness 0.7, and pair 7 with its other first operation.
    seen = ((first == sharp) & (second == bright)).sum()
    assert_frequencies([seen, 100_000 - seen], [0.3 * 0.7 / 25, 1 - 0.3 * 0.7 / 25])


@pytest.mark.parametrize("magnitude", range(31))
def test_rand_augment_magnitudes_equal_torchvision(magnitude):
    theirs = v1.RandAugment(magnitude=magnitude)
    expected = set()
    for name, table in space_of(theirs, 31, (32, 32)).items():
        value = table[magnitude] if isinstance(table, list) else table
        expected |= {(name, parameter + 0.0) for parameter in parameters(name, float(value))}
    settings = model("rand_augment", num_ops=3, magnitude=magnitude)
    drawn = draws.draw_rand_augment(settings, Shape(3_000, 32, 32), generator(0, "augment"))
    assert {(n, v + 0.0) for n, v in pairs_drawn(drawn)} == expected


def test_rand_augment_frequencies():
    settings = model("rand_augment", num_ops=2)
    drawn = draws.draw_rand_augment(settings, Shape(20_000, 32, 32), generator(0, "augment"))
    shares = [name in PUBLISHED and name != "invert" for name in NAMES]
    for chosen, values in zip(drawn.chosen, drawn.values, strict=True):
        assert_frequencies(chosen.bincount(minlength=len(NAMES)), torch.tensor(shares))
        flip_mask = values[chosen == NAMES.index("rotate")]
        assert_frequencies([(flip_mask > 0).sum(), (flip_mask < 0).sum()])
    pairs = drawn.chosen[0] * len(NAMES) + drawn.chosen[1]
    both = torch.outer(torch.tensor(shares).double(), torch.tensor(shares).double())
    assert_frequencies(pairs.bincount(minlength=len(NAMES) ** 2), both.flatten())


def test_trivial_augment_magnitudes_are_uniform():
    expected = set()
    for name, table in space_of(v1.TrivialAugmentWide(), 31).items():
        for magnitude in table if isinstance(table, list) else [table]:
            expected |= {(name, value + 0.0) for value in parameters(name, float(magnitude))}
    drawn = draws.draw_trivial_augment(
        model("trivial_augment"), Shape(60_000, 32, 32), generator(0, "augment")
    )
    assert {(n, v + 0.0) for n, v in pairs_drawn(drawn)} == expected
    assert_frequencies(
        drawn.chosen[0].bincount(minlength=len(NAMES)),
        torch.tensor([name in PUBLISHED and name != "invert" for name in NAMES]),
    )
    flip_mask = drawn.values[0, drawn.chosen[0] == NAMES.index("rotate")]
    steps = (flip_mask / 4.5).round().long() + 30  # 135 degrees in 30 steps, zero with both signs
    assert_frequencies(steps.bincount(minlength=61), [1 + (step == 30) for step in range(61)])


@pytest.mark.slow
def test_color_jitter_factors_and_orders_are_uniform():
    settings = model("color_jitter", brightness=1.5, contrast=0.2, saturation=0.4, hue=0.1)
    shape = Shape(24_000, 32, 32)
    drawn = draws.draw_color_jitter(settings, shape, generator(0, "augment"))
    orders = list(itertools.permutations(range(4)))
    kinds = ["brightness", "contrast", "saturation", "hue"]
    code = torch.tensor([kinds.index(name) if name in kinds else -1 for name in NAMES])
    found = [orders.index(tuple(order)) for order in code[drawn.chosen].T.tolist()]
    assert_frequencies(torch.tensor(found).bincount(minlength=24))
    ends = {
        "brightness": (0, 2.5),
        "contrast": (0.8, 1.2),
        "saturation": (0.6, 1.4),
        "hue": (-0.1, 0.1),
    }
    for name, (low, high) in ends.items():
        values = drawn.values[drawn.chosen == NAMES.index(name)]
        assert len(values) == shape.count
        assert low <= values.min() and values.max() <= high + 1e-6
        assert_frequencies(torch.histc(values, 25, low, high + 1e-6))


# ---- Mixing --------------------------------------------------------------------------------


def share_of_own(targets, labels):
    """How much of its own label each image kept, where the one before has another label."""
    return targets.gather(1, labels[:, None])[:, 0]


@pytest.fixture(scope="module")
def neighbours():
    """Labels that differ from image to image, also around the end."""
    return torch.arange(128) % 8


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixed_targets_are_probabilities(name, alpha, batch, neighbours):
    images, targets = compose([model(name, alpha=alpha)])(
        batch[0], neighbours, generator(0, "augment")
    )
    assert targets.dtype == torch.float32 and targets.shape == (128, schema.NUM_CLASSES)
    assert torch.allclose(targets.sum(1), torch.ones(128))
    own = share_of_own(targets, neighbours)
    assert torch.allclose(own + share_of_own(targets, neighbours.roll(1)), torch.ones(128))
    assert not torch.equal(images, batch[0])


def test_mixup_blends_images_as_their_targets(batch, neighbours):
    images, targets = compose([model("mixup", probability=0.6)])(
        batch[0], neighbours, generator(0, "augment")
    )
    share = share_of_own(targets, neighbours)[:, None, None, None]
    expected = share * batch[0] + (1 - share) * batch[0].roll(1, 0)
    assert (images - expected).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_follow_beta(alpha):
    settings = model("mixup", alpha=alpha, probability=0.75)
    share = draws.draw_mixup(settings, Shape(20_000, 32, 32), generator(0, "augment"))
    kept = share == 1  # for a small alpha a drawn share may round to 1 as well
    if alpha >= 1:
        assert_frequencies([kept.sum(), (~kept).sum()], [0.25, 0.75])
        assert stats.kstest(share[~kept].numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.001
    everyone = draws.draw_mixup(
        model("mixup", alpha=alpha), Shape(20_000, 32, 32), generator(1, "augment")
    )
    assert stats.kstest(everyone.numpy(), stats.beta(alpha, alpha).cdf).pvalue > 0.001


def test_cutmix_area_equals_its_targets(neighbours):
    images = torch.arange(128, dtype=torch.uint8)[:, None, None, None].expand(128, 3, 32, 32)
    mixed, targets = compose([model("cutmix", probability=0.8)])(
        images, neighbours, generator(0, "augment")
    )
    pasted = mixed == images.roll(1, 0)
    assert torch.equal(pasted, mixed != images)
    rows, columns = pasted[:, 0].any(2).sum(1), pasted[:, 0].any(1).sum(1)
    assert torch.equal(rows * columns, pasted[:, 0].sum((1, 2)))  # rectangles
    assert torch.allclose(share_of_own(targets, neighbours), 1 - rows * columns / 1024)
    assert len(rows.unique()) > 10  # each image its own


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_boxes_follow_torchvision(alpha):
    count = 6_000
    settings = model("cutmix", alpha=alpha)
    box = draws.draw_cutmix(settings, Shape(count, 32, 32), generator(0, "augment"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = v2.CutMix(alpha=alpha, num_classes=10)
        image = torch.zeros(1, 3, 32, 32)
        boxes = torch.tensor([theirs.make_params([image])["box"] for _ in range(count)])
    left, top, right, bottom = boxes.unbind(1)
    assert_same_distribution(box.height, bottom - top)
    assert_same_distribution(box.width, right - left)
    assert_same_distribution(box.top[box.height > 0], top[bottom > top])
    assert_same_distribution(box.left[box.height > 0], left[bottom > top])
    assert_same_distribution(box.height * box.width, (bottom - top) * (right - left))


def test_mixup_then_cutmix_mixes_mixed_targets(batch, neighbours):
    images, targets = compose([model("mixup"), model("cutmix")])(
        batch[0], neighbours, generator(0, "augment")
    )
    stream = generator(0, "augment")
    first, blended = compose([model("mixup")])(batch[0], neighbours, stream)
    box = draws.draw_cutmix(model("cutmix"), Shape(128, 32, 32), stream)
    share = (1 - box.height * box.width / 1024)[:, None]
    assert torch.equal(images, image_ops.paste(first, first.roll(1, 0), *box))
    assert torch.allclose(targets, share * blended + (1 - share) * blended.roll(1, 0))
    assert torch.allclose(targets.sum(1), torch.ones(128))


def test_one_of_chooses_per_batch(batch, neighbours):
    images = batch[0][:16]
    labels = neighbours[:16]
    choices = [model("cutmix"), model("cutout", size=8)]
    step = compose([schema.OneOf(name="one_of", choices=choices)])
    mixed = 0
    for number in range(400):
        draws = generator(0, "augment", number)
        out, targets = step(images, labels, draws)
        draws = generator(0, "augment", number)
        chosen = int(torch.randint(2, (), generator=draws))
        mixed += chosen == 0
        expected, expected_targets = compose([choices[chosen]])(images, labels, draws)
        assert torch.equal(out, expected)
        assert targets.dtype == torch.float32
        if chosen == 1:
            assert torch.equal(targets, torch.nn.functional.one_hot(labels, 10).float())
        else:
            assert torch.equal(targets, expected_targets)
    assert 160 < mixed < 240  # four standard deviations


def test_augmentations_refuse_normalised_images():
    for name in ("rotation", "flip", "mixup"):
        with pytest.raises(ValueError, match="augmentations take uint8"):
            preview(name, torch.rand(2, 3, 32, 32))


def test_preview_takes_no_augmentation_as_a_variant_file_does():
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for nothing in ("", "[]", [], None):
        assert torch.equal(preview(nothing, images), images)
    assert torch.equal(preview("crop,flip,", images), preview("crop,flip", images))
    wide = [{"name": "crop", "padding": 8}, "flip"]
    assert torch.equal(preview("[{name: crop, padding: 8}, flip]", images), preview(wide, images))
    with pytest.raises(ConfigError, match="did you mean 'flip'"):
        preview("flop", images)


def test_describe_has_every_augmentation_with_its_defaults():
    described = augment.describe()
    assert list(described) == list(schema.tagged_models(schema.Augment))
    assert described["cutout"].endswith("Defaults: size 16, probability 1.0.")
    assert all(text[0].isupper() or text[0] == "`" for text in described.values())


@pytest.mark.parametrize("name", schema.tagged_models(schema.Augment))
def test_preview_takes_names_and_settings(name, digits):
    images = digits.train[0][:8]
    after = augment.preview(name, images, seed=1)
    assert after.shape == images.shape
    assert (after != images).any()
    assert (augment.preview([{"name": name}], images, seed=1) == after).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([{"name": "cutout", "sise": 8}], "augment.0: unknown key 'sise'; did you mean 'size'?"),
        ([{"name": "cutout", "size": 0}], "augment.0.size = 0: should be greater"),
        (["flip", "cutuot"], "augment.1.name = 'cutuot': should be one of 'crop', "),
        ([3], "augment.0 = 3: give its name, or a mapping of its settings with its name"),
    ],
)
def test_preview_refuses_a_mistake_in_one_line(wrong, message, digits):
    with pytest.raises(ConfigError) as caught:
        augment.preview(wrong, digits.train[0][:2])
    assert str(caught.value).startswith(f"preview: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["rotation", "crop", "auto_augment", "rand_augment", "mixup"])
def test_preview_is_the_same_whatever_the_default_dtype(name, digits):
    images = digits.train[0][:8]
    expected = preview(name, images)
    policies.policy_tables.cache_clear()
    with float64_by_default():
        assert preview(name, images).equal(expected)
    assert preview(name, images).equal(expected)
