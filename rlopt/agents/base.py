"""The shell that users see: SB3's methods and attributes around `init` and `step`, which are the algorithm."""

from __future__ import annotations

import inspect
import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import configure_logger, safe_mean, set_random_seed
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor

from rlopt import archive, checkpoint
from rlopt.agents.callbacks import CallbackLike, StepLocals, as_callback, listening
from rlopt.arguments import check_choice, check_flag, check_number, state_inherited_arguments
from rlopt.blueprint import check_weights, with_shared_extractors
from rlopt.checkpoints import Checkpoints, NoCheckpoints
from rlopt.collector import CollectionStopped, Collector
from rlopt.descent import Moments
from rlopt.device import automatic_device, threads_for, usable_device
from rlopt.device_collector import make_collector
from rlopt.envs.base import Environments, episode_seed, fresh_seed
from rlopt.envs.facade import as_vec_env
from rlopt.envs.memory import MemoryActions, MemoryState
from rlopt.envs.memory_on_device import with_memory
from rlopt.envs.normalize import ObservationNormalizer, RewardNormalizer
from rlopt.envs.spaces import ActionDecoder, Array, ArrayTree, ObservationEncoder
from rlopt.envs.vector import Backend, can_be_copied, make_envs
from rlopt.file_errors import as_file_errors
from rlopt.flight_recorder import FlightRecorder, NoRecorder
from rlopt.logging import LAYOUT, Layout, Metrics, add_configuration, add_first_page, record_iteration, run_logger
from rlopt.policies import POLICY_ALIASES, Functional, bind_parameters, make_policy
from rlopt.policies.stateful import as_actor_critic, make_stateful_policy
from rlopt.prediction import Predictor
from rlopt.rollout import Observations
from rlopt.schedules import Schedule, ScheduleLike, as_schedule, scaled
from rlopt.statistics import EpisodeStatistics, by_objective
from rlopt.tensor_checks import check_moments


