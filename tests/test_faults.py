"""Environments that break: named in the error, or made anew with their unfinished episode dropped and counted."""

from __future__ import annotations

import re
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from rlopt import HARPG, PPO, REINFORCE, EnvironmentFault, make_envs
from rlopt.envs.base import EnvironmentRestarted, episode_seed
from rlopt.envs.frame_stack import FrameStack
from rlopt.envs.paired import in_groups
from rlopt.estimators import gae
from tests.breaking_envs import FATAL, FAULTS, Breaking

TOLD = {
    "raises": "failed in step: ZeroDivisionError: the robot fell over",
    "shows NaN": "returned observation that is not finite",
    "pays NaN": "returned the reward nan, which is not finite",
    "pays a text": "returned the reward 'much', expected a number",
    "shows another shape": r"returned observation of shape \(3,\) and type float32, the space promises numbers of shape \(2,\)",
    "shows another type": "returned observation of shape .* and type float64, the space promises whole numbers",
    "shows nothing": r"returned observation of shape \(\) and type float32",
}
SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0}
WHERE = r"environment \d+ .*, in step 3 of the episode with seed \d+"


def broken_seeds(envs):
    """Of all episodes so far that break."""
    counters = envs.episode_counters()
    seeds = [episode_seed(counters["run_seed"], i, e) for i, n in enumerate(counters["episodes"]) for e in range(n)]
    return [seed for seed in seeds if seed % 3 == 0]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_environment_step_and_seed(fault):
    """Without "restart", values that are not finite are found when the rollout is whole."""
    agent = PPO("MlpPolicy", make_envs(partial(Breaking, fault), 3), **SMALL)
    with pytest.raises(EnvironmentFault) as raised:
        agent.learn(200)
    message = str(raised.value)
    seeds = broken_seeds(agent.environments)
    if fault in ("shows NaN", "pays NaN"):
        assert re.search(
            r"of environment \d is not finite at step \d+ of the rollout .*, in the episode with seed \d+", message
        )
    elif fault == "pays a text":
        assert "rewards are not numbers" in message
    else:
        assert re.search(TOLD[fault], message)
        assert re.search(WHERE, message)
    if fault != "pays a text":
        assert int(re.search(r"seed (\d+)", message)[1]) in seeds


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("algorithm", [PPO, HARPG], ids=lambda cls: cls.__name__)
def test_training_goes_on_without_the_broken_episodes(fault, algorithm):
    envs = make_envs(partial(Breaking, fault), 3, on_error="restart")
    kwargs = SMALL if algorithm is PPO else {"num_episodes": 5, "seed": 0}
    agent = algorithm("MlpPolicy", envs, normalize_rewards=True, **kwargs)
    made_anew = rf"{TOLD[fault]}.*, in step 3 of the episode with seed \d+; it is made anew, and its episode dropped"
    with pytest.warns(EnvironmentRestarted, match=made_anew):
        agent.learn(200)
    assert agent.statistics.num_dropped > 3
    assert torch.isfinite(agent.state.theta).all()
    assert all(episode["l"] == 6 for episode in agent.ep_info_buffer)  # none that broke was counted


class Keep(BaseCallback):
    """Rollouts, as they were made."""

    def __init__(self):
        super().__init__()
        self.rollouts = []

    def _on_training_start(self):
        self.model.collector.on_rollout = self.rollouts.append

    def _on_step(self):
        return True


def logged(agent):
    """What the environments say that happened: {seed: (observations, rewards)}; those replaced are kept by `Remembering`."""
    return {seed: (np.array(shown), np.array(paid)) for seed, shown, paid in Remembering.all_logs()}


class Remembering(Breaking):
    """Remembers what all instances logged."""

    instances: list[Breaking] = []  # noqa: RUF012

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        Remembering.instances.append(self)

    @classmethod
    def all_logs(cls):
        return [entry for env in cls.instances for entry in env.log]


def test_advantages_are_those_of_episodes_cut_where_they_broke():
    """The oracle is a loop over the environments' own log in float64; V(s) is the sum of what is seen."""
    Remembering.instances = []
    envs = make_envs(Remembering, 4, on_error="restart")
    agent = PPO("MlpPolicy", envs, **{**SMALL, "n_steps": 40, "batch_size": 160})
    keep = Keep()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnvironmentRestarted)
        agent.learn(150, keep)
    rollout = keep.rollouts[0]
    values, following = rollout.observations.sum(-1).double(), rollout.next_observations.sum(-1).double()
    gamma, lam = 0.9, 0.8
    discounts = gamma * (~rollout.terminated).double()
    traces = lam * (~(rollout.terminated | rollout.truncated)).double()
    mine = gae(rollout.rewards.double(), values, following, discounts, traces)[rollout.mask]
    expected = {}
    broken = 0
    for shown, paid in logged(agent).values():
        advantage = 0.0
        over = len(paid) == 6
        broken += not over
        for t in reversed(range(len(paid))):
            last = over and t == len(paid) - 1
            delta = paid[t] + (0.0 if last else gamma * shown[t + 1].sum(dtype=np.float64)) - shown[t].sum(dtype=np.float64)
            advantage = delta + gamma * lam * advantage
            expected[tuple(shown[t].tolist())] = (t, advantage)
    assert broken > 5
    seen = rollout.observations[rollout.mask]
    # Episodes under way at the rollout's end are cut there, in the log they went on.
    ended = torch.zeros_like(rollout.mask)
    for n in range(4):
        over = (rollout.terminated | rollout.truncated)[:, n] & rollout.mask[:, n]
        ended[: int(over.nonzero().max()) + 1, n] = True
    complete = ended[rollout.mask]
    for row in complete.nonzero()[:, 0].tolist():
        _, advantage = expected[tuple(seen[row].tolist())]
        assert float(mine[row]) == pytest.approx(advantage, abs=1e-5)
    assert int(complete.sum()) > 60
    assert int((~rollout.mask).sum()) == broken_in(rollout) > 5


