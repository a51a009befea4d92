"""What "auto" means, where CUDA is said to be there and where not; no GPU is touched."""

import pytest
import torch
from torch import nn

from rlopt import PPO
from rlopt.device import MANY_ENVIRONMENTS, SMALL_NETWORK, automatic_device, generator_on, usable_device

SMALL = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2))
LARGE = nn.Linear(1000, SMALL_NETWORK // 1000)
CONVOLUTION = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten())


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("module", "num_envs", "expected"),
    [
        (SMALL, 1, "cpu"),
        (SMALL, MANY_ENVIRONMENTS - 1, "cpu"),
        (SMALL, MANY_ENVIRONMENTS, "cuda"),
        (LARGE, 1, "cuda"),
        (CONVOLUTION, 1, "cuda"),
    ],
)
def test_small_networks_stay_on_the_cpu(cuda, module, num_envs, expected):
    assert automatic_device(module, num_envs).type == expected


@pytest.mark.parametrize("module", [SMALL, LARGE, CONVOLUTION])
def test_without_a_gpu_everything_does(monkeypatch, module):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert automatic_device(module, 10**6).type == "cpu"


class Moved(Exception):
    """The networks were sent to CUDA."""


@pytest.fixture
def moved(cuda, monkeypatch):
    """An agent that would be on CUDA raises instead."""

    def to(self, device):
        if torch.device(device).type == "cuda":
            raise Moved
        return self

    monkeypatch.setattr(nn.Module, "to", to)
    monkeypatch.setattr(torch.cuda, "manual_seed", lambda seed: None)


def test_agents_decide_by_their_own_networks(moved):
    small = PPO("MlpPolicy", "CartPole-v1", n_envs=4)
    assert small.device.type == "cpu"
    for arguments in (
        {"policy_kwargs": {"net_arch": [512, 512]}},
        {"n_envs": MANY_ENVIRONMENTS, "n_steps": 2},
        {"device": "cuda"},  # asked for, it wins
    ):
        with pytest.raises(Moved):
            PPO("MlpPolicy", "CartPole-v1", **arguments)
    assert PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [512, 512]}, device="cpu").device.type == "cpu"
    later = PPO("MlpPolicy", None, n_envs=4)
    later.set_env("CartPole-v1")
    assert later.device.type == "cpu"


def test_a_device_that_is_none_is_named():
    with pytest.raises(ValueError, match="device: expected 'auto', 'cpu', 'cuda' or another device of torch, got 'gpu'"):
        usable_device("gpu")


def test_cuda_asked_for_in_vain_is_a_warning(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.warns(UserWarning, match="device: cuda is not available, using the CPU"):
        assert usable_device("cuda").type == "cpu"


def test_a_generator_elsewhere_is_seeded_by_the_one_that_is_kept(monkeypatch):
    kept = torch.Generator().manual_seed(1)
    assert generator_on(torch.device("cpu"), kept) is kept
    seeds = []

    class Elsewhere:
        def __init__(self, device):
            assert device == torch.device("cuda")

        def manual_seed(self, seed):
            seeds.append(seed)
            return self

    with monkeypatch.context() as patched:
        patched.setattr(torch, "Generator", Elsewhere)
        for _ in range(2):
            assert isinstance(generator_on(torch.device("cuda"), kept), Elsewhere)
        kept.manual_seed(1)
        generator_on(torch.device("cuda"), kept)
    assert seeds[0] == seeds[2] != seeds[1]