class Agent(ABC):
    """A policy, environments to train it in, and an algorithm: `init(θ)` and `step(state, collector)`.

    A subclass states its hyper-parameters in its constructor, sets them as attributes of the same names, and calls
    `_setup`. It implements `init` and `step` and overrides nothing else.

    Attributes:
        policy: an SB3 policy whose parameters are views of `state.theta`.
        state: all that the algorithm carries from one step to the next, a NamedTuple with `theta` [d].
        collector: None without an environment.
        num_timesteps: environment steps so far.
    """

    policy_aliases: ClassVar[dict[str, type[ActorCriticPolicy]]] = POLICY_ALIASES
    memories: ClassVar[dict[str, Callable[..., ActorCriticPolicy]]] = {"s2pg": make_stateful_policy}  # what makes the policy
    layout: Layout = LAYOUT  # TensorBoard's first page

    policy: ActorCriticPolicy
    state: Any
    learning_rate: ScheduleLike = 0.0  # of the optimiser, for algorithms that have one
    gamma: float
    step_scale = 1.0  # of all steps; halved whenever a flight recorder puts the agent back
    num_objectives: int | None = None  # K of a critic with a value for each

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        state_inherited_arguments(cls)

    @abstractmethod
    def init(self, theta: Tensor) -> Any:
        """The algorithm's state at the first parameters θ [d]."""

    @abstractmethod
    def step(self, state: Any, collector: Collector) -> tuple[Any, Metrics]:
        """One iteration: ask the collector for data, return the next state and scalars to log. Writes to neither."""

    def check_rewards(self, num_objectives: int) -> None:
        """Raises ValueError unless the algorithm takes this many rewards a step; all do where none says otherwise."""
        return

    # ------------------------------------------------------------------ construction

    def _setup(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        *,
        seed: int | None,
        device: torch.device | str,
        verbose: int,
        tensorboard_log: str | None,
        policy_kwargs: dict[str, Any] | None,
        stats_window_size: int,
        n_envs: int,
        backend: Backend,
        normalize_observations: bool,
        normalize_rewards: bool,
        clip_observations: float,
        clip_rewards: float,
        carry_reward_returns: bool,
        memory: str | None = None,
        memory_size: int | None = None,
    ) -> None:
        """Store what all agents have and, if there is an environment, build everything."""
        self.policy_class: Any = policy
        if not isinstance(policy_kwargs or {}, Mapping):
            raise ValueError(f"policy_kwargs: expected a dictionary, got {policy_kwargs!r}")
        self.policy_kwargs = dict(policy_kwargs or {})
        if seed is not None:
            check_number("seed", seed, at_least=0, at_most=2**32 - 1, whole=True)
        self.seed = seed
        self.device, self._device_is_free = usable_device(device), str(device) == "auto"
        self.verbose = verbose
        self.tensorboard_log = tensorboard_log
        for name, number in (("stats_window_size", stats_window_size), ("n_envs", n_envs)):
            check_number(name, number, positive=True, whole=True)
        self.stats_window_size = stats_window_size
        self.n_envs, self.backend = n_envs, backend
        flags = {
            "normalize_observations": normalize_observations,
            "normalize_rewards": normalize_rewards,
            "carry_reward_returns": carry_reward_returns,
        }
        for name, flag in flags.items():
            check_flag(name, flag)
        self.normalize_observations, self.normalize_rewards = normalize_observations, normalize_rewards
        for name, bound in (("clip_observations", clip_observations), ("clip_rewards", clip_rewards)):
            if bound != math.inf:  # which clips nothing
                check_number(name, bound, positive=True)
        self.clip_observations, self.clip_rewards = clip_observations, clip_rewards
        self.carry_reward_returns = carry_reward_returns
        if memory is not None:
            check_choice("memory", memory, tuple(self.memories))
            if memory_size is not None:
                check_number("memory_size", memory_size, positive=True, whole=True)
        self.memory, self.memory_size = memory, memory_size
        self.env: VecEnv | None = None
        self.environments: Environments | None = None
        self.collector: Collector | None = None
        self.statistics = EpisodeStatistics(n_envs, stats_window_size)
        self.start_time = time.time_ns()
        self._num_timesteps = self._total_timesteps = self._num_timesteps_at_start = 0
        self._custom_logger = False
        self._logger: Logger | None = None
        if env is not None:
            environments = self._accepted(make_envs(env, n_envs, backend, seed))
            self.n_envs = environments.num_envs
            self._setup_model(environments.encoder.raw_space, environments.decoder.raw_space)
            self._attach(environments)

    def _setup_model(self, observation_space: spaces.Space, action_space: spaces.Space) -> None:
        """Spaces, generators, policy and the first state; needs no environment."""
        self.observation_space, self.action_space = observation_space, action_space
        self.encoder, self.decoder = ObservationEncoder(observation_space), ActionDecoder(action_space)
        self.generators = {name: torch.Generator() for name in ("actions", "minibatches", "prediction")}
        self.set_random_seed(self.seed)
        self.policy = self._make_policy(self.encoder.space, self.decoder.space)
        if self._device_is_free:
            self.device = automatic_device(self.policy, self.n_envs)
        self.policy.to(self.device)
        self.observation_normalizer = (
            ObservationNormalizer(self.policy.observation_space, self.clip_observations)
            if self.normalize_observations
            else None
        )
        self.reward_normalizer: RewardNormalizer | None = None
        self._predictor = Predictor(
            self.policy, self.encoder, self.decoder, self.generators["prediction"], self.observation_normalizer
        )
        self.functional = Functional(as_actor_critic(self.policy))
        self._adopt(self.init(self.functional.init()))

    def _make_policy(self, observation_space: spaces.Space, action_space: spaces.Space) -> ActorCriticPolicy:
        """New networks for encoded spaces."""
        arguments = self.policy_class, observation_space, action_space, self.lr_schedule(1.0), self.policy_kwargs
        if self.memory is None:
            return make_policy(*arguments, self.num_objectives or 1)
        return self.memories[self.memory](*arguments, self.memory_size)

    def _attach(self, environments: Environments) -> None:
        """Train in these environments from now on; where they are refused, in those of before."""
        num_timesteps = self.num_timesteps
        reward_normalizer = None
        if self.normalize_rewards:
            reward_normalizer = self._make_reward_normalizer(environments.num_envs, environments.num_objectives)
            if self.reward_normalizer is not None:
                reward_normalizer.load_state(self.reward_normalizer.state())
        space = self.policy.action_space
        self.collector = make_collector(
            with_memory(environments, space.memory_size, self.policy.squash_output)
            if isinstance(space, MemoryActions)
            else environments,
            self.functional,
            self.generators["actions"],
            self.statistics,
            self.observation_normalizer,
            reward_normalizer,
            self.device,
        )
        self.environments, self.reward_normalizer = environments, reward_normalizer
        self.env = as_vec_env(environments, self._forget_observations)
        self.n_envs = environments.num_envs
        if self.verbose and environments.backend_choice is not None:
            print(f"{self.n_envs} x {environments.name}: {environments.backend_choice}")
        self.statistics.monitored = environments.monitored
        self.statistics.begin(self.n_envs)
        self.collector.num_timesteps = num_timesteps
        self.collector.entropy, self.collector.batches = self._entropy, self._batches
        # An agent that has trained does not begin with the episodes that it began with the first time.
        self.collector.seed = episode_seed(self._entropy, 0, num_timesteps) if num_timesteps else self._entropy
        vec_normalize = self.get_vec_normalize_env()
        if vec_normalize is not None and vec_normalize.norm_reward and vec_normalize.gamma != self.gamma:
            warnings.warn(
                f"env: VecNormalize discounts with gamma={vec_normalize.gamma}, the agent with gamma={self.gamma}", stacklevel=3
            )

    def _accepted(self, environments: Environments) -> Environments:
        """`_dressed`, of environments that pay what this algorithm takes, as far as they say so before they are stepped."""
        if environments.num_objectives_certain:
            self.check_rewards(environments.num_objectives or 1)
        return self._dressed(environments)

    def _dressed(self, environments: Environments) -> Environments:
        """The environments as this algorithm sees them."""
        return environments

    def _forget_observations(self) -> None:
        """Somebody else stepped the training environments: the next `learn` begins new episodes."""
        if self.collector is not None:
            self.collector.observations = None

    def _make_reward_normalizer(self, num_envs: int, num_objectives: int | None = None) -> RewardNormalizer:
        return RewardNormalizer(num_envs, self.gamma, self.clip_rewards, self.carry_reward_returns, num_objectives)

    def _adopt(self, state: Any) -> None:
        """Make `state` the agent's, the policy's parameters views of its θ."""
        self.state = state
        self._batches_of_state: dict[str, int] = dict(self._batches)  # an iteration may draw more before the next state
        bind_parameters(self.policy, state.theta)

    def _adopt_given(self, state: Any) -> None:
        """`_adopt` for a state from outside, whose moments may not be those of this agent's optimiser."""
        descent = getattr(self, "descent", None)
        if descent is not None:
            descent.begin(state.theta, state.moments, 0.0)
        self._adopt(state)

    @cached_property
    def actor_critic(self) -> Any:
        """The agent's own policy as a function to (distribution, values)."""
        return as_actor_critic(self.policy)

    # ------------------------------------------------------------------ learning

    def learn(
        self,
        total_timesteps: int,
        callback: CallbackLike = None,
        log_interval: int | None = 1,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        *,
        checkpoints: Checkpoints | None = None,
        recorder: FlightRecorder | None = None,
    ) -> Self:
        """Train for at least `total_timesteps` environment steps, in whole iterations.

        Args:
            total_timesteps: environment steps, added to those already taken if `reset_num_timesteps` is False.
            callback: SB3 callback, a list of them, or a function (locals, globals) -> bool; False stops.
            log_interval: iterations between log dumps; None logs nothing.
            tb_log_name: the run's name under `tensorboard_log`; the algorithm's by default.
            reset_num_timesteps: start counting and episodes anew, in a new run folder.
            progress_bar: show one (needs tqdm and rich).
            checkpoints: where to write files from which training goes on exactly, and whether to go on from one.
            recorder: undoes updates that went wrong, and halves the steps; without one the first of them ends the training.

        Raises:
            ValueError: no environment; a reward vector for an algorithm of one reward.
            EnvironmentFault: the environment returned something that cannot be trained on.
            FloatingPointError: an update gave parameters that are not finite, or all that a `recorder` undid did not help; the
                parameters before it are kept.
            OSError: a checkpoint cannot be written; those before it are whole.
        """
        if self.collector is None:
            raise ValueError("env: the agent has no environment; call set_env(env) first")
        check_number("total_timesteps", total_timesteps)
        if log_interval is not None:
            check_number("log_interval", log_interval, positive=True, whole=True)
        tb_log_name = tb_log_name or type(self).__name__
        called = as_callback(callback, progress_bar)
        run = NoCheckpoints() if checkpoints is None else checkpoints
        with closing(run):
            run.open()  # refused before anything is changed
            self._begin_learning(int(total_timesteps), reset_num_timesteps, tb_log_name, run)
            local = StepLocals(
                self,
                {
                    "self": self,
                    "env": self.env,
                    "callback": called,
                    "rollout_buffer": None,
                    "total_timesteps": self._total_timesteps,
                    "log_interval": log_interval,
                    "tb_log_name": tb_log_name,
                    "reset_num_timesteps": reset_num_timesteps,
                    "progress_bar": progress_bar,
                    "iteration": 0,
                },
            )
            if called is not None:
                called.init_callback(self)  # type: ignore[arg-type]
                called.on_training_start(local, globals())
            add_first_page(self.logger, self.layout)  # after callbacks, which may have charts of their own
            recorder = NoRecorder() if recorder is None else recorder
            recorder.training_begins()
            try:
                with listening(called, self.collector, local), threads_for(self.state.theta):
                    self._iterate(local, run, recorder)
            finally:
                recorder.training_ends(self)
            if called is not None:
                called.on_training_end()
        return self

    def _iterate(self, local: StepLocals, run: Checkpoints, recorder: FlightRecorder) -> None:
        """Iterations up to the last, or until a callback or a request to stop ends them."""
        collector, called, log_interval = self.collector, local["callback"], local["log_interval"]
        assert collector is not None
        iteration = run.begin(self, called)
        while self.num_timesteps < self._total_timesteps:
            collector.timers.reset()
            began = time.perf_counter()
            recorder.update_begins(self)
            try:
                state, metrics = self.step(self.state, collector)
            except CollectionStopped:
                self._forget_batches()
                break
            except BaseException:  # a fault, or an interrupt: what was drawn of this iteration is drawn again
                self._forget_batches()
                raise
            if recorder.accepts(self, state, metrics):
                self._adopt(state)
            iteration += 1
            local["iteration"] = iteration
            record_iteration(self.logger, metrics, collector.timers, time.perf_counter() - began)
            if log_interval is not None and iteration % log_interval == 0:
                self.dump_logs(iteration)
            if not run.iteration_ended(self, called, iteration):
                break
        run.training_ended(self, called, iteration)

    def _forget_batches(self) -> None:
        """Put the counts of batches back to those of the state: its iteration begins anew."""
        self._batches.clear()
        self._batches.update(self._batches_of_state)

    def _begin_learning(self, total_timesteps: int, reset_num_timesteps: bool, tb_log_name: str, run: Checkpoints) -> None:
        assert self.collector is not None
        self.start_time = time.time_ns()
        if reset_num_timesteps:
            self.num_timesteps = 0
            self.statistics.recent.clear()
            self.statistics.successes.clear()
        else:
            total_timesteps += self.num_timesteps
        self._total_timesteps = total_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        if reset_num_timesteps:
            self.collector.observations = None  # the next rollout begins new episodes
        if self.reward_normalizer is not None:
            self.reward_normalizer.gamma = self.gamma
        if not self._custom_logger:
            continued = run.log_folder(self.tensorboard_log)
            self._logger = run_logger(self.verbose, self.tensorboard_log, tb_log_name, reset_num_timesteps, continued)
            add_configuration(self.logger, self.hyperparameters())

    def dump_logs(self, iteration: int = 0) -> None:
        """Write the recorded values, with episode statistics and speed, at the current step count."""
        elapsed = max((time.time_ns() - self.start_time) / 1e9, 1e-9)
        if iteration > 0:
            self.logger.record("time/iterations", iteration, exclude="tensorboard")
        if self.ep_info_buffer:
            for key, mean in by_objective("rollout/ep_rew_mean", self.statistics.mean_return).items():
                self.logger.record(key, mean)
            self.logger.record("rollout/ep_len_mean", safe_mean([episode["l"] for episode in self.ep_info_buffer]))
        self.logger.record("time/fps", int((self.num_timesteps - self._num_timesteps_at_start) / elapsed))
        self.logger.record("time/time_elapsed", int(elapsed), exclude="tensorboard")
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        if self.ep_success_buffer:
            self.logger.record("rollout/success_rate", safe_mean(list(self.ep_success_buffer)))
        if self.statistics.num_dropped:
            self.logger.record("rollout/dropped_episodes", self.statistics.num_dropped)
        if self.step_scale < 1.0:
            self.logger.record("train/step_scale", self.step_scale)
        self.logger.dump(step=self.num_timesteps)

    # ------------------------------------------------------------------ prediction

    def predict(
        self,
        observation: Any,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The action for one observation, or for a batch of them, and what the policy remembers after it.

        The agent's own observation normalisation is applied, with statistics as they are. Sampling uses a generator
        of its own, so that evaluation never changes training.

        Args:
            observation: as the environment gives it, [*obs] or [n, *obs], nested as the space is. With memory, entries that
                are the critic's may be missing, and "observation" may stand alone if the actor reads nothing else.
            state: what the call before returned, of a policy with memory; None begins an episode. Others ignore it.
            episode_start: [n] bool, where memory begins anew.
            deterministic: take the most likely action, and the mean of the next memory.

        Returns:
            The action as the environment wants it, [*act] or [n, *act], and the state for the next call, a `MemoryState`
            of n rows; None without memory.

        Raises:
            ValueError: an observation or state of another shape, or the pair (observation, info) of a Gymnasium reset; an
                agent that never had an environment.
        """
        self._check_spaces_known()
        return self._predictor(observation, state, episode_start, deterministic)

    def initial_state(self, num: int = 1) -> MemoryState | None:
        """What `predict` takes as the state at the start of `num` episodes; None without memory.

        Raises:
            ValueError: an agent that never had an environment, and was not loaded from a file either.
        """
        self._check_spaces_known()
        return self._predictor.initial_state(num)

    def _check_spaces_known(self) -> None:
        if not hasattr(self, "policy"):
            raise ValueError("agent: it has no environment yet, so that its spaces are not known; call set_env(env) first")

    def as_tensors(self, observations: ArrayTree) -> Observations:
        """Encoded observations as tensors on the agent's device."""
        if isinstance(observations, dict):
            return {key: torch.as_tensor(value, device=self.device) for key, value in observations.items()}
        return torch.as_tensor(observations, device=self.device)

    # ------------------------------------------------------------------ environments, seeds, logger

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """Train in another environment from now on.

        Args:
            env: whatever `make_envs` takes; an id or a callable is made `n_envs` times.
            force_reset: begin new episodes at the next `learn`, even if it goes on counting.

        Raises:
            ValueError: spaces that differ from the agent's, or another number of rewards, where the environment says it
                before it is stepped (`reward_space`); where not, `learn` does.
        """
        copied = can_be_copied(env)  # an environment object brings its own number
        made = make_envs(env, self.n_envs if copied else 1, self.backend if copied else "auto", self.seed)
        environments = self._accepted(made)
        if not hasattr(self, "policy"):
            self.n_envs = environments.num_envs
            self._setup_model(environments.encoder.raw_space, environments.decoder.raw_space)
        for field, mine, theirs in (
            ("observation space", self.observation_space, environments.encoder.raw_space),
            ("action space", self.action_space, environments.decoder.raw_space),
        ):
            if mine != theirs:
                raise ValueError(f"env: its {field} is {theirs}, the agent's is {mine}")
        previous, same = self.collector, self.environments is environments
        self._attach(environments)
        if not force_reset and previous is not None and same:
            assert self.collector is not None
            self.collector.envs = previous.envs  # what wraps them knows which are to be reset
            self.collector.observations, self.collector.reset_pending = previous.observations, previous.reset_pending

    def get_env(self) -> VecEnv | None:
        """The training environments as an SB3 `VecEnv`."""
        return getattr(self, "env", None)

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The user's own `VecNormalize`, if the environment has one; an agent's own normalisation is not one."""
        env = self.get_env()
        return unwrap_vec_normalize(env) if env is not None else None

    def set_random_seed(self, seed: int | None = None) -> None:
        """Seed Python, NumPy, torch and the action space, the agent's generators, and the environments' next reset.

        None seeds none of the former; the agent's generators and environments then start from the system's entropy.
        """
        if seed is not None:
            set_random_seed(seed, using_cuda=self.device.type == "cuda")
            self.action_space.seed(seed)
        entropy = fresh_seed() if seed is None else seed
        for index, generator in enumerate(self.generators.values()):
            generator.manual_seed(int(np.random.SeedSequence((entropy, index)).generate_state(1, np.uint64)[0] >> 1))
        self._entropy = entropy
        self._batches: dict[str, int] = {}  # the collector's own, kept for the next one
        self._batches_of_state = {}
        if self.collector is not None:
            self.collector.seed = self.collector.entropy = entropy
            self.collector.batches = self._batches

    def set_logger(self, logger: Logger) -> None:
        """Log to this from now on, whatever `verbose` and `tensorboard_log` say."""
        self._logger = logger
        self._custom_logger = True

    @property
    def logger(self) -> Logger:
        if self._logger is None:
            self._logger = configure_logger(self.verbose, None, "", True)
        return self._logger

    # ------------------------------------------------------------------ parameters and files

    def get_parameters(self) -> dict[str, dict[str, Tensor]]:
        """Copies of the policy's state dict and of the optimiser's state, by name."""
        weights = {key: value.detach().clone() for key, value in self.policy.state_dict().items()}
        moments: Moments = getattr(self.state, "moments", {})
        return {"policy": weights, "policy.optimizer": {key: value.clone() for key, value in moments.items()}}

    def set_parameters(
        self,
        load_path_or_dict: str | Path | dict[str, dict[str, Tensor]],
        exact_match: bool = True,
        device: torch.device | str = "auto",
    ) -> None:
        """Take weights (and optimiser state) from `get_parameters` or from a saved agent.

        Args:
            load_path_or_dict: a file of `save`, or a dictionary with "policy" and "policy.optimizer".
            exact_match: require all names of `get_parameters`.
            device: accepted for SB3's sake; the agent stays on its device.

        Raises:
            FileNotFoundError: no such file.
            ValueError: unknown or, with `exact_match`, missing names; a damaged file, or one of other networks.
            RuntimeError: tensors of other shapes in a dictionary.
        """
        del device
        source = load_path_or_dict
        if not isinstance(source, dict):
            self._set_stored_parameters(source, exact_match)
            return
        given = source
        known = {"policy", "policy.optimizer"}
        if unknown := given.keys() - known:
            raise ValueError(f"load_path_or_dict: expected the keys {sorted(known)}, got also {sorted(unknown)}")
        if exact_match and (missing := known - given.keys()):
            raise ValueError(f"load_path_or_dict: with exact_match=True the keys {sorted(missing)} are missing")
        if "policy" in given:
            weights = {key.removeprefix("_orig_mod."): value for key, value in given["policy"].items()}
            if exact_match and (names := weights.keys() ^ self.policy.state_dict().keys()):
                raise ValueError(f"load_path_or_dict: 'policy' differs in these names: {sorted(names)}")
            self.policy.load_state_dict(weights, strict=exact_match)
            kept = {"moments": self.state.moments} if hasattr(self.state, "moments") else {}
            # Directions and what was tracked belong to the parameters that they were made for; counters go on.
            counters = {name: value for name, value in self.state._asdict().items() if name == "num_updates"}
            self._adopt(self.init(self.state.theta)._replace(**kept, **counters))
        if "policy.optimizer" in given and hasattr(self.state, "moments"):
            moments = {key: torch.as_tensor(value).to(self.device) for key, value in given["policy.optimizer"].items()}
            self._adopt_given(self.state._replace(moments=moments))

    def _set_stored_parameters(self, path: Any, exact_match: bool) -> None:
        """`set_parameters` from a file, whose tensors are checked as those of `load` are.

        Raises:
            FileNotFoundError, ValueError: no such file, a damaged one, or one of other networks.
        """
        contents = archive.read(path)
        contents.check_finite(checkpoint.FINITE)
        with as_file_errors("the file's tensors do not fit the agent"):
            parameters = contents.parameters()
            if exact_match:
                check_weights(self.policy, parameters["policy"])
            check_moments(parameters["policy.optimizer"], self.state.theta)
            parameters["policy"] = with_shared_extractors(self.policy, parameters["policy"])
            self.set_parameters(parameters, exact_match)

    def hyperparameters(self) -> dict[str, Any]:
        """Every argument of the constructor but the policy, the environment and what belongs to this machine."""
        left_out = {"self", "policy", "env", "preset", "_init_setup_model"}
        names: dict[str, None] = {}
        for cls in type(self).__mro__:  # a subclass that passes **kwargs on has its parent's arguments too
            parameters = inspect.signature(vars(cls)["__init__"]).parameters if "__init__" in vars(cls) else {}
            names |= dict.fromkeys(name for name in parameters if name not in left_out)
            if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def save(self, path: Any, exclude: Any = None, include: Any = None) -> None:
        """Write one zip of safetensors and JSON: weights, optimiser, normalisers, spaces, hyper-parameters, generators.

        The file appears whole or not at all. `.zip` is appended to a name without a suffix.

        Args:
            path: a path or a binary file object.
            exclude, include: accepted for SB3's sake; the content of the file is fixed.

        Raises:
            ValueError: a hyper-parameter that cannot be stored as data, such as a function for a schedule.
        """
        del exclude, include
        checkpoint.save(self, path)

    @classmethod
    def load(
        cls,
        path: Any,
        env: Any = None,
        device: torch.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> Self:
        """The agent that a file holds. Nothing in the file is run, whoever wrote it.

        Args:
            path: a path, with or without `.zip`, or a binary file object.
            env: to train in; not needed for prediction.
            device: where to put the networks.
            custom_objects: constructor arguments that replace the file's; unknown keys are ignored, as in SB3.
            print_system_info: print the versions that wrote the file.
            force_reset: accepted for SB3's sake; a loaded agent begins new episodes.
            **kwargs: constructor arguments that replace the file's.

        Raises:
            ValueError: not such a file, a damaged one, one of another algorithm, other spaces, an unknown argument.
        """
        del force_reset
        contents = archive.read(path)
        if print_system_info:
            print("\n".join(f"{name}: {version}" for name, version in contents.data["versions"].items()))
        return checkpoint.restore(cls, contents, env, device, custom_objects or {}, kwargs)

    def export(self, path: str | Path, deterministic: bool = True) -> Path:
        """Write the policy's step as one ONNX file, which needs neither Python nor this library; see `rlopt.export`.

        Inputs are observations as the environment gives them, outputs actions as it wants them: the agent's own
        normalisation, with its statistics as they are, is part of the graph; a user's `VecNormalize` is not. A policy with
        memory takes and gives it explicitly, zeros at an episode's start. Where onnxruntime is installed, the graph is
        first compared with `predict`. The file appears whole or not at all.

        Args:
            path: where to; `.onnx` is appended to a name without a suffix.
            deterministic: take the most likely action, and the mean of the next memory; otherwise the graph has an input
                `noise`, and the metadata say how to draw it.

        Returns:
            The file's path.

        Raises:
            ValueError: no such path, or an agent that never had an environment.
            ImportError: a package is missing; pip install 'rlopt[onnx]'.
            RuntimeError: the policy cannot be expressed in ONNX, or the graph's outputs differ from those of `predict`.
        """
        from rlopt.export import export_onnx  # which imports this module

        return export_onnx(self, path, deterministic)

    # ------------------------------------------------------------------ attributes that SB3 scripts read

    @property
    def num_timesteps(self) -> int:
        """Environment steps so far, reset rows not counted."""
        return self.collector.num_timesteps if self.collector is not None else self._num_timesteps

    @num_timesteps.setter
    def num_timesteps(self, value: int) -> None:
        self._num_timesteps = value
        if self.collector is not None:
            self.collector.num_timesteps = value

    @property
    def _current_progress_remaining(self) -> float:
        """1 at the start of training and 0 at its end, never outside."""
        if self._total_timesteps <= 0:
            return 1.0
        return min(max(1.0 - self.num_timesteps / self._total_timesteps, 0.0), 1.0)

    @property
    def _n_updates(self) -> int:
        return int(getattr(self.state, "num_updates", 0))

    @property
    def lr_schedule(self) -> Schedule:
        """`learning_rate`, as it is now, as a function of the remaining progress."""
        return scaled(as_schedule("learning_rate", self.learning_rate), self.step_scale)

    @property
    def ep_info_buffer(self) -> Any:
        return self.statistics.recent

    @property
    def ep_success_buffer(self) -> Any:
        return self.statistics.successes

    @property
    def _last_obs(self) -> Any:
        return self.collector.observations if self.collector is not None else None

    @property
    def _last_episode_starts(self) -> Array:
        return self.statistics.lengths == 0
