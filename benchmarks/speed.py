"""How fast is PPO beside its peers, at Stable-Baselines3's hyper-parameters and on the same work?

    python benchmarks/speed.py steady       # steps a second, after a warm-up
    python benchmarks/speed.py whole        # seconds from the start of Python to the last of N steps, compiling included
    python benchmarks/speed.py limit        # what the environments' C code and the matrix products alone take
    python benchmarks/speed.py summary      # tables and chart
    python benchmarks/speed.py              # all four; `make bench`

Steady: every library is a process of its own, and all are alive at the same time, but only one works: each in turn trains for
some iterations, forwards and backwards through the libraries (A B B A), so that a machine whose speed drifts drifts for all. A
ratio compares the two turns of a library in one round with Stable-Baselines3's two; the table has the median over rounds with a
bootstrap interval, and Stable-Baselines3's first turn against its second: the noise. Rows that only reset are not counted.

Processes run on one core with one torch thread; where environments have threads, and for convolutions, on as many as
`CONFIGURATIONS` says. SBX takes part where it is installed. Everything is appended to `benchmarks/results/speed.jsonl`, with a
name for the run; the summary is of the last measurement of each. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "speed.jsonl"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "speed.png"
PONG = {"learning_rate": 2.5e-4, "clip_range": 0.1, "ent_coef": 0.01}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "cartpole-8": {"env": "CartPole-v1", "n_envs": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 20},
    "cartpole-64": {"env": "CartPole-v1", "n_envs": 64, "n_steps": 128, "batch_size": 1024, "n_epochs": 10},
    "halfcheetah-1": {"env": "HalfCheetah-v5", "n_envs": 1, "n_steps": 2048, "batch_size": 64, "n_epochs": 10},
    "halfcheetah-16": {"env": "HalfCheetah-v5", "n_envs": 16, "n_steps": 256, "batch_size": 512, "n_epochs": 10},
    "pong-8": {"env": "ALE/Pong-v5", "n_envs": 8, "n_steps": 128, "batch_size": 256, "n_epochs": 4, **PONG},
    # SB3-contrib's RecurrentPPO: rl-baselines3-zoo's arguments for this task, and the library's own defaults
    "recurrent-64": {
        "env": "CartPoleNoVel-v1",
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "policy_kwargs": {"lstm_hidden_size": 64},
    },
    "recurrent-256": {"env": "CartPoleNoVel-v1", "n_envs": 8},
}
CORES = {"halfcheetah-16": 2, "pong-8": 2}  # else 1
USABLE = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
MLP = ("sb3", "rlopt", "script", "sbx")
LIBRARIES = {
    **dict.fromkeys(("cartpole-8", "cartpole-64", "halfcheetah-1"), MLP),
    "halfcheetah-16": (*MLP, "sb3, 2 threads"),
    "pong-8": ("sb3, 2 threads", "rlopt, 2 threads"),
    "recurrent-64": ("sb3-contrib", "rlopt"),
    "recurrent-256": ("sb3-contrib", "rlopt"),
}
TARGETS = {  # steady, whole
    "cartpole-8": (3.5, 1.5),
    "cartpole-64": (2.5, 2.2),
    "halfcheetah-1": (4.5, 4.0),
    "halfcheetah-16": (3.0, 2.7),
    "pong-8": (1.5, None),
    "recurrent-64": (10, None),
    "recurrent-256": (10, None),
}
WHOLE = {"cartpole-8": 100_000, "cartpole-64": 1_000_000, "halfcheetah-1": 1_000_000, "halfcheetah-16": 1_000_000}
WARM_UP = 3  # iterations left out of the steady speed
NAMES = {"script": "CleanRL's algorithm", "sbx": "SBX", "sb3, 2 threads": "SB3, 2 threads"}

AfterIteration = Callable[[int], bool]
"""Called with the steps so far; whether to go on."""


def train(library: str, name: str, after_iteration: AfterIteration, num_steps: int = 10**9) -> None:
    """PPO of a library, until `after_iteration` says False or `num_steps` are made."""
    library, _, threads = library.partition(", ")
    import torch

    torch.set_num_threads(2 if threads else 1)
    arguments = dict(CONFIGURATIONS[name])
    env_id, n_envs = arguments.pop("env"), arguments.pop("n_envs")
    if library == "script":
        from ppo_script import train as train_script

        train_script(env_id, n_envs, after_iteration=lambda steps: after_iteration(steps) and steps < num_steps, **arguments)
        return
    agent, method = made(library, env_id, n_envs, arguments)

    class Enough(Exception):
        pass

    inner = getattr(agent, method)

    def watched(*given: Any) -> Any:
        result = inner(*given)
        if not after_iteration(agent.num_timesteps):
            raise Enough
        return result

    setattr(agent, method, watched)
    with contextlib.suppress(Enough):
        agent.learn(num_steps)


def made(library: str, env_id: str, n_envs: int, arguments: dict[str, Any]) -> tuple[Any, str]:
    """An agent, and the name of its method that ends an iteration."""
    atari, recurrent = env_id.startswith("ALE/"), "NoVel" in env_id
    policy = "CnnPolicy" if atari else "MlpLstmPolicy" if recurrent else "MlpPolicy"
    if recurrent or library == "rlopt":
        import rlopt

    if library == "rlopt":
        envs: Any = env_id
        if atari:
            from rlopt.envs.atari import AtariEnvironments

            envs = AtariEnvironments("pong", n_envs)  # without sticky actions, as the id below
        ours = rlopt.RecurrentPPO if recurrent else rlopt.PPO
        return ours(policy, envs, n_envs=1 if atari else n_envs, seed=0, device="cpu", **arguments), "step"
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecFrameStack

    if atari:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        envs = VecFrameStack(make_atari_env("PongNoFrameskip-v4", n_envs, seed=0), 4)
    else:
        envs = make_vec_env(env_id, n_envs, seed=0)
    if library == "sbx":
        from sbx import PPO as theirs
    elif library == "sb3-contrib":
        from sb3_contrib import RecurrentPPO as theirs
    else:
        from stable_baselines3 import PPO as theirs
    device = {} if library == "sbx" else {"device": "cpu"}
    return theirs(policy, envs, seed=0, **device, **arguments), "train"


def work(pipe: Any, library: str, name: str, cores: int) -> None:
    """A process: trains while it is asked to, by a number of seconds, and answers what it did in these."""
    pin(cores)
    state = {"began": 0.0, "steps": 0, "seconds": 0.0, "iterations": 0}

    def begin() -> bool:
        seconds = pipe.recv()
        state.update(seconds=seconds or 0.0, iterations=0, began=time.perf_counter())
        return seconds is not None

    def after_iteration(steps: int) -> bool:
        state["iterations"] += 1
        elapsed = time.perf_counter() - state["began"]
        if state["seconds"] < 0:  # that many iterations
            if state["iterations"] < -state["seconds"]:
                return True
        elif elapsed < state["seconds"]:
            return True
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        pipe.send({"steps": steps - state["steps"], "seconds": elapsed, "peak_mib": round(peak)})
        state["steps"] = steps
        return begin()

    if begin():
        train(library, name, after_iteration)


def steady(name: str, rounds: int, seconds: float) -> list[dict[str, Any]]:
    """A record for each round: steps a second of every library's two turns."""
    libraries = [library for library in LIBRARIES[name] if library != "sbx" or importlib.util.find_spec("sbx")]
    context = multiprocessing.get_context("spawn")
    workers: dict[str, Any] = {}
    for library in libraries:
        pipe, theirs = context.Pipe()
        process = context.Process(target=work, args=(theirs, library, name, CORES.get(name, 1)), daemon=True)
        with environment(OMP_NUM_THREADS="2" if "threads" in library else "1"):
            process.start()
        workers[library] = (process, pipe)
        ask(workers[library], -WARM_UP)
    records = []
    for number in range(rounds):
        turns: dict[str, list[dict[str, Any]]] = {library: [] for library in libraries}
        for library in (*libraries, *reversed(libraries)):
            turns[library].append(ask(workers[library], seconds))
        speeds = {k: [t["steps"] / t["seconds"] for t in v] for k, v in turns.items()}
        memory = {k: v[-1]["peak_mib"] for k, v in turns.items()}
        records.append({"what": "steady", "configuration": name, "round": number, "speeds": speeds, "peak_mib": memory})
        ours, theirs = (np.mean(speeds[library]) for library in (ours_of(name), base_of(name)))
        print(f"{name} round {number + 1}/{rounds}: {ours / theirs:.2f}", file=sys.stderr, flush=True)
    for process, pipe in workers.values():
        pipe.send(None)
        process.join(20)
        process.kill()
    return records


