"""Stateful policies π(a, z' | o, z, a_prev): a recurrent kernel whose next memory is drawn, like an action.

    μ_z = kernel([encoder(φ(o), a_prev)], z)        z' ~ N(μ_z, σ_z²)
    a   ~ head(φ(o), μ_z)                           v = critic(φ_v(o), z, a_prev)

The head reads the noise-free mean, so that the noise of a step acts from the next one on. Given (o, z, a_prev), a and z'
are independent: log π = log π_a + log π_z.

Source: Al-Hafez et al., arXiv:2311.04082.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from torch import Tensor, nn

from rlopt.arguments import check_choice, check_number
from rlopt.envs.memory import MEMORY, OBSERVATION, PREVIOUS_ACTION, MemoryActions, MemoryObservations, encoded_size
from rlopt.policies.actor_critic import ActionDistribution, ActorCritic, distribution_from, make_policy, policy_class
from rlopt.policies.distributions import DiagonalGaussian, noise_size
from rlopt.policies.kernels import KERNELS, CellName
from rlopt.policies.preprocessing import preprocessing
from rlopt.rollout import Observations, in_pieces

MemoryName = Literal["s2pg"]

CRITIC = "critic"  # the key of a Dict observation that only the critic reads
EXTRACTORS: dict[str, type[BaseFeaturesExtractor]] = {
    "MlpPolicy": FlattenExtractor,
    "CnnPolicy": NatureCNN,
    "MultiInputPolicy": CombinedExtractor,
}


class Deterministic(NamedTuple):
    """One value with certainty: log π(mean) = 0, and noise changes nothing."""

    mean: Tensor  # [B, d_z]

    def log_prob(self, values: Tensor) -> Tensor:
        """0 for the only value that there is, [B]."""
        return self.mean.new_zeros(values.shape[:-1])

    def divergence_from(self, old: Deterministic) -> Tensor:
        """0, [B]: the memory is no choice."""
        del old
        return self.mean.new_zeros(self.mean.shape[:-1])

    def mode(self) -> Tensor:
        """The value, [B, d_z]."""
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        """The value, [B, d_z]."""
        del noise
        return self.mean


class JointDistribution(NamedTuple):
    """π(a, z' | o, z, a_prev). Values are [B, A + d_z], a first; noise is that of both, in this order."""

    action: ActionDistribution
    memory: DiagonalGaussian | Deterministic
    space: MemoryActions

    def log_probs(self, joint: Tensor) -> tuple[Tensor, Tensor]:
        """log π_a and log π_z, [B] each."""
        actions, memories = self.space.split(joint)
        return self.action.log_prob(actions), self.memory.log_prob(memories)

    def log_prob(self, joint: Tensor) -> Tensor:
        """log π_a + log π_z, [B]."""
        of_action, of_memory = self.log_probs(joint)
        return of_action + of_memory

    def entropy(self) -> Tensor:
        """Of the action alone, [B]: to spread the memory is to erase it."""
        return self.action.entropy()

    def divergence_from(self, old: JointDistribution) -> Tensor:
        """KL(old ‖ self), [B], given (o, z, a_prev): of the action and of the next memory, which are independent."""
        action: Any = old.action
        memory: Any = old.memory
        return self.action.divergence_from(action) + self.memory.divergence_from(memory)

    def mode(self) -> Tensor:
        """The most likely action, and the mean of the next memory."""
        return self._joined(self.action.mode(), self.memory.mode())

    def sample(self, noise: Tensor) -> Tensor:
        of_action, of_memory = noise.split([noise.shape[-1] - self.space.memory_size, self.space.memory_size], -1)
        return self._joined(self.action.sample(of_action), self.memory.sample(of_memory))

    def _joined(self, actions: Tensor, memories: Tensor) -> Tensor:
        return torch.cat([actions.reshape(len(memories), -1).to(memories.dtype), memories], -1)


class MemoryPolicy(ActorCriticPolicy):
    """An SB3 policy that reads (o, z, a_prev) and answers (a, z').

    Args:
        observation_space: (o, z, a_prev).
        action_space: (a, z').
        lr_schedule: SB3's.
        critic_features_extractor_class: φ_v where it is not that of the actor, `features_extractor_class`. None is the same
            class or, where the critic reads a Dict and the actor does not, SB3's `CombinedExtractor`.
        critic_features_extractor_kwargs: its arguments; None are the actor's, `features_extractor_kwargs`, if the class is
            the same, and none if it is another.
        **kwargs: of SB3's policy.

    Attributes:
        actor_space, critic_space: what of o the actor reads, and what the critic does.

    Raises:
        ValueError: an extractor for a critic that shares the actor's.
    """

    actor_critic_class: ClassVar[type[nn.Module]]  # how rlopt sees the policy

    observation_space: MemoryObservations
    action_space: MemoryActions

    def __init__(
        self,
        observation_space: MemoryObservations,
        action_space: MemoryActions,
        lr_schedule: Any,
        critic_features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        critic_features_extractor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ):
        self.actor_space, self.critic_space = readable_spaces(observation_space.observation)
        self.critic_features_extractor_class = critic_features_extractor_class
        self.critic_features_extractor_kwargs = critic_features_extractor_kwargs
        for name in ("critic_features_extractor_class", "critic_features_extractor_kwargs"):
            if kwargs["share_features_extractor"] and getattr(self, name) is not None:
                raise ValueError(
                    f"policy_kwargs: {name} is of a critic with a features extractor of its own; this one shares the actor's: "
                    "set share_features_extractor=False"
                )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)
        self._of_actor, self._of_critic = (preprocessing(self, space) for space in (self.actor_space, self.critic_space))

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """φ: the first call makes the actor's, the second the critic's."""
        of_actor = self.features_extractor_class
        if not hasattr(self, "pi_features_extractor"):
            return of_actor(self.actor_space, **self.features_extractor_kwargs)
        combined = isinstance(self.critic_space, spaces.Dict) and not isinstance(self.actor_space, spaces.Dict)
        of_critic = self.critic_features_extractor_class or (CombinedExtractor if combined else of_actor)
        kwargs = self.critic_features_extractor_kwargs
        if kwargs is None:
            kwargs = self.features_extractor_kwargs if of_critic is of_actor else {}
        if not self.normalize_images and issubclass(of_critic, NatureCNN | CombinedExtractor):  # as SB3 does for the actor's
            kwargs = {"normalized_image": True, **kwargs}
        return of_critic(self.critic_space, **kwargs)

    def read(self, observations: Observations, extractor: nn.Module, space: spaces.Space) -> Tensor:
        """φ(o), [B, F]: what one features extractor makes of its part of the observations."""
        assert isinstance(observations, dict)
        part: Any = (
            {key: observations[key] for key in space.spaces} if isinstance(space, spaces.Dict) else observations[OBSERVATION]
        )
        return extractor((self._of_actor if space is self.actor_space else self._of_critic)(part))


