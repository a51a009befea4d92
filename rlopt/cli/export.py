"""`python -m rlopt export`: a trained agent as an ONNX file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rlopt.cli.errors import FAILED, bad_input_exits
from rlopt.cli.evaluate import load_agent
from rlopt.export import check_installed, onnx_path
from rlopt.run_folder import RunFolder

PROGRAM = "rlopt export"
DESCRIPTION = """Write the step function of a trained agent as ONNX; needs pip install 'rlopt[onnx]'.

Observations go in as the environment gives them, actions come out as it wants them. The file's metadata say, as JSON
under "rlopt", which inputs and outputs there are and how an episode begins.

Examples:
    python -m rlopt export runs/ppo/CartPole-v1/1 cartpole.onnx
    python -m rlopt export runs/ppo/CartPole-v1/1 cartpole.onnx --best
    python -m rlopt export agent.zip agent.onnx --stochastic"""


@dataclass(frozen=True)
class ExportSettings:
    """Flags of `python -m rlopt export`."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run folder, or an agent's .zip file."""
    out: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """The file to write, an .onnx file."""
    best: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Of a run folder, take best_model.zip in place of model.zip."""
    stochastic: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Sample actions, with an input for the noise, instead of taking the most likely ones."""


def export_main(argv: Sequence[str] | None = None) -> None:
    """Export an agent as the command line says.

    Raises:
        SystemExit: 2 for bad input, 1 for a policy that ONNX cannot express, each after a message.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with bad_input_exits(PROGRAM):
        settings = tyro.cli(ExportSettings, args=arguments, prog=PROGRAM, description=DESCRIPTION)
        onnx_path(settings.out)  # before the work, not after it
        check_installed()
        agent = load_agent(agent_file(settings.run, settings.best), "cpu")
        try:
            path = agent.export(settings.out, deterministic=not settings.stochastic)
        except RuntimeError as error:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
            raise SystemExit(FAILED) from None
    mode = "stochastic" if settings.stochastic else "deterministic"
    print(f"{type(agent).__name__}, {mode}, {path.stat().st_size:,} bytes → {path}")


def agent_file(run: Path, best: bool) -> Path:
    """The file of a run folder's agent, or the file itself.

    Raises:
        ValueError: a folder that is not a run's or has no such file; a file, where the best of a run was asked for.
    """
    if not run.is_dir():
        if best:
            raise ValueError(f"best: expected a run folder beside it, got the file {run}")
        return run
    folder = RunFolder(run)
    folder.read_config()  # or it is no run folder
    file = folder.best_model if best else folder.model
    if not file.is_file():
        hint = "train with --eval-freq to keep the best" if best else "did its training end?"
        raise ValueError(f"run: {run} has no {file.name}; {hint}")
    return file
