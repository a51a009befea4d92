"""Learning curves from run folders: return over environment steps, with confidence bands over seeds."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rlopt.file_errors import one_line, shortened
from rlopt.regular_file import open_regular
from rlopt.run_folder import RunFolder

Floats = NDArray[np.float64]
Statistic = Literal["mean", "iqm"]

GRID_POINTS = 300
RESAMPLES = 1000
LONGEST_LABEL = 80
# Okabe and Ito's colours, which colour-blind readers can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


@dataclass(frozen=True)
class TrainingRun:
    """The finished episodes of one run.

    Attributes:
        label: what its curve is called; runs of one label and environment are seeds of one another.
        env: environment id.
        steps: [E], environment steps at each episode's end, never decreasing.
        returns: [E].
    """

    label: str
    env: str
    steps: Floats
    returns: Floats


@dataclass(frozen=True)
class Curve:
    """A line with a band, and the lines of single seeds; all [G]."""

    steps: Floats
    centre: Floats
    low: Floats
    high: Floats
    seeds: tuple[Floats, ...]


def find_runs(paths: Sequence[Path]) -> list[RunFolder]:
    """The run folders among the paths and anywhere below them, each once.

    Raises:
        ValueError: a path that holds none.
    """
    found: dict[Path, RunFolder] = {}
    for path in paths:
        files = sorted(path.rglob("episodes.csv"))
        if not files:
            raise ValueError(f"runs: expected run folders with an episodes.csv, found none at {path}")
        found |= {file.parent.resolve(): RunFolder(file.parent) for file in files}
    return list(found.values())


def read_run(folder: RunFolder, by: Sequence[str] = ()) -> TrainingRun:
    """The episodes of a run.

    Args:
        folder: where it is.
        by: settings that tell curves apart, besides the algorithm.

    Raises:
        ValueError: no config.yaml, a setting that it lacks, an episodes.csv without episodes or with damaged rows.
    """
    config = folder.read_config()
    if missing := [name for name in ("algo", "env", *by) if name not in config]:
        raise ValueError(f"by: {folder.config} has no setting {missing[0]!r}")
    label = ", ".join([plain_label(config["algo"]).upper(), *(f"{name} = {plain_label(config[name])}" for name in by)])
    try:
        with open_regular("runs", folder.episodes) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            numbers = array("d")  # a row of Python's would be many times what it is in the file
            for row in csv.DictReader(text):
                numbers.extend((float(row["env_steps"]), float(row["return"])))
        steps, returns = np.array(numbers).reshape(-1, 2).T
        if not (np.isfinite(steps) & np.isfinite(returns)).all():
            raise ValueError("a number that is not finite")
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"runs: {folder.episodes} is damaged, or its rewards are not single numbers: {error!r}") from None
    if not len(steps):
        raise ValueError(f"runs: in {folder.path} no episode ended")
    return TrainingRun(label, plain_label(config["env"]), steps, returns)


def plain_label(value: Any) -> str:
    """Text of a file for a picture: of bounded length, on one line, and no mathematics of matplotlib's."""
    text = one_line(str(value) if isinstance(value, str | int | float) else shortened(value))
    return (text if len(text) <= LONGEST_LABEL else f"{text[: LONGEST_LABEL - 1]}…").replace("$", r"\$")


def learning_curve(runs: Sequence[TrainingRun], window: int, statistic: Statistic = "mean") -> Curve:
    """Return over steps: for each seed the mean of its last `window` episodes, then a statistic over seeds.

    The band is 95 % bootstrap over seeds. Of one seed it is that of the mean in the window, from the standard error,
    and says nothing about other seeds.
    """
    last = min(run.steps[-1] for run in runs)
    first = min(max(run.steps[0] for run in runs), last)
    grid = np.linspace(first, last, GRID_POINTS)
    smoothed = [trailing_mean(run, grid, window) for run in runs]
    seeds = np.stack([mean for mean, _ in smoothed])
    if len(runs) == 1:
        mean, error = smoothed[0]
        return Curve(grid, mean, mean - 1.96 * error, mean + 1.96 * error, (mean,))
    function = STATISTICS[statistic]
    picks = np.random.default_rng(0).integers(len(runs), size=(RESAMPLES, len(runs)))
    low, high = np.percentile(function(seeds[picks].swapaxes(0, 1)), (2.5, 97.5), axis=0)
    return Curve(grid, function(seeds), low, high, tuple(seeds))


def trailing_mean(run: TrainingRun, grid: Floats, window: int) -> tuple[Floats, Floats]:
    """At each step of the grid [G], the mean return of the last `window` episodes, and its standard error."""
    ends = np.maximum(np.searchsorted(run.steps, grid, side="right"), 1)
    starts = np.maximum(ends - window, 0)
    counts = ends - starts
    shifted = run.returns - run.returns.mean()  # sums of squares keep their digits
    sums, squares = (np.concatenate([[0.0], np.cumsum(values)]) for values in (shifted, shifted**2))
    means = (sums[ends] - sums[starts]) / counts
    variances = np.maximum((squares[ends] - squares[starts]) / counts - means**2, 0.0)
    return means + run.returns.mean(), np.sqrt(variances / np.maximum(counts - 1, 1))


def interquartile_mean(values: Floats) -> Floats:
    """The mean over the first axis without its lowest and highest quarter (Agarwal et al., arXiv:2108.13264)."""
    count = len(values)
    # Each value stands for [i, i+1]/count of the mass; the share of it between 1/4 and 3/4 is its weight.
    edges = np.clip(np.arange(count + 1) / count, 0.25, 0.75)
    return np.tensordot(np.diff(edges) * 2.0, np.sort(values, axis=0), axes=1)


def _mean(values: Floats) -> Floats:
    return values.mean(0)


STATISTICS: dict[str, Callable[[Floats], Floats]] = {"mean": _mean, "iqm": interquartile_mean}


def draw(runs: Sequence[TrainingRun], out: Path, window: int, statistic: Statistic = "mean", title: str | None = None) -> None:
    """A PNG with a panel for each environment and a curve for each label."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    envs = sorted({run.env for run in runs})
    labels = sorted({run.label for run in runs})
    columns = min(len(envs), 3)
    rows = -(-len(envs) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(max(6.4, 4.6 * columns), 4.0 * rows), squeeze=False, layout="constrained"
    )
    for axis, env in zip(axes.flat, envs):
        for label in labels:
            if group := [run for run in runs if (run.env, run.label) == (env, label)]:
                colour = COLOURS[labels.index(label) % len(COLOURS)]
                _draw_curve(axis, learning_curve(group, window, statistic), f"{label} ({_count(group)})", colour)
        _dress(axis, env)
    for axis in axes.flat[len(envs) :]:
        axis.remove()
    figure.supylabel(f"episode return, mean of last {window}", fontsize="medium")
    figure.supxlabel("environment steps", fontsize="medium")
    figure.suptitle(title or "")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)
    plt.close(figure)


def _draw_curve(axis: Any, curve: Curve, label: str, colour: str) -> None:
    if len(curve.seeds) > 1:
        for seed in curve.seeds:
            axis.plot(curve.steps, seed, color=colour, linewidth=0.7, alpha=0.35)
    axis.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(curve.steps, curve.centre, color=colour, linewidth=1.8, label=label)


def _dress(axis: Any, env: str) -> None:
    from matplotlib.ticker import EngFormatter

    axis.set_title(env, fontsize="medium")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_xlim(left=0)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")


def _count(group: Sequence[TrainingRun]) -> str:
    return "1 seed" if len(group) == 1 else f"{len(group)} seeds"
