"""Velocity masks against the tasks they come from, and POPGym's tasks through the same door."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from rlopt import PPO, make_envs
from rlopt.envs import make_env
from rlopt.envs.frame_stack import FrameStack
from rlopt.envs.gymnasium_vector import GymnasiumEnvironments
from rlopt.envs.pomdp import HideVelocity, HideVelocityVector, velocity_indices
from rlopt.envs.registration import VELOCITIES_HIDDEN, without_velocities
from rlopt.envs.sync import SyncEnvironments

MUJOCO = [env_id for env_id in VELOCITIES_HIDDEN if env_id.endswith("-v5")]
BY_HAND = {  # rl-baselines3-zoo's MaskVelocityWrapper, and Gymnasium's tables of observations
    "CartPole-v1": [1, 3],
    "Pendulum-v1": [2],
    "MountainCar-v0": [1],
    "MountainCarContinuous-v0": [1],
    "LunarLander-v3": [2, 3, 5],
    "LunarLanderContinuous-v3": [2, 3, 5],
    "HalfCheetah-v5": list(range(8, 17)),
    "Hopper-v5": list(range(5, 11)),
    "Walker2d-v5": list(range(8, 17)),
    "Ant-v5": list(range(13, 27)),
    "Swimmer-v5": list(range(3, 8)),
    "Humanoid-v5": [*range(22, 45), *range(175, 253)],
    "HumanoidStandup-v5": [*range(22, 45), *range(175, 253)],
    "InvertedPendulum-v5": [2, 3],
    "InvertedDoublePendulum-v5": [5, 6, 7],
    "Reacher-v5": [6, 7],
    "Pusher-v5": list(range(7, 14)),
}


@pytest.fixture(autouse=True, scope="module")
def simulators() -> None:
    """Box2D ends the process where its import's warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("Box2D")
        pytest.importorskip("mujoco")


@pytest.mark.parametrize("env_id", VELOCITIES_HIDDEN)
def test_a_masked_task_is_the_original_but_for_zeros_in_place_of_velocities(env_id: str) -> None:
    hidden, known = make_env(without_velocities(env_id)), make_env(without_velocities(env_id), privileged=True)
    original = make_env(env_id)
    assert hidden.observation_space == original.observation_space
    assert hidden.action_space == original.action_space
    assert hidden.spec is not None
    assert original.spec is not None
    assert hidden.spec.id == without_velocities(env_id)
    for name in ("max_episode_steps", "reward_threshold", "nondeterministic"):
        assert getattr(hidden.spec, name) == getattr(original.spec, name)
    shown = np.ones(original.observation_space.shape, bool)
    shown[BY_HAND[env_id]] = False
    observations = [env.reset(seed=3)[0] for env in (hidden, known, original)]
    original.action_space.seed(0)
    moved = np.zeros(len(shown), bool)
    for _ in range(60):
        masked, both, everything = observations
        np.testing.assert_array_equal(masked, np.where(shown, everything, 0))
        assert masked.dtype == everything.dtype
        np.testing.assert_array_equal(both["observation"], masked)
        np.testing.assert_array_equal(both["critic"], everything)
        assert known.observation_space.contains(both)
        moved |= everything != 0
        action = original.action_space.sample()
        results = [env.step(action) for env in (hidden, known, original)]
        assert results[0][1:4] == results[1][1:4] == results[2][1:4]
        observations = [result[0] for result in results]
        if any(results[0][2:4]):
            observations = [env.reset()[0] for env in (hidden, known, original)]
    assert moved[~shown].any(), "something was hidden"
    for env in (hidden, known, original):
        env.close()


@pytest.mark.parametrize("env_id", MUJOCO)
def test_what_is_left_of_mujocos_observations_does_not_depend_on_velocities(env_id: str) -> None:
    env = make_env(without_velocities(env_id), privileged=True)
    env.reset(seed=0)
    simulator: Any = env.unwrapped
    masked, complete = [], []
    for scale in (0.3, -0.7):
        simulator.set_state(simulator.init_qpos, scale * (1 + np.arange(simulator.model.nv)))
        both = env.get_wrapper_attr("observation")(simulator._get_obs())
        masked.append(both["observation"])
        complete.append(both["critic"])
    np.testing.assert_array_equal(*masked)
    assert set(np.flatnonzero(complete[0] != complete[1])) <= set(BY_HAND[env_id])
    assert (complete[0] != complete[1]).sum() >= min(2, len(BY_HAND[env_id]))
    env.close()


