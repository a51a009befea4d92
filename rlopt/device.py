"""Where to compute, and with how many threads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from stable_baselines3.common.utils import get_device
from torch import Tensor

# One thread is fastest for networks of fewer parameters; larger ones get all cores.
SMALL_NETWORK = 300_000


def usable_device(device: torch.device | str) -> torch.device:
    """The device asked for; "auto" is CUDA if there is one. Warns where CUDA was asked for in vain.

    Raises:
        ValueError: not a device of torch.
    """
    try:
        chosen = get_device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or another device of torch, got {device!r}") from None
    if str(device).startswith("cuda") and chosen.type == "cpu":
        warnings.warn(f"device: {device} is not available, using the CPU", stacklevel=3)
    return chosen


@contextmanager
def threads_for(theta: Tensor) -> Iterator[None]:
    """Compute with one thread if the network is small, and put the number of threads back."""
    before = torch.get_num_threads()
    if theta.numel() < SMALL_NETWORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
