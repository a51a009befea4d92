"""How fast does PPO train on a GPU, and where does the time go?

- cartpole: CartPole whose states live on the device, 4096 environments x 32 steps, 10 epochs x 32 minibatches, in four modes:
  eager, compiled, graph (one CUDA graph a minibatch), compiled+graph. Target: 2,000,000 environment steps a second.
- update: the update of that setting alone, on one rollout.
- stepping: its environments alone, and with the policy acting.
- halfcheetah: HalfCheetah-v5, 1 environment x 2048 steps, 10 epochs of minibatches of 64, as LeanRL published it for an H100
  (1,774 steps a second, v4); the environment is on the CPU, the networks on the device and, beside it, on the CPU.

All modes are measured in one process, in rounds A B C D D C B A. The first iterations, which compile and capture, are left out
and reported apart. On a GPU times are those between CUDA events, and the host waits once a block. A number is the median over
blocks with a bootstrap 95 % interval. Results with machine and versions go to `benchmarks/results/gpu.json`; trials on the CPU
(`--device cpu --environments 64 --rounds 1`) are stored only where `--out` says. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlopt import PPO

RESULTS = Path(__file__).parent / "results" / "gpu.json"
MODES = ("eager", "compiled", "graph", "compiled+graph")
PARTS = ("cartpole", "update", "stepping", "halfcheetah")
WARM_UP = 3  # iterations left out
TARGET, LEANRL = 2_000_000, 1_774  # environment steps a second


def seconds_of(device: torch.device, function: Callable[[], Any]) -> float:
    """What a call takes; on a GPU between events on its stream, with one wait at the end."""
    if device.type != "cuda":
        began = time.perf_counter()
        function()
        return time.perf_counter() - began
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    before.record()
    function()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def interval(samples: list[float]) -> dict[str, float]:
    """The median of blocks with a bootstrap 95 % interval."""
    values = np.array(samples)
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return {"median": float(np.median(values)), "low": float(low), "high": float(high), "blocks": len(values)}


def make_agent(mode: str, device: torch.device, env_id: str, **arguments: Any) -> PPO:
    """An agent whose update is run in this mode."""
    agent = PPO("MlpPolicy", env_id, seed=0, device=device, compile=MODE_ARGUMENTS[mode], **arguments)
    if mode == "compiled":
        agent.capture = None
    return agent


MODE_ARGUMENTS: dict[str, Any] = {"eager": False, "compiled": True, "graph": "auto", "compiled+graph": True}


def possible_modes(device: torch.device) -> tuple[str, ...]:
    """Those that the device has: there are no graphs on the CPU, and a compiler may be missing."""
    modes = MODES if device.type == "cuda" else MODES[:2]
    probe = PPO("MlpPolicy", "CartPole-v1", device=device)
    if (reason := probe.why_not_compiled()) is None:
        return modes
    print(f"without the compiled modes: {reason}", file=sys.stderr)
    return tuple(mode for mode in modes if "compiled" not in mode)


def in_rounds(
    functions: dict[str, Callable[[], Any]], device: torch.device, rounds: int, work: dict[str, int], seconds: float
) -> dict[str, Any]:
    """Units of work a second of every function, in rounds there and back; each block lasts about `seconds`."""
    first = {name: seconds_of(device, function) for name, function in functions.items()}
    repeats = {}
    for name, function in functions.items():
        for _ in range(WARM_UP - 1):
            last = seconds_of(device, function)
        repeats[name] = max(1, round(seconds / last))
    speeds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name in (*functions, *reversed(functions)):
            function, times = functions[name], repeats[name]
            took = seconds_of(device, lambda function=function, times=times: [function() for _ in range(times)])  # type: ignore[misc]
            speeds[name].append(times * work[name] / took)
    return {name: {**interval(speeds[name]), "first_seconds": first[name], "repeats": repeats[name]} for name in functions}


def iteration(agent: PPO) -> Callable[[], Any]:
    """One iteration of training that goes on where the last one stopped."""
    return lambda: agent.learn(agent.n_steps * agent.n_envs, reset_num_timesteps=False, log_interval=None)


def cartpole_arguments(chosen: argparse.Namespace) -> dict[str, Any]:
    """Of PPO on CartPole; a minibatch is a whole share of the rollout."""
    rows = chosen.environments * chosen.steps
    if rows % chosen.minibatches:
        raise SystemExit(f"--minibatches: {rows} rows are not cut into {chosen.minibatches} equal parts")
    sizes = {"n_envs": chosen.environments, "n_steps": chosen.steps, "batch_size": rows // chosen.minibatches}
    return {**sizes, "n_epochs": chosen.epochs, "backend": "torch"}


def cartpole(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Environment steps a second of whole iterations."""
    arguments = cartpole_arguments(chosen)
    functions = {m: iteration(make_agent(m, device, "CartPole-v1", **arguments)) for m in possible_modes(device)}
    work = dict.fromkeys(functions, chosen.environments * chosen.steps)
    return in_rounds(functions, device, chosen.rounds, work, chosen.seconds)


