"""`rlopt-train`: one run, from flags to a folder that holds everything about it."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback

from rlopt.agents import Agent
from rlopt.agents.weighing import PREFERENCES
from rlopt.checkpoints import Checkpoints
from rlopt.cli.configuration import with_classes
from rlopt.cli.environments import (
    EVALUATION_SEED,
    Task,
    known_front,
    paid_rewards,
    preference_lattice,
    suitable_policy,
)
from rlopt.cli.errors import BAD_INPUT, FAILED, INTERRUPTED, bad_input_exits
from rlopt.cli.progress import TrainingProgress
from rlopt.cli.settings import RunSettings, Settings, parse_settings
from rlopt.cli.signals import stopping_on_signals
from rlopt.envs.base import EnvironmentFault, Environments
from rlopt.envs.facade import as_vec_env
from rlopt.envs.preferences import Preferences
from rlopt.evaluation import Evaluation, evaluate
from rlopt.flight_recorder import FlightRecorder
from rlopt.indicators import hypervolume
from rlopt.log_files import continued_logger, rewind_table, tables_on
from rlopt.logging import add_configuration, add_hyperparameters, add_video
from rlopt.pareto_callback import ParetoCallback
from rlopt.run_folder import EpisodeLog, RunFolder, create_run_folder, resumed_run_folder
from rlopt.statistics import as_text, by_objective
from rlopt.video import frames_per_second, gif_bytes, record_episode

PROGRAM = "rlopt-train"
# Evaluation environments side by side: the policy is evaluated for all at once.
MAX_EVALUATION_ENVS = 8
MAX_VIDEO_FRAMES = 500
BEFORE_TRAINING = ("env: ", "checkpoints: ")  # which the first steps show, before anything was learned
# Errors of these arguments show in training only: an environment that pays other rewards, a return beyond f's domain.
SHOWN_BY_TRAINING = (*BEFORE_TRAINING, "utility: ", "reference: ")


@dataclass(frozen=True)
class Run:
    """Everything a run needs before it begins."""

    settings: Settings
    task: Task
    agent: Agent
    folder: RunFolder
    evaluation_envs: Environments
    callbacks: list[BaseCallback]
    checkpoints: Checkpoints
    begun: int  # environment steps that the run had when it was stopped; 0 of a new one

    @property
    def pareto(self) -> ParetoCallback | None:
        """What keeps the archive, where there are several objectives and a reference point."""
        return next((callback for callback in self.callbacks if isinstance(callback, ParetoCallback)), None)

    def close(self) -> None:
        """Release the log files and the environments."""
        self.agent.logger.close()
        for envs in (self.agent.environments, self.evaluation_envs):
            if envs is not None:
                envs.close()


def train_main(argv: Sequence[str] | None = None) -> None:
    """Train an agent as the command line says.

    Raises:
        SystemExit: 2 for bad input, 1 for training that failed, 130 for Ctrl-C, 143 for SIGTERM, each after a message.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with bad_input_exits(PROGRAM):
        settings = parse_settings(arguments, PROGRAM)
    if settings.run.num_seeds > 1:
        from rlopt.cli.many_seeds import train_many  # which imports this module

        train_many(settings, arguments)
        return
    with bad_input_exits(PROGRAM):
        run = prepare(settings)
    with contextlib.closing(run):
        _train(run)


