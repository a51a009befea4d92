"""The reference model π_ref: the policy without its adapter, a frozen copy, or none."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

# Opens the reference model for reading.
Reference = Callable[[], AbstractContextManager[Any]]


def reference_of(model: Any, needed: bool) -> Reference | None:
    """How π_ref, the model as it is now, is reached.

    A model with a PEFT adapter is its own reference with the adapter switched off, which costs no memory: the reference is
    then the base model, also where the adapter was trained before. Other models are copied.
    """
    if not needed:
        return None
    if hasattr(model, "disable_adapter"):
        return lambda: _without_adapter(model)
    frozen = copy.deepcopy(model).requires_grad_(False).eval()
    return lambda: _as_it_is(frozen)


@contextmanager
def _without_adapter(model: Any) -> Iterator[Any]:
    with model.disable_adapter():
        yield model


@contextmanager
def _as_it_is(model: Any) -> Iterator[Any]:
    yield model
