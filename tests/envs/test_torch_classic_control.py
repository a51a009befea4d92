"""Classic control in torch against its NumPy form, which tests compare with Gymnasium."""

import numpy as np
import pytest
import torch

from rlopt import make_envs
from rlopt.envs import classic_control
from rlopt.envs.classic_control import TASKS, ClassicControlVectorEnv
from rlopt.envs.gymnasium_vector import GymnasiumEnvironments
from rlopt.envs.spaces import ActionDecoder
from rlopt.envs.torch_classic_control import TorchClassicControl
from tests.host_reads import ForbidHostReads, HostReads

NUM_ENVS, NUM_STEPS = 6, 520


class FromTable(ClassicControlVectorEnv):
    """Begins episodes where a table [T + 1, N, S] says: row 0 at first, row t + 1 after the t-th step."""

    def __init__(self, env_id, table):
        super().__init__(env_id, table.shape[1])
        self.table, self.row = table, 0

    def _first_states_of(self, mask):
        return self.table[self.row][mask]

    def step(self, actions):
        self.row += 1
        return super().step(actions)


def pair(env_id, num_envs=NUM_ENVS, num_steps=NUM_STEPS, dtype=torch.float64):
    """Torch environments, NumPy ones that begin where those do, and the table."""
    on_device = TorchClassicControl(env_id, num_envs, dtype)
    on_device.begin(3)
    first, starts = on_device.states.clone(), on_device.draw_starts(num_steps)
    table = torch.cat([first[None], starts]).double().numpy()
    return on_device, GymnasiumEnvironments(FromTable(env_id, table)), starts


def random_actions(env_id, rng):
    """Some of them with the motion, so that goals are reached."""
    space = TASKS[env_id].action_space
    if space.dtype == np.float32:
        return rng.uniform(space.low, space.high, (NUM_ENVS, 1)).astype(np.float32)
    return rng.integers(space.n, size=NUM_ENVS)


def largest_difference(env_id):
    """Of observations, last observations and rewards over many episodes; the ends must be the same."""
    on_device, native, starts = pair(env_id)
    native.env.horizon = on_device.task.horizon
    expected, rng, num_ended, worst = native.reset(), np.random.default_rng(0), 0, 0.0
    worst = np.abs(expected - on_device._observed(on_device.states).numpy()).max()
    for t in range(NUM_STEPS):
        actions = random_actions(env_id, rng)
        moved, step = on_device.advance(torch.from_numpy(actions), starts[t]), native.step(actions)
        assert (moved.terminated.tolist(), moved.truncated.tolist()) == (step.terminated.tolist(), step.truncated.tolist())
        rows = (step.terminated | step.truncated).nonzero()[0]
        num_ended += len(rows)
        differences = [moved.observations.numpy() - step.observations, moved.rewards.numpy() - step.rewards]
        if len(rows):
            differences.append(moved.last_observations.numpy()[rows] - step.final_observations)
        worst = max(worst, *(np.abs(difference).max() for difference in differences))
    assert num_ended or native.env.horizon > NUM_STEPS
    return worst, np.abs(on_device.states.numpy() - native.env.states).max()


@pytest.mark.parametrize("env_id", TASKS)
def test_in_double_precision_it_follows_the_numpy_form(env_id):
    observed, states = largest_difference(env_id)
    assert observed < 1e-6  # which are of single precision
    assert states < 1e-9


def test_another_physics_would_be_noticed(monkeypatch):
    def stronger(xp, states, actions):
        return classic_control.advance_cart_pole(xp, states, actions * 1.000001)

    changed = TASKS["CartPole-v1"].__class__(**{**vars(TASKS["CartPole-v1"]), "advance": stronger})
    monkeypatch.setitem(TASKS, "CartPole-v1", changed)
    on_device, native, starts = pair("CartPole-v1", dtype=torch.float64)
    native.env.task = on_device.task.__class__(**{**vars(changed), "advance": classic_control.advance_cart_pole})
    native.reset()
    actions = np.ones(NUM_ENVS, np.int64)
    for t in range(3):
        on_device.advance(torch.from_numpy(actions), starts[t])
        native.step(actions)
    assert np.abs(on_device.states.numpy() - native.env.states).max() > 1e-9


