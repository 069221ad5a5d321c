"""Trainer: every key acts, the test set stays out, and its state is complete."""

import contextlib
import copy
import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from conftest import first_images, float64_by_default, weights_of

from resnetlib import model_summary, pickles, train
from resnetlib import training as training_module
from resnetlib.blocks import Whitening
from resnetlib.config import apply_overrides, override_paths
from resnetlib.device import DeviceSettings
from resnetlib.errors import Diverged
from resnetlib.evaluation import normalize
from resnetlib.rng import derive_seed, generator
from resnetlib.runs import checkpoint
from resnetlib.schema import DEFAULT_LR, Clip
from resnetlib.training import WHITENING_IMAGES, Trainer, gradient_clipping, preview_batch

pytestmark = pytest.mark.usefixtures("quick_figures")


# Every key ---------------------------------------------------------------------------------------

# For each key of a recipe another value, on top of settings in which the key can act.
SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4}
ADAM = {"name": "adam", "lr": 0.01, "weight_decay": 1e-4}
RESTARTS = {"name": "cosine", "period_epochs": 1, "after_period": "restart", "interval": "step"}
# No epoch is an improvement by nine tenths: the rate drops after the second and each later one.
PLATEAU = {"name": "plateau", "factor": 0.5, "patience": 0, "threshold": 0.9}
HALVES = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
COSINE = {"name": "cosine", "warmup_epochs": 1, "hold_epochs": 0.5, "period_epochs": 2}
KEYS = {
    "epochs": ({"epochs": 2}, 3),
    "batch_size": ({}, 32),
    "optimizer.name": ({"optimizer": ADAM}, "adamw"),
    "optimizer.lr": ({}, 0.05),
    "optimizer.momentum": ({}, 0.5),
    "optimizer.nesterov": ({}, True),
    "optimizer.weight_decay": ({}, 0.01),
    "optimizer.decay_on": (
        {"optimizer": {"name": "sgd", "lr": 0.1, "weight_decay": 0.1}},
        "weights",
    ),
    "optimizer.bias_lr_factor": ({}, 8),
    "optimizer.betas": ({"optimizer": ADAM}, [0.8, 0.9]),
    "optimizer.eps": ({"optimizer": ADAM}, 1e-3),
    "optimizer.decoupled_weight_decay": (
        {"optimizer": {"name": "radam", "lr": 0.01, "weight_decay": 0.1}},
        True,
    ),
    "optimizer.momentum_decay": ({"optimizer": {"name": "nadam", "lr": 0.01}}, 0.5),
    "optimizer.rho": ({"optimizer": {"name": "adadelta", "lr": 1.0}}, 0.5),
    "optimizer.lr_decay": ({"optimizer": {"name": "adagrad", "lr": 0.01}}, 0.1),
    "optimizer.initial_accumulator_value": ({"optimizer": {"name": "adagrad", "lr": 0.01}}, 0.1),
    "optimizer.alpha": ({"optimizer": {"name": "rmsprop", "lr": 0.01}}, 0.5),
    "optimizer.centered": ({"optimizer": {"name": "rmsprop", "lr": 0.01}}, True),
    "schedule.name": ({"schedule": {"name": "cosine"}}, {"name": "constant"}),
    "schedule.interval": ({}, "step"),
    "schedule.warmup_epochs": ({}, 1),
    "schedule.warmup_start": ({"schedule": COSINE}, 0.5),
    "schedule.hold_epochs": ({}, 1),
    "schedule.period_epochs": ({}, 3),
    "schedule.min_lr": ({}, 0.05),
    "schedule.milestones": ({"epochs": 3, "schedule": {"name": "step", "milestones": [1]}}, [2]),
    "schedule.gamma": ({"schedule": {"name": "step", "milestones": [1]}}, 0.5),
    "schedule.after_period": (
        {"schedule": {"name": "cosine", "period_epochs": 1, "min_lr": 0.01}},
        "restart",
    ),
    "schedule.period_factor": ({"epochs": 3, "schedule": RESTARTS}, 2),
    "schedule.every_epochs": ({"epochs": 3, "schedule": {"name": "exponential", "gamma": 0.5}}, 2),
    "schedule.factor": ({"epochs": 3, "schedule": PLATEAU}, 0.1),
    "schedule.patience": ({"epochs": 3, "schedule": PLATEAU}, 1),
    "schedule.threshold": ({"epochs": 3, "schedule": PLATEAU}, 0.0),
    "schedule.cooldown": ({"epochs": 4, "schedule": PLATEAU}, 1),
    "schedule.anneal": ({"schedule": {"name": "one_cycle"}}, "linear"),
    "schedule.pct_start": ({"schedule": {"name": "one_cycle"}}, 0.5),
    "schedule.div_factor": ({"schedule": {"name": "one_cycle"}}, 5),
    "schedule.final_div_factor": ({"schedule": {"name": "one_cycle"}}, 2),
    "lookahead": ({}, {"k": 5, "alpha": 0.5}),
    "lookahead.k": ({"lookahead": {"k": 5, "alpha": 0.5}}, 3),
    "lookahead.alpha": ({"lookahead": {"k": 5, "alpha": 0.5}}, 0.8),
    "clip": ({}, {"by": "norm", "limit": 0.1}),
    "clip.by": ({"clip": {"by": "value", "limit": 0.01}}, "norm"),
    "clip.limit": ({"clip": {"by": "value", "limit": 0.01}}, 0.001),
    "label_smoothing": ({}, 0.1),
    "sam": ({}, {"rho": 0.05}),
    "sam.rho": ({"sam": {"rho": 0.05}}, 0.5),
    "ema": ({}, {"decay": 0.9}),
    "ema.decay": ({"ema": {"decay": 0.2}}, 0.1),  # few steps: a higher one is not reached
    "augment": ({}, ["crop"]),
    "normalize": ({}, "none"),
    "normalize.mean": ({"normalize": HALVES}, [0.4, 0.5, 0.5]),
    "normalize.std": ({"normalize": HALVES}, [0.4, 0.5, 0.5]),
    "holdout": ({}, 100),
}
# Below, by their own keys, and in test_schedule.py.
TESTED_OTHERWISE = {"select", "optimizer", "schedule", "schedule.metric", "schedule.threshold_mode"}


