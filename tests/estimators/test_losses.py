"""Oracles: the formulas by hand, and autograd."""

import math

import pytest
import torch

from rlopt.estimators import (
    clipped_surrogate,
    clipped_surrogate_weights,
    clipped_value_loss,
    clipped_value_loss_slope,
    pessimistic_value_loss,
    pessimistic_value_loss_slope,
    value_loss,
)

F64 = torch.float64
CLIP = 0.2


@pytest.mark.parametrize(
    ("ratio", "advantage", "value", "slope"),
    [
        (1.0, 2.0, 2.0, 2.0),
        (1.1, 2.0, 2.2, 2.0),
        (1.5, 2.0, 2.4, 0.0),  # clipped above, the gain is capped
        (0.5, 2.0, 1.0, 2.0),  # below, but an increase is wanted: not clipped
        (1.5, -2.0, -3.0, -2.0),  # above, but a decrease is wanted: not clipped
        (0.5, -2.0, -1.6, 0.0),  # clipped below
        (0.9, -2.0, -1.8, -2.0),
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, value, slope):
    """Detail 8: the gradient is exactly 0 where the clip binds."""
    log_ratio = torch.tensor([math.log(ratio)], dtype=F64, requires_grad=True)
    surrogate = clipped_surrogate(log_ratio, torch.tensor([advantage], dtype=F64), CLIP)
    (gradient,) = torch.autograd.grad(surrogate.sum(), log_ratio)
    assert float(surrogate.detach()) == pytest.approx(value, abs=1e-12)
    assert float(gradient) == pytest.approx(slope * ratio, abs=1e-12)
    if slope == 0.0:
        assert float(gradient) == 0.0


def test_clipped_surrogate_never_exceeds_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    log_ratio, advantages = torch.randn(1000, generator=generator), torch.randn(1000, generator=generator)
    assert bool((clipped_surrogate(log_ratio, advantages, CLIP) <= log_ratio.exp() * advantages).all())


def test_its_gradient_at_ratio_one_is_the_policy_gradient():
    advantages = torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=F64)
    log_ratio = torch.zeros(50, dtype=F64, requires_grad=True)
    (gradient,) = torch.autograd.grad(clipped_surrogate(log_ratio, advantages, CLIP).sum(), log_ratio)
    assert torch.equal(gradient, advantages)


def test_value_loss_is_the_squared_error():
    values = torch.tensor([1.0, -2.0], dtype=F64, requires_grad=True)
    loss = value_loss(values, torch.tensor([3.0, -2.0], dtype=F64))
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert loss.detach().tolist() == [4.0, 0.0]
    assert gradient.tolist() == [-4.0, 0.0]


CLIPPED = [
    # v, v_old, target; SB3's loss and slope; the maximum's loss and slope, with ε = 0.5
    (0.3, 0.0, 1.0, 0.49, -1.4, 0.49, -1.4),  # inside the range
    (0.8, 0.0, 1.0, 0.25, 0.0, 0.25, 0.0),  # left it towards the target
    (-0.8, 0.0, 1.0, 2.25, 0.0, 3.24, -3.6),  # left it away from the target
    (2.0, 0.0, 1.0, 0.25, 0.0, 1.0, 2.0),  # overshot the target
    (-0.3, 0.0, 1.0, 1.69, -2.6, 1.69, -2.6),
    (9.7, 10.0, 9.0, 0.49, 1.4, 0.49, 1.4),
]


@pytest.mark.parametrize(("value", "old", "target", "sb3", "sb3_slope", "pessimistic", "slope"), CLIPPED)
def test_both_clipped_value_losses_by_hand(value, old, target, sb3, sb3_slope, pessimistic, slope):
    """Detail 9: the prediction alone as in SB3, the maximum as in CleanRL."""
    for function, expected, expected_slope in (
        (clipped_value_loss, sb3, sb3_slope),
        (pessimistic_value_loss, pessimistic, slope),
    ):
        values = torch.tensor([value], dtype=F64, requires_grad=True)
        loss = function(values, torch.tensor([old], dtype=F64), torch.tensor([target], dtype=F64), 0.5)
        (gradient,) = torch.autograd.grad(loss.sum(), values)
        assert float(loss.detach()) == pytest.approx(expected, abs=1e-12)
        assert float(gradient) == pytest.approx(expected_slope, abs=1e-12)


def test_the_gradient_of_the_clipped_prediction_vanishes_outside_the_range():
    values = torch.linspace(-3, 3, 61, dtype=F64, requires_grad=True)
    loss = clipped_value_loss(values, torch.zeros(61, dtype=F64), torch.full((61,), 10.0, dtype=F64), 0.55)
    (gradient,) = torch.autograd.grad(loss.sum(), values)
    assert bool((gradient[values.detach().abs() > 0.55] == 0).all())
    assert bool((gradient[values.detach().abs() < 0.55] != 0).all())


def test_losses_give_one_number_a_row():
    row = torch.zeros(5)
    for loss in (
        clipped_surrogate(row, row, 0.2),
        value_loss(row, row),
        clipped_value_loss(row, row, row, 0.2),
        pessimistic_value_loss(row, row, row, 0.2),
    ):
        assert loss.shape == (5,)


def test_closed_forms_are_the_gradients():
    generator = torch.Generator().manual_seed(0)
    first, second, third = (torch.randn(2000, generator=generator, dtype=F64) for _ in range(3))
    first[:4], second[:4] = torch.tensor([0.5, -0.5, 0.0, 0.0], dtype=F64), 0.0  # no advantage, or no change
    for loss, slope, others in (
        (clipped_surrogate, clipped_surrogate_weights, (second, CLIP)),
        (clipped_value_loss, clipped_value_loss_slope, (second, third, CLIP)),
        (pessimistic_value_loss, pessimistic_value_loss_slope, (second, third, CLIP)),
    ):
        inputs = first.clone().requires_grad_()
        (expected,) = torch.autograd.grad(loss(inputs, *others).sum(), inputs)
        torch.testing.assert_close(slope(first, *others), expected, rtol=0, atol=1e-12)
