"""`kill -9` at random moments, by another process: what is on the disk is all that is left."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from rlopt import ALGORITHMS
from tests.agents.test_every_agent import SMALL
from tests.test_resume import scalars

CLASSES = {cls.__name__: cls for cls in ALGORITHMS.values()}
QUICK = ("PPO",)  # the others are slow tests


def run(name: str, folder: str, budget: int, pipe) -> None:
    """A whole training, in a process that may be killed at any moment."""
    from rlopt import ALGORITHMS, Checkpoints
    from tests.small_envs import Walk

    torch.set_num_threads(1)
    algorithm = {cls.__name__: cls for cls in ALGORITHMS.values()}[name]
    known = inspect.signature(algorithm).parameters
    small = {key: value for key, value in SMALL.items() if key in known} | {"n_envs": 2}
    more = {"tensorboard_log": str(Path(folder) / "logs"), "normalize_observations": True, "normalize_rewards": True}
    agent = algorithm("MlpPolicy", Walk, seed=0, **small, **more)
    pipe.send("begins")
    agent.learn(budget, checkpoints=Checkpoints(Path(folder) / "checkpoints", 100, resume=True))
    agent.logger.close()
    returns = [episode["r"] for episode in agent.ep_info_buffer]
    pipe.send((agent.state.theta.numpy(), agent.num_timesteps, returns))


def trained(name: str, folder: Path, budget: int, kills: int, random: np.random.Generator):
    """The outcome of a training whose process is killed this often; how often it was is the last of it."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlopt", "tests.small_envs", "tests.test_kill"])
    killed = 0
    while True:
        mine, theirs = context.Pipe()
        process = context.Process(target=run, args=(name, str(folder), budget, theirs), daemon=True)
        process.start()
        theirs.close()
        assert mine.recv() == "begins"
        if killed < kills and not mine.poll(float(random.uniform(0.02, 0.2))):
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            killed += 1
            continue
        outcome = mine.recv()
        process.join()
        return (*outcome, killed)


def check(name: str, folder: Path, budget: int, kills: int) -> int:
    random = np.random.default_rng(0)
    theta, steps, returns, _ = trained(name, folder / "whole", budget, 0, random)
    other, other_steps, other_returns, killed = trained(name, folder / "killed", budget, kills, random)
    assert np.array_equal(theta, other)
    assert (steps, returns) == (other_steps, other_returns)
    assert scalars(folder / "whole" / "logs") == scalars(folder / "killed" / "logs") != {}
    return killed


@pytest.mark.parametrize("name", QUICK)
def test_killed_and_resumed(name, tmp_path):
    assert check(name, tmp_path, 3_000, kills=4) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSES)
def test_killed_twenty_times_and_resumed(name, tmp_path):
    assert check(name, tmp_path, 60_000, kills=20) == 20
