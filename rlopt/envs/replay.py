"""An episode under way as its seed and its actions, which is all that an environment determined by its seed needs."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rlopt.envs.spaces import Array

# Actions beyond these are not kept: an environment without an end would fill the memory, and take as long to play again.
LONGEST = 100_000


class EpisodeTape:
    """The seed and the actions of one environment's episode.

    Attributes:
        seed: of the episode; None before the first.
        shown: the last observation, as the environment gave it.
        num_steps: t, so far.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self.shown: Any = None
        self.num_steps = 0
        self._actions: list[Any] = []

    def begin(self, seed: int, observation: Any) -> None:
        """A new episode, and what it shows first."""
        self.seed, self.shown = seed, observation
        self.num_steps, self._actions = 0, []

    def go_on(self, seed: int, actions: Array, observation: Any) -> None:
        """An episode after these actions."""
        self.begin(seed, observation)
        self.num_steps, self._actions = len(actions), list(actions)

    def add(self, action: Any, observation: Any) -> None:
        """One step."""
        self.shown = observation
        self.num_steps += 1
        if self.num_steps <= LONGEST:
            self._actions.append(action)

    def actions(self) -> Array | None:
        """[t, *act], those of the episode so far; None before the first, or where there were too many to keep."""
        return np.asarray(self._actions) if self.seed is not None and self.num_steps <= LONGEST else None


def play_again(env: gym.Env, seed: int, actions: Array) -> Any | None:
    """What the environment shows after these actions [t, *act] in the episode of this seed; None if it ended on the way."""
    observation, _ = env.reset(seed=seed)
    for action in actions:
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated or truncated:
            return None
    return observation
