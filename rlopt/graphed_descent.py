"""One minibatch as one CUDA graph: a GPU repeats it for a whole epoch without a word from the host.

A small network's step is some hundred kernels of a few microseconds each, and starting them one by one takes longer than they
do. A graph starts them all at once, but always with the same memory: so the batch, the order of its rows and all numbers that
change go into buffers that stay where they are, and a counter on the device says which minibatch it is. What the steps leave
behind is written into a table, whose rows are read when the last step is over.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from rlopt.compiled_descent import Limits, Loss, MinibatchStep, Position, Taken
from rlopt.descent import Descent, FlatAdam
from rlopt.native_code import compiled
from rlopt.rollout import Observations, map_observations

WARM_UPS = 3  # before a capture, so that libraries have allocated and chosen what they need


class Capture(Protocol):
    """Makes of a function without arguments or result, which computes in place, one that repeats it."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """What repeats the function on the memory that it used; the function may be called on the way."""
        ...


class CudaGraphs:
    """`Capture` as CUDA graphs. Where that fails the function itself is returned, and a warning says why."""

    def __init__(self, device: torch.device):
        self.device = device

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(self.device):
            aside, current = torch.cuda.Stream(), torch.cuda.current_stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    function()
            current.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                # On this device's stream: torch's own for captures is that of the first device that captured anything. And
                # within a context of our own, since a capture that fails does not leave torch's.
                with torch.cuda.stream(aside), torch.cuda.graph(graph, stream=aside):
                    function()
            except RuntimeError as error:
                warnings.warn(f"compile: the update runs without a CUDA graph, which torch refused: {error}", stacklevel=2)
                return function
        return graph.replay


class Buffers(NamedTuple):
    """Memory that stays where it is: what goes in, [K] minibatches of [B] rows, and what comes out of each."""

    batch: Any  # a NamedTuple of at least S' rows
    rows: Tensor  # [K, B]
    corrections: Tensor  # Adam's, [K, 2]
    coefficients: Any  # a NamedTuple of tensors and None
    limits: Limits
    minibatch: Tensor  # [1], which one it is
    going: Tensor  # bool, a scalar: False once a step was refused
    kept: Any  # the loss's second result, [K, ...] each
    grad_norms: Tensor  # [K]
    taken: Tensor  # [K] bool


class GraphedDescent:
    """`Descent.step` of a loss as a captured graph; the same arguments and the same steps as `CompiledDescent`.

    Args:
        descent: whose θ and moments are moved; its optimiser is `FlatAdam`.
        loss, refuses: see `CompiledDescent`. After the first step that is refused none moves θ.
        capture: see `Capture`.
        native: compile the step before it is captured, which makes fewer kernels of it.
    """

    def __init__(
        self,
        descent: Descent,
        loss: Loss,
        refuses: Callable[[Any, Tensor], Tensor] | None,
        capture: Capture,
        native: bool = False,
    ):
        self.descent, self.loss, self.refuses, self.capture, self.native = descent, loss, refuses, capture, native
        pure = MinibatchStep(descent, loss, refuses)
        self._step: Callable[..., tuple[Position, Taken]] = compiled(pure, descent.theta().device) if native else pure
        self._buffers: Buffers | None = None
        self._replay: Callable[[], None] = self._once

    def __deepcopy__(self, memo: dict[int, Any]) -> GraphedDescent:
        """Captured anew for the copied descent; the original's graph would move the original."""
        descent, loss, refuses = (copy.deepcopy(part, memo) for part in (self.descent, self.loss, self.refuses))
        return GraphedDescent(descent, loss, refuses, self.capture, self.native)  # type: ignore[arg-type]

    def steps(self, batch: Any, rows: Iterable[Tensor], coefficients: Any, limits: Limits) -> list[Taken]:
        """What the steps on these minibatches leave behind, up to the first that is refused.

        The host reads nothing but, where steps may be refused, how many were not; other shapes are captured anew.

        Args:
            batch: a NamedTuple of S' rows.
            rows: [B] each, of one B.
            coefficients: a NamedTuple of scalar tensors and None, for the loss.
            limits: of the gradient and the KL.
        """
        parts = list(rows)
        if not parts:
            return []
        order = torch.stack(parts)
        if self._buffers is None or not _fit(self._buffers, batch, order, coefficients):
            self._prepare(batch, order, coefficients, limits)
        buffers = self._fill(batch, order, coefficients, limits)
        for _ in parts:
            self._replay()
        taken = buffers.taken[: len(parts)].tolist() if self.refuses is not None else [True] * len(parts)
        self._adam.num_steps += sum(taken)
        table = (buffers.grad_norms, *buffers.kept)  # the next call writes there
        norms, *kept = (column[: len(parts)].clone().unbind() for column in table)
        results = [
            Taken(_like(buffers.kept, row), norm, torch.tensor(done))
            for norm, done, *row in zip(norms, taken, *kept, strict=True)
        ]
        return results[: sum(taken) + 1]

    @property
    def _adam(self) -> FlatAdam:
        adam = self.descent.optimizer
        assert isinstance(adam, FlatAdam)
        return adam

    @property
    def _position(self) -> Position:
        return Position(self._adam.theta, self._adam.mean, self._adam.square)

    def _prepare(self, batch: Any, order: Tensor, coefficients: Any, limits: Limits) -> None:
        """Buffers of these shapes, and a graph on them; θ and moments are as before."""
        num, before = len(order), Position(*(tensor.clone() for tensor in self._position))
        corrections = self._corrections(num)
        _, taken = self._step(before, batch, order[0], coefficients, limits, corrections[0])  # for the shapes of what it keeps
        kept = _like(taken.kept, [x.detach().new_zeros((num, *x.shape)) for x in taken.kept])
        self._buffers = Buffers(
            batch=_copied(batch),
            rows=order.clone(),
            corrections=corrections,
            coefficients=_copied(coefficients),
            limits=_copied(limits),
            minibatch=order.new_zeros(1),
            going=torch.ones_like(taken.taken),
            kept=kept,
            grad_norms=taken.grad_norm.new_zeros(num),
            taken=taken.taken.new_zeros(num),
        )
        self._replay = self.capture(self._once)
        for tensor, value in zip(self._position, before, strict=True):
            tensor.copy_(value)

    def _fill(self, batch: Any, order: Tensor, coefficients: Any, limits: Limits) -> Buffers:
        buffers = self._buffers
        assert buffers is not None
        for mine, given in ((buffers.batch, batch), (buffers.coefficients, coefficients), (buffers.limits, limits)):
            for target, source in zip(_tensors(mine), _tensors(given), strict=True):
                (target[: len(source)] if target.ndim else target).copy_(source)
        buffers.rows[: len(order)].copy_(order)
        buffers.corrections[: len(order)].copy_(self._corrections(len(order)))
        buffers.minibatch.zero_()
        buffers.going.fill_(True)
        return buffers

    def _corrections(self, num: int) -> Tensor:
        """Adam's for the next steps, [num, 2], in double precision first, as `FlatAdam` has them."""
        adam = self._adam
        first, (beta1, beta2) = adam.num_steps + 1, adam.betas
        steps = torch.arange(first, first + num, dtype=torch.float64, device=adam.theta.device)
        return torch.stack([adam.learning_rate / (1 - beta1**steps), (1 - beta2**steps).sqrt()], 1).to(adam.theta.dtype)

    def _once(self) -> None:
        """What is captured: one step, of the minibatch that the counter on the device says."""
        buffers, position = self._buffers, self._position
        assert buffers is not None
        rows, corrections = (x.index_select(0, buffers.minibatch)[0] for x in (buffers.rows, buffers.corrections))
        moved, taken = self._step(position, buffers.batch, rows, buffers.coefficients, buffers.limits, corrections)
        if self.refuses is not None:
            buffers.going.logical_and_(taken.taken)
            moved = Position(*(torch.where(buffers.going, new, old) for new, old in zip(moved, position, strict=True)))
        for tensor, value in zip(position, moved, strict=True):
            tensor.copy_(value)
        columns = (buffers.grad_norms, buffers.taken, *buffers.kept)
        for column, entry in zip(columns, (taken.grad_norm, buffers.going, *taken.kept), strict=True):
            column.index_copy_(0, buffers.minibatch, entry.detach().unsqueeze(0))
        buffers.minibatch.add_(1).remainder_(len(buffers.rows))


