"""Environments of any space whose episodes are random but determined by the seed, and which keep the books themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

GRID = 4096  # rewards are multiples of 1/GRID below 8: float32 holds them and the sums of short episodes exactly
FARTHEST = 10.0  # from the nearest bound, or from zero: how far observations of wide spaces go


@dataclass
class Played:
    """One episode as its environment played it: what it paid at every step, and whether it came to its end."""

    rewards: list[Any] = field(default_factory=list)
    finished: bool = False

    def total(self, length: int) -> Any:
        """The sum of the first rewards, one number or K of them."""
        return np.sum(np.asarray(self.rewards[:length], np.float64), 0)


class RandomEnv(gym.Env[Any, Any]):
    """Observations drawn from a space, episodes of 1 to `max_length` steps that are terminated, truncated or both.

    Rewards and lengths depend on the seed and on the actions; actions outside the space are an error.

    Args:
        observation_space, action_space: any of Gymnasium's that rlopt takes.
        num_rewards: of one step.
        max_length: of an episode.

    Attributes:
        log: all episodes begun since the construction, or since the log was emptied.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, num_rewards: int = 1, max_length: int = 5):
        self.observation_space, self.action_space = observation_space, action_space
        self.num_rewards, self.max_length = num_rewards, max_length
        if num_rewards > 1:
            self.reward_space = spaces.Box(-8.0, 8.0, (num_rewards,), np.float64)
        self.log: list[Played] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, self.max_length + 1))
        self.end = int(self.np_random.integers(3))
        self.log.append(Played())
        return drawn(self.observation_space, self.np_random), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        assert is_in(action, self.action_space), f"{action!r} of {type(action)} is not in {self.action_space}"
        assert self.left > 0, "a step after the episode's end"
        push = score(action)
        self.left -= 1 + (push > 0.75 and self.left > 1)
        noise = self.np_random.normal(size=self.num_rewards).clip(-4, 4)
        rewards = np.round((noise + push) * GRID) / GRID
        self.log[-1].rewards.append(rewards if self.num_rewards > 1 else float(rewards[0]))
        over = self.left == 0
        self.log[-1].finished = over
        observation = drawn(self.observation_space, self.np_random)
        return observation, self.log[-1].rewards[-1], over and self.end != 0, over and self.end != 1, {}


def is_in(action: Any, space: spaces.Space) -> bool:
    """Whether the space contains the action; a row of several in a Box without axes is a number, as Gymnasium has it, too."""
    return space.contains(np.asarray(action) if isinstance(space, spaces.Box) else action)


def score(action: Any) -> float:
    """A number in [−1, 1] that differs for different actions, almost always."""
    flat = np.atleast_1d(np.asarray(action, np.float64)).reshape(-1)
    return float(np.sin((flat * np.arange(1, len(flat) + 1)).sum()))


def drawn(space: spaces.Space, random: np.random.Generator) -> Any:
    """An element of the space: everywhere in small ones, near the bounds or zero in wide ones."""
    if isinstance(space, spaces.Dict):
        return {key: drawn(sub, random) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(drawn(sub, random) for sub in space.spaces)
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(space.start + random.integers(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return (space.start + random.integers(space.nvec)).astype(space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return random.integers(2, size=space.shape, dtype=np.int8)
    low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
    low, high = np.maximum(low, np.minimum(high, 0.0) - FARTHEST), np.minimum(high, np.maximum(low, 0.0) + FARTHEST)
    value = low + (high - low) * random.uniform(size=space.shape)
    whole = np.issubdtype(space.dtype, np.integer)
    return np.asarray(np.clip(np.round(value) if whole else value, space.low, space.high), space.dtype)


# What carries several environments to an agent, by name. "copies" and "list" are rlopt's own way of stepping single ones.
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
CONTAINERS: dict[str, Callable[[list[Callable[[], gym.Env]]], Any]] = {
    "copies": lambda makers: makers[0],
    "list": lambda makers: makers,
    "next-step": lambda makers: SyncVectorEnv(makers, autoreset_mode=NEXT_STEP),
    "same-step": lambda makers: SyncVectorEnv(makers, autoreset_mode=SAME_STEP),
    "disabled": lambda makers: SyncVectorEnv(makers, autoreset_mode=DISABLED),
    "sb3": DummyVecEnv,
    "sb3 monitored": lambda makers: DummyVecEnv([lambda make=make: Monitor(make()) for make in makers]),
}
OWN = ("copies", "list")
SB3 = ("sb3", "sb3 monitored")


@dataclass(frozen=True)
class World:
    """What an agent is to be trained in, as a value; `made` makes it once more."""

    observation: spaces.Space
    action: spaces.Space
    num_rewards: int = 1
    max_length: int = 5
    container: str = "copies"
    num_envs: int = 1

    def made(self) -> tuple[Any, list[RandomEnv]]:
        """What `make_envs` takes, and the single environments that it contains, or will once it is used."""
        envs: list[RandomEnv] = []

        def make() -> RandomEnv:
            envs.append(RandomEnv(self.observation, self.action, self.num_rewards, self.max_length))
            return envs[-1]

        return CONTAINERS[self.container]([make] * self.num_envs), envs