def ask(worker: tuple[Any, Any], seconds: float) -> dict[str, Any]:
    """What a process did in its turn."""
    process, pipe = worker
    pipe.send(seconds)
    while not pipe.poll(1):
        if not process.is_alive():
            raise SystemExit(f"a library's process ended with {process.exitcode}")
    return pipe.recv()  # type: ignore[no-any-return]


def whole(name: str, pairs: int) -> list[dict[str, Any]]:
    """Seconds of whole trainings, Stable-Baselines3 and rlopt in turn, A B B A."""
    records = []
    for number in range(pairs):
        libraries = (base_of(name), ours_of(name))
        taken = {}
        for library in libraries if number % 2 == 0 else reversed(libraries):
            with tempfile.TemporaryDirectory() as cache:  # of what torch compiled: nothing yet
                began = time.perf_counter()
                subprocess.run(
                    [sys.executable, __file__, "--train", library, name],
                    check=True,
                    stdout=subprocess.DEVNULL,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache},
                    preexec_fn=lambda: pin(CORES.get(name, 1)),
                )
                taken[library] = round(time.perf_counter() - began, 2)
        records.append({"what": "whole", "configuration": name, "steps": WHOLE[name], "seconds": taken})
        print(f"{name} pair {number + 1}/{pairs}: {taken}", file=sys.stderr, flush=True)
    return records


