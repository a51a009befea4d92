"""Rows that PPO must not stumble over: none at all, frozen layers, policies that rlopt cannot see through."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.policies import ActorCriticPolicy

from rlopt import PPO
from rlopt.presets import preset_values


def test_a_rollout_of_reset_rows_alone_changes_nothing():
    envs = SyncVectorEnv([lambda: gym.make("Pendulum-v1", max_episode_steps=2)] * 2, autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = PPO("MlpPolicy", envs, n_steps=1, batch_size=2, n_epochs=1, seed=0, device="cpu")
    agent.learn(6)  # rows: step, step, reset, step, step
    assert agent.num_timesteps >= 6
    assert torch.isfinite(agent.state.theta).all()


def test_frozen_parameters_stay_where_they_are_and_the_others_move():
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, seed=0, device="cpu").learn(64)
    for parameter in agent.policy.mlp_extractor.policy_net.parameters():
        parameter.requires_grad = False
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(128)
    after = agent.policy.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("mlp_extractor.policy_net"), name


def test_layers_frozen_by_the_policy_itself_stay_where_they_are():
    class Frozen(ActorCriticPolicy):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.value_net.weight.requires_grad = False

    agent = PPO(Frozen, "CartPole-v1", n_steps=64, batch_size=64, seed=0, device="cpu")
    before = agent.policy.value_net.weight.clone()
    agent.learn(128)
    assert torch.equal(agent.policy.value_net.weight, before)


@pytest.mark.parametrize("name", ["extract_features", "predict", "_predict", "forward"])
def test_a_policy_whose_override_would_be_ignored_is_refused(name):
    cls = type("Other", (ActorCriticPolicy,), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(ValueError, match=f"Other overrides {name}"):
        PPO(cls, "CartPole-v1", n_steps=64)


def test_lbfgs_is_refused():
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, policy_kwargs={"optimizer_class": torch.optim.LBFGS})
    with pytest.raises(ValueError, match="optimizer_class"):
        agent.learn(64)


def make_pendulum():
    return gym.make("Pendulum-v1")


@pytest.mark.parametrize("env", ["Pendulum-v1", make_pendulum, [make_pendulum] * 2], ids=["id", "callable", "list"])
def test_presets_look_at_what_the_environment_is(env):
    assert preset_values("ppo", "cleanrl", env)["n_envs"] == 1  # the continuous one
    assert preset_values("ppo", "tuned", env)["gamma"] == 0.9


def test_a_preset_leaves_the_number_of_environments_to_an_environment_object():
    agent = PPO("MlpPolicy", gym.make("CartPole-v1"), preset="tuned", batch_size=32)
    assert (agent.n_envs, agent.n_steps) == (1, 32)


def test_a_live_gamma_reaches_the_reward_normaliser():
    agent = PPO("MlpPolicy", "Pendulum-v1", n_steps=16, batch_size=16, normalize_rewards=True, device="cpu")
    agent.gamma = 0.5
    agent.learn(16)
    assert agent.reward_normalizer.gamma == 0.5


def test_stepping_the_training_environments_by_hand_begins_new_episodes_at_the_next_learn():
    envs = SyncVectorEnv([lambda: gym.make("CartPole-v1")] * 3, autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = PPO("MlpPolicy", envs, n_steps=16, batch_size=48, seed=0, device="cpu").learn(48)
    env = agent.get_env()
    env.reset()
    for _ in range(12):
        env.step(np.ones(3, np.int64))
    agent.learn(48, reset_num_timesteps=False)
    assert (agent.statistics.lengths <= 17).all()
