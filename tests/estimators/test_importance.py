"""Oracles: J and ∇J of an enumerated MDP at other parameters than those that sampled, and a Gaussian bandit."""

import pytest
import torch

from rlopt.envs.gaussian_bandit import GaussianBandit
from rlopt.estimators import (
    discounted_return,
    importance_weights,
    log_ratio,
    policy_gradient,
    reward_to_go,
    total_return,
)
from rlopt.estimators.returns import discount_powers, suffix_sums
from tests.oracles import (
    F64,
    Expected,
    assert_exact,
    assert_misses,
    for_all,
    normal,
    per_trajectory,
    scalarised,
    small_mdp,
    standard_mdp,
    two_thetas,
    written_out_gradient,
    written_out_weights,
)

VECTORIAL = standard_mdp()
MDP = scalarised(VECTORIAL)
THETA, SAMPLED_AT = two_thetas(MDP)
ROLLOUT, PROBABILITIES = MDP.enumerate(SAMPLED_AT)
RATIOS = log_ratio(MDP.softmax_log_prob, THETA, ROLLOUT)
DISCOUNTED = discount_powers(MDP.gamma, ROLLOUT.rewards) * ROLLOUT.rewards


def expected_gradient(psi):
    return policy_gradient(MDP.softmax_log_prob, THETA, ROLLOUT, Expected(psi, PROBABILITIES))


@pytest.mark.parametrize("weighting", ["per_step", "trajectory", "doubly_robust"])
def test_the_weighted_gradient_is_that_of_the_target_parameters(weighting):
    psi = reward_to_go(ROLLOUT.rewards, ROLLOUT.mask, MDP.gamma, weighting=weighting)
    assert_exact(expected_gradient(psi), MDP.gradient(THETA))
    assert_misses(MDP.gradient(SAMPLED_AT), MDP.gradient(THETA))  # the two differ in the first place


@pytest.mark.parametrize("weighting", ["per_step", "trajectory", "doubly_robust"])
def test_a_baseline_leaves_the_weighted_gradient_exact(weighting):
    table = normal(MDP.horizon, MDP.num_states, seed=9)
    baseline = table[torch.arange(MDP.horizon)[:, None], ROLLOUT.states[:-1]]
    psi = reward_to_go(ROLLOUT.rewards, ROLLOUT.mask, MDP.gamma, baseline, weighting)
    assert_exact(expected_gradient(psi), MDP.gradient(THETA))


def test_weighted_plain_reinforce_is_exact():
    assert_exact(expected_gradient(total_return(ROLLOUT.rewards, ROLLOUT.mask, MDP.gamma)), MDP.gradient(THETA))


@pytest.mark.parametrize("weighting", ["per_step", "trajectory", "doubly_robust"])
def test_the_mean_of_single_episodes_by_their_probabilities_is_exact(weighting):
    """The estimator as agents call it, one episode at a time."""
    mdp = scalarised(small_mdp())
    theta, sampled_at = two_thetas(mdp)
    rollout, probabilities = mdp.enumerate(sampled_at)
    total = torch.zeros_like(theta)
    for n, probability in enumerate(probabilities):
        episode = rollout.columns(slice(n, n + 1))
        psi = reward_to_go(episode.rewards, episode.mask, mdp.gamma, weighting=weighting)
        total += probability * policy_gradient(mdp.softmax_log_prob, theta, episode, psi)
    assert_exact(total, mdp.gradient(theta))


@pytest.mark.parametrize("weighting", ["per_step", "trajectory"])
def test_every_episode_gives_the_weighted_gradient_written_out(weighting):
    def estimator(episode):
        psi = reward_to_go(episode.rewards, episode.mask, MDP.gamma, weighting=weighting)
        return policy_gradient(MDP.softmax_log_prob, THETA, episode, psi)

    written_out = for_all(written_out_gradient, MDP, THETA, ROLLOUT, weighting)
    assert_exact(per_trajectory(estimator, ROLLOUT), written_out, 1e-11)


