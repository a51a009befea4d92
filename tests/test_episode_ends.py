"""Episode ends: what the collector makes of them is the same for every kind of environment, and right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import rlopt.collector
from rlopt import PPO, EnvironmentFault, make_envs
from rlopt.collector import Collector
from rlopt.envs import Environments
from rlopt.estimators import gae
from rlopt.rollout import Rollout
from rlopt.statistics import EpisodeStatistics
from tests.scripted_envs import (
    Episode,
    FixedScript,
    PoisonedVectorEnv,
    RandomScript,
    Script,
    ScriptedEnv,
    factories,
    reference_advantages,
    rows_of,
)

NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
GAMMA, LAMBDA = 0.9, 0.8


def gymnasium_async(script: Script, num_envs: int, mode: AutoresetMode) -> Environments:
    return make_envs(AsyncVectorEnv(factories(script, num_envs), autoreset_mode=mode, context="forkserver"))


# Every way for a script to reach the collector, by whether a finished environment is reset by the next step.
MAKERS: dict[str, Callable[[Script, int], Environments]] = {
    "own sync": lambda script, n: make_envs(factories(script, n)),
    "gymnasium next-step": lambda script, n: make_envs(SyncVectorEnv(factories(script, n), autoreset_mode=NEXT_STEP)),
    "gymnasium same-step": lambda script, n: make_envs(SyncVectorEnv(factories(script, n), autoreset_mode=SAME_STEP)),
    "gymnasium disabled": lambda script, n: make_envs(SyncVectorEnv(factories(script, n), autoreset_mode=DISABLED)),
    "poisoned next-step": lambda script, n: make_envs(PoisonedVectorEnv([make() for make in factories(script, n)])),
    "sb3 dummy": lambda script, n: make_envs(DummyVecEnv(factories(script, n))),
}
PROCESSES: dict[str, Callable[[Script, int], Environments]] = {
    "own async": lambda script, n: make_envs(factories(script, n), backend="async"),
    "gymnasium async next-step": lambda script, n: gymnasium_async(script, n, NEXT_STEP),
    "gymnasium async same-step": lambda script, n: gymnasium_async(script, n, SAME_STEP),
    "gymnasium async disabled": lambda script, n: gymnasium_async(script, n, DISABLED),
    "sb3 subprocess": lambda script, n: make_envs(SubprocVecEnv(factories(script, n), start_method="forkserver")),
}


def make_agent(env: Any = None, **kwargs: Any) -> PPO:
    """A small PPO with every parameter away from zero."""
    kwargs = {"policy_kwargs": {"net_arch": [8]}, "n_steps": 20, "batch_size": 20, "seed": 0, "device": "cpu", **kwargs}
    env = env or ScriptedEnv(RandomScript(), 0)
    agent = PPO("MlpPolicy", env, gamma=kwargs.pop("gamma", GAMMA), gae_lambda=kwargs.pop("gae_lambda", LAMBDA), **kwargs)
    theta = agent.state.theta + 0.1 * torch.randn(agent.state.theta.shape, generator=torch.Generator().manual_seed(1))
    agent._adopt(agent.state._replace(theta=theta))
    return agent


def make_collector(agent: PPO, envs: Environments) -> Collector:
    generator = torch.Generator().manual_seed(0)
    return Collector(envs, agent.functional, generator, EpisodeStatistics(envs.num_envs))


def exact_value(agent: PPO) -> Callable[[np.ndarray], float]:
    """The agent's critic, written out in float64."""
    weights = {name: array.double().numpy() for name, array in agent.functional.unravel(agent.state.theta).items()}

    def value(observation: np.ndarray) -> float:
        hidden = weights["policy.mlp_extractor.value_net.0.weight"] @ observation.astype(np.float64)
        hidden = np.tanh(hidden + weights["policy.mlp_extractor.value_net.0.bias"])
        return float(weights["policy.value_net.weight"][0] @ hidden + weights["policy.value_net.bias"][0])

    return value


@dataclass
class Walk:
    """Follows the script beside the rollouts: which episode and step every row must be."""

    script: Script
    num_envs: int
    next_step: bool

    def __post_init__(self) -> None:
        self.rows: list[Iterator[Any]] = [rows_of(self.script, n, self.next_step) for n in range(self.num_envs)]

    def take(self, num_steps: int) -> list[list[tuple[int, int] | None]]:
        """The next `num_steps` rows of every environment, [N][T]."""
        return [list(itertools.islice(rows, num_steps)) for rows in self.rows]


