"""A GPU that is not there: tensors that say they are on another device and are not, and complain where a real one would.

Operations on them are done on the CPU. What mixes them with tensors of the host, reads them as arrays, or draws on the device
with a generator of the host, raises as it would on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")  # which torch has without a GPU
BETWEEN = {"copy_", "_to_copy", "to", "index", "index_put_", "index_put", "_index_put_impl_"}  # may read the host's tensors

SEEDS_ON_DEVICE: set[int] = set()  # of the generators that count as the device's


class Mixed(RuntimeError):
    """An operation on tensors of two devices."""


class OnDevice(Tensor):
    """A tensor of the host that says it is on `DEVICE`."""

    elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor, requires_grad: bool = False) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            device=DEVICE,
            requires_grad=requires_grad,
        )
        made.elem = elem
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.elem!r})"

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: OnDevice) -> None:
        self.elem = value.elem  # torch cannot exchange what a tensor of a class of one's own holds

    def tolist(self) -> Any:
        return self.elem.tolist()

    def new_tensor(self, data: Any, **options: Any) -> OnDevice:
        return OnDevice(self.elem.new_tensor(data, **options))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            made = OnDevice(self.elem.clone(), self.requires_grad)
            if getattr(self, "_is_param", False):
                made._is_param = True
            memo[id(self)] = made
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return run(function, arguments, keywords or {})


def run(function: Any, arguments: Any, keywords: dict[str, Any]) -> Any:
    """The operation on what is inside."""
    name = function.overloadpacket.__name__
    leaves = [leaf for leaf in tree_leaves((arguments, keywords)) if isinstance(leaf, Tensor)]
    marked = [leaf for leaf in leaves if isinstance(leaf, OnDevice)]
    asked = keywords.get("device")
    host = [leaf for leaf in leaves if not isinstance(leaf, OnDevice) and leaf.ndim]
    if marked and host and name not in BETWEEN:
        raise Mixed(f"{name}: tensors on two devices, {[tuple(leaf.shape) for leaf in leaves]}")
    if name == "index_put_" and not isinstance(arguments[0], OnDevice) and marked:
        raise Mixed(f"{name}: values on the device, target on the host")
    there = (asked is not None and torch.device(asked) == DEVICE) or (asked is None and bool(marked))
    if name == "copy_":
        there = isinstance(arguments[0], OnDevice)
    generator = keywords.get("generator")
    if generator is not None and there != (generator.initial_seed() in SEEDS_ON_DEVICE):
        raise RuntimeError(f"{name}: expected a generator on the tensor's device")
    if asked is not None:
        keywords = {**keywords, "device": torch.device("cpu")}
    inner_arguments, inner_keywords = tree_map(lambda x: x.elem if isinstance(x, OnDevice) else x, (arguments, keywords))
    result = function(*inner_arguments, **inner_keywords)
    targets = {id(leaf.elem): leaf for leaf in marked}  # operations in place return their argument

    def outside(x: Any) -> Any:
        if not isinstance(x, Tensor) or not there:
            return x
        known = targets.get(id(x))
        return OnDevice(x) if known is None else known

    return tree_map(outside, result)


class Marked(TorchDispatchMode):
    """Lets tensors be made on the device."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        return run(function, arguments, keywords or {})


@contextmanager
def marked_device() -> Iterator[None]:
    """While this lasts, `DEVICE` can be computed on.

    Numbers that are drawn there are those that the host would have drawn, so that a training there is the same.
    """

    def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
        if device == DEVICE:
            SEEDS_ON_DEVICE.add(generator.initial_seed())
        return generator

    def draw_noise(space: Any, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        SEEDS_ON_DEVICE.discard(generator.initial_seed())
        return OnDevice(distributions.draw_noise(space, shape, generator))

    original = torch.tensor

    def tensor(data: Any, device: Any = None, **options: Any) -> Tensor:
        made = original(data, **options)
        return OnDevice(made) if device is not None and torch.device(device) == DEVICE else made

    from rlopt import device_collector
    from rlopt.agents import proximal
    from rlopt.envs import torch_classic_control
    from rlopt.policies import distributions

    with pytest.MonkeyPatch.context() as patched, Marked():
        patched.setattr(torch, "tensor", tensor)
        for module in (device_collector, proximal, torch_classic_control):
            patched.setattr(module, "generator_on", generator_on)
        patched.setattr(device_collector, "draw_noise", draw_noise)
        SEEDS_ON_DEVICE.clear()
        yield
