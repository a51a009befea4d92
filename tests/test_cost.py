"""What training costs, counted and not timed: calls and tensor operations of an iteration, beside Stable-Baselines3's in the
same process. A change that makes rlopt slower by more than a tenth of its lead fails here, on any machine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import stable_baselines3
from stable_baselines3.common.env_util import make_vec_env
from torch.utils._python_dispatch import TorchDispatchMode

import rlopt
from rlopt.acting import TorchActor
from rlopt.together import learn_together

ARGUMENTS: dict[str, Any] = {"n_steps": 32, "batch_size": 256, "n_epochs": 20, "seed": 0, "device": "cpu"}
ENVS, ITERATION = 8, 256
# Share of SB3's, at most: measured .32 and .41 with Python 3.11, torch 2.13 and SB3 2.9.
CALLS, OPERATIONS = 0.355, 0.45


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def operations(function: Callable[[], Any]) -> int:
    with Operations() as counted:
        function()
    return counted.count


def calls(function: Callable[[], Any]) -> int:
    """Of Python functions and of functions in C."""
    count = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(previous)
    return count


def ours(env: str = "CartPole-v1", seed: int = 0) -> rlopt.PPO:
    return rlopt.PPO("MlpPolicy", env, n_envs=ENVS, backend="native", compile=False, **{**ARGUMENTS, "seed": seed})


def theirs(env: str) -> stable_baselines3.PPO:
    return stable_baselines3.PPO("MlpPolicy", make_vec_env(env, ENVS), **ARGUMENTS)


def of_an_iteration(agent: Any, counted: Callable[[Callable[[], Any]], int]) -> float:
    """Without what `learn` does once."""
    agent.learn(ITERATION)
    one, three = (counted(lambda num=num: agent.learn(num * ITERATION, reset_num_timesteps=False)) for num in (1, 3))
    return (three - one) / 2


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize(("counted", "share"), [(calls, CALLS), (operations, OPERATIONS)], ids=["calls", "operations"])
def test_an_iteration_costs_less_than_sb3s(env, counted, share):
    assert of_an_iteration(ours(env), counted) <= share * of_an_iteration(theirs(env), counted)


def test_negative_control_a_slower_actor_is_noticed(monkeypatch):
    monkeypatch.setattr("rlopt.collector.make_actor", lambda module, num_envs: TorchActor(module))
    assert of_an_iteration(ours(), calls) > CALLS * of_an_iteration(theirs("CartPole-v1"), calls)


def test_one_more_seed_costs_few_calls():
    """Measured: .11 of an iteration of one alone."""

    def together(num_seeds: int) -> float:
        def training(iterations: int) -> int:
            agents = [ours(seed=seed) for seed in range(num_seeds)]
            return calls(lambda: learn_together(agents, iterations * ITERATION, log_interval=None))

        return (training(3) - training(1)) / 2

    together(2)
    assert (together(8) - together(4)) / 4 <= 0.13 * of_an_iteration(ours(), calls)


def test_an_agent_that_compiles_nothing_does_not_load_torchs_compiler() -> None:
    """Which takes a second and 80 MB; merely making one of torch's optimisers would load it."""
    program = """
import sys, rlopt
rlopt.PPO("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").learn(64)
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
