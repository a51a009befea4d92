"""Pictures of Pareto fronts: two objectives in the plane, three in space, more on parallel axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from rlopt.indicators import Floats, check_points, nondominated
from rlopt.pareto import FILE_NAME, ParetoArchive
from rlopt.plotting import COLOURS, plain_label
from rlopt.regular_file import read_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST_FRONT = 2**22  # bytes of a text file
MOST_OBJECTIVES = 100  # each has an axis
MARKERS = "osD^vP*"
KNOWN_COLOUR = "0.45"


@dataclass(frozen=True)
class PointSet:
    """Points of one colour.

    Attributes:
        label: in the legend.
        points: [P, K]; P may be 0.
    """

    label: str
    points: Floats


def front_figure(
    sets: Sequence[PointSet], known: ArrayLike | None = None, objectives: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """A figure of sets of points, more being better on each axis.

    Of two objectives, a step line shows what each set dominates. Of more than three, a line is one point, and each axis has a
    scale of its own.

    Args:
        sets: at least one, all of one K ≥ 2.
        known: [F, K], the true front.
        objectives: K names for the axes.
        title: above the picture.

    Raises:
        ValueError: no sets, one objective, arrays or names of another number of objectives.
    """
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and may want a screen

    if not sets:
        raise ValueError("sets: expected at least one, got none")
    num_objectives = np.shape(sets[0].points)[-1]
    if num_objectives < 2:
        raise ValueError(f"sets: expected points of at least two objectives, got {num_objectives}")
    if num_objectives > MOST_OBJECTIVES:
        raise ValueError(f"sets: expected points of at most {MOST_OBJECTIVES} objectives, got {num_objectives}")
    sets = [PointSet(each.label, check_points("sets", each.points, num_objectives)) for each in sets]
    truth = None if known is None else check_points("known", known, num_objectives)
    names = [f"objective {k}" for k in range(num_objectives)] if objectives is None else list(objectives)
    if len(names) != num_objectives:
        raise ValueError(f"objectives: expected {num_objectives} names, got {len(names)}")
    figure = Figure(figsize=(max(6.4, 1.6 * num_objectives), 4.8), layout="constrained")
    draw = {2: _in_the_plane, 3: _in_space}.get(num_objectives, _on_parallel_axes)
    draw(figure, sets, truth, names)
    if title:
        figure.suptitle(title)
    return figure


def find_archives(paths: Sequence[Path]) -> list[Path]:
    """The files of Pareto archives among the paths and anywhere below them, each once.

    Raises:
        ValueError: a path that is none and holds none.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        files = [path] if path.is_file() else sorted(path.rglob(FILE_NAME))
        if not files:
            raise ValueError(f"runs: expected run folders with a {FILE_NAME}, found none at {path}")
        found |= {file.resolve(): file for file in files}
    return list(found.values())


