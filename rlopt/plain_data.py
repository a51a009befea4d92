"""Hyper-parameters, classes and spaces as plain data that JSON holds, and back; nothing is imported or run."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule
from torch import nn

from rlopt.file_errors import as_file_errors, one_line, shortened
from rlopt.objectives import VectorUtility, vector_utility_from_data, vector_utility_to_data
from rlopt.schedules import Constant, Custom, Linear, Power, as_schedule, schedule_from_data, schedule_to_data
from rlopt.utilities import KINDS, utility_from_data, utility_to_data

# A class in a file is a name looked up in these modules, which are imported already; never an import.
CLASS_MODULES = {
    "torch.nn": torch.nn,
    "torch.optim": torch.optim,
    "stable_baselines3.common.torch_layers": stable_baselines3.common.torch_layers,
}
# More numbers, and more entries, than any observation or action has: a space of a stranger's file may not ask for more.
LARGEST_SPACE = 10_000_000
MOST_SPACES = 1_000
DEEPEST_SPACE = 16
NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64")
DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(name) for name in NUMBERS}


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
        return [decode(name, item) if isinstance(item, list | dict) else item for item in value]
    if not isinstance(value, dict):
        return value
    for key, kind, read in READERS:
        if key in value:
            try:
                with as_file_errors(shortened(value), name):
                    return read(value)
            except ValueError as error:
                raise ValueError(f"{name}: the file holds no {kind} of rlopt: {shortened(value)}") from error
    if "class" in value:
        module, _, attribute = str(value.get("known", "")).rpartition(".")
        found = getattr(CLASS_MODULES.get(module), attribute, None)
        if not (isinstance(found, type) and issubclass(found, nn.Module | torch.optim.Optimizer)):
            given = one_line(str(value["class"]))
            raise ValueError(f"{name}: the file was made with the class {given}; pass {name.split('[')[0]}=... to load")
        return found
    return {key: decode(f"{name}[{shortened(key)}]", item) for key, item in value.items()}


# What stands for a value, by the key that a dictionary of it has.
READERS: tuple[tuple[str, str, Callable[[dict[str, Any]], Any]], ...] = (
    ("schedule", "schedule", schedule_from_data),
    ("utility", "utility", utility_from_data),
    ("vector_utility", "utility", vector_utility_from_data),
)


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
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start), **_unusual_dtype(space)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"space": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist(), **_unusual_dtype(space)}
    if isinstance(space, spaces.MultiBinary):
        return {"space": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"space": "Dict", "spaces": [[key, encode_space(sub)] for key, sub in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"space": "Tuple", "spaces": [encode_space(sub) for sub in space.spaces]}
    raise ValueError(f"space: {space} cannot be saved")


def decode_space(data: Any) -> spaces.Space:
    """The inverse of `encode_space`.

    Raises:
        ValueError: no space, or one that is too large.
    """
    with as_file_errors("it holds no space of Gymnasium", "space"):
        leaves = list(_leaves_of(data, 0))
        if len(leaves) > MOST_SPACES:
            raise ValueError(f"a space of {len(leaves)} entries")
        if (size := sum(_size_of(leaf) for leaf in leaves)) > LARGEST_SPACE:
            raise ValueError(f"a space of {size} numbers")
        return _decoded_space(data)


def _decoded_space(data: dict[str, Any]) -> spaces.Space:
    kind = data["space"]
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), DTYPES[data["dtype"]]
        low, high = (np.broadcast_to(np.asarray(data[name], dtype), shape) for name in ("low", "high"))
        if not (low <= high).all():  # nor NaN
            raise ValueError("a Box whose lower bounds are not at most its upper ones")
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(_whole(data["n"], 1), start=_whole(data["start"]), **_dtype_of(data))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(_wholes(data["nvec"], 1), start=_wholes(data["start"]), **_dtype_of(data))
    if kind == "MultiBinary":
        sizes = data["shape"]
        return spaces.MultiBinary(sizes[0] if len(sizes) == 1 else sizes)
    if kind == "Dict":
        return spaces.Dict({key: _decoded_space(sub) for key, sub in data["spaces"]})
    return spaces.Tuple([_decoded_space(sub) for sub in data["spaces"]])


def _leaves_of(data: Any, depth: int) -> Iterator[dict[str, Any]]:
    """The data of all spaces that hold no others."""
    kind = data["space"]
    if kind not in ("Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple"):
        raise ValueError(f"unknown space {shortened(kind)}")
    if kind not in ("Dict", "Tuple"):
        yield data
        return
    if depth > DEEPEST_SPACE:
        raise ValueError(f"spaces nested more than {DEEPEST_SPACE} deep")
    if len(data["spaces"]) > MOST_SPACES:
        raise ValueError(f"a space of {len(data['spaces'])} entries")
    for sub in data["spaces"]:
        if kind == "Dict" and not isinstance(sub[0], str | int):
            raise ValueError(f"the key {shortened(sub[0])}")
        yield from _leaves_of(sub[1] if kind == "Dict" else sub, depth + 1)


def _size_of(leaf: dict[str, Any]) -> int:
    """How many numbers a value of the space has."""
    if leaf["space"] in ("Box", "MultiBinary"):
        sizes = leaf["shape"]
        if not isinstance(sizes, list) or len(sizes) > 32:
            raise ValueError(f"the shape {shortened(sizes)}")
        return math.prod(_whole(size, 0) for size in sizes)
    return 1 if leaf["space"] == "Discrete" else np.size(leaf["nvec"])


def _whole(value: Any, least: int = -(2**63)) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{shortened(value)} where a whole number should be")
    return value


def _wholes(values: Any, least: int = -(2**63)) -> Any:
    """Whole numbers, nested as they are."""
    array = np.array(values)
    if array.dtype != np.int64 or (array < least).any():
        raise ValueError(f"{shortened(values)} where whole numbers should be")
    return array


def _unusual_dtype(space: spaces.Space) -> dict[str, str]:
    """The type of a space's integers, where it is not Gymnasium's default: spaces of other types are not equal."""
    return {} if space.dtype == np.int64 else {"dtype": str(space.dtype)}


def _dtype_of(data: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `_unusual_dtype`, as an argument."""
    return {"dtype": DTYPES[data["dtype"]].type} if "dtype" in data else {}


def _compact(bound: Any) -> Any:
    """One number where all entries agree, a nested list otherwise."""
    flat = bound.reshape(-1)
    return flat[0].item() if flat.size and (flat == flat[0]).all() else bound.tolist()
