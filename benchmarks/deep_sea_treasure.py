"""MO-TSIVR-PG and MOPG on deep sea treasure with the paper's utility: exact f(J(θ_t)) against environment steps.

    python benchmarks/deep_sea_treasure.py tune       # the grid, on two seeds that the comparison does not use
    python benchmarks/deep_sea_treasure.py run        # the comparison, ten seeds, every method at its best setting
    python benchmarks/deep_sea_treasure.py summary    # table and plot

f = √(J_0 + 1) + √(101 + J_1); its maximum over all policies is 14.0253, at (23.7, −19). J(θ) is computed exactly, by dynamic
programming over the 11 × 11 cells and 100 steps: no evaluation noise, and no evaluation episodes. All methods have one network
(128 tanh units on the raw coordinates) and 64 episodes in a large batch, and every episode counts, those for J too. What is
done already is not done again: both commands append to benchmarks/results/deep_sea_treasure.jsonl. Needs
pip install 'rlopt[mo]'.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from curves import run_all, stored, with_interval

RESULTS = Path(__file__).parent / "results" / "deep_sea_treasure.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "deep_sea_treasure.png"
ENV = "deep-sea-treasure-v0"
BUDGET = 600_000
MARKS = 12
TUNING_SEEDS = (1000, 1001)
OPTIMUM, GOOD = 14.0253, 13.9
SMALL = {"num_small": 8, "restart_every": 8}
RADII = ("power:0.3:1/2", "power:0.1:1/2", 0.03, 0.01)
SHARED: dict[str, Any] = {
    "gamma": 1.0,
    "utility": "deep-sea-treasure",
    "num_episodes": 64,
    "n_envs": 64,
    "policy_kwargs": {"net_arch": [128]},
    "device": "cpu",
}
# algorithm, arguments, and the argument that is tuned with its grid
METHODS: dict[str, tuple[str, dict[str, Any], str, tuple[Any, ...]]] = {
    "MOPG, plain steps": ("mopg", {}, "step_size", (0.01, 0.03, 0.1)),
    "MOPG, normalised": ("mopg", {"step_rule": "normalized"}, "step_size", ("power:0.3:1/2", "power:1:1/2", 0.1)),
    "MOPG, Adam": ("mopg", {"step_rule": "adam"}, "step_size", (0.003, 0.01, 0.03)),
    "MO-TSIVR-PG": ("mo-tsivr-pg", {**SMALL, "step_size": 1.0}, "radius", RADII),
    "MO-TSIVR-PG, lagged": ("mo-tsivr-pg", {**SMALL, "step_size": 1.0, "batches": "lagged"}, "radius", RADII),
}


class Job(NamedTuple):
    """One run."""

    purpose: str  # "tune" or "run"
    method: str
    value: str  # of the tuned argument
    seed: int


class ExactReturns:
    """J of a policy, [2]: treasure and time, undiscounted, with the limit of 100 steps."""

    def __init__(self) -> None:
        from rlopt.envs.vector import make_env

        sea: Any = make_env(ENV).unwrapped
        cells = [(r, c) for r in range(sea.sea_map.shape[0]) for c in range(sea.sea_map.shape[1]) if sea.sea_map[r, c] != -10]
        index = {cell: i for i, cell in enumerate(cells)}
        self.observations = np.array(cells, np.float32)
        self.treasure = np.array([max(float(sea.sea_map[cell]), 0.0) for cell in cells])
        self.following = np.array(
            [[index.get((r + int(sea.dir[a][0]), c + int(sea.dir[a][1])), index[r, c]) for a in range(4)] for r, c in cells]
        )

    def __call__(self, agent: Any, theta: Any) -> np.ndarray:
        import torch

        with torch.no_grad():
            actor = agent.functional.bind(theta).actor(torch.as_tensor(self.observations))
            actions = [torch.full((len(self.observations),), a) for a in range(4)]
            policy = torch.stack([actor.log_prob(a) for a in actions], -1).exp().double().numpy()
        values = np.zeros((len(self.observations), 2))
        found = self.treasure[self.following]  # [S, A]
        for _ in range(100):
            onward = values[self.following] * (found == 0)[..., None]
            values = np.einsum("sa,sak->sk", policy, np.stack([found, np.full_like(found, -1.0)], -1) + onward)
        return values[0]


def utility(returns: np.ndarray) -> float:
    """f(J)."""
    return float(np.sqrt(max(returns[0], 0.0) + 1) + np.sqrt(101 + min(max(returns[1], -100.0), 0.0)))


def make(job: Job) -> Any:
    """The agent of a run."""
    from rlopt import ALGORITHMS

    algo, arguments, tuned, grid = METHODS[job.method]
    value = next(v for v in grid if str(v) == job.value)
    return ALGORITHMS[algo]("MlpPolicy", ENV, seed=job.seed, **{**SHARED, **arguments, tuned: value})


def train(job: Job) -> dict[str, Any]:
    """f(J(θ)) at every mark, and J at the end."""
    os.nice(10)
    import torch

    torch.set_num_threads(1)
    agent, exact = make(job), ExactReturns()
    began = time.process_time()
    state, scores = agent.state, []
    while len(scores) < MARKS:
        state, _ = agent.step(state, agent.collector)
        # An agent that has settled on the nearest treasure plays one-step episodes for ever: its curve is flat.
        settled = state.num_trajectories > BUDGET // 4
        while len(scores) < MARKS and (settled or agent.collector.num_timesteps >= (len(scores) + 1) * BUDGET / MARKS):
            scores.append(round(utility(exact(agent, state.theta)), 5))
    returns = exact(agent, state.theta)
    return {
        **job._asdict(),
        "scores": scores,
        "returns": returns.round(4).tolist(),
        "trajectories": state.num_trajectories,
        "seconds": round(time.process_time() - began, 1),
    }


def best(results: list[dict[str, Any]], method: str) -> str | None:
    """The setting whose tuning seeds have the largest mean of the last third of the run."""
    means = {}
    for value in map(str, METHODS[method][3]):
        rows = [r for r in results if (r["purpose"], r["method"], r["value"]) == ("tune", method, value)]
        if len(rows) == len(TUNING_SEEDS):
            means[value] = float(np.mean([r["scores"][-MARKS // 3 :] for r in rows]))
    return max(means, key=lambda v: means[v]) if len(means) == len(METHODS[method][3]) else None


def summary() -> None:
    """The table and the plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = stored(RESULTS)
    figure, axis = plt.subplots(figsize=(7.5, 4.4))
    steps = np.arange(1, MARKS + 1) * BUDGET / MARKS
    print(
        f"| method | setting | seeds | f at half | f at the end [95 %] | seeds ≥ {GOOD} at the end | ever | ≥ 14.0 at the end |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for method, (_, _, tuned, _) in METHODS.items():
        value = best(results, method)
        rows = [r for r in results if (r["purpose"], r["method"], r["value"]) == ("run", method, value)]
        if not rows:
            continue
        scores = np.array([r["scores"] for r in rows])
        middle, low, high = with_interval(scores[:, -1])
        above, ever, perfect = (scores[:, -1] >= GOOD).sum(), (scores >= GOOD).any(1).sum(), (scores[:, -1] >= 14.0).sum()
        end = f"{middle:.3f} [{low:.3f}, {high:.3f}]"
        half = f"{with_interval(scores[:, MARKS // 2 - 1])[0]:.3f}"
        print(f"| {method} | {tuned} {value} | {len(rows)} | {half} | {end} | {above} | {ever} | {perfect} |")
        middles, lows, highs = np.array([with_interval(column, 300) for column in scores.T]).T
        (line,) = axis.plot(steps, middles, label=method)
        axis.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.12, linewidth=0)
    axis.axhline(OPTIMUM, color="black", linestyle=":", linewidth=1)
    axis.text(BUDGET, OPTIMUM + 0.01, "optimum 14.0253 at (23.7, −19)", ha="right", va="bottom", fontsize=8)
    axis.set(xlabel="environment steps", ylabel="exact f(J(θ)), IQM and 95 % interval", ylim=(13.0, 14.12), xlim=(0, BUDGET))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def said(result: dict[str, Any]) -> str:
    """A run in one line."""
    scores = " ".join(f"{score:.2f}" for score in result["scores"])
    return f"{[result[name] for name in Job._fields]} {scores} {result['seconds']} s"


def main() -> None:
    """Tune, run or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("tune", "run", "summary"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--num-seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary()
        return
    results = stored(RESULTS)
    jobs = []
    for method in arguments.methods:
        if arguments.command == "tune":
            jobs += [Job("tune", method, str(value), seed) for value in METHODS[method][3] for seed in TUNING_SEEDS]
        elif (value := best(results, method)) is not None:
            jobs += [Job("run", method, value, seed) for seed in range(arguments.num_seeds)]
        else:
            print(f"{method}: not tuned yet")
    done = {tuple(r[name] for name in Job._fields) for r in results}
    run_all(RESULTS, train, [job for job in jobs if job not in done], arguments.workers, said)


if __name__ == "__main__":
    main()
