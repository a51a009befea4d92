"""Smooth concave utilities, which prefer returns that are alike: logarithms, reciprocals and square roots."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from rlopt.arguments import check_number
from rlopt.objectives.fields import Numbers, as_numbers, store
from rlopt.objectives.vector_utility import VectorUtility


@dataclass(frozen=True)
class ProportionalFairness(VectorUtility):
    """f(J) = Σ_k log(J_k + σ), concave where J_k > −σ, which is its domain. σ: a number, or K numbers."""

    kind: ClassVar[str] = "fairness"

    offset: Numbers

    def __post_init__(self) -> None:
        store(self, offset=as_numbers("offset", self.offset))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return _where_positive(point + point.new_tensor(self.offset)).log().sum(-1)


@dataclass(frozen=True)
class Reciprocals(VectorUtility):
    """f(J) = Σ_k −scale_k / (J_k + offset_k), concave where J_k > −offset_k, which is its domain.

    Args:
        scale: positive; a number, or K numbers.
        offset: a number, or K numbers.
    """

    kind: ClassVar[str] = "reciprocals"

    scale: Numbers
    offset: Numbers = 1.0

    def __post_init__(self) -> None:
        store(self, scale=as_numbers("scale", self.scale), offset=as_numbers("offset", self.offset))
        if min(np.atleast_1d(self.scale)) <= 0:
            raise ValueError(f"scale: expected positive numbers, got {self.scale}")
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return -(point.new_tensor(self.scale) / _where_positive(point + point.new_tensor(self.offset))).sum(-1)


@dataclass(frozen=True)
class SquareRoots(VectorUtility):
    """f(J) = Σ_k √(J_k + offset_k), concave where J_k ≥ −offset_k, its domain. offsets: K numbers, or one for all."""

    kind: ClassVar[str] = "square-roots"

    offsets: Numbers

    def __post_init__(self) -> None:
        store(self, offsets=as_numbers("offsets", self.offsets))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return (point + point.new_tensor(self.offsets)).sqrt().sum(-1)


def queue_utility(horizon: int, gamma: float) -> Reciprocals:
    """Σ_k −H / (J_k + 1) with the box [0, Σ_{t<H} γ^t]: J_k is the discounted number of jobs that queue k had served.

    Source: Guidobene et al., arXiv:2508.10608, as in the configuration that was published with it.

    Args:
        horizon: H, environment steps of an episode.
        gamma: the discount, in [0, 1]; at 1 the box ends at H.
    """
    check_number("horizon", horizon, at_least=1, whole=True)
    check_number("gamma", gamma, at_least=0, at_most=1)
    most = float(horizon) if gamma == 1 else (1 - gamma**horizon) / (1 - gamma)
    return Reciprocals(scale=float(horizon), offset=1.0, low=0.0, high=most)


def deep_sea_treasure_utility() -> SquareRoots:
    """√(J_0 + 1) + √(101 + J_1) with the box J_0 ≥ 0, −100 ≤ J_1 ≤ 0; J_0 is the treasure, J_1 minus the time.

    Source: Guidobene et al., arXiv:2508.10608, as in the configuration that was published with it.
    """
    return SquareRoots((1.0, 101.0), low=(0.0, -100.0), high=(None, 0.0))


def _where_positive(x: Tensor) -> Tensor:
    """x, and NaN where it is not positive, in derivatives too.

    Beyond its pole a logarithm or a reciprocal would have a finite derivative, that of the wrong branch.
    """
    return x * torch.where(x > 0, 1.0, math.nan).to(x)
