"""The largest values of rows, against torch's own top-k."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import qwen35
from qwen35.generation.largest import largest


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.one_of(st.integers(1, 700), st.integers(3_000, 40_000)),
    st.integers(1, 80),
    st.sampled_from([0, 1]),
)
def test_equals_top_k(seed, size, count, grid):
    """Any widths, of as many levels of blocks, whole or not; on a grid values are equal more often
    than not."""
    x = torch.randn(3, size, generator=torch.Generator().manual_seed(seed)) * 3
    x = x.round() if grid else x
    x[1, : size // 2] = -math.inf  # banned tokens
    x[2] = x[2].abs().neg()
    count = min(count, size)
    values, ids = largest(x, count)
    assert torch.equal(values, x.topk(count).values)
    assert torch.equal(x.gather(1, ids), values)
    assert torch.equal(ids[:, 0], x.argmax(-1))
    assert all(len(set(row)) == count for row in ids.tolist())
    if not grid:
        finite = values > -math.inf
        assert torch.equal(ids[finite], x.topk(count).indices[finite])


def test_more_than_there_are_blocks():
    """All of a row, and most of a long one; hardly any of it finite."""
    x = torch.full((2, 5_000), -math.inf)
    x[:, ::1000] = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))
    for count in (3, 5, 64, 900, 5_000):
        values, ids = largest(x, count)
        assert torch.equal(values, x.topk(count).values)
        assert all(len(set(row)) == count and max(row) < 5_000 for row in ids.tolist())


def test_rows_without_values_choose_something():
    """What has overflowed or lost its value is a fault of its own; no place is out of the row."""
    for value in (math.nan, -math.inf, math.inf, 0.0):
        _, ids = largest(torch.full((2, 3_000), value), 64)
        assert ids[:, 0].tolist() == [0, 0]
        assert all(len(set(row)) == 64 and max(row) < 3_000 for row in ids.tolist())
    x = torch.zeros(1, 3_000)
    x[0, [5, 2_000]] = math.nan
    assert largest(x, 2)[1].tolist() == [[5, 2_000]]


@pytest.mark.parametrize("size", [1000, 248_320])
def test_on_the_device(size):
    x = torch.randn(2, size, generator=torch.Generator().manual_seed(0))
    values, ids = qwen35.jit(lambda x: largest(x, 64))(x.to("xla"))
    wanted = x.topk(64)
    assert torch.equal(values.cpu(), wanted.values) and torch.equal(ids.cpu(), wanted.indices)
