"""What agents share that improve a surrogate by minibatch descent on rollouts of fixed length: arguments, advantages,
minibatches. No algorithm.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.base import Agent
from rlopt.arguments import check_flag, check_number
from rlopt.compiled_descent import (
    Compile,
    CompiledDescent,
    Limits,
    Loss,
    Taken,
    cannot_compile,
    has_no_pure_step,
    predicted_saving,
)
from rlopt.descent import Descent, Moments
from rlopt.device import generator_on
from rlopt.envs.vector import Backend
from rlopt.estimators import approximate_kl, clip_fraction, gae
from rlopt.graphed_descent import Capture, CudaGraphs, GraphedDescent
from rlopt.policies.stateful import MemoryName, factor_log_probs
from rlopt.rollout import Observations, Rollout, map_observations, refuse_several_rewards
from rlopt.schedules import ScheduleLike, as_schedule

# Minibatches copied together: few enough that images fit into memory twice, enough that small rows cost little.
GATHERED = 32


class ProximalState(NamedTuple):
    """All that such an agent carries from one iteration to the next."""

    theta: Tensor  # [d]
    moments: Moments  # the optimiser's
    num_updates: int  # epochs done so far
    objectives: Tensor  # J [K], where a utility weighs several; else [0]
    multipliers: Tensor  # of a utility with constraints, [K]; else [0]


class Batch(NamedTuple):
    """The valid rows of a rollout with what is computed from them; S' rows."""

    observations: Observations  # [S', *obs]
    actions: Tensor  # [S', *act]
    log_probs: Tensor  # [S'], of the policy that sampled
    advantages: Tensor  # [S']
    values: Tensor  # [S'] or [S', K], of the critic that the rollout began with
    targets: Tensor  # like values: what they are to become
    terminated: Tensor  # [S'] bool, s_{t+1} is absorbing


