"""Whole episodes cut out of consecutive rollouts, one a column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from rlopt.envs.spaces import Array
from rlopt.rollout import Observations, Rollout


def episodes_as_columns(blocks: Sequence[Rollout], quota: Array) -> Rollout:
    """The first `quota[n]` episodes of every environment, one a column, padded to the longest and masked.

    Args:
        blocks: consecutive rollouts that begin with fresh episodes.
        quota: [N], how many episodes to take of each environment.
    """
    num_envs = len(quota)
    mask = torch.cat([block.mask for block in blocks]).cpu().numpy()
    done = torch.cat([block.terminated | block.truncated for block in blocks]).cpu().numpy()
    columns: list[Array] = []
    for n in range(num_envs):
        valid = mask[:, n].nonzero()[0]
        last = done[valid, n].nonzero()[0][: quota[n]]
        columns += [rows * num_envs + n for rows in np.split(valid[: last[-1] + 1], last[:-1] + 1)] if quota[n] else []
    horizon = max(len(column) for column in columns)
    rows = np.zeros((horizon, len(columns)), np.int64)
    inside = np.zeros((horizon, len(columns)), bool)
    for j, column in enumerate(columns):
        rows[: len(column), j] = column
        inside[: len(column), j] = True
    return _gather_columns(blocks, torch.from_numpy(rows), torch.from_numpy(inside))


def _gather_columns(blocks: Sequence[Rollout], rows: Tensor, inside: Tensor) -> Rollout:
    """The rows [H, n] of the joined blocks; where not `inside`, zeros."""
    device = blocks[0].mask.device
    rows, inside = rows.to(device), inside.to(device)

    def gathered(pieces: list[Tensor]) -> Tensor:
        joined = torch.cat([piece.flatten(0, 1) for piece in pieces])[rows]
        keep = inside.view(*inside.shape, *([1] * (joined.ndim - 2)))
        return torch.where(keep, joined, torch.zeros_like(joined))

    def gathered_observations(pieces: list[Observations]) -> Observations:
        first = pieces[0]
        if isinstance(first, dict):
            return {key: gathered([piece[key] for piece in pieces]) for key in first}  # type: ignore[index]
        return gathered(pieces)  # type: ignore[arg-type]

    observations = gathered_observations([block.observations for block in blocks])
    following = gathered_observations([block.next_observations for block in blocks])
    # Within a column s_{t+1} is the next row; after its last row only `following` has it, at the row below.
    last = inside.sum(0) - 1
    columns = torch.arange(rows.shape[1], device=device)

    def with_last(states: Tensor, final: Tensor) -> Tensor:
        padded = torch.cat([states, torch.zeros_like(states[:1])])
        padded[last + 1, columns] = final[last, columns]
        return padded

    if isinstance(observations, dict):
        states: Observations = {key: with_last(observations[key], following[key]) for key in observations}  # type: ignore[index]
        empty: Observations = {key: value[:0, 0] for key, value in observations.items()}
    else:
        states, empty = with_last(observations, following), observations[:0, 0]  # type: ignore[arg-type]
    first = blocks[0]
    return replace(
        first,
        states=states,
        actions=gathered([block.actions for block in blocks]),
        log_probs=gathered([block.log_probs for block in blocks]),
        rewards=gathered([block.rewards for block in blocks]),
        terminated=gathered([block.terminated for block in blocks]),
        truncated=gathered([block.truncated for block in blocks]),
        mask=inside,
        final_rows=torch.zeros(0, dtype=torch.int64, device=device),
        final_observations=empty,
    )
