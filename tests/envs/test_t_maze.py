"""The T-maze by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rlopt import make_envs
from rlopt.envs.t_maze import EAST, NORTH, SOUTH, WEST, TMaze, TMazeVectorEnv


def kind(observation: np.ndarray) -> str:
    assert observation.sum() == 1
    return ["north", "south", "corridor", "junction"][int(observation.argmax())]


def begun(cue: str, **kwargs: Any) -> gym.Env:
    """A maze whose cue is that."""
    env = gym.make("rlopt/TMaze-v0", **kwargs)
    seed = next(seed for seed in range(100) if kind(env.reset(seed=seed)[0]) == cue)
    assert kind(env.reset(seed=seed)[0]) == cue
    return env


@pytest.mark.parametrize("cue", ["north", "south"])
@pytest.mark.parametrize("length", [0, 1, 10])
def test_walking_east_leads_to_the_junction_where_the_turn_is_paid(cue: str, length: int) -> None:
    for action in (NORTH, SOUTH):
        env = begun(cue, length=length)
        seen = [env.step(EAST) for _ in range(length + 1)]
        assert [kind(step[0]) for step in seen] == ["corridor"] * length + ["junction"]
        assert [step[1:4] for step in seen] == [(0, False, False)] * (length + 1)
        right = action == (NORTH if cue == "north" else SOUTH)
        assert env.step(action)[1:4] == (4.0 if right else -0.1, True, False)


def test_walls_and_waiting() -> None:
    env = begun("south", length=2)
    walk = [WEST, NORTH, SOUTH, EAST, NORTH, SOUTH, WEST, EAST, EAST, WEST, EAST, EAST, EAST, EAST, WEST]
    places = ["south", "south", "south", "corridor", "corridor", "corridor", "south", "corridor", "corridor", "corridor"]
    places += ["corridor", "junction", "junction", "junction", "corridor"]
    for action, place in zip(walk, places, strict=True):
        observation, reward, terminated, truncated, _ = env.step(action)
        assert (kind(observation), reward, terminated, truncated) == (place, 0, False, False)


def test_an_episode_is_cut_after_a_hundred_steps_and_a_turn_in_the_last_one_counts() -> None:
    env = begun("north")
    assert [env.step(WEST)[2:4] for _ in range(100)] == [(False, False)] * 99 + [(False, True)]
    env = begun("north", length=1, horizon=3)
    assert [env.step(action)[1:4] for action in (EAST, EAST, NORTH)] == [(0, False, False)] * 2 + [(4.0, True, False)]


def test_cues_are_fair_and_known_policies_have_their_values() -> None:
    num = 4000
    env = TMazeVectorEnv(TMaze(), num)
    first, _ = env.reset(seed=0)
    assert isinstance(first, np.ndarray)
    north = first[:, 0] == 1
    assert abs(north.mean() - 0.5) < 4 * 0.5 / num**0.5
    for turns, value in ((np.where(north, NORTH, SOUTH), 4.0), (np.full(num, NORTH), 1.95)):
        env.reset(seed=0)
        returns = np.zeros(num)
        for t in range(12):
            _, rewards, terminated, truncated, _ = env.step(np.full(num, EAST) if t < 11 else turns)
            returns += rewards
        assert terminated.all()
        assert not truncated.any()
        assert abs(returns.mean() - value) < 4 * 2.05 / num**0.5
    assert TMaze().optimal_value() == 4.0
    assert abs(TMaze().optimal_value(0.99) - 3.58) < 0.005
    assert TMaze().optimal_value(0.99) == 4 * 0.99**11
    assert abs(TMaze().memoryless_value() - 1.95) < 1e-12


def test_the_critic_may_see_cue_and_place() -> None:
    env = gym.make("rlopt/TMaze-v0", length=3, privileged=True)
    check_env(env.unwrapped, skip_render_check=True)
    for seed in range(4):
        both, _ = env.reset(seed=seed)
        cue = kind(both["observation"])
        for cell in range(5):
            np.testing.assert_allclose(both["critic"], [cue == "north", cue == "south", cell / 4])
            both = env.step(EAST)[0]


def test_ended_mazes_begin_anew_and_the_others_go_on() -> None:
    envs = make_envs("rlopt/TMaze-v0", 2, env_kwargs={"length": 1})
    envs.reset(seed=0)
    for _ in range(2):
        envs.step(np.array([EAST, WEST]))
    step = envs.step(np.array([NORTH, EAST]))
    assert step.terminated.tolist() == [True, False]
    assert kind(step.final_observations[0]) == "junction"  # type: ignore[index]
    assert kind(step.observations[0]) in ("north", "south")  # type: ignore[index]
    assert kind(step.observations[1]) == "corridor"  # type: ignore[index]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"length": -1}, "length: expected an integer of at least 0, got -1"),
        ({"length": 2.0}, "length: expected an integer of at least 0, got 2.0"),
        ({"horizon": 11}, "horizon: expected an integer of at least 12, got 11"),
        ({"length": 99}, "horizon: expected an integer of at least 101, got 100"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        TMaze(**kwargs)
