"""The collector: whole episodes, continuation, callbacks, faults. What it does at episode ends is in test_episode_ends."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorWrapper
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from rlopt import PPO, EnvironmentFault, make_envs
from rlopt.agents.callbacks import StepLocals, listening
from rlopt.collector import CollectionStopped, Collector, StepEvent
from rlopt.envs import Environments
from rlopt.envs.parallel import AsyncEnvironments
from rlopt.envs.sync import SyncEnvironments
from rlopt.episodes import NOISE_BLOCK
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
)
from tests.test_episode_ends import MAKERS, PROCESSES, exact_value, make_agent, make_collector, scattered

SCRIPT = RandomScript()


# ---------------------------------------------------------------------------------------------------- whole episodes


class Part(NamedTuple):
    """One column: which environment played which episode of its script, and for how many steps."""

    environment: int
    number: int
    length: int


@dataclass
class Player:
    """An environment as the script has it: where it is, and the column that it plays."""

    number: int = 0
    step: int = 0
    pending: bool = False
    column: int | None = None


def first_started(script: Script, envs: Environments, num_episodes: int, horizon: int | None) -> list[Part]:
    """The parts that must be taken, by a plain loop over vector steps and environments, in the order of their starts."""
    players = [Player() for _ in range(envs.num_envs)]
    steps_idle = not isinstance(envs, SyncEnvironments | AsyncEnvironments)
    restarts = not steps_idle or getattr(envs, "mode", None) is AutoresetMode.DISABLED
    parts: list[Part | None] = []

    def start(n: int) -> None:
        if len(parts) < num_episodes:
            players[n].column = len(parts)
            parts.append(None)

    def advance(n: int) -> None:
        player = players[n]
        if player.pending:
            player.number, player.step, player.pending = player.number + 1, 0, False
            return
        player.step += 1
        natural = player.step == len(script.episode(n, player.number))
        cut = player.column is not None and not natural and player.step == horizon
        free = natural or (cut and restarts)
        if player.column is not None and (natural or cut):
            parts[player.column] = Part(n, player.number, player.step)
            player.column = None
            if free:
                start(n)
        if natural and envs.resets_on_next_step:
            player.pending = True
        elif natural or (cut and restarts and player.column is not None):
            player.number, player.step = player.number + 1, 0

    for n in range(envs.num_envs):
        start(n)
    while any(part is None for part in parts) or len(parts) < num_episodes:
        if all(player.column is None for player in players):  # none could be restarted alone: all are reset together
            for n, player in enumerate(players):
                players[n] = Player(player.number + 1)
                start(n)
        for n, player in enumerate(players):
            if steps_idle or player.column is not None:
                advance(n)
    return [part for part in parts if part is not None]


def check_episodes(agent: PPO, envs: Environments, script: Script, num_episodes: int, horizon: int | None) -> None:
    """Gather episodes and compare them with the script in everything; AssertionError where they differ."""
    parts = first_started(script, envs, num_episodes, horizon)
    collector = make_collector(agent, envs)
    collector.statistics.on_episode = (finished := []).append
    rollout = collector.episodes(agent.state.theta, num_episodes, horizon)
    assert rollout.mask.shape == (max(part.length for part in parts), num_episodes)
    assert rollout.mask.sum(0).tolist() == [part.length for part in parts]
    assert collector.num_timesteps == rollout.num_valid == sum(part.length for part in parts)
    advantages, value = scattered(agent, rollout), exact_value(agent)
    for j, (n, number, length) in enumerate(parts):
        whole = script.episode(n, number)
        natural = length == len(whole)
        terminated = natural and whole.terminated
        episode = Episode(whole.observations[: length + 1], whole.rewards[:length], terminated, not terminated)
        assert rollout.mask[:, j].tolist() == [t < length for t in range(len(rollout.mask))]
        np.testing.assert_array_equal(rollout.observations[:length, j], episode.observations[:-1])
        np.testing.assert_array_equal(rollout.next_observations[:length, j], episode.observations[1:])
        np.testing.assert_array_equal(rollout.rewards[:length, j], episode.rewards.astype(np.float32))
        assert rollout.terminated[:, j].nonzero().flatten().tolist() == ([length - 1] if terminated else [])
        assert rollout.truncated[:, j].nonzero().flatten().tolist() == ([] if terminated else [length - 1])
        for field in (rollout.rewards, rollout.actions, rollout.log_probs, rollout.next_observations):
            assert not field[length:, j].any(), "padding is zero"
        reference = reference_advantages(episode, 0, length, value, agent.gamma, agent.gae_lambda)
        np.testing.assert_allclose(advantages[:length, j], reference, rtol=0, atol=1e-6)
    expected = [(n, length, float(script.episode(n, number).rewards[:length].sum())) for n, number, length in parts]
    found = [(episode["env"], episode["l"], episode["r"]) for episode in finished]
    assert sorted(found) == sorted(expected), "the statistics are of other episodes"


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("horizon", [None, 1, 4])
@pytest.mark.parametrize(("num_envs", "num_episodes"), [(3, 1), (3, 3), (3, 10), (1, 4)])
def test_the_episodes_first_started_are_gathered_whole(
    kind: str, num_envs: int, num_episodes: int, horizon: int | None
) -> None:
    with closing(MAKERS[kind](SCRIPT, num_envs)) as envs:
        check_episodes(make_agent(), envs, SCRIPT, num_episodes, horizon)


@pytest.mark.parametrize("kind", MAKERS)
def test_long_episodes_are_gathered_whole(kind: str) -> None:
    script = RandomScript(seed=3, max_length=150)
    with closing(MAKERS[kind](script, 3)) as envs:
        check_episodes(make_agent(), envs, script, 8, 100)
    assert any(len(script.episode(0, number)) > NOISE_BLOCK for number in range(2))


@pytest.mark.parametrize("kind", [*list(PROCESSES)[:-1], pytest.param("sb3 subprocess", marks=pytest.mark.slow)])
@pytest.mark.parametrize("horizon", [None, 4])
def test_the_episodes_first_started_are_gathered_whole_from_worker_processes(kind: str, horizon: int | None) -> None:
    with closing(PROCESSES[kind](SCRIPT, 3)) as envs:
        check_episodes(make_agent(), envs, SCRIPT, 8, horizon)


class Runs(gym.Env[Any, Any]):
    """Episodes of 1 or 30 steps, with equal probability, or that never end."""

    observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)
    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, endless: bool = False):
        self.endless = endless
        self.num_steps = 0

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self.length = 10**9 if self.endless else int(self.np_random.choice([1, 30]))
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        self.num_steps += 1
        return np.ones(1, np.float32), 1.0, self.time == self.length, False, {}


def test_short_episodes_are_not_favoured() -> None:
    agent = make_agent(make_envs([Runs] * 8), seed=1)
    lengths = [agent.collector.episodes(agent.state.theta, 12).mask.sum(0) for _ in range(100)]
    share = (torch.cat(lengths) == 30).double().mean()
    assert abs(share - 0.5) < 4 * 0.5 / 1200**0.5
    first = []  # negative control: the first to finish
    for _ in range(100):
        agent.collector.reset()
        ages, lengths = np.zeros(8, int), []
        for ends in agent.collector.steps(agent.state.theta, 60).terminated:
            ages += 1
            lengths += ages[ends].tolist()
            ages[ends] = 0
        first += lengths[:12]
    assert np.mean([length == 30 for length in first]) < 0.4


def test_idle_environments_of_our_own_are_not_stepped() -> None:
    for horizon in (None, 7):
        envs = make_envs([Runs] * 5)
        agent = make_agent(envs)
        for num_episodes in (2, 13):
            before = sum(env.num_steps for env in envs.envs)
            rollout = agent.collector.episodes(agent.state.theta, num_episodes, horizon)
            assert sum(env.num_steps for env in envs.envs) - before == rollout.num_valid
    assert agent.num_timesteps == sum(env.num_steps for env in envs.envs)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_call_begins_with_fresh_episodes_and_so_do_the_steps_after_it(kind: str) -> None:
    agent = make_agent()
    starts = [[SCRIPT.episode(n, number).observations[0].tolist() for number in range(200)] for n in range(2)]
    with closing(MAKERS[kind](SCRIPT, 2)) as envs:
        collector = make_collector(agent, envs)
        found = []
        for horizon in (None, 2, None, 2):
            found.append(starts[0].index(collector.episodes(agent.state.theta, 3, horizon).observations[0, 0].tolist()))
            steps = collector.steps(agent.state.theta, 3)
            assert steps.mask[0].all()
            found.append(starts[0].index(steps.observations[0, 0].tolist()))
            assert steps.observations[0, 1].tolist() in starts[1]
    assert found == sorted(set(found)), "an episode was collected twice, or not from its first state"


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("horizon", [None, 1, 4])
@pytest.mark.parametrize("num_episodes", [2, 10])
def test_normalisers_count_the_rows_of_episodes_and_no_others(kind: str, num_episodes: int, horizon: int | None) -> None:
    with closing(MAKERS[kind](SCRIPT, 3)) as envs:
        agent = make_agent(envs, normalize_observations=True, normalize_rewards=True)
        parts = first_started(SCRIPT, envs, num_episodes, horizon)
        rollout = agent.collector.episodes(agent.state.theta, num_episodes, horizon)
    seen = np.concatenate([SCRIPT.episode(n, number).observations[:length] for n, number, length in parts])
    moments = agent.observation_normalizer.moments[""]
    weight = len(seen) / (len(seen) + 1e-4)  # SB3's statistics begin with a count of 1e-4
    np.testing.assert_allclose(moments.mean, weight * seen.mean(0), rtol=1e-6, atol=1e-8)
    assert moments.count == pytest.approx(len(seen) + 1e-4)
    assert agent.reward_normalizer.moments.count == pytest.approx(len(seen) + 1e-4)
    for j, (n, number, length) in enumerate(parts):  # the last state is normalised as well
        last = SCRIPT.episode(n, number).observations[length]
        assert rollout.states[length, j].isfinite().all()
        assert not np.allclose(rollout.states[length, j].numpy(), last)


@pytest.mark.parametrize("kind", MAKERS)
def test_log_probs_of_episodes_are_those_of_a_fresh_evaluation(kind: str) -> None:
    agent = make_agent()
    with closing(MAKERS[kind](SCRIPT, 3)) as envs:
        rollout = make_collector(agent, envs).episodes(agent.state.theta, 9, 5)
    distribution = agent.functional.bind(agent.state.theta).actor(rollout.observations.flatten(0, 1))
    log_probs = distribution.log_prob(rollout.actions.flatten(0, 1)).view(rollout.mask.shape)
    torch.testing.assert_close(rollout.log_probs, torch.where(rollout.mask, log_probs, torch.zeros(())))


def test_an_endless_episode_is_an_error_that_asks_for_a_horizon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlopt.episodes.MAX_EPISODE_STEPS", 200)
    agent = make_agent(make_envs([lambda: Runs(endless=True)] * 2))
    collector = agent.collector
    with pytest.raises(ValueError, match="horizon: an episode of Runs has not ended after 200 steps; give a horizon"):
        collector.episodes(agent.state.theta, 2)
    rollout = collector.episodes(agent.state.theta, 5, 10)
    assert rollout.mask.sum(0).tolist() == [10] * 5
    assert collector.episodes(agent.state.theta, 1, 300).num_valid == 300
    assert collector.steps(agent.state.theta, 4).mask.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_episodes": 0}, "num_episodes: expected a positive integer, got 0"),
        ({"num_episodes": 2.0}, "num_episodes: expected a positive integer, got 2.0"),
        ({"num_episodes": 1, "horizon": 0}, "horizon: expected a positive integer, got 0"),
        ({"num_episodes": 1, "horizon": 2.5}, "horizon: expected a positive integer, got 2.5"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    agent = make_agent()
    with pytest.raises(ValueError, match=message):
        make_collector(agent, MAKERS["own sync"](SCRIPT, 2)).episodes(agent.state.theta, **arguments)


@pytest.mark.parametrize("where", ["observation", "reward"])
def test_a_value_that_is_not_finite_is_a_fault_that_names_its_place(where: str) -> None:
    class Fails(ScriptedEnv):
        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            if self.environment == 1 and self.number == 0 and self.step_number == 2:
                observation, reward = (observation * np.nan, reward) if where == "observation" else (observation, np.inf)
            return observation, reward, *rest

    script = FixedScript({n: [Episode(np.eye(6, 3, dtype=np.float32), np.ones(5), True, False)] for n in range(2)})
    agent = make_agent(make_envs([lambda n=n: Fails(script, n) for n in range(2)]))
    place = {
        "observation": "observation of environment 1 is not finite at step 2",
        "reward": "reward of environment 1 .* step 1",
    }
    with pytest.raises(EnvironmentFault, match=place[where]):
        agent.collector.episodes(agent.state.theta, 4)
    assert agent.collector.episodes(agent.state.theta, 4).num_valid == 20  # later episodes are healthy


class SpoilsIdleRows(VectorWrapper):
    """Shows, pays and says nonsense in rows of the second environment after its first episode."""

    def reset(self, **kwargs: Any) -> Any:
        self.spoiled = False
        return super().reset(**kwargs)

    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, truncated, infos = super().step(actions)
        if self.spoiled:
            observations[1], rewards[1], terminated[1] = np.nan, np.nan, True
        self.spoiled |= bool(terminated[1] or truncated[1])
        return observations, rewards, terminated, truncated, infos


def test_what_idle_environments_do_is_seen_by_nobody() -> None:
    long, short = (Episode(np.eye(length + 1, 3, dtype=np.float32), np.ones(length), True, False) for length in (8, 2))
    script = FixedScript({0: [long], 1: [short]})
    env = SpoilsIdleRows(SyncVectorEnv(factories(script, 2), autoreset_mode=AutoresetMode.NEXT_STEP))
    agent = make_agent(make_envs(env), normalize_observations=True, normalize_rewards=True)
    events: list[StepEvent] = []
    agent.collector.on_step = lambda event: events.append(event) or True
    rollout = agent.collector.episodes(agent.state.theta, 2)
    assert rollout.mask.sum(0).tolist() == [8, 2]
    assert [event.dones.tolist() for event in events] == [[t == 7, t == 1] for t in range(8)]
    assert all(np.isfinite(event.rewards).all() for event in events)
    assert [(e["l"], e["r"]) for e in agent.ep_info_buffer] == [(2, 2.0), (8, 8.0)]
    assert all(np.isfinite(value).all() for value in agent.observation_normalizer.state().values())


class Listens(BaseCallback):
    """Notes what callbacks are shown of episode ends."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, int, float]] = []
        self.num_truncated = 0

    def _on_step(self) -> bool:
        infos, dones = self.locals["infos"], self.locals["dones"]
        self.episodes += [(n, i["episode"]["l"], i["episode"]["r"]) for n, i in enumerate(infos) if "episode" in i]
        assert all("terminal_observation" in infos[n] for n in dones.nonzero()[0])
        self.num_truncated += sum(bool(infos[n]["TimeLimit.truncated"]) for n in dones.nonzero()[0])
        return True


