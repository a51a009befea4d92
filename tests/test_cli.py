"""The commands as a user calls them: what they write and print, and one clear message for every bad input."""

from __future__ import annotations

import csv
import json
import re
import runpy
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from rlopt import ALGORITHMS, PPO
from rlopt.cli import evaluate_main, train_main
from rlopt.cli.environments import suitable_policy, training_envs
from rlopt.cli.hyperparameters import argument_help, flag_type, hyperparameter_types
from rlopt.cli.settings import parse_settings
from rlopt.envs.base import EnvironmentFault
from rlopt.evaluation import evaluate

SCRIPTS = Path(__file__).parents[1] / "scripts"
QUICK = "--device cpu --total-timesteps 256 --n-steps 32 --num-envs 4 --batch-size 64 --n-epochs 1 --eval-episodes 2"
RESULT = "algo env seed env_steps episodes mean_return eval_mean_return eval_std_return seconds steps_per_second run_dir"


class TwoRewards(gym.Env[Any, Any]):
    """Pays a vector."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(2, np.float32), np.ones(2), False, False, {}


gym.register("rlopt-test/TwoRewards-v0", TwoRewards)


def train(run_dir: Path, *more: str) -> Path:
    """A short training run's folder."""
    train_main([*QUICK.split(), "--no-progress", "--run-dir", str(run_dir), "--run-name", "run", *more])
    return next(run_dir.glob("*/*/run"))


