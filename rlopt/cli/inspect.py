"""`python -m rlopt inspect FILE`: what a file of rlopt holds, without making anything of it."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from torch import Tensor

from rlopt import archive
from rlopt.archive import Archive
from rlopt.cli.errors import bad_input_exits
from rlopt.file_errors import shortened

PROGRAM = "rlopt-inspect"
LONG = {"hyperparameters", "settings", "versions", "run", "flight", "pareto", "observation_space", "action_space"}


def inspect_main(argv: list[str]) -> None:
    """Print a file's kind, versions, settings and tensors.

    Raises:
        SystemExit: 2 for what is no file of rlopt, or a damaged one.
    """
    parser = argparse.ArgumentParser(PROGRAM, description="What a file of rlopt holds; nothing in it is run.")
    parser.add_argument("file", type=Path, help="an agent, a checkpoint, a flight recorder's file, a Pareto archive")
    parser.add_argument("--tensors", action="store_true", help="every tensor, with its shape and type")
    arguments = parser.parse_args(argv)
    with bad_input_exits(PROGRAM):
        contents = archive.read(arguments.file, {"versions": dict})
        print("\n".join(description(contents, arguments.tensors)))


def description(contents: Archive, every_tensor: bool = False) -> list[str]:
    """The lines that `inspect` prints."""
    data = contents.data
    lines = [f"{kind(data)}, format {data['format']}"]
    lines += [f"  {name:<22} {_text(value)}" for name, value in data.items() if name not in LONG | {"format"}]
    for name in ("observation_space", "action_space"):
        if name in data:
            lines.append(f"  {name:<22} {_text(json.dumps(data[name]))}")
    if isinstance(data.get("flight"), dict):
        lines.append(f"  {'fault':<22} {_text(data['flight'].get('fault'))}")
    for section in ("hyperparameters", "settings", "versions"):
        if isinstance(data.get(section), dict):
            lines += [f"{section}:", *(f"  {name:<22} {_text(value)}" for name, value in data[section].items())]
    lines.append("tensors:")
    if every_tensor:
        return lines + [f"  {name:<40} {_form(tensor)}" for name, tensor in sorted(contents.tensors.items())]
    groups: dict[str, list[Tensor]] = defaultdict(list)
    for name, tensor in contents.tensors.items():
        groups[name.partition("/")[0]].append(tensor)
    for name, tensors in sorted(groups.items()):
        numbers, size = sum(t.numel() for t in tensors), sum(t.numel() * t.element_size() for t in tensors)
        lines.append(f"  {name:<22} {len(tensors)} of {numbers:,} numbers in all, {size:,} bytes")
    return lines


def kind(data: dict[str, Any]) -> str:
    """What a file is, in words."""
    if "flight" in data:
        return f"the last updates of {_text(data.get('algorithm'))}, from a flight recorder; rlopt replay plays them again"
    if "pareto" in data:
        return "a Pareto archive"
    if "kind" in data:
        return f"a checkpoint of {_text(data['kind'])}"
    if "run" in data:
        return f"a checkpoint of a training with {_text(data.get('algorithm'))}"
    return f"an agent of {_text(data.get('algorithm'))}"


def _text(value: Any) -> str:
    """On one line, without what steers a terminal; a text without quotes."""
    return shortened(value)[1:-1] if isinstance(value, str) else shortened(value)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
