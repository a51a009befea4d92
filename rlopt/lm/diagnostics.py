"""What an iteration's log says."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rlopt.estimators.rebel import approx_kl, explained, sign_alignment
from rlopt.lm.arguments import REBELConfig
from rlopt.lm.log_probs import Reading
from rlopt.lm.losses import Batch, policy_loss
from rlopt.lm.tokens import Tokens


def of_completions(tokens: Tokens, ended: Tensor, entropy: Tensor) -> dict[str, float]:
    """Lengths in tokens, the share that was cut off, and nats of entropy a token.

    Args:
        tokens: what was sampled.
        ended: which completions have an end token, [N] bool.
        entropy: [N, L], 0 beyond the mask.
    """
    lengths = tokens.mask.sum(1).float()
    return {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": float((~ended).float().mean()),
        "entropy": float(entropy.sum() / lengths.sum()),
    }


def of_scores(scores: Tensor, parts: Mapping[str, Tensor], group_size: int) -> dict[str, float]:
    """Their mean, the spread within groups, and how many groups have none."""
    spread = scores.view(-1, group_size).std(1)
    means = {f"reward/{name}": float(part.nanmean()) for name, part in parts.items()}
    return {
        "reward": float(scores.mean()),
        "reward_std": float(spread.mean()),
        "frac_reward_zero_std": float((spread == 0).float().mean()),
        **means,
    }


def of_regression(args: REBELConfig, eta: Tensor, batch: Batch, before: Reading, after: Reading) -> dict[str, float]:
    """The loss before and after, and how far the policy moved; readings are of all of `batch`."""
    first, last = policy_loss(args, eta, batch, before), policy_loss(args, eta, batch, after)
    log_ratio = after.sequences - before.sequences
    ratio = log_ratio.exp()
    metrics = {
        "loss/first": first,
        "loss/last": last,
        "loss/delta": last - first,
        "sign_align": sign_alignment(log_ratio, batch.rewards, batch.groups),
        "approx_kl": approx_kl(log_ratio),
        "ratio/mean": ratio.mean(),
        "ratio/var": ratio.var(),
    }
    if args.loss == "rebel":
        metrics["explained"] = explained(last, first)
    if batch.reference.numel():
        metrics["kl_ref"] = (batch.old - batch.reference).sum(1).mean()
    return dict(zip(metrics, torch.stack([value.float() for value in metrics.values()]).tolist(), strict=True))
