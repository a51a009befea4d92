"""Returns and advantages along time, with termination as a discount of 0 and an episode's end as a trace of 0."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_sums(x: Tensor, decay: Tensor) -> Tensor:
    """y_t = x_t + decay_t · y_{t+1}, with y_T = 0, along the first axis.

    Both tensors are [T, ...] of one shape. The recursion is solved by doubling: log₂ T vector operations instead of
    T small ones; a product of decays that underflows to 0 is the right limit. Differentiable in both arguments.
    """
    if x.shape != decay.shape:
        raise ValueError(f"x and decay must have one shape, got {tuple(x.shape)} and {tuple(decay.shape)}")
    shift = 1
    while shift < len(x):
        x = torch.cat([x[:-shift] + decay[: len(x) - shift] * x[shift:], x[-shift:]])
        decay = decay[:-shift] * decay[shift:]
        shift *= 2
    return x


def gae(rewards: Tensor, values: Tensor, next_values: Tensor, discounts: Tensor, traces: Tensor) -> Tensor:
    """Advantages Â_t = δ_t + γ_t λ_t Â_{t+1}, with δ_t = r_t + γ_t v(s_{t+1}) − v(s_t).

    All tensors are [T, N]. `discounts` is γ, 0 where s_{t+1} is absorbing; `traces` is λ, 0 where the episode ended
    at s_{t+1}, whether terminated or truncated.

    Source: Schulman et al., arXiv:1506.02438, eq. 16.
    """
    delta = rewards + discounts * next_values - values
    return discounted_sums(delta, discounts * traces)
