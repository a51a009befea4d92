"""One step of an agent as a function of tensors, in the environment's own terms: what `export` writes as ONNX."""

from __future__ import annotations

import copy
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from torch import Tensor, nn
from torch.nn import functional

from rlopt.agents.base import Agent
from rlopt.envs.memory import MEMORY, OBSERVATION, PREVIOUS_ACTION, MemoryActions, MemoryObservations, encoded_size
from rlopt.envs.normalize import EPSILON
from rlopt.policies.distributions import noise_size
from rlopt.policies.stateful import as_actor_critic, readable_spaces

ACTION, NEXT, NOISE = "action", "next_", "noise"

# Shape, without the batch, and dtype, by name.
Specs = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]


class Entry(NamedTuple):
    """One input that is an observation, or one entry of it."""

    key: str  # in what the policy reads
    path: tuple[Any, ...]  # in what the environment shows
    space: spaces.Space  # the environment's
    encoded: spaces.Space  # the policy's

    @property
    def name(self) -> str:
        return f"{OBSERVATION}/{self.key}" if self.path else OBSERVATION

    @property
    def dtype(self) -> np.dtype[Any]:
        """The environment's, but float32 for every float."""
        dtype: Any = self.space.dtype
        return np.dtype(np.float32) if np.issubdtype(dtype, np.floating) else np.dtype(dtype)


class StepFunction(nn.Module):
    """One step of an agent, on tensors in the environment's own terms; a copy on the CPU.

    Args:
        agent: any.

    Attributes:
        entries: of the observation that the actor reads, in the order of the inputs.
        policy: the copy.
        noises: distribution and size of each part of `noise`, in their order.
        memory_size: of the memory that actions depend on; a recurrent critic's comes after it in a `MemoryState`.
    """

    def __init__(self, agent: Agent):
        super().__init__()
        policy: Any = copy.deepcopy(agent.policy).cpu()
        policy.set_training_mode(False)
        recurrent = hasattr(policy, "state_sizes")  # the next memory is computed, not drawn
        if recurrent:
            policy.lstm_critic = None  # what only the critic remembers, and sees, is of no use here
            policy.state_sizes = [policy.lstm_actor.state_size, 0]
        self.policy = policy
        self.actor_critic = as_actor_critic(self.policy)
        self.eval().requires_grad_(False)
        space = policy.action_space
        self.remembers = isinstance(space, MemoryActions)
        self.memory_size = (sum(policy.state_sizes) if recurrent else space.memory_size) if self.remembers else 0
        self.noises = noise_parts(space)[: 1 if recurrent else None]
        self.entries = actor_entries(agent)
        moments = agent.observation_normalizer.moments if agent.observation_normalizer is not None else {}
        self.plain = not isinstance(self.policy.observation_space, spaces.Dict)
        self.encoders = nn.ModuleList(
            EntryEncoder(entry, moments.get("" if self.plain else entry.key), agent.clip_observations) for entry in self.entries
        )
        self.decode = ActionDecoding(agent.decoder.raw_space, self.policy.squash_output)
        self.action = agent.decoder.space

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The step's outputs for its inputs, `noise` last or left out for the most likely action."""
        rest = inputs[len(self.entries) :]
        encoded = {entry.key: encode(x) for entry, encode, x in zip(self.entries, self.encoders, inputs, strict=False)}
        if self.remembers:
            encoded |= {MEMORY: rest[0], PREVIOUS_ACTION: rest[1]}
            rest = rest[2:]
        distribution = self.actor_critic.actor(next(iter(encoded.values())) if self.plain else encoded)
        parts = (distribution.action, distribution.memory) if self.remembers else (distribution,)
        noises = rest[0].split([size for _, size in self.noises], -1) if rest else ()
        drawn = [part.mode() if noise is None else part.sample(noise) for part, noise in zip_longest(parts, noises)]
        action = self.decode(drawn[0])
        return (action, drawn[1], encoded_actions(self.action, drawn[0])) if self.remembers else (action,)

    @property
    def noise_size(self) -> int:
        """How many numbers `noise` has for one row."""
        return sum(size for _, size in self.noises)

    def input_specs(self, deterministic: bool) -> Specs:
        """Shape, without the batch, and dtype of every input by name."""
        specs: Specs = {entry.name: (entry.space.shape or (), entry.dtype) for entry in self.entries}
        if self.remembers:
            specs |= self._memory_specs("")
        if not deterministic:
            specs[NOISE] = (self.noise_size,), np.dtype(np.float32)
        return specs

    def output_specs(self) -> Specs:
        """Shape, without the batch, and dtype of every output by name."""
        raw: Any = self.decode.space
        specs: Specs = {ACTION: (raw.shape or (), np.dtype(raw.dtype))}
        return specs | self._memory_specs(NEXT) if self.remembers else specs

    def _memory_specs(self, prefix: str) -> Specs:
        sizes = {MEMORY: self.memory_size, PREVIOUS_ACTION: encoded_size(self.action)}
        return {prefix + key: ((size,), np.dtype(np.float32)) for key, size in sizes.items()}


