"""The form of a file: one zip of safetensors and JSON. Reading one can give an error, but can never run code.

    rlopt.json             algorithm, format and library versions, hyper-parameters, spaces, counters
    tensors.safetensors    weights, optimiser, normalisers, generators; names are "group/name"

The zip is stored, not deflated: what it unpacks to is no larger than the file.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
from torch import Tensor

FORMAT = 1
DOCUMENT, TENSORS = "rlopt.json", "tensors.safetensors"
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


def write(path: Any, data: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    """A file that appears whole or not at all; `.zip` is appended to a name without a suffix.

    Args:
        path: a path or a binary file object, which is not closed.
        data: for `rlopt.json`.
        tensors: by "group/name"; none may share memory.
    """
    document = json.dumps(data, indent=1).encode()
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
        return _read_zip(path, getattr(path, "name", "the file"), fields)
    source = Path(path)
    if not source.is_file() and source.with_name(f"{source.name}.zip").is_file():
        source = source.with_name(f"{source.name}.zip")
    if not source.is_file():
        raise FileNotFoundError(f"path: there is no file {source} (nor with .zip)")
    with source.open("rb") as file:
        return _read_zip(file, str(source), fields)


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
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            if DOCUMENT not in members:
                hint = "; rlopt.import_sb3 reads Stable-Baselines3's files" if "_stable_baselines3_version" in members else ""
                raise ValueError(f"path: {name} is a zip, but not one of rlopt{hint}")
            if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
                raise ValueError(f"path: {name} has compressed members; rlopt stores them as they are")
            data = json.loads(archive.read(DOCUMENT))
            blob = archive.read(TENSORS)
    except (zipfile.BadZipFile, KeyError, EOFError, RuntimeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"path: {name} is not a whole file of rlopt: {error}") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        found = data.get("format") if isinstance(data, dict) else None
        raise ValueError(f"path: {name} has format {found!r}, this version reads {FORMAT}; a newer rlopt may have written it")
    if missing := fields.keys() - data.keys():
        raise ValueError(f"path: {name} lacks {', '.join(sorted(missing))}")
    for field, kind in fields.items():
        if not isinstance(data[field], kind):
            raise ValueError(f"path: {name} has {data[field]!r} where {field} should be")
    try:
        return Archive(data, safetensors.torch.load(blob))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"path: {name} has damaged tensors: {error}") from error