def refused(capsys: pytest.CaptureFixture[str], main: Any, argv: list[str]) -> str:
    """The message of a command that ends with exit code 2."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


def weights(folder: Path) -> torch.Tensor:
    return PPO.load(folder / "model.zip", device="cpu").state.theta


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), "--eval-freq", "128", "--save-freq", "128")


# ---------------------------------------------------------------------- training


def test_a_run_folder_holds_everything_about_the_run(run: Path) -> None:
    names = {path.name for path in run.iterdir()}
    expected = "config.yaml versions.json episodes.csv progress.csv model.zip best_model.zip evaluations.npz checkpoints"
    assert names - set(expected.split()) == {name for name in names if name.startswith("events.out.tfevents")}
    assert set(expected.split()) <= names
    checkpoints = sorted(int(path.name.split("_")[2]) for path in (run / "checkpoints").glob("*.zip"))
    assert len(checkpoints) >= 3
    assert checkpoints[0] == 0
    assert 100 < checkpoints[1] <= 128  # the calls of 128 steps, in which rows that reset do not count
    assert np.load(run / "evaluations.npz")["results"].shape == (len(checkpoints) - 1, 2)
    with (run / "episodes.csv").open() as file:
        episodes = list(csv.DictReader(file))
    assert episodes
    assert all(float(row["return"]) == float(row["length"]) for row in episodes)  # CartPole pays 1 a step
    assert [int(row["env_steps"]) for row in episodes] == sorted(int(row["env_steps"]) for row in episodes)


def test_tensorboard_has_the_configuration_and_the_result_beside_the_hyperparameters(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    tags = events.Tags()
    assert {"result/eval_mean_return", "rollout/ep_rew_mean", "eval/mean_reward"} <= set(tags["scalars"])
    text = events.Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| n_steps | `32` |" in text
    assert "| backend_choice | `native` |" in text
    (hparams,) = (name for name in events.PluginTagToContent("hparams") if name.endswith("session_start_info"))
    assert b"learning_rate" in events.PluginTagToContent("hparams")[hparams]
    assert "custom_scalars__config__" in tags["tensors"]


def test_json_is_the_last_line_and_all_of_standard_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, "--json", "--seed", "3")
    captured = capsys.readouterr()
    (line,) = captured.out.splitlines()
    result = json.loads(line)
    assert list(result) == RESULT.split()
    assert (result["algo"], result["env"], result["seed"], result["run_dir"]) == ("ppo", "CartPole-v1", 3, str(folder))
    assert result["env_steps"] >= 256
    assert result["eval_mean_return"] > 0
    assert f"tensorboard --logdir {folder}" in captured.err


def test_summary_says_how_it_went_and_where_to_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(tmp_path, "--verbose", "1")
    out = capsys.readouterr().out
    assert "4 environments (native), networks on cpu, seed 0" in out
    assert re.search(r"training return +[\d.]+ \(last \d+ of \d+\)", out)
    assert re.search(r"evaluation +[\d.]+ ± [\d.]+ \(2 deterministic episodes\)", out)
    assert f"tensorboard --logdir {folder}\n" in out
    assert "ep_rew_mean" in out  # the tables


def test_a_config_file_repeats_its_run_and_evaluations_do_not_touch_it(tmp_path: Path, run: Path) -> None:
    """The first run was evaluated and saved under way, the second was not."""
    again = train(tmp_path, "--config", str(run / "config.yaml"), "--eval-freq", "0", "--save-freq", "0")
    assert torch.equal(weights(run), weights(again))
    other = train(tmp_path / "other", "--config", str(run / "config.yaml"), "--seed", "1")
    assert not torch.equal(weights(run), weights(other))


def test_ctrl_c_keeps_the_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at_second_step(monkeypatch, KeyboardInterrupt())
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path)
    assert stopped.value.code == 130
    folder = tmp_path / "ppo" / "CartPole-v1" / "run"
    assert re.search(rf"interrupted after \d+ steps; saved {re.escape(str(folder))}", capsys.readouterr().err)
    assert PPO.load(folder / "model.zip").num_timesteps > 0


@pytest.mark.parametrize("error", [EnvironmentFault("environment 2 broke"), FloatingPointError("not finite")])
def test_training_that_fails_keeps_the_agent_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    stop_at_second_step(monkeypatch, error)
    with pytest.raises(SystemExit) as stopped:
        train(tmp_path)
    assert stopped.value.code == 1
    assert f"training failed: {error}; saved" in capsys.readouterr().err
    assert (tmp_path / "ppo" / "CartPole-v1" / "run" / "model.zip").exists()


def stop_at_second_step(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    step = PPO.step

    def failing(self: PPO, state: Any, collector: Any) -> Any:
        if self.num_timesteps:
            raise error
        return step(self, state, collector)

    monkeypatch.setattr(PPO, "step", failing)


# ---------------------------------------------------------------------- settings


def test_flags_win_over_the_config_file_which_wins_over_the_preset(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("env: Pendulum-v1\nlearning_rate: 3e-4\nmax_grad_norm: 5e-1\ngamma: 0.5\nclip_range_vf: null\n")
    settings = parse_settings(["--config", str(config), "--gamma", "0.7", "--clip-range", "linear:0.3"])
    chosen = settings.configuration()
    assert chosen["env"] == "Pendulum-v1"
    assert (chosen["n_steps"], chosen["num_envs"], chosen["total_timesteps"]) == (1024, 4, 200_000)  # the tuned preset
    assert (chosen["learning_rate"], chosen["max_grad_norm"]) == (3e-4, 0.5)  # the file
    assert (chosen["gamma"], chosen["clip_range"]) == (0.7, "linear:0.3")  # the flags
    assert yaml.safe_load(yaml.safe_dump(chosen)) == chosen


def test_defaults_are_the_presets(tmp_path: Path) -> None:
    assert parse_settings(["--preset", "cleanrl"]).configuration()["value_clip"] == "maximum"
    assert parse_settings([]).configuration()["learning_rate"] == "linear:1e-3"
    unknown = parse_settings(["--env", "MountainCarContinuous-v0"]).configuration()
    assert (unknown["n_steps"], unknown["total_timesteps"], unknown["num_envs"]) == (2048, 100_000, 1)


def test_none_booleans_and_mappings_are_flags() -> None:
    arguments = ["--clip-range-vf", "0.1", "--target-kl", "None", "--no-normalize-advantage", "--normalize-rewards"]
    arguments += ["--policy-kwargs", "{net_arch: {pi: [8], vf: [9]}, activation_fn: ReLU}", "--env-kwargs", "{}"]
    values = parse_settings(arguments).constructor_arguments()
    assert (values["clip_range_vf"], values["target_kl"]) == (0.1, None)
    assert (values["normalize_advantage"], values["normalize_rewards"]) == (False, True)
    assert values["policy_kwargs"] == {"net_arch": {"pi": [8], "vf": [9]}, "activation_fn": "ReLU"}


def test_policy_kwargs_reach_the_policy(tmp_path: Path) -> None:
    text = "{net_arch: [8], activation_fn: nn.ReLU, optimizer_class: RMSprop}"
    folder = train(tmp_path, "--policy-kwargs", text, "--env", "Pendulum-v1", "--env-kwargs", "{g: 5.0}")
    agent = PPO.load(folder / "model.zip", device="cpu")
    assert agent.policy_kwargs["activation_fn"] is torch.nn.ReLU
    assert agent.policy.optimizer_class is torch.optim.RMSprop
    assert agent.policy.net_arch == [8]
    assert yaml.safe_load((folder / "config.yaml").read_text())["env_kwargs"] == {"g": 5.0}


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_every_hyperparameter_of_every_algorithm_is_an_explained_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = argument_help(ALGORITHMS[name])
    flags = hyperparameter_types(ALGORITHMS[name], {"seed", "device", "verbose", "backend"})
    assert [flag for flag in flags if not texts.get(flag)] == []
    with pytest.raises(SystemExit) as stopped:
        parse_settings(["--algo", name, "--help"])
    assert stopped.value.code == 0
    help_text = capsys.readouterr().out
    assert [flag for flag in flags if f"--{flag.replace('_', '-')}" not in help_text] == []


def test_help_shows_resolved_defaults_and_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("gamma: 0.123\n")
    with pytest.raises(SystemExit):
        train_main(["--config", str(config), "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "(default: 0.123)" in text
    assert "(default: linear:1e-3)" in text
    assert "rlopt-train --env HalfCheetah-v5" in text


def test_flag_types_keep_what_text_can_say() -> None:
    assert flag_type(float | str | torch.Tensor | None) == None | float | str
    assert flag_type(list[float]) == tuple[float, ...]
    assert flag_type(torch.Tensor) is None


def test_policies_suit_their_observations() -> None:
    assert suitable_policy(spaces.Box(-1, 1, (3,))) == "MlpPolicy"
    assert suitable_policy(spaces.Box(0, 255, (3, 40, 40), np.uint8)) == "CnnPolicy"
    assert suitable_policy(spaces.Dict(a=spaces.Box(-1, 1, (3,)))) == "MultiInputPolicy"
    shown = spaces.Dict(observation=spaces.Box(-1, 1, (3,)), critic=spaces.Box(-1, 1, (2,)))
    assert suitable_policy(shown) == "MultiInputPolicy"
    assert suitable_policy(shown, "s2pg") == suitable_policy(shown["observation"], "s2pg") == "MlpPolicy"
    assert suitable_policy(spaces.Dict(a=shown["observation"], critic=shown["critic"]), "s2pg") == "MultiInputPolicy"


def test_atari_games_are_preprocessed() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    envs = training_envs("ALE/Pong-v5", 1, "sync", 0, {})
    assert envs.encoder.space.shape == (4, 84, 84)
    assert suitable_policy(envs.encoder.space) == "CnnPolicy"
    assert envs.monitored
    envs.reset(0)
    envs.step(np.array([0]))
    assert envs.get_attr("unwrapped", [0])[0]._frameskip == 1  # the wrapper skips
    envs.close()


# ---------------------------------------------------------------------- bad input for training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--algo", "pppo"], "algo: expected one of .*, got 'pppo'; did you mean 'ppo'"),
        (["--algo"], "argument --algo: expected one argument"),
        (["--preset", "tune"], "preset: expected one of .*, got 'tune'; did you mean 'tuned'"),
        (["--env", "CartPol-v1"], "env: 'CartPol-v1' is not registered with Gymnasium; did you mean 'CartPole-v1'"),
        (["--frame-stack", "0"], "frame_stack: expected a whole number of at least 1, got 0"),
        (["--show-state"], r"env: CartPoleEnv has no state_space and get_state\(\)"),
        (["--show-state", "--backend", "native"], "show_state: backend 'native' has no single environments"),
        (["--env-kwargs", "[1]"], "Error parsing --env-kwargs: expected a mapping"),
        (["--env-kwargs", "{foo: 1}"], "env_kwargs: CartPole-v1 refuses {'foo': 1}"),
        (["--policy", "Mlp"], "policy: expected one of .*, got 'Mlp'; did you mean 'MlpPolicy'"),
        (["--policy", "CnnPolicy"], "policy: .* cannot read"),
        (["--device", "gpu"], "device: expected 'auto', 'cpu', 'cuda' or another device of torch, got 'gpu'"),
        (["--backend", "native", "--env", "FrozenLake-v1"], "backend: FrozenLake-v1 has no native"),
        (["--num-envs", "0"], "num_envs: expected a whole number of at least 1, got 0"),
        (["--seed", "-1"], "seed: expected a whole number from 0"),
        (["--run-name", "a/b"], "run_name: expected the name of a folder without separators, got 'a/b'"),
        (["--n-steps", "many"], "Error parsing --n-steps: invalid literal for int.*'many'"),
        (["--n-step", "3"], "Unrecognized options: --n-step, 3 .*--n-steps"),
        (["--n-envs", "3"], "Unrecognized options: --n-envs, 3"),
        (["--value-clip", "max"], "invalid choice 'max' for argument '--value-clip'"),
        (["--gamma", "2"], r"gamma: expected a number in \[0, 1\], got 2.0"),
        (["--learning-rate", "fast"], "learning_rate: expected a number or 'linear:.*, got 'fast'"),
        (["--policy-kwargs", "dict(net_arch=[64])"], "--policy-kwargs: expected a mapping .*'dict"),
        (["--policy-kwargs", "{activation_fn: Relu}"], "activation_fn: expected .* torch.nn, got 'Relu'; did you mean 'ReLU'"),
        (["--policy-kwargs", "{activation_fn: manual_seed}"], "policy_kwargs: activation_fn: expected the name of a class"),
        (["--policy-kwargs", "{net_arc: [64]}"], "policy_kwargs: .*'net_arc'"),
        (
            ["--policy-kwargs", "{a: !!python/object/apply:os.system [ls]}"],
            "--policy-kwargs: expected a YAML mapping of plain values",
        ),
    ],
)
def test_a_bad_flag_is_one_message_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    error = refused(capsys, train_main, [*arguments, "--run-dir", str(tmp_path / "runs")])
    text = " ".join(error.replace("│", " ").split())
    assert re.search(message, text), text
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1e-3", "config: .*has the unknown setting 'learning_rat'; did you mean 'learning_rate'"),
        ("n_envs: 3", "config: .*has the unknown setting 'n_envs'; did you mean 'num_envs'"),
        ("policy_kwargs: !!python/object/apply:os.system [ls]", "config: .* is not YAML of plain values: .*os.system"),
        ("a: [1", "config: .* is not YAML of plain values"),
        ("- 1", "config: expected .* to hold a mapping of settings, got list"),
        ("n_steps: many", "n_steps: expected a whole number, got 'many'"),
        ("n_steps: 1.5", "n_steps: expected a whole number, got 1.5"),
        ("n_steps: true", "n_steps: expected a whole number, got True"),
        ("gamma: [0.9]", r"gamma: expected a number, got \[0.9\]"),
        ("normalize_rewards: 1", "normalize_rewards: expected true or false, got 1"),
        ("value_clip: max", "value_clip: expected one of prediction, maximum, got 'max'"),
        ("policy_kwargs: dict(net_arch=[64])", "policy_kwargs: expected a mapping such as .*, got 'dict"),
        ("algo: reinforce2", "algo: expected one of .*, got 'reinforce2'"),
    ],
)
def test_a_bad_config_file_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    error = refused(capsys, train_main, ["--config", str(path), "--run-dir", str(tmp_path)])
    assert re.search(message, error), error
    assert error.count("\n") == 1


def test_a_config_file_that_is_not_there_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config: expected a YAML file, but nowhere.yaml cannot be read" in refused(
        capsys, train_main, ["--config", "nowhere.yaml"]
    )


def test_a_named_run_that_exists_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run / "model.zip").read_bytes()
    arguments = [*QUICK.split(), "--run-dir", str(run.parents[2]), "--run-name", "run"]
    assert f"run_name: {run} exists already" in refused(capsys, train_main, arguments)
    assert (run / "model.zip").read_bytes() == before


def test_a_missing_extra_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert "pip install 'rlopt[atari]'" in refused(capsys, train_main, ["--env", "ALE/Pong-v5"])


def test_a_vector_of_rewards_is_refused_at_the_first_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--env", "rlopt-test/TwoRewards-v0", *QUICK.split(), "--run-dir", str(tmp_path)]
    with pytest.raises(SystemExit) as stopped:
        train_main(arguments)
    assert stopped.value.code == 2
    assert "rlopt-train: error: env: it pays 2 rewards a step" in capsys.readouterr().err


# ---------------------------------------------------------------------- evaluating


def test_evaluate_reports_a_run_folder(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_main([str(run), "--episodes", "5"])
    out = capsys.readouterr().out
    assert re.search(r"episodes +5 deterministic", out)
    assert re.search(
        r"return +[\d.]+ ± [\d.]+\n +median +[\d.]+\n +min, max +[\d.]+, [\d.]+\nlength +[\d.]+ \(\d+ to \d+\)", out
    )


def test_stacked_frames_are_seen_in_training_evaluation_and_wherever_the_agent_goes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--env", "CartPoleNoVel-v1", "--frame-stack", "3", "--eval-freq", "128"]
    folder = train(tmp_path, *arguments)
    agent = PPO.load(folder / "model.zip", device="cpu")
    assert agent.observation_space.shape == (12,)
    assert yaml.safe_load((folder / "config.yaml").read_text())["frame_stack"] == 3
    capsys.readouterr()
    evaluate_main([str(folder), "--episodes", "4", "--json"])
    of_folder = json.loads(capsys.readouterr().out)
    copy = tmp_path / "agent.zip"
    copy.write_bytes((folder / "model.zip").read_bytes())
    evaluate_main([str(copy), "--env", "CartPoleNoVel-v1", "--frame-stack", "3", "--episodes", "4", "--json"])
    assert json.loads(capsys.readouterr().out)["mean_return"] == of_folder["mean_return"]
    assert "env: the observation space" in refused(capsys, evaluate_main, [str(copy), "--env", "CartPoleNoVel-v1"])
    again = train(tmp_path / "again", "--config", str(folder / "config.yaml"))
    assert torch.equal(weights(folder), weights(again))
    with_more = train(tmp_path / "more", "--config", str(folder / "config.yaml"), "--frame-stack", "1")
    assert PPO.load(with_more / "model.zip", device="cpu").observation_space.shape == (4,)


class Hiding(gym.Env[Any, Any]):
    """Shows a bit at first, and then nothing; its state is the bit and the time."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    state_space = spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 5, (1,), np.float32)])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.bit, self.time = int(self.np_random.integers(2)), 0
        return np.array([self.bit, 1], np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        return np.zeros(2, np.float32), float(action == self.bit), self.time == 5, False, {}

    def get_state(self) -> Any:
        return self.bit, np.array([self.time], np.float32)


gym.register("rlopt-test/Hiding-v0", Hiding)
SHOWN = ["--env", "rlopt-test/Hiding-v0", "--show-state"]


@pytest.mark.parametrize("name", ["s2pg", "recurrentppo", "ppo"])
def test_a_state_is_shown_in_training_and_needed_afterwards_by_policies_without_memory_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = train(tmp_path, "--algo", name, *SHOWN, "--eval-freq", "128", "--normalize-observations")
    agent = ALGORITHMS[name].load(folder / "model.zip", device="cpu")
    assert set(agent.observation_space.spaces) == {"observation", "critic"}  # type: ignore[attr-defined]
    assert agent.observation_space["critic"].shape == (3,)  # type: ignore[index]
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["show_state"] is True
    assert config["policy"] == ("MultiInputPolicy" if name == "ppo" else "MlpPolicy")
    copy = tmp_path / "agent.zip"
    copy.write_bytes((folder / "model.zip").read_bytes())
    ways = [[str(folder)], [str(copy), *SHOWN], [str(copy), "--env", "rlopt-test/Hiding-v0"]]
    results = []
    for arguments in ways[: 2 if name == "ppo" else 3]:
        capsys.readouterr()
        evaluate_main([*arguments, "--episodes", "6", "--json"])
        results.append(json.loads(capsys.readouterr().out)["mean_return"])
    assert len(set(results)) == 1
    if name == "ppo":
        assert "env: the observation space" in refused(capsys, evaluate_main, ways[2])


def test_a_run_that_shows_the_state_is_repeated_by_its_config_file(tmp_path: Path) -> None:
    first = train(tmp_path / "first", "--algo", "s2pg", *SHOWN)
    again = train(tmp_path / "again", "--config", str(first / "config.yaml"))
    other = train(tmp_path / "other", "--config", str(first / "config.yaml"), "--no-show-state")
    theta = [ALGORITHMS["s2pg"].load(folder / "model.zip", device="cpu").state.theta for folder in (first, again, other)]
    assert torch.equal(theta[0], theta[1])
    assert theta[0].shape != theta[2].shape


def test_popgyms_state_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("popgym")
    kwargs = ["--policy-kwargs", "{critic_features_extractor_class: CombinedExtractor}"]
    folder = train(tmp_path, "--algo", "s2pg", "--env", "popgym-RepeatFirstEasy-v0", "--show-state", *kwargs)
    agent = ALGORITHMS["s2pg"].load(folder / "model.zip", device="cpu")
    assert agent.observation_space["critic"].shape == (8,)  # type: ignore[index]
    assert agent.gae_lambda == 0.5  # type: ignore[attr-defined]


def test_atari_games_do_not_tell_their_state() -> None:
    with pytest.raises(ValueError, match="show_state: ALE/Pong-v5 is preprocessed and does not tell its state"):
        training_envs("ALE/Pong-v5", 1, "auto", 0, {}, show_state=True)


def test_an_environment_that_shows_the_critic_more_by_itself_suits_a_policy_with_memory(tmp_path: Path) -> None:
    arguments = ["--algo", "s2pg", "--env", "rlopt/CueRecall-v0", "--env-kwargs", "{delay: 1, privileged: true}"]
    assert yaml.safe_load((train(tmp_path, *arguments) / "config.yaml").read_text())["policy"] == "MlpPolicy"


def test_frames_of_a_video_are_stacked_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pygame")
    train(tmp_path, "--frame-stack", "2", "--video")
    assert "the observation space of" not in capsys.readouterr().err  # the only word of a video that could not be made


def test_atari_games_are_stacked_once() -> None:
    pytest.importorskip("ale_py")
    pytest.importorskip("cv2")
    with pytest.raises(ValueError, match="frame_stack: ALE/Pong-v5 is preprocessed and shows 4 frames already"):
        training_envs("ALE/Pong-v5", 1, "auto", 0, {}, frame_stack=4)


@pytest.mark.parametrize("place", ["folder", "best", "checkpoint", "elsewhere"])
def test_evaluate_finds_the_agent_and_its_environment(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    copy = tmp_path / "agent.zip"
    copy.write_bytes((run / "model.zip").read_bytes())
    checkpoint = next((run / "checkpoints").iterdir())
    arguments, file = {
        "folder": ([str(run)], run / "model.zip"),
        "best": ([str(run), "--best"], run / "best_model.zip"),
        "checkpoint": ([str(checkpoint)], checkpoint),
        "elsewhere": ([str(copy), "--env", "CartPole-v1"], copy),
    }[place]
    evaluate_main([*arguments, "--episodes", "2", "--json"])
    (line,) = capsys.readouterr().out.splitlines()
    result = json.loads(line)
    assert (result["file"], result["env"], result["algo"], result["episodes"]) == (str(file), "CartPole-v1", "ppo", 2)
    assert result["min_return"] <= result["median_return"] <= result["max_return"]


def test_evaluation_repeats_with_a_seed_and_sampling_differs(run: Path) -> None:
    agent = PPO.load(run / "model.zip", device="cpu")
    envs = training_envs("CartPole-v1", 2, "sync", None, {})
    generators = {name: generator.get_state() for name, generator in agent.generators.items() if name != "prediction"}
    first, second = evaluate(agent, envs, 4, seed=5), evaluate(agent, envs, 4, seed=5)
    assert first == second
    assert evaluate(agent, envs, 4, deterministic=False, seed=5) != first
    assert all(torch.equal(agent.generators[name].get_state(), state) for name, state in generators.items())
    envs.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--episodes", "0"], "episodes: expected a whole number of at least 1, got 0"),
        (["{run}", "--frame-stack", "0"], "frame_stack: expected a whole number of at least 1, got 0"),
        (["{run}", "--env", "Pendulum-v1"], "env: the observation space of Pendulum-v1 is .*, the agent's is"),
        (["{run}", "--env", "CartPol-v1"], "env: 'CartPol-v1' is not registered"),
        (["{run}", "--video", "out.avi"], "video: expected a name that ends in .mp4, got 'out.avi'"),
        (["{tmp}/truncated.zip", "--env", "CartPole-v1"], "run: .*truncated.zip is not a whole file of rlopt"),
        (["{tmp}/foreign.zip", "--env", "CartPole-v1"], "run: .*foreign.zip is not a whole file of rlopt"),
        (["{tmp}/sb3.zip", "--env", "CartPole-v1"], "run: .*sb3.zip is a zip, but not one of rlopt; rlopt.import_sb3"),
        (["{tmp}/none.zip", "--env", "CartPole-v1"], "run: there is no file .*none.zip"),
        (["{tmp}/truncated.zip"], "env: .*truncated.zip is not in a run folder; name the environment with --env"),
        (["{tmp}/truncated.zip", "--best"], "best: expected a run folder"),
        (["{tmp}"], "run: expected .* to be a run folder with a config.yaml"),
        (["{tmp}/unfinished"], "run: .*unfinished has no model.zip; did its training end"),
        (["{tmp}/unfinished", "--best"], "run: .*unfinished has no best_model.zip; train with --eval-freq"),
    ],
)
def test_bad_input_for_evaluate_is_one_message(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    whole = (run / "model.zip").read_bytes()
    (tmp_path / "truncated.zip").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "foreign.zip").write_bytes(b"\x80\x04not a zip")
    with zipfile.ZipFile(tmp_path / "sb3.zip", "w") as archive:
        archive.writestr("_stable_baselines3_version", "2.7.0")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text("env: CartPole-v1\n")
    error = refused(capsys, evaluate_main, [argument.format(run=run, tmp=tmp_path) for argument in arguments])
    assert re.match(f"rlopt-evaluate: error: {message}", error), error
    assert error.count("\n") == 1


