"""Exact expectations: an estimator is called on every pair of trajectories of a small MDP, in float64.

Pairs, not single trajectories, because mistakes such as a product of two batch means, a baseline that includes the own
trajectory or a slice that drops one show only in batches of two or more.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from rlopt.arguments import check_choice
from rlopt.envs.tabular import TabularMDP
from rlopt.rollout import Observations, Rollout
from rlopt.verification.checks import Check

Kind = Literal["gradient", "off_policy_gradient", "hessian_vector_product", "return", "occupancy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Estimator = Callable[..., Tensor]

TOLERANCE = 1e-10
CHUNK = 512  # pairs evaluated at once


@dataclass(frozen=True)
class Fixture:
    """An MDP whose trajectories can all be listed, parameters that sample and parameters to estimate at."""

    name: str
    mdp: TabularMDP

    def parameters(self) -> tuple[Tensor, Tensor, Tensor]:
        """θ, θ_b and v, [d] each; the first two about 1 apart."""
        generator = torch.Generator().manual_seed(1)
        shape = (3, self.mdp.num_parameters)
        theta, other, vector = torch.randn(shape, generator=generator, dtype=torch.float64)
        return 0.5 * theta, 0.5 * theta + 0.4 * other, vector

    def policy(self, theta: Tensor, observations: Observations, actions: Tensor) -> Tensor:
        """log π_θ(a | s), [B], of the tabular softmax."""
        assert isinstance(observations, Tensor)
        return self.mdp.softmax_log_prob(theta, observations, actions)


FIXTURES = (
    Fixture("fixed", TabularMDP.random(num_states=2, num_actions=2, horizon=3, seed=3)),
    Fixture("ragged", TabularMDP.random(num_states=3, num_actions=2, horizon=3, num_terminal=1, seed=5)),
)


def exact_checks(name: str, estimator: Estimator, kind: Kind, plain: Estimator | None, fixture: Fixture) -> list[Check]:
    """The estimator's exact expectation beside the exact answer, on one fixture.

    Args:
        name: for the table.
        estimator: (policy, θ, rollout, γ) -> Tensor, with v as a fifth argument for Hessian-vector products.
        kind: what it estimates.
        plain: the estimator that its variance is compared with, or None.
        fixture: where.
    """
    check_choice("kind", kind, KINDS)
    theta, behaviour, vector = fixture.parameters()
    answers: dict[str, tuple[Tensor, Tensor]] = {}
    if kind == "gradient":
        answers[""] = theta, fixture.mdp.gradient(theta)
    elif kind == "off_policy_gradient":
        answers[", off"] = behaviour, fixture.mdp.gradient(theta)
    elif kind == "hessian_vector_product":
        product = fixture.mdp.hessian(theta) @ vector
        answers |= {", on": (theta, product), ", off": (behaviour, product)}
    elif kind == "return":
        answers |= {", off": (behaviour, fixture.mdp.value(fixture.mdp.softmax_policy(theta)))}
    else:
        answers |= {", off": (behaviour, fixture.mdp.occupancy(fixture.mdp.softmax_policy(theta)))}
    extra = (vector,) if kind == "hessian_vector_product" else ()

    checks = []
    for where, (sampling, answer) in answers.items():
        rollout, probabilities = fixture.mdp.enumerate(sampling)

        mean, variance = moments_over_pairs(
            lambda batch: estimator(fixture.policy, theta, batch, fixture.mdp.gamma, *extra), rollout, probabilities
        )
        if mean.shape != answer.shape:
            raise ValueError(f"estimator: expected a tensor of shape {tuple(answer.shape)}, got {tuple(mean.shape)}")
        ratio = None if plain is None else variance / _plain_variance(plain, fixture, sampling is theta, bool(extra))
        error = float((mean - answer).abs().max())
        quantity = f"{name}{where}, {fixture.name}"
        checks.append(Check(quantity, float(answer.norm()), float(mean.norm()), error, False, TOLERANCE, ratio))
    return checks


@functools.cache
def _plain_variance(plain: Estimator, fixture: Fixture, on_policy: bool, with_vector: bool) -> float:
    """The total variance of the plain estimator, which many are compared with."""
    theta, behaviour, vector = fixture.parameters()
    rollout, probabilities = fixture.mdp.enumerate(theta if on_policy else behaviour)
    extra = (vector,) if with_vector else ()
    return moments_over_pairs(
        lambda batch: plain(fixture.policy, theta, batch, fixture.mdp.gamma, *extra), rollout, probabilities
    )[1]


def moments_over_pairs(function: Callable[[Rollout], Tensor], rollout: Rollout, probabilities: Tensor) -> tuple[Tensor, float]:
    """Mean and total variance of `function` over all pairs of independent trajectories."""
    everyone = torch.arange(len(probabilities))
    pairs = torch.cartesian_prod(everyone, everyone)
    weights = probabilities[pairs].prod(1)
    first = function(pick(rollout, pairs[0]))
    if not isinstance(first, Tensor):
        raise ValueError(f"estimator: expected it to return a tensor, got {first!r}")
    values = _values(lambda pair: function(pick(rollout, pair)), pairs).detach().to(torch.float64)
    flat = values.reshape(len(values), -1)
    mean = weights @ flat
    variance = float(weights @ (flat - mean).square().sum(1))
    return mean.view(values.shape[1:]), variance


def pick(rollout: Rollout, columns: Tensor) -> Rollout:
    """The rollout of these columns [n]."""
    fields: dict[str, Any] = {
        name: getattr(rollout, name)[:, columns]
        for name in ("states", "actions", "log_probs", "rewards", "terminated", "truncated", "mask")
    }
    return replace(rollout, **fields)


def _values(function: Callable[[Tensor], Tensor], pairs: Tensor) -> Tensor:
    """`function` of every pair, stacked: all at once where it can be vectorised, else one by one."""
    try:
        return torch.func.vmap(function, chunk_size=CHUNK)(pairs)
    except Exception:  # whatever keeps it from being vectorised; if it is simply wrong, the loop says how
        bar = tqdm(pairs, desc="pairs of trajectories", disable=not sys.stderr.isatty(), leave=False)
        return torch.stack([function(pair) for pair in bar])
