"""The seeds of one process of `--num-seeds`: all at once where they have a batched form, else one after another."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import gymnasium as gym
import torch

from rlopt.cli.settings import Settings, parse_settings
from rlopt.cli.signals import stopping_on_signals
from rlopt.cli.train import PROGRAM, Run, concluded, learn, prepare
from rlopt.file_errors import one_line
from rlopt.flight_recorder import FlightRecorder
from rlopt.run_folder import EpisodeLog
from rlopt.together import learn_together, why_not_together

SECONDS_BETWEEN_REPORTS = 0.25
# What a user can cause.
ERRORS = (ValueError, ImportError, OSError, FloatingPointError, RuntimeError, gym.error.Error)


def train_share(argv: list[str], seeds: Sequence[int], folder: str, pipe: Connection) -> None:
    """Train these seeds, each in FOLDER/seed-S.

    The parent is told pairs: ("begins", why not all at once, or None), ("steps", of all so far), ("result", the JSON object of
    a run), ("failed", a line), ("refused", what is wrong with the settings, before anything was made).
    """
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C is the parent's to forward
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    parent = Parent(pipe)
    with ExitStack() as stack:

        def prepared(seed: int) -> Run:
            quiet: dict[str, Any] = {"verbose": 0, "progress": False, "json": False}
            run = replace(settings.run, seed=seed, num_seeds=1, run_name=f"{folder}/seed-{seed}", **quiet)
            return stack.enter_context(contextlib.closing(prepare(replace(settings, run=run))))

        try:
            settings: Settings = parse_settings(argv, PROGRAM)
            first = prepared(seeds[0])
        except ERRORS as error:
            parent.tell("refused", one_line(str(error)))
            return
        runs = [first]
        if (reason := _why_not_together(runs)) is None:
            runs += [prepared(seed) for seed in seeds[1:]]
            reason = _why_not_together(runs)
        with _reporting(runs, parent), stopping_on_signals(lambda: _stop(runs)) as stopped:
            parent.tell("begins", reason)
            if reason is None:
                _finish(runs, _together(runs), bool(stopped), parent)
                return
            for number, seed in enumerate(seeds):
                if stopped:
                    return
                if number:
                    runs.append(prepared(seed))
                _finish(runs[-1:], _outcome(runs[-1:], partial(learn, runs[-1])), bool(stopped), parent)


def _why_not_together(runs: Sequence[Run]) -> str | None:
    if runs[0].callbacks:
        return "evaluations under way have no batched form"
    return why_not_together([run.agent for run in runs])


def _together(runs: Sequence[Run]) -> float | str:
    """Seconds of all at once, or what went wrong."""
    chosen, agents = runs[0].settings.run, [run.agent for run in runs]
    recorders = [FlightRecorder(run.folder.faults, max_rollbacks=chosen.max_rollbacks) for run in runs]
    more: dict[str, Any] = {"checkpoints": [run.checkpoints for run in runs], "recorders": recorders}
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(EpisodeLog(run.folder.episodes, run.agent))
        return _outcome(runs, partial(learn_together, agents, chosen.total_timesteps, **more))  # type: ignore[arg-type]


def _outcome(runs: Sequence[Run], training: Callable[[], Any]) -> float | str:
    """Seconds of a training, or what went wrong in it; the agents are then saved where that can be."""
    began = time.perf_counter()
    try:
        training()
    except ERRORS as error:
        with contextlib.suppress(OSError):
            for run in runs:
                run.agent.save(run.folder.model)
        return one_line(str(error))
    return time.perf_counter() - began


def _finish(runs: Sequence[Run], outcome: float | str, stopped: bool, parent: Parent) -> None:
    """Save and evaluate every run, and tell the parent."""
    for run in runs:
        name = f"seed {run.settings.run.seed}"
        try:
            if isinstance(outcome, str):
                parent.tell("failed", f"{name}: {outcome}")
            elif stopped:
                run.agent.save(run.folder.model)
            else:
                parent.tell("result", concluded(run, outcome))
        except ERRORS as error:
            parent.tell("failed", f"{name}: {one_line(str(error))}")


def _stop(runs: Sequence[Run]) -> None:
    """Let all trainings end with a checkpoint."""
    for run in runs:
        run.checkpoints.request_stop()


class Parent:
    """The process that all results are for; messages of two threads do not mix."""

    def __init__(self, pipe: Connection):
        self._pipe, self._lock = pipe, threading.Lock()

    def tell(self, kind: str, what: Any) -> bool:
        """Whether it is still there to hear."""
        try:
            with self._lock:
                self._pipe.send((kind, what))
        except OSError:
            return False
        return True


@contextmanager
def _reporting(runs: Sequence[Run], parent: Parent) -> Iterator[None]:
    """While this lasts, tell the parent how many steps all runs have made; without a parent they are stopped."""
    over = threading.Event()

    def report() -> None:
        while not over.wait(SECONDS_BETWEEN_REPORTS):
            if not parent.tell("steps", sum(run.agent.num_timesteps for run in runs)):
                _stop(runs)

    thread = threading.Thread(target=report, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
