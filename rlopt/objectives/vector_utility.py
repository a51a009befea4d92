"""What every utility f(J) of the vector of returns J [K] has: its box, its value and its derivative."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.objectives.fields import Bounds, as_bounds, spread, store, utility_text, vectors_of


@dataclass(frozen=True)
class VectorUtility(ABC):
    """f: R^K → R, to be maximised; J [K] is a vector of expected returns (SER) or of one episode's returns (ESR).

    A subclass is a frozen dataclass that implements `evaluate`; all fields that are tuples have K numbers.

    Args:
        low, high: the box into which J is projected where f and its derivative are evaluated, and nowhere else: an
            estimate of J that is tracked stays as it is, or it would be biased. A number for all objectives; K
            numbers, where None is no bound; or None for no box.

    Raises:
        ValueError: numbers that are not finite, or not equally many everywhere; low above high.
    """

    kind: ClassVar[str] = ""
    only_num_objectives: ClassVar[int | None] = None

    low: Bounds = field(default=None, kw_only=True)
    high: Bounds = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        store(self, low=as_bounds("low", self.low, -math.inf), high=as_bounds("high", self.high, math.inf))
        expected, reason = self.only_num_objectives, ""
        for name, value in vectors_of(self).items():
            if expected is not None and len(value) != expected:
                raise ValueError(f"{name}: expected {_count(expected, 'number')}{reason}, got {len(value)}: {value}")
            expected, reason = len(value), f", as {name} has"
        count = self.num_objectives or 1
        for k, (low, high) in enumerate(zip(spread(self.low, count, -math.inf), spread(self.high, count, math.inf))):
            if low > high:
                raise ValueError(f"low: expected at most high = {high:g} for objective {k}, got {low:g}")

    @abstractmethod
    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        """f [...] at points [..., K] that are in the box; differentiable, NaN outside its domain, nothing checked."""

    @property
    def num_objectives(self) -> int | None:
        """K, or None if any number of objectives fits."""
        lengths = [len(value) for value in vectors_of(self).values()]
        return lengths[0] if lengths else self.only_num_objectives

    def __call__(self, returns: Tensor, multipliers: Tensor | None = None) -> Tensor:
        """f at the projections of `returns` [..., K], as [...], not finite outside f's domain.

        For what is maximised see `value_and_gradient` (SER) and `checked` (ESR).

        Args:
            returns: expected returns, or returns of episodes.
            multipliers: as `ascend` left them; None for the first ones. Only a `Lagrangian` has any.

        Raises:
            ValueError: another number of objectives.
        """
        self._check_returns(returns)
        if multipliers is None:
            multipliers = self.first_multipliers(returns.shape[-1])
        return self.evaluate(self.project(returns), multipliers.to(returns))

    def checked(self, returns: Tensor, multipliers: Tensor | None = None) -> Tensor:
        """`__call__`, where f must be finite.

        Raises:
            ValueError: another number of objectives; returns or values that are not finite.
        """
        values = self(returns, multipliers)
        _check_finite(returns)
        if not bool(torch.isfinite(values).all()):
            first = int((~torch.isfinite(values)).reshape(-1).nonzero()[0])
            point = self.project(returns).reshape(-1, returns.shape[-1])[first]
            raise ValueError(self._not_finite(f"its value is {_entry(values, first):g}", point))
        return values

    def value_and_gradient(self, returns: Tensor, multipliers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f, a scalar, and c = ∇f [K], both at the projection of J = `returns` [K] and without a graph.

        c is the gradient *at* the projected point. Differentiated through the projection it would be 0 for an objective
        outside the box, which would then never find back.

        Args:
            returns: J, an estimate of the expected returns.
            multipliers: as `ascend` left them; None for the first ones.

        Raises:
            ValueError: not K finite numbers; the value is not one finite number; a derivative is not finite, as that of
                a root or a logarithm at the edge of its domain.
        """
        self._check_returns(returns)
        if returns.ndim != 1:
            raise ValueError(f"returns: expected a vector [K], got shape {tuple(returns.shape)}")
        _check_finite(returns)
        if multipliers is None:
            multipliers = self.first_multipliers(len(returns))
        point = self.project(returns.detach()).clone().requires_grad_()
        with torch.enable_grad():
            value = self.evaluate(point, multipliers.detach().to(point))
            if not isinstance(value, Tensor) or value.shape != ():
                raise ValueError(f"utility: {self}: expected a scalar tensor of the returns, got {value!r}")
            if not value.requires_grad:
                raise ValueError(f"utility: {self}: its value does not depend on the returns through torch operations")
            (gradient,) = torch.autograd.grad(value, point, allow_unused=True)
        gradient = torch.zeros_like(point) if gradient is None else gradient
        if not bool(torch.isfinite(gradient).all()):
            k = int((~torch.isfinite(gradient)).nonzero()[0])
            fault = f"its derivative is {_entry(gradient, k):g} for objective {k}, where J_{k} = {_entry(point, k):g}"
            raise ValueError(self._not_finite(fault, point))
        if not bool(torch.isfinite(value)):
            raise ValueError(self._not_finite(f"its value is {_entry(value, 0):g}", point))
        return value.detach(), gradient

    def project(self, returns: Tensor) -> Tensor:
        """The points [..., K] of the box that are nearest to `returns` [..., K]."""
        if self.low is None and self.high is None:
            return returns
        low = returns.new_tensor(spread(self.low, returns.shape[-1], -math.inf))
        return returns.clamp(low, returns.new_tensor(spread(self.high, returns.shape[-1], math.inf)))

    def first_multipliers(self, num_objectives: int) -> Tensor:
        """The multipliers to start with: [0], none, except for a `Lagrangian`, which has [K].

        Raises:
            ValueError: the utility is one of another number of objectives.
        """
        self.check_num_objectives(num_objectives)
        return torch.zeros(0)

    def ascend(self, multipliers: Tensor, returns: Tensor) -> Tensor:
        """The multipliers after an iteration with J = `returns` [K], not projected; the same but for a `Lagrangian`."""
        return multipliers

    def check_num_objectives(self, num_objectives: int) -> None:
        """Raises ValueError unless the utility is one of `num_objectives` objectives."""
        expected = self.num_objectives
        if expected not in (None, num_objectives):
            raise ValueError(f"utility: {self}: expected returns of {_count(expected, 'objective')}, got {num_objectives}")

    def __str__(self) -> str:
        """The text that `as_vector_utility` reads."""
        return utility_text(self.kind, self)

    def _check_returns(self, returns: Tensor) -> None:
        if not isinstance(returns, Tensor) or not returns.is_floating_point() or returns.ndim == 0:
            raise ValueError(f"returns: expected a tensor [..., K] of floating-point numbers, got {returns!r}")
        self.check_num_objectives(returns.shape[-1])

    def _not_finite(self, fault: str, point: Tensor) -> str:
        at = ", ".join(f"{value:g}" for value in point.detach().tolist())
        return f"utility: {self}: {fault}, at J = ({at}); give it a box (low, high) or an offset that keeps J where f is finite"


def _check_finite(returns: Tensor) -> None:
    if not bool(torch.isfinite(returns).all()):
        first = (~torch.isfinite(returns)).nonzero()[0].tolist()
        raise ValueError(f"returns: expected finite numbers, got {float(returns[tuple(first)]):g} for objective {first[-1]}")


def _entry(tensor: Tensor, index: int) -> float:
    return float(tensor.detach().reshape(-1)[index])


def _count(number: int | None, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
