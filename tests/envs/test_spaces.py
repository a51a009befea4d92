"""Spaces: observations in and back, actions out, and a grid of both from end to end."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from rlopt import PPO
from rlopt.envs.spaces import ActionDecoder, ObservationEncoder, map_arrays, stack_observations


def image(*shape: int) -> spaces.Box:
    return spaces.Box(0, 255, shape, np.uint8)


def box(*shape: int, dtype: Any = np.float32) -> spaces.Box:
    return spaces.Box(-1, 1, shape, dtype)


INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
FLAT: dict[str, spaces.Space] = {
    "float32": box(3),
    "float64": box(3, dtype=np.float64),
    "float16": box(3, dtype=np.float16),
    "infinite": spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "asymmetric": spaces.Box(np.array([-1, 0, 5], np.float64), np.array([0, 9, 6], np.float64), dtype=np.float64),
    "two axes": box(2, 3),
    "no axis": box(),
    **{dtype: spaces.Box(0, 100, (3,), np.dtype(dtype).type) for dtype in INTEGERS},
    "bool": spaces.Box(0, 1, (3,), np.bool_),
    "Discrete": spaces.Discrete(4),
    "Discrete from 5": spaces.Discrete(4, start=5),
    "Discrete from -2": spaces.Discrete(4, start=-2),
    "MultiDiscrete": spaces.MultiDiscrete([3, 4]),
    "MultiDiscrete from 2": spaces.MultiDiscrete([3, 4], start=[2, -1]),
    "MultiDiscrete of two axes": spaces.MultiDiscrete([[3, 4], [2, 2]], start=[[1, 0], [5, 2]]),
    "MultiBinary": spaces.MultiBinary(4),
    "MultiBinary of two axes": spaces.MultiBinary([2, 3]),
}
IMAGES: dict[str, spaces.Space] = {
    "channel last": image(36, 38, 3),
    "channel first": image(3, 36, 38),
    "gray": image(36, 36, 1),
}
NESTED: dict[str, spaces.Space] = {
    "Dict": spaces.Dict({"a": box(3, dtype=np.float64), "b": spaces.Discrete(4, start=5), "i": image(36, 38, 3)}),
    "Tuple": spaces.Tuple((box(3), spaces.Discrete(3, start=-2))),
    "nested": spaces.Dict(
        {
            "arm": spaces.Dict(
                {"joints": box(3), "grip": spaces.Tuple((spaces.Discrete(3), FLAT["MultiDiscrete of two axes"]))}
            ),
            "flags": spaces.MultiBinary([2, 3]),
        }
    ),
}
ACTIONS: dict[str, spaces.Space] = {
    "Box": box(2),
    "float64 Box": box(2, dtype=np.float64),
    "asymmetric Box": spaces.Box(np.array([0.1, -3], np.float32), np.array([0.2, 8], np.float32)),
    "infinite Box": spaces.Box(-np.inf, np.inf, (2,)),
    "half-infinite Box": spaces.Box(0, np.inf, (2,)),
    "Box of two axes": box(2, 3),
    "Box without axes": box(),
    "Discrete": spaces.Discrete(3),
    "Discrete from 2": spaces.Discrete(3, start=2),
    "Discrete from -1": spaces.Discrete(3, start=-1),
    "MultiDiscrete": spaces.MultiDiscrete([3, 2]),
    "MultiDiscrete of two axes": spaces.MultiDiscrete([[3, 2], [2, 2]], start=[[1, 0], [0, 4]]),
    "MultiBinary": spaces.MultiBinary(3),
    "MultiBinary of two axes": spaces.MultiBinary([2, 2]),
}
BOUNDED = ("Box", "float64 Box", "asymmetric Box", "Box of two axes")


class Sampler(gym.Env[Any, Any]):
    """Shows samples of its observation space and refuses what is not in its action space."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.time = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert belongs(self.action_space, action)
        self.time += 1
        return self.observation_space.sample(), 1.0, False, self.time >= 5, {}


def belongs(space: spaces.Space, action: Any) -> bool:
    dtype_fits = np.asarray(action).dtype == space.dtype
    return dtype_fits and space.contains(np.asarray(action) if isinstance(space, spaces.Box) else action)


def assert_same(value: Any, other: Any) -> None:
    if isinstance(other, dict):
        assert value.keys() == other.keys()
        for key in other:
            assert_same(value[key], other[key])
    elif isinstance(other, tuple):
        assert len(value) == len(other)
        for mine, theirs in zip(value, other, strict=True):
            assert_same(mine, theirs)
    else:
        np.testing.assert_allclose(np.asarray(value, np.float64), np.asarray(other, np.float64), rtol=1e-6)


