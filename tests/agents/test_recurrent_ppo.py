"""RecurrentPPO: backpropagation through time against a loop of single steps, resets, chunks, and what a user can do wrong."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.policies import ActorCriticPolicy

import rlopt.collector
from rlopt import PPO, S2PG, RecurrentPPO, archive
from rlopt.agents.recurrent_ppo import begins_within, episode_starts
from rlopt.envs.memory import MEMORY, PREVIOUS_ACTION
from rlopt.plain_data import encode_space
from tests.small_envs import ACTION_SPACES, Walk

T, N, SIZE, CLIP = 24, 3, 5, 0.03
MODES: dict[str, Any] = {"next step": AutoresetMode.NEXT_STEP, "same step": AutoresetMode.SAME_STEP, "own": None}
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "contrib": ("LstmPolicy", {}),
    "stateful": ("Policy", {}),
    "two layers": ("LstmPolicy", {"n_lstm_layers": 2, "cell": "gru", "previous_action": True}),
    "shared": ("LstmPolicy", {"shared_lstm": True, "enable_critic_lstm": False, "shared_gradient": True}),
    "feed-forward critic": ("Policy", {"enable_critic_lstm": False, "cell": "lstm"}),
    "own features": ("LstmPolicy", {"share_features_extractor": False}),
}


def make(
    layout="contrib", actions="discrete", observations="box", mode="own", num_envs=N, limit=5, policy_kwargs=None, **kwargs
):
    """A small agent whose episodes have at most `limit` steps."""
    reader = "MultiInput" if observations.startswith("dict") else "Mlp"
    name, network = LAYOUTS[layout]
    makers = [lambda: Walk(observations, actions, limit)] * num_envs
    env: Any = makers if MODES[mode] is None else SyncVectorEnv(makers, autoreset_mode=MODES[mode])
    arguments = {"n_steps": T, "batch_size": T, "chunk_length": T // 2, "n_epochs": 2, "memory_size": SIZE, "seed": 0}
    small = {"net_arch": [7], **network, **(policy_kwargs or {})}
    return RecurrentPPO(reader + name, env, device="cpu", policy_kwargs=small, **{**arguments, **kwargs})


def collected(agent, num_rollouts=2):
    """The last of some rollouts at the agent's θ, so that it begins within episodes, and its chunks."""
    for _ in range(num_rollouts):
        rollout = agent.collector.steps(agent.state.theta, agent.n_steps)
    agent.begin_descent(agent.state, 1e-2)
    return rollout, agent.chunks(agent.state.theta, rollout)


def by_single_steps(module, part):
    """log π_a and v of a minibatch, [L, C], one step of the policy at a time, the memory carried with its gradient."""
    memory, log_probs, values = part.memory[0], [], []
    for t in range(len(part.mask)):
        if t:
            memory = torch.where(part.begins[t, :, None], 0.0, memory)
        seen = {**{key: x[t] for key, x in part.observations.items()}, MEMORY: memory}
        distribution = module.actor(seen)
        log_probs.append(distribution.action.log_prob(part.actions[t]))
        values.append(module.critic(seen))
        memory = distribution.memory.mean
    return torch.stack(log_probs), torch.stack(values)


def by_sequences(module, part):
    """The same, fused."""
    head, values = module.sequences(part.observations, part.memory[0], begins_within(part))
    log_probs = module.distribution_of(head).log_prob(part.actions.flatten(0, 1))
    return log_probs.view_as(part.mask), values.view_as(part.mask)


def with_gradients(module, outputs, mask):
    """The two outputs where rows count, and the gradient of a weighted sum of both."""
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(mask.shape, generator=generator, dtype=outputs[0].dtype) * mask for _ in outputs]
    total = sum((x * w).sum() for x, w in zip(outputs, weights))
    gradients = torch.autograd.grad(total, list(module.parameters()), allow_unused=True, materialize_grads=True)
    return [*(x.detach()[mask] for x in outputs), *gradients]