def trained_weights(experiment, dataset):
    training = Trainer(experiment, dataset)
    for _ in range(experiment.recipe.epochs):
        training.history or training.record_epoch(training.evaluate_untrained())
        training.record_epoch(training.train_epoch(lambda: None))
    return torch.cat(
        [weights.detach().flatten() for weights in training.evaluated_model.parameters()]
    )


@pytest.fixture(scope="module")
def base_weights(few_digits):
    """The weights of an experiment that many tests change, trained once."""
    trained = {}

    def weights(experiment):
        if experiment.digest not in trained:
            trained[experiment.digest] = trained_weights(experiment, few_digits)
        return trained[experiment.digest]

    return weights


@pytest.mark.slow
@pytest.mark.parametrize("key", KEYS)
def test_every_recipe_key_changes_the_weights(tiny, few_digits, base_weights, key):
    setting, value = KEYS[key]
    base = tiny(**{"epochs": 2} | setting)
    branch = key.removesuffix(".name") if isinstance(value, dict) else key
    changed = apply_overrides(base, {f"recipe.{branch}": value})
    assert changed != base
    assert not torch.equal(base_weights(base), trained_weights(changed, few_digits))


def test_recipe_keys_are_all_listed(tiny):
    kinds = [
        {},
        {"optimizer": ADAM, "lookahead": {"k": 5}, "clip": {"by": "value", "limit": 1}},
        {"sam": {"rho": 0.05}, "ema": {"decay": 0.9}},
        {"epochs": 2, "schedule": {"name": "step", "milestones": [1]}},
        {"schedule": {"name": "one_cycle"}},
        {"schedule": {"name": "exponential", "gamma": 0.5}},
        {"schedule": PLATEAU},
        {"normalize": HALVES},
        *({"optimizer": {"name": name}} for name in DEFAULT_LR),
    ]
    paths = set().union(*(override_paths(tiny(**kind)) for kind in kinds))
    recipe = {path.removeprefix("recipe.") for path in paths if path.startswith("recipe.")}
    assert recipe == set(KEYS) | TESTED_OTHERWISE