def test_both_modes_at_once_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, evaluate_main, [str(run), "--deterministic", "--stochastic"])
    assert "--deterministic and --stochastic are not allowed together" in error


def test_video_without_moviepy_says_what_to_install(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moviepy", None)
    error = refused(capsys, evaluate_main, [str(run), "--video", "out.mp4"])
    assert "video: writing MP4 needs moviepy, which is not installed: pip install 'rlopt[video]'" in error


def test_videos_are_written(tmp_path: Path, run: Path) -> None:
    pytest.importorskip("pygame")
    pytest.importorskip("moviepy")
    evaluate_main([str(run), "--episodes", "1", "--video", str(tmp_path / "deep" / "out.mp4")])
    assert (tmp_path / "deep" / "out.mp4").read_bytes()[4:8] == b"ftyp"


def test_a_video_for_tensorboard_is_an_animation(tmp_path: Path) -> None:
    pytest.importorskip("pygame")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(train(tmp_path, "--video")))
    events.Reload()
    (image,) = events.Images("policy")
    assert image.encoded_image_string[:6] == b"GIF89a"
    assert max(image.width, image.height) <= 240


# ---------------------------------------------------------------------- scripts


@pytest.mark.parametrize("name", ["train", "evaluate", "plot"])
def test_scripts_are_the_commands(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert f"usage: rlopt-{name}" in capsys.readouterr().out


def test_a_script_from_outside(tmp_path: Path) -> None:
    arguments = [sys.executable, str(SCRIPTS / "train.py"), *QUICK.split(), "--json", "--progress", "--verbose", "1"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["run_dir"] == "runs/ppo/CartPole-v1/1"
    assert "return" in done.stderr  # the progress bar's last state


@pytest.mark.parametrize("name", ["s2pg", "recurrentppo"])
def test_policies_with_memory_train_and_are_evaluated(name: str, tmp_path: Path) -> None:
    folder = train(tmp_path, "--algo", name, "--env", "CartPoleNoVel-v1", "--total-timesteps", "256", "--n-steps", "64")
    agent = ALGORITHMS[name].load(folder / "model.zip", device="cpu")
    assert agent.memory is not None
    assert agent.initial_state(2) is not None
