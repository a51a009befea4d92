"""MOPG's and MOTSIVRPG's own steps on every batch that there is: J and the direction are exact in expectation.

A batch is one episode of a small MDP, or two; the agents get them from a collector that hands out what the test says.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rlopt import MOPG, MOTSIVRPG
from rlopt.agents import motsivrpg
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.estimators import discounted_return, importance_weights, log_ratio
from rlopt.objectives import UserUtility
from tests.oracles import F64, assert_exact, assert_misses, columns_at, miss, normal, over_pairs, per_trajectory, small_mdp

EVERY_K = pytest.mark.parametrize("num_objectives", [2, 3])
SEEN = torch.arange(0, 64, 21)  # batches for J that the direction's expectation is taken after; all 64 for J itself


def exponential(returns):
    """f = −Σ_k exp(−J_k), ∇f = exp(−J)."""
    return -torch.exp(-returns).sum()


class Dealt:
    """A collector that hands out prepared batches, by stream, and notes what was asked for."""

    def __init__(self, **batches):
        self.batches, self.asked = batches, []

    def episodes(self, theta, num_episodes, horizon=None, stream="episodes"):
        self.asked.append((stream, num_episodes))
        return self.batches[stream]


def problem(num_objectives):
    """The MDP, two parameter vectors, and the episodes that θ_t can play with their probabilities."""
    mdp = small_mdp(num_objectives=num_objectives)
    previous, theta = normal(mdp.num_parameters, seed=1), normal(mdp.num_parameters, seed=1) + normal(4, seed=2)
    return mdp, previous, theta, *mdp.enumerate(theta)


def agent_of(cls, mdp, **kwargs):
    """An agent whose policy is the softmax of the logits θ."""
    common = {"utility": UserUtility(exponential), "baseline": "none", "gamma": mdp.gamma, "seed": 0, "device": "cpu"}
    agent = cls("MlpPolicy", TabularVectorEnv(mdp, 2), **{**common, **kwargs})
    agent.log_policy = mdp.softmax_log_prob
    return agent


def state_at(agent, mdp, previous, theta, **fields):
    """The state of an iteration between restarts, with an error in J and a direction of its own."""
    k = mdp.rewards.shape[-1]
    known = mdp.value(mdp.softmax_policy(previous)) + 0.1 * normal(k, seed=3)
    state = agent.init(theta)._replace(previous=previous, iteration=1, direction=normal(mdp.num_parameters, seed=8))
    state = state._replace(objectives=known, slopes=torch.exp(-known), slopes_before=normal(k, seed=9))
    return state._replace(**fields)


def after(agent, state, rollout, judging, gradient):
    """The state after a step with these episodes: for J the columns `judging`, for the gradient `gradient`."""
    batches = {"episodes": columns_at(rollout, gradient), "objectives": columns_at(rollout, judging)}
    return agent.step(state, Dealt(**batches))[0]


def expected_direction(agent, state, rollout, probabilities, judging):
    """E[d_t] over the episode of the gradient, given that of J."""
    columns = torch.arange(len(probabilities))
    directions = [after(agent, state, rollout, judging, n[None]).direction for n in columns]
    return probabilities @ torch.stack(directions)


@EVERY_K
def test_the_tracked_objectives_change_by_what_j_changes(num_objectives):
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    agent = agent_of(MOTSIVRPG, mdp, num_episodes=1, num_small=1)
    state = state_at(agent, mdp, previous, theta)
    first = torch.tensor([0])
    tracked = torch.stack([after(agent, state, rollout, n[None], first).objectives for n in torch.arange(len(probabilities))])
    change = mdp.value(mdp.softmax_policy(theta)) - mdp.value(mdp.softmax_policy(previous))
    assert_exact(probabilities @ tracked, state.objectives + change)
    assert_misses(probabilities @ tracked, state.objectives - change, by=1e-2)


@EVERY_K
def test_with_other_episodes_as_controls_the_change_of_j_stays_exact(num_objectives):
    """Batches of two, where the mean reward of the other is subtracted; far less noise."""
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    mdp = replace(mdp, terminal=torch.tensor([False, True]), initial=torch.tensor([1.0, 0.0], dtype=F64))  # of random lengths
    rollout, probabilities = mdp.enumerate(theta)
    change = mdp.value(mdp.softmax_policy(theta)) - mdp.value(mdp.softmax_policy(previous))
    spreads = {}
    for weighting in ("doubly_robust", "per_step"):
        agent = agent_of(MOTSIVRPG, mdp, weighting=weighting)
        moments = over_pairs(
            lambda pair, agent=agent: torch.cat([(x := agent.change_of_returns(pair, previous)), (x - change).square()]),
            rollout,
            probabilities,
        )
        assert_exact(moments[:num_objectives], change)
        spreads[weighting] = float(moments[num_objectives:].sum())
    assert spreads["doubly_robust"] < spreads["per_step"]


@EVERY_K
def test_given_the_batch_of_j_the_direction_follows_the_slopes_of_its_own_step(num_objectives):
    """E[d_t | A] = d_{t−1} + ∇J(θ_t)ᵀ c_t − ∇J(θ_{t−1})ᵀ c_{t−1}."""
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    agent = agent_of(MOTSIVRPG, mdp, num_episodes=1, num_small=1, weighting="per_step")
    state = state_at(agent, mdp, previous, theta)
    for n in SEEN:
        slopes = after(agent, state, rollout, n[None], n[None]).slopes
        exact = state.direction + mdp.gradient(theta).T @ slopes - mdp.gradient(previous).T @ state.slopes
        assert_exact(expected_direction(agent, state, rollout, probabilities, n[None]), exact)


@EVERY_K
def test_the_lagged_direction_follows_the_slopes_of_the_step_before(num_objectives):
    """One batch for both: E[d_t] = d_{t−1} + ∇J(θ_t)ᵀ c_{t−1} − ∇J(θ_{t−1})ᵀ c_{t−2}."""
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    agent = agent_of(MOTSIVRPG, mdp, num_episodes=1, num_small=1, weighting="per_step", batches="lagged")
    state = state_at(agent, mdp, previous, theta)
    exact = state.direction + mdp.gradient(theta).T @ state.slopes - mdp.gradient(previous).T @ state.slopes_before
    found = [after(agent, state, rollout, n[None], n[None]) for n in torch.arange(len(probabilities))]
    assert_exact(probabilities @ torch.stack([s.direction for s in found]), exact)
    restart = state._replace(iteration=agent.restart_every)
    found = [after(agent, restart, rollout, n[None], n[None]) for n in torch.arange(len(probabilities))]
    assert_exact(probabilities @ torch.stack([s.direction for s in found]), mdp.gradient(theta).T @ state.slopes)


@EVERY_K
def test_mopg_and_a_restart_have_the_gradient_of_the_slopes_of_the_other_batch(num_objectives):
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    for agent in (agent_of(MOPG, mdp, num_episodes=1), agent_of(MOTSIVRPG, mdp, num_episodes=1, num_small=1)):
        state = state_at(agent, mdp, previous, theta, iteration=0)
        for n in SEEN:
            following = after(agent, state, rollout, n[None], n[None])
            returns = discounted_return(columns_at(rollout, n[None]).rewards, mdp.gamma)[0]
            assert_exact(following.objectives, returns)
            assert_exact(following.slopes, torch.exp(-returns))
            direction = expected_direction(agent, state, rollout, probabilities, n[None])
            assert_exact(direction, mdp.gradient(theta).T @ following.slopes)


@EVERY_K
def test_the_gradient_of_the_expected_utility_is_exact(num_objectives):
    """ESR: ∇ Σ_τ p(τ | θ) u(R⃗(τ)) by autograd through the probabilities; it is not that of f(E[R⃗])."""
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    agent = agent_of(MOPG, mdp, num_episodes=1, criterion="esr")
    state = state_at(agent, mdp, previous, theta)
    utilities = -torch.exp(-discounted_return(rollout.rewards, mdp.gamma)).sum(-1)

    def expected_utility(x):
        return (probabilities * log_ratio(mdp.softmax_log_prob, x, rollout).sum(0).exp()) @ utilities

    exact = torch.func.grad(expected_utility)(theta)
    found = [after(agent, state, rollout, n[None], n[None]).direction for n in torch.arange(len(probabilities))]
    assert_exact(probabilities @ torch.stack(found), exact)
    objectives = mdp.value(mdp.softmax_policy(theta))
    assert_misses(exact, mdp.gradient(theta).T @ torch.exp(-objectives), by=1e-4)


@EVERY_K
def test_entropy_is_a_reward_whose_gradient_is_exact(num_objectives):
    """∇(⟨c, J⟩ + τ E[Σ γ^t H(π(·|s_t))]); also weighted back, with the surprise of the previous policy."""
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    tau = 0.3
    agent = agent_of(MOTSIVRPG, mdp, num_episodes=1, num_small=1, weighting="per_step", ent_coef=tau)
    state = state_at(agent, mdp, previous, theta)

    def objective(x, slopes):
        policy = mdp.softmax_policy(x)
        entropies = -(mdp.occupancy(policy) * policy.log()).sum()
        return mdp.value(policy) @ slopes + tau * entropies

    n = torch.tensor([5])
    slopes = after(agent, state, rollout, n, n).slopes
    gradient = torch.func.grad(objective)
    exact = state.direction + gradient(theta, slopes) - gradient(previous, state.slopes)
    assert_exact(expected_direction(agent, state, rollout, probabilities, n), exact)


# ------------------------------------------------------------------ wrong variants must be seen to be wrong


def inverted(mdp, previous):
    """The change of J with the ratio upside down, π_t/π_{t−1}."""

    def change(rollout, _):
        ratios = log_ratio(mdp.softmax_log_prob, previous, rollout)
        return (discounted_return(rollout.rewards, mdp.gamma, 1.0 - importance_weights(-ratios))).mean(0)

    return change


@EVERY_K
def test_wrong_variants_are_seen(num_objectives, monkeypatch):
    mdp, previous, theta, rollout, probabilities = problem(num_objectives)
    columns = torch.arange(len(probabilities))
    agent = agent_of(MOTSIVRPG, mdp, num_episodes=1, num_small=1, weighting="per_step")
    state = state_at(agent, mdp, previous, theta)
    change = mdp.value(mdp.softmax_policy(theta)) - mdp.value(mdp.softmax_policy(previous))
    upside_down = per_trajectory(lambda episode: inverted(mdp, previous)(episode, None), rollout)
    assert_misses(probabilities @ upside_down, change, by=1e-2)

    # One batch for J and the direction, with the current slopes.
    together = torch.stack([after(agent, state, rollout, n[None], n[None]).direction for n in columns])
    slopes = torch.stack([after(agent, state, rollout, n[None], n[None]).slopes for n in columns])
    target = state.direction + mdp.gradient(theta).T @ (probabilities @ slopes) - mdp.gradient(previous).T @ state.slopes
    assert_misses(probabilities @ together, target)

    # The weight at the score in place of the reward: ω_k ∇ log π_k Σ_{h≥k} r_h.
    n = torch.tensor([5])
    exact = state.direction + mdp.gradient(theta).T @ slopes[5] - mdp.gradient(previous).T @ state.slopes

    def at_the_score(self, log_ratio):
        return importance_weights(log_ratio) * (self.rewards.flip(0).cumsum(0).flip(0) - self.baseline)

    with monkeypatch.context() as patched:
        patched.setattr("rlopt.estimators.gradients.RewardToGo.__call__", at_the_score)
        assert_misses(expected_direction(agent, state, rollout, probabilities, n), exact, by=1e-4)

    # The previous gradient taken at the parameters that sampled: nothing is weighted back.
    with monkeypatch.context() as patched:
        patched.setattr(motsivrpg, "corrected_momentum", lambda d, g, c, eta: d + g)
        assert_misses(expected_direction(agent, state, rollout, probabilities, n), exact)
    assert miss(expected_direction(agent, state, rollout, probabilities, n), exact) < 1e-10
