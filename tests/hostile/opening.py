"""Cases opened one after the other in `tests.hostile.reader`, and what is wrong with how they ended."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tests.hostile.corpus import Case, Context

ROOT = Path(__file__).parents[2]
LARGEST_MEGABYTES = 1024
# "path: …", "policy_kwargs['net_arch']: …"; on the command line after "rlopt-evaluate: error: "
MESSAGE = re.compile(r"[a-z_]\w*(\[[^\]]*\])*: \S")
COMMAND_LINE = re.compile(r"[\w -]+: error: (.*)")


class Reader:
    """The process that opens files; a context manager."""

    def __init__(self, *modules: str):
        command = [sys.executable, "-m", "tests.hostile.reader", *modules]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(60)

    def open(self, reader: str, path: Path, here: bool = False) -> dict[str, Any]:
        """How opening a path ended; `here` is for whole files, which prepare the process. See `tests.hostile.reader`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"reader": reader, "path": str(path), "here": here}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def run(cases: Sequence[Case], reader: Reader, context: Context, folder: Path) -> tuple[list[str], dict[str, float]]:
    """What is wrong, a line a case, and figures of all cases together."""
    originals: dict[tuple[str, str], str] = {}
    faults, megabytes, seconds = [], [0], [0.0]
    for case in cases:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        answer = reader.open(case.reader, case.write(context, folder))
        megabytes.append(answer["megabytes"])
        seconds.append(answer["seconds"])
        fault = fault_of(case, answer, context, reader, originals)
        if fault:
            faults.append(f"{case.family} / {case.name} ({case.reader}): {fault}")
        if context.marker.exists():
            context.marker.rmdir()
            faults.append(f"{case.family} / {case.name} ({case.reader}): it ran code")
    shutil.rmtree(folder, ignore_errors=True)
    return faults, {"cases": len(cases), "megabytes": max(megabytes), "slowest": max(seconds), "seconds": sum(seconds)}


def fault_of(
    case: Case, answer: dict[str, Any], context: Context, reader: Reader, originals: dict[tuple[str, str], str]
) -> str | None:
    """What is wrong with an answer, or None; digests of whole files are looked up once."""
    if answer["megabytes"] >= LARGEST_MEGABYTES:
        return f"took {answer['megabytes']} MB"
    if answer["outcome"] == "killed":
        return f"did not end, or died of signal {answer['signal']}"
    if answer["outcome"] == "error":
        if answer["type"] not in ("ValueError", "FileNotFoundError"):
            return f"{answer['type']}: {answer['message'][:300]}"
        if not MESSAGE.match(answer["message"]) or len(answer["message"].splitlines()) != 1:
            return f"the message {answer['message'][:300]!r}"
        return None
    if answer["outcome"] == "exit" and answer["code"] != 0:
        lines = answer["stderr"].splitlines()
        match = COMMAND_LINE.fullmatch(lines[0]) if len(lines) == 1 else None
        if answer["code"] != 2 or match is None or not (MESSAGE.match(match[1]) and match[1].isprintable()):
            return f"exit code {answer['code']} and {answer['stderr'][-300:]!r}"
        return None
    if case.expected == "opens":
        return None
    if case.expected == "refused":
        return "was opened"
    name = "sb3" if case.reader == "import_sb3" else case.name.partition(" ")[0]
    name = name if name in context.originals else "agent"
    if (case.reader, name) not in originals:
        originals[case.reader, name] = reader.open(case.reader, context.originals[name])["digest"]
    return None if answer["digest"] == originals[case.reader, name] else "was opened, and is not what was written"
