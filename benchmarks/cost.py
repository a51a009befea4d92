"""What a Hessian-vector product costs beside a gradient, and what an iteration holds in memory as the network grows.

Gradients and products alternate on the same episodes; the ratio is of medians. Memory is that of the state, the only tensors
that live from one iteration to the next, in vectors of the size of θ. Written to benchmarks/results/cost.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlopt import HARPG
from rlopt.estimators import hessian_vector_product, policy_gradient

RESULTS = Path(__file__).parent / "results" / "cost.json"
WIDTHS = (32, 64, 128, 256)


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
    gradients, products = [], []
    for _ in range(repetitions + 3):
        gradients.append(seconds(lambda: policy_gradient(agent.log_policy, state.theta, batch.rollout, batch.psi)))
        products.append(
            seconds(lambda: hessian_vector_product(agent.log_policy, state.theta, batch.rollout, batch.psi, vector))
        )
    size = state.theta.numel()
    held = sum(field.numel() for field in state if isinstance(field, Tensor))
    return {
        "width": width,
        "parameters": size,
        "steps": batch.rollout.num_valid,
        "gradient_ms": 1e3 * statistics.median(gradients[3:]),
        "product_ms": 1e3 * statistics.median(products[3:]),
        "ratio": statistics.median(products[3:]) / statistics.median(gradients[3:]),
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
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
