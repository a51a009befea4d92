"""Gradients and Hessian-vector products of Stable-Baselines3's networks, for every action space.

Oracles: SB3's own log-probabilities with torch.autograd, double backward of the importance-weighted return, and
differences of gradients. All in float32.
"""

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from rlopt.estimators import (
    discounted_return,
    hessian_vector_product,
    importance_weights,
    log_ratio,
    policy_gradient,
    reward_to_go,
)
from rlopt.policies import ActorCritic, Functional, draw_noise, make_policy
from rlopt.policies.actor_critic import ActionLogProb
from rlopt.rollout import Rollout, map_observations
from tests.small_envs import ACTION_SPACES

STEPS, EPISODES, GAMMA = 4, 5, 0.9


class SmoothCnn(BaseFeaturesExtractor):
    """A convolution without kinks."""

    def __init__(self, observation_space, features_dim=8):
        super().__init__(observation_space, features_dim)
        self.layers = nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(36, features_dim))

    def forward(self, observations):
        return torch.tanh(self.layers(observations))


BOX = spaces.Box(-2.0, 2.0, (3,))
SMALL_NETWORK = {"net_arch": [8, 8]}
CASES = {
    **{f"MlpPolicy, {name}": ("MlpPolicy", BOX, space, SMALL_NETWORK) for name, space in ACTION_SPACES.items()},
    "MlpPolicy, squashed box": ("MlpPolicy", BOX, spaces.Box(-1.0, 3.0, (2,)), SMALL_NETWORK | {"squash_output": True}),
    "MlpPolicy, discrete observations": ("MlpPolicy", spaces.Discrete(4), spaces.Discrete(3), SMALL_NETWORK),
    "MultiInputPolicy": (
        "MultiInputPolicy",
        spaces.Dict({"position": BOX, "kind": spaces.Discrete(3)}),
        spaces.Discrete(3),
        SMALL_NETWORK,
    ),
    "CnnPolicy, smooth": (
        "CnnPolicy",
        spaces.Box(0, 255, (1, 8, 8), "uint8"),
        spaces.Discrete(3),
        {"features_extractor_class": SmoothCnn, "net_arch": [8]},
    ),
    "CnnPolicy, SB3's": ("CnnPolicy", spaces.Box(0, 255, (1, 36, 36), "uint8"), spaces.Discrete(3), {"net_arch": [8]}),
}
SMOOTH = [name for name in CASES if name != "CnnPolicy, SB3's"]  # whose rectifiers have kinks
every_case = pytest.mark.parametrize("name", list(CASES))


@pytest.fixture(params=[0.0, 0.1], ids=["on policy", "off policy"])
def distance(request):
    """Of the parameters from those that sampled, per parameter."""
    return request.param


