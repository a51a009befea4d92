"""How much of deep sea treasure's known convex front one policy covers: PPO with a vector critic, conditioned on preferences.

    python benchmarks/preference_front.py run        # ten seeds; appends to the results
    python benchmarks/preference_front.py summary    # table and plot

After every tenth of the training the policy is shown 101 preferences in turn and plays its most likely actions, which in a
deterministic environment is the whole truth. Counted are the points of the known front among what it reaches, and the
hypervolume of all that against the front's (401.8 with reference (0, −25)); nothing is kept from earlier evaluations. Needs
pip install 'rlopt[mo]'.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from curves import run_all, stored

RESULTS = Path(__file__).parent / "results" / "preference_front.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "preference_front.png"
ENV = "deep-sea-treasure-v0"
BUDGET, MARKS = 120_000, 10
REFERENCE = (0.0, -25.0)
ARGUMENTS: dict[str, Any] = {
    "utility": "preferences",
    "n_envs": 16,
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 10,
    "gamma": 1.0,
    "gae_lambda": 0.95,
    "learning_rate": "linear:2e-3",
    "ent_coef": 0.01,
    "device": "cpu",
}


class Sea:
    """The environment's map, its front, and what a policy reaches in it."""

    def __init__(self) -> None:
        from rlopt.envs.vector import make_env

        self.env: Any = make_env(ENV).unwrapped
        self.front = np.array(self.env.pareto_front(1.0))

    def returns(self, agent: Any, weights: np.ndarray) -> np.ndarray:
        """R⃗ [W, 2] of the most likely actions with each of the preferences [W, 2]."""
        places, results = np.zeros((len(weights), 2), np.int32), np.tile([0.0, -100.0], (len(weights), 1))
        playing = np.ones(len(weights), bool)
        for step in range(100):
            actions, _ = agent.predict({"observation": places, "preference": weights.astype(np.float32)}, deterministic=True)
            for i in playing.nonzero()[0]:
                place = places[i] + self.env.dir[int(actions[i])]
                if self.env._is_valid_state(place):
                    places[i] = place
                treasure = float(self.env.sea_map[tuple(places[i])])
                if treasure > 0:
                    results[i], playing[i] = (treasure, -(step + 1.0)), False
        return results


def train(seed: int) -> dict[str, Any]:
    """Hypervolume share and points found, at every mark."""
    os.nice(10)
    import torch

    from rlopt import PPO
    from rlopt.indicators import hypervolume

    torch.set_num_threads(1)
    sea = Sea()
    shares = np.linspace(0.0, 1.0, 101)
    weights = np.stack([shares, 1.0 - shares], 1)
    total = hypervolume(sea.front, REFERENCE)
    agent = PPO("MultiInputPolicy", ENV, seed=seed, **ARGUMENTS)
    marks: list[dict[str, Any]] = []

    def watch(local: dict[str, Any], _: dict[str, Any]) -> bool:
        if len(marks) < MARKS and agent.num_timesteps >= (len(marks) + 1) * BUDGET / MARKS:
            mark()
        return True

    def mark() -> None:
        points = sea.returns(agent, weights)
        found = {tuple(p) for p in points.round(1)} & {tuple(p) for p in sea.front.round(1)}
        marks.append({"share": hypervolume(points, REFERENCE) / total, "found": len(found)})

    began = time.process_time()
    agent.learn(BUDGET, callback=watch)
    while len(marks) < MARKS:
        mark()
    points = sorted({tuple(p) for p in sea.returns(agent, weights).round(1).tolist()})
    return {"seed": seed, "marks": marks, "points": points, "seconds": round(time.process_time() - began, 1)}


def summary() -> None:
    """The table and the plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    results = stored(RESULTS)
    shares = np.array([[m["share"] for m in r["marks"]] for r in results])
    found = np.array([[m["found"] for m in r["marks"]] for r in results])
    steps = np.arange(1, MARKS + 1) * BUDGET / MARKS
    print(f"{len(results)} seeds, hypervolume share of the true front's, reference {REFERENCE}\n")
    print("| steps | median share | worst seed | seeds ≥ 0.98 | median points of 10 | seeds with all 10 |")
    print("|---|---|---|---|---|---|")
    for i, step in enumerate(steps):
        row = [f"{np.median(shares[:, i]):.4f}", f"{shares[:, i].min():.4f}", f"{(shares[:, i] >= 0.98).sum()}"]
        print(f"| {step:,.0f} | {' | '.join(row)} | {np.median(found[:, i]):g} | {(found[:, i] == 10).sum()} |")
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for curve in shares:
        axes[0].plot(steps, curve, color="tab:blue", alpha=0.35, linewidth=1)
    axes[0].plot(steps, np.median(shares, 0), color="tab:blue", linewidth=2.2, label="median of the seeds")
    axes[0].axhline(0.98, color="black", linestyle=":", linewidth=1)
    axes[0].set(xlabel="environment steps", ylabel="share of the front's hypervolume", xlim=(0, BUDGET), ylim=(0.8, 1.01))
    axes[0].legend(loc="lower right")
    front = Sea().front
    axes[1].plot(front[:, 0], front[:, 1], "o-", color="lightgrey", markersize=9, label="known convex front")
    counts = {tuple(p): sum(list(p) in [list(q) for q in r["points"]] for r in results) for p in front.round(1).tolist()}
    axes[1].scatter(front[:, 0], front[:, 1], c=[counts[tuple(p)] for p in front.round(1).tolist()], cmap="viridis", zorder=3)
    for point, count in counts.items():
        axes[1].annotate(f"{count}/{len(results)}", point, textcoords="offset points", xytext=(7, 4), fontsize=8)
    axes[1].set(xlabel="treasure", ylabel="minus time", xlim=(-0.5, 26.5), title="seeds that reach each point at the end")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def said(result: dict[str, Any]) -> str:
    """A run in one line."""
    last = result["marks"][-1]
    return f"seed {result['seed']}: {last['share']:.4f}, {last['found']} points, {result['seconds']} s"


def main() -> None:
    """Run or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "summary"))
    parser.add_argument("--num-seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at the same time")
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary()
        return
    done = {r["seed"] for r in stored(RESULTS)}
    todo = [seed for seed in range(arguments.num_seeds) if seed not in done]
    run_all(RESULTS, train, todo, arguments.workers, said)


if __name__ == "__main__":
    main()
