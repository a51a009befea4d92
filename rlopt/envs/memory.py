"""Memory as an action: a policy π(a, z' | o, z) is a memoryless policy in an environment that hands z' back as z.

Source: Al-Hafez et al., arXiv:2311.04082. Nothing is differentiated through z: it is data, like everything an
environment shows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from rlopt.envs.base import Environments, Snapshot, Step
from rlopt.envs.spaces import ActionDecoder, Array, ArrayTree
from rlopt.envs.wrapper import EnvironmentsWrapper

OBSERVATION, MEMORY, PREVIOUS_ACTION = "observation", "memory", "previous_action"


class MemoryState(NamedTuple):
    """What a stateful policy carries from one step of n environments to the next."""

    memory: Array  # z [n, d_z]
    previous_action: Array  # the last action, encoded, [n, d_prev]; zeros at an episode's start


class MemoryObservations(spaces.Dict):
    """(o, z, a_prev): the observation, the memory and the action before, a flat Dict.

    Args:
        observation: what policies read of an environment; a Dict keeps its keys, anything else is "observation".
        action: the policy's action space, see `ActionDecoder`.
        memory_size: d_z.

    Raises:
        ValueError: the environment has a key of that name already.
    """

    def __init__(self, observation: spaces.Space, action: spaces.Space, memory_size: int):
        self.observation = observation
        entries = dict(observation.spaces) if isinstance(observation, spaces.Dict) else {OBSERVATION: observation}
        if taken := entries.keys() & {MEMORY, PREVIOUS_ACTION}:
            raise ValueError(f"observation space: memory needs the key {sorted(taken)[0]!r}, which the environment uses")
        super().__init__({**entries, MEMORY: endless(memory_size), PREVIOUS_ACTION: endless(encoded_size(action))})

    def join(self, observations: ArrayTree, state: MemoryState) -> dict[str, Array]:
        """Encoded observations [n, *obs] with memory and previous actions."""
        entries = observations if isinstance(observations, dict) else {OBSERVATION: observations}
        return {**entries, MEMORY: state.memory, PREVIOUS_ACTION: state.previous_action}

    def initial(self, num: int) -> MemoryState:
        """z_0 = 0 and no action before, for `num` episodes."""
        sizes = self[MEMORY].shape, self[PREVIOUS_ACTION].shape
        return MemoryState(*(np.zeros((num, *(size or ())), np.float32) for size in sizes))


class MemoryActions(spaces.Box):
    """(a, z'): an action and the next memory in one vector [A + d_z], the index of a Discrete action as a float."""

    def __init__(self, action: spaces.Space, memory_size: int):
        self.action, self.memory_size = action, memory_size
        super().__init__(-np.inf, np.inf, (int(np.prod(action.shape or ())) + memory_size,), np.float32)

    def split(self, joint: Any) -> tuple[Any, Any]:
        """Actions [..., *act] and memories [..., d_z] of arrays or tensors [..., A + d_z]."""
        actions, memories = joint[..., : -self.memory_size], joint[..., -self.memory_size :]
        return (actions if self.action.shape else actions[..., 0]), memories


class MemoryDecoder(ActionDecoder):
    """(a, z') goes to `Memory` as it was sampled: a is decoded there, z' never."""

    def __init__(self, action: spaces.Space, memory_size: int):
        super().__init__(MemoryActions(action, memory_size))
        self.space: MemoryActions = self.raw_space  # type: ignore[assignment]

    def __call__(self, actions: Array, squashed: bool = False) -> Array:
        return actions


class Memory(EnvironmentsWrapper):
    """Environments that show (o, z, a_prev) and take (a, z'); their rewards and episodes are those of `envs`.

    At an episode's end z' and a are part of its last observation, which a value at truncation needs; the next one
    begins with z = 0 and a_prev = 0.

    Args:
        envs: normalisation of observations belongs outside, on the entries that are not memory.
        memory_size: d_z.
        squashed: whether actions are in (−1, 1) and to be stretched to their bounds.
    """

    decoder: MemoryDecoder

    def __init__(self, envs: Environments, memory_size: int, squashed: bool = False):
        action = envs.decoder.space
        self.space = MemoryObservations(envs.encoder.space, action, memory_size)
        super().__init__(envs, self.space, MemoryActions(action, memory_size))
        self.decoder = MemoryDecoder(action, memory_size)
        self.squashed = squashed
        self._reset_pending = np.zeros(self.num_envs, bool)

    def reset(self, seed: int | None = None) -> ArrayTree:
        self._reset_pending[:] = False
        return self.space.join(self.envs.reset(seed), self.space.initial(self.num_envs))

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        return self.space.join(self.envs.restart(rows, seeds), self.space.initial(len(rows)))

    def step(self, actions: Array, active: Array | None = None) -> Step:
        action, memory = self.decoder.space.split(actions)
        step = self.envs.step(self.envs.decoder(action, self.squashed), active)
        carried = MemoryState(memory, encode_actions(self.envs.decoder.space, action))
        finals = step.final_observations
        if finals is not None:
            rows = np.asarray(step.final_rows, np.int64)
            finals = self.space.join(finals, MemoryState(*(array[rows] for array in carried)))
        reset = self._rows_reset_by(step)
        begun = MemoryState(*(np.where(reset[:, None], np.float32(0.0), array) for array in carried))
        return step._replace(observations=self.space.join(step.observations, begun), final_observations=finals)

    def _own_snapshot(self) -> Snapshot:
        return {"reset_pending": self._reset_pending.copy()}  # z itself is in what was last seen

    def _restore_own(self, snapshot: Snapshot) -> None:
        self._reset_pending = snapshot["reset_pending"].copy()

    def _rows_reset_by(self, step: Step) -> Array:
        """[N] bool, environments whose new observation is an episode's first."""
        if self.resets_on_next_step:
            reset = self._reset_pending
            self._reset_pending = (step.terminated | step.truncated) & ~reset
            return reset
        reset = np.zeros(self.num_envs, bool) if step.failed is None else step.failed.copy()
        reset[np.asarray(step.final_rows, np.int64)] = True
        return reset


def endless(size: int) -> spaces.Box:
    """R^size: no bounds, so that nothing clips."""
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def encoded_size(action: spaces.Space) -> int:
    """d_prev: how many numbers `encode_actions` makes of one action."""
    if isinstance(action, spaces.Discrete):
        return int(action.n)
    if isinstance(action, spaces.MultiDiscrete):
        return int(action.nvec.sum())
    return int(np.prod(action.shape or ()))


def encode_actions(space: spaces.Space, actions: Array) -> Array:
    """Actions [n, *act] as sampled, for a network to read: choices one-hot, the rest as they are, [n, d_prev] float32."""
    if isinstance(space, spaces.Discrete):
        return one_hot(actions, int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        columns = zip(actions.T, space.nvec.tolist(), strict=True)
        return np.concatenate([one_hot(column, size) for column, size in columns], -1)
    return np.asarray(actions, np.float32).reshape(len(actions), -1)


def one_hot(indices: Array, size: int) -> Array:
    """[n, size] float32, of indices [n]."""
    return np.eye(size, dtype=np.float32)[indices.astype(np.int64)]
