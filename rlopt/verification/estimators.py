"""The library's estimators by name, as `verify` calls them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from rlopt.envs.tabular import TabularMDP
from rlopt.estimators import (
    BASELINES,
    BaselineName,
    Policy,
    Weighting,
    discounted_return,
    gae,
    hessian_vector_product,
    importance_weights,
    log_ratio,
    occupancy,
    policy_gradient,
    returns_to_go,
    reward_to_go,
    total_return,
)
from rlopt.estimators.returns import discount_powers
from rlopt.rollout import Rollout
from rlopt.verification.exact import Estimator, Kind


class Verified(NamedTuple):
    """An estimator of the library: what it estimates, how it is made for an MDP, and the plain one beside it."""

    kind: Kind
    make: Callable[[TabularMDP], Estimator]
    plain: str | None


def gradient_of(baseline: BaselineName, weighting: Weighting = "per_step") -> Estimator:
    """The GPOMDP gradient with a baseline by name, learned from nothing."""

    def estimate(policy: Policy, theta: Tensor, rollout: Rollout, gamma: float) -> Tensor:
        return policy_gradient(policy, theta, rollout, _psi(rollout, gamma, baseline, weighting))

    return estimate


def product_of(baseline: BaselineName, weighting: Weighting) -> Estimator:
    """The Hessian-vector product with a baseline by name."""

    def estimate(policy: Policy, theta: Tensor, rollout: Rollout, gamma: float, vector: Tensor) -> Tensor:
        return hessian_vector_product(policy, theta, rollout, _psi(rollout, gamma, baseline, weighting), vector)

    return estimate


def reinforce(policy: Policy, theta: Tensor, rollout: Rollout, gamma: float) -> Tensor:
    """Every action judged by the whole return."""
    return policy_gradient(policy, theta, rollout, total_return(rollout.rewards, rollout.mask, gamma))


def gradient_with_advantages(mdp: TabularMDP) -> Estimator:
    """Generalised advantages of an exact critic, λ = 0.9, discounted by γ^t, in place of rewards to go."""

    def estimate(policy: Policy, theta: Tensor, rollout: Rollout, gamma: float) -> Tensor:
        probabilities = mdp.softmax_policy(theta.detach())
        by_time = (mdp.state_action_values(probabilities) * probabilities).sum(-1)  # [H, S]
        padded = torch.cat([by_time, torch.zeros_like(by_time[:1])])
        steps = torch.arange(len(padded)).unsqueeze(1)
        values = padded[steps, rollout.states.long()]  # type: ignore[union-attr]
        advantages = gae(rollout.rewards, values[:-1], values[1:], rollout.discounts(gamma), rollout.traces(0.9))
        psi = advantages * discount_powers(gamma, advantages) * rollout.mask
        return policy_gradient(policy, theta, rollout, lambda _: psi)

    return estimate


def weighted_return(policy: Policy, theta: Tensor, rollout: Rollout, gamma: float) -> Tensor:
    """J(θ) from episodes of another policy."""
    weights = importance_weights(log_ratio(policy, theta, rollout))
    return discounted_return(rollout.rewards, gamma, weights).mean()


def weighted_occupancy(mdp: TabularMDP) -> Estimator:
    """λ(θ) [S, A] from episodes of another policy."""

    def estimate(policy: Policy, theta: Tensor, rollout: Rollout, gamma: float) -> Tensor:
        weights = importance_weights(log_ratio(policy, theta, rollout))
        states = rollout.observations
        assert isinstance(states, Tensor)
        return occupancy(states, rollout.actions, rollout.mask, gamma, mdp.num_states, mdp.num_actions, weights)

    return estimate


def _psi(rollout: Rollout, gamma: float, baseline: BaselineName, weighting: Weighting) -> Callable[[Tensor], Tensor]:
    function = BASELINES[baseline]
    returns = returns_to_go(rollout.rewards, rollout.mask, gamma)
    values = function.values(function.init(), rollout, returns)
    return reward_to_go(rollout.rewards, rollout.mask, gamma, values, weighting)


def _always(estimator: Estimator) -> Callable[[TabularMDP], Estimator]:
    return lambda mdp: estimator


ESTIMATORS: dict[str, Verified] = {
    "gpomdp": Verified("gradient", _always(gradient_of("none")), "gpomdp"),
    "reinforce": Verified("gradient", _always(reinforce), "gpomdp"),
    "leave-one-out": Verified("gradient", _always(gradient_of("leave_one_out")), "gpomdp"),
    "gae": Verified("gradient", gradient_with_advantages, "gpomdp"),
    "per-step-weights": Verified("off_policy_gradient", _always(gradient_of("none")), "per-step-weights"),
    "trajectory-weights": Verified("off_policy_gradient", _always(gradient_of("none", "trajectory")), "per-step-weights"),
    "weighted-leave-one-out": Verified("off_policy_gradient", _always(gradient_of("leave_one_out")), "per-step-weights"),
    "doubly-robust-leave-one-out": Verified(
        "off_policy_gradient", _always(gradient_of("leave_one_out", "doubly_robust")), "per-step-weights"
    ),
    "hvp-trajectory": Verified("hessian_vector_product", _always(product_of("none", "trajectory")), "hvp-trajectory"),
    "hvp-causal": Verified("hessian_vector_product", _always(product_of("none", "per_step")), "hvp-trajectory"),
    "hvp-causal-leave-one-out": Verified(
        "hessian_vector_product", _always(product_of("leave_one_out", "per_step")), "hvp-trajectory"
    ),
    "hvp-trajectory-leave-one-out": Verified(
        "hessian_vector_product", _always(product_of("leave_one_out", "trajectory")), "hvp-trajectory"
    ),
    "hvp-doubly-robust-leave-one-out": Verified(
        "hessian_vector_product", _always(product_of("leave_one_out", "doubly_robust")), "hvp-trajectory"
    ),
    "return": Verified("return", _always(weighted_return), None),
    "occupancy": Verified("occupancy", weighted_occupancy, None),
}
