"""Ctrl-C and SIGTERM as a request to stop: the iteration under way is ended, and a checkpoint written."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping_on_signals(request_stop: Callable[[], None], program: str | None = None) -> Iterator[list[int]]:
    """While this lasts, the first signal asks the training to stop; the second one ends the process as it does elsewhere.

    Args:
        request_stop: safe to call from a signal handler.
        program: says so on standard error; None says nothing.

    Yields:
        The signals that came.
    """
    came: list[int] = []
    previous: dict[int, Any] = {}

    def restore() -> None:
        for each, handler in previous.items():
            signal.signal(each, handler)

    def stop(number: int, frame: FrameType | None) -> None:
        came.append(number)
        request_stop()
        if program is not None:
            name = signal.Signals(number).name
            print(f"\n{program}: {name}: stopping after this iteration; again to stop at once", file=sys.stderr, flush=True)
        restore()

    for each in SIGNALS:
        previous[each] = signal.signal(each, stop)
    try:
        yield came
    finally:
        restore()
