"""Rollouts on a device against those of the same physics in NumPy, with the same noise and the same first states."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback

from rlopt import PPO, REBEL, REINFORCE, S2PG, make_envs
from rlopt.device_collector import _play, make_collector
from rlopt.envs.base import EnvironmentFault
from rlopt.envs.frame_stack import FrameStack
from rlopt.envs.memory import Memory
from rlopt.envs.memory_on_device import MemoryOnDevice
from rlopt.statistics import EpisodeStatistics
from tests.envs.test_torch_classic_control import pair
from tests.host_reads import ForbidHostReads, HostReads
from tests.test_resume import assert_same, train

NUM_ENVS, NUM_STEPS = 6, 40


class Twins:
    """Two collectors with the same policy: one on a device, one of NumPy environments that begin where those do."""

    def __init__(self, env_id, agent, num_rollouts=3, wrap=lambda envs: envs, window=100):
        self.agent = agent
        self.on_device, native, starts = pair(env_id, NUM_ENVS, NUM_STEPS * num_rollouts)
        first, blocks = self.on_device.states.clone(), iter(starts.split(NUM_STEPS))
        self.on_device.draw_starts = lambda num_steps: first[None] if num_steps == 1 else next(blocks)
        both = [
            (wrap(envs), EpisodeStatistics(NUM_ENVS, window), torch.Generator().manual_seed(4))
            for envs in (self.on_device, native)
        ]
        self.device, self.native = (
            make_collector(envs, agent.functional, generator, statistics, seed=0) for envs, statistics, generator in both
        )

    def rollouts(self):
        theta = self.agent.state.theta
        return [collector.steps(theta, NUM_STEPS) for collector in (self.device, self.native)]


def agent_for(env_id, algorithm=PPO, **arguments):
    return algorithm("MlpPolicy", env_id, n_envs=NUM_ENVS, n_steps=NUM_STEPS, batch_size=120, seed=2, device="cpu", **arguments)


def largest_difference(one, other):
    """Of the tensors of two rollouts, episodes' ends included."""
    worst = 0.0
    assert torch.equal(one.final_rows, other.final_rows)
    for name in ("states", "actions", "log_probs", "rewards", "terminated", "truncated", "mask", "final_observations"):
        mine, theirs = getattr(one, name), getattr(other, name)
        if not isinstance(mine, dict):
            mine, theirs = {"": mine}, {"": theirs}
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert (value.shape, value.dtype) == (theirs[key].shape, theirs[key].dtype), (name, key)
            if value.numel():
                worst = max(worst, float((value.double() - theirs[key].double()).abs().max()))
    return worst


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_rollouts_are_those_of_the_numpy_environments(env_id):
    twins = Twins(env_id, agent_for(env_id))
    twins.on_device.task = copy.copy(twins.on_device.task)
    object.__setattr__(twins.on_device.task, "horizon", 12)  # truncations within every rollout
    twins.native.envs.env.horizon = 12
    num_ended = 0
    for _ in range(3):
        mine, theirs = twins.rollouts()
        assert largest_difference(mine, theirs) < 1e-5
        num_ended += len(mine.final_rows)
        assert mine.truncated.any()
    assert num_ended > 10
    ours, expected = twins.device.statistics, twins.native.statistics
    assert twins.device.num_timesteps == twins.native.num_timesteps == 3 * NUM_ENVS * NUM_STEPS
    assert (ours.num_episodes, len(ours.recent)) == (expected.num_episodes, len(expected.recent)) == (num_ended, num_ended)
    assert [episode["l"] for episode in ours.recent] == [episode["l"] for episode in expected.recent]
    np.testing.assert_allclose([e["r"] for e in ours.recent], [e["r"] for e in expected.recent], rtol=1e-5)
    np.testing.assert_allclose(ours.returns, expected.returns, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(ours.lengths, expected.lengths)
    np.testing.assert_allclose(twins.device.observations, twins.native.observations, atol=1e-5)


def test_other_noise_would_be_noticed():
    twins = Twins("CartPole-v1", agent_for("CartPole-v1"))
    twins.native.generator.manual_seed(5)
    mine, theirs = (collector.steps(twins.agent.state.theta, NUM_STEPS) for collector in (twins.device, twins.native))
    assert not torch.equal(mine.actions, theirs.actions)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_memory_on_the_device_is_memory(env_id):
    agent = agent_for(env_id, S2PG, memory_size=3)
    wrap = lambda envs: (MemoryOnDevice if hasattr(envs, "draw_starts") else Memory)(envs, 3)  # noqa: E731
    twins = Twins(env_id, agent, wrap=wrap)
    for _ in range(3):
        mine, theirs = twins.rollouts()
        assert set(mine.states) == {"observation", "memory", "previous_action"}
        assert largest_difference(mine, theirs) < 1e-5
    assert isinstance(agent_for(env_id, S2PG, memory_size=3, backend="torch").collector.envs, MemoryOnDevice)


def test_squashed_actions_are_stretched_and_kept_as_sampled():
    twins = Twins("Pendulum-v1", agent_for("Pendulum-v1", policy_kwargs={"squash_output": True}))
    mine, theirs = twins.rollouts()
    assert mine.actions.abs().max() < 1.0
    assert largest_difference(mine, theirs) < 1e-5


def test_the_last_episodes_are_kept_and_all_are_counted():
    twins = Twins("CartPole-v1", agent_for("CartPole-v1"), window=4)
    twins.rollouts()
    ours, expected = twins.device.statistics, twins.native.statistics
    assert ours.num_episodes == expected.num_episodes > 4
    assert [(e["r"], e["l"]) for e in ours.recent] == [(e["r"], e["l"]) for e in expected.recent]
    heard = []
    ours.on_episode = heard.append
    twins.device.steps(twins.agent.state.theta, NUM_STEPS)
    assert len(heard) == ours.num_episodes - expected.num_episodes
    assert set(heard[0]) == {"r", "l", "t", "env"}


@pytest.mark.parametrize("algorithm", [PPO, S2PG])
def test_no_step_of_a_rollout_waits_for_the_device(algorithm, monkeypatch):
    def guarded(*arguments):
        with ForbidHostReads():
            _play(*arguments)

    monkeypatch.setattr("rlopt.device_collector._play", guarded)
    agent = agent_for("CartPole-v1", algorithm, backend="torch")
    agent.collector.steps(agent.state.theta, NUM_STEPS)
    act = agent.functional.module.actor
    agent.functional.module.actor = lambda observations: (bool((torch.zeros(1) > 0).any()), act(observations))[1]
    with pytest.raises(HostReads):
        agent.collector.steps(agent.state.theta, NUM_STEPS)


class Watching(BaseCallback):
    """What SB3's callbacks read at every step."""

    def __init__(self, stop_after=10**9):
        super().__init__()
        self.seen, self.stop_after = [], stop_after

    def _on_step(self):
        local = self.locals
        infos = local["infos"]
        self.seen.append(
            (
                local["actions"].copy(),
                local["rewards"].copy(),
                local["dones"].copy(),
                local["new_obs"].copy(),
                [(info["episode"]["r"], info["episode"]["l"]) for info in infos if "episode" in info],
                [info["terminal_observation"] for info in infos if "terminal_observation" in info],
                self.num_timesteps,
            )
        )
        return len(self.seen) < self.stop_after


def test_callbacks_see_every_step_once_the_rollout_is_over():
    agent, callback = agent_for("CartPole-v1", backend="torch"), Watching()
    agent.learn(2 * NUM_ENVS * NUM_STEPS, callback)
    assert len(callback.seen) == 2 * NUM_STEPS
    assert [seen[-1] for seen in callback.seen] == [NUM_ENVS * (t + 1) for t in range(2 * NUM_STEPS)]
    episodes = [episode for seen in callback.seen for episode in seen[4]]
    assert [(e["r"], e["l"]) for e in agent.statistics.recent] == episodes[-100:]
    lengths = np.zeros(NUM_ENVS, int)
    for _, rewards, dones, _, ended, finals, _ in callback.seen:
        lengths += 1
        assert (rewards == 1).all()
        assert [length for _, length in ended] == lengths[dones].tolist()
        assert all(abs(final[0]) > 2.4 or abs(final[2]) > 0.2 for final in finals)
        lengths[dones] = 0
    silent = agent_for("CartPole-v1", backend="torch").learn(2 * NUM_ENVS * NUM_STEPS)
    assert torch.equal(silent.state.theta, agent.state.theta)  # who listens changes nothing
    assert [(e["r"], e["l"]) for e in silent.statistics.recent] == episodes[-100:]


def test_a_callback_that_stops_drops_the_rollout():
    agent, callback = agent_for("CartPole-v1", backend="torch"), Watching(stop_after=NUM_STEPS + 7)
    before = agent.learn(NUM_ENVS * NUM_STEPS).state.theta.clone()
    agent.learn(10 * NUM_ENVS * NUM_STEPS, callback, reset_num_timesteps=False)
    assert len(callback.seen) == NUM_STEPS + 7
    assert agent.num_timesteps == NUM_ENVS * (2 * NUM_STEPS + 7)
    assert not torch.equal(agent.state.theta, before)  # the one whole rollout counted
    agent.learn(NUM_ENVS * NUM_STEPS, reset_num_timesteps=False)  # and training goes on


def test_a_seed_determines_the_training():
    thetas = [agent_for("CartPole-v1", backend="torch").learn(3 * NUM_ENVS * NUM_STEPS).state.theta for _ in range(2)]
    assert torch.equal(*thetas)


def test_going_on_from_a_snapshot_is_going_on():
    agent = agent_for("CartPole-v1", backend="torch")
    theta, collector = agent.state.theta, agent.collector
    collector.steps(theta, NUM_STEPS)
    kept, statistics, noise = collector.snapshot(), agent.statistics.snapshot(), collector.generator.get_state()
    expected = collector.steps(theta, NUM_STEPS)
    lengths = [episode["l"] for episode in agent.statistics.recent]
    other = agent_for("CartPole-v1", backend="torch")
    assert other.collector.restore(kept) == []
    other.statistics.restore(statistics)
    other.collector.generator.set_state(noise)
    again = other.collector.steps(theta, NUM_STEPS)
    assert largest_difference(again, expected) == 0.0
    assert [episode["l"] for episode in other.statistics.recent] == lengths


def test_training_that_was_killed_goes_on_exactly(tmp_path):
    small = {"n_envs": 3, "n_steps": 8, "batch_size": 12, "n_epochs": 2, "seed": 2, "device": "cpu", "backend": "torch"}

    def build():
        return S2PG("MlpPolicy", "CartPole-v1", memory_size=2, **small)

    assert_same(train(build, tmp_path / "once"), train(build, tmp_path / "killed", kill_at=[29, 18]))


@pytest.mark.parametrize("algorithm", [PPO, REBEL])
def test_agents_train_on_it(algorithm):
    agent = agent_for("Pendulum-v1", algorithm, backend="torch")
    before = agent.state.theta.clone()
    agent.learn(NUM_ENVS * NUM_STEPS)
    assert not torch.equal(agent.state.theta, before)
    assert agent.state.theta.isfinite().all()


def test_whole_episodes_go_by_the_host():
    agent = REINFORCE("MlpPolicy", "CartPole-v1", n_envs=4, backend="torch", seed=0, device="cpu")
    rollout = agent.collector.episodes(agent.state.theta, 7)
    assert rollout.mask.shape[1] == 7
    assert rollout.terminated.sum() + rollout.truncated.sum() == 7


def test_what_is_computed_on_the_host_is_refused():
    for name in ("normalize_observations", "normalize_rewards"):
        with pytest.raises(ValueError, match=f"{name}: environments on a device .* backend='native'"):
            agent_for("CartPole-v1", backend="torch", **{name: True})
    with pytest.raises(ValueError, match=r"backend: .*FrameStack.* use backend='native' instead of 'torch'"):
        PPO("MlpPolicy", FrameStack(make_envs("CartPole-v1", 2, backend="torch"), 2), device="cpu")
    with pytest.raises(ValueError, match=r"CartPole-v1 \(TorchClassicControl\) does not"):
        REBEL("MlpPolicy", "CartPole-v1", mode="trajectory", backend="torch", device="cpu")
    with pytest.raises(ValueError, match=r"backend: .*no implementation in torch"):
        PPO("MlpPolicy", "Blackjack-v1", backend="torch", device="cpu")
    make_envs("CartPole-v1", 2, backend="torch").close()


def test_actions_that_are_not_finite_are_named():
    agent = agent_for("Pendulum-v1", backend="torch")
    with pytest.raises(EnvironmentFault, match=r"Pendulum-v1: observation of environment 0 is not finite after step 0"):
        agent.collector.steps(torch.full_like(agent.state.theta, torch.nan), NUM_STEPS)


def test_an_agent_whose_new_environments_are_refused_goes_on_in_the_old():
    agent = PPO(
        "MlpPolicy",
        "CartPole-v1",
        n_envs=4,
        normalize_observations=True,
        normalize_rewards=True,
        n_steps=20,
        batch_size=20,
        device="cpu",
    ).learn(160)
    with pytest.raises(ValueError, match="normalize_observations: environments on a device"):
        agent.set_env(make_envs("CartPole-v1", 2, backend="torch"))
    assert agent.n_envs == agent.env.num_envs == agent.collector.envs.num_envs == 4
    assert agent.collector.envs is agent.environments
    assert agent.learn(160, reset_num_timesteps=False).num_timesteps == 320
