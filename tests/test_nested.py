"""Nested values to JSON and tensors, and back."""

from __future__ import annotations

import json
from collections import Counter, deque

import numpy as np
import pytest
import torch

from rlopt.nested import join, split


def there_and_back(value):
    document, tensors = split(value, "it")
    return join(json.loads(json.dumps(document)), tensors)


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"a": 1, "b": [1.5, True, "text", None], "c": {"d": -(2**127)}},
        [0.1] * 100,
        list(range(100)),
        [1, 2.5] * 50,
        [2**70] * 40,
        [float("inf"), -float("inf")],
        {"tensor": "text", "numbers": 2},
        [[0.25] * 40, [0.5]],
    ],
)
def test_plain_values_come_back(value):
    assert there_and_back(value) == value
    assert type(there_and_back(value)) is type(value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int8, np.uint8, bool])
def test_arrays_come_back_with_their_type(dtype):
    array = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    back = there_and_back({"x": [array]})["x"][0]
    assert back.dtype == array.dtype
    assert np.array_equal(back, array)


def test_tensors_share_no_memory():
    array = np.zeros(3)
    _, tensors = split([array, torch.zeros(2)], "it")
    array[:] = 1
    assert set(tensors) == {"it/0", "it/1"}
    assert float(tensors["it/0"].sum()) == 0.0


def test_sequences_come_back_as_lists():
    assert there_and_back((1, deque([2]), np.float64(3.0))) == [1, [2], 3.0]


def test_other_objects_are_named():
    with pytest.raises(TypeError, match="it/a/0: object cannot be kept as data"):
        split({"a": [object()]}, "it")


@pytest.mark.parametrize("value", [{1: 2}, {"$tensor": "x"}, Counter("a"), {1, 2}])
def test_what_would_come_back_as_something_else_is_refused(value):
    with pytest.raises(TypeError, match=r"it: .* cannot be kept as data"):
        split(value, "it")


def test_tensors_come_back_as_tensors():
    assert torch.equal(there_and_back([torch.arange(3)])[0], torch.arange(3))


def test_a_long_record_does_not_make_the_document_long():
    document, _ = split({"losses": np.random.default_rng(0).normal(size=10**5).tolist()}, "it")
    assert len(json.dumps(document)) < 100
