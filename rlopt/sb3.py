"""Weights from and to Stable-Baselines3's own files."""

from __future__ import annotations

import io
import json
import math
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from rlopt.agents.base import Agent
from rlopt.agents.ppo import PPO
from rlopt.archive import COUNTERS, LARGEST_DOCUMENT, existing
from rlopt.envs.vector import make_envs
from rlopt.file_errors import as_file_errors
from rlopt.regular_file import open_regular
from rlopt.schedules import Constant, Linear, Schedule, as_schedule
from rlopt.stored_arguments import LARGEST_HYPERPARAMETER
from rlopt.stored_zip import stored_zip
from rlopt.torch_weights import read_weights

MOST_MEMBERS = 64

# Plain entries of SB3's `data` that are arguments of our PPO as they stand.
SCALARS = (
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "target_kl",
    "verbose",
    "seed",
)


def import_sb3(path: Any, env: Any, policy: Any = None, **kwargs: Any) -> PPO:
    """A PPO with the weights and plain hyper-parameters of a file that SB3's PPO saved. Nothing in it is unpickled.

    Of the pickle that tells where the weights are, only names, shapes and places are read (`rlopt.torch_weights`); whatever
    else SB3 stored as a pickle (spaces, schedules, the policy's class and arguments) is skipped and comes from the caller.

    Args:
        path: SB3's zip, with or without the suffix.
        env: environment or id, which gives the spaces.
        policy: the policy, where it is not the one that the observation space suggests.
        **kwargs: constructor arguments: `policy_kwargs`, if the file was made with any, schedules, device …

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of SB3's PPO, or weights that do not fit the networks.
    """
    source = existing(path)
    data, weights = _read(source)
    scalars = {name: data[name] for name in SCALARS if _is_number(data.get(name)) or data.get(name, "") is None}
    if _is_number(data.get("learning_rate")):
        scalars["learning_rate"] = data["learning_rate"]
    arguments = scalars | kwargs
    environments = make_envs(env, arguments.pop("n_envs", 1), arguments.pop("backend", "auto"), arguments.get("seed"))
    if policy is None:
        policy = _suggested_policy(weights, environments.encoder.space)
    agent = PPO(policy, environments, **arguments)
    with as_file_errors(f"the weights of {source} do not fit; were they made with other policy_kwargs?"):
        agent.policy.load_state_dict(weights)
    steps = data.get("num_timesteps", 0)
    agent.num_timesteps = steps if type(steps) is int and 0 <= steps < COUNTERS else 0
    return agent


def export_sb3(agent: Agent, path: Any) -> Path:
    """Write a file that `stable_baselines3.PPO.load` reads: weights, plain hyper-parameters, spaces.

    SB3 itself writes it. An agent's own normalisation has no place in such a file; its statistics are written beside
    it as SB3's `VecNormalize`, in `<name>_vecnormalize.pkl`. (SB3 unpickles both when it loads them.)

    Returns:
        The path of the file.

    Raises:
        ValueError: a space that SB3 does not have, a squashed Gaussian without gSDE, an agent other than PPO.
    """
    if not isinstance(agent, PPO):
        raise ValueError(f"export_sb3: only PPO has a counterpart in Stable-Baselines3, got {type(agent).__name__}")
    if agent.memory is not None:
        raise ValueError(f"export_sb3: SB3's PPO has no memory, the agent's is {agent.memory!r}")
    if agent.policy.squash_output:
        raise ValueError("export_sb3: SB3 has no squashed Gaussian without gSDE")
    if not _readable(agent.observation_space, agent.encoder.space):
        raise ValueError(f"export_sb3: SB3 cannot read observations of {agent.observation_space}")
    venv = DummyVecEnv([lambda: _Spaces(agent.encoder.space, agent.action_space)] * agent.n_envs)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # SB3's advice on batch sizes is not for this agent's user
        model = _sb3_model(agent, venv)
    model.seed = agent.seed
    model.policy.load_state_dict({key: value.cpu() for key, value in agent.policy.state_dict().items()})
    model.num_timesteps = agent.num_timesteps
    target = Path(path) if Path(path).suffix else Path(path).with_suffix(".zip")
    target.parent.mkdir(parents=True, exist_ok=True)
    model.save(target)
    if agent.observation_normalizer is not None or agent.reward_normalizer is not None:
        _vec_normalize(agent, venv).save(str(target.with_name(f"{target.stem}_vecnormalize.pkl")))
    return target


