"""How near the best stationary policy are the agents after how many trajectories, on a small MDP that is known exactly?

    python benchmarks/sample_complexity.py tune     # one grid of step sizes for all methods, on seeds of its own
    python benchmarks/sample_complexity.py run      # twenty seeds at the best step sizes
    python benchmarks/sample_complexity.py plot     # the table and the figure

The policy is a table of logits (a linear layer on one-hot states), the gap J* − J(θ_t) is exact: J by dynamic programming with
the agent's action probabilities, J* the best value of a stationary policy. All methods use 20 trajectories an iteration, those
for Hessians included (SRVR-PG 80 at a restart and 10 in between), and the leave-one-out baseline. α_t and η_t are the powers of
2/(t + 2) of each method's theory, times α_0, which is tuned. Corrections are unbounded, as in the papers, but for "bounded",
which is the library's default. Tuning and twenty seeds took 32 minutes of one core that was shared. What is done already is
not done again: results are appended to benchmarks/results/sample_complexity.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from curves import stored

from rlopt import ALGORITHMS
from rlopt.agents import EpisodicAgent
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv

RESULTS = Path(__file__).parent / "results" / "sample_complexity.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "sample_complexity.png"
BATCH = 20
BUDGET = 10_000  # trajectories of a run; tuning takes half
MARKS = np.unique(np.geomspace(200, BUDGET, 15).astype(int)).tolist()
GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TUNING_SEEDS = (1000, 1001, 1002)
FLOOR = 1e-5  # gaps below are as good as this, for tuning
UNBOUNDED, SPLIT = {"max_correction": None}, {"num_episodes": BATCH // 2}


class Method(NamedTuple):
    """An agent's name, the exponent of its step sizes, and its other arguments."""

    algorithm: str
    step_power: str
    arguments: dict[str, Any]


