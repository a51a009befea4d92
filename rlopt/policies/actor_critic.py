"""Stable-Baselines3's actor-critic policies, seen as functions from observations to (distribution, values).

The networks, their initialisation, their keyword arguments and their parameter names are SB3's own classes, so that
weights go to and come from SB3 unchanged and a custom SB3 policy or features extractor works as it is. What rlopt
computes with them goes through `ActorCritic`, which samples nothing and builds no torch.distributions object.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import SquashedDiagGaussianDistribution
from stable_baselines3.common.policies import (
    ActorCriticCnnPolicy,
    ActorCriticPolicy,
    MultiInputActorCriticPolicy,
)
from torch import Tensor, nn

from rlopt.arguments import did_you_mean
from rlopt.envs.memory import MemoryActions
from rlopt.policies.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical, SquashedGaussian
from rlopt.policies.preprocessing import preprocessing
from rlopt.rollout import Observations

POLICY_ALIASES: dict[str, type[ActorCriticPolicy]] = {
    "MlpPolicy": ActorCriticPolicy,
    "CnnPolicy": ActorCriticCnnPolicy,
    "MultiInputPolicy": MultiInputActorCriticPolicy,
}
# `ActorCritic` computes what these SB3 methods compute; a subclass that changes one would silently be ignored.
BYPASSED_METHODS = (
    "forward",
    "evaluate_actions",
    "get_distribution",
    "predict_values",
    "_get_action_dist_from_latent",
    "extract_features",
    "predict",
    "_predict",
)

ActionDistribution = Categorical | MultiCategorical | Bernoulli | DiagonalGaussian | SquashedGaussian


class ActorCritic(nn.Module):
    """π(· | s) and v(s) of an SB3 actor-critic policy."""

    def __init__(self, policy: ActorCriticPolicy):
        super().__init__()
        self.policy = policy
        self.squash = policy.squash_output
        self.preprocessing = preprocessing(policy, policy.observation_space)
        space = policy.action_space
        self.choices = tuple(int(n) for n in space.nvec) if isinstance(space, spaces.MultiDiscrete) else ()

    @property
    def closed_form(self) -> bool:
        """Whether the distribution has `pull_back`."""
        return not self.squash

    def forward(self, observations: Observations) -> tuple[ActionDistribution, Tensor]:
        """The distribution of actions and the values [B], features that both share computed once."""
        head, values = self.heads(observations)
        return self.distribution_of(head), values

    def heads(self, observations: Observations) -> tuple[Tensor, Tensor]:
        """What the networks put out: the action head [B, ·] (logits or a mean) and the values [B], or [B, K]."""
        policy = self.policy
        readable = self.preprocessing(observations)
        features = policy.pi_features_extractor(readable)
        if policy.share_features_extractor:
            latent_pi, latent_vf = policy.mlp_extractor(features)
        else:
            latent_pi = policy.mlp_extractor.forward_actor(features)
            latent_vf = policy.mlp_extractor.forward_critic(policy.vf_features_extractor(readable))
        return policy.action_net(latent_pi), policy.value_net(latent_vf).squeeze(-1)

    def actor(self, observations: Observations) -> ActionDistribution:
        """The distribution of actions alone: no critic is evaluated."""
        return self.distribution_of(self.action_parameters(observations))

    def action_parameters(self, observations: Observations) -> Tensor:
        """What the action head puts out, [B, ·]: logits or a mean."""
        policy = self.policy
        features = policy.pi_features_extractor(self.preprocessing(observations))
        return policy.action_net(policy.mlp_extractor.forward_actor(features))

    def critic(self, observations: Observations) -> Tensor:
        """v(s), [B], or [B, K] with K objectives."""
        policy = self.policy
        features = policy.vf_features_extractor(self.preprocessing(observations))
        return policy.value_net(policy.mlp_extractor.forward_critic(features)).squeeze(-1)

    def distribution_of(self, head: Tensor) -> ActionDistribution:
        """The distribution that the action head's output [B, ·] stands for."""
        log_std = getattr(self.policy, "log_std", None)
        return distribution_from(head, self.policy.action_space, self.choices, log_std, self.squash)


