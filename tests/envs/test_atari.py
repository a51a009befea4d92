"""Atari games in one object beside Stable-Baselines3's wrappers around single ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("ale_py.vector_env")
pytest.importorskip("cv2")

from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from rlopt import PPO, evaluate
from rlopt.cli.environments import evaluation_envs, training_envs
from rlopt.collector import Collector
from rlopt.envs.atari import AtariEnvironments
from rlopt.envs.vector import make_envs
from rlopt.statistics import EpisodeStatistics


def test_a_game_of_several_lives_is_that_of_stable_baselines3() -> None:
    """Two games without random beginnings, row for row: frames, rewards, ends of lives and games, scores and lengths."""
    ours = AtariEnvironments("ms_pacman", 1, noop_max=0)  # it has no FIRE
    wrappers = {"noop_max": 0}
    made = make_atari_env("MsPacmanNoFrameskip-v4", 1, wrapper_kwargs=wrappers)
    theirs = VecFrameStack(made, 4)
    seen, expected = ours.reset(0), theirs.reset()
    rng = np.random.default_rng(0)
    ends = games = 0
    whole_stack = True  # theirs is emptied when a life is lost
    pending = False
    while games < 2:
        assert isinstance(seen, np.ndarray)
        frames = slice(None) if whole_stack else slice(3, None)
        if not pending:
            _assert_alike(seen[:, frames], np.moveaxis(expected, -1, 1)[:, frames])  # type: ignore[arg-type]
        action = rng.integers(0, ours.decoder.space.n, 1)  # type: ignore[attr-defined]
        step = ours.step(action)
        if pending:  # the row that resets: theirs has done so within the step before
            pending, seen = False, step.observations
            continue
        expected, rewards, dones, infos = theirs.step(action)
        assert step.rewards == rewards
        assert (step.terminated | step.truncated) == dones
        seen, pending = step.observations, bool(dones[0])
        if pending:
            ends += 1
            last = infos[0]["terminal_observation"][..., -1]
            _assert_alike(seen[0, -1], last)  # type: ignore[index]
            over = infos[0].get("episode")
            assert ("episode" in step.infos[0]) == (over is not None)
            whole_stack = over is not None
            if over is not None:
                games += 1
                assert {key: step.infos[0]["episode"][key] for key in "rl"} == {key: over[key] for key in "rl"}
    assert ends == 3 * games
    theirs.close()


def _assert_alike(frames: Any, others: Any) -> None:
    """Equal but for pixels where two colours were joined, which are few."""
    assert np.mean(frames != others) < 0.03


def test_a_lost_life_is_an_end_and_the_game_goes_on_with_fire() -> None:
    """Breakout waits for FIRE after every ball: who does nothing would wait for ever."""
    envs = AtariEnvironments("breakout", 2)
    envs.reset(3)
    ends = np.zeros(2, int)
    reported: list[Any] = []
    for _ in range(400):
        step = envs.step(np.zeros(2, np.int64))
        ends += step.terminated
        reported += [info["episode"] for info in step.infos if "episode" in info]
        if len(reported) == 2:
            break
    assert len(reported) == 2
    assert ends.min() >= 5  # lives
    assert all(report["l"] > 100 and report["r"] == 0 for report in reported)


def test_rewards_are_signs_and_scores_are_not() -> None:
    envs = AtariEnvironments("ms_pacman", 2)
    envs.reset(0)
    rng = np.random.default_rng(1)
    total, score = np.zeros(2), None
    while score is None:
        step = envs.step(rng.integers(0, 9, 2))
        assert np.isin(step.rewards, (-1, 0, 1)).all()
        total += step.rewards
        score = next((info["episode"]["r"] for info in step.infos if "episode" in info), None)
    assert score == 10 * round(score / 10)
    assert score >= 5 * total.min()


def test_some_games_begin_anew_and_the_others_go_on() -> None:
    first, second = (AtariEnvironments("ms_pacman", 3) for _ in range(2))
    assert np.array_equal(first.reset(5), second.reset(5))
    actions = np.array([2, 3, 2])
    for _ in range(20):
        first.step(actions)
        second.step(actions)
    opened = first.restart(np.array([0, 2]), [11, 12])
    assert opened.shape == (2, 4, 84, 84)  # type: ignore[union-attr]
    assert np.array_equal(opened, second.restart(np.array([0, 2]), [11, 12]))
    left, right = first.step(actions), second.step(actions)
    assert np.array_equal(left.observations, right.observations)
    third = AtariEnvironments("ms_pacman", 3)
    third.reset(5)
    for _ in range(20):
        third.step(actions)
    undisturbed = third.step(actions).observations
    assert np.array_equal(undisturbed[1], left.observations[1])  # type: ignore[index]
    assert not np.array_equal(undisturbed[0], left.observations[0])  # type: ignore[index]
    assert not np.array_equal(third.restart(np.array([0]), [11]), third.restart(np.array([0]), [12]))


class Scripted:
    """ALE's interface: game 0 loses a life, and is over in the row that resets."""

    def __init__(self) -> None:
        self.time = 0
        self.lives, self.end = [3, 2, 0, 3], 2
        self.masks: list[Any] = []

    def step(self, actions: Any) -> Any:
        self.time += 1
        infos = {"lives": np.array([self.lives[self.time], 3]), "episode_frame_number": np.array([4, 4]) * self.time}
        over = np.array([self.time == self.end, False])
        return np.full((2, 4, 84, 84), self.time, np.uint8), np.ones(2, np.int32), over, np.zeros(2, bool), infos

    def reset(self, seed: Any = None, options: Any = None) -> Any:
        self.masks.append(None if options is None else options["reset_mask"].tolist())
        return np.full((2, 4, 84, 84), 9, np.uint8), {"lives": np.array([3, 3])}


