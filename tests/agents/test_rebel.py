"""REBEL's updates beside exact answers: its first gradient, its fixed point, groups of episodes, errors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.vector import SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from rlopt import PPO, REBEL
from rlopt.agents.rebel import AdvantageBatch, GroupBatch
from rlopt.branching import branched_episodes, depth_probabilities
from rlopt.envs.memory import Memory
from rlopt.envs.paired import Paired
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.estimators import policy_gradient, rebel_loss, total_return
from rlopt.policies.functional import parameter_views
from rlopt.verification.rebel import network_gradient
from tests.small_envs import Walk

MDP = TabularMDP.random(num_states=4, num_actions=3, horizon=5, seed=3)
# Episodes of one to four steps.
RAGGED = dataclasses.replace(TabularMDP.random(num_states=3, num_actions=2, horizon=4, num_terminal=1, seed=2), gamma=1.0)
ACTIONS = ["discrete", "shifted", "multi", "binary", "box"]


def agent_of(env: Any = None, **kwargs: Any) -> Any:
    common = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return REBEL("MlpPolicy", TabularVectorEnv(MDP, 4) if env is None else env, **{**common, **kwargs})


def by_episodes(**kwargs: Any) -> Any:
    return agent_of(TabularVectorEnv(MDP, 12), **{"mode": "trajectory", "num_groups": 4, "group_size": 3, **kwargs})


def batch_of(agent: Any) -> tuple[Any, AdvantageBatch]:
    rollout = agent.collector.steps(agent.state.theta, 16)
    return rollout, agent.advantage_batch(agent.state.theta, rollout)


def first_gradient(agent: Any, call: Any) -> torch.Tensor:
    """What `descend` hands to the optimiser at θ_t, [d]."""
    kept, agent.n_epochs, agent.learning_rate = agent.n_epochs, 1, 0.0
    agent.begin_descent(agent.state, 0.0)
    call()
    agent.n_epochs = kept
    return agent.descent._gradient.clone()


def first_group_gradient(agent: Any, batch: GroupBatch, eta: float) -> torch.Tensor:
    """∇ of the group loss at θ_t, [d]."""

    def loss(theta: torch.Tensor) -> torch.Tensor:
        log_ratio = agent.functional(theta, batch.observations)[0].log_prob(batch.actions) - batch.log_probs
        summed = agent.per_sample(log_ratio, batch)
        return rebel_loss(summed, torch.zeros_like(batch.returns), batch.returns, batch.groups, eta) / (4 * eta)

    expected = torch.func.grad(loss)(agent.state.theta)
    found = first_gradient(agent, lambda: agent.regress_groups(agent.state, batch, 1.0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    return found


# ------------------------------------------------------------------ advantages


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("eta", [0.05, 0.7])
def test_the_first_gradient_is_the_policy_gradient_whatever_eta(actions: str, eta: float) -> None:
    """∇ at θ_t of the loss over 2η is −mean Â ∇ log π."""
    agent = agent_of(lambda: Walk(actions=actions), n_envs=2, eta=eta, vf_coef=0.0, max_grad_norm=1e9)
    _, batch = batch_of(agent)
    sampler = agent.functional.bind(agent.state.theta)
    found = first_gradient(agent, lambda: agent.descend(batch, sampler, torch.tensor(eta)))
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
            batch = batch._replace(head=batch.head[:, :0])
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


def test_masked_choices_are_left_to_autograd() -> None:
    agent = agent_of()
    parameter_views(agent.functional.module, agent.state.theta)["policy.action_net.bias"][0] = -torch.inf
    rollout, batch = batch_of(agent)
    assert bool((rollout.actions > 0).all())
    assert batch.head.shape[-1] == 0
    theta = agent.regress_advantages(agent.state, batch, 1.0)[0].theta
    assert int((~theta.isfinite()).sum()) == 1
    assert not torch.equal(theta, agent.state.theta)


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
    rollout = agent.collector.episodes(agent.state.theta, 12)
    batch = agent.episode_batch(rollout)
    starts = rollout.states[0].view(4, 3)
    assert bool((starts == starts[:, :1]).all())
    assert len(starts[:, 0].unique()) > 1
    assert batch.groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert bool((rollout.actions.view(-1, 4, 3).float().std(-1) > 0).any())
    assert torch.equal(torch.bincount(batch.samples), rollout.mask.sum(0))


def test_the_first_gradient_of_episodes_is_reinforce_with_leave_one_out() -> None:
    agent = by_episodes(eta=0.4, eta_mode="fixed", max_grad_norm=1e9)
    rollout = agent.collector.episodes(agent.state.theta, 12)
    batch = agent.episode_batch(rollout)
    found = first_group_gradient(agent, batch, 0.4)
    grouped = batch.returns.view(4, 3)
    others = (grouped.sum(1, keepdim=True) - grouped) / 2
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
    right = first_group_gradient(agent, batch, 0.4)
    shorter = batch._replace(returns=batch.returns / rollout.mask.sum(0))
    wrong = first_group_gradient(agent, shorter, 0.4)
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


# ------------------------------------------------------------------ branches


def branching(num_groups: int = 4, **kwargs: Any) -> Any:
    env = TabularVectorEnv(RAGGED, 2 * num_groups)
    return agent_of(env, mode="branched", num_groups=num_groups, group_size=2, **kwargs)


def occupied(policy: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """w_h P(s_h = s, h < L), [H, S]."""
    alive, rows = RAGGED.initial, []
    for weight in weights:
        rows.append(weight * alive)
        alive = torch.einsum("s,sa,sap->p", alive, policy, RAGGED.transitions) * ~RAGGED.terminal
    return torch.stack(rows)


def exact_branched_gradient(agent: Any, depths: list[float], gamma: float) -> torch.Tensor:
    """Σ_h P(h) E[1(h < L) Q_h ∇ln π] / P(h < L), [d], of the agent's own network."""
    mdp = dataclasses.replace(RAGGED, gamma=gamma)
    states, actions = torch.arange(mdp.num_states).repeat_interleave(2), torch.arange(2).repeat(mdp.num_states)
    policy = agent.actor_critic.actor(torch.arange(mdp.num_states)).log_probabilities.detach().exp().double()
    reached = occupied(policy, torch.tensor(depths, dtype=torch.float64))
    # Values of step h, not of the episode: `state_action_values` are undiscounted to step h.
    weights = (reached.unsqueeze(-1) * policy * mdp.state_action_values(policy)).sum(0).flatten() / reached.sum()

    def surrogate(theta: torch.Tensor) -> torch.Tensor:
        return (agent.functional(theta, states)[0].log_prob(actions).double() * weights).sum()

    return torch.func.grad(surrogate)(agent.state.theta).double()


