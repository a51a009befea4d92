"""Velocity masks: known tasks whose velocities are not shown, so that one observation does not tell the state.

Velocities are set to zero and the observation keeps its shape, as rl-baselines3-zoo has it; scores may be compared.
Importing `rlopt` registers "CartPoleNoVel-v1", "HalfCheetahNoVel-v5", ...: see `rlopt.envs.registration`.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorObservationWrapper

from rlopt.envs.spaces import Array, ArrayTree

# Which entries of an observation are velocities, where the environment itself does not say.
VELOCITIES: dict[str, tuple[int, ...]] = {
    "CartPole-v1": (1, 3),
    "Pendulum-v1": (2,),
    "MountainCar-v0": (1,),
    "MountainCarContinuous-v0": (1,),
    "LunarLander-v3": (2, 3, 5),
    "LunarLanderContinuous-v3": (2, 3, 5),
    "InvertedDoublePendulum-v5": (5, 6, 7),
    "Reacher-v5": (6, 7),
    "Pusher-v5": tuple(range(7, 14)),
}
# Parts of MuJoCo's observations: of joints, of bodies' centres of mass, of tendons.
VELOCITY_PARTS = ("qvel", "cvel", "ten_velocity")


class HideVelocity(gym.ObservationWrapper, RecordConstructorArgs):
    """An environment that shows zeros in place of velocities.

    Args:
        env: its observations are vectors.
        indices: of the entries to hide; None takes those that are known to be velocities.
        privileged: show {"observation": what is left, "critic": everything} in place of what is left.

    Raises:
        ValueError: observations that are no vectors, an index that they do not have, velocities that are not known.
    """

    def __init__(self, env: gym.Env, indices: Sequence[int] | None = None, privileged: bool = False):
        RecordConstructorArgs.__init__(self, indices=indices, privileged=privileged)
        gym.ObservationWrapper.__init__(self, env)
        self.indices, self.privileged = _checked(env, env.observation_space, indices), privileged
        self.observation_space = _shown_space(env.observation_space, privileged)

    def observation(self, observation: Any) -> Any:
        return _shown(observation, self.indices, self.privileged)


class HideVelocityVector(VectorObservationWrapper):
    """The same for a Gymnasium `VectorEnv` that resets on the next step or not at all; arguments as in `HideVelocity`."""

    def __init__(self, env: VectorEnv, indices: Sequence[int] | None = None, privileged: bool = False):
        super().__init__(env)
        self.indices, self.privileged = _checked(env, env.single_observation_space, indices), privileged
        self.single_observation_space = _shown_space(env.single_observation_space, privileged)
        self.observation_space = _shown_space(env.observation_space, privileged)

    def observations(self, observations: Any) -> Any:
        return _shown(observations, self.indices, self.privileged)


def velocity_indices(env: Any) -> tuple[int, ...]:
    """Which entries of an environment's observations are velocities.

    MuJoCo's environments tell their layout, which depends on their arguments; others are looked up by their id.

    Raises:
        ValueError: neither helps.
    """
    layout = getattr(env.unwrapped, "observation_structure", None)
    if layout is not None:
        found: list[int] = []
        start = 0
        for part, size in layout.items():
            if part != "skipped_qpos":  # left out of the observation
                found += range(start, start + size) if part in VELOCITY_PARTS else ()
                start += size
        return tuple(found)
    spec = env.unwrapped.spec  # a wrapper would keep it, and an id that is made of another could not set its own
    name = spec.id if spec is not None else type(env.unwrapped).__name__
    if name not in VELOCITIES:
        raise ValueError(f"indices: which entries of {name} are velocities is not known; name them, for example indices=[1, 3]")
    return VELOCITIES[name]


def hidden_velocity_env(env_id: str, privileged: bool = False, **kwargs: Any) -> HideVelocity:
    """The environment `env_id` without velocities and without its time limit, which the registered id has."""
    env = gym.make(env_id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    return HideVelocity(env, privileged=privileged)


def hidden_velocity_envs(env_id: str, num_envs: int = 1, privileged: bool = False, **kwargs: Any) -> HideVelocityVector:
    """The same of Gymnasium's own vector implementation of `env_id`."""
    envs = gym.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)
    return HideVelocityVector(envs, privileged=privileged)


def _checked(env: Any, space: spaces.Space, indices: Sequence[int] | None) -> list[int]:
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"env: expected observations in a Box of one axis, got {space}")
    indices = velocity_indices(env) if indices is None else indices
    size = space.shape[0]
    if not all(isinstance(index, Integral) and 0 <= index < size for index in indices):
        raise ValueError(f"indices: expected integers in [0, {size - 1}], got {indices!r}")
    return list(indices)


def _shown_space(space: Any, privileged: bool) -> spaces.Space:
    return spaces.Dict({"observation": space, "critic": space}) if privileged else space


def _shown(observations: Array, indices: list[int], privileged: bool) -> ArrayTree:
    """[..., D] with zeros at the indices, in memory of its own."""
    masked = np.array(observations)
    masked[..., indices] = 0
    return {"observation": masked, "critic": np.array(observations)} if privileged else masked
