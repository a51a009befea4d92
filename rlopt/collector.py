"""The collector: the only place that samples actions and steps environments.

Whatever the environments do at an episode's end, what comes out follows one set of rules: s_{t+1} is the state before
any reset, terminated wins over truncated, a reset row is masked and counts nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlopt.acting import Actor, make_actor
from rlopt.envs.base import EnvironmentFault, Environments, Step, named
from rlopt.envs.normalize import ObservationNormalizer, RewardNormalizer
from rlopt.envs.spaces import Array, ArrayTree, concatenate, map_arrays, write_rows
from rlopt.episodes import episodes_as_columns
from rlopt.policies.distributions import draw_noise
from rlopt.policies.functional import Functional
from rlopt.rollout import Observations, Rollout, in_pieces, map_observations
from rlopt.statistics import EpisodeStatistics

EPISODE_BLOCK = 64  # steps collected at a time until every episode asked for is complete


class CollectionStopped(Exception):
    """A callback asked to stop. The collector is consistent; the partial rollout is dropped."""


class StepEvent(NamedTuple):
    """What a callback can see of one step: before episode statistics are updated, rewards as trained on."""

    observations: ArrayTree
    actions: Array
    env_actions: Array
    new_observations: ArrayTree
    rewards: Array
    dones: Array
    step: Step


@dataclass
class Timers:
    """Seconds since the last `reset`: where a rollout's time goes."""

    acting: float = 0.0
    stepping: float = 0.0

    def reset(self) -> None:
        self.acting = self.stepping = 0.0


