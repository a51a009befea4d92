"""The T-maze: a cue at the start of a corridor says which way to turn at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from rlopt.arguments import check_number
from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv, SingleCopy
from rlopt.envs.spaces import Array, ArrayTree

NORTH, SOUTH, EAST, WEST = range(4)
# What is seen, one-hot: a cue that points north or south, the corridor, the junction.
CUE_NORTH, CUE_SOUTH, CORRIDOR, JUNCTION = range(4)
RIGHT_TURN, WRONG_TURN = 4.0, -0.1


@dataclass(frozen=True)
class TMaze:
    """Cells 0 … L + 1 from west to east: the cue is seen in cell 0 alone, and cell L + 1 is the junction.

    East and west walk; there is a wall west of cell 0 and east of the junction. North and south at the junction end the
    episode, for +4 where the cue pointed and −0.1 otherwise; elsewhere they wait. All else pays 0.

    After Bakker, NeurIPS 2001, where waiting costs 0.1.

    Attributes:
        length: L, cells of the corridor between cue and junction.
        horizon: steps after which an episode is truncated.

    Raises:
        ValueError: an argument is out of range, or the junction cannot be left within the horizon.
    """

    length: int = 10
    horizon: int = 100

    def __post_init__(self) -> None:
        check_number("length", self.length, at_least=0, whole=True)
        check_number("horizon", self.horizon, at_least=self.length + 2, whole=True)

    def optimal_value(self, gamma: float = 1.0) -> float:
        """4 γ^{L+1}: walk L + 1 cells, and turn as the cue said."""
        return RIGHT_TURN * gamma ** (self.length + 1)

    def memoryless_value(self, gamma: float = 1.0) -> float:
        """γ^{L+1} (4 − 0.1)/2, the best that is possible without memory: the turn is a guess."""
        return 0.5 * (RIGHT_TURN + WRONG_TURN) * gamma ** (self.length + 1)


class TMazeVectorEnv(FiniteHorizonVectorEnv):
    """N copies of a `TMaze`; observations are one-hot, (cue north, cue south, corridor, junction).

    Args:
        problem: how long the corridor is.
        num_envs: N.
        privileged: show {"observation": the one-hot, "critic": the cue one-hot and the place in [0, 1]}.
    """

    joinable = True

    def __init__(self, problem: TMaze, num_envs: int = 1, privileged: bool = False):
        seen: spaces.Space = spaces.Box(0, 1, (4,), np.float32)
        space = spaces.Dict({"observation": seen, "critic": spaces.Box(0, 1, (3,), np.float32)}) if privileged else seen
        super().__init__(num_envs, problem.horizon, space, spaces.Discrete(4))
        self.problem, self.privileged = problem, privileged

    def _first_states(self, num: int) -> Array:
        """(cue, cell), [num, 2]; the cue is `NORTH` or `SOUTH`."""
        return np.stack([self.np_random.integers(2, size=num), np.zeros(num, np.int64)], 1)

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        cues, cells = states.T
        junction = self.problem.length + 1
        turned = (cells == junction) & (actions <= SOUTH)
        walk = (actions == EAST).astype(np.int64) - (actions == WEST)
        following = np.stack([cues, np.clip(cells + walk, 0, junction)], 1)
        return following, np.where(turned, np.where(actions == cues, RIGHT_TURN, WRONG_TURN), 0.0), turned

    def _observations(self, states: Array) -> ArrayTree:
        cues, cells = states.T
        junction = self.problem.length + 1
        kinds = np.where(cells == 0, cues, np.where(cells < junction, CORRIDOR, JUNCTION))
        seen = np.eye(4, dtype=np.float32)[kinds]
        if not self.privileged:
            return seen
        critic = np.column_stack([cues == NORTH, cues == SOUTH, cells / junction])
        return {"observation": seen, "critic": critic.astype(np.float32)}


def t_maze_envs(num_envs: int = 1, privileged: bool = False, **kwargs: Any) -> TMazeVectorEnv:
    """ "rlopt/TMaze-v0"; `kwargs` are those of `TMaze`."""
    return TMazeVectorEnv(TMaze(**kwargs), num_envs, privileged)


def t_maze_env(**kwargs: Any) -> SingleCopy:
    """One environment of "rlopt/TMaze-v0"."""
    return SingleCopy(t_maze_envs(1, **kwargs))
