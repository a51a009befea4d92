"""Policy gradients and Hessian-vector products from whole episodes.

Everything here is one formula: the importance-weighted gradient

    ĝ(θ) = 1/N Σ_n Σ_t ψ_t(θ) ∇ log π_θ(a_t | s_t),      E_b[ĝ(θ)] = ∇J(θ) for every θ.

ψ is a function of the log-ratios log π_θ − log π_b. At the parameters that sampled the ratios are 1 and ĝ is the
ordinary policy gradient; at others it is the off-policy one; and its forward-mode derivative is the Hessian-vector
product, because ĝ is unbiased at every θ. Nobody writes score terms by hand, so none can have the wrong sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rlopt.estimators.returns import discount_powers, importance_weights, suffix_sums
from rlopt.rollout import Observations, Rollout, map_observations

Policy = Callable[[Tensor, Observations, Tensor], Tensor]
"""(θ [d], observations [B, *obs], actions [B, *act]) -> log π_θ(a | s) [B], differentiable in θ."""

Psi = Callable[[Tensor], Tensor]
"""Log-ratios [T, N] -> what the score of every action is multiplied by, [T, N]. Constant inside the gradient."""

Weighting = Literal["doubly_robust", "per_step", "trajectory"]


def log_ratio(policy: Policy, theta: Tensor, rollout: Rollout) -> Tensor:
    """log π_θ(a_t | s_t) − log π_b(a_t | s_t), [T, N]; 0 on padding."""
    observations = map_observations(lambda x: x.flatten(0, 1), rollout.observations)
    log_probs = policy(theta, observations, rollout.actions.flatten(0, 1)).view(rollout.mask.shape)
    return torch.where(rollout.mask, log_probs - rollout.log_probs, torch.zeros_like(log_probs))


@dataclass(frozen=True)
class RewardToGo:
    """GPOMDP's ψ_t: the discounted rewards that a_t can still influence, minus a baseline.

    With "per_step" weights ψ_t = Σ_{h≥t} γ^h ω_h r_h − γ^t ω_t b_t: the weight belongs to the *reward*, and the
    baseline carries one too, else the off-policy gradient and the Hessian-vector product are biased. With
    "trajectory" weights ψ_t = ω_{T−1} (Σ_{h≥t} γ^h r_h − γ^t b_t).

    "doubly_robust" weights subtract Σ_{j>t} γ^j (ω_j − ω_{j−1}) b_j as well, whose every term has mean 0 given the past,
    so that ψ_t = Σ_{h≥t} γ^h ω_h (r_h + γ b_{h+1} − b_h). Where all weights are 1 this is the same number; its derivative,
    and so the Hessian-vector product, is far less noisy. Source: Huang and Jiang, arXiv:1910.09066; baselines for
    derivatives of any order: Mao et al., ICML 2019; Farquhar et al., arXiv:1909.10549.
    """

    rewards: Tensor  # γ^t r_t, [T, N], 0 on padding
    baseline: Tensor  # γ^t b_t, [T, N], 0 on padding
    weighting: Weighting = "per_step"

    def __call__(self, log_ratio: Tensor) -> Tensor:
        if self.weighting == "trajectory":
            weights = importance_weights(log_ratio, per_step=False)
            return weights * (suffix_sums(self.rewards) - self.baseline)
        weights = importance_weights(log_ratio)
        if self.weighting == "doubly_robust":
            following = torch.cat([self.baseline[1:], torch.zeros_like(self.baseline[:1])])
            return suffix_sums(weights * (self.rewards + following - self.baseline))
        return suffix_sums(weights * self.rewards) - weights * self.baseline

    def columns(self, index: slice) -> RewardToGo:
        """That of these episodes."""
        return replace(self, rewards=self.rewards[:, index], baseline=self.baseline[:, index])

    def weighted(self, weighting: Weighting) -> RewardToGo:
        """The same with importance weights of this kind."""
        return replace(self, weighting=weighting)


@dataclass(frozen=True)
class TotalReturn:
    """Plain REINFORCE's ψ_t: the return of the whole episode, minus a baseline, for every action of it."""

    rewards: Tensor  # γ^t r_t, [T, N], 0 on padding
    baseline: Tensor  # b_t, [T, N], 0 on padding

    def __call__(self, log_ratio: Tensor) -> Tensor:
        return importance_weights(log_ratio, per_step=False) * (self.rewards.sum(0) - self.baseline)

    def columns(self, index: slice) -> TotalReturn:
        """That of these episodes."""
        return TotalReturn(self.rewards[:, index], self.baseline[:, index])


