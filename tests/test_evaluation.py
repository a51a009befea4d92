"""Vector returns of whole episodes, on every way that environments reset, without touching the agent's training."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rlopt import PPO, RecurrentPPO
from rlopt.evaluation import evaluate_objectives

BOX = spaces.Box(-10.0, 10.0, (1,), np.float32)


class Countdown(gym.Env):
    """Episodes of 1 to 5 steps, drawn at the reset or fixed; step t = 0, 1, … pays (1, t, last action), or 1."""

    observation_space, action_space = BOX, BOX

    def __init__(self, length=None, vector=True):
        self.length, self.vector = length, vector
        self.reward_space = spaces.Box(-np.inf, np.inf, (3,)) if vector else None

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left, self.time = self.length or int(self.np_random.integers(1, 6)), 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        reward = np.array([1.0, self.time, float(action[0])]) if self.vector else 1.0
        self.left, self.time = self.left - 1, self.time + 1
        return np.full(1, self.time, np.float32), reward, self.left == 0, False, {}


def agent(**kwargs):
    return PPO("MlpPolicy", lambda: Countdown(vector=False), n_steps=16, batch_size=16, n_epochs=1, seed=0, **kwargs)


def one(**kwargs):
    return Countdown(**kwargs)


def several(**kwargs):
    return [lambda: Countdown(**kwargs)] * 3


def next_step(**kwargs):
    vector = pytest.importorskip("mo_gymnasium.wrappers.vector")
    return vector.MOSyncVectorEnv([lambda: Countdown(**kwargs)] * 3)


@pytest.mark.parametrize("make", [one, several, next_step])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_returns_are_those_of_whole_episodes(make, gamma):
    result = evaluate_objectives(agent(), make(), 40, seed=3, gamma=gamma)
    assert result.returns.shape == (40, 3)
    assert set(result.lengths) == {1, 2, 3, 4, 5}
    for total, length in zip(result.returns, result.lengths):
        assert total[0] == pytest.approx(sum(gamma**t for t in range(length)))
        assert total[1] == pytest.approx(sum(gamma**t * t for t in range(length)))
    assert result.mean == pytest.approx(result.returns.mean(0))
    assert result.standard_error == pytest.approx(result.returns.std(0, ddof=1) / np.sqrt(40))


def test_one_reward_is_one_objective():
    result = evaluate_objectives(agent(), [lambda: Countdown(vector=False)] * 2, 7)
    assert result.returns.shape == (7, 1)
    assert (result.returns[:, 0] == result.lengths).all()


def test_short_episodes_are_not_favoured():
    """Each environment plays its share, whoever is quicker."""
    envs = [lambda: Countdown(1), lambda: Countdown(5)]
    assert sorted(evaluate_objectives(agent(), envs, 10).lengths) == [1] * 5 + [5] * 5


@pytest.mark.parametrize("make", [several, next_step])
def test_memory_begins_anew_with_each_episode(make):
    """What an agent with memory does in an episode depends on nothing before it: all episodes of three steps are alike."""
    remembering = RecurrentPPO("MlpLstmPolicy", lambda: Countdown(vector=False), n_steps=16, batch_size=16, seed=0)
    remembering.policy.action_net.weight.data *= 100.0
    alone = evaluate_objectives(remembering, Countdown(3), 1).returns
    returns = evaluate_objectives(remembering, make(length=3), 9).returns
    assert returns == pytest.approx(np.tile(alone, (9, 1)), abs=1e-5)
    assert abs(alone[0, 2]) > 0.01


def test_the_same_seed_gives_the_same_episodes_and_training_goes_on_as_if_nothing_had_happened():
    disturbed, undisturbed = agent(), agent()
    for each in (disturbed, undisturbed):
        each.learn(32)
    first, second = (evaluate_objectives(disturbed, several(), 20, deterministic=True, seed=5) for _ in range(2))
    assert (first.returns == second.returns).all()
    assert (evaluate_objectives(disturbed, several(), 20, seed=6).lengths != first.lengths).any()
    evaluate_objectives(disturbed, several(), 5, deterministic=False)
    for each in (disturbed, undisturbed):
        each.learn(32, reset_num_timesteps=False)
    assert (disturbed.state.theta == undisturbed.state.theta).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((one(), 0), "num_episodes: expected a positive integer, got 0"),
        ((one(), 1, True, None, 1.5), r"gamma: expected a number in \[0, 1\], got 1.5"),
        (("CartPole-v1", 1), "env: the observation space of CartPole-v1 is"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        evaluate_objectives(agent(), *arguments)
