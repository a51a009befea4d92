"""The commands with several objectives: preferences, archives, TensorBoard's first page, and what cannot work."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium import spaces

from rlopt import ALGORITHMS, PPO, evaluate
from rlopt.cli import evaluate_main, plot_main, train_main
from rlopt.cli.environments import Task, known_front, paid_rewards, preference_lattice
from rlopt.pareto import ParetoArchive

pytest.importorskip("moocore")

PPO_QUICK = "--n-steps 32 --num-envs 4 --batch-size 64 --n-epochs 1"
EPISODIC_QUICK = "--num-episodes 8 --num-envs 8"
QUICK = "--device cpu --total-timesteps 256 --eval-episodes 2 --no-progress"
TRADE, SILENT = "rlopt-test/Trade-v0", "rlopt-test/SilentTrade-v0"


class Trade(gym.Env[Any, Any]):
    """An episode is two steps; an action a in [0, 1] pays (a, 1 − a), or 1 and 2 whatever is done."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Box(0, 1, (1,), np.float32)
    metadata: ClassVar[dict[str, Any]] = {"render_modes": []}

    def __init__(self, constant: bool = False, announce: bool = True):
        self.constant = constant
        if announce:
            self.reward_space = spaces.Box(0, 2, (2,), np.float32)

    def pareto_front(self, gamma: float) -> list[Any]:
        return [np.array([1.0, 2.0]) * (1 + gamma)]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        share = float(np.clip(action[0], 0, 1))
        rewards = np.array([1.0, 2.0] if self.constant else [share, 1 - share])
        return np.full(2, self.time / 2, np.float32), rewards, self.time == 2, False, {}


gym.register(TRADE, Trade)
gym.register(SILENT, Trade, kwargs={"announce": False})


def train(run_dir: Path, algo: str, *more: str) -> Path:
    """A short run's folder."""
    sizes = PPO_QUICK if algo == "ppo" else EPISODIC_QUICK
    arguments = [*QUICK.split(), *sizes.split(), "--algo", algo, "--run-dir", str(run_dir), "--run-name", "run", *more]
    train_main(arguments if "--env" in more or "--config" in more else [*arguments, "--env", TRADE])
    return next(run_dir.glob("*/*/run"))


def stopped(capsys: pytest.CaptureFixture[str], main: Any, argv: list[str], code: int = 2) -> str:
    """The one line of a command that ends with this exit code."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == code
    (line,) = capsys.readouterr().err.splitlines()
    return line


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """name -> its steps and values, as TensorBoard shows them."""
    return {name: [(event.step, event.value) for event in events_of(run).Scalars(name)] for name in tags_of(run)}


def tags_of(run: Path) -> list[str]:
    return list(events_of(run).Tags()["scalars"])


def events_of(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run))
    events.Reload()
    return events


@pytest.fixture(scope="module")
def preference_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    more = ["--utility", "preferences", "--reference", "-1", "-1", "--eval-freq", "128", "--save-freq", "128"]
    return train(tmp_path_factory.mktemp("runs"), "ppo", *more)


# ---------------------------------------------------------------------- training


def test_preferences_are_seen_and_reach_the_archive_each_for_itself(preference_run: Path) -> None:
    agent = PPO.load(preference_run / "model.zip", device="cpu")
    assert agent.observation_space["preference"].shape == (2,)
    config = yaml.safe_load((preference_run / "config.yaml").read_text())
    assert (config["policy"], config["utility"], config["reference"]) == ("MultiInputPolicy", "preferences", [-1.0, -1.0])
    archive = ParetoArchive.load(preference_run / "pareto.zip")
    assert archive.points.sum(1) == pytest.approx(2)  # whatever is done pays 1 a step in all
    asked = [tuple(member.info["preference"]) for member in archive.members]
    assert len(set(asked)) > 1
    assert set(asked) <= {tuple(weights) for weights in preference_lattice(2).tolist()}


def test_an_evaluation_under_way_is_one_for_each_preference_of_the_lattice(preference_run: Path) -> None:
    """The archive knows what the agent would do now, for the points that its last parameters reached."""
    agent = PPO.load(preference_run / "model.zip", device="cpu")
    archive = ParetoArchive.load(preference_run / "pareto.zip")
    last = [member for member in archive.members if member.theta is not None and torch.equal(member.theta, agent.state.theta)]
    assert last
    for member in last:
        envs = Task(TRADE, preferences=True).evaluation(2, 0, member.info["preference"])
        assert evaluate(agent, envs, 2, seed=0).mean == pytest.approx(member.point)
        envs.close()


def test_a_single_policy_is_evaluated_as_often_as_was_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two steps of (1, 2) from (0, 0): a box of 2 · 4, which is the true front."""
    more = ["--utility", "0.5,0.5", "--reference", "0", "0", "--eval-freq", "128", "--env-kwargs", "{constant: true}", "--json"]
    run = train(tmp_path, "ppo", *more)
    result = json.loads(capsys.readouterr().out)
    assert (result["hypervolume"], result["archive_size"], result["reference"]) == (8, 1, [0, 0])
    logged = scalars(run)
    assert logged["pareto/hypervolume"] == [(128, 8), (256, 8), (256, 8)]  # the last after the last update
    assert {value for _, value in logged["pareto/igd_plus"]} == {0}
    assert logged["result/hypervolume"][0][1] == 8
    assert not (run / "best_model.zip").exists()


