"""The noisily observed linear-quadratic problem: moments against sampled episodes, the optimum against its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from rlopt import make_envs
from rlopt.envs.linear_quadratic import LinearQuadratic
from rlopt.envs.linear_quadratic_gaussian import (
    LinearController,
    LinearQuadraticGaussian,
    LinearQuadraticGaussianVectorEnv,
)


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


SYSTEM = LinearQuadratic(
    A=double([[1.0, 0.3], [-0.2, 0.8]]),
    B=double([[0.5, 0.0], [0.1, 0.7]]),
    Q=double([[1.0, 0.2], [0.2, 0.5]]),
    R=double([[0.3, 0.1], [0.1, 0.4]]),
    noise_covariance=double([[0.2, 0.1], [0.1, 0.05]]),  # singular
    initial_mean=double([1.0, -2.0]),
    initial_covariance=double([[0.5, -0.1], [-0.1, 0.3]]),
    gamma=0.9,
    horizon=6,
)
PROBLEM = LinearQuadraticGaussian(SYSTEM, double([[1.0, -0.5]]), double([[0.3]]))
CONTROLLER = LinearController(  # d = 3
    memory_gain=double([[0.2, -0.4, 0.1], [-0.3, 0.1, 0.2]]),
    observation_gain=double([[-0.5], [0.3]]),
    carry=double([[0.5, 0.1, 0.0], [-0.2, 0.6, 0.1], [0.0, 0.3, 0.4]]),
    write=double([[0.7], [-0.4], [0.2]]),
)
SIGMA_A, SIGMA_Z = 0.3, 0.2


def sampled_returns(problem: LinearQuadraticGaussian, controller: LinearController, num: int) -> np.ndarray:
    """Discounted returns [num] of one episode in each copy of the vector environment."""
    env = LinearQuadraticGaussianVectorEnv(problem, num)
    random = np.random.default_rng(1)
    by_z, by_o, carry, write = (matrix.numpy() for matrix in controller)
    seen, _ = env.reset(seed=0)
    memory, returns = np.zeros((num, len(carry))), np.zeros(num)
    for t in range(problem.system.horizon):
        assert isinstance(seen, np.ndarray)
        actions = memory @ by_z.T + seen @ by_o.T + SIGMA_A * random.standard_normal((num, len(by_o)))
        memory = memory @ carry.T + seen @ write.T + SIGMA_Z * random.standard_normal(memory.shape)
        seen, rewards, terminated, truncated, _ = env.step(actions)
        returns += problem.system.gamma**t * rewards
        assert not terminated.any()
        assert truncated.all() == (t == problem.system.horizon - 1)
    return returns


def test_the_recursion_of_moments_agrees_with_sampled_returns() -> None:
    num = 100_000
    returns = sampled_returns(PROBLEM, CONTROLLER, num)
    error = returns.std() / num**0.5
    assert abs(returns.mean() - float(PROBLEM.value(CONTROLLER, SIGMA_A, SIGMA_Z))) < 4 * error
    noisier = LinearQuadraticGaussian(SYSTEM, PROBLEM.C, 2 * PROBLEM.observation_covariance)
    swapped = CONTROLLER._replace(write=-CONTROLLER.write)
    wrong = [
        PROBLEM.value(CONTROLLER, 0.0, SIGMA_Z),
        PROBLEM.value(CONTROLLER, SIGMA_A, 0.6),
        PROBLEM.value(swapped, SIGMA_A, SIGMA_Z),
        noisier.value(CONTROLLER, SIGMA_A, SIGMA_Z),
    ]
    for value in wrong:  # negative controls
        assert abs(returns.mean() - float(value)) > 6 * error


def test_two_steps_of_one_dimension_by_hand() -> None:
    one = torch.ones(1, 1, dtype=torch.float64)
    system = LinearQuadratic(2 * one, 3 * one, 5 * one, 7 * one, 0.5 * one, torch.ones(1), 0.25 * one, 0.9, 2)
    problem = LinearQuadraticGaussian(system, one, 0.1 * one)
    controller = LinearController(one, -one, 0.0 * one, 0.4 * one)
    # o_0 = x_0 + v_0; a_0 = −o_0; z_1 = 0.4 o_0; x_1 = 2 x_0 + 3 a_0 + w = −x_0 − 3 v_0 + w; a_1 = z_1 − x_1 − v_1
    first = 5 * 1.25 + 7 * (1.25 + 0.1)
    second_state = 1.25 + 9 * 0.1 + 0.5
    # z_1 − x_1 − v_1 = 1.4 x_0 + 3.4 v_0 − w − v_1
    second_action = 1.4**2 * 1.25 + 3.4**2 * 0.1 + 0.5 + 0.1
    expected = -(first + 0.9 * (5 * second_state + 7 * second_action))
    assert abs(float(problem.value(controller)) - expected) < 1e-12


def test_a_memoryless_controller_that_sees_the_state_is_a_linear_quadratic_policy() -> None:
    clear = LinearQuadraticGaussian(SYSTEM, torch.eye(2), torch.zeros(2, 2))
    gain = double([[-0.4, 0.1], [0.2, -0.3]])
    controller = LinearController(torch.zeros(2, 1, dtype=torch.float64), gain, *torch.zeros(2, 1, 1, dtype=torch.float64))
    controller = controller._replace(write=torch.zeros(1, 2, dtype=torch.float64))
    exact = SYSTEM.value(gain, std=torch.full((2,), SIGMA_A, dtype=torch.float64))
    assert abs(float(clear.value(controller, SIGMA_A) - exact)) < 1e-12


def test_the_value_is_differentiable() -> None:
    gradients = torch.func.grad(PROBLEM.value)(CONTROLLER, SIGMA_A, SIGMA_Z)
    for number, gradient in enumerate(gradients):
        for index in np.ndindex(*gradient.shape):
            shift = torch.zeros_like(gradient)
            shift[index] = 1e-5
            up, down = (
                PROBLEM.value(
                    LinearController(*(m + s * shift if i == number else m for i, m in enumerate(CONTROLLER))), 0.3, 0.2
                )
                for s in (1, -1)
            )
            assert abs(float(gradient[index]) - float(up - down) / 2e-5) < 1e-7
    assert min(float(gradient.abs().max()) for gradient in gradients) > 0.01


def test_the_average_reward_is_the_limit_of_the_recursion() -> None:
    long = replace(SYSTEM, gamma=1.0, horizon=400)
    longer = replace(SYSTEM, gamma=1.0, horizon=401)
    controller = PROBLEM.optimal_controller()
    values = [
        LinearQuadraticGaussian(s, PROBLEM.C, PROBLEM.observation_covariance).value(controller, 0.1, 0.2)
        for s in (long, longer)
    ]
    assert abs(float(values[1] - values[0]) - float(PROBLEM.average_reward(controller, 0.1, 0.2))) < 1e-10


@pytest.mark.parametrize("problem", [PROBLEM, LinearQuadraticGaussian.point_mass()])
def test_no_neighbour_of_the_optimal_controller_is_better(problem: LinearQuadraticGaussian) -> None:
    controller, best = problem.optimal_controller(), problem.optimal_average_reward()
    assert abs(float(problem.average_reward(controller)) - best) < 1e-11
    for gradient in _gradients(problem, controller):
        assert float(gradient.abs().max()) < 1e-9
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        near = LinearController(
            *(m + 0.03 * torch.randn(m.shape, generator=generator, dtype=torch.float64) for m in controller)
        )
        assert float(problem.average_reward(near)) < best
    assert float(problem.average_reward(controller, sigma_a=0.1)) < best
    assert float(problem.average_reward(controller, sigma_z=0.1)) < best


def _gradients(problem: LinearQuadraticGaussian, controller: LinearController) -> tuple[Tensor, ...]:
    leaves = [matrix.clone().requires_grad_() for matrix in controller]
    return torch.autograd.grad(problem.average_reward(LinearController(*leaves)), leaves)


def test_what_cannot_be_controlled_or_seen_is_said() -> None:
    growing = replace(SYSTEM, A=1.5 * torch.eye(2), noise_covariance=torch.eye(2))
    hidden = LinearQuadraticGaussian(growing, double([[1.0, 0.0]]), double([[0.3]]))  # one component is never seen
    out_of_reach = replace(growing, B=double([[1.0], [0.0]]), R=double([[1.0]]))
    for problem in (hidden, LinearQuadraticGaussian(out_of_reach, torch.eye(2), torch.eye(2))):
        with pytest.raises(ValueError, match=r"^system: expected one that can be brought to rest"):
            problem.optimal_controller()
    with pytest.raises(ValueError, match=r"^controller: expected a stable closed loop, got one whose spectral radius"):
        hidden.average_reward(CONTROLLER)


def test_an_observation_is_drawn_once_also_when_others_are_reset() -> None:
    env = LinearQuadraticGaussianVectorEnv(PROBLEM, 4, privileged=True)
    env.reset(seed=0)
    shown: Any = env.step(np.zeros((4, 2)))[0]
    again: Any = env.reset(options={"reset_mask": np.array([True, False, False, True])})[0]
    for key in ("observation", "critic"):
        np.testing.assert_array_equal(again[key][1:3], shown[key][1:3])
        assert not np.isin(again[key][[0, 3]], shown[key][[0, 3]]).any()


def test_observations_have_the_noise_that_is_promised_and_the_critic_sees_the_state() -> None:
    env = LinearQuadraticGaussianVectorEnv(PROBLEM, 50_000, privileged=True)
    both: Any = env.reset(seed=0)[0]
    noise = both["observation"] - both["critic"] @ PROBLEM.C.numpy().T
    assert abs(noise.mean()) < 4 * (0.3 / 50_000) ** 0.5
    assert abs(noise.var() / 0.3 - 1) < 0.03
    np.testing.assert_allclose(np.cov(both["critic"].T), SYSTEM.initial_covariance, atol=0.015)
    assert abs(np.corrcoef(noise[:, 0], both["critic"][:, 0])[0, 1]) < 0.02


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space", "ignore:.*Box observation space m..imum value is")
def test_the_id_takes_the_arguments_of_the_point_mass() -> None:
    env = gym.make("rlopt/LQG-v0", horizon=3, observation_noise=0.5, privileged=True)
    check_env(env.unwrapped, skip_render_check=True)
    envs = make_envs("rlopt/LQG-v0", 2, env_kwargs={"horizon": 3, "noise": 0.2})
    assert envs.reset(seed=0).shape == (2, 1)  # type: ignore[union-attr]
    assert [bool(envs.step(np.zeros((2, 1), np.float32)).truncated.all()) for _ in range(3)] == [False, False, True]
    with pytest.raises(ValueError, match=r"^observation_noise: expected a number of at least 0, got -1"):
        LinearQuadraticGaussian.point_mass(observation_noise=-1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((double([1.0, 2.0]), double([[1.0]])), r"C: expected shape \(p, 2\), got \(2,\)"),
        ((torch.eye(3), torch.eye(3)), r"C: expected shape \(p, 2\), got \(3, 3\)"),
        ((torch.eye(2), torch.eye(1)), r"observation_covariance: expected shape \(2, 2\), got \(1, 1\)"),
        ((torch.eye(2), -torch.eye(2)), "observation_covariance: expected a symmetric, positive semi-definite matrix"),
        ((torch.eye(2), double([[1.0, 0.5], [0.0, 1.0]])), "observation_covariance: expected a symmetric"),
    ],
)
def test_wrong_matrices_are_named(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        LinearQuadraticGaussian(SYSTEM, *arguments)


@pytest.mark.parametrize("name", LinearController._fields)
def test_a_controller_of_a_wrong_shape_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"^(memory_gain|{name}): expected shape"):
        PROBLEM.value(CONTROLLER._replace(**{name: torch.zeros(5, 4, dtype=torch.float64)}))
    with pytest.raises(ValueError, match=r"^sigma_z: expected a number of at least 0, got -1"):
        PROBLEM.value(CONTROLLER, 0.1, -1)
