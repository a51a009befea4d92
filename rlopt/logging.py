"""What goes into the logger each iteration, and into TensorBoard beyond SB3's scalars.

That is a first page of charts, hyper-parameters with the final result, the configuration as text, an episode as pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import HParam, Logger, TensorBoardOutputFormat, configure
from stable_baselines3.common.utils import configure_logger, get_latest_run_id
from torch import Tensor

from rlopt.collector import Timers

Metrics = Mapping[str, Tensor | float]

# The charts one looks at first, on one page: title -> (kind, keys). TensorBoard takes keys for regular expressions, which
# are to match the beginning of a name: "rollout/ep_rew_mean" shows the mean return of every objective too.
Layout = dict[str, dict[str, list[Any]]]
LEARNING: Layout = {
    "1 Is it learning?": {
        "return": ["Multiline", ["rollout/ep_rew_mean", "eval/mean_reward"]],
        "episode length": ["Multiline", ["rollout/ep_len_mean", "eval/mean_ep_length"]],
    },
}
TIME: Layout = {
    "4 Where does the time go?": {
        "environment steps a second": ["Multiline", ["time/fps"]],
        "seconds an iteration": ["Multiline", ["time/acting", "time/stepping", "time/updating"]],
    },
}
LAYOUT: Layout = {
    **LEARNING,
    "2 Is the update sound?": {
        "approximate KL": ["Multiline", ["train/approx_kl"]],
        "clip fraction": ["Multiline", ["train/clip_fraction"]],
        "explained variance": ["Multiline", ["train/explained_variance"]],
        "gradient norm before clipping": ["Multiline", ["train/grad_norm"]],
    },
    "3 Losses": {
        "policy loss": ["Multiline", ["train/policy_gradient_loss"]],
        "value loss": ["Multiline", ["train/value_loss"]],
        "minus entropy": ["Multiline", ["train/entropy_loss"]],
        "standard deviation of actions": ["Multiline", ["train/std"]],
    },
    **TIME,
}
# Of a utility of several expected returns.
UTILITY: dict[str, list[Any]] = {
    "utility of the expected returns": ["Multiline", ["train/utility"]],
    "expected returns": ["Multiline", [r"train/objective_\d+"]],
    "weights of the objectives": ["Multiline", [r"train/slope_\d+"]],
}
BY_UTILITY_LAYOUT: Layout = {**LAYOUT, "1 Is it learning?": {**LEARNING["1 Is it learning?"], **UTILITY}}
# Of evaluations that keep a Pareto archive, of one policy or of one that is conditioned on preferences.
FRONT: dict[str, list[Any]] = {
    "hypervolume of the archive, and of the last evaluation": ["Multiline", ["pareto/hypervolume"]],
    "expected utility over preferences": ["Multiline", ["pareto/expected_utility", "pareto/preference_utility"]],
}
EVALUATED: dict[str, list[Any]] = {"return in evaluations": ["Multiline", [r"pareto/return_\d+"]]}
STATEFUL_LAYOUT: Layout = {
    **LEARNING,
    "2 Is the update sound?": {
        "approximate KL of action and memory": ["Multiline", ["train/approx_kl", "train/approx_kl_memory"]],
        "clip fraction of action and memory": ["Multiline", ["train/clip_fraction", "train/clip_fraction_memory"]],
        "explained variance": ["Multiline", ["train/explained_variance"]],
        "gradient norm before clipping": ["Multiline", ["train/grad_norm"]],
    },
    "3 Losses": {
        **LAYOUT["3 Losses"],
        "standard deviation of the memory": ["Multiline", ["train/memory_std"]],
    },
    **TIME,
}
REBEL_LAYOUT: Layout = {
    **LEARNING,
    "2 Is the regression solved?": {
        "share of it that is explained": ["Multiline", ["train/explained"]],
        "approximate KL": ["Multiline", ["train/approx_kl"]],
        "η": ["Multiline", ["train/eta"]],
        "gradient norm before clipping": ["Multiline", ["train/grad_norm"]],
    },
    "3 Losses": {
        "regression": ["Multiline", ["train/regression_loss"]],
        "minus entropy": ["Multiline", ["train/entropy_loss"]],
        "standard deviation of actions": ["Multiline", ["train/std"]],
    },
    **TIME,
}
# For agents of whole episodes, whose update is one step along one direction.
EPISODIC_LAYOUT: Layout = {
    "1 Is it learning?": {
        **LEARNING["1 Is it learning?"],
        "return at θ and at the look-ahead": ["Multiline", ["train/return_theta", "train/return_lookahead"]],
        **UTILITY,
    },
    "2 Can the direction be trusted?": {
        "signal to noise of the fresh gradient": ["Multiline", ["train/signal_to_noise"]],
        "cosine of momentum and fresh gradient": ["Multiline", ["train/cosine"]],
        "norms": ["Multiline", ["train/grad_norm", "train/direction_norm", "train/correction_norm"]],
        "Hessian-vector product": ["Multiline", ["train/hvp_norm", "train/hvp_ratio"]],
        "importance weights: effective sample size": ["Multiline", ["train/weights_ess"]],
        "importance weights: maximum and mean": ["Multiline", ["train/weights_max", "train/weights_mean"]],
    },
    "3 How does it move?": {
        "step length": ["Multiline", ["train/step_norm", "train/lookahead_distance"]],
        "distance travelled": ["Multiline", ["train/distance"]],
        "step size and momentum": ["Multiline", ["train/step_size", "train/momentum"]],
        "share of steps that were cut": ["Multiline", ["train/truncated_fraction", "train/correction_bounded"]],
        "steps refused": ["Multiline", ["train/refused_steps"]],
    },
    **TIME,
}
# Instruments that not all of these agents have.
WEIGHTS = ("train/weights_ess", "train/weights_max", "train/weights_mean")
HESSIAN = ("train/hvp_norm", "train/hvp_ratio")
LOOKAHEAD = ("train/return_lookahead", "train/lookahead_distance")
CORRECTION = ("train/correction_norm",)
BOUND = ("train/correction_bounded",)
TRUNCATION = ("train/truncated_fraction",)
COSINE = ("train/cosine",)
MULTI_OBJECTIVE = tuple(key for _, keys in UTILITY.values() for key in keys)


def episodic_layout(*own: tuple[str, ...], without: tuple[str, ...] = ()) -> Layout:
    """The charts for an agent of whole episodes with these instruments beside those that all have; none stays empty.

    Args:
        own: instruments that not all have.
        without: instruments of all others that it has not.
    """
    optional = (WEIGHTS, HESSIAN, LOOKAHEAD, CORRECTION, BOUND, TRUNCATION, MULTI_OBJECTIVE)
    missing = {key for keys in optional for key in keys} - {key for keys in own for key in keys} | set(without)
    pages = {}
    for page, charts in EPISODIC_LAYOUT.items():
        kept = {title: [kind, [key for key in keys if key not in missing]] for title, (kind, keys) in charts.items()}
        pages[page] = {title: chart for title, chart in kept.items() if chart[1]}
    return pages


def with_front(layout: Layout, conditioned: bool) -> Layout:
    """These charts, and on their first page those of a Pareto archive; `conditioned` on preferences is the policy, or not."""
    first = next(iter(layout))
    return {**layout, first: {**layout[first], **FRONT, **({} if conditioned else EVALUATED)}}


def record_iteration(logger: Logger, metrics: Metrics, timers: Timers, seconds: float) -> None:
    """Hand an iteration's scalars and times to the logger, in one transfer from the device.

    Args:
        logger: SB3's.
        metrics: by name without "train/".
        timers: seconds spent acting and stepping.
        seconds: of the whole iteration; what acting and stepping leave is updating.
    """
    tensors = {key: value for key, value in metrics.items() if isinstance(value, Tensor)}
    numbers = torch.stack(list(tensors.values())).tolist() if tensors else []
    for key, value in (dict(metrics) | dict(zip(tensors, numbers, strict=True))).items():
        logger.record(f"train/{key}", value, exclude="tensorboard" if key == "n_updates" else None)
    logger.record_mean("time/acting", timers.acting)
    logger.record_mean("time/stepping", timers.stepping)
    logger.record_mean("time/updating", seconds - timers.acting - timers.stepping)


def run_logger(verbose: int, tensorboard_log: str | None, name: str, fresh: bool, continued: Path | None = None) -> Logger:
    """SB3's logger of one run: tables for `verbose`, TensorBoard's files in TENSORBOARD_LOG/NAME_1, 2, …

    Args:
        verbose: 1 for tables on standard output.
        tensorboard_log: where folders of runs are made; None for no files.
        name: of the folder, before its number.
        fresh: a new folder, which no other run gets, even one that starts at the same time; else the newest.
        continued: the folder to go on with, in place of these.
    """
    if tensorboard_log is None:
        return configure_logger(verbose, None, "", True)
    if continued is None:
        continued = _new_folder(Path(tensorboard_log), name) if fresh else _newest_folder(tensorboard_log, name)
    return configure(str(continued), ["stdout", "tensorboard"] if verbose >= 1 else ["tensorboard"])


def _newest_folder(tensorboard_log: str, name: str) -> Path:
    return Path(tensorboard_log) / f"{name}_{get_latest_run_id(tensorboard_log, name)}"


def _new_folder(parent: Path, name: str) -> Path:
    number = get_latest_run_id(str(parent), name) + 1
    while True:
        folder = parent / f"{name}_{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:  # another run was faster
            number += 1


def tensorboard_writer(logger: Logger) -> Any | None:
    """The logger's SummaryWriter, or None if it does not write to TensorBoard."""
    for output in logger.output_formats:
        if isinstance(output, TensorBoardOutputFormat):
            return output.writer
    return None


