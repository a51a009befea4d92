"""Properties of any agent in any environment that it takes: what it counts, plays, predicts, keeps in a file and repeats."""

from __future__ import annotations

import copy
import inspect
import io
import json
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from rlopt import ALGORITHMS, Agent, EnvironmentFault, archive
from rlopt.agents.proximal import ProximalAgent
from rlopt.collector import Collector
from rlopt.envs.spaces import ActionDecoder, ObservationEncoder
from rlopt.plain_data import decode_space, encode_space
from rlopt.statistics import EpisodeStatistics
from tests.random_agents import EPISODIC, Case, action_spaces, boxes, cases, is_narrow, leaves_of, observation_spaces, one_of
from tests.random_envs import OWN, SB3, Played, RandomEnv, World, drawn, is_in

# The one place that says how many: random cases of each algorithm, for `make test` and for the rest of `make test-all`.
FAST, ALL = 5, 160
REFUSED_FAST, REFUSED_ALL = 2, 50  # that cannot work, each of three kinds; they are quick
SPACES = 100  # for the properties of spaces alone
PROFILE = settings(
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def check_random(
    check: Callable[[st.DataObject, str], None], algorithm: str, number: int, part: int, profile: settings = PROFILE
) -> None:
    """`check` as many random draws, the same ones in every run; parts are different ones."""
    source = zlib.crc32(f"{check.__name__} {algorithm} {part}".encode())

    def drawing(data: st.DataObject) -> None:
        check(data, algorithm)

    seed(source)(settings(profile, max_examples=number)(given(data=st.data())(drawing)))()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_agent_learns_predicts_and_is_saved(algorithm: str) -> None:
    check_random(check_life, algorithm, FAST, 0)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_any_agent_learns_predicts_and_is_saved_at_length(algorithm: str) -> None:
    check_random(check_life, algorithm, ALL, 1)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_cannot_work_is_an_error_that_names_the_argument(algorithm: str) -> None:
    for check in (check_wrong_argument, check_wrong_combination, check_wrong_observation):
        check_random(check, algorithm, REFUSED_FAST, 0)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_what_cannot_work_is_an_error_that_names_the_argument_at_length(algorithm: str) -> None:
    for check in (check_wrong_argument, check_wrong_combination, check_wrong_observation):
        check_random(check, algorithm, REFUSED_ALL, 1)


def check_life(data: st.DataObject, algorithm: str) -> None:
    """An agent from its constructor to its second life."""
    check_case(data.draw(cases(algorithm), label="case"))


def check_case(case: Case) -> None:
    agent, envs = made(case)
    check_learning(case, agent, envs)
    with_answers(case, agent)
    check_repetition(case, agent)
    check_file(case, agent)


# ---------------------------------------------------------------------------------------------------- learning


def made(case: Case) -> tuple[Agent, list[RandomEnv]]:
    """The agent, whose constructor warns of a last minibatch that is smaller, and of nothing else."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        agent, envs = case.made()
    uneven = not case.by_episodes and case.arguments["n_steps"] * case.world.num_envs % case.arguments["batch_size"] != 0
    messages = [str(warning.message).partition(":")[0] for warning in caught]
    assert messages == (["batch_size"] if uneven else []), [str(warning.message) for warning in caught]
    return agent, envs


def learn_once(case: Case, agent: Agent) -> Agent:
    """One iteration more, or several if reset rows are all that the first has."""
    with warnings.catch_warnings():
        if has_few_values(case.world.observation):  # an episode may well begin as the one before it ended
            warnings.filterwarnings("ignore", ".*reuses its observation array")
        return agent.learn(1, reset_num_timesteps=agent.num_timesteps == 0)


def has_few_values(space: spaces.Space) -> bool:
    """Whether two observations may be the same by chance."""
    wide = (leaf for leaf in leaves_of(space) if isinstance(leaf, spaces.Box) and np.issubdtype(leaf.dtype, np.floating))
    return not any((leaf.low < leaf.high).any() for leaf in wide)


def check_learning(case: Case, agent: Agent, envs: list[RandomEnv]) -> None:
    """Two iterations: parameters that are finite and others than before, and books that agree with the environments' own."""
    before, episodes = agent.state.theta.clone(), []
    agent.statistics.on_episode = episodes.append
    learn_once(case, agent)
    learn_once(case, agent)
    agent.statistics.on_episode = None
    assert bool(agent.state.theta.isfinite().all())
    assert agent.num_timesteps > 0
    if surely_moves(case):
        assert not torch.equal(agent.state.theta, before)
    check_books(case, agent, envs, episodes)


def surely_moves(case: Case) -> bool:
    """Whether the gradient is not zero: a critic has something to learn; of episodes, a choice was made and paid for."""
    if case.arguments.get("eta_mode") in ("std", "kl_target") and case.world.container == "next-step":
        return False  # every rollout may have one row, whose advantage has no deviation
    if not case.by_episodes:
        return not isinstance(case.arguments["learning_rate"], str)  # which has come to 0
    if case.by_groups or case.arguments.get("utility", "identity") != "identity":
        return False  # members of a group may have done the same
    if case.arguments.get("normalize_rewards"):
        return False  # all rewards may be clipped to the same
    return has_choice(case.world.action)


def has_choice(space: spaces.Space) -> bool:
    if isinstance(space, spaces.Discrete):
        return int(space.n) > 1
    return not isinstance(space, spaces.MultiDiscrete) or bool((space.nvec > 1).any())


def check_books(case: Case, agent: Agent, envs: list[RandomEnv], episodes: list[dict[str, Any]]) -> None:
    """Steps and episodes that the agent counted are those that the environments played."""
    logs = [env.log for env in envs]
    played = sum(len(episode.rewards) for log in logs for episode in log)
    for row, log in enumerate(logs):
        mine = [episode for episode in episodes if episode["env"] == row]
        if not case.by_episodes:
            finished = [episode for episode in log if episode.finished]
            assert len(mine) == len(finished)
            assert all(is_record_of(record, episode) for record, episode in zip(mine, finished))
        else:
            rest = iter(log)
            assert all(any(is_record_of(record, episode) for episode in rest) for record in mine), (mine, log)
    if not case.by_episodes:
        assert agent.num_timesteps == played
        if case.world.container != "next-step":
            assert agent.num_timesteps == 2 * case.arguments["n_steps"] * case.world.num_envs
        return
    assert agent.num_timesteps == sum(episode["l"] for episode in episodes)
    if case.world.container in OWN:  # others step idle environments, too
        assert agent.num_timesteps == played
    expected = (
        2 * case.arguments["num_groups"] * case.arguments["group_size"] if case.by_groups else agent.state.num_trajectories
    )
    assert len(episodes) == expected


def is_record_of(record: dict[str, Any], episode: Played) -> bool:
    """Whether the statistics mean this episode, or its beginning up to a horizon; Monitor rounds returns."""
    length = record["l"]
    return length <= len(episode.rewards) and bool(np.all(np.abs(record["r"] - episode.total(length)) < 1e-6))


# ---------------------------------------------------------------------------------------------------- prediction


def observations_of(case: Case, number: int) -> list[Any]:
    random = np.random.default_rng(number)
    return [drawn(case.world.observation, random) for _ in range(number)]


def batch_of(space: spaces.Space, observations: list[Any]) -> Any:
    """One observation of several, as Gymnasium makes it."""
    utils = gym.vector.utils
    return copy.deepcopy(utils.concatenate(space, observations, utils.create_empty_array(space, len(observations))))


def with_answers(case: Case, agent: Agent) -> list[Any]:
    """What the agent predicts, of one observation and of several, after checks of it: deterministic, then sampled."""
    observations = observations_of(case, 3)
    batch, space = batch_of(case.world.observation, observations), case.world.action
    answers = []
    for deterministic in (True, False):
        several, memory = agent.predict(batch, agent.initial_state(3), deterministic=deterministic)
        assert several.shape == (3, *space.shape)
        assert several.dtype == space.dtype
        assert all(is_in(action, space) for action in several)
        assert (memory is None) == (agent.memory is None)
        singles = [agent.predict(one, agent.initial_state(1), deterministic=deterministic)[0] for one in observations]
        assert all(single.shape == space.shape and single.dtype == space.dtype for single in singles)
        assert all(space.contains(single) for single in singles), singles
        if deterministic:
            again, _ = agent.predict(batch, agent.initial_state(3), deterministic=True)
            np.testing.assert_array_equal(several, again)
            tolerances = (1e-2, 1.0) if isinstance(space, spaces.Box) and is_whole(space) else (1e-2, 1e-3)
            np.testing.assert_allclose(np.stack(singles).astype(float), several.astype(float), *tolerances)
        answers += [several, *singles]
    return answers


# ---------------------------------------------------------------------------------------------------- repetition and files


def check_repetition(case: Case, agent: Agent) -> None:
    """Another agent of the same seed comes to the same bits, however it is asked to predict in between."""
    other, _ = made(case)
    learn_once(case, other)
    with_answers(case, other)
    learn_once(case, other)
    assert_same(agent.state, other.state)
    assert agent.num_timesteps == other.num_timesteps


def check_file(case: Case, agent: Agent) -> None:
    """An agent that was saved and loaded is the same, goes on, and is saved the same."""
    file = io.BytesIO()
    agent.save(file)
    loaded, _ = case.loaded(file)
    again = io.BytesIO()
    loaded.save(again)
    assert_same(contents(file), contents(again))
    assert_same(agent.state, loaded.state)
    assert loaded.hyperparameters() == agent.hyperparameters()
    for mine, theirs in zip(with_answers(case, agent), with_answers(case, loaded)):
        np.testing.assert_array_equal(mine, theirs)
    learn_once(case, loaded)
    assert bool(loaded.state.theta.isfinite().all())
    assert loaded.num_timesteps > agent.num_timesteps
    if case.by_episodes:  # batches are determined by the seed and their number
        learn_once(case, agent)
        assert_same(agent.state, loaded.state)


def contents(file: io.BytesIO) -> Any:
    file.seek(0)
    read = archive.read(file)
    return {"data": read.data, "tensors": read.tensors}


def assert_same(first: Any, second: Any) -> None:
    """Equal to the last bit, in numbers and in structure."""
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, tuple | list):
        assert len(first) == len(second)
        for one, other in zip(first, second):
            assert_same(one, other)
    else:
        assert first == second