def test_a_layout_that_arguments_changed_is_followed() -> None:
    env = make_env("HopperNoVel-v5", exclude_current_positions_from_observation=False)
    assert env.get_wrapper_attr("indices") == list(range(6, 12))
    env.close()


def test_the_time_limit_is_the_originals_once_and_can_be_changed() -> None:
    for kwargs, limit in (({}, 200), ({"max_episode_steps": 7}, 7)):
        env = make_env("PendulumNoVel-v1", **kwargs)
        wrappers, inner = [], env
        while isinstance(inner, gym.Wrapper):
            wrappers.append(type(inner).__name__)
            inner = inner.env
        assert wrappers == ["TimeLimit", "HideVelocity", "OrderEnforcing"]
        env.reset(seed=0)
        assert [env.step(np.zeros(1, np.float32))[3] for _ in range(limit)] == [False] * (limit - 1) + [True]


@pytest.mark.filterwarnings("ignore:.*symmetric and normalized space", "ignore:.*Box observation space m..imum value is")
def test_a_masked_task_passes_gymnasiums_checks_and_can_be_made_from_its_specification() -> None:
    env = gym.make("CartPoleNoVel-v1", privileged=True)
    check_env(env.unwrapped, skip_render_check=True)
    again = gym.make(env.spec)  # type: ignore[arg-type]
    assert again.observation_space == env.observation_space
    np.testing.assert_array_equal(again.reset(seed=1)[0]["observation"], env.reset(seed=1)[0]["observation"])


def test_many_cart_poles_are_gymnasiums_native_ones() -> None:
    envs, original = make_envs("CartPoleNoVel-v1", 8), make_envs(gym.make_vec("CartPole-v1", 8, "vector_entry_point"))
    assert isinstance(envs, GymnasiumEnvironments)
    assert isinstance(envs.env, HideVelocityVector)
    assert (envs.num_envs, envs.name, envs.mode) == (8, "CartPoleNoVel-v1", AutoresetMode.NEXT_STEP)
    assert envs.encoder.space == original.encoder.space
    everything: Any = original.reset(seed=0)
    masked = envs.reset(seed=0)
    random = np.random.default_rng(0)
    ends = 0
    for _ in range(120):
        np.testing.assert_array_equal(masked, everything * np.array([1, 0, 1, 0]))
        actions = random.integers(2, size=8)
        steps = envs.step(actions), original.step(actions)
        for field in ("rewards", "terminated", "truncated"):
            np.testing.assert_array_equal(*(getattr(step, field) for step in steps))
        ends += int(steps[0].terminated.sum())
        masked, everything = steps[0].observations, steps[1].observations
    assert ends > 20
    assert isinstance(make_envs("CartPoleNoVel-v1"), SyncEnvironments)
    assert isinstance(make_envs("PendulumNoVel-v1", 2), SyncEnvironments)
    with pytest.raises(ValueError, match="backend: PendulumNoVel-v1 has no native"):
        make_envs("PendulumNoVel-v1", 2, backend="native")


def test_native_cart_poles_keep_the_limit_and_may_show_the_critic_everything() -> None:
    envs = make_envs("CartPoleNoVel-v1", 4, env_kwargs={"privileged": True, "max_episode_steps": 5})
    first: Any = envs.reset(seed=0)
    assert set(first) == {"observation", "critic"}
    assert (first["observation"][:, [1, 3]] == 0).all()
    assert (first["critic"][:, [1, 3]] != 0).all()
    steps = [envs.step(np.arange(4) % 2) for _ in range(5)]
    assert [step.truncated.all() for step in steps] == [False] * 4 + [True]
    assert make_envs("CartPoleNoVel-v1", 4).env.env.max_episode_steps == 500


