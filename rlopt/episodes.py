"""Whole episodes from environments side by side: who plays which, and when it is over."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces

from rlopt.envs.base import Environments, Info, Step
from rlopt.envs.spaces import Array, concatenate, map_arrays, write_rows
from rlopt.policies.distributions import draw_noise
from rlopt.statistics import EpisodeStatistics

MAX_EPISODE_STEPS = 50_000  # without a horizon, an episode that is longer is taken for endless
NOISE_BLOCK = 64  # vector steps whose noise is drawn at once


def batch_seeds(entropy: int, stream: str, number: int) -> tuple[int, int]:
    """Seeds of the environments and of the action noise, for batch `number` of a stream."""
    words = np.random.SeedSequence((entropy, zlib.crc32(stream.encode()), number)).generate_state(2, np.uint64)
    return int(words[0] >> 33), int(words[1] >> 1)  # environments take 31 bits


def noise_of_steps(action_space: spaces.Space, num_envs: int, seed: int) -> Iterator[Array]:
    """Noise [N, ·] of one vector step after the other, for every environment whether it idles or not."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from draw_noise(action_space, (NOISE_BLOCK, num_envs), generator).numpy()


def only_rows(step: Step, valid: Array) -> Step:
    """The step without rewards and flags outside the rows `valid` [N]."""
    rewards = np.where(valid if step.rewards.ndim == 1 else valid[:, None], step.rewards, 0.0)
    return step._replace(rewards=rewards, terminated=step.terminated & valid, truncated=step.truncated & valid)


class Played(NamedTuple):
    """One vector step as part of episodes.

    Attributes:
        step: without what idle environments did, and with the episodes cut that are at the horizon.
        valid: [N] bool, the rows that belong to an episode; None for all.
        places: [N], where a valid row belongs: t·E + e, t steps into episode e.
        ended: [F], environments whose episode ended with this step.
    """

    step: Step
    valid: Array | None
    places: Array
    ended: Array


NOBODY = np.zeros(0, np.int64)


