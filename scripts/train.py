#!/usr/bin/env python
"""Train an agent; `--help` explains every flag. The same as the command `rlopt-train`."""

from rlopt.cli import train_main

if __name__ == "__main__":
    train_main()
