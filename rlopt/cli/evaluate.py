"""`rlopt-evaluate`: play episodes with a trained agent, from a run folder or a file."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro

from rlopt import archive
from rlopt.agents import ALGORITHMS, Agent
from rlopt.agents.weighing import PREFERENCES
from rlopt.arguments import check_number
from rlopt.cli.configuration import YamlMapping
from rlopt.cli.environments import EVALUATION_SEED, Task, preference_lattice
from rlopt.cli.errors import bad_input_exits
from rlopt.envs.preferences import Preferences
from rlopt.envs.vector import Backend
from rlopt.evaluation import Evaluation, evaluate
from rlopt.file_errors import shortened
from rlopt.indicators import Floats
from rlopt.objectives import check_preferences
from rlopt.pareto import FILE_NAME
from rlopt.run_folder import RunFolder
from rlopt.statistics import as_text
from rlopt.video import check_mp4, frames_per_second, record_episode, write_mp4

PROGRAM = "rlopt-evaluate"
DESCRIPTION = """Play episodes with a trained agent and report their returns.

A policy that was trained for preferences is asked for each of a lattice of them, or for the one that --preference gives.

Examples:
    rlopt-evaluate runs/ppo/CartPole-v1/1
    rlopt-evaluate runs/ppo/CartPole-v1/1 --best --episodes 100 --json
    rlopt-evaluate runs/ppo/CartPole-v1/1/checkpoints/rl_model_50000_steps.zip --video out.mp4
    rlopt-evaluate agent.zip --env CartPole-v1 --stochastic
    rlopt-evaluate runs/ppo/deep-sea-treasure-v0/1 --preference 0.9 0.1"""

MOST_FRAMES = 1_000  # that a run's config.yaml may have stacked
Modes = tyro.conf.create_mutex_group(required=False)


@dataclass(frozen=True)
class EvaluationSettings:
    """Flags of `rlopt-evaluate`."""

    run: tyro.conf.Positional[Path]
    """Run folder, or an agent's .zip file."""
    episodes: int = 100
    """How many to play, for each preference."""
    best: bool = False
    """Of a run folder, take best_model.zip in place of model.zip."""
    env: str | None = None
    """Environment id; not needed for a run folder, or a file in one."""
    env_kwargs: YamlMapping = field(default_factory=dict)
    """Passed to the environment, instead of the run's."""
    frame_stack: int | None = None
    """How many of the last observations the agent sees at once; not needed for a run folder, or a file in one."""
    show_state: bool = False
    """Show the simulator's state to an agent without memory that was trained with it; not needed for a run folder, or a file in
    one. A policy with memory acts without it."""
    preference: tuple[float, ...] = ()
    """Weights of the objectives that a policy trained for preferences is to act for; without it, a table of many."""
    num_envs: int = 8
    """Environments side by side."""
    seed: int = EVALUATION_SEED
    """Of the environments."""
    device: str = "auto"
    """Where the networks are: "cpu", "cuda", "cuda:1"; "auto" is CUDA, if there is one, for CNNs and large networks."""
    deterministic: Annotated[bool, tyro.conf.FlagCreatePairsOff, Modes] = False
    """Take the most likely actions. This is what happens if neither is given."""
    stochastic: Annotated[bool, tyro.conf.FlagCreatePairsOff, Modes] = False
    """Sample actions, as in training."""
    video: Path | None = None
    """Write one more episode to this .mp4 file; needs pip install 'rlopt[video]'."""
    json: bool = False
    """The last line of standard output is one JSON object; the table goes to standard error."""


Table = list[tuple[Floats, Evaluation]]  # preferences [K] and what the policy does for each


