"""The compiled update against the eager one."""

import copy
from functools import partial
from typing import Any

import gymnasium as gym
import pytest
import torch

from rlopt import HARPG, NPGIGT, PPO, REBEL, S2PG, RecurrentPPO, native_code

SMALL = {"n_envs": 4, "n_steps": 40, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu"}  # 160 rows, 5 minibatches


@pytest.fixture
def as_written(monkeypatch):
    """The function that is compiled, not compiled: its formulas in a hundredth of the time."""
    monkeypatch.setattr(native_code.torch, "compile", lambda function, **_: function)


def largest_difference(make, num_steps=480):
    """|θ_compiled − θ_eager| after the same training, and the two agents."""
    agents = [make(compile=compile).learn(num_steps) for compile in (True, False)]
    assert [agent.compiled for agent in agents] == [True, False]
    return (agents[0].state.theta - agents[1].state.theta).abs().max(), agents


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"ent_coef": 0.01, "clip_range_vf": 0.2, "learning_rate": "linear:1e-3", "clip_range": "linear:0.2"},
        {"normalize_advantage": False, "value_clip": "maximum", "clip_range_vf": 0.1},
        {"batch_size": 48},  # the last minibatch of an epoch is smaller: 16 rows
        {"batch_size": 512},  # no whole minibatch
        {"policy_kwargs": {"net_arch": [8], "activation_fn": torch.nn.ReLU}},
    ],
)
def test_compiled_ppo_learns_what_eager_ppo_learns(as_written, arguments):
    difference, agents = largest_difference(partial(PPO, "MlpPolicy", "CartPole-v1", **{**SMALL, **arguments}))
    assert difference < 1e-5
    moments = [agent.state.moments for agent in agents]
    assert moments[0]["step"] == moments[1]["step"]


def test_continuous_actions(as_written):
    assert largest_difference(partial(PPO, "MlpPolicy", "Pendulum-v1", **SMALL))[0] < 1e-5


@pytest.mark.parametrize("arguments", [{}, {"ratio": "joint"}, {"ratio": "action"}, {"cell": "lstm"}])
def test_compiled_s2pg_learns_what_eager_s2pg_learns(as_written, arguments):
    cell = {"policy_kwargs": {"cell": arguments.pop("cell")}} if "cell" in arguments else {}
    make = partial(S2PG, "MlpPolicy", "CartPoleNoVel-v1", **SMALL, **arguments, **cell, memory_size=4)
    difference, agents = largest_difference(make)
    assert difference < 1e-5
    assert agents[0].state.moments["step"] == agents[1].state.moments["step"]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_compiled_rebel_learns_what_eager_rebel_learns(as_written, env_id):
    difference, agents = largest_difference(partial(REBEL, "MlpPolicy", env_id, **SMALL, ent_coef=0.01))
    assert difference < 1e-5
    assert agents[0].state.moments["step"] == agents[1].state.moments["step"]


@pytest.mark.parametrize("arguments", [{"memory": "s2pg"}, {"policy_kwargs": {"squash_output": True}}, {"mode": "trajectory"}])
def test_rebel_has_a_compiled_form_of_advantages_alone(arguments):
    arguments = {"n_steps": 40, "n_envs": 4, "num_groups": 2, "group_size": 2, "batch_size": 32, "device": "cpu"} | arguments
    with pytest.raises(ValueError, match=r"compile: .* use compile=False"):
        REBEL("MlpPolicy", "Pendulum-v1", compile=True, **arguments)
    agent = REBEL("MlpPolicy", "Pendulum-v1", **arguments)
    agent._total_timesteps = 10**8
    assert not agent.compiled


def test_the_kl_target_stops_both_before_the_same_step(as_written):
    """A compiled step that the target refuses must leave θ and both moments as they are."""
    make = partial(PPO, "MlpPolicy", "CartPole-v1", **{**SMALL, "n_epochs": 20}, target_kl=0.002, learning_rate=3e-3)
    difference, agents = largest_difference(make)
    assert agents[0].state.num_updates == agents[1].state.num_updates < 20 * 3  # it did stop
    assert agents[0].state.moments["step"] == agents[1].state.moments["step"]
    assert difference < 1e-5


def test_a_wrong_loss_is_seen(as_written, monkeypatch):
    """The comparison can fail."""
    right = PPO.loss

    def without_entropy(self, module, part, coefficients):
        return right(self, module, part, coefficients._replace(ent_coef=0.0))

    monkeypatch.setattr(PPO, "loss", without_entropy)
    assert largest_difference(partial(PPO, "MlpPolicy", "CartPole-v1", ent_coef=0.05, **SMALL))[0] > 1e-5


CHANGES = {
    "ent_coef": 0.5,
    "vf_coef": 5.0,
    "max_grad_norm": 0.01,
    "normalize_advantage": False,
    "clip_range_vf": 1e-4,
    "value_clip": "maximum",
    "clip_range": 1e-3,
    "target_kl": 1e-9,
}


