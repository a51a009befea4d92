"""Oracles: the occupancy of an enumerated MDP, least squares, and χ² with fixed seeds."""

import pytest
import torch

from rlopt.estimators import importance_weights, log_ratio
from rlopt.estimators.occupancy_regression import averaged_regression, geometric_time, occupancy_regression
from tests.oracles import F64, assert_exact, assert_misses, normal, scalarised, standard_mdp, two_thetas

MDP = scalarised(standard_mdp())
THETA, SAMPLED_AT = two_thetas(MDP)
STATES = MDP.occupancy(MDP.softmax_policy(THETA)).sum(1)  # λ(s), [S]
ONE_HOT = torch.eye(MDP.num_states, dtype=F64)
FEATURES = normal(MDP.num_states, 2, seed=6)
# exceeded by chance once in a thousand times, for 3, 7 and 11 degrees of freedom
CRITICAL = {3: 16.27, 7: 24.32, 11: 31.26}


def expected_regression(features, sampled_at=THETA):
    """E[w] for uniform ρ."""
    rollout, probabilities = MDP.enumerate(sampled_at)
    weights = importance_weights(log_ratio(MDP.softmax_log_prob, THETA, rollout)) * probabilities * len(probabilities)
    density = 1 / MDP.num_states
    return occupancy_regression(features[rollout.states[:-1]], rollout.mask, MDP.gamma, features, density, weights)


def chi_square(times_or_states, probabilities):
    counts = torch.bincount(times_or_states, minlength=len(probabilities)).to(F64)
    expected = probabilities * counts.sum()
    return float(((counts - expected).square() / expected).sum())


@pytest.mark.parametrize("sampled_at", [THETA, SAMPLED_AT], ids=["on policy", "off policy"])
def test_with_one_feature_per_state_the_expected_weights_are_the_occupancy(sampled_at):
    assert_exact(expected_regression(ONE_HOT, sampled_at), STATES)


def test_the_expected_weights_are_the_least_squares_solution():
    solution = torch.linalg.lstsq(FEATURES, STATES[:, None]).solution[:, 0]
    assert_exact(expected_regression(FEATURES), solution)
    assert_misses(FEATURES @ solution, STATES)  # two features cannot say it all


def test_another_distribution_of_the_states_that_matter_is_another_solution():
    rho = torch.tensor([0.6, 0.3, 0.1], dtype=F64)
    rollout, probabilities = MDP.enumerate(THETA)
    states = rollout.states[:-1]
    drawn = FEATURES.repeat_interleave((10 * rho).round().long(), 0)  # ρ as ten states
    weights = (probabilities * len(probabilities)).expand(rollout.mask.shape)
    value = occupancy_regression(FEATURES[states], rollout.mask, MDP.gamma, drawn, rho[states], weights)
    root = rho.sqrt()[:, None]
    assert_exact(value, torch.linalg.lstsq(root * FEATURES, root * STATES[:, None]).solution[:, 0])
    assert_misses(value, expected_regression(FEATURES))


