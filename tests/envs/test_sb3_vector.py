"""Stable-Baselines3's own vector environments and wrappers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from rlopt import PPO, make_envs
from tests.scripted_envs import RandomScript, ScriptedEnv, factories

SCRIPT = RandomScript()


def test_the_same_instance_n_times_is_refused_by_sb3_itself() -> None:
    env = ScriptedEnv(SCRIPT, 0)
    with pytest.raises(ValueError, match="instance"):
        DummyVecEnv([lambda: env] * 2)


def test_seeds_act_at_the_next_reset() -> None:
    first = make_envs(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2))
    again = make_envs(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2))
    np.testing.assert_array_equal(first.reset(seed=4), again.reset(seed=4))
    assert not np.array_equal(first.reset(seed=4), again.reset(seed=5))


def test_discrete_actions_arrive_with_their_start() -> None:
    taken: list[int] = []

    class Records(ScriptedEnv):
        def step(self, action: Any) -> Any:
            assert self.action_space.contains(action)
            taken.append(int(action))
            return super().step(action)

    venv = DummyVecEnv([lambda: Records(SCRIPT, 0, action_space=spaces.Discrete(3, start=5))])
    agent = PPO("MlpPolicy", venv, n_steps=40, batch_size=40, n_epochs=1, seed=0, device="cpu").learn(40)
    assert set(taken) == {5, 6, 7}
    assert int(agent.predict(np.zeros(3, np.float32))[0]) in {5, 6, 7}


def test_monitors_account_wins_and_without_one_the_collectors_is_used() -> None:
    class PaysTwice(gym.RewardWrapper):
        def reward(self, reward: Any) -> float:
            return 2.0 * reward

    makers = {
        "monitor inside": DummyVecEnv([lambda: PaysTwice(Monitor(ScriptedEnv(SCRIPT, 0)))]),
        "none": DummyVecEnv([lambda: PaysTwice(ScriptedEnv(SCRIPT, 0))]),
        "vec monitor": VecMonitor(DummyVecEnv([lambda: PaysTwice(ScriptedEnv(SCRIPT, 0))])),
    }
    real = [float(SCRIPT.episode(0, number).rewards.sum()) for number in range(5)]
    for name, venv in makers.items():
        agent = PPO("MlpPolicy", venv, n_steps=40, batch_size=40, n_epochs=1, seed=0, device="cpu").learn(40)
        assert agent.environments.monitored == (name != "none")
        returns = [episode["r"] for episode in agent.ep_info_buffer][:5]
        np.testing.assert_allclose(returns, np.array(real) * (1 if name == "monitor inside" else 2), atol=1e-5)


def test_wrappers_apply_and_vec_normalize_is_found() -> None:
    venv = VecNormalize(make_vec_env("CartPole-v1", n_envs=2), gamma=0.99)
    agent = PPO("MlpPolicy", venv, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(64)
    assert agent.get_vec_normalize_env() is venv
    assert venv.obs_rms.count > 60
    with pytest.warns(UserWarning, match=r"gamma=0.9.*gamma=0.99|gamma=0.99.*gamma=0.9"):
        PPO("MlpPolicy", venv, gamma=0.9, device="cpu")


def test_stacked_frames_keep_their_final_observation() -> None:
    envs = make_envs(VecFrameStack(DummyVecEnv(factories(SCRIPT, 2)), 2))
    envs.reset()
    number = [0, 0]
    for _ in range(20):
        step = envs.step(np.zeros(2, np.int64))
        for i, row in enumerate(step.final_rows):
            episode = SCRIPT.episode(int(row), number[row])
            np.testing.assert_array_equal(step.final_observations[i][3:], episode.observations[-1])
            number[row] += 1
            np.testing.assert_array_equal(step.observations[row][:3], 0.0)


def test_attributes_and_methods_of_single_environments_are_reached() -> None:
    envs = make_envs(DummyVecEnv(factories(SCRIPT, 3)))
    assert envs.get_attr("environment", [2, 0]) == [2, 0]
    envs.set_attr("reuse", True, [1])
    assert envs.get_attr("reuse", [0, 1, 2]) == [False, True, False]
    assert envs.call("get_wrapper_attr", ("environment",), {}, [1]) == [1]
    envs.close()
    envs.close()
