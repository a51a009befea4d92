"""Which completions of a group enter the regression. The minimiser does not depend on it, the weighting does."""

from __future__ import annotations

import torch
from torch import Tensor

from rlopt.lm.arguments import Pairing


def chosen_rows(
    pairing: Pairing, rewards: Tensor, completions: list[list[int]], group_size: int, generator: torch.Generator
) -> Tensor:
    """Numbers of the completions that stay, whole groups in a row; [n], on the CPU.

    Args:
        pairing: "all", "best_worst" (a group whose best and worst are the same tokens is dropped), or "random".
        rewards: [N], of contiguous groups.
        completions: token ids of each.
        group_size: K.
        generator: draws the random pairs.
    """
    numbers = torch.arange(len(rewards)).view(-1, group_size)
    if pairing == "all":
        return numbers.flatten()
    if pairing == "random":
        order = torch.rand(numbers.shape, generator=generator).argsort(1)
        return numbers.gather(1, order[:, :2]).flatten()
    grouped = rewards.cpu().view(-1, group_size)
    best, worst = grouped.argmax(1, keepdim=True), grouped.argmin(1, keepdim=True)
    pairs = numbers.gather(1, torch.cat([best, worst], 1))
    kept = [row for row in pairs if completions[int(row[0])] != completions[int(row[1])]]
    return torch.cat(kept) if kept else torch.empty(0, dtype=torch.long)
