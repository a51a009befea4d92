"""Environments by id for training and for evaluation; Atari games get DeepMind's preprocessing in both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

from rlopt.envs.atari import OPTIONS
from rlopt.envs.base import Environments
from rlopt.envs.frame_stack import FrameStack
from rlopt.envs.preferences import Preferences
from rlopt.envs.privileged import ShowState
from rlopt.envs.vector import Backend, find_spec, make_env, make_envs, missing_extra
from rlopt.file_errors import shortened
from rlopt.indicators import Floats, simplex_lattice
from rlopt.policies.stateful import readable_spaces

FRAMES = 4
# Evaluations play other episodes than training: their seed is the run's plus this.
EVALUATION_SEED = 1_000_000
# Preferences that a policy is evaluated for: at most this many, on a lattice that is no finer than this.
MOST_PREFERENCES, FINEST_PREFERENCES = 60, 20


@dataclass(frozen=True)
class Task:
    """What an agent does, in training and in evaluations.

    Attributes:
        env, backend, env_kwargs, frame_stack, show_state: settings of these names.
        preferences: whether the policy sees weights of the objectives, and acts for them.
    """

    env: str
    backend: Backend = "auto"
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    frame_stack: int = 1
    preferences: bool = False
    show_state: bool = False

    def training(self, num_envs: int, seed: int | None) -> Environments:
        """The environments to train in; see `training_envs`.

        Raises:
            ValueError: as `training_envs`; preferences where one reward is paid.
        """
        envs = training_envs(self.env, num_envs, self.backend, seed, self.env_kwargs, self.frame_stack, self.show_state)
        return self.seen(envs, seed=seed)

    def evaluation(self, num_envs: int, seed: int | None, preference: Sequence[float] | None = None) -> Environments:
        """The environments to evaluate in; see `evaluation_envs`. `preference` [K] fixes what the policy is asked for."""
        envs = evaluation_envs(self.env, num_envs, self.backend, seed, self.env_kwargs, self.frame_stack, self.show_state)
        return self.seen(envs, preference, seed)

    def seen(self, envs: Environments, preference: Any = None, seed: int | None = None) -> Environments:
        """These environments as the policy sees them."""
        if not self.preferences:
            return envs
        if paid_rewards(envs) == 1:
            raise ValueError(f"utility: preferences are weights of several objectives, and {self.env} pays one reward")
        return Preferences(envs, preference, seed=seed, num_objectives=paid_rewards(envs))


def training_envs(
    env: str,
    num_envs: int,
    backend: Backend,
    seed: int | None,
    env_kwargs: dict[str, Any],
    frame_stack: int = 1,
    show_state: bool = False,
) -> Environments:
    """The environments to train in, which show their last `frame_stack` observations, and the critic their state.

    Raises:
        ValueError: an unknown id or backend, arguments that the environment refuses, frames that cannot be stacked, a state
            that the environment cannot show.
        ImportError: the environment needs a package that is not installed.
    """
    try:
        if env.startswith("ALE/") and backend != "envpool":
            if frame_stack != 1:
                raise ValueError(f"frame_stack: {env} is preprocessed and shows {FRAMES} frames already; leave it at 1")
            if show_state:
                raise ValueError(f"show_state: {env} is preprocessed and does not tell its state; leave it out")
            if backend not in ("sync", "async") and (backend != "auto" or set(env_kwargs) <= set(OPTIONS)):
                return make_envs(env, num_envs, "native" if backend == "auto" else backend, seed, env_kwargs)
            return _atari(env, num_envs, backend, seed, env_kwargs)
        if show_state:
            envs = _showing_state(env, num_envs, backend, env_kwargs)
        else:
            envs = make_envs(env, num_envs, backend, seed, env_kwargs)
        return FrameStack(envs, frame_stack) if frame_stack > 1 else envs
    except (TypeError, LookupError, AttributeError, AssertionError) as error:
        if not env_kwargs:
            raise
        raise ValueError(f"env_kwargs: {env} refuses {shortened(env_kwargs)}: {error!r}") from error


def evaluation_envs(
    env: str,
    num_envs: int,
    backend: Backend,
    seed: int | None,
    env_kwargs: dict[str, Any],
    frame_stack: int = 1,
    show_state: bool = False,
) -> Environments:
    """The same task in this process, stepped one by one, able to render; EnvPool's own tasks stay EnvPool's."""
    one_by_one: Backend = "envpool" if backend == "envpool" else "sync"
    return training_envs(env, num_envs, one_by_one, seed, env_kwargs, frame_stack, show_state)


def suitable_policy(space: spaces.Space, memory: str | None = None) -> str:
    """The policy for observations of an encoded space; what the critic alone sees makes no difference to one with memory."""
    if memory is not None:
        space, _ = readable_spaces(space)
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if is_image_space(space) else "MlpPolicy"


def paid_rewards(envs: Environments) -> int:
    """K, the rewards of a step. Environments that do not say it are stepped once, and have to be reset then."""
    if envs.num_objectives is None:
        envs.reset()
        envs.step(np.stack([envs.decoder.raw_space.sample() for _ in range(envs.num_envs)]))
    return envs.num_objectives or 1


def known_front(envs: Environments) -> Floats | None:
    """[F, K], the environment's front of undiscounted returns, if it knows one. A convention of MO-Gymnasium."""
    front = getattr(envs.get_attr("unwrapped", [0])[0], "pareto_front", None)
    return np.asarray(front(gamma=1.0), np.float64) if callable(front) else None


def preference_lattice(num_objectives: int) -> Floats:
    """[W, K], evenly spread weights: 21 of two objectives, 55 of three."""
    fine = range(1, FINEST_PREFERENCES + 1)
    fitting = [n for n in fine if comb(n + num_objectives - 1, num_objectives - 1) <= MOST_PREFERENCES]
    return simplex_lattice(num_objectives, max(fitting, default=1))


def _showing_state(env: str, num_envs: int, backend: Backend, env_kwargs: dict[str, Any]) -> Environments:
    """Environments that show the critic their simulators' state."""
    if backend in ("native", "threads", "torch", "envpool"):
        raise ValueError(f"show_state: backend {backend!r} has no single environments that tell theirs; use 'sync' or 'async'")
    envs = make_envs(lambda: ShowState(make_env(env, **env_kwargs)), num_envs, backend)
    envs.name = env
    return envs


def _atari(env: str, num_envs: int, backend: Backend, seed: int | None, env_kwargs: dict[str, Any]) -> Environments:
    """Single games in Stable-Baselines3's wrappers: `AtariWrapper`, `Monitor` around the game itself, four stacked frames."""
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
