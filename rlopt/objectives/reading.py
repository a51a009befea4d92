"""Utilities from whatever stands for one, text above all, and to and from plain data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from rlopt.arguments import check_choice
from rlopt.objectives.chebyshev import Chebyshev, SmoothChebyshev
from rlopt.objectives.concave import (
    ProportionalFairness,
    Reciprocals,
    SquareRoots,
    deep_sea_treasure_utility,
    queue_utility,
)
from rlopt.objectives.fields import arguments_of, as_vector, read_arguments, read_value, usage_text
from rlopt.objectives.lagrangian import Lagrangian
from rlopt.objectives.linear import Identity, WeightedSum
from rlopt.objectives.user import UserUtility
from rlopt.objectives.vector_utility import VectorUtility
from rlopt.utilities import KINDS as OCCUPANCY_KINDS

KINDS: dict[str, type[VectorUtility]] = {
    cls.kind: cls
    for cls in (
        Identity,
        WeightedSum,
        Chebyshev,
        SmoothChebyshev,
        ProportionalFairness,
        Reciprocals,
        SquareRoots,
        Lagrangian,
    )
}
NAMED: dict[str, Callable[..., VectorUtility]] = {"queue": queue_utility, "deep-sea-treasure": deep_sea_treasure_utility}
NAMED_USAGE = {"queue": "queue:HORIZON,GAMMA", "deep-sea-treasure": "deep-sea-treasure"}


def as_vector_utility(value: Any) -> VectorUtility:
    """A utility of vectors of returns from whatever stands for one.

    Args:
        value: a `VectorUtility`; K weights, for `WeightedSum`; a text, whose grammar is that of `rlopt.objectives`; or a
            differentiable function from J [K] to a scalar tensor, for `UserUtility`.

    Raises:
        ValueError: anything else, such as an unknown name or a utility of the occupancy.
    """
    if isinstance(value, VectorUtility):
        return value
    if isinstance(value, str):
        return _parse(value)
    if isinstance(value, tuple(OCCUPANCY_KINDS.values())):
        raise ValueError(f"utility: expected a utility of vectors of returns, got one of the occupancy: {value!r}")
    if isinstance(value, Sequence | np.ndarray | Tensor):
        return WeightedSum(as_vector("utility", value))
    if callable(value) and not isinstance(value, type):
        return UserUtility(value)
    raise ValueError(
        "utility: expected a utility of rlopt.objectives, a text such as 'chebyshev:0.5,0.5;ideal=1,1', weights, or a "
        f"function of the returns, got {value!r}"
    )


def vector_utility_to_data(name: str, utility: VectorUtility) -> dict[str, Any]:
    """A utility of this package as plain data for a file; `name` is the argument's, for the error.

    Raises:
        ValueError: a `UserUtility` or a user's subclass, whose code cannot be stored.
    """
    if KINDS.get(utility.kind) is not type(utility):
        raise ValueError(f"{name}: {utility} is a user's own and cannot be saved; use a utility of rlopt.objectives")
    values = {argument.name: getattr(utility, argument.name) for argument in arguments_of(type(utility))}
    as_lists = {argument: list(value) if isinstance(value, tuple) else value for argument, value in values.items()}
    return {"vector_utility": utility.kind} | as_lists


def vector_utility_from_data(data: dict[str, Any]) -> VectorUtility:
    """The inverse of `vector_utility_to_data`.

    Raises:
        ValueError: an unknown kind, or impossible values; TypeError: other fields than it has.
    """
    check_choice("vector_utility", data["vector_utility"], tuple(KINDS))
    return KINDS[data["vector_utility"]](**{name: value for name, value in data.items() if name != "vector_utility"})


def _parse(text: str) -> VectorUtility:
    head, *options = (part.strip() for part in text.split(";"))
    kind, colon, first = (part.strip() for part in head.partition(":"))
    if not colon and kind[:1] in tuple("0123456789+-."):
        kind, colon, first = WeightedSum.kind, ":", kind
    kind = kind.lower().replace("_", "-")
    check_choice("utility", kind, (*KINDS, *NAMED))
    usage = NAMED_USAGE[kind] if kind in NAMED else usage_text(kind, KINDS[kind])
    try:
        if kind in KINDS:
            return KINDS[kind](**read_arguments(KINDS[kind], first if colon else None, options))
        value = read_value(first) if colon else ()
        numbers = value if isinstance(value, tuple) else (value,)
        if options or len(numbers) != usage.count(",") + (":" in usage):
            raise ValueError("it takes other arguments")
        return NAMED[kind](*numbers)
    except ValueError as error:
        raise ValueError(f"utility: expected {usage}, got {text!r}: {error}") from None
