"""Recurrent kernels over whole sequences, differentiated through time.

`unroll` runs kernels of one kind side by side, say the actor's and the critic's. It has two forms of one result: on a
GPU torch's fused layers, cut where memory begins anew; on the CPU a recurrence with a backward pass of its own, which
does only what cannot wait for the next step in its loop and knows no cuts. Autograd through torch's layers on a CPU
records every operation of every step: that costs several times as much.

Shapes: T steps, B sequences, K kernels, H units, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlopt.policies.kernels import GRU, LSTM, Kernel


class Unrolled(NamedTuple):
    """What a kernel makes of a sequence."""

    outputs: Tensor  # [T, B, H], what heads read after every step
    last: Tensor  # [B, d_z], the memory after the last step


class Begins(NamedTuple):
    """Where memory begins anew within sequences."""

    keep: Tensor  # [T, B, 1], 0 where memory is zero before the step, else 1
    times: list[int]  # steps, ascending, at which some sequence begins anew

    @classmethod
    def at(cls, rows: Tensor, dtype: torch.dtype) -> Begins:
        """Of [T, B] bool."""
        return cls((~rows).to(dtype).unsqueeze(-1), rows.any(1).nonzero().squeeze(1).tolist())


def advance(kernel: Kernel, inputs: Tensor, memory: Tensor) -> Tensor:
    """The next memory [B, d_z] after one step, of inputs [B, I]: the kernel in one call of torch."""
    parameters = (kernel.weight_ih, kernel.weight_hh, kernel.bias_ih, kernel.bias_hh)
    if isinstance(kernel, LSTM):
        return torch.cat(torch.lstm_cell(inputs, memory.chunk(2, -1), *parameters), -1)
    return torch.gru_cell(inputs, memory, *parameters)


def unroll(kernels: Sequence[Kernel], inputs: Sequence[Tensor], memories: Sequence[Tensor], begins: Begins) -> list[Unrolled]:
    """Every kernel over its own sequences.

    Args:
        kernels: of one class and size.
        inputs: [T, B, I] for each.
        memories: [B, d_z] for each, before the first step; data, to which no gradient flows.
        begins: the same for all.
    """
    # Without cuts the LSTM has a fused layer on the CPU, too.
    if inputs[0].is_cuda or (isinstance(kernels[0], LSTM) and not begins.times):
        return [fused(*each, begins) for each in zip(kernels, inputs, memories, strict=True)]
    return side_by_side(kernels, inputs, memories, begins)


def fused(kernel: Kernel, inputs: Tensor, memory: Tensor, begins: Begins) -> Unrolled:
    """By torch's own layer, one call for every piece between two steps at which some memory begins anew."""
    parameters: Any = [kernel.weight_ih, kernel.weight_hh, kernel.bias_ih, kernel.bias_hh]
    options = (True, 1, 0.0, True, False, False)  # biases, one layer, no dropout, differentiable, one way, time first
    outputs, memory = [], memory.detach()
    for start, end in pairwise([0, *(t for t in begins.times if t), len(inputs)]):
        if start in begins.times:
            memory = memory * begins.keep[start]
        state = [part.unsqueeze(0).contiguous() for part in memory.split(kernel.size, -1)]
        if isinstance(kernel, LSTM):
            output, *state = torch.lstm(inputs[start:end], state, parameters, *options)
        else:
            output, *state = torch.gru(inputs[start:end], state[0], parameters, *options)
        memory = torch.cat([part.squeeze(0) for part in state], -1)
        outputs.append(output)
    return Unrolled(torch.cat(outputs), memory)


def side_by_side(
    kernels: Sequence[Kernel], inputs: Sequence[Tensor], memories: Sequence[Tensor], begins: Begins
) -> list[Unrolled]:
    """By a recurrence of our own, all kernels in one loop."""
    recurrence: Any = {GRU: _GRURecurrence, LSTM: _LSTMRecurrence}[type(kernels[0])]
    from_inputs = torch.stack([recurrence.from_inputs(kernel, x) for kernel, x in zip(kernels, inputs, strict=True)])
    weights = torch.stack([kernel.weight_hh for kernel in kernels])
    biases = torch.stack([kernel.bias_hh for kernel in kernels]).unsqueeze(1)
    memory = torch.stack([part.detach() for part in memories])
    outputs, last = recurrence.apply(from_inputs, weights, biases, memory, begins)
    return [Unrolled(*each) for each in zip(outputs, last, strict=True)]


