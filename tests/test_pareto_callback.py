"""The Pareto callback: what it evaluates and when, what it logs, and that training does not notice."""

from __future__ import annotations

import json
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.logger import configure

from rlopt import PPO, make_envs
from rlopt.envs.preferences import Preferences
from rlopt.evaluation import evaluate_objectives
from rlopt.indicators import expected_utility, hypervolume, igd_plus, maximum_utility_loss, simplex_lattice, sparsity
from rlopt.pareto import ParetoArchive
from rlopt.pareto_callback import ParetoCallback, default_weights

pytest.importorskip("moocore")

STEPS = 3
# What each action pays in each step; the last one is never worth it.
REWARDS = np.array([(2.0, 0.0), (1.5, 1.0), (0.0, 2.0), (0.5, 0.5)])


class Choices(gym.Env):
    """Three steps, each of which pays a row of a table [4, K], or that row's sum."""

    observation_space, action_space = spaces.Box(0.0, 1.0, (1,), np.float32), spaces.Discrete(4)

    def __init__(self, rewards=REWARDS, summed=False):
        self.rewards, self.summed = np.asarray(rewards, float), summed
        if not summed:
            self.reward_space = spaces.Box(-np.inf, np.inf, self.rewards.shape[1:])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.time += 1
        reward = self.rewards[action]
        observation = np.full(1, self.time / STEPS, np.float32)
        return observation, float(reward.sum()) if self.summed else reward, False, self.time == STEPS, {}


def agent(**kwargs):
    return PPO("MlpPolicy", lambda: Choices(summed=True), **{"n_steps": 64, "batch_size": 32, "seed": 0, **kwargs})


def callback(**kwargs):
    return ParetoCallback([Choices] * 2, **{"reference": (-1.0, -1.0), "eval_freq": 8, "n_eval_episodes": 4, **kwargs})


@pytest.fixture
def logged(tmp_path):
    """An agent that logs to the test's folder."""
    trained = agent()
    trained.set_logger(configure(str(tmp_path), ["json"]))
    yield trained
    trained.logger.close()


def read(folder):
    rows = [json.loads(line) for line in (folder / "progress.json").read_text().splitlines()]
    return [row for row in rows if "pareto/hypervolume" in row]


def test_an_evaluation_is_of_new_parameters_after_so_many_steps_and_at_the_end(tmp_path, logged):
    trained = logged
    trained.learn(192, callback())
    assert [row["time/total_timesteps"] for row in read(tmp_path)] == [8, 65, 129, 192]
    trained.learn(64, every_second := callback(eval_freq=65), reset_num_timesteps=False)
    assert [row["time/total_timesteps"] for row in read(tmp_path)[4:]] == [256]
    trained.learn(128, every_second, reset_num_timesteps=False)
    assert [row["time/total_timesteps"] for row in read(tmp_path)[5:]] == [321, 384]


def test_the_numbers_are_those_of_the_archive(tmp_path, logged):
    trained, front = logged, STEPS * REWARDS[:3]
    evaluated = callback(front=front, deterministic=False, n_eval_episodes=3)
    points, weights = [], default_weights(2)
    evaluated.archive.add = lambda point, *rest: (
        points.append(point.copy()) or ParetoArchive.add(evaluated.archive, point, *rest)
    )
    trained.learn(192, evaluated)
    rows = read(tmp_path)
    assert len(points) == len(rows) == 4
    for index, row in enumerate(rows):
        kept = ParetoArchive(2)
        for point in points[: index + 1]:
            kept.add(point)
        assert row["pareto/hypervolume"] == pytest.approx(hypervolume(kept.points, (-1, -1)))
        assert row["pareto/hypervolume_last"] == pytest.approx(hypervolume(points[index : index + 1], (-1, -1)))
        assert row["pareto/expected_utility"] == pytest.approx(expected_utility(kept.points, weights))
        assert row["pareto/igd_plus"] == pytest.approx(igd_plus(kept.points, front))
        assert row["pareto/maximum_utility_loss"] == pytest.approx(maximum_utility_loss(kept.points, front, weights))
        assert row.get("pareto/sparsity", 0.0) == pytest.approx(sparsity(kept.points))
        assert ("pareto/sparsity" in row) == (len(kept) > 1)
        assert (row["pareto/return_0"], row["pareto/return_1"]) == pytest.approx(tuple(points[index]))
        assert row["pareto/size"] == len(kept)
        assert row["pareto/reference"] == "(-1, -1)"
    assert (evaluated.last_points == points[-1]).all()


def test_a_deterministic_policy_reaches_sums_of_the_table():
    evaluated = callback()
    agent().learn(64, evaluated)
    sums = (REWARDS[:, None, None] + REWARDS[:, None] + REWARDS).reshape(-1, 2)
    for member in evaluated.archive.members:
        assert (np.abs(sums - member.point).max(1) < 1e-12).any()
        assert member.info["standard_error"] == [0.0, 0.0]
        assert member.info["episodes"] == 4


def test_members_have_the_parameters_that_were_evaluated():
    trained, evaluated = agent(), callback()
    trained.learn(64, evaluated)
    seen = {id(member.theta): member for member in evaluated.archive.members}
    fresh = evaluated.archive.reevaluate(lambda member: returns_of(trained, member), num_resamples=5)
    assert fresh.points == pytest.approx(evaluated.archive.points)
    assert len(seen) == len(evaluated.archive)
    assert all(member.theta.shape == trained.state.theta.shape for member in seen.values())
    silent = callback(keep_parameters=False)
    trained.learn(64, silent)
    assert all(member.theta is None for member in silent.archive.members)


def returns_of(trained, member):
    other = agent()
    other.policy.load_state_dict(trained.policy.state_dict())
    other._adopt(other.state._replace(theta=member.theta))
    return evaluate_objectives(other, Choices(), 2).returns