def update(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Minibatch steps a second of updates alone, all on one rollout."""
    functions: dict[str, Callable[[], Any]] = {}
    for mode in possible_modes(device):
        agent = make_agent(mode, device, "CartPole-v1", **cartpole_arguments(chosen))
        assert agent.collector is not None
        rollout = agent.collector.steps(agent.state.theta, agent.n_steps)
        batch = agent.advantages(agent.state.theta, rollout)
        functions[mode] = lambda agent=agent, batch=batch: agent.update(agent.state, batch, 1.0)  # type: ignore[misc]
    work = dict.fromkeys(functions, chosen.epochs * chosen.minibatches)
    return in_rounds(functions, device, chosen.rounds, work, chosen.seconds)


def stepping(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Environment steps a second without an update."""
    agent = make_agent("eager", device, "CartPole-v1", **cartpole_arguments(chosen))
    collector, theta = agent.collector, agent.state.theta
    assert collector is not None
    collector.steps(theta, 1)
    envs: Any = collector.envs
    actions = torch.randint(2, (chosen.steps, chosen.environments), device=device)

    def alone() -> None:
        starts = envs.draw_starts(chosen.steps)
        for t in range(chosen.steps):
            envs.advance(actions[t], starts[t])

    functions = {"environments": alone, "with the policy": lambda: collector.steps(theta, chosen.steps)}
    work = dict.fromkeys(functions, chosen.environments * chosen.steps)
    return in_rounds(functions, device, chosen.rounds, work, chosen.seconds)


def halfcheetah(chosen: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Environment steps a second of whole iterations, networks on the device and on the CPU."""
    if importlib.util.find_spec("mujoco") is None:
        print("halfcheetah is left out: pip install 'rlopt[mujoco]'", file=sys.stderr)
        return {}
    arguments = {"n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10}
    cpu = torch.device("cpu")
    agents = {m: make_agent(m, device, "HalfCheetah-v5", **arguments) for m in possible_modes(device)}
    if device != cpu:
        agents |= {f"{mode}, cpu": make_agent(mode, cpu, "HalfCheetah-v5", **arguments) for mode in possible_modes(cpu)}
    functions = {name: iteration(agent) for name, agent in agents.items()}
    return in_rounds(functions, device, chosen.rounds, dict.fromkeys(functions, 2048), chosen.seconds)


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers belong to."""
    packages = ("rlopt", "torch", "triton", "gymnasium", "mujoco", "numpy", "stable_baselines3")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cuda": torch.version.cuda,
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "governor": governor.read_text().strip() if governor.exists() else "unknown",
        "load": os.getloadavg()[0],
        "tf32": torch.backends.cuda.matmul.allow_tf32,
    }


def show(part: str, results: dict[str, Any]) -> None:
    """One table."""
    unit = "minibatch steps/s" if part == "update" else "steps/s"
    print(f"\n| {part} | {unit} [95 %] | first call, s |\n|---|---|---|")
    for name, result in results.items():
        median, low, high = (f"{result[key]:,.0f}" for key in ("median", "low", "high"))
        print(f"| {name} | {median} [{low}, {high}] | {result['first_seconds']:.1f} |")
    if part == "cartpole":
        print(f"\ntarget at 4096 x 32, 10 x 32 on an H100: {TARGET:,}")
    if part == "halfcheetah":
        print(f"\nLeanRL on an H100 (published, HalfCheetah-v4): {LEANRL:,}")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, …; cpu to try the script")
    parser.add_argument("--environments", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=32, help="of each environment in a rollout")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--minibatches", type=int, default=32, help="of an epoch")
    parser.add_argument("--rounds", type=int, default=7, help="each measures every mode twice")
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--out", type=Path, help=f"where results are stored; {RESULTS} for a GPU, nowhere for the CPU")
    chosen = parser.parse_args()
    if unknown := set(chosen.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; there are {', '.join(PARTS)}")
    device = torch.device(chosen.device)
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(device)  # whose stream the events are on
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured; `--device cpu --environments 64` tries the script on the CPU")
        return
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for part in chosen.parts:
        results[part] = globals()[part](chosen, device)
        show(part, results[part])
    out = chosen.out or (RESULTS if device.type == "cuda" else None)
    if out is not None:
        out.parent.mkdir(exist_ok=True, parents=True)
        settings = {name: value for name, value in vars(chosen).items() if name != "out"}
        out.write_text(json.dumps({"machine": machine(device), "settings": settings, "results": results}, indent=1))


if __name__ == "__main__":
    main()
