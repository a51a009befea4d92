"""How much longer do 16 seeds take than one?

    python benchmarks/many_seeds.py steady     # seconds an iteration, once all is compiled
    python benchmarks/many_seeds.py command    # whole commands: rlopt-train with --num-seeds 16, and without
    python benchmarks/many_seeds.py summary

One seed trains in a process with one thread, as `learn` does. Sixteen are shared among as many processes as there are cores,
as `--num-seeds` does; the slowest of them counts. Pairs alternate in order, so that a drift of the machine hits both; the
median of their ratios has a bootstrap interval. Both are compiled, or neither is. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "many_seeds.json"
NUM_SEEDS, ITERATIONS, WARM_UP, PAIRS = 16, 30, 4, 5
CARTPOLE: dict[str, Any] = {"env": "CartPole-v1", "n_envs": 8}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cartpole-8": {**CARTPOLE, "n_steps": 32, "batch_size": 256, "n_epochs": 20},
    "cartpole-8, minibatches of 64": {**CARTPOLE, "n_steps": 32, "batch_size": 64, "n_epochs": 4},
    "pendulum-4": {"env": "Pendulum-v1", "n_envs": 4, "n_steps": 256, "batch_size": 64, "n_epochs": 10},
}


def train(name: str, seeds: list[int], compiled: bool, iterations: int) -> float:
    """Seconds an iteration of these seeds takes in this process."""
    import torch

    from rlopt import PPO
    from rlopt.together import learn_together

    torch.set_num_threads(1)
    arguments = dict(CONFIGURATIONS[name])
    env = arguments.pop("env")
    more: dict[str, Any] = {"backend": "native", "device": "cpu", "compile": compiled}
    agents = [PPO("MlpPolicy", env, seed=seed, **arguments, **more) for seed in seeds]
    steps = arguments["n_envs"] * arguments["n_steps"]
    if len(agents) == 1:
        agents[0].learn(WARM_UP * steps, log_interval=None)
        began = time.perf_counter()
        agents[0].learn(iterations * steps, log_interval=10)
        return (time.perf_counter() - began) / iterations
    clock: list[float] = []
    learn_together(
        agents, (WARM_UP + iterations) * steps, log_interval=10, on_iteration=lambda: clock.append(time.perf_counter())
    )
    return (clock[-1] - clock[WARM_UP - 1]) / iterations


def measured(name: str, num_seeds: int, compiled: bool) -> float:
    """Seconds an iteration of all seeds, shared among processes; the slowest of them."""
    cores = sorted(os.sched_getaffinity(0))
    shares = [part.tolist() for part in np.array_split(range(num_seeds), min(len(cores), num_seeds))]
    processes = []
    for share, core in zip(shares, cores, strict=False):
        job = json.dumps([name, share, compiled, ITERATIONS])
        command = ["taskset", "-c", str(core), sys.executable, __file__, "one", "--job", job]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    return max(float(process.communicate()[0].splitlines()[-1]) for process in processes)


def steady(pairs: int) -> dict[str, Any]:
    """Ratios of sixteen to one, for every configuration, compiled and not."""
    results: dict[str, Any] = {}
    for name in CONFIGURATIONS:
        for compiled in (False, True):
            rows = []
            for pair in range(pairs):
                order = (1, NUM_SEEDS) if pair % 2 else (NUM_SEEDS, 1)
                seconds = {num: measured(name, num, compiled) for num in order}
                rows.append([seconds[1], seconds[NUM_SEEDS]])
                print(f"{name}, {'compiled' if compiled else 'eager'}: {rows[-1]} {rows[-1][1] / rows[-1][0]:.2f}", flush=True)
            results[f"{name}, {'compiled' if compiled else 'eager'}"] = rows
    return results


def command(pairs: int) -> dict[str, Any]:
    """Ratios of whole commands, start-up, evaluation and files included."""
    rows = []
    for pair in range(pairs):
        seconds = {}
        for num in (1, NUM_SEEDS) if pair % 2 else (NUM_SEEDS, 1):
            with tempfile.TemporaryDirectory() as folder:
                flags = ["--num-seeds", str(num), "--run-dir", folder, "--no-progress"]
                began = time.perf_counter()
                subprocess.run([sys.executable, "-m", "rlopt", "train", *flags], check=True, stdout=subprocess.DEVNULL)
                seconds[num] = time.perf_counter() - began
        rows.append([seconds[1], seconds[NUM_SEEDS]])
        print(f"rlopt-train: {rows[-1]} {rows[-1][1] / rows[-1][0]:.2f}", flush=True)
    return {"rlopt-train": rows}


def summary() -> None:
    """The table."""
    if not RESULTS.exists():
        print("nothing to show yet")
        return
    results = json.loads(RESULTS.read_text())
    print("| what | pairs | one seed | 16 seeds | ratio [95 %] |\n|---|---|---|---|---|")
    random = np.random.default_rng(0)
    for kind, unit in (("steady", "ms an iteration"), ("command", "s")):
        for name, rows in results.get(kind, {}).items():
            pairs = np.array(rows)
            ratios = pairs[:, 1] / pairs[:, 0]
            medians = [np.median(random.choice(ratios, len(ratios))) for _ in range(2000)]
            low, high = np.percentile(medians, [2.5, 97.5])
            one, many = np.median(pairs, 0) * (1e3 if kind == "steady" else 1)
            interval = f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]"
            print(f"| {name} | {len(rows)} | {one:.1f} {unit} | {many:.1f} {unit} | {interval} |")


def main() -> None:
    """Measure or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("steady", "command", "summary", "one"))
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.command == "one":
        print(train(*json.loads(arguments.job)))
        return
    if arguments.command != "summary":
        found = steady(arguments.pairs) if arguments.command == "steady" else command(arguments.pairs)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        machine = {"machine": platform.processor() or platform.machine(), "cores": os.cpu_count()}
        RESULTS.write_text(json.dumps({**known, **machine, arguments.command: found}, indent=1) + "\n")
    summary()


if __name__ == "__main__":
    main()
