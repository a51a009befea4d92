"""What the values of a file make other code raise, as one line that says which argument was at fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from reprlib import Repr
from typing import Any

import gymnasium as gym

# A file may hold a text of megabytes, and texts that steer a terminal.
LONGEST_MESSAGE = 600
# "gamma: …", "policy_kwargs['net_arch']: …"
NAMED = re.compile(r"[a-z_]\w*(\[[^\]]{0,60}\]){0,4}: ")
RAISED = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    gym.error.Error,
)


@contextmanager
def as_file_errors(what: str, name: str = "path", arguments: bool = False) -> Iterator[None]:
    """Turn whatever is raised into a ValueError "NAME: WHAT: …" of one line, unless it begins with that name already.

    Only for code that works on what a file holds: it hides the kind of error.

    Args:
        what: is wrong.
        name: of the argument.
        arguments: leave errors that begin with the name of any argument as they are.
    """
    try:
        yield
    except RAISED as error:
        message = one_line(str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}")
        if isinstance(error, ValueError) and (message.startswith(f"{name}: ") or (arguments and NAMED.match(message))):
            raise ValueError(message) from error
        raise ValueError(f"{name}: {what}: {message}") from error


def one_line(text: str) -> str:
    """The text on one line of bounded length, without characters that steer a terminal."""
    words = " ".join(text[: 4 * LONGEST_MESSAGE].split())
    clean = "".join(character if character.isprintable() else ascii(character)[1:-1] for character in words)
    return clean if len(clean) <= LONGEST_MESSAGE else f"{clean[: LONGEST_MESSAGE - 1]}…"


class _Short(Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 80

    def repr_int(self, value: int, level: int) -> str:
        """Python refuses to write integers of thousands of digits."""
        return repr(value) if value.bit_length() < 200 else f"an integer of {value.bit_length()} bits"


_SHORT = _Short()


def shortened(value: Any) -> str:
    """`repr`, of which only the beginning is made where the value is large or nested deeply."""
    return one_line(_SHORT.repr(value))
