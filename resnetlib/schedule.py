"""The learning rate as a pure function of the step; optimizers and Lookahead."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .config import Constant, Cosine, OneCycle, Recipe, Sgd, Step


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
    schedule: Constant | Cosine | Step, peak: float, epoch: float, epochs: int
) -> float:
    if isinstance(schedule, Constant):
        return peak
    if isinstance(schedule, Step):
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


class Lookahead:
    """Lookahead around an optimizer (Zhang et al. 2019), with the timing of the published run.

    The code behind the 96.04 % network synchronises after steps 1, 6, 11, … (k = 5) and takes
    the weights after step 1 as the first slow weights; this does the same.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, k: int, alpha: float):
        self.optimizer = optimizer
        self.k = k
        self.alpha = alpha
        self.steps = 0
        self.slow: list[Tensor] = []

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        self.optimizer.step()
        if self.steps % self.k == 0:
            self._synchronise()
        self.steps += 1

    @torch.no_grad()
    def _synchronise(self) -> None:
        fast = [parameter for group in self.param_groups for parameter in group["params"]]
        if not self.slow:
            self.slow = [parameter.detach().clone() for parameter in fast]
        torch._foreach_lerp_(self.slow, fast, self.alpha)
        torch._foreach_copy_(fast, self.slow)

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps, "slow": self.slow}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        device = self.param_groups[0]["params"][0].device
        self.slow = [slow.to(device, copy=True) for slow in state["slow"]]


def build_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe):
    """torch's optimizer for the recipe (fused kernels), inside Lookahead where asked for."""
    settings = recipe.optimizer.model_dump(exclude={"name"})
    if isinstance(recipe.optimizer, Sgd):
        optimizer = torch.optim.SGD(parameters, **settings, fused=True)
    else:
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer.name]
        optimizer = kind(parameters, **settings, fused=True)
    if recipe.lookahead:
        return Lookahead(optimizer, recipe.lookahead.k, recipe.lookahead.alpha)
    return optimizer
