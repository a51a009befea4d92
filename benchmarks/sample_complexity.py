"""How near the best stationary policy are the agents after how many trajectories, on a small MDP that is known exactly?

    python benchmarks/sample_complexity.py tune     # one grid of step sizes for all methods, on seeds of its own
    python benchmarks/sample_complexity.py run      # twenty seeds at the best step sizes
    python benchmarks/sample_complexity.py plot     # the table and the figure

The policy is a table of logits (a linear layer on one-hot states), the gap J* − J(θ_t) is exact: J by dynamic programming with
the agent's action probabilities, J* the best value of a stationary policy. All methods use 20 trajectories an iteration, those
for Hessians included, the leave-one-out baseline, α_t = α_0 (2/(t + 2))^(1/2), and η_t = (2/(t + 2))^(2/3), or ^(4/5) for
N-PG-IGT, as their theory has it. Corrections are not bounded, as in the papers, but where it says "bounded". What is done
already is not done again: results are appended to benchmarks/results/sample_complexity.jsonl.
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

from rlopt import ALGORITHMS
from rlopt.agents import EpisodicAgent
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_vector import TabularVectorEnv

RESULTS = Path(__file__).parent / "results" / "sample_complexity.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "sample_complexity.png"
BATCH = 20
BUDGET = 20_000  # trajectories of a run; tuning takes half
MARKS = np.unique(np.geomspace(200, BUDGET, 13).astype(int)).tolist()
GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
TUNING_SEEDS = (1000, 1001)
MOMENTUM, UNBOUNDED, SPLIT = {"momentum": "power:1:2/3"}, {"max_correction": None}, {"num_episodes": BATCH // 2}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "REINFORCE": ("reinforce", {}),
    "normalised REINFORCE": ("reinforce", {"normalize": True}),
    "normalised momentum": ("reinforce", {"normalize": True, **MOMENTUM}),
    "N-PG-IGT": ("npgigt", {"momentum": "power:1:4/5"}),
    "HARPG": ("harpg", {**MOMENTUM, **UNBOUNDED, **SPLIT}),
    "N-HARPG": ("harpg", {"normalize": True, **MOMENTUM, **UNBOUNDED, **SPLIT}),
    "N-HARPG, bounded": ("harpg", {"normalize": True, **MOMENTUM, **SPLIT}),
    "STORM-PG": ("stormpg", {**MOMENTUM, **UNBOUNDED}),
    "SRVR-PG": ("srvrpg", {"num_episodes": 4 * BATCH, "num_small": BATCH // 2, "restart_every": 8}),
    "N-VR-PG": ("nvrpg", {"utility": "reward", **MOMENTUM, **UNBOUNDED}),
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
    """Five states, three actions, ten steps."""
    return TabularMDP.random(num_states=5, num_actions=3, horizon=10, gamma=0.95, seed=0)


def exact_value(mdp: TabularMDP, agent: EpisodicAgent, theta: torch.Tensor) -> float:
    """J(θ), from the agent's action probabilities at every state."""
    with torch.no_grad():
        logits = agent.functional.bind(theta).action_parameters(torch.arange(mdp.num_states))
        return float(mdp.value(torch.softmax(logits.double(), -1)))


def train(job: Job, mdp: TabularMDP, best: float) -> dict[str, Any]:
    """The gaps at the marks within the budget."""
    name, arguments = METHODS[job.method]
    cls = ALGORITHMS[name]
    assert issubclass(cls, EpisodicAgent)
    agent = cls(
        "MlpPolicy",
        TabularVectorEnv(mdp, BATCH),
        seed=job.seed,
        device="cpu",
        step_size=f"power:{job.step_size}:1/2",
        policy_kwargs={"net_arch": []},
        **{"num_episodes": BATCH, "gamma": mdp.gamma, **arguments},
    )
    began, state, gaps = time.process_time(), agent.state, []
    assert agent.collector is not None
    for mark in (mark for mark in MARKS if mark <= job.budget):
        while state.num_trajectories < mark:
            state, _ = agent.step(state, agent.collector)
        gaps.append(float(f"{best - exact_value(mdp, agent, state.theta):.5g}"))
    return {**job._asdict(), "gaps": gaps, "refused": state.num_refused, "seconds": round(time.process_time() - began, 2)}


def stored() -> list[dict[str, Any]]:
    """All results so far."""
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def best_step_sizes(results: list[dict[str, Any]]) -> dict[str, float]:
    """Method -> the step size with the smallest geometric mean of the gaps in the second half of the tuning runs' marks."""
    cells: dict[str, dict[float, list[float]]] = {}
    for r in results:
        if r["purpose"] == "tune":
            half = np.maximum(r["gaps"][len(r["gaps"]) // 2 :], 1e-12)
            cells.setdefault(r["method"], {}).setdefault(r["step_size"], []).append(float(np.log(half).mean()))
    return {method: min(sizes, key=lambda size, sizes=sizes: np.mean(sizes[size])) for method, sizes in cells.items()}


def jobs(purpose: str, methods: list[str], num_seeds: int) -> Iterator[Job]:
    """What is still to be done, seed by seed."""
    results = stored()
    done = {tuple(r[field] for field in Job._fields) for r in results}
    best = best_step_sizes(results)
    for seed in TUNING_SEEDS if purpose == "tune" else range(num_seeds):
        for method in methods:
            sizes = GRID if purpose == "tune" else [best[method]] if method in best else []
            yield from (job for size in sizes if (job := Job(purpose, method, size, seed)) not in done)
