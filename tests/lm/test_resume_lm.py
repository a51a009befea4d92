"""A language model's training that was killed and resumed equals one that was not, to the bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import TrainerCallback

from rlopt.lm.examples.digits import digits_trainer

SMALL = {"max_iterations": 8, "save_steps": 2, "per_device_train_batch_size": 16, "num_iterations": 2, "logging_steps": 1}


class Killed(BaseException):
    """What a process does not survive."""


class KilledAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Killed


def trainer(folder, **changes):
    return digits_trainer(0, output_dir=str(folder), **{**SMALL, **changes})


def scalars(folder):
    found = {}
    for path in sorted((folder / "logs").glob("events*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}, purge_orphaned_data=False).Reload()
        for tag in events.Tags()["scalars"]:
            if not tag.startswith("time/"):
                found.setdefault(tag, []).extend((event.step, event.value) for event in events.Scalars(tag))
    return {tag: sorted(points, key=lambda point: point[0]) for tag, points in found.items()}


def parameters(made):
    return torch.cat([parameter.detach().flatten() for parameter in made.model.parameters()])


def equal(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[tag], second[tag], equal_nan=True) for tag in first)


def test_killed_and_resumed(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    for step in (3, 4, 7):
        made = trainer(tmp_path / "parts")
        made.events.callbacks.append(KilledAt(step))
        made.events.arguments = None
        with pytest.raises(Killed):
            made.train(resume_from_checkpoint="auto")
    made = trainer(tmp_path / "parts")
    made.train(resume_from_checkpoint="auto")
    assert torch.equal(parameters(whole), parameters(made))
    assert equal(scalars(tmp_path / "whole"), scalars(tmp_path / "parts"))
    tables = [(tmp_path / name / "logs" / "progress.csv").read_text().splitlines() for name in ("whole", "parts")]
    assert len(tables[0]) == len(tables[1]) == 9


def test_a_damaged_newest_file_falls_back(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    made = trainer(tmp_path / "parts", max_iterations=6, lr_scheduler="constant")
    made.train()
    newest = tmp_path / "parts" / "checkpoint-6.zip"
    newest.write_bytes(newest.read_bytes()[:-50])
    made = trainer(tmp_path / "parts")
    with pytest.warns(UserWarning, match=r"checkpoint-6\.zip cannot be read, the one before it is taken"):
        made.train(resume_from_checkpoint=True)
    assert torch.equal(parameters(whole), parameters(made))


def test_a_request_to_stop_writes_a_checkpoint(tmp_path):
    whole = trainer(tmp_path / "whole")
    whole.train()
    made = trainer(tmp_path / "parts", save_steps=None)
    made.callbacks.append(lambda made, metrics: made.request_stop() if made.state.iteration == 4 else None)
    made.train()
    assert made.state.iteration == 4
    made = trainer(tmp_path / "parts", save_steps=None)
    made.train(resume_from_checkpoint=True)
    assert torch.equal(parameters(whole), parameters(made))


def run(folder, pipe):
    """A whole training, in a process that may be killed at any moment."""
    torch.set_num_threads(1)
    made = trainer(folder, max_iterations=150, save_steps=1)
    pipe.send("begins")
    made.train(resume_from_checkpoint="auto")
    pipe.send(parameters(made).numpy())


@pytest.mark.slow
def test_killed_twenty_times_and_resumed(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlopt.lm", "tests.lm.test_resume_lm"])
    random = np.random.default_rng(0)
    outcomes = []
    for name, kills in (("whole", 0), ("killed", 20)):
        killed = 0
        while True:
            mine, theirs = context.Pipe()
            process = context.Process(target=run, args=(Path(tmp_path / name), theirs), daemon=True)
            process.start()
            theirs.close()
            assert mine.recv() == "begins"
            if killed < kills and not mine.poll(float(random.uniform(0.1, 0.6))):
                os.kill(process.pid, signal.SIGKILL)
                process.join()
                killed += 1
                continue
            outcomes.append(mine.recv())
            process.join()
            break
        assert killed == kills
    assert np.array_equal(*outcomes)
    assert equal(scalars(tmp_path / "whole"), scalars(tmp_path / "killed"))
