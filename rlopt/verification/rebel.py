"""REBEL: are its first steps policy gradients, and its solved regressions the closed forms, on MDPs that can be listed?

With all that can happen as data, each weighted by its probability, a loss is its exact expectation. Only gradients at θ_t are
linear in returns, so that probabilities can go into these; minimisers do not depend on the weights of pairs.

Source: the identities of Gao et al., arXiv:2404.16767, and of natural gradients (Kakade, 2001).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from rlopt.agents.rebel import REBEL, AdvantageBatch, GroupBatch, Mode
from rlopt.branching import depth_probabilities
from rlopt.device import threads_for
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv
from rlopt.estimators import rebel_loss
from rlopt.policies import contrasts
from rlopt.policies.contrasts import reference
from rlopt.policies.distributions import Categorical
from rlopt.policies.functional import Functional
from rlopt.verification.checks import Check
from rlopt.verification.exact import FIXTURES, TOLERANCE, Fixture

ETA = 0.7
NUM_ITERATIONS, LONG = 20, 100.0  # solved regressions, and their η, after which a policy is as good as the best one
NUM_BATCHES, NUM_EPISODES = 40, 60  # of whole agents; the latter divided into groups
LIMIT = 5.0  # standard errors


class Table(nn.Module):
    """A logit for every action and a value in every state, as agents see an actor-critic."""

    squash, closed_form = False, True

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = nn.Parameter(logits.clone())  # [S, A]
        self.values = nn.Parameter(torch.zeros_like(logits[:, 0]))
        self.policy = SimpleNamespace()

    def heads(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        return self.logits[observations], self.values[observations]

    def distribution_of(self, head: Tensor) -> Categorical:
        return Categorical.from_logits(head)

    def actor(self, observations: Tensor) -> Categorical:
        return self.distribution_of(self.heads(observations)[0])


def rebel_checks() -> list[Check]:
    """First gradients of the three modes, pairs and groups, solved regressions; then whole agents, sampled."""
    checks = [check for fixture in FIXTURES for check in fixture_checks(fixture)]
    modes: tuple[Mode, ...] = ("advantage", "trajectory", "branched")
    return checks + [sampled_check(mode) for mode in modes]


def fixture_checks(fixture: Fixture) -> list[Check]:
    """All that is exact, on one MDP."""
    mdp, name = fixture.mdp, fixture.name
    undiscounted = dataclasses.replace(mdp, gamma=1.0)
    theta = fixture.parameters()[0]
    logits = theta.view(mdp.num_states, mdp.num_actions)
    q = mdp.state_action_values(mdp.softmax_policy(theta))[0]
    tilted = torch.softmax(torch.log_softmax(logits, -1) + ETA * q, -1)
    by_groups, by_advantages = solved_groups(_agent(mdp, logits), logits, q, ETA), solved_advantages(logits, q, ETA)
    best = mdp.optimal_value()
    return [
        _check(f"rebel, advantages: gradient, {name}", mdp.gradient(theta), first_of_advantages(mdp, logits)),
        _check(f"rebel, trajectories: gradient, {name}", undiscounted.gradient(theta), first_of_trajectories(mdp, logits)),
        _check(f"rebel, branches: gradient, {name}", mdp.gradient(theta), first_of_branches(mdp, logits)),
        _check(f"rebel: pairs are groups, {name}", *pairs_and_groups(theta)),
        _check(f"rebel, groups: solved is π e^(ηQ), {name}", tilted, torch.softmax(by_groups, -1)),
        _check(f"rebel, advantages: solved is π e^(ηA), {name}", tilted, torch.softmax(by_advantages, -1)),
        _check(f"rebel: solved is a natural gradient, {name}", natural_step(logits, q, ETA), by_advantages - logits),
        _check(f"rebel: {NUM_ITERATIONS} solved reach the best, {name}", theta.new_tensor(best), improved(mdp)),
    ]


# ------------------------------------------------------------------ first gradients


def first_of_advantages(mdp: TabularMDP, logits: Tensor) -> Tensor:
    """What one step of `REBEL.descend` adds to the logits, [S·A]; rows are all (h, s, a), with exact advantages."""
    policy = logits.softmax(-1)
    values = mdp.state_action_values(policy)
    advantages = values - (values * policy).sum(-1, keepdim=True)
    weights = _powers(mdp)[:, None, None] * reached(mdp, policy).unsqueeze(-1) * policy
    table, agent = Table(logits), _agent(mdp, logits)
    _, states, actions = _indices(*values.shape)
    head = table.heads(states)[0].detach()
    past = reference(table.distribution_of(head), head, actions)
    zeros = torch.zeros_like(head[:, 0])
    rows = AdvantageBatch(
        observations=states,
        actions=actions,
        log_probs=table.actor(states).log_prob(actions).detach(),
        head=past.head,
        scores=past.scores,
        advantages=(weights * advantages).flatten() * len(zeros),
        values=zeros,
        targets=zeros,
    )
    start = agent.functional.init()
    agent.descent.begin(start, {}, 1.0)
    agent.descend(rows, agent.functional.bind(start), logits.new_tensor(ETA))
    return (agent.descent.theta() - start)[: logits.numel()]


def first_of_trajectories(mdp: TabularMDP, logits: Tensor) -> Tensor:
    """Minus the gradient of `REBEL.group_loss`, [S·A]; groups are all pairs of episodes that begin in the same state."""
    rollout, probabilities = mdp.enumerate(logits.flatten())
    starts = rollout.states[0]  # type: ignore[index]
    pairs = torch.cartesian_prod(torch.arange(len(starts)), torch.arange(len(starts)))
    pairs = pairs[starts[pairs[:, 0]] == starts[pairs[:, 1]]]
    weights = probabilities[pairs].prod(1) / mdp.initial.to(logits)[starts[pairs[:, 0]]]
    agent, members = _agent(mdp, logits), pairs.flatten()
    table = _table(agent)
    observations, actions, mask = rollout.observations[:, members], rollout.actions[:, members], rollout.mask[:, members]  # type: ignore[index]
    log_probs = table.actor(observations.flatten()).log_prob(actions.flatten()).detach().view(mask.shape)
    paired = dataclasses.replace(
        rollout,
        states=rollout.states[:, members],  # type: ignore[index]
        actions=actions,
        log_probs=log_probs,
        rewards=rollout.rewards[:, members] * (weights * len(pairs)).repeat_interleave(2),
        terminated=rollout.terminated[:, members],
        truncated=rollout.truncated[:, members],
        mask=mask,
    )
    return _descent_direction(agent, agent.episode_batch(paired))


def first_of_branches(mdp: TabularMDP, logits: Tensor) -> Tensor:
    """The same of pairs of actions in every state and step, with exact values, times P(h < L) Σ_h γ^h."""
    policy = logits.softmax(-1)
    depths = torch.as_tensor(depth_probabilities(None, mdp.gamma, mdp.horizon))
    kept = depths[:, None] * reached(mdp, policy)  # P(h) P(s_h = s, h < L)
    values = mdp.state_action_values(policy)
    times, states, first, second = _indices(*values.shape, mdp.num_actions)
    weights = kept[times, states] * policy[states, first] * policy[states, second]
    agent = _agent(mdp, logits)
    batch = _actions_in_groups(logits, states, torch.stack([first, second], 1))
    returns = torch.stack([values[times, states, first], values[times, states, second]], 1) * (weights * len(weights))[:, None]
    return _descent_direction(agent, batch._replace(returns=returns.flatten())) * _powers(mdp).sum()


def reached(mdp: TabularMDP, policy: Tensor) -> Tensor:
    """P(s_h = s, h < L), [H, S], L the length of an episode."""
    alive, rows = mdp.initial.to(policy), []
    for _ in range(mdp.horizon):
        rows.append(alive)
        alive = torch.einsum("s,sa,sap->p", alive, policy, mdp.transitions) * ~mdp.terminal
    return torch.stack(rows)


# ------------------------------------------------------------------ losses and what solves them


def pairs_and_groups(theta: Tensor) -> tuple[Tensor, Tensor]:
    """The mean over groups of (d_i − d_j)² over ordered pairs, and `rebel_loss`; groups of 2, 3 and 4."""
    generator = torch.Generator().manual_seed(0)
    new, old, rewards = torch.randn(3, 9, generator=generator, dtype=theta.dtype)
    groups = torch.tensor([0, 0, 1, 1, 1, 2, 2, 2, 2])
    residuals = new - old - ETA * rewards
    means = []
    for group in range(3):
        d = residuals[groups == group]
        means.append((d[:, None] - d).square().sum() / (len(d) * (len(d) - 1)))
    return torch.stack(means).mean(), rebel_loss(new, old, rewards, groups, ETA)


def solved_groups(agent: REBEL, logits: Tensor, values: Tensor, eta: float) -> Tensor:
    """The logits [S, A] that minimise `REBEL.group_loss` over all pairs of actions in every state: a quadratic."""
    num_states, num_actions = logits.shape
    pairs = torch.combinations(torch.arange(num_actions))
    states = torch.arange(num_states).repeat_interleave(len(pairs))
    actions = pairs.repeat(num_states, 1)
    batch = _actions_in_groups(logits, states, actions)._replace(returns=values[states[:, None], actions].flatten())

    def loss(flat: Tensor) -> Tensor:
        table = flat.view_as(logits)
        module = SimpleNamespace(actor=lambda rows: Categorical.from_logits(table[rows]))
        return agent.group_loss(module, batch, logits.new_tensor(eta))[0]

    return _minimised(loss, logits)


def solved_advantages(logits: Tensor, values: Tensor, eta: float) -> Tensor:
    """The logits [S, A] that minimise E_{a ~ π_t} of the squared residual of `REBEL.descend` in every state."""
    old = logits.log_softmax(-1).exp()
    states, actions = _indices(*logits.shape)
    advantages = values - (old * values).sum(-1, keepdim=True)
    past = reference(Categorical.from_logits(logits[states]), logits[states], actions)

    def loss(flat: Tensor) -> Tensor:
        residuals = contrasts.contrast(past, flat.view_as(logits)[states])[0] - eta * advantages[states, actions]
        return old[states, actions] @ residuals.square()

    return _minimised(loss, logits)


def natural_step(logits: Tensor, values: Tensor, eta: float) -> Tensor:
    """η F† ∇ of Σ_s E_{a ~ π}[Q(s, a)] at the logits, F the Fisher information of all states together; [S, A]."""
    old = logits.log_softmax(-1).exp()

    def objective(flat: Tensor) -> Tensor:
        return (flat.view_as(logits).softmax(-1) * values).sum()

    scores = torch.func.jacrev(lambda flat: flat.view_as(logits).log_softmax(-1).flatten())(logits.flatten())
    fisher = scores.T @ (old.flatten()[:, None] * scores)
    gradient = torch.func.grad(objective)(logits.flatten())
    return eta * (torch.linalg.pinv(fisher, hermitian=True) @ gradient).view_as(logits)


def improved(mdp: TabularMDP) -> Tensor:
    """J after solved regressions on exact values of a policy with logits for every step; NaN if J fell once."""
    logits = torch.zeros(mdp.horizon, mdp.num_states, mdp.num_actions, dtype=torch.float64)
    agent, worth = _agent(mdp, logits[0]), mdp.value(logits.softmax(-1))
    for _ in range(NUM_ITERATIONS):
        values = mdp.state_action_values(logits.softmax(-1))
        logits = solved_groups(agent, logits.flatten(0, 1), values.flatten(0, 1), LONG).view_as(logits)
        before, worth = worth, mdp.value(logits.softmax(-1))
        if worth < before - TOLERANCE:
            return torch.full_like(worth, math.nan)
    return worth


# ------------------------------------------------------------------ whole agents


def sampled_check(mode: Mode) -> Check:
    """The mean over many batches of what one step of gradient descent adds to a network's θ, in standard errors."""
    mdp = FIXTURES[0].mdp if mode == "branched" else dataclasses.replace(FIXTURES[0].mdp, gamma=1.0)
    agent = REBEL(
        "MlpPolicy",
        TabularVectorEnv(mdp, NUM_EPISODES),
        mode=mode,
        eta=ETA,
        eta_mode="fixed",
        num_groups=NUM_EPISODES // 3,
        group_size=3,
        horizon=mdp.horizon,
        gamma=mdp.gamma,
        gae_lambda=1.0,
        n_steps=mdp.horizon,
        batch_size=mdp.horizon * NUM_EPISODES,
        n_epochs=1,
        normalize_advantage=False,
        vf_coef=0.0,
        max_grad_norm=1e9,
        target_kl=None,
        learning_rate=1.0,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [4], "optimizer_class": torch.optim.SGD},
    )
    agent.bootstrap_truncation = False  # what is known exactly ends at the horizon
    collector, start = agent.collector, agent.state.theta
    assert collector is not None
    with threads_for(start):
        steps = [agent.step(agent.state, collector)[0].theta - start for _ in range(NUM_BATCHES)]
        exact = network_gradient(agent, mdp).double()
    # Advantages are a mean over steps; branches part at h with P(h) = γ^h / Σ γ^h.
    scale = {"advantage": mdp.horizon, "trajectory": 1.0, "branched": float(_powers(mdp).sum())}[mode]
    found = torch.stack(steps).double() * scale
    errors = found - exact
    moving = errors.std(0) > 1e-9
    z = errors.mean(0) / (errors.std(0).clamp_min(1e-300) / math.sqrt(NUM_BATCHES))
    name = f"rebel, {mode}: first step"
    return Check(name, float(exact.norm()), float(found.mean(0).norm()), float(z[moving].abs().max()), True, LIMIT)


