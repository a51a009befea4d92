"""What SB3's callbacks remember between steps, as data that a checkpoint holds."""

from __future__ import annotations

import inspect
from collections import deque
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from rlopt.envs.facade import VecEnvFacade
from rlopt.nested import split

# Of every callback, set anew when training begins.
PASSING = {"model", "parent", "locals", "globals", "logger", "verbose"}


def callback_state(callback: BaseCallback) -> dict[str, Any]:
    """Counters, records and whatever else is plain data, of a callback and of those inside it.

    A callback with methods `state_dict` and `load_state_dict` says for itself. Of others all attributes count that hold
    numbers, texts, arrays, or lists and dictionaries of these; arguments of the constructor do not, which are the script's
    to state. Of environments for evaluation the random numbers are kept.
    """
    if hasattr(callback, "state_dict"):
        return {"own": callback.state_dict()}
    return {name: _kept(value) for name, value in _remembered(callback).items()}


def restore_callback(callback: BaseCallback, state: dict[str, Any]) -> None:
    """The inverse of `callback_state`, of a callback made alike; what it does not know is left out."""
    if hasattr(callback, "load_state_dict"):
        if "own" in state:
            callback.load_state_dict(state["own"])
        return
    for name, value in _remembered(callback).items():
        if name in state:
            setattr(callback, name, _restored(value, state[name]))


def _remembered(callback: BaseCallback) -> dict[str, Any]:
    """The attributes that count, as they are."""
    given = {name for cls in type(callback).__mro__ for name in _arguments(cls)}
    attributes = {name: value for name, value in vars(callback).items() if name not in PASSING}
    return {
        name: value
        for name, value in attributes.items()
        if _is_nested(value) or (name not in given and _is_plain(value))  # what is inside may be an argument
    }


def _arguments(cls: type) -> list[str]:
    return list(inspect.signature(cls.__init__).parameters) if "__init__" in vars(cls) else []  # type: ignore[misc]


def _is_nested(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(item, BaseCallback) for item in value)
    return isinstance(value, BaseCallback | VecEnvFacade)


def _is_plain(value: Any) -> bool:
    try:
        split(value, "")
    except (TypeError, ValueError, RuntimeError):  # also arrays of objects or texts
        return False
    return True


def _kept(value: Any) -> Any:
    if isinstance(value, BaseCallback):
        return callback_state(value)
    if isinstance(value, VecEnvFacade):
        return value.snapshot()
    if _is_nested(value):
        return [callback_state(item) for item in value]
    return value


def _restored(mine: Any, kept: Any) -> Any:
    """The value of an attribute, of the kind that it has."""
    if isinstance(mine, BaseCallback):
        restore_callback(mine, kept)
        return mine
    if isinstance(mine, VecEnvFacade):
        mine.restore(kept)
        return mine
    if _is_nested(mine):
        for item, state in zip(mine, kept, strict=True):
            restore_callback(item, state)
        return mine
    if isinstance(mine, deque):
        return deque(kept, mine.maxlen)
    return tuple(kept) if isinstance(mine, tuple) else kept
