"""Checks of what users pass in: errors that name the argument, what was expected and what came."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any, get_type_hints

import numpy as np


def check_number(
    name: str,
    value: Any,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    positive: bool = False,
    whole: bool = False,
) -> None:
    """Raises ValueError unless `value` is a finite number, positive or a whole one if asked, in [at_least, at_most]."""
    number = isinstance(value, Integral if whole else Real) and not isinstance(value, bool) and math.isfinite(value)
    if number and at_least <= value <= at_most and (value > 0 or not positive):
        return
    words = ["a positive" if positive else "a", "integer" if whole else "number"]
    if at_most < math.inf:
        words.append(f"in [{at_least:.10g}, {at_most:.10g}]")
    elif at_least > -math.inf:
        words.append(f"of at least {at_least:g}")
    raise ValueError(f"{name}: expected {' '.join(words)}, got {value!r}".replace("a integer", "an integer"))


def check_flag(name: str, value: Any) -> None:
    """Raises ValueError unless `value` is True or False; 0 and 1 stand for them."""
    if not isinstance(value, bool | np.bool_) and not (isinstance(value, Integral) and value in (0, 1)):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the choices; the nearest is named."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}")


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The tail of an error: "; did you mean 'x'?", or nothing if no name is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]!r}?" if near else ""


def state_inherited_arguments(cls: type) -> None:
    """Let a constructor that passes `**common` on to its parent's state the parent's arguments as its own.

    `inspect.signature`, `help`, the command line and errors then know all of them, written once in the parent.
    """
    if "__init__" not in vars(cls):
        return
    init: Any = vars(cls)["__init__"]
    of_parent: Any = getattr(cls.__mro__[1], "__init__")  # noqa: B009
    parameters = list(inspect.signature(init).parameters.values())
    if not parameters or parameters[-1].kind is not inspect.Parameter.VAR_KEYWORD:
        return
    own = {parameter.name: parameter for parameter in parameters[:-1]}
    inherited = {
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in inspect.signature(of_parent).parameters.items()
        if name not in own
    }
    init.__signature__ = inspect.Signature([*own.values(), *inherited.values()])
    init.__annotations__ = {**_annotations(of_parent), **_annotations(init)}


def _annotations(function: Any) -> dict[str, Any]:
    """Resolved types of a constructor's arguments, those of `*args` and `**kwargs` left out."""
    hints = get_type_hints(function)
    named = inspect.signature(function).parameters
    return {name: hint for name, hint in hints.items() if name == "return" or name in named}
