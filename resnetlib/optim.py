"""Optimizers, Lookahead, loss scaling, sharpness-aware minimisation, averages of the weights."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from .schema import Optimizer, Recipe

KINDS = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "radam": torch.optim.RAdam,
    "nadam": torch.optim.NAdam,
    "adamax": torch.optim.Adamax,
    "adadelta": torch.optim.Adadelta,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
FUSED = {"sgd", "adam", "adamw"}  # those with fused kernels on every device


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


def build_optimizer(
    parameters: Iterable[nn.Parameter], recipe: Recipe
) -> torch.optim.Optimizer | Lookahead:
    """torch's optimizer for the recipe, fused where possible, inside Lookahead where asked for."""
    name = recipe.optimizer.name
    settings = recipe.optimizer.model_dump(exclude={"name", "decay_on", "bias_lr_factor"})
    settings |= {"fused": True} if name in FUSED else {}
    optimizer = KINDS[name](_groups(parameters, recipe.optimizer), **settings)
    optimizer.register_load_state_dict_post_hook(_place_loaded_state)
    if recipe.lookahead:
        return Lookahead(optimizer, recipe.lookahead.k, recipe.lookahead.alpha)
    return optimizer


def _place_loaded_state(optimizer: torch.optim.Optimizer) -> None:
    """Give loaded state the place and the memory format that it has in training.

    The fused kernels rely on the format of the parameter. NAdam's `mu_product` is read by the
    processor in every step, so torch makes it on the CPU, but loads it to the device.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if name == "mu_product":
                state[name] = value.cpu()
            elif torch.is_tensor(value) and value.shape == parameter.shape:
                state[name] = torch.empty_like(parameter).copy_(value)


def _groups(parameters: Iterable[nn.Parameter], optimizer: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups: one; or two where the recipe treats biases and BatchNorm differently.

    The first group has the weights of convolutions and linear layers, the second the rest.
    """
    parameters = list(parameters)
    if optimizer.decay_on == "all" and optimizer.bias_lr_factor == 1:
        return [{"params": parameters, "lr_factor": 1.0}]
    weights = {"params": [p for p in parameters if p.ndim > 1], "lr_factor": 1.0}
    others = {"params": [p for p in parameters if p.ndim <= 1]}
    others["lr_factor"] = optimizer.bias_lr_factor
    if optimizer.decay_on == "weights":
        others["weight_decay"] = 0.0
    return [weights, others]


MAX_SKIPPED_STEPS = 20  # in a row; by then the scale of the loss has fallen from 65,536 to 1 / 16


