"""How noisy is an estimate of ∇J(θ_t) − ∇J(θ_{t−1}) from Hessian-vector products, form by form?

On a tabular MDP everything is exact, by enumeration. On CartPole-v1 a policy is trained a little, and the products of several
hundred episodes on the segment of its last step are compared. The noise of a correction from M episodes is

    V/M + V_q        with one random point q for all, and        (V + V_q)/M        with one for every episode,

V the variance of an episode's product at a fixed point, V_q that of ∇²J(θ̂(q)) v over q. Written to
benchmarks/results/hvp_variance.json; takes a few minutes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlopt import NPGIGT
from rlopt.envs.tabular import TabularMDP
from rlopt.estimators import BASELINES, hessian_vector_product, policy_gradient, returns_to_go, reward_to_go
from rlopt.rollout import Rollout

RESULTS = Path(__file__).parent / "results" / "hvp_variance.json"
FORMS = ("trajectory", "per_step", "doubly_robust")
NAMES = {"trajectory": "trajectory (paper)", "per_step": "causal", "doubly_robust": "doubly robust"}
BATCH = 10  # episodes that a baseline sees


def products(policy: Any, theta: Tensor, rollout: Rollout, psi: Any, vector: Tensor) -> Tensor:
    """The product of every single episode, [N, d]."""

    def one(n: int) -> Tensor:
        column = slice(n, n + 1)
        return hessian_vector_product(policy, theta, rollout.columns(column), psi.columns(column), vector)

    return torch.stack([one(n) for n in range(rollout.mask.shape[1])])


def tabular() -> list[dict[str, Any]]:
    """Exact variances on the oracle MDP, with b = 0 and b = V."""
    mdp = TabularMDP.random()
    generator = torch.Generator().manual_seed(0)
    previous, direction = torch.randn((2, mdp.num_parameters), generator=generator, dtype=torch.float64)
    vector = 0.1 * direction / direction.norm()
    theta = previous + 0.5 * vector
    policy = mdp.softmax_policy(theta)
    values = (mdp.state_action_values(policy) * policy).sum(-1)
    rollout, probabilities = mdp.enumerate(theta)
    answer = mdp.hessian(theta) @ vector
    nodes, weights = np.polynomial.legendre.leggauss(12)
    along = torch.stack([mdp.hessian(previous + (0.5 + 0.5 * float(x)) * vector) @ vector for x in nodes])
    share = torch.as_tensor(weights / weights.sum())
    of_point = float(share @ (along - share @ along).square().sum(1))
    rows = []
    for name, baseline in (("none", None), ("exact values", values[torch.arange(mdp.horizon)[:, None], rollout.states[:-1]])):
        for form in FORMS:
            psi = reward_to_go(rollout.rewards, rollout.mask, mdp.gamma, baseline, form)
            every = products(mdp.softmax_log_prob, theta, rollout, psi, vector)
            variance = float(probabilities @ (every - answer).square().sum(1))
            rows.append(row("tabular", name, form, variance, of_point, float(answer.norm())))
    return rows


def cartpole(num_episodes: int, train_steps: int) -> list[dict[str, Any]]:
    """Sampled variances on CartPole-v1, with every baseline."""
    agent = NPGIGT("MlpPolicy", "CartPole-v1", seed=0, device="cpu", step_size=0.1, momentum=0.2, n_envs=10)
    agent.learn(train_steps)
    assert agent.collector is not None
    previous, theta = agent.state.previous, agent.state.theta
    vector, middle = theta - previous, torch.lerp(previous, theta, 0.5)
    rollout = agent.collector.episodes(middle, num_episodes, stream="products")
    before = agent.collector.episodes(middle, BATCH, stream="before")
    returns = returns_to_go(rollout.rewards, rollout.mask, agent.gamma)
    length = rollout.num_valid / num_episodes
    print(f"CartPole-v1: episodes of {length:.0f} steps, ‖v‖ = {float(vector.norm()):.2g}", flush=True)
    rows = []
    for name in ("none", "time", "linear", "leave_one_out"):
        values = baseline_of(name, before, rollout, returns, agent.gamma)
        for form in FORMS:
            psi = reward_to_go(rollout.rewards, rollout.mask, agent.gamma, values, form)
            every = products(agent.log_policy, middle, rollout, psi, vector)
            variance = float(every.var(0).sum())
            signal = float(every.mean(0).square().sum()) - variance / num_episodes
            rows.append(row("CartPole-v1", name, form, variance, math.nan, math.sqrt(max(signal, 0.0))))
    values = baseline_of("leave_one_out", before, rollout, returns, agent.gamma)
    psi = reward_to_go(rollout.rewards, rollout.mask, agent.gamma, values)
    column: Callable[[int], slice] = lambda n: slice(n, n + 1)  # noqa: E731
    gradients = [
        policy_gradient(agent.log_policy, middle, rollout.columns(column(n)), psi.columns(column(n)))
        for n in range(num_episodes)
    ]
    noise = torch.stack(gradients)
    size, spread = float(noise.mean(0).norm()), math.sqrt(float(noise.var(0).sum()))
    print(f"gradient with leave-one-out baseline: ‖mean‖ {size:.1f}, noise of one episode {spread:.0f}")
    return rows


def baseline_of(name: Any, before: Rollout, rollout: Rollout, returns: Tensor, gamma: float) -> Tensor:
    """b_t as an agent with batches of ten would have it, [T, N]."""
    function = BASELINES[name]
    learned = function.fit(function.init(), before, returns_to_go(before.rewards, before.mask, gamma))
    batches = [slice(start, start + BATCH) for start in range(0, rollout.mask.shape[1], BATCH)]
    return torch.cat([function.values(learned, rollout.columns(part), returns[:, part]) for part in batches], 1)


def row(task: str, baseline: str, form: str, variance: float, of_point: float, signal: float) -> dict[str, Any]:
    """One line of the table, with the noise of a correction from five episodes."""
    with_points = 0.0 if math.isnan(of_point) else of_point
    return {
        "task": task,
        "baseline": baseline,
        "form": form,
        "signal": signal,
        "noise_of_one": math.sqrt(variance),
        "noise_of_5_one_q": math.sqrt(variance / 5 + with_points),
        "noise_of_5_each_q": math.sqrt((variance + with_points) / 5),
        "point_variance": None if math.isnan(of_point) else of_point,
    }


def main() -> None:
    """Measure, store and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-episodes", type=int, default=300, help="episodes on CartPole-v1")
    parser.add_argument("--train-steps", type=int, default=20_000, help="training before, on CartPole-v1")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = tabular() + cartpole(arguments.num_episodes, arguments.train_steps)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))
    print("\n| task | baseline | form | signal | noise of one episode | of five, one q | of five, a q each |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        noises = [f"{r[key]:.3g}" for key in ("signal", "noise_of_one", "noise_of_5_one_q", "noise_of_5_each_q")]
        print(f"| {r['task']} | {r['baseline'].replace('_', '-')} | {NAMES[r['form']]} | {' | '.join(noises)} |")


if __name__ == "__main__":
    main()
