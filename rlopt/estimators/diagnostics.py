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

    1 is a perfect critic, 0 is as good as a constant, below 0 is worse than one. Inputs are [S'], or [S', K] for the mean
    over K objectives; valid rows only.
    """
    variance = targets.var(0, correction=0)
    ratio = (targets - values).var(0, correction=0) / variance
    return torch.where(variance == 0, torch.full_like(variance, torch.nan), 1.0 - ratio).mean()


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of the angle between two vectors [d]; scalar in [−1, 1], 0 if one of them is 0."""
    return first @ second / (first.norm() * second.norm()).clamp_min(torch.finfo(first.dtype).tiny)


def effective_sample_size(log_weights: Tensor) -> Tensor:
    """(Σ w)² / (N Σ w²) of N importance weights given by their logarithms [N]; scalar in [1/N, 1], 1 if all are equal."""
    weights = (log_weights - log_weights.max()).exp()
    return weights.sum().square() / (len(weights) * weights.square().sum())


def half_batch_noise(first: Tensor, second: Tensor, sizes: tuple[int, int]) -> Tensor:
    """tr Cov(ḡ), where ḡ is the mean over both parts of a batch; scalar, unbiased if the parts are independent.

    A leave-one-out baseline over the whole batch couples them a little: by 1/(N − 1)² for episodes of one length.

    Args:
        first, second: the gradients [d] of two disjoint parts.
        sizes: how many episodes each part has; ‖g_a − g_b‖²/4 if they are equal.
    """
    a, b = sizes
    return (first - second).square().sum() * (a * b) / (a + b) ** 2


def signal_to_noise(first: Tensor, second: Tensor, sizes: tuple[int, int]) -> Tensor:
    """⟨g_a, g_b⟩ / tr Cov(ḡ): an unbiased estimate of ‖∇J‖² over that of the noise of ḡ; scalar.

    Arguments and conditions as for `half_batch_noise`. Near or below 0 the gradient is noise; ±10⁶ stands for none at all.
    """
    signal = first @ second
    noise = torch.maximum(half_batch_noise(first, second, sizes), 1e-6 * signal.abs())
    return signal / noise.clamp_min(torch.finfo(first.dtype).tiny)


def squared_error(direction: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """⟨d − g', d − g''⟩, an unbiased estimate of ‖d − ∇J‖² with two independent gradients at the same θ; scalar."""
    return (direction - first) @ (direction - second)
