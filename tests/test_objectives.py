"""Utilities of vectors of returns, against closed forms (specification tests M1 and M5)."""

import itertools
import json
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from rlopt import objectives
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_optimum import maximise_utility
from rlopt.objectives import (
    KINDS,
    Chebyshev,
    Identity,
    Lagrangian,
    ProportionalFairness,
    Reciprocals,
    SmoothChebyshev,
    SquareRoots,
    UserUtility,
    VectorUtility,
    WeightedSum,
    agreed_num_objectives,
    as_vector_utility,
    check_preferences,
    deep_sea_treasure_utility,
    expected_scalarised_return,
    queue_utility,
    scalarised_expected_return,
    vector_utility_from_data,
    vector_utility_to_data,
)
from rlopt.plain_data import decode, encode
from rlopt.utilities import EntropyUtility

LOW, HIGH = (0.5, 0.25, 1.0), (4.0, 3.0, 3.5)
INSIDE = [(0.7, 1.3, 2.9), (3.9, 0.3, 1.1), (2.0, 2.0, 2.0)]
OUTSIDE = [(-7.0, 1.3, 9.0), (0.7, 3.5, 2.9), (-1.0, -1.0, -1.0), (5.0, 5.0, 5.0)]
WEIGHTS, IDEAL = (0.2, 0.5, 0.3), (4.0, 3.5, 5.0)


def vector(*numbers, dtype=torch.float64):
    return torch.tensor(numbers, dtype=dtype)


# ---------------------------------------------------------------------- every utility by hand: J -> f, c


def weighted_sum(point):
    return sum(w * x for w, x in zip(WEIGHTS, point)), list(WEIGHTS[: len(point)])


def regrets(point):
    return [w * (z - x) for w, z, x in zip(WEIGHTS, IDEAL, point)]


def chebyshev(point, augmentation):
    x, weights = regrets(point), WEIGHTS[: len(point)]
    active = x.index(max(x))
    slopes = [w * (k == active) + augmentation * w for k, w in enumerate(weights)]
    return -max(x) - augmentation * sum(x), slopes


def smooth_chebyshev(point, temperature):
    masses = [math.exp(x / temperature) for x in regrets(point)]
    slopes = [w * mass / sum(masses) for w, mass in zip(WEIGHTS, masses)]
    return -temperature * math.log(sum(masses)), slopes


def fairness(point, offset):
    return sum(math.log(x + offset) for x in point), [1 / (x + offset) for x in point]


def reciprocals(point, scale, offset):
    return sum(-scale / (x + offset) for x in point), [scale / (x + offset) ** 2 for x in point]


def square_roots(point, offsets):
    value = sum(math.sqrt(x + o) for x, o in zip(point, offsets))
    return value, [0.5 / math.sqrt(x + o) for x, o in zip(point, offsets)]


def lagrangian(point, threshold, multiplier):
    """J_0 with the constraint on the last objective."""
    slopes = [float(k == 0) for k in range(len(point))]
    slopes[-1] += multiplier
    return point[0] + multiplier * (point[-1] - threshold), slopes


def user(point):
    return sum(x**3 for x in point), [3 * x**2 for x in point]


CASES = {
    "weighted-sum": (lambda K, **box: WeightedSum(WEIGHTS[:K], **box), weighted_sum),
    "chebyshev": (lambda K, **box: Chebyshev(WEIGHTS[:K], IDEAL[:K], **box), lambda J: chebyshev(J, 0.0)),
    "augmented": (lambda K, **box: Chebyshev(WEIGHTS[:K], IDEAL[:K], 0.01, **box), lambda J: chebyshev(J, 0.01)),
    "smooth": (lambda K, **box: SmoothChebyshev(WEIGHTS[:K], IDEAL[:K], 0.3, **box), lambda J: smooth_chebyshev(J, 0.3)),
    "fairness": (lambda K, **box: ProportionalFairness(0.1, **box), lambda J: fairness(J, 0.1)),
    "reciprocals": (lambda K, **box: Reciprocals(7.0, 0.5, **box), lambda J: reciprocals(J, 7.0, 0.5)),
    "square-roots": (
        lambda K, **box: SquareRoots((0.1, 2.0, 0.0)[:K], **box),
        lambda J: square_roots(J, (0.1, 2.0, 0.0)),
    ),
    "lagrangian": (
        lambda K, **box: Lagrangian(0, (*[None] * (K - 1), 2.0), 0.1, initial_multiplier=0.75, **box),
        lambda J: lagrangian(J, 2.0, 0.75),
    ),
    "weighted lagrangian": (
        lambda K, **box: Lagrangian([1.0, 0.0, 0.0][:K], (*[None] * (K - 1), 2.0), 0.1, initial_multiplier=0.75, **box),
        lambda J: lagrangian(J, 2.0, 0.75),
    ),
    "user": (lambda K, **box: UserUtility(lambda J: (J**3).sum(), **box), user),
}
CONCAVE = [name for name in CASES if name != "user"]


