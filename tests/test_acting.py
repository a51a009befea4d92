"""Actors: the fast ones act as the policy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlopt.acting import NUMPY_MAX_ENVS, NumpyActor, TorchActor, make_actor
from rlopt.envs.spaces import ActionDecoder
from rlopt.policies import ActorCritic, draw_noise, make_policy

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