# ---------------------------------------------------------------------------------------------------- what cannot work

# Values that cannot be, by what an argument has to be.
WHOLE = (0, -1, 1.5, float("nan"), float("inf"), "x", True, [], {})
POSITIVE = (0.0, -1.0, float("nan"), "x", True, [1.0])
SHARE = (-0.1, 1.1, float("nan"), "x", None)
NUMBER = (float("nan"), float("inf"), "x", True, None)
AT_LEAST_ZERO = (-1.0, float("nan"), "x", True)
CHOICE = ("x", "", 3, [], True)
FLAG = ("x", 2, None, 0.5, [])
WRONG: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("n_steps", "batch_size", "n_epochs", "num_episodes", "num_small", "num_initial", "restart_every"), WHOLE),
    **dict.fromkeys(("num_groups", "group_size", "memory_size", "n_envs", "stats_window_size", "horizon"), WHOLE),
    **dict.fromkeys(("num_hessian_episodes", "num_points", "chunk_length", "num_objectives"), WHOLE),
    **dict.fromkeys(("max_grad_norm", "target_kl", "radius", "max_correction", "clip_observations", "clip_rewards"), POSITIVE),
    **dict.fromkeys(("step_size", "momentum", "eta", "clip_range_vf"), POSITIVE),
    **dict.fromkeys(("gamma", "gae_lambda"), SHARE),
    **dict.fromkeys(("vf_coef", "ent_coef"), NUMBER),
    **dict.fromkeys(("learning_rate", "clip_range", "memory_clip_range"), AT_LEAST_ZERO),
    **dict.fromkeys(("baseline", "backend", "hvp", "weighting", "ratio", "mode", "eta_mode", "step_rule", "criterion"), CHOICE),
    **dict.fromkeys(("batches", "value_clip", "schedule_from", "preset", "memory"), CHOICE),
    **dict.fromkeys(("normalize", "normalize_observations", "normalize_rewards", "carry_reward_returns"), FLAG),
    **dict.fromkeys(("normalize_advantage", "bootstrap_truncation", "refresh_states"), FLAG),
    "seed": (-1, 2**32, 1.5, "x", True),
    "device": ("nothing", "", [], 1.5),
    "compile": ("x", 2, None),
    "depths": (0, -1, 1.5, "x", [-1.0], []),
    "adaptive": (1.0, [1.0], [1.0, 1.0, -1.0], "x"),
    "policy_kwargs": ("x", 3, [1], {"unknown": 1}, {"net_arch": [-1]}),
    "utility": ("x", 3, [float("nan")], {}),
}
ANYTHING = {"policy", "env", "verbose", "tensorboard_log", "preference", "_init_setup_model"}
REFUSED_ALWAYS = {"use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs"}


