"""Oracles: ∇J of an enumerated MDP and of a Gaussian bandit by quadrature, and the estimators written out by hand."""

import math

import pytest
import torch

from rlopt.envs.gaussian_bandit import GaussianBandit
from rlopt.estimators import discounted_sums, policy_gradient, reward_to_go, total_return
from rlopt.estimators.returns import suffix_sums
from tests.oracles import (
    F64,
    Expected,
    assert_exact,
    assert_misses,
    for_all,
    over_pairs,
    per_trajectory,
    scalarised,
    small_mdp,
    standard_mdp,
    two_thetas,
    written_out_gradient,
)

MDP = scalarised(standard_mdp())
SMALL = scalarised(small_mdp())
THETA, _ = two_thetas(MDP)
SMALL_THETA, _ = two_thetas(SMALL)
ESTIMATORS = [total_return, reward_to_go]


def expected_gradient(mdp, theta, make_psi):
    rollout, probabilities = mdp.enumerate(theta)
    psi = make_psi(rollout.rewards, rollout.mask, mdp.gamma)
    return policy_gradient(mdp.softmax_log_prob, theta, rollout, Expected(psi, probabilities))


@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_the_expected_gradient_is_exact(make_psi):
    assert_exact(expected_gradient(MDP, THETA, make_psi), MDP.gradient(THETA))


@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_the_mean_of_single_episodes_by_their_probabilities_is_exact(make_psi):
    """The estimator as agents call it, one episode at a time."""
    rollout, probabilities = SMALL.enumerate(SMALL_THETA)
    total = torch.zeros_like(SMALL_THETA)
    for n, probability in enumerate(probabilities):
        episode = rollout.columns(slice(n, n + 1))
        psi = make_psi(episode.rewards, episode.mask, SMALL.gamma)
        total += probability * policy_gradient(SMALL.softmax_log_prob, SMALL_THETA, episode, psi)
    assert_exact(total, SMALL.gradient(SMALL_THETA))


@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_two_episodes_are_as_unbiased_as_one(make_psi):
    rollout, probabilities = SMALL.enumerate(SMALL_THETA)

    def estimator(batch):
        psi = make_psi(batch.rewards, batch.mask, SMALL.gamma)
        return policy_gradient(SMALL.softmax_log_prob, SMALL_THETA, batch, psi)

    assert_exact(over_pairs(estimator, rollout, probabilities), SMALL.gradient(SMALL_THETA))


def test_every_episode_gives_the_sum_of_rewards_times_scores():
    rollout, _ = MDP.enumerate(THETA)

    def estimator(episode):
        return policy_gradient(MDP.softmax_log_prob, THETA, episode, reward_to_go(episode.rewards, episode.mask, MDP.gamma))

    assert_exact(per_trajectory(estimator, rollout), for_all(written_out_gradient, MDP, THETA, rollout), 1e-12)


def test_relative_discounts_would_be_another_gradient():
    """Negative control: γ^(h−t) where γ^h belongs."""

    def relative(rewards, mask, gamma):
        returns = discounted_sums(rewards, torch.full_like(rewards, gamma))
        return lambda log_ratio: returns

    assert_misses(expected_gradient(MDP, THETA, relative), MDP.gradient(THETA))


def test_whitening_over_the_batch_would_be_biased():
    """Negative control: returns of mean 0 and deviation 1 in every batch of two episodes."""
    rollout, probabilities = SMALL.enumerate(SMALL_THETA)

    def whitened(batch):
        returns = suffix_sums(SMALL.gamma ** torch.arange(3, dtype=F64)[:, None] * batch.rewards)
        scaled = (returns - returns.mean()) / (returns.std() + 1e-8)
        return policy_gradient(SMALL.softmax_log_prob, SMALL_THETA, batch, lambda log_ratio: scaled)

    value = over_pairs(whitened, rollout, probabilities)
    exact = SMALL.gradient(SMALL_THETA)
    assert_misses(value, exact)
    assert_misses(value / value.norm(), exact / exact.norm())  # in direction, not only in length


