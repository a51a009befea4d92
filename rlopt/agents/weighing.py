"""How agents with one critic for every objective weigh the objectives: by a utility's slopes, or by a preference."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from rlopt.envs.base import Environments
from rlopt.envs.normalize import EPSILON, RewardNormalizer
from rlopt.envs.preferences import PREFERENCE, Preferences
from rlopt.objectives import VectorUtility, as_vector_utility
from rlopt.rollout import Rollout
from rlopt.statistics import EpisodeStatistics

PREFERENCES = "preferences"


class Objectives(NamedTuple):
    """What is known of the objectives; [0] before anything is."""

    returns: Tensor  # J [K], the mean undiscounted returns of recent episodes
    multipliers: Tensor  # of a utility with constraints; [0] for others


class Weighing(Protocol):
    """From what is known of the objectives to the weights of their advantages."""

    num_objectives: int | None

    def dressed(self, environments: Environments) -> Environments:
        """The environments as the agent sees them."""
        ...

    def weights(self, objectives: Objectives, rollout: Rollout) -> tuple[Tensor, Objectives, dict[str, Tensor]]:
        """w [K] or [T, N, K] for rewards as the environment pays them, what follows, and what to log."""
        ...


class ByUtility:
    """c = ∇f(J): all steps alike, the scalarised expected return f(E[R⃗])."""

    def __init__(self, utility: VectorUtility):
        self.utility = utility
        self.num_objectives = utility.num_objectives

    def dressed(self, environments: Environments) -> Environments:
        return environments

    def weights(self, objectives: Objectives, rollout: Rollout) -> tuple[Tensor, Objectives, dict[str, Tensor]]:
        returns, multipliers = objectives
        if not len(multipliers):
            multipliers = self.utility.first_multipliers(len(returns)).to(returns)
        value, slopes = self.utility.value_and_gradient(returns, multipliers)
        named = {"objective": returns, "slope": slopes, "multiplier": multipliers}
        metrics = {"utility": value} | {f"{name}_{k}": x for name, vector in named.items() for k, x in enumerate(vector)}
        return slopes, Objectives(returns, self.utility.ascend(multipliers, returns)), metrics


class ByPreference:
    """w of the episode that a step belongs to, which the policy sees: one policy for all weighted sums.

    Source: Abels et al., arXiv:1809.07803, for conditioning on the weights.
    """

    num_objectives: int | None = None

    def dressed(self, environments: Environments) -> Environments:
        return environments if isinstance(environments, Preferences) else Preferences(environments)

    def weights(self, objectives: Objectives, rollout: Rollout) -> tuple[Tensor, Objectives, dict[str, Tensor]]:
        assert isinstance(rollout.observations, dict)
        return rollout.observations[PREFERENCE], objectives, {}


def as_weighing(utility: Any) -> Weighing | None:
    """From the argument `utility`; None for None."""
    if utility is None:
        return None
    return ByPreference() if isinstance(utility, str) and utility == PREFERENCES else ByUtility(as_vector_utility(utility))


def checked_num_objectives(given: int | None, of_utility: int | None, of_environments: int | None) -> int:
    """K, from whoever says it.

    Raises:
        ValueError: nobody does, or two differ.
    """
    said = {
        "num_objectives": given,
        "the utility": of_utility,
        "the environment": of_environments,
    }
    known = {who: number for who, number in said.items() if number is not None}
    if not known:
        raise ValueError("num_objectives: neither the utility nor the environment says how many there are; give the number")
    if len(set(known.values())) > 1:
        stated = ", ".join(f"{who} has {number}" for who, number in known.items())
        raise ValueError(f"utility: expected as many objectives as the environment pays rewards; {stated}")
    return next(iter(known.values()))


def recent_returns(statistics: EpisodeStatistics, num_objectives: int, before: Tensor) -> Tensor:
    """J [K], the mean return of the last episodes; `before`, or 0, until one has ended."""
    if not statistics.recent:
        return before if len(before) else before.new_zeros(num_objectives)
    means = np.mean([np.atleast_1d(episode["r"]) for episode in statistics.recent], axis=0)
    return torch.as_tensor(means, dtype=before.dtype, device=before.device)


def reward_scales(normalizer: RewardNormalizer | None, like: Tensor) -> Tensor | float:
    """What a normalised reward is multiplied by to be the environment's, [K]; 1 without normalisation."""
    if normalizer is None:
        return 1.0
    return torch.as_tensor(np.sqrt(np.asarray(normalizer.moments.var) + EPSILON), dtype=like.dtype, device=like.device)
