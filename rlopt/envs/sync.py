"""Single environments stepped one after the other in this process, every episode with a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from rlopt.envs.base import EnvironmentFault, Environments, Info, Step, episode_seed, fresh_seed, spread
from rlopt.envs.reward_space import announced_objectives
from rlopt.envs.spaces import Array, ArrayTree, concatenate, stack_observations

EnvFactory = Callable[[], gym.Env]


class SyncEnvironments(Environments):
    """N `gym.Env`s with same-step resets; the last observation is copied before the reset.

    Episode e of environment i is reset with `episode_seed(run_seed, first_index + i, e)`, so it can be played again.

    Attributes:
        envs: the environments.
        episodes: [N], how many episodes each has begun.
    """

    restarts_rows = True

    def __init__(self, factories: Sequence[EnvFactory], first_index: int = 0, name: str = "environment"):
        self.envs = [factory() for factory in factories]
        check_same_spaces(self.envs)
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError("env: the callables returned the same environment object twice; each must make a new one")
        first = self.envs[0]
        super().__init__(len(self.envs), first.observation_space, first.action_space, name)
        self.monitored = all(is_wrapped(env, Monitor) for env in self.envs)
        self._announced = announced_objectives(first)
        self.first_index = first_index
        self.run_seed = fresh_seed()
        self.episodes = np.zeros(self.num_envs, np.int64)
        self._rows = range(self.num_envs)

    def reset(self, seed: int | None = None) -> ArrayTree:
        if seed is not None:
            self.run_seed = seed
            self.episodes[:] = 0
        return self._encode([self._begin_episode(index) for index in range(self.num_envs)])

    def step(self, actions: Array, active: Array | None = None) -> Step:
        stepped = self._rows if active is None else active.nonzero()[0].tolist()
        observations = []
        rewards: list[Any] = []
        terminated = np.zeros(len(stepped), bool)
        truncated = np.zeros(len(stepped), bool)
        final_rows: list[int] = []
        finals = []
        infos: list[Info] = [{}] * len(stepped)
        for row, index in enumerate(stepped):
            try:
                observation, reward, over, cut, infos[row] = self.envs[index].step(actions[index])
            except (TypeError, ValueError) as error:
                if (fault := self._explained(error, self.envs[index])) is None:
                    raise
                raise fault from error
            rewards.append(reward)
            if over or cut:
                terminated[row], truncated[row] = over, cut
                final_rows.append(row)
                rewards[row] = np.array(reward)  # the reset may reuse its array too
                finals.append(self._encode([observation]))  # copied before the reset, which may reuse its array
                observation = self._begin_episode(index)
            observations.append(observation)
        step = Step(
            self._encode(observations),
            self._checked_rewards(self._joined_rewards(rewards), len(stepped)),
            terminated,
            truncated,
            final_rows,
            concatenate(finals),
            infos,
        )
        return step if len(stepped) == self.num_envs else spread(step, stepped, self.num_envs)

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        given = [None] * len(rows) if seeds is None else seeds
        return self._encode([self._begin_episode(int(row), seed) for row, seed in zip(rows, given, strict=True)])

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def episode_counters(self) -> dict[str, Any]:
        return {"run_seed": self.run_seed, "episodes": self.episodes.tolist()}

    def restore_episodes(self, counters: dict[str, Any]) -> bool:
        if len(counters["episodes"]) != self.num_envs:
            return False
        self.run_seed = int(counters["run_seed"])
        self.episodes[:] = counters["episodes"]
        return True

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        return [self.envs[index].get_wrapper_attr(name) for index in indices]

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        for index in indices:
            self.envs[index].set_wrapper_attr(name, value)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Sequence[int]) -> list[Any]:
        return [self.envs[index].get_wrapper_attr(name)(*args, **kwargs) for index in indices]

    def render(self) -> list[Any]:
        return [None if env.render_mode is None else env.render() for env in self.envs]

    def _joined_rewards(self, rewards: list[Any]) -> Array:
        """Rewards [n] or [n, K], float64, of n environments."""
        try:
            return np.asarray(rewards, np.float64)
        except (TypeError, ValueError) as error:
            shapes = sorted({np.shape(reward) for reward in rewards})
            raise EnvironmentFault(f"{self.name}: rewards are not numbers, or their shapes differ: {shapes}") from error

    def _begin_episode(self, index: int, seed: int | None = None) -> Any:
        if seed is None:
            seed = episode_seed(self.run_seed, self.first_index + index, int(self.episodes[index]))
        self.episodes[index] += 1
        observation, _ = self.envs[index].reset(seed=seed)
        return observation

    def _encode(self, observations: list[Any]) -> ArrayTree:
        return self.encoder(stack_observations(observations, self.encoder.raw_space))


def check_same_spaces(envs: Sequence[gym.Env]) -> None:
    """Raises ValueError unless all environments have the spaces of the first."""
    first = envs[0]
    for index, env in enumerate(envs[1:], 1):
        for field in ("observation_space", "action_space"):
            if getattr(env, field) != getattr(first, field):
                raise ValueError(
                    f"env: environment {index} has {field} {getattr(env, field)}, but environment 0 has {getattr(first, field)}"
                )