def test_a_reference_alone_evaluates_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--utility", "0.5,0.5", "--reference", "0", "-0.5", "--env-kwargs", "{constant: true}"]
    run = train(tmp_path, "mopg", *more)
    out = capsys.readouterr().out
    assert re.search(r"archive +1 point that no other dominates\nhypervolume +9 above \(0, -0\.5\)", out)
    assert f"{run} --front" in out
    assert len(scalars(run)["pareto/hypervolume"]) == 1


def test_without_a_reference_there_is_no_archive(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "ppo", "--utility", "0.5,0.5", "--json")
    assert "hypervolume" not in json.loads(capsys.readouterr().out)
    assert not (run / "pareto.zip").exists()


def test_the_front_of_a_run_is_drawn(preference_run: Path, tmp_path: Path) -> None:
    plot_main([str(preference_run), "--front", "--out", str(tmp_path / "front.png")])
    assert (tmp_path / "front.png").read_bytes()[:4] == b"\x89PNG"


def test_a_config_file_repeats_the_run_and_evaluations_do_not_touch_it(tmp_path: Path, preference_run: Path) -> None:
    again = train(tmp_path, "ppo", "--config", str(preference_run / "config.yaml"), "--eval-freq", "0", "--save-freq", "0")
    first, second = (PPO.load(run / "model.zip", device="cpu").state.theta for run in (preference_run, again))
    assert torch.equal(first, second)
    assert yaml.safe_load((again / "config.yaml").read_text())["reference"] == [-1.0, -1.0]


def test_frames_are_stacked_inside_the_preferences(tmp_path: Path) -> None:
    run = train(tmp_path, "ppo", "--utility", "preferences", "--frame-stack", "3")
    space = PPO.load(run / "model.zip", device="cpu").observation_space
    assert (space["observation"].shape, space["preference"].shape) == ((6,), (2,))
    evaluate_main([str(run), "--episodes", "1"])


def test_rewards_that_nobody_announced_are_counted(tmp_path: Path) -> None:
    run = train(tmp_path, "ppo", "--env", SILENT, "--utility", "preferences", "--reference", "0", "0")
    assert len(ParetoArchive.load(run / "pareto.zip"))
    envs = Task(SILENT).evaluation(2, 0)
    assert envs.num_objectives is None
    assert paid_rewards(envs) == 2
    envs.close()


