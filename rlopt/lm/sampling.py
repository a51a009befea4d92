"""Completions of prompts, drawn from a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.prompts import Codec

# (model, prompt_ids [N, P] padded left, prompt_mask [N, P], settings, codec, generator) -> completion_ids [N, L].
# What stands after an end token is ignored. Log-probabilities never come from here: see `rlopt.lm.log_probs`.
Sampler = Callable[[Any, Tensor, Tensor, REBELConfig, Codec, torch.Generator], Tensor]


@torch.no_grad()
def generate(
    model: Any, prompt_ids: Tensor, prompt_mask: Tensor, args: REBELConfig, codec: Codec, generator: torch.Generator
) -> Tensor:
    """Completions by the model's own `generate`, [N, L]; which they are is a function of the generator's state.

    Only `generator` advances: torch's global generators are put back.
    """
    seed = int(torch.randint(2**62, (), generator=generator))
    devices = [prompt_ids.device] if prompt_ids.device.type == "cuda" else []
    precision = torch.autocast(prompt_ids.device.type, torch.bfloat16, enabled=args.bf16)
    with torch.random.fork_rng(devices), _own_generation_config(model), _evaluating(model), precision:
        torch.manual_seed(seed)
        ids = model.generate(input_ids=prompt_ids, attention_mask=prompt_mask.long(), generation_config=settings(args, codec))
    return ids[:, prompt_ids.shape[1] :]


def settings(args: REBELConfig, codec: Codec) -> GenerationConfig:
    """Sampling from softmax(logits / T), narrowed by top-k, top-p and min-p where they are asked for."""
    length = args.max_completion_length
    return GenerationConfig(
        **{
            "do_sample": True,
            "max_new_tokens": length,
            "min_new_tokens": None if codec.end_ids else length,
            "temperature": args.temperature,
            "top_k": args.top_k,
            "top_p": args.top_p,
            "min_p": args.min_p or None,
            "eos_token_id": sorted(codec.end_ids) or None,
            "pad_token_id": codec.pad_id,
        }
        | args.generation_kwargs
    )


@contextmanager
def _own_generation_config(model: Any) -> Iterator[None]:
    """Without the model's defaults: transformers fills them in for whatever is None, an end token or a penalty for instance."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    owners = [model] if inner is model else [model, inner]
    before = [owner.generation_config for owner in owners]
    for owner in owners:
        owner.generation_config = GenerationConfig()
    try:
        yield
    finally:
        for owner, config in zip(owners, before, strict=True):
            owner.generation_config = config


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In evaluation mode: with gradient checkpointing, training mode would generate without a cache."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
