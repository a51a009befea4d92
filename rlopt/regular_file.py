"""Files that somebody names, opened only if they are files: not folders, not pipes that never end, not devices."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(name: str, path: Path | str) -> BinaryIO:
    """A regular file, opened for reading; `name` is the argument's, for errors. Never waits, as opening a pipe would.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is something else than a regular file, or cannot be opened.
    """
    # Looked at after it was opened: between looking and opening, it could be exchanged.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{name}: there is no file {path}") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: {str(path)!r} cannot be opened: {error}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise ValueError(f"{name}: expected a file, got {path}, which is {KINDS.get(stat.S_IFMT(mode), 'none')}")
    return os.fdopen(descriptor, "rb")


def read_text(name: str, path: Path | str, most: int) -> str:
    """The text, UTF-8, in a regular file of at most `most` bytes.

    Raises:
        FileNotFoundError, ValueError: as `open_regular`; a larger file, or one that is not UTF-8.
    """
    with open_regular(name, path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"{name}: expected {path} to have at most {most:,} bytes, it has more")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: {path} is not text in UTF-8: {error}") from None
