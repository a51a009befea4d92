"""Every agent on a device that is not the host, without a GPU: nothing is mixed, and what is learned is the same."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from rlopt import ALGORITHMS, MOPG, PPO, REBEL, S2PG, RecurrentPPO, evaluate
from rlopt.acting import NumpyActor, TorchActor, make_actor
from rlopt.agents.proximal import ProximalAgent
from rlopt.flight_recorder import FlightRecorder
from rlopt.rollout import Rollout
from tests.marked_device import DEVICE, Mixed, OnDevice, marked_device

SMALL = {"n_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 2, "seed": 0}
GROUPS = {"num_groups": 3, "group_size": 2, "n_envs": 6}
# Whole episodes by forward over reverse: torch has no forward mode for tensors of a class of one's own.
FORWARD = {"harpg", "n-harpg"}


class Pictures(gym.Env):
    """Six steps of noise."""

    observation_space = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    action_space = spaces.MultiDiscrete([3, 2])

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 6
        return self.seen(), {}

    def step(self, action):
        self.left -= 1
        return self.seen(), float(np.sum(action)), self.left == 0, False, {}

    def seen(self):
        return self.np_random.integers(0, 256, (36, 36, 1)).astype(np.uint8)


class Parts(Pictures):
    """The same with a Dict observation."""

    observation_space = spaces.Dict(a=spaces.Box(-1, 1, (3,)), b=spaces.Discrete(4))
    action_space = spaces.MultiBinary(2)

    def seen(self):
        return {"a": self.np_random.uniform(-1, 1, 3).astype(np.float32), "b": self.np_random.integers(4)}


def repeated(function):
    """A capture without a GPU."""
    function()
    return function


def trained(device, algorithm=PPO, env="CartPole-v1", policy="MlpPolicy", num_steps=64, captured=False, **arguments):
    base = SMALL if issubclass(algorithm, ProximalAgent) else {"n_envs": 4, "seed": 0}
    agent = algorithm(policy, env, device=device, **{**base, **arguments})
    if captured:
        agent.capture = repeated
    agent.learn(num_steps)
    assert agent.device == torch.device(device)
    assert isinstance(agent.state.theta, OnDevice) == (agent.device == DEVICE)
    return agent


def both(**arguments):
    """θ after the same training there and here."""
    with marked_device():
        there = trained(DEVICE, **arguments).state.theta.cpu()
    return there, trained("cpu", **arguments).state.theta


QUICK = {
    "ppo": {},
    "ppo-captured": {"captured": True, "target_kl": 0.02},
    "ppo-normalised": {"normalize_observations": True, "normalize_rewards": True, "clip_range_vf": 0.1},
    "ppo-torch": {"backend": "torch"},
    "ppo-pictures": {"env": Pictures, "policy": "CnnPolicy", "num_steps": 32},
    "s2pg-torch": {"algorithm": S2PG, "env": "Pendulum-v1", "backend": "torch"},
    "rebel": {"algorithm": REBEL},
    "rebel-branched": {"algorithm": REBEL, "mode": "branched", "horizon": 20, **GROUPS},
    "recurrent": {"algorithm": RecurrentPPO, "policy": "MlpLstmPolicy"},
}
SLOW = {
    "ppo-eager": {"compile": False},
    "ppo-squashed": {"env": "Pendulum-v1", "policy_kwargs": {"squash_output": True}},
    "ppo-torch-squashed": {"env": "Pendulum-v1", "policy_kwargs": {"squash_output": True}, "backend": "torch"},
    "ppo-memory": {"memory": "s2pg"},
    "ppo-rmsprop": {"policy_kwargs": {"optimizer_class": torch.optim.RMSprop}},
    "ppo-parts": {"env": Parts, "policy": "MultiInputPolicy"},
    "ppo-torch-captured": {"backend": "torch", "captured": True},
    "s2pg": {"algorithm": S2PG, "target_kl": 0.01},
    "s2pg-lstm": {"algorithm": S2PG, "policy_kwargs": {"cell": "lstm"}},
    "s2pg-parts": {"algorithm": S2PG, "env": Parts, "policy": "MultiInputPolicy"},
    "rebel-torch": {"algorithm": REBEL, "backend": "torch"},
    "rebel-trajectory": {"algorithm": REBEL, "mode": "trajectory", **GROUPS},
    "rebel-memory": {"algorithm": REBEL, "env": "Pendulum-v1", "memory": "s2pg"},
    "recurrent-parts": {"algorithm": RecurrentPPO, "env": Parts, "policy": "MultiInputLstmPolicy"},
}
EPISODIC = [
    name for name, algorithm in ALGORITHMS.items() if not issubclass(algorithm, ProximalAgent) and algorithm is not MOPG
]


@pytest.mark.parametrize("arguments", QUICK.values(), ids=QUICK)
def test_training_is_the_same_there(arguments):
    there, here = both(**arguments)
    assert (there - here).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("arguments", SLOW.values(), ids=SLOW)
def test_training_is_the_same_there_in_other_forms(arguments):
    there, here = both(**arguments)
    assert (there - here).abs().max() < 1e-6


@pytest.mark.parametrize(
    "name",
    [
        name if name in ("reinforce", "npgigt") else pytest.param(name, marks=pytest.mark.slow)
        for name in EPISODIC
        if name not in FORWARD
    ],
)
def test_agents_of_whole_episodes_learn_the_same_there(name):
    there, here = both(algorithm=ALGORITHMS[name], env="Pendulum-v1", horizon=15, num_steps=200)
    assert (there - here).abs().max() < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    "utility", ["weighted-sum:0.5,0.5", "chebyshev:0.5,0.5;ideal=1,1", "lagrangian:1,0;thresholds=none,-10;step-size=0.1"]
)
@pytest.mark.parametrize("algorithm", [PPO, MOPG])
def test_several_objectives_are_weighed_there(algorithm, utility):
    pytest.importorskip("mo_gymnasium")
    there, here = both(algorithm=algorithm, env="deep-sea-treasure-concave-v0", utility=utility)
    assert (there - here).abs().max() < 1e-6


def test_small_networks_there_act_here():
    with marked_device():
        for sizes, num_envs, expected in (([64, 64], 4, NumpyActor), ([64, 64], 200, TorchActor), ([600, 600], 4, TorchActor)):
            agent = PPO("MlpPolicy", "Pendulum-v1", device=DEVICE, policy_kwargs={"net_arch": sizes}, n_steps=8, batch_size=8)
            module = agent.functional.bind(agent.state.theta)
            assert type(make_actor(module, num_envs)) is expected
            noise, seen = np.ones((num_envs, 1), np.float32), np.ones((num_envs, 3), np.float32)
            np.testing.assert_allclose(make_actor(module, num_envs)(seen, noise), TorchActor(module)(seen, noise), atol=1e-6)


class Reading(BaseCallback):
    """Reads what is computed on demand."""

    def _on_step(self):
        return bool(len(self.locals["values"]) == len(self.locals["log_probs"]) == self.training_env.num_envs)


@pytest.mark.filterwarnings("ignore:for .*copying from a non-meta parameter")  # torch knows the device as one without memory
def test_what_surrounds_a_training(tmp_path):
    """Callbacks, files, prediction, parameters, evaluation, the flight recorder."""
    with marked_device():
        agent = trained(DEVICE)
        agent.learn(32, Reading())
        agent.save(tmp_path / "agent")
        loaded = PPO.load(tmp_path / "agent", env="CartPole-v1", device=DEVICE)
        assert torch.equal(loaded.state.theta.cpu(), agent.state.theta.cpu())
        loaded.set_parameters(agent.get_parameters())
        loaded.learn(32)
        actions, _ = loaded.predict(np.zeros((3, 4), np.float32))
        assert actions.shape == (3,)
        evaluate(loaded, "CartPole-v1", 2)
        with pytest.raises(FloatingPointError, match="smaller steps did not help"):
            loaded.learn(64, recorder=FlightRecorder(tmp_path / "records", max_kl=1e-12, max_rollbacks=1))


def test_a_tensor_of_the_host_would_be_noticed(monkeypatch):
    def traces(self, lambda_):
        return lambda_ * (~(self.terminated | self.truncated)).float().cpu()

    monkeypatch.setattr(Rollout, "traces", traces)
    with pytest.raises(Mixed), marked_device():
        trained(DEVICE)


def test_a_generator_of_the_host_would_be_noticed(monkeypatch):
    def shuffled(self, size):
        return torch.randperm(size, generator=self.generators["minibatches"], device=self.device)

    monkeypatch.setattr(ProximalAgent, "shuffled", shuffled)
    with pytest.raises(RuntimeError, match="expected a generator on the tensor's device"), marked_device():
        trained(DEVICE)


def test_arrays_of_tensors_there_would_be_noticed():
    with marked_device():
        there = torch.zeros(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
        with pytest.raises(Mixed):
            there + torch.ones(3)
        assert (there + 1).cpu().tolist() == [1.0] * 3
