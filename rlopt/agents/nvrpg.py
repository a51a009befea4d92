"""N-VR-PG: normalised, variance-reduced policy gradient for general utilities of the occupancy measure."""

from __future__ import annotations

from typing import Any, NamedTuple, get_args

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.episodic import EpisodicAgent
from rlopt.arguments import check_choice, check_number
from rlopt.collector import Collector
from rlopt.envs.memory import OBSERVATION, MemoryActions
from rlopt.estimators import Weighting, importance_weights, log_ratio, occupancy
from rlopt.logging import CORRECTION, WEIGHTS, Metrics, episodic_layout
from rlopt.presets import with_preset
from rlopt.rollout import Rollout
from rlopt.schedules import IterationScheduleLike
from rlopt.updates import bounded_correction, corrected_momentum, normalized_step
from rlopt.utilities import Utility, as_utility, utility_gradient


class NVRPGState(NamedTuple):
    """`EpisodicState`, the tracked occupancy and the last two quasi-rewards."""

    theta: Tensor
    previous: Tensor
    direction: Tensor
    baseline: Tensor
    travelled: Tensor
    iteration: int
    num_trajectories: int
    num_truncated: int
    num_refused: int
    occupancy: Tensor  # λ_{t−1} [S, A]; [0, 0] if the utility is the environment's reward
    quasi_rewards: Tensor  # r_{t−1} = ∇F(λ_{t−1}) [S, A]
    quasi_rewards_before: Tensor  # r_{t−2}


