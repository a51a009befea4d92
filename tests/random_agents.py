"""Hypothesis strategies: an environment of any space and an agent with any arguments that fit it."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from hypothesis import strategies as st

from rlopt import ALGORITHMS, Agent, Linear, Power
from rlopt.objectives import Chebyshev, SmoothChebyshev
from tests.random_envs import CONTAINERS, OWN, RandomEnv, World

Strategy = st.SearchStrategy

EPISODIC = ("reinforce", "npgigt", "harpg", "n-harpg", "stormpg", "srvrpg", "nvrpg", "mopg", "mo-tsivr-pg")
FLOATS = (np.float32, np.float32, np.float64, np.float16)
INTEGERS = (np.int8, np.uint8, np.int32, np.int64)
SHAPES = ((), (1,), (2,), (3,), (2, 2), (1, 2, 1))
KEYS = ("position", "observation", "a b", "Ω", "critic")
IMAGES = ((36, 36, 1), (36, 40, 3), (1, 36, 36))


@dataclass(frozen=True)
class Case:
    """An agent and what it is trained in, as a value."""

    algorithm: str
    policy: str
    world: World
    arguments: dict[str, Any]
    seed: int = 0

    @property
    def kind(self) -> type[Agent]:
        return ALGORITHMS[self.algorithm]

    @property
    def by_groups(self) -> bool:
        """Whether episodes come in groups that share their start."""
        return self.arguments.get("mode", "advantage") != "advantage"

    @property
    def by_episodes(self) -> bool:
        """Whether the agent learns from whole episodes."""
        return self.algorithm in EPISODIC or self.by_groups

    def made(self) -> tuple[Agent, list[RandomEnv]]:
        """The agent and its environments, whose logs are empty."""
        env, envs = self.world.made()
        copies = {"n_envs": self.world.num_envs} if self.world.container == "copies" else {}
        agent = self.kind(self.policy, env, **{"seed": self.seed, "device": "cpu", **copies, **self.arguments})
        for single in envs:
            single.log.clear()
        return agent, envs

    def changed(self, **arguments: Any) -> Case:
        """The same with other arguments."""
        return replace(self, arguments={**self.arguments, **arguments})

    def loaded(self, file: io.BytesIO) -> tuple[Agent, list[RandomEnv]]:
        """The agent of a file, in environments of its own."""
        env, envs = self.world.made()
        file.seek(0)
        return self.kind.load(file, env=env, device="cpu"), envs


# ---------------------------------------------------------------------------------------------------- spaces


def one_of(*values: Any) -> Strategy:
    """One of these, the first ones being the simplest."""
    return st.sampled_from(values)


@st.composite
def boxes(draw: Any, dtypes: tuple[Any, ...] = FLOATS + INTEGERS, bounded: bool | None = None) -> spaces.Box:
    """Boxes with no, half or all bounds, each entry with its own."""
    dtype, shape = draw(one_of(*dtypes)), draw(one_of(*SHAPES))
    size = int(np.prod(shape))
    if np.issubdtype(dtype, np.integer):
        edges = ((0, 1), (-3, 4), (0, 100), (np.iinfo(dtype).min, np.iinfo(dtype).max))
        pairs = [(max(low, int(np.iinfo(dtype).min)), high) for low, high in edges]
    else:
        pairs = [(-1.0, 1.0), (-0.5, 1.5), (0.0, 0.0), (-3e4, 3e4)]
        pairs += [] if bounded else [(-np.inf, np.inf), (0.0, np.inf), (-np.inf, 2.0)]
        pairs += [] if bounded or dtype is not np.float64 else [(-1e300, 1e300)]
    chosen = [draw(one_of(*pairs))] * size if draw(st.booleans()) else [draw(one_of(*pairs)) for _ in range(size)]
    low, high = (np.array(side, dtype).reshape(shape) for side in zip(*chosen))
    return spaces.Box(low, high, shape, dtype)


def discretes() -> Strategy:
    """Choices of one and more, from any start."""
    return st.builds(
        lambda n, start, dtype: spaces.Discrete(n, start=dtype(start), dtype=dtype),
        one_of(2, 1, 3, 6),
        one_of(0, 1, -2),
        one_of(np.int64, np.int32),
    )


@st.composite
def multi_discretes(draw: Any) -> spaces.MultiDiscrete:
    """Several choices in one or two axes, from any starts."""
    shape = draw(one_of((1,), (2,), (3,), (2, 2)))
    size = int(np.prod(shape))
    nvec = np.array([draw(one_of(2, 3, 1)) for _ in range(size)]).reshape(shape)
    start = np.array([draw(one_of(0, -1, 5)) for _ in range(size)]).reshape(shape)
    return spaces.MultiDiscrete(nvec, start=start, dtype=draw(one_of(np.int64, np.int32)))


def multi_binaries() -> Strategy:
    return st.builds(spaces.MultiBinary, one_of(2, 1, 3, (2, 2)))


def images() -> Strategy:
    """Images, channels last or first, as large as SB3's convolutions need them."""
    return st.builds(lambda shape: spaces.Box(0, 255, shape, np.uint8), one_of(*IMAGES))


