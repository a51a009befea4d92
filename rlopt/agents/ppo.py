"""Proximal policy optimisation with a clipped surrogate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.proximal import Batch, CompiledSteps, ProximalAgent, ProximalState
from rlopt.agents.weighing import Objectives, as_weighing
from rlopt.arguments import check_choice, check_flag, check_number
from rlopt.collector import Collector
from rlopt.compiled_descent import Compile
from rlopt.envs.base import Environments
from rlopt.envs.vector import Backend
from rlopt.estimators import (
    approximate_kl,
    clip_fraction,
    clipped_surrogate,
    clipped_surrogate_weights,
    clipped_value_loss,
    clipped_value_loss_slope,
    explained_variance,
    pessimistic_value_loss,
    pessimistic_value_loss_slope,
    value_loss,
)
from rlopt.logging import Metrics
from rlopt.objectives import VectorUtility, agreed_num_objectives
from rlopt.policies.stateful import MemoryName
from rlopt.presets import with_preset
from rlopt.rollout import Rollout
from rlopt.schedules import ScheduleLike, as_schedule


class PPO(ProximalAgent):
    """PPO-clip with generalised advantage estimation; arguments, order and defaults are Stable-Baselines3's.

    Source: Schulman et al., arXiv:1707.06347; details: Huang et al., "The 37 implementation details of PPO" (2022).

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a subclass of SB3's `ActorCriticPolicy`.
        env: whatever `make_envs` takes, or None: `set_env` builds the networks then.
        learning_rate: number, schedule, or text such as "linear:3e-4".
        n_steps: environment steps per environment and rollout.
        batch_size: rows of a minibatch; the last one of an epoch may be smaller.
        n_epochs: passes over a rollout.
        gamma: discount, in [0, 1].
        gae_lambda: trace decay of the advantages, in [0, 1].
        clip_range: ε of the surrogate: number, schedule or text.
        clip_range_vf: ε of the value loss, in units of the value; None does not clip.
        normalize_advantage: to mean 0 and standard deviation 1 in each minibatch.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        max_grad_norm: the gradient is scaled down to this Euclidean norm.
        use_sde, sde_sample_freq: not offered; an error says so.
        rollout_buffer_class, rollout_buffer_kwargs: not offered; an error says so.
        target_kl: an update stops before the step at which the approximate KL passes 1.5 times this; None never.
        stats_window_size: episodes in the reported means.
        tensorboard_log: folder for TensorBoard, or None.
        policy_kwargs: for the policy, as in SB3; also `squash_output=True`.
        verbose: 0 silent, 1 tables.
        seed: of everything random in this agent; None takes the system's entropy.
        device: "cpu", "cuda", "cuda:1"; "auto" is CUDA, if there is one, for convolutions, large networks or many environments.
        n_envs: environments side by side, where `env` is an id or a callable.
        backend: how they are stepped; see `make_envs`.
        preset: "sb3", "cleanrl" or "tuned": values for whatever is not given explicitly; see `rlopt.presets`.
        normalize_observations: keep a running mean and variance of the observations, saved with the agent.
        normalize_rewards: divide rewards by the running standard deviation of the discounted return.
        clip_observations, clip_rewards: bounds after normalisation.
        value_clip: with `clip_range_vf`, "prediction" is SB3's loss, "maximum" CleanRL's pessimistic one.
        bootstrap_truncation: False treats a time limit as termination, as CleanRL does; biased.
        schedule_from: schedules are evaluated after the rollout ("rollout_end", SB3) or before it ("rollout_start").
        carry_reward_returns: reward normalisation carries returns across truncation, as Gymnasium's wrapper does.
        memory: "s2pg" gives the policy a memory that it writes like an action: one ratio for both; `S2PG` has one for each.
        memory_size: units of its recurrent kernel.
        compile: True makes one compiled function of a minibatch's step; False does not; "auto" where it is predicted to save
            more time than compiling takes, which it says with verbose=1. Parameters differ by rounding. On CUDA the step is
            captured as a graph unless this is False, and compiled before that if it is True.
        utility: of environments that pay K rewards: f of the mean undiscounted returns of recent episodes, as `MOPG` takes
            it, whose slopes weigh the advantages of a critic for each; or "preferences": weights of a sum that are drawn
            for every episode and shown to the policy ("MultiInputPolicy"), so that one policy covers the front.
        num_objectives: K, where neither the utility nor the environment says it.

    Raises:
        ValueError: an argument that cannot work; the message names it, what was expected and what came.
    """

    @with_preset
    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        learning_rate: ScheduleLike = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 64,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        clip_range: ScheduleLike = 0.2,
        clip_range_vf: ScheduleLike | None = None,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        use_sde: bool = False,
        sde_sample_freq: int = -1,
        rollout_buffer_class: Any = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        _init_setup_model: bool = True,
        *,
        n_envs: int = 1,
        backend: Backend = "auto",
        preset: str | None = None,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        clip_observations: float = 10.0,
        clip_rewards: float = 10.0,
        value_clip: Literal["prediction", "maximum"] = "prediction",
        bootstrap_truncation: bool = True,
        schedule_from: Literal["rollout_end", "rollout_start"] = "rollout_end",
        carry_reward_returns: bool = False,
        memory: MemoryName | None = None,
        memory_size: int = 16,
        compile: Compile = "auto",
        utility: str | Sequence[float] | VectorUtility | Callable[[Tensor], Tensor] | None = None,
        num_objectives: int | None = None,
    ):
        if use_sde or sde_sample_freq != -1:
            raise ValueError("use_sde: rlopt does not offer generalised state-dependent exploration; leave it False")
        if rollout_buffer_class is not None or rollout_buffer_kwargs is not None:
            raise ValueError("rollout_buffer_class: rlopt collects rollouts without a buffer class; leave it None")
        self.clip_range, self.clip_range_vf = clip_range, clip_range_vf
        self.value_clip = value_clip
        self.bootstrap_truncation = bootstrap_truncation
        self.schedule_from = schedule_from
        if num_objectives is not None:
            check_number("num_objectives", num_objectives, positive=True, whole=True)
            if utility is None and num_objectives > 1:
                raise ValueError(f"num_objectives: {num_objectives} rewards need a utility, got utility=None")
        self.utility, self.num_objectives = utility, num_objectives
        self._weighing = as_weighing(utility)
        if self._weighing is not None:
            self.layout = self._weighing.layout
        if self._weighing is not None and memory is not None:
            raise ValueError("utility: a policy with memory has a critic of one objective; use memory=None")
        self._check_own()
        super().__init__(
            policy,
            env if _init_setup_model else None,
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
            target_kl=target_kl,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            n_envs=n_envs,
            backend=backend,
            normalize_observations=normalize_observations,
            normalize_rewards=normalize_rewards,
            clip_observations=clip_observations,
            clip_rewards=clip_rewards,
            carry_reward_returns=carry_reward_returns,
            memory=memory,
            memory_size=memory_size,
            compile=compile,
        )

    def check_rewards(self, num_objectives: int) -> None:
        """Raises ValueError unless the algorithm takes this many rewards a step."""
        if self._weighing is None:
            super().check_rewards(num_objectives)
        else:
            self._agreed(num_objectives)

    def step(self, state: ProximalState, collector: Collector) -> tuple[ProximalState, Metrics]:
        """One iteration: a rollout, its advantages, `n_epochs` passes of minibatch descent."""
        progress = self._current_progress_remaining
        rollout = collector.steps(state.theta, self.n_steps)
        if self.schedule_from == "rollout_end":
            progress = self._current_progress_remaining
        state, weights, of_objectives = self.weighed(state, rollout)
        batch = self.advantages(state.theta, rollout, weights)
        if not len(batch.advantages):
            return state, {}
        following, metrics = self.update(state, batch, progress)
        return following, {**metrics, **of_objectives}

    def weighed(self, state: ProximalState, rollout: Rollout) -> tuple[ProximalState, Tensor | None, Metrics]:
        """What the objectives' advantages are multiplied by, [K] or [T, N, K]; None if there is one reward."""
        if self._weighing is None:
            return state, None, {}
        self.check_rewards(rollout.vector_rewards().shape[-1])
        returns = state.objectives
        if self.statistics.recent:
            returns = torch.as_tensor(self.statistics.mean_return).to(rollout.rewards).reshape(-1)
        weights, known, metrics = self._weighing.weights(Objectives(returns, state.multipliers), rollout)
        if self.reward_normalizer is not None:  # advantages in the environment's units, but for how the statistics moved
            weights = weights * torch.as_tensor(self.reward_normalizer.deviations).to(weights)
        return state._replace(objectives=known.returns, multipliers=known.multipliers), weights, metrics

    def update(
        self, state: ProximalState, batch: Batch, progress: float, orders: list[Tensor] | None = None
    ) -> tuple[ProximalState, Metrics]:
        """The next state after `n_epochs` passes over the batch.

        Args:
            state: where to start; not written to.
            batch: S' rows.
            progress: remaining share of the training, for the schedules.
            orders: the row order of each epoch, [S'] each; drawn from the agent's generator if not given.
        """
        rates = self.rates(progress)
        self.begin_descent(state, rates.learning_rate)
        form = self.normalize_advantage, self.value_clip
        steps = self.compiled_steps(batch, self.loss_of_rows, self.coefficients(rates), form, _passes)
        log = UpdateLog()
        num_epochs = 0
        for epoch in range(self.n_epochs):
            num_epochs += 1
            order = self.shuffled(len(batch.advantages)) if orders is None else orders[epoch].to(self.device)
            if not self._epoch(batch, order, rates, log, steps):
                break
        following = self.descended(state, num_epochs)
        metrics = self.metrics(following, batch, rates, log)
        metrics |= self.memory_metrics(state.theta, following.theta, batch.observations, batch.actions, rates.clip_range)
        return following, metrics

    def rates(self, progress: float) -> Rates:
        """What schedules say at this remaining share of the training."""
        clip_range_vf = None if self.clip_range_vf is None else as_schedule("clip_range_vf", self.clip_range_vf)(progress)
        return Rates(self.lr_schedule(progress), as_schedule("clip_range", self.clip_range)(progress), clip_range_vf)

    def _epoch(self, batch: Batch, order: Tensor, rates: Rates, log: UpdateLog, steps: CompiledSteps) -> bool:
        """One pass in minibatches, in this order; False if the KL target was passed."""
        compiled, rest = steps(order)
        for step in compiled:
            log.rows.append(step.kept)
            if not step.taken:
                return False
            log.norms.append(step.grad_norm)
        for part in self.minibatches(batch, rest):
            part = part._replace(advantages=self.normalized(part.advantages))
            minibatch = self._in_closed_form if self.descent.module.closed_form else self._by_autograd
            outputs, gradients = minibatch(part, rates, log)
            if self.target_kl is not None and _passes(log.rows[-1], 1.5 * self.target_kl):
                return False
            log.norms.append(self.descent.step(outputs, gradients, self.max_grad_norm))
        return True

    def coefficients(self, rates: Rates) -> Coefficients:
        """Of the loss."""
        return Coefficients(rates.clip_range, rates.clip_range_vf, self.ent_coef, self.vf_coef)

    def loss_of_rows(self, module: Any, part: Batch, coefficients: Coefficients) -> tuple[Tensor, LogRows]:
        """`loss` of rows as the rollout has them."""
        return self.loss(module, part._replace(advantages=self.normalized(part.advantages)), coefficients)

    def loss(self, module: Any, part: Batch, coefficients: Coefficients) -> tuple[Tensor, LogRows]:
        """PPO's loss on a minibatch, as the paper has it, and what is logged of it.

        Args:
            module: the actor-critic.
            part: B rows, their advantages as the surrogate takes them.
            coefficients: numbers, or scalar tensors.
        """
        distribution, values = module(part.observations)
        log_ratio = distribution.log_prob(part.actions) - part.log_probs
        surrogate = clipped_surrogate(log_ratio, part.advantages, coefficients.clip_range).mean()
        entropy = distribution.entropy()
        critic_loss = self._value_loss(values, part.values, part.targets, coefficients.clip_range_vf).mean()
        loss = -surrogate - coefficients.ent_coef * entropy.mean() + coefficients.vf_coef * critic_loss
        return loss, LogRows(log_ratio, entropy, values, part.advantages, part.values, part.targets)

    def _by_autograd(self, part: Batch, rates: Rates, log: UpdateLog) -> Any:
        """The loss, to be differentiated."""
        loss, rows = self.loss(self.descent.module, part, self.coefficients(rates))
        log.add(rows)
        return [loss], None

    def _in_closed_form(self, part: Batch, rates: Rates, log: UpdateLog) -> Any:
        """The network's outputs and the gradients of the same loss with respect to them."""
        module, size = self.descent.module, len(part.advantages)
        head, values = module.heads(part.observations)
        with torch.no_grad():
            distribution = module.distribution_of(head)
            log_ratio = distribution.log_prob(part.actions) - part.log_probs
            weights = clipped_surrogate_weights(log_ratio, part.advantages, rates.clip_range)
            of_actor = distribution.pull_back(part.actions, weights / -size, -self.ent_coef / size)
            slope = self._value_loss_slope(values, part.values, part.targets, rates.clip_range_vf)
            of_values = slope * (self.vf_coef / values.numel())
            log.add(LogRows(log_ratio, distribution.entropy(), values, part.advantages, part.values, part.targets))
        log_std = [module.policy.log_std] if len(of_actor) == 2 else []
        return [head, *log_std, values], [*of_actor, of_values]

    def _without_compiled_form(self) -> None:
        return None

    def _value_loss(self, values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float | Tensor | None) -> Tensor:
        if clip_range is None:
            return value_loss(values, targets)
        clipped = pessimistic_value_loss if self.value_clip == "maximum" else clipped_value_loss
        return clipped(values, old_values, targets, clip_range)

    def _value_loss_slope(self, values: Tensor, old_values: Tensor, targets: Tensor, clip_range: float | None) -> Tensor:
        if clip_range is None:
            return 2.0 * (values - targets)
        slope = pessimistic_value_loss_slope if self.value_clip == "maximum" else clipped_value_loss_slope
        return slope(values, old_values, targets, clip_range)

    def metrics(self, following: ProximalState, batch: Batch, rates: Rates, log: UpdateLog) -> dict[str, Any]:
        """Averages over all rows of all minibatches of the update that ended in `following`."""
        learning_rate, clip_range, clip_range_vf = rates
        log_ratio, entropy, values, *of_batch = (torch.cat(column) for column in zip(*log.rows, strict=True))
        advantages, old_values, targets = of_batch
        policy_loss = -clipped_surrogate(log_ratio, advantages, clip_range).mean()
        critic_loss = self._value_loss(values, old_values, targets, clip_range_vf).mean()
        entropy_loss = -entropy.mean()
        log_std = self.functional.unravel(following.theta).get("policy.log_std")
        return {
            "policy_gradient_loss": policy_loss,
            "value_loss": critic_loss,
            "entropy_loss": entropy_loss,
            "loss": policy_loss + self.ent_coef * entropy_loss + self.vf_coef * critic_loss,
            "approx_kl": approximate_kl(log_ratio),
            "clip_fraction": clip_fraction(log_ratio, clip_range),
            **({"grad_norm": torch.stack(log.norms).mean()} if log.norms else {}),
            "explained_variance": explained_variance(batch.values, batch.targets),
            "learning_rate": learning_rate,
            "clip_range": clip_range,
            **({} if clip_range_vf is None else {"clip_range_vf": clip_range_vf}),
            **({} if log_std is None else {"std": log_std.exp().mean()}),
            "n_updates": following.num_updates,
        }

    def _dressed(self, environments: Environments) -> Environments:
        if self._weighing is None:
            return environments
        dressed = self._weighing.dressed(environments, self.num_objectives)
        self.num_objectives = self._agreed(None) or dressed.num_objectives
        if self.num_objectives is None:
            raise ValueError("num_objectives: neither the utility nor the environment says how many there are; give the number")
        return dressed

    def _agreed(self, paid: int | None) -> int | None:
        """K, with `paid` rewards a step, as far as it is known.

        Raises:
            ValueError: the environment, the utility and the argument differ.
        """
        assert self._weighing is not None
        return agreed_num_objectives(self.num_objectives, self._weighing.num_objectives, paid)

    def _check_own(self) -> None:
        check_number("clip_range", as_schedule("clip_range", self.clip_range)(1.0), at_least=0)
        check_flag("bootstrap_truncation", self.bootstrap_truncation)
        check_choice("value_clip", self.value_clip, ("prediction", "maximum"))
        check_choice("schedule_from", self.schedule_from, ("rollout_end", "rollout_start"))
        if self.clip_range_vf is not None:
            check_number("clip_range_vf", as_schedule("clip_range_vf", self.clip_range_vf)(1.0), positive=True)