@pytest.mark.parametrize("target", [1.0, -0.3])
@pytest.mark.parametrize("std", [0.5, 1.3])
@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_the_gradient_of_a_gaussian_bandit_is_exact(target, std, make_psi):
    bandit = GaussianBandit(target, std)
    theta = torch.tensor([0.4], dtype=F64)
    rollout, weights = bandit.enumerate(theta)
    psi = make_psi(rollout.rewards, rollout.mask, 1.0)
    value = policy_gradient(bandit.log_prob, theta, rollout, Expected(psi, weights))
    assert_exact(value, bandit.gradient(theta), 1e-12)


def gaussian(theta, observations, actions):
    """log N(a; θ_0, exp(θ_1)²): the deviation is learned as well."""
    mean, log_std = theta
    return -0.5 * ((actions[..., 0] - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)


def test_the_gradient_in_a_learned_deviation_is_exact():
    """J = −(μ − a*)² − σ²; with s = log σ the gradient is (−2(μ − a*), −2σ²)."""
    theta = torch.tensor([0.4, -0.3], dtype=F64)
    bandit = GaussianBandit(1.0, float(theta[1].exp()))
    rollout, weights = bandit.enumerate(theta[:1])
    psi = reward_to_go(rollout.rewards, rollout.mask, 1.0)
    value = policy_gradient(gaussian, theta, rollout, Expected(psi, weights))
    assert_exact(value, torch.stack([-2 * (theta[0] - 1.0), -2 * (2 * theta[1]).exp()]), 1e-12)


@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_shapes_that_would_broadcast_are_refused(make_psi):
    rollout, _ = SMALL.enumerate(SMALL_THETA)
    with pytest.raises(ValueError, match=r"^rewards: expected the mask's shape \(3, 64\), got \(3, 64, 2\)"):
        make_psi(rollout.rewards[..., None].expand(3, 64, 2), rollout.mask, 0.9)
    with pytest.raises(ValueError, match=r"^baseline: expected the mask's shape \(3, 64\), got \(3, 1\)"):
        make_psi(rollout.rewards, rollout.mask, 0.9, rollout.rewards[:, :1])


def test_the_scores_of_the_reference_parameters_are_not_those_of_the_current_ones():
    """A gradient at θ_{t−1} on data of θ_t is not 0, and not the gradient at θ_t."""
    rollout, _ = MDP.enumerate(THETA)
    psi = reward_to_go(rollout.rewards, rollout.mask, MDP.gamma)
    current = policy_gradient(MDP.softmax_log_prob, THETA, rollout, psi)
    before = policy_gradient(MDP.softmax_log_prob, THETA - 0.2, rollout, psi)
    moved = policy_gradient(MDP.softmax_log_prob, THETA * 0.8, rollout, psi)
    assert_exact(before, current, 1e-12)  # the same number on all logits is the same policy
    assert_misses(moved, current)
    assert float(moved.norm()) > 1e-3


def test_columns_and_weightings_of_psi_are_those_of_the_rollout():
    rollout, _ = SMALL.enumerate(SMALL_THETA)
    part = slice(5, 17)
    for make_psi in ESTIMATORS:
        psi = make_psi(rollout.rewards, rollout.mask, SMALL.gamma, rollout.rewards)
        direct = make_psi(rollout.rewards[:, part], rollout.mask[:, part], SMALL.gamma, rollout.rewards[:, part])
        ratios = rollout.log_probs
        assert torch.equal(psi.columns(part)(ratios[:, part]), direct(ratios[:, part]))
    per_step = reward_to_go(rollout.rewards, rollout.mask, SMALL.gamma)
    whole = reward_to_go(rollout.rewards, rollout.mask, SMALL.gamma, weighting="trajectory")
    assert torch.equal(per_step.weighted("trajectory")(rollout.log_probs), whole(rollout.log_probs))
