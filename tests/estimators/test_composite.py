"""Recursions that track J, λ and ∇J(θ)ᵀ∇f(J), with several objectives; oracles: those of an enumerated MDP.

They are written with the library's estimators along a prescribed path, so that expectations over independent batches
are exact.
"""

from itertools import pairwise

import pytest
import torch

from rlopt.estimators import discounted_return, importance_weights, log_ratio, occupancy, policy_gradient, reward_to_go
from rlopt.updates import corrected_momentum
from tests.oracles import (
    F64,
    Expected,
    assert_exact,
    assert_misses,
    normal,
    over_pairs,
    per_trajectory,
    small_mdp,
    standard_mdp,
)

MDP = standard_mdp()
D = MDP.num_parameters
PATH = [normal(D, seed=1) + 0.5 * j * normal(D, seed=2) for j in range(4)]
SLOPES = [normal(2, seed=20 + j) for j in range(4)]  # c_0 … c_3


# ------------------------------------------------------------------ expectations along a path


def expected_objectives(theta, sampled_at):
    """E[R⃗_ω] of episodes sampled at one parameter vector and weighted to another, [K]."""
    rollout, probabilities = MDP.enumerate(sampled_at)
    weights = importance_weights(log_ratio(MDP.softmax_log_prob, theta, rollout))
    return probabilities @ discounted_return(rollout.rewards, MDP.gamma, weights)


def expected_occupancy(theta, sampled_at):
    rollout, probabilities = MDP.enumerate(sampled_at)
    weights = importance_weights(log_ratio(MDP.softmax_log_prob, theta, rollout)) * probabilities * len(probabilities)
    arguments = (rollout.states[:-1], rollout.actions, rollout.mask, MDP.gamma, MDP.num_states, MDP.num_actions)
    return occupancy(*arguments, weights)


def expected_gradient(theta, sampled_at, slopes):
    """E[ĝ(τ; ⟨c, r⃗⟩)], [d]."""
    rollout, probabilities = MDP.enumerate(sampled_at)
    psi = reward_to_go(rollout.rewards @ slopes, rollout.mask, MDP.gamma)
    return policy_gradient(MDP.softmax_log_prob, theta, rollout, Expected(psi, probabilities))


def jacobian(theta):
    """∇J, [K, d]."""
    return MDP.gradient(theta)


@pytest.mark.parametrize("momentum", [0.0, 0.3])
def test_tracked_objectives_and_occupancies_stay_exact_in_expectation(momentum):
    objectives, occupancies = expected_objectives(PATH[0], PATH[0]), expected_occupancy(PATH[0], PATH[0])
    for previous, theta in pairwise(PATH):
        fresh, old = expected_objectives(theta, theta), expected_objectives(previous, theta)
        objectives = corrected_momentum(objectives, fresh, fresh - old, momentum)
        assert_exact(objectives, MDP.value(MDP.softmax_policy(theta)))
        counts, old_counts = expected_occupancy(theta, theta), expected_occupancy(previous, theta)
        occupancies = corrected_momentum(occupancies, counts, counts - old_counts, momentum)
        assert_exact(occupancies, MDP.occupancy(MDP.softmax_policy(theta)))


def tracked_direction(slopes, old_slopes, old=expected_gradient):
    """E[d_j] for every j ≥ 1: the gradient with c_j minus the weighted one at θ_{j−1} with other slopes, added up."""
    direction = expected_gradient(PATH[0], PATH[0], slopes[0])
    directions = []
    for j in range(1, len(PATH)):
        fresh = expected_gradient(PATH[j], PATH[j], slopes[j])
        direction = corrected_momentum(direction, fresh, fresh - old(PATH[j - 1], PATH[j], old_slopes[j]), 0.0)
        directions.append(direction)
    return directions


def test_the_direction_of_two_batches_follows_the_slopes_of_its_own_step():
    """E[d_j] = ∇J(θ_j)ᵀ c_j: fresh with c_j, weighted back with c_{j−1}."""
    directions = tracked_direction(SLOPES, [SLOPES[0], *SLOPES[:-1]])
    for j, direction in enumerate(directions, start=1):
        assert_exact(direction, jacobian(PATH[j]).T @ SLOPES[j])


def test_the_lagged_direction_follows_the_slopes_of_the_step_before():
    """E[d_j] = ∇J(θ_j)ᵀ c_{j−1}: fresh with c_{j−1}, weighted back with c_{j−2}, where c_{−1} = c_0."""
    lagged = [SLOPES[0], *SLOPES[:-1]]
    directions = tracked_direction(lagged, [lagged[0], *lagged[:-1]])
    for j, direction in enumerate(directions, start=1):
        assert_exact(direction, jacobian(PATH[j]).T @ SLOPES[j - 1])
        if j > 1:
            assert_misses(direction, jacobian(PATH[j]).T @ SLOPES[j])


