"""The captured update against the eager one, with a capture that repeats the very function on the very memory."""

from __future__ import annotations

import copy
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import nn

from rlopt import PPO, REBEL, S2PG, compiled_descent, graphed_descent
from rlopt.compiled_descent import Limits
from rlopt.descent import Descent
from rlopt.graphed_descent import WARM_UPS, CudaGraphs, GraphedDescent
from rlopt.policies import Functional
from tests.host_reads import ForbidHostReads, HostReads

SMALL = {"n_envs": 4, "n_steps": 40, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu"}  # 160 rows, 5 minibatches


class Repeated:
    """A capture without a GPU: called as often on the way, nothing may be read, and counted."""

    def __init__(self):
        self.captures = self.replays = 0

    def __call__(self, function):
        def guarded():
            with ForbidHostReads():
                function()

        def replay():
            self.replays += 1
            guarded()

        self.captures += 1
        for _ in range(WARM_UPS):
            guarded()
        return replay


def largest_difference(make, num_steps=320, captured_too=()):
    """|θ_captured − θ_eager| after the same training, and the two agents."""
    captured, eager = make(), make(compile=False)
    captured.capture = Repeated()
    for agent in (captured, eager):
        agent.learn(num_steps)
    assert (captured.captured, captured.compiled) == (True, "compiled" in captured_too)
    assert not eager.as_one_function
    return (captured.state.theta - eager.state.theta).abs().max(), (captured, eager)


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize(
    ("arguments", "replays"),
    [
        ({"ent_coef": 0.01, "clip_range_vf": 0.2, "learning_rate": "linear:1e-3", "clip_range": "linear:0.2"}, 30),
        ({"normalize_advantage": False, "value_clip": "maximum", "clip_range_vf": 0.1}, 30),
        ({"batch_size": 48}, 18),  # the last minibatch of an epoch is smaller: 16 rows
        ({"batch_size": 512}, 0),  # no whole minibatch
    ],
)
def test_captured_ppo_learns_what_eager_ppo_learns(arguments, replays):
    difference, (captured, eager) = largest_difference(partial(PPO, "MlpPolicy", "CartPole-v1", **{**SMALL, **arguments}))
    assert difference < 1e-6
    assert captured.state.moments["step"] == eager.state.moments["step"]
    assert captured.capture.replays == replays
    assert captured.capture.captures == bool(replays)  # once for all updates


def test_continuous_actions():
    assert largest_difference(partial(PPO, "MlpPolicy", "Pendulum-v1", **SMALL))[0] < 1e-6


def test_s2pg_and_rebel():
    s2pg = partial(S2PG, "MlpPolicy", "CartPoleNoVel-v1", **SMALL, memory_size=4)  # of a Dict observation
    rebel = partial(REBEL, "MlpPolicy", "Pendulum-v1", **SMALL, ent_coef=0.01)
    for make in (s2pg, rebel):
        difference, (captured, eager) = largest_difference(make)
        assert difference < 1e-6
        assert captured.state.moments["step"] == eager.state.moments["step"]


def test_the_kl_target_stops_both_before_the_same_step():
    make = partial(PPO, "MlpPolicy", "CartPole-v1", **{**SMALL, "n_epochs": 20}, target_kl=0.002, learning_rate=3e-3)
    difference, (captured, eager) = largest_difference(make)
    assert captured.state.num_updates == eager.state.num_updates < 20 * 2  # it did stop
    assert captured.state.moments["step"] == eager.state.moments["step"] < captured.capture.replays
    assert difference < 1e-6


def test_a_step_after_the_one_refused_would_be_noticed(monkeypatch):
    """Without the flag, a later minibatch whose KL is small moves θ again."""
    original = GraphedDescent._once

    def forgetful(self):
        self._buffers.going.fill_(True)
        original(self)

    monkeypatch.setattr(GraphedDescent, "_once", forgetful)
    make = partial(PPO, "MlpPolicy", "CartPole-v1", **{**SMALL, "n_epochs": 20}, target_kl=0.002, learning_rate=3e-3)
    difference, (captured, eager) = largest_difference(make)
    assert difference > 1e-6 or captured.state.moments["step"] != eager.state.moments["step"]


def test_a_counter_that_stands_still_would_be_noticed(monkeypatch):
    original = GraphedDescent._once

    def stuck(self):
        original(self)
        self._buffers.minibatch.zero_()

    monkeypatch.setattr(GraphedDescent, "_once", stuck)
    assert largest_difference(partial(PPO, "MlpPolicy", "CartPole-v1", **SMALL))[0] > 1e-5


def test_compiled_and_captured(monkeypatch):
    monkeypatch.setattr(compiled_descent.torch, "compile", lambda function, **_: function)
    make = partial(PPO, "MlpPolicy", "CartPole-v1", **SMALL)

    def either(compile=True):
        return make(compile=compile)

    assert largest_difference(either, captured_too=("compiled",))[0] < 1e-6


class Batch(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Coefficients(NamedTuple):
    scale: torch.Tensor
    shift: torch.Tensor | None


def regression(module, part, coefficients):
    error = (module(part.x) - part.y) * coefficients.scale
    return error.square().mean(), (error.mean(1), error.square().mean())


def make_graphed(capture, refuses=None):
    torch.manual_seed(0)
    descent = Descent(Functional(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))), torch.optim.Adam, {"eps": 1e-5})
    descent.begin(descent.theta(), {}, 1e-2)
    return GraphedDescent(descent, regression, refuses, capture)


