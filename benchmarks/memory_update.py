"""One update of M = N·T transitions: S2PG, whose rows are flat, beside backpropagation through time in several forms.

    python benchmarks/memory_update.py                      # M = 4096, T = 8 … 512, one thread; table and plot
    python benchmarks/memory_update.py --threads 2 --transitions 16384

An update is one forward pass, one backward pass and one step of the optimiser on all M rows: `n_epochs=1`, one minibatch.
Observations have 16 numbers, the kernel 64 units. All arms and all T take turns in every round, so that a drift of the machine
hits all of them; medians over rounds, after one that warms up. Where the rollout comes from is not timed.

    S2PG                      GRU; z is data
    S2PG, compiled            the same with compile=True
    PPO                       no memory: the floor
    BPTT, whole rollouts      RecurrentPPO with S2PG's network, without and with ends of episodes (one step in 100)
    BPTT, step by step        the same loss and network, one call of the kernel a step, differentiated by autograd
    BPTT, windows             every row at the end of a window of its own, overlapping with the others
    SB3-contrib               its RecurrentPPO.train(); LSTM for actor and critic (pip install sb3-contrib)
    BPTT, contrib's network   rlopt's RecurrentPPO with that network
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

import rlopt.policies.recurrent
from rlopt import PPO, S2PG, RecurrentPPO
from rlopt.policies.kernels import Kernel
from rlopt.policies.unrolling import Begins, advance, unroll

RESULTS = Path(__file__).parent / "results" / "memory_update.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "memory_update.png"
LENGTHS = (8, 16, 32, 64, 128, 256, 512)
UNITS, INPUTS = 64, 16
SLOW = 0.4  # seconds: an arm above it is run in fewer rounds


class Noise(gym.vector.VectorEnv):
    """Random observations, no meaning; episodes end with a fixed probability a step and begin anew within it."""

    metadata: dict[str, Any] = {"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, end: float):
        self.num_envs, self.end = num_envs, end
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (INPUTS,), np.float32)
        self.single_action_space = spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self.random = np.random.default_rng(0)

    def observe(self) -> np.ndarray:
        return self.random.normal(size=(self.num_envs, INPUTS)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        return self.observe(), {}

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        over = self.random.random(self.num_envs) < self.end
        infos = {"final_obs": self.observe(), "_final_obs": over} if over.any() else {}
        return self.observe(), self.random.normal(size=self.num_envs), over, np.zeros(self.num_envs, bool), infos


class NoiseVecEnv(VecEnv):
    """The same for SB3-contrib."""

    def __init__(self, num_envs: int, end: float):
        self.inner = Noise(num_envs, end)
        super().__init__(num_envs, self.inner.single_observation_space, self.inner.single_action_space)

    def reset(self) -> np.ndarray:
        return self.inner.reset()[0]

    def step_async(self, actions: np.ndarray) -> None:
        pass

    def step_wait(self) -> Any:
        observations, rewards, over, _, _ = self.inner.step(None)
        return observations, rewards.astype(np.float32), over, [{"terminal_observation": o} for o in observations]

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        pass

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


def step_by_step(
    kernels: list[Kernel], inputs: list[torch.Tensor], memories: list[torch.Tensor], begins: Begins
) -> list[torch.Tensor]:
    """What `unroll` computes, one call of torch's own cell a step."""
    results = []
    for kernel, x, memory in zip(kernels, inputs, memories, strict=True):
        outputs = []
        for t in range(len(x)):
            memory = memory * ~begins.rows[t].unsqueeze(-1) if t in begins.times else memory
            memory = advance(kernel, x[t], memory)
            outputs.append(kernel.output(memory))
        results.append(torch.stack(outputs))
    return results


