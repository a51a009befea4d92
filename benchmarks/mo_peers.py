"""Fronts of real tasks at equal environment steps: PPO conditioned on preferences, against MORL-Baselines' agents.

    python -m venv PEER; PEER/bin/pip install torch==2.13.0
    PEER/bin/pip install morl-baselines==1.3.0 'gymnasium[box2d,mujoco]'
    python benchmarks/mo_peers.py run --peer-python PEER/bin/python    # five seeds a side; appends to the results
    python benchmarks/mo_peers.py run --sides rlopt --num-seeds 5      # one side alone
    python benchmarks/mo_peers.py run --task mo-lunar-lander-v3 --peer-python PEER/bin/python    # slow, see below
    python benchmarks/mo_peers.py summary                              # table and plot

Each side runs in an interpreter of its own, one thread, with the same γ and the same number of environment steps. Points are
means of five episodes of 1,000 steps at most, without the noise of exploration, with the same environment seeds for all
points and both sides; nothing that was measured before is kept.

**mo-halfcheetah-v5** (the default): two rewards, velocity and minus the squared action; six continuous actions; γ = 0.995;
196,608 steps. One policy that is told the preference, rlopt's PPO with utility="preferences", against a population that
learns one policy for each, PGMORL (Xu et al., ICML 2020): six agents of PPO with fixed weights (warm-up), then generations in
which agents and weights are chosen for the gain in hypervolume that is predicted. rlopt's policy is evaluated after every
quarter of the steps with 11 preferences, tenths; PGMORL after the warm-up and after every generation, with every policy of its
Pareto archive, on raw rewards, with the mean of its four training environments' statistics to normalise observations.

PGMORL's steps are those of warm-up and generations. Its own evaluations, by which it selects, take 120,000 more, which are
not counted: this is in its favour, as is that its archive may hold any number of points. Its settings are those of
MORL-Baselines' example of this agent for this task, and that class's defaults, but for two. It selects by discounted raw
returns and the reference point that is measured here, which is in its favour again: the example's, (0, −5), is in units of
normalised rewards, whose scale depends on the evaluations so far. And the schedule is shortened: the example has batches of
4 × 2,048 steps for each of six agents, 80 iterations of warm-up and 20 a generation, in 5,000,000 steps. Of 196,608 that would
leave four iterations, none after the warm-up, so batches are 4 × 512 here, with 12 iterations of warm-up and two generations of
2. PGMORL was designed for runs of millions of steps, and this says nothing about those.

Hypervolumes, of what the points dominate: of undiscounted returns from (0, −6001) and of discounted ones from (0, −1200.2),
where velocity is that of standing still and energy just below the worst that six actions in [−1, 1] can cost. The expected
utility is mean_w max_p ⟨w, p⟩ over the 11 preferences, of undiscounted returns. PGMORL weighs normalised rewards, rlopt the
environment's.

**mo-lunar-lander-v3**: four rewards (landed or crashed, shaping, main engine, side engines), four actions, γ = 0.99, 200,000
steps. Here the peer is told the preference, too: Envelope Q-learning (Yang et al., arXiv:1908.08342), MORL-Baselines' agent of
that kind for discrete actions, which takes hours of a core for a run. After every tenth of the steps both are asked for the
same 35 preferences, the lattice of quarters on the simplex. Hypervolumes:

* of undiscounted returns, from (−101, −1001, −1001, −1001): one below the worst that an episode of 1,000 steps can pay, −100
  for a crash and −1 a step for each kind of engine; shaping, which has no bound, in the same units. Nothing falls out for
  what it burns.
* of returns discounted by 0.99, what both agents maximise, from (−101, −1001, −101, −101), the point of MORL-Baselines' own
  example for this task.

A point whose every episode crashes counts next to nothing in either. The mean utility is that of what was asked for, mean_w
⟨w, J(w)⟩ of undiscounted returns: it has no reference point, and it counts whether a policy does as it is told. Envelope's
settings are those of MORL-Baselines' example of this agent (for minecart), with γ as here and a buffer that holds the run.

rlopt's settings for mo-lunar-lander-v3 were chosen in a few runs of 100,000 steps with another seed; those for
mo-halfcheetah-v5 are not tuned. Envelope makes a gradient step for every environment step and keeps all data, PPO does neither,
and PGMORL has six networks and fits its predictions anew for every candidate: equal steps are not equal computation, so
CPU-minutes, without those of the evaluations here, are in the table.
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
from typing import Any, NamedTuple

import numpy as np

RESULTS = Path(__file__).parent / "results" / "mo_peers.jsonl"
PICTURES = Path(__file__).parent.parent / "docs" / "images"
SIDES = ("rlopt", "peer")
EPISODES, FIRST_EVALUATION_SEED = 5, 1_000_000


class Task(NamedTuple):
    """What is learned, and how it is measured."""

    budget: int
    gamma: float
    marks: int  # evaluations of rlopt's side, evenly spaced
    divisions: int  # of the lattice of preferences
    reference: tuple[float, ...]
    discounted_reference: tuple[float, ...]
    unit: float  # of hypervolumes
    peer: str
    told: bool  # whether the peer, too, has a point for each preference
    picture: str
    axes: tuple[str, str]
    ppo: dict[str, Any]

    def preferences(self) -> np.ndarray:
        """[P, K], the lattice on the simplex; in both interpreters in the same order."""
        whole = itertools.product(range(self.divisions + 1), repeat=len(self.reference))
        return np.array([w for w in whole if sum(w) == self.divisions], np.float32) / self.divisions


# `concentration` is that of the Dirichlet distribution of preferences in training: below 1 favours single objectives.
CHEETAH_PPO: dict[str, Any] = {
    "n_envs": 4,
    "n_steps": 512,
    "batch_size": 128,
    "n_epochs": 10,
    "gae_lambda": 0.95,
    "learning_rate": "linear:1e-3",
    "normalize_observations": True,
    "normalize_rewards": True,
    "concentration": 1.0,
}
LUNAR_PPO: dict[str, Any] = {
    "n_envs": 16,
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 20,
    "gae_lambda": 0.98,
    "learning_rate": "linear:1e-3",
    "ent_coef": 0.01,
    "normalize_rewards": True,
    "concentration": 0.5,
}
TASKS = {
    "mo-halfcheetah-v5": Task(
        budget=196_608,
        gamma=0.995,
        marks=4,
        divisions=10,
        reference=(0.0, -6001.0),
        discounted_reference=(0.0, -1200.2),
        unit=1e6,
        peer="PGMORL",
        told=False,
        picture="mo_peers.png",
        axes=("squared actions", "distance, in steps of velocity 1"),
        ppo=CHEETAH_PPO,
    ),
    "mo-lunar-lander-v3": Task(
        budget=200_000,
        gamma=0.99,
        marks=10,
        divisions=4,
        reference=(-101.0, -1001.0, -1001.0, -1001.0),
        discounted_reference=(-101.0, -1001.0, -101.0, -101.0),
        unit=1e9,
        peer="Envelope",
        told=True,
        picture="mo_peers_lunar_lander.png",
        axes=("fuel burnt, both kinds", "landed or crashed"),
        ppo=LUNAR_PPO,
    ),
}
PGMORL_ARGUMENTS: dict[str, Any] = {
    "num_envs": 4,
    "pop_size": 6,
    "num_weight_candidates": 7,
    "log": False,
    "device": "cpu",
}
PGMORL_SCHEDULE = {"steps_per_iteration": 512, "warmup_iterations": 12, "evolutionary_iterations": 2}
ENVELOPE_ARGUMENTS: dict[str, Any] = {
    "learning_rate": 3e-4,
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
    "buffer_size": 200_000,
    "log": False,
    "device": "cpu",
}

# From observations [B, ...] and the index [B] of the point that each belongs to, to actions.
Act = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Evaluation:
    """The points that a set of policies reaches, and what the time for them was."""

    def __init__(self, env: str, budget: int):
        self.env, self.task, self.budget = env, TASKS[env], budget
        self.envs: list[Any] = []
        self.marks: list[dict[str, Any]] = []
        self.seconds = 0.0

    def when_due(self, num_steps: int, act: Act) -> None:
        """Evaluate every preference if another part of the budget is over."""
        if len(self.marks) < self.task.marks and num_steps * self.task.marks >= self.budget * (len(self.marks) + 1):
            self.mark(num_steps, act, len(self.task.preferences()))

    def mark(self, num_steps: int, act: Act, num_points: int) -> None:
        """Evaluate `num_points` policies now."""
        began = time.process_time()
        returns, discounted = (
            array.reshape(num_points, EPISODES, -1).mean(1).round(3).tolist() for array in self.returns(act, num_points)
        )
        self.marks.append({"steps": num_steps, "returns": returns, "discounted": discounted})
        self.seconds += time.process_time() - began

    def returns(self, act: Act, num_points: int) -> tuple[np.ndarray, np.ndarray]:
        """R⃗ and its discounted form, [num_points · EPISODES, K] each; episode e has the same seed for all points."""
        import mo_gymnasium

        points = np.repeat(np.arange(num_points), EPISODES)
        while len(self.envs) < len(points):
            self.envs.append(mo_gymnasium.make(self.env))
        seeds = [FIRST_EVALUATION_SEED + i % EPISODES for i in range(len(points))]
        seen = np.stack([env.reset(seed=seed)[0] for env, seed in zip(self.envs, seeds)]).astype(np.float32)
        totals, discounted = np.zeros((2, len(points), len(self.task.reference)))
        playing, discount = np.arange(len(points)), 1.0
        while len(playing):
            still = []
            for i, action in zip(playing.tolist(), act(seen[playing], points[playing])):
                seen[i], rewards, terminated, truncated, _ = self.envs[i].step(action)
                totals[i] += rewards
                discounted[i] += discount * np.asarray(rewards)
                if not (terminated or truncated):
                    still.append(i)
            playing, discount = np.array(still, np.int64), discount * self.task.gamma
        return totals, discounted


def train_rlopt(evaluation: Evaluation, seed: int, **changed: Any) -> None:
    """PPO with preferences, evaluated at every mark."""
    from rlopt import PPO, make_envs
    from rlopt.envs.preferences import Preferences

    arguments = {**evaluation.task.ppo, **changed}
    envs = make_envs(evaluation.env, arguments.pop("n_envs"), "sync", seed)
    seen = Preferences(envs, concentration=arguments.pop("concentration"), seed=seed)
    agent = PPO(
        "MultiInputPolicy",
        seen,
        utility="preferences",
        gamma=evaluation.task.gamma,
        seed=seed,
        device="cpu",
        **arguments,
    )
    weights = evaluation.task.preferences()

    def act(seen: np.ndarray, points: np.ndarray) -> np.ndarray:
        return agent.predict({"observation": seen, "preference": weights[points]}, deterministic=True)[0]

    agent.learn(evaluation.budget, callback=lambda local, _: evaluation.when_due(agent.num_timesteps, act) or True)


def train_envelope(evaluation: Evaluation, seed: int) -> None:
    """MORL-Baselines' Envelope; its environment tells when it is time to evaluate."""
    import gymnasium
    import mo_gymnasium
    import torch
    from morl_baselines.multi_policy.envelope.envelope import Envelope

    class Counted(gymnasium.Wrapper):
        """Calls back after a step's update, which is before the next step."""

        num_steps = 0

        def step(self, action: Any) -> Any:
            evaluation.when_due(self.num_steps, act)
            self.num_steps += 1
            return self.env.step(action)

    weights = torch.as_tensor(evaluation.task.preferences())

    @torch.no_grad()
    def act(seen: np.ndarray, points: np.ndarray) -> np.ndarray:
        w = weights[torch.as_tensor(points)]
        return torch.einsum("br,bar->ba", w, agent.q_net(torch.as_tensor(seen), w)).argmax(1).numpy()

    torch.manual_seed(seed)
    env = Counted(mo_gymnasium.make(evaluation.env))
    env.reset(seed=seed)
    env.action_space.seed(seed)
    agent = Envelope(env, seed=seed, gamma=evaluation.task.gamma, **ENVELOPE_ARGUMENTS)
    agent.train(evaluation.budget)
    evaluation.when_due(evaluation.budget, act)