def test_counts_of_single_episodes_by_hand():
    states = torch.tensor([[0, 1], [1, 1], [1, 0]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    value = occupancy_regression(torch.eye(2, dtype=F64)[states], mask, 0.5, torch.eye(2, dtype=F64), 0.5)
    torch.testing.assert_close(value, torch.tensor([0.5, (0.75 + 1.5) / 2], dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("gamma", [0.5, 0.9])
def test_geometric_times_begin_at_zero(gamma):
    """χ² over k = 0 … 6 and all that is later; times that begin at 1 would be seen at once."""
    times = geometric_time(gamma, (20_000,), torch.Generator().manual_seed(0))
    assert times.dtype == torch.int64
    assert int(times.min()) == 0
    powers = gamma ** torch.arange(7, dtype=F64)
    probabilities = torch.cat([(1 - gamma) * powers, torch.tensor([gamma**7], dtype=F64)])
    assert chi_square(times.clamp(max=7), probabilities) < CRITICAL[7]
    assert chi_square((times + 1).clamp(max=7), probabilities) > 20 * CRITICAL[7]  # negative control
    shares = torch.bincount((times + 1).clamp(max=7), minlength=8) / len(times)
    assert_misses(shares.to(F64), probabilities)


def visits(times, rollout):
    """The state of every episode at its time; S where the episode was over by then."""
    over = times >= MDP.horizon
    states = rollout.states[times.clamp(max=MDP.horizon - 1), torch.arange(len(times))]
    return states.where(~over, MDP.num_states)


def test_states_at_geometric_times_have_the_occupancy_as_their_distribution():
    """χ² of state-visits against (1 − γ)λ(s), with a cell for times past the end."""
    rollout = MDP.sample(MDP.softmax_policy(THETA), 50_000, torch.Generator().manual_seed(1))
    times = geometric_time(MDP.gamma, (50_000,), torch.Generator().manual_seed(2))
    past = torch.tensor([MDP.gamma**MDP.horizon], dtype=F64)
    probabilities = torch.cat([(1 - MDP.gamma) * STATES, past])
    assert abs(float(probabilities.sum()) - 1) < 1e-12
    assert chi_square(visits(times, rollout), probabilities) < CRITICAL[3]
    assert chi_square(visits(times + 1, rollout), probabilities) > 5 * CRITICAL[3]  # negative control
    shares = torch.bincount(visits(times + 1, rollout), minlength=4) / 50_000
    assert_misses(shares.to(F64), probabilities)


def test_times_and_states_together_have_their_distribution():
    """χ² over the twelve pairs (k, s) with k < H, among them those with k = 0."""
    rollout = MDP.sample(MDP.softmax_policy(THETA), 50_000, torch.Generator().manual_seed(3))
    times = geometric_time(MDP.gamma, (50_000,), torch.Generator().manual_seed(4))
    within = times < MDP.horizon
    policy = MDP.softmax_policy(THETA)
    state, rows = MDP.initial, []
    for k in range(MDP.horizon):
        rows.append(MDP.gamma**k * state)
        state = torch.einsum("s,sa,sap->p", state, policy, MDP.transitions)
    probabilities = torch.stack(rows).flatten() / torch.stack(rows).sum()
    pairs = times * MDP.num_states + visits(times, rollout)
    assert chi_square(pairs[within], probabilities) < CRITICAL[11]
    later = times + 1 < MDP.horizon
    shifted = (times + 1) * MDP.num_states + visits(times + 1, rollout)
    assert chi_square(shifted[later], probabilities) > 20 * CRITICAL[11]  # negative control


def test_averaged_steps_approach_the_occupancy():
    size = 20_000
    rollout = MDP.sample(MDP.softmax_policy(THETA), size, torch.Generator().manual_seed(5))
    times = geometric_time(MDP.gamma, (size,), torch.Generator().manual_seed(6))
    drawn = torch.randint(MDP.num_states, (size,), generator=torch.Generator().manual_seed(7))
    errors = []
    for shift in (0, 1):
        same = visits(times + shift, rollout) == drawn
        value = averaged_regression(ONE_HOT[drawn], same, MDP.gamma, 0.05)
        errors.append(float((value - STATES).norm() / STATES.norm()))
    assert errors[0] < 0.05
    assert errors[1] > 2 * errors[0]  # negative control: times from 1


def test_averaged_steps_by_hand():
    # γ = 0.5, β = 0.25: y = 2, 0; w_1 = 0 + 0.5 · 2 · 1 = 1, w_2 = 1 − 0.5 · (0.5 − 0) · 0.5 = 0.875
    features, same = torch.tensor([[1.0], [0.5]], dtype=F64), torch.tensor([True, False])
    assert averaged_regression(features, same, 0.5, 0.25).tolist() == [(0 + 1 + 0.875) / 3]


def test_extreme_discounts():
    generator = torch.Generator().manual_seed(0)
    assert int(geometric_time(0.0, (1000,), generator).max()) == 0
    late = geometric_time(0.9999, (2000, 2), generator)
    assert late.shape == (2000, 2)
    assert abs(float(late.double().mean()) / 9999 - 1) < 0.1
    for gamma in (1.0, -0.1, 2.0):
        with pytest.raises(ValueError, match=r"^gamma: expected a number in \[0, 1\)"):
            geometric_time(gamma, (3,), generator)
