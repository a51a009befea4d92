"""Zips whose members are stored as they are: nothing that is read of one is larger than the file itself."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import BinaryIO

# Python's zipfile reads a zip's directory as a whole and makes an object for each entry.
LARGEST_DIRECTORY = 2**21
END, LOCATOR, LARGE_END = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
LOCAL_HEADER = 30


class DamagedZip(ValueError):
    """Not a zip, a damaged one, or one that unpacks to something else than what it shows."""


@contextmanager
def stored_zip(file: BinaryIO, most_members: int) -> Iterator[zipfile.ZipFile]:
    """A zip, to read members of; closes it, and not the file.

    Its members are stored, neither compressed nor encrypted, have different names, and do not overlap.

    Raises:
        DamagedZip: for whatever is wrong, also with what is read of it within the `with`.
    """
    try:
        size = file.seek(0, os.SEEK_END)
        _check_directory_size(file, size)
        with zipfile.ZipFile(file) as archive:
            _check_members(archive, size, most_members)
            yield archive
    except DamagedZip:
        raise
    except (
        zipfile.BadZipFile,
        zlib.error,
        struct.error,
        LookupError,
        EOFError,
        OSError,
        ValueError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise DamagedZip(str(error)) from error


def _check_directory_size(file: BinaryIO, size: int) -> None:
    """Before zipfile reads the directory, which a damaged file may say is as large as the file."""
    length = min(size, END.size + LOCATOR.size + LARGE_END.size)
    file.seek(size - length)
    tail = file.read(length)
    if len(tail) < END.size or not tail[-END.size :].startswith(b"PK\5\6"):
        raise DamagedZip("it is not a zip, its end is missing, or something follows its end")
    *_, size_of_directory, _, length_of_comment = END.unpack(tail[-END.size :])
    if length_of_comment:
        raise DamagedZip("it has a comment")
    sizes = [size_of_directory]
    large = tail[: LARGE_END.size]
    if len(tail) == END.size + LOCATOR.size + LARGE_END.size and large.startswith(b"PK\6\6"):
        sizes = [LARGE_END.unpack(large)[8], *(known for known in sizes if known != 0xFFFFFFFF)]
    if max(sizes) > LARGEST_DIRECTORY:
        raise DamagedZip(f"its directory has {max(sizes):,} bytes, more than {LARGEST_DIRECTORY:,}")


def _check_members(archive: zipfile.ZipFile, size: int, most: int) -> None:
    infos = archive.infolist()
    if len(infos) > most:
        raise DamagedZip(f"it has {len(infos):,} members, more than {most:,}")
    if len({info.filename for info in infos}) < len(infos):
        raise DamagedZip("two members have one name")
    if any(info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size for info in infos):
        raise DamagedZip("it has compressed members, which should be stored as they are")
    if any(info.flag_bits & 0x1 for info in infos):
        raise DamagedZip("it has encrypted members")
    ends = sorted((info.header_offset, info.header_offset + LOCAL_HEADER + info.file_size) for info in infos)
    if any(end > following for (_, end), (following, _) in pairwise([*ends, (size, size)])) or (ends and ends[0][0] < 0):
        raise DamagedZip("its members overlap, or are larger than the file")