def test_stochastic_evaluations_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A deterministic policy does the same in every episode of this environment, one that samples does not."""
    deviations = []
    for mode in ("--no-eval-stochastic", "--eval-stochastic"):
        train(tmp_path / mode, "ppo", "--utility", "0.5,0.5", "--json", "--eval-episodes", "8", mode)
        deviations.append(json.loads(capsys.readouterr().out)["eval_std_return"][0])
    assert deviations[0] == pytest.approx(0, abs=1e-6)
    assert deviations[1] > 0.01


def test_the_environment_tells_its_front() -> None:
    envs, other = Task(TRADE).evaluation(1, 0), Task("CartPole-v1").evaluation(1, 0)
    front = known_front(envs)
    assert front is not None
    assert front.tolist() == [[2, 4]]
    assert known_front(other) is None
    envs.close()
    other.close()


@pytest.mark.parametrize(("num_objectives", "size"), [(2, 21), (3, 55), (4, 56), (64, 64)])
def test_lattices_of_preferences_cover_the_corners(num_objectives: int, size: int) -> None:
    lattice = preference_lattice(num_objectives)
    assert len(lattice) == size
    assert np.eye(num_objectives).tolist() == [row for row in np.eye(num_objectives).tolist() if row in lattice.tolist()]


# ---------------------------------------------------------------------- evaluating


def test_a_policy_for_preferences_gets_a_table_of_them(preference_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_main([str(preference_run), "--episodes", "2", "--json"])
    captured = capsys.readouterr()
    rows = json.loads(captured.out)["preferences"]
    assert [row["preference"] for row in rows] == preference_lattice(2).tolist()
    agent = PPO.load(preference_run / "model.zip", device="cpu")
    for row in rows[::10]:
        envs = Task(TRADE, preferences=True).evaluation(2, 0, row["preference"])
        assert evaluate(agent, envs, 2, seed=0).mean == pytest.approx(row["mean_return"])
        assert row["utility"] == pytest.approx(np.dot(row["preference"], row["mean_return"]))
        envs.close()
    assert len({tuple(row["mean_return"]) for row in rows}) > 1  # the policy looks at them
    assert len(re.findall(r"^\([\d.]+, [\d.]+\) +\([\d.-]+, [\d.-]+\) +[\d.-]+ +2\.0$", captured.err, re.MULTILINE)) == 21


@pytest.mark.parametrize("place", ["folder", "checkpoint", "elsewhere"])
def test_one_preference_is_evaluated_wherever_the_agent_lies(
    preference_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    copy = tmp_path / "agent.zip"
    copy.write_bytes((preference_run / "model.zip").read_bytes())
    checkpoint = next((preference_run / "checkpoints").iterdir())
    arguments = {"folder": [str(preference_run)], "checkpoint": [str(checkpoint)], "elsewhere": [str(copy), "--env", TRADE]}
    evaluate_main([*arguments[place], "--episodes", "2", "--preference", "0.25", "0.75", "--json"])
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["preference"] == [0.25, 0.75]
    assert sum(result["mean_return"]) == pytest.approx(2)
    assert "preference   (0.25, 0.75)" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preference", "1"], r"preference: expected 2 numbers, one an objective, got shape \(1,\)"),
        (["--preference", "0.5", "0.6"], "preference: expected weights that sum to one, got 1.1"),
        (["--preference", "-1", "2"], "preference: expected weights that are finite and not negative, got -1"),
        (["--best"], "run: .* has no best_model.zip; of several objectives no model is best; pareto.zip has those"),
        (["--env", "CartPole-v1"], "utility: preferences are weights of several objectives, and CartPole-v1 pays one reward"),
    ],
)
def test_bad_input_for_evaluate_is_one_line(
    preference_run: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    line = stopped(capsys, evaluate_main, [str(preference_run), *arguments])
    assert re.match(f"rlopt-evaluate: error: {message}", line), line


def test_a_preference_for_an_agent_that_takes_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, "mopg", "--utility", "0.5,0.5")
    line = stopped(capsys, evaluate_main, [str(run), "--preference", "0.5", "0.5"])
    assert "preference: expected an agent that was trained with --utility preferences; this one takes none" in line


# ---------------------------------------------------------------------- TensorBoard


RUNS = {
    "ppo-preferences": ("ppo", "--utility", "preferences"),
    "ppo-utility": ("ppo", "--utility", "0.5,0.5"),
    "mopg": ("mopg", "--utility", "0.5,0.5"),
    "mo-tsivr-pg": ("mo-tsivr-pg", "--utility", "0.5,0.5", "--num-small", "4"),
}


@pytest.mark.parametrize("evaluated", [True, False], ids=["evaluated", "not evaluated"])
@pytest.mark.parametrize("name", RUNS)
def test_no_chart_of_the_first_page_is_empty(tmp_path: Path, name: str, evaluated: bool) -> None:
    """TensorBoard shows a series in a chart if one of the chart's expressions matches the beginning of its name."""
    from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

    algo, *more = RUNS[name]
    run = train(tmp_path, algo, *more, *(["--reference", "-1", "-1", "--eval-freq", "100"] if evaluated else []))
    (event,) = events_of(run).Tensors("custom_scalars__config__")
    layout, tags = Layout.FromString(event.tensor_proto.string_val[0]), tags_of(run)
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    shown = {title: [tag for tag in tags if any(re.match(key, tag) for key in keys)] for title, keys in charts.items()}
    assert [title for title, series in shown.items() if not series] == []
    first = {tag for chart in layout.category[0].chart for tag in shown[chart.title]}
    assert {"rollout/ep_rew_mean_0", "rollout/ep_rew_mean_1"} <= first
    assert ("train/utility" in first) == (name != "ppo-preferences")
    assert {"pareto/hypervolume", "pareto/hypervolume_last"} <= first or not evaluated
    assert ("pareto/preference_utility" in first) == (evaluated and name == "ppo-preferences")
    assert ("pareto/return_1" in first) == (evaluated and name != "ppo-preferences")