def leaves(*others: Strategy) -> Strategy:
    return st.one_of(boxes(), discretes(), multi_discretes(), multi_binaries(), *others)


def dict_space(entries: dict[str, spaces.Space]) -> spaces.Dict:
    """A Dict of these, in which an actor with memory finds something to read: "critic" is the critic's alone."""
    return spaces.Dict({"position": entries["critic"]} if entries.keys() == {"critic"} else entries)


def nested(depth: int = 2) -> Strategy:
    """Dict and Tuple of leaves and of one another."""
    inside = leaves() if depth == 1 else st.one_of(leaves(), leaves(), nested(depth - 1))
    return st.one_of(
        st.dictionaries(one_of(*KEYS), inside, min_size=1, max_size=3).map(dict_space),
        st.lists(inside, min_size=1, max_size=3).map(spaces.Tuple),
    )


def observation_spaces() -> Strategy:
    return st.one_of(leaves(images()), leaves(), nested())


def action_spaces() -> Strategy:
    return leaves()


# ---------------------------------------------------------------------------------------------------- arguments


@st.composite
def proximal_arguments(draw: Any, num_envs: int) -> dict[str, Any]:
    """What agents of rollouts of fixed length take; minibatches of any size, that divides the rollout or does not."""
    normalize = draw(st.booleans())
    n_steps = draw(st.integers(2 if normalize and num_envs == 1 else 1, 8))
    return {
        "n_steps": n_steps,
        "batch_size": draw(st.integers(1 + normalize, n_steps * num_envs + 3)),
        "n_epochs": draw(one_of(1, 2)),
        "learning_rate": draw(one_of(3e-4, 0.01, "linear:1e-3", Linear(1e-2, 1e-3))),
        "gamma": draw(one_of(0.99, 0.0, 0.5, 1.0)),
        "gae_lambda": draw(one_of(0.95, 0.0, 1.0)),
        "normalize_advantage": normalize,
        "ent_coef": draw(one_of(0.0, 0.01)),
        "vf_coef": draw(one_of(0.5, 1.0)),
        "max_grad_norm": draw(one_of(0.5, 10.0)),
        "target_kl": draw(one_of(None, 0.01)),
    }


@st.composite
def ppo_arguments(draw: Any, world: World) -> dict[str, Any]:
    num_rewards = world.num_rewards
    return draw(proximal_arguments(world.num_envs)) | {
        "clip_range": draw(one_of(0.2, "linear:0.2")),
        "clip_range_vf": draw(one_of(None, 0.2)),
        "value_clip": draw(one_of("prediction", "maximum")),
        "bootstrap_truncation": draw(st.booleans()),
        "schedule_from": draw(one_of("rollout_end", "rollout_start")),
        **({"utility": draw(utilities(num_rewards))} if num_rewards > 1 else {}),
    }


