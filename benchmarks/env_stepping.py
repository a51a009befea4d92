"""How many steps a second do environments make by themselves, by each way of stepping them?

Steps of rlopt's backends, Gymnasium's own `make_vec` and Stable-Baselines3's `DummyVecEnv` (its Monitor included), with actions
drawn beforehand. What rlopt's backends do for an agent is in the time: encoding, resets, final observations. Rows that only
reset are not counted. All ways take turns, forwards and backwards, round after round; the table has medians over rounds.
`python benchmarks/env_stepping.py` stores `benchmarks/results/env_stepping.json`. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env

from rlopt import make_envs
from rlopt.envs.mujoco_tasks import MUJOCO_TASKS

RESULTS = Path(__file__).parent / "results" / "env_stepping.json"
TASKS = ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "HalfCheetah-v5", "Hopper-v5"]
NUMBERS = [1, 8, 16, 64]
WAYS = ["sync", "async", "vector", "gymnasium", "sb3"]  # "vector" is rlopt's "native" or "threads"
DRAWN = 64  # vectors of actions, used in turn

Advance = Callable[[float], tuple[int, float]]
"""Seconds to go on for -> steps that were made, seconds they took."""


def advance_rlopt(envs: Any, actions: list[Any], seconds: float) -> tuple[int, float]:
    """Steps of `Environments`; none of the backends here has rows that only reset."""
    assert not envs.resets_on_next_step
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        for action in actions:
            envs.step(action)
        count += len(actions) * envs.num_envs
    return count, elapsed


def advance_gymnasium(envs: Any, actions: list[Any], seconds: float) -> tuple[int, float]:
    """Steps of a `VectorEnv` that resets on the next step."""
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        for action in actions:
            _, _, terminated, truncated, _ = envs.step(action)
            count += envs.num_envs - int((terminated | truncated).sum())  # each end costs a row that only resets
    return count, elapsed


def advance_sb3(envs: Any, actions: list[Any], seconds: float) -> tuple[int, float]:
    """Steps of an SB3 `VecEnv`."""
    began, count = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - began) < seconds:
        for action in actions:
            envs.step(action)
        count += len(actions) * envs.num_envs
    return count, elapsed


def make(way: str, task: str, num_envs: int, opened: ExitStack) -> Advance:
    """Environments that are ready to be stepped, and are closed with `opened`."""
    space = gym.make(task).action_space
    space.seed(0)
    actions = [np.stack([space.sample() for _ in range(num_envs)]) for _ in range(DRAWN)]
    if way == "sb3":
        vec_env = opened.enter_context(closing(make_vec_env(task, num_envs, seed=0)))
        vec_env.reset()
        return partial(advance_sb3, vec_env, actions)
    if way == "gymnasium":
        vector = opened.enter_context(closing(gym.make_vec(task, num_envs=num_envs)))
        vector.reset(seed=0)
        return partial(advance_gymnasium, vector, actions)
    backend: Any = ("threads" if task in MUJOCO_TASKS else "native") if way == "vector" else way
    envs = opened.enter_context(closing(make_envs(task, num_envs, backend)))
    envs.reset(seed=0)
    return partial(advance_rlopt, envs, actions)


def measure(task: str, num_envs: int, ways: list[str], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Steps a second of each way, one number a round; a first, short turn of each is left out."""
    with ExitStack() as opened:
        ready = {way: make(way, task, num_envs, opened) for way in ways}
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for advance in ready.values():
            advance(seconds / 5)
        for number in range(rounds):
            for way in ways if number % 2 == 0 else reversed(ways):
                count, elapsed = ready[way](seconds)
                speeds[way].append(count / elapsed)
        return speeds


def main() -> None:
    """Read the command line, measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--num-envs", nargs="+", type=int, default=NUMBERS)
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--rounds", type=int, default=6, help="turns of each way; an even number is fair to drifts")
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    print(f"| task | environments | {' | '.join(arguments.ways)} | vector / sb3 |")
    print("|---" * (len(arguments.ways) + 3) + "|")
    for task in arguments.tasks:
        for num_envs in arguments.num_envs:
            speeds = measure(task, num_envs, arguments.ways, arguments.rounds, arguments.seconds)
            results.append({"task": task, "num_envs": num_envs, "steps_per_second": speeds})
            medians = " | ".join(f"{statistics.median(speeds[way]):,.0f}" for way in arguments.ways)
            both = "vector" in speeds and "sb3" in speeds
            ratio = f"{statistics.median(np.divide(speeds['vector'], speeds['sb3'])):.2f}" if both else ""
            print(f"| {task} | {num_envs} | {medians} | {ratio} |")
            sys.stdout.flush()
    arguments.out.parent.mkdir(exist_ok=True)
    versions = {name: __import__(name).__version__ for name in ("gymnasium", "mujoco", "numpy", "stable_baselines3")}
    machine = {"cores": len(os.sched_getaffinity(0)), "platform": platform.platform(), "python": platform.python_version()}
    arguments.out.write_text(json.dumps({"machine": machine | versions, "results": results}, indent=1))


if __name__ == "__main__":
    main()
