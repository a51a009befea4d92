"""Whether single environments are worth worker processes: by the clock, where processes can be started at all."""

from __future__ import annotations

import ast
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium as gym

# Seconds that one step of all environments costs for each worker: a message there, one back, a process to wake.
MESSAGE = 1e-4
# Workers must save this many seconds of a step of all environments, and this part of it: they take seconds to start.
LEAST_SAVING, LEAST_SHARE = 1e-3, 1 / 3
# Of the trial: seconds, and steps whatever these take.
BUDGET, LEAST_STEPS, MOST_STEPS = 5e-3, 5, 100


def seconds_per_step(factory: Callable[[], gym.Env]) -> float:
    """Median seconds of a step, of an environment that is made for this, stepped for some milliseconds and closed."""
    env = factory()
    try:
        env.action_space.seed(0)
        env.reset(seed=0)
        seconds: list[float] = []
        while len(seconds) < LEAST_STEPS or (sum(seconds) < BUDGET and len(seconds) < MOST_STEPS):
            action = env.action_space.sample()
            began = time.perf_counter()
            _, _, terminated, truncated, _ = env.step(action)
            seconds.append(time.perf_counter() - began)
            if terminated or truncated:
                env.reset(seed=0)
        return statistics.median(seconds)
    finally:
        env.close()


def processes_pay(seconds: float, num_envs: int, num_workers: int) -> bool:
    """Whether workers save enough, where a step of one environment takes so many seconds."""
    here = num_envs * seconds
    there = math.ceil(num_envs / num_workers) * seconds + num_workers * MESSAGE
    return here - there >= max(LEAST_SAVING, LEAST_SHARE * here)


def processes_are_safe() -> bool:
    """Whether worker processes can be started here without running the user's program again.

    A worker imports the main program first. That is harmless if there is no file to import (a console, a notebook), or if what
    is running stands under `if __name__ == "__main__":`. Whatever else is the case, or cannot be seen, counts as unsafe, and
    so does a process that is itself a worker.
    """
    if multiprocessing.parent_process() is not None or "forkserver" not in multiprocessing.get_all_start_methods():
        return False
    program = vars(sys.modules["__main__"])
    file = program.get("__file__")
    if file is None:
        return True
    line = _line_of(program, sys._getframe())
    try:
        return line is not None and line in guarded_lines(Path(file).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return False


def guarded_lines(source: str) -> set[int]:
    """Numbers of the lines that only the main program runs: those under `if __name__ == "__main__":`."""
    lines: set[int] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "'__main__' == __name__"):
            lines.update(range(node.body[0].lineno, (node.body[-1].end_lineno or 0) + 1))
    return lines


def _line_of(program: dict[str, Any], frame: FrameType | None) -> int | None:
    """The line at which a module's own code stands; None on a thread, which its code does not wait for."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is program:
            return frame.f_lineno
        frame = frame.f_back
    return None
