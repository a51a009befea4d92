"""What a Hessian-vector product costs beside a gradient, and what an iteration holds in memory as the network grows.

Gradients and products alternate on the same episodes, with their compiled forms (`compile=True`) for the widths of `COMPILED`;
the ratio is of medians. Compiling takes the seconds of the first calls, with whatever torch had cached. Memory is that of
the state, the only tensors that live from one iteration to the next, in vectors of the size of θ. Written to
benchmarks/results/cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlopt import HARPG
from rlopt.estimators import Estimators

RESULTS = Path(__file__).parent / "results" / "cost.json"
WIDTHS = (32, 64, 128, 256)
COMPILED = (64,)


def seconds(function: Callable[[], Tensor]) -> float:
    """Of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def measure(width: int, repetitions: int) -> dict[str, Any]:
    """One network of two layers of this width, fifty episodes."""
    agent = HARPG("MlpPolicy", "rlopt/LQR-v0", seed=0, device="cpu", n_envs=10, policy_kwargs={"net_arch": [width, width]})
    assert agent.collector is not None
    state, _ = agent.step(agent.state, agent.collector)
    batch = agent.batch(agent.collector, state.theta, state, 50)
    vector = torch.randn_like(state.theta)
    given = state.theta, batch.rollout, batch.psi
    calls: dict[str, Callable[[], Tensor]] = {}
    for kind in ("", "compiled_") if width in COMPILED else ("",):
        estimators = Estimators(agent.log_policy, native=agent.device if kind else None)
        calls[f"{kind}gradient"] = partial(estimators.gradient, *given)
        calls[f"{kind}product"] = partial(estimators.product, *given, vector)
    first = {name: seconds(call) for name, call in calls.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repetitions + 3):
        for name, call in calls.items():
            times[name].append(seconds(call))
    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    size = state.theta.numel()
    held = sum(field.numel() for field in state if isinstance(field, Tensor))
    return {
        "width": width,
        "parameters": size,
        "steps": batch.rollout.num_valid,
        **{f"{name}_ms": 1e3 * median for name, median in medians.items()},
        **{f"{name}_first_s": taken for name, taken in first.items() if name.startswith("compiled")},
        "ratio": medians["product"] / medians["gradient"],
        "state_vectors": held / size,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=20)
    repetitions = parser.parse_args().repetitions
    torch.set_num_threads(1)
    rows = [measure(width, repetitions) for width in WIDTHS]
    print("| network | parameters | steps | gradient | Hessian-vector product | ratio | state, in vectors of θ |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        times = f"{r['gradient_ms']:.1f} ms | {r['product_ms']:.1f} ms | {r['ratio']:.2f}"
        print(f"| {r['width']}² | {r['parameters']:,} | {r['steps']:,} | {times} | {r['state_vectors']:.3f} |")
    for r in rows:
        if r["width"] in COMPILED:
            for name in ("gradient", "product"):
                eager, native, first = r[f"{name}_ms"], r[f"compiled_{name}_ms"], r[f"compiled_{name}_first_s"]
                calls = 1e3 * first / (eager - native)
                print(
                    f"{r['width']}², {name}: {eager:.1f} ms, compiled {native:.1f} ms ({eager / native:.1f} times as fast) ",
                    end="",
                )
                print(f"after {first:.0f} s, which {calls:,.0f} calls repay")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
