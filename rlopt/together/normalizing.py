"""Running normalisation of several agents, each with statistics of its own, over environments that are stepped as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rlopt.envs.normalize import ObservationNormalizer, RewardNormalizer
from rlopt.envs.spaces import Array


class JointObservationNormalizer:
    """Blocks of rows, one for each normaliser."""

    def __init__(self, normalizers: Sequence[ObservationNormalizer]):
        self.normalizers = normalizers

    def update(self, observations: Array) -> None:
        """Count observations [K·N, *obs], finite values, each for its agent."""
        for normalizer, block in zip(self.normalizers, np.split(observations, len(self.normalizers)), strict=True):
            normalizer.update(block)

    def __call__(self, observations: Array) -> Array:
        """The observations normalised with the statistics as they are, float32."""
        blocks = np.split(observations, len(self.normalizers))
        return np.concatenate([normalizer(block) for normalizer, block in zip(self.normalizers, blocks, strict=True)])

    def of(self, owners: Array, observations: Array) -> Array:
        """Some rows [F, *obs], normalised as those of the agents `owners` [F]."""
        normalized = np.empty(observations.shape, np.float32)
        for k in np.unique(owners):
            normalized[owners == k] = self.normalizers[k](observations[owners == k])
        return normalized


class JointRewardNormalizer:
    """Blocks of rewards, one for each normaliser."""

    def __init__(self, normalizers: Sequence[RewardNormalizer]):
        self.normalizers = normalizers

    def __call__(self, *arrays: Array) -> Array:
        """Rewards [K·N] normalised after counting them; arguments as `RewardNormalizer` takes them."""
        blocks = zip(self.normalizers, *(np.split(array, len(self.normalizers)) for array in arrays), strict=True)
        return np.concatenate([normalizer(*block) for normalizer, *block in blocks])
