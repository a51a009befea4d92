"""Agents learn. Thresholds are far from the noise; seeds are fixed."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy

from rlopt import PPO


class Copy(gym.Env[Any, Any]):
    """Pays 1 for the action that the observation names, in episodes of ten steps: the best return is 10."""

    def __init__(self, action_space: spaces.Space):
        self.action_space = action_space
        self.observation_space = spaces.Box(-1.0, 1.0, (2,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        target = self.state[0]
        reward = (
            float(action == (target > 0))
            if isinstance(self.action_space, spaces.Discrete)
            else 1.0 - abs(float(action[0]) - target)
        )
        return self._observe(), reward, self.steps == 10, False, {}

    def _observe(self) -> Any:
        self.state = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.state


@pytest.mark.parametrize(
    ("action_space", "threshold"),
    [(spaces.Discrete(2), 9.5), (spaces.Box(-1.0, 1.0, (1,)), 9.0)],
    ids=["discrete", "continuous"],
)
def test_ppo_learns_to_copy_in_a_few_thousand_steps(action_space, threshold):
    """A random policy has about 5 of 10 with two actions; with a continuous one an untrained mean has 5."""
    agent = PPO(
        "MlpPolicy",
        [lambda: Copy(action_space)] * 4,
        n_steps=128,
        batch_size=128,
        learning_rate=3e-3,
        gamma=0.5,
        seed=0,
        device="cpu",
    )
    before = evaluate_policy(agent, agent.get_env(), 20)[0]
    agent.learn(8_000)
    after = evaluate_policy(agent, agent.get_env(), 20)[0]
    assert before < threshold < after


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_solves_cartpole_with_the_tuned_preset(seed):
    agent = PPO("MlpPolicy", "CartPole-v1", preset="tuned", seed=seed, device="cpu").learn(100_000)
    assert evaluate_policy(agent, agent.get_env(), 50)[0] >= 475.0
