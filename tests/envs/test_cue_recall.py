"""Cue-recall: the closed form against all courses of an episode, and the environment against its rules."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from torch import Tensor

from rlopt import make_envs
from rlopt.envs.cue_recall import CueRecall, CueRecallVectorEnv
from rlopt.estimators.gradients import hessian_vector_product, policy_gradient, reward_to_go, total_return

LOGITS = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0], dtype=torch.float64)  # θ, φ, κ̂ of the worked row
UNEVEN = torch.tensor([0.7, -0.2, 1.1, -0.4, 1.5, -0.9], dtype=torch.float64)
DELAYS = (0, 1, 4, 8)


def expected_return(logits: Tensor, delay: int) -> Tensor:
    """Σ over cue, memories and answers of probability times reward, in plain loops; differentiable."""
    writes, answers, carries = ((logits[i + 1].sigmoid(), logits[i].sigmoid()) for i in (0, 2, 4))  # [of 0, of 1]
    total = torch.zeros((), dtype=torch.float64)
    for cue, answer, *path in product((0, 1), repeat=delay + 3):
        probability = torch.tensor(0.5, dtype=torch.float64)
        memory = None
        for bit in path:
            one = writes[cue] if memory is None else carries[memory]
            probability = probability * (one if bit else 1 - one)
            memory = bit
        assert memory is not None
        probability = probability * (answers[memory] if answer else 1 - answers[memory])
        total = total + probability * (answer == cue)
    return total


@pytest.mark.parametrize("delay", DELAYS)
@pytest.mark.parametrize("logits", [LOGITS, UNEVEN])
def test_the_closed_form_agrees_with_all_courses_of_an_episode(delay: int, logits: Tensor) -> None:
    problem = CueRecall(delay)
    slope = torch.func.grad(expected_return)(logits, delay)
    assert abs(float(problem.value(logits) - expected_return(logits, delay))) < 1e-14
    assert float((problem.gradient(logits) - slope).abs().max()) < 1e-14
    assert float((torch.func.grad(problem.value)(logits) - slope).abs().max()) < 1e-14


def test_the_worked_row() -> None:
    problem = CueRecall(4)
    assert abs(float(problem.value(LOGITS)) - 0.5190387) < 5e-8
    expected = [0.0081002, -0.0081002, 0.0182680, -0.0182680, 0.0104987, -0.0104987]
    np.testing.assert_allclose(problem.gradient(LOGITS), expected, atol=5e-8)


@pytest.mark.parametrize("delay", DELAYS)
def test_estimators_of_whole_episodes_agree_with_the_closed_form(delay: int) -> None:
    """The exact mean over the courses of what the library estimates from each, gradient and Hessian-vector product."""
    problem, vector = CueRecall(delay), torch.linspace(-1, 2, 6, dtype=torch.float64)
    rollout, weights = problem.enumerate(UNEVEN)
    assert abs(float(weights.sum()) - 1) < 1e-14
    scale = len(weights) * weights  # estimators average over columns
    curvature = torch.func.jvp(torch.func.grad(problem.value), (UNEVEN,), (vector,))[1]
    for psi in (reward_to_go, total_return):
        estimate = psi(rollout.rewards * scale, rollout.mask, 1.0)
        found = policy_gradient(problem.log_prob, UNEVEN, rollout, estimate)
        assert float((found - problem.gradient(UNEVEN)).abs().max()) < 1e-14
        found = hessian_vector_product(problem.log_prob, UNEVEN, rollout, estimate, vector)
        assert float((found - curvature).abs().max()) < 1e-13


def test_one_course_has_the_variances_of_the_worked_row() -> None:
    rollout, weights = CueRecall(4).enumerate(LOGITS)
    log_prob = CueRecall(4).log_prob

    def of_one(logits: Tensor, states: Tensor, actions: Tensor) -> Tensor:
        return log_prob(logits, states, actions).sum()

    scores = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 1, 1))(LOGITS, rollout.observations, rollout.actions)
    terms = scores * rollout.rewards.sum(0)[:, None]
    mean = weights @ terms
    variances = weights @ terms**2 - mean**2
    np.testing.assert_allclose(variances[[0, 2, 4]], [0.047216, 0.056180, 0.105228], atol=5e-7)
    torch.testing.assert_close(mean, CueRecall(4).gradient(LOGITS), rtol=0, atol=1e-14)


def test_without_the_score_of_the_memory_nothing_is_learned_about_it() -> None:
    """The negative control: what writes and carries gets no gradient at all, what reads gets its own."""
    problem = CueRecall(4)
    rollout, weights = problem.enumerate(UNEVEN)

    def answers_alone(logits: Tensor, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.where(observations[..., 3] > 0, problem.log_prob(logits, observations, actions), 0.0)

    psi = reward_to_go(rollout.rewards * len(weights) * weights, rollout.mask, 1.0)
    asked = rollout.observations[..., 3] > 0
    rollout = replace(rollout, log_probs=torch.where(asked, rollout.log_probs, 0.0))
    found = policy_gradient(answers_alone, UNEVEN, rollout, psi)
    assert found[[0, 1, 4, 5]].tolist() == [0, 0, 0, 0]
    torch.testing.assert_close(found[2:4], problem.gradient(UNEVEN)[2:4], rtol=0, atol=1e-14)


def test_symmetric_policies_are_a_saddle() -> None:
    problem = CueRecall(4)
    zero = torch.zeros(2, dtype=torch.float64)
    for equal, gone in (((2, 3), (0, 1, 4, 5)), ((0, 1), (2, 3, 4, 5)), ((4, 5), range(6)), ((0, 1, 2, 3), range(6))):
        logits = UNEVEN.clone()
        logits[list(equal)] = float(logits[equal[0]])
        gradient = problem.gradient(logits)
        assert set(np.flatnonzero(gradient == 0)) >= set(gone)
    assert CueRecall(0).gradient(torch.cat([UNEVEN[:4], zero])).isfinite().all()


def test_the_environment_pays_what_the_closed_form_says() -> None:
    num, problem, logits = 200_000, CueRecall(2), 3 * UNEVEN
    env = CueRecallVectorEnv(problem, num)
    random = np.random.default_rng(1)
    write_0, write_1, answer_0, answer_1, carry_0, carry_1 = logits[[1, 0, 3, 2, 5, 4]].sigmoid().tolist()
    seen, _ = env.reset(seed=0)
    memory = np.zeros(num, int)
    for t in range(problem.horizon):
        assert isinstance(seen, np.ndarray)
        one = np.where(memory, carry_1, carry_0)
        one = np.where(seen[:, 0] == 1, write_0, np.where(seen[:, 1] == 1, write_1, one))
        answers = (random.random(num) < np.where(memory, answer_1, answer_0)).astype(int)
        memory = (random.random(num) < one).astype(int)
        seen, rewards, terminated, truncated, _ = env.step(answers)
        assert terminated.all() == (t == problem.horizon - 1)
        assert not truncated.any()
        assert t == problem.horizon - 1 or not rewards.any()
    error = rewards.std() / num**0.5
    assert abs(rewards.mean() - float(problem.value(logits))) < 4 * error
    for wrong in (CueRecall(1), CueRecall(3)):  # negative controls: one blank fewer, one more
        assert abs(rewards.mean() - float(wrong.value(logits))) > 8 * error


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_an_episode_by_hand(delay: int) -> None:
    env = gym.make("rlopt/CueRecall-v0", delay=delay)
    cues = set()
    for seed in range(12):
        seen, _ = env.reset(seed=seed)
        cue = int(seen.argmax())
        cues.add(cue)
        shown = [seen]
        for _ in range(delay + 1):
            seen, reward, terminated, truncated, _ = env.step(cue)
            shown.append(seen)
            assert (reward, terminated, truncated) == (0, False, False)
        assert [int(row.argmax()) for row in shown] == [cue] + [2] * delay + [3]
        assert [row.sum() for row in shown] == [1] * (delay + 2)
        assert env.step(cue if seed % 2 else 1 - cue)[1:4] == (seed % 2, True, False)
    assert cues == {0, 1}


def test_the_critic_may_see_the_cue_all_along() -> None:
    env = gym.make("rlopt/CueRecall-v0", delay=1, privileged=True)
    check_env(env.unwrapped, skip_render_check=True)
    for seed in range(4):
        both, _ = env.reset(seed=seed)
        cue = int(both["observation"].argmax())
        for t in range(3):
            np.testing.assert_allclose(both["critic"], [1 - cue, cue, t / 2])
            both = env.step(0)[0]
        assert env.observation_space.contains(both)
    envs = make_envs("rlopt/CueRecall-v0", 3, env_kwargs={"delay": 1, "privileged": True})
    first: Any = envs.reset(seed=0)
    assert {key: value.shape for key, value in first.items()} == {"observation": (3, 4), "critic": (3, 3)}
    step = [envs.step(np.zeros(3, np.int64)) for _ in range(3)][-1]
    assert step.final_observations["critic"].shape == (3, 3)  # type: ignore[index, call-overload]


@pytest.mark.parametrize("delay", [-1, 1.5, True, None])
def test_a_wrong_delay_is_named(delay: Any) -> None:
    with pytest.raises(ValueError, match=r"^delay: expected an integer of at least 0, got"):
        CueRecall(delay)


def test_more_courses_than_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^delay: expected an integer in \[0, 16\], got 17"):
        CueRecall(17).enumerate(LOGITS)
