"""Evaluation under way for several objectives: an archive of what was reached, its indicators, a picture of the front."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Figure
from torch import Tensor

from rlopt.agents.base import Agent
from rlopt.arguments import check_number
from rlopt.envs.base import Environments, next_episodes, restore_next_episodes
from rlopt.envs.vector import make_envs
from rlopt.evaluation import VectorEvaluation, evaluate_objectives
from rlopt.indicators import (
    Floats,
    check_points,
    check_vector,
    check_weights,
    expected_utility,
    hypervolume,
    igd_plus,
    maximum_utility_loss,
    simplex_lattice,
    sparsity,
)
from rlopt.logging import tensorboard_writer, with_front
from rlopt.pareto import FILE_NAME, ParetoArchive
from rlopt.plotting_front import PointSet, front_figure

NO_PICTURES = ("stdout", "log", "json", "csv")
# Weights of the expected utility, where there are no preferences: at most this many, on a lattice that is no finer than this.
LARGEST_LATTICE, FINEST_LATTICE = 1000, 100


class ParetoCallback(BaseCallback):
    """Evaluates an agent in environments that pay K rewards, and keeps the mean returns that are not dominated.

    An evaluation takes place at the first step after `eval_freq` others at which the parameters have changed, and at the end of
    training. It has environments and random numbers of its own, so that training goes on as if nothing had happened.

    Logged, each time: `pareto/hypervolume` of the archive with `pareto/reference` beside it, `hypervolume_last` of this
    evaluation's points alone, `size`, `expected_utility` of the archive, its `sparsity` from two points on; with a known
    front `igd_plus` and `maximum_utility_loss`; `return_0`, `return_1`, … of a single policy, or `preference_utility`,
    mean_w ⟨w, J_w⟩, of one that is conditioned on preferences; in TensorBoard a picture, `front`. Archived points were
    selected for being lucky, which flatters all but `…_last`, `return_k` and `preference_utility`: see
    `ParetoArchive.reevaluate`.

    Args:
        eval_env: whatever `make_envs` takes, with the agent's spaces; not the training environments.
        reference: [K], of the hypervolume: worse than all that one cares for.
        eval_freq: environment steps from one evaluation to the next, whatever the number of environments.
        n_eval_episodes: of each evaluation, and of each preference.
        make_eval_envs: instead of `eval_env`, for a policy that is conditioned on preferences: environments for one weight
            vector [K], called once for each; `lambda w: Preferences(make_envs(env), weights=w)`.
        preferences: [W, K], numbers of at least 0, for which `make_eval_envs` is called and which `expected_utility` is the
            mean over; by default a lattice of at most 1000, and no more than 101 for two objectives.
        front: [F, K], the true front, if it is known.
        archive: to go on with; an empty one by default.
        objectives: K names, for the picture.
        folder: `pareto.zip` is written there after each evaluation; it appears whole or not at all.
        keep_parameters: keep θ of each member. Statistics of `normalize_observations` are no part of θ.
        deterministic: take the most likely actions; see `evaluate_objectives`.
        gamma: discount of the returns.
        seed: of the environments before the first evaluation.
        verbose: SB3's.

    Attributes:
        archive: the `ParetoArchive`.
        last_points: [W, K] or [1, K], of the last evaluation; [0, K] before it.

    Raises:
        ValueError: both or neither of `eval_env` and `make_eval_envs`, the latter without preferences, arrays of other shapes.
        ImportError: moocore is missing; pip install 'rlopt[mo]'.
    """

    def __init__(
        self,
        eval_env: Any = None,
        *,
        reference: ArrayLike,
        eval_freq: int = 10_000,
        n_eval_episodes: int = 20,
        make_eval_envs: Callable[[Floats], Any] | None = None,
        preferences: ArrayLike | None = None,
        front: ArrayLike | None = None,
        archive: ParetoArchive | None = None,
        objectives: Sequence[str] | None = None,
        folder: str | Path | None = None,
        keep_parameters: bool = True,
        deterministic: bool = True,
        gamma: float = 1.0,
        seed: int = 0,
        verbose: int = 0,
    ):
        super().__init__(verbose)
        check_number("eval_freq", eval_freq, positive=True, whole=True)
        check_number("n_eval_episodes", n_eval_episodes, positive=True, whole=True)
        if (eval_env is None) == (make_eval_envs is None):
            raise ValueError("eval_env: expected either environments or make_eval_envs, got both or neither")
        if make_eval_envs is not None and preferences is None:
            raise ValueError("preferences: expected the weights [W, K] to evaluate, as make_eval_envs is given, got None")
        size = np.size(reference)
        self.reference = check_vector("reference", reference, size)
        hypervolume(np.empty((0, size)), self.reference)  # if moocore is missing, say so now
        self.weights = default_weights(size) if preferences is None else check_weights("preferences", preferences, size)
        self.front = None if front is None else check_points("front", front, size)
        self.archive = ParetoArchive(size, self.reference, objectives=objectives) if archive is None else archive
        if self.archive.num_objectives != size:
            raise ValueError(f"archive: expected {size} objectives, as the reference has, got {self.archive.num_objectives}")
        self.eval_env, self.make_eval_envs = eval_env, make_eval_envs
        self.eval_freq, self.n_eval_episodes = eval_freq, n_eval_episodes
        self.deterministic, self.gamma = deterministic, gamma
        self.folder = None if folder is None else Path(folder)
        self.keep_parameters = keep_parameters
        self.last_points = np.empty((0, size))
        self._seed: int | None = seed
        self._envs: list[Environments] = []
        self._evaluated: Tensor | None = None
        self._evaluated_at = 0

    def _init_callback(self) -> None:
        if not isinstance(self.model, Agent):
            raise ValueError(f"callback: ParetoCallback evaluates agents of rlopt, got {type(self.model).__name__}")
        if not self._envs:
            make = self.make_eval_envs
            given = [self.eval_env] if make is None else [make(weights) for weights in self.weights]
            self._envs = [make_envs(envs) for envs in given]
        self.model.layout = with_front(self.model.layout, self.make_eval_envs is not None)

    def _on_training_start(self) -> None:
        self._evaluated_at = self.num_timesteps

    def _on_step(self) -> bool:
        if self.num_timesteps - self._evaluated_at >= self.eval_freq and self._has_changed():
            self._evaluate()
        return True

    def _on_training_end(self) -> None:
        if self._has_changed():
            self._evaluate()

    def state_dict(self) -> dict[str, Any]:
        """What further evaluations and the archive depend on; see `rlopt.agents.callback_state`."""
        data, tensors = self.archive.contents()
        environments = [next_episodes(envs) for envs in self._envs]
        counters = {"n_calls": self.n_calls, "num_timesteps": self.num_timesteps, "evaluated_at": self._evaluated_at}
        changed = {"seed": self._seed, "has_changed": self._has_changed(), "last_points": self.last_points}
        return {**counters, **changed, "archive": data, "tensors": tensors, "environments": environments}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`, after training has begun."""
        self.n_calls, self.num_timesteps, self._evaluated_at = (state[k] for k in ("n_calls", "num_timesteps", "evaluated_at"))
        tensors = {name: torch.as_tensor(value) for name, value in state["tensors"].items()}
        self.archive.members = ParetoArchive.from_contents(state["archive"], tensors, "the checkpoint").members
        self._seed, self.last_points = state["seed"], np.asarray(state["last_points"])
        self._evaluated = None if state["has_changed"] else self._agent.state.theta
        for envs, snapshot in zip(self._envs, state["environments"], strict=True):
            restore_next_episodes(envs, snapshot)

    @property
    def _agent(self) -> Agent:
        assert isinstance(self.model, Agent)
        return self.model

    def _has_changed(self) -> bool:
        """Whether the agent has other parameters than at the last evaluation: a second look at θ would only add luck."""
        return self._agent.state.theta is not self._evaluated

    def _evaluate(self) -> None:
        agent = self._agent
        self._evaluated, self._evaluated_at = agent.state.theta, self.num_timesteps
        evaluations = [
            evaluate_objectives(agent, envs, self.n_eval_episodes, self.deterministic, self._seed, self.gamma)
            for envs in self._envs
        ]
        self._seed = None  # the environments go on to further episodes
        paid = evaluations[0].returns.shape[1]
        if paid != len(self.reference):
            raise ValueError(f"reference: the evaluation environments pay {paid} rewards, it has {len(self.reference)} numbers")
        theta = agent.state.theta if self.keep_parameters else None
        for index, evaluation in enumerate(evaluations):
            self.archive.add(evaluation.mean, theta, self._description(index, evaluation))
        self.last_points = np.stack([evaluation.mean for evaluation in evaluations])
        self._record()
        if self.folder is not None:
            self.archive.save(self.folder / FILE_NAME)
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

    def _description(self, index: int, evaluation: VectorEvaluation) -> dict[str, Any]:
        errors = evaluation.standard_error
        known = {
            "num_timesteps": self.num_timesteps,
            "episodes": len(evaluation.returns),
            "standard_error": errors.tolist() if np.isfinite(errors).all() else None,
            "deterministic": self.deterministic,
            "gamma": self.gamma,
        }
        return known if self.make_eval_envs is None else known | {"preference": self.weights[index].tolist()}

    def _record(self) -> None:
        points, last = self.archive.points, self.last_points
        values = {
            "hypervolume": hypervolume(points, self.reference),
            "hypervolume_last": hypervolume(last, self.reference),
            "size": len(points),
            "expected_utility": expected_utility(points, self.weights),
        }
        if len(points) > 1:
            values["sparsity"] = sparsity(points)
        if self.front is not None:
            values["igd_plus"] = igd_plus(points, self.front)
            values["maximum_utility_loss"] = maximum_utility_loss(points, self.front, self.weights)
        if self.make_eval_envs is None:
            values |= {f"return_{k}": float(value) for k, value in enumerate(last[0])}
        else:
            values["preference_utility"] = float((self.weights * last).sum(1).mean())
        for key, value in values.items():
            self.logger.record(f"pareto/{key}", value)
        self.logger.record("pareto/reference", f"({', '.join(f'{number:g}' for number in self.reference)})")
        if tensorboard_writer(self.logger) is not None and len(self.reference) > 1:
            sets = [PointSet("archive", points), PointSet("last evaluation", last)]
            figure = front_figure(sets, self.front, self.archive.objectives, f"{self.num_timesteps:,} steps")
            self.logger.record("pareto/front", Figure(figure, close=True), exclude=NO_PICTURES)


def default_weights(num_objectives: int) -> Floats:
    """[W, K], the finest lattice over the simplex with at most 1000 weights, and steps of at least 1/100."""
    sizes = {number: comb(number + num_objectives - 1, num_objectives - 1) for number in range(1, FINEST_LATTICE + 1)}
    fitting = [number for number, size in sizes.items() if size <= LARGEST_LATTICE]
    return simplex_lattice(num_objectives, max(fitting, default=1))
