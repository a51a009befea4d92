"""Oracles: ∇J of an enumerated MDP, all pairs of episodes, and regressions by hand."""

import pytest
import torch

from rlopt.estimators import (
    BASELINES,
    mean_of_others,
    policy_gradient,
    returns_to_go,
    reward_to_go,
    total_return,
)
from rlopt.estimators.baselines import RIDGE
from tests.oracles import (
    F64,
    Expected,
    assert_exact,
    assert_misses,
    miss,
    normal,
    over_pairs,
    per_trajectory,
    scalarised,
    small_mdp,
    standard_mdp,
    two_thetas,
)

MDP = scalarised(standard_mdp())
SMALL = scalarised(small_mdp())
ENDING = scalarised(small_mdp(num_states=3, num_terminal=1))
ESTIMATORS = [total_return, reward_to_go]


def expected_gradient(mdp, theta, make_psi, baseline_of):
    rollout, probabilities = mdp.enumerate(theta)
    psi = make_psi(rollout.rewards, rollout.mask, mdp.gamma, baseline_of(rollout))
    return policy_gradient(mdp.softmax_log_prob, theta, rollout, Expected(psi, probabilities))


@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_a_baseline_of_state_and_time_leaves_the_gradient_exact(make_psi):
    theta, _ = two_thetas(MDP)
    table = 3 * normal(MDP.horizon, MDP.num_states, seed=9)

    def baseline_of(rollout):
        return table[torch.arange(MDP.horizon)[:, None], rollout.states[:-1]]

    assert_exact(expected_gradient(MDP, theta, make_psi, baseline_of), MDP.gradient(theta))


@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_a_baseline_of_the_past_leaves_the_gradient_exact(make_psi):
    theta, _ = two_thetas(MDP)

    def baseline_of(rollout):
        past = (rollout.actions + 2 * rollout.states[:-1] + rollout.rewards).cumsum(0)
        return torch.cat([torch.zeros_like(past[:1]), past[:-1]]) + rollout.states[:-1]

    assert_exact(expected_gradient(MDP, theta, make_psi, baseline_of), MDP.gradient(theta))


@pytest.mark.parametrize("make_psi", ESTIMATORS)
def test_a_baseline_of_the_own_action_would_be_biased(make_psi):
    """Negative control."""
    theta, _ = two_thetas(MDP)
    value = expected_gradient(MDP, theta, make_psi, lambda rollout: rollout.actions.to(F64))
    assert_misses(value, MDP.gradient(theta))


@pytest.mark.parametrize("mdp", [MDP, ENDING], ids=["full length", "ending early"])
@pytest.mark.parametrize("name", [name for name in BASELINES if name != "leave_one_out"])
def test_baselines_learned_from_earlier_episodes_leave_the_gradient_exact(name, mdp):
    theta, earlier_theta = two_thetas(mdp)
    earlier = mdp.sample(mdp.softmax_policy(earlier_theta), 50, torch.Generator().manual_seed(0))
    baseline = BASELINES[name]
    learned = baseline.fit(baseline.init(), earlier, returns_to_go(earlier.rewards, earlier.mask, mdp.gamma))

    def baseline_of(rollout):
        return baseline.values(learned, rollout, returns_to_go(rollout.rewards, rollout.mask, mdp.gamma))

    for make_psi in ESTIMATORS:
        assert_exact(expected_gradient(mdp, theta, make_psi, baseline_of), mdp.gradient(theta))
    rollout, _ = mdp.enumerate(theta)
    assert bool((baseline_of(rollout)[rollout.mask].abs().max() > 0.01) == (name != "none"))


def test_a_baseline_fitted_on_the_same_few_episodes_would_be_biased():
    """Negative control: the mean at every time of the very batch of two that it is subtracted from."""
    theta, _ = two_thetas(SMALL)
    rollout, probabilities = SMALL.enumerate(theta)
    baseline = BASELINES["time"]

    def estimator(batch):
        returns = returns_to_go(batch.rewards, batch.mask, SMALL.gamma)
        values = baseline.values(baseline.fit(baseline.init(), batch, returns), batch, returns)
        psi = reward_to_go(batch.rewards, batch.mask, SMALL.gamma, values)
        return policy_gradient(SMALL.softmax_log_prob, theta, batch, psi)

    assert_misses(over_pairs(estimator, rollout, probabilities), SMALL.gradient(theta))


@pytest.mark.parametrize("make_psi", ESTIMATORS)
@pytest.mark.parametrize("mdp", [SMALL, ENDING], ids=["full length", "ending early"])
def test_the_mean_of_the_other_episodes_leaves_the_gradient_exact(mdp, make_psi):
    theta, _ = two_thetas(mdp)
    rollout, probabilities = mdp.enumerate(theta)

    def estimator(batch):
        returns = returns_to_go(batch.rewards, batch.mask, mdp.gamma)
        values = BASELINES["leave_one_out"].values(torch.zeros(0), batch, returns)
        return policy_gradient(mdp.softmax_log_prob, theta, batch, make_psi(batch.rewards, batch.mask, mdp.gamma, values))

    assert_exact(over_pairs(estimator, rollout, probabilities), mdp.gradient(theta))


