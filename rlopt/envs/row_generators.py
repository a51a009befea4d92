"""One random generator for each copy of a vector environment, behind the face of a single one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rlopt.envs.spaces import Array


class RowGenerators:
    """Draws arrays [n, ...] whose row i comes from the i-th of n generators: what one copy sees depends on its seed alone.

    Only what environments of this library draw, and always one row a generator.

    Attributes:
        generators: one for each row.
    """

    def __init__(self, generators: Sequence[np.random.Generator]):
        self.generators = list(generators)

    def of(self, mask: Array) -> RowGenerators:
        """Those of some rows, `mask` [n] bool; they go on together with these."""
        return RowGenerators([generator for generator, kept in zip(self.generators, mask, strict=True) if kept])

    def random(self, size: Any = None) -> Array:
        """Uniform on [0, 1), [n, ...]."""
        return self._rows(size, lambda generator, shape: generator.random(shape))

    def uniform(self, low: float, high: float, size: Any = None) -> Array:
        """Uniform on [low, high), [n, ...]."""
        return self._rows(size, lambda generator, shape: generator.uniform(low, high, shape))

    def standard_normal(self, size: Any = None) -> Array:
        """N(0, 1), [n, ...]."""
        return self._rows(size, lambda generator, shape: generator.standard_normal(shape))

    def integers(self, low: int, high: int | None = None, size: Any = None) -> Array:
        """Uniform on {0, …, low − 1}, or {low, …, high − 1}; [n, ...]."""
        return self._rows(size, lambda generator, shape: generator.integers(low, high, shape))

    def multivariate_normal(self, mean: Array, cov: Array, size: Any = None) -> Array:
        """N(mean, cov), [n, ..., d]."""
        return self._rows(size, lambda generator, shape: generator.multivariate_normal(mean, cov, shape))

    def _rows(self, size: Any, draw: Callable[[np.random.Generator, Any], Any]) -> Array:
        shape = (size,) if np.ndim(size) == 0 else tuple(size)
        if shape[0] != len(self.generators):
            raise ValueError(f"size: expected ({len(self.generators)}, ...), one row for each generator, got {size}")
        return np.array([draw(generator, shape[1:] or None) for generator in self.generators])


class BlockGenerators(RowGenerators):
    """Draws arrays [n, ...] in blocks of rows, one from each generator: what it would have drawn for its rows alone.

    Args:
        generators: one for each block.
        sizes: rows of each block; of one without rows nothing is drawn.
    """

    def __init__(self, generators: Sequence[np.random.Generator], sizes: Sequence[int]):
        super().__init__(generators)
        self.sizes = list(sizes)

    def of(self, mask: Array) -> BlockGenerators:
        """Those of some rows, `mask` [n] bool."""
        blocks = np.split(mask, np.cumsum(self.sizes)[:-1])
        return BlockGenerators(self.generators, [int(np.count_nonzero(block)) for block in blocks])

    def _rows(self, size: Any, draw: Callable[[np.random.Generator, Any], Any]) -> Array:
        shape = (size,) if np.ndim(size) == 0 else tuple(size)
        if shape[0] != sum(self.sizes):
            raise ValueError(f"size: expected ({sum(self.sizes)}, ...), got {size}")
        blocks = zip(self.generators, self.sizes, strict=True)
        return np.concatenate([draw(generator, (rows, *shape[1:])) for generator, rows in blocks if rows])


def generator_state(generator: np.random.Generator | RowGenerators) -> Any:
    """Where random numbers are, as plain values: a dictionary, or one for each row."""
    if isinstance(generator, RowGenerators):
        return [row.bit_generator.state for row in generator.generators]
    return generator.bit_generator.state


def restored_generator(state: Any) -> np.random.Generator | RowGenerators:
    """The inverse of `generator_state`.

    Raises:
        ValueError, TypeError, KeyError: what is no state of NumPy's PCG64, the generator that Gymnasium uses.
    """
    if isinstance(state, list):
        return RowGenerators([_restored(row) for row in state])
    return _restored(state)


def _restored(state: Any) -> np.random.Generator:
    bits = np.random.PCG64(0)
    bits.state = state
    return np.random.Generator(bits)
