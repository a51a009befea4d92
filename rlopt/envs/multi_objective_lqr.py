"""Several quadratic costs on one linear system: a continuous control problem whose Pareto front is known exactly.

Letters: those of `linear_quadratic`, and K objectives. All numbers are float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlopt.arguments import check_number
from rlopt.envs.finite_horizon import SingleCopy
from rlopt.envs.linear_quadratic import LinearQuadratic
from rlopt.envs.linear_quadratic_vector import LinearVectorEnv
from rlopt.envs.spaces import Array


@dataclass(frozen=True, eq=False)
class MultiObjectiveLQR:
    """x_{t+1} = A x_t + B u_t + w_t, which pays −(xᵀQ_k x + uᵀR_k u) for k = 1 … K in each of H steps.

    J_k is the sum of objective k discounted by γ^t. Costs are linear in the second moments of (x_t, u_t), which form a
    convex set: the returns of all policies are convex towards the front, so that weighted sums reach every point of it,
    and the gains of each are those of an ordinary `LinearQuadratic` problem with the costs Σ w_k Q_k and Σ w_k R_k.

    Attributes:
        A: [n, n].
        B: [n, m].
        Q: [K, n, n], each symmetric, positive semi-definite.
        R: [K, m, m], each symmetric, positive definite.
        noise_covariance: [n, n], of w_t.
        initial_mean: [n], of x_0, which is Gaussian.
        initial_covariance: [n, n].
        gamma: the discount γ in [0, 1].
        horizon: H.

    Raises:
        ValueError: a shape or a range that does not fit; the message names the attribute.
    """

    A: Tensor
    B: Tensor
    Q: Tensor
    R: Tensor
    noise_covariance: Tensor
    initial_mean: Tensor
    initial_covariance: Tensor
    gamma: float
    horizon: int

    def __post_init__(self) -> None:
        for name in ("A", "B", "Q", "R", "noise_covariance", "initial_mean", "initial_covariance"):
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name), dtype=torch.float64))
        for name in ("Q", "R"):
            matrices = getattr(self, name)
            if matrices.ndim != 3 or len(matrices) != len(self.Q) or len(matrices) < 2:
                raise ValueError(f"{name}: expected K ≥ 2 matrices in one tensor, as many as Q, got {tuple(matrices.shape)}")
        for k in range(self.num_objectives):
            self.objective(k)  # which checks the rest

    @classmethod
    def crossed(
        cls, num_objectives: int = 2, horizon: int = 20, gamma: float = 0.9, cross: float = 0.1, noise: float = 0.0
    ) -> MultiObjectiveLQR:
        """K coordinates, each pushed by an action of its own: objective k wants x_k near 0, and the other actions small.

        x_{t+1} = x_t + u_t + w_t from x_0 = (1, …, 1). Objective k has 1 − ξ at x_k and ξ at the other coordinates, ξ at u_k
        and 1 − ξ at the other actions. After Parisi, Pirotta and Restelli, JAIR 57, 2016, where x_0 is ten times as far.

        Args:
            num_objectives: K.
            horizon: H.
            gamma: γ.
            cross: ξ in (0, 1), how much the objectives share; at ½ they are the same.
            noise: standard deviation of w_t.
        """
        check_number("num_objectives", num_objectives, at_least=2, whole=True)
        check_number("cross", cross, positive=True, at_most=1 - 1e-9)
        check_number("noise", noise, at_least=0)
        size, eye = num_objectives, torch.eye(num_objectives, dtype=torch.float64)
        own = torch.diag_embed(eye)  # [K, K, K], 1 at (k, k, k)
        return cls(
            A=eye,
            B=eye,
            Q=cross * eye + (1 - 2 * cross) * own,
            R=(1 - cross) * eye - (1 - 2 * cross) * own,
            noise_covariance=noise**2 * eye,
            initial_mean=torch.ones(size),
            initial_covariance=torch.zeros(size, size),
            gamma=gamma,
            horizon=horizon,
        )

    @property
    def num_objectives(self) -> int:
        """K."""
        return len(self.Q)

    def objective(self, k: int) -> LinearQuadratic:
        """The problem of objective k alone."""
        return self._with_costs(self.Q[k], self.R[k])

    def weighted(self, weights: Tensor) -> LinearQuadratic:
        """The problem whose reward is Σ_k w_k r_k; its value is Σ_k w_k J_k.

        Args:
            weights: w [K], non-negative, not all 0.

        Raises:
            ValueError: other weights.
        """
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if weights.shape != (self.num_objectives,):
            raise ValueError(f"weights: expected {self.num_objectives} numbers, one an objective, got {tuple(weights.shape)}")
        if not bool(weights.isfinite().all() & (weights >= 0).all() & (weights > 0).any()):
            raise ValueError(f"weights: expected non-negative numbers, one of them positive, got {weights.tolist()}")
        return self._with_costs(torch.tensordot(weights, self.Q, 1), torch.tensordot(weights, self.R, 1))

    def values(self, gain: Tensor, offset: Tensor | None = None, std: Tensor | None = None) -> Tensor:
        """J [K] of u ~ N(K x + k, diag(σ²)), differentiable; arguments as `LinearQuadratic.value` takes them."""
        return torch.stack([self.objective(k).value(gain, offset, std) for k in range(self.num_objectives)])

    def jacobian(self, gain: Tensor, offset: Tensor | None = None, std: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """∂J/∂K, ∂J/∂k and ∂J/∂σ, [K, *gain], [K, m] and [K, m]: the gradients of all objectives."""
        slopes = [self.objective(k).gradient(gain, offset, std) for k in range(self.num_objectives)]
        of_gain, of_offset, of_std = (torch.stack(column) for column in zip(*slopes, strict=True))
        return of_gain, of_offset, of_std

    def front(self, weights: Tensor) -> Tensor:
        """Points J [W, K] of the Pareto front of all policies: the best for each weighted sum, by the Riccati recursion.

        Args:
            weights: [W, K]. The R_k being definite, no two best policies act differently: no point is dominated, not even
                where a weight is 0.
        """
        return self._best(weights, lambda problem: self.values(problem.optimal_gains()))

    def stationary_front(self, weights: Tensor, std: Tensor | None = None) -> Tensor:
        """J [W, K] at the best policy for each weighted sum that is constant in time, of exploration σ [m], as agents have.

        Local maxima, see `LinearQuadratic.best_stationary_policy`; never above `front`.
        """
        return self._best(weights, lambda problem: self.values(*problem.best_stationary_policy(std), std))

    def _best(self, weights: Tensor, values: Callable[[LinearQuadratic], Tensor]) -> Tensor:
        rows = torch.as_tensor(weights, dtype=torch.float64)
        if rows.ndim != 2:
            raise ValueError(f"weights: expected shape (W, {self.num_objectives}), got {tuple(rows.shape)}")
        return torch.stack([values(self.weighted(row)) for row in rows])

    def _with_costs(self, state_cost: Tensor, action_cost: Tensor) -> LinearQuadratic:
        return LinearQuadratic(
            A=self.A,
            B=self.B,
            Q=state_cost,
            R=action_cost,
            noise_covariance=self.noise_covariance,
            initial_mean=self.initial_mean,
            initial_covariance=self.initial_covariance,
            gamma=self.gamma,
            horizon=self.horizon,
        )


class MultiObjectiveLQRVectorEnv(LinearVectorEnv):
    """N copies of a `MultiObjectiveLQR` problem; observations are states [N, n], rewards [N, K], truncated at its horizon.

    Attributes:
        problem: whose exact values and front are those of this environment.
    """

    def __init__(self, problem: MultiObjectiveLQR, num_envs: int = 1):
        super().__init__(problem.objective(0), num_envs)
        self.problem = problem
        self.reward_space = spaces.Box(-np.inf, 0.0, (problem.num_objectives,), np.float32)
        self._costs = problem.Q.detach().numpy(), problem.R.detach().numpy()

    def front(self, weights: Tensor) -> Tensor:
        """See `MultiObjectiveLQR.front`."""
        return self.problem.front(weights)

    def _rewards(self, states: Array, actions: Array) -> Array:
        q, r = self._costs
        return -(np.einsum("ni,kij,nj->nk", states, q, states) + np.einsum("ni,kij,nj->nk", actions, r, actions))


def crossed_costs_envs(num_envs: int = 1, **kwargs: Any) -> MultiObjectiveLQRVectorEnv:
    """ "rlopt/MultiObjectiveLQR-v0"; `kwargs` are those of `MultiObjectiveLQR.crossed`."""
    return MultiObjectiveLQRVectorEnv(MultiObjectiveLQR.crossed(**kwargs), num_envs)


def crossed_costs_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/MultiObjectiveLQR-v0"."""
    return SingleCopy(crossed_costs_envs(1, **kwargs))
