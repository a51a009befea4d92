"""Agents to and from files: what is kept, and how an agent is made of it again."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from torch import Tensor

from rlopt import archive as files
from rlopt.archive import FORMAT, Archive
from rlopt.blueprint import check_networks, check_weights, stored_weights, with_shared_extractors
from rlopt.envs.vector import can_be_copied
from rlopt.file_errors import as_file_errors, one_line, shortened
from rlopt.plain_data import decode, decode_space, encode, encode_space, policy_name
from rlopt.stored_arguments import check_stored_arguments
from rlopt.tensor_checks import (
    check_like,
    check_moments,
    check_statistics,
    reward_statistics_like,
    set_generator,
)
from rlopt.version import __version__

if TYPE_CHECKING:
    from rlopt.agents.base import Agent

# Groups of tensors that an agent computes with: what is not finite there would spread without a word.
FINITE = ("policy", "state.moments", "observation_normalizer", "reward_normalizer", "vec_normalize")
NORMALIZERS = ("observation_normalizer", "reward_normalizer")
MOST_ENVS = 4096  # that a file may have made


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
        "step_scale": agent.step_scale,
        "batches": agent._batches_of_state,
        "environments": agent.environments.episode_counters() if agent.environments is not None else None,
    }


def agent_tensors(agent: Agent) -> dict[str, Tensor]:
    """All tensors of an agent as "group/name"."""
    groups: dict[str, Mapping[str, Any]] = {
        "policy": stored_weights(agent.policy),
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
        named = one_line(data["algorithm"])
        raise ValueError(f"path: the file holds an agent of {named}, not of {cls.__name__}; use {named}.load")
    archive.check_finite(FINITE)
    with as_file_errors(f"the file does not describe an agent of {cls.__name__}", arguments=True):
        given = {name: value for name, value in custom_objects.items() if name in data["hyperparameters"]} | kwargs
        stored = {name: decode(name, value) for name, value in data["hyperparameters"].items() if name not in given}
        check_stored_arguments(cls, stored)
        arguments = stored | given
        if unknown := kwargs.keys() - data["hyperparameters"].keys() - {"policy", "preset", "device"}:
            raise ValueError(f"load: {cls.__name__} has no argument {', '.join(sorted(unknown))}")
        if kwargs.get("policy_kwargs") is not None:
            _check_policy_kwargs(data, kwargs["policy_kwargs"])
        policy = arguments.pop("policy", None) or data["policy"]
        if isinstance(policy, str) and policy not in cls.policy_aliases:
            named = one_line(policy)
            raise ValueError(
                f"policy: the file was made with the class {named}; pass it as load(..., policy={named.split('.')[-1]})"
            )
        agent = cls(policy, None, **{**arguments, "device": device})  # type: ignore[call-arg]
        if can_be_copied(env) and "n_envs" not in given and agent.n_envs > MOST_ENVS:
            raise ValueError(f"n_envs: the file asks for {agent.n_envs} environments; to have them, pass n_envs=... to load")
        observation_space, action_space = _spaces(data)
        # The caller's own classes know what they build.
        if isinstance(policy, str) and "policy_kwargs" not in given:
            check_networks(agent, observation_space, action_space, archive.group("policy"))
        agent._setup_model(observation_space, action_space)
    load_into(agent, archive)
    if env is not None:
        agent.set_env(env)
        with as_file_errors("the file's environment counters make no sense"):
            _restore_environments(agent, archive)
    return agent


def load_into(agent: Agent, archive: Archive) -> None:
    """Put an agent of the same make where the archive's was; its environments stay where they are.

    Raises:
        ValueError: the tensors or counters do not fit it.
    """
    data = archive.data
    with as_file_errors("the file's tensors do not fit the agent that it describes"):
        _load_tensors(agent, archive)
    agent.num_timesteps = data["num_timesteps"]
    if isinstance(data.get("entropy"), int) and data["entropy"] >= 0:
        agent._entropy = data["entropy"]
    agent.step_scale = data.get("step_scale", 1.0)
    if not (isinstance(agent.step_scale, float) and 0.0 < agent.step_scale <= 1.0):
        raise ValueError(f"path: the file's scale of steps makes no sense: {agent.step_scale!r}")
    agent._batches.clear()  # the collector's too
    agent._batches.update(_batches(data))
    agent._batches_of_state = _batches(data)
    if agent.collector is not None:
        agent.collector.entropy = agent._entropy


def _spaces(data: dict[str, Any]) -> tuple[spaces.Space, spaces.Space]:
    try:
        return decode_space(data["observation_space"]), decode_space(data["action_space"])
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(f"path: the file's spaces make no sense: {error}") from error


def _batches(data: dict[str, Any]) -> dict[str, int]:
    """How many batches of episodes each stream has drawn; an older file does not say."""
    batches = data.get("batches", {})
    if not isinstance(batches, dict) or any(type(count) is not int or count < 0 for count in batches.values()):
        raise ValueError(f"path: the file's numbers of batches make no sense: {shortened(batches)}")
    return dict(batches)


def _load_tensors(agent: Agent, archive: Archive) -> None:
    check_weights(agent.policy, archive.group("policy"))
    check_moments(archive.group("state.moments"), agent.state.theta)
    agent.policy.load_state_dict(with_shared_extractors(agent.policy, archive.group("policy")))
    agent._adopt_given(_restored_state(agent.state, archive, agent.device))
    for name, state in archive.group("generators").items():
        set_generator(agent.generators[name], state)
    observations, rewards = ({key: value.numpy() for key, value in archive.group(name).items()} for name in NORMALIZERS)
    if agent.observation_normalizer is not None and observations:
        check_statistics(observations, agent.observation_normalizer.state())
        agent.observation_normalizer.load_state(observations)
    if agent.normalize_rewards and rewards:
        check_statistics(rewards, reward_statistics_like(rewards))
        if agent.reward_normalizer is None:
            agent.reward_normalizer = agent._make_reward_normalizer(len(rewards["returns"]))
        agent.reward_normalizer.load_state(rewards)


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
            check_like(f"state.{name}", value, stored["value"])
            fields[name] = stored["value"]  # a field that begins empty may be younger than the file
        elif isinstance(value, int | float):
            fields[name] = _stored_number(name, archive.data["state"][name], type(value))
    return state._replace(**fields)


def _stored_number(name: str, value: Any, kind: type) -> Any:
    """A counter, or another number of an algorithm's state."""
    if type(value) is not kind or (isinstance(value, int) and value < 0):
        raise ValueError(f"state.{name}: expected a number of type {kind.__name__}, got {shortened(value)}")
    return value


def _restore_environments(agent: Agent, archive: Archive) -> None:
    """Go on with the episode numbers of the file, and give its statistics to a `VecNormalize` that has counted nothing."""
    assert agent.environments is not None
    assert agent.collector is not None
    counters = archive.data.get("environments")
    if counters is not None:
        # Environments of every kind have these two; a negative one would be noticed when an episode begins.
        numbers = [counters["run_seed"], *counters["episodes"]]
        if not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"{shortened(counters)} are no seed and numbers of episodes")
    if counters is not None and agent.environments.restore_episodes(counters):
        agent.collector.seed = None
    state, vec_normalize = archive.group("vec_normalize"), agent.get_vec_normalize_env()
    if state and vec_normalize is not None and vec_normalize.ret_rms.count < 1:
        statistics = {key: value.numpy() for key, value in state.items()}
        expected = vec_normalize_state(vec_normalize)
        check_statistics(statistics, {key: value for key, value in expected.items() if key != "returns"})
        load_vec_normalize_state(vec_normalize, statistics)


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
        raise ValueError(f"policy_kwargs: the file was made with {shortened(stored)}, got {shortened(mine)}")