@pytest.mark.parametrize(
    ("gamma", "depths"), [(0.7, None), (1.0, [0.25] * 4), (0.7, [0.1, 0.2, 0.3, 0.4])], ids=["None", "uniform", "some"]
)
def test_the_first_gradient_of_branches_is_the_policy_gradient(gamma: float, depths: Any) -> None:
    """In the mean over 30 batches of 200 groups, within 4 standard errors; with P(h) ∝ γ^h it is ∇J_γ over P(kept) Σ γ^h."""
    agent = branching(200, gamma=gamma, depths=depths, horizon=4, max_grad_norm=1e9)
    probabilities = depth_probabilities(depths, gamma, 4).tolist()
    exact = exact_branched_gradient(agent, probabilities, gamma)
    found = []
    for _ in range(30):
        branches = branched_episodes(agent.collector, agent.state.theta, 200, depths, 4, gamma)
        batch = agent.branch_batch(branches)
        found.append(-first_gradient(agent, lambda batch=batch: agent.regress_groups(agent.state, batch, 1.0)).double())
    errors = torch.stack(found) - exact
    moving = errors.std(0) > 1e-9
    z = errors.mean(0) / (errors.std(0) / len(errors) ** 0.5).clamp_min(1e-300)
    assert float(z[moving].abs().max()) < 4
    assert float(exact.norm()) > 10 * float((errors.std(0) / len(errors) ** 0.5).max())
    # Negative control: undiscounted returns and depths are something else.
    other = exact_branched_gradient(agent, [0.25] * 4, 1.0) if depths is None else 0 * exact
    wrong = (torch.stack(found) - other).mean(0) / (errors.std(0) / len(errors) ** 0.5).clamp_min(1e-300)
    assert float(wrong[moving].abs().max()) > 8
    if depths is None:
        mdp = dataclasses.replace(RAGGED, gamma=gamma)
        policy = agent.actor_critic.actor(torch.arange(3)).log_probabilities.detach().exp().double()
        kept = float(occupied(policy, torch.tensor(probabilities, dtype=torch.float64)).sum())
        expected = network_gradient(agent, mdp).double() / (kept * sum(gamma**h for h in range(4)))
        torch.testing.assert_close(exact, expected, rtol=1e-5, atol=1e-6)


def test_branches_are_regressed_on_alone() -> None:
    """One row a sample, whatever came before and after; groups that ended before they parted are left out."""
    agent = branching(30, depths=4)
    branches = branched_episodes(agent.collector, agent.state.theta, 30, 4)
    batch = agent.branch_batch(branches)
    kept = int(branches.kept.sum())
    assert 0 < kept < 30
    assert len(batch.log_probs) == len(batch.returns) == 2 * kept
    assert torch.equal(batch.groups.unique(), branches.kept.nonzero().squeeze(1))
    rows = torch.arange(60)[branches.kept.repeat_interleave(2)]
    assert torch.equal(batch.actions, branches.rollout.actions[branches.depths.repeat_interleave(2)[rows], rows])
    metrics = agent.step(agent.state, agent.collector)[1]
    assert 0 < float(metrics["groups_kept"]) < 1


