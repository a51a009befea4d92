"""Hyper-parameters, classes and spaces as plain data that JSON holds, and back; nothing is imported or run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from rlopt.objectives import VectorUtility, vector_utility_from_data, vector_utility_to_data
from rlopt.schedules import Constant, Custom, Linear, Power, as_schedule, schedule_from_data, schedule_to_data
from rlopt.utilities import KINDS, utility_from_data, utility_to_data

# A class in a file is a name looked up in these modules, which are imported already; never an import.
CLASS_MODULES = {
    "torch.nn": torch.nn,
    "torch.optim": torch.optim,
    "stable_baselines3.common.torch_layers": stable_baselines3.common.torch_layers,
}
# More numbers than any observation or action has: a space of a stranger's file may not ask for more.
LARGEST_SPACE = 10_000_000


def encode(name: str, value: Any) -> Any:
    """A hyper-parameter as JSON can hold it.

    Raises:
        ValueError: a function, a class that is not torch's or SB3's, or another object.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, FloatSchedule | LinearSchedule | ConstantSchedule):
        value = as_schedule(name, value)
    if isinstance(value, Constant | Linear | Power | Custom):
        return schedule_to_data(name, value)
    if isinstance(value, tuple(KINDS.values())):
        return utility_to_data(value)
    if isinstance(value, VectorUtility):
        return vector_utility_to_data(name, value)
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    if isinstance(value, list | tuple):
        return [encode(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, type):
        return {"class": f"{value.__module__}.{value.__qualname__}"} | (
            {"known": known} if (known := known_class(value)) else {}
        )
    raise ValueError(
        f"{name}: {value!r} cannot be saved; expected numbers, texts, lists, dictionaries, classes, "
        "rlopt.Constant, rlopt.Linear or rlopt.Power"
    )


def decode(name: str, value: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError: a class that is not torch's or SB3's: it must be given to `load` by the caller.
    """
    if isinstance(value, list):
        return [decode(name, item) for item in value]
    if isinstance(value, dict) and "schedule" in value:
        try:
            return schedule_from_data(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: the file holds no schedule of rlopt: {value!r}") from error
    if isinstance(value, dict) and "utility" in value:
        try:
            return utility_from_data(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: the file holds no utility of rlopt: {value!r}") from error
    if isinstance(value, dict) and "vector_utility" in value:
        try:
            return vector_utility_from_data(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: the file holds no utility of rlopt: {value!r}") from error
    if isinstance(value, dict) and "class" in value:
        module, _, attribute = str(value.get("known", "")).rpartition(".")
        found = getattr(CLASS_MODULES.get(module), attribute, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module | torch.optim.Optimizer)):
            raise ValueError(
                f"{name}: the file was made with the class {value['class']}; pass {name.split('[')[0]}=... to load"
            )
        return found
    if isinstance(value, dict):
        return {key: decode(f"{name}[{key!r}]", item) for key, item in value.items()}
    return value


def known_class(value: type) -> str | None:
    """The name under which a class of torch or SB3 can be looked up, if it has one."""
    for name, module in CLASS_MODULES.items():
        if getattr(module, value.__name__, None) is value and issubclass(value, nn.Module | torch.optim.Optimizer):
            return f"{name}.{value.__name__}"
    return None


def policy_name(policy: Any) -> str:
    """The alias, or the full name of a custom class."""
    return policy if isinstance(policy, str) else f"{policy.__module__}.{policy.__qualname__}"


def encode_space(space: spaces.Space) -> dict[str, Any]:
    """A Gymnasium space as data."""
    if isinstance(space, spaces.Box):
        bounds = {name: _compact(getattr(space, name)) for name in ("low", "high")}
        return {"space": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"space": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"space": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"space": "Dict", "spaces": [[key, encode_space(sub)] for key, sub in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"space": "Tuple", "spaces": [encode_space(sub) for sub in space.spaces]}
    raise ValueError(f"space: {space} cannot be saved")


def decode_space(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `encode_space`."""
    kind = data.get("space")
    if kind == "Box":
        shape, dtype = tuple(int(n) for n in data["shape"]), np.dtype(data["dtype"])
        if min(shape, default=1) < 0 or math.prod(shape) > LARGEST_SPACE:
            raise ValueError(f"a Box of shape {shape}")
        low, high = (np.broadcast_to(np.asarray(data[name], dtype), shape) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(data["n"]), start=int(data["start"]))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
    if kind == "MultiBinary":
        sizes = [int(n) for n in data["shape"]]
        if math.prod(sizes) > LARGEST_SPACE:
            raise ValueError(f"a MultiBinary of shape {sizes}")
        return spaces.MultiBinary(sizes[0] if len(sizes) == 1 else sizes)
    if kind == "Dict":
        return spaces.Dict({key: decode_space(sub) for key, sub in data["spaces"]})
    if kind == "Tuple":
        return spaces.Tuple([decode_space(sub) for sub in data["spaces"]])
    raise ValueError(f"unknown space in file: {kind!r}")


def _compact(bound: Any) -> Any:
    """One number where all entries agree, a nested list otherwise."""
    flat = bound.reshape(-1)
    return flat[0].item() if flat.size and (flat == flat[0]).all() else bound.tolist()
