"""Returns, advantages and occupancies along time.

Termination is a discount of 0 and an episode's end a trace of 0. Where whole episodes are columns, time is counted from
their first row and discounts are absolute: γ^t, not γ^{t−h}.
"""

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


def suffix_sums(x: Tensor) -> Tensor:
    """y_t = Σ_{h≥t} x_h along the first axis, [T, ...]."""
    return x.flip(0).cumsum(0).flip(0)


def discount_powers(gamma: float, like: Tensor) -> Tensor:
    """γ^t for t = 0 … T − 1, [T, 1, ...]: broadcasts against `like` [T, ...], whose dtype and device it has."""
    powers = gamma ** torch.arange(len(like), dtype=like.dtype, device=like.device)
    return powers.view(-1, *[1] * (like.ndim - 1))


def mean_of_others(x: Tensor, mask: Tensor) -> Tensor:
    """For every column the mean of the other columns' entries in its row, where they are valid; 0 if none is.

    A function of the other episodes alone, so as a baseline it is unbiased; the mean over all columns, the own one
    included, would scale the gradient by (N − 1)/N. Both tensors are [T, N].
    """
    valid = mask.to(x.dtype)
    x = x * valid
    others = valid.sum(1, keepdim=True) - valid
    return (x.sum(1, keepdim=True) - x) / others.clamp_min(1.0)


def importance_weights(log_ratio: Tensor, per_step: bool = True) -> Tensor:
    """ω_t = Π_{k≤t} π_θ(a_k | s_k) / π_b(a_k | s_k), or the product over the whole episode at every t; [T, N].

    The target policy is in the numerator, so that E_b[ω_t] = 1. `log_ratio` [T, N] is 0 on padding.
    """
    return log_ratio.cumsum(0).exp() if per_step else log_ratio.sum(0).exp().expand_as(log_ratio)


def discounted_return(rewards: Tensor, gamma: float, weights: Tensor | None = None) -> Tensor:
    """Σ_t γ^t ω_t r_t of every episode, [N] or [N, K].

    Args:
        rewards: [T, N] or [T, N, K], 0 on padding.
        gamma: γ in [0, 1].
        weights: `importance_weights` [T, N]; none on the policy's own data. With them the mean over episodes of the
            behaviour policy is an unbiased estimate of the target policy's J.
    """
    if weights is not None:
        rewards = rewards * weights.view(*weights.shape, *[1] * (rewards.ndim - 2))
    return (discount_powers(gamma, rewards) * rewards).sum(0)


def return_differences(rewards: Tensor, gamma: float, weights: Tensor, control: bool = True) -> Tensor:
    """Σ_t γ^t (1 − ω_t)(r_t − r̄_t) of every episode, [N] or [N, K]: its mean estimates J(behaviour) − J(target).

    Args:
        rewards: [T, N] or [T, N, K], 0 on padding.
        gamma: γ in [0, 1].
        weights: `importance_weights` [T, N].
        control: r̄_t is the mean of the other episodes' rewards at t, those that are over included, as E[1 − ω_t] = 0 holds
            for all episodes together and not for those that last; else r̄ = 0.
    """
    if control and rewards.shape[1] > 1:
        rewards = rewards - (rewards.sum(1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return discounted_return(rewards, gamma, 1.0 - weights)


def occupancy(
    states: Tensor,
    actions: Tensor,
    mask: Tensor,
    gamma: float,
    num_states: int,
    num_actions: int,
    weights: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """λ̂(s, a), the mean over episodes of Σ_t γ^t ω_t 1{s_t = s, a_t = a}, [S, A].

    Args:
        states: [T, N] integers below S.
        actions: [T, N] integers below A.
        mask: [T, N] bool.
        gamma: γ in [0, 1].
        num_states, num_actions: S and A.
        weights: `importance_weights` [T, N]; none on the policy's own data.
        dtype: of the result without weights; with them it is theirs.

    Source: Zhang et al., arXiv:2102.08607, eq. 9; with weights Barakat et al., arXiv:2306.01854.
    """
    dtype = dtype if weights is None else weights.dtype
    mass = mask.to(dtype)
    mass = discount_powers(gamma, mass) * (mass if weights is None else mass * weights) / mask.shape[1]
    cells = (states.long() * num_actions + actions.long()).flatten()
    counts = torch.zeros(num_states * num_actions, dtype=dtype, device=mask.device)
    return counts.index_add(0, cells, mass.flatten()).view(num_states, num_actions)
