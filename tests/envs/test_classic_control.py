"""Native classic control against Gymnasium's single environments, step for step."""

import gymnasium as gym
import numpy as np
import pytest

from rlopt import make_envs
from rlopt.envs.classic_control import TASKS, ClassicControlVectorEnv

NUM_ENVS, NUM_STEPS = 5, 300
ROUNDING = 1e-6  # of observations in single precision
TOLERANCE = {"MountainCarContinuous-v0": 2e-5}  # whose state Gymnasium rounds to single precision after every step


@pytest.mark.parametrize("env_id", TASKS)
def test_spaces_and_horizon_are_those_of_gymnasium(env_id):
    native, single = ClassicControlVectorEnv(env_id, 2), gym.make(env_id)
    assert native.single_observation_space == single.observation_space
    assert native.single_action_space == single.action_space
    assert native.horizon == single.spec.max_episode_steps


@pytest.mark.parametrize("env_id", TASKS)
def test_a_seeded_copy_plays_what_gymnasium_plays(env_id):
    """Same seeds, same actions: observations, rewards and ends of several episodes of each copy."""
    seeds = [11 * i for i in range(NUM_ENVS)]
    native = ClassicControlVectorEnv(env_id, NUM_ENVS)
    singles = [gym.make(env_id) for _ in seeds]
    seen, _ = native.reset(seed=seeds)
    expected = np.array([env.reset(seed=seed)[0] for env, seed in zip(singles, seeds, strict=True)])
    rng = np.random.default_rng(0)
    tolerance, num_ended = TOLERANCE.get(env_id, ROUNDING), 0
    assert np.abs(seen - expected).max() <= tolerance
    for step in range(NUM_STEPS):
        if native.single_action_space.dtype == np.float32:
            actions = rng.uniform(-2.5, 2.5, (NUM_ENVS, 1)).astype(np.float32)  # beyond the bounds too
        else:
            actions = rng.integers(native.single_action_space.n, size=NUM_ENVS)
        seen, rewards, terminated, truncated, _ = native.step(actions)
        played = [env.step(action) for env, action in zip(singles, actions, strict=True)]
        for i, (observation, reward, over, cut, _) in enumerate(played):
            assert np.abs(seen[i] - observation).max() <= tolerance, (step, i)
            assert rewards[i] == pytest.approx(float(reward), abs=tolerance)
            assert (terminated[i], truncated[i]) == (over, cut and not over)
        ended = terminated | truncated
        num_ended += ended.sum()
        if ended.any():
            again = [1000 * step + i for i in range(NUM_ENVS)]
            native.reset(
                seed=[seed if over else None for seed, over in zip(again, ended, strict=True)], options={"reset_mask": ended}
            )
            for i in ended.nonzero()[0]:
                singles[i].reset(seed=again[i])
    assert num_ended or native.horizon > NUM_STEPS


def pumped(env_id, observation):
    """Actions that swing up: with the motion."""
    with_motion = observation[4] > 0 if env_id == "Acrobot-v1" else observation[1] > 0
    if env_id == "MountainCarContinuous-v0":
        return np.array([1.0 if with_motion else -1.0], np.float32)
    return (0 if with_motion else 2) if env_id == "Acrobot-v1" else (2 if with_motion else 0)


@pytest.mark.parametrize("env_id", ["MountainCar-v0", "MountainCarContinuous-v0", "Acrobot-v1"])
def test_reaching_the_goal_ends_and_pays_as_in_gymnasium(env_id):
    native, single = ClassicControlVectorEnv(env_id, 1), gym.make(env_id)
    native.reset(seed=[3])
    observation, _ = single.reset(seed=3)
    for _ in range(native.horizon):
        action = pumped(env_id, observation)
        observation, reward, over, _, _ = single.step(action)
        seen, rewards, terminated, _, _ = native.step(np.array([action]))
        assert np.abs(seen[0] - observation).max() <= TOLERANCE.get(env_id, ROUNDING) * 5
        assert (rewards[0], terminated[0]) == (pytest.approx(float(reward), abs=1e-6), over)
        if over:
            return
    raise AssertionError("the goal was not reached")


@pytest.mark.parametrize("env_id", TASKS)
def test_a_time_limit_truncates_and_only_the_ended_copies_begin_anew(env_id):
    envs = make_envs(env_id, 3)
    assert isinstance(envs.env, ClassicControlVectorEnv)
    envs.reset(0)
    envs.env.steps[1] = envs.env.horizon - 1
    actions = np.array([envs.env.single_action_space.sample() for _ in range(3)])
    before = envs.env.task.advance(np, envs.env.states, actions)[0]
    step = envs.step(actions)
    assert (step.truncated.tolist(), step.terminated.tolist()) == ([False, True, False], [False] * 3)
    expected = envs.env.task.observe(np, before).astype(np.float32)
    assert list(step.final_rows) == [1]
    np.testing.assert_array_equal(step.final_observations[0], expected[1])
    np.testing.assert_array_equal(step.observations[[0, 2]], expected[[0, 2]])
    assert np.abs(step.observations[1] - expected[1]).max() > 0
    assert envs.env.steps.tolist() == [1, 0, 1]


def test_an_unknown_id_is_named():
    with pytest.raises(ValueError, match=r"env_id: expected one of CartPole-v1.*got 'CartPole-v0'"):
        ClassicControlVectorEnv("CartPole-v0")
