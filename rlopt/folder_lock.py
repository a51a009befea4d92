"""A folder that one process at a time writes its run to."""

from __future__ import annotations

from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Holds a folder until `close`, or until the process ends, however that happens.

    Args:
        folder: made if it does not exist.
        name: of the argument, for errors.

    Raises:
        ValueError: another holds it.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path, name: str = "output_dir"):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / ".lock").open("w")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"{name}: another process is training with {folder}") from None

    def close(self) -> None:
        """Let others have it. Safe to call twice."""
        self._file.close()
