"""Single environments stepped one after the other in this process, every episode with a seed of its own."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor

from rlopt.envs.base import (
    EnvironmentFault,
    EnvironmentRestarted,
    Environments,
    Info,
    OnError,
    Snapshot,
    Step,
    episode_seed,
    fresh_seed,
    same_observations,
    spread,
)
from rlopt.envs.form import Form, complaint_of_reward, said
from rlopt.envs.replay import EpisodeTape
from rlopt.envs.reward_space import announced_objectives
from rlopt.envs.spaces import Array, ArrayTree, concatenate, map_arrays, stack_observations

EnvFactory = Callable[[], gym.Env]
MOST_IN_A_ROW = 10  # episodes that break, one after the other, before an environment is given up


class SyncEnvironments(Environments):
    """N `gym.Env`s with same-step resets; the last observation is copied before the reset.

    Episode e of environment i is reset with `episode_seed(run_seed, first_index + i, e)`, so it can be played again.

    Attributes:
        on_error: "raise", or "restart"; see `handle_faults`.
        envs: the environments.
        episodes: [N], how many episodes each has begun.
    """

    restarts_rows = True

    def __init__(self, factories: Sequence[EnvFactory], first_index: int = 0, name: str = "environment"):
        self.envs = [factory() for factory in factories]
        check_same_spaces(self.envs)
        if len({id(env.unwrapped) for env in self.envs}) < len(self.envs):
            raise ValueError("env: the callables returned the same environment object twice; each must make a new one")
        first = self.envs[0]
        super().__init__(len(self.envs), first.observation_space, first.action_space, name)
        self.monitored = all(is_wrapped(env, Monitor) for env in self.envs)
        self._announced = announced_objectives(first)
        self.first_index = first_index
        self.run_seed = fresh_seed()
        self.episodes = np.zeros(self.num_envs, np.int64)
        self._rows = range(self.num_envs)
        self._tapes = [EpisodeTape() for _ in self.envs]
        self._factories, self.on_error = factories, "raise"
        self._in_a_row = np.zeros(self.num_envs, np.int64)  # faults
        self._form = Form(self.encoder)

    def reset(self, seed: int | None = None) -> ArrayTree:
        if seed is not None:
            self.run_seed = seed
            self.episodes[:] = 0
        return self._joined([self._begun(index) for index in self._rows], self._rows)

    def step(self, actions: Array, active: Array | None = None) -> Step:
        stepped = self._rows if active is None else active.nonzero()[0].tolist()
        observations = []
        rewards: list[Any] = []
        terminated = np.zeros(len(stepped), bool)
        truncated = np.zeros(len(stepped), bool)
        final_rows: list[int] = []
        finals = []
        infos: list[Info] = [{}] * len(stepped)
        failed: list[int] = []
        for row, index in enumerate(stepped):
            try:
                observation, reward, over, cut, infos[row] = self._stepped(index, actions[index])
            except EnvironmentFault as fault:
                observation, reward, over, cut = self._made_anew(index, fault), None, False, False
                failed.append(row)
            else:
                self._tapes[index].add(actions[index], observation, reward)
            rewards.append(reward)
            if over or cut:
                terminated[row], truncated[row] = over, cut
                final_rows.append(row)
                rewards[row] = np.array(reward)  # the reset may reuse its array too
                finals.append(self._joined([observation], [index]))  # copied before the reset, which may reuse its array
                self._in_a_row[index] = 0
                observation = self._begun(index)
            observations.append(observation)
        step = Step(
            self._joined(observations, stepped),
            self._joined_rewards(rewards),
            terminated,
            truncated,
            final_rows,
            concatenate(finals),
            infos,
            np.isin(np.arange(len(stepped)), failed) if failed else None,
        )
        return step if len(stepped) == self.num_envs else spread(step, stepped, self.num_envs)

    def restart(self, rows: Array, seeds: Sequence[int] | None = None) -> ArrayTree:
        given = [None] * len(rows) if seeds is None else seeds
        return self._joined([self._begun(int(row), seed) for row, seed in zip(rows, given, strict=True)], rows.tolist())

    def handle_faults(self, on_error: OnError, timeout: float | None = None) -> None:
        if timeout is not None:
            super().handle_faults("raise", timeout)
        self.on_error = on_error

    def close(self) -> None:
        for env in self.envs:
            env.close()

    def episode_counters(self) -> dict[str, Any]:
        return {"run_seed": self.run_seed, "episodes": self.episodes.tolist()}

    def restore_episodes(self, counters: dict[str, Any]) -> bool:
        if len(counters["episodes"]) != self.num_envs:
            return False
        self.run_seed = int(counters["run_seed"])
        self.episodes[:] = counters["episodes"]
        return True

    def snapshot(self) -> Snapshot:
        tapes = self._tapes
        begun = all(tape.seed is not None for tape in tapes)
        return {
            **self.episode_counters(),
            "seeds": [tape.seed for tape in tapes],
            "actions": [tape.actions() for tape in tapes],
            "paid": [np.asarray(tape.paid, np.float64) for tape in tapes],
            "shown": self._encode([tape.shown for tape in tapes]) if begun else None,
        }

    def restore(self, snapshot: Snapshot) -> list[int]:
        """Plays the episodes again. One that does not come to where it was is not determined by its seed."""
        if not self.restore_episodes(snapshot):
            raise ValueError(f"expected {self.num_envs} environments, got {len(snapshot['episodes'])}")
        return [index for index in self._rows if not self._came_back(index, snapshot)]

    def _came_back(self, index: int, snapshot: Snapshot) -> bool:
        """Whether the environment shows and pays, after the actions of its episode, what it did."""
        tape, seed, actions = self._tapes[index], snapshot["seeds"][index], snapshot["actions"][index]
        if seed is None or actions is None or snapshot["shown"] is None:
            return False
        try:
            if not tape.play_again(self.envs[index], seed, actions):
                return False
        except Exception:  # whatever an environment raises, it did not come back
            return False
        before = map_arrays(lambda array: array[index : index + 1], snapshot["shown"])
        # What is paid may depend on more than the episode, as with Gymnasium's NormalizeReward.
        paid = np.array_equal(np.asarray(tape.paid, np.float64), snapshot["paid"][index], equal_nan=True)
        return paid and same_observations(self._encode([tape.shown]), before)

    def get_attr(self, name: str, indices: Sequence[int]) -> list[Any]:
        return [self.envs[index].get_wrapper_attr(name) for index in indices]

    def set_attr(self, name: str, value: Any, indices: Sequence[int]) -> None:
        for index in indices:
            self.envs[index].set_wrapper_attr(name, value)

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], indices: Sequence[int]) -> list[Any]:
        return [self.envs[index].get_wrapper_attr(name)(*args, **kwargs) for index in indices]

    def render(self) -> list[Any]:
        return [None if env.render_mode is None else env.render() for env in self.envs]

    def _joined_rewards(self, rewards: list[Any]) -> Array:
        """Rewards [n] or [n, K], float64, of n environments; zeros for None, of those that failed."""
        paid = [reward for reward in rewards if reward is not None]
        try:
            joined = np.asarray(paid, np.float64)
        except (TypeError, ValueError) as error:
            shapes = sorted({np.shape(reward) for reward in paid})
            raise EnvironmentFault(f"{self.name}: rewards are not numbers, or their shapes differ: {shapes}") from error
        if not paid:  # K may not be known yet
            paid_before = self.num_objectives or 1
            return np.zeros(len(rewards)) if paid_before == 1 else np.zeros((len(rewards), paid_before))
        joined = self._checked_rewards(joined, len(paid))
        if len(paid) < len(rewards):
            full = np.zeros((len(rewards), *joined.shape[1:]))
            full[[reward is not None for reward in rewards]] = joined
            return full
        return joined

    def _begun(self, index: int, seed: int | None = None) -> Any:
        """The first observation of an environment's next episode, or of a new environment's where this one breaks.

        Raises:
            EnvironmentFault: it breaks, and none is to be made, or those break again and again.
        """
        while True:
            try:
                observation = self._begin_episode(index, seed)
                complaint = self._form.complaint(observation) if self.on_error == "restart" else None
                if complaint is None:
                    return observation
                raise self._fault(index, f"in reset {complaint}")
            except EnvironmentFault as fault:
                self._replace(index, fault)

    def _begin_episode(self, index: int, seed: int | None = None) -> Any:
        if seed is None:
            seed = episode_seed(self.run_seed, self.first_index + index, int(self.episodes[index]))
        self.episodes[index] += 1
        try:
            observation, _ = self.envs[index].reset(seed=seed)
        except Exception as error:
            raise EnvironmentFault(
                f"{self.name}: environment {self.first_index + index} failed in reset(seed={seed}): {said(error)}"
            ) from error
        self._tapes[index].begin(seed, observation)
        return observation

    def _stepped(self, index: int, action: Any) -> tuple[Any, Any, bool, bool, Info]:
        """One step of one environment; where it may be made anew, what it returned is looked at at once.

        Raises:
            EnvironmentFault: it raised, or returned what cannot be trained on.
        """
        try:
            observation, reward, over, cut, info = self.envs[index].step(action)
        except Exception as error:
            fault = self._explained(error, self.envs[index]) if isinstance(error, TypeError | ValueError) else None
            raise fault or self._fault(index, f"failed in step: {said(error)}") from error
        complaint = None
        if self.on_error == "restart":
            complaint = self._form.complaint(observation) or complaint_of_reward(reward)
        if complaint is not None:
            raise self._fault(index, complaint)
        return observation, reward, over, cut, info

    def _made_anew(self, index: int, fault: EnvironmentFault) -> Any:
        """The first observation of a new environment in this one's place.

        Raises:
            EnvironmentFault: none is to be made, or those before it broke as well.
        """
        self._replace(index, fault)
        return self._begun(index)

    def _replace(self, index: int, fault: EnvironmentFault) -> None:
        """Put a new environment in this one's place, or raise its fault."""
        if self.on_error == "raise":
            raise fault
        self._in_a_row[index] += 1
        if self._in_a_row[index] > MOST_IN_A_ROW:
            raise EnvironmentFault(f"{fault}; it was made anew {MOST_IN_A_ROW} times in a row, which did not help") from fault
        warnings.warn(f"{fault}; it is made anew, and its episode dropped", EnvironmentRestarted, stacklevel=3)
        with contextlib.suppress(Exception):  # of an environment that is broken
            self.envs[index].close()
        try:
            self.envs[index] = self._factories[index]()
        except Exception as error:
            raise EnvironmentFault(f"{fault}; another one cannot be made: {said(error)}") from error

    def _fault(self, index: int, what: str, done: bool = False) -> EnvironmentFault:
        """What to say of an environment; `done` if the step was counted already."""
        tape = self._tapes[index]
        return EnvironmentFault(
            f"{self.name}: environment {self.first_index + index} {what}, in step {tape.num_steps + (not done)} of the episode "
            f"with seed {tape.seed}"
        )

    def _joined(self, observations: list[Any], indices: Sequence[int]) -> ArrayTree:
        """Observations of these environments, encoded.

        Raises:
            EnvironmentFault: one of them is not what the space promises.
        """
        try:
            joined = self._encode(observations)
            if self._form.mismatch(joined) is None:
                return joined
        except (TypeError, ValueError, KeyError, IndexError, AttributeError):
            pass
        for observation, index in zip(observations, indices, strict=True):
            if complaint := self._form.complaint(observation, finite=False):
                raise self._fault(index, complaint, done=True)
        raise EnvironmentFault(f"{self.name}: observations do not have the form that {self.encoder.raw_space} promises")

    def _encode(self, observations: list[Any]) -> ArrayTree:
        return self.encoder(stack_observations(observations, self.encoder.raw_space))


def check_same_spaces(envs: Sequence[gym.Env]) -> None:
    """Raises ValueError unless all environments have the spaces of the first."""
    first = envs[0]
    for index, env in enumerate(envs[1:], 1):
        for field in ("observation_space", "action_space"):
            if getattr(env, field) != getattr(first, field):
                raise ValueError(
                    f"env: environment {index} has {field} {getattr(env, field)}, but environment 0 has {getattr(first, field)}"
                )