def check_against_script(agent: PPO, collector: Collector, script: Script, num_steps: int = 20, rollouts: int = 4) -> dict:
    """Compare rollouts, and the agent's advantages, with the script; AssertionError where they differ.

    Returns:
        Advantages by (environment, episode), of episodes that lie within one rollout.
    """
    envs = collector.envs
    walk, value = Walk(script, envs.num_envs, envs.resets_on_next_step), exact_value(agent)
    whole: dict[tuple[int, int], np.ndarray] = {}
    counted = 0
    for _ in range(rollouts):
        rollout = collector.steps(agent.state.theta, num_steps)
        expected = walk.take(num_steps)
        advantages = scattered(agent, rollout)
        following = rollout.next_observations.numpy()
        for n, rows in enumerate(expected):
            for t, row in enumerate(rows):
                assert bool(rollout.mask[t, n]) == (row is not None), f"mask of row {t}, environment {n}"
                if row is None:
                    assert float(rollout.rewards[t, n]) == 0.0
                    assert not rollout.terminated[t, n] and not rollout.truncated[t, n]  # noqa: PT018
                    continue
                counted += 1
                episode, step = script.episode(n, row[0]), row[1]
                last = step == len(episode) - 1
                np.testing.assert_array_equal(rollout.observations[t, n].numpy(), episode.observations[step])
                np.testing.assert_array_equal(following[t, n], episode.observations[step + 1])
                assert float(rollout.rewards[t, n]) == np.float32(episode.rewards[step])
                assert bool(rollout.terminated[t, n]) == (last and episode.terminated)
                assert bool(rollout.truncated[t, n]) == (last and episode.truncated and not episode.terminated)
            for number, group in itertools.groupby(
                ((t, row) for t, row in enumerate(rows) if row is not None), lambda item: item[1][0]
            ):
                times, steps = zip(*((t, row[1]) for t, row in group), strict=True)
                episode = script.episode(n, number)
                reference = reference_advantages(episode, steps[0], steps[-1] + 1, value, agent.gamma, agent.gae_lambda)
                np.testing.assert_allclose(advantages[list(times), n], reference, rtol=0, atol=1e-6)
                if len(steps) == len(episode):
                    whole[n, number] = advantages[list(times), n]
    assert collector.num_timesteps == counted
    return whole


def scattered(agent: PPO, rollout: Rollout) -> np.ndarray:
    """The agent's advantages where their rows are, [T, N]; NaN elsewhere."""
    batch = agent.advantages(agent.state.theta, rollout)
    result = torch.full(rollout.mask.shape, torch.nan)
    result.view(-1)[rollout.valid_rows()] = batch.advantages
    return result.numpy()


def constant_critic(agent: PPO, value: float) -> PPO:
    """v(s) = value, and a uniform policy."""
    theta = torch.zeros_like(agent.state.theta)
    agent.functional.unravel(theta)["policy.value_net.bias"][:] = value
    agent._adopt(agent.state._replace(theta=theta))
    return agent


# ---------------------------------------------------------------------------------------------------- equivalence


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_rollouts_and_advantages_are_those_of_a_loop_over_episodes(kind: str, num_envs: int) -> None:
    script, agent = RandomScript(), make_agent()
    with closing(MAKERS[kind](script, num_envs)) as envs:
        whole = check_against_script(agent, make_collector(agent, envs), script)
    assert len(whole) >= 5 * num_envs


@pytest.mark.parametrize("kind", [*list(PROCESSES)[:-1], pytest.param("sb3 subprocess", marks=pytest.mark.slow)])
def test_worker_processes_give_the_same_rollouts_and_advantages(kind: str) -> None:
    script, agent = RandomScript(), make_agent()
    with closing(PROCESSES[kind](script, 2)) as envs:
        assert len(check_against_script(agent, make_collector(agent, envs), script)) >= 10


def test_advantages_agree_between_all_kinds_of_environments() -> None:
    script, agent = RandomScript(), make_agent()
    found = []
    for make in MAKERS.values():
        with closing(make(script, 3)) as envs:
            found.append(check_against_script(agent, make_collector(agent, envs), script))
    for other in found[1:]:
        shared = found[0].keys() & other.keys()
        assert len(shared) >= 15
        for key in shared:
            np.testing.assert_allclose(other[key], found[0][key], rtol=0, atol=1e-6)


