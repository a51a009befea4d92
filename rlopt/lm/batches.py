"""Score: from completions and their scores to all that a regression compares them with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.log_probs import Reader, Reading
from rlopt.lm.losses import Batch, leave_one_out, standardised, token_advantages
from rlopt.lm.reference import Reference
from rlopt.lm.tokens import Tokens


def make_batch(
    args: REBELConfig, model: Any, reference: Reference | None, reader: Reader, tokens: Tokens, scores: Tensor
) -> tuple[Batch, Reading]:
    """The batch of whole groups of G contiguous completions, and their reading at π_t, with entropy.

    `scores` is [N]. Old, new and reference log-probabilities come from `reader`: one path.
    """
    before = reader.evaluate(model, tokens, entropy=True)
    old = before.log_probs
    nothing = old.new_zeros(len(old), 0)
    of_reference = nothing
    if reference is not None:
        plain = Reader(reader.temperature, reader.bf16, reader.rows)  # the reference has no value head
        with reference() as first:
            of_reference = plain.evaluate(first, tokens).log_probs
    scores = scores.to(old)
    rewards = scores
    # PPO's KL is spread over tokens, GRPO's is in the loss, IPO's is its target.
    if args.beta > 0 and (args.loss == "rloo" or (args.loss == "rebel" and args.kl_mode == "reward")):
        rewards = scores - args.beta * (old - of_reference).sum(1)
    values = before.values if reader.value_head is not None else nothing
    advantages, returns = nothing, nothing
    if args.loss == "rloo":
        advantages = leave_one_out(rewards, args.num_generations)
    elif args.loss == "grpo":
        advantages = standardised(rewards, args.num_generations)
    elif args.loss == "ppo":
        per_token = args.beta * (of_reference - old) if args.beta else torch.zeros_like(old)
        last = tokens.mask.sum(1, keepdim=True) - 1
        per_token = per_token.scatter_add(1, last, scores[:, None])
        advantages, returns = token_advantages(per_token, values, tokens.mask, args.gamma, args.gae_lambda)
    anchor = of_reference if args.resolved_anchor == "reference" else old
    groups = torch.arange(len(old), device=old.device) // args.num_generations
    batch = Batch(tokens, groups, scores, rewards, old, anchor, of_reference, advantages, values, returns)
    return batch, before