@pytest.mark.parametrize("normalize", ["per_image_std", "imagenet"])
def test_normalize_changes_the_weights(tiny, few_digits, normalize):
    first = trained_weights(tiny(), few_digits)
    second = trained_weights(tiny(normalize=normalize), few_digits)
    assert not torch.equal(first, second)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", DEFAULT_LR)
def test_trainer_resumes_each_optimizer_and_plateau(tiny, few_digits, optimizer):
    """Stopped within the epoch that has the first drop; the state goes through a checkpoint."""
    schedule = PLATEAU | {"metric": "holdout_loss"}
    settings = {"optimizer": {"name": optimizer}, "lr": None, "schedule": schedule}
    experiment = tiny(epochs=3, holdout=100, augment="crop", **settings)
    whole, stopped = (Trainer(experiment, few_digits) for _ in range(2))

    def train_on(training, stop=None):
        def after_step():
            if (training.epochs_done, training.progress.steps) == stop:
                raise KeyboardInterrupt

        training.history or training.record_epoch(training.evaluate_untrained())
        while training.epochs_done < 3:
            training.record_epoch(training.train_epoch(after_step))

    train_on(whole)
    with pytest.raises(KeyboardInterrupt):
        train_on(stopped, (2, 1))
    state = pickles.unpickle_tensors(checkpoint.to_bytes(stopped.state()))
    stopped = Trainer(experiment, few_digits)
    stopped.load_state(state)
    train_on(stopped)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(stopped.model.state_dict()[name], value), name
    lr = DEFAULT_LR[optimizer]
    for training in (whole, stopped):
        assert training.table()["lr"].tolist() == [0, lr, lr, lr / 2]


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["stem", "block"])
def test_dropout_is_a_function_of_the_seed(tiny, few_digits, placement):
    settings = {"block": "dropout", "dropout": 0.4, "placement": placement, "widths": [16]}
    first, again = (trained_weights(tiny(**settings), few_digits) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, trained_weights(tiny(**settings, seed=1), few_digits))


# What is trained on ------------------------------------------------------------------------------


@pytest.mark.slow
def test_train_ignores_the_test_set(tiny, digits, monkeypatch):
    images, labels = digits.test
    noise = torch.randint(256, images.shape, generator=generator(0, "noise")).to(torch.uint8)
    other = dataclasses.replace(digits, test=(noise, labels.flip(0)))
    weights = []
    for dataset in (digits, other):
        monkeypatch.setattr(
            "resnetlib.runs.lifecycle.load_dataset", lambda name, root, d=dataset: d
        )
        weights.append(weights_of(train(tiny(epochs=2, fresh=True))))
    assert weights[0] == weights[1]


def test_trainer_excludes_held_out_images(tiny, digits):
    training = Trainer(tiny(holdout=300), digits)
    rows = {image.numpy().tobytes() for image in training.train_split[0]}
    held_out = {image.numpy().tobytes() for image in training.eval_splits["holdout"][0]}
    test = {image.numpy().tobytes() for image in digits.test[0]}
    assert len(training.train_split[1]) == 1047
    assert not rows & held_out
    assert not rows & test
    assert torch.equal(training.eval_splits["test"][0], digits.test[0])


def test_untrained_network_is_evaluated_in_float32(tiny, few_digits):
    """In float16 the activations of deep ones would be infinite."""
    rows = []
    for precision in ("float32", "bfloat16"):
        row = Trainer(tiny(precision=precision), few_digits).evaluate_untrained()
        rows.append({name: value for name, value in row.items() if name != "seconds"})
    assert rows[0] == rows[1]


def test_whitening_stem_is_fitted_to_training_images_only(tiny, digits):
    training = Trainer(tiny(stem="whitening", holdout=100), digits)
    images = normalize(training.train_split[0][:WHITENING_IMAGES], training.mean, training.std)
    stem = Whitening()
    stem.fit(images)
    assert torch.equal(training.model.stem[0].weight, stem.weight)


