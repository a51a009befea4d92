"""How well an agent does: whole episodes in environments of their own, without touching its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize

from rlopt.agents.base import Agent
from rlopt.arguments import check_number
from rlopt.device import threads_for
from rlopt.envs.base import Environments
from rlopt.envs.facade import as_vec_env
from rlopt.envs.vector import make_envs


@dataclass(frozen=True)
class Evaluation:
    """Returns and lengths of finished episodes."""

    returns: tuple[float, ...]
    lengths: tuple[int, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    @property
    def median(self) -> float:
        return float(np.median(self.returns))

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
    vec_env = as_vec_env(envs)
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


def check_spaces(agent: Agent, envs: Environments) -> None:
    """Raises ValueError unless the agent can act in the environments."""
    for field, mine, theirs in (
        ("observation space", agent.observation_space, envs.encoder.raw_space),
        ("action space", agent.action_space, envs.decoder.raw_space),
    ):
        if mine != theirs:
            raise ValueError(f"env: the {field} of {envs.name} is {theirs}, the agent's is {mine}")
