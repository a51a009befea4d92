"""Exported agents, played in onnxruntime beside `predict`: the same actions and memories, step by step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.torch_layers import FlattenExtractor

from rlopt import ALGORITHMS, PPO, S2PG, export
from rlopt.__main__ import main
from rlopt.export import METADATA, export_onnx
from rlopt.policies import draw_noise
from rlopt.step_function import StepFunction
from rlopt.version import __version__
from tests.small_envs import ACTION_SPACES, OBSERVATION_SPACES, Walk
from tests.test_cli import refused

NEEDED = ("onnx", "onnxscript", "onnxruntime")
onnx, _, onnxruntime = (pytest.importorskip(name, reason=f"{name} is missing: pip install 'rlopt[onnx]'") for name in NEEDED)

EVERYTHING = spaces.Dict(
    {
        "arm": spaces.Dict({"joint": spaces.Box(-5, 5, (2,), np.float64), "on": spaces.MultiBinary([2, 2])}),
        "count": spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, 1], [0, -1]]),
        "linear": spaces.Box(-np.inf, np.inf, (), np.float32),  # also the name of an operation
        "pair": spaces.Tuple([spaces.Discrete(3, start=-1), spaces.Box(-5, 5, (2, 2), np.float32)]),
    }
)
PRIVILEGED = spaces.Dict(
    {"observation": spaces.Box(-np.inf, np.inf, (3,), np.float32), "critic": spaces.Box(-np.inf, np.inf, (2,), np.float32)}
)
SHOWN = {**OBSERVATION_SPACES, "everything": EVERYTHING, "privileged": PRIVILEGED}
ACTIONS = {
    **ACTION_SPACES,
    "shifted_multi": spaces.MultiDiscrete([[2, 3], [2, 2]], start=[[1, 0], [0, 5]]),
    "matrix": spaces.Box(np.array([[-1, -np.inf]]), np.array([[np.inf, 0.1]]), dtype=np.float64),
    "whole": spaces.Box(-3, 3, (2,), np.int32),
}


class Shown(Walk):
    """A `Walk` with other spaces."""

    def __init__(self, observations: str, actions: str):
        super().__init__()
        self.observation_space, self.action_space = SHOWN[observations], ACTIONS[actions]


def agent_of(cls: Any, observations: str, actions: str, **kwargs: Any) -> Any:
    """An agent whose weights are far from their first values, and so its actions differ."""
    space = SHOWN[observations]
    nested = isinstance(space, spaces.Dict | spaces.Tuple) and observations != "privileged"
    policy = "MultiInputPolicy" if nested else "CnnPolicy" if "image" in observations else "MlpPolicy"
    agent = cls(policy, Shown(observations, actions), seed=0, device="cpu", **kwargs)
    agent.state.theta.add_(0.1 * torch.randn(agent.state.theta.shape, generator=torch.Generator().manual_seed(1)))
    agent.policy.action_net.weight.data.mul_(5.0)
    agent.policy.action_net.bias.data.zero_()
    if agent.observation_normalizer is not None:
        for number, moments in enumerate(agent.observation_normalizer.moments.values()):
            moments.update(np.random.default_rng(number).normal(1000.0, 0.1, (50, *moments.mean.shape)))
    return agent


def document(file: Path) -> Any:
    """The metadata as a strict reader of JSON sees them."""

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map[METADATA], parse_constant=never)


def observations_of(agent: Any, rows: int, steps: int) -> list[Any]:
    """Random raw observations, where the statistics say that they are."""
    space, random = agent.encoder.space, np.random.default_rng(0)
    space.seed(0)
    return [agent.encoder.decode(export._observations(agent, space, rows, random)) for _ in range(steps)]


def feeds_of(file: Path, observation: Any) -> dict[str, Any]:
    """What the metadata say that the file takes of an observation."""
    feeds = {}
    for entry in document(file)["inputs"]:
        name, *keys = entry["name"].split("/")
        if name == "observation":
            value = observation
            for key in keys:
                value = value[int(key) if isinstance(value, tuple) else key]
            feeds[entry["name"]] = np.asarray(value, entry["dtype"])
            assert list(feeds[entry["name"]].shape[1:]) == entry["shape"][1:]
    return feeds


def assert_plays_like_predict(agent: Any, file: Path, rows: int = 5, steps: int = 20) -> None:
    """Feed the file its own outputs, as its metadata say, and compare every step with `predict`."""
    session, data = onnxruntime.InferenceSession(file), document(file)
    carried = {key: np.tile(np.array(value, np.float32), (rows, 1)) for key, value in data["initial_state"].items()}
    state, actions = agent.initial_state(rows), []
    for observation in observations_of(agent, rows, steps):
        feeds = feeds_of(file, observation) | carried
        if not data["deterministic"]:
            generator = torch.Generator()
            generator.set_state(agent.generators["prediction"].get_state())
            size = sum(part["size"] for part in data["noise"])
            feeds["noise"] = draw_noise(agent.policy.action_space, (rows,), generator).numpy()[:, :size]
        outputs = dict(zip([entry["name"] for entry in data["outputs"]], session.run(None, feeds)))
        action, state = agent.predict(observation, state, deterministic=data["deterministic"])
        assert outputs["action"].dtype == action.dtype == agent.action_space.dtype
        # convolutions add up in another order there
        np.testing.assert_allclose(outputs["action"], action, rtol=1e-5, atol=3e-5)
        for name, expected in ({} if state is None else state._asdict()).items():
            output = outputs[f"next_{name}"]  # a recurrent critic's memory, the end of the agent's, is not in the file
            np.testing.assert_allclose(output, expected[:, : output.shape[1]], rtol=1e-5, atol=1e-5)
        carried = {name: outputs[source] for source, name in data["feed_back"].items()}
        assert set(carried) == ({"memory", "previous_action"} if state is not None else set())
        actions.append(action)
    assert len(np.unique(np.concatenate(actions), axis=0)) > 1


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A PPO that normalises what it sees, and what the command makes of its file."""
    agent, folder = agent_of(PPO, "box", "discrete", normalize_observations=True), tmp_path_factory.mktemp("plain")
    agent.save(folder / "agent.zip")
    main(["export", str(folder / "agent.zip"), str(folder / "new" / "agent")])
    return agent, folder / "new" / "agent.onnx"


