"""`Memory`: what (o, z, a_prev) holds in every row, whatever the environments do at an episode's end."""

from contextlib import closing

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

import rlopt.collector
from rlopt import S2PG, make_envs
from rlopt.collector import Collector
from rlopt.envs.memory import (
    MEMORY,
    OBSERVATION,
    PREVIOUS_ACTION,
    Memory,
    MemoryActions,
    MemoryObservations,
    MemoryState,
    encode_actions,
    encoded_size,
)
from rlopt.envs.normalize import ObservationNormalizer
from rlopt.envs.spaces import ActionDecoder, map_arrays
from rlopt.policies.distributions import Categorical, DiagonalGaussian, draw_noise, noise_size
from rlopt.policies.functional import Functional
from rlopt.policies.stateful import JointDistribution
from rlopt.statistics import EpisodeStatistics
from tests.scripted_envs import Episode, FixedScript, RandomScript, ScriptedEnv, factories, rows_of
from tests.small_envs import ACTION_SPACES, Walk
from tests.test_episode_ends import MAKERS

GAMMA, LAMBDA = 0.9, 0.8
SIZE = 2  # d_z where memories are written by hand


# ------------------------------------------------------------------ the spaces


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_actions_are_encoded_as_a_network_reads_them(name):
    space = ActionDecoder(ACTION_SPACES[name]).space
    space.seed(0)
    actions = np.stack([space.sample() for _ in range(6)])
    encoded = encode_actions(space, actions.astype(np.float32))  # as a policy's joint action holds them
    assert encoded.shape == (6, encoded_size(space))
    assert encoded.dtype == np.float32
    for row, action in zip(encoded, actions, strict=True):
        if name in ("discrete", "shifted"):
            expected = [float(i == action) for i in range(3)]
        elif name == "multi":
            expected = [float(i == action[0]) for i in range(2)] + [float(i == action[1]) for i in range(3)]
        else:
            expected = action
        np.testing.assert_array_equal(row, np.float32(expected))


def test_an_action_and_the_next_memory_travel_in_one_vector():
    joint = np.arange(12.0).reshape(2, 6)
    of_box, memory = MemoryActions(spaces.Box(-1, 1, (2,)), 4).split(joint)
    np.testing.assert_array_equal(of_box, joint[:, :2])
    np.testing.assert_array_equal(memory, joint[:, 2:])
    of_choice, memory = MemoryActions(spaces.Discrete(9), 5).split(torch.from_numpy(joint))
    assert of_choice.tolist() == [0.0, 6.0]
    assert memory.shape == (2, 5)
    assert MemoryActions(spaces.Discrete(9), 5).shape == (6,)
    assert MemoryActions(spaces.MultiBinary(3), 2).shape == (5,)


@pytest.mark.parametrize("name", ACTION_SPACES)
def test_noise_is_that_of_the_action_with_normals_for_the_memory(name):
    action = ActionDecoder(ACTION_SPACES[name]).space
    joint = MemoryActions(action, 3)
    assert noise_size(joint) == noise_size(action) + 3
    noise = draw_noise(joint, (4000,), torch.Generator().manual_seed(0))
    assert noise.shape == (4000, noise_size(joint))
    memory = noise[:, -3:]
    assert (memory.mean(0).abs() < 0.08).all()
    assert ((memory.std(0) - 1).abs() < 0.06).all()
    assert abs(float(torch.corrcoef(noise.T)[0, -1])) < 0.08


def test_observations_join_what_policies_read():
    plain = MemoryObservations(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), 4)
    assert {key: space.shape for key, space in plain.spaces.items()} == {OBSERVATION: (3,), MEMORY: (4,), PREVIOUS_ACTION: (2,)}
    several = spaces.Dict({"camera": spaces.Box(0, 255, (4, 4, 1), np.uint8), "speed": spaces.Box(-1, 1, (1,))})
    flat = MemoryObservations(several, spaces.Box(-1, 1, (2,)), 4)
    assert set(flat.spaces) == {"camera", "speed", MEMORY, PREVIOUS_ACTION}
    state = flat.initial(5)
    assert isinstance(state, MemoryState)
    assert state.memory.shape == (5, 4)
    assert state.previous_action.shape == (5, 2)
    assert not any(array.any() for array in state)
    assert all(array.dtype == np.float32 for array in state)
    joined = plain.join(np.ones((5, 3)), state)
    assert joined.keys() == plain.spaces.keys()


