"""What the collector asks of any batch of environments, and the errors that name one."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from gymnasium import spaces

from rlopt.envs.reward_space import Announced
from rlopt.envs.spaces import ActionDecoder, Array, ArrayTree, ObservationEncoder, map_arrays

Info = dict[str, Any]
Snapshot = dict[str, Any]
"""Where environments are, as nested dictionaries and lists of plain values and arrays."""


OnError = Literal["raise", "restart"]


class Step(NamedTuple):
    """What came back from one step of N environments.

    Attributes:
        observations: [N, *obs], encoded, what the policy sees next. Where the environments reset on the next step,
            it is the episode's last observation.
        rewards: [N], or [N, K].
        terminated: [N] bool.
        truncated: [N] bool; may be True together with `terminated`.
        final_rows: [F] indices of environments that were reset within this step.
        final_observations: [F, *obs], encoded: their last observation before that reset; None if F is 0.
        infos: one dictionary an environment, built when it is read.
        failed: [N] bool, environments that broke and were made anew: their episode is void, the observation opens another
            one. None for nobody.
    """

    observations: ArrayTree
    rewards: Array
    terminated: Array
    truncated: Array
    final_rows: Sequence[int] | Array
    final_observations: ArrayTree | None
    infos: Sequence[Info]
    failed: Array | None = None


class Environments(ABC):
    """N environments stepped together. Observations come out encoded, actions go in as the policy made them.

    Attributes:
        num_envs: N.
        encoder, decoder: between the environments' spaces and the policy's.
        resets_on_next_step: True if a finished environment is reset by the next `step`, whose row does not count.
        restarts_rows: True if `restart` begins new episodes in some environments and leaves the others alone.
        group_size: G, how many environments in a row begin their episodes together, from one seed; see `Paired`.
        monitored: True if SB3's `Monitor` reports real episodes in `info["episode"]`.
        name: for messages.
        backend_choice: how `make_envs` runs them, and why if it was free to choose; None of environments given to it.
    """

    backend_choice: str | None = None
    resets_on_next_step = False
    restarts_rows = False
    group_size = 1
    monitored = False
    _reuse_warned = False
    _announced = Announced()
    _seen: int | None = None  # K of the rewards so far

    def __init__(self, num_envs: int, observation_space: spaces.Space, action_space: spaces.Space, name: str):
        self.num_envs = int(num_envs)  # of NumPy, it would make counters that JSON does not hold
        self.encoder = ObservationEncoder(observation_space)
        self.decoder = ActionDecoder(action_space)
        self.name = name

    @property
    def num_objectives(self) -> int | None:
        """K, the rewards of one step: as the first step paid, before it as `reward_space` says; 1 for a number.

        None where nothing is known before the first step, as of ordinary environments.
        """
        return self._announced.num_objectives if self._seen is None else self._seen

    @property
    def num_objectives_certain(self) -> bool:
        """Whether `num_objectives` is what a step pays: a wrapper around what announced it may sum the rewards up."""
        return self._seen is not None or (self._announced.num_objectives is not None and self._announced.binding)

    @abstractmethod
    def reset(self, seed: int | None = None) -> ArrayTree:
        """First observations of new episodes, [N, *obs]; `seed` starts the environments' random numbers anew."""

    @abstractmethod
    def step(self, actions: Array, active: Array | None = None) -> Step:
        """One step with `actions` [N, *act] as the environments want them (see `ActionDecoder`).

        Where `active` [N] is False the row of the result means nothing, and the environment is not stepped if that is
        possible. At least one is active; None is all.
        """

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        """First observations [F, *obs] of new episodes in the environments `rows` [F], ascending, mid-episode or not.

        Args:
            rows: [F].
            seeds: of these episodes, [F], each alone with its random numbers; None goes on with seeds of the environments' own.
        """
        raise NotImplementedError(f"{self.name} cannot restart single environments")

    def handle_faults(self, on_error: OnError, timeout: float | None = None) -> None:
        """What becomes of an environment that breaks.

        Args:
            on_error: "raise" ends the training; "restart" makes the environment anew and drops its unfinished episode.
            timeout: seconds after which an environment in a worker process is taken for hung; None waits for ever.

        Raises:
            ValueError: these environments cannot be made anew one by one, or do not run in processes of their own.
        """
        if on_error == "restart":
            raise ValueError(f"on_error: {self.name} cannot make single environments anew; give an id or callables")
        if timeout is not None:
            raise ValueError(
                f"timeout: {self.name} does not run in worker processes, which alone can be given up; use backend='async'"
            )

    def seed_of_episode(self, row: int, ended_since: int) -> int | None:
        """The seed of the episode that environment `row` played this many episode ends ago; None if it had none of its own."""
        counters = self.episode_counters()
        if counters is None or counters["episodes"][row] <= ended_since:
            return None
        return episode_seed(counters["run_seed"], row, counters["episodes"][row] - 1 - ended_since)

    @abstractmethod
    def close(self) -> None:
        """Release what the environments hold. Safe to call twice."""

    def episode_counters(self) -> dict[str, Any] | None:
        """The run seed and how many episodes each environment has begun, where every episode has a seed of its own."""
        return None

    def restore_episodes(self, counters: dict[str, Any]) -> bool:
        """Go on after these episodes, if the counters are of as many environments; whether that was possible."""
        return False

    def snapshot(self) -> Snapshot | None:
        """Where the environments are, amid their episodes, with their random numbers; None of those that cannot tell."""
        return None

    def restore(self, snapshot: Snapshot) -> list[int]:
        """Go back to where others of this kind were; the environments that could not, which have to begin new episodes.

        Raises:
            ValueError, KeyError, TypeError: what no environments of this kind, and of this number, have given.
        """
        return list(range(self.num_envs))

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        """An attribute of single environments, looked up through their wrappers."""
        raise NotImplementedError(f"{self.name} does not give access to attributes of single environments")

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        """Set an attribute of single environments."""
        raise NotImplementedError(f"{self.name} does not give access to attributes of single environments")

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Sequence[int]) -> list[Any]:
        """Call a method of single environments."""
        raise NotImplementedError(f"{self.name} does not give access to methods of single environments")

    def render(self) -> list[Any]:
        """A frame of each environment, or None where there is none."""
        return [None] * self.num_envs

    def _checked_rewards(self, rewards: Array, num: int) -> Array:
        """`check_rewards` of `num` environments, and that they are as many as before.

        Raises:
            EnvironmentFault: another shape, or another K than the environment announced or paid before.
        """
        rewards = check_rewards(rewards, num, self.name)
        paid = 1 if rewards.ndim == 1 else rewards.shape[1]
        if paid != self._seen:
            self._check_objectives(paid)
            self._seen = paid
        return rewards

    def _check_objectives(self, paid: int) -> None:
        if self._seen is not None:
            raise EnvironmentFault(f"{self.name}: a step paid {paid} rewards, the steps before it {self._seen}")
        announced, binding = self._announced
        if announced in (None, paid) or (paid == 1 and not binding):
            return
        raise EnvironmentFault(
            f"{self.name}: a step paid {paid} reward{'s' if paid > 1 else ''}, its reward_space announces {announced}; a "
            "wrapper that changes the number of rewards needs a reward_space of its own"
        )

    def _explained(self, error: Exception, inside: Any) -> EnvironmentFault | None:
        """What to say of an error in a step of K rewards, which most containers and wrappers cannot hold; None of others."""
        if (self.num_objectives or 1) < 2:
            return None
        return EnvironmentFault(
            f"{self.name}: {type(inside).__name__} failed in a step whose environments pay {self.num_objectives} rewards "
            f"({error}); most containers and wrappers of Gymnasium and Stable-Baselines3 hold one. Give rlopt the single "
            "environments as a list of callables, without Monitor, or use MO-Gymnasium's MOSyncVectorEnv"
        )

    def _warn_if_reused(self, step: Step) -> None:
        """An environment that reuses its array shows the reset observation as the final one; say so, once."""
        if self._reuse_warned or step.final_observations is None or self.encoder.scalars_only:
            return
        finals, firsts = named(step.final_observations), named(step.observations)
        for i, row in enumerate(step.final_rows):
            if step.terminated[row] or not step.truncated[row]:  # only a truncated episode's last value counts
                continue
            if all(np.array_equal(finals[field][i], firsts[field][row]) for field in finals):
                self._reuse_warned = True
                warnings.warn(
                    f"{self.name}: an episode's final observation equals the reset observation. If the environment reuses "
                    "its observation array, values at truncation are wrong with resets in the same step; use NEXT_STEP "
                    "autoreset, or give rlopt the single environments.",
                    UserWarning,
                    stacklevel=2,
                )
                return


