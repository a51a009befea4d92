"""Exact quantities of tabular MDPs against each other: dynamic programming, enumeration, differences, samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlopt.envs.tabular import DOWN, LEFT, RIGHT, UP, TabularMDP
from rlopt.envs.tabular_trajectories import cumulative_rows, draw
from rlopt.rollout import Rollout

FIXTURE = TabularMDP.random(num_objectives=2)
SCALAR = TabularMDP.random(seed=1)
ENDING = TabularMDP.random(num_states=4, num_terminal=2, num_objectives=2, seed=2)


def with_impossible_moves() -> TabularMDP:
    """Some of ρ and P is exactly 0."""
    transitions = TabularMDP.random(4, 2, 5, num_terminal=1, seed=3).transitions.clone()
    transitions[0, :, 1] = transitions[1, 0, 3] = transitions[2, 1, 0] = 0.0
    transitions /= transitions.sum(-1, keepdim=True)
    initial = torch.tensor([0.25, 0.0, 0.75, 0.0])
    return replace(TabularMDP.random(4, 2, 5, num_terminal=1, seed=3), initial=initial, transitions=transitions, gamma=1.0)


SPARSE = with_impossible_moves()
MDPS = {"fixture": FIXTURE, "scalar": SCALAR, "ending": ENDING, "sparse": SPARSE}
every_mdp = pytest.mark.parametrize("mdp", MDPS.values(), ids=MDPS.keys())


def random_theta(mdp: TabularMDP, seed: int = 0) -> Tensor:
    return torch.randn(mdp.num_parameters, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def discounts(mdp: TabularMDP) -> Tensor:
    return mdp.gamma ** torch.arange(mdp.horizon, dtype=torch.float64)


def returns(mdp: TabularMDP, rollout: Rollout) -> Tensor:
    """Σ_t γ^t r_t of every column, [N] or [N, K]."""
    return torch.einsum("t,tn...->n...", discounts(mdp), rollout.rewards)


def scores(mdp: TabularMDP, theta: Tensor, rollout: Rollout) -> Tensor:
    """∇ log π_θ(a_t | s_t), 0 on padding, [H, N, d], in closed form: e_a − π_s."""
    states, actions = rollout.states[:-1], rollout.actions
    result = torch.zeros(*states.shape, mdp.num_states, mdp.num_actions, dtype=torch.float64)
    one_hot = torch.nn.functional.one_hot(actions, mdp.num_actions).to(torch.float64)
    rows = (one_hot - mdp.softmax_policy(theta)[states]) * rollout.mask[..., None]
    index = states[..., None, None].expand(*states.shape, 1, mdp.num_actions)
    return result.scatter_(2, index, rows[:, :, None]).flatten(2)


def central_difference(function: Any, theta: Tensor, step: float = 1e-5) -> Tensor:
    """∂f/∂θ with θ's axis first."""
    shifts = step * torch.eye(len(theta), dtype=torch.float64)
    return torch.stack([(function(theta + shift) - function(theta - shift)) / (2 * step) for shift in shifts])


def test_the_fixture_has_1296_trajectories_and_each_stands_once() -> None:
    rollout, probabilities = FIXTURE.enumerate(random_theta(FIXTURE))
    assert rollout.mask.shape == (4, 1296)
    assert rollout.rewards.shape == (4, 1296, 2)
    assert probabilities.shape == (1296,)
    assert rollout.mask.all()
    assert torch.cat([rollout.states[:-1], rollout.actions]).unique(dim=1).shape[1] == 1296


@every_mdp
def test_the_value_is_the_mean_return_of_all_trajectories(mdp: TabularMDP) -> None:
    theta = random_theta(mdp)
    rollout, probabilities = mdp.enumerate(theta)
    value = mdp.value(mdp.softmax_policy(theta))
    assert value.shape == mdp.rewards.shape[2:]
    assert abs(float(probabilities.sum()) - 1) < 1e-12
    torch.testing.assert_close(probabilities @ returns(mdp, rollout), value, rtol=0, atol=1e-12)
    # negative control: undiscounted, or with the rewards of terminal states, it is another number
    if mdp.gamma < 1:
        assert ((probabilities @ rollout.rewards.sum(0) - value).abs() > 1e-3).all()


