"""Gymnasium's MuJoCo tasks as one vector environment, whose copies are simulated on threads."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

from rlopt.arguments import check_number
from rlopt.envs.cores import usable_cores
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv
from rlopt.envs.mujoco_tasks import MUJOCO_TASKS, Bodies
from rlopt.envs.spaces import Array


class MujocoVectorEnv(FiniteHorizonVectorEnv):
    """N copies of a MuJoCo task, all stepped in one call of `mujoco.batch`, which needs no lock of Python's.

    A copy that is reset with a seed of its own plays what Gymnasium's single environment plays with that seed, to the bit, on
    any number of threads: the state that is carried along holds the solver's warm start. (`mujoco.rollout` does not return it.)

    `states` are [N, S + D]: MuJoCo's integration state, and what the task derives besides.

    Args:
        env_id: one of `MUJOCO_TASKS`.
        num_envs: N.
        num_threads: by default as many as this process has cores, and no more than copies.

    Raises:
        ImportError: MuJoCo is missing, or older than 4.0, which brings `mujoco.batch`.
    """

    def __init__(self, env_id: str, num_envs: int = 1, num_threads: int | None = None):
        from mujoco.batch import Batch

        self.task, self.spec = MUJOCO_TASKS[env_id], gym.spec(env_id)
        single = gym.make(env_id)  # for its model and spaces
        inner: Any = single.unwrapped
        horizon = self.spec.max_episode_steps
        assert horizon is not None
        super().__init__(num_envs, horizon, single.observation_space, single.action_space)
        if num_threads is None:
            num_threads = min(usable_cores(), num_envs)
        check_number("num_threads", num_threads, positive=True, whole=True)
        self.num_threads = num_threads
        self.frame_skip, self._seconds = inner.frame_skip, inner.dt
        self._first_positions, self._first_velocities = inner.init_qpos, inner.init_qvel
        self._batch = Batch(inner.model, num_envs, self.num_threads)
        # Views of the batch's rows. What it holds between calls is scratch; the states are `self.states`.
        self._positions, self._velocities = self._batch.bind("qpos"), self._batch.bind("qvel")
        self._controls = self._batch.bind("ctrl")
        self._columns = [_columns(self._batch.state, view) for view in (self._positions, self._velocities)]
        if self.task.derive is not None:
            self.task.derive(self._batch)  # what is bound before a call is computed by it
        single.close()

    def _first_states(self, num: int) -> Array:
        copies = np.arange(num)
        self._batch.reset(copies, stage=0)  # to the model's defaults, with no stage computed
        self._positions[:num], self._velocities[:num] = self.task.first(
            self.np_random, num, self._first_positions, self._first_velocities
        )
        self._batch.forward(copies)
        return self._read(num)

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        if actions.shape != self._controls.shape:
            raise ValueError(f"actions: expected shape {self._controls.shape}, got {actions.shape}")
        self._batch.state[:] = states[:, : self._batch.nstate]
        self._controls[:] = actions
        self._batch.step(nstep=self.frame_skip)
        following = self._read(self.num_envs)
        rewards, terminated, self.infos = self.task.pay(self._bodies(states), self._bodies(following), actions, self._seconds)
        return following, rewards, terminated

    def _observations(self, states: Array) -> Array:
        return self.task.observe(self._bodies(states))

    def _read(self, num: int) -> Array:
        """The batch's first `num` simulations as states [num, S + D], copied."""
        state = self._batch.state[:num]
        return state.copy() if self.task.derive is None else np.concatenate((state, self.task.derive(self._batch)[:num]), 1)

    def _bodies(self, states: Array) -> Bodies:
        positions, velocities = self._columns
        return Bodies(states[:, positions], states[:, velocities], states[:, self._batch.nstate :])


def _columns(state: Array, view: Array) -> slice:
    """Where a view of the columns of `state` [N, S] begins and ends."""
    start = (view.ctypes.data - state.ctypes.data) // state.itemsize
    return slice(start, start + view.shape[1])
