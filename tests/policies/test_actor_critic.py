"""Oracle: the SB3 policy itself."""

import copy

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from torch import nn

from rlopt import PPO
from rlopt.policies import ActorCritic, SquashedGaussian, make_policy
from rlopt.policies.actor_critic import BYPASSED_METHODS
from tests.small_envs import ACTION_SPACES, OBSERVATION_SPACES, Walk

BOX = OBSERVATION_SPACES["box"]


class Doubled(BaseFeaturesExtractor):
    """A custom features extractor."""

    def __init__(self, observation_space, features_dim=8, scale=2.0):
        super().__init__(observation_space, features_dim)
        self.scale = scale
        self.linear = nn.Linear(observation_space.shape[0], features_dim)

    def forward(self, observations):
        return torch.relu(self.linear(observations * self.scale))


class TwoHeads(nn.Module):
    """A custom network in place of SB3's MlpExtractor, as its guide shows it."""

    def __init__(self, features_dim):
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = 5, 6
        self.policy_net = nn.Sequential(nn.Linear(features_dim, 5), nn.ReLU())
        self.value_net = nn.Sequential(nn.Linear(features_dim, 6), nn.ELU())

    def forward(self, features):
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features):
        return self.policy_net(features)

    def forward_critic(self, features):
        return self.value_net(features)


class CustomPolicy(ActorCriticPolicy):
    def __init__(self, *args, **kwargs):
        kwargs["ortho_init"] = False
        super().__init__(*args, **kwargs)

    def _build_mlp_extractor(self):
        self.mlp_extractor = TwoHeads(self.features_dim)


POLICY_KWARGS = {
    "plain": {},
    "list": {"net_arch": [16, 8]},
    "dict": {"net_arch": {"pi": [16], "vf": [8, 8]}},
    "missing key": {"net_arch": {"vf": [8]}},
    "linear": {"net_arch": []},
    "relu": {"activation_fn": nn.ReLU},
    "no ortho": {"ortho_init": False},
    "log_std": {"log_std_init": -1.5},
    "extractor": {"features_extractor_class": Doubled, "features_extractor_kwargs": {"scale": 3.0}},
    "two extractors": {"features_extractor_class": Doubled, "share_features_extractor": False},
    "rmsprop": {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}},
    "no defaults": {"optimizer_kwargs": {"betas": (0.8, 0.9)}},
}


def sb3_twin(policy, observations, actions, kwargs, seed=3):
    return SB3PPO(policy, Walk(observations, actions), policy_kwargs=copy.deepcopy(kwargs), seed=seed, device="cpu").policy


def both(policy="MlpPolicy", observations="box", actions="box", kwargs=None):
    """The same seed through SB3 and through rlopt."""
    mine = PPO(policy, Walk(observations, actions), policy_kwargs=kwargs, seed=3, device="cpu").policy
    return mine, sb3_twin(policy, observations, actions, kwargs or {})


def assert_same_weights(mine, theirs):
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(mine.state_dict()[name], tensor), name


@pytest.mark.parametrize("name", POLICY_KWARGS)
def test_the_same_seed_gives_sb3s_initial_weights(name):
    assert_same_weights(*both(kwargs=POLICY_KWARGS[name]))


@pytest.mark.parametrize("actions", ["discrete", "multi", "binary", "box"])
def test_the_same_seed_gives_sb3s_initial_weights_for_every_action_space(actions):
    assert_same_weights(*both(actions=actions))


@pytest.mark.parametrize(
    ("policy", "observations"),
    [("CnnPolicy", "image"), ("CnnPolicy", "image_first"), ("MultiInputPolicy", "dict_image"), ("MlpPolicy", "matrix")],
)
def test_the_same_seed_gives_sb3s_initial_weights_for_other_observations(policy, observations):
    assert_same_weights(*both(policy, observations, "discrete"))


def test_a_custom_policy_has_sb3s_initial_weights():
    assert_same_weights(*both(CustomPolicy))


