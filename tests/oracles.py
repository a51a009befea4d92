"""Exact expectations of estimators, and the estimators written out by hand from closed forms.

Estimators return a mean over columns and are linear in ψ: with the columns of an enumeration, of probabilities p_n,
multiplying ψ by p_n·N makes that mean an expectation. What is not linear, or sees several episodes at once, is
evaluated on every batch of one, or of two, episodes.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from rlopt.envs.tabular import TabularMDP

F64 = torch.float64
WEIGHTS = torch.tensor([1.5, -1.0], dtype=F64)  # what makes one reward of two


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def standard_mdp(**kwargs):
    """S = 3, A = 2, H = 4, γ = 0.9, K = 2: 1296 trajectories."""
    return TabularMDP.random(**{"num_objectives": 2, "seed": 5, **kwargs})


def small_mdp(**kwargs):
    """S = 2, A = 2, H = 3, K = 2: 64 trajectories, 4096 pairs of them."""
    return standard_mdp(**{"num_states": 2, "horizon": 3, **kwargs})


def scalarised(mdp, weights=WEIGHTS):
    """The MDP that pays ⟨w, r⟩."""
    return replace(mdp, rewards=mdp.rewards @ weights)


def two_thetas(mdp, distance=1.0):
    """θ and θ_b, and their distance."""
    theta, difference = normal(mdp.num_parameters, seed=1), normal(mdp.num_parameters, seed=2)
    return theta, theta + distance * difference / difference.norm()


# ------------------------------------------------------------------ expectations


class Expected:
    """ψ times p_n·N, so that an estimator's mean over the columns is the expectation."""

    def __init__(self, psi, probabilities):
        self.psi, self.probabilities = psi, probabilities

    def __call__(self, log_ratio):
        return self.psi(log_ratio) * self.probabilities * len(self.probabilities)


def columns_at(rollout, indices):
    """The columns [n] as a batch; unlike `Rollout.columns` it takes indices, also under `vmap`."""
    fields = ("states", "actions", "log_probs", "rewards", "terminated", "truncated", "mask")
    return replace(rollout, **{name: getattr(rollout, name)[:, indices] for name in fields})


def per_trajectory(estimator, rollout):
    """`estimator` of every single column as a batch of its own, [N, ...]."""
    columns = torch.arange(rollout.mask.shape[1])
    return torch.func.vmap(lambda n: estimator(columns_at(rollout, n[None])))(columns)


def over_pairs(estimator, rollout, probabilities):
    """The expectation of `estimator` over all batches of two independent episodes."""
    size = len(probabilities)
    pairs = torch.cartesian_prod(torch.arange(size), torch.arange(size))
    values = torch.func.vmap(lambda pair: estimator(columns_at(rollout, pair)))(pairs)
    return probabilities[pairs].prod(1) @ values


def miss(value, target):
    """How far a value is from what it should be: the largest difference."""
    return float((value - target).abs().max())


def assert_exact(value, target, tolerance=1e-10):
    assert value.shape == target.shape
    assert miss(value, target) < tolerance


def assert_misses(value, target, by=1e-3):
    """A negative control: a wrong estimator must be seen to be wrong."""
    assert value.shape == target.shape
    assert miss(value, target) > by


# ------------------------------------------------------------------ written out, one trajectory at a time


def score(mdp, theta, state, action):
    """∇ log π(a | s) = e_sa − π_s of logits θ [S·A], [d]."""
    vector = np.zeros((mdp.num_states, mdp.num_actions))
    vector[state] = -_softmax(mdp, theta)[state]
    vector[state, action] += 1.0
    return vector.ravel()


def curvature(mdp, theta, state, vector):
    """∇² log π(a | s) v = −(diag π_s − π_s π_sᵀ) v_s, [d]; the action plays no part."""
    row, v = _softmax(mdp, theta)[state], vector.numpy().reshape(mdp.num_states, mdp.num_actions)[state]
    product = np.zeros((mdp.num_states, mdp.num_actions))
    product[state] = -(row * v - row * (row @ v))
    return product.ravel()


