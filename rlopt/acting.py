"""Actors: from a batch of observations and noise to actions, as fast as the policy allows.

An actor is bound to θ once per rollout. Only the action head is computed; values and log-probabilities come from
batched passes afterwards, except where the action head and the critic share most of the work: see `TrunkActor`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import Tensor, nn

from rlopt.device import SMALL_NETWORK
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.policies.actor_critic import ActorCritic
from rlopt.rollout import as_tensors

Activation = Callable[..., Array]  # called with `out`
Layer = tuple[Array, Array, Activation | None]  # weights [in, out], bias [out]
NUMPY_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.Tanh: np.tanh,
    nn.ReLU: lambda x, out: np.maximum(x, 0.0, out=out),
}
# Above this many environments torch's matrix products win over NumPy's lower cost of a call.
NUMPY_MAX_ENVS = 128


class Actor(Protocol):
    """Acts for N environments at the θ it was bound to."""

    def __call__(self, observations: ArrayTree, noise: Array) -> Array:
        """Actions [N, *act] as sampled, from encoded observations [N, *obs] and noise [N, ·]."""
        ...


def make_actor(module: ActorCritic, num_envs: int) -> Actor:
    """The fastest actor for a module that is already bound to θ."""
    if num_envs > NUMPY_MAX_ENVS:
        return TorchActor(module)
    near = module.policy.device.type == "cpu" or sum(p.numel() for p in module.parameters()) < SMALL_NETWORK
    layers = _numpy_layers(module.policy) if near else None
    return TorchActor(module) if layers is None else NumpyActor(module, layers)


class TorchActor:
    """Any policy, on any device."""

    def __init__(self, module: ActorCritic):
        self.module = module
        self.device = next(module.parameters()).device

    @torch.no_grad()
    def __call__(self, observations: ArrayTree, noise: Array) -> Array:
        return self.module.actor(as_tensors(observations, self.device)).sample(as_tensors(noise, self.device)).cpu().numpy()


class Kept(NamedTuple):
    """What was computed while acting."""

    log_probs: Tensor  # [T, N]
    values: Tensor  # v(s_t), [T, N] or [T, N, K]


class TrunkActor(TorchActor):
    """A policy whose action head and critic read the same trunk, such as convolutions.

    With the actions it computes values and log-probabilities, for which the whole rollout would have to go through the trunk
    again, and keeps them.
    """

    def __init__(self, module: ActorCritic):
        super().__init__(module)
        self._log_probs: list[Tensor] = []
        self._values: list[Tensor] = []

    @torch.no_grad()
    def __call__(self, observations: ArrayTree, noise: Array) -> Array:
        distribution, values = self.module(as_tensors(observations, self.device))
        actions = distribution.sample(as_tensors(noise, self.device))
        self._log_probs.append(distribution.log_prob(actions))
        self._values.append(values)
        result: Array = actions.cpu().numpy()
        return result

    def kept(self) -> Kept:
        """Of all T steps so far."""
        return Kept(torch.stack(self._log_probs), torch.stack(self._values))


def shares_trunk(module: Any) -> bool:
    """Whether a module is an actor-critic with layers that both halves read."""
    if type(module) is not ActorCritic:
        return False
    policy = module.policy
    return policy.share_features_extractor and any(True for _ in policy.features_extractor.parameters())


@dataclass(frozen=True)
class Sampler:
    """From a policy's head and noise to actions, as the distributions do it in torch.

    Attributes:
        space: of the policy's actions.
        squash: whether Gaussian actions go through tanh.
        std: of a Gaussian, [A] or with more dimensions in front; else None.
    """

    space: spaces.Space
    squash: bool
    std: Array | None

    def __call__(self, head: Array, noise: Array) -> Array:
        """Actions, [..., *act]."""
        if isinstance(self.space, spaces.Discrete):
            return (head + noise).argmax(-1)
        if self.std is not None:
            actions = head + self.std * noise
            return np.tanh(actions) if self.squash else actions
        if isinstance(self.space, spaces.MultiDiscrete):
            parts = np.split(head + noise, np.cumsum(self.space.nvec)[:-1], axis=-1)
            return np.stack([part.argmax(-1) for part in parts], -1)
        return (head + noise > 0).astype(np.int64)


class NumpyActor:
    """A small MLP as NumPy arrays: one call costs microseconds, on a GPU too, whose weights are copied once a rollout."""

    def __init__(self, module: ActorCritic, layers: list[Layer]):
        self.layers = layers
        space = module.policy.action_space
        std = module.policy.log_std.detach().exp().cpu().numpy() if isinstance(space, spaces.Box) else None
        self.sample = Sampler(space, module.squash, std)

    def __call__(self, observations: ArrayTree, noise: Array) -> Array:
        x: Any = observations
        for weight, bias, activation in self.layers:
            x = x.dot(weight)
            x += bias
            if activation is not None:
                activation(x, out=x)
        return self.sample(x, noise)


def _numpy_layers(policy: ActorCriticPolicy) -> list[Layer] | None:
    """The actor layer by layer, or None if it is more than a plain MLP."""
    space = policy.observation_space
    plain = (
        isinstance(space, spaces.Box)
        and len(space.shape) == 1
        and not is_image_space(space)
        and type(policy.pi_features_extractor) is FlattenExtractor
        and type(policy.mlp_extractor) is MlpExtractor
        and type(policy.action_net) is nn.Linear
    )
    modules = [*policy.mlp_extractor.policy_net, policy.action_net] if plain else []
    layers: list[Layer] = []
    for module in modules:
        if type(module) is nn.Linear and module.bias is not None:
            weight = np.ascontiguousarray(module.weight.detach().cpu().numpy().T)
            layers.append((weight, module.bias.detach().cpu().numpy(), None))
        elif type(module) in NUMPY_ACTIVATIONS and layers and layers[-1][2] is None:
            layers[-1] = (*layers[-1][:2], NUMPY_ACTIVATIONS[type(module)])
        else:
            return None
    return layers or None
