"""MO-TSIVR-PG: variance-reduced policy gradient of a utility of several expected returns, with truncated steps."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.judgement import judge
from rlopt.agents.multi_objective import OBJECTIVES, MultiObjectiveAgent, MultiObjectiveState
from rlopt.arguments import check_choice, check_number
from rlopt.collector import Collector
from rlopt.estimators import importance_weights, log_ratio, return_differences
from rlopt.logging import CORRECTION, MULTI_OBJECTIVE, TRUNCATION, WEIGHTS, Metrics, episodic_layout
from rlopt.presets import with_preset
from rlopt.rollout import Rollout
from rlopt.schedules import IterationScheduleLike, as_iteration_schedule
from rlopt.updates import corrected_momentum, truncated_step

Batches = Literal["independent", "lagged"]
Weighting = Literal["doubly_robust", "per_step"]


class MOTSIVRPG(MultiObjectiveAgent):
    """One recursion, twice: for J, whose slopes c = ∇f(J) make one reward of many, and for the direction.

    A large batch begins both anew; small ones, weighted back to θ_{t−1}, add what has changed since. J and the direction
    take batches of their own, so that both stay unbiased given the slopes.

    Source: Guidobene, Benedetti, Arapovic, arXiv:2508.10608, after Zhang et al., arXiv:2102.08607 (TSIVR-PG). Weights are
    π_{θ_{t−1}}/π_{θ_t}, at the rewards; those of the public code are inverted.

    Args:
        step_size: α_t, of the direction; a number, "power:VALUE:EXPONENT" for VALUE · (2/(t + 2))^EXPONENT, or a
            function of t.
        restart_every: m, iterations of an epoch, the restart included.
        num_small: B, episodes of an iteration between restarts; `num_episodes` is N, those of a restart.
        radius: δ_t, no step is longer; a schedule, as `step_size`. 1/(2H) for episodes of H steps keeps importance weights
            within e, in theory.
        batches: "independent" takes twice as many episodes, one batch for J and one for the direction; "lagged" one for
            both, whose direction has the slopes of the iteration before.
        weighting: importance weights "per_step", at every reward, as in the paper; "doubly_robust" subtracts from the
            rewards what the others of the batch were paid, where that has mean 0.
    """

    layout = episodic_layout(MULTI_OBJECTIVE, WEIGHTS, CORRECTION, TRUNCATION)

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = 0.01,
        restart_every: int = 5,
        num_small: int = 5,
        radius: IterationScheduleLike = 0.1,
        batches: Batches = "independent",
        weighting: Weighting = "doubly_robust",
        **common: Any,
    ):
        self.step_size, self.restart_every, self.num_small, self.radius = step_size, restart_every, num_small, radius
        self.batches, self.weighting = batches, weighting
        for name in ("restart_every", "num_small"):
            check_number(name, getattr(self, name), positive=True, whole=True)
        self._radius(0)
        check_choice("batches", batches, get_args(Batches))
        check_choice("weighting", weighting, get_args(Weighting))
        super().__init__(policy, env, **{"num_episodes": 25, **common})
        if restart_every > 1:
            self._check_leave_one_out("num_small", num_small)

    def step(self, state: MultiObjectiveState, collector: Collector) -> tuple[MultiObjectiveState, Metrics]:
        """One iteration: J_t and c_t from one batch, the direction from another, a step of length δ at most."""
        t = state.iteration
        restart, first = t % self.restart_every == 0, t == 0
        size = self.num_episodes if restart else self.num_small
        alpha, delta, tau = self._step_size(t), self._radius(t), self._entropy_weight(t)
        independent = self.batches == "independent"

        rollout = collector.episodes(state.theta, size, self.horizon)
        judging = collector.episodes(state.theta, size, self.horizon, OBJECTIVES) if independent else rollout
        returns = self.returns(judging)
        objectives = returns.mean(0) if restart else state.objectives + self.change_of_returns(judging, state.previous)
        judgement = judge(self._utility, objectives, state.multipliers)
        slopes = judgement.slopes

        # Slopes that know nothing of the batch whose gradient they weigh. Only the very first batch may judge itself.
        here, there = (slopes, state.slopes) if independent or first else (state.slopes, state.slopes_before)
        batch = self.scalarised_batch(rollout, here, state, state.theta, tau)
        gradient, metrics = self.gradient(state.theta, batch)
        correction: Tensor | float = 0.0
        if not restart:
            before = self.scalarised_batch(rollout, there, state, state.previous, self._entropy_weight(t - 1))
            correction, weights = self.weighted_difference(gradient, state.previous, before.weighted(self.weighting))
            metrics |= {**weights, "correction_norm": correction.norm()}
        direction = corrected_momentum(state.direction, gradient, correction, float(restart))
        theta = truncated_step(state.theta, direction, alpha, delta)

        sampled = 2 * size if independent else size
        following = self.advance(state, theta, direction, gradient, batch, sampled)._replace(
            num_truncated=state.num_truncated + bool(alpha * direction.norm() > delta),
            objectives=objectives,
            slopes=slopes,
            slopes_before=slopes if first else state.slopes,
            multipliers=judgement.multipliers,
        )
        share = {"truncated_fraction": following.num_truncated / following.iteration, "momentum": float(restart)}
        of_objectives = {**judgement.metrics(objectives), **self.tracking(following, returns)}
        corrected = None if restart else direction
        common = self.instruments(state, following, gradient, corrected, batch)
        return following, {**metrics, **of_objectives, **common, **share}

    @torch.no_grad()
    def change_of_returns(self, rollout: Rollout, previous: Tensor) -> Tensor:
        """An estimate of J(θ_t) − J(θ_{t−1}), [K], from episodes of θ_t."""
        weights = importance_weights(log_ratio(self.log_policy, previous, rollout))
        control = self.weighting == "doubly_robust"
        return return_differences(rollout.vector_rewards(), self.gamma, weights, control).mean(0)

    def tracking(self, state: MultiObjectiveState, returns: Tensor) -> Metrics:
        """How far the tracked J is from fresh returns [N, K] in standard errors, and from the utility's box."""
        errors: Metrics = {}
        if len(returns) > 1:
            standard = (returns.std(0) / len(returns) ** 0.5).clamp_min(torch.finfo(returns.dtype).eps)
            errors = {"objectives_error": ((state.objectives - returns.mean(0)).abs() / standard).max()}
        outside = (state.objectives - self._utility.project(state.objectives)).norm()
        return {**errors, "outside_box": outside, "slope_change": (state.slopes - state.slopes_before).norm()}

    def _radius(self, iteration: int) -> float:
        """δ_t."""
        value = self.step_scale * float(as_iteration_schedule("radius", self.radius)(iteration))
        check_number("radius", value, positive=True)
        return value