def test_weights_are_the_products_written_out_and_their_mean_is_one_at_every_step():
    weights = importance_weights(RATIOS)
    by_hand = torch.tensor([written_out_weights(MDP, THETA, ROLLOUT, n) for n in range(len(PROBABILITIES))], dtype=F64).T
    assert_exact(weights, by_hand, 1e-12)
    ones = torch.ones(MDP.horizon, dtype=F64)
    assert_exact(weights @ PROBABILITIES, ones)
    whole = importance_weights(RATIOS, per_step=False)
    assert_exact(whole @ PROBABILITIES, ones)
    assert_exact(whole, by_hand[-1:].expand_as(whole), 1e-12)
    assert float(weights.std()) > 0.1
    assert_misses(importance_weights(-RATIOS) @ PROBABILITIES, ones)  # the target policy in the denominator


@pytest.mark.parametrize("per_step", [True, False])
def test_the_weighted_return_of_every_objective_is_that_of_the_target_parameters(per_step):
    rollout, probabilities = VECTORIAL.enumerate(SAMPLED_AT)
    exact = VECTORIAL.value(VECTORIAL.softmax_policy(THETA))
    weights = importance_weights(RATIOS, per_step)
    assert exact.shape == (2,)
    assert_exact(probabilities @ discounted_return(rollout.rewards, MDP.gamma, weights), exact)
    assert_exact(PROBABILITIES @ discounted_return(ROLLOUT.rewards, MDP.gamma, weights), MDP.value(MDP.softmax_policy(THETA)))
    for wrong in (importance_weights(-RATIOS, per_step), RATIOS.exp(), torch.ones_like(RATIOS)):
        assert_misses(probabilities @ discounted_return(rollout.rewards, MDP.gamma, wrong), exact)


@pytest.mark.parametrize(
    "psi",
    [
        lambda ratios: suffix_sums(importance_weights(-ratios) * DISCOUNTED),
        lambda ratios: importance_weights(-ratios, per_step=False) * suffix_sums(DISCOUNTED),
        lambda ratios: importance_weights(ratios) * suffix_sums(DISCOUNTED),
        lambda ratios: suffix_sums(ratios.exp() * DISCOUNTED),
        lambda ratios: suffix_sums(importance_weights(ratios).clamp(0.8, 1.2) * DISCOUNTED),
        lambda ratios: suffix_sums(DISCOUNTED),
    ],
    ids=[
        "inverted ratio",
        "inverted whole ratio",
        "weight of the score instead of the reward",
        "ratio of a single step",
        "clipped weights",
        "no weights",
    ],
)
def test_other_weights_would_be_biased(psi):
    """Negative controls."""
    assert_misses(expected_gradient(psi), MDP.gradient(THETA))


@pytest.mark.parametrize("distance", [0.01, 0.1, 0.5, 2.0])
def test_weights_are_bounded_by_the_distance_of_the_parameters(distance):
    """ω_t ≤ exp(2(t + 1)‖θ − θ_b‖) on every trajectory, and 1/ω_t as well."""
    steps = torch.arange(1, MDP.horizon + 1, dtype=F64)[:, None]
    beyond_one_step = False
    for seed in range(20):
        difference = normal(MDP.num_parameters, seed=seed)
        theta = SAMPLED_AT + distance * difference / difference.norm()
        log_weights = importance_weights(log_ratio(MDP.softmax_log_prob, theta, ROLLOUT)).log()
        assert bool((log_weights.abs() <= 2 * steps * distance).all())
        beyond_one_step |= bool((log_weights.abs() > 2 * distance).any())
    assert beyond_one_step  # negative control: without the factor t + 1 the bound does not hold


def test_a_step_of_the_theoretical_radius_keeps_weights_within_e():
    difference = normal(MDP.num_parameters, seed=11)
    theta = SAMPLED_AT + difference / difference.norm() / (2 * MDP.horizon)
    assert float(importance_weights(log_ratio(MDP.softmax_log_prob, theta, ROLLOUT)).max()) <= 2.7182819


@pytest.mark.parametrize("make_psi", [total_return, reward_to_go])
def test_the_weighted_gradient_of_a_gaussian_bandit_is_exact(make_psi):
    bandit = GaussianBandit(1.0, 0.8)
    theta, sampled_at = torch.tensor([0.4], dtype=F64), torch.tensor([-0.1], dtype=F64)
    rollout, weights = bandit.enumerate(sampled_at, num_nodes=60)  # weights are no polynomials
    psi = Expected(make_psi(rollout.rewards, rollout.mask, 1.0), weights)
    assert_exact(policy_gradient(bandit.log_prob, theta, rollout, psi), bandit.gradient(theta))
    assert_misses(bandit.gradient(sampled_at), bandit.gradient(theta))
