"""The collector: whole episodes, continuation, callbacks, faults. What it does at episode ends is in test_episode_ends."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rlopt import PPO, EnvironmentFault, make_envs
from rlopt.collector import EPISODE_BLOCK, CollectionStopped, Collector
from rlopt.envs import Environments
from rlopt.statistics import EpisodeStatistics
from tests.scripted_envs import PoisonedVectorEnv, RandomScript, ScriptedEnv, reference_advantages
from tests.test_episode_ends import MAKERS, exact_value, make_agent, make_collector, scattered

SCRIPT = RandomScript()


# ---------------------------------------------------------------------------------------------------- whole episodes


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("num_episodes", [1, 3, 7])
def test_every_environment_gives_a_fixed_quota_of_whole_episodes(kind: str, num_episodes: int) -> None:
    agent, quota = make_agent(), [(num_episodes + 2 - n) // 3 for n in range(3)]
    with closing(MAKERS[kind](SCRIPT, 3)) as envs:
        rollout = make_collector(agent, envs).episodes(agent.state.theta, num_episodes)
    expected = [SCRIPT.episode(n, number) for n in range(3) for number in range(quota[n])]
    assert rollout.mask.shape == (max(len(episode) for episode in expected), num_episodes)
    advantages, value = scattered(agent, rollout), exact_value(agent)
    for j, episode in enumerate(expected):
        length = len(episode)
        assert rollout.mask[:, j].tolist() == [t < length for t in range(len(rollout.mask))]
        np.testing.assert_array_equal(rollout.observations[:length, j], episode.observations[:-1])
        np.testing.assert_array_equal(rollout.next_observations[:length, j], episode.observations[1:])
        np.testing.assert_array_equal(rollout.rewards[:length, j], episode.rewards.astype(np.float32))
        assert rollout.terminated[:, j].nonzero().flatten().tolist() == ([length - 1] if episode.terminated else [])
        cut = episode.truncated and not episode.terminated
        assert rollout.truncated[:, j].nonzero().flatten().tolist() == ([length - 1] if cut else [])
        for field in (rollout.rewards, rollout.actions, rollout.log_probs):
            assert not field[length:, j].any(), "padding is zero"
        reference = reference_advantages(episode, 0, length, value, agent.gamma, agent.gae_lambda)
        np.testing.assert_allclose(advantages[:length, j], reference, rtol=0, atol=1e-6)


def test_short_episodes_are_not_favoured() -> None:
    class Runs(gym.Env[Any, Any]):
        observation_space, action_space = spaces.Box(0, 1, (1,)), spaces.Discrete(2)
        metadata = {"render_modes": []}  # noqa: RUF012

        def __init__(self, length: int):
            self.length = length

        def reset(self, **kwargs: Any) -> Any:
            self.time = 0
            return np.zeros(1, np.float32), {}

        def step(self, action: Any) -> Any:
            self.time += 1
            return np.ones(1, np.float32), 1.0, self.time == self.length, False, {}

    envs = make_envs([lambda length=length: Runs(length) for length in (1, 90)])
    agent = make_agent(envs)
    rollout = agent.collector.episodes(agent.state.theta, 4)
    assert rollout.mask.sum(0).tolist() == [1, 1, 90, 90]


@pytest.mark.parametrize("kind", MAKERS)
def test_episodes_longer_than_a_block_are_joined(kind: str) -> None:
    script = RandomScript(seed=3, max_length=150)
    agent = make_agent()
    with closing(MAKERS[kind](script, 2)) as envs:
        rollout = make_collector(agent, envs).episodes(agent.state.theta, 4)
    lengths = [len(script.episode(n, number)) for n in range(2) for number in range(2)]
    assert max(lengths) > EPISODE_BLOCK
    assert rollout.mask.sum(0).tolist() == lengths
    for j, (n, number) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        episode = script.episode(n, number)
        np.testing.assert_array_equal(rollout.observations[: len(episode), j], episode.observations[:-1])
        np.testing.assert_array_equal(rollout.next_observations[: len(episode), j], episode.observations[1:])


@pytest.mark.parametrize("kind", MAKERS)
def test_every_call_begins_with_fresh_episodes(kind: str) -> None:
    agent = make_agent()
    with closing(MAKERS[kind](SCRIPT, 2)) as envs:
        collector = make_collector(agent, envs)
        starts = [SCRIPT.episode(0, number).observations[0].tolist() for number in range(200)]
        found = [starts.index(collector.episodes(agent.state.theta, 2).observations[0, 0].tolist()) for _ in range(4)]
    assert found == sorted(set(found)), "an episode was collected twice, or not from its first state"


def test_steps_taken_while_waiting_are_counted_too() -> None:
    agent = make_agent()
    collector = make_collector(agent, MAKERS["own sync"](SCRIPT, 2))
    rollout = collector.episodes(agent.state.theta, 2)
    assert rollout.num_valid == int(rollout.mask.sum()) < EPISODE_BLOCK
    assert collector.num_timesteps == 2 * EPISODE_BLOCK


def test_no_episodes_are_refused() -> None:
    agent = make_agent()
    with pytest.raises(ValueError, match="num_episodes: expected a positive integer, got 0"):
        make_collector(agent, MAKERS["own sync"](SCRIPT, 2)).episodes(agent.state.theta, 0)


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
    rollout = agent.collector.episodes(agent.state.theta, 4)
    for j, (n, number) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        episode = SCRIPT.episode(n, number)
        length = len(episode)
        np.testing.assert_array_equal(rollout.observations["x"][:length, j], episode.observations[:-1])
        np.testing.assert_array_equal(rollout.next_observations["x"][:length, j], episode.observations[1:])
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
    whole = collector.episodes(agent.state.theta, 3)
    assert whole.rewards.shape == (*whole.mask.shape, 2)
    assert whole.rewards[~whole.mask].abs().sum() == 0


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


def test_observations_of_another_shape_than_promised_are_a_fault() -> None:
    class Lies(ScriptedEnv):
        def _shown(self) -> Any:
            return np.zeros(4, np.float32)

    with pytest.raises(EnvironmentFault, match=r"reset returned observation of shape \(1, 4\), the space promises \(1, 3\)"):
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
