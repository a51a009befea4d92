"""An episode that ended early equals itself with anything in its padding; oracle: ∇J of an MDP with a terminal state."""

from dataclasses import replace

import pytest
import torch

from rlopt.estimators import (
    BASELINES,
    discounted_return,
    hessian_vector_product,
    importance_weights,
    log_ratio,
    mean_of_others,
    occupancy,
    policy_gradient,
    returns_to_go,
    reward_to_go,
    total_return,
)
from tests.oracles import (
    F64,
    Expected,
    assert_exact,
    assert_misses,
    for_all,
    miss,
    normal,
    per_trajectory,
    scalarised,
    standard_mdp,
    two_thetas,
    written_out_gradient,
    written_out_product,
)

MDP = scalarised(standard_mdp(num_terminal=1))
THETA, SAMPLED_AT = two_thetas(MDP)
VECTOR = normal(MDP.num_parameters, seed=3)
ROLLOUT, PROBABILITIES = MDP.enumerate(SAMPLED_AT)


def with_garbage(rollout, seed=0):
    """The same episodes with any states, actions, rewards and log-probabilities where the mask is False."""
    generator = torch.Generator().manual_seed(seed)
    shape = rollout.mask.shape
    states = torch.randint(MDP.num_states, shape, generator=generator)
    actions = torch.randint(MDP.num_actions, shape, generator=generator)
    rewards = 1e3 * torch.randn(shape, generator=generator, dtype=F64)
    log_probs = torch.full(shape, -torch.inf, dtype=F64)
    return replace(
        rollout,
        states=torch.cat([rollout.states[:-1].where(rollout.mask, states), rollout.states[-1:]]),
        actions=rollout.actions.where(rollout.mask, actions),
        rewards=rollout.rewards.where(rollout.mask, rewards),
        log_probs=rollout.log_probs.where(rollout.mask, log_probs),
    )


PADDED = with_garbage(ROLLOUT)


def psi_of(rollout, form, baseline=None):
    if form == "total":
        return total_return(rollout.rewards, rollout.mask, MDP.gamma, baseline)
    return reward_to_go(rollout.rewards, rollout.mask, MDP.gamma, baseline, form)


def garbage_baseline(rollout):
    """b(t, s_t), and anything on padding."""
    table = normal(MDP.horizon, MDP.num_states, seed=9)
    return table[torch.arange(MDP.horizon)[:, None], rollout.states[:-1]]


def test_there_is_padding_and_the_garbage_is_in_it():
    assert float((~ROLLOUT.mask).double().mean()) > 0.05
    assert not torch.equal(PADDED.states, ROLLOUT.states)
    assert float(PADDED.rewards.abs().max()) > 100


@pytest.mark.parametrize("form", ["total", "per_step", "trajectory"])
@pytest.mark.parametrize("with_baseline", [False, True])
def test_gradients_and_products_do_not_see_the_padding(form, with_baseline):
    def both(rollout):
        baseline = garbage_baseline(rollout) if with_baseline else None
        psi = Expected(psi_of(rollout, form, baseline), PROBABILITIES)
        gradient = policy_gradient(MDP.softmax_log_prob, THETA, rollout, psi)
        return gradient, hessian_vector_product(MDP.softmax_log_prob, THETA, rollout, psi, VECTOR)

    for plain, padded, exact in zip(both(ROLLOUT), both(PADDED), (MDP.gradient(THETA), MDP.hessian(THETA) @ VECTOR)):
        assert torch.equal(plain, padded)
        assert_exact(padded, exact)


@pytest.mark.parametrize("form", ["per_step", "trajectory"])
def test_every_episode_gives_what_is_written_out_of_its_valid_steps(form):
    def gradient(episode):
        return policy_gradient(MDP.softmax_log_prob, THETA, episode, psi_of(episode, form))

    def product(episode):
        return hessian_vector_product(MDP.softmax_log_prob, THETA, episode, psi_of(episode, form), VECTOR)

    assert_exact(per_trajectory(gradient, PADDED), for_all(written_out_gradient, MDP, THETA, ROLLOUT, form), 1e-11)
    assert_exact(per_trajectory(product, PADDED), for_all(written_out_product, MDP, THETA, ROLLOUT, VECTOR, form), 1e-11)


def test_weights_returns_and_occupancies_do_not_see_the_padding():
    ratios, padded = (log_ratio(MDP.softmax_log_prob, THETA, rollout) for rollout in (ROLLOUT, PADDED))
    assert torch.equal(ratios, padded)
    weights = importance_weights(padded)
    assert_exact(weights @ PROBABILITIES, torch.ones(MDP.horizon, dtype=F64))
    assert_exact(importance_weights(padded, per_step=False) @ PROBABILITIES, torch.ones(MDP.horizon, dtype=F64))
    last = ROLLOUT.mask.sum(0) - 1
    assert torch.equal(weights[-1], weights[last, torch.arange(len(last))])
    value = PROBABILITIES @ discounted_return(PADDED.rewards * PADDED.mask, MDP.gamma, weights)
    assert miss(value, MDP.value(MDP.softmax_policy(THETA))) < 1e-10
    arguments = (MDP.gamma, MDP.num_states, MDP.num_actions, weights * PROBABILITIES * len(PROBABILITIES))
    counts = [occupancy(rollout.states[:-1], rollout.actions, rollout.mask, *arguments) for rollout in (ROLLOUT, PADDED)]
    assert torch.equal(*counts)
    assert_exact(counts[1], MDP.occupancy(MDP.softmax_policy(THETA)))


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_do_not_see_the_padding(name):
    results = []
    for rollout in (ROLLOUT, PADDED):
        returns = returns_to_go(rollout.rewards, rollout.mask, MDP.gamma)
        learned = BASELINES[name].fit(BASELINES[name].init(), rollout, returns)
        results.append((returns, learned, BASELINES[name].values(learned, rollout, returns) * rollout.mask))
    for plain, padded in zip(*results):
        assert torch.equal(plain, padded)
    garbage = torch.where(ROLLOUT.mask, ROLLOUT.rewards, 1e6)
    assert torch.equal(
        mean_of_others(garbage, ROLLOUT.mask)[ROLLOUT.mask], mean_of_others(ROLLOUT.rewards, ROLLOUT.mask)[ROLLOUT.mask]
    )


def test_log_probabilities_that_are_not_masked_would_be_seen():
    """Negative control: the ratios of padding rows in the weights, and their scores in the gradient."""
    finite = replace(PADDED, log_probs=PADDED.log_probs.where(PADDED.mask, -0.1))
    unmasked = replace(finite, mask=torch.ones_like(finite.mask))
    ratios = log_ratio(MDP.softmax_log_prob, THETA, unmasked)
    ones = torch.ones(MDP.horizon, dtype=F64)
    assert_misses(importance_weights(ratios) @ PROBABILITIES, ones)
    psi = Expected(psi_of(PADDED, "trajectory"), PROBABILITIES)
    assert_misses(policy_gradient(MDP.softmax_log_prob, THETA, unmasked, psi), MDP.gradient(THETA))
    product = hessian_vector_product(MDP.softmax_log_prob, THETA, unmasked, psi, VECTOR)
    assert_misses(product, MDP.hessian(THETA) @ VECTOR)


def test_a_state_that_pays_after_the_end_would_be_seen():
    """Negative control: rewards of padding rows."""
    unmasked = replace(PADDED, mask=torch.ones_like(PADDED.mask))
    psi = Expected(psi_of(unmasked, "per_step"), PROBABILITIES)
    assert_misses(policy_gradient(MDP.softmax_log_prob, THETA, PADDED, psi), MDP.gradient(THETA))
