"""Oracles: the occupancy of an enumerated MDP, and derivatives of utilities of it by automatic differentiation."""

import pytest
import torch

from rlopt.estimators import importance_weights, log_ratio, occupancy, policy_gradient, reward_to_go
from rlopt.utilities import EntropyUtility, ImitationUtility, LinearUtility, utility_gradient
from tests.oracles import F64, Expected, assert_exact, assert_misses, normal, scalarised, standard_mdp, two_thetas

VECTORIAL = standard_mdp()
MDP = scalarised(VECTORIAL)
ENDING = scalarised(standard_mdp(num_terminal=1))
THETA, SAMPLED_AT = two_thetas(MDP)
TABLE = normal(MDP.num_states, MDP.num_actions, seed=6)
MASS = (1 - MDP.gamma**MDP.horizon) / (1 - MDP.gamma)


def logarithmic(occupancies):
    """Σ_s log(Σ_a λ(s, a) + σ) with σ = 1/8."""
    return (occupancies.sum(1) + 0.125).log().sum()


UTILITIES = {
    "linear": LinearUtility(TABLE.tolist()),
    "entropy": EntropyUtility(),
    "imitation": ImitationUtility((TABLE.exp() / TABLE.exp().sum()).tolist()),
    "logarithmic": logarithmic,
}


def expected_occupancy(mdp, sampled_at, weights_of):
    """E[λ̂_ω] with ω made of the log-ratios of THETA."""
    rollout, probabilities = mdp.enumerate(sampled_at)
    weights = weights_of(log_ratio(mdp.softmax_log_prob, THETA, rollout)) * probabilities * len(probabilities)
    arguments = (rollout.states[:-1], rollout.actions, rollout.mask, mdp.gamma, mdp.num_states, mdp.num_actions)
    return occupancy(*arguments, weights)


@pytest.mark.parametrize("per_step", [True, False])
@pytest.mark.parametrize("sampled_at", [THETA, SAMPLED_AT], ids=["on policy", "off policy"])
@pytest.mark.parametrize("mdp", [MDP, ENDING], ids=["full length", "ending early"])
def test_the_expected_occupancy_is_exact(mdp, sampled_at, per_step):
    value = expected_occupancy(mdp, sampled_at, lambda ratios: importance_weights(ratios, per_step))
    assert_exact(value, mdp.occupancy(mdp.softmax_policy(THETA)))


@pytest.mark.parametrize(
    "weights_of",
    [lambda ratios: importance_weights(-ratios), torch.exp, torch.ones_like],
    ids=["inverted ratio", "ratio of a single step", "no weights"],
)
def test_other_weights_would_be_biased(weights_of):
    """Negative controls."""
    assert_misses(expected_occupancy(MDP, SAMPLED_AT, weights_of), MDP.occupancy(MDP.softmax_policy(THETA)))


def test_the_mass_is_that_of_the_discounts_whatever_the_policy():
    value = expected_occupancy(MDP, SAMPLED_AT, importance_weights)
    assert abs(float(value.sum()) - MASS) < 1e-10
    assert abs(MASS - 3.439) < 1e-12
    undiscounted = standard_mdp(gamma=1.0)
    assert abs(float(expected_occupancy(undiscounted, SAMPLED_AT, importance_weights).sum()) - 4) < 1e-10  # H, not 0/0
    assert float(expected_occupancy(ENDING, SAMPLED_AT, importance_weights).sum()) < MASS - 1e-3


def test_every_objective_is_linear_in_the_occupancy():
    value = expected_occupancy(MDP, SAMPLED_AT, importance_weights)
    objectives = torch.einsum("sa,sak->k", value, VECTORIAL.rewards)
    assert_exact(objectives, VECTORIAL.value(VECTORIAL.softmax_policy(THETA)))


def test_counts_of_single_episodes_by_hand():
    states, actions = torch.tensor([[0, 1], [1, 1], [1, 0]]), torch.tensor([[1, 0], [0, 0], [0, 1]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    weights = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 9e9]], dtype=F64)
    plain = occupancy(states, actions, mask, 0.5, 2, 2)
    assert plain.tolist() == [[0.0, 0.5], [0.25 + 0.125 + 0.5 + 0.25, 0.0]]
    weighted = occupancy(states, actions, mask, 0.5, 2, 2, weights)
    assert weighted.tolist() == [[0.0, 0.5], [(1.5 + 1.25 + 2.0 + 2.0) / 2, 0.0]]


def expected_quasi_gradient(rewards, weights_of):
    """E[ĝ(τ; r)] at THETA with a table of rewards, sampled at SAMPLED_AT."""
    rollout, probabilities = MDP.enumerate(SAMPLED_AT)
    quasi_rewards = rewards[rollout.states[:-1], rollout.actions]

    def psi(ratios):
        powers = MDP.gamma ** torch.arange(MDP.horizon, dtype=F64)[:, None]
        return (weights_of(ratios) * powers * quasi_rewards).flip(0).cumsum(0).flip(0)

    right = Expected(reward_to_go(quasi_rewards, rollout.mask, MDP.gamma), probabilities)
    wrong = Expected(psi, probabilities)
    return (
        policy_gradient(MDP.softmax_log_prob, THETA, rollout, right),
        policy_gradient(MDP.softmax_log_prob, THETA, rollout, wrong),
    )


@pytest.mark.parametrize(
    "wrong_weights", [lambda ratios: importance_weights(-ratios), torch.exp], ids=["inverted ratio", "ratio of a single step"]
)
def test_the_gradient_with_any_table_of_rewards_is_that_of_the_occupancy(wrong_weights):
    exact = torch.func.grad(lambda theta: (MDP.occupancy(MDP.softmax_policy(theta)) * TABLE).sum())(THETA)
    right, wrong = expected_quasi_gradient(TABLE, wrong_weights)
    assert_exact(right, exact)
    assert_misses(wrong, exact)


@pytest.mark.parametrize("name", list(UTILITIES))
def test_the_gradient_with_the_slopes_of_a_utility_is_that_of_the_utility(name):
    utility = UTILITIES[name]
    exact_occupancy = MDP.occupancy(MDP.softmax_policy(THETA))
    value, quasi_rewards = utility_gradient(utility, exact_occupancy)
    exact = torch.func.grad(lambda theta: utility(MDP.occupancy(MDP.softmax_policy(theta))))(THETA)
    assert abs(float(value - utility(exact_occupancy))) < 1e-12
    right, wrong = expected_quasi_gradient(quasi_rewards, lambda ratios: importance_weights(-ratios))
    assert_exact(right, exact)
    assert_misses(wrong, exact)


@pytest.mark.parametrize("name", [name for name in UTILITIES if name != "linear"])
def test_slopes_at_the_occupancy_of_another_policy_would_be_another_gradient(name):
    """Negative control: rewards ∇F(λ) belong to the policy whose λ it is."""
    utility = UTILITIES[name]
    exact = torch.func.grad(lambda theta: utility(MDP.occupancy(MDP.softmax_policy(theta))))(THETA)
    _, elsewhere = utility_gradient(utility, MDP.occupancy(MDP.softmax_policy(THETA + 2 * (SAMPLED_AT - THETA))))
    assert_misses(expected_quasi_gradient(elsewhere, importance_weights)[0], exact)


def test_slopes_of_the_logarithmic_utility_are_the_closed_form():
    value = MDP.occupancy(MDP.softmax_policy(THETA))
    _, slopes = utility_gradient(logarithmic, value)
    assert_exact(slopes, (1 / (value.sum(1, keepdim=True) + 0.125)).expand_as(value), 1e-12)
