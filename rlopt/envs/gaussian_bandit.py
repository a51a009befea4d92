"""The smallest continuous problem: one step, one Gaussian action, everything known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlopt.arguments import check_number
from rlopt.rollout import Rollout


@dataclass(frozen=True)
class GaussianBandit:
    """a ~ N(θ, σ²) is paid −(a − a*)², so that J(θ) = −(θ − a*)² − σ².

    The mean θ is a flat parameter vector [1]; the only observation is 0, [1].

    Attributes:
        target: a*.
        std: σ of the policy, fixed.

    Raises:
        ValueError: an argument is out of range.
    """

    target: float = 1.0
    std: float = 1.0

    def __post_init__(self) -> None:
        check_number("target", self.target)
        check_number("std", self.std, positive=True)

    def value(self, theta: Tensor) -> Tensor:
        """J(θ), a scalar."""
        return -((theta - self.target) ** 2).sum() - self.std**2

    def gradient(self, theta: Tensor) -> Tensor:
        """∇J(θ) = −2(θ − a*), [1]."""
        return -2 * (theta - self.target)

    def hessian(self, theta: Tensor) -> Tensor:
        """∇²J(θ) = −2, [1, 1]."""
        return -2 * torch.eye(len(theta), dtype=theta.dtype)

    def log_prob(self, theta: Tensor, observations: Tensor, actions: Tensor) -> Tensor:
        """log π_θ(a | s), [...], of actions [..., 1]; the observations say nothing."""
        return (-0.5 * ((actions - theta) / self.std) ** 2 - math.log(self.std) - 0.5 * math.log(2 * math.pi)).sum(-1)

    def enumerate(self, theta: Tensor, num_nodes: int = 16) -> tuple[Rollout, Tensor]:
        """Gauss–Hermite nodes as one-step episodes, and their weights [N].

        Σ_n w_n f(a_n) = E[f(a)] for polynomials f of a degree below 2 · `num_nodes`: exact for score estimators of ∇J and
        ∇²J, whose degrees are 3 and 4, and for their squares.
        """
        check_number("num_nodes", num_nodes, positive=True, whole=True)
        nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(num_nodes))
        actions = (theta.detach().to(torch.float64) + self.std * nodes[:, None])[None]
        states = torch.zeros(2, num_nodes, 1, dtype=torch.float64)
        everywhere = torch.ones(1, num_nodes, dtype=torch.bool)
        rollout = Rollout(
            states=states,
            actions=actions,
            log_probs=self.log_prob(theta.detach(), states[:-1], actions),
            rewards=-((actions - self.target) ** 2).sum(-1),
            terminated=everywhere,
            truncated=~everywhere,
            mask=everywhere,
            final_rows=torch.zeros(0, dtype=torch.int64),
            final_observations=states[:0, 0],
        )
        return rollout, weights / weights.sum()