def samples(space: spaces.Space, count: int) -> list[Any]:
    space.seed(0)
    return [space.sample() for _ in range(count)]


@pytest.mark.parametrize("name", [*FLAT, *IMAGES, *NESTED])
def test_an_encoded_observation_is_in_the_encoded_space_and_decodes_to_itself(name: str) -> None:
    space = {**FLAT, **IMAGES, **NESTED}[name]
    encoder = ObservationEncoder(space)
    for observation in samples(space, 5):
        encoded = encoder(observation)
        assert encoder.space.contains(encoded), f"{encoded} is not in {encoder.space}"
        assert_same(encoder.decode(encoded), observation)


@pytest.mark.parametrize("name", [*FLAT, *IMAGES, *NESTED])
def test_a_batch_is_encoded_like_its_rows(name: str) -> None:
    space = {**FLAT, **IMAGES, **NESTED}[name]
    encoder, rows = ObservationEncoder(space), samples(space, 4)
    batch = encoder(stack_observations(rows, space))
    shapes = map_arrays(lambda array: np.array(array.shape), batch)
    assert_same(shapes, map_arrays(lambda array: np.array(array.shape), encoder.empty(4)))
    for i, row in enumerate(rows):
        assert_same(map_arrays(lambda array, i=i: array[i], batch), encoder(row))
    decoded = encoder.decode(batch)
    assert_same(decoded, stack_observations(rows, space))


def test_floats_become_float32_and_integers_keep_their_type() -> None:
    assert ObservationEncoder(FLAT["float64"]).space.dtype == np.float32
    for dtype in INTEGERS:
        assert ObservationEncoder(FLAT[dtype]).space.dtype == np.dtype(dtype)


def test_bounds_beyond_float32_become_infinite() -> None:
    huge = spaces.Box(-1e300, 1e300, (2,), np.float64)
    encoded = ObservationEncoder(huge).space
    assert np.isinf(encoded.low).all()
    assert np.isinf(encoded.high).all()


def test_images_become_channel_first() -> None:
    encoder = ObservationEncoder(IMAGES["channel last"])
    assert encoder.space.shape == (3, 36, 38)
    observation = samples(IMAGES["channel last"], 1)[0]
    np.testing.assert_array_equal(encoder(observation)[2], observation[:, :, 2])
    assert encoder(encoder(observation)).shape == (3, 36, 38), "an image that is channel-first already is left alone"


def test_nested_keys_are_joined_by_slashes() -> None:
    names = list(ObservationEncoder(NESTED["nested"]).space.spaces)
    assert sorted(names) == ["arm/grip/0", "arm/grip/1", "arm/joints", "flags"]
    assert list(ObservationEncoder(NESTED["Tuple"]).space.spaces) == ["0", "1"]


def test_keys_that_collide_are_refused() -> None:
    space = spaces.Dict({"a": spaces.Dict({"b": box(1)}), "a/b": box(1)})
    with pytest.raises(ValueError, match="collide"):
        ObservationEncoder(space)


@pytest.mark.parametrize("space", [spaces.Text(5), spaces.Dict({"deep": spaces.Tuple((spaces.Text(3),))})])
def test_observation_spaces_that_no_policy_reads_are_refused_by_name(space: spaces.Space) -> None:
    with pytest.raises(ValueError, match=r"observation space.*expected Box, Discrete.*Text"):
        ObservationEncoder(space)


def test_action_spaces_that_no_policy_acts_in_are_refused() -> None:
    with pytest.raises(ValueError, match=r"action space: expected Box.*got Dict"):
        ActionDecoder(spaces.Dict({"a": box(1)}))


@pytest.mark.parametrize("name", ACTIONS)
def test_decoded_actions_are_in_the_environments_space(name: str) -> None:
    space = ACTIONS[name]
    decoder = ActionDecoder(space)
    shape, dtype = decoder.policy_array_spec()
    if isinstance(space, spaces.Box):
        actions = np.random.default_rng(0).normal(0, 5, (6, *shape)).astype(dtype)
    else:
        actions = np.stack([np.asarray(action) for action in samples(decoder.space, 6)])
    before = actions.copy()
    for action in decoder(actions):
        assert belongs(space, action)
    np.testing.assert_array_equal(actions, before)


def test_discrete_actions_and_observations_are_shifted_by_the_start() -> None:
    space = spaces.Discrete(3, start=7)
    np.testing.assert_array_equal(ActionDecoder(space)(np.array([0, 2])), [7, 9])
    np.testing.assert_array_equal(ObservationEncoder(space)(np.array([7, 9])), [0, 2])
    several = ACTIONS["MultiDiscrete of two axes"]
    np.testing.assert_array_equal(ActionDecoder(several)(np.array([[2, 1, 0, 1]])), [[[3, 1], [0, 5]]])