@pytest.fixture(scope="module")
def stateful(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """An S2PG whose critic sees more, and its file, which samples."""
    agent = agent_of(S2PG, "privileged", "shifted", normalize_observations=True, memory_size=5)
    return agent, agent.export(tmp_path_factory.mktemp("stateful") / "agent.onnx", deterministic=False)


# ---------------------------------------------------------------------- the same as predict


def test_a_normalising_agent_plays_in_onnxruntime_as_here(plain: tuple[Any, Path]) -> None:
    assert_plays_like_predict(*plain)
    assert_plays_like_predict(*plain, rows=1)


def test_a_stateful_agent_that_samples_plays_in_onnxruntime_as_here(stateful: tuple[Any, Path]) -> None:
    assert_plays_like_predict(*stateful)
    assert_plays_like_predict(*stateful, rows=1)


CASES = [
    (PPO, "everything", "shifted_multi", {}, False),
    (PPO, "image", "box", {"policy_kwargs": {"squash_output": True}}, True),
    (S2PG, "discrete", "box", {"policy_kwargs": {"cell": "lstm", "squash_output": True}}, True),
]
MORE_CASES = [
    *((PPO, observations, "box", {}, True) for observations in SHOWN if observations != "privileged"),
    *((PPO, "box", actions, {}, deterministic) for actions in ACTIONS for deterministic in (True, False)),
    *(
        (S2PG, observations, actions, {"policy_kwargs": {"cell": cell}, "normalize_observations": True}, deterministic)
        for cell, observations in (("gru", "box"), ("lstm", "privileged"), ("mlp", "everything"))
        for actions in ("discrete", "box", "shifted_multi", "binary")
        for deterministic in (True, False)
    ),
    (S2PG, "image", "discrete", {"policy_kwargs": {"previous_action": False}}, True),
    *(
        (ALGORITHMS["recurrentppo"], "privileged", actions, {}, deterministic)
        for actions, deterministic in (("box", True), ("shifted_multi", False))
        if "recurrentppo" in ALGORITHMS
    ),
]


@pytest.mark.parametrize(
    ("cls", "observations", "actions", "kwargs", "deterministic"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_CASES)],
)
def test_every_space_and_kernel_plays_in_onnxruntime_as_here(
    tmp_path: Path, cls: Any, observations: str, actions: str, kwargs: dict[str, Any], deterministic: bool
) -> None:
    agent = agent_of(cls, observations, actions, **kwargs)
    assert_plays_like_predict(agent, agent.export(tmp_path / "agent.onnx", deterministic))


