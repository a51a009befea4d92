"""From the spaces that environments have to the few that policies read, and actions back again.

Policies see Box, Discrete, MultiDiscrete, MultiBinary or one flat Dict of these. Nested Dict and Tuple spaces become
a flat Dict with keys such as "arm/joints" and "0/1"; spaces that start at s != 0 are shifted to start at 0;
MultiDiscrete gets one axis and a Box without axes gets one; channel-last images become channel-first; floats become
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first

Array = NDArray[Any]
ArrayTree = Array | dict[str, Array]


class ObservationEncoder:
    """Observations of any space, as arrays of the space that policies read.

    Attributes:
        raw_space: one environment's space as the environment states it.
        space: what policies read.
        scalars_only: whether there is no array in an observation that an environment could write into again.
    """

    def __init__(self, raw_space: spaces.Space):
        self.raw_space = raw_space
        self._leaves = list(_leaves(raw_space, ()))
        self._nested = isinstance(raw_space, spaces.Dict | spaces.Tuple)
        encoded = [_encoded_leaf(space) for _, space in self._leaves]
        self._names = ["/".join(str(part) for part in path) for path, _ in self._leaves]
        self.space: spaces.Space
        if self._nested:
            if len(set(self._names)) != len(self._names):
                raise ValueError(f"observation space: keys collide when nesting is removed: {self._names}")
            self.space = spaces.Dict(dict(zip(self._names, encoded, strict=True)))
        else:
            self.space = encoded[0]
        self._functions = [_leaf_function(space) for _, space in self._leaves]
        self.scalars_only = all(isinstance(space, spaces.Discrete) for _, space in self._leaves)

    def __call__(self, observation: Any) -> ArrayTree:
        """The encoded observation; works on one observation and on a batch of them."""
        if not self._nested:
            return self._functions[0](observation)
        return {
            name: function(_at(observation, path))
            for name, (path, _), function in zip(self._names, self._leaves, self._functions, strict=True)
        }

    def decode(self, encoded: ArrayTree) -> Any:
        """The inverse, but for the precision of floats: nesting, starts and channels as the environment has them."""
        values = [encoded[name] for name in self._names] if isinstance(encoded, dict) else [encoded]
        leaves = iter(_decoded_leaf(space, value) for (_, space), value in zip(self._leaves, values, strict=True))
        return _nest(self.raw_space, leaves)

    def empty(self, *shape: int) -> ArrayTree:
        """Uninitialised arrays for observations, [*shape, *obs]."""
        if isinstance(self.space, spaces.Dict):
            return {key: np.empty((*shape, *(sub.shape or ())), sub.dtype) for key, sub in self.space.spaces.items()}
        return np.empty((*shape, *(self.space.shape or ())), self.space.dtype)


class ActionDecoder:
    """Actions of a policy, as the environment wants them.

    Attributes:
        raw_space: one environment's action space.
        space: what policies act in: Discrete from 0, MultiDiscrete and MultiBinary from 0 in one axis, Box in one axis.
    """

    def __init__(self, raw_space: spaces.Space):
        self.raw_space = raw_space
        if isinstance(raw_space, spaces.Discrete):
            self.space: spaces.Space = spaces.Discrete(int(raw_space.n))
        elif isinstance(raw_space, spaces.MultiDiscrete):
            self.space = spaces.MultiDiscrete(raw_space.nvec.reshape(-1))
        elif isinstance(raw_space, spaces.MultiBinary):
            self.space = spaces.MultiBinary(int(np.prod(raw_space.shape)))
        elif isinstance(raw_space, spaces.Box):
            self.space = spaces.Box(raw_space.low.reshape(-1), raw_space.high.reshape(-1), dtype=raw_space.dtype.type)
            exact = np.result_type(np.float32, raw_space.dtype)  # small integers and float16 do not hold high − low
            self._low, self._high = raw_space.low.astype(exact), raw_space.high.astype(exact)
        else:
            raise ValueError(f"action space: expected Box, Discrete, MultiDiscrete or MultiBinary, got {raw_space}")
        self.shape = raw_space.shape or ()
        self.dtype = raw_space.dtype

    def policy_array_spec(self) -> tuple[tuple[int, ...], Any]:
        """Shape and dtype of one action as a rollout stores it."""
        return (self.space.shape or ()), (np.float32 if isinstance(self.space, spaces.Box) else np.int64)

    def __call__(self, actions: Array, squashed: bool = False) -> Array:
        """[n, *act] for the environment: clipped (or stretched from (−1, 1) if squashed), shifted, cast, reshaped."""
        raw = self.raw_space
        batch = len(actions)
        if isinstance(raw, spaces.Box):
            actions = actions.reshape(batch, *self.shape)
            if squashed:
                actions = self._low + (0.5 * (actions + 1.0)) * (self._high - self._low)
            return np.minimum(np.maximum(actions, self._low), self._high).astype(self.dtype, copy=False)
        if isinstance(raw, spaces.Discrete):
            return (actions + raw.start if raw.start else actions).astype(self.dtype, copy=False)
        if isinstance(raw, spaces.MultiDiscrete):
            return (actions.reshape(batch, *self.shape) + raw.start).astype(self.dtype, copy=False)
        return actions.reshape(batch, *self.shape).astype(self.dtype, copy=False)


def map_arrays(function: Callable[[Array], Array], tree: ArrayTree) -> ArrayTree:
    """`function` on the array, or on every array of a flat Dict observation."""
    if isinstance(tree, dict):
        return {key: function(value) for key, value in tree.items()}
    return function(tree)


def write_rows(target: ArrayTree, rows: Any, source: ArrayTree) -> None:
    """target[rows] = source, for arrays and for flat Dicts of them."""
    if isinstance(target, dict):
        assert isinstance(source, dict)
        for key, value in target.items():
            value[rows] = source[key]
    else:
        target[rows] = source


def concatenate(trees: list[ArrayTree]) -> ArrayTree | None:
    """Encoded observations joined along their first axis; None if there are none."""
    if not trees:
        return None
    if isinstance(trees[0], dict):
        return {key: np.concatenate([tree[key] for tree in trees]) for key in trees[0]}
    return np.concatenate(trees)  # type: ignore[arg-type]


def stack_observations(observations: list[Any], space: spaces.Space) -> Any:
    """Raw observations of several environments with a leading axis, in the nesting of `space`."""
    if isinstance(space, spaces.Dict):
        return {key: stack_observations([o[key] for o in observations], sub) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(stack_observations([o[i] for o in observations], sub) for i, sub in enumerate(space.spaces))
    return np.array(observations)


def _leaves(space: spaces.Space, path: tuple[Any, ...]) -> Any:
    if isinstance(space, spaces.Dict):
        for key, sub in space.spaces.items():
            yield from _leaves(sub, (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, sub in enumerate(space.spaces):
            yield from _leaves(sub, (*path, index))
    elif isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        yield path, space
    else:
        where = f" at {'/'.join(map(str, path))}" if path else ""
        raise ValueError(
            f"observation space{where}: expected Box, Discrete, MultiDiscrete, MultiBinary, or Dict and Tuple of these, "
            f"got {space}"
        )


def _at(observation: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        observation = observation[part]
    return observation


def _is_channel_last(space: spaces.Space) -> bool:
    return is_image_space(space) and not is_image_space_channels_first(space)  # type: ignore[arg-type]


def _encoded_leaf(space: spaces.Space) -> spaces.Space:
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.MultiDiscrete):
        return spaces.MultiDiscrete(space.nvec.reshape(-1))
    if isinstance(space, spaces.Box):
        low, high = np.atleast_1d(space.low), np.atleast_1d(space.high)
        if _is_channel_last(space):
            return spaces.Box(_channels_first(low), _channels_first(high), dtype=space.dtype.type)
        if np.issubdtype(space.dtype, np.floating):
            with np.errstate(over="ignore"):  # bounds beyond float32 are none
                return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        return spaces.Box(low, high, dtype=space.dtype.type)
    return space


def _leaf_function(space: spaces.Space) -> Callable[[Any], Array]:
    if isinstance(space, spaces.Discrete):
        start = space.start
        return lambda observation: np.asarray(observation) - start if start else np.asarray(observation)
    if isinstance(space, spaces.MultiDiscrete):
        starts, axes = space.start, len(space.shape)

        def flattened(observation: Any) -> Array:
            array = np.asarray(observation)
            if array.shape[-axes:] != starts.shape:  # which would be broadcast
                raise ValueError(f"observation: expected shape {starts.shape}, or a batch of that, got {array.shape}")
            return (array - starts).reshape(*array.shape[: array.ndim - axes], -1)

        return flattened
    if isinstance(space, spaces.Box):
        if not space.shape:
            dtype = np.float32 if np.issubdtype(space.dtype, np.floating) else space.dtype
            return lambda observation: np.asarray(observation, dtype=dtype)[..., None]
        if _is_channel_last(space):
            shape = space.shape

            def transposed(observation: Any) -> Array:
                # An observation that is channel-first already (a caller of predict may have one) is left alone.
                array = np.asarray(observation)
                return _channels_first(array) if array.shape[-3:] == shape else array

            return transposed
        if np.issubdtype(space.dtype, np.floating):
            return lambda observation: np.asarray(observation, dtype=np.float32)
    return np.asarray


def _decoded_leaf(space: spaces.Space, value: Array) -> Array:
    if isinstance(space, spaces.Discrete):
        return value + space.start if space.start else value
    if isinstance(space, spaces.MultiDiscrete):
        return value.reshape(*value.shape[:-1], *space.shape) + space.start
    if isinstance(space, spaces.Box) and not space.shape:
        return value[..., 0]
    return np.moveaxis(value, -3, -1) if _is_channel_last(space) else value


def _nest(space: spaces.Space, leaves: Iterator[Array]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _nest(sub, leaves) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_nest(sub, leaves) for sub in space.spaces)
    return next(leaves)


def _channels_first(image: Array) -> Array:
    return np.moveaxis(image, -1, -3)
