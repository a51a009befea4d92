"""A real task's front at equal environment steps: PPO conditioned on preferences, against MORL-Baselines' Envelope Q-learning.

    python -m venv PEER; PEER/bin/pip install torch==2.13.0; PEER/bin/pip install morl-baselines==1.3.0 'gymnasium[box2d]'
    python benchmarks/mo_peers.py run --peer-python PEER/bin/python    # five seeds a side; appends to the results
    python benchmarks/mo_peers.py run --sides rlopt --num-seeds 5      # one side alone
    python benchmarks/mo_peers.py summary                              # table and plot

The task is mo-lunar-lander-v3: four rewards (landed or crashed, shaping, main engine, side engines), four actions. Both
agents are one network that is told the preference: rlopt's PPO with utility="preferences", and Envelope Q-learning (Yang et
al., arXiv:1908.08342), MORL-Baselines' agent of that kind for discrete actions. Each side runs in an interpreter of its own,
one thread, with γ = 0.99 and 200,000 environment steps. After every tenth of them the policy is asked for the same 35
preferences, the lattice of quarters on the simplex, and plays five episodes with each, with the same environment seeds on
both sides and its most likely actions. A point is the mean of those five; nothing is kept from earlier evaluations, whose
steps are not counted.

Hypervolumes, of what the 35 points dominate:

* of undiscounted returns, from (−101, −1001, −1001, −1001): one below the worst that an episode of 1,000 steps can pay, −100
  for a crash and −1 a step for each kind of engine; shaping, which has no bound, in the same units. Nothing falls out for
  what it burns.
* of returns discounted by 0.99, what both agents maximise, from (−101, −1001, −101, −101), the point of MORL-Baselines' own
  example for this task.

A point whose every episode crashes counts next to nothing in either. The mean utility is that of what was asked for, mean_w
⟨w, J(w)⟩ of undiscounted returns: it has no reference point, and it counts whether a policy does as it is told.

The peer's settings are those of MORL-Baselines' example of this agent (for minecart), with γ as here and a buffer that holds
the run; rlopt's were chosen in a few runs of 100,000 steps with another seed. Envelope makes a gradient step for every
environment step and keeps all data, PPO does neither: equal steps are not equal computation, so CPU-minutes are in the table.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "mo_peers.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "mo_peers.png"
ENV, BUDGET, MARKS, EPISODES, GAMMA = "mo-lunar-lander-v3", 200_000, 10, 5, 0.99
REFERENCE = (-101.0, -1001.0, -1001.0, -1001.0)
DISCOUNTED_REFERENCE = (-101.0, -1001.0, -101.0, -101.0)
SIDES = {"rlopt": "PPO, preferences (rlopt)", "peer": "Envelope (MORL-Baselines 1.3.0)"}
FIRST_EVALUATION_SEED = 1_000_000

# `concentration` is that of the Dirichlet distribution of preferences in training: below 1 favours single objectives.
PPO_ARGUMENTS: dict[str, Any] = {
    "utility": "preferences",
    "n_envs": 16,
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 20,
    "gamma": GAMMA,
    "gae_lambda": 0.98,
    "learning_rate": "linear:1e-3",
    "ent_coef": 0.01,
    "normalize_rewards": True,
    "backend": "sync",
    "device": "cpu",
    "concentration": 0.5,
}
ENVELOPE_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 3e-4,
    "gamma": GAMMA,
    "batch_size": 64,
    "net_arch": [256, 256, 256, 256],
    "initial_epsilon": 1.0,
    "final_epsilon": 0.05,
    "epsilon_decay_steps": 50_000,
    "initial_homotopy_lambda": 0.0,
    "final_homotopy_lambda": 1.0,
    "homotopy_decay_steps": 10_000,
    "target_net_update_freq": 1000,
    "max_grad_norm": 0.1,
    "buffer_size": BUDGET,
    "log": False,
    "device": "cpu",
}


def preferences() -> np.ndarray:
    """[35, 4], all weights that are quarters; in both interpreters in the same order."""
    return np.array([w for w in itertools.product(range(5), repeat=4) if sum(w) == 4], np.float32) / 4


class Evaluation:
    """The points that a policy reaches for each preference, and what the time for them was."""

    def __init__(self, act: Callable[[np.ndarray, np.ndarray], np.ndarray], budget: int):
        import mo_gymnasium

        self.act, self.budget = act, budget
        self.weights = np.repeat(preferences(), EPISODES, 0)
        self.envs = [mo_gymnasium.make(ENV) for _ in self.weights]
        self.marks: list[dict[str, Any]] = []
        self.seconds = 0.0

    def after(self, num_steps: int) -> None:
        """Evaluate if another tenth of the budget is over."""
        if len(self.marks) < MARKS and num_steps * MARKS >= self.budget * (len(self.marks) + 1):
            began = time.process_time()
            returns, discounted = (array.reshape(-1, EPISODES, 4).mean(1).round(3).tolist() for array in self.returns())
            self.marks.append({"steps": num_steps, "returns": returns, "discounted": discounted})
            self.seconds += time.process_time() - began

    def returns(self) -> tuple[np.ndarray, np.ndarray]:
        """R⃗ and its discounted form, [35 · EPISODES, 4] each; episode e has the same seed for all preferences."""
        seeds = [FIRST_EVALUATION_SEED + i % EPISODES for i in range(len(self.envs))]
        seen = np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds)]).astype(np.float32)
        totals, discounted = np.zeros((2, len(self.envs), 4))
        playing, discount = np.arange(len(self.envs)), 1.0
        while len(playing):
            actions, still = self.act(seen[playing], self.weights[playing]), []
            for i, action in zip(playing.tolist(), actions.tolist()):
                seen[i], rewards, terminated, truncated, _ = self.envs[i].step(int(action))
                totals[i] += rewards
                discounted[i] += discount * np.asarray(rewards)
                if not (terminated or truncated):
                    still.append(i)
            playing, discount = np.array(still, np.int64), discount * GAMMA
        return totals, discounted


def train_rlopt(seed: int, budget: int, **changed: Any) -> Evaluation:
    """PPO with preferences, evaluated at every mark."""
    from rlopt import PPO, make_envs
    from rlopt.envs.preferences import Preferences

    arguments = {**PPO_ARGUMENTS, **changed}
    envs = make_envs(ENV, arguments.pop("n_envs"), arguments.pop("backend"), seed)
    seen = Preferences(envs, concentration=arguments.pop("concentration"), seed=seed)
    agent = PPO("MultiInputPolicy", seen, seed=seed, **arguments)
    names = "observation", "preference"
    evaluation = Evaluation(
        lambda seen, weights: agent.predict(dict(zip(names, (seen, weights))), deterministic=True)[0], budget
    )
    agent.learn(budget, callback=lambda local, _: evaluation.after(agent.num_timesteps) or True)
    return evaluation


def train_peer(seed: int, budget: int) -> Evaluation:
    """MORL-Baselines' Envelope; its environment tells when it is time to evaluate."""
    import gymnasium
    import mo_gymnasium
    import torch
    from morl_baselines.multi_policy.envelope.envelope import Envelope

    class Counted(gymnasium.Wrapper):
        """Calls back after a step's update, which is before the next step."""

        num_steps = 0

        def step(self, action: Any) -> Any:
            evaluation.after(self.num_steps)
            self.num_steps += 1
            return self.env.step(action)

    @torch.no_grad()
    def act(seen: np.ndarray, weights: np.ndarray) -> np.ndarray:
        w = torch.as_tensor(weights)
        return torch.einsum("br,bar->ba", w, agent.q_net(torch.as_tensor(seen), w)).argmax(1).numpy()

    torch.manual_seed(seed)
    env = Counted(mo_gymnasium.make(ENV))
    env.reset(seed=seed)
    env.action_space.seed(seed)
    agent = Envelope(env, seed=seed, **ENVELOPE_ARGUMENTS)
    evaluation = Evaluation(act, budget)
    agent.train(budget)
    evaluation.after(budget)
    return evaluation


