"""Regress: a few epochs of optimiser steps over one iteration's scored completions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlopt.estimators.rebel import approx_kl
from rlopt.lm.arguments import REBELConfig
from rlopt.lm.log_probs import Reader
from rlopt.lm.losses import Batch, policy_loss, rebel_coefficients_of, rebel_of


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
    """Minimise the loss over `batch`, at most `args.num_iterations` times through it; the model's parameters change."""
    progress = Progress()
    for _ in range(args.num_iterations):
        for part in optimiser_batches(args, batch, generator):
            optimizer.zero_grad(set_to_none=True)
            sequences = accumulate_gradient(args, eta, model, reader, part)
            if _enough(args, eta, part, sequences):
                optimizer.zero_grad(set_to_none=True)
                progress.stopped = True
                return progress
            progress.grad_norm += (_clipped(optimizer, args.max_grad_norm) - progress.grad_norm) / (progress.steps + 1)
            optimizer.step()
            progress.steps += 1
    optimizer.zero_grad(set_to_none=True)
    return progress


def optimiser_batches(args: REBELConfig, batch: Batch, generator: torch.Generator) -> Iterator[Batch]:
    """An epoch in parts of `args.groups_per_step` whole groups, groups in a new order where there is more than one part."""
    groups = torch.arange(len(batch)).view(-1, args.group_size)
    if len(groups) > args.groups_per_step:
        groups = groups[torch.randperm(len(groups), generator=generator)]
    for part in groups.split(args.groups_per_step):
        yield batch.rows(part.flatten().to(batch.groups.device))


def accumulate_gradient(args: REBELConfig, eta: Tensor, model: Any, reader: Reader, part: Batch) -> Tensor:
    """Add the gradient of the mean over the groups of `part`; returns ln π_θ(y | x) of its completions, [n].

    Micro-batches have whole groups and weigh as many as these are. With `two_pass` the derivatives in the completions'
    log-probabilities are computed first, and pieces of any size are differentiated with them.
    """
    index = torch.arange(len(part), device=part.groups.device)
    if args.two_pass:
        sequences = reader.evaluate(model, part.tokens).sequences
        coefficients = rebel_coefficients_of(args, eta, part, sequences)
        for rows in index.split(args.per_device_train_batch_size):
            (coefficients[rows] * reader.read(model, part.tokens.rows(rows)).sequences).sum().backward()
        return sequences
    size = max(1, args.per_device_train_batch_size // args.group_size) * args.group_size
    pieces = []
    for rows in index.split(size):
        piece = part.rows(rows)
        reading = reader.read(model, piece.tokens)
        (policy_loss(args, eta, piece, reading) * len(rows) / len(part)).backward()
        pieces.append(reading.sequences.detach())
    return torch.cat(pieces)


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
    """Clip the gradient; returns its norm before."""
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    return float(torch.nn.utils.clip_grad_norm_(parameters, limit))
