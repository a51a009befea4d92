"""PPO against Stable-Baselines3's own, and the implementation details that decide whether it learns."""

import copy
from unittest import mock

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

import rlopt.agents.ppo as ppo_module
from rlopt import PPO, Linear, Rollout
from rlopt.agents.ppo import Batch
from tests.small_envs import Walk

T, N = 64, 3


class Recorder(BaseCallback):
    """Copies what SB3 saw, before its rollout adds bootstrap values to the rewards."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def _on_step(self):
        names = ("new_obs", "actions", "rewards", "dones", "infos", "log_probs")
        self.steps.append({name: copy.deepcopy(self.locals[name]) for name in names})
        return True


def sb3_update(observations="box", actions="discrete", policy_kwargs=None, **kwargs):
    """SB3 collects one rollout; returns its model before training, the rollout as ours, and the row orders to use."""
    env = _envs(observations, actions)
    model = SB3PPO("MlpPolicy", env, n_steps=T, seed=1, device="cpu", policy_kwargs=policy_kwargs, **kwargs)
    recorder = Recorder()
    total, callback = model._setup_learn(2 * T * N, recorder)
    first = np.copy(model._last_obs)
    callback.on_training_start(locals(), globals())
    model.collect_rollouts(env, callback, model.rollout_buffer, T)
    model._update_current_progress_remaining(model.num_timesteps, total)
    return model, _as_rollout(first, recorder.steps), np.random.default_rng(0)


def _envs(observations, actions):
    return DummyVecEnv([lambda: Walk(observations, actions) for _ in range(N)])


def _as_rollout(first, steps):
    done = np.stack([step["dones"] for step in steps])
    cut = np.array([[bool(d and info["TimeLimit.truncated"]) for d, info in zip(s["dones"], s["infos"])] for s in steps])
    rows = [(t, n) for t in range(T) for n in range(N) if done[t, n]]
    finals = np.stack([steps[t]["infos"][n]["terminal_observation"] for t, n in rows])
    assert cut.any(), "the comparison needs a truncated episode"
    assert (done & ~cut).any(), "and a terminated one"
    return Rollout(
        states=torch.from_numpy(np.stack([first, *(step["new_obs"] for step in steps)])),
        actions=torch.from_numpy(np.stack([step["actions"] for step in steps])),
        log_probs=torch.stack([step["log_probs"] for step in steps]),
        rewards=torch.from_numpy(np.stack([step["rewards"] for step in steps])),
        terminated=torch.from_numpy(done & ~cut),
        truncated=torch.from_numpy(cut),
        mask=torch.ones(T, N, dtype=torch.bool),
        final_rows=torch.tensor([t * N + n for t, n in rows]),
        final_observations=torch.from_numpy(finals),
    )


def twin(model, actions="discrete", policy_kwargs=None, **kwargs):
    """Our agent with SB3's weights."""
    agent = PPO("MlpPolicy", _envs("box", actions), n_steps=T, seed=2, policy_kwargs=policy_kwargs, **kwargs)
    agent.set_parameters({"policy": model.policy.state_dict()}, exact_match=False)
    return agent


def trained_both(actions, policy_kwargs=None, **kwargs):
    """One full update by each of the two, on the same rollout in the same order."""
    model, rollout, draw = sb3_update(actions=actions, policy_kwargs=policy_kwargs, **kwargs)
    agent = twin(model, actions, policy_kwargs, **kwargs)
    batch = agent.advantages(agent.state.theta, rollout)
    orders = [draw.permutation(T * N) for _ in range(model.n_epochs)]
    with mock.patch("numpy.random.permutation", side_effect=orders):
        model.train()
    # SB3's flat rows are environment-major, ours are time-major
    ours = [torch.from_numpy((order % T) * N + order // T) for order in orders]
    agent._adopt(agent.update(agent.state, batch, model._current_progress_remaining, ours)[0])
    return model, agent


def largest_difference(model, agent):
    mine, theirs = agent.policy.state_dict(), model.policy.state_dict()
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).abs().max()) for name in mine)


