"""Gymnasium's vector environments: modes, infos, and what each of them does that a reader would not expect."""

from __future__ import annotations

from collections import Counter
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import RecordEpisodeStatistics

from rlopt import PPO, EnvironmentFault, make_envs
from rlopt.envs.gymnasium_vector import GymnasiumEnvironments
from tests.scripted_envs import Episode, FixedScript, RandomScript, ScriptedEnv, factories

SCRIPT = RandomScript()
NOTHING = np.zeros(2, np.int64)
LONG = FixedScript({n: [Episode(np.eye(9, 3, k=-n, dtype=np.float32), np.ones(8), True, False)] for n in range(2)})


class Succeeds(ScriptedEnv):
    """Tells at the end whether the episode went well."""

    def step(self, action: Any) -> Any:
        *result, info = super().step(action)
        return *result, {**info, "time": self.step_number, **({"is_success": self.number % 2} if any(result[2:]) else {})}


def test_the_callers_reset_options_survive_although_gymnasium_pops_the_mask() -> None:
    options: dict[str, Any] = {"reset_mask": np.array([True, False])}
    env = SyncVectorEnv(factories(SCRIPT, 2), autoreset_mode=AutoresetMode.DISABLED)
    env.reset()
    env.reset(options=options)
    assert options == {}, "Gymnasium no longer pops the mask: the comment in GymnasiumEnvironments can go"
    envs = make_envs(env)
    envs.reset()
    for _ in range(40):  # many ends, each with a dictionary of its own
        envs.step(NOTHING)


def test_only_finished_environments_are_reset_under_disabled() -> None:
    envs = make_envs(SyncVectorEnv(factories(SCRIPT, 2), autoreset_mode=AutoresetMode.DISABLED))
    envs.reset()
    for _ in range(20):
        before = [env.number for env in envs.env.envs]
        step = envs.step(NOTHING)
        begun = [env.number - number for env, number in zip(envs.env.envs, before, strict=True)]
        assert begun == (step.terminated | step.truncated).astype(int).tolist()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_single_environments_are_restarted_under_disabled_and_nowhere_else(asynchronous: bool) -> None:
    for mode in AutoresetMode:
        kwargs = {"context": "forkserver"} if asynchronous else {}
        envs = make_envs((AsyncVectorEnv if asynchronous else SyncVectorEnv)(factories(LONG, 2), autoreset_mode=mode, **kwargs))
        envs.reset()
        envs.step(NOTHING)
        assert envs.restarts_rows == (mode is AutoresetMode.DISABLED)
        if envs.restarts_rows:
            np.testing.assert_array_equal(envs.restart(np.array([1])), LONG.episode(1, 0).observations[[0]])
            following = envs.step(NOTHING).observations
            np.testing.assert_array_equal(
                following, np.stack([LONG.episode(0, 0).observations[2], LONG.episode(1, 0).observations[1]])
            )
        else:
            with pytest.raises(NotImplementedError, match="cannot restart single environments"):
                envs.restart(np.array([1]))
        envs.close()


def test_an_async_environment_without_shared_memory_is_refused_under_next_step() -> None:
    env = AsyncVectorEnv(factories(SCRIPT, 1), shared_memory=False, context="forkserver")
    with pytest.raises(ValueError, match=r"AsyncVectorEnv\(shared_memory=False\) .*shared_memory=True"):
        make_envs(env)
    env.close()


@pytest.mark.parametrize("mode", AutoresetMode)
def test_infos_are_read_one_environment_at_a_time(mode: AutoresetMode) -> None:
    envs = make_envs(SyncVectorEnv([lambda n=n: Succeeds(SCRIPT, n) for n in range(2)], autoreset_mode=mode))
    envs.reset()
    pending = np.zeros(2, bool)
    for _ in range(30):
        step = envs.step(NOTHING)
        assert len(step.infos) == 2
        assert [len(info) for info in step.infos] == [len(step.infos[-2]), len(step.infos[-1])]
        assert len(step.infos[0:1]) == 1
        for n, info in enumerate(step.infos):
            done = bool(step.terminated[n] or step.truncated[n])
            assert ("is_success" in info) == done
            assert ("time" in info) != bool(pending[n])
            assert not any(key.startswith("_") or key in ("final_obs", "final_info") for key in info)
        pending = (step.terminated | step.truncated) & envs.resets_on_next_step
    with pytest.raises(IndexError):
        step.infos[2]


