"""The learning rate as a pure function of the step."""

import math

from .schema import Constant, Cosine, OneCycle, Recipe, StepDecay


def learning_rate(recipe: Recipe, step: int, steps_per_epoch: int) -> float:
    """The rate of one step, counted from 0 over the whole run.

    With `interval: epoch` the rate changes between epochs only, as torch's schedulers are
    commonly stepped; with `step` it moves at every step.
    """
    schedule = recipe.schedule
    peak = recipe.optimizer.lr
    if isinstance(schedule, OneCycle):
        return _one_cycle(schedule, peak, step, recipe.epochs * steps_per_epoch)
    epoch = step // steps_per_epoch if schedule.interval == "epoch" else step / steps_per_epoch
    if epoch < schedule.warmup_epochs:
        share = epoch / schedule.warmup_epochs
        return peak * (schedule.warmup_start + (1 - schedule.warmup_start) * share)
    return _after_warmup(schedule, peak, epoch, recipe.epochs)


def _after_warmup(
    schedule: Constant | Cosine | StepDecay, peak: float, epoch: float, epochs: int
) -> float:
    if isinstance(schedule, Constant):
        return peak
    if isinstance(schedule, StepDecay):
        return peak * schedule.gamma ** sum(epoch >= milestone for milestone in schedule.milestones)
    start = schedule.warmup_epochs + schedule.hold_epochs
    period = schedule.period_epochs or max(epochs - start, 1)
    progress = min(max((epoch - start) / period, 0.0), 1.0)
    return _cosine(peak, schedule.min_lr, progress)


def _one_cycle(schedule: OneCycle, peak: float, step: int, steps: int) -> float:
    """torch.optim.lr_scheduler.OneCycleLR (cosine, two phases): low, peak, far lower."""
    first = peak / schedule.div_factor
    top = schedule.pct_start * steps - 1
    if step <= top and top > 0:
        return _cosine(first, peak, step / top)
    return _cosine(peak, first / schedule.final_div_factor, (step - top) / (steps - 1 - top))


def _cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from start (progress 0) to end (progress 1)."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2
