"""What agents share that learn from whole episodes: arguments, batches, gradients and instruments. No algorithm.

An iteration of such an agent asks for batches of episodes at parameter vectors of its choice, makes a direction of
their gradients, and takes a step. The names below are those of an algorithm box: `batch`, `gradient`, `advance`.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple, get_args

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from rlopt.agents.base import Agent
from rlopt.arguments import check_choice, check_flag, check_number
from rlopt.collector import Collector
from rlopt.envs.vector import Backend, can_be_copied
from rlopt.estimators import (
    BASELINES,
    Baseline,
    BaselineName,
    Estimators,
    Policy,
    RewardToGo,
    Weighting,
    cosine,
    effective_sample_size,
    half_batch_noise,
    log_ratio,
    returns_to_go,
    reward_to_go,
    signal_to_noise,
)
from rlopt.logging import Layout, Metrics, episodic_layout
from rlopt.native_code import no_compiler
from rlopt.policies.actor_critic import ActionLogProb
from rlopt.policies.functional import Functional
from rlopt.policies.stateful import MemoryName, as_actor_critic
from rlopt.rollout import Rollout, refuse_several_rewards
from rlopt.schedules import IterationScheduleLike, as_iteration_schedule


class EpisodicState(NamedTuple):
    """All that most of these agents carry from one iteration to the next."""

    theta: Tensor  # θ_t [d], what is evaluated and saved
    previous: Tensor  # θ_{t−1} [d]
    direction: Tensor  # d_{t−1} [d]
    baseline: Tensor  # what the baseline has learned
    travelled: Tensor  # Σ ‖θ_{i+1} − θ_i‖, scalar
    iteration: int  # t
    num_trajectories: int  # sampled so far, those for Hessians included
    num_truncated: int  # steps that a bound cut short
    num_refused: int  # steps refused because the direction was not finite


class Batch(NamedTuple):
    """Whole episodes, one a column, with what multiplies the scores of their actions."""

    rollout: Rollout
    psi: RewardToGo
    returns: Tensor  # Σ_{h≥t} γ^{h−t} r_h, [T, N]

    @property
    def num_episodes(self) -> int:
        """N."""
        return self.rollout.mask.shape[1]

    def weighted(self, weighting: Weighting) -> Batch:
        """The same with importance weights of this kind."""
        return self._replace(psi=self.psi.weighted(weighting))

    def columns(self, index: slice) -> Batch:
        """These episodes."""
        return Batch(self.rollout.columns(index), self.psi.columns(index), self.returns[:, index])


class EpisodicAgent(Agent):
    """Arguments that every agent of whole episodes has.

    Args:
        policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", or a subclass of SB3's `ActorCriticPolicy`.
        env: anything that `make_envs` takes; None to load or set one later.
        num_episodes: N, episodes of a batch.
        gamma: discount γ in [0, 1]; discounts are absolute, γ^t from an episode's start.
        baseline: what is subtracted from the return to go at time t: "leave_one_out" is the mean of the batch's other
            episodes, "time" that of the batch before, "linear" a regression on state and time fitted on the batch
            before, "none" nothing. All leave the gradient unbiased.
        horizon: steps after which an episode is cut, and the rest of it counts nothing; None leaves that to the environment.
        stats_window_size: episodes that logged returns are averaged over.
        tensorboard_log: folder for TensorBoard; None logs nowhere.
        policy_kwargs: of the policy class: `net_arch`, `activation_fn`, `features_extractor_class`, ...
        verbose: 1 prints a table of training values every `log_interval` iterations.
        seed: of the policy's weights, action noise and environments; None takes the system's entropy.
        device: "cpu", "cuda", "cuda:1"; "auto" is CUDA, if there is one, for convolutions, large networks or many environments.
        n_envs: environments side by side for an id or a callable; None takes one for every episode of a batch.
        backend: how ids are made: "auto", "native", "sync", "async", "envpool"; see `make_envs`.
        preset: "tuned" fills in what is known to work for an environment; explicit arguments win.
        normalize_observations: by running mean and standard deviation, over all environments.
        normalize_rewards: divide by the running standard deviation of the discounted return.
        clip_observations, clip_rewards: bounds after normalisation.
        carry_reward_returns: the running return of reward normalisation goes on over episode ends.
        memory: "s2pg" gives the policy a memory that it writes like an action; see `rlopt.policies.stateful`.
        memory_size: units of its recurrent kernel.
        compile: make native code of gradients and Hessian-vector products. It takes ten to fifteen seconds, and
            about as long again for products: some 14,000 gradients, or 1,000 products, have to save them.
    """

    layout: Layout = episodic_layout()

    step_size: IterationScheduleLike
    momentum: IterationScheduleLike = 1.0

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any = None,
        *,
        num_episodes: int = 10,
        gamma: float = 0.99,
        baseline: BaselineName = "leave_one_out",
        horizon: int | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: torch.device | str = "auto",
        n_envs: int | None = None,
        backend: Backend = "auto",
        preset: str | None = None,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        clip_observations: float = 10.0,
        clip_rewards: float = 10.0,
        carry_reward_returns: bool = False,
        memory: MemoryName | None = None,
        memory_size: int = 16,
        compile: bool = False,
    ):
        check_number("num_episodes", num_episodes, positive=True, whole=True)
        self.num_episodes = int(num_episodes)
        self.gamma = gamma
        self.baseline = baseline
        self.horizon = horizon
        self.compile = compile
        self._check_common()
        if n_envs is None:
            n_envs = num_episodes if env is None or can_be_copied(env) else 1
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

    def first_state(self, theta: Tensor) -> EpisodicState:
        """Nothing known but θ_0."""
        zero, none = torch.zeros_like(theta), torch.zeros((), device=theta.device)
        return EpisodicState(theta, theta.clone(), zero, self.baseline_function.init(), none, 0, 0, 0, 0)

    def check_rewards(self, num_objectives: int) -> None:
        """Raises ValueError unless the algorithm takes this many rewards a step."""
        if num_objectives > 1:
            refuse_several_rewards(num_objectives, type(self).__name__)

    # ------------------------------------------------------------------ the words of an algorithm box

    def batch(self, collector: Collector, theta: Tensor, state: Any, num_episodes: int, stream: str = "episodes") -> Batch:
        """`num_episodes` episodes at θ and their ψ, with the baseline that was learned before them."""
        rollout = collector.episodes(theta, num_episodes, self.horizon, stream)
        return self.batch_of(rollout, rollout.scalar_rewards(type(self).__name__), state)

    def batch_of(self, rollout: Rollout, rewards: Tensor, state: Any) -> Batch:
        """These episodes with these rewards [T, N] and the baseline that was learned before them."""
        returns = returns_to_go(rewards, rollout.mask, self.gamma)
        baseline = self.baseline_function.values(state.baseline, rollout, returns)
        return Batch(rollout, reward_to_go(rewards, rollout.mask, self.gamma, baseline, "doubly_robust"), returns)

    def gradient(self, theta: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """ĝ(θ) [d] on a batch, and what its two halves say about its noise."""
        size = batch.num_episodes
        if size < 2:
            gradient = self._policy_gradient(theta, batch)
            return gradient, {"grad_norm": gradient.norm()}
        sizes = size // 2, size - size // 2
        first = self._policy_gradient(theta, batch.columns(slice(0, sizes[0])))
        second = self._policy_gradient(theta, batch.columns(slice(sizes[0], None)))
        gradient = (sizes[0] * first + sizes[1] * second) / size
        return gradient, {
            "grad_norm": gradient.norm(),
            "grad_noise": half_batch_noise(first, second, sizes),
            "signal_to_noise": signal_to_noise(first, second, sizes),
        }

    def weighted_difference(self, gradient: Tensor, previous: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """g(θ_t) − ĝ(θ_{t−1}) [d], both on the episodes of θ_t, and the instruments of the weights back to θ_{t−1}."""
        weights, _ = self.weight_instruments(previous, batch.rollout)
        return gradient - self._policy_gradient(previous, batch), weights

    def advance(self, state: Any, theta: Tensor, direction: Tensor, gradient: Tensor, batch: Batch, sampled: int) -> Any:
        """The state at θ_{t+1}; refuses a step that is not finite and begins the direction anew instead.

        Args:
            state: that of iteration t.
            theta: θ_{t+1} [d].
            direction: d_t [d].
            gradient: g_t [d], the direction after a refusal.
            batch: on which the baseline learns.
            sampled: episodes of this iteration.
        """
        refused = not bool(torch.isfinite(direction.norm()) & torch.isfinite((theta - state.theta).norm()))
        if refused and bool(torch.isfinite(gradient).all()):
            theta, direction = state.theta.clone(), gradient
        return state._replace(
            theta=theta,
            previous=state.theta,
            direction=direction,
            baseline=self.baseline_function.fit(state.baseline, batch.rollout, batch.returns),
            travelled=state.travelled + (theta - state.theta).norm(),
            iteration=state.iteration + 1,
            num_trajectories=state.num_trajectories + int(sampled),
            num_refused=state.num_refused + refused,
        )

    def instruments(self, before: Any, after: Any, gradient: Tensor, corrected: Tensor | None, batch: Batch) -> Metrics:
        """What every agent of the family logs of an iteration.

        Args:
            before, after: the states around it.
            gradient: g_t [d].
            corrected: d_{t−1} + c_t [d], before g_t is mixed in; None in the first iteration.
            batch: sampled at θ_t.
        """
        metrics: dict[str, Tensor | float] = {
            "direction_norm": after.direction.norm(),
            "step_norm": (after.theta - before.theta).norm(),
            "distance": after.travelled,
            "momentum": self._momentum(before.iteration),
            "step_size": self._step_size(before.iteration),
            "n_trajectories": after.num_trajectories,
            "refused_steps": after.num_refused,
            "return_theta": batch.rollout.rewards.sum(0).mean(),
        }
        if corrected is not None:
            metrics["cosine"] = cosine(corrected, gradient)
        if self.memory is not None:  # scores of z' grow with 1/σ_z, and can take a normalised step for themselves
            metrics["memory_share"] = self._of_memory(after.direction).norm() / after.direction.norm()
        return metrics

    def weight_instruments(self, theta: Tensor, rollout: Rollout) -> tuple[dict[str, Tensor], Tensor]:
        """Effective sample size, maximum and mean of the episodes' weights at θ, and the return there by them.

        The return is self-normalised, Σ_t Σ_n ω_tn r_tn / Σ_n ω_tn: bounded, and worth as much as the sample size says.
        """
        with torch.no_grad():
            log_weights = log_ratio(self.log_policy, theta, rollout).cumsum(0)
        whole = log_weights[-1].exp().clamp_max(torch.finfo(log_weights.dtype).max)
        return {
            "weights_ess": effective_sample_size(log_weights[-1]),
            "weights_max": whole.max(),
            "weights_mean": (whole / len(whole)).sum(),
        }, (log_weights.softmax(1) * rollout.rewards).sum()

    # ------------------------------------------------------------------ parts

    @cached_property
    def log_policy(self) -> Policy:
        """(θ, observations, actions) -> log π_θ(a | s)."""
        return Functional(ActionLogProb(as_actor_critic(self.policy)))

    @property
    def estimators(self) -> Estimators:
        """The gradients and Hessian-vector products of `log_policy`."""
        return self._native_estimators if self.compile else Estimators(self.log_policy)

    @cached_property
    def _native_estimators(self) -> Estimators:
        if (reason := no_compiler(self.device)) is not None:
            raise ValueError(f"compile: {reason}; use compile=False")
        return Estimators(self.log_policy, native=self.device)

    def _of_memory(self, direction: Tensor) -> Tensor:
        """The entries of a direction [d] for what lies between the features and the next memory."""
        parts = (".encoder.", ".kernel.", ".memory_log_excess")
        named = self.log_policy.unravel(direction).items()  # type: ignore[attr-defined]
        pieces = [x.reshape(-1) for name, x in named if any(part in name for part in parts)]
        return torch.cat(pieces) if pieces else direction[:0]

    @property
    def baseline_function(self) -> Baseline:
        """The baseline by its name."""
        return BASELINES[self.baseline]

    def _policy_gradient(self, theta: Tensor, batch: Batch) -> Tensor:
        return self.estimators.gradient(theta, batch.rollout, batch.psi)

    def _step_size(self, iteration: int) -> float:
        """α_t."""
        value = self.step_scale * float(as_iteration_schedule("step_size", self.step_size)(iteration))
        check_number("step_size", value, positive=True)
        return value

    def _momentum(self, iteration: int) -> float:
        """η_t, at most 1; 1 in the first iteration, whose direction is its gradient."""
        value = float(as_iteration_schedule("momentum", self.momentum)(iteration))
        check_number("momentum", value, positive=True)
        return 1.0 if iteration == 0 else min(1.0, value)

    def _check_common(self) -> None:
        check_number("gamma", self.gamma, at_least=0, at_most=1)
        check_flag("compile", self.compile)
        check_choice("baseline", self.baseline, get_args(BaselineName))
        if self.horizon is not None:
            check_number("horizon", self.horizon, positive=True, whole=True)
        self._check_leave_one_out("num_episodes", self.num_episodes)
        self._step_size(0)
        check_number("momentum", float(as_iteration_schedule("momentum", self.momentum)(0)), positive=True)

    def _check_leave_one_out(self, name: str, size: int) -> None:
        if self.baseline == "leave_one_out" and size < 2:
            raise ValueError(
                f"{name}: expected at least 2 with baseline='leave_one_out' (one episode has no others), got {size}; "
                "use baseline='linear', 'time' or 'none'"
            )
