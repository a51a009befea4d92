"""Agents that are trained together end where each would have ended alone."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.torch_layers import FlattenExtractor

from rlopt import PPO, REBEL, Checkpoints, FlightRecorder
from rlopt.envs.classic_control import ClassicControlVectorEnv
from rlopt.envs.row_generators import BlockGenerators
from rlopt.envs.t_maze import TMaze, TMazeVectorEnv
from rlopt.together import learn_together, why_not_together
from rlopt.together.collecting import JointCollector

SMALL: dict[str, Any] = {"n_envs": 4, "n_steps": 16, "batch_size": 16, "n_epochs": 3, "device": "cpu", "compile": False}
SEEDS = (3, 4, 9)
STEPS = 4 * 16 * 4


def make(seed: int, env: Any = "CartPole-v1", **more: Any) -> PPO:
    return PPO("MlpPolicy", env, seed=seed, **{"backend": "native", **SMALL, **more})


def returns(agent: PPO) -> list[Any]:
    return [(episode["r"], episode["l"]) for episode in agent.ep_info_buffer]


def assert_same(first: PPO, second: PPO, atol: float = 1e-6) -> None:
    torch.testing.assert_close(first.state.theta, second.state.theta, atol=atol, rtol=0)
    for name, moment in first.state.moments.items():
        torch.testing.assert_close(moment, second.state.moments[name], atol=atol, rtol=1e-3)
    assert first.state.num_updates == second.state.num_updates
    assert first.num_timesteps == second.num_timesteps
    np.testing.assert_allclose(returns(first), returns(second), rtol=1e-5)
    assert first.statistics.num_episodes == second.statistics.num_episodes


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"batch_size": 24, "clip_range_vf": 0.2, "ent_coef": 0.01},  # whose last minibatch is smaller
        {"learning_rate": "linear:1e-3", "clip_range": "linear:0.3", "schedule_from": "rollout_start"},
        {"normalize_advantage": False, "policy_kwargs": {"net_arch": [16], "activation_fn": torch.nn.ReLU}},
        {"policy_kwargs": {"activation_fn": torch.nn.ELU}},  # which has no form in NumPy
        {"bootstrap_truncation": False, "value_clip": "maximum", "clip_range_vf": 0.1},
        {"normalize_observations": True, "normalize_rewards": True, "gamma": 0.9},
    ],
    ids=["plain", "remainder", "schedules", "relu", "elu", "pessimistic", "normalised"],
)
@pytest.mark.filterwarnings("ignore:batch_size. a rollout of:UserWarning")
def test_together_is_alone(more):
    together = [make(seed, **more) for seed in SEEDS]
    learn_together(together, STEPS)
    for seed, agent in zip(SEEDS, together, strict=True):
        assert_same(agent, make(seed, **more).learn(STEPS))
    thetas = [agent.state.theta for agent in together]
    assert not torch.allclose(thetas[0], thetas[1], atol=1e-3)


def test_an_update_that_went_wrong_is_undone_for_its_agent_alone(tmp_path, capsys):
    def recorders(name: str) -> list[FlightRecorder]:
        limits = zip(SEEDS, (10.0, 1e-9, 10.0), strict=True)
        return [FlightRecorder(tmp_path / name / str(seed), max_kl=limit) for seed, limit in limits]

    together = [make(seed, learning_rate=1e-3) for seed in SEEDS]
    learn_together(together, STEPS, recorders=recorders("together"))
    for seed, agent, recorder in zip(SEEDS, together, recorders("alone"), strict=True):
        alone = make(seed, learning_rate=1e-3).learn(STEPS, recorder=recorder)
        assert agent.step_scale == alone.step_scale == (1.0 if seed != SEEDS[1] else 2.0**-4)
        assert_same(agent, alone)
    assert len(list((tmp_path / "together" / str(SEEDS[1])).glob("fault_*.zip"))) == 4
    assert "went back to those before it" in capsys.readouterr().err


@pytest.mark.parametrize(
    "env", ["Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0", "rlopt/LQR-v0", "rlopt/GaussianBandit-v0"]
)
def test_in_every_kind_of_environment(env):
    """Of these LQR draws random numbers in every step, and the bandit ends all episodes at once."""
    together = [make(seed, env) for seed in SEEDS]
    learn_together(together, STEPS)
    for seed, agent in zip(SEEDS, together, strict=True):
        assert_same(agent, make(seed, env).learn(STEPS), atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled():
    together = [make(seed, compile=True) for seed in SEEDS]
    learn_together(together, 128)
    for seed, agent in zip(SEEDS, together, strict=True):
        assert_same(agent, make(seed).learn(128), atol=1e-5)


def test_normalisers_are_those_of_training_alone():
    """Pendulum is truncated all the time, so that last observations are normalised too."""
    more = {"normalize_observations": True, "normalize_rewards": True, "n_steps": 128, "batch_size": 128}
    together = [make(seed, "Pendulum-v1", **more) for seed in SEEDS]
    learn_together(together, 3 * 512)
    for seed, agent in zip(SEEDS, together, strict=True):
        alone = make(seed, "Pendulum-v1", **more).learn(3 * 512)
        assert_same(agent, alone, atol=1e-5)
        for name in ("observation_normalizer", "reward_normalizer"):
            mine, theirs = getattr(agent, name).state(), getattr(alone, name).state()
            assert mine.keys() == theirs.keys()
            for key in mine:
                np.testing.assert_allclose(mine[key], theirs[key], rtol=1e-5, atol=1e-6)
        assert len(agent.ep_info_buffer) == 4


def test_each_goes_on_alone_as_if_it_had_always_been():
    together = [make(seed) for seed in SEEDS]
    learn_together(together, STEPS)
    for seed, agent in zip(SEEDS, together, strict=True):
        agent.learn(STEPS, reset_num_timesteps=False)
        assert_same(agent, make(seed).learn(STEPS).learn(STEPS, reset_num_timesteps=False), atol=1e-5)


def test_and_together_again():
    twice, once = ([make(seed) for seed in SEEDS] for _ in range(2))
    learn_together(twice, 128)
    learn_together(twice, 128)
    for agent in once:
        agent.learn(128).learn(128)
    for first, second in zip(twice, once, strict=True):
        assert_same(first, second, atol=1e-5)


def test_negative_control_random_numbers_of_another_agent_are_noticed(monkeypatch):
    honest = JointCollector.__init__

    def swapped(self, agents):
        honest(self, agents)
        generators = self.envs.env.np_random
        self.envs.env.np_random = BlockGenerators(generators.generators[::-1], generators.sizes)

    monkeypatch.setattr(JointCollector, "__init__", swapped)
    together = [make(seed) for seed in SEEDS]
    learn_together(together, STEPS)
    with pytest.raises(AssertionError):
        assert_same(together[0], make(SEEDS[0]).learn(STEPS))


def progress(folder: Path) -> list[dict[str, str]]:
    with (folder / "progress.csv").open() as file:
        return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in csv.DictReader(file)]


def test_logs_are_those_of_training_alone(tmp_path):
    from stable_baselines3.common.logger import configure

    def logged(agent: PPO, folder: Path) -> PPO:
        agent.set_logger(configure(str(folder), ["csv"]))
        return agent

    together = [logged(make(seed), tmp_path / f"together{seed}") for seed in SEEDS]
    learn_together(together, STEPS)
    for agent, seed in zip(together, SEEDS, strict=True):
        alone = logged(make(seed), tmp_path / f"alone{seed}").learn(STEPS)
        for each in (agent, alone):
            each.logger.close()
        mine, theirs = progress(tmp_path / f"together{seed}"), progress(tmp_path / f"alone{seed}")
        assert [row.keys() for row in mine] == [row.keys() for row in theirs]
        for row, other in zip(mine, theirs, strict=True):
            numbers = [(float(row[name] or "nan"), float(other[name] or "nan")) for name in row]
            np.testing.assert_allclose(*zip(*numbers, strict=True), rtol=1e-3, atol=1e-5)


def test_a_checkpoint_of_training_together_is_one_of_training_alone(tmp_path):
    whole = [make(seed) for seed in SEEDS]
    learn_together(whole, STEPS)

    class Stop(Exception):
        pass

    iterations = []

    def stop() -> None:
        iterations.append(1)
        if len(iterations) == 3:
            raise Stop

    folders = [tmp_path / str(seed) for seed in SEEDS]
    with pytest.raises(Stop):
        learn_together(
            [make(seed) for seed in SEEDS],
            STEPS,
            checkpoints=[Checkpoints(folder, 64) for folder in folders],
            on_iteration=stop,
        )
    for seed, folder, agent in zip(SEEDS, folders, whole, strict=True):
        resumed = make(seed).learn(STEPS, checkpoints=Checkpoints(folder, 64, resume=True))
        assert_same(resumed, agent, atol=1e-5)


def test_going_on_together_is_exact(tmp_path):
    whole, folders = [make(seed) for seed in SEEDS], [tmp_path / str(seed) for seed in SEEDS]
    learn_together(whole, STEPS)
    learn_together([make(seed) for seed in SEEDS], 128, checkpoints=[Checkpoints(folder) for folder in folders])
    resumed = [make(seed) for seed in SEEDS]
    learn_together(resumed, STEPS, checkpoints=[Checkpoints(folder, resume=True) for folder in folders])
    for first, second in zip(resumed, whole, strict=True):
        assert torch.equal(first.state.theta, second.state.theta)


def test_a_request_to_stop_leaves_a_checkpoint_of_every_seed(tmp_path):
    runs = [Checkpoints(tmp_path / str(seed), 0) for seed in SEEDS]
    agents = [make(seed) for seed in SEEDS]
    learn_together(agents, STEPS, checkpoints=runs, on_iteration=runs[1].request_stop)
    assert {agent.num_timesteps for agent in agents} == {64}
    assert all((run.folder / "rl_model_64_steps.zip").exists() for run in runs)


def test_parameters_that_are_not_finite_end_the_training_with_those_before():
    agents = [make(seed) for seed in SEEDS]
    before = [agent.state.theta for agent in agents]
    agents[1].state = agents[1].state._replace(theta=torch.full_like(before[1], float("nan")))
    with pytest.raises((FloatingPointError, ValueError)):
        learn_together(agents, STEPS)
    assert torch.equal(agents[0].state.theta, before[0])


SHARED = ClassicControlVectorEnv("CartPole-v1", 4)


def shared() -> ClassicControlVectorEnv:
    return SHARED


def frozen(agent: PPO) -> PPO:
    next(agent.policy.parameters()).requires_grad_(False)
    return agent


def seeded_one_by_one(agent: PPO) -> PPO:
    agent.environments.env.reset(seed=[1, 2, 3, 4])
    return agent


class Noisy(FlattenExtractor):
    """Networks of one's own may do anything."""