class StatefulPolicy(MemoryPolicy):
    """The networks of a stateful policy, with SB3's policy around them.

    Args:
        observation_space: (o, z, a_prev).
        action_space: (a, z').
        lr_schedule: SB3's.
        net_arch: hidden layers of the action head and the critic: a list, or a dictionary of `pi` and `vf`.
        activation_fn: between them.
        encoder_size: units of the layer that the kernel reads.
        cell: the kernel: "gru", "lstm" or "mlp", which is gated.
        cell_size: units of the kernel; the LSTM's memory is twice as wide.
        retention: bias of the gate that keeps the memory: σ(retention) of it survives a step at first. A pair (1, D)
            spreads the units over delays up to D: log U[1, D − 1] (Tallec and Ollivier, arXiv:1804.11188).
        memory_std: σ_z at first.
        min_memory_std: σ_z never falls below this.
        previous_action: whether kernel and critic read a_prev.
        log_std_init: of continuous actions.
        ortho_init: orthogonal weights of the feed-forward layers.
        features_extractor_class, features_extractor_kwargs, normalize_images: φ, as in SB3; actor and critic have their own.
        critic_features_extractor_class, critic_features_extractor_kwargs: φ_v of the critic; see `MemoryPolicy`.
        optimizer_class, optimizer_kwargs: as in SB3.
    """

    def __init__(
        self,
        observation_space: MemoryObservations,
        action_space: MemoryActions,
        lr_schedule: Any,
        net_arch: Sequence[int] | dict[str, Sequence[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        encoder_size: int = 64,
        cell: CellName = "gru",
        cell_size: int = 16,
        retention: float | Sequence[float] = 1.0,
        memory_std: float = 0.15,
        min_memory_std: float = 0.02,
        previous_action: bool = True,
        log_std_init: float = 0.0,
        ortho_init: bool = True,
        features_extractor_class: type[BaseFeaturesExtractor] = FlattenExtractor,
        features_extractor_kwargs: dict[str, Any] | None = None,
        critic_features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        critic_features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        **optimizer: Any,
    ):
        self.encoder_size, self.cell, self.cell_size, self.retention = encoder_size, cell, cell_size, retention
        self.memory_std, self.min_memory_std, self.previous_action = memory_std, min_memory_std, previous_action
        check_number("min_memory_std", min_memory_std, at_least=0)
        if not memory_std > min_memory_std:
            raise ValueError(f"memory_std: expected more than min_memory_std = {min_memory_std}, got {memory_std}")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=_towers(net_arch),
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            log_std_init=log_std_init,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            critic_features_extractor_class=critic_features_extractor_class,
            critic_features_extractor_kwargs=critic_features_extractor_kwargs,
            share_features_extractor=False,
            normalize_images=normalize_images,
            **optimizer,
        )

    def _build(self, lr_schedule: Any) -> None:
        action = self.action_space.action
        previous = encoded_size(action) if self.previous_action else 0
        seen, arch = self.pi_features_extractor.features_dim, self.net_arch
        assert isinstance(arch, dict)
        self.encoder = nn.Sequential(nn.Linear(seen + previous, self.encoder_size), self.activation_fn())
        self.kernel = KERNELS[self.cell](self.encoder_size, self.cell_size, 0.0)
        self.kernel.set_retention(self._retention())
        if self.kernel.state_size != self.action_space.memory_size:
            raise ValueError(f"cell_size: {self.cell_size} units of {self.cell!r} do not fit the memory's size")
        self.actor_net = nn.Sequential(*create_mlp(seen + self.cell_size, -1, list(arch["pi"]), self.activation_fn))
        width = self.vf_features_extractor.features_dim + self.action_space.memory_size + previous
        self.critic_net = nn.Sequential(*create_mlp(width, -1, list(arch["vf"]), self.activation_fn))
        self.action_net = nn.Linear([seen + self.cell_size, *arch["pi"]][-1], noise_size(action))
        self.value_net = nn.Linear([width, *arch["vf"]][-1], 1)
        if isinstance(action, spaces.Box):
            self.log_std = nn.Parameter(torch.full((noise_size(action),), float(self.log_std_init)))
        excess = math.log(self.memory_std - self.min_memory_std)
        self.memory_log_excess = nn.Parameter(torch.full((self.action_space.memory_size,), excess))
        if self.ortho_init:
            # The usual 0.01 of action heads is all but the saddle in which memory cannot begin to be learned.
            gains = {self.encoder: 2**0.5, self.actor_net: 2**0.5, self.critic_net: 2**0.5, self.action_net: 0.1}
            for module, gain in {**gains, self.value_net: 1.0}.items():
                module.apply(partial(self.init_weights, gain=gain))
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _retention(self) -> Any:
        """The gate's bias: one number, or one for each unit."""
        if not isinstance(self.retention, Sequence):
            check_number("retention", self.retention)
            return float(self.retention)
        if len(self.retention) != 2 or not 0 < self.retention[0] < self.retention[1]:
            raise ValueError(f"retention: expected a number, or (low, high) with 0 < low < high, got {self.retention!r}")
        low, high = self.retention
        return torch.empty(self.cell_size).uniform_(low, max(high - 1.0, low + 1e-3)).log()

    @property
    def memory_log_std(self) -> Tensor:
        """log σ_z, [d_z]."""
        return (self.min_memory_std + self.memory_log_excess.exp()).log()


class StatefulActorCritic(nn.Module):
    """π(a, z' | o, z, a_prev) and v(o, z, a_prev), as `ActorCritic` is for memoryless policies."""

    closed_form = False

    def __init__(self, policy: StatefulPolicy):
        super().__init__()
        self.policy = policy
        self.squash = policy.squash_output
        space = policy.action_space.action
        self.choices = tuple(int(n) for n in space.nvec) if isinstance(space, spaces.MultiDiscrete) else ()

    def forward(self, observations: Observations) -> tuple[JointDistribution, Tensor]:
        """The distribution of (a, z') and the values [B]."""
        return self.actor(observations), self.critic(observations)

    def actor(self, observations: Observations) -> JointDistribution:
        """The distribution of (a, z')."""
        policy = self.policy
        assert isinstance(observations, dict)
        features = policy.read(observations, policy.pi_features_extractor, policy.actor_space)
        memory = policy.kernel(self.encoded(features, observations[PREVIOUS_ACTION]), observations[MEMORY])
        return JointDistribution(
            self.action_distribution(features, memory), DiagonalGaussian(memory, policy.memory_log_std), policy.action_space
        )

    def encoded(self, features: Tensor, previous_actions: Tensor) -> Tensor:
        """What the kernel reads, [B, E]."""
        read = torch.cat([features, previous_actions], -1) if self.policy.previous_action else features
        return self.policy.encoder(read)

    def action_distribution(self, features: Tensor, memory: Tensor) -> ActionDistribution:
        """π_a of features φ(o) [B, F] and the noise-free next memory [B, d_z]."""
        policy = self.policy
        read = torch.cat([features, policy.kernel.output(memory)], -1)
        head = policy.action_net(policy.actor_net(read))
        return distribution_from(head, policy.action_space.action, self.choices, getattr(policy, "log_std", None), self.squash)

    def critic(self, observations: Observations) -> Tensor:
        """v(o, z, a_prev), [B]; of all that the environment shows the critic in place of o, if it does."""
        policy = self.policy
        assert isinstance(observations, dict)
        read = [policy.read(observations, policy.vf_features_extractor, policy.critic_space), observations[MEMORY]]
        if policy.previous_action:
            read.append(observations[PREVIOUS_ACTION])
        return policy.value_net(policy.critic_net(torch.cat(read, -1))).squeeze(-1)


StatefulPolicy.actor_critic_class = StatefulActorCritic


def readable_spaces(observation: spaces.Space) -> tuple[spaces.Space, spaces.Space]:
    """What of an encoded observation the actor reads, and what the critic does.

    Entries of a Dict whose key is "critic", or begins with "critic/", are the critic's alone; it reads the others too.
    If the only other one is named "observation", the actor reads it as if it were not in a Dict.

    Raises:
        ValueError: nothing is left for the actor.
    """
    if not isinstance(observation, spaces.Dict):
        return observation, observation
    visible = visible_entries(observation)
    if not visible:
        raise ValueError(
            f"observation space: every entry is the critic's ({sorted(observation.spaces)}); the actor needs one of its own"
        )
    if visible.keys() == observation.spaces.keys():
        return observation, observation
    actor = visible[OBSERVATION] if visible.keys() == {OBSERVATION} else spaces.Dict(visible)
    return actor, observation


def visible_entries(observation: spaces.Dict) -> dict[str, spaces.Space]:
    """The entries that are not the critic's alone, see `readable_spaces`; of an encoded Dict, or as environments state it."""
    return {key: space for key, space in observation.spaces.items() if str(key).split("/")[0] != CRITIC}


def actor_spaces(observation: spaces.Space) -> list[spaces.Space]:
    """Other spaces, as environments state them, in which a policy with memory can act that was trained in this one.

    The first is the Dict without the critic's entries; if "observation" alone is left, the second is the space of that.
    [] where nothing is the critic's.
    """
    if not isinstance(observation, spaces.Dict):
        return []
    visible = visible_entries(observation)
    if len(visible) in (0, len(observation.spaces)):
        return []
    return [spaces.Dict(visible), *([visible[OBSERVATION]] if visible.keys() == {OBSERVATION} else [])]


def make_stateful_policy(
    policy: str | type[ActorCriticPolicy],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    learning_rate: float,
    policy_kwargs: dict[str, Any],
    memory_size: int,
) -> ActorCriticPolicy:
    """A `StatefulPolicy` on the CPU for encoded spaces; `policy_kwargs` are its arguments.

    Args:
        policy: an alias, which says how observations are read.
        memory_size: units of the kernel.

    Raises:
        ValueError: a class in place of an alias; what `make_policy` raises.
    """
    if not isinstance(policy, str):
        raise ValueError(f"policy: an agent with memory takes {', '.join(EXTRACTORS)}, got the class {policy!r}")
    check_number("memory_size", memory_size, positive=True, whole=True)
    policy_class(policy, readable_spaces(observation_space)[0])
    if policy_kwargs.get("cell_size", memory_size) != memory_size:
        raise ValueError(
            f"policy_kwargs: cell_size is {policy_kwargs['cell_size']}, and memory_size {memory_size}; give the latter"
        )
    kwargs: dict[str, Any] = {"features_extractor_class": EXTRACTORS[policy], **policy_kwargs, "cell_size": int(memory_size)}
    cell = kwargs.get("cell", "gru")
    check_choice("cell", cell, get_args(CellName))
    state_size = int(memory_size) * (2 if cell == "lstm" else 1)
    return make_policy(
        StatefulPolicy,
        MemoryObservations(observation_space, action_space, state_size),
        MemoryActions(action_space, state_size),
        learning_rate,
        kwargs,
    )


def as_actor_critic(policy: ActorCriticPolicy) -> Any:
    """The policy as a function from observations to (distribution, values); a class of ours says which."""
    view: Any = getattr(policy, "actor_critic_class", ActorCritic)
    return view(policy)


def factor_log_probs(actor: Any, observations: Observations, joint: Tensor) -> Tensor:
    """log π_a and log π_z of many rows, [B, 2], without gradients.

    Args:
        actor: (o, z, a_prev) -> `JointDistribution`.
        observations: [B, *obs], (o, z, a_prev).
        joint: [B, A + d_z], (a, z').
    """
    return in_pieces(lambda x, u: torch.stack(actor(x).log_probs(u), -1), observations, joint)


def _towers(net_arch: Any) -> dict[str, list[int]]:
    if net_arch is None:
        return {"pi": [64, 64], "vf": [64, 64]}
    if isinstance(net_arch, dict):
        return {name: list(net_arch.get(name, [])) for name in ("pi", "vf")}
    return {"pi": list(net_arch), "vf": list(net_arch)}
