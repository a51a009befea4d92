"""REBEL: an update regresses log-probabilities on advantages, or on the returns of episodes that share their start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.proximal import ProximalAgent, ProximalState
from rlopt.arguments import check_choice, check_number
from rlopt.collector import Collector
from rlopt.envs.base import Environments
from rlopt.envs.paired import Paired
from rlopt.estimators import (
    approx_kl,
    eta_from_kl,
    eta_from_std,
    explained,
    explained_variance,
    preference_rewards,
    rebel_advantage_loss,
    rebel_advantage_slope,
    rebel_loss,
    sign_alignment,
    value_loss,
)
from rlopt.logging import REBEL_LAYOUT, Metrics
from rlopt.presets import with_preset
from rlopt.rollout import Observations, Rollout, in_pieces, map_observations
from rlopt.schedules import ScheduleLike, as_schedule

Mode = Literal["advantage", "trajectory"]
EtaMode = Literal["fixed", "std", "kl_target"]
Preference = Callable[[Rollout, Rollout], float]


class AdvantageBatch(NamedTuple):
    """The valid rows of a rollout, with what the policy that sampled them would have done; S' rows."""

    observations: Observations  # [S', *obs]
    actions: Tensor  # [S', *act]
    log_probs: Tensor  # [S'], of the policy that sampled
    old: Tensor  # [S', H], its logits or means; [S', 0] where they are computed again
    advantages: Tensor  # [S'], as they are regressed on
    values: Tensor  # [S'], of the critic that the rollout began with
    targets: Tensor  # [S'], advantages + values


class EpisodeBatch(NamedTuple):
    """Whole episodes in groups that share their start, one a column."""

    rollout: Rollout  # [T, N]
    returns: Tensor  # [N], undiscounted, or how episodes do against the others of their group
    groups: Tensor  # [N]


class Log(NamedTuple):
    """What a step of descent leaves behind: [B] and scalars."""

    log_ratio: Tensor
    loss: Tensor  # of the regression, in units of η²
    entropy: Tensor
    value_loss: Tensor
    grad_norm: Tensor


