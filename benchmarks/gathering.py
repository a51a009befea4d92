"""How fast are whole episodes gathered beside stepping the same environments with fixed actions and nothing else?

Bare stepping and `Collector.episodes` alternate, so that a drift of the machine hits both. Only steps that count are
counted: rows that reset and rows of idle environments are in the time, not in the steps. "busy" is a policy that
balances the pole to the time limit, "random" one that does not, with ten episodes an environment.
`python benchmarks/gathering.py` prints the table and stores `benchmarks/results/gathering.json`. Measure on a machine
that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rlopt.collector import Collector
from rlopt.envs import make_envs
from rlopt.envs.spaces import ActionDecoder, ObservationEncoder
from rlopt.policies import ActorCritic, Functional, make_policy
from rlopt.statistics import EpisodeStatistics

RESULTS = Path(__file__).parent / "results" / "gathering.json"
NUM_ENVS = 32
POLICIES = {"busy": 1000.0, "random": 0.0}  # the logit of the action that balances
EPISODES = {"busy": 2 * NUM_ENVS, "random": 10 * NUM_ENVS}
BALANCE = (0.1, 0.3, 3.0, 1.5)  # of position, velocity, angle, angular velocity; the sign is the action's


def environment() -> Any:
    """Gymnasium's own vector CartPole."""
    return gym.make_vec("CartPole-v1", num_envs=NUM_ENVS, vectorization_mode="vector_entry_point")


def bare_rate(env: Any, num_steps: int) -> float:
    """Environment steps a second with fixed actions; rows that reset are counted too, as nothing tells them apart."""
    actions = np.arange(NUM_ENVS) % 2
    env.reset(seed=0)
    began = time.process_time()
    for _ in range(num_steps):
        env.step(actions)
    return num_steps * NUM_ENVS / (time.process_time() - began)


def make_collector() -> tuple[Collector, torch.Tensor]:
    """A collector with a 32 × 32 tanh network, and parameters of it."""
    envs = make_envs(environment())
    observation_space, action_space = (
        ObservationEncoder(envs.encoder.raw_space).space,
        ActionDecoder(envs.decoder.raw_space).space,
    )
    torch.manual_seed(0)
    policy = make_policy("MlpPolicy", observation_space, action_space, 0.0, {"net_arch": [32, 32]})
    functional = Functional(ActorCritic(policy))
    collector = Collector(envs, functional, torch.Generator(), EpisodeStatistics(NUM_ENVS), seed=0)
    return collector, functional.init()


def balancing(functional: Functional, theta: torch.Tensor, logit: float) -> torch.Tensor:
    """θ with one path through the network that pushes the cart under the pole."""
    theta = theta.clone()
    weights = functional.unravel(theta)
    weights["policy.mlp_extractor.policy_net.0.weight"][0] = torch.tensor(BALANCE)
    weights["policy.mlp_extractor.policy_net.2.weight"][0] = 0.0
    weights["policy.mlp_extractor.policy_net.2.weight"][0, 0] = 1.0
    weights["policy.action_net.weight"][:, 0] = torch.tensor([-logit, logit])
    return theta


def pair(collector: Collector, theta: torch.Tensor, env: Any, num_episodes: int) -> dict[str, float]:
    """One batch of episodes, and as many bare vector steps."""
    vector_steps = 0

    def count(event: Any) -> bool:
        nonlocal vector_steps
        vector_steps += 1
        return True

    collector.on_step = count
    began = time.process_time()
    rollout = collector.episodes(theta, num_episodes)
    seconds = time.process_time() - began
    bare = bare_rate(env, vector_steps)
    return {
        "episodes": rollout.num_valid / seconds,
        "bare": bare,
        "ratio": rollout.num_valid / seconds / bare,
        "idle": 1.0 - rollout.num_valid / (vector_steps * NUM_ENVS),
        "longest": len(rollout.mask),
    }


def main() -> None:
    """Read the command line, measure, print, store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=10, help="of each policy, after one that warms up")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    collector, theta = make_collector()
    env = environment()
    results: dict[str, list[dict[str, float]]] = {}
    print("| policy | gathered / bare (median) | range | gathered steps/s | bare steps/s | idle and reset rows |")
    print("|---|---|---|---|---|---|")
    for name, logit in POLICIES.items():
        chosen = balancing(collector.policy, theta, logit)
        runs = [pair(collector, chosen, env, EPISODES[name]) for _ in range(arguments.pairs + 1)][1:]
        results[name] = runs
        ratios, middle = [run["ratio"] for run in runs], {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"| {name} | {middle['ratio']:.2f} | {min(ratios):.2f}–{max(ratios):.2f} | {middle['episodes']:,.0f} | "
            f"{middle['bare']:,.0f} | {middle['idle']:.1%} |"
        )
    arguments.out.parent.mkdir(exist_ok=True)
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    arguments.out.write_text(json.dumps({"machine": machine, "num_envs": NUM_ENVS, "results": results}, indent=1))


if __name__ == "__main__":
    main()
