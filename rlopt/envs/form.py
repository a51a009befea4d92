"""Whether what an environment returned is what its spaces promise, said in words if not."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlopt.envs.base import first_non_finite, named
from rlopt.envs.spaces import ArrayTree, ObservationEncoder, stack_observations

ANY_NUMBER, WHOLE_NUMBER = "biuf", "biu"  # kinds of NumPy's types


class Form:
    """Shapes and kinds of numbers of encoded observations."""

    def __init__(self, encoder: ObservationEncoder):
        self.encoder = encoder
        self._promised = {
            field: (array.shape[1:], ANY_NUMBER if array.dtype.kind == "f" else WHOLE_NUMBER)
            for field, array in named(encoder.empty(0)).items()
        }

    def mismatch(self, observations: ArrayTree) -> str | None:
        """The first array of encoded observations [n, *obs] that is not as promised, in words; None if all are."""
        if not isinstance(observations, dict):  # most are plain, and this is asked at every step
            shape, kinds = self._promised["observation"]
            if observations.shape[1:] == shape and observations.dtype.kind in kinds:
                return None
        for field, array in named(observations).items():
            shape, kinds = self._promised[field]
            if array.shape[1:] != shape or array.dtype.kind not in kinds:
                numbers = "numbers" if kinds == ANY_NUMBER else "whole numbers"
                return (
                    f"{field} of shape {array.shape[1:]} and type {array.dtype}, the space promises {numbers} of shape {shape}"
                )
        return None

    def complaint(self, observation: Any, finite: bool = True) -> str | None:
        """What is wrong with one raw observation, or None; `finite` also looks for NaN and infinity."""
        space = self.encoder.raw_space
        try:
            encoded = self.encoder(stack_observations([observation], space))
        except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            return f"returned an observation that is none of {space} ({said(error)})"
        if (mismatch := self.mismatch(encoded)) is not None:
            return f"returned {mismatch}"
        if finite and (found := first_non_finite(named(encoded))) is not None:
            return f"returned {found[0]} that is not finite"
        return None


def complaint_of_reward(reward: Any) -> str | None:
    """What is wrong with one reward, or None."""
    try:
        value = np.asarray(reward, np.float64)
    except (TypeError, ValueError):
        return f"returned the reward {reward!r}, expected a number"
    return None if np.isfinite(value).all() else f"returned the reward {reward!r}, which is not finite"


def said(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
