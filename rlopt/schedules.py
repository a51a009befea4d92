"""Schedules as values: they print, compare and are saved; a lambda does neither."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from rlopt.arguments import check_number
from rlopt.file_errors import shortened


@dataclass(frozen=True)
class Constant:
    """The same value all along."""

    value: float

    def __call__(self, progress_remaining: float) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:g}"


@dataclass(frozen=True)
class Linear:
    """From `start` to `end`, reached when `end_fraction` of the training is done, and `end` from then on."""

    start: float
    end: float = 0.0
    end_fraction: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.end_fraction <= 1.0:
            raise ValueError(f"end_fraction: expected a number in (0, 1], got {self.end_fraction}")

    def __call__(self, progress_remaining: float) -> float:
        done = min((1.0 - progress_remaining) / self.end_fraction, 1.0)
        return self.start + done * (self.end - self.start)

    def __str__(self) -> str:
        return f"linear:{self.start:g}:{self.end:g}:{self.end_fraction:g}"


@dataclass(frozen=True)
class Power:
    """`value` · (2 / (t + 2))^`exponent` at iteration t = 0, 1, …: the schedules of the variance-reduction papers."""

    value: float
    exponent: float

    def __call__(self, iteration: float) -> float:
        return self.value * (2.0 / (iteration + 2.0)) ** self.exponent

    def __str__(self) -> str:
        return f"power:{self.value:g}:{self.exponent:g}"


@dataclass(frozen=True)
class Custom:
    """A user's function of the remaining progress, or of the iteration. It trains, but it cannot be saved."""

    function: Callable[[float], float]

    def __call__(self, progress_remaining: float) -> float:
        return float(self.function(progress_remaining))

    def __str__(self) -> str:
        return f"custom:{getattr(self.function, '__name__', repr(self.function))}"


Schedule = Constant | Linear | Custom
ScheduleLike = float | str | Schedule | Callable[[float], float]
IterationSchedule = Constant | Power | Custom
IterationScheduleLike = float | str | IterationSchedule | Callable[[float], float]


def as_schedule(name: str, value: Any) -> Schedule:
    """A schedule from a number, a text such as "linear:3e-4" or "lin_3e-4", SB3's classes, or a function.

    Args:
        name: the argument's name, for the error.
        value: a number; "0.1"; "linear:START[:END[:END_FRACTION]]"; "lin_START" as the RL zoo writes it; a schedule
            of this module or of SB3; or a callable of the remaining progress, 1 at the start and 0 at the end.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, Constant | Linear | Custom):
        return value
    if isinstance(value, FloatSchedule):
        return as_schedule(name, value.value_schedule)
    if isinstance(value, LinearSchedule):
        return Linear(value.start, value.end, value.end_fraction)
    if isinstance(value, ConstantSchedule):
        return Constant(float(value.val))
    if isinstance(value, str):
        return parse_schedule(name, value)
    if isinstance(value, bool):
        raise ValueError(f"{name}: expected a number or a schedule, got {value!r}")
    if callable(value):
        return Custom(value)
    try:
        return Constant(float(value))
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number or a schedule, got {value!r}") from None


def parse_schedule(name: str, text: str) -> Schedule:
    """The schedule that a text stands for; see `as_schedule`."""
    kind, _, rest = text.replace("lin_", "linear:", 1).partition(":")
    try:
        if kind != "linear":
            return Constant(float(text))
        return Linear(*(float(part) for part in rest.split(":")))
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected a number or 'linear:START[:END[:END_FRACTION]]', got {text!r}") from None


def as_iteration_schedule(name: str, value: Any) -> IterationSchedule:
    """A schedule over iterations t = 0, 1, … from a number, a text such as "power:0.3:0.5", or a function of t.

    Args:
        name: the argument's name, for the error.
        value: a number; "0.1"; "power:VALUE:EXPONENT" for VALUE · (2/(t + 2))^EXPONENT, fractions such as 2/3 allowed;
            `Constant`, `Power`, or a callable of t.

    Raises:
        ValueError: anything else.
    """
    if isinstance(value, Constant | Power | Custom):
        return value
    if callable(value) and not isinstance(value, Linear):
        return Custom(value)
    try:
        if isinstance(value, bool):
            raise ValueError
        if not isinstance(value, str):
            return Constant(float(value))
        kind, *numbers = value.split(":")
        if kind != "power":
            return Constant(float(value))
        start, exponent = (float(Fraction(number)) for number in numbers)
        return Power(start, exponent)
    except (TypeError, ValueError, ZeroDivisionError):
        raise ValueError(f"{name}: expected a number, 'power:VALUE:EXPONENT' or a function of t, got {value!r}") from None


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """`factor` times the schedule."""
    if factor == 1.0:
        return schedule
    if isinstance(schedule, Linear):
        return replace(schedule, start=factor * schedule.start, end=factor * schedule.end)
    if isinstance(schedule, Constant):
        return Constant(factor * schedule.value)
    return Custom(lambda progress: factor * schedule(progress))


def schedule_to_data(name: str, schedule: Schedule | Power) -> dict[str, Any]:
    """The schedule as plain data for a file.

    Raises:
        ValueError: a `Custom` schedule, whose code cannot be stored.
    """
    if isinstance(schedule, Constant):
        return {"schedule": "constant", "value": schedule.value}
    if isinstance(schedule, Linear):
        return {"schedule": "linear", "start": schedule.start, "end": schedule.end, "end_fraction": schedule.end_fraction}
    if isinstance(schedule, Power):
        return {"schedule": "power", "value": schedule.value, "exponent": schedule.exponent}
    raise ValueError(f"{name}: {schedule} is a function and cannot be saved; use a schedule of rlopt")


def schedule_from_data(data: dict[str, Any]) -> Schedule | Power:
    """The inverse of `schedule_to_data`.

    Raises:
        ValueError: another kind of schedule, or what is no finite number; KeyError: a field is missing.
    """
    if data.get("schedule") == "constant":
        return Constant(_stored_number(data, "value"))
    if data.get("schedule") == "linear":
        return Linear(*(_stored_number(data, field) for field in ("start", "end", "end_fraction")))
    if data.get("schedule") == "power":
        return Power(_stored_number(data, "value"), _stored_number(data, "exponent"))
    raise ValueError(f"unknown schedule in file: {shortened(data)}")


def _stored_number(data: dict[str, Any], field: str) -> float:
    check_number(field, data[field])
    return float(data[field])
