"""Kernels over whole sequences against a Python loop over torch's own cells: results, last memories and gradients."""

import pytest
import torch
from torch import nn

from rlopt.policies.kernels import GRU, LSTM
from rlopt.policies.unrolling import Begins, Unrolled, advance, fused, side_by_side, unroll

KERNELS = {"gru": (GRU, nn.GRUCell), "lstm": (LSTM, nn.LSTMCell)}
T, B, INPUTS, SIZE = 12, 5, 4, 6
FORMS = {
    "side by side": lambda *arguments: [result.outputs for result in side_by_side(*arguments)],
    "fused": lambda kernels, inputs, memories, begins: [fused(*each, begins) for each in zip(kernels, inputs, memories)],
    "chosen": unroll,
}
RESETS = {"anywhere": 0.2, "nowhere": 0.0, "everywhere": 1.0}


def problem(cell, dtype, share, count=2):
    """Kernels away from their first values, sequences, memories, and rows [T, B] at which memory begins anew."""
    torch.manual_seed(0)
    kernels = [KERNELS[cell][0](INPUTS, SIZE, 1.0).to(dtype) for _ in range(count)]
    for parameter in (p for kernel in kernels for p in kernel.parameters()):
        nn.init.normal_(parameter, std=0.5)
    inputs = [torch.randn(T, B, INPUTS, dtype=dtype, requires_grad=True) for _ in kernels]
    memories = [torch.randn(B, kernel.state_size, dtype=dtype) for kernel in kernels]
    return kernels, inputs, memories, torch.rand(T, B) < share


def by_cells(cell, kernel, inputs, memory, rows):
    """A step at a time, by torch's cell with the kernel's own parameters."""
    theirs = KERNELS[cell][1](INPUTS, SIZE).to(inputs.dtype)
    names = dict(kernel.named_parameters())
    state, outputs = tuple(memory.split(SIZE, -1)), []
    for t in range(len(inputs)):
        state = tuple(torch.where(rows[t, :, None], 0.0, part) for part in state)
        arguments = (inputs[t], state if cell == "lstm" else state[0])
        following = torch.func.functional_call(theirs, names, arguments)
        state = following if cell == "lstm" else (following,)
        outputs.append(state[0])
    return Unrolled(torch.stack(outputs), torch.cat(state, -1))


def everything(outputs, kernels, inputs):
    """Outputs and the gradients of a weighted sum of them, one list."""
    weights = torch.randn(T, B, SIZE, generator=torch.Generator().manual_seed(3)).to(inputs[0].dtype)
    total = sum((k + 1) * (output * weights).sum() for k, output in enumerate(outputs))
    parameters = [p for kernel in kernels for p in kernel.parameters()]
    return [output.detach() for output in outputs] + list(torch.autograd.grad(total, [*parameters, *inputs]))


def largest_difference(mine, theirs):
    assert len(mine) == len(theirs)
    return max(float((a - b).detach().abs().max()) for a, b in zip(mine, theirs))


@pytest.mark.parametrize("share", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", KERNELS)
def test_a_sequence_is_that_of_a_loop_over_torchs_cells(cell, form, dtype, tolerance, share):
    kernels, inputs, memories, rows = problem(cell, dtype, share)
    expected = [by_cells(cell, *each, rows).outputs for each in zip(kernels, inputs, memories)]
    found = FORMS[form](kernels, inputs, memories, Begins(rows))
    expected, found = (everything(outputs, kernels, inputs) for outputs in (expected, found))
    assert largest_difference(found, expected) < tolerance


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", KERNELS)
def test_forgetting_where_memory_begins_anew_would_be_seen(cell, form):
    kernels, inputs, memories, rows = problem(cell, torch.float64, 0.2)
    expected = [by_cells(cell, *each, rows).outputs for each in zip(kernels, inputs, memories)]
    found = FORMS[form](kernels, inputs, memories, Begins(torch.zeros_like(rows)))
    assert largest_difference(everything(found, kernels, inputs), everything(expected, kernels, inputs)) > 1e-2


@pytest.mark.parametrize("cell", KERNELS)
def test_a_kernel_alone_gives_what_it_gives_beside_another(cell):
    kernels, inputs, memories, rows = problem(cell, torch.float64, 0.2)
    begins = Begins(rows)
    together = side_by_side(kernels, inputs, memories, begins)
    for k, result in enumerate(together):
        (alone,) = side_by_side(kernels[k : k + 1], inputs[k : k + 1], memories[k : k + 1], begins)
        assert largest_difference(alone, result) < 1e-14


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("cell", KERNELS)
def test_the_memory_before_the_first_step_is_data(cell, form):
    kernels, inputs, memories, rows = problem(cell, torch.float64, 0.1)
    leaves = [memory.requires_grad_() for memory in memories]
    found = FORMS[form](kernels, inputs, leaves, Begins(rows))
    total = sum(output.sum() for output in found)
    assert torch.autograd.grad(total, leaves, allow_unused=True) == (None, None)


@pytest.mark.parametrize("cell", KERNELS)
def test_one_step_in_one_call_is_the_kernels(cell):
    (kernel,), (inputs,), (memory,), _ = problem(cell, torch.float64, 0.0, count=1)
    torch.testing.assert_close(advance(kernel, inputs[0], memory), kernel(inputs[0], memory), rtol=0, atol=1e-14)


@pytest.mark.parametrize("share", RESETS.values(), ids=RESETS)
@pytest.mark.parametrize("cell", KERNELS)
def test_the_last_memory_is_that_of_a_loop_over_torchs_cells(cell, share):
    kernels, inputs, memories, rows = problem(cell, torch.float64, share)
    found = side_by_side(kernels, inputs, memories, Begins(rows))
    for result, *each in zip(found, kernels, inputs, memories):
        assert float((result.last - by_cells(cell, *each, rows).last).detach().abs().max()) < 1e-14


def test_a_closing_row_stands_before_every_step_at_which_memory_begins_anew():
    rows = torch.tensor([[False, False], [True, False], [False, False], [True, True]])
    begins = Begins(rows)
    assert begins.times == [1, 3]
    length, steps, sources = begins.places
    assert length == 4 + 2
    assert (steps.view(4, 2) // 2).tolist() == [[0, 0], [2, 1], [3, 2], [5, 4]]
    assert (steps.view(4, 2) % 2).tolist() == [[0, 1]] * 4
    assert sources.view(6, 2)[:, 0].tolist() == [0, 9, 2, 4, 9, 6]
    assert sources.view(6, 2)[:, 1].tolist() == [1, 3, 5, 9, 7, 8]


@pytest.mark.parametrize("cell", KERNELS)
def test_nothing_passes_a_closing_row(cell):
    """Gates far from zero, memory and gradients large: still exact zeros behind it."""
    (kernel,), (inputs,), (memory,), rows = problem(cell, torch.float32, 0.0, count=1)
    rows[6] = True
    with torch.no_grad():
        kernel.weight_hh.mul_(3.0)
        kernel.bias_ih.add_(1.0)
    outputs = fused(kernel, inputs, 100.0 * memory, Begins(rows))
    other = fused(kernel, inputs, -100.0 * memory, Begins(rows))
    assert not torch.equal(outputs[:6], other[:6])
    assert torch.equal(outputs[6:], other[6:])
    (gradient,) = torch.autograd.grad(1e6 * outputs[6:].sum(), [inputs])
    assert bool((gradient[:6] == 0).all())
    assert bool((gradient[6:] != 0).any())
