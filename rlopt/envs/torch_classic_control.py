"""Gymnasium's classic-control tasks in torch: thousands of copies on a GPU, stepped without a word to the host.

The physics is that of `rlopt.envs.classic_control`, which is written for NumPy and torch alike. Episodes end and begin by
`torch.where`, horizons are counted on the device, and all random numbers of a rollout are drawn at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rlopt.device import generator_on
from rlopt.envs.base import Snapshot, fresh_seed
from rlopt.envs.classic_control import TASKS
from rlopt.envs.on_device import DeviceEnvironments, Moved
from rlopt.tensor_checks import set_generator


class TorchClassicControl(DeviceEnvironments):
    """N copies of a classic-control task in torch.

    In double precision, from the same first states, they follow `ClassicControlVectorEnv` step for step. First states are
    uniform between the task's bounds as Gymnasium's are, but drawn by torch: a seed means other episodes here than there.

    Args:
        env_id: one of `TASKS`.
        num_envs: N.
        dtype: of the states; single precision is what GPUs are fast at.

    Raises:
        ValueError: another id.
    """

    def __init__(self, env_id: str, num_envs: int = 1, dtype: torch.dtype = torch.float32):
        if env_id not in TASKS:
            raise ValueError(f"env_id: expected one of {', '.join(TASKS)}, got {env_id!r}")
        self.task = TASKS[env_id]
        super().__init__(num_envs, self.task.observation_space, self.task.action_space, env_id)
        self._seen = 1
        self.low, self.high = (torch.tensor(bound, dtype=dtype) for bound in self.task.first)
        self.bounds: tuple[Tensor, Tensor] | None = None
        if isinstance(self.task.action_space, spaces.Box):
            box = self.task.action_space
            self.bounds = torch.from_numpy(box.low.copy()), torch.from_numpy(box.high.copy())
        self.states = torch.zeros(num_envs, len(self.low), dtype=dtype)
        self.steps = torch.zeros(num_envs, dtype=torch.int64)
        self.generator = torch.Generator().manual_seed(fresh_seed())

    def to(self, device: torch.device) -> None:
        if device == self.device:
            return
        self.device = device
        self.low, self.high, self.states, self.steps = (x.to(device) for x in (self.low, self.high, self.states, self.steps))
        if self.bounds is not None:
            self.bounds = self.bounds[0].to(device), self.bounds[1].to(device)

    def begin(self, seed: int | None) -> Tensor:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.states.copy_(self.draw_starts(1)[0])
        self.steps.zero_()
        return self._observed(self.states)

    def draw_starts(self, num_steps: int) -> Tensor:
        shape, generator = (num_steps, *self.states.shape), generator_on(self.device, self.generator)
        numbers = torch.rand(shape, generator=generator, device=self.device, dtype=self.states.dtype)
        return self.low + (self.high - self.low) * numbers

    def advance(self, actions: Tensor, starts: Tensor) -> Moved:
        if self.bounds is None:  # or integers times a number would be of single precision
            actions = actions.to(self.states.dtype)
        following, rewards, terminated = self.task.advance(torch, self.states, actions)
        self.steps += 1
        truncated = (self.steps >= self.task.horizon) & ~terminated
        ended = terminated | truncated
        self.states.copy_(torch.where(ended.unsqueeze(1), starts, following))
        self.steps.masked_fill_(ended, 0)
        return Moved(self._observed(self.states), self._observed(following), rewards, terminated, truncated)

    def decoded(self, actions: Tensor, squashed: bool) -> Tensor:
        if self.bounds is None:
            return actions
        low, high = self.bounds
        if squashed:
            actions = low + (0.5 * (actions + 1.0)) * (high - low)
        return actions.clamp(low, high)

    def snapshot(self) -> Snapshot:
        arrays = {"states": self.states.cpu().numpy().copy(), "steps": self.steps.cpu().numpy().copy()}
        return {**arrays, "generator": self.generator.get_state().numpy()}

    def restore(self, snapshot: Snapshot) -> list[int]:
        for name, tensor in (("states", self.states), ("steps", self.steps)):
            array: Any = snapshot[name]
            if array.shape != tuple(tensor.shape):
                raise ValueError(f"{name}: expected {list(tensor.shape)}, got {list(array.shape)}")
            tensor.copy_(torch.from_numpy(np.array(array)))
        set_generator(self.generator, torch.as_tensor(snapshot["generator"]))
        return []

    def _observed(self, states: Tensor) -> Tensor:
        return self.task.observe(torch, states).float()
