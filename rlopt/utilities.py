"""General utilities F(λ) of the discounted occupancy λ(s, a): what NVRPG maximises, beyond a sum of rewards.

A utility is any differentiable function from a tensor [S, A] to a scalar tensor. Those below are frozen values, so
that an agent with one can be saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from rlopt.arguments import check_choice, check_number

Utility = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class LinearUtility:
    """F(λ) = ⟨λ, r⟩ with a table of rewards [S, A]."""

    rewards: Sequence[Sequence[float]]

    def __call__(self, occupancy: Tensor) -> Tensor:
        return (occupancy * table_like(occupancy, "rewards", self.rewards)).sum()


@dataclass(frozen=True)
class EntropyUtility:
    """F(λ) = −Σ_s d(s) log(d(s) + σ), the entropy of the state distribution d(s) = Σ_a λ(s, a) / Σ λ, in nats.

    σ ≥ 0 bounds the gradient where a state is not visited.
    """

    smoothing: float = 1e-3

    def __post_init__(self) -> None:
        check_number("smoothing", self.smoothing, at_least=0)

    def __call__(self, occupancy: Tensor) -> Tensor:
        states = occupancy.sum(1)
        distribution = states / states.sum()
        return -(distribution * (distribution + self.smoothing).log()).sum()


@dataclass(frozen=True)
class ImitationUtility:
    """F(λ) = −‖λ/Σλ − d*‖², d* a target distribution over states and actions, [S, A], of sum 1."""

    target: Sequence[Sequence[float]]

    def __call__(self, occupancy: Tensor) -> Tensor:
        target = table_like(occupancy, "target", self.target)
        return -(occupancy / occupancy.sum() - target).square().sum()


def table_like(occupancy: Tensor, name: str, table: Sequence[Sequence[float]]) -> Tensor:
    """The table [S, A] as a tensor beside the occupancy.

    Raises:
        ValueError: it has another shape.
    """
    tensor = torch.as_tensor(table, dtype=occupancy.dtype, device=occupancy.device)
    if tensor.shape != occupancy.shape:
        raise ValueError(f"utility: its {name} have shape {tuple(tensor.shape)}, the occupancy {tuple(occupancy.shape)}")
    return tensor


KINDS: dict[str, type[LinearUtility | EntropyUtility | ImitationUtility]] = {
    "linear": LinearUtility,
    "entropy": EntropyUtility,
    "imitation": ImitationUtility,
}


def as_utility(value: Any) -> Utility | None:
    """A utility from "reward" (None: the environment's own rewards), "entropy", or a function of the occupancy.

    Raises:
        ValueError: anything else.
    """
    if callable(value):
        return value
    check_choice("utility", value, ("reward", "entropy"))
    return EntropyUtility() if value == "entropy" else None


def utility_gradient(utility: Utility, occupancy: Tensor) -> tuple[Tensor, Tensor]:
    """F(λ) and ∇F(λ) [S, A], at λ with its negative entries, which only an estimate can have, put to 0.

    Raises:
        ValueError: the utility does not return one number, or its gradient is not finite.
    """
    point = occupancy.detach().clamp_min(0.0).requires_grad_()
    with torch.enable_grad():
        value = utility(point)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"utility: expected a scalar tensor of the occupancy, got {value!r}")
        if not value.requires_grad:
            raise ValueError("utility: its value does not depend on the occupancy through torch operations")
        (gradient,) = torch.autograd.grad(value.sum(), point, allow_unused=True)
    gradient = torch.zeros_like(point) if gradient is None else gradient
    if not bool(torch.isfinite(gradient).all()):
        state, action = (int(i) for i in (~torch.isfinite(gradient)).nonzero()[0])
        raise ValueError(
            f"utility: its gradient is not finite at state {state}, action {action}, where the occupancy is "
            f"{float(occupancy[state, action].clamp_min(0.0)):g}; smooth the utility there, as EntropyUtility does"
        )
    return value.detach().squeeze(), gradient


def utility_to_data(utility: Any) -> dict[str, Any]:
    """A utility of this module as plain data."""
    kind = next(name for name, cls in KINDS.items() if isinstance(utility, cls))
    fields = {name: torch.as_tensor(value, dtype=torch.float64).tolist() for name, value in asdict(utility).items()}
    return {"utility": kind, **fields}


def utility_from_data(data: dict[str, Any]) -> Utility:
    """The inverse of `utility_to_data`.

    Raises:
        ValueError: an unknown kind; TypeError: other fields than it has.
    """
    check_choice("utility", data["utility"], tuple(KINDS))
    return KINDS[data["utility"]](**{name: value for name, value in data.items() if name != "utility"})
