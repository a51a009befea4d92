"""Environments in worker processes: each worker steps its share with `SyncEnvironments`."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
import numpy as np

from rlopt.envs.base import EnvironmentFault, Environments, Step, fresh_seed, spread
from rlopt.envs.cores import usable_cores
from rlopt.envs.spaces import Array, ArrayTree, concatenate
from rlopt.envs.sync import EnvFactory, SyncEnvironments


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

    def reset(self, seed: int | None = None) -> ArrayTree:
        if seed is None and not self.episodes.any():
            seed = fresh_seed()  # one for all workers
        if seed is not None:
            self.run_seed = seed
            self.episodes[:] = 0
        self.episodes += 1
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
        rows = [row for share, used in zip(self._shares, asked, strict=True) if used for row in share]
        for part in parts:
            self._checked_rewards(part.rewards, len(part.rewards))
        step = _joined(parts)
        self.episodes[[rows[row] for row in step.final_rows]] += 1
        return step if all(asked) else spread(step, rows, self.num_envs)

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        self.episodes[rows] += 1
        shares = [np.intersect1d(rows, share) - share[0] for share in self._shares]
        ends = np.cumsum([len(share) for share in shares])
        parts = [None if seeds is None else seeds[end - len(share) : end] for share, end in zip(shares, ends, strict=True)]
        observations = concatenate(
            self._ask("restart", list(zip(shares, parts, strict=True)), [len(share) > 0 for share in shares])
        )
        assert observations is not None
        return observations

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
            return [worker.receive() for worker in workers]
        except BaseException:  # an interrupt as well: answers left in the pipes would be taken for those of the next call
            self.close()
            raise

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
        np.concatenate([part.rewards for part in parts]),
        np.concatenate([part.terminated for part in parts]),
        np.concatenate([part.truncated for part in parts]),
        [int(offset) + row for offset, part in zip(offsets, parts, strict=False) for row in part.final_rows],
        concatenate([part.final_observations for part in parts if part.final_observations is not None]),
        [info for part in parts for info in part.infos],
    )


class _Worker:
    """One process and the pipe to it."""

    def __init__(self, context: Any, factories: list[EnvFactory], first_index: int, name: str):
        self.first_index, self.name = first_index, name
        self.answered = False
        self.pipe, theirs = context.Pipe()
        payload = cloudpickle.dumps(factories)
        self.process = context.Process(target=_serve, args=(theirs, payload, first_index, name), daemon=True)
        self.process.start()
        theirs.close()

    def send(self, method: str, args: tuple[Any, ...]) -> None:
        try:
            self.pipe.send((method, args))
        except (BrokenPipeError, OSError):
            self._died()

    def receive(self) -> Any:
        try:
            failure, result = self.pipe.recv()
            self.answered = True
        except (EOFError, ConnectionResetError):
            self._died()
        if failure is not None:
            raise EnvironmentFault(f"{self.name}: the worker of environments {self.first_index} and up failed:\n{failure}")
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

    def _died(self) -> None:
        self.process.join(timeout=1)
        hint = "" if self.answered else "; does the script start its work under `if __name__ == '__main__':`?"
        raise EnvironmentFault(
            f"{self.name}: the worker of environments {self.first_index} and up ended with exit code "
            f"{self.process.exitcode}{hint}"
        )


def _serve(pipe: Connection, payload: bytes, first_index: int, name: str) -> None:
    """The worker's loop: (method, args) in, (failure or None, result) out."""
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
