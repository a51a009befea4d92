"""The error of every direction along a prescribed path: exact second moments against simulations and against theory.

All trajectories of a tabular MDP are enumerated, so the covariance of an estimator is a sum; see
`benchmarks/direction_error.py`, whose recursions these are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.direction_error import (
    METHODS,
    Increment,
    Sizes,
    Tables,
    exact_moments,
    fitted_slope,
    fresh_errors,
    harpg,
    momentum,
    npgigt,
    sample_harpg,
    sample_momentum,
    sample_npgigt,
    sample_storm,
    simulate,
    small_mdp,
    squared_errors,
    storm,
)
from rlopt.estimators import hessian_vector_product, policy_gradient, reward_to_go
from rlopt.rollout import Rollout

MDP = small_mdp()
TABLES = Tables(MDP)
CENTRE = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

# ---------------------------------------------------------------------- the tables


def of_every_trajectory(behaviour: Tensor, estimate: Callable[[Rollout], Tensor]) -> Tensor:
    """An estimator of the library on every trajectory alone, [n, d]."""
    rollout, _ = MDP.enumerate(behaviour)

    def one(states: Tensor, actions: Tensor, log_probs: Tensor, rewards: Tensor) -> Tensor:
        single = rollout.columns(slice(0, 1))
        columns = {"states": states, "actions": actions, "log_probs": log_probs, "rewards": rewards}
        return estimate(Rollout(**{**vars(single), **{name: x[:, None] for name, x in columns.items()}}))

    return torch.func.vmap(one, in_dims=1)(rollout.states, rollout.actions, rollout.log_probs, rollout.rewards)


def test_the_tables_are_the_librarys_estimators_on_every_trajectory() -> None:
    theta, behaviour, vector = CENTRE, CENTRE + 0.3, CENTRE.flip(0)
    behaviour[::2] -= 0.5

    def psi(rollout: Rollout) -> Any:
        return reward_to_go(rollout.rewards, rollout.mask, MDP.gamma)

    log_prob = MDP.softmax_log_prob
    gradients = of_every_trajectory(theta, lambda r: policy_gradient(log_prob, theta, r, psi(r)))
    torch.testing.assert_close(TABLES.gradients(theta), gradients, rtol=0, atol=1e-13)
    weighted = of_every_trajectory(behaviour, lambda r: policy_gradient(log_prob, theta, r, psi(r)))
    torch.testing.assert_close(TABLES.weighted_gradients(theta, behaviour), weighted, rtol=0, atol=1e-13)
    assert float((weighted - gradients).abs().max()) > 1e-3
    products = of_every_trajectory(theta, lambda r: hessian_vector_product(log_prob, theta, r, psi(r), vector))
    torch.testing.assert_close(TABLES.hessian_products(theta, vector), products, rtol=0, atol=1e-13)


def test_the_tables_have_the_exact_probabilities_means_and_covariances() -> None:
    theta = CENTRE
    probabilities = MDP.enumerate(theta)[1]
    torch.testing.assert_close(TABLES.probabilities(theta), probabilities, rtol=0, atol=1e-15)
    torch.testing.assert_close(TABLES.gradient(theta), MDP.gradient(theta), rtol=0, atol=1e-13)
    centred = TABLES.gradients(theta) - MDP.gradient(theta)
    expected = torch.einsum("n,nd,ne->de", probabilities, centred, centred)
    torch.testing.assert_close(TABLES.gradient_covariance(theta), expected, rtol=0, atol=1e-13)


# ---------------------------------------------------------------------- recursions against simulations

SIZES = Sizes(gradient=2, hessian=2)
NUM_REPLICATES = 100_000
MAX_Z = 4.0
FOUND_OUT = 10.0  # standard errors by which a wrong recursion must miss
RECURSIONS: dict[str, tuple[Callable[..., Increment], Callable[..., Any], float]] = {
    "harpg": (partial(harpg, nodes=6), sample_harpg, 2 / 3),
    "npgigt": (npgigt, sample_npgigt, 4 / 5),
    "storm": (storm, sample_storm, 2 / 3),
    "sarah": (storm, sample_storm, torch.inf),  # η = 0 after the first iteration
    "momentum": (momentum, sample_momentum, 2 / 3),
}


@cache
def long_steps() -> Tensor:
    """θ_0 … θ_5 with steps of length 0.6, so that corrections are as noisy as gradients."""
    steps = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return CENTRE + (0.6 * steps / steps.norm(dim=1, keepdim=True)).cumsum(0)


def powers(exponent: float) -> Tensor:
    """η_t = (2/(t + 2))^exponent, and η_0 = 1."""
    values = (2.0 / (torch.arange(len(long_steps())) + 2.0)) ** exponent
    values[0] = 1.0
    return values.double()


@cache
def replicates(name: str) -> Tensor:
    """e_t of 1e5 replicates at every time, [T, R, d]."""
    _, sample, exponent = RECURSIONS[name]
    path = long_steps()
    return simulate(sample, TABLES, path, powers(exponent), range(len(path)), NUM_REPLICATES, sizes=SIZES)


def misses(errors: Tensor, means: Tensor, covariances: Tensor) -> tuple[Tensor, Tensor]:
    """By how many standard errors simulated means [T, d] and second moments [T, d, d] miss those given."""
    root = errors.shape[1] ** 0.5
    outer = torch.einsum("trd,tre->trde", errors, errors)
    second = covariances + torch.einsum("td,te->tde", means, means)
    return (errors.mean(1) - means) / errors.std(1) * root, (outer.mean(1) - second) / outer.std(1) * root


@pytest.mark.parametrize("name", RECURSIONS)
def test_second_moments_follow_the_recursion(name: str) -> None:
    increment, _, exponent = RECURSIONS[name]
    exact = exact_moments(increment, TABLES, long_steps(), powers(exponent), SIZES)
    of_means, of_seconds = misses(replicates(name), *exact)
    assert float(of_means.abs().max()) < MAX_Z
    assert float(of_seconds.abs().max()) < MAX_Z
    biased = name in ("npgigt", "momentum")
    assert bool((exact[0].abs().amax(1)[1:] > 1e-4).all()) == biased


def without_forgetting(increment: Increment, eta: Tensor) -> Tensor:
    """Σ_t = Σ_{t−1} + noise_t: the factor (1 − η)² of the past is dropped."""
    return increment.noise.cumsum(0)


def with_the_whole_correction(increment: Increment, eta: Tensor) -> Tensor:
    """HARPG with (1 − η)² dropped in front of Cov(ζ)."""
    path = long_steps()
    before = torch.cat([path[:1], path[:-1]])
    alone = harpg(TABLES, path, before, torch.zeros(len(path)).double(), SIZES, nodes=6).noise  # η = 0: Cov(ζ) and no more
    total, covariances = torch.zeros(6, 6).double(), []
    for t, share in enumerate(eta):
        total = (1 - share) ** 2 * total + increment.noise[t] + (1 - (1 - share) ** 2) * alone[t]
        covariances.append(total)
    return torch.stack(covariances)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("harpg", without_forgetting),
        ("harpg", with_the_whole_correction),
        ("npgigt", without_forgetting),
        ("storm", without_forgetting),
        ("momentum", without_forgetting),
    ],
)
def test_a_wrong_recursion_is_found_out(name: str, wrong: Callable[[Increment, Tensor], Tensor]) -> None:
    increment, _, exponent = RECURSIONS[name]
    path, eta = long_steps(), powers(exponent)
    means, _ = exact_moments(increment, TABLES, path, eta, SIZES)
    right = increment(TABLES, path, torch.cat([path[:1], path[:-1]]), eta, SIZES)
    _, of_seconds = misses(replicates(name), means, wrong(right, eta))
    assert float(of_seconds.abs().max()) > FOUND_OUT


def test_one_point_an_iteration_adds_the_variance_of_the_point() -> None:
    """Which more trajectories there do not remove; here by the exact Hessian at many points."""
    previous, theta = long_steps()[:2]
    points = torch.lerp(previous, theta, ((torch.arange(400) + 0.5) / 400).double()[:, None])
    products = torch.stack([torch.func.jvp(MDP.gradient, (point,), (theta - previous,))[1] for point in points[::4]])
    expected = products.T.cov(correction=0)
    no_noise = Sizes(gradient=1, hessian=10**15)
    found = harpg(TABLES, theta, previous, torch.tensor(0.0).double(), no_noise, nodes=6).noise
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    torch.testing.assert_close(products.mean(0), MDP.gradient(theta) - MDP.gradient(previous), rtol=0, atol=1e-4)


# ---------------------------------------------------------------------- rates

LENGTH = 10_001
SHORTER = Tables(small_mdp(horizon=3))  # 216 trajectories: the sums below are over 10⁴ points of a path


@cache
def long_path(name: str) -> Tensor:
    """A circle of radius 0.25 with the method's chords."""
    return METHODS[name].path(SHORTER.mdp, LENGTH, 0.1)


