"""Recurrent PPO: the policy's memory is computed, and learned by backpropagation through time in chunks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.proximal import ProximalAgent, ProximalState
from rlopt.arguments import check_flag, check_number
from rlopt.collector import Collector
from rlopt.envs.memory import MEMORY
from rlopt.estimators import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    clipped_surrogate_weights,
    clipped_value_loss,
    clipped_value_loss_slope,
    explained_variance,
    value_loss,
)
from rlopt.logging import Metrics
from rlopt.policies.recurrent import RECURRENT_POLICIES, RecurrentPolicy, make_recurrent_policy
from rlopt.policies.unrolling import Begins
from rlopt.presets import with_preset
from rlopt.rollout import Observations, Rollout, map_observations
from rlopt.schedules import ScheduleLike, as_schedule


class Chunks(NamedTuple):
    """A rollout cut into C columns of L steps each; chunk c of environment n is column c·N + n. Column-wise: [·, C, …]."""

    observations: Observations  # [L, C, *obs], (o, a_prev)
    memory: Tensor  # [1, C, d_z], z before every first step; data
    begins: Tensor  # [L, C] bool, memory is zero before this step
    mask: Tensor  # [L, C] bool, rows that count
    actions: Tensor  # [L, C, *act]
    log_probs: Tensor  # [L, C], of the policy that sampled
    advantages: Tensor  # [L, C]
    values: Tensor  # [L, C], of the critic that the rollout began with
    targets: Tensor  # [L, C], advantages + values

    def columns(self, index: Tensor | slice) -> Chunks:
        """These chunks."""
        return Chunks(*(map_observations(lambda x: x[:, index], field) for field in self))  # type: ignore[arg-type]


class Minibatch(NamedTuple):
    """Some chunks, and of their rows the R that count."""

    observations: Observations  # [L, C', *obs]
    memory: Tensor  # [C', d_z]
    begins: Begins
    rows: Tensor | None  # [R], flat indices t·C' + c; None for all
    actions: Tensor  # [R, *act]
    log_probs: Tensor  # [R]
    advantages: Tensor  # [R], as the surrogate takes them
    values: Tensor  # [R]
    targets: Tensor  # [R]


class Log(NamedTuple):
    """What the rows of a minibatch leave behind, [R] each."""

    log_ratio: Tensor
    entropy: Tensor
    values: Tensor
    advantages: Tensor
    old_values: Tensor
    targets: Tensor


class RecurrentPPO(ProximalAgent):
    """PPO with recurrent layers, trained by backpropagation through time; names and defaults are SB3-contrib's.

    A chunk of L steps starts from the memory that was recorded there, which is data: gradients flow through the chunk's
    own steps, and not across an episode's start within it. Every row counts once in every mean. After the first
    minibatch recorded memories are those of older parameters, which `refresh_states` mends.

    Source: Schulman et al., arXiv:1707.06347, with truncated backpropagation through time.

    Args:
        policy: "MlpLstmPolicy", "CnnLstmPolicy", "MultiInputLstmPolicy": SB3-contrib's networks; "MlpPolicy", "CnnPolicy",
            "MultiInputPolicy": those of `S2PG`, with a GRU. See `rlopt.policies.recurrent`.
        n_steps: environment steps per environment and rollout.
        batch_size: rows of a minibatch, a multiple of the chunk length; the last one of an epoch may be smaller.
        chunk_length: L, which divides `n_steps`; None is `n_steps`.
        refresh_states: before every epoch but the first, compute the chunks' first memories anew, with the parameters as
            they are, by one pass over the rollout.
        clip_range: ε of the surrogate: number, schedule or text.
        clip_range_vf: ε of the value loss, in units of the value; None does not clip.
        target_kl: an update stops before the step at which the approximate KL passes 1.5 times this; None never.
        memory: "bptt", which this agent is about.
        memory_size: units of each recurrent layer; None takes `lstm_hidden_size` of `policy_kwargs`, which has more: cell,
            n_lstm_layers, shared_lstm, enable_critic_lstm, previous_action.

    Raises:
        ValueError: an argument that cannot work; the message names it, what was expected and what came.
    """

    policy_aliases: ClassVar[dict[str, type[ActorCriticPolicy]]] = dict.fromkeys(RECURRENT_POLICIES, RecurrentPolicy)
    memories: ClassVar[dict[str, Callable[..., ActorCriticPolicy]]] = {"bptt": make_recurrent_policy}

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        learning_rate: ScheduleLike = 3e-4,
        n_steps: int = 128,
        batch_size: int = 128,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: ScheduleLike = 0.2,
        clip_range_vf: ScheduleLike | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        *,
        target_kl: float | None = None,
        chunk_length: int | None = None,
        refresh_states: bool = False,
        memory: Literal["bptt"] = "bptt",
        memory_size: int | None = None,
        **common: Any,
    ):
        self.clip_range, self.clip_range_vf = clip_range, clip_range_vf
        self.chunk_length, self.refresh_states = chunk_length, refresh_states
        check_flag("refresh_states", refresh_states)
        check_number("clip_range", as_schedule("clip_range", clip_range)(1.0), at_least=0)
        if clip_range_vf is not None:
            check_number("clip_range_vf", as_schedule("clip_range_vf", clip_range_vf)(1.0), positive=True)
        if memory != "bptt":
            raise ValueError(f"memory: expected 'bptt', which RecurrentPPO is about, got {memory!r}")
        check_chunks(n_steps, batch_size, chunk_length)
        common |= {"target_kl": target_kl, "memory": memory, "memory_size": memory_size}
        super().__init__(
            policy,
            env,
            learning_rate=learning_rate,
            n_steps=n_steps,
            batch_size=batch_size,
            n_epochs=n_epochs,
            gamma=gamma,
            gae_lambda=gae_lambda,
            normalize_advantage=normalize_advantage,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            max_grad_norm=max_grad_norm,
            **common,
        )

    def step(self, state: ProximalState, collector: Collector) -> tuple[ProximalState, Metrics]:
        """One iteration: a rollout, its advantages, `n_epochs` passes of minibatch descent over its chunks."""
        rollout = collector.steps(state.theta, self.n_steps)
        if not bool(rollout.mask.any()):
            return state, {}
        return self.update(state, self.chunks(state.theta, rollout), self._current_progress_remaining)

    def chunks(self, theta: Tensor, rollout: Rollout) -> Chunks:
        """The rollout in chunks, with advantages under v(o, z, a_prev), which at a truncation is that of (o', z', a)."""
        batch = self.advantages(theta, rollout)
        num_steps, num_envs = rollout.mask.shape
        valid, length = rollout.valid_rows(), self.chunk_length or num_steps

        def cut(x: Tensor) -> Tensor:
            """[L, C, ...] of [T, N, ...]."""
            return x.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2).contiguous()

        def placed(x: Tensor) -> Tensor:
            """[L, C] of the valid rows [S']."""
            return cut(x.new_zeros(num_steps * num_envs).index_copy(0, valid, x).view(num_steps, num_envs))

        assert isinstance(rollout.observations, dict)
        observations = dict(rollout.observations)
        memory = observations.pop(MEMORY)[::length]
        return Chunks(
            {key: cut(x) for key, x in observations.items()},
            memory.flatten(0, 1).unsqueeze(0),
            cut(episode_starts(rollout)),
            cut(rollout.mask),
            cut(self.descent.module.policy.action_space.split(rollout.actions)[0]),
            cut(rollout.log_probs),
            placed(batch.advantages),
            placed(batch.values),
            placed(batch.targets),
        )

    def update(self, state: ProximalState, chunks: Chunks, progress: float) -> tuple[ProximalState, Metrics]:
        """The next state after at most `n_epochs` passes over the chunks."""
        learning_rate, clip_range = self.lr_schedule(progress), as_schedule("clip_range", self.clip_range)(progress)
        clip_range_vf = None if self.clip_range_vf is None else as_schedule("clip_range_vf", self.clip_range_vf)(progress)
        self.begin_descent(state, learning_rate)
        logs: list[Log] = []
        norms: list[Tensor] = []
        num_epochs, going_on = 0, True
        alone = chunks.mask.numel() <= self.batch_size  # one minibatch is the same in every epoch
        kept = list(self.chunk_minibatches(chunks)) if alone else []
        while going_on and num_epochs < self.n_epochs:
            if self.refresh_states and num_epochs:
                chunks = self.refreshed(chunks)
                kept = list(self.chunk_minibatches(chunks)) if alone else []
            num_epochs += 1
            for part in kept or self.chunk_minibatches(chunks):
                outputs, gradients, log = self.slopes(part, clip_range, clip_range_vf)
                logs.append(log)
                going_on = self.target_kl is None or bool(approximate_kl(log.log_ratio) <= 1.5 * self.target_kl)
                if not going_on:
                    break
                norms.append(self.descent.step(outputs, gradients, self.max_grad_norm))
        metrics: dict[str, Any] = {
            **self.metrics(logs, norms, clip_range, clip_range_vf),
            "explained_variance": explained_variance(chunks.values[chunks.mask], chunks.targets[chunks.mask]),
            "learning_rate": learning_rate,
            "n_updates": state.num_updates + num_epochs,
            **({} if clip_range_vf is None else {"clip_range_vf": clip_range_vf}),
        }
        return self.descended(state, num_epochs), metrics

    def chunk_minibatches(self, chunks: Chunks) -> Iterator[Minibatch]:
        """All chunks once in random order, as many at a time as make `batch_size` rows; the last time there may be fewer."""
        length, num_chunks = chunks.mask.shape
        at_once = max(self.batch_size // length, 1)
        if at_once >= num_chunks:
            yield self.minibatch(chunks)
            return
        for columns in self.shuffled(num_chunks).split(at_once):
            part = chunks.columns(columns)
            if bool(part.mask.any()):
                yield self.minibatch(part)

    def minibatch(self, part: Chunks) -> Minibatch:
        """These chunks, ready for the loss."""
        rows = None if bool(part.mask.all()) else part.mask.flatten().nonzero().squeeze(1)
        flat = (x.flatten(0, 1) if rows is None else x.flatten(0, 1)[rows] for x in part[4:])
        minibatch = Minibatch(part.observations, part.memory[0], begins_within(part), rows, *flat)
        return minibatch._replace(advantages=self.normalized(minibatch.advantages))

    def slopes(self, part: Minibatch, clip_range: float, clip_range_vf: float | None) -> tuple[Any, Any, Log]:
        """What the networks put out for a minibatch, the gradients of PPO's loss with respect to that, and what to keep.

        A distribution without closed form gives the loss itself, and no gradients.
        """
        module, size = self.descent.module, len(part.advantages)
        head, values = module.sequences(part.observations, part.memory, part.begins, part.rows)
        if module.squash:
            loss, log = self.loss(module.distribution_of(head), values, part, clip_range, clip_range_vf)
            return [loss], None, log
        with torch.no_grad():
            distribution = module.distribution_of(head)
            log_ratio = distribution.log_prob(part.actions) - part.log_probs
            weights = clipped_surrogate_weights(log_ratio, part.advantages, clip_range)
            of_actor = distribution.pull_back(part.actions, weights / -size, -self.ent_coef / size)
            slope = 2.0 * (values - part.targets)
            if clip_range_vf is not None:
                slope = clipped_value_loss_slope(values, part.values, part.targets, clip_range_vf)
            entropy = distribution.entropy()
        log_std = [module.policy.log_std] if len(of_actor) == 2 else []
        log = Log(log_ratio, entropy, values.detach(), part.advantages, part.values, part.targets)
        return [head, *log_std, values], [*of_actor, slope * (self.vf_coef / size)], log

    def loss(
        self, distribution: Any, values: Tensor, part: Minibatch, clip_range: float, clip_range_vf: float | None
    ) -> tuple[Tensor, Log]:
        """PPO's loss on a minibatch, a scalar, and what to keep of it."""
        log_ratio, entropy = distribution.log_prob(part.actions) - part.log_probs, distribution.entropy()
        log = Log(log_ratio, entropy, values, part.advantages, part.values, part.targets)
        return self.losses(log, clip_range, clip_range_vf)["loss"], Log(*(x.detach() for x in log))

    def losses(self, log: Log, clip_range: float, clip_range_vf: float | None) -> dict[str, Tensor]:
        """PPO's loss and its parts, means over rows."""
        if clip_range_vf is None:
            errors = value_loss(log.values, log.targets)
        else:
            errors = clipped_value_loss(log.values, log.old_values, log.targets, clip_range_vf)
        policy_loss = -clipped_surrogate(log.log_ratio, log.advantages, clip_range).mean()
        critic_loss, entropy_loss = errors.mean(), -log.entropy.mean()
        return {
            "policy_gradient_loss": policy_loss,
            "value_loss": critic_loss,
            "entropy_loss": entropy_loss,
            "loss": policy_loss + self.ent_coef * entropy_loss + self.vf_coef * critic_loss,
        }

    @torch.no_grad()
    def refreshed(self, chunks: Chunks) -> Chunks:
        """The chunks with first memories that `descent`'s parameters make of the rollout, from its own first ones on."""
        num_envs = self.n_envs
        memories = [chunks.memory[0, :num_envs]]
        for start in range(0, chunks.memory.shape[1] - num_envs, num_envs):
            part = chunks.columns(slice(start, start + num_envs))
            after = self.descent.module.memory_after(part.observations, memories[-1], begins_within(part))
            memories.append(after * ~chunks.begins[0, start + num_envs : start + 2 * num_envs].unsqueeze(-1))
        return chunks._replace(memory=torch.cat(memories).unsqueeze(0))

    def metrics(self, logs: list[Log], norms: list[Tensor], clip_range: float, clip_range_vf: float | None) -> dict[str, Any]:
        """Averages over all rows of all minibatches of the update."""
        log = Log(*(torch.cat(column) for column in zip(*logs, strict=True)))
        metrics = {
            **self.losses(log, clip_range, clip_range_vf),
            "approx_kl": approximate_kl(log.log_ratio),
            "clip_fraction": clip_fraction(log.log_ratio, clip_range),
            "clip_range": clip_range,
            **({"grad_norm": torch.stack(norms).mean()} if norms else {}),
        }
        log_std = getattr(self.descent.module.policy, "log_std", None)
        return metrics if log_std is None else {**metrics, "std": log_std.detach().exp().mean()}


def episode_starts(rollout: Rollout) -> Tensor:
    """[T, N] bool, rows whose observation is an episode's first; the first row's memory is recorded, and says it itself.

    An episode begins after a row that ended one, or, where environments reset on the next step, after the reset row.
    """
    ended = rollout.terminated | rollout.truncated
    starts = torch.zeros_like(rollout.mask)
    starts[1:] = ~rollout.mask[:-1] | (ended[:-1] & rollout.mask[1:])
    return starts


def begins_within(part: Chunks) -> Begins:
    """Where memory begins anew after the first steps, whose memory is given."""
    inner = part.begins.clone()
    inner[0] = False
    return Begins(inner)


def check_chunks(n_steps: int, batch_size: int, chunk_length: int | None) -> None:
    """Raises ValueError unless chunks fill a rollout, and minibatches are whole chunks."""
    check_number("n_steps", n_steps, positive=True, whole=True)
    check_number("batch_size", batch_size, positive=True, whole=True)
    if chunk_length is not None:
        check_number("chunk_length", chunk_length, positive=True, whole=True)
        if n_steps % chunk_length:
            raise ValueError(f"chunk_length: expected a divisor of n_steps = {n_steps}, got {chunk_length}")
    length = chunk_length or n_steps
    if batch_size % length:
        given = (
            f"chunk_length = {length}"
            if chunk_length is not None
            else f"n_steps = {length}, which chunk_length=None stands for"
        )
        fitting = math.gcd(batch_size, n_steps)
        hint = f"; chunk_length={fitting} would fit" if fitting > 1 else ""
        raise ValueError(f"batch_size: expected whole chunks, a multiple of {given}, got {batch_size}{hint}")
