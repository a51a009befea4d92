"""Gymnasium ids of the environments that rlopt brings; importing `rlopt` registers them."""

from __future__ import annotations

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec

# One environment and many, by module and function: their modules are imported when an environment is made.
ENTRY_POINTS = {
    "rlopt/RandomMDP-v0": ("rlopt.envs.tabular_vector:random_mdp_env", "rlopt.envs.tabular_vector:random_mdp_envs"),
    "rlopt/Grid-v0": ("rlopt.envs.tabular_vector:grid_env", "rlopt.envs.tabular_vector:grid_envs"),
    "rlopt/LQR-v0": ("rlopt.envs.linear_quadratic_vector:point_mass_env", "rlopt.envs.linear_quadratic_vector:point_mass_envs"),
    "rlopt/MultiObjectiveLQR-v0": (
        "rlopt.envs.multi_objective_lqr:crossed_costs_env",
        "rlopt.envs.multi_objective_lqr:crossed_costs_envs",
    ),
    "rlopt/Queues-v0": ("rlopt.envs.queues:queues_env", "rlopt.envs.queues:queues_envs"),
    "rlopt/GaussianBandit-v0": (
        "rlopt.envs.linear_quadratic_vector:gaussian_bandit_env",
        "rlopt.envs.linear_quadratic_vector:gaussian_bandit_envs",
    ),
    "rlopt/CueRecall-v0": ("rlopt.envs.cue_recall:cue_recall_env", "rlopt.envs.cue_recall:cue_recall_envs"),
    "rlopt/TMaze-v0": ("rlopt.envs.t_maze:t_maze_env", "rlopt.envs.t_maze:t_maze_envs"),
    "rlopt/ContinuousRecall-v0": (
        "rlopt.envs.continuous_recall:continuous_recall_env",
        "rlopt.envs.continuous_recall:continuous_recall_envs",
    ),
    "rlopt/LQG-v0": (
        "rlopt.envs.linear_quadratic_gaussian:noisy_point_mass_env",
        "rlopt.envs.linear_quadratic_gaussian:noisy_point_mass_envs",
    ),
}

# Gymnasium's tasks that are there without velocities too, by the names of rl-baselines3-zoo: "CartPoleNoVel-v1".
VELOCITIES_HIDDEN = (
    "CartPole-v1",
    "Pendulum-v1",
    "MountainCar-v0",
    "MountainCarContinuous-v0",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Walker2d-v5",
    "Ant-v5",
    "Swimmer-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Pusher-v5",
)


def register_environments() -> None:
    """Register every id, once. The horizons of rlopt's own are inside: Gymnasium adds no time limit."""
    for env_id, (entry_point, vector_entry_point) in ENTRY_POINTS.items():
        if env_id not in gym.registry:
            gym.register(env_id, entry_point=entry_point, vector_entry_point=vector_entry_point, disable_env_checker=True)
    for original in VELOCITIES_HIDDEN:
        if original in gym.registry and without_velocities(original) not in gym.registry:
            _register_without_velocities(gym.spec(original))


def without_velocities(env_id: str) -> str:
    """The id under which a task is registered whose velocities are hidden: "CartPoleNoVel-v1" of "CartPole-v1"."""
    name, _, version = env_id.rpartition("-v")
    return f"{name}NoVel-v{version}"


def _register_without_velocities(original: EnvSpec) -> None:
    """The time limit, the threshold and, where there is one, the native vector implementation are those of the original."""
    gym.register(
        without_velocities(original.id),
        entry_point="rlopt.envs.pomdp:hidden_velocity_env",
        vector_entry_point=original.vector_entry_point and "rlopt.envs.pomdp:hidden_velocity_envs",
        reward_threshold=original.reward_threshold,
        nondeterministic=original.nondeterministic,
        max_episode_steps=original.max_episode_steps,
        order_enforce=False,  # the original does
        disable_env_checker=True,
        kwargs={"env_id": original.id},
    )
