"""A process that opens files one by one, each in a child of its own with limits, and tells how it ended.

    python -m tests.hostile.reader      requests and answers are lines of JSON

A request has a `reader`, a name in `READERS`, a `path`, and `here`, true for whole files, which prepare the process. The
answer: `outcome` is "error", "opened", "exit" or "killed", with the error's type and text, a digest of what was opened, or the
exit code and standard error; `megabytes` is the child's peak, what the imports took included.
"""

import hashlib
import importlib
import io
import json
import os
import resource
import signal
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

SECONDS = 20
ADDRESS_SPACE = 8 * 2**30  # a guard for the machine; the test's limit is on what is resident


def digest(*parts: object) -> str:
    """One text for any plain values, tensors and dictionaries of them."""
    result = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, torch.Tensor | np.ndarray):
            array = np.asarray(value)
            result.update(f"{array.dtype}{array.shape}".encode())
            result.update(np.ascontiguousarray(array).tobytes())
        elif isinstance(value, dict):
            for key in sorted(value, key=str):
                result.update(str(key).encode())
                add(value[key])
        else:
            result.update(repr(value).encode())

    for part in parts:
        add(part)
    return result.hexdigest()


def digest_of_agent(agent) -> str:
    """Of all that a file of the agent holds."""
    from rlopt.checkpoint import agent_tensors, describe

    return digest({key: value for key, value in describe(agent).items() if key != "versions"}, agent_tensors(agent))


def load(path: str) -> str:
    from rlopt import archive
    from rlopt.agents import ALGORITHMS

    name = archive.read(path).data["algorithm"]
    classes = {cls.__name__: cls for cls in ALGORITHMS.values()}
    return digest_of_agent(classes.get(name, ALGORITHMS["ppo"]).load(path, device="cpu"))


def load_with_env(path: str) -> str:
    from rlopt import PPO
    from tests.small_envs import Walk

    return digest_of_agent(PPO.load(path, env=lambda: Walk(actions="box"), device="cpu"))


def set_parameters(path: str) -> str:
    from rlopt import PPO
    from tests.small_envs import Walk

    kwargs = {"net_arch": {"pi": [8], "vf": [8]}, "activation_fn": torch.nn.ReLU}
    agent = PPO("MlpPolicy", Walk(actions="box"), seed=7, n_steps=16, batch_size=16, device="cpu", policy_kwargs=kwargs)
    agent.set_parameters(path)
    return digest(agent.state.theta, agent.state.moments)


def import_sb3(path: str) -> str:
    from rlopt import import_sb3
    from tests.small_envs import Walk

    agent = import_sb3(path, Walk(), policy_kwargs={"net_arch": [8]}, device="cpu")
    return digest(agent.state.theta, {name: getattr(agent, name) for name in ("n_steps", "gamma", "seed", "num_timesteps")})


def pareto(path: str) -> str:
    from rlopt.pareto import ParetoArchive

    data, tensors = ParetoArchive.load(path).contents()
    return digest(data, tensors)


def language_model(path: str) -> str:
    from rlopt.lm import checkpointing
    from tests.lm.small_models import trainer

    made = trainer(Path(path).parent)
    checkpointing.restore(made, path)
    return digest({name: parameter.detach() for name, parameter in made.model.named_parameters()})


def config(path: str) -> str:
    from rlopt.cli.settings import parse_settings

    return digest(parse_settings(["--config", path]).configuration())


def run_config(path: str) -> str:
    from rlopt.run_folder import RunFolder

    return digest(RunFolder(Path(path)).read_config())


def command(*arguments: str) -> None:
    from rlopt.__main__ import main

    main(list(arguments))


READERS = {
    "load": load,
    "load_with_env": load_with_env,
    "set_parameters": set_parameters,
    "import_sb3": import_sb3,
    "pareto": pareto,
    "lm": language_model,
    "config": config,
    "run_config": run_config,
    "train": lambda path: command("train", "--config", path, "--run-dir", f"{path}.runs", "--total-timesteps", "16"),
    "evaluate": lambda path: command("evaluate", path, "--episodes", "1", "--device", "cpu"),
    "evaluate_file": lambda path: command("evaluate", path, "--env", "CartPole-v1", "--episodes", "1", "--device", "cpu"),
    "plot": lambda path: command("plot", path, "--out", f"{path}.out.png"),
    "plot_front": lambda path: command("plot", path, "--front", "--out", f"{path}.out.png"),
    "plot_known": lambda path: command(
        "plot", f"{Path(path).parent.parent}/pareto.zip", "--front", "--known", path, "--out", f"{path}.out.png"
    ),
    # Negative controls: what the tests must notice.
    "control_unpickle": lambda path: repr(__import__("pickle").loads(Path(path).read_bytes())),
    "control_hang": lambda path: Path(path).read_text(),
    "control_memory": lambda path: str(len(b"1" * 1_100_000_000)),
    "control_crash": lambda path: str({}["nothing"]),
}


def opened(reader: str, path: str) -> dict:
    """How opening a path ends, in this process."""
    text = io.StringIO()
    try:
        with redirect_stderr(text), redirect_stdout(io.StringIO()):
            found = READERS[reader](path)
        return {"outcome": "exit", "code": 0, "stderr": ""} if found is None else {"outcome": "opened", "digest": found}
    except SystemExit as error:
        return {"outcome": "exit", "code": error.code, "stderr": text.getvalue()[-2000:]}
    except BaseException as error:
        return {"outcome": "error", "type": type(error).__name__, "message": str(error)[:2000]}


def in_child(reader: str, path: str) -> dict:
    """How opening a path ends, in a process that may die of it."""
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_REAL, SECONDS)  # whose signal ends the process
        os.write(sending, json.dumps(opened(reader, path)).encode())
        os._exit(0)
    os.close(sending)
    content = b""
    while piece := os.read(receiving, 65536):
        content += piece
    os.close(receiving)
    _, status, usage = os.wait4(child, 0)
    answer = json.loads(content) if content else {"outcome": "killed", "signal": os.WTERMSIG(status)}
    return {**answer, "megabytes": round(usage.ru_maxrss / 1024), "seconds": round(usage.ru_utime + usage.ru_stime, 3)}


def main() -> None:
    """Answer requests until there are no more."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("rlopt.__main__", *(["rlopt.lm", "tests.lm.small_models"] if "lm" in sys.argv else [])):
        importlib.import_module(name)  # once, for all children
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        # A whole file is opened here first: what is imported then need not be imported in each child.
        how = opened if request["here"] else in_child
        print(json.dumps(how(request["reader"], request["path"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