def test_a_game_that_is_over_in_the_row_that_resets_begins_within_it() -> None:
    envs = AtariEnvironments("breakout", 2)
    scripted: Any = Scripted()
    envs.env = scripted
    envs.reset()
    actions = np.zeros(2, np.int64)
    assert envs.step(actions).terminated.tolist() == [True, False]
    opened = envs.step(actions)
    assert scripted.masks == [None, [True, False]]
    assert (opened.observations == 9).all()
    assert envs.step(actions).terminated.tolist() == [False, False]


def test_a_new_game_with_fewer_lives_has_lost_none() -> None:
    """A game that was cut short may have had more lives than one that begins."""
    envs = AtariEnvironments("breakout", 2)
    scripted: Any = Scripted()
    scripted.lives, scripted.end = [3, 4, 3, 3], 1
    envs.env = scripted
    envs.reset()
    actions = np.zeros(2, np.int64)
    steps = [envs.step(actions) for _ in range(3)]
    assert [step.terminated[0] for step in steps] == [True, False, False]


def test_rows_that_only_reset_are_not_trained_on() -> None:
    agent = PPO("CnnPolicy", "ALE/Breakout-v5", n_envs=2, n_steps=64, batch_size=128, n_epochs=1, backend="native", seed=0)
    collector: Collector = agent.collector
    rollout = collector.steps(agent.state.theta, 64)
    ends = rollout.terminated.nonzero()
    inside = ends[ends[:, 0] < 63]
    assert len(inside)
    assert not rollout.mask[inside[:, 0] + 1, inside[:, 1]].any()
    assert int((~rollout.mask).sum()) == len(inside)
    statistics: EpisodeStatistics = collector.statistics
    assert statistics.monitored
    assert statistics.num_episodes == 0  # lives, no games


def test_trained_here_and_evaluated_in_the_wrappers(tmp_path: Any) -> None:
    envs = training_envs("ALE/Pong-v5", 2, "auto", 0, {})
    assert envs.backend_choice is not None
    assert envs.backend_choice.startswith("native: ALE")
    PPO("CnnPolicy", envs, n_steps=4, batch_size=8, n_epochs=1, seed=0).learn(8).save(tmp_path / "agent.zip")
    short = {"max_num_frames_per_episode": 120}
    wrapped = evaluation_envs("ALE/Pong-v5", 1, "auto", 0, short)
    assert wrapped.backend_choice is None  # an SB3 VecEnv
    scores = evaluate(PPO.load(tmp_path / "agent.zip"), wrapped, 1, seed=0)
    assert -3 <= scores.returns[0] <= 0
    assert scores.lengths[0] >= 120


def test_arguments_of_the_id_are_kept() -> None:
    envs = make_envs("ALE/Breakout-v5", 1, "native", env_kwargs={"full_action_space": True, "max_num_frames_per_episode": 40})
    assert envs.decoder.space.n == 18  # type: ignore[attr-defined]
    envs.reset(0)
    truncated = [bool(envs.step(np.zeros(1, np.int64)).truncated[0]) for _ in range(12)]
    assert any(truncated)
    with pytest.raises(ValueError, match="ALE/Breakout-v5 has no native vector implementation with these env_kwargs"):
        make_envs("ALE/Breakout-v5", 2, "native", env_kwargs={"difficulty": 0})
    assert training_envs("ALE/Breakout-v5", 1, "auto", 0, {"difficulty": 0}).backend_choice is None


def test_raw_frames_stay_raw_for_several_games() -> None:
    """ALE registers a vector form that shows another task than the single one; nobody gets it unasked."""
    assert make_envs("ALE/Pong-v5", 2).encoder.space == make_envs("ALE/Pong-v5", 1).encoder.space