def train_pgmorl(evaluation: Evaluation, seed: int, **changed: Any) -> None:
    """MORL-Baselines' PGMORL, evaluated whenever its archive has changed but before training."""
    import mo_gymnasium
    import torch
    from gymnasium.wrappers import ClipAction, NormalizeObservation, TransformObservation
    from morl_baselines.multi_policy.pgmorl.pgmorl import PGMORL

    class Watched(PGMORL):
        """Calls back when the archive is complete; the name is that of a private method in the class above."""

        def _PGMORL__eval_all_agents(self, *args: Any, **kwargs: Any) -> None:
            super()._PGMORL__eval_all_agents(*args, **kwargs)
            if self.global_step:
                policies = list(self.archive.individuals)
                evaluation.mark(self.global_step, acting(policies), len(policies))

        def normalised(self, seen: np.ndarray) -> np.ndarray:
            """By mean and variance of what all training environments showed, clipped as there."""
            found = []
            for env in self.env.envs:
                while not isinstance(env, NormalizeObservation):
                    env = env.env
                found.append((env.obs_rms.mean, env.obs_rms.var))
            means, variances = np.array(found).swapaxes(0, 1)
            deviation = np.sqrt(variances.mean(0) + means.var(0) + 1e-8)
            return np.clip((seen - means.mean(0)) / deviation, -10, 10).astype(np.float32)

    def acting(policies: list[Any]) -> Act:
        @torch.no_grad()
        def act(seen: np.ndarray, points: np.ndarray) -> np.ndarray:
            normalised = agent.normalised(seen)
            actions = np.zeros((len(seen), *agent.action_space.shape), np.float32)
            for point in np.unique(points):
                rows = points == point
                actions[rows] = policies[point].networks.actor_mean(torch.as_tensor(normalised[rows])).numpy()
            return actions.clip(agent.action_space.low, agent.action_space.high)

        return act

    torch.manual_seed(seed)
    gamma, reference = evaluation.task.gamma, np.array(evaluation.task.discounted_reference)
    arguments = {**PGMORL_ARGUMENTS, **PGMORL_SCHEDULE, **changed}
    agent = Watched(evaluation.env, origin=reference, gamma=gamma, seed=seed, **arguments)
    judge = ClipAction(mo_gymnasium.make(evaluation.env))
    judge = TransformObservation(judge, agent.normalised, judge.observation_space)
    judge.reset(seed=seed)
    agent.train(total_timesteps=evaluation.budget, eval_env=judge, ref_point=reference)


