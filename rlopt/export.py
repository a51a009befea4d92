"""The step function of an agent as an ONNX file, which any runtime plays without Python, torch or this library.

    without memory:  (observation …)                           → (action)
    with memory:     (observation …, memory, previous_action)  → (action, next_memory, next_previous_action)

Inputs are what the environment shows and outputs what it wants: casts, images' channels, the running normalisation, one-hot
encodings, clipping and stretching are part of the graph. All have a leading axis "batch" of any size. An observation
without entries is "observation", the entries of a Dict or Tuple are "observation/KEY"; the critic's own are left out.

An episode begins with zeros for memory and previous_action; from then on they are the step's own last two outputs. A file
that samples takes `noise` besides, what `distribution.sample` takes: of uniform u, "gumbel" noise is −log(−log u) and
"logistic" noise log(u / (1 − u)); "normal" is standard normal. All of this is in the file's metadata, as JSON.
"""

from __future__ import annotations

import copy
import io
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from rlopt.agents.base import Agent
from rlopt.envs.memory import OBSERVATION, MemoryState
from rlopt.envs.spaces import Array, ArrayTree
from rlopt.plain_data import encode_space, policy_name
from rlopt.policies import draw_noise
from rlopt.prediction import Predictor
from rlopt.step_function import NEXT, Entry, Specs, StepFunction
from rlopt.version import __version__

BATCH = "batch"
METADATA = "rlopt"  # the key of the JSON document in the file's metadata
OPSET = 18  # of ONNX: what torch's exporter is written in, and old enough for most runtimes
TOLERANCE = 3e-5  # sums of convolutions are taken in another order there


def export_onnx(agent: Agent, path: str | Path, deterministic: bool = True) -> Path:
    """Write the agent's step function as ONNX; see `Agent.export`."""
    if not isinstance(agent, Agent):
        raise ValueError(f"agent: expected an agent of rlopt, got {agent!r}")
    if not hasattr(agent, "policy"):
        raise ValueError("agent: it has no environment yet, so that its spaces are not known; call set_env(env) first")
    target = onnx_path(path)
    check_installed()
    step = StepFunction(agent)
    blob = _serialized(agent, step, deterministic)
    _check(agent, step, blob, deterministic)
    _write(target, blob)
    return target


def onnx_path(path: str | Path) -> Path:
    """Where a file can be written; `.onnx` is appended to a name without a suffix.

    Raises:
        ValueError: a name that ends otherwise, a folder, or no path at all.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(f"path: expected a path, got {path!r}")
    target = Path(path) if Path(path).suffix else Path(f"{path}.onnx")
    if target.suffix != ".onnx":
        raise ValueError(f"path: expected a name that ends in .onnx, got {str(path)!r}")
    if target.is_dir():
        raise ValueError(f"path: {target} is a folder")
    return target


def check_installed() -> None:
    """Raises ImportError, which says what to install, unless ONNX can be written."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"export: writing ONNX needs {error.name}, which is not installed: pip install 'rlopt[onnx]'"
        ) from error


# ---------------------------------------------------------------------- the file


def _serialized(agent: Agent, step: StepFunction, deterministic: bool) -> bytes:
    """The file's content.

    Raises:
        RuntimeError: torch cannot express the policy.
    """
    import onnx

    specs = step.input_specs(deterministic)
    examples = tuple(torch.as_tensor(np.zeros((3, *shape), dtype)) for shape, dtype in specs.values())
    batch = {0: torch.export.Dim(BATCH)}
    try:
        with _quiet(), torch.no_grad():
            traced = torch.export.export(step, examples, dynamic_shapes=(tuple(batch for _ in specs),))
            program: Any = torch.onnx.export(
                traced,
                dynamo=True,
                input_names=list(specs),
                output_names=list(step.output_specs()),
                opset_version=OPSET,
                verbose=False,
            )
        model = program.model_proto
        _strip(model.graph)
        for value in (*model.graph.input, *model.graph.output):  # torch has a name of its own for this
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
        model.producer_name, model.producer_version, model.graph.name = "rlopt", __version__, type(agent).__name__
        document = json.dumps(_metadata(agent, step, deterministic), allow_nan=False)
        onnx.helper.set_model_props(model, {METADATA: document})
        onnx.checker.check_model(model)
    except Exception as error:  # torch and ONNX each have many of their own
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RuntimeError(f"policy: {policy_name(agent.policy_class)} cannot be written as ONNX: {reason}") from error
    return model.SerializeToString(deterministic=True)


def _metadata(agent: Agent, step: StepFunction, deterministic: bool) -> dict[str, Any]:
    """What a program that knows only the file needs; None stands for a bound that is none."""
    inputs, outputs = step.input_specs(deterministic), step.output_specs()
    fed_back = {name: name.removeprefix(NEXT) for name in outputs if name.startswith(NEXT)}
    return {
        "rlopt": __version__,
        "algorithm": type(agent).__name__,
        "policy": policy_name(agent.policy_class),
        "num_timesteps": agent.num_timesteps,
        "deterministic": deterministic,
        "inputs": _described(inputs),
        "outputs": _described(outputs),
        "observation_space": _finite(encode_space(agent.observation_space)),
        "action_space": _finite(encode_space(agent.action_space)),
        "initial_state": {name: np.zeros(inputs[name][0]).tolist() for name in fed_back.values()},
        "feed_back": fed_back,
        "noise": [] if deterministic else [{"distribution": kind, "size": size} for kind, size in step.noises],
    }


def _described(specs: Specs) -> list[dict[str, Any]]:
    return [{"name": name, "shape": [BATCH, *shape], "dtype": str(dtype)} for name, (shape, dtype) in specs.items()]