def test_branches_climb() -> None:
    agent = branching(64, depths=4, gamma=1.0, n_epochs=8, learning_rate=0.01, target_kl=None)

    def value() -> float:
        return float(RAGGED.value(agent.actor_critic.actor(torch.arange(3)).log_probabilities.detach().exp()))

    before, best = value(), RAGGED.best_stationary_value()
    agent.learn(15_000)
    assert value() > before + 0.7 * (best - before)


def test_an_iteration_without_branches_learns_nothing() -> None:
    """No episode of this MDP is longer than four steps."""
    agent = branching(depths=[0.0] * 9 + [1.0])
    before = agent.state.theta.clone()
    agent.learn(40)
    assert agent.num_timesteps >= 40
    assert torch.equal(agent.state.theta, before)


def test_branches_are_compared_by_preference() -> None:
    seen = []

    def better(first: Any, second: Any) -> float:
        seen.append((first.states[0], second.states[0]))
        return float(np.sign(float(first.rewards.sum() - second.rewards.sum())))

    agent = branching(20, depths=3, preference=better)
    branches = branched_episodes(agent.collector, agent.state.theta, 20, 3)
    batch = agent.branch_batch(branches)
    assert len(seen) == int(branches.kept.sum())
    assert all(torch.equal(first, second) for first, second in seen)
    totals = branches.rollout.rewards.sum(0).view(20, 2)[branches.kept]
    torch.testing.assert_close(batch.returns.view(-1, 2)[:, 0], 0.5 * (totals[:, 0] - totals[:, 1]).sign())


def test_branches_share_a_memory_up_to_the_step() -> None:
    agent = branching(memory="s2pg", memory_size=2, depths=2)
    agent.learn(60)
    assert agent.state.num_updates > 0


class Whimsical(Walk):
    """Is not determined by its seed."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return observation + float(np.random.default_rng().normal()), *rest


def test_environments_that_cannot_be_branched_are_refused() -> None:
    many: dict[str, Any] = {"mode": "branched", "num_groups": 2, "group_size": 2}
    with pytest.raises(ValueError, match="Whimsical is not determined by its seed"):
        agent_of(Whimsical, **many)
    with pytest.raises(ValueError, match=r"groups need environments that begin single episodes.*AutoresetMode.DISABLED"):
        agent_of(SyncVectorEnv([Walk] * 4), **many)
    with pytest.raises(ValueError, match="a VecEnv of Stable-Baselines3, begins episodes by itself"):
        agent_of(DummyVecEnv([Walk] * 4), **many)
    with pytest.raises(ValueError, match="5 environments cannot be divided into groups of 2"):
        agent_of(Walk, n_envs=5, **many)


@pytest.mark.parametrize("mode", ["trajectory", "branched"])
def test_ids_whose_vector_implementation_cannot_be_grouped_are_stepped_one_by_one(mode: str) -> None:
    agent = agent_of("CartPoleNoVel-v1", mode=mode, num_groups=3, group_size=2)
    assert agent.n_envs == 6
    agent.learn(100)
    with pytest.raises(ValueError, match="under NEXT_STEP autoreset"):
        agent_of("CartPoleNoVel-v1", mode=mode, num_groups=3, group_size=2, backend="native")


# ------------------------------------------------------------------ what a user sees


@pytest.mark.parametrize("mode", ["advantage", "trajectory", "branched"])
def test_a_loaded_agent_has_the_same_policy(mode: str, tmp_path: Any) -> None:
    agent = agent_of() if mode == "advantage" else by_episodes(mode=mode)
    agent.learn(128)
    agent.save(tmp_path / "agent.zip")
    loaded = REBEL.load(tmp_path / "agent.zip", env=TabularVectorEnv(MDP, 12))
    assert torch.equal(loaded.state.theta, agent.state.theta)
    assert loaded.mode == mode
    loaded.learn(64, reset_num_timesteps=False)
    if mode != "advantage":  # whole episodes go on to the bit
        agent.learn(64, reset_num_timesteps=False)
        assert torch.equal(loaded.state.theta, agent.state.theta)


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
        ({"mode": "branched", "normalize_rewards": True}, "normalize_rewards"),
        ({"mode": "branched", "depths": [0.5, 0.4]}, "depths: expected a positive integer or probabilities"),
        ({"mode": "branched", "depths": 0}, "depths"),
        ({"mode": "branched", "gamma": 1.0}, "depths: expected how deep groups part"),
        ({"mode": "trajectory", "depths": 3}, "depths: episodes part at a step with mode='branched' only"),
        ({"clip_range": 0.2}, "clip_range"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        agent_of(**arguments)


def test_comparisons_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match="preference"):
        by_episodes(preference=lambda first, second: 2.0).learn(50)
