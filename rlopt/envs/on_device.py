"""Environments whose states are tensors on a device: what a rollout asks of them that never leaves it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlopt.envs.base import Environments, Info, Step
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.rollout import Observations


class Moved(NamedTuple):
    """What one step on the device leaves behind. Observations may be the environments' own memory: copy them."""

    observations: Observations  # [N, *obs], what the policy sees next
    last_observations: Observations  # [N, *obs], s_{t+1} before any reset
    rewards: Tensor  # [N]
    terminated: Tensor  # [N] bool
    truncated: Tensor  # [N] bool, never together with `terminated`


class DeviceEnvironments(Environments):
    """N environments on a device, reset within the step that ends their episode; no step waits for the device.

    As plain `Environments` they work too, at the price of a copy to the host and back for every step.

    Attributes:
        device: where they are.
    """

    device: torch.device = torch.device("cpu")

    @abstractmethod
    def to(self, device: torch.device) -> None:
        """Move there, amid their episodes."""

    @abstractmethod
    def begin(self, seed: int | None) -> Observations:
        """New episodes everywhere: their first observations [N, *obs]; `seed` starts the random numbers anew."""

    @abstractmethod
    def draw_starts(self, num_steps: int) -> Tensor:
        """Where episodes begin that a rollout of T steps may need, [T, N, ·]: all of its random numbers at once."""

    @abstractmethod
    def advance(self, actions: Tensor, starts: Tensor) -> Moved:
        """One step of every environment.

        Args:
            actions: [N, *act], as `decoded` gives them.
            starts: [N, ·], row t of `draw_starts`; those of environments whose episode goes on are left alone.
        """

    @abstractmethod
    def decoded(self, actions: Tensor, squashed: bool) -> Tensor:
        """Actions of the policy [N, *act] as the environments want them: `decoder` in torch."""

    def reset(self, seed: int | None = None) -> ArrayTree:
        return on_host(self.begin(seed))

    def step(self, actions: Array, active: Array | None = None) -> Step:
        del active  # all are stepped together
        moved = self.advance(torch.as_tensor(actions, device=self.device), self.draw_starts(1)[0])
        terminated, truncated = (flags.cpu().numpy().copy() for flags in (moved.terminated, moved.truncated))
        rows = (terminated | truncated).nonzero()[0]
        last, infos = on_host(moved.last_observations), no_infos(self.num_envs)
        finals = None
        if len(rows):
            finals = {key: value[rows] for key, value in last.items()} if isinstance(last, dict) else last[rows]
        rewards = moved.rewards.cpu().numpy().astype(np.float64)
        return Step(on_host(moved.observations), rewards, terminated, truncated, rows, finals, infos)

    def close(self) -> None:
        """Nothing is held."""


def on_host(observations: Observations) -> ArrayTree:
    """A copy as arrays."""
    if isinstance(observations, dict):
        return {key: value.cpu().numpy().copy() for key, value in observations.items()}
    return observations.cpu().numpy().copy()


def no_infos(num_envs: int) -> Sequence[Info]:
    """One empty dictionary an environment."""
    return [{} for _ in range(num_envs)]
