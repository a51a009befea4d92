"""What every algorithm owes, whatever it computes."""

import copy
import inspect

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import EvalCallback

from rlopt import ALGORITHMS, Agent
from tests.small_envs import Walk

SMALL = {"n_steps": 16, "batch_size": 16, "n_epochs": 2, "num_episodes": 3, "num_small": 2, "num_initial": 4, "n_envs": 1}
CLASSES = {cls.__name__: cls for cls in ALGORITHMS.values()}  # a name with a prefix is a class with other defaults


@pytest.fixture(params=CLASSES)
def algorithm(request):
    return CLASSES[request.param]


def make(algorithm, actions="discrete", **kwargs):
    known = inspect.signature(algorithm).parameters
    small = {name: value for name, value in SMALL.items() if name in known}
    return algorithm("MlpPolicy", lambda: Walk(actions=actions), **{"seed": 0, **small, **kwargs})


def bits(agent):
    return agent.state.theta.clone()


def copied(state):
    return copy.deepcopy(state)


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def test_the_name_in_the_table_is_the_class_in_lower_case():
    for name, algorithm in ALGORITHMS.items():
        assert name.removeprefix("n-").replace("-", "") == algorithm.__name__.lower()
        assert issubclass(algorithm, Agent)


@pytest.mark.parametrize("actions", ["discrete", "box", "multi", "binary"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_the_same_seed_gives_the_same_bits(algorithm, actions, n_envs):
    first, second = (make(algorithm, actions, n_envs=n_envs).learn(96) for _ in range(2))
    assert torch.equal(bits(first), bits(second))
    other = make(algorithm, actions, n_envs=n_envs, seed=1).learn(96)
    assert not torch.equal(bits(first), bits(other))


def test_global_generators_do_not_enter_the_training(algorithm):
    first = make(algorithm)
    torch.manual_seed(123)
    np.random.seed(123)  # noqa: NPY002
    second = make(algorithm)
    first.learn(64)
    torch.manual_seed(7)
    np.random.seed(7)  # noqa: NPY002
    second.learn(64)
    assert torch.equal(bits(first), bits(second))


def test_step_leaves_its_input_unchanged(algorithm):
    agent = make(algorithm).learn(32)
    state, kept = agent.state, copied(agent.state)
    following, _ = agent.step(state, agent.collector)
    assert all(same(a, b) for a, b in zip(state, kept))
    assert not torch.equal(following.theta, state.theta)
    agent.step(following, agent.collector)
    assert all(same(a, b) for a, b in zip(state, kept))


def test_metrics_are_finite_scalars(algorithm):
    agent = make(algorithm, "box").learn(32)
    _, metrics = agent.step(agent.state, agent.collector)
    for name, value in metrics.items():
        assert torch.as_tensor(value).shape == (), name
        assert bool(torch.as_tensor(value).isfinite()), name
        assert not torch.as_tensor(value).requires_grad, name


def test_the_policys_parameters_are_views_of_theta(algorithm):
    agent = make(algorithm).learn(32)
    assert torch.equal(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]), agent.state.theta)
    first = next(agent.policy.parameters())
    assert first.data_ptr() == agent.state.theta.data_ptr()
    assert all(p.requires_grad for p in agent.policy.parameters())


def test_evaluation_in_between_does_not_change_training(algorithm):
    plain = make(algorithm, normalize_observations=True).learn(128)
    watched = make(algorithm, normalize_observations=True)
    evaluation = EvalCallback(Walk(), n_eval_episodes=2, eval_freq=20, deterministic=False, verbose=0, warn=False)
    watched.learn(128, callback=evaluation)
    assert evaluation.last_mean_reward > -np.inf
    assert torch.equal(bits(plain), bits(watched))


def test_logging_and_callbacks_do_not_change_training(algorithm, tmp_path):
    plain = make(algorithm).learn(64, log_interval=None)
    read = []
    watched = make(algorithm, tensorboard_log=str(tmp_path)).learn(64, lambda local, _: read.append(local["values"]) or True)
    assert 64 <= len(read) == watched.num_timesteps
    assert torch.equal(bits(plain), bits(watched))


def test_training_in_parts_equals_training_at_once(algorithm):
    parts = make(algorithm).learn(32)
    parts.learn(64, reset_num_timesteps=False)
    whole = make(algorithm).learn(parts.num_timesteps)
    assert parts.num_timesteps == whole.num_timesteps
    assert torch.equal(bits(whole), bits(parts))


def test_learning_moves_the_parameters_and_returns_the_agent(algorithm):
    agent = make(algorithm)
    before = bits(agent)
    assert agent.learn(32) is agent
    assert not torch.equal(bits(agent), before)


def test_an_agent_without_an_environment_says_so(algorithm, tmp_path):
    make(algorithm).save(tmp_path / "agent")
    with pytest.raises(ValueError, match=r"env: .*set_env"):
        algorithm.load(tmp_path / "agent").learn(16)


def test_the_caller_keeps_its_number_of_threads(algorithm):
    before = torch.get_num_threads()
    make(algorithm).learn(16)
    assert torch.get_num_threads() == before


def test_a_loaded_agent_has_the_same_state_and_predicts_the_same(algorithm, tmp_path):
    agent = make(algorithm, "box", normalize_observations=True, normalize_rewards=True).learn(64)
    agent.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent")
    for mine, theirs in zip(agent.state, loaded.state):
        assert same(mine, theirs)
    assert loaded.num_timesteps == agent.num_timesteps >= 64
    assert loaded.hyperparameters() == agent.hyperparameters()
    observations = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for deterministic in (True, False):
        first = agent.initial_state(len(observations))
        mine, theirs = (a.predict(observations, first, deterministic=deterministic)[0] for a in (agent, loaded))
        np.testing.assert_array_equal(mine, theirs)


def test_every_public_name_has_a_docstring(algorithm):
    for name, member in inspect.getmembers(algorithm, inspect.isfunction):
        if not name.startswith("_"):
            assert member.__doc__ or name in ("init", "step"), name