def test_memory_has_no_bounds_that_could_clip_it():
    space = MemoryObservations(spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (2,)), 4)
    for bounds in (space[MEMORY], space[PREVIOUS_ACTION], MemoryActions(spaces.Box(-1, 1, (2,)), 4)):
        assert np.isinf(bounds.low).all()
        assert np.isinf(bounds.high).all()


@pytest.mark.parametrize("key", [MEMORY, PREVIOUS_ACTION])
def test_an_environment_that_uses_one_of_the_keys_is_refused_by_name(key):
    taken = spaces.Dict({"position": spaces.Box(-1, 1, (2,)), key: spaces.Box(-1, 1, (2,))})
    with pytest.raises(ValueError, match=rf"^observation space: memory needs the key '{key}', which the environment uses"):
        MemoryObservations(taken, spaces.Discrete(2), 4)


# ------------------------------------------------------------------ the wrapper, step by step


def driven(kind, num_envs=3, num_steps=60, script=None):
    """Play `Memory` with memories and actions that tell when and where they were drawn.

    Yields:
        (t, joint actions, the step, the rows of the script that were played, and those shown next).
    """
    script = script or RandomScript()
    with closing(MAKERS[kind](script, num_envs)) as inner:
        envs = Memory(inner, SIZE)
        rows = [list(zip(range(num_steps + 1), rows_of(script, n, envs.resets_on_next_step))) for n in range(num_envs)]
        first = envs.reset(0)
        assert not first[MEMORY].any()
        assert not first[PREVIOUS_ACTION].any()
        for t in range(num_steps):
            tag = 1.0 + t + 100.0 * np.arange(num_envs)
            joint = np.column_stack([(t + np.arange(num_envs)) % 2, tag, -tag]).astype(np.float32)
            yield t, joint, envs.step(joint), *([mine[s][1] for mine in rows] for s in (t, t + 1))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_every_row_shows_the_memory_and_action_before_it_and_an_episodes_first_shows_none(kind, num_envs):
    script, begun = RandomScript(), 0
    for _, joint, step, played, following in driven(kind, num_envs):
        final_rows = np.asarray(step.final_rows, int).tolist()
        for n in range(num_envs):
            onehot = np.eye(2)[int(joint[n, 0])]
            row, shown = played[n], map_arrays(lambda array, n=n: array[n], step.observations)
            over = row is not None and row[1] == len(script.episode(n, row[0])) - 1
            assert bool(step.terminated[n] | step.truncated[n]) == over or row is None
            if over and n in final_rows:  # reset within the step: its last observation is beside
                place = final_rows.index(n)
                last = map_arrays(lambda array, place=place: array[place], step.final_observations)
            else:
                last = shown if over else None
            if last is not None:
                np.testing.assert_array_equal(last[OBSERVATION], script.episode(n, row[0]).observations[-1])
                np.testing.assert_array_equal(last[MEMORY], joint[n, 1:])
                np.testing.assert_array_equal(last[PREVIOUS_ACTION], onehot)
            first = following[n] is not None and following[n][1] == 0
            if first:
                begun += 1
                np.testing.assert_array_equal(shown[OBSERVATION], script.episode(n, following[n][0]).observations[0])
            np.testing.assert_array_equal(shown[MEMORY], 0 * joint[n, 1:] if first else joint[n, 1:])
            np.testing.assert_array_equal(shown[PREVIOUS_ACTION], 0 * onehot if first else onehot)
    assert begun >= 8 * num_envs


