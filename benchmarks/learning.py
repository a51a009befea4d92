"""Every agent of the family at equal environment steps, each with its own best step size of one shared grid.

    python benchmarks/learning.py tune              # the grid, on seeds that the comparison does not use
    python benchmarks/learning.py run               # the comparison, at the best step sizes
    python benchmarks/learning.py long --methods N-HARPG "N-HARPG, paper" --envs CartPole-v1
    python benchmarks/learning.py summary           # interquartile means with 95 % intervals, table and plot

All methods share the network, the episodes of an iteration, constant step size and constant momentum η = 0.2. "Normalised PG"
is η = 1, the ablation that separates normalisation from variance reduction. θ_t is evaluated with 20 episodes of sampled
actions in environments of its own, ten times in a run; the Hessian's episodes count as environment steps like all others.
What is done already is not done again: both commands append to benchmarks/results/learning.jsonl and can be stopped.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import interquartile_mean, run_all, stored, with_interval

RESULTS = Path(__file__).parent / "results" / "learning.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "learning.png"
MARKS = 10
EVALUATION_EPISODES = 20
GRID = (0.003, 0.01, 0.03, 0.1, 0.3)
TUNING_SEEDS = (1000, 1001)
SHARED: dict[str, Any] = {"num_episodes": 10, "gamma": 0.99, "baseline": "leave_one_out"}

# environment -> environment steps of the comparison; tuning takes half
TASKS = {"CartPole-v1": 200_000, "Acrobot-v1": 300_000, "InvertedPendulum-v5": 200_000, "Reacher-v5": 300_000}
LONG = 400_000  # of the claim about N-HARPG on CartPole
MOMENTUM = {"momentum": 0.2}
SPLIT = {"num_episodes": 5, "num_hessian_episodes": 5}  # as many episodes an iteration as the others
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "REINFORCE": ("reinforce", {}),
    "normalised PG (η = 1)": ("reinforce", {"normalize": True}),
    "normalised momentum": ("reinforce", {"normalize": True, **MOMENTUM}),
    "N-PG-IGT": ("npgigt", MOMENTUM),
    "HARPG": ("harpg", {**MOMENTUM, **SPLIT}),
    "N-HARPG": ("harpg", {**MOMENTUM, **SPLIT, "normalize": True}),
    "N-HARPG, paper": ("harpg", {**MOMENTUM, **SPLIT, "normalize": True, "max_correction": None}),
    "STORM-PG": ("stormpg", {**MOMENTUM, "num_initial": 20}),
    "N-STORM-PG": ("stormpg", {**MOMENTUM, "num_initial": 20, "normalize": True}),
    "SRVR-PG": ("srvrpg", {"num_episodes": 20, "num_small": 6, "restart_every": 4, "radius": None}),
    "N-VR-PG, paper": ("nvrpg", MOMENTUM),
}


class Job(NamedTuple):
    """One run."""

    purpose: str  # "tune", "run" or "long"
    env: str
    method: str
    step_size: float
    seed: int

    @property
    def budget(self) -> int:
        return {"tune": TASKS[self.env] // 2, "run": TASKS[self.env], "long": LONG}[self.purpose]


def train(job: Job) -> dict[str, Any]:
    """Returns of θ_t at every tenth of the budget."""
    os.nice(10)
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    from rlopt import ALGORITHMS, make_envs
    from rlopt.collector import Collector
    from rlopt.statistics import EpisodeStatistics

    torch.set_num_threads(1)
    algo, arguments = METHODS[job.method]
    agent = ALGORITHMS[algo](
        "MlpPolicy",
        job.env,
        seed=job.seed,
        device="cpu",
        step_size=job.step_size,
        policy_kwargs={"net_arch": [32, 32]},
        n_envs=10,
        **{**SHARED, **arguments},
    )
    test = Collector(make_envs(job.env, 10), agent.functional, torch.Generator(), EpisodeStatistics(10), seed=job.seed + 10**6)
    scores: list[float] = []

    def score() -> float:
        """The mean return at θ_t, in environments of its own."""
        return float(test.episodes(agent.state.theta, EVALUATION_EPISODES).rewards.sum(0).mean())

    class Evaluate(BaseCallback):
        """Between iterations, whenever another tenth of the budget is used up."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            while len(scores) + 1 < MARKS and self.model.num_timesteps >= (len(scores) + 1) * job.budget / MARKS:
                scores.append(score())

    began = time.perf_counter()
    diverged = False
    try:
        agent.learn(job.budget, callback=Evaluate())
    except FloatingPointError:  # the last finite parameters are kept, and judged
        diverged = True
    while len(scores) < MARKS:
        scores.append(score())
    return {
        **job._asdict(),
        "scores": scores,
        "env_steps": agent.num_timesteps,
        "trajectories": agent.state.num_trajectories,
        "refused": agent.state.num_refused,
        "diverged": diverged,
        "seconds": round(time.perf_counter() - began, 1),
    }


