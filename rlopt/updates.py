"""Directions and steps of the normalised and variance-reduced family, as functions of flat vectors [d].

One recursion serves all: d_t = (1 − η)(d_{t−1} + c_t) + η g_t. Policies ascend: a step adds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def corrected_momentum(direction: Tensor, gradient: Tensor, correction: Tensor | float, momentum: float) -> Tensor:
    """d_t = (1 − η)(d_{t−1} + c_t) + η g_t, [d].

    Args:
        direction: d_{t−1} [d].
        gradient: g_t [d], an estimate of ∇J at this iteration's point.
        correction: c_t [d], an estimate of ∇J(θ_t) − ∇J(θ_{t−1}); 0 for plain momentum.
        momentum: η in (0, 1]; 1 forgets the past. 0 is the recursion of SARAH, between its restarts.

    Source: arXiv:2302.01734 for the Hessian-aided correction; Cutkosky and Orabona, arXiv:1905.10018 (STORM), whose
    g + (1 − η)(d − ĝ_old) is the same line.
    """
    if momentum == 1.0:
        return gradient.clone()
    return (1.0 - momentum) * (direction + correction) + momentum * gradient


def lookahead(theta: Tensor, previous: Tensor, momentum: float) -> Tensor:
    """θ_t + ((1 − η)/η)(θ_t − θ_{t−1}), [d], with the η of *this* iteration.

    A gradient taken here, mixed in with weight η, cancels the first-order bias of momentum.

    Source: N-PG-IGT, arXiv:2302.01734, algorithm 1; implicit gradient transport, Arnold et al., arXiv:1906.03532.
    """
    return theta + ((1.0 - momentum) / momentum) * (theta - previous)


def bounded_correction(correction: Tensor, direction: Tensor, bound: float | None) -> Tensor:
    """c_t shrunk to length ‖c_t‖ ≤ bound · ‖d_{t−1}‖, [d]; as it is if `bound` is None.

    A bias in exchange for variance: on long episodes the unbiased correction's noise can exceed the direction.
    """
    if bound is None:
        return correction
    longest = bound * direction.norm()
    return correction * (longest / correction.norm().clamp_min(torch.finfo(correction.dtype).tiny)).clamp_max(1.0)


def scaled_step(theta: Tensor, direction: Tensor, step_size: float) -> Tensor:
    """θ + α d, [d]."""
    return theta + step_size * direction


def normalized_step(theta: Tensor, direction: Tensor, step_size: float) -> Tensor:
    """θ + α d / ‖d‖, [d], the norm over all parameters: a step of length α, and none where d = 0."""
    return theta + step_size * direction / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)


def truncated_step(theta: Tensor, direction: Tensor, step_size: float, radius: float) -> Tensor:
    """θ + α d, cut to length δ, [d]: min(α, δ/‖d‖) d.

    Args:
        theta, direction: [d].
        step_size: α.
        radius: δ, in parameter units; importance weights stay within e for δ ≤ 1/(2 H l_ψ).

    Source: Zhang et al., arXiv:2102.08607, eq. 12.
    """
    longest = radius / direction.norm().clamp_min(torch.finfo(direction.dtype).tiny)
    return theta + direction * longest.clamp_max(step_size)


def adam_step(
    theta: Tensor,
    direction: Tensor,
    step_size: float,
    moments: dict[str, Tensor],
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
) -> tuple[Tensor, dict[str, Tensor]]:
    """θ + α m̂ / (√v̂ + ε), [d], and the moments after it.

    Args:
        theta, direction: [d].
        step_size: α.
        moments: those after the step before; empty at first.
        betas: how much of the mean and of the mean square is kept.
        epsilon: ε.

    Source: Kingma and Ba, arXiv:1412.6980, algorithm 1.
    """
    zero = torch.zeros_like(theta)
    mean = moments.get("mean", zero).lerp(direction, 1.0 - betas[0])
    square = moments.get("square", zero).lerp(direction.square(), 1.0 - betas[1])
    steps = moments.get("steps", torch.zeros((), dtype=theta.dtype, device=theta.device)) + 1.0
    scale = (1.0 - betas[1] ** steps).sqrt() / (1.0 - betas[0] ** steps)
    corrected = mean * scale / (square.sqrt() + epsilon * (1.0 - betas[1] ** steps).sqrt())
    return theta + step_size * corrected, {"mean": mean, "square": square, "steps": steps}
