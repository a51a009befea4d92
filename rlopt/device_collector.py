"""Rollouts that never leave the device: the policy acts, the environments step, buffers are written, and no step is waited for.

All random numbers are drawn at once, and what is found by looking at numbers (which episodes ended, and with what) is found
after the last step.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlopt.collector import Collector
from rlopt.device import generator_on
from rlopt.envs.base import EnvironmentFault, Environments, Step, first_non_finite, named
from rlopt.envs.on_device import DeviceEnvironments, no_infos, on_host
from rlopt.envs.spaces import Array, map_arrays
from rlopt.envs.wrapper import innermost
from rlopt.estimators.returns import discounted_sums
from rlopt.policies.distributions import draw_noise
from rlopt.rollout import Observations, Rollout, as_tensors, in_pieces, map_observations


class Buffers(NamedTuple):
    """What T steps are written into; their memory becomes the rollout's."""

    states: Observations  # [T + 1, N, *obs]
    last: Observations  # [T, N, *obs], s_{t+1} before any reset
    actions: Tensor  # [T, N, *act]
    rewards: Tensor  # [T, N]
    terminated: Tensor  # [T, N] bool
    truncated: Tensor  # [T, N] bool


def make_collector(envs: Environments, *others: Any, **more: Any) -> Collector:
    """The collector that environments need, with its other arguments.

    Raises:
        ValueError: of environments on a device what is done on the host alone: normalisation, or a wrapper around them.
    """
    inside = innermost(envs)
    if not isinstance(inside, DeviceEnvironments):
        return Collector(envs, *others, **more)
    if inside is not envs:
        raise ValueError(
            f"backend: what this algorithm puts around {envs.name} ({type(envs).__name__}) is computed on the host; use "
            "backend='native' instead of 'torch'"
        )
    return DeviceCollector(inside, *others, **more)


