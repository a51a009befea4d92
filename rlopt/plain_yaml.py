"""YAML of plain values in files that may be a stranger's: no tags that make objects, no anchors that multiply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rlopt.file_errors import one_line
from rlopt.regular_file import read_text

# A run's config.yaml has 2 kB; PyYAML reads a megabyte in ten seconds.
LARGEST_FILE = 2**18
# With every alias written out: "a: &a [0, 0], b: &b [*a, *a], c: [*b, *b] …" doubles with each line.
MOST_VALUES = 50_000
DEEPEST = 64
LARGEST_INTEGER = 2**256


def read_mapping(name: str, path: Path) -> dict[Any, Any]:
    """The mapping in a YAML file; `name` is the argument's, for errors.

    Raises:
        FileNotFoundError, ValueError: no such file, not YAML, a YAML tag, or not a mapping.
    """
    text = read_text(name, path, LARGEST_FILE)
    try:
        value = parse(text)
    except ValueError as error:
        raise ValueError(f"{name}: {path} is not YAML of plain values: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected {path} to hold a mapping of settings, got {type(value).__name__}")
    return value


def parse(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: not YAML, a tag that is not plain data, or too much of it.
    """
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _expanded_size(node, {}, 0)
        value = loader.construct_document(node)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError, OverflowError, LookupError, AttributeError) as error:
        raise ValueError(one_line(str(error))) from None
    _check_integers(value)
    return value


def _check_integers(value: Any) -> None:
    """Python refuses to write integers of thousands of digits, and hexadecimal ones can be read."""
    if isinstance(value, int) and abs(value) >= LARGEST_INTEGER:
        raise ValueError("an integer that is too large")
    if isinstance(value, dict | list):
        for entry in [*value.keys(), *value.values()] if isinstance(value, dict) else value:
            _check_integers(entry)


def _expanded_size(node: yaml.Node, known: dict[int, int | None], depth: int) -> int:
    """How many values a node stands for, aliases written out.

    Raises:
        ValueError: too many, too deep, or a node inside itself.
    """
    if not isinstance(node, yaml.CollectionNode):
        return 1
    size = known.get(id(node), 0)
    if size is None:
        raise ValueError("an anchor inside itself")
    if size:
        return size
    if depth > DEEPEST:
        raise ValueError(f"values nested more than {DEEPEST} deep")
    known[id(node)] = None
    entries = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
    size = 1
    for entry in entries:
        size += _expanded_size(entry, known, depth + 1)
        if size > MOST_VALUES:
            raise ValueError(f"more than {MOST_VALUES:,} values, aliases written out")
    known[id(node)] = size
    return size