@pytest.mark.parametrize("wrapper", [Monitor, lambda env: env])
def test_a_monitor_neither_hides_a_cut_episode_nor_shows_an_idle_one(wrapper: Any) -> None:
    script = RandomScript(max_length=6)
    agent = make_agent(DummyVecEnv([lambda n=n: wrapper(ScriptedEnv(script, n)) for n in range(3)]))
    parts = first_started(script, agent.environments, 8, 3)
    callback = Listens()
    callback.init_callback(agent)
    with listening(callback, agent.collector, StepLocals(agent, {})):
        rollout = agent.collector.episodes(agent.state.theta, 8, 3)
    expected = sorted((n, length, script.episode(n, number).rewards[:length].sum()) for n, number, length in parts)
    np.testing.assert_allclose(sorted(callback.episodes), expected, atol=1e-5)
    assert sorted(e["l"] for e in agent.ep_info_buffer) == sorted(part.length for part in parts)
    assert callback.num_truncated == int(rollout.truncated.sum()) > 0


class ShowsDict(ScriptedEnv):
    """A script seen as a Dict observation."""

    def __init__(self, script: RandomScript, environment: int):
        super().__init__(script, environment)
        self.observation_space = spaces.Dict({"x": self.observation_space, "n": spaces.Discrete(10, start=1)})

    def _shown(self) -> Any:
        return {"x": super()._shown(), "n": self.step_number + 1}


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_dict_observations_follow_the_same_rules(mode: AutoresetMode | None) -> None:
    makers = [lambda n=n: ShowsDict(SCRIPT, n) for n in range(2)]
    env: Any = makers if mode is None else SyncVectorEnv(makers, autoreset_mode=mode)
    agent = PPO("MultiInputPolicy", env, n_steps=20, batch_size=20, seed=0, device="cpu")
    parts = first_started(SCRIPT, agent.environments, 6, 4)
    rollout = agent.collector.episodes(agent.state.theta, 6, 4)
    assert rollout.mask.sum(0).tolist() == [part.length for part in parts]
    for j, (n, number, length) in enumerate(parts):
        episode = SCRIPT.episode(n, number)
        np.testing.assert_array_equal(rollout.observations["x"][:length, j], episode.observations[:length])
        np.testing.assert_array_equal(rollout.next_observations["x"][:length, j], episode.observations[1 : length + 1])
        assert rollout.next_observations["n"][:length, j].tolist() == list(range(1, length + 1))
    straight = agent.collector.steps(agent.state.theta, 20)
    following = straight.next_observations["n"][straight.mask]
    assert torch.equal(following, straight.observations["n"][straight.mask] + 1)
    values, next_values = straight.values(agent.functional.bind(agent.state.theta).critic)
    assert values.shape == next_values.shape == (20, 2)


