"""An agent's networks as names and shapes, compared with the weights that a file brings before anything is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from rlopt.envs.spaces import ActionDecoder, ObservationEncoder
from rlopt.file_errors import shortened

CLASSES: dict[str, type] = {
    "activation_fn": nn.Module,
    "features_extractor_class": BaseFeaturesExtractor,
    "critic_features_extractor_class": BaseFeaturesExtractor,
    "optimizer_class": torch.optim.Optimizer,
}
SHARED_EXTRACTORS = ("pi_features_extractor.", "vf_features_extractor.")


def check_networks(
    agent: Any, observation_space: spaces.Space, action_space: spaces.Space, weights: Mapping[str, Tensor]
) -> None:
    """Refuse networks other than those that the weights of a file are of.

    They are made on torch's device without memory, which gives every shape and allocates nothing.

    Args:
        agent: with the arguments of the file, and no networks yet.
        observation_space, action_space: of the file.
        weights: what the file brings for the policy.

    Raises:
        ValueError: weights that are missing, too many, or of other shapes.
    """
    _check_classes(agent.policy_kwargs)
    _check_layers(agent.policy_kwargs, len(weights))
    if agent.memory is not None:
        _check_memory(agent, sum(weight.numel() for weight in weights.values()))
    encoder, decoder = ObservationEncoder(observation_space), ActionDecoder(action_space)
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _Staying():
        policy = agent._make_policy(encoder.space, decoder.space)
    check_weights(policy, weights)


def check_weights(policy: Any, weights: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless stored weights have the names, shapes and kinds of number of the policy's."""
    expected = stored_weights(policy)
    if odd := expected.keys() ^ weights.keys():
        raise ValueError(
            f"path: the file describes networks of other parts than it has weights of: they differ in {shortened(min(odd))};"
            " its tensors do not fit the agent"
        )
    for name, mine in expected.items():
        theirs = weights[name]
        if mine.shape != theirs.shape or mine.is_floating_point() != theirs.is_floating_point():
            raise ValueError(
                f"path: the file describes networks of other sizes than it has weights of: {name} is {list(mine.shape)} of"
                f" {mine.dtype} and {list(theirs.shape)} of {theirs.dtype}; its tensors do not fit the agent"
            )


class _Staying(TorchFunctionMode):
    """Tensors without memory stay so: SB3 moves parts of a policy to a device while it makes them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.to and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


def stored_weights(policy: Any) -> dict[str, Tensor]:
    """The policy's weights; a features extractor that actor and critic share is there under one of its three names."""
    weights = policy.state_dict()
    if not policy.share_features_extractor:
        return weights
    return {name: value for name, value in weights.items() if not name.startswith(SHARED_EXTRACTORS)}


def with_shared_extractors(policy: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `stored_weights`."""
    if not policy.share_features_extractor:
        return weights
    extractor = {name: value for name, value in weights.items() if name.startswith("features_extractor.")}
    return weights | {prefix[:3] + name: value for prefix in SHARED_EXTRACTORS for name, value in extractor.items()}


def _check_classes(policy_kwargs: dict[str, Any]) -> None:
    for name, base in CLASSES.items():
        given = policy_kwargs.get(name)
        if given is None:
            continue
        if not (isinstance(given, type) and issubclass(given, base)):
            raise ValueError(f"policy_kwargs: {name}: the file has {shortened(given)}, expected a class of {base.__name__}")
        # torch.nn has whole transformers, which would be made once a layer.
        if name == "activation_fn":
            with torch.device("meta"):
                activation: Any = given()
            if any(True for _ in activation.children()):
                raise ValueError(f"policy_kwargs: {name}: the file has {given.__name__}, which is a network, not a function")


def _check_layers(policy_kwargs: dict[str, Any], most: int) -> None:
    """Each layer has weights of its own, and even one without memory takes time and space to make."""
    arch = policy_kwargs.get("net_arch") or []
    layers = sum(map(len, arch.values())) if isinstance(arch, dict) else len(arch)
    if max(layers, policy_kwargs.get("n_lstm_layers", 0)) > most:
        raise ValueError(f"path: the file describes networks of more layers than the {most} weights that it brings")


def _check_memory(agent: Any, most: int) -> None:
    """A unit of memory has a weight at least; the space of what is remembered is made before any of them."""
    kwargs = agent.policy_kwargs
    units = [agent.memory_size, *(kwargs.get(name) for name in ("cell_size", "lstm_hidden_size"))]
    layers = kwargs.get("n_lstm_layers", 1)
    if not all(type(size) is int and size > 0 for size in (layers, *units) if size is not None):
        raise ValueError(
            f"path: the file's sizes of memory make no sense: {shortened(units)} units in {shortened(layers)} layers"
        )
    if max((size for size in units if size is not None), default=1) * layers > most:
        raise ValueError(f"path: the file describes networks of more units of memory than the {most} parameters that it brings")