def test_a_reset_forgets_everything_even_amid_a_pending_one():
    script = FixedScript({0: [Episode(np.eye(3, 3, dtype=np.float32), np.ones(2), True, False)]})
    envs = Memory(make_envs(SyncVectorEnv(factories(script, 1), autoreset_mode=AutoresetMode.NEXT_STEP)), SIZE)
    joint = np.array([[1.0, 5.0, 6.0]], np.float32)
    envs.reset(0)
    envs.step(joint)
    assert envs.step(joint).terminated[0]
    first = envs.reset(0)  # before the step that would have reset
    assert not first[MEMORY].any()
    assert not first[PREVIOUS_ACTION].any()
    np.testing.assert_array_equal(envs.step(joint).observations[MEMORY], joint[:, 1:])


def test_restarted_rows_begin_without_memory():
    envs = Memory(make_envs(factories(RandomScript(max_length=40), 3)), SIZE)
    envs.reset(0)
    first = envs.restart(np.array([0, 2]))
    assert {key: array.shape for key, array in first.items()} == {OBSERVATION: (2, 3), MEMORY: (2, 2), PREVIOUS_ACTION: (2, 2)}
    assert not first[MEMORY].any()
    assert not first[PREVIOUS_ACTION].any()


@pytest.mark.parametrize("squashed", [False, True])
def test_the_environment_gets_actions_within_bounds_and_the_policy_sees_them_as_sampled(squashed):
    env = Walk(actions="box", limit=50, edge=np.inf)
    envs = Memory(make_envs(env), SIZE, squashed)
    envs.reset(0)
    sampled = [np.array([[0.5, -1.0 if squashed else 7.0, 100.0, -200.0]], np.float32) for _ in range(3)]
    for joint in sampled:
        shown = envs.step(joint).observations
        np.testing.assert_array_equal(shown[PREVIOUS_ACTION], joint[:, :2])
        np.testing.assert_array_equal(shown[MEMORY], joint[:, 2:])  # never clipped, never stretched
        np.testing.assert_allclose(env.actions[-1], [1.0, -0.5] if squashed else [0.5, 1.5])


def test_environments_of_shifted_and_nested_actions_get_them_as_they_want_them():
    env = Walk(actions="shifted", limit=50, edge=np.inf)
    envs = Memory(make_envs(env), SIZE)
    envs.reset(0)
    shown = envs.step(np.array([[1.0, 0.5, 0.5]], np.float32)).observations
    assert env.actions == [3]
    np.testing.assert_array_equal(shown[PREVIOUS_ACTION], [[0, 1, 0]])


def test_attributes_and_episode_counters_are_those_of_the_environments_inside():
    inner = make_envs([lambda: Walk(limit=9)] * 2)
    envs = Memory(inner, SIZE)
    assert envs.get_attr("limit", [0, 1]) == [9, 9]
    envs.reset(3)
    assert envs.episode_counters() == inner.episode_counters()
    assert (envs.num_envs, envs.name, envs.restarts_rows, envs.resets_on_next_step) == (2, inner.name, True, False)


# ------------------------------------------------------------------ through the collector


def make_agent(env=None, **kwargs):
    """A small S2PG with every parameter away from zero."""
    small = {"n_steps": 20, "batch_size": 20, "seed": 0, "device": "cpu", "normalize_advantage": False}
    kwargs = {**small, "gamma": GAMMA, "gae_lambda": LAMBDA, **kwargs}
    policy_kwargs = {"net_arch": [8], "encoder_size": 8, **kwargs.pop("policy_kwargs", {})}
    env = env or ScriptedEnv(RandomScript(), 0)
    agent = S2PG("MlpPolicy", env, memory_size=3, policy_kwargs=policy_kwargs, **kwargs)
    theta = agent.state.theta + 0.1 * torch.randn(agent.state.theta.shape, generator=torch.Generator().manual_seed(1))
    agent._adopt(agent.state._replace(theta=theta))
    return agent


def collector_of(agent, envs, normalizer=None):
    space = agent.policy.action_space
    wrapped = Memory(envs, space.memory_size, agent.policy.squash_output)
    generator = torch.Generator().manual_seed(0)
    return Collector(wrapped, agent.functional, generator, EpisodeStatistics(envs.num_envs), normalizer)


