"""The last updates, kept so that one that goes wrong can be undone, explained and played again."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import sys
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from rlopt import archive as files
from rlopt.arguments import check_number
from rlopt.checkpoint import agent_tensors, describe
from rlopt.nested import split
from rlopt.rollout import Rollout

if TYPE_CHECKING:
    from rlopt.agents.base import Agent

# Of these a value that is not finite is a fault; others, such as the explained variance of a constant, may be undefined.
WATCHED = ("loss", "grad_norm", "direction_norm", "approx_kl")


class Batch(NamedTuple):
    """What the collector gave to an algorithm at once."""

    rollout: Rollout
    num_timesteps: int  # when it was done


class Update(NamedTuple):
    """One iteration: all that it depends on. References; nothing is copied but generators."""

    state: Any  # before it
    generators: dict[str, Tensor]
    step_scale: float
    num_timesteps: int
    batch_counts: dict[str, int]
    batches: list[Batch]


class FlightRecorder:
    """Notices updates that went wrong, goes back to the state before, and halves the step; given to `Agent.learn`.

    An update is wrong if it leaves parameters or the optimiser's moments that are not finite, a loss or a gradient that is not,
    a KL divergence from the policy before above `max_kl`, or importance weights above `max_weight`. Then the last updates
    are written to a file, with the data that they were made of, which `python -m rlopt replay FILE` plays again to the bit;
    the agent is put back to the state before the update; and all its steps (learning rate, step size, radius) are halved from
    then on (`Agent.step_scale`, which is saved with it). Environments go on where they are: what was collected is not collected
    again.

    Args:
        folder: where files are written; None writes none.
        keep: updates to keep. Each holds its rollouts in memory.
        max_rollbacks: after these a further fault ends the training; an agent's whole life counts.
        max_kl: in nats, of `train/approx_kl`; far beyond what any update should do.
        max_weight: of the importance weight of an episode, `train/weights_max`.

    Raises:
        ValueError: numbers out of range.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        keep: int = 3,
        max_rollbacks: int = 5,
        max_kl: float = 10.0,
        max_weight: float = 1e12,
    ):
        check_number("keep", keep, positive=True, whole=True)
        check_number("max_rollbacks", max_rollbacks, at_least=0, whole=True)
        check_number("max_kl", max_kl, positive=True)
        check_number("max_weight", max_weight, positive=True)
        self.folder = None if folder is None else Path(folder)
        self.max_rollbacks, self.max_kl, self.max_weight = max_rollbacks, max_kl, max_weight
        self.updates: deque[Update] = deque(maxlen=keep)

    def training_begins(self) -> None:
        """Before the first iteration of a training."""
        self.updates.clear()

    def training_ends(self, agent: Agent) -> None:
        """After the last iteration, however it ended; what was kept may be looked at."""
        if agent.collector is not None:
            agent.collector.on_rollout = None

    def update_begins(self, agent: Agent) -> None:
        """Before an iteration."""
        assert agent.collector is not None
        batches: list[Batch] = []
        collector = agent.collector
        collector.on_rollout = lambda rollout: batches.append(Batch(rollout, collector.num_timesteps))
        generators = {name: generator.get_state() for name, generator in agent.generators.items()}
        self.updates.append(
            Update(agent.state, generators, agent.step_scale, agent.num_timesteps, dict(agent._batches), batches)
        )

    def accepts(self, agent: Agent, state: Any, metrics: Mapping[str, Any]) -> bool:
        """Whether the iteration's outcome is sound; if not, the agent is put back.

        Raises:
            FloatingPointError: it is not, and there were too many before.
        """
        fault = self.fault(state, metrics)
        if fault is None:
            return True
        path = self._write(agent, state, fault)
        replay = "" if path is None else f"; to see it again: python -m rlopt replay {path}"
        what = f"{type(agent).__name__}: the update after {agent.num_timesteps} environment steps gave {fault}"
        agent._adopt(self.updates.pop().state)
        if self._num_rollbacks(agent) >= self.max_rollbacks:
            raise FloatingPointError(
                f"{what}; those before it are kept, and {self.max_rollbacks} times smaller steps did not help{replay}. "
                "Try smaller steps or normalize_rewards=True"
            )
        agent.step_scale /= 2
        scale = f"steps are {agent.step_scale:g} of what they were set to from now on"
        print(f"{what}; went back to those before it, {scale}{replay}", file=sys.stderr)
        return False

    def fault(self, state: Any, metrics: Mapping[str, Any]) -> str | None:
        """What is wrong with an iteration's outcome, in words; None if nothing is."""
        if not _finite(state.theta):
            return "parameters that are not finite"
        for name, moment in getattr(state, "moments", {}).items():
            if not _finite(moment):
                return f"moments of the optimiser that are not finite ({name})"
        for name, value in metrics.items():
            if any(part in name for part in WATCHED) and not math.isfinite(float(value)):
                return f"{name} {float(value)}"
        for name, limit in (("approx_kl", self.max_kl), ("weights_max", self.max_weight)):
            if name in metrics and float(metrics[name]) > limit:
                return f"{name} {float(metrics[name]):.3g}, beyond {limit:g}"
        return None

    @staticmethod
    def _num_rollbacks(agent: Agent) -> int:
        return round(-math.log2(agent.step_scale))

    def _write(self, agent: Agent, state: Any, fault: str) -> Path | None:
        """A file with the updates that are kept, their data, and the parameters that came of them; None without a folder."""
        if self.folder is None:
            return None
        outcomes = [digest(update.state.theta) for update in list(self.updates)[1:]] + [digest(state.theta)]
        updates, tensors = split([_as_data(update) for update in self.updates], "updates")
        about = {
            "fault": fault,
            "outcomes": outcomes,
            "updates": updates,
            "total_timesteps": agent._total_timesteps,
            "group_size": 1 if agent.collector is None else agent.collector.envs.group_size,
        }
        path, last = self.folder / f"fault_{agent.num_timesteps}_steps.zip", agent.state
        agent._adopt(self.updates[0].state)  # the file holds the agent as it was before the first of them
        try:
            files.write(path, {**describe(agent), "flight": about}, {**agent_tensors(agent), **tensors})
        except (OSError, ValueError) as error:  # a full disk, an agent that no file can hold: no reason to end a training
            print(f"{path} cannot be written: {error}", file=sys.stderr)
            return None
        finally:
            agent._adopt(last)
        return path


