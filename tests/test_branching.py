"""Branched episodes. Oracles: exact Q of a tabular MDP, by sampling within 4 standard errors and by enumeration."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from rlopt import MOPG, PPO, REINFORCE
from rlopt.branching import Branches, branched_episodes, depth_probabilities
from rlopt.collector import Collector
from rlopt.envs.base import EnvironmentFault, episode_seed
from rlopt.envs.memory import MEMORY
from rlopt.envs.paired import Paired
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.envs.vector import make_envs
from rlopt.estimators import rebel_loss
from rlopt.rollout import Observations
from tests.small_envs import Walk

SIZE = 2
# Half of the steps end the episode, sooner where rewards are low: what makes the biased variant visible.
MDP = TabularMDP(
    initial=torch.tensor([0.5, 0.5, 0.0]),
    transitions=torch.tensor(
        [
            [[0.8, 0.1, 0.1], [0.1, 0.2, 0.7]],
            [[0.5, 0.1, 0.4], [0.05, 0.15, 0.8]],
            [[0.0, 0.0, 1.0], [0.0, 0.0, 1.0]],
        ],
        dtype=torch.float64,
    ),
    rewards=torch.tensor([[1.0, 0.2], [0.5, 0.7], [0.0, 0.0]]),
    gamma=1.0,
    horizon=5,
    terminal=torch.tensor([False, False, True]),
)


def agent_on(envs: Any, seed: int = 0) -> Any:
    return PPO("MlpPolicy", envs, n_steps=8, batch_size=8, seed=seed, device="cpu")


def collector_of(agent: Any) -> Collector:
    assert agent.collector is not None
    return agent.collector


def some_theta(agent: Any) -> torch.Tensor:
    """A policy that is not uniform, and not the same in all states."""
    return 0.2 * torch.randn(len(agent.state.theta), generator=torch.Generator().manual_seed(1))


def matrix_of(agent: Any, theta: torch.Tensor) -> torch.Tensor:
    """π as [S, A]."""
    module = agent.collector.policy.bind(theta)
    with torch.no_grad():
        return module.actor(torch.arange(3)).log_probabilities.exp().double()


def members(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(0, (-1, SIZE))


@pytest.fixture(scope="module")
def sampled() -> tuple[Branches, torch.Tensor]:
    """Branches of 6,000 groups, and the policy's matrix."""
    agent = agent_on(Paired(make_envs(TabularVectorEnv(MDP, 600)), SIZE))
    theta = some_theta(agent)
    parts = [branched_episodes(collector_of(agent), theta, 3000, MDP.horizon) for _ in range(2)]
    joined = [
        torch.cat([getattr(part, name) for part in parts]) for name in ("observations", "actions", "log_probs", "returns")
    ]
    groups = torch.cat([parts[0].groups, parts[1].groups + 3000])
    both = [torch.cat([getattr(part, name) for part in parts]) for name in ("depths", "kept")]
    return Branches(*joined, groups, *both, parts[0].rollout), matrix_of(agent, theta)


def z_score(x: torch.Tensor) -> float:
    return float(x.mean() / (x.std() / math.sqrt(len(x))))


def test_branches_are_unbiased(sampled: tuple[Branches, torch.Tensor]) -> None:
    """E[R_{h:} − Q_h(s, a)] = 0, also given both actions, within 4 standard errors."""
    branches, policy = sampled
    assert 0.05 < float(policy[:2].min()) < 0.4
    q = MDP.state_action_values(policy)
    depths = branches.depths[branches.groups]
    states: Any = branches.observations
    errors = members(branches.returns.double() - q[depths, states, branches.actions])
    actions, s = members(branches.actions), members(states)[:, 0]
    assert abs(z_score(errors.mean(1))) < 4
    for state in range(2):
        chosen = (s == state) & (actions[:, 0] == 0) & (actions[:, 1] == 1)
        assert int(chosen.sum()) > 150
        assert abs(z_score((errors[:, 0] - errors[:, 1])[chosen])) < 4


def test_actions_at_the_branch_are_independent(sampled: tuple[Branches, torch.Tensor]) -> None:
    branches, policy = sampled
    states: Any = branches.observations
    s, actions = members(states)[:, 0], members(branches.actions)
    for state in range(2):
        counts = torch.bincount(actions[s == state] @ torch.tensor([2, 1]), minlength=4).double()
        expected = (policy[state, :, None] * policy[state]).flatten() * counts.sum()
        assert float(((counts - expected) ** 2 / expected).sum()) < 16.27  # 0.999 quantile of χ², 3 degrees of freedom
    torch.testing.assert_close(branches.log_probs.double().exp(), policy[states, branches.actions], rtol=1e-5, atol=1e-6)


