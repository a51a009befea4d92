"""A GPT-2 small enough to train on a CPU, made from its configuration: nothing is downloaded."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel


def tiny_gpt2(
    vocab_size: int, seed: int, layers: int = 2, width: int = 64, end_id: int | None = None, uniform: bool = False
) -> GPT2LMHeadModel:
    """Two heads, 32 positions, no dropout, embeddings not tied.

    Args:
        vocab_size: V.
        seed: of the weights; torch's global generator is put back.
        layers, width: of the network.
        end_id: the token that ends a completion, if one does.
        uniform: start from the uniform policy: the last layer is 0.
    """
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=32,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    if uniform:
        torch.nn.init.zeros_(model.lm_head.weight)
    return model.eval()
