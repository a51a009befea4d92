"""One update of REBEL's advantage form beside PPO's: the same rollout, networks, epochs and minibatches.

    python benchmarks/rebel_speed.py            # one thread; table, and benchmarks/results/rebel_speed.json

An update is everything between two rollouts: values, advantages, `n_epochs` passes of minibatches, metrics. The KL stop is off,
so that both make as many steps. Both take turns in every round, in an order that alternates, so that a drift of the machine
hits both; the ratio is the median over rounds of their ratio in that round, after rounds that warm up. How the rollout is
collected is not timed.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlopt import PPO, REBEL

RESULTS = Path(__file__).parent / "results" / "rebel_speed.json"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "CartPole-v1, 8 x 64, minibatch 256": {"env": "CartPole-v1", "n_envs": 8, "n_steps": 64, "batch_size": 256},
    "LunarLander-v3, 16 x 128, minibatch 256": {"env": "LunarLander-v3", "n_envs": 16, "n_steps": 128, "batch_size": 256},
    "HalfCheetah-v5, 1 x 2048, minibatch 64": {"env": "HalfCheetah-v5", "n_envs": 1, "n_steps": 2048, "batch_size": 64},
    "HalfCheetah-v5, 16 x 256, minibatch 512": {"env": "HalfCheetah-v5", "n_envs": 16, "n_steps": 256, "batch_size": 512},
}
EPOCHS = 10
WARM_UP = 2


def updates(env: str, **sizes: int) -> dict[str, Callable[[], None]]:
    """An update of each on rollouts of the same policy."""
    common: dict[str, Any] = {**sizes, "n_epochs": EPOCHS, "seed": 0, "device": "cpu", "target_kl": None}
    ours, theirs = REBEL("MlpPolicy", env, **common), PPO("MlpPolicy", env, **common)
    assert ours.collector is not None
    assert theirs.collector is not None
    assert torch.equal(ours.state.theta, theirs.state.theta)
    first = ours.collector.steps(ours.state.theta, sizes["n_steps"])
    second = theirs.collector.steps(theirs.state.theta, sizes["n_steps"])

    def rebel() -> None:
        ours.regress_advantages(ours.state, ours.advantage_batch(ours.state.theta, first), 1.0)

    def ppo() -> None:
        theirs.update(theirs.state, theirs.advantages(theirs.state.theta, second), 1.0)

    return {"REBEL": rebel, "PPO": ppo}


def measure(arms: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every arm's updates, in turns."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(WARM_UP + rounds):
        for name in list(arms)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            arms[name]()
            if number >= WARM_UP:
                times[name].append(time.perf_counter() - began)
    return times


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results: dict[str, Any] = {}
    print("| rollout | REBEL, ms | PPO, ms | PPO / REBEL, median of rounds [quartiles] |\n|---|---|---|---|")
    for name, given in CONFIGURATIONS.items():
        times = measure(updates(**given), arguments.rounds)
        ratios = np.array(times["PPO"]) / np.array(times["REBEL"])
        low, middle, high = np.percentile(ratios, [25, 50, 75])
        medians = {arm: 1e3 * float(np.median(seconds)) for arm, seconds in times.items()}
        results[name] = {"ms": medians, "ratio": float(middle), "quartiles": [float(low), float(high)], "seconds": times}
        ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
        print(f"| {name} | {medians['REBEL']:.1f} | {medians['PPO']:.1f} | {ratio} |", flush=True)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    given = {"threads": arguments.threads, "rounds": arguments.rounds, "epochs": EPOCHS}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, **given, "results": results}, indent=1))


if __name__ == "__main__":
    main()
