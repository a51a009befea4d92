"""Weights from what `torch.save` writes, without unpickling.

torch's own restricted unpickler runs no code, but a pickle can still make it hash for years or allocate what it likes. A
state dictionary needs a dozen of a pickle's instructions, and these are read here: what comes out is dictionaries, tuples,
numbers, texts and the places of tensors. The file is a zip of

    NAME/data.pkl     the pickle
    NAME/data/KEY     the numbers of a tensor, or of several
    NAME/byteorder    "little", if it is there
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from rlopt.stored_zip import DamagedZip, stored_zip

MOST_MEMBERS = 10_000
LARGEST_PICKLE = 2**22
MOST_SHARED = 4
DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Name(NamedTuple):
    """What a pickle would import; here it is a name and nothing else."""

    module: str
    attribute: str


class Storage(NamedTuple):
    """The member with a tensor's numbers."""

    key: str
    dtype: torch.dtype


class Place(NamedTuple):
    """Where in a storage a tensor is."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


ORDERED_DICT = Name("collections", "OrderedDict")
TENSOR = Name("torch._utils", "_rebuild_tensor_v2")
PARAMETER = Name("torch._utils", "_rebuild_parameter")


def read_weights(file: BinaryIO) -> dict[str, Tensor]:
    """The tensors of a state dictionary by name, on the CPU; some may share memory.

    Args:
        file: what `torch.save(module.state_dict(), file)` of torch 1.6 or later wrote.

    Raises:
        ValueError: anything else, or a damaged one.
    """
    with stored_zip(file, MOST_MEMBERS) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        folders = [name.removesuffix("/data.pkl") for name in sizes if name.endswith("/data.pkl")]
        if len(folders) != 1:
            raise DamagedZip("it has no weights of torch 1.6 or later")
        if sizes[f"{folders[0]}/data.pkl"] > LARGEST_PICKLE:
            raise DamagedZip(f"the list of its weights has more than {LARGEST_PICKLE:,} bytes")
        order = f"{folders[0]}/byteorder"
        if order in sizes and (sizes[order] > 16 or archive.read(order) != b"little"):
            raise DamagedZip("its numbers are not little-endian")
        places = read_places(archive.read(f"{folders[0]}/data.pkl"))
        storages = {place.storage for place in places.values()}
        numbers = {storage: _numbers(archive.read(f"{folders[0]}/data/{storage.key}"), storage.dtype) for storage in storages}
    # Names may share numbers, as those of a features extractor do; many of all of them would be a bomb.
    if sum(math.prod(place.shape) for place in places.values()) > MOST_SHARED * sum(map(len, numbers.values())):
        raise ValueError("its weights are larger than what is there")
    return {name: _tensor(name, place, numbers[place.storage]) for name, place in places.items()}


def read_places(pickled: bytes) -> dict[str, Place]:
    """Where the tensors of a pickled state dictionary are, by name.

    Raises:
        ValueError: an instruction that no state dictionary needs, or a dictionary of something else.
    """
    machine = _Machine()
    for operation, argument, _ in pickletools.genops(pickled):
        if operation.name not in INSTRUCTIONS:
            raise ValueError(f"its weights ask for {operation.name}, which no dictionary of weights needs")
        INSTRUCTIONS[operation.name](machine, argument)
    (result,) = machine.stack
    if not (isinstance(result, dict) and all(isinstance(entry, Place) for entry in result.values())):
        raise ValueError("it holds something else than a dictionary of weights")
    return result


def _numbers(content: bytes, dtype: torch.dtype) -> Tensor:
    usable = len(content) - len(content) % dtype.itemsize
    return torch.frombuffer(bytearray(content[:usable]), dtype=dtype) if usable else torch.empty(0, dtype=dtype)


def _tensor(name: str, place: Place, numbers: Tensor) -> Tensor:
    """The part of a storage that a tensor is; no larger than the storage."""
    shape, strides = place.shape, place.strides
    if len(shape) != len(strides) or len(shape) > 32 or min((place.offset, *shape, *strides)) < 0:
        raise ValueError(f"the shape of {name!r} makes no sense: {shape}, {strides}")
    last = place.offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) > len(numbers) or (0 not in shape and last >= len(numbers)) or max(shape, default=0) > len(numbers):
        raise ValueError(f"the shape of {name!r} is larger than what is there: {shape}")
    return torch.as_strided(numbers, shape, strides, place.offset if math.prod(shape) else 0)


class _Machine:
    """A pickle's stack, the marks on it, and what it remembers."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def put(self, key: Any) -> None:
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]

    def get(self, key: Any) -> None:
        self.push(self.memo[key])

    def tuple_of(self, size: int | None) -> None:
        entries = self.since_mark() if size is None else [self.stack.pop() for _ in range(size)][::-1]
        self.push(tuple(entries))

    def set_items(self, entries: list[Any]) -> None:
        target = self.stack[-1]
        keys = entries[::2]
        if type(target) is not dict or len(entries) % 2 or not all(isinstance(key, str) for key in keys):
            raise ValueError("its weights have names that are no texts")
        target.update(zip(keys, entries[1::2], strict=True))

    def name(self, argument: str) -> None:
        self.push(Name(*argument.split(" ", 1)))

    def stack_name(self, _: Any) -> None:
        attribute, module = self.stack.pop(), self.stack.pop()
        if not (isinstance(module, str) and isinstance(attribute, str)):
            raise ValueError("its weights import something without a name")
        self.push(Name(module, attribute))

    def storage(self, _: Any) -> None:
        match self.stack.pop():
            case ("storage", Name("torch", attribute), str(key), *_) if attribute in DTYPES:
                self.push(Storage(key, DTYPES[attribute]))
            case _:
                raise ValueError("its weights are of an unknown type")

    def call(self, _: Any) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        match function, arguments:
            case Name() as known, () if known == ORDERED_DICT:
                self.push({})
            case Name() as known, (Storage() as storage, int(offset), tuple(shape), tuple(strides), *_) if known == TENSOR:
                if not all(type(number) is int for number in (offset, *shape, *strides)):
                    raise ValueError("its weights have shapes that are no numbers")
                self.push(Place(storage, offset, shape, strides))
            case Name() as known, (Place() as place, *_) if known == PARAMETER:
                self.push(place)
            case Name(module, attribute), _:
                raise ValueError(f"its weights ask for {f'{module}.{attribute}'!r}, which is never called")
            case _:
                raise ValueError("its weights call something without a name")

    def build(self, _: Any) -> None:
        """Attributes of a dictionary, torch's version numbers, are left out."""
        self.stack.pop()
        if type(self.stack[-1]) is not dict:
            raise ValueError("its weights set attributes of something")


INSTRUCTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": lambda machine, _: None,
    "FRAME": lambda machine, _: None,
    "STOP": lambda machine, _: None,
    "MARK": _Machine.mark,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE"), _Machine.push),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "TUPLE": lambda machine, _: machine.tuple_of(None),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop() for _ in range(2)][::-1]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.since_mark()),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.stack_name,
    "BINPERSID": _Machine.storage,
    "REDUCE": _Machine.call,
    "BUILD": _Machine.build,
}
