"""Memory kernels: from what is read and the memory z to the mean of the next memory.

One step on flat batches, in plain operations: every kernel can be differentiated forwards and backwards, twice, on any
device. Parameters have the names, shapes and gate order of torch's recurrent layers, so that `nn.GRU` and `nn.LSTM`
run the same kernel over whole sequences.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

CellName = Literal["gru", "lstm", "mlp"]


class Kernel(nn.Module):
    """μ_z = η(x, z) for inputs x [B, I] and memories z [B, d_z].

    Args:
        input_size: I.
        size: units; the memory is as wide, twice as wide for the LSTM.
        retention: bias of the gate that keeps the memory: about σ(retention) of it survives a step at first.

    Attributes:
        state_size: d_z.
    """

    gates: int
    state_size: int

    def __init__(self, input_size: int, size: int, retention: float):
        super().__init__()
        self.size = size
        self.weight_ih = nn.Parameter(torch.empty(self.gates * size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(self.gates * size, size))
        self.bias_ih = nn.Parameter(torch.zeros(self.gates * size))
        self.bias_hh = nn.Parameter(torch.zeros(self.gates * size))
        for weight in (self.weight_ih, self.weight_hh):  # not symmetric, not zero: there memory cannot begin to be learned
            nn.init.uniform_(weight, -1.0 / math.sqrt(size), 1.0 / math.sqrt(size))
        self.set_retention(retention)

    def set_retention(self, retention: float) -> None:
        """Set the bias of the gate that keeps the memory."""
        raise NotImplementedError

    def output(self, memory: Tensor) -> Tensor:
        """What the action head reads of a memory [B, d_z]."""
        return memory

    def _gates(self, inputs: Tensor, hidden: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The gates' terms from inputs and from the hidden state, [B, size] each."""
        from_inputs = functional.linear(inputs, self.weight_ih, self.bias_ih)
        from_hidden = functional.linear(hidden, self.weight_hh, self.bias_hh)
        return from_inputs.chunk(self.gates, -1), from_hidden.chunk(self.gates, -1)


class GRU(Kernel):
    """z' = (1 − u) n + u z. Source: Cho et al., arXiv:1406.1078."""

    gates = 3

    @property
    def state_size(self) -> int:  # type: ignore[override]
        return self.size

    def set_retention(self, retention: float) -> None:
        with torch.no_grad():
            self.bias_ih[self.size : 2 * self.size] = retention

    def forward(self, inputs: Tensor, memory: Tensor) -> Tensor:
        (r_x, u_x, n_x), (r_z, u_z, n_z) = self._gates(inputs, memory)
        new = torch.tanh(torch.addcmul(n_x, torch.sigmoid(r_x + r_z), n_z))
        return torch.lerp(new, memory, torch.sigmoid(u_x + u_z))


class LSTM(Kernel):
    """z = (h, c): c' = f c + i g, h' = o tanh(c'). Source: Hochreiter and Schmidhuber (1997)."""

    gates = 4

    @property
    def state_size(self) -> int:  # type: ignore[override]
        return 2 * self.size

    def set_retention(self, retention: float) -> None:
        with torch.no_grad():
            self.bias_ih[self.size : 2 * self.size] = retention

    def output(self, memory: Tensor) -> Tensor:
        return memory[..., : self.size]

    def forward(self, inputs: Tensor, memory: Tensor) -> Tensor:
        hidden, cell = memory.chunk(2, -1)
        from_inputs, from_hidden = self._gates(inputs, hidden)
        i, f, g, o = (x + h for x, h in zip(from_inputs, from_hidden, strict=True))
        cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(cell), cell], -1)


class GatedMLP(Kernel):
    """z' = (1 − g) n + g z with g and n straight from x and z: a GRU without its reset gate."""

    gates = 2

    @property
    def state_size(self) -> int:  # type: ignore[override]
        return self.size

    def set_retention(self, retention: float) -> None:
        with torch.no_grad():
            self.bias_ih[: self.size] = retention

    def forward(self, inputs: Tensor, memory: Tensor) -> Tensor:
        (g_x, n_x), (g_z, n_z) = self._gates(inputs, memory)
        return torch.lerp(torch.tanh(n_x + n_z), memory, torch.sigmoid(g_x + g_z))


KERNELS: dict[CellName, type[Kernel]] = {"gru": GRU, "lstm": LSTM, "mlp": GatedMLP}
