"""Scores of completions: reward functions, reward models, comparisons; what may go wrong in them is named."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from rlopt.arguments import did_you_mean
from rlopt.estimators.rebel import preference_rewards
from rlopt.lm.prompts import is_conversation

# f(prompts, completions, completion_ids, **columns) -> one number, or None where it does not apply, for each completion.
RewardFunction = Callable[..., Sequence[float | None] | Awaitable[Sequence[float | None]]]


@dataclass(frozen=True)
class Asked:
    """N completions as reward functions see them."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: Mapping[str, list[Any]]
    """The data set's other columns, repeated for every completion; `trainer_state` too."""

    def __len__(self) -> int:
        return len(self.completions)

    def rows(self, index: Sequence[int]) -> Asked:
        """Some of them, by number."""
        columns = {
            name: [values[i] for i in index] if isinstance(values, list) else values for name, values in self.columns.items()
        }
        prompts, completions = ([rows[i] for i in index] for rows in (self.prompts, self.completions))
        return Asked(prompts, completions, [self.completion_ids[i] for i in index], columns)


@dataclass(frozen=True)
class Scores:
    """What completions earned."""

    total: Tensor
    """[N], the weighted sum."""
    parts: dict[str, Tensor]
    """By function, [N], NaN where it does not apply."""


class RewardModel:
    """A sequence-classification model with one output as a reward function; higher is better.

    Args:
        model: a path, or a `PreTrainedModel`.
        tokenizer: its tokenizer; loaded beside a path.
        batch_size: texts of one forward pass.

    Raises:
        ValueError: a model without tokenizer, or with several outputs.
    """

    def __init__(self, model: Any, tokenizer: Any = None, batch_size: int = 16) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.__name__ = str(model).rstrip("/").split("/")[-1] if isinstance(model, str) else type(model).__name__
        if isinstance(model, str):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(model)
            model = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, use_safetensors=True)
        if tokenizer is None:
            raise ValueError(f"reward_funcs: expected RewardModel(model, tokenizer) for {self.__name__}, got no tokenizer")
        if model.config.num_labels != 1:
            raise ValueError(f"reward_funcs: expected a model with one output, {self.__name__} has {model.config.num_labels}")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size

    @torch.no_grad()
    def __call__(self, prompts: list[Any], completions: list[Any]) -> list[float]:
        """One score for each prompt with its completion."""
        scores: list[float] = []
        texts = [self._text(*pair) for pair in zip(prompts, completions, strict=True)]
        # A chat template writes the beginning of the sequence itself.
        special = not (prompts and is_conversation(prompts[0]))
        for start in range(0, len(texts), self.batch_size):
            part = texts[start : start + self.batch_size]
            inputs = self.tokenizer(part, padding=True, return_tensors="pt", add_special_tokens=special)
            scores += self.model(**inputs.to(self.model.device)).logits[:, 0].float().tolist()
        return scores

    def _text(self, prompt: Any, completion: Any) -> str:
        if is_conversation(prompt):
            return str(self.tokenizer.apply_chat_template(prompt + completion, tokenize=False))
        if not (isinstance(prompt, str) and isinstance(completion, str)):
            raise ValueError(f"reward_funcs: {self.__name__} expected texts or conversations, got the prompt {prompt!r}")
        return f"{prompt}{completion}"


def as_reward_functions(given: Any, device: torch.device | None = None) -> list[RewardFunction]:
    """One or several functions, models or paths of models as a list of functions; models are put on `device`.

    Raises:
        ValueError: something that is none of these.
    """
    functions: list[RewardFunction] = []
    for entry in [] if given is None else given if isinstance(given, list | tuple) else [given]:
        is_model = isinstance(entry, str) or (isinstance(entry, torch.nn.Module) and hasattr(entry, "config"))
        if not is_model and not callable(entry):
            raise ValueError(f"reward_funcs: expected a function, a sequence-classification model or its path, got {entry!r}")
        functions.append(RewardModel(entry) if is_model else entry)
        if is_model and device is not None:
            functions[-1].model.to(device)  # type: ignore[attr-defined]
    return functions


def score(functions: Sequence[RewardFunction], weights: Sequence[float] | None, asked: Asked) -> Scores:
    """Σ_w w·r_w of every completion, the functions that do not apply to it left out.

    Raises:
        ValueError: weights of another number; a function's answer of another length, or with something that is neither a
            finite number nor None; a completion to which no function applies.
    """
    weights = [1.0] * len(functions) if weights is None else list(weights)
    if len(weights) != len(functions):
        raise ValueError(f"reward_weights: expected {len(functions)}, one for each reward function, got {len(weights)}")
    names = function_names(functions)
    answers = _in_order([_call(function, asked, names[i]) for i, function in enumerate(functions)])
    parts = {name: _checked(name, answer, len(asked)) for name, answer in zip(names, answers, strict=True)}
    table = torch.stack([weight * part for weight, part in zip(weights, parts.values(), strict=True)])
    if bool((unscored := table.isnan().all(0)).any()):
        row = int(unscored.nonzero()[0])
        raise ValueError(
            f"reward_funcs: expected a number from one of {', '.join(names)} at least, got None from all for completion"
            f" {asked.completions[row]!r} of prompt {asked.prompts[row]!r}"
        )
    return Scores(table.nan_to_num(0.0).sum(0), parts)