def test_zeros_begin_an_episode_anew(stateful: tuple[Any, Path]) -> None:
    agent, file = stateful
    session, (observation,) = onnxruntime.InferenceSession(file), observations_of(agent, 3, 1)
    first = {name: np.tile(np.array(value, np.float32), (3, 1)) for name, value in document(file)["initial_state"].items()}
    for name, value in agent.initial_state(3)._asdict().items():
        np.testing.assert_array_equal(first[name], value)
    feeds = feeds_of(file, observation) | {"noise": np.zeros((3, 3 + 5), np.float32)}
    _, memory, previous = session.run(None, feeds | first)
    assert np.abs(memory).min(1).max() > 0
    later = session.run(None, feeds | {"memory": memory, "previous_action": previous})
    assert np.abs(later[1] - memory).max() > 1e-3
    kept = np.array([[1.0], [0.0], [1.0]], np.float32)  # the second row's episode ended
    mixed = session.run(None, feeds | {"memory": kept * memory, "previous_action": kept * previous})
    np.testing.assert_array_equal(mixed[1][[0, 2]], later[1][[0, 2]])
    np.testing.assert_allclose(mixed[1][1], memory[1], rtol=0, atol=1e-6)


def test_exporting_changes_nothing_of_the_agent(plain: tuple[Any, Path]) -> None:
    agent, _ = plain
    step = StepFunction(agent)
    theta, generator = agent.state.theta.clone(), agent.generators["prediction"].get_state()
    agent.policy.action_net.weight.data.add_(0.0)
    export._check(agent, step, plain[1].read_bytes(), True)
    assert torch.equal(agent.state.theta, theta)
    assert torch.equal(agent.generators["prediction"].get_state(), generator)
    assert all(parameter.requires_grad for parameter in agent.policy.parameters())
    agent.state.theta.add_(1.0)
    assert torch.equal(torch.cat([p.reshape(-1) for p in step.policy.parameters()]), theta)
    agent.state.theta.copy_(theta)


# ---------------------------------------------------------------------- the file


def test_the_metadata_say_what_goes_in_and_out(plain: tuple[Any, Path], stateful: tuple[Any, Path]) -> None:
    data = document(plain[1])
    assert data["observation_space"] == {"space": "Box", "shape": [3], "dtype": "float32", "low": None, "high": None}
    assert data["action_space"] == {"space": "Discrete", "n": 3, "start": 0}
    assert (data["rlopt"], data["algorithm"], data["policy"]) == (__version__, "PPO", "MlpPolicy")
    assert data["inputs"] == [{"name": "observation", "shape": ["batch", 3], "dtype": "float32"}]
    assert data["outputs"] == [{"name": "action", "shape": ["batch"], "dtype": "int64"}]
    assert (data["deterministic"], data["noise"], data["initial_state"], data["feed_back"]) == (True, [], {}, {})
    data = document(stateful[1])
    assert data["algorithm"] == "S2PG"
    assert [(entry["name"], entry["shape"]) for entry in data["inputs"]] == [
        ("observation/observation", ["batch", 3]),  # and nothing of "critic"
        ("memory", ["batch", 5]),
        ("previous_action", ["batch", 3]),
        ("noise", ["batch", 3 + 5]),
    ]
    assert [(entry["name"], entry["shape"]) for entry in data["outputs"]] == [
        ("action", ["batch"]),
        ("next_memory", ["batch", 5]),
        ("next_previous_action", ["batch", 3]),
    ]
    assert data["noise"] == [{"distribution": "gumbel", "size": 3}, {"distribution": "normal", "size": 5}]
    assert data["initial_state"] == {"memory": [0.0] * 5, "previous_action": [0.0] * 3}
    assert data["feed_back"] == {"next_memory": "memory", "next_previous_action": "previous_action"}


