"""Nested plain values with arrays in them, as what a file holds: a JSON document and tensors by name."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlopt.envs.spaces import Array

# The only key of what stands in the document for a tensor, an array, or a long list of numbers: {"$tensor": name}.
TENSOR, ARRAY, NUMBERS = "$tensor", "$array", "$numbers"
RESERVED = {TENSOR, ARRAY, NUMBERS}
MANY = 32


def split(value: Any, name: str) -> tuple[Any, dict[str, Tensor]]:
    """The value as JSON can hold it, and its arrays as tensors that share no memory, named after their place.

    Args:
        value: dictionaries with texts for keys, lists, tuples, deques, arrays, tensors, numbers, texts, None.
        name: of the whole, before a slash in each tensor's name.

    Raises:
        TypeError: another kind of value.
    """
    tensors: dict[str, Tensor] = {}

    def plain(part: Any, place: str) -> Any:
        if isinstance(part, np.generic):
            return part.item()
        if part is None or isinstance(part, bool | int | float | str):
            return part
        if isinstance(part, np.ndarray | Tensor):
            tensors[place] = torch.as_tensor(part).detach().clone()
            return {TENSOR if isinstance(part, Tensor) else ARRAY: place}
        if type(part) is dict and all(isinstance(key, str) for key in part) and not part.keys() & RESERVED:
            return {key: plain(entry, f"{place}/{key}") for key, entry in part.items()}
        if isinstance(part, list | tuple | deque):
            if _are_many_numbers(part):
                tensors[place] = torch.from_numpy(np.asarray(part))
                return {NUMBERS: place}
            return [plain(entry, f"{place}/{index}") for index, entry in enumerate(part)]
        raise TypeError(f"{place}: {type(part).__name__} cannot be kept as data")

    return plain(value, name), tensors


def join(document: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `split`; lists for whatever was a sequence.

    Raises:
        KeyError: a tensor is missing.
    """
    if isinstance(document, dict):
        if len(document) == 1 and (kind := next(iter(document))) in RESERVED:
            tensor = tensors[document[kind]]
            return tensor if kind == TENSOR else _array(tensor) if kind == ARRAY else _array(tensor).tolist()
        return {key: join(entry, tensors) for key, entry in document.items()}
    if isinstance(document, list):
        return [join(entry, tensors) for entry in document]
    return document


def _are_many_numbers(part: Sequence[Any]) -> bool:
    """Whether a sequence is long, and of one kind of number that an array holds exactly."""
    if len(part) < MANY:
        return False
    kinds = set(map(type, part))
    return kinds == {float} or (kinds == {int} and all(abs(number) < 2**63 for number in part))


def _array(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()
