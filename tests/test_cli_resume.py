"""`rlopt-train` stopped by signals and gone on with."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from rlopt import PPO
from rlopt.cli import train_main

FLAGS = ["--env", "CartPole-v1", "--num-envs", "2", "--n-steps", "32", "--batch-size", "64", "--n-epochs", "2"]
MORE = ["--eval-episodes", "2", "--eval-freq", "256", "--save-freq", "128", "--seed", "3", "--no-progress"]


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "rlopt", "train", *flags]


def flags_of(folder: Path, steps: int) -> list[str]:
    return [*FLAGS, *MORE, "--total-timesteps", str(steps), "--run-dir", str(folder), "--run-name", "run"]


def whole_run(folder: Path, steps: int) -> Path:
    train_main(flags_of(folder, steps))
    return folder / "ppo" / "CartPole-v1" / "run"


def rows(path: Path, *leave_out: str) -> list[list[str]]:
    with path.open() as file:
        table = list(csv.DictReader(file))
    return [[value for name, value in sorted(row.items()) if not name.startswith(leave_out)] for row in table]


def assert_same_run(first: Path, second: Path) -> None:
    mine, theirs = (PPO.load(folder / "model.zip") for folder in (first, second))
    assert torch.equal(mine.state.theta, theirs.state.theta)
    assert rows(first / "episodes.csv", "seconds") == rows(second / "episodes.csv", "seconds")
    assert rows(first / "progress.csv", "time/", "result/steps") == rows(second / "progress.csv", "time/", "result/steps")
    evaluations = [np.load(folder / "evaluations.npz") for folder in (first, second)]
    assert all(np.array_equal(evaluations[0][name], evaluations[1][name]) for name in ("timesteps", "results"))
    assert (first / "best_model.zip").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)])
def test_a_signal_ends_the_run_cleanly_and_resume_goes_on_exactly(number: int, code: int, tmp_path: Path) -> None:
    steps = 6_000
    process = subprocess.Popen(
        command(*flags_of(tmp_path / "b", steps)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    folder = tmp_path / "b" / "ppo" / "CartPole-v1" / "run"
    while not (folder / "episodes.csv").exists() or len((folder / "episodes.csv").read_text().splitlines()) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "stopping after this iteration; again to stop at once" in errors
    assert f"--resume {folder}" in errors
    stopped = PPO.load(folder / "model.zip").num_timesteps
    assert 0 < stopped < steps
    # In processes of their own: this one may have another number of threads, which rounds in another way.
    for rest in (["--resume", str(folder), "--no-progress"], flags_of(tmp_path / "a", steps)):
        subprocess.run(command(*rest), check=True, capture_output=True)
    assert_same_run(tmp_path / "a" / "ppo" / "CartPole-v1" / "run", folder)
    assert yaml.safe_load((folder / "config.yaml").read_text())["total_timesteps"] == steps


def test_a_finished_run_can_be_made_longer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = whole_run(tmp_path / "b", 512)
    train_main(["--resume", str(folder), "--total-timesteps", "1024", "--no-progress"])
    assert "1,024 steps from 512 on" in capsys.readouterr().out
    # The learning rate is constant here, so that the first half does not know how long the whole is.
    first, second = (PPO.load(path / "model.zip") for path in (whole_run(tmp_path / "a", 1024), folder))
    assert first.num_timesteps == second.num_timesteps == 1024


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    folder = whole_run(tmp_path / "b", 512)
    for path in (folder / "checkpoints").glob("*.zip"):
        path.unlink()
    train_main(["--resume", str(folder), "--no-progress"])
    assert_same_run(whole_run(tmp_path / "a", 512), folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "{tmp}"], "resume: expected the folder of a run, with a config.yaml, got {tmp}"),
        (["--resume", "{run}", "--config", "x.yaml"], "config: --resume reads the run's own settings; give one of the two"),
        (
            ["--resume", "{run}", "--env", "Acrobot-v1"],
            "checkpoints: the newest file in {run}/checkpoints has observation_space",
        ),
        (["--keep-last", "0"], "keep_last: expected a whole number of at least 1, got 0"),
        (["--max-rollbacks", "-1"], "max_rollbacks: expected a whole number of at least 0, got -1"),
        (["--env-timeout", "3", "--backend", "sync"], "timeout: CartPole-v1 does not run in worker processes"),
    ],
)
def test_bad_input_is_one_message_and_loses_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    run = whole_run(tmp_path / "b", 128)
    before = (run / "model.zip").read_bytes()
    capsys.readouterr()
    known = {"tmp": tmp_path, "run": run}
    with pytest.raises(SystemExit) as stopped:
        train_main([*(argument.format(**known) for argument in arguments), "--no-progress", "--run-dir", str(tmp_path / "c")])
    assert stopped.value.code == 2
    assert message.format(**known) in capsys.readouterr().err
    assert (run / "model.zip").read_bytes() == before
