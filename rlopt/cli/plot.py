"""`rlopt-plot`: learning curves or Pareto fronts of run folders as a picture."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from rlopt.cli.errors import bad_input_exits
from rlopt.plotting import Statistic, draw, find_runs, read_run
from rlopt.plotting_front import draw_fronts, find_archives, read_front

PROGRAM = "rlopt-plot"
DESCRIPTION = """Draw learning curves of run folders to a PNG file.

There is a panel for each environment and a curve for each algorithm. Runs of one algorithm in one environment count
as seeds: thin lines are single seeds, the thick one is their mean with a 95 % bootstrap band. With one seed, the band
is the 95 % interval of the mean over the window.

With --front, the picture shows the Pareto fronts that the runs saved, and of the other flags only --known, --out and
--title count.

Examples:
    rlopt-plot runs
    rlopt-plot runs/ppo/CartPole-v1/1 runs/ppo/CartPole-v1/2 --out cartpole.png
    rlopt-plot runs --by learning_rate --window 20 --statistic iqm
    rlopt-plot runs --front --known treasures.csv --out front.png"""


@dataclass(frozen=True)
class PlotSettings:
    """Flags of `rlopt-plot`."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, or folders that hold some."""
    out: Path = Path("curves.png")
    """The picture, a .png file."""
    window: int = 100
    """Episodes that each point is the mean of, those that ended last."""
    statistic: Statistic = "mean"
    """Over seeds: "mean", or "iqm", the mean without the lowest and the highest quarter."""
    by: tuple[str, ...] = ()
    """Settings of config.yaml that tell curves apart, besides the algorithm."""
    title: str | None = None
    """Above the picture."""
    front: bool = False
    """Draw the Pareto fronts of the runs, not their learning curves."""
    known: Path | None = None
    """With --front, the true front: a .csv file with a point a line, or a saved archive."""


def plot_main(argv: Sequence[str] | None = None) -> None:
    """Draw learning curves or fronts as the command line says.

    Raises:
        SystemExit: 2 for bad input, after a message.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with bad_input_exits(PROGRAM):
        settings = tyro.cli(PlotSettings, args=arguments, prog=PROGRAM, description=DESCRIPTION)
        if not settings.runs:
            raise ValueError("runs: expected at least one run folder, got none")
        if settings.window < 1:
            raise ValueError(f"window: expected a whole number of at least 1, got {settings.window}")
        if settings.out.suffix != ".png":
            raise ValueError(f"out: expected a name that ends in .png, got {str(settings.out)!r}")
        if settings.known is not None and not settings.front:
            raise ValueError("known: expected --front with it, as learning curves have no front")
        if settings.front:
            files = find_archives(settings.runs)
            known = None if settings.known is None else read_front(settings.known)
            draw_fronts(files, settings.out, known, settings.title)
            print(f"{len(files)} front{'s' if len(files) > 1 else ''} → {settings.out}")
            return
        runs = [read_run(folder, settings.by) for folder in find_runs(settings.runs)]
        draw(runs, settings.out, settings.window, settings.statistic, settings.title)
    print(f"{len(runs)} run{'s' if len(runs) > 1 else ''} → {settings.out}")
