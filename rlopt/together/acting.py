"""The actors of several agents as one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from rlopt.acting import Actor, NumpyActor
from rlopt.envs.spaces import Array, ArrayTree


def joint_actor(actors: Sequence[Actor]) -> Actor:
    """What acts for the environments of all of them, [K·N], in their order."""
    if all(type(actor) is NumpyActor for actor in actors):
        return StackedActor(cast("Sequence[NumpyActor]", actors))
    return InTurn(actors)


class InTurn:
    """One actor after another."""

    def __init__(self, actors: Sequence[Actor]):
        self.actors = actors

    def __call__(self, observations: ArrayTree, noise: Array) -> Array:
        assert isinstance(observations, np.ndarray)
        num = len(self.actors)
        blocks = zip(self.actors, np.split(observations, num), np.split(noise, num), strict=True)
        return np.concatenate([actor(*block) for actor, *block in blocks])


class StackedActor:
    """K small MLPs as one, whose layers are [K, in, out]."""

    def __init__(self, actors: Sequence[NumpyActor]):
        self.num = len(actors)
        self.layers = [
            (np.stack([layer[0] for layer in same]), np.stack([layer[1] for layer in same])[:, None], same[0][2])
            for same in zip(*(actor.layers for actor in actors), strict=True)
        ]
        deviations = [actor.sample.std for actor in actors if actor.sample.std is not None]
        self.sample = replace(actors[0].sample, std=np.stack(deviations)[:, None] if deviations else None)

    def __call__(self, observations: ArrayTree, noise: Array) -> Array:
        assert isinstance(observations, np.ndarray)
        x = observations.reshape(self.num, -1, observations.shape[-1])
        for weight, bias, activation in self.layers:
            x = np.matmul(x, weight)
            x += bias
            if activation is not None:
                activation(x, out=x)
        actions = self.sample(x, noise.reshape(self.num, -1, *noise.shape[1:]))
        return actions.reshape(-1, *actions.shape[2:])