@cache
def fresh(step_power: float) -> Tensor:
    """tr Cov(g(θ_t)) along the path with these chords."""
    name = next(name for name, method in METHODS.items() if method.step_power == step_power)
    return fresh_errors(SHORTER, long_path(name))


def slope(name: str, increment: Callable[..., Increment]) -> float:
    """Of E‖e_t‖² over that of a fresh gradient, for t in [100, 10000]."""
    moments = exact_moments(increment, SHORTER, long_path(name), METHODS[name].momenta(LENGTH))
    return fitted_slope(squared_errors(*moments) / fresh(METHODS[name].step_power))


@pytest.mark.parametrize("name", ["harpg", "npgigt", "storm", "momentum"])
def test_the_error_falls_at_the_rate_of_theory(name: str) -> None:
    assert abs(slope(name, METHODS[name].increment) - METHODS[name].slope) < 0.05


@pytest.mark.parametrize("name", ["harpg", "storm"])
def test_without_its_correction_the_error_does_not_fall_so_fast(name: str) -> None:
    assert slope(name, momentum) > METHODS[name].slope + 0.1


def test_without_the_lookahead_the_error_does_not_fall_so_fast_where_steps_are_long() -> None:
    path, eta = METHODS["npgigt"].path(SHORTER.mdp, 3001, 0.4), METHODS["npgigt"].momenta(3001)
    right, wrong = (
        fitted_slope(squared_errors(*exact_moments(increment, SHORTER, path, eta)) / fresh_errors(SHORTER, path))
        for increment in (npgigt, momentum)
    )
    assert abs(right - METHODS["npgigt"].slope) < 0.05
    assert wrong > METHODS["npgigt"].slope + 0.1


