"""Exact checkpoints of a run, from which training goes on as if it had never stopped."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from rlopt import archive as files
from rlopt.archive import Archive
from rlopt.arguments import check_number
from rlopt.checkpoint import agent_tensors, describe, load_into
from rlopt.file_errors import one_line
from rlopt.folder_lock import FolderLock
from rlopt.log_files import logged, rewind_logs
from rlopt.nested import join, split
from rlopt.run_state import check_count, restore_run, run_state

if TYPE_CHECKING:
    from rlopt.agents.base import Agent

NAME = re.compile(r"rl_model_(\d+)_steps\.zip")
BEFORE_THE_FIRST_STEP = "rl_model_0_steps.zip"  # of which nothing is lost
DAMAGED = ".damaged"  # put behind the name of a file that cannot be read
ABOUT_THE_MACHINE = {"backend", "verbose", "tensorboard_log"}  # what a training may go on with another value of


class Checkpoints:
    """Files in a folder, each with all that the future of a training depends on; given to `Agent.learn`.

    They hold the agent with its optimiser, normalisers and generators, and the run: environments amid their episodes,
    statistics, what callbacks remember, what the logger has not written yet, Python's, NumPy's and torch's global generators.
    Training that is killed and goes on from one equals training that was not, to the bit, on one device. Each is also a file
    that `Agent.load` reads. They are written between two iterations, the first before them all.

    Environments that are made for their seed (an id or callables, in this process or in workers) play their episode again;
    the library's own vector environments keep their tensors. Others, such as an SB3 `VecEnv`, begin new episodes, and so does
    an environment that does not come to where it was: that is said in a warning, and training goes on.

    Args:
        folder: made if it does not exist.
        save_freq: environment steps between checkpoints; 0 writes one at the beginning and one at the end of training, or when
            it is stopped.
        keep_last: files to keep, the newest; older ones are deleted.
        keep_best: files to keep besides, those with the highest mean return of recent episodes; none where rewards are vectors.
        resume: go on from the newest file, if there is one. One that cannot be read is put aside with a warning, and the one
            before it is taken.

    One object is for one training.

    Raises:
        ValueError: numbers out of range.

    Example:
        The same script starts a run and, when it was killed, goes on with it:

            agent = PPO("MlpPolicy", "CartPole-v1", n_envs=8, seed=0)
            agent.learn(1_000_000, checkpoints=Checkpoints("runs/mine", save_freq=50_000, resume=True))
    """

    def __init__(
        self, folder: str | Path, save_freq: int = 100_000, keep_last: int = 3, keep_best: int = 1, resume: bool = False
    ):
        check_number("save_freq", save_freq, at_least=0, whole=True)
        check_number("keep_last", keep_last, at_least=1, whole=True)
        check_number("keep_best", keep_best, at_least=0, whole=True)
        self.folder = Path(folder)
        self.save_freq, self.keep_last, self.keep_best, self.resume = save_freq, keep_last, keep_best, resume
        self._stop_requested = False
        self._saved_at: int | None = None
        self._scores: dict[Path, float] = {}  # of the files that belong to this training
        self._found: Archive | None = None
        self._used = False
        self._lock: FolderLock | None = None

    def request_stop(self) -> None:
        """Let training end after this iteration, with a checkpoint. Safe to call from a signal handler."""
        self._stop_requested = True

    @property
    def stopped(self) -> bool:
        """Whether `request_stop` ended the training, or will."""
        return self._stop_requested

    def newest(self) -> Archive | None:
        """The newest file that can be read; those that cannot are put aside with a warning. None without any."""
        path = newest_readable(self._files(), files.read)
        return None if path is None else files.read(path)

    def open(self) -> Archive | None:
        """Take the folder for this training, and look for the file that it goes on from.

        Raises:
            ValueError: another process trains with this folder, or it has files already and `resume` is False.
            OSError: the folder cannot be made.
        """
        if self._used:
            raise ValueError("checkpoints: an object is for one training; make another one, with a folder of its own")
        if self._lock is None:
            self._lock = FolderLock(self.folder, "checkpoints")
            self._found = self.newest() if self.resume else None
            if not self.resume and (others := [path for path in self._files() if path.name != BEFORE_THE_FIRST_STEP]):
                self._lock.close()
                self._lock = None
                raise ValueError(
                    f"checkpoints: {self.folder} has {len(others)} of another training; go on from there with resume=True, or "
                    "choose another folder"
                )
        return self._found

    def close(self) -> None:
        """Let others have the folder. Safe to call twice."""
        if self._lock is not None:
            self._lock.close()
            self._used = True
        self._lock = self._found = None

    def rewind_logs(self, folder: Path) -> int:
        """Put the log files of a folder back to the file that training goes on from; its environment steps, 0 without one."""
        found = self.open()
        if found is None:
            rewind_logs(folder, {})
            return 0
        rewind_logs(folder, found.data.get("logs"))
        return int(found.data["num_timesteps"])

    def log_folder(self, tensorboard_log: str | None) -> Path | None:
        """The folder under `tensorboard_log` that training goes on logging to, put back; None where it begins anew."""
        found = self.open()
        name = None if found is None else found.data.get("logs", {}).get("folder")
        if tensorboard_log is None or not isinstance(name, str) or Path(name).name != name:
            return None
        folder = Path(tensorboard_log) / name
        self.rewind_logs(folder)
        return folder

    def begin(self, agent: Agent, callback: BaseCallback | None) -> int:
        """Put a training that is about to begin where the newest file was; the iterations that it has made.

        Raises:
            ValueError: the file is of another algorithm, of other spaces or sizes, or was not written by this class; the agent
                has a hyper-parameter that no file can hold; as `open`.
            OSError: the first file cannot be written.
        """
        found = self.open()
        if found is None:
            # What cannot be written is to show now, not after the first hours; and who is killed before the next file goes
            # on with the same log files.
            self.save(agent, callback, 0)
            return 0
        self.check_make(agent)
        try:
            state = join(found.data["run"], found.tensors)
            began, begins = state["num_timesteps_at_start"], agent._num_timesteps_at_start
            if began != begins:
                raise ValueError(f"its training began after {began} environment steps, this one begins after {begins}")
            load_into(agent, found)
            lost, iteration = restore_run(agent, callback, state), check_count("iteration", state["iteration"])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
            raise ValueError(f"checkpoints: the newest file does not fit this training: {one_line(repr(error))}") from error
        if lost:
            which = "all environments" if len(lost) == agent.n_envs else f"environments {', '.join(map(str, lost))}"
            warnings.warn(
                f"checkpoints: {which} could not be put back amid their episodes and begin new ones; this training will "
                "differ from one that was not stopped",
                stacklevel=3,
            )
        self._saved_at, self._found = agent.num_timesteps, None
        self._scores = {path: _score(path) for path in self._files()} if self.keep_best else {}
        return iteration

    def iteration_ended(self, agent: Agent, callback: BaseCallback | None, iteration: int) -> bool:
        """Write a file if it is time for one; whether training is to go on.

        Raises:
            OSError: the file cannot be written; those before it are whole.
        """
        if self._is_due(agent):
            self.save(agent, callback, iteration)
        return not self._stop_requested

    def save(self, agent: Agent, callback: BaseCallback | None, iteration: int) -> Path:
        """Write a file now, and delete those that need not be kept. Between two iterations only.

        Raises:
            OSError: it cannot be written; those before it are whole.
        """
        run, tensors = split(run_state(agent, callback, iteration), "run")
        score = agent.statistics.mean_return
        score = float(score) if np.ndim(score) == 0 and np.isfinite(score) else None
        more = {"run": run, "score": score, "logs": {"folder": _log_folder(agent), **logged(agent.logger)}}
        path = self.folder / f"rl_model_{agent.num_timesteps}_steps.zip"
        try:
            files.write(path, {**describe(agent), **more}, {**agent_tensors(agent), **tensors})
        except OSError as error:
            raise OSError(
                error.errno, f"checkpoints: {path} cannot be written, the files before it are whole: {error.strerror}"
            ) from error
        self._saved_at = agent.num_timesteps
        self._scores[path] = -np.inf if score is None else score
        self._delete_others()
        return path

    def training_ended(self, agent: Agent, callback: BaseCallback | None, iteration: int) -> None:
        """Write a last file, from which a longer training can go on."""
        if self._saved_at != agent.num_timesteps:
            self.save(agent, callback, iteration)

    def _is_due(self, agent: Agent) -> bool:
        if self._stop_requested:
            return self._saved_at != agent.num_timesteps
        since = agent._num_timesteps_at_start if self._saved_at is None else self._saved_at
        # By multiples, not by distance: a run that goes on writes its files where it would have without the break.
        return bool(self.save_freq) and agent.num_timesteps // self.save_freq > since // self.save_freq

    def _files(self) -> list[Path]:
        """From the oldest to the newest."""
        numbered = [(int(match[1]), path) for path in self.folder.glob("*.zip") if (match := NAME.fullmatch(path.name))]
        return [path for _, path in sorted(numbered)]

    def _delete_others(self) -> None:
        present = self._files()
        scored = [path for path in present if np.isfinite(self._scores.get(path, -np.inf))]
        best = sorted(scored, key=lambda path: self._scores[path], reverse=True)[: self.keep_best]
        for path in present[: -self.keep_last]:
            if path not in best:
                path.unlink()
                self._scores.pop(path, None)

    def check_make(self, agent: Agent) -> None:
        """Raises ValueError unless the file that training goes on from, if there is one, is of an agent of this make."""
        found = self.open()
        if found is None:
            return
        mine, theirs = describe(agent), found.data
        if "run" not in theirs:
            raise ValueError(
                f"checkpoints: the newest file in {self.folder} holds an agent, but not a run; use {mine['algorithm']}.load"
            )
        for name in ("algorithm", "observation_space", "action_space"):
            if mine[name] != theirs[name]:
                raise ValueError(f"checkpoints: the newest file in {self.folder} has {name} {theirs[name]}, not {mine[name]}")
        ours, stored = mine["hyperparameters"], theirs["hyperparameters"]
        same = ours.keys() & stored.keys() - ABOUT_THE_MACHINE
        if changed := sorted(name for name in same if ours[name] != stored[name]):
            told = ", ".join(f"{name} was {stored[name]!r} and is {ours[name]!r}" for name in changed)
            warnings.warn(f"checkpoints: training goes on with other values than it began with: {told}", stacklevel=4)


def newest_readable(paths: Sequence[Path], read: Callable[[Path], Any]) -> Path | None:
    """The last of the paths that `read` takes; those after it are put aside with a warning. None without any."""
    for path in reversed(paths):
        try:
            read(path)
        except ValueError as error:
            path.rename(path.with_name(path.name + DAMAGED))
            warnings.warn(f"checkpoint {path.name} cannot be read, the one before it is taken ({error})", stacklevel=3)
        else:
            return path
    return None


class NoCheckpoints(Checkpoints):
    """Of a training that keeps none."""

    def __init__(self) -> None:
        """Has no folder."""

    def open(self) -> None:
        """Nothing to go on from."""

    def close(self) -> None:
        """Nothing was taken."""

    def begin(self, agent: Agent, callback: BaseCallback | None) -> int:
        """Begins anew."""
        return 0

    def iteration_ended(self, agent: Agent, callback: BaseCallback | None, iteration: int) -> bool:
        """Goes on."""
        return True

    def training_ended(self, agent: Agent, callback: BaseCallback | None, iteration: int) -> None:
        """Writes nothing."""


def _log_folder(agent: Agent) -> str | None:
    """The name of the run's folder under `tensorboard_log`; its place may change."""
    return None if agent.logger.dir is None else Path(agent.logger.dir).name


def _score(path: Path) -> float:
    """The mean return that a file was written with; a file that cannot be read has none."""
    try:
        score: Any = files.read(path).data.get("score")
    except ValueError:
        return -np.inf
    return float(score) if isinstance(score, int | float) else -np.inf
