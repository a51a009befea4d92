"""Does rlopt's PPO learn what Stable-Baselines3's learns? Same hyper-parameters, same budget, several seeds.

Each run is a process of its own with one thread. At 25, 50 and 100 % of the budget the policy is evaluated
deterministically on fresh environments. `python benchmarks/equal_learning.py run` appends what is missing to
`benchmarks/results/equal_learning.json`; `summary` prints interquartile means with 95 % intervals and draws the plot.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "equal_learning.json"
PICTURE = RESULTS.with_suffix(".png")
TASKS = {"CartPole-v1": 100_000, "Pendulum-v1": 200_000, "HalfCheetah-v5": 300_000}
NORMALIZED = {"HalfCheetah-v5"}
FRACTIONS = (0.25, 0.5, 1.0)
EVALUATION_EPISODES = 20


def train(library: str, env_id: str, seed: int) -> dict[str, Any]:
    """One run: evaluation returns at each fraction of the budget."""
    import torch
    from stable_baselines3.common.callbacks import BaseCallback

    torch.set_num_threads(1)
    budget, scores = TASKS[env_id], {}
    agent, evaluate = (sb3_agent if library == "sb3" else rlopt_agent)(env_id, seed)

    class Evaluate(BaseCallback):
        """After the update that passes a fraction of the budget."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            for fraction in FRACTIONS:
                if fraction not in scores and self.model.num_timesteps >= fraction * budget:
                    scores[fraction] = evaluate()

    agent.learn(budget, callback=Evaluate())
    for fraction in FRACTIONS:
        scores.setdefault(fraction, None)
    scores = {f: evaluate() if s is None else s for f, s in scores.items()}
    return {
        "library": library,
        "env": env_id,
        "seed": seed,
        "budget": budget,
        "env_steps": agent.num_timesteps,
        "scores": {str(f): s for f, s in scores.items()},
    }


def sb3_agent(env_id: str, seed: int) -> Any:
    """SB3's PPO with its defaults, and a function that evaluates it."""
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

    env, test = make_vec_env(env_id, seed=seed), make_vec_env(env_id, n_envs=4, seed=10_000 + seed)
    if env_id in NORMALIZED:
        env, test = VecNormalize(env, gamma=0.99), VecNormalize(test, training=False, norm_reward=False)
    agent = PPO("MlpPolicy", env, seed=seed, device="cpu")

    def evaluate() -> float:
        if env_id in NORMALIZED:
            sync_envs_normalization(env, test)
        test.seed(10_000 + seed)
        return float(evaluate_policy(agent, test, EVALUATION_EPISODES)[0])

    return agent, evaluate


def rlopt_agent(env_id: str, seed: int) -> Any:
    """rlopt's PPO with preset "sb3", and a function that evaluates it."""
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    from rlopt import PPO

    test = make_vec_env(env_id, n_envs=4, seed=10_000 + seed)
    normalize = env_id in NORMALIZED
    agent = PPO(
        "MlpPolicy",
        env_id,
        preset="sb3",
        seed=seed,
        device="cpu",
        normalize_observations=normalize,
        normalize_rewards=normalize,
    )

    def evaluate() -> float:
        test.seed(10_000 + seed)
        return float(evaluate_policy(agent, test, EVALUATION_EPISODES)[0])

    return agent, evaluate


def run(seeds: list[int], envs: list[str], libraries: list[str]) -> None:
    """Do the runs that the results lack, one process each."""
    for seed in seeds:
        for env_id in envs:
            for library in libraries:
                done = load()
                if any((r["library"], r["env"], r["seed"]) == (library, env_id, seed) for r in done["runs"]):
                    continue
                command = [sys.executable, __file__, "one", "--library", library, "--env", env_id, "--seed", str(seed)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                result = json.loads(output.strip().splitlines()[-1])
                done = load()
                done["runs"].append(result)
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(done, indent=1))
                print(result, flush=True)