def _finite(data: Any) -> Any:
    """Plain data with None for infinities, which JSON does not have."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def _strip(graph: Any) -> None:
    """Take out what torch writes beside the graph: paths and lines of this machine's source files."""
    graph.ClearField("value_info")  # shapes that every runtime works out by itself
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _strip(attribute.g)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remarks on its own functions and on packages that it would support, and the graphs that it prints."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.fx")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write(target: Path, blob: bytes) -> None:
    """A file that appears whole or not at all: written beside the target and renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        whole = Path(folder) / target.name
        with whole.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, target)


# ---------------------------------------------------------------------- the check


def _check(agent: Agent, step: StepFunction, blob: bytes, deterministic: bool) -> None:
    """Play random observations in onnxruntime and as `Agent.predict` does, if onnxruntime is installed.

    Raises:
        RuntimeError: the outputs differ, or onnxruntime cannot run the graph.
    """
    try:
        import onnxruntime
    except ImportError:
        return
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(blob, options, providers=["CPUExecutionProvider"])
        wrong = sorted({name for rows in (16, 1) for name in _differing(agent, step, session, deterministic, rows)})
    except Exception as error:  # onnxruntime has many of its own
        raise RuntimeError(f"export: onnxruntime cannot run the ONNX graph, which was not written: {error}") from error
    if wrong:
        raise RuntimeError(
            f"export: the ONNX graph, which was not written, gives another {' and '.join(wrong)} than the agent "
            f"(tolerance {TOLERANCE:g})"
        )


def _differing(agent: Agent, step: StepFunction, session: Any, deterministic: bool, rows: int) -> set[str]:
    """Names of the outputs that differ in four steps of `rows` episodes."""
    random, drawing = np.random.default_rng(rows), (torch.Generator(), torch.Generator())
    for generator in drawing:  # the same noise twice
        generator.manual_seed(rows)
    policy = copy.deepcopy(agent.policy).cpu()  # where a GPU rounds otherwise
    predict = Predictor(policy, agent.encoder, agent.decoder, drawing[0], agent.observation_normalizer)
    space = copy.deepcopy(agent.encoder.space)
    space.seed(rows)
    state, differing = predict.initial_state(rows), set()
    for _ in range(4):
        observation = agent.encoder.decode(_observations(agent, space, rows, random))
        inputs = [*(_input(entry, observation) for entry in step.entries), *_remembered(step, state)]
        noise = [] if deterministic else [draw_noise(policy.action_space, (rows,), drawing[1]).numpy()[:, : step.noise_size]]
        outputs = session.run(None, dict(zip(step.input_specs(deterministic), [*inputs, *noise], strict=True)))
        seen = agent.encoder(observation)
        joint = policy.observation_space
        own = predict.distribution(seen if state is None else joint.join(seen, state))  # type: ignore[attr-defined]
        action, state = predict(observation, state, None, deterministic)
        alike = dict(zip(step.output_specs(), map(_alike, outputs, [action, *_remembered(step, state)]), strict=True))
        if not np.issubdtype(action.dtype, np.floating) and not alike["action"].all():
            tied = _ties(agent, step, own, noise, outputs[0], random)
            alike |= {name: alike[name] | tied for name in ("action", "next_previous_action") if name in alike}
        differing |= {name for name, equal in alike.items() if not equal.all()}
    return differing


def _remembered(step: StepFunction, state: MemoryState | None) -> list[Array]:
    """What the graph has of the agent's state."""
    return [] if state is None else [state.memory[:, : step.memory_size], state.previous_action]


def _observations(agent: Agent, space: spaces.Space, rows: int, random: np.random.Generator) -> ArrayTree:
    """Random encoded observations, floats about where they have been in training."""
    moments = agent.observation_normalizer.moments if agent.observation_normalizer is not None else {}

    def drawn(key: str, space: spaces.Space) -> Array:
        values = np.stack([np.asarray(space.sample()) for _ in range(rows)])
        if not np.issubdtype(values.dtype, np.floating):
            return values
        normal = random.normal(size=values.shape)
        if counted := moments.get(key) or moments.get(key or OBSERVATION):  # with memory, every observation has a key
            return (counted.mean + np.sqrt(counted.var) * normal).astype(values.dtype)
        return np.where(np.abs(values) < 1e3, values, normal).astype(values.dtype)  # bounds such as 1e38 are none

    return {key: drawn(key, sub) for key, sub in space.spaces.items()} if isinstance(space, spaces.Dict) else drawn("", space)


def _input(entry: Entry, observation: Any) -> Array:
    """What an input takes of observations [n, *obs] as the environment gives them."""
    for part in entry.path:
        observation = observation[part]
    return np.asarray(observation, entry.dtype)


def _alike(output: Array, expected: Array) -> Array:
    """[n] bool, whether rows agree."""
    if output.shape != expected.shape or output.dtype != expected.dtype:
        return np.zeros(len(expected), bool)
    close = np.asarray(np.isclose(output, expected, TOLERANCE, TOLERANCE, equal_nan=True))
    return np.asarray(close.reshape(len(output), -1).all(1))


def _ties(agent: Agent, step: StepFunction, own: Any, noise: list[Array], actions: Array, random: np.random.Generator) -> Array:
    """[n] bool, whether choices are those of the agent's own distribution with its noise moved within rounding."""
    choice, size = (own.action if step.remembers else own), step.noises[0][1]
    given = noise[0][:, :size] if noise else np.zeros((len(actions), size), np.float32)
    tied = np.zeros(len(actions), bool)
    for _ in range(8):
        nudged = torch.as_tensor(given + TOLERANCE * random.normal(size=given.shape), dtype=torch.float32)
        tied |= _alike(actions, agent.decoder(choice.sample(nudged).numpy(), agent.policy.squash_output))
    return tied