class Assignment:
    """Who plays which episode: the first E episodes to be started are taken, whatever becomes of them.

    To take the first that finish would favour short ones. An environment whose episode is over starts the next one
    until E have been started; then it idles.

    Args:
        envs: those that play; they must be reset before the first step and after `begin`.
        num_episodes: E.
        horizon: steps after which an episode is cut, or None.
        statistics: of the environments; knows the return of an episode that is cut.

    Environments whose episodes come in groups (`group_size` above 1) begin a group once all of the one before it are over;
    its episodes are consecutive.

    Raises:
        ValueError: E is no multiple of the group size.

    Attributes:
        active: [N] bool, environments that play, or are being reset to.
        all_active, any_active: whether no environment idles, and whether not all do.
        players: [E], which environment played an episode.
        lengths, terminated, truncated: [E], of the episodes that are over.
        num_dropped: episodes that were begun again because their environment broke.
    """

    def __init__(self, envs: Environments, num_episodes: int, horizon: int | None, statistics: EpisodeStatistics):
        if num_episodes % envs.group_size:
            raise ValueError(
                f"num_episodes: expected a multiple of {envs.group_size}, the episodes of a group, got {num_episodes}"
            )
        self.envs, self.num_episodes, self.horizon, self.statistics = envs, num_episodes, horizon, statistics
        self.players = np.zeros(num_episodes, np.int64)
        self.lengths = np.zeros(num_episodes, np.int64)
        self.terminated = np.zeros(num_episodes, bool)
        self.truncated = np.zeros(num_episodes, bool)
        self.num_dropped = 0
        self._limit = horizon or MAX_EPISODE_STEPS
        self._num_started = 0
        self._places = np.full(envs.num_envs, -1)  # of the next row, t·E + e; −1 while an environment idles
        self.begin()

    @property
    def num_left(self) -> int:
        """Episodes that are still to be started."""
        return self.num_episodes - self._num_started

    @property
    def times(self) -> Array:
        """[N], how many steps ago the episode of each environment began; −1 while it idles."""
        return self._places // self.num_episodes

    @property
    def episodes(self) -> Array:
        """[N], which episode each environment plays; −1 while it idles."""
        return np.where(self._places < 0, -1, self._places % self.num_episodes)

    def begin(self) -> None:
        """Start episodes in all environments, as far as there are any left."""
        self._start(np.arange(self.envs.num_envs)[: self.num_left])
        self._take_stock()

    def follow(self, step: Step, valid: Array | None) -> Played:
        """What a step of the environments is to the episodes; afterwards `active` tells who goes on.

        Args:
            step: of all environments.
            valid: [N] bool, False on rows that only reset; None for all.

        Raises:
            ValueError: an episode is endless, and there is no horizon.
        """
        if not self.all_active:
            step, valid = self._without_idle_rows(step, valid)
        places = self._places
        below = places + self.num_episodes
        if step.failed is not None and (rows := (step.failed & self.active).nonzero()[0]).size:
            places = places.copy()
            places[rows] %= self.num_episodes  # back to its first step
            self.num_dropped += len(rows)
        self._places = below if valid is None else np.where(valid, below, places)
        self._sure -= 1
        done = step.terminated | step.truncated
        if self._sure and not np.count_nonzero(done):  # half the cost of `any`
            return Played(step, valid, places, NOBODY)
        step, ended = self._end(step, done)
        return Played(step, valid, places, ended)

    def _end(self, step: Step, done: Array) -> tuple[Step, Array]:
        """End the episodes that are `done` [N] or at the horizon, and start others; the step with those cut, who ended."""
        times = self.times
        late = (times >= self._limit) & ~done
        if late.any():
            step = self._cut(step, late)
        rows = (done | late).nonzero()[0]
        episodes = self._places[rows] % self.num_episodes
        self.lengths[episodes] = times[rows]
        self.terminated[episodes] = step.terminated[rows]
        self.truncated[episodes] = step.truncated[rows] & ~step.terminated[rows]  # terminated wins
        self._places[rows] = -1
        free = self._free(rows, done)[: self.num_left]
        # Those of groups begin anew even if they were reset within the step: from a seed that all of the group have.
        again = free[late[free]] if self.envs.group_size == 1 else free
        if len(again):
            step = self._restarted(step, again, late)
        self._start(free)
        if not np.array_equal(free, rows) or not self._sure:
            self._take_stock()
        return step, rows

    def _free(self, rows: Array, done: Array) -> Array:
        """Environments that can begin another episode now that those of `rows` are over, ascending."""
        size = self.envs.group_size
        if size == 1:
            return rows if self.envs.restarts_rows else done.nonzero()[0]
        groups = np.unique(rows // size)
        over = (self._places.reshape(-1, size)[groups] < 0).all(1)
        return (groups[over, None] * size + np.arange(size)).reshape(-1)

    def _start(self, rows: Array) -> None:
        """The next episodes, in these environments."""
        episodes = self._num_started + np.arange(len(rows))
        self._num_started += len(rows)
        self.players[episodes] = rows
        self._places[rows] = episodes

    def _take_stock(self) -> None:
        """Who plays, and for how many vector steps no episode can come to the limit."""
        self.active = self._places >= 0
        self.all_active, self.any_active = bool(self.active.all()), bool(self.active.any())
        self._idle_infos: dict[int, Info] = {row: {} for row in (~self.active).nonzero()[0].tolist()}
        # To compare times with the limit in every step would cost more.
        self._sure = self._limit - int(self._places.max()) // self.num_episodes

    def _without_idle_rows(self, step: Step, valid: Array | None) -> tuple[Step, Array]:
        valid = self.active if valid is None else valid & self.active
        failed = None if step.failed is None else step.failed & self.active
        step = only_rows(step, valid)._replace(infos=ChangedInfos(step.infos, self._idle_infos), failed=failed)
        if step.final_observations is None:
            return step, valid
        final_rows = np.asarray(step.final_rows, np.int64)
        kept = self.active[final_rows]
        finals = map_arrays(lambda array: array[kept], step.final_observations) if kept.any() else None
        return step._replace(final_rows=final_rows[kept], final_observations=finals), valid

    def _cut(self, step: Step, late: Array) -> Step:
        """The step with these episodes truncated, and their infos saying so."""
        if self.horizon is None:
            raise ValueError(
                f"horizon: an episode of {self.envs.name} has not ended after {MAX_EPISODE_STEPS:,} steps; give a horizon, "
                "after which episodes are cut"
            )
        infos = {row: self._cut_info(step, row) for row in late.nonzero()[0].tolist()}
        return step._replace(truncated=step.truncated | late, infos=ChangedInfos(step.infos, infos))

    def _cut_info(self, step: Step, row: int) -> Info:
        info = {**step.infos[row], "TimeLimit.truncated": True}
        if self.statistics.monitored:  # the Monitor does not know of the cut: our account is the only one
            known = self.statistics
            total = (known.returns[row] + step.rewards[row]).tolist()
            info["episode"] = {"r": total, "l": int(known.lengths[row]) + 1, "t": round(time.time() - known.started, 6)}
        return info

    def _restarted(self, step: Step, rows: Array, late: Array) -> Step:
        """The step with these environments reset within it; those that are `late` [N] were amid their games."""
        cut = rows[late[rows]]
        shown = map_arrays(lambda array: array[cut], step.observations)
        observations = map_arrays(np.copy, step.observations)
        write_rows(observations, rows, self.envs.restart(rows))
        return step._replace(
            observations=observations,
            final_rows=[*step.final_rows, *cut.tolist()],
            final_observations=concatenate([tree for tree in (step.final_observations, shown) if tree is not None]),
        )


class ChangedInfos(Sequence[Info]):
    """Infos of N environments, some of them replaced."""

    def __init__(self, infos: Sequence[Info], replaced: dict[int, Info]):
        self._infos, self._replaced = infos, replaced

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        return self._replaced[row] if row in self._replaced else self._infos[row]
