"""Directions and steps against closed forms: what momentum's corrections cancel, and how long steps are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from rlopt.envs.tabular import TabularMDP
from rlopt.schedules import Power
from rlopt.updates import (
    bounded_correction,
    corrected_momentum,
    lookahead,
    normalized_step,
    scaled_step,
    truncated_step,
)

MISS = 1e-3  # what a wrong recursion must be off by, at least


def vectors(num: int, size: int = 5, seed: int = 0) -> Tensor:
    """Random vectors [num, size]."""
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def momenta(exponent: float, num: int) -> list[float]:
    """1, and (2/(t + 2))^exponent from t = 1 on."""
    return [1.0, *(Power(1.0, exponent)(t) for t in range(1, num))]


# ---------------------------------------------------------------------- the recursion


def test_corrected_momentum_is_its_formula_and_storms() -> None:
    direction, gradient, old = vectors(3)
    expected = 0.7 * (direction + gradient - old) + 0.3 * gradient
    torch.testing.assert_close(corrected_momentum(direction, gradient, gradient - old, 0.3), expected, rtol=0, atol=1e-15)
    storm = gradient + 0.7 * (direction - old)
    torch.testing.assert_close(corrected_momentum(direction, gradient, gradient - old, 0.3), storm, rtol=0, atol=1e-15)
    plain = 0.7 * direction + 0.3 * gradient
    torch.testing.assert_close(corrected_momentum(direction, gradient, 0.0, 0.3), plain, rtol=0, atol=1e-15)
    assert float((plain - storm).norm()) > MISS


def test_momentum_of_1_is_the_gradient_to_the_bit_and_of_0_the_recursion_of_sarah() -> None:
    direction, gradient, correction = vectors(3)
    fresh = corrected_momentum(direction, gradient, correction, 1.0)
    assert torch.equal(fresh, gradient)
    assert fresh.data_ptr() != gradient.data_ptr()
    assert torch.equal(corrected_momentum(torch.full_like(direction, torch.inf), gradient, 0.0, 1.0), gradient)
    assert torch.equal(corrected_momentum(direction, gradient, correction, 0.0), direction + correction)


def test_the_recursion_telescopes_where_gradients_are_exact() -> None:
    """With g_t and c_t exact the direction is the gradient, whatever η."""
    gradients = vectors(20)
    direction = gradients[0]
    for t, eta in enumerate(momenta(2 / 3, 20)[1:], 1):
        direction = corrected_momentum(direction, gradients[t], gradients[t] - gradients[t - 1], eta)
        torch.testing.assert_close(direction, gradients[t], rtol=0, atol=1e-14)


def test_the_lookahead_point_is_ahead_in_proportion_to_the_past_that_is_kept() -> None:
    theta, previous = vectors(2)
    assert torch.equal(lookahead(theta, previous, 1.0), theta)
    assert torch.equal(lookahead(theta, theta, 0.1), theta)
    torch.testing.assert_close(lookahead(theta, previous, 0.2), theta + 4.0 * (theta - previous), rtol=0, atol=1e-14)


def test_a_correction_is_shortened_to_the_bound_and_never_turned() -> None:
    correction, direction = 3.0 * vectors(1)[0], vectors(2)[1]
    bounded = bounded_correction(correction, direction, 0.2)
    assert abs(float(bounded.norm() / direction.norm()) - 0.2) < 1e-15
    torch.testing.assert_close(bounded / bounded.norm(), correction / correction.norm(), rtol=0, atol=1e-15)
    assert torch.equal(bounded_correction(correction, direction, None), correction)
    assert torch.equal(bounded_correction(1e-3 * correction, direction, 0.2), 1e-3 * correction)
    nothing = torch.zeros_like(correction)
    assert torch.equal(bounded_correction(nothing, direction, 0.2), nothing)
    assert torch.equal(bounded_correction(correction, nothing, 0.2), nothing)


def test_nothing_is_written_into_the_arguments() -> None:
    theta, direction, other = vectors(3)
    kept = [x.clone() for x in (theta, direction, other)]
    results = [
        corrected_momentum(direction, theta, other, 0.3),
        corrected_momentum(direction, theta, other, 1.0),
        lookahead(theta, other, 0.5),
        bounded_correction(direction, other, 0.1),
        scaled_step(theta, direction, 0.1),
        normalized_step(theta, direction, 0.1),
        truncated_step(theta, direction, 0.1, 0.01),
    ]
    for result in results:
        result += 1.0
    assert all(torch.equal(a, b) for a, b in zip((theta, direction, other), kept, strict=True))


# ---------------------------------------------------------------------- what the corrections cancel


Quadratic = Callable[[Tensor], Tensor]
Point = Callable[[Tensor, Tensor, int], Tensor]


def quadratic_gradient() -> Quadratic:
    """∇J of a concave quadratic in five variables."""
    root = vectors(5, seed=1)
    curvature, slope = root @ root.T + torch.eye(5), vectors(1, seed=2)[0]
    return lambda x: slope - curvature @ x


def transported(gradient: Quadratic, eta: list[float], noise: Tensor, point: Point) -> Tensor:
    """d_t − ∇J(θ_t) [T, 5] of N-PG-IGT with additive noise, gradients taken at `point`(θ_t, θ_{t−1}, t)."""
    theta = previous = vectors(1)[0]
    direction, errors = torch.zeros_like(theta), []
    for t in range(len(eta)):
        fresh = gradient(point(theta, previous, t)) + noise[t]
        direction = corrected_momentum(direction, fresh, 0.0, eta[t])
        errors.append(direction - gradient(theta))
        previous, theta = theta, normalized_step(theta, direction, 0.1 * Power(1.0, 0.5)(t))
    return torch.stack(errors)


def test_on_a_quadratic_transported_momentum_is_the_exact_gradient() -> None:
    eta, silence = momenta(4 / 5, 100), torch.zeros(100, 5)
    gradient = quadratic_gradient()
    errors = transported(gradient, eta, silence, lambda theta, previous, t: lookahead(theta, previous, eta[t]))
    assert float(errors.abs().max()) < 1e-12
    # negative controls: a look-ahead by the momentum of the iteration before, and none
    stale = transported(gradient, eta, silence, lambda theta, previous, t: lookahead(theta, previous, eta[max(t - 1, 0)]))
    assert float(stale.norm(dim=1).max()) > MISS
    plain = transported(gradient, eta, silence, lambda theta, previous, t: theta)
    assert float(plain.norm(dim=1).max()) > MISS


def test_on_a_noisy_quadratic_the_error_is_a_mean_of_the_noise_and_nothing_else() -> None:
    """So E[e_t] = 0: the weights of the noise do not depend on it, though the path does."""
    eta, noise = momenta(4 / 5, 100), vectors(100, seed=3)
    averaged = [noise[0]]
    for t in range(1, 100):
        averaged.append((1 - eta[t]) * averaged[-1] + eta[t] * noise[t])
    errors = transported(quadratic_gradient(), eta, noise, lambda theta, previous, t: lookahead(theta, previous, eta[t]))
    torch.testing.assert_close(errors, torch.stack(averaged), rtol=0, atol=1e-12)
    plain = transported(quadratic_gradient(), eta, noise, lambda theta, previous, t: theta)
    assert float((plain - torch.stack(averaged)).abs().max()) > MISS


def gradient_change(mdp: TabularMDP, previous: Tensor, theta: Tensor, nodes: Tensor, weights: Tensor) -> Tensor:
    """∇²J times the step at these points of it, weighted; with the nodes of a quadrature ∇J(θ_t) − ∇J(θ_{t−1})."""

    def product(q: Tensor) -> Tensor:
        return torch.func.jvp(mdp.gradient, (torch.lerp(previous, theta, q),), (theta - previous,))[1]

    return weights @ torch.func.vmap(product)(nodes)


def hessian_aided(mdp: TabularMDP, nodes: Tensor, weights: Tensor) -> Tensor:
    """d_t − ∇J(θ_t) [T, d] of N-HARPG with exact gradients, and exact products at these points between the iterates."""
    theta = previous = vectors(1, mdp.num_parameters)[0]
    direction, errors = torch.zeros_like(theta), []
    for eta in momenta(2 / 3, 12):
        gradient = mdp.gradient(theta)
        direction = corrected_momentum(direction, gradient, gradient_change(mdp, previous, theta, nodes, weights), eta)
        errors.append(direction - gradient)
        previous, theta = theta, normalized_step(theta, direction, 1.5)
    return torch.stack(errors)


def test_with_exact_products_along_the_step_hessian_aided_momentum_is_the_exact_gradient() -> None:
    nodes, weights = (torch.from_numpy(x) for x in np.polynomial.legendre.leggauss(20))
    mdp = TabularMDP.random(seed=1)
    assert float(hessian_aided(mdp, (nodes + 1) / 2, weights / 2).abs().max()) < 1e-12
    endpoint = hessian_aided(mdp, torch.ones(1).double(), torch.ones(1).double())
    assert float(endpoint.norm(dim=1).max()) > MISS


# ---------------------------------------------------------------------- steps


def test_steps_have_the_length_and_the_direction_that_they_promise() -> None:
    theta, direction = vectors(2)
    for alpha in (1e-3, 0.7, 20.0):
        moved = normalized_step(theta, direction, alpha) - theta
        assert abs(float(moved.norm()) / alpha - 1) < 1e-12
        torch.testing.assert_close(moved / moved.norm(), direction / direction.norm(), rtol=0, atol=1e-12)
        torch.testing.assert_close(scaled_step(theta, direction, alpha), theta + alpha * direction)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 1.0, 1e30])
def test_a_normalised_step_does_not_depend_on_the_directions_length(scale: float) -> None:
    theta, direction = vectors(2)
    torch.testing.assert_close(
        normalized_step(theta, scale * direction, 0.1), normalized_step(theta, direction, 0.1), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_direction_of_0_leaves_the_parameters(dtype: torch.dtype) -> None:
    theta = vectors(1)[0].to(dtype)
    nothing = torch.zeros_like(theta)
    for stepped in (
        scaled_step(theta, nothing, 0.1),
        normalized_step(theta, nothing, 0.1),
        truncated_step(theta, nothing, 0.1, 0.01),
    ):
        assert torch.equal(stepped, theta)
        assert stepped.dtype == dtype


def test_a_truncated_step_is_a_plain_one_up_to_the_radius_and_no_longer_beyond() -> None:
    theta, direction = vectors(2)
    length = float(direction.norm())
    inside = truncated_step(theta, direction, 0.1, 1.01 * 0.1 * length)
    torch.testing.assert_close(inside, scaled_step(theta, direction, 0.1), rtol=0, atol=0)
    for radius in (0.5 * 0.1 * length, 1e-3):
        outside = truncated_step(theta, direction, 0.1, radius)
        torch.testing.assert_close(outside, normalized_step(theta, direction, radius), rtol=0, atol=1e-14)


def optimizer_step(theta: Tensor, direction: Tensor, alpha: float, radius: float, optimizer: type) -> Tensor:
    """θ after torch clipped the norm of −d to δ/α and an optimiser with learning rate α descended."""
    parameter = torch.nn.Parameter(theta.clone())
    parameter.grad = -direction.clone()
    torch.nn.utils.clip_grad_norm_([parameter], radius / alpha)
    optimizer([parameter], lr=alpha).step()
    return parameter.detach()


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_a_truncated_step_is_a_clipped_norm_and_plain_descent(scale: float) -> None:
    """But for the 1e-6 that torch adds to the norm that it divides by."""
    alpha, radius = 0.1, 0.05
    theta, direction = vectors(2)
    direction = scale * direction
    ours = truncated_step(theta, direction, alpha, radius)
    difference = ours - optimizer_step(theta, direction, alpha, radius, torch.optim.SGD)
    allowed = 1e-6 / direction.norm() if alpha * direction.norm() > radius else 0.0
    assert float(difference.norm() / (ours - theta).norm()) <= 1.001 * allowed + 1e-14
    adam = optimizer_step(theta, direction, alpha, radius, torch.optim.Adam)
    assert float((ours - adam).norm()) > MISS
