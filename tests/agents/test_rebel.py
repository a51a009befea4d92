"""REBEL's updates beside exact answers: its first gradient, its fixed point, groups of episodes, errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlopt import PPO, REBEL
from rlopt.agents.rebel import AdvantageBatch
from rlopt.envs.memory import Memory
from rlopt.envs.paired import Paired
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.estimators import policy_gradient, total_return
from tests.small_envs import Walk

MDP = TabularMDP.random(num_states=4, num_actions=3, horizon=5, seed=3)
ACTIONS = ["discrete", "shifted", "multi", "binary", "box"]


def agent_of(env: Any = None, **kwargs: Any) -> Any:
    common = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return REBEL("MlpPolicy", TabularVectorEnv(MDP, 4) if env is None else env, **{**common, **kwargs})


def by_episodes(**kwargs: Any) -> Any:
    return agent_of(TabularVectorEnv(MDP, 12), mode="trajectory", num_groups=4, group_size=3, **kwargs)


def batch_of(agent: Any) -> tuple[Any, AdvantageBatch]:
    rollout = agent.collector.steps(agent.state.theta, 16)
    return rollout, agent.advantage_batch(agent.state.theta, rollout)


def first_gradient(agent: Any, call: Any) -> torch.Tensor:
    """What `descend` hands to the optimiser at θ_t, [d]."""
    agent.begin_descent(agent.state, 0.0)
    call()
    return agent.descent._gradient.clone()


# ------------------------------------------------------------------ advantages


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("eta", [0.05, 0.7])
def test_the_first_gradient_is_the_policy_gradient_whatever_eta(actions: str, eta: float) -> None:
    """∇ at θ_t of the loss over 2η is −mean Â ∇ log π."""
    agent = agent_of(lambda: Walk(actions=actions), n_envs=2, eta=eta, vf_coef=0.0, max_grad_norm=1e9)
    _, batch = batch_of(agent)
    sampler = agent.functional.bind(agent.state.theta)
    found = first_gradient(agent, lambda: agent.descend(batch, sampler, torch.tensor(eta), 32))
    module = agent.descent.module
    surrogate = -(module.actor(batch.observations).log_prob(batch.actions) * batch.advantages).mean()
    parameters = list(module.parameters())
    pieces = torch.autograd.grad(surrogate, parameters, allow_unused=True, materialize_grads=True)
    expected = torch.cat([piece.reshape(-1) for piece in pieces])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert float(expected.norm()) > 1e-3


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_closed_form_is_autograds(actions: str) -> None:
    thetas = []
    for closed_form in (True, False):
        agent = agent_of(lambda: Walk(actions=actions), n_envs=2, eta=0.3, ent_coef=0.01, n_epochs=3)
        _, batch = batch_of(agent)
        if not closed_form:
            agent.descend = agent.descend_by_autograd
        thetas.append(agent.regress_advantages(agent.state, batch, 1.0)[0].theta)
    torch.testing.assert_close(*thetas, rtol=0, atol=2e-6)


def test_a_solved_regression_is_the_exponential_tilt() -> None:
    """One state, all actions seen often, no critic: π_{t+1} ∝ π_t e^{ηA}."""
    bandit = TabularMDP.random(num_states=1, num_actions=3, horizon=1, seed=1)
    agent = agent_of(
        TabularVectorEnv(bandit, 512),
        n_steps=16,
        batch_size=8192,
        n_epochs=400,
        learning_rate=0.02,
        eta=0.8,
        normalize_advantage=False,
        vf_coef=0.0,
        target_kl=None,
        gae_lambda=0.0,
        max_grad_norm=1e9,
    )
    rollout, batch = batch_of(agent)
    before = agent.actor_critic.actor(torch.zeros(1, dtype=torch.long)).log_probabilities.detach()[0]
    rewards = bandit.rewards[0].float()
    exact = torch.softmax(before + 0.8 * rewards, -1)
    # The rewards themselves are regressed on: what depends on the state alone does not move the solution.
    known = batch._replace(advantages=rewards[rollout.actions.flatten()] - float(before.exp() @ rewards))
    state, metrics = agent.regress_advantages(agent.state, known, 1.0)
    after = agent.functional.bind(state.theta).actor(torch.zeros(1, dtype=torch.long)).log_probabilities.detach()[0].exp()
    torch.testing.assert_close(after, exact, rtol=0, atol=2e-3)
    assert float(metrics["explained"]) > 0.999
    assert float((before.exp() - exact).abs().max()) > 0.02


def test_an_update_stops_when_the_kl_is_spent() -> None:
    stopped = agent_of(n_epochs=50, learning_rate=0.05, target_kl=0.01, eta=2.0)
    _, batch = batch_of(stopped)
    state, metrics = stopped.regress_advantages(stopped.state, batch, 1.0)
    assert state.num_updates < 50
    assert float(metrics["approx_kl"]) > 0.01
    free = agent_of(n_epochs=50, learning_rate=0.05, target_kl=None, eta=2.0)
    assert free.regress_advantages(free.state, batch_of(free)[1], 1.0)[0].num_updates == 50


@pytest.mark.parametrize(("mode", "expected"), [("fixed", 0.5), ("std", 0.25), ("kl_target", 0.5)])
def test_the_step_length_by_its_rule(mode: str, expected: float) -> None:
    """η, κ / std and √(2ε/Var), for rewards of standard deviation 2 and ε = 0.5."""
    rewards = torch.tensor([-2.0, 2.0]).repeat(500) * (999 / 1000) ** 0.5
    assert float(agent_of(eta=0.5, eta_mode=mode).step_length(rewards, None, 1.0)) == pytest.approx(expected, rel=1e-3)


def test_the_stateful_form_needs_no_closed_form() -> None:
    agent = agent_of(memory="s2pg", memory_size=4)
    before = agent.state.theta.clone()
    agent.learn(128)
    assert not torch.equal(agent.state.theta, before)
    trajectories = by_episodes(memory="s2pg", memory_size=4)
    assert isinstance(trajectories.collector.envs, Memory)
    assert isinstance(trajectories.collector.envs.envs, Paired)
    trajectories.learn(60)


# ------------------------------------------------------------------ episodes


def test_groups_begin_alike_and_act_apart() -> None:
    agent = by_episodes()
    batch = agent.episode_batch(agent.collector.episodes(agent.state.theta, 12))
    starts = batch.rollout.states[0].view(4, 3)
    assert bool((starts == starts[:, :1]).all())
    assert len(starts[:, 0].unique()) > 1
    assert batch.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert bool((batch.rollout.actions.view(-1, 4, 3).float().std(-1) > 0).any())


def test_the_first_gradient_of_episodes_is_reinforce_with_leave_one_out() -> None:
    agent = by_episodes(eta=0.4, eta_mode="fixed", max_grad_norm=1e9)
    batch = agent.episode_batch(agent.collector.episodes(agent.state.theta, 12))
    found = first_gradient(agent, lambda: agent.descend_episodes(batch, torch.tensor(0.4)))
    grouped = batch.returns.view(4, 3)
    others = (grouped.sum(1, keepdim=True) - grouped) / 2
    rollout = batch.rollout
    baseline = others.flatten().expand_as(rollout.log_probs)

    def log_policy(theta: Any, observations: Any, actions: Any) -> Any:
        return agent.functional(theta, observations)[0].log_prob(actions)

    psi = total_return(rollout.rewards, rollout.mask, 1.0, torch.where(rollout.mask, baseline, 0.0))
    expected = policy_gradient(log_policy, agent.state.theta, rollout, psi)
    torch.testing.assert_close(found, -expected, rtol=1e-4, atol=1e-6)
    assert float(expected.norm()) > 1e-3


def test_averaged_log_probabilities_would_be_another_gradient() -> None:
    """Negative control: a mean over an episode's steps in place of the sum."""
    agent = by_episodes(eta=0.4, eta_mode="fixed", max_grad_norm=1e9)
    rollout = agent.collector.episodes(agent.state.theta, 12)
    batch = agent.episode_batch(rollout)
    right = first_gradient(agent, lambda: agent.descend_episodes(batch, torch.tensor(0.4)))
    shorter = batch._replace(returns=batch.returns / rollout.mask.sum(0))
    wrong = first_gradient(agent, lambda: agent.descend_episodes(shorter, torch.tensor(0.4)))
    assert not torch.allclose(right, wrong, rtol=1e-2)


