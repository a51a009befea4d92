"""Cue-recall: a cue is shown once and asked for later. The smallest task that needs memory, and its closed form.

Source of the closed form: a memory of one bit as a stochastic policy, Al-Hafez et al., arXiv:2311.04082; re-derived.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlopt.arguments import check_number
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv, SingleCopy
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.rollout import Rollout

# What is seen, one-hot: the cue 0, the cue 1, nothing, or the question.
BLANK, QUESTION = 2, 3


@dataclass(frozen=True)
class CueRecall:
    """Step 0 shows a cue s ∈ {0, 1}, each with probability ½; D blanks follow; then an answer a is paid 1[a = s].

    The exact values are those of a policy with one bit of memory z, z_0 = 0, whose parameters are six logits:

        θ1, θ0    after the cue 1 / 0:       P(z' = 1) = p / q
        φ1, φ0    at the question, z = 1 / 0: P(a = 1) = u / v
        κ1, κ0    at a blank, z = 1 / 0:      P(z' = 1) = σ(κ1) / σ(κ0), and λ = σ(κ1) − σ(κ0)

    Actions before the question and z' at the question change nothing, and are no part of the policy. γ is 1.

    Attributes:
        delay: D, blanks between cue and question.

    Raises:
        ValueError: a delay that is no whole number of at least 0.
    """

    delay: int = 4

    def __post_init__(self) -> None:
        check_number("delay", self.delay, at_least=0, whole=True)

    @property
    def horizon(self) -> int:
        """D + 2 steps: the cue, the blanks, the question."""
        return self.delay + 2

    def value(self, logits: Tensor) -> Tensor:
        """J = ½ [1 + (p − q) λ^D (u − v)], a scalar; `logits` [6] are (θ1, θ0, φ1, φ0, κ1, κ0)."""
        p, q, u, v, stay, flip = torch.sigmoid(logits)
        return 0.5 * (1 + (p - q) * (stay - flip) ** self.delay * (u - v))

    def gradient(self, logits: Tensor) -> Tensor:
        """∇J, [6], written out: ∂J/∂θ1 = ½ p(1−p) λ^D (u−v), ∂J/∂κ1 = ½ (p−q)(u−v) D λ^{D−1} σ(κ1)(1−σ(κ1)), and so on."""
        p, q, u, v, stay, flip = probabilities = torch.sigmoid(logits)
        kept = (stay - flip) ** self.delay
        # D λ^{D−1} is 0 at D = 0 whatever λ is
        kept_slope = self.delay * (stay - flip) ** max(self.delay - 1, 0)
        wrote, read = kept * (u - v), kept * (p - q)
        carried = (p - q) * (u - v) * kept_slope
        return 0.5 * torch.stack([wrote, -wrote, read, -read, carried, -carried]) * probabilities * (1 - probabilities)

    def log_prob(self, logits: Tensor, observations: Tensor, actions: Tensor) -> Tensor:
        """log π(a, z' | o, z), [...], of observations [..., 5], the one-hot and z, and actions [..., 2], a and z'."""
        seen, memory = observations[..., :4], observations[..., 4]
        theta_1, theta_0, phi_1, phi_0, kappa_1, kappa_0 = logits
        at_blank = torch.where(memory > 0, kappa_1, kappa_0)
        writes = seen[..., 1] * theta_1 + seen[..., 0] * theta_0 + seen[..., BLANK] * at_blank
        asked = seen[..., QUESTION] > 0
        drawn = torch.where(asked, torch.where(memory > 0, phi_1, phi_0), writes)
        chosen = torch.where(asked, actions[..., 0], actions[..., 1])
        return logsigmoid(torch.where(chosen > 0, drawn, -drawn))

    def enumerate(self, logits: Tensor) -> tuple[Rollout, Tensor]:
        """All N = 2^{D+3} courses that an episode can take, and their probabilities [N], not differentiable.

        Σ_n w_n f(τ_n) = E[f(τ)] exactly. Observations are the one-hot and z, [5], actions a and z', [2], float64;
        what changes nothing is 0.

        Raises:
            ValueError: a delay above 16, of more courses than fit.
        """
        check_number("delay", self.delay, at_least=0, at_most=16, whole=True)
        logits = logits.detach().to(torch.float64)
        courses = torch.tensor(list(product((0.0, 1.0), repeat=self.delay + 3)), dtype=torch.float64).T
        cue, memories, answer = courses[0], courses[1:-1], courses[-1]  # z_1, …, z_{D+1}: [D + 1, N]
        num, steps = courses.shape[1], self.horizon
        states = torch.zeros(steps + 1, num, 5, dtype=torch.float64)
        states[0, :, 0], states[0, :, 1] = 1 - cue, cue
        states[1:-2, :, BLANK] = 1
        states[-2:, :, QUESTION] = 1
        states[1:-1, :, 4] = memories
        actions = torch.zeros(steps, num, 2, dtype=torch.float64)
        actions[:-1, :, 1], actions[-1, :, 0] = memories, answer
        log_probs = self.log_prob(logits, states[:-1], actions)
        rewards = torch.zeros(steps, num, dtype=torch.float64)
        rewards[-1] = (answer == cue).to(torch.float64)
        everywhere = torch.ones(steps, num, dtype=torch.bool)
        terminated = torch.zeros_like(everywhere)
        terminated[-1] = True
        rollout = Rollout(
            states=states,
            actions=actions,
            log_probs=log_probs,
            rewards=rewards,
            terminated=terminated,
            truncated=~everywhere,
            mask=everywhere,
            final_rows=torch.zeros(0, dtype=torch.int64),
            final_observations=states[:0, 0],
        )
        return rollout, 0.5 * log_probs.sum(0).exp()


class CueRecallVectorEnv(FiniteHorizonVectorEnv):
    """N copies of `CueRecall`; observations are one-hot, (cue 0, cue 1, blank, question), actions are answers.

    Args:
        problem: how long the delay is.
        num_envs: N.
        privileged: show {"observation": the one-hot, "critic": the cue one-hot and the time in [0, 1]}.
    """

    joinable = True

    def __init__(self, problem: CueRecall, num_envs: int = 1, privileged: bool = False):
        seen: spaces.Space = spaces.Box(0, 1, (4,), np.float32)
        space = spaces.Dict({"observation": seen, "critic": spaces.Box(0, 1, (3,), np.float32)}) if privileged else seen
        super().__init__(num_envs, problem.horizon, space, spaces.Discrete(2))
        self.problem, self.privileged = problem, privileged

    def _first_states(self, num: int) -> Array:
        """(s, t), [num, 2]."""
        return np.stack([self.np_random.integers(2, size=num), np.zeros(num, np.int64)], 1)

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        cues, times = states.T
        asked = times == self.horizon - 1
        return states + np.array([0, 1]), (asked & (actions == cues)).astype(np.float64), asked

    def _observations(self, states: Array) -> ArrayTree:
        cues, times = states.T
        kinds = np.where(times == 0, cues, np.where(times < self.horizon - 1, BLANK, QUESTION))
        seen = np.eye(4, dtype=np.float32)[kinds]
        if not self.privileged:
            return seen
        time = np.minimum(times / (self.horizon - 1), 1)  # the last observation comes after the question
        return {"observation": seen, "critic": np.column_stack([1 - cues, cues, time]).astype(np.float32)}


def cue_recall_envs(num_envs: int = 1, privileged: bool = False, **kwargs: Any) -> CueRecallVectorEnv:
    """ "rlopt/CueRecall-v0"; `kwargs` are those of `CueRecall`."""
    return CueRecallVectorEnv(CueRecall(**kwargs), num_envs, privileged)


def cue_recall_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/CueRecall-v0"."""
    return SingleCopy(cue_recall_envs(1, **kwargs))
