"""MO-TSIVR-PG and MOPG on the paper's queues: utility against environment steps, at equal samples.

    python benchmarks/queues.py tune --num-queues 6         # the grid, on seeds that the comparison does not use
    python benchmarks/queues.py run --num-queues 6 8 12 16  # the comparison, eight seeds, at the best settings for 6 queues
    python benchmarks/queues.py summary                     # table and plot

M queues share a server that takes one job a step; f = Σ_m −H/(J_m + 1) with H = 500 and γ = 0.9999. No policy serves more jobs
than arrive, whence the upper bound that is drawn in. All methods have one network (128 tanh units on log(1 + length)) and 64
episodes in a large batch; episodes for J count like all others. At every mark f is evaluated at the mean return of 256 fresh
episodes with sampled actions, in environments of their own. What is done already is not done again: both commands append to
benchmarks/results/queues.jsonl.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import run_all, stored, with_interval

RESULTS = Path(__file__).parent / "results" / "queues.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "queues.png"
ENV = "rlopt/Queues-v0"
SIZES = (6, 8, 12, 16)
HORIZON, GAMMA = 500, 0.9999
BUDGET, MARKS, EVALUATION_EPISODES = 2_000_000, 10, 256
TUNING_SEEDS = (1000,)
# f of a policy that serves at random and of one that serves the longest queue (5,000 episodes each), and the upper bound.
REFERENCES = {
    6: (-61.7, -57.8, -57.51),
    8: (-161.6, -152.4, -151.64),
    12: (-298.5, -273.0, -272.95),
    16: (-590.7, -537.1, -535.68),
}
SMALL = {"num_small": 8, "restart_every": 8, "step_size": 1.0}
RADII = ("power:0.1:1/2", 0.1, 0.03)
METHODS: dict[str, tuple[str, dict[str, Any], str, tuple[Any, ...]]] = {
    "MOPG, Adam": ("mopg", {"step_rule": "adam"}, "step_size", (0.001, 0.003, 0.01)),
    "MOPG, normalised": ("mopg", {"step_rule": "normalized"}, "step_size", ("power:0.3:1/2", 0.1, 0.03)),
    "MO-TSIVR-PG": ("mo-tsivr-pg", SMALL, "radius", RADII),
    "MO-TSIVR-PG, lagged": ("mo-tsivr-pg", {**SMALL, "batches": "lagged"}, "radius", RADII),
}


class Job(NamedTuple):
    """One run."""

    purpose: str  # "tune" or "run"
    num_queues: int
    method: str
    value: str  # of the tuned argument
    seed: int


def environments(num_queues: int, num_envs: int) -> Any:
    """Columns of the queues."""
    from rlopt import make_envs

    return make_envs(ENV, num_envs, env_kwargs={"num_queues": num_queues, "log1p": True})


def train(job: Job) -> dict[str, Any]:
    """f of fresh episodes at every mark."""
    os.nice(10)
    import torch

    from rlopt import ALGORITHMS
    from rlopt.estimators import discounted_return
    from rlopt.objectives import queue_utility

    torch.set_num_threads(1)
    algo, arguments, tuned, grid = METHODS[job.method]
    value = next(v for v in grid if str(v) == job.value)
    shared = {"gamma": GAMMA, "utility": f"queue:{HORIZON},{GAMMA}", "num_episodes": 64, "device": "cpu"}
    shared |= {"policy_kwargs": {"net_arch": [128]}, "seed": job.seed}
    agent = ALGORITHMS[algo]("MlpPolicy", environments(job.num_queues, 64), **{**shared, **arguments, tuned: value})
    judge = ALGORITHMS["mopg"](
        "MlpPolicy", environments(job.num_queues, EVALUATION_EPISODES), **shared | {"seed": job.seed + 10**6}
    )
    utility, scores = queue_utility(HORIZON, GAMMA), []
    began, state = time.process_time(), agent.state
    while len(scores) < MARKS:
        state, _ = agent.step(state, agent.collector)
        while len(scores) < MARKS and agent.collector.num_timesteps >= (len(scores) + 1) * BUDGET / MARKS:
            rollout = judge.collector.episodes(state.theta, EVALUATION_EPISODES, stream="evaluation")
            scores.append(round(float(utility(discounted_return(rollout.rewards, GAMMA).double().mean(0))), 4))
    refused = {"refused": state.num_refused, "seconds": round(time.process_time() - began, 1)}
    return {**job._asdict(), "scores": scores, **refused}


def best(results: list[dict[str, Any]], method: str) -> str | None:
    """The setting with the largest mean of the last third, tuned with 6 queues."""
    rows = [r for r in results if (r["purpose"], r["num_queues"], r["method"]) == ("tune", 6, method)]
    means = {
        str(value): float(np.mean([r["scores"][-MARKS // 3 :] for r in rows if r["value"] == str(value)]))
        for value in METHODS[method][3]
        if any(r["value"] == str(value) for r in rows)
    }
    return max(means, key=lambda v: means[v]) if len(means) == len(METHODS[method][3]) else None


def summary() -> None:
    """The tables and the plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = stored(RESULTS)
    shown = [m for m in SIZES if any((r["purpose"], r["num_queues"]) == ("run", m) for r in results)]
    if not shown:
        print("nothing to show yet: run the comparison first")
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(4.6 * len(shown), 4.2), squeeze=False)
    steps = np.arange(1, MARKS + 1) * BUDGET / MARKS
    for axis, num_queues in zip(axes[0], shown, strict=True):
        at_random, longest, bound = REFERENCES[num_queues]
        print(f"\n### {num_queues} queues: at random {at_random}, longest queue first {longest}, upper bound {bound}\n")
        print("| method | setting | seeds | f at half [95 %] | f at the end [95 %] | regret to the bound |")
        print("|---|---|---|---|---|---|")
        for method, (_, _, tuned, _) in METHODS.items():
            value = best(results, method)
            rows = [r for r in results if [r[n] for n in Job._fields[:4]] == ["run", num_queues, method, value]]
            if not rows:
                continue
            scores = np.array([r["scores"] for r in rows])
            half, end = (with_interval(scores[:, i]) for i in (MARKS // 2 - 1, -1))
            cells = [f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in (half, end)]
            print(f"| {method} | {tuned} {value} | {len(rows)} | {' | '.join(cells)} | {bound - end[0]:.2f} |")
            middles, lows, highs = np.array([with_interval(column, 300) for column in scores.T]).T
            (line,) = axis.plot(steps, middles, label=method)
            axis.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)
        for height, text, side in (
            (bound, "upper bound", "bottom"),
            (longest, "longest queue first", "top"),
            (at_random, "at random", "bottom"),
        ):
            axis.axhline(height, color="black", linestyle=":", linewidth=0.9)
            axis.text(BUDGET, height, text, ha="right", va=side, fontsize=7)
        room = bound - at_random
        axis.set(
            title=f"{num_queues} queues",
            xlabel="environment steps",
            xlim=(0, BUDGET),
            ylim=(at_random - 0.6 * room, bound + 0.15 * room),
        )
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("f(J), IQM and 95 % interval")
    axes[0, 0].legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def said(result: dict[str, Any]) -> str:
    """A run in one line."""
    scores = " ".join(f"{score:.1f}" for score in result["scores"])
    return f"{[result[name] for name in Job._fields]} {scores} {result['seconds']} s"


def main() -> None:
    """Tune, run or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "run", "summary"))
    parser.add_argument("--num-queues", nargs="+", type=int, choices=SIZES, default=list(SIZES), metavar="M")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--num-seeds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary()
        return
    results = stored(RESULTS)
    done = {tuple(r[name] for name in Job._fields) for r in results}
    jobs = []
    for method in arguments.methods:
        if arguments.command == "tune":
            jobs += [Job("tune", 6, method, str(value), seed) for value in METHODS[method][3] for seed in TUNING_SEEDS]
        elif (value := best(results, method)) is not None:
            jobs += [Job("run", m, method, value, seed) for seed in range(arguments.num_seeds) for m in arguments.num_queues]
        else:
            print(f"{method}: not tuned yet")
    run_all(RESULTS, train, [job for job in jobs if job not in done], arguments.workers, said)


if __name__ == "__main__":
    main()
