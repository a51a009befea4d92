"""Preferences over objectives as part of the observation: one policy for many weighted sums of rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike

from rlopt.arguments import check_number
from rlopt.envs.base import EnvironmentFault, Environments, Info, Snapshot, Step, fresh_seed
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.envs.wrapper import EnvironmentsWrapper
from rlopt.objectives import agreed_num_objectives, check_preferences

OBSERVATION, PREFERENCE = "observation", "preference"
STREAM = 0x70726566  # keeps the draws apart from others that are made from the same seed


class Preferences(EnvironmentsWrapper):
    """Environments that show weights w [K] of their objectives, drawn when an episode begins and constant within it.

    The observation is {"observation": o, "preference": w}; a Dict gets the entry "preference". w ~ Dirichlet(α) over the
    simplex, or what is fixed. That of episode e in environment i depends on the seed, i and e alone. An episode's last
    observation shows its own w, whatever the environments do at its end; `info["preference"]` is that of the step.

    Give it to an agent as its environment, or `PPO(utility="preferences")`, which wraps for itself. `FrameStack` goes inside.

    Args:
        envs: any that pay K rewards.
        weights: w of all episodes, non-negative, with sum 1; None draws. `fix` changes it later.
        concentration: α > 0, one number or [K]: 1 is uniform over the simplex, less favours single objectives.
        scalarise: pay the number Σ_k w_k r_k in place of the vector, for agents of one reward.
        seed: of the draws until `reset` is given one; None takes the system's entropy.
        num_objectives: K, where neither the environments nor `weights` say it.

    Attributes:
        preferences: [N, K], w of the episodes under way, float32.

    Raises:
        ValueError: K is unknown or 1, numbers of another length than K or out of range, or an environment that has a key
            "preference" already.

    Source: Abels et al., arXiv:1809.07803, for policies that are conditioned on weights.
    """

    def __init__(
        self,
        envs: Environments,
        weights: ArrayLike | None = None,
        concentration: float | Sequence[float] = 1.0,
        scalarise: bool = False,
        seed: int | None = None,
        num_objectives: int | None = None,
    ):
        self.size = _known_size(envs, weights, num_objectives)
        self.concentration = _checked_concentration(concentration, self.size)
        self.weights = None if weights is None else _checked_weights(weights, self.size)
        inner = envs.encoder.space
        entries = dict(inner.spaces) if isinstance(inner, spaces.Dict) else {OBSERVATION: inner}
        if PREFERENCE in entries:
            raise ValueError(f"observation space: preferences need the key {PREFERENCE!r}, which {envs.name} uses")
        space = spaces.Dict({**entries, PREFERENCE: spaces.Box(0.0, 1.0, (self.size,), np.float32)})
        super().__init__(envs, space, envs.decoder.raw_space)
        self.decoder = envs.decoder
        self.scalarise = scalarise
        self.run_seed = fresh_seed() if seed is None else seed
        self.episodes = np.zeros(self.num_envs, np.int64)
        self.preferences = np.zeros((self.num_envs, self.size), np.float32)
        self._reset_pending = np.zeros(self.num_envs, bool)

    @property
    def num_objectives(self) -> int | None:
        return 1 if self.scalarise else self.size

    def fix(self, weights: ArrayLike | None) -> None:
        """Begin all further episodes with these weights [K]; None draws again."""
        self.weights = None if weights is None else _checked_weights(weights, self.size)

    def reset(self, seed: int | None = None) -> ArrayTree:
        if seed is not None:
            self.run_seed = seed
            self.episodes[:] = 0
        self._reset_pending[:] = False
        observations = self.envs.reset(seed)
        self._begin(np.arange(self.num_envs))
        return self._joined(observations, self.preferences)

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        observations = self.envs.restart(rows, seeds)
        self._begin(rows)
        return self._joined(observations, self.preferences[rows])

    def step(self, actions: Array, active: Array | None = None) -> Step:
        step = self.envs.step(actions, active)
        before = self.preferences
        finals, begun = step.final_observations, np.asarray(step.final_rows, np.int64)
        if self.resets_on_next_step:
            begun = self._reset_pending.nonzero()[0]  # what came in these rows opens an episode
            self._reset_pending = (step.terminated | step.truncated) & ~self._reset_pending
        elif finals is not None:
            finals = self._joined(finals, before[begun])
        if step.failed is not None:
            begun = np.union1d(begun, step.failed.nonzero()[0])
        if len(begun):
            self._begin(begun)
        return step._replace(
            observations=self._joined(step.observations, self.preferences),
            rewards=self._paid(step.rewards, before),
            final_observations=finals,
            infos=PreferenceInfos(step.infos, before),
        )

    def episode_counters(self) -> dict[str, Any] | None:
        inner = self.envs.episode_counters()
        own = {"run_seed": self.run_seed, "episodes": self.episodes.tolist()}
        return None if inner is None else {**inner, PREFERENCE: own}

    def restore_episodes(self, counters: dict[str, Any]) -> bool:
        own = counters.get(PREFERENCE)
        if own is None or len(own["episodes"]) != self.num_envs or not self.envs.restore_episodes(counters):
            return False
        self.run_seed = int(own["run_seed"])
        self.episodes[:] = own["episodes"]
        return True

    def _own_snapshot(self) -> Snapshot:
        counters = {"run_seed": self.run_seed, "episodes": self.episodes.copy()}
        return {**counters, "preferences": self.preferences.copy(), "reset_pending": self._reset_pending.copy()}

    def _restore_own(self, snapshot: Snapshot) -> None:
        self.run_seed = int(snapshot["run_seed"])
        self.episodes, self.preferences, self._reset_pending = (
            snapshot[name].copy() for name in ("episodes", "preferences", "reset_pending")
        )

    def _begin(self, rows: Array) -> None:
        """New weights in these environments; arrays that were handed out stay as they are."""
        self.preferences = self.preferences.copy()
        for row in rows.tolist():
            self.preferences[row] = self._drawn(row) if self.weights is None else self.weights
        self.episodes[rows] += 1

    def _drawn(self, row: int) -> Array:
        words = STREAM, self.run_seed, row, int(self.episodes[row])
        return np.random.default_rng(np.random.SeedSequence(words)).dirichlet(self.concentration)

    def _paid(self, rewards: Array, weights: Array) -> Array:
        if rewards.ndim != 2 or rewards.shape[1] != self.size:
            paid = 1 if rewards.ndim == 1 else rewards.shape[1]
            raise EnvironmentFault(f"{self.name}: a step paid {paid} rewards, the preferences are of {self.size}")
        return (rewards * weights.astype(np.float64)).sum(1) if self.scalarise else rewards

    def _joined(self, observations: ArrayTree, weights: Array) -> dict[str, Array]:
        entries = observations if isinstance(observations, dict) else {OBSERVATION: observations}
        return {**entries, PREFERENCE: weights.copy()}


class PreferenceInfos(Sequence[Info]):
    """Infos of N environments with the weights of the step in each, built when they are read."""

    def __init__(self, infos: Sequence[Info], preferences: Array):
        self._infos, self._preferences = infos, preferences

    def __len__(self) -> int:
        return len(self._infos)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return {**self._infos[index], PREFERENCE: self._preferences[index].copy()}

    def __iter__(self) -> Iterator[Info]:
        return (self[index] for index in range(len(self)))


def _known_size(envs: Environments, weights: ArrayLike | None, given: int | None) -> int:
    """K, from the argument, the environments or the weights."""
    if given is not None:
        check_number("num_objectives", given, at_least=2, whole=True)
    size = agreed_num_objectives(given, None, envs.num_objectives) or (None if weights is None else np.size(weights))
    if size is None:
        raise ValueError(f"num_objectives: {envs.name} does not say how many rewards it pays (reward_space); give the number")
    if size < 2:
        raise ValueError(f"envs: preferences need at least two objectives, {envs.name} pays one reward")
    return int(size)


def _checked_weights(weights: ArrayLike, size: int) -> Array:
    check_preferences(weights, "weights", size)
    return np.asarray(weights, np.float32)


def _checked_concentration(concentration: float | Sequence[float], size: int) -> Array:
    array = np.asarray(concentration, np.float64)
    if array.shape not in ((), (size,)):
        raise ValueError(f"concentration: expected a number or {size} of them, got shape {array.shape}")
    if not (np.isfinite(array).all() and (array > 0).all()):
        raise ValueError(f"concentration: expected positive numbers, got {array.tolist()}")
    return np.broadcast_to(array, (size,))
