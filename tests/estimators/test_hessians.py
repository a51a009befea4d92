"""Oracles: ∇²J of an enumerated MDP and of a Gaussian bandit, and Hessian-vector products written out by hand."""

import pytest
import torch

from rlopt.envs.gaussian_bandit import GaussianBandit
from rlopt.estimators import hessian_vector_product, importance_weights, policy_gradient, reward_to_go, total_return
from rlopt.estimators.returns import discount_powers, mean_of_others, suffix_sums
from tests.oracles import (
    F64,
    Expected,
    assert_exact,
    assert_misses,
    columns_at,
    for_all,
    normal,
    over_pairs,
    per_trajectory,
    scalarised,
    score,
    small_mdp,
    standard_mdp,
    two_thetas,
    written_out_product,
)

MDP = scalarised(standard_mdp())
SMALL = scalarised(small_mdp())
THETA, OTHER = two_thetas(MDP)
VECTOR = normal(MDP.num_parameters, seed=3)
TABLE = normal(MDP.horizon, MDP.num_states, seed=9)
FORMS = ["per_step", "trajectory"]
ALL = [*FORMS, "doubly_robust"]


def state_baseline(rollout):
    """Some b(t, s_t), [T, N]."""
    return TABLE[torch.arange(MDP.horizon)[:, None], rollout.states[:-1]]


def expected_product(mdp, theta, vector, sampled_at, make_psi):
    """Σ_τ p(τ | θ_b) B(τ, θ) v with ψ made of a rollout."""
    rollout, probabilities = mdp.enumerate(sampled_at)
    psi = Expected(make_psi(rollout), probabilities)
    return hessian_vector_product(mdp.softmax_log_prob, theta, rollout, psi, vector)


def psi_of(weighting, with_baseline=False):
    def make_psi(rollout):
        baseline = state_baseline(rollout) if with_baseline else None
        return reward_to_go(rollout.rewards, rollout.mask, MDP.gamma, baseline, weighting)

    return make_psi


# ------------------------------------------------------------------ the expectation


@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.parametrize("sampled_at", [THETA, OTHER], ids=["on policy", "off policy"])
@pytest.mark.parametrize("weighting", ALL)
def test_the_expected_product_is_exact(weighting, sampled_at, with_baseline):
    value = expected_product(MDP, THETA, VECTOR, sampled_at, psi_of(weighting, with_baseline))
    assert_exact(value, MDP.hessian(THETA) @ VECTOR)


@pytest.mark.parametrize("sampled_at", [THETA, OTHER], ids=["on policy", "off policy"])
def test_the_expected_product_of_plain_reinforce_is_exact(sampled_at):
    value = expected_product(
        MDP, THETA, VECTOR, sampled_at, lambda r: total_return(r.rewards, r.mask, MDP.gamma, state_baseline(r))
    )
    assert_exact(value, MDP.hessian(THETA) @ VECTOR)


@pytest.mark.parametrize("weighting", ALL)
def test_the_mean_of_single_episodes_by_their_probabilities_is_exact(weighting):
    """The estimator as agents call it, one episode at a time."""
    theta, _ = two_thetas(SMALL)
    vector = normal(SMALL.num_parameters, seed=3)
    rollout, probabilities = SMALL.enumerate(theta)
    total = torch.zeros_like(theta)
    for n, probability in enumerate(probabilities):
        episode = rollout.columns(slice(n, n + 1))
        psi = reward_to_go(episode.rewards, episode.mask, SMALL.gamma, weighting=weighting)
        total += probability * hessian_vector_product(SMALL.softmax_log_prob, theta, episode, psi, vector)
    assert_exact(total, SMALL.hessian(theta) @ vector)


@pytest.mark.parametrize("weighting", ALL)
def test_batches_of_two_with_the_mean_of_the_others_are_exact(weighting):
    theta, _ = two_thetas(SMALL)
    vector = normal(SMALL.num_parameters, seed=3)
    rollout, probabilities = SMALL.enumerate(theta)

    def estimator(batch):
        returns = suffix_sums(discount_powers(SMALL.gamma, batch.rewards) * batch.rewards)
        baseline = mean_of_others(returns, batch.mask) / discount_powers(SMALL.gamma, returns)
        psi = reward_to_go(batch.rewards, batch.mask, SMALL.gamma, baseline, weighting)
        return hessian_vector_product(SMALL.softmax_log_prob, theta, batch, psi, vector)

    assert_exact(over_pairs(estimator, rollout, probabilities), SMALL.hessian(theta) @ vector)