def reward_to_go(
    rewards: Tensor, mask: Tensor, gamma: float, baseline: Tensor | None = None, weighting: Weighting = "per_step"
) -> RewardToGo:
    """ψ of GPOMDP.

    Args:
        rewards: r_t, [T, N], one episode a column.
        mask: [T, N] bool.
        gamma: γ in [0, 1].
        baseline: b_t ≈ Σ_{h≥t} γ^{h−t} r_h, [T, N]. It may depend on s_t and the episode's past, on earlier data and
            on other episodes, and on nothing else of its own episode, else the gradient is biased.
        weighting: where importance weights go; "trajectory" makes the Hessian-vector product the paper's form,
            "per_step" the causal one.
    """
    return RewardToGo(*_discounted(rewards, mask, gamma, baseline), weighting)


def total_return(rewards: Tensor, mask: Tensor, gamma: float, baseline: Tensor | None = None) -> TotalReturn:
    """ψ of plain REINFORCE; arguments as in `reward_to_go`, but b_t ≈ Σ_h γ^h r_h stands for the whole return."""
    discounted, _ = _discounted(rewards, mask, gamma, baseline)
    return TotalReturn(discounted, torch.zeros_like(rewards) if baseline is None else torch.where(mask, baseline, 0.0))


def _discounted(rewards: Tensor, mask: Tensor, gamma: float, baseline: Tensor | None) -> tuple[Tensor, Tensor]:
    if rewards.shape != mask.shape:
        raise ValueError(f"rewards: expected the mask's shape {tuple(mask.shape)}, got {tuple(rewards.shape)}")
    if baseline is None:
        baseline = torch.zeros_like(rewards)
    if baseline.shape != mask.shape:
        raise ValueError(f"baseline: expected the mask's shape {tuple(mask.shape)}, got {tuple(baseline.shape)}")
    powers = discount_powers(gamma, rewards)
    return torch.where(mask, powers * rewards, 0.0), torch.where(mask, powers * baseline, 0.0)


def policy_gradient(policy: Policy, theta: Tensor, rollout: Rollout, psi: Psi) -> Tensor:
    """ĝ(θ), [d], ascent: the mean over episodes of Σ_t ψ_t ∇ log π_θ(a_t | s_t).

    Args:
        policy: (θ, observations, actions) -> log π_θ.
        theta: θ [d], the parameters that sampled or others.
        rollout: whole episodes, one a column.
        psi: such as `reward_to_go` gives; evaluated at θ and constant inside the gradient.

    Source: GPOMDP, Baxter and Bartlett 2001; arXiv:2302.01734, eq. 4.
    """
    pull_back: Callable[[Tensor], tuple[Tensor]]
    ratios, pull_back = torch.func.vjp(  # type: ignore[misc]
        lambda x: log_ratio(policy, x, rollout), theta
    )
    return pull_back(psi(ratios) / rollout.mask.shape[1])[0]


def hessian_vector_product(policy: Policy, theta: Tensor, rollout: Rollout, psi: Psi, vector: Tensor) -> Tensor:
    """B v, [d], with E_b[B v] = ∇²J(θ) v: the derivative of `policy_gradient` at θ along v, forward over reverse.

    Per-trajectory weights in ψ give B v = ∇Φ ⟨Σ_t ∇ log π, v⟩ + ∇²Φ v, the paper's form; per-step weights give the
    causal one, Σ_h γ^h r_h [G_h ⟨G_h, v⟩ + Σ_{t≤h} ∇² log π v] with G_h = Σ_{t≤h} ∇ log π, symmetric without a baseline.
    Curvature at the kinks of a ReLU network is not seen; use smooth activations.

    Args:
        policy, theta, rollout, psi: as for `policy_gradient`.
        vector: v [d].

    Source: Fatkhullin et al., arXiv:2302.01734, section 4; Shen et al., 2019.
    """
    return torch.func.jvp(lambda x: policy_gradient(policy, x, rollout, psi), (theta,), (vector,))[1]
