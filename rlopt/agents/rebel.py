"""REBEL: an update regresses log-probabilities on advantages, or on the returns of samples that share their start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.proximal import CompiledSteps, ProximalAgent, ProximalState
from rlopt.arguments import check_choice, check_number
from rlopt.branching import Branches, branched_episodes, depth_probabilities
from rlopt.collector import Collector
from rlopt.envs.base import Environments
from rlopt.envs.paired import in_groups
from rlopt.envs.vector import can_be_copied
from rlopt.estimators import (
    approx_kl,
    eta_from_kl,
    eta_from_std,
    explained,
    explained_variance,
    preference_rewards,
    rebel_advantage_loss,
    rebel_loss,
    sign_alignment,
    value_loss,
)
from rlopt.logging import REBEL_LAYOUT, Metrics
from rlopt.policies.contrasts import Reference, contrast, pulled_back, reference
from rlopt.presets import with_preset
from rlopt.rollout import Observations, Rollout, in_pieces, map_observations
from rlopt.schedules import ScheduleLike, as_schedule

Mode = Literal["advantage", "trajectory", "branched"]
EtaMode = Literal["fixed", "std", "kl_target"]
Preference = Callable[[Rollout, Rollout], float]


class AdvantageBatch(NamedTuple):
    """The valid rows of a rollout, with what the policy that sampled them would have done; S' rows."""

    observations: Observations  # [S', *obs]
    actions: Tensor  # [S', *act]
    log_probs: Tensor  # [S'], of the policy that sampled
    head: Tensor  # [S', H], its logits or means; [S', 0] where the loss is left to autograd
    scores: Tensor  # [S', H], see `rlopt.policies.contrasts`
    advantages: Tensor  # [S'], as they are regressed on
    values: Tensor  # [S'], of the critic that the rollout began with
    targets: Tensor  # [S'], advantages + values


class GroupBatch(NamedTuple):
    """Samples in groups that share their start: whole episodes, or one action and what came of it; N samples, R rows."""

    observations: Observations  # [R, *obs]
    actions: Tensor  # [R, *act]
    log_probs: Tensor  # [R], of the policy that sampled
    samples: Tensor  # [R], which sample a row is of
    returns: Tensor  # [N], or how samples do against the others of their group
    groups: Tensor  # [N]


class Coefficients(NamedTuple):
    """What the compiled loss of advantages is made with: numbers, or tensors."""

    eta: Tensor
    old_log_std: Tensor | None  # [A], of Gaussians π_t
    ent_coef: float | Tensor
    vf_coef: float | Tensor


class Log(NamedTuple):
    """What a step of descent on B rows leaves behind, turned into metrics at the end."""

    log_ratio: Tensor  # [B]
    loss: Tensor  # of the regression, in units of η²; [B], or scalar of groups
    entropy: Tensor  # [B]
    value_loss: Tensor  # [B], or [0] without a critic
    grad_norm: Tensor  # scalar


