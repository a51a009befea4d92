"""The settings of a training run, resolved in the order preset < configuration file < flags."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import tyro

from rlopt.agents import ALGORITHMS, Agent
from rlopt.arguments import did_you_mean
from rlopt.cli.configuration import YamlMapping, checked_config, read_config
from rlopt.cli.hyperparameters import hyperparameter_class, hyperparameter_types
from rlopt.device import usable_device
from rlopt.envs.base import OnError
from rlopt.envs.vector import Backend, find_spec
from rlopt.presets import preset_values
from rlopt.run_folder import resumed_run_folder

DESCRIPTION = """Train an agent, and keep everything about it in one folder.

Defaults are those of the chosen algorithm, preset, environment and configuration file: a flag wins over --config,
which wins over --preset. `--algo NAME --env ID --help` shows what a run would use.

Examples:
    rlopt-train --algo ppo --env CartPole-v1
    rlopt-train --env HalfCheetah-v5 --total-timesteps 1000000 --seed 3 --eval-freq 50000
    rlopt-train --env Pendulum-v1 --learning-rate linear:1e-3 --policy-kwargs "{net_arch: [64, 64], activation_fn: ReLU}"
    rlopt-train --config runs/ppo/CartPole-v1/1/config.yaml --seed 1 --json
    rlopt-train --resume runs/ppo/CartPole-v1/1
    rlopt-train --env Acrobot-v1 --num-seeds 16
    rlopt-train --env deep-sea-treasure-v0 --utility preferences --reference 0 -50 --eval-freq 20000"""


@dataclass(frozen=True)
class RunSettings:
    """What every algorithm's run has."""

    algo: str = "ppo"
    """Algorithm; it decides which hyper-parameters there are."""
    env: str = "CartPole-v1"
    """Environment id of Gymnasium, "module:Id-v0" included. "ALE/..." gets DeepMind's preprocessing."""
    env_kwargs: YamlMapping = field(default_factory=dict)
    """Passed to the environment, for example "{gravity: 5.0}"."""
    frame_stack: int = 1
    """How many of the last observations the policy sees at once; zeros stand for those before an episode."""
    show_state: bool = False
    """Show the critic the simulator's state, if the environment tells it (POPGym's do), and the actor of a policy with memory
    only what it sees otherwise. A policy without memory reads the state too."""
    preset: str = "tuned"
    """Where defaults come from: "sb3", "cleanrl", or "tuned", which is "sb3" for environments it does not know."""
    config: Path | None = None
    """YAML file of settings, by the names of these flags; a run's config.yaml is one."""
    total_timesteps: int = 100_000
    """Environment steps to train for, in all environments together."""
    num_envs: int = 1
    """Environments side by side."""
    backend: Backend = "auto"
    """How they are stepped: "sync" here, "async" in processes, "native" as one object, "threads", "torch" (GPUs), "envpool"."""
    on_env_error: OnError = "raise"
    """What becomes of an environment that breaks: "raise" ends the run, "restart" makes it anew and drops its episode."""
    env_timeout: float | None = None
    """Seconds after which an environment in a worker process (--backend async) is taken for hung."""
    seed: int = 0
    """Of everything random in the run."""
    num_seeds: int = 1
    """Runs to make, with seeds SEED, SEED + 1, …: shared among the cores, and on each all at once where that can be."""
    device: str = "auto"
    """Where the networks are: "cpu", "cuda", "cuda:1"; "auto" is CUDA, if there is one, for CNNs, large networks, many envs."""
    policy: str = "auto"
    """MlpPolicy, CnnPolicy or MultiInputPolicy; "auto" chooses by the observation space. RecurrentPPO has MlpLstmPolicy too."""
    eval_freq: int = 0
    """Environment steps between evaluations, which keep the best model; 0 evaluates only at the end."""
    eval_episodes: int = 20
    """Episodes of every evaluation, and of each preference, with a seed of their own."""
    eval_stochastic: bool = False
    """Evaluations sample actions, as in training: some utilities are best served by a mixture."""
    reference: tuple[float, ...] = ()
    """Of several objectives: a number for each, worse than all that one cares for. Evaluations then keep an archive of what
    was not dominated, and tell its hypervolume above this point."""
    save_freq: int = 100_000
    """Environment steps between checkpoints, from which `--resume` goes on exactly; 0 makes them only at the end, or when the
    run is stopped by Ctrl-C or SIGTERM."""
    keep_last: int = 3
    """Checkpoints to keep, the newest."""
    keep_best: int = 1
    """Checkpoints to keep besides, those with the highest training return."""
    max_rollbacks: int = 5
    """How often an update that went wrong (parameters or a loss that are not finite, an exploding KL) is undone and steps are
    halved, before that ends the training."""
    resume: Path | None = None
    """Go on with the run in this folder, from its newest checkpoint, with its settings. A flag wins over them."""
    run_dir: Path = Path("runs")
    """Where run folders are made: RUN_DIR/ALGO/ENV/1, 2, …"""
    run_name: str | None = None
    """The folder's name in place of a number; it must not exist."""
    verbose: int = 0
    """1 prints a table of training values every iteration."""
    progress: bool = field(default_factory=lambda: sys.stderr.isatty())
    """Show a progress bar, on standard error."""
    video: bool = False
    """Record an episode of the trained policy for TensorBoard's Images tab."""
    json: bool = False
    """The last line of standard output is one JSON object with the result; the summary goes to standard error."""


