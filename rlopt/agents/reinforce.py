"""REINFORCE in its GPOMDP form, with momentum and normalised steps as options."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import EpisodicAgent, EpisodicState
from rlopt.arguments import check_flag
from rlopt.collector import Collector
from rlopt.logging import Metrics
from rlopt.presets import with_preset
from rlopt.schedules import IterationScheduleLike
from rlopt.updates import corrected_momentum, normalized_step, scaled_step


class REINFORCE(EpisodicAgent):
    """Stochastic gradient ascent on the expected return, one batch of episodes a step.

    Source: Williams 1992; rewards to go: Baxter and Bartlett 2001 (GPOMDP); normalised momentum: Cutkosky and Mehta,
    arXiv:2002.03305.

    Args:
        step_size: α_t, of the gradient, or the step's length with `normalize`; a number, "power:VALUE:EXPONENT" for
            VALUE · (2/(t + 2))^EXPONENT, or a function of t.
        momentum: η_t in (0, 1], the weight of the fresh gradient; 1 is no momentum. A schedule, as `step_size`.
        normalize: steps of length α_t along the direction, whatever its norm.
    """

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = 0.01,
        momentum: IterationScheduleLike = 1.0,
        normalize: bool = False,
        **common: Any,
    ):
        self.step_size, self.momentum, self.normalize = step_size, momentum, normalize
        check_flag("normalize", normalize)
        super().__init__(policy, env, **common)

    def init(self, theta: Tensor) -> EpisodicState:
        return self.first_state(theta)

    def step(self, state: EpisodicState, collector: Collector) -> tuple[EpisodicState, Metrics]:
        """One iteration: a gradient at θ_t, a step."""
        t = state.iteration
        eta, alpha = self._momentum(t), self._step_size(t)

        batch = self.batch(collector, state.theta, state, self.num_episodes)
        gradient, metrics = self.gradient(state.theta, batch)
        direction = corrected_momentum(state.direction, gradient, 0.0, eta)
        theta = (normalized_step if self.normalize else scaled_step)(state.theta, direction, alpha)

        following = self.advance(state, theta, direction, gradient, batch, self.num_episodes)
        corrected = state.direction if eta < 1.0 else None
        return following, {**metrics, **self.instruments(state, following, gradient, corrected, batch)}
