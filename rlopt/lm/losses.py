"""Losses of log-probabilities of completions: REBEL's, and the baselines that share its samples.

N completions of L tokens, in whole contiguous groups, of K each unless some were left out. Every loss is a mean, over groups,
pairs or completions: micro-batches of whole groups are averaged by their number of these, see `weight_of`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from rlopt.estimators.losses import clipped_surrogate, pessimistic_value_loss
from rlopt.estimators.rebel import KLMode, rebel_coefficients, rebel_loss
from rlopt.estimators.returns import gae
from rlopt.lm.arguments import REBELConfig
from rlopt.lm.log_probs import Reading
from rlopt.lm.tokens import Tokens

# As DeepSeekMath's implementations have it: a group of equal rewards gets advantage 0.
SPREAD = 1e-4


@dataclass(frozen=True)
class Batch:
    """Scored completions: what a regression is over. Nothing here carries a gradient."""

    tokens: Tokens
    groups: Tensor
    """[N] integers."""
    scores: Tensor
    """What rewards and the rule for cut-off completions gave, [N]."""
    rewards: Tensor
    """The scores, less β(ln π_t − ln π_ref) where the loss has the KL in the reward; [N]."""
    old: Tensor
    """Token log-probabilities under π_t, [N, L], 0 beyond the mask."""
    anchor: Tensor
    """What log-ratios are against: `old`, or the reference's; [N, L]."""
    reference: Tensor
    """Token log-probabilities under π_ref, [N, L]; [N, 0] without reference."""
    advantages: Tensor
    """For the baselines: [N], or of every token, [N, L]; [N, 0] for REBEL and IPO."""
    values: Tensor
    """Of the value head at π_t, [N, L]; [N, 0] without."""
    returns: Tensor
    """Targets of the value head, [N, L]; [N, 0] without."""

    def __len__(self) -> int:
        return len(self.groups)

    def rows(self, index: Tensor) -> Batch:
        """Some of the completions, by number [n]."""
        rest = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name != "tokens"}
        return Batch(tokens=self.tokens.rows(index), **rest)


def policy_loss(args: REBELConfig, eta: Tensor, batch: Batch, reading: Reading) -> Tensor:
    """The loss that `args.loss` names, of whole groups; scalar."""
    if args.loss == "rebel":
        return rebel_of(args, eta, batch, reading.sequences)
    if args.loss == "ipo":
        return ipo_loss(reading.sequences, batch.anchor.sum(1), batch.scores, batch.groups, args.beta)
    if args.loss == "rloo":
        once = args.num_iterations == 1 and args.prompts_per_iteration == args.groups_per_step
        clip = None if once else args.clip_range
        return rloo_loss(reading.sequences, batch.anchor.sum(1), batch.advantages, clip)
    if args.loss == "grpo":
        reference = batch.reference if args.beta else None
        return grpo_loss(
            reading.log_probs, batch.anchor, batch.tokens.mask, batch.advantages, args.clip_range, reference, args.beta
        )
    policy = token_surrogate(reading.log_probs, batch.anchor, batch.tokens.mask, batch.advantages, args.clip_range)
    errors = pessimistic_value_loss(reading.values, batch.values, batch.returns, args.clip_range_value)
    return policy + args.vf_coef * 0.5 * mean_of_sequences(errors, batch.tokens.mask)


def weight_of(args: REBELConfig, batch: Batch) -> Tensor:
    """How many terms the mean `policy_loss` of these groups has: groups, pairs of a group, or completions; scalar."""
    sizes = torch.unique_consecutive(batch.groups, return_counts=True)[1]
    terms = {"rebel": torch.ones_like(sizes), "ipo": sizes * (sizes - 1)}.get(args.loss, sizes)
    return terms.sum()


def rebel_of(args: REBELConfig, eta: Tensor, batch: Batch, sequences: Tensor) -> Tensor:
    """`rebel_loss` of a batch at sequence log-probabilities [N]; the reward mode's KL is in the rewards already."""
    return rebel_loss(sequences, batch.anchor.sum(1), batch.rewards, batch.groups, eta, args.loss_form, *_proximal(args, batch))


def rebel_coefficients_of(args: REBELConfig, eta: Tensor, batch: Batch, sequences: Tensor) -> Tensor:
    """c [N] with ∇ Σ_i c_i ln π_θ(y_i) = ∇ `rebel_of`, for groups that are differentiated in pieces."""
    return rebel_coefficients(
        sequences, batch.anchor.sum(1), batch.rewards, batch.groups, eta, args.loss_form, *_proximal(args, batch)
    )