class Follower:
    """Replays, beside rollouts, the script and the memory that the recorded actions wrote."""

    def __init__(self, agent, script, num_envs, next_step):
        self.agent, self.script, self.num_envs = agent, script, num_envs
        self.rows = [rows_of(script, n, next_step) for n in range(num_envs)]
        size = agent.policy.action_space.memory_size
        self.fresh = np.zeros(size, np.float32), np.zeros(2, np.float32)
        self.carried = [self.fresh] * num_envs
        self.whole = {}  # advantages by (environment, episode) of episodes within one rollout

    def check(self, rollout):
        """Compare observations, memories, previous actions, last observations and advantages with the replay."""
        batch = self.agent.stateful_advantages(self.agent.state.theta, rollout)
        advantages = torch.full(rollout.mask.shape, torch.nan)
        advantages.view(-1)[rollout.valid_rows()] = batch.advantages
        for n in range(self.num_envs):
            for segment in self.segments(rollout, n):
                values = self.values([now for _, now, *_ in segment] + [after for _, _, after, *_ in segment])
                expected = 0.0
                for i, (t, _, _, _, reward, discount) in reversed(list(enumerate(segment))):
                    delta = reward + discount * values[len(segment) + i] - values[i]
                    expected = delta + GAMMA * LAMBDA * expected
                    assert abs(float(advantages[t, n]) - expected) < 2e-6
                number = segment[0][3]
                if len(segment) == len(self.script.episode(n, number)):
                    self.whole[n, number] = advantages[[step[0] for step in segment], n].numpy()

    def segments(self, rollout, n):
        """Parts of episodes in environment n, compared: lists of (t, x_t, x_{t+1}, episode, r_t, γ or 0)."""
        shown, following = (
            {key: array.numpy()[:, n] for key, array in tree.items()}
            for tree in (rollout.observations, rollout.next_observations)
        )
        segments = [[]]
        for t in range(len(rollout.mask)):
            row = next(self.rows[n])
            assert bool(rollout.mask[t, n]) == (row is not None)
            if row is None:  # the row only resets
                continue
            episode = self.script.episode(n, row[0])
            if row[1] == 0:
                self.carried[n] = self.fresh
            now = (episode.observations[row[1]], *self.carried[n])
            self.carried[n] = rollout.actions[t, n, 1:].numpy(), np.eye(2, dtype=np.float32)[int(rollout.actions[t, n, 0])]
            after = (episode.observations[row[1] + 1], *self.carried[n])  # z' and a, also where an episode ends
            for key, here, there in zip((OBSERVATION, MEMORY, PREVIOUS_ACTION), now, after, strict=True):
                np.testing.assert_array_equal(shown[key][t], here)
                np.testing.assert_array_equal(following[key][t], there)
            last = row[1] == len(episode) - 1
            discount = 0.0 if last and episode.terminated else GAMMA
            segments[-1].append((t, now, after, row[0], episode.rewards[row[1]], discount))
            if last:
                segments.append([])
        return [segment for segment in segments if segment]

    @torch.no_grad()
    def values(self, rows):
        """v(o, z, a_prev) of rows, by the agent's network."""
        columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
        inputs = dict(zip((OBSERVATION, MEMORY, PREVIOUS_ACTION), columns, strict=True))
        return self.agent.actor_critic.critic(inputs).double().tolist()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("num_envs", [1, 3])
def test_rollouts_and_advantages_are_those_of_a_replay_by_hand(kind, num_envs):
    """Memory goes on from one rollout to the next, and begins anew with every episode of its own environment alone."""
    script, agent = RandomScript(), make_agent()
    with closing(MAKERS[kind](script, num_envs)) as envs:
        collector = collector_of(agent, envs)
        follower = Follower(agent, script, num_envs, envs.resets_on_next_step)
        for _ in range(4):
            follower.check(collector.steps(agent.state.theta, 20))
    assert len(follower.whole) >= 5 * num_envs


def reset_rows_keep_memory(self, step):
    return np.zeros(self.num_envs, bool)


def test_a_memory_that_outlives_its_episode_is_seen(monkeypatch):
    monkeypatch.setattr(Memory, "_rows_reset_by", reset_rows_keep_memory)
    for kind in MAKERS:
        with pytest.raises(AssertionError):
            test_rollouts_and_advantages_are_those_of_a_replay_by_hand(kind, 3)


