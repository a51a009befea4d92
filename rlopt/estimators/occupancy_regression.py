"""Occupancies λ(s) of state spaces too large for a table: a regression on features φ(s), and the sampler of its targets.

λ(s) = Σ_{t<T} γ^t P(s_t = s) is approximated by ⟨φ(s), w⟩ where states s ~ ρ matter: w minimises
E_ρ[(λ(s) − ⟨φ(s), w⟩)²]. Multiplied by π(a | s) it approximates λ(s, a). Letters: F features, M reference states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlopt.estimators.returns import discount_powers


def geometric_time(gamma: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Times k ≥ 0 with P(k) = (1 − γ)γ^k, int64 of this shape.

    The state of an episode at such a time is a draw from (1 − γ)λ; a time past the episode's end, of probability γ^T
    without early ends, visits no state.

    Args:
        gamma: γ in [0, 1).
        shape: of the result.
        generator: on the CPU.

    Raises:
        ValueError: γ out of range; at γ = 1 there is no such distribution.
    """
    if not 0.0 <= gamma < 1.0:
        raise ValueError(f"gamma: expected a number in [0, 1), got {gamma!r}")
    # 1 − u is in (0, 1]; ⌊log(1 − u) / log γ⌋ ≥ k where 1 − u ≤ γ^k. The bound is for γ = 0, whose logarithm is −∞.
    uniform = 1.0 - torch.rand(shape, generator=generator, dtype=torch.float64)
    return (uniform.log() / torch.tensor(gamma, dtype=torch.float64).log()).floor().clamp_min(0.0).to(torch.int64)


def occupancy_regression(
    visited: Tensor,
    mask: Tensor,
    gamma: float,
    reference: Tensor,
    density: Tensor | float,
    weights: Tensor | None = None,
) -> Tensor:
    """w [F] with ⟨φ(s), w⟩ ≈ λ(s): Σ_ρ⁻¹ · mean over episodes of Σ_t γ^t ω_t ρ(s_t) φ(s_t), where Σ_ρ = E_ρ[φ φᵀ].

    The least-squares solution in one piece, of which stochastic steps are a noisy version. It is linear in the episodes:
    its expectation is the best w for the λ of the policy. One feature per state gives the table of counts.

    Args:
        visited: φ(s_t) of whole episodes, [T, N, F].
        mask: [T, N] bool.
        gamma: γ in [0, 1].
        reference: φ(s) of M states drawn from ρ, or of all states if ρ is uniform, [M, F]; with features that are
            linearly independent on them.
        density: ρ(s_t), [T, N] or a number: 1/M for the uniform distribution on M states, 1/volume on a box.
        weights: `importance_weights` [T, N]; none on the policy's own data.

    Source: Barakat et al., arXiv:2306.01854, section 5.
    """
    mass = mask.to(visited.dtype) * density
    mass = discount_powers(gamma, mass) * (mass if weights is None else mass * weights) / mask.shape[1]
    moments = reference.T @ reference / len(reference)
    return torch.linalg.solve(moments, torch.einsum("tn,tnf->f", mass, visited))


def averaged_regression(features: Tensor, same: Tensor, gamma: float, step_size: float) -> Tensor:
    """The average of w_0 = 0, w_1, …, [F], with w ← w − 2β(⟨φ(s), w⟩ − y) φ(s) and y = 1{s' = s} / (1 − γ).

    For spaces with no density: s ~ ρ and, independently, s' visited at a `geometric_time`, so that E[y | s] = λ(s).
    Where s' = s is rare, and it is in large spaces, `occupancy_regression` is far less noisy.

    Args:
        features: φ(s) of the states drawn from ρ, in the order of the steps, [B, F].
        same: whether the visited state is s, [B] bool; False for a time past the episode's end.
        gamma: γ in [0, 1).
        step_size: β; 1/(8 max ‖φ‖²) is safe.

    Source: Barakat et al., arXiv:2306.01854, section 5; Bach and Moulines, arXiv:1306.2119.
    """
    targets = same.to(features.dtype) / (1.0 - gamma)
    w, total = torch.zeros_like(features[0]), torch.zeros_like(features[0])
    for phi, y in zip(features, targets, strict=True):
        total = total + w
        w = w - 2.0 * step_size * (phi @ w - y) * phi
    return (total + w) / (len(features) + 1)