def broken_in(rollout):
    return int((rollout.truncated & ~rollout.mask).sum())


def test_whole_episodes_have_no_trace_of_those_that_broke():
    Remembering.instances = []
    agent = REINFORCE("MlpPolicy", make_envs(Remembering, 4, on_error="restart"), num_episodes=12, seed=0)
    keep = Keep()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnvironmentRestarted)
        agent.learn(60, keep)
    rollout = keep.rollouts[0]
    logs = {tuple(shown[0].tolist()): (shown, paid) for shown, paid in logged(agent).values()}
    assert rollout.mask.sum(0).tolist() == [6] * 12
    for episode in range(12):
        shown, paid = logs[tuple(rollout.observations[0, episode].tolist())]
        assert np.array_equal(rollout.states[:7, episode].numpy(), shown)
        assert np.allclose(rollout.rewards[:6, episode].numpy(), paid)
    assert agent.statistics.num_dropped > 0
    assert agent.num_timesteps == sum(len(paid) for _, paid in logged(agent).values() if len(paid) in (2, 6))


@pytest.mark.parametrize("fault", FATAL)
def test_a_worker_that_is_gone_is_named(fault):
    timeout = 1.0 if fault == "hangs" else None
    envs = make_envs(partial(Breaking, fault), 4, "async", timeout=timeout)
    agent = PPO("MlpPolicy", envs, **SMALL)
    what = "did not answer within 1 s" if fault == "hangs" else "ended with exit code 7"
    with pytest.raises(EnvironmentFault, match=rf"the worker of environments \d to \d {what}, in steps \[.*3.*\] of the"):
        agent.learn(200)
    envs.close()


@pytest.mark.parametrize("fault", FATAL)
def test_a_worker_that_is_gone_is_started_anew(fault):
    timeout = 1.0 if fault == "hangs" else None
    envs = make_envs(partial(Breaking, fault), 2, "async", on_error="restart", timeout=timeout)
    agent = PPO("MlpPolicy", envs, **SMALL)
    with pytest.warns(EnvironmentRestarted, match=r"with seeds .*; it is started anew, and their episodes dropped"):
        agent.learn(30)
    assert agent.num_timesteps >= 30
    assert agent.statistics.num_dropped > 0
    envs.close()


def test_workers_make_broken_environments_anew_as_this_process_does():
    results = []
    for backend in ("sync", "async"):
        envs = make_envs(Breaking, 4, backend, on_error="restart")
        agent = PPO("MlpPolicy", envs, **SMALL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EnvironmentRestarted)
            results.append((agent.learn(200).state.theta, agent.statistics.num_dropped))
        envs.close()
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1] == results[1][1] > 0


@pytest.mark.parametrize("memory", [None, "s2pg"])
def test_what_policies_remember_begins_anew(memory):
    envs = make_envs(partial(Breaking, length=50, always=True), 2, on_error="restart")
    envs = FrameStack(envs, 3) if memory is None else envs
    agent = PPO("MlpPolicy", envs, memory=memory, memory_size=None if memory is None else 3, **SMALL)
    keep = Keep()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnvironmentRestarted)
        agent.learn(32, keep)
    (rollout,) = keep.rollouts[:1]
    first = torch.zeros(16, 2, dtype=torch.bool)
    first[0] = True
    first[1:] = ~rollout.mask[:-1]  # the row after one that broke
    if memory is None:
        assert (rollout.observations[first][:, :4] == 0).all()
        assert (rollout.observations[~first & rollout.mask][:, 2:4] != 0).all()
    else:
        assert (rollout.observations["memory"][first] == 0).all()
        assert (rollout.observations["memory"][~first & rollout.mask] != 0).all()
    assert int((~rollout.mask).sum()) == 2 * 5