# ---------------------------------------------------------------------------------------------------- several rewards


class PaysTwo(ScriptedEnv):
    """Pays the script's reward and twice its negative."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward, -2 * reward]), *rest


def paying_two(kind: str) -> Environments:
    makers = [lambda n=n: PaysTwo(SCRIPT, n) for n in range(2)]
    if kind == "own sync":
        return make_envs(makers)
    return make_envs(PoisonedVectorEnv([make() for make in makers], np.full(2, 1e6)))


@pytest.mark.parametrize("kind", ["own sync", "poisoned next-step"])
def test_rollouts_carry_a_vector_of_rewards(kind: str) -> None:
    agent = make_agent()
    collector = make_collector(agent, paying_two(kind))
    rollout = collector.steps(agent.state.theta, 30)
    assert rollout.rewards.shape == (30, 2, 2)
    assert torch.equal(rollout.rewards[..., 1], -2 * rollout.rewards[..., 0])
    assert rollout.rewards[~rollout.mask].abs().sum() == 0
    first = SCRIPT.episode(0, 0).rewards.sum()
    assert collector.statistics.recent[0]["r"] in ([first, -2 * first], [(r := SCRIPT.episode(1, 0).rewards.sum()), -2 * r])
    whole = collector.episodes(agent.state.theta, 3, 4)
    assert whole.rewards.shape == (*whole.mask.shape, 2)
    assert whole.rewards[~whole.mask].abs().sum() == 0
    assert torch.equal(whole.rewards[..., 1], -2 * whole.rewards[..., 0])
    totals = [episode["r"] for episode in list(collector.statistics.recent)[-3:]]
    assert sorted(totals) == sorted(whole.rewards.sum(0).tolist())


@pytest.mark.parametrize("kind", ["own sync", "poisoned next-step"])
@pytest.mark.parametrize("normalize", [False, True])
def test_an_agent_of_one_reward_refuses_a_vector_before_it_learns(kind: str, normalize: bool) -> None:
    agent = make_agent(paying_two(kind), normalize_rewards=normalize)
    theta = agent.state.theta.clone()
    with pytest.raises(ValueError, match=r"2 rewards a step"):
        agent.learn(40)
    assert torch.equal(agent.state.theta, theta)


# ---------------------------------------------------------------------------------------------------- seeds and bits


def collected(seed: int, backend: Any, num_envs: int = 2) -> list[torch.Tensor]:
    agent = PPO(
        "MlpPolicy", "CartPole-v1", n_steps=50, batch_size=50, seed=seed, n_envs=num_envs, backend=backend, device="cpu"
    )
    agent.collector.reset(seed)
    rollouts = [agent.collector.steps(agent.state.theta, 50) for _ in range(2)]
    agent.environments.close()
    return [getattr(r, name) for r in rollouts for name in ("states", "actions", "log_probs", "rewards", "terminated", "mask")]


def test_same_seed_gives_the_same_bits_in_this_process_and_in_workers_and_another_seed_others() -> None:
    first, again, workers, other = collected(1, "sync"), collected(1, "sync"), collected(1, "async"), collected(2, "sync")
    for a, b, c in zip(first, again, workers, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
    assert not torch.equal(first[0], other[0])


def test_native_environments_repeat_themselves_too() -> None:
    assert all(torch.equal(a, b) for a, b in zip(collected(1, "native"), collected(1, "native"), strict=True))


STREAM_KINDS: dict[str, Callable[[], Any]] = {
    "own": lambda: make_envs("CartPole-v1", 3, "sync"),
    "native": lambda: make_envs("CartPole-v1", 3, "native"),
    "same-step": lambda: gym.make_vec("CartPole-v1", 3, "sync", vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP}),
    "sb3": lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")] * 3),
}


def same(one: Rollout, other: Rollout) -> bool:
    names = ("states", "actions", "log_probs", "rewards", "terminated", "truncated", "mask")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


@pytest.mark.parametrize("kind", STREAM_KINDS)
def test_a_batch_depends_on_entropy_stream_and_number_alone(kind: str) -> None:
    def collector(seed: int = 3) -> tuple[Collector, torch.Tensor]:
        agent = PPO("MlpPolicy", STREAM_KINDS[kind](), n_steps=20, batch_size=60, seed=seed, device="cpu")
        return agent.collector, torch.zeros_like(agent.state.theta)

    (alone, theta), (busy, _), (later, _) = collector(), collector(), collector()
    first, second, third = (alone.episodes(theta, 4, 30, "a") for _ in range(3))
    assert alone.batches == {"a": 3}
    assert not same(first, second)
    busy.steps(theta, 7)
    between = [busy.episodes(theta, 5, None, "b")]
    assert same(first, busy.episodes(theta, 4, 30, "a"))
    between.append(busy.episodes(theta, 2, 3, "b"))
    busy.steps(theta, 30)
    assert same(second, busy.episodes(theta, 4, 30, "a"))
    later.batches["a"] = 2
    assert same(third, later.episodes(theta, 4, 30, "a"))
    starts = [r.observations[0, 0].tolist() for r in (first, second, third, *between)]
    assert len(set(map(tuple, starts))) == 5, "two batches begin alike"
    assert not same(first, alone.episodes(theta, 4, 30, "b"))
    assert not same(first, collector(seed=4)[0].episodes(theta, 4, 30, "a"))


def test_episodes_leave_the_seed_of_steps_alone() -> None:
    agents = [PPO("MlpPolicy", "CartPole-v1", n_steps=20, batch_size=20, seed=3, device="cpu") for _ in range(2)]
    agents[0].collector.episodes(agents[0].state.theta, 3)
    assert same(*(agent.collector.steps(agent.state.theta, 20) for agent in agents))


def test_the_noise_of_an_environment_does_not_depend_on_who_else_plays() -> None:
    agent = make_agent(make_envs([lambda n=n: ScriptedEnv(SCRIPT, 0) for n in range(4)]))
    few, many = (agent.collector.episodes(agent.state.theta, n, 1, f"{n}") for n in (1, 4))
    assert few.mask.sum() == 1
    agent.collector.batches.clear()
    again = [agent.collector.episodes(agent.state.theta, n, 1, "same").actions[0, 0] for n in (1,)]
    agent.collector.batches.clear()
    assert again[0] == agent.collector.episodes(agent.state.theta, 4, 1, "same").actions[0, 0]
    assert many.mask.sum() == 4


def test_a_new_seed_begins_the_streams_again_and_a_loaded_agent_goes_on_with_them(tmp_path: Path) -> None:
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=20, batch_size=20, seed=3, n_envs=2, device="cpu")
    first, second, third = (agent.collector.episodes(agent.state.theta, 4) for _ in range(3))
    agent.set_random_seed(3)
    assert same(first, agent.collector.episodes(agent.state.theta, 4))
    agent._adopt(agent.state)  # as after an iteration: a file holds the batches of the state in it
    agent.collector.episodes(agent.state.theta, 4)
    agent.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent", "CartPole-v1", device="cpu")
    assert loaded.collector.batches == {"episodes": 1}
    assert same(second, loaded.collector.episodes(loaded.state.theta, 4))
    without = PPO.load(tmp_path / "agent", device="cpu")
    without.save(tmp_path / "again")
    without = PPO.load(tmp_path / "again", device="cpu")
    without.set_env("CartPole-v1")
    assert same(second, without.collector.episodes(without.state.theta, 4))
    without.set_env("CartPole-v1")
    assert same(third, without.collector.episodes(without.state.theta, 4))


def test_the_policy_of_the_given_theta_acts() -> None:
    agent = make_agent()
    for action in range(2):
        theta = torch.zeros_like(agent.state.theta)
        agent.functional.unravel(theta)["policy.action_net.bias"][action] = 100.0
        rollout = make_collector(agent, MAKERS["own sync"](SCRIPT, 2)).steps(theta, 10)
        assert (rollout.actions == action).all()
        torch.testing.assert_close(rollout.log_probs, torch.zeros(10, 2))


def test_actions_are_stored_as_sampled_and_clipped_for_the_environment_alone() -> None:
    taken: list[np.ndarray] = []

    class Records(ScriptedEnv):
        def step(self, action: Any) -> Any:
            taken.append(action)
            return super().step(action)

    envs = make_envs([lambda: Records(SCRIPT, 0, action_space=spaces.Box(-0.5, 0.5, (2,)))])
    agent = make_agent(envs)
    rollout = agent.collector.steps(agent.state.theta, 30)
    assert rollout.actions.abs().max() > 1.0
    np.testing.assert_array_equal(np.stack(taken), rollout.actions[:, 0].clamp(-0.5, 0.5))
    mean = agent.functional.bind(agent.state.theta).actor(rollout.observations[:, 0])
    torch.testing.assert_close(mean.log_prob(rollout.actions[:, 0]), rollout.log_probs[:, 0])


# ---------------------------------------------------------------------------------------------------- callbacks


@pytest.mark.parametrize("kind", MAKERS)
def test_a_callback_sees_every_step_before_the_statistics_and_may_stop(kind: str) -> None:
    agent = make_agent()
    with closing(MAKERS[kind](SCRIPT, 2)) as envs:
        collector = make_collector(agent, envs)
        calls: list[Any] = []
        collector.on_start = lambda steps: calls.append(("start", steps))
        collector.on_end = lambda: calls.append("end")
        collector.on_step = lambda event: calls.append(event) or True
        rollout = collector.steps(agent.state.theta, 20)
        events = calls[1:-1]
        assert calls[0] == ("start", 20)
        assert calls[-1] == "end"
        assert len(events) == 20
        dones = np.stack([event.dones for event in events])
        np.testing.assert_array_equal(dones, rollout.terminated | rollout.truncated)
        np.testing.assert_allclose(np.stack([event.rewards for event in events]), rollout.rewards, atol=1e-6)
        np.testing.assert_array_equal(np.stack([event.observations for event in events]), rollout.observations)
        np.testing.assert_array_equal(np.stack([event.new_observations for event in events]), rollout.states[1:])

        episodes = collector.statistics.num_episodes
        assert episodes == int(dones.sum())
        taken = collector.num_timesteps
        collector.on_step = lambda event: False
        with pytest.raises(CollectionStopped):
            collector.steps(agent.state.theta, 20)
        assert 0 <= collector.num_timesteps - taken <= 2
        assert calls[-1] == ("start", 20), "on_end is not called for a partial rollout"
        # the collector is consistent: what the policy sees next is where the environments are
        collector.on_step = None
        following = collector.steps(agent.state.theta, 5)
        for n in range(2):
            now = following.observations[0, n].tolist()
            assert any(now in SCRIPT.episode(n, e).observations.tolist() for e in range(20))
            step = following.next_observations[0, n].tolist()
            pairs = [o.tolist() for e in range(20) for o in SCRIPT.episode(n, e).observations]
            if following.mask[0, n]:
                assert pairs[pairs.index(now) + 1] == step


@pytest.mark.parametrize("kind", MAKERS)
def test_a_callback_sees_every_step_of_episodes_and_may_stop(kind: str) -> None:
    agent = make_agent()
    with closing(MAKERS[kind](SCRIPT, 3)) as envs:
        collector = make_collector(agent, envs)
        collector.entropy = 5
        calls: list[Any] = []
        collector.on_start = lambda steps: calls.append(("start", steps))
        collector.on_end = lambda: calls.append("end")
        collector.on_step = lambda event: calls.append(event) or True
        rollout = collector.episodes(agent.state.theta, 8, 4)
        assert (calls[0], calls[-1]) == (("start", 4), "end")
        events = calls[1:-1]
        assert sum(int(event.dones.sum()) for event in events) == 8
        assert sum(float(event.rewards.sum()) for event in events) == pytest.approx(float(rollout.rewards.sum()))
        for event in events:
            step = event.step
            np.testing.assert_array_equal(step.terminated | step.truncated, event.dones)
            assert set(np.asarray(step.final_rows).tolist()) <= set(event.dones.nonzero()[0].tolist())
            assert len(step.infos) == 3
        for previous, event in pairwise(events):
            if not previous.dones.any():
                np.testing.assert_array_equal(previous.new_observations, event.observations)
        collector.episodes(agent.state.theta, 1)
        stops = iter([True, True, False])
        collector.on_step = lambda event: next(stops)
        taken, batches = collector.num_timesteps, dict(collector.batches)
        with pytest.raises(CollectionStopped):
            collector.episodes(agent.state.theta, 30)
        assert taken < collector.num_timesteps <= taken + 9
        assert calls[-1] == ("start", 0), "on_end is not called for a dropped batch"
        assert collector.batches == batches, "a dropped batch is drawn again"
        collector.on_step = None
        following = collector.steps(agent.state.theta, 5)
        for n in range(3):
            assert following.observations[0, n].tolist() in [SCRIPT.episode(n, e).observations[0].tolist() for e in range(60)]
        assert (collector.episodes(agent.state.theta, 3).mask.sum(0) > 0).all()


def test_observations_of_another_shape_than_promised_are_a_fault() -> None:
    class Lies(ScriptedEnv):
        def _shown(self) -> Any:
            return np.zeros(4, np.float32)

    with pytest.raises(EnvironmentFault, match=r"environment 0 returned observation of shape \(4,\) .* of shape \(3,\)"):
        make_agent(Lies(SCRIPT, 0)).learn(20)


def test_a_rollout_is_not_changed_by_the_next() -> None:
    agent = make_agent()
    for make in MAKERS.values():
        with closing(make(SCRIPT, 2)) as envs:
            collector = make_collector(agent, envs)
            rollout = collector.steps(agent.state.theta, 10)
            kept = {
                name: getattr(rollout, name).clone() for name in ("states", "actions", "rewards", "mask", "final_observations")
            }
            collector.steps(agent.state.theta, 10)
        for name, tensor in kept.items():
            assert torch.equal(getattr(rollout, name), tensor), name


def test_the_collector_begins_by_itself() -> None:
    agent = make_agent()
    envs = MAKERS["own sync"](SCRIPT, 2)
    collector = Collector(envs, agent.functional, torch.Generator().manual_seed(0), EpisodeStatistics(2))
    assert collector.observations is None
    assert collector.steps(agent.state.theta, 3).mask.all()