@every_mdp
def test_a_trajectorys_probability_is_the_product_along_it(mdp: TabularMDP) -> None:
    rollout, probabilities = mdp.enumerate(random_theta(mdp))
    for column in range(0, len(probabilities), 97):
        length = int(rollout.mask[:, column].sum())
        states, actions = rollout.states[:, column], rollout.actions[:, column]
        product = mdp.initial[states[0]] * rollout.log_probs[:length, column].sum().exp()
        for t in range(length if rollout.terminated[:, column].any() else length - 1):
            product = product * mdp.transitions[states[t], actions[t], states[t + 1]]
        assert abs(float(product - probabilities[column])) < 1e-15
    assert (probabilities > 0).all()


@every_mdp
@pytest.mark.parametrize("how", ["enumerated", "sampled"])
def test_every_column_ends_once_and_is_empty_afterwards(mdp: TabularMDP, how: str) -> None:
    theta = random_theta(mdp)
    if how == "enumerated":
        rollout = mdp.enumerate(theta)[0]
    else:
        rollout = mdp.sample(mdp.softmax_policy(theta), 500, torch.Generator().manual_seed(0))
    ends = rollout.terminated | rollout.truncated
    assert not (rollout.terminated & rollout.truncated).any()
    assert (ends.sum(0) == 1).all()
    last = rollout.mask.sum(0) - 1
    columns = torch.arange(ends.shape[1])
    assert ends[last, columns].all()
    assert not rollout.truncated[:-1].any()
    assert torch.equal(rollout.terminated.any(0), mdp.terminal[rollout.states[last + 1, columns]])
    assert not mdp.terminal[rollout.states[:-1][rollout.mask]].any()
    padding = ~rollout.mask
    for tensor in (rollout.rewards, rollout.log_probs, rollout.actions, rollout.states[1:]):
        assert (tensor[padding] == 0).all()
    assert rollout.log_probs.dtype == rollout.rewards.dtype == torch.float64
    assert padding.any() == mdp.terminal.any()
    expected = mdp.softmax_log_prob(theta, rollout.states[:-1], rollout.actions).where(rollout.mask, 0)
    torch.testing.assert_close(rollout.log_probs, expected, rtol=0, atol=1e-14)


def test_trajectories_that_cannot_happen_are_left_out() -> None:
    grid = TabularMDP.grid(size=3, horizon=4)
    rollout, probabilities = grid.enumerate(torch.zeros(grid.num_parameters, dtype=torch.float64))
    assert rollout.mask.shape == (4, 4**4)
    torch.testing.assert_close(probabilities, torch.full((256,), 1 / 256, dtype=torch.float64), rtol=0, atol=1e-16)


@every_mdp
def test_the_occupancy_counts_discounted_visits(mdp: TabularMDP) -> None:
    theta = random_theta(mdp)
    policy = mdp.softmax_policy(theta)
    occupancy = mdp.occupancy(policy)
    rollout, probabilities = mdp.enumerate(theta)
    weights = discounts(mdp)[:, None] * rollout.mask * probabilities
    index = rollout.states[:-1] * mdp.num_actions + rollout.actions
    counted = torch.zeros(mdp.num_parameters, dtype=torch.float64).index_add_(0, index.flatten(), weights.flatten())
    torch.testing.assert_close(occupancy.flatten(), counted, rtol=0, atol=1e-12)
    value = torch.einsum("sa,sa...->...", occupancy, mdp.rewards)
    torch.testing.assert_close(value, mdp.value(policy), rtol=0, atol=1e-12)
    full = float(discounts(mdp).sum())
    if mdp.terminal.any():
        assert float(occupancy.sum()) < full - 1e-3
    else:
        assert abs(float(occupancy.sum()) - (1 - mdp.gamma**mdp.horizon) / (1 - mdp.gamma)) < 1e-12
    assert (occupancy[mdp.terminal] == 0).all()


