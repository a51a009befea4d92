"""PPO's closed-form gradient against autograd through the loss as the paper has it."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlopt import PPO
from rlopt.agents.ppo import Rates, UpdateLog
from rlopt.agents.proximal import Batch

ACTION_SPACES = [spaces.Box(-1, 1, (3,)), spaces.Discrete(4), spaces.MultiDiscrete([3, 2]), spaces.MultiBinary(3)]
VALUE_LOSSES = [(None, "prediction"), (0.1, "prediction"), (0.1, "maximum")]


class Nowhere(gym.Env[Any, Any]):
    """Spaces only."""

    def __init__(self, action_space: spaces.Space):
        self.observation_space, self.action_space = spaces.Box(-1, 1, (5,)), action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return np.zeros(5, np.float32), {}


def random_batch(agent: PPO, rows: int = 200) -> Batch:
    """Rows far enough from the policy that both clips bind for some and not for others."""
    generator = torch.Generator().manual_seed(0)
    noise = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    agent.action_space.seed(0)
    actions = torch.as_tensor(np.stack([np.asarray(agent.action_space.sample()) for _ in range(rows)]))
    observations = noise(rows, 5)
    with torch.no_grad():
        distribution, values = agent.actor_critic(observations)
        log_probs = distribution.log_prob(actions) + 0.3 * noise(rows)
    ended = torch.zeros(rows, dtype=torch.bool)
    return Batch(observations, actions, log_probs, noise(rows), values + 0.1 * noise(rows), noise(rows), ended)


def both_gradients(agent: PPO) -> list[torch.Tensor]:
    """[by autograd, in closed form], flat."""
    agent.descent.begin(agent.state.theta, {}, 1e-3)
    batch, parameters, results = random_batch(agent), list(agent.descent.module.parameters()), []
    for method in (agent._by_autograd, agent._in_closed_form):
        outputs, gradients = method(batch, Rates(1e-3, 0.2, agent.clip_range_vf), UpdateLog())
        pieces = torch.autograd.grad(outputs, parameters, gradients, allow_unused=True, materialize_grads=True)
        results.append(torch.cat([piece.reshape(-1) for piece in pieces]))
    return results


@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=lambda space: type(space).__name__)
@pytest.mark.parametrize(("clip_range_vf", "value_clip"), VALUE_LOSSES)
@pytest.mark.parametrize("ent_coef", [0.0, 0.1])
def test_the_closed_form_is_the_gradient_of_the_loss(action_space, clip_range_vf, value_clip, ent_coef):
    agent = PPO(
        "MlpPolicy",
        Nowhere(action_space),
        n_steps=64,
        seed=0,
        ent_coef=ent_coef,
        clip_range_vf=clip_range_vf,
        value_clip=value_clip,
        device="cpu",
    )
    autograd, closed_form = both_gradients(agent)
    assert autograd.norm() > 0.1
    torch.testing.assert_close(closed_form, autograd, atol=1e-6, rtol=1e-5)


def test_a_wrong_closed_form_is_noticed(monkeypatch):
    """Negative control: with the clip left out, the two differ."""
    agent = PPO("MlpPolicy", Nowhere(ACTION_SPACES[0]), n_steps=64, seed=0, device="cpu")
    monkeypatch.setattr(
        "rlopt.agents.ppo.clipped_surrogate_weights", lambda log_ratio, advantages, _: log_ratio.exp() * advantages
    )
    autograd, closed_form = both_gradients(agent)
    assert (autograd - closed_form).abs().max() > 1e-3