def test_an_environment_that_breaks_every_time_is_given_up():
    agent = PPO("MlpPolicy", make_envs(partial(BreaksAtOnce), 2, on_error="restart"), **SMALL)
    with (
        pytest.warns(EnvironmentRestarted),
        pytest.raises(EnvironmentFault, match="it was made anew 10 times in a row, which did not help"),
    ):
        agent.learn(200)


class BreaksAtOnce(Breaking):
    def step(self, action):
        raise ZeroDivisionError


def test_a_reset_that_fails_is_named():
    class NoReset(Breaking):
        def reset(self, **kwargs):
            raise OSError("no simulator")

    agent = PPO("MlpPolicy", make_envs(NoReset, 1), **SMALL)
    with pytest.raises(EnvironmentFault, match=r"environment 0 failed in reset\(seed=\d+\): OSError: no simulator"):
        agent.learn(32)


class FailsToReset(Breaking):
    """Every other reset raises, and every fifth shows a NaN."""

    resets = 0

    def reset(self, **kwargs):
        FailsToReset.resets += 1
        if FailsToReset.resets % 2 == 0:
            raise OSError("no simulator")
        shown, info = super().reset(**kwargs)
        return (shown * np.float32("nan") if FailsToReset.resets % 5 == 0 else shown), info


def test_resets_that_fail_are_tried_again():
    agent = PPO("MlpPolicy", make_envs(FailsToReset, 3, on_error="restart"), **SMALL)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", EnvironmentRestarted)
        agent.learn(100)
    messages = [str(warning.message) for warning in told]
    assert any(re.search("failed in reset.*no simulator.*; it is made anew", message) for message in messages)
    assert any(re.search("in reset returned observation that is not finite", message) for message in messages)
    assert torch.isfinite(agent.state.theta).all()


def test_an_environment_that_never_comes_to_an_end_of_an_episode_is_given_up():
    envs = make_envs(partial(Breaking, length=50, always=True), 2, on_error="restart")
    agent = REINFORCE("MlpPolicy", envs, num_episodes=4, seed=0)
    with pytest.warns(EnvironmentRestarted), pytest.raises(EnvironmentFault, match="made anew 10 times in a row"):
        agent.learn(100)


def test_a_factory_that_fails_is_named():
    made = []

    def factory():
        made.append(Breaking(always=True))
        if len(made) > 2:
            raise OSError("no licence")
        return made[-1]

    agent = PPO("MlpPolicy", make_envs(factory, 2, on_error="restart"), **SMALL)
    with (
        pytest.warns(EnvironmentRestarted),
        pytest.raises(EnvironmentFault, match="another one cannot be made: OSError: no"),
    ):
        agent.learn(100)


class TwoRewards(Breaking):
    def step(self, action):
        shown, reward, *rest = super().step(action)
        return shown, np.array([reward, 1.0]), *rest


class BreaksFirst(TwoRewards):
    """The first step of its life raises."""

    lives = 0

    def __init__(self, which):
        super().__init__(length=6)
        self.seen = BreaksFirst.lives >= which
        BreaksFirst.lives += 1

    def step(self, action):
        if not self.seen:
            self.seen = True
            raise ZeroDivisionError
        return super().step(action)


@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("backend", ["sync", "async"])
def test_a_fault_in_the_first_step_of_unannounced_vector_rewards(which, backend):
    """Of one environment, and of all: K is known only when a step has paid."""
    BreaksFirst.lives = 0
    envs = make_envs(partial(BreaksFirst, which), 2, backend, on_error="restart")
    agent = PPO("MlpPolicy", envs, utility=[0.5, 0.5], **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EnvironmentRestarted)
        agent.learn(60)
    assert envs.num_objectives == 2
    envs.close()


def test_what_cannot_be_made_anew_is_refused():
    with pytest.raises(ValueError, match="on_error: DummyVecEnv cannot make single environments anew"):
        make_envs(DummyVecEnv([Breaking]), on_error="restart")
    with pytest.raises(ValueError, match="timeout: Breaking does not run in worker processes"):
        make_envs(Breaking, 2, "sync", timeout=3.0)
    with pytest.raises(ValueError, match="timeout: expected a positive number"):
        make_envs(Breaking, 2, "async", timeout=-3.0)
    with pytest.raises(ValueError, match="on_error: expected one of"):
        make_envs(Breaking, 2, on_error="ignore")
    with pytest.raises(ValueError, match="on_error: an episode of a group"):
        in_groups(make_envs("CartPole-v1", 4, "sync"), 2).handle_faults("restart")
    assert make_envs("CartPole-v1", 4, on_error="restart").num_envs == 4


def test_groups_end_with_the_first_fault():
    """Trials of the environments, before any training, show it already."""
    with pytest.raises(EnvironmentFault, match="the robot fell over"):
        in_groups(make_envs(Breaking, 4, on_error="raise"), 2)
    with (
        pytest.warns(EnvironmentRestarted),
        pytest.raises(EnvironmentFault, match="an environment of a group broke, and cannot begin again without the others"),
    ):
        in_groups(make_envs(Breaking, 4, on_error="restart"), 2)
