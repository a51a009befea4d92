"""Agents to and from files: what is kept, and how an agent is made of it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from torch import Tensor

from rlopt import archive as files
from rlopt.archive import FORMAT, Archive
from rlopt.envs.memory import encoded_size
from rlopt.envs.spaces import ActionDecoder, ObservationEncoder
from rlopt.plain_data import decode, decode_space, encode, encode_space, policy_name
from rlopt.policies.distributions import noise_size
from rlopt.policies.stateful import readable_spaces
from rlopt.version import __version__

if TYPE_CHECKING:
    from rlopt.agents.base import Agent

SHARED_EXTRACTORS = ("pi_features_extractor.", "vf_features_extractor.")


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "rlopt": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gymnasium": gymnasium.__version__,
        "stable_baselines3": stable_baselines3.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def save(agent: Agent, path: Any) -> None:
    """Write an agent; see `Agent.save`."""
    files.write(path, describe(agent), agent_tensors(agent))


def describe(agent: Agent) -> dict[str, Any]:
    """Everything about an agent that is not a tensor, as JSON can hold it."""
    return {
        "format": FORMAT,
        "algorithm": type(agent).__name__,
        "versions": versions(),
        "policy": policy_name(agent.policy_class),
        "hyperparameters": {name: encode(name, value) for name, value in agent.hyperparameters().items() if name != "device"},
        "observation_space": encode_space(agent.observation_space),
        "action_space": encode_space(agent.action_space),
        "num_timesteps": agent.num_timesteps,
        "state": {name: value for name, value in agent.state._asdict().items() if isinstance(value, int | float)},
        "entropy": agent._entropy,
        "batches": agent._batches_of_state,
        "environments": agent.environments.episode_counters() if agent.environments is not None else None,
    }


def agent_tensors(agent: Agent) -> dict[str, Tensor]:
    """All tensors of an agent as "group/name"."""
    groups: dict[str, Mapping[str, Any]] = {
        "policy": _policy_tensors(agent),
        **_state_tensors(agent.state),
        "generators": {name: generator.get_state() for name, generator in agent.generators.items()},
    }
    if agent.observation_normalizer is not None:
        groups["observation_normalizer"] = agent.observation_normalizer.state()
    if agent.reward_normalizer is not None:
        groups["reward_normalizer"] = agent.reward_normalizer.state()
    vec_normalize = agent.get_vec_normalize_env()
    if vec_normalize is not None:
        groups["vec_normalize"] = vec_normalize_state(vec_normalize)
    # Clones: the weights are views of θ, and safetensors refuses shared memory.
    return {
        f"{group}/{name}": torch.as_tensor(value).detach().clone()
        for group, entries in groups.items()
        for name, value in entries.items()
    }


def restore(
    cls: type[Agent], archive: Archive, env: Any, device: Any, custom_objects: dict[str, Any], kwargs: dict[str, Any]
) -> Any:
    """The agent of an archive; see `Agent.load`."""
    data = archive.data
    if data["algorithm"] != cls.__name__:
        raise ValueError(
            f"path: the file holds an agent of {data['algorithm']}, not of {cls.__name__}; use {data['algorithm']}.load"
        )
    given = {name: value for name, value in custom_objects.items() if name in data["hyperparameters"]} | kwargs
    arguments = {name: decode(name, value) for name, value in data["hyperparameters"].items() if name not in given} | given
    if unknown := kwargs.keys() - data["hyperparameters"].keys() - {"policy", "preset", "device"}:
        raise ValueError(f"load: {cls.__name__} has no argument {', '.join(sorted(unknown))}")
    if kwargs.get("policy_kwargs") is not None:
        _check_policy_kwargs(data, kwargs["policy_kwargs"])
    policy = arguments.pop("policy", None) or data["policy"]
    if policy not in cls.policy_aliases and isinstance(policy, str):
        raise ValueError(
            f"policy: the file was made with the class {policy}; pass it as load(..., policy={policy.split('.')[-1]})"
        )
    try:
        agent = cls(policy, None, **{**arguments, "device": device})  # type: ignore[call-arg]
        observation_space, action_space = _spaces(data)
        _check_size(agent, observation_space, action_space, archive)
        agent._setup_model(observation_space, action_space)
    except (TypeError, KeyError, AttributeError, AssertionError, RuntimeError, OverflowError) as error:
        raise ValueError(f"path: the file does not describe an agent of {cls.__name__}: {error!r}") from error
    try:
        _load_tensors(agent, archive)
    except (KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"path: the file's tensors do not fit the agent that it describes: {error}") from error
    agent.num_timesteps = data["num_timesteps"]
    if isinstance(data.get("entropy"), int):
        agent._entropy = data["entropy"]
    agent._batches, agent._batches_of_state = _batches(data), _batches(data)
    if env is not None:
        agent.set_env(env)
        try:
            _restore_environments(agent, archive)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"path: the file's environment counters make no sense: {error!r}") from error
    return agent


def _check_size(agent: Agent, observation_space: spaces.Space, action_space: spaces.Space, archive: Archive) -> None:
    """Refuse networks larger than the weights that the file brings, before anything of their size is allocated."""
    if agent.policy_class not in agent.policy_aliases:  # the caller's own class knows what it builds
        return
    stored = sum(tensor.numel() for tensor in archive.group("policy").values())
    encoded, action = ObservationEncoder(observation_space).space, ActionDecoder(action_space).space
    least = _least_of_towers(agent, encoded) if agent.memory is None else _least_of_memory(agent, encoded, action)
    extractors = [agent.policy_kwargs.get(f"{of}features_extractor_kwargs") or {} for of in ("", "critic_")]
    sizes = [noise_size(action) + least, *(x for kwargs in extractors for x in kwargs.values() if isinstance(x, int))]
    if (needed := max(sizes)) > stored:
        raise ValueError(f"path: the file describes networks of {needed} parameters or more, and brings {stored}")


def _least_of_towers(agent: Agent, encoded: spaces.Space) -> int:
    """Weights that the hidden layers of a memoryless policy cannot be without."""
    inputs, (actor, critic) = _inputs(agent, encoded), _net_arch(agent)
    return sum(_weights([inputs, *tower, 1]) for tower in (actor, critic))


def _least_of_memory(agent: Agent, encoded: spaces.Space, action: spaces.Space) -> int:
    """Weights that a policy with memory of H units cannot be without: its layers, and what leads into them."""
    kwargs = agent.policy_kwargs
    given = agent.memory_size if agent.memory_size is not None else kwargs.get("lstm_hidden_size", 1)
    layers, encoder = kwargs.get("n_lstm_layers", 1), kwargs.get("encoder_size", 0)
    sizes = {"units": given, "n_lstm_layers": layers, "encoder_size": encoder}
    if not all(isinstance(size, int) and size >= 0 for size in sizes.values()):
        raise ValueError(f"path: the file's sizes of memory make no sense: {sizes}")
    seen, valued = (_inputs(agent, space) for space in readable_spaces(encoded))
    valued = valued if kwargs.get("critic_features_extractor_class") is None else 0
    previous = encoded_size(action) if kwargs.get("previous_action", agent.memory == "s2pg") else 0
    actor, critic = _net_arch(agent)
    # whether heads read features beside memory
    stateful = kwargs.get("skip", not str(agent.policy_class).endswith("LstmPolicy"))
    into_kernel = [seen + previous, encoder, given] if encoder else [0 if stateful else seen + previous, given]
    return (
        given * given * layers
        + _weights(into_kernel)
        + _weights([given + (seen if stateful else 0), *actor, 1])
        + _weights([valued if stateful else given, *critic, 1])
    )


def _weights(widths: list[int]) -> int:
    """Of fully connected layers."""
    return sum(a * b for a, b in pairwise(widths))


def _inputs(agent: Agent, space: spaces.Space) -> int:
    """Numbers that a policy's first layer reads at least: 0 of images, and of what the caller's own extractor makes."""
    entries = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    if "features_extractor_class" in agent.policy_kwargs:
        return 0
    return sum(get_flattened_obs_dim(entry) for entry in entries if not is_image_space(entry))


def _net_arch(agent: Agent) -> tuple[list[int], list[int]]:
    """Hidden layers of actor and critic, where the file states them."""
    arch = agent.policy_kwargs.get("net_arch") or []
    pi, vf = (arch.get("pi", []), arch.get("vf", [])) if isinstance(arch, dict) else (arch, arch)
    return list(pi), list(vf)


def _spaces(data: dict[str, Any]) -> tuple[spaces.Space, spaces.Space]:
    try:
        return decode_space(data["observation_space"]), decode_space(data["action_space"])
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(f"path: the file's spaces make no sense: {error!r}") from error


def _batches(data: dict[str, Any]) -> dict[str, int]:
    """How many batches of episodes each stream has drawn; an older file does not say."""
    batches = data.get("batches", {})
    if not isinstance(batches, dict) or any(type(count) is not int or count < 0 for count in batches.values()):
        raise ValueError(f"path: the file's numbers of batches make no sense: {batches!r}")
    return dict(batches)


def _load_tensors(agent: Agent, archive: Archive) -> None:
    agent.policy.load_state_dict(_with_shared_extractors(agent, archive.group("policy")))
    agent._adopt_given(_restored_state(agent.state, archive, agent.device))
    for name, state in archive.group("generators").items():
        agent.generators[name].set_state(state)
    observations, rewards = archive.group("observation_normalizer"), archive.group("reward_normalizer")
    if agent.observation_normalizer is not None and observations:
        agent.observation_normalizer.load_state({key: value.numpy() for key, value in observations.items()})
    if agent.normalize_rewards and rewards:
        agent.reward_normalizer = agent._make_reward_normalizer(len(rewards["returns"]))
        agent.reward_normalizer.load_state({key: value.numpy() for key, value in rewards.items()})


def _policy_tensors(agent: Agent) -> dict[str, Tensor]:
    """The policy's weights; a features extractor that actor and critic share is there under one of its three names."""
    weights = agent.policy.state_dict()
    if not agent.policy.share_features_extractor:
        return weights
    return {name: value for name, value in weights.items() if not name.startswith(SHARED_EXTRACTORS)}


