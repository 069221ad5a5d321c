"""Optimizers, Lookahead, SAM and averages of the weights against their definitions."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from resnetlib import load_experiment, pickles
from resnetlib.optim import (
    Average,
    GradientScaler,
    Lookahead,
    build_optimizer,
    sharpness_aware,
)
from resnetlib.runs.checkpoint import to_bytes
from resnetlib.schedule import learning_rate
from resnetlib.schema import DEFAULT_LR


def test_lookahead_synchronises_after_steps_1_6_11():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = Lookahead(torch.optim.SGD([weight], lr=1.0), k=5, alpha=0.5)
    fast, slow = 0.0, None
    for step in range(1, 14):
        weight.grad = torch.ones(1)
        optimizer.step()
        fast -= 1.0
        if step in (1, 6, 11):
            slow = fast if slow is None else slow + 0.5 * (fast - slow)
            fast = slow
        assert weight.item() == fast, f"after step {step}"


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adam": (torch.optim.Adam, {"betas": (0.8, 0.99), "eps": 1e-6}),
    "adamw": (torch.optim.AdamW, {"betas": (0.8, 0.99)}),
    "radam": (torch.optim.RAdam, {"betas": (0.8, 0.99), "decoupled_weight_decay": True}),
    "nadam": (torch.optim.NAdam, {"momentum_decay": 0.01, "decoupled_weight_decay": True}),
    "adamax": (torch.optim.Adamax, {"betas": (0.8, 0.99)}),
    "adadelta": (torch.optim.Adadelta, {"rho": 0.95, "eps": 1e-5}),
    "adagrad": (torch.optim.Adagrad, {"lr_decay": 0.01, "initial_accumulator_value": 0.1}),
    "rmsprop": (torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.9, "centered": True}),
}


@pytest.mark.parametrize("settings", ["own", "default"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_equals_torchs_across_a_stop(name, settings):
    """Step by step under a falling rate; in the middle the state goes through a checkpoint."""
    kind, own = OPTIMIZERS[name]
    own = {"weight_decay": 0.01} | (own if settings == "own" else {})
    rate = DEFAULT_LR[name]
    optimizer_settings = {"name": name, "lr": rate} | own
    recipe = load_experiment("lite", optimizer=optimizer_settings, epochs=20).recipe
    torch.manual_seed(0)
    ours, theirs = nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)
    theirs.load_state_dict(ours.state_dict())
    optimizer = build_optimizer(ours.parameters(), recipe)
    expected = kind(theirs.parameters(), lr=rate, **own)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(expected, 20)
    images = torch.randn(8, 2, 6, 6)
    for step in range(20):
        if step == 9:
            state = pickles.unpickle_tensors(to_bytes(optimizer.state_dict()))
            optimizer = build_optimizer(ours.parameters(), recipe)
            optimizer.load_state_dict(state)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, step, 1)
        for model in (ours, theirs):
            model.zero_grad()
            model(images).square().mean().backward()
        optimizer.step()
        expected.step()
        scheduler.step()
        for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7)


def test_optimizers_are_all_compared():
    assert OPTIMIZERS.keys() == DEFAULT_LR.keys()


@pytest.mark.parametrize(
    ("variant", "kind", "settings"),
    [
        ("lite", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 5e-4, "nesterov": False}),
        ("improved_adam", torch.optim.Adam, {"betas": (0.9, 0.999), "weight_decay": 0.0}),
        ("adamw", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.001}),
    ],
)
def test_build_optimizer_takes_the_recipes_settings(variant, kind, settings):
    weight = torch.nn.Parameter(torch.zeros(3))
    optimizer = build_optimizer([weight], load_experiment(variant).recipe)
    assert type(optimizer) is kind
    assert settings.items() <= optimizer.param_groups[0].items()


def test_build_optimizer_of_se_is_lookahead_around_sgd():
    optimizer = build_optimizer([torch.nn.Parameter(torch.zeros(3))], load_experiment("se").recipe)
    assert isinstance(optimizer, Lookahead)
    assert (optimizer.k, optimizer.alpha) == (5, 0.5)
    assert type(optimizer.optimizer) is torch.optim.SGD


def test_loaded_state_takes_the_memory_format():
    recipe = load_experiment("improved_sgd").recipe
    before, after = nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3).to(memory_format=torch.channels_last)
    after.load_state_dict(before.state_dict())
    optimizers = [build_optimizer(network.parameters(), recipe) for network in (before, after)]
    for parameter in before.parameters():
        parameter.grad = torch.randn(parameter.shape)
    optimizers[0].step()
    after.load_state_dict(before.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for mine, other in zip(after.parameters(), before.parameters(), strict=True):
        mine.grad = torch.empty_like(mine).copy_(other.grad)
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(after.weight, before.weight)


KINDS = [
    partial(torch.optim.SGD, momentum=0.9, fused=True),
    partial(torch.optim.SGD, fused=True),
    partial(torch.optim.Adam, fused=True),
    partial(torch.optim.AdamW, fused=True),
    torch.optim.RAdam,
    torch.optim.NAdam,
    torch.optim.Adamax,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
]
FUSED = KINDS[:4]
GRADIENTS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


def scaled_steps(kind, skipped, k=None):
    """Weight, optimizer and scaler after each of six steps, of which some are skipped."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = kind([weight], lr=0.1, weight_decay=0.01)
    optimizer = Lookahead(optimizer, k, 0.5) if k else optimizer
    scaler = GradientScaler(torch.device("cpu"), optimizer, enabled=True)
    for step, gradient in enumerate(GRADIENTS):
        weight.grad = scaler.scale(gradient * (math.inf if step in skipped else 1))
        scaler.unscale_(optimizer)
        norm = scaler.step(optimizer, weight.grad.norm())
        scaler.update()
        assert (norm == 0) == (step in skipped)
        yield weight, optimizer, scaler


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: getattr(kind, "func", kind).__name__)
@pytest.mark.parametrize("skipped", [0, 2])
def test_a_skipped_step_leaves_weights_and_moments(kind, skipped):
    before = torch.ones(3), {}
    for step, (weight, optimizer, _) in enumerate(scaled_steps(kind, [skipped])):
        moments = {
            name: value.clone()
            for name, value in optimizer.state[weight].items()
            if torch.is_tensor(value) and value.ndim
        }
        if step == skipped:
            assert torch.equal(weight, before[0])
            for name, value in moments.items():
                assert torch.equal(value, before[1].get(name, torch.zeros(3)))
        else:
            assert not torch.equal(weight, before[0])
            assert weight.isfinite().all()
        before = weight.detach().clone(), moments


