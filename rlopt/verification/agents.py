"""Whole agents, with collector, environment and policy network: is their direction the exact gradient on average?

An agent takes a few steps in a small MDP, many times with different seeds; every time its direction is compared with
the exact gradient at its own θ_t. For unbiased directions the mean difference is 0 within its standard error, for
N-PG-IGT up to a bias of second order in the step length, which short steps make negligible.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rlopt.agents import ALGORITHMS, EpisodicAgent
from rlopt.agents.episodic import Batch
from rlopt.agents.multi_objective import MultiObjectiveAgent
from rlopt.device import threads_for
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.verification.checks import Check

NUM_RUNS = 200
NUM_STEPS = 4
NUM_EPISODES = 4
LIMIT = 5.0  # standard errors: the largest of a few entries exceeds it once in a million times

# What makes an agent the algorithm of its paper, whose direction is unbiased, with steps short enough for N-PG-IGT.
PAPER: dict[str, dict[str, Any]] = {
    "reinforce": {"step_size": 0.05},
    "npgigt": {"step_size": 0.02, "momentum": 0.5},
    "harpg": {"step_size": 0.2, "momentum": 0.5, "max_correction": None},
    "n-harpg": {"step_size": 0.2, "momentum": 0.5, "max_correction": None, "normalize": True},
    "stormpg": {"step_size": 0.2, "momentum": 0.5, "max_correction": None, "num_initial": NUM_EPISODES},
    "srvrpg": {"step_size": 0.2, "restart_every": NUM_STEPS, "num_small": NUM_EPISODES, "radius": None},
    "nvrpg": {"step_size": 0.2, "momentum": 0.5},
    "mopg": {"step_size": 0.2, "utility": "fairness:1"},
    "mo-tsivr-pg": {
        "step_size": 0.2,
        "utility": "fairness:1",
        "restart_every": NUM_STEPS,
        "num_small": NUM_EPISODES,
        "radius": 1e6,
    },
}


def agent_check(algo: str) -> Check:
    """The mean of d_t − ∇J(θ_t) over many runs of an agent, in standard errors, and its mean square beside vanilla's.

    With several objectives, of d_t − ∇J(θ_t)ᵀ c_t, c_t the agent's own weights of them.
    """
    several = issubclass(ALGORITHMS[algo], MultiObjectiveAgent)
    shape: dict[str, Any] = {"num_states": 3, "num_actions": 2, "horizon": 4, "num_terminal": 1, "seed": 2}
    mdp = TabularMDP.random(**shape, num_objectives=2 if several else None)
    agent = _agent(algo, mdp)
    with threads_for(agent.state.theta):
        return _agent_check(algo, agent, mdp)


def _agent_check(algo: str, agent: EpisodicAgent, mdp: TabularMDP) -> Check:
    start = agent.state.theta.clone()
    errors, vanilla, answers = [], [], []
    for seed in range(NUM_RUNS):
        agent.set_random_seed(seed)
        state = agent.init(start)
        for _ in range(NUM_STEPS):
            theta = state.theta
            state, _ = agent.step(state, agent.collector)  # type: ignore[arg-type]
        exact = exact_gradient(agent, mdp, theta, getattr(state, "slopes", None))
        batch = _fresh_batch(agent, theta, state)
        errors.append(state.direction - exact)
        vanilla.append(agent.gradient(theta, batch)[0] - exact)
        answers.append(exact)
    stacked, answer = torch.stack(errors).double(), torch.stack(answers).double().mean(0)
    moving = stacked.std(0) > 1e-9  # a critic's parameters do not enter the gradient
    z = stacked.mean(0) / (stacked.std(0).clamp_min(1e-300) / math.sqrt(NUM_RUNS))
    ratio = float(stacked.square().sum() / torch.stack(vanilla).double().square().sum())
    return Check(
        f"{algo}: direction after {NUM_STEPS} steps",
        float(answer.norm()),
        float((answer + stacked.mean(0)).norm()),
        float(z[moving].abs().max()),
        True,
        LIMIT,
        ratio,
    )


def _fresh_batch(agent: EpisodicAgent, theta: Tensor, state: Any) -> Batch:
    """Episodes at θ that the agent has not seen."""
    assert agent.collector is not None
    if not isinstance(agent, MultiObjectiveAgent):
        return agent.batch(agent.collector, theta, state, NUM_EPISODES, stream="vanilla")
    rollout = agent.collector.episodes(theta, NUM_EPISODES, stream="vanilla")
    return agent.scalarised_batch(rollout, state.slopes, state, theta, 0.0)


def exact_gradient(agent: EpisodicAgent, mdp: TabularMDP, theta: Tensor, weights: Tensor | None = None) -> Tensor:
    """∇J_H(θ) [d] of the agent's own policy network, by dynamic programming through its action probabilities.

    With `weights` [K] of several objectives it is that of their sum.
    """
    states = torch.arange(mdp.num_states).repeat_interleave(mdp.num_actions)
    actions = torch.arange(mdp.num_actions).repeat(mdp.num_states)

    def value(parameters: Tensor) -> Tensor:
        log_probs = agent.log_policy(parameters, states, actions)
        values = mdp.value(log_probs.double().exp().view(mdp.num_states, mdp.num_actions))
        return values if weights is None else values @ weights.double()

    return torch.func.grad(value)(theta)


def _agent(algo: str, mdp: TabularMDP) -> EpisodicAgent:
    algorithm = ALGORITHMS[algo]
    agent = algorithm(  # type: ignore[call-arg]
        "MlpPolicy",
        TabularVectorEnv(mdp, NUM_EPISODES),
        seed=0,
        device="cpu",
        num_episodes=NUM_EPISODES,
        gamma=mdp.gamma,
        policy_kwargs={"net_arch": [4]},
        **PAPER[algo],
    )
    assert isinstance(agent, EpisodicAgent)
    return agent