def test_training_does_not_notice():
    alone, watched = agent(), agent()
    alone.learn(192)
    watched.learn(192, callback(deterministic=False, seed=4))
    assert (alone.state.theta == watched.state.theta).all()


def test_each_preference_has_environments_and_a_point_of_its_own(tmp_path, logged):
    """Environments that pay the preference itself: what is paired with what can be read off."""
    preferences, trained, made = simplex_lattice(2, 4), logged, []

    def make(weights):
        made.append(weights.tolist())
        return [lambda: Choices(np.tile(weights, (4, 1)))] * 2

    evaluated = ParetoCallback(
        make_eval_envs=make, preferences=preferences, reference=(0, 0), eval_freq=64, n_eval_episodes=2, folder=tmp_path
    )
    trained.learn(128, evaluated)
    assert made == preferences.tolist()
    assert evaluated.last_points == pytest.approx(STEPS * preferences)
    assert [member.info["preference"] for member in evaluated.archive.members] == preferences.tolist()
    assert all((member.point == STEPS * np.array(member.info["preference"])).all() for member in evaluated.archive.members)
    row = read(tmp_path)[-1]
    assert row["pareto/preference_utility"] == pytest.approx(STEPS * (preferences**2).sum(1).mean())
    assert row["pareto/expected_utility"] == pytest.approx(STEPS * preferences.max(1).mean())
    assert "pareto/return_0" not in row
    loaded = ParetoArchive.load(tmp_path / "pareto.zip")
    assert all(member.theta is loaded.members[0].theta for member in loaded.members)


def test_an_agent_that_is_conditioned_on_preferences():
    train = Preferences(make_envs([Choices] * 2), scalarise=True, seed=0)
    trained = PPO("MultiInputPolicy", train, n_steps=16, batch_size=16, seed=0)
    evaluated = ParetoCallback(
        make_eval_envs=lambda weights: Preferences(make_envs(Choices), weights=weights),
        preferences=simplex_lattice(2, 2),
        reference=(-1, -1),
        n_eval_episodes=1,
    )
    trained.learn(32, evaluated)
    assert evaluated.last_points.shape == (3, 2)
    assert evaluated.archive.members[0].info["standard_error"] is None


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_tensorboard_has_numbers_the_reference_and_a_picture_of_two_objectives_or_more(tmp_path, size):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    table = np.random.default_rng(size).random((4, size))
    names = [f"aim {k}" for k in range(size)]
    trained = agent(n_epochs=1)
    trained.set_logger(configure(str(tmp_path), ["stdout", "log", "json", "csv", "tensorboard"]))
    reference = np.full(size, -1.0)
    trained.learn(64, ParetoCallback(Choices(table), reference=reference, front=3 * table, objectives=names))
    trained.logger.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()
    assert {"pareto/hypervolume", "pareto/igd_plus", "pareto/size"} <= set(tags["scalars"])
    assert ("pareto/front" in tags["images"]) == (size > 1)
    assert "pareto/reference/text_summary" in tags["tensors"]
    if size > 1:
        assert all(image.height > 100 for image in events.Images("pareto/front"))


def test_a_run_goes_on_with_the_archive_of_its_folder(tmp_path):
    trained = agent()
    trained.learn(64, callback(folder=tmp_path / "run"))
    before = ParetoArchive.load(tmp_path / "run" / "pareto.zip")
    archive = ParetoArchive.load(tmp_path / "run" / "pareto.zip")
    archive.add((100.0, -1.0))
    trained.learn(64, callback(folder=tmp_path / "run", archive=archive), reset_num_timesteps=False)
    after = ParetoArchive.load(tmp_path / "run" / "pareto.zip")
    assert [100.0, -1.0] in after.points.tolist()
    assert all((after.points >= point).all(1).any() for point in before.points)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["pareto.zip"]


def test_default_weights_are_no_more_than_a_thousand():
    assert [len(default_weights(size)) for size in (1, 2, 3, 4)] == [1, 101, 990, 969]
    assert len(default_weights(16)) == 816
    assert len(default_weights(2000)) == 2000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"make_eval_envs": lambda _: Choices},
            "eval_env: expected either environments or make_eval_envs, got both or neither",
        ),
        ({"eval_freq": 0}, "eval_freq: expected a positive integer, got 0"),
        ({"n_eval_episodes": 0}, "n_eval_episodes: expected a positive integer"),
        ({"reference": -50.0}, r"reference: expected 1 numbers, one for each objective, got shape \(\)"),
        ({"preferences": [(1, 0, 0)]}, r"preferences: expected an array \[P, 2\]"),
        ({"preferences": [(1, -1)]}, "preferences: expected numbers of at least 0"),
        ({"front": [(1, 0, 0)]}, r"front: expected an array \[P, 2\]"),
        ({"archive": ParetoArchive(3)}, "archive: expected 2 objectives, as the reference has, got 3"),
        ({"objectives": ["a"]}, "objectives: expected 2 names, got 1"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        callback(**arguments)


def test_preferences_must_come_with_the_environments_for_them():
    with pytest.raises(ValueError, match="preferences: expected the weights"):
        ParetoCallback(make_eval_envs=lambda _: Choices, reference=(0, 0))


def test_a_reference_of_another_length_than_the_rewards_is_named():
    with pytest.raises(ValueError, match="reference: the evaluation environments pay 2 rewards, it has 3 numbers"):
        agent().learn(64, callback(reference=(0, 0, 0)))


def test_only_agents_of_this_library_are_evaluated():
    with pytest.raises(ValueError, match="ParetoCallback evaluates agents of rlopt"):
        callback().init_callback(SimpleNamespace(logger=None, get_env=lambda: None))
