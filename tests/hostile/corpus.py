"""Hostile and damaged files, the same ones every time: what a stranger, a bad disk or a bad mood may send.

A case writes one file (or folder) and says how it is opened and how that may end:

    refused     one clear error
    same        one clear error, or the very content of the original, where the damage touches nothing that is read
    opens       the file is unusual, and fine
"""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import socket
import struct
import warnings
import zipfile
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlopt.archive import DOCUMENT, TENSORS
from tests.hostile.originals import CONFIG, EPISODES, file_of, members, parts, zip_of

MARKER = "marker"


@dataclass(frozen=True)
class Case:
    """One file and what may come of it.

    Attributes:
        family, name: what is wrong with it.
        reader: how it is opened, a name in `tests.hostile.reader.READERS`.
        write: puts it into an empty folder and returns its path; `Context` says what there is to damage.
        expected: "refused", "same" or "opens".
    """

    family: str
    name: str
    reader: str
    write: Callable[[Context, Path], Path]
    expected: str = "refused"


@dataclass(frozen=True)
class Context:
    """Whole files by name, and the file that any code of a case would make."""

    originals: dict[str, Path]
    marker: Path


class Bomb:
    """Makes the marker when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def corpus() -> list[Case]:
    """All cases."""
    families = (
        _truncated,
        _flipped,
        _overwritten,
        _noise,
        _no_files,
        _zips,
        _tensors,
        _documents,
        _hyperparameters,
        _policies,
        _spaces,
        _states,
        _sb3,
        _sb3_weights,
        _yaml,
        _run_folders,
        _pareto,
        _language_models,
    )
    cases = [case for family in families for case in family()]
    names = [(case.family, case.name) for case in cases]
    assert len(set(names)) == len(names), [name for name in names if names.count(name) > 1]
    return cases


def _written(content: bytes | str, name: str = "file.zip") -> Callable[[Context, Path], Path]:
    def write(_: Context, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path

    return write


def _changed(original: str, change: Callable[[bytes], bytes], name: str = "file.zip") -> Callable[[Context, Path], Path]:
    def write(context: Context, folder: Path) -> Path:
        path = folder / name
        path.write_bytes(change(context.originals[original].read_bytes()))
        return path

    return write


# ---------------------------------------------------------------------- damage of whole files

SOURCES = {"agent": "load", "memory": "load", "episodic": "load", "sb3": "import_sb3", "pareto": "pareto"}


def _truncated() -> Iterator[Case]:
    for source, reader in SOURCES.items():
        lengths = [0, 1, 21, 22, 23, 30, 100, *(f"{share:.3f}" for share in np.linspace(0.02, 0.999, 9))]
        for length in lengths:

            def cut(content: bytes, length: Any = length) -> bytes:
                return content[: length if isinstance(length, int) else int(float(length) * len(content))]

            yield Case("truncated", f"{source} after {length}", reader, _changed(source, cut))
        for missing in (1, 2, 22):
            yield Case(
                "truncated", f"{source} without the last {missing}", reader, _changed(source, lambda c, n=missing: c[:-n])
            )


def _flipped() -> Iterator[Case]:
    generator = np.random.default_rng(1)
    for source, reader in SOURCES.items():
        for number in range(28):
            # half of them in the zip's own structures, where damage is the least obvious
            place, bit = float(generator.random()), int(generator.integers(8))

            def flip(content: bytes, place: float = place, bit: int = bit, number: int = number) -> bytes:
                directory = max(len(content) - 260, 0)
                begin, end = [(0, len(content)), (0, 64), (directory, len(content))][number % 3]
                index = begin + int(place * (end - begin))
                changed = bytearray(content)
                changed[min(index, len(content) - 1)] ^= 1 << bit
                return bytes(changed)

            yield Case("bit flip", f"{source} {number}", reader, _changed(source, flip), "same")


def _overwritten() -> Iterator[Case]:
    generator = np.random.default_rng(2)
    for source, reader in SOURCES.items():
        for number in range(6):
            start, length, filling = float(generator.random()), int(generator.integers(4, 400)), generator.bytes(400)

            def overwrite(content: bytes, start: float = start, length: int = length, filling: bytes = filling) -> bytes:
                begin = int(start * len(content))
                return (content[:begin] + filling[:length] + content[begin + length :])[: len(content)]

            yield Case("overwritten", f"{source} {number}", reader, _changed(source, overwrite), "same")
        yield Case("overwritten", f"{source} zeros", reader, _changed(source, lambda c: bytes(len(c))))
        yield Case("overwritten", f"{source} twice", reader, _changed(source, lambda c: c + c), "same")
        yield Case("overwritten", f"{source} after junk", reader, _changed(source, lambda c: b"junk" * 10 + c), "same")
        yield Case("overwritten", f"{source} before junk", reader, _changed(source, lambda c: c + b"junk"))


def _noise() -> Iterator[Case]:
    generator = np.random.default_rng(3)
    for reader in ("load", "import_sb3", "pareto", "set_parameters", "evaluate_file"):
        for size in (0, 1, 22, 1000, 100_000):
            yield Case("noise", f"{reader} {size} bytes", reader, _written(generator.bytes(size)))
        yield Case("noise", f"{reader} text", reader, _written("I am an agent. Trust me.\n" * 100))
        yield Case("noise", f"{reader} header", reader, _written(b"PK\3\4" + generator.bytes(500) + b"PK\5\6" + bytes(18)))
    for reader in ("config", "plot_known"):
        for size in (0, 100, 10_000):
            yield Case("noise", f"{reader} {size} bytes", reader, _written(generator.bytes(size), "file.txt"))
    yield Case("noise", "config of 100 MB", "config", _written(b"a: 1\n" * 20_000_000, "config.yaml"))
    yield Case("noise", "front of 100 MB", "plot_known", _written(b"1,1\n" * 25_000_000, "front.csv"))


# ---------------------------------------------------------------------- what is no file

FILE_READERS = ("load", "import_sb3", "pareto", "set_parameters", "config", "evaluate_file", "plot_known")


def _no_files() -> Iterator[Case]:
    def folder_(_: Context, folder: Path) -> Path:
        (folder / "a.zip").mkdir()
        return folder / "a.zip"

    def pipe(_: Context, folder: Path) -> Path:
        os.mkfifo(folder / "pipe")
        return folder / "pipe"

    def loop(_: Context, folder: Path) -> Path:
        (folder / "a").symlink_to(folder / "b")
        (folder / "b").symlink_to(folder / "a")
        return folder / "a"

    def endless(_: Context, folder: Path) -> Path:
        (folder / "zero").symlink_to("/dev/zero")
        return folder / "zero"

    def dangling(_: Context, folder: Path) -> Path:
        (folder / "a").symlink_to(folder / "nothing")
        return folder / "a"

    def unix_socket(_: Context, folder: Path) -> Path:
        where = os.getcwd()
        os.chdir(folder)  # a socket's name may be 107 bytes long
        try:
            with socket.socket(socket.AF_UNIX) as server:
                server.bind("s")
        finally:
            os.chdir(where)
        return folder / "s"

    kinds = {
        "folder": folder_,
        "pipe": pipe,
        "loop of links": loop,
        "endless device": endless,
        "dangling link": dangling,
        "socket": unix_socket,
        "missing": lambda _, folder: folder / "nothing",
        "inside a file": lambda context, _: context.originals["agent"] / "x",
        "NUL in its name": lambda _, folder: Path(f"{folder}/a\0b"),
        "a name too long": lambda _, folder: folder / ("x" * 5000),
        "root": lambda *_: Path("/"),
    }
    for reader in FILE_READERS:
        for kind, write in kinds.items():
            if reader == "evaluate_file" and kind in ("folder", "root"):
                continue  # which may be a run
            yield Case("no file", f"{kind} for {reader}", reader, write)


# ---------------------------------------------------------------------- zips


def _zips() -> Iterator[Case]:
    def whole(context: Context) -> dict[str, bytes]:
        return members(context.originals["agent"])

    def made(change: Callable[[dict[str, bytes]], bytes]) -> Callable[[Context, Path], Path]:
        def write(context: Context, folder: Path) -> Path:
            (folder / "file.zip").write_bytes(change(whole(context)))
            return folder / "file.zip"

        return write

    def duplicated(content: dict[str, bytes], name: str) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for member, data in [*content.items(), (name, content[name])]:
                archive.writestr(member, data)
        return buffer.getvalue()

    def patched(signature: bytes, offset: int, value: bytes, nth: int = 0) -> Callable[[dict[str, bytes]], bytes]:
        """Bytes at an offset from the n-th header with a signature exchanged."""

        def change(content: dict[str, bytes]) -> bytes:
            data = bytearray(zip_of(content))
            place = -1
            for _ in range(nth + 1):
                place = data.index(signature, place + 1)
            data[place + offset : place + offset + len(value)] = value
            return bytes(data)

        return change

    def bomb(size: int) -> bytes:
        return zip_of({DOCUMENT: bytes(size), TENSORS: bytes(size)}, zipfile.ZIP_DEFLATED)

    def nested(depth: int) -> bytes:
        data = bytes(10_000_000)
        for _ in range(depth):
            data = zip_of({DOCUMENT: data, TENSORS: data}, zipfile.ZIP_DEFLATED)
        return data

    def huge_directory(content: dict[str, bytes]) -> bytes:
        """A directory of 60 MB: millions of entries with a name of a byte."""
        entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
        data = entry * 1_250_000
        return data + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, len(data), 0, 0)

    def zip64(sizes: tuple[int, int, int]) -> Callable[[dict[str, bytes]], bytes]:
        """An end of the large kind that lies about entries, size and place of the directory."""

        def change(content: dict[str, bytes]) -> bytes:
            data = zip_of(content)
            end = data[-22:]
            entries, size, offset = sizes
            large = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, entries, entries, size, offset)
            locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(data) - 22, 1)
            return data[:-22] + large + locator + end[:8] + b"\xff" * 12 + end[20:]

        return change

    many = {f"{number}": b"" for number in range(100_000)}
    cases: dict[str, Callable[[dict[str, bytes]], bytes]] = {
        "deflated": lambda c: zip_of(c, zipfile.ZIP_DEFLATED),
        "bzip2": lambda c: zip_of(c, zipfile.ZIP_BZIP2),
        "lzma": lambda c: zip_of(c, zipfile.ZIP_LZMA),
        "bomb of 300 MB": lambda c: bomb(300_000_000),
        "nested bomb": lambda c: nested(3),
        "100,000 members": lambda c: zip_of(c | many),
        "100,000 foreign members": lambda c: zip_of(many),
        "a directory of 60 MB": huge_directory,
        "no members": lambda c: zip_of({}),
        "one member": lambda c: zip_of({DOCUMENT: c[DOCUMENT]}),
        "other member": lambda c: zip_of({TENSORS: c[TENSORS]}),
        "a third member": lambda c: zip_of(c | {"README": b"hello"}),
        "a pickle beside": lambda c: zip_of(c | {"data.pkl": b"cos\nsystem\n(S'true'\ntR."}),
        "document twice": lambda c: duplicated(c, DOCUMENT),
        "tensors twice": lambda c: duplicated(c, TENSORS),
        "document of 30 MB": lambda c: zip_of({DOCUMENT: b" " * 30_000_000 + c[DOCUMENT], TENSORS: c[TENSORS]}),
        "document encrypted": patched(b"PK\1\2", 8, b"\1\0"),
        "header encrypted": patched(b"PK\3\4", 6, b"\1\0"),
        "strong encryption": patched(b"PK\1\2", 8, b"\x41\0"),
        "wrong CRC": patched(b"PK\1\2", 16, b"\1\2\3\4"),
        "wrong CRC of tensors": patched(b"PK\1\2", 16, b"\1\2\3\4", 1),
        "wrong local name": patched(b"PK\3\4", 30, b"r1opt"),
        "wrong local length": patched(b"PK\3\4", 26, b"\xff\xff"),
        "wrong local extra": patched(b"PK\3\4", 28, b"\xff\xff"),
        "declared 4 GB": patched(b"PK\1\2", 24, b"\xfe\xff\xff\xff"),
        "stored as 4 GB": patched(b"PK\1\2", 20, b"\xfe\xff\xff\xff\xfe\xff\xff\xff"),
        "tensors declared 4 GB": patched(b"PK\1\2", 20, b"\xfe\xff\xff\xff\xfe\xff\xff\xff", 1),
        "tensors declared larger": patched(b"PK\1\2", 20, b"\xff\xff\0\0\xff\xff\0\0", 1),
        "declared empty": patched(b"PK\1\2", 20, bytes(8)),
        "offset beyond": patched(b"PK\1\2", 42, b"\xf0\xff\xff\x7f"),
        "both at one place": patched(b"PK\1\2", 42, bytes(4), 1),
        "directory beyond": patched(b"PK\5\6", 16, b"\xf0\xff\xff\x7f"),
        "directory of 2 GB": patched(b"PK\5\6", 12, b"\xf0\xff\xff\x7f"),
        "no directory": patched(b"PK\5\6", 12, bytes(4)),
        "60,000 entries": patched(b"PK\5\6", 8, b"\x60\xea\x60\xea"),
        "on another disk": patched(b"PK\5\6", 4, b"\1\0\1\0"),
        "a comment that is longer": patched(b"PK\5\6", 20, b"\xff\xff"),
        "a comment": lambda c: zip_of(c)[:-2] + b"\5\0hello",
        "a comment with an end": lambda c: zip_of(c)[:-2] + b"\x16\0" + zip_of({}),
        "two ends": lambda c: zip_of(c) + zip_of({}),
        "unknown method": patched(b"PK\1\2", 10, b"\x63\0"),
        "version 99": patched(b"PK\1\2", 6, b"\xff\0"),
        "large end of 2^60": zip64((2, 2**60, 0)),
        "large end of 2^60 entries": zip64((2**60, 100, 0)),
        "large end far away": zip64((2, 100, 2**62)),
        "large end of zeros": zip64((0, 0, 0)),
        "parent folder": lambda c: zip_of({f"../../{name}": data for name, data in c.items()}),
        "root folder": lambda c: zip_of({f"/tmp/{name}": data for name, data in c.items()}),
        "traversal beside": lambda c: zip_of(c | {"../../../tmp/escaped": b"x"}),
        "NUL in names": lambda c: zip_of(c).replace(DOCUMENT.encode(), b"rlopt\0json"),
        "upper case": lambda c: zip_of({name.upper(): data for name, data in c.items()}),
        "a name of 60,000 bytes": lambda c: zip_of(c | {"x" * 60_000: b""}),
        "a name that steers the terminal": lambda c: zip_of(c | {"\x1b[2J\n\n\x07": b""}),
        "names as folders": lambda c: zip_of({f"{name}/": b"" for name in c}),
    }
    harmless = {"60,000 entries", "version 99", "on another disk", "large end of zeros", "header encrypted"}
    for name, change in cases.items():
        yield Case("zip", name, "load", made(change), "same" if name in harmless else "refused")
    for name in ("bomb of 300 MB", "100,000 members", "document of 30 MB", "NUL in names", "a name that steers the terminal"):
        yield Case("zip", f"{name}, on the command line", "evaluate_file", made(cases[name]))


# ---------------------------------------------------------------------- safetensors


def _header(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return struct.pack("<Q", size % 2**64) + text + body


def _tensors() -> Iterator[Case]:
    def entry(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
        return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}

    many = b"{" + b",".join(b'"a%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(300_000)) + b"}"
    blobs: dict[str, bytes] = {
        "nothing": b"",
        "seven bytes": bytes(7),
        "a length and no header": struct.pack("<Q", 100),
        "a header of 2^63": _header({}, length=2**63),
        "a negative header": _header({}, length=-1),
        "a header of 90 MB": _header(b"{}" + b" " * 90_000_000),
        "300,000 tensors": _header(many),
        "no JSON": _header(b"\xff" * 50),
        "a list": _header([]),
        "deep": _header(b"[" * 100_000 + b"]" * 100_000),
        "deep objects": _header(b'{"a":' * 50_000 + b"1" + b"}" * 50_000),
        "beyond the end": _header({"a": entry(offsets=(0, 400), shape=(100,))}, bytes(4)),
        "end before begin": _header({"a": entry(offsets=(4, 0))}, bytes(4)),
        "negative offsets": _header({"a": entry(offsets=(-4, 0))}, bytes(4)),
        "offsets of 2^64": _header({"a": entry(offsets=(2**64, 2**64 + 4))}, bytes(4)),
        "overlapping": _header({"a": entry(), "b": entry()}, bytes(4)),
        "a hole": _header({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)),
        "bytes left over": _header({"a": entry()}, bytes(100)),
        "unknown dtype": _header({"a": entry("F33")}, bytes(4)),
        "objects": _header({"a": entry("O")}, bytes(4)),
        "float 8": _header({"a": entry("F8_E4M3", (4,))}, bytes(4)),
        "complex": _header({"policy/a": entry("C64", (1,), (0, 8))}, bytes(8)),
        "negative shape": _header({"a": entry(shape=(-1,))}, bytes(4)),
        "two negatives": _header({"a": entry(shape=(-1, -1))}, bytes(4)),
        "a shape that overflows": _header({"a": entry(shape=(2**32, 2**32, 2**32))}, bytes(4)),
        "a shape that overflows to 1": _header({"a": entry(shape=(2**33, 2**31 + 1))}, bytes(4)),
        "a shape of zeros and 2^62": _header({"a": entry(shape=(0, 2**62), offsets=(0, 0))}),
        "a shape of 10^5 axes": _header({"a": entry(shape=[1] * 100_000)}, bytes(4)),
        "a shape of text": _header({"a": entry(shape="12")}, bytes(4)),
        "a shape of floats": _header({"a": entry(shape=(1.5,))}, bytes(4)),
        "a shape too small": _header({"a": entry(shape=(2,), offsets=(0, 4))}, bytes(4)),
        "no dtype": _header({"a": {"shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "an entry that is none": _header({"a": 5}),
        "one offset": _header({"a": entry(offsets=(0,))}, bytes(4)),
        "a name twice": _header(
            b"{" + b",".join([b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'] * 2) + b"}", bytes(4)
        ),
        "metadata of numbers": _header({"__metadata__": {"a": 1}}),
        "a pickle": pickle.dumps({"a": 1}),
    }
    for name, blob in blobs.items():

        def write(context: Context, folder: Path, blob: bytes = blob) -> Path:
            (folder / "file.zip").write_bytes(file_of(members(context.originals["agent"])[DOCUMENT], blob))
            return folder / "file.zip"

        yield Case("safetensors", name, "load", write)

    def exchanged(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Context, Path], Path]:
        def write(context: Context, folder: Path) -> Path:
            document, tensors = parts(context.originals["agent"])
            key = next((key for key in tensors if key == name), name)
            changed = change(tensors.pop(key, torch.zeros(1)))
            if changed is not None:
                tensors[key] = changed
            (folder / "file.zip").write_bytes(file_of(document, tensors))
            return folder / "file.zip"

        return write

    weights = "policy/action_net.weight"
    roles = {
        weights: "weights",
        "state.moments/exp_avg": "mean gradient",
        "state.moments/exp_avg_sq": "mean square",
        "observation_normalizer/:mean": "mean observation",
        "observation_normalizer/:var": "variance",
        "reward_normalizer/var": "variance of rewards",
        "reward_normalizer/returns": "returns",
    }
    for key, role in roles.items():
        yield Case("tensors", f"{role}: NaN", "load", exchanged(key, lambda t: torch.full_like(t, float("nan"))))
        yield Case("tensors", f"{role}: one inf", "load", exchanged(key, _one_infinite))
        yield Case("tensors", f"{role}: whole numbers", "load", exchanged(key, lambda t: t.long()))
        yield Case("tensors", f"{role}: complex", "load", exchanged(key, lambda t: torch.complex(t.float(), t.float())))
        yield Case("tensors", f"{role}: missing", "load", exchanged(key, lambda t: None))
        yield Case("tensors", f"{role}: another axis", "load", exchanged(key, lambda t: torch.stack([t, t], -1)))
        yield Case("tensors", f"{role}: empty", "load", exchanged(key, lambda t: torch.zeros((0, *t.shape), dtype=t.dtype)))
    negative = ("observation_normalizer/:var", "reward_normalizer/var", "observation_normalizer/:count", "state.moments/step")
    for key in negative:
        yield Case("tensors", f"negative {key}", "load", exchanged(key, lambda t: -torch.ones_like(t)))
    none = exchanged("reward_normalizer/returns", lambda t: torch.zeros(4000, 0))
    yield Case("tensors", "returns of 4000 and none", "load", none)
    yield Case("tensors", "an extra weight", "load", exchanged("policy/extra", lambda t: torch.zeros(3)))
    unknown = exchanged("generators/other", lambda t: torch.zeros(5056, dtype=torch.uint8))
    yield Case("tensors", "an unknown generator", "load", unknown)
    yield Case("tensors", "a group that nobody knows", "load", exchanged("unknown/x", lambda t: t), "opens")
    yield Case("tensors", "set_parameters: NaN", "set_parameters", exchanged(weights, lambda t: t * float("nan")))
    yield Case("tensors", "set_parameters: another shape", "set_parameters", exchanged(weights, lambda t: torch.zeros(3, 3)))
    yield Case("tensors", "set_parameters: missing", "set_parameters", exchanged(weights, lambda t: None))
    yield Case("tensors", "set_parameters: moments", "set_parameters", exchanged("state.moments/exp_avg", lambda t: t[:3]))
    yield Case("tensors", "set_parameters: step", "set_parameters", exchanged("state.moments/step", lambda t: -t - 5))
    generators = {
        "short": lambda t: t[:100],
        "floats": lambda t: t.float(),
        "zeros": torch.zeros_like,
        "ones": lambda t: torch.full_like(t, 255),
        "beyond its end": _beyond,
    }
    for name, change in generators.items():
        yield Case("tensors", f"generator: {name}", "load", exchanged("generators/actions", change))


def _one_infinite(tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    changed.view(-1)[0] = float("inf")
    return changed


def _beyond(state: torch.Tensor) -> torch.Tensor:
    """A generator that says it has 624 numbers left after its 600th."""
    content = bytearray(state.tolist())
    struct.pack_into("<iiQ", content, 8, 624, 1, 600)
    return torch.tensor(list(content), dtype=torch.uint8)


# ---------------------------------------------------------------------- rlopt.json


def _with_document(change: Callable[[dict[str, Any]], Any], original: str = "agent") -> Callable[[Context, Path], Path]:
    """The file with another document: what `change` returns, or the one that it changed."""

    def write(context: Context, folder: Path) -> Path:
        document, tensors = parts(context.originals[original])
        changed = change(document)
        (folder / "file.zip").write_bytes(file_of(document if changed is None else changed, tensors))
        return folder / "file.zip"

    return write


WRONG: dict[str, Any] = {"null": None, "text": "x" * 50, "list": [1], "mapping": {"a": 1}, "float": 1.5, "true": True, "-1": -1}


def _documents() -> Iterator[Case]:
    texts: dict[str, str | bytes] = {
        "empty": "",
        "null": "null",
        "number": "1",
        "text": '"x"',
        "list": "[]",
        "empty object": "{}",
        "half an object": '{"format": 1',
        "two objects": '{"format": 1}{"format": 1}',
        "Latin-1": b'{"a": "\xff"}',
        "UTF-16": '{"format": 1}'.encode("utf-16"),
        "NUL": b"\0" * 1000,
        "lists 100,000 deep": "[" * 100_000 + "]" * 100_000,
        "objects 100,000 deep": '{"a":' * 100_000 + "1" + "}" * 100_000,
        "lists 900 deep": "[" * 900 + "]" * 900,
        "an integer of 10^6 digits": '{"format": ' + "1" * 10**6 + "}",
        "a float of 10^6 digits": '{"format": 1.' + "1" * 10**6 + "}",
        "10^6 keys": "{" + ",".join(f'"{n}": 1' for n in range(10**6)) + "}",
        "5 million lists": "[" + "[]," * 5_000_000 + "[]]",
        "a text of 15 MB": '{"format": "' + "x" * 15_000_000 + '"}',
        "a comment": '{"format": 1} // hello',
        "YAML": "format: 1",
        "a pickle": pickle.dumps({"format": 1}),
    }
    for name, text in texts.items():
        yield Case("document", name, "load", _with_document(lambda _, text=text: text))
    fields = ("format", "algorithm", "policy", "hyperparameters", "observation_space", "action_space", "num_timesteps", "state")
    for field in fields:
        without = _with_document(lambda d, f=field: {k: v for k, v in d.items() if k != f})
        yield Case("document", f"without {field}", "load", without)
        for kind, value in WRONG.items():
            if (field, kind) in {("format", "true")}:
                continue
            yield Case("document", f"{field}: {kind}", "load", _with_document(lambda d, f=field, v=value: d | {f: v}))
    values: dict[str, tuple[str, Any]] = {
        "algorithm os.system": ("algorithm", "os.system"),
        "algorithm with a newline": ("algorithm", "PPO\n\x1b[31m"),
        "algorithm of 10 MB": ("algorithm", "x" * 10**7),
        "policy os.system": ("policy", "os.system"),
        "policy torch.nn.Linear": ("policy", "torch.nn.Linear"),
        "policy __import__": ("policy", "__import__('os').mkdir('marker')"),
        "policy of 10 MB": ("policy", "x." * 5 * 10**6),
        "policy CnnPolicy": ("policy", "CnnPolicy"),
        "policy MultiInputPolicy": ("policy", "MultiInputPolicy"),
        "10^400 steps": ("num_timesteps", 10**400),
        "2^63 steps": ("num_timesteps", 2**63),
        "NaN steps": ("num_timesteps", float("nan")),
        "format 1e400": ("format", float("inf")),
    }
    for name, (field, value) in values.items():
        yield Case("document", name, "load", _with_document(lambda d, f=field, v=value: d | {f: v}))
    for name in ("algorithm os.system", "algorithm with a newline", "policy os.system", "2^63 steps"):
        field, value = values[name]
        write = _with_document(lambda d, f=field, v=value: d | {f: v})
        yield Case("document", f"{name}, on the command line", "evaluate_file", write)


def _states() -> Iterator[Case]:
    for kind, value in {**WRONG, "2.0": 2.0, "10^80": 10**80, "missing": ...}.items():

        def change(document: dict[str, Any], value: Any = value) -> None:
            document["state"]["num_updates"] = value
            if value is ...:
                del document["state"]["num_updates"]

        yield Case("state", f"num_updates: {kind}", "load", _with_document(change))
        if kind not in ("mapping", "null"):
            batches = value if value is not ... else {"episodes": -1}
            yield Case("state", f"batches: {kind}", "load", _with_document(lambda d, v=batches: d | {"batches": v}))
    for name, value in {"text": {"a": "b"}, "floats": {"a": 1.5}, "true": {"a": True}, "deep": {"a": {"b": 1}}}.items():
        yield Case("state", f"batches of {name}", "load", _with_document(lambda d, v=value: d | {"batches": v}))
    counters: dict[str, Any] = {
        "text": "x",
        "list": [1],
        "number": 5,
        "empty": {},
        "texts": {"run_seed": "x", "episodes": "y"},
        "negative": {"run_seed": -1, "episodes": [-1]},
        "10^30 episodes": {"run_seed": 1, "episodes": [10**30]},
        "a million environments": {"run_seed": 1, "episodes": ["x"] * 10**6},
        "nested": {"run_seed": 1, "episodes": [[1], [2]]},
    }
    for name, value in counters.items():
        write = _with_document(lambda d, v=value: d | {"environments": v})
        yield Case("state", f"environments: {name}", "load_with_env", write)
    for name, value in {"text": "x", "negative": -5, "10^80": 10**80, "true": True}.items():
        write = _with_document(lambda d, v=value: d | {"entropy": v})
        yield Case("state", f"entropy: {name}", "load", write, "refused" if name == "10^80" else "opens")


# ---------------------------------------------------------------------- hyper-parameters


def _hyperparameter(name: str, value: Any, original: str = "agent") -> Callable[[Context, Path], Path]:
    def change(document: dict[str, Any]) -> None:
        document["hyperparameters"][name] = value

    return _with_document(change, original)


def _hyperparameters() -> Iterator[Case]:
    whole, real = ("n_steps", "batch_size", "n_epochs", "n_envs"), ("gamma", "gae_lambda", "ent_coef", "clip_observations")
    numbers = (*whole, *real, "max_grad_norm")
    wrong: dict[str, Any] = {"text": "x", "list": [1, 2], "mapping": {"a": 1}, "null": None}
    wrong |= {"NaN": float("nan"), "10^12": 10**12}
    for name in numbers:
        for kind, value in wrong.items():
            yield Case("hyper-parameters", f"{name}: {kind}", "load", _hyperparameter(name, value))
    for name in ("n_steps", "batch_size", "n_epochs", "n_envs", "gamma", "stats_window_size", "num_objectives"):
        yield Case("hyper-parameters", f"{name}: -5", "load", _hyperparameter(name, -5))
    others: dict[str, tuple[str, Any]] = {
        "n_envs 10^9": ("n_envs", 10**9),
        "num_objectives 10^9": ("num_objectives", 10**9),
        "num_objectives 2^31": ("num_objectives", 2**31),
        "stats_window_size 10^30": ("stats_window_size", 10**30),
        "seed -1": ("seed", -1),
        "seed 2^40": ("seed", 2**40),
        "seed text": ("seed", "x"),
        "seed 10^70": ("seed", 10**70),
        "device": ("device", ["cuda"] * 10),
        "env": ("env", "os:system-v0"),
        "unknown": ("import", "os"),
        "self": ("self", 1),
        "policy a list": ("policy", ["MlpPolicy"]),
        "policy a class": ("policy", {"class": "x", "known": "torch.nn.Transformer"}),
        "use_sde": ("use_sde", True),
        "rollout_buffer_class": ("rollout_buffer_class", {"class": "os.system", "known": "os.system"}),
        "rollout_buffer_kwargs": ("rollout_buffer_kwargs", {"a": 1}),
        "verbose text": ("verbose", "x"),
        "backend": ("backend", "os.system"),
        "preset": ("preset", "os.system"),
        "preset a list": ("preset", [[[]]]),
        "memory": ("memory", "os.system"),
        "compile": ("compile", "__import__('os')"),
        "value_clip": ("value_clip", "x"),
        "schedule_from": ("schedule_from", 5),
        "normalize_observations text": ("normalize_observations", "yes"),
        "tensorboard_log list": ("tensorboard_log", [1]),
        "target_kl text": ("target_kl", "x"),
        "a class": ("n_steps", {"class": "os.system", "known": "os.system"}),
        "a class of 10 MB": ("n_steps", {"class": "x" * 10**7}),
        "a dotted class": ("n_steps", {"class": "x", "known": "torch.nn.modules.linear.Linear"}),
        "a method": ("n_steps", {"class": "x", "known": "torch.nn.Module.forward"}),
        "a module": ("n_steps", {"class": "x", "known": "torch.nn.functional"}),
        "a class that is none": ("n_steps", {"class": ["x"], "known": {"a": 1}}),
        "builtins": ("n_steps", {"class": "x", "known": "builtins.exec"}),
        "5 million numbers": ("n_steps", [0] * 5_000_000),
        "60 deep": ("n_steps", json.loads("[" * 50 + "]" * 50)),
    }
    for name, (key, value) in others.items():
        expected = "opens" if name == "device" else "refused"  # which is this machine's, whatever the file says
        yield Case("hyper-parameters", name, "load", _hyperparameter(key, value), expected)
    schedules: dict[str, Any] = {
        "unknown": {"schedule": "lambda"},
        "a list": {"schedule": ["linear"]},
        "nothing": {"schedule": None},
        "constant of nothing": {"schedule": "constant"},
        "constant of text": {"schedule": "constant", "value": "1e-3"},
        "constant of NaN": {"schedule": "constant", "value": float("nan")},
        "constant of infinity": {"schedule": "constant", "value": float("inf")},
        "constant of 10^400": {"schedule": "constant", "value": 10**400},
        "constant of a list": {"schedule": "constant", "value": [1]},
        "linear with a fraction of 0": {"schedule": "linear", "start": 1, "end": 0, "end_fraction": 0},
        "linear with a fraction of 10^70": {"schedule": "linear", "start": 1, "end": 0, "end_fraction": 10**70},
        "linear of texts": {"schedule": "linear", "start": "a", "end": "b", "end_fraction": "c"},
        "power for a learning rate": {"schedule": "power", "value": 1, "exponent": None},
    }
    for name, value in schedules.items():
        yield Case("hyper-parameters", f"schedule: {name}", "load", _hyperparameter("learning_rate", value))
        yield Case("hyper-parameters", f"schedule of clipping: {name}", "load", _hyperparameter("clip_range", value))
    utilities: dict[str, Any] = {
        "unknown": {"utility": "os.system"},
        "unhashable": {"utility": ["linear"]},
        "linear of nothing": {"utility": "linear"},
        "linear of other things": {"utility": "linear", "rewards": "x", "more": 1},
        "entropy with NaN": {"utility": "entropy", "smoothing": float("nan")},
        "entropy with a list": {"utility": "entropy", "smoothing": [1]},
        "entropy with 10^400": {"utility": "entropy", "smoothing": 10**400},
        "unknown vector": {"vector_utility": "os.system"},
        "unhashable vector": {"vector_utility": {}},
        "sum of texts": {"vector_utility": "sum", "weights": ["a"]},
        "sum of NaN": {"vector_utility": "sum", "weights": [float("nan"), 1]},
        "sum of 10^400": {"vector_utility": "sum", "weights": [10**400, 1]},
        "chebyshev of nothing": {"vector_utility": "chebyshev"},
        "chebyshev of lists": {"vector_utility": "chebyshev", "weights": [[1], [2]], "ideal": [[1]]},
        "low above high": {"vector_utility": "identity", "low": [2], "high": [1]},
        "a million weights": {"vector_utility": "chebyshev", "weights": [1] * 10**6, "ideal": [1]},
    }
    for name, value in utilities.items():
        yield Case("hyper-parameters", f"utility: {name}", "load", _hyperparameter("utility", value))
    episodic: dict[str, tuple[str, Any]] = {
        "num_episodes 10^12": ("num_episodes", 10**12),
        "num_episodes 2^30": ("num_episodes", 2**30),
        "num_episodes text": ("num_episodes", "x"),
        "step_size text": ("step_size", "power:1:1/0"),
        "step_size of fractions": ("step_size", "power:" + "1" * 5000 + ":1"),
        "step_size function": ("step_size", "lambda t: t"),
        "momentum NaN": ("momentum", {"schedule": "power", "value": float("nan"), "exponent": 1}),
        "horizon -1": ("horizon", -1),
        "baseline": ("baseline", "os.system"),
        "weighting": ("weighting", ["x"]),
    }
    for name, (key, value) in episodic.items():
        yield Case("hyper-parameters", f"episodes: {name}", "load", _hyperparameter(key, value, "episodic"))


def _policies() -> Iterator[Case]:
    known = {"class": "x", "known": "torch.nn.ReLU"}
    kwargs: dict[str, Any] = {
        "text": "x",
        "list": [1, 2],
        "unknown keyword": {"import": "os"},
        "net_arch 10^9": {"net_arch": [10**9]},
        "net_arch 10^9 twice": {"net_arch": [10**9, 10**9]},
        "net_arch 10^18": {"net_arch": [10**18, 10**18]},
        "net_arch tower": {"net_arch": {"pi": [8], "vf": [10**9]}},
        "net_arch negative": {"net_arch": [-8]},
        "net_arch zero": {"net_arch": [0]},
        "net_arch texts": {"net_arch": ["8"]},
        "net_arch text": {"net_arch": "8"},
        "net_arch floats": {"net_arch": [8.5]},
        "net_arch true": {"net_arch": True},
        "net_arch nested": {"net_arch": [[8]]},
        "net_arch of a million layers": {"net_arch": [1] * 10**6},
        "net_arch tower of a million layers": {"net_arch": {"pi": [1] * 10**6, "vf": []}},
        "activation: a network": {"activation_fn": {"class": "x", "known": "torch.nn.Transformer"}},
        "activation: a module": {"activation_fn": {"class": "x", "known": "torch.nn.Module"}},
        "activation: a container": {"activation_fn": {"class": "x", "known": "torch.nn.ModuleList"}},
        "activation: a layer": {"activation_fn": {"class": "x", "known": "torch.nn.Linear"}},
        "activation: an optimiser": {"activation_fn": {"class": "x", "known": "torch.optim.Adam"}},
        "activation: text": {"activation_fn": "torch.nn.ReLU"},
        "activation: os.system": {"activation_fn": {"class": "os.system", "known": "os.system"}},
        "optimiser: a layer": {"optimizer_class": {"class": "x", "known": "torch.nn.Linear"}},
        "optimiser: none": {"optimizer_class": {"class": "x", "known": "torch.optim.Optimizer"}},
        "optimiser: LBFGS": {"optimizer_class": {"class": "x", "known": "torch.optim.LBFGS"}},
        "optimiser: text": {"optimizer_class": "Adam"},
        "optimiser arguments: unknown": {"optimizer_kwargs": {"import": 1}},
        "optimiser arguments: texts": {"optimizer_kwargs": {"betas": "xy"}},
        "optimiser arguments: list": {"optimizer_kwargs": [1]},
        "extractor: a layer": {"features_extractor_class": known},
        "extractor: an abstract one": {
            "features_extractor_class": {"class": "x", "known": "stable_baselines3.common.torch_layers.BaseFeaturesExtractor"}
        },
        "extractor: for images": {
            "features_extractor_class": {"class": "x", "known": "stable_baselines3.common.torch_layers.NatureCNN"},
            "features_extractor_kwargs": {"features_dim": 10**9},
        },
        "extractor arguments": {"features_extractor_kwargs": {"features_dim": 10**9}},
        "extractor arguments: text": {"features_extractor_kwargs": "x"},
        "gSDE": {"use_sde": True},
        "squashed": {"squash_output": True, "net_arch": [10**6]},
        "log_std text": {"log_std_init": "x"},
        "observation_space": {"observation_space": 1},
        "lr_schedule": {"lr_schedule": 1},
        "dunder": {"__class__": known},
        "100,000 keys": {f"k{n}": n for n in range(100_000)},
    }
    for name, value in kwargs.items():
        yield Case("policy", name, "load", _hyperparameter("policy_kwargs", value))
    memories: dict[str, tuple[str, Any]] = {
        "memory_size 10^9": ("memory_size", 10**9),
        "memory_size 0": ("memory_size", 0),
        "memory_size text": ("memory_size", "x"),
        "cell": ("policy_kwargs", {"cell": "os.system"}),
        "cell a list": ("policy_kwargs", {"cell": ["gru"]}),
        "cell_size 10^9": ("policy_kwargs", {"cell_size": 10**9}),
        "encoder 10^9": ("policy_kwargs", {"encoder_size": 10**9}),
        "encoder -1": ("policy_kwargs", {"encoder_size": -1}),
        "encoder text": ("policy_kwargs", {"encoder_size": "8"}),
        "retention text": ("policy_kwargs", {"retention": "xy"}),
        "retention 10^70": ("policy_kwargs", {"retention": [1, 10**70]}),
        "memory_std -1": ("policy_kwargs", {"memory_std": -1}),
        "memory_std list": ("policy_kwargs", {"memory_std": []}),
        "a million layers": ("policy_kwargs", {"net_arch": [1] * 10**6}),
        "no memory": ("memory", None),
    }
    for name, (key, value) in memories.items():
        yield Case("policy", f"memory: {name}", "load", _hyperparameter(key, value, "memory"))


# ---------------------------------------------------------------------- spaces


def _spaces() -> Iterator[Case]:
    box = {"space": "Box", "shape": [3], "dtype": "float32", "low": 0.0, "high": 1.0}
    discrete = {"space": "Discrete", "n": 2, "start": 0}

    def deep(depth: int) -> dict[str, Any]:
        space: dict[str, Any] = box
        for _ in range(depth):
            space = {"space": "Tuple", "spaces": [space]}
        return space

    spaces: dict[str, Any] = {
        "nothing": {},
        "unknown": {"space": "os.system"},
        "a list": {"space": ["Box"]},
        "Graph": {"space": "Graph"},
        "box of 10^12": box | {"shape": [10**6, 10**6]},
        "box of 10^100": box | {"shape": [10**50, 10**50]},
        "box of 10^8": box | {"shape": [10**8]},
        "box of 9 million": box | {"shape": [9_000_000]},
        "image of 9 million": box | {"shape": [3, 1000, 3000], "dtype": "uint8", "low": 0, "high": 255},
        "negative box": box | {"shape": [-3]},
        "two negatives": box | {"shape": [-3, -3]},
        "box of NaN": box | {"shape": [float("nan")]},
        "box of text": box | {"shape": "3"},
        "box of texts": box | {"shape": ["3"]},
        "box of 2.5": box | {"shape": [2.5]},
        "box of true": box | {"shape": [True]},
        "box of 100 axes": box | {"shape": [1] * 100},
        "box of a million axes": box | {"shape": [1] * 10**6},
        "empty box": box | {"shape": [0]},
        "box with an empty axis": box | {"shape": [0, 10**6]},
        "objects": box | {"dtype": "object"},
        "O": box | {"dtype": "O"},
        "texts": box | {"dtype": "U1000000"},
        "sub-array": box | {"dtype": "(10000000,)f8"},
        "structure": box | {"dtype": "f8,f8"},
        "structure as a list": box | {"dtype": [["a", "f8"]]},
        "void": box | {"dtype": "V1000000000"},
        "dates": box | {"dtype": "M8[s]"},
        "complex": box | {"dtype": "complex128"},
        "other float": box | {"dtype": "float64", "shape": [4]},
        "NaN bounds": box | {"low": float("nan")},
        "low above high": box | {"low": 2.0},
        "bounds of text": box | {"low": "x"},
        "bounds of a mapping": box | {"low": {}},
        "too many bounds": box | {"low": [0] * 10},
        "a million bounds": box | {"low": [0.5] * 10**6},
        "bounds 50 deep": box | {"low": json.loads("[" * 50 + "0" + "]" * 50)},
        "ragged bounds": box | {"low": [[1], [1, 2], 3]},
        "bounds of 10^70": box | {"high": 10**70},
        "uint8 of 300": box | {"dtype": "uint8", "low": 0, "high": 300},
        "uint8 of -1": box | {"dtype": "uint8", "low": -1, "high": 3},
        "no bounds": {"space": "Box", "shape": [3], "dtype": "float32"},
        "discrete 10^9": discrete | {"n": 10**9},
        "discrete 10^30": discrete | {"n": 10**30},
        "discrete -1": discrete | {"n": -1},
        "discrete 0": discrete | {"n": 0},
        "discrete 2.5": discrete | {"n": 2.5},
        "discrete text": discrete | {"n": "3"},
        "discrete NaN": discrete | {"n": float("nan")},
        "discrete list": discrete | {"n": [3]},
        "discrete from 10^30": discrete | {"start": 10**30},
        "discrete from text": discrete | {"start": "x"},
        "discrete of objects": discrete | {"dtype": "object"},
        "multi of nothing": {"space": "MultiDiscrete", "nvec": [], "start": []},
        "multi of texts": {"space": "MultiDiscrete", "nvec": ["a"], "start": [0]},
        "multi of floats": {"space": "MultiDiscrete", "nvec": [1.5], "start": [0]},
        "multi of negatives": {"space": "MultiDiscrete", "nvec": [-1], "start": [0]},
        "multi of 10^9": {"space": "MultiDiscrete", "nvec": [10**9], "start": [0]},
        "multi of a million": {"space": "MultiDiscrete", "nvec": [2] * 10**6, "start": [0] * 10**6},
        "multi of ragged": {"space": "MultiDiscrete", "nvec": [[1], [2, 3]], "start": [0]},
        "multi with other starts": {"space": "MultiDiscrete", "nvec": [2, 3], "start": [0]},
        "bits of 10^12": {"space": "MultiBinary", "shape": [10**6, 10**6]},
        "bits of 9 million": {"space": "MultiBinary", "shape": [9_000_000]},
        "bits of -1": {"space": "MultiBinary", "shape": [-1]},
        "bits of nothing": {"space": "MultiBinary", "shape": []},
        "bits of text": {"space": "MultiBinary", "shape": "x"},
        "20 deep": deep(20),
        "17 deep": deep(17),
        "wide": {"space": "Dict", "spaces": [[f"k{n}", discrete] for n in range(100_000)]},
        "wide boxes": {"space": "Dict", "spaces": [[f"k{n}", box | {"shape": [1_000_000]}] for n in range(900)]},
        "wide and deep": {"space": "Tuple", "spaces": [{"space": "Tuple", "spaces": [discrete] * 900}] * 100},
        "one key twice": {"space": "Dict", "spaces": [["a", box], ["a", box]]},
        "colliding keys": {"space": "Dict", "spaces": [["a/b", box], ["a", {"space": "Dict", "spaces": [["b", box]]}]]},
        "keys that are lists": {"space": "Dict", "spaces": [[["a"], box]]},
        "keys that are null": {"space": "Dict", "spaces": [[None, box]]},
        "keys of 5 MB": {"space": "Dict", "spaces": [["k" * 5_000_000, box]]},
        "a mapping of spaces": {"space": "Dict", "spaces": {"a": box}},
        "spaces that are none": {"space": "Tuple", "spaces": [1, 2]},
        "spaces of text": {"space": "Tuple", "spaces": "Box"},
        "an empty Dict": {"space": "Dict", "spaces": []},
        "an empty Tuple": {"space": "Tuple", "spaces": []},
    }
    for name, value in spaces.items():
        expected = "opens" if name == "bounds of 10^70" else "refused"  # which are none in 32 bits
        yield Case(
            "spaces", f"observations: {name}", "load", _with_document(lambda d, v=value: d | {"observation_space": v}), expected
        )
    of_actions = ("unknown", "box of 10^12", "box of 9 million", "discrete 10^9", "discrete -1", "multi of a million", "wide")
    for name in of_actions:
        write = _with_document(lambda d, v=spaces[name]: d | {"action_space": v})
        yield Case("spaces", f"actions: {name}", "load", write)


# ---------------------------------------------------------------------- Stable-Baselines3's files


def _sb3_file(change: Callable[[dict[str, bytes], Context], bytes | None]) -> Callable[[Context, Path], Path]:
    def write(context: Context, folder: Path) -> Path:
        content = members(context.originals["sb3"])
        changed = change(content, context)
        (folder / "file.zip").write_bytes(zip_of(content) if changed is None else changed)
        return folder / "file.zip"

    return write


def _sb3() -> Iterator[Case]:
    def poisoned(context: Context, protocol: int = 4) -> str:
        return b64encode(pickle.dumps(Bomb(context.marker), protocol)).decode()

    def serialized(content: dict[str, bytes], context: Context) -> None:
        data = json.loads(content["data"])
        for entry in data.values():
            if isinstance(entry, dict) and ":serialized:" in entry:
                entry[":serialized:"] = poisoned(context)
        content["data"] = json.dumps(data).encode()

    yield Case("sb3", "pickles in all data", "import_sb3", _sb3_file(serialized), "same")

    def one(field: str) -> Callable[[dict[str, bytes], Context], None]:
        def change(content: dict[str, bytes], context: Context) -> None:
            data = json.loads(content["data"])
            data[field] = {":type:": "<class 'function'>", ":serialized:": poisoned(context)}
            content["data"] = json.dumps(data).encode()

        return change

    for field in ("n_steps", "learning_rate", "gamma", "seed", "policy_class", "observation_space", "num_timesteps", "extra"):
        expected = "same" if field in ("policy_class", "observation_space", "extra") else "opens"
        yield Case("sb3", f"a pickle for {field}", "import_sb3", _sb3_file(one(field)), expected)

    def member(name: str, protocol: int) -> Callable[[dict[str, bytes], Context], None]:
        def change(content: dict[str, bytes], context: Context) -> None:
            content[name] = pickle.dumps(Bomb(context.marker), protocol)

        return change

    for name in ("policy.pth", "policy.optimizer.pth", "pytorch_variables.pth", "system_info.txt", "data"):
        for protocol in (0, 2, 4):
            expected = "refused" if name in ("policy.pth", "data") else "same"
            title = f"{name} is a pickle of protocol {protocol}"
            yield Case("sb3", title, "import_sb3", _sb3_file(member(name, protocol)), expected)

    def saved(content: dict[str, bytes], context: Context) -> None:
        buffer = io.BytesIO()
        torch.save({"action_net.weight": Bomb(context.marker)}, buffer)
        content["policy.pth"] = buffer.getvalue()

    def legacy(content: dict[str, bytes], context: Context) -> None:
        buffer = io.BytesIO()
        torch.save({"action_net.weight": Bomb(context.marker)}, buffer, _use_new_zipfile_serialization=False)
        content["policy.pth"] = buffer.getvalue()

    def legacy_weights(content: dict[str, bytes], context: Context) -> None:
        buffer = io.BytesIO()
        torch.save({"action_net.weight": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=False)
        content["policy.pth"] = buffer.getvalue()

    yield Case("sb3", "weights saved with a pickle", "import_sb3", _sb3_file(saved))
    yield Case("sb3", "weights saved with a pickle as before torch 1.6", "import_sb3", _sb3_file(legacy))
    yield Case("sb3", "weights as before torch 1.6", "import_sb3", _sb3_file(legacy_weights))
    texts: dict[str, bytes] = {
        "empty": b"",
        "a list": b"[]",
        "deep": b"[" * 100_000 + b"]" * 100_000,
        "digits": b'{"n_epochs": ' + b"1" * 10**6 + b"}",
        "30 MB": b" " * 30_000_000 + b"{}",
        "not text": b"\xff\xfe",
        "another algorithm": b'{"gamma": 0.99}',
    }
    for name, text in texts.items():
        yield Case("sb3", f"data: {name}", "import_sb3", _sb3_file(lambda c, _, t=text: c.update(data=t)))

    def scalar(name: str, value: Any) -> Callable[[dict[str, bytes], Context], None]:
        def change(content: dict[str, bytes], context: Context) -> None:
            content["data"] = json.dumps(json.loads(content["data"]) | {name: value}).encode()

        return change

    bad: dict[str, tuple[str, Any]] = {
        "n_steps -1": ("n_steps", -1),
        "n_steps 0": ("n_steps", 0),
        "gamma 5": ("gamma", 5),
        "seed -1": ("seed", -1),
        "batch_size 0": ("batch_size", 0),
        "n_epochs 1.5": ("n_epochs", 1.5),
    }
    for name, (key, value) in bad.items():
        yield Case("sb3", name, "import_sb3", _sb3_file(scalar(key, value)))
    for name, value in {"10^400": 10**400, "NaN": float("nan"), "a list": [1], "-5": -5, "text": "9"}.items():
        yield Case("sb3", f"num_timesteps {name}", "import_sb3", _sb3_file(scalar("num_timesteps", value)), "opens")
    yield Case("sb3", "n_steps 10^12 is skipped", "import_sb3", _sb3_file(scalar("n_steps", 10**12)), "opens")
    yield Case("sb3", "deflated", "import_sb3", _sb3_file(lambda c, _: zip_of(c, zipfile.ZIP_DEFLATED)))
    yield Case("sb3", "100 members", "import_sb3", _sb3_file(lambda c, _: zip_of(c | {str(n): b"" for n in range(100)})))
    yield Case("sb3", "without weights", "import_sb3", _sb3_file(lambda c, _: zip_of({"data": c["data"]})))
    yield Case("sb3", "one of ours", "import_sb3", lambda context, _: context.originals["agent"])
    yield Case("sb3", "opened as ours", "load", lambda context, _: context.originals["sb3"])


def _sb3_weights() -> Iterator[Case]:
    def state(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Context, Path], Path]:
        def edit(content: dict[str, bytes], _: Context) -> None:
            weights = torch.load(io.BytesIO(content["policy.pth"]), weights_only=True)
            changed = change(weights)
            buffer = io.BytesIO()
            torch.save(weights if changed is None else changed, buffer)
            content["policy.pth"] = buffer.getvalue()

        return _sb3_file(edit)

    def put(name: str, value: Any) -> Callable[[dict[str, torch.Tensor]], None]:
        return lambda weights: weights.__setitem__(name, value)

    name = "action_net.weight"
    changes: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "NaN": put(name, torch.full((3, 8), float("nan"))),
        "infinite": put(name, torch.full((3, 8), float("inf"))),
        "another shape": put(name, torch.zeros(5, 5)),
        "no axes": put(name, torch.zeros(())),
        "whole numbers": put(name, torch.zeros(3, 8, dtype=torch.int64)),
        "complex": put(name, torch.zeros(3, 8, dtype=torch.complex64)),
        "sparse": put(name, torch.eye(8)[:3].to_sparse()),
        "a number": put(name, 5),
        "a list": put(name, [1, 2]),
        "missing": lambda weights: {key: value for key, value in weights.items() if key != name},
        "extra": put("extra", torch.zeros(3)),
        "a list of weights": lambda weights: list(weights.values()),
        "one tensor": lambda weights: weights[name],
        "nothing": lambda weights: {},
        "numbers for names": lambda weights: {1: weights[name]},
        "expanded": put(name, torch.zeros(1).expand(3, 8)),
    }
    for title, change in changes.items():
        yield Case("sb3 weights", title, "import_sb3", state(change))

    def pickled(instructions: bytes) -> Callable[[Context, Path], Path]:
        def edit(content: dict[str, bytes], _: Context) -> None:
            content["policy.pth"] = zip_of(
                {"archive/data.pkl": instructions, "archive/data/0": bytes(96), "archive/byteorder": b"little"}
            )

        return _sb3_file(edit)

    def tensor(
        shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0, kind: str = "FloatStorage", key: str = "0"
    ) -> bytes:
        """A dictionary of one tensor, as pickle writes it."""

        def number(value: int) -> bytes:
            size = max((value.bit_length() + 8) // 8, 1)
            return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)

        def text(value: str) -> bytes:
            return b"X" + struct.pack("<I", len(value)) + value.encode()

        def sizes(values: tuple[int, ...]) -> bytes:
            return b"(" + b"".join(map(number, values)) + b"t"

        storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(24) + b"tQ"
        arguments = b"(" + storage + number(offset) + sizes(shape) + sizes(strides) + b"\x89ccollections\nOrderedDict\n)Rt"
        return b"\x80\2}(" + text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Ru."

    pairs = b"".join(
        b"h%bh%b\x86q%b" % (bytes([n]), bytes([n]), bytes([n + 1])) for n in range(80)
    )  # of the pair before, twice
    hashing = b"\x80\2})q\0" + pairs + b"K\1s."
    programs: dict[str, bytes] = {
        "empty": b"",
        "no end": b"\x80\2}",
        "nothing on the stack": b"\x80\2.",
        "two on the stack": b"\x80\2}}.",
        "os.mkdir": b"\x80\2cos\nmkdir\nX\6\0\0\0marker\x85R.",
        "builtins.bytearray of 4 GB": b"\x80\2cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
        "getattr": b"\x80\2cbuiltins\ngetattr\n)R.",
        "an instance": b"\x80\2cos\nmkdir\n)\x81.",
        "inst": b"(S'marker'\nios\nmkdir\n.",
        "obj": b"(cos\nmkdir\nS'marker'\no.",
        "an extension": b"\x80\2\x82\1.",
        "a text id": b"\x80\2Pmarker\n.",
        "keys that take years to hash": hashing,
        "the shape of nothing": tensor((3, 8), (8, 1)).replace(b"ctorch._utils", b"ctorch.xutils"),
        "10^12 numbers": tensor((10**6, 10**6), (10**6, 1)),
        "10^12 numbers without strides": tensor((10**6, 10**6), (0, 0)),
        "10^300 numbers": tensor((10**150, 10**150), (1, 1)),
        "negative shape": tensor((-3, 8), (8, 1)),
        "negative strides": tensor((3, 8), (-8, 1)),
        "negative offset": tensor((3, 8), (8, 1), -1),
        "offset beyond": tensor((3, 8), (8, 1), 1),
        "strides beyond": tensor((3, 8), (9, 1)),
        "no strides": tensor((3, 8), ()),
        "100 axes": tensor((1,) * 100, (1,) * 100),
        "quantised": tensor((3, 8), (8, 1), 0, "QInt8Storage"),
        "unknown storage": tensor((3, 8), (8, 1), 0, "FileStorage"),
        "a storage elsewhere": tensor((3, 8), (8, 1), 0, "FloatStorage", "../../data"),
        "a memo that is not there": b"\x80\2h\5.",
        "a mark that is not there": b"\x80\2t.",
        "a million marks": b"\x80\2" + b"(" * 10**6 + b".",
        "a million dictionaries": b"\x80\2" + b"}" * 10**6 + b".",
        "a text of 4 GB": b"\x80\2X\xff\xff\xff\xffabc.",
        "a number of 1 GB": b"\x80\2\x8b\xff\xff\xff\x3f\1.",
        "a negative length": b"\x80\2\x8b\xff\xff\xff\xff\1.",
    }
    for title, program in programs.items():
        yield Case("sb3 weights", f"pickle: {title}", "import_sb3", pickled(program))

    def shared(content: dict[str, bytes], _: Context) -> None:
        """20,000 names for one storage of a megabyte."""
        numbers = torch.zeros(250_000)
        buffer = io.BytesIO()
        torch.save({f"action_net.{n}": numbers for n in range(20_000)}, buffer)
        content["policy.pth"] = buffer.getvalue()

    def deflated(content: dict[str, bytes], _: Context) -> None:
        with zipfile.ZipFile(io.BytesIO(content["policy.pth"])) as archive:
            inner = {name: archive.read(name) for name in archive.namelist()}
        name = next(name for name in inner if name.endswith("/data/0"))
        content["policy.pth"] = zip_of(inner | {name: bytes(500_000_000)}, zipfile.ZIP_DEFLATED)

    def big_endian(content: dict[str, bytes], _: Context) -> None:
        content["policy.pth"] = content["policy.pth"].replace(b"little", b"bigger")

    yield Case("sb3 weights", "20,000 names for one tensor", "import_sb3", _sb3_file(shared))
    yield Case("sb3 weights", "a bomb of 500 MB", "import_sb3", _sb3_file(deflated))
    yield Case("sb3 weights", "another order of bytes", "import_sb3", _sb3_file(big_endian))


# ---------------------------------------------------------------------- YAML


def _laughs(levels: int, width: int = 9) -> str:
    lines = ["a0: &a0 [lol, lol]"]
    lines += [f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * width)}]" for n in range(levels)]
    return "\n".join(lines)


def _filled(text: str, context: Context) -> str:
    """A text with the marker's path in it, and double braces as single ones."""
    return text.replace("{marker}", str(context.marker)).replace("{{", "{").replace("}}", "}")