class Rates(NamedTuple):
    """What schedules say during one update."""

    learning_rate: float
    clip_range: float  # ε
    clip_range_vf: float | None


class Coefficients(NamedTuple):
    """What the loss is made with: numbers, or scalar tensors where it is compiled."""

    clip_range: float | Tensor  # ε
    clip_range_vf: float | Tensor | None
    ent_coef: float | Tensor
    vf_coef: float | Tensor


class LogRows(NamedTuple):
    """What every row of a minibatch leaves behind, [B] each, or [B, K] of several objectives."""

    log_ratio: Tensor
    entropy: Tensor
    values: Tensor
    advantages: Tensor  # normalised, if the surrogate took them so
    old_values: Tensor
    targets: Tensor


class UpdateLog:
    """What the minibatches of an update leave behind, turned into metrics once at the end."""

    def __init__(self) -> None:
        self.rows: list[LogRows] = []
        self.norms: list[Tensor] = []

    def add(self, rows: LogRows) -> None:
        """Keep these of one minibatch."""
        self.rows.append(LogRows(*(x.detach() for x in rows)))


def _passes(rows: LogRows, limit: float | Tensor) -> Tensor:
    """Whether the approximate KL of a minibatch passes a limit, a scalar bool."""
    return approximate_kl(rows.log_ratio) > limit
