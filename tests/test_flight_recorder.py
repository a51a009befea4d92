"""Updates that go wrong are undone, explained, and played again to the bit."""

from __future__ import annotations

import inspect
import re

import pytest
import torch

from rlopt import ALGORITHMS, PPO, Checkpoints, FlightRecorder, archive
from rlopt.__main__ import main
from rlopt.replaying import replay
from tests.agents.test_every_agent import SMALL
from tests.small_envs import Walk

CLASSES = {cls.__name__: cls for cls in ALGORITHMS.values()}


def make(algorithm=PPO, **kwargs):
    known = inspect.signature(algorithm).parameters
    small = {name: value for name, value in SMALL.items() if name in known}
    return algorithm("MlpPolicy", Walk, **{**small, "seed": 0, "n_envs": 2, **kwargs})


def breaking(agent, at, how=lambda state: state._replace(theta=state.theta * float("nan"))):
    """The agent, whose iterations of these numbers go wrong in this way."""
    step, count = agent.step, [0]

    def broken(state, collector):
        following, metrics = step(state, collector)
        count[0] += 1
        return (how(following), metrics) if count[0] in at else (following, metrics)

    agent.step = broken
    return agent


@pytest.fixture(params=CLASSES)
def algorithm(request):
    return CLASSES[request.param]


def test_every_agent_is_put_back_and_goes_on_with_half_the_steps(algorithm, tmp_path, capsys):
    agent = breaking(make(algorithm), {2})
    recorder = FlightRecorder(tmp_path)
    agent.learn(300, recorder=recorder)
    assert agent.step_scale == 0.5
    assert torch.isfinite(agent.state.theta).all()
    (file,) = tmp_path.iterdir()
    told = capsys.readouterr().err
    assert "gave parameters that are not finite; went back to those before it, steps are 0.5 of what they were set to" in told
    assert f"python -m rlopt replay {file}" in told
    # The first update was sound, the second was spoiled outside of what the file can know.
    outcomes = list(replay(file))
    assert [reproduced for *_, reproduced in outcomes] == [True, False]


def test_every_agent_is_played_again_to_the_bit(algorithm, tmp_path):
    """Nothing is spoiled: the recorder is told that what was done is a fault."""
    agent, recorder = make(algorithm, normalize_observations=True), FlightRecorder(tmp_path)
    accepts, seen = recorder.accepts, []

    def judge(agent, state, metrics):
        seen.append(state.theta.clone())
        if len(seen) == 4:
            recorder.fault = lambda state, metrics: "a fault for the test"
        accepted = accepts(agent, state, metrics)
        recorder.__dict__.pop("fault", None)
        return accepted

    recorder.accepts = judge
    agent.learn(400, recorder=recorder)
    (file,) = tmp_path.iterdir()
    outcomes = list(replay(file))
    assert [reproduced for *_, reproduced in outcomes] == [True] * 3
    assert torch.equal(outcomes[0][0].state.theta, seen[3])  # the agent that was yielded went on


def test_without_faults_the_recorder_changes_nothing(algorithm):
    plain, recorded = make(algorithm).learn(200), make(algorithm).learn(200, recorder=FlightRecorder())
    assert torch.equal(plain.state.theta, recorded.state.theta)


def test_a_learning_rate_that_explodes_is_tamed_and_the_training_ends_well(tmp_path, capsys):
    agent = make(learning_rate=1e30, n_epochs=2)
    with pytest.raises(FloatingPointError, match="5 times smaller steps did not help; to see it again: python -m rlopt replay"):
        agent.learn(600, recorder=FlightRecorder(tmp_path))
    assert agent.step_scale == 2.0**-5
    assert torch.isfinite(agent.state.theta).all()
    assert capsys.readouterr().err.count("went back") == 5
    with pytest.raises(FloatingPointError, match=r"not finite; those before it are kept\. Try smaller steps"):
        make(learning_rate=1e30).learn(600)


def test_failures_in_a_row_go_back_to_the_same_state():
    agent = breaking(make(), {3, 4})
    recorder = FlightRecorder(keep=5)
    states = []
    accepts = recorder.accepts

    def judge(agent, state, metrics):
        states.append(agent.state.theta)
        return accepts(agent, state, metrics)

    recorder.accepts = judge
    agent.learn(160, recorder=recorder)
    second, third, fourth, fifth = (theta.clone() for theta in states[1:])
    assert torch.equal(third, fourth)
    assert torch.equal(third, fifth)
    assert not torch.equal(second, third)
    assert agent.step_scale == 0.25