@pytest.mark.parametrize("kind", FUSED, ids=lambda kind: kind.func.__name__)
def test_a_skipped_step_is_as_if_it_had_not_been(kind, monkeypatch):
    *_, (weight, _, _) = scaled_steps(kind, [0, 3])
    kept = nn.Parameter(torch.ones(3))
    optimizer = kind([kept], lr=0.1, weight_decay=0.01)
    for gradient in GRADIENTS[[1, 2, 4, 5]]:
        kept.grad = gradient.clone()
        optimizer.step()
    assert torch.equal(weight, kept)


def test_lookahead_counts_a_skipped_step():
    """The first slow weights are those that the skipped step left."""
    steps = scaled_steps(FUSED[0], [0], k=2)
    _, optimizer, _ = next(steps)
    assert torch.equal(optimizer.slow[0], torch.ones(3))
    *_, (weight, optimizer, _) = steps
    assert optimizer.steps == 6
    assert weight.isfinite().all()


def test_gradient_scaler_follows_the_skips():
    states = [
        (scaler.get_scale(), int(scaler.skipped))
        for *_, scaler in scaled_steps(FUSED[0], [0, 1, 4])
    ]
    assert [scale / 2**16 for scale, _ in states] == [0.5, 0.25, 0.25, 0.25, 0.125, 0.125]
    assert [skipped for _, skipped in states] == [1, 2, 0, 0, 1, 0]


def test_average_follows_its_formula():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    average = Average(model, decay=0.9)
    expected = None
    for update in range(40):
        with torch.no_grad():
            for tensor in (*model.parameters(), model[1].running_mean):
                tensor.add_(torch.full_like(tensor, 0.1 * (update % 3)))
            model[1].num_batches_tracked += 1
        average.update_parameters(model)
        current = torch.cat([model[0].weight.detach().flatten(), model[1].running_mean])
        kept = min(0.9, (1 + update) / (10 + update))
        expected = current if expected is None else kept * expected + (1 - kept) * current
    module = average.module
    found = torch.cat([module[0].weight.detach().flatten(), module[1].running_mean])
    torch.testing.assert_close(found, expected)
    assert module[1].num_batches_tracked == 40


def test_sam_leaves_only_the_gradient_of_the_worst_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    images, targets = torch.randn(8, 4), torch.randn(8, 3)

    def gradients(images, targets):
        model.zero_grad()
        loss = ((model(images) - targets) ** 2).mean()
        loss.backward()
        return loss.item()

    plain = copy.deepcopy(model)
    reported = sharpness_aware(gradients, model, rho=0.1)(images, targets)
    assert reported == pytest.approx(((plain(images) - targets) ** 2).mean().item())
    for mine, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)  # one forward pass has moved the statistics of both

    by_hand = copy.deepcopy(plain)
    ((by_hand(images) - targets) ** 2).mean().backward()
    length = torch.cat([p.grad.flatten() for p in by_hand.parameters()]).norm()
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter += 0.1 * parameter.grad / length
    by_hand.zero_grad()
    ((by_hand(images) - targets) ** 2).mean().backward()
    for mine, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("decay_on", ["all", "weights"])
def test_bias_lr_factor_applies_to_biases_and_batch_norm(decay_on):
    settings = {"bias_lr_factor": 8, "decay_on": decay_on, "weight_decay": 0.1}
    recipe = load_experiment("lite", **settings).recipe
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    optimizer = build_optimizer(model.parameters(), recipe)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    for parameter in model.parameters():
        group = of[id(parameter)]
        assert group["lr_factor"] == (1 if parameter.ndim > 1 else 8)
        assert group["weight_decay"] == (0.1 if parameter.ndim > 1 or decay_on == "all" else 0)


def test_decay_on_weights_spares_biases_and_batch_norm():
    """With gradients of zero a step is decay and nothing else."""
    settings = {"weight_decay": 0.1, "lr": 0.5}
    for decay_on, decayed in (("all", True), ("weights", False)):
        recipe = load_experiment("lite", decay_on=decay_on, **settings).recipe
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        optimizer = build_optimizer(model.parameters(), recipe)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        for old, new in zip(before, model.parameters(), strict=True):
            shrinks = decayed or old.ndim > 1
            torch.testing.assert_close(new, old * 0.95 if shrinks else old)