def network_gradient(agent: REBEL, mdp: TabularMDP) -> Tensor:
    """∇J [d] of the agent's own network."""
    states = torch.arange(mdp.num_states).repeat_interleave(mdp.num_actions)
    actions = torch.arange(mdp.num_actions).repeat(mdp.num_states)

    def value(theta: Tensor) -> Tensor:
        log_probs = agent.functional(theta, states)[0].log_prob(actions)
        return mdp.value(log_probs.double().exp().view(mdp.num_states, mdp.num_actions))

    return torch.func.grad(value)(agent.state.theta)


# ------------------------------------------------------------------ parts


def _agent(mdp: TabularMDP, logits: Tensor) -> REBEL:
    """An agent whose policy is a table, and whose steps are plain gradient descent."""
    agent = REBEL(
        "MlpPolicy",
        TabularVectorEnv(mdp),
        group_size=2,
        n_steps=2,
        batch_size=2,
        vf_coef=0.0,
        max_grad_norm=1e9,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [], "optimizer_class": torch.optim.SGD},
    )
    agent.functional = Functional(Table(logits))
    return agent


def _table(agent: REBEL) -> Table:
    module = agent.functional.module
    assert isinstance(module, Table)
    return module


def _powers(mdp: TabularMDP) -> Tensor:
    """γ^h, [H]."""
    return mdp.gamma ** torch.arange(mdp.horizon, dtype=torch.float64)