def weighted_gae(
    rewards: Tensor, values: Tensor, next_values: Tensor, discounts: Tensor, traces: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Σ_k w_k Â_k of K rewards, [T, N], and what the values are to become, like `values`.

    Args:
        rewards: [T, N, K].
        values, next_values: [T, N, K], or [T, N] if K is 1.
        discounts, traces: [T, N], as in `gae`.
        weights: [K] or [T, N, K].
    """
    shape = rewards.shape
    if weights.shape[-1] != shape[-1]:
        raise ValueError(f"weights: expected one for each of {shape[-1]} rewards, got {weights.shape[-1]}")
    of_objectives = gae(
        rewards,
        values.view(shape),
        next_values.view(shape),
        discounts.unsqueeze(-1).expand(shape),
        traces.unsqueeze(-1).expand(shape),
    )
    return (of_objectives * weights).sum(-1), of_objectives.view_as(values) + values


Rows = TypeVar("Rows", bound=tuple)

CompiledSteps = Callable[[Tensor], tuple[Iterable[Taken], Tensor]]
"""From an epoch's order [S'] to what its compiled steps leave behind, and the rows that are left over."""


def rows_of(batch: Rows, index: Tensor | slice) -> Rows:
    """These rows of every field; a view for a slice."""

    def chosen(x: Tensor) -> Tensor:  # whole rows, which `x[index]` would copy number by number
        return x[index] if isinstance(index, slice) else x.index_select(0, index)

    return type(batch)(*(map_observations(chosen, field) for field in batch))


def padded(batch: Rows, size: int) -> Rows:
    """The batch with at least `size` rows, zeros at its end: what is compiled for one size does not serve another.

    Environments that reset on a step of its own leave a batch with as many rows fewer.
    """

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, x.new_zeros((size - len(x), *x.shape[1:]))]) if len(x) < size else x

    return type(batch)(*(map_observations(longer, field) for field in batch))


class ProximalAgent(Agent):
    """Arguments that every agent of this kind has.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a subclass of SB3's `ActorCriticPolicy`.
        env: whatever `make_envs` takes, or None: `set_env` builds the networks then.
        learning_rate: number, schedule, or text such as "linear:3e-4".
        n_steps: environment steps per environment and rollout.
        batch_size: rows of a minibatch; the last one of an epoch may be smaller.
        n_epochs: passes over a rollout.
        gamma: discount, in [0, 1].
        gae_lambda: trace decay of the advantages, in [0, 1].
        normalize_advantage: to mean 0 and standard deviation 1 in each minibatch.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        max_grad_norm: the gradient is scaled down to this Euclidean norm.
        target_kl: of the approximate KL from the policy that sampled, beyond which an update stops; None never.
        stats_window_size: episodes in the reported means.
        tensorboard_log: folder for TensorBoard, or None.
        policy_kwargs: for the policy, as in SB3; also `squash_output=True`.
        verbose: 0 silent, 1 tables.
        seed: of everything random in this agent; None takes the system's entropy.
        device: "cpu", "cuda", "cuda:1"; "auto" is CUDA, if there is one, for convolutions, large networks or many environments.
        n_envs: environments side by side, where `env` is an id or a callable.
        backend: how they are stepped; see `make_envs`.
        preset: "tuned" fills in what is known to work for an environment; explicit arguments win.
        normalize_observations: keep a running mean and variance of the observations, saved with the agent.
        normalize_rewards: divide rewards by the running standard deviation of the discounted return.
        clip_observations, clip_rewards: bounds after normalisation.
        carry_reward_returns: reward normalisation carries returns across truncation, as Gymnasium's wrapper does.
        memory: "s2pg" gives the policy a memory that it writes like an action; see `rlopt.policies.stateful`.
        memory_size: units of its recurrent kernel.
        compile: True makes one compiled function of a minibatch's step; False does not; "auto" where it is predicted to save
            more time than compiling takes, which it says with verbose=1. Parameters differ by rounding. Attributes that a
            loss of your own reads are compiled with it as they are. On CUDA the step is
            captured as a graph unless this is False, and compiled before that if it is True.
    """

    state: ProximalState
    bootstrap_truncation = True
    as_one_function = False  # whether steps of descent are: compiled, captured, or both. Decided for every update

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        *,
        learning_rate: ScheduleLike = 3e-4,
        n_steps: int = 2048,
        batch_size: int = 256,
        n_epochs: int = 10,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        normalize_advantage: bool = True,
        ent_coef: float = 0.0,
        vf_coef: float = 0.5,
        max_grad_norm: float = 0.5,
        target_kl: float | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        n_envs: int = 1,
        backend: Backend = "auto",
        preset: str | None = None,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        clip_observations: float = 10.0,
        clip_rewards: float = 10.0,
        carry_reward_returns: bool = False,
        memory: MemoryName | None = None,
        memory_size: int = 16,
        compile: Compile = "auto",
    ):
        self.learning_rate = learning_rate
        self.n_steps = n_steps
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.gamma = gamma
        self.gae_lambda = gae_lambda
        self.normalize_advantage = normalize_advantage
        self.ent_coef = ent_coef
        self.vf_coef = vf_coef
        self.max_grad_norm = max_grad_norm
        self.target_kl = target_kl
        self.compile = compile
        self._check_common()
        self._setup(
            policy,
            env,
            seed=seed,
            device=device,
            verbose=verbose,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            stats_window_size=stats_window_size,
            n_envs=n_envs,
            backend=backend,
            normalize_observations=normalize_observations,
            normalize_rewards=normalize_rewards,
            clip_observations=clip_observations,
            clip_rewards=clip_rewards,
            carry_reward_returns=carry_reward_returns,
            memory=memory,
            memory_size=memory_size,
        )
        if self.compile is True and (reason := self._without_compiled_form()) is not None:
            raise ValueError(f"compile: {reason}; use compile=False")
        if self.collector is not None:
            self._check_batches(self.n_envs)

    def init(self, theta: Tensor) -> ProximalState:
        return ProximalState(theta, {}, 0, theta.new_zeros(0), theta.new_zeros(0))

    def check_rewards(self, num_objectives: int) -> None:
        """Raises ValueError unless the algorithm takes this many rewards a step."""
        if num_objectives > 1:
            refuse_several_rewards(num_objectives, type(self).__name__)

    # ------------------------------------------------------------------ the words of an algorithm box

    def advantages(self, theta: Tensor, rollout: Rollout, weights: Tensor | None = None) -> Batch:
        """The rollout's valid rows with advantages and value targets under the critic of θ.

        Args:
            theta: [d], which sampled the rollout.
            rollout: T steps of N environments.
            weights: of K rewards, [K] or [T, N, K]: advantages are Σ_k w_k A_k, values and targets those of every
                objective. None for environments that pay one.
        """
        values, next_values = rollout.values(self.functional.bind(theta).critic, rollout.acting_values)
        discounts, traces = rollout.discounts(self.gamma), rollout.traces(self.gae_lambda)
        if not self.bootstrap_truncation:
            discounts = discounts * ~rollout.truncated
        if weights is None:
            advantages = gae(rollout.scalar_rewards(type(self).__name__), values, next_values, discounts, traces)
            targets = advantages + values
        else:
            advantages, targets = weighted_gae(rollout.vector_rewards(), values, next_values, discounts, traces, weights)
        actions, log_probs = rollout.actions, rollout.log_probs
        everything = Batch(rollout.observations, actions, log_probs, advantages, values, targets, rollout.terminated)
        flat = Batch(*(map_observations(lambda x: x.flatten(0, 1), field) for field in everything))  # type: ignore[arg-type]
        return flat if bool(rollout.mask.all()) else rows_of(flat, rollout.valid_rows())

    def minibatches(self, batch: Rows, order: Tensor) -> Iterator[Rows]:
        """The batch in this order, cut up; the last minibatch may be smaller."""
        for rows in order.split(GATHERED * int(self.batch_size)) if len(order) else ():
            gathered = rows_of(batch, rows)
            for start in range(0, len(rows), self.batch_size):
                yield rows_of(gathered, slice(start, start + self.batch_size))

    def whole_minibatches(self, order: Tensor) -> tuple[list[Tensor], Tensor]:
        """The row numbers of all minibatches of full size, and what is left over."""
        size = int(self.batch_size)
        *whole, last = order.split(size)
        return ([*whole, last], order[:0]) if len(last) == size else (whole, last)

    def normalized(self, advantages: Tensor) -> Tensor:
        """Advantages [B] of a minibatch as the surrogate takes them."""
        if not self.normalize_advantage or len(advantages) < 2:
            return advantages
        std, mean = torch.std_mean(advantages)
        return (advantages - mean) / (std + 1e-8)

    def shuffled(self, size: int) -> Tensor:
        """An order of `size` rows, on the agent's device."""
        generator = generator_on(self.device, self.generators["minibatches"])
        return torch.randperm(size, generator=generator, device=self.device)

    def memory_metrics(
        self,
        theta: Tensor,
        following: Tensor,
        observations: Observations,
        actions: Tensor,
        clip_range: float | None = None,
        kl: Callable[[Tensor], Tensor] = approximate_kl,
    ) -> dict[str, Tensor]:
        """How far an update moved π_a and π_z, each by itself, on its rows, and σ_z; {} without memory.

        Args:
            theta, following: before and after it, [d].
            observations: [S', *obs], (o, z, a_prev).
            actions: [S', A + d_z], (a, z').
            clip_range: ε of the joint ratio, for the share of rows in which one of the two alone is beyond it.
            kl: of log-ratios [S'].
        """
        if self.memory is None:
            return {}
        old, new = (factor_log_probs(self.functional.bind(x).actor, observations, actions) for x in (theta, following))
        log_std: Tensor = self.functional.bind(following).policy.memory_log_std
        metrics = {"memory_std": log_std.detach().exp().mean()}
        for name, log_ratio in zip(("action", "memory"), (new - old).unbind(-1), strict=True):
            metrics[f"approx_kl_{name}"] = kl(log_ratio)
            if clip_range is not None:
                metrics[f"clip_fraction_{name}"] = clip_fraction(log_ratio, clip_range)
        return metrics

    # ------------------------------------------------------------------ parts

    @cached_property
    def descent(self) -> Descent:
        """The optimiser and its private copy of the networks."""
        return Descent(self.functional, self.policy.optimizer_class, self.policy.optimizer_kwargs)

    @property
    def compiled(self) -> bool:
        """Whether steps of descent are compiled.

        "auto" is decided by the steps that the training has in all, those before a save included: one that is continued is
        compiled if it would have been without the break.

        Raises:
            ValueError: `compile=True`, and they cannot be.
        """
        if self.compile is False:
            return False
        if self.compile == "auto":
            return self.compile_seconds_saved > 0
        if (reason := self.why_not_compiled()) is not None:
            raise ValueError(f"compile: {reason}; use compile=False")
        return True

    @property
    def compile_seconds_saved(self) -> float:
        """What compiling is predicted to save in the whole training; negative if it is not worth it, or cannot be done."""
        if self.device.type != "cpu" or not self.modules_known or self.why_not_compiled() is not None:
            return -math.inf
        num_steps = self._total_timesteps // self.batch_size * self.n_epochs
        return predicted_saving(num_steps, len(self.state.theta))

    @property
    def captured(self) -> bool:
        """Whether steps of descent are captured as a CUDA graph, which `compile=False` forbids."""
        if self.capture is None or self.compile is False or not self.modules_known or self.policy.squash_output:
            return False  # the entropy of a squashed Gaussian sends its quadrature to the device
        return self._without_compiled_form() is None and has_no_pure_step(self.descent) is None

    @cached_property
    def capture(self) -> Capture | None:
        """What captures them; nothing does on the CPU."""
        return CudaGraphs(self.device) if self.device.type == "cuda" else None

    @property
    def modules_known(self) -> bool:
        """Whether the networks, and this class with its loss, are known to be functions of tensors alone."""
        known = ("stable_baselines3.", "rlopt.", "torch.")
        return all(type(part).__module__.startswith(known) for part in (self, *self.policy.modules()))

    def why_not_compiled(self) -> str | None:
        """Why steps of descent cannot be compiled, or None."""
        if (reason := self._without_compiled_form()) is not None:
            return reason
        return cannot_compile(self.descent)

    def _without_compiled_form(self) -> str | None:
        """Why this algorithm, with these arguments, has no compiled form, or None if it has one."""
        return f"{type(self).__name__} has no compiled form"

    def compiled_steps(
        self,
        batch: tuple,
        loss: Loss,
        coefficients: Any,
        form: Hashable = None,
        refuses: Callable[[Any, Tensor], Tensor] | None = None,
    ) -> CompiledSteps:
        """What takes an epoch's steps on minibatches of full size as one function each, and says which rows are left over.

        All rows are, where steps are not compiled, which `begin_descent` has decided.

        Args:
            batch: S' rows.
            loss, refuses: see `CompiledDescent`; `refuses` is given 1.5 times `target_kl`, and not asked without one. After a
                step that is refused there are no more.
            coefficients: a NamedTuple of numbers, tensors and None, for the loss.
            form: everything else that the loss depends on; each form is compiled once.
        """
        if not self.as_one_function:
            return lambda order: ((), order)
        if self.target_kl is None:
            refuses = None
        form = form, tuple(value is None for value in coefficients), refuses is None
        if form not in self._compiled_forms:
            self._compiled_forms[form] = self._compiled_form(loss, refuses)
        descent = self._compiled_forms[form]
        # Numbers are filled in on the device: a copy of them would be waited for.
        numbers: Any = type(coefficients)(
            *(x if x is None or isinstance(x, Tensor) else torch.full((), x, device=self.device) for x in coefficients)
        )
        kl = math.inf if self.target_kl is None else 1.5 * self.target_kl
        limits = Limits(*(torch.full((), limit, device=self.device) for limit in (self.max_grad_norm, kl)))
        whole = padded(batch, self.n_steps * self.n_envs)

        def steps(order: Tensor) -> tuple[Iterable[Taken], Tensor]:
            minibatches, rest = self.whole_minibatches(order)
            return descent.steps(whole, minibatches, numbers, limits), rest

        return steps

    def _compiled_form(self, loss: Loss, refuses: Callable[[Any, Tensor], Tensor] | None) -> CompiledDescent | GraphedDescent:
        if self.verbose and self.compile == "auto" and self.compiled:
            saved = self.compile_seconds_saved
            print(f"compile: the update is compiled, which is predicted to save {saved:.0f} s; compile=False does not")
        if self.captured and self.capture is not None:
            return GraphedDescent(self.descent, loss, refuses, self.capture, self.compiled)
        return CompiledDescent(self.descent, loss, refuses)

    @cached_property
    def _compiled_forms(self) -> dict[Hashable, CompiledDescent | GraphedDescent]:
        return {}

    def begin_descent(self, state: ProximalState, learning_rate: float) -> None:
        """Let `descent` start at the state, which is not written to."""
        self.descent.begin(state.theta, state.moments, learning_rate, [p.requires_grad for p in self.policy.parameters()])
        self.as_one_function = self.compiled or self.captured  # looks at every parameter: not for every epoch

    def descended(self, state: ProximalState, num_epochs: int) -> ProximalState:
        """The state that `descent` came to from another in this many epochs."""
        num_updates = state.num_updates + num_epochs
        return state._replace(theta=self.descent.theta(), moments=self.descent.moments(), num_updates=num_updates)

    def _check_common(self) -> None:
        for name in ("n_steps", "batch_size", "n_epochs"):
            check_number(name, getattr(self, name), positive=True, whole=True)
        for name in ("gamma", "gae_lambda"):
            check_number(name, getattr(self, name), at_least=0, at_most=1)
        for name in ("ent_coef", "vf_coef"):
            check_number(name, getattr(self, name))
        check_flag("normalize_advantage", self.normalize_advantage)
        if self.compile not in ("auto", True, False):
            raise ValueError(f"compile: expected 'auto', True or False, got {self.compile!r}")
        check_number("max_grad_norm", self.max_grad_norm, positive=True)
        if self.target_kl is not None:
            check_number("target_kl", self.target_kl, positive=True)
        check_number("learning_rate", as_schedule("learning_rate", self.learning_rate)(1.0), at_least=0)
        if self.normalize_advantage and self.batch_size < 2:
            raise ValueError(
                "batch_size: expected at least 2 with normalize_advantage=True (one row has no standard deviation), got "
                f"{self.batch_size}"
            )

    def _check_batches(self, num_envs: int) -> None:
        rows = self.n_steps * num_envs
        if rows < 2 and self.normalize_advantage:
            raise ValueError(
                f"n_steps: n_steps · n_envs must be at least 2 with normalize_advantage=True, got {self.n_steps} · {num_envs}"
            )
        if rows % self.batch_size:
            warnings.warn(
                f"batch_size: a rollout of n_steps · n_envs = {rows} rows is not a multiple of {self.batch_size}; the last "
                f"minibatch of an epoch has {rows % self.batch_size} rows",
                stacklevel=5,
            )