class Problem:
    """A policy, θ, episodes of θ + something with early ends, ψ and a direction."""

    def __init__(self, name, distance, weighting="per_step"):
        policy_name, observation_space, action_space, kwargs = CASES[name]
        torch.manual_seed(0)
        self.policy = make_policy(policy_name, observation_space, action_space, 0.0, kwargs)
        self.functional = Functional(ActionLogProb(ActorCritic(self.policy)))
        self.generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # SB3 begins near the uniform policy
            for parameter in self.policy.action_net.parameters():
                parameter.add_(0.5 * self.normal(*parameter.shape))
        self.theta = Functional(ActionLogProb(ActorCritic(self.policy))).init()
        self.vector = self.normal(len(self.theta)) / len(self.theta) ** 0.5
        self.rollout = self.episodes(observation_space, action_space, self.theta + distance * self.normal(len(self.theta)))
        mask = self.rollout.mask
        self.psi = reward_to_go(self.rollout.rewards, mask, GAMMA, self.normal(STEPS, EPISODES), weighting)
        self.without_baseline = reward_to_go(self.rollout.rewards, mask, GAMMA, weighting=weighting)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def episodes(self, observation_space, action_space, sampled_at):
        observation_space.seed(0)
        samples = [observation_space.sample() for _ in range((STEPS + 1) * EPISODES)]
        if isinstance(observation_space, spaces.Dict):
            states = {key: torch.stack([torch.as_tensor(s[key]) for s in samples]) for key in observation_space}
        else:
            states = torch.stack([torch.as_tensor(sample) for sample in samples])
        states = map_observations(lambda x: x.view(STEPS + 1, EPISODES, *x.shape[1:]), states)
        flat = map_observations(lambda x: x[:-1].flatten(0, 1), states)
        with torch.no_grad():
            distribution = self.functional.bind(sampled_at).actor_critic.actor(flat)
            actions = distribution.sample(draw_noise(action_space, (STEPS * EPISODES,), self.generator))
            log_probs = distribution.log_prob(actions)
        mask = torch.arange(STEPS)[:, None] < torch.tensor([4, 2, 4, 1, 3])
        ends = torch.zeros_like(mask)
        return Rollout(
            states=states,
            actions=actions.view(STEPS, EPISODES, *actions.shape[1:]),
            log_probs=log_probs.view(STEPS, EPISODES) * mask,
            rewards=self.normal(STEPS, EPISODES) * mask,
            terminated=ends,
            truncated=ends,
            mask=mask,
            final_rows=torch.zeros(0, dtype=torch.int64),
            final_observations=map_observations(lambda x: x[:0, 0], states),
        )

    def sb3_log_probs(self):
        """log π_θ [T, N] as SB3 computes it, with a graph to its parameters."""
        observations = map_observations(lambda x: x.flatten(0, 1), self.rollout.observations)
        actions = self.rollout.actions.flatten(0, 1)
        if isinstance(self.policy.action_space, spaces.MultiBinary):
            actions = actions.float()  # as SB3's rollouts have them
        _, log_probs, _ = self.policy.evaluate_actions(observations, actions)
        return log_probs.view(STEPS, EPISODES)

    def gradient(self, theta, psi):
        return policy_gradient(self.functional, theta, self.rollout, psi)

    def product(self, psi):
        return hessian_vector_product(self.functional, self.theta, self.rollout, psi, self.vector)


def relative(value, target):
    assert value.shape == target.shape
    assert float(target.norm()) > 1e-3
    return float((value - target).norm() / target.norm())


@every_case
def test_the_gradient_is_that_of_the_surrogate_by_autograd(name, distance):
    problem = Problem(name, distance)
    ratios = log_ratio(problem.functional, problem.theta, problem.rollout)
    surrogate = (problem.psi(ratios) * problem.sb3_log_probs() * problem.rollout.mask).sum() / EPISODES
    expected = torch.autograd.grad(surrogate, list(problem.policy.parameters()), materialize_grads=True)
    value = problem.gradient(problem.theta, problem.psi)
    assert relative(value, torch.cat([part.flatten() for part in expected])) < 1e-5
    assert bool((ratios[~problem.rollout.mask] == 0).all())
    assert (float(ratios.abs().max()) > 1e-2) == (distance > 0)


@every_case
def test_the_product_is_the_hessian_of_the_weighted_return_by_double_backward(name, distance):
    """ĝ is the gradient of mean_n Σ_h γ^h ω_h r_h, so that no score is written down here either."""
    problem = Problem(name, distance)
    theta = problem.theta.clone().requires_grad_()
    weights = importance_weights(log_ratio(problem.functional, theta, problem.rollout))
    weighted_return = discounted_return(problem.rollout.rewards, GAMMA, weights).mean()
    (gradient,) = torch.autograd.grad(weighted_return, theta, create_graph=True)
    assert relative(problem.gradient(problem.theta, problem.without_baseline), gradient.detach()) < 1e-5
    (expected,) = torch.autograd.grad(gradient @ problem.vector, theta)
    assert relative(problem.product(problem.without_baseline), expected) < 1e-5
    unweighted = lambda log_ratio: problem.without_baseline(torch.zeros_like(log_ratio))  # noqa: E731
    assert relative(problem.product(unweighted), expected) > 0.1  # negative control: no score term


@pytest.mark.parametrize("weighting", ["per_step", "trajectory"])
@pytest.mark.parametrize("name", SMOOTH)
def test_the_product_is_the_derivative_of_the_gradient_by_differences(name, weighting, distance):
    problem = Problem(name, distance, weighting)
    step = 2e-2
    high, low = (problem.gradient(problem.theta + sign * step * problem.vector, problem.psi) for sign in (1, -1))
    product = problem.product(problem.psi)
    assert relative((high - low) / (2 * step), product) < 1e-3
    assert bool(product.isfinite().all())