def _sb3_model(agent: PPO, venv: DummyVecEnv) -> stable_baselines3.PPO:
    """SB3's own agent with the same arguments, untrained."""
    value_clip = agent.clip_range_vf
    return stable_baselines3.PPO(
        type(agent.policy),
        venv,
        learning_rate=_sb3_schedule("learning_rate", agent.lr_schedule),
        clip_range=_sb3_schedule("clip_range", as_schedule("clip_range", agent.clip_range)),
        clip_range_vf=None if value_clip is None else _sb3_schedule("clip_range_vf", as_schedule("clip_range_vf", value_clip)),
        policy_kwargs=agent.policy_kwargs,
        device="cpu",
        **{name: getattr(agent, name) for name in SCALARS if name != "seed"},  # which would seed everybody's generators
    )


class _Spaces(gym.Env[Any, Any]):
    """An environment that has spaces and nothing else."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space


def _read(source: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with as_file_errors(f"{source} is not a whole file of Stable-Baselines3"), open_regular("path", source) as file:
        with stored_zip(file, MOST_MEMBERS) as archive:
            sizes = {info.filename: info.file_size for info in archive.infolist()}
            if not {"data", "policy.pth"} <= sizes.keys():
                raise ValueError(f"path: {source} is a zip, but not one of Stable-Baselines3")
            if sizes["data"] > LARGEST_DOCUMENT:
                raise ValueError(f"its data have {sizes['data']:,} bytes, more than {LARGEST_DOCUMENT:,}")
            data = json.loads(archive.read("data"))
            stored = io.BytesIO(archive.read("policy.pth"))
        weights = read_weights(stored)
    if not isinstance(data, dict) or not {"n_epochs", "gae_lambda"} <= data.keys():
        raise ValueError(f"path: {source} is not a file of Stable-Baselines3's PPO")
    if not any(name.startswith("action_net.") for name in weights):
        raise ValueError(f"path: the weights in {source} are not those of an actor-critic policy")
    if not all(weight.is_floating_point() and bool(weight.isfinite().all()) for weight in weights.values()):
        raise ValueError(f"path: the weights in {source} are not all finite numbers")
    return data, weights


def _is_number(value: Any) -> bool:
    """Whether an entry can be a hyper-parameter; what SB3 pickled is none."""
    return isinstance(value, int | float) and math.isfinite(value) and abs(value) < LARGEST_HYPERPARAMETER


def _suggested_policy(weights: dict[str, Any], space: spaces.Space) -> str:
    if isinstance(space, spaces.Dict):
        return "MultiInputPolicy"
    return "CnnPolicy" if any(name.startswith("features_extractor.cnn.") for name in weights) else "MlpPolicy"


def _readable(raw: spaces.Space, encoded: spaces.Space) -> bool:
    """Whether SB3 reads observations of `raw` with weights made for `encoded`; it knows channel-last images itself."""
    if isinstance(raw, spaces.Dict) and isinstance(encoded, spaces.Dict):
        return all(key in encoded.spaces and _readable(sub, encoded[key]) for key, sub in raw.spaces.items())
    return isinstance(raw, spaces.Box) or raw == encoded


def _sb3_schedule(name: str, schedule: Schedule) -> Any:
    if isinstance(schedule, Constant):
        return schedule.value
    if isinstance(schedule, Linear):
        return LinearSchedule(schedule.start, schedule.end, schedule.end_fraction)
    raise ValueError(f"{name}: {schedule} is a function; use rlopt.Linear or rlopt.Constant")


def _vec_normalize(agent: PPO, venv: DummyVecEnv) -> VecNormalize:
    observations, rewards = agent.observation_normalizer, agent.reward_normalizer
    env = VecNormalize(
        venv,
        norm_obs=observations is not None,
        norm_reward=rewards is not None,
        clip_obs=agent.clip_observations,
        clip_reward=agent.clip_rewards,
        gamma=agent.gamma,
        norm_obs_keys=[key for key in observations.moments if key] or None if observations is not None else None,
    )
    if observations is not None:
        env.obs_rms = observations.moments if isinstance(agent.encoder.space, spaces.Dict) else observations.moments[""]  # type: ignore[assignment]
    if rewards is not None:
        env.ret_rms = rewards.moments
    return env
