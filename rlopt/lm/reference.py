"""The reference model π_ref: the policy without its adapter, a frozen copy, or none."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reference:
    """How π_ref is reached: `with reference() as model`."""

    model: Any
    """A copy of the first model, or the policy itself if it has an adapter to switch off."""
    is_copy: bool

    @contextmanager
    def __call__(self) -> Iterator[Any]:
        """The reference model, for reading."""
        if self.is_copy:
            yield self.model
            return
        with self.model.disable_adapter():
            yield self.model

    def parameters(self) -> dict[str, Tensor]:
        """Those that the policy does not have, by name: a copy's."""
        return dict(self.model.named_parameters()) if self.is_copy else {}

    @torch.no_grad()
    def follow(self, model: Any, share: float) -> None:
        """θ_ref ← α θ + (1 − α) θ_ref, with α = `share`; the copy changes."""
        theirs = dict(model.named_parameters())
        for name, ours in self.parameters().items():
            ours.lerp_(theirs[name].to(ours), share)


def reference_of(model: Any, needed: bool) -> Reference | None:
    """π_ref, the model as it is now.

    A model with a PEFT adapter is its own reference with the adapter switched off, which costs no memory: the reference is
    then the base model, also where the adapter was trained before. Other models are copied.
    """
    if not needed:
        return None
    if hasattr(model, "disable_adapter"):
        return Reference(model, is_copy=False)
    return Reference(copy.deepcopy(model).requires_grad_(False).eval(), is_copy=True)
