"""PPO with the tuned preset on CartPole-v1: ten seeds through the command line, 100,000 steps each.

The claim: the deterministic evaluation after training reaches 475 in at least nine of ten seeds. Results go to
`benchmarks/results/cartpole.json`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "cartpole.json"
TRAIN = Path(__file__).parent.parent / "scripts" / "train.py"
SOLVED = 475.0


def train(seed: int, folder: str) -> dict[str, float]:
    """The command line's own report of one run."""
    arguments = ["--env", "CartPole-v1", "--total-timesteps", "100000", "--seed", str(seed), "--eval-episodes", "100"]
    command = [sys.executable, str(TRAIN), *arguments, "--run-dir", folder, "--no-progress", "--json"]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    report = json.loads(output.strip().splitlines()[-1])
    return {key: report[key] for key in ("seed", "env_steps", "eval_mean_return", "eval_std_return", "seconds")}


def main() -> None:
    """Train the seeds, store and print the result; exit status 1 if the claim fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-seeds", type=int, default=10)
    num_seeds = parser.parse_args().num_seeds
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(num_seeds):
            runs.append(train(seed, folder))
            print(runs[-1], flush=True)
    solved = sum(run["eval_mean_return"] >= SOLVED for run in runs)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({"metric": "mean of 100 deterministic episodes", "solved": solved, "runs": runs}, indent=1))
    print(f"{solved} of {num_seeds} seeds reach {SOLVED:g}")
    sys.exit(0 if solved >= 0.9 * num_seeds else 1)


if __name__ == "__main__":
    main()
