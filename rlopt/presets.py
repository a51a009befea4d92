"""Named sets of hyper-parameters: SB3's, CleanRL's, and tuned ones for single environments. Explicit arguments win."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from rlopt.arguments import check_choice, did_you_mean
from rlopt.envs.base import Environments
from rlopt.envs.vector import can_be_copied, make_env

Preset = dict[str, Any]

SB3: dict[str, Preset] = {
    "ppo": {
        "learning_rate": 3e-4,
        "n_steps": 2048,
        "batch_size": 64,
        "n_epochs": 10,
        "gamma": 0.99,
        "gae_lambda": 0.95,
        "clip_range": 0.2,
        "clip_range_vf": None,
        "normalize_advantage": True,
        "ent_coef": 0.0,
        "vf_coef": 0.5,
        "max_grad_norm": 0.5,
        "target_kl": None,
        "value_clip": "prediction",
        "bootstrap_truncation": True,
        "schedule_from": "rollout_end",
    }
}

# Differs from SB3 in schedule, value loss, truncation and, for continuous actions, normalisation. The value loss
# there is half the mean square with coefficient 0.5: the mean square with 0.25.
CLEANRL_COMMON: Preset = {
    **SB3["ppo"],
    "vf_coef": 0.25,
    "clip_range_vf": 0.2,
    "value_clip": "maximum",
    "bootstrap_truncation": False,
    "schedule_from": "rollout_start",
    "carry_reward_returns": True,
}
CLEANRL: dict[str, Preset] = {
    "discrete": {
        **CLEANRL_COMMON,
        "learning_rate": "linear:2.5e-4",
        "n_envs": 4,
        "n_steps": 128,
        "batch_size": 128,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
    "continuous": {
        **CLEANRL_COMMON,
        "learning_rate": "linear:3e-4",
        "n_envs": 1,
        "normalize_observations": True,
        "normalize_rewards": True,
    },
    "atari": {
        **CLEANRL_COMMON,
        "learning_rate": "linear:2.5e-4",
        "n_envs": 8,
        "n_steps": 128,
        "batch_size": 256,
        "n_epochs": 4,
        "clip_range": 0.1,
        "clip_range_vf": 0.1,
        "ent_coef": 0.01,
    },
}

NORMALIZED: Preset = {"normalize_observations": True, "normalize_rewards": True}
MUJOCO: Preset = {**NORMALIZED, "n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10}

# Of agents of whole episodes; step sizes are those of benchmarks/learning.py.
CARTPOLE_EPISODES: Preset = {"total_timesteps": 200_000, "n_envs": 10, "policy_kwargs": {"net_arch": [32, 32]}}

# Agents of a utility of several returns. On deep sea treasure, of f(J) = √(J_0 + 1) + √(101 + J_1).
TREASURE_EPISODES: Preset = {
    "total_timesteps": 600_000,
    "utility": "deep-sea-treasure",
    "gamma": 1.0,
    "num_episodes": 64,
    "n_envs": 64,
    "policy_kwargs": {"net_arch": [128]},
}
QUEUE_EPISODES: Preset = {
    "total_timesteps": 5_000_000,
    "utility": "queue:500,0.9999",
    "gamma": 0.9999,
    "policy_kwargs": {"net_arch": [128]},
}
# Policies with a memory that is written like an action, in tasks that need one.
MEMORY: Preset = {
    "n_envs": 16,
    "n_steps": 128,
    "batch_size": 256,
    "learning_rate": "linear:1e-3",
    "gamma": 0.98,
    "gae_lambda": 0.95,
}

# PPO: values of rl-baselines3-zoo (2026) where it has them without gSDE; `total_timesteps` is read by the command line.
TUNED: dict[str, dict[str, Preset]] = {
    "ppo": {
        "CartPole-v1": {
            "total_timesteps": 100_000,
            "n_envs": 8,
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "learning_rate": "linear:1e-3",
            "clip_range": "linear:0.2",
        },
        "Acrobot-v1": {
            **NORMALIZED,
            "total_timesteps": 1_000_000,
            "n_envs": 16,
            "n_steps": 256,
            "gae_lambda": 0.94,
            "n_epochs": 4,
        },
        "MountainCar-v0": {
            **NORMALIZED,
            "total_timesteps": 1_000_000,
            "n_envs": 16,
            "n_steps": 16,
            "gae_lambda": 0.98,
            "n_epochs": 4,
        },
        "Pendulum-v1": {
            "total_timesteps": 200_000,
            "n_envs": 4,
            "n_steps": 1024,
            "gamma": 0.9,
            "learning_rate": 1e-3,
        },
        "LunarLander-v3": {
            "total_timesteps": 1_000_000,
            "n_envs": 16,
            "n_steps": 1024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
        "BipedalWalker-v3": {
            **NORMALIZED,
            "total_timesteps": 5_000_000,
            "n_envs": 32,
            "n_steps": 2048,
            "batch_size": 64,
            "gamma": 0.999,
            "clip_range": 0.18,
        },
        "HalfCheetah-v5": {**MUJOCO, "total_timesteps": 1_000_000},
        "Hopper-v5": {**MUJOCO, "total_timesteps": 1_000_000},
        "Walker2d-v5": {**MUJOCO, "total_timesteps": 1_000_000},
        "Ant-v5": {**MUJOCO, "total_timesteps": 1_000_000},
        "Humanoid-v5": {**MUJOCO, "total_timesteps": 1_000_000},
        "Reacher-v5": {**MUJOCO, "total_timesteps": 1_000_000},
        "InvertedPendulum-v5": {**MUJOCO, "total_timesteps": 300_000},
        "InvertedDoublePendulum-v5": {**MUJOCO, "total_timesteps": 1_000_000},
        "Swimmer-v5": {
            **NORMALIZED,
            "total_timesteps": 1_000_000,
            "gamma": 0.9999,
            "n_envs": 4,
            "n_steps": 1024,
            "batch_size": 256,
            "learning_rate": 6e-4,
            "gae_lambda": 0.98,
        },
        "deep-sea-treasure-v0": {  # one policy for all preferences
            "total_timesteps": 120_000,
            "utility": "preferences",
            "n_envs": 16,
            "n_steps": 128,
            "batch_size": 256,
            "n_epochs": 10,
            "gamma": 1.0,
            "learning_rate": "linear:2e-3",
            "ent_coef": 0.01,
        },
    },
    "reinforce": {"CartPole-v1": {**CARTPOLE_EPISODES, "step_size": 0.003}},
    "npgigt": {"CartPole-v1": {**CARTPOLE_EPISODES, "step_size": 0.1, "momentum": 0.2}},
    "harpg": {"CartPole-v1": {**CARTPOLE_EPISODES, "num_episodes": 5, "step_size": 0.003, "momentum": 0.2}},
    "n-harpg": {
        "CartPole-v1": {**CARTPOLE_EPISODES, "total_timesteps": 400_000, "num_episodes": 5, "step_size": 0.1, "momentum": 0.2}
    },
    "stormpg": {"CartPole-v1": {**CARTPOLE_EPISODES, "normalize": True, "num_initial": 20, "step_size": 0.1, "momentum": 0.2}},
    "srvrpg": {
        "CartPole-v1": {
            **CARTPOLE_EPISODES,
            "num_episodes": 20,
            "num_small": 6,
            "restart_every": 4,
            "step_size": 0.003,
            "radius": None,
        }
    },
    "nvrpg": {
        "CartPole-v1": {**CARTPOLE_EPISODES, "step_size": 0.1, "momentum": 0.2, "max_correction": 0.2},
        "rlopt/Grid-v0": {
            "total_timesteps": 200_000,
            "n_envs": 20,
            "num_episodes": 20,
            "utility": "entropy",
            "policy_kwargs": {"net_arch": []},
        },
    },
    "mopg": {
        "deep-sea-treasure-v0": {**TREASURE_EPISODES, "step_rule": "adam", "step_size": 0.01},
        "rlopt/Queues-v0": {**QUEUE_EPISODES, "num_episodes": 64, "n_envs": 64, "step_rule": "adam", "step_size": 0.01},
    },
    "mo-tsivr-pg": {
        "deep-sea-treasure-v0": {
            **TREASURE_EPISODES,
            "step_size": 1.0,
            "num_small": 8,
            "restart_every": 8,
            "radius": "power:1:1/2",
        },
        "rlopt/Queues-v0": {
            **QUEUE_EPISODES,
            "num_episodes": 64,
            "n_envs": 64,
            "step_size": 1.0,
            "num_small": 8,
            "restart_every": 8,
            "radius": 0.1,
        },
    },
    "s2pg": {
        "PendulumNoVel-v1": {
            "total_timesteps": 300_000,
            "n_envs": 32,
            "n_steps": 128,
            "batch_size": 128,
            "n_epochs": 10,
            "gamma": 0.9,
            "gae_lambda": 0.95,
            "learning_rate": "linear:2e-3",
            "normalize_rewards": True,
            "target_kl": None,
            "policy_kwargs": {"memory_std": 0.02, "min_memory_std": 0.005, "retention": 1.0, "previous_action": False},
        },
        "CartPoleNoVel-v1": {**MEMORY, "total_timesteps": 150_000},
        "rlopt/CueRecall-v0": {**MEMORY, "total_timesteps": 200_000},
        "rlopt/TMaze-v0": {**MEMORY, "total_timesteps": 400_000, "gamma": 0.99, "ent_coef": 0.01},
        # For a critic that sees the simulator's state (`ShowState`, --show-state): return 1.0 after a million steps with seed
        # 0. Without it two seeds ended at -0.29 and 0.61.
        "popgym-RepeatFirstEasy-v0": {
            **MEMORY,
            "total_timesteps": 1_000_000,
            "gamma": 0.99,
            "gae_lambda": 0.5,
            "ent_coef": 0.01,
            "policy_kwargs": {"retention": [1, 51]},
        },
    },
    "rebel": {
        "CartPole-v1": {
            "total_timesteps": 100_000,
            "n_envs": 8,
            "n_steps": 64,
            "batch_size": 256,
            "gamma": 0.98,
            "gae_lambda": 0.9,
            "learning_rate": "linear:2e-3",
            "eta": 0.3,
        },
        "Acrobot-v1": {
            **NORMALIZED,
            "total_timesteps": 200_000,
            "n_envs": 16,
            "n_steps": 64,
            "gae_lambda": 0.94,
            "learning_rate": "linear:1e-3",
            "eta": 0.3,
        },
        "Pendulum-v1": {
            "total_timesteps": 200_000,
            "n_envs": 4,
            "n_steps": 512,
            "gamma": 0.9,
            "learning_rate": "linear:2e-3",
            "eta": 0.3,
        },
        "LunarLander-v3": {
            "total_timesteps": 300_000,
            "n_envs": 16,
            "n_steps": 128,
            "gamma": 0.999,
            "gae_lambda": 0.98,
            "learning_rate": "linear:1e-3",
            "eta": 0.3,
        },
        "HalfCheetah-v5": {
            **NORMALIZED,
            "total_timesteps": 300_000,
            "n_envs": 4,
            "n_steps": 512,
            "batch_size": 128,
            "learning_rate": "linear:1e-3",
            "eta": 0.3,
        },
    },
}
PRESETS = ("sb3", "cleanrl", "tuned")
# Names on the command line that are not their class's in lower case.
HYPHENATED = {"motsivrpg": "mo-tsivr-pg"}
# Defaults of names on the command line: environments side by side, and what a name with a prefix stands for.
BASE: dict[str, Preset] = {
    "reinforce": {"n_envs": 10},
    "npgigt": {"n_envs": 10},
    "harpg": {"n_envs": 10},
    "n-harpg": {"n_envs": 10, "normalize": True, "step_size": "power:0.7:1/2"},
    "stormpg": {"n_envs": 10},
    "srvrpg": {"n_envs": 10},
    "nvrpg": {"n_envs": 10},
    "mopg": {"n_envs": 10},
    "mo-tsivr-pg": {"n_envs": 25},
    "s2pg": {"n_envs": 16, "n_steps": 128},
    "recurrentppo": {"n_envs": 8},
    "rebel": {"n_envs": 8, "n_steps": 256},
}


def preset_values(algorithm: str, preset: str, env: Any) -> Preset:
    """The values of a preset for an algorithm and an environment.

    Args:
        algorithm: a name of the command line, such as "ppo" or "n-harpg".
        preset: "sb3"; "cleanrl", which depends on whether actions are discrete; or "tuned", which knows single
            environments by id and is "sb3" for all others. Only PPO is in SB3 and CleanRL; other algorithms have
            their own defaults for "sb3".
        env: the environment or its id.

    Raises:
        ValueError: an unknown preset (the nearest is named), or "cleanrl" for an algorithm that CleanRL has not.
    """
    check_choice("preset", preset, PRESETS)
    base = dict(SB3.get(algorithm) or BASE.get(algorithm, {}))
    if preset == "tuned":
        return base | TUNED.get(algorithm, {}).get(task_of(env)[0], {})
    if preset == "cleanrl":
        if algorithm != "ppo":
            raise ValueError(f"preset: CleanRL has no {algorithm}; use 'tuned'")
        return dict(CLEANRL[cleanrl_kind(env)])
    return base


def diff(first: Preset, second: Preset) -> dict[str, tuple[Any, Any]]:
    """Where two presets differ: name -> (value in the first, value in the second), "—" where one has none."""
    names = [*first, *(name for name in second if name not in first)]
    return {
        name: (first.get(name, "—"), second.get(name, "—")) for name in names if first.get(name, "—") != second.get(name, "—")
    }


def with_preset(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor with a `preset` argument that fills in whatever was not given explicitly."""
    algorithm = HYPHENATED.get(name := init.__qualname__.split(".")[0].lower(), name)

    @functools.wraps(init)
    def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
        signature = inspect.signature(wrapped)  # with the arguments of the parent class, where there are any
        if unknown := [name for name in kwargs if name not in signature.parameters]:
            near = did_you_mean(unknown[0], signature.parameters)
            raise TypeError(f"{type(self).__name__} has no argument {unknown[0]!r}{near}")
        bound = signature.bind(self, *args, **kwargs)
        preset, env = bound.arguments.get("preset"), bound.arguments.get("env")
        normalized = f"n-{algorithm}" if bound.arguments.get("normalize") else ""
        name = normalized if normalized in BASE else algorithm
        values = preset_values(name, preset, env) if preset is not None else {}
        if not can_be_copied(env):
            values.pop("n_envs", None)  # the environment brings its own number
        for name, value in values.items():
            bound.arguments.setdefault(name, value)
        init(*bound.args, **bound.kwargs)

    return wrapped


