"""A user's own function as a utility."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rlopt.objectives.vector_utility import VectorUtility


@dataclass(frozen=True)
class UserUtility(VectorUtility):
    """A user's differentiable function from J [K] to a scalar tensor. It trains, but it cannot be saved.

    It is called with one vector at a time, also where there are many, and always with a point of the box.
    """

    kind: ClassVar[str] = "user"

    function: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        if not callable(self.function) or isinstance(self.function, type):
            raise ValueError(f"function: expected a function from returns [K] to a scalar tensor, got {self.function!r}")
        super().__post_init__()

    def evaluate(self, point: Tensor, multipliers: Tensor) -> Tensor:
        # One by one: a function that indexes J[0] would take the first of a batch [N, K] for the first objective.
        values = [self._scalar(row) for row in point.reshape(-1, point.shape[-1])]
        return torch.stack(values).reshape(point.shape[:-1]) if values else point.new_zeros(point.shape[:-1])

    def __str__(self) -> str:
        return f"user:{getattr(self.function, '__name__', repr(self.function))}"

    def _scalar(self, row: Tensor) -> Tensor:
        value = self.function(row)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise ValueError(f"utility: {self}: expected a scalar tensor of the returns, got {value!r}")
        return value.reshape(())