def _fit(buffers: Buffers, batch: Any, order: Tensor, coefficients: Any) -> bool:
    """Whether this can be written into the buffers; a batch may have fewer rows, and there may be fewer minibatches."""
    mine, given = list(_tensors(buffers.batch)), list(_tensors(batch))
    same = order.shape[1] == buffers.rows.shape[1] and len(order) <= len(buffers.rows) and len(mine) == len(given)
    return (
        same
        and all(len(y) <= len(x) and (x.shape[1:], x.dtype) == (y.shape[1:], y.dtype) for x, y in zip(mine, given, strict=True))
        and _forms(buffers.coefficients) == _forms(coefficients)
    )


def _forms(coefficients: Any) -> list[Any]:
    return [None if x is None else (x.shape, x.dtype) for x in coefficients]


def _tensors(fields: Any) -> Iterable[Tensor]:
    """Those of a tuple of observations, tensors and None."""
    for field in fields:
        if isinstance(field, dict):
            yield from field.values()
        elif field is not None:
            yield field


def _copied(fields: Any) -> Any:
    """The same NamedTuple of clones."""

    def clone(field: Observations | None) -> Any:
        return None if field is None else map_observations(torch.clone, field)

    return type(fields)(*map(clone, fields))


def _like(kept: Any, values: Iterable[Tensor]) -> Any:
    """The values as the tuple or NamedTuple that `kept` is."""
    return type(kept)._make(values) if hasattr(kept, "_make") else tuple(values)
