"""The queues: their order of events, their random numbers, and the values of known policies."""

from __future__ import annotations

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from rlopt import make_envs
from rlopt.envs.queues import CAPACITY, PRESETS, Queues, QueuesVectorEnv, poisson_distribution

GAMMA = 0.9999
# f(E[R⃗]) with f = Σ −H/(J + 1), and the standard error, of 5,000 episodes; and the bound that no policy passes.
KNOWN = {
    ("uniform", 6): (-61.7, 0.1),
    ("longest", 6): (-57.8, 0.1),
    ("uniform", 8): (-161.6, 0.4),
    ("longest", 8): (-152.4, 0.4),
}
BOUND = {6: -57.51, 8: -151.64, 12: -272.95, 16: -535.68, 32: -1919.03, 64: -6508.63}
NUM_EPISODES = 800


def utility(objectives: np.ndarray, horizon: int = 500) -> float:
    return float((-horizon / (objectives + 1.0)).sum(-1))


def played(policy: str, env: QueuesVectorEnv, gamma: float = GAMMA) -> np.ndarray:
    """Discounted returns [N, M] of one episode of every copy."""
    observations, _ = env.reset(seed=3)
    random = np.random.default_rng(4)
    returns = np.zeros((env.num_envs, env.problem.num_queues))
    for t in range(env.problem.horizon):
        uniform = random.integers(env.problem.num_queues, size=env.num_envs)
        observations, rewards, terminated, truncated, _ = env.step(uniform if policy == "uniform" else observations.argmax(1))
        returns += gamma**t * rewards
        assert not terminated.any()
        assert (truncated == (t == env.problem.horizon - 1)).all()
    return returns


def distance(returns: np.ndarray, known: tuple[float, float]) -> float:
    """How many standard errors f(mean return) is from a known value, by the delta method."""
    mean = returns.mean(0)
    error = (returns @ (500 / (mean + 1) ** 2)).std(ddof=1) / len(returns) ** 0.5
    return abs(utility(mean) - known[0]) / math.hypot(error, known[1])


@pytest.mark.parametrize(("policy", "num_queues"), KNOWN)
def test_known_policies_have_their_values(policy: str, num_queues: int) -> None:
    returns = played(policy, QueuesVectorEnv(Queues(num_queues), NUM_EPISODES))
    assert distance(returns, KNOWN[policy, num_queues]) < 4


class PaysForEmptyQueues(QueuesVectorEnv):
    """The negative control: whoever is chosen is paid."""

    def _advance(self, states: Any, actions: Any) -> Any:
        lengths, rewards, terminated = super()._advance(states, actions)
        rewards[self._rows, actions] = 1.0
        return lengths, rewards, terminated


@pytest.mark.parametrize("policy", ["uniform", "longest"])
def test_pay_for_empty_queues_would_miss_the_values(policy: str) -> None:
    assert distance(played(policy, PaysForEmptyQueues(Queues(6), NUM_EPISODES)), KNOWN[policy, 6]) > 4


def test_rates_and_bounds_are_the_tables() -> None:
    loads = {6: 0.795, 8: 0.800, 12: 0.798, 16: 0.800, 32: 0.800, 64: 0.800}
    for num_queues, (p0, d) in PRESETS.items():
        problem = Queues(num_queues)
        np.testing.assert_allclose(problem.rates, [p0 + m * d for m in range(num_queues)], rtol=1e-14)
        assert problem.rates.sum() == pytest.approx(loads[num_queues], abs=6e-4)
        assert utility(problem.arrivals_bound(GAMMA)) == pytest.approx(BOUND[num_queues], abs=0.006)
    assert Queues(6).arrivals_bound(GAMMA).sum() / Queues(6).rates.sum() == pytest.approx(487.73, abs=0.005)
    np.testing.assert_allclose(Queues(6, horizon=7).arrivals_bound(1.0), 7 * Queues(6).rates)


@pytest.mark.parametrize("num_queues", [6, 64])
def test_jobs_are_conserved_and_only_those_that_came_are_served(num_queues: int) -> None:
    env = QueuesVectorEnv(Queues(num_queues), 50)
    before, _ = env.reset(seed=0)
    assert not before.any()
    random, arrived, served = np.random.default_rng(0), np.zeros((50, num_queues)), np.zeros((50, num_queues))
    for _ in range(500):
        actions = random.integers(num_queues, size=50)
        after, rewards, *_ = env.step(actions)
        new = after - before + rewards
        assert (new >= 0).all()
        assert (after >= 0).all()
        assert (after <= CAPACITY).all()
        chosen = np.eye(num_queues)[actions]
        # paid exactly where a job was in the chosen queue, those that came in this step included
        np.testing.assert_array_equal(rewards, chosen * (before + new > 0))
        arrived, served, before = arrived + new, served + rewards, after
    assert (served <= arrived).all()
    np.testing.assert_array_equal(arrived - served, after)
    error = np.sqrt(env.problem.rates * 500 * 50)
    assert (np.abs(arrived.sum(0) - env.problem.rates * 500 * 50) < 4.5 * error).all()


