"""An archive of vectors of expected returns that do not dominate one another, with the parameters that reached them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from rlopt import archive as files
from rlopt.arguments import check_number
from rlopt.checkpoint import versions
from rlopt.file_errors import as_file_errors
from rlopt.indicators import (
    Floats,
    check_points,
    check_vector,
    hypervolume,
    hypervolume_contributions,
    nondominated,
)

FILE_NAME = "pareto.zip"
FIELDS = {"pareto": dict, "versions": dict}
MOST_COMPARISONS = 2 * 10**9  # of numbers, each point with each
SETTINGS = ("num_objectives", "objectives", "reference", "capacity", "tolerance")


@dataclass(frozen=True)
class Member:
    """One point of an archive.

    Attributes:
        point: [K], an estimate of J(θ), the expected returns.
        theta: [d], the parameters, on the CPU, or None.
        info: what is known about it besides, as JSON can hold it.
    """

    point: Floats
    theta: Tensor | None = None
    info: dict[str, Any] = field(default_factory=dict)


class ParetoArchive:
    """Points of which none is at least as good as another in every objective; more is better.

    A point enters if it beats each member by more than `tolerance` in some objective, and the members that it weakly
    dominates leave. Whatever was offered to an archive without a capacity, some member is at least as good, up to the
    tolerance. Points are estimates, and those of an archive were selected for being lucky: `reevaluate` them before
    reporting.

    Args:
        num_objectives: K, at least 1.
        reference: [K], of the hypervolume; needed for a capacity.
        capacity: the most members; beyond it the one with the smallest hypervolume contribution leaves, the newest of equal
            ones. None is no limit.
        tolerance: at least 0, in units of the returns, one number or [K].
        objectives: their names, for pictures.

    Attributes:
        members: in the order in which they came.

    Raises:
        ValueError: a capacity without a reference point, or arguments of other shapes and ranges than these.
    """

    def __init__(
        self,
        num_objectives: int,
        reference: ArrayLike | None = None,
        capacity: int | None = None,
        tolerance: ArrayLike = 0.0,
        objectives: Sequence[str] | None = None,
    ):
        check_number("num_objectives", num_objectives, positive=True, whole=True)
        self.num_objectives = int(num_objectives)
        self.reference = None if reference is None else check_vector("reference", reference, self.num_objectives)
        if capacity is not None:
            check_number("capacity", capacity, positive=True, whole=True)
            if reference is None:
                raise ValueError("capacity: expected a reference point with it, from which hypervolumes count, got none")
        self.capacity = None if capacity is None else int(capacity)
        slack = np.full(self.num_objectives, tolerance) if np.ndim(tolerance) == 0 else tolerance
        self.tolerance = check_vector("tolerance", slack, self.num_objectives)
        if (self.tolerance < 0).any():
            raise ValueError(f"tolerance: expected numbers of at least 0, got {tolerance!r}")
        self.objectives = None if objectives is None else tuple(str(name) for name in objectives)
        if self.objectives is not None and len(self.objectives) != self.num_objectives:
            raise ValueError(f"objectives: expected {self.num_objectives} names, got {len(self.objectives)}")
        self.members: tuple[Member, ...] = ()

    def __len__(self) -> int:
        return len(self.members)

    @property
    def points(self) -> Floats:
        """[P, K], of the members in their order; a copy."""
        return np.array([member.point for member in self.members]).reshape(-1, self.num_objectives)

    def add(self, point: ArrayLike, theta: Tensor | None = None, info: Mapping[str, Any] | None = None) -> bool:
        """Offer a point; returns whether it is a member now.

        Args:
            point: [K], more is better.
            theta: [d], copied if the point enters; equal ones are kept once.
            info: what else to keep, as JSON can hold it.

        Raises:
            ValueError: a point that is not [K] finite numbers, parameters that are not one vector, an unsuitable `info`.
            ImportError: a member must leave for the capacity, and moocore is missing.
        """
        value = check_vector("point", point, self.num_objectives).copy()
        known = _plain(info or {})
        if theta is not None and (theta.ndim != 1 or not theta.is_floating_point()):
            raise ValueError(f"theta: expected a vector [d] of floats, got {theta.dtype} of shape {tuple(theta.shape)}")
        if (self.points >= value - self.tolerance).all(1).any():
            return False
        # Without the tolerance: else a chain of replacements, each a little worse somewhere, could go down without end.
        staying = [member for member in self.members if not (value >= member.point).all()]
        member = Member(value, None if theta is None else self._shared(theta), known)
        self.members = self._within_capacity([*staying, member])
        return any(kept is member for kept in self.members)

    def reevaluate(
        self,
        evaluate: Callable[[Member], ArrayLike],
        reference: ArrayLike | None = None,
        confidence: float = 0.95,
        num_resamples: int = 1000,
        seed: int = 0,
    ) -> Reevaluation:
        """All members on fresh episodes: what they are worth without the luck that selected them.

        Args:
            evaluate: gives the returns [E, K] of E ≥ 2 independent episodes of a member; `theta` is its policy, and an agent
                of many preferences needs one from its `info`.
            reference: [K], of the hypervolume; the archive's by default.
            confidence: of the hypervolume's interval, in (0, 1).
            num_resamples: of the bootstrap.
            seed: of the bootstrap.

        Raises:
            ValueError: no members, no reference point, returns that are not [E, K] finite numbers with E ≥ 2.
            ImportError: moocore is missing.
        """
        corner = self.reference if reference is None else check_vector("reference", reference, self.num_objectives)
        if corner is None:
            raise ValueError("reference: expected a point, as the archive has none, got None")
        if not self.members:
            raise ValueError("reevaluate: expected an archive with members, got an empty one")
        returns = [check_points("evaluate", evaluate(member), self.num_objectives) for member in self.members]
        interval = hypervolume_interval(returns, corner, confidence, num_resamples, seed)
        means = np.stack([episodes.mean(0) for episodes in returns])
        errors = np.stack([episodes.std(0, ddof=1) / np.sqrt(len(episodes)) for episodes in returns])
        fresh = ParetoArchive(self.num_objectives, self.reference, self.capacity, self.tolerance, self.objectives)
        for member, mean, error, episodes in zip(self.members, means, errors, returns):
            fresh.add(mean, member.theta, {**member.info, "standard_error": error.tolist(), "episodes": len(episodes)})
        return Reevaluation(fresh, means, errors, hypervolume(means, corner), interval)

    def save(self, path: str | Path) -> None:
        """Write one zip of safetensors and JSON, which appears whole or not at all; `.zip` is appended to a bare name."""
        data, tensors = self.contents()
        files.write(path, {"format": files.FORMAT, "versions": versions(), "pareto": data}, tensors)

    def contents(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """All of it, as JSON can hold it and tensors by name."""
        thetas = {id(member.theta): member.theta for member in self.members if member.theta is not None}
        places = {key: index for index, key in enumerate(thetas)}
        data = {
            "num_objectives": self.num_objectives,
            "objectives": self.objectives,
            "reference": None if self.reference is None else self.reference.tolist(),
            "capacity": self.capacity,
            "tolerance": self.tolerance.tolist(),
            "thetas": [None if member.theta is None else places[id(member.theta)] for member in self.members],
            "infos": [member.info for member in self.members],
        }
        tensors = {f"theta/{index}": theta for index, theta in enumerate(thetas.values())}
        tensors["points"] = torch.from_numpy(self.points)
        return data, tensors

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The archive that a file holds. Nothing in the file is run, whoever wrote it.

        Raises:
            FileNotFoundError: no such file, with or without `.zip`.
            ValueError: not such a file, or a damaged one.
        """
        contents = files.read(path, FIELDS)
        contents.check_finite(("theta",))
        return cls.from_contents(contents.data["pareto"], contents.tensors, str(path))

    @classmethod
    def from_contents(cls, data: dict[str, Any], tensors: Mapping[str, Tensor], path: str) -> Self:
        """The inverse of `contents`; `path` is for messages.

        Raises:
            ValueError: damaged contents.
        """
        with as_file_errors(f"{path} holds no whole Pareto archive"):
            if not tensors["points"].is_floating_point():
                raise ValueError(f"its points are {tensors['points'].dtype}")
            points = check_points("points", tensors["points"].numpy(), data["num_objectives"])
            if len(points) * points.size > MOST_COMPARISONS:
                raise ValueError(f"it has {len(points):,} points, which would take minutes to compare")
            result = cls(**{name: data[name] for name in SETTINGS})
            thetas = [None if place is None else tensors[f"theta/{place}"] for place in data["thetas"]]
            if any(theta is not None and (theta.ndim != 1 or not theta.is_floating_point()) for theta in thetas):
                raise ValueError("some parameters are no vector of floats")
            members = [Member(*parts) for parts in zip(points, thetas, map(_plain, data["infos"]), strict=True)]
            if not nondominated(points).all():
                raise ValueError("some points dominate others")
        result.members = tuple(members)
        return result

    def _shared(self, theta: Tensor) -> Tensor:
        """A member's equal parameters, or a copy of these: one θ may have a point for each of many preferences."""
        copy = theta.detach().cpu().clone()
        kept = (member.theta for member in self.members if member.theta is not None and member.theta.dtype == copy.dtype)
        return next((other for other in kept if torch.equal(other, copy)), copy)

    def _within_capacity(self, members: list[Member]) -> tuple[Member, ...]:
        if self.capacity is None or len(members) <= self.capacity:
            return tuple(members)
        assert self.reference is not None
        contributions = hypervolume_contributions([member.point for member in members], self.reference)
        smallest = np.flatnonzero(contributions == contributions.min())[-1]
        return tuple(member for index, member in enumerate(members) if index != smallest)


