"""Utilities that judge a policy by its worst objective, relative to an ideal point: Chebyshev's, plain and smooth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rlopt.objectives.fields import Numbers, as_number, as_numbers, as_vector, store
from rlopt.objectives.vector_utility import VectorUtility


@dataclass(frozen=True)
class Chebyshev(VectorUtility):
    """f(J) = −max_k x_k − ρ Σ_k x_k with x_k = w_k (z*_k − J_k), w ≥ 0: concave, and not smooth where maxima tie.

    c is a supergradient: w_k e_k + ρ w for the largest x_k, and the mean of these where several are largest.

    Args:
        weights: w [K], not negative, not all 0.
        ideal: z* [K], or one number for all: the best that each objective could be.
        augmentation: ρ ≥ 0; about 0.01 rules out points that are only weakly Pareto-optimal.
    """

    kind: ClassVar[str] = "chebyshev"

    weights: Sequence[float]
    ideal: Numbers
    augmentation: float = 0.0

    def __post_init__(self) -> None:
        store(self, weights=_chebyshev_weights(self.weights), ideal=as_numbers("ideal", self.ideal))
        store(self, augmentation=as_number("augmentation", self.augmentation, at_least=0))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        regrets = _regrets(self, point)
        return -regrets.amax(-1) - self.augmentation * regrets.sum(-1)


@dataclass(frozen=True)
class SmoothChebyshev(VectorUtility):
    """f_μ(J) = −μ log Σ_k exp(x_k / μ) with x_k = w_k (z*_k − J_k), w ≥ 0: concave, f_μ ≤ f ≤ f_μ + μ log K.

    f is `Chebyshev` without augmentation; c_k = w_k softmax(x / μ)_k.

    Args:
        weights: w [K], not negative, not all 0.
        ideal: z* [K], or one number for all: the best that each objective could be.
        temperature: μ > 0, in the unit of x.
    """

    kind: ClassVar[str] = "smooth-chebyshev"

    weights: Sequence[float]
    ideal: Numbers
    temperature: float

    def __post_init__(self) -> None:
        store(self, weights=_chebyshev_weights(self.weights), ideal=as_numbers("ideal", self.ideal))
        store(self, temperature=as_number("temperature", self.temperature, positive=True))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return -self.temperature * (_regrets(self, point) / self.temperature).logsumexp(-1)


def _chebyshev_weights(value: Any) -> tuple[float, ...]:
    weights = as_vector("weights", value)
    if min(weights) < 0 or max(weights) == 0:
        raise ValueError(f"weights: expected numbers that are not negative, and not all 0, got {weights}")
    return weights


def _regrets(utility: Chebyshev | SmoothChebyshev, point: Tensor) -> Tensor:
    """x_k = w_k (z*_k − J_k), [..., K]."""
    return point.new_tensor(utility.weights) * (point.new_tensor(utility.ideal) - point)
