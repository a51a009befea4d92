"""`python -m rlopt COMMAND`: the command line without installed scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable

from rlopt.cli import evaluate_main, export_main, inspect_main, plot_main, train_main
from rlopt.replaying import replay_main
from rlopt.verification.run import verify_main

COMMANDS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (train_main, "train an agent"),
    "evaluate": (evaluate_main, "play a trained agent"),
    "plot": (plot_main, "draw learning curves"),
    "export": (export_main, "write a trained agent as ONNX"),
    "inspect": (inspect_main, "say what a file holds"),
    "replay": (replay_main, "play updates again that went wrong, from the file of a flight recorder"),
    "verify": (verify_main, "check the estimators and agents against exact answers"),
}


def main(argv: list[str]) -> None:
    """Run a command.

    Raises:
        SystemExit: as the command does; 2 for an unknown one.
    """
    if not argv or argv[0] not in COMMANDS:
        lines = "\n".join(f"  {name:<10}{text}" for name, (_, text) in COMMANDS.items())
        asked = bool(argv) and argv[0] in ("-h", "--help")
        print(
            f"usage: python -m rlopt COMMAND …\n\n{lines}\n\nCOMMAND --help explains each.", file=None if asked else sys.stderr
        )
        raise SystemExit(0 if asked else 2)
    COMMANDS[argv[0]][0](argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
