"""Environments stepped in this process: seeds of episodes, spaces, copies."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rlopt import EnvironmentFault, make_envs
from rlopt.envs import episode_seed
from rlopt.envs.sync import SyncEnvironments
from tests.scripted_envs import Episode, RandomScript, ScriptedEnv, factories


def played(envs: SyncEnvironments, seed: int, num_steps: int) -> list[np.ndarray]:
    """Everything that is seen of `num_steps` steps with action t mod 2."""
    seen = [envs.reset(seed)]
    for t in range(num_steps):
        step = envs.step(np.full(envs.num_envs, t % 2))
        seen += [step.observations, step.rewards, step.terminated, step.truncated]
        seen += [] if step.final_observations is None else [step.final_observations]
    return seen


def test_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    first, again, other = (played(make_envs("CartPole-v1", 2, "sync"), seed, 60) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


def test_a_second_reset_with_the_seed_begins_again_and_one_without_goes_on() -> None:
    envs = make_envs("CartPole-v1", 2, "sync")
    first = envs.reset(seed=5)
    second = envs.reset()
    assert not np.array_equal(first, second)
    assert np.array_equal(envs.reset(seed=5), first)
    assert np.array_equal(envs.reset(), second)


def test_every_episode_can_be_replayed_from_run_seed_environment_and_number() -> None:
    envs = make_envs("CartPole-v1", 2, "sync")
    starts: dict[int, list[np.ndarray]] = {0: [], 1: []}
    for n, observation in enumerate(envs.reset(seed=11)):
        starts[n].append(observation)
    for t in range(100):
        step = envs.step(np.full(2, t % 2))
        for n in step.final_rows:
            starts[n].append(step.observations[n])
    alone = gym.make("CartPole-v1")
    assert min(len(found) for found in starts.values()) >= 3
    for n, found in starts.items():
        for number, observation in enumerate(found):
            np.testing.assert_array_equal(alone.reset(seed=episode_seed(11, n, number))[0], observation)


def test_episode_seeds_fit_31_bits_and_do_not_collide() -> None:
    seeds = [episode_seed(run, n, e) for run in range(3) for n in range(10) for e in range(100)]
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_environments_without_a_run_seed_differ_from_run_to_run() -> None:
    assert not np.array_equal(make_envs("CartPole-v1").reset(), make_envs("CartPole-v1").reset())


def test_an_environment_that_reuses_its_array_is_copied_before_the_reset() -> None:
    script = RandomScript()
    envs = make_envs(factories(script, 1, reuse=True))
    assert isinstance(envs, SyncEnvironments)
    first = envs.reset(seed=0)
    kept = first.copy()
    number = 0
    for _ in range(30):
        step = envs.step(np.zeros(1, np.int64))
        if len(step.final_rows):
            np.testing.assert_array_equal(step.final_observations[0], script.episode(0, number).observations[-1])
            number += 1
            np.testing.assert_array_equal(step.observations[0], script.episode(0, number).observations[0])
    np.testing.assert_array_equal(first, kept)


def test_environments_that_differ_in_their_spaces_are_refused() -> None:
    def other() -> gym.Env:
        return ScriptedEnv(RandomScript(), 0, action_space=spaces.Discrete(5))

    with pytest.raises(ValueError, match=r"environment 1 has action_space Discrete\(5\), but environment 0 has Discrete\(2\)"):
        make_envs([lambda: ScriptedEnv(RandomScript(), 0), other])


class PaysVectors(ScriptedEnv):
    def __init__(self, shape: tuple[int, ...]):
        super().__init__(RandomScript(), 0)
        self.shape = shape

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.full(self.shape, reward), *rest


def test_rewards_may_be_numbers_arrays_of_one_or_vectors_and_nothing_else() -> None:
    for shape, expected in (((), (2,)), ((1,), (2,)), ((3,), (2, 3))):
        envs = make_envs([lambda shape=shape: PaysVectors(shape)] * 2)
        envs.reset()
        assert envs.step(np.zeros(2, np.int64)).rewards.shape == expected
    envs = make_envs([lambda: PaysVectors((2, 2))] * 2)
    envs.reset()
    with pytest.raises(EnvironmentFault, match=r"rewards have shape \(2, 2, 2\), expected"):
        envs.step(np.zeros(2, np.int64))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_environments_that_are_not_active_are_not_stepped(shape: tuple[int, ...]) -> None:
    envs = make_envs([lambda: PaysVectors(shape)] * 3)
    assert isinstance(envs, SyncEnvironments)
    first = envs.reset(seed=0)
    for env in envs.envs:
        env.number, env.episode = 9, Episode(np.eye(6, 3, dtype=np.float32), np.ones(5), True, False)
    step = envs.step(np.zeros(3, np.int64), np.array([True, False, True]))
    assert [env.step_number for env in envs.envs] == [1, 0, 1]
    assert step.observations.shape == first.shape
    assert step.rewards.shape == (3, *shape)
    np.testing.assert_array_equal(step.observations[[0, 2]], np.eye(6, 3)[[1, 1]])
    assert step.rewards.reshape(3, -1)[:, 0].tolist() == [1.0, 0.0, 1.0]
    for _ in range(4):
        step = envs.step(np.zeros(3, np.int64), np.array([False, False, True]))
    assert step.terminated.tolist() == [False, False, True]
    assert list(step.final_rows) == [2]
    np.testing.assert_array_equal(step.final_observations, np.eye(6, 3)[[5]])


def test_a_restart_begins_the_next_episodes_of_some_environments_and_leaves_the_others_alone() -> None:
    envs, other = (make_envs([lambda: gym.make("CartPole-v1")] * 3) for _ in range(2))
    envs.reset(seed=4)
    other.reset(seed=4)
    begun = other.reset()
    np.testing.assert_array_equal(envs.restart(np.array([0, 2])), begun[[0, 2]])
    assert envs.episode_counters() == {"run_seed": 4, "episodes": [2, 1, 2]}


def test_attributes_and_methods_of_single_environments_are_reached_through_wrappers() -> None:
    envs = make_envs([lambda n=n: gym.wrappers.TimeLimit(ScriptedEnv(RandomScript(), n), 5) for n in range(3)])
    assert envs.get_attr("environment", [0, 2]) == [0, 2]
    envs.set_attr("reuse", True, [1])
    assert envs.get_attr("reuse", [0, 1, 2]) == [False, True, False]
    assert envs.call("get_wrapper_attr", ("environment",), {}, [1, 2]) == [1, 2]
    envs.close()
    envs.close()