def evaluate_main(argv: Sequence[str] | None = None) -> None:
    """Evaluate an agent as the command line says.

    Raises:
        SystemExit: 2 for bad input, after a message.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with bad_input_exits(PROGRAM):
        settings = tyro.cli(EvaluationSettings, args=arguments, prog=PROGRAM, description=DESCRIPTION)
        for name in ("episodes", "num_envs", "frame_stack"):
            if getattr(settings, name) is not None and getattr(settings, name) < 1:
                raise ValueError(f"{name}: expected a whole number of at least 1, got {getattr(settings, name)}")
        if settings.video is not None:
            check_mp4(settings.video)  # before the work, not after it
        file, task = find_task(settings)
        agent = load_agent(file, settings.device)
        task = _as_seen_by(agent, task, settings.preference)
        began = time.perf_counter()
        table = task.preferences and not settings.preference
        outcome = _evaluate_preferences(agent, task, settings) if table else _evaluate(agent, task, settings)
        seconds = time.perf_counter() - began
        if settings.video is not None:
            _write_video(agent, task, settings)
    print(_report(file, task, outcome, settings), file=sys.stderr if settings.json else sys.stdout, flush=True)
    if settings.json:
        result: dict[str, Any] = {"algo": type(agent).__name__.lower(), "env": task.env, "file": str(file)}
        if settings.preference:
            result["preference"] = list(settings.preference)
        result |= {"preferences": _numbers_of(outcome)} if isinstance(outcome, list) else _numbers(outcome)
        result |= {"deterministic": not settings.stochastic, "seconds": round(seconds, 3)}
        print(json.dumps(result | {"video": None if settings.video is None else str(settings.video)}), flush=True)


def find_task(settings: EvaluationSettings) -> tuple[Path, Task]:
    """The file and the environment that the flags name; a run's config.yaml tells what they leave out.

    Raises:
        ValueError: no such file, a folder that is not a run's, or an environment that nobody named.
    """
    path = settings.run
    if os.path.isdir(path):  # which no name upsets
        folder = RunFolder(path)
        config = folder.read_config()
        file = folder.best_model if settings.best else folder.model
        if not file.is_file():
            hint = _no_best(folder) if settings.best else "did its training end?"
            raise ValueError(f"run: {path} has no {file.name}; {hint}")
    else:
        if settings.best:
            raise ValueError(f"best: expected a run folder beside it, got the file {path}")
        file = path
        parents = (RunFolder(parent) for parent in path.absolute().parents[:2])
        config = next((folder.read_config() for folder in parents if os.path.exists(folder.config)), {})
    env = settings.env or config.get("env")
    if env is None:
        raise ValueError(f"env: {path} is not in a run folder; name the environment with --env")
    if settings.env is None and ":" in str(env):
        raise ValueError(f"env: the run's {env} names a module to import; if you trust it, say so with --env {env}")
    same = env == config.get("env")
    backend: Backend = "envpool" if same and config.get("backend") == "envpool" else "sync"
    env_kwargs = settings.env_kwargs or ((config.get("env_kwargs") or {}) if same else {})
    if not isinstance(env_kwargs, dict):
        raise ValueError(f"env_kwargs: expected the run to have a mapping, got {shortened(env_kwargs)}")
    # What the agent sees, whatever the environment; runs of older versions have no word of it.
    frame_stack = settings.frame_stack or config.get("frame_stack", 1)
    check_number("frame_stack", frame_stack, at_least=1, at_most=MOST_FRAMES, whole=True)
    show_state = settings.show_state or (same and bool(config.get("show_state", False)))
    return file, Task(str(env), backend, env_kwargs, frame_stack, show_state=show_state)


def load_agent(file: Path, device: str) -> Agent:
    """The agent in a file, whichever algorithm's.

    Raises:
        ValueError: no such file, not an agent of this library, or a damaged file.
    """
    try:
        name = archive.read(file).data["algorithm"]
    except (ValueError, OSError) as error:
        raise ValueError(f"run: {str(error).removeprefix('path: ')}") from None
    classes = {cls.__name__: cls for cls in ALGORITHMS.values()}
    if name not in classes:
        raise ValueError(f"run: {file} holds an agent of {shortened(name)}, expected one of {', '.join(classes)}")
    return classes[name].load(file, device=device)


def _no_best(folder: RunFolder) -> str:
    if (folder.path / FILE_NAME).is_file():
        return f"of several objectives no model is best; {FILE_NAME} has those that none dominates"
    return "train with --eval-freq to keep the best"


def _as_seen_by(agent: Agent, task: Task, preference: tuple[float, ...]) -> Task:
    """The task, with preferences if the agent was trained for them.

    Raises:
        ValueError: a preference for an agent that takes none, or one that is not K weights with sum 1.
    """
    if getattr(agent, "utility", None) != PREFERENCES:
        if preference:
            raise ValueError("preference: expected an agent that was trained with --utility preferences; this one takes none")
        return task
    if preference:
        check_preferences(preference, "preference", agent.num_objectives)
    return replace(task, preferences=True)


def _evaluate(agent: Agent, task: Task, settings: EvaluationSettings) -> Evaluation:
    num_envs = min(settings.num_envs, settings.episodes)
    with contextlib.closing(task.evaluation(num_envs, settings.seed, settings.preference or None)) as envs:
        return evaluate(agent, envs, settings.episodes, not settings.stochastic, settings.seed)


def _evaluate_preferences(agent: Agent, task: Task, settings: EvaluationSettings) -> Table:
    """All preferences in the same environments, with the same random numbers."""
    num_envs = min(settings.num_envs, settings.episodes)
    with contextlib.closing(task.evaluation(num_envs, settings.seed)) as envs:
        assert isinstance(envs, Preferences)
        table = []
        for weights in preference_lattice(envs.size):
            envs.fix(weights)
            table.append((weights, evaluate(agent, envs, settings.episodes, not settings.stochastic, settings.seed)))
        return table


def _write_video(agent: Agent, task: Task, settings: EvaluationSettings) -> None:
    assert settings.video is not None
    with contextlib.closing(task.evaluation(1, settings.seed, settings.preference or None)) as envs:
        frames = record_episode(agent, envs, not settings.stochastic, settings.seed)
        write_mp4(frames, settings.video, frames_per_second(envs))


def _numbers(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "episodes": len(evaluation.returns),
        "mean_return": np.asarray(evaluation.mean).tolist(),
        "std_return": np.asarray(evaluation.std).tolist(),
        "median_return": np.asarray(evaluation.median).tolist(),
        "min_return": np.min(evaluation.returns, 0).tolist(),
        "max_return": np.max(evaluation.returns, 0).tolist(),
        "mean_length": evaluation.mean_length,
    }


def _numbers_of(table: Table) -> list[dict[str, Any]]:
    return [
        {"preference": weights.tolist(), "utility": _utility(weights, evaluation), **_numbers(evaluation)}
        for weights, evaluation in table
    ]


def _utility(weights: Floats, evaluation: Evaluation) -> float:
    """⟨w, J⟩ of the mean returns."""
    return float(weights @ np.asarray(evaluation.mean))


def _report(file: Path, task: Task, outcome: Evaluation | Table, settings: EvaluationSettings) -> str:
    mode = "stochastic" if settings.stochastic else "deterministic"
    each = " for each preference" if isinstance(outcome, list) else ""
    lines = {
        "agent": str(file),
        "environment": task.env,
        "episodes": f"{settings.episodes} {mode}{each}",
        **({"preference": as_text(settings.preference, "g")} if settings.preference else {}),
        **({} if isinstance(outcome, list) else _lines(outcome)),
        **({} if settings.video is None else {"video": str(settings.video)}),
    }
    text = "\n".join(f"{name:<12} {line}" for name, line in lines.items())
    return f"{text}\n\n{_table(outcome)}" if isinstance(outcome, list) else text


def _table(table: Table) -> str:
    """A line for each preference."""
    rows = [("preference", "return", "utility", "length")]
    for weights, evaluation in table:
        utility = f"{_utility(weights, evaluation):.2f}"
        rows.append((as_text(weights), as_text(evaluation.mean), utility, f"{evaluation.mean_length:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def _lines(evaluation: Evaluation) -> dict[str, str]:
    returns, lengths = evaluation.returns, evaluation.lengths
    return {
        "return": f"{as_text(evaluation.mean)} ± {as_text(evaluation.std)}",
        "  median": as_text(evaluation.median),
        "  min, max": f"{as_text(np.min(returns, 0))}, {as_text(np.max(returns, 0))}",
        "length": f"{evaluation.mean_length:.1f} ({min(lengths)} to {max(lengths)})",
    }