def _indices(*sizes: int) -> tuple[Tensor, ...]:
    """Of all cells of an array, [cells] for each of its dimensions."""
    return torch.cartesian_prod(*[torch.arange(size) for size in sizes]).unbind(1)


def _actions_in_groups(logits: Tensor, states: Tensor, actions: Tensor) -> GroupBatch:
    """Groups of G actions [P, G] in states [P], their returns still 0."""
    rows, taken = states.repeat_interleave(actions.shape[1]), actions.flatten()
    numbers = torch.arange(len(taken))
    log_probs = logits.log_softmax(-1)[rows, taken]
    groups = numbers // actions.shape[1]
    return GroupBatch(rows, taken, log_probs, numbers, torch.zeros_like(log_probs), groups)


def _descent_direction(agent: REBEL, batch: GroupBatch) -> Tensor:
    """Minus the gradient of the group loss at the table's logits, [S·A]."""
    table = _table(agent)
    loss, _ = agent.group_loss(table, batch, table.logits.new_tensor(ETA))
    return -torch.autograd.grad(loss, table.logits)[0].flatten()


def _minimised(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    """Where a quadratic in the logits is smallest, nearest to these; like `logits`. A second step moves only what is none."""
    flat = logits.detach().flatten()
    for _ in range(2):
        hessian, gradient = torch.func.hessian(loss)(flat), torch.func.grad(loss)(flat)
        flat = flat - torch.linalg.pinv(hessian, hermitian=True) @ gradient
    return flat.view_as(logits)


def _check(quantity: str, exact: Tensor, found: Tensor) -> Check:
    error = float((found - exact).abs().max())
    return Check(quantity, float(exact.norm()), float(found.norm()), error, False, TOLERANCE)