class EntryEncoder(nn.Module):
    """What `ObservationEncoder` and `ObservationNormalizer` do to one entry, on tensors [B, *obs]."""

    mean: Tensor
    mean_rest: Tensor
    scale: Tensor
    start: Tensor

    def __init__(self, entry: Entry, moments: RunningMeanStd | None, clip: float):
        super().__init__()
        self.shape = entry.encoded.shape or ()
        shape = entry.space.shape or ()
        self.channels_last = len(shape) == 3 and shape != self.shape
        start = np.asarray(getattr(entry.space, "start", 0))
        self.shifted = bool(start.any())
        self.register_buffer("start", torch.as_tensor(start.astype(entry.dtype)))
        self.normalized, self.clip = moments is not None, clip
        if moments is not None:
            # The mean in two float32 numbers: x − mean is as exact as in float64, which many runtimes do not have.
            mean = np.asarray(moments.mean, np.float64)
            rounded = mean.astype(np.float32)
            self.register_buffer("mean", torch.as_tensor(rounded))
            self.register_buffer("mean_rest", torch.as_tensor((mean - rounded).astype(np.float32)))
            self.register_buffer("scale", torch.as_tensor((1.0 / np.sqrt(moments.var + EPSILON)).astype(np.float32)))

    def forward(self, x: Tensor) -> Tensor:
        if self.shifted:
            x = x - self.start
        x = x.movedim(-1, -3) if self.channels_last else x.reshape(-1, *self.shape)
        if self.normalized:
            x = ((x - self.mean - self.mean_rest) * self.scale).clamp(-self.clip, self.clip)
        return x


class ActionDecoding(nn.Module):
    """What `ActionDecoder` does, on tensors [B, *act]."""

    low: Tensor
    high: Tensor
    start: Tensor

    def __init__(self, space: Any, squashed: bool):
        super().__init__()
        self.space, self.squashed = space, squashed
        self.dtype = torch.as_tensor(np.empty(0, space.dtype)).dtype
        if isinstance(space, spaces.Box):
            exact = np.result_type(np.float32, space.dtype)  # in which NumPy clips
            self.register_buffer("low", torch.as_tensor(space.low.astype(exact)))
            self.register_buffer("high", torch.as_tensor(space.high.astype(exact)))
        else:
            start = np.asarray(getattr(space, "start", 0), np.int64)
            self.shifted = bool(start.any())
            self.register_buffer("start", torch.as_tensor(start))

    def forward(self, actions: Tensor) -> Tensor:
        actions = actions.reshape(-1, *self.space.shape)
        if not isinstance(self.space, spaces.Box):
            return (actions + self.start if self.shifted else actions).to(self.dtype)
        actions = actions.to(self.low.dtype)
        if self.squashed:
            actions = self.low + (0.5 * (actions + 1.0)) * (self.high - self.low)
        return torch.minimum(torch.maximum(actions, self.low), self.high).to(self.dtype)


def encoded_actions(space: spaces.Space, actions: Tensor) -> Tensor:
    """`encode_actions` on tensors: actions as sampled, choices one-hot, [B, d_prev] float32."""
    if isinstance(space, spaces.Discrete):
        return functional.one_hot(actions, int(space.n)).float()
    if isinstance(space, spaces.MultiDiscrete):
        columns = zip(actions.unbind(-1), space.nvec.tolist(), strict=True)
        return torch.cat([functional.one_hot(column, size).float() for column, size in columns], -1)
    return actions.float()


def actor_entries(agent: Agent) -> list[Entry]:
    """What the actor reads of an observation."""
    encoder = agent.encoder
    leaves = zip(encoder._names, encoder._leaves, strict=True)
    if not isinstance(encoder.space, spaces.Dict):
        return [Entry(OBSERVATION, path, raw, encoder.space) for _, (path, raw) in leaves]
    entries = [Entry(name, path, raw, encoder.space[name]) for name, (path, raw) in leaves]
    space = agent.policy.observation_space
    if not isinstance(space, MemoryObservations):
        return entries
    read, _ = readable_spaces(space.observation)
    visible = read.spaces if isinstance(read, spaces.Dict) else {OBSERVATION}
    return [entry for entry in entries if entry.key in visible]


def noise_parts(space: spaces.Space) -> list[tuple[str, int]]:
    """Distribution and size of each part of the noise, in their order."""
    if isinstance(space, MemoryActions):
        return [*noise_parts(space.action), ("normal", space.memory_size)]
    kind = "normal" if isinstance(space, spaces.Box) else "logistic" if isinstance(space, spaces.MultiBinary) else "gumbel"
    return [(kind, noise_size(space))]