def limits(name: str) -> list[dict[str, Any]]:
    """The physical limit, on as many cores as the libraries had."""
    from speed_limit import limit

    pin(CORES.get(name, 1))
    measured = limit(CONFIGURATIONS[name], CORES.get(name, 1))
    pin(len(USABLE))
    return [] if measured is None else [{"what": "limit", "configuration": name, **measured}]


def pin(cores: int) -> None:
    """Run on the last so many of the cores that there were at the beginning."""
    if USABLE:
        os.sched_setaffinity(0, USABLE[-cores:])


def base_of(name: str) -> str:
    """What the ratios are to."""
    return LIBRARIES[name][0]


def ours_of(name: str) -> str:
    """rlopt's name in a configuration."""
    return next(library for library in LIBRARIES[name] if library.startswith("rlopt"))


@contextlib.contextmanager
def environment(**variables: str) -> Iterator[None]:
    """These environment variables, for processes that begin here."""
    before = dict(os.environ)
    os.environ.update(variables)
    yield
    os.environ.clear()
    os.environ.update(before)


def latest(results: list[dict[str, Any]], what: str, name: str) -> list[dict[str, Any]]:
    """The records of the last run that measured this."""
    rows = [r for r in results if (r["what"], r["configuration"]) == (what, name)]
    return [r for r in rows if r["run"] == rows[-1]["run"]]


def ratios(rounds: list[dict[str, Any]], library: str, base: str) -> tuple[float, float, float]:
    """The median over rounds, and its bootstrap 95 % interval."""
    values = np.array([np.mean(r["speeds"][library]) / np.mean(r["speeds"][base]) for r in rounds])
    draws = np.random.default_rng(0).integers(0, len(values), (10_000, len(values)))
    low, high = np.percentile(np.median(values[draws], axis=1), [2.5, 97.5])
    return float(np.median(values)), float(low), float(high)


