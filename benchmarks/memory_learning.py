"""What memory is learned, and what it costs: S2PG, its ablations, stacked frames, backpropagation through time, full state.

    python benchmarks/memory_learning.py run --tasks cue-recall --num-seeds 5     # resumable; appends to the results
    python benchmarks/memory_learning.py summary                                  # table and plot

All arms have the same rollouts, network widths, optimiser and number of epochs. A score is the mean return of the last 100
training episodes, at every tenth of the budget; at the end, 100 episodes with sampled actions and memory, and 100 with the
most likely action and the memory's mean. Seconds are of the processor, of training alone, one thread. What is done already is
not done again.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import interquartile_mean, run_all, stored

RESULTS = Path(__file__).parent / "results" / "memory_learning.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "memory_learning.png"
MARKS = 20
EPISODES = 100
SHARED: dict[str, Any] = {
    "n_envs": 16,
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 10,
    "learning_rate": "linear:1e-3",
    "gamma": 0.98,
    "gae_lambda": 0.95,
}


@dataclass(frozen=True)
class Task:
    """An environment, how long to train in it, and what counts as learned."""

    env: str
    budget: int
    threshold: float
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    oracle: dict[str, Any] | str | None = None  # the id with full state, or arguments that show it; None if there is none
    arguments: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)  # policy_kwargs of stateful policies
    state_shown: bool = False  # to the critics of policies with memory, and to "PPO, full state"


TASKS = {
    "cue-recall": Task("rlopt/CueRecall-v0", 200_000, 0.95, {"delay": 4}, {"privileged": True}),
    "t-maze": Task("rlopt/TMaze-v0", 400_000, 3.8, {"length": 10}, {"privileged": True}, {"gamma": 0.99, "ent_coef": 0.01}),
    "cartpole": Task("CartPoleNoVel-v1", 150_000, 475.0, oracle="CartPole-v1"),
    "pendulum": Task(
        "PendulumNoVel-v1",
        300_000,
        -300.0,
        oracle="Pendulum-v1",
        arguments={
            "n_envs": 32,
            "batch_size": 128,
            "gamma": 0.9,
            "learning_rate": "linear:2e-3",
            "normalize_rewards": True,
            "target_kl": None,
        },
        memory={"memory_std": 0.02, "min_memory_std": 0.005, "retention": 1.0, "previous_action": False},
    ),
    "repeat-first": Task(
        "popgym-RepeatFirstEasy-v0",
        1_000_000,
        0.9,
        arguments={"gamma": 0.99, "gae_lambda": 0.5, "ent_coef": 0.01},
        memory={"retention": (1.0, 51.0)},
        state_shown=True,
    ),
    "repeat-previous": Task(
        "popgym-RepeatPreviousEasy-v0",
        3_000_000,
        0.5,
        arguments={"gamma": 0.95, "gae_lambda": 0.8, "ent_coef": 0.01},
        state_shown=True,
    ),
}
# algorithm, arguments, frames that are stacked; "full state" reads the environment of the oracle
ARMS: dict[str, tuple[str, dict[str, Any], int]] = {
    "S2PG": ("s2pg", {}, 1),
    "z recorded, not scored": ("s2pg", {"ratio": "action"}, 1),
    "RecurrentPPO, whole rollouts": ("recurrentppo", {}, 1),
    "RecurrentPPO, chunks of 16": ("recurrentppo", {"chunk_length": 16}, 1),
    "PPO, 4 frames": ("ppo", {}, 4),
    "PPO, 32 frames": ("ppo", {}, 32),
    "PPO, no memory": ("ppo", {}, 1),
    "PPO, full state": ("ppo", {}, 1),
}


class Job(NamedTuple):
    """One run."""

    task: str
    arm: str
    seed: int


def environments(job: Job, num_envs: int) -> Any:
    """The environments of a run; None if the task has no such arm."""
    from rlopt import make_envs
    from rlopt.envs.frame_stack import FrameStack
    from rlopt.envs.privileged import ShowState
    from rlopt.envs.vector import make_env

    task, frames = TASKS[job.task], ARMS[job.arm][2]
    if task.state_shown and (ARMS[job.arm][0] != "ppo" or job.arm == "PPO, full state"):
        return make_envs(lambda: ShowState(make_env(task.env, **task.env_kwargs)), num_envs)
    if job.arm != "PPO, full state":
        envs = make_envs(task.env, num_envs, env_kwargs=task.env_kwargs)
        return FrameStack(envs, frames) if frames > 1 else envs
    if isinstance(task.oracle, str):
        return make_envs(task.oracle, num_envs)
    return None if task.oracle is None else make_envs(task.env, num_envs, env_kwargs=task.env_kwargs | task.oracle)


def arguments_of(job: Job) -> dict[str, Any]:
    """What the algorithm of a run is made with."""
    task, (algo, own, _) = TASKS[job.task], ARMS[job.arm]
    policy_kwargs: dict[str, Any] = {}
    if algo != "ppo":
        policy_kwargs = {"previous_action": True, **task.memory}
    if algo == "recurrentppo":  # whose memory is not drawn
        policy_kwargs = {"previous_action": policy_kwargs["previous_action"]}
    return {**SHARED, **task.arguments, **own, "policy_kwargs": policy_kwargs, "seed": job.seed, "device": "cpu"}


def train(job: Job) -> dict[str, Any] | None:
    """Returns of training at every mark, evaluation at the end, and seconds."""
    os.nice(10)
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    from rlopt import ALGORITHMS, evaluate

    torch.set_num_threads(1)
    task, arguments = TASKS[job.task], arguments_of(job)
    envs = environments(job, arguments.pop("n_envs"))
    if envs is None:
        return None
    reads_state = job.arm == "PPO, full state" and not isinstance(task.oracle, str)
    policy = "MultiInputPolicy" if reads_state else "MlpPolicy"
    agent = ALGORITHMS[ARMS[job.arm][0]](policy, envs, **arguments)
    scores: list[float] = []
    clock: list[float] = []

    class Watch(BaseCallback):
        """Between rollouts, whenever another mark is passed."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            while len(scores) + 1 < MARKS and self.model.num_timesteps >= (len(scores) + 1) * task.budget / MARKS:
                self.mark()

        def mark(self) -> None:
            scores.append(float(np.mean([episode["r"] for episode in agent.ep_info_buffer])))
            clock.append(round(time.process_time() - began, 2))

    watch = Watch()
    began = time.process_time()
    agent.learn(task.budget, callback=watch)
    while len(scores) < MARKS:
        watch.mark()
    final = {
        name: evaluate(agent, environments(job, 10), EPISODES, deterministic=deterministic, seed=job.seed + 10**6).mean
        for name, deterministic in (("sampled", False), ("mode", True))
    }
    return {**job._asdict(), "scores": scores, "clock": clock, **final, "env_steps": agent.num_timesteps}


