"""(N-)HARPG: Hessian-aided recursive policy gradient."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from rlopt.agents.episodic import EpisodicAgent, EpisodicState
from rlopt.arguments import check_choice, check_flag, check_number
from rlopt.collector import Collector
from rlopt.estimators import Weighting
from rlopt.logging import BOUND, CORRECTION, HESSIAN, Metrics, episodic_layout
from rlopt.presets import with_preset
from rlopt.schedules import IterationScheduleLike
from rlopt.updates import bounded_correction, corrected_momentum, normalized_step, scaled_step

HessianForm = Literal["doubly_robust", "causal", "trajectory"]
WEIGHTING: dict[HessianForm, Weighting] = {
    "doubly_robust": "doubly_robust",
    "causal": "per_step",
    "trajectory": "trajectory",
}
KINKED = (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.Hardtanh)


class HARPG(EpisodicAgent):
    """Momentum corrected by ∇²J(θ̂)(θ_t − θ_{t−1}), an unbiased estimate of how the gradient changed.

    The product is estimated from a second, independent batch of episodes at a random point θ̂ between the last two
    iterates; no importance weights. `normalize=True` is N-HARPG, whose steps have length α_t.

    Source: Fatkhullin et al., arXiv:2302.01734, algorithms 2 and 3.

    Args:
        step_size: α_t, of the direction, or the step's length with `normalize`; a number, "power:VALUE:EXPONENT" for
            VALUE · (2/(t + 2))^EXPONENT, or a function of t. The paper's exponents are 1/2, and 1 with `normalize`.
        momentum: η_t in (0, 1], the weight of the fresh gradient; a schedule, as `step_size`. The paper's is "power:1:1".
        normalize: steps of length α_t along the direction, whatever its norm.
        num_hessian_episodes: M, independent episodes for the Hessian-vector product; None takes as many as for gradients.
        num_points: how many random points between the iterates the M episodes are spread over. More remove the
            variance of the point, one collection each; M must be a multiple.
        hvp: "trajectory" is the paper's form, in which every reward meets every score; "causal" lets it meet those of
            the actions before it only; "doubly_robust" is causal with the baseline in every term, whose variance is the
            lowest of the three with any baseline. All are unbiased.
        max_correction: the correction's length is at most this times the direction's. A bias that learning on long
            episodes needs; None is the paper's algorithm.
    """

    layout = episodic_layout(HESSIAN, CORRECTION, BOUND)

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = 0.01,
        momentum: IterationScheduleLike = "power:1:2/3",
        normalize: bool = False,
        num_hessian_episodes: int | None = None,
        num_points: int = 1,
        hvp: HessianForm = "doubly_robust",
        max_correction: float | None = 0.2,
        **common: Any,
    ):
        self.step_size, self.momentum, self.normalize = step_size, momentum, normalize
        check_flag("normalize", normalize)
        self.num_hessian_episodes, self.num_points = num_hessian_episodes, num_points
        check_number("num_episodes", common.get("num_episodes", 10), positive=True, whole=True)
        self.hvp, self.max_correction = hvp, max_correction
        self._check_hessian(common.get("num_episodes", 10))
        super().__init__(policy, env, **common)
        self._check_leave_one_out("num_hessian_episodes / num_points", self._num_hessian_episodes // num_points)

    def init(self, theta: Tensor) -> EpisodicState:
        """The first state; warns if the network's curvature cannot be seen."""
        if any(isinstance(module, KINKED) for module in self.policy.modules()):
            warnings.warn(
                "policy: the network has ReLU-like activations, whose curvature at the kinks automatic differentiation does "
                "not see, so that Hessian-vector products are biased; use policy_kwargs={'activation_fn': torch.nn.Tanh}",
                stacklevel=2,
            )
        return self.first_state(theta)

    def step(self, state: EpisodicState, collector: Collector) -> tuple[EpisodicState, Metrics]:
        """One iteration: a gradient at θ_t, the momentum carried from θ_{t−1} to θ_t by a Hessian-vector product."""
        t = state.iteration
        eta, alpha = self._momentum(t), self._step_size(t)

        batch = self.batch(collector, state.theta, state, self.num_episodes)
        gradient, metrics = self.gradient(state.theta, batch)
        correction: Tensor | float = 0.0
        sampled = 0
        if eta < 1.0:
            product, sampled = self.difference(state, collector)
            correction = bounded_correction(product, state.direction, self.max_correction)
            metrics |= self._hessian_instruments(state, product, correction)
        direction = corrected_momentum(state.direction, gradient, correction, eta)
        theta = (normalized_step if self.normalize else scaled_step)(state.theta, direction, alpha)

        following = self.advance(state, theta, direction, gradient, batch, self.num_episodes + sampled)
        corrected = state.direction + correction if eta < 1.0 else None
        return following, {**metrics, **self.instruments(state, following, gradient, corrected, batch)}

    def difference(self, state: EpisodicState, collector: Collector) -> tuple[Tensor, int]:
        """h [d] with E[h] = ∇J(θ_t) − ∇J(θ_{t−1}), and the episodes that it took."""
        vector = state.theta - state.previous
        size = self._num_hessian_episodes // self.num_points
        total = torch.zeros_like(vector)
        for q in self._fractions(state.iteration):
            point = torch.lerp(state.previous, state.theta, q)
            batch = self.batch(collector, point, state, size, stream="hessian")
            psi = batch.weighted(WEIGHTING[self.hvp]).psi
            total += self.estimators.product(point, batch.rollout, psi, vector)
        return total / self.num_points, size * self.num_points

    def _fractions(self, iteration: int) -> list[float]:
        """q ~ U[0, 1], one for every point, from a stream of its own."""
        return np.random.default_rng((self._entropy, 2, iteration)).random(self.num_points).tolist()

    def _hessian_instruments(self, state: EpisodicState, product: Tensor, correction: Tensor) -> dict[str, Tensor]:
        tiny = torch.finfo(product.dtype).tiny
        return {
            "hvp_norm": product.norm(),
            "hvp_ratio": product.norm() / (state.theta - state.previous).norm().clamp_min(tiny),
            "correction_norm": correction.norm(),
            "correction_bounded": (correction.norm() < 0.999 * product.norm()).to(product.dtype),
        }

    @property
    def _num_hessian_episodes(self) -> int:
        return self.num_episodes if self.num_hessian_episodes is None else self.num_hessian_episodes

    def _check_hessian(self, num_episodes: Any) -> None:
        check_choice("hvp", self.hvp, get_args(HessianForm))
        check_number("num_points", self.num_points, positive=True, whole=True)
        if self.num_hessian_episodes is not None:
            check_number("num_hessian_episodes", self.num_hessian_episodes, positive=True, whole=True)
        if self.max_correction is not None:
            check_number("max_correction", self.max_correction, positive=True)
        total = num_episodes if self.num_hessian_episodes is None else self.num_hessian_episodes
        if total % self.num_points:
            raise ValueError(f"num_points: expected a divisor of num_hessian_episodes = {total}, got {self.num_points}")
