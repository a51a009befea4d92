"""The linear-quadratic problem and the Gaussian bandit as Gymnasium environments."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv, SingleCopy
from rlopt.envs.gaussian_bandit import GaussianBandit
from rlopt.envs.linear_quadratic import LinearQuadratic
from rlopt.envs.spaces import Array

# The exact values are those of actions that are never clipped; finite, because Stable-Baselines3 refuses infinite bounds.
ACTION_LIMIT = 1e6


class LinearVectorEnv(FiniteHorizonVectorEnv):
    """N copies of x_{t+1} = A x_t + B u_t + w_t; observations are states [N, n], truncated at the horizon.

    A subclass says what a step pays.

    Args:
        system: the dynamics, the noise, how episodes begin, and the horizon; its costs are not looked at.
        num_envs: N.
    """

    joinable = True

    def __init__(self, system: LinearQuadratic, num_envs: int):
        observations = spaces.Box(-np.inf, np.inf, (system.num_states,), np.float32)
        super().__init__(num_envs, system.horizon, observations, unbounded_actions(system.num_actions))
        self._transition, self._control = system.A.detach().numpy(), system.B.detach().numpy()
        self._initial_mean = system.initial_mean.detach().numpy()
        self._initial_factor = covariance_factor(system.initial_covariance)
        self._noise_factor = covariance_factor(system.noise_covariance)

    @abstractmethod
    def _rewards(self, states: Array, actions: Array) -> Array:
        """r_t, [N] or [N, K], of x_t [N, n] and u_t [N, m], float64."""

    def _first_states(self, num: int) -> Array:
        return self._initial_mean + self.np_random.standard_normal((num, len(self._initial_mean))) @ self._initial_factor.T

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        actions = actions.astype(np.float64)
        noise = self.np_random.standard_normal(states.shape) @ self._noise_factor.T
        following = states @ self._transition.T + actions @ self._control.T + noise
        return following, self._rewards(states, actions), np.zeros(self.num_envs, bool)

    def _observations(self, states: Array) -> Array:
        return states.astype(np.float32)


class LinearQuadraticVectorEnv(LinearVectorEnv):
    """N copies of a `LinearQuadratic` problem; observations are states, truncated at its horizon.

    Attributes:
        problem: whose exact values are those of this environment.
    """

    def __init__(self, problem: LinearQuadratic, num_envs: int = 1):
        super().__init__(problem, num_envs)
        self.problem = problem
        self._costs = problem.Q.detach().numpy(), problem.R.detach().numpy()

    def _rewards(self, states: Array, actions: Array) -> Array:
        q, r = self._costs
        return -((states @ q * states).sum(1) + (actions @ r * actions).sum(1))


class GaussianBanditVectorEnv(FiniteHorizonVectorEnv):
    """N copies of a `GaussianBandit`: one observation, 0, and one step, which terminates.

    Attributes:
        bandit: whose exact values are those of this environment, for a policy with its σ.
    """

    joinable = True

    def __init__(self, bandit: GaussianBandit, num_envs: int = 1):
        super().__init__(num_envs, 1, spaces.Box(-np.inf, np.inf, (1,), np.float32), unbounded_actions(1))
        self.bandit = bandit

    def _first_states(self, num: int) -> Array:
        return np.zeros((num, 1))

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        rewards = -((actions[:, 0].astype(np.float64) - self.bandit.target) ** 2)
        return states.copy(), rewards, np.ones(self.num_envs, bool)

    def _observations(self, states: Array) -> Array:
        return states.astype(np.float32)


def point_mass_envs(num_envs: int = 1, **kwargs: Any) -> LinearQuadraticVectorEnv:
    """ "rlopt/LQR-v0"; `kwargs` are those of `LinearQuadratic.point_mass`."""
    return LinearQuadraticVectorEnv(LinearQuadratic.point_mass(**kwargs), num_envs)


def point_mass_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/LQR-v0"."""
    return SingleCopy(point_mass_envs(1, **kwargs))


def gaussian_bandit_envs(num_envs: int = 1, **kwargs: Any) -> GaussianBanditVectorEnv:
    """ "rlopt/GaussianBandit-v0"; `kwargs` are those of `GaussianBandit`."""
    return GaussianBanditVectorEnv(GaussianBandit(**kwargs), num_envs)


def gaussian_bandit_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/GaussianBandit-v0"."""
    return SingleCopy(gaussian_bandit_envs(1, **kwargs))


def unbounded_actions(num_actions: int) -> spaces.Box:
    """Actions [m] that no bound clips."""
    return spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, (num_actions,), np.float32)


def covariance_factor(covariance: Tensor) -> Array:
    """L with L Lᵀ = covariance, which may be singular."""
    variances, axes = torch.linalg.eigh(covariance.detach())
    return (axes * variances.clamp(min=0).sqrt()).numpy()
