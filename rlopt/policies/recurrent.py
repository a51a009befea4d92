"""Recurrent policies π(a | o, z, a_prev) whose next memory is computed, not drawn: what backpropagation through time trains.

    h, z' = layers([encoder] [φ(o), a_prev], z)        a ~ head([φ(o),] h)        v = critic(its own h, or the actor's)

One step is that of a stateful policy with log π(z') = 0: the environment hands z' back as z, so that acting, prediction
and files know nothing of recurrence. z is the state of all recurrent layers, the actor's before the critic's. Whole
sequences, with gradients from step to step, are `RecurrentActorCritic.sequences`.

"MlpLstmPolicy" and its like are SB3-contrib's networks: features, LSTM, `net_arch`, head. "MlpPolicy" and its like are
those of `StatefulPolicy`: features, encoder, GRU, and heads that read features beside memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN, create_mlp
from torch import Tensor, nn

from rlopt.arguments import check_choice, check_number
from rlopt.envs.memory import MEMORY, PREVIOUS_ACTION, MemoryActions, MemoryObservations, encoded_size
from rlopt.policies.actor_critic import ActionDistribution, distribution_from, make_policy, policy_class
from rlopt.policies.distributions import noise_size
from rlopt.policies.kernels import KERNELS, Kernel
from rlopt.policies.stateful import EXTRACTORS, Deterministic, JointDistribution, MemoryPolicy, readable_spaces
from rlopt.policies.unrolling import Begins, advance, side_by_side, unroll
from rlopt.rollout import Observations, map_observations

RecurrentCell = Literal["gru", "lstm"]

# What differs from SB3-contrib's network in that of `StatefulPolicy`.
STATEFUL_NETWORK: dict[str, Any] = {
    "cell": "gru",
    "lstm_hidden_size": 16,
    "encoder_size": 64,
    "skip": True,
    "previous_action": True,
    "retention": 1.0,
    "action_gain": 0.1,
    "share_features_extractor": False,
}


class Recurrence(nn.Module):
    """Recurrent layers, one on another, and the encoder below them.

    Args:
        input_size: I.
        encoder_size: units of a layer below the first recurrent one; 0 for none.
        activation_fn: after it.
        cell: of the recurrent layers.
        size: H, units of each.
        num_layers: how many.
        retention: bias of the gate that keeps the memory.

    Attributes:
        kernels: the recurrent layers, from the bottom.
        state_size: of all of them together.
    """

    def __init__(
        self,
        input_size: int,
        encoder_size: int,
        activation_fn: type[nn.Module],
        cell: RecurrentCell,
        size: int,
        num_layers: int,
        retention: float,
    ):
        super().__init__()
        below = nn.Sequential(nn.Linear(input_size, encoder_size), activation_fn()) if encoder_size else nn.Identity()
        self.encoder: nn.Module = below
        widths = [encoder_size or input_size, *[size] * (num_layers - 1)]
        self.kernels: list[Kernel] = [KERNELS[cell](width, size, retention) for width in widths]
        self.layers = nn.ModuleList(self.kernels)
        self.state_sizes = [kernel.state_size for kernel in self.kernels]
        self.state_size = sum(self.state_sizes)

    def forward(self, inputs: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """One step: the output [B, H] and the next memory [B, state_size], of inputs [B, I]."""
        read, following = self.encoder(inputs), []
        for kernel, state in zip(self.kernels, self.split(memory), strict=True):
            following.append(advance(kernel, read, state))
            read = kernel.output(following[-1])
        return read, following[0] if len(following) == 1 else torch.cat(following, -1)

    def split(self, memory: Tensor) -> Sequence[Tensor]:
        """The memory [..., state_size] of each layer."""
        return memory.split_with_sizes(self.state_sizes, -1)


def over_time(
    recurrences: Sequence[Recurrence], inputs: Sequence[Tensor], memories: Sequence[Tensor], begins: Begins
) -> list[Tensor]:
    """The outputs [T, B, H] of each of these, alike but for their weights, over its own sequences [T, B, I].

    Memories [B, state_size] are those before the first steps; data.
    """
    read = _encoded(recurrences, inputs)
    for kernels, states in _layers(recurrences, memories):
        read = unroll(kernels, read, states, begins)
    return read


def memories_after(
    recurrences: Sequence[Recurrence], inputs: Sequence[Tensor], memories: Sequence[Tensor], begins: Begins
) -> list[Tensor]:
    """The memory [B, state_size] of each after the last step; arguments as for `over_time`."""
    read, last = _encoded(recurrences, inputs), []
    for kernels, states in _layers(recurrences, memories):
        results = side_by_side(kernels, read, states, begins)
        read = [result.outputs for result in results]
        last.append([result.last for result in results])
    return [torch.cat(parts, -1) for parts in zip(*last, strict=True)]


def _encoded(recurrences: Sequence[Recurrence], inputs: Sequence[Tensor]) -> list[Tensor]:
    return [recurrence.encoder(x) for recurrence, x in zip(recurrences, inputs, strict=True)]


def _layers(recurrences: Sequence[Recurrence], memories: Sequence[Tensor]) -> Iterator[tuple[Any, Any]]:
    """From the bottom, the kernels of all recurrences in a layer, and their memories."""
    states = zip(*(recurrence.split(z) for recurrence, z in zip(recurrences, memories, strict=True)), strict=True)
    return zip(zip(*(recurrence.kernels for recurrence in recurrences), strict=True), states, strict=True)


class RecurrentPolicy(MemoryPolicy):
    """The networks of a recurrent policy, with SB3's policy around them; names and defaults are SB3-contrib's.

    Args:
        observation_space: (o, z, a_prev).
        action_space: (a, z').
        lr_schedule: SB3's.
        net_arch: hidden layers of the action head and the critic: a list, or a dictionary of `pi` and `vf`; [64, 64] each
            by default, none after a `NatureCNN`.
        activation_fn: between them.
        cell: "lstm" or "gru".
        lstm_hidden_size: units of each recurrent layer, whatever its cell.
        n_lstm_layers: recurrent layers, one on another.
        shared_lstm: the critic reads the actor's recurrent layers.
        enable_critic_lstm: the critic has recurrent layers of its own; without them, and if nothing is shared, it has one
            feed-forward layer in their place.
        shared_gradient: with `shared_lstm`, the critic's loss trains the shared layers, too; in SB3-contrib it does not.
        encoder_size: units of a layer between features and the first recurrent layer; 0 for none.
        skip: heads read the features beside the recurrent output.
        previous_action: recurrent layers read a_prev beside the features.
        retention: bias of the gate that keeps the memory.
        action_gain: of the orthogonal weights of the action head.
        log_std_init: of continuous actions.
        ortho_init: orthogonal weights of the feed-forward layers.
        features_extractor_class, features_extractor_kwargs, normalize_images: φ, as in SB3.
        critic_features_extractor_class, critic_features_extractor_kwargs: φ_v of a critic with its own; see `MemoryPolicy`.
        share_features_extractor: one φ for actor and critic, unless the environment shows the critic more.
        lstm_kwargs: not offered; an error says so.
        optimizer_class, optimizer_kwargs: as in SB3.

    Attributes:
        state_sizes: how much of z is the actor's, and how much the critic's.
    """

    net_arch: dict[str, list[int]]

    def __init__(
        self,
        observation_space: MemoryObservations,
        action_space: MemoryActions,
        lr_schedule: Any,
        net_arch: Sequence[int] | dict[str, Sequence[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        cell: RecurrentCell = "lstm",
        lstm_hidden_size: int = 256,
        n_lstm_layers: int = 1,
        shared_lstm: bool = False,
        enable_critic_lstm: bool = True,
        shared_gradient: bool = False,
        encoder_size: int = 0,
        skip: bool = False,
        previous_action: bool = False,
        retention: float = 0.0,
        action_gain: float = 0.01,
        log_std_init: float = 0.0,
        ortho_init: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        critic_features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        critic_features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        lstm_kwargs: dict[str, Any] | None = None,
        **optimizer: Any,
    ):
        if lstm_kwargs:
            raise ValueError(f"policy_kwargs: lstm_kwargs is not offered, got {lstm_kwargs}; cell= chooses the layer")
        if shared_lstm and enable_critic_lstm:
            raise ValueError("policy_kwargs: shared_lstm=True needs enable_critic_lstm=False: one critic cannot have both")
        self.cell, self.lstm_hidden_size, self.n_lstm_layers = cell, lstm_hidden_size, n_lstm_layers
        self.shared_lstm, self.enable_critic_lstm, self.shared_gradient = shared_lstm, enable_critic_lstm, shared_gradient
        self.encoder_size, self.skip, self.previous_action = encoder_size, skip, previous_action
        self.retention, self.action_gain = retention, action_gain
        towers: Any = net_arch if net_arch is not None else [] if features_extractor_class is NatureCNN else [64, 64]
        if not isinstance(towers, dict):
            towers = {"pi": towers, "vf": towers}
        actor_space, critic_space = readable_spaces(observation_space.observation)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch={name: list(towers.get(name, [])) for name in ("pi", "vf")},
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            log_std_init=log_std_init,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            critic_features_extractor_class=critic_features_extractor_class,
            critic_features_extractor_kwargs=critic_features_extractor_kwargs,
            share_features_extractor=share_features_extractor and actor_space is critic_space,
            normalize_images=normalize_images,
            **optimizer,
        )

    def _build(self, lr_schedule: Any) -> None:
        action, size = self.action_space.action, self.lstm_hidden_size
        previous = encoded_size(action) if self.previous_action else 0
        seen, valued = self.pi_features_extractor.features_dim, self.vf_features_extractor.features_dim
        layers = (self.encoder_size, self.activation_fn, self.cell, size, self.n_lstm_layers, self.retention)
        self.lstm_actor = Recurrence(seen + previous, *layers)
        self.lstm_critic = Recurrence(valued + previous, *layers) if self.enable_critic_lstm else None
        self.state_sizes = [self.lstm_actor.state_size, self.lstm_critic.state_size if self.lstm_critic is not None else 0]
        feed_forward = not (self.shared_lstm or self.enable_critic_lstm)
        self.critic = nn.Linear(valued + previous, size) if feed_forward else None
        read, judged = (size + seen, size + valued) if self.skip else (size, size)
        self.actor_net = nn.Sequential(*create_mlp(read, -1, self.net_arch["pi"], self.activation_fn))
        self.critic_net = nn.Sequential(*create_mlp(judged, -1, self.net_arch["vf"], self.activation_fn))
        self.action_net = nn.Linear([read, *self.net_arch["pi"]][-1], noise_size(action))
        self.value_net = nn.Linear([judged, *self.net_arch["vf"]][-1], 1)
        if isinstance(action, spaces.Box):
            self.log_std = nn.Parameter(torch.full((noise_size(action),), float(self.log_std_init)))
        if self.ortho_init:
            inner = (self.pi_features_extractor, self.vf_features_extractor, self.lstm_actor, self.lstm_critic, self.critic)
            gains: dict[nn.Module | None, float] = dict.fromkeys((*inner, self.actor_net, self.critic_net), 2**0.5)
            for module, gain in {**gains, self.action_net: self.action_gain, self.value_net: 1.0}.items():
                if module is not None:
                    module.apply(partial(self.init_weights, gain=gain))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]


class RecurrentActorCritic(nn.Module):
    """π(a, z' | o, z, a_prev) and v(o, z, a_prev), as `StatefulActorCritic` is, and both over whole sequences."""

    closed_form = False

    def __init__(self, policy: RecurrentPolicy):
        super().__init__()
        self.policy = policy
        self.squash = policy.squash_output
        space = policy.action_space.action
        self.choices = tuple(int(n) for n in space.nvec) if isinstance(space, spaces.MultiDiscrete) else ()

    def forward(self, observations: Observations) -> tuple[JointDistribution, Tensor]:
        """The distribution of (a, z') and the values [B]."""
        return self.actor(observations), self.critic(observations)

    def actor(self, observations: Observations) -> JointDistribution:
        """The distribution of (a, z'); of z' it is one value, the critic's part of it included.

        Without all that the critic sees, as where only actions are wanted, its part of the memory stays as it is.
        """
        policy, of_critic = self.policy, self.policy.lstm_critic
        assert isinstance(observations, dict)
        features = self.actor_features(observations)
        memory, critic_memory = observations[MEMORY].split_with_sizes(policy.state_sizes, -1)
        latent, following = policy.lstm_actor(self.inputs(features, observations), memory)
        if of_critic is not None:
            if self.shows_critic_all(observations):
                seen = features if policy.share_features_extractor else self.critic_features(observations)
                _, critic_memory = of_critic(self.inputs(seen, observations), critic_memory)
            following = torch.cat([following, critic_memory], -1)
        distribution = self.distribution_of(self.head(features, latent))
        return JointDistribution(distribution, Deterministic(following), policy.action_space)

    def critic(self, observations: Observations) -> Tensor:
        """v(o, z, a_prev), [B]."""
        policy = self.policy
        assert isinstance(observations, dict)
        features = self.critic_features(observations)
        memory, critic_memory = observations[MEMORY].split_with_sizes(policy.state_sizes, -1)
        if policy.lstm_critic is not None:
            latent, _ = policy.lstm_critic(self.inputs(features, observations), critic_memory)
        elif policy.critic is not None:
            latent = policy.critic(self.inputs(features, observations))
        else:
            latent, _ = policy.lstm_actor(self.inputs(self.actor_features(observations), observations), memory)
        return self.values(features, latent)

    def sequences(
        self, observations: Observations, memory: Tensor, begins: Begins, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The action head [R, ·] and the values [R] over sequences, differentiable from step to step.

        Args:
            observations: [T, B, *obs], (o, a_prev).
            memory: z of every first step, [B, d_z]; data.
            begins: where memory begins anew.
            rows: [R], those to return, t·B + b for step t of sequence b; all by default.
        """
        policy = self.policy
        flat: Any = map_observations(lambda x: x.flatten(0, 1), observations)
        features, seen, (recurrences, inputs, memories) = self._sequences(flat, memory)
        outputs = over_time(recurrences, inputs, memories, begins)
        chosen: Any = (lambda x: x) if rows is None else (lambda x: x[rows])
        latent = chosen(outputs[0].flatten(0, 1))
        if policy.lstm_critic is not None:
            judged = chosen(outputs[1].flatten(0, 1))
        elif policy.critic is not None:
            judged = policy.critic(chosen(self.inputs(seen, flat)))
        else:
            judged = latent if policy.shared_gradient else latent.detach()
        return self.head(chosen(features), latent), self.values(chosen(seen), judged)

    def memory_after(self, observations: Observations, memory: Tensor, begins: Begins) -> Tensor:
        """z after the last step of sequences, [B, d_z]; arguments as for `sequences`."""
        flat: Any = map_observations(lambda x: x.flatten(0, 1), observations)
        _, _, (recurrences, inputs, memories) = self._sequences(flat, memory)
        return torch.cat(memories_after(recurrences, inputs, memories, begins), -1)

    def _sequences(self, flat: dict[str, Tensor], memory: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Features [T·B, F] of actor and critic, and what `over_time` asks for: recurrences, inputs, memories."""
        policy = self.policy
        features = self.actor_features(flat)
        seen = features if policy.share_features_extractor else self.critic_features(flat)
        recurrences, read = [policy.lstm_actor], [features]
        if policy.lstm_critic is not None:
            recurrences, read = [policy.lstm_actor, policy.lstm_critic], [features, seen]
        inputs = [self.inputs(part, flat).unflatten(0, (-1, len(memory))) for part in read]
        return features, seen, (recurrences, inputs, memory.split_with_sizes(policy.state_sizes, -1)[: len(recurrences)])

    def actor_features(self, observations: Observations) -> Tensor:
        """φ(o), [B, F]."""
        return self.policy.read(observations, self.policy.pi_features_extractor, self.policy.actor_space)

    def critic_features(self, observations: Observations) -> Tensor:
        """φ_v(o), [B, F]; of all that the environment shows the critic, if it does."""
        return self.policy.read(observations, self.policy.vf_features_extractor, self.policy.critic_space)

    def shows_critic_all(self, observations: dict[str, Tensor]) -> bool:
        """Whether nothing of what the critic reads is missing."""
        space = self.policy.critic_space
        return not isinstance(space, spaces.Dict) or space.spaces.keys() <= observations.keys()

    def inputs(self, features: Tensor, observations: dict[str, Tensor]) -> Tensor:
        """What recurrent layers read, [B, I]."""
        return torch.cat([features, observations[PREVIOUS_ACTION]], -1) if self.policy.previous_action else features

    def head(self, features: Tensor, latent: Tensor) -> Tensor:
        """What the action head puts out, [B, ·], for features [B, F] and the actor's recurrent output [B, H]."""
        policy = self.policy
        return policy.action_net(policy.actor_net(torch.cat([features, latent], -1) if policy.skip else latent))

    def distribution_of(self, head: Tensor) -> ActionDistribution:
        """π_a that the action head's output stands for."""
        policy = self.policy
        return distribution_from(head, policy.action_space.action, self.choices, getattr(policy, "log_std", None), self.squash)

    def values(self, features: Tensor, latent: Tensor) -> Tensor:
        """v [B] of features [B, F] and the output [B, H] of what the critic has in place of a memory, or as one."""
        policy = self.policy
        read = torch.cat([features, latent], -1) if policy.skip else latent
        return policy.value_net(policy.critic_net(read)).squeeze(-1)


RecurrentPolicy.actor_critic_class = RecurrentActorCritic

# Alias -> what of `EXTRACTORS` reads observations, and what differs from the policy's defaults.
RECURRENT_POLICIES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name.replace("Policy", "LstmPolicy"): (name, {}) for name in EXTRACTORS},
    **{name: (name, STATEFUL_NETWORK) for name in EXTRACTORS},
}


def make_recurrent_policy(
    policy: str | type[ActorCriticPolicy],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    learning_rate: float,
    policy_kwargs: dict[str, Any],
    memory_size: int | None,
) -> ActorCriticPolicy:
    """A `RecurrentPolicy` on the CPU for encoded spaces; `policy_kwargs` are its arguments.

    Args:
        policy: an alias, which says how observations are read and whose network it is.
        memory_size: `lstm_hidden_size` by another name; None leaves it to `policy_kwargs`.

    Raises:
        ValueError: a class in place of an alias; sizes that contradict each other; what `make_policy` raises.
    """
    if not isinstance(policy, str):
        raise ValueError(f"policy: a recurrent agent takes {', '.join(RECURRENT_POLICIES)}, got the class {policy!r}")
    check_choice("policy", policy, tuple(RECURRENT_POLICIES))
    reader, network = RECURRENT_POLICIES[policy]
    policy_class(reader, readable_spaces(observation_space)[0])
    kwargs: dict[str, Any] = {"features_extractor_class": EXTRACTORS[reader], **network, **policy_kwargs}
    if memory_size is not None:
        if policy_kwargs.get("lstm_hidden_size", memory_size) != memory_size:
            raise ValueError(f"memory_size: got {memory_size}, and lstm_hidden_size={policy_kwargs['lstm_hidden_size']}")
        kwargs["lstm_hidden_size"] = memory_size
    cell, size, num_layers = kwargs.get("cell", "lstm"), kwargs.get("lstm_hidden_size", 256), kwargs.get("n_lstm_layers", 1)
    check_choice("cell", cell, get_args(RecurrentCell))
    check_number("lstm_hidden_size" if memory_size is None else "memory_size", size, positive=True, whole=True)
    check_number("n_lstm_layers", num_layers, positive=True, whole=True)
    num_networks = 2 if kwargs.get("enable_critic_lstm", True) else 1
    state_size = num_networks * num_layers * size * (2 if cell == "lstm" else 1)
    return make_policy(
        RecurrentPolicy,
        MemoryObservations(observation_space, action_space, state_size),
        MemoryActions(action_space, state_size),
        learning_rate,
        kwargs,
    )
