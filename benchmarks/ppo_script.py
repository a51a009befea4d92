"""PPO as one script in the manner of CleanRL: the algorithm and storage of its `ppo.py` and `ppo_continuous_action.py`.

Written anew for `speed.py`, which gives it Stable-Baselines3's hyper-parameters. As there, time limits are taken for
terminations, values and log-probabilities are computed while acting, and modules, distributions and Adam are torch's own.
"""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn
from torch.distributions import Categorical, Normal


def layer(inputs: int, outputs: int, gain: float = 2**0.5) -> nn.Linear:
    """An orthogonal layer without bias at the start."""
    linear = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class ActorCritic(nn.Module):
    """Two networks of 64 x 64."""

    def __init__(self, envs: SyncVectorEnv):
        super().__init__()
        space, inputs = envs.single_action_space, int(np.prod(envs.single_observation_space.shape or ()))
        self.discrete = isinstance(space, gym.spaces.Discrete)
        outputs = int(space.n) if isinstance(space, gym.spaces.Discrete) else int(np.prod(space.shape or ()))
        self.actor = nn.Sequential(layer(inputs, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, outputs, 0.01))
        self.critic = nn.Sequential(layer(inputs, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, 1.0))
        self.log_std = nn.Parameter(torch.zeros(outputs), requires_grad=not self.discrete)

    def act(self, observations: Tensor, actions: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions, their log-probabilities, entropies and values, [B] each (actions [B, A] if continuous)."""
        head, values = self.actor(observations), self.critic(observations).squeeze(-1)
        if self.discrete:
            choice = Categorical(logits=head)
            actions = choice.sample() if actions is None else actions
            return actions, choice.log_prob(actions), choice.entropy(), values
        normal = Normal(head, self.log_std.exp().expand_as(head))
        actions = normal.sample() if actions is None else actions
        return actions, normal.log_prob(actions).sum(1), normal.entropy().sum(1), values


def train(
    env_id: str,
    n_envs: int,
    n_steps: int,
    batch_size: int,
    n_epochs: int,
    after_iteration: Callable[[int], bool],
    learning_rate: float = 3e-4,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_range: float = 0.2,
    vf_coef: float = 0.5,
    max_grad_norm: float = 0.5,
) -> None:
    """Train until `after_iteration`, called with the steps so far, says False."""
    envs = SyncVectorEnv([lambda: gym.make(env_id)] * n_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    agent = ActorCritic(envs)
    optimizer = torch.optim.Adam([p for p in agent.parameters() if p.requires_grad], learning_rate, eps=1e-5)
    shape, action_shape = envs.single_observation_space.shape or (), envs.single_action_space.shape or ()
    observations = torch.zeros(n_steps, n_envs, *shape)
    actions = torch.zeros(n_steps, n_envs, *action_shape)
    log_probs, rewards, dones, values = (torch.zeros(n_steps, n_envs) for _ in range(4))
    advantages = torch.zeros(n_steps, n_envs)
    seen = torch.as_tensor(envs.reset(seed=0)[0], dtype=torch.float32)
    done = torch.zeros(n_envs)
    steps = 0
    proceed = True
    while proceed:
        for t in range(n_steps):
            observations[t], dones[t] = seen, done
            with torch.no_grad():
                actions[t], log_probs[t], _, values[t] = agent.act(seen)
            chosen = actions[t].numpy()
            chosen = chosen.astype(np.int64) if agent.discrete else np.clip(chosen, -1, 1)
            raw, reward, terminated, truncated, _ = envs.step(chosen)
            seen, rewards[t] = torch.as_tensor(raw, dtype=torch.float32), torch.as_tensor(reward, dtype=torch.float32)
            done = torch.as_tensor(terminated | truncated, dtype=torch.float32)
            steps += n_envs
        with torch.no_grad():
            following, continues, trace = agent.critic(seen).squeeze(-1), 1 - done, torch.zeros(n_envs)
            for t in reversed(range(n_steps)):
                delta = rewards[t] + gamma * following * continues - values[t]
                advantages[t] = trace = delta + gamma * gae_lambda * continues * trace
                following, continues = values[t], 1 - dones[t]
        flat = [x.flatten(0, 1) for x in (observations, actions, log_probs, advantages, advantages + values)]
        for _ in range(n_epochs):
            order = torch.randperm(n_steps * n_envs)
            for start in range(0, len(order), batch_size):
                o, a, old, advantage, target = (x[order[start : start + batch_size]] for x in flat)
                _, log_prob, _, value = agent.act(o, a)
                ratio = (log_prob - old).exp()
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
                clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
                loss = -torch.min(advantage * ratio, advantage * clipped).mean() + vf_coef * (value - target).square().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), max_grad_norm)
                optimizer.step()
        proceed = after_iteration(steps)
    envs.close()
