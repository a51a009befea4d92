"""What the collector writes while it steps: a fixed number of steps, or whole episodes of any length."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlopt.acting import Kept
from rlopt.envs.base import EnvironmentFault, Environments, first_non_finite, named
from rlopt.envs.spaces import Array, ArrayTree, concatenate, map_arrays
from rlopt.episodes import Assignment, Played
from rlopt.rollout import Observations, Rollout, as_tensors, in_pieces, map_observations

NONE = np.zeros(0, np.int64)


class Arrays(NamedTuple):
    """A rollout before it is one: the same fields as arrays, but for log-probabilities and values."""

    states: ArrayTree
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    mask: Array
    final_rows: Array
    finals: ArrayTree

    @torch.no_grad()
    def rollout(self, module: Any, device: torch.device, rows: Any = slice(None), kept: Kept | None = None) -> Rollout:
        """Tensors on the device, with log-probabilities.

        Args:
            module: bound to θ.
            device: of the tensors.
            rows: flat indices of the rows whose log-probabilities are computed, by one batched pass; 0 elsewhere.
            kept: what was computed while acting; then there is no pass.
        """
        states, actions = as_tensors(self.states, device), torch.from_numpy(self.actions).to(device)
        return Rollout(
            states=states,
            actions=actions,
            log_probs=self._log_probs(module, states, actions, rows) if kept is None else kept.log_probs,
            rewards=torch.from_numpy(self.rewards).to(device),
            terminated=torch.from_numpy(self.terminated).to(device),
            truncated=torch.from_numpy(self.truncated & ~self.terminated).to(device),  # terminated wins
            mask=torch.from_numpy(self.mask).to(device),
            final_rows=torch.from_numpy(self.final_rows).to(device),
            final_observations=as_tensors(self.finals, device),
            acting_values=None if kept is None else kept.values,
        )

    def _log_probs(self, module: Any, states: Observations, actions: Tensor, rows: Any) -> Tensor:
        found = in_pieces(
            lambda s, a: module.actor(s).log_prob(a),
            map_observations(lambda tensor: tensor[:-1].flatten(0, 1)[rows], states),
            actions.flatten(0, 1)[rows],
        )
        log_probs = found.new_zeros(self.mask.size)
        log_probs[rows] = found
        return log_probs.view(self.mask.shape)

    def columns(self, index: slice) -> Arrays:
        """Those of some environments, neighbours."""
        num_envs = self.mask.shape[1]
        start, stop, _ = index.indices(num_envs)
        row, column = np.divmod(self.final_rows, num_envs)
        theirs = (start <= column) & (column < stop)
        grids = {name: np.ascontiguousarray(getattr(self, name)[:, index]) for name in self._fields[1:6]}
        return Arrays(
            states=map_arrays(lambda array: np.ascontiguousarray(array[:, index]), self.states),
            **grids,
            final_rows=row[theirs] * (stop - start) + column[theirs] - start,
            finals=map_arrays(lambda array: array[theirs], self.finals),
        )

    def check_finite(self, name: str, players: Array) -> None:
        """Raises EnvironmentFault for the first value that is not finite, of episodes played by the environments `players`."""
        found = first_non_finite({**named(self.states), "reward": self.rewards})
        if found is not None:
            field, (t, e, *_) = found
            raise EnvironmentFault(
                f"{name}: {field} of environment {players[e]} is not finite at step {t} of its episode; nothing was learned "
                "from this rollout"
            )


class Record:
    """Arrays that one rollout of T steps is written into; their memory becomes the rollout's."""

    def __init__(self, envs: Environments, num_steps: int):
        self.states = envs.encoder.empty(num_steps + 1, envs.num_envs)
        shape, dtype = envs.decoder.policy_array_spec()
        grid = (num_steps, envs.num_envs)
        self.actions = np.empty((*grid, *shape), dtype)
        self.rewards = np.zeros(grid, np.float32)
        self.terminated = np.zeros(grid, bool)
        self.truncated = np.zeros(grid, bool)
        self.mask = np.ones(grid, bool)
        self.final_rows: list[Array] = []
        self.finals: list[ArrayTree] = []

    def write(self, t: int, actions: Array, rewards: Array, terminated: Array, truncated: Array) -> None:
        """Row t."""
        if rewards.ndim == 2 and self.rewards.ndim == 2:  # K objectives: known at the first step
            self.rewards = np.zeros((*self.rewards.shape, rewards.shape[1]), np.float32)
        self.actions[t] = actions
        self.rewards[t] = rewards
        self.terminated[t] = terminated
        self.truncated[t] = truncated

    def cut_before(self, t: int, rows: Array) -> None:
        """Environments `rows` [F] broke in step t: their episodes are cut at s_t, as if a limit had come; row t only resets."""
        self.truncated[t, rows] = True  # masked; whoever divides rows into episodes divides here
        if t > 0:
            over = self.terminated[t - 1, rows] | self.truncated[t - 1, rows]
            self.truncated[t - 1, rows[~over]] = True

    def add_finals(self, t: int, rows: Sequence[int] | Array, observations: ArrayTree) -> None:
        """s_{t+1} of environments that were reset within step t."""
        self.final_rows.append(t * self.mask.shape[1] + np.asarray(rows, np.int64))
        self.finals.append(observations)

    def arrays(self) -> Arrays:
        """What was written."""
        finals = concatenate(self.finals)
        return Arrays(
            self.states,
            self.actions,
            self.rewards,
            self.terminated,
            self.truncated,
            self.mask,
            np.concatenate(self.final_rows or [NONE]),
            no_states(self.states) if finals is None else finals,
        )

    def check_finite(self, envs: Environments, num_timesteps: int) -> None:
        """Raises EnvironmentFault for the first value that is not finite: nothing was learned from it yet."""
        found = first_non_finite({**named(self.states), "reward": self.rewards})
        finals = concatenate(self.finals)
        if found is None and finals is not None:
            found = first_non_finite({f"final {field}": array for field, array in named(finals).items()})
            if found is not None:
                row = int(np.concatenate(self.final_rows)[found[1][0]])
                found = found[0], divmod(row, self.mask.shape[1])
        if found is not None:
            field, (t, n, *_) = found
            seed = envs.seed_of_episode(n, int((self.terminated | self.truncated)[t:, n].sum()))
            episode = "" if seed is None else f", in the episode with seed {seed}"
            raise EnvironmentFault(
                f"{envs.name}: {field} of environment {n} is not finite at step {t} of the rollout that ended after "
                f"{num_timesteps} environment steps{episode}; nothing was learned from this rollout"
            )


