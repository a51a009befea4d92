"""Baselines b_t ≈ Σ_{h≥t} γ^{h−t} r_h that keep a policy gradient unbiased.

Each is a frozen value with one tensor of its own, learned from *earlier* episodes: `values` reads it, `fit` makes the
next one. Nothing of an episode itself enters its baseline but the state it is in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from rlopt.estimators.returns import discounted_sums, mean_of_others
from rlopt.rollout import Observations, Rollout

BaselineName = Literal["none", "time", "leave_one_out", "linear"]

OBSERVATION_BOUND = 10.0  # features are clipped here: their squares must not rule the regression
RIDGE = 1e-5  # relative to each feature's second moment
MAX_FEATURES = 2_000  # of a linear baseline, whose regression solves a square system of them


class Baseline(Protocol):
    """What agents ask of a baseline."""

    def init(self) -> Tensor:
        """Its tensor before any data; with it `values` are 0."""
        ...

    def values(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        """b_t, [T, N], for episodes with these returns to go."""
        ...

    def fit(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        """The tensor after these episodes."""
        ...


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Σ_{h≥t} γ^{h−t} r_h, [T, N]: relative discounts, as a critic predicts them; 0 on padding."""
    valid = rewards * mask.to(rewards.dtype)
    return discounted_sums(valid, torch.full_like(valid, gamma))


@dataclass(frozen=True)
class NoBaseline:
    """b = 0."""

    def init(self) -> Tensor:
        return torch.zeros(0)

    def values(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        return torch.zeros_like(returns)

    def fit(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        return learned


@dataclass(frozen=True)
class LeaveOneOutBaseline:
    """b_t of an episode is the mean return to go at t of the other episodes that last that long."""

    def init(self) -> Tensor:
        return torch.zeros(0)

    def values(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        return mean_of_others(returns, rollout.mask)

    def fit(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        return learned


@dataclass(frozen=True)
class TimeBaseline:
    """b_t is the mean return to go at t of the batch before; 0 where that had no episode so long."""

    def init(self) -> Tensor:
        return torch.zeros(0)

    def values(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        table = torch.zeros_like(returns[:, 0])
        known = min(len(table), len(learned))
        table[:known] = learned[:known]
        return table.unsqueeze(1) * rollout.mask

    def fit(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        return returns.sum(1) / rollout.mask.sum(1).clamp_min(1)


@dataclass(frozen=True)
class LinearBaseline:
    """Ridge regression of the return to go on (1, s, s², τ, τ², τ³) with τ = t/100, fitted on the batch before.

    Source: Duan et al., arXiv:1604.06778, section 4; the estimator of arXiv:2302.01734's experiments.
    """

    def init(self) -> Tensor:
        return torch.zeros(0)

    def values(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        if not len(learned):
            return torch.zeros_like(returns)
        return (self.features(rollout).to(learned.dtype) @ learned).to(returns.dtype) * rollout.mask

    def fit(self, learned: Tensor, rollout: Rollout, returns: Tensor) -> Tensor:
        rows = rollout.valid_rows()
        features = self.features(rollout).flatten(0, 1)[rows].double()
        moments = features.T @ features / len(rows)
        ridge = torch.diag(RIDGE * moments.diagonal() + 1e-12)  # a feature may be 0 everywhere
        return torch.linalg.solve(moments + ridge, features.T @ returns.flatten()[rows].double() / len(rows))

    def features(self, rollout: Rollout) -> Tensor:
        """[T, N, F]."""
        states = _flat(rollout.observations)
        if 2 * states.shape[-1] > MAX_FEATURES:
            raise ValueError(
                f"baseline: 'linear' cannot read observations of {states.shape[-1]} numbers; use 'leave_one_out' or 'time'"
            )
        states = states.clamp(-OBSERVATION_BOUND, OBSERVATION_BOUND)
        time = torch.arange(len(states), dtype=states.dtype, device=states.device).view(-1, 1, 1) / 100.0
        time = time.expand(*states.shape[:2], 1)
        return torch.cat([torch.ones_like(time), states, states.square(), time, time**2, time**3], -1)


def _flat(observations: Observations) -> Tensor:
    """[T, N, F]: all entries of an observation side by side, as floats."""
    parts = list(observations.values()) if isinstance(observations, dict) else [observations]
    return torch.cat([part.reshape(*part.shape[:2], -1).float() for part in parts], -1)


BASELINES: dict[BaselineName, Baseline] = {
    "none": NoBaseline(),
    "time": TimeBaseline(),
    "leave_one_out": LeaveOneOutBaseline(),
    "linear": LinearBaseline(),
}
