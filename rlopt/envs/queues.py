"""Queues that share one server: a reward for each, so that what to maximise is a matter of fairness."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from rlopt.arguments import check_number
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv, SingleCopy
from rlopt.envs.spaces import Array

CAPACITY = 500  # jobs; arrivals at a full queue are turned away

# p0 and d by the number of queues: in all 0.8 jobs arrive per step.
PRESETS = {
    6: (0.05, 0.033),
    8: (0.0125, 0.025),
    12: (0.0115, 0.01),
    16: (0.005, 0.006),
    32: (0.00175, 0.0015),
    64: (0.00053, 0.00038),
}


@dataclass(frozen=True)
class Queues:
    """M queues and a server that takes one job per step from the queue it chose.

    In a step the action is chosen from the lengths; then Poisson(p_m) jobs arrive at queue m, with p_m = p0 + m d; then
    the chosen queue a is served. The reward is e_a [M] if a job was there, else 0: J_m is the discounted number of jobs
    served in queue m. Queues begin empty, nothing terminates.

    Attributes:
        num_queues: M = K.
        p0, d: jobs per step; None takes those of the paper, for M = 6, 8, 12, 16, 32 and 64.
        horizon: steps after which an episode is truncated.
        log1p: observe log(1 + length) in place of the lengths.

    Raises:
        ValueError: an argument is out of range, or there are no rates for this M.

    Source: Guidobene, Benedetti and Arapovic, arXiv:2508.10608.
    """

    num_queues: int = 6
    p0: float | None = None
    d: float | None = None
    horizon: int = 500
    log1p: bool = False

    def __post_init__(self) -> None:
        check_number("num_queues", self.num_queues, at_least=2, whole=True)
        check_number("horizon", self.horizon, positive=True, whole=True)
        if (self.p0 is None) != (self.d is None):
            raise ValueError(f"p0, d: expected both or none, got p0={self.p0} and d={self.d}")
        if self.p0 is None and self.num_queues not in PRESETS:
            raise ValueError(f"num_queues: expected one of {', '.join(map(str, PRESETS))} or p0 and d, got {self.num_queues}")
        if self.p0 is not None and self.d is not None:
            check_number("p0", self.p0, at_least=0.0)
            check_number("d", self.d, at_least=-self.p0 / (self.num_queues - 1))
            check_number("p0, d: the jobs per step in all", float(self.rates.sum()), at_most=CAPACITY, positive=True)

    @property
    def rates(self) -> Array:
        """p [M], jobs per step that arrive at each queue."""
        p0, d = PRESETS[self.num_queues] if self.p0 is None or self.d is None else (self.p0, self.d)
        return p0 + np.arange(self.num_queues) * d

    def arrivals_bound(self, gamma: float) -> Array:
        """E[Σ_t γ^t arrivals], [M]: no policy serves more, so that J_m is at most this."""
        steps = self.horizon if gamma == 1.0 else (1.0 - gamma**self.horizon) / (1.0 - gamma)
        return self.rates * steps


class QueuesVectorEnv(FiniteHorizonVectorEnv):
    """N copies of `Queues`; observations are lengths after service, [N, M] float32, rewards [N, M].

    Args:
        problem: how many queues, and how full.
        num_envs: N.
    """

    draws_by_copy = False

    def __init__(self, problem: Queues, num_envs: int = 1):
        longest = math.log1p(CAPACITY) if problem.log1p else CAPACITY
        seen = spaces.Box(0.0, longest, (problem.num_queues,), np.float32)
        super().__init__(num_envs, problem.horizon, seen, spaces.Discrete(problem.num_queues))
        self.problem = problem
        self.reward_space = spaces.Box(0.0, 1.0, (problem.num_queues,), np.float32)
        self._total = poisson_distribution(float(problem.rates.sum()))
        self._which = np.cumsum(problem.rates) / np.cumsum(problem.rates)[-1]
        self._rows = np.arange(num_envs)
        self._none_ended = np.zeros(num_envs, bool)

    def _first_states(self, num: int) -> Array:
        """Lengths [num, M]."""
        return np.zeros((num, self.problem.num_queues), np.int32)

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        lengths = states.copy()
        np.add.at(lengths, self._arrivals(), 1)
        np.minimum(lengths, CAPACITY, out=lengths)
        served = lengths[self._rows, actions] > 0
        lengths[self._rows, actions] -= served
        rewards = np.zeros(lengths.shape)
        rewards[self._rows, actions] = served
        return lengths, rewards, self._none_ended

    def _observations(self, states: Array) -> Array:
        return np.log1p(states, dtype=np.float32) if self.problem.log1p else states.astype(np.float32)

    def _arrivals(self) -> tuple[Array, Array]:
        """The copy and the queue of each job that arrives in this step, [J] both.

        In all Poisson(Σ p_m) jobs arrive at a copy, each at queue m with probability p_m / Σ p: the same as Poisson(p_m) at
        each, with far fewer random numbers.
        """
        jobs = np.searchsorted(self._total, self.np_random.random(self.num_envs), side="right")
        copies = np.repeat(self._rows, jobs)
        return copies, np.searchsorted(self._which, self.np_random.random(len(copies)), side="right")


def poisson_distribution(rate: float) -> Array:
    """P(X ≤ k) for k = 0, 1, …, up to where float64 cannot tell it from 1; X ~ Poisson(rate), rate up to 700."""
    masses = [math.exp(-rate)]
    while masses[-1] > 1e-18 or len(masses) <= rate:
        masses.append(masses[-1] * rate / len(masses))
    return np.minimum(np.cumsum(masses), 1.0)


def queues_envs(num_envs: int = 1, **kwargs: Any) -> QueuesVectorEnv:
    """ "rlopt/Queues-v0"; `kwargs` are those of `Queues`."""
    return QueuesVectorEnv(Queues(**kwargs), num_envs)


def queues_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/Queues-v0"."""
    return SingleCopy(queues_envs(1, **kwargs))