def test_every_argument_of_every_algorithm_is_in_the_table() -> None:
    arguments = {name for algorithm in ALGORITHMS.values() for name in inspect.signature(algorithm).parameters}
    assert arguments == WRONG.keys() | ANYTHING | REFUSED_ALWAYS


def check_wrong_argument(data: st.DataObject, algorithm: str) -> None:
    """One argument that cannot be, in an agent that could: an error that begins with its name."""
    case = data.draw(cases(algorithm))
    taken = set(inspect.signature(case.kind).parameters) & WRONG.keys()
    if case.arguments.get("memory") is None and algorithm not in ("s2pg", "recurrentppo"):
        taken -= {"memory_size"}
    if "utility" in case.arguments:  # with which there is no memory
        taken -= {"memory"}
    name = data.draw(one_of(*sorted(taken)))
    assert_refused(case.changed(**{name: data.draw(one_of(*WRONG[name]))}), name)


def assert_refused(case: Case, name: str) -> None:
    """The agent cannot be made, and the error begins with the argument's name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=rf"^{name}: "):
            case.made()


def check_wrong_combination(data: st.DataObject, algorithm: str) -> None:
    """Arguments that are right alone and cannot work together, or in such an environment."""
    case = data.draw(cases(algorithm))
    wrong, name = data.draw(one_of(*combinations(case)))
    assert_refused(wrong, name)


def combinations(case: Case) -> list[tuple[Case, str]]:
    """What would have to change in this case for it to be impossible, with the argument that is to be named."""
    world, arguments, kwargs = case.world, case.arguments, case.arguments["policy_kwargs"]
    lstm = "Lstm" if "Lstm" in case.policy else ""
    a_dict, a_box = spaces.Dict({"a": spaces.Discrete(2)}), spaces.Box(-1.0, 1.0, (2,))
    vector = replace(case, world=replace(world, observation=a_box), policy=f"Mlp{lstm}Policy")
    memory = arguments.get("memory") is not None or case.algorithm in ("s2pg", "recurrentppo")

    def showing(observation: spaces.Space, nested: bool = True) -> Case:
        policy = f"MultiInput{lstm}Policy" if nested else f"Mlp{lstm}Policy"
        sb3 = world.container in SB3  # whose vector environments refuse such spaces themselves
        return replace(
            case, world=replace(world, observation=observation, container="list" if sb3 else world.container), policy=policy
        )

    def taking(action: spaces.Space) -> Case:
        return replace(case, world=replace(world, action=action, container="list")).changed(
            policy_kwargs={**kwargs, "squash_output": False}
        )

    found = [
        (showing(a_dict, nested=False), "policy"),
        (replace(vector, policy=f"MultiInput{lstm}Policy"), "policy"),
        (replace(vector, policy=f"Cnn{lstm}Policy"), "policy"),
        (replace(case, policy="MlpPolcy"), "policy"),
        (showing(spaces.Text(3), nested=False), "observation space"),
        (showing(spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Sequence(spaces.Discrete(2))})), "observation space at b"),
        (showing(spaces.Dict({"a/b": a_box, "a": spaces.Dict({"b": a_box})})), "observation space"),
        (showing(spaces.Dict({"arm.joint": a_box})), "observation space"),
        (showing(spaces.Dict({"type": a_box, "b": a_box})), "observation space"),
        (taking(spaces.Tuple([spaces.Discrete(2)])), "action space"),
        (taking(spaces.Text(3)), "action space"),
        (
            replace(case, world=replace(world, action=spaces.Discrete(2))).changed(
                policy_kwargs={**kwargs, "squash_output": True}
            ),
            "policy_kwargs",
        ),
        (showing(spaces.Discrete(3), nested=False).changed(normalize_observations=True), "normalize_observations"),
    ]
    if memory:
        found += [
            (showing(spaces.Dict({"a": a_box, key: a_box})), "observation space") for key in ("memory", "previous_action")
        ]
        found.append((showing(spaces.Dict({"critic": a_box})), "observation space"))
    if world.num_rewards == 1 and arguments.get("utility", "identity") == "identity" and not case.by_groups:
        found.append((replace(case, world=replace(world, num_rewards=2, container="list")), "env"))
    if world.num_rewards > 1:
        found.append((replace(case, world=replace(world, num_rewards=world.num_rewards + 1)), "env"))
    if not case.by_episodes:
        found.append(
            (
                case.changed(batch_size=1, normalize_advantage=True, chunk_length=1)
                if case.algorithm == "recurrentppo"
                else case.changed(batch_size=1, normalize_advantage=True),
                "batch_size",
            )
        )
    if arguments.get("mode") == "advantage":
        alone = replace(case, world=replace(world, num_envs=1))
        found.append((alone.changed(n_steps=1, batch_size=1, normalize_advantage=False, eta_mode="std"), "n_steps"))
    if case.by_groups:
        found += [
            (replace(case, world=replace(world, container=container)), "envs")
            for container in ("same-step", "next-step", "sb3")
        ]
        found += [
            (replace(case, world=replace(world, num_envs=world.num_envs + 1)), "group_size"),
            (case.changed(normalize_rewards=True), "normalize_rewards"),
        ]
    if case.algorithm in EPISODIC:
        found.append((case.changed(baseline="leave_one_out", num_episodes=1), "num_episodes"))
    if case.algorithm in ("mopg", "mo-tsivr-pg") and world.num_rewards > 1:
        found.append((case.changed(normalize_rewards=True), "normalize_rewards"))
    if case.algorithm == "ppo" and world.num_rewards > 1:
        found.append((case.changed(memory="s2pg"), "utility"))
    if case.algorithm == "ppo" and world.num_rewards == 1 and "memory" not in arguments:
        found.append((case.changed(num_objectives=2), "num_objectives"))
    if world.container not in OWN:
        found.append((case.changed(backend="async"), "backend"))
    return found


def check_wrong_observation(data: st.DataObject, algorithm: str) -> None:
    """Observations of another shape, or of choices that there are not, are refused by `predict`."""
    case = data.draw(cases(algorithm))
    agent, _ = made(case)
    one = observations_of(case, 1)[0]
    with pytest.raises(ValueError, match=r"^observation: "):
        agent.predict(spoiled(case.world.observation, one, data.draw), agent.initial_state(1))


def spoiled(space: spaces.Space, value: Any, draw: Callable[[Any], Any]) -> Any:
    """The observation with one part of it wrong."""
    if isinstance(space, spaces.Dict):
        key = draw(one_of(*space.spaces))
        if key != "critic" and draw(st.booleans()):  # what is the critic's may be missing
            return {name: part for name, part in value.items() if name != key}
        return {**value, key: spoiled(space[key], value[key], draw)}
    if isinstance(space, spaces.Tuple):
        index = draw(st.integers(0, len(value) - 1))
        return (*value[:index], spoiled(space[index], value[index], draw), *value[index + 1 :])
    if isinstance(space, spaces.Discrete):
        return draw(one_of(space.start + space.n, space.start - 1, "x", space.start + 0.5, [[int(space.start)]]))
    if isinstance(space, spaces.MultiDiscrete):
        return draw(one_of(space.start + space.nvec, space.start - 1, value[None, None], np.concatenate([value, value], -1)))
    crowds = [np.asarray(value)[None, None], *([np.stack([value] * 5, -1)] if space.shape else [])]
    return draw(one_of(*crowds))


# ---------------------------------------------------------------------------------------------------- spaces


@given(space=observation_spaces(), random_seed=st.integers(0, 9))
@settings(PROFILE, max_examples=SPACES, derandomize=True)
def test_observations_of_any_space_are_decoded_to_what_was_encoded(space: spaces.Space, random_seed: int) -> None:
    random = np.random.default_rng(random_seed)
    observations, encoder = [drawn(space, random) for _ in range(2)], ObservationEncoder(space)
    for observation, repeated in ((observations[0], False), (batch_of(space, observations), True)):
        encoded = encoder(observation)
        shaped = encoder.empty(2) if repeated else encoder.empty()
        for array, expected in zip(parts_of(encoded), parts_of(shaped)):
            assert np.shape(array) == expected.shape
        for mine, theirs in zip(parts_of(observation), parts_of(encoder.decode(encoded))):
            np.testing.assert_array_equal(np.asarray(mine, np.float32), np.asarray(theirs, np.float32))


def parts_of(value: Any) -> list[Any]:
    """The arrays and numbers of a nested observation."""
    if isinstance(value, dict | tuple):
        inner = value.values() if isinstance(value, dict) else value
        return [part for entry in inner for part in parts_of(entry)]
    return [value]


@given(space=boxes(), number=st.integers(1, 3))
@settings(PROFILE, max_examples=SPACES, derandomize=True)
def test_actions_of_any_box_are_clipped_or_stretched_to_its_bounds(space: spaces.Box, number: int) -> None:
    decoder, size = ActionDecoder(space), int(np.prod(space.shape))
    random = np.random.default_rng(number).normal(size=(number, size)).astype(np.float32)
    for scale in (1.0, 1e4):
        assert all(is_in(action, space) for action in decoder(random * np.float32(scale)))
    if is_narrow(space):
        ends = decoder(np.full((3, size), [[-1.0], [0.0], [1.0]], np.float32), squashed=True)
        middle = (space.low.astype(np.float64) + space.high.astype(np.float64)) / 2
        np.testing.assert_array_equal(ends[0], space.low)
        np.testing.assert_array_equal(ends[2], space.high)
        np.testing.assert_allclose(ends[1].astype(np.float64), middle, rtol=1e-3, atol=1.0 if is_whole(space) else 1e-6)


@given(space=st.one_of(observation_spaces(), action_spaces()))
@settings(PROFILE, max_examples=SPACES, derandomize=True)
def test_any_space_comes_back_from_a_file_equal(space: spaces.Space) -> None:
    assert decode_space(json.loads(json.dumps(encode_space(space)))) == space


def is_whole(space: spaces.Space) -> bool:
    return np.issubdtype(space.dtype, np.integer)


# ---------------------------------------------------------------------------------------------------- found by these tests


@pytest.mark.parametrize("space", [spaces.Discrete(2, dtype=np.int32), spaces.MultiDiscrete([2, 3], dtype=np.int32)])
def test_a_loaded_agent_takes_an_environment_whose_integers_are_small(space: spaces.Space) -> None:
    check_file(case := Case("ppo", "MlpPolicy", World(space, space), {"n_steps": 4, "batch_size": 4}), case.made()[0])


@pytest.mark.parametrize("eta_mode", ["std", "kl_target"])
def test_a_rollout_of_one_row_has_no_deviation_and_no_step(eta_mode: str) -> None:
    world = World(spaces.Discrete(2), spaces.Discrete(2), max_length=1, container="next-step")
    agent, _ = Case("rebel", "MlpPolicy", world, {"n_steps": 2, "batch_size": 2, "eta_mode": eta_mode}).made()
    before = agent.state.theta.clone()
    assert torch.equal(agent.learn(4).state.theta, before)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_a_squashed_policy_reaches_all_of_a_box_of_integers(dtype: Any) -> None:
    low, high = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    decoder = ActionDecoder(spaces.Box(low, high, (1,), dtype))
    assert decoder(np.array([[-1.0], [0.0], [1.0]], np.float32), squashed=True).ravel().tolist() == [low, 0, high]


@pytest.mark.parametrize("container", ["same-step", "sb3"])
def test_a_number_that_comes_twice_is_no_array_that_was_used_again(container: str) -> None:
    world = World(spaces.Discrete(1), spaces.Discrete(2), container=container, num_envs=2)
    Case("ppo", "MlpPolicy", world, {"n_steps": 16, "batch_size": 32}).made()[0].learn(32)


@pytest.mark.parametrize("key", ["arm.joint", "type", "keys", ""])
def test_a_key_that_torch_does_not_take_is_an_error_that_says_so(key: str) -> None:
    world = World(spaces.Dict({key: spaces.Discrete(2)}), spaces.Discrete(2))
    for algorithm in ("ppo", "s2pg", "recurrentppo", "reinforce"):
        assert_refused(Case(algorithm, "MultiInputPolicy", world, {}), "observation space")


@pytest.mark.parametrize(
    ("space", "observation"),
    [
        (spaces.MultiDiscrete([2, 3]), [1]),
        (spaces.MultiDiscrete([[2, 3]]), [1, 1]),
        (spaces.MultiDiscrete([2, 3]), [1, 7]),
        (spaces.Discrete(2), 2),
        (spaces.Discrete(2), -1),
        (spaces.Discrete(2), "x"),
        (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Discrete(2)}), {"a": [1, 1], "b": [1, 1, 1]}),
    ],
)
def test_an_observation_that_is_not_in_the_space_is_an_error_of_predict(space: spaces.Space, observation: Any) -> None:
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    agent, _ = Case("ppo", policy, World(space, spaces.Discrete(2)), {}).made()
    with pytest.raises(ValueError, match=r"^observation: "):
        agent.predict(observation)


# ---------------------------------------------------------------------------------------------------- negative controls


def counted_twice(report: Any) -> Any:
    def generous(self: Collector, *args: Any) -> None:
        report(self, *args)
        self.num_timesteps += 1

    return generous


def without_its_last_reward(own: Any) -> Any:
    def forgetful(self: EpisodeStatistics, row: int) -> dict[str, Any]:
        record = own(self, row)
        return {**record, "r": np.add(record["r"], 1.0).tolist()}

    return forgetful


def predicting_with_the_noise_of_training(setup: Any) -> Any:
    def sharing(self: Agent, *args: Any) -> None:
        setup(self, *args)
        self._predictor.generator = self.generators["actions"]

    return sharing


def without_generators(write: Any) -> Any:
    def forgetful(path: Any, data: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        write(path, data, {name: tensor for name, tensor in tensors.items() if not name.startswith("generators/")})

    return forgetful


def beside_the_space(decode: Any) -> Any:
    return lambda self, *args: decode(self, *args) + np.asarray(100).astype(self.dtype)


def standing_still(descended: Any) -> Any:
    return lambda self, state, num_epochs: state


def with_other_noise(seed_all: Any) -> Any:
    def careless(self: Agent, seed: int | None = None) -> None:
        seed_all(self, seed)
        self.generators["minibatches"].seed()
        self.generators["actions"].seed()

    return careless


MISTAKES: dict[str, tuple[Any, str, Any]] = {
    "steps are counted twice": (Collector, "_report", counted_twice),
    "returns are wrong": (EpisodeStatistics, "_own", without_its_last_reward),
    "predictions disturb the training": (Agent, "_setup_model", predicting_with_the_noise_of_training),
    "files have no generators": (archive, "write", without_generators),
    "actions are outside of the space": (ActionDecoder, "__call__", beside_the_space),
    "nothing is learned": (ProximalAgent, "descended", standing_still),
    "the seed is not all": (Agent, "set_random_seed", with_other_noise),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_in_a_few_cases(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, name, broken = MISTAKES[mistake]
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    with pytest.raises((AssertionError, EnvironmentFault)):
        check_random(check_life, "ppo", 20, 0, settings(PROFILE, phases=[Phase.generate], report_multiple_bugs=False))
