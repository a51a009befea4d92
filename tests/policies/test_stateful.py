"""Stateful policies: the joint distribution against reference ones, what reads what, first values, errors."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn
from torch.distributions import (
    Bernoulli,
    Independent,
    MultivariateNormal,
    Normal,
    TanhTransform,
    TransformedDistribution,
)
from torch.distributions import Categorical as Choice

from rlopt.envs.memory import MEMORY, OBSERVATION, PREVIOUS_ACTION
from rlopt.envs.spaces import ActionDecoder, ObservationEncoder
from rlopt.policies.distributions import draw_noise
from rlopt.policies.stateful import (
    JointDistribution,
    StatefulActorCritic,
    StatefulPolicy,
    actor_spaces,
    as_actor_critic,
    make_stateful_policy,
    readable_spaces,
)
from tests.small_envs import ACTION_SPACES, OBSERVATION_SPACES

CELLS = ["gru", "lstm", "mlp"]
ACTIONS = [*ACTION_SPACES, "squashed"]
BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)


def policy_of(actions="box", observations="box", moved=0.3, memory_size=4, alias=None, **kwargs):
    """A policy for encoded spaces with every parameter moved off its first value."""
    torch.manual_seed(0)
    space = ActionDecoder(ACTION_SPACES["box" if actions == "squashed" else actions]).space
    seen = ObservationEncoder(OBSERVATION_SPACES[observations]).space if isinstance(observations, str) else observations
    if alias is None:
        alias = "MultiInputPolicy" if isinstance(seen, spaces.Dict) else "CnnPolicy" if seen.dtype == np.uint8 else "MlpPolicy"
    if actions == "squashed":
        kwargs["squash_output"] = True
    policy = make_stateful_policy(alias, seen, space, 1e-3, kwargs, memory_size)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += moved * torch.randn_like(parameter)
    return policy


def rows_of(policy, batch=5, seed=0):
    """Some (o, z, a_prev), tensors [batch, ...]."""
    policy.observation_space.seed(seed)
    samples = [policy.observation_space.sample() for _ in range(batch)]
    return {key: torch.from_numpy(np.stack([sample[key] for sample in samples])) for key in samples[0]}


def sampled(policy, rows, seed=0):
    """The joint distribution of these rows and draws of (a, z')."""
    with torch.no_grad():
        distribution = as_actor_critic(policy).actor(rows)
        noise = draw_noise(policy.action_space, (len(rows[MEMORY]),), torch.Generator().manual_seed(seed))
        return distribution, distribution.sample(noise)


# ------------------------------------------------------------------ the joint distribution


def reference(distribution, actions):
    """log π_a by torch.distributions, [B]."""
    chosen = distribution.action
    if actions == "squashed":
        base = Normal(chosen.mean, chosen.log_std.exp().expand_as(chosen.mean))
        return Independent(TransformedDistribution(base, TanhTransform(cache_size=1)), 1).log_prob
    if actions in ("discrete", "shifted"):
        return Choice(logits=chosen.log_probabilities).log_prob
    if actions == "multi":
        parts = [Choice(logits=part.log_probabilities) for part in chosen.parts]
        return lambda a: sum(part.log_prob(a[:, i]) for i, part in enumerate(parts))
    return Independent(Bernoulli(logits=chosen.logits), 1).log_prob


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_joint_log_probability_is_the_sum_of_its_factors_and_that_of_reference_distributions(actions, cell):
    policy = policy_of(actions, cell=cell, log_std_init=-0.7).double()
    rows = {key: value.double() for key, value in rows_of(policy).items()}
    distribution, joint = sampled(policy, rows)
    chosen, memory = policy.action_space.split(joint)
    of_action, of_memory = distribution.log_probs(joint)
    torch.testing.assert_close(distribution.log_prob(joint), of_action + of_memory, rtol=0, atol=0)
    mean, std = distribution.memory.mean, distribution.memory.log_std.exp()
    assert mean.shape == memory.shape == (5, policy.action_space.memory_size)
    gaussian = MultivariateNormal(mean, torch.diag(std**2))
    torch.testing.assert_close(of_memory, gaussian.log_prob(memory), rtol=0, atol=1e-10)
    if actions == "box":  # one Gaussian of (a, z')
        both = torch.cat([distribution.action.mean, mean], -1)
        stds = torch.cat([distribution.action.log_std.exp(), std])
        expected = MultivariateNormal(both, torch.diag(stds**2)).log_prob(joint)
        torch.testing.assert_close(distribution.log_prob(joint), expected, rtol=0, atol=1e-10)
    else:
        torch.testing.assert_close(of_action, reference(distribution, actions)(chosen), rtol=0, atol=1e-8)


@pytest.mark.parametrize("actions", ACTIONS)
def test_the_entropy_is_that_of_the_action_alone(actions):
    policy = policy_of(actions)
    rows = rows_of(policy)
    distribution, _ = sampled(policy, rows)
    assert torch.equal(distribution.entropy(), distribution.action.entropy())
    if actions in ("discrete", "shifted"):
        torch.testing.assert_close(distribution.entropy(), Choice(logits=distribution.action.log_probabilities).entropy())
    as_actor_critic(policy).actor(rows).entropy().sum().backward()
    assert policy.memory_log_excess.grad is None  # σ_z is not rewarded for growing


@pytest.mark.parametrize("actions", ACTIONS)
def test_draws_have_the_mean_and_spread_of_the_memory_and_the_mode_is_its_mean(actions):
    policy = policy_of(actions)
    row = rows_of(policy, 1)
    rows = {key: value.expand(20_000, *value.shape[1:]) for key, value in row.items()}
    distribution, joint = sampled(policy, rows)
    chosen, memory = policy.action_space.split(joint)
    std = distribution.memory.log_std.exp()
    errors = (memory.mean(0) - distribution.memory.mean[0]) / std
    assert (errors.abs() < 5 / 20_000**0.5).all()
    assert ((memory.std(0) / std - 1).abs() < 0.03).all()
    centred = chosen.reshape(20_000, -1).float() - chosen.reshape(20_000, -1).float().mean(0)
    correlation = (centred * ((memory - memory.mean(0)) / std)[:, :1]).mean(0) / centred.std(0).clamp_min(1e-6)
    assert (correlation.abs() < 5 / 20_000**0.5).all()  # a and z' are independent, given what both read
    mode = distribution.mode()
    assert torch.equal(policy.action_space.split(mode)[1], distribution.memory.mean)
    assert torch.equal(policy.action_space.split(mode)[0].float(), distribution.action.mode().float())


def test_the_score_of_the_standard_deviation_is_that_of_a_gaussian():
    """∂ log N / ∂ log σ = ((z' − μ) / σ)² − 1, and σ = σ_min + exp x."""
    policy = policy_of("discrete", min_memory_std=0.05).double()
    rows = {key: value.double() for key, value in rows_of(policy).items()}
    _, joint = sampled(policy, rows)
    distribution = as_actor_critic(policy).actor(rows)
    distribution.log_probs(joint)[1].sum().backward()
    std = policy.memory_log_std.exp()
    z = ((policy.action_space.split(joint)[1] - distribution.memory.mean) / std).detach()
    expected = (z**2 - 1).sum(0) * (policy.memory_log_excess.exp() / std).detach()
    torch.testing.assert_close(policy.memory_log_excess.grad, expected, rtol=0, atol=1e-10)


# ------------------------------------------------------------------ what reads what


def jacobian(policy, rows, output, key):
    """Whether an output changes with one part of the observation: its largest derivative."""
    leaf = rows[key].clone().requires_grad_()
    value = output(as_actor_critic(policy), {**rows, key: leaf})
    (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
    return 0.0 if gradient is None else float(gradient.abs().max())


OUTPUTS = {
    "memory": lambda view, rows: view.actor(rows).memory.mean,
    "action": lambda view, rows: view.actor(rows).action.mean,
    "value": lambda view, rows: view.critic(rows),
}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("previous_action", [True, False])
def test_actor_and_critic_read_observation_memory_and_previous_action(cell, output, previous_action):
    policy = policy_of(cell=cell, previous_action=previous_action)
    rows = rows_of(policy)
    for key in (OBSERVATION, MEMORY, PREVIOUS_ACTION):
        found = jacobian(policy, rows, OUTPUTS[output], key)
        assert (found > 1e-3) == (previous_action or key != PREVIOUS_ACTION)


def test_the_action_reads_the_mean_of_the_next_memory_and_not_its_noise():
    policy = policy_of()
    view, rows = as_actor_critic(policy), rows_of(policy)
    with torch.no_grad():
        features = rows[OBSERVATION]
        mean = policy.kernel(policy.encoder(torch.cat([features, rows[PREVIOUS_ACTION]], -1)), rows[MEMORY])
        head = policy.action_net(policy.actor_net(torch.cat([features, mean], -1)))
        distribution = view.actor(rows)
    torch.testing.assert_close(distribution.memory.mean, mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(distribution.action.mean, head, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_forward_is_actor_and_critic(cell):
    policy = policy_of("multi", cell=cell)
    view, rows = as_actor_critic(policy), rows_of(policy)
    assert isinstance(view, StatefulActorCritic)
    distribution, values = view(rows)
    _, joint = sampled(policy, rows)
    assert isinstance(distribution, JointDistribution)
    assert torch.equal(distribution.log_prob(joint), view.actor(rows).log_prob(joint))
    assert torch.equal(values, view.critic(rows))
    assert values.shape == (5,)


@pytest.mark.parametrize("observations", OBSERVATION_SPACES)
@pytest.mark.parametrize("actions", ["discrete", "squashed"])
def test_every_observation_is_read(observations, actions):
    policy = policy_of(actions, observations, moved=0.0)
    view = as_actor_critic(policy)
    with torch.no_grad():
        here, there = (view(rows_of(policy, seed=seed)) for seed in (0, 1))
    assert (here[1] - there[1]).abs().max() > 1e-6
    assert (here[0].memory.mean - there[0].memory.mean).abs().max() > 1e-6


def test_images_are_scaled_to_one():
    policy = policy_of("discrete", "image", moved=0.0)
    rows = rows_of(policy)
    seen = []
    policy.pi_features_extractor.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    as_actor_critic(policy).actor(rows)
    assert 0.9 < float(seen[0].max()) <= 1.0


# ------------------------------------------------------------------ a critic that sees more


PRIVILEGED = {
    "plain": (spaces.Dict({"observation": BOX, "critic": spaces.Box(-1, 1, (5,))}), "MlpPolicy", ["critic"]),
    "parts": (
        spaces.Dict({"observation": BOX, "critic/goal": spaces.Box(-1, 1, (2,)), "critic/cue": spaces.Discrete(3)}),
        "MlpPolicy",
        ["critic/goal", "critic/cue"],
    ),
    "several": (
        spaces.Dict({"position": BOX, "room": spaces.Discrete(3), "critic": spaces.Box(-1, 1, (5,))}),
        "MultiInputPolicy",
        ["critic"],
    ),
    "camera": (
        spaces.Dict({"observation": spaces.Box(0, 255, (1, 36, 36), np.uint8), "critic": spaces.Box(-1, 1, (5,))}),
        "CnnPolicy",
        ["critic"],
    ),
}


@pytest.mark.parametrize("name", PRIVILEGED)
def test_only_the_critic_reads_what_is_meant_for_it(name):
    space, alias, keys = PRIVILEGED[name]
    policy = policy_of("box", space, alias=alias, moved=0.02)
    view, rows, others = as_actor_critic(policy), rows_of(policy), rows_of(policy, seed=1)
    with torch.no_grad():
        distribution, values = view(rows)
        for key in keys:
            changed = {**rows, key: others[key]}
            again, changed_values = view(changed)
            assert torch.equal(again.action.mean, distribution.action.mean)
            assert torch.equal(again.memory.mean, distribution.memory.mean)
            assert (changed_values - values).abs().max() > 1e-5
        visible = next(key for key in space.spaces if key not in keys)
        again, changed_values = view({**rows, visible: others[visible]})
        assert (again.action.mean - distribution.action.mean).abs().max() > 1e-5
        assert (changed_values - values).abs().max() > 1e-6  # it reads the others too


def test_spaces_are_divided_between_actor_and_critic():
    plain = spaces.Dict({"position": BOX, "critical": BOX})
    assert readable_spaces(BOX) == (BOX, BOX)
    assert readable_spaces(plain) == (plain, plain)
    space = PRIVILEGED["plain"][0]
    assert readable_spaces(space) == (BOX, space)
    with pytest.raises(ValueError, match=r"^observation space: every entry is the critic's \(\['critic'\]\)"):
        readable_spaces(spaces.Dict({"critic": BOX}))


@pytest.mark.parametrize("name", PRIVILEGED)
def test_an_actor_can_act_in_spaces_without_what_is_meant_for_the_critic(name):
    space, _, keys = PRIVILEGED[name]
    visible = {key: sub for key, sub in space.spaces.items() if key not in keys}
    bare = [visible["observation"]] if name != "several" else []
    assert actor_spaces(space) == [spaces.Dict(visible), *bare]
    assert actor_spaces(visible.get("observation", BOX)) == actor_spaces(spaces.Dict(visible)) == []
    nested = spaces.Dict({"observation": spaces.Dict({"arm": BOX}), "critic": spaces.Dict({"goal": BOX})})
    assert actor_spaces(nested) == [spaces.Dict({"observation": nested["observation"]}), nested["observation"]]


# ------------------------------------------------------------------ features extractors of actor and critic


class Narrow(BaseFeaturesExtractor):
    """The first `width` numbers of all entries."""

    def __init__(self, space, width=2):
        super().__init__(space, width)

    def forward(self, observations):
        read = torch.cat(list(observations.values()), -1) if isinstance(observations, dict) else observations
        return read[:, : self.features_dim]


def extractors_of(name, **kwargs):
    """Class and width of φ and φ_v."""
    space, alias, _ = PRIVILEGED[name]
    policy = policy_of("box", space, alias=alias, moved=0.0, **kwargs)
    rows = rows_of(policy)
    as_actor_critic(policy)(rows)
    return [(type(part), part.features_dim) for part in (policy.pi_features_extractor, policy.vf_features_extractor)]


CAMERA_EXTRACTORS = {
    "nothing": ({}, (NatureCNN, 512), (CombinedExtractor, 256 + 5)),
    "the actor's arguments": ({"features_extractor_kwargs": {"features_dim": 8}}, (NatureCNN, 8), (CombinedExtractor, 256 + 5)),
    "the critic's arguments": (
        {"critic_features_extractor_kwargs": {"cnn_output_dim": 9}},
        (NatureCNN, 512),
        (CombinedExtractor, 9 + 5),
    ),
}


@pytest.mark.parametrize("given", CAMERA_EXTRACTORS)
def test_arguments_of_the_actors_extractor_are_not_those_of_a_critic_that_combines(given):
    kwargs, of_actor, of_critic = CAMERA_EXTRACTORS[given]
    assert extractors_of("camera", **kwargs) == [of_actor, of_critic]


VECTOR_EXTRACTORS = {
    "nothing": ({}, (FlattenExtractor, 3), (CombinedExtractor, 8)),
    "the actor's class": (
        {"features_extractor_class": Narrow, "features_extractor_kwargs": {"width": 1}},
        (Narrow, 1),
        (CombinedExtractor, 8),
    ),
    "the critic's class": ({"critic_features_extractor_class": Narrow}, (FlattenExtractor, 3), (Narrow, 2)),
    "both classes": (
        {
            "features_extractor_class": Narrow,
            "features_extractor_kwargs": {"width": 1},
            "critic_features_extractor_class": Narrow,
            "critic_features_extractor_kwargs": {"width": 4},
        },
        (Narrow, 1),
        (Narrow, 4),
    ),
    "one class for both": (
        {
            "features_extractor_class": Narrow,
            "features_extractor_kwargs": {"width": 1},
            "critic_features_extractor_class": Narrow,
        },
        (Narrow, 1),
        (Narrow, 1),
    ),
}


@pytest.mark.parametrize("given", VECTOR_EXTRACTORS)
def test_actor_and_critic_have_the_extractors_that_were_asked_for(given):
    kwargs, of_actor, of_critic = VECTOR_EXTRACTORS[given]
    assert extractors_of("plain", **kwargs) == [of_actor, of_critic]


def test_a_class_for_the_actor_is_the_critics_where_both_read_a_dict():
    kwargs = {"features_extractor_class": Narrow, "features_extractor_kwargs": {"width": 2}}
    assert extractors_of("several", **kwargs) == [(Narrow, 2), (Narrow, 2)]


def test_arguments_that_the_critics_extractor_does_not_take_are_refused():
    with pytest.raises(ValueError, match=r"^policy_kwargs: StatefulPolicy refuses them: .*'depth'"):
        extractors_of("plain", critic_features_extractor_kwargs={"depth": 3})


def test_images_that_are_normalised_already_are_images_to_the_critic_too():
    floats = spaces.Dict({"observation": spaces.Box(0, 1, (1, 36, 36)), "critic": spaces.Box(-1, 1, (5,))})
    policy = policy_of("box", floats, alias="CnnPolicy", moved=0.0, normalize_images=False)
    assert type(policy.pi_features_extractor) is NatureCNN
    assert policy.vf_features_extractor.features_dim == 256 + 5


# ------------------------------------------------------------------ first values


@pytest.mark.parametrize("actions", ["discrete", "box"])
@pytest.mark.parametrize("net_arch", [None, [], [32], {"pi": [], "vf": [8]}])
def test_the_action_head_starts_ten_times_stronger_than_ppos(actions, net_arch):
    """Where it all but ignores the memory, memory cannot begin to be learned."""
    policy = policy_of(actions, moved=0.0, net_arch=net_arch, memory_size=16)
    gains = torch.linalg.svdvals(policy.action_net.weight.detach())
    assert (gains > 0.1 - 1e-6).all()
    rows = rows_of(policy)
    mean = as_actor_critic(policy).actor(rows).memory.mean.detach().requires_grad_()
    head = as_actor_critic(policy).action_distribution(rows[OBSERVATION], mean)
    output = head.mean if actions == "box" else head.log_probabilities
    (slope,) = torch.autograd.grad(output[:, 0].sum(), mean)
    assert float(slope.norm(dim=-1).mean()) > 0.03


@pytest.mark.parametrize(("std", "floor"), [(0.15, 0.02), (0.3, 0.0), (1.0, 0.5)])
def test_the_memorys_noise_starts_as_asked_and_has_a_floor(std, floor):
    policy = policy_of(moved=0.0, memory_std=std, min_memory_std=floor)
    np.testing.assert_allclose(policy.memory_log_std.detach().exp(), std, rtol=1e-5)
    with torch.no_grad():
        policy.memory_log_excess -= 50.0
    np.testing.assert_allclose(policy.memory_log_std.detach().exp(), floor, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_the_gates_bias_is_the_retention_or_spread_over_delays(cell):
    gate = slice(0, 200) if cell == "mlp" else slice(200, 400)
    same = policy_of(moved=0.0, cell=cell, memory_size=200, retention=1.5).kernel
    assert (same.bias_ih[gate] == 1.5).all()
    assert not same.bias_hh.any()
    assert int((same.bias_ih != 0).sum()) == 200
    spread = policy_of(moved=0.0, cell=cell, memory_size=200, retention=(1, 50)).kernel.bias_ih[gate].detach()
    assert float(spread.min()) >= 0.0
    assert float(spread.max()) <= math.log(49)
    delays = spread.exp()  # uniform on [1, 49]
    assert abs(float(delays.mean()) - 25) < 4 * 48 / 12**0.5 / 200**0.5
    for delay in (1.5, 2, 10):  # a short range too gives finite biases
        assert policy_of(moved=0.0, cell=cell, retention=[1, delay]).kernel.bias_ih.isfinite().all()


def test_the_lstms_memory_is_twice_as_wide():
    assert policy_of(cell="lstm", memory_size=4).action_space.memory_size == 8
    assert policy_of(cell="gru", memory_size=4).action_space.memory_size == 4


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory_size": 0}, r"^memory_size: expected a positive integer, got 0"),
        ({"memory_size": -3}, r"^memory_size: "),
        ({"memory_size": 2.5}, r"^memory_size: "),
        ({"cell": "rnn"}, r"^cell: expected one of .*gru.*, got 'rnn'"),
        ({"memory_std": 0.02}, r"^memory_std: expected more than min_memory_std = 0.02, got 0.02"),
        ({"memory_std": 0.1, "min_memory_std": 0.2}, r"^memory_std: expected more than min_memory_std = 0.2, got 0.1"),
        ({"min_memory_std": -0.1}, r"^min_memory_std: "),
        ({"hidden": 3}, r"^policy_kwargs: StatefulPolicy refuses them: .*hidden"),
        ({"alias": "CnnPolicy"}, r"^policy: "),
        ({"alias": "MultiInputPolicy"}, r"^policy: 'MultiInputPolicy' reads Dict"),
        ({"alias": "MlpLstmPolicy"}, r"^policy: "),
        ({"alias": ActorCriticPolicy}, r"^policy: an agent with memory takes MlpPolicy, CnnPolicy, MultiInputPolicy, got"),
        ({"alias": StatefulPolicy}, r"^policy: "),
        ({"use_sde": True}, r"^policy_kwargs: use_sde"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        policy_of(**arguments)


def test_a_choice_cannot_be_squashed():
    with pytest.raises(ValueError, match=r"^policy_kwargs: squash_output needs a Box action space with finite bounds"):
        policy_of("discrete", squash_output=True)


def test_a_policy_has_no_parameters_that_nothing_uses():
    for actions in ACTIONS:
        policy = policy_of(actions)
        view, rows = as_actor_critic(policy), rows_of(policy)
        _, joint = sampled(policy, rows)
        distribution, values = view(rows)
        (distribution.log_prob(joint).sum() + values.sum()).backward()
        unused = [name for name, parameter in policy.named_parameters() if parameter.grad is None]
        assert unused == []
        assert isinstance(policy.encoder, nn.Sequential)