def data(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Batch(torch.randn(size, 3, generator=generator), torch.randn(size, 2, generator=generator))


def eagerly(descent, batch, rows):
    """What `Descent.step` leaves behind."""
    norms, errors = [], []
    for part in rows:
        loss, (error, _) = regression(descent.module, Batch(*(x[part] for x in batch)), NUMBERS)
        errors.append(error.detach())
        norms.append(descent.step([loss], None, 0.1))
    return norms, errors


NUMBERS = Coefficients(torch.tensor(2.0), None)
LIMITS = Limits(torch.tensor(0.1), torch.tensor(torch.inf))


def test_other_batches_orders_and_sizes():
    """Fewer rows and minibatches use the same memory, more of either are captured anew, kept values are not overwritten."""
    graphed, plain = make_graphed(Repeated()), make_graphed(Repeated()).descent
    captures, kept = [], []
    for seed, (size, num, rows) in enumerate([(40, 5, 8), (30, 3, 8), (40, 2, 8), (41, 5, 8), (41, 6, 4), (41, 2, 8)]):
        batch = data(size, seed)
        order = list(torch.randperm(size, generator=torch.Generator().manual_seed(seed))[: num * rows].split(rows))
        taken = graphed.steps(batch, order, NUMBERS, LIMITS)
        norms, errors = eagerly(plain, batch, order)
        kept.append((taken, norms, errors))
        captures.append(graphed.capture.captures)
        assert (graphed.descent.theta() - plain.theta()).abs().max() < 1e-6
        assert all(torch.allclose(value, plain.moments()[name]) for name, value in graphed.descent.moments().items())
    assert captures == [1, 1, 1, 2, 3, 4]
    for taken, norms, errors in kept:
        assert len(taken) == len(norms)
        for step, norm, error in zip(taken, norms, errors, strict=True):
            torch.testing.assert_close(step.grad_norm, norm)
            torch.testing.assert_close(step.kept[0], error)
            assert step.taken
    assert graphed.steps(data(40), [], NUMBERS, LIMITS) == []


def test_steps_up_to_the_first_that_is_refused():
    graphed = make_graphed(Repeated(), refuses=lambda kept, limit: kept[1] > limit)
    batch, order = data(40), list(torch.arange(40).split(8))
    losses = [step.kept[1] for step in graphed.steps(batch, order, NUMBERS, LIMITS)]
    assert len(losses) == 5
    graphed = make_graphed(Repeated(), refuses=lambda kept, limit: kept[1] > limit)
    limit = Limits(LIMITS.grad_norm, max(losses) - 1e-4)  # all before the largest, and none from there on
    taken = graphed.steps(batch, order, NUMBERS, limit)
    stop = losses.index(max(losses))
    assert [bool(step.taken) for step in taken] == [True] * stop + [False]
    assert graphed.descent.moments()["step"] == stop
    plain = make_graphed(Repeated()).descent
    eagerly(plain, batch, order[:stop])
    assert (graphed.descent.theta() - plain.theta()).abs().max() < 1e-6


def test_a_copy_moves_its_own_parameters():
    graphed, batch, order = make_graphed(Repeated()), data(16), [torch.arange(16)]
    graphed.steps(batch, order, NUMBERS, LIMITS)
    duplicate, before = copy.deepcopy(graphed), graphed.descent.theta()
    duplicate.steps(batch, order, NUMBERS, LIMITS)
    assert torch.equal(graphed.descent.theta(), before)
    graphed.steps(batch, order, NUMBERS, LIMITS)
    torch.testing.assert_close(duplicate.descent.theta(), graphed.descent.theta())


def test_a_loss_that_looks_at_numbers_is_noticed():
    def curious(module, part, coefficients):
        loss, kept = regression(module, part, coefficients)
        return loss * (2.0 if bool((part.y > 0).any()) else 1.0), kept

    graphed = make_graphed(Repeated())
    graphed._step = graphed_descent.MinibatchStep(graphed.descent, curious)
    with pytest.raises(HostReads):
        graphed.steps(data(16), [torch.arange(16)], NUMBERS, LIMITS)


def test_who_is_captured():
    make = partial(PPO, "MlpPolicy", "Pendulum-v1", **SMALL)
    assert make().capture is None
    assert not make().as_one_function
    expected = [
        ({}, True),
        ({"compile": False}, False),
        ({"policy_kwargs": {"squash_output": True}}, False),
        ({"policy_kwargs": {"optimizer_class": torch.optim.RMSprop}}, False),
        ({"policy_kwargs": {"activation_fn": type("Own", (nn.Tanh,), {})}}, False),
    ]
    for arguments, captured in expected:
        agent = make(**arguments)
        agent.capture = Repeated()
        assert agent.captured == captured, arguments


def test_on_cuda_a_graph_is_captured_after_warming_up_aside(monkeypatch):
    """The order of calls alone; there may be no GPU here."""
    calls = []

    class Stream:
        def wait_stream(self, other):
            calls.append("wait")

    class Graph:
        def replay(self):
            calls.append("replay")

    class Inside:
        def __init__(self, *arguments, **more):
            self.name = type(arguments[0]).__name__

        def __enter__(self):
            calls.append(f"in {self.name}")

        def __exit__(self, kind, *error):
            if self.name == "Graph" and kind is not None:  # the end of a capture that failed fails too
                raise RuntimeError("operation failed due to a previous error")
            calls.append(f"out of {self.name}")

    cuda = {"device": Inside, "stream": Inside, "graph": Inside, "Stream": Stream, "current_stream": Stream, "CUDAGraph": Graph}
    for name, value in cuda.items():
        monkeypatch.setattr(torch.cuda, name, value)
    CudaGraphs(torch.device("cuda"))(lambda: calls.append("once"))()
    aside = ["wait", "in Stream", *["once"] * WARM_UPS, "out of Stream", "wait"]
    assert calls == [
        "in device",
        *aside,
        "in Stream",
        "in Graph",
        "once",
        "out of Graph",
        "out of Stream",
        "out of device",
        "replay",
    ]

    def refusing():
        if calls[-1] == "in Graph":
            raise RuntimeError("operation not permitted")
        calls.append("plainly")

    with pytest.warns(UserWarning, match="without a CUDA graph, which torch refused: operation failed"):
        CudaGraphs(torch.device("cuda"))(refusing)()
    assert calls[-3:] == ["out of Stream", "out of device", "plainly"]  # the stream of before is the current one again