@pytest.mark.parametrize("std", [0.5, 1.3])
@pytest.mark.parametrize("weighting", ALL)
def test_the_product_of_a_gaussian_bandit_is_exact(weighting, std):
    bandit = GaussianBandit(1.0, std)
    theta, vector = torch.tensor([0.4], dtype=F64), torch.tensor([1.7], dtype=F64)
    rollout, weights = bandit.enumerate(theta)
    psi = Expected(reward_to_go(rollout.rewards, rollout.mask, 1.0, weighting=weighting), weights)
    value = hessian_vector_product(bandit.log_prob, theta, rollout, psi, vector)
    assert_exact(value, bandit.hessian(theta) @ vector)


# ------------------------------------------------------------------ every episode


@pytest.mark.parametrize("with_baseline", [False, True])
@pytest.mark.parametrize("sampled_at", [THETA, OTHER], ids=["on policy", "off policy"])
@pytest.mark.parametrize("weighting", FORMS)
def test_every_episode_gives_the_product_written_out(weighting, sampled_at, with_baseline):
    rollout, _ = MDP.enumerate(sampled_at)
    rollout = columns_at(rollout, torch.arange(0, 1296, 7))

    def estimator(episode):
        psi = psi_of(weighting, with_baseline)(episode)
        return hessian_vector_product(MDP.softmax_log_prob, THETA, episode, psi, VECTOR)

    baseline = state_baseline(rollout) if with_baseline else None
    written_out = for_all(written_out_product, MDP, THETA, rollout, VECTOR, weighting, baseline)
    assert_exact(per_trajectory(estimator, rollout), written_out, 1e-11)


def test_the_causal_product_is_symmetric_in_every_episode_and_the_other_is_not():
    rollout, _ = MDP.enumerate(THETA)
    axes = torch.eye(MDP.num_parameters, dtype=F64)

    def matrix(weighting, with_baseline=False):
        def estimator(episode):
            psi = psi_of(weighting, with_baseline)(episode)
            product = lambda axis: hessian_vector_product(MDP.softmax_log_prob, THETA, episode, psi, axis)  # noqa: E731
            return torch.func.vmap(product)(axes)

        return per_trajectory(estimator, rollout)

    causal, trajectory = matrix("per_step"), matrix("trajectory")
    assert_exact(causal, causal.transpose(1, 2))
    assert_misses(trajectory, trajectory.transpose(1, 2))
    centred = matrix("per_step", with_baseline=True)
    assert_misses(centred, centred.transpose(1, 2))  # ∇ log π_t ⟨G_t, v⟩ of the baseline is not symmetric


# ------------------------------------------------------------------ negative controls


@pytest.mark.parametrize("score_term", [0.0, -1.0], ids=["left out", "of the wrong sign"])
@pytest.mark.parametrize("weighting", FORMS)
def test_without_the_right_score_term_the_product_would_be_biased(weighting, score_term):
    rollout, probabilities = SMALL.enumerate(two_thetas(SMALL)[0])
    theta, vector = two_thetas(SMALL)[0], normal(SMALL.num_parameters, seed=3)
    exact = SMALL.hessian(theta) @ vector
    right = for_all(written_out_product, SMALL, theta, rollout, vector, weighting)
    wrong = for_all(written_out_product, SMALL, theta, rollout, vector, weighting, score_term=score_term)
    assert_exact(probabilities @ right, exact)
    assert_misses(probabilities @ wrong, exact)


def test_a_product_of_batch_means_would_keep_one_mth_of_the_score_term():
    """Negative control, by all pairs: mean_i ∇Φ_i · mean_i ⟨S_i, v⟩ has the expectation E[∇Φ ⟨S, v⟩] / M with M = 2."""
    theta, _ = two_thetas(SMALL)
    vector = normal(SMALL.num_parameters, seed=3)
    rollout, probabilities = SMALL.enumerate(theta)
    columns = range(len(probabilities))

    def total_score(n):
        steps = zip(rollout.states[:-1, n].tolist(), rollout.actions[:, n].tolist())
        return torch.from_numpy(sum(score(SMALL, theta, state, action) for state, action in steps))

    along = torch.stack([total_score(n) for n in columns]) @ vector
    whole = for_all(written_out_product, SMALL, theta, rollout, vector, "trajectory")
    curved = for_all(written_out_product, SMALL, theta, rollout, vector, "trajectory", score_term=0.0)
    episode_gradients = per_trajectory(
        lambda r: policy_gradient(SMALL.softmax_log_prob, theta, r, reward_to_go(r.rewards, r.mask, SMALL.gamma)), rollout
    )
    expectation = torch.zeros_like(theta)
    for n in columns:
        for m in columns:
            means = (episode_gradients[n] + episode_gradients[m]) / 2 * (along[n] + along[m]) / 2
            expectation += probabilities[n] * probabilities[m] * (means + (curved[n] + curved[m]) / 2)
    exact = SMALL.hessian(theta) @ vector
    assert_misses(expectation, exact)
    assert_exact(expectation, probabilities @ ((whole - curved) / 2 + curved))