def loss_of(agent, part, clip_range_vf=None):
    """PPO's loss on a minibatch, for autograd."""
    head, values = agent.descent.module.sequences(part.observations, part.memory, part.begins, part.rows)
    return agent.loss(agent.descent.module.distribution_of(head), values, part, CLIP, clip_range_vf)[0]


def largest_difference(mine, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(mine, theirs, strict=True))


# ---------------------------------------------------------------------- backpropagation through time


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_chunks_are_a_loop_of_single_steps_in_values_log_probs_and_gradients(layout, mode):
    agent = make(layout, mode=mode)
    module, (_, part) = agent.descent.module, collected(agent)
    assert part.begins[1:].any(), "the comparison needs resets within chunks"
    found, expected = (with_gradients(module, f(module, part), part.mask) for f in (by_sequences, by_single_steps))
    assert largest_difference(found, expected) < 2e-5
    forgetful = part._replace(begins=torch.zeros_like(part.begins))
    assert largest_difference(with_gradients(module, by_sequences(module, forgetful), part.mask), expected) > 1e-3


def test_chunks_of_one_step_have_the_same_values_and_another_gradient():
    (module, whole), (_, rows) = ((agent.descent.module, collected(agent)[1]) for agent in (make(), make(chunk_length=1)))
    found, cut = (with_gradients(module, by_sequences(module, part), part.mask) for part in (whole, rows))
    assert rows.mask.shape == (1, T * N)
    assert abs(float(found[1].sum() - cut[1].sum())) < 1e-4
    assert largest_difference(found[2:], cut[2:]) > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(
    ("actions", "observations"),
    [("discrete", "box"), ("box", "box"), ("multi", "box"), ("binary", "matrix"), ("discrete", "dict"), ("box", "dict")],
)
def test_the_ratio_on_the_first_minibatch_is_one_everywhere(cell, actions, observations, mode):
    agent = make("stateful", actions, observations, mode, policy_kwargs={"cell": cell})
    _, part = collected(agent)
    first_rows = part.begins & part.mask
    assert first_rows[1:].any()
    log_probs, _ = by_sequences(agent.descent.module, part)
    ratios = (log_probs - part.log_probs).detach().exp()
    assert float((ratios - 1)[part.mask].abs().max()) < 1e-5
    without = part._replace(begins=torch.zeros_like(part.begins))
    wrong = (by_sequences(agent.descent.module, without)[0] - part.log_probs).detach().exp()
    assert float((wrong - 1)[first_rows].abs().max()) > 1e-4


def test_no_gradient_reaches_recorded_memory():
    agent = make()
    _, part = collected(agent)
    part = part._replace(memory=part.memory.clone().requires_grad_())
    assert part.memory.detach().abs().max() > 0.01
    outputs, gradients, _ = agent.slopes(agent.minibatch(part), 0.2, None)
    assert torch.autograd.grad(outputs, [part.memory], gradients, allow_unused=True) == (None,)


