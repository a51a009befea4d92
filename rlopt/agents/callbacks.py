"""The bridge to SB3's callbacks: what they are made from, and the local variables they read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback

from rlopt.collector import Collector, StepEvent
from rlopt.statistics import EpisodeRecord

if TYPE_CHECKING:
    from rlopt.agents.base import Agent

# Entries of `StepLocals` that are computed when they are read.
DEFERRED = ("obs_tensor", "values", "log_probs")

CallbackLike = None | BaseCallback | Sequence[BaseCallback] | Callable[[dict[str, Any], dict[str, Any]], bool]


def as_callback(callback: CallbackLike, progress_bar: bool) -> BaseCallback | None:
    """One SB3 callback from whatever `learn` was given; None if there is nothing to call.

    Raises:
        ValueError: neither a callback, nor a list of callbacks, nor a function.
        ImportError: a progress bar is wanted, but tqdm or rich is missing.
    """
    if isinstance(callback, BaseCallback) or callback is None:
        result = callback
    elif isinstance(callback, list | tuple) and all(isinstance(item, BaseCallback) for item in callback):
        result = CallbackList(list(callback))
    elif callable(callback):
        result = ConvertCallback(callback)
    else:
        raise ValueError(f"callback: expected a BaseCallback, a list of them or a function, got {callback!r}")
    if progress_bar:
        bar = ProgressBarCallback()
        result = bar if result is None else CallbackList([result, bar])
    return result


@contextmanager
def listening(callback: BaseCallback | None, collector: Collector, local: StepLocals) -> Iterator[None]:
    """Let the collector call the callback, with SB3's timing, while this lasts."""
    if callback is None:
        yield
        return
    n_steps = 0

    def on_start(num_steps: int) -> None:
        nonlocal n_steps
        n_steps = 0
        local["n_rollout_steps"] = num_steps
        callback.on_rollout_start()

    def on_step(event: StepEvent) -> bool:
        nonlocal n_steps
        callback.update_locals(local.show(event, n_steps))
        n_steps += 1
        return bool(callback.on_step())

    collector.on_start, collector.on_step, collector.on_end = on_start, on_step, callback.on_rollout_end
    try:
        yield
    finally:
        collector.on_start = collector.on_step = collector.on_end = None


class StepLocals(dict[str, Any]):
    """SB3's local variables of a rollout. What costs something is computed only if a callback reads it."""

    def __init__(self, agent: Agent, entries: dict[str, Any]):
        super().__init__(entries)
        self._agent = agent
        self._event: StepEvent | None = None

    def show(self, event: StepEvent, n_steps: int) -> dict[str, Any]:
        """Make this dictionary that of one step; returns the new entries."""
        self._event = event
        for key in DEFERRED:
            self.pop(key, None)
        return {
            "actions": event.actions,
            "clipped_actions": event.env_actions,
            "new_obs": event.new_observations,
            "rewards": event.rewards,
            "dones": event.dones,
            "infos": StepInfos(event, self._agent.statistics.ending(event.step.rewards, event.dones)),
            "n_steps": n_steps,
        }

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (key in DEFERRED and self._event is not None)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]  # dict.get would not ask `__missing__`
        except KeyError:
            return default

    def __missing__(self, key: str) -> Any:
        if key not in DEFERRED or self._event is None:
            raise KeyError(key)
        agent = self._agent
        with torch.no_grad():
            observations = agent.as_tensors(self._event.observations)
            distribution, values = agent.actor_critic(observations)
            log_probs = distribution.log_prob(torch.as_tensor(self._event.actions, device=agent.device))
        self.update(obs_tensor=observations, values=values.unsqueeze(-1), log_probs=log_probs)
        return self[key]


class StepInfos(Sequence[dict[str, Any]]):
    """`infos` as SB3's `Monitor` and `VecEnv` show them, one dictionary an environment, built when it is read."""

    def __init__(self, event: StepEvent, episodes: dict[int, EpisodeRecord]):
        self._event = event
        self._episodes = episodes

    def __len__(self) -> int:
        return len(self._event.dones)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        event, step = self._event, self._event.step
        info = dict(step.infos[index])
        if event.dones[index]:
            if index in self._episodes:
                info["episode"] = self._episodes[index]
            info.setdefault("TimeLimit.truncated", bool(step.truncated[index] and not step.terminated[index]))
            if "terminal_observation" not in info:
                info["terminal_observation"] = self._final_observation(index)
        return info

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def _final_observation(self, index: int) -> Any:
        step = self._event.step
        rows = [int(row) for row in step.final_rows]
        source, row = (step.final_observations, rows.index(index)) if index in rows else (self._event.new_observations, index)
        return {key: value[row] for key, value in source.items()} if isinstance(source, dict) else source[row]  # type: ignore[index]