def test_without_the_weighted_gradient_of_the_previous_parameters_the_direction_would_run_away():
    """Negative control: ĝ replaced by zero, which is what a gradient by the live policy's log-probabilities gives."""
    directions = tracked_direction(SLOPES, SLOPES, old=lambda theta, sampled_at, slopes: torch.zeros_like(theta))
    for j, direction in enumerate(directions, start=1):
        assert_misses(direction, jacobian(PATH[j]).T @ SLOPES[j])


def test_slopes_one_step_off_would_be_biased():
    """Negative control: weighted back with c_j, or with c_{j−2}, instead of c_{j−1}."""
    for old_slopes in (SLOPES, [SLOPES[0], SLOPES[0], *SLOPES[:-2]]):
        direction = tracked_direction(SLOPES, old_slopes)[-1]
        assert_misses(direction, jacobian(PATH[-1]).T @ SLOPES[-1])


# ------------------------------------------------------------------ one step given the past, batches of one episode

SMALL = small_mdp()
BEFORE, NOW = normal(SMALL.num_parameters, seed=1), normal(SMALL.num_parameters, seed=1) + normal(SMALL.num_parameters, seed=2)
OBJECTIVES_BEFORE = SMALL.value(SMALL.softmax_policy(BEFORE)) + torch.tensor([0.2, -0.1], dtype=F64)  # with some error
DIRECTION_BEFORE = normal(SMALL.num_parameters, seed=8)


def slopes_of(objectives):
    """∇f for f = −Σ_k exp(−J_k), at J clipped to what is possible; the tracked J itself is not clipped."""
    return torch.exp(-objectives.clamp(0.0, 2.71))


def tracked_objectives(episode):
    """J_{j−1} + R⃗ − R⃗_ω of one episode, [K]."""
    weights = importance_weights(log_ratio(SMALL.softmax_log_prob, BEFORE, episode))
    returns, old = (discounted_return(episode.rewards, SMALL.gamma, w)[0] for w in (None, weights))
    return corrected_momentum(OBJECTIVES_BEFORE, returns, returns - old, 0.0)


def direction_error(episode, fresh_slopes, old_slopes, target_slopes):
    """d_j − ∇J(θ_j)ᵀ c of one episode at θ_j, [d]."""
    fresh, old = (
        policy_gradient(SMALL.softmax_log_prob, theta, episode, reward_to_go(episode.rewards @ c, episode.mask, SMALL.gamma))
        for theta, c in ((NOW, fresh_slopes), (BEFORE, old_slopes))
    )
    return corrected_momentum(DIRECTION_BEFORE, fresh, fresh - old, 0.0) - SMALL.gradient(NOW).T @ target_slopes


def columns_of(pair):
    """The two episodes of a batch, each as a batch of its own."""
    return pair.columns(slice(0, 1)), pair.columns(slice(1, 2))


ERROR_BEFORE = DIRECTION_BEFORE - SMALL.gradient(BEFORE).T @ slopes_of(OBJECTIVES_BEFORE)


def test_given_the_past_the_error_of_the_tracked_objectives_does_not_change():
    rollout, probabilities = SMALL.enumerate(NOW)
    value = probabilities @ per_trajectory(tracked_objectives, rollout)
    exact_now, exact_before = (SMALL.value(SMALL.softmax_policy(theta)) for theta in (NOW, BEFORE))
    assert_exact(value - exact_now, OBJECTIVES_BEFORE - exact_before)


def test_given_the_past_the_error_of_the_direction_does_not_change_with_two_batches():
    """Over all pairs of one episode for J and another for d."""

    def estimator(pair):
        for_objectives, for_direction = columns_of(pair)
        slopes = slopes_of(tracked_objectives(for_objectives))
        return direction_error(for_direction, slopes, slopes_of(OBJECTIVES_BEFORE), slopes)

    assert_exact(over_pairs(estimator, *SMALL.enumerate(NOW)), ERROR_BEFORE)


def test_given_the_past_the_error_of_the_lagged_direction_does_not_change():
    """One batch for both: its direction uses slopes of earlier batches only."""
    older = torch.tensor([0.4, 1.1], dtype=F64)  # c_{j−2}
    rollout, probabilities = SMALL.enumerate(NOW)
    last = slopes_of(OBJECTIVES_BEFORE)
    value = probabilities @ per_trajectory(lambda episode: direction_error(episode, last, older, last), rollout)
    assert_exact(value, DIRECTION_BEFORE - SMALL.gradient(BEFORE).T @ older)


def test_one_batch_with_the_current_slopes_would_be_biased():
    """Negative control: the slopes c_j come from the very episode whose gradient they weight."""

    def estimator(episode):
        slopes = slopes_of(tracked_objectives(episode))
        return direction_error(episode, slopes, slopes_of(OBJECTIVES_BEFORE), slopes)

    rollout, probabilities = SMALL.enumerate(NOW)
    assert_misses(probabilities @ per_trajectory(estimator, rollout), ERROR_BEFORE)
