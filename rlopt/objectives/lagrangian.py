"""Constraints on objectives, as a utility with multipliers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.objectives.fields import as_bounds, as_number, as_vector, store
from rlopt.objectives.vector_utility import VectorUtility


@dataclass(frozen=True)
class Lagrangian(VectorUtility):
    """One objective, subject to J_k ≥ threshold_k for others: max_θ min_{μ ≥ 0} of

        f(J) = J_objective + Σ_k μ_k (J_k − threshold_k),                  c = ∇f(J) = e_objective + μ
        μ_k ← clip(μ_k − step_size · (J_k − threshold_k), 0, max_multiplier)

    The sum is over the constrained objectives; the multipliers μ are [K], 0 for the others. Agents ascend f in θ, and call
    `ascend` after every iteration: a multiplier grows while its constraint is violated. At a fixed point (below
    max_multiplier) every constraint holds, and μ_k > 0 only where it holds with equality. f is linear in J: where only a
    mixture is optimal, θ and μ may circle around the solution, which their averages approach. μ should be slower than θ.

    Source: Altman, Constrained Markov Decision Processes (1999), for the Lagrangian; the multipliers' projected step is
    that of Tessler et al., arXiv:1805.11074, where constraints are upper bounds on costs.

    Args:
        objective: the index of what to maximise, from 0; or K weights, to maximise ⟨weights, J⟩.
        thresholds: K numbers, None for an objective without a constraint; a cost C ≤ α is the reward −C with −α.
        step_size: at least 0, in multipliers per unit of return; 0 keeps fixed penalties.
        initial_multiplier: of every constraint, at least 0.
        max_multiplier: bounds μ where constraints cannot be met; None for no bound.
    """

    kind: ClassVar[str] = "lagrangian"

    objective: int | Sequence[float]
    thresholds: Sequence[float | None]
    step_size: float
    initial_multiplier: float = 0.0
    max_multiplier: float | None = None

    def __post_init__(self) -> None:
        thresholds = as_bounds("thresholds", self.thresholds, -math.inf)
        if not isinstance(thresholds, tuple):
            raise ValueError(
                "thresholds: expected a sequence of K numbers, None for an objective without a constraint, at least one a "
                f"number, got {self.thresholds!r}"
            )
        objective: int | tuple[float, ...]
        if isinstance(self.objective, Integral):
            objective = int(as_number("objective", self.objective, at_least=0, at_most=len(thresholds) - 1, whole=True))
        else:
            objective = as_vector("objective", self.objective)
        most = None if self.max_multiplier is None else as_number("max_multiplier", self.max_multiplier, at_least=0)
        initial = as_number(
            "initial_multiplier", self.initial_multiplier, at_least=0, at_most=math.inf if most is None else most
        )
        store(self, objective=objective, thresholds=thresholds, max_multiplier=most, initial_multiplier=initial)
        store(self, step_size=as_number("step_size", self.step_size, at_least=0))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        self._check_multipliers(multipliers)
        if isinstance(self.objective, int):
            objective = point[..., self.objective]
        else:
            objective = (point * point.new_tensor(self.objective)).sum(-1)
        return objective - (multipliers * self._violations(point)).sum(-1)

    def first_multipliers(self, num_objectives: int) -> Tensor:
        self.check_num_objectives(num_objectives)
        return torch.tensor([0.0 if threshold is None else self.initial_multiplier for threshold in self.thresholds])

    def ascend(self, multipliers: Tensor, returns: Tensor) -> Tensor:
        self._check_returns(returns)
        self._check_multipliers(multipliers)
        ascended = multipliers.detach() + self.step_size * self._violations(returns.detach()).to(multipliers)
        return ascended.clamp(0.0, self.max_multiplier)

    def violations(self, returns: Tensor) -> Tensor:
        """By how much J_k is below its threshold, [..., K] of `returns` [..., K]; 0 where it is not."""
        self._check_returns(returns)
        return self._violations(returns).clamp_min(0.0)

    def _violations(self, returns: Tensor) -> Tensor:
        """threshold_k − J_k, 0 for objectives without a constraint."""
        constrained = returns.new_tensor([threshold is not None for threshold in self.thresholds])
        return constrained * (returns.new_tensor([threshold or 0.0 for threshold in self.thresholds]) - returns)

    def _check_multipliers(self, multipliers: Tensor) -> None:
        if multipliers.shape != (len(self.thresholds),):
            raise ValueError(f"multipliers: expected shape ({len(self.thresholds)},), got {tuple(multipliers.shape)}")
