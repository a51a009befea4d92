"""Operations for which the host has to wait for the device, forbidden: what may run amid a CUDA graph or a long queue."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "masked_select",
    "equal",
    "is_nonzero",
    "_unique2",
    "bincount",
    "lift_fresh",
}


class HostReads(RuntimeError):
    """The host looked at a number, or made a tensor of numbers that it had to send."""


class ForbidHostReads(TorchDispatchMode):
    """While this is on, an operation that waits for a device raises `HostReads`, wherever the tensors are.

    `lift_fresh` is a tensor made of Python numbers or an array: on a device, a copy that is waited for.
    """

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function.overloadpacket.__name__
        masks = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        if name in WAITING or masks:
            raise HostReads(name)
        return function(*arguments, **(keywords or {}))
