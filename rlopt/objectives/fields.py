"""What utilities of vectors are made of: numbers, one for all objectives or one for each, checked, and written as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

import numpy as np
from torch import Tensor

from rlopt.arguments import check_choice, check_number

Numbers = float | Sequence[float]
Bounds = float | Sequence[float | None] | None


# ---------------------------------------------------------------------- numbers


def as_number(name: str, value: Any, **limits: Any) -> float:
    """A finite number as a float; `limits` are those of `check_number`.

    Raises:
        ValueError: anything else.
    """
    try:
        check_number(name, value, **limits)
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number, got one that no float holds") from None


def as_numbers(name: str, value: Any) -> float | tuple[float, ...]:
    """A finite number, or a tuple of at least one.

    Raises:
        ValueError: anything else.
    """
    items = _items(value)
    return as_number(name, value) if items is None else tuple(as_number(name, item) for item in items)


def as_vector(name: str, value: Any) -> tuple[float, ...]:
    """A tuple of at least one finite number.

    Raises:
        ValueError: anything else, a single number too.
    """
    items = _items(value)
    if items is None:
        raise ValueError(f"{name}: expected a sequence of numbers, one for each objective, got {value!r}")
    return tuple(as_number(name, item) for item in items)


def as_bounds(name: str, value: Any, infinity: float) -> float | tuple[float | None, ...] | None:
    """`as_numbers`, where None or `infinity` is no bound; None if there is no bound at all.

    Raises:
        ValueError: anything else.
    """
    items = _items(value)
    if items is None:
        return None if value is None or value == infinity else as_number(name, value)
    bounds = tuple(None if item is None or item == infinity else as_number(name, item) for item in items)
    return None if all(bound is None for bound in bounds) else bounds


def spread(bounds: Any, num_objectives: int, infinity: float) -> list[float]:
    """K numbers from what `as_bounds` returns."""
    entries = bounds if isinstance(bounds, tuple) else (bounds,) * num_objectives
    return [infinity if entry is None else entry for entry in entries]


def _items(value: Any) -> Sequence[Any] | None:
    """The entries of a sequence, an array or a tensor; None for whatever is none, or empty."""
    value = value.tolist() if isinstance(value, np.ndarray | Tensor) else value
    return value if isinstance(value, Sequence) and not isinstance(value, str) and len(value) else None


# ---------------------------------------------------------------------- fields


def arguments_of(cls: type) -> list[Field[Any]]:
    """A frozen utility's fields in the order of its constructor, the box last."""
    return sorted(fields(cls), key=lambda argument: bool(argument.kw_only))


def vectors_of(utility: Any) -> dict[str, tuple[Any, ...]]:
    """name -> value of the fields that have a number for each objective."""
    values = {argument.name: getattr(utility, argument.name) for argument in arguments_of(type(utility))}
    return {name: value for name, value in values.items() if isinstance(value, tuple)}


def store(utility: Any, **values: Any) -> None:
    """Set fields of a frozen utility; for its own `__post_init__` only."""
    for name, value in values.items():
        object.__setattr__(utility, name, value)


# ---------------------------------------------------------------------- texts


def utility_text(kind: str, utility: Any) -> str:
    """ "KIND:FIRST;name=VALUE;…", without the fields that have their defaults."""
    words = kind
    for position, argument in enumerate(arguments_of(type(utility))):
        value = getattr(utility, argument.name)
        if position == 0 and not argument.kw_only:
            words += f":{_value_text(value)}"
        elif argument.default is MISSING or value != argument.default:
            words += f";{_option(argument)}={_value_text(value)}"
    return words


def usage_text(kind: str, cls: type) -> str:
    """ "KIND:FIRST;name=NAME[;name=NAME]…", for errors."""
    words = kind
    for position, argument in enumerate(arguments_of(cls)):
        option = _option(argument)
        if position == 0 and not argument.kw_only:
            words += f":{option.upper()}"
        else:
            words += f";{option}={option.upper()}" if argument.default is MISSING else f"[;{option}={option.upper()}]"
    return words


def read_arguments(cls: type, first: str | None, options: Sequence[str]) -> dict[str, Any]:
    """name -> value of a constructor's arguments; `first` is what follows the colon, None without a colon.

    Raises:
        ValueError: an argument that is unknown, missing, given twice, or no numbers.
    """
    known = {argument.name: argument for argument in arguments_of(cls)}
    given: dict[str, Any] = {}
    if first is not None:
        name, argument = next(iter(known.items()))
        if argument.kw_only:
            raise ValueError("nothing follows a colon here")
        given[name] = read_value(first)
    for option in options:
        key, _, value = option.partition("=")
        name = key.strip().lower().replace("-", "_")
        check_choice("argument", name, list(known))
        if name in given:
            raise ValueError(f"{name} is given twice")
        given[name] = read_value(value)
    missing = [name for name, argument in known.items() if argument.default is MISSING and name not in given]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    return given


def read_value(text: str) -> Any:
    """A number or None; a tuple of them where there is a comma, which may be the last character.

    Raises:
        ValueError: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1:
        return _read_number(parts[0])
    return tuple(_read_number(part) for part in (parts if parts[-1] else parts[:-1]))


def _read_number(text: str) -> int | float | None:
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    raise ValueError(f"{text!r} is no number")


def _value_text(value: Any) -> str:
    """The inverse of `read_value`."""
    if isinstance(value, tuple):
        return ",".join(_value_text(item) for item in value) + ("," if len(value) == 1 else "")
    return "none" if value is None else repr(value).removesuffix(".0")


def _option(argument: Field[Any]) -> str:
    return argument.name.replace("_", "-")
