"""Losses per element; the caller masks and averages."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(log_ratio: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """min(ρ A, clip(ρ, 1 − ε, 1 + ε) A) with ρ = exp(log_ratio), to be maximised; [B].

    Its gradient is exactly 0 where the clip binds.

    Source: Schulman et al., arXiv:1707.06347, eq. 7.
    """
    ratio = log_ratio.exp()
    return torch.min(ratio * advantages, ratio.clamp(1.0 - clip_range, 1.0 + clip_range) * advantages)


def value_loss(values: Tensor, targets: Tensor) -> Tensor:
    """(v − target)², [B]."""
    return (values - targets).square()


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float) -> Tensor:
    """(v_old + clip(v − v_old, ±ε) − target)², [B]: the clipped prediction alone, as Stable-Baselines3 has it.

    The gradient vanishes wherever the prediction left the range, also when it moved the wrong way.
    """
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return (clipped - targets).square()


def pessimistic_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float) -> Tensor:
    """max of the plain and the clipped squared error, [B], as in OpenAI's baselines and CleanRL."""
    return torch.max(value_loss(values, targets), clipped_value_loss(values, old_values, targets, clip_range))
