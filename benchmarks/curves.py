"""What the benchmarks share that run many seeds: results in a file of lines, interquartile means with intervals, a pool."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np


def stored(path: Path) -> list[dict[str, Any]]:
    """All results so far, one JSON object a line."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_all(
    path: Path,
    train: Callable[[Any], dict[str, Any] | None],
    jobs: Iterable[Any],
    workers: int,
    say: Callable[[Any], str],
    runs_per_process: int = 10,
) -> None:
    """Train every job in processes of its own kind, and append each result as it comes; None is nothing to keep."""
    todo = list(jobs)
    print(f"{len(todo)} runs to do", flush=True)
    path.parent.mkdir(exist_ok=True)
    with multiprocessing.get_context("spawn").Pool(workers, maxtasksperchild=runs_per_process) as pool:
        for number, result in enumerate(pool.imap_unordered(train, todo), 1):
            if result is None:
                continue
            with path.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{number}/{len(todo)} {say(result)}", flush=True)


def interquartile_mean(values: np.ndarray) -> float:
    """The mean of the middle half, fractional weights at its ends."""
    ordered, n = np.sort(values), len(values)
    edges = np.clip(np.arange(n + 1) / n, 0.25, 0.75)
    return float((np.diff(edges) * ordered).sum() / 0.5)


def with_interval(values: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """The interquartile mean over seeds and its percentile-bootstrap 95 % interval."""
    random = np.random.default_rng(0)
    samples = [interquartile_mean(random.choice(values, len(values))) for _ in range(draws)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return interquartile_mean(values), float(low), float(high)