def stateful(num_steps: int, num_envs: int, compile: bool = False) -> Callable[[], None]:
    """S2PG."""
    common = {"n_steps": num_steps, "batch_size": num_steps * num_envs, "n_epochs": 1, "seed": 0, "device": "cpu"}
    agent = S2PG("MlpPolicy", Noise(num_envs, 0.01), memory_size=UNITS, target_kl=None, compile=compile, **common)
    batch = agent.stateful_advantages(agent.state.theta, agent.collector.steps(agent.state.theta, num_steps))
    return lambda: agent.update(agent.state, batch, 1.0)


def memoryless(num_steps: int, num_envs: int) -> Callable[[], None]:
    """PPO without memory."""
    common = {"n_steps": num_steps, "batch_size": num_steps * num_envs, "n_epochs": 1, "seed": 0, "device": "cpu"}
    agent = PPO("MlpPolicy", Noise(num_envs, 0.01), **common)
    batch = agent.advantages(agent.state.theta, agent.collector.steps(agent.state.theta, num_steps))
    return lambda: agent.update(agent.state, batch, 1.0)


def recurrent(num_steps: int, num_envs: int, end: float = 0.01, policy: str = "MlpPolicy", loop: bool = False) -> Any:
    """RecurrentPPO, by its own unrolling or step by step."""
    common = {"n_steps": num_steps, "batch_size": num_steps * num_envs, "n_epochs": 1, "seed": 0, "device": "cpu"}
    kwargs = {"enable_critic_lstm": False} if policy == "MlpPolicy" else {}
    agent = RecurrentPPO(policy, Noise(num_envs, end), memory_size=UNITS, policy_kwargs=kwargs, **common)
    chunks = agent.chunks(agent.state.theta, agent.collector.steps(agent.state.theta, num_steps))

    def update() -> None:
        rlopt.policies.recurrent.unroll = step_by_step if loop else unroll
        agent.update(agent.state, chunks, 1.0)
        rlopt.policies.recurrent.unroll = unroll

    return update


def windows(num_steps: int, num_envs: int, length: int) -> Callable[[], None]:
    """A window of `length` steps for every row, of which the last counts; ends of episodes are left out."""
    size = num_steps * num_envs
    common = {"n_steps": length, "batch_size": length * size, "n_epochs": 1, "seed": 0, "device": "cpu"}
    kwargs = {"enable_critic_lstm": False}
    agent = RecurrentPPO("MlpPolicy", Noise(size, 0.0), memory_size=UNITS, policy_kwargs=kwargs, **common)
    chunks = agent.chunks(agent.state.theta, agent.collector.steps(agent.state.theta, length))
    mask = torch.zeros_like(chunks.mask)
    mask[-1] = True
    chunks = chunks._replace(mask=mask, memory=torch.zeros_like(chunks.memory))
    return lambda: agent.update(agent.state, chunks, 1.0)


def contrib(num_steps: int, num_envs: int) -> Callable[[], None] | None:
    """SB3-contrib's RecurrentPPO, if it is installed."""
    try:
        from sb3_contrib import RecurrentPPO as Theirs
    except ImportError:
        return None
    from stable_baselines3.common.callbacks import CallbackList
    from stable_baselines3.common.logger import configure

    env = NoiseVecEnv(num_envs, 0.01)
    kwargs = {"lstm_hidden_size": UNITS}
    common = {"n_steps": num_steps, "batch_size": num_steps * num_envs, "n_epochs": 1, "seed": 0, "device": "cpu"}
    model = Theirs("MlpLstmPolicy", env, policy_kwargs=kwargs, **common)
    model.set_logger(configure(None, []))
    model._setup_learn(10**9)
    callback = CallbackList([])
    callback.init_callback(model)
    model.collect_rollouts(env, callback, model.rollout_buffer, num_steps)
    kept = {name: np.copy(value) for name, value in vars(model.rollout_buffer).items() if isinstance(value, np.ndarray)}

    def update() -> None:
        for name, value in kept.items():  # training reorders the buffer in place
            setattr(model.rollout_buffer, name, np.copy(value))
        model.rollout_buffer.generator_ready = False
        model.train()

    return update


