"""An environment that breaks in every way there is, at steps that its episodes' seeds decide. Quick to import, for workers."""

from __future__ import annotations

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

FAULTS = ("raises", "shows NaN", "pays NaN", "pays a text", "shows another shape", "shows another type", "shows nothing")
FATAL = ("dies", "hangs")


class Breaking(gym.Env[Any, Any]):
    """A random walk; every third seed breaks at its third step, in the way that is asked for.

    Attributes:
        log: [(seed, observations, rewards)] of all episodes, of what was returned before they ended or broke.
    """

    def __init__(self, fault: str = "raises", length: int = 6, always: bool = False):
        self.observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        if fault == "shows another type":
            self.observation_space = spaces.Box(-(10**6), 10**6, (2,), np.int64)
        self.action_space = spaces.Discrete(2)
        self.fault, self.length, self.always = fault, length, always
        self.log: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seed, self.time = seed or 0, 0
        self.log.append((self.seed, [self._shown()], []))
        return self.log[-1][1][-1], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.time += 1
        if self.time == 3 and (self.always or self.seed % 3 == 0):
            return self._broken()
        shown, reward = self._shown(), float(self.np_random.normal())
        self.log[-1][1].append(shown)
        self.log[-1][2].append(reward)
        return shown, reward, self.time >= self.length, False, {}

    def _shown(self) -> Any:
        drawn = self.np_random.normal(size=2)
        return drawn.astype(np.float32) if self.observation_space.dtype == np.float32 else (100 * drawn).astype(np.int64)

    def _broken(self) -> Any:
        if self.fault == "raises":
            raise ZeroDivisionError("the robot fell over")
        if self.fault == "dies":
            os._exit(7)
        if self.fault == "hangs":
            time.sleep(3600)
        shown: Any = {
            "shows NaN": np.full(2, np.nan, np.float32),
            "shows another shape": np.zeros(3, np.float32),
            "shows another type": np.zeros(2, np.float64),
            "shows nothing": None,
        }.get(self.fault, self._shown())
        return shown, {"pays NaN": float("nan"), "pays a text": "much"}.get(self.fault, 0.0), False, False, {}
