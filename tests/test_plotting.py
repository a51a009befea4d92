"""Learning curves: smoothing and bands against numbers computed by hand, and pictures that appear."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from rlopt.cli import plot_main
from rlopt.plotting import TrainingRun, interquartile_mean, learning_curve, trailing_mean
from rlopt.run_folder import RunFolder


def run(steps: list[float], returns: list[float]) -> TrainingRun:
    return TrainingRun("PPO", "CartPole-v1", np.array(steps), np.array(returns))


def write_run(path: Path, env: str, rows: list[tuple[int, float]], **settings: object) -> Path:
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.write_description({"algo": "ppo", "env": env, **settings})
    text = "".join(f"{steps},0,{value},10,0.1\n" for steps, value in rows)
    folder.episodes.write_text("env_steps,env,return,length,seconds\n" + text)
    return path


def test_trailing_mean_is_of_the_last_episodes_at_each_step() -> None:
    means, errors = trailing_mean(run([10, 20, 30], [1.0, 3.0, 8.0]), np.array([10.0, 19.0, 20.0, 35.0]), window=2)
    assert means == pytest.approx([1.0, 1.0, 2.0, 5.5])
    assert errors == pytest.approx([0.0, 0.0, np.std([1, 3], ddof=1) / np.sqrt(2), np.std([3, 8], ddof=1) / np.sqrt(2)])


def test_trailing_mean_keeps_its_digits_far_from_zero() -> None:
    _, errors = trailing_mean(run([1, 2, 3], [1e9, 1e9 + 1, 1e9 + 2]), np.array([3.0]), window=3)
    assert errors == pytest.approx([1 / np.sqrt(3)])


def test_one_seed_has_the_interval_of_its_window() -> None:
    curve = learning_curve([run([10, 20], [0.0, 2.0])], window=10)
    assert curve.centre[-1] == pytest.approx(1.0)
    assert curve.high[-1] - curve.centre[-1] == pytest.approx(1.96)
    assert curve.low[0] == curve.high[0] == 0.0


def test_the_band_over_seeds_lies_within_them_and_around_the_mean() -> None:
    runs = [run([10, 100], [value, value]) for value in (1.0, 2.0, 6.0)]
    curve = learning_curve(runs, window=1)
    assert curve.centre == pytest.approx(3.0)
    assert (curve.low >= 1.0).all()
    assert (curve.low < curve.centre).all()
    assert (curve.centre < curve.high).all()
    assert (curve.high <= 6.0).all()


def test_curves_end_where_the_shortest_run_does() -> None:
    curve = learning_curve([run([10, 100], [0, 0]), run([20, 80], [0, 0])], window=1)
    assert (curve.steps[0], curve.steps[-1]) == (20, 80)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([5.0], 5.0), ([1.0, 3.0], 2.0), ([0.0, 1.0, 2.0, 99.0], 1.5), ([0.0, 1.0, 9.0], (1 + 0.25 * 9) / 1.5)],
)
def test_interquartile_mean(values: list[float], expected: float) -> None:
    assert float(interquartile_mean(np.array(values))) == pytest.approx(expected)


def test_a_picture_of_several_environments_and_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [(100 * i, float(i)) for i in range(1, 20)]
    for number, rate in enumerate((0.1, 0.1, 0.2)):
        write_run(tmp_path / "runs" / str(number), "CartPole-v1", rows, learning_rate=rate)
    write_run(tmp_path / "runs" / "other", "Pendulum-v1", rows, learning_rate=0.1)
    out = tmp_path / "pictures" / "curves.png"
    plot_main([str(tmp_path / "runs"), "--out", str(out), "--by", "learning_rate", "--statistic", "iqm", "--title", "Both"])
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert capsys.readouterr().out == f"4 runs → {out}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs: expected at least one run folder"),
        (["nowhere"], "runs: expected run folders with an episodes.csv, found none at nowhere"),
        (["{run}", "--by", "colour"], "by: .* has no setting 'colour'"),
        (["{run}", "--window", "0"], "window: expected a whole number of at least 1, got 0"),
        (["{run}", "--out", "x.pdf"], "out: expected a name that ends in .png, got 'x.pdf'"),
        (["{empty}"], "no episode ended"),
        (["{damaged}"], "episodes.csv is damaged"),
        (["{foreign}"], "run: expected .* to be a run folder with a config.yaml"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    places = {
        "run": write_run(tmp_path / "run", "CartPole-v1", [(10, 1.0)]),
        "empty": write_run(tmp_path / "empty", "CartPole-v1", []),
        "damaged": write_run(tmp_path / "damaged", "CartPole-v1", []),
        "foreign": tmp_path / "foreign",
    }
    (places["damaged"] / "episodes.csv").write_text("env_steps,return\n10,\n")
    places["foreign"].mkdir()
    (places["foreign"] / "episodes.csv").write_text("")
    with pytest.raises(SystemExit) as stopped:
        plot_main([argument.format(**places) for argument in arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert error.startswith("rlopt-plot: error: ")
    assert error.count("\n") == 1
    assert re.search(message, error)
