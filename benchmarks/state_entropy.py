"""Maximum entropy of the states visited on an 8x8 grid: N-VR-PG beside the exact optimum.

The optimum is certified by Frank–Wolfe over all occupancies, those of time-dependent policies included. The agent's entropy is
exact too: its action probabilities at every state go through dynamic programming. Writes benchmarks/results/state_entropy.json
and docs/images/state_entropy.png.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlopt import NVRPG
from rlopt.envs.tabular import TabularMDP
from rlopt.envs.tabular_optimum import maximise_utility
from rlopt.utilities import EntropyUtility

RESULTS = Path(__file__).parent / "results" / "state_entropy.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "state_entropy.png"
UTILITY = EntropyUtility()
HORIZON, GAMMA = 50, 0.99
MARKS = 20
SETTINGS: dict[str, dict[str, Any]] = {
    "20 episodes an iteration, doubly robust": {"num_episodes": 20},
    "one episode, trajectory weights (paper)": {
        "num_episodes": 1,
        "baseline": "none",
        "weighting": "trajectory",
        "step_size": "power:0.1:2/3",
    },
}


def policy_of(agent: NVRPG, mdp: TabularMDP) -> Tensor:
    """π(a | s) of the agent's θ_t, [S, A]."""
    states = torch.arange(mdp.num_states).repeat_interleave(mdp.num_actions)
    actions = torch.arange(mdp.num_actions).repeat(mdp.num_states)
    with torch.no_grad():
        log_probs = agent.log_policy(agent.state.theta, states, actions)
    return log_probs.double().exp().view(mdp.num_states, mdp.num_actions)


def train(seed: int, steps: int, arguments: dict[str, Any], mdp: TabularMDP) -> list[float]:
    """The exact entropy at every mark."""
    agent = NVRPG(
        "MlpPolicy",
        "rlopt/Grid-v0",
        utility=UTILITY,
        seed=seed,
        device="cpu",
        gamma=GAMMA,
        policy_kwargs={"net_arch": []},
        **arguments,
    )
    entropies = []
    for mark in range(1, MARKS + 1):
        agent.learn(mark * steps // MARKS - agent.num_timesteps, reset_num_timesteps=mark == 1, log_interval=None)
        entropies.append(float(UTILITY(mdp.occupancy(policy_of(agent, mdp)))))
    return entropies


def draw(results: dict[str, Any], steps: int) -> None:
    """Median and range over seeds against environment steps, and the optimum."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4.2))
    at = np.arange(1, MARKS + 1) * steps / MARKS
    for name, runs in results["runs"].items():
        curves = np.array(runs)
        axis.plot(at, np.median(curves, 0), label=name)
        axis.fill_between(at, curves.min(0), curves.max(0), alpha=0.2, linewidth=0)
    axis.axhline(results["upper_bound"], color="black", linewidth=1, label="exact optimum")
    axis.axhline(0.98 * results["upper_bound"], color="black", linewidth=1, linestyle=":", label="98 %")
    axis.axhline(results["uniform"], color="gray", linewidth=1, linestyle="--", label="uniform policy")
    axis.set(xlabel="environment steps", ylabel="entropy of the state distribution, nats", xlim=(0, steps))
    axis.grid(alpha=0.3)
    axis.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=130)


def main() -> None:
    """Find the optimum, train, store, draw and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200_000, help="environment steps of a run")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    mdp = TabularMDP.grid(size=8, horizon=HORIZON, gamma=GAMMA)
    optimum = maximise_utility(mdp, UTILITY, iterations=400)
    uniform = torch.full((mdp.num_states, mdp.num_actions), 0.25, dtype=torch.float64)
    results: dict[str, Any] = {
        "upper_bound": optimum.upper_bound,
        "found_by_frank_wolfe": optimum.value,
        "uniform": float(UTILITY(mdp.occupancy(uniform))),
        "steps": chosen.steps,
        "runs": {},
    }
    print(
        f"optimum between {optimum.value:.4f} and {optimum.upper_bound:.4f}, uniform policy {results['uniform']:.4f}",
        flush=True,
    )
    RESULTS.parent.mkdir(exist_ok=True)
    for name, arguments in SETTINGS.items():
        runs = results["runs"][name] = []
        for seed in range(chosen.num_seeds):
            runs.append(train(seed, chosen.steps, arguments, mdp))
            shares = " ".join(f"{runs[-1][i] / optimum.upper_bound:.1%}" for i in (MARKS // 4 - 1, MARKS // 2 - 1, MARKS - 1))
            print(f"{name}, seed {seed}: {shares} of the optimum at 25, 50, 100 % of the steps", flush=True)
            RESULTS.write_text(json.dumps(results, indent=1))
    draw(results, chosen.steps)


if __name__ == "__main__":
    main()