def test_groups_are_dropped_where_the_episode_ended(sampled: tuple[Branches, torch.Tensor]) -> None:
    """h is drawn beforehand: all depths are as likely, and the later are kept as often as episodes last that long."""
    branches, policy = sampled
    counts = torch.bincount(branches.depths, minlength=MDP.horizon).double()
    expected = len(branches.depths) / MDP.horizon
    assert float(((counts - expected) ** 2 / expected).sum()) < 18.47
    alive = MDP.initial
    for depth in range(MDP.horizon):
        lasted, num = float(alive.sum()), float(counts[depth])
        share = float(branches.kept[branches.depths == depth].double().mean())
        assert abs(share - lasted) <= 4 * math.sqrt(lasted * (1 - lasted) / num)
        alive = torch.einsum("s,sa,sap->p", alive, policy, MDP.transitions) * ~MDP.terminal
    assert 0 < int(branches.kept.sum()) < len(branches.kept)
    assert len(branches.groups) == SIZE * int(branches.kept.sum())


def test_a_depth_of_the_realised_length_is_biased_and_a_fixed_one_is_not() -> None:
    """By enumeration: Σ_τ p(τ) Σ_h w_h(τ) (R_{h:} − Q_h) is 0 for fixed w_h, and not for w_h = 1/L(τ)."""
    theta = torch.tensor([0.3, -0.4, 0.2, 0.1, 0.0, 0.0], dtype=torch.float64)
    rollout, probabilities = MDP.enumerate(theta)
    q = MDP.state_action_values(MDP.softmax_policy(theta))
    times = torch.arange(MDP.horizon)[:, None]
    valid = rollout.mask.double()
    to_go = rollout.rewards.flip(0).cumsum(0).flip(0)
    errors = (to_go - q[times, rollout.observations, rollout.actions]) * valid
    fixed = (errors / MDP.horizon).sum(0) @ probabilities
    realised = (errors / valid.sum(0)).sum(0) @ probabilities
    assert abs(float(fixed)) < 1e-12
    assert abs(float(realised)) > 0.05


def test_the_biased_variant_fails_the_sampled_check(sampled: tuple[Branches, torch.Tensor]) -> None:
    """Negative control: h uniform over the realised length of the first branch is far outside of 4 standard errors."""
    _, policy = sampled
    rollout = MDP.sample(policy, 6000, torch.Generator().manual_seed(0))
    q = MDP.state_action_values(policy)
    lengths = rollout.mask.sum(0)
    depths = (torch.rand(6000, generator=torch.Generator().manual_seed(1)) * lengths).long()
    columns = torch.arange(6000)
    to_go = rollout.rewards.flip(0).cumsum(0).flip(0)[depths, columns]
    errors = to_go - q[depths, rollout.states[depths, columns], rollout.actions[depths, columns]]
    assert abs(z_score(errors)) > 8


def walk_branches(**kwargs: Any) -> tuple[Any, Branches]:
    envs = Paired(make_envs(lambda: Walk(limit=12, edge=9.0), 4 * 3), 3)
    agent = agent_on(envs)
    return agent, branched_episodes(
        collector_of(agent), agent.state.theta, 8, **{"depths": [0.0, 0.0, 0.5, 0.0, 0.5], **kwargs}
    )


def test_members_share_everything_before_the_branch_and_act_for_themselves_after_it() -> None:
    _, branches = walk_branches(gamma=0.9)
    rollout = branches.rollout
    assert bool(branches.kept.all())
    assert sorted(branches.depths.unique().tolist()) == [2, 4]
    for group, depth in enumerate(branches.depths.tolist()):
        columns = slice(3 * group, 3 * group + 3)
        states, actions = rollout.states[:, columns], rollout.actions[:, columns]  # type: ignore[index]
        assert bool((states[: depth + 1] == states[: depth + 1, :1]).all())
        assert bool((actions[:depth] == actions[:depth, :1]).all())
        assert bool((actions[depth:] != actions[depth:, :1]).any())
        rows = branches.groups == group
        assert torch.equal(branches.observations[rows], states[depth])  # type: ignore[index]
        assert torch.equal(branches.actions[rows], actions[depth])
        later = rollout.rewards[depth:, columns].double()
        powers = 0.9 ** torch.arange(len(later), dtype=torch.float64)
        torch.testing.assert_close(branches.returns[rows].double(), powers @ later, rtol=1e-5, atol=1e-6)
    loss = rebel_loss(branches.log_probs, branches.log_probs, branches.returns, branches.groups, 0.5)
    assert float(loss) > 0


def test_the_prefix_is_played_again_from_seed_and_actions() -> None:
    """A fresh environment, reset with the group's seed, comes to s_h by the recorded actions."""
    agent, branches = walk_branches()
    seeds = []
    for group, depth in enumerate(branches.depths.tolist()):
        seeds.append(episode_seed(collector_of(agent).envs.run_seed, 0, group))  # type: ignore[attr-defined]
        env = Walk(limit=12, edge=9.0)
        seen, _ = env.reset(seed=seeds[-1])
        for action in branches.rollout.actions[:depth, 3 * group]:
            seen = env.step(int(action))[0]
        rows: Observations = branches.observations[branches.groups == group]  # type: ignore[index]
        np.testing.assert_array_equal(seen, rows[2].numpy())  # type: ignore[index]
    assert len(set(seeds)) == 8


