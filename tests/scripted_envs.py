"""Environments that play from a script: what they show and pay depends on (environment, episode, step) alone.

Actions change nothing, so that the same episodes come through every kind of environment. The module imports nothing
that is slow: worker processes import it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

POISON = 1e6
SIZE = 3


class Episode(NamedTuple):
    """One episode: observations [L + 1, SIZE], rewards [L], and how it ended."""

    observations: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class RandomScript:
    """Episodes of random length, observations and rewards that float32 holds exactly, and every kind of end."""

    seed: int = 0
    max_length: int = 7

    def episode(self, environment: int, number: int) -> Episode:
        random = np.random.default_rng((self.seed, environment, number))
        length = int(random.integers(1, self.max_length + 1))
        kind = int(random.integers(3))
        return Episode(
            random.integers(-64, 65, (length + 1, SIZE)).astype(np.float32) / 64,
            random.integers(-16, 17, length) / 64.0,
            kind in (0, 2),
            kind in (1, 2),
        )


@dataclass(frozen=True)
class FixedScript:
    """The same few episodes over and over, or a recorded stream: `episodes[environment][number]`."""

    episodes: dict[int, list[Episode]] = field(hash=False)

    def episode(self, environment: int, number: int) -> Episode:
        mine = self.episodes[environment]
        return mine[number % len(mine)]


Script = RandomScript | FixedScript


class ScriptedEnv(gym.Env[Any, Any]):
    """One environment that plays its script.

    Args:
        script: what happens.
        environment: whose part to play.
        reuse: write every observation into one array, as many simulators do.
        action_space: what actions to take, and ignore.
    """

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, script: Script, environment: int, reuse: bool = False, action_space: Any = None):
        self.script, self.environment, self.reuse = script, environment, reuse
        size = script.episode(environment, 0).observations.shape[1:]
        self.observation_space = spaces.Box(-np.inf, np.inf, size, np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.array = np.zeros(size, np.float32)
        self.number = -1
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.number += 1
        self.step_number = 0
        self.episode = self.script.episode(self.environment, self.number)
        return self._shown(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(self.episode.rewards[self.step_number])
        self.step_number += 1
        last = self.step_number == len(self.episode)
        return self._shown(), reward, last and self.episode.terminated, last and self.episode.truncated, {}

    def _shown(self) -> np.ndarray:
        observation = self.episode.observations[self.step_number]
        if not self.reuse:
            return observation.copy()
        self.array[:] = observation
        return self.array


class PoisonedVectorEnv(VectorEnv):
    """Resets on the next step, whose row pays `poison` and, if there is any, claims that the episode ended."""

    def __init__(self, envs: list[ScriptedEnv], poison: Any = POISON):
        self.envs, self.poison, self.lies = envs, poison, bool(np.any(poison))
        self.num_envs = len(envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.single_observation_space, self.single_action_space = envs[0].observation_space, envs[0].action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, self.num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, self.num_envs)
        self.over = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self.over[:] = False
        return np.stack([env.reset()[0] for env in self.envs]), {}

    def step(self, actions: Any) -> Any:
        rows = []
        for env, over, action in zip(self.envs, self.over, actions, strict=True):
            rows.append((env.reset()[0], self.poison, self.lies, self.lies) if over else env.step(action)[:4])
        observations, rewards, terminated, truncated = (np.stack(column) for column in zip(*rows, strict=True))
        self.over = (terminated | truncated) & ~self.over
        return observations, rewards, terminated, truncated, {}


def factories(script: Script, num_envs: int, **kwargs: Any) -> list[Callable[[], ScriptedEnv]]:
    """One callable for every environment of a script."""
    return [lambda n=n: ScriptedEnv(script, n, **kwargs) for n in range(num_envs)]


def rows_of(script: Script, environment: int, next_step: bool) -> Iterator[tuple[int, int] | None]:
    """(episode, step) of every row that an environment gives; None for a reset row."""
    number = 0
    while True:
        yield from ((number, step) for step in range(len(script.episode(environment, number))))
        if next_step:
            yield None
        number += 1


def reference_advantages(
    episode: Episode, start: int, stop: int, value: Callable[[np.ndarray], float], gamma: float, lambda_: float
) -> np.ndarray:
    """Advantages of the rows start … stop − 1 of one episode, seen without those after it: a plain loop in float64."""
    advantages = np.zeros(stop - start)
    following = 0.0
    for step in reversed(range(start, stop)):
        absorbing = step == len(episode) - 1 and episode.terminated
        next_value = 0.0 if absorbing else value(episode.observations[step + 1])
        delta = episode.rewards[step] + gamma * next_value - value(episode.observations[step])
        following = delta + gamma * lambda_ * following
        advantages[step - start] = following
    return advantages
