"""What no implementation of PPO in these libraries can beat on a machine: the environments' native code and the products.

Environments: MuJoCo's and ALE's own steps on as many threads as cores, many in one call; of CartPole what one more copy costs
among thousands, where calls cost nothing. Arithmetic: the matrix products (and convolutions) of acting, of one pass for values
and log-probabilities, and of the update, forwards and backwards, at the sizes that they have, each alone and into memory that
is there already, on as many torch threads as the libraries have. No activation, loss, optimiser, copy or call is counted. Times
are the least of several. It is the limit of rlopt's way; who computes values while acting saves the pass after it, a thirtieth
of ten epochs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

REPEATS = 7


def limit(configuration: dict[str, Any], cores: int) -> dict[str, Any] | None:
    """Steps a second if nothing else took time; None of configurations with memory."""
    env_id = configuration["env"]
    if "NoVel" in env_id:
        return None
    T, N, epochs = (configuration[k] for k in ("n_steps", "n_envs", "n_epochs"))
    size, batch = T * N, configuration["batch_size"]
    torch.set_num_threads(cores if env_id.startswith("ALE/") else 1)
    if env_id.startswith("ALE/"):
        environment, products = _pong(N, cores), _convolutions
    elif env_id == "CartPole-v1":
        environment, products = _cartpole(), lambda rows, backwards: _products(4, 2, rows, backwards)
    else:
        environment, products = _halfcheetah(N, cores), lambda rows, backwards: _products(17, 6, rows, backwards)
    arithmetic = (T * products(N, False) + size / batch * products(batch, False)) / size
    arithmetic += epochs * products(batch, True) / batch
    return {
        "environment_microseconds": environment * 1e6,
        "arithmetic_microseconds": arithmetic * 1e6,
        "steps_per_second": 1 / (environment + arithmetic),
    }


def _least(function: Callable[[], Any], calls: int = 1) -> float:
    """Seconds of one call."""
    function()
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        for _ in range(calls):
            function()
        times.append((time.perf_counter() - began) / calls)
    return min(times)


def _cartpole() -> float:
    from rlopt.envs.classic_control import ClassicControlVectorEnv

    seconds = []
    for number in (64, 4096):
        env = ClassicControlVectorEnv("CartPole-v1", number)
        env.reset(seed=0)
        actions = np.random.default_rng(0).integers(0, 2, number)
        times = []
        for _ in range(10 * REPEATS):
            env.reset(seed=0)
            began = time.perf_counter()
            for _ in range(7):  # the pole does not fall in these
                env.step(actions)
            times.append((time.perf_counter() - began) / 7)
        seconds.append(min(times))
    return (seconds[1] - seconds[0]) / (4096 - 64)


def _halfcheetah(number: int, cores: int) -> float:
    import gymnasium as gym
    from mujoco.batch import Batch

    steps = 20
    inner: Any = gym.make("HalfCheetah-v5").unwrapped
    batch = Batch(inner.model, number, min(cores, number))
    batch.reset(np.arange(number), stage=0)
    controls = batch.bind("ctrl")
    rng = np.random.default_rng(0)

    def advance() -> None:
        controls[:] = rng.uniform(-1, 1, controls.shape)
        batch.step(nstep=inner.frame_skip * steps)

    for _ in range(10):  # until they lie and run about
        advance()
    return _least(advance) / (number * steps)


def _pong(number: int, cores: int) -> float:
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv("pong", number, num_threads=cores)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 6, number)
    return _least(lambda: env.step(actions), 20) / number


def _products(inputs: int, outputs: int, rows: int, backwards: bool) -> float:
    """Actor and critic of 64 x 64: each layer's product, and its two backwards (one for the first layer)."""
    seconds = 0.0
    for sizes in ((inputs, 64, 64, outputs), (inputs, 64, 64, 1)):
        for i, (a, b) in enumerate(pairwise(sizes)):
            x, weight, y = torch.rand(rows, a), torch.rand(a, b), torch.empty(rows, b)
            seconds += _least(lambda x=x, w=weight, y=y: torch.mm(x, w, out=y), 50)  # type: ignore[misc]
            if backwards:
                grad_weight, grad_x = torch.empty(a, b), torch.empty(rows, a)
                seconds += _least(lambda x=x, y=y, g=grad_weight: torch.mm(x.T, y, out=g), 50)  # type: ignore[misc]
                if i > 0:
                    seconds += _least(lambda w=weight, y=y, g=grad_x: torch.mm(y, w.T, out=g), 50)  # type: ignore[misc]
    return seconds


def _convolutions(rows: int, backwards: bool) -> float:
    """`NatureCNN` and two heads without activations."""
    convolutions = nn.Sequential(nn.Conv2d(4, 32, 8, 4), nn.Conv2d(32, 64, 4, 2), nn.Conv2d(64, 64, 3, 1))
    network = nn.Sequential(convolutions, nn.Flatten(), nn.Linear(3136, 512), nn.Linear(512, 7))
    images = torch.rand(rows, 4, 84, 84).to(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.no_grad():
            network(images)

    return _least(lambda: network(images).sum().backward()) if backwards else _least(forward)
