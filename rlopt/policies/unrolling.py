"""Recurrent kernels over whole sequences, differentiated through time.

Two forms of one result. `fused` is one call of torch's layer: where memory begins anew within a sequence, a row is put in
whose input closes every gate, so that nothing passes it in either direction. `side_by_side` is a recurrence of our own
that runs several kernels in one loop, with a backward pass whose loop does only what cannot wait for the next step. The
latter is for the GRU on a CPU, where torch has no fused one and autograd records every operation of every step.

Shapes: T steps, B sequences, K kernels, H units, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from rlopt.policies.kernels import GRU, LSTM, Kernel

CLOSED = -1e4  # at a gate: its sigmoid and the slope of that are 0


class Unrolled(NamedTuple):
    """What a kernel makes of a sequence."""

    outputs: Tensor  # [T, B, H], what heads read after every step
    last: Tensor  # [B, d_z], the memory after the last step


class Places(NamedTuple):
    """Where the rows of sequences are once a closing row stands before every step at which memory begins anew."""

    length: int  # T', of the longest sequence; shorter ones end in rows that nobody reads
    steps: Tensor  # [T·B] in T'·B, where each step went
    sources: Tensor  # [T'·B], which step it came from; T·B for a row of zeros, T·B + 1 for a closing row


@dataclass(frozen=True)
class Begins:
    """Where memory begins anew within sequences.

    Attributes:
        rows: [T, B] bool, memory is zero before this step.
    """

    rows: Tensor

    @cached_property
    def times(self) -> list[int]:
        """Steps, ascending, at which some sequence begins anew."""
        return self.rows.any(1).nonzero().squeeze(1).tolist()

    @cached_property
    def places(self) -> Places:
        """See `Places`."""
        num_steps, num_sequences = self.rows.shape
        every, column = torch.arange(self.rows.numel(), device=self.rows.device), torch.arange(num_sequences)
        before = self.rows.cumsum(0)  # closing rows so far
        length = num_steps + int(before[-1].max())
        rows = torch.arange(num_steps, device=self.rows.device).unsqueeze(1) + before
        steps = (rows * num_sequences + column.to(rows.device)).flatten()
        sources = torch.full((length * num_sequences,), len(every), device=self.rows.device)
        sources[steps] = every
        sources[steps[self.rows.flatten()] - num_sequences] = len(every) + 1
        return Places(length, steps, sources)


def advance(kernel: Kernel, inputs: Tensor, memory: Tensor) -> Tensor:
    """The next memory [B, d_z] after one step, of inputs [B, I]: the kernel in one call of torch."""
    parameters = (kernel.weight_ih, kernel.weight_hh, kernel.bias_ih, kernel.bias_hh)
    if isinstance(kernel, LSTM):
        return torch.cat(torch.lstm_cell(inputs, memory.chunk(2, -1), *parameters), -1)
    return torch.gru_cell(inputs, memory, *parameters)


def unroll(kernels: Sequence[Kernel], inputs: Sequence[Tensor], memories: Sequence[Tensor], begins: Begins) -> list[Tensor]:
    """The outputs [T, B, H] of every kernel over its own sequences, by the faster form.

    Args:
        kernels: of one class and size.
        inputs: [T, B, I] for each.
        memories: [B, d_z] for each, before the first step; data, to which no gradient flows.
        begins: the same for all.
    """
    if inputs[0].is_cuda or isinstance(kernels[0], LSTM):
        return [fused(*each, begins) for each in zip(kernels, inputs, memories, strict=True)]
    return [result.outputs for result in side_by_side(kernels, inputs, memories, begins)]


def fused(kernel: Kernel, inputs: Tensor, memory: Tensor, begins: Begins) -> Tensor:
    """Outputs [T, B, H] by one call of torch's layer."""
    weight: Tensor = kernel.weight_ih
    rows = inputs
    if begins.times:
        length, steps, sources = begins.places
        weight = torch.cat([weight, _closing(kernel)], 1)
        rows = functional.pad(inputs.flatten(0, 1), (0, 1, 0, 2))  # an input for closing, a row of zeros, a closing row
        rows[-1, -1] = 1.0
        rows = rows.index_select(0, sources).unflatten(0, (length, -1))
    parameters: Any = [weight, kernel.weight_hh, kernel.bias_ih, kernel.bias_hh]
    options = (True, 1, 0.0, True, False, False)  # biases, one layer, no dropout, differentiable, one way, time first
    state = [part.detach().unsqueeze(0).contiguous() for part in memory.split(kernel.size, -1)]
    if isinstance(kernel, LSTM):
        outputs = torch.lstm(rows, state, parameters, *options)[0]
    else:
        outputs = torch.gru(rows, state[0], parameters, *options)[0]
    if not begins.times:
        return outputs
    return outputs.flatten(0, 1).index_select(0, steps).unflatten(0, (len(inputs), -1))


