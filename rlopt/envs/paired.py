"""Groups of episodes that begin in the same state, from the same seed: what REBEL compares with one another."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from rlopt.arguments import check_number
from rlopt.envs.base import EnvironmentFault, Environments, OnError, Snapshot, Step, episode_seed, fresh_seed, named
from rlopt.envs.gymnasium_vector import EnvPoolEnvironments, GymnasiumEnvironments
from rlopt.envs.sb3_vector import SB3Environments
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.envs.vector import Backend, make_envs
from rlopt.envs.wrapper import EnvironmentsWrapper, innermost

PROBE_STEPS = 16  # actions that are played twice before environments are trusted
PROBE_SEED = 1
# Rows of one matrix product differ in their last digits by their place; what another seed draws differs in all.
RELATIVE, ABSOLUTE = 1e-5, 1e-7


class Paired(EnvironmentsWrapper):
    """Environments whose episodes come in groups of G, all of a group from one seed; actions are their own.

    The environments g·G … (g + 1)·G − 1 play a group together. One whose episode is over idles until those of the others
    are, then all are reset with the next seed. `Collector.episodes` makes of group number g, counted from a reset, the
    columns g·G … (g + 1)·G − 1. The seed of a group depends on that of the reset and on g alone, not on how many
    environments there are, nor on the policy.

    Random numbers of the environments are those of the seed as well. They stay the same for two members as long as both
    draw equally many; what an episode sees is distributed as without groups. In `Collector.steps` only the first episode
    of an environment is one of a group.

    Rewards are compared between members: sum raw ones, since running normalisation changes from step to step.

    Args:
        envs: that begin single episodes from given seeds: single environments (backends "sync" and "async"), the
            library's own vector environments, or a Gymnasium `VectorEnv` under `AutoresetMode.DISABLED`. `Memory` goes
            around this, `FrameStack` may be inside.
        group_size: G, at least 2.
        probe_steps: actions that are played twice at once, to see that a seed determines what happens.

    Raises:
        ValueError: a group size that does not divide the number of environments; environments that cannot be seeded one
            by one, or that a seed does not determine.

    Attributes:
        group_size: G.
        run_seed: what the seeds of groups are derived from, that of the last reset.
        num_begun: groups since.
        seeds: [N], of the episodes that are played.
    """

    def __init__(self, envs: Environments, group_size: int, probe_steps: int = PROBE_STEPS):
        check_number("group_size", group_size, at_least=2, whole=True)
        check_number("probe_steps", probe_steps, positive=True, whole=True)
        if envs.num_envs % group_size:
            raise ValueError(f"group_size: {envs.num_envs} environments cannot be divided into groups of {group_size}")
        if not envs.restarts_rows:
            raise ValueError(f"envs: groups need environments that begin single episodes from a given seed; {_why_not(envs)}")
        super().__init__(envs, envs.encoder.raw_space, envs.decoder.raw_space)
        self.encoder, self.decoder = envs.encoder, envs.decoder
        self.group_size = int(group_size)
        self.run_seed = fresh_seed()
        self.num_begun = 0
        self.seeds = np.zeros(self.num_envs, np.int64)
        self._probe(probe_steps)

    def reset(self, seed: int | None = None) -> ArrayTree:
        """First observations [N, *obs] of N / G groups: with a seed those numbered from 0, else the next.

        Raises:
            EnvironmentFault: members of a group begin differently.
        """
        if seed is not None:
            self.run_seed, self.num_begun = seed, 0
        return self.restart(np.arange(self.num_envs))

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        """First observations [F, *obs] of the next groups, in environments [F] that are whole groups.

        Raises:
            EnvironmentFault: members of a group begin differently.
            ValueError: a part of a group.
        """
        leaders = rows[:: self.group_size]
        whole = leaders[:, None] // self.group_size * self.group_size + np.arange(self.group_size)
        if not np.array_equal(whole.reshape(-1), rows):
            raise ValueError(f"rows: expected whole groups of {self.group_size} environments, got {rows.tolist()}")
        if seeds is None:
            numbers = range(self.num_begun, self.num_begun + len(leaders))
            seeds = [episode_seed(self.run_seed, 0, number) for number in numbers for _ in range(self.group_size)]
            self.num_begun += len(leaders)
        observations = self.envs.restart(rows, seeds)
        self.seeds[rows] = seeds
        self._check_alike(observations, rows)
        return observations

    def step(self, actions: Array, active: Array | None = None) -> Step:
        """As the environments inside.

        Raises:
            EnvironmentFault: one of them broke, and was made anew.
        """
        step = self.envs.step(actions, active)
        if step.failed is not None:
            raise EnvironmentFault(f"{self.name}: an environment of a group broke, and cannot begin again without the others")
        return step

    def handle_faults(self, on_error: OnError, timeout: float | None = None) -> None:
        if on_error == "restart":
            raise ValueError("on_error: an episode of a group cannot be begun again alone; expected 'raise', got 'restart'")
        self.envs.handle_faults(on_error, timeout)

    def episode_counters(self) -> dict[str, Any] | None:
        """None: groups are counted from a reset, and every batch of episodes begins with one."""
        return None

    def restore_episodes(self, counters: dict[str, Any]) -> bool:
        return False

    def restore(self, snapshot: Snapshot) -> list[int]:
        """Where one member could not go back to where it was, its whole group begins anew."""
        groups = {row // self.group_size for row in super().restore(snapshot)}
        return [row for group in sorted(groups) for row in range(group * self.group_size, (group + 1) * self.group_size)]

    def _own_snapshot(self) -> Snapshot:
        return {"run_seed": self.run_seed, "num_begun": self.num_begun, "seeds": self.seeds.copy()}

    def _restore_own(self, snapshot: Snapshot) -> None:
        self.run_seed, self.num_begun = int(snapshot["run_seed"]), int(snapshot["num_begun"])
        self.seeds = snapshot["seeds"].copy()

    def _check_alike(self, observations: ArrayTree, rows: Array) -> None:
        """Raises EnvironmentFault unless the first observations are those of the group's first member."""
        found = _first_difference(named(observations), self._of_leaders(named(observations)), np.ones(len(rows), bool))
        if found is not None:
            field, place = found
            raise EnvironmentFault(
                f"{self.name}: {field} of environment {rows[place]} at an episode's start is another than that of environment "
                f"{rows[place - place % self.group_size]}, which began with the same seed {self.seeds[rows[place]]}"
            )

    def _of_leaders(self, fields: dict[str, Array]) -> dict[str, Array]:
        """In every row of [F, ...] that of the first member of its group."""
        return {name: np.repeat(array[:: self.group_size], self.group_size, 0) for name, array in fields.items()}

    def _probe(self, num_steps: int) -> None:
        """Play one sequence of actions twice.

        Raises:
            ValueError: what was seen, paid or ended differed, between the plays or within a group.
        """
        plays = [self._play(num_steps) for _ in range(2)]
        for t, (first, second) in enumerate(zip(*plays, strict=True)):
            for other, words in ((second.fields, "played twice"), (self._of_leaders(first.fields), "played side by side")):
                found = _first_difference(first.fields, other, first.alive)
                if found is not None:
                    raise ValueError(
                        f"envs: {self.name} is not determined by its seed: {found[0]} of environment {found[1]} differs after "
                        f"{(t + 1) // 2} steps of the same actions, {words}; episodes of a group would not begin or go on alike"
                    )

    def _play(self, num_steps: int) -> list[_Shown]:
        """What environments show of a few steps from seeds of the groups, actions the same in a group."""
        space = copy.deepcopy(self.decoder.raw_space)
        space.seed(PROBE_SEED)
        num_groups = self.num_envs // self.group_size
        seeds = [episode_seed(PROBE_SEED, 0, group) for group in range(num_groups) for _ in range(self.group_size)]
        try:
            observations = self.envs.restart(np.arange(self.num_envs), seeds)
        except (TypeError, ValueError, gym.error.Error) as error:
            raise ValueError(f"envs: {self.name} does not take a seed for each of its environments ({error})") from error
        alive = np.ones(self.num_envs, bool)
        shown = [_Shown(_copied(named(observations)), alive)]
        for _ in range(num_steps):
            actions = np.stack([space.sample() for _ in range(num_groups)]).astype(self.decoder.dtype)
            step = self.step(np.repeat(actions, self.group_size, 0))
            flags = {"reward": step.rewards, "terminated": step.terminated, "truncated": step.truncated}
            shown.append(_Shown(_copied(flags), alive))
            alive = alive & ~(step.terminated | step.truncated)
            shown.append(_Shown(_copied(named(step.observations)), alive))  # of an episode that goes on
        return shown