def spread(step: Step, rows: Sequence[int], num_envs: int) -> Step:
    """The step of the environments `rows` as one of all N, with zeros in the rows of the others."""
    places = np.asarray(rows, np.int64)

    def full(array: Array) -> Array:
        result = np.zeros((num_envs, *array.shape[1:]), array.dtype)
        result[places] = array
        return result

    infos: list[Info] = [{} for _ in range(num_envs)]
    for row, info in zip(rows, step.infos, strict=True):
        infos[row] = info
    return Step(
        map_arrays(full, step.observations),
        full(step.rewards),
        full(step.terminated),
        full(step.truncated),
        places[np.asarray(step.final_rows, np.int64)].tolist(),
        step.final_observations,
        infos,
        None if step.failed is None else full(step.failed),
    )


class EnvironmentRestarted(UserWarning):
    """An environment broke and was made anew; the message names environment, step, the episode's seed, and what it did."""


class EnvironmentFault(RuntimeError):
    """An environment returned something that cannot be trained on. The message names environment, step and field."""


def next_episodes(envs: Environments) -> Snapshot | None:
    """What episodes depend on that have not begun yet: those under way count for nothing."""
    counters = envs.episode_counters()
    return envs.snapshot() if counters is None else {"counters": counters}


def restore_next_episodes(envs: Environments, snapshot: Snapshot | None) -> None:
    """The inverse of `next_episodes`."""
    if snapshot is not None and "counters" in snapshot:
        envs.restore_episodes(snapshot["counters"])
    elif snapshot is not None:
        envs.restore(snapshot)


