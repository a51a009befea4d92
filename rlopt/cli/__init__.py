"""The command line: `rlopt-train`, `rlopt-evaluate` and `rlopt-plot`, also as scripts/*.py."""

from rlopt.cli.evaluate import evaluate_main
from rlopt.cli.plot import plot_main
from rlopt.cli.train import train_main

__all__ = ["evaluate_main", "plot_main", "train_main"]
