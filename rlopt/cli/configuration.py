"""Configurations as text: YAML files and YAML on the command line, read as data and checked against types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import torch
import tyro
import yaml
from stable_baselines3.common import torch_layers

from rlopt.arguments import did_you_mean
from rlopt.file_errors import shortened
from rlopt.plain_yaml import parse, read_mapping

EXTRACTORS = ("stable_baselines3.common.torch_layers", torch_layers, torch_layers.BaseFeaturesExtractor)
# In `policy_kwargs` these name a class, which is looked up in one module; nothing is evaluated or imported.
CLASS_ARGUMENTS = {
    "activation_fn": ("torch.nn", torch.nn, torch.nn.Module),
    "optimizer_class": ("torch.optim", torch.optim, torch.optim.Optimizer),
    "features_extractor_class": EXTRACTORS,
    "critic_features_extractor_class": EXTRACTORS,
}


def parse_mapping(text: str) -> dict[str, Any]:
    """A mapping from YAML such as "{net_arch: [64, 64]}".

    Raises:
        ValueError: not YAML, a YAML tag, or not a mapping.
    """
    try:
        value = parse(text)
    except ValueError as error:
        raise ValueError(f"expected a YAML mapping of plain values, got {text!r}: {error}") from None
    return _as_mapping(value)


def flow_text(value: Mapping[str, Any]) -> str:
    """A mapping as YAML on one line; the inverse of `parse_mapping`."""
    return yaml.safe_dump(dict(value), default_flow_style=True, width=10**6, sort_keys=False).strip()


# A dictionary as one command-line argument.
YamlMapping = Annotated[
    dict[str, Any],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{YAML}",
        instance_from_str=lambda args: parse_mapping(args[0]),
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [flow_text(value)],
    ),
]


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ValueError: no such file, not YAML, a YAML tag, or not a mapping.
    """
    try:
        return read_mapping("config", path)
    except FileNotFoundError:
        raise ValueError(f"config: expected a YAML file, but {path} cannot be read: it is not there") from None


def checked_config(config: Mapping[str, Any], types: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The configuration with values of the given types.

    Args:
        config: name -> value, as YAML has it.
        types: name -> type, of every setting there is.
        source: where the configuration comes from, for errors.

    Raises:
        ValueError: an unknown name (the nearest is named) or a value of another type.
    """
    for name in config:
        if name not in types:
            aliases = {"n_envs": "; did you mean 'num_envs'?", "n_timesteps": "; did you mean 'total_timesteps'?"}
            hint = aliases.get(name) or did_you_mean(str(name)[:40], types)
            raise ValueError(f"config: {source} has the unknown setting {shortened(name)}{hint}")
    return {name: conform(name, value, types[name]) for name, value in config.items()}


def conform(name: str, value: Any, hint: Any) -> Any:
    """`value` if it is of the type `hint`, numbers converted where nothing is lost.

    Raises:
        ValueError: it is not; the message says what was expected.
    """
    members = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for member in members:
        converted = _converted(name, value, member)
        if converted is not _REFUSED:
            return converted
    raise ValueError(f"{name}: expected {' or '.join(map(describe_type, members))}, got {shortened(value)}")


def describe_type(hint: Any) -> str:
    """A type in words, for errors."""
    if get_origin(hint) is Annotated:
        return "a mapping such as {key: value}"
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"a list of which each is {describe_type(get_args(hint)[0])}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", NoneType: "null", Path: "a path"}
    return words.get(hint, str(hint))


def with_classes(policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """`policy_kwargs` with the names of classes replaced by the classes, "ReLU" by `torch.nn.ReLU`.

    Raises:
        ValueError: a name that the module does not have (the nearest is named).
    """
    result = dict(policy_kwargs)
    for key, (module_name, module, base) in CLASS_ARGUMENTS.items():
        if result.get(key) is None:
            continue
        name = str(result[key]).rpartition(".")[2]
        found = getattr(module, name, None)
        if not (isinstance(found, type) and issubclass(found, base)):
            names = [item for item, cls in vars(module).items() if isinstance(cls, type) and issubclass(cls, base)]
            raise ValueError(
                f"policy_kwargs: {key}: expected the name of a class in {module_name}, got {result[key]!r}"
                + did_you_mean(name, names)
            )
        result[key] = found
    return result


_REFUSED = object()


def _converted(name: str, value: Any, hint: Any) -> Any:
    """The value as one type of a union, or `_REFUSED`."""
    if get_origin(hint) is Annotated:
        return _REFUSED if not isinstance(value, dict) else value
    if get_origin(hint) is Literal:
        return value if value in get_args(hint) else _REFUSED
    if get_origin(hint) is tuple:
        return tuple(conform(name, item, get_args(hint)[0]) for item in value) if isinstance(value, list) else _REFUSED
    if hint is Path:
        return Path(value) if isinstance(value, str) else _REFUSED
    if hint is float:
        return _as_float(value)
    if isinstance(value, bool) and hint is not bool:
        return _REFUSED
    return value if isinstance(value, hint) else _REFUSED


def _as_float(value: Any) -> Any:
    """A float; texts such as "3e-4" count, which YAML does not take for numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _REFUSED
    try:
        return float(value)
    except (ValueError, OverflowError):
        return _REFUSED


def _as_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a mapping such as {{key: value}}, got {value!r}")
    return value