class Cue(gym.Env[Any, Any]):
    """Shows ±1 in its first number at step 0, a clock in the second, and ends after six steps."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.array([self.np_random.choice([-1.0, 1.0]), 0.0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.array([0.0, self.time / 6], np.float32), float(action), self.time == 6, False, {}


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize(("chunk_length", "reaches"), [(6, True), (3, False), (2, False)])
def test_what_writes_the_cue_gets_no_gradient_across_a_chunks_edge(cell, chunk_length, reaches):
    kwargs = {"n_steps": 6, "batch_size": 6, "chunk_length": chunk_length, "memory_size": 4, "n_envs": 2, "seed": 0}
    agent = RecurrentPPO("MlpLstmPolicy", Cue, device="cpu", policy_kwargs={"cell": cell}, **kwargs)
    _, part = collected(agent, 1)
    module = agent.descent.module
    answers = by_sequences(module, part)[0][-1, -2:]  # the last steps of both environments
    (of_cue,) = torch.autograd.grad(answers.sum(), [module.policy.lstm_actor.kernels[0].weight_ih])
    assert bool((of_cue[:, 0] != 0).any()) == reaches  # the column that reads the cue, which is zero at every other step
    assert bool((of_cue[:, 1] != 0).any())


@pytest.mark.parametrize("shared_gradient", [False, True])
def test_the_critics_loss_trains_shared_layers_only_if_asked_to(shared_gradient):
    agent = make("shared", policy_kwargs={"shared_gradient": shared_gradient})
    _, part = collected(agent)
    module = agent.descent.module
    _, values = by_sequences(module, part)
    weights = module.policy.lstm_actor.kernels[0].weight_hh
    (gradient,) = torch.autograd.grad(values.sum(), [weights], allow_unused=True, materialize_grads=True)
    assert bool(gradient.abs().sum() > 0) == shared_gradient


# ---------------------------------------------------------------------- rollouts, resets, advantages


@pytest.mark.parametrize("mode", MODES)
def test_an_episode_begins_with_a_fresh_memory_and_every_other_row_with_what_was_written(mode):
    agent = make("stateful", mode=mode)
    rollout, _ = collected(agent)
    starts = episode_starts(rollout)
    memory, previous = rollout.observations[MEMORY], rollout.observations[PREVIOUS_ACTION]
    assert starts.any(0).all()
    assert memory[starts].abs().sum() == previous[starts].abs().sum() == 0
    going_on = ~starts[1:] & rollout.mask[1:]
    written = rollout.actions[:-1, :, -memory.shape[-1] :]
    torch.testing.assert_close(memory[1:][going_on], written[going_on], rtol=0, atol=0)
    assert (memory[1:][going_on] != 0).any(-1).all()


class Recording(Walk):
    """Keeps what it showed, episode by episode."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.episodes = []

    def _observation(self):
        seen = super()._observation()
        if self.time == 0:
            self.episodes.append([])
        self.episodes[-1].append(seen.copy())
        return seen


