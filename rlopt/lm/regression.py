"""Regress: a few epochs of optimiser steps over one iteration's scored completions."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlopt.estimators.rebel import approx_kl
from rlopt.lm.arguments import REBELConfig
from rlopt.lm.log_probs import Reader
from rlopt.lm.losses import Batch, policy_loss, rebel_coefficients_of, rebel_of, weight_of


@dataclass
class Progress:
    """What an iteration's regression did."""

    steps: int = 0
    """Optimiser steps taken."""
    grad_norm: float = 0.0
    """Mean over steps, before clipping."""
    stopped: bool = False
    """Whether `explained_stop` or `approx_kl_stop` ended it."""


def regress(
    args: REBELConfig,
    eta: Tensor,
    model: Any,
    reader: Reader,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    generator: torch.Generator,
) -> Progress:
    """Minimise the loss over `batch`, at most `args.num_iterations` times through it; the model's parameters change.

    Raises:
        FloatingPointError: a gradient is not finite; the parameters are those before the step.
    """
    progress = Progress()
    for _ in range(args.num_iterations):
        for part in optimiser_batches(args, batch, generator):
            optimizer.zero_grad(set_to_none=True)
            sequences = accumulate_gradient(args, eta, model, reader, part)
            if _enough(args, eta, part, sequences):
                optimizer.zero_grad(set_to_none=True)
                progress.stopped = True
                return progress
            norm = _clipped(optimizer, args.max_grad_norm)
            progress.grad_norm += (norm - progress.grad_norm) / (progress.steps + 1)
            optimizer.step()
            progress.steps += 1
    optimizer.zero_grad(set_to_none=True)
    return progress


def optimiser_batches(args: REBELConfig, batch: Batch, generator: torch.Generator) -> Iterator[Batch]:
    """An epoch in parts of `args.groups_per_step` whole groups, groups in a new order where there is more than one part."""
    groups = _groups_of(batch)
    if len(groups) > args.groups_per_step:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    for start in range(0, len(groups), args.groups_per_step):
        yield batch.rows(torch.cat(groups[start : start + args.groups_per_step]))


def accumulate_gradient(args: REBELConfig, eta: Tensor, model: Any, reader: Reader, part: Batch) -> Tensor:
    """Add the gradient of the mean over the groups of `part`; returns ln π_θ(y | x) of its completions, [n].

    Micro-batches have whole groups and weigh as many terms as they have. With `two_pass` the derivatives in the completions'
    log-probabilities are computed first, and pieces of any size are differentiated with them.
    """
    if args.two_pass:
        index = torch.arange(len(part), device=part.groups.device)
        sequences = reader.evaluate(model, part.tokens).sequences
        coefficients = rebel_coefficients_of(args, eta, part, sequences)
        for rows in index.split(args.per_device_train_batch_size):
            (coefficients[rows] * reader.read(model, part.tokens.rows(rows)).sequences).sum().backward()
        return sequences
    groups, count = _groups_of(part), max(1, args.per_device_train_batch_size // args.group_size)
    pieces, whole = [], weight_of(args, part)
    for start in range(0, len(groups), count):
        piece = part.rows(torch.cat(groups[start : start + count]))
        reading = reader.read(model, piece.tokens)
        (policy_loss(args, eta, piece, reading) * weight_of(args, piece) / whole).backward()
        pieces.append(reading.sequences.detach())
    return torch.cat(pieces)


def _groups_of(batch: Batch) -> list[Tensor]:
    """Numbers of every group's completions, [k] each, on the batch's device."""
    sizes = torch.unique_consecutive(batch.groups, return_counts=True)[1].tolist()
    return list(torch.arange(len(batch), device=batch.groups.device).split(sizes))


def _enough(args: REBELConfig, eta: Tensor, part: Batch, sequences: Tensor) -> bool:
    """Whether the regression has reached one of its stops on these groups, at the parameters before the step."""
    old = part.old.sum(1)
    if args.approx_kl_stop is not None and float(approx_kl(sequences - old)) > args.approx_kl_stop:
        return True
    if args.explained_stop is None or args.loss != "rebel":
        return False
    loss, first = rebel_of(args, eta, part, sequences), rebel_of(args, eta, part, old)
    # Without spread there is nothing to explain, but drift to pull back: the regression goes on.
    return bool(first > 0) and float(1.0 - loss / first) >= args.explained_stop


def _clipped(optimizer: torch.optim.Optimizer, max_grad_norm: float | None) -> float:
    """Clip the gradient; returns its norm before.

    Raises:
        FloatingPointError: it is not finite.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    if not math.isfinite(norm):
        raise FloatingPointError(
            f"loss: the gradient's norm is {norm}; the parameters are those before the step. Try a smaller learning_rate, or a"
            " smaller eta"
        )
    return norm
