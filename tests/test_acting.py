"""Actors: the fast ones act as the policy does."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlopt import PPO
from rlopt.acting import NUMPY_MAX_ENVS, NumpyActor, TorchActor, make_actor, shares_trunk
from rlopt.envs.spaces import ActionDecoder
from rlopt.policies import ActorCritic, draw_noise, make_policy
from tests.small_envs import OBSERVATION_SPACES, Walk

OBSERVATIONS = spaces.Box(-1, 1, (5,), np.float32)
ACTIONS: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(4),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3, 4]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-1, 1, (3,)),
    "squashed Box": spaces.Box(-2, 1, (3,)),
}


def module(name: str, observation_space: spaces.Space = OBSERVATIONS, **kwargs: Any) -> ActorCritic:
    torch.manual_seed(0)
    squash = {"squash_output": True} if name.startswith("squashed") else {}
    policy = make_policy(
        "MlpPolicy", observation_space, ActionDecoder(ACTIONS[name]).space, 1e-3, {"net_arch": [16], **squash, **kwargs}
    )
    with torch.no_grad():
        for parameter in policy.parameters():  # away from the almost uniform beginning
            parameter.add_(0.5 * torch.randn_like(parameter))
    return ActorCritic(policy)


def noise_for(name: str, rows: int) -> np.ndarray:
    return draw_noise(ActionDecoder(ACTIONS[name]).space, (rows,), torch.Generator().manual_seed(1)).numpy()


@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
@pytest.mark.parametrize("name", ACTIONS)
def test_the_numpy_actor_takes_the_actions_of_the_torch_actor(name: str, activation: Any) -> None:
    net = module(name, activation_fn=activation)
    observations = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    kept, noise = observations.copy(), noise_for(name, 64)
    fast = make_actor(net, 64)
    assert isinstance(fast, NumpyActor)
    actions, expected = fast(observations, noise), TorchActor(net)(observations, noise)
    assert actions.dtype == expected.dtype
    assert actions.shape == expected.shape
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(observations, kept)
    assert len(np.unique(actions)) > 1


@pytest.mark.parametrize("name", ACTIONS)
def test_the_torch_actor_samples_the_policys_distribution(name: str) -> None:
    net = module(name)
    observations, noise = torch.randn(8, 5), noise_for(name, 8)
    expected = net.actor(observations).sample(torch.from_numpy(noise))
    np.testing.assert_array_equal(TorchActor(net)(observations.numpy(), noise), expected.detach())


def test_the_numpy_actor_sees_its_weights_change() -> None:
    net = module("Box")
    actor = make_actor(net, 1)
    observations, noise = np.ones((1, 5), np.float32), np.zeros((1, 3), np.float32)
    before = actor(observations, noise).copy()
    with torch.no_grad():
        net.policy.action_net.bias.add_(1.0)
    np.testing.assert_allclose(actor(observations, noise), before + 1, rtol=1e-6)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"activation_fn": torch.nn.ELU},
        {"observation_space": spaces.Box(-1, 1, (2, 3))},
        {"observation_space": spaces.Discrete(4)},
        {"observation_space": spaces.Box(0, 255, (3, 36, 36), np.uint8)},
    ],
)
def test_whatever_is_more_than_a_plain_mlp_is_left_to_torch(kwargs: dict[str, Any]) -> None:
    assert isinstance(make_actor(module("Box", **kwargs), 4), TorchActor)


def test_many_environments_are_left_to_torch() -> None:
    assert isinstance(make_actor(module("Box"), NUMPY_MAX_ENVS), NumpyActor)
    assert isinstance(make_actor(module("Box"), NUMPY_MAX_ENVS + 1), TorchActor)


# ---------------------------------------------------------------- actors that keep what they computed


@pytest.mark.parametrize("backend", ["sync", "gymnasium"])
@pytest.mark.parametrize("actions", ["discrete", "multi", "binary", "box"])
def test_what_is_kept_while_acting_is_what_passes_over_the_rollout_give(actions: str, backend: str) -> None:
    """Rows that reset, s_{t+1} before a reset within the step, and the state after the last step among them."""
    envs = [lambda: Walk("image", actions)] * 3
    given: Any = envs if backend == "sync" else gym.vector.SyncVectorEnv(envs)  # the latter resets on a step of its own
    agent = PPO("CnnPolicy", given, n_steps=20, batch_size=20, seed=0, device="cpu")
    assert agent.collector is not None
    theta = agent.state.theta + 0.05 * torch.randn_like(agent.state.theta)
    agent.collector.steps(theta + 0.01, 20)
    rollout = agent.collector.steps(theta, 20)
    module = agent.functional.bind(theta)
    assert rollout.acting_values is not None
    with torch.no_grad():
        distribution, values = module(rollout.observations.flatten(0, 1))  # type: ignore[union-attr]
    torch.testing.assert_close(rollout.acting_values.flatten(), values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        rollout.log_probs.flatten(), distribution.log_prob(rollout.actions.flatten(0, 1)), rtol=1e-4, atol=1e-5
    )
    known, computed = (rollout.values(module.critic, x) for x in (rollout.acting_values, None))
    torch.testing.assert_close(known, computed, rtol=1e-4, atol=1e-5)
    assert computed[0].std() > 1e-3


def test_states_whose_values_are_known_are_not_passed_through_the_critic_again() -> None:
    agent = PPO("CnnPolicy", [lambda: Walk("image")] * 3, n_steps=20, batch_size=20, seed=0, device="cpu")
    assert agent.collector is not None
    rollout = agent.collector.steps(agent.state.theta, 20)
    seen: list[int] = []

    def critic(observations: Any) -> torch.Tensor:
        seen.append(len(observations))
        return torch.zeros(len(observations))

    rollout.values(critic, rollout.acting_values)
    assert seen == [3, len(rollout.final_rows)]


def test_a_trunk_is_shared_where_layers_are() -> None:
    def policy(name: str, observations: str, **kwargs: Any) -> ActorCritic:
        space: Any = OBSERVATION_SPACES[observations]
        return ActorCritic(make_policy(name, space, ACTIONS["Discrete"], 1e-3, kwargs))

    assert shares_trunk(policy("CnnPolicy", "image_first"))
    assert not shares_trunk(policy("CnnPolicy", "image_first", share_features_extractor=False))
    assert not shares_trunk(policy("MlpPolicy", "box"))  # flattens, and divides at once
    assert not shares_trunk(module("Box"))
