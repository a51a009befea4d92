"""MOPG: policy gradient of a utility of several expected returns, with fresh episodes for each of the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from rlopt.agents.episodic import Batch
from rlopt.agents.multi_objective import OBJECTIVES, MultiObjectiveAgent, MultiObjectiveState
from rlopt.arguments import check_choice
from rlopt.collector import Collector
from rlopt.estimators import reward_to_go
from rlopt.logging import Metrics
from rlopt.presets import with_preset
from rlopt.rollout import Rollout
from rlopt.schedules import IterationScheduleLike
from rlopt.updates import adam_step, normalized_step, scaled_step

Criterion = Literal["ser", "esr"]
StepRule = Literal["plain", "normalized", "adam"]


class MOPG(MultiObjectiveAgent):
    """Ascent of f(J(θ)): N episodes for J and c = ∇f(J), N others for the gradient of Σ_k c_k r_k.

    With one batch for both, the errors of c and of the gradient would go together: a bias of order 1/N.

    Source: Bai, Agarwal, Aggarwal, JAIR 2022.

    Args:
        step_size: α_t, of the gradient, the step's length if it is normalised, or Adam's; a number,
            "power:VALUE:EXPONENT" for VALUE · (2/(t + 2))^EXPONENT, or a function of t.
        step_rule: "plain", "normalized" or "adam".
        criterion: "ser" maximises f(E[R⃗]), the scalarised expected return; "esr" E[f(R⃗)], the expected scalarised return,
            where every action is judged by the utility of its whole episode. They agree for linear f.
    """

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = 0.01,
        step_rule: StepRule = "plain",
        criterion: Criterion = "ser",
        **common: Any,
    ):
        self.step_size, self.step_rule, self.criterion = step_size, step_rule, criterion
        check_choice("step_rule", step_rule, get_args(StepRule))
        check_choice("criterion", criterion, get_args(Criterion))
        super().__init__(policy, env, **common)

    def step(self, state: MultiObjectiveState, collector: Collector) -> tuple[MultiObjectiveState, Metrics]:
        """One iteration: J and its weights, the gradient of what they make of the rewards, a step."""
        t, size = state.iteration, self.num_episodes
        alpha, tau = self._step_size(t), self._entropy_weight(t)

        rollout = collector.episodes(state.theta, size, self.horizon)
        split = self.criterion == "ser"
        judging = collector.episodes(state.theta, size, self.horizon, OBJECTIVES) if split else rollout
        returns = self.returns(judging)
        objectives = returns.mean(0)
        value, slopes, multipliers = self.judged(objectives, state)
        scalarised = self.scalarised_batch(rollout, slopes, state, state.theta, tau)
        batch = scalarised if split else self.utility_batch(rollout, state)
        gradient, metrics = self.gradient(state.theta, batch)
        moments = state.moments
        if self.step_rule == "adam":
            theta, moments = adam_step(state.theta, gradient, alpha, moments)
        else:
            theta = (normalized_step if self.step_rule == "normalized" else scaled_step)(state.theta, gradient, alpha)

        following = self.advance(state, theta, gradient, gradient, batch, 2 * size if split else size)._replace(
            objectives=objectives,
            slopes=slopes,
            slopes_before=state.slopes if len(state.slopes) else slopes,
            multipliers=multipliers,
            moments=moments,
        )
        of_objectives = self.objective_metrics(following, value, objectives, returns)
        common = self.instruments(state, following, gradient, None, batch)
        return following, {**metrics, **of_objectives, **common, "expected_utility": self._utility(returns).mean()}

    def utility_batch(self, rollout: Rollout, state: MultiObjectiveState) -> Batch:
        """These episodes with f(R⃗(τ)) as what every action of them is judged by: it cannot be split by time."""
        utilities = self._utility.checked(self.returns(rollout))
        judged = torch.where(rollout.mask, utilities, 0.0)
        baseline = self.baseline_function.values(state.baseline, rollout, judged)
        ends = (rollout.terminated | rollout.truncated) & rollout.mask
        paid = torch.where(ends, utilities, 0.0)
        psi = reward_to_go(paid, rollout.mask, 1.0, baseline, "doubly_robust")
        return Batch(replace(rollout, rewards=paid), psi, judged)
