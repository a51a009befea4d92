"""What agents share that maximise a utility of the vector of expected returns: its weights, scalarised batches, instruments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import Batch, EpisodicAgent
from rlopt.arguments import check_number
from rlopt.estimators import discounted_return, log_ratio
from rlopt.logging import MULTI_OBJECTIVE, Layout, Metrics, episodic_layout
from rlopt.objectives import VectorUtility, as_vector_utility
from rlopt.rollout import Rollout
from rlopt.schedules import IterationScheduleLike, as_iteration_schedule

OBJECTIVES = "objectives"  # the stream of the episodes that estimate J, independent of those that estimate the gradient


class MultiObjectiveState(NamedTuple):
    """`EpisodicState`, the tracked J, and the weights of the objectives; [0] before the first iteration."""

    theta: Tensor
    previous: Tensor
    direction: Tensor
    baseline: Tensor
    travelled: Tensor
    iteration: int
    num_trajectories: int
    num_truncated: int
    num_refused: int
    objectives: Tensor  # J_{t−1} [K], never projected
    slopes: Tensor  # c_{t−1} = ∇f(proj J_{t−1}) [K]
    slopes_before: Tensor  # c_{t−2} [K]
    multipliers: Tensor  # of a utility with constraints; [0] for others
    moments: dict[str, Tensor]  # of Adam


class MultiObjectiveAgent(EpisodicAgent):
    """Arguments of agents that ascend f(J(θ)), J [K] the expected discounted returns of K objectives.

    ∇f(J(θ)) is the policy gradient of one reward, Σ_k c_k r_k with c = ∇f(J): what remains is to know J. This is the
    scalarised expected return (SER); the expected scalarised return E[u(R⃗)] is another objective, see `MOPG`.

    Args:
        utility: f, to be maximised: weights of a sum such as [0.5, 0.5]; a text such as "chebyshev:0.5,0.5;ideal=23.7,-1";
            an object of `rlopt.objectives`; or a differentiable function from J [K] to a scalar. "identity" is for one
            reward.
        ent_coef: τ_t ≥ 0, the weight of one more reward, −log π(a | s), which keeps the policy exploring; a schedule, as
            `step_size`.
    """

    layout: ClassVar[Layout] = episodic_layout(MULTI_OBJECTIVE)

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        *,
        utility: str | Sequence[float] | VectorUtility | Callable[[Tensor], Tensor] = "identity",
        ent_coef: IterationScheduleLike = 0.0,
        **common: Any,
    ):
        self.utility, self.ent_coef = utility, ent_coef
        self._utility: VectorUtility = as_vector_utility(utility)
        if self._entropy_weight(0) and common.get("memory") is not None:
            raise ValueError("ent_coef: expected 0 with memory, whose noise would be part of the entropy")
        super().__init__(policy, env, **common)

    def init(self, theta: Tensor) -> MultiObjectiveState:
        nothing = theta.new_zeros(0)
        return MultiObjectiveState(*self.first_state(theta), nothing, nothing, nothing, nothing, {})

    # ------------------------------------------------------------------ the words of an algorithm box

    def returns(self, rollout: Rollout) -> Tensor:
        """R⃗(τ) = Σ_t γ^t r⃗_t of every episode, [N, K]."""
        returns = discounted_return(rollout.vector_rewards(), self.gamma)
        if self._utility.num_objectives not in (None, returns.shape[-1]):
            raise ValueError(
                f"env: it pays {returns.shape[-1]} rewards a step, and the utility is one of {self._utility.num_objectives}"
            )
        return returns

    def judged(self, objectives: Tensor, state: MultiObjectiveState) -> tuple[Tensor, Tensor, Tensor]:
        """f(J), c = ∇f(proj J) [K], and what the multipliers of constraints become at J."""
        multipliers = state.multipliers if len(state.multipliers) else self._first_multipliers(objectives)
        value, slopes = self._utility.value_and_gradient(objectives, multipliers)
        return value, slopes, self._utility.ascend(multipliers, objectives)

    def scalarised_batch(
        self, rollout: Rollout, slopes: Tensor, state: MultiObjectiveState, theta: Tensor, entropy_weight: float
    ) -> Batch:
        """These episodes as if they had paid Σ_k c_k r_k − τ log π_θ(a | s)."""
        scalar = rollout.scalarised(slopes)
        if entropy_weight:
            scalar = replace(scalar, rewards=scalar.rewards + entropy_weight * self._surprise(theta, rollout))
        return self.batch_of(scalar, scalar.rewards, state)

    # ------------------------------------------------------------------ parts

    def objective_metrics(self, state: MultiObjectiveState, value: Tensor, tracked: Tensor, returns: Tensor) -> Metrics:
        """f(J), and for every objective J, c and how far the tracked J is from fresh returns [N, K], in standard errors."""
        metrics: dict[str, Tensor | float] = {"utility": value}
        fresh, deviation = returns.mean(0), returns.std(0) if len(returns) > 1 else returns[0] * 0.0
        errors = (tracked - fresh).abs() / (deviation / len(returns) ** 0.5).clamp_min(1e-12)
        metrics |= {f"objective_{k}": value for k, value in enumerate(tracked)}
        metrics |= {f"slope_{k}": value for k, value in enumerate(state.slopes)}
        metrics |= {f"multiplier_{k}": value for k, value in enumerate(state.multipliers)}
        return metrics | {
            "objectives_error": errors.max(),
            "outside_box": (tracked - self._utility.project(tracked)).norm(),
            "slope_change": (state.slopes - state.slopes_before).norm(),
        }

    def _first_multipliers(self, objectives: Tensor) -> Tensor:
        return self._utility.first_multipliers(len(objectives)).to(objectives)

    @torch.no_grad()
    def _surprise(self, theta: Tensor, rollout: Rollout) -> Tensor:
        """−log π_θ(a | s), [T, N], 0 on padding. Its own gradient has mean 0, so it is a reward like any other."""
        log_probs = rollout.log_probs + log_ratio(self.log_policy, theta, rollout)
        return torch.where(rollout.mask, -log_probs, 0.0)

    def _entropy_weight(self, iteration: int) -> float:
        """τ_t."""
        value = float(as_iteration_schedule("ent_coef", self.ent_coef)(iteration))
        check_number("ent_coef", value, at_least=0)
        return value
