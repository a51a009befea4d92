"""S2PG: PPO of a policy that writes its memory like an action, with a ratio, a clip and a monitor for each of the two."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.proximal import CompiledSteps, ProximalAgent, ProximalState
from rlopt.arguments import check_choice, check_number
from rlopt.collector import Collector
from rlopt.estimators import approximate_kl, clip_fraction, clipped_surrogate, explained_variance, value_loss
from rlopt.logging import STATEFUL_LAYOUT, Metrics
from rlopt.policies.stateful import JointDistribution, MemoryName, factor_log_probs
from rlopt.presets import with_preset
from rlopt.rollout import Observations, Rollout
from rlopt.schedules import ScheduleLike, as_schedule

Ratio = Literal["factor", "joint", "action"]


class StatefulBatch(NamedTuple):
    """The valid rows of a rollout of (o, z, a_prev) and (a, z'); all of it data, z too. S' rows."""

    observations: Observations  # [S', *obs], (o, z, a_prev)
    actions: Tensor  # [S', A + d_z], (a, z')
    log_probs: Tensor  # [S', 2], log π_a and log π_z of the policy that sampled
    advantages: Tensor  # [S'], as the surrogate takes them
    values: Tensor  # [S'], of the critic that the rollout began with
    targets: Tensor  # [S'], advantages + values
    lasting: Tensor  # [S'] bool, False where s_{t+1} is absorbing: there z' has no effect, and its score is noise


class Coefficients(NamedTuple):
    """What the loss is made with: numbers, or scalar tensors where it is compiled."""

    clip_range: float | Tensor  # ε_a
    memory_clip_range: float | Tensor  # ε_z
    ent_coef: float | Tensor
    vf_coef: float | Tensor


class Log(NamedTuple):
    """What a minibatch leaves behind, [B] or scalars."""

    log_ratios: Tensor  # [B, 2]
    lasting: Tensor  # [B] bool
    surrogate: Tensor
    entropy: Tensor
    value_loss: Tensor
    grad_norm: Tensor


class S2PG(ProximalAgent):
    """Memory as an action, learned by the score of z' in place of backpropagation through time.

    Rows of a rollout are shuffled like those of a memoryless policy: nothing is a sequence, nothing is padded, and z, being
    data, never goes stale.

    Source: Al-Hafez et al., arXiv:2311.04082, with Schulman et al., arXiv:1707.06347.

    Args:
        clip_range: ε_a, of the action's ratio: number, schedule or text.
        memory_clip_range: ε_z, of the memory's ratio, which "factor" alone clips by itself; None takes that of the action.
        ratio: "factor" clips the ratios of a and z' each by itself; "joint" clips their product, as published, where many
            memory dimensions can use up the whole range; "action" leaves the score of z' out, so that memory is only
            recorded: an ablation.
        target_kl: an update stops after the epoch in which the KL of a or that of z' passes this; None never.
        memory: "s2pg", which this agent is about.
        memory_size: units of the recurrent kernel; `policy_kwargs` has more: cell, retention, memory_std, previous_action.
    """

    layout = STATEFUL_LAYOUT

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        *,
        clip_range: ScheduleLike = 0.2,
        memory_clip_range: ScheduleLike | None = None,
        ratio: Ratio = "factor",
        target_kl: float | None = 0.02,
        memory: MemoryName = "s2pg",
        memory_size: int = 16,
        **common: Any,
    ):
        self.clip_range, self.memory_clip_range, self.ratio = clip_range, memory_clip_range, ratio
        check_number("clip_range", as_schedule("clip_range", clip_range)(1.0), at_least=0)
        check_choice("ratio", ratio, get_args(Ratio))
        if memory_clip_range is not None:
            check_number("memory_clip_range", as_schedule("memory_clip_range", memory_clip_range)(1.0), at_least=0)
        if memory != "s2pg":
            raise ValueError(f"memory: expected 's2pg', which S2PG is about, got {memory!r}")
        common |= {"target_kl": target_kl, "memory": memory, "memory_size": memory_size}
        super().__init__(policy, env, **common)

    def step(self, state: ProximalState, collector: Collector) -> tuple[ProximalState, Metrics]:
        """One iteration: a rollout, its advantages, `n_epochs` passes of minibatch descent."""
        rollout = collector.steps(state.theta, self.n_steps)
        batch = self.stateful_advantages(state.theta, rollout)
        return self.update(state, batch, self._current_progress_remaining) if len(batch.advantages) else (state, {})

    def stateful_advantages(self, theta: Tensor, rollout: Rollout) -> StatefulBatch:
        """Advantages under v(o, z, a_prev), which at a truncation is that of (o', z', a), and both factors' log π."""
        batch = self.advantages(theta, rollout)
        log_probs = factor_log_probs(self.functional.bind(theta).actor, batch.observations, batch.actions)
        return StatefulBatch(
            observations=batch.observations,
            actions=batch.actions,
            log_probs=log_probs,
            advantages=self.normalized(batch.advantages),  # here, so that the loss does not depend on the minibatches
            values=batch.values,
            targets=batch.targets,
            lasting=~batch.terminated,
        )

    def update(self, state: ProximalState, batch: StatefulBatch, progress: float) -> tuple[ProximalState, Metrics]:
        """The next state after at most `n_epochs` passes over the batch."""
        learning_rate, clip_ranges = self.lr_schedule(progress), self.clip_ranges(progress)
        self.begin_descent(state, learning_rate)
        steps = self.compiled_steps(batch, self.loss, self.coefficients(clip_ranges), self.ratio)
        logs: list[Log] = []
        num_epochs = 0
        for _ in range(self.n_epochs):
            num_epochs += 1
            epoch = self.pass_over(batch, self.shuffled(len(batch.advantages)), clip_ranges, steps)
            logs += epoch
            if self.target_kl is not None and self.largest_kl(epoch) > self.target_kl:
                break
        metrics: dict[str, Any] = {
            **self.metrics(logs, clip_ranges),
            "explained_variance": explained_variance(batch.values, batch.targets),
            "learning_rate": learning_rate,
            "n_updates": state.num_updates + num_epochs,
        }
        return self.descended(state, num_epochs), metrics

    def pass_over(
        self, batch: StatefulBatch, order: Tensor, clip_ranges: tuple[float, float], steps: CompiledSteps
    ) -> list[Log]:
        """Steps of descent on the batch's minibatches, in this order."""
        compiled, rest = steps(order)
        logs = [Log._make((*step.kept, step.grad_norm)) for step in compiled]
        return logs + [self.descend(part, clip_ranges) for part in self.minibatches(batch, rest)]

    def descend(self, part: StatefulBatch, clip_ranges: tuple[float, float]) -> Log:
        """One step of descent on a minibatch."""
        loss, kept = self.loss(self.descent.module, part, self.coefficients(clip_ranges))
        return Log._make((*(x.detach() for x in kept), self.descent.step([loss], None, self.max_grad_norm)))

    def _without_compiled_form(self) -> None:
        return None

    def coefficients(self, clip_ranges: tuple[float, float]) -> Coefficients:
        """What the loss is made with."""
        return Coefficients(*clip_ranges, self.ent_coef, self.vf_coef)

    def loss(self, module: Any, part: StatefulBatch, coefficients: Coefficients) -> tuple[Tensor, Any]:
        """The loss of a minibatch of B rows, and `Log` but for the gradient's norm."""
        distribution, values = module(part.observations)
        log_ratios = self.log_ratios(distribution, part)
        surrogate = self.surrogate(log_ratios, part.advantages, (coefficients.clip_range, coefficients.memory_clip_range))
        entropy = distribution.entropy().mean()
        critic_loss = value_loss(values, part.targets).mean()
        loss = -surrogate - coefficients.ent_coef * entropy + coefficients.vf_coef * critic_loss
        return loss, (log_ratios, part.lasting, surrogate, entropy, critic_loss)

    def log_ratios(self, distribution: JointDistribution, part: StatefulBatch) -> Tensor:
        """log π_θ − log π_old of a and of z', [B, 2]; 0 for a z' without effect."""
        log_ratios = torch.stack(distribution.log_probs(part.actions), -1) - part.log_probs
        return torch.stack([log_ratios[:, 0], torch.where(part.lasting, log_ratios[:, 1], 0.0)], -1)

    def surrogate(self, log_ratios: Tensor, advantages: Tensor, clip_ranges: tuple[float | Tensor, float | Tensor]) -> Tensor:
        """What is maximised of the ratios [B, 2], a scalar."""
        of_action, of_memory = log_ratios.unbind(-1)
        if self.ratio == "joint":
            return clipped_surrogate(of_action + of_memory, advantages, clip_ranges[0]).mean()
        surrogate = clipped_surrogate(of_action, advantages, clip_ranges[0])
        if self.ratio == "factor":
            surrogate = surrogate + clipped_surrogate(of_memory, advantages, clip_ranges[1])
        return surrogate.mean()

    def clip_ranges(self, progress: float) -> tuple[float, float]:
        """ε_a and ε_z."""
        of_memory = self.clip_range if self.memory_clip_range is None else self.memory_clip_range
        return as_schedule("clip_range", self.clip_range)(progress), as_schedule("memory_clip_range", of_memory)(progress)

    def largest_kl(self, logs: list[Log]) -> float:
        """The larger of the approximate KLs of a and z', of a alone if z' is not scored."""
        of_action, of_memory = moved(logs)
        kls = [approximate_kl(of_action)] if self.ratio == "action" else [approximate_kl(of_action), approximate_kl(of_memory)]
        return float(torch.stack(kls).max())

    def metrics(self, logs: list[Log], clip_ranges: tuple[float, float]) -> dict[str, Tensor | float]:
        """Averages over all rows of all minibatches of the update, of action and memory each."""
        surrogate, entropy, critic_loss, grad_norm = (
            torch.stack([getattr(log, name) for log in logs]).mean()
            for name in ("surrogate", "entropy", "value_loss", "grad_norm")
        )
        of_action, of_memory = moved(logs)
        clipped = torch.cat([log.log_ratios for log in logs]).sum(-1) if self.ratio == "joint" else of_action
        policy: Any = self.descent.module.policy
        metrics = {
            "policy_gradient_loss": -surrogate,
            "value_loss": critic_loss,
            "entropy_loss": -entropy,
            "loss": -surrogate - self.ent_coef * entropy + self.vf_coef * critic_loss,
            "grad_norm": grad_norm,
            "approx_kl": approximate_kl(of_action),
            "approx_kl_memory": approximate_kl(of_memory),
            "clip_fraction": clip_fraction(clipped, clip_ranges[0]),
            "clip_range": clip_ranges[0],
            "memory_std": policy.memory_log_std.detach().exp().mean(),
        }
        if self.ratio == "factor":
            metrics["clip_fraction_memory"] = clip_fraction(of_memory, clip_ranges[1])
        log_std = getattr(policy, "log_std", None)
        return metrics if log_std is None else {**metrics, "std": log_std.detach().exp().mean()}


def moved(logs: list[Log]) -> tuple[Tensor, Tensor]:
    """Log-ratios of all actions, and of the memories that had an effect; one 0 if none had."""
    log_ratios, lasting = torch.cat([log.log_ratios for log in logs]), torch.cat([log.lasting for log in logs])
    of_memory = log_ratios[lasting, 1]
    return log_ratios[:, 0], of_memory if len(of_memory) else log_ratios.new_zeros(1)