def summary(results: list[dict[str, Any]]) -> None:
    """Tables, and the chart."""
    print(
        "| PPO on | rlopt / SB3 [95 %] | target | rlopt steps/s | SB3 steps/s | SB3's turns | share of the limit | peak MiB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    bars: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name in CONFIGURATIONS:
        if not (rounds := latest(results, "steady", name)):
            continue
        ours, base = ours_of(name), base_of(name)
        middle, low, high = ratios(rounds, ours, base)
        speed = {k: statistics.median(float(np.mean(r["speeds"][k])) for r in rounds) for k in rounds[0]["speeds"]}
        control = [r["speeds"][base][0] / r["speeds"][base][1] for r in rounds]
        limit = latest(results, "limit", name)
        share = f"{speed[ours] / limit[-1]['steps_per_second']:.0%}" if limit else "–"
        memory = rounds[-1]["peak_mib"]
        print(
            f"| {name} | {middle:.2f} [{low:.2f}, {high:.2f}] | {TARGETS[name][0]} | {speed[ours]:,.0f} | {speed[base]:,.0f} | "
            f"{min(control):.2f}–{max(control):.2f} | {share} | {memory[ours]} / {memory[base]} |"
        )
        bars[name] = {k: ratios(rounds, k, base) for k in rounds[0]["speeds"]}
    print("\n| beside SB3 with one thread | " + " | ".join(NAMES.values()) + " |")
    print("|---|" + "---|" * len(NAMES))
    for name, values in bars.items():
        if base_of(name) == "sb3":
            cells = [f"{values[k][0]:.2f} [{values[k][1]:.2f}, {values[k][2]:.2f}]" if k in values else "–" for k in NAMES]
            print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| whole training | steps | SB3 s | rlopt s | SB3 / rlopt | target |")
    print("|---|---|---|---|---|---|")
    for name, steps in WHOLE.items():
        if pairs := latest(results, "whole", name):
            theirs, mine = ([p["seconds"][k] for p in pairs] for k in (base_of(name), ours_of(name)))
            each = ", ".join(f"{a / b:.2f}" for a, b in zip(theirs, mine, strict=True))
            print(
                f"| {name} | {steps:,} | {statistics.median(theirs):.1f} | {statistics.median(mine):.1f} | {each} | "
                f"{TARGETS[name][1]} |"
            )
    draw(bars)


def draw(bars: dict[str, dict[str, tuple[float, float, float]]]) -> None:
    """The ratios as a chart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(9, 4.2))
    shown = {"rlopt": "tab:blue", "script": "tab:gray", "sbx": "tab:orange", "sb3, 2 threads": "tab:green"}
    width = 0.2
    for i, (name, values) in enumerate(bars.items()):
        peers = [k for k in values if k != base_of(name)]
        for j, library in enumerate(peers):
            middle, low, high = values[library]
            x = i + (j - (len(peers) - 1) / 2) * width
            color = shown[library if library in shown else library.partition(", ")[0]]
            axis.bar(x, middle, width * 0.9, color=color)
            axis.errorbar(x, middle, [[middle - low], [high - middle]], color="black", linewidth=1)
            axis.annotate(f"{middle:.1f}", (x, high), ha="center", va="bottom", fontsize=8)
    for library, color in shown.items():
        axis.bar(0, 0, color=color, label=NAMES.get(library, library))
    axis.axhline(1, color="black", linewidth=0.8, linestyle=":")
    axis.set_xticks(range(len(bars)), list(bars), fontsize=8)
    axis.set(ylabel="steps/s, Stable-Baselines3 = 1", title="PPO at Stable-Baselines3's hyper-parameters, on a CPU")
    axis.legend(fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=120)
    print(f"\n{PICTURE}")


def main() -> None:
    """Measure or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=("all", "steady", "whole", "limit", "summary"), default="all")
    parser.add_argument(
        "--configurations", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS), metavar="NAME"
    )
    parser.add_argument("--rounds", type=int, default=8, help="of the steady speed; two turns of every library in each")
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn, at least")
    parser.add_argument("--pairs", type=int, default=3, help="of whole trainings")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--train", nargs=2, metavar=("LIBRARY", "CONFIGURATION"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        library, name = arguments.train
        train(library, name, lambda steps: True, WHOLE[name])
        return
    run = {"run": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count(), "platform": platform.platform()}
    arguments.out.parent.mkdir(exist_ok=True)
    measures: dict[str, Callable[[str], list[dict[str, Any]]]] = {
        "steady": lambda name: steady(name, arguments.rounds, arguments.seconds),
        "limit": limits,
        "whole": lambda name: whole(name, arguments.pairs) if name in WHOLE else [],
    }
    for what, measure in measures.items():
        for name in arguments.configurations if arguments.command in ("all", what) else []:
            records = measure(name)
            with arguments.out.open("a") as file:
                file.writelines(json.dumps({**record, **run}) + "\n" for record in records)
    if arguments.command in ("all", "summary"):
        lines = arguments.out.read_text().splitlines() if arguments.out.exists() else []
        summary([json.loads(line) for line in lines])


if __name__ == "__main__":
    main()
