"""Quantities that tell whether an update can be trusted. None of them enters a gradient."""

from __future__ import annotations

import torch
from torch import Tensor


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Mean of ρ − 1 − log ρ ≥ 0, an unbiased estimate of KL(old ‖ new) on data of the old policy; scalar.

    Source: J. Schulman, http://joschu.net/blog/kl-approx.html, estimator k3.
    """
    return (torch.expm1(log_ratio) - log_ratio).mean()


def clip_fraction(log_ratio: Tensor, clip_range: float) -> Tensor:
    """Share of rows with |ρ − 1| > ε; scalar in [0, 1]."""
    return (torch.expm1(log_ratio).abs() > clip_range).to(log_ratio.dtype).mean()


def explained_variance(values: Tensor, targets: Tensor) -> Tensor:
    """1 − Var(target − v) / Var(target); scalar, NaN where the targets do not vary.

    1 is a perfect critic, 0 is as good as a constant, below 0 is worse than one. Inputs are [S'], valid rows only.
    """
    variance = targets.var(correction=0)
    ratio = (targets - values).var(correction=0) / variance
    return torch.where(variance == 0, torch.full_like(variance, torch.nan), 1.0 - ratio)
