"""Constructor arguments that come from a file: of the types that the constructor states, and of sizes that can be meant."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from rlopt.file_errors import shortened

# A seed is smaller, and so is every number of steps, rows, epochs or units.
LARGEST_HYPERPARAMETER = 2**32
# These are made, or counted in arrays, as soon as there is an agent.
LARGEST = {"n_envs": 2**16, "num_episodes": 2**16, "stats_window_size": 2**24}


def check_stored_arguments(cls: type, arguments: Mapping[str, Any]) -> None:
    """Raises ValueError unless each argument, decoded, is of a type that the constructor of `cls` takes.

    Names that it does not have are left for the constructor to refuse.
    """
    hints = get_type_hints(cls.__init__)  # type: ignore[misc]
    for name, value in arguments.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(f"{name}: the file has {shortened(value)}, which no {cls.__name__} can have")
        if isinstance(value, int) and abs(value) > LARGEST.get(name, LARGEST_HYPERPARAMETER):
            raise ValueError(f"{name}: the file has {shortened(value)}, which is too large; pass {name}=... to load")


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as loosely as Python's numbers are: True is 1, and 1 is 1.0. NaN is no number."""
    origin = get_origin(hint) or hint
    if origin is Annotated:
        return _fits(value, get_args(hint)[0])
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in get_args(hint))
    if origin is Literal:
        return any(value == choice and isinstance(value, bool | int | str) for choice in get_args(hint))
    if origin in (None, NoneType):
        return value is None
    if origin in (bool, int):
        return isinstance(value, int) and (origin is int or value in (0, 1))
    if origin is float:
        return isinstance(value, int | float) and not math.isnan(value)
    if origin in (list, tuple, Sequence):
        kinds = get_args(hint)[:1] or (Any,)
        return isinstance(value, list | tuple) and all(_fits(entry, kinds[0]) for entry in value)
    if origin in (dict, Mapping):
        return isinstance(value, dict)
    if origin is Callable:
        return callable(value) and not isinstance(value, type)
    if origin is type:
        return isinstance(value, type)
    return isinstance(value, origin) if isinstance(origin, type) else True