def test_a_recorded_envpool_stream_gives_the_same_advantages_in_every_other_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("envpool")
    envs = make_envs("CartPole-v1", num_envs=2, backend="envpool", seed=1, env_kwargs={"max_episode_steps": 15})
    agent = make_agent(make_envs("CartPole-v1"))
    collector = make_collector(agent, envs)
    rollouts = [collector.steps(agent.state.theta, 40) for _ in range(3)]
    envs.close()
    script = FixedScript({n: recorded_episodes(rollouts, n) for n in range(2)})
    ends = [(episode.terminated, episode.truncated) for n in range(2) for episode in script.episodes[n]]
    assert {(True, False), (False, True)} <= set(ends)
    count = min(len(episodes) for episodes in script.episodes.values())
    from_envpool = recorded_advantages(agent, rollouts)
    for make in MAKERS.values():
        with closing(make(script, 2)) as replay:
            replayed = recorded_advantages(agent, [make_collector(agent, replay).steps(agent.state.theta, 90)])
        shared = [key for key in from_envpool.keys() & replayed.keys() if key[1] < count]
        assert len(shared) >= 6
        for key in shared:
            np.testing.assert_allclose(replayed[key], from_envpool[key], rtol=0, atol=2e-6)


def recorded_episodes(rollouts: list[Rollout], n: int) -> list[Episode]:
    """The whole episodes of environment n, read off consecutive rollouts."""
    rows = [
        (r.observations[t, n], r.next_observations[t, n], r.rewards[t, n], r.terminated[t, n], r.truncated[t, n])
        for r in rollouts
        for t in range(len(r.mask))
        if r.mask[t, n]
    ]
    episodes, begun = [], 0
    for i, (_, final, _, terminated, truncated) in enumerate(rows):
        if terminated or truncated:
            part = rows[begun : i + 1]
            states = np.stack([*(row[0].numpy() for row in part), final.numpy()])
            rewards = np.array([float(row[2]) for row in part])
            episodes.append(Episode(states, rewards, bool(terminated), bool(truncated)))
            begun = i + 1
    return episodes


def recorded_advantages(agent: PPO, rollouts: list[Rollout]) -> dict[tuple[int, int], np.ndarray]:
    """Advantages by (environment, episode) of the episodes that lie within one rollout."""
    result = {}
    for n in range(rollouts[0].mask.shape[1]):
        number, whole = 0, True
        for rollout in rollouts:
            advantages, rows = scattered(agent, rollout), []
            for t in range(len(rollout.mask)):
                if not rollout.mask[t, n]:
                    continue
                rows.append(t)
                if rollout.terminated[t, n] or rollout.truncated[t, n]:
                    if whole:
                        result[n, number] = advantages[rows, n]
                    number, rows, whole = number + 1, [], True
            whole = not rows
    return result


def test_parameters_after_ten_updates_on_whole_episodes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    make_actor = rlopt.collector.make_actor

    def noise_from_state(module: Any, num_envs: int) -> Any:
        """An actor whose noise is a function of the state: the same in every kind of environment."""
        actor = make_actor(module, num_envs)
        return lambda states, noise: actor(states, 2 * np.sin(100 * states[:, :2]))

    monkeypatch.setattr(rlopt.collector, "make_actor", noise_from_state)
    found = {}
    for kind, make in MAKERS.items():
        agent = make_agent(n_epochs=2, learning_rate=1e-2)
        state = agent.state
        for update in range(10):
            with closing(make(RandomScript(seed=update), 3)) as envs:
                rollout = make_collector(agent, envs).episodes(state.theta, 7)
            state, _ = agent.update(state, agent.advantages(state.theta, rollout), 1.0)
        found[kind] = state.theta
    start = make_agent().state.theta
    for kind, theta in found.items():
        assert (theta - start).abs().max() > 1e-2
        # A row that resets takes time, in which other environments may start the episodes that are left.
        same = "gymnasium next-step" if "next-step" in kind else "own sync"
        torch.testing.assert_close(theta, found[same], rtol=0, atol=1e-6, msg=kind)


# ---------------------------------------------------------------------------------------------------- single rules

