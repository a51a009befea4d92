"""Gymnasium's classic-control tasks as one vector environment: many copies for the price of a few.

The physics is written once, for NumPy and for torch: `xp` is either module. States are [N, S], in double precision on the
CPU, where they follow Gymnasium's single environments step for step.

Source: Gymnasium, `gymnasium.envs.classic_control`, and what it cites: Barto, Sutton and Anderson (1983); Moore (1990);
Sutton (1996).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from rlopt.envs.finite_horizon import FiniteHorizonVectorEnv
from rlopt.envs.spaces import Array

Advance = Callable[[Any, Any, Any], tuple[Any, Any, Any]]
"""(xp, states [N, S], actions) -> the next states, rewards [N], and whether they are terminal [N]."""


@dataclass(frozen=True)
class Task:
    """A Markov process.

    Attributes:
        first: bounds of the first states, [S] each, which are uniform between them.
        advance: see `Advance`.
        observe: (xp, states [N, S]) -> observations [N, O].
        horizon: steps after which an episode is truncated.
        bound: of the observations, (low, high), [O] each.
        action_space: of one copy.
        single_precision_first: whether Gymnasium rounds the first states.
    """

    first: tuple[tuple[float, ...], tuple[float, ...]]
    advance: Advance
    observe: Callable[[Any, Any], Any]
    horizon: int
    bound: tuple[tuple[float, ...], tuple[float, ...]]
    action_space: spaces.Space
    single_precision_first: bool = False

    @property
    def observation_space(self) -> spaces.Box:
        """Of one copy."""
        low, high = (np.array(bound, np.float32) for bound in self.bound)
        return spaces.Box(low, high, dtype=np.float32)


def symmetric(*bounds: float) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """±bounds."""
    return tuple(-bound for bound in bounds), bounds


def states_themselves(xp: Any, states: Any) -> Any:
    """For tasks whose state is seen."""
    del xp
    return states


# ---------------------------------------------------------------------- cart and pole

TRACK, TILT = 2.4, 12 * 2 * math.pi / 360


def advance_cart_pole(xp: Any, states: Any, actions: Any) -> tuple[Any, Any, Any]:
    """A cart of 1 kg is pushed with ±10 N, a pole of 0.1 kg and 1 m stands on it; Euler steps of 20 ms."""
    gravity, pole_mass, mass, half_length, force, tau = 9.8, 0.1, 1.1, 0.5, 10.0, 0.02
    x, speed, angle, spin = states.T
    cos, sin = xp.cos(angle), xp.sin(angle)
    push = (actions * (2 * force) - force + pole_mass * half_length * spin**2 * sin) / mass
    angular = (gravity * sin - cos * push) / (half_length * (4.0 / 3.0 - pole_mass * cos**2 / mass))
    linear = push - pole_mass * half_length * angular * cos / mass
    following = xp.stack((x + tau * speed, speed + tau * linear, angle + tau * spin, spin + tau * angular), 1)
    fallen = (abs(following[:, 0]) > TRACK) | (abs(following[:, 2]) > TILT)
    return following, xp.ones_like(x), fallen


# ---------------------------------------------------------------------- pendulum


def advance_pendulum(xp: Any, states: Any, actions: Any) -> tuple[Any, Any, Any]:
    """A rod of 1 kg and 1 m is turned with up to 2 N m; cost: angle² + 0.1 speed² + 0.001 torque²."""
    gravity, tau, max_speed = 10.0, 0.05, 8.0
    angle, spin = states.T
    torque = xp.clip(actions[:, 0], -2.0, 2.0)
    upright = (angle + math.pi) % (2 * math.pi) - math.pi
    cost = upright**2 + 0.1 * spin**2 + 0.001 * torque**2
    spin = xp.clip(spin + (3 * gravity / 2 * xp.sin(angle) + 3.0 * torque) * tau, -max_speed, max_speed)
    return xp.stack((angle + spin * tau, spin), 1), -cost, abs(angle) < 0.0


def observe_pendulum(xp: Any, states: Any) -> Any:
    """cos, sin, speed."""
    angle, spin = states.T
    return xp.stack((xp.cos(angle), xp.sin(angle), spin), 1)


# ---------------------------------------------------------------------- mountain cars


def advance_mountain_car(xp: Any, states: Any, actions: Any) -> tuple[Any, Any, Any]:
    """A car too weak for the hill, pushed left, not at all or right; −1 a step until it is up."""
    x, speed = states.T
    speed = xp.clip(speed + ((actions - 1) * 0.001 + xp.cos(3 * x) * -0.0025), -0.07, 0.07)
    x = xp.clip(x + speed, -1.2, 0.6)
    speed = xp.where((x == -1.2) & (speed < 0), 0.0, speed)
    up = (x >= 0.5) & (speed >= 0.0)
    return xp.stack((x, speed), 1), -xp.ones_like(x), up


def advance_mountain_car_continuous(xp: Any, states: Any, actions: Any) -> tuple[Any, Any, Any]:
    """The same with a force in [−1, 1]; 100 for being up, −0.1 force² a step. Gymnasium's state is of single precision."""
    x, speed = states.T
    force = xp.clip(actions[:, 0], -1.0, 1.0)
    speed = xp.clip(speed + force * 0.0015 - 0.0025 * xp.cos(3 * x), -0.07, 0.07)
    x = xp.clip(x + speed, -1.2, 0.6)
    speed = xp.where((x == -1.2) & (speed < 0), 0.0, speed)
    up = (x >= 0.45) & (speed >= 0.0)
    return xp.stack((x, speed), 1), up * 100.0 - 0.1 * actions[:, 0] ** 2, up