class REBEL(ProximalAgent):
    """Policy optimisation as regression: no clipping, no importance ratios; π_{t+1} ∝ π_t e^{ηA} where it is solved.

    "advantage" is a rollout of fixed length with a critic, as PPO's: per state and action

        ( ln π_θ(a|s) − ln π_t(a|s) + KL(π_t(·|s) ‖ π_θ(·|s)) − η Â )²

    "trajectory" has no critic: groups of whole episodes that begin in the same state, on whose differences of return the
    differences of their summed log-ratios are regressed. Both losses are divided by what makes their first gradient the
    policy gradient (2η and 4η).

    Source: Gao et al., arXiv:2404.16767; the per-state form is derived from it, the KL standing for the second sample.

    Args:
        eta: η > 0, how far a solved step goes; number, schedule or text such as "linear:0.5".
        eta_mode: "fixed" is η itself; "std" divides it by the standard deviation of advantages or returns; "kl_target"
            takes `eta` as the KL ε that a solved step is to have, η = √(2ε/Var).
        mode: see above.
        n_steps: of "advantage", environment steps per environment and rollout.
        normalize_advantage: to mean 0 and standard deviation 1 over the rollout.
        num_groups, group_size: of "trajectory", P groups of G episodes an iteration.
        horizon: of "trajectory", steps after which an episode is cut; None leaves that to the environment.
        preference: of "trajectory", in place of rewards: (episode, other) -> 2 P(episode is better) − 1 in [−1, 1], for two
            rollouts of one column.
        target_kl: an update stops after the epoch in which ½ E[(ln π_θ/π_t)²] passes this; None never.
    """

    layout = REBEL_LAYOUT

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        eta: ScheduleLike | None = None,
        eta_mode: EtaMode | None = None,
        mode: Mode = "advantage",
        num_groups: int = 16,
        group_size: int = 4,
        horizon: int | None = None,
        preference: Preference | None = None,
        target_kl: float | None = 0.03,
        **common: Any,
    ):
        check_choice("mode", mode, get_args(Mode))
        by_episodes = mode == "trajectory"
        # A trajectory's log-ratio is a sum over its steps, and returns have the environment's scale.
        self.eta: ScheduleLike = (1.0 if by_episodes else 0.2) if eta is None else eta
        self.eta_mode: EtaMode = ("std" if by_episodes else "fixed") if eta_mode is None else eta_mode
        self.mode, self.num_groups, self.group_size, self.horizon = mode, num_groups, group_size, horizon
        self.preference = preference
        check_choice("eta_mode", self.eta_mode, get_args(EtaMode))
        check_number("eta", as_schedule("eta", self.eta)(1.0), positive=True)
        check_number("num_groups", num_groups, positive=True, whole=True)
        check_number("group_size", group_size, at_least=2, whole=True)
        if horizon is not None:
            check_number("horizon", horizon, positive=True, whole=True)
        if preference is not None and not by_episodes:
            raise ValueError("preference: episodes are compared with mode='trajectory'; 'advantage' has rewards")
        if by_episodes and common.get("normalize_rewards"):
            raise ValueError("normalize_rewards: returns of episodes are compared as they are; use eta_mode='std'")
        super().__init__(policy, env, target_kl=target_kl, **common)

    def step(self, state: ProximalState, collector: Collector) -> tuple[ProximalState, Metrics]:
        """One iteration: data of π_t, a regression on it."""
        if self.mode == "trajectory":
            episodes = collector.episodes(state.theta, self.num_groups * self.group_size, self.horizon)
            return self.regress_episodes(state, self.episode_batch(episodes), self._current_progress_remaining)
        rollout = collector.steps(state.theta, self.n_steps)
        batch = self.advantage_batch(state.theta, rollout)
        return self.regress_advantages(state, batch, self._current_progress_remaining) if len(batch.advantages) else (state, {})

    # ------------------------------------------------------------------ advantages

    def advantage_batch(self, theta: Tensor, rollout: Rollout) -> AdvantageBatch:
        """The rollout's valid rows, with advantages under the critic of θ and the distributions of π_θ."""
        batch, module = self.advantages(theta, rollout), self.functional.bind(theta)
        known = module.closed_form
        old = in_pieces(module.action_parameters, batch.observations) if known else batch.values.new_zeros(len(batch.values), 0)
        return AdvantageBatch(
            observations=batch.observations,
            actions=batch.actions,
            log_probs=batch.log_probs,
            old=old,
            advantages=self.normalized(batch.advantages),
            values=batch.values,
            targets=batch.targets,
        )

    def regress_advantages(self, state: ProximalState, batch: AdvantageBatch, progress: float) -> tuple[ProximalState, Metrics]:
        """The next state after at most `n_epochs` passes over the batch."""
        eta, learning_rate = self.step_length(batch.advantages, None, progress), self.lr_schedule(progress)
        sampler = self.functional.bind(state.theta)
        self.begin_descent(state, learning_rate)
        descend = self.descend if sampler.closed_form else self.descend_by_autograd
        logs: list[Log] = []
        num_epochs, size = 0, len(batch.advantages)
        while num_epochs < self.n_epochs:
            num_epochs += 1
            epoch = [descend(part, sampler, eta, size) for part in self.minibatches(batch, self.shuffled(size))]
            logs += epoch
            if self.target_kl is not None and approx_kl(torch.cat([log.log_ratio for log in epoch])) > self.target_kl:
                break
        first = (eta * batch.advantages).square().mean()
        return self.descended(state, num_epochs), {
            **self.metrics(logs, epoch, first),
            "value_loss": torch.stack([log.value_loss for log in logs]).mean(),
            "explained_variance": explained_variance(batch.values, batch.targets),
            "eta": eta,
            "learning_rate": learning_rate,
            "n_updates": state.num_updates + num_epochs,
        }

    def descend(self, part: AdvantageBatch, sampler: Any, eta: Tensor, num_rows: int) -> Log:
        """One step of descent on a minibatch, the loss differentiated at the network's outputs in closed form."""
        module, size = self.descent.module, len(part.advantages)
        head, values = module.heads(part.observations)
        with torch.no_grad():
            distribution, old = module.distribution_of(head), sampler.distribution_of(part.old)
            log_ratio, kl = distribution.log_prob(part.actions) - part.log_probs, distribution.divergence_from(old)
            slope = rebel_advantage_slope(log_ratio, kl, part.advantages, eta) / (2.0 * eta * size)
            of_log_prob = distribution.pull_back(part.actions, slope, -self.ent_coef / size)
            of_kl = distribution.pull_back_divergence(old, slope)
            of_actor = [first + second for first, second in zip(of_log_prob, of_kl, strict=True)]
            of_values = (values - part.targets) * (2.0 * self.vf_coef / size)
            loss = rebel_advantage_loss(log_ratio, kl, part.advantages, eta).mean()
            entropy, errors = distribution.entropy().mean(), value_loss(values, part.targets).mean()
        log_std = [module.policy.log_std] if len(of_actor) == 2 else []
        norm = self.descent.step([head, *log_std, values], [*of_actor, of_values], self.max_grad_norm)
        return Log(log_ratio, loss, entropy, errors, norm)

    def descend_by_autograd(self, part: AdvantageBatch, sampler: Any, eta: Tensor, num_rows: int) -> Log:
        """One step of descent on a minibatch."""
        distribution, values = self.descent.module(part.observations)
        with torch.no_grad():
            old = sampler.actor(part.observations)
        log_ratio = distribution.log_prob(part.actions) - part.log_probs
        loss = rebel_advantage_loss(log_ratio, distribution.divergence_from(old), part.advantages, eta).mean()
        entropy, errors = distribution.entropy().mean(), value_loss(values, part.targets).mean()
        total = loss / (2.0 * eta) - self.ent_coef * entropy + self.vf_coef * errors
        norm = self.descent.step([total], None, self.max_grad_norm)
        return Log(log_ratio.detach(), loss.detach(), entropy.detach(), errors.detach(), norm)

    # ------------------------------------------------------------------ episodes

    def episode_batch(self, rollout: Rollout) -> EpisodeBatch:
        """The episodes in groups of neighbours, with what they are judged by."""
        groups = torch.arange(rollout.mask.shape[1], device=rollout.mask.device) // self.group_size
        if self.preference is None:
            returns = rollout.scalar_rewards(type(self).__name__).sum(0)
        else:
            returns = preference_rewards(self.comparisons(rollout)).flatten()
        return EpisodeBatch(rollout, returns, groups)

    def comparisons(self, rollout: Rollout) -> Tensor:
        """ℓ(τ_i, τ_j) of all pairs of a group, [P, G, G]: every pair is compared once."""
        assert self.preference is not None
        results = torch.zeros(self.num_groups, self.group_size, self.group_size)
        for group in range(self.num_groups):
            start = group * self.group_size
            episodes = [rollout.columns(slice(start + i, start + i + 1)) for i in range(self.group_size)]
            for i in range(self.group_size):
                for j in range(i):
                    better = float(self.preference(episodes[i], episodes[j]))
                    check_number("preference", better, at_least=-1, at_most=1)
                    results[group, i, j], results[group, j, i] = better, -better
        return results.to(rollout.rewards.device)

    def regress_episodes(self, state: ProximalState, batch: EpisodeBatch, progress: float) -> tuple[ProximalState, Metrics]:
        """The next state after at most `n_epochs` steps on all groups."""
        eta, learning_rate = self.step_length(batch.returns, batch.groups, progress), self.lr_schedule(progress)
        self.begin_descent(state, learning_rate)
        logs: list[Log] = []
        while len(logs) < self.n_epochs:
            logs.append(self.descend_episodes(batch, eta))
            if self.target_kl is not None and approx_kl(logs[-1].log_ratio[batch.rollout.mask]) > self.target_kl:
                break
        last = logs[-1].log_ratio.sum(0)
        return self.descended(state, len(logs)), {
            **self.metrics(logs, logs[-1:], logs[0].loss),
            "sign_alignment": sign_alignment(last, batch.returns, batch.groups),
            "approx_kl_episode": approx_kl(last),
            "eta": eta,
            "learning_rate": learning_rate,
            "n_updates": state.num_updates + len(logs),
        }

    def descend_episodes(self, batch: EpisodeBatch, eta: Tensor) -> Log:
        """One step of descent on all groups; log-probabilities are summed over an episode's steps, never averaged."""
        rollout = batch.rollout
        flat = map_observations(lambda x: x.flatten(0, 1), rollout.observations)
        distribution = self.descent.module.actor(flat)
        log_probs = distribution.log_prob(rollout.actions.flatten(0, 1)).view_as(rollout.log_probs)
        log_ratio = torch.where(rollout.mask, log_probs - rollout.log_probs, 0.0)
        loss = rebel_loss(log_ratio.sum(0), torch.zeros_like(batch.returns), batch.returns, batch.groups, eta)
        entropy = distribution.entropy().view_as(log_probs)[rollout.mask].mean()
        norm = self.descent.step([loss / (4.0 * eta) - self.ent_coef * entropy], None, self.max_grad_norm)
        return Log(log_ratio.detach(), loss.detach(), entropy.detach(), loss.new_zeros(()), norm)

    # ------------------------------------------------------------------ both

    def step_length(self, rewards: Tensor, groups: Tensor | None, progress: float) -> Tensor:
        """η, a scalar, for these advantages or returns."""
        eta = as_schedule("eta", self.eta)(progress)
        check_number("eta", eta, positive=True)
        if self.eta_mode == "fixed":
            return rewards.new_tensor(eta)
        return eta_from_std(rewards, eta, groups) if self.eta_mode == "std" else eta_from_kl(rewards, eta, groups)

    def metrics(self, logs: list[Log], last: list[Log], first_loss: Tensor) -> dict[str, Tensor]:
        """Means over the update, and how much of the regression the last pass has solved."""
        log_ratio = torch.cat([log.log_ratio.flatten() for log in last])
        metrics = {name: torch.stack([getattr(log, name) for log in logs]).mean() for name in ("entropy", "grad_norm")}
        last_loss = torch.stack([log.loss for log in last]).mean()
        log_std = getattr(self.descent.module.policy, "log_std", None)
        return {
            "regression_loss": last_loss,
            "explained": explained(last_loss, first_loss),
            "entropy_loss": -metrics["entropy"],
            "grad_norm": metrics["grad_norm"],
            "approx_kl": approx_kl(log_ratio),
            **({} if log_std is None else {"std": log_std.detach().exp().mean()}),
        }

    def _dressed(self, environments: Environments) -> Environments:
        return Paired(environments, self.group_size) if self.mode == "trajectory" else environments