def episode_seed(run_seed: int, environment: int, episode: int) -> int:
    """The seed of one episode, in [0, 2³¹): all that is needed to play it again with the same actions."""
    return int(np.random.SeedSequence((run_seed, environment, episode)).generate_state(1)[0] >> 1)


def fresh_seed() -> int:
    """A run seed from the operating system's entropy, for runs that were given none."""
    return int(np.random.SeedSequence().generate_state(1)[0] >> 1)


def named(observations: ArrayTree) -> dict[str, Array]:
    """The arrays of an observation by the names that messages use."""
    if isinstance(observations, dict):
        return {f"observation {key!r}": value for key, value in observations.items()}
    return {"observation": observations}


def first_non_finite(fields: dict[str, Array]) -> tuple[str, tuple[int, ...]] | None:
    """The first field with a NaN or an infinity, and the index of it; None if all is finite."""
    for field, array in fields.items():
        if np.issubdtype(array.dtype, np.floating):
            finite = np.isfinite(array)
            if not finite.all():
                return field, tuple(int(i) for i in np.argwhere(~finite)[0])
    return None


def same_observations(some: ArrayTree, others: ArrayTree) -> bool:
    """Whether two observations are equal to the bit, shapes and keys included."""
    mine, theirs = named(some), named(others)
    return mine.keys() == theirs.keys() and all(
        np.array_equal(mine[field], theirs[field], equal_nan=np.issubdtype(mine[field].dtype, np.floating)) for field in mine
    )


def check_rewards(rewards: Array, num_envs: int, name: str) -> Array:
    """Rewards as [N], or [N, K] with K ≥ 2 objectives; a reward in an array of one is a number.

    Raises:
        EnvironmentFault: another shape.
    """
    if rewards.shape == (num_envs, 1):
        return rewards[:, 0]
    if rewards.shape[:1] != (num_envs,) or rewards.ndim > 2:
        raise EnvironmentFault(f"{name}: rewards have shape {rewards.shape}, expected ({num_envs},) or ({num_envs}, K)")
    return rewards