def test_preferences_alone_are_enough() -> None:
    """A comparison by return gives rewards by rank, and learns."""
    calls = []

    def better(first: Any, second: Any) -> float:
        calls.append(1)
        return float(np.sign(float(first.rewards.sum() - second.rewards.sum())))

    agent = by_episodes(preference=better)
    rollout = agent.collector.episodes(agent.state.theta, 12)
    batch = agent.episode_batch(rollout)
    assert len(calls) == 4 * 3
    returns, judged = rollout.rewards.sum(0).view(4, 3), batch.returns.view(4, 3)
    assert judged.sum(1).tolist() == pytest.approx([0.0] * 4, abs=1e-6)
    assert torch.equal(judged.argsort(1), returns.argsort(1))
    agent.learn(100)


def test_trajectories_climb() -> None:
    agent = agent_of(
        TabularVectorEnv(MDP, 64),
        mode="trajectory",
        num_groups=16,
        group_size=4,
        n_epochs=8,
        learning_rate=0.01,
        target_kl=None,
    )

    def value() -> float:
        probabilities = agent.actor_critic.actor(torch.arange(4)).log_probabilities.detach().exp()
        return float(TabularMDP(MDP.initial, MDP.transitions, MDP.rewards, 1.0, 5).value(probabilities))

    before, best = value(), TabularMDP(MDP.initial, MDP.transitions, MDP.rewards, 1.0, 5).best_stationary_value()
    agent.learn(40 * 64 * 5)
    assert value() > before + 0.7 * (best - before)


