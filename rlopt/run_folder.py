"""What a training run leaves behind, and where.

config.yaml      every setting, resolved; `--config` reads it
versions.json    of Python, the libraries and the platform
episodes.csv     a row for each finished training episode, written as it ends
progress.csv     a row for each iteration: what the tables show
events.out.*     the same for TensorBoard
checkpoints/     from which `--resume` goes on
faults/          updates that went wrong; `rlopt replay` plays them again
evaluations.npz  returns and lengths of the evaluations under way
best_model.zip   the agent of the best of them
pareto.zip       the Pareto archive, of runs with several objectives
model.zip        the agent at the end
"""

from __future__ import annotations

import csv
import json
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from rlopt.agents.base import Agent
from rlopt.checkpoint import versions
from rlopt.plain_yaml import read_mapping

EPISODE_COLUMNS = ("env_steps", "env", "return", "length", "seconds")


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def episodes(self) -> Path:
        return self.path / "episodes.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def faults(self) -> Path:
        return self.path / "faults"

    @property
    def model(self) -> Path:
        return self.path / "model.zip"

    @property
    def best_model(self) -> Path:
        return self.path / "best_model.zip"

    def write_description(self, configuration: dict[str, Any]) -> None:
        """config.yaml and versions.json."""
        text = yaml.safe_dump(configuration, sort_keys=False, allow_unicode=True)
        for path, content in ((self.config, text), (self.versions, json.dumps(versions(), indent=1) + "\n")):
            temporary = path.with_name(f".{path.name}.new")
            temporary.write_text(content, encoding="utf-8")
            temporary.replace(path)  # of a run that goes on there is one already, which is never half written

    def read_config(self) -> dict[str, Any]:
        """The run's settings.

        Raises:
            ValueError: the folder has no config.yaml, or it is not a mapping of plain values.
        """
        try:
            return read_mapping("run", self.config)
        except (FileNotFoundError, ValueError) as error:
            reason = str(error).removeprefix("run: ")
            raise ValueError(f"run: expected {self.path} to be a run folder with a config.yaml: {reason}") from None


def create_run_folder(run_dir: Path, algo: str, env: str, name: str | None = None) -> RunFolder:
    """A new folder RUN_DIR/ALGO/ENV/NAME, with the next free number for a name unless one is given.

    Raises:
        ValueError: the named folder exists, or none can be made.
    """
    parent = run_dir / algo / env.replace("/", "-").replace(":", "-")
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if name is None:
            return RunFolder(_numbered(parent))
        (parent / name).mkdir()
        return RunFolder(parent / name)
    except FileExistsError:
        raise ValueError(
            f"run_name: {parent / (name or '')} exists already; choose another name, or none for a number"
        ) from None
    except OSError as error:
        raise ValueError(f"run_dir: no folder can be made in {run_dir}: {error}") from error


def _numbered(parent: Path) -> Path:
    """A new folder whose name is the number after the highest there is."""
    number = 1 + max((int(path.name) for path in parent.iterdir() if path.name.isdecimal()), default=0)
    while True:
        try:
            (parent / str(number)).mkdir()
            return parent / str(number)
        except FileExistsError:  # another run was faster
            number += 1


def resumed_run_folder(path: Path) -> RunFolder:
    """The folder of a run that is to go on.

    Raises:
        ValueError: there is no run.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ValueError(f"resume: expected the folder of a run, with a config.yaml, got {path}")
    return folder


class EpisodeLog:
    """Adds a row to episodes.csv whenever a training episode of `agent` ends. A context manager."""

    def __init__(self, path: Path, agent: Agent):
        self.agent = agent
        self.began = time.perf_counter()
        begun = path.exists() and path.stat().st_size > 0
        self.file = path.open("a", newline="", encoding="utf-8", buffering=1)  # line by line: a crash keeps them
        self.writer = csv.writer(self.file)
        if not begun:
            self.writer.writerow(EPISODE_COLUMNS)

    def __enter__(self) -> Self:
        self.agent.statistics.on_episode = self.add
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.agent.statistics.on_episode = None
        self.file.close()

    def add(self, record: dict[str, Any]) -> None:
        """One finished episode, as `EpisodeStatistics` reports it."""
        seconds = round(time.perf_counter() - self.began, 3)
        self.writer.writerow((self.agent.num_timesteps, record["env"], record["r"], record["l"], seconds))
