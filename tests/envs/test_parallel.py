"""Environments in worker processes: the same as in this one, and errors that come back."""

from __future__ import annotations

import multiprocessing
from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlopt import EnvironmentFault, make_envs
from rlopt.envs.parallel import AsyncEnvironments
from tests.scripted_envs import RandomScript, ScriptedEnv, factories


class Breaks(ScriptedEnv):
    """Raises, or ends its process, when it is told to."""

    trouble = ""

    def step(self, action: Any) -> Any:
        if self.trouble == "raise":
            raise ZeroDivisionError("the simulator is unstable")
        if self.trouble == "exit":
            raise SystemExit(3)
        return super().step(action)


def test_workers_and_this_process_give_the_same_rollouts() -> None:
    makers = [lambda: gym.make("CartPole-v1")] * 3
    random = np.random.default_rng(0)
    with closing(make_envs(makers)) as sync, closing(AsyncEnvironments(makers, 2)) as workers:
        for seed in (7, None):
            np.testing.assert_array_equal(workers.reset(seed), sync.reset(seed))
            for t in range(80):
                actions = np.array([t % 2, (t // 2) % 2, 1])
                active = None if t < 30 or not (mask := random.random(3) < 0.5).any() else mask
                if t % 10 == 9:
                    rows = (random.permutation(3) < 2).nonzero()[0]
                    np.testing.assert_array_equal(workers.restart(rows), sync.restart(rows))
                one, other = workers.step(actions, active), sync.step(actions, active)
                for field in ("observations", "rewards", "terminated", "truncated"):
                    np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
                assert list(one.final_rows) == list(other.final_rows)
                if one.final_observations is not None:
                    np.testing.assert_array_equal(one.final_observations, other.final_observations)
                assert len(one.infos) == 3
                assert workers.episode_counters() == sync.episode_counters()


def test_a_worker_whose_environments_all_idle_is_left_alone() -> None:
    with closing(AsyncEnvironments([lambda n=n: Breaks(RandomScript(), n) for n in range(3)], num_workers=2)) as envs:
        envs.reset(seed=0)
        envs.set_attr("trouble", "raise", [2])
        first = envs.step(np.zeros(3, np.int64), np.array([False, True, False]))
        assert envs.get_attr("step_number", [0, 2]) == [0, 0]
        assert first.rewards[[0, 2]].tolist() == [0.0, 0.0]
        assert first.observations[1].any()
        with pytest.raises(EnvironmentFault, match="the simulator is unstable"):
            envs.step(np.zeros(3, np.int64), np.array([False, False, True]))


def test_attributes_and_faults_cross_the_processes() -> None:
    with closing(AsyncEnvironments([lambda n=n: Breaks(RandomScript(), n) for n in range(3)], num_workers=2)) as envs:
        assert envs.get_attr("environment", [2, 0]) == [2, 0]
        assert envs.call("get_wrapper_attr", ("environment",), {}, [1, 2]) == [1, 2]
        assert envs.render() == [None, None, None]
        envs.reset(seed=0)
        envs.set_attr("trouble", "raise", [2])
        with pytest.raises(
            EnvironmentFault, match=r"(?s)the worker of environment 2 failed.*ZeroDivisionError: the simulator is unstable"
        ):
            envs.step(np.zeros(3, np.int64))
        with pytest.raises(EnvironmentFault, match=r"the worker of environments? .* ended with exit code"):
            envs.step(np.zeros(3, np.int64))


def test_a_worker_that_dies_is_named_with_its_exit_code() -> None:
    with closing(AsyncEnvironments([lambda: Breaks(RandomScript(), 0)], name="Fragile-v0")) as envs:
        envs.reset(seed=0)
        envs.set_attr("trouble", "exit", [0])
        with pytest.raises(EnvironmentFault, match=r"Fragile-v0: the worker of environments? .* ended with exit code 3"):
            envs.step(np.zeros(1, np.int64))


def test_a_callable_that_fails_in_a_worker_is_an_error_that_leaves_no_process_behind() -> None:
    def broken() -> gym.Env:
        raise FileNotFoundError("no model")

    makers = [*factories(RandomScript(), 1), broken]
    with pytest.raises(EnvironmentFault, match=r"(?s)the worker of environment 1 failed.*FileNotFoundError: no model"):
        AsyncEnvironments(makers, num_workers=2)
    assert not multiprocessing.active_children()
