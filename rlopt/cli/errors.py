"""Bad input ends a command with one line on standard error and exit code 2, never with a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium as gym

from rlopt.file_errors import one_line

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


@contextmanager
def bad_input_exits(program: str) -> Iterator[None]:
    """Turn the errors that a user can cause into a message and exit code 2."""
    try:
        yield
    except (ValueError, ImportError, OSError, gym.error.Error) as error:
        print(f"{program}: error: {one_line(str(error))}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