class REBEL(ProximalAgent):
    """Policy optimisation as regression: no clipping, no importance ratios; π_{t+1} ∝ π_t e^{ηA} where it is solved.

    "advantage" is a rollout of fixed length with a critic, as PPO's: per state and action

        ( ln π_θ(a|s) − ln π_t(a|s) + KL(π_t(·|s) ‖ π_θ(·|s)) − η Â )²

    "trajectory" has no critic: groups of whole episodes that begin in the same state, on whose differences of undiscounted
    return the differences of their summed log-ratios are regressed.

    "branched" has no critic either: groups of episodes that are one up to a step h drawn beforehand. From s_h on every member
    acts for itself, and on the differences of what follows, R_{h:} = Σ_{t≥h} γ^{t−h} r_t, those of the log-ratios of a_h alone
    are regressed. Unbiased whatever the dynamics, and costly: a group of episodes for a few actions.

    The losses are divided by what makes their first gradient the policy gradient (2η, and 4η of groups). Groups need
    environments that begin single episodes from given seeds and are determined by them; see `rlopt.envs.paired.Paired`. States
    are reached again by seed and actions: nothing is copied.

    Source: Gao et al., arXiv:2404.16767; the per-state form is derived from it, the KL standing for the second sample.
    "branched" is one step of REFUEL, arXiv:2410.04612.

    Args:
        eta: η > 0, how far a solved step goes; number, schedule or text such as "linear:0.5". None is 0.2 for advantages, 1 for
            groups.
        eta_mode: "fixed" is η itself; "std" divides it by the standard deviation of advantages, or of returns within groups;
            "kl_target" takes `eta` as the KL ε that a solved step is to have, η = √(2ε/Var). None is "fixed" for advantages,
            "std" for groups.
        mode: see above.
        n_steps: of "advantage", environment steps per environment and rollout.
        normalize_advantage: to mean 0 and standard deviation 1 over the rollout.
        num_groups, group_size: of the other two, P groups of G episodes an iteration.
        horizon: of the other two, steps after which an episode is cut; None leaves that to the environment.
        depths: of "branched", D for h uniform on 0 … D − 1, or the probabilities of h = 0, 1, …; None for P(h) ∝ γ^h, with
            which the first gradient is that of the discounted return. Groups whose episode is over before h are dropped.
        preference: of the other two, in place of rewards: (episode, other) -> 2 P(episode is better) − 1 in [−1, 1], for two
            rollouts of one column.
        n_envs: where it is not given, P·G for groups.
        target_kl: an update stops after the epoch in which ½ E[(ln π_θ/π_t)²] passes this; None never.

    Raises:
        ValueError: an argument that cannot work; of groups, environments that cannot be seeded one by one, or that a seed does
            not determine.
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
        depths: int | Sequence[float] | None = None,
        preference: Preference | None = None,
        target_kl: float | None = 0.03,
        **common: Any,
    ):
        check_choice("mode", mode, get_args(Mode))
        by_groups = mode != "advantage"
        # A trajectory's log-ratio is a sum over its steps, and returns have the environment's scale.
        self.eta: ScheduleLike = (1.0 if by_groups else 0.2) if eta is None else eta
        self.eta_mode: EtaMode = ("std" if by_groups else "fixed") if eta_mode is None else eta_mode
        self.mode, self.num_groups, self.group_size, self.horizon = mode, num_groups, group_size, horizon
        self.depths, self.preference = depths, preference
        check_choice("eta_mode", self.eta_mode, get_args(EtaMode))
        check_number("eta", as_schedule("eta", self.eta)(1.0), positive=True)
        check_number("num_groups", num_groups, positive=True, whole=True)
        check_number("group_size", group_size, at_least=2, whole=True)
        if horizon is not None:
            check_number("horizon", horizon, positive=True, whole=True)
        if depths is not None and mode != "branched":
            raise ValueError(f"depths: episodes part at a step with mode='branched' only, got mode={mode!r}")
        if preference is not None and not by_groups:
            raise ValueError("preference: episodes are compared with mode='trajectory' or 'branched'; 'advantage' has rewards")
        if by_groups and common.get("normalize_rewards"):
            raise ValueError("normalize_rewards: returns of episodes are compared as they are; use eta_mode='std'")
        if by_groups and (env is None or can_be_copied(env)):
            common.setdefault("n_envs", num_groups * group_size)
        super().__init__(policy, env, target_kl=target_kl, **common)
        if mode == "branched":
            depth_probabilities(depths, self.gamma, horizon)
        if mode == "advantage" and self.collector is not None and self.n_steps * self.n_envs < self._least_rows:
            raise ValueError(
                f"n_steps: n_steps · n_envs must be at least {self._least_rows} with eta_mode={self.eta_mode!r}, got "
                f"{self.n_steps} · {self.n_envs}"
            )

    def step(self, state: ProximalState, collector: Collector) -> tuple[ProximalState, Metrics]:
        """One iteration: data of π_t, a regression on it; the same state if there is nothing to regress on."""
        progress = self._current_progress_remaining
        if self.mode == "advantage":
            rollout = collector.steps(state.theta, self.n_steps)
            batch = self.advantage_batch(state.theta, rollout)
            enough = len(batch.advantages) >= self._least_rows  # a rollout may be all reset rows, or all but one
            return self.regress_advantages(state, batch, progress) if enough else (state, {})
        if self.mode == "trajectory":
            episodes = collector.episodes(state.theta, self.num_groups * self.group_size, self.horizon)
            return self.regress_groups(state, self.episode_batch(episodes), progress)
        branches = branched_episodes(collector, state.theta, self.num_groups, self.depths, self.horizon, self.gamma)
        kept: Metrics = {"groups_kept": branches.kept.float().mean()}
        if not len(branches.groups):
            return state, kept
        state, metrics = self.regress_groups(state, self.branch_batch(branches), progress)
        return state, {**metrics, **kept}

    # ------------------------------------------------------------------ advantages

    def advantage_batch(self, theta: Tensor, rollout: Rollout) -> AdvantageBatch:
        """The rollout's valid rows, with advantages under the critic of θ and the distributions of π_θ."""
        batch, module = self.advantages(theta, rollout), self.functional.bind(theta)
        past = Reference(*[batch.values.new_zeros(len(batch.values), 0)] * 2)
        if module.closed_form:
            head = in_pieces(module.action_parameters, batch.observations)
            if bool(head.isfinite().all()):  # −inf is a choice that was masked
                past = reference(module.distribution_of(head), head, batch.actions)
        return AdvantageBatch(
            observations=batch.observations,
            actions=batch.actions,
            log_probs=batch.log_probs,
            head=past.head,
            scores=past.scores,
            advantages=self.normalized(batch.advantages),
            values=batch.values,
            targets=batch.targets,
        )

    def regress_advantages(self, state: ProximalState, batch: AdvantageBatch, progress: float) -> tuple[ProximalState, Metrics]:
        """The next state after at most `n_epochs` passes over the batch."""
        eta, learning_rate = self.step_length(batch.advantages, None, progress), self.lr_schedule(progress)
        sampler = self.functional.bind(state.theta)
        self.begin_descent(state, learning_rate)
        old_log_std = sampler.policy.log_std.detach() if hasattr(sampler.policy, "log_std") else None
        steps = self.compiled_steps(batch, self.loss, Coefficients(eta, old_log_std, self.ent_coef, self.vf_coef))
        logs: list[Log] = []
        num_epochs, size = 0, len(batch.advantages)
        while num_epochs < self.n_epochs:
            num_epochs += 1
            epoch = self.pass_over(batch, self.shuffled(size), sampler, eta, steps)
            logs += epoch
            if self.target_kl is not None and approx_kl(torch.cat([log.log_ratio for log in epoch])) > self.target_kl:
                break
        first, following = (eta * batch.advantages).square().mean(), self.descended(state, num_epochs)
        return following, {
            **self.metrics(logs, epoch, first),
            **self.memory_metrics(state.theta, following.theta, batch.observations, batch.actions, kl=approx_kl),
            "value_loss": torch.cat([log.value_loss for log in logs]).mean(),
            "explained_variance": explained_variance(batch.values, batch.targets),
            "eta": eta,
            "learning_rate": learning_rate,
            "n_updates": state.num_updates + num_epochs,
        }

    def pass_over(self, batch: AdvantageBatch, order: Tensor, sampler: Any, eta: Tensor, steps: CompiledSteps) -> list[Log]:
        """Steps of descent on the batch's minibatches, in this order."""
        if not batch.head.shape[-1]:
            return [self.descend_by_autograd(part, sampler, eta) for part in self.minibatches(batch, order)]
        compiled, rest = steps(order)
        logs = [Log._make((*step.kept, step.grad_norm)) for step in compiled]
        return logs + [self.descend(part, sampler, eta) for part in self.minibatches(batch, rest)]

    def _without_compiled_form(self) -> str | None:
        if self.mode != "advantage":
            return f"the update of groups has no compiled form, got mode={self.mode!r}"
        if self.memory is not None or self.policy_kwargs.get("squash_output"):
            return "REBEL's update is compiled for policies without memory or squashing"
        return None

    def loss(self, module: Any, part: AdvantageBatch, coefficients: Coefficients) -> tuple[Tensor, Any]:
        """The loss that `descend` differentiates, on B rows, and `Log` but for the gradient's norm."""
        eta, old_log_std, ent_coef, vf_coef = coefficients
        head, values = module.heads(part.observations)
        log_std = None if old_log_std is None else module.policy.log_std
        excess, _ = contrast(Reference(part.head, part.scores), head, log_std, old_log_std)
        residuals, distribution = (excess - eta * part.advantages).square(), module.distribution_of(head)
        log_ratio = distribution.log_prob(part.actions) - part.log_probs
        entropies, errors = distribution.entropy(), value_loss(values, part.targets)
        total = residuals.mean() / (2.0 * eta) - ent_coef * entropies.mean() + vf_coef * errors.mean()
        return total, (log_ratio, residuals, entropies, errors)

    def descend(self, part: AdvantageBatch, sampler: Any, eta: Tensor) -> Log:
        """One step of descent on a minibatch, the loss differentiated at the network's outputs in closed form."""
        module, size = self.descent.module, len(part.advantages)
        head, values = module.heads(part.observations)
        log_std = [module.policy.log_std] if hasattr(module.policy, "log_std") else []
        with torch.no_grad():
            distribution, past = module.distribution_of(head), Reference(part.head, part.scores)
            excess, derivatives = contrast(past, head, *log_std, *([sampler.policy.log_std] if log_std else []))
            residuals = excess - eta * part.advantages
            of_actor = pulled_back(residuals / (eta * size), derivatives)
            if self.ent_coef:
                nothing = torch.zeros_like(residuals)
                bonus = distribution.pull_back(part.actions, nothing, -self.ent_coef / size)
                of_actor = [first + second for first, second in zip(of_actor, bonus, strict=True)]
            errors = values - part.targets
            log_ratio = distribution.log_prob(part.actions) - part.log_probs
            log = Log(log_ratio, residuals.square(), distribution.entropy(), errors.square(), eta)
        outputs, gradients = [head, *log_std, values], [*of_actor, errors * (2.0 * self.vf_coef / size)]
        return log._replace(grad_norm=self.descent.step(outputs, gradients, self.max_grad_norm))

    def descend_by_autograd(self, part: AdvantageBatch, sampler: Any, eta: Tensor) -> Log:
        """One step of descent on a minibatch."""
        distribution, values = self.descent.module(part.observations)
        with torch.no_grad():
            old = sampler.actor(part.observations)
        log_ratio = distribution.log_prob(part.actions) - part.log_probs
        losses = rebel_advantage_loss(log_ratio, distribution.divergence_from(old), part.advantages, eta)
        entropies, errors = distribution.entropy(), value_loss(values, part.targets)
        total = losses.mean() / (2.0 * eta) - self.ent_coef * entropies.mean() + self.vf_coef * errors.mean()
        norm = self.descent.step([total], None, self.max_grad_norm)
        return Log(log_ratio.detach(), losses.detach(), entropies.detach(), errors.detach(), norm)

    # ------------------------------------------------------------------ groups

    def episode_batch(self, rollout: Rollout) -> GroupBatch:
        """Whole episodes in groups of neighbours, with what they are judged by."""
        num_episodes, rows = rollout.mask.shape[1], rollout.valid_rows()
        everyone = torch.arange(num_episodes, device=rows.device)
        if self.preference is None:
            returns = rollout.scalar_rewards(type(self).__name__).sum(0)
        else:
            returns = self.judged(rollout, everyone[:: self.group_size])
        return GroupBatch(
            observations=map_observations(lambda x: x.flatten(0, 1)[rows], rollout.observations),
            actions=rollout.actions.flatten(0, 1)[rows],
            log_probs=rollout.log_probs.flatten()[rows],
            samples=rows % num_episodes,
            returns=returns,
            groups=everyone // self.group_size,
        )

    def branch_batch(self, branches: Branches) -> GroupBatch:
        """Actions at the step where groups part, one a sample, with what their episodes are judged by from there on."""
        if self.preference is None:
            branches.rollout.scalar_rewards(type(self).__name__)  # which says what is wrong with several
            returns = branches.returns
        else:
            returns = self.judged(branches.rollout, branches.groups[:: self.group_size] * self.group_size)
        return GroupBatch(
            observations=branches.observations,
            actions=branches.actions,
            log_probs=branches.log_probs,
            samples=torch.arange(len(returns), device=returns.device),
            returns=returns,
            groups=branches.groups,
        )

    def judged(self, rollout: Rollout, leaders: Tensor) -> Tensor:
        """How episodes do against the others of their group, [P·G]; `leaders` [P] are the first columns of groups."""
        groups = [[rollout.columns(slice(n, n + 1)) for n in range(n, n + self.group_size)] for n in leaders.tolist()]
        comparisons = torch.stack([self.comparisons(episodes) for episodes in groups])
        return preference_rewards(comparisons).flatten().to(rollout.rewards)

    def comparisons(self, episodes: list[Rollout]) -> Tensor:
        """ℓ(τ_i, τ_j) of all pairs of a group, [G, G]: every pair is compared once."""
        assert self.preference is not None
        results = torch.zeros(len(episodes), len(episodes))
        for i, episode in enumerate(episodes):
            for j, other in enumerate(episodes[:i]):
                better = float(self.preference(episode, other))
                check_number("preference", better, at_least=-1, at_most=1)
                results[i, j], results[j, i] = better, -better
        return results

    def regress_groups(self, state: ProximalState, batch: GroupBatch, progress: float) -> tuple[ProximalState, Metrics]:
        """The next state after at most `n_epochs` steps on all groups."""
        eta, learning_rate = self.step_length(batch.returns, batch.groups, progress), self.lr_schedule(progress)
        self.begin_descent(state, learning_rate)
        logs: list[Log] = []
        while len(logs) < self.n_epochs:
            loss, log = self.group_loss(self.descent.module, batch, eta)
            logs.append(log._replace(grad_norm=self.descent.step([loss], None, self.max_grad_norm)))
            if self.target_kl is not None and approx_kl(log.log_ratio) > self.target_kl:
                break
        last, following = self.per_sample(logs[-1].log_ratio, batch), self.descended(state, len(logs))
        return following, {
            **self.metrics(logs, logs[-1:], logs[0].loss),
            **self.memory_metrics(state.theta, following.theta, batch.observations, batch.actions, kl=approx_kl),
            "sign_alignment": sign_alignment(last, batch.returns, batch.groups),
            "approx_kl_sample": approx_kl(last),
            "eta": eta,
            "learning_rate": learning_rate,
            "n_updates": state.num_updates + len(logs),
        }

    def group_loss(self, module: Any, batch: GroupBatch, eta: Tensor) -> tuple[Tensor, Log]:
        """What is minimised, a scalar: its first gradient is minus REINFORCE's with leave-one-out baselines, whatever η is."""
        distribution = module.actor(batch.observations)
        log_ratio = distribution.log_prob(batch.actions) - batch.log_probs
        regression = rebel_loss(
            self.per_sample(log_ratio, batch), torch.zeros_like(batch.returns), batch.returns, batch.groups, eta
        )
        entropies = distribution.entropy()
        log = Log(log_ratio.detach(), regression.detach(), entropies.detach(), log_ratio.new_zeros(0), torch.zeros_like(eta))
        return regression / (4.0 * eta) - self.ent_coef * entropies.mean(), log

    def per_sample(self, log_ratio: Tensor, batch: GroupBatch) -> Tensor:
        """ln π_θ/π_t of samples, [N]: that of their rows [R] is summed, never averaged."""
        return torch.zeros_like(batch.returns).index_add(0, batch.samples, log_ratio)

    # ------------------------------------------------------------------ both

    @property
    def _least_rows(self) -> int:
        """How many advantages η can be computed from: one has no deviation."""
        return 1 if self.eta_mode == "fixed" else 2

    def step_length(self, rewards: Tensor, groups: Tensor | None, progress: float) -> Tensor:
        """η, a scalar, for these advantages or returns."""
        eta = as_schedule("eta", self.eta)(progress)
        check_number("eta", eta, positive=True)
        if self.eta_mode == "fixed":
            return rewards.new_full((), eta)
        return eta_from_std(rewards, eta, groups) if self.eta_mode == "std" else eta_from_kl(rewards, eta, groups)

    def metrics(self, logs: list[Log], last: list[Log], first_loss: Tensor) -> dict[str, Tensor]:
        """Means over the update, and how much of the regression the last pass has solved."""
        log_ratio = torch.cat([log.log_ratio for log in last])
        last_loss = torch.cat([log.loss.reshape(-1) for log in last]).mean()
        log_std = getattr(self.descent.module.policy, "log_std", None)
        return {
            "regression_loss": last_loss,
            "explained": explained(last_loss, first_loss),
            "entropy_loss": -torch.cat([log.entropy for log in logs]).mean(),
            "grad_norm": torch.stack([log.grad_norm for log in logs]).mean(),
            "approx_kl": approx_kl(log_ratio),
            **({} if log_std is None else {"std": log_std.detach().exp().mean()}),
        }

    def check_rewards(self, num_objectives: int) -> None:
        """Raises ValueError for several rewards a step, unless a preference judges episodes."""
        if self.preference is None:  # which makes a reward of its own
            super().check_rewards(num_objectives)

    def _dressed(self, environments: Environments) -> Environments:
        return environments if self.mode == "advantage" else in_groups(environments, self.group_size)
