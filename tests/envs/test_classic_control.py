"""Native classic control against Gymnasium's single environments, step for step."""

import gymnasium as gym
import numpy as np
import pytest

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
