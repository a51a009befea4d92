"""Agents of several objectives: what they reduce to with one, what is logged, saved and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlopt import MOPG, MOTSIVRPG, PPO, REINFORCE, SRVRPG
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.estimators import gae
from rlopt.objectives import Chebyshev, Lagrangian, UserUtility, WeightedSum, as_vector_utility
from tests.agents.test_reductions import every_environment, make, path
from tests.small_envs import Walk

ONE = TabularMDP.random(num_states=6, num_terminal=1, horizon=6, seed=2)
TWO = TabularMDP.random(num_states=6, num_terminal=1, horizon=6, seed=2, num_objectives=2)
WEIGHTS = (0.75, -0.5)


def agent_of(cls: Any, mdp: TabularMDP = TWO, **kwargs: Any) -> Any:
    common = {"seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    if cls is PPO:
        common |= {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
    return cls("MlpPolicy", TabularVectorEnv(mdp, 4), **{**common, **kwargs})


# ------------------------------------------------------------------ one objective: the agents that there were, to the bit


@every_environment
@pytest.mark.parametrize("radius", [0.05, 1e6])
def test_with_one_objective_motsivrpg_is_srvrpg_with_truncated_steps(env: str, radius: float) -> None:
    arguments = {"restart_every": 3, "num_small": 2, "step_size": 0.3, "radius": radius}
    expected = path(make(SRVRPG, env, **arguments))
    assert torch.equal(path(make(MOTSIVRPG, env, utility="identity", **arguments)), expected)
    assert torch.equal(path(make(MOTSIVRPG, env, utility="identity", batches="lagged", **arguments)), expected)
    assert not torch.equal(path(make(MOTSIVRPG, env, **{**arguments, "radius": radius / 2, "step_size": 0.2})), expected)


@every_environment
def test_with_one_objective_mopg_is_reinforce(env: str) -> None:
    assert torch.equal(path(make(MOPG, env, step_size=0.3)), path(make(REINFORCE, env, step_size=0.3)))
    normalised = path(make(REINFORCE, env, step_size=0.3, normalize=True))
    assert torch.equal(path(make(MOPG, env, step_size=0.3, step_rule="normalized")), normalised)


@pytest.mark.parametrize("normalize_rewards", [False, True])
def test_with_one_objective_ppo_with_a_utility_is_ppo(normalize_rewards: bool) -> None:
    arguments = {"normalize_rewards": normalize_rewards, "normalize_advantage": False}
    plain, weighed = (agent_of(PPO, ONE, utility=utility, **arguments).learn(256) for utility in (None, "identity"))
    same = torch.equal(plain.state.theta, weighed.state.theta)
    # With normalised rewards the advantages are put back to the scale of the environment's.
    assert same is not normalize_rewards
    plain, weighed = (agent_of(PPO, ONE, utility=utility, n_envs=4).learn(256) for utility in (None, "identity"))
    assert torch.equal(plain.state.theta, weighed.state.theta)


def test_a_linear_utility_makes_mopg_reinforce_on_the_weighted_reward() -> None:
    scalar = replace(TWO, rewards=TWO.rewards @ torch.tensor(WEIGHTS, dtype=torch.float64))
    expected = path(agent_of(REINFORCE, scalar, step_size=0.3))
    torch.testing.assert_close(path(agent_of(MOPG, utility=WEIGHTS, step_size=0.3)), expected, rtol=0, atol=1e-5)
    other = path(agent_of(MOPG, utility=(0.5, 0.5), step_size=0.3))
    assert not torch.allclose(other, expected, rtol=0, atol=1e-3)


# ------------------------------------------------------------------ PPO's vector critic


def test_ppo_has_a_value_for_every_objective_and_weighs_their_advantages() -> None:
    """Oracle: GAE of every objective by itself, then the weighted sum."""
    agent = agent_of(PPO, utility=WEIGHTS, gamma=0.9)
    rollout = agent.collector.steps(agent.state.theta, 16)
    weights = torch.tensor(WEIGHTS)
    batch = agent.advantages(agent.state.theta, rollout, weights)
    values, next_values = rollout.values(agent.functional.bind(agent.state.theta).critic)
    assert values.shape == (16, 4, 2)
    by_hand = [
        gae(rollout.rewards[..., k], values[..., k], next_values[..., k], rollout.discounts(0.9), rollout.traces(0.95))
        for k in range(2)
    ]
    valid = rollout.valid_rows()
    expected = (WEIGHTS[0] * by_hand[0] + WEIGHTS[1] * by_hand[1]).flatten()[valid]
    torch.testing.assert_close(batch.advantages, expected, rtol=1e-6, atol=1e-6)
    targets = torch.stack([a + values[..., k] for k, a in enumerate(by_hand)], -1).flatten(0, 1)[valid]
    torch.testing.assert_close(batch.targets, targets, rtol=1e-6, atol=1e-6)


def test_the_gradient_of_ppos_loss_with_a_vector_critic_is_autograds() -> None:
    """The closed form against the loss as the paper has it, with a value for each of two objectives."""
    thetas = []
    for closed_form in (True, False):
        agent = agent_of(PPO, utility=WEIGHTS, clip_range_vf=0.2, ent_coef=0.01)
        rollout = agent.collector.steps(agent.state.theta, 16)
        batch = agent.advantages(agent.state.theta, rollout, torch.tensor(WEIGHTS))
        type(agent.descent.module).closed_form, before = closed_form, type(agent.descent.module).closed_form
        try:
            thetas.append(agent.update(agent.state, batch, 1.0)[0].theta)
        finally:
            type(agent.descent.module).closed_form = before
    torch.testing.assert_close(*thetas, rtol=0, atol=1e-6)


@pytest.mark.parametrize("utility", ["chebyshev:0.5,0.5;ideal=4,4", WEIGHTS])
def test_ppo_climbs_a_utility(utility: Any) -> None:
    """f of the exact J, after 30 iterations, is past half of the way to the best that exact ascent finds."""
    agent = agent_of(PPO, utility=utility, n_steps=64, batch_size=64, n_epochs=8, learning_rate=3e-3, gamma=1.0)
    judge = as_vector_utility(utility)

    def value() -> float:
        chosen = agent.actor_critic.actor(torch.arange(TWO.num_states))
        policy = torch.stack([chosen.log_prob(torch.full((TWO.num_states,), a)) for a in range(TWO.num_actions)], -1).exp()
        return float(judge(undiscounted.value(policy.detach())))

    undiscounted, logits = replace(TWO, gamma=1.0), torch.zeros(TWO.num_parameters, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([logits], 0.1, maximize=True)
    for _ in range(200):
        optimiser.zero_grad()
        objectives = undiscounted.value(undiscounted.softmax_policy(logits))
        (objectives @ judge.value_and_gradient(objectives)[1]).backward()
        optimiser.step()
    best, before = float(judge(objectives.detach())), value()
    agent.learn(30 * 256)
    assert before + 0.5 * (best - before) < value() <= best + 0.01


# ------------------------------------------------------------------ what a user sees


@pytest.mark.parametrize("cls", [MOPG, MOTSIVRPG, PPO])
def test_a_loaded_agent_goes_on_as_the_saved_one(cls: Any, tmp_path: Any) -> None:
    arguments = {"utility": Lagrangian(0, (None, 1.0), step_size=0.1), **({} if cls is PPO else {"num_episodes": 4})}
    agent = agent_of(cls, **arguments).learn(200)
    assert len(agent.state.multipliers) == 2
    agent.save(tmp_path / "agent.zip")
    loaded = cls.load(tmp_path / "agent.zip", env=TabularVectorEnv(TWO, 4))
    for name in ("theta", "objectives", "multipliers"):
        assert torch.equal(getattr(loaded.state, name), getattr(agent.state, name))
    if cls is not PPO:
        assert torch.equal(path(loaded, 2), path(agent, 2))
    assert str(loaded.utility) == str(agent.utility)


@pytest.mark.parametrize("cls", [MOPG, MOTSIVRPG, PPO])
def test_objectives_slopes_and_utility_are_logged(cls: Any) -> None:
    agent = agent_of(cls, utility=Chebyshev((0.5, 0.5), ideal=(3.0, 3.0), augmentation=0.1))
    _, metrics = agent.step(agent.state, agent.collector)
    assert {"utility", "objective_0", "objective_1", "slope_0", "slope_1"} <= set(metrics)


@pytest.mark.parametrize("cls", [MOPG, MOTSIVRPG, PPO])
@pytest.mark.parametrize(
    ("mdp", "utility", "message"),
    [
        (TWO, WeightedSum((1.0, 1.0, 1.0)), "utility"),
        (ONE, WeightedSum((1.0, 1.0)), "utility"),
        (TWO, "identity", "utility"),
        (TWO, "chebishev:1,1;ideal=0,0", "did you mean"),
        (TWO, UserUtility(lambda returns: (returns - returns).sqrt().sum()), "utility"),
    ],
)
def test_utilities_that_do_not_fit_are_named(cls: Any, mdp: TabularMDP, utility: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        agent_of(cls, mdp, utility=utility).learn(100)


class Undeclared(gym.Env):
    """Two rewards a step, and no word about it."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 5
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.zeros(1, np.float32), np.array([action, 1.0 - action], np.float32), self.left == 0, False, {}


