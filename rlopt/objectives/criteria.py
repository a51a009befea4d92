"""What is maximised: the utility of the expected return, or the expected utility of an episode."""

from __future__ import annotations

from torch import Tensor

from rlopt.objectives.vector_utility import VectorUtility


def scalarised_expected_return(utility: VectorUtility, returns: Tensor) -> Tensor:
    """SER, f(mean of R⃗): the utility of the expected return, from `returns` [N, K] of N episodes of one policy.

    `MOPG`, `MOTSIVRPG` and `PPO` maximise this. A policy that mixes may be better by it than all that do not. From few
    episodes the estimate is biased, downwards where f is concave.
    """
    return utility.checked(_episodes(returns).mean(0))


def expected_scalarised_return(utility: VectorUtility, returns: Tensor) -> Tensor:
    """ESR, mean of u(R⃗): the expected utility of an episode, from `returns` [N, K] of N episodes of one policy.

    `MOPG(criterion="esr")` maximises this. It is at most the SER where u is concave, and the same where u is linear or
    all episodes have the same return.
    """
    return utility.checked(_episodes(returns)).mean()


def _episodes(returns: Tensor) -> Tensor:
    if returns.ndim != 2 or not len(returns):
        raise ValueError(f"returns: expected [N, K] of at least one episode, got shape {tuple(returns.shape)}")
    return returns
