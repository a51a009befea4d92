"""Action distributions as small values of tensors: closed forms, no torch.distributions on the hot path.

`draw_noise` and `sample(noise)` split the drawing of noise from its use, so that a rollout draws all of its noise at
once and a stored noise replays the same action. `pull_back` is the gradient of log-probability and entropy at the
network's outputs in closed form: autograd through these few operations costs more than through a small network.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from rlopt.envs.memory import MemoryActions

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
LOG_2 = math.log(2.0)
TANH_BOUND = 1.0 - 1e-6  # squashed actions are pulled this far inside (−1, 1) before the inverse is taken


@runtime_checkable
class Distribution(Protocol):
    """What agents ask of π(· | s) for a batch of B states."""

    def log_prob(self, actions: Tensor) -> Tensor:
        """log π(a | s), [B]."""
        ...

    def entropy(self) -> Tensor:
        """H(π(· | s)) in nats, [B]."""
        ...

    def mode(self) -> Tensor:
        """The most likely action, [B, *act]."""
        ...

    def sample(self, noise: Tensor) -> Tensor:
        """The action that this noise gives, [B, *act]."""
        ...


class Categorical(NamedTuple):
    """One choice of n. Actions are int64 [B]; noise is Gumbel [B, n]."""

    log_probabilities: Tensor  # [B, n], normalised

    @classmethod
    def from_logits(cls, logits: Tensor) -> Categorical:
        return cls(functional.log_softmax(logits, dim=-1))

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_probabilities.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        # A masked choice has log-probability −inf and contributes 0, not NaN.
        finite = self.log_probabilities.clamp_min(torch.finfo(self.log_probabilities.dtype).min)
        return -(finite.exp() * finite).sum(-1)

    def pull_back(self, actions: Tensor, weights: Tensor, entropy_weight: float) -> tuple[Tensor, ...]:
        """∂/∂logits of Σ_b weights_b log π(a_b | s_b) + entropy_weight Σ_b H_b, [B, n]."""
        probabilities = self.log_probabilities.exp()
        gradient = probabilities * -weights.unsqueeze(-1)
        gradient.scatter_add_(-1, actions.long().unsqueeze(-1), weights.unsqueeze(-1))
        if entropy_weight:
            finite = self.log_probabilities.clamp_min(torch.finfo(self.log_probabilities.dtype).min)
            gradient -= entropy_weight * probabilities * (finite + self.entropy().unsqueeze(-1))
        return (gradient,)

    def divergence_from(self, old: Categorical) -> Tensor:
        """KL(old ‖ self), [B]: infinite where `old` chooses what this never does."""
        taken = old.log_probabilities > -torch.inf  # what is never chosen contributes 0, not NaN
        before, after = (x.log_probabilities.masked_fill(~taken, 0.0) for x in (old, self))
        return (old.log_probabilities.exp() * (before - after)).sum(-1)

    def mode(self) -> Tensor:
        return self.log_probabilities.argmax(-1)

    def sample(self, noise: Tensor) -> Tensor:
        return (self.log_probabilities + noise).argmax(-1)


class MultiCategorical(NamedTuple):
    """Independent choices of n_1, …, n_A. Actions are int64 [B, A]; noise is Gumbel [B, Σ n_i]."""

    parts: tuple[Categorical, ...]

    @classmethod
    def from_logits(cls, logits: Tensor, sizes: tuple[int, ...]) -> MultiCategorical:
        return cls(tuple(Categorical.from_logits(part) for part in logits.split(sizes, dim=-1)))

    def log_prob(self, actions: Tensor) -> Tensor:
        return torch.stack([part.log_prob(a) for part, a in zip(self.parts, actions.unbind(-1), strict=True)]).sum(0)

    def entropy(self) -> Tensor:
        return torch.stack([part.entropy() for part in self.parts]).sum(0)

    def pull_back(self, actions: Tensor, weights: Tensor, entropy_weight: float) -> tuple[Tensor, ...]:
        """∂/∂logits of Σ_b weights_b log π(a_b | s_b) + entropy_weight Σ_b H_b, [B, Σ n_i]."""
        parts = zip(self.parts, actions.unbind(-1), strict=True)
        return (torch.cat([part.pull_back(a, weights, entropy_weight)[0] for part, a in parts], -1),)

    def divergence_from(self, old: MultiCategorical) -> Tensor:
        """KL(old ‖ self), [B]."""
        return torch.stack([new.divergence_from(past) for new, past in zip(self.parts, old.parts, strict=True)]).sum(0)

    def mode(self) -> Tensor:
        return torch.stack([part.mode() for part in self.parts], -1)

    def sample(self, noise: Tensor) -> Tensor:
        sizes = [part.log_probabilities.shape[-1] for part in self.parts]
        noises = noise.split(sizes, dim=-1)
        return torch.stack([part.sample(eps) for part, eps in zip(self.parts, noises, strict=True)], -1)


class Bernoulli(NamedTuple):
    """A independent coins. Actions are 0 or 1, int64 [B, A]; noise is logistic [B, A]."""

    logits: Tensor  # [B, A]

    def log_prob(self, actions: Tensor) -> Tensor:
        sign = 2.0 * actions.to(self.logits.dtype) - 1.0
        return functional.logsigmoid(sign * self.logits).sum(-1)

    def entropy(self) -> Tensor:
        # H = −log σ(−l) − l·σ(l), which stays finite for large |l|
        return -(functional.logsigmoid(-self.logits) + self.logits * self.logits.sigmoid()).sum(-1)

    def pull_back(self, actions: Tensor, weights: Tensor, entropy_weight: float) -> tuple[Tensor, ...]:
        """∂/∂logits of Σ_b weights_b log π(a_b | s_b) + entropy_weight Σ_b H_b, [B, A]."""
        p = self.logits.sigmoid()
        gradient = weights.unsqueeze(-1) * (actions - p)
        return (gradient - entropy_weight * self.logits * p * (1.0 - p) if entropy_weight else gradient,)

    def divergence_from(self, old: Bernoulli) -> Tensor:
        """KL(old ‖ self), [B]."""
        # p (l_old − l) + log σ(−l_old) − log σ(−l), with log σ(−l) = −softplus(l)
        change = old.logits.sigmoid() * (old.logits - self.logits)
        return (change + functional.softplus(self.logits) - functional.softplus(old.logits)).sum(-1)

    def mode(self) -> Tensor:
        return (self.logits > 0).long()

    def sample(self, noise: Tensor) -> Tensor:
        return (self.logits + noise > 0).long()


class DiagonalGaussian(NamedTuple):
    """N(mean, diag(exp(log_std))²). Actions are [B, A], not clipped; noise is standard normal [B, A]."""

    mean: Tensor  # [B, A]
    log_std: Tensor  # [A], or [B, A]

    def log_prob(self, actions: Tensor) -> Tensor:
        z = (actions - self.mean) * (-self.log_std).exp()
        return -0.5 * z.square().sum(-1) - self.log_std.sum(-1) - self.mean.shape[-1] * LOG_SQRT_2PI

    def entropy(self) -> Tensor:
        per_state = self.log_std.sum(-1) + self.mean.shape[-1] * (0.5 + LOG_SQRT_2PI)
        return per_state.expand(self.mean.shape[:-1])

    def pull_back(self, actions: Tensor, weights: Tensor, entropy_weight: float) -> tuple[Tensor, ...]:
        """∂/∂mean [B, A] and ∂/∂log_std [A] of Σ_b weights_b log π(a_b | s_b) + entropy_weight Σ_b H_b."""
        inverse = (-self.log_std).exp()
        z = (actions - self.mean).mul_(inverse)
        weighted = z * weights.unsqueeze(-1)
        of_log_std = (weighted * z).sum(0) - weights.sum() + entropy_weight * len(actions)
        return weighted * inverse, of_log_std

    def divergence_from(self, old: DiagonalGaussian) -> Tensor:
        """KL(old ‖ self), [B]."""
        z = (self.mean - old.mean) * (-self.log_std).exp()
        log_ratio = old.log_std - self.log_std
        return (0.5 * (torch.expm1(2.0 * log_ratio) + z.square()) - log_ratio).sum(-1)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Tensor) -> Tensor:
        return self.mean + self.log_std.exp() * noise


class SquashedGaussian(NamedTuple):
    """tanh of a diagonal Gaussian. Actions are [B, A] in (−1, 1); noise is standard normal [B, A].

    The entropy has no closed form: `entropy` is that of the Gaussian plus E[log(1 − tanh²)], the latter by Gauss-
    Hermite quadrature with 16 nodes, differentiable in both parameters.
    """

    mean: Tensor
    log_std: Tensor

    def log_prob(self, actions: Tensor) -> Tensor:
        pre_tanh = torch.atanh(actions.clamp(-TANH_BOUND, TANH_BOUND))
        gaussian = DiagonalGaussian(self.mean, self.log_std).log_prob(pre_tanh)
        return gaussian - log_tanh_jacobian(pre_tanh).sum(-1)

    def entropy(self) -> Tensor:
        nodes, weights = np.polynomial.hermite_e.hermegauss(16)
        z = torch.as_tensor(nodes, dtype=self.mean.dtype, device=self.mean.device)
        w = torch.as_tensor(weights / weights.sum(), dtype=self.mean.dtype, device=self.mean.device)
        points = self.mean.unsqueeze(-1) + self.log_std.exp().unsqueeze(-1) * z  # [B, A, 16]
        correction = (log_tanh_jacobian(points) * w).sum(-1).sum(-1)
        return DiagonalGaussian(self.mean, self.log_std).entropy() + correction

    def divergence_from(self, old: SquashedGaussian) -> Tensor:
        """KL(old ‖ self), [B]: that of the Gaussians, since tanh is one-to-one."""
        return DiagonalGaussian(self.mean, self.log_std).divergence_from(DiagonalGaussian(old.mean, old.log_std))

    def mode(self) -> Tensor:
        """tanh of the Gaussian's mean: the median of every component, which is what SB3 calls the mode."""
        return self.mean.tanh()

    def sample(self, noise: Tensor) -> Tensor:
        return (self.mean + self.log_std.exp() * noise).tanh()


