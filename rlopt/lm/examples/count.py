"""Token count: the one language task whose every iteration is known exactly.

L tokens out of V, none of which ends; the reward is the share that equals one token. From the uniform policy t exact
iterations give π_t ∝ e^{ηtr}, tokens stay independent, and

    E[r]_t = e^{ηt/L} / (e^{ηt/L} + V − 1)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.examples.tiny import tiny_gpt2
from rlopt.lm.trainer import REBELTrainer

VOCABULARY, LENGTH, WANTED, ETA = 10, 8, 3, 8.0


@dataclass(frozen=True)
class Point:
    """One iteration: the reward before it, and the exact one."""

    iteration: int
    measured: float
    exact: float
    updates: float
    explained: float


def exact_reward(iteration: int, eta: float = ETA) -> float:
    """E[r]_t, in [0, 1]."""
    weight = math.exp(eta * iteration / LENGTH)
    return weight / (weight + VOCABULARY - 1)


def count_reward(completion_ids: list[list[int]]) -> list[float]:
    """The share of the wanted token, in [0, 1]."""
    return [sum(token == WANTED for token in ids) / LENGTH for ids in completion_ids]


def count_trainer(
    seed: int,
    completions: int = 1024,
    num_generations: int = 2,
    layers: int = 2,
    width: int = 64,
    explained_stop: float = 0.99,
    output_dir: str = "runs/count",
) -> REBELTrainer:
    """A trainer from the uniform policy: full-batch AdamW 1e-3, no clipping, up to 100 steps an iteration."""
    args = REBELConfig(
        output_dir=output_dir,
        eta=ETA,
        beta=0.0,
        max_completion_length=LENGTH,
        stop_at_end_token=False,
        num_iterations=100,
        explained_stop=explained_stop,
        learning_rate=1e-3,
        lr_scheduler="constant",
        max_grad_norm=None,
        num_generations=num_generations,
        per_device_train_batch_size=completions,
        max_iterations=8,
        save_steps=None,
        seed=seed,
        progress_bar=False,
        device="cpu",
    )
    return REBELTrainer(tiny_gpt2(VOCABULARY, seed, layers, width, uniform=True), count_reward, args, [{"prompt": [0]}])


def run_count(trainer: REBELTrainer, iterations: int = 8, show: Callable[[Point], None] | None = None) -> list[Point]:
    """The measured curve beside the exact one."""
    points = []
    for iteration in range(iterations):
        metrics = trainer.iterate()
        exact = exact_reward(iteration, trainer.args.eta)
        points.append(Point(iteration, metrics["reward"], exact, metrics["updates"], metrics["explained"]))
        if show is not None:
            show(points[-1])
    return points
