"""Policies: SB3's networks, distributions as small values, and modules as functions of one flat θ."""

from rlopt.policies.actor_critic import POLICY_ALIASES, ActorCritic, make_policy
from rlopt.policies.distributions import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    Distribution,
    MultiCategorical,
    SquashedGaussian,
    draw_noise,
)
from rlopt.policies.functional import Functional, bind_parameters, flatten_parameters

__all__ = [
    "POLICY_ALIASES",
    "ActorCritic",
    "Bernoulli",
    "Categorical",
    "DiagonalGaussian",
    "Distribution",
    "Functional",
    "MultiCategorical",
    "SquashedGaussian",
    "bind_parameters",
    "draw_noise",
    "flatten_parameters",
    "make_policy",
]
