"""Memory kernels: torch's recurrent layers and arithmetic by hand as oracles, retention, every kind of derivative."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rlopt.policies.kernels import GRU, KERNELS, LSTM, GatedMLP

F64 = torch.float64
CELLS = list(KERNELS)
TORCHS = {"gru": (nn.GRUCell, nn.GRU), "lstm": (nn.LSTMCell, nn.LSTM)}


def kernel_of(cell, input_size=5, size=4, retention=1.0, dtype=F64):
    """A kernel with every parameter away from zero, biases too."""
    torch.manual_seed(0)
    kernel = KERNELS[cell](input_size, size, retention).to(dtype)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return kernel


def inputs_of(kernel, batch=7, dtype=F64, seed=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, kernel.weight_ih.shape[1]), (batch, kernel.state_size)
    return tuple(2 * torch.randn(shape, generator=generator, dtype=F64).to(dtype) for shape in shapes)


def torchs_step(cell, theirs, inputs, memory):
    """One step of torch's cell, with the LSTM's (h, c) as one memory."""
    if cell == "gru":
        return theirs(inputs, memory)
    return torch.cat(theirs(inputs, memory.chunk(2, -1)), -1)


# ------------------------------------------------------------------ what it computes


@pytest.mark.parametrize("cell", TORCHS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(F64, 1e-12), (torch.float32, 1e-6)])
def test_one_step_is_that_of_torchs_cell_with_the_same_parameters(cell, dtype, tolerance):
    kernel = kernel_of(cell, dtype=dtype)
    theirs = TORCHS[cell][0](5, 4, dtype=dtype)
    theirs.load_state_dict(kernel.state_dict())
    inputs, memory = inputs_of(kernel, dtype=dtype)
    expected = torchs_step(cell, theirs, inputs, memory)
    torch.testing.assert_close(kernel(inputs, memory), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("cell", TORCHS)
def test_a_sequence_is_that_of_torchs_layer_with_the_same_parameters(cell):
    kernel = kernel_of(cell)
    layer = TORCHS[cell][1](5, 4, dtype=F64)
    layer.load_state_dict({f"{name}_l0": value for name, value in kernel.state_dict().items()})
    sequence = torch.randn(9, 3, 5, generator=torch.Generator().manual_seed(2), dtype=F64)
    memory = torch.zeros(3, kernel.state_size, dtype=F64)
    outputs = []
    for inputs in sequence:
        memory = kernel(inputs, memory)
        outputs.append(kernel.output(memory))
    torch.testing.assert_close(torch.stack(outputs), layer(sequence)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", TORCHS)
def test_gates_in_another_order_are_another_kernel(cell):
    """A negative control: the two comparisons above can fail."""
    kernel = kernel_of(cell)
    theirs = TORCHS[cell][0](5, 4, dtype=F64)
    theirs.load_state_dict({name: value.roll(kernel.size, 0) for name, value in kernel.state_dict().items()})
    inputs, memory = inputs_of(kernel)
    assert (kernel(inputs, memory) - torchs_step(cell, theirs, inputs, memory)).abs().max() > 0.1


def test_the_gated_mlp_by_hand():
    kernel = kernel_of("mlp")
    inputs, memory = inputs_of(kernel)
    w, v, b, c = (p.detach().numpy() for p in (kernel.weight_ih, kernel.weight_hh, kernel.bias_ih, kernel.bias_hh))
    expected = np.zeros((7, 4))
    for row, (x, z) in enumerate(zip(inputs.numpy(), memory.numpy(), strict=True)):
        for i in range(4):
            gate = 1 / (1 + math.exp(-(w[i] @ x + v[i] @ z + b[i] + c[i])))
            new = math.tanh(w[i + 4] @ x + v[i + 4] @ z + b[i + 4] + c[i + 4])
            expected[row, i] = (1 - gate) * new + gate * z[i]
    np.testing.assert_allclose(kernel(inputs, memory).detach(), expected, rtol=0, atol=1e-12)


def test_the_action_reads_the_whole_memory_but_of_the_lstm_the_hidden_half():
    memory = torch.arange(8.0)[None]
    assert torch.equal(LSTM(3, 4, 1.0).output(memory), memory[:, :4])
    assert torch.equal(GRU(3, 8, 1.0).output(memory), memory)
    assert torch.equal(GatedMLP(3, 8, 1.0).output(memory), memory)
    assert [KERNELS[cell](3, 4, 1.0).state_size for cell in CELLS] == [4, 8, 4]


# ------------------------------------------------------------------ retention


def blank(cell, retention):
    """A kernel whose weights are zero: only the gates' biases are left."""
    kernel = KERNELS[cell](3, 4, 0.0).to(F64)
    with torch.no_grad():
        kernel.weight_ih.zero_()
        kernel.weight_hh.zero_()
    kernel.set_retention(retention)
    return kernel


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("retention", [-1.0, 0.0, 1.0, 2.0])
def test_with_zero_weights_a_step_keeps_the_logistic_of_the_retention(cell, retention):
    kernel = blank(cell, retention)
    inputs, memory = inputs_of(kernel)
    kept, expected = kernel(inputs, memory), torch.tensor(retention, dtype=F64).sigmoid()
    if cell == "lstm":  # of the LSTM's memory it is the cell's half that is kept
        kept, memory = kept[:, 4:], memory[:, 4:]
    torch.testing.assert_close(kept, expected * memory, rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_every_unit_may_keep_another_share(cell):
    retention = torch.tensor([-1.0, 0.0, 1.0, 3.0], dtype=F64)
    kernel = blank(cell, retention)
    inputs, memory = inputs_of(kernel)
    kept = kernel(inputs, memory)[:, -4:] / memory[:, -4:]
    torch.testing.assert_close(kept, retention.sigmoid().expand_as(kept), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_the_first_memory_is_neither_symmetric_nor_zero(cell):
    """There what is written and what is read have no gradient both."""
    torch.manual_seed(0)
    kernel = KERNELS[cell](5, 16, 1.0)
    for weight in (kernel.weight_ih, kernel.weight_hh):
        assert 0.5 * 16**-0.5 < float(weight.detach().std()) * 3**0.5 < 1.5 * 16**-0.5
        assert len(weight.detach().unique(dim=0)) == len(weight)


# ------------------------------------------------------------------ derivatives


@pytest.mark.parametrize("cell", CELLS)
def test_first_and_second_derivatives_are_those_of_finite_differences(cell):
    kernel = kernel_of(cell, input_size=2, size=2)
    inputs, memory = (tensor.requires_grad_() for tensor in inputs_of(kernel, batch=2))
    names, values = zip(*kernel.named_parameters(), strict=True)

    def step(inputs, memory, *parameters):
        return torch.func.functional_call(kernel, dict(zip(names, parameters, strict=True)), (inputs, memory))

    arguments = (inputs, memory, *(value.detach().requires_grad_() for value in values))
    assert torch.autograd.gradcheck(step, arguments, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(step, arguments, fast_mode=True)


@pytest.mark.parametrize("cell", CELLS)
def test_vmap_over_rows_and_over_parameters_is_the_loop(cell):
    kernel = kernel_of(cell)
    inputs, memory = inputs_of(kernel)
    rows = torch.func.vmap(kernel)(inputs, memory)
    torch.testing.assert_close(rows, kernel(inputs, memory), rtol=0, atol=1e-12)
    stacked = {name: torch.stack([value, 2 * value]).detach() for name, value in kernel.named_parameters()}

    def step(parameters):
        return torch.func.functional_call(kernel, parameters, (inputs, memory))

    both = torch.func.vmap(step)(stacked)
    for i in range(2):
        torch.testing.assert_close(both[i], step({name: value[i] for name, value in stacked.items()}), rtol=0, atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_forward_over_reverse_is_the_hessian_times_a_vector(cell):
    kernel = kernel_of(cell, input_size=2, size=2)
    inputs, memory = inputs_of(kernel, batch=3)

    def loss(memory):
        return kernel(inputs, memory).square().sum()

    vector = torch.linspace(-1, 1, memory.numel(), dtype=F64).view_as(memory)
    product = torch.func.jvp(torch.func.grad(loss), (memory,), (vector,))[1]
    hessian = torch.func.hessian(loss)(memory).reshape(memory.numel(), -1)
    torch.testing.assert_close(product.flatten(), hessian @ vector.flatten(), rtol=0, atol=1e-12)