class GradientScaler(torch.amp.GradScaler):
    """torch's scaling of the loss for float16 (Micikevicius et al. 2018), without a wait per step.

    Where a gradient is not finite, the device skips the update: weights and optimizer stay as they
    are. The step still counts for the schedule, for Lookahead and for the average of the weights.
    Without `enabled` nothing is scaled or skipped, and the state is empty.
    """

    def __init__(
        self,
        device: torch.device,
        optimizer: torch.optim.Optimizer | Lookahead,
        *,
        enabled: bool,
    ):
        super().__init__(device.type, enabled=enabled)
        self.inner = optimizer.optimizer if isinstance(optimizer, Lookahead) else optimizer
        # Fused kernels leave a step out by themselves; those of MPS did not (pytorch #186360).
        supported = getattr(self.inner, "_step_supports_amp_scaling", False)
        self.fused = supported and device.type != "mps"
        self.skip = torch.zeros((), device=device)  # whether the step is skipped, 0 or 1
        # Skipped steps in a row; from MAX_SKIPPED_STEPS on it only rises.
        self.skipped = torch.zeros((), device=device)
        if enabled and isinstance(self.inner, torch.optim.SGD):
            _start_momentum_at_zero(self.inner)
        if enabled and not self.fused:
            _take_back_steps(self.inner, lambda: self.skip)

    def step(self, optimizer: torch.optim.Optimizer | Lookahead, norm: Tensor) -> Tensor:
        """Update the weights with unscaled gradients of this norm; the norm, 0 where skipped."""
        if not self.is_enabled():
            optimizer.step()
            return norm
        (self.skip,) = self._found_inf_per_device(optimizer).values()
        if self.fused:
            self.inner.found_inf = self.skip  # where fused kernels look
        optimizer.step()
        stays = torch.maximum(self.skip, (self.skipped >= MAX_SKIPPED_STEPS).float())
        self.skipped.add_(1).mul_(stays)
        return torch.where(self.skip > 0, 0.0, norm)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | ({"skipped": self.skipped} if self.is_enabled() else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and self.is_enabled():  # the run may have begun on a card of another precision
            super().load_state_dict(state)
            self.skipped.copy_(state["skipped"])


def _start_momentum_at_zero(optimizer: torch.optim.SGD) -> None:
    """Make the momentum that SGD makes of its first gradient, the same unless that is skipped.

    torch's fused kernel would then leave uninitialised memory there.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def _take_back_steps(optimizer: torch.optim.Optimizer, skip: Callable[[], Tensor]) -> None:
    """Let an optimizer without fused kernels take back a step that is to be skipped.

    Its counters of steps, which may be on the CPU, keep counting.
    """
    before: dict[Tensor, Tensor] = {}

    def tensors() -> list[Tensor]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        states = [value for state in optimizer.state.values() for value in state.values()]
        return parameters + [value for value in states if torch.is_tensor(value) and value.ndim]

    @torch.no_grad()
    def keep(*_: Any) -> None:
        before.update({tensor: tensor.clone() for tensor in tensors()})

    @torch.no_grad()
    def take_back(*_: Any) -> None:
        for tensor in tensors():  # what the first step made begins with zeros
            tensor.copy_(torch.where(skip() > 0, before.get(tensor, 0.0), tensor))
        before.clear()

    optimizer.register_step_pre_hook(keep)
    optimizer.register_step_post_hook(take_back)


def sharpness_aware(
    backward: Callable[..., Any], model: nn.Module, rho: float
) -> Callable[..., Any]:
    """SAM around the backward pass of a batch (Foret et al. 2020, algorithm 1).

    The gradients left in the parameters are those at the worst point, to first order, within rho
    (L2) of the weights. Weights and BatchNorm's statistics are restored; what is returned is the
    result of the first backward pass, at the weights themselves.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]

    def backward_at_worst_point(*batch: Any) -> Any:
        result = backward(*batch)
        with torch.no_grad():
            gradients = [parameter.grad for parameter in parameters]
            norm = nn.utils.get_total_norm(gradients)
            saved = [tensor.clone() for tensor in (*parameters, *model.buffers())]
            torch._foreach_add_(parameters, torch._foreach_mul(gradients, rho / (norm + 1e-12)))
        backward(*batch)
        with torch.no_grad():
            for tensor, value in zip((*parameters, *model.buffers()), saved, strict=True):
                tensor.copy_(value)
        return result

    return backward_at_worst_point


class Average(AveragedModel):
    """A copy of the model that `update_parameters(model)` moves towards it after every step.

    Weights and BatchNorm's statistics move alike. The first update copies them; after n updates
    the decay is min(decay, (1 + n) / (10 + n)), so that the average forgets the random
    initialisation (as TensorFlow's `ExponentialMovingAverage` with `num_updates`).
    """

    def __init__(self, model: nn.Module, decay: float):
        super().__init__(model, use_buffers=True)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Like torch's own, without its two waits per step for a number from the device."""
        count = int(self.n_averaged)  # on the CPU
        decay = min(self.decay, (1 + count) / (10 + count)) if count else 0.0
        pairs = list(
            zip(
                [*self.module.parameters(), *self.module.buffers()],
                [*model.parameters(), *model.buffers()],
                strict=True,
            )
        )
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        counts = [pair for pair in pairs if not pair[0].is_floating_point()]  # of batches
        torch._foreach_lerp_(*zip(*floats, strict=True), 1 - decay)
        if counts:
            torch._foreach_copy_(*zip(*counts, strict=True))
        self.n_averaged += 1