def train(env: str, side: str, seed: int, budget: int, changed: dict[str, Any]) -> dict[str, Any]:
    """One run, in the interpreter of its side."""
    os.nice(10)
    import torch

    torch.set_num_threads(1)
    began = time.process_time()
    evaluation = Evaluation(env, budget)
    trainers = {"rlopt": train_rlopt, "PGMORL": train_pgmorl, "Envelope": train_envelope}
    trainers[side if side == "rlopt" else TASKS[env].peer](evaluation, seed, **changed)
    minutes = (time.process_time() - began - evaluation.seconds) / 60
    return {
        "task": env,
        "side": side,
        "seed": seed,
        "budget": budget,
        "minutes": round(minutes, 2),
        "evaluation_minutes": round(evaluation.seconds / 60, 2),
        "marks": evaluation.marks,
    }


def results_of(results: Path, env: str, budget: int) -> list[dict[str, Any]]:
    """What the file has of a task."""
    from curves import stored

    return [r for r in stored(results) if r["task"] == env and r["budget"] == budget]


def run(
    env: str, sides: list[str], num_seeds: int, budget: int, interpreters: dict[str, str], workers: int, results: Path
) -> None:
    """Train what the file does not have yet, each in a process of its own; seed by seed, so that sides go along."""
    done = {(r["side"], r["seed"]) for r in results_of(results, env, budget)}
    todo = [(side, seed) for seed in range(num_seeds) for side in sides if (side, seed) not in done]
    print(f"{len(todo)} runs to do", flush=True)
    results.parent.mkdir(parents=True, exist_ok=True)

    def one(job: tuple[str, int]) -> str:
        side, seed = job
        words = [interpreters[side], "-W", "ignore", __file__, "one", "--task", env, "--sides", side]
        words += ["--seed", str(seed), "--budget", str(budget)]
        said = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()
        return [line for line in said if line.startswith('{"task"')][-1]  # simulators have warnings to say, too

    with ThreadPool(workers) as pool:
        for line in pool.imap_unordered(one, todo):
            with results.open("a") as file:
                file.write(line + "\n")
            result = json.loads(line)
            last = measures(TASKS[env], result["marks"][-1])
            print(f"{result['side']} seed {result['seed']}: {last}, {result['minutes']} CPU-minutes", flush=True)


