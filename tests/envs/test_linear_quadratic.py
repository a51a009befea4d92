"""The linear-quadratic problem and the Gaussian bandit: closed forms, differences, Riccati, and samples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlopt import make_envs
from rlopt.envs.gaussian_bandit import GaussianBandit
from rlopt.envs.linear_quadratic import LinearQuadratic
from rlopt.envs.linear_quadratic_vector import GaussianBanditVectorEnv, LinearQuadraticVectorEnv


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


PROBLEM = LinearQuadratic(
    A=double([[1.0, 0.3], [-0.2, 0.8]]),
    B=double([[0.5, 0.0, 0.2], [0.1, 0.7, 0.0]]),
    Q=double([[1.0, 0.2], [0.2, 0.5]]),
    R=double([[0.3, 0.1, 0.0], [0.1, 0.4, 0.0], [0.0, 0.0, 0.2]]),
    noise_covariance=double([[0.2, 0.1], [0.1, 0.05]]),  # singular
    initial_mean=double([1.0, -2.0]),
    initial_covariance=double([[0.5, -0.1], [-0.1, 0.3]]),
    gamma=0.9,
    horizon=6,
)
GAIN = double([[-0.4, 0.1], [0.2, -0.3], [0.0, 0.5]])
OFFSET = double([0.3, -0.2, 0.1])
STD = double([0.5, 0.2, 0.7])


def sampled_returns(problem: LinearQuadratic, gain: Tensor, offset: Tensor, std: Tensor, num: int) -> np.ndarray:
    """Discounted returns [N] of one episode in each copy of the vector environment."""
    env = LinearQuadraticVectorEnv(problem, num)
    generator = np.random.default_rng(1)
    states, _ = env.reset(seed=0)
    returns = np.zeros(num)
    for t in range(problem.horizon):
        noise = generator.standard_normal((num, problem.num_actions))
        actions = states @ gain.numpy().T + offset.numpy() + noise * std.numpy()
        states, rewards, terminated, truncated, _ = env.step(actions)
        returns += problem.gamma**t * rewards
        assert not terminated.any()
        assert truncated.all() == (t == problem.horizon - 1)
    return returns


def test_one_step_of_one_dimension_by_hand() -> None:
    one = torch.ones(1, 1)
    problem = LinearQuadratic(2 * one, 3 * one, 5 * one, 7 * one, 0.5 * one, torch.ones(1), 0.25 * one, 0.9, 2)
    # x_0 has mean 1 and second moment 1.25; u = −x_0 + 2 + .5 ε; x_1 = −x_0 + 6 + 1.5 ε + w
    first = 5 * 1.25 + 7 * ((1 + 0.25) + 0.25)
    second = (5.0**2 + 0.25 + 2.25 + 0.5) * 5 + 7 * ((5 - 2) ** 2 + (0.25 + 2.25 + 0.5) + 0.25)
    value = problem.value(double([[-1.0]]), double([2.0]), double([0.5]))
    assert abs(float(value) + first + 0.9 * second) < 1e-12


def test_the_moment_recursion_agrees_with_sampled_returns() -> None:
    num = 20_000
    returns = sampled_returns(PROBLEM, GAIN, OFFSET, STD, num)
    error = returns.std() / num**0.5
    assert abs(returns.mean() - float(PROBLEM.value(GAIN, OFFSET, STD))) < 4 * error
    for wrong in ((GAIN, OFFSET, 0 * STD), (GAIN, 0 * OFFSET, STD), (-GAIN, OFFSET, STD)):  # negative controls
        assert abs(returns.mean() - float(PROBLEM.value(*wrong))) > 8 * error


def test_gradients_agree_with_differences() -> None:
    arguments = [GAIN, OFFSET, STD]
    for number, gradient in enumerate(PROBLEM.gradient(*arguments)):
        assert gradient.shape == arguments[number].shape
        for index in np.ndindex(*gradient.shape):
            shift = torch.zeros_like(arguments[number])
            shift[index] = 1e-5
            up, down = ([*arguments[:number], arguments[number] + s, *arguments[number + 1 :]] for s in (shift, -shift))
            difference = float(PROBLEM.value(*up) - PROBLEM.value(*down)) / 2e-5
            assert abs(float(gradient[index]) - difference) < 1e-7


def test_the_riccati_gains_have_the_optimal_value_and_no_other_policy_is_better() -> None:
    gains = PROBLEM.optimal_gains()
    best = PROBLEM.optimal_value()
    assert gains.shape == (6, 3, 2)
    assert abs(float(PROBLEM.value(gains)) - best) < 1e-12
    gradients = PROBLEM.gradient(gains)
    for gradient in gradients:
        assert float(gradient.abs().max()) < 1e-12
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shift = 0.1 * torch.randn(gains.shape, generator=generator, dtype=torch.float64)
        assert float(PROBLEM.value(gains + shift)) < best - 1e-4
    assert float(PROBLEM.value(gains, 0.1 * OFFSET)) < best
    assert float(PROBLEM.value(gains, None, 0.1 * STD)) < best
    assert (gains[-1] == 0).all(), "nothing is gained by acting in the last step"


def test_the_best_stationary_policy_has_no_gradient_and_lies_below_the_optimum() -> None:
    gain, offset = PROBLEM.best_stationary_policy(STD)
    by_gain, by_offset, by_std = PROBLEM.gradient(gain, offset, STD)
    assert max(float(by_gain.abs().max()), float(by_offset.abs().max())) < 1e-10
    assert (by_std < 0).all(), "exploration costs"
    assert abs(PROBLEM.best_stationary_value(STD) - float(PROBLEM.value(gain, offset, STD))) < 1e-14
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        shift = 0.3 * torch.randn(9, generator=generator, dtype=torch.float64)
        assert PROBLEM.value(gain + shift[:6].view(3, 2), offset + shift[6:], STD) < PROBLEM.value(gain, offset, STD) - 1e-3
    assert PROBLEM.best_stationary_value() < PROBLEM.optimal_value() - 1e-2
    assert float(PROBLEM.gradient(GAIN, OFFSET, STD)[0].abs().max()) > 0.1


def test_the_point_mass_is_brought_to_rest() -> None:
    problem = LinearQuadratic.point_mass()
    assert problem.optimal_value() > float(problem.value(torch.zeros(1, 2, dtype=torch.float64))) / 5
    assert LinearQuadratic.point_mass(noise=1.0).optimal_value() < problem.optimal_value() - 0.1


def test_environments_begin_and_move_as_the_matrices_say() -> None:
    env = LinearQuadraticVectorEnv(PROBLEM, 50_000)
    first, _ = env.reset(seed=0)
    np.testing.assert_allclose(first.mean(0), PROBLEM.initial_mean, atol=4 * 0.75 / 50_000**0.5)
    np.testing.assert_allclose(np.cov(first.T), PROBLEM.initial_covariance, atol=0.015)
    actions = np.tile(np.array([1.0, -1.0, 2.0]), (50_000, 1))
    second, rewards, *_ = env.step(actions)
    noise = second - first @ PROBLEM.A.numpy().T - actions @ PROBLEM.B.numpy().T
    np.testing.assert_allclose(noise.mean(0), 0, atol=4 * 0.45 / 50_000**0.5)
    np.testing.assert_allclose(np.cov(noise.T), PROBLEM.noise_covariance, atol=0.01)
    costs = np.einsum("ni,ij,nj->n", first, PROBLEM.Q.numpy(), first) + actions[0] @ PROBLEM.R.numpy() @ actions[0]
    np.testing.assert_allclose(rewards, -costs, rtol=1e-5)


def test_only_masked_copies_are_reset_and_the_seed_fixes_the_noise() -> None:
    env = LinearQuadraticVectorEnv(PROBLEM, 4)
    runs = []
    for seed in (0, 0, 1):
        env.reset(seed=seed)
        states = env.step(np.zeros((4, 3)))[0]
        again, _ = env.reset(options={"reset_mask": np.array([True, False, False, True])})
        np.testing.assert_array_equal(again[1:3], states[1:3])
        assert not np.isin(again[[0, 3]], states[[0, 3]]).any()
        runs.append(again)
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    ends = []
    for _ in range(6):
        env.ended[:] = False  # look at the clocks alone
        ends.append(env.step(np.zeros((4, 3)))[3].tolist())
    assert [row.index(True) for row in np.array(ends).T.tolist()] == [5, 4, 4, 5]


def test_actions_reach_the_environments_unclipped() -> None:
    envs = make_envs("rlopt/LQR-v0", 2, env_kwargs={"horizon": 3})
    envs.reset(seed=0)
    action = np.full((2, 1), 1e3, np.float32)
    np.testing.assert_array_equal(envs.decoder(action), action)
    assert (envs.step(envs.decoder(action)).rewards < -0.09e6).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("A", torch.eye(3)),
        ("B", torch.ones(2)),
        ("Q", double([[1.0, 0.5], [0.0, 1.0]])),
        ("Q", -torch.eye(2)),
        ("R", torch.zeros(3, 3)),
        ("noise_covariance", -torch.eye(2)),
        ("initial_mean", torch.ones(2, 1)),
        ("initial_covariance", torch.full((2, 2), float("nan"))),
        ("gamma", -0.1),
        ("horizon", 0),
    ],
)
def test_a_wrong_argument_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        replace(PROBLEM, **{name: value})


def test_wrong_policies_are_named() -> None:
    for name, arguments in {"gain": (GAIN.T,), "offset": (GAIN, OFFSET[:2]), "std": (GAIN, OFFSET, STD[:1])}.items():
        with pytest.raises(ValueError, match=f"^{name}: expected shape"):
            PROBLEM.value(*arguments)


def test_the_bandits_closed_forms_agree_with_its_nodes_and_with_autograd() -> None:
    bandit, theta = GaussianBandit(target=1.5, std=0.7), double([-0.4])
    rollout, weights = bandit.enumerate(theta)
    score = (rollout.actions[0, :, 0] - theta) / bandit.std**2
    rewards = rollout.rewards[0]
    assert abs(float(weights.sum()) - 1) < 1e-14
    assert abs(float(weights @ rewards - bandit.value(theta))) < 1e-12
    assert abs(float(weights @ (rewards * score) - bandit.gradient(theta))) < 1e-12
    curvature = weights @ (rewards * (score**2 - 1 / bandit.std**2))
    assert abs(float(curvature - bandit.hessian(theta))) < 1e-11
    assert abs(float(weights @ (rewards * score**2) - bandit.hessian(theta))) > 1e-3  # negative control
    torch.testing.assert_close(torch.func.grad(bandit.value)(theta), bandit.gradient(theta), rtol=0, atol=1e-14)
    normal = torch.distributions.Normal(theta, bandit.std)
    torch.testing.assert_close(rollout.log_probs, normal.log_prob(rollout.actions).squeeze(-1), rtol=0, atol=1e-13)
    assert rollout.terminated.all()
    assert not rollout.truncated.any()


def test_the_bandit_environment_pays_what_its_value_says() -> None:
    bandit, num = GaussianBandit(target=1.5, std=0.7), 50_000
    env = GaussianBanditVectorEnv(bandit, num)
    env.reset(seed=0)
    actions = -0.4 + bandit.std * np.random.default_rng(1).standard_normal((num, 1))
    states, rewards, terminated, truncated, _ = env.step(actions)
    assert terminated.all()
    assert not truncated.any()
    assert (states == 0).all()
    assert abs(rewards.mean() - float(bandit.value(double([-0.4])))) < 4 * rewards.std() / num**0.5
    with pytest.raises(ValueError, match="std: expected a positive number"):
        GaussianBandit(std=0.0)
