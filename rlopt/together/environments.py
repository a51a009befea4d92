"""Native vector environments of several agents as one, which draws from each agent's own random numbers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor

from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv
from rlopt.envs.row_generators import BlockGenerators, RowGenerators

OF_COPIES = {"states", "steps", "ended", "infos", "_np_random", "_np_random_seed"}


def why_not_joined(members: Sequence[FiniteHorizonVectorEnv]) -> str | None:
    """Why one object cannot take over the copies of all, or None if it can."""
    first = members[0]
    if not (first.joinable and first.draws_by_copy):
        return f"{type(first).__name__} keeps more of its copies than their states"
    if len({id(member) for member in members}) < len(members):
        return "two agents have the same environments"
    if any(isinstance(member.np_random, RowGenerators) for member in members):
        return "copies of their environments have seeds of their own"
    if any(not _alike(first, member) for member in members[1:]):
        return "their environments differ by more than their seed"
    return None


def joined(members: Sequence[FiniteHorizonVectorEnv]) -> FiniteHorizonVectorEnv:
    """The copies of all members, in their order, where they are; what each of them draws it goes on to draw.

    Args:
        members: see `why_not_joined`; reset before.
    """
    joint = copy.copy(members[0])
    joint.num_envs = sum(member.num_envs for member in members)
    joint.observation_space = batch_space(joint.single_observation_space, joint.num_envs)
    joint.action_space = batch_space(joint.single_action_space, joint.num_envs)
    joint.states = np.concatenate([_states(member) for member in members])
    joint.steps = np.concatenate([member.steps for member in members])
    joint.ended = np.concatenate([member.ended for member in members])
    generators: Any = BlockGenerators([member.np_random for member in members], [member.num_envs for member in members])
    joint.np_random = generators
    return joint


def parted(joint: FiniteHorizonVectorEnv, members: Sequence[FiniteHorizonVectorEnv]) -> None:
    """Put every member where its copies are."""
    ends = np.cumsum([member.num_envs for member in members])[:-1]
    pieces = (np.split(array, ends) for array in (_states(joint), joint.steps, joint.ended))
    for member, states, steps, ended in zip(members, *pieces, strict=True):
        member.states, member.steps, member.ended = states.copy(), steps.copy(), ended.copy()


def _states(env: FiniteHorizonVectorEnv) -> Any:
    assert env.states is not None
    return env.states


def _alike(first: FiniteHorizonVectorEnv, second: FiniteHorizonVectorEnv) -> bool:
    """Whether both are the same problem, with as many copies."""
    mine, theirs = ({name: value for name, value in vars(env).items() if name not in OF_COPIES} for env in (first, second))
    if type(first) is not type(second) or mine.keys() != theirs.keys():
        return False
    return all(_equal(mine[name], theirs[name]) for name in mine)


def _equal(first: Any, second: Any) -> bool:
    """Whether two parts of a problem are the same, entry by entry."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_equal, first, second))
    if dataclasses.is_dataclass(first):
        return _equal(list(vars(first).values()), list(vars(second).values()))
    return bool(first == second)