def test_the_mean_of_all_episodes_would_scale_the_gradient():
    """Negative control: with the own episode in the mean of N = 2 exactly (N − 1)/N of the gradient is left."""
    theta, _ = two_thetas(SMALL)
    rollout, probabilities = SMALL.enumerate(theta)

    def estimator(batch):
        returns = returns_to_go(batch.rewards, batch.mask, SMALL.gamma)
        values = returns.mean(1, keepdim=True).expand_as(returns)
        psi = reward_to_go(batch.rewards, batch.mask, SMALL.gamma, values)
        return policy_gradient(SMALL.softmax_log_prob, theta, batch, psi)

    value = over_pairs(estimator, rollout, probabilities)
    assert_misses(value, SMALL.gradient(theta))
    assert_exact(value, SMALL.gradient(theta) / 2)


def test_the_mean_of_others_by_hand():
    x = torch.tensor([[1.0, 2.0, 6.0], [4.0, 8.0, 50.0], [3.0, 70.0, 90.0]], dtype=F64)
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    expected = torch.tensor([[4.0, 3.5, 1.5], [8.0, 4.0, 6.0], [0.0, 3.0, 3.0]], dtype=F64)
    torch.testing.assert_close(mean_of_others(x, mask), expected, rtol=0, atol=1e-14)


def test_returns_to_go_are_relative_and_see_no_padding():
    rewards = torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 9e9]], dtype=F64)
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    expected = torch.tensor([[3.0, 2.0], [4.0, 2.0], [4.0, 0.0]], dtype=F64)
    assert torch.equal(returns_to_go(rewards, mask, 0.5), expected)


def test_a_baseline_lowers_the_variance_of_the_gradient():
    theta, _ = two_thetas(MDP)
    rollout, probabilities = MDP.enumerate(theta)
    mean_returns = returns_to_go(rollout.rewards, rollout.mask, MDP.gamma) @ probabilities

    def second_moment(baseline):
        def estimator(episode):
            psi = reward_to_go(episode.rewards, episode.mask, MDP.gamma, baseline)
            return policy_gradient(MDP.softmax_log_prob, theta, episode, psi)

        return float(probabilities @ per_trajectory(estimator, rollout).square().sum(1))

    assert second_moment(mean_returns[:, None]) < 0.9 * second_moment(None)


@pytest.mark.parametrize("name", list(BASELINES))
def test_before_any_data_every_baseline_of_earlier_data_is_zero(name):
    rollout, _ = SMALL.enumerate(two_thetas(SMALL)[0])
    returns = returns_to_go(rollout.rewards, rollout.mask, SMALL.gamma)
    values = BASELINES[name].values(BASELINES[name].init(), rollout, returns)
    assert values.shape == returns.shape
    assert values.dtype == returns.dtype
    assert float(values.abs().max()) == 0.0 or name == "leave_one_out"


def test_the_time_baseline_meets_longer_and_shorter_batches():
    rollout = MDP.sample(MDP.softmax_policy(two_thetas(MDP)[0]), 7, torch.Generator().manual_seed(0))
    returns = returns_to_go(rollout.rewards, rollout.mask, MDP.gamma)
    short, long = torch.tensor([5.0, 6.0], dtype=F64), torch.arange(1.0, 9.0, dtype=F64)
    values = BASELINES["time"].values(short, rollout, returns)
    assert values[:, 3].tolist() == [5.0, 6.0, 0.0, 0.0]
    assert BASELINES["time"].values(long, rollout, returns)[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


def test_the_linear_baseline_solves_the_ridge_regression():
    rollout = ENDING.sample(ENDING.softmax_policy(two_thetas(ENDING)[0]), 40, torch.Generator().manual_seed(0))
    returns = returns_to_go(rollout.rewards, rollout.mask, ENDING.gamma)
    baseline = BASELINES["linear"]
    learned = baseline.fit(baseline.init(), rollout, returns)
    rows, targets = [], []
    for t in range(ENDING.horizon):
        for n in range(40):
            if rollout.mask[t, n]:
                state, time = float(rollout.states[t, n]), t / 100
                rows.append([1.0, state, state**2, time, time**2, time**3])
                targets.append(float(returns[t, n]))
    features, target = torch.tensor(rows, dtype=F64), torch.tensor(targets, dtype=F64)
    ridge = RIDGE * features.square().mean(0)
    padded = torch.cat([features, torch.diag((ridge * len(rows)).sqrt())])
    solution = torch.linalg.lstsq(padded, torch.cat([target, torch.zeros(6, dtype=F64)])[:, None]).solution[:, 0]
    predicted = baseline.values(learned, rollout, returns)[rollout.mask]
    in_order = [float(v) for v in features @ solution]
    assert miss(predicted, torch.tensor(in_order, dtype=F64)) < 1e-4  # features are float32
    assert float((target - predicted).square().mean()) < float(target.var(correction=0))
    assert float(baseline.values(learned, rollout, returns)[~rollout.mask].abs().max()) == 0.0