@pytest.mark.parametrize("name", POLICY_KWARGS)
@pytest.mark.parametrize("actions", ["discrete", "multi", "binary", "box"])
def test_actor_critic_computes_what_sb3_computes(name, actions):
    _, policy = both(actions=actions, kwargs=POLICY_KWARGS[name])
    with torch.no_grad():
        for parameter in policy.parameters():  # away from the small initial action head
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    observations = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    taken, values, log_probs = policy(observations)
    _, _, entropy = policy.evaluate_actions(observations, taken)
    mine = ActorCritic(policy)
    distribution, my_values = mine(observations)
    for got, expected in (
        (my_values, values.flatten()),
        (mine.critic(observations), policy.predict_values(observations).flatten()),
        (distribution.log_prob(taken), log_probs),
        (mine.actor(observations).log_prob(taken), log_probs),
        (distribution.entropy(), entropy),
        (distribution.mode(), policy.get_distribution(observations).mode()),
    ):
        assert got.shape == expected.shape
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-5, atol=1e-5)


def test_policy_and_critic_share_no_parameter():
    """Details 13 and 26."""
    policy, _ = both()
    actor = {id(p) for part in (policy.mlp_extractor.policy_net, policy.action_net) for p in part.parameters()}
    critic = {id(p) for part in (policy.mlp_extractor.value_net, policy.value_net) for p in part.parameters()}
    assert not actor & critic
    for net in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        assert [type(layer) for layer in net] == [nn.Linear, nn.Tanh, nn.Linear, nn.Tanh]
        assert [layer.out_features for layer in net[::2]] == [64, 64]


def test_weights_are_orthogonal_with_the_gains_of_detail_2():
    policy, _ = both()
    gains = {"mlp_extractor": 2.0, "action_net": 0.01**2, "value_net": 1.0}
    for name, parameter in policy.named_parameters():
        if name.endswith("bias"):
            assert float(parameter.detach().abs().max()) == 0.0
        elif name.endswith("weight"):
            weight = parameter.detach().double()
            gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
            expected = gains[name.split(".")[0]] * torch.eye(len(gram), dtype=torch.float64)
            torch.testing.assert_close(gram, expected, rtol=0, atol=1e-5)


def test_log_std_is_one_free_vector_that_starts_at_zero():
    """Detail 24."""
    policy, _ = both()
    assert isinstance(policy.log_std, nn.Parameter)
    assert policy.log_std.tolist() == [0.0, 0.0]
    assert both(kwargs={"log_std_init": -1.5})[0].log_std.tolist() == [-1.5, -1.5]


def test_adam_has_the_epsilon_of_detail_3():
    assert both()[0].optimizer.defaults["eps"] == 1e-5


def test_the_nature_cnn_is_shared():
    """Detail 21: one extractor, the same parameter objects."""
    policy, _ = both("CnnPolicy", "image", "discrete")
    assert isinstance(policy.features_extractor, NatureCNN)
    assert policy.pi_features_extractor is policy.vf_features_extractor is policy.features_extractor


