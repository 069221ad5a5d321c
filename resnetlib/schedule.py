"""The learning rate as a pure function of the recipe, the history and the step."""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

from .schema import Constant, Cosine, Exponential, OneCycle, Plateau, Recipe, StepDecay

History = Sequence[Mapping[str, float]]  # a row per epoch; row 0 is the untrained network
SMALLEST_DROP = 1e-8  # of a plateau; a smaller one is left out (torch's `eps`)
ROUNDING = 1e-9  # share of a period by which a time can be off: 1 % 0.1 is nearly 0.1


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int, history: History = ()) -> float:
    """The rate of one step.

    With `interval: epoch` the rate changes between epochs only, as torch's schedulers are
    commonly stepped; with `step` it moves at every step.

    Args:
        recipe: has the schedule, its peak and the number of epochs.
        step: counted from 0 over the whole run.
        steps_per_epoch: of the run.
        history: that of the run, which `plateau` follows; only the epochs before the step matter.
    """
    schedule = recipe.schedule
    peak = recipe.optimizer.lr
    if isinstance(schedule, OneCycle):
        return _one_cycle(schedule, peak, step, recipe.epochs * steps_per_epoch)
    epoch = step // steps_per_epoch if schedule.interval == "epoch" else step / steps_per_epoch
    if epoch < schedule.warmup_epochs:
        share = epoch / schedule.warmup_epochs
        return peak * (schedule.warmup_start + (1 - schedule.warmup_start) * share)
    if isinstance(schedule, Plateau):
        first = 1 + math.ceil(schedule.warmup_epochs)
        rows = history[first : step // steps_per_epoch + 1]
        return _plateau(schedule, peak, tuple(row[schedule.metric] for row in rows))
    return _after_warmup(schedule, peak, epoch, recipe.epochs)


def _after_warmup(
    schedule: Constant | Cosine | StepDecay | Exponential, peak: float, epoch: float, epochs: int
) -> float:
    if isinstance(schedule, Constant):
        return peak
    if isinstance(schedule, StepDecay):
        return peak * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    if isinstance(schedule, Exponential):
        periods = (epoch - schedule.warmup_epochs) / schedule.every_epochs
        return peak * schedule.gamma ** (
            math.floor(periods) if schedule.interval == "epoch" else periods
        )
    start = schedule.warmup_epochs + schedule.hold_epochs
    period = schedule.period_epochs or max(epochs - start, 1)
    elapsed = max(epoch - start, 0.0)
    if schedule.after_period == "restart":
        while schedule.period_factor > 1 and elapsed >= period * (1 - ROUNDING):
            elapsed = max(elapsed - period, 0.0)
            period *= schedule.period_factor
        elapsed = max(elapsed - math.floor(elapsed / period + ROUNDING) * period, 0.0)
    elif schedule.after_period == "stay":
        elapsed = min(elapsed, period)
    return _cosine(peak, schedule.min_lr, elapsed / period)


@lru_cache(maxsize=1)  # all steps of an epoch have the same
def _plateau(schedule: Plateau, peak: float, values: tuple[float, ...]) -> float:
    """torch.optim.lr_scheduler.ReduceLROnPlateau, stepped with each of the values."""
    lower_is_better = schedule.metric.endswith("loss")
    change = -schedule.threshold if lower_is_better else schedule.threshold
    best = math.inf if lower_is_better else -math.inf
    rate, bad, cooldown = peak, 0, 0
    for value in values:
        bound = best * (1 + change) if schedule.threshold_mode == "rel" else best + change
        improved = value < bound if lower_is_better else value > bound
        best = value if improved else best
        bad = 0 if improved or cooldown else bad + 1
        cooldown = max(cooldown - 1, 0)
        if bad > schedule.patience:
            lower = max(rate * schedule.factor, schedule.min_lr)
            rate = lower if rate - lower > SMALLEST_DROP else rate
            bad, cooldown = 0, schedule.cooldown
    return rate


def _one_cycle(schedule: OneCycle, peak: float, step: int, steps: int) -> float:
    """torch.optim.lr_scheduler.OneCycleLR (two phases): low, peak, far lower."""
    first = peak / schedule.div_factor
    top = schedule.pct_start * steps - 1
    between = _cosine if schedule.anneal == "cosine" else _linear
    if step <= top and top > 0:
        return between(first, peak, step / top)
    return between(peak, first / schedule.final_div_factor, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from start (progress 0) to end (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def _linear(start: float, end: float, progress: float) -> float:
    return start + (end - start) * progress
