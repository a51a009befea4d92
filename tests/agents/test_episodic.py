"""What the agents of whole episodes share: accounting, instruments, refusals, bad input, going on where a file stopped."""

import dataclasses
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

import rlopt
from rlopt import HARPG, NPGIGT, NVRPG, REINFORCE, SRVRPG, STORMPG
from rlopt.agents import EpisodicAgent
from rlopt.agents.episodic import EpisodicState
from rlopt.utilities import EntropyUtility, ImitationUtility, LinearUtility
from tests.small_envs import Walk

FAMILY = [REINFORCE, NPGIGT, HARPG, STORMPG, SRVRPG, NVRPG]
SMALL = {"seed": 0, "num_episodes": 4, "n_envs": 2, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}


@pytest.fixture(params=FAMILY, ids=lambda cls: cls.__name__)
def algorithm(request):
    return request.param


def make(algorithm, env=Walk, **kwargs):
    return algorithm("MlpPolicy", env, **{**SMALL, **kwargs})


def spied(agent):
    """The batches that the agent asks for: (θ, rollout) in order."""
    batches, original = [], agent.collector.episodes

    def episodes(theta, *args, **kwargs):
        rollout = original(theta, *args, **kwargs)
        batches.append((theta.clone(), rollout))
        return rollout

    agent.collector.episodes = episodes
    return batches


# ---------------------------------------------------------------------- accounting


def test_steps_and_trajectories_are_counted_exactly(algorithm):
    agent = make(algorithm)
    batches = spied(agent)
    agent.learn(150)
    assert agent.num_timesteps == sum(rollout.num_valid for _, rollout in batches)
    assert agent.state.num_trajectories == sum(rollout.mask.shape[1] for _, rollout in batches)
    assert agent.statistics.num_episodes == agent.state.num_trajectories


def test_travelled_is_the_length_of_the_path(algorithm):
    agent = make(algorithm)
    state, path = agent.state, 0.0
    for _ in range(4):
        following, _ = agent.step(state, agent.collector)
        path += float((following.theta - state.theta).norm())
        assert torch.equal(following.previous, state.theta)
        state = following
    assert float(state.travelled) == pytest.approx(path, rel=1e-5)
    assert state.iteration == 4


def test_batch_sizes_are_those_asked_for():
    for agent, sizes in (
        (make(HARPG, num_hessian_episodes=6, num_points=3), [4, 4, 2, 2, 2]),
        (make(HARPG, momentum=1.0), [4, 4, 4]),  # the past is forgotten: no Hessian is needed
        (make(STORMPG, num_initial=7), [7, 4, 4]),
        (make(STORMPG), [40, 4, 4]),
        (make(SRVRPG, restart_every=2, num_small=3), [4, 3, 4, 3]),
    ):
        batches = spied(agent)
        state = agent.state
        while len(batches) < len(sizes):
            state, _ = agent.step(state, agent.collector)
        assert [rollout.mask.shape[1] for _, rollout in batches] == sizes


# ---------------------------------------------------------------------- which parameters


def test_npgigt_samples_at_the_lookahead_and_keeps_theta(tmp_path):
    agent = make(NPGIGT, step_size=0.1, momentum=0.25)
    batches = spied(agent)
    first, _ = agent.step(agent.state, agent.collector)
    second, metrics = agent.step(first, agent.collector)
    ahead = first.theta + 3.0 * (first.theta - first.previous)
    assert torch.allclose(batches[1][0], ahead, atol=1e-6)
    assert float(metrics["lookahead_distance"]) == pytest.approx(0.3, rel=1e-4)
    assert not torch.allclose(second.theta, batches[1][0], atol=1e-3)
    agent.learn(60)
    agent.save(tmp_path / "agent")
    loaded = NPGIGT.load(tmp_path / "agent")
    weights = torch.cat([parameter.detach().flatten() for parameter in loaded.policy.parameters()])
    assert torch.equal(weights, agent.state.theta)
    observation = np.array([0.1, 0.0, 0.5], np.float32)
    distribution = agent.log_policy(agent.state.theta, torch.tensor(observation)[None].repeat(3, 1), torch.arange(3))
    assert loaded.predict(observation, deterministic=True)[0] == int(distribution.argmax())


