"""How agents with one critic for every objective weigh the objectives: by a utility's slopes, or by a preference."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from rlopt.agents.judgement import judge
from rlopt.arguments import did_you_mean
from rlopt.envs.base import Environments
from rlopt.envs.preferences import PREFERENCE, Preferences
from rlopt.logging import BY_UTILITY_LAYOUT, LAYOUT, Layout
from rlopt.objectives import VectorUtility, as_vector_utility
from rlopt.rollout import Rollout

PREFERENCES = "preferences"


class Objectives(NamedTuple):
    """What is known of the objectives."""

    returns: Tensor  # J [K], the mean undiscounted returns of recent episodes; [0] until one has ended
    multipliers: Tensor  # of a utility with constraints; [0] for others


class Weighing(Protocol):
    """From what is known of the objectives to the weights of their advantages."""

    num_objectives: int | None
    layout: Layout  # TensorBoard's first page

    def dressed(self, environments: Environments, num_objectives: int | None) -> Environments:
        """The environments as the agent sees them; `num_objectives` is K, where they do not say it."""
        ...

    def weights(self, objectives: Objectives, rollout: Rollout) -> tuple[Tensor, Objectives, dict[str, Tensor]]:
        """w [K] or [T, N, K] for rewards as the environment pays them, what follows, and what to log."""
        ...


class ByUtility:
    """c = ∇f(J): all steps alike, the scalarised expected return f(E[R⃗])."""

    layout = BY_UTILITY_LAYOUT

    def __init__(self, utility: VectorUtility):
        self.utility = utility
        self.num_objectives = utility.num_objectives

    def dressed(self, environments: Environments, num_objectives: int | None) -> Environments:
        return environments

    def weights(self, objectives: Objectives, rollout: Rollout) -> tuple[Tensor, Objectives, dict[str, Tensor]]:
        """∇f(J) [K]; all alike until an episode has ended."""
        returns, multipliers = objectives
        if not len(returns):  # no episode has ended: there is no J to judge
            size = rollout.vector_rewards().shape[-1]
            return returns.new_full((size,), 1.0 / size), objectives, {}
        judgement = judge(self.utility, returns, multipliers)
        return judgement.slopes, Objectives(returns, judgement.multipliers), judgement.metrics(returns)


class ByPreference:
    """w of the episode that a step belongs to, which the policy sees: one policy for all weighted sums.

    Source: Abels et al., arXiv:1809.07803, for conditioning on the weights.
    """

    num_objectives: int | None = None
    layout = LAYOUT

    def dressed(self, environments: Environments, num_objectives: int | None) -> Environments:
        if not isinstance(environments, Preferences):
            return Preferences(environments, num_objectives=num_objectives)
        if environments.scalarise:
            raise ValueError("env: preferences with scalarise=True pay one number; leave it False for utility='preferences'")
        return environments

    def weights(self, objectives: Objectives, rollout: Rollout) -> tuple[Tensor, Objectives, dict[str, Tensor]]:
        """The preferences [T, N, K] that the policy saw."""
        assert isinstance(rollout.observations, dict)
        return rollout.observations[PREFERENCE], objectives, {}


def as_weighing(utility: Any) -> Weighing | None:
    """From the argument `utility`; None for None."""
    if utility is None:
        return None
    if isinstance(utility, str) and utility == PREFERENCES:
        return ByPreference()
    if isinstance(utility, str) and (hint := did_you_mean(utility, [PREFERENCES])):
        raise ValueError(f"utility: expected {PREFERENCES!r} or a text such as 'weighted-sum:0.5,0.5', got {utility!r}{hint}")
    return ByUtility(as_vector_utility(utility))
