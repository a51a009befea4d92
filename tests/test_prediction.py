"""Section 5 of the contract: what `predict` takes and gives, row by row, beside SB3's where SB3 can."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO

from rlopt import PPO
from tests.small_envs import ACTION_SPACES, OBSERVATION_SPACES, Walk

POLICY = {"image": "CnnPolicy", "image_first": "CnnPolicy"}
DICTS = {"dict", "dict_image", "tuple", "nested"}


def agent_of(observations="box", actions="discrete", **kwargs):
    policy = "MultiInputPolicy" if observations in DICTS else POLICY.get(observations, "MlpPolicy")
    return PPO(policy, Walk(observations, actions), seed=0, **kwargs)


def batch_of(space, size=4):
    space.seed(0)
    samples = [space.sample() for _ in range(size)]

    def stack(space, samples):
        if isinstance(space, spaces.Dict):
            return {key: stack(sub, [sample[key] for sample in samples]) for key, sub in space.spaces.items()}
        if isinstance(space, spaces.Tuple):
            return tuple(stack(sub, [sample[i] for sample in samples]) for i, sub in enumerate(space.spaces))
        return np.stack(samples)

    return samples, stack(space, samples)


@pytest.mark.parametrize("observations", OBSERVATION_SPACES)
def test_single_and_batched_observations_of_every_space_give_the_same_actions(observations):
    agent = agent_of(observations, "box")
    samples, batch = batch_of(agent.observation_space)
    together, state = agent.predict(batch, deterministic=True)
    assert state is None
    assert together.shape == (4, 2)
    for sample, action in zip(samples, together):
        single, _ = agent.predict(sample, deterministic=True)
        assert single.shape == (2,)
        np.testing.assert_allclose(single, action, rtol=0, atol=1e-6)


@pytest.mark.parametrize("actions", ACTION_SPACES)
@pytest.mark.parametrize("deterministic", [True, False])
def test_actions_are_members_of_the_action_space(actions, deterministic):
    agent = agent_of(actions=actions, policy_kwargs={"log_std_init": 2.0})
    observation = np.zeros(3, np.float32)
    for _ in range(20):
        action, _ = agent.predict(observation, deterministic=deterministic)
        assert agent.action_space.contains(action if action.ndim else action[()])
        assert action.dtype == agent.action_space.dtype


def test_a_discrete_action_is_an_int64_array_without_axes():
    action, _ = agent_of().predict(np.zeros(3, np.float32))
    assert isinstance(action, np.ndarray)
    assert action.shape == ()
    assert action.dtype == np.int64
    assert agent_of().predict(np.zeros((1, 3), np.float32))[0].shape == (1,)


@pytest.mark.parametrize(
    "observations", ["box", "matrix", "discrete", "multi", "binary", "image", "image_first", "dict", "dict_image"]
)
@pytest.mark.parametrize("actions", ["discrete", "multi", "binary", "box"])
def test_deterministic_actions_equal_sb3s(observations, actions):
    agent = agent_of(observations, actions)
    theirs = SB3PPO(agent.policy_class, Walk(observations, actions), seed=0, device="cpu")  # the same first weights
    samples, batch = batch_of(agent.observation_space)
    mine, expected = (model.predict(batch, deterministic=True)[0] for model in (agent, theirs))
    assert mine.shape == expected.shape
    np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-6)
    assert agent.predict(samples[0], deterministic=True)[0].shape == theirs.predict(samples[0], deterministic=True)[0].shape


def test_images_are_read_in_either_channel_order():
    agent = agent_of("image", "box")
    image = np.random.default_rng(0).integers(0, 256, (36, 36, 1)).astype(np.uint8)
    last, _ = agent.predict(image, deterministic=True)
    first, _ = agent.predict(image.transpose(2, 0, 1), deterministic=True)
    batched, _ = agent.predict(image.transpose(2, 0, 1)[None], deterministic=True)
    np.testing.assert_array_equal(last, first)
    np.testing.assert_array_equal(last, batched[0])


def test_box_actions_are_clipped_to_the_bounds():
    agent = agent_of(actions="box", policy_kwargs={"log_std_init": 3.0})
    actions, _ = agent.predict(np.zeros((100, 3), np.float32))
    assert actions.min() == -0.5
    assert actions.max() == 1.5


def test_squashed_actions_are_stretched_to_the_bounds():
    agent = agent_of(actions="box", policy_kwargs={"squash_output": True, "log_std_init": 3.0})
    actions, _ = agent.predict(np.zeros((1000, 3), np.float32))
    assert -0.5 <= actions.min() < -0.45
    assert 1.45 < actions.max() <= 1.5
    middle, _ = agent.predict(np.zeros(3, np.float32), deterministic=True)
    head = agent.actor_critic.action_parameters(torch.zeros(1, 3)).detach().numpy()[0]
    np.testing.assert_allclose(middle, np.tanh(head) + 0.5, atol=1e-6)


def test_the_pair_of_a_gymnasium_reset_is_explained():
    """SB3#1694."""
    env = Walk()
    agent = PPO("MlpPolicy", env, seed=0)
    with pytest.raises(ValueError, match=r"observation: .*reset returns \(observation, info\)"):
        agent.predict(env.reset(seed=0))


