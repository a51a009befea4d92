"""How fast are rlopt's PPO and RecurrentPPO beside Stable-Baselines3's, at its hyper-parameters and on the same work?

Every measurement is a process of its own, pinned to one core with one torch thread; blocks run A B B A, so that a
drift of the machine hits both. Steady speed leaves out the first iterations; environment steps are counted without
reset rows. `python benchmarks/speed.py` runs all configurations, prints the table and stores
`benchmarks/results/speed.json`. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "speed.json"
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cartpole-8": {"env": "CartPole-v1", "n_envs": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 20},
    "cartpole-64": {"env": "CartPole-v1", "n_envs": 64, "n_steps": 128, "batch_size": 1024, "n_epochs": 10},
    "halfcheetah-1": {"env": "HalfCheetah-v5", "n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10},
    "halfcheetah-16": {"env": "HalfCheetah-v5", "n_envs": 16, "n_steps": 256, "batch_size": 512, "n_epochs": 10},
    # SB3-contrib's RecurrentPPO: rl-baselines3-zoo's arguments for this task, and the library's own defaults
    "recurrent-64": {
        "env": "CartPoleNoVel-v1",
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "policy_kwargs": {"lstm_hidden_size": 64},
    },
    "recurrent-256": {"env": "CartPoleNoVel-v1", "n_envs": 8},
}
TARGETS = {
    "cartpole-8": 1.7,
    "cartpole-64": 1.8,
    "halfcheetah-1": 2.3,
    "halfcheetah-16": 1.4,
    "recurrent-64": 10,
    "recurrent-256": 10,
}
WARM_UP = 2  # iterations left out of the steady speed


def one(library: str, name: str, seconds: float) -> dict[str, Any]:
    """Train for about `seconds` after the warm-up; steady steps a second and peak memory."""
    began = time.perf_counter()
    import torch

    torch.set_num_threads(1)
    configuration = dict(CONFIGURATIONS[name])
    env_id, n_envs = configuration.pop("env"), configuration.pop("n_envs")
    marks: list[tuple[float, int]] = []
    recurrent = name.startswith("recurrent")
    policy = "MlpLstmPolicy" if recurrent else "MlpPolicy"
    import rlopt

    if library == "sb3":
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env

        if recurrent:
            from sb3_contrib import RecurrentPPO as PPO  # type: ignore[no-redef]

        agent: Any = PPO(policy, make_vec_env(env_id, n_envs), seed=0, device="cpu", **configuration)
        inner, method = agent.train, "train"
    else:
        ours: Any = rlopt.RecurrentPPO if recurrent else rlopt.PPO
        agent = ours(policy, env_id, n_envs=n_envs, seed=0, device="cpu", **configuration)
        inner, method = agent.step, "step"

    class Enough(Exception):
        pass

    def timed(*arguments: Any) -> Any:
        if len(marks) > WARM_UP + 1 and marks[-1][0] - marks[WARM_UP][0] > seconds:
            raise Enough
        result = inner(*arguments)
        marks.append((time.perf_counter(), agent.num_timesteps))
        return result

    setattr(agent, method, timed)
    with contextlib.suppress(Enough):
        agent.learn(10**9)
    (t0, n0), (t1, n1) = marks[WARM_UP], marks[-1]
    return {
        "library": library,
        "configuration": name,
        "steps_per_second": (n1 - n0) / (t1 - t0),
        "iterations": len(marks) - 1 - WARM_UP,
        "seconds_to_first_iteration": marks[0][0] - began,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def block(name: str, seconds: float) -> dict[str, Any]:
    """A B B A: one ratio, and how much SB3 differed from itself."""
    runs = [_process(library, name, seconds) for library in ("sb3", "rlopt", "rlopt", "sb3")]
    theirs, ours = [runs[0], runs[3]], [runs[1], runs[2]]
    speed = {key: [r["steps_per_second"] for r in group] for key, group in (("sb3", theirs), ("rlopt", ours))}
    return {
        "ratio": sum(speed["rlopt"]) / sum(speed["sb3"]),
        "pairs": [speed["rlopt"][0] / speed["sb3"][0], speed["rlopt"][1] / speed["sb3"][1]],
        "control": speed["sb3"][0] / speed["sb3"][1],
        "runs": runs,
    }


def _process(library: str, name: str, seconds: float) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", library, name, "--seconds", str(seconds)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    core = max(os.sched_getaffinity(0))
    output = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env=environment,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    ).stdout
    return json.loads(output.strip().splitlines()[-1])


def summary(results: dict[str, list[dict[str, Any]]]) -> None:
    """The table: median of paired ratios with a bootstrap 95 % interval, absolute speeds, memory."""
    print("| configuration | rlopt / SB3 [95 %] | target | rlopt steps/s | SB3 steps/s | SB3 / SB3 | peak MiB rlopt / SB3 |")
    print("|---|---|---|---|---|---|---|")
    for name, blocks in results.items():
        pairs = np.array([ratio for b in blocks for ratio in b["pairs"]])
        draws = np.random.default_rng(0).integers(0, len(pairs), (10_000, len(pairs)))
        low, high = np.percentile(np.median(pairs[draws], axis=1), [2.5, 97.5])
        runs = [run for b in blocks for run in b["runs"]]
        speed = {k: statistics.median(r["steps_per_second"] for r in runs if r["library"] == k) for k in ("rlopt", "sb3")}
        memory = {k: statistics.median(r["peak_rss_mib"] for r in runs if r["library"] == k) for k in ("rlopt", "sb3")}
        control = [b["control"] for b in blocks]
        print(
            f"| {name} | {np.median(pairs):.2f} [{low:.2f}, {high:.2f}] | {TARGETS[name]} | {speed['rlopt']:,.0f} | "
            f"{speed['sb3']:,.0f} | {min(control):.2f}–{max(control):.2f} | {memory['rlopt']:.0f} / {memory['sb3']:.0f} |"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--blocks", type=int, default=4, help="A B B A blocks a configuration; each gives two pairs")
    parser.add_argument("--seconds", type=float, default=10.0, help="steady seconds of one measurement")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "CONFIGURATION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(*arguments.one, arguments.seconds)))
        return
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in arguments.configurations}
    for number in range(arguments.blocks):
        for name in arguments.configurations:
            results[name].append(block(name, arguments.seconds))
            print(
                f"block {number + 1}/{arguments.blocks} {name}: {results[name][-1]['ratio']:.2f}", file=sys.stderr, flush=True
            )
    summary(results)
    arguments.out.parent.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