def distribution_from(
    head: Tensor, space: spaces.Space, choices: tuple[int, ...], log_std: Tensor | None, squash: bool
) -> ActionDistribution:
    """The distribution over an action space that an action head's output [B, ·] stands for.

    Args:
        head: logits or a mean.
        space: Discrete, MultiDiscrete, MultiBinary or Box.
        choices: sizes of the parts of a MultiDiscrete space.
        log_std: [A], of a Box.
        squash: tanh of the Gaussian.
    """
    if isinstance(space, spaces.Discrete):
        return Categorical.from_logits(head)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical.from_logits(head, choices)
    if isinstance(space, spaces.MultiBinary):
        return Bernoulli(head)
    assert log_std is not None
    return SquashedGaussian(head, log_std) if squash else DiagonalGaussian(head, log_std)


class ActionLogProb(nn.Module):
    """log π(a | s) of an actor-critic policy, [B]; as a `Functional`, what the gradient estimators call a policy."""

    def __init__(self, actor_critic: Any):
        super().__init__()
        self.actor_critic = actor_critic

    def forward(self, observations: Observations, actions: Tensor) -> Tensor:
        return self.actor_critic.actor(observations).log_prob(actions)


def policy_class(policy: str | type[ActorCriticPolicy], observation_space: spaces.Space) -> type[ActorCriticPolicy]:
    """The class for an alias or a class, checked against the observation space.

    Raises:
        ValueError: unknown alias (the nearest is named), a Dict space with "MlpPolicy" or "CnnPolicy", a class that
            is not an SB3 `ActorCriticPolicy`, or one that overrides a method that rlopt does not call.
    """
    if isinstance(policy, str):
        if policy not in POLICY_ALIASES:
            raise ValueError(
                f"policy: expected one of {', '.join(POLICY_ALIASES)} or a class, got {policy!r}"
                f"{did_you_mean(policy, POLICY_ALIASES)}"
            )
        if isinstance(observation_space, spaces.Dict) and policy != "MultiInputPolicy":
            raise ValueError(f"policy: {policy!r} cannot read a Dict or Tuple observation; use 'MultiInputPolicy'")
        if not isinstance(observation_space, spaces.Dict) and policy == "MultiInputPolicy":
            raise ValueError(
                f"policy: 'MultiInputPolicy' reads Dict or Tuple observations, got {observation_space}; "
                "use 'MlpPolicy' or 'CnnPolicy'"
            )
        return POLICY_ALIASES[policy]
    if not (isinstance(policy, type) and issubclass(policy, ActorCriticPolicy)):
        raise ValueError(
            f"policy: expected one of {', '.join(POLICY_ALIASES)} or a subclass of "
            f"stable_baselines3.common.policies.ActorCriticPolicy, got {policy!r}"
        )
    for name in BYPASSED_METHODS:
        if getattr(policy, name) is not getattr(ActorCriticPolicy, name):
            raise ValueError(
                f"policy: {policy.__name__} overrides {name}(), which rlopt does not call; "
                "override _build_mlp_extractor() or pass a features_extractor_class instead"
            )
    return policy


def _check_optimizer(optimizer_class: type[torch.optim.Optimizer], optimizer_kwargs: dict[str, Any]) -> None:
    """Raises ValueError where the optimiser, which is made when learning begins, would not take its arguments."""
    try:
        optimizer_class([torch.nn.Parameter(torch.zeros(1))], **{"lr": 0.0, **optimizer_kwargs})
    except (TypeError, ValueError) as error:
        name = getattr(optimizer_class, "__name__", optimizer_class)
        raise ValueError(f"policy_kwargs: {name} refuses optimizer_kwargs {optimizer_kwargs}: {error}") from error