def _yaml() -> Iterator[Case]:
    merged = "a0: &a0 {k: 1}\n" + "\n".join(f"a{n + 1}: &a{n + 1} {{<<: [{', '.join([f'*a{n}'] * 9)}]}}" for n in range(12))
    texts: dict[str, str] = {
        "python object": "env: !!python/object/apply:os.mkdir [{marker}]",
        "python object, long": "env: !!python/object/new:os.mkdir {{args: [{marker}]}}",
        "python name": "env: !!python/name:os.system",
        "python module": "env: !!python/module:os",
        "python tuple": "env: !!python/tuple [1, 2]",
        "unknown tag": "env: !evil 1",
        "tag of another": "%TAG ! tag:yaml.org,2002:python/\n---\nenv: !object/apply:os.mkdir [{marker}]",
        "billion laughs": _laughs(9),
        "billion laughs in a setting": _laughs(9) + "\nnet_arch: *a9",
        "billion laughs for policy_kwargs": "env: CartPole-v1\npolicy_kwargs:\n  " + _laughs(9).replace("\n", "\n  "),
        "merged": merged,
        "an anchor inside itself": "env: &a [*a]",
        "a mapping inside itself": "policy_kwargs: &a {{x: *a}}",
        "unknown anchor": "env: *nothing",
        "lists 100,000 deep": "env: " + "[" * 100_000,
        "lists 500 deep": "env: " + "[" * 500 + "]" * 500,
        "lists 65 deep": "policy_kwargs: {{a: " + "[" * 65 + "]" * 65 + "}}",
        "blocks 10,000 deep": "\n".join(" " * n + "a:" for n in range(500)),
        "keys 10,000 deep": "? " * 10_000 + "a",
        "an integer of 200,000 digits": "seed: " + "1" * 200_000,
        "a hexadecimal of 200,000 digits": "seed: 0x" + "f" * 200_000,
        "sexagesimal": "seed: 1" + ":59" * 20_000,
        "infinite": "learning_rate: .inf\nn_steps: .inf",
        "NaN": "n_steps: .nan",
        "a date": "seed: 2020-13-45",
        "a good date": "seed: 2020-12-12",
        "binary": "seed: !!binary aGVsbG8=",
        "bad binary": "seed: !!binary \xff",
        "a set": "seed: !!set {{a, b}}",
        "a list as key": "? [a, b]\n: 1",
        "a mapping as key": "? {{a: 1}}\n: 1",
        "a number as key": "5: 1",
        "null as key": "~: 1",
        "a list": "[a, b]",
        "a text": "hello",
        "nothing": "",
        "two documents": "a: 1\n---\nb: 2",
        "tabs": "\t\ta: 1",
        "NUL": "env: \0",
        "surrogates": "env: \ud800",
        "a key of 100,000 letters": "k" * 1000 + ": 1\n" + "k" * 100_000 + ": 1",
        "100,000 keys": "\n".join(f"k{n}: {n}" for n in range(20_000)),
        "unknown setting": "import: os",
        "config": "config: /etc/passwd",
        "text for a number": "n_steps: x",
        "mapping for a number": "n_steps: {{a: 1}}",
        "true for a number": "n_steps: true",
        "float for a number": "n_steps: 1.5",
        "number for a text": "env: 5",
        "an environment to import": "env: 'os:system-v0'",
        "an environment with a newline": 'env: "CartPole-v1\\n\\x1b[31m"',
        "unknown environment": "env: nothing-v0",
        "unknown algorithm": "algo: os.system",
        "algorithm a list": "algo: [ppo]",
        "unknown preset": "preset: os.system",
        "unknown backend": "backend: os.system",
        "env_kwargs a list": "env_kwargs: [1]",
        "policy_kwargs a text": "policy_kwargs: x",
        "negative n_envs": "num_envs: -1",
        "seed -1": "seed: -1",
        "device": "device: os.system",
        "run_name with folders": "run_name: ../../x",
    }
    for name, text in texts.items():

        def write(context: Context, folder: Path, text: str = text) -> Path:
            path = folder / "config.yaml"
            path.write_bytes(_filled(text, context).encode(errors="surrogatepass"))
            return path

        yield Case("yaml", name, "config", write)
    on_the_command_line = {
        "python object": texts["python object"],
        "billion laughs": texts["billion laughs"],
        "deep": texts["lists 100,000 deep"],
        "digits": texts["an integer of 200,000 digits"],
        "an environment to import": texts["an environment to import"],
        "an activation to import": "policy_kwargs: {{activation_fn: os.system}}",
        "an extractor to import": "policy_kwargs: {{features_extractor_class: subprocess.Popen}}",
        "an optimiser that is none": "policy_kwargs: {{optimizer_class: Linear}}",
        "env_kwargs": "env_kwargs: {{entry_point: 'os:system'}}",
        "n_steps 0": "n_steps: 0",
    }
    for name, text in on_the_command_line.items():

        def write_config(context: Context, folder: Path, text: str = text) -> Path:
            path = folder / "config.yaml"
            path.write_text(_filled(text, context))
            return path

        yield Case("yaml", f"train --config: {name}", "train", write_config)