# ------------------------------------------------------------------ what a user sees


@pytest.mark.parametrize("mode", ["advantage", "trajectory"])
def test_a_loaded_agent_has_the_same_policy(mode: str, tmp_path: Any) -> None:
    agent = by_episodes() if mode == "trajectory" else agent_of()
    agent.learn(128)
    agent.save(tmp_path / "agent.zip")
    loaded = REBEL.load(tmp_path / "agent.zip", env=TabularVectorEnv(MDP, 12))
    assert torch.equal(loaded.state.theta, agent.state.theta)
    assert loaded.mode == mode
    loaded.learn(64, reset_num_timesteps=False)


def test_no_worse_than_ppo_at_first_sight() -> None:
    """The same rollouts, networks and epochs: after one update the step goes the same way as PPO's."""
    ours, theirs = (
        agent_of(n_epochs=1, batch_size=64),
        PPO(
            "MlpPolicy",
            TabularVectorEnv(MDP, 4),
            n_steps=16,
            batch_size=64,
            n_epochs=1,
            seed=0,
            device="cpu",
            policy_kwargs={"net_arch": [8]},
        ),
    )
    before = ours.state.theta.clone()
    assert torch.equal(before, theirs.state.theta)
    ours.learn(64)
    theirs.learn(64)
    first, second = ours.state.theta - before, theirs.state.theta - before
    assert float(torch.cosine_similarity(first, second, 0)) > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eta": 0.0}, "eta"),
        ({"eta": -1.0}, "eta"),
        ({"eta_mode": "kl"}, "eta_mode"),
        ({"mode": "trajectories"}, "did you mean"),
        ({"group_size": 1, "mode": "trajectory"}, "group_size"),
        ({"mode": "trajectory", "normalize_rewards": True}, "normalize_rewards"),
        ({"preference": lambda first, second: 0.0}, "preference"),
        ({"clip_range": 0.2}, "clip_range"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        agent_of(**arguments)


def test_comparisons_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="preference"):
        by_episodes(preference=lambda first, second: 2.0).learn(50)
