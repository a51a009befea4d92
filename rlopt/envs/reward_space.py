"""How many rewards an environment pays in a step, as far as it says so before it is stepped."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.vector import VectorEnv, VectorRewardWrapper
from stable_baselines3.common.vec_env import VecEnv

# Whose wrappers keep the shape of a reward, except for those that are named below.
TRANSPARENT = ("gymnasium.", "mo_gymnasium.")


class Announced(NamedTuple):
    """What an environment says of its rewards.

    Attributes:
        num_objectives: K; None where it says nothing, or where a wrapper may make anything of the reward.
        binding: whether a single number instead is a fault: no wrapper is around that could have summed the rewards up.
    """

    num_objectives: int | None = None
    binding: bool = True


def announced_objectives(env: Any) -> Announced:
    """K of the attribute `reward_space`, a Box of shape (K,), of the environment or of what it is wrapped around.

    Args:
        env: a `gym.Env`, a Gymnasium `VectorEnv` or an SB3 `VecEnv`. A convention of MO-Gymnasium.
    """
    layer, binding = env, True
    while layer is not None:
        space = getattr(layer, "reward_space", None)
        if space is not None:
            shape = tuple(getattr(space, "shape", None) or ())
            return Announced(shape[0] if len(shape) == 1 else None, binding)
        module = type(layer).__module__
        if _is_weighted_sum(layer):
            return Announced(1)
        if isinstance(layer, gym.RewardWrapper | VectorRewardWrapper) and not module.startswith("mo_gymnasium."):
            return Announced()
        binding = binding and module.startswith(TRANSPARENT)
        layer = _inside(layer)
    return Announced()


def _is_weighted_sum(layer: Any) -> bool:
    return type(layer).__name__ == "LinearReward" and type(layer).__module__.startswith("mo_gymnasium.")


def _inside(layer: Any) -> Any:
    """What a wrapper is around, or the first of the environments in a container; None if there is nothing."""
    attributes = getattr(layer, "__dict__", {})
    contained = attributes.get("envs")
    candidates = [
        attributes.get("env"),
        attributes.get("venv"),
        *(contained[:1] if isinstance(contained, list | tuple) else ()),
    ]
    return next((inner for inner in candidates if isinstance(inner, gym.Env | VectorEnv | VecEnv)), None)
