"""Branched episodes: members of a group share an episode up to a step, and part there with actions of their own.

For REBEL on single steps (REFUEL, Gao et al., arXiv:2410.04612): the differences R_{h:} − R'_{h:} of two branches from one
state s_h are unbiased for Q(s_h, a) − Q(s_h, a'), whatever the dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlopt.acting import Actor
from rlopt.arguments import check_number
from rlopt.collector import Collector
from rlopt.envs.base import EnvironmentFault
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.episodes import MAX_EPISODE_STEPS, Assignment, batch_seeds
from rlopt.rollout import Observations, Rollout, map_observations

ROUNDING = 1e-9  # how far probabilities may be from adding up to 1
NEGLIGIBLE = 1e-12  # powers of γ below it are left out
# How far observations of members may be apart: rows of one matrix product differ in their last digits by their place.
RELATIVE, ABSOLUTE = 1e-4, 1e-6


class Branches(NamedTuple):
    """One step of each branch and what came of it; B branches, groups that ended before they parted left out.

    Attributes:
        observations: s_h, [B, *obs]; the same in a group.
        actions: a_h, [B, *act].
        log_probs: ln π_θ(a_h | s_h), [B], of the policy that sampled.
        returns: R_{h:} = Σ_{t≥h} γ^{t−h} r_t, [B], or [B, K].
        groups: int64 [B], g: which group; ascending.
        depths: h of all P groups, [P] int64.
        kept: [P] bool, groups whose episode had a step h.
        rollout: the episodes they are of, P·G columns; rows before h are copies of the group's first column.
    """

    observations: Observations
    actions: Tensor
    log_probs: Tensor
    returns: Tensor
    groups: Tensor
    depths: Tensor
    kept: Tensor
    rollout: Rollout


def branched_episodes(
    collector: Collector,
    theta: Tensor,
    num_groups: int,
    depths: int | Sequence[float] | None = None,
    horizon: int | None = None,
    gamma: float = 1.0,
    stream: str = "branches",
) -> Branches:
    """P = `num_groups` groups of episodes under π_θ, each of which parts at a step h drawn beforehand.

    All members begin from one seed and do what the first of them does until step h; from there each has its own action
    noise. h comes from a fixed distribution before anything is played, and a group whose episode ends earlier is dropped:
    to draw h from the realised length would condition a branch on its own future, and bias it.

    Args:
        collector: of environments wrapped in `Paired`.
        theta: [d].
        num_groups: P.
        depths: of h, see `depth_probabilities`.
        horizon: steps after which an episode is truncated; None leaves its end to the environment.
        gamma: γ in [0, 1], from step h on.
        stream: whose random numbers to use.

    Raises:
        ValueError: environments without groups, `depths` that are no distribution; what `Collector.episodes` raises.
        EnvironmentFault: members differ before they parted: the environments are not determined by their seed.
    """
    check_number("num_groups", num_groups, positive=True, whole=True)
    check_number("gamma", gamma, at_least=0, at_most=1)
    weights = depth_probabilities(depths, gamma, horizon)
    size = collector.envs.group_size
    if size < 2:
        raise ValueError(f"collector: expected environments in groups (wrapped in Paired), got {collector.envs.name} alone")
    _, seed = batch_seeds(collector.entropy, f"{stream} depths", collector.batches.get(stream, 0))
    drawn = np.random.default_rng(seed).choice(len(weights), num_groups, p=weights)

    def around(actor: Actor, assignment: Assignment) -> Actor:
        return SharedUntil(actor, assignment, drawn, size)

    rollout = collector.episodes(theta, num_groups * size, horizon, stream, around)
    _check_shared(rollout, drawn, size, collector.envs.name)
    return _branches(rollout, torch.from_numpy(drawn).to(rollout.mask.device), size, gamma)


def depth_probabilities(depths: int | Sequence[float] | None, gamma: float, horizon: int | None = None) -> Array:
    """P(h) of h = 0, 1, …, the step at which a group parts, [D].

    Given that a group is kept, the mean over groups of Σ_i Â_i ∇ln π(a_i | s_h) / G, with Â leave-one-out, is

        Σ_h P(h) E[1(h < L) Q_h(s_h, a_h) ∇ln π(a_h | s_h)] / P(h < L),    L the length of an episode

    so that P(h) ∝ γ^h makes it ∇J_γ, and a uniform h with γ = 1 makes it ∇J, but for a factor.

    Args:
        depths: D for h uniform on 0 … D − 1; the probabilities themselves; or None for P(h) ∝ γ^h.
        gamma: γ in [0, 1], of the returns.
        horizon: steps after which an episode is cut: no later h is drawn where `depths` is None.

    Raises:
        ValueError: no distribution; None where γ = 1 and there is no horizon.
    """
    if depths is None:
        if gamma == 1 and horizon is None:
            raise ValueError("depths: expected how deep groups part, where gamma=1 and horizon=None leave it open, got None")
        powers = gamma ** np.arange(horizon or MAX_EPISODE_STEPS, dtype=np.float64)
        powers = powers[powers > NEGLIGIBLE]
        return powers / powers.sum()
    if isinstance(depths, int):
        check_number("depths", depths, positive=True, whole=True)
        return np.full(depths, 1.0 / depths)
    weights = np.asarray(depths, np.float64)
    if weights.ndim != 1 or not len(weights) or (weights < 0).any() or not abs(weights.sum() - 1) <= ROUNDING:
        raise ValueError(f"depths: expected a positive integer or probabilities that add up to 1, got {depths!r}")
    return weights / weights.sum()


class SharedUntil:
    """Acts for groups: until its depth every member does what the first does, then what its own noise says.

    Args:
        actor: of the policy.
        assignment: who plays which episode.
        depths: h of each group, [P].
        group_size: G.
    """

    def __init__(self, actor: Actor, assignment: Assignment, depths: Array, group_size: int):
        self.actor, self.assignment, self.depths, self.group_size = actor, assignment, depths, group_size
        rows = np.arange(assignment.envs.num_envs)
        self._leaders = rows - rows % group_size

    def __call__(self, observations: ArrayTree, noise: Array) -> Array:
        actions = self.actor(observations, noise)
        followed = self.assignment.times < self.depths[self.assignment.episodes // self.group_size]
        sources = np.where(followed, self._leaders, np.arange(len(actions)))
        return actions[sources]


def _branches(rollout: Rollout, depths: Tensor, size: int, gamma: float) -> Branches:
    columns = torch.arange(rollout.mask.shape[1], device=rollout.mask.device)
    depth = depths.repeat_interleave(size)
    last = len(rollout.mask) - 1
    played = (depth <= last) & rollout.mask[depth.clamp(max=last), columns]
    columns, depth = columns[played], depth[played]
    after = torch.arange(last + 1, device=columns.device)[:, None] - depth
    discounts = torch.where(after >= 0, gamma ** after.clamp_min(0).to(rollout.rewards.dtype), 0.0)
    rewards = rollout.rewards[:, columns]  # 0 on padding
    return Branches(
        observations=map_observations(lambda states: states[depth, columns], rollout.states),
        actions=rollout.actions[depth, columns],
        log_probs=rollout.log_probs[depth, columns],
        returns=(discounts.view(*discounts.shape, *[1] * (rewards.ndim - 2)) * rewards).sum(0),
        groups=columns // size,
        depths=depths,
        kept=played.view(-1, size)[:, 0],
        rollout=rollout,
    )


def _check_shared(rollout: Rollout, depths: Array, size: int, name: str) -> None:
    """Raises EnvironmentFault unless members saw the same up to the step at which they parted."""
    times = torch.arange(len(rollout.mask) + 1, device=rollout.mask.device)
    shared = times[:, None] <= torch.from_numpy(depths).to(times.device)  # [T + 1, P]
    for states in rollout.states.values() if isinstance(rollout.states, dict) else [rollout.states]:
        members = states.unflatten(1, (-1, size))  # [T + 1, P, G, *obs]
        leaders = members[:, :, :1].expand_as(members)
        if members.dtype.is_floating_point:
            same = torch.isclose(members, leaders, RELATIVE, ABSOLUTE, equal_nan=True)
        else:
            same = members == leaders
        differs = ~same.flatten(2).all(2) & shared
        if bool(differs.any()):
            time, group = differs.nonzero()[0].tolist()
            raise EnvironmentFault(
                f"{name}: members of group {group} saw different things after {time} steps of the same actions, before they "
                f"parted at step {depths[group]}; a seed does not determine what the environment does"
            )
