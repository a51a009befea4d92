"""STORM-PG: momentum corrected by the difference of two gradients on the same episodes."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import EpisodicAgent
from rlopt.arguments import check_choice, check_flag, check_number
from rlopt.collector import Collector
from rlopt.estimators import Weighting
from rlopt.logging import BOUND, CORRECTION, WEIGHTS, Metrics, episodic_layout
from rlopt.presets import with_preset
from rlopt.schedules import IterationScheduleLike
from rlopt.updates import bounded_correction, corrected_momentum, normalized_step, scaled_step


class STORMState(NamedTuple):
    """`EpisodicState` and what IS-MBPG's step sizes add up."""

    theta: Tensor
    previous: Tensor
    direction: Tensor
    baseline: Tensor
    travelled: Tensor
    iteration: int
    num_trajectories: int
    num_truncated: int
    num_refused: int
    squares: Tensor  # Σ ‖g_i‖², scalar


class STORMPG(EpisodicAgent):
    """Momentum corrected by g(θ_t) − ĝ(θ_{t−1}), both on the episodes of θ_t, the latter importance-weighted.

    Source: Yuan et al., arXiv:2003.04302 (STORM-PG); adaptive step sizes: Huang et al., ICML 2020 (IS-MBPG).

    Args:
        step_size: α_t, of the direction, or the step's length with `normalize`; a number, "power:VALUE:EXPONENT" for
            VALUE · (2/(t + 2))^EXPONENT, or a function of t.
        momentum: η_t in (0, 1], the weight of the fresh gradient; a schedule, as `step_size`.
        normalize: steps of length α_t along the direction, whatever its norm.
        num_initial: episodes of the first batch; None takes ten times `num_episodes`.
        weighting: importance weights "per_step", at every reward; "doubly_robust", at every reward and baseline; or of
            the whole "trajectory".
        max_correction: the correction's length is at most this times the direction's. A bias that learning on long
            episodes needs; None is the paper's algorithm.
        adaptive: three numbers k, m, c for IS-MBPG's α_t = k / (m + Σ_i ‖g_i‖²)^(1/3) and η_{t+1} = min(1, c α_t²) in
            place of `step_size` and `momentum`.
    """

    layout = episodic_layout(WEIGHTS, CORRECTION, BOUND)

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = 0.01,
        momentum: IterationScheduleLike = "power:1:2/3",
        normalize: bool = False,
        num_initial: int | None = None,
        weighting: Weighting = "doubly_robust",
        max_correction: float | None = 0.2,
        adaptive: list[float] | None = None,
        **common: Any,
    ):
        self.step_size, self.momentum, self.normalize = step_size, momentum, normalize
        check_flag("normalize", normalize)
        self.num_initial, self.weighting, self.max_correction, self.adaptive = num_initial, weighting, max_correction, adaptive
        self._check_storm()
        super().__init__(policy, env, **common)

    def init(self, theta: Tensor) -> STORMState:
        """The first state."""
        return STORMState(**self.first_state(theta)._asdict(), squares=torch.zeros((), device=theta.device))

    def step(self, state: STORMState, collector: Collector) -> tuple[STORMState, Metrics]:
        """One iteration: episodes at θ_t, their gradient there and at θ_{t−1}, a step."""
        t = state.iteration
        size = self._first_batch if t == 0 else self.num_episodes

        batch = self.batch(collector, state.theta, state, size)
        gradient, metrics = self.gradient(state.theta, batch)
        squares = state.squares + gradient.square().sum()
        eta, alpha = self._rates(t, state.squares, squares)
        correction: Tensor | float = 0.0
        if eta < 1.0:
            difference, weights = self.weighted_difference(gradient, state.previous, batch.weighted(self.weighting))
            correction = bounded_correction(difference, state.direction, self.max_correction)
            metrics |= {**weights, "correction_norm": correction.norm()}
            metrics["correction_bounded"] = (correction.norm() < 0.999 * difference.norm()).to(difference.dtype)
        direction = corrected_momentum(state.direction, gradient, correction, eta)
        theta = (normalized_step if self.normalize else scaled_step)(state.theta, direction, alpha)

        following = self.advance(state, theta, direction, gradient, batch, size)._replace(squares=squares)
        corrected = state.direction + correction if eta < 1.0 else None
        rates = {"momentum": eta, "step_size": alpha}
        return following, {**metrics, **self.instruments(state, following, gradient, corrected, batch), **rates}

    def _rates(self, iteration: int, before: Tensor, after: Tensor) -> tuple[float, float]:
        """η_t and α_t; adaptive ones of Σ ‖g_i‖² up to the iteration before and up to this one."""
        if self.adaptive is None:
            return self._momentum(iteration), self._step_size(iteration)
        k, m, c = self.adaptive
        last, now = (k / (m + float(squares)) ** (1 / 3) for squares in (before, after))
        return (1.0 if iteration == 0 else min(1.0, c * last**2)), self.step_scale * now

    @property
    def _first_batch(self) -> int:
        return 10 * self.num_episodes if self.num_initial is None else self.num_initial

    def _check_storm(self) -> None:
        check_choice("weighting", self.weighting, get_args(Weighting))
        if self.num_initial is not None:
            check_number("num_initial", self.num_initial, positive=True, whole=True)
        if self.max_correction is not None:
            check_number("max_correction", self.max_correction, positive=True)
        if self.adaptive is not None:
            if not isinstance(self.adaptive, list | tuple) or len(self.adaptive) != 3:
                raise ValueError(f"adaptive: expected three numbers k, m, c, got {self.adaptive!r}")
            for value in self.adaptive:
                check_number("adaptive", value, positive=True)
