"""What tensors of a file must be like before an agent takes them: a wrong one would show much later, or never."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlopt.envs.spaces import Array

# torch's CPU generator: seed, numbers left, seeded, next number, state [624], and what is kept of the normal distribution.
GENERATOR_BYTES = 5056
LEFT, NEXT, NUMBERS = slice(8, 12), slice(16, 24), 624


def check_moments(moments: Mapping[str, Tensor], theta: Tensor) -> None:
    """Raises ValueError unless these can be an optimiser's running means for θ [d]: none larger than it, no negative step."""
    for name, value in moments.items():
        if value.numel() > theta.numel():
            raise ValueError(f"moments: {name} has {value.numel()} numbers, there are {theta.numel()} parameters")
        if name.rpartition(".")[2] == "step" and not bool((value >= 0).all()):
            raise ValueError(f"moments: expected steps of at least 0 in {name}")
        if name in ("exp_avg", "exp_avg_sq") and (value.shape != theta.shape or value.dtype != theta.dtype):
            raise ValueError(
                f"moments: expected {name} {list(theta.shape)} of {theta.dtype}, got {list(value.shape)} of {value.dtype}"
            )


def check_like(name: str, mine: Tensor, stored: Tensor) -> None:
    """Raises ValueError unless a stored tensor can stand for `mine`: numbers of its kind, and its shape unless it is empty."""
    if mine.is_floating_point() != stored.is_floating_point() or stored.is_complex():
        raise ValueError(f"{name}: expected numbers like {mine.dtype}, got {stored.dtype}")
    if mine.numel() and mine.shape != stored.shape:
        raise ValueError(f"{name}: expected the shape {list(mine.shape)}, got {list(stored.shape)}")


def check_statistics(stored: Mapping[str, Array], mine: Mapping[str, Array]) -> None:
    """Raises ValueError unless running means, variances and counts are those of numbers shaped as `mine` are."""
    for name, expected in mine.items():
        array = stored[name]
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"{name}: expected floating-point numbers, got {array.dtype}")
        if array.shape != expected.shape:
            raise ValueError(f"{name}: expected the shape {expected.shape}, got {array.shape}")
        if name.rpartition(":")[2] in ("var", "count") and (array < 0).any():
            raise ValueError(f"{name}: expected numbers of at least 0")


def reward_statistics_like(stored: Mapping[str, Array]) -> dict[str, Array]:
    """What `check_statistics` compares a reward normaliser's with, whatever its number of environments and rewards."""
    rewards = stored["mean"].shape
    if len(rewards) > 1 or stored["returns"].ndim < 1:
        raise ValueError(f"mean: expected a number or [K], got the shape {rewards}")
    zeros = {name: np.zeros(rewards) for name in ("mean", "var")}
    return {**zeros, "count": np.zeros(()), "returns": np.zeros((len(stored["returns"]), *rewards))}


def set_generator(generator: torch.Generator, state: Tensor) -> None:
    """Put a generator where a file says it was.

    Raises:
        ValueError: no state of such a generator, or one from which torch would read beyond its end.
    """
    if state.dtype != torch.uint8 or (generator.device.type == "cpu" and state.shape != (GENERATOR_BYTES,)):
        raise ValueError(f"generators: expected [{GENERATOR_BYTES}] bytes, got {list(state.shape)} of {state.dtype}")
    if generator.device.type == "cpu":
        left, following = _integer(state[LEFT]), _integer(state[NEXT])
        if not (1 <= left <= NUMBERS and 0 <= following <= NUMBERS + 1 - left):
            raise ValueError(f"generators: a state with {left} numbers left at number {following} of {NUMBERS} makes no sense")
    try:
        generator.set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"generators: torch refuses the state: {error}") from error


def _integer(content: Any) -> int:
    return int.from_bytes(bytes(content.tolist()), "little", signed=True)
