"""What Gymnasium's MuJoCo tasks see and pay, for many copies at once.

Tasks whose observations and rewards follow from positions, velocities and fields that `mujoco.batch` copies out. Ant and
Humanoid see contact forces, which it does not compute.

Source: Gymnasium, `gymnasium.envs.mujoco`, version 5 of each task with its default arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from rlopt.envs.spaces import Array

Infos = dict[str, Array]


class Bodies(NamedTuple):
    """N simulations at one time.

    Attributes:
        positions: [N, Q], MuJoCo's qpos.
        velocities: [N, V], its qvel.
        derived: [N, D], what the task's `derive` gave.
    """

    positions: Array
    velocities: Array
    derived: Array


First = Callable[[Any, int, Array, Array], tuple[Array, Array]]
"""(random, n, the model's positions [Q] and velocities [V]) -> those in which n episodes begin, [n, Q] and [n, V]."""

Pay = Callable[[Bodies, Bodies, Array, float], tuple[Array, Array, Infos]]
"""(before, after, actions [N, A], seconds) -> rewards [N], whether terminal [N], what Gymnasium tells besides, [N] each."""


@dataclass(frozen=True)
class MujocoTask:
    """What a task makes of its model.

    Attributes:
        first: see `First`; random numbers are drawn in Gymnasium's order.
        observe: bodies -> observations [N, O].
        pay: see `Pay`.
        derive: `mujoco.batch.Batch` -> [N, D], further fields that are seen or paid for.
    """

    first: First
    observe: Callable[[Bodies], Array]
    pay: Pay
    derive: Callable[[Any], Array] | None = None


def uniform_noise(random: Any, num: int, positions: Array, velocities: Array, width: float) -> tuple[Array, Array]:
    """Uniform noise in [−width, width) on both."""
    first = positions + random.uniform(-width, width, (num, len(positions)))
    return first, velocities + random.uniform(-width, width, (num, len(velocities)))


def mixed_noise(random: Any, num: int, positions: Array, velocities: Array, width: float) -> tuple[Array, Array]:
    """Uniform noise on positions, normal with standard deviation `width` on velocities."""
    first = positions + random.uniform(-width, width, (num, len(positions)))
    return first, velocities + random.standard_normal((num, len(velocities))) * width


# ---------------------------------------------------------------------- running, hopping and swimming


def observe_runner(bodies: Bodies, unseen: int = 1, limit: float = math.inf) -> Array:
    """Positions but the first `unseen`, and velocities clipped to ±limit."""
    velocities = bodies.velocities if limit == math.inf else np.clip(bodies.velocities, -limit, limit)
    return np.concatenate((bodies.positions[:, unseen:], velocities), 1)


def pay_runner(
    before: Bodies,
    after: Bodies,
    actions: Array,
    seconds: float,
    control_cost: float,
    healthy: Callable[[Bodies], Array] | None = None,
) -> tuple[Array, Array, Infos]:
    """Speed along x, less control_cost·‖action‖²; where health counts, 1 a step for it, and unhealthy is terminal."""
    x = after.positions[:, 0]
    speed = (x - before.positions[:, 0]) / seconds
    cost = control_cost * np.square(actions).sum(1)
    infos = {"x_position": x, "x_velocity": speed, "reward_forward": speed, "reward_ctrl": -cost}
    if healthy is None:
        return speed - cost, np.zeros(len(x), bool), infos
    survives = healthy(after)
    return speed + survives - cost, ~survives, infos | {"reward_survive": survives.astype(np.float64)}


def hopper_is_healthy(bodies: Bodies) -> Array:
    """Above 0.7 m, tilted by less than 0.2 rad, nothing beyond ±100."""
    height, angle = bodies.positions[:, 1], bodies.positions[:, 2]
    rest = np.concatenate((bodies.positions[:, 2:], bodies.velocities), 1)
    return (height > 0.7) & (abs(angle) < 0.2) & (height < math.inf) & (abs(rest) < 100.0).all(1)


def walker_is_healthy(bodies: Bodies) -> Array:
    """From 0.8 m to 2 m, tilted by less than 1 rad."""
    height, angle = bodies.positions[:, 1], bodies.positions[:, 2]
    return (height > 0.8) & (height < 2.0) & (abs(angle) < 1.0)


# ---------------------------------------------------------------------- pendulums on a cart


def observe_all(bodies: Bodies) -> Array:
    """Positions and velocities."""
    return np.concatenate((bodies.positions, bodies.velocities), 1)


def pay_balance(before: Bodies, after: Bodies, actions: Array, seconds: float) -> tuple[Array, Array, Infos]:
    """1 while the pole is within 0.2 rad, after which the episode is over."""
    del before, actions, seconds
    fallen = ~np.isfinite(observe_all(after)).all(1) | (abs(after.positions[:, 1]) > 0.2)
    rewards = 1.0 - fallen
    return rewards, fallen, {"reward_survive": rewards}


def derive_tip(batch: Any) -> Array:
    """x, y, z of the upper pole's tip and the constraint force on the cart, [N, 4]; as in Gymnasium, those that the simulator
    computed last, in the course of its last substep."""
    return np.concatenate((batch.bind("site_xpos")[:, 0], batch.bind("qfrc_constraint")[:, :1]), 1)


def observe_double_pendulum(bodies: Bodies) -> Array:
    """Place of the cart, sines and cosines of both angles, velocities and the force on the cart within ±10."""
    angles, force = bodies.positions[:, 1:], bodies.derived[:, 3:]
    return np.concatenate(
        (
            bodies.positions[:, :1],
            np.sin(angles),
            np.cos(angles),
            np.clip(bodies.velocities, -10.0, 10.0),
            np.clip(force, -10.0, 10.0),
        ),
        1,
    )


def pay_double_pendulum(before: Bodies, after: Bodies, actions: Array, seconds: float) -> tuple[Array, Array, Infos]:
    """10 while the tip is above 1 m, less for its distance from the top and for spinning."""
    del before, actions, seconds
    x, height = after.derived[:, 0], after.derived[:, 2]
    lower, upper = after.velocities[:, 1], after.velocities[:, 2]
    fallen = height <= 1.0
    distance = 0.01 * x**2 + (height - 2.0) ** 2
    spinning = 1e-3 * lower**2 + 5e-3 * upper**2
    alive = 10.0 * ~fallen
    infos = {"reward_survive": alive, "distance_penalty": -distance, "velocity_penalty": -spinning}
    return alive - distance - spinning, fallen, infos


# ---------------------------------------------------------------------- reaching


def reacher_first(random: Any, num: int, positions: Array, velocities: Array) -> tuple[Array, Array]:
    """Joints within ±0.1 rad, the target uniform in a disc of 0.2 m, at rest."""
    first = random.uniform(-0.1, 0.1, (num, len(positions))) + positions
    outside = np.ones(num, bool)
    while outside.any():  # each copy draws until its own target is inside
        drawing = random.of(outside) if hasattr(random, "of") else random
        first[outside, -2:] = drawing.uniform(-0.2, 0.2, (int(outside.sum()), 2))
        outside = ~(np.linalg.norm(first[:, -2:], axis=1) < 0.2)
    moving = velocities + random.uniform(-0.005, 0.005, (num, len(velocities)))
    moving[:, -2:] = 0.0
    return first, moving


def derive_reach(batch: Any) -> Array:
    """From the target to the fingertip, [N, 3], as the simulator computed them last."""
    places = batch.bind("xpos")
    return places[:, batch.model.body("fingertip").id] - places[:, batch.model.body("target").id]


def observe_reacher(bodies: Bodies) -> Array:
    """Cosines and sines of both joints, the target, the joints' velocities, the way from the target to the fingertip."""
    joints = bodies.positions[:, :2]
    seen = (np.cos(joints), np.sin(joints), bodies.positions[:, 2:], bodies.velocities[:, :2], bodies.derived[:, :2])
    return np.concatenate(seen, 1)


def pay_reacher(before: Bodies, after: Bodies, actions: Array, seconds: float) -> tuple[Array, Array, Infos]:
    """Minus the distance and ‖action‖²."""
    del before, seconds
    distance = -np.linalg.norm(after.derived, axis=1)
    control = -np.square(actions).sum(1)
    return distance + control, np.zeros(len(distance), bool), {"reward_dist": distance, "reward_ctrl": control}


MUJOCO_TASKS = {
    "HalfCheetah-v5": MujocoTask(partial(mixed_noise, width=0.1), observe_runner, partial(pay_runner, control_cost=0.1)),
    "Hopper-v5": MujocoTask(
        partial(uniform_noise, width=5e-3),
        partial(observe_runner, limit=10.0),
        partial(pay_runner, control_cost=1e-3, healthy=hopper_is_healthy),
    ),
    "Walker2d-v5": MujocoTask(
        partial(uniform_noise, width=5e-3),
        partial(observe_runner, limit=10.0),
        partial(pay_runner, control_cost=1e-3, healthy=walker_is_healthy),
    ),
    "Swimmer-v5": MujocoTask(
        partial(uniform_noise, width=0.1), partial(observe_runner, unseen=2), partial(pay_runner, control_cost=1e-4)
    ),
    "InvertedPendulum-v5": MujocoTask(partial(uniform_noise, width=0.01), observe_all, pay_balance),
    "InvertedDoublePendulum-v5": MujocoTask(
        partial(mixed_noise, width=0.1), observe_double_pendulum, pay_double_pendulum, derive_tip
    ),
    "Reacher-v5": MujocoTask(reacher_first, observe_reacher, pay_reacher, derive_reach),
}