def test_a_full_disk_does_not_end_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("no folder can be here")
    agent = breaking(make(), {2})
    agent.learn(160, recorder=FlightRecorder(tmp_path / "file"))
    assert "cannot be written" in capsys.readouterr().err
    assert agent.step_scale == 0.5
    assert agent.num_timesteps >= 160


def test_nothing_is_kept_beyond_the_training(tmp_path):
    agent, recorder = make(), FlightRecorder()
    agent.learn(96, recorder=recorder)
    batches = recorder.updates[-1].batches
    agent.learn(96)
    assert len(batches) == 1
    assert agent.collector.on_rollout is None


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        (lambda state, metrics: (state._replace(theta=state.theta / 0), metrics), "parameters that are not finite"),
        (
            lambda state, metrics: (state._replace(moments={"exp_avg": state.theta / 0}), metrics),
            r"moments of the optimiser that are not finite \(exp_avg\)",
        ),
        (lambda state, metrics: (state, {**metrics, "value_loss": float("nan")}), "value_loss nan"),
        (lambda state, metrics: (state, {**metrics, "approx_kl": torch.tensor(25.0)}), "approx_kl 25, beyond 10"),
        (lambda state, metrics: (state, {**metrics, "weights_max": 1e20}), r"weights_max 1e\+20, beyond 1e\+12"),
    ],
)
def test_what_counts_as_a_fault(spoiled, reason):
    agent = make()
    state, metrics = agent.step(agent.state, agent.collector)
    recorder = FlightRecorder()
    assert recorder.fault(state, metrics) is None
    assert recorder.fault(state, {**metrics, "explained_variance": float("nan")}) is None
    assert re.fullmatch(reason, recorder.fault(*spoiled(state, metrics)))


def test_the_scale_of_steps_is_saved_and_resumed(tmp_path):
    agent = breaking(make(), {2})
    agent.learn(96, checkpoints=Checkpoints(tmp_path), recorder=FlightRecorder())
    agent.save(tmp_path / "agent.zip")
    assert PPO.load(tmp_path / "agent.zip").step_scale == 0.5
    again = make()
    again.learn(96, checkpoints=Checkpoints(tmp_path, resume=True))
    assert again.step_scale == 0.5
    assert again.lr_schedule(1.0) == 0.5 * make().lr_schedule(1.0)


def test_the_command_plays_a_file_and_tells_what_was_wrong(tmp_path, capsys):
    agent = make(learning_rate=1e30)
    with pytest.raises(FloatingPointError):
        agent.learn(600, recorder=FlightRecorder(tmp_path, max_rollbacks=0))
    (file,) = tmp_path.iterdir()
    main(["replay", str(file)])
    out = capsys.readouterr().out
    assert "played again to the bit" in out
    assert "what was wrong with the last: parameters that are not finite" in out


def test_a_file_that_is_none_is_refused(tmp_path, capsys):
    make().save(tmp_path / "agent.zip")
    with pytest.raises(SystemExit) as stopped:
        main(["replay", str(tmp_path / "agent.zip")])
    assert stopped.value.code == 2
    assert "was not written by a flight recorder" in capsys.readouterr().err


def test_other_data_do_not_reproduce(tmp_path):
    """The negative control of the digests."""
    agent = make(learning_rate=1e30)
    with pytest.raises(FloatingPointError):
        agent.learn(600, recorder=FlightRecorder(tmp_path, max_rollbacks=0))
    (file,) = tmp_path.iterdir()
    contents = archive.read(file)
    name = "updates/0/batches/0/rollout/rewards"
    other = {**contents.tensors, name: contents.tensors[name] + 1}
    archive.write(tmp_path / "other.zip", contents.data, other)
    outcomes = [reproduced for *_, reproduced in replay(tmp_path / "other.zip")]
    assert outcomes[0] is False or len(outcomes) == 1


def test_a_file_of_before_acting_kept_values_is_played_again(tmp_path):
    agent = make(learning_rate=1e30)
    with pytest.raises(FloatingPointError):
        agent.learn(600, recorder=FlightRecorder(tmp_path, max_rollbacks=0))
    (file,) = tmp_path.iterdir()
    contents = archive.read(file)
    for update in contents.data["flight"]["updates"]:
        for batch in update["batches"]:
            del batch["rollout"]["acting_values"]
    archive.write(tmp_path / "old.zip", contents.data, contents.tensors)
    assert all(reproduced for *_, reproduced in replay(tmp_path / "old.zip"))


@pytest.mark.parametrize(
    "arguments", [{"keep": 0}, {"max_rollbacks": -1}, {"max_kl": 0.0}, {"max_weight": -1.0}], ids=lambda a: next(iter(a))
)
def test_numbers_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        FlightRecorder(**arguments)
