"""The rollout: what was seen, done and paid, and nothing that an algorithm computes from it.

Shape letters used in the whole library: T time steps, N environments (or episodes, one a column), S = T·N,
B rows of a minibatch, A components of an action, K objectives, d parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

Observations = Tensor | dict[str, Tensor]


def map_observations(function: Callable[[Tensor], Tensor], observations: Observations) -> Observations:
    """`function` applied to the tensor, or to every tensor of a Dict observation."""
    if isinstance(observations, dict):
        return {key: function(value) for key, value in observations.items()}
    return function(observations)


def as_tensors(arrays: Any, device: torch.device) -> Any:
    """An array, or every array of a Dict observation, as a tensor on a device; on the CPU the same memory."""
    if isinstance(arrays, dict):
        return {key: torch.as_tensor(value, device=device) for key, value in arrays.items()}
    return torch.as_tensor(arrays, device=device)


@dataclass(frozen=True)
class Rollout:
    """One batch of experience, time-major and frozen.

    `states` holds s_0 … s_T, so that `observations` and `next_observations` are two views of one tensor. Where an
    environment was reset within the step (same-step autoreset), s_{t+1} before the reset differs from
    `states[t + 1]`; those few observations are in `final_observations` and `final_rows` says where they belong.

    Attributes:
        states: [T + 1, N, *obs], or a dict of such tensors; as the policy saw them (encoded, normalised).
        actions: [T, N, *act], as sampled, before any clipping.
        log_probs: [T, N], log π_b(a_t | s_t) of the policy that sampled.
        rewards: [T, N], or [T, N, K] with K objectives; normalised if the agent normalises them.
        terminated: [T, N] bool, s_{t+1} is absorbing and its value is zero.
        truncated: [T, N] bool, a limit cut the episode at s_{t+1}, whose value counts. Never both.
        mask: [T, N] bool, False on reset rows and on padding.
        final_rows: [F] int64, flat indices t·N + n.
        final_observations: [F, *obs], s_{t+1} of those rows.
        acting_values: [T, N] or [T, N, K], v(s_t) of the θ that sampled, where they were computed while acting; else None.
    """

    states: Observations
    actions: Tensor
    log_probs: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    mask: Tensor
    final_rows: Tensor
    final_observations: Observations
    acting_values: Tensor | None = None

    @property
    def observations(self) -> Observations:
        """s_t, [T, N, *obs]: a view."""
        return map_observations(lambda states: states[:-1], self.states)

    @property
    def next_observations(self) -> Observations:
        """s_{t+1} before any reset, [T, N, *obs]: a view, or a copy if environments reset within a step."""
        if not len(self.final_rows):
            return map_observations(lambda states: states[1:], self.states)
        shifted = map_observations(lambda states: states[1:].clone(), self.states)
        if isinstance(shifted, dict) and isinstance(self.final_observations, dict):
            for key, value in shifted.items():
                value.flatten(0, 1)[self.final_rows] = self.final_observations[key]
        elif isinstance(shifted, Tensor) and isinstance(self.final_observations, Tensor):
            shifted.flatten(0, 1)[self.final_rows] = self.final_observations
        return shifted

    @property
    def num_valid(self) -> int:
        """The environment steps in this rollout: rows where `mask` holds."""
        return int(self.mask.sum())

    def columns(self, index: slice) -> Rollout:
        """These columns: of whole episodes, some of them. Views.

        Raises:
            ValueError: environments were reset within a step, so that rows of other columns are referred to.
        """
        if len(self.final_rows):
            raise ValueError("columns: only a rollout of whole episodes can be cut into columns")
        return Rollout(
            states=map_observations(lambda states: states[:, index], self.states),
            actions=self.actions[:, index],
            log_probs=self.log_probs[:, index],
            rewards=self.rewards[:, index],
            terminated=self.terminated[:, index],
            truncated=self.truncated[:, index],
            mask=self.mask[:, index],
            final_rows=self.final_rows,
            final_observations=self.final_observations,
            acting_values=None if self.acting_values is None else self.acting_values[:, index],
        )

    def scalar_rewards(self, algorithm: str) -> Tensor:
        """`rewards`, [T, N], for an algorithm that maximises one number.

        Raises:
            ValueError: the environment pays a vector of K rewards; the message names the algorithm.
        """
        if self.rewards.ndim > 2:
            refuse_several_rewards(self.rewards.shape[-1], algorithm)
        return self.rewards

    def vector_rewards(self) -> Tensor:
        """`rewards`, [T, N, K]; K = 1 where the environment pays one number."""
        return self.rewards if self.rewards.ndim > 2 else self.rewards.unsqueeze(-1)

    def scalarised(self, weights: Tensor) -> Rollout:
        """The same, paid Σ_k w_k r_k.

        Args:
            weights: w, [K], or [T, N, K].

        Raises:
            ValueError: another K.
        """
        rewards = self.vector_rewards()
        if weights.shape[-1] != rewards.shape[-1]:
            raise ValueError(f"weights: expected one for each of {rewards.shape[-1]} rewards, got {weights.shape[-1]}")
        return replace(self, rewards=(rewards * weights).sum(-1))

    def discounts(self, gamma: float) -> Tensor:
        """γ, and 0 where s_{t+1} is absorbing, [T, N]."""
        return gamma * (~self.terminated).to(self.rewards.dtype)

    def traces(self, lambda_: float) -> Tensor:
        """λ, and 0 where the episode ended for either reason, [T, N]."""
        return lambda_ * (~(self.terminated | self.truncated)).to(self.rewards.dtype)

    def values(self, critic: Callable[[Observations], Tensor], known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """v(s_t) and v(s_{t+1}), [T, N] or [T, N, K] each, every state passed through `critic` once and without gradients.

        Args:
            critic: maps [B, *obs] to [B] or [B, K].
            known: v(s_0) … v(s_{T-1}) of the same critic, [T, N] or [T, N, K], which are not computed again.
        """
        num_steps, num_envs = self.mask.shape
        first = 0 if known is None else num_steps
        values = in_pieces(critic, map_observations(lambda states: states[first:].flatten(0, 1), self.states))
        values = values.unflatten(0, (num_steps + 1 - first, num_envs))
        if known is not None:
            values = torch.cat([known, values])
        if not len(self.final_rows):
            return values[:-1], values[1:]
        next_values = values[1:].clone()
        next_values.flatten(0, 1)[self.final_rows] = in_pieces(critic, self.final_observations)
        return values[:-1], next_values

    def valid_rows(self) -> Tensor:
        """Flat indices t·N + n of the rows that count, [S']."""
        return self.mask.flatten().nonzero().squeeze(1)


def refuse_several_rewards(num_objectives: int, algorithm: str) -> NoReturn:
    """Raises ValueError: K rewards a step for an algorithm that maximises one number; the message names it."""
    raise ValueError(
        f"env: it pays {num_objectives} rewards a step and {algorithm} maximises one; use PPO or MOPG with utility=, such as "
        f"utility={[round(1 / num_objectives, 2)] * num_objectives}, or wrap it so that step returns a number"
    )


@torch.no_grad()
def in_pieces(function: Callable[..., Tensor], observations: Observations, *others: Tensor, rows: int = 16384) -> Tensor:
    """`function` over a long batch in passes of at most `rows`, without gradients: bounds the memory of one pass.

    Args:
        function: maps [b, *obs] and [b, ...] to [b].
        observations: [B, *obs].
        others: [B, ...] each, cut like the observations.
        rows: b at the most.
    """
    size = len(next(iter(observations.values()))) if isinstance(observations, dict) else len(observations)
    if size <= rows:
        return function(observations, *others)
    parts = [slice(start, start + rows) for start in range(0, size, rows)]
    return torch.cat(
        [
            function(map_observations(lambda x, part=part: x[part], observations), *(x[part] for x in others))  # type: ignore[misc]
            for part in parts
        ]
    )
