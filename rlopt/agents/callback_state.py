"""What SB3's callbacks remember between steps, as data that a checkpoint holds."""

from __future__ import annotations

import inspect
import warnings
from collections import deque
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from rlopt.envs.facade import VecEnvFacade
from rlopt.envs.row_generators import generator_state, restored_generator
from rlopt.nested import split

# Of every callback, set anew when training begins.
PASSING = {"model", "parent", "locals", "globals", "logger", "verbose"}


def callback_state(callback: BaseCallback) -> dict[str, Any]:
    """Counters, records and whatever else is plain data, of a callback and of those inside it.

    A callback with methods `state_dict` and `load_state_dict` says for itself. Of others all attributes count that hold
    numbers, texts, arrays, or lists and dictionaries of these; arguments of the constructor do not, which are the script's
    to state. Of environments for evaluation the random numbers are kept: of rlopt's own (`as_vec_env`), and of a `DummyVecEnv`
    those of its environments; of others a warning says that they are not.
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
    return isinstance(value, BaseCallback | VecEnv)


def _is_plain(value: Any) -> bool:
    try:
        split(value, "")
    except (TypeError, ValueError, RuntimeError):  # also arrays of objects or texts
        return False
    return True


def _kept(value: Any) -> Any:
    if isinstance(value, BaseCallback):
        return callback_state(value)
    if isinstance(value, VecEnv):
        return _random_numbers(value.unwrapped)
    if _is_nested(value):
        return [callback_state(item) for item in value]
    return value


def _restored(mine: Any, kept: Any) -> Any:
    """The value of an attribute, of the kind that it has."""
    if isinstance(mine, BaseCallback):
        restore_callback(mine, kept)
        return mine
    if isinstance(mine, VecEnv):
        _restore_random_numbers(mine.unwrapped, kept)
        return mine
    if _is_nested(mine):
        for item, state in zip(mine, kept, strict=True):
            restore_callback(item, state)
        return mine
    number = isinstance(mine, int | float | np.number)
    if (isinstance(mine, list | tuple | deque) and not isinstance(kept, list)) or (
        number and kept is not None and not isinstance(kept, int | float)
    ):
        raise ValueError(f"a callback's {type(mine).__name__} cannot be {type(kept).__name__}")
    if isinstance(mine, deque):
        return deque(kept, mine.maxlen)
    return tuple(kept) if isinstance(mine, tuple) else kept


def _random_numbers(env: VecEnv) -> Any:
    """What the environments' next episodes depend on; None of those that cannot tell."""
    if isinstance(env, VecEnvFacade):
        return env.snapshot()
    if isinstance(env, DummyVecEnv):
        return {"seeds": env._seeds, "generators": [generator_state(single.unwrapped.np_random) for single in env.envs]}
    warnings.warn(
        f"checkpoints: random numbers of a callback's {type(env).__name__} are not kept; its evaluations will differ after a "
        "break. Give it a DummyVecEnv, or rlopt.as_vec_env(rlopt.make_envs(...))",
        stacklevel=2,
    )
    return None


def _restore_random_numbers(env: VecEnv, kept: Any) -> None:
    if isinstance(env, VecEnvFacade):
        env.restore(kept)
    elif isinstance(env, DummyVecEnv) and kept is not None:
        env._seeds = list(kept["seeds"])
        for single, state in zip(env.envs, kept["generators"], strict=True):
            generator: Any = restored_generator(state)
            single.unwrapped.np_random = generator
