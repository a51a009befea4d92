"""Environments by id for training and for evaluation; Atari games get DeepMind's preprocessing in both."""

from __future__ import annotations

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from rlopt.envs.base import Environments
from rlopt.envs.frame_stack import FrameStack
from rlopt.envs.vector import Backend, find_spec, make_env, make_envs, missing_extra

FRAMES = 4
# Evaluations play other episodes than training: their seed is the run's plus this.
EVALUATION_SEED = 1_000_000


def training_envs(
    env: str, num_envs: int, backend: Backend, seed: int | None, env_kwargs: dict[str, Any], frame_stack: int = 1
) -> Environments:
    """The environments to train in, which show their last `frame_stack` observations.

    Raises:
        ValueError: an unknown id or backend, arguments that the environment refuses, frames that cannot be stacked.
        ImportError: the environment needs a package that is not installed.
    """
    try:
        if env.startswith("ALE/") and backend != "envpool":
            if frame_stack != 1:
                raise ValueError(f"frame_stack: {env} is preprocessed and shows {FRAMES} frames already; leave it at 1")
            return _atari(env, num_envs, backend, seed, env_kwargs)
        envs = make_envs(env, num_envs, backend, seed, env_kwargs)
        return FrameStack(envs, frame_stack) if frame_stack > 1 else envs
    except TypeError as error:
        if not env_kwargs:
            raise
        raise ValueError(f"env_kwargs: {env} refuses {env_kwargs}: {error}") from error


def evaluation_envs(
    env: str, num_envs: int, backend: Backend, seed: int | None, env_kwargs: dict[str, Any], frame_stack: int = 1
) -> Environments:
    """The same task in this process, stepped one by one, able to render; EnvPool's own tasks stay EnvPool's."""
    return training_envs(env, num_envs, "envpool" if backend == "envpool" else "sync", seed, env_kwargs, frame_stack)


def suitable_policy(space: spaces.Space) -> str:
    """The policy for observations of an encoded space."""
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def _atari(env: str, num_envs: int, backend: Backend, seed: int | None, env_kwargs: dict[str, Any]) -> Environments:
    """`AtariWrapper`, `Monitor` around the game itself, four stacked frames."""
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack

    find_spec(env)
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        raise missing_extra(env, error) from error
    # The wrapper skips frames itself; "v5" games would skip four of each four.
    kwargs = {"frameskip": 1} | env_kwargs
    vec_env = make_atari_env(
        lambda **options: make_env(env, **options),
        num_envs,
        seed,
        env_kwargs=kwargs,
        vec_env_cls=SubprocVecEnv if backend == "async" else DummyVecEnv,
    )
    return make_envs(VecFrameStack(vec_env, FRAMES))
