"""Bad input ends a command with one line on standard error and exit code 2, never with a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import gymnasium as gym

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


@contextmanager
def bad_input_exits(program: str) -> Iterator[None]:
    """Turn the errors that a user can cause into a message and exit code 2."""
    try:
        yield
    except (ValueError, ImportError, OSError, gym.error.Error) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """The tail of an error: "; did you mean 'x'?", or nothing if no name is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(str(given).lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]!r}?" if near else ""