def test_rewards_of_episodes_are_lists_in_the_log(preference_run: Path) -> None:
    with (preference_run / "episodes.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(sum(json.loads(row["return"])) == pytest.approx(2) for row in rows)


# ---------------------------------------------------------------------- bad input for training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ppo --utility 0.5,0.5 --eval-freq 100", "eval_freq: .* pays 2 rewards, of which no model is best; give --reference"),
        ("ppo --utility 0.5,0.5 --reference 0", r"reference: expected 2 numbers, .* got shape \(1,\)"),
        ("ppo --utility 0.5,0.5 --reference 0 0 0", r"reference: expected 2 numbers, .* got shape \(3,\)"),
        ("ppo --utility 0.5,0.5 --reference 0 nan", "reference: expected finite numbers, got nan"),
        ("ppo --env CartPole-v1 --reference 0 0", "reference: CartPole-v1 pays one reward"),
        ("ppo --env CartPole-v1 --utility preferences", "utility: preferences are weights of several objectives, and CartPole"),
        ("ppo --utility preferences --num-objectives 3", "env: it pays 2 rewards a step, and num_objectives is 3"),
        ("ppo --utility preferences --memory s2pg", "utility: a policy with memory has a critic of one objective"),
        ("ppo --utility preferences --policy MlpPolicy", "policy: 'MlpPolicy' cannot read a Dict .* 'MultiInputPolicy'"),
        ("ppo --utility preference", "utility: expected 'preferences' or .*; did you mean 'preferences'"),
        ("ppo --utility chebychev:1,1;ideal=1,1", "utility: expected one of .*; did you mean 'chebyshev'"),
        ("ppo --utility chebyshev:1,1", "utility: expected chebyshev:WEIGHTS;ideal=IDEAL.*: ideal missing"),
        ("ppo --utility 0.2,0.3,0.5", "env: it pays 2 rewards a step, and the utility is one of 3"),
        ("ppo --utility identity", "env: it pays 2 rewards a step, and the utility is one of 1"),
        ("ppo --utility 0.2,0.3,0.5 --num-objectives 2", "num_objectives: expected 3, as the utility is one of so many, got 2"),
        ("ppo", "env: it pays 2 rewards a step and PPO maximises one; use PPO or MOPG with utility="),
        ("ppo --env CartPole-v1 --utility 0.5,0.5", "env: it pays 1 reward a step, and the utility is one of 2"),
        ("mopg --utility 0.2,0.3,0.5", "env: it pays 2 rewards a step, and the utility is one of 3"),
        ("mopg --env CartPole-v1 --utility 0.5,0.5", "env: it pays 1 reward a step, and the utility is one of 2"),
        (f"mopg --env {SILENT} --utility 0.2,0.3,0.5", "env: it pays 2 rewards a step, and the utility is one of 3"),
        ("mo-tsivr-pg", "env: it pays 2 rewards a step, and the utility is one of 1"),
        ("mopg --utility preferences", "utility: expected one of .*, got 'preferences'"),
        ("mo-tsivr-pg --utility 0.5,x", "utility: expected weighted-sum"),
        ("nvrpg --utility preferences", "utility: expected one of reward, entropy"),
    ],
)
def test_what_cannot_work_is_one_line_and_leaves_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    argv = ["--algo", *arguments.split(), "--run-dir", str(tmp_path / "runs"), *QUICK.split()]
    line = stopped(capsys, train_main, argv if "--env" in argv else [*argv, "--env", TRADE])
    assert re.match(f"rlopt-train: error: {message}", line), line
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (f"mopg {EPISODIC_QUICK} --utility fairness:-2", "utility: fairness:-2: .* is nan .*; saved .*model.zip"),
        (f"ppo {PPO_QUICK} --utility fairness:-2", "utility: fairness:-2: .* is nan .*; saved .*model.zip"),
    ],
)
def test_what_training_shows_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    argv = ["--algo", *arguments.split(), "--run-dir", str(tmp_path), *QUICK.split()]
    line = stopped(capsys, train_main, argv if "--env" in argv else [*argv, "--env", TRADE])
    assert re.match(f"rlopt-train: error: {message}", line), line


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("reference: 1", "reference: expected a list of which each is a number, got 1"),
        ("reference: [a, b]", "reference: expected a number, got 'a'"),
        ("utility: {a: 1}", "utility: expected null or .*, got {'a': 1}"),
        ("utility: preferences\nreference: [0]", "reference: expected 2 numbers"),
    ],
)
def test_a_bad_config_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"algo: ppo\nenv: {TRADE}\n{content}\n")
    line = stopped(capsys, train_main, ["--config", str(path), "--run-dir", str(tmp_path / "runs"), "--device", "cpu"])
    assert re.match(f"rlopt-train: error: {message}", line), line


def test_without_moocore_a_reference_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "moocore", None)
    argv = ["--env", TRADE, "--utility", "0.5,0.5", "--reference", "0", "0", "--run-dir", str(tmp_path / "runs")]
    assert "pip install 'rlopt[mo]'" in stopped(capsys, train_main, argv)
    assert not (tmp_path / "runs").exists()


# ---------------------------------------------------------------------- environments of MO-Gymnasium


def test_deep_sea_treasure_needs_no_more_than_its_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mo_gymnasium")
    argv = ["--env", "deep-sea-treasure-v0", "--algo", "mo-tsivr-pg", "--run-dir", str(tmp_path), "--device", "cpu"]
    train_main(
        [*argv, "--num-envs", "2", "--num-episodes", "2", "--num-small", "2", "--total-timesteps", "10", "--no-progress"]
    )
    (run,) = tmp_path.glob("*/*/1")
    agent = ALGORITHMS["mo-tsivr-pg"].load(run / "model.zip", device="cpu")
    assert (agent.utility, agent.gamma, agent.policy.net_arch) == ("deep-sea-treasure", 1.0, [128])