METHODS = {
    "REINFORCE": Method("reinforce", "2/3", {}),
    "HARPG": Method("harpg", "1/2", {"momentum": "power:1:1", **UNBOUNDED, **SPLIT}),
    "STORM-PG": Method("stormpg", "2/3", {"momentum": "power:1:2/3", **UNBOUNDED}),
    "SRVR-PG": Method("srvrpg", "0", {"num_episodes": 4 * BATCH, "num_small": BATCH // 2, "restart_every": 8, "radius": None}),
    "normalised REINFORCE": Method("reinforce", "1", {"normalize": True}),
    "normalised momentum": Method("reinforce", "1", {"normalize": True, "momentum": "power:1:2/3"}),
    "N-PG-IGT": Method("npgigt", "1", {"momentum": "power:1:4/5"}),
    "N-HARPG": Method("harpg", "1", {"normalize": True, "momentum": "power:1:1", **UNBOUNDED, **SPLIT}),
    "N-HARPG, bounded": Method("harpg", "1", {"normalize": True, "momentum": "power:1:1", **SPLIT}),
    "N-VR-PG": Method("nvrpg", "2/3", {"utility": "reward", "momentum": "power:1:2/3", **UNBOUNDED}),
}
PANELS = {
    r"steps of length $\alpha_t \|d_t\|$": ["REINFORCE", "HARPG", "STORM-PG", "SRVR-PG"],
    r"normalised: steps of length $\alpha_t$": ["REINFORCE", *list(METHODS)[4:]],
}


class Job(NamedTuple):
    """One run."""

    purpose: str  # "tune" or "run"
    method: str
    step_size: float
    seed: int

    @property
    def budget(self) -> int:
        return BUDGET // 2 if self.purpose == "tune" else BUDGET


def make_mdp() -> TabularMDP:
    """Three machines that pay a little for every step of waiting, and 1 once, when they are cashed and the episode ends.

    It is best to wait until the last step; a policy that does not see the time has to gamble, so the best stationary one has
    finite logits in every state.
    """
    num_machines, end = 3, 3
    wait, cash = 0, 1
    transitions = torch.zeros(num_machines + 1, 2, num_machines + 1, dtype=torch.float64)
    transitions[:num_machines, wait, :num_machines] = torch.eye(num_machines, dtype=torch.float64)
    transitions[:num_machines, cash, end] = transitions[end, :, end] = 1.0
    rewards = torch.zeros(num_machines + 1, 2, dtype=torch.float64)
    rewards[:num_machines, wait] = torch.tensor([0.08, 0.15, 0.22], dtype=torch.float64)
    rewards[:num_machines, cash] = 1.0
    initial = torch.tensor([0.4, 0.3, 0.3, 0.0], dtype=torch.float64)
    return TabularMDP(initial, transitions, rewards, 0.99, 6, torch.arange(num_machines + 1) == end)


def exact_value(mdp: TabularMDP, agent: EpisodicAgent, theta: torch.Tensor) -> float:
    """J(θ), from the agent's action probabilities at every state."""
    with torch.no_grad():
        logits = agent.functional.bind(theta).action_parameters(torch.arange(mdp.num_states))
        return float(mdp.value(torch.softmax(logits.double(), -1)))


def train(job: Job, mdp: TabularMDP, best: float) -> dict[str, Any]:
    """The gaps at the marks within the budget."""
    method = METHODS[job.method]
    cls = ALGORITHMS[method.algorithm]
    assert issubclass(cls, EpisodicAgent)
    agent = cls(
        "MlpPolicy",
        TabularVectorEnv(mdp, BATCH),
        seed=job.seed,
        device="cpu",
        step_size=f"power:{job.step_size}:{method.step_power}",
        policy_kwargs={"net_arch": []},
        **{"num_episodes": BATCH, "gamma": mdp.gamma, **method.arguments},
    )
    began, state, gaps = time.process_time(), agent.state, []
    assert agent.collector is not None
    for mark in (mark for mark in MARKS if mark <= job.budget):
        while state.num_trajectories < mark:
            state, _ = agent.step(state, agent.collector)
        gaps.append(float(f"{best - exact_value(mdp, agent, state.theta):.5g}"))
    return {**job._asdict(), "gaps": gaps, "refused": state.num_refused, "seconds": round(time.process_time() - began, 2)}


def best_step_sizes(results: list[dict[str, Any]]) -> dict[str, float]:
    """Method -> the step size with the smallest geometric mean of the gaps in the second half of the tuning runs' marks."""
    cells: dict[str, dict[float, list[float]]] = {}
    for r in results:
        if r["purpose"] == "tune":
            half = np.maximum(r["gaps"][len(r["gaps"]) // 2 :], FLOOR)
            cells.setdefault(r["method"], {}).setdefault(r["step_size"], []).append(float(np.log(half).mean()))
    return {method: min(sizes, key=lambda size, sizes=sizes: np.mean(sizes[size])) for method, sizes in cells.items()}


def jobs(purpose: str, methods: list[str], num_seeds: int) -> Iterator[Job]:
    """What is still to be done, seed by seed."""
    results = stored(RESULTS)
    done = {tuple(r[field] for field in Job._fields) for r in results}
    best = best_step_sizes(results)
    for seed in TUNING_SEEDS if purpose == "tune" else range(num_seeds):
        for method in methods:
            sizes = GRID if purpose == "tune" else [best[method]] if method in best else []
            yield from (job for size in sizes if (job := Job(purpose, method, size, seed)) not in done)


def perform(todo: list[Job]) -> None:
    """Do these runs, and append what they give."""
    mdp = make_mdp()
    best = mdp.best_stationary_value()
    RESULTS.parent.mkdir(exist_ok=True)
    for number, job in enumerate(todo, 1):
        result = train(job, mdp, best)
        with RESULTS.open("a") as file:
            file.write(json.dumps(result) + "\n")
        print(f"{number}/{len(todo)}", *job, f"{result['gaps'][-1]:.2g}", f"{result['seconds']} s", flush=True)


def gaps_of(results: list[dict[str, Any]], method: str) -> np.ndarray:
    """The gaps of the comparison's runs, [seeds, marks]."""
    return np.array([r["gaps"] for r in results if r["purpose"] == "run" and r["method"] == method])


def slope(gaps: np.ndarray, first: int = 1000) -> float:
    """Of the log median gap over log trajectories, from `first` trajectories on."""
    late = np.array(MARKS) >= first
    return float(np.polyfit(np.log(np.array(MARKS)[late]), np.log(np.median(gaps, 0)[late]), 1)[0])


def table(results: list[dict[str, Any]]) -> None:
    """Print medians, quartiles and slopes."""
    sizes = best_step_sizes(results)
    halfway = MARKS.index(min(MARKS, key=lambda mark: abs(mark - 1000)))
    print(f"| method | α_0 | seeds | median gap at {MARKS[halfway]:,} | median gap at {BUDGET:,} [quartiles] | slope |")
    print("|---|---|---|---|---|---|")
    for method in METHODS:
        gaps = gaps_of(results, method)
        if len(gaps):
            low, middle, high = np.percentile(gaps, [25, 50, 75], axis=0)
            end = f"{middle[-1]:.1e} [{low[-1]:.1e}, {high[-1]:.1e}]"
            print(f"| {method} | {sizes[method]:g} | {len(gaps)} | {middle[halfway]:.1e} | {end} | {slope(gaps):.2f} |")


def draw(results: list[dict[str, Any]]) -> None:
    """Medians with quartiles against trajectories, a panel for either kind of step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.8), sharey=True, constrained_layout=True)
    palette = ["black", "C0", "C1", "C2", "C4", "C5", "C0", "C3", "C1", "C2"]  # a panel shows no colour twice
    colours = dict(zip(METHODS, palette, strict=True))
    for axis, (title, methods) in zip(axes, PANELS.items(), strict=True):
        for method in methods:
            gaps = gaps_of(results, method)
            if len(gaps):
                low, middle, high = np.percentile(gaps, [25, 50, 75], axis=0)
                axis.plot(MARKS, middle, color=colours[method], label=method, linewidth=1.8)
                axis.fill_between(MARKS, low, high, color=colours[method], alpha=0.12, linewidth=0)
        axis.set(title=title, xscale="log", yscale="log", xlabel="trajectories")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8, loc="lower left")
    axes[0].set_ylabel(r"$J^* - J(\theta_t)$: median and quartiles of the seeds")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["tune", "run", "plot"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME", help="default: all")
    parser.add_argument("--num-seeds", type=int, default=20, help="of the comparison")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.command != "plot":
        perform(list(jobs(arguments.command, arguments.methods, arguments.num_seeds)))
    results = stored(RESULTS)
    table(results)
    draw(results)


if __name__ == "__main__":
    main()