@pytest.mark.slow
def test_train_epoch_takes_every_image_once(tiny, digits):
    training = Trainer(tiny(batch_size=128), digits)
    training.record_epoch(training.evaluate_untrained())
    seen = []
    train_step = training.train_step

    def spying(images, labels, *rest):
        seen.append(images.clone())
        return train_step(images, labels, *rest)

    training.train_step = spying
    training.train_epoch(lambda: None)
    assert [len(batch) for batch in seen] == [128] * 10 + [67]
    assert sorted(map(bytes, torch.cat(seen).numpy())) == sorted(
        map(bytes, digits.train[0].numpy())
    )


ALTERNATING = {"name": "flip", "alternate": True}


@pytest.mark.slow
def test_alternating_flip_mirrors_every_other_epoch(tiny, digits):
    training = Trainer(tiny(augment=[ALTERNATING]), digits)
    training.record_epoch(training.evaluate_untrained())
    seen = []
    augment = training.augment

    def spying(*given):
        images, targets = augment(*given)
        seen.extend(map(bytes, images.numpy()))
        return images, targets

    training.augment = spying
    for _ in range(3):
        training.record_epoch(training.train_epoch(lambda: None))
    count = len(digits.train[1])
    first, second, third = (sorted(seen[i * count : (i + 1) * count]) for i in range(3))
    original, mirrored = (
        list(map(bytes, x.numpy())) for x in (digits.train[0], digits.train[0].flip(3))
    )
    assert sorted(first + second) == sorted(original + mirrored)
    assert third == first != second
    assert 0.4 < sum(image in set(original) for image in first) / count < 0.6


def test_preview_batch_is_the_first_batch(tiny, digits, monkeypatch):
    experiment = tiny(augment=["crop", ALTERNATING], holdout=100)
    training = Trainer(experiment, digits)
    training.record_epoch(training.evaluate_untrained())
    seen = []
    monkeypatch.setattr(
        "resnetlib.training.normalize", lambda images, *_: seen.append(images.clone()) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        training.train_epoch(lambda: None)
    images, names = preview_batch(experiment, digits, 16)
    assert torch.equal(images, seen[0][:16])
    assert len(names) == 16


@pytest.mark.slow
def test_evaluation_between_epochs_changes_no_weight(tiny, digits):
    plain = trained_weights(tiny(epochs=2), digits)
    training = Trainer(tiny(epochs=2), digits)
    training.record_epoch(training.evaluate_untrained())
    for _ in range(2):
        training.record_epoch(training.train_epoch(lambda: None))
        training.evaluate(*digits.test)
        model_summary(training.model)
        torch.rand(5)
    disturbed = torch.cat([parameter.detach().flatten() for parameter in training.parameters])
    assert torch.equal(plain, disturbed)


def test_divergence_is_looked_for_every_few_steps_on_a_gpu(tiny, digits, monkeypatch):
    """There each look waits for the device."""
    monkeypatch.setitem(training_module.FINITE_CHECK_STEPS, "cpu", 4)
    training = Trainer(tiny(lr=1e20), digits)
    training.record_epoch(training.evaluate_untrained())
    with pytest.raises(Diverged, match=r"step [48] of 11"):
        training.train_epoch(lambda: None)


def test_clipping_by_norm_is_of_all_gradients_together():
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1))]
    parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
    assert gradient_clipping(Clip(by="norm", limit=1))(parameters).item() == 5
    clipped = torch.cat([parameter.grad for parameter in parameters])
    assert clipped.tolist() == pytest.approx([0.6, 0, 0.8], abs=1e-5)


def test_clipping_by_value_makes_an_infinite_gradient_finite():
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([math.inf, 0.0])
    clip = gradient_clipping(Clip(by="value", limit=0.5))
    assert clip([parameter]).item() == 0.5
    assert gradient_clipping(None)([parameter]).item() == 0.5
    parameter.grad = torch.tensor([math.inf, 0.0])
    assert gradient_clipping(None)([parameter]).item() == math.inf
    assert gradient_clipping(Clip(by="norm", limit=1))([parameter]).item() == math.inf