def unweighted_baseline(weighting):
    """ψ whose rewards carry importance weights and whose baseline carries none."""

    def make_psi(rollout):
        discounts = discount_powers(MDP.gamma, rollout.rewards)
        rewards, baseline = discounts * rollout.rewards, discounts * state_baseline(rollout)

        def psi(log_ratio):
            weights = importance_weights(log_ratio, per_step=weighting == "per_step")
            return suffix_sums(weights * rewards) - baseline

        return psi

    return make_psi


@pytest.mark.parametrize("weighting", FORMS)
def test_a_baseline_without_weight_would_bias_the_product_and_not_the_gradient(weighting):
    """Negative control, the one that a check of gradients alone does not find."""
    rollout, probabilities = MDP.enumerate(THETA)
    psi = Expected(unweighted_baseline(weighting)(rollout), probabilities)
    assert_exact(policy_gradient(MDP.softmax_log_prob, THETA, rollout, psi), MDP.gradient(THETA))
    value = expected_product(MDP, THETA, VECTOR, THETA, unweighted_baseline(weighting))
    assert_misses(value, MDP.hessian(THETA) @ VECTOR)


@pytest.mark.parametrize("weighting", FORMS)
def test_off_policy_a_baseline_without_weight_would_bias_the_gradient_too(weighting):
    rollout, probabilities = MDP.enumerate(OTHER)
    psi = Expected(unweighted_baseline(weighting)(rollout), probabilities)
    assert_misses(policy_gradient(MDP.softmax_log_prob, THETA, rollout, psi), MDP.gradient(THETA))


# ------------------------------------------------------------------ a baseline in every term


def doubly_robust(following, current):
    """ψ_t = Σ_{h≥t} γ^h (ω_h r_h + ω_h' γ b_{h+1} − ω_h'' b_h) with the weights at these shifts: 0 is right for both."""

    def make_psi(rollout):
        discounts = discount_powers(MDP.gamma, rollout.rewards)
        rewards, baseline = discounts * rollout.rewards, discounts * state_baseline(rollout)
        after = torch.cat([baseline[1:], torch.zeros_like(baseline[:1])])

        def psi(log_ratio):
            weights = importance_weights(log_ratio)
            shifted = torch.cat([torch.ones_like(weights[:1]), weights[:-1]])  # ω_{h−1}
            return suffix_sums(
                weights * rewards + (shifted if following else weights) * after - (shifted if current else weights) * baseline
            )

        return psi

    return make_psi


@pytest.mark.parametrize("sampled_at", [THETA, OTHER], ids=["on policy", "off policy"])
def test_the_doubly_robust_form_is_that_of_temporal_differences(sampled_at):
    value = expected_product(MDP, THETA, VECTOR, sampled_at, doubly_robust(False, False))
    assert_exact(value, MDP.hessian(THETA) @ VECTOR)


@pytest.mark.parametrize("shifts", [(True, False), (False, True), (True, True)])
def test_temporal_differences_with_the_weight_of_another_step_would_be_biased(shifts):
    """Negative controls."""
    value = expected_product(MDP, THETA, VECTOR, THETA, doubly_robust(*shifts))
    assert_misses(value, MDP.hessian(THETA) @ VECTOR)


def test_on_policy_every_baselined_form_gives_the_same_gradient():
    rollout, _ = MDP.enumerate(THETA)
    first, *others = (policy_gradient(MDP.softmax_log_prob, THETA, rollout, psi_of(form, True)(rollout)) for form in ALL)
    for other in others:
        assert_exact(other, first, 1e-9)


def test_the_doubly_robust_product_varies_less_with_a_good_baseline():
    """With b = V the exact variance per episode is below that of both other forms, on this MDP."""
    rollout, probabilities = MDP.enumerate(THETA)
    policy = MDP.softmax_policy(THETA)
    values = (MDP.state_action_values(policy) * policy).sum(-1)

    def variance(form):
        def estimator(episode):
            baseline = values[torch.arange(MDP.horizon)[:, None], episode.states[:-1]]
            psi = reward_to_go(episode.rewards, episode.mask, MDP.gamma, baseline, form)
            return hessian_vector_product(MDP.softmax_log_prob, THETA, episode, psi, VECTOR)

        products = per_trajectory(estimator, rollout)
        mean = probabilities @ products
        return float(probabilities @ (products - mean).square().sum(1))

    assert variance("doubly_robust") < 0.9 * min(variance("per_step"), variance("trajectory"))
