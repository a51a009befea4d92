"""A Gymnasium `VectorEnv` (and EnvPool's) in any autoreset mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode

from rlopt.envs.base import EnvironmentFault, Environments, Info, OnError, Snapshot, Step
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv
from rlopt.envs.reward_space import announced_objectives
from rlopt.envs.spaces import Array, ArrayTree, map_arrays, stack_observations


class VectorInfos(Sequence[Info]):
    """Gymnasium's dictionary of arrays, read as one dictionary an environment."""

    def __init__(self, infos: dict[str, Any], num_envs: int):
        self.infos, self.num_envs = infos, num_envs

    def __len__(self) -> int:
        return self.num_envs

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.num_envs))]
        if not -self.num_envs <= index < self.num_envs:
            raise IndexError(index)
        info = _row(self.infos, index)
        final = info.pop("final_info", None)
        info.pop("final_obs", None)
        return {**info, **final} if final else info

    def __iter__(self) -> Iterator[Info]:
        return (self[index] for index in range(self.num_envs))


class GymnasiumEnvironments(Environments):
    """A `gymnasium.vector.VectorEnv`.

    Under NEXT_STEP the returned observation of a finished episode is its last, and the next step only resets.
    Under SAME_STEP that observation is in `infos["final_obs"]`. Under DISABLED this class resets finished
    environments itself, within the step, so that the collector sees the same as under SAME_STEP.

    Raises:
        ValueError: the environment does not say its autoreset mode, or two environments would be the same one.
    """

    env: Any  # a VectorEnv; `call`, `get_attr` and `set_attr` exist on Gymnasium's own containers only
    one_by_one: Callable[[], Environments] | None = None  # the same task of single environments, where the choice is free

    def __init__(self, env: gym.vector.VectorEnv, autoreset_mode: AutoresetMode | None = None):
        mode = autoreset_mode or env.metadata.get("autoreset_mode")
        if mode is None:
            raise ValueError(
                f"env: {type(env).__name__} does not state its autoreset mode; set "
                "env.metadata['autoreset_mode'] to a gymnasium.vector.AutoresetMode"
            )
        self.env = env
        self.mode = AutoresetMode(mode)
        self.restarts_rows = self.mode is AutoresetMode.DISABLED
        self.resets_on_next_step = self.mode is AutoresetMode.NEXT_STEP
        if self.resets_on_next_step and getattr(env.unwrapped, "shared_memory", True) is False:
            raise ValueError(
                "env: AsyncVectorEnv(shared_memory=False) resets an environment twice if reset() follows the end of an "
                "episode under NEXT_STEP; make it with shared_memory=True or in another autoreset mode"
            )
        name = getattr(env.spec, "id", None) or type(env).__name__
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space, name)
        self._announced = announced_objectives(env)

    def reset(self, seed: int | None = None) -> ArrayTree:
        observations, _ = self.env.reset(seed=seed)
        return self._copied(observations)

    def step(self, actions: Array, active: Array | None = None) -> Step:
        del active  # a vector environment steps all of its environments
        try:
            observations, rewards, terminated, truncated, infos = self.env.step(actions)
        except (TypeError, ValueError) as error:
            if (fault := self._explained(error, self.env)) is None:
                raise
            raise fault from error
        rewards = self._checked_rewards(np.array(rewards, np.float64), self.num_envs)
        terminated, truncated = np.array(terminated, bool), np.array(truncated, bool)
        encoded = self._copied(observations)
        readable = VectorInfos(infos, self.num_envs)
        if self.resets_on_next_step or not (done := terminated | truncated).any():
            return Step(encoded, rewards, terminated, truncated, (), None, readable)
        rows = done.nonzero()[0]
        if self.mode is AutoresetMode.SAME_STEP:
            finals = self._final_observations(infos, rows)
        else:
            finals = map_arrays(lambda array: array[rows], encoded)
            encoded = self._reset_rows(done)
        step = Step(encoded, rewards, terminated, truncated, rows, finals, readable)
        if self.mode is AutoresetMode.SAME_STEP:
            self._warn_if_reused(step)
        return step

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        if not self.restarts_rows:
            return super().restart(rows, seeds)
        encoded = self._reset_rows(np.isin(np.arange(self.num_envs), rows), seeds)
        return map_arrays(lambda array: array[rows], encoded)

    def close(self) -> None:
        if not getattr(self.env, "closed", False):
            self.env.close()

    def snapshot(self) -> Snapshot | None:
        """Where the vector environment says it is, if it has methods of these names, as those of this library have."""
        return self.env.snapshot() if hasattr(type(self.env), "snapshot") else None

    def restore(self, snapshot: Snapshot) -> list[int]:
        if not hasattr(type(self.env), "restore"):
            return super().restore(snapshot)
        self.env.restore(snapshot)
        return []

    def handle_faults(self, on_error: OnError, timeout: float | None = None) -> None:
        """Nothing to do for those of this library, which do not break."""
        if not isinstance(self.env, FiniteHorizonVectorEnv):
            super().handle_faults(on_error, timeout)

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        if not hasattr(self.env, "get_attr"):  # a native vector implementation: one object for all
            return [getattr(self.env, name) for _ in indices]
        values = self.env.get_attr(name)
        return [values[index] for index in indices]

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        values = list(self.env.get_attr(name))
        for index in indices:
            values[index] = value
        self.env.set_attr(name, values)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Sequence[int]) -> list[Any]:
        results = self.env.call(name, *args, **kwargs)
        return [results[index] for index in indices]

    def render(self) -> list[Any]:
        frames = self.env.render()
        return list(frames) if frames is not None else [None] * self.num_envs

    def _reset_rows(self, mask: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        """The observations of all environments, [N, *obs], after a reset of those in `mask` [N], with these seeds [F]."""
        seed: list[int | None] | None = None
        if seeds is not None:
            given = iter(seeds)
            seed = [int(next(given)) if reset else None for reset in mask]  # a NumPy integer is not taken for one
        # `reset_mask` is popped from the dictionary: it must be a fresh one
        observations, _ = self.env.reset(seed=seed, options={"reset_mask": mask.copy()})
        return self._copied(observations)

    def _copied(self, observations: Any) -> ArrayTree:
        """Encoded and copied: the arrays may be the environment's to reuse (`copy=False`, shared memory)."""
        return map_arrays(np.array, self.encoder(observations))

    def _final_observations(self, infos: dict[str, Any], rows: Array) -> ArrayTree:
        present = infos.get("_final_obs", np.zeros(self.num_envs, bool))
        if "final_obs" not in infos or not np.all(present[rows]):
            missing = rows if "final_obs" not in infos else rows[~present[rows]]
            raise EnvironmentFault(
                f"{self.name}: environments {list(missing)} ended an episode under SAME_STEP autoreset without "
                "infos['final_obs']; the value of the last state cannot be known"
            )
        finals = [infos["final_obs"][row] for row in rows]
        return self.encoder(stack_observations(finals, self.encoder.raw_space))


class EnvPoolEnvironments(GymnasiumEnvironments):
    """EnvPool's Gymnasium interface: next-step resets, seeds only at construction."""

    def __init__(self, env: Any):
        if env.config["batch_size"] != env.config["num_envs"]:
            raise ValueError(
                f"env: EnvPool with batch_size {env.config['batch_size']} of {env.config['num_envs']} environments returns "
                "whichever finish first; make it with batch_size equal to num_envs"
            )
        with warnings.catch_warnings():  # EnvPool makes its spaces when they are first read, in float64
            warnings.filterwarnings("ignore", message=".*precision lowered by casting")
            super().__init__(env, AutoresetMode.NEXT_STEP)
        self.name = f"{type(env).__name__.removesuffix('GymnasiumEnvPool')} (EnvPool)"

    def reset(self, seed: int | None = None) -> ArrayTree:
        observations, _ = self.env.reset()  # the seed was fixed when the pool was made
        return self._copied(observations)


def _row(infos: dict[str, Any], index: int) -> Info:
    row: Info = {}
    for key, values in infos.items():
        mask = infos.get(f"_{key}")
        if key.startswith("_") and key[1:] in infos:
            continue
        if mask is not None and not mask[index]:
            continue
        if isinstance(values, dict):
            row[key] = _row(values, index)
        elif isinstance(values, np.ndarray | list | tuple) and len(values) > index:
            row[key] = values[index]
    return row
