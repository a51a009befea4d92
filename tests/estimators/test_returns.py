"""Oracles: plain loops in float64, and numbers worked out by hand."""

import numpy as np
import pytest
import torch

from rlopt.estimators import discounted_sums, gae
from tests.host_reads import ForbidHostReads

LENGTHS = [0, 1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 100, 1000]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loop(x, decay):
    y = np.zeros_like(x)
    following = np.zeros(x.shape[1:])
    for t in reversed(range(len(x))):
        following = x[t] + decay[t] * following
        y[t] = following
    return y


def gae_loop(rewards, values, next_values, discounts, traces):
    advantages = np.zeros_like(rewards)
    following = np.zeros(rewards.shape[1:])
    for t in reversed(range(len(rewards))):
        delta = rewards[t] + discounts[t] * next_values[t] - values[t]
        following = delta + discounts[t] * traces[t] * following
        advantages[t] = following
    return advantages


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_discounted_sums_equal_the_loop(length, shape):
    x, decay = normal(length, *shape), uniform(length, *shape)
    expected = loop(x.numpy(), decay.numpy())
    np.testing.assert_allclose(discounted_sums(x, decay).numpy(), expected, rtol=0, atol=1e-12)


def test_discounted_sums_do_not_cross_a_decay_of_zero():
    x, decay = normal(20, 2), torch.full((20, 2), 0.99, dtype=torch.float64)
    decay[9] = 0.0
    changed = x.clone()
    changed[10:] += 1e6
    assert torch.equal(discounted_sums(x, decay)[:10], discounted_sums(changed, decay)[:10])


def test_a_decay_of_one_gives_sums_to_the_end():
    x = normal(33)
    torch.testing.assert_close(
        discounted_sums(x, torch.ones(33, dtype=torch.float64)), x.flip(0).cumsum(0).flip(0), rtol=0, atol=1e-12
    )


def test_the_last_decay_is_not_used():
    x, decay = normal(6), uniform(6)
    other = decay.clone()
    other[-1] = 1e9
    assert torch.equal(discounted_sums(x, decay), discounted_sums(x, other))


def test_inputs_are_not_written_to():
    x, decay = normal(9, 2), uniform(9, 2)
    kept = x.clone(), decay.clone()
    discounted_sums(x, decay)
    assert torch.equal(x, kept[0])
    assert torch.equal(decay, kept[1])


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"one shape, got \(3, 2\) and \(3, 1\)"):
        discounted_sums(normal(3, 2), normal(3, 1))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("length", [1, 2, 3, 7])
def test_discounted_sums_differentiate_in_both_arguments(length):
    x, decay = normal(length, 2).requires_grad_(), uniform(length, 2).requires_grad_()
    assert torch.autograd.gradcheck(discounted_sums, (x, decay))
    tangents = normal(length, 2, seed=5), normal(length, 2, seed=6)
    primals = x.detach(), decay.detach()
    _, forward = torch.func.jvp(discounted_sums, primals, tangents)
    step = 1e-6
    high = discounted_sums(*(p + step * t for p, t in zip(primals, tangents)))
    low = discounted_sums(*(p - step * t for p, t in zip(primals, tangents)))
    torch.testing.assert_close(forward, (high - low) / (2 * step), rtol=1e-6, atol=1e-8)


def test_discounted_sums_map_over_a_batch():
    x, decay = normal(4, 9, 2), uniform(4, 9, 2)
    mapped = torch.func.vmap(discounted_sums)(x, decay)
    torch.testing.assert_close(mapped, torch.stack([discounted_sums(a, b) for a, b in zip(x, decay)]), rtol=0, atol=0)


@pytest.mark.parametrize("length", LENGTHS)
def test_gae_equals_the_loop(length):
    """Detail 5."""
    arguments = [normal(length, 3, seed=seed) for seed in range(3)]
    ended = uniform(length, 3, seed=7) < 0.2
    discounts = 0.99 * (~(ended & (uniform(length, 3, seed=8) < 0.5))).double()
    traces = 0.95 * (~ended).double()
    expected = gae_loop(*(a.numpy() for a in (*arguments, discounts, traces)))
    np.testing.assert_allclose(gae(*arguments, discounts, traces).numpy(), expected, rtol=0, atol=1e-12)


def test_in_single_precision_gae_equals_the_loop_and_waits_for_no_device():
    arguments = [normal(128, 3, seed=seed) for seed in range(3)]
    ended = uniform(128, 3, seed=7) < 0.05
    discounts, traces = 0.99 * torch.ones(128, 3).double(), 0.95 * (~ended).double()
    expected = gae_loop(*(a.numpy() for a in (*arguments, discounts, traces)))
    single = [x.float() for x in (*arguments, discounts, traces)]
    with ForbidHostReads():
        found = gae(*single)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-5)


def test_gae_of_a_hand_computed_trajectory():
    # r = 1, 2, 3; v = 0.5, 1, 1.5; v' = 1, 1.5, 4; γ = 0.5, λ = 0.5; δ = 1, 1.75, 3.5
    column = lambda *numbers: torch.tensor(numbers, dtype=torch.float64)[:, None]  # noqa: E731
    half = torch.full((3, 1), 0.5, dtype=torch.float64)
    advantages = gae(column(1, 2, 3), column(0.5, 1, 1.5), column(1, 1.5, 4), half, half)
    assert advantages.flatten().tolist() == [1 + 0.25 * (1.75 + 0.25 * 3.5), 1.75 + 0.25 * 3.5, 3.5]


@pytest.mark.parametrize("lambda_", [0.0, 1.0])
@pytest.mark.parametrize(
    ("terminated", "truncated", "delta", "continues"),
    [
        # r = 1, v = 2, v' = 10, γ = 0.5; the advantage of the row after is 8
        (False, False, 1 + 5 - 2, True),
        (True, False, 1 - 2, False),
        (False, True, 1 + 5 - 2, False),
        (True, True, 1 - 2, False),  # terminated wins
    ],
)
def test_gae_flag_table(lambda_, terminated, truncated, delta, continues):
    rewards = torch.tensor([[1.0], [8.0]], dtype=torch.float64)
    values, next_values = torch.tensor([[2.0], [0.0]]).double(), torch.tensor([[10.0], [0.0]]).double()
    discounts = torch.tensor([[0.0 if terminated else 0.5], [0.5]], dtype=torch.float64)
    traces = torch.tensor([[0.0 if terminated or truncated else lambda_], [lambda_]], dtype=torch.float64)
    advantages = gae(rewards, values, next_values, discounts, traces)
    assert float(advantages[0]) == delta + (0.5 * lambda_ * 8 if continues else 0.0)


def test_lambda_one_telescopes_to_the_return_minus_the_value():
    rewards, values = normal(10, 2), normal(11, 2, seed=1)
    discounts = torch.full((10, 2), 0.9, dtype=torch.float64)
    advantages = gae(rewards, values[:-1], values[1:], discounts, torch.ones_like(discounts))
    bootstrapped = rewards.clone()
    bootstrapped[-1] += 0.9 * values[-1]
    torch.testing.assert_close(advantages, discounted_sums(bootstrapped, discounts) - values[:-1], rtol=0, atol=1e-12)


def test_treating_truncation_as_termination_would_be_noticed():
    """Negative control of the flag table: without the bootstrap the value target is another one."""
    one = torch.ones(1, 1, dtype=torch.float64)
    right = gae(one, one, 10 * one, 0.5 * one, 0 * one)
    wrong = gae(one, one, 10 * one, 0 * one, 0 * one)
    assert float(right - wrong) == 5.0