def test_images_are_divided_by_255_in_the_network():
    """Detail 22: storage stays uint8."""
    policy, _ = both("CnnPolicy", "image", "discrete")
    images = torch.randint(0, 256, (4, 1, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = policy.action_net(policy.mlp_extractor.forward_actor(policy.features_extractor(images.float() / 255)))
    torch.testing.assert_close(ActorCritic(policy).action_parameters(images), expected)
    agent = PPO("CnnPolicy", Walk("image"), n_steps=4, batch_size=4, seed=0)
    agent.collector.reset(5)
    rollout = agent.collector.steps(agent.state.theta, 4)
    assert rollout.observations.dtype == torch.uint8


def test_normalize_images_can_be_turned_off():
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {"normalized_image": True}}
    policy, _ = both("CnnPolicy", "image", "discrete", kwargs)
    images = torch.randint(0, 256, (4, 1, 36, 36), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = policy.action_net(policy.mlp_extractor.forward_actor(policy.features_extractor(images.float())))
    torch.testing.assert_close(ActorCritic(policy).action_parameters(images.float()), expected)


@pytest.mark.parametrize("name", POLICY_KWARGS)
def test_the_callers_dictionaries_are_not_modified(name):
    kwargs = POLICY_KWARGS[name]
    kept = copy.deepcopy(kwargs)
    PPO("MlpPolicy", Walk(), policy_kwargs=kwargs, seed=0)
    assert kwargs == kept


def test_the_callers_dictionaries_are_not_modified_with_images_as_they_are():
    """SB3 edits `features_extractor_kwargs` in place here."""
    kwargs = {"normalize_images": False, "features_extractor_kwargs": {}, "optimizer_kwargs": {}}
    PPO("CnnPolicy", Walk("image"), policy_kwargs=kwargs, seed=0)
    assert kwargs == {"normalize_images": False, "features_extractor_kwargs": {}, "optimizer_kwargs": {}}


@pytest.mark.parametrize("name", [*POLICY_KWARGS, "custom policy", "squashed"])
def test_every_kind_of_policy_learns(name):
    policy = CustomPolicy if name == "custom policy" else "MlpPolicy"
    kwargs = {"squash_output": True} if name == "squashed" else POLICY_KWARGS.get(name)
    agent = PPO(policy, Walk(actions="box"), n_steps=16, batch_size=8, n_epochs=2, policy_kwargs=kwargs, seed=0)
    before = agent.state.theta.clone()
    agent.learn(16)
    assert not torch.equal(agent.state.theta, before)
    assert bool(agent.state.theta.isfinite().all())


def test_a_squashed_policy_acts_inside_the_bounds():
    agent = PPO(
        "MlpPolicy", Walk(actions="box"), n_steps=64, policy_kwargs={"squash_output": True, "log_std_init": 1.0}, seed=0
    )
    assert isinstance(agent.actor_critic.actor(torch.zeros(1, 3)), SquashedGaussian)
    agent.collector.reset(5)
    rollout = agent.collector.steps(agent.state.theta, 64)
    assert float(rollout.actions.abs().max()) <= 1.0
    taken = np.array(agent.environments.envs[0].actions)
    assert taken.min() >= -0.5
    assert taken.max() <= 1.5
    stretched = -0.5 + (rollout.actions[:, 0].numpy() + 1)  # from (−1, 1) to (−0.5, 1.5)
    np.testing.assert_allclose(taken, stretched, atol=1e-6)


def test_the_log_prob_is_that_of_the_action_before_clipping():
    """Detail 27: the environment gets the clipped action, the rollout the raw one."""
    agent = PPO("MlpPolicy", Walk(actions="box"), n_steps=64, policy_kwargs={"log_std_init": 1.0}, seed=0)
    agent.collector.reset(5)
    rollout = agent.collector.steps(agent.state.theta, 64)
    taken = np.array(agent.environments.envs[0].actions)
    raw = rollout.actions[:, 0].numpy()
    assert raw.max() > 1.5
    np.testing.assert_array_equal(taken, np.clip(raw, -0.5, 1.5))
    expected = agent.policy.evaluate_actions(rollout.observations[:, 0], rollout.actions[:, 0])[1]
    torch.testing.assert_close(rollout.log_probs[:, 0], expected.detach(), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- errors


def refused(policy, observation_space=BOX, action_space=ACTION_SPACES["discrete"], **kwargs):
    with pytest.raises(ValueError, match=r"^policy") as caught:
        make_policy(policy, observation_space, action_space, 1e-3, kwargs)
    return str(caught.value)


def test_an_unknown_alias_names_the_nearest():
    assert "did you mean 'MlpPolicy'?" in refused("MlpPolcy")


def test_a_dict_space_asks_for_multi_input_policy():
    assert "MultiInputPolicy" in refused("MlpPolicy", OBSERVATION_SPACES["dict"])
    assert "MultiInputPolicy" in refused("CnnPolicy", OBSERVATION_SPACES["dict"])
    assert "MlpPolicy" in refused("MultiInputPolicy")


def test_a_class_that_is_not_an_sb3_policy_is_refused():
    assert "subclass" in refused(nn.Linear)
    assert "subclass" in refused(3)


@pytest.mark.parametrize("method", BYPASSED_METHODS)
def test_a_policy_whose_overridden_methods_would_be_ignored_is_refused(method):
    policy = type("Mine", (ActorCriticPolicy,), {method: lambda self, *args: None})
    assert method in refused(policy)


def test_gsde_is_refused():
    assert "gSDE" in refused("MlpPolicy", action_space=ACTION_SPACES["box"], use_sde=True)


def test_unknown_keywords_are_refused():
    assert "net_arc" in refused("MlpPolicy", net_arc=[3])


def test_squashing_needs_finite_bounds():
    unbounded = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    assert "finite bounds" in refused("MlpPolicy", action_space=unbounded, squash_output=True)
    assert "finite bounds" in refused("MlpPolicy", squash_output=True)
