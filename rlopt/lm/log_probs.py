"""Log-probabilities of completions: the one path for π_θ, π_t and π_ref.

Always of the full softmax(logits / T), whatever sampling left out, and summed over a completion's tokens, never averaged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlopt.lm.tokens import Tokens

# Numbers of the vocabulary-wide table that are in float32 at a time: 64 MiB of them.
CHUNK = 2**24


class Reading(NamedTuple):
    """What a model says of completions; 0 wherever the mask is false."""

    log_probs: Tensor
    """ln π(y_l | x, y_{<l}) at temperature T, [N, L], float32 or float64."""
    entropy: Tensor
    """Of the next token's distribution, [N, L], no gradient; empty unless asked for."""
    values: Tensor
    """Of the value head, [N, L]; empty without one."""

    @property
    def sequences(self) -> Tensor:
        """ln π(y | x), [N]."""
        return self.log_probs.sum(1)


@dataclass(frozen=True)
class Reader:
    """How completions are read.

    Args:
        temperature: T > 0.
        bf16: run the model in bfloat16; logits are turned to float32 before the softmax.
        rows: completions of one forward pass, where no gradient is asked for.
        value_head: Linear(hidden size, 1), or None.
    """

    temperature: float = 1.0
    bf16: bool = False
    rows: int = 64
    value_head: nn.Linear | None = None

    def read(self, model: Any, tokens: Tokens, entropy: bool = False) -> Reading:
        """One differentiable forward pass."""
        length = tokens.completion_ids.shape[1]
        with torch.autocast(tokens.prompt_ids.device.type, torch.bfloat16, enabled=self.bf16):
            output = _forward(model, tokens, self.value_head is not None)
        # The logits in column i are of the token in column i + 1.
        logits = output.logits[:, -length - 1 : -1]
        log_probs, spread = _log_probs_of(logits, tokens.completion_ids, self.temperature, entropy)
        values = log_probs.new_zeros(0)
        if self.value_head is not None:
            hidden = output.hidden_states[-1][:, -length - 1 : -1].to(self.value_head.weight.dtype)
            values = self.value_head(hidden).squeeze(-1).masked_fill(~tokens.mask, 0.0)
        # Filled, not multiplied: after the end a log-probability may be −inf.
        return Reading(log_probs.masked_fill(~tokens.mask, 0.0), _masked(spread, tokens.mask), values)

    @torch.no_grad()
    def evaluate(self, model: Any, tokens: Tokens, entropy: bool = False) -> Reading:
        """The same without gradient, a few rows at a time."""
        index = torch.arange(len(tokens), device=tokens.completion_ids.device)
        pieces = [self.read(model, tokens.rows(rows), entropy) for rows in index.split(self.rows)]
        return Reading(*(torch.cat([piece[k] for piece in pieces]) for k in range(3)))


def _forward(model: Any, tokens: Tokens, hidden_states: bool) -> Any:
    length = tokens.completion_ids.shape[1]
    attention = torch.cat([tokens.prompt_mask, tokens.mask], 1).long()
    accepted = _accepted(model)
    # Positions count real tokens: a model with absolute positions would otherwise read padding as distance.
    optional = {"position_ids": (attention.cumsum(1) - 1).clamp_min(0), "logits_to_keep": length + 1, "use_cache": False}
    kwargs = {name: value for name, value in optional.items() if name in accepted}
    return model(
        input_ids=torch.cat([tokens.prompt_ids, tokens.completion_ids], 1),
        attention_mask=attention,
        **kwargs,
        **({"output_hidden_states": True} if hidden_states else {}),
    )


def _accepted(model: Any) -> set[str]:
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return set(inspect.signature(inner.forward).parameters)


def _log_probs_of(logits: Tensor, ids: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    """[N, L] each. Rows at a time where the table is large, recomputed backwards rather than kept."""
    rows = max(1, CHUNK // max(1, logits[0].numel()))
    if rows >= len(ids):
        return _of_rows(logits, ids, temperature, entropy)
    run: Callable[..., Any] = _of_rows
    if torch.is_grad_enabled():

        def run(*arguments: Any) -> Any:
            return checkpoint(_of_rows, *arguments, use_reentrant=False, preserve_rng_state=False)

    pieces = [run(piece, of, temperature, entropy) for piece, of in zip(logits.split(rows), ids.split(rows), strict=True)]
    return torch.cat([piece[0] for piece in pieces]), torch.cat([piece[1] for piece in pieces])


def _of_rows(logits: Tensor, ids: Tensor, temperature: float, entropy: bool) -> tuple[Tensor, Tensor]:
    scaled = (logits if logits.dtype == torch.float64 else logits.float()) / temperature
    table = scaled.log_softmax(-1)
    spread = table.detach()
    spread = -(spread.exp() * spread.clamp_min(torch.finfo(spread.dtype).min)).sum(-1) if entropy else spread.new_zeros(0)
    return table.gather(-1, ids.unsqueeze(-1)).squeeze(-1), spread


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0.0) if x.numel() else x
