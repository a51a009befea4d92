"""Which completions of a group enter the regression. The minimiser does not depend on it, the weighting does."""

from __future__ import annotations

import torch
from torch import Tensor

from rlopt.lm.arguments import Pairing


def counted_groups(counted: Tensor, group_size: int) -> Tensor:
    """`counted` less what remains alone of its group; [N] bool.

    Args:
        counted: completions that may enter a regression, [N] bool, of contiguous groups.
        group_size: K.
    """
    grouped = counted.view(-1, group_size)
    return (grouped & (grouped.sum(1, keepdim=True) >= 2)).flatten()


def chosen_rows(
    pairing: Pairing,
    rewards: Tensor,
    completions: list[list[int]],
    counted: Tensor,
    group_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Numbers of the completions that stay, groups in a row; [n], on the CPU.

    Args:
        pairing: "all", "best_worst" (a group whose best and worst are the same tokens is dropped), or "random".
        rewards: [N], of contiguous groups.
        completions: token ids of each.
        counted: `counted_groups`, [N].
        group_size: K.
        generator: draws the random pairs.
    """
    if pairing == "all":
        return counted.nonzero()[:, 0]
    numbers, left_out = torch.arange(len(rewards)).view(-1, group_size), ~counted.view(-1, group_size)
    some = counted.view(-1, group_size).any(1)
    if pairing == "random":
        order = torch.rand(numbers.shape, generator=generator).masked_fill(left_out, torch.inf).argsort(1)
        return numbers.gather(1, order[:, :2])[some].flatten()
    grouped = rewards.cpu().view(-1, group_size)
    best = grouped.masked_fill(left_out, -torch.inf).argmax(1, keepdim=True)
    worst = grouped.masked_fill(left_out, torch.inf).argmin(1, keepdim=True)
    pairs = numbers.gather(1, torch.cat([best, worst], 1))[some]
    kept = [row for row in pairs if completions[int(row[0])] != completions[int(row[1])]]
    return torch.cat(kept) if kept else torch.empty(0, dtype=torch.long)