def _train(run: Run) -> None:
    """The run itself; whatever ends it early, the agent is kept."""
    human = sys.stderr if run.settings.run.json else sys.stdout
    print(_headline(run), file=human, flush=True)
    try:
        with stopping_on_signals(run.checkpoints.request_stop, PROGRAM) as signals:
            seconds = learn(run)
    except KeyboardInterrupt:  # the second one
        run.agent.save(run.folder.model)
        print(f"{PROGRAM}: interrupted after {run.agent.num_timesteps} steps; saved {run.folder.model}", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except (EnvironmentFault, FloatingPointError) as error:
        run.agent.save(run.folder.model)
        print(f"{PROGRAM}: training failed: {error}; saved {run.folder.model}", file=sys.stderr)
        raise SystemExit(FAILED) from None
    except OSError as error:  # a full disk: nothing more can be saved, and what was is whole
        print(f"{PROGRAM}: training failed: {error}", file=sys.stderr)
        raise SystemExit(FAILED) from None
    except ValueError as error:
        if not str(error).startswith(SHOWN_BY_TRAINING):
            raise
        saved = ""
        if not str(error).startswith(BEFORE_TRAINING):
            run.agent.save(run.folder.model)
            saved = f"; saved {run.folder.model}"
        print(f"{PROGRAM}: error: {error}{saved}", file=sys.stderr)
        raise SystemExit(BAD_INPUT) from None
    if signals:
        run.agent.save(run.folder.model)
        resume = f"{program_path('rlopt-train')} --resume {shlex.quote(str(run.folder.path))}"
        print(f"{PROGRAM}: stopped after {run.agent.num_timesteps} steps; to go on: {resume}", file=sys.stderr)
        raise SystemExit(128 + signals[0])
    finish(run, seconds, human)


def prepare(settings: Settings) -> Run:
    """Environments, agent, folder, logger and callbacks.

    Raises:
        ValueError: settings that cannot work. No folder is made then.
        ImportError: the environment needs a package that is not installed.
    """
    chosen = settings.run
    arguments = settings.constructor_arguments()
    preferences = arguments.get("utility") == PREFERENCES
    task = Task(chosen.env, chosen.backend, chosen.env_kwargs, chosen.frame_stack, preferences, chosen.show_state)
    envs = task.training(chosen.num_envs, chosen.seed)
    if chosen.on_env_error != "raise" or chosen.env_timeout is not None:
        envs.handle_faults(chosen.on_env_error, chosen.env_timeout)
    evaluating = task.evaluation(min(chosen.eval_episodes, MAX_EVALUATION_ENVS), chosen.seed + EVALUATION_SEED)
    _check_reference(chosen, evaluating)
    policy = suitable_policy(envs.encoder.space, arguments.get("memory")) if chosen.policy == "auto" else chosen.policy
    policy_kwargs = with_classes(arguments.pop("policy_kwargs"))
    agent = settings.algorithm(policy, envs, policy_kwargs=policy_kwargs, seed=chosen.seed, device=chosen.device, **arguments)  # type: ignore[call-arg]
    if arguments.get("utility") is not None:
        agent.check_rewards(paid_rewards(evaluating))  # environments that do not say it have to be stepped
    if chosen.resume is None:
        folder = create_run_folder(chosen.run_dir, chosen.algo, chosen.env, chosen.run_name)
    else:
        folder = resumed_run_folder(chosen.resume)
    checkpoints = Checkpoints(
        folder.checkpoints, chosen.save_freq, chosen.keep_last, chosen.keep_best, chosen.resume is not None
    )
    try:
        checkpoints.check_make(agent)  # before anything of a run that is there is touched
    except ValueError:
        checkpoints.close()
        raise
    begun = checkpoints.rewind_logs(folder.path)
    rewind_table(folder.episodes, "env_steps", begun)
    configuration = settings.configuration() | {"policy": policy}
    folder.write_description(configuration)
    agent.set_logger(continued_logger(folder.path, tables_on(sys.stdout) if chosen.verbose else []))
    add_configuration(agent.logger, configuration | {"backend_choice": envs.backend_choice})
    callbacks = _callbacks(chosen, task, folder, evaluating)
    return Run(settings, task, agent, folder, evaluating, callbacks, checkpoints, begun)


def learn(run: Run) -> float:
    """Train, and return the seconds it took, evaluations under way included."""
    chosen = run.settings.run
    began = time.perf_counter()
    with EpisodeLog(run.folder.episodes, run.agent), TrainingProgress(run.agent, chosen.total_timesteps, chosen.progress):
        recorder = FlightRecorder(run.folder.faults, max_rollbacks=chosen.max_rollbacks)
        run.agent.learn(chosen.total_timesteps, run.callbacks or None, checkpoints=run.checkpoints, recorder=recorder)
    return time.perf_counter() - began


def finish(run: Run, seconds: float, human: TextIO) -> None:
    """Save, evaluate, record and report."""
    result = concluded(run, seconds)
    print(_summary(run, result), file=human, flush=True)
    if run.settings.run.json:
        print(json.dumps(result, allow_nan=False), flush=True)


def concluded(run: Run, seconds: float) -> dict[str, Any]:
    """Save, evaluate and record; the result, as the JSON object has it."""
    chosen, agent = run.settings.run, run.agent
    agent.save(run.folder.model)
    episodes, seed = chosen.eval_episodes, chosen.seed + EVALUATION_SEED
    evaluation = evaluate(agent, run.evaluation_envs, episodes, not chosen.eval_stochastic, seed)
    result = _result(run, evaluation, seconds)
    outcomes: dict[str, float] = {}
    for key in ("mean_return", "eval_mean_return", "eval_std_return", "steps_per_second", "hypervolume"):
        if result.get(key) is not None:
            outcomes |= by_objective(f"result/{key}", result[key])
    tuned = {"algo": chosen.algo, "env": chosen.env, "seed": chosen.seed, "num_envs": chosen.num_envs}
    add_hyperparameters(agent.logger, tuned | run.settings.constructor_arguments(), outcomes, agent.num_timesteps)
    if chosen.video:
        _add_video(run)
    return result


def _check_reference(chosen: RunSettings, envs: Environments) -> None:
    """Raises ValueError unless there is a reference point where evaluations need one, a number for each reward."""
    if chosen.reference:
        paid = paid_rewards(envs)
        if paid == 1:
            raise ValueError(
                f"reference: {chosen.env} pays one reward, whose evaluations need no reference point; leave it out"
            )
        hypervolume(np.empty((0, paid)), chosen.reference)  # which says what is wrong with it, or that moocore is missing
    elif chosen.eval_freq and (envs.num_objectives or 1) > 1:
        raise ValueError(
            f"eval_freq: {chosen.env} pays {envs.num_objectives} rewards, of which no model is best; give --reference, "
            f"{envs.num_objectives} numbers worse than all that you care for, to keep an archive"
        )


def _callbacks(chosen: RunSettings, task: Task, folder: RunFolder, envs: Environments) -> list[BaseCallback]:
    """SB3's callbacks count calls, one for a step of all environments."""
    callbacks: list[BaseCallback] = []
    if chosen.reference:
        callbacks.append(_pareto_callback(chosen, task, folder, envs))
    elif chosen.eval_freq:
        vec_env = as_vec_env(envs)
        vec_env.seed(chosen.seed + EVALUATION_SEED)
        callbacks.append(
            EvalCallback(
                vec_env,
                n_eval_episodes=chosen.eval_episodes,
                eval_freq=max(chosen.eval_freq // chosen.num_envs, 1),
                log_path=str(folder.path),
                best_model_save_path=str(folder.path),
                deterministic=not chosen.eval_stochastic,
                verbose=0,
            )
        )
    return callbacks


def _pareto_callback(chosen: RunSettings, task: Task, folder: RunFolder, envs: Environments) -> ParetoCallback:
    """An archive in the run folder; with preferences, of what the policy reaches for each of a lattice of them."""
    if task.preferences:
        assert isinstance(envs, Preferences)
        inner = envs.envs  # evaluations follow one another, so that all preferences may share the environments
        which: dict[str, Any] = {
            "make_eval_envs": lambda weights: task.seen(inner, weights),
            "preferences": preference_lattice(envs.size),
        }
    else:
        which = {"eval_env": envs}
    return ParetoCallback(
        **which,
        reference=chosen.reference,
        eval_freq=chosen.eval_freq or sys.maxsize,  # once, at the end
        n_eval_episodes=chosen.eval_episodes,
        front=known_front(envs),
        folder=folder.path,
        deterministic=not chosen.eval_stochastic,
        seed=chosen.seed + EVALUATION_SEED,
    )


def _add_video(run: Run) -> None:
    """An episode in the Images tab; an environment without pictures costs only a message."""
    chosen = run.settings.run
    envs = run.task.evaluation(1, chosen.seed)
    with contextlib.closing(envs):
        try:
            seed = chosen.seed + EVALUATION_SEED
            frames = record_episode(run.agent, envs, not chosen.eval_stochastic, seed, max_frames=MAX_VIDEO_FRAMES)
        except ValueError as error:
            print(f"{PROGRAM}: {error}", file=sys.stderr)
            return
        gif, size = gif_bytes(frames, frames_per_second(envs))
        add_video(run.agent.logger, gif, size, run.agent.num_timesteps)


def _result(run: Run, evaluation: Evaluation, seconds: float) -> dict[str, Any]:
    """The JSON object; None where there is nothing to tell."""
    chosen, agent = run.settings.run, run.agent
    mean_return = np.asarray(agent.statistics.mean_return).tolist() if agent.ep_info_buffer else None
    return {
        "algo": chosen.algo,
        "env": chosen.env,
        "seed": chosen.seed,
        "env_steps": agent.num_timesteps,
        "episodes": agent.statistics.num_episodes,
        "mean_return": mean_return,
        "eval_mean_return": np.asarray(evaluation.mean).tolist(),
        "eval_std_return": np.asarray(evaluation.std).tolist(),
        "seconds": round(seconds, 3),
        "steps_per_second": round((agent.num_timesteps - run.begun) / seconds, 1),
        "run_dir": str(run.folder.path),
        **({} if run.pareto is None else _front(run.pareto)),
    }


def _front(pareto: ParetoCallback) -> dict[str, Any]:
    """What a run of several objectives has besides: its archive, and the point from which the hypervolume counts."""
    points, reference = pareto.archive.points, pareto.reference
    return {"hypervolume": hypervolume(points, reference), "archive_size": len(points), "reference": reference.tolist()}


def _headline(run: Run) -> str:
    chosen, agent = run.settings.run, run.agent
    envs = run.agent.environments
    how = f" ({envs.backend_choice})" if envs is not None and envs.backend_choice else ""
    where = f"{agent.n_envs} environment{'s' if agent.n_envs > 1 else ''}{how}, networks on {agent.device}"
    begun = f" from {run.begun:,} on" if run.begun else ""
    task = f"{type(agent).__name__} in {chosen.env}: {chosen.total_timesteps:,} steps{begun}"
    return f"{task}, {where}, seed {chosen.seed} → {run.folder.path}"


def _summary(run: Run, result: dict[str, Any]) -> str:
    """What a person wants to know at the end, and what to do next."""
    window, episodes = len(run.agent.ep_info_buffer), run.settings.run.eval_episodes
    training = f"{as_text(result['mean_return'])} (last {window} of {result['episodes']})" if window else "no episode ended"
    folder = shlex.quote(str(run.folder.path))
    mode = "stochastic" if run.settings.run.eval_stochastic else "deterministic"
    drawn = ", preferences drawn" if run.task.preferences else ""
    lines = {
        "training return": training,
        "evaluation": f"{as_text(result['eval_mean_return'])} ± {as_text(result['eval_std_return'])} "
        f"({episodes} {mode} episodes{drawn})",
        **({} if run.pareto is None else _front_lines(result)),
        "speed": f"{result['steps_per_second']:,.0f} steps/s, {result['seconds']:.1f} s",
        "run folder": str(run.folder.path),
        "look": f"{program_path('tensorboard')} --logdir {folder}",
        **({} if run.pareto is None else {"front": f"{program_path('rlopt-plot')} {folder} --front --out front.png"}),
        "play": f"{program_path('rlopt-evaluate')} {folder} --video {shlex.quote(str(run.folder.path / 'video.mp4'))}",
    }
    return "\n".join(f"{name:<16} {text}" for name, text in lines.items())


def _front_lines(result: dict[str, Any]) -> dict[str, str]:
    size = result["archive_size"]
    return {
        "archive": f"{size} point{'' if size == 1 else 's'} that no other dominates",
        "hypervolume": f"{result['hypervolume']:.6g} above {as_text(result['reference'], 'g')}",
    }


def program_path(name: str) -> str:
    """How to call a program of this Python environment from here, whether or not the environment is activated."""
    if shutil.which(name) is not None:
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
