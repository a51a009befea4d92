"""Environments of every kind in, arrays out."""

from rlopt.envs.base import EnvironmentFault, Environments, Step, episode_seed
from rlopt.envs.registration import register_environments
from rlopt.envs.vector import make_env, make_envs

__all__ = ["EnvironmentFault", "Environments", "Step", "episode_seed", "make_env", "make_envs"]

register_environments()
