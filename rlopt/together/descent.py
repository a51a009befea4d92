"""PPO's update of several agents as one batched computation."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlopt.agents.ppo import PPO, LogRows, Rates, UpdateLog
from rlopt.agents.proximal import Batch, ProximalState
from rlopt.compiled_descent import Limits, MinibatchStep, Position
from rlopt.descent import FlatAdam
from rlopt.estimators import approximate_kl
from rlopt.native_code import compiled


class Followed(NamedTuple):
    """What an agent's update came to."""

    state: ProximalState
    log: UpdateLog
    soundness: dict[str, float]  # what tells a recorder that it went wrong


class JointDescent:
    """Passes over the batches of K agents, whose parameters, moments and minibatches are stacked.

    Args:
        agents: alike.
        native: compile a step; worth its seconds in long trainings.
    """

    def __init__(self, agents: Sequence[PPO], native: bool):
        self.agents = agents
        first = agents[0]
        assert isinstance(first.descent.optimizer, FlatAdam)
        self.betas = first.descent.optimizer.betas
        batched = torch.func.vmap(MinibatchStep(first.descent, first.loss_of_rows), in_dims=(0, 0, 0, None, None, 0))
        self._step: Callable[..., Any] = compiled(batched, first.device) if native else batched

    def update(self, batches: Sequence[Batch], rates: Sequence[Rates]) -> list[Followed]:
        """What `n_epochs` passes of every agent over its batch of S' rows, as many for each, come to.

        Rates differ in the learning rate at most.
        """
        first, states = self.agents[0], [agent.state for agent in self.agents]
        position, num_steps = _position(states)
        joint = Batch(*map(torch.stack, zip(*batches, strict=True)))
        numbers: Any = first.coefficients(rates[0])
        coefficients = type(numbers)(*(None if x is None else torch.tensor(x) for x in numbers))
        limits = Limits(torch.tensor(first.max_grad_norm), torch.tensor(torch.inf))
        kept, norms = [], []
        for _ in range(first.n_epochs):
            for rows in self._minibatches(len(batches[0].advantages)):
                num_steps = [num + 1 for num in num_steps]
                corrections = torch.tensor([self._corrections(*of) for of in zip(num_steps, rates, strict=True)])
                position, taken = self._step(position, joint, rows, coefficients, limits, corrections)
                kept.append(taken.kept)
                norms.append(taken.grad_norm)
        left, grad_norms = LogRows(*(torch.cat(column, 1) for column in zip(*kept, strict=True))), torch.stack(norms, 1)
        outcomes = _states(states, position, num_steps, first.n_epochs), _logs(left, grad_norms), _soundness(left, grad_norms)
        return [Followed(*outcome) for outcome in zip(*outcomes, strict=True)]

    def _minibatches(self, num_rows: int) -> Iterator[Tensor]:
        """The row numbers [K, B] of an epoch's minibatches, every agent's in an order of its own."""
        orders = torch.stack([agent.shuffled(num_rows) for agent in self.agents])
        yield from (part.contiguous() for part in orders.split(int(self.agents[0].batch_size), 1))

    def _corrections(self, num_steps: int, rates: Rates) -> list[float]:
        """Adam's: the step size α/(1 − β₁ᵗ) and √(1 − β₂ᵗ)."""
        beta1, beta2 = self.betas
        return [rates.learning_rate / (1 - beta1**num_steps), (1 - beta2**num_steps) ** 0.5]


def _position(states: Sequence[ProximalState]) -> tuple[Position, list[int]]:
    """θ and moments, [K, d] each, and the steps that Adam has made for each."""
    theta = torch.stack([state.theta for state in states])
    moments = (
        [state.moments.get(name, torch.zeros_like(state.theta)) for state in states] for name in ("exp_avg", "exp_avg_sq")
    )
    return Position(theta, *map(torch.stack, moments)), [int(state.moments.get("step", 0)) for state in states]


def _states(
    states: Sequence[ProximalState], position: Position, num_steps: Sequence[int], num_epochs: int
) -> list[ProximalState]:
    """What followed the states."""
    rows = zip(*(tensor.unbind() for tensor in position), strict=True)
    return [
        state._replace(
            theta=theta.clone(),
            moments={"step": torch.tensor(float(num)), "exp_avg": mean.clone(), "exp_avg_sq": square.clone()},
            num_updates=state.num_updates + num_epochs,
        )
        for state, num, (theta, mean, square) in zip(states, num_steps, rows, strict=True)
    ]


def _logs(rows: LogRows, grad_norms: Tensor) -> list[UpdateLog]:
    """What every agent's minibatches left behind, [K, ...] each."""
    logs = []
    for *of_agent, norms in zip(*rows, grad_norms, strict=True):
        log = UpdateLog()
        log.rows.append(LogRows(*of_agent))
        log.norms.append(norms)
        logs.append(log)
    return logs


def _soundness(rows: LogRows, grad_norms: Tensor) -> list[dict[str, float]]:
    """Of every agent's update, by one pass over what all left behind."""
    numbers = torch.stack([torch.func.vmap(approximate_kl)(rows.log_ratio), grad_norms.amax(1)], 1)
    return [dict(zip(("approx_kl", "grad_norm"), of_agent, strict=True)) for of_agent in numbers.tolist()]
