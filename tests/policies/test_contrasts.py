"""ln π_θ/π_t + KL(π_t ‖ π_θ) in closed form, beside the distributions' own log-probability, KL and autograd, in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rlopt.policies.contrasts import contrast, pulled_back, reference
from rlopt.policies.distributions import Bernoulli, Categorical, DiagonalGaussian, MultiCategorical

F64 = torch.float64
ROWS, SIZES = 7, (2, 3)
KINDS = ("categorical", "multi", "coins", "gaussian")


def made(kind: str, head: torch.Tensor, log_std: torch.Tensor | None) -> Any:
    if kind == "categorical":
        return Categorical.from_logits(head)
    if kind == "multi":
        return MultiCategorical.from_logits(head, SIZES)
    return Bernoulli(head) if kind == "coins" else DiagonalGaussian(head, log_std)  # type: ignore[arg-type]


def drawn(kind: str, generator: torch.Generator) -> torch.Tensor:
    if kind == "categorical":
        return torch.randint(5, (ROWS,), generator=generator)
    if kind == "multi":
        return torch.stack([torch.randint(n, (ROWS,), generator=generator) for n in SIZES], -1)
    if kind == "coins":
        return torch.randint(2, (ROWS, 5), generator=generator)
    return torch.randn(ROWS, 5, generator=generator, dtype=F64)


@pytest.fixture(params=KINDS)
def case(request: Any) -> tuple[Any, ...]:
    """Kind, heads of π_t and π_θ, their log_std, actions."""
    generator = torch.Generator().manual_seed(0)
    old, new = torch.randn(2, ROWS, 5, generator=generator, dtype=F64)
    stds = [0.4 * torch.randn(5, generator=generator, dtype=F64) for _ in range(2)] if request.param == "gaussian" else []
    return request.param, old, new.requires_grad_(), stds, drawn(request.param, generator)


def by_definition(kind: str, old: Any, new: Any, stds: list[torch.Tensor], actions: Any) -> torch.Tensor:
    before, after = made(kind, old, stds[1] if stds else None), made(kind, new, stds[0] if stds else None)
    return after.log_prob(actions) - before.log_prob(actions) + after.divergence_from(before)


def test_it_is_the_log_ratio_and_the_divergence(case: Any) -> None:
    kind, old, new, stds, actions = case
    past = reference(made(kind, old, stds[1] if stds else None), old, actions)
    value, _ = contrast(past, new, *stds)
    torch.testing.assert_close(value, by_definition(*case), rtol=1e-12, atol=1e-12)
    assert float(contrast(past, old, *stds[1:] * 2)[0].abs().max()) < 1e-14  # at π_t itself


def test_the_derivatives_are_autograds(case: Any) -> None:
    kind, old, new, stds, actions = case
    weights = torch.linspace(-1, 2, ROWS, dtype=F64)
    leaves = [new, *(std.requires_grad_() for std in stds[:1])]
    expected = torch.autograd.grad((weights * by_definition(*case)).sum(), leaves)
    with torch.no_grad():
        past = reference(made(kind, old, stds[1] if stds else None), old, actions)
        found = pulled_back(weights, contrast(past, new, *stds)[1])
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_the_log_ratio_alone_is_something_else(case: Any) -> None:
    """Negative control: without the KL."""
    kind, old, new, stds, actions = case
    before, after = made(kind, old, stds[1] if stds else None), made(kind, new, stds[0] if stds else None)
    ratio = after.log_prob(actions) - before.log_prob(actions)
    value, _ = contrast(reference(before, old, actions), new, *stds)
    assert float((value - ratio).detach().abs().max()) > 0.1