class NVRPG(EpisodicAgent):
    """STORM's recursion, twice: for the occupancy λ and for the direction, whose rewards are ∇F(λ).

    The rewards of a batch come from the occupancy of the batches before it, so the two are independent.

    Source: Barakat et al., arXiv:2306.01854, algorithm 1.

    Args:
        step_size: α_t, the length of a step; a number, "power:VALUE:EXPONENT" for VALUE · (2/(t + 2))^EXPONENT, or a
            function of t. Importance weights stay small for 2 H α_0 ≲ 1.
        momentum: η_t in (0, 1], the weight of the fresh estimates; a schedule, as `step_size`.
        utility: F, to be maximised: "reward" is the environment's own, "entropy" that of the states visited, or a
            differentiable function of the occupancy [S, A]; all but "reward" need Discrete observations and actions.
        weighting: importance weights "per_step", at every reward; "doubly_robust", at every reward and baseline; or of
            the whole "trajectory" as in the paper.
        max_correction: the correction's length is at most this times the direction's; None is the paper's algorithm.
    """

    layout = episodic_layout(WEIGHTS, CORRECTION)

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        step_size: IterationScheduleLike = "power:0.3:1/2",
        momentum: IterationScheduleLike = "power:1:2/3",
        utility: str | Utility = "reward",
        weighting: Weighting = "doubly_robust",
        max_correction: float | None = None,
        **common: Any,
    ):
        self.step_size, self.momentum, self.utility = step_size, momentum, utility
        self.weighting, self.max_correction = weighting, max_correction
        check_choice("weighting", weighting, get_args(Weighting))
        if max_correction is not None:
            check_number("max_correction", max_correction, positive=True)
        self._utility = as_utility(utility)
        super().__init__(policy, env, **common)

    def init(self, theta: Tensor) -> NVRPGState:
        """The first state; a table for the occupancy, if the utility needs one.

        Raises:
            ValueError: the utility needs a table of states and actions, and the spaces are not both Discrete.
        """
        nothing = torch.zeros(self._table_shape(), device=theta.device)
        return NVRPGState(*self.first_state(theta), nothing, nothing, nothing)

    def step(self, state: NVRPGState, collector: Collector) -> tuple[NVRPGState, Metrics]:
        """One iteration: episodes at θ_t, weighted back to θ_{t−1} for both recursions; a step of length α_t."""
        t = state.iteration
        eta, alpha = self._momentum(t), self._step_size(t)

        rollout = collector.episodes(state.theta, self.num_episodes, self.horizon)
        if t == 0:
            state = self._first_quasi_rewards(state, rollout)
        batch = self.batch_of(rollout, self._rewards(rollout, state.quasi_rewards), state)
        gradient, metrics = self.gradient(state.theta, batch)
        correction: Tensor | float = 0.0
        if eta < 1.0:
            before = self.batch_of(rollout, self._rewards(rollout, state.quasi_rewards_before), state)
            difference, weights = self.weighted_difference(gradient, state.previous, before.weighted(self.weighting))
            correction = bounded_correction(difference, state.direction, self.max_correction)
            metrics |= {**weights, "correction_norm": correction.norm()}
        direction = corrected_momentum(state.direction, gradient, correction, eta)
        theta = normalized_step(state.theta, direction, alpha)

        following = self.advance(state, theta, direction, gradient, batch, self.num_episodes)
        if self._utility is not None:
            following, value = self._track(following, state, rollout, eta)
            metrics["utility"] = value
        corrected = state.direction + correction if eta < 1.0 else None
        return following, {**metrics, **self.instruments(state, following, gradient, corrected, batch)}

    def _track(self, following: NVRPGState, state: NVRPGState, rollout: Rollout, eta: float) -> tuple[NVRPGState, Tensor]:
        """λ_t = (1 − η)(λ_{t−1} + λ̂ − λ̂_ω) + η λ̂ and r_t = ∇F(λ_t), with F(λ_t)."""
        assert self._utility is not None
        fresh = self._occupancy(rollout)
        correction: Tensor | float = 0.0
        if eta < 1.0:
            with torch.no_grad():
                ratios = log_ratio(self.log_policy, state.previous, rollout)
            correction = fresh - self._occupancy(rollout, importance_weights(ratios, self.weighting != "trajectory"))
        tracked = corrected_momentum(state.occupancy, fresh, correction, eta)
        value, quasi_rewards = utility_gradient(self._utility, tracked)
        return following._replace(
            occupancy=tracked, quasi_rewards=quasi_rewards, quasi_rewards_before=state.quasi_rewards
        ), value

    def _first_quasi_rewards(self, state: NVRPGState, rollout: Rollout) -> NVRPGState:
        """r_0 = r_{−1} = ∇F(λ̂(τ_0)): only the first batch judges itself."""
        if self._utility is None:
            return state
        quasi_rewards = utility_gradient(self._utility, self._occupancy(rollout))[1]
        return state._replace(quasi_rewards=quasi_rewards, quasi_rewards_before=quasi_rewards)

    def _rewards(self, rollout: Rollout, quasi_rewards: Tensor) -> Tensor:
        """r(s_t, a_t), [T, N]: from the table, or the environment's own."""
        if self._utility is None:
            return rollout.scalar_rewards(type(self).__name__)
        states, actions = self._visited(rollout)
        return quasi_rewards[states.long(), actions.long()] * rollout.mask

    def _occupancy(self, rollout: Rollout, weights: Tensor | None = None) -> Tensor:
        num_states, num_actions = self._table_shape()
        return occupancy(*self._visited(rollout), rollout.mask, self.gamma, num_states, num_actions, weights)

    def _visited(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """The environment's states and actions, [T, N] each, without what the policy remembers."""
        if isinstance(rollout.observations, Tensor):
            return rollout.observations, rollout.actions
        space = self.policy.action_space
        assert isinstance(space, MemoryActions)
        return rollout.observations[OBSERVATION], space.split(rollout.actions)[0]

    def _table_shape(self) -> tuple[int, int]:
        if self._utility is None:
            return 0, 0
        observations, actions = self.encoder.space, self.decoder.space
        if not (isinstance(observations, spaces.Discrete) and isinstance(actions, spaces.Discrete)):
            raise ValueError(
                "utility: a utility of the occupancy needs Discrete observations and actions, got "
                f"{self.observation_space} and {self.action_space}"
            )
        return int(observations.n), int(actions.n)
