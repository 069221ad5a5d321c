"""Learning rates against torch's schedulers and the published ones."""

import math
import random
from fractions import Fraction

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


def test_multistep_is_another_name_of_step():
    named = [
        load_experiment("lite", schedule={"name": name, "milestones": [3, 7]})
        for name in ("step", "multistep")
    ]
    assert named[0] == named[1]
    assert named[0].digest == named[1].digest


@pytest.mark.parametrize("every_epochs", [1, 3])
def test_exponential_equals_torchs(every_epochs):
    settings = {"name": "exponential", "gamma": 0.8, "every_epochs": every_epochs}
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.StepLR(o, every_epochs, gamma=0.8), 10
    )
    assert by_epoch(recipe_with(settings)) == pytest.approx(expected, rel=1e-12)
    if every_epochs == 1:
        other = torch_rates(lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8), 10)
        assert other == pytest.approx(expected, rel=1e-12)


def test_exponential_by_step_equals_torchs():
    recipe = recipe_with({"name": "exponential", "gamma": 0.8, "interval": "step"})
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.8 ** (1 / STEPS)), 10 * STEPS
    )
    assert by_step(recipe) == pytest.approx(expected, rel=1e-9)


def test_exponential_begins_after_the_warmup():
    rates = by_epoch(recipe_with({"name": "exponential", "gamma": 0.5, "warmup_epochs": 2}))
    assert rates[:5] == pytest.approx([0.01, 0.055, 0.1, 0.05, 0.025])


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_cosine_restarts_equal_torchs(interval, factor):
    settings = {"name": "cosine", "period_epochs": 2, "after_period": "restart", "min_lr": 0.001}
    recipe = recipe_with(settings | {"period_factor": factor, "interval": interval}, epochs=20)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2, factor, 0.001)
    optimizer.step()
    for step in range(20 * STEPS):
        scheduler.step(step // STEPS if interval == "epoch" else step / STEPS)
        expected = optimizer.param_groups[0]["lr"]
        assert learning_rate(recipe, step, STEPS) == pytest.approx(expected, rel=1e-9), step


@pytest.mark.parametrize("period", [0.1, 0.2, 0.3, 0.7])
@pytest.mark.parametrize("factor", [1, 2])
def test_cosine_restarts_where_a_period_ends_whatever_the_rounding(period, factor):
    """An epoch that begins with a period has the peak rate: 1 % 0.1 is nearly 0.1."""
    settings = {"name": "cosine", "period_epochs": period, "after_period": "restart"}
    rates = by_epoch(recipe_with(settings | {"period_factor": factor}, epochs=30))
    for epoch in range(30):
        elapsed, length = Fraction(epoch), Fraction(str(period))
        while elapsed >= length:
            elapsed, length = elapsed - length, length * factor
        expected = 0.1 * (1 + math.cos(math.pi * float(elapsed / length))) / 2
        assert rates[epoch] == pytest.approx(expected, rel=1e-6), epoch


def test_cosine_stays_at_min_lr():
    recipe = recipe_with({"name": "cosine", "period_epochs": 3, "min_lr": 0.001}, epochs=6)
    assert by_epoch(recipe)[3:] == pytest.approx([0.001] * 3)


def test_cosine_rises_as_torchs():
    settings = {"name": "cosine", "period_epochs": 3, "after_period": "rise", "min_lr": 0.001}
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 3, eta_min=0.001), 10
    )
    assert expected[6] == pytest.approx(0.1)  # back at the peak
    assert by_epoch(recipe_with(settings)) == pytest.approx(expected, rel=1e-9)


# The rate that follows the history --------------------------------------------------------------

COLUMNS = ("train_loss", "holdout_loss", "holdout_accuracy")


def made_history(epochs, seed=0):
    """Figures that improve at first and then stay about the same."""
    draws = random.Random(seed)
    rows = []
    for epoch in range(epochs + 1):
        loss = {name: 0.5 + 2 / (1 + epoch) + draws.uniform(0, 0.1) for name in COLUMNS[:2]}
        rows.append({"epoch": epoch, **loss, "holdout_accuracy": 1 - loss["holdout_loss"] / 3})
    return rows


@pytest.mark.parametrize("metric", COLUMNS)
@pytest.mark.parametrize(
    "settings",
    [
        {"factor": 0.5, "patience": 2},
        {"factor": 0.3, "patience": 0, "cooldown": 3, "min_lr": 0.002},
        {"patience": 1, "threshold": 0.05, "threshold_mode": "abs"},
        {"factor": 0.5, "patience": 0, "threshold": 0.0},
        {"factor": 0.01, "patience": 0, "threshold": 0.5},  # down to torch's smallest drop
    ],
    ids=str,
)
def test_plateau_equals_torchs(metric, settings):
    history = made_history(40)
    schedule = {"name": "plateau", "metric": metric} | settings
    experiment = load_experiment("lite", epochs=40, lr=0.1, schedule=schedule, holdout=100)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    mode = "max" if metric.endswith("accuracy") else "min"
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode, **{"factor": 0.1, "patience": 10} | settings
    )
    rates = []
    for epoch in range(1, 41):
        rates.append(optimizer.param_groups[0]["lr"])
        for step in ((epoch - 1) * STEPS, epoch * STEPS - 1):  # the first and the last
            # What came later, or is of the test set, does not matter.
            known = [row | {"test_loss": 0.0} for row in history]
            assert learning_rate(experiment.recipe, step, STEPS, history[:epoch]) == rates[-1]
            assert learning_rate(experiment.recipe, step, STEPS, known) == rates[-1]
        scheduler.step(history[epoch][metric])
    assert len(set(rates)) > 2


def test_plateau_counts_from_the_end_of_the_warmup():
    settings = {"name": "plateau", "patience": 0, "factor": 0.5, "warmup_epochs": 2}
    recipe = recipe_with(settings)
    history = [{"train_loss": loss} for loss in (9, 1, 1, 5, 4, 4, 3)]  # row 0: untrained
    rates = [learning_rate(recipe, epoch * STEPS, STEPS, history) for epoch in range(7)]
    assert rates == pytest.approx([0.01, 0.055, 0.1, 0.1, 0.1, 0.05, 0.05])


@pytest.mark.parametrize("anneal", ["cosine", "linear"])
@pytest.mark.parametrize("pct_start", [0.1, 0.3, 0.5])
def test_one_cycle_equals_torchs(pct_start, anneal):
    settings = {"pct_start": pct_start, "final_div_factor": 100, "anneal": anneal}
    recipe = recipe_with({"name": "one_cycle"} | settings)
    steps = recipe.epochs * STEPS
    torchs = {"cosine": "cos", "linear": "linear"}[anneal]
    expected = torch_rates(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(
            o,
            0.1,
            total_steps=steps,
            pct_start=pct_start,
            final_div_factor=100,
            anneal_strategy=torchs,
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
        {"name": "one_cycle", "anneal": "linear"},
        {"name": "exponential", "gamma": 0.5},
        {"name": "plateau"},
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
