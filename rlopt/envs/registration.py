"""Gymnasium ids of the environments that rlopt brings; importing `rlopt` registers them."""

from __future__ import annotations

import gymnasium as gym

# One environment and many, by module and function: their modules are imported when an environment is made.
ENTRY_POINTS = {
    "rlopt/RandomMDP-v0": ("rlopt.envs.tabular_vector:random_mdp_env", "rlopt.envs.tabular_vector:random_mdp_envs"),
    "rlopt/Grid-v0": ("rlopt.envs.tabular_vector:grid_env", "rlopt.envs.tabular_vector:grid_envs"),
    "rlopt/LQR-v0": ("rlopt.envs.linear_quadratic_vector:point_mass_env", "rlopt.envs.linear_quadratic_vector:point_mass_envs"),
    "rlopt/GaussianBandit-v0": (
        "rlopt.envs.linear_quadratic_vector:gaussian_bandit_env",
        "rlopt.envs.linear_quadratic_vector:gaussian_bandit_envs",
    ),
}


def register_environments() -> None:
    """Register every id, once. Their horizons are inside: Gymnasium adds no time limit."""
    for env_id, (entry_point, vector_entry_point) in ENTRY_POINTS.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=entry_point, vector_entry_point=vector_entry_point, disable_env_checker=True)