def load() -> dict[str, Any]:
    """The stored results."""
    if RESULTS.is_file():
        return json.loads(RESULTS.read_text())
    import gymnasium
    import stable_baselines3
    import torch

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
    }
    metric = f"mean return of {EVALUATION_EPISODES} deterministic episodes"
    return {"metric": metric, "versions": versions, "machine": "2-core x86 virtual machine, one thread a run", "runs": []}


def interquartile_mean(x: np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis, the two border values weighted by their share."""
    x = np.sort(x, axis=-1)
    n = x.shape[-1]
    edges = np.arange(n + 1)
    inside = np.clip(np.minimum(edges[1:], 0.75 * n) - np.maximum(edges[:-1], 0.25 * n), 0, None)
    return (x * inside).sum(-1) / inside.sum()


def interval(scores: np.ndarray, resamples: int = 10_000) -> tuple[float, float, float]:
    """IQM and its percentile bootstrap 95 % interval over seeds."""
    draws = np.random.default_rng(0).integers(0, len(scores), (resamples, len(scores)))
    low, high = np.percentile(interquartile_mean(scores[draws]), [2.5, 97.5])
    return float(interquartile_mean(scores)), float(low), float(high)


def summary() -> bool:
    """Print the table, draw the plot; True if all intervals overlap."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    runs = load()["runs"]
    figure, axes = plt.subplots(1, len(TASKS), figsize=(4.2 * len(TASKS), 3.6), constrained_layout=True)
    all_overlap = True
    print("| environment | share of budget | rlopt IQM [95 %] | SB3 IQM [95 %] | seeds | overlap |\n|---|---|---|---|---|---|")
    for axis, (env_id, budget) in zip(axes, TASKS.items(), strict=True):
        points: dict[str, list[tuple[float, float, float]]] = {"rlopt": [], "sb3": []}
        for fraction in FRACTIONS:
            scores = {
                library: np.array([r["scores"][str(fraction)] for r in runs if (r["library"], r["env"]) == (library, env_id)])
                for library in points
            }
            if not all(len(values) for values in scores.values()):
                continue
            for library, values in scores.items():
                points[library].append(interval(values))
            ours, theirs = points["rlopt"][-1], points["sb3"][-1]
            overlap = ours[1] <= theirs[2] and theirs[1] <= ours[2]
            all_overlap &= overlap
            cells = [f"{p[0]:.1f} [{p[1]:.1f}, {p[2]:.1f}]" for p in (ours, theirs)]
            seeds = f"{len(scores['rlopt'])} / {len(scores['sb3'])}"
            print(f"| {env_id} | {fraction:.0%} | {cells[0]} | {cells[1]} | {seeds} | {'yes' if overlap else 'NO'} |")
        for offset, (library, values) in enumerate(points.items()):
            if not values:
                continue
            middle, low, high = np.array(values).T
            x = np.array(FRACTIONS[: len(values)]) * budget * (1 + 0.02 * (2 * offset - 1))
            label = "rlopt" if library == "rlopt" else "Stable-Baselines3"
            axis.errorbar(x, middle, [middle - low, high - middle], marker="o", capsize=4, label=label)
        axis.set(title=env_id, xlabel="environment steps", ylabel="evaluation return, IQM and 95 % interval")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")
    return all_overlap


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "one", "summary"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--libraries", nargs="+", default=["rlopt", "sb3"], choices=["rlopt", "sb3"])
    parser.add_argument("--envs", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--library", choices=["rlopt", "sb3"])
    parser.add_argument("--env", choices=list(TASKS))
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    if arguments.command == "one":
        print(json.dumps(train(arguments.library, arguments.env, arguments.seed)))
    elif arguments.command == "run":
        run(arguments.seeds, arguments.envs, arguments.libraries)
        summary()
    else:
        sys.exit(0 if summary() else 1)


if __name__ == "__main__":
    main()
