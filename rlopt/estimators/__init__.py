"""Pure functions of tensors: returns, losses, diagnostics. Nothing here knows environments, agents or the collector."""

from rlopt.estimators.diagnostics import approximate_kl, clip_fraction, explained_variance
from rlopt.estimators.losses import (
    clipped_surrogate,
    clipped_surrogate_weights,
    clipped_value_loss,
    clipped_value_loss_slope,
    pessimistic_value_loss,
    pessimistic_value_loss_slope,
    value_loss,
)
from rlopt.estimators.returns import discounted_sums, gae

__all__ = [
    "approximate_kl",
    "clip_fraction",
    "clipped_surrogate",
    "clipped_surrogate_weights",
    "clipped_value_loss",
    "clipped_value_loss_slope",
    "discounted_sums",
    "explained_variance",
    "gae",
    "pessimistic_value_loss",
    "pessimistic_value_loss_slope",
    "value_loss",
]
