"""One door for every environment a user has: `make_envs`."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, get_args

import gymnasium as gym
from gymnasium.vector import VectorEnv
from stable_baselines3.common.vec_env import VecEnv

from rlopt.arguments import check_choice, check_number, did_you_mean
from rlopt.envs.atari import OPTIONS, AtariEnvironments
from rlopt.envs.base import Environments, OnError, fresh_seed
from rlopt.envs.calibration import processes_are_safe, processes_pay, seconds_per_step
from rlopt.envs.classic_control import TASKS, ClassicControlVectorEnv
from rlopt.envs.cores import usable_cores
from rlopt.envs.gymnasium_vector import EnvPoolEnvironments, GymnasiumEnvironments
from rlopt.envs.mujoco_batch import MujocoVectorEnv
from rlopt.envs.mujoco_tasks import MUJOCO_TASKS
from rlopt.envs.parallel import AsyncEnvironments
from rlopt.envs.sb3_vector import SB3Environments
from rlopt.envs.sync import EnvFactory, SyncEnvironments
from rlopt.envs.torch_classic_control import TorchClassicControl

Backend = Literal["auto", "sync", "async", "native", "threads", "torch", "envpool"]

# Which pip package brings environments whose import fails, by the module that is missed.
EXTRAS = {
    "mujoco": "mujoco",
    "Box2D": "box2d",
    "box2d": "box2d",
    "pygame": "box2d",
    "ale_py": "atari",
    "envpool": "envpool",
    "popgym": "pomdp",
    "mo_gymnasium": "mo",
}

# Packages that register their ids when they are imported, by how the ids begin.
REGISTERED_BY = {
    "ALE/": "ale_py",
    "popgym-": "popgym",
    **dict.fromkeys(
        (
            "mo-",
            "breakable-bottles-",
            "deep-sea-treasure-",
            "fishwood-",
            "four-room-",
            "fruit-tree-",
            "minecart-",
            "resource-gathering-",
            "water-reservoir-",
        ),
        "mo_gymnasium",
    ),
}

# What an id lacks that is asked for by these backends.
IMPLEMENTATION = {
    "native": "native vector implementation",
    "threads": "implementation on threads",
    "torch": "implementation in torch (CartPole-v1, Pendulum-v1, MountainCar-v0, MountainCarContinuous-v0, Acrobot-v1)",
}


def make_envs(
    env: Any,
    num_envs: int = 1,
    backend: Backend = "auto",
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    *,
    on_error: OnError = "raise",
    timeout: float | None = None,
) -> Environments:
    """Environments for the collector, from anything that a user may have.

    Args:
        env: an id ("CartPole-v1"), a `gym.Env`, a callable that makes one, a list of such callables, a Gymnasium
            `VectorEnv` in any autoreset mode, an SB3 `VecEnv`, an EnvPool environment, or `Environments`.
        num_envs: how many to run side by side, for an id or one callable; ignored where `env` brings its own number.
        backend: "native" is one object for all copies: rlopt's own of the classic-control tasks, ALE's of Atari games (as
            DeepMind prepared them, where single ones show raw frames: "auto" does not take it), and what is registered as
            vector implementation of other ids; "threads" simulates all copies of a MuJoCo task on threads, and follows the
            single environments to the bit; "sync" steps single environments in this process, "async" in worker processes,
            "torch" keeps the classic-control tasks in tensors, so that rollouts never leave the agent's device (made for GPUs
            and thousands of copies), "envpool" makes an EnvPool. "auto" takes "native" or "threads" if there is one and more
            than one environment is asked for, else "sync" or "async", which give the very same episodes: "async" only for an
            id, where a trial of some milliseconds shows that processes save time, and where they can be started safely (in a
            script, that is under `if __name__ == "__main__":`). The `backend_choice` of the environments says what was chosen.
        seed: for EnvPool, which takes its seed at construction only.
        env_kwargs: passed to the environment, for an id.
        on_error: what becomes of a single environment that raises an error or returns what cannot be trained on (NaN, another
            shape or type), or whose worker process dies or hangs. "raise" ends the training with an `EnvironmentFault` that
            names environment, step and the episode's seed. "restart" says it in a warning, makes the environment anew and
            drops its unfinished episode, which is counted; after 5 times in a row it raises. Episodes are then those that did
            not break, which may be a biased choice of all.
        timeout: seconds after which an environment in a worker process (backend "async") is taken for hung.

    Raises:
        ValueError: an unknown id (the nearest is named) or backend, a backend that does not fit what `env` is, an
            environment that cannot be copied `num_envs` times.
        ImportError: the environment, or the backend, needs a package that is not installed; the message says what to install.
    """
    check_choice("backend", backend, get_args(Backend))
    check_number("num_envs", num_envs, positive=True, whole=True)
    check_choice("on_error", on_error, get_args(OnError))
    if env_kwargs and not isinstance(env, str):
        raise ValueError("env_kwargs: only an environment given by its id takes them")
    if isinstance(env, str):
        envs = _from_id(env, num_envs, backend, seed, env_kwargs or {})
    elif can_be_copied(env):
        envs = _from_factories([env] * num_envs, backend)
    elif isinstance(env, Sequence) and env and all(callable(item) for item in env):
        envs = _from_factories(list(env), backend)
    else:
        envs = _from_object(env, num_envs, backend)
    if on_error != "raise" or timeout is not None:
        envs.handle_faults(on_error, timeout)
    return envs


def can_be_copied(env: Any) -> bool:
    """Whether `env` is an id or one callable, of which any number of environments can be made."""
    return isinstance(env, str) or (callable(env) and not isinstance(env, gym.Env | VectorEnv | VecEnv))


def _from_object(env: Any, num_envs: int, backend: Backend) -> Environments:
    if backend != "auto":
        raise ValueError(f"backend: {backend!r} needs an id or a callable; {type(env).__name__} is an environment already made")
    if isinstance(env, Environments):
        return env
    if isinstance(env, VecEnv):
        return SB3Environments(env)
    if _is_envpool(env):  # which is a gym.Env by type, and may be a VectorEnv
        return EnvPoolEnvironments(env)
    if isinstance(env, gym.Env):
        if num_envs != 1:
            raise ValueError(f"num_envs: one environment object cannot be run {num_envs} times; give a callable that makes it")
        return SyncEnvironments([lambda: env], name=_name_of(env))
    if isinstance(env, VectorEnv):
        return GymnasiumEnvironments(env)
    raise ValueError(
        "env: expected an id, a gymnasium.Env, a callable or a list of callables, a gymnasium VectorEnv, an SB3 VecEnv "
        f"or an EnvPool environment, got {type(env).__name__}"
    )


def _from_id(env_id: str, num_envs: int, backend: Backend, seed: int | None, kwargs: dict[str, Any]) -> Environments:
    if backend == "envpool":
        return EnvPoolEnvironments(_make_envpool(env_id, num_envs, fresh_seed() if seed is None else seed, kwargs))
    spec = find_spec(env_id)
    factories: list[EnvFactory] = [lambda: _made(spec, env_id, **kwargs)] * num_envs  # workers need not know the id
    if backend in ("sync", "async"):
        return _from_factories(factories, backend, env_id)
    if backend == "torch" and _is_classic_control(spec, kwargs):
        on_device = TorchClassicControl(env_id, num_envs)
        on_device.backend_choice = "torch"
        return on_device
    if backend == "native" and _is_atari(spec) and set(kwargs) <= set(OPTIONS):
        return _atari(spec, env_id, num_envs, kwargs)
    if backend != "auto" or num_envs > 1:
        vector = _on_threads(spec, kwargs, backend) or _native(spec, kwargs, backend)
        if vector is not None:
            envs = _from_vector(vector, env_id, num_envs)
            envs.one_by_one = partial(_from_factories, factories, "sync", env_id) if backend == "auto" else None
            return envs
    if backend != "auto":
        has_one = env_id in (MUJOCO_TASKS if backend == "threads" else TASKS) or (backend == "native" and _is_atari(spec))
        given = " with these env_kwargs" if kwargs and has_one else ""
        raise ValueError(f"backend: {env_id} has no {IMPLEMENTATION[backend]}{given}; use 'sync' or 'async'")
    return _one_by_one(factories, env_id, spec)


def _native(spec: Any, kwargs: dict[str, Any], backend: Backend) -> Callable[[int], VectorEnv] | None:
    """What makes N copies in one object, if anything does: rlopt's own classic control, else what is registered."""
    if backend in ("threads", "torch"):
        return None
    if _is_classic_control(spec, kwargs):
        return partial(ClassicControlVectorEnv, spec.id)
    if spec.vector_entry_point is None or _is_atari(spec):
        return None
    return lambda num_envs: gym.make_vec(spec.id, num_envs=num_envs, vectorization_mode="vector_entry_point", **kwargs)


