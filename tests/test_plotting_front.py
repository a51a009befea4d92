"""Pictures of fronts: what is in them, that nothing is cut off, and what the command line refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from rlopt.cli import plot_main
from rlopt.pareto import ParetoArchive
from rlopt.plotting_front import PointSet, find_archives, front_figure, read_front


def archive(path, size=2, objectives=None, count=12):
    """A front on the sphere, saved."""
    rng = np.random.default_rng(size)
    made = ParetoArchive(size, objectives=objectives)
    for point in np.abs(rng.normal(size=(count, size))):
        made.add(point / np.linalg.norm(point) * np.arange(1, size + 1) * 100)
    made.save(path)
    return path


def texts(figure):
    axis = figure.axes[0]
    legends = [axis.get_legend(), *figure.legends]
    names = [axis.get_xlabel(), axis.get_ylabel(), *(label.get_text() for label in axis.get_xticklabels())]
    return names, [text.get_text() for legend in legends if legend is not None for text in legend.get_texts()]


@pytest.mark.parametrize("size", [2, 3, 5])
def test_names_points_and_the_known_front_are_shown_and_nothing_is_cut_off(size):
    points = np.random.default_rng(0).normal(size=(20, size)) * 1e5
    names = [f"quantity {k}" + ("\nin its unit" if size != 3 else "") for k in range(size)]
    figure = front_figure([PointSet("mine", points), PointSet("other", points[:1])], points + 1.0, names, "A title")
    figure.set_canvas(FigureCanvasAgg(figure))
    figure.canvas.draw()
    shown, legend = texts(figure)
    assert set(names if size > 3 else names[:2]) <= set(shown)
    assert legend == ["known front", "mine (20 points)", "other (1 point)"]
    box = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert box.x0 >= 0
    assert box.y0 >= 0
    assert box.x1 <= width
    assert box.y1 <= height


def test_the_lines_of_two_objectives_are_what_the_points_dominate_and_the_known_front_in_order():
    points = np.array([(3.0, 1.0), (1.0, 3.0), (1.0, 1.0), (2.0, 2.0)])
    known = np.array([(4.0, 1.0), (1.0, 4.0), (3.0, 3.0)])
    lines = front_figure([PointSet("mine", points)], known).axes[0].get_lines()
    assert [line.get_xydata().tolist() for line in lines] == [
        [[1.0, 4.0], [3.0, 3.0], [4.0, 1.0]],
        points.tolist(),
        [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]],
    ]
    assert lines[2].get_drawstyle() == "steps-pre"


@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_points_are_no_error(size):
    front_figure([PointSet("nothing", np.empty((0, size)))]).savefig("/dev/null", format="png")


def test_parallel_axes_have_scales_of_their_own():
    points = np.array([(0.0, 10.0, 5.0, 1.0), (1.0, -10.0, 5.0, 3.0)])
    lines = front_figure([PointSet("mine", points)]).axes[0].get_lines()
    assert [line.get_ydata().tolist() for line in lines] == [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: front_figure([]), "sets: expected at least one, got none"),
        (lambda: front_figure([PointSet("a", np.zeros((3, 1)))]), "at least two objectives, got 1"),
        (
            lambda: front_figure([PointSet("a", np.zeros((3, 2))), PointSet("b", np.zeros((3, 3)))]),
            r"sets: expected .*\[P, 2\]",
        ),
        (lambda: front_figure([PointSet("a", np.zeros((3, 2)))], np.zeros((3, 3))), r"known: expected an array \[P, 2\]"),
        (lambda: front_figure([PointSet("a", np.zeros((3, 2)))], None, ["x"]), "objectives: expected 2 names, got 1"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("text", ["treasure,time\n1.5,-1\n8,-3\n", "# of the paper\n1.5, -1\n\n8, -3", "1.5,-1\n8,-3"])
def test_a_known_front_is_a_point_a_line(tmp_path, text):
    (tmp_path / "front.csv").write_text(text)
    assert read_front(tmp_path / "front.csv").tolist() == [[1.5, -1.0], [8.0, -3.0]]


def test_a_known_front_may_be_an_archive(tmp_path):
    path = archive(tmp_path / "known.zip")
    assert (read_front(path) == ParetoArchive.load(path).points).all()


def test_archives_are_found_below_folders_and_by_name_each_once(tmp_path):
    first, second = archive(tmp_path / "a" / "1" / "pareto.zip"), archive(tmp_path / "a" / "other.zip")
    assert find_archives([tmp_path / "a", second, first, tmp_path]) == [first, second]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("ppo/dst/1/pareto", "mopg/dst/1/pareto"), ["ppo/dst/1", "mopg/dst/1"]),
        (("ppo/dst/1/pareto", "ppo/dst/2/pareto"), ["1", "2"]),
        (("ppo/dst/1/pareto",), ["ppo/dst/1"]),
        (("ppo/dst/1/pareto", "ppo/final"), ["dst/1", "final"]),
        (("ppo/pareto", "ppo/deeper/pareto"), ["ppo", "ppo/deeper"]),
    ],
)
def test_labels_are_what_tells_runs_apart(tmp_path, monkeypatch, names, labels):
    shown = []
    monkeypatch.setattr(
        "rlopt.plotting_front.front_figure", lambda sets, *_: shown.extend(each.label for each in sets) or Picture()
    )
    files = [str(archive(tmp_path / f"{name}.zip")) for name in names]
    plot_main([*files, "--front", "--out", str(tmp_path / "front.png")])
    assert shown == labels


class Picture:
    def savefig(self, *_, **__):
        pass


@pytest.mark.parametrize("size", [2, 3, 4])
def test_a_picture_from_the_command_line(tmp_path, capsys, size):
    names = [f"objective {letter}" for letter in "abcd"[:size]]
    archive(tmp_path / "runs" / "1" / "pareto.zip", size, names)
    archive(tmp_path / "runs" / "2" / "pareto.zip", size, names, count=30)
    known, out = archive(tmp_path / "known.zip", size, count=50), tmp_path / "pictures" / "front.png"
    plot_main([str(tmp_path / "runs"), "--front", "--known", str(known), "--out", str(out), "--title", "Front"])
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert capsys.readouterr().out == f"2 fronts → {out}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{two}", "--known", "{two}"], "known: expected --front with it"),
        (["{empty}", "--front"], "runs: expected run folders with a pareto.zip, found none at"),
        (["{two}", "{three}", "--front"], "runs: expected archives of one number of objectives, got 2 in .* and 3 in"),
        (["{two}", "--front", "--known", "{three}"], r"known: expected an array \[P, 2\], got one of shape"),
        (["{two}", "--front", "--known", "nowhere.csv"], "known: expected nowhere.csv to hold a point a line"),
        (["{two}", "--front", "--known", "{words}"], "known: expected .* could not convert string to float"),
        (["{two}", "--front", "--known", "{blank}"], "known: expected .* found none"),
        (["{words}", "--front"], "is not a whole file of rlopt"),
        (["{two}", "--front", "--out", "x.pdf"], "out: expected a name that ends in .png"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(tmp_path, capsys, arguments, message):
    places = {
        "two": archive(tmp_path / "two" / "pareto.zip").parent,
        "three": archive(tmp_path / "three.zip", 3),
        "empty": tmp_path / "empty",
        "words": tmp_path / "words.csv",
        "blank": tmp_path / "blank.csv",
    }
    places["empty"].mkdir()
    places["words"].write_text("1,2\nthree,4\n")
    places["blank"].write_text("a,b\n")
    with pytest.raises(SystemExit) as stopped:
        plot_main([argument.format(**places) for argument in arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("rlopt-plot: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
