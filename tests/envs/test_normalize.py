"""Running normalisation: the same as SB3's VecNormalize, on valid rows only, frozen in evaluation."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from rlopt import PPO, EnvironmentFault, make_envs
from rlopt.collector import Collector
from rlopt.envs.normalize import ObservationNormalizer, RewardNormalizer
from tests.scripted_envs import Episode, FixedScript, PoisonedVectorEnv, RandomScript, Script, ScriptedEnv, factories

SCRIPT = RandomScript(max_length=12)
MAKERS = {
    "own sync": lambda script, n: make_envs(factories(script, n)),
    "same-step": lambda script, n: make_envs(SyncVectorEnv(factories(script, n), autoreset_mode=AutoresetMode.SAME_STEP)),
    "disabled": lambda script, n: make_envs(SyncVectorEnv(factories(script, n), autoreset_mode=AutoresetMode.DISABLED)),
    "next-step": lambda script, n: make_envs(SyncVectorEnv(factories(script, n))),
    "poisoned": lambda script, n: make_envs(PoisonedVectorEnv([make() for make in factories(script, n)])),
    "sb3": lambda script, n: make_envs(DummyVecEnv(factories(script, n))),
}
SAME_STEP = ("own sync", "same-step", "disabled", "sb3")


def normalising(env: Any, **kwargs: Any) -> PPO:
    kwargs = {"n_steps": 20, "batch_size": 20, "n_epochs": 1, "seed": 0, "device": "cpu", **kwargs}
    return PPO("MlpPolicy", env, normalize_observations=True, normalize_rewards=True, **kwargs)


def sb3_stream(script: Script, num_envs: int, num_steps: int) -> tuple[VecNormalize, Any, Any, dict[tuple[int, int], Any]]:
    """VecNormalize, with its observations [T + 1, N, …], rewards [T, N] and final observations by (t, n)."""
    venv = VecNormalize(DummyVecEnv(factories(script, num_envs)), gamma=0.97)
    observations, rewards, finals = [venv.reset()], [], {}
    for t in range(num_steps):
        observation, reward, dones, infos = venv.step(np.zeros(num_envs, np.int64))
        observations.append(observation)
        rewards.append(reward)
        finals |= {(t, int(n)): infos[n]["terminal_observation"] for n in dones.nonzero()[0]}
    return venv, np.stack(observations), np.stack(rewards), finals


def assert_same_moments(mine: Any, theirs: Any) -> None:
    for name in ("mean", "var", "count"):
        np.testing.assert_allclose(getattr(mine, name), getattr(theirs, name), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", SAME_STEP)
def test_two_thousand_steps_are_normalised_as_vec_normalize_does_it(kind: str) -> None:
    venv, observations, rewards, finals = sb3_stream(SCRIPT, 3, 700)
    with closing(MAKERS[kind](SCRIPT, 3)) as envs:
        agent = normalising(envs, gamma=0.97)
        agent.collector.reset()
        rollout = agent.collector.steps(agent.state.theta, 700)
    np.testing.assert_allclose(rollout.states, observations, rtol=0, atol=1e-6)
    np.testing.assert_allclose(rollout.rewards, rewards, rtol=1e-6, atol=1e-6)
    assert {divmod(int(row), 3) for row in rollout.final_rows} == finals.keys()
    for row, final in zip(rollout.final_rows.tolist(), rollout.final_observations, strict=True):
        np.testing.assert_allclose(final, finals[divmod(row, 3)], rtol=0, atol=1e-6)
    assert_same_moments(agent.observation_normalizer.moments[""], venv.obs_rms)
    assert_same_moments(agent.reward_normalizer.moments, venv.ret_rms)


@pytest.mark.parametrize("kind", ["next-step", "poisoned"])
def test_next_step_resets_are_normalised_as_vec_normalize_does_it(kind: str) -> None:
    _, observations, rewards, finals = sb3_stream(SCRIPT, 1, 2000)
    with closing(MAKERS[kind](SCRIPT, 1)) as envs:
        agent = normalising(envs, gamma=0.97)
        agent.collector.reset()
        rollout = agent.collector.steps(agent.state.theta, 2000)
    valid = rollout.mask[:, 0].numpy()
    count = int(valid.sum())
    np.testing.assert_allclose(rollout.observations[valid, 0], observations[:count, 0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(rollout.rewards[valid, 0], rewards[:count, 0], rtol=1e-6, atol=1e-6)
    # A last observation is normalised before the next episode's first is known: with the statistics of its own step.
    following, raw = rollout.next_observations[valid, 0].numpy(), RunningMeanStd(shape=(3,))
    number, step = 0, 0
    for t in range(count):
        episode = SCRIPT.episode(0, number)
        raw.update(episode.observations[step][None])
        step += 1
        if step == len(episode):
            expected = (episode.observations[-1] - raw.mean) / np.sqrt(raw.var + 1e-8)
            np.testing.assert_allclose(following[t], expected.clip(-10, 10), rtol=0, atol=1e-5)
            assert (t, 0) in finals
            number, step = number + 1, 0


@pytest.mark.parametrize("kind", MAKERS)
def test_statistics_see_the_observations_of_valid_rows_once_in_every_mode(kind: str) -> None:
    with closing(MAKERS[kind](SCRIPT, 3)) as envs:
        agent = normalising(envs, gamma=0.97)
        agent.collector.reset()
        rollout = agent.collector.steps(agent.state.theta, 200)
    # all first observations of valid rows, and those that the next rollout will begin with, if they are of valid rows
    seen, discounted = [], []
    for n in range(3):
        rows = int(rollout.mask[:, n].sum())
        number, step, running = 0, 0, 0.0
        for _ in range(rows):
            episode = SCRIPT.episode(n, number)
            seen.append(episode.observations[step])
            running = 0.97 * running + episode.rewards[step]
            discounted.append(running)
            step += 1
            if step == len(episode):
                number, step, running = number + 1, 0, 0.0
        if not agent.collector.reset_pending[n]:
            seen.append(SCRIPT.episode(n, number).observations[step])
    moments = agent.observation_normalizer.moments[""]
    assert moments.count == pytest.approx(len(seen) + 1e-4)
    np.testing.assert_allclose(moments.mean, np.mean(seen, 0), atol=1e-5)
    np.testing.assert_allclose(moments.var, np.var(seen, 0), atol=1e-5)
    assert agent.reward_normalizer.moments.count == pytest.approx(len(discounted) + 1e-4)
    np.testing.assert_allclose(agent.reward_normalizer.moments.var, np.var(discounted), atol=1e-5)


def test_counting_final_observations_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    normalized = Collector._normalized
    monkeypatch.setattr(Collector, "_normalized", lambda self, trees, counted: normalized(self, trees, self._everyone))
    with pytest.raises(AssertionError):
        test_statistics_see_the_observations_of_valid_rows_once_in_every_mode("next-step")


def test_values_are_clipped() -> None:
    normalizer = ObservationNormalizer(spaces.Box(-np.inf, np.inf, (1,)), clip=5.0)
    normalizer.update(np.random.default_rng(0).normal(size=(100, 1)))
    assert normalizer(np.array([[1e6], [-1e6]])).tolist() == [[5.0], [-5.0]]
    rewards = RewardNormalizer(2, 0.9, clip=3.0)
    flags = np.zeros(2, bool)
    for _ in range(10):
        rewards(np.array([1.0, -1.0]), ~flags, flags, flags)
    assert rewards(np.array([1e6, -1e6]), np.zeros(2, bool), flags, flags).tolist() == [3.0, -3.0]


def test_returns_are_zeroed_at_any_end_or_carried_across_truncation() -> None:
    for carry in (False, True):
        normalizer = RewardNormalizer(4, 0.5, carry_across_truncation=carry)
        terminated, truncated = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
        normalizer(np.full(4, 8.0), np.ones(4, bool), terminated, truncated)
        normalizer(np.ones(4), np.ones(4, bool), np.zeros(4, bool), np.zeros(4, bool))
        assert normalizer.returns.tolist() == ([5.0, 5.0, 1.0, 1.0] if carry else [5.0, 1.0, 1.0, 1.0])


def test_the_agents_argument_carries_returns_across_truncation() -> None:
    cut = FixedScript({0: [Episode(np.arange(6, dtype=np.float32).reshape(2, 3), np.ones(1), False, True)]})
    for carry in (False, True):
        agent = normalising(ScriptedEnv(cut, 0), carry_reward_returns=carry, gamma=0.5).learn(20)
        assert float(agent.reward_normalizer.returns[0]) == pytest.approx(2.0 if carry else 0.0, abs=1e-4)


def test_only_float_entries_of_a_dict_are_normalised() -> None:
    space = spaces.Dict({"x": spaces.Box(-1, 1, (2,)), "n": spaces.Discrete(3), "i": spaces.Box(0, 255, (3, 36, 36), np.uint8)})
    normalizer = ObservationNormalizer(space)
    batch = {"x": np.ones((4, 2), np.float32), "n": np.arange(4) % 3, "i": np.full((4, 3, 36, 36), 7, np.uint8)}
    normalizer.update(batch)
    result = normalizer(batch)
    assert list(normalizer.moments) == ["x"]
    assert result["n"] is batch["n"]
    assert result["i"] is batch["i"]
    np.testing.assert_allclose(result["x"], 0.0, atol=1e-2)
    with pytest.raises(ValueError, match="normalize_observations: Discrete"):
        ObservationNormalizer(spaces.Discrete(3))


def test_evaluation_changes_neither_statistics_nor_training() -> None:
    def learned(evaluate: bool) -> PPO:
        agent = normalising(factories(SCRIPT, 2), batch_size=40)
        for begin in (True, False):
            agent.learn(80, reset_num_timesteps=begin)
            if evaluate:
                before = states(agent)
                evaluate_policy(agent, DummyVecEnv([lambda: ScriptedEnv(SCRIPT, 5)]), n_eval_episodes=5, warn=False)
                agent.predict(np.full((7, 3), 100.0, np.float32))
                assert all(np.array_equal(a, b) for a, b in zip(before, states(agent), strict=True))
        return agent

    def states(agent: PPO) -> list[np.ndarray]:
        both = (agent.observation_normalizer.state(), agent.reward_normalizer.state())
        return [array.copy() for state in both for array in state.values()]

    assert torch.equal(learned(True).state.theta, learned(False).state.theta)


def test_prediction_applies_the_statistics() -> None:
    agent = normalising(factories(SCRIPT, 2), batch_size=40).learn(80)
    raw = np.full((1, 3), 0.5, np.float32)
    normalised = agent.observation_normalizer(raw)
    assert not np.allclose(raw, normalised)
    distribution = agent.actor_critic.actor(torch.as_tensor(normalised))
    assert agent.predict(raw, deterministic=True)[0] == distribution.mode().numpy()


def test_state_and_load_state_are_inverse() -> None:
    agent = normalising(factories(SCRIPT, 2), batch_size=40).learn(80)
    other = normalising(factories(SCRIPT, 2), batch_size=40)
    for mine, theirs in (
        (agent.observation_normalizer, other.observation_normalizer),
        (agent.reward_normalizer, other.reward_normalizer),
    ):
        theirs.load_state(mine.state())
        for key, array in mine.state().items():
            np.testing.assert_array_equal(theirs.state()[key], array)


# ---------------------------------------------------------------------------------------------------- broken values


class Broken(ScriptedEnv):
    """Gives one value that is not finite, in an observation, a last observation, a first one, or a reward."""

    def __init__(self, environment: int, where: str, value: float):
        super().__init__(FixedScript({n: [one_long()] for n in range(2)}), environment)
        self.where, self.value = where if environment == 1 else "nowhere", value

    def reset(self, **kwargs: Any) -> Any:
        observation, info = super().reset(**kwargs)
        observation[2] = self.value if self.where == "first" else observation[2]
        return observation, info

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        if self.where == "observation" and self.step_number == 3:
            observation[1] = self.value
        if self.where == "final" and any(rest[:2]):
            observation[0] = self.value
        return observation, self.value if self.where == "reward" and self.step_number == 3 else reward, *rest


def one_long() -> Episode:
    return Episode(np.arange(18, dtype=np.float32).reshape(6, 3) / 8, np.arange(5) / 4, False, True)


@pytest.mark.parametrize("kind", ["own sync", "next-step", "same-step", "disabled", "sb3"])
@pytest.mark.parametrize("where", ["observation", "final", "first", "reward"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_value_that_is_not_finite_stops_learning_and_is_named(kind: str, where: str, normalize: bool) -> None:
    for value in (np.nan, np.inf, -np.inf):
        makers = [lambda n=n, value=value: Broken(n, where, value) for n in range(2)]
        mode = {"next-step": AutoresetMode.NEXT_STEP, "same-step": AutoresetMode.SAME_STEP, "disabled": AutoresetMode.DISABLED}
        env = (
            makers
            if kind == "own sync"
            else DummyVecEnv(makers)
            if kind == "sb3"
            else SyncVectorEnv(makers, autoreset_mode=mode[kind])
        )
        kwargs = {"n_steps": 20, "batch_size": 40, "seed": 0, "device": "cpu"}
        agent = PPO("MlpPolicy", env, normalize_observations=normalize, normalize_rewards=normalize, **kwargs)
        theta = agent.state.theta.clone()
        field = "reward" if where == "reward" else "observation"
        with pytest.raises(EnvironmentFault, match=rf"{field} of environment 1 is not finite .*step.*nothing was learned"):
            agent.learn(40)
        assert torch.equal(agent.state.theta, theta)
        assert torch.equal(torch.nn.utils.parameters_to_vector(agent.policy.parameters()), theta)
        if normalize:
            arrays = [*agent.observation_normalizer.state().values(), *agent.reward_normalizer.state().values()]
            assert all(np.isfinite(array).all() for array in arrays)


def test_the_statistics_are_those_of_before_the_value_that_is_not_finite() -> None:
    agent = normalising([lambda n=n: Broken(n, "reward", np.nan) for n in range(2)], batch_size=40)
    with pytest.raises(EnvironmentFault, match=r"reward of environment 1 is not finite after 4 environment steps"):
        agent.learn(40)
    assert agent.observation_normalizer.moments[""].count == pytest.approx(6, abs=1e-3)  # three states of each
    assert agent.reward_normalizer.moments.count == pytest.approx(4, abs=1e-3)
