"""Tabular MDPs as environments: what is drawn has the exact means, and episodes end as they should."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from rlopt import PPO, make_envs
from rlopt.envs.finite_horizon import SingleCopy
from rlopt.envs.gymnasium_vector import GymnasiumEnvironments
from rlopt.envs.registration import ENTRY_POINTS
from rlopt.envs.sync import SyncEnvironments
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv

MDP = TabularMDP.random(num_states=4, num_terminal=1, num_objectives=2, seed=3)


def played(env: TabularVectorEnv, policy: np.ndarray, seed: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """One episode of every copy under `policy` [S, A]: returns [N, K], and (s, a, s') of every step taken, [n, 3]."""
    generator = np.random.default_rng(seed + 1)  # with the environment's own seed, the same numbers would serve twice
    states, _ = env.reset(seed=seed)
    going = np.ones(env.num_envs, bool)
    returns, moves = np.zeros((env.num_envs, 2)), []
    for t in range(env.horizon):
        actions = (generator.random(env.num_envs)[:, None] > policy.cumsum(1)[states]).sum(1)
        following, rewards, terminated, truncated, _ = env.step(actions)
        returns += env.mdp.gamma**t * rewards * going[:, None]
        moves.append(np.stack([states, actions, following], 1)[going])
        going &= ~(terminated | truncated)
        states = following
        if (terminated | truncated).any() and going.any():
            states, _ = env.reset(options={"reset_mask": terminated | truncated})
    assert not going.any()
    return returns, moves


def test_returns_and_transitions_have_the_exact_means() -> None:
    num = 20_000
    policy = MDP.softmax_policy(torch.linspace(-1, 1, 8, dtype=torch.float64))
    returns, moves = played(TabularVectorEnv(MDP, num), policy.numpy(), seed=0)
    errors = (returns.mean(0) - MDP.value(policy).numpy()) / (returns.std(0) / num**0.5)
    assert np.abs(errors).max() < 4
    counts = np.zeros((4, 2, 4))
    np.add.at(counts, tuple(np.concatenate(moves).T), 1)
    exact, visits = MDP.transitions.numpy()[:3], counts.sum(-1, keepdims=True)[:3]
    deviations = (counts[:3] - visits * exact) / np.sqrt(visits * exact * (1 - exact))
    assert np.abs(deviations).max() < 4
    assert counts[3].sum() == 0, "no step is taken in a terminal state"


def test_first_states_have_the_initial_distribution() -> None:
    states, _ = TabularVectorEnv(MDP, 20_000).reset(seed=0)
    exact = MDP.initial.numpy()
    counts = np.bincount(states, minlength=4)
    assert (np.abs(counts - 20_000 * exact) <= 4 * np.sqrt(20_000 * exact * (1 - exact))).all()


def test_an_episode_is_terminated_at_a_terminal_state_and_else_truncated_at_the_horizon() -> None:
    env = TabularVectorEnv(MDP, 500)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    env.reset(seed=0)
    steps, at_horizon = np.zeros(500, int), []
    for _ in range(30):
        states, rewards, terminated, truncated, infos = env.step(np.ones(500, np.int64))
        steps += 1
        assert rewards.shape == (500, 2)
        assert infos == {}
        np.testing.assert_array_equal(terminated, states == 3)
        np.testing.assert_array_equal(truncated, (steps == 4) & (states != 3))
        at_horizon += terminated[steps == 4].tolist()
        done = terminated | truncated
        before = states.copy()
        states, _ = env.reset(options={"reset_mask": done})
        np.testing.assert_array_equal(states[~done], before[~done])
        assert (states != 3).all()
        steps[done] = 0
    assert any(at_horizon), "terminated wins over truncated, and that was tried"


def test_an_ended_episode_cannot_be_stepped_on() -> None:
    env = TabularVectorEnv(TabularMDP.random(horizon=1), 2)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="reset_mask: the first reset"):
        env.reset(options={"reset_mask": np.array([True, False])})
    env.reset(seed=0)
    env.step(np.zeros(2, np.int64))
    env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="reset_mask: expected"):
        env.reset(options={"reset_mask": np.array([1, 0])})


