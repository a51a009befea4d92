"""Checkpoints of a trainer: one file of safetensors and JSON that can give an error, but can never run code.

    parameters/…    what is trained: all of the model, or its adapter; value_head/… for PPO
    optimizer/…     the optimiser's tensors, by number of the parameter
    generators/…    sampling and order
    run/…           Python's, NumPy's and torch's global generators, what transformers' callbacks are handed
    logs            how long the log files were
    state           iteration, updates, tokens, place in the data

What is never trained is not in the file, a frozen reference model among it: it comes from the model that the trainer is made
with, which has to be the first one again. A digest of it is in the file, so that another one is refused. A reference that
follows is in the file, under reference/….
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import torch
import transformers
from stable_baselines3.common.logger import Logger
from torch import Tensor

from rlopt import archive
from rlopt.checkpoint import versions
from rlopt.checkpoints import newest_readable
from rlopt.file_errors import as_file_errors, shortened
from rlopt.lm.models import frozen, trained
from rlopt.log_files import logged
from rlopt.nested import join, split
from rlopt.run_state import global_generators, restore_global_generators
from rlopt.tensor_checks import set_generator

if TYPE_CHECKING:
    from rlopt.lm.trainer import REBELTrainer

KIND = "rlopt.lm.REBELTrainer"
FINITE = ("parameters", "value_head", "optimizer", "reference")
FIELDS = {"kind": str, "state": dict, "settings": dict, "versions": dict}


def checkpoint_path(output_dir: str, iteration: int) -> Path:
    """Where the checkpoint of an iteration is."""
    return Path(output_dir) / f"checkpoint-{iteration}.zip"


def existing(output_dir: str) -> list[Path]:
    """The checkpoints in a folder, from the fewest iterations to the most."""
    found = {
        int(match[1]): path
        for path in Path(output_dir).glob("checkpoint-*.zip")
        if (match := re.fullmatch(r"checkpoint-(\d+)\.zip", path.name))
    }
    return [path for _, path in sorted(found.items())]


def newest(output_dir: str) -> Path | None:
    """The checkpoint with most iterations that can be read; others are put aside with a warning. None without any."""
    return newest_readable(existing(output_dir), lambda path: archive.read(path, FIELDS))


def save(trainer: REBELTrainer, path: Path, logger: Logger | None = None) -> None:
    """Write all that the next iteration depends on; the file appears whole or not at all."""
    run = {"generators": global_generators(trainer.device), "events": trainer.events.snapshot(), "unsolved": trainer._unsolved}
    document, run_tensors = split(run, "run")
    data = {
        "format": archive.FORMAT,
        "kind": KIND,
        "state": asdict(trainer.state),
        "settings": {field.name: _plain(getattr(trainer.args, field.name)) for field in fields(trainer.args)},
        "versions": versions() | {"transformers": transformers.__version__, "peft": peft.__version__},
        "left_out": trainer.left_out,
        "run": document,
        "logs": {} if logger is None else logged(logger),
    }
    groups = {
        "parameters": trained(trainer.model),
        "value_head": {} if trainer.value_head is None else trainer.value_head.state_dict(),
        "optimizer": _optimiser_tensors(trainer.optimizer),
        "generators": {name: generator.get_state() for name, generator in trainer.generators.items()},
        "reference": _following(trainer),
    }
    tensors = {f"{group}/{name}": x.detach().clone() for group, members in groups.items() for name, x in members.items()}
    archive.write(path, data, {**tensors, **run_tensors})


def restore(trainer: REBELTrainer, path: Path | str) -> dict[str, Any]:
    """Put a trainer where `save` found it; how far its log files were.

    Raises:
        FileNotFoundError, ValueError: no such file, not a whole one, or of another model, reference or data set.
    """
    content = archive.read(path, FIELDS)
    if content.data["kind"] != KIND:
        raise ValueError(f"resume_from_checkpoint: {path} is of {shortened(content.data['kind'])}, expected one of {KIND}")
    content.check_finite(FINITE)
    state = {field.name: content.data["state"].get(field.name) for field in fields(trainer.state)}
    if any(type(value) is not int or not 0 <= value < archive.COUNTERS for value in state.values()):
        raise ValueError(f"resume_from_checkpoint: {path} has counters that make no sense: {shortened(state)}")
    if state["num_rows"] != trainer.state.num_rows:
        raise ValueError(f"train_dataset: expected the {state['num_rows']} rows of {path}, got {trainer.state.num_rows}")
    # All is checked before anything is changed.
    groups = {
        "parameters": trained(trainer.model),
        "value_head": {} if trainer.value_head is None else trainer.value_head.state_dict(),
        "reference": _following(trainer),
    }
    for name, ours in groups.items():
        _check_shapes(path, ours, content.group(name))
    # Missing in files of earlier versions.
    if content.data.get("left_out", trainer.left_out) != trainer.left_out:
        raise ValueError(
            f"resume_from_checkpoint: {path} is of another first model: what is not trained, the reference among it, differs."
            " Make the trainer with the model that the run began with, not with a trained one"
        )
    optimiser = _optimiser_state(trainer.optimizer, content.group("optimizer"), path)
    generators = content.group("generators")
    if odd := generators.keys() - trainer.generators.keys():
        raise ValueError(f"resume_from_checkpoint: {path} has unknown generators: {shortened(sorted(odd))}")
    with as_file_errors(f"the generators in {path} are damaged", "resume_from_checkpoint"):
        for name, value in generators.items():
            set_generator(torch.Generator(trainer.generators[name].device), value)
    with torch.no_grad():
        for group, ours in groups.items():
            for name, value in content.group(group).items():
                ours[name].copy_(value)
    trainer.optimizer.load_state_dict(optimiser)
    for name, value in generators.items():
        set_generator(trainer.generators[name], value)
    for name, number in state.items():
        setattr(trainer.state, name, number)
    if "run" in content.data:
        with as_file_errors(f"the run in {path} is damaged", "resume_from_checkpoint"):
            run = join(content.data["run"], content.tensors)
            restore_global_generators(run["generators"], trainer.device)
            trainer.events.restore(run["events"])
            trainer._unsolved = int(run["unsolved"])
    logs = content.data.get("logs")
    return logs if isinstance(logs, dict) else {}


def digest_of_left_out(trainer: REBELTrainer) -> str:
    """SHA-256 of all parameters that a checkpoint does not have: frozen ones, and those of a frozen reference."""
    reference = {} if trainer.reference is None or trainer.args.sync_ref_model else trainer.reference.parameters()
    result = hashlib.sha256()
    for name, tensor in [*frozen(trainer.model).items(), *reference.items()]:
        result.update(name.encode())
        result.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    return result.hexdigest()


def _following(trainer: REBELTrainer) -> dict[str, Tensor]:
    """Parameters of a reference that changes."""
    if trainer.reference is None or not trainer.args.sync_ref_model:
        return {}
    return trainer.reference.parameters()


def _check_shapes(path: Path | str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    if ours.keys() != theirs.keys():
        odd = sorted(ours.keys() ^ theirs.keys())
        differing = f"{shortened(odd[0])} ({len(odd)} in all)"
        raise ValueError(f"resume_from_checkpoint: {path} is of another model: it differs in {differing}")
    for name, tensor in ours.items():
        if tensor.is_floating_point() != theirs[name].is_floating_point():
            raise ValueError(f"resume_from_checkpoint: {path} is of another model: {name} is {theirs[name].dtype} there")
        if tensor.shape != theirs[name].shape:
            raise ValueError(
                f"resume_from_checkpoint: {path} is of another model: {name} is {tuple(theirs[name].shape)} there,"
                f" {tuple(tensor.shape)} here"
            )


def _optimiser_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors = {}
    for number, entries in optimizer.state_dict()["state"].items():
        for name, value in entries.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"optimizer: expected a state of tensors, which can be saved, got {name}={value!r}")
            tensors[f"{number}.{name}"] = value
    return tensors


def _optimiser_state(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], path: Path | str) -> dict[str, Any]:
    """The optimiser's `state_dict` with these tensors; its settings are those of the trainer."""
    whole = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        if not re.fullmatch("[0-9]{1,9}", number) or int(number) >= len(parameters):
            raise ValueError(f"resume_from_checkpoint: {path} has an optimiser for other parameters ({shortened(key)})")
        if name == "step" and not bool((value >= 0).all()):
            raise ValueError(f"resume_from_checkpoint: {path} has an optimiser with the step {shortened(value.tolist())}")
        if (value.ndim or name.startswith("exp_")) and value.shape != parameters[int(number)].shape:
            raise ValueError(
                f"resume_from_checkpoint: {path} has an optimiser for other parameters: {key} {tuple(value.shape)}"
            )
        state.setdefault(int(number), {})[name] = value
    if len({frozenset(entries) for entries in state.values()}) > 1:
        raise ValueError(f"resume_from_checkpoint: {path} has an optimiser in pieces: of some parameters it lacks something")
    return whole | {"state": state}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