SB3_CASES = {
    "discrete": ("discrete", {}),
    "discrete, value clip": ("discrete", {"clip_range_vf": 0.2}),
    "box": ("box", {}),
    "box, value clip": ("box", {"clip_range_vf": 0.2}),
    "multi": ("multi", {}),
    "binary": ("binary", {}),
    "entropy": ("discrete", {"ent_coef": 0.05}),
    "box, entropy": ("box", {"ent_coef": 0.05}),
    "advantages as they are": ("box", {"normalize_advantage": False}),
    "target_kl": ("box", {"target_kl": 0.003, "learning_rate": 3e-3}),
    "schedules": ("discrete", {"learning_rate": Linear(1e-3), "clip_range": Linear(0.3, 0.1), "clip_range_vf": Linear(1.0)}),
    "small networks": ("box", {"policy_kwargs": {"net_arch": {"pi": [8], "vf": [16, 4]}, "activation_fn": torch.nn.ReLU}}),
    "rmsprop": ("discrete", {"policy_kwargs": {"optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}}}),
    "no discount": ("discrete", {"gamma": 1.0, "gae_lambda": 1.0}),
}


@pytest.mark.parametrize("name", SB3_CASES)
def test_one_update_equals_sb3s(name):
    """Same weights, same rollout, same minibatch order: parameters after all epochs agree to 1e-5 in float32."""
    actions, kwargs = SB3_CASES[name]
    model, agent = trained_both(actions, **{"batch_size": 48, "n_epochs": 10, **kwargs})
    assert agent.state.num_updates == model._n_updates
    assert largest_difference(model, agent) < 1e-5
    if name == "target_kl":
        assert model._n_updates < 10


@pytest.mark.filterwarnings("ignore:.*not a multiple|.*mini-batch size:UserWarning")
def test_one_update_equals_sb3s_with_a_smaller_last_minibatch():
    model, agent = trained_both("discrete", batch_size=50, n_epochs=4)
    assert largest_difference(model, agent) < 1e-5


def test_one_update_moves_the_parameters_far_beyond_the_tolerance():
    """Negative control: the tolerance of the checks above is a thousandth of what an update does."""
    model, rollout, _ = sb3_update(batch_size=48)
    agent = twin(model, batch_size=48)
    agent._adopt(agent.update(agent.state, agent.advantages(agent.state.theta, rollout), 0.5)[0])
    assert largest_difference(model, agent) > 1e-2


def wrong_clip_sign(log_ratio, advantages, clip_range):
    ratio = log_ratio.exp()
    binds = torch.where(advantages > 0, ratio < 1 - clip_range, ratio > 1 + clip_range)
    return (ratio * advantages).masked_fill(binds, 0.0)


@pytest.mark.parametrize(
    ("name", "broken"),
    [
        ("clipped_surrogate_weights", wrong_clip_sign),
        ("clipped_surrogate_weights", lambda log_ratio, advantages, clip_range: log_ratio.exp() * advantages),
        ("clipped_value_loss_slope", lambda values, old, targets, clip_range: 2 * (values - targets)),
        ("gae", lambda r, v, n, discounts, traces: r + discounts * n - v),
    ],
)
def test_a_broken_part_is_noticed_by_the_comparison(monkeypatch, name, broken):
    """Negative control."""
    monkeypatch.setattr(ppo_module, name, broken)
    model, agent = trained_both("discrete", batch_size=48, n_epochs=10, learning_rate=3e-3, clip_range_vf=0.2)
    assert largest_difference(model, agent) > 1e-4


@pytest.mark.parametrize("actions", ["discrete", "multi", "binary", "box"])
@pytest.mark.parametrize("value_clip", ["prediction", "maximum"])
def test_the_closed_form_gradient_gives_autograds_update(actions, value_clip):
    kwargs = {"n_steps": 64, "ent_coef": 0.01, "clip_range_vf": 0.1, "value_clip": value_clip, "learning_rate": 3e-3}
    agent = PPO("MlpPolicy", Walk(actions=actions), seed=0, **kwargs)
    batch = agent.advantages(agent.state.theta, agent.collector.steps(agent.state.theta, 64))
    orders = [torch.arange(64)] * agent.n_epochs
    closed, _ = agent.update(agent.state, batch, 1.0, orders)
    agent._in_closed_form = agent._by_autograd
    plain, _ = agent.update(agent.state, batch, 1.0, orders)
    torch.testing.assert_close(closed.theta, plain.theta, rtol=0, atol=1e-5)


def test_advantage_normalisation_left_out_is_noticed_by_the_comparison(monkeypatch):
    """Negative control."""
    model, rollout, draw = sb3_update(batch_size=48)
    agent = twin(model, batch_size=48, normalize_advantage=False)
    orders = [draw.permutation(T * N) for _ in range(10)]
    with mock.patch("numpy.random.permutation", side_effect=orders):
        model.train()
    ours = [torch.from_numpy((order % T) * N + order // T) for order in orders]
    batch = agent.advantages(agent.state.theta, rollout)
    agent._adopt(agent.update(agent.state, batch, model._current_progress_remaining, ours)[0])
    assert largest_difference(model, agent) > 1e-4


@pytest.mark.parametrize("actions", ["discrete", "box"])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(0.99, 0.95), (0.9, 0.0), (1.0, 1.0)])
def test_advantages_and_targets_equal_sb3s(actions, gamma, gae_lambda):
    """Truncated episodes are bootstrapped by SB3's own rule, terminated ones are not."""
    model, rollout, _ = sb3_update(actions=actions, gamma=gamma, gae_lambda=gae_lambda)
    agent = twin(model, actions, gamma=gamma, gae_lambda=gae_lambda)
    batch = agent.advantages(agent.state.theta, rollout)
    buffer = model.rollout_buffer
    for mine, theirs in ((batch.advantages, buffer.advantages), (batch.targets, buffer.returns), (batch.values, buffer.values)):
        np.testing.assert_allclose(mine.view(T, N).numpy(), theirs, rtol=0, atol=2e-5)


def test_metrics_equal_sb3s_where_their_definitions_agree():
    model, rollout, _ = sb3_update(actions="box", batch_size=T * N, n_epochs=1)  # one minibatch: no averaging
    agent = twin(model, "box", batch_size=T * N, n_epochs=1)
    model.train()
    _, metrics = agent.update(agent.state, agent.advantages(agent.state.theta, rollout), 1.0)
    logged = model.logger.name_to_value
    names = [name.removeprefix("train/") for name in logged if name.startswith("train/")]
    assert {"entropy_loss", "policy_gradient_loss", "value_loss", "approx_kl", "explained_variance", "loss"} <= set(names)
    for name in set(names) - {"std"}:  # SB3 reads it after the update, as we do; it has its own check
        assert float(metrics[name]) == pytest.approx(float(logged[f"train/{name}"]), abs=1e-5), name
