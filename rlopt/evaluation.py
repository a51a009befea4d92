"""How well an agent does: whole episodes in environments of their own, without touching its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from rlopt.agents.base import Agent
from rlopt.arguments import check_number
from rlopt.device import threads_for
from rlopt.envs.base import Environments
from rlopt.envs.facade import as_vec_env
from rlopt.envs.sb3_vector import SB3Environments
from rlopt.envs.vector import make_envs
from rlopt.envs.wrapper import innermost
from rlopt.policies.stateful import actor_spaces


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of finished episodes.

    Attributes:
        returns: [E]; tuples of K in environments that pay K rewards, for which `mean`, `std` and `median` are arrays [K].
        lengths: [E], in steps.
    """

    returns: tuple[Any, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> Any:
        return _number_or_vector(np.mean(self.returns, 0))

    @property
    def std(self) -> Any:
        return _number_or_vector(np.std(self.returns, 0))

    @property
    def median(self) -> Any:
        return _number_or_vector(np.median(self.returns, 0))

    @property
    def mean_length(self) -> float:
        return float(np.mean(self.lengths))


def evaluate(agent: Agent, env: Any, num_episodes: int, deterministic: bool = True, seed: int | None = None) -> Evaluation:
    """`num_episodes` whole episodes, with the agent's normalisation as it is and raw returns.

    Args:
        agent: predicts with a generator of its own, so that its training goes on as if nothing had happened.
        env: whatever `make_envs` takes; used from a reset on, so not the training environments. The statistics of a
            `VecNormalize` stay as they are.
        num_episodes: shared out among the environments beforehand, so that short episodes are not favoured.
        deterministic: take the most likely actions.
        seed: of the environments; None leaves them as they are.

    Raises:
        ValueError: the environments' spaces are not the agent's.
    """
    check_number("num_episodes", num_episodes, positive=True, whole=True)
    envs = make_envs(env)
    check_spaces(agent, envs)
    if envs.monitored:
        return _by_monitor(agent, as_vec_env(envs), num_episodes, deterministic, seed)
    played = evaluate_objectives(agent, envs, num_episodes, deterministic, seed)
    single = played.returns.shape[1] == 1
    returns = played.returns[:, 0].tolist() if single else map(tuple, played.returns.tolist())
    return Evaluation(tuple(returns), tuple(played.lengths.tolist()))


def _by_monitor(agent: Agent, vec_env: VecEnv, num_episodes: int, deterministic: bool, seed: int | None) -> Evaluation:
    """Episodes are those that SB3's `Monitor` reports, which may be longer than the agent's: games of several lives."""
    if seed is not None:
        vec_env.seed(seed)
    with threads_for(agent.state.theta), frozen(unwrap_vec_normalize(vec_env)):
        returns, lengths = evaluate_policy(
            agent,
            vec_env,
            n_eval_episodes=num_episodes,
            deterministic=deterministic,
            return_episode_rewards=True,
            warn=False,
        )
    return Evaluation(tuple(map(float, returns)), tuple(map(int, lengths)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class VectorEvaluation:
    """Returns and lengths of finished episodes in an environment with a reward for each objective.

    Attributes:
        returns: [E, K].
        lengths: [E], in steps.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]

    @property
    def mean(self) -> NDArray[np.float64]:
        """[K], the estimate of the expected returns."""
        return self.returns.mean(0)

    @property
    def standard_error(self) -> NDArray[np.float64]:
        """[K], of `mean`; nan for one episode."""
        episodes = len(self.returns)
        return self.returns.std(0, ddof=1) / np.sqrt(episodes) if episodes > 1 else np.full(self.returns.shape[1], np.nan)


def evaluate_objectives(
    agent: Agent, env: Any, num_episodes: int, deterministic: bool = True, seed: int | None = None, gamma: float = 1.0
) -> VectorEvaluation:
    """`num_episodes` whole episodes with the return of every objective; see `evaluate`, of which this is the vector form.

    Args:
        agent, env, num_episodes, seed: as `evaluate` takes them. One reward a step makes K = 1.
        deterministic: take the most likely actions. That is another policy than the stochastic one that was trained, and
            may have other expected returns: a mixture of two points of a front exists only as a stochastic policy.
        gamma: discount of the returns Σ γ^t r_t, in [0, 1].

    Raises:
        ValueError: the environments' spaces are not the agent's, or numbers out of range.
    """
    check_number("num_episodes", num_episodes, positive=True, whole=True)
    check_number("gamma", gamma, at_least=0.0, at_most=1.0)
    envs = make_envs(env)
    check_spaces(agent, envs)
    inner = innermost(envs)
    normalizer = unwrap_vec_normalize(inner.env) if isinstance(inner, SB3Environments) else None
    with threads_for(agent.state.theta), frozen(normalizer):
        return _play(agent, envs, num_episodes, deterministic, seed, gamma)


def _play(
    agent: Agent, envs: Environments, num_episodes: int, deterministic: bool, seed: int | None, gamma: float
) -> VectorEvaluation:
    num_envs = envs.num_envs
    shares = (num_episodes + np.arange(num_envs)) // num_envs  # beforehand, so that short episodes are not favoured
    finished, lengths, discounts = np.zeros(num_envs, np.int64), np.zeros(num_envs, np.int64), np.ones(num_envs)
    resetting, begins = np.zeros(num_envs, bool), np.ones(num_envs, bool)
    returns: NDArray[np.float64] | None = None  # [N, K], known from the first step on
    episodes: list[tuple[NDArray[np.float64], int]] = []
    observations, memory = envs.reset(seed), None
    while (active := finished < shares).any():
        actions, memory = agent.predict(envs.encoder.decode(observations), memory, begins, deterministic)
        step = envs.step(actions, active)
        counted = active & ~resetting
        rewards = step.rewards.reshape(num_envs, -1) * discounts[:, None]
        returns = np.zeros(rewards.shape) if returns is None else returns
        returns[counted] += rewards[counted]
        lengths += counted
        discounts *= gamma
        ended = counted & (step.terminated | step.truncated)
        episodes += [(returns[row].copy(), int(lengths[row])) for row in ended.nonzero()[0]]
        # Where the next step is the reset, the episode begins with what that step returns.
        begins, resetting = (resetting, ended) if envs.resets_on_next_step else (ended, resetting)
        over = ended | begins
        returns[over], lengths[over], discounts[over] = 0.0, 0, 1.0
        finished += ended
        observations = step.observations
    return VectorEvaluation(np.stack([total for total, _ in episodes]), np.array([length for _, length in episodes]))


@contextmanager
def frozen(normalizer: VecNormalize | None) -> Iterator[None]:
    """A user's `VecNormalize` neither counts nor scales rewards while this lasts."""
    if normalizer is None:
        yield
        return
    before = normalizer.training, normalizer.norm_reward
    normalizer.training = normalizer.norm_reward = False
    try:
        yield
    finally:
        normalizer.training, normalizer.norm_reward = before


def _number_or_vector(value: Any) -> Any:
    return value if np.ndim(value) else float(value)


def check_spaces(agent: Agent, envs: Environments) -> None:
    """Raises ValueError unless the agent can act in the environments, which need not show what only its critic reads."""
    enough = actor_spaces(agent.observation_space) if agent.memory is not None else []
    for field, mine, theirs in (
        ("observation space", agent.observation_space, envs.encoder.raw_space),
        ("action space", agent.action_space, envs.decoder.raw_space),
    ):
        if mine != theirs and not (field == "observation space" and theirs in enough):
            raise ValueError(f"env: the {field} of {envs.name} is {theirs}, the agent's is {mine}")
