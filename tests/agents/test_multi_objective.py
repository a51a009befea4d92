"""Agents of several objectives: what they reduce to with one, what is logged, saved and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rlopt import MOPG, MOTSIVRPG, NVRPG, PPO, REINFORCE, SRVRPG, RecurrentPPO, make_envs
from rlopt.envs.preferences import Preferences
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
    # With normalised rewards the advantages are put back to the scale of the environment's.
    assert torch.equal(plain.state.theta, weighed.state.theta) is not normalize_rewards
    plain, weighed = (agent_of(PPO, ONE, utility=utility).learn(256) for utility in (None, "identity"))
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


def vector_env(num_objectives: int) -> TabularVectorEnv:
    shape = {"num_states": 6, "num_terminal": 1, "horizon": 6, "seed": 2}
    return TabularVectorEnv(TabularMDP.random(**shape, num_objectives=None if num_objectives == 1 else num_objectives), 4)


@pytest.mark.parametrize("cls", [PPO, RecurrentPPO, REINFORCE, NVRPG, MOPG])
def test_agents_of_one_reward_refuse_environments_that_announce_several(cls: Any) -> None:
    message = {MOPG: "env: it pays 2 rewards a step, and the utility is one of 1"}.get(
        cls, rf"env: it pays 2 rewards a step and {cls.__name__} maximises one; use PPO or MOPG with utility=, such as utility="
    )
    with pytest.raises(ValueError, match=message):
        agent_of(cls, TWO)
    agent = agent_of(cls, ONE)
    with pytest.raises(ValueError, match=message):
        agent.set_env(vector_env(2))
    agent.set_env(vector_env(1))


@pytest.mark.parametrize("cls", [PPO, MOPG])
@pytest.mark.parametrize("utility", ["0.5,0.5", "fairness:100", "preferences"])
def test_an_environment_of_another_number_of_rewards_is_refused_when_it_is_set(cls: Any, utility: str) -> None:
    if cls is MOPG and utility == "preferences":
        return
    mine = {"policy_kwargs": None, "n_steps": 16, "batch_size": 32} if cls is PPO else {"num_episodes": 4}
    policy = "MultiInputPolicy" if utility == "preferences" else "MlpPolicy"
    agent = cls(policy, vector_env(2), utility=utility, seed=0, device="cpu", **mine)
    if cls is MOPG and utility.startswith("fairness"):  # of any number
        agent.set_env(vector_env(3))
        return
    for other in (1, 3) if utility == "0.5,0.5" else (3,):
        if other == 1:  # which says nothing: the first rewards do
            agent.set_env(vector_env(1))
            with pytest.raises(ValueError, match="env: it pays 1 reward a step, and the utility is one of 2"):
                agent.learn(64)
            continue
        with pytest.raises(ValueError, match=r"env: it pays 3 rewards a step, and (the utility is one of|num_objectives is) 2"):
            agent.set_env(vector_env(other))
    agent.set_env(vector_env(2))
    agent.learn(64)


class Declared(Undeclared):
    reward_space = gym.spaces.Box(0, 1, (2,), np.float32)


class Summed(gym.Wrapper):
    """A user's own wrapper, which makes one reward of two and does not say so."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float(reward.sum()), *rest


@pytest.mark.parametrize(("cls", "utility"), [(PPO, None), (PPO, "identity"), (MOPG, "identity"), (REINFORCE, None)])
def test_a_wrapper_that_may_sum_rewards_is_not_refused_before_it_has_paid(cls: Any, utility: str | None) -> None:
    arguments: dict[str, Any] = {"utility": utility} if utility else {}
    arguments |= {"n_steps": 16, "batch_size": 16} if cls is PPO else {"num_episodes": 4}
    cls("MlpPolicy", lambda: Summed(Declared()), device="cpu", seed=0, **arguments).learn(20)
    with pytest.raises(ValueError, match="env: it pays 2 rewards a step"):
        cls("MlpPolicy", Declared, device="cpu", seed=0, **arguments)


def test_memory_and_a_utility_exclude_each_other_where_they_must() -> None:
    with pytest.raises(ValueError, match="memory"):
        PPO("MlpPolicy", Walk, utility="identity", memory="s2pg", device="cpu")
    with pytest.raises(ValueError, match="ent_coef"):
        MOPG("MlpPolicy", Walk, utility="identity", memory="s2pg", ent_coef=0.1, device="cpu")
    MOPG("MlpPolicy", Walk, utility="identity", memory="s2pg", memory_size=4, num_episodes=2, device="cpu").learn(10)