def log_tanh_jacobian(x: Tensor) -> Tensor:
    """log(1 − tanh²(x)), written so that it does not underflow for large |x|."""
    return 2.0 * (LOG_2 - x - functional.softplus(-2.0 * x))


def noise_size(action_space: spaces.Space) -> int:
    """How many random numbers one action takes."""
    if isinstance(action_space, MemoryActions):
        return noise_size(action_space.action) + action_space.memory_size
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(action_space.nvec.sum())
    return int(np.prod(action_space.shape or ()))


def draw_noise(action_space: spaces.Space, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Noise for `sample`, [*shape, noise_size], float32 on the generator's device: Gumbel, logistic or standard normal."""
    device = generator.device
    if isinstance(action_space, MemoryActions):
        memory = torch.randn((*shape, action_space.memory_size), generator=generator, device=device)
        return torch.cat([draw_noise(action_space.action, shape, generator), memory], -1)
    size = (*shape, noise_size(action_space))
    if isinstance(action_space, spaces.Box):
        return torch.randn(size, generator=generator, device=device)
    if isinstance(action_space, spaces.MultiBinary):
        # rand is in [0, 1): keep both ends away from ±inf
        uniform = torch.rand(size, generator=generator, device=device).clamp(1e-7, 1.0 - 1e-7)
        return uniform.logit()
    # −log of an exponential variable is Gumbel; the clamp keeps log(0) out
    return -torch.empty(size, device=device).exponential_(generator=generator).clamp_min(1e-30).log()