UNLIKE_ENDS = {"neither": (False, False), "terminated": (True, False), "truncated": (False, True), "both": (True, True)}
# γ = 1/2, v = 2 everywhere, rewards 1 then 3: δ_0 = 1 + ½·2 − 2 = 0, δ_1 = 3 + [½·2] − 2
BY_HAND = {"neither": 2.0, "terminated": 1.0, "truncated": 2.0, "both": 1.0}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("end", UNLIKE_ENDS)
@pytest.mark.parametrize("lambda_", [0.0, 1.0])
def test_all_four_combinations_of_flags_give_the_advantages_computed_by_hand(kind: str, end: str, lambda_: float) -> None:
    terminated, truncated = UNLIKE_ENDS[end]
    rewards = np.array([1.0, 3.0] if end != "neither" else [1.0, 3.0, 7.0, 7.0])  # the rollout cuts the longer one
    episode = Episode(np.eye(len(rewards) + 1, 5, dtype=np.float32), rewards, terminated, truncated or end == "neither")
    script = FixedScript({0: [episode]})
    agent = constant_critic(make_agent(ScriptedEnv(script, 0), gamma=0.5, gae_lambda=lambda_), 2.0)
    with closing(MAKERS[kind](script, 1)) as envs:
        advantages = scattered(agent, make_collector(agent, envs).steps(agent.state.theta, 2))[:, 0]
    np.testing.assert_allclose(advantages, [0.5 * lambda_ * BY_HAND[end], BY_HAND[end]], atol=1e-6)


def one_hot_script(length: int, rewards: np.ndarray) -> FixedScript:
    """Truncated episodes whose observation is the time, one-hot."""
    return FixedScript({0: [Episode(np.eye(length + 1, dtype=np.float32), rewards, False, True)]})


def iterated_values(rollout: Rollout, size: int, gamma: float, lambda_: float) -> torch.Tensor:
    """The fixed point of a tabular critic that is fitted to its own targets A + v."""
    table = torch.zeros(size)
    for _ in range(400):
        values, next_values = rollout.values(lambda states, table=table: table[states.argmax(-1)])
        discounts, traces = rollout.discounts(gamma), rollout.traces(lambda_)
        targets = gae(rollout.rewards, values, next_values, discounts, traces) + values
        visited = rollout.observations.argmax(-1)
        fitted = torch.stack([targets[(visited == s) & rollout.mask].mean() for s in range(size - 1)])
        table = torch.cat([fitted, fitted[-1:]])  # the last state is like the one before it, and is never left
    return table


@pytest.mark.parametrize("kind", MAKERS)
def test_values_at_a_time_limit_tend_to_those_of_the_infinite_horizon(kind: str) -> None:
    agent = make_agent(ScriptedEnv(one_hot_script(8, np.ones(8)), 0))
    with closing(MAKERS[kind](one_hot_script(8, np.ones(8)), 1)) as envs:
        rollout = make_collector(agent, envs).steps(agent.state.theta, 72)
    table = iterated_values(rollout, 9, gamma=0.9, lambda_=0.0)
    np.testing.assert_allclose(table, 10.0, atol=1e-3)


def test_values_tend_elsewhere_if_truncation_is_taken_for_termination(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rollout, "discounts", truncation_terminates)
    with pytest.raises(AssertionError):
        test_values_at_a_time_limit_tend_to_those_of_the_infinite_horizon("own sync")


@pytest.mark.parametrize("kind", MAKERS)
def test_a_late_reward_is_seen_from_the_state_before_it_alone(kind: str) -> None:
    rewards = np.array([0.0, 0.0, 0.0, 100.0])
    script = one_hot_script(4, rewards)
    agent = make_agent(ScriptedEnv(script, 0))
    value = torch.tensor([1.0, 2.0, 4.0, 8.0, -50.0])  # after the last reward there is a debt
    with closing(MAKERS[kind](script, 1)) as envs:
        rollout = make_collector(agent, envs).steps(agent.state.theta, 4)
    values, next_values = rollout.values(lambda states: value[states.argmax(-1)])
    advantages = gae(rollout.rewards, values, next_values, rollout.discounts(1.0), rollout.traces(0.0))
    np.testing.assert_array_equal(advantages[:, 0], [1.0, 2.0, 4.0, 100.0 - 50.0 - 8.0])