@pytest.mark.parametrize("mode", AutoresetMode)
def test_success_and_statistics_reach_the_agent_in_every_mode(mode: AutoresetMode) -> None:
    env = SyncVectorEnv([lambda n=n: RecordEpisodeStatistics(Succeeds(SCRIPT, n)) for n in range(2)], autoreset_mode=mode)
    agent = PPO("MlpPolicy", env, n_steps=60, batch_size=40, n_epochs=1, seed=0, device="cpu").learn(120)
    ended = Counter(episode["l"] for episode in agent.ep_info_buffer)
    # each environment has begun one more episode than it has ended
    script = [len(SCRIPT.episode(n, number)) for n in range(2) for number in range(env.envs[n].unwrapped.number)]
    assert (Counter(script) - ended).total() <= 2
    assert not ended - Counter(script)
    assert set(agent.ep_success_buffer) == {0.0, 1.0}
    assert len(agent.ep_success_buffer) == len(agent.ep_info_buffer)


def test_observations_are_copied_so_that_the_environment_may_reuse_its_arrays() -> None:
    envs = make_envs(SyncVectorEnv(factories(SCRIPT, 2, reuse=True), copy=False))
    first = envs.reset()
    kept = first.copy()
    step = envs.step(NOTHING)
    seen = step.observations.copy()
    envs.step(NOTHING)
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(step.observations, seen)


def test_the_warning_of_reused_arrays_comes_once_and_not_for_terminated_episodes() -> None:
    def stepped(truncated: bool) -> None:
        same = Episode(np.ones((2, 3), np.float32), np.zeros(1), not truncated, truncated)
        env = SyncVectorEnv(factories(FixedScript({0: [same], 1: [same]}), 2), autoreset_mode=AutoresetMode.SAME_STEP)
        envs = make_envs(env)
        envs.reset()
        for _ in range(3):
            envs.step(NOTHING)

    stepped(truncated=False)
    with pytest.warns(UserWarning, match="equals the reset observation") as caught:
        stepped(truncated=True)
    assert len(caught) == 1


class PaysColumns(gym.vector.VectorWrapper):
    def step(self, actions: Any) -> Any:
        observations, rewards, *rest = self.env.step(actions)
        return observations, np.stack([rewards] * 2, -1)[:, None], *rest


def test_rewards_of_another_shape_are_a_fault() -> None:
    envs = make_envs(PaysColumns(SyncVectorEnv(factories(SCRIPT, 2))))
    envs.reset()
    with pytest.raises(EnvironmentFault, match=r"rewards have shape \(2, 1, 2\), expected \(2,\) or \(2, K\)"):
        envs.step(NOTHING)


def test_attributes_and_methods_of_single_environments_are_reached() -> None:
    envs = make_envs(SyncVectorEnv(factories(SCRIPT, 3)))
    assert envs.get_attr("environment", [2, 0]) == [2, 0]
    envs.set_attr("reuse", True, [1])
    assert envs.get_attr("reuse", [0, 1, 2]) == [False, True, False]
    assert envs.call("get_wrapper_attr", ("environment",), {}, [1]) == [1]
    envs.close()
    envs.close()


def test_a_native_implementation_has_one_object_for_all_attributes() -> None:
    envs = make_envs(gym.make_vec("CartPole-v1", 3, "vector_entry_point"))
    assert isinstance(envs, GymnasiumEnvironments)
    assert envs.get_attr("gravity", [0, 1, 2]) == [9.8] * 3
    envs.close()