class _GRURecurrence(torch.autograd.Function):
    """Hidden states [K, T, B, H] and the last of them, of what inputs [K, T, B, 3H] add to the gates (r, u, n)."""

    @staticmethod
    def from_inputs(kernel: Kernel, inputs: Tensor) -> Tensor:
        """What inputs [T, B, I] add to the gates."""
        return functional.linear(inputs, kernel.weight_ih, kernel.bias_ih)

    @staticmethod
    def forward(
        ctx: Any, from_inputs: Tensor, weights: Tensor, biases: Tensor, memory: Tensor, begins: Begins
    ) -> tuple[Tensor, Tensor]:
        size, transposed = weights.shape[-1], weights.transpose(1, 2).contiguous()
        from_hidden = torch.empty_like(from_inputs)
        gates = from_inputs.new_empty(*from_inputs.shape[:-1], 2 * size)
        new, hidden = from_inputs.new_empty(2, *from_inputs.shape[:-1], size)
        kept = {t: begins.keep[t] for t in begins.times}
        steps = zip(
            _each(from_hidden),
            _each(from_inputs[..., : 2 * size]),
            _each(from_hidden[..., : 2 * size]),
            _each(gates),
            _each(from_inputs[..., 2 * size :]),
            _each(gates[..., :size]),
            _each(from_hidden[..., 2 * size :]),
            _each(gates[..., size:]),
            _each(new),
            _each(hidden),
            strict=True,
        )
        state = memory
        for t, (projected, gates_x, gates_h, both, new_x, reset, new_h, update, candidate, following) in enumerate(steps):
            if t in kept:
                state = state * kept[t]
            torch.baddbmm(biases, state, transposed, out=projected)
            torch.add(gates_x, gates_h, out=both).sigmoid_()
            torch.addcmul(new_x, reset, new_h, out=candidate).tanh_()
            state = torch.lerp(candidate, state, update, out=following)
        ctx.save_for_backward(weights, memory, from_hidden, gates, new, hidden)
        ctx.begins, ctx.kept = begins, kept
        last = hidden[:, -1].clone()
        ctx.mark_non_differentiable(last)
        return hidden, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weights, memory, from_hidden, gates, new, hidden = ctx.saved_tensors
        size = weights.shape[-1]
        reset, update = gates.split(size, -1)
        previous = _previous(memory, hidden, ctx.begins)
        # The gradient of every gate is that of the hidden state times a coefficient known beforehand.
        slope = torch.addcmul(gates, gates, gates, value=-1.0)  # σ' of both gates
        rest = 1.0 - update
        of_new = torch.addcmul(rest, rest * new, new, value=-1.0)  # (1 − u) tanh'
        coefficients = gates.new_empty(*gates.shape[:-1], 3, size)
        torch.mul(of_new * from_hidden[..., 2 * size :], slope[..., :size], out=coefficients[..., 0, :])
        torch.mul(previous - new, slope[..., size:], out=coefficients[..., 1, :])
        torch.mul(of_new, reset, out=coefficients[..., 2, :])
        of_gates, of_states = torch.empty_like(coefficients), torch.empty_like(hidden)
        flat = of_gates.flatten(-2)
        above, targets, scratch = _each(of_hidden), _each(of_states), torch.empty_like(memory)
        of_state = targets[-1].copy_(above[-1])
        steps = list(zip(_each(coefficients), _each(of_gates), _each(flat), _each(update), strict=True))
        for t in range(len(steps) - 1, -1, -1):
            coefficient, of_gate, of_flat, passed = steps[t]
            torch.mul(coefficient, of_state.unsqueeze(-2), out=of_gate)
            if not t:
                break
            if t in ctx.kept:
                torch.mul(of_state, passed, out=scratch)
                torch.baddbmm(scratch, of_flat, weights, out=targets[t - 1]).mul_(ctx.kept[t]).add_(above[t - 1])
            else:
                torch.addcmul(above[t - 1], of_state, passed, out=scratch)
                torch.baddbmm(scratch, of_flat, weights, out=targets[t - 1])
            of_state = targets[t - 1]
        of_inputs = flat.clone()
        torch.mul(of_states, of_new, out=of_inputs[..., 2 * size :])
        rows = flat.flatten(1, 2)
        return of_inputs, rows.transpose(1, 2) @ previous.flatten(1, 2), rows.sum(1, keepdim=True), None, None