# ------------------------------------------------------------------ constraints, Adam, normalisation, refusals


class Silent(Undeclared):
    """Episodes longer than a rollout: no return is known for a while."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        result = super().reset(seed=seed)
        self.left = 40
        return result


def test_before_an_episode_has_ended_ppo_weighs_all_alike_and_multipliers_wait() -> None:
    for utility in ("fairness:0.001", Lagrangian(0, (None, 100.0), step_size=0.1)):
        agent = PPO("MlpPolicy", Silent, n_steps=16, batch_size=16, utility=utility, num_objectives=2, device="cpu")
        state = agent.state
        for _ in range(2):  # 32 of 40 steps
            state, weights, metrics = agent.weighed(state, agent.collector.steps(state.theta, 16))
            assert weights.tolist() == [0.5, 0.5]
            assert not len(state.multipliers)
            assert metrics == {}
        state, weights, metrics = agent.weighed(state, agent.collector.steps(state.theta, 16))
        assert weights.tolist() != [0.5, 0.5]
        assert "utility" in metrics


@pytest.mark.parametrize("cls", [MOPG, MOTSIVRPG])
@pytest.mark.parametrize("criterion", ["ser", "esr"])
def test_multipliers_ascend_by_what_is_violated_and_weigh_the_next_iteration(cls: Any, criterion: str) -> None:
    if criterion == "esr" and cls is not MOPG:
        return
    threshold, rate = 5.0, 0.1
    own = {"criterion": criterion} if cls is MOPG else {"num_small": 4}
    agent = agent_of(cls, utility=Lagrangian(0, (None, threshold), step_size=rate), num_episodes=4, **own)
    state, expected = agent.state, 0.0
    for _ in range(3):
        used = expected
        state, metrics = agent.step(state, agent.collector)
        expected = max(used + rate * (threshold - float(state.objectives[1])), 0.0)
        assert state.multipliers.tolist() == pytest.approx([0.0, expected], abs=1e-6)
        if criterion == "ser":
            assert state.slopes.tolist() == pytest.approx([1.0, used], abs=1e-6)
        assert expected > used
        assert metrics["multiplier_1"] == state.multipliers[1]


def test_esr_weighs_by_the_multipliers_as_they_are() -> None:
    """The utilities of single episodes, by hand."""
    agent = agent_of(MOPG, utility=Lagrangian(0, (None, 1.0), step_size=0.0), criterion="esr", num_episodes=4, baseline="none")
    state = agent.state._replace(multipliers=torch.tensor([0.0, 2.5]))
    rollout = agent.collector.episodes(state.theta, 4)
    returns = agent.returns(rollout)
    batch = agent.utility_batch(rollout, returns, state, 0.0)
    torch.testing.assert_close(batch.returns[0], returns[:, 0] + 2.5 * (returns[:, 1] - 1.0))


def test_an_agents_adam_is_torchs() -> None:
    agent = agent_of(MOPG, utility=WEIGHTS, step_rule="adam", step_size=0.05, num_episodes=4)
    state = agent.state
    theta = state.theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], lr=0.05, maximize=True)
    for _ in range(4):
        state, _ = agent.step(state, agent.collector)
        theta.grad = state.direction.clone()
        optimiser.step()
        torch.testing.assert_close(state.theta, theta.detach(), rtol=0, atol=1e-5)


def test_a_refused_step_leaves_adams_moments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = agent_of(MOPG, utility=WEIGHTS, step_rule="adam", num_episodes=4)
    state, _ = agent.step(agent.state, agent.collector)
    with monkeypatch.context() as patched:
        patched.setattr(agent, "gradient", lambda theta, batch: (torch.full_like(theta, 1e25), {}))
        refused, _ = agent.step(state, agent.collector)
    assert refused.num_refused == 1
    for name, moment in state.moments.items():
        assert torch.equal(refused.moments[name], moment)
    following, _ = agent.step(refused, agent.collector)
    assert bool(torch.isfinite(following.theta).all())


def test_weights_of_normalised_rewards_are_those_of_the_environments() -> None:
    """Oracle: with fixed deviations, the weighted advantages are those of raw rewards and a raw critic."""
    agent = agent_of(PPO, utility=WEIGHTS, normalize_rewards=True)
    agent.learn(512)
    rollout = agent.collector.steps(agent.state.theta, 16)
    _, weights, _ = agent.weighed(agent.state, rollout)
    deviations = torch.as_tensor(agent.reward_normalizer.deviations, dtype=torch.float32)
    torch.testing.assert_close(weights, torch.tensor(WEIGHTS) * deviations)
    assert float((deviations - 1.0).abs().max()) > 0.05


def test_the_direction_of_lagged_batches_uses_the_slopes_of_earlier_ones() -> None:
    """Four iterations of `step` beside the recursion written out, from the same batches; also with a varying τ."""
    taus = [0.3, 0.2, 0.1, 0.0]
    agent = agent_of(
        MOTSIVRPG,
        utility="fairness:1",
        batches="lagged",
        num_episodes=6,
        num_small=4,
        restart_every=10,
        step_size=0.2,
        radius=1e6,
        baseline="none",
        ent_coef=lambda t: taus[t],
    )
    twin = agent_of(MOTSIVRPG, utility="fairness:1", num_episodes=6, num_small=4)
    state, slopes, direction = agent.state, [], torch.zeros_like(agent.state.theta)
    thetas = [state.theta]
    for t in range(4):
        rollout = twin.collector.episodes(state.theta, 6 if t == 0 else 4)
        state, _ = agent.step(state, agent.collector)
        slopes.append(state.slopes)
        here, there = slopes[max(t - 1, 0)], slopes[max(t - 2, 0)]

        def gradient(theta: Any, c: Any, tau: float, rollout: Any = rollout, state: Any = state) -> torch.Tensor:
            return agent._policy_gradient(theta, agent.scalarised_batch(rollout, c, state, theta, tau))

        direction = direction + gradient(thetas[-1], here, taus[t])
        if t:
            direction = direction - gradient(thetas[-2], there, taus[t - 1])
        torch.testing.assert_close(state.direction, direction, rtol=1e-4, atol=1e-5)
        thetas.append(state.theta)


def test_new_parameters_begin_the_recursions_anew() -> None:
    agent = agent_of(MOTSIVRPG, utility=WEIGHTS, num_episodes=4, num_small=2).learn(100)
    agent.set_parameters({"policy": {key: value + 1.0 for key, value in agent.policy.state_dict().items()}}, exact_match=False)
    assert agent.state.iteration == 0
    assert torch.equal(agent.state.previous, agent.state.theta)
    assert not len(agent.state.objectives)


def test_normalised_rewards_are_refused_where_f_is_of_the_environments_returns() -> None:
    with pytest.raises(ValueError, match="normalize_rewards"):
        agent_of(MOPG, utility=WEIGHTS, normalize_rewards=True)
    agent_of(MOPG, ONE, utility="identity", normalize_rewards=True, num_episodes=4).learn(50)


def test_preferences_by_ppo() -> None:
    """Weights of the rows are the preferences that the policy saw; wrapped once, by whoever comes first."""
    for env in (Undeclared, Preferences(make_envs(Undeclared, 4), num_objectives=2)):
        agent = PPO(
            "MultiInputPolicy", env, n_envs=4, n_steps=8, batch_size=16, utility="preferences", num_objectives=2, seed=0
        )
        rollout = agent.collector.steps(agent.state.theta, 8)
        _, weights, _ = agent.weighed(agent.state, rollout)
        assert torch.equal(weights, rollout.observations["preference"])
        assert len(weights.flatten(0, 1).unique(dim=0)) > 4
        agent.learn(64)
    scalar = Preferences(make_envs(Undeclared, 2), num_objectives=2, scalarise=True)
    with pytest.raises(ValueError, match="scalarise"):
        PPO("MultiInputPolicy", scalar, n_steps=8, batch_size=16, utility="preferences")


def test_a_file_without_what_is_younger_than_it_is_loaded(tmp_path: Any) -> None:
    """PPO's files of before there were several objectives hold neither J nor multipliers."""
    from rlopt import archive

    agent = agent_of(PPO, ONE).learn(64)
    agent.save(tmp_path / "agent.zip")
    whole = archive.read(tmp_path / "agent.zip")
    kept = {k: v for k, v in whole.tensors.items() if not k.startswith(("state.objectives", "state.multipliers"))}
    assert len(kept) < len(whole.tensors)
    archive.write(tmp_path / "older.zip", whole.data, kept)
    loaded = PPO.load(tmp_path / "older.zip", device="cpu")
    assert torch.equal(loaded.state.theta, agent.state.theta)
