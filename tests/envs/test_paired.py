"""Groups of episodes from one seed. Oracle: a fresh environment, reset with the group's seed, replays every column."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from rlopt import PPO, REINFORCE
from rlopt.envs.base import EnvironmentFault, episode_seed
from rlopt.envs.frame_stack import FrameStack
from rlopt.envs.linear_quadratic import LinearQuadratic
from rlopt.envs.linear_quadratic_vector import LinearQuadraticVectorEnv
from rlopt.envs.memory import MEMORY, Memory
from rlopt.envs.paired import Paired, paired_envs
from rlopt.envs.queues import Queues, QueuesVectorEnv
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.envs.vector import make_envs
from tests.scripted_envs import RandomScript, ScriptedEnv
from tests.small_envs import Walk

SIZE = 3  # episodes of a group
MDP = TabularMDP.random(num_states=4, num_actions=3, horizon=6, num_terminal=1, seed=2)


def vector(kind: Any, num: int) -> Any:
    return kind([Walk] * num, autoreset_mode=AutoresetMode.DISABLED)


MAKERS: dict[str, Any] = {
    "sync": lambda num: make_envs(Walk, num, backend="sync"),
    "async": lambda num: make_envs(Walk, num, backend="async"),
    "SyncVectorEnv": lambda num: make_envs(vector(SyncVectorEnv, num)),
    "AsyncVectorEnv": lambda num: make_envs(vector(AsyncVectorEnv, num)),
    "tabular": lambda num: make_envs(TabularVectorEnv(MDP, num)),
}


def agent_on(envs: Any, seed: int = 3) -> PPO:
    return PPO("MlpPolicy", envs, n_steps=8, batch_size=8 * envs.num_envs, seed=seed, device="cpu")


def episodes(envs: Any, num: int, horizon: int | None = None, seed: int = 3) -> Any:
    """The agent and `num` episodes of it."""
    agent = agent_on(envs, seed)
    return agent, agent.collector.episodes(agent.state.theta, num, horizon)


def fresh(kind: str) -> Any:
    """One environment whose observations are those of the kind, encoded."""
    return make_envs(TabularVectorEnv(MDP, 1) if kind == "tabular" else Walk)


@pytest.mark.parametrize(("kind", "num_groups"), [*[(kind, 2) for kind in MAKERS], ("sync", 1), ("sync", 4), ("tabular", 8)])
def test_every_column_is_the_episode_of_its_groups_seed(kind: str, num_groups: int) -> None:
    """Members share s_0 and the environment's random numbers, and nothing else, in every round of groups."""
    envs = Paired(MAKERS[kind](num_groups * SIZE), SIZE)
    agent, rollout = episodes(envs, 6 * SIZE)
    seeds = [episode_seed(envs.run_seed, 0, group) for group in range(6)]
    alone = fresh(kind)
    for column in range(6 * SIZE):
        np.testing.assert_array_equal(
            alone.restart(np.array([0]), [seeds[column // SIZE]])[0], rollout.states[0, column].numpy()
        )
        for t in range(int(rollout.mask[:, column].sum())):
            step = alone.step(alone.decoder(rollout.actions[t, column : column + 1].numpy()))
            assert step.rewards[0] == pytest.approx(float(rollout.rewards[t, column]), abs=1e-6)
            assert bool(step.terminated[0]) == bool(rollout.terminated[t, column])
            seen = step.observations if step.final_observations is None else step.final_observations
            np.testing.assert_array_equal(seen[0], rollout.states[t + 1, column].numpy())
    firsts = rollout.states[0].unflatten(0, (-1, SIZE))
    assert bool((firsts == firsts[:, :1]).all())
    assert len(firsts[:, 0].unique(dim=0)) > (1 if kind == "tabular" else 5), "all groups begin alike"
    actions = rollout.actions.unflatten(1, (-1, SIZE))
    differing = (actions != actions[:, :, :1]).any(2).any(0)
    # where one step may end an episode, three members can act alike by chance
    assert bool(differing.any() if kind == "tabular" else differing.all()), "members of a group act alike"
    assert agent.collector.num_timesteps == int(rollout.mask.sum())
    agent.collector.envs.close()
    alone.close()


def test_without_pairing_neighbours_begin_differently() -> None:
    """Negative control of the test above."""
    _, rollout = episodes(make_envs(Walk, 2 * SIZE), 2 * SIZE)
    firsts = rollout.states[0].unflatten(0, (-1, SIZE))
    assert not bool((firsts == firsts[:, :1]).flatten(1).all(1).any())


def test_groups_depend_on_the_seed_alone() -> None:
    """Not on how many are played side by side, nor on the policy; another seed, and the next batch, are others."""
    first = episodes(Paired(make_envs(Walk, SIZE), SIZE), 5 * SIZE)[1].states[0]
    agent = agent_on(Paired(make_envs(Walk, 4 * SIZE), SIZE))
    other_theta = agent.state.theta + torch.randn(len(agent.state.theta), generator=torch.Generator().manual_seed(0))
    side_by_side = agent.collector.episodes(other_theta, 5 * SIZE).states[0]
    assert torch.equal(first, side_by_side)
    assert not torch.equal(first, agent.collector.episodes(other_theta, 5 * SIZE).states[0])
    assert not torch.equal(first, episodes(Paired(make_envs(Walk, SIZE), SIZE), 5 * SIZE, seed=4)[1].states[0])
    agent.collector.batches = {}  # the first batch once more
    assert torch.equal(first, agent.collector.episodes(other_theta, 5 * SIZE).states[0])


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_actions_have_the_same_returns(kind: str) -> None:
    """A seed determines all but the actions; other actions have other returns."""
    envs = Paired(MAKERS[kind](2 * SIZE), SIZE)
    envs.reset(11)
    actions = np.random.default_rng(0).integers(3, size=(12, 2, 1))
    returns, alive = np.zeros(2 * SIZE), np.ones(2 * SIZE, bool)
    for action in actions:
        step = envs.step(np.broadcast_to(action, (2, SIZE)).reshape(-1).copy())
        returns += step.rewards * alive
        alive &= ~(step.terminated | step.truncated)
    assert not alive.any()
    returns = returns.reshape(2, SIZE)
    assert (returns == returns[:, :1]).all()
    assert returns[0, 0] != returns[1, 0]
    envs.close()


def test_both_vector_classes_begin_alike() -> None:
    """Equal seeds give equal first observations, in SyncVectorEnv, AsyncVectorEnv and our own backends."""
    firsts = []
    for kind in ("sync", "async", "SyncVectorEnv", "AsyncVectorEnv"):
        envs = Paired(MAKERS[kind](2 * SIZE), SIZE)
        firsts.append(envs.reset(5))
        envs.close()
    for other in firsts[1:]:
        np.testing.assert_array_equal(firsts[0], other)
    assert (firsts[0][0] == firsts[0][1]).all()
    assert (firsts[0][0] != firsts[0][SIZE]).any()


def test_a_horizon_cuts_episodes_and_the_next_group_begins_with_its_seed() -> None:
    envs = Paired(make_envs(lambda: Walk(limit=50, edge=0.6), 2 * SIZE), SIZE)
    _, rollout = episodes(envs, 6 * SIZE, horizon=5)
    lengths = rollout.mask.sum(0)
    assert int(lengths.max()) == 5
    assert int(lengths.min()) < 5
    alone = Walk()
    for column in range(6 * SIZE):
        seen, _ = alone.reset(seed=episode_seed(envs.run_seed, 0, column // SIZE))
        np.testing.assert_array_equal(seen, rollout.states[0, column].numpy())


def test_observations_stacked_inside_the_groups_begin_with_empty_frames() -> None:
    envs = Paired(FrameStack(make_envs(Walk, 2 * SIZE), 2), SIZE)
    _, rollout = episodes(envs, 4 * SIZE)
    firsts = rollout.states[0].unflatten(0, (-1, SIZE))
    assert bool((firsts == firsts[:, :1]).all())
    assert bool((firsts[..., :3] == 0).all())


def test_memory_noise_of_members_is_independent() -> None:
    envs = Paired(make_envs(Walk, 2 * SIZE), SIZE)
    agent = REINFORCE("MlpPolicy", envs, num_episodes=4 * SIZE, memory="s2pg", memory_size=2, seed=0, device="cpu")
    assert isinstance(agent.collector.envs, Memory)
    assert agent.collector.envs.group_size == SIZE
    rollout = agent.collector.episodes(agent.state.theta, 4 * SIZE)
    for key, states in rollout.states.items():
        members = states[0].unflatten(0, (-1, SIZE))
        assert bool((members == members[:, :1]).all()), key
    memories = rollout.states[MEMORY][1].unflatten(0, (-1, SIZE))
    assert bool((memories[:, 0] != memories[:, 1]).all())
    assert bool((memories[:, 0] != memories[:, 2]).all())


def test_plain_steps_go_on() -> None:
    agent = agent_on(Paired(make_envs(Walk, SIZE), SIZE))
    rollout = agent.collector.steps(agent.state.theta, 30)
    assert bool(rollout.mask.all())
    assert bool((rollout.states[0] == rollout.states[0, :1]).all())
    agent.learn(2 * 8 * SIZE)


def test_normalised_observations_count_no_idle_environment() -> None:
    envs = Paired(make_envs(Walk, 2 * SIZE), SIZE)
    agent = PPO("MlpPolicy", envs, n_steps=8, batch_size=8, seed=3, device="cpu", normalize_observations=True)
    rollout = agent.collector.episodes(agent.state.theta, 4 * SIZE)
    counted = agent.collector.observation_normalizer.moments[""].count
    assert counted == pytest.approx(int(rollout.mask.sum()), abs=1e-3)


# ---------------------------------------------------------------------- refusals


class Careless(Walk):
    """Begins as it likes, whatever the seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return super().reset(seed=None if not hasattr(self, "x") else int(np.abs(self.x) * 1e6) + 1)


class Ageing(Walk):
    """Begins as the seed says, and pays less in every episode."""

    age = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.age += 1
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward - self.age, *rest


class Late(Walk):
    """Is careless from its fourth episode on: no probe sees it."""

    age = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.age += 1
        return super().reset(seed=seed if self.age < 4 else id(self) % 1_000_003)


class Endless(Walk):
    """Never ends, so that no episode but those of a group begins."""

    def step(self, action: Any) -> Any:
        return *super().step(action)[:2], False, False, {}


def test_environments_that_a_seed_does_not_determine_are_refused() -> None:
    with pytest.raises(
        ValueError, match="Careless is not determined by its seed: observation of environment 0 differs after 0"
    ):
        Paired(make_envs(Careless, 4), 2)
    with pytest.raises(ValueError, match="reward of environment 0 differs after 1 steps of the same actions, played twice"):
        Paired(make_envs(Ageing, 4), 2)
    with pytest.raises(ValueError, match="not determined by its seed"):
        Paired(make_envs([lambda n=n: ScriptedEnv(RandomScript(), n) for n in range(2)]), 2)
    different = [lambda: Walk(limit=9, edge=9.0), lambda: Walk(limit=3, edge=9.0)]
    with pytest.raises(ValueError, match=r"environment 1 differs after 1 steps.*side by side"):
        Paired(make_envs(different), 2)


def test_members_that_begin_differently_later_are_an_error() -> None:
    class LateEndless(Late, Endless):
        pass

    agent = agent_on(Paired(make_envs(LateEndless, 2), 2))
    agent.collector.episodes(agent.state.theta, 2, 3)
    with pytest.raises(EnvironmentFault, match=r"environment 1 at an episode's start is another than that of environment 0"):
        agent.collector.episodes(agent.state.theta, 2, 3)


def test_environments_that_cannot_be_seeded_one_by_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"under NEXT_STEP autoreset.*AutoresetMode.DISABLED"):
        Paired(make_envs("CartPoleNoVel-v1", 4, backend="native"), 2)
    with pytest.raises(ValueError, match="under SAME_STEP autoreset"):
        Paired(make_envs(SyncVectorEnv([Walk] * 2, autoreset_mode=AutoresetMode.SAME_STEP)), 2)
    with pytest.raises(ValueError, match="under NEXT_STEP autoreset"):
        Paired(FrameStack(make_envs(SyncVectorEnv([Walk] * 2)), 2), 2)
    with pytest.raises(ValueError, match="a VecEnv of Stable-Baselines3, begins episodes by itself"):
        Paired(make_envs(DummyVecEnv([Walk, Walk])), 2)
    with pytest.raises(ValueError, match=r"does not take a seed for each.*draws for all copies together"):
        Paired(make_envs(QueuesVectorEnv(Queues(), 4)), 2)


def test_envpool_is_refused() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(ValueError, match="takes seeds at construction only"):
        Paired(make_envs("CartPole-v1", 4, backend="envpool", seed=0), 2)


def test_a_vector_environment_that_takes_one_seed_is_refused() -> None:
    class OneSeed(TabularVectorEnv):
        def reset(self, *, seed: Any = None, options: Any = None) -> Any:
            gym.utils.seeding.np_random(seed)
            return super().reset(seed=seed, options=options)

    with pytest.raises(ValueError, match="does not take a seed for each of its environments"):
        Paired(make_envs(OneSeed(MDP, 4)), 2)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="group_size: 5 environments cannot be divided into groups of 2"):
        Paired(make_envs(Walk, 5), 2)
    with pytest.raises(ValueError, match="group_size: expected an integer of at least 2, got 1"):
        Paired(make_envs(Walk, 2), 1)
    with pytest.raises(ValueError, match="probe_steps"):
        Paired(make_envs(Walk, 2), 2, probe_steps=0)
    envs = Paired(make_envs(Walk, 4), 2)
    agent = agent_on(envs)
    with pytest.raises(ValueError, match="num_episodes: expected a multiple of 2, the episodes of a group, got 3"):
        agent.collector.episodes(agent.state.theta, 3)
    for part in ([0], [1, 2], [0, 1, 3]):
        with pytest.raises(ValueError, match="rows: expected whole groups of 2"):
            envs.restart(np.array(part))
    envs.restart(np.array([2, 3]))
    assert envs.seeds[2] == envs.seeds[3]


# ---------------------------------------------------------------------- seeds of copies


def test_ids_are_made_so_that_they_can_be_seeded() -> None:
    """Gymnasium's own vector implementation where that is possible, else single environments."""
    for env_id, kind in (
        ("rlopt/RandomMDP-v0", "Gymnasium"),
        ("CartPole-v1", "Gymnasium"),
        ("CartPoleNoVel-v1", "Sync"),
        ("rlopt/Queues-v0", "Sync"),
    ):
        envs = paired_envs(env_id, 2, SIZE)
        assert (envs.num_envs, envs.group_size) == (2 * SIZE, SIZE)
        assert type(envs.envs).__name__.startswith(kind)
        envs.close()
    with pytest.raises(ValueError, match="NEXT_STEP"):
        paired_envs("CartPoleNoVel-v1", 2, 2, backend="native")
    with pytest.raises(ValueError, match="num_groups"):
        paired_envs("CartPole-v1", 0, 2)


def test_copies_with_seeds_of_their_own_do_not_see_one_another() -> None:
    """The course of a copy is that of the same seed alone, whoever else is reset meanwhile."""
    problem = LinearQuadratic.point_mass(noise=0.1)
    envs, alone = LinearQuadraticVectorEnv(problem, 3), LinearQuadraticVectorEnv(problem, 1)
    first, _ = envs.reset(seed=[7, 8, 9], options={})
    expected, _ = alone.reset(seed=[8])
    np.testing.assert_allclose(first[1], expected[0], rtol=1e-6)
    for t in range(6):
        if t == 3:
            envs.reset(seed=[None, None, 4], options={"reset_mask": np.array([True, False, True])})
        envs.step(np.zeros((3, problem.num_actions), np.float32))
        alone.step(np.zeros((1, problem.num_actions), np.float32))
        np.testing.assert_allclose(envs.states[1], alone.states[0], rtol=1e-12)
    assert (envs.states[0] != envs.states[2]).any()
    envs.reset(seed=7)  # one generator for all again
    assert isinstance(envs.np_random, np.random.Generator)
    with pytest.raises(ValueError, match="seed: expected one, or 3, got 2"):
        envs.reset(seed=[1, 2])


def test_seeds_of_copies_do_not_change_what_is_drawn() -> None:
    """Transitions of 20,000 copies, each with a seed of its own, are distributed as the MDP says."""
    num = 20_000
    envs = TabularVectorEnv(MDP, num)
    envs.reset(seed=list(range(num)))
    states = envs.states
    counts = np.bincount(states, minlength=MDP.num_states)
    expected = MDP.initial.numpy() * num
    live = expected > 0
    assert (((counts - expected)[live] ** 2) / expected[live]).sum() < 13.82  # 0.999 quantile of χ², 2 degrees of freedom
    envs.step(np.ones(num, np.int64))
    for state in range(3):
        there = states == state
        moved = np.bincount(envs.states[there], minlength=MDP.num_states)
        expected = MDP.transitions[state, 1].numpy() * there.sum()
        assert (((moved - expected) ** 2) / expected).sum() < 16.27  # 3 degrees of freedom


def test_group_size_is_passed_on_by_wrappers() -> None:
    envs = Memory(Paired(make_envs(Walk, 4), 2), 1)
    assert envs.group_size == 2
    assert make_envs(Walk, 4).group_size == 1
    assert envs.episode_counters() is None
    assert not envs.restore_episodes({})
    assert isinstance(envs.decoder.raw_space, spaces.Box)
