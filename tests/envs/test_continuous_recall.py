"""Recall of a number: the closed form against the worked row, autograd, enumeration by moments and sampled episodes."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from rlopt import make_envs
from rlopt.envs.continuous_recall import ContinuousRecall, ContinuousRecallVectorEnv

WORKED = torch.tensor([0.8, 1.0, 0.9], dtype=torch.float64)  # k, c, w
OTHER = torch.tensor([-0.6, 1.3, 0.7], dtype=torch.float64)
SIGMA_A, SIGMA_Z = 0.1, 0.2


def by_moments(parameters: Tensor, num_updates: int, sigma_z: float, sigma_a: float) -> Tensor:
    """J by the moments E[s z_i] and E[z_i²], one update after the other; E[s²] = 1."""
    k, c, w = parameters
    with_target, second = k, k**2 + sigma_z**2
    for _ in range(num_updates - 1):
        with_target, second = w * with_target, w**2 * second + sigma_z**2
    return -(c**2 * second - 2 * c * with_target + 1 + sigma_a**2)


def test_the_worked_row() -> None:
    problem = ContinuousRecall(4)
    assert abs(float(problem.value(WORKED, SIGMA_Z, SIGMA_A)) + 0.303624) < 5e-7
    np.testing.assert_allclose(problem.gradient(WORKED, SIGMA_Z), [0.607694, 0.246352, 1.290161], atol=5e-7)


@pytest.mark.parametrize("num_updates", [1, 2, 4, 9])
@pytest.mark.parametrize("parameters", [WORKED, OTHER, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64)])
@pytest.mark.parametrize("sigma_z", [0.0, 0.2])
def test_the_closed_form_agrees_with_moments_and_its_gradient_with_autograd(
    num_updates: int, parameters: Tensor, sigma_z: float
) -> None:
    problem = ContinuousRecall(num_updates)
    assert abs(float(problem.value(parameters, sigma_z, 0.1) - by_moments(parameters, num_updates, sigma_z, 0.1))) < 1e-13
    exact = torch.func.grad(by_moments)(parameters, num_updates, sigma_z, 0.1)
    np.testing.assert_allclose(problem.gradient(parameters, sigma_z), exact, rtol=0, atol=1e-13)
    np.testing.assert_allclose(torch.func.grad(problem.value)(parameters, sigma_z, 0.1), exact, rtol=0, atol=1e-13)


@pytest.mark.parametrize("step", [1, 2, 3])
def test_state_values_are_those_of_the_memory_one_step_later_on_average(step: int) -> None:
    """V_i(s, z) = E[V_{i+1}(s, w z + σ_z ε)], exactly by Gauss–Hermite nodes; and E[V_1(s, z_1)] = J."""
    problem = ContinuousRecall(4)
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(8))
    weights = weights / weights.sum()
    targets, memories = torch.linspace(-2, 2, 5, dtype=torch.float64), torch.linspace(1, -3, 5, dtype=torch.float64)
    following = OTHER[2] * memories[:, None] + SIGMA_Z * nodes
    later = problem.state_value(OTHER, SIGMA_Z, SIGMA_A, step + 1, targets[:, None], following) @ weights
    now = problem.state_value(OTHER, SIGMA_Z, SIGMA_A, step, targets, memories)
    np.testing.assert_allclose(now, later, rtol=0, atol=1e-12)
    first = OTHER[0] * nodes[:, None] + SIGMA_Z * nodes
    mean = weights @ problem.state_value(OTHER, SIGMA_Z, SIGMA_A, 1, nodes[:, None], first) @ weights
    assert abs(float(mean - problem.value(OTHER, SIGMA_Z, SIGMA_A))) < 1e-12


def played(problem: ContinuousRecall, num: int, noise: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Returns [num] and score estimates of ∇J [num, 3] of the linear policy in the environment, one episode a copy."""
    k, c, w = WORKED.tolist()
    env = ContinuousRecallVectorEnv(problem, num)
    random = np.random.default_rng(1)
    seen, _ = env.reset(seed=0)
    memory, scores = np.zeros(num), np.zeros((num, 3))
    for t in range(problem.horizon):
        assert isinstance(seen, np.ndarray)
        cue, asked = seen.astype(np.float64).T
        assert (asked == (t == problem.num_updates)).all()
        assert t == 0 or not cue.any()
        shocks = random.standard_normal((2, num))
        actions = c * memory + SIGMA_A * shocks[0]
        if t == problem.num_updates:
            scores[:, 1] += shocks[0] / SIGMA_A * memory
        else:
            scores[:, 0] += shocks[1] / SIGMA_Z * cue
            scores[:, 2] += shocks[1] / SIGMA_Z * memory
        memory = w * memory + k * cue + SIGMA_Z * shocks[1]
        seen, rewards, terminated, truncated, _ = env.step(actions[:, None])
        assert terminated.all() == (t == problem.num_updates)
        assert not truncated.any()
        assert t == problem.num_updates or not rewards.any()
    return rewards, scores * rewards[:, None]


