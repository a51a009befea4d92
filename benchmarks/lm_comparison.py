"""REBEL beside RLOO, GRPO, PPO and IPO on the sums of two digits, and REBEL beside its closed forms.

    python benchmarks/lm_comparison.py tune       # every method at every learning rate of one grid, a seed of its own
    python benchmarks/lm_comparison.py run        # every method at its best learning rate, five seeds
    python benchmarks/lm_comparison.py checks     # closed forms, the gate and random rewards, three seeds each
    python benchmarks/lm_comparison.py summary    # tables and plot

Sums: a tiny GPT-2 (2 layers of 64) that was warmed up to an accuracy of .5 answers "a+b=" with (a + b) mod 10; reward 1 or 0.
All methods draw 256 completions an iteration, and stop at the same number of generated tokens. Accuracy is that of samples at
T = 1 over all 100 prompts, computed exactly: the mean probability of the right answers. Seconds are CPU seconds of one thread,
sampling included, warm-up not; memory is the process's peak, and how far it is above what it was before training.

Checks: `count` and `bandit` are REBEL's regressions, solved to a share `explained`, beside π_t ∝ e^{ηtr}; `gate` is the larger
of two digits, 100 iterations; `random rewards` the same with rewards that mean nothing, which must teach nothing.

What is done already is not done again: all commands append to benchmarks/results/lm_comparison.jsonl. Needs
pip install 'rlopt[lm]'.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import run_all, stored, with_interval

RESULTS = Path(__file__).parent / "results" / "lm_comparison.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "lm_comparison.png"
BUDGET = 150_000  # generated tokens
MARKS = 15
COMPLETIONS = 256
RATES = (1e-4, 3e-4, 1e-3)
TUNING_SEEDS = (1000,)
# η = 2 and β = .02 throughout. IPO's target is that of REBEL for two rewards that differ: 1/(2β) = η.
METHODS: dict[str, dict[str, Any]] = {
    "REBEL, G = 2": {"num_generations": 2},
    "REBEL, G = 4": {"num_generations": 4},
    "RLOO, G = 4": {"loss": "rloo", "num_generations": 4},
    "RLOO, G = 4, one epoch": {"loss": "rloo", "num_generations": 4, "num_iterations": 1},
    "GRPO, G = 8": {"loss": "grpo", "num_generations": 8},
    "PPO": {"loss": "ppo", "num_generations": 2},
    "IPO, G = 4": {"loss": "ipo", "num_generations": 4, "beta": 0.25},
    "IPO, G = 4, anchored at π_t": {"loss": "ipo", "num_generations": 4, "beta": 0.25, "anchor": "iteration"},
}
CHECKS = ("count", "bandit, all answers", "bandit, samples", "gate, G = 2", "gate, G = 4", "random rewards")


class Job(NamedTuple):
    """One run."""

    purpose: str  # "tune", "run" or "check"
    method: str
    rate: float  # 0 for checks, which have their own
    seed: int


def train(job: Job) -> dict[str, Any]:
    """A job's result."""
    os.nice(10)
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        return {**job._asdict(), **(check(job, folder) if job.purpose == "check" else compare(job, folder))}


def compare(job: Job, folder: str, budget: int = BUDGET) -> dict[str, Any]:
    """Accuracy before, and at every mark of the budget."""
    from rlopt.lm.examples.digits import accuracy, digits_trainer

    own = {"per_device_train_batch_size": COMPLETIONS, "learning_rate": job.rate}
    trainer = digits_trainer(job.seed, "sum", output_dir=folder, **{**own, **METHODS[job.method]})
    scores, before = [round(accuracy(trainer.model, "sum"), 5)], peak_memory()
    seconds = 0.0
    while len(scores) <= MARKS:
        began = time.process_time()
        trainer.iterate()
        seconds += time.process_time() - began
        while len(scores) <= MARKS and trainer.state.num_tokens >= len(scores) * budget / MARKS:
            scores.append(round(accuracy(trainer.model, "sum"), 5))
    return {
        "scores": scores,
        "tokens": trainer.state.num_tokens,
        "iterations": trainer.state.iteration,
        "seconds": round(seconds, 1),
        "peak_mib": round(peak_memory(), 1),
        "rise_mib": round(peak_memory() - before, 1),
    }


def check(job: Job, folder: str) -> dict[str, Any]:
    """What was measured, and what was to be."""
    import torch

    from rlopt.lm.examples import bandit, count, digits

    began = time.process_time()
    measured: list[float] = []
    exact: list[float] = []
    worst = 0.0
    if job.method == "count":
        points = count.run_count(count.count_trainer(job.seed, output_dir=folder))
        measured, exact = [point.measured for point in points], [point.exact for point in points]
        # The last iteration is where tokens other than the wanted one are hardly sampled any more.
        worst = max(abs(point.measured - point.exact) for point in points[:7])
    elif job.method.startswith("bandit"):
        table = bandit.reward_table(job.seed)
        trainer = bandit.bandit_trainer(job.seed, job.method == "bandit, all answers", folder)
        for iteration in range(1, 5):
            trainer.iterate()
            ours, theirs = bandit.policy_rewards(trainer.model, table), bandit.exact_rewards(table, iteration)
            measured.append(float(ours.mean()))
            exact.append(float(theirs.mean()))
            worst = max(worst, float((ours - theirs).abs().max()))
    else:
        trainer = digits.digits_trainer(job.seed, num_generations=4 if job.method == "gate, G = 4" else 2, output_dir=folder)
        if job.method == "random rewards":
            noise = torch.Generator().manual_seed(job.seed)
            trainer.reward_funcs = [lambda completion_ids: torch.randint(2, (len(completion_ids),), generator=noise).tolist()]
        measured.append(digits.accuracy(trainer.model))
        for iteration in range(1, 101):
            trainer.iterate()
            if iteration % 10 == 0:
                measured.append(digits.accuracy(trainer.model))
    seconds = round(time.process_time() - began, 1)
    return {
        "measured": np.round(measured, 5).tolist(),
        "exact": np.round(exact, 5).tolist(),
        "worst": worst,
        "seconds": seconds,
    }