def noise_from_state(module, num_envs):
    """An actor whose noise is a function of the observation: the same in every kind of environment."""
    actor = real_make_actor(module, num_envs)
    size = noise_size(module.policy.action_space)

    def act(observations, noise):
        return actor(observations, np.resize(np.sin(100 * observations[OBSERVATION]).T, (size, num_envs)).T)

    return act


real_make_actor = rlopt.collector.make_actor


def test_all_kinds_of_environments_give_the_same_episodes(monkeypatch):
    monkeypatch.setattr(rlopt.collector, "make_actor", noise_from_state)
    script, agent, found = RandomScript(), make_agent(), {}
    for kind, make in MAKERS.items():
        with closing(make(script, 3)) as envs:
            follower = Follower(agent, script, 3, envs.resets_on_next_step)
            follower.check(collector_of(agent, envs).steps(agent.state.theta, 80))
        found[kind] = follower.whole
    for whole in found.values():
        shared = found["own sync"].keys() & whole.keys()
        assert len(shared) >= 30
        for key in shared:
            np.testing.assert_allclose(whole[key], found["own sync"][key], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("horizon", [None, 3])
@pytest.mark.parametrize("num_episodes", [2, 7])
def test_whole_episodes_carry_the_memory_that_their_actions_wrote(kind, horizon, num_episodes):
    """With environments that idle, that are cut at a horizon, and in rounds."""
    agent = make_agent()
    with closing(MAKERS[kind](RandomScript(), 3)) as envs:
        collector = collector_of(agent, envs)
        rollouts = [collector.episodes(agent.state.theta, num_episodes, horizon) for _ in range(3)]
    for rollout in rollouts:
        states = {key: value.numpy() for key, value in rollout.states.items()}
        assert states[MEMORY].shape[1] == num_episodes
        for e in range(num_episodes):
            length = int(rollout.mask[:, e].sum())
            assert horizon is None or length <= horizon
            assert rollout.terminated[length - 1, e] ^ rollout.truncated[length - 1, e]
            choices, written = rollout.actions[:length, e, 0].long().numpy(), rollout.actions[:length, e, 1:].numpy()
            assert not states[MEMORY][0, e].any()
            assert not states[PREVIOUS_ACTION][0, e].any()
            np.testing.assert_array_equal(states[MEMORY][1 : length + 1, e], written)
            np.testing.assert_array_equal(states[PREVIOUS_ACTION][1 : length + 1, e], np.eye(2)[choices])
            assert written.any(1).all()
            for array in states.values():
                assert not array[length + 1 :, e].any()  # padding
    assert any((rollout.mask.sum(0) > 1).any() for rollout in rollouts)


def test_the_same_episodes_come_from_any_number_of_environments_with_the_same_noise(monkeypatch):
    """Environments that restart alone and those that only restart together."""
    monkeypatch.setattr(rlopt.collector, "make_actor", noise_from_state)
    agent = make_agent()
    observations = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    script = FixedScript({n: [Episode(observations, np.ones(4), False, True)] for n in range(3)})
    found = []
    for kind in ("own sync", "gymnasium next-step", "gymnasium same-step", "gymnasium disabled"):
        with closing(MAKERS[kind](script, 3)) as envs:
            found.append(collector_of(agent, envs).episodes(agent.state.theta, 5))
    for rollout in found:
        for key, states in rollout.states.items():
            torch.testing.assert_close(states, found[0].states[key][:, :1].expand_as(states), rtol=0, atol=1e-6)
        torch.testing.assert_close(rollout.actions, found[0].actions[:, :1].expand_as(rollout.actions), rtol=0, atol=1e-6)


# ------------------------------------------------------------------ by hand


class Counter(nn.Module):
    """Always chooses 1, and counts the steps of an episode in its memory; v = o_0 + 10 z + 100 a_prev(1)."""

    squash, closed_form = False, False
    space = MemoryActions(spaces.Discrete(2), 1)

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([-100.0, 100.0]))

    def actor(self, observations):
        memory = observations[MEMORY]
        choice = Categorical.from_logits(self.logits.expand(len(memory), -1))
        return JointDistribution(choice, DiagonalGaussian(memory + 1, torch.full((1,), -40.0)), self.space)

    def critic(self, observations):
        return observations[OBSERVATION][:, 0] + 10 * observations[MEMORY][:, 0] + 100 * observations[PREVIOUS_ACTION][:, 1]


