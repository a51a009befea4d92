"""The last observations beside the newest: what a policy without memory can have of the past."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from rlopt.arguments import check_number
from rlopt.envs.base import Environments, Snapshot, Step
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.envs.wrapper import EnvironmentsWrapper


class FrameStack(EnvironmentsWrapper):
    """Environments that show their last n observations, the newest at the end; their rewards and episodes are those of `envs`.

    Vectors are joined along their last axis, images along their channels, a Dict key by key. What came before an
    episode is zeros, as in SB3's `VecFrameStack`: an episode's first frames look like no other. A Discrete observation
    becomes a MultiDiscrete one whose entries have one value more, which stands for "before the episode"; MultiDiscrete
    ones likewise.

    Args:
        envs: any; one that is wrapped in `Memory` is not meant, `Memory` goes outside.
        num_frames: n.

    Raises:
        ValueError: n is no positive integer, or so large that an image's channels look like a side of it.
    """

    def __init__(self, envs: Environments, num_frames: int):
        check_number("num_frames", num_frames, positive=True, whole=True)
        inner = envs.encoder.space
        self.num_frames = num_frames
        self._nested = isinstance(inner, spaces.Dict)
        leaves = inner.spaces if isinstance(inner, spaces.Dict) else {"": inner}
        self._layouts = {key: _layout(space, num_frames) for key, space in leaves.items()}
        stacked = {key: layout.space for key, layout in self._layouts.items()}
        space = spaces.Dict(stacked) if self._nested else stacked[""]
        super().__init__(envs, space, envs.decoder.raw_space)
        self.decoder = envs.decoder
        if self.encoder.space != space:
            raise ValueError(f"num_frames: {num_frames} images of {inner} have more channels than an image has pixels a side")
        self._frames = self._empty(self.num_envs)
        self._reset_pending = np.zeros(self.num_envs, bool)

    def reset(self, seed: int | None = None) -> ArrayTree:
        self._reset_pending[:] = False
        self._frames = self._pushed(self._empty(self.num_envs), self.envs.reset(seed))
        return self._tree(self._frames)

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        begun = self._pushed(self._empty(len(rows)), self.envs.restart(rows, seeds))
        self._frames = self._replaced(self._frames, rows, begun)
        return self._tree(begun)

    def step(self, actions: Array, active: Array | None = None) -> Step:
        step = self.envs.step(actions, active)
        finals = step.final_observations
        begun = np.asarray(step.final_rows, np.int64)
        if self.resets_on_next_step:
            begun = self._reset_pending.nonzero()[0]  # what came in these rows opens an episode
            self._reset_pending = (step.terminated | step.truncated) & ~self._reset_pending
        elif finals is not None:
            before = {key: frames[begun] for key, frames in self._frames.items()}
            finals = self._tree(self._pushed(before, finals))
        if step.failed is not None:
            begun = np.union1d(begun, step.failed.nonzero()[0])
        frames = self._frames if not len(begun) else self._replaced(self._frames, begun, self._empty(len(begun)))
        self._frames = self._pushed(frames, step.observations)
        return step._replace(observations=self._tree(self._frames), final_observations=finals)

    def _own_snapshot(self) -> Snapshot:
        return {
            "frames": {key: frames.copy() for key, frames in self._frames.items()},
            "reset_pending": self._reset_pending.copy(),
        }

    def _restore_own(self, snapshot: Snapshot) -> None:
        self._frames = {key: snapshot["frames"][key] for key in self._layouts}
        self._reset_pending = snapshot["reset_pending"].copy()

    def _empty(self, num: int) -> dict[str, Array]:
        """The frames before an episode, [num, *stacked] by key."""
        return {key: np.broadcast_to(layout.empty, (num, *layout.empty.shape)) for key, layout in self._layouts.items()}

    def _pushed(self, frames: dict[str, Array], observations: ArrayTree) -> dict[str, Array]:
        """The frames with observations [n, *obs] at their end and without their oldest, in memory of their own."""
        tree = observations if isinstance(observations, dict) else {"": observations}
        return {key: layout.pushed(frames[key], tree[key]) for key, layout in self._layouts.items()}

    def _replaced(self, frames: dict[str, Array], rows: Array, others: dict[str, Array]) -> dict[str, Array]:
        """The frames with others in some rows; those that were handed out stay as they are."""
        result = {key: array.copy() for key, array in frames.items()}
        for key, array in result.items():
            array[rows] = others[key]
        return result

    def _tree(self, frames: dict[str, Array]) -> ArrayTree:
        return dict(frames) if self._nested else frames[""]


class Layout(NamedTuple):
    """How observations of one space are joined.

    Attributes:
        space: of the joined observations.
        axis: of a batch of observations along which they are joined.
        empty: one observation before anything was seen.
        scalar: whether an observation has no axis of its own.
    """

    space: spaces.Space
    axis: int
    empty: Array
    scalar: bool = False

    def pushed(self, frames: Array, observations: Array) -> Array:
        """[n, *stacked] without the oldest frame and with the newest, [n, *obs]."""
        newest = observations[:, None] if self.scalar else observations
        width = newest.shape[self.axis]
        return np.concatenate([frames[:, width:] if self.axis == 1 else frames[..., width:], newest], self.axis)


def _layout(space: Any, num: int) -> Layout:
    """The layout of `num` observations of an encoded space, see `ObservationEncoder`."""
    if isinstance(space, spaces.Box):
        image = is_image_space(space)
        # zeros may lie outside the bounds of what an environment shows
        bounds = np.minimum(space.low, 0), np.maximum(space.high, 0)
        low, high = (np.concatenate([bound] * num, 0 if image else -1).astype(space.dtype) for bound in bounds)
        return Layout(spaces.Box(low, high, dtype=space.dtype.type), 1 if image else -1, np.zeros_like(low))
    if isinstance(space, spaces.MultiBinary):
        shape = (*space.shape[:-1], space.shape[-1] * num)
        return Layout(spaces.MultiBinary(shape), -1, np.zeros(shape, space.dtype))
    values = np.array([space.n]) if isinstance(space, spaces.Discrete) else space.nvec
    empty = np.tile(values, num).astype(np.int64)
    return Layout(spaces.MultiDiscrete(empty + 1), -1, empty, isinstance(space, spaces.Discrete))
