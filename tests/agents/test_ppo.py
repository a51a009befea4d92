"""PPO against Stable-Baselines3's own, and the implementation details that decide whether it learns."""

import copy
import dataclasses
from unittest import mock

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv

import rlopt.agents.ppo as ppo_module
import rlopt.agents.proximal as proximal_module
from rlopt import PPO, Linear, Rollout
from rlopt.collector import Collector
from rlopt.envs.sync import SyncEnvironments
from rlopt.statistics import EpisodeStatistics
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


def rollout_of(agent, num_steps):
    """Its first steps in environments with a seed."""
    agent.collector.reset(5)
    return agent.collector.steps(agent.state.theta, num_steps)


SB3_CASES = {
    "discrete": ("discrete", {}),
    "discrete, value clip": ("discrete", {"clip_range_vf": 0.2}),
    "box": ("box", {}),
    "box, value clip": ("box", {"clip_range_vf": 0.2}),
    "multi": ("multi", {}),
    "binary": ("binary", {}),
    "the clips bind": ("discrete", {"learning_rate": 3e-3, "clip_range_vf": 0.05}),
    "box, the clips bind": ("box", {"learning_rate": 3e-3, "clip_range_vf": 0.05}),
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
    if "bind" in name:
        assert model.logger.name_to_value["train/clip_fraction"] > 0.1


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
    monkeypatch.setattr(proximal_module if name == "gae" else ppo_module, name, broken)
    model, agent = trained_both("discrete", batch_size=48, n_epochs=10, learning_rate=3e-3, clip_range_vf=0.2)
    assert largest_difference(model, agent) > 1e-4


@pytest.mark.parametrize("actions", ["discrete", "multi", "binary", "box"])
@pytest.mark.parametrize("value_clip", ["prediction", "maximum"])
def test_the_closed_form_gradient_gives_autograds_update(actions, value_clip):
    kwargs = {"n_steps": 64, "ent_coef": 0.01, "clip_range_vf": 0.1, "value_clip": value_clip, "learning_rate": 3e-3}
    agent = PPO("MlpPolicy", Walk(actions=actions), seed=0, **kwargs)
    batch = agent.advantages(agent.state.theta, rollout_of(agent, 64))
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


# ---------------------------------------------------------------------- the details of the blog, by number


def agent_of(observations="box", actions="discrete", policy="MlpPolicy", **kwargs):
    arguments = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 0} | kwargs
    return PPO(policy, lambda: Walk(observations, actions), **arguments)


def logged(agent, total_timesteps, **kwargs):
    """The scalars of every iteration."""
    seen = []
    agent.logger  # noqa: B018
    agent.set_logger(agent.logger)
    dump = agent.logger.dump
    agent.logger.dump = lambda step=0: (seen.append(dict(agent.logger.name_to_value)), dump(step))
    agent.learn(total_timesteps, **kwargs)
    return seen


def test_detail_1_many_environments_equal_single_ones_with_the_same_seeds_and_noise(monkeypatch):
    agent = agent_of(n_envs=3)
    noise = torch.randn(2, 20, 3, 3, generator=torch.Generator().manual_seed(0))

    def collected(first, count):
        draws = iter(noise[:, :, first : first + count])
        monkeypatch.setattr("rlopt.collector.draw_noise", lambda *args: next(draws).contiguous())
        envs = SyncEnvironments([Walk] * count, first_index=first)
        collector = Collector(envs, agent.functional, torch.Generator(), EpisodeStatistics(count))
        collector.reset(7)
        # episodes continue across rollouts
        return [collector.steps(agent.state.theta, 20) for _ in range(2)]

    together = collected(0, 3)
    for index in range(3):
        for mine, theirs in zip(collected(index, 1), together):
            for name in ("states", "actions", "rewards", "terminated", "truncated", "mask"):
                assert torch.equal(getattr(mine, name)[:, 0], getattr(theirs, name)[:, index]), name
            torch.testing.assert_close(mine.next_observations[:, 0], theirs.next_observations[:, index], rtol=0, atol=0)


