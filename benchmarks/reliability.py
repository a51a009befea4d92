"""What reliability costs, and whether a long run stays what it was.

    python benchmarks/reliability.py overhead    # pairs of trainings with and without recorder and checkpoints, interleaved
    python benchmarks/reliability.py share       # the time spent inside recorder and checkpoints, of one training
    python benchmarks/reliability.py soak        # 5,000,000 steps of CartPole in one run: memory and speed
    python benchmarks/reliability.py summary     # tables and plot

Overhead: the time of trainings in this process, alternately plain and with a `FlightRecorder` that has a folder and
`Checkpoints` at the command line's defaults, which write two files in 120,000 steps, at 100,000 and at the end. Time is that
on the clock, since a disk that is slow costs no processor time. The ratio of each pair, and the median with its bootstrap
interval; pairs of two plain trainings show the noise. Where that is larger than the cost, `share` tells more: the seconds
inside the recorder's and the checkpoints' methods, as a share of the whole training.

Soak: PPO with TensorBoard, episodes, checkpoints and recorder as the command line has them; resident memory and steps a second
at every hundredth. Memory is compared between the first tenth's end and the end; speed between the two halves of what follows,
by medians, as it is and as a multiple of a yardstick: at every hundredth the run waits while a fresh process trains a fresh
agent for 20,000 steps. What slows both down, such as other work on the machine, leaves the multiple as it is.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / "results" / "reliability.json"
PICTURE = Path(__file__).parent.parent / "docs" / "images" / "soak.png"
SOAK_STEPS, MARKS = 5_000_000, 100
YARDSTICK_STEPS = 20_000
PAIR_STEPS, PAIRS = 120_000, 8
SETTINGS: dict[str, Any] = {"n_envs": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 4, "seed": 0, "device": "cpu"}


def make(folder: str | None = None) -> Any:
    """The agent of both."""
    from rlopt import PPO

    return PPO("MlpPolicy", "CartPole-v1", tensorboard_log=folder, compile=False, **SETTINGS)


def seconds_of_training(guarded: bool, steps: int) -> float:
    """Of one training, once it has begun; the same data and updates either way."""
    from rlopt import Checkpoints, FlightRecorder

    with tempfile.TemporaryDirectory() as folder:
        more: dict[str, Any] = {}
        if guarded:
            more = {
                "checkpoints": Checkpoints(Path(folder) / "checkpoints"),
                "recorder": FlightRecorder(Path(folder) / "faults"),
            }
        agent = make().learn(SETTINGS["n_envs"] * SETTINGS["n_steps"])
        began = time.perf_counter()
        agent.learn(steps, log_interval=None, **more)
        return time.perf_counter() - began


def overhead(pairs: int, steps: int) -> dict[str, Any]:
    """Ratios of guarded to plain trainings, and of plain to plain ones."""
    ratios: dict[str, list[float]] = {"guarded": [], "plain": []}
    seconds_of_training(False, steps // 10)
    for pair in range(pairs):
        for name, guarded in (("guarded", True), ("plain", False)):
            order = (guarded, False) if pair % 2 else (False, guarded)
            first, second = (seconds_of_training(which, steps) for which in order)
            ratios[name].append(second / first if not pair % 2 else first / second)
        print(f"pair {pair + 1}: guarded {ratios['guarded'][-1]:.3f}, plain {ratios['plain'][-1]:.3f}", flush=True)
    return {"steps": steps, **ratios}


def share(steps: int) -> dict[str, Any]:
    """Seconds of one training, and those inside of what guards it."""
    from rlopt import Checkpoints, FlightRecorder

    spent: dict[str, float] = {}

    def timed(owner: Any, name: str) -> None:
        """Count the time of a method."""
        method = getattr(owner, name)

        def counting(*arguments: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                spent[name] = spent.get(name, 0.0) + time.perf_counter() - began

        setattr(owner, name, counting)

    with tempfile.TemporaryDirectory() as folder:
        checkpoints, recorder = Checkpoints(f"{folder}/checkpoints"), FlightRecorder(f"{folder}/faults")
        for owner, names in (
            (recorder, ("update_begins", "accepts")),
            (checkpoints, ("begin", "iteration_ended", "training_ended")),
        ):
            for name in names:
                timed(owner, name)
        agent = make(folder)
        began = time.perf_counter()
        agent.learn(steps, checkpoints=checkpoints, recorder=recorder)
        seconds = time.perf_counter() - began
        agent.logger.close()
    print(
        f"{sum(spent.values()) / seconds:.2%} of {seconds:.1f} s: { {name: round(value, 3) for name, value in spent.items()} }"
    )
    return {"steps": steps, "seconds": seconds, "inside": spent}


def fresh_seconds(pipe: Any) -> None:
    """Send what a plain training takes in a process that has just begun."""
    import torch

    torch.set_num_threads(1)
    pipe.send(seconds_of_training(False, YARDSTICK_STEPS))


def yardstick() -> float:
    """Seconds of a fresh training in a fresh process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlopt", "torch"])
    mine, theirs = context.Pipe()
    process = context.Process(target=fresh_seconds, args=(theirs,))
    process.start()
    seconds = mine.recv()
    process.join()
    return float(seconds)