def test_nothing_compiled_is_stale_or_shared(monkeypatch):
    """Changed arguments, other agents of the same shapes in this process, and copies: traced, with the guards that are used."""
    original = torch.compile

    def traced(function, **arguments):
        return original(function, backend=lambda graph, inputs, **_: graph.forward, **arguments)

    monkeypatch.setattr(native_code.torch, "compile", traced)
    compiled, eager = (PPO("MlpPolicy", "CartPole-v1", compile=compile, **SMALL) for compile in (True, False))
    rollout = compiled.collector.steps(compiled.state.theta, compiled.n_steps)
    orders = [torch.randperm(160, generator=torch.Generator().manual_seed(i)) for i in range(3)]

    def difference(one, other):
        """Of θ after one update each, from the same state and rollout."""
        thetas = []
        for agent in (one, other):
            batch = agent.advantages(compiled.state.theta, rollout)
            state = agent.init(compiled.state.theta)
            thetas.append(agent.update(state, batch, 1.0, orders)[0].theta)
        return (thetas[0] - thetas[1]).abs().max()

    assert difference(compiled, eager) < 1e-6
    for name, value in CHANGES.items():
        setattr(compiled, name, value)
        assert difference(compiled, eager) > 1e-7, name
        setattr(eager, name, value)
        assert difference(compiled, eager) < 1e-6, name
    activation = {"policy_kwargs": {"activation_fn": torch.nn.ReLU}, "ent_coef": 0.3}
    others = [PPO("MlpPolicy", "CartPole-v1", compile=compile, **SMALL, **activation) for compile in (True, False)]
    assert difference(*others) < 1e-6
    assert difference(others[0], compiled) > 1e-6
    duplicate = copy.deepcopy(compiled)
    before = compiled.descent.theta()
    assert difference(duplicate, eager) < 1e-6
    assert torch.equal(compiled.descent.theta(), before)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own modules
def test_generated_code():
    """Once with the compiler itself, which takes half a minute."""
    make = partial(PPO, "MlpPolicy", "CartPole-v1", **SMALL, ent_coef=0.01)
    assert largest_difference(make)[0] < 1e-5


def test_auto_compiles_long_trainings_alone(as_written, capsys):
    short = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    assert short.compile == "auto"
    assert not short.learn(160).compiled
    long = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    long._total_timesteps = 10_000_000
    assert long.compile_seconds_saved > 0
    assert long.compiled
    long.verbose = 1
    batch = long.advantages(long.state.theta, long.collector.steps(long.state.theta, 40))
    long.update(long.state, batch, 1.0)
    assert "predicted to save" in capsys.readouterr().out
    wide = PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [512, 512]}, **SMALL)
    wide._total_timesteps = 10_000_000
    assert not wide.compiled


def test_auto_leaves_alone_what_it_does_not_know():
    class Own(torch.nn.Tanh):
        pass

    agent = PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"activation_fn": Own}, **SMALL)
    agent._total_timesteps = 10_000_000
    assert not agent.compiled