class _Shown(NamedTuple):
    fields: dict[str, Array]  # [N, ...] each
    alive: Array  # [N] bool, rows that mean something


def paired_envs(
    env: Any,
    num_groups: int,
    group_size: int,
    backend: Backend = "auto",
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
) -> Paired:
    """P·G environments in groups of G, from anything that `make_envs` takes.

    Args:
        env, seed, env_kwargs: as of `make_envs`; what brings its own number of environments keeps it.
        num_groups: P, groups side by side.
        group_size: G.
        backend: as of `make_envs`, but that "auto" takes Gymnasium's own vector implementation of an id only where it
            can be seeded copy by copy.

    Raises:
        ValueError, ImportError: what `make_envs` and `Paired` raise.
    """
    check_number("num_groups", num_groups, positive=True, whole=True)
    check_number("group_size", group_size, at_least=2, whole=True)
    return in_groups(make_envs(env, num_groups * group_size, backend, seed, env_kwargs), group_size)


def in_groups(envs: Environments, group_size: int) -> Paired:
    """The environments in groups of G; those that `make_envs` chose to be Gymnasium's vector ones, one by one if need be.

    Raises:
        ValueError: what `Paired` raises.
    """
    try:
        return Paired(envs, group_size)
    except ValueError:
        if not isinstance(envs, GymnasiumEnvironments) or envs.one_by_one is None:
            raise
    return Paired(envs.one_by_one(), group_size)


