"""REBEL's advantage form beside PPO at equal environment steps, and on CartPole its forms without a critic.

    python benchmarks/rebel_control.py run --num-seeds 5 --workers 2             # resumable; appends to the results
    python benchmarks/rebel_control.py run --tasks CartPole-v1 --num-seeds 10
    python benchmarks/rebel_control.py summary                                   # tables and plot

"REBEL" and "PPO" have the values of `preset="tuned"`: PPO's are those of rl-baselines3-zoo, chosen for budgets that are often
longer than these; REBEL's were chosen on these tasks by single short runs. The arms without a critic have their own. A score is
the mean return of 20 episodes with sampled actions, in environments of their own, at every tenth of the budget; at the end also
with the most likely actions. Seconds are of the processor, of training alone, one thread. What is done already is not done
again.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import interquartile_mean, run_all, stored, with_interval

RESULTS = Path(__file__).parent / "results" / "rebel_control.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "rebel_control.png"
MARKS = 10
EVALUATION_EPISODES = 20
NUM_SEEDS = 5

# environment -> environment steps
TASKS = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 200_000,
    "Pendulum-v1": 200_000,
    "LunarLander-v3": 300_000,
    "HalfCheetah-v5": 300_000,
}
WITHOUT_CRITIC = 300_000  # steps of the arms on CartPole that have none
GROUPS: dict[str, Any] = {"eta": 1.0, "n_epochs": 8, "policy_kwargs": {"net_arch": [32, 32]}}
# algorithm, arguments
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "REBEL": ("rebel", {"preset": "tuned"}),
    "PPO": ("ppo", {"preset": "tuned"}),
    "REBEL, trajectory": (
        "rebel",
        {**GROUPS, "mode": "trajectory", "num_groups": 16, "group_size": 4, "learning_rate": 1e-3},
    ),
    "REBEL, branched": (
        "rebel",
        {**GROUPS, "mode": "branched", "num_groups": 64, "group_size": 2, "learning_rate": 3e-3},
    ),
}


class Job(NamedTuple):
    """One run."""

    env: str
    arm: str
    seed: int
    budget: int


def budget_of(env: str, arm: str) -> int | None:
    """Environment steps; None where there is no such run."""
    if "mode" in ARMS[arm][1]:
        return WITHOUT_CRITIC if env == "CartPole-v1" else None
    return TASKS[env]


def train(job: Job) -> dict[str, Any]:
    """Returns at every tenth of the budget, at the end also with the most likely actions, and seconds."""
    os.nice(10)
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    from rlopt import ALGORITHMS, evaluate, make_envs

    torch.set_num_threads(1)
    algo, arguments = ARMS[job.arm]
    agent = ALGORITHMS[algo]("MlpPolicy", job.env, seed=job.seed, device="cpu", **arguments)
    scores: list[float] = []
    clock: list[float] = []
    spent = 0.0  # on evaluation

    def score(deterministic: bool = False) -> float:
        """The mean return of the policy as it is."""
        seed = job.seed + 10**6 + len(scores)
        envs = make_envs(job.env, EVALUATION_EPISODES)
        result = evaluate(agent, envs, EVALUATION_EPISODES, deterministic=deterministic, seed=seed)
        envs.close()
        return float(result.mean)

    def mark() -> None:
        nonlocal spent
        now = time.process_time()
        clock.append(round(now - began - spent, 2))
        scores.append(score())
        spent += time.process_time() - now

    class Watch(BaseCallback):
        """Between iterations, whenever another tenth of the budget is used up."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            while len(scores) + 1 < MARKS and self.model.num_timesteps >= (len(scores) + 1) * job.budget / MARKS:
                mark()

    began = time.process_time()
    agent.learn(job.budget, callback=Watch())
    while len(scores) < MARKS:
        mark()
    return {**job._asdict(), "scores": scores, "mode": score(True), "clock": clock, "env_steps": agent.num_timesteps}


def summary() -> None:
    """Print a table for each task and draw the curves."""
    results = [r for r in stored(RESULTS) if r["budget"] == budget_of(r["env"], r["arm"])]
    for env in TASKS:
        rows = [r for r in results if r["env"] == env]
        if not rows:
            continue
        print(f"\n### {env}\n")
        print("| arm | steps | seeds | IQM at half | IQM at the end [95 %] | likeliest actions [95 %] | mean of the run | s |")
        print("|---|---|---|---|---|---|---|---|")
        for arm in ARMS:
            of_arm = [r for r in rows if r["arm"] == arm]
            if of_arm:
                scores = np.array([r["scores"] for r in of_arm])
                ends = [with_interval(values) for values in (scores[:, -1], np.array([r["mode"] for r in of_arm]))]
                cells = [f"{value[0]:.1f} [{value[1]:.1f}, {value[2]:.1f}]" for value in ends]
                half, whole = interquartile_mean(scores[:, MARKS // 2 - 1]), interquartile_mean(scores.mean(1))
                seconds = np.median([r["clock"][-1] for r in of_arm])
                line = f"| {arm} | {of_arm[0]['budget']:,} | {len(of_arm)} | {half:.1f} | {cells[0]} | {cells[1]} |"
                print(f"{line} {whole:.1f} | {seconds:.0f} |")
    draw(results)


def draw(results: list[dict[str, Any]]) -> None:
    """A panel for every task: interquartile means with 95 % intervals against environment steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [env for env in TASKS if any(r["env"] == env for r in results)]
    if not shown:
        return
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4.8 * columns, 3.7 * lines + 0.5), squeeze=False)
    for axis, env in zip(axes.flat, shown, strict=False):
        for color, arm in zip(("tab:blue", "black", "tab:orange", "tab:green"), ARMS, strict=True):
            of_arm = [r for r in results if (r["env"], r["arm"]) == (env, arm)]
            if of_arm:
                steps = np.arange(1, MARKS + 1) * of_arm[0]["budget"] / MARKS
                columns_of_scores = np.array([r["scores"] for r in of_arm]).T
                middle, low, high = np.array([with_interval(column, 500) for column in columns_of_scores]).T
                axis.plot(steps, middle, color=color, label=arm, linewidth=1.8)
                axis.fill_between(steps, low, high, color=color, alpha=0.12, linewidth=0)
        axis.set(title=env, xlabel="environment steps")
        axis.set_xlim(left=0)
        axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3))
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(shown) :]:
        axis.axis("off")
    for line in axes:
        line[0].set_ylabel("return, sampled actions (IQM, 95 %)")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.5 / (3.7 * lines + 0.5), 1, 1))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"\n{PICTURE}")


def said(result: dict[str, Any]) -> str:
    """A run in one line."""
    scores = [round(score, 1) for score in result["scores"]]
    return f"{[result[name] for name in Job._fields]} {scores} {result['mode']:.1f} {result['clock'][-1]} s"


def main() -> None:
    """Run or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "summary"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="ID", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME", help="default: all")
    parser.add_argument("--num-seeds", type=int, default=NUM_SEEDS)
    parser.add_argument("--steps", type=int, help="in place of every budget, to try things; not shown in the summary")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary()
        return
    done = {tuple(r[name] for name in Job._fields) for r in stored(RESULTS)}
    grid = [
        Job(env, arm, seed, arguments.steps or budget)
        for seed in range(arguments.num_seeds)
        for env in arguments.tasks
        for arm in arguments.arms
        if (budget := budget_of(env, arm)) is not None
    ]
    run_all(RESULTS, train, [job for job in grid if job not in done], arguments.workers, said)


if __name__ == "__main__":
    main()
