"""A tabular MDP as Gymnasium environments."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv, SingleCopy
from rlopt.envs.spaces import Array
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_trajectories import LARGEST, cumulative_rows


class TabularVectorEnv(FiniteHorizonVectorEnv):
    """N copies of a `TabularMDP`; observations are states, truncated at its horizon.

    Rewards are the numbers of `mdp.rewards`, [N], or [N, K].

    Attributes:
        mdp: the MDP, whose exact quantities are those of this environment.
    """

    def __init__(self, mdp: TabularMDP, num_envs: int = 1):
        super().__init__(num_envs, mdp.horizon, spaces.Discrete(mdp.num_states), spaces.Discrete(mdp.num_actions))
        self.mdp = mdp
        self._rewards, self._terminal = mdp.rewards.detach().numpy(), mdp.terminal.numpy()
        if self._rewards.ndim > 2:
            self.reward_space = spaces.Box(-np.inf, np.inf, self._rewards.shape[2:], np.float32)
        self._first = cumulative_rows(mdp.initial[None]).numpy()
        self._next = cumulative_rows(mdp.transitions.flatten(0, 1)).numpy()

    def _first_states(self, num: int) -> Array:
        return self._draw(self._first, np.zeros(num, np.int64))

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        following = self._draw(self._next, states * self.mdp.num_actions + actions)
        return following, self._rewards[states, actions], self._terminal[following]

    def _observations(self, states: Array) -> Array:
        return states.copy()

    def _draw(self, table: Array, rows: Array) -> Array:
        """One state from each of the distributions `rows` of a table of `cumulative_rows`."""
        uniform = np.minimum(self.np_random.random(len(rows)), LARGEST)
        return np.searchsorted(table, rows + uniform, side="right") - rows * self.mdp.num_states


def random_mdp_envs(num_envs: int = 1, **kwargs: Any) -> TabularVectorEnv:
    """ "rlopt/RandomMDP-v0"; `kwargs` are those of `TabularMDP.random`."""
    return TabularVectorEnv(TabularMDP.random(**kwargs), num_envs)


def random_mdp_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/RandomMDP-v0"."""
    return SingleCopy(random_mdp_envs(1, **kwargs))


def grid_envs(num_envs: int = 1, **kwargs: Any) -> TabularVectorEnv:
    """ "rlopt/Grid-v0"; `kwargs` are those of `TabularMDP.grid`."""
    return TabularVectorEnv(TabularMDP.grid(**kwargs), num_envs)


def grid_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/Grid-v0"."""
    return SingleCopy(grid_envs(1, **kwargs))