WRONG = {
    "box": [np.zeros(4), np.zeros((2, 4)), np.zeros((2, 2, 3)), np.float32(0.0), np.zeros(1), np.zeros((3, 1))],
    "discrete": [np.zeros((2, 2), np.int64)],
    "multi": [np.zeros(3, np.int64)],
    "binary": [np.zeros(5, np.int8)],
    "image": [np.zeros((36, 35, 1), np.uint8), np.zeros((36, 36), np.uint8)],
    "dict": [{"position": np.zeros(3), "room": 1}, {"position": np.zeros(2)}, np.zeros(2)],
}


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("observations", "wrong"), [(name, wrong) for name, list_ in WRONG.items() for wrong in list_])
def test_a_wrong_observation_is_an_error_that_says_what_is_expected(observations, wrong, normalize):
    if normalize and observations not in ("box", "dict"):
        pytest.skip("nothing to normalise")
    agent = agent_of(observations, normalize_observations=normalize)
    with pytest.raises(ValueError, match=r"(?i)expected|observation"):
        agent.predict(wrong)


@pytest.mark.parametrize("observations", ["box", "dict", "dict_image", "nested", "tuple"])
def test_the_observation_is_never_modified(observations):
    agent = agent_of(observations, normalize_observations=True)
    samples, batch = batch_of(agent.observation_space)
    for observation in (samples[0], batch):
        kept = copy.deepcopy(observation)
        agent.predict(observation)
        assert str(kept) == str(observation)


def test_the_agents_own_normalisation_is_applied_with_frozen_statistics():
    agent = agent_of(actions="box", normalize_observations=True)
    agent.observation_normalizer.update(np.random.default_rng(0).normal(3.0, 2.0, (100, 3)))
    assert agent.get_vec_normalize_env() is None
    observation = np.array([1.0, -2.0, 0.5], np.float32)
    moments = agent.observation_normalizer.moments[""]
    before = np.array(moments.mean)
    normalized = ((observation - moments.mean) / np.sqrt(moments.var + 1e-8)).astype(np.float32)
    with torch.no_grad():
        expected = agent.policy.get_distribution(torch.from_numpy(normalized[None])).mode().numpy()[0]
    np.testing.assert_allclose(agent.predict(observation, deterministic=True)[0], np.clip(expected, -0.5, 1.5), atol=1e-6)
    np.testing.assert_array_equal(before, moments.mean)


def test_the_policy_is_in_evaluation_mode_and_no_gradient_is_kept():
    agent = agent_of()
    agent.policy.set_training_mode(True)
    agent.predict(np.zeros(3, np.float32))
    assert not agent.policy.training


def test_state_and_episode_start_are_accepted():
    action, state = agent_of().predict(np.zeros((2, 3), np.float32), None, np.ones(2, bool), True)
    assert action.shape == (2,)
    assert state is None


def test_lists_are_observations_too():
    agent = agent_of(actions="box")
    expected = agent.predict(np.array([0.1, 0.2, 0.3]), deterministic=True)[0]
    np.testing.assert_array_equal(agent.predict([0.1, 0.2, 0.3], deterministic=True)[0], expected)


def test_prediction_has_a_generator_of_its_own():
    """The same curve with and without evaluation."""
    first, second = agent_of(), agent_of()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first.predict(np.zeros((10, 3), np.float32))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.generators["actions"].get_state(), second.generators["actions"].get_state())
    draws = [agent_of().predict(np.zeros((50, 3), np.float32))[0] for _ in range(2)]
    np.testing.assert_array_equal(*draws)
    assert len(set(draws[0].tolist())) == 3