def boxed(name, K):
    return CASES[name][0](K, low=LOW[:K], high=HIGH[:K])


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("point", INSIDE + OUTSIDE)
def test_value_and_gradient_are_those_of_the_formula_at_the_projected_point(name, K, point):
    """M1, in the box and beside it, where a derivative through the projection would be 0."""
    projected = [min(max(x, low), high) for x, low, high in zip(point[:K], LOW, HIGH)]
    value, slopes = CASES[name][1](projected)
    found, gradient = boxed(name, K).value_and_gradient(vector(*point[:K]))
    assert float(found) == pytest.approx(value, rel=1e-13, abs=1e-13)
    assert gradient.tolist() == pytest.approx(slopes, rel=1e-12, abs=1e-13)
    assert float(boxed(name, K)(vector(*point[:K]))) == pytest.approx(value, rel=1e-13, abs=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_without_a_box_nothing_is_projected(name):
    point = (4.5, 3.25, 0.75)
    found, gradient = CASES[name][0](3).value_and_gradient(vector(*point))
    value, slopes = CASES[name][1](point)
    assert float(found) == pytest.approx(value, rel=1e-13)
    assert gradient.tolist() == pytest.approx(slopes, rel=1e-12)


def test_the_identity_is_one_objective():
    value, gradient = Identity(high=2.0).value_and_gradient(vector(5.0))
    assert (float(value), gradient.tolist()) == (2.0, [1.0])
    assert Identity()(vector(1.5, 2.5).reshape(2, 1)).tolist() == [1.5, 2.5]


def test_a_tie_shares_the_supergradient():
    value, gradient = Chebyshev((0.5, 0.5), (24.0, 0.0)).value_and_gradient(vector(16.0, -8.0))
    assert (float(value), gradient.tolist()) == (-4.0, [0.25, 0.25])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_precision_is_the_arguments_and_nothing_keeps_a_graph(name, dtype):
    utility = boxed(name, 3)
    theta = vector(0.7, 1.3, 2.9, dtype=dtype).requires_grad_()
    returns = theta * 1.0
    with torch.no_grad():
        value, gradient = utility.value_and_gradient(returns)
    assert value.dtype == gradient.dtype == utility(returns).dtype == dtype
    assert value.shape == ()
    assert gradient.shape == (3,)
    assert not value.requires_grad
    assert not gradient.requires_grad
    assert theta.grad is None
    assert gradient.tolist() == pytest.approx(CASES[name][1]((0.7, 1.3, 2.9))[1], rel=1e-5)


@pytest.mark.slow  # torch takes seconds to import what tensors on "meta" need
@pytest.mark.parametrize("name", [name for name in CASES if name != "user"])
def test_on_another_device_nothing_is_left_behind(name):
    """Tensors on "meta" refuse to meet one of the CPU, as those on a GPU do."""
    assert boxed(name, 3)(torch.zeros(5, 3, device="meta")).device.type == "meta"


def test_inference_tensors_are_fine():
    with torch.inference_mode():
        returns = vector(0.7, 1.3)
    assert WeightedSum((1.0, 2.0)).value_and_gradient(returns)[1].tolist() == [1.0, 2.0]


def test_the_gradient_is_no_view_of_the_utility():
    utility = WeightedSum((1.0, 2.0))
    utility.value_and_gradient(vector(0.0, 0.0))[1].mul_(100.0)
    assert utility.value_and_gradient(vector(0.0, 0.0))[1].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", CASES)
def test_batches_are_row_by_row(name):
    """Three rows of three objectives: a mix-up of the axes would go unnoticed by shapes."""
    utility, rows = boxed(name, 3), torch.tensor(INSIDE + OUTSIDE, dtype=torch.float64)
    expected = torch.stack([utility(row) for row in rows])
    assert torch.allclose(utility(rows), expected, rtol=1e-14, atol=1e-14)
    assert utility(rows[:6].reshape(2, 3, 3)).shape == (2, 3)
    assert torch.allclose(utility(rows[:6].reshape(2, 3, 3)), expected[:6].reshape(2, 3), rtol=1e-14, atol=1e-14)
    assert utility(rows[:0]).shape == (0,)


def test_a_users_function_may_index_objectives():
    utility = UserUtility(lambda J: J[0] * J[1])
    assert utility(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist() == [2.0, 12.0]
    assert utility.value_and_gradient(vector(3.0, 4.0))[1].tolist() == [4.0, 3.0]
    assert UserUtility(lambda J: J[:1]).value_and_gradient(vector(3.0, 4.0))[1].tolist() == [1.0, 0.0]


# ---------------------------------------------------------------------- properties


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 30.0])
def test_smooth_chebyshev_is_below_chebyshev_by_at_most_mu_log_k(K, temperature):
    """M1; both bounds are reached: the lower one at a tie, the upper one as μ -> 0."""
    points = torch.randn(200, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    smooth = SmoothChebyshev(WEIGHTS[:K], IDEAL[:K], temperature)(points)
    exact = Chebyshev(WEIGHTS[:K], IDEAL[:K])(points)
    assert bool((smooth <= exact + 1e-12).all())
    assert bool((exact <= smooth + temperature * math.log(K) + 1e-12).all())
    tie = torch.tensor([[z - 1 / w for w, z in zip(WEIGHTS[:K], IDEAL[:K])]], dtype=torch.float64)
    assert float(SmoothChebyshev(WEIGHTS[:K], IDEAL[:K], temperature)(tie)) == pytest.approx(-1 - temperature * math.log(K))


@pytest.mark.parametrize("K", [1, 2, 3])
@pytest.mark.parametrize("name", CONCAVE)
def test_concave_ones_are_above_their_chords_and_esr_is_below_ser(name, K):
    generator = torch.Generator().manual_seed(1)
    low, high = vector(*LOW[:K]), vector(*HIGH[:K])
    left, right = (low + (high - low) * torch.rand(300, K, dtype=torch.float64, generator=generator) for _ in range(2))
    utility = boxed(name, K)
    assert bool((utility((left + right) / 2) >= (utility(left) + utility(right)) / 2 - 1e-12).all())
    assert float(expected_scalarised_return(utility, left)) <= float(scalarised_expected_return(utility, left)) + 1e-12


def test_the_checks_of_concavity_can_fail():
    cubic = boxed("user", 2)
    returns = torch.tensor([LOW[:2], HIGH[:2]], dtype=torch.float64)
    assert float(expected_scalarised_return(cubic, returns)) > float(scalarised_expected_return(cubic, returns)) + 1


def test_ser_and_esr_of_a_weighted_sum_agree():
    returns = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    utility = WeightedSum((0.3, -2.0, 1.0))
    ser, esr = scalarised_expected_return(utility, returns), expected_scalarised_return(utility, returns)
    assert float(ser) == pytest.approx(float(esr), abs=1e-14)


# ---------------------------------------------------------------------- the papers' utilities


def test_the_box_of_the_queues_is_what_can_be_earned():
    """Trap 7: the sum has another formula at γ = 1."""
    for horizon, gamma in [(500, 0.9999), (4, 0.9), (1, 0.3), (7, 0.0), (500, 1.0), (500, 1)]:
        utility = queue_utility(horizon, gamma)
        assert (utility.scale, utility.offset, utility.low) == (horizon, 1.0, 0.0)
        assert utility.high == pytest.approx(math.fsum(gamma**t for t in range(horizon)), rel=1e-11)


@pytest.mark.parametrize(
    ("queues", "first", "step", "bound"),
    [
        (6, 0.05, 0.033, -57.51),
        (8, 0.0125, 0.025, -151.64),
        (12, 0.0115, 0.01, -272.95),
        (16, 0.005, 0.006, -535.68),
        (32, 0.00175, 0.0015, -1919.03),
        (64, 0.00053, 0.00038, -6508.63),
    ],
)
def test_the_queues_upper_bounds(queues, first, step, bound):
    """f at what arrives, discounted, and f(0) = −M H."""
    utility = queue_utility(500, 0.9999)
    arrivals = sum(0.9999**t for t in range(500)) * (first + step * torch.arange(queues, dtype=torch.float64))
    assert float(utility(arrivals)) == pytest.approx(bound, abs=0.006)
    assert float(utility(torch.zeros(queues))) == -500 * queues
    assert float(utility(torch.full((queues,), -3.0))) == -500 * queues  # projected


CONVEX_FRONT = torch.tensor(
    [
        (0.7, -1),
        (8.2, -3),
        (11.5, -5),
        (14.0, -7),
        (15.1, -8),
        (16.1, -9),
        (19.6, -13),
        (20.3, -14),
        (22.4, -17),
        (23.7, -19),
    ],
    dtype=torch.float64,
)
NEVER_FINISHING = vector(0.0, -100.0)


def certified_optimum(utility, optimum, reachable, tolerance=1e-9, slopes=None):
    """f there: f(v) ≤ f(J) + ⟨c, v − J⟩ for a (super)gradient c of a concave f, so no v is better if no ⟨c, v − J⟩ > 0."""
    value, gradient = utility.value_and_gradient(optimum)
    slopes = gradient if slopes is None else slopes
    assert bool(((reachable - optimum) @ slopes <= tolerance).all())
    return float(value)


def test_deep_sea_treasure_by_the_papers_utility():
    """Specification 5.2; the first objective is the treasure (trap 8)."""
    utility, reachable = deep_sea_treasure_utility(), torch.cat([CONVEX_FRONT, NEVER_FINISHING[None]])
    assert certified_optimum(utility, vector(23.7, -19.0), reachable) == pytest.approx(14.0253, abs=5e-5)
    values = utility(reachable).sort(descending=True)
    assert values.values[:3].tolist() == pytest.approx([14.0253, 14.0025, 13.9426], abs=5e-5)
    assert reachable[values.indices[1:3]].tolist() == [[22.4, -17.0], [20.3, -14.0]]
    assert utility(torch.stack([CONVEX_FRONT[0], NEVER_FINISHING])).tolist() == pytest.approx([11.3038, 2.0], abs=5e-5)
    with pytest.raises(AssertionError):
        certified_optimum(utility, vector(22.4, -17.0), reachable)


def uniform_returns_of_deep_sea_treasure() -> torch.Tensor:
    """J of uniform actions: 11 × 11 cells, column k has its treasure at a depth and rock below; 100 steps at most."""
    depths = [1, 2, 3, 4, 4, 4, 7, 7, 9, 10, 11]
    treasures = {(depths[column], column): float(value) for column, value in enumerate(CONVEX_FRONT[:, 0])}
    probability, returns = {(0, 0): 1.0}, [0.0, 0.0]
    for _ in range(100):
        following: dict[tuple[int, int], float] = {}
        for (row, column), mass in probability.items():
            returns[1] -= mass
            for down, right in [(1, 0), (-1, 0), (0, 1), (0, -1)]:
                cell = (row + down, column + right)
                inside = 0 <= cell[0] < 11 and 0 <= cell[1] < 11 and cell[0] <= depths[cell[1]]
                cell = cell if inside else (row, column)
                if cell in treasures:
                    returns[0] += mass / 4 * treasures[cell]
                else:
                    following[cell] = following.get(cell, 0.0) + mass / 4
        probability = following
    return vector(*returns)


def test_uniform_actions_in_deep_sea_treasure():
    returns = uniform_returns_of_deep_sea_treasure()
    assert returns.tolist() == pytest.approx([3.0588, -9.2263], abs=5e-5)
    assert float(deep_sea_treasure_utility()(returns)) == pytest.approx(11.5945, abs=5e-5)


CHEBYSHEV = Chebyshev((0.5, 0.5), (23.7, -1.0))


def test_chebyshev_on_deep_sea_treasure_ser_and_esr():
    """M5: only a mixture is optimal for SER, and by ESR that mixture is worse than a deterministic policy."""
    episodes = torch.cat([CONVEX_FRONT[4].expand(2, 2), CONVEX_FRONT[5].expand(8, 2)])
    assert torch.allclose(episodes.mean(0), vector(15.9, -8.8))
    assert float(scalarised_expected_return(CHEBYSHEV, episodes)) == pytest.approx(-3.9, abs=1e-12)
    assert float(expected_scalarised_return(CHEBYSHEV, episodes)) == pytest.approx(-4.06, abs=1e-12)
    deterministic = CHEBYSHEV(CONVEX_FRONT)
    assert float(deterministic.max()) == pytest.approx(-4.0, abs=1e-12)
    assert CONVEX_FRONT[deterministic.argmax()].tolist() == [16.1, -9.0]
    same = CONVEX_FRONT[5].expand(10, 2)
    assert float(scalarised_expected_return(CHEBYSHEV, same)) == float(expected_scalarised_return(CHEBYSHEV, same))


def test_the_optimum_over_all_mixtures_is_that_mixture():
    """M5, twice: by a supergradient, and over the edges, on each of which f bends only where the regrets are equal."""
    reachable = torch.cat([CONVEX_FRONT, NEVER_FINISHING[None]])
    slopes = vector(0.25, 0.25)  # between those of the two regrets, 3.9 each
    assert certified_optimum(CHEBYSHEV, vector(15.9, -8.8), reachable, slopes=slopes) == pytest.approx(-3.9, abs=1e-12)
    best = max(
        (float(CHEBYSHEV((1 - p) * a + p * b)), ((1 - p) * a + p * b).tolist())
        for a, b in itertools.combinations(reachable, 2)
        for p in (0.0, 1.0, crossing(a, b))
    )
    assert best[0] == pytest.approx(-3.9, abs=1e-12)
    assert best[1] == pytest.approx([15.9, -8.8])


def crossing(a, b):
    """p in [0, 1] for which (1 − p) a + p b regrets both objectives alike, or 0."""
    gaps = [float((23.7 - x[0]) - (-1.0 - x[1])) for x in (a, b)]
    p = gaps[0] / (gaps[0] - gaps[1]) if gaps[0] != gaps[1] else 0.0
    return p if 0 <= p <= 1 else 0.0


def test_the_oracle_maximises_a_utility_of_returns_as_one_of_the_occupancy():
    """F(λ) = f(⟨λ, r⟩): `__call__` may be differentiated, by torch.func too; the bound proves the derivatives right."""
    mdp = TabularMDP.random(num_objectives=2, seed=5)
    utility = Reciprocals(1.0)
    optimum = maximise_utility(
        mdp, lambda occupancy: utility(torch.einsum("sa,sak->k", occupancy, mdp.rewards)), tolerance=1e-8
    )
    assert optimum.upper_bound - optimum.value <= 1e-8
    returns = torch.einsum("sa,sak->k", optimum.occupancy, mdp.rewards)
    best = certified_optimum(utility, returns, deterministic_returns(mdp), 2e-8)
    assert best == pytest.approx(optimum.value, abs=1e-12)


def deterministic_returns(mdp):
    """J of every deterministic policy that does not depend on time, [A^S, K]."""
    choices = itertools.product(range(mdp.num_actions), repeat=mdp.num_states)
    return torch.stack([mdp.value(torch.eye(mdp.num_actions, dtype=torch.float64)[list(choice)]) for choice in choices])


# ---------------------------------------------------------------------- constraints


def frontier(x):
    """J(x) = (−(x − 2)², −x²), so that the best x for multiplier μ is 2 / (1 + μ)."""
    return torch.stack([-((x - 2) ** 2), -(x**2)])


@pytest.mark.parametrize(
    ("threshold", "x", "multiplier"),
    [(-1.0, 1.0, 1.0), (-0.25, 0.5, 3.0), (-4.0, 2.0, 0.0), (-9.0, 2.0, 0.0)],
)
def test_multipliers_settle_where_the_constraint_holds(threshold, x, multiplier):
    """x = min(2, √−threshold) and, from the stationary point, μ = 2/x − 1: binding, and not."""
    utility = Lagrangian(0, (None, threshold), step_size=0.4, initial_multiplier=0.5)
    multipliers = utility.first_multipliers(2).double()
    for _ in range(700):
        multipliers = utility.ascend(multipliers, frontier(2 / (1 + multipliers[1])))
    assert multipliers.tolist() == pytest.approx([0.0, multiplier], abs=1e-9)
    assert float(2 / (1 + multipliers[1])) == pytest.approx(x, abs=1e-9)


def test_ascent_by_c_and_multipliers_together_solves_the_constrained_problem():
    """As an agent does it: a step along Σ_k c_k ∇J_k, then `ascend`."""
    utility = Lagrangian(0, (None, -1.0), step_size=0.3)
    x, multipliers = vector(3.0).squeeze(), utility.first_multipliers(2).double()
    for _ in range(400):
        returns = frontier(x)
        _, slopes = utility.value_and_gradient(returns, multipliers)
        multipliers = utility.ascend(multipliers, returns)
        x = x + 0.1 * (slopes @ vector(-2 * float(x - 2), -2 * float(x)))
    assert float(x) == pytest.approx(1.0, abs=1e-9)
    assert multipliers.tolist() == pytest.approx([0.0, 1.0], abs=1e-9)
    value, slopes = utility.value_and_gradient(frontier(x), multipliers)
    assert float(value) == pytest.approx(-1.0, abs=1e-8)
    assert slopes.tolist() == pytest.approx([1.0, 1.0], abs=1e-9)


def test_multipliers_stop_at_their_bound_and_ignore_the_box():
    utility = Lagrangian((1.0, 0.0), (None, 5.0), step_size=1.0, max_multiplier=10.0, low=0.0, high=1.0)
    multipliers = utility.ascend(utility.first_multipliers(2), torch.tensor([0.0, -3.0]))
    assert multipliers.tolist() == [0.0, 8.0]  # of J itself: its projection, 0, would give 5
    assert utility.ascend(multipliers, torch.tensor([0.0, -3.0])).tolist() == [0.0, 10.0]
    assert utility.ascend(multipliers, torch.tensor([0.0, 20.0])).tolist() == [0.0, 0.0]
    assert utility.violations(torch.tensor([[0.0, 4.0], [-9.0, 6.0]])).tolist() == [[0.0, 1.0], [0.0, 0.0]]
    assert utility.ascend(multipliers.requires_grad_(), torch.tensor([0.0, -3.0])).requires_grad is False


def test_a_constraint_on_the_objective_itself_and_several_constraints():
    utility = Lagrangian(1, (1.0, 2.0), step_size=0.5)
    multipliers = utility.ascend(utility.first_multipliers(2), torch.tensor([0.0, 0.0]))
    assert multipliers.tolist() == [0.5, 1.0]
    value, slopes = utility.value_and_gradient(vector(3.0, 4.0), multipliers)
    assert float(value) == 4.0 + 0.5 * 2.0 + 1.0 * 2.0
    assert slopes.tolist() == [0.5, 2.0]


def test_a_step_size_of_zero_keeps_a_fixed_penalty():
    utility = Lagrangian(0, (None, 5.0), step_size=0.0, initial_multiplier=2.0)
    assert utility.ascend(utility.first_multipliers(2), torch.tensor([0.0, -3.0])).tolist() == [0.0, 2.0]


def test_ordinary_utilities_have_no_multipliers():
    utility = WeightedSum((1.0, 2.0))
    multipliers = utility.first_multipliers(2)
    assert multipliers.shape == (0,)
    assert utility.ascend(multipliers, vector(1.0, 2.0)) is multipliers


# ---------------------------------------------------------------------- from whatever stands for one

TEXTS = [
    ("identity", Identity()),
    ("identity;low=-1;high=1", Identity(low=-1.0, high=1.0)),
    ("weighted-sum:0.5,0.5", WeightedSum((0.5, 0.5))),
    ("weighted-sum:1,", WeightedSum((1.0,))),
    ("chebyshev:0.5,0.5;ideal=23.7,-1", CHEBYSHEV),
    ("chebyshev:0.5,0.5;ideal=3;augmentation=0.01;low=none,0", Chebyshev((0.5, 0.5), 3.0, 0.01, low=(None, 0.0))),
    ("smooth-chebyshev:0.5,0.5;ideal=23.7,-1;temperature=0.1", SmoothChebyshev((0.5, 0.5), (23.7, -1.0), 0.1)),
    ("fairness:1", ProportionalFairness(1.0)),
    ("fairness:1,;low=0", ProportionalFairness((1.0,), low=0.0)),
    ("reciprocals:500;low=0;high=487.7", Reciprocals(500.0, low=0.0, high=487.7)),
    ("reciprocals:500,2;offset=1,1e-05", Reciprocals((500.0, 2.0), (1.0, 1e-5))),
    ("square-roots:1,101;low=0,-100;high=none,0", deep_sea_treasure_utility()),
    ("lagrangian:0;thresholds=none,0.5;step-size=0.01", Lagrangian(0, (None, 0.5), 0.01)),
    (
        "lagrangian:0.5,0.5,0;thresholds=none,none,-3;step-size=0.01;initial-multiplier=1;max-multiplier=10",
        Lagrangian((0.5, 0.5, 0.0), (None, None, -3.0), 0.01, 1.0, 10.0),
    ),
]


@pytest.mark.parametrize(("text", "utility"), TEXTS)
def test_texts_and_files_go_there_and_back(text, utility):
    assert as_vector_utility(text) == utility
    assert str(utility) == text
    data = json.loads(json.dumps(vector_utility_to_data("utility", utility), allow_nan=False))
    assert vector_utility_from_data(data) == utility
    assert decode("utility", json.loads(json.dumps(encode("utility", utility)))) == utility
    assert hash(as_vector_utility(text)) == hash(utility)


def test_every_utility_is_in_those_tests_and_in_the_grammar():
    assert {type(utility) for _, utility in TEXTS} == set(KINDS.values())
    assert objectives.__doc__ is not None
    for line in objectives.__doc__.split("\n"):
        if line.startswith("    "):
            as_vector_utility(line.split()[0])
    assert all(kind in objectives.__doc__ for kind in KINDS)


@pytest.mark.parametrize(
    ("value", "utility"),
    [
        ("0.5, 0.5", WeightedSum((0.5, 0.5))),
        ("-1,2;high=0", WeightedSum((-1.0, 2.0), high=0.0)),
        ([0.5, 0.5], WeightedSum((0.5, 0.5))),
        (np.array([1, 2]), WeightedSum((1.0, 2.0))),
        (torch.tensor([0.25, 0.75]), WeightedSum((0.25, 0.75))),
        (" Weighted_Sum : 1, 2 ; HIGH = 3 ", WeightedSum((1.0, 2.0), high=3.0)),
        ("chebyshev:1,1;low=-inf;high=inf,2;ideal=0", Chebyshev((1.0, 1.0), 0.0, high=(None, 2.0))),
        ("reciprocals;scale=2", Reciprocals(2.0)),
        ("queue:500,0.9999", queue_utility(500, 0.9999)),
        ("queue:500,1", queue_utility(500, 1.0)),
        ("deep-sea-treasure", deep_sea_treasure_utility()),
        (CHEBYSHEV, CHEBYSHEV),
    ],
)
def test_whatever_stands_for_a_utility_becomes_one(value, utility):
    assert as_vector_utility(value) == utility
    assert as_vector_utility(str(utility)) == utility


def quarter(returns):
    return returns.sum() / 4


def test_a_function_trains_and_is_not_stored():
    utility = as_vector_utility(quarter)
    assert isinstance(utility, UserUtility)
    assert utility.value_and_gradient(vector(1.0, 3.0))[1].tolist() == [0.25, 0.25]
    for refused in (lambda: vector_utility_to_data("utility", utility), lambda: encode("utility", utility)):
        with pytest.raises(ValueError, match=r"^utility: user:quarter is a user's own and cannot be saved"):
            refused()


@dataclass(frozen=True)
class Product(VectorUtility):
    """A user's class, under a name that rlopt has given already."""

    kind: ClassVar[str] = "identity"

    def evaluate(self, point, multipliers):
        return point.prod(-1)


def test_a_users_subclass_trains_and_is_not_stored():
    assert Product(high=2.0).value_and_gradient(vector(3.0, 1.5))[1].tolist() == [1.5, 2.0]
    with pytest.raises(ValueError, match=r"reward_utility: .* cannot be saved"):
        encode("reward_utility", Product())


@pytest.mark.parametrize(
    "data",
    [
        {"vector_utility": "user", "function": "os.system"},
        {"vector_utility": ["chebyshev"]},
        {"vector_utility": "weighted-sum"},
        {"vector_utility": "weighted-sum", "weights": "0.5,0.5"},
        {"vector_utility": "weighted-sum", "weights": [10**400]},
        {"vector_utility": "weighted-sum", "weights": [float("nan")]},
        {"vector_utility": "weighted-sum", "weights": [1.0], "more": 1},
        {"vector_utility": "weighted-sum", "weights": {"vector_utility": "identity"}},
        {"vector_utility": "lagrangian", "objective": 10**400, "thresholds": [1.0], "step_size": 1.0},
    ],
)
def test_what_is_no_utility_in_a_file_is_refused(data):
    with pytest.raises(ValueError, match="utility: the file holds no utility of rlopt"):
        decode("utility", data)


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chebishev:1,1", "utility: expected one of .*, got 'chebishev'; did you mean 'chebyshev'"),
        ("deep-see-treasure", "did you mean 'deep-sea-treasure'"),
        ("", "utility: expected one of"),
        ("chebyshev:1,1", r"expected chebyshev:WEIGHTS;ideal=IDEAL\[;augmentation=AUGMENTATION\].*: ideal missing"),
        ("chebyshev", "weights, ideal missing"),
        ("chebyshev:1,1;ideal=0;ideel=3", "argument: expected one of .*, got 'ideel'; did you mean 'ideal'"),
        ("chebyshev:1,1;ideal=0;ideal=3", "ideal is given twice"),
        ("chebyshev:1,1;weights=2,2;ideal=3", "weights is given twice"),
        ("chebyshev:1,1;ideal=0,b", "'b' is no number"),
        ("chebyshev:1,1;ideal=", "'' is no number"),
        ("chebyshev:1,1;ideal=0;", "argument: expected one of"),
        ("weighted-sum:0.5,,1", "'' is no number"),
        ("weighted-sum:1", r"weights: expected a sequence of numbers, one for each objective, got 1"),
        ("weighted-sum:nan,1", "weights: expected a number, got nan"),
        ("identity:1", "nothing follows a colon"),
        ("queue:500", "utility: expected queue:HORIZON,GAMMA, got 'queue:500'"),
        ("queue:500,1;low=0", "utility: expected queue:HORIZON,GAMMA"),
        ("queue:0,1", "horizon: expected an integer of at least 1, got 0"),
        ("queue:5,1.5", r"gamma: expected a number in \[0, 1\], got 1.5"),
        ("deep-sea-treasure:1", "utility: expected deep-sea-treasure, got"),
        ("lagrangian:2;thresholds=none,1;step-size=1", r"objective: expected .* in \[0, 1\], got 2"),
    ],
)
def test_a_text_that_says_nothing_is_an_error_that_says_what_would(text, message):
    with pytest.raises(ValueError, match=message):
        as_vector_utility(text)


