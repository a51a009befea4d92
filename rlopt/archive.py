"""The form of a file: one zip of safetensors and JSON. Reading one can give an error, but can never run code.

    rlopt.json             algorithm, format and library versions, hyper-parameters, spaces, counters
    tensors.safetensors    weights, optimiser, normalisers, generators; names are "group/name"

The zip is stored, not deflated: what it unpacks to is no larger than the file. Nothing of the content is trusted: sizes are
checked before anything of that size is made.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

from rlopt.file_errors import one_line, shortened
from rlopt.regular_file import open_regular
from rlopt.stored_zip import DamagedZip, stored_zip

FORMAT = 1
DOCUMENT, TENSORS = "rlopt.json", "tensors.safetensors"
MOST_MEMBERS = 64  # so that another program's file is recognised; ours has two
# As values of Python, a document takes up to 26 times its size.
LARGEST_DOCUMENT = 2**24
DEEPEST_DOCUMENT = 64
LARGEST_INTEGER = 2**256
# Names, shapes and types of all tensors; 75,000 of them fit.
LARGEST_HEADER = 2**22
COUNTERS = 2**63
FIELDS = {
    "algorithm": str,
    "policy": str,
    "hyperparameters": dict,
    "observation_space": dict,
    "action_space": dict,
    "num_timesteps": int,
    "state": dict,
    "versions": dict,
}


@dataclass(frozen=True)
class Archive:
    """A file's content, checked for form."""

    data: dict[str, Any]
    tensors: dict[str, Tensor]

    def group(self, name: str) -> dict[str, Tensor]:
        """The tensors under "name/", without that prefix."""
        return {key[len(name) + 1 :]: value for key, value in self.tensors.items() if key.startswith(f"{name}/")}

    def parameters(self) -> dict[str, dict[str, Tensor]]:
        """As `Agent.get_parameters` gives them."""
        return {"policy": self.group("policy"), "policy.optimizer": self.group("state.moments")}

    def check_finite(self, groups: Sequence[str]) -> None:
        """Raises ValueError unless all numbers in these groups of tensors are real, of a usual type, and finite."""
        prefixes = tuple(f"{group}/" for group in groups)
        for name, tensor in self.tensors.items():
            if not name.startswith(prefixes):
                continue
            if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype.itemsize < 2):
                raise ValueError(f"path: {shortened(name)} in the file has numbers of type {tensor.dtype}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"path: {shortened(name)} in the file has numbers that are not finite")


def write(path: Any, data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A file that appears whole or not at all; `.zip` is appended to a name without a suffix.

    Args:
        path: a path or a binary file object, which is not closed.
        data: for `rlopt.json`.
        tensors: by "group/name"; none may share memory.

    Raises:
        ValueError: more data than `read` takes.
    """
    document = json.dumps(data, indent=1).encode()
    if len(document) > LARGEST_DOCUMENT:
        raise ValueError(f"data: expected at most {LARGEST_DOCUMENT:,} bytes as JSON, got {len(document):,}")
    blob = safetensors.torch.save({key: value.contiguous().cpu() for key, value in tensors.items()})
    if hasattr(path, "write"):
        _write_zip(path, document, blob)
        return
    target = Path(path)
    if not target.suffix:
        target = target.with_suffix(".zip")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside the target and renamed: a crash leaves the old file, never half of the new one.
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write_zip(file, document, blob)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's are for the owner alone
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Any, fields: Mapping[str, type] = FIELDS) -> Archive:
    """A file's content.

    Args:
        path: a path, with or without `.zip`, or a binary file object.
        fields: what `rlopt.json` must have, and of which type; an agent's by default.

    Raises:
        FileNotFoundError: no such file, with or without `.zip`.
        ValueError: not a file of rlopt, a damaged one, or one of a later format.
    """
    if hasattr(path, "read"):
        return _read_zip(path, str(getattr(path, "name", "the file")), fields)
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path: expected a path or a binary file, got {shortened(path)}")
    source = existing(path)
    with open_regular("path", source) as file:
        return _read_zip(file, str(source), fields)


def existing(path: str | os.PathLike[str]) -> Path:
    """The path, or, if there is no such file, the one with `.zip` appended.

    Raises:
        FileNotFoundError: neither is there.
    """
    source = Path(path)
    for candidate in (source, Path(f"{source}.zip")):
        if os.path.isfile(candidate):  # which a name that no file can have does not upset
            return candidate
    if not os.path.exists(source):
        raise FileNotFoundError(f"path: there is no file {source} (nor with .zip)")
    return source  # and no file: to open it says what it is


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _write_zip(file: BinaryIO, document: bytes, tensors: bytes) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(DOCUMENT, document)
        archive.writestr(TENSORS, tensors)


def _read_zip(file: BinaryIO, name: str, fields: Mapping[str, type]) -> Archive:
    try:
        with stored_zip(file, MOST_MEMBERS) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            foreign = DOCUMENT not in sizes
            if not foreign:
                _check_sizes(sizes)
                data = _document(archive.read(DOCUMENT))
                blob = archive.read(TENSORS)
    except (DamagedZip, RecursionError, MemoryError) as error:
        raise ValueError(f"path: {name} is not a whole file of rlopt: {error}") from error
    if foreign:
        hint = "; rlopt.import_sb3 reads Stable-Baselines3's files" if "_stable_baselines3_version" in sizes else ""
        raise ValueError(f"path: {name} is a zip, but not one of rlopt{hint}")
    _check_fields(data, name, fields)
    return Archive(data, _tensors(blob, name))


def _check_sizes(sizes: dict[str, int]) -> None:
    if sizes.keys() != {DOCUMENT, TENSORS}:
        raise DamagedZip(f"expected the members {DOCUMENT} and {TENSORS}, got {shortened(sorted(sizes))}")
    if sizes[DOCUMENT] > LARGEST_DOCUMENT:
        raise DamagedZip(f"its {DOCUMENT} has {sizes[DOCUMENT]:,} bytes, more than {LARGEST_DOCUMENT:,}")


def _document(text: bytes) -> Any:
    """JSON of bounded depth and integers: other code may then recurse into it, and compute with what it finds."""
    data = json.loads(text)
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(DEEPEST_DOCUMENT):
        entries = [entry for part in level for entry in (part.values() if isinstance(part, dict) else part)]
        integers = [entry for entry in entries if type(entry) is int]
        if integers and max(max(integers), -min(integers)) >= LARGEST_INTEGER:
            raise DamagedZip(f"its {DOCUMENT} has an integer that is too large")
        level = [entry for entry in entries if type(entry) in (dict, list)]
        if not level:
            return data
    raise DamagedZip(f"its {DOCUMENT} is nested more than {DEEPEST_DOCUMENT} deep")


def _check_fields(data: Any, name: str, fields: Mapping[str, type]) -> None:
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = shortened(data.get("format") if isinstance(data, dict) else None)
        raise ValueError(f"path: {name} has format {found}, this version reads {FORMAT}; a newer rlopt may have written it")
    if missing := fields.keys() - data.keys():
        raise ValueError(f"path: {name} lacks {', '.join(sorted(missing))}")
    for field, kind in fields.items():
        value = data[field]
        if not isinstance(value, kind) or (type(value) is bool) or (isinstance(value, int) and not 0 <= value < COUNTERS):
            raise ValueError(f"path: {name} has {shortened(value)} where {field} should be")


def _tensors(blob: bytes, name: str) -> dict[str, Tensor]:
    try:
        if int.from_bytes(blob[:8], "little") > LARGEST_HEADER:
            raise ValueError(f"their header has more than {LARGEST_HEADER:,} bytes")
        tensors = safetensors.torch.load(blob)
        # A tensor without entries may have any shape, and something may be made as large as one of its axes.
        if any(max(tensor.shape, default=0) > len(blob) for tensor in tensors.values()):
            raise ValueError("an axis is longer than the file")
    except (safetensors.SafetensorError, LookupError, ValueError, TypeError, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(f"path: {name} has damaged tensors: {one_line(str(error))}") from error
    return tensors
