"""Weights that stand for preferences: points of the simplex."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

# Weights sum to one up to this, which float32 leaves room for.
ROUNDING = 1e-5


def check_preferences(weights: Any, name: str = "preferences", num_objectives: int | None = None) -> None:
    """Raises ValueError unless `weights` are finite, not negative, and sum to one over the objectives.

    Args:
        weights: [..., K], or [K] of one preference if `num_objectives` is given.
        name: the argument's, for the error.
        num_objectives: K, where one preference is expected.
    """
    try:
        rows = np.asarray(weights.detach().cpu() if isinstance(weights, Tensor) else weights, np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected numbers [..., K], got {weights!r}") from None
    if num_objectives is not None and rows.shape != (num_objectives,):
        raise ValueError(f"{name}: expected {num_objectives} numbers, one an objective, got shape {rows.shape}")
    if rows.ndim == 0 or rows.shape[-1] == 0:
        raise ValueError(f"{name}: expected numbers [..., K], got shape {rows.shape}")
    impossible = ~(np.isfinite(rows) & (rows >= 0))
    if impossible.any():
        raise ValueError(f"{name}: expected weights that are finite and not negative, got {rows[impossible][0]:g}")
    sums = rows.sum(-1).reshape(-1)
    excess = np.abs(sums - 1)
    if (excess > ROUNDING).any():
        raise ValueError(f"{name}: expected weights that sum to one, got {sums[excess.argmax()]:.10g}")