def test_detail_4_the_learning_rate_goes_linearly_to_zero():
    rates = [values["train/learning_rate"] for values in logged(agent_of(learning_rate="linear:1e-3"), 128)]
    assert rates == pytest.approx([0.75e-3, 0.5e-3, 0.25e-3, 0.0])
    cleanrl = agent_of(learning_rate="linear:1e-3", schedule_from="rollout_start")
    rates = [values["train/learning_rate"] for values in logged(cleanrl, 128)]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_detail_4_the_learning_rate_is_equal_after_a_resume(tmp_path):
    agent = agent_of(learning_rate="linear:1e-3").learn(64)
    agent.save(tmp_path / "agent")
    resumed = PPO.load(tmp_path / "agent", env=Walk)
    rates = [[values["train/learning_rate"] for values in logged(a, 64, reset_num_timesteps=False)] for a in (agent, resumed)]
    assert rates[0] == rates[1] == pytest.approx([0.25e-3, 0.0])


def test_progress_is_clamped_to_zero_and_one():
    """A rollout longer than the training gave SB3 a negative learning rate."""
    agent = agent_of(learning_rate=lambda progress: progress, clip_range="linear:0.2")
    assert agent._current_progress_remaining == 1.0
    (values,) = logged(agent, 10)
    assert values["train/learning_rate"] == 0.0
    assert values["train/clip_range"] == 0.0
    assert agent._current_progress_remaining == 0.0


def test_detail_6_every_row_is_visited_once_an_epoch_in_a_new_order():
    with pytest.warns(UserWarning, match="not a multiple"):
        agent = agent_of(n_epochs=3, batch_size=7)
    rollout = rollout_of(agent, 32)
    batch = agent.advantages(agent.state.theta, rollout)._replace(advantages=torch.arange(32.0))
    epochs, cut = [], agent.minibatches

    def watched(*args):
        parts = list(cut(*args))
        epochs.append([part.advantages.tolist() for part in parts])
        return parts

    agent.minibatches = watched
    agent.update(agent.state, batch, 1.0)
    assert [[len(part) for part in epoch] for epoch in epochs] == [[7, 7, 7, 7, 4]] * 3
    rows = [[row for part in epoch for row in part] for epoch in epochs]
    assert [sorted(epoch) for epoch in rows] == [list(range(32))] * 3
    assert rows[0] != rows[1] != rows[2] != rows[0]


def test_rows_are_the_same_however_many_minibatches_are_gathered_at_once(monkeypatch):
    agent = agent_of(n_epochs=1, batch_size=8)
    batch = agent.advantages(agent.state.theta, rollout_of(agent, 32))
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    together = [part.targets.tolist() for part in agent.minibatches(batch, order)]
    monkeypatch.setattr("rlopt.agents.proximal.GATHERED", 1)
    assert (
        together
        == [part.targets.tolist() for part in agent.minibatches(batch, order)]
        == batch.targets[order].view(4, 8).tolist()
    )


def test_detail_7_advantages_are_normalised_in_every_minibatch():
    agent = agent_of()
    batch = agent.advantages(agent.state.theta, rollout_of(agent, 32))
    seen = []
    original = agent._in_closed_form
    agent._in_closed_form = lambda part, *others: seen.append(part.advantages) or original(part, *others)
    agent.update(agent.state, batch, 1.0)
    assert [len(advantages) for advantages in seen] == [16] * 4
    for advantages in seen:
        assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(advantages.std()) == pytest.approx(1.0, abs=1e-5)


def test_detail_7_a_minibatch_of_one_row_gives_finite_parameters():
    """SB3#325: the standard deviation of one sample."""
    with pytest.warns(UserWarning, match="last minibatch of an epoch has 1 rows"):
        agent = agent_of(n_steps=17)
    agent.learn(17)
    assert bool(agent.state.theta.isfinite().all())


def test_detail_10_a_higher_entropy_coefficient_gives_a_higher_entropy():
    entropies = []
    for ent_coef in (0.0, 1.0):
        agent = agent_of(ent_coef=ent_coef, n_epochs=20, learning_rate=3e-3)
        with torch.no_grad():
            agent.policy.action_net.weight.mul_(100.0)
        agent.learn(64)
        rollout = rollout_of(agent, 32)
        entropies.append(float(agent.actor_critic.actor(rollout.observations[:, 0]).entropy().mean().detach()))
    assert entropies[1] > entropies[0] + 0.01


