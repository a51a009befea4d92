"""Any environments seen as an SB3 VecEnv, for its callbacks and `evaluate_policy`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from rlopt import make_envs
from rlopt.envs.facade import VecEnvFacade, as_vec_env
from tests.scripted_envs import RandomScript, ScriptedEnv, factories
from tests.test_episode_ends import MAKERS, make_agent

SCRIPT = RandomScript()


@pytest.mark.parametrize("kind", MAKERS)
def test_episodes_come_as_sb3_gives_them(kind: str) -> None:
    with closing(MAKERS[kind](SCRIPT, 2)) as envs:
        venv, number, step = as_vec_env(envs), [0, 0], [0, 0]
        observations = venv.reset()
        after_end = [False, False]
        for _ in range(40):
            for n in range(2):
                if not (after_end[n] and envs.resets_on_next_step):
                    np.testing.assert_array_equal(observations[n], SCRIPT.episode(n, number[n]).observations[step[n]])
            observations, rewards, dones, infos = venv.step(np.zeros(2, np.int64))
            assert rewards.dtype == np.float32
            for n in range(2):
                if after_end[n] and envs.resets_on_next_step:
                    assert (rewards[n], dones[n]) == (0.0, False)
                    after_end[n] = False
                    continue
                episode = SCRIPT.episode(n, number[n])
                assert rewards[n] == np.float32(episode.rewards[step[n]])
                step[n] += 1
                assert dones[n] == (step[n] == len(episode))
                after_end[n] = bool(dones[n])
                if dones[n]:
                    np.testing.assert_array_equal(infos[n]["terminal_observation"], episode.observations[-1])
                    assert infos[n]["TimeLimit.truncated"] == (episode.truncated and not episode.terminated)
                    if kind != "sb3 dummy":
                        assert infos[n]["episode"]["l"] == len(episode)
                        assert infos[n]["episode"]["r"] == pytest.approx(episode.rewards.sum(), abs=1e-6)
                    number[n], step[n] = number[n] + 1, 0


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "sb3 dummy"])
def test_evaluate_policy_reports_the_scripts_episodes(kind: str) -> None:
    with closing(MAKERS[kind](SCRIPT, 2)) as envs:
        returns, lengths = evaluate_policy(make_agent(), as_vec_env(envs), 6, return_episode_rewards=True)
    episodes = [SCRIPT.episode(n, number) for n in range(2) for number in range(3)]
    assert sorted(lengths) == sorted(len(episode) for episode in episodes)
    np.testing.assert_allclose(sorted(returns), sorted(episode.rewards.sum() for episode in episodes), atol=1e-6)


def test_an_sb3_environment_is_its_own_facade() -> None:
    venv = DummyVecEnv(factories(SCRIPT, 2))
    assert as_vec_env(make_envs(venv)) is venv
    facade = as_vec_env(make_envs(factories(SCRIPT, 2)))
    assert isinstance(facade, VecEnvFacade)


def test_spaces_and_observations_are_the_environments_own() -> None:
    class Shows(ScriptedEnv):
        def __init__(self) -> None:
            super().__init__(SCRIPT, 0)
            self.observation_space = spaces.Dict(
                {"n": spaces.Discrete(10, start=3), "x": spaces.Tuple((self.observation_space,))}
            )

        def _shown(self) -> Any:
            return {"n": self.step_number + 3, "x": (super()._shown(),)}

    venv = as_vec_env(make_envs([Shows] * 2))
    assert venv.observation_space == Shows().observation_space
    observations = venv.reset()
    assert observations["n"].tolist() == [3, 3]
    np.testing.assert_array_equal(observations["x"][0][0], SCRIPT.episode(0, 0).observations[0])


def test_seeds_act_at_the_next_reset_once() -> None:
    venv, again = (as_vec_env(make_envs("CartPole-v1", 2, "sync")) for _ in range(2))
    venv.seed(3), again.seed(3)
    first = venv.reset()
    np.testing.assert_array_equal(first, again.reset())
    assert not np.array_equal(first, venv.reset())


def test_attributes_methods_and_wrappers_are_those_of_single_environments() -> None:
    venv = as_vec_env(make_envs([lambda n=n: gym.wrappers.TimeLimit(ScriptedEnv(SCRIPT, n), 5) for n in range(3)]))
    assert venv.get_attr("environment") == [0, 1, 2]
    assert venv.get_attr("environment", 1) == [1]
    venv.set_attr("reuse", True, [0, 2])
    assert venv.get_attr("reuse") == [True, False, True]
    assert venv.env_method("get_wrapper_attr", "environment", indices=[2]) == [2]
    assert venv.env_is_wrapped(gym.wrappers.TimeLimit) == [True] * 3
    assert venv.env_is_wrapped(gym.wrappers.FlattenObservation) == [False] * 3
    assert venv.env_is_wrapped(Monitor) == [True] * 3
    with pytest.raises(AttributeError):
        venv.get_attr("nothing_of_that_name")
    venv.close()
    venv.close()


def test_frames_are_rendered_where_there_are_any() -> None:
    venv = as_vec_env(make_envs("CartPole-v1", 1, "sync"))
    venv.reset()
    assert venv.get_images()[0].ndim == 3
    assert as_vec_env(make_envs(factories(SCRIPT, 2))).get_images() == [None, None]