def test_bootstrapping_from_the_current_state_shows_in_a_late_reward(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rollout, "values", bootstrap_from_current_state)
    with pytest.raises(AssertionError):
        test_a_late_reward_is_seen_from_the_state_before_it_alone("own sync")


@pytest.mark.parametrize("kind", MAKERS)
def test_nothing_leaks_through_a_truncation(kind: str) -> None:
    def advantages_before(later_reward: float) -> np.ndarray:
        states = np.eye(4, 3, dtype=np.float32)
        quiet, later = (Episode(states, np.full(3, reward), False, True) for reward in (0.0, later_reward))
        with closing(MAKERS[kind](FixedScript({0: [quiet, later]}), 1)) as envs:
            return scattered(agent, make_collector(agent, envs).steps(agent.state.theta, 7))[:3, 0]

    agent = make_agent(gae_lambda=1.0)
    np.testing.assert_array_equal(advantages_before(0.0), advantages_before(1e6))


def test_a_trace_that_is_not_cut_leaks_through_a_truncation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Rollout, "traces", truncation_keeps_trace)
    for kind in MAKERS:
        with pytest.raises(AssertionError):
            test_nothing_leaks_through_a_truncation(kind)


def learned_beside_poison(poison: float) -> PPO:
    envs = PoisonedVectorEnv([make() for make in factories(RandomScript(), 3)], poison)
    agent = make_agent(envs, normalize_observations=True, normalize_rewards=True, batch_size=16, n_steps=32, gae_lambda=0.9)
    return agent.learn(192)


def assert_same_learning(agent: PPO, other: PPO) -> None:
    assert torch.equal(agent.state.theta, other.state.theta)
    assert agent.num_timesteps == other.num_timesteps
    assert [(e["r"], e["l"]) for e in agent.ep_info_buffer] == [(e["r"], e["l"]) for e in other.ep_info_buffer]
    for mine, theirs in (
        (agent.observation_normalizer, other.observation_normalizer),
        (agent.reward_normalizer, other.reward_normalizer),
    ):
        for key, array in mine.state().items():
            np.testing.assert_array_equal(array, theirs.state()[key])


@pytest.mark.filterwarnings("ignore:batch_size")
def test_poison_on_reset_rows_reaches_neither_losses_nor_statistics_nor_normalisers() -> None:
    assert_same_learning(learned_beside_poison(1e6), learned_beside_poison(0.0))


@pytest.mark.filterwarnings("ignore:batch_size")
def test_poison_that_is_not_masked_changes_what_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = learned_beside_poison(0.0)
    monkeypatch.setattr(Collector, "_without_reset_rows", reset_rows_count)
    with pytest.raises(AssertionError):
        assert_same_learning(learned_beside_poison(1e6), healthy)


def test_episode_statistics_are_those_of_the_script_in_every_mode() -> None:
    script, agent = RandomScript(), make_agent()
    for make in MAKERS.values():
        with closing(make(script, 2)) as envs:
            collector = make_collector(agent, envs)
            collector.statistics.on_episode = (found := []).append
            collector.steps(agent.state.theta, 60)
        for n in range(2):
            mine = [episode for episode in found if episode["env"] == n]
            assert len(mine) >= 8
            for number, episode in enumerate(mine):
                assert episode["r"] == pytest.approx(script.episode(n, number).rewards.sum(), abs=1e-6)
                assert episode["l"] == len(script.episode(n, number))


RAMP = Episode(np.arange(18, dtype=np.float32).reshape(6, 3) / 16, np.arange(5) / 8, False, True)
BOUNDARY = FixedScript({0: [RAMP], 1: [RAMP]})  # every episode has the length of a rollout


@pytest.mark.parametrize("kind", MAKERS)
def test_an_end_in_the_last_row_makes_the_first_row_of_the_next_rollout_a_reset_row(kind: str) -> None:
    agent = make_agent()
    with closing(MAKERS[kind](BOUNDARY, 2)) as envs:
        collector = make_collector(agent, envs)
        check_against_script(agent, collector, BOUNDARY, num_steps=5, rollouts=1)
        assert collector.reset_pending.all() == envs.resets_on_next_step
        rollout = collector.steps(agent.state.theta, 5)
    assert bool(rollout.mask[0].any()) != envs.resets_on_next_step
    assert bool(rollout.mask[1:].all())


