"""`rlopt verify --algo rebel`: the library passes, and every usual mistake is found."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import rlopt.agents.rebel as of_agent
import rlopt.verification.rebel as of_rebel
from rlopt.agents.rebel import REBEL
from rlopt.policies import contrasts
from rlopt.verification.exact import FIXTURES
from rlopt.verification.run import verify_main


def failed() -> set[str]:
    """What is wrong on the MDP whose episodes have different lengths."""
    return {check.quantity.removesuffix(", ragged") for check in of_rebel.fixture_checks(FIXTURES[1]) if not check.passed}


def test_the_library_passes(capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(of_rebel, "NUM_BATCHES", 20)
    with pytest.raises(SystemExit) as stopped:
        verify_main(["--algo", "rebel"])
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    for words in ("rebel, branches: gradient, fixed", "rebel: 20 solved reach the best, ragged", "rebel, branched: first step"):
        assert words in shown


def test_log_probabilities_that_are_averaged_over_an_episode(monkeypatch: Any) -> None:
    def averaged(self: Any, log_ratio: torch.Tensor, batch: Any) -> torch.Tensor:
        sums = torch.zeros_like(batch.returns).index_add(0, batch.samples, log_ratio)
        return sums / torch.bincount(batch.samples)

    monkeypatch.setattr(REBEL, "per_sample", averaged)
    assert failed() == {"rebel, trajectories: gradient"}


def test_eta_upside_down(monkeypatch: Any) -> None:
    original = of_agent.rebel_loss
    monkeypatch.setattr(of_agent, "rebel_loss", lambda a, b, r, groups, eta: original(a, b, r, groups, 1 / eta))
    assert failed() == {
        "rebel, trajectories: gradient",
        "rebel, branches: gradient",
        "rebel, groups: solved is π e^(ηQ)",
        "rebel: 20 solved reach the best",
    }


def test_a_biased_variance(monkeypatch: Any) -> None:
    """1/K for 1/(K − 1): its minimiser is right."""
    original = of_rebel.rebel_loss

    def biased(log_probs: Any, old: Any, rewards: Any, groups: Any, eta: Any) -> torch.Tensor:
        sizes = torch.bincount(groups).to(log_probs)
        members = [groups == group for group in range(len(sizes))]
        parts = [original(log_probs[m], old[m], rewards[m], groups[m], eta) for m in members]
        return ((sizes - 1) / sizes * torch.stack(parts)).mean()

    monkeypatch.setattr(of_rebel, "rebel_loss", biased)
    assert failed() == {"rebel: pairs are groups"}


def test_without_the_divergence(monkeypatch: Any) -> None:
    def log_ratio(past: Any, head: torch.Tensor, *deviations: Any) -> Any:
        shift = head.logsumexp(-1) - past.head.logsumexp(-1)
        moved = head - past.head
        at_action = past.scores == past.scores.amax(-1, keepdim=True)  # the only positive entry
        return (moved * at_action).sum(-1) - shift, [past.scores]

    monkeypatch.setattr(contrasts, "contrast", log_ratio)
    assert failed() == {"rebel, advantages: solved is π e^(ηA)", "rebel: solved is a natural gradient"}


def test_steps_that_go_the_wrong_way(monkeypatch: Any) -> None:
    """Of whole agents; each mode's own check sees it."""
    monkeypatch.setattr(of_rebel, "NUM_BATCHES", 20)
    original, regress = REBEL.regress_advantages, REBEL.regress_groups

    def advantages_reversed(self: Any, state: Any, batch: Any, progress: float) -> Any:
        return original(self, state, batch._replace(advantages=-batch.advantages), progress)

    def returns_reversed(self: Any, state: Any, batch: Any, progress: float) -> Any:
        return regress(self, state, batch._replace(returns=-batch.returns), progress)

    monkeypatch.setattr(REBEL, "regress_advantages", advantages_reversed)
    monkeypatch.setattr(REBEL, "regress_groups", returns_reversed)
    assert not any(of_rebel.sampled_check(mode).passed for mode in ("advantage", "trajectory", "branched"))  # type: ignore[arg-type]