def steps_to(rows: list[dict[str, Any]], task: Task, unit: str) -> str:
    """Median over seeds of environment steps, or seconds, until the training return passed the threshold; — if most did not."""
    reached = []
    for r in rows:
        first = next((i for i, score in enumerate(r["scores"]) if score >= task.threshold), None)
        steps = np.inf if first is None else (first + 1) * task.budget / MARKS
        reached.append(steps if unit == "steps" else np.inf if first is None else r["clock"][first])
    middle = float(np.median(reached))
    return "—" if not np.isfinite(middle) else f"{middle:,.0f}"


def summary() -> None:
    """Print a table for each task and draw the curves."""
    results = stored(RESULTS)
    for name, task in TASKS.items():
        rows = [r for r in results if r["task"] == name]
        if not rows:
            continue
        print(f"\n### {name}: {task.env} {task.env_kwargs or ''}, {task.budget:,} steps, threshold {task.threshold:g}\n")
        print("| arm | seeds | last 100 episodes | sampled | mode | seeds above | steps to it | seconds to it | steps/s |")
        print("|---|---|---|---|---|---|---|---|---|")
        for arm in ARMS:
            of_arm = [r for r in rows if r["arm"] == arm]
            if of_arm:
                last, sampled, mode = (
                    interquartile_mean(np.array(values))
                    for values in (
                        [r["scores"][-1] for r in of_arm],
                        [r["sampled"] for r in of_arm],
                        [r["mode"] for r in of_arm],
                    )
                )
                above = sum(max(r["sampled"], r["mode"]) >= task.threshold for r in of_arm)
                rate = np.median([r["env_steps"] / r["clock"][-1] for r in of_arm])
                cells = [f"{last:.2f}", f"{sampled:.2f}", f"{mode:.2f}", f"{above}", steps_to(of_arm, task, "steps")]
                print(f"| {arm} | {len(of_arm)} | {' | '.join(cells)} | {steps_to(of_arm, task, 'seconds')} | {rate:,.0f} |")
    draw(results)


def draw(results: list[dict[str, Any]]) -> None:
    """A panel for every task: the interquartile mean of training returns, and its range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [name for name in TASKS if any(r["task"] == name for r in results)]
    columns = min(3, len(shown))
    lines = -(-len(shown) // max(columns, 1))
    figure, axes = plt.subplots(lines, columns, figsize=(4.8 * columns, 3.9 * lines + 0.7), squeeze=False)
    palette = plt.get_cmap("tab10").colors
    for axis, name in zip(axes.flat, shown, strict=False):
        task = TASKS[name]
        steps = np.arange(1, MARKS + 1) * task.budget / MARKS
        for color, arm in zip(palette, ARMS, strict=False):
            scores = np.array([r["scores"] for r in results if (r["task"], r["arm"]) == (name, arm)])
            if len(scores):
                middle = [interquartile_mean(column) for column in scores.T]
                axis.plot(steps, middle, color=color, label=arm, linewidth=2.2 if arm == "S2PG" else 1.4)
                axis.fill_between(steps, scores.min(0), scores.max(0), color=color, alpha=0.08, linewidth=0)
        axis.axhline(task.threshold, color="black", linewidth=0.8, linestyle=":")
        axis.set(title=f"{name} ({task.env})", xlabel="environment steps", xlim=(0, task.budget))
        axis.ticklabel_format(axis="x", style="sci", scilimits=(3, 3))
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(shown) :]:
        axis.axis("off")
    for line in axes:
        line[0].set_ylabel("return of the last 100 episodes")
    handles = {label: handle for axis in axes.flat for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.7 / (3.9 * lines + 0.7), 1, 1))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)
    print(f"\n{PICTURE}")


def said(result: dict[str, Any]) -> str:
    """A run in one line."""
    scores = f"{result['scores'][-1]:.2f} {result['sampled']:.2f} {result['mode']:.2f}"
    return f"{[result[name] for name in Job._fields]} {scores} {result['clock'][-1]} s"


def main() -> None:
    """Run or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "summary"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="NAME", help="default: all")
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary()
        return
    done = {tuple(r[name] for name in Job._fields) for r in stored(RESULTS)}
    grid = [Job(task, arm, seed) for seed in range(arguments.num_seeds) for task in arguments.tasks for arm in arguments.arms]
    run_all(RESULTS, train, [job for job in grid if job not in done], arguments.workers, said)


if __name__ == "__main__":
    main()
