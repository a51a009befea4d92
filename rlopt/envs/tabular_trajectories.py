"""Trajectories of a tabular MDP as rollouts: all of them, with their probabilities, or a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlopt.rollout import Rollout

if TYPE_CHECKING:
    from rlopt.envs.tabular import TabularMDP

# The largest uniform number that is used: far enough below 1 that adding a row's number cannot round it up to the next.
LARGEST = 1 - 2.0**-40


def cumulative_rows(probabilities: Tensor) -> Tensor:
    """The cumulative distributions of R rows [R, M], row i shifted by i, as one ascending table [R·M].

    One binary search for i + u then draws from row i; see `draw`.
    """
    sums = probabilities.cumsum(-1)
    # Dividing makes the last possible outcome end at exactly 1, so that none of probability 0 can be drawn.
    return (sums / sums[:, -1:] + torch.arange(len(sums))[:, None]).flatten()


def draw(table: Tensor, rows: Tensor, num_outcomes: int, generator: torch.Generator) -> Tensor:
    """One outcome in [0, M) from each of the distributions `rows` [n] of a table of `cumulative_rows`, [n]."""
    uniform = torch.rand(len(rows), generator=generator, dtype=torch.float64).clamp(max=LARGEST)
    return torch.searchsorted(table, rows + uniform, right=True) - rows * num_outcomes


def sample_trajectories(mdp: TabularMDP, policy: Tensor, num: int, generator: torch.Generator) -> Rollout:
    """`num` episodes under a policy [H, S, A], one a column."""
    num_states, num_actions, horizon = mdp.num_states, mdp.num_actions, mdp.horizon
    first, following = cumulative_rows(mdp.initial[None]), cumulative_rows(mdp.transitions.flatten(0, 1))
    choices = cumulative_rows(policy.flatten(0, 1))
    states = torch.zeros(horizon + 1, num, dtype=torch.int64)
    actions = torch.zeros(horizon, num, dtype=torch.int64)
    states[0] = draw(first, torch.zeros(num, dtype=torch.int64), num_states, generator)
    for t in range(horizon):
        actions[t] = draw(choices, t * num_states + states[t], num_actions, generator)
        states[t + 1] = draw(following, states[t] * num_actions + actions[t], num_states, generator)
    return _as_rollout(mdp, policy, states, actions, mdp.terminal[states[1:]])


def enumerate_trajectories(mdp: TabularMDP, policy: Tensor) -> tuple[Rollout, Tensor]:
    """Every possible trajectory under a policy [S, A], one a column, and the probabilities [N]."""
    live = (mdp.initial > 0).nonzero().squeeze(1)
    states, actions = live[None], torch.zeros(0, len(live), dtype=torch.int64)
    probabilities = mdp.initial[live]
    # Prefixes of t steps that have not ended; those that have wait in `ended`, padded to full length.
    ended: list[tuple[Tensor, Tensor, Tensor]] = []
    for t in range(mdp.horizon):
        last_step = t == mdp.horizon - 1
        prefixes, actions_t, next_states = _continuations(mdp, states[-1], last_step)
        step = policy[states[-1][prefixes], actions_t]
        if not last_step:
            step = step * mdp.transitions[states[-1][prefixes], actions_t, next_states]
        probabilities = probabilities[prefixes] * step
        states = torch.cat([states[:, prefixes], next_states[None]])
        actions = torch.cat([actions[:, prefixes], actions_t[None]])
        over = mdp.terminal[next_states] | last_step
        padding = (0, 0, 0, mdp.horizon - 1 - t)
        pad = torch.nn.functional.pad
        ended.append((pad(states[:, over], padding), pad(actions[:, over], padding), probabilities[over]))
        states, actions, probabilities = states[:, ~over], actions[:, ~over], probabilities[~over]
    all_states, all_actions = torch.cat([e[0] for e in ended], 1), torch.cat([e[1] for e in ended], 1)
    by_time = policy.expand(mdp.horizon, *policy.shape)
    return _as_rollout(mdp, by_time, all_states, all_actions, mdp.terminal[all_states[1:]]), torch.cat([e[2] for e in ended])


def _continuations(mdp: TabularMDP, states: Tensor, last_step: bool) -> tuple[Tensor, Tensor, Tensor]:
    """From n states [n], all that can follow: indices into them, actions, next states; at the last step s' is s."""
    if last_step:
        prefixes = torch.arange(len(states)).repeat_interleave(mdp.num_actions)
        return prefixes, torch.arange(mdp.num_actions).repeat(len(states)), states[prefixes]
    prefixes, actions, next_states = (mdp.transitions[states] > 0).nonzero().unbind(1)
    return prefixes, actions, next_states


def _as_rollout(mdp: TabularMDP, policy: Tensor, states: Tensor, actions: Tensor, arrived: Tensor) -> Rollout:
    """States [H + 1, N] and actions [H, N] as a rollout; `arrived` [H, N] says where s_{t+1} is terminal."""
    arrivals = arrived.cumsum(0)
    mask = (arrivals - arrived.to(torch.int64)) == 0
    terminated = arrived & mask
    truncated = torch.zeros_like(mask)
    truncated[-1] = mask[-1] & ~terminated[-1]
    states = torch.cat([states[:1], states[1:].where(mask, 0)])
    actions = actions.where(mask, 0)
    log_probs = policy.log()[torch.arange(len(actions))[:, None], states[:-1], actions]
    rewards = mdp.rewards.detach()[states[:-1], actions]
    return Rollout(
        states=states,
        actions=actions,
        log_probs=log_probs.where(mask, 0),
        rewards=rewards.where(mask if rewards.ndim == 2 else mask[..., None], 0),
        terminated=terminated,
        truncated=truncated,
        mask=mask,
        final_rows=torch.zeros(0, dtype=torch.int64),
        final_observations=torch.zeros(0, dtype=torch.int64),
    )
