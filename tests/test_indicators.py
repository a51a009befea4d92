"""Indicators of fronts: the numbers of deep sea treasure, moocore against a sweep of ten lines, closed forms, brute force."""

from __future__ import annotations

import itertools
import sys
from math import comb

import numpy as np
import pytest

from rlopt.indicators import (
    epsilon_additive,
    expected_utility,
    hypervolume,
    hypervolume_contributions,
    igd,
    igd_plus,
    maximum_utility_loss,
    nondominated,
    simplex_lattice,
    sparsity,
)

moocore = pytest.importorskip("moocore")

TIMES = (-1, -3, -5, -7, -8, -9, -13, -14, -17, -19)
CONVEX = np.array([(0.7, 8.2, 11.5, 14, 15.1, 16.1, 19.6, 20.3, 22.4, 23.7), TIMES]).T
CONCAVE = np.array([(1, 2, 3, 5, 8, 16, 24, 50, 74, 124), TIMES], float).T
HYPERVOLUMES = [
    (CONVEX, -25, 401.8),
    (CONVEX, -50, 994.3),
    (CONVEX, -100, 2179.3),
    (CONCAVE, -25, 1155.0),
    (CONCAVE, -50, 4255.0),
    (CONCAVE, -100, 10455.0),
]


def swept(points, reference):
    """Hypervolume of two objectives: from the right to the left, each point adds the part above those before it."""
    area, top = 0.0, reference[1]
    for first, second in sorted(map(tuple, points), reverse=True):
        if first > reference[0] and second > top:
            area += (first - reference[0]) * (second - top)
            top = second
    return area


