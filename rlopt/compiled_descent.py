"""One minibatch as one compiled function: rows, loss, gradient, clip and Adam, in place on flat tensors.

At this size a step of descent costs what it costs to call some eighty operations one by one; compiled, it costs the
arithmetic. Compiling takes seconds, once for every size of minibatch, so that short trainings are better off without.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlopt.descent import Descent, FlatAdam
from rlopt.native_code import compiled, no_compiler
from rlopt.rollout import map_observations

Compile = Literal["auto"] | bool

# With 64 x 64 networks, minibatches of 64 to 1,024 rows, on one core: `benchmarks/compiling.py`. The prediction is made of
# constants, not of the clock: whether a training is compiled must not depend on how busy a machine is, because the two paths
# round differently.
SECONDS_SAVED = 0.6e-3  # by a compiled step
SECONDS_OF_COMPILING = 10.0
MAX_PARAMETERS = 200_000  # above, arithmetic decides, which compiling leaves as it is

Loss = Callable[..., tuple[Tensor, Any]]
"""(module, rows, coefficients) -> a loss, and a tuple of what is kept of the minibatch; a pure function of tensors."""


class Taken(NamedTuple):
    """What a compiled step leaves behind."""

    kept: Any  # the loss's second result
    grad_norm: Tensor  # before clipping, a scalar
    taken: Tensor  # bool, a scalar: False if the step was refused, which leaves θ and the moments as they are


class Limits(NamedTuple):
    """What bounds a step."""

    grad_norm: Tensor  # the gradient is scaled down to this Euclidean norm
    kl: Tensor  # beyond which `refuses` leaves the step out; infinite for none


class Position(NamedTuple):
    """Where Adam is, [d] each."""

    theta: Tensor
    mean: Tensor
    square: Tensor


class MinibatchStep:
    """A step of Adam on a minibatch as a pure function of tensors, which may be compiled, batched or captured.

    Args:
        descent: whose module, β and ε; its optimiser is `FlatAdam`.
        loss: see `Loss`.
        refuses: (kept, limit of the KL) -> whether the step is to be left out, a scalar; None never does.
    """

    def __init__(self, descent: Descent, loss: Loss, refuses: Callable[[Any, Tensor], Tensor] | None = None):
        assert isinstance(descent.optimizer, FlatAdam)
        self.policy, self.loss, self.refuses = descent.policy, loss, refuses
        self.betas, self.eps = descent.optimizer.betas, descent.optimizer.eps
        self._forward = _Forward(descent.module)

    def __call__(
        self, position: Position, batch: Any, rows: Tensor, coefficients: Any, limits: Limits, corrections: Tensor
    ) -> tuple[Position, Taken]:
        """The next position, and what the step leaves behind.

        Args:
            position: where it begins.
            batch: a NamedTuple of S' rows.
            rows: [B], of the minibatch.
            coefficients: a NamedTuple of scalar tensors and None, for the loss.
            limits: of the gradient and the KL.
            corrections: the step size α/(1 − β₁ᵗ) and √(1 − β₂ᵗ), [2].
        """
        part = type(batch)(*(map_observations(lambda x: x[rows], field) for field in batch))
        gradient, (_, kept) = torch.func.grad_and_value(self._loss_at, has_aux=True)(position.theta, part, coefficients)
        norm = torch.linalg.vector_norm(gradient)
        gradient = gradient * (limits.grad_norm / (norm + 1e-6)).clamp(max=1.0)
        beta1, beta2 = self.betas
        mean = torch.lerp(position.mean, gradient, 1 - beta1)
        square = position.square * beta2 + (1 - beta2) * gradient * gradient
        theta = position.theta - corrections[0] * mean / (square.sqrt() / corrections[1] + self.eps)
        moved = Position(theta, mean, square)
        taken = torch.ones_like(norm, dtype=torch.bool)
        if self.refuses is not None:
            taken = ~self.refuses(kept, limits.kl)
            moved = Position(*(torch.where(taken, new, old) for new, old in zip(moved, position, strict=True)))
        return moved, Taken(kept, norm, taken)

    def _loss_at(self, theta: Tensor, part: Any, coefficients: Any) -> tuple[Tensor, Any]:
        parameters = {f"module.{name}": value for name, value in self.policy.unravel(theta).items()}
        return torch.func.functional_call(self._forward, parameters, (self.loss, part, coefficients))


class CompiledDescent:
    """`Descent.step` of a loss, compiled with all that surrounds it.

    Numbers that may change go in with every call. Whatever else the loss depends on is frozen when it is compiled: the owner
    keeps one `CompiledDescent` for each form of its loss.

    Args:
        descent: whose θ and moments are moved; its optimiser is `FlatAdam`.
        loss: see `Loss`.
        refuses: (kept, limit of the KL) -> whether the step is to be left out, a scalar; None never does.
    """

    def __init__(self, descent: Descent, loss: Loss, refuses: Callable[[Any, Tensor], Tensor] | None = None):
        self.descent, self.loss, self.refuses = descent, loss, refuses
        self._pure = MinibatchStep(descent, loss, refuses)
        self._step = compiled(self._in_place, descent.theta().device)

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledDescent:
        """Compiled for the copied descent; the original's function would move the original."""
        descent, loss, refuses = (copy.deepcopy(part, memo) for part in (self.descent, self.loss, self.refuses))
        return CompiledDescent(descent, loss, refuses)  # type: ignore[arg-type]

    def __call__(self, batch: Any, rows: Tensor, coefficients: Any, limits: Limits) -> Taken:
        """One step on these rows [B] of a batch; another B compiles anew."""
        adam = self._adam
        adam.num_steps += 1
        beta1, beta2 = adam.betas
        # In double precision first, as `FlatAdam` has them.
        corrections = torch.tensor([adam.learning_rate / (1 - beta1**adam.num_steps), (1 - beta2**adam.num_steps) ** 0.5])
        taken = self._step(batch, rows, coefficients, limits, corrections.to(adam.theta))
        if self.refuses is not None and not taken.taken:
            adam.num_steps -= 1
        return taken

    def steps(self, batch: Any, rows: Iterable[Tensor], coefficients: Any, limits: Limits) -> Iterator[Taken]:
        """A step for each minibatch's rows [B], up to the first that is refused."""
        for part in rows:
            step = self(batch, part, coefficients, limits)
            yield step
            if self.refuses is not None and not step.taken:
                return

    @property
    def _adam(self) -> FlatAdam:
        adam = self.descent.optimizer
        assert isinstance(adam, FlatAdam)
        return adam

    def _in_place(self, batch: Any, rows: Tensor, coefficients: Any, limits: Limits, corrections: Tensor) -> Taken:
        """What is compiled."""
        adam = self._adam
        position = Position(adam.theta, adam.mean, adam.square)
        moved, taken = self._pure(position, batch, rows, coefficients, limits, corrections)
        for tensor, value in zip(position, moved, strict=True):
            tensor.copy_(value)
        return taken


class _Forward(nn.Module):
    """A function of a module as a forward pass, so that the module's parameters can be exchanged."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(self.module, *arguments)


def predicted_saving(num_steps: float, num_parameters: int) -> float:
    """Seconds that compiling saves in a training with this many steps of descent; negative if it costs more."""
    if num_parameters > MAX_PARAMETERS:
        return -SECONDS_OF_COMPILING
    return num_steps * SECONDS_SAVED - SECONDS_OF_COMPILING


def has_no_pure_step(descent: Descent) -> str | None:
    """Why steps of this descent are no pure function of tensors, or None if they are."""
    if not isinstance(descent.optimizer, FlatAdam):
        return "the update is compiled for torch.optim.Adam with no argument but lr, betas and eps"
    if not all(parameter.requires_grad for parameter in descent.module.parameters()):
        return "parameters that are frozen are not compiled"
    return None


def cannot_compile(descent: Descent) -> str | None:
    """Why steps of this descent cannot be compiled here, or None."""
    if any(isinstance(part, nn.modules.conv._ConvNd) for part in descent.module.modules()):
        return "convolutions are not compiled"
    return has_no_pure_step(descent) or no_compiler(descent.theta().device)