def add_first_page(logger: Logger, layout: Layout) -> None:
    """Lay out the Custom Scalars tab of a run."""
    writer = tensorboard_writer(logger)
    if writer is not None:
        writer.add_custom_scalars(layout)


def add_configuration(logger: Logger, configuration: dict[str, Any]) -> None:
    """The resolved configuration as a table in the Text tab."""
    writer = tensorboard_writer(logger)
    if writer is not None:
        rows = "\n".join(f"| {key} | `{value}` |" for key, value in configuration.items())
        writer.add_text("configuration", f"| setting | value |\n|---|---|\n{rows}")


def add_video(logger: Logger, gif: bytes, size: tuple[int, int], step: int) -> None:
    """An animation in the Images tab.

    Args:
        logger: SB3's.
        gif: an animated GIF.
        size: its height and width.
        step: environment steps so far.
    """
    writer = tensorboard_writer(logger)
    if writer is not None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        # Written as an image: torch's own add_video needs moviepy 1.
        image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=gif)
        writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag="policy", image=image)]), step)


def add_hyperparameters(logger: Logger, hyperparameters: dict[str, Any], results: dict[str, float], step: int) -> None:
    """One line of the HParams tab: the hyper-parameters beside the final result."""
    plain = {
        key: value if isinstance(value, int | float | str) and not isinstance(value, bool) else str(value)
        for key, value in hyperparameters.items()
    }
    for key, value in results.items():
        logger.record(key, value)
    logger.record("hparams", HParam(plain, dict.fromkeys(results, 0.0)), exclude=("stdout", "log", "json", "csv"))
    logger.dump(step)