@dataclass(frozen=True)
class Reevaluation:
    """An archive on fresh episodes.

    Attributes:
        archive: of the members whose fresh means are not dominated; `info` has their standard errors.
        points: [P, K], the fresh mean of every member, dominated or not.
        standard_errors: [P, K], of these means.
        hypervolume: of the points. It is too large on average, as the best of noisy points is.
        interval: for the hypervolume of the members' expected returns, see `hypervolume_interval`.
    """

    archive: ParetoArchive
    points: Floats
    standard_errors: Floats
    hypervolume: float
    interval: tuple[float, float]


def hypervolume_interval(
    returns: Sequence[ArrayLike], reference: ArrayLike, confidence: float = 0.95, num_resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """A bootstrap interval for the hypervolume of P expected returns, of which each has E episodes.

    Episodes are drawn again within each point, and the interval is the basic one, 2h − q of the estimate h and the
    bootstrap's quantiles q, cut at 0. Noise moves a front outwards, and once more in each resample; the basic interval takes
    that back, so that it may lie below h. (Quantiles themselves would miss: for 30 points and standard errors of a seventh of
    the front's size they covered the truth in none of 150 trials, the basic interval in 143.)

    Args:
        returns: P arrays [E, K], of one K; their E ≥ 2 may differ.
        reference: [K].
        confidence: in (0, 1).
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        ValueError: arrays that are not [E, K] finite numbers, fewer than two episodes, numbers out of range.
        ImportError: moocore is missing.

    Source: Davison and Hinkley 1997, Section 5.2.
    """
    check_number("num_resamples", num_resamples, positive=True, whole=True)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence!r}")
    samples = [check_points("returns", episodes, np.size(reference)) for episodes in returns]
    if few := [len(episodes) for episodes in samples if len(episodes) < 2]:
        raise ValueError(f"returns: expected at least two episodes of each point, got {few[0]}")
    if not samples:
        raise ValueError("returns: expected at least one point, got none")
    rng = np.random.default_rng(seed)
    volumes = [
        hypervolume([episodes[rng.integers(len(episodes), size=len(episodes))].mean(0) for episodes in samples], reference)
        for _ in range(num_resamples)
    ]
    estimate = hypervolume([episodes.mean(0) for episodes in samples], reference)
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(volumes, (tail, 100.0 - tail))
    return max(float(2.0 * estimate - high), 0.0), max(float(2.0 * estimate - low), 0.0)


def _plain(info: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that shares nothing with the caller's.

    Raises:
        ValueError: what JSON cannot hold.
    """
    try:
        copy = json.loads(json.dumps(info, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"info: expected a dictionary that JSON can hold, got {info!r}: {error}") from error
    if not isinstance(copy, dict):
        raise ValueError(f"info: expected a dictionary that JSON can hold, got {info!r}")
    return copy