def train(side: str, seed: int, budget: int) -> dict[str, Any]:
    """One run, in the interpreter of its side."""
    os.nice(10)
    import torch

    torch.set_num_threads(1)
    began = time.process_time()
    evaluation = (train_rlopt if side == "rlopt" else train_peer)(seed, budget)
    minutes = (time.process_time() - began - evaluation.seconds) / 60
    return {
        "side": side,
        "seed": seed,
        "budget": budget,
        "minutes": round(minutes, 2),
        "evaluation_minutes": round(evaluation.seconds / 60, 2),
        "marks": evaluation.marks,
    }


def run(sides: list[str], num_seeds: int, budget: int, interpreters: dict[str, str], workers: int, results: Path) -> None:
    """Train what the file does not have yet, each in a process of its own; seed by seed, so that sides go along."""
    from curves import stored

    done = {(r["side"], r["seed"]) for r in stored(results) if r["budget"] == budget}
    todo = [(side, seed) for seed in range(num_seeds) for side in sides if (side, seed) not in done]
    print(f"{len(todo)} runs to do", flush=True)
    results.parent.mkdir(parents=True, exist_ok=True)

    def one(job: tuple[str, int]) -> str:
        side, seed = job
        words = [
            interpreters[side],
            "-W",
            "ignore",
            __file__,
            "one",
            "--sides",
            side,
            "--seed",
            str(seed),
            "--budget",
            str(budget),
        ]
        return subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1]

    with ThreadPool(workers) as pool:
        for line in pool.imap_unordered(one, todo):
            with results.open("a") as file:
                file.write(line + "\n")
            result = json.loads(line)
            last = measures(result["marks"][-1])
            print(f"{result['side']} seed {result['seed']}: {last}, {result['minutes']} CPU-minutes", flush=True)


