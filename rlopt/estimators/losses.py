"""Losses per element; the caller masks and averages."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float | Tensor) -> Tensor:
    """min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) with ρ = exp(log_ratio), to be maximised; [B].

    Its gradient is exactly 0 where the clip binds.

    Source: Schulman et al., arXiv:1707.06347, eq. 7.
    """
    ratio = log_ratio.exp()
    return torch.min(ratio * advantages, _clamped(ratio, 1.0 - clip_range, 1.0 + clip_range) * advantages)


def value_loss(values: Tensor, targets: Tensor) -> Tensor:
    """(v − target)², [B]."""
    return (values - targets).square()


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float | Tensor) -> Tensor:
    """(v_old + clip(v − v_old, ±ε) − target)², [B]: the clipped prediction alone, as Stable-Baselines3 has it.

    The gradient vanishes wherever the prediction left the range, also when it moved the wrong way.
    """
    clipped = old_values + _clamped(values - old_values, -clip_range, clip_range)
    return (clipped - targets).square()


def pessimistic_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float | Tensor) -> Tensor:
    """max of the plain and the clipped squared error, [B], as in OpenAI's baselines and CleanRL."""
    return torch.max(value_loss(values, targets), clipped_value_loss(values, old_values, targets, clip_range))


def clipped_surrogate_weights(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """∂ clipped_surrogate / ∂ log π(a | s): ρ A, and 0 where the clip binds; [B]."""
    ratio = log_ratio.exp()
    binds = torch.where(advantages > 0, ratio > 1.0 + clip_range, ratio < 1.0 - clip_range)
    return (ratio * advantages).masked_fill_(binds, 0.0)


def clipped_value_loss_slope(values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float) -> Tensor:
    """∂ clipped_value_loss / ∂ v, [B]."""
    return (2.0 * (values - targets)).masked_fill_((values - old_values).abs() > clip_range, 0.0)


def pessimistic_value_loss_slope(values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float) -> Tensor:
    """∂ pessimistic_value_loss / ∂ v, [B]."""
    clipped = clipped_value_loss(values, old_values, targets, clip_range)
    slope = clipped_value_loss_slope(values, old_values, targets, clip_range)
    return torch.where(clipped > value_loss(values, targets), slope, 2.0 * (values - targets))


def _clamped(x: Tensor, low: Any, high: Any) -> Tensor:
    """x within bounds that are numbers or scalar tensors, both alike."""
    return x.clamp(low, high)