# ---------------------------------------------------------------------- acrobot


def advance_acrobot(xp: Any, states: Any, actions: Any) -> tuple[Any, Any, Any]:
    """Two rods hang from a joint, a torque of −1, 0 or 1 N m between them; −1 a step until the tip is 1 m above the joint."""
    tau, torque = 0.2, actions - 1.0

    def slope(states: Any) -> Any:
        return _acrobot_slope(xp, states, torque)

    k1 = slope(states)
    k2 = slope(states + tau / 2 * k1)
    k3 = slope(states + tau / 2 * k2)
    k4 = slope(states + tau * k3)
    first, second, first_spin, second_spin = (states + tau / 6.0 * (k1 + 2 * k2 + 2 * k3 + k4)).T
    spins = xp.clip(first_spin, -4 * math.pi, 4 * math.pi), xp.clip(second_spin, -9 * math.pi, 9 * math.pi)
    following = xp.stack((_wrapped(xp, first), _wrapped(xp, second), *spins), 1)
    up = -xp.cos(following[:, 0]) - xp.cos(following[:, 1] + following[:, 0]) > 1.0
    return following, xp.where(up, 0.0, -1.0), up


def _acrobot_slope(xp: Any, states: Any, torque: Any) -> Any:
    """d/dt of both angles and speeds, [N, 4]; rods of 1 kg and 1 m, with Sutton and Barto's equations."""
    first, second, first_spin, second_spin = states.T
    cos, sin = xp.cos(second), xp.sin(second)
    d1 = 0.25 + (1.0 + 0.25 + cos) + 1.0 + 1.0
    d2 = (0.25 + 0.5 * cos) + 1.0
    phi2 = 0.5 * 9.8 * xp.cos(first + second - math.pi / 2)
    phi1 = -0.5 * second_spin**2 * sin - second_spin * first_spin * sin + 1.5 * 9.8 * xp.cos(first - math.pi / 2) + phi2
    second_rate = (torque + d2 / d1 * phi1 - 0.5 * first_spin**2 * sin - phi2) / (0.25 + 1.0 - d2**2 / d1)
    return xp.stack((first_spin, second_spin, -(d2 * second_rate + phi1) / d1, second_rate), 1)