@pytest.mark.parametrize("fixture", ["plain", "stateful"])
def test_the_graph_has_the_metadatas_shapes_and_nothing_of_this_machine(fixture: str, request: pytest.FixtureRequest) -> None:
    file = request.getfixturevalue(fixture)[1]
    session, data, content = onnxruntime.InferenceSession(file), document(file), file.read_bytes()
    for entries, values in ((data["inputs"], session.get_inputs()), (data["outputs"], session.get_outputs())):
        assert [(entry["name"], entry["shape"]) for entry in entries] == [(value.name, value.shape) for value in values]
    onnx.checker.check_model(onnx.load(file), full_check=True)
    assert b".py" not in content
    assert str(Path(__file__).parents[1]).encode() not in content
    assert b"value_net" not in content
    assert b"critic_net" not in content
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.slow
def test_agent_and_command_write_the_same_bytes_and_nothing_on_standard_error(
    plain: tuple[Any, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    agent, file = plain
    before = torch.get_rng_state()
    assert agent.export(tmp_path / "agent.onnx").read_bytes() == file.read_bytes()
    assert torch.equal(torch.get_rng_state(), before)
    assert capfd.readouterr() == ("", "")
    agent.save(tmp_path / "agent.zip")
    main(["export", str(tmp_path / "agent.zip"), str(tmp_path / "again.onnx")])
    assert capfd.readouterr() == (f"PPO, deterministic, {file.stat().st_size:,} bytes → {tmp_path / 'again.onnx'}\n", "")
    assert (tmp_path / "again.onnx").read_bytes() == file.read_bytes()


# ---------------------------------------------------------------------- errors


class Unexportable(FlattenExtractor):
    """Looks at a value in Python."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return super().forward(observations) if float(observations.sum()) > 0 else super().forward(-observations)


def test_a_policy_that_onnx_cannot_express_is_one_clear_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    agent = agent_of(PPO, "box", "discrete", policy_kwargs={"features_extractor_class": Unexportable})
    with pytest.raises(RuntimeError, match=r"^policy: MlpPolicy cannot be written as ONNX: .+"):
        agent.export(tmp_path / "agent.onnx")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_does_something_else_is_refused(plain: tuple[Any, Path]) -> None:
    blob = plain[1].read_bytes()
    other = agent_of(PPO, "box", "discrete", normalize_observations=True)
    export._check(other, StepFunction(other), blob, True)
    other.observation_normalizer.moments[""].mean += 0.1
    with pytest.raises(RuntimeError, match="gives another action than the agent"):
        export._check(other, StepFunction(other), blob, True)


def test_small_differences_are_found_where_outputs_are_numbers(stateful: tuple[Any, Path]) -> None:
    other = agent_of(S2PG, "privileged", "shifted", normalize_observations=True, memory_size=5)
    other.policy.kernel.bias_ih.data[-1] += 1e-4
    with pytest.raises(RuntimeError, match="gives another next_memory than the agent"):
        export._check(other, StepFunction(other), stateful[1].read_bytes(), False)


def test_ties_may_fall_either_way_and_nothing_else() -> None:
    agent = agent_of(PPO, "box", "discrete")
    for parameter, value in ((agent.policy.action_net.weight, 0.0), (agent.policy.action_net.bias, 0.0)):
        parameter.data.fill_(value)
    agent.policy.action_net.bias.data[2] = -1e-3
    own = agent.actor_critic.actor(torch.zeros(3, 3))
    step, random = StepFunction(agent), np.random.default_rng(0)
    assert export._ties(agent, step, own, [], np.array([0, 1, 2]), random).tolist() == [True, True, False]


@pytest.mark.parametrize("broken", ["memory", "normalisation"])
def test_a_graph_that_computes_something_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Negative control of the comparison, for choices: that they may tie excuses nothing else."""
    agent = agent_of(S2PG, "box", "discrete", normalize_observations=True)
    forward = StepFunction.forward

    def wrong(self: StepFunction, *inputs: torch.Tensor) -> Any:
        observation, memory, previous = inputs
        changed = (observation, 0.5 * memory) if broken == "memory" else (observation + 1.0, memory)
        return forward(self, *changed, previous)

    monkeypatch.setattr(StepFunction, "forward", wrong)
    with pytest.raises(RuntimeError, match=r"gives another .*next_memory"):
        agent.export(tmp_path / "agent.onnx")
    assert not list(tmp_path.iterdir())


def test_a_refused_graph_leaves_the_old_file(
    plain: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.onnx"
    file.write_text("old")
    monkeypatch.setattr(export, "_serialized", lambda *_: b"no graph")
    with pytest.raises(RuntimeError, match="export: onnxruntime cannot run the ONNX graph, which was not written"):
        plain[0].export(file)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
    plain[0].save(tmp_path / "agent.zip")
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path / "agent.zip"), str(file)])
    assert stopped.value.code == 1
    assert capfd.readouterr().err.startswith("rlopt export: export: onnxruntime cannot run")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("agent.zip", "path: expected a name that ends in .onnx, got "),
        ("folder", "path: .* is a folder"),
        (None, "path: expected a path"),
    ],
)
def test_a_bad_path_is_an_error_before_the_work(plain: tuple[Any, Path], tmp_path: Path, path: Any, message: str) -> None:
    (tmp_path / "folder.onnx").mkdir()
    target = None if path is None else tmp_path / path
    with pytest.raises(ValueError, match=message):
        plain[0].export(target)


