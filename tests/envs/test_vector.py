"""`make_envs`: every kind of input, every backend, every error."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

from rlopt import PPO, make_envs
from rlopt.envs.classic_control import ClassicControlVectorEnv
from rlopt.envs.gymnasium_vector import EnvPoolEnvironments, GymnasiumEnvironments
from rlopt.envs.mujoco_batch import MujocoVectorEnv
from rlopt.envs.parallel import AsyncEnvironments
from rlopt.envs.sb3_vector import SB3Environments
from rlopt.envs.sync import SyncEnvironments
from tests.scripted_envs import RandomScript, ScriptedEnv, factories

SCRIPT = RandomScript()


def cartpole() -> gym.Env:
    return gym.make("CartPole-v1")


def test_an_id_gives_one_environment_or_many() -> None:
    assert isinstance(make_envs("CartPole-v1"), SyncEnvironments)
    envs = make_envs("FrozenLake-v1", num_envs=3)
    assert isinstance(envs, SyncEnvironments)
    assert (envs.num_envs, envs.name) == (3, "FrozenLake-v1")


def test_many_of_an_id_with_a_native_implementation_use_it() -> None:
    envs = make_envs("CartPole-v1", num_envs=3)
    assert isinstance(envs, GymnasiumEnvironments)
    assert (envs.num_envs, envs.name, envs.resets_on_next_step) == (3, "CartPole-v1", False)
    assert isinstance(envs.env, ClassicControlVectorEnv)
    assert isinstance(make_envs("CartPole-v1", backend="native"), GymnasiumEnvironments)
    assert isinstance(make_envs("CartPole-v1", num_envs=3, backend="sync"), SyncEnvironments)
    assert isinstance(make_envs("Pendulum-v1", num_envs=3, env_kwargs={"g": 9.81}), SyncEnvironments)
    registered = make_envs("CartPole-v1", num_envs=3, env_kwargs={"sutton_barto_reward": True})
    assert isinstance(registered, GymnasiumEnvironments)  # Gymnasium's own takes arguments
    assert registered.resets_on_next_step


def test_many_of_a_mujoco_task_are_simulated_on_threads() -> None:
    pytest.importorskip("mujoco.batch")
    envs = make_envs("Swimmer-v5", num_envs=3)
    assert isinstance(envs, GymnasiumEnvironments)
    assert isinstance(envs.env, MujocoVectorEnv)
    assert (envs.name, envs.backend_choice) == ("Swimmer-v5", f"threads: {envs.env.num_threads}")
    assert envs.reset(seed=0).shape == (3, 8)
    assert isinstance(make_envs("Swimmer-v5", backend="threads").env, MujocoVectorEnv)
    assert isinstance(make_envs("Swimmer-v5"), SyncEnvironments)
    assert isinstance(make_envs("Swimmer-v5", num_envs=2, env_kwargs={"frame_skip": 2}), SyncEnvironments)
    assert isinstance(make_envs("Swimmer-v4", num_envs=2), SyncEnvironments)


def test_threads_without_mujoco_say_what_to_install_and_are_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setitem(sys.modules, "mujoco.batch", None)  # as in MuJoCo 3
    with pytest.raises(ImportError, match=r"backend: 'threads' needs MuJoCo 4.0 or later"):
        make_envs("Swimmer-v5", num_envs=2, backend="threads")
    assert isinstance(make_envs("Swimmer-v5", num_envs=2), SyncEnvironments)


def test_an_id_may_run_in_worker_processes() -> None:
    with closing(make_envs("CartPole-v1", num_envs=1, backend="async")) as envs:
        assert isinstance(envs, AsyncEnvironments)
        assert envs.reset(seed=0).shape == (1, 4)
        assert envs.name == "CartPole-v1"


def test_arguments_of_the_environment_reach_it() -> None:
    envs = make_envs("CartPole-v1", num_envs=2, backend="sync", env_kwargs={"max_episode_steps": 7})
    assert [env.spec.max_episode_steps for env in envs.envs] == [7, 7]


def test_an_environment_object_a_callable_and_a_list_of_callables_are_taken() -> None:
    assert make_envs(cartpole()).num_envs == 1
    assert make_envs(cartpole, num_envs=2).num_envs == 2
    envs = make_envs(factories(SCRIPT, 3))
    assert (envs.num_envs, envs.name) == (3, "ScriptedEnv")


@pytest.mark.parametrize("mode", AutoresetMode)
def test_a_gymnasium_vector_environment_is_taken_in_every_autoreset_mode(mode: AutoresetMode) -> None:
    envs = make_envs(SyncVectorEnv(factories(SCRIPT, 2), autoreset_mode=mode))
    assert isinstance(envs, GymnasiumEnvironments)
    assert envs.mode is mode
    assert envs.resets_on_next_step == (mode is AutoresetMode.NEXT_STEP)


def test_an_sb3_environment_is_taken_and_environments_pass_unchanged() -> None:
    vec_env = DummyVecEnv(factories(SCRIPT, 2))
    envs = make_envs(vec_env)
    assert isinstance(envs, SB3Environments)
    assert envs.env is vec_env
    assert make_envs(envs) is envs


def test_envpool_is_taken_by_id_and_as_an_object() -> None:
    envpool = pytest.importorskip("envpool")
    with closing(make_envs("CartPole-v1", num_envs=2, backend="envpool", seed=1)) as envs:
        assert isinstance(envs, EnvPoolEnvironments)
        assert (envs.num_envs, envs.name, envs.resets_on_next_step) == (2, "CartPole (EnvPool)", True)
    with closing(make_envs(envpool.make_gymnasium("CartPole-v1", num_envs=3, seed=1))) as envs:
        assert isinstance(envs, EnvPoolEnvironments)
        assert envs.reset().shape == (3, 4)


def test_an_envpool_that_is_reset_after_an_end_begins_whole_episodes() -> None:
    pytest.importorskip("envpool")
    with closing(make_envs("CartPole-v1", num_envs=2, backend="envpool", seed=1, env_kwargs={"max_episode_steps": 8})) as envs:
        envs.reset()
        actions = np.zeros(2, np.int64)
        steps = [envs.step(actions) for _ in range(8)]
        assert all(steps[-1].terminated | steps[-1].truncated)
        first = envs.reset()
        assert np.abs(first).max() <= 0.05
        step = envs.step(actions)
        assert step.rewards.tolist() == [1.0, 1.0], "no reset row: the end was forgotten by reset()"
        assert not np.array_equal(step.observations, first)


def test_envpool_agents_learn_and_their_seed_decides() -> None:
    pytest.importorskip("envpool")

    def learned(seed: int) -> Any:
        agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, n_envs=2, n_epochs=1, seed=seed, backend="envpool", device="cpu")
        return agent.learn(256).state.theta.tolist()

    assert learned(0) == learned(0) != learned(1)


def test_an_envpool_that_returns_whichever_finish_first_is_refused() -> None:
    envpool = pytest.importorskip("envpool")
    with pytest.raises(ValueError, match=r"batch_size 1 of 2 .*batch_size equal to num_envs"):
        make_envs(envpool.make_gymnasium("CartPole-v1", num_envs=2, batch_size=1))


def test_an_unknown_envpool_id_names_the_nearest() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(ValueError, match=r"EnvPool has no environment 'CartPol-v1'; did you mean 'CartPole-v1'"):
        make_envs("CartPol-v1", backend="envpool")


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "unknown id": ("CartPol-v1", {}, r"env: 'CartPol-v1' is not registered .*did you mean 'CartPole-v1'"),
    "unknown version": ("CartPole-v7", {}, r"env: 'CartPole-v7' is not registered"),
    "unknown backend": ("CartPole-v1", {"backend": "ray"}, r"backend: expected one of auto, sync, .*got 'ray'"),
    "no environments": ("CartPole-v1", {"num_envs": 0}, r"num_envs: expected a positive integer, got 0"),
    "half an environment": ("CartPole-v1", {"num_envs": 1.5}, r"num_envs: expected a positive integer, got 1.5"),
    "no native implementation": ("FrozenLake-v1", {"backend": "native"}, r"backend: FrozenLake-v1 has no native"),
    "native with arguments": (
        "Pendulum-v1",
        {"backend": "native", "env_kwargs": {"g": 9.81}},
        r"backend: Pendulum-v1 has no native .* with these env_kwargs",
    ),
    "no threads": ("CartPole-v1", {"backend": "threads"}, r"backend: CartPole-v1 has no implementation on threads; use 'sync'"),
    "no threads of an older version": (
        "Swimmer-v4",
        {"backend": "threads"},
        r"backend: Swimmer-v4 has no implementation on threads",
    ),
    "threads with arguments": (
        "Swimmer-v5",
        {"backend": "threads", "env_kwargs": {"frame_skip": 2}},
        r"backend: Swimmer-v5 has no implementation on threads with these env_kwargs",
    ),
    "threads callable": (cartpole, {"backend": "threads"}, r"backend: 'threads' needs an environment id"),
    "native callable": (cartpole, {"backend": "native"}, r"backend: 'native' needs an environment id"),
    "envpool callable": (cartpole, {"backend": "envpool"}, r"backend: 'envpool' needs an environment id"),
    "arguments for a callable": (cartpole, {"env_kwargs": {"a": 1}}, r"env_kwargs: only an environment given by its id"),
    "callable that makes something else": (lambda: 5, {}, r"env: the callable returned int, expected a gymnasium.Env"),
    "not an environment": (3.5, {}, r"env: expected an id, .* got float"),
    "empty list": ([], {}, r"env: expected an id, .* got list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_input_gets_an_error_that_names_the_argument(case: str) -> None:
    env, kwargs, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        make_envs(env, **kwargs)


def test_one_object_cannot_be_run_twice() -> None:
    env = ScriptedEnv(SCRIPT, 0)
    with pytest.raises(ValueError, match=r"num_envs: one environment object cannot be run 2 times"):
        make_envs(env, num_envs=2)
    with pytest.raises(ValueError, match=r"same environment object twice"):
        make_envs(lambda: env, num_envs=2)
    with pytest.raises(ValueError, match=r"same environment object twice"):
        make_envs([lambda: gym.wrappers.TimeLimit(env, 5), lambda: gym.wrappers.TimeLimit(env, 6)])


@pytest.mark.parametrize("backend", ["sync", "async", "native", "threads", "envpool"])
def test_a_backend_for_an_environment_already_made_is_refused(backend: Any) -> None:
    for env in (SyncVectorEnv(factories(SCRIPT, 2)), DummyVecEnv(factories(SCRIPT, 2)), ScriptedEnv(SCRIPT, 0)):
        with pytest.raises(ValueError, match=rf"backend: '{backend}' needs an id or a callable"):
            make_envs(env, backend=backend)


@pytest.mark.parametrize("metadata", [{}, {"autoreset_mode": None}])
def test_a_vector_environment_that_does_not_state_its_autoreset_mode_is_refused(metadata: dict[str, Any]) -> None:
    env = SyncVectorEnv(factories(SCRIPT, 2))
    env.metadata = metadata
    with pytest.raises(ValueError, match=r"env: SyncVectorEnv does not state its autoreset mode"):
        make_envs(env)


def test_a_missing_package_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"rlopt\[envpool\]"):
        make_envs("CartPole-v1", backend="envpool")
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match=r"rlopt\[atari\]"):
        make_envs("ALE/Pong-v5")


@pytest.mark.parametrize(
    ("env_id", "module", "extra"), [("LunarLander-v3", "Box2D", "box2d"), ("HalfCheetah-v5", "mujoco", "mujoco")]
)
def test_a_missing_simulator_says_which_extra_brings_it(
    env_id: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith(("gymnasium.envs.box2d", "gymnasium.envs.mujoco"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{env_id} needs .*rlopt\[{extra}\]"):
        make_envs(env_id)


def test_an_id_may_name_the_module_that_registers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["import gymnasium", "gymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')"]
    (tmp_path / "registers_mine.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert make_envs("registers_mine:Mine-v0", num_envs=2).name == "registers_mine:Mine-v0"
    del gym.registry["Mine-v0"]


def test_an_id_of_a_module_that_is_not_there_says_so() -> None:
    with pytest.raises(ImportError, match="not_a_package"):
        make_envs("not_a_package:Thing-v0")


def test_an_id_that_a_user_registered_anew_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = gym.spec("Pendulum-v1")
    for change in ({"max_episode_steps": 1000}, {"kwargs": {"g": 9.81}}):
        own = EnvSpec(**{"id": spec.id, "entry_point": spec.entry_point, "max_episode_steps": 200} | change)
        monkeypatch.setitem(gym.registry, spec.id, own)
        assert isinstance(make_envs("Pendulum-v1", 2), SyncEnvironments)
