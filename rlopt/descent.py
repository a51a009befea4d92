"""Gradient descent on one flat θ with a torch optimiser, whose state goes in and comes out as a value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlopt.policies.functional import Functional, parameter_views

Moments = dict[str, Tensor]

# These treat every entry of θ alike, so that one flat leaf gives the same step as one tensor a layer, and faster.
ELEMENTWISE = (
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.RMSprop,
    torch.optim.Adagrad,
    torch.optim.SGD,
)
PLAIN_ADAM = {"eps", "betas", "lr"}  # with no other argument, Adam is the eight lines of `FlatAdam`


class Descent:
    """A private copy of a module, bound to a flat leaf, and the optimiser that moves it.

    `begin(θ, moments)` copies the values in, `step(loss)` descends in place, `theta()` and `moments()` copy them
    out: what was passed in is never written to.

    Args:
        policy: the module as a function of θ; copied.
        optimizer_class: any torch optimiser. Those outside `ELEMENTWISE` are given one tensor a layer.
        optimizer_kwargs: passed to it.
    """

    def __init__(self, policy: Functional, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: dict[str, Any]):
        functional = Functional(policy.module)
        self._theta = functional.init()
        self._gradient = torch.zeros_like(self._theta)
        self.module: Any = functional.bind(self._theta)
        self._parameters = list(self.module.parameters())
        self.optimizer = self._make(optimizer_class, optimizer_kwargs)

    def begin(self, theta: Tensor, moments: Moments, learning_rate: float) -> None:
        """Start from these values."""
        self._theta.copy_(theta)
        state: dict[int, dict[str, Any]] = {}
        for name, value in moments.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value.clone()
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def step(self, loss: Tensor, max_grad_norm: float) -> Tensor:
        """One step downhill, the gradient's Euclidean norm clipped; returns that norm before clipping, a scalar."""
        gradients = torch.autograd.grad(loss, self._parameters, allow_unused=True, materialize_grads=True)
        torch.cat([gradient.reshape(-1) for gradient in gradients], out=self._gradient)
        norm = torch.linalg.vector_norm(self._gradient)
        self._gradient.mul_((max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        return norm

    def theta(self) -> Tensor:
        """A copy of θ as it is, [d]."""
        return self._theta.clone()

    def moments(self) -> Moments:
        """A copy of the optimiser's state, one tensor a name."""
        return {
            f"{index}.{key}": value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }

    def _make(self, optimizer_class: type[torch.optim.Optimizer], kwargs: dict[str, Any]) -> torch.optim.Optimizer:
        kwargs = {"lr": 0.0, **kwargs}
        if optimizer_class in ELEMENTWISE:
            leaf = nn.Parameter(self._theta)
            leaf.grad = self._gradient
            flat = FlatAdam if optimizer_class is torch.optim.Adam and kwargs.keys() <= PLAIN_ADAM else optimizer_class
            return flat([leaf], **kwargs)  # type: ignore[call-arg]
        for name, view in parameter_views(self.module, self._gradient).items():
            self.module.get_parameter(name).grad = view
        return optimizer_class(self._parameters, **kwargs)  # type: ignore[call-arg]


class FlatAdam(torch.optim.Optimizer):
    """Adam on one flat tensor, equal to `torch.optim.Adam` and without its bookkeeping, which costs more than the step.

    Source: Kingma and Ba, arXiv:1412.6980, algorithm 1, with the order of operations of torch.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        (theta,) = group["params"]
        state = self.state[theta]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(theta), "exp_avg_sq": torch.zeros_like(theta)}
        state["step"] += 1
        step, (beta1, beta2) = float(state["step"]), group["betas"]
        state["exp_avg"].lerp_(theta.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(theta.grad, theta.grad, value=1 - beta2)
        denominator = (state["exp_avg_sq"].sqrt() / (1 - beta2**step) ** 0.5).add_(group["eps"])
        theta.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] / (1 - beta1**step))