@every_mdp
def test_the_gradient_is_the_mean_of_return_times_score(mdp: TabularMDP) -> None:
    theta = random_theta(mdp)
    rollout, probabilities = mdp.enumerate(theta)
    gradient = mdp.gradient(theta)
    assert gradient.shape == (*mdp.rewards.shape[2:], mdp.num_parameters)
    score = scores(mdp, theta, rollout)

    def estimate(total_score: Tensor) -> Tensor:
        return torch.einsum("n,n...,nd->...d", probabilities, returns(mdp, rollout), total_score)

    torch.testing.assert_close(estimate(score.sum(0)), gradient, rtol=0, atol=1e-12)
    assert float((estimate(score[1:].sum(0)) - gradient).abs().max()) > 1e-3  # without the first action's score


@every_mdp
def test_gradient_and_hessian_agree_with_differences(mdp: TabularMDP) -> None:
    theta = random_theta(mdp)
    by_differences = central_difference(lambda x: mdp.value(mdp.softmax_policy(x)), theta)
    torch.testing.assert_close(mdp.gradient(theta), by_differences.movedim(0, -1), rtol=0, atol=1e-9)
    hessian = mdp.hessian(theta)
    torch.testing.assert_close(hessian, central_difference(mdp.gradient, theta).movedim(0, -1), rtol=0, atol=1e-9)
    torch.testing.assert_close(hessian, hessian.transpose(-1, -2), rtol=0, atol=1e-14)
    assert float(hessian.abs().max()) > 1e-3


def test_values_of_pairs_satisfy_the_bellman_equation_of_a_policy_that_depends_on_time() -> None:
    mdp = SPARSE
    policy = torch.softmax(torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), -1)
    values = mdp.state_action_values(policy)
    assert values.shape == (5, 4, 2)
    for t in range(4):
        following = (policy[t + 1] * values[t + 1]).sum(-1)
        expected = (mdp.rewards + mdp.gamma * mdp.transitions @ following) * ~mdp.terminal[:, None]
        torch.testing.assert_close(values[t], expected, rtol=0, atol=1e-14)
    value = (mdp.occupancy(policy) * mdp.rewards).sum()
    torch.testing.assert_close(mdp.value(policy), value, rtol=0, atol=1e-13)


@every_mdp
def test_sampled_returns_and_visits_have_the_exact_means(mdp: TabularMDP) -> None:
    policy = mdp.softmax_policy(random_theta(mdp))
    num = 20_000
    rollout = mdp.sample(policy, num, torch.Generator().manual_seed(0))
    sampled = returns(mdp, rollout).view(num, -1)
    errors = (sampled.mean(0) - mdp.value(policy).view(-1)) / (sampled.std(0) / num**0.5)
    assert float(errors.abs().max()) < 4
    visits = torch.nn.functional.one_hot(rollout.states[:-1] * mdp.num_actions + rollout.actions, mdp.num_parameters)
    counts = torch.einsum("t,tnc->nc", discounts(mdp), (visits * rollout.mask[..., None]).to(torch.float64))
    misses = (counts.mean(0) - mdp.occupancy(policy).flatten()).abs()
    assert (misses <= 4 * counts.std(0) / num**0.5).all()
    uniform = torch.full_like(policy, 1 / mdp.num_actions)  # negative control: the value of another policy is missed
    assert float(((sampled.mean(0) - mdp.value(uniform).view(-1)) / (sampled.std(0) / num**0.5)).abs().max()) > 8


def test_sampling_follows_time_and_draws_nothing_impossible() -> None:
    policy = SPARSE.optimal_policy()
    rollout = SPARSE.sample(policy, 5000, torch.Generator().manual_seed(0))
    sampled = returns(SPARSE, rollout)
    assert abs(float(sampled.mean()) - SPARSE.optimal_value()) < 4 * float(sampled.std()) / 5000**0.5
    states, actions, following = rollout.states[:-1], rollout.actions, rollout.states[1:]
    assert (SPARSE.transitions[states, actions, following][rollout.mask] > 0).all()
    chosen = policy[torch.arange(5)[:, None].expand_as(states), states, actions]
    assert (chosen[rollout.mask] == 1).all()
    assert (rollout.log_probs == 0).all()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2.0**-53])