@pytest.mark.parametrize("env_id", TASKS)
def test_a_step_never_waits_for_the_device(env_id):
    envs = TorchClassicControl(env_id, 3)
    envs.begin(0)
    envs.steps[1] = envs.task.horizon - 1  # an end on the way
    starts, space = envs.draw_starts(4), envs.decoder.space
    actions = torch.as_tensor(np.array([space.sample() for _ in range(3)]))
    with ForbidHostReads():
        for t in range(4):
            envs.advance(envs.decoded(actions, squashed=True), starts[t])
    with pytest.raises(HostReads), ForbidHostReads():
        envs.steps[(envs.steps > 2)]
    with pytest.raises(HostReads), ForbidHostReads():
        bool(envs.steps.any())


def test_states_are_of_single_precision_and_begin_between_the_bounds():
    for env_id, task in TASKS.items():
        envs = TorchClassicControl(env_id, 1000)
        envs.begin(1)
        assert envs.states.dtype == torch.float32
        low, high = (torch.tensor(bound) for bound in task.first)
        assert bool(((envs.states >= low) & (envs.states <= high)).all())
        spread = (envs.states.amax(0) - envs.states.amin(0)) / (high - low).clamp_min(1e-9)
        assert bool((spread[high > low] > 0.97).all())
        assert len(envs.states[:, high > low].unique()) > 900


def test_seeds_repeat_and_none_goes_on():
    envs = TorchClassicControl("Acrobot-v1", 4)
    first, then = envs.begin(5).clone(), envs.begin(None).clone()
    assert not torch.equal(first, then)
    assert torch.equal(envs.begin(5), first)
    assert torch.equal(envs.begin(None), then)


@pytest.mark.parametrize("squashed", [False, True])
def test_actions_are_decoded_as_on_the_host(squashed):
    envs = TorchClassicControl("Pendulum-v1", 5)
    actions = torch.tensor([[-3.0], [-1.0], [0.3], [1.0], [2.5]])
    expected = ActionDecoder(TASKS["Pendulum-v1"].action_space)(actions.numpy(), squashed)
    np.testing.assert_array_equal(envs.decoded(actions, squashed).numpy(), expected)


def test_as_plain_environments_and_back_from_a_snapshot():
    envs = make_envs("CartPole-v1", 5, backend="torch")
    assert isinstance(envs, TorchClassicControl)
    assert envs.backend_choice == "torch"
    envs.reset(7)
    rng = np.random.default_rng(1)
    played = []
    for t in range(120):
        if t == 60:
            kept = envs.snapshot()
        played.append(envs.step(rng.integers(2, size=5)))
        if len(rows := played[-1].final_rows):
            assert np.abs(played[-1].final_observations).max(1).min() > 0.05
            assert np.abs(played[-1].observations[rows]).max() <= 0.05
    assert sum(len(step.final_rows) for step in played) > 5
    other, rng = TorchClassicControl("CartPole-v1", 5), np.random.default_rng(1)
    other.begin(0)
    assert other.restore(kept) == []
    rng.integers(2, size=(60, 5))
    for step in played[60:]:
        again = other.step(rng.integers(2, size=5))
        np.testing.assert_array_equal(again.observations, step.observations)
    with pytest.raises(ValueError, match=r"states: expected \[4, 4\], got \[5, 4\]"):
        TorchClassicControl("CartPole-v1", 4).restore(kept)


def test_what_has_no_form_in_torch_is_refused():
    with pytest.raises(ValueError, match=r"backend: Blackjack-v1 has no implementation in torch \(CartPole-v1"):
        make_envs("Blackjack-v1", 2, backend="torch")
    with pytest.raises(ValueError, match="with these env_kwargs"):
        make_envs("CartPole-v1", 2, backend="torch", env_kwargs={"sutton_barto_reward": True})
    with pytest.raises(ValueError, match="backend: 'torch' needs an environment id"):
        make_envs(lambda: None, 2, backend="torch")
    with pytest.raises(ValueError, match="env_id: expected one of CartPole-v1"):
        TorchClassicControl("CartPole-v0")
