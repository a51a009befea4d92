"""Environment steps a second of "rlopt/Queues-v0" with random actions, on one thread, by the number of queues.

    python benchmarks/queue_speed.py [--columns 512] [--seconds 2]

A step of one column counts as one. Best of five repetitions: others may be using the machine.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from rlopt.envs.queues import PRESETS, Queues, QueuesVectorEnv


def steps_per_second(num_queues: int, columns: int, seconds: float) -> float:
    """One repetition; episodes begin anew when they are over, actions are drawn beforehand."""
    env = QueuesVectorEnv(Queues(num_queues), columns)
    actions = np.random.default_rng(0).integers(num_queues, size=(64, columns))
    env.reset(seed=0)
    count, began = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        for row in actions:
            if env.ended.any():
                env.reset()
            env.step(row)
        count += len(actions)
    return count * columns / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=2.0)
    chosen = parser.parse_args()
    for num_queues in PRESETS:
        best = max(steps_per_second(num_queues, chosen.columns, chosen.seconds / 5) for _ in range(5))
        print(f"{num_queues:3d} queues, {chosen.columns} columns: {best:12,.0f} steps/s", flush=True)


if __name__ == "__main__":
    main()