@pytest.mark.parametrize("value", [None, 1.0, True, Chebyshev, {"weights": [1.0]}, [], [[1.0, 2.0]], ["a", "b"], object()])
def test_anything_else_stands_for_no_utility(value):
    with pytest.raises(ValueError, match=r"^utility: expected"):
        as_vector_utility(value)


def test_a_utility_of_the_occupancy_is_another_thing():
    with pytest.raises(ValueError, match=r"utility: .*one of the occupancy: EntropyUtility"):
        as_vector_utility(EntropyUtility(0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightedSum((1.0, math.inf)), "weights: expected a number, got inf"),
        (lambda: WeightedSum("0.5"), "weights: expected a sequence"),
        (lambda: WeightedSum((True, 1.0)), "weights: expected a number, got True"),
        (lambda: Chebyshev((1.0, -1.0), 0.0), "weights: expected numbers that are not negative"),
        (lambda: Chebyshev((0.0, 0.0), 0.0), "weights: expected .* not all 0"),
        (lambda: Chebyshev((1.0, 1.0), (1.0, 2.0, 3.0)), "ideal: expected 2 numbers, as weights has, got 3"),
        (lambda: Chebyshev((1.0, 1.0), 0.0, -0.1), "augmentation: expected a number of at least 0"),
        (lambda: SmoothChebyshev((1.0, 1.0), 0.0, 0.0), "temperature: expected a positive number"),
        (lambda: SmoothChebyshev((-1.0, 1.0), 0.0, 1.0), "weights: expected numbers that are not negative"),
        (lambda: ProportionalFairness(None), "offset: expected a number, got None"),
        (lambda: Reciprocals(-1.0), "scale: expected positive numbers, got -1"),
        (lambda: Reciprocals((1.0, 0.0)), "scale: expected positive numbers"),
        (lambda: Reciprocals((1.0, 1.0), (1.0, 1.0, 1.0)), "offset: expected 2 numbers, as scale has, got 3"),
        (lambda: SquareRoots((1.0, 2.0), low=(0.0, 0.0, 0.0)), "low: expected 2 numbers, as offsets has, got 3"),
        (lambda: Identity(low=(0.0, 1.0)), "low: expected 1 number, got 2"),
        (lambda: Identity(low=2.0, high=1.0), "low: expected at most high = 1 for objective 0, got 2"),
        (lambda: ProportionalFairness(1.0, low=(0.0, 2.0), high=1.0), "low: expected at most high = 1 for objective 1, got 2"),
        (lambda: Identity(low=math.inf), "low: expected a number, got inf"),
        (lambda: Lagrangian(0, (None, None), 0.1), "thresholds: expected .* at least one"),
        (lambda: Lagrangian(0, 1.0, 0.1), "thresholds: expected a sequence"),
        (lambda: Lagrangian(True, (1.0, 2.0), 0.1), "objective: expected"),
        (lambda: Lagrangian(-1, (1.0, 2.0), 0.1), "objective: expected"),
        (lambda: Lagrangian((1.0,), (1.0, 2.0), 0.1), "thresholds: expected 1 number, as objective has, got 2"),
        (lambda: Lagrangian(0, (1.0, 2.0), -0.1), "step_size: expected a number of at least 0"),
        (lambda: Lagrangian(0, (1.0, 2.0), 0.1, -1.0), "initial_multiplier: expected a number of at least 0"),
        (lambda: Lagrangian(0, (1.0, 2.0), 0.1, 2.0, 1.0), r"initial_multiplier: expected a number in \[0, 1\], got 2"),
        (lambda: Lagrangian(0, (1.0, 2.0), 0.1, max_multiplier=-1.0), "max_multiplier: expected a number of at least 0"),
        (lambda: UserUtility(3.0), "function: expected a function"),
        (lambda: UserUtility(Identity), "function: expected a function"),
    ],
)
def test_impossible_fields_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("K", [1, 3])
@pytest.mark.parametrize("name", CASES)
def test_another_number_of_objectives_is_refused(name, K):
    utility = boxed(name, 2)
    assert utility.num_objectives == 2
    message = r"utility: .*: expected returns of 2 objectives, got "
    for use in (utility, utility.value_and_gradient, utility.checked):
        with pytest.raises(ValueError, match=f"{message}{K}"):
            use(torch.ones(K))
    with pytest.raises(ValueError, match=f"{message}{K}"):
        utility.first_multipliers(K)


