"""Prompts and completions as tensors.

N completions, P tokens of the longest prompt, L tokens of the longest completion. Prompts are padded on the left and
completions on the right, so that every completion begins in column P.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """What a model reads. Masks are bool, and true where a token counts; what stands elsewhere changes nothing.

    Raises:
        ValueError: prompts that are not padded on the left: a completion follows the last column.
    """

    prompt_ids: Tensor
    """[N, P]."""
    prompt_mask: Tensor
    """[N, P]."""
    completion_ids: Tensor
    """[N, L]."""
    mask: Tensor
    """[N, L], through the first end token."""

    def __post_init__(self) -> None:
        if not bool(self.prompt_mask[:, -1].all()):
            raise ValueError("prompt_mask: expected prompts padded on the left, got one whose last column is masked")

    def __len__(self) -> int:
        return len(self.completion_ids)

    def rows(self, index: Tensor) -> Tokens:
        """Some of the completions, by number [n]."""
        return Tokens(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> Tokens:
        """The same on a device."""
        return Tokens(*(getattr(self, field.name).to(device) for field in fields(self)))

    def completions(self) -> list[list[int]]:
        """Each completion's tokens without padding, the end token included."""
        ids, lengths = self.completion_ids.tolist(), self.mask.sum(1).tolist()
        return [row[:length] for row, length in zip(ids, lengths, strict=True)]


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, [N, P] each."""
    width = max(map(len, sequences))
    ids = [[pad_id] * (width - len(row)) + list(row) for row in sequences]
    mask = [[False] * (width - len(row)) + [True] * len(row) for row in sequences]
    return torch.tensor(ids), torch.tensor(mask)


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Ids and mask, [N, L] each; of width 1 at least."""
    width = max(1, *map(len, sequences))
    ids = [list(row) + [pad_id] * (width - len(row)) for row in sequences]
    mask = [[True] * len(row) + [False] * (width - len(row)) for row in sequences]
    return torch.tensor(ids), torch.tensor(mask)


def completion_mask(completion_ids: Tensor, end_ids: Collection[int]) -> Tensor:
    """True through each row's first end token, [N, L]; all true in a row without one.

    From the end token's *position*: where padding and end are one token, `ids != pad` would drop the end itself.
    """
    if not end_ids:
        return torch.ones_like(completion_ids, dtype=torch.bool)
    ends = torch.isin(completion_ids, torch.tensor(sorted(end_ids), device=completion_ids.device))
    return ends.cumsum(1) - ends.long() == 0
