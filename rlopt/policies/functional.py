"""A module seen as a function of one flat parameter vector θ."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn


def parameter_views(module: nn.Module, theta: Tensor) -> dict[str, Tensor]:
    """θ [d] cut into views with the names and shapes of the module's parameters, tied ones once."""
    size = sum(parameter.numel() for parameter in module.parameters())
    if theta.shape != (size,):
        raise ValueError(f"theta has shape {tuple(theta.shape)}, but the module has {size} parameters")
    views, offset = {}, 0
    for name, parameter in module.named_parameters():
        views[name] = theta[offset : offset + parameter.numel()].view(parameter.shape)
        offset += parameter.numel()
    return views


def flatten_parameters(module: nn.Module) -> Tensor:
    """θ [d]: a copy of all parameters, in the order of `named_parameters`."""
    return torch.cat([parameter.detach().reshape(-1) for parameter in module.parameters()])


def bind_parameters(module: nn.Module, theta: Tensor) -> None:
    """Make the module's parameters views of θ: what is written to one is seen in the other."""
    _bind(list(module.parameters()), module, theta)


def _bind(parameters: list[nn.Parameter], module: nn.Module, theta: Tensor) -> None:
    sizes = [parameter.numel() for parameter in parameters]
    if theta.shape != (sum(sizes),):
        parameter_views(module, theta)  # which says what is wrong
    for parameter, piece in zip(parameters, theta.detach().split(sizes), strict=True):
        parameter.data = piece.view(parameter.shape)


def share_buffers(source: nn.Module, target: nn.Module) -> None:
    """Let `target`, a copy of `source`, use the very buffers of `source` (running statistics, say)."""
    for mine, theirs in zip(target.modules(), source.modules(), strict=True):
        mine._buffers.update(theirs._buffers)


class Functional:
    """f(θ, *inputs) for a module, and the way between θ and named tensors.

    The module is copied, so that binding parameters here never moves those of the caller's module. Use the call
    where θ is differentiated by `torch.func`; use `bind` where the same θ serves many plain calls, as in acting.
    """

    def __init__(self, module: nn.Module):
        self.module = copy.deepcopy(module)
        share_buffers(module, self.module)
        self.module.eval()
        # Read once: walking over a module's parameters costs more than a small network.
        self._parameters = list(self.module.parameters())
        self._parts = [(name, parameter.shape) for name, parameter in self.module.named_parameters()]
        self._sizes = [parameter.numel() for parameter in self._parameters]

    def init(self) -> Tensor:
        """θ [d] of the module as it is."""
        return flatten_parameters(self.module)

    def unravel(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of θ by parameter name."""
        if theta.shape != (sum(self._sizes),):
            return parameter_views(self.module, theta)  # which says what is wrong
        pieces = theta.split(self._sizes)
        return {name: piece.view(shape) for (name, shape), piece in zip(self._parts, pieces, strict=True)}

    def bind(self, theta: Tensor) -> Any:
        """The module with its parameters as views of θ, for plain calls until the next `bind`."""
        _bind(self._parameters, self.module, theta)
        return self.module

    def __call__(self, theta: Tensor, *inputs: Any) -> Any:
        return torch.func.functional_call(self.module, self.unravel(theta), inputs)