def measures(task: Task, mark: dict[str, Any]) -> dict[str, float]:
    """Two hypervolumes, in the task's unit, and the utility: of what was asked for, or of what is best for each preference."""
    from rlopt.indicators import expected_utility, hypervolume

    points, weights = np.array(mark["returns"]), task.preferences().astype(np.float64)
    utility = float((weights * points).sum(1).mean()) if task.told else expected_utility(points, weights)
    return {
        "hypervolume": hypervolume(points, task.reference) / task.unit,
        "discounted hypervolume": hypervolume(np.array(mark["discounted"]), task.discounted_reference) / task.unit,
        "mean utility" if task.told else "expected utility": utility,
    }


def summary(env: str, results: Path, budget: int) -> None:
    """The table and the plot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from curves import interquartile_mean, with_interval

    from rlopt.indicators import nondominated

    task, found = TASKS[env], results_of(results, env, budget)
    labels = {"rlopt": "PPO, preferences (rlopt)", "peer": f"{task.peer} (MORL-Baselines 1.3.0)"}
    utility, unit = "mean utility" if task.told else "expected utility", f"10{superscript(task.unit)}"
    print(
        f"| {env} | seeds | steps | hypervolume, {unit} [95 %] | discounted, {unit} | {utility} | points | CPU-minutes a run |"
    )
    print("|---|---|---|---|---|---|---|---|")
    figure, axes = plt.subplots(1, 3, figsize=(14, 4))
    for (side, label), color in zip(labels.items(), ("tab:blue", "tab:orange")):
        runs = [r for r in found if r["side"] == side]
        if not runs:
            continue
        curves = [[measures(task, mark) for mark in r["marks"]] for r in runs]
        steps = [mark["steps"] for mark in runs[0]["marks"]]
        minutes = np.median([r["minutes"] for r in runs])
        # Half of the steps where that was evaluated, and the end.
        for mark in sorted({i for i, at in enumerate(steps) if 0.5 <= at / budget < 0.55} | {len(steps) - 1}):
            cells = []
            for name in curves[0][0]:
                middle, low, high = with_interval(np.array([curve[mark][name] for curve in curves]))
                cells.append(f"{middle:.4g} [{low:.4g}, {high:.4g}]")
            kept = np.median([nondominated(r["marks"][mark]["returns"]).sum() for r in runs])
            print(f"| {label} | {len(curves)} | {steps[mark]:,} | {' | '.join(cells)} | {kept:.0f} | {minutes:.1f} |")
        for axis, name in zip(axes, ("hypervolume", utility)):
            values = np.array([[mark[name] for mark in curve] for curve in curves])
            axis.plot(steps, values.T, color=color, alpha=0.3, linewidth=1)
            axis.plot(
                steps, [interquartile_mean(column) for column in values.T], color=color, linewidth=2.2, marker="o", label=label
            )
            axis.set(xlabel="environment steps", ylabel=name + (f", {unit}" if name == "hypervolume" else ""))
        for number, r in enumerate(runs):
            points = np.array(r["marks"][-1]["returns"])
            front = points[nondominated(points)]
            # The first reward against what the rest costs; of lunar lander's, shaping is left out.
            cost = -front[:, 1 if len(task.reference) == 2 else 2 :].sum(1)
            axes[2].scatter(cost, front[:, 0], color=color, alpha=0.6, s=18, label=None if number else label)
    axes[2].set(xlabel=task.axes[0], ylabel=task.axes[1], title="not dominated, at the end, all seeds")
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.legend(loc="best", fontsize=8)
    figure.tight_layout()
    picture = PICTURES / task.picture
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=120)
    print(f"\n{picture}")


def superscript(unit: float) -> str:
    """The exponent of a power of ten."""
    return str(round(np.log10(unit))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def main() -> None:
    """Run, summarise, or be one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("run", "summary", "one"))
    parser.add_argument("--task", choices=tuple(TASKS), default="mo-halfcheetah-v5")
    parser.add_argument("--peer-python", default="", help="an interpreter with morl-baselines and gymnasium[box2d,mujoco]")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--num-seeds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of `one`")
    parser.add_argument("--changed", type=json.loads, default={}, help="of `one`: other settings, as JSON, to try them")
    parser.add_argument("--budget", type=int, help="environment steps of a run; the task's own by default")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time, a core each")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    env, budget = arguments.task, arguments.budget or TASKS[arguments.task].budget
    if arguments.command == "summary":
        summary(env, arguments.results, budget)
    elif arguments.command == "one":
        print(json.dumps(train(env, arguments.sides[0], arguments.seed, budget, arguments.changed)))
    else:
        if "peer" in arguments.sides and not arguments.peer_python:
            parser.error("--peer-python is needed for the peer's side")
        interpreters = {"rlopt": sys.executable, "peer": arguments.peer_python}
        run(env, arguments.sides, arguments.num_seeds, budget, interpreters, arguments.workers, arguments.results)


if __name__ == "__main__":
    main()
