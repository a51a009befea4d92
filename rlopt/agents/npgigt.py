"""N-PG-IGT: normalised policy gradient with implicit gradient transport."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import EpisodicAgent, EpisodicState
from rlopt.collector import Collector
from rlopt.logging import LOOKAHEAD, WEIGHTS, Metrics, episodic_layout
from rlopt.presets import with_preset
from rlopt.schedules import IterationScheduleLike
from rlopt.updates import corrected_momentum, lookahead, normalized_step


class NPGIGT(EpisodicAgent):
    """Momentum whose bias is cancelled to first order by sampling at a point ahead of θ_t; no weights, no Hessians.

    Episodes are sampled at the look-ahead point; what is evaluated and saved is θ_t.

    Source: Fatkhullin et al., arXiv:2302.01734, algorithm 1.

    Args:
        step_size: α_t, the length of a step; a number, "power:VALUE:EXPONENT" for VALUE · (2/(t + 2))^EXPONENT, or a
            function of t. The paper's is "power:VALUE:1", whose path is finite in practice: 2 · VALUE · ln t.
        momentum: η_t in (0, 1], the weight of the fresh gradient; a schedule, as `step_size`. The paper's is the default.
    """

    layout = episodic_layout(LOOKAHEAD, WEIGHTS)

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = "power:0.7:1/2",
        momentum: IterationScheduleLike = "power:1:4/5",
        **common: Any,
    ):
        self.step_size, self.momentum = step_size, momentum
        super().__init__(policy, env, **common)

    def init(self, theta: Tensor) -> EpisodicState:
        return self.first_state(theta)

    def step(self, state: EpisodicState, collector: Collector) -> tuple[EpisodicState, Metrics]:
        """One iteration: a gradient at the look-ahead point, mixed into the direction, a step of length α_t."""
        t = state.iteration
        eta, alpha = self._momentum(t), self._step_size(t)

        point = lookahead(state.theta, state.previous, eta)
        batch = self.batch(collector, point, state, self.num_episodes)
        gradient, metrics = self.gradient(point, batch)
        direction = corrected_momentum(state.direction, gradient, 0.0, eta)
        theta = normalized_step(state.theta, direction, alpha)

        following = self.advance(state, theta, direction, gradient, batch, self.num_episodes)
        weights, return_theta = self.weight_instruments(state.theta, batch.rollout)
        return following, {
            **metrics,
            **self.instruments(state, following, gradient, state.direction if eta < 1.0 else None, batch),
            **weights,
            "return_theta": return_theta,
            "return_lookahead": batch.rollout.rewards.sum(0).mean(),
            "lookahead_distance": (point - state.theta).norm(),
        }