# Float16 -----------------------------------------------------------------------------------------

EVERYTHING = {
    "batch_size": 64,
    "lookahead": {"k": 2},
    "sam": {"rho": 0.05},
    "ema": {"decay": 0.9},
    "clip": {"by": "norm", "limit": 0.1},
}


@pytest.fixture
def exact_float16(monkeypatch):
    """Float16 that computes in float32, so that only the scaling of the loss is left of it."""
    monkeypatch.setattr(DeviceSettings, "autocast", lambda settings: contextlib.nullcontext())


def float16_training(tiny, dataset, overflows=(), **overrides):
    """A Trainer in which the gradients of these steps, counted over all epochs, overflow."""
    training = Trainer(tiny(precision="float16", epochs=9, **overrides), dataset)
    scale = training.scaler.scale

    def scale_loss(loss):
        step = max(training.epochs_done, 0) * training.steps_per_epoch + training.progress.steps
        return scale(loss) * (math.inf if step in overflows else 1)

    training.scaler.scale = scale_loss
    return training


def continued(training, epochs=1):
    training.history or training.record_epoch(training.evaluate_untrained())
    for _ in range(epochs):
        training.record_epoch(training.train_epoch(lambda: None))
    return training


def weights_and_history(training):
    weights = [value.detach() for value in training.evaluated_model.state_dict().values()]
    return [value.tolist() for value in weights], training.table().drop(columns="seconds").to_csv()


def test_step_trains_on_smoothed_mixed_targets(tiny, few_digits):
    """Its totals, too, are those of the batch: half a one here."""
    training = Trainer(tiny(augment="mixup", label_smoothing=0.1, precision="float32"), few_digits)
    images, labels = (part[:64] for part in training.train_split)
    mixed, targets = training.augment(images, labels, generator(0, "augment", 1, 0))
    model = copy.deepcopy(training.model).train()
    logits = model(normalize(mixed, training.mean, training.std))
    expected = F.cross_entropy(logits, 0.9 * targets + 0.01, reduction="sum")
    loss, correct = training.train_step(images, labels, labels > 4, 1, 0).tolist()
    assert loss == pytest.approx(expected.item(), rel=1e-4)
    assert correct == (logits.argmax(1) == targets.argmax(1)).sum()
    hard = F.cross_entropy(logits, 0.9 * F.one_hot(labels, 10) + 0.01, reduction="sum")
    assert abs(hard.item() / expected.item() - 1) > 1e-3  # so that the first assertion can fail


def test_draws_do_not_depend_on_the_default_type(tiny, tmp_path):
    experiment = tiny(augment="flip,rotation,mixup", epochs=1)
    plain = train(experiment, output=tmp_path / "plain")
    with float64_by_default():
        other = train(experiment, output=tmp_path / "other")
        assert torch.get_default_dtype() == torch.float64
    assert weights_of(other) == weights_of(plain)


def test_every_step_has_its_own_draws(tiny, few_digits, monkeypatch):
    asked, dropout = [], []

    def noted(seed, stream, epoch=0, step=0):
        asked.append((stream, epoch, step))
        return generator(seed, stream, epoch, step)

    monkeypatch.setattr(training_module, "generator", noted)
    training = Trainer(tiny(epochs=2, augment="crop"), few_digits)
    training.seed_dropout = dropout.append
    continued(training, 2)
    places = [(epoch, step) for epoch in (1, 2) for step in range(3)]
    assert [tuple(place) for stream, *place in asked if stream == "augment"] == places
    assert [place for stream, *place in asked if stream == "order"] == [[1, 0], [2, 0]]
    assert dropout == [derive_seed(0, "dropout", *place) for place in places]


@pytest.mark.slow
def test_scaling_of_the_loss_does_not_change_the_result(tiny, few_digits, exact_float16):
    """Clipping and SAM see the gradients themselves: a scale is a power of two, hence exact."""
    plain = Trainer(tiny(precision="float32", epochs=9, **EVERYTHING), few_digits)
    scaled = float16_training(tiny, few_digits, **EVERYTHING)
    assert weights_and_history(continued(scaled)) == weights_and_history(continued(plain))


