"""Oracles: the plain module and its own autograd."""

import pytest
import torch
from torch import nn

from rlopt.policies import Functional, bind_parameters, flatten_parameters
from rlopt.policies.functional import parameter_views


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


class Tied(nn.Module):
    """A decoder that is the encoder's weight transposed, and that weight under two names."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 4, bias=False)
        self.again = self.encode
        self.bias = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.again(self.encode(x) @ self.encode.weight + self.bias)


def inputs(rows=7):
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tied():
    torch.manual_seed(0)
    return Tied().double()


@pytest.mark.parametrize("make", [network, tied])
def test_call_and_bind_agree_with_the_plain_module(make):
    module = make()
    functional = Functional(module)
    theta = functional.init()
    assert torch.equal(functional(theta, inputs()), module(inputs()))
    assert torch.equal(functional.bind(theta)(inputs()), module(inputs()))
    other = theta + 0.1
    assert torch.equal(functional(other, inputs()), functional.bind(other)(inputs()))
    assert not torch.equal(functional(other, inputs()), module(inputs()))


@pytest.mark.parametrize("make", [network, tied])
def test_gradient_with_respect_to_theta_is_the_modules_flattened(make):
    module = make()
    functional = Functional(module)
    gradient = torch.func.grad(lambda theta: functional(theta, inputs()).square().sum())(functional.init())
    expected = torch.autograd.grad(module(inputs()).square().sum(), list(module.parameters()))
    torch.testing.assert_close(gradient, torch.cat([g.flatten() for g in expected]), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_hessian_vector_product_agrees_with_finite_differences():
    functional = Functional(network())
    theta = functional.init()
    v = torch.randn(len(theta), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradient = torch.func.grad(lambda t: functional(t, inputs()).square().sum())
    _, product = torch.func.jvp(gradient, (theta,), (v,))
    numeric = (gradient(theta + 1e-5 * v) - gradient(theta - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(product, numeric, rtol=1e-6, atol=1e-7)


def test_a_batch_of_thetas_maps():
    functional = Functional(network())
    thetas = torch.stack([functional.init(), functional.init() + 0.3])
    mapped = torch.func.vmap(functional, in_dims=(0, None))(thetas, inputs())
    torch.testing.assert_close(mapped, torch.stack([functional(theta, inputs()) for theta in thetas]), rtol=0, atol=1e-12)


def test_unravel_gives_views_by_name():
    functional = Functional(network())
    theta = functional.init()
    views = functional.unravel(theta)
    assert list(views) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    theta[0] = 42.0
    assert float(views["0.weight"][0, 0]) == 42.0
    assert torch.equal(torch.cat([view.flatten() for view in views.values()]), theta)


def test_tied_parameters_appear_once():
    functional = Functional(tied())
    assert list(functional.unravel(functional.init())) == ["bias", "encode.weight"]
    assert len(functional.init()) == 15


def test_binding_never_moves_the_callers_module():
    module = network()
    before = flatten_parameters(module)
    functional = Functional(module)
    bound = functional.bind(torch.zeros_like(before))
    assert float(bound(inputs()).detach().abs().max()) == 0.0
    assert torch.equal(flatten_parameters(module), before)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    assert float(bound(inputs()).detach().abs().max()) == 0.0


def test_init_is_a_copy():
    functional = Functional(network())
    theta = functional.init()
    theta.zero_()
    assert float(functional.init().abs().max()) > 0.0


def test_bound_parameters_are_views_both_ways():
    module = network()
    theta = flatten_parameters(module)
    bind_parameters(module, theta)
    with torch.no_grad():
        module[2].bias.fill_(7.0)
    assert torch.equal(theta[-2:], torch.full((2,), 7.0, dtype=torch.float64))


def test_buffers_are_shared_with_the_callers_module():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    functional = Functional(module)
    module.train()
    module(inputs().float())
    assert torch.equal(functional.module[1].running_mean, module[1].running_mean)
    assert functional.module[1].running_mean.data_ptr() == module[1].running_mean.data_ptr()


def test_the_copy_is_in_evaluation_mode():
    """Dropout left on would make the first ratio of an update differ from 1."""
    functional = Functional(nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)))
    assert not functional.module.training


def test_a_theta_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"theta has shape \(31,\), but the module has 32 parameters"):
        parameter_views(network(), torch.zeros(31))
    with pytest.raises(ValueError, match=r"theta has shape \(33,\), but the module has 32 parameters"):
        parameter_views(network(), torch.zeros(33, dtype=torch.float64))
