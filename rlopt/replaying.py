"""A flight recorder's file played again: the same updates on the same data, to the bit, without the environments."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from rlopt import archive as files
from rlopt import checkpoint
from rlopt.agents import ALGORITHMS, Agent
from rlopt.archive import Archive
from rlopt.cli.errors import FAILED, bad_input_exits
from rlopt.flight_recorder import digest
from rlopt.nested import join
from rlopt.rollout import Rollout

PROGRAM = "rlopt-replay"


class RecordedCollector:
    """Gives what a collector gave, whatever it is asked for."""

    def __init__(self, name: str, group_size: int, entropy: int):
        self.envs = SimpleNamespace(name=name, group_size=group_size)
        self.entropy = entropy
        self.batches: dict[str, int] = {}
        self.num_timesteps = 0
        self._left: list[dict[str, Any]] = []

    def show(self, update: dict[str, Any]) -> None:
        """Stand where the collector stood before this update."""
        self.num_timesteps, self.batches = update["num_timesteps"], dict(update["batch_counts"])
        self._left = list(update["batches"])

    def steps(self, *args: Any, **kwargs: Any) -> Rollout:
        """The next rollout."""
        batch = self._left.pop(0)
        self.num_timesteps = batch["num_timesteps"]
        return _rollout(batch["rollout"])

    def episodes(self, *args: Any, **kwargs: Any) -> Rollout:
        """The next rollout."""
        return self.steps()


def replay(path: str | Path) -> Iterator[tuple[Agent, dict[str, float], bool]]:
    """The updates of a file, one after the other.

    Yields:
        The agent before the update, what the update measured, and whether it gave the recorded parameters to the bit.

    Raises:
        FileNotFoundError, ValueError: not a file of a flight recorder, or a damaged one.
    """
    contents = files.read(path)
    if not isinstance(contents.data.get("flight"), dict):
        raise ValueError(f"path: {path} was not written by a flight recorder")
    try:
        flight = contents.data["flight"]
        updates, outcomes = join(flight["updates"], contents.tensors), flight["outcomes"]
        agent = _agent(contents)
        collector = RecordedCollector(contents.data["algorithm"], flight["group_size"], agent._entropy)
        agent.collector = collector  # type: ignore[assignment]
        agent._total_timesteps = flight["total_timesteps"]
        for update, outcome in zip(updates, outcomes, strict=True):
            collector.show(update)
            agent.step_scale = update["step_scale"]
            for name, state in update["generators"].items():
                agent.generators[name].set_state(torch.as_tensor(state))
            state, metrics = agent.step(agent.state, collector)  # type: ignore[arg-type]
            yield agent, {name: float(value) for name, value in metrics.items()}, digest(state.theta) == outcome
            agent._adopt(state)
    except (KeyError, IndexError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(f"path: {path} does not hold what its updates need: {error!r}") from error


def replay_main(argv: list[str]) -> None:
    """`rlopt replay FILE`.

    Raises:
        SystemExit: 1 if an update gave other parameters than it did, 2 for bad input.
    """
    parser = argparse.ArgumentParser(
        PROGRAM, description="Play the last updates of a training again, from the file that its flight recorder wrote."
    )
    parser.add_argument("file", help="RUN/faults/fault_N_steps.zip")
    arguments = parser.parse_args(argv)
    same = True
    with bad_input_exits(PROGRAM):
        fault = files.read(arguments.file).data.get("flight", {}).get("fault")
        for agent, metrics, reproduced in replay(arguments.file):
            same = same and reproduced
            told = "to the bit" if reproduced else "DIFFERENTLY: another machine, version or device rounds in another way"
            print(f"update after {agent.num_timesteps} environment steps, played again {told}")
            for name, value in metrics.items():
                print(f"  {name:<24} {value:.6g}")
        print(f"what was wrong with the last: {fault}")
    if not same:
        raise SystemExit(FAILED)


def _agent(contents: Archive) -> Agent:
    """The agent before the first update, without environments."""
    classes = {cls.__name__: cls for cls in ALGORITHMS.values()}
    name = contents.data["algorithm"]
    if name not in classes:
        raise ValueError(f"path: the file is of {name}, which is not an algorithm of rlopt")
    agent: Agent = checkpoint.restore(classes[name], contents, None, "cpu", {}, {})
    return agent


def _rollout(data: dict[str, Any]) -> Rollout:
    known = {field.name: data[field.name] for field in fields(Rollout) if field.name in data or field.default is MISSING}
    return Rollout(**{name: _tensors(value) for name, value in known.items()})


def _tensors(value: Any) -> Any:
    if value is None:
        return None
    if isinstance(value, dict):
        return {key: torch.as_tensor(entry) for key, entry in value.items()}
    return torch.as_tensor(value)
