"""Checks of what users pass in: errors that name the argument, what was expected and what came."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any


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


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Raises ValueError unless `value` is one of the choices; the nearest is named."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}{did_you_mean(value, choices)}")


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The tail of an error: "; did you mean 'x'?", or nothing if no name is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]!r}?" if near else ""
