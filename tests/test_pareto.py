"""The Pareto archive: its invariants on seeded random points, its files, and what fresh episodes say."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch

from rlopt.archive import FORMAT, write
from rlopt.indicators import hypervolume, hypervolume_contributions, nondominated
from rlopt.pareto import Member, ParetoArchive, hypervolume_interval

moocore = pytest.importorskip("moocore")


def filled(points, **kwargs):
    archive = ParetoArchive(np.shape(points)[1], **kwargs)
    for point in points:
        archive.add(point)
    return archive


def random_points(seed, count=80, size=3):
    """With equal coordinates and equal points among them."""
    return np.random.default_rng(seed).integers(-5, 6, (count, size)).astype(float)


def rows(points):
    return sorted(map(tuple, np.asarray(points).tolist()))


# ---------------------------------------------------------------------- invariants


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("seed", range(5))
def test_members_are_the_nondominated_points_in_whatever_order_they_come(seed, size):
    points = random_points(seed, size=size)
    expected = rows(points[nondominated(points)])
    rng = np.random.default_rng(seed)
    for _ in range(4):
        assert rows(filled(rng.permutation(points)).points) == expected


@pytest.mark.parametrize("seed", range(5))
def test_add_says_whether_the_point_is_a_member(seed):
    archive = ParetoArchive(3)
    for point in random_points(seed):
        before = archive.points
        beaten = (before >= point).all(1).any()
        assert archive.add(point) is not beaten
        assert beaten == (len(before) == len(archive) and bool((before == archive.points).all()))
        assert nondominated(archive.points).all()


@pytest.mark.parametrize("tolerance", [0.0, 0.7, (0.5, 0.0, 2.0)])
@pytest.mark.parametrize("seed", range(5))
def test_whatever_was_offered_a_member_is_as_good_up_to_the_tolerance(seed, tolerance):
    points = np.random.default_rng(seed).normal(size=(200, 3)).cumsum(0)  # a drift, which chains of replacements could follow
    archive = filled(points, tolerance=tolerance)
    assert nondominated(archive.points).all()
    slack = np.broadcast_to(tolerance, 3)
    assert all((archive.points >= point - slack).all(1).any() for point in points)
    for index, member in enumerate(archive.members):
        others = np.delete(archive.points, index, axis=0)[:index]  # those that were there when it came
        assert not (others >= member.point - slack).all(1).any()
    if np.any(slack):
        assert len(archive) < len(filled(points))


@pytest.mark.parametrize("seed", range(5))
def test_beyond_the_capacity_the_smallest_contribution_leaves(seed):
    rng = np.random.default_rng(seed)
    reference = np.full(2, -1.0)
    archive = ParetoArchive(2, reference, capacity=6)
    for angle in rng.uniform(0.0, np.pi / 2, 60):
        point = np.array([np.cos(angle), np.sin(angle)])
        contenders = np.array([*archive.points, point])
        accepted = archive.add(point)
        if len(contenders) > 6:
            contenders = np.delete(contenders, hypervolume_contributions(contenders, reference).argmin(), axis=0)
        assert rows(archive.points) == rows(contenders)
        assert accepted == (tuple(point) in rows(archive.points))
    assert len(archive) == 6


def test_a_capacity_keeps_more_volume_than_taking_the_first():
    angles = np.random.default_rng(0).uniform(0.0, np.pi / 2, 200)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert hypervolume(filled(points, reference=(0, 0), capacity=8).points, (0, 0)) > hypervolume(points[:8], (0, 0)) + 0.02


def test_the_front_of_deep_sea_treasure_is_kept_whole_and_has_its_hypervolume():
    front = list(zip((0.7, 8.2, 11.5, 14, 15.1, 16.1, 19.6, 20.3, 22.4, 23.7), (-1, -3, -5, -7, -8, -9, -13, -14, -17, -19)))
    worse = [(treasure - lost, time - late) for treasure, time in front for lost, late in ((0, 1), (0.1, 0), (3, 3))]
    offered = np.random.default_rng(0).permutation([*worse, *front, *front])
    archive = filled(offered, reference=(0, -50))
    assert rows(archive.points) == front
    assert hypervolume(archive.points, archive.reference) == pytest.approx(994.3, abs=1e-9)
    negated = filled(-offered)  # what minimises keeps another set
    assert rows(-negated.points) != front


def test_of_equal_contributions_the_newest_leaves():
    archive = filled([(1.0, 3.0), (3.0, 1.0)], reference=(5.0, 5.0), capacity=2)
    assert archive.add((2.0, 2.0)) is False
    assert rows(archive.points) == [(1.0, 3.0), (3.0, 1.0)]


# ---------------------------------------------------------------------- what is kept


def test_parameters_are_copied_and_equal_ones_kept_once():
    theta = torch.arange(3.0, requires_grad=True)
    archive = ParetoArchive(2)
    archive.add((0.0, 1.0), theta, {"preference": [0.0, 1.0]})
    archive.add((1.0, 0.0), theta)
    archive.add((0.6, 0.6), theta.double())
    with torch.no_grad():
        theta += 1.0
    first, second, third = (member.theta for member in archive.members)
    assert first is second
    assert first.tolist() == [0.0, 1.0, 2.0]
    assert not first.requires_grad
    assert third.dtype == torch.float64


def test_points_and_info_are_copies():
    point, info = np.array([1.0, 2.0]), {"preference": [0.5, 0.5]}
    archive = ParetoArchive(2)
    archive.add(point, info=info)
    point[:] = 9.0
    info["preference"].append(1.0)
    archive.points[:] = 9.0
    assert archive.points.tolist() == [[1.0, 2.0]]
    assert archive.members[0].info == {"preference": [0.5, 0.5]}


def test_a_file_gives_back_everything(tmp_path):
    archive = ParetoArchive(2, (0, -25), 5, (0.1, 0.0), ("treasure", "time"))
    shared = torch.randn(7, generator=torch.Generator().manual_seed(0))
    archive.add((0.7, -1), shared, {"num_timesteps": 10, "preference": [0.2, 0.8]})
    archive.add((8.2, -3), shared)
    archive.add((1 / 3 + 10, -5), torch.arange(3, dtype=torch.float64) / 3)
    archive.add((20.0, -19))
    archive.save(tmp_path / "deep" / "pareto")
    loaded = ParetoArchive.load(tmp_path / "deep" / "pareto.zip")
    assert (loaded.points == archive.points).all()
    assert [member.info for member in loaded.members] == [member.info for member in archive.members]
    for mine, theirs in zip(archive.members, loaded.members):
        assert (mine.theta is None) == (theirs.theta is None)
        assert mine.theta is None or (torch.equal(mine.theta, theirs.theta) and mine.theta.dtype == theirs.theta.dtype)
    assert loaded.members[0].theta is loaded.members[1].theta
    assert (loaded.capacity, loaded.objectives) == (5, ("treasure", "time"))
    assert (loaded.reference == archive.reference).all()
    assert (loaded.tolerance == archive.tolerance).all()
    assert loaded.add((8.2, -3)) is False
    assert list((tmp_path / "deep").iterdir()) == [tmp_path / "deep" / "pareto.zip"]
    with zipfile.ZipFile(tmp_path / "deep" / "pareto.zip") as file:
        assert sorted(file.namelist()) == ["rlopt.json", "tensors.safetensors"]


def test_an_empty_archive_has_a_file_too(tmp_path):
    ParetoArchive(3).save(tmp_path / "pareto.zip")
    loaded = ParetoArchive.load(tmp_path / "pareto.zip")
    assert loaded.points.shape == (0, 3)
    assert (loaded.reference, loaded.capacity, loaded.objectives) == (None, None, None)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    archive = filled([(1.0, 2.0)])
    archive.save(tmp_path / "pareto.zip")
    archive.add((2.0, 1.0))

    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("rlopt.archive._write_zip", broken)
    with pytest.raises(OSError, match="disk full"):
        archive.save(tmp_path / "pareto.zip")
    assert len(ParetoArchive.load(tmp_path / "pareto.zip")) == 1
    assert len(list(tmp_path.iterdir())) == 1


def content(tmp_path, **changes):
    filled([(1.0, 2.0), (2.0, 1.0)]).save(tmp_path / "whole.zip")
    with zipfile.ZipFile(tmp_path / "whole.zip") as file:
        data = json.loads(file.read("rlopt.json"))["pareto"]
    return {key: value for key, value in (data | changes).items() if value != "left out"}


@pytest.mark.parametrize(
    ("changes", "points", "message"),
    [
        ({}, [(1.0, 2.0), (2.0, 2.0)], "some points dominate others"),
        ({}, [(1.0, 2.0), (2.0, float("nan"))], "points: expected finite numbers"),
        ({}, [(1.0, 2.0)], "zip"),
        ({"num_objectives": 10**12}, [(1.0, 2.0), (2.0, 1.0)], r"points: expected an array \[P, 1000000000000\]"),
        ({"thetas": [0, None]}, [(1.0, 2.0), (2.0, 1.0)], "theta/0"),
        ({"infos": [1, {}]}, [(1.0, 2.0), (2.0, 1.0)], "info: expected a dictionary"),
        ({"capacity": 3}, [(1.0, 2.0), (2.0, 1.0)], "capacity: expected a reference point"),
        ({"tolerance": "left out"}, [(1.0, 2.0), (2.0, 1.0)], "tolerance"),
        ({"thetas": 3}, [(1.0, 2.0), (2.0, 1.0)], "not iterable"),
    ],
)
def test_damaged_files_are_refused(tmp_path, changes, points, message):
    document = {"format": FORMAT, "versions": {}, "pareto": content(tmp_path, **changes)}
    write(tmp_path / "damaged.zip", document, {"points": torch.tensor(points, dtype=torch.float64)})
    with pytest.raises(ValueError, match=f"damaged.zip holds no whole Pareto archive: .*{message}"):
        ParetoArchive.load(tmp_path / "damaged.zip")


def test_files_of_another_kind_are_refused(tmp_path):
    write(tmp_path / "other.zip", {"format": FORMAT, "versions": {}}, {})
    with pytest.raises(ValueError, match="lacks pareto"):
        ParetoArchive.load(tmp_path / "other.zip")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        ParetoArchive.load(tmp_path / "missing")


# ---------------------------------------------------------------------- fresh episodes


def test_reevaluation_takes_the_luck_back():
    """Noisy looks at one policy and at another: the archive keeps the lucky ones, fresh episodes tell what they are worth."""
    rng = np.random.default_rng(0)
    truth = {0: np.array([1.0, 0.0]), 1: np.array([0.0, 1.0])}
    archive = ParetoArchive(2, reference=(-1, -1))
    for look in range(200):
        archive.add(truth[look % 2] + 0.3 * rng.normal(size=2), torch.tensor([float(look % 2)]), {"look": look})
    asked = []

    def evaluate(member: Member):
        asked.append(member.info["look"])
        return truth[int(member.theta[0])] + 0.3 * rng.normal(size=(400, 2))

    result = archive.reevaluate(evaluate, num_resamples=200)
    exact = hypervolume(list(truth.values()), (-1, -1))
    assert asked == [member.info["look"] for member in archive.members]
    assert hypervolume(archive.points, (-1, -1)) > exact + 0.5
    assert result.hypervolume == pytest.approx(exact, abs=0.1)
    assert result.interval[0] - 0.03 < exact < result.interval[1] + 0.03  # several members are one policy: it is at its worst
    assert result.interval[1] - result.interval[0] < 0.2
    assert result.points.shape == result.standard_errors.shape == (len(archive), 2)
    assert result.standard_errors == pytest.approx(0.3 / 20, rel=0.15)
    assert rows(result.archive.points) == rows(result.points[nondominated(result.points)])
    assert result.archive.members[0].info["episodes"] == 400
    assert archive.members[0].info.keys() == {"look"}


def test_the_interval_covers_the_truth_as_often_as_it_says_and_quantiles_would_not():
    rng = np.random.default_rng(0)
    angles = np.linspace(0.05, np.pi / 2 - 0.05, 10)
    truth, reference = np.stack([np.cos(angles), np.sin(angles)], axis=1), np.zeros(2)
    exact, covered, by_quantiles, trials = hypervolume(truth, reference), 0, 0, 40
    for trial in range(trials):
        returns = truth[:, None] + rng.normal(size=(10, 30, 2))
        low, high = hypervolume_interval(returns, reference, num_resamples=80, seed=trial)
        estimate = hypervolume(returns.mean(1), reference)
        covered += low <= exact <= high
        by_quantiles += 2 * estimate - high <= exact <= 2 * estimate - low
    assert covered >= 0.85 * trials
    assert by_quantiles <= 0.6 * trials


def test_the_interval_of_returns_without_noise_is_a_point():
    returns = [np.tile(point, (5, 1)) for point in ((1.0, 2.0), (2.0, 1.0))]
    assert hypervolume_interval(returns, (0, 0), num_resamples=10) == pytest.approx((3.0, 3.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ParetoArchive(0), "num_objectives: expected a positive integer"),
        (lambda: ParetoArchive(2, (0, 0, 0)), "reference: expected 2 numbers"),
        (lambda: ParetoArchive(2, capacity=3), "capacity: expected a reference point with it"),
        (lambda: ParetoArchive(2, (0, 0), capacity=0), "capacity: expected a positive integer"),
        (lambda: ParetoArchive(2, tolerance=-1), "tolerance: expected numbers of at least 0, got -1"),
        (lambda: ParetoArchive(2, tolerance=(1, 1, 1)), "tolerance: expected 2 numbers"),
        (lambda: ParetoArchive(2, objectives=["speed"]), "objectives: expected 2 names, got 1"),
        (lambda: ParetoArchive(2).add((1, 2, 3)), r"point: expected 2 numbers, one for each objective, got shape \(3,\)"),
        (lambda: ParetoArchive(2).add((1, float("nan"))), "point: expected finite numbers, got nan"),
        (lambda: ParetoArchive(2).add((1, 2), torch.zeros(2, 2)), r"theta: expected a vector \[d\] of floats, got .*\(2, 2\)"),
        (lambda: ParetoArchive(2).add((1, 2), torch.zeros(2).int()), "theta: expected a vector .* got torch.int32"),
        (lambda: ParetoArchive(2).add((1, 2), info={"x": object()}), "info: expected a dictionary that JSON can hold"),
        (lambda: ParetoArchive(2).add((1, 2), info={"x": float("nan")}), "info: expected a dictionary that JSON can hold"),
        (lambda: ParetoArchive(2).reevaluate(lambda _: 0), "reference: expected a point, as the archive has none"),
        (lambda: ParetoArchive(2, (0, 0)).reevaluate(lambda _: 0), "expected an archive with members, got an empty one"),
        (lambda: filled([(1, 2)], reference=(0, 0)).reevaluate(lambda _: [1, 2]), r"evaluate: expected an array \[P, 2\]"),
        (
            lambda: filled([(1, 2)], reference=(0, 0)).reevaluate(lambda _: [[1, 2]]),
            "at least two episodes of each point, got 1",
        ),
        (lambda: hypervolume_interval([], (0, 0)), "returns: expected at least one point"),
        (
            lambda: hypervolume_interval([[[1, 2], [2, 1]]], (0, 0), confidence=1.0),
            r"confidence: expected a number in \(0, 1\)",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