class Collector:
    """Steps environments under π_θ for whatever θ an algorithm asks for.

    Args:
        envs: the environments.
        policy: an `ActorCritic` as a function of θ.
        generator: for action noise, on the CPU; nothing else draws from it.
        statistics: receives finished episodes.
        observation_normalizer, reward_normalizer: or None; updated with every valid row.
        device: where rollouts are put.
        seed: of the environments' first reset.

    Attributes:
        num_timesteps: valid environment steps since construction; may be set.
        observations: what the policy sees next, or None before the first reset.
        on_start, on_end: called around every rollout, the former with its number of steps.
        on_step: called after every vector step; a falsy answer raises `CollectionStopped`.
    """

    def __init__(
        self,
        envs: Environments,
        policy: Functional,
        generator: torch.Generator,
        statistics: EpisodeStatistics,
        observation_normalizer: ObservationNormalizer | None = None,
        reward_normalizer: RewardNormalizer | None = None,
        device: torch.device | str = "cpu",
        seed: int | None = None,
    ):
        self.envs = envs
        self.policy = policy
        self.generator = generator
        self.statistics = statistics
        self.observation_normalizer = observation_normalizer
        self.reward_normalizer = reward_normalizer
        self.device = torch.device(device)
        self.num_timesteps = 0
        self.seed = seed
        self.on_start: Callable[[int], None] | None = None
        self.on_step: Callable[[StepEvent], bool] | None = None
        self.on_end: Callable[[], None] | None = None
        self.timers = Timers()
        self.observations: ArrayTree | None = None
        self.reset_pending = np.zeros(envs.num_envs, bool)
        self._everyone = np.ones(envs.num_envs, bool)
        self._rows = np.arange(envs.num_envs)

    def reset(self, seed: int | None = None) -> None:
        """Begin new episodes in all environments, seeded with `seed`, else with `self.seed` once, else going on.

        Raises:
            EnvironmentFault: the observations do not have the shape that the space promises, or are not finite.
        """
        observations = self.envs.reset(self.seed if seed is None else seed)
        self.seed = None
        self._check_shapes(observations)
        self._check_finite({f"first {field}": array for field, array in named(observations).items()}, self._rows)
        self.reset_pending[:] = False
        self.statistics.begin(self.envs.num_envs)
        if self.reward_normalizer is not None:
            self.reward_normalizer.begin()
        self.observations = self._normalized(observations, self._everyone)

    def steps(self, theta: Tensor, num_steps: int) -> Rollout:
        """T = `num_steps` steps of every environment under π_θ, going on where the last call stopped.

        Raises:
            CollectionStopped: a callback asked for it.
            EnvironmentFault: an observation or reward that is not finite; names environment, step and field.
        """
        if self.observations is None:
            self.reset()
        assert self.observations is not None
        if self.on_start is not None:
            self.on_start(num_steps)
        module = self.policy.bind(theta)
        actor = make_actor(module, self.envs.num_envs)
        noise = draw_noise(self.envs.decoder.space, (num_steps, self.envs.num_envs), self.generator).numpy()
        record = _Record(self.envs, num_steps, module.squash)
        write_rows(record.states, 0, self.observations)
        for t in range(num_steps):
            self._advance(actor, noise[t], record, t)
        record.check_finite(self.envs.name, self.num_timesteps)
        rollout = self._finished(record, module)
        if self.on_end is not None:
            self.on_end()
        return rollout

    def episodes(self, theta: Tensor, num_episodes: int) -> Rollout:
        """`num_episodes` whole episodes under π_θ from fresh starts, one a column, padded at the end and masked.

        Every environment contributes a fixed quota: taking the first to finish would favour short episodes. Steps
        taken while waiting for the longest episode are counted in `num_timesteps`.
        """
        if num_episodes < 1:
            raise ValueError(f"num_episodes: expected a positive integer, got {num_episodes}")
        num_envs = self.envs.num_envs
        quota = np.array([(num_episodes + num_envs - 1 - i) // num_envs for i in range(num_envs)])
        self.reset()
        blocks: list[Rollout] = []
        ended = np.zeros(num_envs, np.int64)
        while (ended < quota).any():
            block = self.steps(theta, EPISODE_BLOCK)
            ended += (block.terminated | block.truncated).sum(0).cpu().numpy()
            blocks.append(block)
        return episodes_as_columns(blocks, quota)

    def _advance(self, actor: Actor, noise: Array, record: _Record, t: int) -> None:
        """One step of every environment, written into row t."""
        assert self.observations is not None
        began = perf_counter()
        actions = actor(self.observations, noise)
        env_actions = self.envs.decoder(actions, record.squashed)
        acted = perf_counter()
        step = self.envs.step(env_actions)
        self.timers.acting += acted - began
        self.timers.stepping += perf_counter() - acted

        step, valid = self._without_reset_rows(step)
        done = step.terminated | step.truncated
        finals, rewards = step.final_observations, step.rewards
        if self.observation_normalizer is not None or self.reward_normalizer is not None:
            self._check_finite({**named(step.observations), "reward": step.rewards}, self._rows)  # before they are counted
            if finals is not None:
                self._check_finite({f"final {field}": array for field, array in named(finals).items()}, step.final_rows)
        # Under next-step resets the observation of a finished episode is its last, and is not counted.
        new_observations = self._normalized(step.observations, ~done if self.envs.resets_on_next_step else self._everyone)
        if finals is not None:
            if self.observation_normalizer is not None:
                finals = self.observation_normalizer(finals)
            record.add_finals(t, step.final_rows, finals)
        if self.reward_normalizer is not None:
            rewards = self.reward_normalizer(rewards, valid, step.terminated, step.truncated)
        if valid is not self._everyone:
            record.mask[t] = valid
        record.write(t, actions, rewards, step.terminated, step.truncated)
        write_rows(record.states, t + 1, new_observations)

        self.num_timesteps += self.envs.num_envs if valid is self._everyone else int(valid.sum())
        if self.envs.resets_on_next_step:
            self.reset_pending = done
        previous, self.observations = self.observations, new_observations
        proceed = self.on_step is None or self.on_step(
            StepEvent(previous, actions, env_actions, new_observations, rewards, done, step._replace(final_observations=finals))
        )
        self.statistics.add(step.rewards, None if valid is self._everyone else valid, done, step.infos)
        if not proceed:
            raise CollectionStopped

    def _without_reset_rows(self, step: Step) -> tuple[Step, Array]:
        """The step with reset rows emptied, and which rows are valid, [N]."""
        if not (self.envs.resets_on_next_step and self.reset_pending.any()):
            return step, self._everyone
        # What comes back on a reset row opens the new episode; its reward and flags mean nothing.
        valid = ~self.reset_pending
        rewards = np.where(valid if step.rewards.ndim == 1 else valid[:, None], step.rewards, 0.0)
        return step._replace(rewards=rewards, terminated=step.terminated & valid, truncated=step.truncated & valid), valid

    def _check_finite(self, fields: dict[str, Array], environments: Sequence[int] | Array) -> None:
        """Raises EnvironmentFault unless all is finite; row i of every field is of `environments[i]`."""
        found = first_non_finite(fields)
        if found is not None:
            field, index = found
            raise EnvironmentFault(
                f"{self.envs.name}: {field} of environment {environments[index[0]]} is not finite after {self.num_timesteps} "
                "environment steps; nothing was learned from this rollout"
            )

    def _normalized(self, observations: ArrayTree, counted: Array) -> ArrayTree:
        if self.observation_normalizer is None:
            return observations
        if counted is self._everyone or counted.all():
            self.observation_normalizer.update(observations)
        elif counted.any():
            self.observation_normalizer.update(map_arrays(lambda array: array[counted], observations))
        return self.observation_normalizer(observations)

    @torch.no_grad()
    def _finished(self, record: _Record, module: Any) -> Rollout:
        """The record as tensors on the device, with the log-probabilities of one batched pass."""
        states = self._tensors(record.states)
        actions = torch.from_numpy(record.actions).to(self.device)
        rows = map_observations(lambda tensor: tensor[:-1].flatten(0, 1), states)
        log_probs = in_pieces(lambda s, a: module.actor(s).log_prob(a), rows, actions.flatten(0, 1))
        finals = concatenate(record.finals)
        no_finals = map_arrays(lambda array: array[:0, 0], record.states)
        return Rollout(
            states=states,
            actions=actions,
            log_probs=log_probs.view(actions.shape[:2]),
            rewards=torch.from_numpy(record.rewards).to(self.device),
            terminated=torch.from_numpy(record.terminated).to(self.device),
            truncated=torch.from_numpy(record.truncated & ~record.terminated).to(self.device),  # terminated wins
            mask=torch.from_numpy(record.mask).to(self.device),
            final_rows=torch.from_numpy(np.concatenate(record.final_rows or [np.zeros(0, np.int64)])).to(self.device),
            final_observations=self._tensors(no_finals if finals is None else finals),
        )

    def _tensors(self, arrays: ArrayTree) -> Observations:
        if isinstance(arrays, dict):
            return {key: torch.from_numpy(value).to(self.device) for key, value in arrays.items()}
        return torch.from_numpy(arrays).to(self.device)

    def _check_shapes(self, observations: ArrayTree) -> None:
        given, promised = named(observations), named(self.envs.encoder.empty(self.envs.num_envs))
        for field, array in promised.items():
            if np.shape(given[field]) != array.shape:
                raise EnvironmentFault(
                    f"{self.envs.name}: reset returned {field} of shape {np.shape(given[field])}, "
                    f"the space promises {array.shape}"
                )


class _Record:
    """Arrays that one rollout is written into; their memory becomes the rollout's."""

    def __init__(self, envs: Environments, num_steps: int, squashed: bool):
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
        self.squashed = squashed

    def write(self, t: int, actions: Array, rewards: Array, terminated: Array, truncated: Array) -> None:
        if rewards.ndim == 2 and self.rewards.ndim == 2:  # K objectives: known at the first step
            self.rewards = np.zeros((*self.rewards.shape, rewards.shape[1]), np.float32)
        self.actions[t] = actions
        self.rewards[t] = rewards
        self.terminated[t] = terminated
        self.truncated[t] = truncated

    def add_finals(self, t: int, rows: Sequence[int] | Array, observations: ArrayTree) -> None:
        self.final_rows.append(t * self.mask.shape[1] + np.asarray(rows, np.int64))
        self.finals.append(observations)

    def check_finite(self, name: str, num_timesteps: int) -> None:
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
            raise EnvironmentFault(
                f"{name}: {field} of environment {n} is not finite at step {t} of the rollout that ended after "
                f"{num_timesteps} environment steps; nothing was learned from this rollout"
            )


def first_non_finite(fields: dict[str, Array]) -> tuple[str, tuple[int, ...]] | None:
    """The first field with a NaN or an infinity, and the index of it; None if all is finite."""
    for field, array in fields.items():
        if np.issubdtype(array.dtype, np.floating):
            finite = np.isfinite(array)
            if not finite.all():
                return field, tuple(int(i) for i in np.argwhere(~finite)[0])
    return None
