"""Vector environments whose episodes end at a horizon, and one copy of them as a single environment."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from rlopt.envs.row_generators import RowGenerators, generator_state, restored_generator
from rlopt.envs.spaces import Array, ArrayTree


class FiniteHorizonVectorEnv(VectorEnv):
    """N copies of one Markov process, stepped together; an episode is truncated after `horizon` steps.

    A subclass says how states begin and move. Episodes that ended are begun anew by `reset(options={"reset_mask": …})`;
    the observation of an ended episode is its last state. Terminated wins over truncated.

    Attributes:
        states: [N, *state], the current states; observations are made from them.
        reward_space: of K rewards, shape (K,); None for one.
        draws_by_copy: whether every array of random numbers has one row for each copy, so that copies can have seeds of
            their own.
        joinable: whether `states`, `steps`, `ended` and random numbers are all that there is of every copy, so that one object
            can take over the copies of several; see `rlopt.together`.
        infos: what the last step tells besides, arrays [N] by name; empty unless the subclass fills it.
    """

    reward_space: spaces.Box | None = None
    draws_by_copy = True
    joinable = False

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.DISABLED, "render_modes": []}  # noqa: RUF012

    def __init__(self, num_envs: int, horizon: int, observation_space: spaces.Space, action_space: spaces.Space):
        self.num_envs, self.horizon = num_envs, horizon
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self.steps = np.zeros(num_envs, np.int64)
        self.ended = np.ones(num_envs, bool)
        self.states: Array | None = None
        self.infos: dict[str, Array] = {}

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[ArrayTree, dict[str, Any]]:
        """New episodes in all environments, or where `options["reset_mask"]` [N] is True.

        One `seed` is for all copies together. With a sequence of N every copy draws from a generator of its own, which
        costs some microseconds each; where it says None the copy's generator goes on.
        """
        if isinstance(seed, Sequence):
            self._seed_copies(seed)
        else:
            super().reset(seed=seed)
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs, bool)))
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise ValueError(f"reset_mask: expected ({self.num_envs},) booleans, got {mask.dtype} {mask.shape}")
        if self.states is None and not mask.all():
            raise ValueError("reset_mask: the first reset begins all episodes")
        first = self._first_states_of(mask)
        self.states = first if self.states is None else self.states.copy()
        self.states[mask] = first
        self.steps[mask], self.ended[mask] = 0, False
        return self._observations(self.states), {}

    def step(self, actions: Any) -> tuple[ArrayTree, Array, Array, Array, dict[str, Any]]:
        """One step of every environment.

        Raises:
            gymnasium.error.ResetNeeded: an episode has ended and was not begun anew.
        """
        if self.states is None or self.ended.any():
            raise gym.error.ResetNeeded("reset the environments whose episodes ended before stepping them on")
        self.states, rewards, terminated = self._advance(self.states, np.asarray(actions))
        self.steps += 1
        truncated = (self.steps >= self.horizon) & ~terminated
        self.ended = terminated | truncated
        return self._observations(self.states), rewards, terminated, truncated, self.infos

    def snapshot(self) -> dict[str, Any]:
        """Where the copies are, and their random numbers."""
        states = None if self.states is None else self.states.copy()
        copies = {"states": states, "steps": self.steps.copy(), "ended": self.ended.copy()}
        return {**copies, "generator": generator_state(self.np_random)}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """The inverse of `snapshot`.

        Raises:
            ValueError, KeyError, TypeError: what as many copies of this environment cannot have given.
        """
        states, steps, ended = (snapshot[name] for name in ("states", "steps", "ended"))
        if any(len(array) != self.num_envs for array in (steps, ended) + (() if states is None else (states,))):
            raise ValueError(f"snapshot: expected {self.num_envs} copies, got {len(steps)}")
        generator: Any = restored_generator(snapshot["generator"])
        self.np_random = generator
        self.states = None if states is None else states.copy()
        self.steps[:], self.ended[:] = steps, ended

    def render(self) -> None:
        """Nothing: there are no pictures of many copies."""

    def _seed_copies(self, seeds: Sequence[int | None]) -> None:
        if not self.draws_by_copy:
            raise ValueError(f"seed: {type(self).__name__} draws for all copies together; step single copies (backend 'sync')")
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed: expected one, or {self.num_envs}, got {len(seeds)}")
        shared: Any = self.np_random
        going_on = shared.generators if isinstance(shared, RowGenerators) else shared.spawn(self.num_envs)
        pairs = zip(seeds, going_on, strict=True)
        generators: Any = RowGenerators([old if seed is None else np.random.default_rng(seed) for seed, old in pairs])
        self.np_random = generators

    def _first_states_of(self, mask: Array) -> Array:
        """States in which the episodes of these copies begin, drawn from their generators."""
        shared: Any = self.np_random
        if not isinstance(shared, RowGenerators):
            return self._first_states(int(mask.sum()))
        every: Any = shared
        theirs: Any = shared.of(mask)
        self.np_random = theirs
        try:
            return self._first_states(int(mask.sum()))
        finally:
            self.np_random = every

    @abstractmethod
    def _first_states(self, num: int) -> Array:
        """`num` states in which episodes begin, [num, *state]."""

    @abstractmethod
    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        """s_{t+1} [N, *state], r_t [N] or [N, K], and whether s_{t+1} is terminal [N]; writes into no argument."""

    @abstractmethod
    def _observations(self, states: Array) -> ArrayTree:
        """What is seen of the states, [N, *obs], in memory of its own; a dictionary for a Dict space."""


class SingleCopy(gym.Env[Any, Any]):
    """A vector environment of one copy as a `gymnasium.Env`.

    Attributes:
        vector_env: that environment.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, vector_env: FiniteHorizonVectorEnv):
        if vector_env.num_envs != 1:
            raise ValueError(f"vector_env: expected one copy, got {vector_env.num_envs}")
        self.vector_env = vector_env
        self.observation_space = vector_env.single_observation_space
        self.action_space = vector_env.single_action_space
        self.reward_space = vector_env.reward_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        observations, _ = self.vector_env.reset(seed=seed)
        return _first_row(observations), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As Gymnasium has it; with K objectives the reward is an array [K]."""
        observations, rewards, terminated, truncated, _ = self.vector_env.step(np.asarray(action)[None])
        reward = float(rewards[0]) if rewards.ndim == 1 else rewards[0]
        return _first_row(observations), reward, bool(terminated[0]), bool(truncated[0]), {}


def _first_row(observations: ArrayTree) -> Any:
    return {key: value[0] for key, value in observations.items()} if isinstance(observations, dict) else observations[0]