# ---------------------------------------------------------------------- run folders


def _run(change: Callable[[Path, Context], None]) -> Callable[[Context, Path], Path]:
    def write(context: Context, folder: Path) -> Path:
        run = folder / "run"
        run.mkdir()
        for file in context.originals["run"].iterdir():
            (run / file.name).write_bytes(file.read_bytes())
        change(run, context)
        return run

    return write


def _run_folders() -> Iterator[Case]:
    def objects(run: Path, context: Context) -> None:
        np.savez(run / "evaluations.npz", results=np.array([Bomb(context.marker)], dtype=object))

    for reader in ("evaluate", "plot"):
        yield Case("run folder", f"evaluations.npz of objects, {reader}", reader, _run(objects), "opens")

    def exchanged(name: str, content: str | bytes) -> Callable[[Path, Context], None]:
        def change(run: Path, _: Context) -> None:
            (run / name).write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))

        return change

    def piped(name: str) -> Callable[[Path, Context], None]:
        def change(run: Path, _: Context) -> None:
            (run / name).unlink()
            os.mkfifo(run / name)

        return change

    def linked(name: str, target: str) -> Callable[[Path, Context], None]:
        def change(run: Path, _: Context) -> None:
            (run / name).unlink()
            (run / name).symlink_to(target)

        return change

    configs: dict[str, str] = {
        "empty": "",
        "a list": "[1]",
        "python object": "env: !!python/object/apply:os.mkdir [marker]",
        "billion laughs": _laughs(9) + "\n" + CONFIG,
        "deep": "[" * 100_000,
        "an environment to import": CONFIG.replace("CartPole-v1", "os:system-v0"),
        "an environment that is a list": CONFIG.replace("CartPole-v1", "[a]"),
        "an unknown environment": CONFIG.replace("CartPole-v1", "Nothing-v0"),
        "another environment": CONFIG.replace("CartPole-v1", "Pendulum-v1"),
        "env_kwargs a list": CONFIG.replace("env_kwargs: {}", "env_kwargs: [1, 2]"),
        "env_kwargs unknown": CONFIG.replace("env_kwargs: {}", "env_kwargs: {no_such: 1}"),
        "env_kwargs entry point": CONFIG.replace("env_kwargs: {}", "env_kwargs: {entry_point: 'os:system'}"),
        "env_kwargs render_mode": CONFIG.replace("env_kwargs: {}", "env_kwargs: {render_mode: [1]}"),
        "frame_stack 10^9": CONFIG + "frame_stack: 1000000000\n",
        "frame_stack text": CONFIG + "frame_stack: x\n",
        "frame_stack 3": CONFIG + "frame_stack: 3\n",
    }
    for name, text in configs.items():
        yield Case("run folder", f"config: {name}", "evaluate", _run(exchanged("config.yaml", text)))
    for name in ("empty", "billion laughs", "deep", "python object"):
        yield Case("run folder", f"config for plot: {name}", "plot", _run(exchanged("config.yaml", configs[name])))
        yield Case("run folder", f"config alone: {name}", "run_config", _run(exchanged("config.yaml", configs[name])))
    for name, reader in {"config.yaml": "evaluate", "model.zip": "evaluate", "episodes.csv": "plot"}.items():
        yield Case("run folder", f"{name} is a pipe", reader, _run(piped(name)))
        yield Case("run folder", f"{name} is endless", reader, _run(linked(name, "/dev/zero")))
        yield Case("run folder", f"{name} is a loop", reader, _run(linked(name, name)))
        yield Case("run folder", f"{name} is empty", reader, _run(exchanged(name, b"")))
        yield Case("run folder", f"{name} is noise", reader, _run(exchanged(name, np.random.default_rng(4).bytes(5000))))
    tables: dict[str, str | bytes] = {
        "only a header": EPISODES.partition("\n")[0],
        "other columns": "a,b\n1,2\n",
        "texts": EPISODES + "x,0,y,1,1\n",
        "NaN": EPISODES + "200,0,nan,1,1\n",
        "infinite steps": EPISODES + "inf,0,1,1,1\n",
        "lists": EPISODES + '200,0,"[1, 2]",1,1\n',
        "short rows": EPISODES + "200\n",
        "a cell of 1 MB": EPISODES + "2" * 10**6 + ",0,1,1,1\n",
        "NUL": EPISODES.encode() + b"200,0,\0,1,1\n",
        "Latin-1": EPISODES.encode() + b"\xff\xfe\n",
        "an open quote": EPISODES + '"200,0,1\n' * 50_000,
        "binary": b"\x93NUMPY" + bytes(1000),
    }
    for name, content in tables.items():
        yield Case("run folder", f"episodes: {name}", "plot", _run(exchanged("episodes.csv", content)))
    labels = {
        "mathematics": "algo: '$\\frac{1}{'\nenv: '$$$x_{'\n",
        "deep mathematics": "algo: '$" + "{" * 3000 + "$'\nenv: x\n",
        "100,000 letters": f"algo: {'x' * 100_000}\nenv: {'y' * 100_000}\n",
        "lines": 'algo: "a\\nb\\nc"\nenv: "\\x1b[31m"\n',
        "lists": "algo: [1, [2, [3]]]\nenv: {a: 1}\n",
    }
    for name, text in labels.items():
        yield Case("run folder", f"labels: {name}", "plot", _run(exchanged("config.yaml", text)), "opens")
    rows = EPISODES.partition("\n")[0] + "\n" + "1,0,1,1,1\n" * 1_000_000
    yield Case("run folder", "a million episodes", "plot", _run(exchanged("episodes.csv", rows)), "opens")


