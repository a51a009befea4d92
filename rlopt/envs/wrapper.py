"""What every wrapper of `Environments` passes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gymnasium import spaces

from rlopt.envs.base import Environments, OnError, Snapshot
from rlopt.envs.spaces import Array, ArrayTree


class EnvironmentsWrapper(Environments):
    """Environments around others; a subclass changes observations, actions or rewards.

    Args:
        envs: those inside.
        observation_space, action_space: what is seen from outside.
    """

    def __init__(self, envs: Environments, observation_space: spaces.Space, action_space: spaces.Space):
        super().__init__(envs.num_envs, observation_space, action_space, envs.name)
        self.envs = envs
        self.resets_on_next_step = envs.resets_on_next_step
        self.restarts_rows = envs.restarts_rows
        self.group_size = envs.group_size
        self.monitored = envs.monitored
        self.backend_choice = envs.backend_choice

    @property
    def num_objectives(self) -> int | None:
        return self.envs.num_objectives

    @property
    def num_objectives_certain(self) -> bool:
        return self.envs.num_objectives_certain

    def reset(self, seed: int | None = None) -> ArrayTree:
        return self.envs.reset(seed)

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        return self.envs.restart(rows, seeds)

    def handle_faults(self, on_error: OnError, timeout: float | None = None) -> None:
        self.envs.handle_faults(on_error, timeout)

    def seed_of_episode(self, row: int, ended_since: int) -> int | None:
        return self.envs.seed_of_episode(row, ended_since)

    def close(self) -> None:
        self.envs.close()

    def episode_counters(self) -> dict[str, Any] | None:
        return self.envs.episode_counters()

    def restore_episodes(self, counters: dict[str, Any]) -> bool:
        return self.envs.restore_episodes(counters)

    def snapshot(self) -> Snapshot | None:
        inner = self.envs.snapshot()
        return None if inner is None else {"inner": inner, "own": self._own_snapshot()}

    def restore(self, snapshot: Snapshot) -> list[int]:
        self._restore_own(snapshot["own"])
        return self.envs.restore(snapshot["inner"])

    def _own_snapshot(self) -> Snapshot:
        """What this wrapper itself remembers between steps."""
        return {}

    def _restore_own(self, snapshot: Snapshot) -> None:
        """The inverse of `_own_snapshot`."""
        return

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        return self.envs.get_attr(name, indices)

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        self.envs.set_attr(name, value, indices)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Sequence[int]) -> list[Any]:
        return self.envs.call(name, args, kwargs, indices)

    def render(self) -> list[Any]:
        return self.envs.render()


def innermost(envs: Environments) -> Environments:
    """What all wrappers are around."""
    while isinstance(envs, EnvironmentsWrapper):
        envs = envs.envs
    return envs
