"""Rewards of K objectives: the same through every kind of environment, in statistics, logs, evaluation and files."""

from __future__ import annotations

import csv
import importlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecNormalize

import rlopt.collector
from rlopt import PPO, EnvironmentFault, evaluate, make_envs
from rlopt.cli.progress import TrainingProgress
from rlopt.collector import Collector
from rlopt.envs.base import Environments
from rlopt.envs.facade import VecEnvFacade, as_vec_env
from rlopt.envs.memory import Memory
from rlopt.envs.normalize import RewardNormalizer
from rlopt.evaluation import Evaluation
from rlopt.run_folder import EpisodeLog
from rlopt.statistics import EpisodeStatistics, as_text, by_objective
from tests.scripted_envs import PoisonedVectorEnv, RandomScript, ScriptedEnv, rows_of

SCRIPT = RandomScript()
K = 3
NEXT_STEP, SAME_STEP, DISABLED = AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED
pytestmark = pytest.mark.filterwarnings("ignore:.*precision lowered by casting", "ignore:builtin type:DeprecationWarning")


def vector_of(reward: float) -> list[float]:
    """What the environments below pay where the script pays one reward."""
    return [reward, 0.25, -2.0 * reward]


class VectorScripted(ScriptedEnv):
    """Pays K rewards, in one float32 array that it uses again, and empties when it is reset."""

    reward_space: Any = spaces.Box(-1, 1, (K,), np.float32)

    def __init__(self, script: RandomScript, environment: int):
        super().__init__(script, environment)
        self.paid = np.zeros(K, np.float32)

    def reset(self, **kwargs: Any) -> Any:
        self.paid[:] = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        self.paid[:] = vector_of(reward)
        return observation, self.paid, *rest


class Silent(VectorScripted):
    """Says nothing of its rewards."""

    reward_space = None


def makers_of(num_envs: int, cls: type[VectorScripted] = VectorScripted) -> list[Callable[[], Any]]:
    return [lambda n=n: cls(SCRIPT, n) for n in range(num_envs)]  # type: ignore[misc]


class FreshRewards(gym.RewardWrapper):
    """For workers of Gymnasium and SB3, which send a reward after the reset that follows it."""

    def reward(self, reward: Any) -> Any:
        return reward.copy()


def fresh(makers: list[Callable[[], Any]]) -> list[Callable[[], Any]]:
    return [lambda make=make: FreshRewards(make()) for make in makers]  # type: ignore[misc]


class VectorSync(SyncVectorEnv):
    """Gymnasium's, with room for K rewards, in any autoreset mode."""

    def __init__(self, makers: Any, mode: AutoresetMode):
        super().__init__(makers, autoreset_mode=mode)
        self._rewards = np.zeros((self.num_envs, K))


class VectorDummy(DummyVecEnv):
    """SB3's, with room for K rewards."""

    def __init__(self, makers: Any):
        super().__init__(makers)
        self.buf_rews = np.zeros((self.num_envs, K), np.float32)


def mo_sync(makers: list[Callable[[], Any]]) -> Any:
    pytest.importorskip("mo_gymnasium")
    from mo_gymnasium.wrappers.vector import MOSyncVectorEnv

    return MOSyncVectorEnv(makers)


def poisoned(makers: list[Callable[[], Any]]) -> PoisonedVectorEnv:
    return PoisonedVectorEnv([make() for make in makers], np.full(K, 1e6))