def make_policy(
    policy: str | type[ActorCriticPolicy],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    learning_rate: float,
    policy_kwargs: dict[str, Any],
    num_values: int = 1,
) -> ActorCriticPolicy:
    """An SB3 policy on the CPU, initialised from torch's global generator as SB3 does it.

    Takes all of SB3's `policy_kwargs` except gSDE's, and `squash_output=True` for a tanh-squashed Gaussian on a Box
    with finite bounds. The caller's dictionaries are copied. The critic has `num_values` outputs, one for each objective.

    Raises:
        ValueError: gSDE arguments, a squashed policy where there is nothing to squash, an unknown keyword.
    """
    kwargs = dict(policy_kwargs)
    for key in ("features_extractor_kwargs", "optimizer_kwargs"):  # SB3 edits the former in place
        if kwargs.get(key) is not None:
            kwargs[key] = dict(kwargs[key])
    for key in ("use_sde", "full_std", "use_expln"):
        if kwargs.pop(key, None):
            raise ValueError(f"policy_kwargs: {key} belongs to gSDE, which rlopt does not offer")
    squash = kwargs.pop("squash_output", False)
    played = action_space.action if isinstance(action_space, MemoryActions) else action_space
    if squash and not is_bounded_box(played):
        raise ValueError(f"policy_kwargs: squash_output needs a Box action space with finite bounds, got {played}")
    cls = policy_class(policy, observation_space)
    optimizer_class = kwargs.pop("optimizer_class", torch.optim.Adam)
    optimizer_kwargs = kwargs.pop("optimizer_kwargs", None)
    if optimizer_class is torch.optim.Adam and optimizer_kwargs is None:
        optimizer_kwargs = {"eps": 1e-5}  # not checked: that makes an optimiser; see `DeferredOptimizer`
    else:
        optimizer_kwargs = {} if optimizer_kwargs is None else optimizer_kwargs
        _check_optimizer(optimizer_class, optimizer_kwargs)
    kwargs |= {"optimizer_class": partial(DeferredOptimizer, optimizer_class), "optimizer_kwargs": optimizer_kwargs}
    try:
        module = cls(observation_space, action_space, lambda _: learning_rate, **kwargs)
    except TypeError as error:
        raise ValueError(f"policy_kwargs: {cls.__name__} refuses them: {error}") from error
    except RuntimeError as error:  # torch's way to refuse sizes
        name = "policy_kwargs" if policy_kwargs else "policy"
        raise ValueError(f"{name}: {cls.__name__} cannot be made for {observation_space}: {error}") from error
    except AssertionError as error:  # SB3's way to refuse "CnnPolicy" for what is not an image
        reason = str(error).partition("\n")[0]
        raise ValueError(f"policy: {cls.__name__} cannot read {observation_space}: {reason}") from error
    except KeyError as error:
        if not isinstance(observation_space, spaces.Dict) or not any(
            x in str(error) for x in ("module name", "already exists")
        ):
            raise
        # torch's way to refuse a name; SB3's extractor has a module for each key
        raise ValueError(
            f"observation space: {cls.__name__} has a torch module for each key, and torch takes none of this name "
            f"({error.args[0]}); rename the key, or give policy_kwargs a features_extractor_class of your own"
        ) from error
    if squash:
        module.action_dist = SquashedDiagGaussianDistribution(int(np.prod(played.shape or ())))
        module._squash_output = True
    if num_values > 1:
        module.value_net = nn.Linear(module.value_net.in_features, num_values)
        if module.ortho_init:
            module.init_weights(module.value_net, gain=1.0)
        optimizer = kwargs["optimizer_class"](module.parameters(), lr=learning_rate, **optimizer_kwargs)
        module.optimizer = optimizer
    module.optimizer_class, module.optimizer_kwargs = optimizer_class, optimizer_kwargs
    module.set_training_mode(False)
    return module


class DeferredOptimizer:
    """The optimiser that an SB3 policy makes for itself, made when somebody asks for it.

    rlopt steps its own; a script that trains `agent.policy` by hand may use this one. Merely making a torch optimiser
    imports torch's compiler: 80 MB and a second.
    """

    def __init__(self, optimizer_class: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter], **kwargs: Any):
        self._make = partial(optimizer_class, list(parameters), **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_make":  # copying asks for these before there is anything to ask
            raise AttributeError(name)
        if "_made" not in self.__dict__:
            self.__dict__["_made"] = self._make()
        return getattr(self.__dict__["_made"], name)


def is_bounded_box(space: spaces.Space) -> bool:
    """Whether the space is a Box whose bounds are all finite."""
    return isinstance(space, spaces.Box) and bool(np.isfinite(space.low).all() and np.isfinite(space.high).all())