class NoRecorder(FlightRecorder):
    """Of a training that ends with the first fault."""

    def __init__(self) -> None:
        """Keeps nothing."""

    def training_begins(self) -> None:
        """Keeps nothing."""

    def training_ends(self, agent: Agent) -> None:
        """Kept nothing."""

    def update_begins(self, agent: Agent) -> None:
        """Keeps nothing."""

    def accepts(self, agent: Agent, state: Any, metrics: Mapping[str, Any]) -> bool:
        """Raises FloatingPointError unless parameters are finite."""
        if not _finite(state.theta):
            raise FloatingPointError(
                f"{type(agent).__name__}: the update after {agent.num_timesteps} environment steps gave parameters that are "
                "not finite; those before it are kept. Try smaller steps or normalize_rewards=True"
            )
        return True


def digest(theta: Tensor) -> str:
    """SHA-256 of parameters [d], to the bit."""
    return hashlib.sha256(theta.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()


def _as_data(update: Update) -> dict[str, Any]:
    """All of it but the state, which follows from the one before the first."""
    return {
        "generators": update.generators,
        "step_scale": update.step_scale,
        "num_timesteps": update.num_timesteps,
        "batch_counts": update.batch_counts,
        "batches": [{"rollout": _fields(batch.rollout), "num_timesteps": batch.num_timesteps} for batch in update.batches],
    }


def _fields(rollout: Rollout) -> dict[str, Any]:
    return {field.name: getattr(rollout, field.name) for field in dataclasses.fields(rollout)}


def _finite(tensor: Tensor) -> bool:
    # A sum is ten times as fast, and finite only if all is; where it is not, large numbers may have overflown.
    return math.isfinite(float(tensor.sum())) or bool(torch.isfinite(tensor).all())
