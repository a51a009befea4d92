"""MuJoCo tasks on threads against Gymnasium's single environments, to the bit."""

from __future__ import annotations

import os
import threading
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlopt.envs.cores import usable_cores
from rlopt.envs.gymnasium_vector import GymnasiumEnvironments
from rlopt.envs.mujoco_batch import MujocoVectorEnv
from rlopt.envs.mujoco_tasks import MUJOCO_TASKS

pytest.importorskip("mujoco.batch", reason="MuJoCo 4.0 brings it")

NUM_ENVS, NUM_STEPS = 3, 150
# What they pay for is squared and added up by other functions of NumPy for one copy than for rows: the last digit may differ.
ROUNDED = {"InvertedDoublePendulum-v5": 1e-14, "Reacher-v5": 1e-14}


@pytest.fixture(autouse=True)
def _away_from_the_working_directory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where MuJoCo writes MUJOCO_LOG.TXT


@pytest.mark.parametrize("env_id", MUJOCO_TASKS)
def test_a_seeded_copy_plays_what_gymnasium_plays_to_the_bit(env_id: str) -> None:
    """Observations, rewards, ends and infos of the same actions; episodes begun anew on the way, with seeds of their own."""
    native = MujocoVectorEnv(env_id, NUM_ENVS, num_threads=2)
    singles = [gym.make(env_id) for _ in range(NUM_ENVS)]
    assert native.single_observation_space == singles[0].observation_space
    assert native.single_action_space == singles[0].action_space
    assert native.horizon == singles[0].spec.max_episode_steps
    space = singles[0].action_space
    rng, num_ended, tolerance = np.random.default_rng(0), 0, ROUNDED.get(env_id, 0.0)
    seeds: list[int | None] = [7, 11, 13]
    reset = np.ones(NUM_ENVS, bool)
    for step in range(NUM_STEPS):
        if reset.any():
            seeds = [100 * step + i if over else None for i, over in enumerate(reset)]
            seen, _ = native.reset(seed=seeds, options={"reset_mask": reset})
            for i in reset.nonzero()[0]:
                np.testing.assert_array_equal(seen[i], singles[i].reset(seed=seeds[i])[0])
        actions = (1.2 * rng.uniform(space.low, space.high, (NUM_ENVS, *space.shape))).astype(
            np.float32
        )  # beyond the bounds too
        seen, rewards, terminated, truncated, infos = native.step(actions)
        for i, single in enumerate(singles):
            observation, reward, over, cut, info = single.step(actions[i])
            np.testing.assert_array_equal(seen[i], observation, err_msg=f"step {step}, copy {i}")
            assert abs(rewards[i] - reward) <= tolerance
            assert (terminated[i], truncated[i]) == (over, cut and not over)
            assert all(abs(infos[name][i] - info[name]) <= tolerance for name in infos)
        num_ended += int((terminated | truncated).sum())
        reset = terminated | truncated | (rng.random(NUM_ENVS) < 0.02)  # some in the middle of an episode
    assert num_ended or native.horizon > NUM_STEPS


def test_positions_and_velocities_alone_do_not_go_on_to_the_bit() -> None:
    """Negative control: without the solver's warm start a step is another in its last digits."""
    env = MujocoVectorEnv("Walker2d-v5", 4, 1)
    random, differences = np.random.default_rng(0), []
    env.reset(seed=0)
    for _ in range(20):
        states, actions = env.states, random.uniform(-1, 1, (4, 6))
        assert states is not None
        cold = np.zeros_like(states)
        for columns in env._columns:
            cold[:, columns] = states[:, columns]
        without, *_ = env._advance(cold, actions)
        env.step(actions)
        assert env.states is not None
        differences.append(max(np.abs(without[:, c] - env.states[:, c]).max() for c in env._columns))
    assert 0.0 < max(differences) < 1e-10


def test_threads_make_no_difference() -> None:
    played = []
    for num_threads in (1, 3):
        env = MujocoVectorEnv("Hopper-v5", 5, num_threads)
        env.reset(seed=0)
        rng = np.random.default_rng(1)
        for _ in range(8):
            seen, *_ = env.step(rng.uniform(-1, 1, (5, 3)))
        played.append(seen)
    np.testing.assert_array_equal(*played)


def test_the_states_are_all_that_a_step_depends_on() -> None:
    env = MujocoVectorEnv("HalfCheetah-v5", 2, 1)
    env.reset(seed=0)
    rng = np.random.default_rng(1)
    for _ in range(20):  # until it touches the ground, and the solver has something to start from
        env.step(rng.uniform(-1, 1, (2, 6)))
    states, actions = env.states, rng.uniform(-1, 1, (2, 6))
    assert states is not None
    kept = states.copy()
    once, *_ = env.step(actions)
    env.step(actions)
    np.testing.assert_array_equal(states, kept)
    env.states = states
    again, *_ = env.step(actions)
    np.testing.assert_array_equal(once, again)


def test_other_python_threads_run_during_a_step() -> None:
    env = MujocoVectorEnv("Walker2d-v5", 2, 1)
    env.reset(seed=0)
    running, count = threading.Event(), 0
    done = threading.Event()

    def tick() -> None:
        nonlocal count
        running.set()
        while not done.is_set():
            count += 1

    other = threading.Thread(target=tick)
    other.start()
    running.wait()
    before = count
    env._batch.step(nstep=2000)
    during = count - before
    done.set()
    other.join()
    assert during > 0


def test_an_agent_sees_infos_and_whole_episodes() -> None:
    envs = GymnasiumEnvironments(MujocoVectorEnv("InvertedPendulum-v5", 2))
    assert envs.restarts_rows
    assert not envs.resets_on_next_step
    envs.reset(seed=0)
    for _ in range(200):
        step = envs.step(np.full((2, 1), 3.0, np.float32))
        if len(step.final_rows):
            break
    assert step.terminated.any()
    assert step.rewards[step.final_rows].tolist() == [0.0] * len(step.final_rows)
    assert np.abs(step.final_observations[:, 1]).min() > 0.2
    assert np.abs(step.observations[step.final_rows]).max() <= 0.01
    assert step.infos[int(step.final_rows[0])]["reward_survive"] == 0.0


def test_wrong_actions_and_threads_are_refused() -> None:
    env = MujocoVectorEnv("HalfCheetah-v5", 2)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"actions: expected shape \(2, 6\), got \(2, 1\)"):
        env.step(np.zeros((2, 1)))
    with pytest.raises(ValueError, match=r"num_threads: expected a positive integer, got 0"):
        MujocoVectorEnv("HalfCheetah-v5", 2, num_threads=0)


def test_threads_are_as_many_as_cores_that_may_be_used() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
    assert MujocoVectorEnv("Swimmer-v5", 1).num_threads == 1
