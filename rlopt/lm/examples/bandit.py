"""One-token bandit: every prompt has an answer of one token, and each answer a random reward.

From a uniform policy t exact iterations give π_t(y | x) ∝ e^{ηt r(x, y)}, and

    E[r]_t = mean over x of Σ_y r e^{ηtr} / Σ_y e^{ηtr}
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.examples.tiny import tiny_gpt2
from rlopt.lm.log_probs import Reader
from rlopt.lm.prompts import Codec
from rlopt.lm.sampling import generate
from rlopt.lm.tokens import Tokens, pad_left
from rlopt.lm.trainer import REBELTrainer

PROMPTS, ANSWERS, SAMPLES, ETA = 32, 16, 64, 2.0


def prompt(number: int) -> list[int]:
    """Two tokens: all of the vocabulary are answers."""
    return [number // ANSWERS, number % ANSWERS]


def reward_table(seed: int) -> Tensor:
    """r(x, y), uniform in [0, 1), [PROMPTS, ANSWERS]."""
    return torch.rand(PROMPTS, ANSWERS, generator=torch.Generator().manual_seed(seed))


def exact_rewards(table: Tensor, iteration: int, eta: float = ETA) -> Tensor:
    """E[r]_t of every prompt, [PROMPTS]."""
    return ((eta * iteration * table).softmax(1) * table).sum(1)


def policy_rewards(model: torch.nn.Module, table: Tensor) -> Tensor:
    """E[r] of every prompt under a model, by enumeration; [PROMPTS]."""
    ids, mask = pad_left([prompt(number) for number in range(PROMPTS) for _ in range(ANSWERS)], 0)
    answers = torch.arange(ANSWERS).repeat(PROMPTS)[:, None]
    read = Reader(rows=PROMPTS * ANSWERS).evaluate(
        model, Tokens(ids, mask, answers, torch.ones_like(answers, dtype=torch.bool))
    )
    return (read.sequences.view(PROMPTS, ANSWERS).exp() * table).sum(1)


def bandit_trainer(seed: int, enumerated: bool = True, output_dir: str = "runs/bandit") -> REBELTrainer:
    """A trainer from the uniform policy: AdamW 1e-3, each regression explained to .999 (sampled: .99), in 300 steps at most.

    Args:
        seed: of weights, rewards and samples.
        enumerated: every answer once a prompt, all pairs; else `SAMPLES` answers a prompt are drawn.
        output_dir: for the log.
    """
    table = reward_table(seed)

    def reward(prompts: list[list[int]], completion_ids: list[list[int]]) -> list[float]:
        numbers = [ANSWERS * first + second for first, second in prompts]
        return [float(table[number, ids[0]]) for number, ids in zip(numbers, completion_ids, strict=True)]

    count = ANSWERS if enumerated else SAMPLES
    args = REBELConfig(
        output_dir=output_dir,
        eta=ETA,
        beta=0.0,
        num_generations=count,
        max_completion_length=1,
        stop_at_end_token=False,
        num_iterations=300,
        explained_stop=0.999 if enumerated else 0.99,
        learning_rate=1e-3,
        lr_scheduler="constant",
        max_grad_norm=None,
        per_device_train_batch_size=PROMPTS * count,
        max_iterations=4,
        save_steps=None,
        seed=seed,
        progress_bar=False,
        device="cpu",
    )
    dataset = [{"prompt": prompt(number)} for number in range(PROMPTS)]
    sampler = _every_answer if enumerated else generate
    return REBELTrainer(tiny_gpt2(ANSWERS, seed, uniform=True), reward, args, dataset, sampler=sampler)


def _every_answer(
    model: object, prompt_ids: Tensor, prompt_mask: Tensor, args: REBELConfig, codec: Codec, generator: torch.Generator
) -> Tensor:
    return torch.arange(ANSWERS).repeat(len(prompt_ids) // ANSWERS)[:, None]
