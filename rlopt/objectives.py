"""Utilities f(J) of the vector of returns J [K]: what agents of several objectives maximise.

Utilities are frozen values: they print, compare and are saved. As text, for the command line, one is its name, its first
argument and then the others by name, in any order; `none` stands for "no bound", and what has a default may be left out:

    weighted-sum:0.5,0.5                                          Σ_k w_k J_k; "0.5,0.5" is the same
    chebyshev:0.5,0.5;ideal=23.7,-1;augmentation=0.01             −max_k x_k − ρ Σ_k x_k,  x_k = w_k (z*_k − J_k)
    smooth-chebyshev:0.5,0.5;ideal=23.7,-1;temperature=0.1        −μ log Σ_k exp(x_k / μ)
    fairness:1                                                    Σ_k log(J_k + σ)
    reciprocals:500;offset=1                                      Σ_k −scale / (J_k + offset)
    square-roots:1,101                                            Σ_k √(J_k + offset_k)
    lagrangian:0;thresholds=none,0.5;step-size=0.01               J_0, subject to J_1 ≥ 0.5
    identity                                                      J, for one objective
    queue:500,0.9999                                              `queue_utility(500, 0.9999)`
    deep-sea-treasure                                             `deep_sea_treasure_utility()`

All but the last two take a box too: `fairness:1;low=0`, `square-roots:1,101;low=0,-100;high=none,0`. Shells need quotes
around the semicolons.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from rlopt.arguments import check_choice, check_number
from rlopt.objective_fields import (
    Bounds,
    Numbers,
    arguments_of,
    as_bounds,
    as_number,
    as_numbers,
    as_vector,
    read_arguments,
    read_value,
    spread,
    store,
    usage_text,
    utility_text,
    vectors_of,
)
from rlopt.utilities import KINDS as OCCUPANCY_KINDS

# Preferences that were computed in float32 sum to one within this.
PREFERENCE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class VectorUtility(ABC):
    """f: R^K → R, to be maximised; J [K] is a vector of expected returns (SER) or of one episode's returns (ESR).

    A subclass is a frozen dataclass that implements `evaluate`; all fields that are tuples have K numbers.

    Args:
        low, high: the box into which J is projected where f and its derivative are evaluated, and nowhere else: an
            estimate of J that is tracked stays as it is, or it would be biased. A number for all objectives; K
            numbers, where None is no bound; or None for no box.

    Raises:
        ValueError: numbers that are not finite, or not equally many everywhere; low above high.
    """

    kind: ClassVar[str] = ""
    only_num_objectives: ClassVar[int | None] = None

    low: Bounds = field(default=None, kw_only=True)
    high: Bounds = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        store(self, low=as_bounds("low", self.low, -math.inf), high=as_bounds("high", self.high, math.inf))
        expected, reason = self.only_num_objectives, ""
        for name, value in vectors_of(self).items():
            if expected is not None and len(value) != expected:
                raise ValueError(f"{name}: expected {_count(expected, 'number')}{reason}, got {len(value)}: {value}")
            expected, reason = len(value), f", as {name} has"
        count = self.num_objectives or 1
        for k, (low, high) in enumerate(zip(spread(self.low, count, -math.inf), spread(self.high, count, math.inf))):
            if low > high:
                raise ValueError(f"low: expected at most high = {high:g} for objective {k}, got {low:g}")

    @abstractmethod
    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        """f [...] at points [..., K] that are in the box; differentiable, NaN outside its domain, nothing checked."""

    @property
    def num_objectives(self) -> int | None:
        """K, or None if any number of objectives fits."""
        lengths = [len(value) for value in vectors_of(self).values()]
        return lengths[0] if lengths else self.only_num_objectives

    def __call__(self, returns: Tensor, multipliers: Tensor | None = None) -> Tensor:
        """f at the projections of `returns` [..., K], as [...], not finite outside f's domain.

        For what is maximised see `value_and_gradient` (SER) and `checked` (ESR).

        Args:
            returns: expected returns, or returns of episodes.
            multipliers: as `ascend` left them; None for the first ones. Only a `Lagrangian` has any.

        Raises:
            ValueError: another number of objectives.
        """
        self._check_returns(returns)
        if multipliers is None:
            multipliers = self.first_multipliers(returns.shape[-1])
        return self.evaluate(self.project(returns), multipliers.to(returns))

    def checked(self, returns: Tensor, multipliers: Tensor | None = None) -> Tensor:
        """`__call__`, where f must be finite.

        Raises:
            ValueError: another number of objectives; returns or values that are not finite.
        """
        values = self(returns, multipliers)
        _check_finite(returns)
        if not bool(torch.isfinite(values).all()):
            first = int((~torch.isfinite(values)).reshape(-1).nonzero()[0])
            point = self.project(returns).reshape(-1, returns.shape[-1])[first]
            raise ValueError(self._not_finite(f"its value is {_entry(values, first):g}", point))
        return values

    def value_and_gradient(self, returns: Tensor, multipliers: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """f, a scalar, and c = ∇f [K], both at the projection of J = `returns` [K] and without a graph.

        c is the gradient *at* the projected point. Differentiated through the projection it would be 0 for an objective
        outside the box, which would then never find back.

        Args:
            returns: J, an estimate of the expected returns.
            multipliers: as `ascend` left them; None for the first ones.

        Raises:
            ValueError: not K finite numbers; the value is not one finite number; a derivative is not finite, as that of
                a root or a logarithm at the edge of its domain.
        """
        self._check_returns(returns)
        if returns.ndim != 1:
            raise ValueError(f"returns: expected a vector [K], got shape {tuple(returns.shape)}")
        _check_finite(returns)
        if multipliers is None:
            multipliers = self.first_multipliers(len(returns))
        point = self.project(returns.detach()).clone().requires_grad_()
        with torch.enable_grad():
            value = self.evaluate(point, multipliers.detach().to(point))
            if not isinstance(value, Tensor) or value.shape != ():
                raise ValueError(f"utility: {self}: expected a scalar tensor of the returns, got {value!r}")
            if not value.requires_grad:
                raise ValueError(f"utility: {self}: its value does not depend on the returns through torch operations")
            (gradient,) = torch.autograd.grad(value, point, allow_unused=True)
        gradient = torch.zeros_like(point) if gradient is None else gradient
        if not bool(torch.isfinite(gradient).all()):
            k = int((~torch.isfinite(gradient)).nonzero()[0])
            fault = f"its derivative is {_entry(gradient, k):g} for objective {k}, where J_{k} = {_entry(point, k):g}"
            raise ValueError(self._not_finite(fault, point))
        if not bool(torch.isfinite(value)):
            raise ValueError(self._not_finite(f"its value is {_entry(value, 0):g}", point))
        return value.detach(), gradient

    def project(self, returns: Tensor) -> Tensor:
        """The points [..., K] of the box that are nearest to `returns` [..., K]."""
        if self.low is None and self.high is None:
            return returns
        low = returns.new_tensor(spread(self.low, returns.shape[-1], -math.inf))
        return returns.clamp(low, returns.new_tensor(spread(self.high, returns.shape[-1], math.inf)))

    def first_multipliers(self, num_objectives: int) -> Tensor:
        """The multipliers to start with: [0], none, except for a `Lagrangian`, which has [K].

        Raises:
            ValueError: the utility is one of another number of objectives.
        """
        self.check_num_objectives(num_objectives)
        return torch.zeros(0)

    def ascend(self, multipliers: Tensor, returns: Tensor) -> Tensor:
        """The multipliers after an iteration with J = `returns` [K], not projected; the same but for a `Lagrangian`."""
        return multipliers

    def check_num_objectives(self, num_objectives: int) -> None:
        """Raises ValueError unless the utility is one of `num_objectives` objectives."""
        expected = self.num_objectives
        if expected not in (None, num_objectives):
            raise ValueError(f"utility: {self}: expected returns of {_count(expected, 'objective')}, got {num_objectives}")

    def __str__(self) -> str:
        """The text that `as_vector_utility` reads."""
        return utility_text(self.kind, self)

    def _check_returns(self, returns: Tensor) -> None:
        if not isinstance(returns, Tensor) or not returns.is_floating_point() or returns.ndim == 0:
            raise ValueError(f"returns: expected a tensor [..., K] of floating-point numbers, got {returns!r}")
        self.check_num_objectives(returns.shape[-1])

    def _not_finite(self, fault: str, point: Tensor) -> str:
        at = ", ".join(f"{value:g}" for value in point.detach().tolist())
        return f"utility: {self}: {fault}, at J = ({at}); give it a box (low, high) or an offset that keeps J where f is finite"


@dataclass(frozen=True)
class Identity(VectorUtility):
    """f(J) = J_0 for K = 1: one objective, as a control."""

    kind: ClassVar[str] = "identity"
    only_num_objectives: ClassVar[int | None] = 1

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return point[..., 0]


@dataclass(frozen=True)
class WeightedSum(VectorUtility):
    """f(J) = ⟨w, J⟩. Its maxima are points of the convex hull of what can be reached; ESR = SER.

    Weights are any finite numbers; those that stand for preferences are checked by `check_preferences`.
    """

    kind: ClassVar[str] = "weighted-sum"

    weights: Sequence[float]

    def __post_init__(self) -> None:
        store(self, weights=as_vector("weights", self.weights))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return (point * point.new_tensor(self.weights)).sum(-1)


@dataclass(frozen=True)
class Chebyshev(VectorUtility):
    """f(J) = −max_k x_k − ρ Σ_k x_k with x_k = w_k (z*_k − J_k), w ≥ 0: concave, and not smooth where maxima tie.

    c is a supergradient: w_k e_k + ρ w for the largest x_k, and the mean of these where several are largest.

    Args:
        weights: w [K], not negative, not all 0.
        ideal: z* [K], or one number for all: the best that each objective could be.
        augmentation: ρ ≥ 0; about 0.01 rules out points that are only weakly Pareto-optimal.
    """

    kind: ClassVar[str] = "chebyshev"

    weights: Sequence[float]
    ideal: Numbers
    augmentation: float = 0.0

    def __post_init__(self) -> None:
        store(self, weights=_chebyshev_weights(self.weights), ideal=as_numbers("ideal", self.ideal))
        store(self, augmentation=as_number("augmentation", self.augmentation, at_least=0))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        regrets = _regrets(self, point)
        return -regrets.amax(-1) - self.augmentation * regrets.sum(-1)


@dataclass(frozen=True)
class SmoothChebyshev(VectorUtility):
    """f_μ(J) = −μ log Σ_k exp(x_k / μ) with x_k = w_k (z*_k − J_k), w ≥ 0: concave, f_μ ≤ f ≤ f_μ + μ log K.

    f is `Chebyshev` without augmentation; c_k = w_k softmax(x / μ)_k.

    Args:
        weights: w [K], not negative, not all 0.
        ideal: z* [K], or one number for all: the best that each objective could be.
        temperature: μ > 0, in the unit of x.
    """

    kind: ClassVar[str] = "smooth-chebyshev"

    weights: Sequence[float]
    ideal: Numbers
    temperature: float

    def __post_init__(self) -> None:
        store(self, weights=_chebyshev_weights(self.weights), ideal=as_numbers("ideal", self.ideal))
        store(self, temperature=as_number("temperature", self.temperature, positive=True))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return -self.temperature * (_regrets(self, point) / self.temperature).logsumexp(-1)


@dataclass(frozen=True)
class ProportionalFairness(VectorUtility):
    """f(J) = Σ_k log(J_k + σ), concave where J_k > −σ, which is its domain. σ: a number, or K numbers."""

    kind: ClassVar[str] = "fairness"

    offset: Numbers

    def __post_init__(self) -> None:
        store(self, offset=as_numbers("offset", self.offset))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return _where_positive(point + point.new_tensor(self.offset)).log().sum(-1)


@dataclass(frozen=True)
class Reciprocals(VectorUtility):
    """f(J) = Σ_k −scale_k / (J_k + offset_k), concave where J_k > −offset_k, which is its domain.

    Args:
        scale: positive; a number, or K numbers.
        offset: a number, or K numbers.
    """

    kind: ClassVar[str] = "reciprocals"

    scale: Numbers
    offset: Numbers = 1.0

    def __post_init__(self) -> None:
        store(self, scale=as_numbers("scale", self.scale), offset=as_numbers("offset", self.offset))
        if min(np.atleast_1d(self.scale)) <= 0:
            raise ValueError(f"scale: expected positive numbers, got {self.scale}")
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return -(point.new_tensor(self.scale) / _where_positive(point + point.new_tensor(self.offset))).sum(-1)


@dataclass(frozen=True)
class SquareRoots(VectorUtility):
    """f(J) = Σ_k √(J_k + offset_k), concave where J_k ≥ −offset_k, its domain. offsets: K numbers, or one for all."""

    kind: ClassVar[str] = "square-roots"

    offsets: Numbers

    def __post_init__(self) -> None:
        store(self, offsets=as_numbers("offsets", self.offsets))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        return (point + point.new_tensor(self.offsets)).sqrt().sum(-1)


@dataclass(frozen=True)
class Lagrangian(VectorUtility):
    """One objective, subject to J_k ≥ threshold_k for others: max_θ min_{μ ≥ 0} of

        f(J) = J_objective + Σ_k μ_k (J_k − threshold_k),                  c = ∇f(J) = e_objective + μ
        μ_k ← clip(μ_k − step_size · (J_k − threshold_k), 0, max_multiplier)

    The sum is over the constrained objectives; the multipliers μ are [K], 0 for the others. Agents ascend f in θ, and call
    `ascend` after every iteration: a multiplier grows while its constraint is violated. At a fixed point (below
    max_multiplier) every constraint holds, and μ_k > 0 only where it holds with equality. f is linear in J: where only a
    mixture is optimal, θ and μ may circle around the solution, which their averages approach. μ should be slower than θ.

    Source: Altman, Constrained Markov Decision Processes (1999), for the Lagrangian; the multipliers' projected step is
    that of Tessler et al., arXiv:1805.11074, where constraints are upper bounds on costs.

    Args:
        objective: the index of what to maximise, from 0; or K weights, to maximise ⟨weights, J⟩.
        thresholds: K numbers, None for an objective without a constraint; a cost C ≤ α is the reward −C with −α.
        step_size: at least 0, in multipliers per unit of return; 0 keeps fixed penalties.
        initial_multiplier: of every constraint, at least 0.
        max_multiplier: bounds μ where constraints cannot be met; None for no bound.
    """

    kind: ClassVar[str] = "lagrangian"

    objective: int | Sequence[float]
    thresholds: Sequence[float | None]
    step_size: float
    initial_multiplier: float = 0.0
    max_multiplier: float | None = None

    def __post_init__(self) -> None:
        thresholds = as_bounds("thresholds", self.thresholds, -math.inf)
        if not isinstance(thresholds, tuple):
            raise ValueError(
                "thresholds: expected a sequence of K numbers, None for an objective without a constraint, at least one a "
                f"number, got {self.thresholds!r}"
            )
        objective: int | tuple[float, ...]
        if isinstance(self.objective, Integral):
            objective = int(as_number("objective", self.objective, at_least=0, at_most=len(thresholds) - 1, whole=True))
        else:
            objective = as_vector("objective", self.objective)
        most = None if self.max_multiplier is None else as_number("max_multiplier", self.max_multiplier, at_least=0)
        initial = as_number(
            "initial_multiplier", self.initial_multiplier, at_least=0, at_most=math.inf if most is None else most
        )
        store(self, objective=objective, thresholds=thresholds, max_multiplier=most, initial_multiplier=initial)
        store(self, step_size=as_number("step_size", self.step_size, at_least=0))
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        self._check_multipliers(multipliers)
        if isinstance(self.objective, int):
            objective = point[..., self.objective]
        else:
            objective = (point * point.new_tensor(self.objective)).sum(-1)
        return objective - (multipliers * self._violations(point)).sum(-1)

    def first_multipliers(self, num_objectives: int) -> Tensor:
        self.check_num_objectives(num_objectives)
        return torch.tensor([0.0 if threshold is None else self.initial_multiplier for threshold in self.thresholds])

    def ascend(self, multipliers: Tensor, returns: Tensor) -> Tensor:
        self._check_returns(returns)
        self._check_multipliers(multipliers)
        ascended = multipliers.detach() + self.step_size * self._violations(returns.detach()).to(multipliers)
        return ascended.clamp(0.0, self.max_multiplier)

    def violations(self, returns: Tensor) -> Tensor:
        """By how much J_k is below its threshold, [..., K] of `returns` [..., K]; 0 where it is not."""
        self._check_returns(returns)
        return self._violations(returns).clamp_min(0.0)

    def _violations(self, returns: Tensor) -> Tensor:
        """threshold_k − J_k, 0 for objectives without a constraint."""
        constrained = returns.new_tensor([threshold is not None for threshold in self.thresholds])
        return constrained * (returns.new_tensor([threshold or 0.0 for threshold in self.thresholds]) - returns)

    def _check_multipliers(self, multipliers: Tensor) -> None:
        if multipliers.shape != (len(self.thresholds),):
            raise ValueError(f"multipliers: expected shape ({len(self.thresholds)},), got {tuple(multipliers.shape)}")


@dataclass(frozen=True)
class UserUtility(VectorUtility):
    """A user's differentiable function from J [K] to a scalar tensor. It trains, but it cannot be saved.

    It is called with one vector at a time, also where there are many, and always with a point of the box.
    """

    kind: ClassVar[str] = "user"

    function: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise ValueError(f"function: expected a function from returns [K] to a scalar tensor, got {self.function!r}")
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        # One by one: a function that indexes J[0] would take the first of a batch [N, K] for the first objective.
        values = [self._scalar(row) for row in point.reshape(-1, point.shape[-1])]
        return torch.stack(values).reshape(point.shape[:-1]) if values else point.new_zeros(point.shape[:-1])

    def __str__(self) -> str:
        return f"user:{getattr(self.function, '__name__', repr(self.function))}"

    def _scalar(self, row: Tensor) -> Tensor:
        value = self.function(row)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"utility: {self}: expected a scalar tensor of the returns, got {value!r}")
        return value.reshape(())


def queue_utility(horizon: int, gamma: float) -> Reciprocals:
    """Σ_k −H / (J_k + 1) with the box [0, Σ_{t<H} γ^t]: J_k is the discounted number of jobs that queue k had served.

    Source: Guidobene et al., arXiv:2508.10608, as in the configuration that was published with it.

    Args:
        horizon: H, environment steps of an episode.
        gamma: the discount, in [0, 1]; at 1 the box ends at H.
    """
    check_number("horizon", horizon, at_least=1, whole=True)
    check_number("gamma", gamma, at_least=0, at_most=1)
    most = float(horizon) if gamma == 1 else (1 - gamma**horizon) / (1 - gamma)
    return Reciprocals(scale=float(horizon), offset=1.0, low=0.0, high=most)


def deep_sea_treasure_utility() -> SquareRoots:
    """√(J_0 + 1) + √(101 + J_1) with the box J_0 ≥ 0, −100 ≤ J_1 ≤ 0; J_0 is the treasure, J_1 minus the time.

    Source: Guidobene et al., arXiv:2508.10608, as in the configuration that was published with it.
    """
    return SquareRoots((1.0, 101.0), low=(0.0, -100.0), high=(None, 0.0))


KINDS: dict[str, type[VectorUtility]] = {
    cls.kind: cls
    for cls in (
        Identity,
        WeightedSum,
        Chebyshev,
        SmoothChebyshev,
        ProportionalFairness,
        Reciprocals,
        SquareRoots,
        Lagrangian,
    )
}
NAMED: dict[str, Callable[..., VectorUtility]] = {"queue": queue_utility, "deep-sea-treasure": deep_sea_treasure_utility}
NAMED_USAGE = {"queue": "queue:HORIZON,GAMMA", "deep-sea-treasure": "deep-sea-treasure"}


def as_vector_utility(value: Any) -> VectorUtility:
    """A utility of vectors of returns from whatever stands for one.

    Args:
        value: a `VectorUtility`; K weights, for `WeightedSum`; a text, whose grammar is at the top of this module; or a
            differentiable function from J [K] to a scalar tensor, for `UserUtility`.

    Raises:
        ValueError: anything else, such as an unknown name or a utility of the occupancy.
    """
    if isinstance(value, VectorUtility):
        return value
    if isinstance(value, str):
        return _parse(value)
    if isinstance(value, tuple(OCCUPANCY_KINDS.values())):
        raise ValueError(f"utility: expected a utility of vectors of returns, got one of the occupancy: {value!r}")
    if isinstance(value, Sequence | np.ndarray | Tensor):
        return WeightedSum(as_vector("utility", value))
    if callable(value) and not isinstance(value, type):
        return UserUtility(value)
    raise ValueError(
        "utility: expected a utility of rlopt.objectives, a text such as 'chebyshev:0.5,0.5;ideal=1,1', weights, or a "
        f"function of the returns, got {value!r}"
    )


def scalarised_expected_return(utility: VectorUtility, returns: Tensor) -> Tensor:
    """SER, f(mean of R⃗): the utility of the expected return, from `returns` [N, K] of N episodes of one policy.

    `MOPG`, `MOTSIVRPG` and `PPO` maximise this. A policy that mixes may be better by it than all that do not. From few
    episodes the estimate is biased, downwards where f is concave.
    """
    return utility.checked(_episodes(returns).mean(0))


def expected_scalarised_return(utility: VectorUtility, returns: Tensor) -> Tensor:
    """ESR, mean of u(R⃗): the expected utility of an episode, from `returns` [N, K] of N episodes of one policy.

    `MOPG(criterion="esr")` maximises this. It is at most the SER where u is concave, and the same where u is linear or
    all episodes have the same return.
    """
    return utility.checked(_episodes(returns)).mean()


def check_preferences(weights: Tensor | Sequence[Any], name: str = "preferences") -> None:
    """Raises ValueError unless `weights` [..., K] are finite, not negative, and sum to one over the objectives."""
    try:
        rows = torch.as_tensor(weights, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"{name}: expected numbers [..., K], got {weights!r}") from None
    if rows.ndim == 0 or rows.shape[-1] == 0:
        raise ValueError(f"{name}: expected numbers [..., K], got shape {tuple(rows.shape)}")
    if not bool((torch.isfinite(rows) & (rows >= 0)).all()):
        wrong = rows[~(torch.isfinite(rows) & (rows >= 0))][0]
        raise ValueError(f"{name}: expected weights that are finite and not negative, got {float(wrong):g}")
    sums = rows.sum(-1).reshape(-1)
    if bool(((sums - 1).abs() > PREFERENCE_TOLERANCE).any()):
        raise ValueError(f"{name}: expected weights that sum to one, got {float(sums[(sums - 1).abs().argmax()]):.10g}")


def vector_utility_to_data(name: str, utility: VectorUtility) -> dict[str, Any]:
    """A utility of this module as plain data for a file; `name` is the argument's, for the error.

    Raises:
        ValueError: a `UserUtility` or a user's subclass, whose code cannot be stored.
    """
    if KINDS.get(utility.kind) is not type(utility):
        raise ValueError(f"{name}: {utility} is a user's own and cannot be saved; use a utility of rlopt.objectives")
    values = {argument.name: getattr(utility, argument.name) for argument in arguments_of(type(utility))}
    as_lists = {argument: list(value) if isinstance(value, tuple) else value for argument, value in values.items()}
    return {"vector_utility": utility.kind} | as_lists


def vector_utility_from_data(data: dict[str, Any]) -> VectorUtility:
    """The inverse of `vector_utility_to_data`.

    Raises:
        ValueError: an unknown kind, or impossible values; TypeError: other fields than it has.
    """
    check_choice("vector_utility", data["vector_utility"], tuple(KINDS))
    return KINDS[data["vector_utility"]](**{name: value for name, value in data.items() if name != "vector_utility"})


def _parse(text: str) -> VectorUtility:
    head, *options = (part.strip() for part in text.split(";"))
    kind, colon, first = (part.strip() for part in head.partition(":"))
    if not colon and kind[:1] in tuple("0123456789+-."):
        kind, colon, first = WeightedSum.kind, ":", kind
    kind = kind.lower().replace("_", "-")
    check_choice("utility", kind, (*KINDS, *NAMED))
    usage = NAMED_USAGE[kind] if kind in NAMED else usage_text(kind, KINDS[kind])
    try:
        if kind in KINDS:
            return KINDS[kind](**read_arguments(KINDS[kind], first if colon else None, options))
        value = read_value(first) if colon else ()
        numbers = value if isinstance(value, tuple) else (value,)
        if options or len(numbers) != usage.count(",") + (":" in usage):
            raise ValueError("it takes other arguments")
        return NAMED[kind](*numbers)
    except ValueError as error:
        raise ValueError(f"utility: expected {usage}, got {text!r}: {error}") from None


def _chebyshev_weights(value: Any) -> tuple[float, ...]:
    weights = as_vector("weights", value)
    if min(weights) < 0 or max(weights) == 0:
        raise ValueError(f"weights: expected numbers that are not negative, and not all 0, got {weights}")
    return weights


def _regrets(utility: Chebyshev | SmoothChebyshev, point: Tensor) -> Tensor:
    """x_k = w_k (z*_k − J_k), [..., K]."""
    return point.new_tensor(utility.weights) * (point.new_tensor(utility.ideal) - point)


def _where_positive(x: Tensor) -> Tensor:
    """x, and NaN where it is not positive, in derivatives too.

    Beyond its pole a logarithm or a reciprocal would have a finite derivative, that of the wrong branch.
    """
    return x * torch.where(x > 0, 1.0, math.nan).to(x)


def _episodes(returns: Tensor) -> Tensor:
    if returns.ndim != 2 or not len(returns):
        raise ValueError(f"returns: expected [N, K] of at least one episode, got shape {tuple(returns.shape)}")
    return returns


def _check_finite(returns: Tensor) -> None:
    if not bool(torch.isfinite(returns).all()):
        first = (~torch.isfinite(returns)).nonzero()[0].tolist()
        raise ValueError(f"returns: expected finite numbers, got {float(returns[tuple(first)]):g} for objective {first[-1]}")


def _entry(tensor: Tensor, index: int) -> float:
    return float(tensor.detach().reshape(-1)[index])


def _count(number: int | None, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