@pytest.mark.parametrize("name", METHODS)
def test_simulated_errors_are_the_exact_ones(name: str) -> None:
    method, times = METHODS[name], [1, 10, 100, 300]
    path, eta = long_path(name)[:301], method.momenta(301)
    squares = simulate(method.sample, SHORTER, path, eta, times, num=2000).square().sum(-1)
    exact = squared_errors(*exact_moments(method.increment, SHORTER, path, eta))[times]
    z = (squares.mean(1) - exact) / squares.std(1) * 2000**0.5
    assert float(z.abs().max()) < MAX_Z


@pytest.mark.parametrize("name", ["harpg", "npgigt", "storm", "momentum"])
def test_at_rest_a_constant_momentum_leaves_a_floor(name: str) -> None:
    """η/(2 − η) · Cov(g)/N."""
    path, eta, size = CENTRE.expand(400, -1), torch.full((400,), 0.1, dtype=torch.float64), 3
    eta[0] = 1.0
    means, covariances = exact_moments(METHODS[name].increment, SHORTER, path, eta, Sizes(size, 1))
    floor = 0.1 / 1.9 * SHORTER.gradient_covariance(CENTRE) / size
    torch.testing.assert_close(covariances[-1], floor, rtol=0, atol=1e-14)
    assert float(means.abs().max()) < 1e-13
    assert float((covariances[20] - floor).abs().max()) > 1e-3 * float(floor.abs().max())
