"""Any `Environments` seen as an SB3 `VecEnv`, for SB3's callbacks and `evaluate_policy`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rlopt.envs.base import Environments, Snapshot, fresh_seed, next_episodes, restore_next_episodes
from rlopt.envs.sb3_vector import SB3Environments
from rlopt.envs.spaces import Array
from rlopt.envs.wrapper import innermost


def as_vec_env(envs: Environments, on_use: Callable[[], None] | None = None) -> VecEnv:
    """The SB3 `VecEnv` that the environments are, or a façade over them, which calls `on_use` when it is stepped."""
    return envs.env if isinstance(envs, SB3Environments) else VecEnvFacade(envs, on_use)


class VectorRewards(ValueError):
    """What adds up single rewards was given environments that pay several."""


class VecEnvFacade(DummyVecEnv):
    """SB3's interface over `Environments`: same-step resets, statistics of whole episodes in `infos`.

    It is a `DummyVecEnv` by type only, so that `EvalCallback` does not warn that training and evaluation
    environments are of different kinds; nothing of that class is used. Where environments reset on the next step, an
    ended episode is followed by one row that resets: reward 0, not done, not counted in the episode's statistics.

    Rewards of K objectives come as [N, K] and `info["episode"]["r"]` as a list of K. SB3's `evaluate_policy`, which adds
    up numbers, is stopped with a `VectorRewards` error that names `rlopt.evaluate`.
    """

    def __init__(self, envs: Environments, on_use: Callable[[], None] | None = None):
        self._on_use = on_use
        self.environments = envs
        self.envs = getattr(innermost(envs), "envs", [])
        VecEnv.__init__(self, envs.num_envs, envs.encoder.raw_space, envs.decoder.raw_space)
        self._seed_value: int | None = None
        self._returns = np.zeros(envs.num_envs)
        self._lengths = np.zeros(envs.num_envs, np.int64)
        self._pending = np.zeros(envs.num_envs, bool)
        self._asked_by_evaluation = False

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        self._seed_value = fresh_seed() if seed is None else seed
        return [self._seed_value] * self.num_envs

    def reset(self) -> Any:
        if self._on_use is not None:
            self._on_use()
        observations = self.environments.encoder.decode(self.environments.reset(self._seed_value))
        self._seed_value = None
        self._returns = np.zeros(self.num_envs)
        self._lengths[:] = 0
        self._pending[:] = False
        return observations

    def step_async(self, actions: Array) -> None:
        self.actions = actions
        if self._on_use is not None:
            self._on_use()

    def step_wait(self) -> Any:
        step = self.environments.step(self.actions)
        done = (step.terminated | step.truncated) & ~self._pending
        rewards = np.where(self._pending if step.rewards.ndim == 1 else self._pending[:, None], 0.0, step.rewards)
        if rewards.ndim > 1:
            self._refuse_evaluation()
        self._asked_by_evaluation = False
        self._returns = self._returns + rewards if self._returns.ndim == rewards.ndim else rewards.copy()
        self._lengths += ~self._pending
        infos = [dict(info) for info in step.infos]
        final = {int(row): i for i, row in enumerate(step.final_rows)}
        for row in done.nonzero()[0].tolist():
            source, index = (step.final_observations, final[row]) if row in final else (step.observations, row)
            infos[row]["terminal_observation"] = self.environments.encoder.decode(_row(source, index))
            infos[row]["TimeLimit.truncated"] = bool(step.truncated[row] and not step.terminated[row])
            if not self.environments.monitored:
                infos[row]["episode"] = {"r": self._returns[row].tolist(), "l": int(self._lengths[row]), "t": 0.0}
            self._returns[row], self._lengths[row] = 0.0, 0
        if self.environments.resets_on_next_step:
            self._pending = done
        return self.environments.encoder.decode(step.observations), rewards.astype(np.float32), done, infos

    def _refuse_evaluation(self) -> None:
        if self._asked_by_evaluation:
            self._asked_by_evaluation = False
            raise VectorRewards(
                f"env: {self.environments.name} pays {self.environments.num_objectives} rewards a step; Stable-Baselines3's "
                "evaluate_policy and EvalCallback add up one; use rlopt.evaluate, whose returns are vectors"
            )

    def snapshot(self) -> Snapshot:
        """The environments' random numbers; episodes under way are for who steps it to begin anew."""
        return {"seed": self._seed_value, "environments": next_episodes(self.environments)}

    def restore(self, snapshot: Snapshot) -> None:
        """The inverse of `snapshot`."""
        self._seed_value = snapshot["seed"]
        restore_next_episodes(self.environments, snapshot["environments"])

    def close(self) -> None:
        self.environments.close()

    def get_images(self) -> Sequence[Any]:
        return self.environments.render()

    def render(self, mode: str | None = None) -> Any:
        return VecEnv.render(self, mode=mode)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        rows = list(self._get_indices(indices))
        try:
            return self.environments.get_attr(attr_name, rows)
        except (AttributeError, NotImplementedError):
            if attr_name == "render_mode":  # SB3 asks every environment; not all can tell
                return [None for _ in rows]
            raise

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        self.environments.set_attr(attr_name, value, list(self._get_indices(indices)))

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        return self.environments.call(method_name, method_args, method_kwargs, list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type, indices: int | Iterable[int] | None = None) -> list[bool]:
        """Whether the environments are wrapped; True for `Monitor`, whose account this class gives."""
        rows = list(self._get_indices(indices))
        if wrapper_class is Monitor:  # the first question of SB3's `evaluate_policy`
            self._asked_by_evaluation = True
            if (self.environments.num_objectives or 1) > 1:
                self._refuse_evaluation()
        if wrapper_class is Monitor or not self.envs:
            return [wrapper_class is Monitor for _ in rows]
        return super().env_is_wrapped(wrapper_class, rows)


def _row(observations: Any, index: int) -> Any:
    if isinstance(observations, dict):
        return {key: value[index] for key, value in observations.items()}
    return observations[index]
