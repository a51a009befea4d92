"""Several quadratic costs: closed forms, and a front that nothing passes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlopt import make_envs
from rlopt.envs.linear_quadratic import LinearQuadratic
from rlopt.envs.multi_objective_lqr import MultiObjectiveLQR, MultiObjectiveLQRVectorEnv

LATTICE = torch.stack([torch.linspace(0, 1, 11), 1 - torch.linspace(0, 1, 11)], 1).double()


def scalar(a: float = 0.9, b: float = 0.5, r: float = 1e-3, gamma: float = 0.8, horizon: int = 2) -> MultiObjectiveLQR:
    """One coordinate: objective 0 is −x² − r u², objective 1 is −u²; x_0 = 2."""
    return MultiObjectiveLQR(
        A=torch.tensor([[a]], dtype=torch.float64),
        B=torch.tensor([[b]], dtype=torch.float64),
        Q=torch.tensor([[[1.0]], [[0.0]]]),
        R=torch.tensor([[[r]], [[1.0]]], dtype=torch.float64),
        noise_covariance=torch.zeros(1, 1),
        initial_mean=torch.tensor([2.0]),
        initial_covariance=torch.zeros(1, 1),
        gamma=gamma,
        horizon=horizon,
    )


def test_two_steps_of_a_scalar_system_by_hand() -> None:
    """Only u_0 matters: u_1 costs and changes nothing that is paid. max_u −w (x² + γ(a x + b u)²) − (w r + v) u²."""
    a, b, r, gamma, x = 0.9, 0.5, 1e-3, 0.8, 2.0
    problem = scalar(a, b, r, gamma)
    for w, v in LATTICE.tolist():
        u = -w * gamma * a * b * x / (w * r + v + w * gamma * b**2)
        expected = [-(x**2) - gamma * (a * x + b * u) ** 2 - r * u**2, -(u**2)]
        np.testing.assert_allclose(problem.front(torch.tensor([[w, v]]))[0], expected, atol=1e-12)
    ends = problem.front(torch.eye(2))
    assert float(ends[1, 1]) == 0.0  # no action at all
    assert float(ends[1, 0]) == pytest.approx(-4 - 0.8 * 1.8**2)


def test_values_of_a_gain_are_geometric_sums() -> None:
    """x_t = (a + b K)^t x_0."""
    problem = scalar(horizon=7)
    for gain in (-1.3, 0.0, 0.4):
        powers = [0.8**t * (0.9 + 0.5 * gain) ** (2 * t) * 4.0 for t in range(7)]
        expected = [-sum(powers) * (1 + 1e-3 * gain**2), -sum(powers) * gain**2]
        np.testing.assert_allclose(problem.values(torch.tensor([[gain]], dtype=torch.float64)), expected, rtol=1e-12)


def test_the_jacobian_is_that_of_the_values() -> None:
    problem = MultiObjectiveLQR.crossed(3, horizon=3, noise=0.2)
    random = torch.Generator().manual_seed(0)
    arguments = [0.3 * torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((3, 3), (3,), (3,))]
    for slope, expected in zip(problem.jacobian(*arguments), torch.func.jacrev(problem.values, (0, 1, 2))(*arguments)):
        torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_objectives", [2, 3])
def test_objectives_and_weighted_sums_are_linear_quadratic_problems(num_objectives: int) -> None:
    problem = MultiObjectiveLQR.crossed(num_objectives, noise=0.1)
    gain = -0.4 * torch.eye(num_objectives).double()
    weights = torch.arange(1.0, num_objectives + 1).double()
    values = problem.values(gain)
    assert float(problem.weighted(weights).value(gain)) == pytest.approx(float(weights @ values), rel=1e-12)
    # On the front: the best of its weighted sum, by the Riccati recursion's own formula.
    assert float(weights @ problem.front(weights[None])[0]) == pytest.approx(
        problem.weighted(weights).optimal_value(), rel=1e-12
    )
    np.testing.assert_allclose(values, values.flip(0), rtol=1e-12)  # all coordinates alike


def dominated(points: Tensor, front: Tensor, margin: float = 0.0) -> Tensor:
    """[P, F] bool: whether a point is at least as good as one of the front in every objective, and better in one."""
    gains = points[:, None] - front[None]
    return (gains >= -1e-12).all(-1) & (gains > 1e-12 + margin).any(-1)


def random_gains(problem: MultiObjectiveLQR, num: int, spread: float) -> Tensor:
    """Gains that depend on time, near those of random weighted sums, [num, H, m, n]."""
    random = torch.Generator().manual_seed(1)
    weights = torch.rand(num, problem.num_objectives, generator=random, dtype=torch.float64)
    best = torch.stack([problem.weighted(w).optimal_gains() for w in weights])
    return best + spread * torch.randn(best.shape, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("spread", [1e-3, 0.05, 0.5])
def test_no_random_gain_dominates_a_point_of_the_front(spread: float) -> None:
    problem = MultiObjectiveLQR.crossed(horizon=6, noise=0.1)
    front = problem.front(LATTICE)
    assert not dominated(front, front).any()
    points = torch.stack([problem.values(gain) for gain in random_gains(problem, 60, spread)])
    assert not dominated(points, front).any()
    # Negative control: a front that claims a little less is passed.
    if spread == 1e-3:
        assert dominated(points, front - 0.05).any()


def test_weighted_sums_are_supported_and_the_front_is_concave() -> None:
    problem = MultiObjectiveLQR.crossed(horizon=6)
    front = problem.front(LATTICE)
    scores = LATTICE @ front.T  # every point is the best of all in its own weighted sum
    assert (scores.diagonal()[:, None] >= scores - 1e-12).all()
    slopes = (front[1:, 1] - front[:-1, 1]) / (front[1:, 0] - front[:-1, 0])
    assert (slopes < 0).all()
    assert (slopes.diff() < 0).all()


def test_stationary_policies_come_close_and_never_pass() -> None:
    problem = MultiObjectiveLQR.crossed(horizon=4, noise=0.1)
    weights = LATTICE[[2, 5]]
    best, stationary = (weights * problem.front(weights)).sum(1), (weights * problem.stationary_front(weights)).sum(1)
    assert (stationary <= best).all()
    assert (stationary >= 1.02 * best).all()
    explored = (weights * problem.stationary_front(weights, torch.full((2,), 0.3).double())).sum(1)
    assert (explored < stationary).all()
    for w in weights:  # at the best gain the weighted gradients cancel
        gain, offset = problem.weighted(w).best_stationary_policy()
        assert float(torch.tensordot(w, problem.jacobian(gain, offset)[0], 1).abs().max()) < 1e-9


def test_the_environment_pays_what_the_problem_computes() -> None:
    problem = MultiObjectiveLQR.crossed(horizon=6, noise=0.3, gamma=0.9)
    num = 4000
    env = MultiObjectiveLQRVectorEnv(problem, num)
    gains = problem.weighted(torch.tensor([0.7, 0.3])).optimal_gains().numpy()
    states, _ = env.reset(seed=0)
    returns = np.zeros((num, 2))
    for t, gain in enumerate(gains):
        states, rewards, terminated, truncated, _ = env.step((states @ gain.T).astype(np.float32))
        assert rewards.shape == (num, 2)
        returns += 0.9**t * rewards
    assert truncated.all()
    assert not terminated.any()
    error = returns.std(0) / num**0.5
    expected = env.front(torch.tensor([[0.7, 0.3]]))[0].numpy()
    assert (np.abs(returns.mean(0) - expected) < 4 * error).all()


def test_the_registered_environment() -> None:
    envs = make_envs("rlopt/MultiObjectiveLQR-v0", 3, env_kwargs={"num_objectives": 3, "horizon": 4})
    assert envs.num_objectives == 3
    assert make_envs("rlopt/MultiObjectiveLQR-v0", env_kwargs={"num_objectives": 3}).num_objectives == 3
    np.testing.assert_array_equal(envs.reset(0), np.ones((3, 3)))
    step = envs.step(np.zeros((3, 3), np.float32))
    np.testing.assert_allclose(step.rewards, [[-1.1, -1.1, -1.1]] * 3)


COMMON: dict[str, Any] = {
    "A": torch.eye(1),
    "B": torch.eye(1),
    "noise_covariance": torch.zeros(1, 1),
    "initial_mean": torch.ones(1),
    "initial_covariance": torch.zeros(1, 1),
    "gamma": 0.9,
    "horizon": 3,
}


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"Q": torch.ones(1, 1, 1), "R": torch.ones(1, 1, 1)}, r"Q: expected K ≥ 2 matrices in one tensor"),
        ({"Q": torch.ones(2, 1, 1), "R": torch.ones(3, 1, 1)}, r"R: expected K ≥ 2 matrices in one tensor, as many as Q"),
        ({"Q": torch.ones(2, 1, 1), "R": torch.zeros(2, 1, 1)}, r"R: expected a symmetric, positive definite"),
        ({"Q": -torch.ones(2, 1, 1), "R": torch.ones(2, 1, 1)}, r"Q: expected a symmetric, positive semi-definite"),
    ],
)
def test_costs_that_do_not_fit_are_named(costs: dict[str, Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MultiObjectiveLQR(**COMMON, **costs)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[0.5, 0.5, 0.5]], "weights: expected 2 numbers"),
        ([[0.0, 0.0]], "weights: expected non-negative numbers, one of them positive"),
        ([[1.0, -1.0]], "weights: expected non-negative numbers, one of them positive"),
        ([1.0, 1.0], r"weights: expected shape \(W, 2\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(weights: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        MultiObjectiveLQR.crossed().front(torch.tensor(weights))


def test_an_ordinary_problem_is_the_sum_of_equal_halves() -> None:
    ordinary = LinearQuadratic.point_mass(horizon=5)
    halves = MultiObjectiveLQR(
        **{name: getattr(ordinary, name) for name in COMMON},
        Q=torch.stack([ordinary.Q, ordinary.Q]) / 2,
        R=torch.stack([ordinary.R, ordinary.R]) / 2,
    )
    np.testing.assert_allclose(halves.front(torch.ones(1, 2))[0], [ordinary.optimal_value() / 2] * 2, rtol=1e-12)