# From a list of callables to environments: every kind in which rewards can be vectors.
KINDS: dict[str, Callable[[Any], Environments]] = {
    "own sync": make_envs,
    "mo-gymnasium": lambda makers: make_envs(mo_sync(makers)),
    "next-step": lambda makers: make_envs(VectorSync(makers, NEXT_STEP)),
    "same-step": lambda makers: make_envs(VectorSync(makers, SAME_STEP)),
    "disabled": lambda makers: make_envs(VectorSync(makers, DISABLED)),
    "poisoned": lambda makers: make_envs(poisoned(makers)),
    "sb3": lambda makers: make_envs(VectorDummy(makers)),
}
PROCESSES: dict[str, Callable[[Any], Environments]] = {
    "own async": lambda makers: make_envs(makers, backend="async"),
    "gymnasium async": lambda makers: make_envs(AsyncVectorEnv(fresh(makers), autoreset_mode=SAME_STEP, context="forkserver")),
    "sb3 subprocess": lambda makers: make_envs(SubprocVecEnv(fresh(makers), start_method="forkserver")),
}
ALL = KINDS | PROCESSES
ANNOUNCE = [*KINDS, "own async"]  # the workers of the others are asked nothing


class Collecting(PPO):
    """Collects and learns nothing, so that rewards may be anything."""

    def step(self, state: Any, collector: Collector) -> Any:
        self.rollout = collector.steps(state.theta, self.n_steps)
        return state, {}

    def check_rewards(self, num_objectives: int) -> None:
        """Any number will do."""


def collecting(env: Any, **kwargs: Any) -> Collecting:
    return Collecting("MlpPolicy", env, n_steps=20, batch_size=20, seed=0, device="cpu", **kwargs)


def collector_for(envs: Environments, **kwargs: Any) -> tuple[Collector, torch.Tensor]:
    agent = collecting(VectorScripted(SCRIPT, 0))
    statistics = EpisodeStatistics(envs.num_envs)
    return Collector(envs, agent.functional, torch.Generator().manual_seed(0), statistics, **kwargs), agent.state.theta


def expected_return(environment: int, number: int) -> np.ndarray:
    return np.sum([vector_of(reward) for reward in SCRIPT.episode(environment, number).rewards], 0)


# ------------------------------------------------------------------ every kind of environment


@pytest.mark.parametrize("kind", ALL)
def test_every_row_pays_what_the_script_pays_and_reset_rows_pay_nothing(kind: str) -> None:
    with closing(ALL[kind](makers_of(2))) as envs:
        collector, theta = collector_for(envs)
        rows = [rows_of(SCRIPT, n, envs.resets_on_next_step) for n in range(2)]
        ended: list[tuple[int, int]] = []
        for _ in range(3):
            rollout = collector.steps(theta, 20)
            assert rollout.rewards.shape == (20, 2, K)
            for t in range(20):
                for n in range(2):
                    row = next(rows[n])
                    assert bool(rollout.mask[t, n]) == (row is not None)
                    if row is None:
                        assert not rollout.rewards[t, n].any()
                        continue
                    episode = SCRIPT.episode(n, row[0])
                    np.testing.assert_array_equal(rollout.rewards[t, n], np.float32(vector_of(episode.rewards[row[1]])))
                    last = row[1] == len(episode) - 1
                    assert bool(rollout.terminated[t, n]) == (last and episode.terminated)
                    if last:
                        ended.append((n, row[0]))
        assert envs.num_objectives == K
        assert Memory(envs, 2).num_objectives == K  # wrappers pass it on
    recent = [(tuple(record["r"]), record["l"]) for record in collector.statistics.recent]
    assert len(recent) > 20
    assert sorted(recent) == sorted((tuple(expected_return(n, e)), len(SCRIPT.episode(n, e))) for n, e in ended)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("horizon", [None, 3])
def test_whole_episodes_pay_vectors_and_padding_pays_nothing(kind: str, horizon: int | None) -> None:
    with closing(ALL[kind](makers_of(2))) as envs:
        collector, theta = collector_for(envs)
        rollout = collector.episodes(theta, 5, horizon)
    assert rollout.rewards.shape[1:] == (5, K)
    assert not rollout.rewards[~rollout.mask].any()
    paid = rollout.rewards[rollout.mask].numpy()
    np.testing.assert_array_equal(paid[:, 1], np.full(len(paid), 0.25))
    np.testing.assert_array_equal(paid[:, 2], -2 * paid[:, 0])
    returns = {tuple(record["r"]) for record in collector.statistics.recent}
    assert returns == {tuple(total) for total in rollout.rewards.double().sum(0).tolist()}