def test_harpg_takes_its_hessian_between_the_last_two_iterates():
    agent = make(HARPG, step_size=0.2, num_points=2)
    batches = spied(agent)
    state = agent.state
    for _ in range(3):
        before = len(batches)
        previous, theta = state.previous, state.theta
        state, _ = agent.step(state, agent.collector)
        assert torch.equal(batches[before][0], theta)
        for point, _ in batches[before + 1 :]:
            q = float((point - previous).norm() / (theta - previous).norm())
            assert 0.0 < q < 1.0
            assert torch.allclose(point, torch.lerp(previous, theta, q), atol=1e-5)


def test_storm_reweights_to_the_previous_iterate_and_sees_no_weights_at_the_current():
    agent = make(STORMPG, step_size=0.5, max_correction=None)
    first, metrics = agent.step(agent.state, agent.collector)
    assert "weights_ess" not in metrics
    _, metrics = agent.step(first, agent.collector)
    assert 0.25 <= float(metrics["weights_ess"]) < 1.0
    assert float(metrics["weights_max"]) > 0.0


# ---------------------------------------------------------------------- refusals


def test_weights_that_overflow_refuse_the_step_and_training_goes_on():
    agent = make(STORMPG, step_size=0.01, max_correction=None, baseline="none").learn(30)
    original, state = agent._policy_gradient, agent.state

    def overflowing(theta, batch):
        if theta is not state.previous:
            return original(theta, batch)
        shifted = dataclasses.replace(batch.rollout, log_probs=batch.rollout.log_probs - 100.0)
        return original(theta, batch._replace(rollout=shifted))  # e^100 a step is more than float32 holds

    agent._policy_gradient = overflowing
    following, metrics = agent.step(state, agent.collector)
    assert torch.equal(following.theta, state.theta)
    assert following.num_refused == 1
    assert float(metrics["refused_steps"]) == 1.0
    assert bool(following.direction.isfinite().all())
    after, _ = agent.step(following, agent.collector)
    assert not torch.equal(after.theta, following.theta)
    assert after.num_refused == 1


def test_a_bound_on_the_correction_binds():
    agent = make(HARPG, step_size=1.0, max_correction=0.01)
    state, _ = agent.step(agent.state, agent.collector)
    _, metrics = agent.step(state, agent.collector)
    assert float(metrics["correction_norm"]) == pytest.approx(0.01 * float(state.direction.norm()), rel=1e-4)
    assert float(metrics["correction_bounded"]) == 1.0


def test_srvrpg_counts_the_steps_that_its_radius_cut():
    agent = make(SRVRPG, step_size=1.0, radius=1e-3).learn(100)
    assert agent.state.num_truncated == agent.state.iteration
    assert float(agent.state.travelled) == pytest.approx(1e-3 * agent.state.iteration, rel=1e-3)


# ---------------------------------------------------------------------- adaptive steps


def test_adaptive_step_sizes_are_those_of_is_mbpg():
    agent = make(STORMPG, adaptive=[0.75, 1.0, 2.0], num_initial=4)
    state, squares, alpha = agent.state, 0.0, None
    for t in range(3):
        state, metrics = agent.step(state, agent.collector)
        squares += float(metrics["grad_norm"]) ** 2
        eta = 1.0 if t == 0 else min(1.0, 2.0 * alpha**2)
        alpha = 0.75 / (1.0 + squares) ** (1 / 3)
        assert metrics["momentum"] == pytest.approx(eta, rel=1e-4)
        assert metrics["step_size"] == pytest.approx(alpha, rel=1e-4)


# ---------------------------------------------------------------------- instruments

COMMON = {"grad_norm", "signal_to_noise", "direction_norm", "step_norm", "distance", "momentum", "step_size", "cosine"}
COMMON |= {"n_trajectories", "refused_steps", "return_theta"}
OWN = {
    REINFORCE: set(),
    NPGIGT: {"return_lookahead", "lookahead_distance", "weights_ess", "weights_max", "weights_mean"},
    HARPG: {"hvp_norm", "hvp_ratio", "correction_norm", "correction_bounded"},
    STORMPG: {"weights_ess", "weights_max", "weights_mean", "correction_norm", "correction_bounded"},
    SRVRPG: {"weights_ess", "weights_max", "weights_mean", "correction_norm", "truncated_fraction"},
    NVRPG: {"weights_ess", "weights_max", "weights_mean", "correction_norm"},
}


