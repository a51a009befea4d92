"""Recall of a number: shown once, asked for later, with a memory of one number that is noisy. All in closed form.

Source: the objective of a stochastic stateful policy, Al-Hafez et al., arXiv:2311.04082; the closed form is re-derived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlopt.arguments import check_number
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv, SingleCopy
from rlopt.envs.linear_quadratic_vector import ACTION_LIMIT
from rlopt.envs.spaces import Array, ArrayTree


@dataclass(frozen=True)
class ContinuousRecall:
    """s ~ N(0, 1) is observed at step 0, o = s, and o = 0 after it; the action of step T is paid −(a − s)², others nothing.

    The exact values are those of a linear policy: z_0 = 0, at every step z' ~ N(w z + k o, σ_z²), and a ~ N(c z, σ_a²)
    reads the memory z that came into the step. So the memory is updated T times before it is read: z_1 = k s + σ_z ε,
    z_{i+1} = w z_i + σ_z ε. (A policy whose action reads the mean of z' instead, w z at step T, is this one with c w
    in place of c.) Its parameters are (k, c, w), [3], and σ_z and σ_a are given; γ is 1.

    Attributes:
        num_updates: T.

    Raises:
        ValueError: T is not a whole number of at least 1.
    """

    num_updates: int = 4

    def __post_init__(self) -> None:
        check_number("num_updates", self.num_updates, positive=True, whole=True)

    @property
    def horizon(self) -> int:
        """T + 1 steps, the last of which is scored."""
        return self.num_updates + 1

    def value(self, parameters: Tensor, sigma_z: float, sigma_a: float) -> Tensor:
        """J = −[m² + c² σ_z² S + σ_a²], m = c k w^{T−1} − 1, S = Σ_{i<T} w^{2i}; a scalar, differentiable.

        At σ_z = 0 this is the objective of backpropagation through time.
        """
        k, c, w = parameters
        error = c * k * w ** (self.num_updates - 1) - 1
        return -(error**2 + c**2 * sigma_z**2 * self._noise(w, self.num_updates) + sigma_a**2)

    def gradient(self, parameters: Tensor, sigma_z: float) -> Tensor:
        """∇J, [3], written out: −2 m c w^{T−1}, −2 m k w^{T−1} − 2 c σ_z² S, and that of w; σ_a has no part in it."""
        k, c, w = parameters
        last = self.num_updates - 1
        error = c * k * w**last - 1
        by_w = last * w ** max(last - 1, 0)  # of w^{T−1}; 0 at T = 1 whatever w is
        powers = torch.arange(1, self.num_updates, dtype=torch.float64)
        noise_by_w = (2 * powers * w ** (2 * powers - 1)).sum()
        return torch.stack(
            [
                -2 * error * c * w**last,
                -2 * error * k * w**last - 2 * c * sigma_z**2 * self._noise(w, self.num_updates),
                -2 * error * c * k * by_w - c**2 * sigma_z**2 * noise_by_w,
            ]
        )

    def state_value(
        self, parameters: Tensor, sigma_z: float, sigma_a: float, step: int, target: Tensor, memory: Tensor
    ) -> Tensor:
        """V_i(s, z) at step i, 1 ≤ i ≤ T, of a target s and a memory z that came into the step, both [...].

        V_i = −[(c w^{T−i} z − s)² + c² σ_z² Σ_{j<T−i} w^{2j} + σ_a²], differentiable in z too.
        """
        check_number("step", step, at_least=1, at_most=self.num_updates, whole=True)
        _, c, w = parameters
        left = self.num_updates - step
        return -((c * w**left * memory - target) ** 2 + c**2 * sigma_z**2 * self._noise(w, left) + sigma_a**2)

    @staticmethod
    def _noise(w: Tensor, num: int) -> Tensor:
        """Σ_{i<num} w^{2i}."""
        return (w ** (2 * torch.arange(num, dtype=torch.float64))).sum()


class ContinuousRecallVectorEnv(FiniteHorizonVectorEnv):
    """N copies of `ContinuousRecall`; observations are (o, whether this step's action is scored).

    Args:
        problem: how long the delay is.
        num_envs: N.
        privileged: show {"observation": the above, "critic": (s, the time in [0, 1])}.
    """

    joinable = True

    def __init__(self, problem: ContinuousRecall, num_envs: int = 1, privileged: bool = False):
        seen: spaces.Space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        space = spaces.Dict({"observation": seen, "critic": seen}) if privileged else seen
        super().__init__(num_envs, problem.horizon, space, spaces.Box(-ACTION_LIMIT, ACTION_LIMIT, (1,), np.float32))
        self.problem, self.privileged = problem, privileged

    def _first_states(self, num: int) -> Array:
        """(s, t), [num, 2]."""
        return np.stack([self.np_random.standard_normal(num), np.zeros(num)], 1)

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        targets, times = states.T
        asked = times == self.problem.num_updates
        errors = actions[:, 0].astype(np.float64) - targets
        return states + np.array([0.0, 1.0]), np.where(asked, -(errors**2), 0.0), asked

    def _observations(self, states: Array) -> ArrayTree:
        targets, times = states.T
        asked = times >= self.problem.num_updates
        seen = np.column_stack([np.where(times == 0, targets, 0.0), asked]).astype(np.float32)
        if not self.privileged:
            return seen
        time = np.minimum(times / self.problem.num_updates, 1)  # the last observation comes after the question
        return {"observation": seen, "critic": np.column_stack([targets, time]).astype(np.float32)}


def continuous_recall_envs(num_envs: int = 1, privileged: bool = False, **kwargs: Any) -> ContinuousRecallVectorEnv:
    """ "rlopt/ContinuousRecall-v0"; `kwargs` are those of `ContinuousRecall`."""
    return ContinuousRecallVectorEnv(ContinuousRecall(**kwargs), num_envs, privileged)


def continuous_recall_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/ContinuousRecall-v0"."""
    return SingleCopy(continuous_recall_envs(1, **kwargs))
