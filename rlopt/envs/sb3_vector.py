"""A Stable-Baselines3 `VecEnv`: same-step resets, the last observation in `infos`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, is_vecenv_wrapped, unwrap_vec_normalize

from rlopt.envs.base import EnvironmentFault, Environments, Step
from rlopt.envs.reward_space import announced_objectives
from rlopt.envs.spaces import Array, ArrayTree, map_arrays, stack_observations


class SB3Environments(Environments):
    """An SB3 `VecEnv`, with all of its wrappers."""

    def __init__(self, env: VecEnv):
        self.env = env
        self._closed = False
        self.monitored = is_vecenv_wrapped(env, VecMonitor) or all(env.env_is_wrapped(Monitor))
        super().__init__(env.num_envs, env.observation_space, env.action_space, type(env.unwrapped).__name__)
        self._announced = announced_objectives(env)

    def reset(self, seed: int | None = None) -> ArrayTree:
        if seed is not None:
            self.env.seed(seed)
        return self._copied(self.env.reset())

    def step(self, actions: Array, active: Array | None = None) -> Step:
        del active  # a VecEnv steps all of its environments
        try:
            observations, rewards, dones, infos = self.env.step(actions)
        except (TypeError, ValueError) as error:
            if (fault := self._explained(error, self.env)) is None:
                raise
            raise fault from error
        rewards = self._checked_rewards(np.array(rewards, np.float64), self.num_envs)
        if rewards.ndim > 1:
            self._refuse_vec_normalize()
        dones = np.array(dones, bool)
        encoded = self._copied(observations)
        if not dones.any():
            return Step(encoded, rewards, dones, np.zeros(self.num_envs, bool), (), None, infos)
        rows = dones.nonzero()[0]
        truncated = np.array([bool(d and info.get("TimeLimit.truncated", False)) for d, info in zip(dones, infos, strict=True)])
        for row in rows:
            if "terminal_observation" not in infos[row]:
                raise EnvironmentFault(
                    f"{self.name}: environment {row} ended an episode without infos[{row}]['terminal_observation']; "
                    "the value of the last state cannot be known"
                )
        finals = [infos[row]["terminal_observation"] for row in rows]
        final_observations = self.encoder(stack_observations(finals, self.encoder.raw_space))
        step = Step(encoded, rewards, dones & ~truncated, truncated, rows, final_observations, infos)
        self._warn_if_reused(step)
        return step

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.env.close()

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        return self.env.get_attr(name, indices)

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        self.env.set_attr(name, value, indices)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Sequence[int]) -> list[Any]:
        return self.env.env_method(name, *args, indices=indices, **kwargs)

    def render(self) -> list[Any]:
        return list(self.env.get_images())

    def _refuse_vec_normalize(self) -> None:
        """It adds K rewards to one return, which broadcasts to nonsense for some N and K instead of failing."""
        normalizer = unwrap_vec_normalize(self.env)
        if normalizer is not None and (normalizer.training or normalizer.norm_reward):
            raise EnvironmentFault(
                f"{self.name}: VecNormalize is for one reward, the environments pay {self.num_objectives}; leave it out and "
                "give the agent normalize_observations=True and normalize_rewards=True"
            )

    def _copied(self, observations: Any) -> ArrayTree:
        return map_arrays(np.array, self.encoder(observations))
