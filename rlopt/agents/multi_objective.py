"""What agents share that maximise a utility of the vector of expected returns: its weights, scalarised batches, instruments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import Batch, EpisodicAgent
from rlopt.arguments import check_number
from rlopt.estimators import discounted_return, log_ratio
from rlopt.logging import COSINE, MULTI_OBJECTIVE, Layout, episodic_layout
from rlopt.objectives import Identity, VectorUtility, agreed_num_objectives, as_vector_utility
from rlopt.rollout import Rollout
from rlopt.schedules import Constant, IterationScheduleLike, as_iteration_schedule

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

    layout: Layout = episodic_layout(MULTI_OBJECTIVE, without=COSINE)

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
        if common.get("memory") is not None and as_iteration_schedule("ent_coef", ent_coef) != Constant(0.0):
            raise ValueError("ent_coef: expected 0 with memory, whose noise would be part of the entropy")
        self._entropy_weight(0)
        if common.get("normalize_rewards") and not isinstance(self._utility, Identity):
            raise ValueError("normalize_rewards: expected False, as the utility is one of the environment's own returns")
        super().__init__(policy, env, **common)

    def init(self, theta: Tensor) -> MultiObjectiveState:
        nothing = theta.new_zeros(0)
        return MultiObjectiveState(*self.first_state(theta), nothing, nothing, nothing, nothing, {})

    def check_rewards(self, num_objectives: int) -> None:
        """Raises ValueError unless the utility is one of this many rewards."""
        agreed_num_objectives(None, self._utility.num_objectives, num_objectives)

    # ------------------------------------------------------------------ the words of an algorithm box

    def returns(self, rollout: Rollout) -> Tensor:
        """R⃗(τ) = Σ_t γ^t r⃗_t of every episode, [N, K]."""
        returns = discounted_return(rollout.vector_rewards(), self.gamma)
        self.check_rewards(returns.shape[-1])
        return returns

    def scalarised_batch(
        self, rollout: Rollout, slopes: Tensor, state: MultiObjectiveState, theta: Tensor, entropy_weight: float
    ) -> Batch:
        """These episodes as if they had paid Σ_k c_k r_k − τ log π_θ(a | s)."""
        scalar = rollout.scalarised(slopes)
        if entropy_weight:
            scalar = replace(scalar, rewards=scalar.rewards + entropy_weight * self.surprise(theta, rollout))
        return self.batch_of(scalar, scalar.rewards, state)

    # ------------------------------------------------------------------ parts

    @torch.no_grad()
    def surprise(self, theta: Tensor, rollout: Rollout) -> Tensor:
        """−log π_θ(a | s), [T, N], 0 on padding. Its own gradient has mean 0, so it is a reward like any other."""
        log_probs = rollout.log_probs + log_ratio(self.log_policy, theta, rollout)
        return torch.where(rollout.mask, -log_probs, 0.0)

    def _entropy_weight(self, iteration: int) -> float:
        """τ_t."""
        value = float(as_iteration_schedule("ent_coef", self.ent_coef)(iteration))
        check_number("ent_coef", value, at_least=0)
        return value