def read_front(path: Path) -> Floats:
    """The points [F, K] of a known front: a saved archive, or a text file with K numbers a line, separated by commas.

    A first line of names is skipped, as are lines that begin with #.

    Raises:
        ValueError: no such file, or neither of these.
    """
    if path.suffix == ".zip":
        return ParetoArchive.load(path).points
    try:
        text = read_text("known", path, LARGEST_FRONT)
        lines = [line for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
        rows = [line.split(",") for line in lines]
        if rows and not _is_number(rows[0][0]):
            del rows[0]
        points = np.array([[float(cell) for cell in row] for row in rows])
    except (OSError, ValueError) as error:
        reason = str(error).removeprefix("known: ")
        raise ValueError(f"known: expected {path} to hold a point a line, its numbers separated by commas: {reason}") from None
    if not points.size:
        raise ValueError(f"known: expected {path} to hold a point a line, found none")
    return check_points("known", points)


def draw_fronts(files: Sequence[Path], out: Path, known: Floats | None = None, title: str | None = None) -> None:
    """A PNG of the fronts in saved archives.

    Args:
        files: of archives with one number of objectives; the first one's names are on the axes.
        out: the picture.
        known: [F, K], the true front.
        title: above the picture.

    Raises:
        ValueError: files that are no archives, or archives of different numbers of objectives.
    """
    archives = [ParetoArchive.load(file) for file in files]
    for archive, file in zip(archives, files):
        if archive.num_objectives != archives[0].num_objectives:
            raise ValueError(
                f"runs: expected archives of one number of objectives, got {archives[0].num_objectives} in {files[0]} "
                f"and {archive.num_objectives} in {file}"
            )
    sets = [PointSet(label, archive.points) for label, archive in zip(_labels(files), archives)]
    names = archives[0].objectives and [plain_label(name) for name in archives[0].objectives]
    out.parent.mkdir(parents=True, exist_ok=True)
    front_figure(sets, known, names, title).savefig(out, dpi=150)


def _in_the_plane(figure: Figure, sets: list[PointSet], known: Floats | None, names: list[str]) -> None:
    axis = figure.subplots()
    if known is not None:
        front = known[np.lexsort((known[:, 1], known[:, 0]))]
        axis.plot(*front.T, color=KNOWN_COLOUR, linewidth=1.2, marker="o", fillstyle="none", markersize=8, label="known front")
    for each, colour, marker in zip(sets, cycle(COLOURS), cycle(MARKERS)):
        axis.plot(*each.points.T, linestyle="none", color=colour, marker=marker, markersize=5, label=_counted(each))
        best = each.points[nondominated(each.points)]
        best = best[np.argsort(best[:, 0])]
        axis.step(*best.T, where="pre", color=colour, linewidth=0.8, alpha=0.6)
    axis.set_xlabel(names[0])
    axis.set_ylabel(names[1])
    axis.margins(0.06)
    axis.grid(color="0.9", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize="small")


def _in_space(figure: Figure, sets: list[PointSet], known: Floats | None, names: list[str]) -> None:
    from matplotlib.ticker import MaxNLocator

    axis: Any = figure.add_subplot(projection="3d")
    if known is not None:
        axis.scatter(*known.T, s=40, facecolors="none", edgecolors=KNOWN_COLOUR, label="known front")
    for each, colour, marker in zip(sets, cycle(COLOURS), cycle(MARKERS)):
        axis.scatter(*each.points.T, s=22, color=colour, marker=marker, label=_counted(each))
    axis.set(xlabel=names[0], ylabel=names[1], zlabel=names[2])
    for each_axis in (axis.xaxis, axis.yaxis, axis.zaxis):
        each_axis.labelpad = 8.0
        each_axis.set_major_locator(MaxNLocator(5))
    axis.legend(frameon=False, fontsize="small", loc="upper left")


def _on_parallel_axes(figure: Figure, sets: list[PointSet], known: Floats | None, names: list[str]) -> None:
    from matplotlib.lines import Line2D

    shown = [each.points for each in sets] + ([] if known is None else [known])
    everything = np.concatenate(shown)
    low, high = (everything.min(0), everything.max(0)) if len(everything) else np.zeros((2, len(names)))
    span = np.where(high > low, high - low, 1.0)
    places = np.arange(len(names))
    axis = figure.subplots()
    handles = []
    if known is not None:
        axis.plot(places, ((known - low) / span).T, color=KNOWN_COLOUR, linewidth=0.7, linestyle="--", alpha=0.7)
        handles.append(Line2D([], [], color=KNOWN_COLOUR, linewidth=1.2, linestyle="--", label="known front"))
    for each, colour in zip(sets, cycle(COLOURS)):
        axis.plot(places, ((each.points - low) / span).T, color=colour, linewidth=1.2, marker="o", markersize=3, alpha=0.8)
        handles.append(Line2D([], [], color=colour, linewidth=1.6, marker="o", markersize=3, label=_counted(each)))
    axis.vlines(places, 0.0, 1.0, color="0.6", linewidth=0.8, zorder=0)
    for place, least, most in zip(places.tolist(), low, high):
        text: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "fontsize": "small"}
        axis.annotate(f"{most:.4g}", (place, 1.0), (0, 5), va="bottom", **text)
        axis.annotate(f"{least:.4g}", (place, 0.0), (0, -5), va="top", **text)
    axis.set_xticks(places, names)
    axis.tick_params(length=0)
    axis.set_yticks([])
    axis.set_ylim(-0.08, 1.08)
    axis.spines[:].set_visible(False)
    figure.legend(handles=handles, frameon=False, fontsize="small", loc="outside lower center", ncols=3)


def _counted(each: PointSet) -> str:
    return f"{each.label} (1 point)" if len(each.points) == 1 else f"{each.label} ({len(each.points)} points)"


def _labels(files: Sequence[Path]) -> list[str]:
    """The folders of the files, without what all have in common; a file of another name has its own."""
    places = [file.resolve().parent if file.name == FILE_NAME else file.resolve().with_suffix("") for file in files]
    if len(places) == 1:
        return ["/".join(places[0].parts[-3:])]  # algorithm, environment and run
    shared = 0
    while len({place.parts[shared] for place in places}) == 1 and all(len(place.parts) > shared + 1 for place in places):
        shared += 1
    return ["/".join(place.parts[shared:]) for place in places]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