def test_successes_are_those_of_training_alone():
    together = [make(seed, "rlopt/CueRecall-v0") for seed in SEEDS]
    learn_together(together, STEPS)
    for seed, agent in zip(SEEDS, together, strict=True):
        alone = make(seed, "rlopt/CueRecall-v0").learn(STEPS)
        assert list(agent.ep_success_buffer) == list(alone.ep_success_buffer)
        assert_same(agent, alone, atol=1e-5)


def test_checkpoints_are_one_for_each(tmp_path):
    one = Checkpoints(tmp_path)
    for wrong in ([one], [one, one]):
        with pytest.raises(ValueError, match="checkpoints: expected one for each of 2 agents, got 1"):
            learn_together([make(0), make(1)], STEPS, checkpoints=wrong)


@pytest.mark.parametrize(
    ("agents", "reason"),
    [
        (lambda: [make(0), make(1, learning_rate=1e-3)], "differ by more than their seed"),
        (lambda: [make(0), make(1, "Acrobot-v1")], "differ by more than their seed"),
        (lambda: [make(0, backend="sync"), make(1, backend="sync")], "not native"),
        (lambda: [make(s, lambda: gym.make("CartPole-v1"), backend="auto") for s in (0, 1)], "not native"),
        (lambda: [make(s, target_kl=0.1) for s in (0, 1)], "target_kl has no batched form"),
        (lambda: [make(s, memory="s2pg") for s in (0, 1)], "not vectors|memory has no"),
        (lambda: [make(s, policy_kwargs={"optimizer_class": torch.optim.SGD}) for s in (0, 1)], r"torch\.optim\.Adam"),
        (lambda: [make(0)] * 2, "the same environments"),
        (lambda: [make(s, shared(), backend="auto") for s in (0, 1)], "the same environments"),
        (
            lambda: [make(s, ClassicControlVectorEnv("CartPole-v1", 4 + 4 * s), backend="auto") for s in (0, 1)],
            "differ by more than their seed",
        ),
        (
            lambda: [make(s, TMazeVectorEnv(TMaze(3 + s), 4), backend="auto") for s in (0, 1)],
            "environments differ by more than their seed",
        ),
        (lambda: [make(s, "rlopt/RandomMDP-v0") for s in (0, 1)], "observations that are not vectors"),
        (lambda: [make(s, policy_kwargs={"features_extractor_class": Noisy}) for s in (0, 1)], "not known to be a function"),
        (lambda: [make(0), make(1).learn(64)], "differ by more than their seed"),
        (lambda: [make(0), frozen(make(1))], "frozen|differ by more than their seed"),
        (lambda: [make(s, "InvertedPendulum-v5", backend="threads") for s in (0, 1)], "keeps more of its copies"),
        (lambda: [seeded_one_by_one(make(s)) for s in (0, 1)], "copies of their environments have seeds of their own"),
        (
            lambda: [
                REBEL("MlpPolicy", "CartPole-v1", n_envs=2, n_steps=8, batch_size=16, backend="native", device="cpu")
                for _ in range(2)
            ],
            "REBEL has no batched form",
        ),
    ],
)
def test_what_cannot_be_trained_together_is_said(agents, reason):
    made = agents()
    assert re.search(reason, why_not_together(made) or "")
    with pytest.raises(ValueError, match="agents: they cannot be trained together"):
        learn_together(made, STEPS)


def test_no_agents():
    with pytest.raises(ValueError, match="agents: expected at least one"):
        learn_together([], STEPS)


def test_blocks_draw_what_each_generator_draws_alone():
    blocks = BlockGenerators([np.random.default_rng(seed) for seed in SEEDS], [2, 3, 1])
    alone = [np.random.default_rng(seed) for seed in SEEDS]
    expected = [g.random((n, 2)) for g, n in zip(alone, (2, 3, 1), strict=True)]
    assert np.array_equal(blocks.random((6, 2)), np.concatenate(expected))
    some = blocks.of(np.array([True, False, False, False, False, True]))
    assert np.array_equal(some.standard_normal(2), [alone[0].standard_normal(1)[0], alone[2].standard_normal(1)[0]])
    assert np.array_equal(blocks.integers(5, size=6)[2:5], alone[1].integers(5, size=3))  # it drew nothing meanwhile
    with pytest.raises(ValueError, match=r"expected \(6, ...\)"):
        blocks.random((5, 2))