def test_unmasked_reset_rows_would_be_paid(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the two above."""
    monkeypatch.setattr(Collector, "_without_reset_rows", lambda self, step: (step, None))
    with closing(KINDS["poisoned"](makers_of(2))) as envs:
        collector, theta = collector_for(envs)
        assert float(collector.steps(theta, 20).rewards.max()) == 1e6


@pytest.mark.parametrize("kind", ALL)
def test_the_number_of_objectives_is_known_before_the_first_step_where_it_is_announced(kind: str) -> None:
    with closing(ALL[kind](makers_of(2))) as envs:
        assert envs.num_objectives == (K if kind in ANNOUNCE else None)
        envs.reset(0)
        envs.step(np.zeros(2, np.int64))
        assert envs.num_objectives == K


def test_environments_that_say_nothing_are_known_after_their_first_step() -> None:
    envs = make_envs(makers_of(2, Silent))
    assert envs.num_objectives is None
    envs.reset(0)
    assert envs.step(np.zeros(2, np.int64)).rewards.shape == (2, K)
    assert envs.num_objectives == K
    ordinary = make_envs("CartPole-v1")
    assert ordinary.num_objectives is None
    ordinary.reset(0)
    ordinary.step(np.zeros(1, np.int64))
    assert ordinary.num_objectives == 1
    assert make_envs("rlopt/RandomMDP-v0", 2, env_kwargs={"num_objectives": 4}).num_objectives == 4
    assert make_envs("rlopt/RandomMDP-v0", env_kwargs={"num_objectives": 4}).num_objectives == 4


# ------------------------------------------------------------------ what does not fit


class Liar(VectorScripted):
    reward_space = spaces.Box(-1, 1, (2,), np.float32)


class Scalar(VectorScripted):
    """Announces K rewards and pays their sum."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, float(reward.sum()), *rest


class Mixing(gym.Wrapper):
    """A user's wrapper of which nothing is known."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = self.env.step(action)
        return observation, float(np.sum(reward)), *rest


class Growing(Silent):
    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, reward[: 3 - self.number % 2], *rest


def stepped(envs: Environments, times: int = 1) -> Any:
    envs.reset(0)
    return [envs.step(np.zeros(envs.num_envs, np.int64)) for _ in range(times)][-1]


@pytest.mark.parametrize("backend", ["sync", "async"])
@pytest.mark.parametrize(("cls", "paid"), [(Liar, "3 rewards, its reward_space announces 2"), (Scalar, "1 reward, its")])
def test_other_rewards_than_announced_are_a_fault(cls: type, paid: str, backend: Any) -> None:
    with closing(make_envs(makers_of(2, cls), backend=backend)) as envs, pytest.raises(EnvironmentFault, match=paid):
        stepped(envs)


def test_a_vector_environment_of_another_k_than_announced_is_a_fault() -> None:
    vector = VectorSync(makers_of(2), SAME_STEP)
    vector.reward_space = spaces.Box(-1, 1, (2,))  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentFault, match="a step paid 3 rewards, its reward_space announces 2"):
        stepped(make_envs(vector))


def test_rewards_that_change_their_number_are_a_fault() -> None:
    with pytest.raises(EnvironmentFault, match="a step paid 2 rewards, the steps before it 3"):
        stepped(make_envs(makers_of(1, Growing)), 30)
    different = [makers_of(1)[0], lambda: Mixing(VectorScripted(SCRIPT, 1))]
    with pytest.raises(EnvironmentFault, match=r"rewards are not numbers, or their shapes differ: \[\(\), \(3,\)\]"):
        stepped(make_envs(different))


def test_wrappers_may_sum_rewards_up() -> None:
    pytest.importorskip("mo_gymnasium")
    from mo_gymnasium.wrappers import LinearReward

    weights = np.array([0.5, 0.25, 0.25])
    for wrap, before in (
        (Mixing, K),
        (lambda env: LinearReward(env, weights), 1),
        (lambda env: gym.wrappers.TransformReward(env, lambda reward: float(weights @ reward)), None),
    ):
        envs = make_envs([lambda make=make, wrap=wrap: wrap(make()) for make in makers_of(2)])
        assert envs.num_objectives == before
        assert stepped(envs).rewards.shape == (2,)
        assert envs.num_objectives == 1


def test_containers_and_wrappers_of_one_reward_say_what_to_use_instead() -> None:
    advice = "failed in a step whose environments pay 3 rewards .*list of callables, without Monitor, or use .*MOSyncVectorEnv"
    for made in (
        SyncVectorEnv(makers_of(2)),
        gym.wrappers.vector.RecordEpisodeStatistics(VectorSync(makers_of(2), NEXT_STEP)),
        DummyVecEnv(makers_of(2)),
        [lambda: Monitor(VectorScripted(SCRIPT, 0))],
    ):
        with closing(make_envs(made)) as envs, pytest.raises(EnvironmentFault, match=advice):
            stepped(envs)


@pytest.mark.parametrize("num_envs", [1, K])
def test_vec_normalize_is_refused_where_it_would_broadcast_to_nonsense(num_envs: int) -> None:
    envs = make_envs(VecNormalize(VectorDummy(makers_of(num_envs))))
    with pytest.raises(EnvironmentFault, match=r"VecNormalize is for one reward, .* pay 3; .*normalize_rewards=True"):
        stepped(envs)
    frozen = VecNormalize(VectorDummy(makers_of(num_envs)), training=False, norm_reward=False)
    assert stepped(make_envs(frozen)).rewards.shape == (num_envs, K)


def test_errors_of_ordinary_environments_stay_what_they_are() -> None:
    class Broken(ScriptedEnv):
        def step(self, action: Any) -> Any:
            raise ValueError("mine")

    with pytest.raises(EnvironmentFault, match=r"failed in step: ValueError: mine, in step 1 of the episode"):
        stepped(make_envs(Broken(SCRIPT, 0)))
    for made in (SyncVectorEnv([lambda: Broken(SCRIPT, 0)]), DummyVecEnv([lambda: Broken(SCRIPT, 0)])):
        with pytest.raises(ValueError, match=r"^mine$"):
            stepped(make_envs(made))


# ------------------------------------------------------------------ normalisation


def stream(seed: int, num_steps: int = 200, num_envs: int = 4) -> Iterator[tuple[np.ndarray, ...]]:
    """Rewards [N, K] of very different sizes, valid rows, ends."""
    random = np.random.default_rng(seed)
    for _ in range(num_steps):
        rewards = random.normal(size=(num_envs, K)) * [0.01, 1.0, 100.0]
        yield rewards, random.random(num_envs) > 0.1, random.random(num_envs) < 0.05, random.random(num_envs) < 0.05


@pytest.mark.parametrize("carry", [False, True])
def test_each_objective_is_normalised_as_if_it_were_alone(carry: bool) -> None:
    joint = RewardNormalizer(4, 0.9, carry_across_truncation=carry)
    alone = [RewardNormalizer(4, 0.9, carry_across_truncation=carry) for _ in range(K)]
    for rewards, *rest in stream(0):
        normalised = joint(rewards, *rest)
        for k in range(K):
            np.testing.assert_allclose(normalised[:, k], alone[k](rewards[:, k], *rest), rtol=1e-9)
    assert joint.num_objectives == K
    np.testing.assert_allclose(np.sqrt(joint.moments.var), np.array([0.01, 1, 100]) / (1 - 0.81) ** 0.5, rtol=0.3)
    before = normalised.std(0)
    assert (before > 0.1).all()
    assert (before < 2).all()


def test_statistics_of_objectives_are_saved_and_go_on() -> None:
    first, second = RewardNormalizer(4, 0.9), RewardNormalizer(4, 0.9)
    data = list(stream(1))
    for row in data[:100]:
        first(*row)
    second.load_state({key: np.array(value) for key, value in first.state().items()})
    assert second.num_objectives == K
    for row in data[100:]:
        np.testing.assert_array_equal(first(*row), second(*row))


def test_statistics_of_another_number_of_objectives_are_refused() -> None:
    three = RewardNormalizer(4, 0.9)
    for row in stream(2, 10):
        three(*row)
    with pytest.raises(ValueError, match="normalize_rewards: the statistics are of 3 rewards a step, the environment pays 2"):
        RewardNormalizer(4, 0.9, num_objectives=2).load_state(three.state())
    unknown = RewardNormalizer(4, 0.9)
    unknown.load_state(three.state())
    for rewards in (np.zeros((4, 2)), np.zeros(4)):
        nobody = np.zeros(4, bool)
        with pytest.raises(ValueError, match="normalize_rewards: expected 3 rewards a step, as the statistics are of, got"):
            unknown(rewards, ~nobody, nobody, nobody)
    RewardNormalizer(4, 0.9, num_objectives=2).load_state(RewardNormalizer(4, 0.9).state())  # nothing was counted


def test_an_agent_keeps_its_statistics_of_objectives_in_its_file(tmp_path: Path) -> None:
    agent = collecting(makers_of(2), normalize_rewards=True).learn(200)
    assert agent.reward_normalizer is not None
    assert np.shape(agent.reward_normalizer.moments.var) == (K,)
    assert agent.rollout.rewards.shape == (20, 2, K)
    # The second objective is constant; the third is the first times −2 and comes out as its mirror image.
    np.testing.assert_allclose(agent.rollout.rewards[..., 2], -agent.rollout.rewards[..., 0], rtol=1e-4, atol=1e-6)
    agent.save(tmp_path / "agent.zip")
    loaded = Collecting.load(tmp_path / "agent.zip", env=makers_of(2))
    assert loaded.reward_normalizer is not None
    for name in ("mean", "var", "count"):
        np.testing.assert_array_equal(
            getattr(loaded.reward_normalizer.moments, name), getattr(agent.reward_normalizer.moments, name)
        )

    class Two(VectorScripted):
        reward_space = spaces.Box(-1, 1, (2,))

        def step(self, action: Any) -> Any:
            observation, reward, *rest = super().step(action)
            return observation, reward[:2].copy(), *rest

    with pytest.raises(ValueError, match="the statistics are of 3 rewards a step, the environment pays 2"):
        Collecting.load(tmp_path / "agent.zip", env=makers_of(2, Two))


def test_reward_statistics_are_of_what_the_environments_announce_before_any_step() -> None:
    agent = PPO("MlpPolicy", makers_of(2), n_steps=8, batch_size=8, normalize_rewards=True, utility=[1.0] * K, device="cpu")
    assert agent.reward_normalizer is not None
    assert agent.reward_normalizer.num_objectives == K
    assert np.shape(agent.reward_normalizer.deviations) == (K,)


# ------------------------------------------------------------------ statistics, logs, callbacks, evaluation


def test_the_log_has_a_mean_return_for_every_objective(tmp_path: Path) -> None:
    agent = collecting(makers_of(2))
    written: dict[str, Any] = {}
    agent.logger.dump = lambda step=0: written.update(agent.logger.name_to_value)  # type: ignore[method-assign]
    agent.set_logger(agent.logger)
    bar = TrainingProgress(agent, 400, enabled=False)
    list(bar.get_renderables())
    assert bar.tasks[0].fields["mean_return"] == "nan"
    with EpisodeLog(tmp_path / "episodes.csv", agent):
        agent.learn(400)
    means = np.mean([record["r"] for record in agent.ep_info_buffer], 0)
    np.testing.assert_allclose([written[f"rollout/ep_rew_mean_{k}"] for k in range(K)], means)
    assert "rollout/ep_rew_mean" not in written
    assert written["rollout/ep_len_mean"] > 0
    list(bar.get_renderables())
    assert bar.tasks[0].fields["mean_return"] == as_text(means, ".4g")
    with (tmp_path / "episodes.csv").open() as file:
        rows = [json.loads(row["return"]) for row in csv.DictReader(file)]
    assert rows[-len(agent.ep_info_buffer) :] == [record["r"] for record in agent.ep_info_buffer]


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_sb3s_progress_bar_and_function_callbacks_see_vectors() -> None:
    seen: list[Any] = []

    def look(local: dict[str, Any], _: dict[str, Any]) -> bool:
        assert local["rewards"].shape == (2, K)
        seen.extend(info["episode"]["r"] for info in local["infos"] if "episode" in info)
        return True

    agent = collecting(makers_of(2))
    agent.learn(100, callback=look, progress_bar=True)
    assert seen
    assert seen == [record["r"] for record in agent.ep_info_buffer]


def test_names_and_texts_of_numbers_and_vectors() -> None:
    assert by_objective("a", 1.5) == {"a": 1.5}
    assert by_objective("a", [1, 2]) == {"a_0": 1.0, "a_1": 2.0}
    assert as_text(1.234) == "1.23"
    assert as_text(np.array([1.234, -5]), ".4g") == "(1.234, -5)"
    statistics = EpisodeStatistics(1)
    assert np.isnan(statistics.mean_return)
    statistics.recent.extend([{"r": 1.0}, {"r": 2.0}])
    assert statistics.mean_return == 1.5
    statistics.recent.append({"r": [1.0, 2.0]})  # another environment since
    np.testing.assert_array_equal(statistics.mean_return, [1.0, 2.0])


def test_a_monitors_vector_account_is_taken_as_it_is() -> None:
    statistics = EpisodeStatistics(1, monitored=True)
    for r in (np.array([1.0, 2.0]), np.array([3.0])):
        statistics.add(np.zeros((1, 2)), None, np.array([True]), [{"episode": {"r": r, "l": 2}}])
    assert [record["r"] for record in statistics.recent] == [[1.0, 2.0], 3.0]


@pytest.mark.parametrize("cls", [VectorScripted, Silent])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "mo-gymnasium"])
def test_evaluation_returns_vectors(kind: str, cls: type[VectorScripted]) -> None:
    with closing(KINDS[kind](makers_of(2, cls))) as envs:
        evaluation = evaluate(collecting(VectorScripted(SCRIPT, 0)), envs, 6, seed=0)
    expected = [expected_return(n, e) for n in range(2) for e in range(3)]
    assert np.shape(evaluation.returns) == (6, K)
    assert sorted(evaluation.returns) == sorted(map(tuple, expected))
    np.testing.assert_allclose(evaluation.mean, np.mean(expected, 0))
    np.testing.assert_allclose(evaluation.std, np.std(expected, 0))
    np.testing.assert_allclose(evaluation.median, np.median(expected, 0))
    assert isinstance(Evaluation((1.0, 2.0), (1, 1)).mean, float)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sb3"])
def test_the_facade_shows_vectors(kind: str) -> None:
    with closing(KINDS[kind](makers_of(2))) as envs:
        venv = as_vec_env(envs)
        assert isinstance(venv, VecEnvFacade)
        venv.reset()
        number = [0, 0]
        for _ in range(60):
            _, rewards, dones, infos = venv.step(np.zeros(2, np.int64))
            assert rewards.shape == (2, K)
            assert rewards.dtype == np.float32
            assert float(np.abs(rewards).max()) <= 1
            for n in dones.nonzero()[0]:
                assert infos[n]["episode"]["r"] == expected_return(n, number[n]).tolist()
                number[n] += 1
    assert min(number) > 5


@pytest.mark.parametrize("cls", [VectorScripted, Silent])
def test_sb3s_evaluation_names_ours(cls: type[VectorScripted]) -> None:
    agent = collecting(makers_of(1, cls))
    message = "pays 3 rewards a step; .*evaluate_policy and EvalCallback add up one; use rlopt.evaluate, whose returns are vec"
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            evaluate_policy(agent, as_vec_env(make_envs(makers_of(2, cls))), 2, warn=False)
    with pytest.raises(ValueError, match=message):
        agent.learn(100, callback=EvalCallback(as_vec_env(make_envs(makers_of(2, cls))), eval_freq=5, verbose=0, warn=False))


# ------------------------------------------------------------------ MO-Gymnasium

# Spec of the benchmark: (treasure, time) of the shortest way to each treasure, column by column.
TREASURES = [
    (0.7, -1),
    (8.2, -3),
    (11.5, -5),
    (14.0, -7),
    (15.1, -8),
    (16.1, -9),
    (19.6, -13),
    (20.3, -14),
    (22.4, -17),
    (23.7, -19),
]
DOWN, RIGHT = 1, 3


def treasure_hunts(num: int) -> list[Callable[[], Any]]:
    mo_gymnasium = pytest.importorskip("mo_gymnasium")
    return [lambda: mo_gymnasium.make("deep-sea-treasure-v0")] * num


class TwoSync(SyncVectorEnv):
    def __init__(self, makers: Any, mode: AutoresetMode):
        super().__init__(makers, autoreset_mode=mode)
        self._rewards = np.zeros((self.num_envs, 2))


def recorded(num: int) -> Environments:
    pytest.importorskip("mo_gymnasium")
    from mo_gymnasium.wrappers.vector import MORecordEpisodeStatistics

    return make_envs(MORecordEpisodeStatistics(mo_sync(treasure_hunts(num)), gamma=0.9))


SEAS: dict[str, Callable[[int], Environments]] = {
    "id": lambda num: make_envs("deep-sea-treasure-v0", num),
    "id async": lambda num: make_envs("deep-sea-treasure-v0", num, backend="async"),
    "callables": lambda num: make_envs(treasure_hunts(num)),
    "mo-gymnasium": lambda num: make_envs(mo_sync(treasure_hunts(num))),
    "mo-gymnasium, recorded": recorded,
    "same-step": lambda num: make_envs(TwoSync(treasure_hunts(num), SAME_STEP)),
    "disabled": lambda num: make_envs(TwoSync(treasure_hunts(num), DISABLED)),
    "sb3 subprocess": lambda num: make_envs(SubprocVecEnv(treasure_hunts(num), start_method="forkserver")),
}


def test_the_front_of_deep_sea_treasure_is_the_known_one() -> None:
    pytest.importorskip("mo_gymnasium")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the package's own are not passed on
        envs = make_envs("deep-sea-treasure-v0")
    assert envs.num_objectives == 2
    np.testing.assert_allclose(envs.envs[0].unwrapped.pareto_front(gamma=1.0), TREASURES)  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", SEAS)
def test_scripted_ways_reach_every_treasure_and_reset_rows_are_masked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environment c goes right to column c and down; three times and more for the long ways."""
    pytest.importorskip("mo_gymnasium")

    def actor(module: Any, num_envs: int) -> Any:
        return lambda observations, noise: np.where(observations[:, 1] < np.arange(num_envs), RIGHT, DOWN)

    monkeypatch.setattr(rlopt.collector, "make_actor", actor)
    with closing(SEAS[kind](10)) as envs:
        agent = collecting("deep-sea-treasure-v0")
        collector = Collector(envs, agent.functional, torch.Generator(), EpisodeStatistics(10))
        rollout = collector.steps(agent.state.theta, 60)
        episodes = collector.episodes(agent.state.theta, 10)
        next_step = envs.resets_on_next_step
    for column, point in enumerate(TREASURES):
        length = -point[1] + next_step
        valid = np.arange(60) % length < -point[1]
        np.testing.assert_array_equal(rollout.mask[:, column], valid)
        np.testing.assert_array_equal(rollout.terminated[:, column], np.arange(60) % length == -point[1] - 1)
        rewards = rollout.rewards[:, column]
        assert not rewards[~torch.from_numpy(valid)].any()
        np.testing.assert_allclose(rewards[: -point[1]].sum(0), point, atol=1e-6)
    np.testing.assert_allclose(episodes.rewards.sum(0), TREASURES, atol=1e-5)
    assert not episodes.truncated.any()
    records = {record["l"]: record["r"] for record in collector.statistics.recent}
    for treasure, time in TREASURES:
        np.testing.assert_allclose(records[-time], [treasure, time], atol=1e-6)


def test_the_horizon_of_deep_sea_treasure_truncates() -> None:
    pytest.importorskip("mo_gymnasium")
    envs = make_envs("deep-sea-treasure-v0")
    envs.reset(0)
    steps = [envs.step(np.zeros(1, np.int64)) for _ in range(100)]  # up, against the surface
    assert [bool(step.truncated[0]) for step in steps] == [False] * 99 + [True]
    np.testing.assert_array_equal(np.sum([step.rewards[0] for step in steps], 0), [0, -100])


@pytest.mark.parametrize(
    ("env_id", "needs", "number", "action"),
    [
        ("mo-lunar-lander-v3", "Box2D", 4, 0),
        ("mo-hopper-v5", "mujoco", 3, np.zeros(3)),
        ("four-room-v0", "mo_gymnasium", 3, 0),
        ("resource-gathering-v0", "mo_gymnasium", 3, 0),
    ],
)
def test_other_environments_by_id(env_id: str, needs: str, number: int, action: Any) -> None:
    pytest.importorskip("mo_gymnasium")
    pytest.importorskip(needs)
    for backend in ("sync", "auto"):
        with closing(make_envs(env_id, 2, backend=backend)) as envs:  # type: ignore[arg-type]
            assert envs.num_objectives == number
            envs.reset(0)
            step = envs.step(np.array([action, action]))
            assert step.rewards.shape == (2, number)
            assert step.rewards.dtype == np.float64


def test_wrappers_of_mo_gymnasium() -> None:
    mo_gymnasium = pytest.importorskip("mo_gymnasium")
    from mo_gymnasium.wrappers import LinearReward, MONormalizeReward, MORecordEpisodeStatistics

    def treasure(wrap: Callable[[Any], Any]) -> Environments:
        return make_envs(wrap(mo_gymnasium.make("deep-sea-treasure-v0")))

    recorded = treasure(MORecordEpisodeStatistics)
    assert recorded.num_objectives == 2
    recorded.reset(0)
    step = recorded.step(np.array([DOWN]))
    np.testing.assert_allclose(step.infos[0]["episode"]["r"], TREASURES[0], atol=1e-6)
    np.testing.assert_allclose(step.rewards, [TREASURES[0]], atol=1e-6)
    normalised = treasure(lambda env: MONormalizeReward(env, idx=1))
    assert normalised.num_objectives == 2
    normalised.reset(0)
    assert normalised.step(np.array([DOWN])).rewards[0, 1] != -1
    scalar = treasure(lambda env: LinearReward(env, np.array([1.0, 0.5])))
    assert scalar.num_objectives == 1
    scalar.reset(0)
    np.testing.assert_allclose(scalar.step(np.array([DOWN])).rewards, [0.2], atol=1e-6)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for env_id in [env_id for env_id in gym.registry if env_id.startswith(("deep-sea", "mo-"))]:
        monkeypatch.delitem(gym.registry, env_id)
    real = importlib.import_module

    def missing(name: str, *args: Any) -> Any:
        if name == "mo_gymnasium":
            raise ModuleNotFoundError("No module named 'mo_gymnasium'", name="mo_gymnasium")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", missing)
    for env_id in ("deep-sea-treasure-v0", "mo-hopper-v5"):
        with pytest.raises(ImportError, match=rf"^env: {env_id} needs mo_gymnasium .*: pip install 'rlopt\[mo\]'"):
            make_envs(env_id)


def test_ids_of_ones_own_that_begin_alike_need_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gym.envs.registration.EnvSpec("mo-mine-v0", entry_point=lambda render_mode=None: VectorScripted(SCRIPT, 0))
    monkeypatch.setitem(gym.registry, "mo-mine-v0", spec)
    monkeypatch.setattr(importlib, "import_module", lambda name: pytest.fail(f"imported {name}"))
    assert make_envs("mo-mine-v0").num_objectives == K