@st.composite
def s2pg_arguments(draw: Any, world: World) -> dict[str, Any]:
    return draw(proximal_arguments(world.num_envs)) | {
        "clip_range": draw(one_of(0.2, "linear:0.2")),
        "memory_clip_range": draw(one_of(None, 0.1)),
        "ratio": draw(one_of("factor", "joint", "action")),
        "memory_size": draw(one_of(2, 1, 5)),
    }


@st.composite
def recurrent_arguments(draw: Any, world: World) -> dict[str, Any]:
    arguments = draw(proximal_arguments(world.num_envs))
    n_steps = arguments["n_steps"]
    chunk = draw(one_of(*(length for length in range(1, n_steps + 1) if n_steps % length == 0)))
    num_chunks = n_steps // chunk * world.num_envs
    least = 2 if chunk == 1 and arguments["normalize_advantage"] else 1
    return arguments | {
        "chunk_length": None if chunk == n_steps and draw(st.booleans()) else chunk,
        "batch_size": chunk * draw(st.integers(least, max(num_chunks, least))),
        "refresh_states": draw(st.booleans()),
        "clip_range_vf": draw(one_of(None, 0.2)),
        "memory_size": draw(one_of(2, 1, 5)),
    }


@st.composite
def rebel_arguments(draw: Any, world: World, mode: str, group_size: int) -> dict[str, Any]:
    arguments = draw(proximal_arguments(world.num_envs)) | {"mode": mode, "eta": draw(one_of(None, 0.5))}
    arguments["eta_mode"] = draw(one_of(None, "fixed", "std", "kl_target"))
    if mode == "advantage":
        alone = arguments["n_steps"] * world.num_envs == 1  # one advantage has no deviation
        return arguments | ({"eta_mode": "fixed"} if alone else {})
    del arguments["n_steps"], arguments["batch_size"]
    return arguments | {
        "group_size": group_size,
        "num_groups": draw(one_of(2, 1, 3)),
        "horizon": draw(one_of(None, 3)),
        **({"depths": draw(one_of(None, 2, [0.5, 0.5])), "gamma": draw(one_of(0.9, 0.5))} if mode == "branched" else {}),
    }


@st.composite
def episodic_arguments(draw: Any, algorithm: str, world: World) -> dict[str, Any]:
    """What agents of whole episodes take, and what each of them has of its own."""
    linear = [] if is_image(world.observation) else ["linear"]  # which would fit a weight for every pixel
    baseline = draw(one_of("leave_one_out", "time", "none", *linear))
    least = 2 if baseline == "leave_one_out" else 1
    arguments: dict[str, Any] = {
        "num_episodes": draw(st.integers(least, 5)),
        "gamma": draw(one_of(0.99, 0.0, 0.5, 1.0)),
        "baseline": baseline,
        "horizon": draw(one_of(None, 1, 3)),
        "step_size": draw(one_of(0.01, 0.1, "power:0.1:1/2", Power(0.1, 1.0))),
    }
    if algorithm in ("reinforce", "npgigt", "harpg", "n-harpg", "nvrpg", "stormpg"):
        arguments["momentum"] = draw(one_of("power:1:2/3", 1.0, 0.5))
    if algorithm in ("reinforce", "harpg", "stormpg"):
        arguments["normalize"] = draw(st.booleans())
    if algorithm in ("harpg", "n-harpg"):
        points = draw(one_of(1, 2))
        arguments |= {
            "normalize": algorithm == "n-harpg" or arguments["normalize"],
            "num_points": points,
            "num_hessian_episodes": points * draw(st.integers(least, 3)),
            "hvp": draw(one_of("doubly_robust", "causal", "trajectory")),
        }
    if algorithm in ("srvrpg", "mo-tsivr-pg"):
        arguments |= {"restart_every": draw(one_of(2, 1)), "num_small": draw(st.integers(least, 3))}
        arguments["radius"] = draw(one_of(0.1, *([None] if algorithm == "srvrpg" else ["power:0.1:1/2"])))
    if algorithm in ("stormpg", "nvrpg"):
        arguments["weighting"] = draw(one_of("doubly_robust", "per_step", "trajectory"))
    if algorithm in ("stormpg", "nvrpg", "harpg", "n-harpg"):
        arguments["max_correction"] = draw(one_of(None, 0.2))
    if algorithm == "stormpg":
        arguments |= {"num_initial": draw(st.integers(least, 6)), "adaptive": draw(one_of(None, [0.1, 1.0, 1.0]))}
    if algorithm == "nvrpg" and isinstance(world.observation, spaces.Discrete) and isinstance(world.action, spaces.Discrete):
        arguments["utility"] = draw(one_of("reward", "entropy"))
    if algorithm in ("mopg", "mo-tsivr-pg"):
        arguments |= {"utility": draw(utilities(world.num_rewards)), "ent_coef": draw(one_of(0.0, 0.01, "power:0.1:1"))}
    if algorithm == "mopg":
        arguments |= {"step_rule": draw(one_of("plain", "normalized", "adam")), "criterion": draw(one_of("ser", "esr"))}
    if algorithm == "mo-tsivr-pg":
        arguments |= {
            "batches": draw(one_of("independent", "lagged")),
            "weighting": draw(one_of("doubly_robust", "per_step")),
        }
    return arguments


