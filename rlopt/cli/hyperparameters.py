"""An algorithm's constructor as a dataclass of flags: names, types, defaults and help are read, not written twice."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

from rlopt.agents import Agent
from rlopt.cli.configuration import YamlMapping

SIMPLE = (NoneType, bool, int, float, str, Path)

# Decided by the command line itself, or not offered.
LEFT_OUT = {
    "self",
    "policy",
    "env",
    "n_envs",
    "preset",
    "tensorboard_log",
    "use_sde",
    "sde_sample_freq",
    "rollout_buffer_class",
    "rollout_buffer_kwargs",
    "_init_setup_model",
}


def hyperparameter_types(algorithm: type[Agent], left_out: set[str]) -> dict[str, Any]:
    """name -> the type of its flag, for every constructor argument that text can express."""
    hints = get_type_hints(algorithm.__init__)
    names = [name for name in inspect.signature(algorithm).parameters if name not in LEFT_OUT | left_out]
    return {name: kind for name in names if (kind := flag_type(hints[name])) is not None}


def hyperparameter_class(algorithm: type[Agent], left_out: set[str], defaults: Mapping[str, Any]) -> type:
    """A dataclass with a field for each of `hyperparameter_types`.

    Args:
        algorithm: whose constructor to read.
        left_out: names that are flags already.
        defaults: name -> value, before those of the constructor.
    """
    parameters = inspect.signature(algorithm).parameters
    texts = argument_help(algorithm)
    fields: list[tuple[str, Any, Any]] = []
    for name, kind in hyperparameter_types(algorithm, left_out).items():
        default = plain(defaults.get(name, parameters[name].default), kind)
        annotated: Any = Annotated[kind, tyro.conf.arg(help=_sentence(texts.get(name, "")))]
        fields.append((name, annotated, dataclasses.field(default_factory=lambda value=default: value)))  # type: ignore[misc]
    return dataclasses.make_dataclass("Hyperparameters", fields, frozen=True)


def flag_type(hint: Any) -> Any:
    """The part of a type that one flag can express, or None: schedules become text, dictionaries YAML."""
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kept = []
    for member in members:
        origin = get_origin(member) or member
        if member in SIMPLE or origin is Literal:
            kept.append(member)
        elif origin in (dict, Mapping):
            return YamlMapping
        elif origin in (list, tuple, Sequence) and get_args(member) and get_args(member)[0] in SIMPLE:
            kept.append(tuple.__class_getitem__((get_args(member)[0], ...)))
    # None first and text last: text would take everything.
    kept.sort(key=lambda member: (member is not NoneType, member is str))
    return Union[tuple(kept)] if set(kept) - {NoneType} else None  # noqa: UP007


def plain(value: Any, kind: Any) -> Any:
    """A default as its flag would give it: schedules as text, lists as tuples, no dictionary as an empty one."""
    if kind is YamlMapping:
        return dict(value or {})
    if isinstance(value, list):
        return tuple(value)
    return value if isinstance(value, (*SIMPLE, tuple)) else str(value)


def argument_help(documented: type) -> dict[str, str]:
    """name -> its text in the Args sections of a class's and its parents' docstrings."""
    texts: dict[str, str] = {}
    for cls in reversed(documented.__mro__):
        texts |= _own_argument_help(cls)
    return texts


def _own_argument_help(documented: type) -> dict[str, str]:
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", inspect.cleandoc(documented.__doc__ or ""), re.MULTILINE | re.DOTALL)
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w)", "\n" + section.group(1).rstrip()) if section else []:
        names, _, text = entry.strip().partition(":")
        for name in names.split(","):
            texts[name.strip()] = " ".join(text.split())
    return texts


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text.isascii() else text