def test_numbers_at_the_edge_draw_nothing_impossible(uniform: float, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.arange(5000)
    table = cumulative_rows(torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64).repeat(5000, 1))
    monkeypatch.setattr(torch, "rand", lambda num, **_: torch.full((num,), uniform, dtype=torch.float64))
    assert draw(table, rows, 5, torch.Generator()).unique().tolist() == [1 if uniform < 0.5 else 3]


def test_the_same_generator_gives_the_same_sample() -> None:
    policy = SCALAR.softmax_policy(random_theta(SCALAR))
    first, again, other = (SCALAR.sample(policy, 50, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first.actions, again.actions)
    assert not torch.equal(first.actions, other.actions)


def test_random_mdps_differ_by_seed_and_end_where_they_are_told_to() -> None:
    again = TabularMDP.random(seed=1)
    assert torch.equal(again.transitions, SCALAR.transitions)
    assert not torch.equal(TabularMDP.random(seed=2).transitions, SCALAR.transitions)
    assert ENDING.terminal.tolist() == [False, False, True, True]
    assert (ENDING.initial[2:] == 0).all()


def test_walls_of_the_grid_keep_you_in_place_and_slips_go_anywhere() -> None:
    grid, slippery = TabularMDP.grid(size=3), TabularMDP.grid(size=3, slip=0.4)
    moves = {(0, UP): 0, (0, LEFT): 0, (0, RIGHT): 1, (0, DOWN): 3, (4, UP): 1, (4, LEFT): 3, (8, DOWN): 8, (8, RIGHT): 8}
    for (state, action), following in moves.items():
        assert grid.transitions[state, action, following] == 1
    torch.testing.assert_close(slippery.transitions[4, UP, [1, 3, 5, 7]], torch.tensor([0.7, 0.1, 0.1, 0.1]).double())
    torch.testing.assert_close(slippery.transitions[0, UP, [0, 1, 3]], torch.tensor([0.8, 0.1, 0.1]).double())
    assert (grid.rewards == 0).all()


def test_the_goal_of_a_grid_is_reached_on_the_shortest_way() -> None:
    grid = TabularMDP.grid(size=4, horizon=10, gamma=0.9, goal=(3, 3))
    assert grid.terminal.nonzero().tolist() == [[15]]
    assert abs(grid.optimal_value() - 0.9**5) < 1e-15  # entered, and paid, with the sixth step
    assert TabularMDP.grid(size=4, horizon=5, goal=[3, 3]).optimal_value() == 0


VALID = {
    "initial": [0.5, 0.5],
    "transitions": [[[0.5, 0.5]], [[1.0, 0.0]]],
    "rewards": [[1.0], [0.0]],
    "gamma": 0.9,
    "horizon": 3,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"initial": [0.5, 0.4]},
        {"initial": [1.5, -0.5]},
        {"initial": [[1.0]]},
        {"initial": [0.5, 0.5], "terminal": [False, True]},
        {"transitions": [[[0.5, 0.4]], [[1.0, 0.0]]]},
        {"transitions": [[[0.5, 0.5]]]},
        {"rewards": [1.0, 0.0]},
        {"rewards": [[1.0], [float("nan")]]},
        {"gamma": 1.1},
        {"horizon": 0},
        {"horizon": 2.5},
        {"terminal": [False]},
    ],
)
def test_a_wrong_argument_is_named(wrong: dict[str, Any]) -> None:
    TabularMDP(**VALID)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))}: expected"):
        TabularMDP(**{**VALID, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("num_states", lambda: TabularMDP.random(num_states=0)),
        ("num_terminal", lambda: TabularMDP.random(num_states=3, num_terminal=3)),
        ("num_objectives", lambda: TabularMDP.random(num_objectives=0)),
        ("slip", lambda: TabularMDP.grid(slip=2.0)),
        ("goal", lambda: TabularMDP.grid(size=3, goal=(3, 0))),
        ("goal", lambda: TabularMDP.grid(size=3, goal=(0, 0))),
        ("goal", lambda: TabularMDP.grid(size=3, goal=8)),  # type: ignore[arg-type]
        ("policy", lambda: SCALAR.value(torch.ones(2, 3).double())),
        ("num", lambda: SCALAR.sample(torch.ones(3, 2).double() / 2, 0, torch.Generator())),
    ],
)
def test_constructors_and_methods_name_wrong_arguments(name: str, make: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        make()
