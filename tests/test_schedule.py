"""Learning rates against torch's schedulers and the published ones."""

import math

import pytest
import torch

from resnetlib import load_experiment
from resnetlib.schedule import learning_rate

STEPS = 7  # per epoch


def recipe_with(schedule, epochs=10, lr=0.1):
    return load_experiment("lite", epochs=epochs, lr=lr, schedule=schedule).recipe


def torch_rates(make, steps, lr=0.1):
    """The rates that a scheduler of torch gives, one for each time it is stepped."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def by_epoch(recipe):
    return [learning_rate(recipe, epoch * STEPS, STEPS) for epoch in range(recipe.epochs)]


def by_step(recipe):
    return [learning_rate(recipe, step, STEPS) for step in range(recipe.epochs * STEPS)]


def test_learning_rate_of_adamw_is_the_published_one():
    recipe = load_experiment("adamw").recipe
    expected = [0.004, 0.006, 0.008, 0.010, 0.010]
    expected += [1e-5 + 0.00999 * (1 + math.cos(math.pi * (e - 4) / 50)) / 2 for e in range(5, 50)]
    steps = 391
    for epoch, rate in enumerate(expected):
        for step in (0, 200, 390):
            got = learning_rate(recipe, epoch * steps + step, steps)
            assert got == pytest.approx(rate, rel=1e-12)
    assert round(learning_rate(recipe, 49 * steps, steps), 8) == 0.00025447


@pytest.mark.parametrize("variant", ["se", "resnet18", "dropout", "lite"])
def test_cosine_by_epoch_equals_torchs(variant):
    recipe = load_experiment(variant).recipe
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(
            o, recipe.epochs, eta_min=recipe.schedule.min_lr
        ),
        recipe.epochs,
        lr=recipe.optimizer.lr,
    )
    assert by_epoch(recipe) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_cosine_of_dropout_ends_at_min_lr():
    recipe = load_experiment("dropout").recipe
    beyond = learning_rate(recipe, 100 * STEPS, STEPS)
    assert beyond == pytest.approx(1e-5)


def test_cosine_by_step_equals_torchs():
    recipe = recipe_with({"name": "cosine", "interval": "step", "min_lr": 0.001})
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10 * STEPS, eta_min=0.001),
        10 * STEPS,
    )
    assert by_step(recipe) == pytest.approx(expected, rel=1e-9)


def test_step_equals_torchs():
    recipe = recipe_with({"name": "step", "milestones": [3, 7], "gamma": 0.2})
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [3, 7], gamma=0.2), recipe.epochs
    )
    assert by_epoch(recipe) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.5])
def test_one_cycle_equals_torchs(pct_start):
    recipe = recipe_with({"name": "one_cycle", "pct_start": pct_start, "final_div_factor": 100})
    steps = recipe.epochs * STEPS
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o, 0.1, total_steps=steps, pct_start=pct_start, final_div_factor=100
        ),
        steps - 1,  # torch refuses to be stepped past the end
    )
    assert by_step(recipe)[:-1] == pytest.approx(expected, rel=1e-9)


def test_warmup_is_linear_then_constant():
    schedule = {"name": "constant", "interval": "step", "warmup_epochs": 2, "warmup_start": 0.1}
    rates = by_step(recipe_with(schedule))
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, 1.0, total_iters=2 * STEPS), 10 * STEPS
    )
    assert rates == pytest.approx(expected, rel=1e-9)
    assert set(rates[2 * STEPS :]) == {0.1}


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "one_cycle"},
        {"name": "one_cycle", "pct_start": 0.5},
        {"name": "one_cycle", "pct_start": 0.25},
        {"name": "cosine"},
        {"name": "constant"},
    ],
    ids=str,
)
def test_learning_rate_of_short_runs_is_finite(epochs, schedule):
    rates = [
        learning_rate(recipe_with(schedule, epochs), step, steps_per_epoch)
        for steps_per_epoch in (1, 2)
        for step in range(epochs * steps_per_epoch)
    ]
    assert all(math.isfinite(rate) and 0 <= rate <= 0.1 for rate in rates)
