"""Methods that are one another for some arguments are so to the bit, because their random numbers do not mix."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlopt import HARPG, NPGIGT, NVRPG, REINFORCE, SRVRPG, STORMPG
from rlopt.agents import EpisodicAgent
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.rollout import Rollout
from rlopt.utilities import LinearUtility
from tests.small_envs import Walk

MDP = TabularMDP.random(num_states=6, num_terminal=1, horizon=6, seed=2)
ENVIRONMENTS: dict[str, Any] = {
    "id": lambda: "rlopt/RandomMDP-v0",
    "tabular": lambda: TabularVectorEnv(MDP, 4),
    "walk": lambda: lambda: Walk(actions="box"),
}
every_environment = pytest.mark.parametrize("env", ENVIRONMENTS)
NUM_ITERATIONS = 5


def make(algorithm: type[EpisodicAgent], env: str = "tabular", **kwargs: Any) -> EpisodicAgent:
    """An agent with a small tanh network."""
    common = {"num_episodes": 4, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    return algorithm("MlpPolicy", ENVIRONMENTS[env](), **{**common, **kwargs})


def path(agent: EpisodicAgent, num: int = NUM_ITERATIONS) -> Tensor:
    """θ_0 … θ_num, [num + 1, d]."""
    state, thetas = agent.state, [agent.state.theta.clone()]
    for _ in range(num):
        assert agent.collector is not None
        state, _ = agent.step(state, agent.collector)
        thetas.append(state.theta.clone())
    return torch.stack(thetas)


# ---------------------------------------------------------------------- one method is another


@every_environment
def test_without_momentum_the_normalised_methods_are_the_normalised_gradient(env: str) -> None:
    """η = 1: N-HARPG = N-PG-IGT = normalised STORM-PG = REINFORCE with normalised steps."""
    arguments = {"momentum": 1.0, "step_size": "power:0.5:1/2"}
    expected = path(make(REINFORCE, env, normalize=True, **arguments))
    assert torch.equal(path(make(NPGIGT, env, **arguments)), expected)
    assert torch.equal(path(make(HARPG, env, normalize=True, **arguments)), expected)
    assert torch.equal(path(make(STORMPG, env, normalize=True, num_initial=4, **arguments)), expected)
    assert len(expected.unique(dim=0)) == NUM_ITERATIONS + 1
    for other in (
        make(NPGIGT, env, **{**arguments, "momentum": 0.9}),
        make(HARPG, env, normalize=True, **{**arguments, "momentum": 0.9}),
        make(REINFORCE, env, **arguments),
    ):
        assert not torch.equal(path(other), expected)


@every_environment
def test_without_momentum_the_plain_methods_are_reinforce(env: str) -> None:
    expected = path(make(REINFORCE, env, step_size=0.3))
    assert torch.equal(path(make(HARPG, env, momentum=1.0, step_size=0.3)), expected)
    assert torch.equal(path(make(STORMPG, env, momentum=1.0, num_initial=4, step_size=0.3)), expected)
    assert torch.equal(path(make(SRVRPG, env, restart_every=1, step_size=0.3, radius=None)), expected)
    assert not torch.equal(path(make(SRVRPG, env, restart_every=2, num_small=4, step_size=0.3, radius=None)), expected)


def test_srvrpg_with_a_radius_that_always_cuts_takes_normalised_steps() -> None:
    cut = path(make(SRVRPG, restart_every=1, step_size=1e6, radius=0.2))
    normalised = path(make(REINFORCE, normalize=True, step_size=0.2))
    torch.testing.assert_close(cut, normalised, rtol=0, atol=1e-5)


@pytest.mark.parametrize("utility", ["reward", "linear"])
@pytest.mark.parametrize("weighting", ["per_step", "trajectory"])
@pytest.mark.parametrize(("num_episodes", "baseline"), [(1, "none"), (4, "none"), (4, "leave_one_out"), (4, "time")])
def test_a_linear_utility_makes_nvrpg_normalised_storm(utility: str, weighting: str, num_episodes: int, baseline: str) -> None:
    """The quasi-rewards of a linear utility are its rewards."""
    arguments = {
        "num_episodes": num_episodes,
        "baseline": baseline,
        "weighting": weighting,
        "step_size": 0.3,
        "momentum": "power:1:2/3",
        "max_correction": None,
    }
    function = LinearUtility(MDP.rewards.tolist()) if utility == "linear" else utility
    found = path(make(NVRPG, utility=function, **arguments))
    assert torch.equal(found, path(make(STORMPG, normalize=True, num_initial=num_episodes, **arguments)))
    assert not torch.equal(found, path(make(NVRPG, utility="entropy", **arguments)))
    assert not torch.equal(found, path(make(STORMPG, normalize=True, num_initial=num_episodes + 3, **arguments)))


def test_the_two_weightings_differ() -> None:
    arguments = {"normalize": True, "step_size": 0.3, "max_correction": None}
    per_step, trajectory = (path(make(STORMPG, weighting=weighting, **arguments)) for weighting in ("per_step", "trajectory"))
    assert torch.equal(per_step[:2], trajectory[:2])
    assert not torch.equal(per_step[2], trajectory[2])


# ---------------------------------------------------------------------- streams of random numbers


def episodes_of(agent: EpisodicAgent, num: int, shared_stream: bool = False) -> dict[str, list[Rollout]]:
    """The batches of an agent in `num` iterations, by stream; all from one stream if `shared_stream`."""
    assert agent.collector is not None
    batches: dict[str, list[Rollout]] = {}
    original = agent.collector.episodes

    def episodes(theta: Tensor, num_episodes: int, horizon: int | None = None, stream: str = "episodes") -> Rollout:
        rollout = original(theta, num_episodes, horizon, "episodes" if shared_stream else stream)
        batches.setdefault(stream, []).append(rollout)
        return rollout

    agent.collector.episodes = episodes  # type: ignore[method-assign]
    path(agent, num)
    return batches


def same(first: Rollout, second: Rollout) -> bool:
    """Whether all tensors are, to the bit."""
    pairs = zip(vars(first).values(), vars(second).values(), strict=True)
    return all(a is b if a is None else torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("env", ["tabular", "walk"])
@pytest.mark.parametrize("num_points", [1, 2])
def test_batches_for_hessians_do_not_change_those_for_gradients(env: str, num_points: int) -> None:
    """Parameters that (nearly) rest, so that nothing but the random numbers could differ."""
    rest = {"step_size": 1e-30}
    plain = episodes_of(make(REINFORCE, env, **rest), 4)["episodes"]
    ahead = episodes_of(make(NPGIGT, env, momentum=0.5, **rest), 4)["episodes"]
    aided = episodes_of(make(HARPG, env, momentum=0.5, num_points=num_points, **rest), 4)
    assert len(plain) == len(ahead) == len(aided["episodes"]) == 4
    assert len(aided["hessian"]) == 3 * num_points
    assert all(same(a, b) for a, b in zip(plain, ahead, strict=True))
    assert all(same(a, b) for a, b in zip(plain, aided["episodes"], strict=True))
    every = [*plain, *aided["hessian"]]
    assert not any(same(a, b) for i, a in enumerate(every) for b in every[:i])
    shared = episodes_of(make(HARPG, env, momentum=0.5, num_points=num_points, **rest), 4, shared_stream=True)["episodes"]
    assert same(shared[0], plain[0])
    assert same(shared[1], plain[1])
    assert not any(same(a, b) for a, b in zip(shared[2:], plain[2:], strict=True))


def test_points_between_iterates_come_from_a_stream_of_their_own() -> None:
    """More points do not change which batches of gradients are drawn, and the same seed draws the same points."""
    agent = make(HARPG, num_points=2)
    assert agent._fractions(3) == make(HARPG, num_points=2)._fractions(3)
    assert agent._fractions(3) != agent._fractions(4)
    assert agent._fractions(3) != make(HARPG, num_points=2, seed=1)._fractions(3)
    drawn = torch.tensor([q for t in range(500) for q in agent._fractions(t)])
    assert abs(float(drawn.mean()) - 0.5) < 4 * (1 / 12 / 1000) ** 0.5
    assert abs(float(drawn.var()) - 1 / 12) < 0.01


def test_a_batch_of_one_stream_depends_on_its_number_alone() -> None:
    agent, other = make(REINFORCE), make(REINFORCE)
    assert agent.collector is not None
    assert other.collector is not None
    theta = agent.state.theta
    first = [agent.collector.episodes(theta, 4) for _ in range(3)]
    mixed = []
    for stream in ("hessian", "episodes", "hessian", "hessian", "episodes", "evaluation", "episodes"):
        rollout = other.collector.episodes(theta, 4, stream=stream)
        if stream == "episodes":
            mixed.append(rollout)
    assert all(same(a, b) for a, b in zip(first, mixed, strict=True))
    swapped = [replace(first[0]), first[2], first[1]]
    assert not all(same(a, b) for a, b in zip(swapped, mixed, strict=True))
