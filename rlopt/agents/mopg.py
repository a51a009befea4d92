"""MOPG: policy gradient of a utility of several expected returns, with fresh episodes for each of the two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import Batch
from rlopt.agents.judgement import Judgement, current_multipliers, judge
from rlopt.agents.multi_objective import OBJECTIVES, MultiObjectiveAgent, MultiObjectiveState
from rlopt.arguments import check_choice
from rlopt.collector import Collector
from rlopt.estimators import discount_powers, returns_to_go, reward_to_go
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
        t = state.iteration
        alpha, tau = self._step_size(t), self._entropy_weight(t)

        rollout = collector.episodes(state.theta, self.num_episodes, self.horizon)
        if self.criterion == "ser":
            judging = collector.episodes(state.theta, self.num_episodes, self.horizon, OBJECTIVES)
            returns = self.returns(judging)
            judgement = judge(self._utility, returns.mean(0), state.multipliers)
            batch = self.scalarised_batch(rollout, judgement.slopes, state, state.theta, tau)
        else:
            returns = self.returns(rollout)
            judgement = self.judged_episodes(returns, state)
            batch = self.utility_batch(rollout, returns, state, tau)
        gradient, metrics = self.gradient(state.theta, batch)
        moments = state.moments
        if self.step_rule == "adam":
            theta, moments = adam_step(state.theta, gradient, alpha, moments)
        else:
            theta = (normalized_step if self.step_rule == "normalized" else scaled_step)(state.theta, gradient, alpha)

        sampled = 2 * self.num_episodes if self.criterion == "ser" else self.num_episodes
        following = self.advance(state, theta, gradient, gradient, batch, sampled)._replace(
            objectives=returns.mean(0),
            slopes=judgement.slopes,
            slopes_before=state.slopes if len(state.slopes) else judgement.slopes,
            multipliers=judgement.multipliers,
        )
        if following.num_refused == state.num_refused:  # what was not finite is in the moments, too
            following = following._replace(moments=moments)
        common = self.instruments(state, following, gradient, None, batch)
        expected = {"expected_utility": self._utility(returns, judgement.multipliers).mean()}
        return following, {**metrics, **judgement.metrics(returns.mean(0)), **common, **expected}

    def judged_episodes(self, returns: Tensor, state: MultiObjectiveState) -> Judgement:
        """f(J) and multipliers for returns [N, K] that are judged one by one: no weights, 0 in their place."""
        objectives = returns.mean(0)
        multipliers = current_multipliers(self._utility, state.multipliers, returns)
        value = self._utility(objectives, multipliers)
        return Judgement(value, torch.zeros_like(objectives), self._utility.ascend(multipliers, objectives))

    def utility_batch(self, rollout: Rollout, returns: Tensor, state: MultiObjectiveState, entropy_weight: float) -> Batch:
        """These episodes with f(R⃗(τ)) as what every action of them is judged by: it cannot be split by time.

        The entropy's reward can: it is added step by step, discounted like all rewards.
        """
        utilities = self._utility.checked(returns, current_multipliers(self._utility, state.multipliers, returns))
        ends = (rollout.terminated | rollout.truncated) & rollout.mask
        paid = torch.where(ends, utilities, 0.0)
        if entropy_weight:
            surprise = entropy_weight * self.surprise(state.theta, rollout)
            paid = paid + discount_powers(self.gamma, surprise) * surprise
        to_go = returns_to_go(paid, rollout.mask, 1.0)
        baseline = self.baseline_function.values(state.baseline, rollout, to_go)
        psi = reward_to_go(paid, rollout.mask, 1.0, baseline, "doubly_robust")
        return Batch(replace(rollout, rewards=paid), psi, to_go)
