"""What a vector of rewards costs PPO: CartPole that pays its reward twice, a linear utility, against plain PPO.

    python benchmarks/vector_reward_cost.py

Both sides have the same environments (CartPole in a wrapper that makes an array of K equal rewards, and pays it or its
first), networks, seeds and sizes; the critic of one has K outputs. Iterations alternate, in the order A B C C B A, in one
thread, and what counts is the process's own time. The ratio is of medians, its interval a bootstrap over iterations; the
third agent is plain again, and shows what the method calls a difference where there is none. Written to
benchmarks/results/vector_reward_cost.json. The aim is a ratio of at most 1.10.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rlopt import PPO

RESULTS = Path(__file__).parent / "results" / "vector_reward_cost.json"
SIZES: dict[str, dict[str, Any]] = {
    "8 environments": {"n_envs": 8, "n_steps": 128, "batch_size": 256, "n_epochs": 10},
    "1 environment": {"n_envs": 1, "n_steps": 1024, "batch_size": 64, "n_epochs": 10},
    "32 environments": {"n_envs": 32, "n_steps": 64, "batch_size": 512, "n_epochs": 4},
}


class Repeated(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole with K equal rewards, all of them paid or one."""

    def __init__(self, num_objectives: int, vector: bool):
        super().__init__(gym.make("CartPole-v1"))
        self.num_objectives, self.vector = num_objectives, vector
        if vector:
            self.reward_space = gym.spaces.Box(0.0, 1.0, (num_objectives,), np.float32)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        rewards = np.full(self.num_objectives, reward)  # what an environment does to make them is not the agent's cost
        return observation, rewards if self.vector else reward, terminated, truncated, info


class Side:
    """An agent whose iterations are timed."""

    def __init__(self, num_objectives: int, vector: bool, sizes: dict[str, Any]):
        def environment() -> Repeated:
            return Repeated(num_objectives, vector)

        utility = [1.0 / num_objectives] * num_objectives if vector else None
        self.agent = PPO("MlpPolicy", environment, utility=utility, backend="sync", seed=0, device="cpu", **sizes)
        self.collecting: list[float] = []
        self.learning: list[float] = []

    def iterate(self) -> None:
        """One iteration, its rollout and the rest timed apart."""
        collector: Any = self.agent.collector
        steps, spent = collector.steps, 0.0

        def timed(theta: Any, num_steps: int) -> Any:
            nonlocal spent
            began = time.process_time()
            rollout = steps(theta, num_steps)
            spent = time.process_time() - began
            return rollout

        collector.steps = timed
        began = time.process_time()
        state, _ = self.agent.step(self.agent.state, collector)
        total = time.process_time() - began
        collector.steps = steps
        self.agent._adopt(state)
        self.collecting.append(spent)
        self.learning.append(total - spent)


def ratio(ours: np.ndarray, theirs: np.ndarray) -> list[float]:
    """Of medians, with its 95 % interval over iterations."""
    random = np.random.default_rng(0)
    draws = random.integers(len(ours), size=(2000, len(ours)))
    low, high = np.percentile(np.median(ours[draws], 1) / np.median(theirs[draws], 1), [2.5, 97.5])
    return [round(float(x), 4) for x in (np.median(ours) / np.median(theirs), low, high)]


def measure(sizes: dict[str, Any], num_objectives: int, iterations: int) -> dict[str, Any]:
    """Milliseconds and ratios for one size."""
    sides = {name: Side(num_objectives, name == "vector", sizes) for name in ("plain", "vector", "plain again")}
    for i in range(iterations + 2):
        order = list(sides.values())
        for side in order if i % 2 else order[::-1]:
            side.iterate()
    parts = {
        name: {
            "collecting": np.array(side.collecting[2:]),
            "learning": np.array(side.learning[2:]),
            "all": np.array(side.collecting[2:]) + np.array(side.learning[2:]),
        }
        for name, side in sides.items()
    }
    plain = parts.pop("plain")
    return {
        **sizes,
        "num_objectives": num_objectives,
        "iterations": iterations,
        "plain_ms": {part: round(1e3 * float(np.median(values)), 3) for part, values in plain.items()},
        **{name: {part: ratio(values, plain[part]) for part, values in each.items()} for name, each in parts.items()},
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--num-objectives", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {name: measure(sizes, arguments.num_objectives, arguments.iterations) for name, sizes in SIZES.items()}
    print("| | plain, ms an iteration | vector / plain [95 %] | of collecting | of learning | plain again / plain |")
    print("|---|---|---|---|---|---|")
    for name, row in rows.items():
        whole, collecting, learning = (row["vector"][part] for part in ("all", "collecting", "learning"))
        again = row["plain again"]["all"]
        cells = [f"{r[0]:.3f} [{r[1]:.3f}, {r[2]:.3f}]" for r in (whole, collecting, learning, again)]
        print(f"| {name} | {row['plain_ms']['all']:.1f} | {' | '.join(cells)} |")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
