#!/usr/bin/env python
"""Evaluate a trained agent; `--help` explains every flag. The same as the command `rlopt-evaluate`."""

from rlopt.cli import evaluate_main

if __name__ == "__main__":
    evaluate_main()
