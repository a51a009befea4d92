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

from rlopt.acting import Actor, TrunkActor, make_actor, shares_trunk
from rlopt.arguments import check_number
from rlopt.envs.base import EnvironmentFault, Environments, Snapshot, Step, first_non_finite, fresh_seed, named
from rlopt.envs.normalize import ObservationNormalizer, RewardNormalizer
from rlopt.envs.spaces import Array, ArrayTree, map_arrays, write_rows
from rlopt.episodes import Assignment, batch_seeds, noise_of_steps, only_rows
from rlopt.policies.distributions import draw_noise
from rlopt.policies.functional import Functional
from rlopt.records import Record, Tape
from rlopt.rollout import Rollout
from rlopt.statistics import EpisodeStatistics


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
        seed: of the environments' first reset, and the entropy of episodes; None takes the system's.

    Attributes:
        seed: of the environments' next reset by `steps` or `reset`; None goes on with their random numbers.
        entropy: what the seeds of all episodes are derived from.
        batches: how many batches of episodes have been drawn, by stream.
        num_timesteps: valid environment steps since construction; may be set.
        observations: what the policy sees next, or None before the first reset.
        on_start, on_end: called around every rollout, the former with its number of steps (0 where it is not known).
        on_rollout: called with every rollout before it is returned.
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
        self.entropy = fresh_seed() if seed is None else seed
        self.batches: dict[str, int] = {}
        self.on_start: Callable[[int], None] | None = None
        self.on_step: Callable[[StepEvent], bool] | None = None
        self.on_end: Callable[[], None] | None = None
        self.on_rollout: Callable[[Rollout], None] | None = None
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
        self._begin(self.seed if seed is None else seed, self._everyone)
        self.seed = None

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
        return self._ended(self._collect(self.policy.bind(theta), num_steps))

    def _collect(self, module: Any, num_steps: int) -> Rollout:
        """T steps of every environment under an actor-critic that is bound to θ."""
        noise = draw_noise(self.envs.decoder.space, (num_steps, self.envs.num_envs), self.generator).numpy()
        if shares_trunk(module):
            keeping = TrunkActor(module)
            return self.recorded(keeping, noise, module.squash).arrays().rollout(module, self.device, kept=keeping.kept())
        record = self.recorded(make_actor(module, self.envs.num_envs), noise, module.squash)
        return record.arrays().rollout(module, self.device)

    def recorded(self, actor: Actor, noise: Array, squashed: bool) -> Record:
        """One step of every environment for each row of noise [T, N, ·].

        Raises:
            CollectionStopped, EnvironmentFault: as `steps`.
        """
        assert self.observations is not None
        record = Record(self.envs, len(noise))
        write_rows(record.states, 0, self.observations)
        for t, row in enumerate(noise):
            self._advance(actor, row, squashed, record, t)
        record.check_finite(self.envs, self.num_timesteps)
        return record

    def episodes(
        self,
        theta: Tensor,
        num_episodes: int,
        horizon: int | None = None,
        stream: str = "episodes",
        around: Callable[[Actor, Assignment], Actor] | None = None,
    ) -> Rollout:
        """E = `num_episodes` whole episodes under π_θ, one a column in the order of their starts, padded and masked.

        The first E episodes that are started are taken, whatever becomes of them: with environments that are all alike
        they are independent draws, and short ones are not favoured. Environments without an episode left idle.

        Seeds depend on `entropy`, the stream and its number of batches so far alone: a batch can be drawn again, and
        what other streams do does not change it.

        Args:
            theta: [d].
            num_episodes: E.
            horizon: steps after which an episode is truncated; None leaves its end to the environment.
            stream: whose random numbers to use.
            around: makes another actor of that of π_θ, given who plays which episode; see `rlopt.branching`.

        Raises:
            CollectionStopped: a callback asked for it; the batch is dropped, and will be drawn again.
            EnvironmentFault: an observation or reward that is not finite; names environment, step and field.
            ValueError: without a horizon, an episode that does not end.
        """
        check_number("num_episodes", num_episodes, positive=True, whole=True)
        if horizon is not None:
            check_number("horizon", horizon, positive=True, whole=True)
        number = self.batches.get(stream, 0)
        seeds = batch_seeds(self.entropy, stream, number)
        if self.on_start is not None:
            self.on_start(horizon or 0)
        try:
            rollout = self._gather(theta, Assignment(self.envs, num_episodes, horizon, self.statistics), *seeds, around)
        finally:
            self.observations = None  # whatever comes next begins new episodes
        self.batches[stream] = number + 1
        return self._ended(rollout)

    def _ended(self, rollout: Rollout) -> Rollout:
        if self.on_end is not None:
            self.on_end()
        if self.on_rollout is not None:
            self.on_rollout(rollout)
        return rollout

    def snapshot(self) -> Snapshot:
        """Where the environments are, and what the policy sees next; statistics, normalisers, counters are others' to keep."""
        kept = {"seed": self.seed, "observations": self.observations, "reset_pending": self.reset_pending}
        return {**kept, "environments": self.envs.snapshot()}

    def restore(self, snapshot: Snapshot) -> list[int]:
        """Go on from there; the environments that could not go back to where they were, which begin new episodes.

        Raises:
            ValueError, KeyError, TypeError: what a collector with as many of the same environments cannot have given.
        """
        self.seed, self.observations = snapshot["seed"], None
        known = snapshot["environments"]
        lost = list(range(self.envs.num_envs)) if known is None else self.envs.restore(known)
        if snapshot["observations"] is None:  # all is begun anew in any case
            return []
        if len(lost) == self.envs.num_envs:
            return lost
        self._check_shapes(snapshot["observations"])
        self.observations = map_arrays(np.copy, snapshot["observations"])
        self.reset_pending = snapshot["reset_pending"].copy()
        if lost:
            self._restart(np.array(lost))
        return lost

    def _restart(self, rows: Array) -> None:
        """New episodes in these environments [F], whose old ones count nowhere."""
        assert self.observations is not None
        first = self._normalized(self.envs.restart(rows), np.ones(len(rows), bool))
        write_rows(self.observations, rows, first)
        self.reset_pending[rows] = False
        self._drop(rows)

    def _drop(self, rows: Array) -> None:
        """The unfinished episodes of these environments count nowhere."""
        self.statistics.drop(rows)
        if self.reward_normalizer is not None:
            self.reward_normalizer.returns[rows] = 0.0

    def _begin(self, seed: int | None, playing: Array) -> None:
        """New episodes in all environments; those that are `playing` [N] enter normalisers."""
        self.statistics.begin(self.envs.num_envs)
        if self.reward_normalizer is not None:
            self.reward_normalizer.begin()
        self._reset_environments(seed, playing)

    def _reset_environments(self, seed: int | None, playing: Array) -> None:
        observations = self.envs.reset(seed)
        self._check_shapes(observations)
        self._check_finite({f"first {field}": array for field, array in named(observations).items()}, self._rows)
        self.reset_pending = np.zeros(self.envs.num_envs, bool)
        self.observations = self._normalized(observations, playing)

    def _advance(self, actor: Actor, noise: Array, squashed: bool, record: Record, t: int) -> None:
        """One step of every environment, written into row t."""
        actions, env_actions, step = self._act(actor, noise, squashed, None)
        step, valid = self._without_reset_rows(step)
        event = self._see(actions, env_actions, step, valid, self._everyone)
        if valid is not None:
            record.mask[t] = valid
        record.write(t, actions, event.rewards, step.terminated, step.truncated)
        if step.failed is not None:
            record.cut_before(t, step.failed.nonzero()[0])
        write_rows(record.states, t + 1, event.new_observations)
        if event.step.final_observations is not None:
            record.add_finals(t, step.final_rows, event.step.final_observations)
        self._report(event, valid)

    def _gather(self, theta: Tensor, assignment: Assignment, seed: int, noise_seed: int, around: Any = None) -> Rollout:
        """The episodes of an assignment, in rounds if environments are left that can only be reset together."""
        module = self.policy.bind(theta)
        actor, tape = make_actor(module, self.envs.num_envs), Tape()
        if around is not None:
            actor = around(actor, assignment)
        noise = noise_of_steps(self.envs.decoder.space, self.envs.num_envs, noise_seed)
        self._begin(seed, assignment.active)
        while assignment.any_active:
            self._play(actor, next(noise), module.squash, assignment, tape)
            if not assignment.any_active and assignment.num_left:
                assignment.begin()
                self._reset_environments(None, assignment.active)
        columns = tape.columns(self.envs, assignment)
        columns.check_finite(self.envs.name, assignment.players)
        return columns.rollout(module, self.device, columns.mask.reshape(-1).nonzero()[0])

    def _play(self, actor: Actor, noise: Array, squashed: bool, assignment: Assignment, tape: Tape) -> None:
        """One step of the environments that play an episode, added to the tape."""
        playing = None if assignment.all_active else assignment.active
        actions, env_actions, step = self._act(actor, noise, squashed, playing)
        played = assignment.follow(*self._without_reset_rows(step))
        event = self._see(actions, env_actions, played.step, played.valid, assignment.active)
        tape.write(played, event.observations, actions, event.rewards)
        if len(played.ended):  # s_{t+1} belongs into the row below
            tape.end(_last_states(event, played.ended), played.places[played.ended] + assignment.num_episodes)
        self._report(event, played.valid)

    def _act(self, actor: Actor, noise: Array, squashed: bool, active: Array | None) -> tuple[Array, Array, Step]:
        """Sampled actions, those that the environments got, and what came back."""
        assert self.observations is not None
        began = perf_counter()
        actions = actor(self.observations, noise)
        env_actions = self.envs.decoder(actions, squashed)
        acted = perf_counter()
        step = self.envs.step(env_actions, active)
        self.timers.acting += acted - began
        self.timers.stepping += perf_counter() - acted
        return actions, env_actions, step

    def _without_reset_rows(self, step: Step) -> tuple[Step, Array | None]:
        """The step with reset rows emptied, and which rows are valid, [N]; None for all."""
        resets = self.envs.resets_on_next_step and np.count_nonzero(self.reset_pending)
        if not resets and step.failed is None:
            return step, None
        # What comes back on a reset row opens the new episode; its reward and flags mean nothing. So it is where one failed.
        valid = ~self.reset_pending if resets else np.ones(self.envs.num_envs, bool)
        if step.failed is not None:
            valid &= ~step.failed
        return only_rows(step, valid), valid

    def _see(self, actions: Array, env_actions: Array, step: Step, valid: Array | None, playing: Array) -> StepEvent:
        """The step as the policy and its updates see it: normalised, after normalisers have counted it.

        Args:
            actions, env_actions, step: what `_act` returned, without rows that do not count.
            valid: [N], rows that count; None for all.
            playing: [N], environments that go on.
        """
        assert self.observations is not None
        done = step.terminated | step.truncated
        observations, rewards = step.observations, step.rewards
        if self.observation_normalizer is not None or self.reward_normalizer is not None:
            self._check_before_counting(step, self._rows if valid is None else (valid | playing).nonzero()[0])
        if self.observation_normalizer is not None:
            # Under next-step resets the observation of a finished episode is its last, and is not counted.
            observations = self._normalized(observations, playing & ~done if self.envs.resets_on_next_step else playing)
            if step.final_observations is not None:
                step = step._replace(final_observations=self._normalized_rows(step.final_observations, step.final_rows))
        if self.reward_normalizer is not None:
            rewards = self.reward_normalizer(
                rewards, self._everyone if valid is None else valid, step.terminated, step.truncated
            )
        if self.envs.resets_on_next_step:
            self.reset_pending = done
        previous, self.observations = self.observations, observations
        return StepEvent(previous, actions, env_actions, observations, rewards, done, step)

    def _report(self, event: StepEvent, valid: Array | None) -> None:
        """Count the step, let the callback see it, then add it to the statistics."""
        self.num_timesteps += self.envs.num_envs if valid is None else int(valid.sum())
        proceed = self.on_step is None or self.on_step(event)
        step = event.step
        self.statistics.add(step.rewards, valid, event.dones, step.infos)
        if step.failed is not None:
            self._drop(step.failed.nonzero()[0])
        if not proceed:
            raise CollectionStopped

    def _check_before_counting(self, step: Step, rows: Array) -> None:
        """Raises EnvironmentFault unless what environments of these rows returned is finite."""
        fields = {**named(step.observations), "reward": step.rewards}
        if len(rows) < self.envs.num_envs:
            fields = {field: array[rows] for field, array in fields.items()}
        self._check_finite(fields, rows)
        if step.final_observations is not None:
            finals = named(step.final_observations)
            self._check_finite({f"final {field}": array for field, array in finals.items()}, step.final_rows)

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

    def _normalized_rows(self, observations: ArrayTree, rows: Sequence[int] | Array) -> ArrayTree:
        """Those of environments `rows` [F], with statistics as they are."""
        del rows  # all have the same
        assert self.observation_normalizer is not None
        return self.observation_normalizer(observations)

    def _check_shapes(self, observations: ArrayTree) -> None:
        given, promised = named(observations), named(self.envs.encoder.empty(self.envs.num_envs))
        for field, array in promised.items():
            if np.shape(given[field]) != array.shape:
                raise EnvironmentFault(
                    f"{self.envs.name}: reset returned {field} of shape {np.shape(given[field])}, "
                    f"the space promises {array.shape}"
                )


def _last_states(event: StepEvent, rows: Array) -> ArrayTree:
    """s_{t+1} of these environments before any reset, [F, *obs]."""
    states = map_arrays(np.copy, event.new_observations)
    if event.step.final_observations is not None:
        write_rows(states, np.asarray(event.step.final_rows, np.int64), event.step.final_observations)
    return map_arrays(lambda array: array[rows], states)
