"""`rlopt inspect` says what a file is, and of a damaged one that it is."""

from __future__ import annotations

import pytest

from rlopt import PPO, Checkpoints, FlightRecorder
from rlopt.__main__ import main
from rlopt.pareto import ParetoArchive
from tests.small_envs import Walk


def make(**kwargs):
    return PPO("MlpPolicy", Walk, n_steps=16, batch_size=16, n_epochs=1, seed=0, **kwargs)


def said(capsys, *arguments):
    main(["inspect", *map(str, arguments)])
    return capsys.readouterr().out


def test_an_agent(tmp_path, capsys):
    agent = make(gamma=0.75).learn(32)
    agent.save(tmp_path / "agent.zip")
    out = said(capsys, tmp_path / "agent.zip")
    assert out.startswith("an agent of PPO, format 1\n")
    assert "  num_timesteps          32\n" in out
    assert "  gamma                  0.75\n" in out
    numbers = sum(tensor.numel() for tensor in agent.policy.state_dict().values())
    assert f"  policy                 {len(agent.policy.state_dict())} of {numbers:,} numbers in all" in out
    assert "policy/log_std" not in out
    assert "policy/action_net.weight" in said(capsys, tmp_path / "agent.zip", "--tensors")


def test_other_files(tmp_path, capsys):
    make().learn(32, checkpoints=Checkpoints(tmp_path))
    assert said(capsys, tmp_path / "rl_model_32_steps.zip").startswith("a checkpoint of a training with PPO")
    with pytest.raises(FloatingPointError):
        make(learning_rate=1e30).learn(64, recorder=FlightRecorder(tmp_path / "faults", max_rollbacks=0))
    out = said(capsys, next((tmp_path / "faults").iterdir()))
    assert out.startswith("the last updates of PPO, from a flight recorder")
    assert "fault                  parameters that are not finite" in out
    archive = ParetoArchive(2)
    archive.add([1.0, 2.0])
    archive.save(tmp_path / "pareto.zip")
    assert said(capsys, tmp_path / "pareto.zip").startswith("a Pareto archive")


def test_a_damaged_file_is_one_message(tmp_path, capsys):
    (tmp_path / "odd.zip").write_bytes(b"nothing")
    with pytest.raises(SystemExit) as stopped:
        main(["inspect", str(tmp_path / "odd.zip")])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("rlopt-inspect: error: path: ")