def test_every_instrument_is_logged(algorithm):
    agent = make(algorithm, **({"momentum": 0.5} if algorithm is not SRVRPG else {}))
    state, _ = agent.step(agent.state, agent.collector)
    _, metrics = agent.step(state, agent.collector)
    assert metrics.keys() >= COMMON | OWN[algorithm]
    keys = {key for page in agent.layout.values() for _, keys in page.values() for key in keys}
    charted = {key.removeprefix("train/") for key in keys if key.startswith("train/")}
    assert OWN[algorithm] <= charted <= metrics.keys()  # no chart stays empty


def test_the_share_of_the_memory_in_the_direction(algorithm):
    agent = make(algorithm, memory="s2pg", memory_size=4)
    state, metrics = agent.step(agent.state, agent.collector)
    pieces = agent.functional.unravel(state.direction)
    of_memory = [x for name, x in pieces.items() if any(part in name for part in ("encoder", "kernel", "memory"))]
    assert 0 < metrics["memory_share"] < 1
    assert float(metrics["memory_share"] * state.direction.norm()) == pytest.approx(
        float(torch.cat([x.flatten() for x in of_memory]).norm()), rel=1e-5
    )


# ---------------------------------------------------------------------- files


def test_a_loaded_agent_goes_on_as_the_saved_one(algorithm, tmp_path):
    short = {"num_initial": 4} if algorithm is STORMPG else {}  # its first batch alone would be the whole run
    whole = make(algorithm, **short).learn(200)
    part = make(algorithm, **short).learn(80)
    assert 0 < part.state.iteration < whole.state.iteration
    part.save(tmp_path / "agent")
    loaded = algorithm.load(tmp_path / "agent", env=gymnasium_envs(2))
    loaded.learn(whole.num_timesteps - loaded.num_timesteps, reset_num_timesteps=False)
    assert loaded.num_timesteps == whole.num_timesteps
    assert torch.equal(loaded.state.theta, whole.state.theta)


def gymnasium_envs(num_envs):
    return rlopt.make_envs(Walk, num_envs)


UTILITIES = [EntropyUtility(0.01), LinearUtility([[0.0, 1.0]] * 3), ImitationUtility([[1 / 6] * 2] * 3)]


@pytest.mark.parametrize("utility", UTILITIES)
def test_utilities_are_saved(utility, tmp_path):
    agent = NVRPG("MlpPolicy", "rlopt/RandomMDP-v0", utility=utility, **SMALL).learn(60)
    agent.save(tmp_path / "agent")
    loaded = NVRPG.load(tmp_path / "agent")
    assert loaded.utility == utility
    assert torch.equal(loaded.state.occupancy, agent.state.occupancy)