def test_anything_may_be_masked_by_index() -> None:
    env = HideVelocity(gym.make("Acrobot-v1"), [4, 5])
    observation, _ = env.reset(seed=0)
    everything, _ = gym.make("Acrobot-v1").reset(seed=0)
    np.testing.assert_array_equal(observation, everything * [1, 1, 1, 1, 0, 0])
    assert (everything[4:] != 0).all()
    several = HideVelocityVector(gym.make_vec("Pendulum-v1", 2, "sync"))
    assert (several.reset(seed=0)[0][:, 2] == 0).all()
    assert velocity_indices(gym.make("Swimmer-v5")) == (3, 4, 5, 6, 7)


@pytest.mark.parametrize(
    ("env_id", "indices", "message"),
    [
        ("Acrobot-v1", None, r"indices: which entries of Acrobot-v1 are velocities is not known; name them"),
        ("CartPole-v1", [4], r"indices: expected integers in \[0, 3\], got \[4\]"),
        ("CartPole-v1", [-1], r"indices: expected integers in \[0, 3\]"),
        ("CartPole-v1", [0.5], r"indices: expected integers in \[0, 3\]"),
        ("FrozenLake-v1", [0], r"env: expected observations in a Box of one axis, got Discrete\(16\)"),
    ],
)
def test_what_cannot_be_masked_is_said(env_id: str, indices: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        HideVelocity(gym.make(env_id), indices)


@pytest.mark.parametrize(
    ("env_id", "module", "extra"),
    [("LunarLanderNoVel-v3", "Box2D", "box2d"), ("HalfCheetahNoVel-v5", "mujoco", "mujoco")],
)
def test_a_missing_simulator_says_which_extra_brings_it(
    env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{env_id} needs .*rlopt\[{extra}\]"):
        make_envs(env_id)


# ---------------------------------------------------------------------- POPGym


def test_popgym_is_imported_when_one_of_its_ids_is_asked_for() -> None:
    pytest.importorskip("popgym")
    for name in [name for name in sys.modules if name.split(".")[0] == "popgym"]:
        del sys.modules[name]
    for name in [name for name in gym.registry if name.startswith("popgym-")]:
        del gym.registry[name]
    envs = make_envs("popgym-RepeatFirstEasy-v0", 8)
    assert isinstance(envs, SyncEnvironments)
    assert (envs.num_envs, envs.name) == (8, "popgym-RepeatFirstEasy-v0")
    first = envs.reset(seed=0)
    assert envs.encoder.space == gym.spaces.Discrete(4)
    returns = np.zeros(8)
    for t in range(51):  # the first card, repeated: 51 · 1/51
        step = envs.step(first)
        returns += step.rewards
        assert step.terminated.all() == (t == 50)
    np.testing.assert_allclose(returns, 1)


def test_every_popgym_task_can_be_played_and_its_frames_stacked() -> None:
    pytest.importorskip("popgym")
    make_env("popgym-RepeatFirstEasy-v0").close()
    easy = [name for name in gym.registry if name.startswith("popgym-") and "Easy" in name]
    assert len(easy) > 10
    for name in easy:
        envs = FrameStack(make_envs(name, 2), 2)
        space = envs.encoder.space
        first: Any = envs.reset(seed=0)
        rows = [{key: value[i] for key, value in first.items()} if isinstance(first, dict) else first[i] for i in range(2)]
        assert all(space.contains(row) for row in rows)
        for _ in range(5):
            envs.step(np.stack([envs.decoder.raw_space.sample()] * 2))
        envs.close()


def test_popgym_that_is_missing_and_ids_that_it_does_not_have_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("popgym")
    with pytest.raises(ValueError, match=r"env: 'popgym-RepeatFirst-v9' is not registered .*did you mean 'popgym-RepeatFirst"):
        make_envs("popgym-RepeatFirst-v9")
    monkeypatch.setitem(sys.modules, "popgym", None)
    with pytest.raises(ImportError, match=r"popgym-RepeatFirstEasy-v0 needs popgym .*rlopt\[pomdp\]"):
        make_envs("popgym-RepeatFirstEasy-v0")


def test_an_agent_trains_on_masked_tasks_and_on_popgym() -> None:
    pytest.importorskip("popgym")
    for env_id in ("CartPoleNoVel-v1", "popgym-RepeatPreviousEasy-v0"):
        PPO("MlpPolicy", env_id, n_envs=4, n_steps=16, batch_size=32, n_epochs=1, seed=0, device="cpu").learn(128)
