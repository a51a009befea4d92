"""KL(old ‖ new) in closed form. Oracles: torch.distributions, autograd, the mean log-ratio of samples."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as reference

from rlopt.envs.memory import MemoryActions
from rlopt.policies import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical, SquashedGaussian
from rlopt.policies.stateful import Deterministic, JointDistribution

# torch's own, at the first forward-mode derivative in a process
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")

F64 = torch.float64
ROWS = 6


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def gaussian_reference(mean, log_std):
    return reference.Independent(reference.Normal(mean, log_std.exp().expand_as(mean)), 1)


def squashed_reference(mean, log_std):
    base = reference.Normal(mean, log_std.exp().expand_as(mean))
    return reference.Independent(reference.TransformedDistribution(base, [reference.transforms.TanhTransform()]), 1)


# How each kind is made of its outputs, what torch makes of them, and the outputs' shapes.
KINDS = {
    "categorical": (Categorical.from_logits, lambda x: reference.Categorical(logits=x), [(ROWS, 5)]),
    "multi": (
        lambda x: MultiCategorical.from_logits(x, (2, 4)),
        lambda x: (reference.Categorical(logits=x[:, :2]), reference.Categorical(logits=x[:, 2:])),
        [(ROWS, 6)],
    ),
    "bernoulli": (Bernoulli, lambda x: reference.Independent(reference.Bernoulli(logits=x), 1), [(ROWS, 3)]),
    "gaussian": (DiagonalGaussian, gaussian_reference, [(ROWS, 3), (3,)]),
    "squashed": (SquashedGaussian, gaussian_reference, [(ROWS, 3), (3,)]),
}


def outputs(kind, seed):
    return [0.7 * normal(*shape, seed=10 * seed + i) for i, shape in enumerate(KINDS[kind][2])]


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_agree_with_torch(kind):
    """For tanh of a Gaussian with the Gaussians themselves; the other way round it is another number."""
    make, make_reference, _ = KINDS[kind]
    old, new = outputs(kind, 0), outputs(kind, 1)
    mine = make(*new).divergence_from(make(*old))
    theirs = make_reference(*old), make_reference(*new)
    pairs = list(zip(*theirs, strict=True)) if isinstance(theirs[0], tuple) else [theirs]
    expected = torch.stack([reference.kl_divergence(p, q) for p, q in pairs]).sum(0)
    assert mine.shape == (ROWS,)
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)
    assert float((make(*old).divergence_from(make(*new)) - expected).abs().min()) > 1e-3
    torch.testing.assert_close(make(*old).divergence_from(make(*old)), torch.zeros(ROWS, dtype=F64), rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
def test_divergences_are_differentiable(kind):
    make = KINDS[kind][0]
    old, new = outputs(kind, 0), [x.requires_grad_() for x in outputs(kind, 1)]
    assert torch.autograd.gradcheck(lambda *x: make(*x).divergence_from(make(*old)), new)
    assert torch.autograd.gradgradcheck(lambda *x: make(*x).divergence_from(make(*old)), new)
    at_old = [x.clone().requires_grad_() for x in old]
    for gradient in torch.autograd.grad(make(*at_old).divergence_from(make(*old)).sum(), at_old):
        assert float(gradient.abs().max()) < 1e-12


def test_squashed_divergence_is_the_mean_log_ratio():
    """Of samples in (−1, 1), where the Jacobians cancel."""
    num = 100_000
    (old_mean, old_log_std), (new_mean, new_log_std) = outputs("squashed", 0), outputs("squashed", 1)
    old = SquashedGaussian(old_mean[0].expand(num, 3), old_log_std)
    new = SquashedGaussian(new_mean[0].expand(num, 3), new_log_std)
    samples = old.sample(normal(num, 3, seed=9))
    kept = (samples.abs() < 0.999).all(-1)
    ratio = squashed_reference(old.mean, old_log_std).log_prob(samples) - squashed_reference(new.mean, new_log_std).log_prob(
        samples
    )
    assert float((old.log_prob(samples) - new.log_prob(samples) - ratio)[kept].abs().max()) < 1e-6
    z = (float(new.divergence_from(old)[0]) - float(ratio.mean())) / float(ratio.std() / math.sqrt(num))
    assert abs(z) < 4


def test_masked_choices_contribute_nothing():
    masked = torch.tensor([0.0, -torch.inf, 0.0, 0.0], dtype=F64)
    logits = normal(2, 4, seed=1).requires_grad_()
    old, new = Categorical.from_logits(normal(2, 4) + masked), Categorical.from_logits(logits + masked)
    kept = torch.tensor([0, 2, 3])
    expected = Categorical.from_logits(logits[:, kept]).divergence_from(Categorical.from_logits(normal(2, 4)[:, kept]))
    torch.testing.assert_close(new.divergence_from(old), expected, rtol=0, atol=1e-12)
    assert bool(torch.autograd.grad(new.divergence_from(old).sum(), logits)[0].isfinite().all())
    assert bool(new.divergence_from(Categorical.from_logits(normal(2, 4))).isinf().all())  # `old` chooses what `new` never does


def test_divergence_of_policies_with_memory_is_that_of_both_parts():
    """A memory that is drawn adds its own, one that is no choice adds nothing."""
    space = MemoryActions(spaces.Box(-1, 1, (3,), np.float32), 2)
    parts = [DiagonalGaussian(*outputs("gaussian", seed)) for seed in (0, 1)]
    memories = [DiagonalGaussian(normal(ROWS, 2, seed=seed), 0.3 * normal(2, seed=seed)) for seed in (20, 21)]
    old, new = (JointDistribution(a, z, space) for a, z in zip(parts, memories, strict=True))
    expected = parts[1].divergence_from(parts[0]) + memories[1].divergence_from(memories[0])
    torch.testing.assert_close(new.divergence_from(old), expected, rtol=0, atol=1e-15)
    assert float(memories[1].divergence_from(memories[0]).min()) > 1e-3
    old, new = (JointDistribution(a, Deterministic(z.mean), space) for a, z in zip(parts, memories, strict=True))
    torch.testing.assert_close(new.divergence_from(old), parts[1].divergence_from(parts[0]), rtol=0, atol=0)
