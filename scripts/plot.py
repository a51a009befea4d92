#!/usr/bin/env python
"""Draw learning curves or Pareto fronts; `--help` explains every flag. The same as the command `rlopt-plot`."""

from rlopt.cli import plot_main

if __name__ == "__main__":
    plot_main()