def _why_not(envs: Environments) -> str:
    inner = innermost(envs)
    if isinstance(inner, EnvPoolEnvironments):
        return f"{inner.name} takes seeds at construction only; use backend='sync' or 'async'"
    if isinstance(inner, GymnasiumEnvironments):
        return (
            f"{inner.name} begins episodes by itself under {inner.mode.name} autoreset; make it with "
            "autoreset_mode=AutoresetMode.DISABLED, or use backend='sync' or 'async'"
        )
    if isinstance(inner, SB3Environments):
        return (
            f"{inner.name}, a VecEnv of Stable-Baselines3, begins episodes by itself; give rlopt the single environments as "
            "a list of callables"
        )
    return f"{inner.name} ({type(inner).__name__}) does not"


def _first_difference(fields: dict[str, Array], others: dict[str, Array], rows: Array) -> tuple[str, int] | None:
    """The first field that differs in one of `rows` [n] bool, and that row; NaN is NaN."""
    for field, array in fields.items():
        if np.issubdtype(array.dtype, np.floating):
            differs = ~np.isclose(array, others[field], RELATIVE, ABSOLUTE, equal_nan=True)
        else:
            differs = array != others[field]
        differing = differs.reshape(len(array), -1).any(1) & rows
        if differing.any():
            return field, int(differing.argmax())
    return None


def _copied(fields: dict[str, Array]) -> dict[str, Array]:
    return {name: np.array(array) for name, array in fields.items()}
