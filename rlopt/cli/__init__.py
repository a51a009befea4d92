"""The command line: `rlopt-train`, `rlopt-evaluate` and `rlopt-plot`, also as scripts/*.py, and `python -m rlopt export`."""

from rlopt.cli.evaluate import evaluate_main
from rlopt.cli.export import export_main
from rlopt.cli.inspect import inspect_main
from rlopt.cli.plot import plot_main
from rlopt.cli.train import train_main

__all__ = ["evaluate_main", "export_main", "inspect_main", "plot_main", "train_main"]
