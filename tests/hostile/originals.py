"""Whole files, of which hostile ones are made."""

import io
import json
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from stable_baselines3 import PPO as SB3PPO

from rlopt import PPO, S2PG
from rlopt.agents import ALGORITHMS
from rlopt.archive import DOCUMENT, TENSORS
from rlopt.pareto import ParetoArchive
from rlopt.schedules import Linear
from tests.small_envs import Walk

CONFIG = """algo: ppo
env: CartPole-v1
env_kwargs: {}
num_envs: 1
seed: 0
policy: MlpPolicy
n_steps: 16
learning_rate: 0.0003
policy_kwargs: {}
"""
EPISODES = "env_steps,env,return,length,seconds\n" + "".join(f"{10 * i},0,{float(i)},10,0.1\n" for i in range(1, 20))


def write_originals(folder: Path) -> dict[str, Path]:
    """An agent, one with memory, one of whole episodes, one that SB3 saved, an archive of points, a run folder."""
    paths = {name: folder / f"{name}.zip" for name in ("agent", "memory", "episodic", "sb3", "pareto")}
    small = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 0, "device": "cpu"}
    PPO(
        "MlpPolicy",
        Walk(actions="box"),
        learning_rate=Linear(1e-3),
        normalize_observations=True,
        normalize_rewards=True,
        policy_kwargs={"net_arch": {"pi": [8], "vf": [8]}, "activation_fn": torch.nn.ReLU},
        **small,
    ).learn(32).save(paths["agent"])
    S2PG("MlpPolicy", Walk(), policy_kwargs={"net_arch": [8], "encoder_size": 8}, memory_size=4, **small).save(paths["memory"])
    ALGORITHMS["harpg"]("MlpPolicy", Walk(), num_episodes=2, seed=0, device="cpu", policy_kwargs={"net_arch": [8]}).save(
        paths["episodic"]
    )
    SB3PPO("MlpPolicy", Walk(), policy_kwargs={"net_arch": [8]}, **small).save(paths["sb3"])
    points = ParetoArchive(2, reference=[0.0, 0.0], objectives=["speed", "comfort"])
    for x in range(1, 6):
        points.add([float(x), 6.0 - x], torch.full((3,), float(x)), {"note": x})
    points.save(paths["pareto"])
    run = folder / "run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG)
    (run / "episodes.csv").write_text(EPISODES)
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [8]}, **small).save(run / "model.zip")
    return {**paths, "run": run, "config": run / "config.yaml"}


def parts(path: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """The two members of one of our files."""
    with zipfile.ZipFile(path) as archive:
        return json.loads(archive.read(DOCUMENT)), safetensors.torch.load(archive.read(TENSORS))


def members(path: Path) -> dict[str, bytes]:
    """All members of a zip."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zip_of(content: dict[str, bytes | str], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip with these members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def file_of(document: object, tensors: dict[str, torch.Tensor] | bytes) -> bytes:
    """One of our files with any document (text, or what JSON can hold) and tensors (or the bytes of them)."""
    text = document if isinstance(document, str | bytes) else json.dumps(document)
    blob = tensors if isinstance(tensors, bytes) else safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()})
    return zip_of({DOCUMENT: text, TENSORS: blob})
