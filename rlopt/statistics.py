"""Episode returns and lengths, kept for all environments at once; Python per environment only when an episode ends."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlopt.envs.spaces import Array

EpisodeRecord = dict[str, Any]


class EpisodeStatistics:
    """Running returns of N environments, and the last finished episodes.

    Where the environments have SB3's `Monitor`, its account wins: `info["episode"]` is the real game's, whatever
    wrappers outside it do to rewards and episode ends.

    Attributes:
        recent: the last `window` episodes, dictionaries with return `r`, a list of K where K rewards are paid, length `l`
            and seconds `t`.
        successes: `info["is_success"]` of the last `window` episodes that had it.
        num_episodes: finished since the start.
        num_dropped: left unfinished since the start, because the environment broke or could not be put back.
    """

    def __init__(self, num_envs: int, window: int = 100, monitored: bool = False):
        self.monitored = monitored
        self.recent: deque[EpisodeRecord] = deque(maxlen=window)
        self.successes: deque[float] = deque(maxlen=window)
        self.num_episodes = self.num_dropped = 0
        self.on_episode: Callable[[EpisodeRecord], None] | None = None
        self.started = time.time()
        self.begin(num_envs)

    @property
    def mean_return(self) -> Any:
        """The mean return of the recent episodes: a number, or [K], of those with as many rewards as the last; NaN of none."""
        returns = [episode["r"] for episode in list(self.recent)]
        if not returns:
            return float("nan")
        mean = np.mean([r for r in returns if np.shape(r) == np.shape(returns[-1])], 0)
        return mean if mean.ndim else float(mean)

    def begin(self, num_envs: int) -> None:
        """All environments start new episodes."""
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, np.int64)

    def snapshot(self) -> dict[str, Any]:
        """All of it, as plain values and arrays."""
        under_way = {"returns": self.returns.copy(), "lengths": self.lengths.copy()}
        kept = {"recent": list(self.recent), "successes": list(self.successes), "num_episodes": self.num_episodes}
        kept |= {"num_dropped": self.num_dropped}
        return {**under_way, **kept, "seconds": time.time() - self.started}

    def restore(self, snapshot: dict[str, Any]) -> None:
        """The inverse of `snapshot`; the clock goes on from there.

        Raises:
            ValueError, TypeError, KeyError: what no statistics of as many environments can have given.
        """
        returns, lengths = snapshot["returns"], snapshot["lengths"]
        if len(returns) != len(self.lengths) or lengths.shape != self.lengths.shape:
            raise ValueError(f"expected statistics of {len(self.lengths)} environments, got {len(returns)}")
        numbers = list(snapshot["successes"])
        for record in snapshot["recent"]:
            numbers += [*(record["r"] if isinstance(record["r"], list) else [record["r"]]), record["l"], record["t"]]
        if not all(isinstance(number, int | float) for number in numbers):
            raise TypeError("expected numbers for returns, lengths, seconds and successes")
        if not all(type(snapshot[name]) is int for name in ("num_episodes", "num_dropped")):
            raise TypeError("expected whole numbers of episodes")
        self.returns, self.lengths = snapshot["returns"].copy(), snapshot["lengths"].copy()
        for kept, entries in ((self.recent, snapshot["recent"]), (self.successes, snapshot["successes"])):
            kept.clear()
            kept.extend(entries)
        self.num_episodes, self.num_dropped = snapshot["num_episodes"], snapshot["num_dropped"]
        self.started = time.time() - snapshot["seconds"]

    def add(self, rewards: Array, valid: Array | None, done: Array, infos: Sequence[dict[str, Any]]) -> None:
        """Count one step: raw rewards [N] or [N, K], rows that count (None for all), episodes that ended."""
        if rewards.ndim == 2 and self.returns.ndim == 1:
            self.returns = np.zeros(rewards.shape)
        if valid is None:
            self.returns += rewards
            self.lengths += 1
        else:
            self.returns[valid] += rewards[valid]
            self.lengths += valid
        if np.count_nonzero(done):  # half the cost of `any`
            for row in done.nonzero()[0]:
                self._finish(int(row), infos[int(row)])

    def add_ended(self, rows: Array, returns: Array, lengths: Array) -> None:
        """Episodes [F] that ended in environments `rows`, in the order of their ends, whose steps others have counted."""
        seconds = round(time.time() - self.started, 6)
        # Without a listener only those are looked at that are kept: there may be thousands.
        left_out = 0 if self.on_episode is not None else max(0, len(rows) - (self.recent.maxlen or len(rows)))
        self.num_episodes += left_out
        for row, total, length in zip(*(array[left_out:].tolist() for array in (rows, returns, lengths)), strict=True):
            self.count({"r": total, "l": length, "t": seconds}, row)

    def drop(self, rows: Array) -> None:
        """The episodes of these environments [F] are void."""
        self.returns[rows], self.lengths[rows] = 0.0, 0
        self.num_dropped += len(rows)

    def ending(self, rewards: Array, done: Array) -> dict[int, EpisodeRecord]:
        """Records of the episodes that end with a step of these rewards, before `add` counts it; by environment."""
        if self.monitored:
            return {}
        records = {}
        for row in done.nonzero()[0].tolist():
            record = self._own(row)
            records[row] = {**record, "r": (self.returns[row] + rewards[row]).tolist(), "l": record["l"] + 1}
        return records

    def _finish(self, row: int, info: dict[str, Any]) -> None:
        if info.get("is_success") is not None:
            self.successes.append(float(info["is_success"]))
        record = _reported(info) if self.monitored else self._own(row)
        self.returns[row] = 0.0
        self.lengths[row] = 0
        if record is None:  # a wrapper ended the training episode; the game goes on
            return
        self.count(record, row)

    def count(self, record: EpisodeRecord, row: int) -> None:
        """An episode of environment `row` is over."""
        self.recent.append(record)
        self.num_episodes += 1
        if self.on_episode is not None:
            self.on_episode({**record, "env": row})

    def _own(self, row: int) -> EpisodeRecord:
        seconds = round(time.time() - self.started, 6)
        return {"r": self.returns[row].tolist(), "l": int(self.lengths[row]), "t": seconds}


def _reported(info: dict[str, Any]) -> EpisodeRecord | None:
    episode = info.get("episode")
    if not isinstance(episode, dict):
        return None
    total = np.asarray(episode["r"], np.float64)
    return {"r": total.item() if total.size == 1 else total.tolist(), "l": int(episode["l"]), "t": float(episode.get("t", 0.0))}


def by_objective(name: str, value: Any) -> dict[str, float]:
    """A number under its name; K of them under "name_0", "name_1", …: their sum would mean nothing."""
    values = np.asarray(value, np.float64)
    return {name: values.item()} if not values.ndim else {f"{name}_{k}": float(v) for k, v in enumerate(values)}


def as_text(value: Any, form: str = ".2f") -> str:
    """A number in a format, or K of them in parentheses."""
    values = np.asarray(value, np.float64)
    return format(values.item(), form) if not values.ndim else f"({', '.join(format(v, form) for v in values.tolist())})"