def best_step_sizes(results: list[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """(environment, method) -> the step size with the highest mean return over the second half of the tuning runs."""
    means: dict[tuple[str, str], dict[float, list[float]]] = {}
    for r in results:
        if r["purpose"] == "tune":
            cell = means.setdefault((r["env"], r["method"]), {}).setdefault(r["step_size"], [])
            cell.append(float(np.mean(r["scores"][MARKS // 2 :])))
    return {key: max(cells, key=lambda size: float(np.mean(cells[size]))) for key, cells in means.items()}


def jobs(purpose: str, envs: list[str], methods: list[str], num_seeds: int, step_size: float | None) -> Iterator[Job]:
    """What is still to be done, seed by seed; at the best step sizes of tuning if none is given."""
    results = stored(RESULTS)
    done = {tuple(r[field] for field in Job._fields) for r in results}
    best = best_step_sizes(results)
    for env in envs:
        for seed in TUNING_SEEDS[:num_seeds] if purpose == "tune" else range(num_seeds):
            for method in methods:
                chosen = best.get((env, method)) if step_size is None else step_size
                sizes = GRID if purpose == "tune" else [] if chosen is None else [chosen]
                yield from (job for size in sizes if (job := Job(purpose, env, method, size, seed)) not in done)


def summary(envs: list[str]) -> None:
    """Print the tables and draw the curves."""
    results = stored(RESULTS)
    best = best_step_sizes(results)
    compared = [r for r in results if r["purpose"] == "run" and r["step_size"] == best.get((r["env"], r["method"]))]
    for env in envs:
        rows = [r for r in compared if r["env"] == env]
        if not rows:
            continue
        print(f"\n### {env}, {TASKS[env]:,} steps\n")
        print("| method | step size | seeds | IQM at half | IQM at the end [95 %] | mean over the run [95 %] |")
        print("|---|---|---|---|---|---|")
        for method in METHODS:
            scores = np.array([r["scores"] for r in rows if r["method"] == method])
            if len(scores):
                size = next(r["step_size"] for r in rows if r["method"] == method)
                half = interquartile_mean(scores[:, MARKS // 2 - 1])
                end, whole = with_interval(scores[:, -1]), with_interval(scores.mean(1))
                cells = [f"{value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]" for value in (end, whole)]
                print(f"| {method} | {size:g} | {len(scores)} | {half:.1f} | {cells[0]} | {cells[1]} |")
    claims(results)
    draw(compared, envs)


def claims(results: list[dict[str, Any]]) -> None:
    """The thresholds on CartPole: return at any mark, and at the last."""
    for purpose, method, least in (("run", "N-PG-IGT", 475.0), ("long", "N-HARPG", 450.0), ("long", "N-HARPG, paper", 450.0)):
        of_method = [r for r in results if (r["purpose"], r["env"], r["method"]) == (purpose, "CartPole-v1", method)]
        steps = LONG if purpose == "long" else TASKS["CartPole-v1"]
        for size in sorted({r["step_size"] for r in of_method}):
            rows = [r for r in of_method if r["step_size"] == size]
            reached = sum(max(r["scores"]) >= least for r in rows)
            there = sum(r["scores"][-1] >= least for r in rows)
            counts = f"{reached} of {len(rows)} seeds reach {least:g} within {steps:,} steps, {there} are there at the end"
            print(f"{method}, step size {size:g}: {counts}")


def draw(rows: list[dict[str, Any]], envs: list[str]) -> None:
    """Interquartile means with intervals against environment steps: a column for every environment, REINFORCE in both rows."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [env for env in envs if any(r["env"] == env for r in rows)]
    if not shown:
        return
    normalised = [method for method, (algo, given) in METHODS.items() if algo in ("npgigt", "nvrpg") or given.get("normalize")]
    groups = {
        "steps α d": [method for method in METHODS if method not in normalised],
        "steps of length α": ["REINFORCE", *normalised],
    }
    figure, axes = plt.subplots(2, len(shown), figsize=(5.0 * len(shown) + 2.2, 7.4), squeeze=False, sharex="col", sharey="col")
    palette = plt.get_cmap("tab10").colors
    for line, (title, methods) in zip(axes, groups.items(), strict=True):
        for axis, env in zip(line, shown, strict=True):
            steps = np.arange(1, MARKS + 1) * TASKS[env] / MARKS
            for number, method in enumerate(methods):
                scores = np.array([r["scores"] for r in rows if (r["env"], r["method"]) == (env, method)])
                if len(scores):
                    color = "black" if method == "REINFORCE" else palette[number]
                    middle, low, high = np.array([with_interval(column, 300) for column in scores.T]).T
                    axis.plot(steps, middle, color=color, label=method, linewidth=1.8)
                    axis.fill_between(steps, low, high, color=color, alpha=0.07, linewidth=0)
            axis.set(title=f"{env}: {title}", xlim=(0, steps[-1]))
            axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3))
            axis.grid(alpha=0.3)
        line[0].set_ylabel("return of θ_t (IQM, 95 % interval)")
        line[-1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    for axis in axes[-1]:
        axis.set_xlabel("environment steps")
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"\n{PICTURE}")


def said(result: dict[str, Any]) -> str:
    """A run in one line."""
    job = [result[name] for name in ("env", "method", "step_size", "seed")]
    return f"{job} {[round(score, 1) for score in result['scores']]} {result['seconds']} s"


def main() -> None:
    """Tune, run or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "run", "long", "summary"))
    parser.add_argument("--envs", nargs="+", choices=TASKS, default=list(TASKS), metavar="ID", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="default: all")
    parser.add_argument("--num-seeds", type=int, default=10, help="seeds of the comparison, or of tuning")
    parser.add_argument("--step-size", type=float, help="in place of the best one of tuning")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary(arguments.envs)
        return
    todo = jobs(arguments.command, arguments.envs, arguments.methods, arguments.num_seeds, arguments.step_size)
    run_all(RESULTS, train, todo, arguments.workers, said)


if __name__ == "__main__":
    main()
