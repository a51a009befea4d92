"""How much more likely an action has become than the average one of π_t: ln π_θ/π_t(a | s) + KL(π_t(· | s) ‖ π_θ(· | s)).

The KL is minus the mean log-ratio under π_t, so that the normaliser of π_θ cancels. In an exponential family what is left is
linear in the natural parameters: of choices and coins

    ⟨ logits − logits_t, ∇ ln π_t(a | s) ⟩

with the gradient at the logits of π_t, known before the first step of descent. Of a Gaussian, with u = a − μ_t and m = μ − μ_t,

    Σ m u / σ² − ½ (u² − σ_t²) (1/σ² − 1/σ_t²)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rlopt.policies.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical


class Reference(NamedTuple):
    """What an action head said when the actions were drawn; B rows."""

    head: Tensor  # [B, H], logits or means of π_t
    scores: Tensor  # [B, H]: ∇ ln π_t(a | s) at the logits; of a Gaussian a − μ_t


def reference(
    distribution: Categorical | MultiCategorical | Bernoulli | DiagonalGaussian, head: Tensor, actions: Tensor
) -> Reference:
    """What `contrast` needs to know of π_t.

    Args:
        distribution: π_t(· | s).
        head: [B, H], that it was made of.
        actions: [B, *act].
    """
    if isinstance(distribution, DiagonalGaussian):
        return Reference(head, actions - distribution.mean)
    return Reference(head, distribution.pull_back(actions, head.new_ones(len(head)), 0.0)[0])


def contrast(
    past: Reference, head: Tensor, log_std: Tensor | None = None, old_log_std: Tensor | None = None
) -> tuple[Tensor, list[Tensor]]:
    """ln π_θ/π_t(a | s) + KL(π_t(· | s) ‖ π_θ(· | s)), [B], and its derivatives row by row: at the head, [B, H], and of
    Gaussians at log_std, [B, H].

    Args:
        past: of π_t.
        head: [B, H], logits or means of π_θ; finite.
        log_std, old_log_std: [H], of Gaussians π_θ and π_t; None for others.
    """
    moved = (head - past.head) * past.scores
    if log_std is None or old_log_std is None:
        return moved.sum(-1), [past.scores]
    precision, old_precision = (-2.0 * log_std).exp(), (-2.0 * old_log_std).exp()
    spread = past.scores.square() - old_precision.reciprocal()
    value = moved @ precision - 0.5 * (spread @ (precision - old_precision))
    return value, [past.scores * precision, (spread - 2.0 * moved) * precision]


def pulled_back(weights: Tensor, derivatives: list[Tensor]) -> list[Tensor]:
    """Σ_b weights_b times derivatives of row b: at the head, [B, H], whose rows stay apart, and at log_std, [H]."""
    of_head, *of_log_std = derivatives
    return [weights.unsqueeze(-1) * of_head, *(weights @ derivative for derivative in of_log_std)]