def test_how_many_objectives_a_utility_is_of():
    assert Identity().num_objectives == 1
    assert ProportionalFairness(1.0, low=0.0).num_objectives is None
    assert ProportionalFairness(1.0, low=(0.0, None)).num_objectives == 2
    assert UserUtility(quarter).num_objectives is None
    assert queue_utility(5, 1.0).num_objectives is None
    assert deep_sea_treasure_utility().num_objectives == 2
    with pytest.raises(ValueError, match="utility: identity: expected returns of 1 objective, got 2"):
        Identity()(vector(1.0, 2.0))


@pytest.mark.parametrize(
    ("utility", "returns", "message"),
    [
        (SquareRoots(0.0), (1.0, 0.0), r"derivative is inf for objective 1, where J_1 = 0, at J = \(1, 0\); give it a box"),
        (SquareRoots(0.0), (-2.0, 1.0), "derivative is nan for objective 0, where J_0 = -2"),
        # a finite derivative, of the wrong branch, if taken as it comes
        (ProportionalFairness(1.0), (0.0, -3.0), "derivative is nan for objective 1, where J_1 = -3"),
        (Reciprocals(500.0), (0.0, -3.0), "derivative is nan for objective 1, where J_1 = -3"),
        (Reciprocals(500.0), (-1.0, 0.0), "derivative is nan for objective 0, where J_0 = -1"),
        (UserUtility(lambda J: J.sum() - math.inf), (1.0, 1.0), r"its value is -inf, at J = \(1, 1\)"),
        (Identity(), (math.nan,), "returns: expected finite numbers, got nan for objective 0"),
        (Chebyshev((1.0, 1.0), 0.0), (1.0, math.inf), "returns: expected finite numbers, got inf for objective 1"),
        (UserUtility(lambda J: 3.0), (1.0, 1.0), "utility: user:<lambda>: expected a scalar tensor of the returns, got 3.0"),
        (UserUtility(lambda J: J), (1.0, 1.0), "utility: user:<lambda>: expected a scalar tensor"),
        (UserUtility(lambda J: torch.tensor(1.0)), (1.0, 1.0), "does not depend on the returns"),
    ],
)
def test_where_there_is_no_value_or_derivative_the_objective_is_named(utility, returns, message):
    with pytest.raises(ValueError, match=message):
        utility.value_and_gradient(vector(*returns))