def peak_memory() -> float:
    """Of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def best(results: list[dict[str, Any]], method: str) -> float | None:
    """The learning rate whose tuning seeds have the largest mean of the last third of the run; None before all are there."""
    means = {}
    for rate in RATES:
        rows = [r for r in results if (r["purpose"], r["method"], r["rate"]) == ("tune", method, rate)]
        if len(rows) == len(TUNING_SEEDS):
            means[rate] = float(np.mean([r["scores"][-MARKS // 3 :] for r in rows]))
    return max(means, key=lambda rate: means[rate]) if len(means) == len(RATES) else None


def summary(results: list[dict[str, Any]]) -> None:
    """The tables, and the plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), width_ratios=(1.7, 1))
    compared(results, left)
    checked(results, right)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def compared(results: list[dict[str, Any]], axis: Any) -> None:
    """Methods at their best learning rates: a row each, and a curve."""
    tokens = np.arange(MARKS + 1) * BUDGET / MARKS / 1000
    print("| method | learning rate | seeds | accuracy before | at half | at the end [95 %] | s | peak MiB | above its start |")
    print("|---|---|---|---|---|---|---|---|---|")
    for method in METHODS:
        rate = best(results, method)
        rows = [r for r in results if (r["purpose"], r["method"], r["rate"]) == ("run", method, rate)]
        if rate is None or not rows:
            continue
        scores = np.array([r["scores"] for r in rows])
        middles, lows, highs = np.array([with_interval(column) for column in scores.T]).T
        edge = " (edge)" if rate in (RATES[0], RATES[-1]) else ""
        end = f"{middles[-1]:.3f} [{lows[-1]:.3f}, {highs[-1]:.3f}]"
        seconds, peak, rise = (float(np.median([r[key] for r in rows])) for key in ("seconds", "peak_mib", "rise_mib"))
        print(
            f"| {method} | {rate:g}{edge} | {len(rows)} | {middles[0]:.3f} | {middles[MARKS // 2]:.3f} | {end} | {seconds:.0f}"
            f" | {peak:.0f} | {rise:.0f} |"
        )
        (line,) = axis.plot(tokens, middles, label=method)
        axis.fill_between(tokens, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)
    axis.set(
        title="sums of two digits", xlabel="thousand generated tokens", ylabel="accuracy of samples, IQM and 95 % interval"
    )
    axis.set(xlim=(0, tokens[-1]))
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=7, loc="lower right", ncols=2)


def checked(results: list[dict[str, Any]], axis: Any) -> None:
    """Closed forms and gates: a row each; the count's curves."""
    print("\n| check | seeds | measured, first → last | exact | largest deviation | s |")
    print("|---|---|---|---|---|---|")
    for name in CHECKS:
        rows = [r for r in results if (r["purpose"], r["method"]) == ("check", name)]
        if not rows:
            continue
        ends = ", ".join(f"{r['measured'][0]:.3f} → {r['measured'][-1]:.3f}" for r in rows)
        exact = " ".join(f"{r['exact'][-1]:.3f}" for r in rows) if rows[0]["exact"] else "–"
        worst = " ".join(f"{r['worst']:.3f}" for r in rows) if rows[0]["exact"] else "–"
        print(f"| {name} | {len(rows)} | {ends} | {exact} | {worst} | {np.median([r['seconds'] for r in rows]):.0f} |")
        if name == "count":
            axis.plot(rows[0]["exact"], color="black", linestyle=":", label="exact: $\\pi_t \\propto e^{\\eta t r}$")
            for row in rows:
                label = "measured, one seed each" if row is rows[0] else None
                axis.plot(row["measured"], "o", color="tab:blue", markersize=4, alpha=0.6, label=label)
    axis.set(title="token count", xlabel="iteration", ylabel="E[r]")
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=8, loc="lower right")


def said(result: dict[str, Any]) -> str:
    """A run in one line."""
    scores = " ".join(f"{score:.2f}" for score in result.get("scores", result.get("measured")))
    return f"{[result[name] for name in Job._fields]} {scores} {result['seconds']} s"


def jobs_of(command: str, results: list[dict[str, Any]], methods: list[str], num_seeds: int | None) -> list[Job]:
    """What a command has to run, done or not."""
    if command == "checks":
        return [Job("check", name, 0.0, seed) for seed in range(num_seeds or 3) for name in CHECKS]
    if command == "tune":
        return [Job("tune", method, rate, seed) for seed in TUNING_SEEDS for rate in RATES for method in methods]
    rates = {method: best(results, method) for method in methods}
    for method in methods:
        if rates[method] is None:
            print(f"{method}: not tuned yet")
    seeds = range(num_seeds or 5)
    return [Job("run", method, rate, seed) for seed in seeds for method, rate in rates.items() if rate is not None]


def main() -> None:
    """Tune, run, check or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "run", "checks", "summary"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--num-seeds", type=int, help="5 for run, 3 for checks")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    results = stored(RESULTS)
    if arguments.command == "summary":
        summary(results)
        return
    jobs = jobs_of(arguments.command, results, arguments.methods, arguments.num_seeds)
    done = {tuple(r[name] for name in Job._fields) for r in results}
    # A process a run: the peak of its memory is its own.
    run_all(RESULTS, train, [job for job in jobs if job not in done], arguments.workers, said, runs_per_process=1)


if __name__ == "__main__":
    main()