def test_box_actions_are_clipped_and_squashed_ones_stretched() -> None:
    decoder = ActionDecoder(ACTIONS["asymmetric Box"])
    np.testing.assert_allclose(decoder(np.array([[5.0, -9.0], [0.15, 1.0]], np.float32)), [[0.2, -3], [0.15, 1]], rtol=1e-6)
    squashed = decoder(np.array([[-1.0, 1.0], [0.0, 0.0]], np.float32), squashed=True)
    np.testing.assert_allclose(squashed, [[0.1, 8], [0.15, 2.5]], rtol=1e-6)


def trained(policy: str, space: spaces.Space, actions: spaces.Space, num_envs: int, **kwargs: Any) -> PPO:
    env = [lambda: Sampler(space, actions)] * num_envs
    kwargs.setdefault("policy_kwargs", {}).setdefault("net_arch", [8])
    if policy == "CnnPolicy":
        kwargs["policy_kwargs"]["features_extractor_kwargs"] = {"features_dim": 8}
    return PPO(policy, env, n_steps=63 // num_envs, batch_size=3, n_epochs=1, seed=0, device="cpu", **kwargs)


def check_learning_and_prediction(
    policy: str, space: spaces.Space, actions: spaces.Space, num_envs: int, **kwargs: Any
) -> None:
    agent = trained(policy, space, actions, num_envs, **kwargs).learn(64)
    rows = samples(space, 3)
    for deterministic in (True, False):
        single, memory = agent.predict(rows[0], deterministic=deterministic)
        assert memory is None
        assert belongs(actions, single if isinstance(actions, spaces.Box | spaces.MultiBinary) else np.asarray(single))
        batch, _ = agent.predict(stack_observations(rows, space), deterministic=deterministic)
        assert batch.shape == (3, *(actions.shape or ()))
        assert all(belongs(actions, action) for action in batch)
    alone = [agent.predict(row, deterministic=True)[0] for row in rows]
    batch, _ = agent.predict(stack_observations(rows, space), deterministic=True)
    np.testing.assert_allclose(batch, np.stack(alone), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", FLAT)
def test_a_policy_learns_and_predicts_on_every_flat_space(name: str, num_envs: int) -> None:
    check_learning_and_prediction("MlpPolicy", FLAT[name], ACTIONS["Box"], num_envs)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", IMAGES)
def test_a_policy_learns_and_predicts_on_images(name: str, num_envs: int) -> None:
    check_learning_and_prediction("CnnPolicy", IMAGES[name], ACTIONS["Discrete from 2"], num_envs)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", NESTED)
def test_a_policy_learns_and_predicts_on_nested_spaces(name: str, num_envs: int) -> None:
    kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 8}}
    check_learning_and_prediction("MultiInputPolicy", NESTED[name], ACTIONS["Discrete"], num_envs, policy_kwargs=kwargs)


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("name", ACTIONS)
def test_a_policy_learns_and_predicts_in_every_action_space(name: str, num_envs: int) -> None:
    check_learning_and_prediction("MlpPolicy", FLAT["float32"], ACTIONS[name], num_envs)


@pytest.mark.parametrize("name", BOUNDED)
def test_a_squashed_policy_learns_and_predicts_in_every_bounded_box(name: str) -> None:
    check_learning_and_prediction("MlpPolicy", FLAT["float32"], ACTIONS[name], 3, policy_kwargs={"squash_output": True})


def test_an_image_is_predicted_on_in_both_channel_orders() -> None:
    agent = trained("CnnPolicy", IMAGES["channel last"], ACTIONS["Box"], 1)
    observation = samples(IMAGES["channel last"], 1)[0]
    last, _ = agent.predict(observation, deterministic=True)
    first, _ = agent.predict(np.moveaxis(observation, -1, 0), deterministic=True)
    np.testing.assert_array_equal(last, first)


@pytest.mark.parametrize(
    ("name", "wrong"), [("float32", np.zeros(4)), ("two axes", np.zeros((3, 2))), ("MultiBinary", np.zeros(3))]
)
def test_an_observation_of_another_shape_is_refused(name: str, wrong: Any) -> None:
    agent = trained("MlpPolicy", FLAT[name], ACTIONS["Box"], 1)
    with pytest.raises(ValueError, match="shape"):
        agent.predict(wrong)


def test_prediction_leaves_a_dict_observation_as_it_is() -> None:
    agent = trained("MultiInputPolicy", NESTED["Dict"], ACTIONS["Box"], 1)
    observation = samples(NESTED["Dict"], 1)[0]
    before = {key: np.copy(value) for key, value in observation.items()}
    agent.predict(observation)
    assert_same(observation, before)
    assert observation["a"].dtype == np.float64