def soak(steps: int) -> dict[str, Any]:
    """Resident memory [MiB], seconds up to every mark, and those of the yardstick there."""
    from stable_baselines3.common.callbacks import BaseCallback

    from rlopt import Checkpoints, FlightRecorder
    from rlopt.run_folder import EpisodeLog

    memory: list[float] = []
    clock: list[float] = []
    yard: list[float] = []
    yardstick()  # what it imports is not counted

    def mark() -> None:
        began = time.perf_counter()
        memory.append(resident())
        clock.append(began - start - waited[0])
        yard.append(yardstick())
        waited[0] += time.perf_counter() - began

    waited = [0.0]

    class Watch(BaseCallback):
        """Looks between rollouts."""

        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            while len(memory) < MARKS and self.model.num_timesteps >= (len(memory) + 1) * steps / MARKS:
                mark()

    with tempfile.TemporaryDirectory() as folder:
        agent = make(folder)
        start = time.perf_counter()
        with EpisodeLog(Path(folder) / "episodes.csv", agent):
            agent.learn(
                steps,
                Watch(),
                checkpoints=Checkpoints(Path(folder) / "checkpoints"),
                recorder=FlightRecorder(Path(folder) / "faults"),
            )
        while len(memory) < MARKS:
            mark()
        agent.logger.close()
    return {"steps": steps, "memory_mib": memory, "seconds": clock, "yardstick_seconds": yard}


def resident() -> float:
    """Resident memory of this process, MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def summary() -> None:
    """Tables and the plot."""
    if not RESULTS.exists():
        print("nothing to show yet")
        return
    results = json.loads(RESULTS.read_text())
    if "overhead" in results:
        print("| trainings | pairs | median ratio | 95 % of the median |\n|---|---|---|---|")
        random = np.random.default_rng(0)
        for name, words in (("guarded", "with recorder and checkpoints to without"), ("plain", "without to without")):
            ratios = np.array(results["overhead"][name])
            medians = [np.median(random.choice(ratios, len(ratios))) for _ in range(2000)]
            low, high = np.percentile(medians, [2.5, 97.5])
            print(f"| {words} | {len(ratios)} | {np.median(ratios):.3f} | {low:.3f} to {high:.3f} |")
    if "share" in results:
        inside, seconds = sum(results["share"]["inside"].values()), results["share"]["seconds"]
        print(f"\ninside recorder and checkpoints: {inside / seconds:.2%} of {seconds:.0f} s")
    if "soak" in results:
        memory, seconds, yard = (np.array(results["soak"][name]) for name in ("memory_mib", "seconds", "yardstick_seconds"))
        tenth = MARKS // 10
        speed = results["soak"]["steps"] / MARKS / np.diff(np.concatenate([[0.0], seconds]))
        multiple = speed * yard / YARDSTICK_STEPS
        print(f"\nresident memory: {memory[tenth - 1]:.1f} MiB after a tenth, {memory[-1]:.1f} at the end", end="")
        print(f" ({memory[-1] / memory[tenth - 1] - 1:+.2%})")
        random = np.random.default_rng(0)
        for words, values in (("steps a second", speed), ("as a multiple of the yardstick", multiple)):
            halves = np.array_split(values[tenth:], 2)
            first, last = (float(np.median(half)) for half in halves)
            drawn = [np.divide(*(np.median(random.choice(half, len(half))) for half in halves[::-1])) - 1 for _ in range(2000)]
            low, high = np.percentile(drawn, [2.5, 97.5])
            told = f"{first:,.3f} in the first half after a tenth, {last:,.3f} in the second"
            print(f"{words}: {told} ({last / first - 1:+.1%}, 95 % bootstrap {low:+.1%} to {high:+.1%})")
        draw(memory, speed, multiple, results["soak"]["steps"])


def draw(memory: np.ndarray, speed: np.ndarray, multiple: np.ndarray, steps: int) -> None:
    """Memory and speed over the run."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.4))
    millions = np.arange(1, MARKS + 1) * steps / MARKS / 1e6
    shown = ((memory, "resident memory, MiB"), (speed, "steps a second"), (multiple, "speed, multiple of a fresh process's"))
    for axis, (values, words) in zip(axes, shown, strict=True):
        axis.plot(millions, values)
        axis.set(xlabel="environment steps, millions", ylabel=words, ylim=(0, 1.15 * values.max()))
        axis.grid(alpha=0.3)
    figure.tight_layout()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=120)
    print(PICTURE)


def main() -> None:
    """Measure or summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("overhead", "share", "soak", "summary"))
    parser.add_argument("--steps", type=int, help=f"{PAIR_STEPS:,} for overhead, {SOAK_STEPS:,} for soak")
    parser.add_argument("--pairs", type=int, default=PAIRS)
    arguments = parser.parse_args()
    if arguments.command != "summary":
        import torch

        torch.set_num_threads(1)
        if arguments.command == "soak":
            measured = soak(arguments.steps or SOAK_STEPS)
        elif arguments.command == "share":
            measured = share(arguments.steps or PAIR_STEPS)
        else:
            measured = overhead(arguments.pairs, arguments.steps or PAIR_STEPS)
        known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({**known, arguments.command: measured}, indent=1) + "\n")
    summary()


if __name__ == "__main__":
    main()