def test_the_number_of_objectives_can_be_given() -> None:
    utility = UserUtility(lambda returns: (returns + 1.0).log().sum())
    with pytest.raises(ValueError, match="num_objectives"):
        PPO("MlpPolicy", Undeclared, n_steps=16, batch_size=16, utility=utility, device="cpu")
    PPO("MlpPolicy", Undeclared, n_steps=16, batch_size=16, utility=utility, num_objectives=2, device="cpu").learn(32)
    MOPG("MlpPolicy", Undeclared, utility=utility, num_episodes=4, device="cpu").learn(40)
    with pytest.raises(ValueError, match="objectives"):
        PPO("MlpPolicy", Undeclared, n_steps=16, batch_size=16, utility=(1.0, 1.0), num_objectives=3, device="cpu")


def test_memory_and_a_utility_exclude_each_other_where_they_must() -> None:
    with pytest.raises(ValueError, match="memory"):
        PPO("MlpPolicy", Walk, utility="identity", memory="s2pg", device="cpu")
    with pytest.raises(ValueError, match="ent_coef"):
        MOPG("MlpPolicy", Walk, utility="identity", memory="s2pg", ent_coef=0.1, device="cpu")
    MOPG("MlpPolicy", Walk, utility="identity", memory="s2pg", memory_size=4, num_episodes=2, device="cpu").learn(10)