def enclosed(points, reference):
    """Hypervolume by inclusion and exclusion over all sets of points; any number of objectives."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, size):
            total -= (-1) ** size * np.prod(np.maximum(np.min(chosen, axis=0) - reference, 0.0))
    return total


def dominates(one, other):
    return all(a >= b for a, b in zip(one, other)) and any(a > b for a, b in zip(one, other))


def random_points(seed, count, size):
    """With equal coordinates and equal points among them."""
    return np.random.default_rng(seed).integers(-4, 5, (count, size)).astype(float)


@pytest.mark.parametrize(("front", "time", "expected"), HYPERVOLUMES)
def test_hypervolumes_of_deep_sea_treasure(front, time, expected):
    assert hypervolume(front, (0, time)) == pytest.approx(expected, abs=1e-9)
    assert swept(front, (0, time)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(("front", "time", "expected"), HYPERVOLUMES)
def test_pymoo_agrees_and_without_the_change_of_sign_does_not(front, time, expected):
    indicator = pytest.importorskip("pymoo.indicators.hv").HV
    reference = np.array([0.0, time])
    assert float(indicator(ref_point=-reference)(-front)) == pytest.approx(expected, abs=1e-9)
    assert float(indicator(ref_point=reference)(front)) != pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(("front", "time", "expected"), HYPERVOLUMES)
def test_the_minimising_convention_gives_another_number(front, time, expected):
    reference = np.array([0.0, time])
    assert moocore.hypervolume(front, ref=reference) != pytest.approx(expected, rel=0.01)
    assert hypervolume(-front, -reference) != pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_hypervolume_is_that_of_the_sweep_and_of_inclusion_and_exclusion(seed):
    rng = np.random.default_rng(seed)
    flat, solid = rng.normal(size=(40, 2)), rng.normal(size=(7, 4))
    assert hypervolume(flat, (-0.5, -0.3)) == pytest.approx(swept(flat, (-0.5, -0.3)), abs=1e-12)
    corner = np.array([-1.0, -0.5, -1.0, -1.5])
    assert hypervolume(solid, corner) == pytest.approx(enclosed(solid, corner), abs=1e-12)


def test_what_is_not_strictly_better_than_the_reference_adds_nothing():
    assert hypervolume([(1.0, 0.0), (0.0, 5.0), (-1.0, 9.0)], (0.0, 0.0)) == 0.0
    assert hypervolume(np.empty((0, 3)), np.zeros(3)) == 0.0
    assert hypervolume([(2.0, 1.0), (9.0, 0.0)], (0.0, 0.0)) == 2.0


@pytest.mark.parametrize("seed", range(10))
def test_contributions_are_what_is_lost_without_a_point(seed):
    points, reference = random_points(seed, 40, 3), np.full(3, -3.0)
    whole = hypervolume(points, reference)
    contributions = hypervolume_contributions(points, reference)
    kept = nondominated(points)
    for index, point in enumerate(points):
        others = points[kept & (np.arange(len(points)) != index)]
        alone = not any(dominates(other, point) for other in points) and (points == point).all(1).sum() == 1
        assert contributions[index] == pytest.approx(whole - hypervolume(others, reference) if alone else 0.0, abs=1e-9)
    assert contributions.max() > 0


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_domination_by_brute_force(seed, size):
    points = random_points(seed, 60, size)
    kept = nondominated(points)
    for index, point in enumerate(points):
        beaten = any(dominates(other, point) for other in points)
        repeated = any((other == point).all() for other in points[:index])
        assert kept[index] == (not beaten and not repeated)
    assert (kept == moocore.is_nondominated(points, maximise=True)).all()


@pytest.mark.parametrize("seed", range(10))
def test_distances_by_brute_force(seed):
    rng = np.random.default_rng(seed)
    points, front = rng.normal(size=(9, 3)), rng.normal(size=(12, 3)) + 0.5
    gaps = front[:, None] - points
    assert igd(points, front) == pytest.approx(np.linalg.norm(gaps, axis=2).min(1).mean(), abs=1e-12)
    lacking = np.linalg.norm(np.maximum(gaps, 0.0), axis=2)
    assert igd_plus(points, front) == pytest.approx(lacking.min(1).mean(), abs=1e-12)
    assert epsilon_additive(points, front) == pytest.approx(gaps.max(2).min(1).max(), abs=1e-12)
    assert epsilon_additive(points + 9.0, front) < 0.0
    raised = points + epsilon_additive(points, front)
    assert igd_plus(raised, front) == pytest.approx(0.0, abs=1e-12)


def test_a_front_is_at_no_distance_from_itself():
    for indicator in (igd, igd_plus, epsilon_additive):
        assert indicator(CONVEX, CONVEX) == 0.0
        assert indicator(CONVEX[1:], CONVEX) > 0.0


def test_igd_plus_of_a_better_set_is_not_larger_where_igd_errs():
    """Ishibuchi et al. 2015, Example 4, with the sign of maximisation: A dominates B, and yet IGD prefers B."""
    front = -np.array([(10, 0), (6, 1), (2, 2), (1, 6), (0, 10)], float)
    better, worse = -np.array([(4, 2), (3, 3), (2, 4)], float), -np.array([(8, 2), (4, 4), (2, 8)], float)
    assert igd(better, front) > igd(worse, front)
    assert igd_plus(better, front) < igd_plus(worse, front)


def test_sparsity_is_the_sum_over_objectives_of_the_mean_squared_gap():
    assert sparsity([(0.0, 3.0), (1.0, 1.0), (3.0, 0.0)]) == pytest.approx((1 + 4 + 4 + 1) / 2)
    assert sparsity([(3.0, 0.0), (0.0, 3.0), (1.0, 1.0), (0.5, 0.5), (1.0, 1.0)]) == pytest.approx(5.0)
    # of three objectives each is sorted by itself: (0, 1, 2), (0, 2, 4) and (0, 0, 5)
    assert sparsity([(0.0, 4.0, 0.0), (1.0, 2.0, 0.0), (2.0, 0.0, 5.0)]) == pytest.approx((1 + 1 + 4 + 4 + 0 + 25) / 2)
    assert sparsity([(7.0, 7.0)]) == 0.0


def test_expected_utility_and_its_loss_by_hand():
    points, front = [(1.0, 0.0), (0.0, 1.0)], [(2.0, 0.0), (0.0, 1.0)]
    weights = [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0)]
    assert expected_utility(points, weights) == pytest.approx((1 + 0.5 + 1) / 3)
    assert expected_utility(front, weights) == pytest.approx((2 + 1 + 1) / 3)
    assert maximum_utility_loss(points, front, weights) == pytest.approx(1.0)
    assert maximum_utility_loss(front, front, weights) == 0.0
    assert maximum_utility_loss(front, points, weights) == 0.0
    # dominated points change nothing, and a point inside the hull is of no use to a linear preference
    assert expected_utility([*points, (0.0, 0.0), (0.4, 0.4)], weights) == expected_utility(points, weights)


@pytest.mark.parametrize(("size", "divisions"), [(1, 3), (2, 1), (2, 10), (3, 4), (4, 3), (6, 2)])
def test_the_lattice_is_every_vector_of_shares(size, divisions):
    lattice = simplex_lattice(size, divisions)
    every = [each for each in itertools.product(range(divisions + 1), repeat=size) if sum(each) == divisions]
    assert lattice.shape == (comb(divisions + size - 1, size - 1), size)
    assert lattice == pytest.approx(np.array(every) / divisions)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hypervolume(CONVEX, (0, -25, 0)), r"reference: expected 2 numbers, one for each objective, got shape \(3,\)"),
        (lambda: hypervolume(CONVEX, -25), r"reference: expected 2 numbers, .* got shape \(\)"),
        (lambda: hypervolume(CONVEX, (0, np.nan)), "reference: expected finite numbers, got nan"),
        (lambda: hypervolume(CONVEX[0], (0, -25)), r"points: expected an array \[P, K\], got one of shape \(2,\)"),
        (lambda: hypervolume([(1.0, np.nan)], (0, 0)), "points: expected finite numbers, got nan"),
        (lambda: hypervolume([(1.0, np.inf)], (0, 0)), "points: expected finite numbers, got inf"),
        (lambda: hypervolume([(1.0, 2.0), (1.0,)], (0, 0)), "points: expected numbers"),
        (lambda: igd_plus(CONVEX, CONVEX[:, :1]), r"front: expected an array \[P, 2\], got one of shape \(10, 1\)"),
        (lambda: igd(CONVEX[:0], CONVEX), "points: expected at least one row, got none"),
        (lambda: expected_utility(CONVEX[:0], [(1, 0)]), "points: expected at least one row, got none"),
        (lambda: expected_utility(CONVEX, [(1, 0, 0)]), r"weights: expected an array \[P, 2\]"),
        (lambda: expected_utility(CONVEX, [(1, 0), (2, -1)]), r"weights: expected numbers of at least 0, .*got \[2.0, -1.0\]"),
        (lambda: expected_utility(CONVEX, [(0, 0)]), r"weights: .* not all of a row 0, got \[0.0, 0.0\]"),
        (lambda: simplex_lattice(2, 0), "divisions: expected a positive integer, got 0"),
        (lambda: simplex_lattice(0, 2), "num_objectives: expected a positive integer, got 0"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_missing_moocore_is_named_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "moocore", None)
    with pytest.raises(ImportError, match=r"needs moocore, .*pip install 'rlopt\[mo\]'"):
        hypervolume(CONVEX, (0, -25))
    assert nondominated(CONVEX).all()
    assert expected_utility(CONVEX, [(1, 0)]) == 23.7