@pytest.mark.parametrize("mode", ["next step", "same step"])
def test_the_value_at_a_truncation_is_that_of_the_last_observation_memory_and_action(mode):
    """GAE by hand for one environment, whose episodes of three steps are all cut, in both modes of resetting."""
    env = Recording(limit=3, edge=np.inf)
    vector = SyncVectorEnv([lambda: env], autoreset_mode=MODES[mode])
    agent = RecurrentPPO("MlpPolicy", vector, n_steps=12, batch_size=12, memory_size=SIZE, seed=0, device="cpu")
    rollout, part = collected(agent, 1)
    rows = rollout.mask[:, 0].nonzero().squeeze(1).tolist()
    assert rollout.truncated[rows, 0].sum() == 4 if mode == "same step" else 3
    module, advantages = agent.functional.bind(agent.state.theta), []
    for start in range(0, len(rows), 3):
        steps, seen = rows[start : start + 3], env.episodes[start // 3]
        memory, previous = torch.zeros(1, SIZE * 2), torch.zeros(1, 3)
        values = []
        for t in range(len(steps) + 1):
            inputs = {"observation": torch.from_numpy(seen[t])[None], MEMORY: memory, PREVIOUS_ACTION: previous}
            with torch.no_grad():
                values.append(float(module.critic(inputs)))
                if t < len(steps):
                    memory = module.actor(inputs).memory.mean
            if t < len(steps):
                previous = torch.eye(3)[rollout.actions[steps[t], 0, 0].long()][None]
        after = 0.0
        of_episode = []
        for t in reversed(range(len(steps))):
            after = float(rollout.rewards[steps[t], 0]) + 0.99 * values[t + 1] - values[t] + 0.99 * 0.95 * after
            of_episode.append(after)
        advantages += of_episode[::-1]
    found = part.advantages[part.mask]
    np.testing.assert_allclose(found, advantages, atol=2e-6)
    wrong = agent.advantages(agent.state.theta, _with_fresh_memory_at_the_end(rollout)).advantages
    assert (wrong - found).abs().max() > 1e-3  # the trap: the state after the reset


def _with_fresh_memory_at_the_end(rollout):
    """The rollout with zeros for memory and last action in every episode's last observation."""
    ended = torch.cat([torch.zeros(1, 1, dtype=torch.bool), rollout.truncated])
    states = {
        key: torch.where(ended[..., None], 0.0, x) if key in (MEMORY, PREVIOUS_ACTION) else x
        for key, x in rollout.states.items()
    }
    finals = {key: x * 0 if key in (MEMORY, PREVIOUS_ACTION) else x for key, x in rollout.final_observations.items()}
    return dataclasses.replace(rollout, states=states, final_observations=finals)


# ---------------------------------------------------------------------- chunks and minibatches


@pytest.mark.parametrize("chunk_length", [None, 12, 4, 1])
def test_chunk_c_of_environment_n_is_column_c_n_plus_n_and_starts_from_its_own_memory(chunk_length):
    agent = make(chunk_length=chunk_length)
    rollout, part = collected(agent)
    length = chunk_length or T
    for c in range(T // length):
        for n in range(N):
            steps, column = slice(c * length, (c + 1) * length), c * N + n
            assert torch.equal(part.observations["observation"][:, column], rollout.observations["observation"][steps, n])
            assert torch.equal(part.actions[:, column], rollout.actions[steps, n, 0])
            assert torch.equal(part.memory[0, column], rollout.observations[MEMORY][c * length, n])


@pytest.mark.parametrize("mode", MODES)
def test_every_valid_row_is_in_one_minibatch_and_minibatches_are_whole_chunks(mode):
    agent = make(mode=mode, chunk_length=4, batch_size=8)
    _, part = collected(agent)
    part = part._replace(values=torch.arange(part.mask.numel()).view_as(part.mask).float())
    minibatches = list(agent.chunk_minibatches(part))
    assert all(m.begins.rows.shape == (4, 2) for m in minibatches)
    seen = torch.cat([m.values for m in minibatches])
    assert sorted(seen.tolist()) == sorted(part.values[part.mask].tolist())
    orders = [torch.cat([m.values for m in agent.chunk_minibatches(part)]).tolist() for _ in range(2)]
    assert orders[0] != orders[1]
    for m in minibatches:
        assert abs(float(m.advantages.mean())) < 1e-5
        assert abs(float(m.advantages.std()) - 1) < 1e-3
        column = m.values.long() % part.mask.shape[1]
        assert len(set(column.tolist())) <= 2  # whole columns


def test_the_loss_with_chunks_of_one_step_is_ppos():
    """With nothing to go back to, the loss is that of PPO on rows, and its gradient that of PPO's autograd."""
    agent = make("stateful", chunk_length=1, clip_range_vf=0.1, ent_coef=0.01)
    rollout, part = collected(agent)
    for parameter in agent.descent.module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    loss = loss_of(agent, agent.minibatch(part), 0.1)
    batch = agent.advantages(agent.state.theta, rollout)
    distribution, values = agent.descent.module(batch.observations)
    ratio = (distribution.log_prob(batch.actions) - batch.log_probs).exp()
    advantages = (batch.advantages - batch.advantages.mean()) / (batch.advantages.std() + 1e-8)
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
    clipped = batch.values + (values - batch.values).clamp(-0.1, 0.1)
    expected = -surrogate - 0.01 * distribution.entropy().mean() + 0.5 * (clipped - batch.targets).square().mean()
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-6)
    parameters = [p for name, p in agent.descent.module.named_parameters() if "weight_hh" not in name]
    mine, theirs = (torch.autograd.grad(x, parameters, allow_unused=True, materialize_grads=True) for x in (loss, expected))
    assert largest_difference(mine, theirs) < 1e-5


@pytest.mark.parametrize("clip_range_vf", [None, 0.05])
@pytest.mark.parametrize("actions", ACTION_SPACES)
def test_the_closed_form_of_the_gradient_is_autograds(actions, clip_range_vf):
    agent = make(actions=actions, ent_coef=0.01, clip_range_vf=clip_range_vf, mode="next step")
    part = agent.minibatch(collected(agent)[1])
    parameters = list(agent.descent.module.parameters())
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    expected = torch.autograd.grad(loss_of(agent, part, clip_range_vf), parameters)
    outputs, gradients, log = agent.slopes(part, CLIP, clip_range_vf)
    assert largest_difference(torch.autograd.grad(outputs, parameters, gradients), expected) < 1e-6
    assert ((log.log_ratio.exp() - 1).abs() > CLIP).any(), "the clip binds somewhere"
    wrong = agent.slopes(part, 10.0, clip_range_vf)
    assert largest_difference(torch.autograd.grad(*wrong[:1], parameters, wrong[1]), expected) > 1e-4


def test_a_squashed_policy_learns_by_autograd():
    agent = make(actions="box", policy_kwargs={"squash_output": True})
    part = agent.minibatch(collected(agent)[1])
    outputs, gradients, log = agent.slopes(part, 0.2, None)
    assert gradients is None
    assert outputs[0].shape == ()
    assert float(log.log_ratio.abs().max()) < 1e-4
    before = agent.state.theta.clone()
    assert not torch.equal(agent.learn(T * N).state.theta, before)


@pytest.mark.parametrize("mode", MODES)
def test_refreshed_memories_are_those_of_one_pass_over_the_rollout(mode):
    agent = make("two layers", mode=mode, chunk_length=6)
    rollout, part = collected(agent)
    unmoved = agent.refreshed(part)
    torch.testing.assert_close(unmoved.memory, part.memory, rtol=0, atol=1e-6)
    for parameter in agent.descent.module.parameters():
        parameter.data += 0.1
    refreshed = agent.refreshed(part)
    starts, memory = episode_starts(rollout), rollout.observations[MEMORY][0]
    for t in range(T):
        if t:
            memory = torch.where(starts[t, :, None], 0.0, memory)
        if t % 6 == 0:
            torch.testing.assert_close(refreshed.memory[0, t // 6 * N : (t // 6 + 1) * N], memory, rtol=0, atol=1e-6)
        seen = {key: x[t] for key, x in rollout.observations.items()}
        with torch.no_grad():
            memory = agent.descent.module.actor({**seen, MEMORY: memory}).memory.mean
    assert (refreshed.memory - part.memory).abs().max() > 1e-2
    assert torch.equal(refreshed.memory[0, :N], part.memory[0, :N])


def test_refreshing_changes_training_only_where_there_are_several_chunks_and_epochs():
    def trained(**kwargs):
        return make(**kwargs).learn(2 * T * N).state.theta

    assert not torch.equal(trained(refresh_states=True), trained())
    for same in ({"chunk_length": None}, {"n_epochs": 1}):
        assert torch.equal(trained(refresh_states=True, **same), trained(**same))


# ---------------------------------------------------------------------- acting, files


@pytest.mark.parametrize("layout", ["contrib", "stateful", "two layers"])
@pytest.mark.parametrize("actions", ["discrete", "box"])
def test_prediction_goes_the_way_that_collection_goes(layout, actions, monkeypatch):
    """Without noise the collector takes the most likely actions; predict, fed the same observations, does the same."""
    agent = make(layout, actions, normalize_observations=False, limit=4)
    draw = rlopt.collector.draw_noise
    monkeypatch.setattr(rlopt.collector, "draw_noise", lambda *arguments: 0 * draw(*arguments))
    rollout = agent.collector.steps(agent.state.theta, T)
    starts, state = episode_starts(rollout), None
    for t in range(T):
        seen = rollout.observations["observation"][t].numpy()
        begun = starts[t].numpy() if t else np.ones(N, bool)
        actions_taken, state = agent.predict(seen, state or agent.initial_state(N), begun, deterministic=True)
        chosen = rollout.actions[t, :, : -state.memory.shape[-1]].numpy()
        expected = np.clip(chosen, -0.5, 1.5) if actions == "box" else chosen[:, 0]
        np.testing.assert_allclose(actions_taken, expected, atol=1e-6)
        np.testing.assert_allclose(state.memory, rollout.actions[t, :, -state.memory.shape[-1] :], atol=1e-6)


def test_trained_with_eight_environments_it_predicts_for_one():
    agent = make(num_envs=8).learn(T * 8)
    observation = np.zeros(3, np.float32)
    action, state = agent.predict(observation, deterministic=True)
    assert action.shape == ()
    assert state.memory.shape == (1, 4 * SIZE)
    batched, following = agent.predict(observation[None], agent.initial_state(1), np.ones(1, bool), deterministic=True)
    assert batched.shape == (1,)
    np.testing.assert_array_equal(following.memory, state.memory)
    again, _ = agent.predict(observation, state, np.zeros(1, bool), deterministic=True)
    assert again.shape == ()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_saved_agent_goes_on_to_the_bit(layout, tmp_path):
    agent = make(layout, normalize_observations=True, refresh_states=True).learn(2 * T * N)
    agent.save(tmp_path / "agent")
    loaded = RecurrentPPO.load(tmp_path / "agent")
    assert loaded.hyperparameters() == agent.hyperparameters()
    chunks = agent.chunks(agent.state.theta, agent.collector.steps(agent.state.theta, T))
    loaded.n_envs = N
    mine, theirs = (each.update(each.state, chunks, 0.5)[0] for each in (agent, loaded))
    assert torch.equal(mine.theta, theirs.theta)
    assert not torch.equal(mine.theta, agent.state.theta)


@pytest.mark.parametrize(
    "change",
    [
        {"memory_size": 10**9},
        {"memory_size": None, "policy_kwargs": {"lstm_hidden_size": 10**9}},
        {"policy_kwargs": {"n_lstm_layers": 10**9}},
        {"policy_kwargs": {"encoder_size": 10**9}},
        {"policy_kwargs": {"net_arch": [10**9]}},
        {"memory_size": 10_000, "policy_kwargs": {}},
        {"policy_kwargs": {"critic_features_extractor_kwargs": {"cnn_output_dim": 10**9}}},
    ],
    ids=["memory_size", "lstm_hidden_size", "layers", "encoder", "net_arch", "square", "critic's extractor"],
)
@pytest.mark.parametrize("algorithm", [RecurrentPPO, S2PG])
def test_a_file_that_describes_a_huge_memory_is_refused(algorithm, change, tmp_path):
    if algorithm is S2PG and "lstm_hidden_size" in str(change):
        pytest.skip("not an argument of its")
    agent = algorithm("MlpPolicy", Walk, n_steps=16, batch_size=16, memory_size=4, device="cpu")
    agent.save(tmp_path / "small.zip")
    data, tensors = (getattr(archive.read(tmp_path / "small.zip"), name) for name in ("data", "tensors"))
    data["hyperparameters"] |= change
    archive.write(tmp_path / "huge.zip", data, tensors)
    with pytest.raises(ValueError, match=r"path: the file describes networks of|policy_kwargs: .* refuses them"):
        algorithm.load(tmp_path / "huge.zip")


@pytest.mark.parametrize("algorithm", [RecurrentPPO, S2PG])
@pytest.mark.parametrize("seen", ["observation", "action", "critic"])
def test_a_file_that_describes_a_huge_product_of_small_sizes_is_refused(algorithm, seen, tmp_path):
    agent = algorithm("MlpPolicy", Walk, n_steps=16, batch_size=16, memory_size=4, device="cpu")
    agent.save(tmp_path / "small.zip")
    data, tensors = (getattr(archive.read(tmp_path / "small.zip"), name) for name in ("data", "tensors"))
    tensors["policy/padding"] = torch.zeros(200_000)
    many = spaces.Box(-1.0, 1.0, (50_000,))
    if seen == "action":
        data["action_space"] = encode_space(spaces.Discrete(50_000))
    else:
        shown = many if seen == "observation" else spaces.Dict({"observation": spaces.Box(-1.0, 1.0, (3,)), "critic": many})
        data["observation_space"] = encode_space(shown)
    sizes = {"net_arch": {"pi": [1], "vf": [50_000]}} if seen == "critic" else {"encoder_size": 50_000}
    data["hyperparameters"] |= {"memory_size": 1, "policy_kwargs": sizes | {"previous_action": True}}
    archive.write(tmp_path / "huge.zip", data, tensors)
    with pytest.raises(ValueError, match="path: the file describes networks of"):
        algorithm.load(tmp_path / "huge.zip")


def test_a_critic_may_be_shown_more_than_the_actor():
    class Told(Walk):
        observation_space = spaces.Dict({"observation": spaces.Box(-5, 5, (3,)), "critic": spaces.Box(-5, 5, (2,))})

        def __init__(self):
            super().__init__()
            self.observation_space = type(self).observation_space

        def _observation(self):
            state = np.array([self.x, self.velocity, self.time], np.float32).clip(-5, 5)
            return {"observation": state, "critic": state[:2]}

    sizes = {"n_steps": 16, "batch_size": 16, "chunk_length": 4, "memory_size": 4}
    agent = RecurrentPPO("MlpLstmPolicy", Told, seed=0, device="cpu", **sizes).learn(32)
    assert not agent.policy.share_features_extractor
    assert agent.policy.lstm_actor.kernels[0].weight_ih.shape[1] == 3
    assert agent.policy.lstm_critic.kernels[0].weight_ih.shape[1] == 5
    _, chunks = collected(agent)
    of_critic = chunks.memory[0, 1:, agent.policy.state_sizes[0] :]
    assert of_critic.abs().max() > 1e-3
    torch.testing.assert_close(agent.refreshed(chunks).memory, chunks.memory, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpPolicy"])
def test_defaults_are_those_of_the_two_networks(policy):
    agent = RecurrentPPO(policy, Walk, device="cpu")
    contrib = policy == "MlpLstmPolicy"
    kernel = agent.policy.lstm_actor.kernels[0]
    assert kernel.size == (256 if contrib else 16)
    assert kernel.weight_ih.shape == ((4 * 256, 3) if contrib else (3 * 16, 64))
    assert agent.policy.action_net.in_features == 64
    assert agent.policy.actor_net[0].in_features == (256 if contrib else 3 + 16)
    assert (agent.n_steps, agent.batch_size, agent.n_epochs, agent.clip_range, agent.target_kl) == (128, 128, 10, 0.2, None)


def test_the_network_beside_s2pg_has_its_shapes():
    kwargs = {"n_steps": 16, "batch_size": 16, "memory_size": 4, "device": "cpu"}
    mine, theirs = (algorithm("MlpPolicy", Walk, **kwargs).policy for algorithm in (RecurrentPPO, S2PG))
    for name in ("actor_net.0.weight", "actor_net.2.weight", "action_net.weight"):
        assert mine.state_dict()[name].shape == theirs.state_dict()[name].shape
    for name, shared in (("encoder.0.weight", "encoder.0.weight"), ("layers.0.weight_hh", "kernel.weight_hh")):
        assert mine.state_dict()[f"lstm_actor.{name}"].shape == theirs.state_dict()[shared].shape


def test_chunks_must_fill_a_rollout_and_minibatches_be_whole_chunks():
    with pytest.raises(ValueError, match=r"batch_size: expected whole chunks, a multiple of chunk_length = 8, got 12; chunk_l"):
        make(chunk_length=8, batch_size=12)
    with pytest.raises(ValueError, match=r"batch_size: .* n_steps = 24, which chunk_length=None stands for, got 25$"):
        make(chunk_length=None, batch_size=25)
    with pytest.raises(ValueError, match="chunk_length: expected a divisor of n_steps = 24, got 7"):
        make(chunk_length=7)
    for wrong in (0, -1, 2.5, "8"):
        with pytest.raises(ValueError, match="chunk_length"):
            make(chunk_length=wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"memory": "s2pg"}, "memory: expected 'bptt'"),
        ({"memory": None}, "memory: expected 'bptt'"),
        ({"memory_size": 4, "policy_kwargs": {"lstm_hidden_size": 5}}, "memory_size: got 4, and lstm_hidden_size=5"),
        ({"memory_size": 0}, "memory_size: expected a positive integer"),
        ({"policy_kwargs": {"lstm_hidden_size": -1}}, "lstm_hidden_size: expected a positive integer"),
        ({"policy_kwargs": {"n_lstm_layers": 0}}, "n_lstm_layers: expected a positive integer"),
        ({"policy_kwargs": {"cell": "rnn"}}, "cell: expected one of gru, lstm"),
        ({"policy_kwargs": {"shared_lstm": True}}, "shared_lstm=True needs enable_critic_lstm=False"),
        (
            {"policy_kwargs": {"critic_features_extractor_kwargs": {}, "share_features_extractor": True}},
            "critic_features_extractor_kwargs is of a critic with a features extractor of its own",
        ),
        ({"policy_kwargs": {"lstm_kwargs": {"dropout": 0.5}}}, "lstm_kwargs is not offered"),
        ({"policy_kwargs": {"hidden": 3}}, "policy_kwargs: RecurrentPolicy refuses them"),
        ({"clip_range_vf": 0}, "clip_range_vf"),
    ],
)
def test_what_cannot_work_says_so(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecurrentPPO("MlpLstmPolicy", Walk, device="cpu", **arguments)


def test_policies_are_aliases_that_read_the_observation():
    with pytest.raises(ValueError, match=r"policy: expected one of MlpLstmPolicy, .*; did you mean 'MlpLstmPolicy'"):
        RecurrentPPO("MlpLstm", Walk)
    with pytest.raises(ValueError, match="policy: a recurrent agent takes"):
        RecurrentPPO(ActorCriticPolicy, Walk)
    with pytest.raises(ValueError, match="cannot read a Dict"):
        RecurrentPPO("MlpLstmPolicy", lambda: Walk("dict"))
    agent = RecurrentPPO("CnnLstmPolicy", lambda: Walk("image"), n_steps=4, batch_size=4, memory_size=4, device="cpu").learn(8)
    assert agent.policy.share_features_extractor
    assert agent.policy.action_net.in_features == 4  # nothing between the LSTM and the head after a NatureCNN


@pytest.mark.parametrize("memory", ["bptt", "lstm"])
def test_other_agents_do_not_take_this_memory(memory):
    with pytest.raises(ValueError, match="memory: expected one of s2pg"):
        PPO("MlpPolicy", Walk, memory=memory)


def test_an_update_stops_at_the_target_kl():
    agent = make(target_kl=1e-6, n_epochs=10, learning_rate=1e-2)
    chunks = collected(agent)[1]
    state, metrics = agent.update(agent.state, chunks, 1.0)
    assert metrics["n_updates"] == state.num_updates < 10


def test_actions_of_every_kind_are_learned_from():
    for actions in ACTION_SPACES:
        agent = make(actions=actions)
        before = agent.state.theta.clone()
        assert not torch.equal(agent.learn(T * N).state.theta, before)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["MlpLstmPolicy", "MlpPolicy"])
def test_it_learns_to_recall_a_cue(policy):
    kwargs = {"n_steps": 60, "batch_size": 240, "n_envs": 16, "learning_rate": 1e-3, "memory_size": 16, "gamma": 1.0}
    agent = RecurrentPPO(policy, "rlopt/CueRecall-v0", seed=0, device="cpu", **kwargs).learn(30_000)
    assert np.mean([episode["r"] for episode in agent.ep_info_buffer]) > 0.95
