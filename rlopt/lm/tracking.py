"""The log of a run: TensorBoard, a CSV file, and sampled completions as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from stable_baselines3.common.logger import Logger, configure

from rlopt.lm.arguments import REBELConfig
from rlopt.log_files import continued_logger, rewind_logs
from rlopt.logging import Layout, add_configuration, add_first_page, tensorboard_writer

LAYOUT: Layout = {
    "1 Is it learning?": {
        "reward": ["Multiline", ["reward", "eval/reward"]],
        "spread of the reward within groups": ["Multiline", ["reward_std", "frac_reward_zero_std"]],
        "length": ["Multiline", ["completions/mean_length", "completions/max_length"]],
    },
    "2 Is the regression solved?": {
        "explained": ["Multiline", ["explained", "sign_align"]],
        "loss": ["Multiline", ["loss/first", "loss/last"]],
        "gradient norm before clipping": ["Multiline", ["grad_norm"]],
    },
    "3 How far does it move?": {
        "KL to the last iteration and to the reference": ["Multiline", ["approx_kl", "kl_ref"]],
        "ratio": ["Multiline", ["ratio/mean", "ratio/var"]],
        "entropy": ["Multiline", ["entropy"]],
    },
    "4 Where does the time go?": {
        "seconds an iteration": ["Multiline", ["time/sampling", "time/scoring", "time/regressing"]],
    },
}
# Completions of one Text entry.
SHOWN = 8


def open_log(args: REBELConfig, continued: Mapping[str, Any] | None = None) -> Logger:
    """SB3's logger, writing to `args.logging_dir`; its first page of charts and the configuration are laid out.

    Args:
        args: the settings.
        continued: of a run that goes on, how far the files were; what came after is dropped. None begins anew.
    """
    folder = Path(args.logging_dir or f"{args.output_dir}/logs")
    folder.mkdir(parents=True, exist_ok=True)
    if continued is None:
        logger = configure(str(folder), ["csv", "tensorboard"])
    else:
        rewind_logs(folder, continued)
        logger = continued_logger(folder, [])
    add_first_page(logger, LAYOUT)
    add_configuration(logger, {field.name: getattr(args, field.name) for field in fields(args)})
    return logger


def write(logger: Logger, metrics: Mapping[str, float], step: int) -> None:
    """One line of the log; `step` is the iteration."""
    for name, value in metrics.items():
        logger.record(name, value)
    logger.dump(step)


def write_completions(logger: Logger, prompts: Sequence[Any], completions: Sequence[Any], scores: Any, step: int) -> None:
    """The first of an iteration's completions as a table in the Text tab."""
    writer = tensorboard_writer(logger)
    if writer is None:
        return
    rows = [
        f"| {_cell(prompt)} | {_cell(completion)} | {float(score):.4g} |"
        for prompt, completion, score, _ in zip(prompts, completions, scores, range(SHOWN))
    ]
    writer.add_text("completions", "\n".join(["| prompt | completion | score |", "|---|---|---|", *rows]), step)


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ⏎ ")