def utilities(num_rewards: int) -> Strategy:
    """Of K rewards; the expectation itself of one."""
    if num_rewards == 1:
        return one_of("identity", Chebyshev([1.0], ideal=[8.0]))
    weights, ideal = [1.0 / num_rewards] * num_rewards, [50.0] * num_rewards
    text = ",".join(["0.25"] * num_rewards)
    return one_of(
        weights,
        f"chebyshev:{text};ideal={','.join(['50'] * num_rewards)}",
        SmoothChebyshev(weights, ideal=ideal, temperature=1.0),
    )


@st.composite
def policy_arguments(draw: Any, case: Case) -> dict[str, Any]:
    """`policy_kwargs` that the policy takes."""
    memory = case.arguments.get("memory")
    arguments: dict[str, Any] = {"net_arch": draw(one_of([8], [], [4, 4], {"pi": [4], "vf": [8]}))}
    arguments["ortho_init"] = draw(st.booleans())
    if isinstance(case.world.action, spaces.Box):
        arguments["log_std_init"] = draw(one_of(0.0, -1.0))
        if is_narrow(case.world.action):
            arguments["squash_output"] = draw(st.booleans())
    if case.algorithm not in ("harpg", "n-harpg"):
        arguments["activation_fn"] = draw(one_of(torch.nn.Tanh, torch.nn.ReLU))
    if case.algorithm == "recurrentppo":
        shared, own = draw(one_of((False, True), (True, False), (False, False)))
        arguments |= {"shared_lstm": shared, "enable_critic_lstm": own, "n_lstm_layers": draw(one_of(1, 2))}
        arguments |= {"cell": draw(one_of("lstm", "gru")), "previous_action": draw(st.booleans())}
    elif case.algorithm == "s2pg" or memory is not None:
        arguments |= {"cell": draw(one_of("gru", "lstm", "mlp")), "previous_action": draw(st.booleans())}
        arguments["retention"] = draw(one_of(1.0, [1, 5]))
    else:
        arguments["share_features_extractor"] = draw(st.booleans())
        if case.algorithm in ("ppo", "rebel"):
            arguments["optimizer_class"] = draw(one_of(torch.optim.Adam, torch.optim.SGD))
    return arguments


# ---------------------------------------------------------------------------------------------------- agents


