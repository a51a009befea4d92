"""Where to compute, and with how many threads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from stable_baselines3.common.utils import get_device
from torch import Tensor, nn

# One thread is fastest for networks of fewer parameters; larger ones get all cores, or the GPU.
SMALL_NETWORK = 300_000
# From here on a step of all environments is enough work for a GPU, even with a small network (an estimate).
MANY_ENVIRONMENTS = 512


def usable_device(device: torch.device | str) -> torch.device:
    """The device asked for; "auto" is CUDA if there is one, see `automatic_device`. Warns where CUDA was asked for in vain.

    Raises:
        ValueError: not a device of torch.
    """
    try:
        chosen = get_device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or another device of torch, got {device!r}") from None
    if str(device).startswith("cuda") and chosen.type == "cpu":
        warnings.warn(f"device: {device} is not available, using the CPU", stacklevel=3)
    return chosen


def automatic_device(module: nn.Module, num_envs: int) -> torch.device:
    """What "auto" means for these networks: CUDA, if there is one, where it is likely to pay; else the CPU.

    On a GPU a small MLP costs what it costs to start its kernels, whatever they compute, and every step of environments on
    the CPU pays two copies: one core is as fast. Convolutions, `SMALL_NETWORK` parameters or `MANY_ENVIRONMENTS` are work
    enough.

    Args:
        module: the networks.
        num_envs: how many environments are stepped together.
    """
    convolutions = any(isinstance(part, nn.modules.conv._ConvNd) for part in module.modules())
    large = sum(parameter.numel() for parameter in module.parameters()) >= SMALL_NETWORK
    return get_device("auto") if convolutions or large or num_envs >= MANY_ENVIRONMENTS else torch.device("cpu")


def generator_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """The generator itself, if it is on the device; else one there, seeded with a number that is drawn from it.

    So there is one state to keep, and what is drawn on a device is exact to continue.
    """
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)


@contextmanager
def threads_for(theta: Tensor) -> Iterator[None]:
    """Compute with one thread if the network is small, and put the number of threads back."""
    before = torch.get_num_threads()
    if theta.numel() < SMALL_NETWORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