KINDS = [
    ("box", "discrete", "MlpPolicy", {}),
    ("box", "multi", "MlpPolicy", {}),
    ("box", "binary", "MlpPolicy", {}),
    ("box", "box", "MlpPolicy", {}),
    ("box", "box", "MlpPolicy", {"squash_output": True}),
    ("image", "discrete", "CnnPolicy", {}),
    ("dict", "box", "MultiInputPolicy", {}),
    ("discrete", "shifted", "MlpPolicy", {}),
]


@pytest.mark.parametrize(("observations", "actions", "policy", "policy_kwargs"), KINDS)
def test_detail_12_the_first_ratio_of_an_update_is_one(observations, actions, policy, policy_kwargs):
    agent = agent_of(observations, actions, policy, n_steps=32, batch_size=32, n_epochs=1, policy_kwargs=policy_kwargs)
    (values,) = logged(agent, 32)
    assert values["train/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert values["train/clip_fraction"] == 0.0


def test_detail_12_the_diagnostics_are_logged_and_sane():
    for values in logged(agent_of(actions="box", n_epochs=10, learning_rate=3e-3), 128):
        assert values["train/approx_kl"] >= 0.0
        assert 0.0 <= values["train/clip_fraction"] <= 1.0
        assert values["train/explained_variance"] <= 1.0
        assert values["train/grad_norm"] > 0.0
        assert values["train/std"] > 0.0


def test_approx_kl_averages_over_the_whole_update():
    """SB3 averages the last epoch only: with more epochs ours lies below the last one's."""
    agent = agent_of(n_epochs=10, learning_rate=3e-3, batch_size=32)
    batch = agent.advantages(agent.state.theta, rollout_of(agent, 32))
    state, metrics = agent.update(agent.state, batch, 1.0)
    log_probs = agent.functional.bind(state.theta).actor(batch.observations).log_prob(batch.actions)
    last = ppo_module.approximate_kl((log_probs - batch.log_probs).detach())
    assert 0.0 < float(metrics["approx_kl"]) < float(last)


def test_detail_28_observation_statistics_are_saved_and_frozen_in_evaluation(tmp_path):
    agent = agent_of(normalize_observations=True).learn(64)
    before = {key: np.array(value) for key, value in agent.observation_normalizer.state().items()}
    agent.predict(np.full((5, 3), 100.0, np.float32))
    after = agent.observation_normalizer.state()
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert before[":count"] > 60
    agent.save(tmp_path / "agent")
    loaded = PPO.load(tmp_path / "agent").observation_normalizer.state()
    assert all(np.array_equal(before[key], loaded[key]) for key in before)


def test_details_29_and_31_normalised_values_are_clipped_to_ten():
    agent = agent_of(normalize_observations=True, normalize_rewards=True).learn(64)
    assert float(np.max(agent.observation_normalizer(np.full((1, 3), 1e6, np.float32)))) == 10.0
    nobody = np.zeros(1, bool)
    assert float(agent.reward_normalizer(np.array([1e6]), nobody, nobody, nobody)[0]) == 10.0


def test_detail_30_rewards_are_divided_by_the_deviation_of_discounted_returns():
    """With the agent's discount, and returns zeroed at any episode's end."""
    agent, raw = agent_of(normalize_rewards=True, gamma=0.9), agent_of(gamma=0.9)
    mine, plain = (rollout_of(a, 32) for a in (agent, raw))
    assert torch.equal(mine.actions, plain.actions)
    rewards, done = plain.rewards[:, 0].double().numpy(), (plain.terminated | plain.truncated)[:, 0].numpy()
    running, moments = 0.0, RunningMeanStd(shape=())
    for t in range(32):
        running = 0.9 * running + rewards[t]
        moments.update(np.array([running]))
        expected = np.clip(rewards[t] / np.sqrt(moments.var + 1e-8), -10, 10)
        assert float(mine.rewards[t, 0]) == pytest.approx(expected, rel=1e-5)
        running = 0.0 if done[t] else running
    assert done.any()


def test_target_kl_stops_the_update_before_the_step_that_passed_it():
    agent = agent_of(target_kl=1e-4, n_epochs=50, learning_rate=1e-2, batch_size=32)
    batch = agent.advantages(agent.state.theta, rollout_of(agent, 32))
    state, _ = agent.update(agent.state, batch, 1.0, [torch.arange(32)] * 50)
    assert 2 <= state.num_updates < 50
    fewer = agent_of(n_epochs=state.num_updates - 1, learning_rate=1e-2, batch_size=32)
    expected, _ = fewer.update(agent.state, batch, 1.0, [torch.arange(32)] * 50)
    assert torch.equal(state.theta, expected.theta)


def test_truncation_without_bootstrap_is_termination():
    agent, biased = agent_of(), agent_of(bootstrap_truncation=False)
    rollout = rollout_of(agent, 100)
    assert bool(rollout.truncated.any())
    ended = dataclasses.replace(
        rollout, terminated=rollout.terminated | rollout.truncated, truncated=torch.zeros_like(rollout.truncated)
    )
    theta = agent.state.theta
    assert torch.equal(biased.advantages(theta, rollout).advantages, agent.advantages(theta, ended).advantages)
    assert not torch.equal(biased.advantages(theta, rollout).advantages, agent.advantages(theta, rollout).advantages)


def test_masked_rows_enter_no_update():
    agent = agent_of()
    rollout = rollout_of(agent, 32)
    mask = rollout.mask.clone()
    mask[3::5] = False
    batch = agent.advantages(agent.state.theta, dataclasses.replace(rollout, mask=mask))
    assert len(batch.advantages) == int(mask.sum())
    assert torch.equal(batch.actions, rollout.actions.flatten(0, 1)[mask.flatten()])


def test_parameters_that_are_not_finite_are_refused_and_the_old_ones_kept():
    agent = agent_of(learning_rate=1e30, normalize_advantage=False, max_grad_norm=1e30)
    before = agent.state.theta.clone()
    with pytest.raises(FloatingPointError, match="after 32 environment steps"):
        agent.learn(320)
    assert torch.equal(agent.state.theta, before)
    assert torch.equal(torch.cat([p.detach().flatten() for p in agent.policy.parameters()]), before)


# ---------------------------------------------------------------------- arguments

WRONG = {
    "n_steps": [0, -1, 1.5, True, "8"],
    "batch_size": [0, 1, 2.0],
    "n_epochs": [0, None],
    "gamma": [-0.1, 1.1, float("nan")],
    "gae_lambda": [-0.1, 1.1],
    "learning_rate": ["fast", None, True],
    "clip_range": ["wide", None],
    "clip_range_vf": [0.0, -1.0],
    "max_grad_norm": [0.0, -1.0],
    "value_clip": ["minimum"],
    "schedule_from": ["middle"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_wrong_argument_is_an_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: expected"):
        agent_of(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("use_sde", True), ("sde_sample_freq", 4), ("rollout_buffer_class", dict)])
def test_what_is_not_offered_says_so(name, value):
    with pytest.raises(ValueError, match="rlopt"):
        agent_of(**{name: value})


def test_one_row_has_no_advantage_normalisation():
    """SB3#440."""
    with pytest.raises(ValueError, match="n_steps: n_steps · n_envs must be at least 2"):
        agent_of(n_steps=1)
    with pytest.warns(UserWarning, match="not a multiple"):
        agent_of(n_steps=1, normalize_advantage=False)


def test_numpy_integers_are_integers():
    agent = agent_of(n_steps=np.int64(32), batch_size=np.int32(16), n_epochs=np.int64(1)).learn(32)
    assert agent.num_timesteps == 32


@pytest.mark.parametrize("optimizer_kwargs", [{"foo": 1}, {"betas": (2.0, 0.9)}])
def test_an_optimiser_that_refuses_its_arguments_is_told_before_training(optimizer_kwargs):
    with pytest.raises(ValueError, match=r"^policy_kwargs: Adam refuses optimizer_kwargs \{.*\}: "):
        PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"optimizer_kwargs": optimizer_kwargs}, device="cpu")