class Tape:
    """The rows of episodes in the order in which they were played; how many there will be is not known."""

    def __init__(self) -> None:
        self._observations: list[ArrayTree] = []
        self._actions: list[Array] = []
        self._rewards: list[Array] = []
        self._places: list[Array] = []
        self._finals: list[ArrayTree] = []
        self._final_places: list[Array] = []

    def write(self, played: Played, observations: ArrayTree, actions: Array, rewards: Array) -> None:
        """One step: s_t as the policy saw it, a_t and r_t of all environments; rows of no episode are left out."""
        places = played.places
        if played.valid is not None:
            rows = played.valid.nonzero()[0]
            observations = map_arrays(lambda array: array[rows], observations)
            actions, rewards, places = actions[rows], rewards[rows], places[rows]
        self._observations.append(observations)
        self._actions.append(actions)
        self._rewards.append(rewards)
        self._places.append(places)

    def end(self, finals: ArrayTree, places: Array) -> None:
        """The states [F, *obs] that episodes ended in, and where they belong, [F]."""
        self._finals.append(finals)
        self._final_places.append(places)

    def columns(self, envs: Environments, episodes: Assignment) -> Arrays:
        """The episodes, all of them over, as arrays."""
        horizon, num_episodes = int(episodes.lengths.max()), len(episodes.lengths)
        last, every = episodes.lengths - 1, np.arange(num_episodes)
        places, shape = np.concatenate(self._places), (horizon, num_episodes)
        terminated, truncated = np.zeros(shape, bool), np.zeros(shape, bool)
        terminated[last, every], truncated[last, every] = episodes.terminated, episodes.truncated
        if episodes.num_dropped:
            self._keep_only(episodes)
            places = np.concatenate(self._places)
        states = self._states(places, (horizon + 1, num_episodes), envs.encoder.empty(0))
        return Arrays(
            states,
            scattered(self._actions, places, shape, envs.decoder.policy_array_spec()[1]),
            scattered(self._rewards, places, shape, np.float32),
            terminated,
            truncated,
            np.arange(horizon)[:, None] < episodes.lengths,
            NONE,
            no_states(states),
        )

    def _keep_only(self, episodes: Assignment) -> None:
        """Forget the rows of episodes that were dropped: of each place only what was played there last counts."""
        num_episodes, seen = len(episodes.lengths), set[int]()
        for i in reversed(range(len(self._places))):
            places = self._places[i].tolist()
            kept = [
                row
                for row, place in enumerate(places)
                if place not in seen and place // num_episodes < episodes.lengths[place % num_episodes]
            ]
            seen.update(places[row] for row in kept)
            self._observations[i] = map_arrays(partial(np.take, indices=kept, axis=0), self._observations[i])
            self._actions[i], self._rewards[i] = self._actions[i][kept], self._rewards[i][kept]
            self._places[i] = self._places[i][kept]

    def _states(self, places: Array, shape: tuple[int, int], like: ArrayTree) -> ArrayTree:
        places = np.concatenate([places, *self._final_places])
        trees: Any = self._observations + self._finals
        if isinstance(like, dict):
            return {key: scattered([tree[key] for tree in trees], places, shape, like[key].dtype) for key in like}
        return scattered(trees, places, shape, like.dtype)


def scattered(pieces: Sequence[Array], places: Array, shape: tuple[int, int], dtype: Any) -> Array:
    """The rows of all pieces at these flat places of an array [*shape, ...], zeros elsewhere."""
    values = np.concatenate(pieces)
    result = np.zeros((shape[0] * shape[1], *values.shape[1:]), dtype)
    result[places] = values
    return result.reshape(*shape, *values.shape[1:])


def no_states(states: ArrayTree) -> ArrayTree:
    """[0, *obs] like states [T + 1, N, *obs]."""
    return map_arrays(lambda array: array[:0, 0], states)