@st.composite
def cases(draw: Any, algorithm: str) -> Case:
    """An agent of this algorithm that can be made, whatever is drawn."""
    mode = draw(one_of("advantage", "trajectory", "branched")) if algorithm == "rebel" else "advantage"
    groups = mode != "advantage"
    group_size = draw(one_of(2, 3)) if groups else 1
    several = algorithm in ("ppo", "mopg", "mo-tsivr-pg")
    num_rewards = draw(one_of(1, 2, 3)) if several else 1
    containers = OWN if num_rewards > 1 else (*OWN, "disabled") if groups else tuple(CONTAINERS)
    world = World(
        observation=draw(observation_spaces()),
        action=draw(action_spaces()),
        num_rewards=num_rewards,
        max_length=draw(st.integers(1, 6)),
        container=draw(one_of(*containers)),
        num_envs=group_size * draw(one_of(1, 2)) if groups else draw(st.integers(1, 5)),
    )
    if world.container.startswith("sb3") and is_nested(world.observation):  # which SB3 does not take
        world = replace(world, container="same-step")
    if algorithm == "ppo":
        arguments = draw(ppo_arguments(world))
    elif algorithm == "s2pg":
        arguments = draw(s2pg_arguments(world))
    elif algorithm == "recurrentppo":
        arguments = draw(recurrent_arguments(world))
    elif algorithm == "rebel":
        arguments = draw(rebel_arguments(world, mode, group_size))
    else:
        arguments = draw(episodic_arguments(algorithm, world))
    if algorithm not in ("s2pg", "recurrentppo") and "utility" not in arguments and draw(one_of(False, False, True)):
        arguments |= {"memory": "s2pg", "memory_size": draw(one_of(2, 1, 5))}
    if has_floats(world.observation):
        arguments |= {"normalize_observations": draw(st.booleans()), "clip_observations": draw(one_of(10.0, 0.5))}
    if not groups and num_rewards == 1 and arguments.get("utility", "identity") == "identity":
        arguments |= {"normalize_rewards": draw(st.booleans()), "clip_rewards": draw(one_of(10.0, 0.5))}
        arguments["carry_reward_returns"] = draw(st.booleans())
    arguments["stats_window_size"] = draw(one_of(100, 1, 3))
    policy = "MultiInputPolicy" if isinstance(world.observation, spaces.Dict | spaces.Tuple) else "MlpPolicy"
    if "memory_size" in arguments and is_shown_more(world.observation):
        policy = "MlpPolicy"  # the actor reads what it would if the critic were shown no more
    if is_image(world.observation) and algorithm not in ("harpg", "n-harpg"):  # whose Hessians warn of convolutions' ReLU
        policy = draw(one_of("MlpPolicy", "CnnPolicy"))
    if algorithm == "recurrentppo" and draw(st.booleans()):
        policy = policy.replace("Policy", "LstmPolicy")
    case = Case(algorithm, policy, world, arguments, draw(one_of(0, 1, 2**32 - 1)))
    return case.changed(policy_kwargs=draw(policy_arguments(case)))


def is_narrow(space: spaces.Box) -> bool:
    """Whether a policy can be squashed to the bounds of the box."""
    return bool((np.abs(space.low.astype(np.float64)) < 1e10).all() and (np.abs(space.high.astype(np.float64)) < 1e10).all())


def leaves_of(space: spaces.Space) -> list[spaces.Space]:
    """The parts of a Dict or Tuple that are neither."""
    parts = list(space.spaces.values()) if isinstance(space, spaces.Dict) else getattr(space, "spaces", None)
    return [space] if parts is None else [leaf for part in parts for leaf in leaves_of(part)]


def is_image(space: spaces.Space) -> bool:
    """Whether it is one of `images`."""
    return space.shape in IMAGES


def is_shown_more(space: spaces.Space) -> bool:
    """Whether the critic of a policy with memory is shown more than "observation", which is no Dict or Tuple itself."""
    if not isinstance(space, spaces.Dict) or space.spaces.keys() != {"critic", "observation"}:
        return False
    return not isinstance(space["observation"], spaces.Dict | spaces.Tuple)


def is_nested(space: spaces.Space) -> bool:
    """Whether there is a Dict or Tuple in a Dict or Tuple."""
    if not isinstance(space, spaces.Dict | spaces.Tuple):
        return False
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces
    return any(isinstance(part, spaces.Dict | spaces.Tuple) for part in parts)


def has_floats(space: spaces.Space) -> bool:
    """Whether there is something to normalise."""
    return any(isinstance(leaf, spaces.Box) and np.issubdtype(leaf.dtype, np.floating) for leaf in leaves_of(space))