@pytest.mark.slow
def test_skipped_steps_change_the_scale_and_resume_exactly(tiny, few_digits, exact_float16):
    """The last step of the first epoch and the first of the second are skipped, too."""
    settings = EVERYTHING | {"optimizer": ADAM}
    overflows = {0, 4, 5}
    whole = continued(float16_training(tiny, few_digits, overflows, **settings), 2)
    first = continued(float16_training(tiny, few_digits, overflows, **settings), 1)
    state = pickles.unpickle_tensors(checkpoint.to_bytes(first.state()))
    assert state["scaler"]["scale"] == 2**14  # five steps an epoch, two of them skipped
    assert state["scaler"]["skipped"] == 1
    second = float16_training(tiny, few_digits, overflows, **settings)
    second.load_state(state)
    assert weights_and_history(continued(second)) == weights_and_history(whole)
    assert second.scaler.state_dict() == whole.scaler.state_dict()
    assert whole.scaler.get_scale() == 2**13


@pytest.mark.slow
def test_divergence_is_twenty_skipped_steps_in_a_row(tiny, few_digits, exact_float16):
    close = float16_training(tiny, few_digits, set(range(1, 20)), batch_size=64)
    continued(close, 5)  # 19 are not
    diverging = float16_training(tiny, few_digits, set(range(3, 99)), batch_size=64)
    message = (
        r"20 steps in a row had float16 gradients that are not finite in epoch 5, step 3 of 5, "
        r".*`precision: float32`"
    )
    with pytest.raises(Diverged, match=message):
        continued(diverging, 9)


def test_divergence_between_two_looks_is_noticed(tiny, few_digits, exact_float16, monkeypatch):
    """On a GPU twenty skipped steps may be over when the next look is taken."""
    monkeypatch.setitem(training_module.FINITE_CHECK_STEPS, "cpu", 48)
    training = float16_training(tiny, few_digits, set(range(20)), batch_size=10)
    with pytest.raises(Diverged, match="step 32 of 32"):
        continued(training)


def test_float16_computes_the_network_in_float16(tiny, few_digits):
    """On four images: a CPU has no fast float16."""
    few = first_images(few_digits, 4)
    training = float16_training(tiny, few, batch_size=4)
    kinds = []
    training.model.stem[0].register_forward_hook(lambda *given: kinds.append(given[2].dtype))
    images, labels = training.train_split
    before = training.parameters[0].detach().clone()
    totals = training.train_step(images, labels, labels > 4, 1, 0)
    assert kinds == [torch.float16]
    assert totals.isfinite().all()
    assert not torch.equal(training.parameters[0], before)
    assert training.device_settings.describe()["precision"] == "float16"


def test_resume_in_another_precision_starts_the_scale_anew(tiny, few_digits, exact_float16):
    """`allow_inexact_resume` on a T4 of a run that began where bfloat16 or float32 was chosen."""
    began = continued(Trainer(tiny(precision="float32", epochs=9), few_digits))
    for scaler in ({"scaler": {}}, {}):  # an older checkpoint has none
        state = {name: value for name, value in began.state().items() if name != "scaler"}
        training = float16_training(tiny, few_digits)
        training.load_state(state | scaler)
        assert math.isfinite(continued(training).history[-1]["train_loss"])


@pytest.mark.slow
def test_row_0_evaluates_the_untrained_network(tiny, cifar10):
    experiment = tiny(dataset="cifar10", holdout=100, precision="float32")
    training = Trainer(experiment, cifar10)
    row = training.evaluate_untrained()
    assert not training.evaluation_seconds  # which counts what falls into the epochs
    splits = {"train": training.train_split} | training.eval_splits
    assert {name: len(labels) for name, (_, labels) in splits.items()} == {
        "train": 49_900,
        "holdout": 100,
        "test": 10_000,
    }
    for name, (images, labels) in splits.items():
        found = training.evaluate(images[:2000], labels[:2000])
        assert row[f"{name}_loss"] == pytest.approx(found.loss, rel=1e-6)
        assert row[f"{name}_accuracy"] == found.accuracy