def test_the_seed_fixes_all_that_happens_and_returned_arrays_stay_as_they_are() -> None:
    env = TabularVectorEnv(TabularMDP.random(num_states=20, horizon=50), 10)
    runs = []
    for seed in (0, 0, 1):
        states = [env.reset(seed=seed)[0]]
        states += [env.step(np.zeros(10, np.int64))[0] for _ in range(20)]
        runs.append(np.stack(states))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])
    assert len(np.unique(runs[0], axis=0)) > 15


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space", "ignore:.*Box observation space m..imum value is")
@pytest.mark.parametrize("env_id", ENTRY_POINTS)
def test_ids_make_one_environment_and_many(env_id: str) -> None:
    single = gym.make(env_id)
    assert isinstance(single.unwrapped, SingleCopy)
    if single.unwrapped.reward_space is None:  # Gymnasium's checker wants one reward
        check_env(single.unwrapped, skip_render_check=True)
    with pytest.raises(ValueError, match="one copy"):
        SingleCopy(type(single.unwrapped.vector_env)(_model(single.unwrapped), 2))
    many = make_envs(env_id, num_envs=3)
    assert isinstance(many, GymnasiumEnvironments)
    assert (many.num_envs, many.name, many.resets_on_next_step) == (3, env_id, False)
    assert isinstance(make_envs(env_id), SyncEnvironments)
    assert gym.spec(env_id).max_episode_steps is None


def _model(env: SingleCopy) -> object:
    return next(getattr(env.vector_env, name) for name in ("mdp", "problem", "bandit") if hasattr(env.vector_env, name))


def test_arguments_of_an_id_are_those_of_the_constructor() -> None:
    envs = make_envs("rlopt/RandomMDP-v0", 2, env_kwargs={"num_states": 5, "num_objectives": 3, "seed": 7})
    assert envs.env.mdp.rewards.shape == (5, 2, 3)
    assert torch.equal(envs.env.mdp.rewards, TabularMDP.random(num_states=5, num_objectives=3, seed=7).rewards)
    envs.reset(seed=0)
    assert envs.step(np.zeros(2, np.int64)).rewards.shape == (2, 3)
    single = gym.make("rlopt/RandomMDP-v0", num_objectives=3)
    single.reset(seed=0)
    assert single.step(0)[1].shape == (3,)
    with pytest.raises(ValueError, match="slip: expected"):
        gym.make("rlopt/Grid-v0", slip=-1.0)


def test_the_limit_that_the_collector_sees_is_the_horizon_and_counted_once() -> None:
    envs = make_envs("rlopt/Grid-v0", 2, env_kwargs={"size": 3, "horizon": 5, "goal": [2, 2]})
    envs.reset(seed=0)
    ends = [envs.step(np.zeros(2, np.int64)) for _ in range(10)]
    assert [step.truncated.all() for step in ends] == [False] * 4 + [True] + [False] * 4 + [True]
    assert not any(step.terminated.any() for step in ends)


def test_an_agent_learns_the_way_to_the_goal() -> None:
    grid = {"size": 3, "horizon": 8, "gamma": 0.9, "goal": (2, 2)}
    envs = make_envs("rlopt/Grid-v0", 16, env_kwargs=grid)
    agent = PPO("MlpPolicy", envs, n_steps=32, batch_size=128, gamma=0.9, learning_rate=3e-3, seed=0, device="cpu").learn(8192)
    mdp = TabularMDP.grid(**grid)  # type: ignore[arg-type]
    actions = agent.predict(np.arange(9), deterministic=True)[0]
    policy = torch.nn.functional.one_hot(torch.as_tensor(actions), 4).to(torch.float64)
    assert abs(float(mdp.value(policy)) - mdp.optimal_value()) < 1e-12