def measures(mark: dict[str, Any]) -> dict[str, float]:
    """Two hypervolumes, in units of 10⁹, and the mean utility of what was asked for."""
    from rlopt.indicators import hypervolume

    points = np.array(mark["returns"])
    return {
        "hypervolume": hypervolume(points, REFERENCE) / 1e9,
        "discounted hypervolume": hypervolume(np.array(mark["discounted"]), DISCOUNTED_REFERENCE) / 1e9,
        "mean utility": float((preferences() * points).sum(1).mean()),
    }


def summary(results: Path, budget: int) -> None:
    """The table and the plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from curves import interquartile_mean, stored, with_interval

    from rlopt.pareto import ParetoArchive

    runs = {side: [r for r in stored(results) if r["side"] == side and r["budget"] == budget] for side in SIDES}
    print("| | seeds | steps | hypervolume, 10⁹ [95 %] | discounted, 10⁹ | mean utility | CPU-minutes a run |")
    print("|---|---|---|---|---|---|---|")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4))
    for (side, label), color in zip(SIDES.items(), ("tab:blue", "tab:orange")):
        if not runs[side]:
            continue
        curves = [[measures(mark) for mark in r["marks"]] for r in runs[side]]
        steps = np.arange(1, MARKS + 1) * budget / MARKS
        minutes = np.median([r["minutes"] for r in runs[side]])
        for mark in (MARKS // 2 - 1, MARKS - 1):
            cells = []
            for name in curves[0][0]:
                middle, low, high = with_interval(np.array([curve[mark][name] for curve in curves]))
                cells.append(f"{middle:.4g} [{low:.4g}, {high:.4g}]")
            print(f"| {label} | {len(curves)} | {steps[mark]:,.0f} | {' | '.join(cells)} | {minutes:.1f} |")
        for axis, name in zip(axes, ("hypervolume", "mean utility")):
            values = np.array([[mark[name] for mark in curve] for curve in curves])
            axis.plot(steps, values.T, color=color, alpha=0.3, linewidth=1)
            axis.plot(steps, [interquartile_mean(column) for column in values.T], color=color, linewidth=2.2, label=label)
            axis.set(xlabel="environment steps", ylabel=name + (", 10⁹" if name == "hypervolume" else ""))
        for number, r in enumerate(runs[side]):
            archive = ParetoArchive(4)
            for point in r["marks"][-1]["returns"]:
                archive.add(point)
            front = archive.points
            axes[2].scatter(-front[:, 2:].sum(1), front[:, 0], color=color, alpha=0.6, s=18, label=None if number else label)
    axes[2].set(xlabel="fuel burnt, both kinds", ylabel="landed or crashed", title="not dominated, at the end, all seeds")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def main() -> None:
    """Run, summarise, or be one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "summary", "one"))
    parser.add_argument("--peer-python", default="", help="an interpreter with morl-baselines and gymnasium[box2d]")
    parser.add_argument("--sides", nargs="+", choices=tuple(SIDES), default=list(SIDES))
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of `one`")
    parser.add_argument("--budget", type=int, default=BUDGET, help="environment steps of a run")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time, a core each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.command == "summary":
        summary(arguments.results, arguments.budget)
    elif arguments.command == "one":
        print(json.dumps(train(arguments.sides[0], arguments.seed, arguments.budget)))
    else:
        if "peer" in arguments.sides and not arguments.peer_python:
            parser.error("--peer-python is needed for the peer's side")
        interpreters = {"rlopt": sys.executable, "peer": arguments.peer_python}
        run(arguments.sides, arguments.num_seeds, arguments.budget, interpreters, arguments.workers, arguments.results)


if __name__ == "__main__":
    main()