def test_only_agents_that_know_their_spaces_are_exported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="agent: expected an agent of rlopt, got <stable_baselines3"):
        export_onnx(SB3PPO("MlpPolicy", "CartPole-v1", device="cpu"), tmp_path / "agent.onnx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"agent: it has no environment yet.*set_env"):
        PPO("MlpPolicy", None).export(tmp_path / "agent.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_named_with_what_to_install(
    plain: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"export: .* needs {package}, .*: pip install 'rlopt\[onnx\]'"):
        plain[0].export(tmp_path / "agent.onnx")


def test_without_onnxruntime_the_file_is_written_unchecked(
    plain: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(export, "_serialized", lambda *_: b"unchecked")
    assert plain[0].export(tmp_path / "agent").read_bytes() == b"unchecked"


def test_the_command_refuses_bad_input_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "agent.onnx")
    run = tmp_path / "run"
    run.mkdir()

    def message(*argv: str) -> str:
        return refused(capsys, main, ["export", *argv])

    assert "run: there is no file" in message(str(tmp_path / "none.zip"), out)
    assert "OUT" in message(str(tmp_path / "none.zip"))
    assert "path: expected a name that ends in .onnx" in message(str(tmp_path / "none.zip"), "agent.pt")
    assert "to be a run folder with a config.yaml" in message(str(run), out)
    (run / "config.yaml").write_text("env: CartPole-v1\n")
    assert "has no model.zip; did its training end?" in message(str(run), out)
    assert "has no best_model.zip; train with --eval-freq" in message(str(run), out, "--best")
    assert "best: expected a run folder beside it" in message(str(tmp_path / "none.zip"), out, "--best")


def test_a_run_folders_agent_is_exported(plain: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr(export, "_serialized", lambda agent, step, deterministic: written.append(deterministic) or b"")
    monkeypatch.setattr(export, "_check", lambda *_: None)
    (tmp_path / "config.yaml").write_text("env: CartPole-v1\n")
    plain[0].save(tmp_path / "model.zip")
    main(["export", str(tmp_path), str(tmp_path / "a.onnx")])
    plain[0].save(tmp_path / "best_model.zip")
    main(["export", str(tmp_path), str(tmp_path / "b.onnx"), "--best", "--stochastic"])
    assert written == [True, False]
    assert (tmp_path / "a.onnx").exists()
    assert (tmp_path / "b.onnx").exists()