def written_out_weights(mdp, theta, rollout, column):
    """ω_t = Π_{k≤t} π_θ(a_k | s_k) / π_b(a_k | s_k) of the steps of an episode, a list."""
    weights, weight = [], 1.0
    for t in range(_length(rollout, column)):
        state, action = int(rollout.states[t, column]), int(rollout.actions[t, column])
        weight *= _softmax(mdp, theta)[state, action] / math.exp(float(rollout.log_probs[t, column]))
        weights.append(weight)
    return weights


def written_out_gradient(mdp, theta, rollout, column, weighting="per_step", baseline=None):
    """g of one episode, [d]: Σ_h γ^h ω_h r_h G_h with G_h = Σ_{t≤h} ∇ log π_t, minus the baseline's part.

    With trajectory weights ω Σ_t (Σ_{h≥t} γ^h r_h) ∇ log π_t. The baseline is b_t, a list.
    """
    steps, scores, weights = _steps(mdp, theta, rollout, column, baseline)
    gradient = np.zeros(mdp.num_parameters)
    for h, (discount, reward, b) in enumerate(steps):
        so_far, weight = sum(scores[: h + 1]), weights[h if weighting == "per_step" else -1]
        gradient += discount * weight * (reward * so_far - b * scores[h])
    return torch.from_numpy(gradient)


def written_out_product(mdp, theta, rollout, column, vector, weighting="per_step", baseline=None, score_term=1.0):
    """B_c v of one episode with per-step weights, B v with trajectory weights, [d].

    B_c v = Σ_h γ^h ω_h r_h [G_h ⟨G_h, v⟩ + Σ_{t≤h} ∇² log π_t v] − Σ_t γ^t ω_t b_t [∇ log π_t ⟨G_t, v⟩ + ∇² log π_t v],
    B v = ω (∇Φ ⟨G_{H−1}, v⟩ + ∇²Φ v) with Φ = Σ_t (Σ_{h≥t} γ^h r_h − γ^t b_t) log π_t. `score_term` multiplies the
    first summands; any other number than 1 is wrong.
    """
    steps, scores, weights = _steps(mdp, theta, rollout, column, baseline)
    states = [int(state) for state in rollout.states[: len(steps), column]]
    curvatures = [curvature(mdp, theta, state, vector) for state in states]
    product, v = np.zeros(mdp.num_parameters), vector.numpy()
    for h, (discount, reward, b) in enumerate(steps):
        so_far, curved = sum(scores[: h + 1]), sum(curvatures[: h + 1])
        weight, along = (weights[h], so_far @ v) if weighting == "per_step" else (weights[-1], sum(scores) @ v)
        product += discount * weight * reward * (score_term * so_far * along + curved)
        product -= discount * weight * b * (score_term * scores[h] * along + curvatures[h])
    return torch.from_numpy(product)


def for_all(written_out, mdp, theta, rollout, *arguments, **options):
    """A written-out quantity of every episode, [N, d]."""
    return torch.stack([written_out(mdp, theta, rollout, n, *arguments, **options) for n in range(rollout.mask.shape[1])])


def _steps(mdp, theta, rollout, column, baseline):
    """(γ^t, r_t, b_t), ∇ log π_t and ω_t of the steps of an episode."""
    length = _length(rollout, column)
    state_actions = [(int(rollout.states[t, column]), int(rollout.actions[t, column])) for t in range(length)]
    b = [0.0] * length if baseline is None else [float(baseline[t, column]) for t in range(length)]
    steps = [(mdp.gamma**t, float(rollout.rewards[t, column]), b[t]) for t in range(length)]
    scores = [score(mdp, theta, state, action) for state, action in state_actions]
    return steps, scores, written_out_weights(mdp, theta, rollout, column)


def _length(rollout, column):
    return int(rollout.mask[:, column].sum())


def _softmax(mdp, theta):
    logits = theta.numpy().reshape(mdp.num_states, mdp.num_actions)
    exponentials = np.exp(logits)
    return exponentials / exponentials.sum(1, keepdims=True)