@pytest.mark.parametrize(
    "policy_kwargs", [{"optimizer_class": torch.optim.RMSprop}, {"optimizer_kwargs": {"weight_decay": 0.1}}]
)
def test_another_optimiser_cannot_be_compiled(policy_kwargs):
    agent = PPO("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, compile=True, **SMALL)
    with pytest.raises(ValueError, match=r"compile: .*Adam.*compile=False"):
        agent.learn(160)


def test_compile_must_be_one_of_three():
    with pytest.raises(ValueError, match="compile"):
        PPO("MlpPolicy", "CartPole-v1", compile="yes", **SMALL)


def test_an_algorithm_without_a_compiled_form_says_so():
    with pytest.raises(ValueError, match="compile: RecurrentPPO has no compiled form"):
        RecurrentPPO("MlpLstmPolicy", "CartPole-v1", compile=True, n_envs=2, n_steps=8, device="cpu")


def test_without_a_compiler_auto_is_eager_and_true_says_so(monkeypatch):
    monkeypatch.setenv("PATH", "")
    agent = PPO("MlpPolicy", "CartPole-v1", **SMALL)
    agent._total_timesteps = 10**8
    assert not agent.compiled
    with pytest.raises(ValueError, match=r"compile: torch needs a C\+\+ compiler"):
        PPO("MlpPolicy", "CartPole-v1", compile=True, **SMALL).learn(160)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, in its own modules
def test_batches_of_changing_size_are_compiled_once():
    """Environments that reset on a step of its own leave rollouts with as many rows fewer, another number every time."""

    def trained(compile: bool) -> PPO:
        envs = gym.make_vec("CartPole-v1", 4, vectorization_mode="sync")  # under NEXT_STEP, Gymnasium's default
        agent = PPO("MlpPolicy", envs, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu", compile=compile)
        sizes: set[int] = set()

        def counted(*given: Any) -> Any:
            batch = honest(*given)
            sizes.add(len(batch.advantages))
            return batch

        honest, agent.advantages = agent.advantages, counted
        with torch._dynamo.config.patch(recompile_limit=2):  # of eight otherwise
            agent.learn(8 * 128)
        assert len(sizes) > 2
        return agent

    torch.testing.assert_close(trained(True).state.theta, trained(False).state.theta, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.skipif(native_code.no_compiler(torch.device("cpu")) is not None, reason="nothing compiles here")
def test_native_code_is_made_for_each_form_of_the_arguments():
    """Without torch's guards, code for three rows would read three rows of five."""
    double = native_code.compiled(lambda x, more: x * 2 + more[0], torch.device("cpu"))
    for size in (3, 5, 3):
        for dtype in (torch.float32, torch.float64):
            x, one = torch.arange(size, dtype=dtype), torch.ones(size, dtype=dtype)
            assert torch.equal(double(x, (one,)), 2 * x + 1)
    wide = torch.arange(6.0).view(3, 2)
    for x in (wide, wide.T.contiguous().T):
        assert torch.equal(double(x, (wide,)), 3 * x if x is wide else 2 * x + wide)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("native", ["traced", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("agent", "env", "more"),
    [
        (NPGIGT, "CartPole-v1", {"horizon": 30}),
        (HARPG, "CartPole-v1", {}),  # episodes of many lengths
        pytest.param(HARPG, "Pendulum-v1", {"horizon": 20}, marks=pytest.mark.slow),
        pytest.param(NPGIGT, "CartPoleNoVel-v1", {"memory": "s2pg", "memory_size": 2}, marks=pytest.mark.slow),
    ],
)
def test_compiled_estimators_learn_what_eager_ones_learn(monkeypatch, agent, env, more, native):
    if native == "traced":
        real = torch.compile
        monkeypatch.setattr(
            torch, "compile", lambda f, **how: real(f, backend="aot_eager", dynamic=how["dynamic"], fullgraph=True)
        )
    torch._dynamo.reset()
    settings = {"num_episodes": 5, "seed": 3, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, **more}
    thetas = [agent("MlpPolicy", env, **settings, compile=compile).learn(400).state.theta for compile in (True, False)]
    torch.testing.assert_close(*thetas, rtol=1e-5, atol=1e-5)


def test_observations_that_are_choices_are_compiled(monkeypatch):
    """FrozenLake's, and Taxi's: the sizes of spaces are NumPy's numbers, which tracing cannot read."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend="aot_eager", fullgraph=True, dynamic=False))
    make = partial(PPO, "MlpPolicy", "FrozenLake-v1", **SMALL, policy_kwargs={"net_arch": [8]})
    assert largest_difference(make, 160)[0] < 1e-5


def test_what_torch_cannot_compile_is_called_as_it_is(monkeypatch):
    def refused(function, **_):
        def fail(*arguments):
            raise torch._dynamo.exc.InternalTorchDynamoError("no such instruction")

        return fail

    monkeypatch.setattr(torch, "compile", refused)
    with pytest.warns(UserWarning, match="compile: not compiled, because torch failed: no such instruction"):
        difference, _ = largest_difference(partial(PPO, "MlpPolicy", "CartPole-v1", **SMALL))
    assert difference < 1e-5


def test_a_torch_that_does_not_know_an_option_ends_nothing(monkeypatch):
    monkeypatch.setattr(native_code, "options", lambda *_: {"options": {"of_another_version": True}})
    with pytest.warns(UserWarning, match="because torch failed: Unexpected optimization option of_another_version"):
        difference, _ = largest_difference(partial(PPO, "MlpPolicy", "CartPole-v1", **SMALL))
    assert difference < 1e-5


def test_convolutions_are_left_to_torch():
    images = gym.make("CartPole-v1")
    images.observation_space = gym.spaces.Box(0, 255, (3, 36, 36), "uint8")
    agent = PPO("CnnPolicy", images, n_steps=8, batch_size=8, compile=True)
    assert agent.why_not_compiled() == "convolutions are not compiled"
    assert agent.compile_seconds_saved < 0


class OwnLoss(PPO):
    """A loss that depends on what may change."""

    scale = 1.0

    def normalized(self, advantages):
        return self.scale * super().normalized(advantages)


def test_auto_leaves_losses_of_others_alone():
    for agent_class, compiles in ((PPO, True), (OwnLoss, False)):
        agent = agent_class("MlpPolicy", "CartPole-v1", **SMALL)
        agent._total_timesteps = 10**9
        assert agent.compiled is compiles


@pytest.mark.filterwarnings("ignore:batch_size")
@pytest.mark.parametrize("compiles", [True, False])
def test_copies_learn_what_the_original_learns(as_written, compiles):
    """With a tail of an epoch that is not compiled, which moves the leaf of the copied module."""
    agent = PPO("MlpPolicy", "CartPole-v1", **{**SMALL, "batch_size": 48}, compile=compiles).learn(160)
    batch = agent.advantages(agent.state.theta, agent.collector.steps(agent.state.theta, agent.n_steps))
    copied = copy.deepcopy(agent)
    orders = [torch.randperm(len(batch.advantages)) for _ in range(agent.n_epochs)]
    thetas = [one.update(one.state, batch, 1.0, orders)[0].theta for one in (agent, copied)]
    assert torch.equal(*thetas)
    assert not torch.equal(thetas[0], agent.state.theta)