def _wrapped(xp: Any, angle: Any) -> Any:
    """To [−π, π]; no step turns further than twice around."""
    for _ in range(2):
        angle = xp.where(angle > math.pi, angle - 2 * math.pi, angle)
        angle = xp.where(angle < -math.pi, angle + 2 * math.pi, angle)
    return angle


def observe_acrobot(xp: Any, states: Any) -> Any:
    """cos and sin of both angles, both speeds."""
    first, second, first_spin, second_spin = states.T
    return xp.stack((xp.cos(first), xp.sin(first), xp.cos(second), xp.sin(second), first_spin, second_spin), 1)


TASKS = {
    "CartPole-v1": Task(
        first=symmetric(0.05, 0.05, 0.05, 0.05),
        advance=advance_cart_pole,
        observe=states_themselves,
        horizon=500,
        bound=symmetric(2 * TRACK, math.inf, 2 * TILT, math.inf),
        action_space=spaces.Discrete(2),
    ),
    "Pendulum-v1": Task(
        first=symmetric(math.pi, 1.0),
        advance=advance_pendulum,
        observe=observe_pendulum,
        horizon=200,
        bound=symmetric(1.0, 1.0, 8.0),
        action_space=spaces.Box(-2.0, 2.0, (1,), np.float32),
    ),
    "MountainCar-v0": Task(
        first=((-0.6, 0.0), (-0.4, 0.0)),
        advance=advance_mountain_car,
        observe=states_themselves,
        horizon=200,
        bound=((-1.2, -0.07), (0.6, 0.07)),
        action_space=spaces.Discrete(3),
    ),
    "MountainCarContinuous-v0": Task(
        first=((-0.6, 0.0), (-0.4, 0.0)),
        advance=advance_mountain_car_continuous,
        observe=states_themselves,
        horizon=999,
        bound=((-1.2, -0.07), (0.6, 0.07)),
        action_space=spaces.Box(-1.0, 1.0, (1,), np.float32),
    ),
    "Acrobot-v1": Task(
        first=symmetric(0.1, 0.1, 0.1, 0.1),
        advance=advance_acrobot,
        observe=observe_acrobot,
        horizon=500,
        bound=symmetric(1.0, 1.0, 1.0, 1.0, 4 * math.pi, 9 * math.pi),
        action_space=spaces.Discrete(3),
        single_precision_first=True,
    ),
}


class ClassicControlVectorEnv(FiniteHorizonVectorEnv):
    """N copies of a classic-control task in NumPy.

    A copy that is reset with a seed of its own plays what Gymnasium's single environment plays with that seed.

    Args:
        env_id: one of `TASKS`.
        num_envs: N.

    Raises:
        ValueError: another id.
    """

    joinable = True

    def __init__(self, env_id: str, num_envs: int = 1):
        if env_id not in TASKS:
            raise ValueError(f"env_id: expected one of {', '.join(TASKS)}, got {env_id!r}")
        self.task, self.spec = TASKS[env_id], gym.spec(env_id)
        super().__init__(num_envs, self.task.horizon, self.task.observation_space, self.task.action_space)
        self._low, self._high = (np.array(bound) for bound in self.task.first)
        # Where a bound is 0 wide Gymnasium draws no number.
        self._drawn = self._high > self._low

    def _first_states(self, num: int) -> Array:
        states = np.zeros((num, len(self._low))) + self._low
        low, high = self._low[self._drawn], self._high[self._drawn]
        states[:, self._drawn] = low + (high - low) * self.np_random.random((num, len(low)))
        return states.astype(np.float32).astype(np.float64) if self.task.single_precision_first else states

    def _advance(self, states: Array, actions: Array) -> tuple[Array, Array, Array]:
        return self.task.advance(np, states, actions)

    def _observations(self, states: Array) -> Array:
        return self.task.observe(np, states).astype(np.float32)
