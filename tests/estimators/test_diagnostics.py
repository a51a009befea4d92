import math

import numpy as np
import pytest
import torch
from stable_baselines3.common.utils import explained_variance as sb3_explained_variance

from rlopt.estimators import approximate_kl, clip_fraction, explained_variance


def test_approximate_kl_is_never_negative():
    """Detail 12."""
    for scale in (1e-8, 1e-4, 1.0, 5.0):
        log_ratio = scale * torch.randn(1000, generator=torch.Generator().manual_seed(0))
        assert float(approximate_kl(log_ratio)) >= 0.0
    assert float(approximate_kl(torch.zeros(10))) == 0.0


def test_approximate_kl_estimates_the_kl_divergence_without_bias():
    old = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    new = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64)
    # on every action in proportion to its probability under the old policy
    actions = torch.tensor([0] * 2 + [1] * 5 + [2] * 3)
    kl = float((old * (old / new).log()).sum())
    assert float(approximate_kl((new / old).log()[actions])) == pytest.approx(kl, abs=1e-12)


def test_clip_fraction_counts_ratios_outside_the_range():
    ratios = torch.tensor([0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0, 1.0])
    assert float(clip_fraction(ratios.log(), 0.2)) == 0.5


@pytest.mark.parametrize(
    ("values", "targets", "expected"),
    [
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0], 1.0),
        ([2.0, 2.0, 2.0], [1.0, 2.0, 3.0], 0.0),
        ([3.0, 2.0, 1.0], [1.0, 2.0, 3.0], -3.0),
        ([11.0, 12.0, 13.0], [1.0, 2.0, 3.0], 1.0),  # an offset is not seen
        ([1.0, 2.0, 3.0], [5.0, 5.0, 5.0], math.nan),
    ],
)
def test_explained_variance(values, targets, expected):
    mine = explained_variance(torch.tensor(values), torch.tensor(targets))
    assert mine.shape == ()
    assert float(mine) == pytest.approx(expected, nan_ok=True)
    assert float(mine) == pytest.approx(sb3_explained_variance(np.array(values), np.array(targets)), nan_ok=True)