def _with_shared_extractors(agent: Agent, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_policy_tensors`."""
    if not agent.policy.share_features_extractor:
        return weights
    extractor = {name: value for name, value in weights.items() if name.startswith("features_extractor.")}
    return weights | {prefix[:3] + name: value for prefix in SHARED_EXTRACTORS for name, value in extractor.items()}


def _state_tensors(state: Any) -> dict[str, dict[str, Tensor]]:
    """The tensors of an algorithm's state by field, θ left out: the policy's weights are it."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in state._asdict().items():
        if isinstance(value, Mapping):
            groups[f"state.{name}"] = dict(value)
        elif isinstance(value, Tensor) and name != "theta":
            groups[f"state.{name}"] = {"value": value}
    return groups


def _restored_state(state: Any, archive: Archive, device: torch.device) -> Any:
    """`state` with every field but θ as the archive has it."""
    fields: dict[str, Any] = {}
    for name, value in state._asdict().items():
        # Counters of one entry, such as Adam's step, stay on the CPU, where they are read.
        stored = {key: t.to(device) if t.ndim else t for key, t in archive.group(f"state.{name}").items()}
        if isinstance(value, Mapping):
            fields[name] = stored
        elif isinstance(value, Tensor) and name != "theta" and (stored or value.numel()):
            fields[name] = stored["value"]  # a field that begins empty may be younger than the file
        elif isinstance(value, int | float):
            fields[name] = type(value)(archive.data["state"][name])
    return state._replace(**fields)


def _restore_environments(agent: Agent, archive: Archive) -> None:
    """Go on with the episode numbers of the file, and give its statistics to a `VecNormalize` that has counted nothing."""
    assert agent.environments is not None
    assert agent.collector is not None
    counters = archive.data.get("environments")
    if counters is not None and agent.environments.restore_episodes(counters):
        agent.collector.seed = None
    state, vec_normalize = archive.group("vec_normalize"), agent.get_vec_normalize_env()
    if state and vec_normalize is not None and vec_normalize.ret_rms.count < 1:
        load_vec_normalize_state(vec_normalize, {key: value.numpy() for key, value in state.items()})


def vec_normalize_state(env: Any) -> dict[str, Any]:
    """The running statistics of an SB3 `VecNormalize`, its returns under way included."""
    entries: dict[str, Any] = {"returns": np.array(env.returns)}
    for name, moments in _vec_normalize_moments(env).items():
        for field in ("mean", "var", "count"):
            entries[f"{name}:{field}"] = np.array(getattr(moments, field))
    return entries


def load_vec_normalize_state(env: Any, state: dict[str, Any]) -> None:
    """The inverse of `vec_normalize_state`; returns only where the number of environments is the same."""
    for name, moments in _vec_normalize_moments(env).items():
        moments.mean, moments.var = np.array(state[f"{name}:mean"]), np.array(state[f"{name}:var"])
        moments.count = float(state[f"{name}:count"])
    if state["returns"].shape == env.returns.shape:
        env.returns = np.array(state["returns"])


def _vec_normalize_moments(env: Any) -> dict[str, Any]:
    """SB3 makes statistics of observations only where it normalises them."""
    observations = env.obs_rms if env.norm_obs else {}
    by_key = observations if isinstance(observations, dict) else {"": observations}
    return {**{f"obs:{key}": moments for key, moments in by_key.items()}, "ret": env.ret_rms}


def _check_policy_kwargs(data: dict[str, Any], given: dict[str, Any]) -> None:
    stored = data["hyperparameters"].get("policy_kwargs") or {}
    mine = encode("policy_kwargs", given)
    if mine != stored:
        raise ValueError(f"policy_kwargs: the file was made with {stored}, got {mine}")
