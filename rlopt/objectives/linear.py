"""Utilities that are linear in the returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rlopt.objectives.fields import as_vector, store
from rlopt.objectives.vector_utility import VectorUtility


@dataclass(frozen=True)
class Identity(VectorUtility):
    """f(J) = J_0 for K = 1: one objective, as a control."""

    kind: ClassVar[str] = "identity"
    only_num_objectives: ClassVar[int | None] = 1

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return point[..., 0]


@dataclass(frozen=True)
class WeightedSum(VectorUtility):
    """f(J) = ⟨w, J⟩. Its maxima are points of the convex hull of what can be reached; ESR = SER.

    Weights are any finite numbers; those that stand for preferences are checked by `check_preferences`.
    """

    kind: ClassVar[str] = "weighted-sum"

    weights: Sequence[float]

    def __post_init__(self) -> None:
        store(self, weights=as_vector("weights", self.weights))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return (point * point.new_tensor(self.weights)).sum(-1)
