"""`rlopt.envs.memory` in torch: memory as an action, for environments on a device."""

from __future__ import annotations

from typing import cast

import torch
from gymnasium import spaces
from torch import Tensor

from rlopt.envs.base import Environments, Snapshot
from rlopt.envs.memory import MEMORY, OBSERVATION, PREVIOUS_ACTION, Memory, MemoryActions, MemoryDecoder, MemoryObservations
from rlopt.envs.on_device import DeviceEnvironments, Moved
from rlopt.rollout import Observations


def with_memory(envs: Environments, memory_size: int, squashed: bool) -> Environments:
    """`Memory` around environments, on their device if they are on one."""
    if isinstance(envs, DeviceEnvironments):
        return MemoryOnDevice(envs, memory_size, squashed)
    return Memory(envs, memory_size, squashed)


class MemoryOnDevice(DeviceEnvironments):
    """What `Memory` is, on a device: it shows (o, z, a_prev) and takes (a, z').

    Args:
        envs: with actions that are Discrete or Box.
        memory_size: d_z.
        squashed: whether actions are in (−1, 1) and to be stretched to their bounds.
    """

    decoder: MemoryDecoder

    def __init__(self, envs: DeviceEnvironments, memory_size: int, squashed: bool = False):
        action = envs.decoder.space
        assert isinstance(action, spaces.Discrete | spaces.Box)
        self.space = MemoryObservations(envs.encoder.space, action, memory_size)
        super().__init__(envs.num_envs, self.space, MemoryActions(action, memory_size), envs.name)
        self.decoder = MemoryDecoder(action, memory_size)
        self.envs, self.action, self.memory_size, self.squashed = envs, action, memory_size, squashed
        self.backend_choice = envs.backend_choice

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.envs.device

    def to(self, device: torch.device) -> None:
        self.envs.to(device)

    def begin(self, seed: int | None) -> Observations:
        observations = self.envs.begin(seed)
        nothing = torch.zeros(self.num_envs, self.memory_size, device=self.device)
        return self._joined(observations, nothing, nothing.new_zeros(self.num_envs, *(self.space[PREVIOUS_ACTION].shape or ())))

    def draw_starts(self, num_steps: int) -> Tensor:
        return self.envs.draw_starts(num_steps)

    def advance(self, actions: Tensor, starts: Tensor) -> Moved:
        action, memory = self.decoder.space.split(actions)
        moved, previous = self.envs.advance(self.envs.decoded(action, self.squashed), starts), self._encoded(action)
        ended = (moved.terminated | moved.truncated).unsqueeze(1)
        begun = (memory.masked_fill(ended, 0.0), previous.masked_fill(ended, 0.0))
        return moved._replace(
            observations=self._joined(moved.observations, *begun),
            last_observations=self._joined(moved.last_observations, memory, previous),
        )

    def decoded(self, actions: Tensor, squashed: bool) -> Tensor:
        del squashed
        return actions

    def snapshot(self) -> Snapshot | None:
        return self.envs.snapshot()  # z itself is in what was last seen

    def restore(self, snapshot: Snapshot) -> list[int]:
        return self.envs.restore(snapshot)

    def _joined(self, observations: Observations, memory: Tensor, previous: Tensor) -> Observations:
        return {OBSERVATION: cast("Tensor", observations), MEMORY: memory, PREVIOUS_ACTION: previous}

    def _encoded(self, actions: Tensor) -> Tensor:
        """`encode_actions` in torch, [N, d_prev]."""
        if isinstance(self.action, spaces.Discrete):
            return (actions.unsqueeze(1) == torch.arange(int(self.action.n), device=actions.device)).float()
        return actions.float().flatten(1)