def _closing(kernel: Kernel) -> Tensor:
    """[gates · H, 1], weights of an input that makes the next memory 0 and its gradient with respect to everything 0."""
    column = kernel.bias_ih.new_full((len(kernel.bias_ih), 1), CLOSED)
    if isinstance(kernel, GRU):  # its candidate is not behind a gate that can be closed: tanh(b − b)
        column = torch.cat([column[: 2 * kernel.size], -kernel.bias_ih[2 * kernel.size :].unsqueeze(1)])
    return column


def side_by_side(
    kernels: Sequence[Kernel], inputs: Sequence[Tensor], memories: Sequence[Tensor], begins: Begins
) -> list[Unrolled]:
    """By a recurrence of our own, all kernels in one loop; arguments as for `unroll`."""
    recurrence: Any = {GRU: _GRURecurrence, LSTM: _LSTMRecurrence}[type(kernels[0])]
    from_inputs = torch.stack([recurrence.from_inputs(kernel, x) for kernel, x in zip(kernels, inputs, strict=True)])
    weights = torch.stack([kernel.weight_hh for kernel in kernels])
    biases = torch.stack([kernel.bias_hh for kernel in kernels]).unsqueeze(1)
    memory = torch.stack([part.detach() for part in memories])
    keep = (~begins.rows).to(memory.dtype).unsqueeze(-1)
    kept = {t: keep[t] for t in begins.times}
    outputs, last = recurrence.apply(from_inputs, weights, biases, memory, kept)
    return [Unrolled(*each) for each in zip(outputs, last, strict=True)]


class _GRURecurrence(torch.autograd.Function):
    """Hidden states [K, T, B, H] and the last of them, of what inputs [K, T, B, 3H] add to the gates (r, u, n)."""

    @staticmethod
    def from_inputs(kernel: Kernel, inputs: Tensor) -> Tensor:
        """What inputs [T, B, I] add to the gates."""
        return functional.linear(inputs, kernel.weight_ih, kernel.bias_ih)

    @staticmethod
    def forward(
        ctx: Any, from_inputs: Tensor, weights: Tensor, biases: Tensor, memory: Tensor, kept: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        size, transposed = weights.shape[-1], weights.transpose(1, 2).contiguous()
        from_hidden = torch.empty_like(from_inputs)
        gates = from_inputs.new_empty(*from_inputs.shape[:-1], 2 * size)
        new, hidden = from_inputs.new_empty(2, *from_inputs.shape[:-1], size)
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
        ctx.kept = kept
        last = hidden[:, -1].clone()
        ctx.mark_non_differentiable(last)
        return hidden, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        weights, memory, from_hidden, gates, new, hidden = ctx.saved_tensors
        size = weights.shape[-1]
        reset, update = gates.split(size, -1)
        previous = _previous(memory, hidden, ctx.kept)
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
        ctx: Any, from_inputs: Tensor, weights: Tensor, biases: Tensor, memory: Tensor, kept: dict[int, Tensor]
    ) -> tuple[Tensor, Tensor]:
        del biases  # in `from_inputs`
        size, transposed = weights.shape[-1], weights.transpose(1, 2).contiguous()
        gates = torch.empty_like(from_inputs)
        new, cells, squashed, hidden = from_inputs.new_empty(4, *from_inputs.shape[:-1], size)
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
        ctx.kept = kept
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
        coefficients[..., 1, :] *= _previous(first_cell, cells, ctx.kept)
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
        previous = _previous(first_hidden, hidden, ctx.kept)
        return flat, flat.flatten(1, 2).transpose(1, 2) @ previous.flatten(1, 2), None, None, None


def _each(tensor: Tensor) -> Sequence[Tensor]:
    """Views [K, B, ...] of every step of [K, T, B, ...]."""
    return tensor.unbind(1)


def _previous(first: Tensor, states: Tensor, kept: dict[int, Tensor]) -> Tensor:
    """The states before every step, [K, T, B, H]."""
    before = torch.cat([first.unsqueeze(1), states[:, :-1]], 1)
    for t, keep in kept.items():
        before[:, t] *= keep
    return before
