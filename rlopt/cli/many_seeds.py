"""`--num-seeds K`: one run with K seeds, shared among the cores; on each all at once, where they have a batched form."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from rlopt.cli.errors import BAD_INPUT, FAILED, bad_input_exits
from rlopt.cli.seed_share import train_share
from rlopt.cli.settings import Settings
from rlopt.cli.signals import SIGNALS
from rlopt.cli.train import PROGRAM, program_path
from rlopt.envs.cores import usable_cores
from rlopt.plotting import interquartile_mean
from rlopt.run_folder import create_run_folder
from rlopt.statistics import as_text

RESAMPLES = 10_000


class Share(NamedTuple):
    """The seeds of one process."""

    seeds: list[int]
    process: Any
    pipe: Connection


class Outcome(NamedTuple):
    """What all processes came to."""

    results: list[dict[str, Any]]  # by seed, as the JSON object of one run has it
    refused: list[str]  # what was wrong with the settings
    failed: list[str]  # what went wrong later, a line each


def train_many(settings: Settings, argv: list[str]) -> None:
    """Train an agent for every seed as the command line says, each with a run folder of its own in one for all.

    Raises:
        SystemExit: 2 for settings that cannot work, 1 for training that failed, 130 for Ctrl-C, 143 for SIGTERM, each after a
            message.
    """
    chosen = settings.run
    with bad_input_exits(PROGRAM):
        folder = create_run_folder(chosen.run_dir, chosen.algo, chosen.env, chosen.run_name).path
    seeds = list(range(chosen.seed, chosen.seed + chosen.num_seeds))
    human = sys.stderr if chosen.json else sys.stdout
    began = time.perf_counter()
    shares: list[Share] = []
    with _forwarding_signals(shares) as signals:
        _start(shares, seeds, argv, folder.name)
        outcome = _gathered(shares, settings, folder, signals)
    with contextlib.suppress(OSError):
        folder.rmdir()  # if nothing was made in it
    if outcome.refused and not outcome.results:
        print(f"{PROGRAM}: error: {outcome.refused[0]}", file=sys.stderr)
        raise SystemExit(BAD_INPUT)
    if outcome.results:
        print(_report(outcome.results, time.perf_counter() - began, folder), file=human, flush=True)
    for line in (*outcome.refused, *outcome.failed):
        print(f"{PROGRAM}: {line}", file=sys.stderr)
    if signals:
        begun = [path for seed in seeds if (path := folder / f"seed-{seed}").exists()]
        how = f"; to go on, each seed by itself: {program_path('rlopt-train')} --resume {_quoted(begun[0])}" if begun else ""
        print(f"{PROGRAM}: stopped{how}", file=sys.stderr)
        raise SystemExit(128 + signals[0])
    if chosen.json:
        print(json.dumps({"run_dir": str(folder), "runs": outcome.results}, allow_nan=False), flush=True)
    if outcome.failed or outcome.refused:
        raise SystemExit(FAILED)


def _start(shares: list[Share], seeds: Sequence[int], argv: list[str], folder: str) -> None:
    """Add a process for each core, with its share of the seeds."""
    context = multiprocessing.get_context("spawn")
    for part in np.array_split(seeds, min(usable_cores(), len(seeds))):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=train_share, args=(argv, part.tolist(), folder, theirs))
        # Ctrl-C reaches the whole group: while it imports, the process is not to hear it.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        process.start()
        signal.signal(signal.SIGINT, previous)
        theirs.close()
        shares.append(Share(part.tolist(), process, mine))


@contextmanager
def _forwarding_signals(shares: Sequence[Share]) -> Iterator[list[int]]:
    """While this lasts, Ctrl-C and SIGTERM go to the processes, which save and end. Yields the signals that came."""
    came: list[int] = []

    def forward(number: int, _frame: Any) -> None:
        came.append(number)
        for share in shares:
            if share.process.is_alive():
                os.kill(share.process.pid, number)
        if len(came) == 1:
            name = signal.Signals(number).name
            print(f"\n{PROGRAM}: {name}: stopping after this iteration; again to stop at once", file=sys.stderr, flush=True)

    previous = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _gathered(shares: Sequence[Share], settings: Settings, folder: Path, signals: Sequence[int]) -> Outcome:
    """Show how far the processes are, until all have ended."""
    outcome = Outcome([], [], [])
    steps = dict.fromkeys(range(len(shares)), 0)
    total = settings.run.total_timesteps * sum(len(share.seeds) for share in shares)
    with _progress(settings.run.progress) as progress:
        task = progress.add_task("training", total=total)
        open_pipes = {share.pipe: index for index, share in enumerate(shares)}
        while open_pipes:
            for pipe in wait(list(open_pipes)):
                assert isinstance(pipe, Connection)
                try:
                    kind, what = pipe.recv()
                except EOFError:
                    open_pipes.pop(pipe)
                    continue
                if kind == "begins":
                    if open_pipes[pipe] == 0:
                        _headline(settings, shares, what, folder)
                    if signals:  # which came before it could listen
                        os.kill(shares[open_pipes[pipe]].process.pid, signals[0])
                elif kind == "steps":
                    steps[open_pipes[pipe]] = what
                    progress.update(task, completed=min(sum(steps.values()), total))
                elif kind == "result":
                    outcome.results.append(what)
                elif kind in ("refused", "failed"):
                    getattr(outcome, kind).append(what)
    for share in shares:
        share.process.join()
        if share.process.exitcode:
            outcome.failed.append(
                f"the process of seeds {share.seeds[0]} to {share.seeds[-1]} ended with {share.process.exitcode}"
            )
    outcome.results.sort(key=lambda result: result["seed"])
    return outcome


def _headline(settings: Settings, shares: Sequence[Share], reason: str | None, folder: Path) -> None:
    """What is done, and how."""
    chosen = settings.run
    first, last = shares[0].seeds[0], shares[-1].seeds[-1]
    how = "all of each at once" if reason is None else f"one after another in each ({reason})"
    processes = f"{len(shares)} process{'es' if len(shares) > 1 else ''}"
    task = f"{settings.algorithm.__name__} in {chosen.env}: {chosen.total_timesteps:,} steps, seeds {first} to {last}"
    print(f"{task} in {processes}, {how} → {folder}", file=sys.stderr if chosen.json else sys.stdout, flush=True)


def _progress(enabled: bool) -> Progress:
    """Steps of all seeds, time."""
    columns = (MofNCompleteColumn(), BarColumn(bar_width=None), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("all seeds"), *columns, console=Console(stderr=True), refresh_per_second=4, disable=not enabled)


def _quoted(path: Path) -> str:
    """As a shell takes it."""
    return shlex.quote(str(path))


def _report(results: Sequence[dict[str, Any]], seconds: float, folder: Path) -> str:
    """A line for each seed, what they are together, and what to do next."""
    lines = [f"{'seed':<8}{'training return':>18}{'evaluation':>24}   run folder"]
    for result in results:
        training = "no episode ended" if result["mean_return"] is None else as_text(result["mean_return"])
        evaluation = f"{as_text(result['eval_mean_return'])} ± {as_text(result['eval_std_return'])}"
        lines.append(f"{result['seed']:<8}{training:>18}{evaluation:>24}   {result['run_dir']}")
    scores = np.array([result["eval_mean_return"] for result in results])
    if scores.ndim == 1 and len(scores) > 1:
        picks = np.random.default_rng(0).integers(len(scores), size=(RESAMPLES, len(scores)))
        low, high = np.percentile(interquartile_mean(scores[picks].T), (2.5, 97.5))
        middle = float(interquartile_mean(scores))
        lines.append(
            f"{'all':<8}evaluation, interquartile mean {middle:.2f} [{low:.2f}, {high:.2f}], 95 % bootstrap over seeds"
        )
    steps = sum(result["env_steps"] for result in results)
    lines += [
        f"{'speed':<8}{steps / seconds:,.0f} steps/s of all seeds, {seconds:.1f} s in all",
        f"{'look':<8}{program_path('tensorboard')} --logdir {_quoted(folder)}",
        f"{'plot':<8}{program_path('rlopt-plot')} {_quoted(folder)} --out curves.png",
    ]
    return "\n".join(lines)
