"""Weights of the objectives as part of the observation: which episode has which, at every kind of episode end."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from rlopt import PPO, EnvironmentFault, make_envs
from rlopt.collector import Collector
from rlopt.envs.facade import VecEnvFacade
from rlopt.envs.frame_stack import FrameStack
from rlopt.envs.memory import Memory
from rlopt.envs.normalize import ObservationNormalizer
from rlopt.envs.preferences import OBSERVATION, PREFERENCE, Preferences
from rlopt.statistics import EpisodeStatistics
from tests.envs.test_vector_rewards import ALL, KINDS, SCRIPT, K, Silent, VectorSync, makers_of, vector_of
from tests.scripted_envs import rows_of
from tests.small_envs import Walk


def weights_of(environment: int, episode: int, seed: int = 0) -> np.ndarray:
    """w of an episode under `reset(seed)`, as the first episodes of as many fresh wrappers show them."""
    envs = Preferences(make_envs(makers_of(environment + 1)))
    envs.reset(seed)
    for _ in range(episode):
        envs.restart(np.array([environment]))
    return envs.preferences[environment]


# ------------------------------------------------------------------ step by step


@pytest.mark.parametrize("scalarise", [False, True])
@pytest.mark.parametrize("kind", ALL)
def test_every_row_shows_the_weights_of_its_episode(kind: str, scalarise: bool) -> None:
    with closing(ALL[kind](makers_of(2))) as inner:
        envs = Preferences(inner, scalarise=scalarise, num_objectives=K)
        rows = [list(zip(range(61), rows_of(SCRIPT, n, envs.resets_on_next_step), strict=False)) for n in range(2)]
        shown = envs.reset(0)
        known = {(n, 0): shown[PREFERENCE][n].copy() for n in range(2)}
        for t in range(60):
            step = envs.step(np.zeros(2, np.int64))
            finals = np.asarray(step.final_rows, int).tolist()
            for n in range(2):
                row, following = rows[n][t][1], rows[n][t + 1][1]
                new = step.observations[PREFERENCE][n]
                if following is not None and following[1] == 0:
                    assert (n, following[0]) not in known
                    known[n, following[0]] = new.copy()
                elif following is not None:
                    np.testing.assert_array_equal(new, known[n, following[0]])
                if row is None:
                    continue
                episode, mine = SCRIPT.episode(n, row[0]), known[n, row[0]]
                np.testing.assert_array_equal(step.infos[n][PREFERENCE], mine)
                paid = np.array(vector_of(episode.rewards[row[1]]))
                expected = mine.astype(np.float64) @ paid if scalarise else paid
                np.testing.assert_allclose(step.rewards[n], expected, rtol=1e-12, atol=1e-15)
                if row[1] == len(episode) - 1:  # the last observation has the weights that the episode was played for
                    source, place = (step.final_observations, finals.index(n)) if n in finals else (step.observations, n)
                    np.testing.assert_array_equal(source[OBSERVATION][place], episode.observations[-1])
                    np.testing.assert_array_equal(source[PREFERENCE][place], mine)
                if following is not None:
                    np.testing.assert_array_equal(
                        step.observations[OBSERVATION][n], SCRIPT.episode(n, following[0]).observations[following[1]]
                    )
        assert envs.num_objectives == (1 if scalarise else K)
    assert len(known) > 20
    assert len({tuple(w) for w in known.values()}) == len(known)
    for (n, episode), w in known.items():
        assert w.dtype == np.float32
        assert (w >= 0).all()
        assert w.sum() == pytest.approx(1, abs=1e-6)
        if episode < 3:  # of the seed, the environment and the episode alone, whatever it is that resets
            np.testing.assert_array_equal(w, weights_of(n, episode))


def test_what_was_handed_out_does_not_change() -> None:
    envs = Preferences(make_envs(makers_of(2)))
    kept = [envs.reset(0)[PREFERENCE]]
    infos = []
    for _ in range(30):
        step = envs.step(np.zeros(2, np.int64))
        kept.append(step.observations[PREFERENCE])
        infos.append(step.infos)
    copies = [array.copy() for array in kept]
    for _ in range(30):
        envs.step(np.zeros(2, np.int64))
    for before, after in zip(copies, kept, strict=True):
        np.testing.assert_array_equal(before, after)
    np.testing.assert_array_equal(infos[0][1][PREFERENCE], kept[0][1])  # read late


def test_weights_are_dirichlet() -> None:
    envs = Preferences(make_envs(makers_of(1)), concentration=[2.0, 1.0, 0.5], seed=5)
    draws = np.array([envs.reset()[PREFERENCE][0] for _ in range(2000)], np.float64)
    alpha, total = np.array([2.0, 1.0, 0.5]), 3.5
    mean = alpha / total
    variance = mean * (1 - mean) / (total + 1)
    assert (np.abs(draws.mean(0) - mean) < 4 * (variance / 2000) ** 0.5).all()
    np.testing.assert_allclose(draws.var(0), variance, rtol=0.15)
    again = Preferences(make_envs(makers_of(1)), concentration=[2.0, 1.0, 0.5], seed=5)
    np.testing.assert_array_equal([again.reset()[PREFERENCE][0] for _ in range(9)], draws[:9].astype(np.float32))


def test_draws_come_from_seeds_and_not_from_global_generators() -> None:
    def drawn(seed: int) -> np.ndarray:
        np.random.seed(seed)  # noqa: NPY002
        envs = Preferences(make_envs(makers_of(3)))
        return np.stack([envs.reset(9)[PREFERENCE], envs.reset()[PREFERENCE], envs.reset(9)[PREFERENCE]])

    first, second = drawn(1), drawn(2)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first[0], first[2])
    assert (first[0] != first[1]).any()


def test_fixed_weights_and_their_change() -> None:
    envs = Preferences(make_envs(makers_of(2)), [0.5, 0.25, 0.25])
    np.testing.assert_array_equal(envs.reset(0)[PREFERENCE], [[0.5, 0.25, 0.25]] * 2)
    envs.fix([0, 1, 0])
    assert (envs.preferences[:, 0] == 0.5).all()  # of the episodes under way
    np.testing.assert_array_equal(envs.restart(np.array([1]))[PREFERENCE], [[0, 1, 0]])
    np.testing.assert_array_equal(envs.preferences[0], [0.5, 0.25, 0.25])
    envs.fix(None)
    assert len({*envs.reset(0)[PREFERENCE][0].tolist()}) == K
    np.testing.assert_array_equal(envs.preferences[1], weights_of(1, 0))


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_a_reset_drops_what_was_pending(mode: AutoresetMode) -> None:
    envs = Preferences(make_envs(VectorSync(makers_of(1), mode)))
    envs.reset(0)
    while True:
        step = envs.step(np.zeros(1, np.int64))
        if step.terminated[0] | step.truncated[0]:
            break
    shown = envs.reset(0)[PREFERENCE].copy()
    np.testing.assert_array_equal(shown[0], weights_of(0, 0))
    step = envs.step(np.zeros(1, np.int64))
    np.testing.assert_array_equal(step.infos[0][PREFERENCE], shown[0])
    if not (step.terminated | step.truncated)[0]:
        np.testing.assert_array_equal(step.observations[PREFERENCE], shown)


# ------------------------------------------------------------------ whole episodes, agents, files


def agent_for(envs: Any, **kwargs: Any) -> PPO:
    return PPO("MultiInputPolicy", envs, n_steps=20, batch_size=20, seed=0, device="cpu", **kwargs)


def collector_of(agent: PPO, envs: Any, **kwargs: Any) -> Collector:
    statistics = EpisodeStatistics(envs.num_envs)
    return Collector(envs, agent.functional, torch.Generator().manual_seed(0), statistics, seed=3, **kwargs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("horizon", [None, 3])
@pytest.mark.parametrize("num_episodes", [1, 7])
def test_whole_episodes_keep_their_weights_and_batches_can_be_drawn_again(
    kind: str, horizon: int | None, num_episodes: int
) -> None:
    agent = agent_for(Preferences(make_envs(makers_of(1)), scalarise=True))
    found = []
    for _ in range(2):
        with closing(KINDS[kind](makers_of(2))) as inner:
            envs = Preferences(inner, scalarise=True, num_objectives=K)
            collector = collector_of(agent, envs)
            batches = [collector.episodes(agent.state.theta, num_episodes, horizon) for _ in range(2)]
        for rollout in batches:
            assert rollout.rewards.ndim == 2
            for e in range(num_episodes):
                length = int(rollout.mask[:, e].sum())
                shown = rollout.states[PREFERENCE][: length + 1, e]
                assert (shown == shown[0]).all()  # in its last state too
                assert float(shown[0].sum()) == pytest.approx(1, abs=1e-6)
        if num_episodes > 1:
            assert len({tuple(w) for w in batches[0].states[PREFERENCE][0].tolist()}) == num_episodes
        assert (batches[0].states[PREFERENCE][0] != batches[1].states[PREFERENCE][0]).any()
        found.append(batches)
    for first, second in zip(*found, strict=True):
        assert torch.equal(first.states[PREFERENCE][0], second.states[PREFERENCE][0])


def test_an_agent_of_one_reward_learns_for_weights_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    def made() -> Preferences:
        return Preferences(make_envs(makers_of(2)), scalarise=True)

    agent = agent_for(made(), normalize_observations=True, normalize_rewards=True).learn(200)
    assert agent.observation_normalizer is not None
    assert set(agent.observation_normalizer.moments) == {OBSERVATION}
    observation = {OBSERVATION: np.zeros(3, np.float32), PREFERENCE: np.array([1, 0, 0], np.float32)}
    assert agent.predict(observation, deterministic=True)[0] in (0, 1)
    agent.save(tmp_path / "agent.zip")
    loaded = PPO.load(tmp_path / "agent.zip", env=made())
    assert loaded.observation_normalizer is not None
    assert set(loaded.observation_normalizer.moments) == {OBSERVATION}
    mine, theirs = agent.environments, loaded.environments
    assert isinstance(mine, Preferences)
    assert isinstance(theirs, Preferences)
    assert mine.episodes.min() > 10
    assert mine.episode_counters() == theirs.episode_counters()
    np.testing.assert_array_equal(mine.reset()[PREFERENCE], theirs.reset()[PREFERENCE])


def test_counters_of_other_environments_are_not_taken() -> None:
    envs = Preferences(make_envs(makers_of(2)))
    envs.reset(4)
    plain = make_envs(makers_of(2))
    plain.reset(4)
    counters = plain.episode_counters()
    assert counters is not None
    assert not envs.restore_episodes(counters)
    other = Preferences(make_envs(makers_of(3))).episode_counters()
    assert other is not None
    assert not envs.restore_episodes(other)
    assert Preferences(KINDS["same-step"](makers_of(2))).episode_counters() is None


def test_weights_are_never_normalised() -> None:
    normalizer = ObservationNormalizer(Preferences(make_envs(makers_of(1))).encoder.space)
    shown = {OBSERVATION: np.ones((4, 3), np.float32), PREFERENCE: np.full((4, K), 1 / 3, np.float32)}
    normalizer.update(shown)
    assert normalizer(shown)[PREFERENCE] is shown[PREFERENCE]  # type: ignore[call-overload, index]
    alone = spaces.Dict({PREFERENCE: spaces.Box(0, 1, (2,)), "room": spaces.Discrete(2)})
    with pytest.raises(ValueError, match="has no float Box to normalise"):
        ObservationNormalizer(alone)


class VectorWalk(Walk):
    """A small walk of two rewards, with any observations."""

    reward_space = spaces.Box(-np.inf, np.inf, (2,))

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward, -1.0]), *rest


@pytest.mark.parametrize("observations", ["box", "discrete", "image", "dict", "nested", "tuple"])
def test_any_observation_gets_an_entry(observations: str) -> None:
    inner = make_envs([lambda: VectorWalk(observations)] * 2)
    envs = Preferences(inner)
    before = inner.encoder.space
    keys = set(before.spaces) if isinstance(before, spaces.Dict) else {OBSERVATION}
    assert set(envs.encoder.space.spaces) == {*keys, PREFERENCE}  # type: ignore[attr-defined]
    shown = envs.reset(0)
    assert shown.keys() == {*keys, PREFERENCE}
    assert envs.encoder.space.contains({key: array[0] for key, array in shown.items()})


def test_other_wrappers_go_around_and_inside() -> None:
    envs = Memory(Preferences(FrameStack(make_envs(makers_of(2)), 2)), 4)
    shown = envs.reset(0)
    assert {key: array.shape for key, array in shown.items()} == {
        OBSERVATION: (2, 6),
        PREFERENCE: (2, K),
        "memory": (2, 4),
        "previous_action": (2, 2),
    }
    assert envs.num_objectives == K
    facade = VecEnvFacade(Preferences(make_envs(makers_of(2))))
    assert facade.reset()[PREFERENCE].shape == (2, K)
    assert facade.step(np.zeros(2, np.int64))[3][0][PREFERENCE].shape == (K,)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": [0.5, 0.5]}, r"weights: expected 3 numbers, one an objective, got shape \(2,\)"),
        ({"weights": [0.5, 0.6, 0.1]}, "weights: expected weights that sum to one, got 1.2"),
        ({"weights": [1.5, -0.5, 0.0]}, "weights: expected weights that are finite and not negative, got -0.5"),
        ({"weights": [np.nan, 0.5, 0.5]}, "weights: expected weights that are finite and not negative, got nan"),
        ({"weights": [[0.2, 0.3, 0.5]]}, r"weights: expected 3 numbers, one an objective, got shape \(1, 3\)"),
        ({"weights": "abc"}, r"weights: expected numbers \[..., K\], got 'abc'"),
        ({"concentration": 0.0}, "concentration: expected positive numbers, got 0.0"),
        ({"concentration": [1.0, 2.0]}, r"concentration: expected a number or 3 of them, got shape \(2,\)"),
        ({"num_objectives": 2}, "env: it pays 3 rewards a step, and num_objectives is 2"),
        ({"num_objectives": 1}, "num_objectives: expected an integer of at least 2, got 1"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^({message})"):
        Preferences(make_envs(makers_of(1)), **kwargs)


def test_environments_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="num_objectives: CartPole-v1 does not say how many rewards it pays"):
        Preferences(make_envs("CartPole-v1"))
    cart_pole = Preferences(make_envs("CartPole-v1"), num_objectives=2)
    cart_pole.reset(0)
    with pytest.raises(EnvironmentFault, match="CartPole-v1: a step paid 1 rewards, the preferences are of 2"):
        cart_pole.step(np.zeros(1, np.int64))
    with pytest.raises(ValueError, match=r"envs: preferences need at least two objectives, .* pays one reward"):
        Preferences(Preferences(make_envs(makers_of(1)), scalarise=True))
    with pytest.raises(ValueError, match=r"observation space: preferences need the key 'preference', which .* uses"):
        Preferences(Preferences(make_envs(makers_of(1))))
    assert Preferences(make_envs(makers_of(1, Silent)), [0.5, 0.5, 0.0]).size == K