def test_batches_differ_and_can_be_drawn_again() -> None:
    agent, first = walk_branches()
    second = branched_episodes(collector_of(agent), agent.state.theta, 8, [0.0, 0.0, 0.5, 0.0, 0.5])
    again = walk_branches()[1]
    assert torch.equal(first.depths, again.depths)
    assert torch.equal(first.returns, again.returns)
    assert not torch.equal(first.returns, second.returns)


def test_memory_is_shared_up_to_the_branch() -> None:
    envs = Paired(make_envs(lambda: Walk(limit=8, edge=9.0), 2 * SIZE), SIZE)
    agent = REINFORCE("MlpPolicy", envs, num_episodes=4, memory="s2pg", memory_size=2, seed=0, device="cpu")
    branches = branched_episodes(collector_of(agent), agent.state.theta, 4, [0.0, 0.0, 0.0, 1.0])
    for states in branches.rollout.states.values():  # type: ignore[union-attr]
        parted = states.unflatten(1, (-1, SIZE))
        assert bool((parted[:4] == parted[:4, :, :1]).all())
    memory = branches.rollout.states[MEMORY].unflatten(1, (-1, SIZE))  # type: ignore[index]
    assert bool((memory[4, :, 0] != memory[4, :, 1]).all())


def test_several_rewards_have_a_return_each() -> None:
    mdp = TabularMDP.random(num_objectives=2, horizon=3)
    agent = MOPG(
        "MlpPolicy",
        Paired(make_envs(TabularVectorEnv(mdp, 8)), SIZE),
        utility="fairness:1",
        num_episodes=4,
        seed=0,
        device="cpu",
    )
    branches = branched_episodes(collector_of(agent), agent.state.theta, 4, [0.0, 1.0], gamma=0.5)
    rewards = branches.rollout.rewards
    torch.testing.assert_close(branches.returns, rewards[1] + 0.5 * rewards[2])


def test_depths_in_proportion_to_discounts() -> None:
    weights = depth_probabilities(None, 0.5, 3)
    np.testing.assert_allclose(weights, np.array([4, 2, 1]) / 7)
    np.testing.assert_allclose(depth_probabilities(None, 1.0, 4), np.full(4, 0.25))
    np.testing.assert_allclose(depth_probabilities(None, 0.0), [1.0])
    long = depth_probabilities(None, 0.99)
    assert 2000 < len(long) < 4000
    assert long @ np.arange(len(long)) == pytest.approx(99)
    assert len(depth_probabilities(None, 0.99999)) == 50_000
    with pytest.raises(ValueError, match="depths: expected how deep groups part, where gamma=1 and horizon=None leave it open"):
        depth_probabilities(None, 1.0)


def test_groups_that_all_ended_leave_nothing() -> None:
    agent = agent_on(Paired(make_envs(lambda: Walk(limit=2, edge=9.0), 4), SIZE))
    branches = branched_episodes(collector_of(agent), agent.state.theta, 2, [0.0] * 5 + [1.0])
    assert len(branches.groups) == 0
    assert not bool(branches.kept.any())


class Forgetful(Walk):
    """Is determined by its seed until its ninth step."""

    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return observation + (id(self) % 997 if self.time > 8 else 0), *rest


def test_members_that_part_before_the_branch_are_an_error() -> None:
    agent = agent_on(Paired(make_envs(lambda: Forgetful(limit=12, edge=9.0), 4), SIZE, probe_steps=4))
    branched_episodes(collector_of(agent), agent.state.theta, 2, [0.0] * 7 + [1.0])
    with pytest.raises(EnvironmentFault, match=r"members of group \d saw different things after 9 steps"):
        branched_episodes(collector_of(agent), agent.state.theta, 2, [0.0] * 10 + [1.0])


def test_wrong_arguments_are_named() -> None:
    agent = agent_on(make_envs(Walk, 4))
    with pytest.raises(ValueError, match="collector: expected environments in groups"):
        branched_episodes(collector_of(agent), agent.state.theta, 2, 3)
    paired = agent_on(Paired(make_envs(Walk, 4), SIZE))
    for depths in (0, [0.5, 0.4], [1.5, -0.5], []):
        with pytest.raises(ValueError, match="depths"):
            branched_episodes(collector_of(paired), paired.state.theta, 2, depths)
    with pytest.raises(ValueError, match="gamma"):
        branched_episodes(collector_of(paired), paired.state.theta, 2, 3, gamma=1.5)