def test_a_utility_that_is_a_function_trains_and_cannot_be_saved(tmp_path):
    agent = NVRPG("MlpPolicy", "rlopt/RandomMDP-v0", utility=lambda occupancy: occupancy[0].sum(), **SMALL).learn(60)
    with pytest.raises(ValueError, match=r"utility: .* cannot be saved"):
        agent.save(tmp_path / "agent")


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (REINFORCE, {"num_episodes": 0}, "num_episodes: expected a positive integer, got 0"),
        (REINFORCE, {"gamma": 1.5}, r"gamma: expected a number in \[0, 1\], got 1.5"),
        (REINFORCE, {"step_size": 0.0}, "step_size: expected a positive number, got 0.0"),
        (REINFORCE, {"step_size": "linear:0.1"}, "step_size: expected a number, 'power:VALUE:EXPONENT' or a function of t"),
        (REINFORCE, {"step_size": "power:0.1"}, "step_size: expected a number, 'power:VALUE:EXPONENT'"),
        (REINFORCE, {"baseline": "leaf_one_out"}, "baseline: .* did you mean 'leave_one_out'"),
        (REINFORCE, {"num_episodes": 1}, "num_episodes: expected at least 2 with baseline='leave_one_out'"),
        (REINFORCE, {"horizon": 0}, "horizon: expected a positive integer, got 0"),
        (NPGIGT, {"momentum": 0.0}, "momentum: expected a positive number, got 0.0"),
        (NPGIGT, {"momentum": -0.5}, "momentum: expected a positive number, got -0.5"),
        (HARPG, {"momentum": float("nan")}, "momentum: expected a positive number, got nan"),
        (HARPG, {"num_episodes": "ten"}, "num_episodes: expected a positive integer, got 'ten'"),
        (STORMPG, {"adaptive": 3}, "adaptive: expected three numbers k, m, c, got 3"),
        (HARPG, {"hvp": "casual"}, "hvp: .* did you mean 'causal'"),
        (HARPG, {"num_hessian_episodes": 5, "num_points": 2}, "num_points: expected a divisor of .* = 5, got 2"),
        (HARPG, {"num_points": 4}, "num_hessian_episodes / num_points: expected at least 2 with baseline='leave_one_out'"),
        (HARPG, {"max_correction": 0.0}, "max_correction: expected a positive number, got 0.0"),
        (HARPG, {"steps_size": 0.1}, "HARPG has no argument 'steps_size'; did you mean 'step_size'"),
        (STORMPG, {"weighting": "per_episode"}, "weighting: expected one of"),
        (STORMPG, {"adaptive": [1.0, 2.0]}, "adaptive: expected three numbers k, m, c"),
        (SRVRPG, {"restart_every": 0}, "restart_every: expected a positive integer, got 0"),
        (SRVRPG, {"num_small": 1}, "num_small: expected at least 2 with baseline='leave_one_out'"),
        (SRVRPG, {"radius": -1.0}, "radius: expected a positive number, got -1.0"),
        (NVRPG, {"utility": "entropi"}, "utility: .* did you mean 'entropy'"),
        (NVRPG, {"utility": "entropy"}, "utility: .* needs Discrete observations and actions, got Box"),
        (NPGIGT, {"preset": "cleanrl"}, "preset: CleanRL has no npgigt; use 'tuned'"),
    ],
)
def test_bad_arguments_are_named(cls, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(cls, **arguments)


def test_a_momentum_schedule_that_becomes_zero_is_refused_when_it_does():
    agent = make(NPGIGT, momentum=lambda t: 0.5 if t < 2 else 0.0)
    with pytest.raises(ValueError, match=r"momentum: expected a positive number, got 0\.0"):
        agent.learn(200)
    assert agent.state.iteration == 2


def test_a_step_size_that_becomes_negative_is_refused_when_it_does():
    agent = make(REINFORCE, step_size=lambda t: 0.1 if t < 2 else -0.1)
    with pytest.raises(ValueError, match=r"step_size: expected a positive number, got -0\.1"):
        agent.learn(200)
    assert agent.state.iteration == 2


def test_a_stop_within_an_iteration_goes_on_as_its_file_does(tmp_path):
    """HARPG draws two batches an iteration: a stop in the second draws the first again."""
    for limit in range(60, 130, 10):
        agent = make(HARPG)
        agent.learn(10_000, callback=lambda local, _, agent=agent, limit=limit: agent.num_timesteps < limit)
        agent.save(tmp_path / "agent")
        loaded = HARPG.load(tmp_path / "agent", env=gymnasium_envs(2))
        state, other = agent.state, loaded.state
        for _ in range(3):
            state, other = agent.step(state, agent.collector)[0], loaded.step(other, loaded.collector)[0]
        assert torch.equal(state.theta, other.theta)


def test_a_new_seed_is_in_the_file_with_its_own_batches(tmp_path):
    agent = make(REINFORCE).learn(60)
    agent.set_random_seed(5)
    agent.save(tmp_path / "agent")
    loaded = REINFORCE.load(tmp_path / "agent", env=gymnasium_envs(2))
    assert torch.equal(agent.step(agent.state, agent.collector)[0].theta, loaded.step(loaded.state, loaded.collector)[0].theta)


def test_sizes_of_numpy_are_saved(tmp_path):
    four = np.int64(4)
    agent = make(HARPG, "CartPole-v1", num_episodes=four, num_hessian_episodes=four, n_envs=four).learn(60)
    agent.save(tmp_path / "agent")
    assert HARPG.load(tmp_path / "agent").state.num_trajectories == agent.state.num_trajectories


def test_new_parameters_begin_a_new_direction(algorithm):
    agent, other = make(algorithm).learn(60), make(algorithm, seed=1).learn(60)
    agent.set_parameters(other.get_parameters())
    assert torch.equal(agent.state.theta, other.state.theta)
    assert torch.equal(agent.state.previous, agent.state.theta)
    assert agent.state.iteration == 0


def test_gradients_too_long_for_their_norm_refuse_the_step():
    agent = make(NPGIGT, env="rlopt/RandomMDP-v0")
    original = agent._policy_gradient
    agent._policy_gradient = lambda theta, batch: 1e25 * original(theta, batch)
    following, _ = agent.step(agent.state, agent.collector)
    assert torch.equal(following.theta, agent.state.theta)
    assert following.num_refused == 1


def test_the_linear_baseline_refuses_images():
    class Camera(Walk):
        def __init__(self):
            super().__init__("image")

    with pytest.raises(ValueError, match=r"baseline: 'linear' cannot read observations of 1296 numbers"):
        make(REINFORCE, Camera, baseline="linear", policy_kwargs={"normalize_images": True}).learn(10)


def test_a_kinked_network_warns_for_hessians():
    with pytest.warns(UserWarning, match="ReLU-like activations, whose curvature"):
        make(HARPG, policy_kwargs={"net_arch": [8], "activation_fn": torch.nn.ReLU})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make(HARPG)
        make(NPGIGT, policy_kwargs={"net_arch": [8], "activation_fn": torch.nn.ReLU})


class Endless(gym.Env):
    """Never over."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), float(action), False, False, {}


def test_an_endless_environment_needs_a_horizon(monkeypatch):
    monkeypatch.setattr("rlopt.episodes.MAX_EPISODE_STEPS", 100)
    agent = make(REINFORCE, Endless)
    theta = agent.state.theta.clone()
    with pytest.raises(ValueError, match=r"horizon: .*has not ended after"):
        agent.learn(1000)
    assert torch.equal(agent.state.theta, theta)
    agent = make(REINFORCE, Endless, horizon=10, step_size=0.1).learn(2000)
    assert np.mean([episode["l"] for episode in agent.ep_info_buffer]) == 10
    assert np.mean([episode["r"] for episode in list(agent.ep_info_buffer)[-20:]]) > 7


def test_a_utility_without_a_finite_gradient_is_refused_and_nothing_is_lost():
    agent = NVRPG("MlpPolicy", "rlopt/Grid-v0", utility=EntropyUtility(0.0), **SMALL)
    theta = agent.state.theta.clone()
    with pytest.raises(ValueError, match=r"utility: its gradient is not finite at state \d+, action \d+"):
        agent.learn(1000)
    assert torch.equal(agent.state.theta, theta)


def test_a_reward_vector_is_refused():
    with pytest.raises(ValueError, match="env: it pays 2 rewards a step and REINFORCE maximises one"):
        REINFORCE("MlpPolicy", rlopt.make_envs("rlopt/RandomMDP-v0", 2, env_kwargs={"num_objectives": 2}), **SMALL).learn(10)


# ---------------------------------------------------------------------- construction


def test_an_agent_takes_an_environment_for_every_episode_by_default():
    assert REINFORCE("MlpPolicy", Walk, num_episodes=6).n_envs == 6
    assert REINFORCE("MlpPolicy", Walk(), num_episodes=6).n_envs == 1
    assert REINFORCE("MlpPolicy", Walk, num_episodes=6, n_envs=3).n_envs == 3


def test_arguments_of_the_parent_are_stated_by_every_agent(algorithm):
    import inspect

    names = list(inspect.signature(algorithm).parameters)
    assert names[:3] == ["policy", "env", "step_size"]
    assert {"num_episodes", "gamma", "baseline", "horizon", "seed", "n_envs"} <= set(names)
    assert "common" not in names
    assert make(algorithm).hyperparameters().keys() >= {"step_size", "num_episodes", "gamma", "baseline", "horizon", "seed"}


def test_the_state_of_every_agent_begins_with_the_common_fields(algorithm):
    assert issubclass(algorithm, EpisodicAgent)
    assert make(algorithm).state._fields[: len(EpisodicState._fields)] == EpisodicState._fields


def test_the_occupancy_of_a_policy_with_memory_is_the_environments():
    """A memory that nothing reads changes no utility: the occupancy is counted without it."""
    agent = NVRPG("MlpPolicy", "rlopt/RandomMDP-v0", utility="entropy", memory="s2pg", num_episodes=3, seed=0, device="cpu")
    rollout = agent.collector.episodes(agent.state.theta, 3)
    found = agent._occupancy(rollout)
    states, actions = rollout.observations["observation"].long(), rollout.actions[..., 0].long()
    expected = torch.zeros_like(found)
    for t, n in rollout.mask.nonzero().tolist():
        expected[states[t, n], actions[t, n]] += agent.gamma**t / 3
    scale = expected.sum() / found.sum()
    torch.testing.assert_close(found * scale, expected, rtol=1e-4, atol=1e-6)
    assert agent.learn(100).state.iteration > 1
