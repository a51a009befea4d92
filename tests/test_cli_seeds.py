"""`rlopt-train --num-seeds`."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rlopt import PPO
from rlopt.cli import train_main

FLAGS = ["--env", "CartPole-v1", "--num-envs", "4", "--n-steps", "16", "--batch-size", "32", "--n-epochs", "2"]
MORE = ["--total-timesteps", "640", "--eval-episodes", "2", "--no-progress", "--seed", "5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """The folder of three seeds, the JSON object and what was said."""
    folder = tmp_path_factory.mktemp("seeds")
    command = [sys.executable, "-m", "rlopt", "train", *FLAGS, *MORE, "--num-seeds", "3", "--json", "--run-dir", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return folder / "ppo" / "CartPole-v1" / "1", json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_every_seed_has_a_run_folder_of_its_own(run):
    folder, result, said = run
    assert sorted(path.name for path in folder.iterdir()) == ["seed-5", "seed-6", "seed-7"]
    assert [one["seed"] for one in result["runs"]] == [5, 6, 7]
    assert result["run_dir"] == str(folder)
    for one in result["runs"]:
        path = Path(one["run_dir"])
        assert path == folder / f"seed-{one['seed']}"
        configuration = yaml.safe_load((path / "config.yaml").read_text())
        assert configuration["seed"] == one["seed"]
        assert "num_seeds" not in configuration
        with (path / "episodes.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == one["episodes"]
        assert {int(row["env"]) for row in rows} <= set(range(4))
        assert [int(row["env_steps"]) for row in rows] == sorted(int(row["env_steps"]) for row in rows)
        assert int(rows[-1]["env_steps"]) <= 640
        assert (path / "checkpoints" / "rl_model_640_steps.zip").exists()
    assert "all of each at once" in said
    assert "interquartile mean" in said


def test_each_is_the_run_that_one_seed_gives(run, tmp_path):
    folder, result, _ = run
    train_main([*FLAGS, *MORE, "--seed", "6", "--run-dir", str(tmp_path)])
    alone, together = (PPO.load(path / "model.zip") for path in (tmp_path / "ppo" / "CartPole-v1" / "1", folder / "seed-6"))
    torch.testing.assert_close(alone.state.theta, together.state.theta, atol=1e-5, rtol=0)
    assert result["runs"][1]["env_steps"] == alone.num_timesteps


def test_one_of_them_is_resumed(run, capsys):
    folder, _, _ = run
    train_main(["--resume", str(folder / "seed-7"), "--total-timesteps", "768", "--no-progress", "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["env_steps"] == 768


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "rlopt", "train", "--num-seeds", "2", "--no-progress", *flags]


def test_what_has_no_batched_form_is_trained_one_after_another(tmp_path):
    flags = ["--algo", "reinforce", "--env", "CartPole-v1", "--total-timesteps", "300", "--eval-episodes", "2"]
    done = subprocess.run(command(*flags, "--run-dir", str(tmp_path)), capture_output=True, text=True, check=True)
    assert "one after another in each (REINFORCE has no batched form" in done.stdout
    assert all((tmp_path / "reinforce" / "CartPole-v1" / "1" / f"seed-{seed}" / "model.zip").exists() for seed in (0, 1))


def test_settings_that_cannot_work_leave_no_folder(tmp_path):
    done = subprocess.run(
        command("--learning-rate", "-1", "--run-dir", str(tmp_path)), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("rlopt-train: error: learning_rate")
    assert len(done.stderr.splitlines()) == 1
    assert not list((tmp_path / "ppo" / "CartPole-v1").iterdir())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-seeds", "0"], "num_seeds: expected a whole number of at least 1"),
        (["--seed", "2147483647", "--num-seeds", "2"], "seed"),
    ],
)
def test_numbers_out_of_range(flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_main(flags)
    assert message in capsys.readouterr().err


def test_many_runs_are_not_resumed_as_one(run, capsys):
    with pytest.raises(SystemExit, match="2"):
        train_main(["--resume", str(run[0] / "seed-5"), "--num-seeds", "2"])
    assert "num_seeds: --resume goes on with one run" in capsys.readouterr().err


def test_a_signal_leaves_checkpoints_of_all(tmp_path):
    flags = [*FLAGS, "--compile", "False", "--total-timesteps", "10000000", "--run-dir", str(tmp_path)]
    process = subprocess.Popen(command(*flags), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "ppo" / "CartPole-v1" / "1"
    logs = [folder / f"seed-{seed}" / "episodes.csv" for seed in (0, 1)]
    deadline = time.monotonic() + 120
    while not all(log.exists() and len(log.read_text().splitlines()) > 5 for log in logs):
        assert time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert "to go on, each seed by itself" in said
    for log in logs:
        steps = [int(path.name.split("_")[2]) for path in (log.parent / "checkpoints").glob("*.zip")]
        assert max(steps) > 0
        assert (log.parent / "model.zip").exists()


def test_an_early_ctrl_c_leaves_nothing(tmp_path):
    process = subprocess.Popen(
        command(*FLAGS, "--run-dir", str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "ppo" / "CartPole-v1" / "1"
    while not folder.exists():
        time.sleep(0.02)
    time.sleep(0.3)  # the processes are importing
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "SIGINT: stopping after this iteration" in said


def test_without_its_parent_a_process_ends_with_checkpoints(tmp_path):
    flags = [*FLAGS, "--compile", "False", "--total-timesteps", "10000000", "--run-dir", str(tmp_path)]
    process = subprocess.Popen(command(*flags), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folders = [tmp_path / "ppo" / "CartPole-v1" / "1" / f"seed-{seed}" for seed in (0, 1)]
    deadline = time.monotonic() + 120
    while not all((folder / "episodes.csv").exists() and (folder / "episodes.csv").stat().st_size > 200 for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.wait()
    while not all((folder / "model.zip").exists() for folder in folders):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_update_that_went_wrong_is_undone(tmp_path):
    done = subprocess.run(
        command(
            *FLAGS, "--total-timesteps", "512", "--learning-rate", "1e37", "--eval-episodes", "2", "--run-dir", str(tmp_path)
        ),
        capture_output=True,
        text=True,
        check=False,
    )
    alone = tmp_path / "alone"
    flags = [*FLAGS, "--total-timesteps", "512", "--learning-rate", "1e37", "--eval-episodes", "2", "--run-dir", str(alone)]
    single = subprocess.run(
        [sys.executable, "-m", "rlopt", "train", *flags, "--no-progress"], capture_output=True, text=True, check=False
    )
    assert done.returncode == single.returncode
    assert list((tmp_path / "ppo" / "CartPole-v1" / "1" / "seed-0" / "faults").glob("*.zip"))
