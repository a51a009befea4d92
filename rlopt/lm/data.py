"""What the rows of a data set must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

# What reward functions get from the trainer under these names.
TAKEN = ("prompts", "completions", "completion_ids", "trainer_state")


def check_dataset(name: str, dataset: Any, needed: Sequence[str | None]) -> None:
    """Raises ValueError unless `dataset` is None, or a sequence of rows with the columns `needed` (None: no column)."""
    if dataset is None:
        return
    if isinstance(dataset, Mapping):
        raise ValueError(f"{name}: expected rows, got the splits {', '.join(map(str, dataset))}; pass one of them")
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise ValueError(
            f"{name}: expected a sequence of rows with a column 'prompt', got {type(dataset).__name__} without rows"
        )
    columns = dataset[0]
    if missing := [column for column in needed if column is not None and column not in columns]:
        raise ValueError(f"{name}: expected a column {missing[0]!r}, got {', '.join(columns)}")
    if taken := [column for column in columns if column in TAKEN]:
        raise ValueError(f"{name}: a column {taken[0]!r} would hide what reward functions get under that name; rename it")