class _LSTMRecurrence(torch.autograd.Function):
    """Hidden states [K, T, B, H] and the last memory (h, c), of what inputs [K, T, B, 4H] add to the gates (i, f, g, o)."""

    @staticmethod
    def from_inputs(kernel: Kernel, inputs: Tensor) -> Tensor:
        """What inputs [T, B, I] and both biases add to the gates."""
        return functional.linear(inputs, kernel.weight_ih, kernel.bias_ih + kernel.bias_hh)

    @staticmethod
    def forward(
        ctx: Any, from_inputs: Tensor, weights: Tensor, biases: Tensor, memory: Tensor, begins: Begins
    ) -> tuple[Tensor, Tensor]:
        del biases  # in `from_inputs`
        size, transposed = weights.shape[-1], weights.transpose(1, 2).contiguous()
        gates = torch.empty_like(from_inputs)
        new, cells, squashed, hidden = from_inputs.new_empty(4, *from_inputs.shape[:-1], size)
        kept = {t: begins.keep[t] for t in begins.times}
        parts = [_each(part) for part in gates.split(size, -1)]
        steps = zip(
            _each(from_inputs), _each(gates), *parts, _each(new), _each(cells), _each(squashed), _each(hidden), strict=True
        )
        state, cell = memory.split(size, -1)
        for t, (read, all_gates, enter, forget, candidate, show, fresh, stored, shown, following) in enumerate(steps):
            if t in kept:
                state, cell = state * kept[t], cell * kept[t]
            torch.baddbmm(read, state, transposed, out=all_gates)
            torch.tanh(candidate, out=fresh)
            all_gates.sigmoid_()  # the candidate's too, which nobody reads any more
            cell = torch.mul(forget, cell, out=stored).addcmul_(enter, fresh)
            state = torch.mul(show, torch.tanh(cell, out=shown), out=following)
        ctx.save_for_backward(weights, memory, gates, new, cells, squashed, hidden)
        ctx.begins, ctx.kept = begins, kept
        last = torch.cat([hidden[:, -1], cells[:, -1]], -1)
        ctx.mark_non_differentiable(last)
        return hidden, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weights, memory, gates, new, cells, squashed, hidden = ctx.saved_tensors
        size = weights.shape[-1]
        enter, forget, _unused, show = gates.split(size, -1)
        first_hidden, first_cell = memory.split(size, -1)
        # What multiplies the gradient of the cell, or in the output gate that of the hidden state, in every gate.
        coefficients = torch.addcmul(gates, gates, gates, value=-1.0).unflatten(-1, (4, size))  # σ'
        coefficients[..., 0, :] *= new
        coefficients[..., 1, :] *= _previous(first_cell, cells, ctx.begins)
        torch.addcmul(enter, enter * new, new, value=-1.0, out=coefficients[..., 2, :])
        coefficients[..., 3, :] *= squashed
        to_cell = torch.addcmul(show, show * squashed, squashed, value=-1.0)
        of_gates = torch.empty_like(coefficients)
        flat = of_gates.flatten(-2)
        steps = list(
            zip(
                _each(coefficients),
                _each(coefficients[..., 3, :]),
                _each(to_cell),
                _each(forget),
                _each(of_gates),
                _each(of_gates[..., 3, :]),
                _each(flat),
                strict=True,
            )
        )
        above = _each(of_hidden)
        of_cell, passed, scratch = (torch.zeros_like(above[0]) for _ in range(3))
        of_state, wide = above[-1], of_cell.unsqueeze(-2)
        for t in range(len(steps) - 1, -1, -1):
            coefficient, of_output, reaching, forgotten, of_gate, of_show, of_flat = steps[t]
            torch.addcmul(passed, of_state, reaching, out=of_cell)
            torch.mul(coefficient, wide, out=of_gate)
            torch.mul(of_output, of_state, out=of_show)
            if not t:
                break
            torch.mul(of_cell, forgotten, out=passed)
            if t in ctx.kept:
                passed.mul_(ctx.kept[t])
                of_state = torch.bmm(of_flat, weights, out=scratch).mul_(ctx.kept[t]).add_(above[t - 1])
            else:
                of_state = torch.baddbmm(above[t - 1], of_flat, weights, out=scratch)
        previous = _previous(first_hidden, hidden, ctx.begins)
        return flat, flat.flatten(1, 2).transpose(1, 2) @ previous.flatten(1, 2), None, None, None


def _each(tensor: Tensor) -> Sequence[Tensor]:
    """Views [K, B, ...] of every step of [K, T, B, ...]."""
    return tensor.unbind(1)


def _previous(first: Tensor, states: Tensor, begins: Begins) -> Tensor:
    """The states before every step, [K, T, B, H]."""
    before = torch.cat([first.unsqueeze(1), states[:, :-1]], 1)
    return before.mul_(begins.keep) if begins.times else before
