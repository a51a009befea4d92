"""Files: one zip of safetensors and JSON. Opening one can give a wrong agent, or an error, but can never run code.

    rlopt.json             algorithm, format and library versions, hyper-parameters, spaces, counters
    tensors.safetensors    weights, optimiser, normalisers, generators; names are "group/name"

The zip is stored, not deflated: what it unpacks to is no larger than the file.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import gymnasium
import numpy as np
import safetensors
import safetensors.torch
import stable_baselines3
import torch
from gymnasium import spaces
from torch import Tensor, nn

from rlopt.policies.actor_critic import POLICY_ALIASES
from rlopt.schedules import Constant, Custom, Linear, schedule_from_data, schedule_to_data
from rlopt.version import __version__

if TYPE_CHECKING:
    from rlopt.agents.base import Agent

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
# A class in a file is a name looked up in these modules, which are imported already; never an import.
CLASS_MODULES = {
    "torch.nn": torch.nn,
    "torch.optim": torch.optim,
    "stable_baselines3.common.torch_layers": stable_baselines3.common.torch_layers,
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
    document = json.dumps(describe(agent), indent=1).encode()
    tensors = safetensors.torch.save({key: value.contiguous().cpu() for key, value in agent_tensors(agent).items()})
    if hasattr(path, "write"):
        _write_zip(path, document, tensors)
        return
    target = Path(path)
    if not target.suffix:
        target = target.with_suffix(".zip")
    target.parent.mkdir(parents=True, exist_ok=True)
    # Written beside the target and renamed: a crash leaves the old file, never half of the new one.
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write_zip(file, document, tensors)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read(path: Any) -> Archive:
    """A file's content.

    Raises:
        FileNotFoundError: no such file, with or without `.zip`.
        ValueError: not a file of rlopt, a damaged one, or one of a later format.
    """
    if hasattr(path, "read"):
        return _read_zip(path, getattr(path, "name", "the file"))
    source = Path(path)
    if not source.is_file() and source.with_name(f"{source.name}.zip").is_file():
        source = source.with_name(f"{source.name}.zip")
    if not source.is_file():
        raise FileNotFoundError(f"path: there is no file {source} (nor with .zip)")
    with source.open("rb") as file:
        return _read_zip(file, str(source))


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
        "environments": _episode_counters(agent),
    }


def agent_tensors(agent: Agent) -> dict[str, Tensor]:
    """All tensors of an agent as "group/name"."""
    groups: dict[str, Mapping[str, Any]] = {
        "policy": agent.policy.state_dict(),
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
    # Clones: SB3's policies hold one features extractor under three names, and safetensors refuses shared memory.
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
    if policy not in POLICY_ALIASES and isinstance(policy, str):
        raise ValueError(
            f"policy: the file was made with the class {policy}; pass it as load(..., policy={policy.split('.')[-1]})"
        )
    try:
        agent = cls(policy, None, **{**arguments, "device": device})  # type: ignore[call-arg]
        agent._setup_model(*_spaces(data))
    except (TypeError, KeyError, AttributeError, AssertionError, RuntimeError, OverflowError) as error:
        raise ValueError(f"path: the file does not describe an agent of {cls.__name__}: {error!r}") from error
    try:
        _load_tensors(agent, archive)
    except (KeyError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"path: the file's tensors do not fit the agent that it describes: {error}") from error
    agent.num_timesteps = data["num_timesteps"]
    if env is not None:
        agent.set_env(env)
        _restore_environments(agent, archive)
    return agent


def _spaces(data: dict[str, Any]) -> tuple[spaces.Space, spaces.Space]:
    try:
        return decode_space(data["observation_space"]), decode_space(data["action_space"])
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise ValueError(f"path: the file's spaces make no sense: {error!r}") from error


def _load_tensors(agent: Agent, archive: Archive) -> None:
    agent.policy.load_state_dict(archive.group("policy"))
    agent._adopt_given(_restored_state(agent.state, archive, agent.device))
    for name, state in archive.group("generators").items():
        agent.generators[name].set_state(state)
    if agent.observation_normalizer is not None:
        agent.observation_normalizer.load_state({k: v.numpy() for k, v in archive.group("observation_normalizer").items()})
    if rewards := archive.group("reward_normalizer"):
        agent.reward_normalizer = agent._make_reward_normalizer(len(rewards["returns"]))
        agent.reward_normalizer.load_state({k: v.numpy() for k, v in rewards.items()})


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
    fields: dict[str, Any] = {name: type(getattr(state, name))(value) for name, value in archive.data["state"].items()}
    for name, value in state._asdict().items():
        stored = {key: tensor.to(device) for key, tensor in archive.group(f"state.{name}").items()}
        if isinstance(value, Mapping):
            fields[name] = stored
        elif isinstance(value, Tensor) and name != "theta":
            fields[name] = stored["value"]
    return state._replace(**fields)


def _restore_environments(agent: Agent, archive: Archive) -> None:
    """Go on with the episode numbers of the file, and with its `VecNormalize` statistics."""
    counters = archive.data.get("environments")
    environments = agent.environments
    if (
        counters
        and environments is not None
        and hasattr(environments, "episodes")
        and len(counters["episodes"]) == agent.n_envs
    ):
        environments.run_seed = int(counters["run_seed"])  # type: ignore[attr-defined]
        environments.episodes[:] = counters["episodes"]
        assert agent.collector is not None
        agent.collector.seed = None
    state = archive.group("vec_normalize")
    vec_normalize = agent.get_vec_normalize_env()
    if state and vec_normalize is not None:
        load_vec_normalize_state(vec_normalize, {key: value.numpy() for key, value in state.items()})


def _episode_counters(agent: Agent) -> dict[str, Any] | None:
    environments = agent.environments
    if environments is None or not hasattr(environments, "episodes"):
        return None
    return {"run_seed": environments.run_seed, "episodes": environments.episodes.tolist()}  # type: ignore[attr-defined]


def vec_normalize_state(env: Any) -> dict[str, Any]:
    """The running statistics of an SB3 `VecNormalize`, its returns under way included."""
    entries: dict[str, Any] = {"returns": np.array(env.returns)}
    observations = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    for name, moments in {**{f"obs:{key}": value for key, value in observations.items()}, "ret": env.ret_rms}.items():
        entries |= {
            f"{name}:mean": np.array(moments.mean),
            f"{name}:var": np.array(moments.var),
            f"{name}:count": np.array(moments.count),
        }
    return entries


def load_vec_normalize_state(env: Any, state: dict[str, Any]) -> None:
    """The inverse of `vec_normalize_state`; returns only where the number of environments is the same."""
    observations = env.obs_rms if isinstance(env.obs_rms, dict) else {"": env.obs_rms}
    for name, moments in {**{f"obs:{key}": value for key, value in observations.items()}, "ret": env.ret_rms}.items():
        moments.mean, moments.var = np.array(state[f"{name}:mean"]), np.array(state[f"{name}:var"])
        moments.count = float(state[f"{name}:count"])
    if state["returns"].shape == env.returns.shape:
        env.returns = np.array(state["returns"])


# ---------------------------------------------------------------------- values as data


def encode(name: str, value: Any) -> Any:
    """A hyper-parameter as JSON can hold it.

    Raises:
        ValueError: a function, a class that is not torch's or SB3's, or another object.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Constant | Linear | Custom):
        return schedule_to_data(name, value)
    if isinstance(value, np.integer | np.floating | np.bool_):
        return value.item()
    if isinstance(value, list | tuple):
        return [encode(name, item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): encode(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, type):
        return {"class": f"{value.__module__}.{value.__qualname__}"} | (
            {"known": known} if (known := known_class(value)) else {}
        )
    raise ValueError(
        f"{name}: {value!r} cannot be saved; expected numbers, texts, lists, dictionaries, classes, "
        "rlopt.Linear or rlopt.Constant"
    )


def decode(name: str, value: Any) -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError: a class that is not torch's or SB3's: it must be given to `load` by the caller.
    """
    if isinstance(value, list):
        return [decode(name, item) for item in value]
    if isinstance(value, dict) and "schedule" in value:
        try:
            return schedule_from_data(value)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name}: the file holds no schedule of rlopt: {value!r}") from error
    if isinstance(value, dict) and "class" in value:
        module, _, attribute = str(value.get("known", "")).rpartition(".")
        found = getattr(CLASS_MODULES.get(module), attribute, None)
        if not isinstance(found, type):
            raise ValueError(
                f"{name}: the file was made with the class {value['class']}; pass {name.split('[')[0]}=... to load"
            )
        return found
    if isinstance(value, dict):
        return {key: decode(f"{name}[{key!r}]", item) for key, item in value.items()}
    return value


def known_class(value: type) -> str | None:
    """The name under which a class of torch or SB3 can be looked up, if it has one."""
    for name, module in CLASS_MODULES.items():
        if getattr(module, value.__name__, None) is value and issubclass(value, nn.Module | torch.optim.Optimizer):
            return f"{name}.{value.__name__}"
    return None


def policy_name(policy: Any) -> str:
    """The alias, or the full name of a custom class."""
    return policy if isinstance(policy, str) else f"{policy.__module__}.{policy.__qualname__}"


def encode_space(space: spaces.Space) -> dict[str, Any]:
    """A Gymnasium space as data."""
    if isinstance(space, spaces.Box):
        bounds = {name: _compact(getattr(space, name)) for name in ("low", "high")}
        return {"space": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"space": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
    if isinstance(space, spaces.MultiBinary):
        return {"space": "MultiBinary", "shape": list(space.shape)}
    if isinstance(space, spaces.Dict):
        return {"space": "Dict", "spaces": [[key, encode_space(sub)] for key, sub in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"space": "Tuple", "spaces": [encode_space(sub) for sub in space.spaces]}
    raise ValueError(f"space: {space} cannot be saved")


def decode_space(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `encode_space`."""
    kind = data.get("space")
    if kind == "Box":
        shape, dtype = tuple(data["shape"]), np.dtype(data["dtype"])
        low, high = (np.broadcast_to(np.asarray(data[name], dtype), shape) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Discrete":
        return spaces.Discrete(int(data["n"]), start=int(data["start"]))
    if kind == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(data["nvec"]), start=np.array(data["start"]))
    if kind == "MultiBinary":
        shape = data["shape"]
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "Dict":
        return spaces.Dict({key: decode_space(sub) for key, sub in data["spaces"]})
    if kind == "Tuple":
        return spaces.Tuple([decode_space(sub) for sub in data["spaces"]])
    raise ValueError(f"unknown space in file: {kind!r}")


def _compact(bound: Any) -> Any:
    """One number where all entries agree, a nested list otherwise."""
    flat = bound.reshape(-1)
    return flat[0].item() if flat.size and (flat == flat[0]).all() else bound.tolist()


def _check_policy_kwargs(data: dict[str, Any], given: dict[str, Any]) -> None:
    stored = data["hyperparameters"].get("policy_kwargs") or {}
    mine = encode("policy_kwargs", given)
    if mine != stored:
        raise ValueError(f"policy_kwargs: the file was made with {stored}, got {mine}")


# ---------------------------------------------------------------------- the zip itself


def _write_zip(file: BinaryIO, document: bytes, tensors: bytes) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(DOCUMENT, document)
        archive.writestr(TENSORS, tensors)


def _read_zip(file: BinaryIO, name: str) -> Archive:
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
    if missing := FIELDS.keys() - data.keys():
        raise ValueError(f"path: {name} lacks {', '.join(sorted(missing))}")
    for field, kind in FIELDS.items():
        if not isinstance(data[field], kind):
            raise ValueError(f"path: {name} has {data[field]!r} where {field} should be")
    try:
        return Archive(data, safetensors.torch.load(blob))
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"path: {name} has damaged tensors: {error}") from error