class DeviceCollector(Collector):
    """A collector whose rollouts never leave the environments' device, which is its own.

    A callback is called for every step as always, but after the last of them, from a copy on the host; where it asks to stop,
    the rollout is dropped and the next one begins new episodes.

    Raises:
        ValueError: normalisation, which is done on the host.
    """

    envs: DeviceEnvironments

    def __init__(self, envs: DeviceEnvironments, *others: Any, **more: Any):
        super().__init__(envs, *others, **more)
        for name, normalizer in (
            ("normalize_observations", self.observation_normalizer),
            ("normalize_rewards", self.reward_normalizer),
        ):
            if normalizer is not None:
                raise ValueError(f"{name}: environments on a device (backend 'torch') are not normalised; use backend='native'")
        envs.to(self.device)

    def _collect(self, module: Any, num_steps: int) -> Rollout:
        envs, device, began = self.envs, self.device, perf_counter()
        noise = draw_noise(envs.decoder.space, (num_steps, envs.num_envs), generator_on(device, self.generator))
        buffers = _empty(envs, num_steps)
        assert self.observations is not None
        _write(buffers.states, 0, as_tensors(self.observations, device))
        self.observations = None  # an interrupt leaves environments where no observation is known
        _play(envs, module, noise, envs.draw_starts(num_steps), buffers)
        rows = (buffers.terminated | buffers.truncated).flatten().nonzero().squeeze(1)  # the host waits here
        self.timers.stepping += perf_counter() - began
        finals = map_observations(lambda x: x.flatten(0, 1)[rows], buffers.last)
        self._check_rollout(buffers)
        if self.on_step is None:
            self.observations = on_host(map_observations(lambda x: x[-1], buffers.states))
            self.num_timesteps += buffers.rewards.numel()
            self._count(buffers, rows)
        else:
            self._show(buffers, module.squash)
        states = map_observations(lambda x: x[:-1].flatten(0, 1), buffers.states)
        with torch.no_grad():
            log_probs = in_pieces(lambda s, a: module.actor(s).log_prob(a), states, buffers.actions.flatten(0, 1))
        return Rollout(
            states=buffers.states,
            actions=buffers.actions,
            log_probs=log_probs.view_as(buffers.rewards),
            rewards=buffers.rewards,
            terminated=buffers.terminated,
            truncated=buffers.truncated,
            mask=torch.ones_like(buffers.terminated),
            final_rows=rows,
            final_observations=finals,
        )

    def _count(self, buffers: Buffers, rows: Tensor) -> None:
        """Returns and lengths of episodes, by a scan along time on the device, and one look at what it found."""
        statistics, ended = self.statistics, buffers.terminated | buffers.truncated
        so_far = np.stack([statistics.returns, statistics.lengths])
        steps = torch.stack([buffers.rewards.double(), torch.ones_like(buffers.rewards, dtype=torch.float64)], -1)
        steps[0] += torch.from_numpy(so_far.T).to(steps)
        going_on = torch.cat([torch.ones_like(ended[:1]), ~ended[:-1]])  # with the sum that the step before came to
        decay = going_on.unsqueeze(-1).expand_as(steps).to(steps.dtype)
        sums = discounted_sums(steps.flip(0), decay.flip(0)).flip(0)  # [T, N, 2]
        left, found = (sums[-1] * ~ended[-1:].T).cpu().numpy(), sums.flatten(0, 1)[rows].cpu().numpy()
        statistics.add_ended((rows % ended.shape[1]).cpu().numpy(), found[:, 0], found[:, 1].astype(np.int64))
        statistics.returns, statistics.lengths = left[:, 0].copy(), left[:, 1].astype(np.int64)

    def _show(self, buffers: Buffers, squashed: bool) -> None:
        """Let the collector count every step, and its callback see it."""
        states, last = on_host(buffers.states), on_host(buffers.last)
        actions, rewards, terminated, truncated = (x.cpu().numpy() for x in buffers[2:])
        infos = no_infos(self.envs.num_envs)
        try:
            self.observations = map_arrays(lambda x: x[0].copy(), states)
            for t in range(len(actions)):
                rows = (terminated[t] | truncated[t]).nonzero()[0]
                finals = map_arrays(lambda x, t=t, rows=rows: x[t][rows], last) if len(rows) else None  # type: ignore[misc]
                following = map_arrays(lambda x, t=t: x[t + 1].copy(), states)  # type: ignore[misc]
                step = Step(following, rewards[t].astype(np.float64), terminated[t], truncated[t], rows, finals, infos)
                env_actions: Array = self.envs.decoder(actions[t], squashed)
                self._report(self._see(actions[t], env_actions, step, None, self._everyone), None)
        except BaseException:
            self.observations = None  # the environments are where the last step left them
            raise

    def _check_rollout(self, buffers: Buffers) -> None:
        """Raises EnvironmentFault unless all that was seen and paid is finite."""
        seen = [*(buffers.last.values() if isinstance(buffers.last, dict) else [buffers.last]), buffers.rewards]
        if not bool(torch.stack([x.isfinite().all() for x in seen]).all()):
            found = first_non_finite({**named(on_host(buffers.last)), "reward": buffers.rewards.cpu().numpy()})
            assert found is not None
            field, (t, n, *_) = found
            raise EnvironmentFault(
                f"{self.envs.name}: {field} of environment {n} is not finite after step {t} of the rollout that began after "
                f"{self.num_timesteps} environment steps; nothing was learned from this rollout"
            )


@torch.no_grad()
def _play(envs: DeviceEnvironments, module: Any, noise: Tensor, starts: Tensor, buffers: Buffers) -> None:
    """The steps themselves: nothing here makes the host wait for the device."""
    for t in range(len(noise)):
        actions = module.actor(map_observations(lambda x, t=t: x[t], buffers.states)).sample(noise[t])  # type: ignore[misc]
        moved = envs.advance(envs.decoded(actions, module.squash), starts[t])
        _write(buffers.states, t + 1, moved.observations)
        _write(buffers.last, t, moved.last_observations)
        buffers.actions[t] = actions
        buffers.rewards[t] = moved.rewards
        buffers.terminated[t] = moved.terminated
        buffers.truncated[t] = moved.truncated


def _empty(envs: DeviceEnvironments, num_steps: int) -> Buffers:
    grid, device = (num_steps, envs.num_envs), envs.device
    one = as_tensors(envs.encoder.empty(1), device)
    states = map_observations(lambda x: x.new_empty((num_steps + 1, envs.num_envs, *x.shape[1:])), one)
    shape, dtype = envs.decoder.policy_array_spec()
    return Buffers(
        states,
        map_observations(lambda x: torch.empty_like(x[1:]), states),
        torch.empty((*grid, *shape), dtype=torch.float32 if dtype is np.float32 else torch.int64, device=device),
        torch.empty(grid, device=device),
        torch.empty(grid, dtype=torch.bool, device=device),
        torch.empty(grid, dtype=torch.bool, device=device),
    )


def _write(target: Observations, row: int, source: Observations) -> None:
    if isinstance(target, dict) and isinstance(source, dict):
        for key, value in target.items():
            value[row] = source[key]
    elif isinstance(target, Tensor) and isinstance(source, Tensor):
        target[row] = source