def test_sampled_episodes_have_the_value_and_their_scores_the_gradient() -> None:
    num, problem = 400_000, ContinuousRecall(4)
    returns, estimates = played(problem, num)
    errors = estimates.std(0) / num**0.5
    np.testing.assert_allclose(errors, [0.008, 0.007, 0.011], rtol=0.15)  # as the worked row says
    assert (np.abs(estimates.mean(0) - problem.gradient(WORKED, SIGMA_Z).numpy()) < 4 * errors).all()
    error = returns.std() / num**0.5
    assert abs(returns.mean() - float(problem.value(WORKED, SIGMA_Z, SIGMA_A))) < 4 * error
    for wrong in (ContinuousRecall(3), ContinuousRecall(5)):  # negative controls: one update fewer, one more
        assert abs(returns.mean() - float(wrong.value(WORKED, SIGMA_Z, SIGMA_A))) > 20 * error


def test_an_episode_by_hand() -> None:
    env = gym.make("rlopt/ContinuousRecall-v0", num_updates=2)
    shown = []
    seen, _ = env.reset(seed=1)
    target = float(seen[0])
    for action in (5.0, -7.0, 0.25):
        shown.append(seen.tolist())
        seen, reward, terminated, truncated, _ = env.step(np.array([action], np.float32))
    assert shown == [[pytest.approx(target), 0], [0, 0], [0, 1]]
    assert reward == pytest.approx(-((0.25 - target) ** 2), rel=1e-6)
    assert (terminated, truncated) == (True, False)


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space", "ignore:.*Box observation space m..imum value is")
def test_the_critic_may_see_the_target_and_actions_are_not_clipped() -> None:
    env = gym.make("rlopt/ContinuousRecall-v0", num_updates=1, privileged=True)
    check_env(env.unwrapped, skip_render_check=True)
    both, _ = env.reset(seed=0)
    target = both["observation"][0]
    for t in range(2):
        np.testing.assert_allclose(both["critic"], [target, t])
        both = env.step(np.zeros(1, np.float32))[0]
    envs = make_envs("rlopt/ContinuousRecall-v0", 2, env_kwargs={"num_updates": 1})
    envs.reset(seed=0)
    step = [envs.step(envs.decoder(np.full((2, 1), 1e3, np.float32))) for _ in range(2)][-1]
    assert (step.rewards < -0.9e6).all()


@pytest.mark.parametrize("num_updates", [0, -2, 2.5])
def test_a_wrong_number_of_updates_is_named(num_updates: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_updates: expected a positive integer, got"):
        ContinuousRecall(num_updates)
    with pytest.raises(ValueError, match=r"^step: expected an integer in \[1, 4\], got 5"):
        ContinuousRecall(4).state_value(WORKED, 0.1, 0.1, 5, WORKED, WORKED)