def test_an_end_in_the_last_row_survives_from_one_learn_to_the_next() -> None:
    def learned(*parts: int) -> PPO:
        envs = PoisonedVectorEnv([make() for make in factories(BOUNDARY, 2)])
        agent = make_agent(envs, n_steps=5, batch_size=4, n_epochs=1, normalize_advantage=True)
        for i, steps in enumerate(parts):
            agent.learn(steps, reset_num_timesteps=i == 0)
        return agent

    with pytest.warns(UserWarning, match="batch_size"):
        once, twice = learned(28), learned(10, 18)
    assert once.num_timesteps == twice.num_timesteps == 10 + 8 + 8 + 8
    assert [e["l"] for e in once.ep_info_buffer] == [e["l"] for e in twice.ep_info_buffer]
    assert torch.equal(once.state.theta, twice.state.theta)


def test_a_forgotten_end_in_the_last_row_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Collector, "steps", forget_pending(Collector.steps))
    with pytest.raises(AssertionError):
        test_an_end_in_the_last_row_makes_the_first_row_of_the_next_rollout_a_reset_row("poisoned next-step")


def test_steps_are_counted_as_stable_baselines3_counts_them() -> None:
    def envs() -> DummyVecEnv:
        return DummyVecEnv(factories(RandomScript(), 3))

    ours = make_agent(envs(), n_steps=20).learn(100)
    theirs = SB3PPO("MlpPolicy", envs(), n_steps=20, batch_size=20, device="cpu").learn(100)
    assert ours.num_timesteps == theirs.num_timesteps == 120


@pytest.mark.parametrize("kind", MAKERS)
def test_a_rollout_stores_what_the_policy_saw_so_that_first_ratios_are_one(kind: str) -> None:
    with closing(MAKERS[kind](RandomScript(), 3)) as envs:
        agent = make_agent(envs, normalize_observations=True, normalize_rewards=True)
        rollout = agent.collector.steps(agent.state.theta, 40)
    with torch.no_grad():
        distribution = agent.functional.bind(agent.state.theta).actor(rollout.observations.flatten(0, 1))
        log_probs = distribution.log_prob(rollout.actions.flatten(0, 1))
    assert torch.equal(log_probs[rollout.valid_rows()], rollout.log_probs.flatten()[rollout.valid_rows()])


# ---------------------------------------------------------------------------------------------------- arrays reused


@pytest.mark.parametrize(
    "make",
    [
        lambda script: make_envs(factories(script, 2, reuse=True)),
        lambda script: make_envs(SyncVectorEnv(factories(script, 2, reuse=True), copy=False)),
        lambda script: make_envs(SyncVectorEnv(factories(script, 2, reuse=True), autoreset_mode=DISABLED, copy=False)),
    ],
    ids=["own sync", "next-step without copies", "disabled without copies"],
)
def test_environments_that_reuse_their_observation_array_are_read_right(make: Callable[[Script], Environments]) -> None:
    script, agent = RandomScript(), make_agent()
    check_against_script(agent, make_collector(agent, make(script)), script)


@pytest.mark.parametrize(
    "make",
    [
        lambda script: make_envs(SyncVectorEnv(factories(script, 2, reuse=True), autoreset_mode=SAME_STEP)),
        lambda script: make_envs(DummyVecEnv(factories(script, 2, reuse=True))),
    ],
    ids=["same-step", "sb3"],
)
def test_a_reused_observation_array_is_read_right_or_warned_of(make: Callable[[Script], Environments]) -> None:
    script, agent = RandomScript(), make_agent()
    with pytest.warns(UserWarning, match="reuses its observation array"), pytest.raises(AssertionError):
        check_against_script(agent, make_collector(agent, make(script)), script)


# ---------------------------------------------------------------------------------------------------- unknown ends


class WithoutFinalObservation(gym.vector.VectorWrapper):
    def step(self, actions: Any) -> Any:
        *result, infos = self.env.step(actions)
        return *result, {key: value for key, value in infos.items() if "final_obs" not in key}


class WithoutTerminalObservation(DummyVecEnv):
    def step_wait(self) -> Any:
        *result, infos = super().step_wait()
        return *result, [{k: v for k, v in info.items() if k != "terminal_observation"} for info in infos]


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda f: WithoutFinalObservation(SyncVectorEnv(f, autoreset_mode=SAME_STEP)), "final_obs"),
        (WithoutTerminalObservation, "terminal_observation"),
    ],
)
def test_an_end_without_a_final_observation_is_an_error_and_not_a_guess(make: Any, field: str) -> None:
    agent = make_agent()
    collector = make_collector(agent, make_envs(make(factories(RandomScript(), 2))))
    with pytest.raises(EnvironmentFault, match=field):
        collector.steps(agent.state.theta, 20)