def test_a_box_is_the_remedy():
    assert Reciprocals(500.0, low=0.0).value_and_gradient(vector(0.0, -3.0))[1].tolist() == [500.0, 500.0]


@pytest.mark.parametrize("utility", [SquareRoots(0.0), ProportionalFairness(0.0), Reciprocals(1.0, 0.0)])
def test_outside_its_domain_a_utility_is_not_a_number_and_training_says_where(utility):
    returns = torch.tensor([[1.0, 1.0], [1.0, -2.0], [-3.0, 1.0]])
    assert utility(returns).isfinite().tolist() == [True, False, False]
    for use in (utility.checked, lambda rows: expected_scalarised_return(utility, rows)):
        with pytest.raises(ValueError, match=r"utility: .*: its value is nan, at J = \(1, -2\)"):
            use(returns)
    assert utility.checked(returns[:1]).shape == (1,)


def test_other_tensors_than_returns_are_refused():
    utility = WeightedSum((1.0, 2.0))
    for returns in (torch.tensor([1, 2]), torch.tensor(1.0), [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"returns: expected a tensor \[..., K\] of floating-point numbers"):
            utility(returns)
    with pytest.raises(ValueError, match=r"returns: expected a vector \[K\], got shape \(3, 2\)"):
        utility.value_and_gradient(torch.ones(3, 2))
    for returns in (torch.ones(2), torch.ones(0, 2)):
        with pytest.raises(ValueError, match=r"returns: expected \[N, K\] of at least one episode"):
            expected_scalarised_return(utility, returns)
    with pytest.raises(ValueError, match=r"multipliers: expected shape \(2,\), got \(0,\)"):
        Lagrangian(0, (None, 1.0), 0.1).value_and_gradient(vector(1.0, 2.0), torch.zeros(0))


def test_preferences():
    for good in ([0.5, 0.5], [[1.0, 0.0], [0.25, 0.75]], torch.full((7, 3), 1 / 3), [1.0], np.eye(3)):
        check_preferences(good)
    for bad, message in [
        ([0.5, 0.6], "preferences: expected weights that sum to one, got 1.1"),
        ([[0.5, 0.5], [0.2, 0.2]], "sum to one, got 0.4"),
        ([1.5, -0.5], "not negative, got -0.5"),
        ([math.nan, 1.0], "finite and not negative, got nan"),
        (["a"], r"preferences: expected numbers \[..., K\]"),
        (1.0, r"expected numbers \[..., K\], got shape \(\)"),
        ([], r"expected numbers \[..., K\], got shape \(0,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            check_preferences(bad)
    with pytest.raises(ValueError, match=r"^weights: expected"):
        check_preferences([2.0], "weights")
    check_preferences(np.float32([0.3, 0.3, 0.4]), num_objectives=3)
    for other in ([0.5, 0.5], np.eye(3)):
        with pytest.raises(ValueError, match="preferences: expected 3 numbers, one an objective, got shape"):
            check_preferences(other, num_objectives=3)


def test_whoever_says_how_many_objectives_there_are_has_to_say_the_same():
    assert agreed_num_objectives(None, None, None) is None
    for said in itertools.product((None, 2), repeat=3):
        assert agreed_num_objectives(*said) == (2 if any(said) else None)
    for said, message in [
        ((3, 2, None), "num_objectives: expected 2, as the utility is one of so many, got 3"),
        ((3, 2, 3), "num_objectives: expected 2, as the utility is one of so many, got 3"),
        ((3, None, 2), "env: it pays 2 rewards a step, and num_objectives is 3"),
        ((None, 3, 1), "env: it pays 1 reward a step, and the utility is one of 3"),
        ((3, 3, 2), "env: it pays 2 rewards a step, and the utility is one of 3"),
    ]:
        with pytest.raises(ValueError, match=f"^{message}$"):
            agreed_num_objectives(*said)
