"""Digits: after "a+b=" answer with the larger digit, or with the sum's last one, and end.

A tiny GPT-2 learns the task half from answers, and the rest from rewards of 0 and 1 alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.examples.tiny import tiny_gpt2
from rlopt.lm.log_probs import Reader
from rlopt.lm.tokens import Tokens, pad_left, pad_right
from rlopt.lm.trainer import REBELTrainer

PLUS, EQUALS, END, VOCABULARY = 10, 11, 12, 13
Rule = Literal["larger", "sum"]


def rows(rule: Rule = "larger") -> list[dict[str, list[int]]]:
    """All 100 prompts, each with the ids of its answer and end."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    return [
        {"prompt": [a, PLUS, b, EQUALS], "answer": [max(a, b) if rule == "larger" else (a + b) % 10, END]} for a, b in pairs
    ]


def exact_match(completion_ids: list[list[int]], answer: list[list[int]]) -> list[float]:
    """1 for the answer followed by the end, else 0."""
    return [float(ids == wanted) for ids, wanted in zip(completion_ids, answer, strict=True)]


def accuracy(model: torch.nn.Module, rule: Rule = "larger") -> float:
    """E[reward] of a sample at T = 1 over all 100 prompts, exact: the mean probability of the answers."""
    return float(Reader(rows=100).evaluate(model, _answered(rule)).sequences.exp().mean())


def warm_up(model: torch.nn.Module, target: float = 0.5, rule: Rule = "larger", seed: int = 0) -> float:
    """Fit answers (AdamW 1e-3, 64 prompts a step) until the accuracy reaches `target`; returns it."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    generator, tokens = torch.Generator().manual_seed(seed), _answered(rule)
    for step in range(2000):
        if step % 10 == 0 and (reached := accuracy(model, rule)) >= target:
            return reached
        drawn = torch.randint(100, (64,), generator=generator)
        optimizer.zero_grad()
        (-Reader().read(model, tokens.rows(drawn)).sequences.mean()).backward()
        optimizer.step()
    raise ValueError(f"target: expected an accuracy that 2000 steps reach, {target:g} was not reached")


def digits_trainer(
    seed: int, rule: Rule = "larger", num_generations: int = 2, output_dir: str = "runs/digits", **changes: object
) -> REBELTrainer:
    """A warmed-up model and its trainer: η = 2, β = .02, 128 prompts, 4 epochs of one step, AdamW 3e-4."""
    model = tiny_gpt2(VOCABULARY, seed, end_id=END)
    warm_up(model, rule=rule, seed=seed)
    args = REBELConfig(
        output_dir=output_dir,
        eta=2.0,
        beta=0.02,
        num_generations=num_generations,
        num_iterations=4,
        max_completion_length=2,
        learning_rate=3e-4,
        adam_epsilon=1e-5,
        lr_scheduler="constant",
        per_device_train_batch_size=128 * num_generations,
        max_iterations=100,
        save_steps=None,
        seed=seed,
        progress_bar=False,
        device="cpu",
    )
    return REBELTrainer(model, exact_match, replace(args, **changes), rows(rule))  # type: ignore[arg-type]


def _answered(rule: Rule) -> Tokens:
    table = rows(rule)
    prompts, answers = pad_left([row["prompt"] for row in table], END), pad_right([row["answer"] for row in table], END)
    return Tokens(*prompts, *answers)
