"""A folder that one process at a time writes its run to."""

from __future__ import annotations

from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover - Windows has no such locks
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """Holds a folder until `release`, or until the process ends, however that happens.

    Raises:
        ValueError: another holds it.
        OSError: the folder cannot be made or written to.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self._file = (folder / ".lock").open("w")
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise ValueError(f"checkpoints: another process is training with {folder}") from None

    def release(self) -> None:
        """Safe to call twice."""
        self._file.close()
