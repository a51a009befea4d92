"""Environments in worker processes: each worker steps its share with `SyncEnvironments`."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np

from rlopt.arguments import check_number
from rlopt.envs.base import (
    EnvironmentFault,
    EnvironmentRestarted,
    Environments,
    OnError,
    Snapshot,
    Step,
    episode_seed,
    fresh_seed,
    spread,
)
from rlopt.envs.cores import usable_cores
from rlopt.envs.spaces import Array, ArrayTree, concatenate, map_arrays
from rlopt.envs.sync import MOST_IN_A_ROW, EnvFactory, SyncEnvironments


class AsyncEnvironments(Environments):
    """N environments divided over worker processes; seeds and resets are those of `SyncEnvironments`.

    Worth it where one step takes longer than a message between processes, some 50 µs: a simulator, not CartPole.

    Args:
        factories: one callable an environment; sent to the workers with cloudpickle.
        num_workers: processes; by default as many as this process has cores, and no more than environments.
        name: for messages.
    """

    restarts_rows = True

    def __init__(self, factories: Sequence[EnvFactory], num_workers: int | None = None, name: str = "environment"):
        num_workers = min(num_workers or usable_cores(), len(factories))
        shares = [share.tolist() for share in np.array_split(np.arange(len(factories)), num_workers)]
        # forkserver: no inherited threads or generators; what it has imported already costs the workers nothing
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["__main__", __name__])
        self._workers = [_Worker(context, [factories[i] for i in share], share[0], name) for share in shares]
        self._place = [
            (worker, index - share[0]) for worker, share in zip(self._workers, shares, strict=True) for index in share
        ]
        self._bounds = np.cumsum([len(share) for share in shares])[:-1]
        self._shares = shares
        try:
            spaces = [worker.receive() for worker in self._workers]
        except EnvironmentFault:
            self.close()
            raise
        if any(pair != spaces[0] for pair in spaces):
            self.close()
            raise ValueError(f"env: the environments differ in their spaces: {spaces}")
        observation_space, action_space, self.monitored, self._announced = spaces[0]
        super().__init__(len(factories), observation_space, action_space, name)
        self.run_seed = 0
        self.episodes = np.zeros(self.num_envs, np.int64)
        self.on_error: OnError = "raise"
        self.timeout: float | None = None
        self._times = np.zeros(self.num_envs, np.int64)  # t of every episode

    def reset(self, seed: int | None = None) -> ArrayTree:
        if seed is None and not self.episodes.any():
            seed = fresh_seed()  # one for all workers
        if seed is not None:
            self.run_seed = seed
            self.episodes[:] = 0
        self.episodes += 1
        self._times[:] = 0
        parts = self._ask("reset", [(seed,)] * len(self._workers))
        observations = concatenate(parts)
        assert observations is not None
        return observations

    def step(self, actions: Array, active: Array | None = None) -> Step:
        asked = [True] * len(self._workers)
        arguments: list[tuple[Any, ...]] = [(share,) for share in np.split(actions, self._bounds)]
        if active is not None:
            shares = np.split(active, self._bounds)
            asked = [bool(share.any()) for share in shares]
            arguments = [(*given, share) for given, share in zip(arguments, shares, strict=True)]
        parts: list[Step] = self._ask("step", arguments, asked)
        self._times += 1 if active is None else active
        rows = [row for share, used in zip(self._shares, asked, strict=True) if used for row in share]
        for part in parts:
            if not _failed(part).all():
                self._checked_rewards(part.rewards, len(part.rewards))
        step = _joined(parts)
        begun = [*step.final_rows, *(() if step.failed is None else step.failed.nonzero()[0])]
        self.episodes[[rows[row] for row in begun]] += 1
        self._times[[rows[row] for row in begun]] = 0
        return step if all(asked) else spread(step, rows, self.num_envs)

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        self.episodes[rows] += 1
        self._times[rows] = 0
        shares = [np.intersect1d(rows, share) - share[0] for share in self._shares]
        ends = np.cumsum([len(share) for share in shares])
        parts = [None if seeds is None else seeds[end - len(share) : end] for share, end in zip(shares, ends, strict=True)]
        observations = concatenate(
            self._ask("restart", list(zip(shares, parts, strict=True)), [len(share) > 0 for share in shares])
        )
        assert observations is not None
        return observations

    def handle_faults(self, on_error: OnError, timeout: float | None = None) -> None:
        if timeout is not None:
            check_number("timeout", timeout, positive=True)
        self.on_error, self.timeout = on_error, timeout
        self._ask("handle_faults", [(on_error,)] * len(self._workers))

    def close(self) -> None:
        for worker in self._workers:
            worker.close()

    def episode_counters(self) -> dict[str, Any]:
        return {"run_seed": self.run_seed, "episodes": self.episodes.tolist()}  # counted here: workers may be gone

    def restore_episodes(self, counters: dict[str, Any]) -> bool:
        if len(counters["episodes"]) != self.num_envs:
            return False
        self.run_seed, self.episodes[:] = int(counters["run_seed"]), counters["episodes"]
        shares = np.split(self.episodes, self._bounds)
        self._ask("restore_episodes", [({**counters, "episodes": share.tolist()},) for share in shares])
        return True

    def snapshot(self) -> Snapshot:
        parts: list[Snapshot] = self._ask("snapshot", [()] * len(self._workers))
        joined = {name: [entry for part in parts for entry in part[name]] for name in ("seeds", "actions", "paid")}
        shown = [part["shown"] for part in parts]
        return {**self.episode_counters(), **joined, "shown": None if shown[0] is None else concatenate(shown)}

    def restore(self, snapshot: Snapshot) -> list[int]:
        """As single environments do: the number of workers may be another."""
        if len(snapshot["episodes"]) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} environments, got {len(snapshot['episodes'])}")
        self.run_seed, self.episodes[:] = int(snapshot["run_seed"]), snapshot["episodes"]
        self._times[:] = [0 if actions is None else len(actions) for actions in snapshot["actions"]]
        lost = self._ask("restore", [(_part(snapshot, share),) for share in self._shares])
        return [share[row] for share, rows in zip(self._shares, lost, strict=True) for row in rows]

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        return [self._one(index, "get_attr", name)[0] for index in indices]

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        for index in indices:
            self._one(index, "set_attr", name, value)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Sequence[int]) -> list[Any]:
        return [self._one(index, "call", name, args, kwargs)[0] for index in indices]

    def render(self) -> list[Any]:
        return [frame for part in self._ask("render", [()] * len(self._workers)) for frame in part]

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]], asked: Sequence[bool] | None = None) -> list[Any]:
        """What the workers answer; only those that are `asked`, all if that is None."""
        workers = [worker for i, worker in enumerate(self._workers) if asked is None or asked[i]]
        given = [args for i, args in enumerate(arguments) if asked is None or asked[i]]
        try:
            for worker, args in zip(workers, given, strict=True):
                worker.send(method, args)
            return [self._answer(worker, method) for worker in workers]
        except BaseException:  # an interrupt as well: answers left in the pipes would be taken for those of the next call
            self.close()
            raise

    def _answer(self, worker: _Worker, method: str) -> Any:
        """What a worker says; in place of one that is gone, another one, whose environments begin new episodes."""
        try:
            answer = worker.receive(self.timeout if method == "step" else None)
            if method == "step" and (answer.terminated | answer.truncated).any():
                worker.lost_in_a_row = 0
            return answer
        except WorkerLost as lost:
            share = self._shares[self._workers.index(worker)]
            seeds = [episode_seed(self.run_seed, row, max(int(self.episodes[row]) - 1, 0)) for row in share]
            told = f"{lost}, in steps {(self._times[share] + 1).tolist()} of the episodes with seeds {seeds}"
            worker.lost_in_a_row += 1
            if self.on_error == "raise" or method != "step" or worker.lost_in_a_row > MOST_IN_A_ROW:
                raise EnvironmentFault(told) from None
            warnings.warn(f"{told}; it is started anew, and their episodes dropped", EnvironmentRestarted, stacklevel=4)
            return self._started_anew(worker, share)

    def _started_anew(self, worker: _Worker, share: list[int]) -> Step:
        """The first observations of new environments in a new process, as a step that failed in all of them."""
        worker.start()
        worker.receive()  # its spaces, which are the same
        counters = {"run_seed": self.run_seed, "episodes": self.episodes[share].tolist()}
        for method, args in (("handle_faults", (self.on_error,)), ("restore_episodes", (counters,))):
            worker.send(method, args)
            worker.receive()
        worker.send("restart", (np.arange(len(share)),))
        observations, size = worker.receive(), len(share)
        nobody = np.zeros(size, bool)
        rewards = np.zeros(size)
        return Step(observations, rewards, nobody, nobody, (), None, [{}] * size, ~nobody)

    def _one(self, index: int, method: str, *args: Any) -> Any:
        worker, local = self._place[index]
        worker.send(method, (*args, [local]))
        return worker.receive()


def _joined(parts: Sequence[Step]) -> Step:
    """The steps of consecutive shares as one."""
    observations = concatenate([part.observations for part in parts])
    assert observations is not None
    offsets = np.cumsum([0, *(len(part.terminated) for part in parts)])
    return Step(
        observations,
        np.concatenate([_widened(part.rewards, parts) for part in parts]),
        np.concatenate([part.terminated for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        [int(offset) + row for offset, part in zip(offsets, parts, strict=False) for row in part.final_rows],
        concatenate([part.final_observations for part in parts if part.final_observations is not None]),
        [info for part in parts for info in part.infos],
        np.concatenate([_failed(part) for part in parts]) if any(part.failed is not None for part in parts) else None,
    )


def _widened(rewards: Array, parts: Sequence[Step]) -> Array:
    """Rewards [n] of environments that all failed, and do not know K, as [n, K]."""
    wide = next((part.rewards for part in parts if part.rewards.ndim > 1), rewards)
    return rewards if wide.ndim == rewards.ndim else np.zeros((len(rewards), wide.shape[1]))


def _failed(part: Step) -> Array:
    return np.zeros(len(part.terminated), bool) if part.failed is None else part.failed


def _part(snapshot: Snapshot, share: Sequence[int]) -> Snapshot:
    """What one worker needs to know of its environments."""
    first, last = share[0], share[-1] + 1
    shown = snapshot["shown"]
    return {
        "run_seed": snapshot["run_seed"],
        **{name: snapshot[name][first:last] for name in ("episodes", "seeds", "actions", "paid")},
        "shown": None if shown is None else map_arrays(lambda array: array[first:last], shown),
    }


class WorkerLost(EnvironmentFault):
    """A worker process ended, or does not answer."""


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, context: Any, factories: list[EnvFactory], first_index: int, name: str):
        self.context, self.first_index, self.name = context, first_index, name
        self.num_envs = len(factories)
        self.payload = cloudpickle.dumps(factories)
        self.answered = False
        self.lost_in_a_row = 0
        self.start()

    def start(self) -> None:
        """A process that makes its environments."""
        self.pipe, theirs = self.context.Pipe()
        arguments = theirs, self.payload, self.first_index, self.name
        self.process = self.context.Process(target=_serve, args=arguments, daemon=True)
        self.process.start()
        theirs.close()

    def send(self, method: str, args: tuple[Any, ...]) -> None:
        """Ask; that the worker is gone shows when it is to answer."""
        with contextlib.suppress(BrokenPipeError, OSError):
            self.pipe.send((method, args))

    def receive(self, timeout: float | None = None) -> Any:
        """What the worker answers.

        Raises:
            WorkerLost: it ended, or did not answer in time.
            EnvironmentFault: it says that an environment broke.
        """
        try:
            if not self.pipe.poll(timeout):
                self._give_up()
                raise WorkerLost(f"{self._described} did not answer within {timeout:g} s")
            failure, result = self.pipe.recv()
            self.answered = True
        except (EOFError, OSError):
            self.process.join(timeout=1)
            hint = "" if self.answered else "; does the script start its work under `if __name__ == '__main__':`?"
            raise WorkerLost(f"{self._described} ended with exit code {self.process.exitcode}{hint}") from None
        if failure is not None:
            raise EnvironmentFault(f"{self._described} failed:\n{failure}")
        return result

    def close(self) -> None:
        if self.process.is_alive():
            try:
                self.pipe.send(("close", ()))
            except (BrokenPipeError, OSError):  # it is going down by itself
                self.process.terminate()
            self.process.join(timeout=5)
            if self.process.is_alive():
                self.process.kill()
        self.pipe.close()

    @property
    def _described(self) -> str:
        last = self.first_index + self.num_envs - 1
        which = f"environment {last}" if self.num_envs == 1 else f"environments {self.first_index} to {last}"
        return f"{self.name}: the worker of {which}"

    def _give_up(self) -> None:
        """End a process that hangs; asking would not help."""
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, payload: bytes, first_index: int, name: str) -> None:
    """The worker's loop: (method, args) in, (failure or None, result) out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the training to end in good order
    try:
        # The payload comes from the parent process through its own pipe, never from a file.
        envs = SyncEnvironments(cloudpickle.loads(payload), first_index, name)
        pipe.send((None, (envs.encoder.raw_space, envs.decoder.raw_space, envs.monitored, envs._announced)))
        while True:
            method, args = pipe.recv()
            if method == "close":
                envs.close()
                return
            pipe.send((None, getattr(envs, method)(*args)))
    except (EOFError, KeyboardInterrupt):
        return
    except Exception:  # whatever an environment raises is for the parent to report
        pipe.send((traceback.format_exc(), None))
