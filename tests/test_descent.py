"""Oracle: torch's optimisers on the plain module with `clip_grad_norm_`."""

import copy

import pytest
import torch
from torch import nn

from rlopt.descent import Descent, FlatAdam
from rlopt.policies import Functional, flatten_parameters

STEPS = 50


class NormScaled(torch.optim.Optimizer):
    """Not element-wise: every tensor's step has the norm of its weights (a simple LARS), with momentum."""

    def __init__(self, params, lr=1e-3, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state[parameter]
                if not state:
                    state["velocity"] = torch.zeros_like(parameter)
                state["velocity"].mul_(group["momentum"]).add_(parameter.grad)
                scale = (parameter.norm() + 1.0) / (state["velocity"].norm() + 1e-8)
                parameter.sub_(group["lr"] * scale * state["velocity"])


OPTIMIZERS = [
    (torch.optim.Adam, {"eps": 1e-5}),
    (torch.optim.Adam, {"betas": (0.8, 0.99)}),
    (torch.optim.Adam, {"weight_decay": 0.1}),
    (torch.optim.Adam, {"amsgrad": True}),
    (torch.optim.AdamW, {"weight_decay": 0.1}),
    (torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.5}),
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    (torch.optim.SGD, {}),
    (NormScaled, {"momentum": 0.8}),
]
IDS = [f"{cls.__name__}-{'-'.join(kwargs)}" for cls, kwargs in OPTIMIZERS]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))


def batch(index):
    generator = torch.Generator().manual_seed(index)
    return torch.randn(32, 4, generator=generator), 3.0 * torch.randn(32, 3, generator=generator)


def learning_rate(index):
    return 1e-2 / (1 + index // 10)


def loss_of(module, index):
    x, y = batch(index)
    return (module(x) - y).square().mean() * (10.0 if index % 2 else 0.01)  # some gradients clipped, some not


def descended(optimizer_class, kwargs, steps=range(STEPS), theta=None, moments=None):
    functional = Functional(network())
    descent = Descent(functional, optimizer_class, kwargs)
    theta, moments = functional.init() if theta is None else theta, moments or {}
    for index in steps:
        descent.begin(theta, moments, learning_rate(index))
        descent.step([loss_of(descent.module, index)], None, 0.5)
        theta, moments = descent.theta(), descent.moments()
    return theta, moments


@pytest.mark.parametrize(("optimizer_class", "kwargs"), OPTIMIZERS, ids=IDS)
def test_descent_equals_the_optimizer_on_the_plain_module(optimizer_class, kwargs):
    """Detail 11: one global norm over all parameters, before the step."""
    module = network()
    optimizer = optimizer_class(module.parameters(), lr=1e-3, **kwargs)
    for index in range(STEPS):
        optimizer.param_groups[0]["lr"] = learning_rate(index)
        optimizer.zero_grad()
        loss_of(module, index).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)
        optimizer.step()
    theta, _ = descended(optimizer_class, kwargs)
    torch.testing.assert_close(theta, flatten_parameters(module), rtol=0, atol=1e-6)


def test_another_epsilon_would_be_noticed():
    """Negative control."""
    right, _ = descended(torch.optim.Adam, {"eps": 1e-5})
    wrong, _ = descended(torch.optim.Adam, {"eps": 1e-3})
    assert float((right - wrong).abs().max()) > 1e-4


def test_plain_adam_takes_the_short_way():
    functional = Functional(network())
    assert isinstance(Descent(functional, torch.optim.Adam, {"eps": 1e-5}).optimizer, FlatAdam)
    assert not isinstance(Descent(functional, torch.optim.Adam, {"weight_decay": 0.1}).optimizer, FlatAdam)


@pytest.mark.parametrize(("optimizer_class", "kwargs"), OPTIMIZERS, ids=IDS)
def test_continuing_from_saved_moments_is_bit_for_bit(optimizer_class, kwargs):
    whole, _ = descended(optimizer_class, kwargs)
    half, moments = descended(optimizer_class, kwargs, range(25))
    theta, _ = descended(optimizer_class, kwargs, range(25, STEPS), half, moments)
    assert torch.equal(theta, whole)


@pytest.mark.parametrize(("optimizer_class", "kwargs"), OPTIMIZERS, ids=IDS)
def test_what_was_passed_in_is_never_written_to(optimizer_class, kwargs):
    theta, moments = descended(optimizer_class, kwargs, range(3))
    kept_theta, kept_moments = theta.clone(), copy.deepcopy(moments)
    descended(optimizer_class, kwargs, range(3, 6), theta, moments)
    assert torch.equal(theta, kept_theta)
    assert moments.keys() == kept_moments.keys()
    assert all(torch.equal(moments[key], kept_moments[key]) for key in moments)


@pytest.mark.parametrize(("optimizer_class", "kwargs"), OPTIMIZERS, ids=IDS)
def test_what_came_out_does_not_change_with_later_steps(optimizer_class, kwargs):
    functional = Functional(network())
    descent = Descent(functional, optimizer_class, kwargs)
    descent.begin(functional.init(), {}, 0.1)
    descent.step([loss_of(descent.module, 1)], None, 0.5)
    theta, moments = descent.theta(), descent.moments()
    kept_theta, kept_moments = theta.clone(), copy.deepcopy(moments)
    descent.step([loss_of(descent.module, 2)], None, 0.5)
    assert torch.equal(theta, kept_theta)
    assert all(torch.equal(moments[key], kept_moments[key]) for key in moments)


def test_beginning_anew_forgets_the_moments_of_before():
    functional = Functional(network())
    descent = Descent(functional, torch.optim.Adam, {})
    results = []
    for _ in range(2):
        descent.begin(functional.init(), {}, 0.1)
        descent.step([loss_of(descent.module, 1)], None, 0.5)
        results.append(descent.theta())
    assert torch.equal(*results)


def test_step_returns_the_norm_before_clipping_and_clips_to_the_bound():
    """Detail 11: the norm after clipping, read from a plain gradient step of size 1."""
    functional = Functional(network())
    descent = Descent(functional, torch.optim.SGD, {})
    theta = functional.init()
    for index, bound in ((1, 0.5), (0, 1e9)):
        descent.begin(theta, {}, 1.0)
        norm = descent.step([loss_of(descent.module, index)], None, bound)
        module = network()
        gradients = torch.autograd.grad(loss_of(module, index), list(module.parameters()))
        expected = torch.cat([g.flatten() for g in gradients]).norm()
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close((theta - descent.theta()).norm(), expected.clamp(max=bound), rtol=1e-4, atol=1e-6)


def test_parameters_that_the_loss_does_not_reach_stay():
    functional = Functional(network())
    descent = Descent(functional, torch.optim.SGD, {})
    descent.begin(functional.init(), {}, 1.0)
    descent.step([descent.module[0].weight.square().sum()], None, 1.0)
    assert torch.equal(descent.theta()[64:], functional.init()[64:])
    assert not torch.equal(descent.theta()[:64], functional.init()[:64])


def test_gradients_at_the_outputs_give_the_same_step_as_the_loss():
    x, y = batch(0)
    results = []
    for closed in (False, True):
        functional = Functional(network())
        descent = Descent(functional, torch.optim.Adam, {})
        descent.begin(functional.init(), {}, 0.1)
        output = descent.module(x)
        if closed:
            descent.step([output], [2.0 * (output.detach() - y) / y.numel()], 0.5)
        else:
            descent.step([(output - y).square().mean()], None, 0.5)
        results.append(descent.theta())
    torch.testing.assert_close(*results, rtol=0, atol=1e-6)
