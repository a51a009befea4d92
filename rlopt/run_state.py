"""What a run's future depends on beside its agent: environments, statistics, callbacks, the logger, random numbers."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from rlopt.agents.callback_state import callback_state, restore_callback
from rlopt.envs.base import episode_seed
from rlopt.tensor_checks import set_generator

if TYPE_CHECKING:
    from rlopt.agents.base import Agent


def run_state(agent: Agent, callback: BaseCallback | None, iteration: int) -> dict[str, Any]:
    """All of it between two iterations, as nested plain values and arrays; see `rlopt.nested`."""
    assert agent.collector is not None
    return {
        "iteration": iteration,
        "num_timesteps_at_start": agent._num_timesteps_at_start,
        "seconds": (time.time_ns() - agent.start_time) / 1e9,
        "collector": agent.collector.snapshot(),
        "statistics": agent.statistics.snapshot(),
        "callback": None if callback is None else callback_state(callback),
        "logger": _logger_state(agent.logger),
        "generators": global_generators(agent.device),
    }


def restore_run(agent: Agent, callback: BaseCallback | None, state: dict[str, Any]) -> list[int]:
    """Put a run where another was, after its agent; the environments that begin new episodes.

    Raises:
        ValueError, KeyError, TypeError: a state that no such run can have given.
    """
    assert agent.collector is not None
    check_count("num_timesteps_at_start", state["num_timesteps_at_start"])
    planned = agent._total_timesteps - agent._num_timesteps_at_start
    agent._num_timesteps_at_start = state["num_timesteps_at_start"]
    agent._total_timesteps = agent._num_timesteps_at_start + planned
    agent.start_time = time.time_ns() - int(state["seconds"] * 1e9)
    agent.statistics.restore(state["statistics"])
    lost = agent.collector.restore(state["collector"])
    if len(lost) == agent.n_envs:  # not with the episodes that the run began with
        agent.collector.seed = episode_seed(agent._entropy, 0, agent.num_timesteps)
    if callback is not None and state["callback"] is not None:
        restore_callback(callback, state["callback"])
    _restore_logger(agent.logger, state["logger"])
    restore_global_generators(state["generators"], agent.device)
    return lost


def check_count(name: str, value: Any) -> int:
    """The value, if it can count something.

    Raises:
        ValueError: it cannot.
    """
    if type(value) is not int or not 0 <= value < 2**62:
        raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
    return value


def _logger_state(logger: Logger) -> dict[str, Any]:
    """What was recorded and not yet written, numbers alone; the rest is pictures and texts of callbacks."""
    numbers = {key: value for key, value in logger.name_to_value.items() if isinstance(value, int | float | np.number)}
    return {
        "values": numbers,
        "counts": {key: logger.name_to_count.get(key, 0) for key in numbers},
        "excluded": {key: list(logger.name_to_excluded.get(key) or ()) for key in numbers},
    }


def _restore_logger(logger: Logger, state: dict[str, Any]) -> None:
    for key, value in state["values"].items():
        if not isinstance(value, int | float):
            raise TypeError(f"{key}: expected a number, got {value!r}")
        logger.name_to_value[key] = value
        logger.name_to_count[key] = check_count(key, state["counts"][key])
        logger.name_to_excluded[key] = tuple(state["excluded"][key])


def global_generators(device: torch.device) -> dict[str, Any]:
    """Those of Python, NumPy and torch: the library draws from none of them, a user's environment or callback may."""
    version, words, gauss = random.getstate()
    name, key, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002 - the one that users draw from
    return {
        "python": [version, np.array(words, np.int64), gauss],
        "numpy": [name, np.asarray(key).astype(np.int64), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_global_generators(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `global_generators`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    name, key, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, key.astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    set_generator(torch.default_generator, torch.as_tensor(state["torch"]))
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(torch.as_tensor(state["cuda"]), device)
