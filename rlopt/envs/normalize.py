"""Running normalisation of observations and rewards, with the semantics of SB3's `VecNormalize`.

Statistics see the observations of valid rows only: an episode's last observation is normalised but never counted,
and neither is anything of a reset row. They are saved with the agent and frozen in evaluation.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd

from rlopt.envs.memory import MEMORY, PREVIOUS_ACTION, MemoryObservations
from rlopt.envs.preferences import PREFERENCE
from rlopt.envs.spaces import Array, ArrayTree

EPSILON = 1e-8


class ObservationNormalizer:
    """(o − mean) / sqrt(var + ε), clipped to ±clip, with running mean and variance over all environments.

    Float entries of a Dict observation are normalised each by itself; integer and image entries are left alone, and so is
    what a stateful policy remembers: it would drift. A preference stays what was asked for.
    """

    def __init__(self, space: spaces.Space, clip: float = 10.0):
        self.clip = clip
        entries = dict(space.spaces) if isinstance(space, spaces.Dict) else {"": space}
        if isinstance(space, MemoryObservations):
            entries = {key: sub for key, sub in entries.items() if key not in (MEMORY, PREVIOUS_ACTION)}
        entries = {key: sub for key, sub in entries.items() if key != PREFERENCE}
        self.moments = {key: RunningMeanStd(shape=sub.shape or ()) for key, sub in entries.items() if _is_float(sub)}
        if not self.moments:
            raise ValueError(f"normalize_observations: {space} has no float Box to normalise")

    def update(self, observations: ArrayTree) -> None:
        """Count a batch [n, *obs] of finite values."""
        entries = observations if isinstance(observations, dict) else {"": observations}
        for key, moments in self.moments.items():
            moments.update(entries[key])

    def __call__(self, observations: ArrayTree) -> ArrayTree:
        """The observations normalised with the statistics as they are, float32."""
        if isinstance(observations, dict):
            return {key: self._normalized(key, value) if key in self.moments else value for key, value in observations.items()}
        return self._normalized("", observations)

    def _normalized(self, key: str, values: Array) -> Array:
        moments = self.moments[key]
        scaled = (values - moments.mean) / np.sqrt(moments.var + EPSILON)
        return np.clip(scaled, -self.clip, self.clip).astype(np.float32)

    def state(self) -> dict[str, Array]:
        """The statistics as float64 arrays, by name."""
        return {f"{key}:{name}": array for key, moments in self.moments.items() for name, array in _state(moments).items()}

    def load_state(self, state: dict[str, Array]) -> None:
        """The inverse of `state`."""
        for key, moments in self.moments.items():
            _load(moments, {name: state[f"{key}:{name}"] for name in ("mean", "var", "count")})


class RewardNormalizer:
    """r / sqrt(var(R) + ε), clipped to ±clip, R being the running discounted return of each environment.

    The mean is not removed. R is zeroed at any episode's end, or, with `carry_across_truncation`, only at termination
    as Gymnasium's wrapper and CleanRL have it. Of K rewards each is divided by the deviation of its own return.

    Args:
        num_envs: N.
        gamma: γ in [0, 1].
        clip: bound on what comes out.
        carry_across_truncation: see above.
        num_objectives: K, 1 for rewards [N]; None where the first rewards are to tell.
    """

    returns: Array  # R [N] or [N, K]

    def __init__(
        self,
        num_envs: int,
        gamma: float,
        clip: float = 10.0,
        carry_across_truncation: bool = False,
        num_objectives: int | None = None,
    ):
        self.gamma = gamma
        self.clip = clip
        self.carry_across_truncation = carry_across_truncation
        self.num_objectives = num_objectives
        self._begin_counting(num_envs)

    def __call__(self, rewards: Array, valid: Array, terminated: Array, truncated: Array) -> Array:
        """Rewards [N] or [N, K], all finite, normalised after counting those of valid rows.

        Raises:
            ValueError: another K than that of the statistics.
        """
        self._expect(rewards)
        counted = valid if rewards.ndim == 1 else valid[:, None]
        self.returns = np.where(counted, self.returns * self.gamma + rewards, self.returns)
        if valid.any():
            self.moments.update(self.returns[valid])
        scaled = np.clip(rewards / self.deviations, -self.clip, self.clip)
        self.returns[terminated if self.carry_across_truncation else terminated | truncated] = 0.0
        return scaled

    @property
    def deviations(self) -> Array:
        """What rewards are divided by now, a number or [K]."""
        return np.sqrt(np.asarray(self.moments.var) + EPSILON)

    def begin(self) -> None:
        """All environments start new episodes."""
        self.returns[:] = 0.0

    def state(self) -> dict[str, Array]:
        """The statistics as float64 arrays, by name."""
        return {**_state(self.moments), "returns": self.returns}

    def load_state(self, state: dict[str, Array]) -> None:
        """The inverse of `state`; returns under way are dropped where the number of environments changed.

        Raises:
            ValueError: statistics of another K.
        """
        mean = np.asarray(state["mean"])
        given = int(mean.shape[0]) if mean.ndim else 1
        if given == 1 and float(state["count"]) < 1:  # nothing was counted: perhaps K was not known
            return
        if self.num_objectives not in (None, given):
            raise ValueError(
                f"normalize_rewards: the statistics are of {given} reward{'s' if given > 1 else ''} a step, the environment "
                f"pays {self.num_objectives}"
            )
        if self.num_objectives is None:
            self.num_objectives = given
            self._begin_counting(len(self.returns))
        _load(self.moments, state)
        if state["returns"].shape == self.returns.shape:
            self.returns = np.array(state["returns"])

    def _expect(self, rewards: Array) -> None:
        """Begin to count rewards of this shape, or see that it is the one that was counted."""
        paid = 1 if rewards.ndim == 1 else rewards.shape[1]
        if paid != self.num_objectives and float(self.moments.count) < 1:  # nothing was counted
            self.num_objectives = paid
            self._begin_counting(len(rewards))
        if paid != self.num_objectives:
            raise ValueError(
                f"normalize_rewards: expected {self.num_objectives} rewards a step, as the statistics are of, got {paid}"
            )

    def _begin_counting(self, num_envs: int) -> None:
        shape = () if self.num_objectives in (None, 1) else (self.num_objectives,)
        self.returns = np.zeros((num_envs, *shape))
        self.moments = RunningMeanStd(shape=shape)


def _is_float(space: spaces.Space) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating)


def _state(moments: RunningMeanStd) -> dict[str, Array]:
    count: Any = moments.count
    return {"mean": np.array(moments.mean), "var": np.array(moments.var), "count": np.array(count, np.float64)}


def _load(moments: RunningMeanStd, state: dict[str, Array]) -> None:
    moments.mean, moments.var = np.array(state["mean"]), np.array(state["var"])
    moments.count = float(state["count"])
