"""Sample: whole groups of completions, answers from the data first where there are any, then the model's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rlopt.lm.arguments import REBELConfig
from rlopt.lm.prompts import Codec, repeated
from rlopt.lm.rewards import Asked
from rlopt.lm.sampling import Sampler
from rlopt.lm.tokens import Tokens, completion_mask, pad_left, pad_right

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Sampled:
    """One iteration's completions, groups contiguous."""

    tokens: Tokens
    asked: Asked
    ended: Tensor
    """Which have an end token, [N] bool; all, where completions have a fixed length."""
    offline_scores: Tensor
    """[N], NaN where a completion has none from the data."""


def draw(
    model: Any,
    rows: Sequence[Row],
    args: REBELConfig,
    codec: Codec,
    sampler: Sampler,
    generator: torch.Generator,
    device: torch.device,
    columns: Mapping[str, Any],
) -> Sampled:
    """G completions of every row's prompt.

    Raises:
        ValueError: too long for the model; a sampler's answer of another form; what the data get wrong.

    Args:
        model: π_t.
        rows: of the data set, P of them.
        args: G, lengths and sampling; `offline_column` where answers stand in for samples.
        codec: between text and token ids.
        sampler: draws what the data do not give.
        generator: the sampler's.
        device: the model's.
        columns: what reward functions get beside the data's columns.
    """
    count = args.num_generations
    prompts = repeated([codec.encode(row["prompt"]) for row in rows], count)
    prompt_ids, prompt_mask = (x.to(device) for x in pad_left(prompts, codec.pad_id))
    _check_length(model, prompt_ids.shape[1], args.max_completion_length, "max_completion_length")
    completions: list[list[int]] = []
    sampled: list[int] = []
    offline_scores: list[float] = []
    for row in rows:
        answers = _answers(row, args, codec)
        sampled += range(len(completions) + len(answers), len(completions) + count)
        completions += answers + [[]] * (count - len(answers))
        offline_scores += _scores(row, args, len(answers)) + [math.nan] * (count - len(answers))
    if sampled:
        drawn = torch.tensor(sampled, device=device)
        ids = sampler(model, prompt_ids[drawn], prompt_mask[drawn], args, codec, generator)
        if ids.ndim != 2 or len(ids) != len(sampled) or not ids.shape[1]:
            raise ValueError(f"sampler: expected completion ids [{len(sampled)}, L], got shape {tuple(ids.shape)}")
        lengths = completion_mask(ids, codec.end_ids).sum(1).tolist()
        for number, sample, length in zip(sampled, ids.tolist(), lengths, strict=True):
            completions[number] = sample[:length]
    completion_ids, mask = (x.to(device) for x in pad_right(completions, codec.pad_id))
    _check_length(model, prompt_ids.shape[1], completion_ids.shape[1], "offline_column")
    return Sampled(
        tokens=Tokens(prompt_ids, prompt_mask, completion_ids, mask),
        asked=_asked(repeated(rows, count), completions, codec, columns),
        ended=torch.tensor([not codec.end_ids or ids[-1] in codec.end_ids for ids in completions]),
        offline_scores=torch.tensor(offline_scores),
    )


def _asked(rows: Sequence[Row], completions: list[list[int]], codec: Codec, more: Mapping[str, Any]) -> Asked:
    prompts = [row["prompt"] for row in rows]
    texts = [codec.decode(ids, prompt) for ids, prompt in zip(completions, prompts, strict=True)]
    names = dict.fromkeys(name for row in rows for name in row if name != "prompt")
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    return Asked(prompts, texts, completions, {**columns, **more})


def _answers(row: Row, args: REBELConfig, codec: Codec) -> list[list[int]]:
    """Token ids of a row's answers from the data, G at most."""
    if args.offline_column is None:
        return []
    value = row[args.offline_column]
    # ids are one answer, and an empty list is none
    several = isinstance(value, list | tuple) and not (value and all(isinstance(entry, int) for entry in value))
    return [codec.encode_answer(answer) for answer in (value if several else [value])][: args.num_generations]


def _scores(row: Row, args: REBELConfig, num_answers: int) -> list[float]:
    """The data's scores of these answers, NaN without such a column.

    Raises:
        ValueError: not one finite number for each.
    """
    if args.offline_score_column is None:
        return [math.nan] * num_answers
    value = row[args.offline_score_column]
    scores = [float(entry) for entry in (value if isinstance(value, list | tuple) else [value])]
    if len(scores) < num_answers or not all(map(math.isfinite, scores)):
        raise ValueError(
            f"offline_score_column: expected {num_answers} finite numbers, one for each answer of"
            f" {args.offline_column!r}, got {value!r}"
        )
    return scores[:num_answers]


def _check_length(model: Any, prompt_length: int, length: int, name: str) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and prompt_length + length > limit:
        raise ValueError(
            f"{name}: expected prompt and completion within the model's {limit} positions, got {prompt_length} + {length}"
        )
