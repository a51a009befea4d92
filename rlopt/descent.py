"""Gradient descent on one flat θ with a torch optimiser, whose state goes in and comes out as a value."""

from __future__ import annotations

import copy
from collections.abc import Sequence
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
PLAIN_ADAM = {"eps", "betas", "lr"}  # with no other argument, Adam is `FlatAdam`


class Descent:
    """A private copy of a module, bound to a flat leaf, and the optimiser that moves it.

    `begin(θ, moments)` copies the values in, `step` descends in place, `theta()` and `moments()` copy them out: what
    was passed in is never written to.

    Args:
        policy: the module as a function of θ; copied.
        optimizer_class: any torch optimiser whose `step` needs no closure. Those outside `ELEMENTWISE` are given one
            tensor a layer.
        optimizer_kwargs: passed to it.

    Attributes:
        policy, module: the copy, as a function of θ and as it is bound to the leaf.
        optimizer: it.
    """

    def __init__(self, policy: Functional, optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: dict[str, Any]):
        self._made_with = optimizer_class, optimizer_kwargs
        self.policy = Functional(policy.module)
        self._theta = self.policy.init()
        self._gradient = torch.zeros_like(self._theta)
        self.module: Any = self.policy.bind(self._theta)
        if issubclass(optimizer_class, torch.optim.LBFGS):
            raise ValueError("optimizer_class: LBFGS evaluates the loss several times a step, which minibatches cannot offer")
        self._parameters = list(self.module.parameters())
        self._frozen: list[tuple[Tensor, Tensor]] = []
        self._learning_rate = 0.0
        self.optimizer: FlatAdam | TorchOptimizer
        if optimizer_class is torch.optim.Adam and optimizer_kwargs.keys() <= PLAIN_ADAM:
            self.optimizer = FlatAdam(self._theta, self._gradient, **optimizer_kwargs)
        else:
            leaf = nn.Parameter(self._theta)
            leaf.grad = self._gradient
            for name, view in parameter_views(self.module, self._gradient).items():
                self.module.get_parameter(name).grad = view
            parameters = [leaf] if optimizer_class in ELEMENTWISE else self._parameters
            self.optimizer = TorchOptimizer(optimizer_class(parameters, **{"lr": 0.0, **optimizer_kwargs}))

    def __deepcopy__(self, memo: dict[int, Any]) -> Descent:
        """Bound to a leaf of its own, which a copy of the tensors one by one would not be."""
        copied = Descent(copy.deepcopy(self.policy, memo), *copy.deepcopy(self._made_with, memo))
        copied.begin(self._theta, self.optimizer.moments(), self._learning_rate, [p.requires_grad for p in self._parameters])
        return copied

    def begin(self, theta: Tensor, moments: Moments, learning_rate: float, trained: Sequence[bool] | None = None) -> None:
        """Start from these values.

        Args:
            theta: [d].
            moments: the optimiser's state; empty for a first step.
            learning_rate: of every step until the next `begin`.
            trained: for each parameter tensor, whether it moves; all by default.
        """
        self._theta.copy_(theta)
        self._learning_rate = learning_rate
        self.optimizer.load(moments, learning_rate)
        for parameter, moves in zip(self._parameters, trained or [True] * len(self._parameters), strict=True):
            parameter.requires_grad_(moves)
        self._frozen = [(p, p.detach().clone()) for p in self._parameters if not p.requires_grad]

    def step(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor] | None, max_grad_norm: float) -> Tensor:
        """One step downhill, the gradient's Euclidean norm clipped; returns that norm before clipping, a scalar.

        Args:
            outputs: a loss, or tensors that depend on the module's parameters.
            gradients: of the loss with respect to `outputs`; None for a loss.
            max_grad_norm: the gradient is scaled down to this.
        """
        moving = [parameter for parameter in self._parameters if parameter.requires_grad]
        pieces = iter(torch.autograd.grad(outputs, moving, gradients, allow_unused=True, materialize_grads=True))
        flat = [next(pieces) if p.requires_grad else torch.zeros_like(p) for p in self._parameters]
        torch.cat([piece.reshape(-1) for piece in flat], out=self._gradient)
        norm = torch.linalg.vector_norm(self._gradient)
        self._gradient.mul_((max_grad_norm / (norm + 1e-6)).clamp_(max=1.0))
        self.optimizer.step()
        for parameter, value in self._frozen:  # momentum and weight decay move them even with a gradient of 0
            parameter.data.copy_(value)
        return norm

    def theta(self) -> Tensor:
        """A copy of θ as it is, [d]."""
        return self._theta.clone()

    def moments(self) -> Moments:
        """A copy of the optimiser's state, one tensor a name."""
        return self.optimizer.moments()


class FlatAdam:
    """Adam on one flat tensor in place: torch's fused step without the bookkeeping around it, which costs more than that.

    Source: Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """

    def __init__(
        self,
        theta: Tensor,
        gradient: Tensor,
        lr: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ):
        self.theta, self.gradient = theta, gradient
        self.learning_rate, self.betas, self.eps = lr, betas, eps
        self.mean, self.square = torch.zeros_like(theta), torch.zeros_like(theta)
        self.num_steps = 0

    def load(self, moments: Moments, learning_rate: float) -> None:
        """Take the values of `moments`, none for the first step.

        Raises:
            RuntimeError: other names or shapes than `moments` gives.
        """
        shapes = {name: tuple(value.shape) for name, value in moments.items()}
        flat = tuple(self.theta.shape)
        if moments and shapes != {"step": (), "exp_avg": flat, "exp_avg_sq": flat}:
            raise RuntimeError(f"moments: expected step [] and exp_avg, exp_avg_sq {list(flat)}, got {shapes}")
        self.learning_rate = learning_rate
        self.num_steps = int(moments["step"]) if moments else 0
        for name, tensor in (("exp_avg", self.mean), ("exp_avg_sq", self.square)):
            tensor.copy_(moments[name]) if moments else tensor.zero_()

    def moments(self) -> Moments:
        """Copies, under torch's names."""
        step = torch.tensor(float(self.num_steps))
        return {"step": step, "exp_avg": self.mean.clone(), "exp_avg_sq": self.square.clone()}

    @torch.no_grad()
    def step(self) -> None:
        """θ ← θ − learning rate · m̂ / (√v̂ + ε)."""
        self.num_steps += 1
        beta1, beta2 = self.betas
        torch._fused_adam_(  # what `torch.optim.Adam(fused=True)` calls in the end
            [self.theta],
            [self.gradient],
            [self.mean],
            [self.square],
            [],
            [torch.full((), self.num_steps, dtype=torch.float32, device=self.theta.device)],
            lr=self.learning_rate,
            beta1=beta1,
            beta2=beta2,
            weight_decay=0.0,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


class TorchOptimizer:
    """Any torch optimiser behind the same three methods; its state's names are "parameter.entry"."""

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        self.step = optimizer.step

    def load(self, moments: Moments, learning_rate: float) -> None:
        """Take the values of `moments`, none for the first step."""
        state: dict[int, dict[str, Any]] = {}
        for name, value in moments.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = value.clone()
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def moments(self) -> Moments:
        """Copies, one tensor a name."""
        return {
            f"{index}.{key}": value.detach().clone() if isinstance(value, Tensor) else torch.tensor(value)
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
