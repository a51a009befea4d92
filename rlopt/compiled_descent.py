"""One minibatch as one compiled function: rows, loss, gradient, clip and Adam, in place on flat tensors.

At this size a step of descent costs what it costs to call some eighty operations one by one; compiled, it costs the
arithmetic. Compiling takes seconds, once for every shape, so that short trainings are better off without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from rlopt.descent import Descent, FlatAdam
from rlopt.rollout import map_observations

Compile = Literal["auto"] | bool

# Measured with 64 x 64 networks and minibatches of 64 to 1,024 rows (benchmarks/compiled_update.py). The prediction is
# made of constants, not of the clock: whether a training is compiled must not depend on how busy a machine is, because
# the two paths round differently.
SECONDS_SAVED = 4e-4  # by a compiled step
SECONDS_OF_COMPILING = 20.0
MAX_PARAMETERS = 200_000  # above, arithmetic decides, which compiling leaves as it is

Numbers = Sequence[Tensor]  # scalars that change from update to update: clip ranges, step lengths
Loss = Callable[..., tuple[Tensor, Any]]
"""(module, rows, *numbers) -> a loss, and a tuple of what is kept of the minibatch; a pure function of tensors."""


class Taken(NamedTuple):
    """What a compiled step leaves behind."""

    kept: Any  # the loss's second result
    grad_norm: Tensor  # before clipping, a scalar
    taken: Tensor  # bool, a scalar: False if the step was refused


class CompiledDescent:
    """`Descent.step` of a loss, compiled with all that surrounds it.

    Args:
        descent: whose θ and moments are moved.
        loss: see `Loss`; a change of what it closes over compiles anew.
        max_grad_norm: the gradient is scaled down to this Euclidean norm.
        refuses: says of what the loss kept whether the step is to be left out; None never does.

    Raises:
        ValueError: `descent` has another optimiser than plain Adam.
    """

    def __init__(self, descent: Descent, loss: Loss, max_grad_norm: float, refuses: Callable[[Any], Tensor] | None = None):
        if (reason := cannot_compile(descent)) is not None:
            raise ValueError(f"compile: {reason}; use compile=False")
        self.descent, self.loss, self.max_grad_norm, self.refuses = descent, loss, max_grad_norm, refuses
        self._module = _Bound(descent.module, loss)
        # The module never changes; asking at every call whether it did would cost as much as a layer.
        skip_modules: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}
        self._step = torch.compile(self._plain_step, fullgraph=True, dynamic=False, options=skip_modules)

    def __call__(self, batch: Any, rows: Tensor, numbers: Numbers) -> Taken:
        """One step on these rows [B] of a batch; another B compiles anew."""
        adam = self._adam
        adam.num_steps += 1
        beta1, beta2 = adam.betas
        # In double precision, as `FlatAdam` has them.
        corrections = torch.tensor([adam.learning_rate / (1 - beta1**adam.num_steps), (1 - beta2**adam.num_steps) ** 0.5])
        taken = self._step(batch, rows, corrections.to(rows.device, torch.float32), *numbers)
        if self.refuses is not None and not taken.taken:
            adam.num_steps -= 1
        return taken

    @property
    def _adam(self) -> FlatAdam:
        adam = self.descent.optimizer
        assert isinstance(adam, FlatAdam)
        return adam

    def _plain_step(self, batch: Any, rows: Tensor, corrections: Tensor, *numbers: Tensor) -> Taken:
        """What is compiled. `corrections` are the step size α/(1 − β₁ᵗ) and √(1 − β₂ᵗ)."""
        adam = self._adam
        part = type(batch)(*(map_observations(lambda x: x[rows], field) for field in batch))
        gradient, (_, kept) = torch.func.grad_and_value(self._loss, has_aux=True)(adam.theta, part, numbers)
        norm = torch.linalg.vector_norm(gradient)
        gradient = gradient * (self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        beta1, beta2 = adam.betas
        mean = torch.lerp(adam.mean, gradient, 1 - beta1)
        square = adam.square * beta2 + (1 - beta2) * gradient * gradient
        theta = adam.theta - corrections[0] * mean / (square.sqrt() / corrections[1] + adam.eps)
        taken = torch.ones((), dtype=torch.bool, device=norm.device)
        if self.refuses is not None:
            taken = ~self.refuses(kept)
            moves = ((theta, adam.theta), (mean, adam.mean), (square, adam.square))
            theta, mean, square = (torch.where(taken, new, old) for new, old in moves)
        for tensor, value in ((adam.theta, theta), (adam.mean, mean), (adam.square, square)):
            tensor.copy_(value)
        return Taken(kept, norm, taken)

    def _loss(self, theta: Tensor, part: Any, numbers: Sequence[Tensor]) -> tuple[Tensor, Any]:
        parameters = {f"module.{name}": value for name, value in self.descent.policy.unravel(theta).items()}
        return torch.func.functional_call(self._module, parameters, (part, *numbers))


class _Bound(nn.Module):
    """A loss as the forward pass of a module, so that its parameters can be exchanged."""

    def __init__(self, module: nn.Module, loss: Loss):
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self, *arguments: Any) -> Any:
        return self._loss(self.module, *arguments)


def predicted_saving(num_steps: float, num_parameters: int) -> float:
    """Seconds that compiling saves in a training with this many steps of descent; negative if it costs more."""
    if num_parameters > MAX_PARAMETERS:
        return -SECONDS_OF_COMPILING
    return num_steps * SECONDS_SAVED - SECONDS_OF_COMPILING


def cannot_compile(descent: Descent) -> str | None:
    """Why steps of this descent cannot be compiled, or None."""
    if not isinstance(descent.optimizer, FlatAdam):
        return "the update is compiled for torch.optim.Adam with no argument but lr, betas and eps"
    if not all(parameter.requires_grad for parameter in descent.module.parameters()):
        return "parameters that are frozen are not compiled"
    return None