# ---------------------------------------------------------------------- Pareto archives


def _pareto() -> Iterator[Case]:
    def changed(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Callable[[Context, Path], Path]:
        def write(context: Context, folder: Path) -> Path:
            document, tensors = copy.deepcopy(parts(context.originals["pareto"]))
            change(document["pareto"], tensors)
            (folder / "pareto.zip").write_bytes(file_of(document, tensors))
            return folder / "pareto.zip"

        return write

    def field(name: str, value: Any) -> Callable[[Context, Path], Path]:
        return changed(lambda data, _: data.__setitem__(name, value))

    for name in ("num_objectives", "reference", "capacity", "tolerance", "thetas", "infos", "objectives"):
        yield Case("pareto", f"without {name}", "pareto", changed(lambda data, _, n=name: data.pop(n)))
        odd = {"text": "x", "true": True, "NaN": float("nan"), "10^70": 10**70, "nested": [[[1]]], "-1": -1}
        for kind, value in odd.items():
            if (name, kind) == ("tolerance", "true") or (name == "capacity" and kind == "10^70"):
                continue
            expected = "opens" if (name, kind) == ("tolerance", "10^70") else "refused"
            yield Case("pareto", f"{name}: {kind}", "pareto", field(name, value), expected)

    def tensor(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Context, Path], Path]:
        return changed(lambda _, tensors: change(tensors))

    def huge(data: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        data |= {"num_objectives": 10**9, "reference": None, "tolerance": 0.0, "objectives": None, "thetas": [], "infos": []}
        tensors["points"] = torch.zeros((0, 10**9), dtype=torch.float64)

    def many(data: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        count = 200_000
        line = torch.arange(count, dtype=torch.float64)
        tensors["points"] = torch.stack([line, -line], 1)
        data |= {"thetas": [None] * count, "infos": [{}] * count}

    tensors: dict[str, Callable[[Context, Path], Path]] = {
        "no points": tensor(lambda t: t.pop("points")),
        "NaN": tensor(lambda t: t.__setitem__("points", t["points"] * float("nan"))),
        "dominated": tensor(lambda t: t.__setitem__("points", torch.arange(10, dtype=torch.float64).view(5, 2))),
        "another shape": tensor(lambda t: t.__setitem__("points", torch.zeros(5, 3, dtype=torch.float64))),
        "a number": tensor(lambda t: t.__setitem__("points", torch.zeros((), dtype=torch.float64))),
        "fewer": tensor(lambda t: t.__setitem__("points", t["points"][:3])),
        "no parameters": tensor(lambda t: t.pop("theta/0")),
        "parameters of NaN": tensor(lambda t: t.__setitem__("theta/0", t["theta/0"] * float("nan"))),
        "parameters as a matrix": tensor(lambda t: t.__setitem__("theta/0", torch.zeros(2, 2))),
        "whole parameters": tensor(lambda t: t.__setitem__("theta/0", torch.zeros(3, dtype=torch.int64))),
        "complex points": tensor(lambda t: t.__setitem__("points", t["points"].to(torch.complex64))),
        "10^9 objectives": changed(huge),
        "200,000 points": changed(many),
    }
    for name, write in tensors.items():
        yield Case("pareto", name, "pareto", write)
        yield Case("pareto", f"{name}, drawn", "plot_front", write)
    yield Case("pareto", "names of mathematics", "plot_front", field("objectives", ["$\\frac{", "x" * 50_000]), "opens")
    yield Case("pareto", "an agent", "pareto", lambda context, _: context.originals["agent"])
    yield Case("pareto", "a folder without one", "plot_front", _run(lambda run, _: None))
    fronts: dict[str, str] = {
        "texts": "a,b\nc,d\n",
        "ragged": "1,2\n3\n",
        "three": "1,2,3\n",
        "NaN": "1,nan\n",
        "only comments": "#\n" * 1000,
        "a number of 10^6 digits": "1" * 10**6 + ",1\n",
    }
    for name, text in fronts.items():
        yield Case("pareto", f"known: {name}", "plot_known", _written(text, "front.csv"))


# ---------------------------------------------------------------------- checkpoints of language models


def _language_models() -> Iterator[Case]:
    """Opened by a process of its own, which imports transformers; left out where that is not installed."""

    def changed(change: Callable[[dict[str, Any], dict[str, torch.Tensor]], Any]) -> Callable[[Context, Path], Path]:
        def write(context: Context, folder: Path) -> Path:
            document, tensors = parts(context.originals["lm"])
            change(document, tensors)
            (folder / "checkpoint-1.zip").write_bytes(file_of(document, tensors))
            return folder / "checkpoint-1.zip"

        return write

    def first(prefix: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Callable[[Context, Path], Path]:
        def edit(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
            key = min((key for key in tensors if key.startswith(prefix)), key=len)
            value = change(tensors.pop(key))
            if value is not None:
                tensors[key] = value

        return changed(edit)

    for length in (0, 100, 5000, -1, -22):
        yield Case("language model", f"cut at {length}", "lm", _changed("lm", lambda c, n=length: c[:n]))
    for number in range(6):
        yield Case("language model", f"bit flip {number}", "lm", _changed("lm", lambda c, n=number: _bit(c, n)), "same")
    for prefix in ("parameters/", "optimizer/"):
        yield Case("language model", f"{prefix}: NaN", "lm", first(prefix, lambda t: t.float() * float("nan")))
        yield Case("language model", f"{prefix}: missing", "lm", first(prefix, lambda t: None))
        yield Case("language model", f"{prefix}: another shape", "lm", first(prefix, lambda t: torch.zeros(3, 3, 3)))
        yield Case("language model", f"{prefix}: complex", "lm", first(prefix, lambda t: t.to(torch.complex64)))
    yield Case("language model", "parameters of whole numbers", "lm", first("parameters/", lambda t: t.long()))
    yield Case("language model", "generators: short", "lm", first("generators/", lambda t: t[:10]))
    yield Case("language model", "generators: zeros", "lm", first("generators/", torch.zeros_like))
    yield Case("language model", "generators: beyond", "lm", first("generators/", _beyond))
    names = (
        "generators/evil",
        "optimizer/99999.exp_avg",
        "optimizer/².exp_avg",
        "optimizer/x",
        "parameters/evil",
        "value_head/x",
    )
    for name in names:
        yield Case("language model", f"extra {name}", "lm", changed(lambda _, t, n=name: t.__setitem__(n, torch.zeros(2))))
    for kind, value in {**WRONG, "10^70": 10**70}.items():
        for field in ("iteration", "num_rows"):
            write = changed(lambda d, _, f=field, v=value: d["state"].__setitem__(f, v))
            yield Case("language model", f"{field}: {kind}", "lm", write)
    for field in ("kind", "state", "settings", "versions", "format"):
        yield Case("language model", f"without {field}", "lm", changed(lambda d, _, f=field: d.pop(f)))
        yield Case("language model", f"{field}: 5", "lm", changed(lambda d, _, f=field: d.__setitem__(f, 5)))
    yield Case("language model", "another model", "lm", changed(lambda d, _: d.__setitem__("left_out", "0" * 64)))
    yield Case("language model", "an agent", "lm", lambda context, _: context.originals["agent"])


def _bit(content: bytes, number: int) -> bytes:
    changed = bytearray(content)
    changed[int((number + 0.5) / 6 * len(content))] ^= 1 << number
    return bytes(changed)