def task_of(env: Any) -> tuple[str, gym.Space | None]:
    """The id of an environment, "" if it has none, and its action space, None if there is no environment."""
    if isinstance(env, str):
        return env, None
    if isinstance(env, list | tuple) and env:
        env = env[0]
    if can_be_copied(env):
        env = env()
        env.close()
    if isinstance(env, VecEnv):
        with contextlib.suppress(AttributeError, NotImplementedError):  # wrappers may hide single environments
            return task_of_spec(env.get_attr("spec", [0])[0]), env.action_space
    space = getattr(env, "single_action_space", getattr(env, "action_space", None))
    if isinstance(env, Environments):
        return env.name, env.decoder.raw_space
    return task_of_spec(getattr(env, "spec", None)), space


def task_of_spec(spec: Any) -> str:
    """The id in an environment's specification, if it has one."""
    return getattr(spec, "id", None) or ""


def cleanrl_kind(env: Any) -> str:
    """Which of CleanRL's scripts an environment belongs to: "discrete", "continuous" or "atari"."""
    name, space = task_of(env)
    if name.startswith("ALE/") or "NoFrameskip" in name:
        return "atari"
    if space is None:
        if not name:
            raise ValueError("preset: 'cleanrl' depends on the environment's actions, and there is no environment")
        probe = make_env(name)
        space = probe.action_space
        probe.close()
    return "continuous" if isinstance(space, gym.spaces.Box) else "discrete"
