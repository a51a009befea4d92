"""Run folders are numbered, never overwritten, and say what they hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlopt import PPO
from rlopt.run_folder import EpisodeLog, RunFolder, create_run_folder


def test_folders_are_numbered_after_the_highest(tmp_path: Path) -> None:
    first = create_run_folder(tmp_path, "ppo", "ALE/Pong-v5")
    assert first.path == tmp_path / "ppo" / "ALE-Pong-v5" / "1"
    (tmp_path / "ppo" / "ALE-Pong-v5" / "7").mkdir()
    (tmp_path / "ppo" / "ALE-Pong-v5" / "named").mkdir()
    assert create_run_folder(tmp_path, "ppo", "ALE/Pong-v5").path.name == "8"


def test_a_named_folder_must_not_exist(tmp_path: Path) -> None:
    create_run_folder(tmp_path, "ppo", "CartPole-v1", "mine")
    with pytest.raises(ValueError, match=r"run_name: .*mine exists already"):
        create_run_folder(tmp_path, "ppo", "CartPole-v1", "mine")


def test_a_run_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="run_dir: "):
        create_run_folder(tmp_path / "file", "ppo", "CartPole-v1")


def test_description_is_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_description({"algo": "ppo", "clip_range_vf": None, "policy_kwargs": {"net_arch": [64]}})
    assert folder.read_config() == {"algo": "ppo", "clip_range_vf": None, "policy_kwargs": {"net_arch": [64]}}
    assert {"rlopt", "torch", "python"} <= json.loads(folder.versions.read_text()).keys()


@pytest.mark.parametrize("text", ["- 1", "a: [", "a: !!python/name:os.system"])
def test_a_config_that_is_not_plain_settings_is_refused(tmp_path: Path, text: str) -> None:
    RunFolder(tmp_path).config.write_text(text)
    with pytest.raises(ValueError, match="run: expected"):
        RunFolder(tmp_path).read_config()


def test_every_episode_is_on_disk_as_soon_as_it_ends(tmp_path: Path) -> None:
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    path = tmp_path / "episodes.csv"
    seen = []

    def count(local: dict, _: dict) -> bool:
        seen.append(len(path.read_text().splitlines()) - 1 - agent.statistics.num_episodes)
        return True

    with EpisodeLog(path, agent):
        agent.learn(128, callback=count)
    assert set(seen) == {0}
    header, *rows = path.read_text().splitlines()
    assert header == "env_steps,env,return,length,seconds"
    assert len(rows) == agent.statistics.num_episodes > 2
    steps, lengths = ([int(row.split(",")[column]) for row in rows] for column in (0, 3))
    assert steps[0] == lengths[0]
    assert steps[1] == lengths[0] + lengths[1]
