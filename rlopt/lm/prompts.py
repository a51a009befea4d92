"""Prompts as token ids, completions as text, and the order in which prompts come."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# Text, a conversation (messages with "role" and "content"), or token ids.
Prompt = str | list[dict[str, Any]] | list[int]


@dataclass(frozen=True)
class Codec:
    """Between text and token ids. Without a tokenizer prompts and completions are token ids."""

    tokenizer: Any | None
    end_ids: frozenset[int]
    """Tokens that end a completion; empty if all have full length."""
    pad_id: int
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's ids, with what the tokenizer puts in front; a conversation goes through the chat template.

        Raises:
            ValueError: neither text, conversation nor ids; text without tokenizer; no token at all.
        """
        ids = _as_ids(prompt)
        if ids is None:
            if self.tokenizer is None:
                raise ValueError(f"prompt: expected token ids where processing_class is None, got {prompt!r}")
            ids = self._encode_text(prompt)
        if not ids:
            raise ValueError("prompt: expected at least one token, got an empty prompt")
        return ids

    def encode_answer(self, answer: Any) -> list[int]:
        """The ids of an answer from a data set, the end token appended."""
        message = answer[-1] if isinstance(answer, list) and answer and isinstance(answer[-1], Mapping) else answer
        text = message["content"] if isinstance(message, Mapping) else message
        ids = _as_ids(text)
        if ids is None:
            if self.tokenizer is None or not isinstance(text, str):
                raise ValueError(f"offline_column: expected a text or token ids, got {answer!r}")
            ids = list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
        if self.end_ids and not (ids and ids[-1] in self.end_ids):
            ids = [*ids, self._end_of_answer()]
        return ids

    def decode(self, ids: Sequence[int], prompt: Prompt) -> Any:
        """A completion as reward functions see it: text, a conversation's next message, or ids without the end."""
        if self.tokenizer is None:
            return [token for token in ids if token not in self.end_ids]
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return [{"role": "assistant", "content": text}] if is_conversation(prompt) else text

    def _encode_text(self, prompt: Prompt) -> list[int]:
        tokenizer: Any = self.tokenizer
        if is_conversation(prompt):
            # As text first: what the template writes is all there is, no second beginning-of-sequence token.
            options = dict(self.chat_template_kwargs)
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False, **options)
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        if not isinstance(prompt, str):
            raise ValueError(f"prompt: expected a text, a list of messages or token ids, got {prompt!r}")
        return list(tokenizer(prompt)["input_ids"])

    def _end_of_answer(self) -> int:
        own = getattr(self.tokenizer, "eos_token_id", None)
        return own if own in self.end_ids else min(self.end_ids)


def make_codec(tokenizer: Any | None, model: Any, stop_at_end_token: bool, chat_template_kwargs: Mapping[str, Any]) -> Codec:
    """The codec of a model and its tokenizer.

    Raises:
        ValueError: neither has an end token though completions are to stop at one.
    """
    configured = [getattr(model.config, "eos_token_id", None), getattr(model.generation_config, "eos_token_id", None)]
    ends = _flat([getattr(tokenizer, "eos_token_id", None), *configured])
    if stop_at_end_token and not ends:
        raise ValueError(
            "processing_class: expected a tokenizer (or a model's configuration) with an end token, eos_token_id is None;"
            " completions of a fixed length need stop_at_end_token=False"
        )
    pads = _flat([getattr(tokenizer, "pad_token_id", None), getattr(model.config, "pad_token_id", None)])
    pad = next(iter([*pads, *ends]), 0)
    return Codec(tokenizer, frozenset(ends if stop_at_end_token else ()), pad, chat_template_kwargs)


def is_conversation(prompt: Any) -> bool:
    """Whether a prompt is a list of messages."""
    return isinstance(prompt, list) and bool(prompt) and all(isinstance(m, Mapping) and "role" in m for m in prompt)


@dataclass
class PromptOrder:
    """An endless stream of row numbers: every epoch a new permutation, which is a function of the seed and the epoch."""

    num_rows: int
    seed: int
    epoch: int = 0
    position: int = 0

    def take(self, count: int) -> list[int]:
        """The next row numbers, over the end of an epoch if need be."""
        stream = self._stream()
        return [next(stream) for _ in range(count)]

    def _stream(self) -> Iterator[int]:
        while True:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + self.epoch) % 2**63)
            order = torch.randperm(self.num_rows, generator=generator).tolist()
            while self.position < self.num_rows:
                self.position += 1
                yield order[self.position - 1]
            self.epoch, self.position = self.epoch + 1, 0


def repeated(rows: Sequence[Any], times: int) -> list[Any]:
    """Each entry `times` times in a row: groups are contiguous."""
    return [row for row in rows for _ in range(times)]


def _as_ids(value: Any) -> list[int] | None:
    if isinstance(value, torch.Tensor):
        return [int(token) for token in value]
    whole = isinstance(value, list | tuple) and all(isinstance(token, int) and not isinstance(token, bool) for token in value)
    return list(value) if whole else None


def _flat(values: Sequence[int | Sequence[int] | None]) -> list[int]:
    """Without None and repetition, lists opened."""
    tokens: dict[int, None] = {}
    for value in values:
        for token in value if isinstance(value, list | tuple) else [value]:
            if isinstance(token, int):
                tokens[token] = None
    return list(tokens)
