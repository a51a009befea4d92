"""How good a set of vectors of expected returns is: indicators of a Pareto front, every objective maximised.

P points, K objectives, F points of a known front, W vectors of weights.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rlopt.arguments import check_number

Floats = NDArray[np.float64]


def nondominated(points: ArrayLike) -> NDArray[np.bool_]:
    """[P], whether no other of the points [P, K] is at least as good everywhere and better somewhere.

    Of equal points the first is kept.

    Raises:
        ValueError: points that are not [P, K] finite numbers.
    """
    values = check_points("points", points)
    kept = np.ones(len(values), bool)
    for index, point in enumerate(values):
        as_good = (values >= point).all(1)
        equal = (values == point).all(1)
        kept[index] = not (as_good & ~equal).any() and not equal[:index].any()
    return kept


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """The volume of all vectors that are better than the reference [K] and dominated by one of the points [P, K].

    A point that is not strictly better than the reference in every objective adds nothing; no points have volume 0. The
    number means nothing without the reference point.

    Raises:
        ValueError: points that are not [P, K], a reference of another length, numbers that are not finite.
        ImportError: moocore is missing.

    Source: Zitzler and Thiele 1999.
    """
    values, corner = _with_reference(points, reference)
    moocore = _moocore()
    better = values[(values > corner).all(1)]
    return float(moocore.hypervolume(better, ref=corner, maximise=True)) if len(better) else 0.0


def hypervolume_contributions(points: ArrayLike, reference: ArrayLike) -> Floats:
    """[P], the part of the hypervolume that each of the points [P, K] dominates alone; 0 for dominated and for equal ones.

    Dominated points count as absent: they take nothing from those that dominate them.

    Raises:
        ValueError, ImportError: as `hypervolume`.
    """
    values, corner = _with_reference(points, reference)
    moocore = _moocore()
    result = np.zeros(len(values))
    better = (values > corner).all(1)
    if better.any():
        result[better] = moocore.hv_contributions(values[better], ref=corner, maximise=True)
    return result


def igd(points: ArrayLike, front: ArrayLike) -> float:
    """The mean Euclidean distance from the points of a front [F, K] to the nearest of the points [P, K]; 0 is best.

    It is not Pareto compliant: a better set may have a larger distance. `igd_plus` never errs so.

    Raises:
        ValueError: points or front that are not [·, K] finite numbers of one K, or empty.
        ImportError: moocore is missing.

    Source: Coello Coello and Reyes Sierra 2004.
    """
    values, known = _with_front(points, front)
    return float(_moocore().igd(values, ref=known, maximise=True))


def igd_plus(points: ArrayLike, front: ArrayLike) -> float:
    """As `igd`, with distances that count only what a point lacks, ‖max(f − p, 0)‖; 0 is best.

    Raises:
        ValueError, ImportError: as `igd`.

    Source: Ishibuchi et al. 2015.
    """
    values, known = _with_front(points, front)
    return float(_moocore().igd_plus(values, ref=known, maximise=True))


def epsilon_additive(points: ArrayLike, front: ArrayLike) -> float:
    """The least ε such that the points [P, K], each raised by ε everywhere, weakly dominate all of the front [F, K].

    That is max_f min_p max_k (f_k − p_k), in units of the returns: objectives of unlike scales should be scaled first. It is
    negative if the points are better than the front.

    Raises:
        ValueError, ImportError: as `igd`.

    Source: Zitzler et al. 2003.
    """
    values, known = _with_front(points, front)
    return float(_moocore().epsilon_additive(values, ref=known, maximise=True))


def sparsity(points: ArrayLike) -> float:
    """Σ_k Σ_i (x_k(i) − x_k(i+1))² / (P − 1), x_k(1), …, x_k(P) being objective k sorted; low is dense, 0 for one point.

    Of the points [P, K], those that are not dominated; the mean is over gaps, the sum over objectives. It has the squared
    units of the returns, and a set of few points that are close together has a low one: it says something beside the
    hypervolume only.

    Raises:
        ValueError: points that are not [P, K] finite numbers, or none.

    Source: Xu et al., ICML 2020 (PGMORL).
    """
    values = _some("points", check_points("points", points))
    front = values[nondominated(values)]
    if len(front) < 2:
        return 0.0
    return float((np.diff(np.sort(front, axis=0), axis=0) ** 2).sum() / (len(front) - 1))


def expected_utility(points: ArrayLike, weights: ArrayLike) -> float:
    """mean_w max_p ⟨w, p⟩ over weights [W, K]: what a user with one of these linear preferences can have of the points [P, K].

    Raises:
        ValueError: points that are not [P, K] finite numbers, or none; weights that are not [W, K] numbers of at least 0.

    Source: Zintgraf et al. 2015.
    """
    return float(_best_utilities("points", points, weights).mean())


def maximum_utility_loss(points: ArrayLike, front: ArrayLike, weights: ArrayLike) -> float:
    """max_w (max_f ⟨w, f⟩ − max_p ⟨w, p⟩): what the worst-served of the weights [W, K] lacks against a front [F, K].

    Raises:
        ValueError: as `expected_utility`, for points [P, K] and front.

    Source: Zintgraf et al. 2015.
    """
    _with_front(points, front)
    return float((_best_utilities("front", front, weights) - _best_utilities("points", points, weights)).max())


def simplex_lattice(num_objectives: int, divisions: int) -> Floats:
    """Every vector of K numbers in {0, 1/D, …, 1} that sum to 1: [C(D + K − 1, K − 1), K], in ascending order.

    Args:
        num_objectives: K, at least 1.
        divisions: D, at least 1; D + 1 weights for two objectives.

    Raises:
        ValueError: numbers that are not whole and positive.

    Source: Das and Dennis 1998.
    """
    check_number("num_objectives", num_objectives, positive=True, whole=True)
    check_number("divisions", divisions, positive=True, whole=True)
    # Each way to put K − 1 bars between D stars; the stars between two bars are one coordinate.
    places = list(combinations(range(divisions + num_objectives - 1), num_objectives - 1))
    bars = np.array(places, np.int64).reshape(len(places), num_objectives - 1)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, divisions + num_objectives - 1)))
    return (np.diff(edges, axis=1) - 1) / divisions


def check_points(name: str, points: ArrayLike, num_objectives: int | None = None) -> Floats:
    """The points as an array [P, K]; P may be 0.

    Raises:
        ValueError: another shape, another K than is asked for, or numbers that are not finite.
    """
    values = _numbers(name, points)
    expected = f"[P, {'K' if num_objectives is None else num_objectives}]"
    if values.ndim != 2 or values.shape[1] < 1 or num_objectives not in (None, values.shape[1]):
        raise ValueError(f"{name}: expected an array {expected}, got one of shape {values.shape}")
    return _finite(name, values)


def check_vector(name: str, vector: ArrayLike, num_objectives: int) -> Floats:
    """The vector as an array [K].

    Raises:
        ValueError: another shape, or numbers that are not finite.
    """
    values = _numbers(name, vector)
    if values.shape != (num_objectives,):
        raise ValueError(f"{name}: expected {num_objectives} numbers, one for each objective, got shape {values.shape}")
    return _finite(name, values)


def check_weights(name: str, weights: ArrayLike, num_objectives: int) -> Floats:
    """The weights as an array [W, K], W at least 1.

    Raises:
        ValueError: another shape, numbers that are not finite or below 0, a row of zeros.
    """
    values = _some(name, check_points(name, weights, num_objectives))
    if (values < 0).any() or not values.any(1).all():
        raise ValueError(f"{name}: expected numbers of at least 0, not all of a row 0, got {values[_wrong(values)].tolist()}")
    return values


def _wrong(weights: Floats) -> int:
    return int(((weights < 0).any(1) | ~weights.any(1)).argmax())


def _numbers(name: str, values: ArrayLike) -> Floats:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: expected numbers, got {values!r}") from error


def _finite(name: str, values: Floats) -> Floats:
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: expected finite numbers, got {values[~np.isfinite(values)][0]} among them")
    return values


def _some(name: str, values: Floats) -> Floats:
    if not len(values):
        raise ValueError(f"{name}: expected at least one row, got none")
    return values


def _with_reference(points: ArrayLike, reference: ArrayLike) -> tuple[Floats, Floats]:
    values = check_points("points", points)
    return values, check_vector("reference", reference, values.shape[1])


def _with_front(points: ArrayLike, front: ArrayLike) -> tuple[Floats, Floats]:
    values = _some("points", check_points("points", points))
    return values, _some("front", check_points("front", front, values.shape[1]))


def _best_utilities(name: str, points: ArrayLike, weights: ArrayLike) -> Floats:
    """max_p ⟨w, p⟩, [W]."""
    values = _some(name, check_points(name, points))
    return (check_weights("weights", weights, values.shape[1]) @ values.T).max(1)


def _moocore() -> Any:
    try:
        import moocore
    except ImportError as error:
        raise ImportError("this indicator needs moocore, which is not installed: pip install 'rlopt[mo]'") from error
    return moocore
