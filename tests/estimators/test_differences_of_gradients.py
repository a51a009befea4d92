"""Hessian-vector products are differences of gradients: along a segment, and for small steps of a network's parameters.

Oracles: exact gradients of an enumerated MDP, and Gauss–Legendre quadrature.
"""

import numpy as np
import pytest
import torch

from rlopt.estimators import hessian_vector_product, policy_gradient, reward_to_go
from tests.oracles import Expected, assert_exact, assert_misses, miss, normal, scalarised, standard_mdp, two_thetas

MDP = scalarised(standard_mdp())
THETA, OTHER = two_thetas(MDP)
TABLE = normal(MDP.horizon, MDP.num_states, seed=9)
FORMS = ["per_step", "trajectory"]


def psi_of(rollout, weighting, with_baseline=False):
    baseline = TABLE[torch.arange(MDP.horizon)[:, None], rollout.states[:-1]] if with_baseline else None
    return reward_to_go(rollout.rewards, rollout.mask, MDP.gamma, baseline, weighting)


def expected_product(point, vector, weighting, with_baseline=False):
    """E[B(·, θ) v] at θ."""
    rollout, probabilities = MDP.enumerate(point)
    psi = Expected(psi_of(rollout, weighting, with_baseline), probabilities)
    return hessian_vector_product(MDP.softmax_log_prob, point, rollout, psi, vector)


# ------------------------------------------------------------------ along a segment


def average_along_the_segment(weighting, with_baseline):
    """∫₀¹ E[B(·, θ̂(q)) (θ − θ')] dq with θ̂(q) = qθ + (1 − q)θ', by 20 Gauss–Legendre nodes."""
    nodes, weights = np.polynomial.legendre.leggauss(20)
    total = torch.zeros_like(THETA)
    for q, weight in zip((nodes + 1) / 2, weights / 2):
        point = torch.lerp(OTHER, THETA, float(q))
        total += weight * expected_product(point, THETA - OTHER, weighting, with_baseline)
    return total


@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.parametrize("weighting", FORMS)
def test_products_at_random_points_between_add_up_to_the_difference_of_gradients(weighting, with_baseline):
    assert_exact(average_along_the_segment(weighting, with_baseline), MDP.gradient(THETA) - MDP.gradient(OTHER))


@pytest.mark.parametrize("end", [THETA, OTHER], ids=["current", "previous"])
def test_a_product_at_an_end_of_the_segment_would_not(end):
    """Negative control."""
    value = expected_product(end, THETA - OTHER, "per_step")
    assert_misses(value, MDP.gradient(THETA) - MDP.gradient(OTHER))


# ------------------------------------------------------------------ a network

HIDDEN = 5
SHAPES = [(HIDDEN, MDP.num_states), (HIDDEN,), (MDP.num_actions, HIDDEN), (MDP.num_actions,)]
NETWORK = normal(sum(int(np.prod(shape)) for shape in SHAPES), seed=4)
DIRECTION = normal(len(NETWORK), seed=5) / len(NETWORK) ** 0.5


def logits(theta):
    """Those of a tanh network with one hidden layer on one-hot states, [S, A]."""
    sizes = [int(np.prod(shape)) for shape in SHAPES]
    first, first_bias, second, second_bias = (part.view(shape) for part, shape in zip(theta.split(sizes), SHAPES))
    return torch.tanh(first.T + first_bias) @ second.T + second_bias


def network_log_prob(theta, states, actions):
    return torch.log_softmax(logits(theta), -1)[states, actions]


def network_value(theta):
    return MDP.value(torch.softmax(logits(theta), -1))


def network_product(weighting):
    rollout, probabilities = MDP.enumerate(logits(NETWORK).flatten())
    psi = Expected(psi_of(rollout, weighting), probabilities)
    return hessian_vector_product(network_log_prob, NETWORK, rollout, psi, DIRECTION)


@pytest.mark.parametrize("weighting", FORMS)
def test_the_expected_product_of_a_network_is_exact(weighting):
    exact = torch.func.jvp(torch.func.grad(network_value), (NETWORK,), (DIRECTION,))[1]
    assert_exact(network_product(weighting), exact)


def difference_quotient(step):
    """[∇J(θ + εv) − ∇J(θ − εv)] / 2ε with expected gradients, each on episodes of its own parameters."""

    def expected_gradient(theta):
        rollout, probabilities = MDP.enumerate(logits(theta).flatten())
        return policy_gradient(network_log_prob, theta, rollout, Expected(psi_of(rollout, "per_step"), probabilities))

    return (expected_gradient(NETWORK + step * DIRECTION) - expected_gradient(NETWORK - step * DIRECTION)) / (2 * step)


def test_differences_approach_the_product_of_a_network_and_leave_it_again():
    """The error falls with ε² and rises with the rounding error over ε."""
    product = network_product("per_step")
    steps = [10.0**-k for k in range(1, 12)]
    errors = [float((difference_quotient(step) - product).norm() / product.norm()) for step in steps]
    best = errors.index(min(errors))
    assert errors[best] < 1e-6
    assert 2 <= best <= 6
    assert 50 < errors[0] / errors[1] < 200  # second order
    assert errors[0] > 1e4 * errors[best]
    assert errors[-1] > 1e4 * errors[best]


def test_a_step_below_the_precision_would_give_nonsense():
    """Negative control: ε = 1e-7 in float32."""
    rollout, probabilities = MDP.enumerate(logits(NETWORK).flatten())
    psi = psi_of(rollout, "per_step")
    single = Expected(reward_to_go(rollout.rewards.float(), rollout.mask, MDP.gamma), probabilities.float())
    rollout32 = type(rollout)(**{**vars(rollout), "log_probs": rollout.log_probs.float(), "rewards": rollout.rewards.float()})
    theta, direction, step = NETWORK.float(), DIRECTION.float(), 1e-7

    def gradient(x):
        return policy_gradient(network_log_prob, x, rollout32, single)

    quotient = (gradient(theta + step * direction) - gradient(theta - step * direction)) / (2 * step)
    product = hessian_vector_product(network_log_prob, NETWORK, rollout, Expected(psi, probabilities), DIRECTION)
    assert_misses(quotient.double(), product)
    assert float((quotient - product).norm() / product.norm()) > 0.05
    in_single = hessian_vector_product(network_log_prob, theta, rollout32, single, direction)
    assert miss(in_single.double(), product) < 1e-5  # where the derivative itself keeps its precision
