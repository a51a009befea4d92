"""SRVR-PG: a large batch at every restart, corrected by small ones in between."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import EpisodicAgent, EpisodicState
from rlopt.arguments import check_number
from rlopt.collector import Collector
from rlopt.logging import CORRECTION, TRUNCATION, WEIGHTS, Metrics, episodic_layout
from rlopt.presets import with_preset
from rlopt.schedules import IterationScheduleLike
from rlopt.updates import corrected_momentum, scaled_step, truncated_step


class SRVRPG(EpisodicAgent):
    """The recursion with η = 1 at a restart, on a large batch, and η = 0 on small ones until the next.

    Source: Xu et al., arXiv:1909.08610; the truncated step: Zhang et al., arXiv:2102.08607.

    Args:
        step_size: α_t, of the direction; a number, "power:VALUE:EXPONENT" for VALUE · (2/(t + 2))^EXPONENT, or a
            function of t.
        restart_every: m, iterations of an epoch, the restart included.
        num_small: B, episodes of an iteration between restarts; `num_episodes` is N, those of a restart.
        radius: δ, no step is longer; None for plain steps, the algorithm of the first paper, which large returns throw
            off. 1/(2H) for episodes of H steps keeps importance weights within e, in theory.
    """

    layout = episodic_layout(WEIGHTS, CORRECTION, TRUNCATION)

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = 0.01,
        restart_every: int = 5,
        num_small: int = 5,
        radius: float | None = 0.1,
        **common: Any,
    ):
        self.step_size, self.restart_every, self.num_small, self.radius = step_size, restart_every, num_small, radius
        for name in ("restart_every", "num_small"):
            check_number(name, getattr(self, name), positive=True, whole=True)
        if radius is not None:
            check_number("radius", radius, positive=True)
        super().__init__(policy, env, **{"num_episodes": 25, **common})
        if restart_every > 1:
            self._check_leave_one_out("num_small", num_small)

    def init(self, theta: Tensor) -> EpisodicState:
        return self.first_state(theta)

    def step(self, state: EpisodicState, collector: Collector) -> tuple[EpisodicState, Metrics]:
        """One iteration: a large batch at a restart, else a small one that corrects the direction; a step."""
        t = state.iteration
        restart = t % self.restart_every == 0
        size, alpha = self.num_episodes if restart else self.num_small, self._step_size(t)

        batch = self.batch(collector, state.theta, state, size)
        gradient, metrics = self.gradient(state.theta, batch)
        correction: Tensor | float = 0.0
        if not restart:
            correction, weights = self.weighted_difference(gradient, state.previous, batch)
            metrics |= {**weights, "correction_norm": correction.norm()}
        direction = corrected_momentum(state.direction, gradient, correction, float(restart))
        delta = None if self.radius is None else self.step_scale * self.radius
        truncated = delta is not None and bool(alpha * direction.norm() > delta)
        if delta is None:
            theta = scaled_step(state.theta, direction, alpha)
        else:
            theta = truncated_step(state.theta, direction, alpha, delta)

        following = self.advance(state, theta, direction, gradient, batch, size)
        following = following._replace(num_truncated=state.num_truncated + truncated)
        corrected = None if restart else direction
        share = {"truncated_fraction": following.num_truncated / following.iteration, "momentum": float(restart)}
        return following, {**metrics, **self.instruments(state, following, gradient, corrected, batch), **share}