# ---------------------------------------------------------------------------------------------------- negative controls


def reset_rows_count(self: Collector, step: Any) -> Any:
    return step, self._everyone


def truncation_terminates(self: Rollout, gamma: float) -> torch.Tensor:
    return gamma * (~(self.terminated | self.truncated)).float()


def termination_bootstraps(self: Rollout, gamma: float) -> torch.Tensor:
    return torch.full(self.mask.shape, gamma)


def truncation_keeps_trace(self: Rollout, lambda_: float) -> torch.Tensor:
    return lambda_ * (~self.terminated).float()


def bootstrap_from_current_state(self: Rollout, critic: Any, known: Any = None) -> Any:
    values = critic(self.observations.flatten(0, 1)).view(self.mask.shape).detach()
    return values, values


def bootstrap_after_reset(self: Rollout, critic: Any, known: Any = None) -> Any:
    with torch.no_grad():
        values = critic(self.states.flatten(0, 1)).view(len(self.states), -1)
    return values[:-1], values[1:]


def finals_forgotten(self: Rollout) -> torch.Tensor:
    return self.states[1:]


def forget_pending(steps: Any) -> Any:
    def forgetful(self: Collector, *args: Any) -> Rollout:
        self.reset_pending[:] = False
        return steps(self, *args)

    return forgetful


def count_every_row(steps: Any) -> Any:
    def generous(self: Collector, theta: torch.Tensor, num_steps: int) -> Rollout:
        before = self.num_timesteps
        rollout = steps(self, theta, num_steps)
        self.num_timesteps = before + rollout.mask.numel()
        return rollout

    return generous


ALL_NEXT_STEP, ALL_SAME_STEP = ("gymnasium next-step", "poisoned next-step"), ("own sync", "gymnasium same-step", "sb3 dummy")
MISTAKES = {
    "a reset row is not masked": (Collector, "_without_reset_rows", reset_rows_count, ALL_NEXT_STEP),
    "truncation is taken for termination": (Rollout, "discounts", truncation_terminates, MAKERS),
    "termination bootstraps": (Rollout, "discounts", termination_bootstraps, MAKERS),
    "the trace is not cut at a truncation": (Rollout, "traces", truncation_keeps_trace, MAKERS),
    "values come from the current state": (Rollout, "values", bootstrap_from_current_state, MAKERS),
    "values come from after the reset": (Rollout, "values", bootstrap_after_reset, ALL_SAME_STEP),
    "next observations are from after the reset": (Rollout, "next_observations", property(finals_forgotten), ALL_SAME_STEP),
    "a pending reset is forgotten": (Collector, "steps", forget_pending(Collector.steps), ALL_NEXT_STEP),
    "reset rows are counted as steps": (Collector, "steps", count_every_row(Collector.steps), ALL_NEXT_STEP),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_rule_that_is_broken_fails_the_check(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken, kinds = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, broken)
    script, agent = RandomScript(), make_agent()
    for kind in kinds:
        with closing(MAKERS[kind](script, 3)) as envs, pytest.raises(AssertionError):
            check_against_script(agent, make_collector(agent, envs), script)


def test_termination_wins_where_both_flags_are_set() -> None:
    both = FixedScript({0: [Episode(np.eye(3, dtype=np.float32), np.ones(2), True, True)]})
    agent = make_agent()
    for make in MAKERS.values():
        with closing(make(both, 1)) as envs:
            rollout = make_collector(agent, envs).steps(agent.state.theta, 9)
        assert not rollout.truncated.any()
        assert int(rollout.terminated.sum()) >= 3


def test_a_time_limit_wrapper_is_a_truncation_through_gymnasium_ids() -> None:
    agent = make_agent(make_envs("Pendulum-v1"))
    rollout = make_collector(agent, make_envs("Pendulum-v1", num_envs=2)).steps(agent.state.theta, 201)
    assert rollout.truncated.nonzero().tolist() == [[199, 0], [199, 1]]
    assert not rollout.terminated.any()
    assert isinstance(agent.action_space, spaces.Box)