def test_arrivals_are_independent_poisson_numbers() -> None:
    env = QueuesVectorEnv(Queues(3, p0=0.4, d=0.6), 60_000)
    env.reset(seed=5)
    lengths = env._advance(env._first_states(60_000), np.zeros(60_000, np.int64))
    arrivals = lengths[0] + lengths[1]
    rates = [0.4, 1.0, 1.6]
    for m, rate in enumerate(rates):
        for k in range(6):
            mass = math.exp(-rate) * rate**k / math.factorial(k)
            assert abs((arrivals[:, m] == k).mean() - mass) < 4.5 * (mass * (1 - mass) / 60_000) ** 0.5
    correlations = np.corrcoef(arrivals.T)[np.triu_indices(3, 1)]
    assert (np.abs(correlations) < 4.5 / 60_000**0.5).all()


def test_the_distribution_function_is_that_of_poisson_to_the_last_digit() -> None:
    for rate in (1e-4, 0.8, 3.0, 40.0, 500.0):
        table = poisson_distribution(rate)
        exact = np.array([math.exp(-rate + k * math.log(rate) - math.lgamma(k + 1)) for k in range(len(table))])
        np.testing.assert_allclose(np.diff(table, prepend=0.0), exact, rtol=0, atol=3e-13)
        assert table[-1] == pytest.approx(1.0, abs=1e-12)
        assert (np.diff(table) >= 0).all()


def test_a_full_queue_turns_jobs_away() -> None:
    env = QueuesVectorEnv(Queues(2, p0=200.0, d=0.0, horizon=9), 4)
    env.reset(seed=0)
    for _ in range(8):
        observations, rewards, *_ = env.step(np.zeros(4, np.int64))
        np.testing.assert_array_equal(rewards, [[1, 0]] * 4)
    np.testing.assert_array_equal(observations, [[CAPACITY - 1, CAPACITY]] * 4)


def test_observations_may_be_logarithms() -> None:
    plain, logarithms = (make_envs("rlopt/Queues-v0", 5, env_kwargs={"log1p": log1p}) for log1p in (False, True))
    plain.reset(seed=1)
    logarithms.reset(seed=1)
    for _ in range(20):
        actions = np.zeros(5, np.int64)
        lengths, seen = plain.step(actions).observations, logarithms.step(actions).observations
        assert seen.dtype == np.float32  # type: ignore[union-attr]
        np.testing.assert_allclose(seen, np.log1p(lengths), rtol=1e-6)
    assert logarithms.encoder.raw_space.high[0] == np.float32(math.log1p(CAPACITY))  # type: ignore[attr-defined]


def test_the_same_seed_gives_the_same_jobs_whatever_else_draws() -> None:
    def lengths(disturbed: bool) -> np.ndarray:
        envs = make_envs("rlopt/Queues-v0", 3, env_kwargs={"num_queues": 8})
        envs.reset(seed=7)
        rows = []
        for _ in range(30):
            if disturbed:
                np.random.random(3)  # noqa: NPY002
            rows.append(envs.step(np.arange(3)).observations)
        return np.array(rows)

    np.testing.assert_array_equal(lengths(False), lengths(True))


def test_one_copy_is_a_gymnasium_environment_of_vector_rewards() -> None:
    env = gym.make("rlopt/Queues-v0", num_queues=6, horizon=3)
    env.reset(seed=0)
    for t in range(3):
        observation, reward, terminated, truncated, _ = env.step(5)
        assert observation.shape == (6,)
        assert observation.dtype == np.float32
        assert np.shape(reward) == (6,)
        assert (terminated, truncated) == (False, t == 2)
    assert make_envs(env).num_objectives == 6
    assert make_envs("rlopt/Queues-v0", 4).num_objectives == 6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_queues": 7}, "num_queues: expected one of 6, 8, 12, 16, 32, 64 or p0 and d, got 7"),
        ({"num_queues": 1}, "num_queues: expected an integer of at least 2, got 1"),
        ({"p0": 0.1}, "p0, d: expected both or none, got p0=0.1 and d=None"),
        ({"p0": 0.1, "d": -0.1}, "d: expected a number of at least -0.02, got -0.1"),
        ({"p0": 0.0, "d": 0.0}, "p0, d: the jobs per step in all: expected a positive number"),
        ({"horizon": 0}, "horizon: expected a positive integer, got 0"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        Queues(**kwargs)
