"""An episode under way as its seed and its actions, which is all that an environment determined by its seed needs."""

from __future__ import annotations

import contextlib
from typing import Any

import gymnasium as gym
import numpy as np

from rlopt.envs.spaces import Array

# Actions beyond these are not kept: an environment without an end would fill the memory, and take as long to play again.
LONGEST = 100_000
NONE = np.zeros(0)


class EpisodeTape:
    """The seed and the actions of one environment's episode.

    Attributes:
        seed: of the episode; None before the first.
        shown: the last observation, as the environment gave it.
        paid: Σ r, a number or [K].
        num_steps: t, so far.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self.shown: Any = None
        self.paid: Any = 0.0
        self.num_steps = 0
        self._actions = NONE  # [at least t, *act]

    def begin(self, seed: int, observation: Any) -> None:
        """A new episode, and what it shows first."""
        self.seed, self.shown, self.paid = seed, observation, 0.0
        self.num_steps = 0

    def add(self, action: Any, observation: Any, reward: Any) -> None:
        """One step."""
        self.shown = observation
        with contextlib.suppress(TypeError):  # a reward that is no number; whoever looks at rewards will say so
            self.paid = self.paid + reward
        if self.num_steps < LONGEST:
            if self.num_steps >= len(self._actions):
                self._grow(np.asarray(action))
            self._actions[self.num_steps] = action
        self.num_steps += 1

    def actions(self) -> Array | None:
        """[t, *act], those of the episode so far; None before the first, or where there were too many to keep."""
        return self._actions[: self.num_steps].copy() if self.seed is not None and self.num_steps <= LONGEST else None

    def play_again(self, env: gym.Env, seed: int, actions: Array) -> bool:
        """Go through an episode's actions [t, *act] once more; False if it ended on the way."""
        observation, _ = env.reset(seed=seed)
        self.begin(seed, observation)
        for action in actions:
            observation, reward, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                return False
            self.add(action, observation, reward)
        return True

    def _grow(self, like: Array) -> None:
        """Room for twice as many actions."""
        larger = np.empty((max(2 * self.num_steps, 64), *like.shape), like.dtype)
        if self.num_steps:
            larger[: self.num_steps] = self._actions[: self.num_steps]
        self._actions = larger
