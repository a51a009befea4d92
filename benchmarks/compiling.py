"""What does compiling PPO's update cost, and save in each step? The constants behind `compile="auto"`.

Each way is a process of its own on one core with one torch thread, and takes turns with the other; torch's cache of compiled
code is empty. `python benchmarks/compiling.py` prints a table and stores `benchmarks/results/compiling.json`. The constants are
`SECONDS_SAVED` and `SECONDS_OF_COMPILING` in `rlopt/compiled_descent.py`: their ratio, the steps after which compiling has
paid, depends less on a machine than they do. Measure on a machine that does nothing else.
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

RESULTS = Path(__file__).parent / "results" / "compiling.json"
TASKS = {  # by rows of a minibatch
    64: {"env": "HalfCheetah-v5", "n_envs": 1, "n_steps": 2048},
    256: {"env": "CartPole-v1", "n_envs": 8, "n_steps": 32},
    1024: {"env": "CartPole-v1", "n_envs": 64, "n_steps": 128},
}
EPOCHS = 10


def one(batch_size: int, compiles: bool, updates: int) -> dict[str, float]:
    """Seconds of a step, the least and the median over updates, and of the first iteration."""
    import torch

    torch.set_num_threads(1)
    from rlopt import PPO

    agent = PPO(
        "MlpPolicy", **TASKS[batch_size], batch_size=batch_size, n_epochs=EPOCHS, compile=compiles, seed=0, device="cpu"
    )
    rows = agent.n_steps * agent.n_envs
    began = time.perf_counter()
    agent.learn(rows)
    first = time.perf_counter() - began
    batch = agent.advantages(agent.state.theta, agent.collector.steps(agent.state.theta, agent.n_steps))
    seconds = []
    for _ in range(updates):
        began = time.perf_counter()
        agent.update(agent.state, batch, 1.0)
        seconds.append((time.perf_counter() - began) / (EPOCHS * rows // batch_size))
    return {"least": min(seconds), "median": statistics.median(seconds), "first": first}


def process(batch_size: int, compiles: bool, updates: int) -> dict[str, float]:
    """The same in a process of its own, without anything compiled before."""
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as cache:
        output = subprocess.run(
            [sys.executable, __file__, "--one", str(batch_size), str(int(compiles)), "--updates", str(updates)],
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        ).stdout
    return json.loads(output.strip().splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--updates", type=int, default=20, help="of one measurement")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], bool(arguments.one[1]), arguments.updates)))
        return
    results: list[dict[str, Any]] = []
    print("| minibatch | eager ms | compiled ms | ratio | compiling s | steps until it pays |")
    print("|---|---|---|---|---|---|")
    for batch_size in TASKS:
        runs: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for number in range(arguments.repeats):
            for compiles in (False, True) if number % 2 == 0 else (True, False):
                runs[compiles].append(process(batch_size, compiles, arguments.updates))
        eager, native = (statistics.median(r["median"] for r in runs[compiles]) for compiles in (False, True))
        cost = statistics.median(r["first"] for r in runs[True]) - statistics.median(r["first"] for r in runs[False])
        print(
            f"| {batch_size} | {eager * 1e3:.2f} | {native * 1e3:.2f} | {eager / native:.2f} | {cost:.0f} | "
            f"{cost / (eager - native):,.0f} |",
            flush=True,
        )
        results.append({"batch_size": batch_size, "eager": runs[False], "compiled": runs[True]})
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    RESULTS.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