def compare(preference: Callable[..., Sequence[float]], asked: Asked, group_size: int) -> Tensor:
    """(1/K) Σ_j ℓ(y_i, y_j) of every completion, [N]; each pair of a contiguous group of `group_size` is asked once.

    Raises:
        ValueError: an answer of the wrong length, or outside [−1, 1].
    """
    pairs = torch.combinations(torch.arange(group_size))
    starts = torch.arange(0, len(asked), group_size)
    first, second = ((starts[:, None] + pairs[:, k]).flatten().tolist() for k in (0, 1))
    ours = asked.rows(first)
    name = function_names([preference])[0]
    others = [asked.completions[i] for i in second]
    columns = _accepted(preference, ours.columns, name, skipped=3)
    answer = preference(ours.prompts, ours.completions, others, **columns)
    values = _checked(name, answer, len(first))
    if not bool((values.abs() <= 1.0 + 1e-6).all()):
        raise ValueError(f"preference_fn: expected numbers in [−1, 1] from {name}, got {values[values.abs() > 1][0]:g}")
    table = torch.zeros(len(starts), group_size, group_size)
    values = values.view(len(starts), -1)
    table[:, pairs[:, 0], pairs[:, 1]], table[:, pairs[:, 1], pairs[:, 0]] = values, -values
    return preference_rewards(table).flatten()


def function_names(functions: Sequence[Any]) -> list[str]:
    """Their names, numbered where two have the same."""
    names = [getattr(function, "__name__", type(function).__name__) for function in functions]
    return [f"{name}_{i}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _call(function: RewardFunction, asked: Asked, name: str) -> Any:
    """The answer, or an awaitable of it."""
    offered = {"prompts": asked.prompts, "completions": asked.completions, "completion_ids": asked.completion_ids}
    answer = function(**_accepted(function, offered | dict(asked.columns), name))
    if answer is None:
        raise ValueError(f"reward_funcs: expected {len(asked)} numbers from {name}, got None")
    return answer


def _accepted(function: Callable[..., Any], offered: Mapping[str, Any], function_name: str, skipped: int = 0) -> dict[str, Any]:
    """What of the offered a function takes beyond its first `skipped` arguments: all if it has **kwargs.

    Raises:
        ValueError: it asks for something that is not offered.
    """
    parameters = list(inspect.signature(function).parameters.values())[skipped:]
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [p.name for p in parameters if p.default is p.empty and p.kind not in several and p.name not in offered]
    if needed:
        raise ValueError(
            f"reward_funcs: {function_name} asks for {needed[0]!r}, expected one of {', '.join(offered)}"
            f"{did_you_mean(needed[0], offered)}"
        )
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return dict(offered)
    names = {parameter.name for parameter in parameters}
    return {name: value for name, value in offered.items() if name in names}


def _in_order(answers: list[Any]) -> list[Any]:
    """Answers as they are, and those still to come awaited together."""
    waiting = {i: answer for i, answer in enumerate(answers) if inspect.isawaitable(answer)}
    if waiting:
        for i, answer in zip(waiting, _run_together(list(waiting.values())), strict=True):
            answers[i] = answer
    return answers


def _run_together(awaitables: list[Awaitable[Any]]) -> list[Any]:
    async def gather() -> list[Any]:
        return await asyncio.gather(*awaitables)

    results: list[Any] = []
    errors: list[BaseException] = []

    # In a thread of its own: a notebook has an event loop running in this one.
    def run() -> None:
        try:
            results.extend(asyncio.run(gather()))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results


def _checked(name: str, answer: Any, count: int) -> Tensor:
    """[N], NaN where the answer is None."""
    values = answer.tolist() if isinstance(answer, Tensor) or hasattr(answer, "dtype") else answer
    if not isinstance(values, list | tuple) or len(values) != count:
        got = len(values) if isinstance(values, list | tuple) else repr(values)
        raise ValueError(f"reward_funcs: expected {count} numbers from {name}, one for each completion, got {got}")
    for row, value in enumerate(values):
        if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
            raise ValueError(f"reward_funcs: expected finite numbers or None from {name}, got {value!r} for completion {row}")
    return torch.tensor([math.nan if value is None else float(value) for value in values])