def rloo_loss(sequences: Tensor, old: Tensor, advantages: Tensor, clip_range: float | None) -> Tensor:
    """−mean A ln π(y | x), or −mean min(ρA, clip(ρ, 1 ± ε)A) with the ratio of whole completions; scalar.

    Args:
        sequences, old: ln π_θ and ln π_t, [N].
        advantages: `leave_one_out` of the rewards, [N].
        clip_range: ε; None where each sample is used once.

    Source: Ahmadian et al., arXiv:2402.14740.
    """
    if clip_range is None:
        return -(advantages * sequences).mean()
    return -clipped_surrogate(sequences - old, advantages, clip_range).mean()


def grpo_loss(
    log_probs: Tensor,
    old: Tensor,
    mask: Tensor,
    advantages: Tensor,
    clip_range: float,
    reference: Tensor | None = None,
    beta: float = 0.0,
) -> Tensor:
    """Clipped ratios of tokens, averaged over each completion, plus β(e^{ref − lp} − (ref − lp) − 1); scalar.

    Args:
        log_probs, old, mask: [N, L].
        advantages: `standardised` rewards, [N].
        reference: [N, L], with β > 0.

    Source: Shao et al., arXiv:2402.03300, eq. 3 and 4.
    """
    gain = clipped_surrogate(log_probs - old, advantages[:, None].expand_as(old), clip_range)
    if reference is not None:
        difference = reference - log_probs
        gain = gain - beta * (torch.expm1(difference) - difference)
    return -mean_of_sequences(gain, mask)


def token_surrogate(log_probs: Tensor, old: Tensor, mask: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """−mean over tokens of PPO's clipped gain, averaged over each completion first; scalar. All but ε are [N, L]."""
    return -mean_of_sequences(clipped_surrogate(log_probs - old, advantages, clip_range), mask)


def ipo_loss(sequences: Tensor, anchor: Tensor, scores: Tensor, groups: Tensor, beta: float) -> Tensor:
    """Mean over pairs of a group of (Δh − 1/(2β))², winner minus loser, 0 for a pair of equal scores; scalar.

    Args:
        sequences: ln π_θ, [N].
        anchor: ln π_ref, or ln π_t, [N].
        scores, groups: [N].
        beta: β > 0.

    Source: Azar et al., arXiv:2310.12036, eq. 17.
    """
    first, second = torch.combinations(torch.arange(len(groups), device=groups.device)).unbind(1)
    pairs = groups[first] == groups[second]
    counted = pairs & (scores[first] != scores[second])
    first, second = first[counted], second[counted]
    ratio = sequences - anchor
    order = (scores[first] - scores[second]).sign()
    change = order * (ratio[first] - ratio[second])
    return (change - 1.0 / (2.0 * beta)).square().sum() / pairs.sum()


def leave_one_out(rewards: Tensor, group_size: int) -> Tensor:
    """A_i = r_i − mean_{j≠i} r_j, [N]."""
    grouped = rewards.view(-1, group_size)
    return ((grouped - grouped.mean(1, keepdim=True)) * group_size / (group_size - 1)).flatten()


def standardised(rewards: Tensor, group_size: int) -> Tensor:
    """A_i = (r_i − mean) / (std + 1e-4) within groups, [N]."""
    grouped = rewards.view(-1, group_size)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + SPREAD)).flatten()


def token_advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, gae_lambda: float) -> tuple[Tensor, Tensor]:
    """Generalised advantages standardised over tokens, and the value head's targets; [N, L] each.

    Args:
        rewards: r_l, [N, L].
        values: v(x, y_{<l}), [N, L].
        mask: [N, L]; a completion's last token is followed by nothing: v = 0.
    """
    going_on = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], 1).to(rewards.dtype)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    advantages = gae(*(x.T for x in (rewards, values, following, gamma * going_on, gae_lambda * going_on))).T
    advantages = advantages.masked_fill(~mask, 0.0)
    counted = advantages[mask]
    scaled = (advantages - counted.mean()) / (counted.std() + 1e-8)
    return scaled.masked_fill(~mask, 0.0), (advantages + values).masked_fill(~mask, 0.0)


def mean_of_sequences(x: Tensor, mask: Tensor) -> Tensor:
    """Mean over each completion's tokens, then over completions; scalar. `x` and `mask` are [N, L]."""
    return (x.masked_fill(~mask, 0.0).sum(1) / mask.sum(1).clamp_min(1)).mean()


def _proximal(args: REBELConfig, batch: Batch) -> tuple[Tensor | None, float, KLMode]:
    in_regression = args.kl_mode == "prox" and args.beta > 0
    return (batch.reference.sum(1), args.beta, "prox") if in_regression else (None, 0.0, "reward")
