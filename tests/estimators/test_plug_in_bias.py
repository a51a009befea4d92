"""The bias of plugging an estimate of J into ∇f; oracle: moments of the returns and gradients of all trajectories."""

import pytest
import torch

from rlopt.estimators import discounted_return, policy_gradient, reward_to_go
from tests.oracles import F64, assert_exact, assert_misses, normal, per_trajectory, standard_mdp

MDP = standard_mdp()
THETA = normal(MDP.num_parameters, seed=1)
SIZES = [8, 16, 32, 64, 128]
NUM_DRAWS = 400_000


def episode_table():
    """p(τ) [N], R⃗(τ) [N, K] and g_k(τ) [N, K, d] of all trajectories."""
    rollout, probabilities = MDP.enumerate(THETA)

    def gradients(episode):
        psis = [reward_to_go(episode.rewards[..., k], episode.mask, MDP.gamma) for k in range(2)]
        return torch.stack([policy_gradient(MDP.softmax_log_prob, THETA, episode, psi) for psi in psis])

    return probabilities, discounted_return(rollout.rewards, MDP.gamma), per_trajectory(gradients, rollout)


def exact_bias(size):
    """E[∇f(Ĵ)] − ∇f(J), [K], and E[Σ_k (∂_k f(Ĵ) − ∂_k f(J)) (ḡ_k − ∇J_k)], [d], with f = −Σ_k exp(−J_k).

    The mean of N draws has E[exp(−Ĵ)] = E[exp(−R/N)]^N, and one factor changes where a gradient is averaged as well.
    """
    probabilities, returns, gradients = episode_table()
    objectives, mean_gradients = probabilities @ returns, torch.einsum("n,nkd->kd", probabilities, gradients)
    exponentials = torch.exp(-returns / size)
    generating = probabilities @ exponentials
    with_gradient = torch.einsum("n,nk,nkd->kd", probabilities, exponentials, gradients - mean_gradients)
    together = (generating[:, None] ** (size - 1) * with_gradient).sum(0)
    return generating**size - torch.exp(-objectives), together


def predicted_bias(size):
    """½ Σ ∂³f Cov(R⃗) / N, [K], and Σ ∂²_kl f Cov(R_l, g_k) / N, [d]: for this f, k = l = m only."""
    probabilities, returns, gradients = episode_table()
    objectives = probabilities @ returns
    deviations = returns - objectives
    variances = probabilities @ deviations.square()
    covariances = torch.einsum("n,nk,nkd->kd", probabilities, deviations, gradients)
    slopes = torch.exp(-objectives)
    return slopes * variances / (2 * size), -(slopes[:, None] * covariances).sum(0) / size


def test_the_table_of_trajectories_has_the_exact_means():
    probabilities, returns, gradients = episode_table()
    assert_exact(probabilities @ returns, MDP.value(MDP.softmax_policy(THETA)))
    assert_exact(torch.einsum("n,nkd->kd", probabilities, gradients), MDP.gradient(THETA))


def test_the_bias_falls_with_the_inverse_of_the_batch_size():
    biases = torch.stack([exact_bias(size)[0].norm() for size in SIZES]).log()
    sizes = torch.tensor(SIZES, dtype=F64).log()
    slope = ((sizes - sizes.mean()) * biases).sum() / (sizes - sizes.mean()).square().sum()
    assert abs(float(slope) + 1) < 0.1


@pytest.mark.parametrize("size", [32, 64, 128])
def test_the_bias_is_half_the_third_derivative_times_the_variance(size):
    for exact, predicted in zip(exact_bias(size), predicted_bias(size)):
        assert float((exact - predicted).norm() / predicted.norm()) < 0.1


def test_no_bias_would_be_a_wrong_prediction():
    """Negative control at N = 8."""
    for exact in exact_bias(8):
        assert_misses(exact, torch.zeros_like(exact))


@pytest.mark.parametrize("size", [8, 32])
def test_drawn_batches_have_the_bias_of_the_formula(size):
    """400,000 batches: gradients from the batch of Ĵ, minus gradients from another, and Ĵ itself, within 4 errors."""
    probabilities, returns, gradients = episode_table()
    generator = torch.Generator().manual_seed(size)
    objectives, mean_gradients = probabilities @ returns, torch.einsum("n,nkd->kd", probabilities, gradients)
    slopes = torch.exp(-objectives)
    centred = torch.cat([returns - objectives, (gradients - mean_gradients).flatten(1)], 1)
    draws = torch.multinomial(probabilities, NUM_DRAWS * size, replacement=True, generator=generator)
    means = torch.nn.functional.embedding_bag(draws.view(NUM_DRAWS, size), centred, mode="mean")
    errors, gradient_errors = means[:, :2], means[:, 2:].view(-1, 2, MDP.num_parameters)
    changes = slopes * torch.expm1(-errors)  # ∇f(Ĵ) − ∇f(J)
    # E[Ĵ] = J is known, so that the linear part only adds noise.
    samples = torch.cat([changes + slopes * errors, torch.einsum("nk,nkd->nd", changes, gradient_errors)], 1)
    exact = torch.cat(exact_bias(size))
    deviations = (samples.mean(0) - exact) / (samples.std(0) / NUM_DRAWS**0.5)
    assert float(deviations.abs().max()) < 4
    if size >= 32:
        predicted = torch.cat(predicted_bias(size))
        for part in (slice(0, 2), slice(2, None)):
            assert float((samples.mean(0) - predicted)[part].norm() / predicted[part].norm()) < 0.1
    if size == 8:  # negative control: that there is no bias
        assert_misses(samples.mean(0), torch.zeros_like(exact))
        assert float((samples.mean(0) / (samples.std(0) / NUM_DRAWS**0.5)).abs().max()) > 8
