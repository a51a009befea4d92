"""Optima of tabular MDPs against brute force, and certificates that hold."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_optimum import maximise_utility

# Staying pays 1, leaving pays 5 and ends the episode: stay twice and leave, if you know the time.
STAY_OR_LEAVE = TabularMDP(
    initial=torch.tensor([1.0, 0.0]),
    transitions=torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]]),
    rewards=torch.tensor([[1.0, 5.0], [100.0, 100.0]]),
    gamma=1.0,
    horizon=3,
    terminal=torch.tensor([False, True]),
)


def random_policies(mdp: TabularMDP, num: int, by_time: bool = True) -> Tensor:
    shape = (num, mdp.horizon, mdp.num_states, mdp.num_actions) if by_time else (num, mdp.num_states, mdp.num_actions)
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.softmax(3 * logits, -1)


@pytest.mark.parametrize("num_terminal", [0, 1])
def test_no_deterministic_policy_is_better_than_the_optimal_one(num_terminal: int) -> None:
    mdp = TabularMDP.random(num_states=2 + num_terminal, num_actions=2, horizon=3, num_terminal=num_terminal, seed=1)
    choices = torch.tensor(list(product(range(2), repeat=3 * mdp.num_states))).view(-1, 3, mdp.num_states)
    policies = torch.nn.functional.one_hot(choices, 2).to(torch.float64)
    values = torch.func.vmap(mdp.value)(policies)
    assert abs(float(values.max()) - mdp.optimal_value()) < 1e-14
    assert float(values.median()) < mdp.optimal_value() - 1e-2
    assert abs(float(mdp.value(mdp.optimal_policy())) - mdp.optimal_value()) < 1e-14


@pytest.mark.parametrize("seed", range(3))
def test_the_best_stationary_policy_is_as_good_as_the_best_of_a_grid(seed: int) -> None:
    mdp = TabularMDP.random(num_states=2, seed=seed)
    shares = torch.linspace(0, 1, 101, dtype=torch.float64)
    first = torch.cartesian_prod(shares, shares)
    best = torch.func.vmap(mdp.value)(torch.stack([first, 1 - first], -1)).max()
    found = mdp.best_stationary_value(restarts=3)
    assert float(best) - 1e-9 <= found <= mdp.optimal_value() + 1e-12


def test_the_best_stationary_policy_may_have_to_be_stochastic() -> None:
    stay = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    values = (1 + stay + stay**2) * (5 - 4 * stay)
    policy = STAY_OR_LEAVE.best_stationary_policy(restarts=2)
    assert abs(float(STAY_OR_LEAVE.value(policy)) - float(values.max())) < 1e-9
    assert abs(float(policy[0, 0]) - float(stay[values.argmax()])) < 1e-4
    assert STAY_OR_LEAVE.optimal_value() == 7
    assert max(float(values[0]), float(values[-1])) < float(values.max()) - 0.2  # both deterministic ones


def test_the_same_seed_finds_the_same_policy() -> None:
    mdp = TabularMDP.random(seed=4)
    assert torch.equal(mdp.best_stationary_policy(restarts=2, iterations=20), mdp.best_stationary_policy(2, 20, seed=0))


def test_optima_of_several_rewards_are_refused() -> None:
    mdp = TabularMDP.random(num_objectives=2)
    for ask in (mdp.optimal_value, mdp.best_stationary_policy):
        with pytest.raises(ValueError, match="rewards: a maximum needs one reward a step, not 2"):
            ask()


def test_a_linear_utility_is_maximised_by_dynamic_programming() -> None:
    mdp = TabularMDP.random(num_states=4, num_terminal=1, horizon=5, seed=3)
    optimum = maximise_utility(mdp, lambda occupancy: (occupancy * mdp.rewards).sum())
    assert abs(optimum.value - mdp.optimal_value()) < 1e-12
    assert abs(optimum.upper_bound - mdp.optimal_value()) < 1e-12


def test_the_bound_of_a_concave_utility_holds_and_is_tight() -> None:
    grid = TabularMDP.grid(size=4, horizon=12, gamma=0.95)

    def coverage(occupancy: Tensor) -> Tensor:
        return (occupancy.sum(-1) + 0.125).log().sum()

    optimum = maximise_utility(grid, coverage, tolerance=1e-3)
    assert optimum.value <= optimum.upper_bound <= optimum.value + 1e-3
    assert abs(float(coverage(optimum.occupancy)) - optimum.value) < 1e-12
    assert abs(float(optimum.occupancy.sum()) - float(grid.occupancy(grid.optimal_policy()).sum())) < 1e-9
    for policies in (random_policies(grid, 100), random_policies(grid, 100, by_time=False)):
        utilities = torch.func.vmap(lambda policy: coverage(grid.occupancy(policy)))(policies)
        assert float(utilities.max()) < optimum.value - 0.1
    given = maximise_utility(
        grid, coverage, lambda occupancy: (1 / (occupancy.sum(-1, keepdim=True) + 0.125)).expand(-1, 4), tolerance=1e-3
    )
    assert abs(given.value - optimum.value) <= 1e-3


def test_a_utility_of_several_rewards_lies_above_what_scalarised_policies_reach() -> None:
    mdp = TabularMDP.random(num_objectives=2, seed=5)

    def fairness(occupancy: Tensor) -> Tensor:
        return torch.einsum("sa,sak->k", occupancy, mdp.rewards).log().sum()

    optimum = maximise_utility(mdp, fairness, tolerance=1e-8)
    assert optimum.upper_bound - optimum.value <= 1e-8
    utilities = torch.func.vmap(lambda policy: mdp.value(policy).log().sum())(random_policies(mdp, 1000))
    assert optimum.value - 0.2 < float(utilities.max()) < optimum.value


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    grid = TabularMDP.grid(size=4, horizon=3)  # most states cannot be reached
    with pytest.raises(ValueError, match=r"utility: its gradient is not finite .* smooth it"):
        maximise_utility(grid, lambda occupancy: occupancy.sum(-1).log().sum())