def _is_atari(spec: Any) -> bool:
    """Whether an id is ALE's, whose vector form is another task than its single one: prepared, not raw, frames."""
    return str(spec.entry_point).startswith("ale_py.")


def _atari(spec: Any, env_id: str, num_envs: int, kwargs: dict[str, Any]) -> AtariEnvironments:
    options = {name: value for name, value in {**spec.kwargs, **kwargs}.items() if name in OPTIONS}
    return AtariEnvironments(spec.kwargs["game"], num_envs, env_id, **options)


def _is_classic_control(spec: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an id stands for one of the tasks that rlopt has itself, as Gymnasium registered it."""
    known = spec.id in TASKS and not kwargs and _is_gymnasiums(spec, "classic_control")
    return known and spec.max_episode_steps == TASKS[spec.id].horizon


def _is_gymnasiums(spec: Any, family: str) -> bool:
    """Whether an id stands for what Gymnasium registered, not for a user's own task of that name."""
    plain = not spec.kwargs and not spec.additional_wrappers
    return plain and str(spec.entry_point).startswith(f"gymnasium.envs.{family}")


def _on_threads(spec: Any, kwargs: dict[str, Any], backend: Backend) -> Callable[[int], VectorEnv] | None:
    """What simulates N copies on threads, if anything does; "auto" does without where MuJoCo is missing or old."""
    ours = spec.id in MUJOCO_TASKS and not kwargs and _is_gymnasiums(spec, "mujoco") and spec.max_episode_steps is not None
    if backend in ("native", "torch") or not ours:
        return None
    try:
        import mujoco.batch  # noqa: F401
    except ImportError as error:
        if backend == "auto":
            return None
        raise ImportError("backend: 'threads' needs MuJoCo 4.0 or later: pip install 'rlopt[mujoco]' 'mujoco>=4.0'") from error
    return partial(MujocoVectorEnv, spec.id)


def _from_vector(make: Callable[[int], VectorEnv], env_id: str, num_envs: int) -> GymnasiumEnvironments:
    try:
        vector = make(num_envs)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise missing_extra(env_id, error) from error
    envs = GymnasiumEnvironments(vector)
    envs.backend_choice = f"threads: {vector.num_threads}" if isinstance(vector, MujocoVectorEnv) else "native"
    return envs


def _one_by_one(factories: list[EnvFactory], env_id: str, spec: Any) -> Environments:
    """Single environments of an id, in this process, or in others where a trial shows that they pay."""
    workers = min(usable_cores(), len(factories))
    if workers < 2 or not _known_to_workers(env_id, spec) or not processes_are_safe():
        return _from_factories(factories, "sync", env_id)
    try:
        seconds = seconds_per_step(factories[0])
    except Exception:  # as it will in the first steps, whose errors say more
        return _from_factories(factories, "sync", env_id)
    pays = processes_pay(seconds, len(factories), workers)
    envs = _from_factories(factories, "async" if pays else "sync", env_id)
    envs.backend_choice = f"{envs.backend_choice}: a step takes {seconds:.2g} s"
    return envs


def _known_to_workers(env_id: str, spec: Any) -> bool:
    """Whether another process can surely import what makes an environment: not one that a program defines for itself."""
    package = str(spec.entry_point).partition(".")[0]
    return ":" in env_id or package in {"gymnasium", "rlopt", *REGISTERED_BY.values()}


def _from_factories(factories: list[Callable[[], Any]], backend: Backend, name: str | None = None) -> Environments:
    if backend in ("native", "threads", "torch", "envpool"):
        raise ValueError(f"backend: {backend!r} needs an environment id, not a callable")
    checked: list[EnvFactory] = [_checked(factory) for factory in factories]
    envs: Environments
    if backend == "async":
        envs = AsyncEnvironments(checked, name=name or "environment")
        envs.backend_choice = "async"
        return envs
    envs = SyncEnvironments(checked, name=name or "environment")
    envs.name = name or _name_of(envs.envs[0])
    envs.backend_choice = "sync"
    return envs


def make_env(env_id: str, render_mode: str | None = None, **kwargs: Any) -> gym.Env:
    """One environment of a registered id, able to render frames if it says so.

    Raises:
        ValueError: unknown id; the nearest is named.
        ImportError: the environment's package is missing; the message says which extra brings it.
    """
    return _made(find_spec(env_id), env_id, render_mode, **kwargs)


def _made(spec: Any, env_id: str, render_mode: str | None = None, **kwargs: Any) -> gym.Env:
    try:
        try:
            with warnings.catch_warnings():
                if render_mode is None:  # nobody asked for frames: no word about environments that have none
                    warnings.filterwarnings("ignore", ".*not in the possible render_modes")
                if str(spec.entry_point).startswith("mo_gymnasium."):  # its reward spaces are made of float64 numbers
                    warnings.filterwarnings("ignore", ".*precision lowered by casting")
                return gym.make(spec, render_mode=render_mode or "rgb_array", disable_env_checker=True, **kwargs)
        except TypeError:  # an environment without a render mode
            return gym.make(spec, disable_env_checker=True, **kwargs)
    except (ImportError, gym.error.DependencyNotInstalled) as error:
        raise missing_extra(env_id, error) from error


def find_spec(env_id: str) -> Any:
    """The registered specification of an id, "module:Id-v0" included.

    Raises:
        ValueError: unknown id; the nearest is named.
        ImportError: the id belongs to a package that is not installed.
    """
    module, _, name = env_id.rpartition(":")
    try:
        if module:
            importlib.import_module(module)  # it registers its ids
        for beginning, package in REGISTERED_BY.items():
            known = gym.registry.get(name)  # perhaps as a user's own
            if name.startswith(beginning) and (known is None or package in str(known.entry_point)):
                gym.register_envs(importlib.import_module(package))
        return gym.spec(name)
    except ImportError as error:
        raise missing_extra(env_id, error) from error
    except gym.error.Error as error:
        hint = did_you_mean(env_id, gym.registry)
        raise ValueError(f"env: {env_id!r} is not registered with Gymnasium{hint}") from error


def missing_extra(env_id: str, error: Exception) -> ImportError:
    """An ImportError that says what to install for an environment."""
    module = getattr(error, "name", None) or next((name for name in EXTRAS if name.lower() in str(error).lower()), None)
    extra = EXTRAS.get(module or "")
    advice = f"pip install 'rlopt[{extra}]'" if extra else f"install the package that provides it ({error})"
    return ImportError(f"env: {env_id} needs {module or 'a package'} that is not installed: {advice}")


def _make_envpool(env_id: str, num_envs: int, seed: int, kwargs: dict[str, Any]) -> Any:
    try:
        import envpool
    except ImportError as error:
        raise missing_extra(env_id, error) from error
    known = envpool.list_all_envs()
    task = env_id.removeprefix("ALE/")
    if task not in known:
        raise ValueError(f"env: EnvPool has no environment {task!r}{did_you_mean(task, known)}")
    return envpool.make_gymnasium(task, num_envs=num_envs, seed=seed, **kwargs)


def _checked(factory: Callable[[], Any]) -> EnvFactory:
    def make() -> gym.Env:
        env = factory()
        if not isinstance(env, gym.Env):
            raise ValueError(f"env: the callable returned {type(env).__name__}, expected a gymnasium.Env")
        return env

    return make


def _is_envpool(env: Any) -> bool:
    return any(cls.__module__.startswith("envpool.") for cls in type(env).__mro__)


def _name_of(env: gym.Env) -> str:
    return env.spec.id if env.spec else type(env.unwrapped).__name__
