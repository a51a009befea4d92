"""Environments of a few lines for tests: quick, seeded, with terminations and truncations."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

ACTION_SPACES = {
    "discrete": spaces.Discrete(3),
    "shifted": spaces.Discrete(3, start=2),
    "multi": spaces.MultiDiscrete([2, 3]),
    "binary": spaces.MultiBinary(2),
    "box": spaces.Box(-0.5, 1.5, (2,), np.float32),
}
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
OBSERVATION_SPACES = {
    "box": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "float64": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "matrix": spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
    "discrete": spaces.Discrete(6),
    "shifted": spaces.Discrete(6, start=-2),
    "multi": spaces.MultiDiscrete([3, 4]),
    "binary": spaces.MultiBinary(4),
    "image": IMAGE,
    "image_first": spaces.Box(0, 255, (1, 36, 36), np.uint8),
    "dict": spaces.Dict({"position": spaces.Box(-5, 5, (2,), np.float32), "room": spaces.Discrete(3)}),
    "dict_image": spaces.Dict({"camera": IMAGE, "speed": spaces.Box(-5, 5, (2,), np.float32)}),
    "tuple": spaces.Tuple([spaces.Box(-5, 5, (2,), np.float32), spaces.Discrete(3)]),
    "nested": spaces.Dict({"arm": spaces.Dict({"joint": spaces.Box(-5, 5, (2,), np.float32)}), "on": spaces.MultiBinary(1)}),
}


class Walk(gym.Env[Any, Any]):
    """A noisy walk of the state (x, velocity, time) that the action pushes; reward −x².

    It terminates where |x| > `edge` and is truncated after `limit` steps. Other observation spaces are filled from the
    state, so that every observation depends on it.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observations: str = "box", actions: str = "discrete", limit: int = 7, edge: float = 1.0):
        self.observation_space = OBSERVATION_SPACES[observations]
        self.action_space = ACTION_SPACES[actions]
        self.limit, self.edge = limit, edge
        self.actions: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.velocity, self.time = float(self.np_random.normal(scale=0.3)), 0.0, 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        push = float(np.mean(action)) - 1.0
        self.velocity = 0.5 * self.velocity + 0.2 * push + float(self.np_random.normal(scale=0.2))
        self.x += self.velocity
        self.time += 1
        terminated, truncated = abs(self.x) > self.edge, self.time >= self.limit
        info = {"is_success": bool(truncated and not terminated)} if terminated or truncated else {}
        return self._observation(), -self.x * self.x, terminated, truncated and not terminated, info

    def _observation(self) -> Any:
        return _fill(self.observation_space, np.array([self.x, self.velocity, self.time / self.limit]))


def _fill(space: spaces.Space, state: np.ndarray) -> Any:
    bits = np.abs(np.resize(state * 1000, space.shape or ())).astype(np.int64) if not isinstance(space, spaces.Dict) else None
    if isinstance(space, spaces.Dict):
        return {key: _fill(sub, state) for key, sub in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_fill(sub, state) for sub in space.spaces)
    if isinstance(space, spaces.Discrete):
        return np.int64(int(bits) % space.n + space.start)
    if isinstance(space, spaces.MultiDiscrete):
        return bits % space.nvec
    if isinstance(space, spaces.MultiBinary):
        return (bits % 2).astype(np.int8)
    if space.dtype == np.uint8:
        return (bits % 256).astype(np.uint8)
    return np.clip(np.resize(state, space.shape), -5, 5).astype(space.dtype)