# γ = ½, λ = ½; v_0 = 1, v_1 = 2 + 10 + 100, v_2 = 3 + 20 + 100, v_3 = 4 + 30 + 100; rewards 1, 2, 3
BY_HAND = {"truncated": [40.5625, -61.75, -53.0], "terminated": [36.375, -78.5, -120.0]}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("end", BY_HAND)
def test_the_last_value_at_a_truncation_is_that_of_the_memory_and_action_there(kind, end, monkeypatch):
    module = Counter()
    monkeypatch.setattr(rlopt.collector, "make_actor", lambda module, num: rlopt.acting.TorchActor(module))
    observations = np.zeros((4, 3), np.float32)
    observations[:, 0] = [1, 2, 3, 4]
    script = FixedScript({0: [Episode(observations, np.array([1.0, 2.0, 3.0]), end == "terminated", end == "truncated")]})
    agent = make_agent(ScriptedEnv(script, 0), gamma=0.5, gae_lambda=0.5)
    agent.functional = Functional(module)
    with closing(MAKERS[kind](script, 1)) as envs:
        collector = Collector(Memory(envs, 1), agent.functional, torch.Generator().manual_seed(0), EpisodeStatistics(1))
        rollout = collector.steps(agent.functional.init(), 12)
        assert rollout.mask.sum() == (9 if envs.resets_on_next_step else 12)
    batch = agent.stateful_advantages(agent.functional.init(), rollout)
    np.testing.assert_allclose(batch.advantages.view(-1, 3), [BY_HAND[end]] * (len(batch.advantages) // 3), atol=1e-4)
    assert batch.observations[MEMORY].view(-1, 3).tolist() == [[0, 1, 2]] * (len(batch.advantages) // 3)


# ------------------------------------------------------------------ normalisation, and agents around it


def test_normalisation_never_touches_the_memory_and_the_previous_action():
    agent = make_agent(ScriptedEnv(RandomScript(), 0))
    normalizer = ObservationNormalizer(agent.policy.observation_space)
    assert set(normalizer.moments) == {OBSERVATION}
    script = RandomScript()
    with closing(make_envs(factories(script, 3))) as envs:
        rollout = collector_of(agent, envs, normalizer).steps(agent.state.theta, 60)
    first = rollout.observations[PREVIOUS_ACTION].sum(-1) == 0
    assert 10 < int(first.sum()) < 100
    memories = rollout.next_observations[MEMORY]
    assert torch.equal(memories, rollout.actions[..., 1:])
    assert torch.equal(rollout.next_observations[PREVIOUS_ACTION].argmax(-1), rollout.actions[..., 0].long())
    assert float(normalizer.moments[OBSERVATION].count) > 180
    raw = np.stack([script.episode(n, 0).observations[0] for n in range(3)])
    assert not np.allclose(rollout.observations[OBSERVATION][0], raw)


@pytest.mark.parametrize("dict_key", ["memory", "previous_action"])
def test_an_agent_says_which_key_collides(dict_key):
    class Colliding(Walk):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict({dict_key: self.observation_space})

    with pytest.raises(ValueError, match=f"memory needs the key '{dict_key}'"):
        S2PG("MultiInputPolicy", Colliding)


def test_memory_begins_anew_at_a_pending_reset_after_the_same_environments_were_set_again():
    script = FixedScript({0: [Episode(np.eye(4, 3, dtype=np.float32), np.ones(3), True, False)]})
    envs = SyncVectorEnv(factories(script, 1), autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = make_agent(envs, n_steps=3, batch_size=3)
    agent.collector.steps(agent.state.theta, 3)
    agent.set_env(agent.environments, force_reset=False)
    rollout = agent.collector.steps(agent.state.theta, 3)
    assert rollout.mask[:, 0].tolist() == [False, True, True]
    assert not rollout.observations[MEMORY][1].any()