ARMS: dict[str, Callable[[int, int], Callable[[], None] | None]] = {
    "S2PG": stateful,
    "S2PG, compiled": partial(stateful, compile=True),
    "PPO, no memory": memoryless,
    "BPTT, whole rollouts, no ends": lambda t, n: recurrent(t, n, end=0.0),
    "BPTT, whole rollouts": recurrent,
    "BPTT, step by step": lambda t, n: recurrent(t, n, loop=True),
    "BPTT, windows of 5": lambda t, n: windows(t, n, 5),
    "BPTT, windows of 32": lambda t, n: windows(t, n, 32),
    "SB3-contrib": contrib,
    "BPTT, contrib's network": lambda t, n: recurrent(t, n, policy="MlpLstmPolicy"),
}


def measure(transitions: int, lengths: list[int], rounds: int) -> dict[str, dict[str, list[float]]]:
    """T -> arm -> seconds of its updates, all arms and lengths interleaved."""
    updates = {(str(t), name): make(t, transitions // t) for t in lengths for name, make in ARMS.items()}
    times: dict[str, dict[str, list[float]]] = {str(t): {} for t in lengths}
    for number in range(rounds + 1):
        for (length, name), update in updates.items():
            past = times[length].get(name, [])
            if update is None or (len(past) > 4 and np.median(past) > SLOW):
                continue
            began = time.perf_counter()
            update()
            if number:
                times[length][name] = [*past, time.perf_counter() - began]
        print(f"round {number} of {rounds}", flush=True)
    return times


def report(results: dict[str, dict[str, list[float]]]) -> None:
    """Milliseconds by arm and T, and how many times S2PG's they are at the longest T."""
    lengths = list(results)
    print("| arm | " + " | ".join(f"T = {length}" for length in lengths) + " | times S2PG at the last |")
    print("|---" * (len(lengths) + 2) + "|")
    for name in ARMS:
        if all(name in results[length] for length in lengths):
            medians = [1e3 * float(np.median(results[length][name])) for length in lengths]
            ratio = medians[-1] / (1e3 * float(np.median(results[lengths[-1]]["S2PG"])))
            print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in medians) + f" | {ratio:.1f} |")
    flat = [float(np.median(results[length]["S2PG"])) for length in lengths]
    print(f"\nS2PG: slowest over fastest T {max(flat) / min(flat):.3f}")


def draw(results: dict[str, dict[str, list[float]]], title: str) -> None:
    """Milliseconds against T, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7.6, 4.8))
    lengths = [int(length) for length in results]
    for number, name in enumerate(ARMS):
        if all(name in times for times in results.values()):
            quartiles = np.array([np.percentile(times[name], [25, 50, 75]) for times in results.values()]) * 1e3
            color = plt.get_cmap("tab10")(number)
            axis.plot(lengths, quartiles[:, 1], marker="o", color=color, label=name, linewidth=2.4 if name == "S2PG" else 1.4)
            axis.fill_between(lengths, quartiles[:, 0], quartiles[:, 2], color=color, alpha=0.15, linewidth=0)
    axis.set(xscale="log", yscale="log", xlabel="T, steps of a rollout (N·T fixed)", ylabel="ms an update (median, quartiles)")
    axis.set_xticks(lengths, [str(length) for length in lengths])
    axis.minorticks_off()
    axis.set_title(title)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def main() -> None:
    """Measure, store, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--transitions", type=int, default=4096, help="M = N·T")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="T")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    results = measure(arguments.transitions, list(arguments.lengths), arguments.rounds)
    machine = {"platform": platform.platform(), "python": platform.python_version(), "torch": torch.__version__}
    given = {"transitions": arguments.transitions, "threads": arguments.threads, "units": UNITS, "inputs": INPUTS}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, **given, "seconds": results}, indent=1))
    report(results)
    draw(results, f"one update of {arguments.transitions} transitions, {arguments.threads} thread(s)")


if __name__ == "__main__":
    main()
