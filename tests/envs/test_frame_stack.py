"""Stacked frames against a plain loop over each episode, in every kind of environment and at every kind of end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from rlopt import PPO, make_envs
from rlopt.envs.base import Environments, episode_seed
from rlopt.envs.facade import as_vec_env
from rlopt.envs.frame_stack import FrameStack
from tests.scripted_envs import SIZE, Episode, FixedScript, PoisonedVectorEnv, RandomScript, ScriptedEnv, factories
from tests.small_envs import OBSERVATION_SPACES, Walk

SCRIPT = RandomScript()
NUM = 3
NOTHING = np.zeros(NUM, np.int64)


def stacked(episode: Episode, time: int, num_frames: int) -> np.ndarray:
    """The last frames at a step of an episode: a plain loop."""
    frames = [episode.observations[t] if t >= 0 else np.zeros(SIZE, np.float32) for t in range(time - num_frames + 1, time + 1)]
    return np.concatenate(frames)


def expected(environment: int, num_frames: int, next_step: bool) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """What a step shows and, where it resets, the last observation of the episode that ended."""
    number = 0
    while True:
        episode = SCRIPT.episode(environment, number)
        following = stacked(SCRIPT.episode(environment, number + 1), 0, num_frames)
        for time in range(1, len(episode)):
            yield stacked(episode, time, num_frames), None
        last = stacked(episode, len(episode), num_frames)
        if next_step:
            yield last, None
            yield following, None
        else:
            yield following, last
        number += 1


KINDS = {
    "sync": lambda: make_envs(factories(SCRIPT, NUM)),
    "sb3": lambda: make_envs(DummyVecEnv(factories(SCRIPT, NUM))),
    "liar": lambda: make_envs(PoisonedVectorEnv([ScriptedEnv(SCRIPT, n) for n in range(NUM)])),
    **{
        f"{mode.value}{' reused' if reuse else ''}": lambda mode=mode, reuse=reuse: make_envs(
            SyncVectorEnv(factories(SCRIPT, NUM, reuse=reuse), autoreset_mode=mode, copy=not reuse)
        )
        for mode in AutoresetMode
        for reuse in ([False, True] if mode is not AutoresetMode.SAME_STEP else [False])
    },
}


@pytest.mark.parametrize("num_frames", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_of_a_plain_loop_in_every_reset_mode(kind: str, num_frames: int) -> None:
    inner = KINDS[kind]()
    envs = FrameStack(inner, num_frames)
    assert envs.encoder.space.shape == (num_frames * SIZE,)
    loops = [expected(n, num_frames, inner.resets_on_next_step) for n in range(NUM)]
    handed_out = [envs.reset()]
    np.testing.assert_array_equal(handed_out[0], [stacked(SCRIPT.episode(n, 0), 0, num_frames) for n in range(NUM)])
    copies = [np.array(handed_out[0])]
    finals = 0
    for _ in range(60):
        step = envs.step(NOTHING)
        rows = [next(loop) for loop in loops]
        np.testing.assert_array_equal(step.observations, [row for row, _ in rows])
        ended = [n for n in range(NUM) if rows[n][1] is not None]
        assert list(step.final_rows) == ended
        assert (step.final_observations is None) == (not ended)
        if ended:
            np.testing.assert_array_equal(step.final_observations, [rows[n][1] for n in ended])  # type: ignore[arg-type]
        finals += len(ended)
        handed_out.append(step.observations)
        copies.append(np.array(step.observations))
    assert inner.resets_on_next_step or finals > 20
    for shown, copy in zip(handed_out, copies, strict=True):
        np.testing.assert_array_equal(shown, copy)  # later steps write into nothing that was handed out


@pytest.mark.parametrize("kind", ["sync", "Disabled"])
def test_restarted_environments_begin_with_nothing_and_the_others_go_on(kind: str) -> None:
    frames = {
        n: [Episode(np.arange(30, dtype=np.float32).reshape(10, 3) + 100 * n, np.ones(9), True, False)] for n in range(NUM)
    }
    script = FixedScript(frames)
    inner = make_envs(SyncVectorEnv(factories(script, NUM), autoreset_mode=AutoresetMode.DISABLED))
    envs = FrameStack(inner if kind == "Disabled" else make_envs(factories(script, NUM)), 2)
    assert envs.restarts_rows
    envs.reset()
    before: Any = envs.step(NOTHING).observations
    copy = before.copy()
    begun = envs.restart(np.array([0, 2]))
    np.testing.assert_array_equal(before, copy)
    np.testing.assert_array_equal(begun, [[0, 0, 0, *frames[n][0].observations[0]] for n in (0, 2)])
    times = [(0, 1), (1, 2), (0, 1)]
    following = [np.concatenate(frames[n][0].observations[list(pair)]) for n, pair in enumerate(times)]
    np.testing.assert_array_equal(envs.step(NOTHING).observations, following)


def test_a_reset_amid_episodes_forgets_everything() -> None:
    envs = FrameStack(make_envs(PoisonedVectorEnv([ScriptedEnv(SCRIPT, n) for n in range(NUM)])), 2)
    envs.reset()
    while not envs.step(NOTHING).terminated.any():
        pass
    first: Any = envs.reset()
    assert (first[:, :SIZE] == 0).all()
    second: Any = envs.step(NOTHING).observations
    np.testing.assert_array_equal(second[:, :SIZE], first[:, SIZE:])  # no row is taken for one that resets


class Seeded(Walk):
    """Begins the episodes that `SyncEnvironments` gives to environment `index` of run seed 0."""

    def __init__(self, observations: str, index: int):
        super().__init__(observations)
        self.index, self.number = index, 0

    def reset(self, **kwargs: Any) -> Any:
        self.number += 1
        return super().reset(seed=episode_seed(0, self.index, self.number - 1))


@pytest.mark.parametrize("observations", ["box", "image", "image_first", "dict_image", "matrix"])
def test_the_stack_is_that_of_stable_baselines3(observations: str) -> None:
    makers = [lambda n=n: Seeded(observations, n) for n in range(2)]
    envs, theirs = FrameStack(make_envs(makers), 3), make_envs(VecFrameStack(DummyVecEnv(makers), 3))
    assert envs.encoder.space == theirs.encoder.space
    assert_same(envs.reset(), theirs.reset())
    ends = 0
    for action in np.random.default_rng(0).integers(3, size=(40, 2)):
        mine, other = envs.step(action), theirs.step(action)
        assert_same(mine.observations, other.observations)
        assert list(mine.final_rows) == list(other.final_rows)
        if other.final_observations is not None:
            assert_same(mine.final_observations, other.final_observations)
            ends += 1
    assert ends > 3


def assert_same(mine: Any, other: Any) -> None:
    assert type(mine) is type(other)
    for key in other if isinstance(other, dict) else [...]:
        np.testing.assert_array_equal(mine[key], other[key])


def test_the_stack_is_gymnasiums_with_zeros_for_padding() -> None:
    class Zeros(FrameStackObservation):
        def __init__(self, env: gym.Env):
            super().__init__(env, 3, padding_type="zero")

    envs, theirs = FrameStack(make_envs([Walk]), 3), make_envs([lambda: Zeros(Walk())])
    first: Any = theirs.reset(0)
    np.testing.assert_array_equal(envs.reset(0), first.reshape(1, -1))
    for action in np.random.default_rng(0).integers(3, size=(40, 1)):
        mine, other = envs.step(action), theirs.step(action)
        np.testing.assert_array_equal(mine.observations, np.reshape(other.observations, (1, -1)))
        if other.final_observations is not None:
            np.testing.assert_array_equal(mine.final_observations, np.reshape(other.final_observations, (1, -1)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_what_is_shown_lies_in_the_space_whatever_it_is_made_of(name: str) -> None:
    inner = make_envs([lambda: Walk(name)] * 2)
    envs = FrameStack(inner, 2)
    shown: Any = envs.reset(0)
    for _ in range(20):
        rows = [{key: value[i] for key, value in shown.items()} if isinstance(shown, dict) else shown[i] for i in range(2)]
        assert all(envs.encoder.space.contains(row) for row in rows)
        assert_same(envs.encoder(envs.encoder.decode(shown)), shown)
        shown = envs.step(np.zeros(2, np.int64)).observations


def test_choices_have_a_value_of_their_own_for_before_the_episode() -> None:
    envs = FrameStack(make_envs([lambda: Walk("discrete")]), 3)
    assert envs.encoder.space == spaces.MultiDiscrete([7, 7, 7])
    first: Any = envs.reset(0)
    inner: Any = make_envs([lambda: Walk("discrete")]).reset(0)
    assert first.tolist() == [[6, 6, int(inner[0])]]
    envs = FrameStack(make_envs([lambda: Walk("multi")]), 2)
    assert envs.encoder.space == spaces.MultiDiscrete([4, 5, 4, 5])
    first = envs.reset(0)
    assert first[0, :2].tolist() == [3, 4]


def test_bounds_make_room_for_zeros() -> None:
    class High(Walk):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(1, 5, (3,), np.float32)

    space: Any = FrameStack(make_envs([High]), 2).encoder.space
    assert (space.low.tolist(), space.high.tolist()) == ([0.0] * 6, [5.0] * 6)


def test_everything_else_is_that_of_the_environments_inside() -> None:
    inner = make_envs("Pendulum-v1", 2, "sync")
    envs = FrameStack(inner, 2)
    assert (envs.num_envs, envs.name, envs.monitored) == (2, "Pendulum-v1", inner.monitored)
    assert (envs.restarts_rows, envs.resets_on_next_step) == (True, False)
    assert envs.decoder is inner.decoder
    envs.reset(7)
    assert envs.episode_counters() == inner.episode_counters() == {"run_seed": 7, "episodes": [1, 1]}
    assert envs.restore_episodes({"run_seed": 8, "episodes": [3, 4]})
    assert inner.episode_counters() == {"run_seed": 8, "episodes": [3, 4]}
    envs.set_attr("g", 5.0, [1])
    assert envs.get_attr("g", [0, 1]) == inner.get_attr("g", [0, 1]) == [10.0, 5.0]
    assert envs.call("get_wrapper_attr", ("g",), {}, [1]) == [5.0]
    assert isinstance(envs, Environments)
    envs.close()


def test_agents_train_on_frames_and_predict_from_them() -> None:
    envs = FrameStack(make_envs("CartPoleNoVel-v1", 4), 3)
    agent = PPO("MlpPolicy", envs, n_steps=32, batch_size=64, n_epochs=1, seed=0, device="cpu").learn(512)
    assert agent.observation_space.shape == (12,)
    assert agent.predict(np.zeros((5, 12), np.float32))[0].shape == (5,)
    images = FrameStack(make_envs([lambda: Walk("image")] * 2), 4)
    assert images.encoder.space.shape == (4, 36, 36)
    PPO("CnnPolicy", images, n_steps=8, batch_size=8, n_epochs=1, seed=0, device="cpu").learn(16)


@pytest.mark.parametrize("num_frames", [0, -1, 2.0, True])
def test_a_wrong_number_of_frames_is_named(num_frames: Any) -> None:
    with pytest.raises(ValueError, match=r"^num_frames: expected a positive integer, got"):
        FrameStack(make_envs("CartPole-v1"), num_frames)


@pytest.mark.filterwarnings("ignore:Treating image space as channels-last")
def test_more_channels_than_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^num_frames: 40 images of .* have more channels"):
        FrameStack(make_envs([lambda: Walk("image")]), 40)


def test_sb3_finds_the_wrappers_of_single_environments():
    stacked = as_vec_env(FrameStack(make_envs(lambda: gym.wrappers.TimeLimit(Walk(), 5), 2), 3))
    assert stacked.env_is_wrapped(gym.wrappers.TimeLimit) == [True, True]
    assert stacked.env_is_wrapped(gym.wrappers.ClipReward) == [False, False]