# Not part of what a run computes, so not in its config.yaml.
ABOUT_OUTPUT = {"config", "resume", "num_seeds", "run_dir", "run_name", "verbose", "progress", "video", "json"}


@dataclass(frozen=True)
class Settings:
    """A run's settings and the algorithm's hyper-parameters, a dataclass made for it."""

    run: Annotated[RunSettings, tyro.conf.arg(name="")]
    hyperparameters: Any

    @property
    def algorithm(self) -> type[Agent]:
        return ALGORITHMS[self.run.algo]

    def constructor_arguments(self) -> dict[str, Any]:
        """The hyper-parameters by name, as plain data."""
        return _plain(
            {item.name: getattr(self.hyperparameters, item.name) for item in dataclasses.fields(self.hyperparameters)}
        )

    def configuration(self) -> dict[str, Any]:
        """All that determines the run, as plain data that `--config` reads."""
        run = {name: value for name, value in vars(self.run).items() if name not in ABOUT_OUTPUT}
        return _plain(run) | self.constructor_arguments()


def parse_settings(argv: list[str], program: str = "rlopt-train") -> Settings:
    """The settings that command-line arguments stand for.

    Raises:
        ValueError: an unknown algorithm, preset or environment; a bad configuration file; a number out of range.
        SystemExit: flags that do not exist or have the wrong type, after a message; or --help.
    """
    flags = _first_look(argv, program)
    if "resume" in flags:
        if "config" in flags:
            raise ValueError("config: --resume reads the run's own settings; give one of the two")
        flags["config"] = str(resumed_run_folder(Path(flags["resume"])).config)
    config = read_config(Path(flags["config"])) if "config" in flags else {}
    chosen = {name: str(flags.get(name, config.get(name, default))) for name, default in _DECISIVE.items()}
    algorithm = known_algorithm(chosen["algo"])
    run_types = {
        name: kind
        for name, kind in get_type_hints(RunSettings, include_extras=True).items()
        if name not in ("config", "resume")
    }
    types = run_types | hyperparameter_types(algorithm, set(run_types))
    config = checked_config(config, types, flags.get("config", ""))
    if "env" not in flags and ":" in str(config.get("env", "")):
        raise ValueError(f"env: {flags['config']} names a module to import; if you trust it, say so with --env {config['env']}")
    if chosen["backend"] != "envpool":  # which has ids of its own
        find_spec(chosen["env"])
    defaults = preset_values(chosen["algo"], chosen["preset"], chosen["env"])
    if "n_envs" in defaults:
        defaults["num_envs"] = defaults.pop("n_envs")
    defaults |= config
    hyperparameters = hyperparameter_class(algorithm, set(run_types), defaults)
    run = RunSettings(**{name: value for name, value in defaults.items() if name in run_types})
    kind = dataclasses.make_dataclass(
        "Settings",
        [("hyperparameters", Annotated[hyperparameters, tyro.conf.arg(name=chosen["algo"])])],
        bases=(Settings,),
        frozen=True,
    )
    settings: Settings = tyro.cli(
        kind,
        args=argv,
        prog=program,
        description=DESCRIPTION,
        default=kind(run, hyperparameters()),
        config=(tyro.conf.OmitArgPrefixes,),
    )
    _check_ranges(settings.run)
    return settings


def known_algorithm(name: str) -> type[Agent]:
    """The algorithm of that name.

    Raises:
        ValueError: there is none; the nearest is named.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"algo: expected one of {', '.join(ALGORITHMS)}, got {name!r}{did_you_mean(name, ALGORITHMS)}")
    return ALGORITHMS[name]


# These decide which flags there are, and their defaults.
_DECISIVE = {"algo": "ppo", "env": "CartPole-v1", "preset": "tuned", "backend": "auto"}


def _first_look(argv: list[str], program: str) -> dict[str, str]:
    """The flags that decide about others, where they are given."""
    parser = argparse.ArgumentParser(program, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for name in (*_DECISIVE, "config", "resume"):
        parser.add_argument(f"--{name}")
    return vars(parser.parse_known_args(argv)[0])


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Sequences as lists, which is what YAML reads."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _check_ranges(run: RunSettings) -> None:
    at_least = {"total_timesteps": 1, "frame_stack": 1, "num_envs": 1, "eval_freq": 0, "eval_episodes": 1, "num_seeds": 1}
    at_least |= {"save_freq": 0, "keep_last": 1, "keep_best": 0, "max_rollbacks": 0}
    for name, least in at_least.items():
        value = getattr(run, name)
        if value < least:
            raise ValueError(f"{name}: expected a whole number of at least {least}, got {value}")
    if run.num_seeds > 1 and run.resume is not None:
        raise ValueError("num_seeds: --resume goes on with one run; every seed has a folder, which can be resumed by itself")
    highest = 2**31 - run.num_seeds
    if not 0 <= run.seed <= highest:
        raise ValueError(f"seed: expected a whole number from 0 to {highest}, got {run.seed}")
    usable_device(run.device)
    if run.run_name is not None and (not run.run_name or Path(run.run_name).name != run.run_name):
        raise ValueError(f"run_name: expected the name of a folder without separators, got {run.run_name!r}")
