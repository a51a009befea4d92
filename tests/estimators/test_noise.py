"""Instruments that estimate noise and error without bias; oracle: exact moments of an enumerated MDP's gradients."""

import torch

from rlopt.estimators import (
    cosine,
    effective_sample_size,
    half_batch_noise,
    importance_weights,
    log_ratio,
    policy_gradient,
    reward_to_go,
    signal_to_noise,
    squared_error,
)
from tests.oracles import F64, assert_exact, assert_misses, normal, per_trajectory, scalarised, small_mdp, two_thetas

MDP = scalarised(small_mdp())
THETA, _ = two_thetas(MDP)
ROLLOUT, PROBABILITIES = MDP.enumerate(THETA)
EXACT = MDP.gradient(THETA)


def gradients():
    """g of every trajectory, [N, d]."""

    def estimator(episode):
        return policy_gradient(MDP.softmax_log_prob, THETA, episode, reward_to_go(episode.rewards, episode.mask, MDP.gamma))

    return per_trajectory(estimator, ROLLOUT)


def over_pairs_of_gradients(function):
    """The expectation of a function of two independent gradients."""
    each = gradients()
    every = torch.func.vmap(torch.func.vmap(function, in_dims=(None, 0)), in_dims=(0, None))(each, each)
    return PROBABILITIES @ every @ PROBABILITIES


def trace_of_covariance():
    return PROBABILITIES @ (gradients() - EXACT).square().sum(1)


def test_half_batch_noise_is_the_trace_of_the_covariance_of_the_mean():
    value = over_pairs_of_gradients(lambda first, second: half_batch_noise(first, second, (1, 1)))
    assert_exact(value, trace_of_covariance() / 2)
    assert_misses(value, trace_of_covariance())


def test_half_batch_noise_weighs_parts_of_unequal_size():
    """Three trajectories, two of them in one part: their mean has a third of the covariance."""
    each = gradients()
    means = (each[:, None] + each) / 2  # [N, N, d]
    distances = (means[:, :, None] - each).square().sum(-1)  # ‖(g_i + g_j)/2 − g_k‖²
    scale = float(half_batch_noise(torch.ones(1), torch.zeros(1), (2, 1)))
    value = torch.einsum("i,j,k,ijk->", PROBABILITIES, PROBABILITIES, PROBABILITIES, scale * distances)
    torch.testing.assert_close(value, trace_of_covariance() / 3, rtol=1e-6, atol=0)


def test_the_product_of_two_halves_is_the_squared_norm_of_the_gradient():
    def numerator(first, second):
        noise = half_batch_noise(first, second, (1, 1))
        return torch.where(noise > 0, signal_to_noise(first, second, (1, 1)) * noise, first @ second)

    assert_exact(over_pairs_of_gradients(numerator), EXACT @ EXACT)


def test_the_squared_error_of_a_direction_is_unbiased():
    direction = normal(MDP.num_parameters, seed=4)
    value = over_pairs_of_gradients(lambda first, second: squared_error(direction, first, second))
    assert_exact(value, (direction - EXACT).square().sum())
    naive = PROBABILITIES @ (direction - gradients()).square().sum(1)  # negative control: one batch twice
    assert_misses(naive, value)


def test_the_effective_sample_size_by_hand_and_at_its_limits():
    weights = torch.tensor([1.0, 2.0, 4.0], dtype=F64)
    assert abs(float(effective_sample_size(weights.log())) - 49 / (3 * 21)) < 1e-14
    assert float(effective_sample_size(torch.full((5,), -800.0))) == 1.0  # exponentials would all be 0
    assert abs(float(effective_sample_size(torch.tensor([0.0, -1e4, -1e4]))) - 1 / 3) < 1e-7
    ratios = log_ratio(MDP.softmax_log_prob, THETA + normal(MDP.num_parameters, seed=5), ROLLOUT)
    whole = importance_weights(ratios, per_step=False)[0]
    expected = float(whole.sum() ** 2 / (len(whole) * whole.square().sum()))
    assert abs(float(effective_sample_size(ratios.sum(0))) - expected) < 1e-12


def test_the_cosine_by_hand():
    first, second = torch.tensor([3.0, 4.0], dtype=F64), torch.tensor([4.0, 3.0], dtype=F64)
    assert abs(float(cosine(first, second)) - 24 / 25) < 1e-15
    assert abs(float(cosine(first, -2 * first)) + 1) < 1e-15
    assert float(cosine(first, torch.zeros(2, dtype=F64))) == 0.0
